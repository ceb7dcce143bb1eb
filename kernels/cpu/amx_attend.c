/* Attention over bfloat16 rows on tiles. Keys and values are operands as they lie in memory.
 *
 * Scores: 16 rows x 32 dimensions are a left operand. The right one has the queries, each as three
 * bfloat16 parts that together hold its 24 bits; a logit is the sum of three columns.
 *
 * Sums: 16 rows x 32 dimensions are a right operand whose pairs are dimensions 2n and 2n + 1 of one
 * row. The left one has each weight next to a 0: first, which sums the even dimensions, and second,
 * which sums the odd ones; and each in two parts that together hold 16 bits. Half of the products
 * are wasted, but pairs of rows, which would fill them, would have to be interleaved, stored and
 * loaded again, which costs more.
 *
 * A batch of rows is scored, weighed and summed; the next one is asked for on the way. The last few
 * rows are copied to where a tile is full. Other types, odd widths, few rows and rows from anywhere,
 * which would have to be copied, go to AVX-512. */
#include "kernels/cpu/simd_avx512.h"

#include "kernels/cpu/simd_amx.h"
#include "kernels/cpu/simd_softmax.h"

#include "kernels/cpu/simd_take.h"

#define QUERIES    8 /* at once */
#define PARTS      3
#define BLOCKS_MAX 2 /* of 16 columns: parts of queries */
#define CHUNK      32u
#define TILE_ROWS  16u
/* Of a batch, if that is at least a tile of rows. */
#define BATCH_BYTES 24576u
/* Fewer rows do not pay for setting up. */
#define ROWS_MIN 192u

struct attend_job {
    uint16_t queries[BLOCKS_MAX][HRI_DIM_MAX / CHUNK][16][32] __attribute__((aligned(64)));
    float sums[BLOCKS_MAX][TAKE_ROWS][16] __attribute__((aligned(64)));
    float x[QUERIES * TAKE_ROWS] __attribute__((aligned(64)));
    /* Per 16 rows: [even, odd][high, low][g], one tile if that fits, otherwise two. */
    uint32_t weights[TAKE_ROWS / TILE_ROWS][2][16][16] __attribute__((aligned(64)));
    float parts[4][16][16] __attribute__((aligned(64)));
    uint16_t copies[TILE_ROWS][2 * HRI_DIM_MAX] __attribute__((aligned(64))); /* the last rows */
    uint32_t g, dk, dv, blocks;
    bool split; /* the weights take two tiles */
};

/* Some rows: whole tiles of them, or the last few with rows of 0 after them. */
struct batch {
    const char *rows;
    size_t stride;
    uint32_t n;
    /* Rows of the next batch that nobody asked for yet. */
    const char *ahead, *ahead_end;
    size_t ahead_stride, row_bytes;
};

/* Asks for rows of the next batch, a few lines between pieces of work: the processor has room for
 * about 16 that are on their way and stands still while more are asked for. */
HRI_INLINE void ask(struct batch *batch, uint32_t rows)
{
    const char *at = batch->ahead, *end = batch->ahead_end;
    const size_t stride = batch->ahead_stride, bytes = batch->row_bytes;

    for (; rows > 0 && at != end; rows--, at += stride) {
        size_t i = 0;
        for (; i + 256 <= bytes; i += 256) {
            _mm_prefetch(at + i, _MM_HINT_T1);
            _mm_prefetch(at + i + 64, _MM_HINT_T1);
            _mm_prefetch(at + i + 128, _MM_HINT_T1);
            _mm_prefetch(at + i + 192, _MM_HINT_T1);
        }
        for (; i < bytes; i += 64)
            _mm_prefetch(at + i, _MM_HINT_T1);
    }
    batch->ahead = at;
}

/* x = high + what is returned; high has 8 bits. */
HRI_INLINE vf split(vf x, vf *high)
{
    const __m512i bits = _mm512_add_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(0x8000));
    *high = _mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32((int)0xffff0000u)));
    return vf_sub(x, *high);
}

/* 32 numbers that have 8 bits. */
HRI_INLINE __m512i halves(vf low, vf high)
{
    return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}

