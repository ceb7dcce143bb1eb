/* Attention of one group of queries over rows, gathered rows and int8 blocks, and scores alone.
 * Include after a simd_*.h. */
#ifndef HRI_SIMD_ATTEND_H
#define HRI_SIMD_ATTEND_H

#include "kernels/cpu/simd_rows.h"
#include "kernels/cpu/simd_softmax.h"

#include "kernels/cpu/simd_take.h"

static void attend_cursor(const float *q, uint32_t g, uint32_t dk, uint32_t dv,
                          struct row_cursor *cursor, float soft_cap, struct hri_partial *part)
{
    float x[HR_GROUP_MAX * TILE_ROWS_MAX] __attribute__((aligned(64)));
    float ordered[HR_GROUP_MAX * HRI_DIM_MAX] __attribute__((aligned(64)));

    order_queries(q, g, dk, cursor->tile.element, ordered);
    while (cursor_next(cursor)) {
        const struct row_tile *tile = &cursor->tile;
        if (VN == 16 && cursor->at == tile->n)
            touch_rows(tile, (dk + dv) * element_bytes(tile->element));
        dot_tile(ordered, g, dk, tile, x, TILE_ROWS_MAX);
        take_tile(x, g, tile->n, dv, soft_cap, part);
        sum_tile(x, TILE_ROWS_MAX, g, tile, dk, dv, part->o);
    }
}

void HRI_OP(attend_rows)(const float *q, uint32_t g, uint32_t dk, uint32_t dv, struct hri_rows rows,
                         float soft_cap, struct hri_partial *part)
{
    struct row_cursor cursor;

    cursor_init(&cursor, rows.base, rows.stride_bytes, rows.n, (enum element)rows.dtype, dk + dv);
    attend_cursor(q, g, dk, dv, &cursor, soft_cap, part);
}

void HRI_OP(attend_gather)(const float *q, uint32_t g, uint32_t dk, uint32_t dv,
                           const void *const *rows, uint32_t n, hr_dtype_t dtype, float soft_cap,
                           struct hri_partial *part)
{
    struct row_cursor cursor;

    cursor_init(&cursor, NULL, 0, n, (enum element)dtype, dk + dv);
    cursor.list = rows;
    attend_cursor(q, g, dk, dv, &cursor, soft_cap, part);
}

void HRI_OP(attend_runs)(const float *q, uint32_t g, uint32_t dk, uint32_t dv,
                         const struct hri_rows *runs, uint32_t n_runs, float soft_cap,
                         struct hri_partial *part)
{
    struct row_cursor cursor;
    uint32_t n = 0;

    for (uint32_t i = 0; i < n_runs; i++)
        n += runs[i].n;
    if (n == 0)
        return;
    cursor_init(&cursor, NULL, 0, n, (enum element)runs->dtype, dk + dv);
    cursor.run = runs;
    cursor.run_row = cursor.run_at = 0;
    attend_cursor(q, g, dk, dv, &cursor, soft_cap, part);
}

void HRI_OP(score_rows)(const float *q, uint32_t g, uint32_t dk, struct hri_rows rows,
                        float soft_cap, float *out, size_t out_stride)
{
    float x[HR_GROUP_MAX * TILE_ROWS_MAX] __attribute__((aligned(64)));
    float ordered[HR_GROUP_MAX * HRI_DIM_MAX] __attribute__((aligned(64)));
    struct row_cursor cursor;

    cursor_init(&cursor, rows.base, rows.stride_bytes, rows.n, (enum element)rows.dtype, dk);
    order_queries(q, g, dk, cursor.tile.element, ordered);
    while (cursor_next(&cursor)) {
        const uint32_t n = cursor.tile.n;
        dot_tile(ordered, g, dk, &cursor.tile, x, TILE_ROWS_MAX);
        fill_tails(x, g, n, 0.0f);
        for (uint32_t i = 0; i < g; i++) {
            (void)cut_logits(x + i * TILE_ROWS_MAX, (n + VN - 1) / VN * VN, soft_cap, 0.0f);
            memcpy(out + i * out_stride + (cursor.at - n), x + i * TILE_ROWS_MAX, n * sizeof *x);
        }
    }
}

