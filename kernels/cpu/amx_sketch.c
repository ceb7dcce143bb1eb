/* Sums of sketched rows on tiles.
 *
 * The 16 rows of a group are what is summed over. Four rows' 16 bytes, broadcast, turned as 4 x 4
 * bytes and masked with a slice in each quarter, are a row of the right operand: 16 dimensions of
 * four rows. Codes stay where they are in their byte, so a slice's sum comes out larger by a power of
 * two. The left operand has the weights of 64 rows, of each head the high and the low bytes: 256 high
 * + low, of 15 bits and a sign, rounded to a step of their batch's largest. So the work per line
 * hardly depends on the number of queries, up to eight of them.
 *
 * A tile that is loaded soon after vectors were stored where it lies waits until all of them have
 * reached the cache. So right operands are loaded a few KiB of stores after they were made. */
#include "kernels/cpu/simd_avx512.h"

#include "kernels/cpu/simd_amx.h"

#define QUERIES 8

/* Groups that share the step of their weights: eight left operands. Sums of 32 bits hold 16 rows x
 * 192 x 128 of each. */
#define BATCH      32u
#define CHUNKS     (BATCH / 4)
#define WEIGHT_MAX 32639.0f /* high: at most 127 */

/* Right operands between being made and being multiplied: four groups x 32 dimensions each. */
#define RING  4u
#define AHEAD 3u

struct sum_batch {
    const uint8_t *codes[BATCH];
    uint32_t group[BATCH], n;
};

struct sum_job {
    int8_t weights[CHUNKS][2 * QUERIES][64] __attribute__((aligned(64)));
    uint8_t turned[RING][2][16][64] __attribute__((aligned(64))); /* what is not there weighs 0 */
    int32_t sums[2][2 * QUERIES][16] __attribute__((aligned(64)));
    float step[QUERIES], total[QUERIES]; /* total: sum of the rounded weights */
    struct sum_batch batches[2];
    const struct sum_batch *now, *next;
    uint32_t asked, queries; /* asked: groups of the next batch that were asked for */
    struct hri_sketch_rows s;
    size_t group_bytes;
};

/* Asks for a group of the next batch: one at a time, see amx_attend.c. */
HRI_INLINE void ask_for_group(struct sum_job *job)
{
    if (job->asked >= job->next->n)
        return;
    const char *at = (const char *)job->next->codes[job->asked++];
    for (size_t b = 0; b < job->group_bytes; b += 64)
        _mm_prefetch(at + b, _MM_HINT_T0);
}

/* One head's weights of a batch; false if all are 0. */
HRI_INLINE bool set_weights(struct sum_job *job, uint32_t head, const float *w)
{
    vf most = vf_zero();
    __m512i sum = _mm512_setzero_si512();

    for (uint32_t j = 0; j < job->now->n; j++)
        most = vf_max(vf_abs(vf_load(w + (size_t)16 * job->now->group[j])), most);
    const float largest = vf_largest(most);
    const bool used = hri_scales_to(largest, WEIGHT_MAX);
    const vf inverse = vf_set(used ? WEIGHT_MAX / largest : 0.0f);
    for (uint32_t j = 0; j < job->now->n; j++) {
        int8_t *high_at = job->weights[j / 4][head] + j % 4 * 16,
               *low_at = job->weights[j / 4][job->queries + head] + j % 4 * 16;
        const __m512i v =
            _mm512_cvtps_epi32(vf_mul(vf_load(w + (size_t)16 * job->now->group[j]), inverse));
        const __m512i high = _mm512_srai_epi32(_mm512_add_epi32(v, _mm512_set1_epi32(128)), 8);
        _mm_store_si128((void *)high_at, _mm512_cvtepi32_epi8(high));
        _mm_store_si128((void *)low_at, _mm512_cvtepi32_epi8(v)); /* modulo 256: v - 256 high */
        sum = _mm512_add_epi32(sum, v);
    }
    job->total[head] = (float)_mm512_reduce_add_epi32(sum);
    job->step[head] = used ? largest / WEIGHT_MAX : 0.0f;
    return used;
}

/* A value for each quarter of a vector. */
HRI_INLINE __m512i quarters(int a, int b, int c, int d)
{
    return _mm512_setr_epi32(a, a, a, a, b, b, b, b, c, c, c, c, d, d, d, d);
}

/* 16 rows x 16 dimensions of a group: one line of 2 bits, or two of 4 bits, of which the second may
 * be missing. */
