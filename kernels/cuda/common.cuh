/* Small things all kernels use. */
#ifndef HRI_CUDA_COMMON_CUH
#define HRI_CUDA_COMMON_CUH

#include "kernels/cuda/cuda.cuh"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/launch.h"

#define HRI_ALL_LANES 0xffffffffu
#define HRI_STEP_MIN  1e-36f /* as kernels/cpu/ops.h */
#define HRI_LOGIT_MAX 1e30f
#define HRI_NEGATIVE  (-INFINITY)

/* In a switch over ceil(head dim / 32), which is 8 at most: CASE_OF(n) is a case that returns. */
#define HRI_CASES_1_TO_8(CASE_OF)                                                                  \
    CASE_OF(1);                                                                                    \
    CASE_OF(2);                                                                                    \
    CASE_OF(3);                                                                                    \
    CASE_OF(4);                                                                                    \
    CASE_OF(5);                                                                                    \
    CASE_OF(6);                                                                                    \
    CASE_OF(7);                                                                                    \
    default:                                                                                       \
        CASE_OF(8)

static __device__ __forceinline__ uint32_t hri_lane()
{
    return threadIdx.x & 31u;
}
static __device__ __forceinline__ uint32_t hri_warp()
{
    return threadIdx.x >> 5;
}
static __device__ __forceinline__ float hri_warp_sum(float x)
{
    for (int bit = 16; bit > 0; bit >>= 1)
        x += __shfl_xor_sync(HRI_ALL_LANES, x, bit);
    return x;
}
static __device__ __forceinline__ float hri_warp_max(float x)
{
    for (int bit = 16; bit > 0; bit >>= 1)
        x = fmaxf(x, __shfl_xor_sync(HRI_ALL_LANES, x, bit));
    return x;
}
/* Among the 4 lanes that share a row of a fragment, and among the 8 that share a column. */
static __device__ __forceinline__ float hri_quad_sum(float x)
{
    x += __shfl_xor_sync(HRI_ALL_LANES, x, 1);
    return x + __shfl_xor_sync(HRI_ALL_LANES, x, 2);
}
static __device__ __forceinline__ float hri_quad_max(float x)
{
    x = fmaxf(x, __shfl_xor_sync(HRI_ALL_LANES, x, 1));
    return fmaxf(x, __shfl_xor_sync(HRI_ALL_LANES, x, 2));
}

/* e^x of a softmax: x <= 0 or little above; -INFINITY gives 0. */
static __device__ __forceinline__ float hri_exp(float x)
{
#ifdef HRI_EMU
    return expf(x);
#else
    return exp2f(x * 1.4426950408889634f);
#endif
}

static __device__ __forceinline__ float hri_capped(float logit, float soft_cap)
{
    if (soft_cap > 0.0f)
        logit = soft_cap * tanhf(logit / soft_cap);
    return fminf(fmaxf(logit, -HRI_LOGIT_MAX), HRI_LOGIT_MAX);
}

/* (m, l) += (m2, l2): running softmaxes, either of which may be empty. */
static __device__ __forceinline__ void hri_softmax_merge(float &m, float &l, float m2, float l2)
{
    const float most = fmaxf(m, m2);
    if (most == HRI_NEGATIVE)
        return;
    l = l * hri_exp(m - most) + l2 * hri_exp(m2 - most);
    m = most;
}

static __device__ __forceinline__ float hri_bf16_to_f32(uint16_t x)
{
    return __bfloat162float(__ushort_as_bfloat16(x));
}
static __device__ __forceinline__ uint16_t hri_f32_to_bf16(float x)
{
    return __bfloat16_as_ushort(__float2bfloat16_rn(x));
}
static __device__ __forceinline__ float hri_f16_to_f32(uint16_t x)
{
    return __half2float(__ushort_as_half(x));
}
static __device__ __forceinline__ uint16_t hri_f32_to_f16(float x)
{
    return __half_as_ushort(__float2half_rn(x));
}

/* Element i of a row of any kind. */
static __device__ __forceinline__ float hri_element(const void *row, hr_dtype_t dtype, size_t i)
{
    if (dtype == HR_DTYPE_F32)
        return ((const float *)row)[i];
    const uint16_t half = ((const uint16_t *)row)[i];
    return dtype == HR_DTYPE_F16 ? hri_f16_to_f32(half) : hri_bf16_to_f32(half);
}
static __host__ __device__ __forceinline__ uint32_t hri_dtype_size(hr_dtype_t dtype)
{
    return dtype == HR_DTYPE_F32 ? 4u : 2u;
}

/* Sum over a block of `warps` warps, the same in every thread; `part` is [warps] in shared memory. */
static __device__ __forceinline__ float hri_block_sum(float *part, float x, uint32_t warps)
{
    x = hri_warp_sum(x);
    __syncthreads();
    if (hri_lane() == 0)
        part[hri_warp()] = x;
    __syncthreads();
    float sum = 0;
    for (uint32_t w = 0; w < warps; w++)
        sum += part[w];
    return sum;
}

/* Called by all threads of a block after they wrote what the others of n blocks wait for: whether this block is the last of them, which
 * then may read it. *arrived is 0 before and afterwards; last: in shared memory. */
static __device__ __forceinline__ bool hri_last_to_arrive(uint32_t *arrived, uint32_t n,
                                                          uint32_t *last)
{
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0)
        *last = atomicInc(arrived, n - 1) == n - 1;
    __syncthreads();
    if (*last)
        __threadfence();
    return *last;
}

static __host__ __device__ __forceinline__ uint32_t hri_div_up(uint32_t x, uint32_t y)
{
    return (x + y - 1) / y;
}

/* How many blocks of the grid each of n heads gets, if every SM is to have `per_sm` of them. */
static inline uint32_t hri_splits(uint32_t n_heads, uint32_t per_sm, uint32_t most)
{
    const uint32_t n = hri_div_up(hri_cuda_get_machine().sm_count * per_sm, n_heads ? n_heads : 1);
    return n < 1 ? 1 : n > most ? most : n;
}

#endif
