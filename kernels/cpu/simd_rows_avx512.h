/* The blocks of simd_rows.h for 32 registers. Included by it. */
#ifndef HRI_SIMD_ROWS_AVX512_H
#define HRI_SIMD_ROWS_AVX512_H

/* sum[i][r] += q_i . k_r for one vector of each; x: the vectors of the queries, dk apart. */
HRI_INLINE void dot_step(vf sum[DOT_QUERIES][4], const float *x, uint32_t dk, const int queries,
                         const bool half, const vf k[4])
{
    HRI_UNROLL
    for (int i = 0; i < queries; i++) {
        const float *at = x + (size_t)i * dk;
        const vf query = half ? vf_load_element_half(at, ELEMENT_F32, 0) : vf_load(at);
        HRI_UNROLL
        for (int r = 0; r < 4; r++)
            sum[i][r] = vf_fma(query, k[r], sum[i][r]);
    }
}

/* out[i][0..3] = q_i . rows 0..3. next: four rows to ask for, a line with each that is used, or NULL. */
HRI_INLINE void dot_block(const float *q, uint32_t dk, const int queries, enum element element,
                          const void *const *rows, const void *const *next, float *out,
                          size_t out_stride)
{
    const size_t bytes = element_bytes(element);
    vf sum[DOT_QUERIES][4], k[4], k2[4];
    uint32_t j = 0;

    HRI_UNROLL
    for (int i = 0; i < queries; i++)
        sum[i][0] = sum[i][1] = sum[i][2] = sum[i][3] = vf_zero();
    for (; j + 2 * VN <= dk; j += 2 * VN) {
        HRI_UNROLL
        for (int r = 0; r < 4; r++) {
            vf_load_pair(rows[r], element, j, k + r, k2 + r);
            /* Bytes: a line serves two vectors of each. */
            if (next && (element != ELEMENT_I8 || j % 64 == 0))
                prefetch_far((const char *)next[r] + j * bytes, 2 * VN * bytes);
        }
        dot_step(sum, q + j, dk, queries, false, k);
        dot_step(sum, q + j + VN, dk, queries, false, k2);
    }
    if (j + VN <= dk) {
        HRI_UNROLL
        for (int r = 0; r < 4; r++)
            k[r] = vf_load_element(rows[r], element, j);
        dot_step(sum, q + j, dk, queries, false, k);
        j += VN;
    }
    if (j < dk) {
        HRI_UNROLL
        for (int r = 0; r < 4; r++)
            k[r] = vf_load_element_half(rows[r], element, j);
        dot_step(sum, q + j, dk, queries, true, k);
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
        const void *const *next =
            tile->next ? tile->next + r : NULL; /* by the first queries only */
        float *to = out + r;
        uint32_t i = 0;

        for (; i + DOT_QUERIES <= g; i += DOT_QUERIES, next = NULL)
            dot_block(q + (size_t)i * dk, dk, DOT_QUERIES, element, rows, next, to + i * out_stride,
                      out_stride);
        if (g - i == 3)
            dot_block(q + (size_t)i * dk, dk, 3, element, rows, next, to + i * out_stride,
                      out_stride);
        else if (g - i == 2)
            dot_block(q + (size_t)i * dk, dk, 2, element, rows, next, to + i * out_stride,
                      out_stride);
        else if (g - i == 1)
            dot_block(q + (size_t)i * dk, dk, 1, element, rows, next, to + i * out_stride,
                      out_stride);
    }
}

