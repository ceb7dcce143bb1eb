/* Scores of sketched rows with vpmaddubsw: half a line is 8 rows, a shift and a mask give 4
 * dimensions of each as bytes, and products are added in 16 bits for as many lines as fit: 8 pairs
 * of 4-bit codes (2 x 15 x 127 each) or 42 pairs of 2-bit codes (2 x 3 x 127). */
#include "kernels/cpu/simd_avx2.h"

#define SKETCH_HEADS 2
#define SUM_AHEAD    1
/* Calls of few groups are common, and of the first ones none are ahead. */
#define AHEAD_GROUPS 5u
#define VI_BYTES     32
typedef __m256i vi;

HRI_INLINE vi vi_load(const void *p)
{
    return _mm256_load_si256(p);
}
HRI_INLINE vi vi_set(int x)
{
    return _mm256_set1_epi16((int16_t)x);
}
HRI_INLINE vi vi_and(vi a, vi b)
{
    return _mm256_and_si256(a, b);
}
HRI_INLINE vi vi_shift_byte(vi a)
{
    return _mm256_srli_epi16(a, 8);
}
HRI_INLINE vi vi_turn(vi a)
{
    return _mm256_shuffle_epi8(a, _mm256_broadcastsi128_si256(_mm_setr_epi8(
                                      0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15)));
}
HRI_INLINE vi vi_add_pairs(vi sum, vi a, vi b)
{
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
    __asm__("" : "+x"(sum)); /* see add_products */
    return sum;
}
HRI_INLINE __m128i vi_fold(vi a)
{
    return _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
}

#include "kernels/cpu/simd_sketch.h"

/* Lines whose products of two bytes fit 16 bits. */
#define LINES_4BIT 4u
#define LINES_2BIT 10u

#define QUERIES 4

/* Lines of one width. */
struct part {
    const int8_t *bytes; /* the first query's; the others' are HR_HEAD_DIM_MAX further each */
    const float *scale;
    const uint8_t *at;
    size_t lines;
    ptrdiff_t ahead; /* from a line to the one to ask for meanwhile */
};

/* sum + products of bytes, added in pairs. The empty instruction keeps gcc from adding products
 * among themselves first, for which it runs out of registers. */
HRI_INLINE __m256i add_products(__m256i sum, __m256i codes, __m256i query)
{
    sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(codes, query));
    __asm__("" : "+x"(sum));
    return sum;
}

/* sum[query][half of the rows] += the products of one line. */
HRI_INLINE void add_line(const int queries, const int bits, const uint8_t *line,
                         const int8_t *bytes, __m256i sum[QUERIES][2])
{
    const __m256i mask = _mm256_set1_epi8((1 << bits) - 1);
    const __m256i x = _mm256_load_si256((const void *)line);
    const __m256i y = _mm256_load_si256((const void *)(line + 32));

    HRI_UNROLL
    for (int s = 0; s < 8 / bits; s++) {
        const __m256i a = _mm256_and_si256(_mm256_srli_epi16(x, bits * s), mask);
        const __m256i b = _mm256_and_si256(_mm256_srli_epi16(y, bits * s), mask);
        HRI_UNROLL
        for (int i = 0; i < queries; i++) {
            const __m256i q = query_bytes(bytes + i * HR_HEAD_DIM_MAX + s * 4);
            sum[i][0] = add_products(sum[i][0], a, q);
            sum[i][1] = add_products(sum[i][1], b, q);
        }
    }
}

/* total += scale * sum of a part's lines, as many at a time as fit 16 bits. */
HRI_INLINE void add_lines(const int queries, const int bits, struct part part, vf total[QUERIES][2])
{
    const size_t most = bits == 4 ? LINES_4BIT : LINES_2BIT;
    const __m256i one = _mm256_set1_epi16(1);
    const uint8_t *const end = part.at + part.lines * 64;

    while (part.at < end) {
        const uint8_t *to = (size_t)(end - part.at) > most * 64 ? part.at + most * 64 : end;
        __m256i sum[QUERIES][2];
        HRI_UNROLL
        for (int i = 0; i < queries; i++)
            sum[i][0] = sum[i][1] = _mm256_setzero_si256();
        for (; part.at < to; part.at += 64, part.bytes += 32 / bits) {
            _mm_prefetch((const char *)part.at + part.ahead, _MM_HINT_T0);
            add_line(queries, bits, part.at, part.bytes, sum);
        }
        HRI_UNROLL
        for (int i = 0; i < queries; i++) {
            HRI_UNROLL
            for (int h = 0; h < 2; h++)
                total[i][h] = vf_fma(_mm256_cvtepi32_ps(_mm256_madd_epi16(sum[i][h], one)),
                                     vf_set(part.scale[i]), total[i][h]);
        }
    }
}

/* Scores of one group for some queries from the i-th. */
HRI_INLINE void score_group(const int queries, const struct score_job *job, uint32_t i,
                            const uint8_t *codes, ptrdiff_t ahead, float *out)
{
    const struct hri_sketch_query *q = job->q;
    const size_t lines = job->s.n4 / 8;
    const struct part four = {q->q4[i], q->scale4 + i, codes, lines, ahead};
    const struct part two = {q->q2[i], q->scale2 + i, codes + lines * 64, job->s.n2 / 16, ahead};
    vf total[QUERIES][2];

    HRI_UNROLL
    for (int k = 0; k < queries; k++)
        total[k][0] = total[k][1] = vf_set(q->offset[i + (uint32_t)k]);
    add_lines(queries, 4, four, total);
    add_lines(queries, 2, two, total);
    HRI_UNROLL
    for (int k = 0; k < queries; k++) {
        vf_store(out + (size_t)k * job->out_stride, total[k][0]);
        vf_store(out + (size_t)k * job->out_stride + 8, total[k][1]);
    }
}

/* Some queries from the i-th, groups [from, to). The first ones ask for the groups ahead. */
HRI_INLINE void score_groups(const int queries, const struct score_job *job, uint32_t i,
                             uint32_t from, uint32_t to)
{
    for (uint32_t j = from; j < to; j++) {
        const uint8_t *codes = job->s.codes + job->groups[j] * job->bytes;
        const size_t next = group_ahead(job, j);
        const ptrdiff_t ahead = i == 0 ? job->s.codes + next * job->bytes - codes : 0;

        score_group(queries, job, i, codes, ahead, job->out + i * job->out_stride + (size_t)16 * j);
    }
}

/* Groups that stay in the first level while all queries use them. */
#define TILE_GROUPS 8u

void hri_avx2_score_sketch(const struct hri_sketch_query *q, uint32_t g, struct hri_sketch_rows s,
                           const uint32_t *groups, uint32_t n_groups, uint32_t n_listed, float *out,
                           size_t out_stride)
{
    const struct score_job job = {
        q, s, groups, n_groups, n_listed, g, out, out_stride, hri_sketch_group_bytes(s.n4, s.n2)};

    for (uint32_t j = 0; j < n_groups && j < AHEAD_GROUPS; j++)
        prefetch_near(s.codes + groups[j] * job.bytes, job.bytes);
    for (uint32_t j = 0; j < n_groups; j += TILE_GROUPS) {
        const uint32_t to = n_groups - j < TILE_GROUPS ? n_groups : j + TILE_GROUPS;
        uint32_t i = 0;

        for (; i + 4 <= g; i += 4)
            score_groups(4, &job, i, j, to);
        if (g - i == 3)
            score_groups(3, &job, i, j, to);
        else if (g - i == 2)
            score_groups(2, &job, i, j, to);
        else if (g - i == 1)
            score_groups(1, &job, i, j, to);
    }
}
