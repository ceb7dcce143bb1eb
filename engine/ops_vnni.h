/*
 * Dot products of quantised rows for AVX-512 with VNNI: sixteen rows at a time, a row per lane, so that nothing is added up across lanes
 * and a scale is multiplied with once for 32 weights. Groups of rows are read as they were repacked (repack.h); of rows as the file has them
 * four bytes each become a vector on the way. Activations are three signed bytes each, which is as exact as their floats beside the largest of 32.
 *
 * A row's sum depends neither on which rows are with it nor on where they lie: however rows are dealt to threads, the result is the same
 * bit for bit.
 */
#include "engine/ops.h"
#include "engine/quant.h"
#include "engine/repack.h"

#define GROUP_ROWS HRE_GROUP_ROWS
/* 127 (65536 + 256 + 1), and room for rounding. */
#define DIGITS_MAX 8355000.0f

/* The first digit is the rest modulo 256 nearest to zero, and so on. */
static inline __m512i take_digit(__m512i *rest)
{
    __m512i digit = _mm512_srai_epi32(_mm512_slli_epi32(*rest, 24), 24);

    *rest = _mm512_srai_epi32(_mm512_sub_epi32(*rest, digit), 8);
    return digit;
}

/* Not finite: the step is NaN, and so is all that meets it. */
static void digits(const float *x, uint32_t n, const float *sums, struct hre_digits *out)
{
    for (uint32_t i = 0; i < n / HRE_SUM_GROUP; i++, x += HRE_SUM_GROUP, out++) {
        __m512 low = _mm512_loadu_ps(x), high = _mm512_loadu_ps(x + 16);
        float largest =
            _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(low), _mm512_abs_ps(high)));
        __m512 scale = _mm512_set1_ps(largest > 1e-30f ? DIGITS_MAX / largest : 0.0f);
        __m512i rest[2] = {_mm512_cvtps_epi32(_mm512_mul_ps(low, scale)),
                           _mm512_cvtps_epi32(_mm512_mul_ps(high, scale))};

        out->step = (largest > 1e-30f ? largest / DIGITS_MAX : 0.0f) + 0.0f * sums[i];
        for (int p = 0; p < HRE_DIGITS; p++) {
            __m512i a = take_digit(&rest[0]), b = take_digit(&rest[1]);

            out->sum[p] = _mm512_reduce_add_epi32(_mm512_add_epi32(a, b));
            _mm_storeu_si128((__m128i *)out->digit[p], _mm512_cvtepi32_epi8(a));
            _mm_storeu_si128((__m128i *)(out->digit[p] + 16), _mm512_cvtepi32_epi8(b));
        }
    }
}

static inline __attribute__((always_inline)) __m512i four_rows(const uint8_t *p, size_t stride)
{
    __m512i v = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)p));

    v = _mm512_mask_broadcast_i32x4(v, 0x00f0, _mm_loadu_si128((const __m128i *)(p + 4 * stride)));
    v = _mm512_mask_broadcast_i32x4(v, 0x0f00, _mm_loadu_si128((const __m128i *)(p + 8 * stride)));
    return _mm512_mask_broadcast_i32x4(v, 0xf000,
                                       _mm_loadu_si128((const __m128i *)(p + 12 * stride)));
}

/* words[k], lane r: the four bytes at p + r stride + 4 k. */
static inline __attribute__((always_inline)) void words_of_rows(const uint8_t *p, size_t stride,
                                                                __m512i words[4])
{
    __m512i a = four_rows(p, stride), b = four_rows(p + stride, stride),
            c = four_rows(p + 2 * stride, stride), d = four_rows(p + 3 * stride, stride);
    __m512i ab = _mm512_unpacklo_epi32(a, b), cd = _mm512_unpacklo_epi32(c, d);

    words[0] = _mm512_unpacklo_epi64(ab, cd);
    words[1] = _mm512_unpackhi_epi64(ab, cd);
    ab = _mm512_unpackhi_epi32(a, b);
    cd = _mm512_unpackhi_epi32(c, d);
    words[2] = _mm512_unpacklo_epi64(ab, cd);
    words[3] = _mm512_unpackhi_epi64(ab, cd);
}