/* Columns p g + i of 32 dimensions, as pairs: part p of query i. */
HRI_INLINE void set_chunk(struct attend_job *job, const float *q, uint32_t c)
{
    vf columns[BLOCKS_MAX * 16];

    for (uint32_t i = 0; i < job->blocks * 16; i++)
        columns[i] = vf_zero();
    for (uint32_t i = 0; i < job->g; i++) {
        const float *at = q + (size_t)i * job->dk + c * CHUNK;
        vf a = vf_load(at), b = vf_load(at + 16), a_part, b_part;
        for (uint32_t p = 0; p < PARTS; p++) {
            a = split(a, &a_part);
            b = split(b, &b_part);
            columns[p * job->g + i] = _mm512_castsi512_ps(halves(a_part, b_part));
        }
    }
    for (uint32_t b = 0; b < job->blocks; b++) {
        vf_transpose(columns + 16 * b);
        for (uint32_t r = 0; r < 16; r++)
            _mm512_store_ps(job->queries[b][c][r], columns[16 * b + r]);
    }
}

/* Tiles 0..3: sums; 4, 6: left; 5, 7: right. */
static void begin(struct attend_job *job, const float *q, uint32_t g, uint32_t dk, uint32_t dv)
{
    struct tile_shapes shapes = {0};

    job->g = g;
    job->dk = dk;
    job->dv = dv;
    job->blocks = (PARTS * g + 15) / 16;
    job->split = 4 * g > 16;
    for (uint32_t c = 0; c * CHUNK < dk; c++)
        set_chunk(job, q, c);
    memset(job->weights, 0, sizeof job->weights);
    for (int tile = 0; tile < 8; tile++)
        tile_shape(&shapes, tile, 16, 64);
    tiles_begin(&shapes);
}

/* -- scores -- */

/* sums[row][column] of up to four tiles of rows. */
HRI_INLINE void score_tiles(const struct attend_job *job, struct batch *batch, uint32_t block,
                            const char *keys, uint32_t tiles, float (*sums)[16])
{
    const char *at = keys;
    const size_t stride = batch->stride;

    TILE_ZERO(0);
    TILE_ZERO(1);
    TILE_ZERO(2);
    TILE_ZERO(3);
    for (uint32_t c = 0; c < job->dk / CHUNK; c++, at += 2 * CHUNK) {
        TILE_LOAD(5, job->queries[block][c], 64);
        TILE_LOAD(4, at, stride);
        TILE_DP_BF16(0, 4, 5);
        ask(batch, 1);
        if (tiles > 1) {
            TILE_LOAD(6, at + 16 * stride, stride);
            TILE_DP_BF16(1, 6, 5);
            ask(batch, 1);
        }
        if (tiles > 2) {
            TILE_LOAD(4, at + 32 * stride, stride);
            TILE_DP_BF16(2, 4, 5);
            ask(batch, 1);
        }
        if (tiles > 3) {
            TILE_LOAD(6, at + 48 * stride, stride);
            TILE_DP_BF16(3, 6, 5);
            ask(batch, 1);
        }
    }
    TILE_STORE(sums[0], 64, 0);
    if (tiles > 1)
        TILE_STORE(sums[16], 64, 1);
    if (tiles > 2)
        TILE_STORE(sums[32], 64, 2);
    if (tiles > 3)
        TILE_STORE(sums[48], 64, 3);
}

/* Logits of 16 rows. Where the whole is not finite the largest part says which way it went. */
HRI_INLINE void add_parts(struct attend_job *job, uint32_t row)
{
    vf columns[BLOCKS_MAX * 16];

    for (uint32_t b = 0; b < job->blocks; b++) {
        for (uint32_t r = 0; r < 16; r++)
            columns[16 * b + r] = vf_load(job->sums[b][row + r]);
        vf_transpose(columns + 16 * b);
    }
    for (uint32_t i = 0; i < job->g; i++) {
        const vf high = columns[i];
        const vf sum = vf_add(high, vf_add(columns[job->g + i], columns[2 * job->g + i]));
        const __mmask16 lost = _mm512_fpclass_ps_mask(sum, 0x99); /* NaN, infinite */
        vf_store(job->x + i * TAKE_ROWS + row, _mm512_mask_mov_ps(sum, lost, high));
    }
}

