/* Ordering without allocation: the C library's qsort may call malloc. */
#ifndef HRI_INDEX_SORT_H
#define HRI_INDEX_SORT_H

#include <stddef.h>
#include <stdint.h>

struct hri_ranked {
    float key;
    uint32_t item;
};

/* By key, largest first; equal keys by item, smallest first, so that results do not depend on the
 * method. */
void hri_rank_sort(struct hri_ranked *a, size_t n);

/* Puts the n_best that hri_rank_sort would put first in front, in any order. */
void hri_rank_select(struct hri_ranked *a, size_t n, size_t n_best);

/* Ranks by size without sorting: a bin for each power of two, in eighths. */
#define HRI_BIN_SHIFT 20
#define HRI_BINS      (1u << (31 - HRI_BIN_SHIFT))

static inline uint32_t hri_bin_of(float x)
{
    union {
        float x;
        uint32_t bits;
    } u = {x};
    return x > 0 ? u.bits >> HRI_BIN_SHIFT : 0;
}

#endif
