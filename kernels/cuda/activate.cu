/* Between the two halves of a feed-forward layer, element by element.
 *
 * Bytes: gate and up are read once, the result is written once, as its reader wants it. */
#include "kernels/cuda/common.cuh"

#define THREADS 256u

/* As engine/ops_body.h: 0.5 (1 + tanh u) = 1 / (1 + e^(-2u)). */
static __device__ __forceinline__ float gelu(float x)
{
    const float u = 0.79788456f * (x + 0.044715f * x * x * x);
    return x / (1.0f + expf(-2.0f * u));
}

static __device__ __forceinline__ float silu(float x)
{
    return x / (1.0f + expf(-x));
}

static __global__ void __launch_bounds__(THREADS)
    activate_kernel(const float *gate, const float *up, size_t n, void *out, hr_dtype_t out_dtype)
{
    for (size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x; i < n;
         i += (size_t)gridDim.x * THREADS) {
        const float y = gate ? silu(gate[i]) * up[i] : gelu(up[i]);
        if (out_dtype == HR_DTYPE_F32)
            ((float *)out)[i] = y;
        else
            ((uint16_t *)out)[i] = hri_f32_to_bf16(y);
    }
}

extern "C" int hri_cuda_activate(const float *gate, const float *up, size_t n, void *out,
                                 hr_dtype_t out_dtype, void *stream)
{
    if (n == 0)
        return 0;
    const size_t blocks = (n + THREADS - 1) / THREADS;
    const uint32_t most = hri_cuda_get_machine().sm_count * 16;
    return HRI_LAUNCH(activate_kernel, blocks < most ? (uint32_t)blocks : most, THREADS, 0, stream,
                      gate, up, n, out, out_dtype);
}
