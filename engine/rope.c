#include "engine/rope.h"

#include <math.h>
#include <stdlib.h>

#include "engine/fail.h"

#define PI 3.14159265358979323846

/* The pair that turns `turns` times over the original context. */
static double pair_of_turns(double turns, uint32_t n_rot, const struct hre_rope_scale *scale,
                            double base)
{
    return n_rot * log(scale->original_context / (turns * 2.0 * PI)) / (2.0 * log(base));
}

/* Share of pair i that keeps its frequency. */
static double yarn_kept(uint32_t i, uint32_t n_rot, double base, const struct hre_rope_scale *scale)
{
    double low = fmax(0.0, floor(pair_of_turns(scale->beta_fast, n_rot, scale, base)));
    double high = fmin(n_rot - 1.0, ceil(pair_of_turns(scale->beta_slow, n_rot, scale, base)));
    double along = (i - low) / fmax(0.001, high - low);

    return 1.0 - fmin(1.0, fmax(0.0, along));
}

hr_status_t hre_rope_table_init(struct hre_rope_table *table, uint32_t n_rot, double base,
                                const struct hre_rope_scale *scale)
{
    uint32_t n = n_rot / 2;
    double *frequencies = calloc(n ? n : 1, sizeof(*frequencies));
    float *rounded = calloc(n ? n : 1, sizeof(*rounded));

    if (!frequencies || !rounded) {
        free(frequencies);
        free(rounded);
        return hre_fail(HR_ERR_NOMEM, "no memory for RoPE frequencies");
    }
    for (uint32_t i = 0; i < n; i++) {
        double f = pow(base, -2.0 * i / n_rot) / (scale->divisors ? scale->divisors[i] : 1.0);
        double kept = scale->type == HRE_ROPE_SCALING_YARN ? yarn_kept(i, n_rot, base, scale) : 0.0;

        if (scale->type != HRE_ROPE_SCALING_NONE) {
            f = f * kept + f / scale->factor * (1.0 - kept);
        }
        frequencies[i] = f;
        rounded[i] = (float)f;
    }
    double amplitude = 1.0;
    if (scale->type == HRE_ROPE_SCALING_YARN) {
        amplitude = scale->attention_factor * (1.0 + 0.1 * log(scale->factor));
    }
    *table = (struct hre_rope_table){base, frequencies, rounded, amplitude, n};
    return HR_OK;
}

void hre_rope_table_fini(struct hre_rope_table *table)
{
    free(table->frequencies);
    free(table->rounded);
}

void hre_rope_fill(const struct hre_rope_table *table, uint32_t first, uint32_t n, float *cosine,
                   float *sine)
{
    for (uint32_t t = 0; t < n; t++) {
        for (uint32_t i = 0; i < table->n_pairs; i++) {
            /* In double: at position 65,535 a float angle is off by thousandths of a radian. */
            double angle = ((double)first + t) * table->frequencies[i];

            *cosine++ = (float)(cos(angle) * table->amplitude);
            *sine++ = (float)(sin(angle) * table->amplitude);
        }
    }
}