/* o += weight_sum * v_center, and the weights take the step of the codes they will multiply. */
static void add_center(float *w, uint32_t n, float v_step, const float *v_center, uint32_t dv,
                       float *o)
{
    vf sum = vf_zero();
    uint32_t j;

    for (j = 0; j < n; j += VN) {
        vf weight = vf_load(w + j);
        sum = vf_add(sum, weight);
        vf_store(w + j, vf_mul(weight, vf_set(v_step)));
    }
    const vf total = vf_set(vf_sum(sum));
    for (j = 0; j + VN <= dv; j += VN)
        vf_store(o + j, vf_fma(total, vf_load(v_center + j), vf_load(o + j)));
    if (j < dv)
        vf_store_n(o + j, vf_fma(total, vf_load_n(v_center + j, dv - j), vf_load_n(o + j, dv - j)),
                   dv - j);
}

/* What comes after a block as the tile's next rows; what they do not cover is asked for at once. */
static void block_ahead(const struct hri_block_i8 *block, size_t row_bytes, const void **pointers,
                        struct row_tile *tile)
{
    const char *next = block->next;
    const size_t rows = block->next_bytes / row_bytes;

    if (next == NULL || rows == 0)
        return;
    const uint32_t filled = (tile->n + 3) & ~3u;
    for (uint32_t r = 0; r < filled; r++)
        pointers[r] = next + (r < rows ? r : rows - 1) * row_bytes;
    tile->next = pointers;
    if (rows > filled)
        prefetch_far(next + filled * row_bytes, block->next_bytes - filled * row_bytes);
}

void HRI_OP(attend_block_i8)(const float *q, uint32_t g, uint32_t dk, uint32_t dv,
                             const struct hri_block_i8 *block, float soft_cap,
                             struct hri_partial *part)
{
    float x[HR_GROUP_MAX * TILE_ROWS_MAX] __attribute__((aligned(64)));
    const void *ahead[TILE_ROWS_MAX];
    struct row_cursor cursor;

    /* A block is too short for the processor to notice a stream in time. */
    prefetch_near(block->codes, (size_t)block->n * (dk + dv));
    cursor_init(&cursor, block->codes, dk + dv, block->n, ELEMENT_I8, dk + dv);
    while (cursor_next(&cursor)) {
        const uint32_t n = cursor.tile.n, whole = (n + VN - 1) / VN * VN;
        if (cursor.at == cursor.n)
            block_ahead(block, dk + dv, ahead, &cursor.tile);
        dot_tile(q, g, dk, &cursor.tile, x, TILE_ROWS_MAX);
        fill_tails(x, g, n, 0.0f);
        for (uint32_t i = 0; i < g; i++) {
            float *logits = x + i * TILE_ROWS_MAX;
            for (uint32_t j = 0; j < whole; j += VN)
                vf_store(logits + j, vf_fma(vf_set(block->k_step), vf_load(logits + j),
                                            vf_set(block->k_dot[i])));
        }
        take_tile(x, g, n, dv, soft_cap, part);
        for (uint32_t i = 0; i < g; i++)
            add_center(x + i * TILE_ROWS_MAX, whole, block->v_step, block->v_center, dv,
                       part->o + (size_t)i * dv);
        sum_tile(x, TILE_ROWS_MAX, g, &cursor.tile, dk, dv, part->o);
    }
}

/* Rows with their weights, ready for sum_tile; as `next` of the tile before they are only asked for. */
struct weighed {
    float x[HR_GROUP_MAX * TILE_ROWS_MAX];
    const void *rows[TILE_ROWS_MAX];
    uint32_t n;
};

/* used[r] = whether any query gives row r a weight, which takes the row's step. The number of rows
 * used. */
static uint32_t weigh_rows(const float *w, size_t w_stride, uint32_t g, uint32_t n,
                           const float *step, float *x, int32_t *used)
{
    uint32_t n_used = 0;

    memset(used, 0, n * sizeof *used);
    for (uint32_t i = 0; i < g; i++) {
        const float *weight = w + i * w_stride;
        float *to = x + i * TILE_ROWS_MAX;
        for (uint32_t r = 0; r < n; r++) {
            to[r] = weight[r] * step[r];
            used[r] |= weight[r] != 0.0f;
        }
    }
    for (uint32_t r = 0; r < n; r++)
        n_used += (uint32_t)used[r];
    return n_used;
}

