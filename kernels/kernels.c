/* One table of operations per level, and the choice among them by what the CPU has. */
#include "kernels/cpu/ops.h"

#include "base/cpu.h"

#include <string.h>
#if HRI_KERNELS_X86
#include <cpuid.h>
#endif

#define HRI_TABLE(level_, name_, of)                                                               \
    {                                                                                              \
        .level = level_, .name = name_, .to_f32 = hri_##of##_to_f32,                               \
        .from_f32 = hri_##of##_from_f32, .find_nonfinite = hri_##of##_find_nonfinite,              \
        .attend_rows = hri_##of##_attend_rows, .attend_runs = hri_##of##_attend_runs,              \
        .attend_gather = hri_##of##_attend_gather, .score_rows = hri_##of##_score_rows,            \
        .attend_tile = hri_##of##_attend_tile, .score_centroids = hri_##of##_score_centroids,      \
        .weighted_sum_i8 = hri_##of##_weighted_sum_i8,                                             \
        .attend_block_i8 = hri_##of##_attend_block_i8, .quantise_i8 = hri_##of##_quantise_i8,      \
        .nearest = hri_##of##_nearest, .matmul_nt = hri_##of##_matmul_nt,                          \
        .second_moment = hri_##of##_second_moment, .min_max = hri_##of##_min_max,                  \
        .score_bounds = hri_##of##_score_bounds, .exp_sum = hri_##of##_exp_sum,                    \
        .max = hri_##of##_max, .weigh_rows = hri_##of##_weigh_rows,                                \
        .score_sketch = hri_##of##_score_sketch, .sum_sketch = hri_##of##_sum_sketch,              \
        .pack_sketch = hri_##of##_pack_sketch, .score_gather_i8 = hri_##of##_score_gather_i8,      \
        .sum_gather_i8 = hri_##of##_sum_gather_i8,                                                 \
    }

static const struct hri_kernels table_ref = HRI_TABLE(HRI_KERNEL_REF, "ref", ref);

#if HRI_KERNELS_X86
static const struct hri_kernels table_avx2 = HRI_TABLE(HRI_KERNEL_AVX2, "avx2", avx2);
static const struct hri_kernels table_avx512 = HRI_TABLE(HRI_KERNEL_AVX512, "avx512", avx512);
static const struct hri_kernels table_amx = HRI_TABLE(HRI_KERNEL_AMX, "amx", amx);
#endif

#if HRI_KERNELS_X86
/* clang's __builtin_cpu_supports does not know f16c. */
static bool cpu_has_f16c(void)
{
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C) != 0;
}
#endif

static bool cpu_has(enum hri_kernel_level level)
{
#if HRI_KERNELS_X86
    __builtin_cpu_init();
    if (level == HRI_KERNEL_AVX2)
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && cpu_has_f16c();
    /* Everything from Cascade Lake and Zen 4 on; older AVX-512 machines lower their clock and gain
     * little over AVX2. */
    if (level == HRI_KERNEL_AVX512)
        return cpu_has(HRI_KERNEL_AVX2) && __builtin_cpu_supports("avx512f") &&
               __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
    if (level == HRI_KERNEL_AMX) { /* the system has a word in it */
        struct hri_cpu cpu;
        return cpu_has(HRI_KERNEL_AVX512) && hri_cpu_detect_level(NULL, &cpu) == HR_OK &&
               cpu.level >= HRI_CPU_AMX;
    }
#endif
    return level == HRI_KERNEL_REF;
}

enum hri_kernel_level hri_kernels_best(void)
{
    if (cpu_has(HRI_KERNEL_AMX))
        return HRI_KERNEL_AMX;
    if (cpu_has(HRI_KERNEL_AVX512))
        return HRI_KERNEL_AVX512;
    return cpu_has(HRI_KERNEL_AVX2) ? HRI_KERNEL_AVX2 : HRI_KERNEL_REF;
}

const struct hri_kernels *hri_kernels_get(enum hri_kernel_level level)
{
    const enum hri_kernel_level best = hri_kernels_best();

    switch (level < best ? level : best) {
#if HRI_KERNELS_X86
    case HRI_KERNEL_AMX:
        return &table_amx;
    case HRI_KERNEL_AVX512:
        return &table_avx512;
    case HRI_KERNEL_AVX2:
        return &table_avx2;
#endif
    default:
        return &table_ref;
    }
}

bool hri_kernels_parse(const char *name, enum hri_kernel_level *level_out)
{
    static const char *const names[] = {"ref", "avx2", "avx512", "amx"};

    for (int i = 0; i < 4; i++) {
        if (strcmp(name, names[i]) == 0) {
            *level_out = (enum hri_kernel_level)i;
            return true;
        }
    }
    return false;
}
