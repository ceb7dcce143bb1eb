/* The linear algebra of the index on the register-blocked product. Include after a simd_*.h. */
#ifndef HRI_SIMD_LINEAR_H
#define HRI_SIMD_LINEAR_H

#include "kernels/cpu/simd_gemm.h"

/* c[count][PANEL] = rows of a times a panel; rows past count are read from the last one. */
HRI_INLINE void gemm_rows(const float *a, uint32_t count, size_t a_row, const float *panel,
                          uint32_t depth, float *c)
{
    float block[GEMM_ROWS * HRI_TILE_QUERY_STRIDE];

    for (uint32_t i = 0; i < GEMM_ROWS; i++)
        memcpy(block + i * HRI_TILE_QUERY_STRIDE, a + (i < count ? i : count - 1) * a_row,
               depth * sizeof *a);
    gemm_panel(GEMM_ROWS, block, HRI_TILE_QUERY_STRIDE, 1, panel, PANEL, depth, false, c, PANEL);
}

HRI_INLINE float dot_floats(const float *a, const float *b, uint32_t n)
{
    vf sum = vf_zero();
    uint32_t j = 0;

    for (; j + VN <= n; j += VN)
        sum = vf_fma(vf_load(a + j), vf_load(b + j), sum);
    if (j < n)
        sum = vf_fma(vf_load_n(a + j, n - j), vf_load_n(b + j, n - j), sum);
    return vf_sum(sum);
}

HRI_INLINE float distance_floats(const float *a, const float *b, uint32_t n)
{
    vf sum = vf_zero();
    uint32_t j = 0;

    for (; j + VN <= n; j += VN) {
        vf difference = vf_sub(vf_load(a + j), vf_load(b + j));
        sum = vf_fma(difference, difference, sum);
    }
    if (j < n) {
        vf difference = vf_sub(vf_load_n(a + j, n - j), vf_load_n(b + j, n - j));
        sum = vf_fma(difference, difference, sum);
    }
    return vf_sum(sum);
}

/* Among the columns of a panel, the first being centre `first`: keeps the one with the largest x .
 * c - |c|^2 / 2, which orders as -|x - c|^2 does. Missing columns have an infinite norm. */
HRI_INLINE void keep_nearest(const float *products, const float *half_norms, uint32_t first,
                             float *best, uint32_t *best_index)
{
    float value[PANEL];
    vf largest = vf_set(-INFINITY);

    HRI_UNROLL
    for (int j = 0; j < (int)PANEL; j += VN) {
        const vf closeness = vf_sub(vf_load(products + j), vf_load(half_norms + j));
        vf_store(value + j, closeness);
        largest = vf_max(closeness, largest);
    }
    const float most = vf_largest(largest);
    if (!(most > *best))
        return;
    uint32_t j = 0;
    while (j < PANEL - 1 && value[j] != most)
        j++;
    *best = most;
    *best_index = first + j;
}

static void nearest_in_panel(const float *x, uint32_t n, const float *c, uint32_t columns,
                             uint32_t first, uint32_t d, float *best, uint32_t *best_index)
{
    float panel[GEMM_DEPTH * PANEL] __attribute__((aligned(64)));
    float products[GEMM_ROWS * PANEL] __attribute__((aligned(64)));
    float half_norms[PANEL] __attribute__((aligned(64)));

    pack_columns(c, d * sizeof *c, ELEMENT_F32, 0, columns, d, panel);
    for (uint32_t j = 0; j < PANEL; j++)
        half_norms[j] =
            j < columns ? 0.5f * dot_floats(c + (size_t)j * d, c + (size_t)j * d, d) : INFINITY;
    for (uint32_t i = 0; i < n; i += GEMM_ROWS) {
        const uint32_t count = n - i < GEMM_ROWS ? n - i : GEMM_ROWS;
        gemm_rows(x + (size_t)i * d, count, d, panel, d, products);
        for (uint32_t a = 0; a < count; a++)
            keep_nearest(products + a * PANEL, half_norms, first, best + i + a, best_index + i + a);
    }
}

void HRI_OP(nearest)(const float *x, uint32_t n, const float *c, uint32_t k, uint32_t d,
                     uint32_t *nearest_out, float *distance_out)
{
    float best[GEMM_CHUNK];

    for (uint32_t i = 0; i < n; i += GEMM_CHUNK) {
        const uint32_t count = n - i < GEMM_CHUNK ? n - i : GEMM_CHUNK;
        const float *chunk = x + (size_t)i * d;
        for (uint32_t a = 0; a < count; a++) {
            best[a] = -INFINITY;
            nearest_out[i + a] = 0;
        }
        for (uint32_t j = 0; j < k; j += PANEL) {
            const uint32_t columns = k - j < PANEL ? k - j : PANEL;
            nearest_in_panel(chunk, count, c + (size_t)j * d, columns, j, d, best, nearest_out + i);
        }
        /* The difference of large numbers above is good enough to choose, not to be told. */
        for (uint32_t a = 0; distance_out && a < count; a++)
            distance_out[i + a] = k > 0 ? distance_floats(chunk + (size_t)a * d,
                                                          c + (size_t)nearest_out[i + a] * d, d)
                                        : INFINITY;
    }
}

