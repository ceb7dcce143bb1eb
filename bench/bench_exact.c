/* Exact attention of one query through the public API (recipe full, a decode step of a dense layer, an audit) beside a read of as many bytes
 * by the same threads. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <headrace/headrace.h>

#include "base/half.h"
#include "base/rng.h"
#include "bench/measure.h"
#include "bench/read_memory.h"
#include "bench/subjects.h"
#include "kernels/kernels.h"

#define KV_HEADS   8u
#define CHUNK      512u /* tokens appended at a time */
#define PIECE      (1u << 20)
#define BYTES      (512ull << 20) /* of the rows */
#define HOST_EXTRA (64ull << 20)

struct exact {
    const struct hrb_options *options;
    hr_dtype_t dtype;
    uint32_t g, dim, tokens;
    hr_runtime_t *runtime;
    hr_sequence_t *sequence;
    unsigned char *rows;     /* [KV_HEADS][tokens][K then V], for the reference and the read */
    unsigned char *k, *v;    /* [CHUNK][KV_HEADS][dim] */
    float *q, *scaled, *out; /* [KV_HEADS][g][dim]; scaled: as the kernels take them */
    struct hri_pool *pool;
    struct hri_region region; /* of rows */
    uint64_t sink;
};

static size_t row_bytes(const struct exact *e)
{
    return 2 * (size_t)e->dim * hr_dtype_bytes(e->dtype);
}

static void exact_fini(struct exact *e)
{
    hr_sequence_destroy(e->sequence);
    hr_runtime_destroy(e->runtime);
    hri_region_free(NULL, &e->region);
    hri_pool_destroy(e->pool);
    free(e->k);
    free(e->v);
    free(e->q);
    free(e->scaled);
    free(e->out);
}

static hr_status_t sequence_open(struct exact *e)
{
    struct hr_runtime_options runtime;
    struct hr_sequence_options sequence;
    hr_runtime_options_init(&runtime);
    runtime.device_bytes = HOST_EXTRA;
    runtime.host_bytes = BYTES + HOST_EXTRA;
    runtime.n_threads = e->options->n_threads;
    hr_sequence_options_init(&sequence);
    sequence.n_layers = 1;
    sequence.n_q_heads = KV_HEADS * e->g;
    sequence.n_kv_heads = KV_HEADS;
    sequence.k_dim = sequence.v_dim = e->dim;
    sequence.dtype = e->dtype;
    sequence.tokens_max = e->tokens;
    sequence.recipe = "full";
    hr_status_t status = hr_runtime_create(&runtime, &e->runtime);
    return status != HR_OK ? status : hr_sequence_create(e->runtime, &sequence, &e->sequence);
}

static void value_store(const struct exact *e, void *row, size_t i, float x)
{
    if (e->dtype == HR_DTYPE_F32)
        ((float *)row)[i] = x;
    else
        ((uint16_t *)row)[i] = hri_bf16_from_f32(x);
}

/* The rows of the tokens from `first` on, for the append and for the reference. */
static void chunk_make(struct exact *e, struct hri_rng *rng, uint32_t first)
{
    const size_t half = row_bytes(e) / 2;
    for (size_t i = 0; i < (size_t)CHUNK * KV_HEADS * e->dim; i++) {
        value_store(e, e->k, i, 2 * hri_rng_f32(rng) - 1);
        value_store(e, e->v, i, 2 * hri_rng_f32(rng) - 1);
    }
    for (uint32_t t = 0; t < CHUNK; t++) {
        for (uint32_t h = 0; h < KV_HEADS; h++) {
            unsigned char *row = e->rows + ((size_t)h * e->tokens + first + t) * row_bytes(e);
            memcpy(row, e->k + (t * KV_HEADS + h) * half, half);
            memcpy(row + half, e->v + (t * KV_HEADS + h) * half, half);
        }
    }
}

