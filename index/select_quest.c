/* Quest (arXiv 2406.10774, section 3.2): pages of consecutive tokens; a page's score is an upper
 * bound of its rows' logits from the smallest and largest key per dimension. The group shares its
 * pages, so bounds are added over its query heads. What is not chosen is dropped. */
#include "index/head.h"
#include "index/pages.h"
#include "index/params.h"
#include "index/image.h"

static uint64_t device_bytes(const struct hri_index_options *o)
{
    return hri_bounds_bytes(o, o->blocks_max);
}

static uint64_t held_bytes(const struct hri_index_head *head, uint32_t n_blocks)
{
    return hri_bounds_bytes(&head->options, n_blocks);
}

/* The head's own tables are all there is. */
static void image(struct hri_index_head *head, struct hri_image *im)
{
    (void)head, (void)im;
}

static const struct hri_selector_ops ops = {
    .device_bytes = device_bytes,
    .held_bytes = held_bytes,
    .create = hri_bounds_create,
    .destroy = hri_bounds_destroy,
    .workspace_bytes = hri_bounds_workspace_bytes,
    .summarise = hri_bounds_summarise,
    .scratch_bytes = hri_step_bytes,
    .select = hri_bounds_select,
    .image = image,
};

static const struct hri_param params_quest[] = {PARAM_SINK(4),
                                                PARAM_WINDOW(64),
                                                PARAM_SEGMENT(8192),
                                                PARAM_DECODE_SEGMENT(512),
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
