/* Compiled with -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mfma -mf16c; used where the
 * CPU has them. */
#include <immintrin.h>
#include <stddef.h>

#define BODY_LANES       16
#define BODY_DIGITS      digits
#define BODY_DOT_GROUPS  DOT_GROUPS
#define BODY_TILE_GROUPS TILE_GROUPS_TABLE
#include "engine/ops_body.h"

#define LANES 16
typedef __m512 VF;
typedef __m512i VI;

static inline VF vf_zero(void)
{
    return _mm512_setzero_ps();
}
static inline VF vf_set1(float x)
{
    return _mm512_set1_ps(x);
}
static inline VF vf_load(const float *p)
{
    return _mm512_loadu_ps(p);
}
static inline VF vf_fma(VF a, VF b, VF c)
{
    return _mm512_fmadd_ps(a, b, c);
}
static inline VF vf_mul(VF a, VF b)
{
    return _mm512_mul_ps(a, b);
}
static inline VF vf_add(VF a, VF b)
{
    return _mm512_add_ps(a, b);
}
static inline void vf_store(float *p, VF a)
{
    _mm512_storeu_ps(p, a);
}
static inline float vf_sum(VF a)
{
    return _mm512_reduce_add_ps(a);
}
static inline VI vi_u8(const uint8_t *p)
{
    return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p));
}
/* The permutation looks at the low four bits of its index only: a table of 0 to 15 masks and
 * converts at once. */
static inline VF vf_low4(VI v)
{
    const VF digits = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);

    return _mm512_permutexvar_ps(v, digits);
}
/* The integers come from bytes: nothing lies above their high nibble. A shift and a conversion use
 * other ports than the permutation. */
static inline VF vf_high4(VI v)
{
    return _mm512_cvtepi32_ps(_mm512_srli_epi32(v, 4));
}
#define vf_q6(l, s, h, t)                                                                          \
    _mm512_cvtepi32_ps(_mm512_or_si512(                                                            \
        _mm512_and_si512(_mm512_srli_epi32(l, s), _mm512_set1_epi32(15)),                          \
        _mm512_slli_epi32(_mm512_and_si512(_mm512_srli_epi32(h, t), _mm512_set1_epi32(3)), 4)))
static inline VF vf_f16(const uint16_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
static inline VF vf_bf16(const uint16_t *p)
{
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16));
}
static inline float scalar_f16(uint16_t h)
{
    return _cvtsh_ss(h);
}

/* dst[j][i] = src[i][j] for a square of LANES, strides in floats. */
static inline void transpose(const float *src, size_t src_stride, float *dst, size_t dst_stride)
{
    VF a[16], b[16];

    for (int i = 0; i < 16; i++) {
        a[i] = vf_load(src + (size_t)i * src_stride);
    }
    for (int i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        for (int j = 0; j < 2; j++) {
            __m512d low = _mm512_castps_pd(b[i + j]), high = _mm512_castps_pd(b[i + j + 2]);

            a[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
            a[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
        }
    }
    /* a[4 g + c] now holds columns c, c + 4, c + 8, c + 12 of rows 4 g .. 4 g + 3, one column per
     * 128 bits. */
    for (int c = 0; c < 4; c++) {
        VF low0 = _mm512_shuffle_f32x4(a[c], a[4 + c], 0x88),
           low1 = _mm512_shuffle_f32x4(a[8 + c], a[12 + c], 0x88);
        VF high0 = _mm512_shuffle_f32x4(a[c], a[4 + c], 0xdd),
           high1 = _mm512_shuffle_f32x4(a[8 + c], a[12 + c], 0xdd);

        vf_store(dst + (size_t)c * dst_stride, _mm512_shuffle_f32x4(low0, low1, 0x88));
        vf_store(dst + (size_t)(c + 4) * dst_stride, _mm512_shuffle_f32x4(high0, high1, 0x88));
        vf_store(dst + (size_t)(c + 8) * dst_stride, _mm512_shuffle_f32x4(low0, low1, 0xdd));
        vf_store(dst + (size_t)(c + 12) * dst_stride, _mm512_shuffle_f32x4(high0, high1, 0xdd));
    }
}

/* 12 x 2 accumulators, two vectors of weights and a broadcast: 27 of 32 registers. */
#define TILE_M 12
#include "engine/ops_vnni.h"

#include "engine/ops_dot.h"
#include "engine/ops_tile.h"

BODY_TABLE(avx512, DOT_TABLE);
