/* Rotary position embedding: frequencies after any scaling, and tables of cosines and sines for
 * runs of positions. */
#ifndef HRE_ROPE_H
#define HRE_ROPE_H

#include <stdint.h>

#include <headrace/headrace.h>

#include "engine/gguf.h"

typedef enum hre_rope_scaling {
    HRE_ROPE_SCALING_NONE,
    HRE_ROPE_SCALING_LINEAR, /* positions divided by factor */
    HRE_ROPE_SCALING_YARN    /* low frequencies divided by factor, high ones not, a ramp between */
} hre_rope_scaling_t;

struct hre_rope_scale {
    hre_rope_scaling_t type;
    double factor;           /* how much longer the text may be; > 0 */
    double original_context; /* yarn */
    double attention_factor; /* yarn: on top of 1 + 0.1 ln(factor) */
    double beta_fast, beta_slow;
    const float *divisors; /* [n_rot/2] each frequency's own divisor (llama3), or NULL */
};

struct hre_rope_table {
    double base;
    double *frequencies; /* [n_rot/2] radians per position */
    float *rounded;      /* the same as floats, for the library */
    double amplitude;    /* of cosines and sines */
    uint32_t n_pairs;
};

hr_status_t hre_rope_table_init(struct hre_rope_table *table, uint32_t n_rot, double base,
                                const struct hre_rope_scale *scale);
void hre_rope_table_fini(struct hre_rope_table *table);

/* cosine, sine: [n][n_pairs] for positions first .. first + n - 1 */
void hre_rope_fill(const struct hre_rope_table *table, uint32_t first, uint32_t n, float *cosine,
                   float *sine);

#endif
