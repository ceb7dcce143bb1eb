#include "index/clusters.h"

#include "base/assert.h"
#include "index/group.h"
#include "index/image.h"

#include <string.h>

/* Clusters that do not fit are passed over this many times before the rest is left unspent. */
#define PASSED_OVER_MAX 64u

uint64_t hri_clusters_bytes(const struct hri_index_options *o, uint32_t n, bool with_v)
{
    return hri_means_bytes(o, n, with_v) + n * sizeof(struct hri_cluster);
}

hr_status_t hri_clusters_create(struct hri_clusters *clusters, const struct hri_index_options *o,
                                bool with_v)
{
    *clusters = (struct hri_clusters){0};
    clusters->cluster = hri_array(o->device, o->blocks_max, sizeof *clusters->cluster);
    if (!clusters->cluster)
        return hri_alloc_status();
    hr_status_t status = hri_means_create(&clusters->means, o, o->blocks_max, with_v);
    if (status != HR_OK)
        hri_clusters_destroy(clusters, o);
    return status;
}

void hri_clusters_destroy(struct hri_clusters *clusters, const struct hri_index_options *o)
{
    hri_means_destroy(&clusters->means, o);
    hri_free(o->device, clusters->cluster);
    *clusters = (struct hri_clusters){0};
}

void hri_clusters_heal(struct hri_clusters *clusters, const struct hri_index_head *head)
{
    while (clusters->n > 0) {
        const struct hri_cluster *last = &clusters->cluster[clusters->n - 1];
        if (last->first_block + last->n_blocks <= head->n_blocks)
            break;
        clusters->n--;
    }
}

void hri_clusters_add(struct hri_clusters *clusters, const struct hri_index_head *head,
                      struct hri_segment *segment, const uint32_t *cluster_rows,
                      uint32_t n_clusters)
{
    uint32_t block = 0, first = 0;
    hri_clusters_heal(clusters, head);
    for (uint32_t c = 0; c < n_clusters; c++) {
        uint32_t rows = cluster_rows[c];
        struct hri_cluster *cluster = &clusters->cluster[clusters->n];
        *cluster = (struct hri_cluster){head->n_blocks + block, 0, rows};
        hri_means_write(&clusters->means, &head->options, clusters->n++, segment->k, segment->v,
                        segment->order + first, rows);
        for (uint32_t left = rows; left > 0; cluster->n_blocks++) {
            uint32_t piece = left < segment->cap ? left : segment->cap;
            segment->block_rows[block++] = piece;
            left -= piece;
        }
        first += rows;
    }
    HRI_ASSERT(block <= segment->blocks_max);
    segment->n_blocks = block;
}

uint32_t hri_clusters_of(const struct hri_clusters *clusters, uint32_t block)
{
    uint32_t low = 0, high = clusters->n;
    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;
        *(clusters->cluster[middle].first_block <= block ? &low : &high) = middle;
    }
    return low;
}

static uint64_t cost_of(const struct hri_index_head *head, const struct hri_select_in *in,
                        const struct hri_cluster *cluster, uint64_t *bytes)
{
    uint64_t cost = 0;
    *bytes = 0;
    for (uint32_t i = 0; i < cluster->n_blocks; i++) {
        uint32_t b = cluster->first_block + i;
        uint64_t own = (uint64_t)head->block_rows[b] * in->row_bytes;
        *bytes += own;
        cost += in->place && in->place[b] == HRI_PLACE_FILE ? in->cell_bytes : own;
    }
    return cost;
}

void hri_clusters_take(const struct hri_clusters *clusters, const struct hri_index_head *head,
                       const struct hri_select_in *in, struct hri_ranked *ranked, uint32_t n,
                       uint8_t *taken, struct hri_select_out *out)
{
    uint64_t left = in->budget_bytes, bytes;
    uint32_t passed_over = 0;
    memset(taken, 0, clusters->n);
    /* Only about what the budget holds is sorted. */
    for (uint32_t begin = 0, end; begin < n && left >= in->row_bytes; begin = end) {
        uint64_t guess = left / in->row_bytes / 4 + 32;
        end = guess < n - begin ? begin + (uint32_t)guess : n;
        hri_rank_select(ranked + begin, n - begin, end - begin);
        hri_rank_sort(ranked + begin, end - begin);
        for (uint32_t i = begin; i < end; i++) {
            const struct hri_cluster *cluster = &clusters->cluster[ranked[i].item];
            uint64_t cost = cost_of(head, in, cluster, &bytes);
            if (passed_over == PASSED_OVER_MAX)
                return;
            if (cost > left || cluster->n_blocks > out->items_max - out->n_items) {
                passed_over++;
                continue;
            }
            for (uint32_t b = 0; b < cluster->n_blocks; b++)
                out->items[out->n_items++] = cluster->first_block + b;
            out->bytes += bytes;
            left -= cost;
            taken[ranked[i].item] = 1;
        }
    }
}

size_t hri_centred_workspace_bytes(const struct hri_index_options *o, uint32_t n)
{
    return hri_round_up((uint64_t)n * o->k_dim * sizeof(float), 64) +
           hri_round_up((n + 1) * sizeof(uint32_t), 64) +
           hri_group_kmeans_work_bytes(n, o->k_dim, hri_index_target_rows(&o->recipe)) + 64;
}

uint32_t hri_centred_clusters(const struct hri_index_head *head, const struct hri_segment *segment,
                              uint32_t n, uint32_t **cluster_rows_out)
{
    uint32_t d = head->options.k_dim;
    double mean[HR_HEAD_DIM_MAX] = {0};
    float *y = segment->workspace;
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t j = 0; j < d; j++)
            mean[j] += segment->k[(size_t)i * d + j];
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t j = 0; j < d; j++)
            y[(size_t)i * d + j] = (float)(segment->k[(size_t)i * d + j] - mean[j] / n);
    struct hri_group_in in = {.kernels = head->options.kernels,
                              .y = y,
                              .n = n,
                              .d = d,
                              .target = segment->target,
                              .cap = segment->cap,
                              .iterations =
                                  (uint32_t)hri_recipe_value(&head->options.recipe, "iterations"),
                              .spherical = true};
    char *at = (char *)segment->workspace + hri_round_up((uint64_t)n * d * sizeof(float), 64);
    *cluster_rows_out = (uint32_t *)(void *)at;
    at += hri_round_up((n + 1) * sizeof(uint32_t), 64);
    return hri_group_clusters(&in, at, segment->order, *cluster_rows_out);
}

void hri_clusters_image(struct hri_clusters *clusters, const struct hri_index_head *head,
                        struct hri_image *im)
{
    uint32_t block = 0;
    if (!im->loads)
        hri_clusters_heal(clusters, head);
    hri_image_u32(im, &clusters->n, head->n_blocks, "more clusters than blocks");
    for (uint32_t c = 0; c < clusters->n && hri_image_ok(im); c++) {
        struct hri_cluster *cluster = &clusters->cluster[c];
        uint32_t rows = 0;
        hri_image_u32(im, &cluster->n_blocks, head->n_blocks - block,
                      "a cluster of too many blocks");
        hri_image_check(im, cluster->n_blocks > 0, "a cluster without blocks");
        cluster->first_block = block;
        for (uint32_t b = 0; hri_image_ok(im) && b < cluster->n_blocks; b++)
            rows += head->block_rows[block + b];
        cluster->n_rows = rows;
        block += cluster->n_blocks;
    }
    hri_image_check(im, block == head->n_blocks, "blocks without a cluster");
    if (hri_image_ok(im))
        hri_means_image(&clusters->means, &head->options, clusters->n, im);
}
