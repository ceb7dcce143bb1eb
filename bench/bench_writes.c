/* Steps while the file tier is written to: a decode step with a deadline whose rows lie in the file, and, on the same runtime, a second sequence
 * whose rows are on their way to the file when the step begins. Beside it the same step after those writes are done. The promise is that writes behind
 * a step delay it by no more than its deadline. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <headrace/headrace.h>

#include "base/half.h"
#include "base/rng.h"
#include "bench/measure.h"
#include "bench/subjects.h"
#include "runtime/sequence.h"

#define DIM         128u
#define KV_HEADS    8u
#define Q_HEADS     32u
#define TOKENS      16384u
#define CHUNK       1024u        /* tokens */
#define WRITTEN     (4u * CHUNK) /* 16 MiB of rows: more than the store's write buffers hold */
#define WRITER_MAX  (4u * WRITTEN)
#define STEPS_MAX   1000u
#define TURN        5u /* steps of one kind in a row */
#define DEADLINE_NS 10000000u
#define CLUSTERS    128u
#define ERROR_MAX   0.1

struct kind {
    double seconds[STEPS_MAX];
    uint32_t n, over; /* over: took longer than the deadline */
    uint64_t late;    /* blocks */
};

struct bed {
    const struct hrb_options *options;
    hr_runtime_t *runtime;
    hr_sequence_t *sequence, *writer;
    struct hri_rng rng;
    float *centres; /* [KV_HEADS][CLUSTERS][DIM] */
    uint16_t *rows; /* [CHUNK][KV_HEADS][DIM] */
    float *q, *out; /* [Q_HEADS][DIM] */
    struct kind with, without;
    double true_error;
};

static float noise(struct bed *b)
{
    uint64_t bits = hri_rng_u64(&b->rng);
    return (float)((bits & 0xffff) + (bits >> 16 & 0xffff)) / 32768.0f - 2;
}

static const float *centre(struct bed *b, uint32_t head)
{
    return b->centres + ((size_t)head * CLUSTERS + hri_rng_below(&b->rng, CLUSTERS)) * DIM;
}

static void make_rows(struct bed *b, uint32_t n)
{
    for (uint32_t i = 0; i < n * KV_HEADS; i++) {
        const float *c = centre(b, i % KV_HEADS);
        for (uint32_t j = 0; j < DIM; j++)
            b->rows[(size_t)i * DIM + j] = hri_bf16_from_f32(c[j] + 0.3f * noise(b));
    }
}

static void make_query(struct bed *b)
{
    for (uint32_t h = 0; h < Q_HEADS; h++) {
        const float *c = centre(b, h / (Q_HEADS / KV_HEADS));
        for (uint32_t j = 0; j < DIM; j++)
            b->q[h * DIM + j] = c[j] + 0.3f * noise(b);
    }
}

static hr_status_t append(struct bed *b, hr_sequence_t *sequence, uint32_t n)
{
    struct hr_tensor rows = hr_tensor_make(b->rows, HR_DTYPE_BF16, n, KV_HEADS, DIM);
    return hr_sequence_append(sequence, 0, &rows, &rows, NULL);
}

static hr_status_t attend(struct bed *b, const struct hr_attend_options *options,
                          struct hr_attend_report *report)
{
    struct hr_tensor q = hr_tensor_make(b->q, HR_DTYPE_F32, 1, Q_HEADS, DIM);
    struct hr_tensor out = hr_tensor_make(b->out, HR_DTYPE_F32, 1, Q_HEADS, DIM);
    return hr_sequence_attend(b->sequence, 0, &q, options, &out, report, NULL);
}

/* The step itself is timed, not what the other sequence's append takes. */
static hr_status_t step(struct bed *b, bool writes, struct kind *kind)
{
    struct hr_attend_options options;
    struct hr_attend_report report;
    hr_attend_options_init(&options);
    options.deadline_ns = DEADLINE_NS;
    hr_status_t status = HR_OK;
    if (hr_sequence_length(b->writer, 0) + WRITTEN > WRITER_MAX)
        status = hr_sequence_truncate(b->writer, 0);
    for (uint32_t n = 0; n < WRITTEN && status == HR_OK; n += CHUNK)
        status = append(b, b->writer, CHUNK);
    if (status == HR_OK && !writes)
        status = hri_store_flush(b->runtime->store);
    make_query(b);
    double start = hrb_seconds();
    status = status == HR_OK ? append(b, b->sequence, 1) : status;
    status = status == HR_OK ? attend(b, &options, &report) : status;
    double seconds = hrb_seconds() - start;
    if (status != HR_OK)
        return status;
    kind->over += seconds > DEADLINE_NS * 1e-9;
    kind->late += report.blocks_late;
    kind->seconds[kind->n++] = seconds;
    return HR_OK;
}