/* Rows without any weight are taken out. The last pointer is repeated, as `next` may be asked for
 * more. */
static void weigh_tile(const float *w, size_t w_stride, uint32_t g, uint32_t n, uint32_t dv,
                       const int8_t *codes, const float *step, struct weighed *out)
{
    int32_t used[TILE_ROWS_MAX];
    const uint32_t n_used = weigh_rows(w, w_stride, g, n, step, out->x, used);

    out->n = 0;
    for (uint32_t r = 0; r < n && n_used > 0; r++) {
        if (!used[r])
            continue;
        for (uint32_t i = 0; i < g && out->n < r; i++)
            out->x[i * TILE_ROWS_MAX + out->n] = out->x[i * TILE_ROWS_MAX + r];
        out->rows[out->n++] = codes + (size_t)r * dv;
    }
    for (uint32_t r = out->n; r < TILE_ROWS_MAX && out->n > 0; r++)
        out->rows[r] = out->rows[out->n - 1];
}

void HRI_OP(weighted_sum_i8)(const float *w, size_t w_stride, uint32_t g, uint32_t n, uint32_t dv,
                             const int8_t *codes, const float *step, float *o)
{
    struct weighed tiles[2];
    uint32_t now = 0;

    tiles[0].n = 0;
    for (uint32_t b = 0; b < n; b += TILE_ROWS_MAX) {
        const uint32_t rows = n - b < TILE_ROWS_MAX ? n - b : TILE_ROWS_MAX;
        struct weighed *next = &tiles[1 - now];
        weigh_tile(w + b, w_stride, g, rows, dv, codes + (size_t)b * dv, step + b, next);
        if (next->n == 0)
            continue;
        const struct row_tile tile = {tiles[now].rows, next->rows, tiles[now].n, ELEMENT_I8};
        sum_tile(tiles[now].x, TILE_ROWS_MAX, g, &tile, 0, dv, o);
        now = 1 - now;
    }
    const struct row_tile last = {tiles[now].rows, NULL, tiles[now].n, ELEMENT_I8};
    sum_tile(tiles[now].x, TILE_ROWS_MAX, g, &last, 0, dv, o);
}

/* x[i][0..n) = q_i . half-precision rows, n <= TILE_ROWS_MAX. */
static void dot_halves(const float *q, uint32_t g, uint32_t d, const uint16_t *rows, uint32_t n,
                       float *x)
{
    const void *pointers[TILE_ROWS_MAX];
    const struct row_tile tile = {.rows = pointers, .next = NULL, .n = n, .element = ELEMENT_F16};

    for (uint32_t r = 0; r < TILE_ROWS_MAX; r++)
        pointers[r] = rows + (size_t)(r < n ? r : n - 1) * d;
    dot_tile(q, g, d, &tile, x, TILE_ROWS_MAX);
}

/* max(q min, q max) is q- min + q+ max, with q- = min(q, 0) and q+ = max(q, 0): two products. */
void HRI_OP(score_bounds)(const float *q, uint32_t g, uint32_t d, const uint16_t *min,
                          const uint16_t *max, uint32_t n, float *out, size_t out_stride)
{
    float negative[HR_GROUP_MAX * HRI_DIM_MAX], positive[HR_GROUP_MAX * HRI_DIM_MAX];
    float low[HR_GROUP_MAX * TILE_ROWS_MAX], high[HR_GROUP_MAX * TILE_ROWS_MAX];

    for (uint32_t j = 0; j < g * d; j++) {
        negative[j] = q[j] < 0.0f ? q[j] : 0.0f;
        positive[j] = q[j] < 0.0f ? 0.0f : q[j];
    }
    for (uint32_t b = 0; b < n; b += TILE_ROWS_MAX) {
        const uint32_t rows = n - b < TILE_ROWS_MAX ? n - b : TILE_ROWS_MAX;
        dot_halves(negative, g, d, min + (size_t)b * d, rows, low);
        dot_halves(positive, g, d, max + (size_t)b * d, rows, high);
        for (uint32_t i = 0; i < g; i++) {
            for (uint32_t r = 0; r < rows; r++)
                out[i * out_stride + b + r] =
                    low[i * TILE_ROWS_MAX + r] + high[i * TILE_ROWS_MAX + r];
        }
    }
}

#endif
