/* The selectors there are, with their parameters. Order is the order in which they are listed to
 * users. */
#include "index/selector_ops.h"

#define PARAM_SINK(count)                                                                          \
    {                                                                                              \
        "sink", "first tokens that stay on the device", "StreamingLLM, arXiv 2309.17453", count,   \
            0, 4096                                                                                \
    }
#define PARAM_WINDOW(count)                                                                        \
    {                                                                                              \
        "window", "newest tokens that stay on the device", "StreamingLLM, arXiv 2309.17453",       \
            count, 1, 65536                                                                        \
    }
#define PARAM_SEGMENT(count)                                                                       \
    {                                                                                              \
        "segment", "tokens grouped into blocks together while prefilling",                         \
            "RetroInfer, arXiv 2505.02922", count, 32, 65536                                       \
    }
#define PARAM_DECODE_SEGMENT(count)                                                                \
    {                                                                                              \
        "decode_segment", "tokens grouped into blocks together while decoding",                    \
            "RetroInfer, arXiv 2505.02922", count, 16, 8192                                        \
    }
#define PARAM_DENSE(source)                                                                        \
    {                                                                                              \
        "dense", "first layers that are attended densely", source, 0, 0, 1024                      \
    }
#define PARAM_END                                                                                  \
    {                                                                                              \
        NULL, NULL, NULL, 0, 0, 0                                                                  \
    }

static const struct hri_param params_full[] = {PARAM_SINK(4), PARAM_WINDOW(64), PARAM_SEGMENT(8192),
                                               PARAM_DECODE_SEGMENT(256), PARAM_END};

static const struct hri_param params_window[] = {PARAM_SINK(4),       PARAM_WINDOW(64),
                                                 PARAM_SEGMENT(8192), PARAM_DECODE_SEGMENT(256),
                                                 PARAM_DENSE(""),     PARAM_END};

static const struct hri_param params_topk[] = {PARAM_SINK(4),       PARAM_WINDOW(64),
                                               PARAM_SEGMENT(8192), PARAM_DECODE_SEGMENT(256),
                                               PARAM_DENSE(""),     PARAM_END};

static const struct hri_param params_quest[] = {PARAM_SINK(4),
                                                PARAM_WINDOW(64),
                                                PARAM_SEGMENT(8192),
                                                PARAM_DECODE_SEGMENT(256),
                                                PARAM_DENSE("Quest, section 4.1 (there: 2)"),
                                                {"page",
                                                 "consecutive tokens per block (also: block)",
                                                 "Quest, arXiv 2406.10774, section 4.1", 16, 4, 64},
                                                PARAM_END};

static const struct hri_param params_retroinfer[] = {
    PARAM_SINK(4),
    PARAM_WINDOW(64),
    PARAM_SEGMENT(8192),
    PARAM_DECODE_SEGMENT(256),
    PARAM_DENSE(""),
    {"block", "mean tokens per cluster", "RetroInfer, arXiv 2505.02922, section 4", 16, 4, 64},
    {"estimate", "share of the clusters that is estimated; the rest is dropped",
     "RetroInfer, section 4", 0.232, 0, 1},
    {"iterations", "k-means iterations", "RetroInfer, section 4", 10, 1, 50},
    PARAM_END};

static const struct hri_param params_headrace[] = {
    PARAM_SINK(4),
    PARAM_WINDOW(64),
    PARAM_SEGMENT(8192),
    PARAM_DECODE_SEGMENT(256),
    PARAM_DENSE(""),
    {"block", "mean tokens per block", "docs/algorithm.md", 18, 4, 64},
    {"iterations", "k-means iterations", "docs/algorithm.md", 3, 1, 50},
    {"reuse", "blocks that lie in frames and are refined beyond the budget, as a share of it",
     "docs/algorithm.md", 1, 0, 8},
    PARAM_END};

static const struct hri_selector selectors[] = {
    {"full", "attends every row exactly", "the reference", HRI_UNIT_ALL, HRI_CODEC_EXACT, false,
     params_full, &hri_select_full_ops},
    {"window", "attends the first and the newest tokens, drops the rest",
     "StreamingLLM, arXiv 2309.17453", HRI_UNIT_NONE, HRI_CODEC_EXACT, false, params_window,
     &hri_select_window_ops},
    {"exact-topk",
     "attends the rows with the largest true scores: the oracle for selectors that drop the rest",
     "docs/algorithm.md", HRI_UNIT_ROWS, HRI_CODEC_EXACT, true, params_topk, &hri_select_topk_ops},
    {"quest", "pages of consecutive tokens by an upper bound of their scores",
     "Quest, arXiv 2406.10774, section 3", HRI_UNIT_BLOCKS, HRI_CODEC_EXACT, false, params_quest,
     &hri_select_quest_ops},
    {"retroinfer",
     "spherical k-means clusters; the best exactly, the next estimated by centroid and mean value",
     "RetroInfer, arXiv 2505.02922, section 4", HRI_UNIT_BLOCKS, HRI_CODEC_EXACT, false,
     params_retroinfer, &hri_select_retroinfer_ops},
    {"headrace",
     "blocks in the metric of the queries, second-order summaries, int8 rows where they remove "
     "most error",
     "docs/algorithm.md", HRI_UNIT_BLOCKS, HRI_CODEC_I8, false, params_headrace,
     &hri_select_headrace_ops},
};

const struct hri_selector *hri_selector_at(size_t i)
{
    return i < sizeof selectors / sizeof *selectors ? &selectors[i] : NULL;
}
