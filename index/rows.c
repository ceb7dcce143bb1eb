#include "index/rows.h"

#include "index/means.h"

#include <math.h>
#include <string.h>

size_t hri_rows_step_bytes(const struct hri_index_options *o)
{
    size_t stride = hri_lanes_up(o->rows_max);
    return stride * (o->g * sizeof(float) + sizeof(struct hri_ranked)) + 64;
}

struct hri_rows_step hri_rows_step_at(const struct hri_index_head *head,
                                      const struct hri_select_in *in)
{
    struct hri_rows_step step = {.stride = hri_lanes_up(head->n_rows)};
    step.logits = in->scratch;
    step.ranked =
        (struct hri_ranked *)(void *)(step.logits + head->options.g * (size_t)hri_lanes_up(
                                                                          head->options.rows_max));
    return step;
}

uint32_t hri_rows_fit(const struct hri_index_head *head, const struct hri_select_in *in,
                      const struct hri_select_out *out)
{
    uint64_t fits = in->row_bytes ? in->budget_bytes / in->row_bytes : 0;
    uint32_t n = fits < head->n_rows ? (uint32_t)fits : head->n_rows;
    return n < out->items_max ? n : out->items_max;
}

void hri_rows_take(struct hri_ranked *ranked, uint32_t n, uint32_t fit,
                   const struct hri_select_in *in, struct hri_select_out *out)
{
    fit = fit < n ? fit : n;
    hri_rank_select(ranked, n, fit);
    hri_rank_sort(ranked, fit);
    for (uint32_t i = 0; i < fit; i++)
        out->items[i] = ranked[i].item;
    out->n_items = fit;
    out->bytes = (uint64_t)fit * in->row_bytes;
}

void hri_rows_take_softmax(const struct hri_index_head *head, const struct hri_select_in *in,
                           const struct hri_rows_step *step, struct hri_select_out *out)
{
    const struct hri_index_options *o = &head->options;
    uint32_t n = head->n_rows;
    for (uint32_t i = 0; i < n; i++)
        step->ranked[i] = (struct hri_ranked){0, i};
    for (uint32_t g = 0; g < o->g && n; g++) {
        float *x = step->logits + g * step->stride;
        hri_soft_cap(x, n, o->soft_cap);
        hri_softmax(o->kernels, x, x, n);
        for (uint32_t i = 0; i < n; i++)
            step->ranked[i].key += x[i];
    }
    hri_rows_take(step->ranked, n, hri_rows_fit(head, in, out), in, out);
}

void hri_soft_cap(float *x, uint32_t n, float cap)
{
    for (uint32_t i = 0; cap > 0 && i < n; i++)
        x[i] = cap * tanhf(x[i] / cap);
}
