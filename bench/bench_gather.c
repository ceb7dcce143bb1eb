/* Attention over what a step gathers: whole blocks and single rows in random order, beside a read of the same list. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/half.h"
#include "base/rng.h"
#include "base/threads.h"
#include "bench/measure.h"
#include "bench/subjects.h"
#include "kernels/kernels.h"

#define DIM        128u
#define GROUP      4u
#define BLOCK_ROWS 32u
#define UNITS_TASK 256u /* units of one task */
#define READ_AHEAD 4096 /* bytes */

/* What one unit of the list is. */
enum unit { BLOCK_I8, BLOCK_BF16, ROW_I8, ROW_BF16 };

struct gather {
    const struct hri_kernels *kernels;
    struct hri_pool *pool;
    struct hri_region region;
    enum unit unit;
    size_t unit_bytes;
    uint32_t n_units, n_listed, n_tasks;
    const void **list; /* [n_listed] */
    float *step;       /* [UNITS_TASK] of int8 rows: all alike */
    float q[GROUP * DIM];
    float center[2 * DIM];
    struct hri_partial *part; /* [n_tasks] */
    float *floats;
    uint64_t sink;
};

typedef uint64_t line_t __attribute__((vector_size(64), may_alias));

/* ------------------------------------------------------------------------------------------ code */

#define RUNS 16u /* blocks that a step hands over together */

static void attend_blocks_bf16(const struct gather *a, const struct hri_kernels *kernels,
                               const void *const *at, uint32_t n, struct hri_partial *part)
{
    struct hri_rows runs[RUNS];
    for (uint32_t i = 0; i < n; i++) {
        runs[i % RUNS] = (struct hri_rows){at[i], 2 * DIM * 2, BLOCK_ROWS, HR_DTYPE_BF16};
        if (i % RUNS == RUNS - 1 || i + 1 == n)
            kernels->attend_runs(a->q, GROUP, DIM, DIM, runs, i % RUNS + 1, 0, part);
    }
}

static void attend_block_i8(const struct gather *a, const struct hri_kernels *kernels,
                            const void *at, const void *next, struct hri_partial *part)
{
    struct hri_block_i8 block = {.codes = at,
                                 .n = BLOCK_ROWS,
                                 .k_dot = a->center,
                                 .v_center = a->center + DIM,
                                 .k_step = 0.01f,
                                 .v_step = 0.01f,
                                 .next = next,
                                 .next_bytes = next ? a->unit_bytes : 0};
    kernels->attend_block_i8(a->q, GROUP, DIM, DIM, &block, 0, part);
}

/* Rows by their codes, as a step does it: scores, weights, sum. */
static void attend_rows_i8(const struct gather *a, const struct hri_kernels *kernels,
                           const int8_t *const *codes, uint32_t n, struct hri_partial *part)
{
    float score[GROUP * UNITS_TASK], sum[GROUP * DIM] = {0}, log_weight[GROUP];
    kernels->score_gather_i8(a->q, GROUP, DIM, codes, a->step, n, score, UNITS_TASK);
    for (uint32_t g = 0; g < GROUP; g++) {
        float *x = score + g * UNITS_TASK, most = kernels->max(x, n);
        log_weight[g] = most + logf(kernels->exp_sum(x, most, x, n));
        for (uint32_t i = 0; i < n; i++)
            x[i] *= expf(most - log_weight[g]);
    }
    kernels->sum_gather_i8(score, UNITS_TASK, GROUP, DIM, DIM, codes, a->step, n, sum);
    hri_partial_add(part, GROUP, DIM, log_weight, sum);
}

static void attend_units(const struct gather *a, const struct hri_kernels *kernels, uint32_t first,
                         uint32_t n, struct hri_partial *part)
{
    hri_partial_clear(part, GROUP, DIM);
    const void *const *at = a->list + first;
    if (a->unit == ROW_BF16)
        kernels->attend_gather(a->q, GROUP, DIM, DIM, at, n, HR_DTYPE_BF16, 0, part);
    else if (a->unit == ROW_I8)
        attend_rows_i8(a, kernels, (const int8_t *const *)at, n, part);
    else if (a->unit == BLOCK_BF16)
        attend_blocks_bf16(a, kernels, at, n, part);
    for (uint32_t i = 0; a->unit == BLOCK_I8 && i < n; i++)
        attend_block_i8(a, kernels, at[i], i + 1 < n ? at[i + 1] : NULL, part);
}

static uint32_t units_of(const struct gather *a, unsigned task)
{
    uint32_t left = a->n_listed - task * UNITS_TASK;
    return left < UNITS_TASK ? left : UNITS_TASK;
}

static void code_task(void *context, unsigned task, unsigned worker)
{
    struct gather *a = context;
    (void)worker;
    attend_units(a, a->kernels, task * UNITS_TASK, units_of(a, task), &a->part[task]);
}

static void read_task(void *context, unsigned task, unsigned worker)
{
    struct gather *a = context;
    line_t sum[4];
    (void)worker;
    memset(sum, 0, sizeof sum);
    for (uint32_t i = 0; i < units_of(a, task); i++) {
        const line_t *at = a->list[task * UNITS_TASK + i];
        /* A list is known ahead: the limit asks ahead too, or single rows would beat it. */
        uint32_t ahead = i + (uint32_t)(1 + READ_AHEAD / a->unit_bytes);
        for (size_t b = 0; ahead < units_of(a, task) && b < a->unit_bytes; b += 64)
            __builtin_prefetch((const char *)a->list[task * UNITS_TASK + ahead] + b);
        for (size_t j = 0; j < a->unit_bytes / 64; j++)
            sum[j % 4] ^= at[j];
    }
    sum[0] ^= sum[1] ^ sum[2] ^ sum[3];
    __atomic_fetch_xor(&a->sink, sum[0][0] ^ sum[0][7], __ATOMIC_RELAXED);
}

