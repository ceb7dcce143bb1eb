/* A decode step over a long text: the recipe against full attention by the same kernels, both
 * through the public API. One layer; rows and queries are clusters with known answers (8 kv-heads of 128, 32 query heads) or a
 * recorded trace, tiled. Whatever the recipe leaves out shows in the error that is measured beside the time. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <headrace/headrace.h>

#include "bench/measure.h"
#include "bench/rows.h"
#include "bench/subjects.h"

/* Per kv-head: about as many rows of each in a segment as a block holds, or eight times as many clusters, so that blocks mix them
 * and summaries say little: then nearly all sketches are read. */
#define CLUSTERS      128
#define CLUSTERS_FINE 1024

/* A true error of so much of what is allowed is not widened further; a try raises the tolerance at most so much. */
#define WIDE_ENOUGH 0.93
#define WIDEN_MOST  1.4
#define WIDEN_TRIES 8

/* What is measured. */
struct subject {
    uint32_t clusters; /* 0: a trace */
    const char *recipe;
    double moved, tolerance, error_max; /* error_max: of the output, 0: any */
    bool widest;                        /* with the largest tolerance that the true error allows */
    double device_share;                /* the device tier's room as a share of the rows */
    bool
        file; /* the recipe's rows lie in the file tier; those of full attention in memory all the same */
};

/* Of the output, means over the steps. */
struct errors {
    double predicted, truth;
};

struct decode {
    const struct hrb_options *options;
    struct subject subject;
    hr_runtime_t *runtime, *memory; /* memory: of `full`, NULL where that is the same sequence */
    hr_sequence_t *sequence, *full;
    struct hrb_rows *rows;
    uint16_t *k, *v; /* [HRB_ROWS_CHUNK][kv_heads][dim] */
    float *q, *out;  /* [HRB_ROWS_CHUNK][q_heads][dim] */
    struct hr_attend_report report;
    struct hrb_rows_truth truth_of;     /* of a trace */
    struct errors errors, errors_asked; /* asked: by the subject's tolerance as it is */
    double ratio_asked;
    double selected, hit, body; /* bytes of all steps by the recipe that were timed */
    char reason[1024];
};

static int say(struct decode *d, const char *what)
{
    snprintf(d->reason, sizeof d->reason, "%s: %s", what, hr_last_error());
    return 1;
}

/* The rows that were made last. */
static hr_status_t append_to(struct decode *d, hr_sequence_t *sequence, uint32_t n)
{
    const struct hrb_rows *r = d->rows;
    struct hr_tensor k = hr_tensor_make(d->k, r->dtype, n, r->kv_heads, r->dim);
    struct hr_tensor v = hr_tensor_make(d->v, r->dtype, n, r->kv_heads, r->dim);
    return hr_sequence_append(sequence, 0, &k, &v, NULL);
}

static hr_status_t append(struct decode *d, uint32_t n)
{
    d->rows->make(d->rows, n, d->k, d->v);
    hr_status_t status = append_to(d, d->sequence, n);
    return status == HR_OK && d->memory ? append_to(d, d->full, n) : status;
}

