/* Plain C: conversion, quantisation and the elementwise helpers. */
#include "base/half.h"
#include "kernels/cpu/ops.h"

#include <math.h>
#include <string.h>

void hri_ref_to_f32(float *dst, const void *src, hr_dtype_t dtype, size_t n)
{
    const uint16_t *half = src;

    if (dtype == HR_DTYPE_F32) {
        if (n)
            memcpy(dst, src, n * sizeof *dst);
        return;
    }
    for (size_t i = 0; i < n; i++)
        dst[i] = dtype == HR_DTYPE_F16 ? hri_f32_from_f16(half[i]) : hri_f32_from_bf16(half[i]);
}

void hri_ref_from_f32(void *dst, const float *src, hr_dtype_t dtype, size_t n)
{
    uint16_t *half = dst;

    if (dtype == HR_DTYPE_F32) {
        if (n)
            memcpy(dst, src, n * sizeof *src);
        return;
    }
    for (size_t i = 0; i < n; i++)
        half[i] = dtype == HR_DTYPE_F16 ? hri_f16_from_f32(src[i]) : hri_bf16_from_f32(src[i]);
}

size_t hri_ref_find_nonfinite(const void *src, hr_dtype_t dtype, size_t n)
{
    const uint32_t *word = src;
    const uint16_t *half = src;
    const uint16_t exponent = dtype == HR_DTYPE_F16 ? 0x7c00u : 0x7f80u;

    for (size_t i = 0; i < n; i++) {
        if (dtype == HR_DTYPE_F32 ? (word[i] & 0x7f800000u) == 0x7f800000u
                                  : (half[i] & exponent) == exponent)
            return i;
    }
    return n;
}

float hri_ref_quantise_i8(const float *x, size_t x_stride, uint32_t n, uint32_t d,
                          const float *center, int8_t *codes, size_t code_stride)
{
    float largest = 0.0f;

    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t j = 0; j < d; j++)
            largest = fmaxf(largest, fabsf(x[i * x_stride + j] - center[j]));
    }
    const float step = largest < HRI_STEP_MIN ? 0.0f : largest / 127.0f;
    const float inverse = step > 0.0f ? 1.0f / step : 0.0f;
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t j = 0; j < d; j++) {
            float code = rintf((x[i * x_stride + j] - center[j]) * inverse);
            codes[i * code_stride + j] = (int8_t)fminf(fmaxf(code, -127.0f), 127.0f);
        }
    }
    return step;
}

void hri_ref_min_max(const float *x, uint32_t n, uint32_t d, float *min, float *max)
{
    for (uint32_t j = 0; j < d; j++) {
        min[j] = INFINITY;
        max[j] = -INFINITY;
    }
    for (size_t i = 0; i < n; i++) {
        for (uint32_t j = 0; j < d; j++) {
            min[j] = fminf(min[j], x[i * d + j]);
            max[j] = fmaxf(max[j], x[i * d + j]);
        }
    }
}

float hri_ref_exp_sum(const float *x, float shift, float *y, uint32_t n)
{
    double sum = 0.0;

    for (uint32_t i = 0; i < n; i++) {
        double e = exp((double)x[i] - (double)shift);
        y[i] = (float)e;
        sum += e;
    }
    return (float)sum;
}

float hri_ref_max(const float *x, uint32_t n)
{
    float largest = -INFINITY;

    for (uint32_t i = 0; i < n; i++)
        largest = fmaxf(largest, x[i]);
    return largest;
}

void hri_ref_weigh_rows(const float *x, size_t x_stride, const float *shift, uint32_t g, uint32_t n,
                        float *y, size_t y_stride, float *sum, float *square, float *most)
{
    for (uint32_t gh = 0; gh < g; gh++, x += x_stride, y += y_stride) {
        double total = 0.0, squares = 0.0;
        most[gh] = hri_ref_max(x, n);
        for (uint32_t i = 0; i < n; i++) {
            double e = exp((double)x[i] - (double)shift[gh]);
            y[i] = (float)e;
            total += e;
            squares += e * e;
        }
        sum[gh] = (float)total;
        square[gh] = (float)squares;
    }
}
