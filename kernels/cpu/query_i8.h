/* A query as two int8 terms for the products of unsigned and signed bytes: q = step (128 high +
 * low), nearly. The centroids' codes are unsigned, 128 meaning 0, so a product comes out too large
 * by 128 sum(128 high + low). */
#ifndef HRI_QUERY_I8_H
#define HRI_QUERY_I8_H

#include "kernels/cpu/ops.h"

#include <math.h>

struct query_i8 {
    _Alignas(64) int8_t high[HRI_DIM_MAX], low[HRI_DIM_MAX];
    float step;
    int32_t excess; /* 128 sum(128 high + low) */
};

/* high is at most 126 in magnitude; low is in [-64, 63]. */
static inline void query_i8_make(struct query_i8 *out, const float *q, uint32_t dk)
{
    const int most = 128 * 126;
    float largest = 0.0f;
    int32_t sum = 0;

    for (uint32_t j = 0; j < dk; j++)
        largest = fmaxf(largest, fabsf(q[j]));
    out->step = largest < HRI_STEP_MIN ? 0.0f : largest / (float)most;
    const float inverse = out->step > 0.0f ? 1.0f / out->step : 0.0f;
    for (uint32_t j = 0; j < dk; j++) {
        int value = (int)lrintf(q[j] * inverse);
        value = value > most ? most : value < -most ? -most : value;
        int high = (value + 64) >> 7;
        out->high[j] = (int8_t)high;
        out->low[j] = (int8_t)(value - 128 * high);
        sum += value;
    }
    out->excess = 128 * sum;
}

#endif
