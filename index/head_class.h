/* Which kv-heads retrieve (attend everything) and which stream (sink and window): from the caller's table of gates,
 * or measured on the prompt's own queries. */
#ifndef HRI_INDEX_HEAD_CLASS_H
#define HRI_INDEX_HEAD_CLASS_H

#include "index/head.h"

/* By the table: gates of at least threshold; with share > 0 the heads whose gate is among that share of the
 * largest of all layers (ties included, 0 never). */
bool hri_gate_retrieves(const struct hri_index_options *options, double threshold, double share);

/* Queries kept to measure with: some of every prefill chunk, the newest ones. */
#define HRI_SAMPLES_MAX      48u
#define HRI_SAMPLES_PER_CALL 8u
struct hri_samples {
    float *q; /* [HRI_SAMPLES_MAX][g][k_dim] */
    uint32_t position[HRI_SAMPLES_MAX];
    uint32_t n, next;
};
hr_status_t hri_samples_create(struct hri_samples *samples,
                               const struct hri_index_options *options);
void hri_samples_destroy(struct hri_samples *samples, const struct hri_index_options *options);
/* Chunks of a prompt only (n > 1): evenly spread, the last query included. */
void hri_samples_observe(struct hri_samples *samples, const struct hri_index_options *options,
                         const float *q, uint32_t n, uint32_t first_position);

/* Attention of the samples that stand inside rows first_row .. first_row + n of the body over those rows up to
 * themselves. far[i]: share of what lies more than `window` tokens back, mean over the group; o [g][v_dim] of sample i
 * at o + i * g * v_dim (may be NULL); row_mass[n] += each row's share (may be NULL). Returns how many samples stand
 * there, far and o written for the first so many. work: n floats. */
uint32_t hri_samples_attend(const struct hri_samples *samples,
                            const struct hri_index_options *options, const float *k, const float *v,
                            uint32_t n, uint32_t first_row, uint32_t window, double *far, float *o,
                            float *row_mass, float *work);

/* retrieves[h] = is score[h] among the ceil(share * n) largest (ties: the lower number). */
void hri_class_top(const double *score, uint32_t n, double share, bool *retrieves);

/* The heads of a layer whose samples look farthest back: the share of attention, within the segment, on rows more than
 * the recipe's window away, mean over the samples. *measured_out: false if no sample stands inside these rows
 * (then retrieves is not written). */
hr_status_t hri_class_by_reach(struct hri_index_head *const *heads, uint32_t n_heads,
                               const struct hri_samples *const *samples, const float *k,
                               const float *v, uint32_t n, uint32_t first_row, double share,
                               bool *retrieves, bool *measured_out);

#endif
