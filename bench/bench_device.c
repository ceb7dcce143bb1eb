/* What runs on a GPU, beside what the GPU can do: gathers from pinned memory, decode attention, steps of sequences. Skipped
 * without one; times are the GPU's own, between events. A test runs all of it on the emulator with tiny sizes, where
 * only the results mean anything. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/half.h"
#include "base/rng.h"
#include "bench/bench_device.h"
#include "bench/measure.h"
#include "bench/subjects.h"
#include "offload/io_ops.h"
#include "runtime/device_part.h"

#define DIM    128u
#define HEADS  8u /* kv-heads */
#define GROUP  4u
#define RUNS   20u /* of what is measured, between two events */
#define LAYERS 32u /* of the model whose token is spoken of */

const struct hri_device_ops *hrb_device_ops;

static const struct hri_device_ops *device_ops(void)
{
    return hrb_device_ops != NULL ? hrb_device_ops : hri_device_cuda_get();
}

/* ------------------------------------------------------------------------------------------ timing */

struct bed {
    struct hri_device *device;
    const struct hri_device_ops *ops;
    void *stream, *first, *last;
    struct hri_device_memory memory;
    bool tiny;
};

static int say(struct hrb_result *result)
{
    return hrb_failed(result, "%s", hr_last_error());
}

static void bed_close(struct bed *b)
{
    if (b->device == NULL)
        return;
    if (b->first != NULL)
        b->ops->event_destroy(b->first);
    if (b->last != NULL)
        b->ops->event_destroy(b->last);
    hri_device_free(b->device, &b->memory);
    hri_device_close(b->device);
}

/* -1: it is there; else the code to return. */
static int bed_events(struct bed *b, struct hri_device *device, struct hrb_result *result)
{
    b->ops = device_ops();
    b->tiny = b->ops->emulated;
    b->stream = hri_device_stream(device);
    if (b->ops->event_create(&b->first) != 0 || b->ops->event_create(&b->last) != 0)
        return hrb_failed(result, "no events");
    return -1;
}

static int bed_open(struct bed *b, size_t bytes, struct hrb_result *result)
{
    const struct hri_device_options o = {.ops = device_ops(), .budget_bytes = bytes};
    if (o.ops == NULL)
        return hrb_skip(result, "this build has no CUDA");
    if (hri_device_open(&o, &b->device) != HR_OK)
        return hrb_skip(result, "%s", hr_last_error());
    if (hri_device_alloc(b->device, "a benchmark", bytes, &b->memory) != HR_OK)
        return say(result);
    return bed_events(b, b->device, result);
}

/* Seconds of one of RUNS calls; negative: failed. */
static double seconds_of(const struct bed *b, int (*call)(void *), void *context)
{
    float ms = 0;
    int error = b->ops->event_record(b->first, b->stream);
    const unsigned runs = b->tiny ? 1 : RUNS;
    for (unsigned i = 0; i < runs && error == 0; i++)
        error = call(context);
    if (error == 0)
        error = b->ops->event_record(b->last, b->stream);
    if (error == 0)
        error = b->ops->stream_wait(b->stream);
    if (error == 0)
        error = b->ops->event_elapsed(b->first, b->last, &ms);
    return error == 0 ? (double)ms * 1e-3 / runs : -1;
}

static unsigned rounds_of(const struct bed *b, const struct hrb_options *options)
{
    return b->tiny ? 1 : options->quick ? 5 : 15;
}

/* ----------------------------------------------------------------------------------------- gathers */

struct gather {
    struct bed bed;
    struct hri_device_buffer host;
    struct hri_cuda_gather_args args;
    uint32_t n, bytes; /* blocks, of each */
};

static int gather_call(void *context)
{
    struct gather *g = context;
    return g->bed.ops->launch->gather(&g->args, 4, HRI_CUDA_PATH_AUTO, g->bed.stream);
}

static int gather_copy(void *context)
{
    struct gather *g = context;
    const size_t bytes = (size_t)g->n * g->bytes;
    return g->bed.ops->copy(g->args.frames, bytes, g->host.base, bytes, bytes, 1, g->bed.stream);
}

static double gather_seconds(void *context)
{
    struct gather *g = context;
    return seconds_of(&g->bed, gather_call, g);
}

static double copy_seconds(void *context)
{
    struct gather *g = context;
    return seconds_of(&g->bed, gather_copy, g);
}

