/* The attention of one warp over 16 rows at a time, by the matrix units, straight from memory.
 *
 * Queries are the 16 rows of a product's A. Decoding has up to 8 query heads, kept as two terms each
 * (16-bit floats: what the first leaves out; int8: 128 high + low) in rows r and r + 8, so that the
 * product of a row with both terms ends up in the same lane and nothing of a query is lost.
 *
 * Keys: lane (row n = lane / 4, col = lane % 4) loads 16 bytes of row n, and 4 lanes 64 bytes in a
 * row; which dimension counts as which k is free as long as the queries are loaded alike, so no data
 * moves between lanes. Values: a lane loads 16 bytes of rows 2 col, 2 col + 1, 2 col + 8 and 2 col +
 * 9, 8 lanes 128 bytes of a row, and byte permutes put two rows side by side. The scores of a product
 * are already where the weights of the next one must be. No shared memory, no barrier.
 *
 * The lane's part of the result: head n; o[8 c + t][0] is dimension 64 c + 16 col + t, [1] is 8
 * further, [2] and [3] the same from the weights' second term. */
#ifndef HRI_CUDA_ATTEND_TILE_CUH
#define HRI_CUDA_ATTEND_TILE_CUH

#include "kernels/cuda/common.cuh"

#define HRI_TILE_ROWS 16u

/* CHUNKS: dv in steps of 64, rounded up. */
template <uint32_t CHUNKS> struct hri_warp_attention {
    float m, l; /* of head lane / 4; l of the lane's own rows only */
    float o[CHUNKS * 8][4];
};

template <uint32_t CHUNKS>
static __device__ __forceinline__ void hri_attention_clear(struct hri_warp_attention<CHUNKS> &a)
{
    a.m = HRI_NEGATIVE;
    a.l = 0;
    HRI_UNROLL
    for (uint32_t i = 0; i < CHUNKS * 8; i++)
        a.o[i][0] = a.o[i][1] = a.o[i][2] = a.o[i][3] = 0.0f;
}

template <hri_half_kind KIND>
static __device__ __forceinline__ uint32_t hri_half_pair(float x, float y)
{
    if (KIND == HRI_BF16)
        return (uint32_t)hri_f32_to_bf16(x) | (uint32_t)hri_f32_to_bf16(y) << 16;
    return (uint32_t)hri_f32_to_f16(x) | (uint32_t)hri_f32_to_f16(y) << 16;
}
template <hri_half_kind KIND>
static __device__ __forceinline__ float hri_half_part(uint32_t pair, uint32_t i)
{
    const uint16_t half = (uint16_t)(pair >> (16 * i));
    return KIND == HRI_BF16 ? hri_bf16_to_f32(half) : hri_f16_to_f32(half);
}

/* Weights of the lane's rows 2 col, 2 col + 1, 2 col + 8, 2 col + 9 from their logits (-INFINITY: no
 * row); what was summed before shrinks where a larger one came. */
template <uint32_t CHUNKS>
static __device__ __forceinline__ void hri_attention_weigh(struct hri_warp_attention<CHUNKS> &a,
                                                           float x[4])
{
    float most = fmaxf(fmaxf(x[0], x[1]), fmaxf(x[2], x[3]));
    most = fmaxf(hri_quad_max(most), a.m);
    const float keep = most > a.m ? hri_exp(a.m - most) : 1.0f;
    if (__any_sync(HRI_ALL_LANES, keep != 1.0f)) {
        a.l *= keep;
        HRI_UNROLL
        for (uint32_t i = 0; i < CHUNKS * 8; i++)
            for (uint32_t j = 0; j < 4; j++)
                a.o[i][j] *= keep;
    }
    a.m = most;
    for (uint32_t i = 0; i < 4; i++)
        x[i] = x[i] > HRI_NEGATIVE ? hri_exp(x[i] - most) : 0.0f;
    a.l += (x[0] + x[1]) + (x[2] + x[3]);
}

/* The 4 weights as A of a product, both terms. */
template <hri_half_kind KIND>
static __device__ __forceinline__ void hri_weights_pack(const float w[4], uint32_t a[4])
{
    a[0] = hri_half_pair<KIND>(w[0], w[1]);
    a[2] = hri_half_pair<KIND>(w[2], w[3]);
    a[1] = hri_half_pair<KIND>(w[0] - hri_half_part<KIND>(a[0], 0),
                               w[1] - hri_half_part<KIND>(a[0], 1));
    a[3] = hri_half_pair<KIND>(w[2] - hri_half_part<KIND>(a[2], 0),
                               w[3] - hri_half_part<KIND>(a[2], 1));
}

