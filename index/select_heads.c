/* Recipes that split the heads by a table from elsewhere: some kv-heads attend everything, the others sink and window.
 * DuoAttention (arXiv 2410.10819): gates trained per head. RLKV (arXiv 2510.08525): gates found by reinforcement
 * learning. */
#include "index/head.h"
#include "index/head_class.h"
#include "index/params.h"

static hr_status_t select_by_gate(struct hri_index_head *head, const struct hri_select_in *in,
                                  struct hri_select_out *out)
{
    const struct hri_recipe *recipe = &head->options.recipe;
    double sparsity = hri_recipe_value(recipe, "sparsity");
    (void)in;
    out->all = hri_gate_retrieves(&head->options, hri_recipe_value(recipe, "threshold"),
                                  sparsity > 0 ? 1 - sparsity : 0);
    return HR_OK;
}

static const struct hri_selector_ops ops = {.select = select_by_gate};

#define PARAM_THRESHOLD(source)                                                                    \
    {                                                                                              \
        "threshold", "gates of at least this retrieve", source, 0.5, 0, 1                          \
    }
#define PARAM_SPARSITY(source)                                                                     \
    {                                                                                              \
        "sparsity", "share of all heads that stream, by their gates; 0: threshold decides",        \
            source, 0, 0, 0.99                                                                     \
    }

static const struct hri_param params_duo[] = {
    {"sink", "first tokens that stay on the device", "DuoAttention, section 3.1", 64, 0, 4096},
    {"window", "newest tokens that stay on the device", "DuoAttention, section 3.1", 256, 1, 65536},
    PARAM_SEGMENT(8192),
    PARAM_DECODE_SEGMENT(512),
    PARAM_DENSE(""),
    PARAM_THRESHOLD("DuoAttention, section 2.2"),
    PARAM_SPARSITY("DuoAttention, section 3.1 (there: 0.5, or 0.75 without grouped queries)"),
    PARAM_END};

static const struct hri_param params_rlkv[] = {
    {"sink", "first tokens that stay on the device", "RLKV, section 4", 16, 0, 4096},
    {"window", "newest tokens that stay on the device", "RLKV, section 4", 64, 1, 65536},
    PARAM_SEGMENT(8192),
    PARAM_DECODE_SEGMENT(512),
    PARAM_DENSE(""),
    PARAM_THRESHOLD("RLKV, section 3"),
    PARAM_SPARSITY("RLKV, section 4"),
    PARAM_END};

const struct hri_selector hri_selector_duoattention = {
    .name = "duoattention",
    .summary = "retrieval heads attend everything, streaming heads sink and window, by a table of "
               "gates (--head-gates)",
    .source = "DuoAttention, arXiv 2410.10819",
    .unit = HRI_UNIT_ROWS,
    .codec = HRI_CODEC_EXACT,
    .needs_gates = true,
    .params = params_duo,
    .ops = &ops,
};

const struct hri_selector hri_selector_rlkv = {
    .name = "rlkv",
    .summary = "reasoning heads attend everything, the others sink and window, by a table of "
               "gates (--head-gates)",
    .source = "RLKV, arXiv 2510.08525",
    .unit = HRI_UNIT_ROWS,
    .codec = HRI_CODEC_EXACT,
    .needs_gates = true,
    .params = params_rlkv,
    .ops = &ops,
};
