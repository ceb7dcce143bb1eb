/* Plain C: sketched rows, and int8 rows from anywhere. */
#include "kernels/cpu/ops.h"

#include <math.h>
#include <string.h>

void hri_ref_score_sketch(const struct hri_sketch_query *q, uint32_t g, struct hri_sketch_rows s,
                          const uint32_t *groups, uint32_t n_groups, uint32_t n_listed, float *out,
                          size_t out_stride)
{
    float centred[HRI_DIM_MAX];

    (void)n_listed;
    for (uint32_t j = 0; j < n_groups * 16; j++) {
        const uint32_t row = groups[j / 16] * 16 + j % 16;
        hri_sketch_unpack(s.codes, s.n4, s.n2, row, centred);
        for (uint32_t gh = 0; gh < g; gh++) {
            double sum4 = 0.0, sum2 = 0.0;
            for (uint32_t i = 0; i < s.n4; i++)
                sum4 += (double)q->q4[gh][i] * (double)(centred[i] + 7.5f);
            for (uint32_t i = 0; i < s.n2; i++)
                sum2 += (double)q->q2[gh][i] * (double)(centred[s.n4 + i] + 1.5f);
            out[gh * out_stride + j] =
                (float)((double)q->scale4[gh] * sum4 + (double)q->scale2[gh] * sum2 +
                        (double)q->offset[gh]);
        }
    }
}

static void sum_head(struct hri_sketch_rows s, const uint32_t *groups, uint32_t n_groups,
                     const float *w, float *acc)
{
    const uint32_t n = s.n4 + s.n2;
    double sum[HRI_DIM_MAX];
    float centred[HRI_DIM_MAX];

    for (uint32_t i = 0; i < n; i++)
        sum[i] = (double)acc[i];
    for (uint32_t j = 0; j < n_groups * 16; j++) {
        const uint32_t row = groups[j / 16] * 16 + j % 16;
        if (w[row] == 0.0f)
            continue;
        hri_sketch_unpack(s.codes, s.n4, s.n2, row, centred);
        for (uint32_t i = 0; i < n; i++)
            sum[i] += (double)w[row] * (double)centred[i];
    }
    for (uint32_t i = 0; i < n; i++)
        acc[i] = (float)sum[i];
}

void hri_ref_sum_sketch(struct hri_sketch_rows s, uint32_t g, const uint32_t *groups,
                        uint32_t n_groups, const float *w, size_t w_stride, float *acc)
{
    for (uint32_t gh = 0; gh < g; gh++)
        sum_head(s, groups, n_groups, w + gh * w_stride, acc + (size_t)gh * (s.n4 + s.n2));
}

/* One rounding before the last, like the vector levels, so that codes are equal. */
static uint8_t code_of(float z, float inv_step, float middle, float most)
{
    float x = fmaf(z, inv_step, middle);

    x = x > 0.0f ? x : 0.0f; /* a NaN becomes 0 */
    return (uint8_t)lrintf(x < most ? x : most);
}

void hri_ref_pack_sketch(const float *z, size_t z_stride, uint32_t n, const float *inv_step,
                         uint32_t n4, uint32_t n2, uint8_t *codes, uint32_t first_row)
{
    const size_t lines4 = n4 / 8;

    for (uint32_t j = 0; j < n; j++, z += z_stride) {
        const uint32_t row = first_row + j;
        uint8_t *lane = codes + row / 16 * hri_sketch_group_bytes(n4, n2) + (size_t)(row % 16) * 4;
        for (size_t l = 0; l < lines4 + n2 / 16; l++)
            memset(lane + l * 64, 0, 4);
        for (uint32_t i = 0; i < n4; i++)
            lane[(size_t)(i / 8) * 64 + i % 4] |=
                (uint8_t)(code_of(z[i], inv_step[i], 7.5f, 15.0f) << (i / 4 % 2 * 4));
        for (uint32_t i = 0; i < n2; i++)
            lane[(lines4 + i / 16) * 64 + i % 4] |=
                (uint8_t)(code_of(z[n4 + i], inv_step[n4 + i], 1.5f, 3.0f) << (i / 4 % 4 * 2));
    }
}

void hri_ref_score_gather_i8(const float *q, uint32_t g, uint32_t dk, const int8_t *const *codes,
                             const float *k_step, uint32_t n, float *out, size_t out_stride)
{
    for (uint32_t gh = 0; gh < g; gh++) {
        for (uint32_t i = 0; i < n; i++) {
            double sum = 0.0;
            for (uint32_t j = 0; j < dk; j++)
                sum += (double)q[(size_t)gh * dk + j] * codes[i][j];
            out[gh * out_stride + i] = (float)(sum * (double)k_step[i]);
        }
    }
}

void hri_ref_sum_gather_i8(const float *w, size_t w_stride, uint32_t g, uint32_t dk, uint32_t dv,
                           const int8_t *const *codes, const float *v_step, uint32_t n, float *o)
{
    for (uint32_t gh = 0; gh < g; gh++) {
        double sum[HRI_DIM_MAX];
        for (uint32_t j = 0; j < dv; j++)
            sum[j] = (double)o[(size_t)gh * dv + j];
        for (uint32_t i = 0; i < n; i++) {
            const double weight = (double)w[gh * w_stride + i] * (double)v_step[i];
            for (uint32_t j = 0; j < dv; j++)
                sum[j] += weight * codes[i][dk + j];
        }
        for (uint32_t j = 0; j < dv; j++)
            o[(size_t)gh * dv + j] = (float)sum[j];
    }
}
