/* Mean vectors of groups of rows as float16: what published systems with centroids or landmarks keep, at their
 * precision. */
#ifndef HRI_INDEX_MEANS_H
#define HRI_INDEX_MEANS_H

#include "index/index.h"

struct hri_means {
    uint16_t *k; /* [n_max][k_dim] float16 */
    uint16_t *v; /* [n_max][v_dim], or NULL */
};

/* Numbers beyond float16 become its largest. */
uint16_t hri_half_clamped(float x);

uint64_t hri_means_bytes(const struct hri_index_options *options, uint32_t n, bool with_v);
hr_status_t hri_means_create(struct hri_means *means, const struct hri_index_options *options,
                             uint32_t n_max, bool with_v);
void hri_means_destroy(struct hri_means *means, const struct hri_index_options *options);

/* Entry i: mean key (and value) of rows[n] of k [..][k_dim], v [..][v_dim]; rows NULL: the first n. */
void hri_means_write(struct hri_means *means, const struct hri_index_options *options, uint32_t i,
                     const float *k, const float *v, const uint32_t *rows, uint32_t n);
/* dots[g][i] = q_g . entry i (capped logits), i < n. */
void hri_means_dots(const struct hri_means *means, const struct hri_index_options *options,
                    const float *q, uint32_t n, float *dots, size_t stride);
void hri_means_read(const struct hri_means *means, const struct hri_index_options *options,
                    uint32_t i, float *k, float *v); /* k may be NULL */

/* y[b] = exp(x[b]) / sum of all, n entries; y may be x. */
void hri_softmax(const struct hri_kernels *kernels, const float *x, float *y, uint32_t n);

#endif
