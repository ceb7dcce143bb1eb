/* What the device keeps of a block.
 *
 *   summary  centroid of the keys and mean of the values, int8 (retroinfer, headrace)
 *   bounds   smallest and largest key per dimension, float16 (quest)
 *   shape    how keys and values lie around their summaries: one per head, scaled by each block's
 * spread (headrace)
 */
#ifndef HRI_INDEX_SUMMARY_H
#define HRI_INDEX_SUMMARY_H

#include "index/index.h"
#include "index/selector_ops.h"

/* -- centroids and value means -- */
struct hri_summary {
    uint8_t *k_codes; /* hri_centroids_bytes(blocks_max): see kernels.h */
    float *k_scale;   /* [blocks_max up to 16] */
    int8_t *v_codes;  /* [blocks_max][v_dim] */
    float *v_scale;   /* [blocks_max] */
    float *k_mean;    /* [k_dim] of the head's first segment, taken off before coding: it would cost
                         precision */
    bool has_mean;
};
uint64_t hri_summary_bytes(const struct hri_index_options *options, uint32_t n_blocks);
hr_status_t hri_summary_create(struct hri_index_head *head);
void hri_summary_destroy(struct hri_index_head *head);
/* The head's key mean, from the first segment. */
void hri_summary_set_mean(struct hri_index_head *head, const float *k, uint32_t n);
/* Codes the mean key and value of rows[n] as block b. work: float [k_dim + v_dim]. */
void hri_summary_write(struct hri_index_head *head, uint32_t b, const float *k, const float *v,
                       const uint32_t *rows, uint32_t n, float *work);
/* The summaries of a grouped segment's blocks, after those there are; the first segment must have set the mean. */
void hri_summary_add(struct hri_index_head *head, const struct hri_segment *segment);
/* The same, coded elsewhere: k_codes as hri_centroids of the segment's blocks alone. */
void hri_summary_take(struct hri_index_head *head, uint32_t n_blocks, const uint8_t *k_codes,
                      const float *k_scale, const int8_t *v_codes, const float *v_scale);
void hri_summary_centers(const struct hri_index_head *head, uint32_t b, float *k_center,
                         float *v_center);
/* dots[g][b] = q_g . centre of block b, for all blocks; stride = blocks up to 16. */
void hri_summary_dots(const struct hri_index_head *head, const float *q, float *dots,
                      size_t stride);

/* -- bounds -- */
struct hri_bounds {
    uint16_t *min, *max; /* [blocks_max][k_dim] float16 */
};
uint64_t hri_bounds_bytes(const struct hri_index_options *options, uint32_t n_blocks);
hr_status_t hri_bounds_create(struct hri_index_head *head);
void hri_bounds_destroy(struct hri_index_head *head);

/* -- shape --
 * For a block of spread s (the mean of |P (k - m)|^2 over its rows) a query q has logit variance
 * s q'Cq, and the weighted mean of the values lies s D q beside their plain mean. C = F F' and
 * D = U W' have low rank and int8 columns on the device; the full matrices they come from are
 * statistics, kept aside. C and D are divided by the mean spread. */
struct hri_shape {
    uint32_t rank_c, rank_d;
    int8_t *f;                /* [rank_c][k_dim] */
    float *f_scale;           /* [rank_c] */
    int8_t *w;                /* [rank_d][k_dim] */
    int8_t *u;                /* [rank_d][v_dim] */
    float *w_scale, *u_scale; /* [rank_d] */
    uint16_t *spread;         /* [blocks_max] bfloat16 */
    uint8_t *peak;            /* [blocks_max] sqrt of the farthest row's |P (k - m)|^2 over the
                               * block's spread, in steps of 1/16: how much of an outlier it has */
    float *v_mean;            /* [v_dim] mean of all values, and how far they lie around it */
    double v_variance;
    /* Statistics (not on the device) */
    float *joint;  /* [k_dim + v_dim][k_dim + v_dim] sum of (k - m | v - v_m) (k - m | v - v_m)' */
    double *v_sum; /* [v_dim] */
    double spread_sum, v_square_sum, rows;
    uint64_t rows_at_refresh;
};
void hri_shape_ranks(const struct hri_index_options *options, uint32_t *rank_c_out,
                     uint32_t *rank_d_out);
uint64_t hri_shape_bytes(const struct hri_index_options *options, uint32_t n_blocks);
hr_status_t hri_shape_create(struct hri_index_head *head);
void hri_shape_destroy(struct hri_index_head *head);
/* As created: no rows were seen. */
void hri_shape_clear(struct hri_index_head *head);
/* Bytes add needs; then: residuals of the segment's rows enter the statistics, spreads are written (both by hri_shape_take),
 * C and D are made anew when the statistics have grown enough to matter (hri_shape_refresh). p [k_dim][k_dim] is the
 * metric. */
size_t hri_shape_work_bytes(const struct hri_index_options *options);
hr_status_t hri_shape_add(struct hri_index_head *head, const float *k, const float *v,
                          const uint32_t *order, const uint32_t *block_rows, uint32_t n_blocks,
                          const float *p, void *work);
void hri_shape_take(struct hri_index_head *head, const float *k, const float *v,
                    const uint32_t *order, const uint32_t *block_rows, uint32_t n_blocks,
                    const float *p, void *work);
hr_status_t hri_shape_refresh(struct hri_index_head *head, const float *p, void *work);
/* As hri_shape_take, from sums made elsewhere: of each block over its rows' |P (k - m)|^2 [n_blocks], the largest of these, and
 * of all rows' (k - m | v - v_m) (k - m | v - v_m)' [k_dim + v_dim][k_dim + v_dim]. */
void hri_shape_take_sums(struct hri_index_head *head, const struct hri_segment *segment,
                         const float *square_sum, const float *square_most, const float *joint);
/* Per unit of spread, of g queries [g][k_dim]: variance_out[g] = q'Cq, shift_out[g][v_dim] = D q. */
void hri_shape_query(const struct hri_index_head *head, const float *q, uint32_t g,
                     float *variance_out, float *shift_out);

#endif
