/* A vector of 8 floats (AVX2, FMA, F16C). Same names as simd_avx512.h. */
#ifndef HRI_SIMD_AVX2_H
#define HRI_SIMD_AVX2_H

#include "kernels/cpu/simd_common.h"

#define HRI_OP(name) hri_avx2_##name
#define VN           8
/* Bytes of a tile of rows: two threads of a core share its 32 KiB. */
#define TILE_BYTES 16384u
/* Registers the blocks may use: rows x vectors of a product. */
#define GEMM_ROWS       6
#define GEMM_ROWS_SMALL 2

typedef __m256 vf;

HRI_INLINE vf vf_zero(void)
{
    return _mm256_setzero_ps();
}
HRI_INLINE vf vf_set(float x)
{
    return _mm256_set1_ps(x);
}
HRI_INLINE vf vf_load(const float *p)
{
    return _mm256_loadu_ps(p);
}
HRI_INLINE void vf_store(float *p, vf x)
{
    _mm256_storeu_ps(p, x);
}
HRI_INLINE __m256i vf_mask(uint32_t n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
/* The first n lanes, 0..VN; the others are 0 and are not touched in memory. Most often all are meant, and a masked store takes an AMD Zen
 * 3 some twenty steps: it was a sixth of a prefill. */
HRI_INLINE vf vf_load_n(const float *p, uint32_t n)
{
    if (n >= VN)
        return vf_load(p);
    return _mm256_maskload_ps(p, vf_mask(n));
}
/* The same; the others are -INFINITY. */
HRI_INLINE vf vf_load_logits(const float *p, uint32_t n)
{
    if (n >= VN)
        return vf_load(p);
    const __m256i mask = vf_mask(n);
    return _mm256_blendv_ps(vf_set(-INFINITY), _mm256_maskload_ps(p, mask),
                            _mm256_castsi256_ps(mask));
}
HRI_INLINE void vf_store_n(float *p, vf x, uint32_t n)
{
    if (n >= VN) {
        vf_store(p, x);
        return;
    }
    _mm256_maskstore_ps(p, vf_mask(n), x);
}
HRI_INLINE vf vf_add(vf a, vf b)
{
    return _mm256_add_ps(a, b);
}
HRI_INLINE vf vf_sub(vf a, vf b)
{
    return _mm256_sub_ps(a, b);
}
HRI_INLINE vf vf_mul(vf a, vf b)
{
    return _mm256_mul_ps(a, b);
}
HRI_INLINE vf vf_div(vf a, vf b)
{
    return _mm256_div_ps(a, b);
}
/* a * b + c */
HRI_INLINE vf vf_fma(vf a, vf b, vf c)
{
    return _mm256_fmadd_ps(a, b, c);
}
/* c - a * b */
HRI_INLINE vf vf_fnma(vf a, vf b, vf c)
{
    return _mm256_fnmadd_ps(a, b, c);
}
/* Where a is NaN the result is b. */
HRI_INLINE vf vf_max(vf a, vf b)
{
    return _mm256_max_ps(a, b);
}
HRI_INLINE vf vf_min(vf a, vf b)
{
    return _mm256_min_ps(a, b);
}
HRI_INLINE vf vf_abs(vf a)
{
    return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a);
}
HRI_INLINE float vf_sum(vf a)
{
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
HRI_INLINE float vf_largest(vf a)
{
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}
/* The four sums, and the four largest lanes, of four vectors. */
HRI_INLINE __m128 vf_sum4(vf a, vf b, vf c, vf d)
{
    vf abcd = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    return _mm_add_ps(_mm256_castps256_ps128(abcd), _mm256_extractf128_ps(abcd, 1));
}
HRI_INLINE __m128 vf_largest4(vf a, vf b, vf c, vf d)
{
    vf ab = _mm256_max_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
    vf cd = _mm256_max_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
    vf abcd = _mm256_max_ps(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xee));
    return _mm_max_ps(_mm256_castps256_ps128(abcd), _mm256_extractf128_ps(abcd, 1));
}
/* e^x for x <= 100; 0 below -86 and for NaN. */
HRI_INLINE vf vf_exp(vf x)
{
    /* Twice the value of 2^(n-1), so that n = 128 overflows as it should and no exponent below -125
     * is needed. */
    const vf tiny = vf_set(-86.0f);
    vf keep = _mm256_cmp_ps(x, tiny, _CMP_GE_OQ);
    x = vf_min(vf_max(x, tiny), vf_set(89.0f));
    vf n = vf_sub(vf_fma(x, vf_set(EXP_LOG2E), vf_set(EXP_ROUNDER)), vf_set(EXP_ROUNDER));
    vf r = vf_fnma(n, vf_set(EXP_LN2_LOW), vf_fnma(n, vf_set(EXP_LN2_HIGH), x));
    vf p = vf_fma(r, vf_set(2.0f * EXP_C5), vf_set(2.0f * EXP_C4));
    p = vf_fma(r, p, vf_set(2.0f * EXP_C3));
    p = vf_fma(r, p, vf_set(2.0f * EXP_C2));
    p = vf_fma(r, p, vf_set(2.0f));
    p = vf_fma(r, p, vf_set(2.0f));
    __m256i exponent =
        _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(126)), 23);
    return _mm256_and_ps(keep, vf_mul(p, _mm256_castsi256_ps(exponent)));
}
/* VN elements from p + index as floats. */
HRI_INLINE vf vf_load_element(const void *p, enum element element, size_t index)
{
    switch (element) {
    case ELEMENT_F16:
        return _mm256_cvtph_ps(_mm_loadu_si128((const void *)((const uint16_t *)p + index)));
    case ELEMENT_BF16: {
        __m128i half = _mm_loadu_si128((const void *)((const uint16_t *)p + index));
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
    }
    case ELEMENT_I8: {
        __m128i byte = _mm_loadl_epi64((const void *)((const int8_t *)p + index));
        return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(byte));
    }
    default:
        return vf_load((const float *)p + index);
    }
}
/* Widths are multiples of 8: there is no half vector. */
HRI_INLINE vf vf_load_element_half(const void *p, enum element element, size_t index)
{
    return vf_load_element(p, element, index);
}
/* Two vectors as even lanes and odd lanes, and back. */
HRI_INLINE void vf_unzip(vf *a, vf *b)
{
    const vf low = _mm256_permute2f128_ps(*a, *b, 0x20),
             high = _mm256_permute2f128_ps(*a, *b, 0x31);
    const vf even = _mm256_shuffle_ps(low, high, 0x88), odd = _mm256_shuffle_ps(low, high, 0xdd);
    *a = even;
    *b = odd;
}
HRI_INLINE void vf_zip(vf *a, vf *b)
{
    const vf low = _mm256_unpacklo_ps(*a, *b), high = _mm256_unpackhi_ps(*a, *b);
    *a = _mm256_permute2f128_ps(low, high, 0x20);
    *b = _mm256_permute2f128_ps(low, high, 0x31);
}
/* 2 VN elements in the cheapest order: bfloat16 comes unzipped, everything else in sequence. One half of such a pair, and both. */
HRI_INLINE vf vf_load_first(const void *p, enum element element, size_t index)
{
    if (element != ELEMENT_BF16)
        return vf_load_element(p, element, index);
    __m256i both = _mm256_loadu_si256((const void *)((const uint16_t *)p + index));
    return _mm256_castsi256_ps(_mm256_slli_epi32(both, 16));
}
HRI_INLINE vf vf_load_second(const void *p, enum element element, size_t index)
{
    if (element != ELEMENT_BF16)
        return vf_load_element(p, element, index + VN);
    __m256i both = _mm256_loadu_si256((const void *)((const uint16_t *)p + index));
    return _mm256_castsi256_ps(_mm256_and_si256(both, _mm256_set1_epi32((int)0xffff0000u)));
}
HRI_INLINE void vf_load_pair(const void *p, enum element element, size_t index, vf *a, vf *b)
{
    *a = vf_load_first(p, element, index);
    *b = vf_load_second(p, element, index);
}
/* VN floats as 16-bit floats, to nearest even; NaN stays NaN. */
HRI_INLINE void vf_store_f16(uint16_t *p, vf x)
{
    _mm_storeu_si128((void *)p, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
HRI_INLINE void vf_store_bf16(uint16_t *p, vf x)
{
    __m256i bits = _mm256_castps_si256(x);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
    __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    vf is_nan = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
    rounded = _mm256_castps_si256(
        _mm256_blendv_ps(_mm256_castsi256_ps(rounded), _mm256_castsi256_ps(quiet), is_nan));
    rounded = _mm256_srli_epi32(rounded, 16);
    _mm_storeu_si128((void *)p, _mm_packus_epi32(_mm256_castsi256_si128(rounded),
                                                 _mm256_extracti128_si256(rounded, 1)));
}
/* Rounds to nearest even, cut to +-127. */
HRI_INLINE void vf_store_i8(int8_t *p, vf x)
{
    x = vf_min(vf_max(x, vf_set(-127.0f)), vf_set(127.0f));
    __m256i word = _mm256_cvtps_epi32(x);
    __m128i half = _mm_packs_epi32(_mm256_castsi256_si128(word), _mm256_extracti128_si256(word, 1));
    _mm_storel_epi64((void *)p, _mm_packs_epi16(half, half));
}
/* Rows become columns. */
HRI_INLINE void vf_transpose(vf r[VN])
{
    vf t[VN];

    HRI_UNROLL
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    HRI_UNROLL
    for (int i = 0; i < 8; i += 4) {
        r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
        r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
        r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    HRI_UNROLL
    for (int c = 0; c < 4; c++) {
        t[c] = _mm256_permute2f128_ps(r[c], r[4 + c], 0x20);
        t[4 + c] = _mm256_permute2f128_ps(r[c], r[4 + c], 0x31);
    }
    HRI_UNROLL
    for (int i = 0; i < 8; i++)
        r[i] = t[i];
}

/* Four bytes of a query in every lane. */
HRI_INLINE __m256i query_bytes(const int8_t *p)
{
    int32_t word;
    memcpy(&word, p, sizeof word);
    return _mm256_set1_epi32(word);
}

#endif
