/* Groups of rows of any size with a summary each: several blocks where one would be too large. What RetroInfer and
 * LouisKV select. */
#ifndef HRI_INDEX_CLUSTERS_H
#define HRI_INDEX_CLUSTERS_H

#include "index/head.h"
#include "index/means.h"

struct hri_cluster {
    uint32_t first_block, n_blocks, n_rows;
};
struct hri_clusters {
    struct hri_cluster *cluster; /* [blocks_max] */
    struct hri_means means;      /* [blocks_max] of clusters */
    uint32_t n;
};
hr_status_t hri_clusters_create(struct hri_clusters *clusters,
                                const struct hri_index_options *options, bool with_v);
void hri_clusters_destroy(struct hri_clusters *clusters, const struct hri_index_options *options);
/* Bytes for, and held by, n clusters. */
uint64_t hri_clusters_bytes(const struct hri_index_options *options, uint32_t n, bool with_v);

/* Takes off clusters whose blocks are gone (after a truncate). */
void hri_clusters_heal(struct hri_clusters *clusters, const struct hri_index_head *head);
/* Cuts the segment's clusters (rows in segment->order, cluster_rows[n_clusters]) into blocks and appends them with
 * their means. Called from group: the segment's blocks get the numbers from head->n_blocks on. */
void hri_clusters_add(struct hri_clusters *clusters, const struct hri_index_head *head,
                      struct hri_segment *segment, const uint32_t *cluster_rows,
                      uint32_t n_clusters);
/* The cluster of a block. */
uint32_t hri_clusters_of(const struct hri_clusters *clusters, uint32_t block);

/* Takes clusters from ranked (n entries, key: worth; reordered), best first; one whose blocks do not all fit what is
 * left is passed over. taken[c] = 1 for those taken. */
void hri_clusters_take(const struct hri_clusters *clusters, const struct hri_index_head *head,
                       const struct hri_select_in *in, struct hri_ranked *ranked, uint32_t n,
                       uint8_t *taken, struct hri_select_out *out);

/* Clusters of the first n rows of a segment, as RetroInfer makes them: spherical k-means of keys less their mean,
 * n / target of them. Fills segment->order and cluster_rows (in the workspace); returns how many. */
size_t hri_centred_workspace_bytes(const struct hri_index_options *options, uint32_t n);
uint32_t hri_centred_clusters(const struct hri_index_head *head, const struct hri_segment *segment,
                              uint32_t n, uint32_t **cluster_rows_out);

#endif
