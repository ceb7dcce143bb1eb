/* The selectors there are, in the order in which they are listed to users. Each is defined in its own file. */
#include "index/selector_ops.h"

/* clang-format off: one a line */
static const struct hri_selector *const selectors[] = {
    &hri_selector_full,
    &hri_selector_window,
    &hri_selector_exact_topk,
    &hri_selector_quest,
    &hri_selector_arkvale,
    &hri_selector_shadowkv,
    &hri_selector_retroinfer,
    &hri_selector_freekv,
    &hri_selector_louiskv,
    &hri_selector_actqkv,
    &hri_selector_lserve,
    &hri_selector_tokenselect,
    &hri_selector_infinigen,
    &hri_selector_instinfer,
    &hri_selector_duoattention,
    &hri_selector_razorattention,
    &hri_selector_task_kv,
    &hri_selector_rlkv,
    &hri_selector_clusterkv,
    &hri_selector_squeezed,
    &hri_selector_pqcache,
    &hri_selector_a2ats,
    &hri_selector_magicpig,
    &hri_selector_pariskv,
    &hri_selector_retrievalattention,
    &hri_selector_faiss,
    &hri_selector_triforce,
    &hri_selector_headrace,
};
/* clang-format on */

const struct hri_selector *hri_selector_at(size_t i)
{
    return i < sizeof selectors / sizeof *selectors ? selectors[i] : NULL;
}
