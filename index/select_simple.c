/* Selectors without summaries: everything, nothing, and the true best rows. */
#include "base/arena.h"
#include "base/error.h"
#include "index/head.h"
#include "index/params.h"

#include <math.h>

static hr_status_t select_nothing(struct hri_index_head *head, const struct hri_select_in *in,
                                  struct hri_select_out *out)
{
    (void)head, (void)in, (void)out;
    return HR_OK;
}

static const struct hri_selector_ops full_ops = {.select = select_nothing};
static const struct hri_selector_ops window_ops = {.select = select_nothing};

/* Ranks for all body rows; blocks hold at most block_rows_max of them. */
static size_t topk_scratch_bytes(const struct hri_index_options *o)
{
    size_t rows = (size_t)o->blocks_max * hri_index_block_rows_max(&o->recipe, o->k_dim, o->v_dim);
    return rows * sizeof(struct hri_ranked) + 64;
}

static hr_status_t topk_select(struct hri_index_head *head, const struct hri_select_in *in,
                               struct hri_select_out *out)
{
    const struct hri_kernels *kernels = head->options.kernels;
    struct hri_ranked *ranked = in->scratch;
    if (!in->row_scores)
        return hri_error_set(HR_ERR_INTERNAL, "exact-topk was not given the scores of the rows");
    if (in->n_rows > topk_scratch_bytes(&head->options) / sizeof *ranked)
        return hri_error_set(HR_ERR_INTERNAL,
                             "exact-topk was given %u rows, more than its blocks hold", in->n_rows);
    for (uint32_t i = 0; i < in->n_rows; i++)
        ranked[i] = (struct hri_ranked){0, i};
    for (uint32_t g = 0; g < head->options.g; g++) {
        const float *score = in->row_scores + g * in->row_scores_stride;
        float top = kernels->max(score, in->n_rows), total = 0;
        for (uint32_t i = 0; i < in->n_rows; i++)
            total += expf(score[i] - top);
        if (in->near && in->near->l[g] > 0)
            total += in->near->l[g] * expf(in->near->m[g] - top);
        for (uint32_t i = 0; i < in->n_rows; i++)
            ranked[i].key += expf(score[i] - top) / total;
    }
    uint64_t fits = in->row_bytes ? in->budget_bytes / in->row_bytes : 0;
    uint32_t n = fits < in->n_rows ? (uint32_t)fits : in->n_rows;
    n = n < out->items_max ? n : out->items_max;
    hri_rank_select(ranked, in->n_rows, n);
    hri_rank_sort(ranked, n);
    for (uint32_t i = 0; i < n; i++)
        out->items[i] = ranked[i].item;
    out->n_items = n;
    out->bytes = (uint64_t)n * in->row_bytes;
    return HR_OK;
}

static const struct hri_selector_ops topk_ops = {.scratch_bytes = topk_scratch_bytes,
                                                 .select = topk_select};

static const struct hri_param params_full[] = {PARAM_SINK(4), PARAM_WINDOW(64), PARAM_SEGMENT(8192),
                                               PARAM_DECODE_SEGMENT(512), PARAM_END};

static const struct hri_param params_window[] = {PARAM_SINK(4),       PARAM_WINDOW(64),
                                                 PARAM_SEGMENT(8192), PARAM_DECODE_SEGMENT(512),
                                                 PARAM_DENSE(""),     PARAM_END};

static const struct hri_param params_topk[] = {PARAM_SINK(4),       PARAM_WINDOW(64),
                                               PARAM_SEGMENT(8192), PARAM_DECODE_SEGMENT(512),
                                               PARAM_DENSE(""),     PARAM_END};

const struct hri_selector hri_selector_full = {
    .name = "full",
    .summary = "attends every row exactly",
    .source = "the reference",
    .unit = HRI_UNIT_ALL,
    .codec = HRI_CODEC_EXACT,
    .params = params_full,
    .ops = &full_ops,
};

const struct hri_selector hri_selector_window = {
    .name = "window",
    .summary = "attends the first and the newest tokens, drops the rest",
    .source = "StreamingLLM, arXiv 2309.17453",
    .unit = HRI_UNIT_NONE,
    .codec = HRI_CODEC_EXACT,
    .params = params_window,
    .ops = &window_ops,
};

const struct hri_selector hri_selector_exact_topk = {
    .name = "exact-topk",
    .summary = "attends the rows with the largest true scores: the oracle for selectors that drop "
               "the rest",
    .source = "docs/algorithm.md",
    .unit = HRI_UNIT_ROWS,
    .codec = HRI_CODEC_EXACT,
    .needs_row_scores = true,
    .params = params_topk,
    .ops = &topk_ops,
};
