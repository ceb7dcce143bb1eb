/* What a step knows of its own error.
 *
 * factor: a thread block per query head looks for the few blocks with a share of the mass that matters,
 * and adds their values; predict: a thread block per query head sums what the blocks that were not
 * refined leave. Bytes: 4 per block and query head for the first, 12 for the second, from L2. The limit
 * is the rate of one SM for a head's 4,096 blocks at 128K tokens: a few us; neither lies on the way to
 * the output unless a tolerance is set. Sums are made in a fixed order. */
#include "kernels/cuda/doubt.cuh"

#define THREADS   256u
#define WARPS     (THREADS / 32)
#define SHARE_MIN 0.002f /* as index/select_headrace.c */

static __global__ void __launch_bounds__(THREADS)
    factor_kernel(struct hri_cuda_factor_args a, struct hri_cuda_heads heads)
{
    HRI_SHARED(float, weights, THREADS);
    HRI_SHARED(uint32_t, heavy, WARPS);
    HRI_SHARED(float, part, WARPS);
    const uint32_t h = blockIdx.y, n = a.n[h], j = threadIdx.x; /* j: a dimension of the output */
    const size_t at = (size_t)h * heads.g + blockIdx.x, first_block = (size_t)h * a.blocks_max;
    const float top = a.top[at], total = a.total[at];
    const float near = a.near_lse[at] > HRI_NEGATIVE ? hri_exp(a.near_lse[at] - top) : 0.0f;
    const float *log_mass = a.log_mass + at * a.stride;
    float rest = total - near, output = j < heads.dv ? near * a.near_out[at * heads.dv + j] : 0.0f;
    for (uint32_t first = 0; first < n; first += THREADS) {
        const uint32_t b = first + j;
        const float weight = b < n ? hri_exp(log_mass[b] - top) : 0.0f;
        const uint32_t found = __ballot_sync(HRI_ALL_LANES, weight >= SHARE_MIN * total);
        __syncthreads();
        weights[j] = weight;
        if (hri_lane() == 0)
            heavy[hri_warp()] = found;
        __syncthreads();
        for (uint32_t w = 0; w < WARPS; w++) {
            for (uint32_t left = heavy[w]; left; left &= left - 1) {
                const uint32_t i = 32 * w + (uint32_t)__ffs((int)left) - 1;
                const size_t block = first_block + first + i;
                rest -= weights[i];
                if (j < heads.dv)
                    output += weights[i] * a.v_scale[block] * a.v_codes[block * heads.dv + j];
            }
        }
    }
    rest = fmaxf(rest, 0.0f);
    float far = 0, square = 0;
    if (a.added && j < heads.dv)
        output += a.added[at * heads.dv + j];
    if (j < heads.dv) {
        const float mean = a.v_mean[(size_t)h * heads.dv + j];
        output = (output + rest * mean) / total;
        far = (output - mean) * (output - mean);
        square = output * output;
    }
    far = hri_block_sum(part, far, WARPS);
    square = hri_block_sum(part, square, WARPS);
    if (j == 0)
        a.factor[at] = square > 0 ? (far + a.v_variance[h]) / square : 0.0f;
    if (j == 0 && a.common)
        a.common[at] = square > 0 ? far / square : 0.0f;
    if (j == 0 && a.size)
        a.size[at] = square;
}

/* What blocks leave: each by itself, and all in common. */
struct leaves {
    float doubt, drift;
};

/* Of query head at = h G + g: adds what a block leaves. */
static __device__ __forceinline__ void block_add(const struct hri_cuda_predict_args &a, uint32_t h,
                                                 size_t at, uint32_t b, leaves *sum)
{
    const size_t block = (size_t)h * a.blocks_max + b;
    const float share = hri_exp(a.log_mass[at * a.stride + b] - a.top[at]) / a.total[at];
    const float variance = a.variance[at] * hri_bf16_to_f32(a.spread[block]);
    sum->doubt += hri_doubt(share, variance, (float)a.rows[block]);
    sum->drift += share * hri_drift(variance);
}

static __device__ __forceinline__ float error_of(const struct hri_cuda_predict_args &a, size_t at,
                                                 leaves sum, float *part)
{
    const float doubt = hri_block_sum(part, sum.doubt, WARPS);
    const float drift = hri_block_sum(part, sum.drift, WARPS);
    return sqrtf(doubt * a.factor[at] + drift * drift * a.common[at]);
}

static __global__ void __launch_bounds__(THREADS)
    predict_kernel(struct hri_cuda_predict_args a, struct hri_cuda_heads heads)
{
    HRI_SHARED(float, part, WARPS);
    HRI_SHARED(uint32_t, counts, HRI_CUDA_PREDICT_COUNTS);
    const uint32_t h = blockIdx.y, n = a.n[h], t = threadIdx.x;
    const size_t at = (size_t)h * heads.g + blockIdx.x;
    if (t < HRI_CUDA_PREDICT_COUNTS)
        counts[t] = 0;
    leaves left = {0, 0}, late = {0, 0};
    for (uint32_t b = t; b < n; b += THREADS)
        if (a.mark[(size_t)h * a.blocks_max + b])
            block_add(a, h, at, b, &left);
    __syncthreads();
    for (uint32_t i = t; i < a.n_items[h]; i += THREADS) {
        const size_t item = (size_t)h * a.items_max + i;
        const uint32_t b = a.items[item], rows = a.rows[(size_t)h * a.blocks_max + b];
        const bool came = a.frames_of[item] != HRI_CUDA_NONE;
        if (!came)
            block_add(a, h, at, b, &late);
        const uint32_t kind = !came ? 2 : a.class_[(size_t)h * a.stride + b] ? 1 : 0;
        atomicAdd(&counts[kind], 1u);
        atomicAdd(&counts[kind + 3], rows);
    }
    const float predicted = error_of(a, at, left, part), of_late = error_of(a, at, late, part);
    if (t == 0) {
        a.predicted[at] = predicted;
        a.late[at] = of_late;
    }
    __syncthreads();
    if (blockIdx.x == 0 && t < HRI_CUDA_PREDICT_COUNTS) {
        const bool refined = t % 3 == 0; /* hits are among them */
        a.counts[h * HRI_CUDA_PREDICT_COUNTS + t] = counts[t] + (refined ? counts[t + 1] : 0);
    }
}

extern "C" int hri_cuda_factor(const struct hri_cuda_factor_args *factor,
                               struct hri_cuda_heads heads, void *stream)
{
    if (heads.n == 0)
        return 0;
    return HRI_LAUNCH(factor_kernel, dim3(heads.g, heads.n), THREADS, 0, stream, *factor, heads);
}

extern "C" int hri_cuda_predict(const struct hri_cuda_predict_args *predict,
                                struct hri_cuda_heads heads, void *stream)
{
    if (heads.n == 0)
        return 0;
    return HRI_LAUNCH(predict_kernel, dim3(heads.g, heads.n), THREADS, 0, stream, *predict, heads);
}
