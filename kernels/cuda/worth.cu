/* What refining each block would be worth.
 *
 * A thread block per kv-head, a thread per block. Bytes: 4 per query head read, 9 + 13 more per
 * block. The sum over a head is made in a fixed order. The limit is one SM's rate for a head's 4,096
 * blocks at 128K tokens: about 25 bytes and 100 instructions each, a few us. */
#include "kernels/cuda/doubt.cuh"

#define THREADS  512u
#define HALF_MAX 3.0f /* as index/select_headrace.c */
#define REACH    1.4f
#define TAIL_MAX 40.0f

/* How much more a block may weigh than its clamped estimate says, less 1. */
static __device__ __forceinline__ float tail_lift(float variance, float peak, float log_rows)
{
    const float reach = REACH * peak * sqrtf(variance);
    const float extra = reach - log_rows - fminf(0.5f * variance, HALF_MAX);
    return extra > 0 ? hri_exp(2 * fminf(extra, TAIL_MAX)) - 1 : 0.0f;
}

/* What the shares of all blocks leave by being off in common, squared, summed over the group. */
static __device__ float drift_left(const struct hri_cuda_worth_args &a,
                                   const struct hri_cuda_heads &heads, uint32_t h, float *part)
{
    float left = 0;
    for (uint32_t g = 0; g < heads.g; g++) {
        const size_t head = (size_t)h * heads.g + g;
        float drift = 0;
        for (uint32_t b = threadIdx.x; b < a.n[h]; b += THREADS) {
            const float spread = hri_bf16_to_f32(a.spread[(size_t)h * a.blocks_max + b]);
            drift += hri_exp(a.log_mass[head * a.stride + b] - a.top[head]) / a.total[head] *
                     hri_drift(a.variance[head] * spread);
        }
        drift = hri_block_sum(part, drift, THREADS / 32);
        left += drift * drift * a.common[head];
    }
    return left;
}

static __global__ void __launch_bounds__(THREADS)
    worth_kernel(struct hri_cuda_worth_args a, struct hri_cuda_heads heads)
{
    HRI_SHARED(float, part, THREADS / 32);
    const uint32_t h = blockIdx.x, n = a.n[h];
    float left = 0;
    for (uint32_t b = threadIdx.x; b < n; b += THREADS) {
        const size_t at = (size_t)h * a.blocks_max + b, to = (size_t)h * a.stride + b;
        const float rows = (float)a.rows[at], spread = hri_bf16_to_f32(a.spread[at]);
        const float log_rows = logf(rows), peak = a.peak ? a.peak[at] / 16.0f : 0.0f;
        float doubt = 0, error = 0, lift = 0;
        for (uint32_t g = 0; g < heads.g; g++) {
            const size_t head = (size_t)h * heads.g + g;
            const float share =
                hri_exp(a.log_mass[head * a.stride + b] - a.top[head]) / a.total[head];
            const float variance = a.variance[head] * spread;
            const float d = hri_doubt(share, variance, rows);
            doubt += d;
            error += a.factor ? d * a.factor[head] : d;
            lift += peak > 0 ? d * tail_lift(variance, peak, log_rows) : 0.0f;
        }
        a.key[to] = (doubt + lift) / rows;
        a.error[to] = error;
        a.cost[to] = a.rows[at] * a.row_bytes;
        a.class_[to] = a.frame_of && a.frame_of[at] != HRI_CUDA_NONE;
        left += error;
    }
    left = hri_block_sum(part, left, THREADS / 32);
    if (a.common)
        left += drift_left(a, heads, h, part);
    if (threadIdx.x == 0)
        a.left[h] = left;
}

extern "C" int hri_cuda_worth(const struct hri_cuda_worth_args *worth, struct hri_cuda_heads heads,
                              void *stream)
{
    if (heads.n == 0)
        return 0;
    return HRI_LAUNCH(worth_kernel, heads.n, THREADS, 0, stream, *worth, heads);
}