/* The same for four queries, whose parts are the quarters of a row: added first, four rows at a time. */
HRI_INLINE void add_quarters(struct attend_job *job, uint32_t row)
{
    vf sum[4];

    HRI_UNROLL
    for (int r = 0; r < 4; r++) {
        const float(*at)[16] = (const float(*)[16])job->sums[0] + row + 4 * r;
        const vf a = vf_load(at[0]), b = vf_load(at[1]), c = vf_load(at[2]), d = vf_load(at[3]);
        const vf ab = _mm512_shuffle_f32x4(a, b, 0x44), cd = _mm512_shuffle_f32x4(c, d, 0x44);
        const vf high = _mm512_shuffle_f32x4(ab, cd, 0x88),
                 middle = _mm512_shuffle_f32x4(ab, cd, 0xdd),
                 low = _mm512_shuffle_f32x4(_mm512_shuffle_f32x4(a, b, 0xee),
                                            _mm512_shuffle_f32x4(c, d, 0xee), 0x88);
        const vf all = vf_add(high, vf_add(middle, low));
        const __mmask16 lost = _mm512_fpclass_ps_mask(all, 0x99); /* NaN, infinite */
        sum[r] = _mm512_mask_mov_ps(all, lost, high);
    }
    /* Lane 4l + i of sum[r] is row 4r + l, query i. */
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    HRI_UNROLL
    for (int r = 0; r < 4; r++)
        sum[r] = _mm512_permutexvar_ps(order, sum[r]); /* quarter i: rows 4r.. of query i */
    const vf a = _mm512_shuffle_f32x4(sum[0], sum[1], 0x44),
             b = _mm512_shuffle_f32x4(sum[2], sum[3], 0x44),
             c = _mm512_shuffle_f32x4(sum[0], sum[1], 0xee),
             d = _mm512_shuffle_f32x4(sum[2], sum[3], 0xee);
    vf_store(job->x + row, _mm512_shuffle_f32x4(a, b, 0x88));
    vf_store(job->x + TAKE_ROWS + row, _mm512_shuffle_f32x4(a, b, 0xdd));
    vf_store(job->x + 2 * TAKE_ROWS + row, _mm512_shuffle_f32x4(c, d, 0x88));
    vf_store(job->x + 3 * TAKE_ROWS + row, _mm512_shuffle_f32x4(c, d, 0xdd));
}

/* x of the batch's rows. */
static void score_batch(struct attend_job *job, struct batch *batch)
{
    const uint32_t tiles = (batch->n + TILE_ROWS - 1) / TILE_ROWS;

    for (uint32_t t = 0; t < tiles; t += 4) {
        const uint32_t row = t * TILE_ROWS, some = tiles - t < 4 ? tiles - t : 4;
        for (uint32_t b = 0; b < job->blocks; b++)
            score_tiles(job, batch, b, batch->rows + row * batch->stride, some, job->sums[b] + row);
    }
    for (uint32_t t = 0; t < tiles; t++) {
        if (job->g == 4)
            add_quarters(job, t * TILE_ROWS);
        else
            add_parts(job, t * TILE_ROWS);
        ask(batch, 3);
    }
}

/* -- sums -- */

/* Rows the last tile lacks weigh 0. */
static void set_weights(struct attend_job *job, struct batch *batch)
{
    const uint32_t g = job->g, n = batch->n;

    for (uint32_t t = 0; t * TILE_ROWS < n; t++) {
        const uint32_t left = n - t * TILE_ROWS, rows = left < TILE_ROWS ? left : TILE_ROWS;
        uint32_t(*even)[16] = job->weights[t][0],
        (*odd)[16] = job->split ? job->weights[t][1] : even + 2 * g;
        for (uint32_t i = 0; i < g; i++) {
            vf high, low;
            const vf rest = split(vf_load_n(job->x + i * TAKE_ROWS + t * TILE_ROWS, rows), &high);
            (void)split(rest, &low);
            _mm512_store_si512(even[i], _mm512_srli_epi32(_mm512_castps_si512(high), 16));
            _mm512_store_si512(even[g + i], _mm512_srli_epi32(_mm512_castps_si512(low), 16));
            _mm512_store_si512(odd[i], _mm512_castps_si512(high));
            _mm512_store_si512(odd[g + i], _mm512_castps_si512(low));
        }
        ask(batch, 3);
    }
}

/* o[i][0..CHUNK) += the sums of a strip of dimensions. */
HRI_INLINE void add_strip(const struct attend_job *job, const float (*even)[16],
                          const float (*odd)[16], float *o)
{
    for (uint32_t i = 0; i < job->g; i++, o += job->dv) {
        vf a = vf_add(vf_load(even[i]), vf_load(even[job->g + i]));
        vf b = vf_add(vf_load(odd[i]), vf_load(odd[job->g + i]));
        vf_zip(&a, &b);
        vf_store(o, vf_add(vf_load(o), a));
        vf_store(o + 16, vf_add(vf_load(o + 16), b));
    }
}

