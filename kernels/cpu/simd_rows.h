/* Dot products with rows and weighted sums of rows: the two halves of attention when there are few
 * queries.
 *
 * Rows are given as a list of pointers, so that gathered rows and runs of rows are one case. Both
 * halves work on a tile of rows that stays in the caches while all queries of the group use it, and
 * ask for the next tile's rows meanwhile: the first for what it will read itself (K), the second
 * for V, a few lines at a time so that memory is never idle and never stalls the sums.
 *
 * bfloat16 rows are taken 2 VN elements at a time as even and odd elements (a shift, a mask).
 * Queries are put in that order once per call (order_queries), sums are brought into it and out of
 * it once per tile. Include after a simd_*.h. */
#ifndef HRI_SIMD_ROWS_H
#define HRI_SIMD_ROWS_H

/* A tile holds about TILE_BYTES, and a number of rows that is a multiple of 16 between these. */
#define TILE_ROWS_MIN 16u
#define TILE_ROWS_MAX 128u /* TAKE_ROWS */

struct row_tile {
    const void *const *rows; /* [n rounded up to 4]: the last is repeated */
    const void *const *next; /* [n rounded up to 4] rows to prefetch, or NULL */
    uint32_t n;
    enum element element;
};

HRI_INLINE uint32_t tile_rows(uint32_t width, enum element element)
{
    uint32_t n = TILE_BYTES / (width * (uint32_t)element_bytes(element)) & ~15u;
    return n < TILE_ROWS_MIN ? TILE_ROWS_MIN : n > TILE_ROWS_MAX ? TILE_ROWS_MAX : n;
}

/* The tiles of a run of rows, of a list of rows or of several runs, one after the other: this tile's pointers, then the next one's. */
struct row_cursor {
    const char *base; /* NULL: list or runs */
    size_t stride_bytes;
    const void *const *list;
    const struct hri_rows *run; /* the run of row `run_at`, or NULL */
    uint32_t run_row, run_at;   /* run_at: rows that have pointers */
    uint32_t n, at, step;
    struct row_tile tile;
    const void *pointers[2 * TILE_ROWS_MAX];
};

HRI_INLINE void cursor_init(struct row_cursor *cursor, const void *base, size_t stride_bytes,
                            uint32_t n, enum element element, uint32_t width)
{
    cursor->base = base;
    cursor->stride_bytes = stride_bytes;
    cursor->list = NULL;
    cursor->run = NULL;
    cursor->n = n;
    cursor->at = 0;
    cursor->step = tile_rows(width, element);
    cursor->tile.element = element;
}

/* Pointers of several runs: those made as the next tile's are this one's, the others follow. */
static void cursor_walk(struct row_cursor *cursor, uint32_t filled)
{
    const uint32_t have = cursor->run_at - cursor->at;

    for (uint32_t j = 0; j < have; j++)
        cursor->pointers[j] = cursor->pointers[cursor->step + j];
    for (uint32_t j = have; j < filled; j++) {
        if (cursor->run_at == cursor->n) {
            cursor->pointers[j] = cursor->pointers[j - 1];
            continue;
        }
        for (; cursor->run_row == cursor->run->n; cursor->run_row = 0)
            cursor->run++;
        cursor->pointers[j] =
            (const char *)cursor->run->base + cursor->run_row++ * cursor->run->stride_bytes;
        cursor->run_at++;
    }
}

HRI_INLINE bool cursor_next(struct row_cursor *cursor)
{
    if (cursor->at >= cursor->n)
        return false;
    const uint32_t left = cursor->n - cursor->at;
    const uint32_t last = left - 1;
    const uint32_t filled = left <= cursor->step ? (left + 3) & ~3u : 2 * cursor->step;

    if (cursor->run)
        cursor_walk(cursor, filled);
    for (uint32_t j = 0; j < filled && !cursor->run; j++) {
        size_t row = cursor->at + (j < last ? j : last);
        cursor->pointers[j] =
            cursor->base ? cursor->base + row * cursor->stride_bytes : cursor->list[row];
    }
    cursor->tile.rows = cursor->pointers;
    cursor->tile.next = left > cursor->step ? cursor->pointers + cursor->step : NULL;
    cursor->tile.n = left < cursor->step ? left : cursor->step;
    cursor->at += cursor->tile.n;
    return true;
}

