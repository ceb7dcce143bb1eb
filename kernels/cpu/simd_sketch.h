/* Sums of sketched rows, packing of sketches, and int8 rows from anywhere. The scores of sketches
 * differ between the instruction sets: see avx2_sketch.c and avx512_sketch.c.
 *
 * A sum over rows goes across the lanes of a line. One byte shuffle turns four rows' four bytes
 * around, so that a 32-bit lane holds one dimension of four rows; masks then give 16-bit numbers of
 * every other row, which are multiplied by weights of 15 bits and added in pairs. Codes stay where
 * they are in their byte: the sum of slice s comes out larger by a power of two and is scaled back
 * at the end. Weights are rounded to a step of their batch's largest / 32767.
 *
 * Before including, after a simd_*.h: vi (a vector of VI_BYTES bytes), vi_load, vi_and,
 * vi_shift_byte (every 16 bits right by 8), vi_turn (4 x 4 bytes in each 128 bits),
 * vi_add_pairs(sum, a, b) (sum + products of 16-bit pairs), vi_fold (the sum of the 128-bit parts),
 * and SKETCH_HEADS, the heads that are summed at once. With SUM_AHEAD 1 the lines of the next groups
 * are asked for one by one while a batch is summed. */
#ifndef HRI_SIMD_SKETCH_H
#define HRI_SIMD_SKETCH_H

#include "kernels/cpu/simd_rows.h"

/* Groups that share the step of their weights. Sums of 32 bits hold 16 rows x 240 x 32767 of each. */
#define SUM_GROUPS 16
#define WEIGHT_MAX 32767.0f
#ifndef SUM_AHEAD
#define SUM_AHEAD 0
#endif

struct sum_batch {
    /* Per head and group: rows 0 and 2 of every four for each of four lanes, then rows 1 and 3. */
    int16_t weights[SKETCH_HEADS][SUM_GROUPS][64] __attribute__((aligned(64)));
    const uint8_t *codes[SUM_GROUPS], *ahead[SUM_GROUPS]; /* ahead: groups of the next batch */
    uint32_t group[SUM_GROUPS], n;
    float step[SKETCH_HEADS], total[SKETCH_HEADS]; /* total: sum of the rounded weights */
};

/* The largest |w| of 16 rows, in 8 lanes. */
HRI_INLINE __m256 largest_of_16(const float *w)
{
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return _mm256_max_ps(_mm256_andnot_ps(sign, _mm256_loadu_ps(w)),
                         _mm256_andnot_ps(sign, _mm256_loadu_ps(w + 8)));
}

HRI_INLINE float largest_of_8(__m256 x)
{
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}

/* Rounded weights of 8 rows into both places of `out`; returns them as 32 bits. */
HRI_INLINE __m256i place_weights(const float *w, __m256 inverse, int16_t *out)
{
    const __m256i v = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(w), inverse));
    const __m256i other = _mm256_slli_epi32(_mm256_shuffle_epi32(v, 0x4e), 16);
    const __m256i pairs = _mm256_blend_epi16(v, other, 0xaa); /* rows 0, 2; rows 1, 3; ... */

    _mm256_store_si256((void *)out, _mm256_shuffle_epi32(pairs, 0x00));
    _mm256_store_si256((void *)(out + 32), _mm256_shuffle_epi32(pairs, 0x55));
    return v;
}

/* One head's weights of a batch; false if all are 0. */
HRI_INLINE bool batch_head(struct sum_batch *batch, const int head, const float *w)
{
    __m256 most = _mm256_setzero_ps();
    __m256i sum = _mm256_setzero_si256();

    for (uint32_t j = 0; j < batch->n; j++)
        most = _mm256_max_ps(most, largest_of_16(w + (size_t)16 * batch->group[j]));
    const float largest = largest_of_8(most);
    const bool used = hri_scales_to(largest, WEIGHT_MAX);
    const __m256 inverse = _mm256_set1_ps(used ? WEIGHT_MAX / largest : 0.0f);
    for (uint32_t j = 0; j < batch->n; j++) {
        const float *at = w + (size_t)16 * batch->group[j];
        int16_t *out = batch->weights[head][j];
        sum = _mm256_add_epi32(sum, place_weights(at, inverse, out));
        sum = _mm256_add_epi32(sum, place_weights(at + 8, inverse, out + 16));
    }
    const __m128i half =
        _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
    const __m128i pair = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4e));
    batch->total[head] = (float)_mm_cvtsi128_si32(_mm_add_epi32(pair, _mm_shuffle_epi32(pair, 1)));
    batch->step[head] = used ? largest / WEIGHT_MAX : 0.0f;
    return used;
}

