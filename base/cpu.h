/*
 * What the processor can do. Read once when a runtime is created and passed on; nothing here is
 * remembered.
 */
#ifndef HRI_BASE_CPU_H
#define HRI_BASE_CPU_H

#include <stdbool.h>
#include <stddef.h>

#include "base/status.h"

/* The kernel families there are. Each includes the ones before it. */
enum hri_cpu_level {
    HRI_CPU_REF = 0,    /* plain C, any machine */
    HRI_CPU_AVX2 = 1,   /* avx2 + fma + f16c */
    HRI_CPU_AVX512 = 2, /* avx512 f, bw, vl, dq */
    HRI_CPU_AMX = 3,    /* avx512 vnni, bf16; amx tile, bf16, int8, and the system lets us */
};

struct hri_cpu {
    enum hri_cpu_level level;
    /* A feature is true only if the processor, the operating system and the level all allow it. */
    bool avx2, fma, f16c;
    bool avx512f, avx512bw, avx512vl, avx512dq;
    bool avx512_vnni, avx512_bf16, avx512_fp16, avx_vnni;
    bool amx_tile, amx_bf16, amx_int8;
    char brand[64]; /* "" where it is not known */
};

/*
 * Environment variable HEADRACE_CPU=ref|avx2|avx512|amx lowers the level; asking for more than the
 * machine has is HR_ERR_UNSUPPORTED, another word HR_ERR_INVALID.
 */
hr_status_t hri_cpu_detect(struct hri_cpu *cpu_out);

/* The same with the level given: NULL or "" for the best. */
hr_status_t hri_cpu_detect_level(const char *level, struct hri_cpu *cpu_out);

/*
 * AMX needs the kernel's permission once per process; false where it is refused. Called by
 * detect.
 */
bool hri_cpu_request_amx(void);

const char *hri_cpu_level_name(enum hri_cpu_level level);

/* "avx2 fma f16c ..." into text; returns text. */
char *hri_cpu_features(const struct hri_cpu *cpu, char *text, size_t text_bytes);

#endif
