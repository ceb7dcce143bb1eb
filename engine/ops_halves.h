/*
 * Dot products of quantised rows with activations as pairs of 16-bit integers, for AVX2: a weight needs no float of its own, and
 * one vpmaddwd multiplies sixteen. An activation is step * (high + low / 32768), which is as exact as its float beside the largest
 * of its 32. The high halves alone are not measurably faster (memory bounds both), and rows decoded one by one would differ from the same
 * rows of a prefill, which meet floats.
 * Include after the operations that ops_dot.h lists, before it. Besides those:
 *
 *   vf_load_first(p, n)         the first n < LANES floats, zeros after them
 *   read_scales(b, s, n, d, m)  the first two 16-bit floats of n blocks, s bytes apart; writes
 *                               whole vectors
 */
#include "engine/ops.h"
#include "engine/quant.h"

/* Where weight = d q + m, the m part is m times a sum of activations, which the caller has. The
 * 16-bit scales of up to so many blocks are turned into floats first: one by one between the products
 * they would cost as much as the products. */
#define PIECE_BLOCKS 64

static inline void store_halves(int16_t *halves, __m256i a, __m256i b)
{
    _mm256_storeu_si256((__m256i *)halves,
                        _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8));
}

/* What x has beside its rounded part, in 1/32768. */
static inline __m256i low_half(__m256 x, __m256i high)
{
    __m256 rest = _mm256_sub_ps(x, _mm256_cvtepi32_ps(high));

    return _mm256_cvtps_epi32(_mm256_mul_ps(rest, _mm256_set1_ps(32768.0f)));
}

/* Not finite: the step is NaN, and so is all that meets it. */
static void halve(const float *x, uint32_t n, const float *sums, int16_t *halves, float *steps)
{
    const __m256 sign = _mm256_set1_ps(-0.0f);

    for (uint32_t i = 0; i < n / HRE_SUM_GROUP; i++, x += 32, halves += 64) {
        __m256 v[4], most = _mm256_setzero_ps();

        for (int j = 0; j < 4; j++) {
            v[j] = _mm256_loadu_ps(x + 8 * j);
            most = _mm256_max_ps(_mm256_andnot_ps(sign, v[j]), most);
        }
        __m128 m = _mm_max_ps(_mm256_castps256_ps128(most), _mm256_extractf128_ps(most, 1));
        m = _mm_max_ps(m, _mm_movehl_ps(m, m));
        float largest = _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
        __m256 scale = _mm256_set1_ps(largest > 1e-30f ? 32767.0f / largest : 0.0f);

        steps[i] = (largest > 1e-30f ? largest / 32767.0f : 0.0f) + 0.0f * sums[i];
        for (int j = 0; j < 4; j += 2) {
            __m256 a = _mm256_mul_ps(v[j], scale), b = _mm256_mul_ps(v[j + 1], scale);
            __m256i a_high = _mm256_cvtps_epi32(a), b_high = _mm256_cvtps_epi32(b);

            store_halves(halves + 8 * j, a_high, b_high);
            store_halves(halves + 32 + 8 * j, low_half(a, a_high), low_half(b, b_high));
        }
    }
}

static inline __attribute__((always_inline)) VI halves_at(const int16_t *x)
{
    return _mm256_loadu_si256((const __m256i *)x);
}

/* Sums of products of 32 weights, sixteen bits each, with high halves and with low ones. */
static inline __attribute__((always_inline)) void add_halves(VI w0, VI w1, const int16_t *x,
                                                             VF scale, VF *high, VF *low)
{
    VI h = _mm256_add_epi32(_mm256_madd_epi16(w0, halves_at(x)),
                            _mm256_madd_epi16(w1, halves_at(x + 16)));
    VI l = _mm256_add_epi32(_mm256_madd_epi16(w0, halves_at(x + 32)),
                            _mm256_madd_epi16(w1, halves_at(x + 48)));

    *high = vf_fma(scale, _mm256_cvtepi32_ps(h), *high);
    *low = vf_fma(scale, _mm256_cvtepi32_ps(l), *low);
}