/* acc[head][0..4 slices) += what a line adds, its sums as sum_line left them. */
HRI_INLINE void add_sums(vi sum[4][SKETCH_HEADS], const int heads, const int bits,
                         const struct sum_batch *batch, float *acc, size_t acc_stride)
{
    const float middle = bits == 4 ? 7.5f : 1.5f;

    HRI_UNROLL
    for (int i = 0; i < heads; i++) {
        const __m128 centre = _mm_set1_ps(-middle * batch->total[i] * batch->step[i]);
        HRI_UNROLL
        for (int s = 0; s < 8 / bits; s++) {
            float *at = acc + i * acc_stride + 4 * s;
            const __m128 step = _mm_set1_ps(batch->step[i] / (float)(1 << bits * s));
            const __m128 scaled = _mm_mul_ps(_mm_cvtepi32_ps(vi_fold(sum[s][i])), step);
            _mm_storeu_ps(at, _mm_add_ps(_mm_loadu_ps(at), _mm_add_ps(scaled, centre)));
        }
    }
}

/* One line, at `offset` of each group of the batch. */
HRI_INLINE void sum_line(const int heads, const int bits, const struct sum_batch *batch,
                         size_t offset, float *acc, size_t acc_stride)
{
    vi sum[4][SKETCH_HEADS];

    HRI_UNROLL
    for (int s = 0; s < 8 / bits; s++) {
        HRI_UNROLL
        for (int i = 0; i < heads; i++)
            sum[s][i] = vi_set(0);
    }
    for (uint32_t j = 0; j < batch->n; j++) {
        if (SUM_AHEAD)
            _mm_prefetch((const char *)batch->ahead[j] + offset, _MM_HINT_T0);
        HRI_UNROLL
        for (int part = 0; part < 128 / VI_BYTES; part++) {
            const int odd = part * VI_BYTES / 64, byte = part * VI_BYTES % 64;
            vi x = vi_turn(vi_load(batch->codes[j] + offset + byte));
            if (odd)
                x = vi_shift_byte(x);
            HRI_UNROLL
            for (int s = 0; s < 8 / bits; s++) {
                const vi code = vi_and(x, vi_set(((1 << bits) - 1) << bits * s));
                HRI_UNROLL
                for (int i = 0; i < heads; i++)
                    sum[s][i] = vi_add_pairs(sum[s][i], code,
                                             vi_load(batch->weights[i][j] + part * (VI_BYTES / 2)));
            }
        }
    }
    add_sums(sum, heads, bits, batch, acc, acc_stride);
}

HRI_INLINE void sum_heads_of(const int heads, struct sum_batch *batch, struct hri_sketch_rows s,
                             const float *w, size_t w_stride, float *acc)
{
    const size_t stride = s.n4 + s.n2;
    bool used = false;

    for (int i = 0; i < heads; i++)
        used |= batch_head(batch, i, w + i * w_stride);
    if (!used)
        return;
    for (uint32_t i = 0; i < s.n4; i += 8)
        sum_line(heads, 4, batch, (size_t)i * 8, acc + i, stride);
    for (uint32_t i = 0; i < s.n2; i += 16)
        sum_line(heads, 2, batch, (size_t)s.n4 * 8 + (size_t)i * 4, acc + s.n4 + i, stride);
}