static hr_status_t open_bed(struct bed *b)
{
    struct hr_runtime_options r;
    struct hr_sequence_options o;
    size_t rows = (size_t)CHUNK * KV_HEADS * DIM, centres = (size_t)KV_HEADS * CLUSTERS * DIM;
    b->centres = malloc(centres * sizeof *b->centres);
    b->rows = malloc(rows * sizeof *b->rows);
    b->q = malloc(sizeof(float) * Q_HEADS * DIM);
    b->out = malloc(sizeof(float) * Q_HEADS * DIM);
    if (!b->centres || !b->rows || !b->q || !b->out)
        return HR_ERR_NOMEM;
    hri_rng_seed(&b->rng, 10);
    for (size_t i = 0; i < centres; i++)
        b->centres[i] = noise(b);
    hr_runtime_options_init(&r);
    r.device_bytes = 64u << 20;
    r.host_bytes = 1u << 20;
    r.file_dir = b->options->file_dir;
    r.file_bytes = 1u << 30;
    r.n_threads = b->options->n_threads;
    hr_status_t status = hr_runtime_create(&r, &b->runtime);
    hr_sequence_options_init(&o);
    o.n_layers = 1;
    o.n_q_heads = Q_HEADS;
    o.n_kv_heads = KV_HEADS;
    o.k_dim = o.v_dim = DIM;
    o.tokens_max = TOKENS + 4 * STEPS_MAX;
    o.moved = 0.01;
    if (status == HR_OK)
        status = hr_sequence_create(b->runtime, &o, &b->sequence);
    o.recipe = "full";
    o.tokens_max = WRITER_MAX;
    return status == HR_OK ? hr_sequence_create(b->runtime, &o, &b->writer) : status;
}

/* Fills the sequence, and looks whether its steps are right. */
static hr_status_t fill(struct bed *b)
{
    struct hr_attend_options options;
    struct hr_attend_report report;
    hr_status_t status = HR_OK;
    hr_attend_options_init(&options);
    for (uint32_t n = 0; n < TOKENS && status == HR_OK; n += CHUNK) {
        make_rows(b, CHUNK);
        make_query(b);
        options.mode = HR_ATTEND_EXACT;
        status = append(b, b->sequence, CHUNK);
        status = status == HR_OK ? attend(b, &options, NULL) : status;
    }
    options.mode = HR_ATTEND_RECIPE;
    options.check_exact = 1;
    make_query(b);
    status = status == HR_OK ? hr_sequence_settle(b->sequence, 0) : status;
    status = status == HR_OK ? hri_store_flush(b->runtime->store) : status;
    status = status == HR_OK ? attend(b, &options, &report) : status;
    b->true_error = status == HR_OK ? report.true_error : 1;
    return status;
}

static hr_status_t run(struct bed *b)
{
    uint32_t steps = b->options->quick ? 200 : STEPS_MAX;
    hr_status_t status = HR_OK;
    struct kind warm = {.n = 0};
    for (uint32_t i = 0; i < 2 * TURN && status == HR_OK; i++)
        status = step(b, i % 2, &warm);
    for (uint32_t i = 0; i < 2 * steps && status == HR_OK && !b->options->stop(); i++) {
        bool writes = (i / TURN + 1) / 2 % 2; /* A B B A */
        struct kind *kind = writes ? &b->with : &b->without;
        if (kind->n < steps)
            status = step(b, writes, kind);
    }
    return status;
}

static void tell(struct bed *b, struct hrb_result *result)
{
    struct hr_runtime_stats stats = {.struct_size = sizeof stats};
    double with = hrb_percentile(b->with.seconds, b->with.n, 0.99) * 1e3;
    double without = hrb_percentile(b->without.seconds, b->without.n, 0.99) * 1e3;
    (void)hr_runtime_stats_get(b->runtime, &stats);
    result->value = result->value_p99 = with;
    result->limit = without + DEADLINE_NS * 1e-6;
    result->ratio = result->limit / with;
    result->rounds = b->with.n;
    result->unit = "ms";
    result->limit_is = "the same step without writes behind it, p99, and its deadline of 10 ms";
    cJSON *d = result->details = cJSON_CreateObject();
    cJSON_AddNumberToObject(d, "p99_without_ms", without);
    cJSON_AddNumberToObject(d, "median_with_ms", hrb_median(b->with.seconds, b->with.n) * 1e3);
    cJSON_AddNumberToObject(d, "median_without_ms",
                            hrb_median(b->without.seconds, b->without.n) * 1e3);
    cJSON_AddNumberToObject(d, "over_with", b->with.over);
    cJSON_AddNumberToObject(d, "over_without", b->without.over);
    cJSON_AddNumberToObject(d, "late_with", (double)b->with.late / b->with.n);
    cJSON_AddNumberToObject(d, "late_without", (double)b->without.late / b->without.n);
    cJSON_AddNumberToObject(d, "written_mib", (double)stats.file_bytes_written / (1 << 20));
    cJSON_AddNumberToObject(d, "true_error", b->true_error);
}

int hrb_step_writes(const struct hrb_benchmark *self, const struct hrb_options *options,
                    struct hrb_result *result)
{
    struct bed *b = calloc(1, sizeof *b);
    (void)self;
    if (b == NULL)
        return hrb_failed(result, "no memory");
    b->options = options;
    hr_status_t status = open_bed(b);
    status = status == HR_OK ? fill(b) : status;
    bool right = b->true_error <= ERROR_MAX;
    status = status == HR_OK && right ? run(b) : status;
    int code = status != HR_OK ? hrb_failed(result, "a step: %s", hr_last_error())
               : !right        ? hrb_failed(result, "the output is off by %g", b->true_error)
               : b->with.n == 0 || b->without.n == 0 ? hrb_failed(result, "stopped")
                                                     : 0;
    if (code == 0)
        tell(b, result);
    hr_sequence_destroy(b->sequence);
    hr_sequence_destroy(b->writer);
    (void)hr_runtime_destroy(b->runtime);
    free(b->centres);
    free(b->rows);
    free(b->q);
    free(b->out);
    free(b);
    return code;
}
