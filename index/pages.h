/* Pages of consecutive rows, known by a box around their keys (head->bounds). */
#ifndef HRI_INDEX_PAGES_H
#define HRI_INDEX_PAGES_H

#include "index/head.h"

/* step->dots: upper bounds of the logits of all blocks. */
void hri_bounds_dots(const struct hri_index_head *head, const float *q, struct hri_step *step);
/* Blocks with the largest sum of bounds over the group. */
hr_status_t hri_bounds_select(struct hri_index_head *head, const struct hri_select_in *in,
                              struct hri_select_out *out);

#endif
