/* What the selectors with bounds of pages have in common. */
#include "index/pages.h"

#include "base/half.h"

size_t hri_bounds_workspace_bytes(const struct hri_index_options *o, uint32_t n)
{
    (void)n;
    return 2 * o->k_dim * sizeof(float) + 64;
}

/* Rounds outwards, so that the bound stays a bound. */
static uint16_t half_towards(float x, float direction)
{
    uint16_t half = hri_f16_from_f32(x);
    float back = hri_f32_from_f16(half);
    if ((direction < 0 && back > x) || (direction > 0 && back < x)) {
        bool grow = (direction > 0) == (back >= 0); /* away from zero? */
        if ((half & 0x7fffu) == 0)
            return direction < 0 ? 0x8001u : 0x0001u;
        half = grow ? half + 1 : half - 1;
    }
    return half;
}

void hri_bounds_write(const struct hri_kernels *kernels, const float *k, uint32_t n, uint32_t d,
                      float *work, uint16_t *min_out, uint16_t *max_out)
{
    kernels->min_max(k, n, d, work, work + d);
    for (uint32_t j = 0; j < d; j++) {
        min_out[j] = half_towards(work[j], -1);
        max_out[j] = half_towards(work[d + j], 1);
    }
}

hr_status_t hri_bounds_summarise(struct hri_index_head *head, const struct hri_segment *segment)
{
    uint32_t d = head->options.k_dim;
    const float *k = segment->k;
    for (uint32_t b = 0; b < segment->n_blocks; b++) {
        size_t at = (size_t)(head->n_blocks + b) * d;
        hri_bounds_write(head->options.kernels, k, segment->block_rows[b], d, segment->workspace,
                         head->bounds.min + at, head->bounds.max + at);
        k += (size_t)segment->block_rows[b] * d;
    }
    return HR_OK;
}

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