/* The newest n tokens. */
static hr_status_t attend(struct decode *d, hr_sequence_t *sequence, uint32_t n,
                          hr_attend_mode_t mode, int check)
{
    const struct hrb_rows *r = d->rows;
    struct hr_tensor q = hr_tensor_make(d->q, HR_DTYPE_F32, n, r->q_heads, r->dim);
    struct hr_tensor out = hr_tensor_make(d->out, HR_DTYPE_F32, n, r->q_heads, r->dim);
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
    const struct hrb_rows *r = d->rows;
    struct hr_runtime_options runtime;
    struct hr_sequence_options sequence;
    uint64_t exact_bytes = (uint64_t)r->tokens * r->kv_heads * 2 * r->dim * 2;
    hr_runtime_options_init(&runtime);
    runtime.device_bytes = (uint64_t)((double)exact_bytes * d->subject.device_share) + HOST_MIN;
    runtime.host_bytes = file ? HOST_MIN : 2 * exact_bytes + HOST_MIN; /* rows and blocks */
    runtime.file_dir = file ? d->options->file_dir : NULL;
    runtime.file_bytes = file ? 2 * exact_bytes + HOST_MIN : 0;
    runtime.n_threads = d->options->n_threads;
    if (hr_runtime_create(&runtime, runtime_out) != HR_OK)
        return say(d, "runtime");
    hr_sequence_options_init(&sequence);
    sequence.n_layers = 1;
    sequence.n_q_heads = r->q_heads;
    sequence.n_kv_heads = r->kv_heads;
    sequence.k_dim = sequence.v_dim = r->dim;
    sequence.dtype = r->dtype;
    sequence.scale = r->scale;
    sequence.rope = r->rope;
    sequence.tokens_max = r->tokens + 4096;
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
    const struct hrb_rows *r = d->rows;
    size_t rows = (size_t)HRB_ROWS_CHUNK * r->kv_heads * r->dim,
           queries = (size_t)HRB_ROWS_CHUNK * r->q_heads * r->dim;
    d->k = malloc(rows * sizeof *d->k);
    d->v = malloc(rows * sizeof *d->v);
    d->q = malloc(queries * sizeof *d->q);
    d->out = malloc(queries * sizeof *d->out);
    d->truth_of.out = malloc((size_t)r->q_heads * r->dim * sizeof(float));
    return d->k && d->v && d->q && d->out && d->truth_of.out ? 0 : say(d, "out of memory");
}

static int fill(struct decode *d)
{
    struct hrb_rows_chunk chunk;
    if (hr_sequence_expect(d->sequence, d->rows->tokens) != HR_OK)
        return say(d, "expect");
    for (uint32_t done = 0; done < d->rows->tokens; done += chunk.n) {
        if (d->options->stop())
            return say(d, "stopped");
        chunk = d->rows->chunk(d->rows, done);
        if (append(d, chunk.n) != HR_OK)
            return say(d, "append");
        if (chunk.queries == 0)
            continue;
        d->rows->shown(d->rows, chunk.queries, d->q);
        if (attend(d, d->sequence, chunk.queries, HR_ATTEND_EXACT, 0) != HR_OK)
            return say(d, "attend");
    }
    return hr_sequence_settle(d->sequence, 0) == HR_OK ? 0 : say(d, "settle");
}

/* ----------------------------------------------------------------------------------------- steps */

/* All that a step needs but its own row. */
static hr_status_t prepare(struct decode *d)
{
    const uint32_t length = hr_sequence_length(d->sequence, 0);
    const struct hrb_rows_before before = d->rows->before(d->rows, length);
    hr_status_t status = HR_OK;
    if (before.length < length)
        status = hr_sequence_truncate(d->sequence, before.length);
    if (before.length < length && status == HR_OK && d->memory)
        status = hr_sequence_truncate(d->full, before.length);
    if (status == HR_OK && before.rows > 0)
        status = append(d, before.rows);
    d->rows->query(d->rows, d->q);
    return status;
}

/* Distance of the output from the truth, as a share of it. */
static double distance(const float *got, const float *truth, size_t n)
{
    double far = 0, size = 0;
    for (size_t i = 0; i < n; i++) {
        far += ((double)got[i] - truth[i]) * ((double)got[i] - truth[i]);
        size += (double)truth[i] * truth[i];
    }
    return sqrt(far / size);
}

/* Full attention of the first step against double precision. */
static int check_full(struct decode *d)
{
    const struct hrb_rows *r = d->rows;
    if (d->subject.clusters > 0)
        return 0;
    if (!hrb_rows_trace_truth(d->rows, &d->truth_of))
        return say(d, "out of memory");
    if (attend(d, d->full, 1, HR_ATTEND_EXACT, 0) != HR_OK)
        return say(d, "attend");
    double far = distance(d->out, d->truth_of.out, (size_t)r->q_heads * r->dim);
    if (far < 1e-3)
        return 0;
    snprintf(d->reason, sizeof d->reason, "full attention differs from double precision by %g",
             far);
    return 1;
}

