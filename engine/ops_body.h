/*
 * The operations that compilers vectorise well, included once by each ops_<level>.c, which is
 * compiled for its level. The including file defines BODY_LANES, the number of partial sums that
 * keeps its vectors busy.
 */
#include <math.h>

#include "engine/ops.h"
#include "engine/quant.h"

/* --------------------------------------------------------------------------------- dequantise */

static void dequantise_f32(const void *weights, uint32_t n, float *y)
{
    memcpy(y, weights, (size_t)n * sizeof(float));
}

static void dequantise_f16(const void *weights, uint32_t n, float *y)
{
    const uint16_t *w = weights;

    for (uint32_t i = 0; i < n; i++) {
        y[i] = float_of_f16(w[i]);
    }
}

static void dequantise_bf16(const void *weights, uint32_t n, float *y)
{
    const uint16_t *w = weights;

    for (uint32_t i = 0; i < n; i++) {
        y[i] = float_of_bf16(w[i]);
    }
}

static void dequantise_q4_0(const void *weights, uint32_t n, float *y)
{
    const struct block_q4_0 *b = weights;

    for (uint32_t i = 0; i < n; i += QUANT_BLOCK, b++, y += QUANT_BLOCK) {
        float d = float_of_f16(b->d);

        for (int j = 0; j < 16; j++) {
            y[j] = d * (float)((int)(b->q[j] & 15) - 8);
            y[j + 16] = d * (float)((int)(b->q[j] >> 4) - 8);
        }
    }
}

static void dequantise_q4_1(const void *weights, uint32_t n, float *y)
{
    const struct block_q4_1 *b = weights;

    for (uint32_t i = 0; i < n; i += QUANT_BLOCK, b++, y += QUANT_BLOCK) {
        float d = float_of_f16(b->d), m = float_of_f16(b->m);

        for (int j = 0; j < 16; j++) {
            y[j] = d * (float)(int)(b->q[j] & 15) + m;
            y[j + 16] = d * (float)(int)(b->q[j] >> 4) + m;
        }
    }
}

static void dequantise_q8_0(const void *weights, uint32_t n, float *y)
{
    const struct block_q8_0 *b = weights;

    for (uint32_t i = 0; i < n; i += QUANT_BLOCK, b++, y += QUANT_BLOCK) {
        float d = float_of_f16(b->d);

        for (int j = 0; j < QUANT_BLOCK; j++) {
            y[j] = d * (float)b->q[j];
        }
    }
}

static void dequantise_q4_k(const void *weights, uint32_t n, float *y)
{
    const struct block_q4_k *b = weights;

    for (uint32_t i = 0; i < n; i += QUANT_SUPER_BLOCK, b++) {
        float d = float_of_f16(b->d), dmin = float_of_f16(b->dmin);

        for (unsigned group = 0; group < 8; group++, y += 32) {
            const uint8_t *q = b->q + 32 * (group / 2);
            unsigned shift = 4 * (group % 2);
            uint8_t scale, min;

            q4_k_scale(b->scales, group, &scale, &min);
            float ds = d * (float)scale, m = dmin * (float)min;
            for (int j = 0; j < 32; j++) {
                y[j] = ds * (float)((q[j] >> shift) & 15) - m;
            }
        }
    }
}

static void dequantise_q6_k(const void *weights, uint32_t n, float *y)
{
    const struct block_q6_k *b = weights;

    for (uint32_t i = 0; i < n; i += QUANT_SUPER_BLOCK, b++) {
        float d = float_of_f16(b->d);

        for (unsigned group = 0; group < 16; group++, y += 16) {
            /* Half h of 128 weights has four runs of 32: low nibbles of 64 bytes, then their high
             * nibbles. */
            unsigned h = group / 8, run = group % 8 / 2, half = group % 2 * 16;
            const uint8_t *ql = b->ql + 64 * h + 32 * (run % 2) + half;
            const uint8_t *qh = b->qh + 32 * h + half;
            unsigned low_shift = 4 * (run / 2), high_shift = 2 * run;
            float ds = d * (float)b->scales[group];

            for (int j = 0; j < 16; j++) {
                int q = ((ql[j] >> low_shift) & 15) | (((qh[j] >> high_shift) & 3) << 4);

                y[j] = ds * (float)(q - 32);
            }
        }
    }
}

/* ------------------------------------------------------------------------------- element-wise */

static float sum_lanes(const float *lanes)
{
    float sum = 0.0f;

    for (int l = 0; l < BODY_LANES; l++) {
        sum += lanes[l];
    }
    return sum;
}

static float sum_of(const float *x, uint32_t n)
{
    float lanes[BODY_LANES] = {0};
    uint32_t i = 0;

    for (; i + BODY_LANES <= n; i += BODY_LANES) {
        for (int l = 0; l < BODY_LANES; l++) {
            lanes[l] += x[i + l];
        }
    }
    for (; i < n; i++) {
        lanes[0] += x[i];
    }
    return sum_lanes(lanes);
}

/* Sum of (x - mean)^2. */
static float sum_of_squares(const float *x, float mean, uint32_t n)
{
    float lanes[BODY_LANES] = {0};
    uint32_t i = 0;

    for (; i + BODY_LANES <= n; i += BODY_LANES) {
        for (int l = 0; l < BODY_LANES; l++) {
            lanes[l] += (x[i + l] - mean) * (x[i + l] - mean);
        }
    }
    for (; i < n; i++) {
        lanes[0] += (x[i] - mean) * (x[i] - mean);
    }
    return sum_lanes(lanes);
}

