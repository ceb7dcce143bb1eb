/* Scores of packed centroids with vpmaddubsw. It adds two products in 16 bits and saturates, so the
 * query's high term has 7 bits: 2 x 255 x 64 = 32,640 still fits. Half a line is 4 dimensions of 8
 * blocks. */
#include "kernels/cpu/query_i8.h"
#include "kernels/cpu/simd_avx2.h"

/* How far ahead lines are asked for: from memory into the second level, and from there into the
 * first. */
#define PREFETCH_FAR_BYTES  8192
#define PREFETCH_NEAR_BYTES 384

HRI_INLINE void store_scores(__m256i sum, const struct query_i8 *q, const float *step, float *out)
{
    sum = _mm256_sub_epi32(sum, _mm256_set1_epi32(q->excess));
    vf score = vf_mul(_mm256_cvtepi32_ps(sum), vf_set(q->step));
    vf_store(out, vf_mul(score, vf_load(step)));
}

/* One group of 16 blocks and `queries` queries. */
HRI_INLINE void score_group(const int queries, const struct query_i8 *q, uint32_t dk,
                            const uint8_t *codes, const float *step, float *out, size_t out_stride)
{
    const __m256i one = _mm256_set1_epi16(1), radix = _mm256_set1_epi16(128);
    __m256i sum[2][2];

    HRI_UNROLL
    for (int i = 0; i < queries; i++)
        sum[i][0] = sum[i][1] = _mm256_setzero_si256();
    for (uint32_t j = 0; j < dk; j += 4) {
        const uint8_t *at = codes + (size_t)j * 16;
        const __m256i line[2] = {_mm256_loadu_si256((const void *)at),
                                 _mm256_loadu_si256((const void *)(at + 32))};
        _mm_prefetch((const char *)at + PREFETCH_FAR_BYTES, _MM_HINT_T1);
        _mm_prefetch((const char *)at + PREFETCH_NEAR_BYTES, _MM_HINT_T0);
        HRI_UNROLL
        for (int i = 0; i < queries; i++) {
            const __m256i high = query_bytes(q[i].high + j), low = query_bytes(q[i].low + j);
            HRI_UNROLL
            for (int a = 0; a < 2; a++) {
                __m256i h = _mm256_madd_epi16(_mm256_maddubs_epi16(line[a], high), radix);
                __m256i l = _mm256_madd_epi16(_mm256_maddubs_epi16(line[a], low), one);
                sum[i][a] = _mm256_add_epi32(sum[i][a], _mm256_add_epi32(h, l));
            }
        }
    }
    HRI_UNROLL
    for (int i = 0; i < queries; i++) {
        store_scores(sum[i][0], q + i, step, out + i * out_stride);
        store_scores(sum[i][1], q + i, step + 8, out + i * out_stride + 8);
    }
}

void hri_avx2_score_centroids(const float *q, uint32_t g, uint32_t dk, struct hri_centroids c,
                              float *out, size_t out_stride)
{
    struct query_i8 bytes[HR_GROUP_MAX];

    for (uint32_t i = 0; i < g; i++)
        query_i8_make(bytes + i, q + (size_t)i * dk, dk, 64);
    for (uint32_t b = 0; b < c.n; b += 16) {
        const uint8_t *codes = c.codes + (size_t)b * dk;
        uint32_t i = 0;

        for (; i + 2 <= g; i += 2)
            score_group(2, bytes + i, dk, codes, c.step + b, out + i * out_stride + b, out_stride);
        if (i < g)
            score_group(1, bytes + i, dk, codes, c.step + b, out + i * out_stride + b, out_stride);
    }
}
