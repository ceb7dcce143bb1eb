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

#endif
