/* What level 0 leaves of a block's expected squared error, as index/select_headrace.c has it. */
#ifndef HRI_CUDA_DOUBT_CUH
#define HRI_CUDA_DOUBT_CUH

#include "kernels/cuda/common.cuh"

#define HRI_DOUBT_VARIANCE_MAX 3.0f
#define HRI_DOUBT_FLOOR        0.3f

/* exp(min(v, 3)) - 1 from four terms of its series, as on the CPU. */
static __device__ __forceinline__ float hri_excess(float variance)
{
    const float v = fminf(variance, HRI_DOUBT_VARIANCE_MAX);
    return v * (1 + v * (0.5f + v * (1.0f / 6 + v * (1.0f / 24))));
}

/* p^2 (exp(variance) - 1 + floor) / n */
static __device__ __forceinline__ float hri_doubt(float share, float variance, float rows)
{
    return share * share * (hri_excess(variance) + HRI_DOUBT_FLOOR) / rows;
}

/* So much of a block's share is off together with all others', as index/head.h has it. */
#define HRI_DRIFT        0.05f
#define HRI_VARIANCE_MAX 6.0f

static __device__ __forceinline__ float hri_drift(float variance)
{
    return HRI_DRIFT * fminf(variance, HRI_VARIANCE_MAX);
}

#endif
