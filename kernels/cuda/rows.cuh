/* What the kernels of sketched rows share (rows.cu, rows_worth.cu). */
#ifndef HRI_CUDA_ROWS_CUH
#define HRI_CUDA_ROWS_CUH

#include "kernels/cuda/common.cuh"

/* As index/sketch.c: 16 codes per power of two, 128 is 1. */
static __device__ __forceinline__ float hri_miss_of(uint32_t code)
{
    return exp2f(((float)code - 128.0f) / 16.0f);
}

static __device__ __forceinline__ size_t hri_rows_block(const struct hri_cuda_rows &r, uint32_t h,
                                                        uint32_t b)
{
    return (size_t)h * r.blocks_max + b;
}

/* Variance of what the sketches of block b miss. */
static __device__ __forceinline__ float hri_rows_missed(const struct hri_cuda_rows &r,
                                                        const struct hri_cuda_heads &heads,
                                                        uint32_t h, uint32_t b, uint32_t g)
{
    const size_t at = hri_rows_block(r, h, b);
    return hri_miss_of(r.miss[at]) * r.rest[((size_t)h * r.n_bases + r.basis_of[at]) * heads.g + g];
}

/* A block's share of all that query head `head` = h G + g weighs. */
static __device__ __forceinline__ float hri_rows_share(const struct hri_cuda_rows &r, size_t head,
                                                       uint32_t b)
{
    return hri_exp(r.log_mass[head * r.stride + b] - r.top[head]) / r.total[head];
}

static __device__ __forceinline__ bool hri_rows_weighty(const struct hri_cuda_rows &r,
                                                        const struct hri_cuda_heads &heads,
                                                        const struct hri_cuda_rows_least &least,
                                                        uint32_t h, uint32_t b)
{
    if (least.share_min < 0)
        return true;
    const float most = least.of_mean ? least.share_min / (float)r.n[h] : least.share_min;
    for (uint32_t g = 0; g < heads.g; g++)
        if (hri_rows_share(r, (size_t)h * heads.g + g, b) > most)
            return true;
    return false;
}

/* Rows of part p of a block of n rows. */
static __device__ __forceinline__ uint32_t hri_part_rows(const struct hri_cuda_rows &r, uint32_t n,
                                                         uint32_t p)
{
    const uint32_t before = p * r.part_rows;
    return n > before ? min(n - before, r.part_rows) : 0;
}

/* As index/head.h: so much of what rows' sketches miss are all their weights off by in common. */
#define HRI_DRIFT_SKETCH 0.15f

static __device__ __forceinline__ float hri_row_drift(const struct hri_cuda_rows &r,
                                                      const struct hri_cuda_heads &heads,
                                                      uint32_t h, uint32_t b, uint32_t g)
{
    return HRI_DRIFT_SKETCH * fminf(hri_rows_missed(r, heads, h, b, g), 1.0f);
}

/* From a squared share of a row of block b to the squared relative error that refining it removes. */
static __device__ __forceinline__ float hri_row_factor(const struct hri_cuda_rows &r,
                                                       const struct hri_cuda_heads &heads,
                                                       const float *factor, const float *size,
                                                       uint32_t h, uint32_t b, uint32_t g)
{
    const size_t head = (size_t)h * heads.g + g;
    const struct hri_cuda_basis *basis =
        r.bases + (size_t)h * r.n_bases + r.basis_of[hri_rows_block(r, h, b)];
    const float missed = fminf(hri_rows_missed(r, heads, h, b, g), 1.0f);
    const float excess = missed * (1.0f + missed * (0.5f + missed * (1.0f / 6)));
    const float value = hri_miss_of(r.value_miss[hri_rows_block(r, h, b)]) * basis->value_rest;
    return excess * factor[head] + (size[head] > 0 ? (1.0f + excess) * value / size[head] : 0.0f);
}

#endif
