/* What a device needs of a head with second-order summaries (headrace): the head's own arrays, read only, valid until
 * blocks are added or dropped. */
#ifndef HRI_INDEX_VIEW_H
#define HRI_INDEX_VIEW_H

#include "index/index.h"
#include "index/sketch.h"

struct hri_index_view {
    uint32_t n_blocks, blocks_max;
    const uint8_t *k_codes; /* packed as hri_centroids of blocks_max blocks */
    const float *k_scale;   /* [blocks_max] */
    const int8_t *v_codes;  /* [blocks_max][v_dim] */
    const float *v_scale;
    const float *k_mean; /* [k_dim] taken off the keys before they were coded */
    const uint8_t *block_rows, *peak;
    const float *k_step, *v_step;
    const uint16_t *spread; /* bfloat16 */
    uint32_t rank_c, rank_d;
    const int8_t *f, *w, *u;
    const float *f_scale, *w_scale, *u_scale;
    const float *v_mean;
    double v_variance;
    const struct hri_sketch *sketch; /* NULL: none are kept */
};
/* False: this recipe's heads have no such summaries. */
bool hri_index_viewable(const struct hri_recipe *recipe);
struct hri_index_view hri_index_view(const struct hri_index_head *head);
/* Ranks of every head's shape, from the options alone. */
void hri_index_view_ranks(uint32_t k_dim, uint32_t v_dim, uint32_t *rank_c_out,
                          uint32_t *rank_d_out);

#endif
