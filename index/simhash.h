/* Locality-sensitive hashing by signs of random projections: `tables` hash tables of 2^bits buckets. A row's number is in one
 * bucket of each; buckets are chains, the newest row first, so that adding and truncating cost the same at any length. */
#ifndef HRI_INDEX_SIMHASH_H
#define HRI_INDEX_SIMHASH_H

#include "index/head.h"

#define HRI_SIMHASH_END UINT32_MAX

struct hri_simhash {
    uint32_t d, bits, tables, capacity; /* capacity: rows that next has room for */
    float *planes;                      /* [tables * bits][d] */
    uint32_t *bucket;                   /* [tables][2^bits] newest row */
    uint32_t *next;                     /* [rows][tables] the row before it in the bucket */
    float *projected;                   /* [g][tables * bits] of a step's queries */
};

hr_status_t hri_simhash_create(struct hri_simhash *hash, const struct hri_index_options *options,
                               uint32_t bits, uint32_t tables, uint64_t seed);
void hri_simhash_destroy(struct hri_simhash *hash, const struct hri_index_options *options);
uint64_t hri_simhash_bytes(const struct hri_simhash *hash);
hr_status_t hri_simhash_add(struct hri_simhash *hash, const struct hri_index_options *options,
                            const float *x, uint32_t n, uint32_t first_row);
void hri_simhash_truncate(struct hri_simhash *hash, uint32_t n_rows);
/* The bucket of each table for every query of a group. buckets [g][tables]. */
void hri_simhash_query(struct hri_simhash *hash, const struct hri_kernels *kernels, const float *q,
                       uint32_t g, uint32_t *buckets);
/* Probability that at least `least` of the tables put two vectors of this cosine into one bucket. */
double hri_simhash_probability(const struct hri_simhash *hash, double cosine, uint32_t least);

#endif
