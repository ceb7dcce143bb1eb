/* Activations as a product reads them, and biases where it adds to them. Bytes: each is read and written once. */
#include "kernels/cuda/common.cuh"

#define THREADS 256u

static __global__ void __launch_bounds__(THREADS)
    round_kernel(const float *x, size_t n, uint16_t *y)
{
    for (size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x; i < n;
         i += (size_t)gridDim.x * THREADS)
        y[i] = hri_f32_to_bf16(x[i]);
}

static __global__ void __launch_bounds__(THREADS)
    repeat_kernel(const float *bias, size_t n, uint32_t width, float *y)
{
    for (size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x; i < n;
         i += (size_t)gridDim.x * THREADS)
        y[i] = bias[i % width];
}

static uint32_t blocks_for(size_t n)
{
    const size_t blocks = (n + THREADS - 1) / THREADS;
    const uint32_t most = hri_cuda_get_machine().sm_count * 16;
    return blocks < most ? (uint32_t)blocks : most;
}

extern "C" int hri_cuda_round(const float *x, size_t n, uint16_t *y, void *stream)
{
    return n == 0 ? 0 : HRI_LAUNCH(round_kernel, blocks_for(n), THREADS, 0, stream, x, n, y);
}

extern "C" int hri_cuda_repeat(const float *bias, uint32_t n, uint32_t width, float *y,
                               void *stream)
{
    const size_t all = (size_t)n * width;
    return all == 0 ? 0
                    : HRI_LAUNCH(repeat_kernel, blocks_for(all), THREADS, 0, stream, bias, all,
                                 width, y);
}