HRI_INLINE void turn_lines(const uint8_t *at, const int bits, const bool second, uint8_t (*to)[64])
{
    const __m512i turn =
        _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    const __m512i mask = bits == 2
                             ? quarters(0x03030303, 0x0c0c0c0c, 0x30303030, (int)0xc0c0c0c0)
                             : quarters(0x0f0f0f0f, (int)0xf0f0f0f0, 0x0f0f0f0f, (int)0xf0f0f0f0);

    HRI_UNROLL
    for (int r = 0; r < 4; r++) {
        __m512i x = _mm512_broadcast_i32x4(_mm_load_si128((const void *)(at + 16 * r)));
        if (second)
            x = _mm512_mask_broadcast_i32x4(x, 0xff00,
                                            _mm_load_si128((const void *)(at + 64 + 16 * r)));
        _mm512_store_si512(to[r], _mm512_and_si512(_mm512_shuffle_epi8(x, turn), mask));
    }
}

/* The dimensions of one width. */
struct sum_part {
    size_t offset; /* of the lines in a group */
    uint32_t width;
};

/* Up to four groups of the batch from the j-th, up to 32 dimensions from the i-th. */
HRI_INLINE void turn_chunk(struct sum_job *job, const int bits, struct sum_part part, uint32_t i,
                           uint32_t j, uint8_t (*to)[16][64])
{
    const uint32_t left = part.width - i;

    for (uint32_t a = 0; a < 4 && j + a < job->now->n; a++) {
        const uint8_t *at = job->now->codes[j + a] + part.offset + (size_t)i * (uint32_t)(2 * bits);
        if (bits == 2) {
            turn_lines(at, 2, false, to[0] + 4 * a);
            if (left > 16)
                turn_lines(at + 64, 2, false, to[1] + 4 * a);
        } else {
            turn_lines(at, 4, left > 8, to[0] + 4 * a);
            if (left > 16)
                turn_lines(at + 128, 4, left > 24, to[1] + 4 * a);
        }
    }
}

HRI_INLINE void multiply_chunk(const struct sum_job *job, uint32_t chunk,
                               const uint8_t (*from)[16][64])
{
    TILE_LOAD(2, job->weights[chunk][0], 64);
    TILE_LOAD(3, from[0][0], 64);
    TILE_DP_SU(0, 2, 3);
    TILE_LOAD(4, from[1][0], 64);
    TILE_DP_SU(1, 2, 4);
}

/* acc[head][0..width) += the sums of one block of 16 dimensions. scale: of each dimension. */
HRI_INLINE void add_sums(const struct sum_job *job, int block, vf scale, float middle,
                         uint32_t width, float *acc)
{
    const size_t stride = job->s.n4 + job->s.n2;

    for (uint32_t i = 0; i < job->queries; i++) {
        const vf high = _mm512_cvtepi32_ps(_mm512_load_si512(job->sums[block][i]));
        const vf low = _mm512_cvtepi32_ps(_mm512_load_si512(job->sums[block][job->queries + i]));
        const vf sum = vf_mul(vf_fma(high, vf_set(256.0f), low), scale);
        const vf centred = vf_sub(sum, vf_set(middle * job->total[i]));
        float *at = acc + i * stride;
        vf_store_n(at, vf_fma(centred, vf_set(job->step[i]), vf_load_n(at, width)), width);
    }
}

/* The finished sums of 32 dimensions. */
HRI_INLINE void take_sums(struct sum_job *job, const int bits, uint32_t left, float *acc)
{
    const vf scale = vf_div(vf_set(1.0f), _mm512_cvtepi32_ps(bits == 2 ? quarters(1, 4, 16, 64)
                                                                       : quarters(1, 16, 1, 16)));
    const float middle = bits == 2 ? 1.5f : 7.5f;

    TILE_STORE(job->sums[0], 64, 0);
    TILE_STORE(job->sums[1], 64, 1);
    TILE_ZERO(0);
    TILE_ZERO(1);
    add_sums(job, 0, scale, middle, left < 16 ? left : 16, acc);
    if (left > 16)
        add_sums(job, 1, scale, middle, left < 32 ? left - 16 : 16, acc + 16);
}