/* Block i of host memory, in random order, to frame i. */
static int gather_make(struct gather *g, struct hrb_result *result)
{
    struct hri_device_carve c = {g->bed.memory.base, 0};
    struct hri_rng rng;
    struct hri_cuda_job *jobs = malloc(g->n * sizeof *jobs);
    uint64_t *offsets = malloc(g->n * sizeof *offsets);
    uint64_t *words;
    hr_status_t status = jobs != NULL && offsets != NULL ? HR_OK : HR_ERR_NOMEM;
    if (status == HR_OK)
        status = hri_device_buffer_create(g->bed.device, (size_t)g->n * g->bytes, &g->host);
    hri_rng_seed(&rng, 3);
    for (uint32_t i = 0; status == HR_OK && i < g->n; i++) {
        const uint32_t j =
            (uint32_t)hri_rng_below(&rng, i + 1); /* a shuffle, from the inside out */
        offsets[i] = offsets[j];
        offsets[j] = (uint64_t)i * g->bytes;
        jobs[i] = (struct hri_cuda_job){0, i, i, i};
    }
    words = g->host.base;
    for (size_t i = 0; status == HR_OK && i < (size_t)g->n * g->bytes / 8; i++)
        words[i] = i * 0x9e3779b97f4a7c15u;
    g->args = (struct hri_cuda_gather_args){.blocks_max = g->n, .frame_bytes = g->bytes};
    void *device_jobs = hri_device_carve(&c, g->n, sizeof *jobs),
         *device_offsets = hri_device_carve(&c, g->n, sizeof *offsets),
         *device_n = hri_device_carve(&c, 1, sizeof g->n);
    g->args.frames = hri_device_carve(&c, g->n, g->bytes);
    g->args.host = g->host.base;
    g->args.jobs = device_jobs;
    g->args.host_offset = device_offsets;
    g->args.n_jobs = device_n;
    if (status == HR_OK)
        status = hri_device_copy(g->bed.device, device_jobs, jobs, g->n * sizeof *jobs);
    if (status == HR_OK)
        status = hri_device_copy(g->bed.device, device_offsets, offsets, g->n * sizeof *offsets);
    if (status == HR_OK)
        status = hri_device_copy(g->bed.device, device_n, &g->n, sizeof g->n);
    int code = status == HR_OK ? -1 : say(result);
    for (uint32_t i = 0; code < 0 && i < 16; i++) { /* what comes is what lies there */
        unsigned char block[32768];
        const uint32_t b = (uint32_t)hri_rng_below(&rng, g->n);
        if (i == 0 && gather_call(g) != 0)
            code = hrb_failed(result, "the launch failed");
        else if (hri_device_copy(g->bed.device, block, g->args.frames + (size_t)b * g->bytes,
                                 g->bytes) != HR_OK ||
                 hri_device_wait(g->bed.device) != HR_OK)
            code = say(result);
        else if (memcmp(block, (unsigned char *)g->host.base + offsets[b], g->bytes) != 0)
            code = hrb_failed(result, "block %u is not what lies in host memory", b);
    }
    free(jobs);
    free(offsets);
    return code;
}

int hrb_device_gather(const struct hrb_benchmark *self, const struct hrb_options *options,
                      struct hrb_result *result)
{
    struct gather g = {.bytes = (uint32_t)self->variant};
    struct hrb_pair pair;
    const bool tiny = device_ops() != NULL && device_ops()->emulated;
    g.n = (tiny ? 1u << 16 : 128u << 20) / g.bytes;
    int code = bed_open(&g.bed, (size_t)g.n * (g.bytes + 32) + 4096, result);
    if (code < 0)
        code = gather_make(&g, result);
    if (code < 0 && !g.host.pinned)
        code = hrb_skip(result, "host memory could not be pinned");
    if (code < 0) {
        code = hrb_measure(options, rounds_of(&g.bed, options), gather_seconds, &g, copy_seconds,
                           &g, &pair);
        if (code == 0) {
            hrb_result_rate(result, &pair, (uint64_t)g.n * g.bytes);
            result->limit_is = "one copy of all bytes from pinned memory";
        }
    }
    if (g.bed.device != NULL)
        hri_device_buffer_destroy(g.bed.device, &g.host);
    bed_close(&g.bed);
    return code;
}

/* ------------------------------------------------------------------------------------------ decode */

struct decode {
    struct bed bed;
    struct hri_cuda_attend_args args;
    struct hri_cuda_heads heads;
    void *other; /* as much memory as the rows */
    size_t bytes;
    uint32_t n; /* rows of a head */
};

static int decode_call(void *context)
{
    struct decode *d = context;
    return d->bed.ops->launch->attend(&d->args, d->heads, d->bed.stream);
}

