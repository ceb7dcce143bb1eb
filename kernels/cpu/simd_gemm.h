/* A register-blocked matrix product and the packing it wants. Include after a simd_*.h.
 *
 * c[rows][PANEL] = a[rows][depth] times b[depth][PANEL], where b is a panel: PANEL columns side by
 * side, so that its loads are whole vectors. On AVX-512 12 rows x 2 vectors of sums fill 24 of 32
 * registers; each step loads 2 vectors and 12 broadcasts for 24 multiply-adds, which keeps both
 * multipliers busy out of the first-level cache. */
#ifndef HRI_SIMD_GEMM_H
#define HRI_SIMD_GEMM_H

#define PANEL HRI_TILE_PANEL
/* Points or rows that share the packing of a panel. */
#define GEMM_CHUNK 384u
/* The depth a packed panel on the stack has at most. */
#define GEMM_DEPTH HRI_DIM_MAX

/* rows x 2 vectors. a[i * a_row + l * a_step]; b rows are PANEL floats apart; with cut set, results
 * are cut to +-HRI_LOGIT_MAX. */
HRI_INLINE void gemm_block(const int rows, const float *a, size_t a_row, size_t a_step,
                           const float *b, size_t b_row, uint32_t depth, const bool cut, float *c,
                           size_t c_row)
{
    vf sum[GEMM_ROWS][2];

    HRI_UNROLL
    for (int i = 0; i < rows; i++)
        sum[i][0] = sum[i][1] = vf_zero();
    for (uint32_t l = 0; l < depth; l++) {
        const vf b0 = vf_load(b), b1 = vf_load(b + VN);
        HRI_UNROLL
        for (int i = 0; i < rows; i++) {
            const vf x = vf_set(a[i * a_row]);
            sum[i][0] = vf_fma(x, b0, sum[i][0]);
            sum[i][1] = vf_fma(x, b1, sum[i][1]);
        }
        a += a_step;
        b += b_row;
    }
    HRI_UNROLL
    for (int i = 0; i < rows; i++) {
        if (cut) {
            sum[i][0] = vf_min(vf_max(sum[i][0], vf_set(-HRI_LOGIT_MAX)), vf_set(HRI_LOGIT_MAX));
            sum[i][1] = vf_min(vf_max(sum[i][1], vf_set(-HRI_LOGIT_MAX)), vf_set(HRI_LOGIT_MAX));
        }
        vf_store(c + i * c_row, sum[i][0]);
        vf_store(c + i * c_row + VN, sum[i][1]);
    }
}

/* All PANEL columns. */
HRI_INLINE void gemm_panel(const int rows, const float *a, size_t a_row, size_t a_step,
                           const float *b, size_t b_row, uint32_t depth, const bool cut, float *c,
                           size_t c_row)
{
    for (uint32_t j = 0; j < PANEL; j += 2 * VN)
        gemm_block(rows, a, a_row, a_step, b + j, b_row, depth, cut, c + j, c_row);
}

/* Packs n <= PANEL rows of `width` elements (a multiple of 8), from offset on, as columns:
 * panel[j][r], missing rows 0. */
HRI_INLINE void pack_columns(const void *base, size_t stride_bytes, enum element element,
                             size_t offset, uint32_t n, uint32_t width, float *panel)
{
    for (uint32_t r0 = 0; r0 < PANEL; r0 += VN) {
        for (uint32_t j = 0; j < width; j += VN) {
            const uint32_t lanes = width - j < VN ? width - j : VN;
            vf t[VN];
            HRI_UNROLL
            for (uint32_t r = 0; r < VN; r++) {
                const char *row = (const char *)base + (size_t)(r0 + r) * stride_bytes;
                t[r] = r0 + r >= n  ? vf_zero()
                       : lanes < VN ? vf_load_element_half(row, element, offset + j)
                                    : vf_load_element(row, element, offset + j);
            }
            vf_transpose(t);
            for (uint32_t a = 0; a < lanes; a++)
                vf_store(panel + (size_t)(j + a) * PANEL + r0, t[a]);
        }
    }
}

#endif
