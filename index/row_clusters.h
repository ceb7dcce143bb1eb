/* Clusters of rows by direction, with their mean keys: what ClusterKV and Squeezed Attention choose from. Rows that are added
 * together are clustered together; older clusters stay. */
#ifndef HRI_INDEX_ROW_CLUSTERS_H
#define HRI_INDEX_ROW_CLUSTERS_H

#include "index/head.h"
#include "index/means.h"

struct hri_row_clusters {
    struct hri_means means; /* [clusters_max] mean keys, float16; device */
    uint32_t *first;        /* [clusters_max + 1] a cluster's first place in row[] */
    uint32_t *row; /* [rows_max] rows in the order of the clusters, ascending inside of one */
    uint32_t n, clusters_max;
    uint32_t target; /* rows per cluster */
};

uint32_t hri_row_clusters_max(const struct hri_index_options *options, uint32_t target);
uint64_t hri_row_clusters_bytes(const struct hri_index_options *options, uint32_t n_clusters);
hr_status_t hri_row_clusters_create(struct hri_row_clusters *clusters,
                                    const struct hri_index_options *options, uint32_t target);
void hri_row_clusters_destroy(struct hri_row_clusters *clusters,
                              const struct hri_index_options *options);
/* max(1, n / target) clusters of the rows x [n][k_dim] with numbers first_row..: spherical k-means, evenly spaced start. */
hr_status_t hri_row_clusters_add(struct hri_row_clusters *clusters,
                                 const struct hri_index_options *options, const float *x,
                                 uint32_t n, uint32_t first_row, uint32_t iterations);
/* Clusters lose their rows >= n_rows; the means stay, also of a cluster that has none left. */
void hri_row_clusters_truncate(struct hri_row_clusters *clusters, uint32_t n_rows);

static inline uint32_t hri_row_cluster_rows(const struct hri_row_clusters *clusters, uint32_t c)
{
    return clusters->first[c + 1] - clusters->first[c];
}

#endif
