/* One budget for a token, shared between the heads (and layers) of a sequence.
 *
 * A step says of every head how many rows are worth how much (index.h, HRI_WORTH_BINS). The next token's budget goes where such rows are
 * worth most: to every head what it had above one common worth, within bounds, so that the mean over all heads is the budget. */
#ifndef HRI_RUNTIME_SHARE_H
#define HRI_RUNTIME_SHARE_H

#include "index/index.h"

/* No head gets less than this of an equal share, or more than that. */
#define HRI_SHARE_LEAST 0.5f
#define HRI_SHARE_MOST  2.0f

struct hri_share {
    uint32_t n_layers, n_kv;
    bool layers;       /* layers share, too */
    uint32_t *worth;   /* [n_layers][n_kv][HRI_WORTH_BINS] */
    uint8_t *known;    /* [n_layers][n_kv] */
    float *part;       /* [n_layers][n_kv] of an equal share */
    uint32_t position; /* of the token part is for */
};

hr_status_t hri_share_create(struct hri_share *share, struct hri_alloc *alloc, uint32_t n_layers,
                             uint32_t n_kv, bool layers);
void hri_share_destroy(struct hri_share *share, struct hri_alloc *alloc);
/* The parts of the heads of a layer [n_kv] for the token at `position`; rows: an equal share. */
const float *hri_share_parts(struct hri_share *share, uint32_t layer, uint32_t position,
                             double rows);
/* Where a step writes what it found. */
uint32_t *hri_share_worth_set(struct hri_share *share, uint32_t layer, uint32_t head);
/* What it found, once all heads of the layer have. */
bool hri_share_known(const struct hri_share *share, uint32_t layer);
const uint32_t *hri_share_worth(const struct hri_share *share, uint32_t layer, uint32_t head);
/* Between shares of the same size. */
void hri_share_copy(const struct hri_share *from, struct hri_share *share);

#endif
