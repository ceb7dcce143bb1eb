/* What the processor can multiply: the roof over kernels that do more with a byte than memory gives time for. */
#ifndef BENCH_PEAK_H
#define BENCH_PEAK_H

#include "kernels/kernels.h"

/* Products of two bytes that are added up, a second, by all threads of the pool at once: independent chains of the widest instruction that
 * kernels of this level have for it (vpdpbusd of 64 bytes, vpmaddubsw of 32), from registers. 0: not known for this level. */
struct hri_pool;
double hrb_peak_products(struct hri_pool *pool, enum hri_kernel_level level);

#endif