static int decode_read(void *context)
{
    struct decode *d = context;
    const size_t half = d->bytes / 2; /* read and written: together what the attention reads */
    return d->bed.ops->copy(d->other, half, d->args.runs[0].rows, half, half, 1, d->bed.stream);
}

static double decode_seconds(void *context)
{
    struct decode *d = context;
    return seconds_of(&d->bed, decode_call, d);
}

static double read_seconds(void *context)
{
    struct decode *d = context;
    return seconds_of(&d->bed, decode_read, d);
}

/* The first head's output against the CPU's kernel. */
static int decode_check(struct decode *d, const uint16_t *rows, const float *q,
                        struct hrb_result *result)
{
    float got[DIM], want[GROUP * DIM], m[GROUP], l[GROUP], o[GROUP * DIM];
    struct hri_partial part = {m, l, o};
    const struct hri_rows all = {rows, 2 * DIM * 2, d->n, HR_DTYPE_BF16};
    double far = 0, size = 0;
    if (decode_call(d) != 0 ||
        hri_device_copy(d->bed.device, got, d->args.out, sizeof got) != HR_OK ||
        hri_device_wait(d->bed.device) != HR_OK)
        return say(result);
    hri_partial_clear(&part, GROUP, DIM);
    hri_kernels_get(hri_kernels_best())->attend_rows(q, GROUP, DIM, DIM, all, 0, &part);
    hri_partial_finish(&part, GROUP, DIM, want, NULL);
    for (uint32_t j = 0; j < DIM; j++) {
        far += ((double)got[j] - want[j]) * ((double)got[j] - want[j]);
        size += (double)want[j] * want[j];
    }
    return sqrt(far / size) < 1e-2
               ? -1
               : hrb_failed(result, "the output is off by %.2g", sqrt(far / size));
}

static int decode_make(struct decode *d, struct hrb_result *result)
{
    struct hri_device_carve c = {d->bed.memory.base, 0};
    const struct hri_launchers *launch = d->bed.ops->launch;
    struct hri_rng rng;
    uint16_t *rows = malloc(d->bytes);
    float q[HEADS * GROUP * DIM];
    const size_t n_rows = (size_t)HEADS * d->n;
    if (rows == NULL)
        return hrb_failed(result, "out of memory");
    hri_rng_seed(&rng, 5);
    for (size_t i = 0; i < n_rows * 2 * DIM; i++)
        rows[i] = hri_bf16_from_f32(2 * hri_rng_f32(&rng) - 1);
    for (size_t i = 0; i < sizeof q / sizeof *q; i++)
        q[i] = 0.3f * (hri_rng_f32(&rng) - 0.5f);
    void *device_rows = hri_device_carve(&c, 1, d->bytes), *n = hri_device_carve(&c, 1, 4);
    float *device_q = hri_device_carve(&c, 1, sizeof q);
    d->other = hri_device_carve(&c, 1, d->bytes / 2);
    d->args = (struct hri_cuda_attend_args){.q = device_q, .dtype = HR_DTYPE_BF16, .n_runs = 1};
    d->args.runs[0] = (struct hri_cuda_run){.rows = device_rows,
                                            .head_stride_bytes = (size_t)d->n * 2 * DIM * 2,
                                            .n = n,
                                            .capacity = d->n};
    d->args.out = hri_device_carve(&c, 1, sizeof q);
    d->args.lse = hri_device_carve(&c, HEADS * GROUP, 4);
    d->args.work = hri_device_carve(&c, launch->attend_work(d->heads), 4);
    d->args.arrived = hri_device_carve(&c, launch->attend_counters(d->heads), 4);
    int code = -1;
    if (c.used > d->bed.memory.bytes ||
        hri_device_fill(d->bed.device, d->bed.memory.base, 0, c.used) != HR_OK ||
        hri_device_copy(d->bed.device, device_rows, rows, d->bytes) != HR_OK ||
        hri_device_copy(d->bed.device, device_q, q, sizeof q) != HR_OK ||
        hri_device_copy(d->bed.device, n, &d->n, sizeof d->n) != HR_OK)
        code = say(result);
    code = code < 0 ? decode_check(d, rows, q, result) : code;
    free(rows);
    return code;
}