static void sum_batch(struct sum_batch *batch, struct hri_sketch_rows s, uint32_t g, const float *w,
                      size_t w_stride, float *acc)
{
    const size_t stride = s.n4 + s.n2;
    uint32_t i = 0;

    for (; i + SKETCH_HEADS <= g; i += SKETCH_HEADS)
        sum_heads_of(SKETCH_HEADS, batch, s, w + i * w_stride, w_stride, acc + i * stride);
#if SKETCH_HEADS > 2
    if (g - i == 3)
        sum_heads_of(3, batch, s, w + i * w_stride, w_stride, acc + i * stride);
    else if (g - i == 2)
        sum_heads_of(2, batch, s, w + i * w_stride, w_stride, acc + i * stride);
    else
#endif
        if (g - i == 1)
        sum_heads_of(1, batch, s, w + i * w_stride, w_stride, acc + i * stride);
}

HRI_INLINE bool group_is_used(const float *w, size_t w_stride, uint32_t g)
{
    __m256 any = _mm256_setzero_ps();

    for (uint32_t i = 0; i < g; i++)
        any = _mm256_or_ps(any, largest_of_16(w + i * w_stride));
    return !_mm256_testz_si256(_mm256_castps_si256(any), _mm256_castps_si256(any));
}

void HRI_OP(sum_sketch)(struct hri_sketch_rows s, uint32_t g, const uint32_t *groups,
                        uint32_t n_groups, const float *w, size_t w_stride, float *acc)
{
    const size_t bytes = hri_sketch_group_bytes(s.n4, s.n2);
    struct sum_batch batch;

    batch.n = 0;
    for (uint32_t j = 0; SUM_AHEAD && j < n_groups && j < SUM_GROUPS; j++)
        prefetch_near(s.codes + groups[j] * bytes, bytes);
    for (uint32_t j = 0; j < n_groups; j++) {
        if (!group_is_used(w + (size_t)16 * groups[j], w_stride, g))
            continue;
        batch.group[batch.n] = groups[j];
        batch.codes[batch.n] = s.codes + groups[j] * bytes;
        if (SUM_AHEAD)
            batch.ahead[batch.n] =
                s.codes + groups[j + SUM_GROUPS < n_groups ? j + SUM_GROUPS : n_groups - 1] * bytes;
        else
            prefetch_near(batch.codes[batch.n], bytes);
        batch.n++;
        if (batch.n == SUM_GROUPS) {
            sum_batch(&batch, s, g, w, w_stride, acc);
            batch.n = 0;
        }
    }
    if (batch.n > 0)
        sum_batch(&batch, s, g, w, w_stride, acc);
}

/* -- scores: what both instruction sets do -- */

/* What one call scores. */
struct score_job {
    const struct hri_sketch_query *q;
    struct hri_sketch_rows s;
    const uint32_t *groups;
    uint32_t n_groups, n_listed, g;
    float *out;
    size_t out_stride, bytes; /* bytes of a group */
};

/* How far ahead groups are asked for. */
#ifndef AHEAD_GROUPS
#define AHEAD_GROUPS 8u
#endif

/* The group to ask for with the j-th; at the end of the list the last one. */
HRI_INLINE size_t group_ahead(const struct score_job *job, uint32_t j)
{
    return job->groups[j + AHEAD_GROUPS < job->n_listed ? j + AHEAD_GROUPS : job->n_listed - 1];
}

/* -- packing -- */

/* Codes of 8 dimensions as 32-bit numbers. */
HRI_INLINE __m256i codes_of_8(const float *z, const float *inv_step, float middle, float most)
{
    __m256 x =
        _mm256_fmadd_ps(_mm256_loadu_ps(z), _mm256_loadu_ps(inv_step), _mm256_set1_ps(middle));
    x = _mm256_max_ps(x, _mm256_setzero_ps()); /* a NaN becomes 0 */
    return _mm256_cvtps_epi32(_mm256_min_ps(x, _mm256_set1_ps(most)));
}

