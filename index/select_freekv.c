/* FreeKV (arXiv 2505.13109): pages of consecutive tokens with elementwise bounds, as Quest's. A step uses the pages that the
 * previous step's query chose, so that they are there in time; a kv-head whose queries have turned (mean cosine with the
 * previous step's below tau) is corrected: it chooses with its own query. The group shares its pages by the mean of the softmax
 * over pages. What is not chosen is dropped. */
#include "index/kept.h"
#include "index/means.h"
#include "index/pages.h"
#include "index/params.h"
#include "index/image.h"

#include <string.h>

struct free_kv {
    float *q; /* [g][k_dim] of the previous step */
    bool valid;
};

static uint64_t device_bytes(const struct hri_index_options *o)
{
    return hri_bounds_bytes(o, o->blocks_max);
}

static uint64_t held_bytes(const struct hri_index_head *head, uint32_t n_blocks)
{
    return hri_bounds_bytes(&head->options, n_blocks);
}

static void destroy(struct hri_index_head *head)
{
    struct free_kv *s = head->state;
    hri_free(head->options.scratch, s->q);
    hri_free(head->options.scratch, s);
    hri_bounds_destroy(head);
}

static hr_status_t create(struct hri_index_head *head)
{
    const struct hri_index_options *o = &head->options;
    struct free_kv *s = hri_calloc(o->scratch, 1, sizeof *s);
    if (!s)
        return hri_alloc_status();
    head->state = s;
    s->q = hri_array(o->scratch, (size_t)o->g * o->k_dim, sizeof *s->q);
    hr_status_t status = s->q ? hri_bounds_create(head) : hri_alloc_status();
    if (status != HR_OK)
        destroy(head);
    return status;
}

static void observe(struct hri_index_head *head, const float *q, uint32_t n,
                    uint32_t first_position)
{
    struct free_kv *s = head->state;
    size_t width = (size_t)head->options.g * head->options.k_dim;
    (void)first_position;
    if (n == 0)
        return;
    memcpy(s->q, q + (n - 1) * width, width * sizeof *q);
    s->valid = true;
}

static hr_status_t select_pages(struct hri_index_head *head, const struct hri_select_in *in,
                                struct hri_select_out *out)
{
    const struct hri_index_options *o = &head->options;
    const struct free_kv *s = head->state;
    double tau = hri_recipe_value(&o->recipe, "tau");
    bool speculates = s->valid && hri_cosine(s->q, in->q, o->g, o->k_dim) >= tau;
    struct hri_step step = hri_step_at(head, in);
    hri_bounds_dots(head, speculates ? s->q : in->q, &step);
    for (uint32_t b = 0; b < head->n_blocks; b++)
        step.ranked[b] = (struct hri_ranked){0, b};
    for (uint32_t g = 0; g < o->g; g++) {
        hri_softmax(o->kernels, step.dots + g * step.stride, step.work, head->n_blocks);
        for (uint32_t b = 0; b < head->n_blocks; b++)
            step.ranked[b].key += step.work[b];
    }
    struct hri_take take = {
        .ranked = step.ranked, .n = head->n_blocks, .budget_bytes = in->budget_bytes};
    hri_take_blocks(head, in, &take, out);
    return HR_OK;
}

static void image(struct hri_index_head *head, struct hri_image *im)
{
    const struct hri_index_options *o = &head->options;
    struct free_kv *s = head->state;
    hri_image_flag(im, &s->valid);
    hri_image_floats(im, s->q, s->valid ? (size_t)o->g * o->k_dim : 0);
}

static const struct hri_selector_ops ops = {
    .device_bytes = device_bytes,
    .held_bytes = held_bytes,
    .create = create,
    .destroy = destroy,
    .workspace_bytes = hri_bounds_workspace_bytes,
    .summarise = hri_bounds_summarise,
    .scratch_bytes = hri_step_bytes,
    .observe = observe,
    .select = select_pages,
    .image = image,
};

static const struct hri_param params_freekv[] = {
    PARAM_SINK(4),
    PARAM_WINDOW(64),
    PARAM_SEGMENT(8192),
    PARAM_DECODE_SEGMENT(512),
    PARAM_DENSE(""),
    {"page", "consecutive tokens per block (also: block)", "FreeKV, section 5.1", 32, 4, 64},
    {"tau", "mean cosine of two steps' queries below which a head chooses anew",
     "FreeKV, section 3", 0.8, -1, 1},
    PARAM_END};

const struct hri_selector hri_selector_freekv = {
    .name = "freekv",
    .summary = "pages that the previous step's query chose; heads whose query has turned choose "
               "anew",
    .source = "FreeKV, arXiv 2505.13109",
    .unit = HRI_UNIT_BLOCKS,
    .codec = HRI_CODEC_EXACT,
    .params = params_freekv,
    .ops = &ops,
};
