/*
 * Choosing the next token from logits: greedy, or at random under a temperature, top-k, top-p and
 * min-p.
 *
 * The same logits, options and seed give the same tokens on every machine: probabilities are
 * integers, and the exponential is computed with integers too.
 */
#ifndef HRE_SAMPLE_H
#define HRE_SAMPLE_H

#include <stddef.h>
#include <stdint.h>

#include <headrace/headrace.h>

typedef struct hre_sampler hre_sampler_t;

/*
 * Rules apply in this order: temperature, top_k, top_p (of what top_k left, renormalised), min_p.
 * Tokens less likely than 2^-40 of the most likely one are never chosen.
 */
struct hre_sample_options {
    size_t struct_size;
    /* 0: greedy, the most likely token and of equals the lowest id. Default 0. */
    double temperature;
    /* The k most likely tokens; 0: all. Default 0. */
    uint32_t top_k;
    /* The most likely tokens that together have this share, in (0, 1]. Default 1. */
    double top_p;
    /* Tokens with at least this share of the most likely one's, in [0, 1]. Default 0. */
    double min_p;
    /* Default 0. */
    uint64_t seed;
};
void hre_sample_options_init(struct hre_sample_options *options);

/*
 * options may be NULL. HR_ERR_INVALID (the message names the option and its range), HR_ERR_NOMEM.
 */
hr_status_t hre_sampler_create(const struct hre_sample_options *options, uint32_t vocab,
                               hre_sampler_t **sampler_out);
void hre_sampler_destroy(hre_sampler_t *sampler); /* NULL is legal */

/*
 * logits: [vocab]; minus infinity is a token that must not be chosen. HR_ERR_NONFINITE: NaN, plus
 * infinity, or nothing to choose; the message has the token, and no random number was used. Does
 * not allocate.
 */
hr_status_t hre_sampler_next(hre_sampler_t *sampler, const float *logits, uint32_t *id_out);

/* The lowest id of the largest logits; errors as above. */
hr_status_t hre_sample_greedy(const float *logits, uint32_t vocab, uint32_t *id_out);

#endif
