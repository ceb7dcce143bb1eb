/* The rows of a table that tokens name, with a share of the token's before where the model has one.
 *
 * Bytes: one row of the table per token, two with a smear. A thread makes 8 elements from one 16-byte load. */
#include "kernels/cuda/common.cuh"

#define THREADS 128u
#define PIECE   8u

static __device__ __forceinline__ void row_piece(const uint16_t *table, uint32_t id, uint32_t width,
                                                 uint32_t j, float x[PIECE])
{
    const uint4 a = *(const uint4 *)(table + (size_t)id * width + j);
    const uint32_t words[4] = {a.x, a.y, a.z, a.w};
    for (uint32_t i = 0; i < PIECE; i++)
        x[i] = hri_bf16_to_f32((uint16_t)(words[i / 2] >> (16 * (i % 2))));
}

static __global__ void __launch_bounds__(THREADS)
    embed_kernel(struct hri_cuda_embed_args a, uint32_t n)
{
    const uint32_t pieces = a.width / PIECE;
    for (uint32_t i = blockIdx.x * THREADS + threadIdx.x; i < n * pieces;
         i += gridDim.x * THREADS) {
        const uint32_t t = i / pieces, j = i % pieces * PIECE;
        const uint32_t before = a.smear ? a.ids[t] : HRI_CUDA_NONE;
        float x[PIECE], y[PIECE];
        row_piece(a.table, a.ids[t + 1], a.width, j, x);
        if (before != HRI_CUDA_NONE) {
            row_piece(a.table, before, a.width, j, y);
            for (uint32_t e = 0; e < PIECE; e++)
                x[e] += a.smear[j + e] * y[e];
        }
        float4 *to = (float4 *)(a.x + (size_t)t * a.width + j);
        to[0] = make_float4(x[0], x[1], x[2], x[3]);
        to[1] = make_float4(x[4], x[5], x[6], x[7]);
    }
}

extern "C" int hri_cuda_embed(const struct hri_cuda_embed_args *embed, uint32_t n, void *stream)
{
    if (n == 0)
        return 0;
    const uint32_t blocks = hri_div_up(n * (embed->width / PIECE), THREADS);
    const uint32_t most = hri_cuda_get_machine().sm_count * 16;
    return HRI_LAUNCH(embed_kernel, blocks < most ? blocks : most, THREADS, 0, stream, *embed, n);
}
