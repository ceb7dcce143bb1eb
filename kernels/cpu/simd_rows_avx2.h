/* The blocks of simd_rows.h for 16 registers, of which 8 hold sums. Included by it.
 *
 * Four queries share what a row costs to load and convert: two rows at a time for the products, two
 * vectors of columns for the sums. Sums read rows that lie in the second level without asking for
 * them: the out-of-order window covers that way, and the instructions would cost more. */
#ifndef HRI_SIMD_ROWS_AVX2_H
#define HRI_SIMD_ROWS_AVX2_H

/* Of four rows from the r-th on, the first `bytes`: the next four of the tile, and the next tile's. */
HRI_INLINE void prefetch_rows(const struct row_tile *tile, uint32_t r, size_t bytes)
{
    for (int a = 0; a < 4 && r + 4 < tile->n; a++)
        prefetch_near(tile->rows[r + 4 + a], bytes);
    for (int a = 0; a < 4 && tile->next; a++)
        prefetch_far(tile->next[r + a], bytes);
}

#define DOT_SUMS 8 /* that stay in registers */

/* Four sums of one query in one lane each, still in two halves. */
HRI_INLINE vf fold_rows(const vf sum[4])
{
    const vf ab =
        vf_add(_mm256_shuffle_ps(sum[0], sum[1], 0x4e), _mm256_blend_ps(sum[0], sum[1], 0xcc));
    const vf cd =
        vf_add(_mm256_shuffle_ps(sum[2], sum[3], 0x4e), _mm256_blend_ps(sum[2], sum[3], 0xcc));
    return vf_add(_mm256_shuffle_ps(ab, cd, 0x88), _mm256_shuffle_ps(ab, cd, 0xdd));
}

/* sums[i][r] += q_i . k_r for one vector of each; x: the vectors of the queries, dk apart. */
HRI_INLINE void dot_step(vf sum[DOT_SUMS], const float *x, uint32_t dk, const int queries,
                         const int n_rows, const vf k[4])
{
    HRI_UNROLL
    for (int i = 0; i < queries; i++) {
        const vf query = vf_load(x + (size_t)i * dk);
        HRI_UNROLL
        for (int r = 0; r < n_rows; r++)
            sum[i * n_rows + r] = vf_fma(query, k[r], sum[i * n_rows + r]);
    }
}

/* out[i][0..n_rows) = q_i . rows 0..n_rows; four rows and two queries or one, or two rows and four
 * queries. */
HRI_INLINE void dot_block(const float *q, uint32_t dk, const int queries, const int n_rows,
                          enum element element, const void *const *rows, float *out,
                          size_t out_stride)
{
    vf sum[DOT_SUMS], k[4];
    uint32_t j = 0;

    HRI_UNROLL
    for (int i = 0; i < DOT_SUMS; i++)
        sum[i] = vf_zero();
    for (; j + 2 * VN <= dk; j += 2 * VN) {
        /* One half of the pair after the other, or the sums would not stay in registers. */
        HRI_UNROLL
        for (int r = 0; r < n_rows; r++)
            k[r] = vf_load_first(rows[r], element, j);
        dot_step(sum, q + j, dk, queries, n_rows, k);
        HRI_UNROLL
        for (int r = 0; r < n_rows; r++)
            k[r] = vf_load_second(rows[r], element, j);
        dot_step(sum, q + j + VN, dk, queries, n_rows, k);
    }
    if (j < dk) {
        HRI_UNROLL
        for (int r = 0; r < n_rows; r++)
            k[r] = vf_load_element(rows[r], element, j);
        dot_step(sum, q + j, dk, queries, n_rows, k);
    }
    const vf first = fold_rows(sum), second = queries > 1 ? fold_rows(sum + 4) : first;
    const vf both =
        vf_add(_mm256_permute2f128_ps(first, second, 0x21), _mm256_blend_ps(first, second, 0xf0));
    const __m128 low = _mm256_castps256_ps128(both), high = _mm256_extractf128_ps(both, 1);
    if (queries == 4) {
        _mm_storel_pi((void *)out, low);
        _mm_storeh_pi((void *)(out + out_stride), low);
        _mm_storel_pi((void *)(out + 2 * out_stride), high);
        _mm_storeh_pi((void *)(out + 3 * out_stride), high);
    } else {
        _mm_storeu_ps(out, low);
        if (queries == 2)
            _mm_storeu_ps(out + out_stride, high);
    }
}

HRI_INLINE void dot_tile_of(const float *q, uint32_t g, uint32_t dk, const struct row_tile *tile,
                            enum element element, float *out, size_t out_stride)
{
    for (uint32_t r = 0; r < tile->n; r += 4) {
        const void *const *rows = tile->rows + r;
        uint32_t i = 0;

        prefetch_rows(tile, r, dk * element_bytes(element));
        for (; i + 4 <= g; i += 4) {
            dot_block(q + (size_t)i * dk, dk, 4, 2, element, rows, out + i * out_stride + r,
                      out_stride);
            dot_block(q + (size_t)i * dk, dk, 4, 2, element, rows + 2, out + i * out_stride + r + 2,
                      out_stride);
        }
        for (; i + 2 <= g; i += 2)
            dot_block(q + (size_t)i * dk, dk, 2, 4, element, rows, out + i * out_stride + r,
                      out_stride);
        if (i < g)
            dot_block(q + (size_t)i * dk, dk, 1, 4, element, rows, out + i * out_stride + r,
                      out_stride);
    }
}

