/* Choices that outlive their step: some systems select anew only every few steps, or when the query has turned. */
#ifndef HRI_INDEX_KEPT_H
#define HRI_INDEX_KEPT_H

#include "index/head.h"

struct hri_kept {
    uint32_t *items; /* best first */
    uint32_t n, n_max;
    float *q; /* [g][k_dim] the query they go with */
    bool valid;
};
hr_status_t hri_kept_create(struct hri_kept *kept, const struct hri_index_options *options,
                            uint32_t items_max);
void hri_kept_destroy(struct hri_kept *kept, const struct hri_index_options *options);
void hri_kept_store(struct hri_kept *kept, const struct hri_index_options *options, const float *q,
                    const struct hri_select_out *out);
/* The kept blocks again, within this step's budget. */
void hri_kept_take(const struct hri_index_head *head, const struct hri_select_in *in,
                   const struct hri_kept *kept, struct hri_ranked *ranked,
                   struct hri_select_out *out);

/* Mean over g of the cosine of a[g] and b[g]; 0 where one has no length. */
double hri_cosine(const float *a, const float *b, uint32_t g, uint32_t d);

#endif
