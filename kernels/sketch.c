/* Sketched rows outside the hot path: the query as bytes, and one row read back. */
#include "kernels/kernels.h"

#include <string.h>

#include "kernels/cpu/ops.h"

/* Added to a small float it leaves the nearest integer in the low bits. */
#define ROUNDER 0x1.8p23f

static inline int32_t bits_of(float x)
{
    int32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* x as step * out, |out| <= 127; returns the step. Sets *sum_out to the sum of out. */
static float quantise(const float *x, uint32_t n, int8_t *out, int32_t *sum_out)
{
    int32_t largest_bits = 0, sum = 0;
    float largest;

    /* Sizes as integers, in the same order: compilers make vectors of that. */
    for (uint32_t i = 0; i < n; i++) {
        const int32_t size = bits_of(x[i]) & INT32_MAX;
        largest_bits = size > largest_bits ? size : largest_bits;
    }
    memcpy(&largest, &largest_bits, sizeof largest);
    if (!(largest >= HRI_STEP_MIN && largest <= HRI_LOGIT_MAX)) {
        memset(out, 0, n);
        *sum_out = 0;
        return 0.0f;
    }
    const float inverse = 127.0f / largest;
    for (uint32_t i = 0; i < n; i++) {
        const int32_t value = bits_of(x[i] * inverse + ROUNDER) - bits_of(ROUNDER);
        out[i] = (int8_t)value;
        sum += value;
    }
    *sum_out = sum;
    return largest / 127.0f;
}

void hri_sketch_query_make(struct hri_sketch_query *q, const float *x, uint32_t g, uint32_t n4,
                           uint32_t n2)
{
    for (uint32_t i = 0; i < g; i++) {
        const float *at = x + (size_t)i * (n4 + n2);
        int32_t sum4, sum2;
        q->scale4[i] = quantise(at, n4, q->q4[i], &sum4);
        q->scale2[i] = quantise(at + n4, n2, q->q2[i], &sum2);
        q->offset[i] = -7.5f * q->scale4[i] * (float)sum4 - 1.5f * q->scale2[i] * (float)sum2;
    }
}

void hri_sketch_unpack(const uint8_t *codes, uint32_t n4, uint32_t n2, uint32_t row, float *out)
{
    const uint8_t *lane =
        codes + row / 16 * hri_sketch_group_bytes(n4, n2) + (size_t)(row % 16) * 4;

    for (uint32_t i = 0; i < n4; i++) {
        int byte = lane[(size_t)(i / 8) * 64 + i % 4];
        out[i] = (float)(byte >> (i / 4 % 2 * 4) & 15) - 7.5f;
    }
    lane += (size_t)(n4 / 8) * 64;
    for (uint32_t i = 0; i < n2; i++) {
        int byte = lane[(size_t)(i / 16) * 64 + i % 4];
        out[n4 + i] = (float)(byte >> (i / 4 % 4 * 2) & 3) - 1.5f;
    }
}
