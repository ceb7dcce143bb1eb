/* A read of memory, and nothing else: what everything that reads memory is measured against.
 *
 * Each thread takes eight times 16 bytes before it uses any of them; four thread blocks an SM keep enough of them under way. The sum
 * of all 32-bit words is there so that nothing is left out; integers add in any order. */
#include "kernels/cuda/common.cuh"

#define THREADS 256u
#define AHEAD   8u

static __global__ void __launch_bounds__(THREADS)
    read_kernel(const uint4 *__restrict__ from, size_t n, uint32_t *sum)
{
    const size_t stride = (size_t)gridDim.x * THREADS;
    uint32_t all = 0;
    for (size_t first = (size_t)blockIdx.x * THREADS + threadIdx.x; first < n;
         first += AHEAD * stride) {
        uint4 x[AHEAD];
        HRI_UNROLL
        for (uint32_t i = 0; i < AHEAD; i++) {
            x[i] = make_uint4(0, 0, 0, 0);
            if (first + i * stride < n)
                x[i] = hri_load_stream(from + first + i * stride);
        }
        HRI_UNROLL
        for (uint32_t i = 0; i < AHEAD; i++)
            all += x[i].x + x[i].y + x[i].z + x[i].w;
    }
    for (int bit = 16; bit > 0; bit >>= 1)
        all += __shfl_xor_sync(HRI_ALL_LANES, all, bit);
    if (hri_lane() == 0)
        atomicAdd(sum, all);
}

extern "C" int hri_cuda_read(const void *memory, size_t bytes, uint32_t *sum, void *stream)
{
    return HRI_LAUNCH(read_kernel, hri_cuda_get_machine().sm_count * 4, THREADS, 0, stream,
                      (const uint4 *)memory, bytes / 16, sum);
}
