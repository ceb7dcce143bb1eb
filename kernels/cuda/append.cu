/* New rows into the tails.
 *
 * Bytes: each row is read once and written once. A thread moves 8 elements, one 16-byte store of
 * 16-bit rows, and neighbouring threads neighbouring pieces of a row. A decode step appends one
 * token of every head, a few KiB: the limit is the launch. */
#include "kernels/cuda/common.cuh"

#define THREADS 128u
#define PIECE   8u /* elements of a thread */

/* 8 elements, from one or two 16-byte loads where `whole`. */
static __device__ __forceinline__ void piece_load(const void *p, hr_dtype_t dtype, size_t first,
                                                  bool whole, float x[PIECE])
{
    if (!whole) {
        for (uint32_t i = 0; i < PIECE; i++)
            x[i] = hri_element(p, dtype, first + i);
    } else if (dtype == HR_DTYPE_F32) {
        const float4 *from = (const float4 *)((const float *)p + first);
        const float4 a = from[0], b = from[1];
        x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w;
        x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
    } else {
        const uint4 a = *(const uint4 *)((const uint16_t *)p + first);
        const uint32_t words[4] = {a.x, a.y, a.z, a.w};
        for (uint32_t i = 0; i < PIECE; i++) {
            const uint16_t half = (uint16_t)(words[i / 2] >> (16 * (i % 2)));
            x[i] = dtype == HR_DTYPE_F16 ? hri_f16_to_f32(half) : hri_bf16_to_f32(half);
        }
    }
}

/* Writes the piece; returns the first element that is not finite, or PIECE. */
static __device__ __forceinline__ uint32_t piece_store(void *p, hr_dtype_t dtype, size_t first,
                                                       const float x[PIECE])
{
    uint32_t bad = PIECE, words[4];
    if (dtype == HR_DTYPE_F32) {
        float4 *to = (float4 *)((float *)p + first);
        to[0] = make_float4(x[0], x[1], x[2], x[3]);
        to[1] = make_float4(x[4], x[5], x[6], x[7]);
        for (uint32_t i = PIECE; i-- > 0;)
            bad = (__float_as_uint(x[i]) & 0x7f800000u) == 0x7f800000u ? i : bad;
        return bad;
    }
    const uint32_t exponent = dtype == HR_DTYPE_F16 ? 0x7c00u : 0x7f80u;
    for (uint32_t i = PIECE; i-- > 0;) {
        const uint32_t half = dtype == HR_DTYPE_F16 ? hri_f32_to_f16(x[i]) : hri_f32_to_bf16(x[i]);
        bad = (half & exponent) == exponent ? i : bad;
        words[i / 2] = i % 2 ? half << 16 : words[i / 2] | half;
    }
    *(uint4 *)((uint16_t *)p + first) = make_uint4(words[0], words[1], words[2], words[3]);
    return bad;
}

static __global__ void __launch_bounds__(THREADS)
    append_kernel(struct hri_cuda_append_args a, struct hri_cuda_heads heads, uint32_t n,
                  bool whole)
{
    const uint32_t width = heads.dk + heads.dv, pieces = width / PIECE;
    const uint32_t length = *a.length;
    for (uint32_t i = blockIdx.x * THREADS + threadIdx.x; i < n * heads.n * pieces;
         i += gridDim.x * THREADS) {
        const uint32_t j = i % pieces * PIECE, h = i / pieces % heads.n, t = i / pieces / heads.n;
        const uint32_t row = (length + t) % a.capacity;
        const bool key = j < heads.dk;
        const size_t from =
            key ? (size_t)(t * a.k_token_stride + h * a.k_head_stride) + j
                : (size_t)(t * a.v_token_stride + h * a.v_head_stride) + j - heads.dk;
        float x[PIECE];
        piece_load(key ? a.k : a.v, a.from, from, whole, x);
        const uint32_t bad =
            piece_store(a.tail, a.to, ((size_t)h * a.capacity + row) * width + j, x);
        if (bad < PIECE)
            atomicMin(a.bad, (t * heads.n + h) * width + j + bad);
    }
}

static __global__ void advance_kernel(uint32_t *length, uint32_t n)
{
    *length += n;
}

static bool aligned(const struct hri_cuda_append_args *a)
{
    const int64_t strides =
        a->k_token_stride | a->k_head_stride | a->v_token_stride | a->v_head_stride;
    return strides % PIECE == 0 && ((uintptr_t)a->k | (uintptr_t)a->v) % 16 == 0;
}

extern "C" int hri_cuda_append(const struct hri_cuda_append_args *append,
                               struct hri_cuda_heads heads, uint32_t n, void *stream)
{
    const uint32_t pieces = n * heads.n * ((heads.dk + heads.dv) / PIECE);
    if (pieces == 0)
        return 0;
    const uint32_t most = hri_cuda_get_machine().sm_count * 16;
    const uint32_t blocks = hri_div_up(pieces, THREADS);
    const int error = HRI_LAUNCH(append_kernel, blocks < most ? blocks : most, THREADS, 0, stream,
                                 *append, heads, n, aligned(append));
    if (error || !append->advance)
        return error;
    return HRI_LAUNCH(advance_kernel, 1, 1, 0, stream, append->length, n);
}