/* The low halves, and the high halves moved up by `bits`, as bytes of one 32-bit lane. */
HRI_INLINE void store_lane(uint8_t *lane, __m256i x, const int bits)
{
    const __m128i first =
        _mm_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
    __m128i both = _mm_or_si128(_mm256_castsi256_si128(x),
                                _mm_slli_epi32(_mm256_extracti128_si256(x, 1), bits));
    const int32_t word = _mm_cvtsi128_si32(_mm_shuffle_epi8(both, first));
    memcpy(lane, &word, sizeof word);
}

static void pack_row(const float *z, const float *inv_step, uint32_t n4, uint32_t n2, uint8_t *lane)
{
    for (uint32_t i = 0; i < n4; i += 8, lane += 64)
        store_lane(lane, codes_of_8(z + i, inv_step + i, 7.5f, 15.0f), 4);
    z += n4;
    inv_step += n4;
    for (uint32_t i = 0; i < n2; i += 16, lane += 64) {
        const __m256i low = codes_of_8(z + i, inv_step + i, 1.5f, 3.0f);
        const __m256i high = codes_of_8(z + i + 8, inv_step + i + 8, 1.5f, 3.0f);
        store_lane(lane, _mm256_or_si256(low, _mm256_slli_epi32(high, 4)), 2);
    }
}

void HRI_OP(pack_sketch)(const float *z, size_t z_stride, uint32_t n, const float *inv_step,
                         uint32_t n4, uint32_t n2, uint8_t *codes, uint32_t first_row)
{
    const size_t bytes = hri_sketch_group_bytes(n4, n2);

    for (uint32_t row = first_row; row < first_row + n; row++, z += z_stride)
        pack_row(z, inv_step, n4, n2, codes + row / 16 * bytes + (size_t)(row % 16) * 4);
}

/* -- int8 rows from anywhere -- */

/* Rows of a tile: short, so that little is left without a prefetch at the beginning. */
#define GATHER_ROWS 32u

HRI_INLINE void cursor_gather(struct row_cursor *cursor, const int8_t *const *codes, uint32_t n,
                              uint32_t width, size_t offset)
{
    cursor_init(cursor, NULL, 0, n, ELEMENT_I8, width);
    cursor->list = (const void *const *)codes;
    cursor->step = GATHER_ROWS;
    for (uint32_t i = 0; i < n && i < GATHER_ROWS; i++)
        prefetch_near(codes[i] + offset, width);
}

void HRI_OP(score_gather_i8)(const float *q, uint32_t g, uint32_t dk, const int8_t *const *codes,
                             const float *k_step, uint32_t n, float *out, size_t out_stride)
{
    float x[HR_GROUP_MAX * GATHER_ROWS] __attribute__((aligned(64)));
    struct row_cursor cursor;

    cursor_gather(&cursor, codes, n, dk, 0);
    while (cursor_next(&cursor)) {
        const uint32_t count = cursor.tile.n, first = cursor.at - count;
        dot_tile(q, g, dk, &cursor.tile, x, GATHER_ROWS);
        for (uint32_t i = 0; i < g; i++) {
            float *at = out + i * out_stride + first;
            for (uint32_t r = 0; r < count; r++)
                at[r] = x[i * GATHER_ROWS + r] * k_step[first + r];
        }
    }
}

void HRI_OP(sum_gather_i8)(const float *w, size_t w_stride, uint32_t g, uint32_t dk, uint32_t dv,
                           const int8_t *const *codes, const float *v_step, uint32_t n, float *o)
{
    float x[HR_GROUP_MAX * GATHER_ROWS] __attribute__((aligned(64)));
    struct row_cursor cursor;

    cursor_gather(&cursor, codes, n, dv, dk);
    while (cursor_next(&cursor)) {
        const uint32_t count = cursor.tile.n, first = cursor.at - count;
        for (uint32_t i = 0; i < g; i++) {
            const float *at = w + i * w_stride + first;
            for (uint32_t r = 0; r < count; r++)
                x[i * GATHER_ROWS + r] = at[r] * v_step[first + r];
        }
        sum_tile(x, GATHER_ROWS, g, &cursor.tile, dk, dv, o);
    }
}

#endif
