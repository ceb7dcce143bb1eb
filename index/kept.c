#include "index/kept.h"
#include "index/image.h"

#include <math.h>
#include <string.h>

hr_status_t hri_kept_create(struct hri_kept *kept, const struct hri_index_options *o,
                            uint32_t items_max)
{
    kept->n_max = items_max;
    kept->items = hri_array(o->scratch, items_max + (size_t)1, sizeof *kept->items);
    kept->q = hri_array(o->scratch, (size_t)o->g * o->k_dim, sizeof *kept->q);
    if (!kept->items || !kept->q) {
        hri_kept_destroy(kept, o);
        return hri_alloc_status();
    }
    return HR_OK;
}

void hri_kept_destroy(struct hri_kept *kept, const struct hri_index_options *o)
{
    hri_free(o->scratch, kept->items);
    hri_free(o->scratch, kept->q);
    *kept = (struct hri_kept){0};
}

void hri_kept_store(struct hri_kept *kept, const struct hri_index_options *o, const float *q,
                    const struct hri_select_out *out)
{
    kept->n = out->n_items < kept->n_max ? out->n_items : kept->n_max;
    memcpy(kept->items, out->items, kept->n * sizeof *kept->items);
    memcpy(kept->q, q, (size_t)o->g * o->k_dim * sizeof *kept->q);
    kept->valid = true;
}

void hri_kept_take(const struct hri_index_head *head, const struct hri_select_in *in,
                   const struct hri_kept *kept, struct hri_ranked *ranked,
                   struct hri_select_out *out)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < kept->n; i++)
        if (kept->items[i] < head->n_blocks)
            ranked[n++] = (struct hri_ranked){(float)(kept->n - i), kept->items[i]};
    struct hri_take take = {.ranked = ranked, .n = n, .budget_bytes = in->budget_bytes};
    hri_take_blocks(head, in, &take, out);
}

double hri_cosine(const float *a, const float *b, uint32_t g, uint32_t d)
{
    double mean = 0;
    for (uint32_t h = 0; h < g; h++, a += d, b += d) {
        double ab = 0, aa = 0, bb = 0;
        for (uint32_t j = 0; j < d; j++) {
            ab += (double)a[j] * b[j];
            aa += (double)a[j] * a[j];
            bb += (double)b[j] * b[j];
        }
        mean += aa > 0 && bb > 0 ? ab / sqrt(aa * bb) / g : 0;
    }
    return mean;
}

void hri_kept_image(struct hri_kept *kept, const struct hri_index_options *o, struct hri_image *im)
{
    hri_image_flag(im, &kept->valid);
    if (!kept->valid || !hri_image_ok(im))
        return;
    hri_image_u32(im, &kept->n, kept->n_max, "too many kept choices");
    hri_image_u32s(im, kept->items, kept->n, kept->n_max, "a kept choice of nothing");
    hri_image_floats(im, kept->q, (size_t)o->g * o->k_dim);
}
