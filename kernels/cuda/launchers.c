/* All launchers in one table: built with nvcc's kernels into the library, with the emulated ones into tests. */
#include "kernels/device.h"

const struct hri_launchers hri_launchers = {
    .nothing = hri_cuda_nothing,
    .set_machine = hri_cuda_set_machine,
    .append = hri_cuda_append,
    .scale = hri_cuda_scale,
    .query = hri_cuda_query,
    .score_work = hri_cuda_score_work,
    .score = hri_cuda_score,
    .factor = hri_cuda_factor,
    .worth = hri_cuda_worth,
    .select = hri_cuda_select,
    .residency_clear = hri_cuda_residency_clear,
    .residency_drop = hri_cuda_residency_drop,
    .resolve = hri_cuda_resolve,
    .resolve_late = hri_cuda_resolve_late,
    .gather = hri_cuda_gather,
    .mail_post = hri_cuda_mail_post,
    .mail_collect = hri_cuda_mail_collect,
    .mark = hri_cuda_mark,
    .predict = hri_cuda_predict,
    .attend_work = hri_cuda_attend_work,
    .attend_counters = hri_cuda_attend_counters,
    .attend = hri_cuda_attend,
    .prefill = hri_cuda_prefill,
};
