/* Attention of many queries over a tile of rows (prefill): two matrix products with a softmax
 * between them.
 *
 * Scratch: K as panels [n/32][dk][32], V as panels [dv/32][n][32], both float32, then the queries
 * and the logits of one block of GEMM_ROWS queries. Rows are converted once per tile, whatever the
 * number of queries. A block of queries looks only at the panels between its first and its last
 * visible row. Include after a simd_*.h. */
#ifndef HRI_SIMD_TILE_H
#define HRI_SIMD_TILE_H

#include "kernels/cpu/simd_gemm.h"
#include "kernels/cpu/simd_softmax.h"

_Static_assert(GEMM_ROWS <= HRI_TILE_QUERIES, "scratch holds one block of queries");

struct tile_job {
    uint32_t dk, dv, n;
    float soft_cap;
    float *k_panels, *v_panels, *q, *x;
};

HRI_INLINE size_t floats_up(size_t n)
{
    return (n + 15) & ~(size_t)15;
}

static void tile_layout(struct tile_job *job, void *scratch)
{
    const size_t panels = (job->n + PANEL - 1) / PANEL, v_panels = (job->dv + PANEL - 1) / PANEL;

    job->k_panels = scratch;
    job->v_panels = job->k_panels + floats_up(panels * PANEL * job->dk);
    job->q = job->v_panels + floats_up(v_panels * PANEL * job->n);
    job->x = job->q + HRI_TILE_QUERIES * HRI_TILE_QUERY_STRIDE;
}

HRI_INLINE void pack_rows_of(const struct tile_job *job, const char *base, size_t stride,
                             enum element element)
{
    for (uint32_t r = 0; r < job->n; r += PANEL)
        pack_columns(base + r * stride, stride, element, 0, job->n - r, job->dk,
                     job->k_panels + (size_t)r * job->dk);
    for (size_t r = 0; r < job->n; r++) {
        const char *row = base + r * stride;
        float *dst = job->v_panels + r * PANEL;
        uint32_t j = 0;
        for (; j + VN <= job->dv; j += VN)
            vf_store(dst + (size_t)(j / PANEL) * PANEL * job->n + j % PANEL,
                     vf_load_element(row, element, job->dk + j));
        if (j < job->dv) {
            vf_store(dst + (size_t)(j / PANEL) * PANEL * job->n + j % PANEL,
                     vf_load_element_half(row, element, job->dk + j));
            j += VN;
        }
        for (; j % PANEL != 0; j += VN)
            vf_store(dst + (size_t)(j / PANEL) * PANEL * job->n + j % PANEL, vf_zero());
    }
}

static void pack_rows(const struct tile_job *job, const struct hri_rows *rows, uint32_t at)
{
    const char *base = (const char *)rows->base + at * rows->stride_bytes;

    switch (rows->dtype) {
    case HR_DTYPE_F16:
        pack_rows_of(job, base, rows->stride_bytes, ELEMENT_F16);
        break;
    case HR_DTYPE_BF16:
        pack_rows_of(job, base, rows->stride_bytes, ELEMENT_BF16);
        break;
    default:
        pack_rows_of(job, base, rows->stride_bytes, ELEMENT_F32);
    }
}

/* One query's logits are made ready: capped, -INFINITY where it does not see (first..last is what
 * it sees), and the largest, or m, is returned. Works on whole vectors around [first, last). */
HRI_INLINE float tile_mask(float *x, uint32_t first, uint32_t last, float soft_cap, float m)
{
    const uint32_t from = first / VN * VN, to = (last + VN - 1) / VN * VN;

    if (soft_cap > 0.0f)
        cap_logits(x + from, to - from, soft_cap);
    for (uint32_t j = from; j < first; j++)
        x[j] = -INFINITY;
    for (uint32_t j = last; j < to; j++)
        x[j] = -INFINITY;
    return largest_logit(x + from, to - from, m);
}

/* Then they become weights, 0 elsewhere in [low, high), and their sum is returned. */
HRI_INLINE float tile_weigh(float *x, uint32_t low, uint32_t high, uint32_t first, uint32_t last,
                            float m)
{
    const uint32_t from = first / VN * VN, to = (last + VN - 1) / VN * VN;

    if (low < from)
        memset(x + low, 0, (from - low) * sizeof *x);
    if (to < high)
        memset(x + to, 0, (high - to) * sizeof *x);
    return weigh_logits(x + from, to - from, m);
}

/* o[i][j..j + PANEL) = o * shrink + sums. */
HRI_INLINE void merge_columns(float *o, uint32_t dv, uint32_t j, float shrink, const float *sums)
{
    const uint32_t width = dv - j < PANEL ? dv - j : PANEL;

    for (uint32_t c = 0; c < width; c += VN) {
        const uint32_t lanes = width - c < VN ? width - c : VN;
        float *dst = o + j + c;
        vf_store_n(dst, vf_fma(vf_load_n(dst, lanes), vf_set(shrink), vf_load(sums + c)), lanes);
    }
}