static inline int word_at(const uint8_t *p)
{
    int word;

    memcpy(&word, p, sizeof(word));
    return word;
}

static inline __attribute__((always_inline)) __m128i four_words(const uint8_t *p, size_t stride)
{
    return _mm_setr_epi32(word_at(p), word_at(p + stride), word_at(p + 2 * stride),
                          word_at(p + 3 * stride));
}

/* Lane r: the first four bytes at p + r stride. Loads one by one: a gather takes longer. */
static inline __attribute__((always_inline)) __m512i first_words(const uint8_t *p, size_t stride)
{
    __m512i v = _mm512_castsi128_si512(four_words(p, stride));

    v = _mm512_inserti32x4(v, four_words(p + 4 * stride, stride), 1);
    v = _mm512_inserti32x4(v, four_words(p + 8 * stride, stride), 2);
    return _mm512_inserti32x4(v, four_words(p + 12 * stride, stride), 3);
}

/* sum[p] += weights (a word of four of each row) times digits p of activations 4 k to 4 k + 3. */
static inline __attribute__((always_inline)) void
add_words(__m512i weights, const struct hre_digits *x, int k, __m512i sum[HRE_DIGITS])
{
    for (int p = 0; p < HRE_DIGITS; p++) {
        int four;

        memcpy(&four, x->digit[p] + 4 * k, sizeof(four));
        sum[p] = _mm512_dpbusd_epi32(sum[p], weights, _mm512_set1_epi32(four));
    }
}

/* Where block i of sixteen rows lies: in rows `stride` apart, or in a group. */
struct blocks {
    const uint8_t *scales, *words;
    size_t stride;
    int packed; /* a constant in every use */
};

/* Words 4 part to 4 part + 3 of the quants of all rows. */
static inline __attribute__((always_inline)) void read_words(const struct blocks *b, int part,
                                                             __m512i words[4])
{
    if (!b->packed) {
        words_of_rows(b->words + 16 * part, b->stride, words);
        return;
    }
    for (int k = 0; k < 4; k++) {
        words[k] = _mm512_loadu_si512(b->words + (16 * part + 4 * k) * GROUP_ROWS);
    }
}

/* The first 16-bit float of each row's block and, where there is one, the second. */
static inline __attribute__((always_inline)) void read_halves(const struct blocks *b, int two,
                                                              VF *first, VF *second)
{
    if (b->packed) {
        *first = vf_f16((const uint16_t *)(const void *)b->scales);
        *second = two ? vf_f16((const uint16_t *)(const void *)b->scales + GROUP_ROWS) : vf_zero();
        return;
    }
    __m512i pairs = first_words(b->scales, b->stride);

    *first = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(pairs));
    *second =
        two ? _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(pairs, 16))) : vf_zero();
}

static inline __attribute__((always_inline)) void
add_nibbles(const struct blocks *b, const struct hre_digits *x, __m512i sum[HRE_DIGITS])
{
    const __m512i low = _mm512_set1_epi8(15);
    __m512i words[4];

    read_words(b, 0, words);
    for (int k = 0; k < 4; k++) {
        add_words(_mm512_and_si512(words[k], low), x, k, sum);
        add_words(_mm512_and_si512(_mm512_srli_epi32(words[k], 4), low), x, k + 4, sum);
    }
}

/* Signed weights are shifted to 0 to 255 for the instruction. */
static inline __attribute__((always_inline)) void
add_bytes(const struct blocks *b, const struct hre_digits *x, __m512i sum[HRE_DIGITS])
{
    const __m512i top = _mm512_set1_epi8(-128);

    for (int part = 0; part < 2; part++) {
        __m512i words[4];

        read_words(b, part, words);
        for (int k = 0; k < 4; k++) {
            add_words(_mm512_xor_si512(words[k], top), x, k + 4 * part, sum);
        }
    }
}

