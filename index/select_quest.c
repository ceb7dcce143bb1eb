/* Quest (arXiv 2406.10774, section 3.2): pages of consecutive tokens; a page's score is an upper
 * bound of its rows' logits from the smallest and largest key per dimension. The group shares its
 * pages, so bounds are added over its query heads. What is not chosen is dropped. */
#include "base/half.h"
#include "index/head.h"
#include "index/pages.h"
#include "index/params.h"

#include <math.h>
#include <string.h>

static uint64_t device_bytes(const struct hri_index_options *o)
{
    return hri_bounds_bytes(o, o->blocks_max);
}

static uint64_t held_bytes(const struct hri_index_head *head, uint32_t n_blocks)
{
    return hri_bounds_bytes(&head->options, n_blocks);
}

static size_t workspace_bytes(const struct hri_index_options *o, uint32_t n)
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

static hr_status_t summarise(struct hri_index_head *head, const struct hri_segment *segment)
{
    uint32_t d = head->options.k_dim, first = 0;
    float *min = segment->workspace, *max = min + d;
    for (uint32_t b = 0; b < segment->n_blocks; b++) {
        size_t at = (size_t)(head->n_blocks + b) * d;
        head->options.kernels->min_max(segment->k + (size_t)first * d, segment->block_rows[b], d,
                                       min, max);
        for (uint32_t j = 0; j < d; j++) {
            head->bounds.min[at + j] = half_towards(min[j], -1);
            head->bounds.max[at + j] = half_towards(max[j], 1);
        }
        first += segment->block_rows[b];
    }
    return HR_OK;
}

static const struct hri_selector_ops ops = {
    .device_bytes = device_bytes,
    .held_bytes = held_bytes,
    .create = hri_bounds_create,
    .destroy = hri_bounds_destroy,
    .workspace_bytes = workspace_bytes,
    .summarise = summarise,
    .scratch_bytes = hri_step_bytes,
    .select = hri_bounds_select,
};

static const struct hri_param params_quest[] = {PARAM_SINK(4),
                                                PARAM_WINDOW(64),
                                                PARAM_SEGMENT(8192),
                                                PARAM_DECODE_SEGMENT(256),
                                                PARAM_DENSE("Quest, section 4.1 (there: 2)"),
                                                {"page",
                                                 "consecutive tokens per block (also: block)",
                                                 "Quest, arXiv 2406.10774, section 4.1", 16, 4, 64},
                                                PARAM_END};

const struct hri_selector hri_selector_quest = {
    .name = "quest",
    .summary = "pages of consecutive tokens by an upper bound of their scores",
    .source = "Quest, arXiv 2406.10774, section 3",
    .unit = HRI_UNIT_BLOCKS,
    .codec = HRI_CODEC_EXACT,
    .params = params_quest,
    .ops = &ops,
};