static void sum_groups(const float *x, uint32_t n, float *sums)
{
    for (uint32_t i = 0; i < n / HRE_SUM_GROUP; i++) {
        sums[i] = sum_of(x + (size_t)i * HRE_SUM_GROUP, HRE_SUM_GROUP);
    }
}

static void rms_norm(const float *x, const float *w, float eps, uint32_t n, float *y)
{
    float scale = 1.0f / sqrtf(sum_of_squares(x, 0.0f, n) / (float)n + eps);

    for (uint32_t i = 0; i < n; i++) {
        y[i] = x[i] * scale * w[i];
    }
}

static void layer_norm(const float *x, const float *w, const float *b, float eps, uint32_t n,
                       float *y)
{
    float mean = sum_of(x, n) / (float)n;
    float scale = 1.0f / sqrtf(sum_of_squares(x, mean, n) / (float)n + eps);

    for (uint32_t i = 0; i < n; i++) {
        y[i] = (x[i] - mean) * scale * w[i] + b[i];
    }
}

/* e^x to 2e-7 of it, between 2^-126 and 2^126; without branches. */
static inline float exp_clamped(float x)
{
    x = x > 87.0f ? 87.0f : x;
    x = x < -87.0f ? -87.0f : x;
    /* Adding 1.5 * 2^23 rounds to the nearest integer, which then lies in the low bits. */
    float shifted = x * 1.44269504f + 12582912.0f;
    float n = shifted - 12582912.0f;
    float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;

    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * float_of_bits((bits_of_float(shifted) << 23) + 0x3f800000u);
}

static void swiglu(float *gate, const float *up, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        gate[i] = gate[i] / (1.0f + exp_clamped(-gate[i])) * up[i];
    }
}

static void gelu(float *x, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        /* 0.5 (1 + tanh u) = 1 / (1 + e^(-2u)) */
        float u = 0.79788456f * (x[i] + 0.044715f * x[i] * x[i] * x[i]);

        x[i] = x[i] / (1.0f + exp_clamped(-2.0f * u));
    }
}

static void add(float *y, const float *x, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        y[i] += x[i];
    }
}

static void rope_half(float *restrict low, float *restrict high, uint32_t n, const float *cosine,
                      const float *sine)
{
    for (uint32_t i = 0; i < n; i++) {
        float a = low[i], b = high[i];

        low[i] = a * cosine[i] - b * sine[i];
        high[i] = b * cosine[i] + a * sine[i];
    }
}

static void rope_interleaved(float *x, uint32_t n, const float *cosine, const float *sine)
{
    for (uint32_t i = 0; i < n; i++) {
        float a = x[2 * i], b = x[2 * i + 1];

        x[2 * i] = a * cosine[i] - b * sine[i];
        x[2 * i + 1] = b * cosine[i] + a * sine[i];
    }
}

static void rope(float *x, uint32_t n_heads, uint32_t dim, uint32_t n_rot, hr_rope_layout_t layout,
                 const float *cosine, const float *sine)
{
    for (uint32_t h = 0; h < n_heads; h++, x += dim) {
        if (layout == HR_ROPE_HALF) {
            rope_half(x, x + n_rot / 2, n_rot / 2, cosine, sine);
        } else if (layout == HR_ROPE_INTERLEAVED) {
            rope_interleaved(x, n_rot / 2, cosine, sine);
        }
    }
}

/* A level whose dot products read activations as integers says how they are made. */
#ifndef BODY_HALVE
#define BODY_HALVE NULL
#endif
#ifndef BODY_DIGITS
#define BODY_DIGITS NULL
#endif
/* A level that reads repacked groups of rows says how. */
#ifndef BODY_DOT_GROUPS
#define BODY_DOT_GROUPS                                                                            \
    {                                                                                              \
        NULL                                                                                       \
    }
#endif
#ifndef BODY_TILE_GROUPS
#define BODY_TILE_GROUPS                                                                           \
    {                                                                                              \
        NULL                                                                                       \
    }
#endif

#define BODY_TABLE(level, dot_table)                                                               \
    const struct hre_ops hre_ops_##level = {                                                       \
        .name = #level,                                                                            \
        .dot = dot_table,                                                                          \
        .dot_groups = BODY_DOT_GROUPS,                                                             \
        .tile_groups = BODY_TILE_GROUPS,                                                           \
        .dequantise = {[HRE_WEIGHT_F32] = dequantise_f32,                                          \
                       [HRE_WEIGHT_F16] = dequantise_f16,                                          \
                       [HRE_WEIGHT_BF16] = dequantise_bf16,                                        \
                       [HRE_WEIGHT_Q4_0] = dequantise_q4_0,                                        \
                       [HRE_WEIGHT_Q4_1] = dequantise_q4_1,                                        \
                       [HRE_WEIGHT_Q8_0] = dequantise_q8_0,                                        \
                       [HRE_WEIGHT_Q4_K] = dequantise_q4_k,                                        \
                       [HRE_WEIGHT_Q6_K] = dequantise_q6_k},                                       \
        .sum_groups = sum_groups,                                                                  \
        .halve = BODY_HALVE,                                                                       \
        .digits = BODY_DIGITS,                                                                     \
        .rms_norm = rms_norm,                                                                      \
        .layer_norm = layer_norm,                                                                  \
        .swiglu = swiglu,                                                                          \
        .gelu = gelu,                                                                              \
        .add = add,                                                                                \
        .rope = rope,                                                                              \
        .tile_rows = TILE_ROWS,                                                                    \
        .pack = pack,                                                                              \
        .multiply = multiply,                                                                      \
    }
