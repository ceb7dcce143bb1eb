/* The tile of prefill attention beside the two matrix products that have its flops, and what grouping a prompt costs beside the prompt's own
 * time in an 8B model at the rate of those products. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <headrace/headrace.h>

#include "base/alloc.h"
#include "base/half.h"
#include "base/rng.h"
#include "base/threads.h"
#include "bench/measure.h"
#include "bench/subjects.h"
#include "kernels/kernels.h"

#if HR_HAVE_BLAS
#include <cblas.h>

#define DIM       128
#define QUERIES   192 /* as the runtime cuts tiles */
#define TILE_ROWS 64  /* a page of the log */
#define ROWS      2048
#define TASKS     8

struct tile {
    const struct hri_kernels *kernels;
    struct hri_pool *pool;
    float *q, *k, *v;                 /* [QUERIES][DIM], [ROWS][DIM] */
    uint16_t *rows;                   /* [ROWS][2][DIM] bf16 */
    float *score[TASKS], *out[TASKS]; /* [QUERIES][ROWS], [QUERIES][DIM] */
    void *scratch[TASKS];
    float *state[TASKS];            /* of the partials */
    struct hri_partial part[TASKS]; /* of QUERIES each */
    uint32_t first[QUERIES], last[QUERIES];
};

static void tile_task(void *context, unsigned task, unsigned worker)
{
    struct tile *t = context;
    (void)worker;
    hri_partial_clear(&t->part[task], QUERIES, DIM);
    for (int i = 0; i < ROWS; i += TILE_ROWS) {
        struct hri_rows rows = {t->rows + (size_t)i * 2 * DIM, 2 * DIM * 2, TILE_ROWS,
                                HR_DTYPE_BF16};
        t->kernels->attend_tile(t->q, QUERIES, DIM, DIM, rows, t->first, t->last, 0,
                                t->scratch[task], &t->part[task]);
    }
}

static void gemm_task(void *context, unsigned task, unsigned worker)
{
    struct tile *t = context;
    (void)worker;
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, QUERIES, ROWS, DIM, 1, t->q, DIM, t->k,
                DIM, 0, t->score[task], ROWS);
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, QUERIES, DIM, ROWS, 1, t->score[task],
                ROWS, t->v, DIM, 0, t->out[task], DIM);
}

static double tile_run(void *context)
{
    struct tile *t = context;
    return hrb_pool_seconds(t->pool, tile_task, t, TASKS);
}

static double gemm_run(void *context)
{
    struct tile *t = context;
    return hrb_pool_seconds(t->pool, gemm_task, t, TASKS);
}

static void tile_fini(struct tile *t)
{
    hri_pool_destroy(t->pool);
    free(t->q);
    free(t->k);
    free(t->v);
    free(t->rows);
    for (int i = 0; i < TASKS; i++) {
        free(t->score[i]);
        free(t->out[i]);
        free(t->scratch[i]);
        free(t->state[i]);
    }
}