/* o[i][0..vectors VN) += sum_r w[i][r] * row_r[offset..] */
HRI_INLINE void sum_block(const float *w, size_t w_stride, const int queries, const int vectors,
                          const bool prefetch, const struct row_tile *tile, enum element element,
                          size_t offset, float *o, size_t dv)
{
    const size_t bytes = (size_t)vectors * VN * element_bytes(element);
    vf sum[SUM_QUERIES][4], v[4];

    HRI_UNROLL
    for (int i = 0; i < queries; i++) {
        HRI_UNROLL
        for (int c = 0; c < vectors; c++)
            sum[i][c] = vf_load(o + i * dv + c * VN);
        HRI_UNROLL
        for (int c = 0; element == ELEMENT_BF16 && c < vectors; c += 2)
            vf_unzip(&sum[i][c], &sum[i][c + 1]);
    }
    for (uint32_t r = 0; r < tile->n; r++) {
        if (r + 4 < tile->n)
            prefetch_near((const char *)tile->rows[r + 4] + offset * element_bytes(element), bytes);
        if (prefetch)
            prefetch_far((const char *)tile->next[r] + offset * element_bytes(element), bytes);
        HRI_UNROLL
        for (int c = 0; c < vectors; c += 2)
            vf_load_pair(tile->rows[r], element, offset + (size_t)c * VN, v + c, v + c + 1);
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
        for (int c = 0; element == ELEMENT_BF16 && c < vectors; c += 2)
            vf_zip(&sum[i][c], &sum[i][c + 1]);
        HRI_UNROLL
        for (int c = 0; c < vectors; c++)
            vf_store(o + i * dv + c * VN, sum[i][c]);
    }
}

/* o[i][0..VN) += sum_r w[i][r] * row_r[offset..], or half a vector of it. */
HRI_INLINE void sum_vector(const float *w, size_t w_stride, const int queries, const bool half,
                           const struct row_tile *tile, enum element element, size_t offset,
                           float *o, size_t dv)
{
    const uint32_t lanes = half ? VN / 2 : VN;
    vf sum[SUM_QUERIES];

    HRI_UNROLL
    for (int i = 0; i < queries; i++)
        sum[i] = vf_load_n(o + i * dv, lanes);
    for (uint32_t r = 0; r < tile->n; r++) {
        const vf v = half ? vf_load_element_half(tile->rows[r], element, offset)
                          : vf_load_element(tile->rows[r], element, offset);
        HRI_UNROLL
        for (int i = 0; i < queries; i++)
            sum[i] = vf_fma(vf_set(w[i * w_stride + r]), v, sum[i]);
    }
    HRI_UNROLL
    for (int i = 0; i < queries; i++)
        vf_store_n(o + i * dv, sum[i], lanes);
}

HRI_INLINE void sum_columns(const float *w, size_t w_stride, const int queries, const int vectors,
                            const bool prefetch, const struct row_tile *tile, enum element element,
                            size_t offset, uint32_t dv, float *o)
{
    const uint32_t width = (uint32_t)vectors * VN;
    uint32_t j = 0;

    for (; j + width <= dv; j += width) {
        /* Bytes: one line serves several blocks of columns. */
        if (prefetch && (element != ELEMENT_I8 || j % 64 < width))
            sum_block(w, w_stride, queries, vectors, true, tile, element, offset + j, o + j, dv);
        else
            sum_block(w, w_stride, queries, vectors, false, tile, element, offset + j, o + j, dv);
    }
    if (prefetch && j < dv) {
        for (uint32_t r = 0; r < tile->n; r++)
            prefetch_far((const char *)tile->next[r] + (offset + j) * element_bytes(element),
                         (dv - j) * element_bytes(element));
    }
    for (; j + VN <= dv; j += VN)
        sum_vector(w, w_stride, queries, false, tile, element, offset + j, o + j, dv);
    if (j < dv)
        sum_vector(w, w_stride, queries, true, tile, element, offset + j, o + j, dv);
}

HRI_INLINE void sum_tile_of(const float *w, size_t w_stride, uint32_t g,
                            const struct row_tile *tile, enum element element, size_t offset,
                            uint32_t dv, float *o)
{
    bool prefetch = tile->next != NULL; /* by the first queries only */
    uint32_t i = 0;

    for (; i + SUM_QUERIES <= g; i += SUM_QUERIES) {
        sum_columns(w + i * w_stride, w_stride, SUM_QUERIES, 4, prefetch, tile, element, offset, dv,
                    o + (size_t)i * dv);
        prefetch = false;
    }
    if (g - i == 3)
        sum_columns(w + i * w_stride, w_stride, 3, 4, prefetch, tile, element, offset, dv,
                    o + (size_t)i * dv);
    else if (g - i == 2)
        sum_columns(w + i * w_stride, w_stride, 2, 4, prefetch, tile, element, offset, dv,
                    o + (size_t)i * dv);
    else if (g - i == 1)
        sum_columns(w + i * w_stride, w_stride, 1, 4, prefetch, tile, element, offset, dv,
                    o + (size_t)i * dv);
}

#endif
