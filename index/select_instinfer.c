/* InstInfer (arXiv 2409.04992): attention is computed where the rows lie; only output and log-sum-exp of each head travel. The result
 * is exact. Its drives compute inside; here the runtime's workers do, over host memory in place and over the file through the
 * host's read buffers (runtime/step.c, whole_heads). */
#include "index/head.h"
#include "index/params.h"

static hr_status_t select_all(struct hri_index_head *head, const struct hri_select_in *in,
                              struct hri_select_out *out)
{
    (void)head, (void)in;
    out->all = true;
    return HR_OK;
}

static const struct hri_selector_ops ops = {.select = select_all};

static const struct hri_param params_instinfer[] = {PARAM_SINK(4),       PARAM_WINDOW(64),
                                                    PARAM_SEGMENT(8192), PARAM_DECODE_SEGMENT(512),
                                                    PARAM_DENSE(""),     PARAM_END};

const struct hri_selector hri_selector_instinfer = {
    .name = "instinfer",
    .summary = "everything, exactly, attended where it lies: only outputs and log-sum-exps move",
    .source = "InstInfer, arXiv 2409.04992",
    .unit = HRI_UNIT_ROWS,
    .codec = HRI_CODEC_EXACT,
    .attends_in_place = true,
    .params = params_instinfer,
    .ops = &ops,
};