static bool tile_init(struct tile *t, const struct hrb_options *options)
{
    struct hri_rng rng;
    hri_rng_seed(&rng, 3);
    memset(t, 0, sizeof *t);
    /* A call is one worker's; threads of its own would fight the pool's. */
    openblas_set_num_threads(1);
    t->kernels = hri_kernels_get(hri_kernels_best());
    t->q = malloc(sizeof(float) * QUERIES * DIM);
    t->k = malloc(sizeof(float) * ROWS * DIM);
    t->v = malloc(sizeof(float) * ROWS * DIM);
    t->rows = aligned_alloc(64, sizeof(uint16_t) * ROWS * 2 * DIM);
    bool fine = t->q && t->k && t->v && t->rows &&
                hri_pool_create(NULL, options->n_threads, &t->pool) == HR_OK;
    size_t scratch = hri_tile_scratch_bytes(QUERIES, DIM, DIM, TILE_ROWS);
    for (int i = 0; i < TASKS && fine; i++) {
        t->score[i] = malloc(sizeof(float) * QUERIES * ROWS);
        t->out[i] = malloc(sizeof(float) * QUERIES * DIM);
        t->scratch[i] = aligned_alloc(64, (scratch + 63) / 64 * 64);
        t->state[i] = malloc(sizeof(float) * QUERIES * (2 + DIM));
        fine = t->score[i] && t->out[i] && t->scratch[i] && t->state[i];
        float *at = t->state[i];
        t->part[i] = (struct hri_partial){.m = at, .l = at + QUERIES, .o = at + 2 * QUERIES};
    }
    for (int i = 0; i < QUERIES * DIM && fine; i++)
        t->q[i] = 0.088f * (float)hri_rng_normal(&rng);
    for (int i = 0; i < QUERIES; i++)
        t->last[i] = TILE_ROWS;
    for (int i = 0; i < ROWS * DIM && fine; i++) {
        uint16_t *row = t->rows + (size_t)(i / DIM) * 2 * DIM + i % DIM;
        row[0] = hri_bf16_from_f32((float)hri_rng_normal(&rng));
        row[DIM] = hri_bf16_from_f32((float)hri_rng_normal(&rng));
        t->k[i] = hri_f32_from_bf16(row[0]);
        t->v[i] = hri_f32_from_bf16(row[DIM]);
    }
    return fine;
}

/* Against the reference's single queries. */
static double tile_error(struct tile *t)
{
    struct hri_rows rows = {t->rows, 2 * DIM * 2, ROWS, HR_DTYPE_BF16};
    double error = 0;
    float *all = malloc(sizeof(float) * QUERIES * DIM);
    if (!all)
        return NAN;
    tile_task(t, 0, 0);
    hri_partial_finish(&t->part[0], QUERIES, DIM, all, NULL);
    for (int i = 0; i < QUERIES; i += 37) {
        float m, l, o[DIM], want[DIM];
        struct hri_partial part = {.m = &m, .l = &l, .o = o};
        hri_partial_clear(&part, 1, DIM);
        hri_kernels_get(HRI_KERNEL_REF)
            ->attend_rows(t->q + (size_t)i * DIM, 1, DIM, DIM, rows, 0, &part);
        hri_partial_finish(&part, 1, DIM, want, NULL);
        for (int j = 0; j < DIM; j++)
            error = fmax(error, fabs((double)all[(size_t)i * DIM + j] - want[j]));
    }
    free(all);
    return error;
}

int hrb_prefill_tile(const struct hrb_benchmark *self, const struct hrb_options *options,
                     struct hrb_result *result)
{
    struct tile *t = malloc(sizeof *t);
    struct hrb_pair pair;
    double flops = 4.0 * QUERIES * ROWS * DIM * TASKS, error;
    int code = 1;
    (void)self;
    if (!t || !tile_init(t, options))
        hrb_failed(result, "out of memory");
    else if (!((error = tile_error(t)) < 2e-3))
        hrb_failed(result, "the result differs from the reference by %g", error);
    else if (hrb_measure(options, options->quick ? 5 : 21, tile_run, t, gemm_run, t, &pair))
        hrb_failed(result, "stopped");
    else {
        result->value = flops / pair.a_median * 1e-9;
        result->limit = flops / pair.b_median * 1e-9;
        result->value_p99 = flops / pair.a_p99 * 1e-9;
        result->ratio = pair.ratio;
        result->spread = pair.spread;
        result->rounds = pair.rounds;
        result->unit = "GFLOP/s";
        result->limit_is = "OpenBLAS, two products of the same flops, no softmax";
        code = 0;
    }
    if (t)
        tile_fini(t);
    free(t);
    return code;
}

/* ------------------------------------------------------------------------------------------ ingest */

#define TOKENS   8192
#define KV_HEADS 8
#define LAYERS   32
#define PARAMS   8.0e9
#define SHARE    0.03 /* of the prompt's time that may go into the index */

