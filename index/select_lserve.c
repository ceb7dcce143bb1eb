/* LServe (arXiv 2502.14866): half of the heads stream (sink and window); the others read pages. A page is known by the
 * elementwise bounds of its logical pages: its score is the largest of theirs, and the choice is used for several steps.
 * Streaming heads leave their share of the layer's budget to the others. What is not chosen is dropped. */
#include "index/head_class.h"
#include "index/kept.h"
#include "index/means.h"
#include "index/pages.h"
#include "index/params.h"
#include "index/image.h"

#include <math.h>
#include <string.h>

struct lserve {
    uint16_t *min, *max; /* [blocks_max][parts][k_dim] float16 */
    uint32_t logical, parts;
    struct hri_kept kept;
    uint32_t age; /* steps since the choice */
    struct hri_samples samples;
    bool classified, streams;
    uint32_t n_retrieve; /* heads of the layer that do not stream */
};

static uint32_t parts_of(const struct hri_index_options *o)
{
    uint32_t page = hri_index_target_rows(&o->recipe),
             logical = (uint32_t)hri_recipe_value(&o->recipe, "logical");
    return (page + logical - 1) / logical;
}

static uint64_t bounds_bytes(const struct hri_index_options *o, uint32_t n_blocks)
{
    return 2 * (uint64_t)n_blocks * parts_of(o) * o->k_dim * sizeof(uint16_t);
}

static uint64_t device_bytes(const struct hri_index_options *o)
{
    return bounds_bytes(o, o->blocks_max);
}

static uint64_t held_bytes(const struct hri_index_head *head, uint32_t n_blocks)
{
    const struct lserve *s = head->state;
    return s->streams ? 0 : bounds_bytes(&head->options, n_blocks);
}

/* By the table, the half with the smaller gates of all layers streams. */
static void classify_by_table(struct lserve *s, const struct hri_index_options *o)
{
    double share = 1 - hri_recipe_value(&o->recipe, "streaming");
    struct hri_index_options other = *o;
    for (uint32_t h = 0; h < o->n_heads; h++) {
        other.gate = o->gates ? o->gates[(size_t)o->layer * o->n_heads + h] : o->gate;
        s->n_retrieve += hri_gate_retrieves(&other, 0.5, share);
    }
    s->streams = !hri_gate_retrieves(o, 0.5, share);
    s->classified = true;
}

static void destroy(struct hri_index_head *head)
{
    struct lserve *s = head->state;
    const struct hri_index_options *o = &head->options;
    hri_free(o->device, s->min);
    hri_free(o->device, s->max);
    hri_kept_destroy(&s->kept, o);
    hri_samples_destroy(&s->samples, o);
    hri_free(o->scratch, s);
}

static hr_status_t create(struct hri_index_head *head)
{
    const struct hri_index_options *o = &head->options;
    struct lserve *s = hri_calloc(o->scratch, 1, sizeof *s);
    if (!s)
        return hri_alloc_status();
    head->state = s;
    s->parts = parts_of(o);
    s->logical = (uint32_t)hri_recipe_value(&o->recipe, "logical");
    size_t bytes = bounds_bytes(o, o->blocks_max) / 2;
    s->min = hri_aligned(o->device, 64, bytes);
    s->max = hri_aligned(o->device, 64, bytes);
    hr_status_t status = s->min && s->max ? HR_OK : hri_alloc_status();
    if (status == HR_OK)
        status = hri_kept_create(&s->kept, o, o->blocks_max);
    if (status == HR_OK)
        status = hri_samples_create(&s->samples, o);
    if (status != HR_OK)
        destroy(head);
    else if (o->gate >= 0)
        classify_by_table(s, o);
    return status;
}

static void observe(struct hri_index_head *head, const float *q, uint32_t n,
                    uint32_t first_position)
{
    struct lserve *s = head->state;
    if (!s->classified)
        hri_samples_observe(&s->samples, &head->options, q, n, first_position);
}

/* Without a table: heads whose prompt queries look farthest back retrieve, once and for all. */
static hr_status_t prepare(struct hri_index_head *const *heads, uint32_t n_heads, const float *k,
                           const float *v, uint32_t n, uint32_t first_row)
{
    struct lserve *first = heads[0]->state;
    const struct hri_samples *samples[HR_HEADS_MAX];
    bool retrieves[HR_HEADS_MAX], measured = false;
    uint32_t n_retrieve = 0;
    double share = 1 - hri_recipe_value(&heads[0]->options.recipe, "streaming");
    if (first->classified)
        return HR_OK;
    for (uint32_t h = 0; h < n_heads; h++)
        samples[h] = &((const struct lserve *)heads[h]->state)->samples;
    hr_status_t status = hri_class_by_reach(heads, n_heads, samples, k, v, n, first_row, share,
                                            retrieves, &measured);
    for (uint32_t h = 0; measured && h < n_heads; h++)
        n_retrieve += retrieves[h];
    for (uint32_t h = 0; measured && h < n_heads; h++) {
        struct lserve *s = heads[h]->state;
        s->n_retrieve = n_retrieve;
        s->streams = !retrieves[h];
        s->classified = true;
    }
    return status;
}

