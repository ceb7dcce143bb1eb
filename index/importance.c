#include "index/importance.h"

#include "base/arena.h"
#include "base/assert.h"

#include <math.h>
#include <string.h>

/* Squared shares differ by many powers of ten; a small power of them leaves the ranking and takes
 * the extremes away, which may well be other rows tomorrow. By measurement, as the floor
 * (docs/algorithm.md). */
#define SHARE_POWER 0.35f
#define SHARE_FLOOR 1e-3f /* of the mean, added before the power */

size_t hri_importance_work_bytes(uint32_t d, uint32_t n)
{
    return ((size_t)HRI_QSTATS_RECENT * d + n) * sizeof(float) + 3 * 64;
}

static void add_shares(const struct hri_kernels *kernels, const float *q, uint32_t d,
                       const float *k, uint32_t n, float soft_cap, float *logits, float *weight)
{
    struct hri_rows rows = {
        .base = k, .stride_bytes = d * sizeof(float), .n = n, .dtype = HR_DTYPE_F32};
    kernels->score_rows(q, 1, d, rows, soft_cap, logits, n);
    float total = kernels->exp_sum(logits, kernels->max(logits, n), logits, n), inverse = 1 / total;
    for (uint32_t i = 0; i < n; i++)
        weight[i] += logits[i] * logits[i] * inverse * inverse;
}

bool hri_importance(const struct hri_qstats *stats, uint32_t first_position, uint32_t last_position,
                    const float *k, uint32_t n, float soft_cap, void *work, float *weight_out)
{
    struct hri_arena arena;
    uint32_t d = stats->d;
    hri_arena_init_buffer(&arena, work, hri_importance_work_bytes(d, n));
    float *queries = hri_arena_array(&arena, (size_t)HRI_QSTATS_RECENT * d, sizeof(float));
    float *logits = hri_arena_array(&arena, n, sizeof(float));
    HRI_ASSERT(logits != NULL);
    uint32_t n_queries = hri_qstats_recent(stats, first_position, last_position, queries);
    if (n_queries == 0)
        return false;
    memset(weight_out, 0, n * sizeof *weight_out);
    for (uint32_t i = 0; i < n_queries; i++)
        add_shares(stats->kernels, queries + (size_t)i * d, d, k, n, soft_cap, logits, weight_out);
    double sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += weight_out[i];
    float inverse = sum > 0 ? (float)(n / sum) : 0;
    for (uint32_t i = 0; i < n; i++)
        weight_out[i] = powf(weight_out[i] * inverse + SHARE_FLOOR, SHARE_POWER);
    return true;
}
