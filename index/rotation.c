#include "index/rotation.h"

#include <math.h>

hr_status_t hri_rotation_create(struct hri_rotation *r, struct hri_alloc *alloc,
                                const struct hr_rope *rope)
{
    *r = (struct hri_rotation){0};
    if (rope->layout == HR_ROPE_NONE || rope->n_rot == 0)
        return HR_OK;
    uint32_t half = rope->n_rot / 2;
    r->theta = hri_array(alloc, half, sizeof *r->theta);
    r->cos1 = hri_array(alloc, half, sizeof *r->cos1);
    r->sin1 = hri_array(alloc, half, sizeof *r->sin1);
    r->first = hri_array(alloc, half, sizeof *r->first);
    r->second = hri_array(alloc, half, sizeof *r->second);
    if (!r->theta || !r->cos1 || !r->sin1 || !r->first || !r->second) {
        hri_rotation_destroy(r, alloc);
        return hri_alloc_status();
    }
    bool by_half = rope->layout == HR_ROPE_HALF;
    for (uint32_t i = 0; i < half; i++) {
        r->theta[i] = rope->frequencies[i];
        r->cos1[i] = cos(r->theta[i]);
        r->sin1[i] = sin(r->theta[i]);
        r->first[i] = (uint16_t)(by_half ? i : 2 * i);
        r->second[i] = (uint16_t)(by_half ? i + half : 2 * i + 1);
    }
    r->n_pairs = half;
    return HR_OK;
}

void hri_rotation_destroy(struct hri_rotation *r, struct hri_alloc *alloc)
{
    hri_free(alloc, r->theta);
    hri_free(alloc, r->cos1);
    hri_free(alloc, r->sin1);
    hri_free(alloc, r->first);
    hri_free(alloc, r->second);
    *r = (struct hri_rotation){0};
}

/* One sine per pair: the next row's angle is the last one's, turned by one position. */
void hri_rotation_apply(const struct hri_rotation *r, float *x, uint32_t n, size_t stride,
                        uint32_t position, int sign)
{
    for (uint32_t p = 0; p < r->n_pairs; p++) {
        double c = cos(r->theta[p] * position), s = sin(r->theta[p] * position);
        float *a = x + r->first[p], *b = x + r->second[p];
        for (uint32_t i = 0; i < n; i++, a += stride, b += stride) {
            double u = *a, v = *b, turn = sign * s;
            *a = (float)(c * u - turn * v);
            *b = (float)(c * v + turn * u);
            double next = c * r->cos1[p] - s * r->sin1[p];
            s = s * r->cos1[p] + c * r->sin1[p];
            c = next;
        }
    }
}
