/*
 * Dot products of quantised rows with float activations, written once over a small set of vector
 * operations that ops_avx2.c (8 lanes) and ops_avx512.c (16 lanes) define before they include this
 * file.
 * Rows of 32-weight blocks are each level's own (ops_halves.h, ops_vnni.h, included before this file).
 *
 *   VF, VI                      vectors of LANES floats and of LANES 32-bit integers
 *   vf_zero vf_set1 vf_load vf_fma vf_mul vf_sum   the usual; vf_sum adds the lanes
 *   vi_u8(p)                    LANES unsigned bytes to integers
 *   vf_low4(v) vf_high4(v)      bits 0-3 and 4-7 of integers, as floats
 *   vf_q6(l, s, h, t)           ((l >> s) & 15) | ((h >> t) & 3) << 4, as floats; s, t constants
 *   vf_f16(p) vf_bf16(p)        LANES 16-bit floats
 *   scalar_f16(h)               one 16-bit float
 */
#include "engine/gguf.h"
#include "engine/ops.h"
#include "engine/quant.h"

static inline __attribute__((always_inline)) float row_q4_k(const void *row, uint32_t n,
                                                            const struct hre_activations *a)
{
    const struct block_q4_k *b = row;
    const float *x = a->x, *sums = a->sums;
    VF even = vf_zero(), odd = vf_zero();
    float offset = 0.0f;

    for (uint32_t i = 0; i < n / QUANT_SUPER_BLOCK; i++, b++, sums += 8) {
        float d = scalar_f16(b->d), dmin = scalar_f16(b->dmin), scales[8], mins = 0.0f;

        for (unsigned group = 0; group < 8; group++) {
            uint8_t scale, min;

            q4_k_scale(b->scales, group, &scale, &min);
            scales[group] = d * (float)scale;
            mins += (float)min * sums[group];
        }
        offset += dmin * mins;
        for (unsigned pair = 0; pair < 4; pair++, x += 64) {
            VF low = vf_zero(), high = vf_zero();

            for (int j = 0; j < 32; j += LANES) {
                VI v = vi_u8(b->q + 32 * pair + j);

                low = vf_fma(vf_low4(v), vf_load(x + j), low);
                high = vf_fma(vf_high4(v), vf_load(x + 32 + j), high);
            }
            even = vf_fma(vf_set1(scales[2 * pair]), low, even);
            odd = vf_fma(vf_set1(scales[2 * pair + 1]), high, odd);
        }
    }
    return vf_sum(vf_add(even, odd)) - offset;
}

/* Four runs of 32 weights share their bytes; each run has two groups of 16 with own scales. */
static inline __attribute__((always_inline)) float row_q6_k(const void *row, uint32_t n,
                                                            const struct hre_activations *a)
{
    const struct block_q6_k *b = row;
    const float *x = a->x;
    VF sum = vf_zero(), offset = vf_set1(-32.0f);

    for (uint32_t i = 0; i < n / QUANT_SUPER_BLOCK; i++, b++) {
        float d = scalar_f16(b->d);

        for (unsigned h = 0; h < 2; h++, x += 128) {
            const int8_t *scales = b->scales + 8 * h;

            for (unsigned j = 0; j < 32; j += LANES) {
                VI l0 = vi_u8(b->ql + 64 * h + j), l1 = vi_u8(b->ql + 64 * h + 32 + j);
                VI top = vi_u8(b->qh + 32 * h + j);
                const int8_t *s = scales + j / 16;

                sum = vf_fma(vf_mul(vf_add(vf_q6(l0, 0, top, 0), offset), vf_set1(d * (float)s[0])),
                             vf_load(x + j), sum);
                sum = vf_fma(vf_mul(vf_add(vf_q6(l1, 0, top, 2), offset), vf_set1(d * (float)s[2])),
                             vf_load(x + 32 + j), sum);
                sum = vf_fma(vf_mul(vf_add(vf_q6(l0, 4, top, 4), offset), vf_set1(d * (float)s[4])),
                             vf_load(x + 64 + j), sum);
                sum = vf_fma(vf_mul(vf_add(vf_q6(l1, 4, top, 6), offset), vf_set1(d * (float)s[6])),
                             vf_load(x + 96 + j), sum);
            }
        }
    }
    return vf_sum(sum);
}

#define ROW_PLAIN(type, element, load)                                                             \
    static inline __attribute__((always_inline)) float row_##type(const void *row, uint32_t n,     \
                                                                  const struct hre_activations *a) \
    {                                                                                              \
        const element *w = row;                                                                    \
        VF sum0 = vf_zero(), sum1 = vf_zero();                                                     \
        uint32_t i = 0;                                                                            \
                                                                                                   \
        for (; i + 2 * LANES <= n; i += 2 * LANES) {                                               \
            sum0 = vf_fma(load(w + i), vf_load(a->x + i), sum0);                                   \
            sum1 = vf_fma(load(w + i + LANES), vf_load(a->x + i + LANES), sum1);                   \
        }                                                                                          \
        float rest = 0.0f;                                                                         \
        for (; i < n; i++) {                                                                       \
            rest += scalar_##type(w[i]) * a->x[i];                                                 \
        }                                                                                          \
        return vf_sum(sum0) + vf_sum(sum1) + rest;                                                 \
    }

#define scalar_f32(w)  (w)
#define scalar_bf16(w) float_of_bf16(w)
ROW_PLAIN(f32, float, vf_load)
ROW_PLAIN(f16, uint16_t, vf_f16)
ROW_PLAIN(bf16, uint16_t, vf_bf16)

/* The hardware's own prefetching stops at every 4 KiB page. Addresses behind the end are harmless. */
#define PREFETCH_BYTES 4096

#define DOT(type)                                                                                  \
    static void dot_##type(const void *rows, size_t row_bytes, uint32_t n_rows, uint32_t n,        \
                           const struct hre_activations *activations, float *y)                    \
    {                                                                                              \
        const unsigned char *row = rows;                                                           \
                                                                                                   \
        for (uint32_t r = 0; r < n_rows; r++, row += row_bytes) {                                  \
            for (size_t ahead = 0; ahead < row_bytes; ahead += 64) {                               \
                __builtin_prefetch(row + PREFETCH_BYTES + ahead);                                  \
            }                                                                                      \
            y[r] = row_##type(row, n, activations);                                                \
        }                                                                                          \
    }

DOT(f32)
DOT(f16)
DOT(bf16)
/* ops_halves.h has rows, ops_vnni.h dot products. */
#ifndef DOT_ROWS
DOT(q4_0)
DOT(q4_1)
DOT(q8_0)
#endif
DOT(q4_k)
DOT(q6_k)

#define DOT_TABLE                                                                                  \
    {                                                                                              \
        [HRE_WEIGHT_F32] = dot_f32, [HRE_WEIGHT_F16] = dot_f16, [HRE_WEIGHT_BF16] = dot_bf16,      \
        [HRE_WEIGHT_Q4_0] = dot_q4_0, [HRE_WEIGHT_Q4_1] = dot_q4_1, [HRE_WEIGHT_Q8_0] = dot_q8_0,  \
        [HRE_WEIGHT_Q4_K] = dot_q4_k, [HRE_WEIGHT_Q6_K] = dot_q6_k,                                \
    }
