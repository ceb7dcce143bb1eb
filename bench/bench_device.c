/* Parts of a step on a GPU, beside what the GPU can do: gathers from pinned memory, exact and sparse decode attention. Skipped without one;
 * times are the GPU's own, between events. A test runs all of it on the emulator with tiny sizes, where only the results mean anything. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "bench/device_bed.h"
#include "bench/device_decode.h"
#include "bench/subjects.h"

const struct hri_device_ops *hrb_device_ops;

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
    g.n = (device_is_emulated() ? 1u << 16 : 128u << 20) / g.bytes;
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

int hrb_device_decode(const struct hrb_benchmark *self, const struct hrb_options *options,
                      struct hrb_result *result)
{
    struct hrb_decode d;
    struct hrb_pair pair;
    const uint32_t n = device_is_emulated() ? 128 : (uint32_t)self->variant;
    int code = hrb_decode_open(&d, n, false, result);
    if (code < 0)
        code = hrb_measure(options, rounds_of(&d.bed, options), hrb_decode_seconds, &d,
                           hrb_decode_read_seconds, &d, &pair);
    if (code == 0 && !result->skipped) {
        hrb_result_rate(result, &pair, d.bytes);
        result->limit_is = "a read of the same bytes";
    }
    hrb_decode_close(&d);
    return code;
}

/* ------------------------------------------------------------------------------------ sparse decode */

#define BLOCK_ROWS 32u
#define CHOSEN     64u /* blocks of a head: 2,048 rows; fewer on the emulator */

/* Refined blocks in frames, int8, one layer after the other, so that none finds its own in the second-level cache. */
struct sparse {
    struct bed bed;
    struct hri_cuda_heads heads;
    struct hri_cuda_attend_args args;
    int8_t *frames;                /* [copies][HEADS CHOSEN][BLOCK_ROWS][2 DIM] */
    uint32_t *sum, copies, chosen; /* chosen: blocks of a head */
    size_t copy_bytes;
    void *graphs[3]; /* of the attention, of reads of the same bytes, of kernels that do nothing */
    /* On the host, for the check: */
    int8_t *codes; /* of the first copy */
    float q[HEADS * GROUP * DIM], dots[HEADS * GROUP * CHOSEN], k_step[HEADS * CHOSEN],
        v_step[HEADS * CHOSEN], v_scale[HEADS * CHOSEN];
    int8_t v_codes[HEADS * CHOSEN * DIM];
    uint32_t items[HEADS * CHOSEN], places[HEADS * CHOSEN];
};

static int sparse_launch(struct sparse *s, uint32_t copy)
{
    struct hri_cuda_attend_args a = s->args;
    a.refined.frames = s->frames + copy * s->copy_bytes;
    return s->bed.ops->launch->attend(&a, s->heads, s->bed.stream);
}

static int sparse_graph(struct sparse *s, int which, struct hrb_result *result)
{
    const struct hri_launchers *launch = s->bed.ops->launch;
    int error = s->bed.ops->capture_begin(s->bed.stream);
    for (uint32_t i = 0; i < s->copies && error == 0; i++)
        error = which == 0   ? sparse_launch(s, i)
                : which == 1 ? launch->read(s->frames + i * s->copy_bytes, s->copy_bytes, s->sum,
                                            s->bed.stream)
                             : launch->nothing(s->bed.stream);
    const int ended = s->bed.ops->capture_end(s->bed.stream, &s->graphs[which]);
    return error == 0 && ended == 0 ? -1 : hrb_failed(result, "recording failed");
}

struct sparse_part {
    struct sparse *sparse;
    int which;
};

static int sparse_call(void *context)
{
    const struct sparse_part *p = context;
    return p->sparse->bed.ops->graph_launch(p->sparse->graphs[p->which], p->sparse->bed.stream);
}

/* Of one launch. */
static double sparse_seconds(void *context)
{
    const struct sparse_part *p = context;
    return seconds_of(&p->sparse->bed, sparse_call, context) / p->sparse->copies;
}

static double sparse_allowed(void *context)
{
    (void)context;
    return 7e-6;
}