/* Error of the output as reported and as it is. */
static int error_of_steps(struct decode *d)
{
    const uint32_t steps = d->rows->error_steps;
    d->errors = (struct errors){0};
    d->rows->rewind(d->rows);
    for (uint32_t i = 0; i < steps; i++) {
        if (d->options->stop())
            return say(d, "stopped");
        if (prepare(d) != HR_OK || append(d, 1) != HR_OK || (i == 0 && check_full(d)) ||
            attend(d, d->sequence, 1, HR_ATTEND_RECIPE, 1) != HR_OK)
            return *d->reason ? 1 : say(d, "step");
        d->errors.predicted += d->report.predicted_error / steps;
        d->errors.truth += d->report.true_error / steps;
    }
    return 0;
}

static int measure_error(struct decode *d)
{
    if (error_of_steps(d))
        return 1;
    if (d->subject.error_max > 0 && !(d->errors.truth <= d->subject.error_max)) {
        snprintf(d->reason, sizeof d->reason,
                 "the output is off by %g (predicted %g), allowed is %g", d->errors.truth,
                 d->errors.predicted, d->subject.error_max);
        return 1;
    }
    return 0;
}

/* ---------------------------------------------------------------------------------- measurement */

/* One token; a twin gets its rows outside of the time. */
static double run_step(struct decode *d, hr_sequence_t *sequence, hr_attend_mode_t mode)
{
    hr_sequence_t *twin = sequence == d->full ? d->sequence : d->full;
    hr_status_t status = prepare(d);
    d->rows->make(d->rows, 1, d->k, d->v);
    double start = hrb_seconds(), seconds;
    if (status == HR_OK)
        status = append_to(d, sequence, 1);
    if (status == HR_OK)
        status = attend(d, sequence, 1, mode, 0);
    seconds = hrb_seconds() - start;
    if (status == HR_OK && twin != sequence)
        status = append_to(d, twin, 1);
    if (status != HR_OK) {
        say(d, "step");
        return -1;
    }
    return seconds;
}

static double run_recipe(void *context)
{
    struct decode *d = context;
    double seconds = run_step(d, d->sequence, HR_ATTEND_RECIPE);
    d->selected += (double)d->report.bytes_selected;
    d->hit += (double)d->report.bytes_hit;
    d->body += (double)d->report.body_bytes;
    return seconds;
}

static double run_exact(void *context)
{
    struct decode *d = context;
    return run_step(d, d->full, HR_ATTEND_EXACT);
}

/* A trace's queries are timed once each and before anything else: what a step finds in frames is then what the steps before it brought. */
static unsigned rounds(const struct decode *d)
{
    const unsigned all = d->options->quick ? 10 : 100, once = (d->rows->error_steps - 2) / 4;
    return d->subject.clusters > 0 || all < once ? all : once > 0 ? once : 1;
}

static int measure(struct decode *d, struct hrb_pair *pair)
{
    if (hrb_measure(d->options, rounds(d), run_recipe, d, run_exact, d, pair) == 0)
        return 0;
    return *d->reason ? 1 : say(d, "stopped");
}

/* The largest tolerance whose true errors are within error_max, to a few percent: predictions are careful on some rows. */
static int widen(struct decode *d)
{
    double tolerance = d->subject.tolerance, good = tolerance;
    struct errors best = d->errors;
    for (int i = 0; i < WIDEN_TRIES && best.truth < WIDE_ENOUGH * d->subject.error_max; i++) {
        double far = d->subject.error_max / d->errors.truth;
        tolerance *= far > 1 ? fmin(far, WIDEN_MOST) : far * far;
        if (tolerance <= good || tolerance >= 1)
            break;
        if (hr_sequence_set_tolerance(d->sequence, tolerance) != HR_OK || error_of_steps(d))
            return *d->reason ? 1 : say(d, "tolerance");
        if (d->errors.truth > d->subject.error_max)
            continue;
        good = tolerance;
        best = d->errors;
    }
    d->subject.tolerance = good;
    d->errors = best;
    return hr_sequence_set_tolerance(d->sequence, good) == HR_OK ? 0 : say(d, "tolerance");
}

