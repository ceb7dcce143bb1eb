/* Scores of packed centroids with vpdpbusd: one line is 4 dimensions of 16 blocks, so lanes are blocks and nothing is added
 * across lanes. Two groups of 16 blocks at a time share the broadcasts of the query and hide the latency of the sums. */
#include "kernels/cpu/query_i8.h"
#include "kernels/cpu/simd_avx512.h"

/* Lines ahead that are asked for. */
#define PREFETCH_BYTES 4096

HRI_INLINE __m512i query_bytes(const int8_t *p)
{
    int32_t word;
    memcpy(&word, p, sizeof word);
    return _mm512_set1_epi32(word);
}

HRI_INLINE void store_scores(__m512i high, __m512i low, const struct query_i8 *q, const float *step, float *out)
{
    __m512i sum = _mm512_add_epi32(_mm512_slli_epi32(high, 7), low);
    sum = _mm512_sub_epi32(sum, _mm512_set1_epi32(q->excess));
    vf score = vf_mul(_mm512_cvtepi32_ps(sum), vf_set(q->step));
    vf_store(out, vf_mul(score, vf_load(step)));
}

/* `groups` groups of 16 blocks and `queries` queries. */
HRI_INLINE void score_groups(const int groups, const int queries, const struct query_i8 *q, uint32_t dk,
                             const uint8_t *codes, const float *step, float *out, size_t out_stride)
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
            _mm_prefetch((const char *)at + PREFETCH_BYTES, _MM_HINT_T0);
        }
        HRI_UNROLL
        for (int i = 0; i < queries; i++) {
            const __m512i h = query_bytes(q[i].high + j), l = query_bytes(q[i].low + j);
            HRI_UNROLL
            for (int a = 0; a < groups; a++) {
                high[i][a] = _mm512_dpbusd_epi32(high[i][a], line[a], h);
                low[i][a] = _mm512_dpbusd_epi32(low[i][a], line[a], l);
            }
        }
    }
    HRI_UNROLL
    for (int i = 0; i < queries; i++) {
        HRI_UNROLL
        for (int a = 0; a < groups; a++)
            store_scores(high[i][a], low[i][a], q + i, step + 16 * a, out + i * out_stride + 16 * a);
    }
}

HRI_INLINE void score_all(const int queries, const struct query_i8 *q, uint32_t dk, const struct hri_centroids *c,
                          float *out, size_t out_stride)
{
    const uint32_t n = (c->n + 15u) & ~15u;
    uint32_t b = 0;

    for (; b + 32 <= n; b += 32)
        score_groups(2, queries, q, dk, c->codes + (size_t)b * dk, c->step + b, out + b, out_stride);
    if (b < n)
        score_groups(1, queries, q, dk, c->codes + (size_t)b * dk, c->step + b, out + b, out_stride);
}

void hri_avx512_score_centroids(const float *q, uint32_t g, uint32_t dk, struct hri_centroids c, float *out,
                                size_t out_stride)
{
    struct query_i8 bytes[4];

    for (uint32_t i = 0; i < g; i += 4) {
        const uint32_t queries = g - i < 4 ? g - i : 4;
        float *dst = out + i * out_stride;
        for (uint32_t a = 0; a < queries; a++)
            query_i8_make(bytes + a, q + (size_t)(i + a) * dk, dk, 126);
        switch (queries) {
        case 4:
            score_all(4, bytes, dk, &c, dst, out_stride);
            break;
        case 3:
            score_all(3, bytes, dk, &c, dst, out_stride);
            break;
        case 2:
            score_all(2, bytes, dk, &c, dst, out_stride);
            break;
        default:
            score_all(1, bytes, dk, &c, dst, out_stride);
        }
    }
}
