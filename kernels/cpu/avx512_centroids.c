/* Scores of packed centroids with vpdpbusd: one line is 4 dimensions of 16 blocks, so lanes are
 * blocks and nothing is added across lanes. Two groups of 16 blocks at a time share the broadcasts
 * of the query and hide the latency of the sums. */
#include "kernels/cpu/query_i8.h"
#include "kernels/cpu/simd_avx512.h"

/* How far ahead lines are asked for: from memory into the second level, and from there into the
 * first. */
#define PREFETCH_FAR_BYTES  8192
#define PREFETCH_NEAR_BYTES 384

HRI_INLINE void store_scores(__m512i high, __m512i low, const struct query_i8 *q, const float *step,
                             float *out)
{
    __m512i sum = _mm512_add_epi32(_mm512_slli_epi32(high, 7), low);
    sum = _mm512_sub_epi32(sum, _mm512_set1_epi32(q->excess));
    vf score = vf_mul(_mm512_cvtepi32_ps(sum), vf_set(q->step));
    vf_store(out, vf_mul(score, vf_load(step)));
}

/* `groups` groups of 16 blocks and `queries` queries. */
HRI_INLINE void score_groups(const int groups, const int queries, const struct query_i8 *q,
                             uint32_t dk, const uint8_t *codes, const float *step, float *out,
                             size_t out_stride)
{
    __m512i high[4][2], low[4][2];
    const size_t group_bytes = (size_t)dk * 16;

    HRI_UNROLL
    for (int i = 0; i < queries; i++)
        high[i][0] = high[i][1] = low[i][0] = low[i][1] = _mm512_setzero_si512();
    for (uint32_t j = 0; j < dk; j += 4) {
        __m512i line[2];
        HRI_UNROLL
        for (int a = 0; a < groups; a++) {
            const uint8_t *at = codes + a * group_bytes + (size_t)j * 16;
            line[a] = _mm512_loadu_si512(at);
            _mm_prefetch((const char *)at + PREFETCH_FAR_BYTES, _MM_HINT_T1);
            _mm_prefetch((const char *)at + PREFETCH_NEAR_BYTES, _MM_HINT_T0);
        }
        HRI_UNROLL
        for (int i = 0; i < queries; i++) {
            const __m512i h = query_bytes(q[i].high + j), l = query_bytes(q[i].low + j);
            HRI_UNROLL
            for (int a = 0; a < groups; a++) {
                high[i][a] = add_products(high[i][a], line[a], h);
                low[i][a] = add_products(low[i][a], line[a], l);
            }
        }
    }
    HRI_UNROLL
    for (int i = 0; i < queries; i++) {
        HRI_UNROLL
        for (int a = 0; a < groups; a++)
            store_scores(high[i][a], low[i][a], q + i, step + 16 * a,
                         out + i * out_stride + 16 * a);
    }
}

HRI_INLINE void score_queries(const int groups, uint32_t g, const struct query_i8 *q, uint32_t dk,
                              const uint8_t *codes, const float *step, float *out,
                              size_t out_stride)
{
    uint32_t i = 0;

    for (; i + 4 <= g; i += 4)
        score_groups(groups, 4, q + i, dk, codes, step, out + i * out_stride, out_stride);
    if (g - i == 3)
        score_groups(groups, 3, q + i, dk, codes, step, out + i * out_stride, out_stride);
    else if (g - i == 2)
        score_groups(groups, 2, q + i, dk, codes, step, out + i * out_stride, out_stride);
    else if (g - i == 1)
        score_groups(groups, 1, q + i, dk, codes, step, out + i * out_stride, out_stride);
}

void hri_avx512_score_centroids(const float *q, uint32_t g, uint32_t dk, struct hri_centroids c,
                                float *out, size_t out_stride)
{
    struct query_i8 bytes[HR_GROUP_MAX];
    const uint32_t n = (c.n + 15u) & ~15u;
    uint32_t b = 0;

    for (uint32_t i = 0; i < g; i++)
        query_i8_make(bytes + i, q + (size_t)i * dk, dk);
    for (; b + 32 <= n; b += 32)
        score_queries(2, g, bytes, dk, c.codes + (size_t)b * dk, c.step + b, out + b, out_stride);
    if (b < n)
        score_queries(1, g, bytes, dk, c.codes + (size_t)b * dk, c.step + b, out + b, out_stride);
}