/* What a batch adds to the dimensions of one width: the right operands are made AHEAD of their use. */
HRI_INLINE void sum_part(struct sum_job *job, const int bits, struct sum_part part, float *acc)
{
    const uint32_t chunks = (job->now->n + 3) / 4, n = (part.width + 31) / 32 * chunks;
    uint32_t i = 0, chunk = 0, made_i = 0, made_chunk = 0;

    for (uint32_t at = 0; at < n + AHEAD; at++) {
        if (at < n) {
            turn_chunk(job, bits, part, made_i, 4 * made_chunk, job->turned[at % RING]);
            ask_for_group(job);
            if (++made_chunk == chunks) {
                made_chunk = 0;
                made_i += 32;
            }
        }
        if (at < AHEAD)
            continue;
        multiply_chunk(job, chunk, (const uint8_t(*)[16][64])job->turned[(at - AHEAD) % RING]);
        if (++chunk == chunks) {
            take_sums(job, bits, part.width - i, acc + i);
            chunk = 0;
            i += 32;
        }
    }
}

static void add_batch(struct sum_job *job, const float *w, size_t w_stride, float *acc)
{
    bool used = false;

    for (uint32_t j = job->now->n; j % 4 != 0; j++) { /* groups that are not there weigh nothing */
        for (uint32_t i = 0; i < 2 * job->queries; i++)
            _mm_store_si128((void *)(job->weights[j / 4][i] + j % 4 * 16), _mm_setzero_si128());
    }
    for (uint32_t i = 0; i < job->queries; i++)
        used |= set_weights(job, i, w + i * w_stride);
    if (!used)
        return;
    TILE_ZERO(0);
    TILE_ZERO(1);
    sum_part(job, 4, (struct sum_part){0, job->s.n4}, acc);
    sum_part(job, 2, (struct sum_part){(size_t)job->s.n4 * 8, job->s.n2}, acc + job->s.n4);
}

static bool group_is_used(const float *w, size_t w_stride, uint32_t g)
{
    __m512i any = _mm512_setzero_si512();

    for (uint32_t i = 0; i < g; i++)
        any = _mm512_or_si512(any, _mm512_castps_si512(vf_abs(vf_load(w + i * w_stride))));
    return _mm512_test_epi32_mask(any, any) != 0;
}

/* The next groups of the list that weigh anything; returns where the list goes on. */
static uint32_t collect(const struct sum_job *job, const uint32_t *groups, uint32_t j,
                        uint32_t n_groups, const float *w, size_t w_stride, struct sum_batch *batch)
{
    for (batch->n = 0; j < n_groups && batch->n < BATCH; j++) {
        if (!group_is_used(w + (size_t)16 * groups[j], w_stride, job->queries))
            continue;
        batch->group[batch->n] = groups[j];
        batch->codes[batch->n++] = job->s.codes + groups[j] * job->group_bytes;
    }
    return j;
}

/* Up to QUERIES heads. */
static void sum_heads(struct sum_job *job, const uint32_t *groups, uint32_t n_groups,
                      const float *w, size_t w_stride, float *acc)
{
    struct sum_batch *now = &job->batches[0], *next = &job->batches[1];
    struct tile_shapes shapes = {0};
    uint32_t j = 0;

    for (int tile = 0; tile < 3; tile++)
        tile_shape(&shapes, tile, 2 * job->queries, 64);
    tile_shape(&shapes, 3, 16, 64);
    tile_shape(&shapes, 4, 16, 64);
    tiles_begin(&shapes);
    j = collect(job, groups, j, n_groups, w, w_stride, now);
    job->next = now;
    for (job->asked = 0; job->asked < now->n;)
        ask_for_group(job);
    while (now->n > 0) {
        struct sum_batch *other = now;
        j = collect(job, groups, j, n_groups, w, w_stride, next);
        job->now = now;
        job->next = next;
        job->asked = 0;
        add_batch(job, w, w_stride, acc);
        now = next;
        next = other;
    }
    tiles_end();
}

void hri_amx_sum_sketch(struct hri_sketch_rows s, uint32_t g, const uint32_t *groups,
                        uint32_t n_groups, const float *w, size_t w_stride, float *acc)
{
    struct sum_job job;

    if (n_groups == 0)
        return;
    job.s = s;
    job.group_bytes = hri_sketch_group_bytes(s.n4, s.n2);
    for (uint32_t i = 0; i < g; i += QUERIES) {
        job.queries = g - i < QUERIES ? g - i : QUERIES;
        sum_heads(&job, groups, n_groups, w + i * w_stride, w_stride,
                  acc + (size_t)i * (s.n4 + s.n2));
    }
}
