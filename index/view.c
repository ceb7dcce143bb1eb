#include "index/view.h"

#include "index/head.h"

#include <string.h>

bool hri_index_viewable(const struct hri_recipe *recipe)
{
    return recipe->selector == &hri_selector_headrace;
}

void hri_index_view_ranks(uint32_t k_dim, uint32_t v_dim, uint32_t *rank_c_out,
                          uint32_t *rank_d_out)
{
    const struct hri_index_options options = {.k_dim = k_dim, .v_dim = v_dim};
    hri_shape_ranks(&options, rank_c_out, rank_d_out);
}

struct hri_index_view hri_index_view(const struct hri_index_head *head)
{
    const struct hri_summary *summary = &head->summary;
    const struct hri_shape *shape = &head->shape;
    return (struct hri_index_view){
        .n_blocks = head->n_blocks,
        .blocks_max = head->options.blocks_max,
        .k_codes = summary->k_codes,
        .k_scale = summary->k_scale,
        .v_codes = summary->v_codes,
        .v_scale = summary->v_scale,
        .k_mean = summary->k_mean,
        .block_rows = head->block_rows,
        .peak = shape->peak,
        .k_step = head->k_step,
        .v_step = head->v_step,
        .spread = shape->spread,
        .rank_c = shape->rank_c,
        .rank_d = shape->rank_d,
        .f = shape->f,
        .w = shape->w,
        .u = shape->u,
        .f_scale = shape->f_scale,
        .w_scale = shape->w_scale,
        .u_scale = shape->u_scale,
        .v_mean = shape->v_mean,
        .v_variance = shape->v_variance,
        .sketch = head->sketch,
    };
}
