/* Statistics of the queries a head has seen, and the metric they make.
 *
 * Rotary embedding turns the same query differently at every position, so the second moment is kept
 * in un-rotated coordinates and turned forward, on average, to the positions at which it will be
 * needed. Queries carry the softmax scale, so |P (k - k')|^2 is the expected squared difference of
 * two keys' logits.
 */
#ifndef HRI_INDEX_QSTATS_H
#define HRI_INDEX_QSTATS_H

#include "base/alloc.h"
#include "kernels/kernels.h"

struct hri_qstats {
    uint32_t d;
    uint32_t n_pairs; /* d / 2; dimensions beyond the rotated ones form pairs with frequency 0 */
    const struct hri_kernels *kernels;
    struct hri_alloc *alloc;
    double *theta;            /* [n_pairs] radians per position */
    uint16_t *first, *second; /* [n_pairs] the dimensions of a pair */
    float *moment;            /* [d][d] sum of weight * q q', un-rotated */
    float *batch;             /* [HRI_QSTATS_BATCH][d] un-rotated queries not yet in moment */
    uint32_t n_batch;
    float *recent; /* [HRI_QSTATS_RECENT][d] the newest samples, un-rotated; a ring */
    uint32_t n_recent, next_recent;
    double weight;     /* sum of weights in moment */
    uint32_t position; /* after the newest query observed */
    bool rotates;
};
#define HRI_QSTATS_BATCH    48u /* queries that enter the moment together */
#define HRI_QSTATS_RECENT   96u /* queries kept as they are */
#define HRI_QSTATS_PER_CALL 24u /* positions sampled from one observe at most */
#define HRI_QSTATS_STRIDE   8u  /* while decoding, one position of so many is sampled */
#define HRI_QSTATS_DECAY                                                                           \
    0.98 /* of the moment's weight per batch: the newest 2,400 samples count most */
/* Of the mean diagonal, added to it: queries to come are not all like those seen. Sketches are to tell rows apart for those, too; where there
 * are only summaries, every direction more makes all of them worse. */
#define HRI_QSTATS_RIDGE        0.1
#define HRI_QSTATS_RIDGE_SKETCH 0.3

hr_status_t hri_qstats_init(struct hri_qstats *stats, const struct hri_kernels *kernels,
                            struct hri_alloc *alloc, uint32_t d, const struct hr_rope *rope);
/* Of the same shape and allocator. */
hr_status_t hri_qstats_copy(const struct hri_qstats *from, struct hri_qstats *to);
void hri_qstats_fini(struct hri_qstats *stats);

/* q [n][g][d]; query i stands at first_position + i. */
void hri_qstats_observe(struct hri_qstats *stats, const float *q, uint32_t n, uint32_t g,
                        uint32_t first_position);

/* s_out [d][d]: mean over positions first..last (inclusive) of R_p S R_p'. False (s_out untouched)
 * if no query was ever seen. */
bool hri_qstats_moment(struct hri_qstats *stats, uint32_t first, uint32_t last, double *s_out);

/* The newest samples, turned to positions spread over first..last as the moment's average is: out
 * [HRI_QSTATS_RECENT][d]. Returns how many there are. */
uint32_t hri_qstats_recent(const struct hri_qstats *stats, uint32_t first, uint32_t last,
                           float *out);

/* p_out [d][d] with p'p = S + ridge of its mean diagonal for those positions (rows are scaled eigenvectors); the
 * identity if no query was seen. work: hri_qstats_metric_work_bytes(d), 64-byte aligned. */
size_t hri_qstats_metric_work_bytes(uint32_t d);
hr_status_t hri_qstats_metric(struct hri_qstats *stats, uint32_t first, uint32_t last, double ridge,
                              void *work, float *p_out);

#endif
