/* Plain C: scoring and summing the summaries of blocks. */
#include "base/half.h"
#include "kernels/cpu/ops.h"

#include <math.h>

static double centroid_dot(const float *q, uint32_t dk, const uint8_t *codes, uint32_t block)
{
    /* One line of 64 bytes: 4 dimensions of 16 blocks. */
    const uint8_t *lane = codes + (size_t)(block / 16) * dk * 16 + (block % 16) * 4;
    double sum = 0.0;

    for (uint32_t j = 0; j < dk; j++)
        sum += (double)q[j] * ((int)lane[(size_t)(j / 4) * 64 + j % 4] - 128);
    return sum;
}

void hri_ref_score_centroids(const float *q, uint32_t g, uint32_t dk, struct hri_centroids c,
                             float *out, size_t out_stride)
{
    const uint32_t n = (c.n + 15u) & ~15u;

    for (uint32_t i = 0; i < g; i++) {
        for (uint32_t b = 0; b < n; b++) {
            double dot = centroid_dot(q + (size_t)i * dk, dk, c.codes, b);
            out[i * out_stride + b] = (float)(dot * (double)c.step[b]);
        }
    }
}

void hri_ref_weighted_sum_i8(const float *w, size_t w_stride, uint32_t g, uint32_t n, uint32_t dv,
                             const int8_t *codes, const float *step, float *o)
{
    double sum[HRI_DIM_MAX];

    for (uint32_t i = 0; i < g; i++) {
        for (uint32_t j = 0; j < dv; j++)
            sum[j] = (double)o[(size_t)i * dv + j];
        for (size_t b = 0; b < n; b++) {
            double weight = (double)w[i * w_stride + b];
            if (weight == 0.0)
                continue;
            weight *= (double)step[b];
            for (uint32_t j = 0; j < dv; j++)
                sum[j] += weight * codes[b * dv + j];
        }
        for (uint32_t j = 0; j < dv; j++)
            o[(size_t)i * dv + j] = (float)sum[j];
    }
}

void hri_ref_score_bounds(const float *q, uint32_t g, uint32_t d, const uint16_t *min,
                          const uint16_t *max, uint32_t n, float *out, size_t out_stride)
{
    for (uint32_t i = 0; i < g; i++) {
        for (size_t b = 0; b < n; b++) {
            double sum = 0.0;
            for (uint32_t j = 0; j < d; j++) {
                double x = (double)q[(size_t)i * d + j];
                double low = x * (double)hri_f32_from_f16(min[b * d + j]);
                double high = x * (double)hri_f32_from_f16(max[b * d + j]);
                sum += fmax(low, high);
            }
            out[i * out_stride + b] = (float)sum;
        }
    }
}
