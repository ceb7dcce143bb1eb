/* A decode step over a long text: the recipe against full attention by the same kernels, both
 * through the public API.
 *
 * One layer, 8 kv-heads of 128, 32 query heads. Rows come in clusters, as keys of real models
 * do: a row is its cluster's centre plus noise, and queries point at a few centres. Whatever the
 * recipe leaves out shows in the error that is measured beside the time. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <headrace/headrace.h>

#include "base/half.h"
#include "base/rng.h"
#include "bench/measure.h"
#include "bench/subjects.h"

#define DIM         128
#define KV_HEADS    8
#define Q_HEADS     32
#define CHUNK       1024
#define ERROR_STEPS 8

/* Per kv-head: about as many rows of each in a segment as a block holds, or eight times as many clusters, so that blocks mix them
 * and summaries say little: then nearly all sketches are read. */
#define CLUSTERS      128
#define CLUSTERS_FINE 1024

/* What is measured. */
struct subject {
    uint32_t tokens, clusters;
    const char *recipe;
    double moved, tolerance, error_max; /* error_max: of the output, 0: any */
    bool
        file; /* the recipe's rows lie in the file tier; those of full attention in memory all the same */
};

struct decode {
    const struct hrb_options *options;
    struct subject subject;
    hr_runtime_t *runtime, *memory; /* memory: of `full`, NULL where that is the same sequence */
    hr_sequence_t *sequence, *full;
    struct hri_rng rng;
    float *k_centre, *v_centre; /* [KV_HEADS][clusters][DIM] */
    uint16_t *k, *v;            /* [CHUNK][KV_HEADS][DIM] bf16 */
    float *q, *out;             /* [Q_HEADS][DIM] */
    struct hr_attend_report report;
    double predicted, truth;
    char reason[1024];
};

static int say(struct decode *d, const char *what)
{
    snprintf(d->reason, sizeof d->reason, "%s: %s", what, hr_last_error());
    return 1;
}

/* ----------------------------------------------------------------------------------------- rows */

static float noise(struct decode *d)
{
    /* A sum of four uniforms is near enough to normal and much cheaper. */
    uint64_t bits = hri_rng_u64(&d->rng);
    int sum = (int)(bits & 0xffff) + (int)((bits >> 16) & 0xffff) + (int)((bits >> 32) & 0xffff) +
              (int)(bits >> 48);
    return ((float)sum * (1 / 65536.0f) - 2) * 1.7320508f;
}

static void make_rows(struct decode *d, uint32_t n)
{
    for (uint32_t t = 0; t < n; t++) {
        for (uint32_t h = 0; h < KV_HEADS; h++) {
            size_t c =
                (size_t)h * d->subject.clusters + hri_rng_below(&d->rng, d->subject.clusters);
            const float *k = d->k_centre + c * DIM, *v = d->v_centre + c * DIM;
            size_t at = ((size_t)t * KV_HEADS + h) * DIM;
            for (uint32_t i = 0; i < DIM; i++) {
                d->k[at + i] = hri_bf16_from_f32(k[i] + 0.35f * noise(d));
                d->v[at + i] = hri_bf16_from_f32(v[i] + 0.35f * noise(d));
            }
        }
    }
}

/* Each query head looks for one cluster of its kv-head. */
static void make_queries(struct decode *d)
{
    for (uint32_t h = 0; h < Q_HEADS; h++) {
        size_t c = (size_t)(h / (Q_HEADS / KV_HEADS)) * d->subject.clusters +
                   hri_rng_below(&d->rng, d->subject.clusters);
        for (uint32_t i = 0; i < DIM; i++)
            d->q[h * DIM + i] = 1.1f * d->k_centre[c * DIM + i] + 0.35f * noise(d);
    }
}

/* The rows that were made last. */
static hr_status_t append(struct decode *d, uint32_t n)
{
    struct hr_tensor k = hr_tensor_make(d->k, HR_DTYPE_BF16, n, KV_HEADS, DIM);
    struct hr_tensor v = hr_tensor_make(d->v, HR_DTYPE_BF16, n, KV_HEADS, DIM);
    hr_status_t status = hr_sequence_append(d->sequence, 0, &k, &v, NULL);
    if (status == HR_OK && d->memory)
        status = hr_sequence_append(d->full, 0, &k, &v, NULL);
    return status;
}