/* y[n][columns] (stride d_out) = or += x[n][depth] times one packed panel. */
static void matmul_panel(const float *x, uint32_t n, size_t d_in, const float *panel,
                         uint32_t columns, uint32_t depth, bool add, float *y, size_t d_out)
{
    float products[GEMM_ROWS * PANEL] __attribute__((aligned(64)));

    for (uint32_t i = 0; i < n; i += GEMM_ROWS) {
        const uint32_t count = n - i < GEMM_ROWS ? n - i : GEMM_ROWS;
        gemm_rows(x + i * d_in, count, d_in, panel, depth, products);
        for (uint32_t a = 0; a < count; a++) {
            for (uint32_t j = 0; j < columns; j += VN) {
                const uint32_t lanes = columns - j < VN ? columns - j : VN;
                float *dst = y + (i + a) * d_out + j;
                vf sum = vf_load(products + a * PANEL + j);
                if (add)
                    sum = vf_add(sum, vf_load_n(dst, lanes));
                vf_store_n(dst, sum, lanes);
            }
        }
    }
}

/* One chunk of x, which stays in the second-level cache. */
static void matmul_chunk(const float *x, uint32_t n, uint32_t d_in, const float *w, uint32_t d_out,
                         float *y)
{
    float panel[GEMM_DEPTH * PANEL] __attribute__((aligned(64)));

    for (uint32_t j = 0; j < d_out; j += PANEL) {
        const uint32_t columns = d_out - j < PANEL ? d_out - j : PANEL;
        for (uint32_t l = 0; l < d_in; l += GEMM_DEPTH) {
            const uint32_t depth = d_in - l < GEMM_DEPTH ? d_in - l : GEMM_DEPTH;
            pack_columns(w + (size_t)j * d_in, d_in * sizeof *w, ELEMENT_F32, l, columns, depth,
                         panel);
            matmul_panel(x + l, n, d_in, panel, columns, depth, l > 0, y + j, d_out);
        }
    }
}

void HRI_OP(matmul_nt)(const float *x, uint32_t n, uint32_t d_in, const float *w, uint32_t d_out,
                       float *y)
{
    for (uint32_t i = 0; i < n; i += GEMM_CHUNK)
        matmul_chunk(x + (size_t)i * d_in, n - i < GEMM_CHUNK ? n - i : GEMM_CHUNK, d_in, w, d_out,
                     y + (size_t)i * d_out);
}

/* The rows x columns sums of a block are added to s. */
HRI_INLINE void add_block(const float *sums, uint32_t rows, uint32_t columns, float *s, size_t d)
{
    for (uint32_t i = 0; i < rows; i++) {
        for (uint32_t j = 0; j < columns; j += VN) {
            const uint32_t lanes = columns - j < VN ? columns - j : VN;
            float *dst = s + i * d + j;
            vf_store_n(dst, vf_add(vf_load_n(dst, lanes), vf_load(sums + i * PANEL + j)), lanes);
        }
    }
}

/* A block at the edge, which must not read past a row: goes through copies. */
static void moment_edge(const float *x, uint32_t n, uint32_t d, uint32_t a, uint32_t b, float *s)
{
    float left[GEMM_CHUNK * GEMM_ROWS], right[GEMM_CHUNK * PANEL] __attribute__((aligned(64)));
    float sums[GEMM_ROWS * PANEL] __attribute__((aligned(64)));
    const uint32_t rows = d - a < GEMM_ROWS ? d - a : GEMM_ROWS,
                   columns = d - b < PANEL ? d - b : PANEL;

    memset(left, 0, sizeof left);
    memset(right, 0, sizeof right);
    for (uint32_t i = 0; i < n; i++) {
        memcpy(left + i * GEMM_ROWS, x + (size_t)i * d + a, rows * sizeof *x);
        memcpy(right + i * PANEL, x + (size_t)i * d + b, columns * sizeof *x);
    }
    gemm_panel(GEMM_ROWS, left, 1, GEMM_ROWS, right, PANEL, n, false, sums, PANEL);
    add_block(sums, rows, columns, s + (size_t)a * d + b, d);
}

/* s += x' x for GEMM_ROWS columns from a and PANEL columns from b, over a chunk of points. */
static void moment_block(const float *x, uint32_t n, uint32_t d, uint32_t a, uint32_t b, float *s)
{
    float sums[GEMM_ROWS * PANEL] __attribute__((aligned(64)));

    gemm_panel(GEMM_ROWS, x + a, 1, d, x + b, d, n, false, sums, PANEL);
    add_block(sums, GEMM_ROWS, PANEL, s + (size_t)a * d + b, d);
}

void HRI_OP(second_moment)(const float *x, uint32_t n, uint32_t d, float *s)
{
    /* Blocks that touch the upper half; those on the diagonal reach below it, where the mirror
     * overwrites. */
    for (uint32_t i = 0; i < n; i += GEMM_CHUNK) {
        const uint32_t count = n - i < GEMM_CHUNK ? n - i : GEMM_CHUNK;
        const float *chunk = x + (size_t)i * d;
        for (uint32_t b = 0; b < d; b += PANEL) {
            for (uint32_t a = 0; a < d && a < b + PANEL; a += GEMM_ROWS) {
                if (a + GEMM_ROWS <= d && b + PANEL <= d)
                    moment_block(chunk, count, d, a, b, s);
                else
                    moment_edge(chunk, count, d, a, b, s);
            }
        }
    }
    for (size_t a = 0; a < d; a++) {
        for (size_t b = a + 1; b < d; b++)
            s[b * d + a] = s[a * d + b];
    }
}

#endif
