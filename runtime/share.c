#include "runtime/share.h"

#include <string.h>

#define NO_POSITION UINT32_MAX

hr_status_t hri_share_create(struct hri_share *share, struct hri_alloc *alloc, uint32_t n_layers,
                             uint32_t n_kv, bool layers)
{
    size_t n = (size_t)n_layers * n_kv;
    *share = (struct hri_share){.n_layers = n_layers, .n_kv = n_kv, .layers = layers};
    share->worth = hri_calloc(alloc, n * HRI_WORTH_BINS, sizeof *share->worth);
    share->known = hri_calloc(alloc, n, 1);
    share->part = hri_array(alloc, n, sizeof *share->part);
    if (!share->worth || !share->known || !share->part) {
        return hri_alloc_status();
    }
    share->position = NO_POSITION;
    for (size_t i = 0; i < n; i++) {
        share->part[i] = 1;
    }
    return HR_OK;
}

void hri_share_destroy(struct hri_share *share, struct hri_alloc *alloc)
{
    hri_free(alloc, share->worth);
    hri_free(alloc, share->known);
    hri_free(alloc, share->part);
    memset(share, 0, sizeof *share);
}

static float bounded(double part)
{
    return part < HRI_SHARE_LEAST  ? HRI_SHARE_LEAST
           : part > HRI_SHARE_MOST ? HRI_SHARE_MOST
                                   : (float)part;
}

/* Lowers the common worth bin by bin until heads [first, end) have the budget on the mean; part of the last bin where that would be too
 * much. `above` [n]: rows above the bin. */
static void parts_find(struct hri_share *share, size_t first, size_t end, double rows)
{
    double want = (double)(end - first);
    size_t known = 0;
    for (size_t i = first; i < end; i++) {
        known += share->known[i];
        share->part[i] = 1;
    }
    if (known < end - first || rows <= 0) {
        return;
    }
    double sum = HRI_SHARE_LEAST * want;
    for (size_t i = first; i < end; i++) {
        share->part[i] = 0;
    }
    for (uint32_t bin = HRI_WORTH_BINS; bin-- > 1;) {
        double next = 0;
        for (size_t i = first; i < end; i++) {
            next += bounded(share->part[i] + share->worth[i * HRI_WORTH_BINS + bin] / rows);
        }
        double fits = next > want ? (want - sum) / (next - sum) : 1;
        for (size_t i = first; i < end; i++) {
            double before = bounded(share->part[i]);
            share->part[i] += (float)(share->worth[i * HRI_WORTH_BINS + bin] / rows);
            if (next > want) {
                share->part[i] = (float)(before + fits * (bounded(share->part[i]) - before));
            }
        }
        sum = next;
        if (next > want) {
            return;
        }
    }
    /* More than there are rows worth anything. */
    double fits = (want - sum) / (HRI_SHARE_MOST * want - sum);
    for (size_t i = first; i < end; i++) {
        double part = bounded(share->part[i]);
        share->part[i] = (float)(part + fits * (HRI_SHARE_MOST - part));
    }
}

const float *hri_share_parts(struct hri_share *share, uint32_t layer, uint32_t position,
                             double rows)
{
    size_t n = share->n_kv, all = n * share->n_layers;
    if (!share->layers) {
        parts_find(share, layer * n, (layer + 1) * n, rows);
    } else if (share->position != position) { /* once a token, before its first layer */
        parts_find(share, 0, all, rows);
        share->position = position;
    }
    return share->part + layer * n;
}

uint32_t *hri_share_worth_set(struct hri_share *share, uint32_t layer, uint32_t head)
{
    size_t i = (size_t)layer * share->n_kv + head;
    share->known[i] = 1;
    return share->worth + i * HRI_WORTH_BINS;
}

bool hri_share_known(const struct hri_share *share, uint32_t layer)
{
    return share->part != NULL &&
           memchr(share->known + (size_t)layer * share->n_kv, 0, share->n_kv) == NULL;
}

const uint32_t *hri_share_worth(const struct hri_share *share, uint32_t layer, uint32_t head)
{
    return share->worth + ((size_t)layer * share->n_kv + head) * HRI_WORTH_BINS;
}

void hri_share_copy(const struct hri_share *from, struct hri_share *share)
{
    size_t n = (size_t)from->n_layers * from->n_kv;
    memcpy(share->worth, from->worth, n * HRI_WORTH_BINS * sizeof *share->worth);
    memcpy(share->known, from->known, n);
    memcpy(share->part, from->part, n * sizeof *share->part);
    share->position = from->position;
}
