/* Rotary positions: pairs of dimensions of queries and keys turn by angles whose cosines and sines come with the
 * tokens (the host makes them in double; engine/rope.c).
 *
 * A thread has a pair. Bytes: every rotated element is read and written once; of one token it is the launch. */
#include "kernels/cuda/common.cuh"

#define THREADS 128u

static __global__ void __launch_bounds__(THREADS)
    rope_kernel(struct hri_cuda_rope_args a, uint32_t n)
{
    const uint32_t pairs = a.n_rot / 2, heads = a.n_q + a.n_kv;
    for (uint32_t i = blockIdx.x * THREADS + threadIdx.x; i < n * heads * pairs;
         i += gridDim.x * THREADS) {
        const uint32_t j = i % pairs, h = i / pairs % heads, t = i / pairs / heads;
        float *const x = h < a.n_q ? a.q + ((size_t)t * a.n_q + h) * a.dim
                                   : a.k + ((size_t)t * a.n_kv + (h - a.n_q)) * a.dim;
        const bool half = a.layout == HR_ROPE_HALF;
        float *const low = x + (half ? j : 2 * j), *const high = half ? low + pairs : low + 1;
        const float cosine = a.cosine[(size_t)t * pairs + j], sine = a.sine[(size_t)t * pairs + j];
        const float u = *low, v = *high;
        *low = u * cosine - v * sine;
        *high = v * cosine + u * sine;
    }
}

extern "C" int hri_cuda_rope(const struct hri_cuda_rope_args *rope, uint32_t n, void *stream)
{
    const uint32_t pairs = n * (rope->n_q + rope->n_kv) * (rope->n_rot / 2);
    if (pairs == 0 || rope->layout == HR_ROPE_NONE)
        return 0;
    const uint32_t blocks = hri_div_up(pairs, THREADS);
    const uint32_t most = hri_cuda_get_machine().sm_count * 16;
    return HRI_LAUNCH(rope_kernel, blocks < most ? blocks : most, THREADS, 0, stream, *rope, n);
}
