/* What the selectors with bounds of pages have in common. */
#include "index/pages.h"

void hri_bounds_dots(const struct hri_index_head *head, const float *q, struct hri_step *step)
{
    head->options.kernels->score_bounds(q, head->options.g, head->options.k_dim, head->bounds.min,
                                        head->bounds.max, head->n_blocks, step->dots, step->stride);
}

hr_status_t hri_bounds_select(struct hri_index_head *head, const struct hri_select_in *in,
                              struct hri_select_out *out)
{
    struct hri_step step = hri_step_at(head, in);
    hri_bounds_dots(head, in->q, &step);
    for (uint32_t b = 0; b < head->n_blocks; b++) {
        float sum = 0;
        for (uint32_t g = 0; g < head->options.g; g++)
            sum += step.dots[g * step.stride + b];
        step.ranked[b] = (struct hri_ranked){sum, b};
    }
    struct hri_take take = {
        .ranked = step.ranked, .n = head->n_blocks, .budget_bytes = in->budget_bytes};
    hri_take_blocks(head, in, &take, out);
    return HR_OK;
}