HRI_INLINE void store_parts(struct attend_job *job)
{
    TILE_STORE(job->parts[0], 64, 0);
    TILE_STORE(job->parts[1], 64, 1);
    TILE_STORE(job->parts[2], 64, 2);
    TILE_STORE(job->parts[3], 64, 3);
}

/* Up to four strips, the weights being one tile. */
HRI_INLINE void sum_strips(struct attend_job *job, struct batch *batch, const char *values,
                           uint32_t strips, float *o)
{
    const char *at = values;

    for (uint32_t t = 0; t * TILE_ROWS < batch->n; t++, at += TILE_ROWS * batch->stride) {
        TILE_LOAD(4, job->weights[t][0], 64);
        TILE_LOAD(5, at, batch->stride);
        TILE_DP_BF16(0, 4, 5);
        ask(batch, 1);
        if (strips > 1) {
            TILE_LOAD(7, at + 64, batch->stride);
            TILE_DP_BF16(1, 4, 7);
            ask(batch, 1);
        }
        if (strips > 2) {
            TILE_LOAD(5, at + 128, batch->stride);
            TILE_DP_BF16(2, 4, 5);
            ask(batch, 1);
        }
        if (strips > 3) {
            TILE_LOAD(7, at + 192, batch->stride);
            TILE_DP_BF16(3, 4, 7);
            ask(batch, 1);
        }
    }
    store_parts(job);
    for (uint32_t s = 0; s < strips; s++)
        add_strip(job, (const float(*)[16])job->parts[s],
                  (const float(*)[16])job->parts[s] + 2 * job->g, o + s * CHUNK);
}

/* Up to two strips, the weights being two tiles. */
HRI_INLINE void sum_strips_split(struct attend_job *job, struct batch *batch, const char *values,
                                 uint32_t strips, float *o)
{
    const char *at = values;

    for (uint32_t t = 0; t * TILE_ROWS < batch->n; t++, at += TILE_ROWS * batch->stride) {
        TILE_LOAD(4, job->weights[t][0], 64);
        TILE_LOAD(6, job->weights[t][1], 64);
        TILE_LOAD(5, at, batch->stride);
        TILE_DP_BF16(0, 4, 5);
        ask(batch, 1);
        TILE_DP_BF16(1, 6, 5);
        ask(batch, 1);
        if (strips > 1) {
            TILE_LOAD(7, at + 64, batch->stride);
            TILE_DP_BF16(2, 4, 7);
            ask(batch, 1);
            TILE_DP_BF16(3, 6, 7);
            ask(batch, 1);
        }
    }
    store_parts(job);
    for (uint32_t s = 0; s < strips; s++)
        add_strip(job, (const float(*)[16])job->parts[2 * s],
                  (const float(*)[16])job->parts[2 * s + 1], o + s * CHUNK);
}

/* o += weights x values of the batch. */
static void sum_batch(struct attend_job *job, struct batch *batch, float *o)
{
    const uint32_t strips = job->dv / CHUNK, most = job->split ? 2 : 4;
    const char *values = batch->rows + 2 * (size_t)job->dk;

    for (uint32_t s = 0; s < strips; s += most) {
        const uint32_t some = strips - s < most ? strips - s : most;
        TILE_ZERO(0);
        TILE_ZERO(1);
        TILE_ZERO(2);
        TILE_ZERO(3);
        if (job->split)
            sum_strips_split(job, batch, values + s * (size_t)64, some, o + s * CHUNK);
        else
            sum_strips(job, batch, values + s * (size_t)64, some, o + s * CHUNK);
    }
}

/* -- rows -- */

/* A batch from row `at` on; a run's last rows, which do not fill a tile, are one of their own. */
static void take_batch(struct attend_job *job, struct hri_rows rows, uint32_t width, uint32_t at,
                       struct batch *batch)
{
    const size_t row_bytes = 2 * (size_t)width;
    const uint32_t most = BATCH_BYTES / (uint32_t)row_bytes & ~(TILE_ROWS - 1),
                   step = most < TILE_ROWS   ? TILE_ROWS
                          : most > TAKE_ROWS ? TAKE_ROWS
                                             : most,
                   left = rows.n - at;
    const char *first = (const char *)rows.base + at * rows.stride_bytes;