/* o += weights times a chunk of 64 values: x has 8 of each of the lane's 4 rows. */
template <hri_half_kind KIND>
static __device__ __forceinline__ void hri_values_product(float (*o)[4], const uint32_t a[4],
                                                          const uint4 x[4])
{
    const uint32_t words[4][4] = {{x[0].x, x[0].y, x[0].z, x[0].w},
                                  {x[1].x, x[1].y, x[1].z, x[1].w},
                                  {x[2].x, x[2].y, x[2].z, x[2].w},
                                  {x[3].x, x[3].y, x[3].z, x[3].w}};
    HRI_UNROLL
    for (uint32_t t = 0; t < 8; t++) {
        const uint32_t pick = t % 2 ? 0x7632u : 0x5410u;
        const uint32_t b[2] = {__byte_perm(words[0][t / 2], words[1][t / 2], pick),
                               __byte_perm(words[2][t / 2], words[3][t / 2], pick)};
        hri_mma<KIND>(o[t], a, b);
    }
}

/* o += weights times 16-bit values; rows: of the lane's 4 rows, where the values begin. */
template <hri_half_kind KIND, uint32_t CHUNKS>
static __device__ __forceinline__ void
hri_attention_values(struct hri_warp_attention<CHUNKS> &acc, const float w[4],
                     const unsigned char *const rows[4], uint32_t dv)
{
    const uint32_t n = hri_lane() / 4;
    uint32_t a[4];
    hri_weights_pack<KIND>(w, a);
    HRI_UNROLL
    for (uint32_t c = 0; c < CHUNKS; c++) {
        const uint32_t dim = 64 * c + 8 * n;
        uint4 x[4];
        for (uint32_t r = 0; r < 4; r++)
            x[r] = dim < dv ? *(const uint4 *)(rows[r] + dim * 2) : make_uint4(0, 0, 0, 0);
        hri_values_product<KIND>(acc.o + c * 8, a, x);
    }
}

/* Byte t of x and of y, signed, as a pair of bfloat16: 128 + (7 low bits), less 128, or 256 where
 * the byte is negative. */
static __device__ __forceinline__ uint32_t hri_int8_pair(uint32_t x, uint32_t y, uint32_t t)
{
    const uint32_t bytes = __byte_perm(x, y, t | t << 4 | (4 + t) << 8 | (4 + t) << 12);
    return hri_bf16x2_sub((bytes & 0x007f007fu) | 0x43004300u, (bytes & 0x00800080u) | 0x43004300u);
}

/* The same with int8 values; weights carry the steps. */
template <uint32_t CHUNKS>
static __device__ __forceinline__ void
hri_attention_values_i8(struct hri_warp_attention<CHUNKS> &acc, const float w[4],
                        const int8_t *const rows[4], uint32_t dv)
{
    const uint32_t n = hri_lane() / 4;
    uint32_t a[4];
    hri_weights_pack<HRI_BF16>(w, a);
    HRI_UNROLL
    for (uint32_t c = 0; c < CHUNKS; c++) {
        const uint32_t dim = 64 * c + 8 * n;
        uint2 x[4];
        for (uint32_t r = 0; r < 4; r++)
            x[r] = dim < dv ? *(const uint2 *)(rows[r] + dim) : make_uint2(0, 0);
        HRI_UNROLL
        for (uint32_t t = 0; t < 8; t++) {
            const uint32_t b[2] = {
                hri_int8_pair(t < 4 ? x[0].x : x[0].y, t < 4 ? x[1].x : x[1].y, t % 4),
                hri_int8_pair(t < 4 ? x[2].x : x[2].y, t < 4 ? x[3].x : x[3].y, t % 4)};
            hri_mma<HRI_BF16>(acc.o[c * 8 + t], a, b);
        }
    }
}

/* o += weight times one int8 row, the same for all the head's lanes. */
template <uint32_t CHUNKS>
static __device__ __forceinline__ void hri_attention_add_row(struct hri_warp_attention<CHUNKS> &acc,
                                                             float weight, const int8_t *row,
                                                             uint32_t dv)
{
    HRI_UNROLL
    for (uint32_t c = 0; c < CHUNKS; c++) {
        const uint32_t dim = 64 * c + 16 * (hri_lane() % 4);
        if (dim >= dv)
            continue;
        const uint4 x = *(const uint4 *)(row + dim);
        const uint32_t words[4] = {x.x, x.y, x.z, x.w};
        HRI_UNROLL
        for (uint32_t t = 0; t < 8; t++) {
            acc.o[c * 8 + t][0] += weight * (float)(int8_t)(words[t / 4] >> (8 * (t % 4)));
            acc.o[c * 8 + t][1] += weight * (float)(int8_t)(words[2 + t / 4] >> (8 * (t % 4)));
        }
    }
}

