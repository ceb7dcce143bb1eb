/* Rows as numbers of centroids: product quantisation, or one vector quantiser where there is one part. What PQCache and
 * A2ATS keep of a key.
 *
 * Centroids come from k-means (Euclidean, in the metric where one is given) over the first rows that were added. While these are
 * fewer than train_rows they are kept, and the centroids are made anew each time the rows have doubled; after that
 * they stay, and new rows get the nearest. */
#ifndef HRI_INDEX_CODED_ROWS_H
#define HRI_INDEX_CODED_ROWS_H

#include "index/head.h"

struct hri_coded_rows {
    uint32_t d, parts, part_d; /* d = parts * part_d */
    uint32_t codes_max;        /* centroids of a part; while there are fewer rows there are fewer */
    uint32_t code_bytes;       /* 1 or 2 */
    uint32_t iterations, train_rows;
    uint32_t n_codes;
    uint16_t *centroid;  /* [parts][codes_max][part_d] float16; device */
    unsigned char *code; /* [rows_max][parts] of code_bytes each; device */
    float *metric; /* [d][d] or NULL (the identity): distances are |P (x - c)|; needs one part */
    float *kept;   /* [n_kept][d] rows while they are few */
    float *table;  /* [g][parts][codes_max] of a step */
    uint32_t n_kept, n_trained;
    bool frozen;
};

/* parts is lowered until d is a whole number of parts of a multiple of 8. */
hr_status_t hri_coded_rows_create(struct hri_coded_rows *rows,
                                  const struct hri_index_options *options, uint32_t parts,
                                  uint32_t codes_max, uint32_t iterations, uint32_t train_rows);
void hri_coded_rows_destroy(struct hri_coded_rows *rows, const struct hri_index_options *options);
uint64_t hri_coded_rows_bytes(const struct hri_index_options *options, uint32_t parts,
                              uint32_t codes_max, uint32_t n_rows);
uint64_t hri_coded_rows_held(const struct hri_coded_rows *rows, uint32_t n_rows);

/* True if the next add of n rows makes the centroids (the metric may then be set first). */
bool hri_coded_rows_trains(const struct hri_coded_rows *rows, uint32_t first_row, uint32_t n);
hr_status_t hri_coded_rows_add(struct hri_coded_rows *rows, const struct hri_index_options *options,
                               const float *x, uint32_t n, uint32_t first_row);
void hri_coded_rows_truncate(struct hri_coded_rows *rows, uint32_t n_rows);
/* logits[g][i] = q_g . centroids of row i, i < n. */
void hri_coded_rows_score(struct hri_coded_rows *rows, const struct hri_index_options *options,
                          const float *q, uint32_t n, float *logits, size_t stride);

/* Euclidean k-means: evenly spaced start, `iterations` rounds; a centroid without points takes the farthest one.
 * x [n][d], centroids [k][d], k <= n. nearest [n], distance [n]: of the last round. counts [k]. */
void hri_kmeans(const struct hri_kernels *kernels, const float *x, uint32_t n, uint32_t d,
                uint32_t k, uint32_t iterations, float *centroids, uint32_t *nearest,
                float *distance, uint32_t *counts);

#endif
