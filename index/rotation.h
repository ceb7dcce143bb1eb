/* Rotary embedding of keys whose positions follow each other: to turn them back to position 0 and forward again. */
#ifndef HRI_INDEX_ROTATION_H
#define HRI_INDEX_ROTATION_H

#include "index/index.h"

struct hri_rotation {
    uint32_t n_pairs;         /* 0: nothing turns */
    double *theta;            /* [n_pairs] radians per position */
    double *cos1, *sin1;      /* [n_pairs] of one position */
    uint16_t *first, *second; /* [n_pairs] dimensions of a pair */
};
/* Copies what it needs of rope. */
hr_status_t hri_rotation_create(struct hri_rotation *rotation, struct hri_alloc *alloc,
                                const struct hr_rope *rope);
void hri_rotation_destroy(struct hri_rotation *rotation, struct hri_alloc *alloc);
/* Row i of x (n rows, stride floats apart) turns by sign * (position + i). */
void hri_rotation_apply(const struct hri_rotation *rotation, float *x, uint32_t n, size_t stride,
                        uint32_t position, int sign);

#endif