/* 16 rows of 16-bit queries in shared memory, `stride` bytes apart, with 16 keys, of which rows point at the lane's n-th and n + 8th: first
 * and second are the products with the first and the last 8 keys, query rows n and n + 8. */
template <hri_half_kind KIND>
static __device__ __forceinline__ void
hri_keys_product(const unsigned char *queries, uint32_t stride, const unsigned char *const rows[2],
                 uint32_t dk, float first[4], float second[4])
{
    const uint32_t n = hri_lane() / 4, col = hri_lane() % 4;
    for (uint32_t i = 0; i < 4; i++)
        first[i] = second[i] = 0;
    HRI_UNROLL_4
    for (uint32_t s = 0; s < dk; s += 32) {
        const uint32_t dim = s + 8 * col;
        const uint4 zero = make_uint4(0, 0, 0, 0);
        const uint4 k0 = dim < dk ? *(const uint4 *)(rows[0] + dim * 2) : zero;
        const uint4 k1 = dim < dk ? *(const uint4 *)(rows[1] + dim * 2) : zero;
        const uint4 q0 = *(const uint4 *)(queries + n * stride + dim * 2);
        const uint4 q1 = *(const uint4 *)(queries + (n + 8) * stride + dim * 2);
        const uint32_t a0[4] = {q0.x, q1.x, q0.y, q1.y}, a1[4] = {q0.z, q1.z, q0.w, q1.w};
        const uint32_t b00[2] = {k0.x, k0.y}, b01[2] = {k0.z, k0.w};
        const uint32_t b10[2] = {k1.x, k1.y}, b11[2] = {k1.z, k1.w};
        hri_mma<KIND>(first, a0, b00);
        hri_mma<KIND>(first, a1, b01);
        hri_mma<KIND>(second, a0, b10);
        hri_mma<KIND>(second, a1, b11);
    }
}

/* Queries as 16-bit floats in shared memory: rows of `stride` bytes, head n's first term in row n,
 * its second in row n + 8. Products of rows n and n + 8 (of the 16 rows of the tile; both addresses
 * point at keys) with all queries: x[0], x[1] rows 2 col and 2 col + 1, x[2], x[3] 8 further. */
template <hri_half_kind KIND>
static __device__ __forceinline__ void
hri_attention_scores(const unsigned char *queries, uint32_t stride,
                     const unsigned char *const rows[2], uint32_t dk, float x[4])
{
    float first[4], second[4];
    hri_keys_product<KIND>(queries, stride, rows, dk, first, second);
    x[0] = first[0] + first[2];
    x[1] = first[1] + first[3];
    x[2] = second[0] + second[2];
    x[3] = second[1] + second[3];
}

/* Queries as int8: rows n (high) and n + 8 (low); keys int8. x = 128 high + low, exactly. */
static __device__ __forceinline__ void hri_attention_scores_i8(const int8_t *queries,
                                                               uint32_t stride,
                                                               const int8_t *const rows[2],
                                                               uint32_t dk, float x[4])
{
    const uint32_t n = hri_lane() / 4, col = hri_lane() % 4;
    int first[4] = {0, 0, 0, 0}, second[4] = {0, 0, 0, 0};
    HRI_UNROLL_4
    for (uint32_t s = 0; s < dk; s += 64) {
        const uint32_t dim = s + 16 * col;
        const uint4 zero = make_uint4(0, 0, 0, 0);
        const uint4 k0 = dim < dk ? *(const uint4 *)(rows[0] + dim) : zero;
        const uint4 k1 = dim < dk ? *(const uint4 *)(rows[1] + dim) : zero;
        const uint4 q0 = *(const uint4 *)(queries + n * stride + dim);
        const uint4 q1 = *(const uint4 *)(queries + (n + 8) * stride + dim);
        const uint32_t a0[4] = {q0.x, q1.x, q0.y, q1.y}, a1[4] = {q0.z, q1.z, q0.w, q1.w};
        const uint32_t b00[2] = {k0.x, k0.y}, b01[2] = {k0.z, k0.w};
        const uint32_t b10[2] = {k1.x, k1.y}, b11[2] = {k1.z, k1.w};
        hri_mma_s8(first, a0, b00);
        hri_mma_s8(first, a1, b01);
        hri_mma_s8(second, a0, b10);
        hri_mma_s8(second, a1, b11);
    }
    x[0] = (float)(128 * first[0] + first[2]);
    x[1] = (float)(128 * first[1] + first[3]);
    x[2] = (float)(128 * second[0] + second[2]);
    x[3] = (float)(128 * second[1] + second[3]);
}

#endif