static hr_status_t attend(struct decode *d, hr_sequence_t *sequence, hr_attend_mode_t mode,
                          int check)
{
    struct hr_tensor q = hr_tensor_make(d->q, HR_DTYPE_F32, 1, Q_HEADS, DIM);
    struct hr_tensor out = hr_tensor_make(d->out, HR_DTYPE_F32, 1, Q_HEADS, DIM);
    struct hr_attend_options options;
    hr_attend_options_init(&options);
    options.mode = mode;
    options.check_exact = check;
    return hr_sequence_attend(sequence, 0, &q, &options, &out, &d->report, NULL);
}

/* --------------------------------------------------------------------------------------- set-up */

#define HOST_MIN (64ull << 20)

static int open_sequence(struct decode *d, const char *recipe, bool file,
                         hr_runtime_t **runtime_out, hr_sequence_t **sequence_out)
{
    struct hr_runtime_options runtime;
    struct hr_sequence_options sequence;
    uint64_t exact_bytes = (uint64_t)d->subject.tokens * KV_HEADS * 2 * DIM * 2;
    hr_runtime_options_init(&runtime);
    runtime.device_bytes = exact_bytes / 4 + HOST_MIN;
    runtime.host_bytes = file ? HOST_MIN : 2 * exact_bytes + HOST_MIN; /* rows and blocks */
    runtime.file_dir = file ? d->options->file_dir : NULL;
    runtime.file_bytes = file ? 2 * exact_bytes + HOST_MIN : 0;
    runtime.n_threads = d->options->n_threads;
    if (hr_runtime_create(&runtime, runtime_out) != HR_OK)
        return say(d, "runtime");
    hr_sequence_options_init(&sequence);
    sequence.n_layers = 1;
    sequence.n_q_heads = Q_HEADS;
    sequence.n_kv_heads = KV_HEADS;
    sequence.k_dim = sequence.v_dim = DIM;
    sequence.tokens_max = d->subject.tokens + 4096;
    sequence.recipe = recipe;
    sequence.moved = d->subject.moved;
    sequence.tolerance = d->subject.tolerance;
    return hr_sequence_create(*runtime_out, &sequence, sequence_out) == HR_OK ? 0
                                                                              : say(d, "sequence");
}

static int open_sequences(struct decode *d)
{
    if (open_sequence(d, d->subject.recipe, d->subject.file, &d->runtime, &d->sequence))
        return 1;
    d->full = d->sequence;
    return d->subject.file ? open_sequence(d, "full", false, &d->memory, &d->full) : 0;
}

static int alloc_arrays(struct decode *d)
{
    size_t centres = (size_t)KV_HEADS * d->subject.clusters * DIM,
           rows = (size_t)CHUNK * KV_HEADS * DIM;
    d->k_centre = malloc(centres * sizeof(float));
    d->v_centre = malloc(centres * sizeof(float));
    d->k = malloc(rows * sizeof(uint16_t));
    d->v = malloc(rows * sizeof(uint16_t));
    d->q = malloc(sizeof(float) * Q_HEADS * DIM);
    d->out = malloc(sizeof(float) * Q_HEADS * DIM);
    if (!d->k_centre || !d->v_centre || !d->k || !d->v || !d->q || !d->out)
        return say(d, "out of memory");
    for (size_t i = 0; i < centres; i++) {
        d->k_centre[i] = noise(d);
        d->v_centre[i] = noise(d);
    }
    return 0;
}

