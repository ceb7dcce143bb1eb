#include "index/row_clusters.h"

#include "base/error.h"
#include "index/group.h"
#include "index/image.h"

#include <string.h>

/* Every add makes at most one cluster beyond rows / target, and adds are of a decode_segment at least but for a few. */
uint32_t hri_row_clusters_max(const struct hri_index_options *o, uint32_t target)
{
    uint32_t segment = (uint32_t)hri_recipe_value(&o->recipe, "decode_segment");
    uint64_t bound = o->rows_max / target + o->rows_max / (segment ? segment : 1) + 64;
    return bound < o->rows_max ? (uint32_t)bound : o->rows_max + 1;
}

uint64_t hri_row_clusters_bytes(const struct hri_index_options *o, uint32_t n_clusters)
{
    return hri_means_bytes(o, n_clusters, false) + (n_clusters + (uint64_t)1) * sizeof(uint32_t);
}

hr_status_t hri_row_clusters_create(struct hri_row_clusters *c, const struct hri_index_options *o,
                                    uint32_t target)
{
    *c = (struct hri_row_clusters){.clusters_max = hri_row_clusters_max(o, target),
                                   .target = target};
    hr_status_t status = hri_means_create(&c->means, o, c->clusters_max, false);
    c->first = hri_calloc(o->device, c->clusters_max + (size_t)1, sizeof *c->first);
    c->row = hri_array(o->scratch, o->rows_max + (size_t)1, sizeof *c->row);
    if (status == HR_OK && c->first && c->row)
        return HR_OK;
    status = status == HR_OK ? hri_alloc_status() : status;
    hri_row_clusters_destroy(c, o);
    return status;
}

void hri_row_clusters_destroy(struct hri_row_clusters *c, const struct hri_index_options *o)
{
    hri_means_destroy(&c->means, o);
    hri_free(o->device, c->first);
    hri_free(o->scratch, c->row);
    *c = (struct hri_row_clusters){0};
}

struct work {
    void *group;
    uint32_t *order, *rows;
};

static void work_free(struct work *w, struct hri_alloc *alloc)
{
    hri_free(alloc, w->group);
    hri_free(alloc, w->order);
    hri_free(alloc, w->rows);
}

static void append(struct hri_row_clusters *c, const struct hri_index_options *o, const float *x,
                   uint32_t first_row, const struct work *w, uint32_t n_clusters)
{
    const uint32_t *members = w->order;
    for (uint32_t i = 0; i < n_clusters; members += w->rows[i], i++) {
        uint32_t at = c->first[c->n];
        hri_means_write(&c->means, o, c->n, x, NULL, members, w->rows[i]);
        for (uint32_t r = 0; r < w->rows[i]; r++)
            c->row[at + r] = first_row + members[r];
        c->first[++c->n] = at + w->rows[i];
    }
}

hr_status_t hri_row_clusters_add(struct hri_row_clusters *c, const struct hri_index_options *o,
                                 const float *x, uint32_t n, uint32_t first_row,
                                 uint32_t iterations)
{
    uint32_t target = c->target;
    uint32_t bound = hri_group_blocks_max(n, target);
    struct work w = {
        .group = hri_aligned(o->scratch, 64, hri_group_kmeans_work_bytes(n, o->k_dim, target)),
        .order = hri_array(o->scratch, n, sizeof *w.order),
        .rows = hri_array(o->scratch, bound + (size_t)1, sizeof *w.rows)};
    hr_status_t status = w.group && w.order && w.rows ? HR_OK : hri_alloc_status();
    if (status == HR_OK && bound > c->clusters_max - c->n)
        status = hri_error_set(HR_ERR_FULL, "clusters of rows: %u more after %u exceed %u", bound,
                               c->n, c->clusters_max);
    if (status == HR_OK) {
        struct hri_group_in in = {.kernels = o->kernels,
                                  .y = x,
                                  .n = n,
                                  .d = o->k_dim,
                                  .target = target,
                                  .cap = 2 * target,
                                  .iterations = iterations,
                                  .spherical = true};
        append(c, o, x, first_row, &w, hri_group_clusters(&in, w.group, w.order, w.rows));
    }
    work_free(&w, o->scratch);
    return status;
}

void hri_row_clusters_truncate(struct hri_row_clusters *c, uint32_t n_rows)
{
    uint32_t at = 0, first = 0;
    for (uint32_t i = 0; i < c->n; i++) {
        uint32_t end = c->first[i + 1];
        for (; first < end; first++)
            if (c->row[first] < n_rows)
                c->row[at++] = c->row[first];
        c->first[i + 1] = at;
    }
    while (c->n && c->first[c->n - 1] == at)
        c->n--;
}

void hri_row_clusters_image(struct hri_row_clusters *c, const struct hri_index_options *o,
                            uint32_t n_rows, struct hri_image *im)
{
    hri_image_u32(im, &c->n, c->clusters_max, "too many clusters");
    if (!hri_image_ok(im))
        return;
    hri_image_u32s(im, c->first, c->n + (size_t)1, n_rows + 1, "a cluster of too many rows");
    for (uint32_t i = 0; im->loads && hri_image_ok(im) && i < c->n; i++)
        hri_image_check(im, c->first[i] <= c->first[i + 1], "clusters overlap");
    hri_image_check(im, c->first[0] == 0, "clusters do not begin with the first row");
    if (!hri_image_ok(im))
        return;
    hri_image_u32s(im, c->row, c->first[c->n], n_rows, "a cluster of rows that are not there");
    hri_means_image(&c->means, o, c->n, im);
}
