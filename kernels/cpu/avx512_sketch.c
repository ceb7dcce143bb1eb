/* Scores of sketched rows with vpdpbusd: a line is 16 rows, a shift and a mask give 4 dimensions of
 * each, and nothing is added across lanes. Two groups at a time share the queries' bytes and hide
 * the latency of the sums. */
#include "kernels/cpu/simd_avx512.h"

#define SKETCH_HEADS 4
#define VI_BYTES     64
typedef __m512i vi;

HRI_INLINE vi vi_load(const void *p)
{
    return _mm512_load_si512(p);
}
HRI_INLINE vi vi_set(int x)
{
    return _mm512_set1_epi16((int16_t)x);
}
HRI_INLINE vi vi_and(vi a, vi b)
{
    return _mm512_and_si512(a, b);
}
HRI_INLINE vi vi_shift_byte(vi a)
{
    return _mm512_srli_epi16(a, 8);
}
HRI_INLINE vi vi_turn(vi a)
{
    return _mm512_shuffle_epi8(a, _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2,
                                                                       6, 10, 14, 3, 7, 11, 15)));
}
/* As an instruction for the same reason as add_products. */
HRI_INLINE vi vi_add_pairs(vi sum, vi a, vi b)
{
    __asm__("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "vm"(b));
    return sum;
}
HRI_INLINE __m128i vi_fold(vi a)
{
    const __m256i half =
        _mm256_add_epi32(_mm512_castsi512_si256(a), _mm512_extracti64x4_epi64(a, 1));
    return _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}

#include "kernels/cpu/simd_sketch.h"

#define QUERIES 4

/* Codes of one width of two groups, and the queries' bytes for them. */
struct part {
    const uint8_t *codes[2];
    const int8_t (*bytes)[HR_HEAD_DIM_MAX];
    const float *scale;
    uint32_t lines;
};

/* total[i][a] += scale[i] * sum of the lines. */
HRI_INLINE void add_lines(const int groups, const int queries, const int bits,
                          const struct part *part, vf total[QUERIES][2])
{
    const __m512i mask = _mm512_set1_epi8((1 << bits) - 1);
    __m512i sum[QUERIES][2];

    HRI_UNROLL
    for (int i = 0; i < queries; i++)
        sum[i][0] = sum[i][1] = _mm512_setzero_si512();
    for (uint32_t l = 0; l < part->lines; l++) {
        __m512i line[2], code[2];
        HRI_UNROLL
        for (int a = 0; a < groups; a++)
            line[a] = _mm512_load_si512(part->codes[a] + (size_t)l * 64);
        HRI_UNROLL
        for (int s = 0; s < 8 / bits; s++) {
            HRI_UNROLL
            for (int a = 0; a < groups; a++)
                code[a] = _mm512_and_si512(_mm512_srli_epi16(line[a], bits * s), mask);
            HRI_UNROLL
            for (int i = 0; i < queries; i++) {
                const __m512i q = query_bytes(part->bytes[i] + (l * (8 / bits) + (uint32_t)s) * 4);
                HRI_UNROLL
                for (int a = 0; a < groups; a++)
                    sum[i][a] = add_products(sum[i][a], code[a], q);
            }
        }
    }
    HRI_UNROLL
    for (int i = 0; i < queries; i++) {
        HRI_UNROLL
        for (int a = 0; a < groups; a++)
            total[i][a] =
                vf_fma(_mm512_cvtepi32_ps(sum[i][a]), vf_set(part->scale[i]), total[i][a]);
    }
}

HRI_INLINE void score_queries(const int groups, const int queries, const struct part *four,
                              const struct part *two, const float *offset, float *const out[2],
                              size_t out_stride)
{
    vf total[QUERIES][2];

    HRI_UNROLL
    for (int i = 0; i < queries; i++)
        total[i][0] = total[i][1] = vf_set(offset[i]);
    add_lines(groups, queries, 4, four, total);
    add_lines(groups, queries, 2, two, total);
    HRI_UNROLL
    for (int i = 0; i < queries; i++) {
        HRI_UNROLL
        for (int a = 0; a < groups; a++)
            vf_store(out[a] + i * out_stride, total[i][a]);
    }
}

/* `groups` groups from list[0]. */
HRI_INLINE void score_groups(const int groups, const struct hri_sketch_query *q, uint32_t g,
                             struct hri_sketch_rows s, const uint32_t *list, float *out,
                             size_t out_stride)
{
    const size_t bytes = hri_sketch_group_bytes(s.n4, s.n2);
    const uint8_t *codes[2] = {s.codes + list[0] * bytes, s.codes + list[groups - 1] * bytes};
    uint32_t i = 0;

    while (i < g) {
        const struct part four = {{codes[0], codes[1]}, q->q4 + i, q->scale4 + i, s.n4 / 8};
        const struct part two = {{codes[0] + (size_t)s.n4 * 8, codes[1] + (size_t)s.n4 * 8},
                                 q->q2 + i,
                                 q->scale2 + i,
                                 s.n2 / 16};
        float *const first = out + i * out_stride;
        float *const at[2] = {first + (size_t)16 * list[0], first + (size_t)16 * list[groups - 1]};
        const uint32_t left = g - i;
        if (left >= 4)
            score_queries(groups, 4, &four, &two, q->offset + i, at, out_stride);
        else if (left == 3)
            score_queries(groups, 3, &four, &two, q->offset + i, at, out_stride);
        else if (left == 2)
            score_queries(groups, 2, &four, &two, q->offset + i, at, out_stride);
        else
            score_queries(groups, 1, &four, &two, q->offset + i, at, out_stride);
        i += left < 4 ? left : 4;
    }
}

/* How far ahead groups are asked for. */
#define PREFETCH_BYTES 4096u

void hri_avx512_score_sketch(const struct hri_sketch_query *q, uint32_t g, struct hri_sketch_rows s,
                             const uint32_t *groups, uint32_t n_groups, float *out,
                             size_t out_stride)
{
    const size_t bytes = hri_sketch_group_bytes(s.n4, s.n2);
    const uint32_t ahead = 2 + PREFETCH_BYTES / (uint32_t)(bytes + 1);
    uint32_t j = 0;

    for (; j + 2 <= n_groups; j += 2) {
        for (uint32_t a = j + ahead; a < j + ahead + 2 && a < n_groups; a++)
            prefetch_near(s.codes + groups[a] * bytes, bytes);
        score_groups(2, q, g, s, groups + j, out, out_stride);
    }
    if (j < n_groups)
        score_groups(1, q, g, s, groups + j, out, out_stride);
}
