/* Scores of packed centroids with vpmaddwd: a mask and a shift make 16-bit numbers of every other
 * dimension of a line, which are multiplied by a query of 16 bits. Sums fit 32 bits up to 256
 * dimensions: 255 x 32767 x 256 < 2^31. Half a line is 4 dimensions of 8 blocks. */
#include "kernels/cpu/simd_avx2.h"

/* How far ahead lines are asked for: from memory into the second level, and from there into the
 * first. */
#define PREFETCH_FAR_BYTES  8192
#define PREFETCH_NEAR_BYTES 384

/* A query as step * word. The centroids' codes are unsigned, 128 meaning 0, so a product comes out
 * too large by 128 sum(word). */
struct query_i16 {
    int16_t words[HRI_DIM_MAX]; /* of four dimensions 0 and 2, then 1 and 3 */
    float step;
    int32_t excess; /* 128 sum(word) */
};

static void query_make(struct query_i16 *out, const float *q, uint32_t dk)
{
    float largest = 0.0f;
    int32_t sum = 0;

    for (uint32_t j = 0; j < dk; j++)
        largest = fmaxf(largest, fabsf(q[j]));
    out->step = largest < HRI_STEP_MIN ? 0.0f : largest / 32767.0f;
    const float inverse = out->step > 0.0f ? 1.0f / out->step : 0.0f;
    for (uint32_t j = 0; j < dk; j++) {
        const uint32_t place = (j & ~3u) + (j & 1) * 2 + (j & 2) / 2;
        int word = (int)lrintf(q[j] * inverse);
        word = word > 32767 ? 32767 : word < -32767 ? -32767 : word;
        out->words[place] = (int16_t)word;
        sum += word;
    }
    out->excess = 128 * sum;
}

HRI_INLINE __m256i two_words(const int16_t *p)
{
    int32_t both;
    memcpy(&both, p, sizeof both);
    return _mm256_set1_epi32(both);
}

HRI_INLINE void store_scores(__m256i sum, const struct query_i16 *q, const float *step, float *out)
{
    sum = _mm256_sub_epi32(sum, _mm256_set1_epi32(q->excess));
    vf score = vf_mul(_mm256_cvtepi32_ps(sum), vf_set(q->step));
    vf_store(out, vf_mul(score, vf_load(step)));
}

/* sum + products of 16-bit pairs; the empty instruction keeps gcc from adding products among
 * themselves first, for which it runs out of registers. */
HRI_INLINE __m256i add_pairs(__m256i sum, __m256i codes, __m256i query)
{
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(codes, query));
    __asm__("" : "+x"(sum));
    return sum;
}

/* One group of 16 blocks and `queries` queries. */
HRI_INLINE void score_group(const int queries, const struct query_i16 *q, uint32_t dk,
                            const uint8_t *codes, const float *step, float *out, size_t out_stride)
{
    const __m256i mask = _mm256_set1_epi16(255);
    __m256i sum[4][2];

    HRI_UNROLL
    for (int i = 0; i < queries; i++)
        sum[i][0] = sum[i][1] = _mm256_setzero_si256();
    for (uint32_t j = 0; j < dk; j += 4) {
        const uint8_t *at = codes + (size_t)j * 16;
        _mm_prefetch((const char *)at + PREFETCH_FAR_BYTES, _MM_HINT_T1);
        _mm_prefetch((const char *)at + PREFETCH_NEAR_BYTES, _MM_HINT_T0);
        HRI_UNROLL
        for (int odd = 0; odd < 2; odd++) {
            __m256i half[2];
            HRI_UNROLL
            for (int a = 0; a < 2; a++) {
                const __m256i line = _mm256_loadu_si256((const void *)(at + 32 * a));
                half[a] = odd ? _mm256_srli_epi16(line, 8) : _mm256_and_si256(line, mask);
            }
            HRI_UNROLL
            for (int i = 0; i < queries; i++) {
                const __m256i words = two_words(q[i].words + j + 2 * odd);
                sum[i][0] = add_pairs(sum[i][0], half[0], words);
                sum[i][1] = add_pairs(sum[i][1], half[1], words);
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
    struct query_i16 words[HR_GROUP_MAX];

    for (uint32_t i = 0; i < g; i++)
        query_make(words + i, q + (size_t)i * dk, dk);
    for (uint32_t b = 0; b < c.n; b += 16) {
        const uint8_t *codes = c.codes + (size_t)b * dk;
        const float *step = c.step + b;
        uint32_t i = 0;

        for (; i + 4 <= g; i += 4)
            score_group(4, words + i, dk, codes, step, out + i * out_stride + b, out_stride);
        if (g - i == 3)
            score_group(3, words + i, dk, codes, step, out + i * out_stride + b, out_stride);
        else if (g - i == 2)
            score_group(2, words + i, dk, codes, step, out + i * out_stride + b, out_stride);
        else if (g - i == 1)
            score_group(1, words + i, dk, codes, step, out + i * out_stride + b, out_stride);
    }
}
