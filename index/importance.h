/* How much attention the rows of a segment get from the newest queries. Blocks of rows that get
 * none may be coarse. */
#ifndef HRI_INDEX_IMPORTANCE_H
#define HRI_INDEX_IMPORTANCE_H

#include "index/qstats.h"

/* weight_out [n], mean about 1: a power of each row's mean squared share of the segment's
 * attention. False, and nothing written, when no query was seen. Softmax is taken over the segment:
 * what the queries attend elsewhere does not matter here. */
size_t hri_importance_work_bytes(uint32_t d, uint32_t n);
bool hri_importance(const struct hri_qstats *stats, uint32_t first_position, uint32_t last_position,
                    const float *k, uint32_t n, float soft_cap, void *work, float *weight_out);

#endif