int hrb_device_decode(const struct hrb_benchmark *self, const struct hrb_options *options,
                      struct hrb_result *result)
{
    struct decode d = {.heads = {HEADS, GROUP, DIM, DIM}};
    struct hrb_pair pair;
    const bool tiny = device_ops() != NULL && device_ops()->emulated;
    d.n = tiny ? 96 : (uint32_t)self->variant;
    d.bytes = (size_t)HEADS * d.n * 2 * DIM * 2;
    int code = bed_open(&d.bed, 2 * d.bytes + (64u << 20), result);
    if (code < 0)
        code = decode_make(&d, result);
    if (code < 0) {
        code = hrb_measure(options, rounds_of(&d.bed, options), decode_seconds, &d, read_seconds,
                           &d, &pair);
        if (code == 0) {
            hrb_result_rate(result, &pair, d.bytes);
            result->limit_is =
                "a copy within the GPU of half the bytes, which reads and writes as many";
        }
    }
    bed_close(&d.bed);
    return code;
}

/* ------------------------------------------------------------------------------------------- steps */

enum { STEP_TOKEN, STEP_CHOOSE, STEP_GRAPH }; /* thousands of a variant; below: Ki tokens */

struct steps {
    struct bed bed;
    hr_runtime_t *rt;
    hr_sequence_t *seq;
    void *choose; /* a graph of the choice alone */
    struct hri_rng rng;
    float *q; /* [HEADS][GROUP][DIM] */
    int what;
    uint32_t tokens;
};

static int step_graph_call(void *context)
{
    struct steps *s = context;
    return s->bed.ops->graph_launch(s->seq->part->layers[0].first, s->bed.stream);
}

static int step_choose_call(void *context)
{
    struct steps *s = context;
    return s->bed.ops->graph_launch(s->choose, s->bed.stream);
}

static int step_loose_call(void *context)
{
    struct steps *s = context;
    return hri_device_launch_again(s->seq, 0);
}

static double graph_seconds(void *context)
{
    struct steps *s = context;
    return seconds_of(&s->bed, s->what == STEP_CHOOSE ? step_choose_call : step_graph_call, s);
}

static double loose_seconds(void *context)
{
    struct steps *s = context;
    return seconds_of(&s->bed, step_loose_call, s);
}

/* The most that the step may take; no run of anything. */
static double allowed_seconds(void *context)
{
    const struct steps *s = context;
    const bool large = s->tokens > 262144;
    return s->what == STEP_CHOOSE ? (large ? 30e-6 : 8e-6) : (large ? 3.2e-3 : 2.0e-3) / LAYERS;
}

static void some_rows(struct steps *s, float *x, uint32_t n, double spread)
{
    for (uint32_t i = 0; i < n * HEADS; i++) {
        struct hri_rng topic; /* rows come in topics, as keys do */
        hri_rng_seed(&topic,
                     (uint64_t)hri_rng_below(&s->rng, 1 + s->tokens / 64) * HEADS + i % HEADS);
        for (uint32_t j = 0; j < DIM; j++)
            x[(size_t)i * DIM + j] =
                (float)(hri_rng_normal(&topic) + spread * hri_rng_normal(&s->rng));
    }
}

static hr_status_t rows_put(struct steps *s, uint32_t tokens)
{
    enum { CHUNK = 1024 };
    float *k = malloc(sizeof(float) * CHUNK * HEADS * DIM * 2), *v = k + CHUNK * HEADS * DIM;
    hr_status_t status = k != NULL ? HR_OK : HR_ERR_NOMEM;
    for (uint32_t done = 0, n; done < tokens && status == HR_OK; done += n) {
        n = tokens - done < CHUNK ? tokens - done : CHUNK;
        some_rows(s, k, n, 0.5);
        some_rows(s, v, n, 0.5);
        struct hr_tensor tk = hr_tensor_make(k, HR_DTYPE_F32, n, HEADS, DIM),
                         tv = hr_tensor_make(v, HR_DTYPE_F32, n, HEADS, DIM);
        status = hr_sequence_append(s->seq, 0, &tk, &tv, NULL);
    }
    free(k);
    return status == HR_OK ? hr_sequence_settle(s->seq, 0) : status;
}

static hr_status_t query_attend(struct steps *s, struct hr_attend_report *report)
{
    float out[HEADS * GROUP * DIM];
    struct hr_attend_options o;
    hr_attend_options_init(&o);
    o.check_exact = 1;
    for (uint32_t i = 0; i < HEADS * GROUP * DIM; i++)
        s->q[i] = (float)(0.7 * s->q[i] + 0.5 * hri_rng_normal(&s->rng));
    struct hr_tensor q = hr_tensor_make(s->q, HR_DTYPE_F32, 1, HEADS * GROUP, DIM);
    struct hr_tensor to = hr_tensor_make(out, HR_DTYPE_F32, 1, HEADS * GROUP, DIM);
    return hr_sequence_attend(s->seq, 0, &q, &o, &to, report, NULL);
}

