/* Scores of packed centroids with vpdpbusd: one line is 4 dimensions of 16 blocks, so lanes are
 * blocks and nothing is added across lanes. Sixteen blocks at a time, so that lines are read in order. */
#include "kernels/cpu/query_i8.h"
#include "kernels/cpu/simd_avx512.h"

/* With this many queries lines are asked for so far ahead; with fewer the processor, which sees them come in order, is faster alone. */
#define PREFETCH_QUERIES 3
#define PREFETCH_BYTES   8192

HRI_INLINE void store_scores(__m512i high, __m512i low, const struct query_i8 *q, const float *step,
                             float *out)
{
    __m512i sum = _mm512_add_epi32(_mm512_slli_epi32(high, 7), low);
    sum = _mm512_sub_epi32(sum, _mm512_set1_epi32(q->excess));
    vf score = vf_mul(_mm512_cvtepi32_ps(sum), vf_set(q->step));
    vf_store(out, vf_mul(score, vf_load(step)));
}

/* 16 blocks. */
HRI_INLINE void score_queries(const int queries, const bool ask, const struct query_i8 *q,
                              uint32_t dk, const uint8_t *codes, const float *step, float *out,
                              size_t out_stride)
{
    __m512i high[4], low[4];

    HRI_UNROLL
    for (int i = 0; i < queries; i++)
        high[i] = low[i] = _mm512_setzero_si512();
    for (uint32_t j = 0; j < dk; j += 4) {
        const uint8_t *at = codes + (size_t)j * 16;
        const __m512i line = _mm512_loadu_si512(at);
        if (ask)
            _mm_prefetch((const char *)at + PREFETCH_BYTES, _MM_HINT_T1);
        HRI_UNROLL
        for (int i = 0; i < queries; i++) {
            high[i] = add_products(high[i], line, query_bytes(q[i].high + j));
            low[i] = add_products(low[i], line, query_bytes(q[i].low + j));
        }
    }
    HRI_UNROLL
    for (int i = 0; i < queries; i++)
        store_scores(high[i], low[i], q + i, step, out + i * out_stride);
}

HRI_INLINE void score_group(uint32_t g, const struct query_i8 *q, uint32_t dk, const uint8_t *codes,
                            const float *step, float *out, size_t out_stride)
{
    bool ask = g >= PREFETCH_QUERIES; /* by the first queries only */
    uint32_t i = 0;

    for (; i + 4 <= g; i += 4, ask = false)
        score_queries(4, ask, q + i, dk, codes, step, out + i * out_stride, out_stride);
    if (g - i == 3)
        score_queries(3, ask, q + i, dk, codes, step, out + i * out_stride, out_stride);
    else if (g - i == 2)
        score_queries(2, false, q + i, dk, codes, step, out + i * out_stride, out_stride);
    else if (g - i == 1)
        score_queries(1, false, q + i, dk, codes, step, out + i * out_stride, out_stride);
}

void hri_avx512_score_centroids(const float *q, uint32_t g, uint32_t dk, struct hri_centroids c,
                                float *out, size_t out_stride)
{
    struct query_i8 bytes[HR_GROUP_MAX];

    for (uint32_t i = 0; i < g; i++)
        query_i8_make(bytes + i, q + (size_t)i * dk, dk);
    for (uint32_t b = 0; b < c.n; b += 16)
        score_group(g, bytes, dk, c.codes + (size_t)b * dk, c.step + b, out + b, out_stride);
}
