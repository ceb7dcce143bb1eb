/* Scores of packed centroids on tiles: 16 lines of a group are, as they lie in memory, 64 dimensions
 * of 16 blocks, the right operand of a product. The left one holds the two int8 terms of up to eight
 * queries, so that their number costs little. */
#include "kernels/cpu/query_i8.h"
#include "kernels/cpu/simd_avx512.h"

#include "kernels/cpu/simd_amx.h"

/* How far ahead lines are asked for: from memory into the second level, and from there into the
 * first. */
#define PREFETCH_FAR_BYTES  8192
#define PREFETCH_NEAR_BYTES 2048

#define QUERIES 8
#define CHUNK   64 /* dimensions of a tile */

struct centroid_job {
    int8_t terms[2 * QUERIES][HRI_DIM_MAX] __attribute__((aligned(64))); /* high ones, then low */
    int32_t sums[2][2 * QUERIES][16] __attribute__((aligned(64)));       /* of two groups */
    float q_step[QUERIES];
    int32_t excess[QUERIES];
    uint32_t queries, dk;
};

static void set_queries(struct centroid_job *job, const float *q)
{
    struct query_i8 bytes;

    memset(job->terms, 0, sizeof job->terms);
    for (uint32_t i = 0; i < job->queries; i++) {
        query_i8_make(&bytes, q + (size_t)i * job->dk, job->dk);
        memcpy(job->terms[i], bytes.high, job->dk);
        memcpy(job->terms[job->queries + i], bytes.low, job->dk);
        job->q_step[i] = bytes.step;
        job->excess[i] = bytes.excess;
    }
}

/* Tiles 0, 1: sums; 2, 3, 4: a whole chunk of queries and of two groups; 5, 6, 7: the last one. */
static void begin(const struct centroid_job *job)
{
    struct tile_shapes shapes = {0};
    const uint32_t rows = 2 * job->queries, rest = job->dk % CHUNK;

    tile_shape(&shapes, 0, rows, 64);
    tile_shape(&shapes, 1, rows, 64);
    tile_shape(&shapes, 2, rows, 64);
    tile_shape(&shapes, 3, 16, 64);
    tile_shape(&shapes, 4, 16, 64);
    if (rest > 0) {
        tile_shape(&shapes, 5, rows, rest);
        tile_shape(&shapes, 6, rest / 4, 64);
        tile_shape(&shapes, 7, rest / 4, 64);
    }
    tiles_begin(&shapes);
}

HRI_INLINE void ask_ahead(const uint8_t *codes, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += 64) {
        _mm_prefetch((const char *)codes + i + PREFETCH_FAR_BYTES, _MM_HINT_T1);
        _mm_prefetch((const char *)codes + i + PREFETCH_NEAR_BYTES, _MM_HINT_T0);
    }
}

HRI_INLINE void sum_groups(const bool two, struct centroid_job *job, const uint8_t *codes)
{
    const uint8_t *second = codes + (size_t)job->dk * 16;
    uint32_t j = 0;

    TILE_ZERO(0);
    TILE_ZERO(1);
    for (; j + CHUNK <= job->dk; j += CHUNK) {
        ask_ahead(codes + (size_t)j * 16, TILE_BYTES_ALL);
        TILE_LOAD(2, job->terms[0] + j, HRI_DIM_MAX);
        TILE_LOAD(3, codes + (size_t)j * 16, 64);
        TILE_DP_SU(0, 2, 3);
        if (two) {
            ask_ahead(second + (size_t)j * 16, TILE_BYTES_ALL);
            TILE_LOAD(4, second + (size_t)j * 16, 64);
            TILE_DP_SU(1, 2, 4);
        }
    }
    if (j < job->dk) {
        TILE_LOAD(5, job->terms[0] + j, HRI_DIM_MAX);
        TILE_LOAD(6, codes + (size_t)j * 16, 64);
        TILE_DP_SU(0, 5, 6);
        if (two) {
            TILE_LOAD(7, second + (size_t)j * 16, 64);
            TILE_DP_SU(1, 5, 7);
        }
    }
    TILE_STORE(job->sums[0], 64, 0);
    if (two)
        TILE_STORE(job->sums[1], 64, 1);
}

HRI_INLINE void store_scores(const struct centroid_job *job, int group, const float *step,
                             float *out, size_t out_stride)
{
    const vf scale = vf_load(step);

    for (uint32_t i = 0; i < job->queries; i++) {
        const __m512i high = _mm512_load_si512(job->sums[group][i]);
        const __m512i low = _mm512_load_si512(job->sums[group][job->queries + i]);
        __m512i sum = _mm512_add_epi32(_mm512_slli_epi32(high, 7), low);
        sum = _mm512_sub_epi32(sum, _mm512_set1_epi32(job->excess[i]));
        const vf score = vf_mul(_mm512_cvtepi32_ps(sum), vf_set(job->q_step[i]));
        vf_store(out + i * out_stride, vf_mul(score, scale));
    }
}

void hri_amx_score_centroids(const float *q, uint32_t g, uint32_t dk, struct hri_centroids c,
                             float *out, size_t out_stride)
{
    const uint32_t n = (c.n + 15u) & ~15u;
    struct centroid_job job;

    job.dk = dk;
    for (uint32_t i = 0; i < g; i += QUERIES, out += QUERIES * out_stride) {
        uint32_t b = 0;
        job.queries = g - i < QUERIES ? g - i : QUERIES;
        set_queries(&job, q + (size_t)i * dk);
        begin(&job);
        for (; b + 32 <= n; b += 32) {
            sum_groups(true, &job, c.codes + (size_t)b * dk);
            store_scores(&job, 0, c.step + b, out + b, out_stride);
            store_scores(&job, 1, c.step + b + 16, out + b + 16, out_stride);
        }
        if (b < n) {
            sum_groups(false, &job, c.codes + (size_t)b * dk);
            store_scores(&job, 0, c.step + b, out + b, out_stride);
        }
        tiles_end();
    }
}
