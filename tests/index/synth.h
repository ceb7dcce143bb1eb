/* Synthetic rows with structure: keys and values around shared centres, queries that prefer some of
 * them. */
#ifndef TESTS_INDEX_SYNTH_H
#define TESTS_INDEX_SYNTH_H

#include "base/rng.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static inline float *synth_array(size_t n)
{
    float *x = malloc((n + 1) * sizeof *x);
    if (!x)
        abort();
    return x;
}

static inline float *synth_normal(struct hri_rng *rng, size_t n, double size)
{
    float *x = synth_array(n);
    for (size_t i = 0; i < n; i++)
        x[i] = (float)(size * hri_rng_normal(rng));
    return x;
}

struct synth {
    uint32_t n, g, k_dim, v_dim;
    float *k, *v;   /* [n][dim] */
    float *centers; /* [n_centers][k_dim] */
    uint32_t n_centers;
};

/* Keys: a centre plus noise plus a constant that softmax does not notice; values: a centre of their
 * own plus noise. */
static inline struct synth synth_make(struct hri_rng *rng, uint32_t n, uint32_t k_dim,
                                      uint32_t v_dim)
{
    struct synth s = {.n = n, .k_dim = k_dim, .v_dim = v_dim, .n_centers = n / 40 + 2};
    s.k = synth_array((size_t)n * k_dim);
    s.v = synth_array((size_t)n * v_dim);
    s.centers = synth_normal(rng, (size_t)s.n_centers * k_dim, 1.0);
    float *v_centers = synth_normal(rng, (size_t)s.n_centers * v_dim, 1.0);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t c = (uint32_t)hri_rng_below(rng, s.n_centers);
        for (uint32_t j = 0; j < k_dim; j++)
            s.k[(size_t)i * k_dim + j] = s.centers[(size_t)c * k_dim + j] +
                                         (float)(0.35 * hri_rng_normal(rng)) + (j == 3 ? 6 : 0);
        for (uint32_t j = 0; j < v_dim; j++)
            s.v[(size_t)i * v_dim + j] =
                v_centers[(size_t)c * v_dim + j] + (float)(0.3 * hri_rng_normal(rng));
    }
    free(v_centers);
    return s;
}

static inline void synth_free(struct synth *s)
{
    free(s->k);
    free(s->v);
    free(s->centers);
}

/* [n][g][k_dim], scaled so that logits spread by a few units: a centre's direction plus noise. */
static inline float *synth_queries(struct hri_rng *rng, const struct synth *s, uint32_t n,
                                   uint32_t g)
{
    float *q = synth_array((size_t)n * g * s->k_dim);
    for (uint32_t i = 0; i < n * g; i++) {
        uint32_t c = (uint32_t)hri_rng_below(rng, s->n_centers);
        for (uint32_t j = 0; j < s->k_dim; j++)
            q[(size_t)i * s->k_dim + j] =
                (float)(3.0 / sqrt(s->k_dim)) *
                (s->centers[(size_t)c * s->k_dim + j] + (float)(0.5 * hri_rng_normal(rng)));
    }
    return q;
}

#endif