/* From memory into the second level. */
HRI_INLINE void prefetch_far(const void *p, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += 64)
        _mm_prefetch((const char *)p + i, _MM_HINT_T1);
}

/* From there into the first. AVX-512 code that asks for every row of a product loses more by it than it gains (docs/decisions/0014). */
HRI_INLINE void prefetch_near(const void *p, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += 64)
        _mm_prefetch((const char *)p + i, _MM_HINT_T0);
}

/* Rows of a tile that nobody asked for, once before they are needed, K and V as they lie: the processor notices a stream of loads in
 * order, and rows' first halves are none. */
HRI_INLINE void touch_rows(const struct row_tile *tile, size_t bytes)
{
    for (uint32_t r = 0; r < tile->n; r++) {
        for (size_t i = 0; i < bytes; i += 64)
            (void)*((const volatile char *)tile->rows[r] + i);
    }
}

/* The queries as dot_tile wants them: where a vector lies in one cache line, unzipped for bfloat16. */
HRI_INLINE void order_queries(const float *q, uint32_t g, uint32_t dk, enum element element,
                              float *copy)
{
    memcpy(copy, q, (size_t)g * dk * sizeof *q);
    if (element != ELEMENT_BF16)
        return;
    for (uint32_t i = 0; i < g; i++) {
        for (uint32_t j = 0; j + 2 * VN <= dk; j += 2 * VN) {
            float *at = copy + (size_t)i * dk + j;
            vf a = vf_load(at), b = vf_load(at + VN);
            vf_unzip(&a, &b);
            vf_store(at, a);
            vf_store(at + VN, b);
        }
    }
}

/* dot_tile_of and sum_tile_of. */
#if VN == 8
#include "kernels/cpu/simd_rows_avx2.h"
#else
#include "kernels/cpu/simd_rows_avx512.h"
#endif

/* out[i][r] = q_i . first dk elements of row r, for r below n rounded up to 4. q as order_queries
 * left it. */
static void dot_tile(const float *q, uint32_t g, uint32_t dk, const struct row_tile *tile,
                     float *out, size_t out_stride)
{
    switch (tile->element) {
    case ELEMENT_F16:
        dot_tile_of(q, g, dk, tile, ELEMENT_F16, out, out_stride);
        break;
    case ELEMENT_BF16:
        dot_tile_of(q, g, dk, tile, ELEMENT_BF16, out, out_stride);
        break;
    case ELEMENT_I8:
        dot_tile_of(q, g, dk, tile, ELEMENT_I8, out, out_stride);
        break;
    default:
        dot_tile_of(q, g, dk, tile, ELEMENT_F32, out, out_stride);
    }
}

/* o[i][0..dv) += sum_r w[i][r] * row_r[offset..offset + dv). */
static void sum_tile(const float *w, size_t w_stride, uint32_t g, const struct row_tile *tile,
                     size_t offset, uint32_t dv, float *o)
{
    switch (tile->element) {
    case ELEMENT_F16:
        sum_tile_of(w, w_stride, g, tile, ELEMENT_F16, offset, dv, o);
        break;
    case ELEMENT_BF16:
        sum_tile_of(w, w_stride, g, tile, ELEMENT_BF16, offset, dv, o);
        break;
    case ELEMENT_I8:
        sum_tile_of(w, w_stride, g, tile, ELEMENT_I8, offset, dv, o);
        break;
    default:
        sum_tile_of(w, w_stride, g, tile, ELEMENT_F32, offset, dv, o);
    }
}

#endif
