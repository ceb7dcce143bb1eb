/* What the vector code of both instruction sets shares. Included by simd_avx2.h and simd_avx512.h
 * only. */
#ifndef HRI_SIMD_COMMON_H
#define HRI_SIMD_COMMON_H

#include "base/half.h"
#include "kernels/cpu/ops.h"

#include <immintrin.h>
#include <math.h>
#include <string.h>

/* The kernels are written once over a vector of VN floats; sizes given as compile-time constants
 * let the compiler unroll them. */
#define HRI_INLINE       static inline __attribute__((always_inline))
#define HRI_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define HRI_UNROLL HRI_PRAGMA(clang loop unroll(full))
#elif defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || !defined(__OPTIMIZE__)
#define HRI_UNROLL /* gcc complains where instrumentation or a debug build keeps it from unrolling */
#else
#define HRI_UNROLL HRI_PRAGMA(GCC unroll 32)
#endif

/* What rows are made of. The first three are hr_dtype_t. */
enum element {
    ELEMENT_F32 = HR_DTYPE_F32,
    ELEMENT_F16 = HR_DTYPE_F16,
    ELEMENT_BF16 = HR_DTYPE_BF16,
    ELEMENT_I8 = 3
};

HRI_INLINE size_t element_bytes(enum element element)
{
    return element == ELEMENT_F32 ? 4 : element == ELEMENT_I8 ? 1 : 2;
}

/* e^r for |r| <= ln(2)/2 as 1 + r + r^2 P(r), relative error 1.05e-7 (least squares in the maximum
 * norm). */
#define EXP_C2       0x1.fffdfcp-2f
#define EXP_C3       0x1.5557aep-3f
#define EXP_C4       0x1.572a06p-5f
#define EXP_C5       0x1.106278p-7f
#define EXP_LOG2E    0x1.715476p+0f
#define EXP_LN2_HIGH 0.693359375f /* 9 bits: its product with any exponent is exact */
#define EXP_LN2_LOW  (-2.12194440e-4f)
#define EXP_ROUNDER  0x1.8p23f /* adding and subtracting it rounds to an integer */

#endif
