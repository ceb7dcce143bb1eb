#include "engine/ops.h"

#include <stdlib.h>
#include <string.h>

#include "engine/fail.h"

/* Best first. */
static const struct hre_ops *const levels[] = {
#if defined(__x86_64__)
    &hre_ops_avx512,
    &hre_ops_avx2,
#endif
    &hre_ops_ref,
};
#define LEVELS (sizeof(levels) / sizeof(levels[0]))

static int cpu_has(const struct hre_ops *ops)
{
#if defined(__x86_64__)
    int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
               __builtin_cpu_supports("avx");

    if (ops == &hre_ops_avx512) {
        return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512vnni");
    }
    if (ops == &hre_ops_avx2) {
        return avx2;
    }
#endif
    return ops == &hre_ops_ref;
}

hr_status_t hre_ops_choose(const char *level, const struct hre_ops **ops_out)
{
    if (!level) {
        level = getenv("HEADRACE_CPU");
    }
    /* A level of the runtime's kernels; nothing here uses tiles. */
    if (level && strcmp(level, "amx") == 0) {
        level = "avx512";
    }
    for (size_t i = 0; i < LEVELS; i++) {
        int wanted = level && level[0] ? strcmp(level, levels[i]->name) == 0 : cpu_has(levels[i]);

        if (!wanted) {
            continue;
        }
        if (!cpu_has(levels[i])) {
            return hre_fail(HR_ERR_UNSUPPORTED, "cpu level '%s': this CPU does not have it", level);
        }
        *ops_out = levels[i];
        return HR_OK;
    }
    return hre_fail(HR_ERR_INVALID, "cpu level '%s' is not known; ref, avx2, avx512 and amx are",
                    level);
}
