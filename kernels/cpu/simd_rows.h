/* Dot products with rows and weighted sums of rows: the two halves of attention when there are few queries.
 *
 * Rows are given as a list of pointers, so that gathered rows and runs of rows are one case. Both halves work on a tile of rows
 * that stays in the first-level cache while all queries of the group use it, and ask for the next tile's rows meanwhile: the
 * first for what it will read itself (K), the second for V. Include after a simd_*.h. */
#ifndef HRI_SIMD_ROWS_H
#define HRI_SIMD_ROWS_H

/* A tile holds about this many bytes, and a number of rows that is a multiple of VN between these. */
#define TILE_BYTES 16384u
#define TILE_ROWS_MIN 16u
#define TILE_ROWS_MAX 128u

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

HRI_INLINE void prefetch_bytes(const void *p, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += 64)
        _mm_prefetch((const char *)p + i, _MM_HINT_T0);
}

/* out[i][0..3] = q_i . rows 0..3. */
HRI_INLINE void dot_block(const float *q, uint32_t dk, const int queries, enum element element,
                          const void *const *rows, float *out, size_t out_stride)
{
    vf sum[DOT_QUERIES][4], k[4];
    uint32_t j = 0;

    HRI_UNROLL
    for (int i = 0; i < queries; i++)
        sum[i][0] = sum[i][1] = sum[i][2] = sum[i][3] = vf_zero();
    for (; j + VN <= dk; j += VN) {
        HRI_UNROLL
        for (int r = 0; r < 4; r++)
            k[r] = vf_load_element(rows[r], element, j);
        HRI_UNROLL
        for (int i = 0; i < queries; i++) {
            vf x = vf_load(q + (size_t)i * dk + j);
            HRI_UNROLL
            for (int r = 0; r < 4; r++)
                sum[i][r] = vf_fma(x, k[r], sum[i][r]);
        }
    }
    if (j < dk) {
        HRI_UNROLL
        for (int r = 0; r < 4; r++)
            k[r] = vf_load_element_half(rows[r], element, j);
        HRI_UNROLL
        for (int i = 0; i < queries; i++) {
            vf x = vf_load_element_half(q + (size_t)i * dk, ELEMENT_F32, j);
            HRI_UNROLL
            for (int r = 0; r < 4; r++)
                sum[i][r] = vf_fma(x, k[r], sum[i][r]);
        }
    }
    HRI_UNROLL
    for (int i = 0; i < queries; i++)
        _mm_storeu_ps(out + i * out_stride, vf_sum4(sum[i][0], sum[i][1], sum[i][2], sum[i][3]));
}

HRI_INLINE void dot_tile_of(const float *q, uint32_t g, uint32_t dk, const struct row_tile *tile,
                            enum element element, float *out, size_t out_stride)
{
    for (uint32_t r = 0; r < tile->n; r += 4) {
        const void *const *rows = tile->rows + r;
        uint32_t i = 0;

        if (tile->next) {
            HRI_UNROLL
            for (int a = 0; a < 4; a++)
                prefetch_bytes(tile->next[r + a], dk * element_bytes(element));
        }
        for (; i + DOT_QUERIES <= g; i += DOT_QUERIES)
            dot_block(q + (size_t)i * dk, dk, DOT_QUERIES, element, rows, out + i * out_stride + r, out_stride);
#if DOT_QUERIES > 2
        if (g - i == 3)
            dot_block(q + (size_t)i * dk, dk, 3, element, rows, out + i * out_stride + r, out_stride);
        else if (g - i == 2)
            dot_block(q + (size_t)i * dk, dk, 2, element, rows, out + i * out_stride + r, out_stride);
        else
#endif
        if (g - i == 1)
            dot_block(q + (size_t)i * dk, dk, 1, element, rows, out + i * out_stride + r, out_stride);
    }
}

