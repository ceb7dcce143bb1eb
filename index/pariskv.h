/* ParisKV's state, for select_pariskv.c and its test. */
#ifndef HRI_INDEX_PARISKV_H
#define HRI_INDEX_PARISKV_H

#include "index/head.h"

#define HRI_PARIS_DIMS  8u   /* of a sub-space: its signs are one byte */
#define HRI_PARIS_CODES 256u /* sign patterns of a sub-space */

struct hri_pariskv {
    float *turn;         /* [d][d] a random rotation */
    unsigned char *sign; /* [rows_max][d / 8] bit i of byte s: dimension 8s + i is positive */
    unsigned char
        *fine; /* [rows_max][d / 2] sign and 3-bit magnitude, even dimensions in the low half */
    uint16_t *
        weight; /* [rows_max][d / 8] bf16: what makes a sub-space's codes . query an inner product */
    uint32_t *count; /* [d / 8][256] rows of each pattern */
    float *q;        /* [d] the group's mean query of a step, turned */
};

#endif