static int measure_widest(struct decode *d, struct hrb_pair *pair)
{
    if (measure(d, pair))
        return 1;
    d->errors_asked = d->errors;
    d->ratio_asked = pair->ratio;
    if (widen(d))
        return 1;
    d->selected = d->hit = d->body = 0;
    return measure(d, pair);
}

static int measure_all(struct decode *d, struct hrb_pair *pair)
{
    if (d->subject.clusters == 0)
        return measure(d, pair) || measure_error(d);
    return measure_error(d) || (d->subject.widest ? measure_widest(d, pair) : measure(d, pair));
}

static int report(struct decode *d, const struct hrb_pair *pair, struct hrb_result *result)
{
    struct hr_sequence_stats stats = {.struct_size = sizeof stats};
    const double selected = d->selected, hit = d->hit, body = d->body;
    run_recipe(d); /* leaves its report */
    hr_sequence_stats_get(d->sequence, &stats);
    result->value = pair->a_median * 1e3;
    result->limit = pair->b_median * 1e3;
    result->value_p99 = pair->a_p99 * 1e3;
    result->ratio = pair->ratio;
    result->spread = pair->spread;
    result->rounds = pair->rounds;
    result->unit = "ms";
    result->bytes = d->report.bytes_from_host + d->report.bytes_from_file;
    result->limit_is = d->subject.file
                           ? "full attention by the same kernels over the same rows in memory"
                           : "full attention by the same kernels over the same rows";
    result->details = cJSON_CreateObject();
    cJSON_AddStringToObject(result->details, "recipe", d->subject.recipe);
    cJSON_AddNumberToObject(result->details, "tolerance", d->subject.tolerance);
    cJSON_AddNumberToObject(result->details, "tokens", hr_sequence_length(d->sequence, 0));
    cJSON_AddNumberToObject(result->details, "rows_sketched", (double)d->report.rows_by_level[1]);
    cJSON_AddNumberToObject(result->details, "rows_int8", (double)d->report.rows_by_level[2]);
    cJSON_AddNumberToObject(result->details, "predicted_error", d->errors.predicted);
    cJSON_AddNumberToObject(result->details, "true_error", d->errors.truth);
    if (d->subject.widest) {
        cJSON_AddNumberToObject(result->details, "ratio_asked", d->ratio_asked);
        cJSON_AddNumberToObject(result->details, "predicted_error_asked",
                                d->errors_asked.predicted);
        cJSON_AddNumberToObject(result->details, "true_error_asked", d->errors_asked.truth);
    }
    cJSON_AddNumberToObject(result->details, "moved_fraction", selected / (body > 0 ? body : 1));
    cJSON_AddNumberToObject(result->details, "hit_fraction", hit / (selected > 0 ? selected : 1));
    cJSON_AddNumberToObject(result->details, "device_fraction",
                            (double)(stats.summary_bytes + stats.sketch_bytes) /
                                (double)stats.body_bytes);
    cJSON_AddNumberToObject(result->details, "index_seconds", (double)stats.index_ns * 1e-9);
    if (d->subject.clusters == 0) {
        cJSON_AddNumberToObject(result->details, "copies", d->truth_of.copies);
        cJSON_AddNumberToObject(result->details, "copies_mass", d->truth_of.copies_mass);
    }
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
    if (d->rows)
        d->rows->free(d->rows);
    free(d->truth_of.out);
    free(d->k);
    free(d->v);
    free(d->q);
    free(d->out);
}

static int open_rows(struct decode *d, uint32_t tokens)
{
    char why[256] = "out of memory";
    d->rows = d->subject.clusters > 0 ? hrb_rows_clusters(tokens, d->subject.clusters)
                                      : hrb_rows_trace(d->options->trace, tokens, why, sizeof why);
    if (!d->rows)
        snprintf(d->reason, sizeof d->reason, "%s", why);
    return d->rows ? 0 : 1;
}