static int fill(struct decode *d)
{
    uint32_t tokens = d->subject.tokens, look = tokens / 8 < 16 * CHUNK ? tokens / 8 : 16 * CHUNK;
    for (uint32_t done = 0; done < tokens; done += CHUNK) {
        if (d->options->stop())
            return say(d, "stopped");
        uint32_t n = tokens - done < CHUNK ? tokens - done : CHUNK;
        make_rows(d, n);
        if (append(d, n) != HR_OK)
            return say(d, "append");
        make_queries(d); /* the method learns from the queries that pass, as in a prefill */
        if (done % look < CHUNK && attend(d, d->sequence, HR_ATTEND_EXACT, 0) != HR_OK)
            return say(d, "attend");
    }
    return hr_sequence_settle(d->sequence, 0) == HR_OK ? 0 : say(d, "settle");
}

/* Error of the output as reported and as it is, before any time is taken. */
static int measure_error(struct decode *d)
{
    for (int i = 0; i < ERROR_STEPS; i++) {
        make_queries(d);
        make_rows(d, 1);
        if (append(d, 1) != HR_OK || attend(d, d->sequence, HR_ATTEND_RECIPE, 1) != HR_OK)
            return say(d, "step");
        d->predicted += d->report.predicted_error / ERROR_STEPS;
        d->truth += d->report.true_error / ERROR_STEPS;
    }
    if (d->subject.error_max > 0 && !(d->truth <= d->subject.error_max)) {
        snprintf(d->reason, sizeof d->reason,
                 "the output is off by %g (predicted %g), allowed is %g", d->truth, d->predicted,
                 d->subject.error_max);
        return 1;
    }
    return 0;
}

/* ---------------------------------------------------------------------------------- measurement */

/* One token; a twin gets its rows outside of the time. */
static double run_step(struct decode *d, hr_sequence_t *sequence, hr_attend_mode_t mode)
{
    make_queries(d);
    make_rows(d, 1);
    struct hr_tensor k = hr_tensor_make(d->k, HR_DTYPE_BF16, 1, KV_HEADS, DIM);
    struct hr_tensor v = hr_tensor_make(d->v, HR_DTYPE_BF16, 1, KV_HEADS, DIM);
    hr_sequence_t *twin = sequence == d->full ? d->sequence : d->full;
    double start = hrb_seconds(), seconds;
    hr_status_t status = hr_sequence_append(sequence, 0, &k, &v, NULL);
    if (status == HR_OK)
        status = attend(d, sequence, mode, 0);
    seconds = hrb_seconds() - start;
    if (status == HR_OK && twin != sequence)
        status = hr_sequence_append(twin, 0, &k, &v, NULL);
    if (status != HR_OK) {
        say(d, "step");
        return -1;
    }
    return seconds;
}

static double run_recipe(void *context)
{
    struct decode *d = context;
    return run_step(d, d->sequence, HR_ATTEND_RECIPE);
}

static double run_exact(void *context)
{
    struct decode *d = context;
    return run_step(d, d->full, HR_ATTEND_EXACT);
}

static int measure(struct decode *d, struct hrb_result *result)
{
    struct hrb_pair pair;
    if (hrb_measure(d->options, d->options->quick ? 10 : 100, run_recipe, d, run_exact, d, &pair))
        return hrb_failed(result, "%s", *d->reason ? d->reason : "stopped");
    struct hr_sequence_stats stats = {.struct_size = sizeof stats};
    run_recipe(d); /* leaves its report */
    hr_sequence_stats_get(d->sequence, &stats);
    result->value = pair.a_median * 1e3;
    result->limit = pair.b_median * 1e3;
    result->value_p99 = pair.a_p99 * 1e3;
    result->ratio = pair.ratio;
    result->spread = pair.spread;
    result->rounds = pair.rounds;
    result->unit = "ms";
    result->limit_is = d->subject.file
                           ? "full attention by the same kernels over the same rows in memory"
                           : "full attention by the same kernels over the same rows";
    result->details = cJSON_CreateObject();
    cJSON_AddStringToObject(result->details, "recipe", d->subject.recipe);
    cJSON_AddNumberToObject(result->details, "tolerance", d->subject.tolerance);
    cJSON_AddNumberToObject(result->details, "tokens", hr_sequence_length(d->sequence, 0));
    cJSON_AddNumberToObject(result->details, "rows_sketched", (double)d->report.rows_by_level[1]);
    cJSON_AddNumberToObject(result->details, "rows_int8", (double)d->report.rows_by_level[2]);
    cJSON_AddNumberToObject(result->details, "predicted_error", d->predicted);
    cJSON_AddNumberToObject(result->details, "true_error", d->truth);
    cJSON_AddNumberToObject(result->details, "moved_fraction",
                            (double)d->report.bytes_selected /
                                (double)(d->report.body_bytes ? d->report.body_bytes : 1));
    cJSON_AddNumberToObject(result->details, "device_fraction",
                            (double)(stats.summary_bytes + stats.sketch_bytes) /
                                (double)stats.body_bytes);
    cJSON_AddNumberToObject(result->details, "index_seconds", (double)stats.index_ns * 1e-9);
    for (unsigned i = 0; i < HR_STAGES; i++) {
        char name[32];
        snprintf(name, sizeof name, "%s_ms", hr_stage_name(i));
        cJSON_AddNumberToObject(result->details, name, (double)d->report.time_ns[i] * 1e-6);
    }
    return 0;
}

