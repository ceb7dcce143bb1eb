/* What a layer begins with: the last product is added to the stream, and its root mean square norm or
 * LayerNorm goes on.
 *
 * A thread block has a row and keeps it in shared memory, so that x and delta are read once and x and y
 * written once. One token is one block: the limit is the latency of two sums over a block. */
#include "kernels/cuda/common.cuh"

#define THREADS     256u
#define WARPS       (THREADS / 32)
#define SHARED_MOST (99u * 1024) /* what sm_86, 89 and 120 have */

/* KEPT: the row lies in shared memory; else, of very wide models, in x alone. */
template <bool KEPT>
static __global__ void __launch_bounds__(THREADS)
    norm_kernel(struct hri_cuda_norm_args a, uint32_t n)
{
    HRI_SHARED_DYNAMIC(shared);
    HRI_SHARED(float, part, WARPS);
    for (uint32_t i = blockIdx.x; i < n; i += gridDim.x) {
        float *const x = a.x + (size_t)i * a.width;
        const float *const delta = a.delta ? a.delta + (size_t)i * a.width : NULL;
        float *const row = KEPT ? (float *)shared : x;
        float sum = 0;
        /* A thread comes back to its own elements only: no barrier is needed for them. */
        for (uint32_t j = threadIdx.x; j < a.width; j += THREADS) {
            const float y = delta ? x[j] + delta[j] : x[j];
            if (delta)
                x[j] = y;
            if (KEPT)
                row[j] = y;
            sum += a.bias ? y : 0.0f;
        }
        const float mean = a.bias ? hri_block_sum(part, sum, WARPS) / (float)a.width : 0.0f;
        float squares = 0;
        for (uint32_t j = threadIdx.x; j < a.width; j += THREADS)
            squares += (row[j] - mean) * (row[j] - mean);
        const float scale =
            1.0f / sqrtf(hri_block_sum(part, squares, WARPS) / (float)a.width + a.eps);
        for (uint32_t j = threadIdx.x; j < a.width; j += THREADS) {
            const float y = (row[j] - mean) * scale * a.weight[j] + (a.bias ? a.bias[j] : 0.0f);
            if (a.y_dtype == HR_DTYPE_F32)
                ((float *)a.y)[(size_t)i * a.width + j] = y;
            else
                ((uint16_t *)a.y)[(size_t)i * a.width + j] = hri_f32_to_bf16(y);
        }
    }
}

template <bool KEPT>
static int launch(const struct hri_cuda_norm_args *norm, uint32_t n, uint32_t bytes, void *stream)
{
    const uint32_t most = hri_cuda_get_machine().sm_count * 8;
    const int error = HRI_ALLOW_SHARED(norm_kernel<KEPT>, bytes);
    if (error)
        return error;
    return HRI_LAUNCH(norm_kernel<KEPT>, n < most ? n : most, THREADS, bytes, stream, *norm, n);
}

extern "C" int hri_cuda_norm(const struct hri_cuda_norm_args *norm, uint32_t n, void *stream)
{
    const uint32_t bytes = norm->width * (uint32_t)sizeof(float);
    if (n == 0)
        return 0;
    return bytes + 1024 <= SHARED_MOST ? launch<true>(norm, n, bytes, stream)
                                       : launch<false>(norm, n, 16, stream);
}
