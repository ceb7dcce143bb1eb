/* What selectors of rows share: the scratch of a step, and the choice of the best rows. */
#ifndef HRI_INDEX_ROWS_H
#define HRI_INDEX_ROWS_H

#include "index/head.h"

struct hri_rows_step {
    size_t stride;             /* rows up to 16 */
    float *logits;             /* [g][stride] */
    struct hri_ranked *ranked; /* [stride] */
};
size_t hri_rows_step_bytes(const struct hri_index_options *options);
struct hri_rows_step hri_rows_step_at(const struct hri_index_head *head,
                                      const struct hri_select_in *in);

/* Rows that the budget pays for and out has room for. */
uint32_t hri_rows_fit(const struct hri_index_head *head, const struct hri_select_in *in,
                      const struct hri_select_out *out);
/* The best `fit` of ranked[n] (reordered) into out, best first. */
void hri_rows_take(struct hri_ranked *ranked, uint32_t n, uint32_t fit,
                   const struct hri_select_in *in, struct hri_select_out *out);
/* step->logits of all rows, estimated: softmax per query head, summed over the group, the best rows. */
void hri_rows_take_softmax(const struct hri_index_head *head, const struct hri_select_in *in,
                           const struct hri_rows_step *step, struct hri_select_out *out);

/* logit -> cap * tanh(logit / cap); cap 0: as it is. */
void hri_soft_cap(float *x, uint32_t n, float cap);
static inline float hri_dot(const float *a, const float *b, uint32_t d)
{
    float sum[8] = {0};
    uint32_t i = 0;
    for (; i + 8 <= d; i += 8)
        for (uint32_t j = 0; j < 8; j++)
            sum[j] += a[i + j] * b[i + j];
    for (; i < d; i++)
        sum[0] += a[i] * b[i];
    return ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
}

#endif
