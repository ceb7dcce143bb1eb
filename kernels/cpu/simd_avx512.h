/* A vector of 16 floats (AVX-512 F, BW, VL, DQ). Same names as simd_avx2.h. */
#ifndef HRI_SIMD_AVX512_H
#define HRI_SIMD_AVX512_H

#include "kernels/cpu/simd_common.h"

#define HRI_OP(name) hri_avx512_##name
#define VN           16
#define TILE_BYTES   24576u /* of a tile of rows */
/* Registers the blocks may use: rows x queries of a dot product, queries x vectors of a sum, rows x
 * vectors of a product. */
#define DOT_QUERIES     4
#define SUM_QUERIES     4
#define GEMM_ROWS       12
#define GEMM_ROWS_SMALL 4

typedef __m512 vf;

HRI_INLINE vf vf_zero(void)
{
    return _mm512_setzero_ps();
}
HRI_INLINE vf vf_set(float x)
{
    return _mm512_set1_ps(x);
}
HRI_INLINE vf vf_load(const float *p)
{
    return _mm512_loadu_ps(p);
}
HRI_INLINE void vf_store(float *p, vf x)
{
    _mm512_storeu_ps(p, x);
}
/* The first n lanes, 0..VN; the others are 0 and are not touched in memory. */
HRI_INLINE vf vf_load_n(const float *p, uint32_t n)
{
    return _mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1u), p);
}
/* The same; the others are -INFINITY. */
HRI_INLINE vf vf_load_logits(const float *p, uint32_t n)
{
    return _mm512_mask_loadu_ps(vf_set(-INFINITY), (__mmask16)((1u << n) - 1u), p);
}
HRI_INLINE void vf_store_n(float *p, vf x, uint32_t n)
{
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1u), x);
}
HRI_INLINE vf vf_add(vf a, vf b)
{
    return _mm512_add_ps(a, b);
}
HRI_INLINE vf vf_sub(vf a, vf b)
{
    return _mm512_sub_ps(a, b);
}
HRI_INLINE vf vf_mul(vf a, vf b)
{
    return _mm512_mul_ps(a, b);
}
HRI_INLINE vf vf_div(vf a, vf b)
{
    return _mm512_div_ps(a, b);
}
/* a * b + c */
HRI_INLINE vf vf_fma(vf a, vf b, vf c)
{
    return _mm512_fmadd_ps(a, b, c);
}
/* c - a * b */
HRI_INLINE vf vf_fnma(vf a, vf b, vf c)
{
    return _mm512_fnmadd_ps(a, b, c);
}
/* Where a is NaN the result is b. */
HRI_INLINE vf vf_max(vf a, vf b)
{
    return _mm512_max_ps(a, b);
}
HRI_INLINE vf vf_min(vf a, vf b)
{
    return _mm512_min_ps(a, b);
}
HRI_INLINE vf vf_abs(vf a)
{
    return _mm512_abs_ps(a);
}
HRI_INLINE float vf_sum(vf a)
{
    return _mm512_reduce_add_ps(a);
}
HRI_INLINE float vf_largest(vf a)
{
    return _mm512_reduce_max_ps(a);
}
/* The four sums of four vectors. */
HRI_INLINE __m128 vf_sum4(vf a, vf b, vf c, vf d)
{
    vf ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    vf cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    vf abcd = _mm512_add_ps(
        _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd))),
        _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd))));
    __m256 half = _mm256_add_ps(_mm512_castps512_ps256(abcd), _mm512_extractf32x8_ps(abcd, 1));
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}
/* The four largest lanes of four vectors. */
HRI_INLINE __m128 vf_largest4(vf a, vf b, vf c, vf d)
{
    vf ab = vf_max(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    vf cd = vf_max(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    vf abcd =
        vf_max(_mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd))),
               _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd))));
    __m256 half = _mm256_max_ps(_mm512_castps512_ps256(abcd), _mm512_extractf32x8_ps(abcd, 1));
    return _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}
