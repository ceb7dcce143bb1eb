/* What a head knows, as a run of bytes: for saved sessions and forks. One function per structure walks its numbers in a fixed order, out
 * of memory or into it, so that writing and reading cannot drift apart. Little endian, sizes as in C.
 *
 * Reading fills a head that was just created with the same options; every count, index and number is checked before it is used, so
 * that bytes from a file can do no more harm than be refused. */
#ifndef HRI_INDEX_IMAGE_H
#define HRI_INDEX_IMAGE_H

#include "index/index.h"

struct hri_image {
    /* Takes bytes from data, or fills it. */
    hr_status_t (*move)(void *context, void *data, size_t bytes);
    void *context;
    bool loads;
    hr_status_t status; /* of the first thing that went wrong; from there on nothing is moved */
};

static inline bool hri_image_ok(const struct hri_image *image)
{
    return image->status == HR_OK;
}
/* Loading, something does not fit: HR_ERR_CORRUPT, "what" in the message. */
void hri_image_refuse(struct hri_image *image, const char *what);
void hri_image_check(struct hri_image *image, bool right, const char *what);

void hri_image_bytes(struct hri_image *image, void *data, size_t bytes);
void hri_image_u32(struct hri_image *image, uint32_t *x, uint32_t max, const char *what);
void hri_image_u64(struct hri_image *image, uint64_t *x);
void hri_image_flag(struct hri_image *image, bool *x);
/* Every number must be below `below`. */
void hri_image_u32s(struct hri_image *image, uint32_t *x, size_t n, uint32_t below,
                    const char *what);
/* These must be finite. */
void hri_image_floats(struct hri_image *image, float *x, size_t n);
void hri_image_doubles(struct hri_image *image, double *x, size_t n);
void hri_image_halfs(struct hri_image *image, uint16_t *x, size_t n); /* float16 */

/* Inside of the index: parts that several selectors have. */
struct hri_index_head;
struct hri_means;
struct hri_kept;
struct hri_clusters;
struct hri_row_clusters;
struct hri_coded_rows;
struct hri_samples;
struct hri_simhash;
struct hri_graph;
struct hri_qstats;
struct hri_points;
void hri_qstats_image(struct hri_qstats *stats, struct hri_image *image);
void hri_points_image(struct hri_points *points, struct hri_image *image);
void hri_summary_image(struct hri_index_head *head, struct hri_image *image);
void hri_bounds_image(struct hri_index_head *head, struct hri_image *image);
void hri_shape_image(struct hri_index_head *head, struct hri_image *image);
void hri_sketch_image(struct hri_index_head *head, struct hri_image *image);
void hri_means_image(struct hri_means *means, const struct hri_index_options *options, uint32_t n,
                     struct hri_image *image);
void hri_kept_image(struct hri_kept *kept, const struct hri_index_options *options,
                    struct hri_image *image);
void hri_clusters_image(struct hri_clusters *clusters, const struct hri_index_head *head,
                        struct hri_image *image);
/* n_rows: of what is clustered. */
void hri_row_clusters_image(struct hri_row_clusters *clusters,
                            const struct hri_index_options *options, uint32_t n_rows,
                            struct hri_image *image);
void hri_coded_rows_image(struct hri_coded_rows *rows, const struct hri_index_options *options,
                          uint32_t n_rows, struct hri_image *image);
void hri_samples_image(struct hri_samples *samples, const struct hri_index_options *options,
                       struct hri_image *image);
void hri_simhash_image(struct hri_simhash *hash, const struct hri_index_options *options,
                       uint32_t n_rows, struct hri_image *image);
void hri_graph_image(struct hri_graph *graph, const struct hri_index_options *options,
                     struct hri_image *image);

#endif
