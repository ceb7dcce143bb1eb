/* TriForce (arXiv 2404.11912): the draft of a speculative decoder whose result is exact. This is the draft's rule: chunks of 8
 * consecutive tokens with their mean key, ranked by the softmax of query times mean over the chunks, summed over the group; the best
 * are read, the rest is dropped. Verification with full attention is the caller's, who takes rejected tokens back with
 * hr_sequence_truncate; the engine does it (hre_session_speculate). */
#include "index/means.h"
#include "index/params.h"

#include "index/head.h"
#include "index/image.h"

#include <string.h>

static uint64_t device_bytes(const struct hri_index_options *o)
{
    return hri_means_bytes(o, o->blocks_max, false);
}

static uint64_t held_bytes(const struct hri_index_head *head, uint32_t n_blocks)
{
    return hri_means_bytes(&head->options, n_blocks, false);
}

static hr_status_t create(struct hri_index_head *head)
{
    const struct hri_index_options *o = &head->options;
    struct hri_means *means = hri_calloc(o->scratch, 1, sizeof *means);
    if (!means)
        return hri_alloc_status();
    hr_status_t status = hri_means_create(means, o, o->blocks_max, false);
    if (status == HR_OK)
        head->state = means;
    else
        hri_free(o->scratch, means);
    return status;
}

static void destroy(struct hri_index_head *head)
{
    hri_means_destroy(head->state, &head->options);
    hri_free(head->options.scratch, head->state);
}

static hr_status_t summarise(struct hri_index_head *head, const struct hri_segment *segment)
{
    const float *k = segment->k;
    for (uint32_t b = 0; b < segment->n_blocks; b++) {
        hri_means_write(head->state, &head->options, head->n_blocks + b, k, NULL, NULL,
                        segment->block_rows[b]);
        k += (size_t)segment->block_rows[b] * head->options.k_dim;
    }
    return HR_OK;
}

static hr_status_t select_chunks(struct hri_index_head *head, const struct hri_select_in *in,
                                 struct hri_select_out *out)
{
    const struct hri_index_options *o = &head->options;
    struct hri_step step = hri_step_at(head, in);
    uint32_t n = head->n_blocks;
    hri_means_dots(head->state, o, in->q, n, step.dots, step.stride);
    memset(step.work, 0, n * sizeof *step.work);
    for (uint32_t g = 0; g < o->g; g++) {
        float *weight = step.weight + g * step.stride;
        hri_softmax(o->kernels, step.dots + g * step.stride, weight, n);
        for (uint32_t b = 0; b < n; b++)
            step.work[b] += weight[b];
    }
    for (uint32_t b = 0; b < n; b++)
        step.ranked[b] = (struct hri_ranked){step.work[b], b};
    struct hri_take take = {.ranked = step.ranked, .n = n, .budget_bytes = in->budget_bytes};
    hri_take_blocks(head, in, &take, out);
    return HR_OK;
}

static void image(struct hri_index_head *head, struct hri_image *im)
{
    hri_means_image(head->state, &head->options, head->n_blocks, im);
}

static const struct hri_selector_ops ops = {
    .device_bytes = device_bytes,
    .held_bytes = held_bytes,
    .create = create,
    .destroy = destroy,
    .summarise = summarise,
    .scratch_bytes = hri_step_bytes,
    .select = select_chunks,
    .image = image,
};

static const struct hri_param params_triforce[] = {
    PARAM_SINK(4),
    PARAM_WINDOW(64),
    PARAM_SEGMENT(8192),
    PARAM_DECODE_SEGMENT(512),
    PARAM_DENSE(""),
    {"page", "consecutive tokens per chunk (also: block)", "TriForce, section 5.1", 8, 4, 64},
    {"draft", "share of the body that a step of the draft reads; 0: as --moved says", "", 0, 0, 1},
    {"tokens", "tokens proposed before they are verified together", "", 6, 1, 64},
    PARAM_END};

const struct hri_selector hri_selector_triforce = {
    .name = "triforce",
    .summary = "a draft reads chunks by their mean key, full attention verifies: an exact result",
    .source = "TriForce, arXiv 2404.11912",
    .unit = HRI_UNIT_BLOCKS,
    .codec = HRI_CODEC_EXACT,
    .drafts = true,
    .params = params_triforce,
    .ops = &ops,
};
