#include "base/cpu.h"

#include <stdio.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/error.h"

#if defined(__x86_64__)

#include <cpuid.h>

#define XCR0_AVX    0x06u /* SSE and AVX state are saved by the system */
#define XCR0_AVX512 0xe6u /* and mask registers, and both halves of the ZMM file */
#define XCR0_AMX    0x60000u

#define ARCH_REQ_XCOMP_PERM 0x1023
#define XFEATURE_XTILEDATA  18

bool hri_cpu_request_amx(void)
{
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

static uint64_t read_xcr0(void)
{
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

static bool bit(uint32_t word, unsigned index)
{
    return (word >> index & 1) != 0;
}

static void detect_brand(struct hri_cpu *cpu)
{
    uint32_t words[12];
    if ((unsigned)__get_cpuid_max(0x80000000u, NULL) < 0x80000004u)
        return;
    for (unsigned i = 0; i < 3; i++)
        __cpuid(0x80000002u + i, words[4 * i], words[4 * i + 1], words[4 * i + 2],
                words[4 * i + 3]);
    char text[sizeof words + 1];
    memcpy(text, words, sizeof words);
    text[sizeof words] = '\0';
    snprintf(cpu->brand, sizeof cpu->brand, "%s", text + strspn(text, " "));
}

/*
 * Leaf 7 and what stands behind it; xcr0 says what the operating system saves at a context
 * switch.
 */
static void detect_leaf7(struct hri_cpu *cpu, uint64_t xcr0)
{
    uint32_t a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d))
        return;
    uint32_t subleaf_max = a;
    bool avx512 = (xcr0 & XCR0_AVX512) == XCR0_AVX512;
    cpu->avx2 = bit(b, 5);
    cpu->avx512f = avx512 && bit(b, 16);
    cpu->avx512dq = avx512 && bit(b, 17);
    cpu->avx512bw = avx512 && bit(b, 30);
    cpu->avx512vl = avx512 && bit(b, 31);
    cpu->avx512_vnni = avx512 && bit(c, 11);
    cpu->avx512_fp16 = avx512 && bit(d, 23);
    bool amx = (xcr0 & XCR0_AMX) == XCR0_AMX && bit(d, 24);
    cpu->amx_bf16 = amx && bit(d, 22);
    cpu->amx_int8 = amx && bit(d, 25);
    cpu->amx_tile = amx;
    if (subleaf_max >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) {
        cpu->avx_vnni = bit(a, 4);
        cpu->avx512_bf16 = avx512 && bit(a, 5);
    }
}

static void detect_features(struct hri_cpu *cpu)
{
    uint32_t a, b, c, d;
    detect_brand(cpu);
    if (!__get_cpuid(1, &a, &b, &c, &d) || !bit(c, 27)) /* OSXSAVE: xgetbv may be used */
        return;
    uint64_t xcr0 = read_xcr0();
    if ((xcr0 & XCR0_AVX) != XCR0_AVX)
        return;
    cpu->fma = bit(c, 12);
    cpu->f16c = bit(c, 29);
    detect_leaf7(cpu, xcr0);
}

#else

bool hri_cpu_request_amx(void)
{
    return false;
}

static void detect_features(struct hri_cpu *cpu)
{
    (void)cpu;
}

#endif

static enum hri_cpu_level best_level(const struct hri_cpu *cpu)
{
    if (!cpu->avx2 || !cpu->fma || !cpu->f16c)
        return HRI_CPU_REF;
    if (!cpu->avx512f || !cpu->avx512bw || !cpu->avx512vl || !cpu->avx512dq)
        return HRI_CPU_AVX2;
    if (!cpu->avx512_vnni || !cpu->avx512_bf16 || !cpu->amx_bf16 || !cpu->amx_int8)
        return HRI_CPU_AVX512;
    return HRI_CPU_AMX;
}

/* Takes away what lies above the level, so that kernels only ever ask the features. */
static void lower(struct hri_cpu *cpu, enum hri_cpu_level level)
{
    cpu->level = level;
    if (level < HRI_CPU_AMX)
        cpu->amx_tile = cpu->amx_bf16 = cpu->amx_int8 = false;
    if (level < HRI_CPU_AVX512) {
        cpu->avx512f = cpu->avx512bw = cpu->avx512vl = cpu->avx512dq = false;
        cpu->avx512_vnni = cpu->avx512_bf16 = cpu->avx512_fp16 = false;
    }
    if (level < HRI_CPU_AVX2)
        cpu->avx2 = cpu->fma = cpu->f16c = cpu->avx_vnni = false;
}

const char *hri_cpu_level_name(enum hri_cpu_level level)
{
    static const char *const names[] = {"ref", "avx2", "avx512", "amx"};
    return (unsigned)level < 4 ? names[level] : "?";
}

hr_status_t hri_cpu_detect_level(const char *level, struct hri_cpu *cpu_out)
{
    struct hri_cpu cpu = {0};
    detect_features(&cpu);
    if (cpu.amx_tile && !hri_cpu_request_amx())
        cpu.amx_tile = cpu.amx_bf16 = cpu.amx_int8 = false;
    enum hri_cpu_level best = best_level(&cpu), wanted = best;
    if (level != NULL && level[0] != '\0') {
        wanted = HRI_CPU_REF;
        while (wanted <= HRI_CPU_AMX && strcmp(level, hri_cpu_level_name(wanted)) != 0)
            wanted++;
        if (wanted > HRI_CPU_AMX)
            return hri_error_set(HR_ERR_INVALID,
                                 "HEADRACE_CPU is '%.40s'; it must be ref, avx2, avx512 or amx",
                                 level);
        if (wanted > best)
            return hri_error_set(HR_ERR_UNSUPPORTED,
                                 "HEADRACE_CPU is %s, but this processor has only %s", level,
                                 hri_cpu_level_name(best));
    }
    lower(&cpu, wanted);
    *cpu_out = cpu;
    return HR_OK;
}

hr_status_t hri_cpu_detect(struct hri_cpu *cpu_out)
{
    return hri_cpu_detect_level(getenv("HEADRACE_CPU"), cpu_out);
}

char *hri_cpu_features(const struct hri_cpu *cpu, char *text, size_t text_bytes)
{
    const struct {
        bool on;
        const char *name;
    } features[] = {
        {cpu->avx2, "avx2"},
        {cpu->fma, "fma"},
        {cpu->f16c, "f16c"},
        {cpu->avx_vnni, "avx_vnni"},
        {cpu->avx512f, "avx512f"},
        {cpu->avx512bw, "avx512bw"},
        {cpu->avx512vl, "avx512vl"},
        {cpu->avx512dq, "avx512dq"},
        {cpu->avx512_vnni, "avx512_vnni"},
        {cpu->avx512_bf16, "avx512_bf16"},
        {cpu->avx512_fp16, "avx512_fp16"},
        {cpu->amx_bf16, "amx_bf16"},
        {cpu->amx_int8, "amx_int8"},
    };
    size_t used = 0;
    if (text_bytes > 0)
        text[0] = '\0';
    for (size_t i = 0; i < sizeof features / sizeof features[0]; i++) {
        if (!features[i].on)
            continue;
        int length = snprintf(text + used, text_bytes - used, "%s%s", used != 0 ? " " : "",
                              features[i].name);
        if (length < 0 || (size_t)length >= text_bytes - used)
            break;
        used += (size_t)length;
    }
    return text;
}