static void sparse_fill(struct sparse *s)
{
    struct hri_rng rng;
    hri_rng_seed(&rng, 6);
    for (size_t i = 0; i < s->copy_bytes; i++)
        s->codes[i] = (int8_t)((int)hri_rng_below(&rng, 255) - 127);
    for (uint32_t i = 0; i < HEADS * GROUP * DIM; i++)
        s->q[i] = 0.3f * (hri_rng_f32(&rng) - 0.5f);
    for (uint32_t i = 0; i < HEADS * CHOSEN; i++) {
        s->k_step[i] = 0.01f * (1 + hri_rng_f32(&rng));
        s->v_step[i] = 0.01f * (1 + hri_rng_f32(&rng));
        s->v_scale[i] = 0.02f * (1 + hri_rng_f32(&rng));
        s->items[i] = i % CHOSEN;
        const uint32_t j = (uint32_t)hri_rng_below(&rng, i + 1); /* frames in any order */
        s->places[i] = s->places[j];
        s->places[j] = i;
    }
    for (uint32_t i = 0; i < HEADS * GROUP * CHOSEN; i++)
        s->dots[i] = hri_rng_f32(&rng);
    for (uint32_t i = 0; i < HEADS * CHOSEN * DIM; i++)
        s->v_codes[i] = (int8_t)((int)hri_rng_below(&rng, 255) - 127);
}

/* The first query head by the definitions, in double. */
static void sparse_want(const struct sparse *s, double out[DIM])
{
    double total = 0;
    for (uint32_t j = 0; j < DIM; j++)
        out[j] = 0;
    for (uint32_t b = 0; b < s->chosen; b++)
        for (uint32_t r = 0; r < BLOCK_ROWS; r++) {
            const int8_t *row = s->codes + ((size_t)s->places[b] * BLOCK_ROWS + r) * 2 * DIM;
            double logit = 0;
            for (uint32_t j = 0; j < DIM; j++)
                logit += (double)s->q[j] * row[j];
            const double w = exp((double)s->dots[b] + (double)s->k_step[b] * logit);
            total += w;
            for (uint32_t j = 0; j < DIM; j++)
                out[j] += w * ((double)s->v_scale[b] * s->v_codes[b * DIM + j] +
                               (double)s->v_step[b] * row[DIM + j]);
        }
    for (uint32_t j = 0; j < DIM; j++)
        out[j] /= total;
}

static int sparse_check(struct sparse *s, struct hrb_result *result)
{
    float got[DIM];
    double want[DIM], far = 0, size = 0;
    if (sparse_launch(s, 0) != 0 ||
        hri_device_copy(s->bed.device, got, s->args.out, sizeof got) != HR_OK ||
        hri_device_wait(s->bed.device) != HR_OK)
        return say(result);
    sparse_want(s, want);
    for (uint32_t j = 0; j < DIM; j++) {
        far += ((double)got[j] - want[j]) * ((double)got[j] - want[j]);
        size += want[j] * want[j];
    }
    return sqrt(far / size) < 1e-2
               ? -1
               : hrb_failed(result, "the output is off by %.2g", sqrt(far / size));
}

static const void *put(struct sparse *s, struct hri_device_carve *c, const void *from, size_t bytes,
                       hr_status_t *status)
{
    void *to = hri_device_carve(c, 1, bytes);
    if (*status == HR_OK)
        *status = c->used <= s->bed.memory.bytes ? hri_device_copy(s->bed.device, to, from, bytes)
                                                 : HR_ERR_BUDGET;
    return to;
}