/* Sixteen rows of n weights. `zero` is what stands for a weight of 0; `minima`: the block has its own instead. */
#define ROWS_16(type, add, zero, minima)                                                           \
    static inline __attribute__((always_inline)) VF rows_##type(                                   \
        const uint8_t *p, size_t stride, int packed, uint32_t n, const struct hre_activations *a)  \
    {                                                                                              \
        const size_t step = sizeof(struct block_##type) * (packed ? GROUP_ROWS : 1);               \
        const size_t head = offsetof(struct block_##type, q) * (packed ? GROUP_ROWS : 1);          \
        const struct hre_digits *x = a->digits;                                                    \
        VF high = vf_zero(), low = vf_zero(), offset = vf_zero(), scale, minimum;                  \
                                                                                                   \
        for (uint32_t i = 0; i < n / QUANT_BLOCK; i++, x++, p += step) {                           \
            struct blocks b = {p, p + head, stride, packed};                                       \
            __m512i sum[HRE_DIGITS];                                                               \
                                                                                                   \
            for (int d = 0; d < HRE_DIGITS; d++) {                                                 \
                sum[d] = _mm512_set1_epi32(-(zero)*x->sum[d]);                                     \
            }                                                                                      \
            add(&b, x, sum);                                                                       \
            read_halves(&b, minima, &scale, &minimum);                                             \
            scale = vf_mul(scale, vf_set1(x->step));                                               \
            __m512i top = _mm512_add_epi32(_mm512_slli_epi32(sum[2], 8), sum[1]);                  \
            high = vf_fma(scale, _mm512_cvtepi32_ps(top), high);                                   \
            low = vf_fma(scale, _mm512_cvtepi32_ps(sum[0]), low);                                  \
            offset = minima ? vf_fma(minimum, vf_set1(a->sums[i]), offset) : offset;               \
        }                                                                                          \
        return vf_add(vf_fma(high, vf_set1(256.0f), low), offset);                                 \
    }

/* Another core has just written them: asked for one by one where they are needed, they take longer than the products of a group. (Inlined
 * early: gcc drops calls of functions that only prefetch.) */
static inline __attribute__((always_inline)) void ask_for(const void *data, size_t bytes)
{
    for (size_t at = 0; at < bytes; at += 64) {
        __builtin_prefetch((const char *)data + at);
    }
}

/* What is left over of many rows is done with some rows before it; of a few, one by one, a row sixteen times. */
#define DOT_ROWS(type)                                                                             \
    static void dot_##type(const void *rows, size_t row_bytes, uint32_t n_rows, uint32_t n,        \
                           const struct hre_activations *a, float *y)                              \
    {                                                                                              \
        const uint8_t *p = rows;                                                                   \
        uint32_t r = 0;                                                                            \
                                                                                                   \
        for (; r + GROUP_ROWS <= n_rows; r += GROUP_ROWS) {                                        \
            vf_store(y + r, rows_##type(p + r * row_bytes, row_bytes, 0, n, a));                   \
        }                                                                                          \
        if (r < n_rows && n_rows > GROUP_ROWS) {                                                   \
            r = n_rows - GROUP_ROWS;                                                               \
            vf_store(y + r, rows_##type(p + r * row_bytes, row_bytes, 0, n, a));                   \
            return;                                                                                \
        }                                                                                          \
        for (; r < n_rows; r++) {                                                                  \
            y[r] = _mm512_cvtss_f32(rows_##type(p + r * row_bytes, 0, 0, n, a));                   \
        }                                                                                          \
    }                                                                                              \
                                                                                                   \
    static void dot_groups_##type(const void *rows, size_t row_bytes, uint32_t n_rows, uint32_t n, \
                                  const struct hre_activations *a, float *y)                       \
    {                                                                                              \
        const uint8_t *p = rows;                                                                   \
                                                                                                   \
        ask_for(a->digits, n / QUANT_BLOCK * sizeof(*a->digits));                                  \
        ask_for(a->sums, n / QUANT_BLOCK * sizeof(*a->sums));                                      \
        for (uint32_t r = 0; r < n_rows; r += GROUP_ROWS) {                                        \
            vf_store(y + r, rows_##type(p + r * row_bytes, row_bytes, 1, n, a));                   \
        }                                                                                          \
    }

ROWS_16(q4_0, add_nibbles, 8, 0)
ROWS_16(q4_1, add_nibbles, 0, 1)
ROWS_16(q8_0, add_bytes, 128, 0)
DOT_ROWS(q4_0)
DOT_ROWS(q4_1)
DOT_ROWS(q8_0)

/* -- tiles of floats for products of many rows: a group's lanes lie as a tile has them -- */

static inline __attribute__((always_inline)) VF vf_field(VI words, int shift)
{
    return _mm512_cvtepi32_ps(
        _mm512_and_si512(_mm512_srli_epi32(words, shift), _mm512_set1_epi32(15)));
}

/* One block of a group: 32 lines of a tile. */
static inline __attribute__((always_inline)) void nibbles_to_tile(const struct blocks *b, VF scale,
                                                                  VF offset, float *tile)
{
    VI words[4];

    read_words(b, 0, words);
    for (int i = 0; i < 16; i++) {
        VF low = vf_field(words[i / 4], 8 * (i % 4)),
           high = vf_field(words[i / 4], 8 * (i % 4) + 4);

        vf_store(tile + i * 2 * GROUP_ROWS, vf_fma(scale, low, offset));
        vf_store(tile + (i + 16) * 2 * GROUP_ROWS, vf_fma(scale, high, offset));
    }
}

static inline __attribute__((always_inline)) void bytes_to_tile(const struct blocks *b, VF scale,
                                                                VF offset, float *tile)
{
    for (int part = 0; part < 2; part++) {
        VI words[4];

        read_words(b, part, words);
        for (int i = 0; i < 16; i++) {
            VI top = _mm512_slli_epi32(words[i / 4], 24 - 8 * (i % 4));
            VF weight = _mm512_cvtepi32_ps(_mm512_srai_epi32(top, 24));

            vf_store(tile + (i + 16 * part) * 2 * GROUP_ROWS, vf_fma(scale, weight, offset));
        }
    }
}

/* Two groups become a tile: see pack in ops.h. */
#define TILE_GROUPS(type, to_tile, zero, minima)                                                   \
    static void tile_groups_##type(const void *groups, size_t row_bytes, uint32_t n, float *tile)  \
    {                                                                                              \
        const size_t step = sizeof(struct block_##type) * GROUP_ROWS;                              \
        const size_t head = offsetof(struct block_##type, q) * GROUP_ROWS;                         \
                                                                                                   \
        for (uint32_t i = 0; i < n / QUANT_BLOCK; i++, tile += 2 * GROUP_ROWS * QUANT_BLOCK) {     \
            for (int g = 0; g < 2; g++) {                                                          \
                const uint8_t *p =                                                                 \
                    (const uint8_t *)groups + g * GROUP_ROWS * row_bytes + i * step;               \
                struct blocks b = {p, p + head, 0, 1};                                             \
                VF scale, minimum;                                                                 \
                                                                                                   \
                read_halves(&b, minima, &scale, &minimum);                                         \
                minimum = minima ? minimum : vf_mul(scale, vf_set1(-(float)(zero)));               \
                to_tile(&b, scale, minimum, tile + g * GROUP_ROWS);                                \
            }                                                                                      \
        }                                                                                          \
    }

TILE_GROUPS(q4_0, nibbles_to_tile, 8, 0)
TILE_GROUPS(q4_1, nibbles_to_tile, 0, 1)
TILE_GROUPS(q8_0, bytes_to_tile, 0, 0)

#define DOT_GROUPS                                                                                 \
    {                                                                                              \
        [HRE_WEIGHT_Q4_0] = dot_groups_q4_0, [HRE_WEIGHT_Q4_1] = dot_groups_q4_1,                  \
        [HRE_WEIGHT_Q8_0] = dot_groups_q8_0,                                                       \
    }
#define TILE_GROUPS_TABLE                                                                          \
    {                                                                                              \
        [HRE_WEIGHT_Q4_0] = tile_groups_q4_0, [HRE_WEIGHT_Q4_1] = tile_groups_q4_1,                \
        [HRE_WEIGHT_Q8_0] = tile_groups_q8_0,                                                      \
    }