/* The logits of a block of queries become weights; (m, l) take them in. */
static void tile_softmax(const struct tile_job *job, uint32_t count, uint32_t low, uint32_t high,
                         const uint32_t *first, const uint32_t *last, float *m, float *l,
                         float *shrink)
{
    float old_m[HRI_TILE_QUERIES_UP] = {0.0f}, new_m[HRI_TILE_QUERIES_UP] = {0.0f};

    for (uint32_t i = 0; i < count; i++) {
        float *x = job->x + i * HRI_TILE_LOGIT_STRIDE;
        old_m[i] = new_m[i] = m[i];
        if (first[i] < last[i])
            new_m[i] = tile_mask(x, first[i], last[i], job->soft_cap, m[i]);
    }
    shrink_factors(old_m, new_m, count, shrink);
    for (uint32_t i = 0; i < count; i++) {
        float *x = job->x + i * HRI_TILE_LOGIT_STRIDE;
        if (first[i] < last[i]) {
            m[i] = new_m[i];
            l[i] = l[i] * shrink[i] + tile_weigh(x, low, high, first[i], last[i], new_m[i]);
        } else {
            memset(x + low, 0, (high - low) * sizeof *x);
        }
    }
}

/* The queries [0, count) of a block of `block` rows; first and last are inside the tile. */
HRI_INLINE void tile_block(const struct tile_job *job, const int block, uint32_t count,
                           const float *q, const uint32_t *first, const uint32_t *last, float *m,
                           float *l, float *o)
{
    float shrink[HRI_TILE_QUERIES_UP], sums[GEMM_ROWS * PANEL] __attribute__((aligned(64)));
    uint32_t low = UINT32_MAX, high = 0;

    for (uint32_t i = 0; i < count; i++) {
        if (first[i] < last[i]) {
            low = first[i] < low ? first[i] : low;
            high = last[i] > high ? last[i] : high;
        }
        memcpy(job->q + i * HRI_TILE_QUERY_STRIDE, q + (size_t)i * job->dk, job->dk * sizeof *q);
    }
    if (low >= high)
        return;
    /* The rest of the block is computed and thrown away: let it be numbers. */
    for (uint32_t i = count; i < (uint32_t)block; i++)
        memset(job->q + i * HRI_TILE_QUERY_STRIDE, 0, job->dk * sizeof *q);
    for (uint32_t j = low / PANEL * PANEL; j < high; j += PANEL)
        gemm_panel(block, job->q, HRI_TILE_QUERY_STRIDE, 1, job->k_panels + (size_t)j * job->dk,
                   PANEL, job->dk, true, job->x + j, HRI_TILE_LOGIT_STRIDE);
    tile_softmax(job, count, low, high, first, last, m, l, shrink);
    for (uint32_t j = 0; j < job->dv; j += PANEL) {
        gemm_panel(block, job->x + low, HRI_TILE_LOGIT_STRIDE, 1,
                   job->v_panels + ((size_t)j * job->n + (size_t)low * PANEL), PANEL, high - low,
                   false, sums, PANEL);
        for (uint32_t i = 0; i < count; i++)
            merge_columns(o + (size_t)i * job->dv, job->dv, j, shrink[i], sums + i * PANEL);
    }
}

HRI_INLINE uint32_t clamp_into(uint32_t row, uint32_t at, uint32_t n)
{
    return row <= at ? 0 : row - at < n ? row - at : n;
}

static void tile_queries(const struct tile_job *job, const float *q, uint32_t nq, uint32_t at,
                         const uint32_t *first, const uint32_t *last, struct hri_partial *part)
{
    uint32_t from[GEMM_ROWS], to[GEMM_ROWS];

    for (uint32_t i = 0; i < nq;) {
        const uint32_t left = nq - i;
        const bool small = left <= 2 * GEMM_ROWS_SMALL;
        const uint32_t block = small ? GEMM_ROWS_SMALL : GEMM_ROWS,
                       count = left < block ? left : block;
        const float *block_q = q + (size_t)i * job->dk;
        float *o = part->o + (size_t)i * job->dv;

        for (uint32_t a = 0; a < count; a++) {
            from[a] = clamp_into(first[i + a], at, job->n);
            to[a] = clamp_into(last[i + a], at, job->n);
        }
        if (small)
            tile_block(job, GEMM_ROWS_SMALL, count, block_q, from, to, part->m + i, part->l + i, o);
        else
            tile_block(job, GEMM_ROWS, count, block_q, from, to, part->m + i, part->l + i, o);
        i += count;
    }
}

void HRI_OP(attend_tile)(const float *q, uint32_t nq, uint32_t dk, uint32_t dv,
                         struct hri_rows rows, const uint32_t *first, const uint32_t *last,
                         float soft_cap, void *scratch, struct hri_partial *part)
{
    for (uint32_t at = 0; at < rows.n; at += HRI_TILE_ROWS) {
        struct tile_job job = {.dk = dk, .dv = dv, .soft_cap = soft_cap};
        job.n = rows.n - at < HRI_TILE_ROWS ? rows.n - at : HRI_TILE_ROWS;
        tile_layout(&job, scratch);
        pack_rows(&job, &rows, at);
        tile_queries(&job, q, nq, at, first, last, part);
    }
}

#endif