/* out[i][r] = q_i . first dk elements of row r, for r below n rounded up to 4. */
static void dot_tile(const float *q, uint32_t g, uint32_t dk, const struct row_tile *tile, float *out,
                     size_t out_stride)
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

/* o[i][0..vectors * VN) += sum_r w[i][r] * row_r[offset..]; with half set, one half vector. */
HRI_INLINE void sum_block(const float *w, size_t w_stride, const int queries, const int vectors, const bool half,
                          const struct row_tile *tile, enum element element, size_t offset, float *o, size_t dv)
{
    vf sum[SUM_QUERIES][4], v[4];
    const uint32_t lanes = half ? VN / 2 : VN;

    HRI_UNROLL
    for (int i = 0; i < queries; i++) {
        HRI_UNROLL
        for (int c = 0; c < vectors; c++)
            sum[i][c] = half ? vf_load_n(o + i * dv, lanes) : vf_load(o + i * dv + c * VN);
    }
    for (uint32_t r = 0; r < tile->n; r++) {
        HRI_UNROLL
        for (int c = 0; c < vectors; c++)
            v[c] = half ? vf_load_element_half(tile->rows[r], element, offset)
                        : vf_load_element(tile->rows[r], element, offset + (size_t)c * VN);
        HRI_UNROLL
        for (int i = 0; i < queries; i++) {
            vf weight = vf_set(w[i * w_stride + r]);
            HRI_UNROLL
            for (int c = 0; c < vectors; c++)
                sum[i][c] = vf_fma(weight, v[c], sum[i][c]);
        }
    }
    HRI_UNROLL
    for (int i = 0; i < queries; i++) {
        HRI_UNROLL
        for (int c = 0; c < vectors; c++) {
            if (half)
                vf_store_n(o + i * dv, sum[i][c], lanes);
            else
                vf_store(o + i * dv + c * VN, sum[i][c]);
        }
    }
}

HRI_INLINE void sum_columns(const float *w, size_t w_stride, const int queries, const struct row_tile *tile,
                            enum element element, size_t offset, uint32_t dv, float *o)
{
    uint32_t j = 0;

    for (; j + 4 * VN <= dv; j += 4 * VN)
        sum_block(w, w_stride, queries, 4, false, tile, element, offset + j, o + j, dv);
    for (; j + VN <= dv; j += VN)
        sum_block(w, w_stride, queries, 1, false, tile, element, offset + j, o + j, dv);
    if (j < dv)
        sum_block(w, w_stride, queries, 1, true, tile, element, offset + j, o + j, dv);
}

HRI_INLINE void sum_tile_of(const float *w, size_t w_stride, uint32_t g, const struct row_tile *tile,
                            enum element element, size_t offset, uint32_t dv, float *o)
{
    uint32_t i = 0;

    if (tile->next) {
        for (uint32_t r = 0; r < tile->n; r++)
            prefetch_bytes((const char *)tile->next[r] + offset * element_bytes(element),
                           dv * element_bytes(element));
    }
    for (; i + SUM_QUERIES <= g; i += SUM_QUERIES)
        sum_columns(w + i * w_stride, w_stride, SUM_QUERIES, tile, element, offset, dv, o + (size_t)i * dv);
#if SUM_QUERIES > 2
    if (g - i == 3)
        sum_columns(w + i * w_stride, w_stride, 3, tile, element, offset, dv, o + (size_t)i * dv);
    else if (g - i == 2)
        sum_columns(w + i * w_stride, w_stride, 2, tile, element, offset, dv, o + (size_t)i * dv);
    else
#endif
    if (g - i == 1)
        sum_columns(w + i * w_stride, w_stride, 1, tile, element, offset, dv, o + (size_t)i * dv);
}

/* o[i][0..dv) += sum_r w[i][r] * row_r[offset..offset + dv). */
static void sum_tile(const float *w, size_t w_stride, uint32_t g, const struct row_tile *tile, size_t offset,
                     uint32_t dv, float *o)
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