/* Where the next tile's rows are asked for: line after line as they lie, a few with every four rows
 * of a sum, whatever columns that works on. */
struct ahead {
    const void *const *rows; /* NULL: nothing to ask for */
    size_t offset, bytes, at;
};

HRI_INLINE void ahead_step(struct ahead *ahead, size_t bytes)
{
    if (ahead->rows == NULL)
        return;
    const char *p = (const char *)*ahead->rows + ahead->offset + ahead->at;
    HRI_UNROLL
    for (size_t i = 0; i < bytes; i += 64)
        _mm_prefetch(p + i, _MM_HINT_T1);
    ahead->at += bytes;
    if (ahead->at >= ahead->bytes) {
        ahead->at = 0;
        ahead->rows++;
    }
}

#define SUM_BLOCK 8 /* sums that stay in registers */

/* sum[i][c] += w[i][0] * the vectors at `offset` of one row */
HRI_INLINE void sum_row(vf sum[SUM_BLOCK], const float *w, size_t w_stride, const int queries,
                        const int vectors, const void *row, enum element element, size_t offset)
{
    vf v[SUM_BLOCK];

    if (vectors == 1)
        v[0] = vf_load_element(row, element, offset);
    HRI_UNROLL
    for (int c = 0; c + 1 < vectors; c += 2)
        vf_load_pair(row, element, offset + (size_t)c * VN, v + c, v + c + 1);
    HRI_UNROLL
    for (int i = 0; i < queries; i++) {
        const vf weight = vf_set(w[i * w_stride]);
        HRI_UNROLL
        for (int c = 0; c < vectors; c++)
            sum[i * vectors + c] = vf_fma(weight, v[c], sum[i * vectors + c]);
    }
}

/* o[i][0..vectors VN) += sum_r w[i][r] * row_r[offset..] */
HRI_INLINE void sum_block(const float *w, size_t w_stride, const int queries, const int vectors,
                          struct ahead *ahead, const struct row_tile *tile, enum element element,
                          size_t offset, float *o, size_t dv)
{
    const size_t bytes = (size_t)4 * vectors * VN * element_bytes(element);
    vf sum[SUM_BLOCK];
    uint32_t r = 0;

    HRI_UNROLL
    for (int i = 0; i < queries; i++) {
        HRI_UNROLL
        for (int c = 0; c < vectors; c++)
            sum[i * vectors + c] = vf_load(o + i * dv + c * VN);
    }
    for (int i = 0; element == ELEMENT_BF16 && vectors > 1 && i < queries * vectors; i += 2)
        vf_unzip(sum + i, sum + i + 1);
    for (; r + 4 <= tile->n; r += 4) {
        ahead_step(ahead, bytes);
        HRI_UNROLL
        for (uint32_t a = 0; a < 4; a++)
            sum_row(sum, w + r + a, w_stride, queries, vectors, tile->rows[r + a], element, offset);
    }
    for (; r < tile->n; r++)
        sum_row(sum, w + r, w_stride, queries, vectors, tile->rows[r], element, offset);
    for (int i = 0; element == ELEMENT_BF16 && vectors > 1 && i < queries * vectors; i += 2)
        vf_zip(sum + i, sum + i + 1);
    HRI_UNROLL
    for (int i = 0; i < queries; i++) {
        HRI_UNROLL
        for (int c = 0; c < vectors; c++)
            vf_store(o + i * dv + c * VN, sum[i * vectors + c]);
    }
}

HRI_INLINE void sum_columns(const float *w, size_t w_stride, const int queries, const int vectors,
                            struct ahead *ahead, const struct row_tile *tile, enum element element,
                            size_t offset, uint32_t dv, float *o)
{
    const uint32_t width = (uint32_t)vectors * VN;
    uint32_t j = 0;

    for (; j + width <= dv; j += width)
        sum_block(w, w_stride, queries, vectors, ahead, tile, element, offset + j, o + j, dv);
    for (; j < dv; j += VN)
        sum_block(w, w_stride, queries, 1, ahead, tile, element, offset + j, o + j, dv);
    ahead->rows = NULL;
}

HRI_INLINE void sum_tile_of(const float *w, size_t w_stride, uint32_t g,
                            const struct row_tile *tile, enum element element, size_t offset,
                            uint32_t dv, float *o)
{
    const size_t size = element_bytes(element);
    struct ahead ahead = {tile->next, offset * size, dv * size, 0};
    uint32_t i = 0;

    for (; i + 4 <= g; i += 4)
        sum_columns(w + i * w_stride, w_stride, 4, 2, &ahead, tile, element, offset, dv,
                    o + (size_t)i * dv);
    if (i + 2 <= g) {
        sum_columns(w + i * w_stride, w_stride, 2, 4, &ahead, tile, element, offset, dv,
                    o + (size_t)i * dv);
        i += 2;
    }
    if (i < g)
        sum_columns(w + i * w_stride, w_stride, 1, 4, &ahead, tile, element, offset, dv,
                    o + (size_t)i * dv);
}

#endif
