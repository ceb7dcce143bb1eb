/* The space in which rows are grouped.
 *
 * Two rows belong together when one may stand for the other: when queries score their keys alike,
 * and when their values are alike. A point is the key in the metric of the queries beside the
 * value, scaled so that the values' total variance is HRI_VALUE_WEIGHT squared logits; then both
 * are turned to their principal axes and only the longest are kept, HRI_POINT_DIMS in all.
 */
#ifndef HRI_INDEX_POINTS_H
#define HRI_INDEX_POINTS_H

#include "index/qstats.h"

#define HRI_POINT_DIMS   32u
#define HRI_VALUE_WEIGHT 4.0

struct hri_points {
    uint32_t k_dim, v_dim;
    uint32_t n_k, n_v; /* axes kept of each; n_k + n_v = dims */
    uint32_t dims;
    double ridge;            /* of the metric */
    float *metric;           /* [k_dim][k_dim] P of index/qstats.h */
    float *k_axes;           /* [dims][k_dim], the first n_k in use */
    float *v_axes;           /* [dims][v_dim], the first n_v in use */
    uint32_t position, rows; /* where and from how many rows the axes were taken; rows 0: never */
};
uint32_t hri_points_dims(uint32_t k_dim, uint32_t v_dim);
hr_status_t hri_points_init(struct hri_points *points, struct hri_alloc *alloc, uint32_t k_dim,
                            uint32_t v_dim, double ridge);
void hri_points_fini(struct hri_points *points, struct hri_alloc *alloc);

/* Fits metric and axes to the queries seen and these rows. Small segments near the last fit keep
 * what there is. */
size_t hri_points_work_bytes(uint32_t k_dim, uint32_t v_dim);
hr_status_t hri_points_fit(struct hri_points *points, struct hri_qstats *stats, const float *k,
                           const float *v, uint32_t n, uint32_t position, uint32_t horizon,
                           void *work);
/* out [n][dims] */
void hri_points_make(const struct hri_points *points, const struct hri_kernels *kernels,
                     const float *k, const float *v, uint32_t n, void *work, float *out);

#endif