/* errors_out: as far as they were measured; NULL: not asked for. */
static int decode_step(const struct hrb_benchmark *self, const struct hrb_options *options,
                       const struct subject *subject, struct hrb_result *result,
                       struct errors *errors_out)
{
    struct decode d = {.options = options, .subject = *subject};
    struct hrb_pair pair;
    int code = 1;
    options->note("%s: appending and grouping %d tokens", self->name, self->variant);
    if (open_rows(&d, (uint32_t)self->variant) || alloc_arrays(&d) || open_sequences(&d) ||
        fill(&d) || measure_all(&d, &pair))
        hrb_failed(result, "%s", d.reason);
    else
        code = report(&d, &pair, result);
    if (errors_out)
        *errors_out = d.errors;
    decode_fini(&d);
    return code;
}

/* By what the command line says. */
static int decode_step_given(const struct hrb_benchmark *self, const struct hrb_options *options,
                             uint32_t clusters, struct hrb_result *result)
{
    const struct subject subject = {.clusters = clusters,
                                    .recipe = options->recipe ? options->recipe : "headrace",
                                    .device_share = 0.25,
                                    .moved = options->moved,
                                    .tolerance = options->tolerance};
    return decode_step(self, options, &subject, result, NULL);
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

static const char *recipe_2pct(const struct hrb_benchmark *self, const struct hrb_options *options)
{
    if (options->recipe)
        return options->recipe;
    /* A short text has too few rows of a kind for large blocks. */
    return self->variant < 16384 ? "headrace:sketch=0" : "headrace:sketch=0,block=64";
}

/* As fast as it goes within an output error of 2 %: summaries of large blocks, and rows only where the predicted error asks for them. */
static int decode_step_2pct(const struct hrb_benchmark *self, const struct hrb_options *options,
                            bool file, struct hrb_result *result)
{
    const struct subject subject = {.clusters = CLUSTERS,
                                    .recipe = recipe_2pct(self, options),
                                    .device_share = 0.25,
                                    .moved = 0.02, /* more than it needs */
                                    .tolerance = options->tolerance > 0 ? options->tolerance : 0.02,
                                    .error_max = 0.02,
                                    .widest = options->tolerance <= 0,
                                    .file = file};
    return decode_step(self, options, &subject, result, NULL);
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

/* ----------------------------------------------------------------------------------------- traces */

#define TRACE_TRIES 4

/* The budget is raised until the tolerance is met, and that lowered until the output is within 2 %: predictions may be off by some. */
static int decode_trace(const struct hrb_benchmark *self, const struct hrb_options *options,
                        bool file, struct hrb_result *result)
{
    struct subject subject = {.recipe = recipe_2pct(self, options),
                              .moved = 0.05,
                              .tolerance = options->tolerance > 0 ? options->tolerance : 0.02,
                              .error_max = 0.02,
                              .file = file};
    int code = 1;
    if (!options->trace)
        return hrb_skip(result, "needs --trace DIR; 'headrace trace capture --model MODEL --file "
                                "TEXT --layers 14 --out traces' makes one");
    for (int i = 0; i < TRACE_TRIES && code && !options->stop(); i++) {
        struct errors errors = {0};
        subject.device_share = 20 * subject.moved; /* frames for all that a step may move */
        code = decode_step(self, options, &subject, result, &errors);
        if (errors.truth <= subject.error_max)
            break;
        if (errors.predicted > subject.tolerance)
            subject.moved *= 2;
        else
            subject.tolerance *= 0.95 * subject.error_max / errors.truth;
    }
    return code;
}

int hrb_decode_trace(const struct hrb_benchmark *self, const struct hrb_options *options,
                     struct hrb_result *result)
{
    return decode_trace(self, options, false, result);
}

int hrb_decode_trace_file(const struct hrb_benchmark *self, const struct hrb_options *options,
                          struct hrb_result *result)
{
    return decode_trace(self, options, true, result);
}