/* Bounds of a page's logical pages; what a short page lacks repeats its last. */
static void write_page(struct hri_index_head *head, uint32_t block, const float *k, uint32_t n,
                       float *work)
{
    const struct lserve *s = head->state;
    uint32_t d = head->options.k_dim;
    for (uint32_t p = 0; p < s->parts; p++) {
        uint32_t first = p * s->logical < n ? p * s->logical : (n - 1) / s->logical * s->logical,
                 rows = n - first < s->logical ? n - first : s->logical;
        size_t at = ((size_t)block * s->parts + p) * d;
        hri_bounds_write(head->options.kernels, k + (size_t)first * d, rows, d, work, s->min + at,
                         s->max + at);
    }
}

static hr_status_t summarise(struct hri_index_head *head, const struct hri_segment *segment)
{
    const float *k = segment->k;
    for (uint32_t b = 0; b < segment->n_blocks; b++) {
        write_page(head, head->n_blocks + b, k, segment->block_rows[b], segment->workspace);
        k += (size_t)segment->block_rows[b] * head->options.k_dim;
    }
    return HR_OK;
}

static size_t scratch_bytes(const struct hri_index_options *o)
{
    return hri_round_up(hri_step_bytes(o), 64) +
           (size_t)o->g * hri_lanes_up(o->blocks_max * parts_of(o)) * sizeof(float);
}

static void choose(struct hri_index_head *head, const struct hri_select_in *in, uint64_t budget,
                   struct hri_select_out *out)
{
    const struct hri_index_options *o = &head->options;
    struct lserve *s = head->state;
    struct hri_step step = hri_step_at(head, in);
    float *dots = (float *)(void *)((char *)in->scratch + hri_round_up(hri_step_bytes(o), 64));
    uint32_t n = head->n_blocks * s->parts, stride = hri_lanes_up(n);
    o->kernels->score_bounds(in->q, o->g, o->k_dim, s->min, s->max, n, dots, stride);
    for (uint32_t b = 0; b < head->n_blocks; b++) {
        float best = -INFINITY;
        for (uint32_t p = 0; p < s->parts; p++) {
            float sum = 0;
            for (uint32_t g = 0; g < o->g; g++)
                sum += dots[(size_t)g * stride + b * s->parts + p];
            best = fmaxf(best, sum);
        }
        step.ranked[b] = (struct hri_ranked){best, b};
    }
    struct hri_take take = {.ranked = step.ranked, .n = head->n_blocks, .budget_bytes = budget};
    hri_take_blocks(head, in, &take, out);
    hri_kept_store(&s->kept, o, in->q, out);
    s->age = 0;
}

static hr_status_t select_pages(struct hri_index_head *head, const struct hri_select_in *in,
                                struct hri_select_out *out)
{
    struct lserve *s = head->state;
    uint32_t reuse = (uint32_t)hri_recipe_value(&head->options.recipe, "steps");
    if (s->streams)
        return HR_OK;
    struct hri_select_in own = *in;
    if (s->n_retrieve)
        own.budget_bytes = in->budget_bytes * head->options.n_heads / s->n_retrieve;
    if (!s->kept.valid || ++s->age >= reuse)
        choose(head, &own, own.budget_bytes, out);
    else
        hri_kept_take(head, &own, &s->kept, hri_step_at(head, in).ranked, out);
    return HR_OK;
}

static void forget(struct hri_index_head *head, uint32_t n_tokens)
{
    struct lserve *s = head->state;
    (void)n_tokens;
    s->kept.valid = false;
}

static void image(struct hri_index_head *head, struct hri_image *im)
{
    const struct hri_index_options *o = &head->options;
    struct lserve *s = head->state;
    size_t n = (size_t)head->n_blocks * s->parts * o->k_dim;
    hri_image_halfs(im, s->min, n);
    hri_image_halfs(im, s->max, n);
    hri_kept_image(&s->kept, o, im);
    hri_image_u32(im, &s->age, UINT32_MAX, "");
    hri_samples_image(&s->samples, o, im);
    hri_image_flag(im, &s->classified);
    hri_image_flag(im, &s->streams);
    hri_image_u32(im, &s->n_retrieve, o->n_heads, "more heads than the layer has");
}

static const struct hri_selector_ops ops = {
    .device_bytes = device_bytes,
    .held_bytes = held_bytes,
    .create = create,
    .destroy = destroy,
    .workspace_bytes = hri_bounds_workspace_bytes,
    .prepare = prepare,
    .summarise = summarise,
    .scratch_bytes = scratch_bytes,
    .observe = observe,
    .forget = forget,
    .select = select_pages,
    .image = image,
};

static const struct hri_param params_lserve[] = {
    {"sink", "first tokens that stay on the device", "LServe, section 4.1", 64, 0, 4096},
    {"window", "newest tokens that stay on the device", "LServe, section 4.1", 256, 1, 65536},
    PARAM_SEGMENT(8192),
    PARAM_DECODE_SEGMENT(512),
    PARAM_DENSE(""),
    {"page", "consecutive tokens per block (also: block)", "LServe, section 4.1", 64, 4, 64},
    {"logical", "tokens of a logical page, which has bounds of its own", "LServe, section 3.5.2",
     16, 2, 64},
    {"steps", "steps for which a choice is used", "LServe, section 3.5.3", 4, 1, 64},
    {"streaming", "share of the heads that stream", "LServe, section 3.4", 0.5, 0, 0.99},
    PARAM_END};

const struct hri_selector hri_selector_lserve = {
    .name = "lserve",
    .summary = "half of the heads stream; the others read pages by bounds of their logical pages, "
               "chosen every few steps",
    .source = "LServe, arXiv 2502.14866",
    .unit = HRI_UNIT_BLOCKS,
    .codec = HRI_CODEC_EXACT,
    .params = params_lserve,
    .ops = &ops,
};
