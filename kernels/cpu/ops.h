/* The operations of kernels.h as functions, one set per instruction set: HRI_DECLARE_OPS(avx2)
 * declares hri_avx2_attend_rows and so on. A level defines what it has; kernels.c puts the tables
 * together. Limits and helpers all levels share. */
#ifndef HRI_OPS_H
#define HRI_OPS_H

#include "kernels/kernels.h"

/* Head dimensions never exceed this; stack buffers are sized by it. */
#define HRI_DIM_MAX HR_HEAD_DIM_MAX

/* A logit is cut to this range, so that no overflow of q . k can turn the softmax into NaN. */
#define HRI_LOGIT_MAX 1e30f

/* Differences smaller than this are not worth a step: its inverse would overflow. */
#define HRI_STEP_MIN 1e-36f
/* Whether numbers up to `largest` can be scaled to integers up to `most`: most / largest must not overflow. */
static inline bool hri_scales_to(float largest, float most)
{
    return largest >= HRI_STEP_MIN * most;
}

/* attend_tile works on this many rows at a time; its scratch holds so many rows as float32. */
#define HRI_TILE_ROWS 512u
/* Query vectors that attend_tile works on at a time, at most (each level has its own number), and
 * rows per packed panel. */
#define HRI_TILE_QUERIES    12u
#define HRI_TILE_QUERIES_UP 16u /* in whole vectors */
#define HRI_TILE_PANEL      32u
/* Row stride of the tile's logits and queries: a little over a power of two, so that rows do not
 * share cache sets. */
#define HRI_TILE_LOGIT_STRIDE (HRI_TILE_ROWS + 16u)
#define HRI_TILE_QUERY_STRIDE (HRI_DIM_MAX + 16u)

static inline size_t hri_element_bytes(hr_dtype_t dtype)
{
    return dtype == HR_DTYPE_F32 ? 4 : 2;
}

