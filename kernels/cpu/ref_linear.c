/* Plain C: the linear algebra of the index. */
#include "kernels/cpu/ops.h"

#include <math.h>

static double squared_distance(const float *x, const float *c, uint32_t d)
{
    double sum = 0.0;

    for (uint32_t j = 0; j < d; j++) {
        double difference = (double)x[j] - (double)c[j];
        sum += difference * difference;
    }
    return sum;
}

void hri_ref_nearest(const float *x, uint32_t n, const float *c, uint32_t k, uint32_t d,
                     uint32_t *nearest_out, float *distance_out)
{
    for (size_t i = 0; i < n; i++) {
        double best = INFINITY;
        uint32_t best_index = 0;

        for (uint32_t j = 0; j < k; j++) {
            double distance = squared_distance(x + i * d, c + (size_t)j * d, d);
            if (distance < best) {
                best = distance;
                best_index = j;
            }
        }
        nearest_out[i] = best_index;
        if (distance_out)
            distance_out[i] = (float)best;
    }
}

void hri_ref_matmul_nt(const float *x, uint32_t n, uint32_t d_in, const float *w, uint32_t d_out,
                       float *y)
{
    for (size_t i = 0; i < n; i++) {
        for (size_t j = 0; j < d_out; j++) {
            double sum = 0.0;
            for (uint32_t l = 0; l < d_in; l++)
                sum += (double)x[i * d_in + l] * (double)w[j * d_in + l];
            y[i * d_out + j] = (float)sum;
        }
    }
}

void hri_ref_second_moment(const float *x, uint32_t n, uint32_t d, float *s)
{
    for (size_t a = 0; a < d; a++) {
        for (size_t b = a; b < d; b++) {
            double sum = (double)s[a * d + b];
            for (size_t i = 0; i < n; i++)
                sum += (double)x[i * d + a] * (double)x[i * d + b];
            s[a * d + b] = (float)sum;
            s[b * d + a] = (float)sum;
        }
    }
}
