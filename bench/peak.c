#include "bench/peak.h"

#include "bench/measure.h"

#define BLOCKS      400000u /* some milliseconds */
#define CHAINS      12u     /* more than the instruction takes cycles, twice */
#define TRIES       5
#define EACH_VECTOR 64u
#define EACH_HALF   32u

#if defined(__x86_64__)
#define TWELVE(op)                                                                                 \
    op("0") op("1") op("2") op("3") op("4") op("5") op("6") op("7") op("8") op("9") op("10")       \
        op("11")
#define DOT(n)  "vpdpbusd %%zmm14, %%zmm15, %%zmm" n "\n\t"
#define PAIR(n) "vpmaddubsw %%ymm14, %%ymm15, %%ymm" n "\n\t"
#define USED                                                                                       \
    "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11"

static void dot_blocks(void *context, unsigned task, unsigned worker)
{
    (void)context, (void)task, (void)worker;
    for (unsigned i = 0; i < BLOCKS; i++)
        __asm__ volatile(TWELVE(DOT)::: USED);
}

static void pair_blocks(void *context, unsigned task, unsigned worker)
{
    (void)context, (void)task, (void)worker;
    for (unsigned i = 0; i < BLOCKS; i++)
        __asm__ volatile(TWELVE(PAIR)::: USED);
}

double hrb_peak_products(struct hri_pool *pool, enum hri_kernel_level level)
{
    bool dots = level == HRI_KERNEL_AVX512;
    unsigned n = hri_pool_size(pool);
    double least = 0;
    if (!dots && level != HRI_KERNEL_AVX2)
        return 0;
    for (int i = 0; i < TRIES; i++) {
        double s = hrb_pool_seconds(pool, dots ? dot_blocks : pair_blocks, NULL, n);
        least = i == 0 || s < least ? s : least;
    }
    return (double)n * BLOCKS * CHAINS * (dots ? EACH_VECTOR : EACH_HALF) / least;
}
#else
double hrb_peak_products(struct hri_pool *pool, enum hri_kernel_level level)
{
    (void)pool, (void)level;
    return 0;
}
#endif