static inline __attribute__((always_inline)) void group_q4(const uint8_t *q, const int16_t *x,
                                                           VF scale, VF *high, VF *low)
{
    VI v = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)q));

    add_halves(_mm256_and_si256(v, _mm256_set1_epi16(15)), _mm256_srli_epi16(v, 4), x, scale, high,
               low);
}

static inline __attribute__((always_inline)) void group_q8(const int8_t *q, const int16_t *x,
                                                           VF scale, VF *high, VF *low)
{
    add_halves(_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)q)),
               _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(q + 16))), x, scale, high,
               low);
}

#define ROW_BLOCKS(type, group, offset_of)                                                         \
    static inline __attribute__((always_inline)) float row_##type(const void *row, uint32_t n,     \
                                                                  const struct hre_activations *a) \
    {                                                                                              \
        const struct block_##type *b = row;                                                        \
        const int16_t *x = a->halves;                                                              \
        const float *sums = a->sums, *steps = a->steps;                                            \
        VF high[2] = {vf_zero(), vf_zero()}, low[2] = {vf_zero(), vf_zero()};                      \
        VF offset = vf_zero();                                                                     \
        float d[PIECE_BLOCKS], m[PIECE_BLOCKS], scale[PIECE_BLOCKS];                               \
                                                                                                   \
        for (uint32_t left = n / QUANT_BLOCK; left;) {                                             \
            uint32_t piece = left < PIECE_BLOCKS ? left : PIECE_BLOCKS;                            \
                                                                                                   \
            read_scales(b, sizeof(*b), piece, d, m);                                               \
            products(d, steps, piece, scale);                                                      \
            offset = offset_of;                                                                    \
            uint32_t i = 0;                                                                        \
            for (; i + 2 <= piece; i += 2, x += 4 * QUANT_BLOCK) {                                 \
                group(b[i].q, x, vf_set1(scale[i]), &high[0], &low[0]);                            \
                group(b[i + 1].q, x + 2 * QUANT_BLOCK, vf_set1(scale[i + 1]), &high[1], &low[1]);  \
            }                                                                                      \
            for (; i < piece; i++, x += 2 * QUANT_BLOCK) {                                         \
                group(b[i].q, x, vf_set1(scale[i]), &high[0], &low[0]);                            \
            }                                                                                      \
            b += piece;                                                                            \
            sums += piece;                                                                         \
            steps += piece;                                                                        \
            left -= piece;                                                                         \
        }                                                                                          \
        (void)sums;                                                                                \
        low[0] = vf_mul(vf_add(low[0], low[1]), vf_set1(1.0f / 32768.0f));                         \
        return vf_sum(vf_add(vf_add(high[0], high[1]), vf_add(low[0], offset)));                   \
    }

/* c = a * b; a and c have room for whole vectors. */
static inline __attribute__((always_inline)) void products(const float *a, const float *b,
                                                           uint32_t n, float *c)
{
    uint32_t i = 0;

    for (; i + LANES <= n; i += LANES) {
        vf_store(c + i, vf_mul(vf_load(a + i), vf_load(b + i)));
    }
    if (i < n) {
        vf_store(c + i, vf_mul(vf_load(a + i), vf_load_first(b + i, n - i)));
    }
}

/* offset + sum over the piece of scale[i] * sums[i] */
static inline __attribute__((always_inline)) VF add_products(VF offset, const float *scale,
                                                             const float *sums, uint32_t n)
{
    uint32_t i = 0;

    for (; i + LANES <= n; i += LANES) {
        offset = vf_fma(vf_load(scale + i), vf_load(sums + i), offset);
    }
    return i < n ? vf_fma(vf_load_first(scale + i, n - i), vf_load_first(sums + i, n - i), offset)
                 : offset;
}

ROW_BLOCKS(q4_0, group_q4, vf_fma(vf_set1(-8.0f), add_products(vf_zero(), d, sums, piece), offset))
ROW_BLOCKS(q4_1, group_q4, add_products(offset, m, sums, piece))
ROW_BLOCKS(q8_0, group_q8, offset)