    batch->n = left >= step ? step : left >= TILE_ROWS ? left & ~(TILE_ROWS - 1) : left;
    batch->rows = first;
    batch->stride = rows.stride_bytes;
    if (batch->n < TILE_ROWS) {
        memset(job->copies, 0, sizeof job->copies);
        for (uint32_t r = 0; r < batch->n; r++)
            memcpy(job->copies[r], first + r * rows.stride_bytes, row_bytes);
        batch->rows = (const char *)job->copies;
        batch->stride = sizeof *job->copies;
    }
    batch->ahead = first + batch->n * rows.stride_bytes;
    batch->ahead_end =
        batch->ahead + (left - batch->n < step ? left - batch->n : step) * rows.stride_bytes;
    batch->ahead_stride = rows.stride_bytes;
    batch->row_bytes = row_bytes;
}

static void attend_run(const float *q, uint32_t g, uint32_t dk, uint32_t dv, struct hri_rows rows,
                       float soft_cap, struct hri_partial *part)
{
    struct attend_job job;
    struct batch batch;

    begin(&job, q, g, dk, dv);
    for (uint32_t at = 0; at < rows.n; at += batch.n) {
        take_batch(&job, rows, dk + dv, at, &batch);
        score_batch(&job, &batch);
        take_tile(job.x, g, batch.n, dv, soft_cap, part);
        set_weights(&job, &batch);
        sum_batch(&job, &batch, part->o);
        ask(&batch, TAKE_ROWS);
    }
    tiles_end();
}

HRI_INLINE bool fits(struct hri_rows rows, uint32_t dk, uint32_t dv)
{
    return rows.dtype == HR_DTYPE_BF16 && rows.n >= ROWS_MIN && dk % CHUNK == 0 && dv % CHUNK == 0;
}

void hri_amx_attend_rows(const float *q, uint32_t g, uint32_t dk, uint32_t dv, struct hri_rows rows,
                         float soft_cap, struct hri_partial *part)
{
    if (!fits(rows, dk, dv)) {
        hri_avx512_attend_rows(q, g, dk, dv, rows, soft_cap, part);
        return;
    }
    for (uint32_t i = 0; i < g; i += QUERIES) {
        struct hri_partial some = {part->m + i, part->l + i, part->o + (size_t)i * dv};
        attend_run(q + (size_t)i * dk, g - i < QUERIES ? g - i : QUERIES, dk, dv, rows, soft_cap,
                   &some);
    }
}

void hri_amx_attend_runs(const float *q, uint32_t g, uint32_t dk, uint32_t dv,
                         const struct hri_rows *runs, uint32_t n_runs, float soft_cap,
                         struct hri_partial *part)
{
    if (n_runs > 0 && runs->dtype != HR_DTYPE_BF16) {
        hri_avx512_attend_runs(q, g, dk, dv, runs, n_runs, soft_cap, part);
        return;
    }
    for (uint32_t i = 0; i < n_runs; i++)
        hri_amx_attend_rows(q, g, dk, dv, runs[i], soft_cap, part);
}

static void score_run(const float *q, uint32_t g, uint32_t dk, struct hri_rows rows, float soft_cap,
                      float *out, size_t out_stride)
{
    struct attend_job job;
    struct batch batch;

    begin(&job, q, g, dk, 0);
    for (uint32_t at = 0; at < rows.n; at += batch.n) {
        take_batch(&job, rows, dk, at, &batch);
        score_batch(&job, &batch);
        for (uint32_t i = 0; i < g; i++) {
            float *x = job.x + i * TAKE_ROWS;
            (void)cut_logits(x, (batch.n + VN - 1) / VN * VN, soft_cap, 0.0f);
            memcpy(out + i * out_stride + at, x, batch.n * sizeof *x);
        }
        ask(&batch, TAKE_ROWS);
    }
    tiles_end();
}

void hri_amx_score_rows(const float *q, uint32_t g, uint32_t dk, struct hri_rows rows,
                        float soft_cap, float *out, size_t out_stride)
{
    if (!fits(rows, dk, 0)) {
        hri_avx512_score_rows(q, g, dk, rows, soft_cap, out, out_stride);
        return;
    }
    for (uint32_t i = 0; i < g; i += QUERIES)
        score_run(q + (size_t)i * dk, g - i < QUERIES ? g - i : QUERIES, dk, rows, soft_cap,
                  out + i * out_stride, out_stride);
}
