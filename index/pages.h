/* Pages of consecutive rows, known by a box around their keys (head->bounds). */
#ifndef HRI_INDEX_PAGES_H
#define HRI_INDEX_PAGES_H

#include "index/head.h"

size_t hri_bounds_workspace_bytes(const struct hri_index_options *options, uint32_t n);
/* Smallest and largest of n rows per dimension, float16 rounded outwards. work: float [2][d]. */
void hri_bounds_write(const struct hri_kernels *kernels, const float *k, uint32_t n, uint32_t d,
                      float *work, uint16_t *min_out, uint16_t *max_out);
/* head->bounds of the new blocks. */
hr_status_t hri_bounds_summarise(struct hri_index_head *head, const struct hri_segment *segment);
/* step->dots: upper bounds of the logits of all blocks. */
void hri_bounds_dots(const struct hri_index_head *head, const float *q, struct hri_step *step);
/* Blocks with the largest sum of bounds over the group. */
hr_status_t hri_bounds_select(struct hri_index_head *head, const struct hri_select_in *in,
                              struct hri_select_out *out);

#endif