static void decode_fini(struct decode *d)
{
    if (d->memory)
        hr_sequence_destroy(d->full);
    hr_sequence_destroy(d->sequence);
    hr_runtime_destroy(d->memory);
    hr_runtime_destroy(d->runtime);
    free(d->k_centre);
    free(d->v_centre);
    free(d->k);
    free(d->v);
    free(d->q);
    free(d->out);
}

static int decode_step(const struct hrb_benchmark *self, const struct hrb_options *options,
                       const struct subject *subject, struct hrb_result *result)
{
    struct decode d = {.options = options, .subject = *subject};
    int code = 1;
    d.subject.tokens = (uint32_t)self->variant;
    hri_rng_seed(&d.rng, 7);
    options->note("%s: appending and grouping %d tokens", self->name, self->variant);
    if (alloc_arrays(&d) || open_sequences(&d) || fill(&d) || measure_error(&d))
        hrb_failed(result, "%s", d.reason);
    else
        code = measure(&d, result);
    decode_fini(&d);
    return code;
}

/* By what the command line says. */
static int decode_step_given(const struct hrb_benchmark *self, const struct hrb_options *options,
                             uint32_t clusters, struct hrb_result *result)
{
    const struct subject subject = {.clusters = clusters,
                                    .recipe = options->recipe ? options->recipe : "headrace",
                                    .moved = options->moved,
                                    .tolerance = options->tolerance};
    return decode_step(self, options, &subject, result);
}

int hrb_decode_step(const struct hrb_benchmark *self, const struct hrb_options *options,
                    struct hrb_result *result)
{
    return decode_step_given(self, options, CLUSTERS, result);
}

int hrb_decode_step_fine(const struct hrb_benchmark *self, const struct hrb_options *options,
                         struct hrb_result *result)
{
    return decode_step_given(self, options, CLUSTERS_FINE, result);
}

/* As fast as it goes within an output error of 2 %: summaries of large blocks, and rows only where the predicted error asks for them. */
static int decode_step_2pct(const struct hrb_benchmark *self, const struct hrb_options *options,
                            bool file, struct hrb_result *result)
{
    /* A short text has too few rows of a kind for large blocks. */
    const char *recipe = self->variant < 16384 ? "headrace:sketch=0" : "headrace:sketch=0,block=64";
    const struct subject subject = {.clusters = CLUSTERS,
                                    .recipe = options->recipe ? options->recipe : recipe,
                                    .moved = 0.02, /* more than it needs */
                                    .tolerance = options->tolerance > 0 ? options->tolerance : 0.02,
                                    .error_max = 0.02,
                                    .file = file};
    return decode_step(self, options, &subject, result);
}

int hrb_decode_2pct(const struct hrb_benchmark *self, const struct hrb_options *options,
                    struct hrb_result *result)
{
    return decode_step_2pct(self, options, false, result);
}

int hrb_decode_2pct_file(const struct hrb_benchmark *self, const struct hrb_options *options,
                         struct hrb_result *result)
{
    return decode_step_2pct(self, options, true, result);
}