static hr_status_t steps_open(struct steps *s, const struct hrb_options *options)
{
    struct hr_runtime_options ro;
    struct hr_sequence_options so;
    const uint64_t exact = (uint64_t)s->tokens * HEADS * 2 * DIM * 2;
    hr_runtime_options_init(&ro);
    ro.device = device_ops()->name;
    ro.device_bytes = exact / 2 + (64u << 20);
    ro.host_bytes = 2 * exact + (64u << 20);
    ro.n_threads = options->n_threads;
    hr_status_t status = hri_runtime_create_on(&ro, hri_io_real(), device_ops(), &s->rt);
    if (status != HR_OK)
        return status;
    hr_sequence_options_init(&so);
    so.n_layers = 1;
    so.n_q_heads = HEADS * GROUP;
    so.n_kv_heads = HEADS;
    so.k_dim = so.v_dim = DIM;
    so.tokens_max = s->tokens + 64;
    so.recipe = "headrace:sketch=0";
    return hr_sequence_create(s->rt, &so, &s->seq);
}

static hr_status_t choose_record(struct steps *s)
{
    struct hri_device *device = s->seq->part->device;
    hr_status_t status =
        hri_device_check(device, s->bed.ops->capture_begin(s->bed.stream), "recording");
    if (status != HR_OK)
        return status;
    int error = hri_device_launch_choice(s->seq, 0);
    int ended = s->bed.ops->capture_end(s->bed.stream, &s->choose);
    return hri_device_check(device, error != 0 ? error : ended, "recording");
}

static int steps_measure(struct steps *s, const struct hrb_options *options,
                         struct hrb_result *result)
{
    struct hrb_pair pair;
    int code = hrb_measure(options, rounds_of(&s->bed, options), graph_seconds, s,
                           s->what == STEP_GRAPH ? loose_seconds : allowed_seconds, s, &pair);
    if (code != 0)
        return code;
    const double scale = s->what == STEP_TOKEN ? 1e3 * LAYERS : 1e6;
    result->value = pair.a_median * scale;
    result->limit = pair.b_median * scale;
    result->ratio = pair.ratio;
    result->spread = pair.spread;
    result->value_p99 = pair.a_p99 * scale;
    result->rounds = pair.rounds;
    result->unit = s->what == STEP_TOKEN ? "ms" : "us";
    result->limit_is =
        s->what == STEP_GRAPH ? "the same launches one by one" : "the most it may take";
    return 0;
}

int hrb_device_step(const struct hrb_benchmark *self, const struct hrb_options *options,
                    struct hrb_result *result)
{
    struct steps s = {.what = self->variant / 10000};
    struct hr_attend_report report;
    const bool tiny = device_ops() != NULL && device_ops()->emulated;
    int code = 0;
    s.tokens = tiny ? 130 : (uint32_t)(self->variant % 10000) * 1024;
    if (device_ops() == NULL)
        return hrb_skip(result, "this build has no CUDA");
    hri_rng_seed(&s.rng, 9);
    s.q = calloc(HEADS * GROUP * DIM, sizeof *s.q);
    hr_status_t status = s.q != NULL ? steps_open(&s, options) : HR_ERR_NOMEM;
    if (status == HR_ERR_UNSUPPORTED || status == HR_ERR_NOMEM) {
        code = hrb_skip(result, "%s", hr_last_error());
        goto out;
    }
    if (status == HR_OK)
        status = rows_put(&s, s.tokens);
    for (int i = 0; status == HR_OK && i < 4; i++) /* frames fill */
        status = query_attend(&s, &report);
    if (status == HR_OK && !s.seq->part->direct) {
        code = hrb_skip(result, "host memory could not be pinned");
        goto out;
    }
    code = status == HR_OK ? bed_events(&s.bed, s.seq->part->device, result) : say(result);
    if (code < 0 && !(report.true_error < 0.5))
        code = hrb_failed(result, "the output is off by %.2g", report.true_error);
    if (code < 0 && choose_record(&s) != HR_OK)
        code = say(result);
    if (code < 0)
        code = steps_measure(&s, options, result);
out:
    if (s.choose != NULL)
        s.bed.ops->graph_destroy(s.choose);
    if (s.bed.first != NULL)
        s.bed.ops->event_destroy(s.bed.first);
    if (s.bed.last != NULL)
        s.bed.ops->event_destroy(s.bed.last);
    hr_sequence_destroy(s.seq);
    hr_runtime_destroy(s.rt);
    free(s.q);
    return code;
}