#define HRI_DECLARE_OPS(level)                                                                     \
    void hri_##level##_to_f32(float *dst, const void *src, hr_dtype_t dtype, size_t n);            \
    void hri_##level##_from_f32(void *dst, const float *src, hr_dtype_t dtype, size_t n);          \
    size_t hri_##level##_find_nonfinite(const void *src, hr_dtype_t dtype, size_t n);              \
    void hri_##level##_attend_rows(const float *q, uint32_t g, uint32_t dk, uint32_t dv,           \
                                   struct hri_rows rows, float soft_cap,                           \
                                   struct hri_partial *part);                                      \
    void hri_##level##_attend_runs(const float *q, uint32_t g, uint32_t dk, uint32_t dv,           \
                                   const struct hri_rows *runs, uint32_t n_runs, float soft_cap,   \
                                   struct hri_partial *part);                                      \
    void hri_##level##_attend_gather(const float *q, uint32_t g, uint32_t dk, uint32_t dv,         \
                                     const void *const *rows, uint32_t n, hr_dtype_t dtype,        \
                                     float soft_cap, struct hri_partial *part);                    \
    void hri_##level##_score_rows(const float *q, uint32_t g, uint32_t dk, struct hri_rows rows,   \
                                  float soft_cap, float *out, size_t out_stride);                  \
    void hri_##level##_attend_tile(const float *q, uint32_t nq, uint32_t dk, uint32_t dv,          \
                                   struct hri_rows rows, const uint32_t *first,                    \
                                   const uint32_t *last, float soft_cap, void *scratch,            \
                                   struct hri_partial *part);                                      \
    void hri_##level##_score_centroids(const float *q, uint32_t g, uint32_t dk,                    \
                                       struct hri_centroids c, float *out, size_t out_stride);     \
    void hri_##level##_weighted_sum_i8(const float *w, size_t w_stride, uint32_t g, uint32_t n,    \
                                       uint32_t dv, const int8_t *codes, const float *step,        \
                                       float *o);                                                  \
    void hri_##level##_attend_block_i8(const float *q, uint32_t g, uint32_t dk, uint32_t dv,       \
                                       const struct hri_block_i8 *block, float soft_cap,           \
                                       struct hri_partial *part);                                  \
    float hri_##level##_quantise_i8(const float *x, size_t x_stride, uint32_t n, uint32_t d,       \
                                    const float *center, int8_t *codes, size_t code_stride);       \
    void hri_##level##_nearest(const float *x, uint32_t n, const float *c, uint32_t k, uint32_t d, \
                               uint32_t *nearest_out, float *distance_out);                        \
    void hri_##level##_matmul_nt(const float *x, uint32_t n, uint32_t d_in, const float *w,        \
                                 uint32_t d_out, float *y);                                        \
    void hri_##level##_second_moment(const float *x, uint32_t n, uint32_t d, float *s);            \
    void hri_##level##_min_max(const float *x, uint32_t n, uint32_t d, float *min, float *max);    \
    void hri_##level##_score_bounds(const float *q, uint32_t g, uint32_t d, const uint16_t *min,   \
                                    const uint16_t *max, uint32_t n, float *out,                   \
                                    size_t out_stride);                                            \
    float hri_##level##_exp_sum(const float *x, float shift, float *y, uint32_t n);                \
    float hri_##level##_max(const float *x, uint32_t n);                                           \
    void hri_##level##_weigh_rows(const float *x, size_t x_stride, const float *shift, uint32_t g, \
                                  uint32_t n, float *y, size_t y_stride, float *sum,               \
                                  float *square, float *most);                                     \
    void hri_##level##_score_sketch(const struct hri_sketch_query *q, uint32_t g,                  \
                                    struct hri_sketch_rows s, const uint32_t *groups,              \
                                    uint32_t n_groups, uint32_t n_listed, float *out,              \
                                    size_t out_stride);                                            \
    void hri_##level##_sum_sketch(struct hri_sketch_rows s, uint32_t g, const uint32_t *groups,    \
                                  uint32_t n_groups, const float *w, size_t w_stride, float *acc); \
    void hri_##level##_pack_sketch(const float *z, size_t z_stride, uint32_t n,                    \
                                   const float *inv_step, uint32_t n4, uint32_t n2,                \
                                   uint8_t *codes, uint32_t first_row);                            \
    void hri_##level##_score_gather_i8(const float *q, uint32_t g, uint32_t dk,                    \
                                       const int8_t *const *codes, const float *k_step,            \
                                       uint32_t n, float *out, size_t out_stride);                 \
    void hri_##level##_sum_gather_i8(const float *w, size_t w_stride, uint32_t g, uint32_t dk,     \
                                     uint32_t dv, const int8_t *const *codes, const float *v_step, \
                                     uint32_t n, float *o);

HRI_DECLARE_OPS(ref)
HRI_DECLARE_OPS(avx2)
HRI_DECLARE_OPS(avx512)
HRI_DECLARE_OPS(amx)

/* What the tiles have nothing of their own for. */
#define hri_amx_to_f32          hri_avx512_to_f32
#define hri_amx_from_f32        hri_avx512_from_f32
#define hri_amx_find_nonfinite  hri_avx512_find_nonfinite
#define hri_amx_attend_gather   hri_avx512_attend_gather
#define hri_amx_attend_tile     hri_avx512_attend_tile
#define hri_amx_weighted_sum_i8 hri_avx512_weighted_sum_i8
#define hri_amx_attend_block_i8 hri_avx512_attend_block_i8
#define hri_amx_quantise_i8     hri_avx512_quantise_i8
#define hri_amx_nearest         hri_avx512_nearest
#define hri_amx_matmul_nt       hri_avx512_matmul_nt
#define hri_amx_second_moment   hri_avx512_second_moment
#define hri_amx_min_max         hri_avx512_min_max
#define hri_amx_score_bounds    hri_avx512_score_bounds
#define hri_amx_exp_sum         hri_avx512_exp_sum
#define hri_amx_max             hri_avx512_max
#define hri_amx_weigh_rows      hri_avx512_weigh_rows
#define hri_amx_score_sketch    hri_avx512_score_sketch
#define hri_amx_pack_sketch     hri_avx512_pack_sketch
#define hri_amx_score_gather_i8 hri_avx512_score_gather_i8
#define hri_amx_sum_gather_i8   hri_avx512_sum_gather_i8

#undef HRI_DECLARE_OPS

#endif