static int exact_init(struct exact *e)
{
    const size_t part = (size_t)CHUNK * KV_HEADS * row_bytes(e) / 2,
                 n = (size_t)KV_HEADS * e->g * e->dim;
    struct hri_rng rng;
    e->tokens = (uint32_t)(BYTES / (KV_HEADS * row_bytes(e)));
    e->k = malloc(part);
    e->v = malloc(part);
    e->q = malloc(n * sizeof *e->q);
    e->scaled = malloc(n * sizeof *e->q);
    e->out = malloc(n * sizeof *e->out);
    if (!e->k || !e->v || !e->q || !e->scaled || !e->out ||
        hri_pool_create(NULL, e->options->n_threads, &e->pool) != HR_OK ||
        hri_region_alloc(NULL, BYTES, &e->region) != HR_OK || sequence_open(e) != HR_OK)
        return 1;
    e->rows = e->region.base;
    hri_rng_seed(&rng, 5);
    for (uint32_t first = 0; first < e->tokens; first += CHUNK) {
        chunk_make(e, &rng, first);
        struct hr_tensor k = hr_tensor_make(e->k, e->dtype, CHUNK, KV_HEADS, e->dim),
                         v = hr_tensor_make(e->v, e->dtype, CHUNK, KV_HEADS, e->dim);
        if (hr_sequence_append(e->sequence, 0, &k, &v, NULL) != HR_OK)
            return 1;
    }
    for (size_t i = 0; i < n; i++) {
        e->q[i] = (float)hri_rng_normal(&rng);
        e->scaled[i] = e->q[i] / sqrtf((float)e->dim);
    }
    return 0;
}

static double attend_run(void *context)
{
    struct exact *e = context;
    struct hr_attend_options options;
    struct hr_tensor q = hr_tensor_make(e->q, HR_DTYPE_F32, 1, KV_HEADS * e->g, e->dim),
                     out = hr_tensor_make(e->out, HR_DTYPE_F32, 1, KV_HEADS * e->g, e->dim);
    hr_attend_options_init(&options);
    options.mode = HR_ATTEND_EXACT;
    double start = hrb_seconds();
    if (hr_sequence_attend(e->sequence, 0, &q, &options, &out, NULL, NULL) != HR_OK)
        return -1;
    return hrb_seconds() - start;
}

static void read_task(void *context, unsigned task, unsigned worker)
{
    struct exact *e = context;
    (void)worker;
    uint64_t sum = hrb_read_memory(e->rows + (size_t)task * PIECE, PIECE);
    __atomic_fetch_xor(&e->sink, sum, __ATOMIC_RELAXED);
}

static double read_run(void *context)
{
    struct exact *e = context;
    return hrb_pool_seconds(e->pool, read_task, e, (unsigned)(BYTES / PIECE));
}

/* Largest difference from the reference, first and last kv-head. */
static double attend_error(struct exact *e)
{
    float m[HR_GROUP_MAX], l[HR_GROUP_MAX], o[HR_GROUP_MAX * HR_HEAD_DIM_MAX],
        want[HR_GROUP_MAX * HR_HEAD_DIM_MAX];
    struct hri_partial part = {m, l, o};
    double error = attend_run(e) < 0 ? INFINITY : 0;
    for (uint32_t h = 0; h < KV_HEADS; h += KV_HEADS - 1) {
        const size_t at = (size_t)h * e->g * e->dim;
        struct hri_rows rows = {e->rows + (size_t)h * e->tokens * row_bytes(e), row_bytes(e),
                                e->tokens, e->dtype};
        hri_partial_clear(&part, e->g, e->dim);
        hri_kernels_get(HRI_KERNEL_REF)
            ->attend_rows(e->scaled + at, e->g, e->dim, e->dim, rows, 0, &part);
        hri_partial_finish(&part, e->g, e->dim, want, NULL);
        for (size_t i = 0; i < (size_t)e->g * e->dim; i++)
            error = fmax(error, fabs((double)e->out[at + i] - want[i]));
    }
    return error;
}

int hrb_exact(const struct hrb_benchmark *self, const struct hrb_options *options,
              struct hrb_result *result)
{
    struct exact e = {.options = options,
                      .dtype = self->variant < 10000 ? HR_DTYPE_F32 : HR_DTYPE_BF16,
                      .g = (uint32_t)self->variant % 10000 / 1000,
                      .dim = (uint32_t)self->variant % 1000};
    struct hrb_pair pair;
    int code = 1;
    if (exact_init(&e)) {
        hrb_failed(result, "cannot make the rows: %s", hr_last_error());
        goto out;
    }
    double error = attend_error(&e);
    if (!(error < 1e-4)) {
        hrb_failed(result, "the result differs from the reference by %g", error);
        goto out;
    }
    if (hrb_measure(options, options->quick ? 5 : 21, attend_run, &e, read_run, &e, &pair)) {
        hrb_failed(result, "stopped");
        goto out;
    }
    hrb_result_rate(result, &pair, BYTES);
    result->limit_is = "read of as many bytes";
    code = 0;
out:
    exact_fini(&e);
    return code;
}
