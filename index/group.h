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

/* The same in turns, for who does their heavy parts elsewhere (index/job.h). Between any two of them work and order stay as they are.
 * 1. hri_group_clusters_begin: how many clusters k-means begins with; 0: all rows are one block, in the order of hri_group_consecutive.
 * 2. k-means: tables.nearest, counts and centroids as hri_group_cluster leaves them.
 * 3. hri_group_cut: clusters into blocks; returns how many.
 * 4. HRI_GROUP_MOVES times: hri_group_centre writes their tables.centroids, tables.nearest is made from them, then hri_group_move: rows
 *    whose nearest block is another one move there if it has room. A block that loses all its rows is dropped; returns how many are left.
 * 5. hri_group_end: order and block_rows. */
#define HRI_GROUP_MOVES 2u
struct hri_group_tables {
    float *centroids;  /* [k][d]; k at most hri_group_blocks_max + 1 */
    uint32_t *counts;  /* [k] rows of a cluster */
    uint32_t *nearest; /* [n] */
};
uint32_t hri_group_clusters_begin(uint32_t n, uint32_t target);
struct hri_group_tables hri_group_tables(uint32_t n, uint32_t d, uint32_t target, void *work);
void hri_group_cluster(const struct hri_group_in *in, uint32_t k, void *work);
uint32_t hri_group_cut(const struct hri_group_in *in, uint32_t k, void *work, uint32_t *order);
void hri_group_centre(const struct hri_group_in *in, uint32_t n_ranges, void *work,
                      const uint32_t *order);
uint32_t hri_group_move(const struct hri_group_in *in, uint32_t n_ranges, void *work,
                        uint32_t *order);
void hri_group_end(const struct hri_group_in *in, uint32_t n_ranges, void *work, uint32_t *order,
                   uint32_t *block_rows);
/* The row whose point is cluster c's first centre. */
static inline uint32_t hri_group_first_row(uint32_t n, uint32_t k, uint32_t c)
{
    return (uint32_t)((uint64_t)c * n / k) + n / k / 2;
}

/* Plain k-means into n / target clusters of any size, as published systems do it: order[] by cluster, rows of a
 * cluster ascending; cluster_rows[hri_group_blocks_max]. Returns the clusters that have rows. Same work. */
uint32_t hri_group_clusters(const struct hri_group_in *in, void *work, uint32_t *order,
                            uint32_t *cluster_rows);

#endif
