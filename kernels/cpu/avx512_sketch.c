/* Scores of sketched rows with vpdpbusd: a line is 16 rows, a shift and a mask give 4 dimensions of
 * each, and nothing is added across lanes. Two groups at a time share the queries'
 * bytes and hide
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

#define QUERIES 8

/* Lines of one width in a group, and the queries' bytes for them. */
struct part {
    const int8_t (*bytes)[HR_HEAD_DIM_MAX];
    const float *scale;
    size_t offset; /* of the lines in the group */
    uint32_t lines;
};

/* total[i][a] += scale[i] * sum of the lines. The same lines of the groups ahead are asked for one by
 * one: the processor stands still while more than a few are on their way. */
HRI_INLINE void add_lines(const int groups, const int queries, const int bits,
                          const struct part *part, const uint8_t *const codes[2],
                          const uint8_t *const ahead[2], vf total[QUERIES][2])
{
    const __m512i mask = _mm512_set1_epi8((1 << bits) - 1);
    __m512i sum[QUERIES][2];

    HRI_UNROLL
    for (int i = 0; i < queries; i++)
        sum[i][0] = sum[i][1] = _mm512_setzero_si512();
    for (uint32_t l = 0; l < part->lines; l++) {
        __m512i line[2], code[2];
        HRI_UNROLL
        for (int a = 0; a < groups; a++) {
            line[a] = _mm512_load_si512(codes[a] + part->offset + (size_t)l * 64);
            _mm_prefetch((const char *)ahead[a] + part->offset + (size_t)l * 64, _MM_HINT_T1);
        }
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

/* Some queries from the i-th, `groups` groups from the j-th. */
HRI_INLINE void score_groups(const int groups, const int queries, const struct score_job *job,
                             uint32_t i, uint32_t j)
{
    const struct hri_sketch_query *q = job->q;
    const struct part four = {q->q4 + i, q->scale4 + i, 0, job->s.n4 / 8};
    const struct part two = {q->q2 + i, q->scale2 + i, (size_t)job->s.n4 * 8, job->s.n2 / 16};
    const uint32_t *list = job->groups + j;
    const uint8_t *codes[2], *ahead[2];
    vf total[QUERIES][2];

    HRI_UNROLL
    for (int a = 0; a < groups; a++) {
        codes[a] = job->s.codes + list[a] * job->bytes;
        ahead[a] = job->s.codes + group_ahead(job, j + (uint32_t)a) * job->bytes;
    }
    HRI_UNROLL
    for (int k = 0; k < queries; k++)
        total[k][0] = total[k][1] = vf_set(q->offset[i + (uint32_t)k]);
    add_lines(groups, queries, 4, &four, codes, ahead, total);
    add_lines(groups, queries, 2, &two, codes, ahead, total);
    HRI_UNROLL
    for (int k = 0; k < queries; k++) {
        HRI_UNROLL
        for (int a = 0; a < groups; a++)
            vf_store(job->out + (i + (uint32_t)k) * job->out_stride + 16 * ((size_t)j + (size_t)a),
                     total[k][a]);
    }
}

/* All queries. */
HRI_INLINE void score_all(const int groups, const struct score_job *job, uint32_t j)
{
    uint32_t i = 0;

    for (; i + 8 <= job->g; i += 8)
        score_groups(groups, 8, job, i, j);
    for (; i + 4 <= job->g; i += 4)
        score_groups(groups, 4, job, i, j);
    if (job->g - i == 3)
        score_groups(groups, 3, job, i, j);
    else if (job->g - i == 2)
        score_groups(groups, 2, job, i, j);
    else if (job->g - i == 1)
        score_groups(groups, 1, job, i, j);
}

void hri_avx512_score_sketch(const struct hri_sketch_query *q, uint32_t g, struct hri_sketch_rows s,
                             const uint32_t *groups, uint32_t n_groups, uint32_t n_listed,
                             float *out, size_t out_stride)
{
    const struct score_job job = {
        q, s, groups, n_groups, n_listed, g, out, out_stride, hri_sketch_group_bytes(s.n4, s.n2)};
    uint32_t j = 0;

    for (; j + 2 <= n_groups; j += 2)
        score_all(2, &job, j);
    if (j < n_groups)
        score_all(1, &job, j);
}