static int sparse_make(struct sparse *s, struct hrb_result *result)
{
    struct hri_device_carve c = {s->bed.memory.base, 0};
    const struct hri_launchers *launch = s->bed.ops->launch;
    const struct hri_cuda_shape shape = {0};
    uint32_t counts[HEADS];
    uint8_t rows[HEADS * CHOSEN];
    struct hri_cuda_query_out query = {0};
    hr_status_t status = hri_device_fill(s->bed.device, s->bed.memory.base, 0, s->bed.memory.bytes);
    sparse_fill(s);
    for (uint32_t h = 0; h < HEADS; h++)
        counts[h] = s->chosen;
    memset(rows, BLOCK_ROWS, sizeof rows);
    s->frames = hri_device_carve(&c, s->copies, s->copy_bytes);
    for (uint32_t i = 0; i < s->copies && status == HR_OK; i++)
        status =
            hri_device_copy(s->bed.device, s->frames + i * s->copy_bytes, s->codes, s->copy_bytes);
    s->args = (struct hri_cuda_attend_args){.dtype = HR_DTYPE_BF16,
                                            .blocks_max = CHOSEN,
                                            .stride = CHOSEN,
                                            .q = put(s, &c, s->q, sizeof s->q, &status)};
    s->args.refined =
        (struct hri_cuda_refined){.items = put(s, &c, s->items, sizeof s->items, &status),
                                  .n_items = put(s, &c, counts, sizeof counts, &status),
                                  .frames_of = put(s, &c, s->places, sizeof s->places, &status),
                                  .items_max = CHOSEN,
                                  .rows_max = BLOCK_ROWS,
                                  .frame_bytes = BLOCK_ROWS * 2 * DIM,
                                  .k_step = put(s, &c, s->k_step, sizeof s->k_step, &status),
                                  .v_step = put(s, &c, s->v_step, sizeof s->v_step, &status),
                                  .rows = put(s, &c, rows, sizeof rows, &status),
                                  .dots = put(s, &c, s->dots, sizeof s->dots, &status)};
    s->args.v_codes = put(s, &c, s->v_codes, sizeof s->v_codes, &status);
    s->args.v_scale = put(s, &c, s->v_scale, sizeof s->v_scale, &status);
    query.i8.codes = hri_device_carve(&c, HEADS * hri_cuda_g_up(GROUP) * 2, hri_cuda_dk_up(DIM));
    query.i8.step = hri_device_carve(&c, HEADS * hri_cuda_g_up(GROUP), 4);
    s->args.q8 = query.i8;
    s->args.out = hri_device_carve(&c, HEADS * GROUP * DIM, 4);
    s->args.lse = hri_device_carve(&c, HEADS * GROUP, 4);
    s->args.work = hri_device_carve(&c, launch->attend_work(s->heads), 4);
    s->args.arrived = hri_device_carve(&c, launch->attend_counters(s->heads), 4);
    s->sum = hri_device_carve(&c, 1, 4);
    if (status != HR_OK || c.used > s->bed.memory.bytes ||
        launch->query(s->args.q, s->heads, &shape, &query, s->bed.stream) != 0)
        return say(result);
    return sparse_check(s, result);
}

static void sparse_report(struct sparse *s, const struct hrb_pair *pair, struct hrb_result *result)
{
    struct sparse_part read = {s, 1}, nothing = {s, 2};
    const double read_us = 1e6 * sparse_seconds(&read), launch_us = 1e6 * sparse_seconds(&nothing);
    hrb_result_time(result, pair, 1e6, "us");
    result->limit_is = "the most it may take";
    result->bytes = s->copy_bytes;
    result->details = cJSON_CreateObject();
    cJSON_AddNumberToObject(result->details, "read_us", read_us);
    cJSON_AddNumberToObject(result->details, "launch_us", launch_us);
}

int hrb_device_sparse(const struct hrb_benchmark *self, const struct hrb_options *options,
                      struct hrb_result *result)
{
    struct sparse *s = calloc(1, sizeof *s);
    struct hrb_pair pair;
    struct sparse_part attention = {s, 0};
    (void)self;
    if (s == NULL)
        return hrb_failed(result, "out of memory");
    s->heads = (struct hri_cuda_heads){HEADS, GROUP, DIM, DIM};
    s->copies = device_is_emulated() ? 2 : LAYERS;
    s->chosen = device_is_emulated() ? 4 : CHOSEN;
    s->copy_bytes = (size_t)HEADS * CHOSEN * BLOCK_ROWS * 2 * DIM;
    s->codes = malloc(s->copy_bytes);
    int code = s->codes != NULL ? bed_open(&s->bed, s->copies * s->copy_bytes + (64u << 20), result)
                                : hrb_failed(result, "out of memory");
    if (code < 0)
        code = sparse_make(s, result);
    for (int i = 0; i < 3 && code < 0; i++)
        code = sparse_graph(s, i, result);
    if (code < 0) {
        code = hrb_measure(options, rounds_of(&s->bed, options), sparse_seconds, &attention,
                           sparse_allowed, NULL, &pair);
        if (code == 0)
            sparse_report(s, &pair, result);
    }
    for (int i = 0; i < 3; i++)
        if (s->graphs[i] != NULL)
            s->bed.ops->graph_destroy(s->graphs[i]);
    bed_close(&s->bed);
    free(s->codes);
    free(s);
    return code;
}
