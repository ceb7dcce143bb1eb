/* Grouping: rows of a segment into blocks. Every row lands in exactly one block; no block is empty
 * or above cap; there are at most hri_group_blocks_max(n, target) of them. */
#ifndef HRI_INDEX_GROUP_H
#define HRI_INDEX_GROUP_H

#include "kernels/kernels.h"

struct hri_group_in {
    const struct hri_kernels *kernels;
    const float *y; /* [n][d] the points that are to be close together inside a block */
    const float
        *weight; /* [n] how much a row's distance from its block counts; NULL: all the same */
    uint32_t n, d;
    uint32_t target, cap; /* mean and largest rows of a block; cap >= 2 * target */
    uint32_t iterations;
    bool spherical; /* clusters by direction (centroids of length 1) */
};

static inline uint32_t hri_group_blocks_max(uint32_t n, uint32_t target)
{
    return n / target + (n % target != 0);
}

/* order[n], block_rows[hri_group_blocks_max]; returns the number of blocks. Consecutive rows,
 * target each, the last one shorter. */
uint32_t hri_group_consecutive(uint32_t n, uint32_t target, uint32_t *order, uint32_t *block_rows);

/* k-means, then clusters above cap are cut and the worst ones cut further until all blocks are
 * used. work: hri_group_kmeans_work_bytes, 64-byte aligned. */
size_t hri_group_kmeans_work_bytes(uint32_t n, uint32_t d, uint32_t target);
uint32_t hri_group_kmeans(const struct hri_group_in *in, void *work, uint32_t *order,
                          uint32_t *block_rows);

/* Plain k-means into n / target clusters of any size, as published systems do it: order[] by cluster, rows of a
 * cluster ascending; cluster_rows[hri_group_blocks_max]. Returns the clusters that have rows. Same work. */
uint32_t hri_group_clusters(const struct hri_group_in *in, void *work, uint32_t *order,
                            uint32_t *cluster_rows);

#endif