/* e^x for x <= 100; 0 below -86, where subnormal weights would slow every product, and for NaN. */
HRI_INLINE vf vf_exp(vf x)
{
    const __mmask16 keep = _mm512_cmp_ps_mask(x, vf_set(-86.0f), _CMP_GE_OQ);
    vf n = vf_sub(vf_fma(x, vf_set(EXP_LOG2E), vf_set(EXP_ROUNDER)), vf_set(EXP_ROUNDER));
    vf r = vf_fnma(n, vf_set(EXP_LN2_LOW), vf_fnma(n, vf_set(EXP_LN2_HIGH), x));
    vf p = vf_fma(r, vf_set(EXP_C5), vf_set(EXP_C4));
    p = vf_fma(r, p, vf_set(EXP_C3));
    p = vf_fma(r, p, vf_set(EXP_C2));
    p = vf_fma(r, p, vf_set(1.0f));
    p = vf_fma(r, p, vf_set(1.0f));
    return _mm512_maskz_scalef_ps(keep, p, n);
}
/* VN elements from p + index as floats. */
HRI_INLINE vf vf_load_element(const void *p, enum element element, size_t index)
{
    switch (element) {
    case ELEMENT_F16:
        return _mm512_cvtph_ps(_mm256_loadu_si256((const void *)((const uint16_t *)p + index)));
    case ELEMENT_BF16: {
        __m256i half = _mm256_loadu_si256((const void *)((const uint16_t *)p + index));
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
    }
    case ELEMENT_I8: {
        __m128i byte = _mm_loadu_si128((const void *)((const int8_t *)p + index));
        return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(byte));
    }
    default:
        return vf_load((const float *)p + index);
    }
}
/* The last 8 elements of a width that is not a multiple of 16; the other lanes are 0. */
HRI_INLINE vf vf_load_element_half(const void *p, enum element element, size_t index)
{
    switch (element) {
    case ELEMENT_F16:
        return _mm512_zextps256_ps512(
            _mm256_cvtph_ps(_mm_loadu_si128((const void *)((const uint16_t *)p + index))));
    case ELEMENT_BF16: {
        __m128i half = _mm_loadu_si128((const void *)((const uint16_t *)p + index));
        return _mm512_zextps256_ps512(
            _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16)));
    }
    case ELEMENT_I8: {
        __m128i byte = _mm_loadl_epi64((const void *)((const int8_t *)p + index));
        return _mm512_zextps256_ps512(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(byte)));
    }
    default:
        return _mm512_zextps256_ps512(_mm256_loadu_ps((const float *)p + index));
    }
}
/* Two vectors as even lanes and odd lanes, and back. */
HRI_INLINE void vf_unzip(vf *a, vf *b)
{
    const __m512i even =
        _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const vf x = *a, y = *b;
    *a = _mm512_permutex2var_ps(x, even, y);
    *b = _mm512_permutex2var_ps(x, _mm512_add_epi32(even, _mm512_set1_epi32(1)), y);
}
HRI_INLINE void vf_zip(vf *a, vf *b)
{
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const vf x = *a, y = *b;
    *a = _mm512_permutex2var_ps(x, low, y);
    *b = _mm512_permutex2var_ps(x, _mm512_add_epi32(low, _mm512_set1_epi32(8)), y);
}
/* 2 VN elements in the cheapest order: bfloat16 comes unzipped, everything else in sequence. */
HRI_INLINE void vf_load_pair(const void *p, enum element element, size_t index, vf *a, vf *b)
{
    if (element == ELEMENT_BF16) {
        __m512i both = _mm512_loadu_si512((const void *)((const uint16_t *)p + index));
        *a = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
        *b = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32((int)0xffff0000u)));
    } else {
        *a = vf_load_element(p, element, index);
        *b = vf_load_element(p, element, index + VN);
    }
}
/* VN floats as 16-bit floats, to nearest even; NaN stays NaN. */
HRI_INLINE void vf_store_f16(uint16_t *p, vf x)
{
    _mm256_storeu_si256((void *)p,
                        _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
HRI_INLINE void vf_store_bf16(uint16_t *p, vf x)
{
    /* Not vcvtneps2bf16: it would flush subnormals. */
    __m512i bits = _mm512_castps_si512(x);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    __mmask16 is_nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    rounded = _mm512_mask_or_epi32(rounded, is_nan, bits, _mm512_set1_epi32(0x400000));
    _mm256_storeu_si256((void *)p, _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
}
/* Rounds to nearest even, cut to +-127. */
HRI_INLINE void vf_store_i8(int8_t *p, vf x)
{
    x = vf_min(vf_max(x, vf_set(-127.0f)), vf_set(127.0f));
    _mm_storeu_si128((void *)p, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x)));
}
/* Rows become columns. */
HRI_INLINE void vf_transpose(vf r[VN])
{
    vf t[VN];

    HRI_UNROLL
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    HRI_UNROLL
    for (int i = 0; i < 16; i += 4) {
        __m512d a = _mm512_castps_pd(t[i]), b = _mm512_castps_pd(t[i + 1]);
        __m512d c = _mm512_castps_pd(t[i + 2]), d = _mm512_castps_pd(t[i + 3]);
        r[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
        r[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
        r[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
        r[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
    }
    /* r[4a + c], lane 4l + e, now holds row 4a + e, column 4l + c. */
    HRI_UNROLL
    for (int c = 0; c < 4; c++) {
        vf low = _mm512_shuffle_f32x4(r[c], r[4 + c], 0x44),
           high = _mm512_shuffle_f32x4(r[c], r[4 + c], 0xee);
        vf low2 = _mm512_shuffle_f32x4(r[8 + c], r[12 + c], 0x44);
        vf high2 = _mm512_shuffle_f32x4(r[8 + c], r[12 + c], 0xee);
        t[c] = _mm512_shuffle_f32x4(low, low2, 0x88);
        t[4 + c] = _mm512_shuffle_f32x4(low, low2, 0xdd);
        t[8 + c] = _mm512_shuffle_f32x4(high, high2, 0x88);
        t[12 + c] = _mm512_shuffle_f32x4(high, high2, 0xdd);
    }
    HRI_UNROLL
    for (int i = 0; i < 16; i++)
        r[i] = t[i];
}

/* Four bytes of a query in every lane. */
HRI_INLINE __m512i query_bytes(const int8_t *p)
{
    int32_t word;
    memcpy(&word, p, sizeof word);
    return _mm512_set1_epi32(word);
}

/* The intrinsic, but gcc 12 copies the sums to other registers and back around it. */
HRI_INLINE __m512i add_products(__m512i sum, __m512i codes, __m512i query)
{
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(codes), "v"(query));
    return sum;
}

#endif
