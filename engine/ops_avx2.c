/* Compiled with -mavx2 -mfma -mf16c; used where the CPU has them. */
#include <immintrin.h>

#define BODY_LANES 8
#define BODY_HALVE halve
#include "engine/ops_body.h"

#define LANES 8
typedef __m256 VF;
typedef __m256i VI;

static inline VF vf_zero(void)
{
    return _mm256_setzero_ps();
}
static inline VF vf_set1(float x)
{
    return _mm256_set1_ps(x);
}
static inline VF vf_load(const float *p)
{
    return _mm256_loadu_ps(p);
}
static inline VF vf_fma(VF a, VF b, VF c)
{
    return _mm256_fmadd_ps(a, b, c);
}
static inline VF vf_mul(VF a, VF b)
{
    return _mm256_mul_ps(a, b);
}
static inline VF vf_add(VF a, VF b)
{
    return _mm256_add_ps(a, b);
}
static inline void vf_store(float *p, VF a)
{
    _mm256_storeu_ps(p, a);
}
static inline float vf_sum(VF a)
{
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));

    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
static inline VI vi_u8(const uint8_t *p)
{
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p));
}
static inline VF vf_low4(VI v)
{
    return _mm256_cvtepi32_ps(_mm256_and_si256(v, _mm256_set1_epi32(15)));
}
/* The integers come from bytes: nothing lies above their high nibble. */
static inline VF vf_high4(VI v)
{
    return _mm256_cvtepi32_ps(_mm256_srli_epi32(v, 4));
}
#define vf_q6(l, s, h, t)                                                                          \
    _mm256_cvtepi32_ps(_mm256_or_si256(                                                            \
        _mm256_and_si256(_mm256_srli_epi32(l, s), _mm256_set1_epi32(15)),                          \
        _mm256_slli_epi32(_mm256_and_si256(_mm256_srli_epi32(h, t), _mm256_set1_epi32(3)), 4)))
static inline VF vf_f16(const uint16_t *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}
static inline VF vf_bf16(const uint16_t *p)
{
    return _mm256_castsi256_ps(
        _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16));
}
/* Lanes below n as all ones. */
static inline __m256i first_lanes(uint32_t n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
static inline VF vf_load_first(const float *p, uint32_t n)
{
    return _mm256_maskload_ps(p, first_lanes(n));
}
/* Eight integers below 2^16, as 16-bit floats, to floats. */
static inline VF vf_of_halves(VI v)
{
    VI packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(v, v), 0x08);

    return _mm256_cvtph_ps(_mm256_castsi256_si128(packed));
}
static inline int pair_at(const char *p)
{
    int pair;

    memcpy(&pair, p, sizeof(pair));
    return pair;
}
/* The pairs of four blocks. */
static inline __m128i four_pairs(const char *p, size_t block_bytes)
{
    return _mm_setr_epi32(pair_at(p), pair_at(p + block_bytes), pair_at(p + 2 * block_bytes),
                          pair_at(p + 3 * block_bytes));
}
static inline void store_pairs(VI pair, float *d, float *m)
{
    _mm256_storeu_ps(d, vf_of_halves(_mm256_and_si256(pair, _mm256_set1_epi32(0xffff))));
    _mm256_storeu_ps(m, vf_of_halves(_mm256_srli_epi32(pair, 16)));
}
/* Loads one by one: a gather of eight takes as long as the products of four blocks (AMD Zen 3). */
static inline void read_scales(const void *blocks, size_t block_bytes, uint32_t n, float *d,
                               float *m)
{
    const char *p = blocks;
    uint32_t i = 0;

    for (; i + LANES <= n; i += LANES, p += LANES * block_bytes) {
        __m128i low = four_pairs(p, block_bytes),
                high = four_pairs(p + 4 * block_bytes, block_bytes);

        store_pairs(_mm256_set_m128i(high, low), d + i, m + i);
    }
    if (i < n) {
        int last[LANES] = {0};

        for (uint32_t j = 0; j < n - i; j++) {
            last[j] = pair_at(p + j * block_bytes);
        }
        store_pairs(_mm256_loadu_si256((const __m256i *)last), d + i, m + i);
    }
}
static inline float scalar_f16(uint16_t h)
{
    return _cvtsh_ss(h);
}

/* dst[j][i] = src[i][j] for a square of LANES, strides in floats. */
static inline void transpose(const float *src, size_t src_stride, float *dst, size_t dst_stride)
{
    VF a[8], b[8];

    for (int i = 0; i < 8; i++) {
        a[i] = vf_load(src + (size_t)i * src_stride);
    }
    for (int i = 0; i < 8; i += 2) {
        b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
        b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        for (int j = 0; j < 2; j++) {
            a[i + 2 * j] = _mm256_shuffle_ps(b[i + j], b[i + j + 2], 0x44);
            a[i + 2 * j + 1] = _mm256_shuffle_ps(b[i + j], b[i + j + 2], 0xee);
        }
    }
    /* a[4 g + c] now holds columns c and c + 4 of rows 4 g .. 4 g + 3, one column per 128 bits. */
    for (int c = 0; c < 4; c++) {
        vf_store(dst + (size_t)c * dst_stride, _mm256_permute2f128_ps(a[c], a[4 + c], 0x20));
        vf_store(dst + (size_t)(c + 4) * dst_stride, _mm256_permute2f128_ps(a[c], a[4 + c], 0x31));
    }
}

/* 6 x 2 accumulators, two vectors of weights and a broadcast: 15 of 16 registers. */
#define TILE_M 6
#include "engine/ops_halves.h"

#include "engine/ops_dot.h"
#include "engine/ops_tile.h"

BODY_TABLE(avx2, DOT_TABLE);