/* Seconds that a layer's index takes for TOKENS tokens. */
static double index_seconds(const struct hrb_options *options, struct hrb_result *result)
{
    struct hr_runtime_options ro;
    struct hr_sequence_options so;
    hr_runtime_t *runtime = NULL;
    hr_sequence_t *sequence = NULL;
    struct hr_sequence_stats stats = {.struct_size = sizeof stats};
    struct hri_rng rng;
    size_t n = (size_t)TOKENS * KV_HEADS * DIM;
    uint16_t *x = malloc(n * sizeof *x);
    hri_rng_seed(&rng, 4);
    for (size_t i = 0; x && i < n; i++)
        x[i] = hri_bf16_from_f32((float)hri_rng_normal(&rng));
    hr_runtime_options_init(&ro);
    ro.n_threads = options->n_threads;
    hr_sequence_options_init(&so);
    so.n_layers = 1;
    so.n_q_heads = 4 * KV_HEADS;
    so.n_kv_heads = KV_HEADS;
    so.k_dim = so.v_dim = DIM;
    so.tokens_max = TOKENS + 256;
    struct hr_tensor t = hr_tensor_make(x, HR_DTYPE_BF16, TOKENS, KV_HEADS, DIM);
    hr_status_t status = x ? hr_runtime_create(&ro, &runtime) : HR_ERR_NOMEM;
    if (status == HR_OK)
        status = hr_sequence_create(runtime, &so, &sequence);
    if (status == HR_OK)
        status = hr_sequence_append(sequence, 0, &t, &t, NULL);
    double start = hrb_seconds();
    if (status == HR_OK)
        status = hr_sequence_settle(sequence, 0);
    double seconds = hrb_seconds() - start;
    if (status == HR_OK)
        status = hr_sequence_stats_get(sequence, &stats);
    if (status != HR_OK)
        hrb_failed(result, "%s", hr_last_error());
    hr_sequence_destroy(sequence);
    hr_runtime_destroy(runtime);
    free(x);
    return status == HR_OK && stats.blocks > 0 ? seconds : -1;
}

int hrb_ingest(const struct hrb_benchmark *self, const struct hrb_options *options,
               struct hrb_result *result)
{
    struct tile *t = malloc(sizeof *t);
    double ratios[9], ours[9], model[9], flops = 4.0 * QUERIES * ROWS * DIM * TASKS;
    unsigned rounds = options->quick ? 3 : 9, n = 0;
    int code = 0;
    (void)self;
    if (!t || !tile_init(t, options))
        code = hrb_failed(result, "out of memory");
    for (; code == 0 && n < rounds && !options->stop(); n++) {
        double before = gemm_run(t), index = index_seconds(options, result), after = gemm_run(t);
        if (index < 0) {
            code = 1;
            break;
        }
        ours[n] = index * LAYERS;
        model[n] = 2 * PARAMS * TOKENS / (2 * flops / (before + after));
        ratios[n] = SHARE * model[n] / ours[n];
    }
    if (t)
        tile_fini(t);
    free(t);
    if (code || n == 0)
        return code ? code : hrb_failed(result, "stopped");
    result->value = hrb_median(ours, n);
    result->limit = SHARE * hrb_median(model, n);
    result->value_p99 = hrb_percentile(ours, n, 0.99);
    result->ratio = hrb_median(ratios, n);
    result->rounds = n;
    result->unit = "s";
    result->limit_is = "3 % of the prompt's flops in an 8B model at OpenBLAS's rate";
    result->details = cJSON_CreateObject();
    cJSON_AddNumberToObject(result->details, "share_of_prefill", SHARE / result->ratio);
    return 0;
}
#else
int hrb_prefill_tile(const struct hrb_benchmark *self, const struct hrb_options *options,
                     struct hrb_result *result)
{
    (void)self, (void)options;
    return hrb_skip(result, "built without OpenBLAS");
}
int hrb_ingest(const struct hrb_benchmark *self, const struct hrb_options *options,
               struct hrb_result *result)
{
    (void)self, (void)options;
    return hrb_skip(result, "built without OpenBLAS");
}
#endif