static double code_run(void *context)
{
    struct gather *a = context;
    return hrb_pool_seconds(a->pool, code_task, a, a->n_tasks);
}

static double read_run(void *context)
{
    struct gather *a = context;
    return hrb_pool_seconds(a->pool, read_task, a, a->n_tasks);
}

/* ----------------------------------------------------------------------------------------- set-up */

static void fill(struct gather *a)
{
    struct hri_rng rng;
    hri_rng_seed(&rng, 5);
    unsigned char *base = a->region.base;
    size_t first = 64 * a->unit_bytes; /* a few units of noise, copied: values do not matter */
    for (size_t i = 0; i < first / 2; i++) {
        uint16_t x = a->unit == BLOCK_I8 || a->unit == ROW_I8
                         ? (uint16_t)hri_rng_u64(&rng)
                         : hri_bf16_from_f32(2 * hri_rng_f32(&rng) - 1);
        memcpy(base + 2 * i, &x, 2);
    }
    for (size_t at = first; at < a->n_units * a->unit_bytes; at += first)
        memcpy(base + at, base, first);
    for (uint32_t i = 0; i < a->n_listed; i++)
        a->list[i] = base + hri_rng_below(&rng, a->n_units) * a->unit_bytes;
    for (uint32_t i = 0; i < UNITS_TASK; i++)
        a->step[i] = 0.01f;
    for (uint32_t i = 0; i < GROUP * DIM; i++)
        a->q[i] = 0.088f * (float)hri_rng_normal(&rng);
    for (uint32_t i = 0; i < 2 * DIM; i++)
        a->center[i] = (float)hri_rng_normal(&rng);
}

static bool init(struct gather *a, const struct hrb_options *options, size_t bytes)
{
    size_t entry = GROUP * (2 + DIM);
    a->kernels = hri_kernels_get(hri_kernels_best());
    a->n_units = (uint32_t)(bytes / a->unit_bytes) & ~63u;
    a->n_listed = a->n_units / 4;
    a->n_tasks = (a->n_listed + UNITS_TASK - 1) / UNITS_TASK;
    if (hri_pool_create(NULL, options->n_threads, &a->pool) != HR_OK ||
        hri_region_alloc(NULL, a->n_units * a->unit_bytes, &a->region) != HR_OK)
        return false;
    a->list = malloc(a->n_listed * sizeof *a->list);
    a->step = malloc(UNITS_TASK * sizeof *a->step);
    a->part = calloc(a->n_tasks, sizeof *a->part);
    a->floats = malloc(entry * a->n_tasks * sizeof(float));
    if (!a->list || !a->step || !a->part || !a->floats)
        return false;
    for (uint32_t i = 0; i < a->n_tasks; i++) {
        float *at = a->floats + entry * i;
        a->part[i] = (struct hri_partial){.m = at, .l = at + GROUP, .o = at + 2 * GROUP};
    }
    fill(a);
    return true;
}

static double error_of(struct gather *a)
{
    float m[GROUP], l[GROUP], o[GROUP * DIM], want[GROUP * DIM], got[GROUP * DIM];
    struct hri_partial part = {.m = m, .l = l, .o = o};
    double error = 0, size = 0;
    attend_units(a, hri_kernels_get(HRI_KERNEL_REF), 0, units_of(a, 0), &part);
    hri_partial_finish(&part, GROUP, DIM, want, NULL);
    code_task(a, 0, 0);
    hri_partial_finish(&a->part[0], GROUP, DIM, got, NULL);
    for (size_t i = 0; i < GROUP * DIM; i++) {
        error = fmax(error, fabs((double)got[i] - want[i]));
        size = fmax(size, fabs((double)want[i]));
    }
    return error / size;
}

int hrb_gather(const struct hrb_benchmark *self, const struct hrb_options *options,
               struct hrb_result *result)
{
    static const size_t bytes[] = {[BLOCK_I8] = (size_t)BLOCK_ROWS * 2 * DIM,
                                   [BLOCK_BF16] = (size_t)BLOCK_ROWS * 4 * DIM,
                                   [ROW_I8] = (size_t)2 * DIM,
                                   [ROW_BF16] = (size_t)4 * DIM};
    struct gather a = {.unit = (enum unit)self->variant, .unit_bytes = bytes[self->variant]};
    struct hrb_pair pair;
    int code = 1;
    double error;
    if (!init(&a, options, options->quick ? 256u << 20 : 1024u << 20))
        hrb_failed(result, "out of memory");
    else if (!((error = error_of(&a)) < 2e-3))
        hrb_failed(result, "the result differs from the reference by %g of its size", error);
    else if (hrb_measure(options, options->quick ? 5 : 21, code_run, &a, read_run, &a, &pair))
        hrb_failed(result, "stopped");
    else {
        hrb_result_rate(result, &pair, a.n_listed * a.unit_bytes);
        result->limit_is = "read of the same list";
        code = 0;
    }
    hri_region_free(NULL, &a.region);
    hri_pool_destroy(a.pool);
    free(a.list);
    free(a.step);
    free(a.part);
    free(a.floats);
    return code;
}
