/* Level 1: the sketch of every row's key (docs/algorithm.md, level 1).
 *
 * A row's residual r = k - m to its block's centre is turned into coordinates z = B r in which residuals are uncorrelated and
 * distances are those of the queries' metric; a coordinate gets 4, 2 or 0 bits by what it spreads (reverse water-filling). A query
 * turned by A = B^-T meets them as q.r = (A q).z. Values follow by regression on the sketched key: v - v_m = V z~, so that one
 * read of the codes gives the score and the sum.
 *
 * Basis: B, A, steps, V of one fit; it serves all blocks from its first to the next basis's. Rows lie in block order, packed in
 * lanes of 16 (kernels.h); a new basis begins a new group.
 */
#ifndef HRI_INDEX_SKETCH_H
#define HRI_INDEX_SKETCH_H

#include "index/rests.h"
#include "index/strays.h"

#define HRI_SKETCH_BASES_MAX 512u

struct hri_basis {
    uint32_t first_block;
    uint32_t n4, n2, n; /* coordinates with 4 and with 2 bits, and both together */
    int8_t *query;      /* [k_dim][k_dim] A, row by row */
    float *query_scale; /* [k_dim] */
    float *step;        /* [n] of the codes */
    float *missed;      /* [k_dim] mean square of z - z~ per coordinate */
    int8_t *value;      /* [n][v_dim] V, by coordinate, times step: what a code of one adds */
    float *value_scale; /* [n] */
    float value_rest;   /* mean |v - v_m - V z~|^2 */
    float value_spread; /* mean |v - v_m|^2; to encode with, not on the device */
    float *turn;        /* [k_dim][k_dim] B; to encode with, not on the device */
    float missed_mean;  /* sum of missed */
};

struct hri_sketch {
    uint32_t bits, lines; /* mean bits per dimension; 64-byte lines per group of 16 rows */
    uint32_t n_bases, bases_max;
    uint32_t lanes_max;
    struct hri_basis bases[HRI_SKETCH_BASES_MAX];
    uint8_t *codes;       /* [lanes_max / 16][lines][64] device */
    uint32_t *first_lane; /* [blocks_max] device: where a block's rows begin */
    float miss_of[256];   /* what the codes of miss stand for */
    uint8_t *
        miss; /* [blocks_max] device: the mean |z - gain (z~ - mean z~)|^2 of the block over the basis's, log coded */
    uint8_t *gain;       /* [blocks_max] device: by how much its z~ are to be taken, in 1/128 */
    uint8_t *value_miss; /* [blocks_max] device: its mean |v - v_m|^2 over the basis's, likewise */
    /* Rows that lie farthest from their centres, at most one in HRI_SKETCH_LONE: their lanes, ascending, and their own miss. One row unlike all
     * others may be what a query looks for, along directions no query looked before. */
    uint32_t n_lone, lone_max;
    uint32_t *lone_lane; /* [lone_max] device */
    uint8_t *lone_miss;  /* [lone_max] device */
    struct hri_strays strays;
    struct hri_rests rests;
};
#define HRI_SKETCH_LONE 64u

/* 0: this head keeps no sketches. */
uint32_t hri_sketch_bits(const struct hri_index_options *options);
uint64_t hri_sketch_bytes(const struct hri_index_options *options);
/* The codes lie in host memory (sketch_host=1): a step moves what it reads of them. */
bool hri_sketch_in_host(const struct hri_index_options *options);
/* Of the rows there are: their codes; that, if it lies in host memory. */
uint64_t hri_sketch_code_bytes(const struct hri_index_head *head);
uint64_t hri_sketch_held_host(const struct hri_index_head *head);
/* Of those, what the blocks there are hold, bases included. */
uint64_t hri_sketch_held(const struct hri_index_head *head);
uint32_t hri_sketch_lanes_max(const struct hri_index_options *options);
uint32_t hri_sketch_lone_max(const struct hri_index_options *options);
uint32_t hri_sketch_bases_max(const struct hri_index_options *options);
hr_status_t hri_sketch_create(struct hri_index_head *head);
void hri_sketch_destroy(struct hri_index_head *head);

/* Sketches the rows of a summarised segment, whose first block is head->n_blocks. */
size_t hri_sketch_work_bytes(const struct hri_index_options *options, uint32_t n);
/* In two turns with a job between (index/job.h), which hri_sketch_encode does, or somebody else, whose results hri_sketch_take enters. */
struct hri_index_job;
struct hri_index_sketched;
hr_status_t hri_sketch_begin(struct hri_index_head *head, const struct hri_segment *segment,
                             struct hri_index_job *job);
void hri_sketch_encode(const struct hri_index_job *job, const struct hri_segment *segment);
void hri_sketch_take(const struct hri_index_job *job, const struct hri_segment *segment,
                     const struct hri_index_sketched *sketched);
void hri_sketch_end(struct hri_index_head *head, const struct hri_segment *segment);
/* Drops what belongs to blocks that are gone. */
void hri_sketch_truncate(struct hri_index_head *head);

/* The miss of the i-th lone row, as a factor on its basis's. */
float hri_sketch_lone_miss(const struct hri_index_head *head, uint32_t i);
/* x [G][n]: queries in the basis, steps folded in; rest[g] = sum of (A q)^2 missed, the variance of what the sketch leaves out of a
 * row's logit in a block with a miss of 1. turned [G][k_dim]: room to work in. */
void hri_sketch_turn(const struct hri_index_head *head, const struct hri_basis *basis,
                     const float *q, float *turned, float *x, float *rest);

/* Fits a basis to residuals (index/sketch_fit.c): residuals [n][k_dim] (k - m), values [n][v_dim] (v - v_m) and the metric p. weight
 * [n], of mean 1, or NULL: how much each row counts. */
size_t hri_sketch_fit_bytes(uint32_t k_dim, uint32_t v_dim);
hr_status_t hri_sketch_fit(const struct hri_kernels *kernels, struct hri_basis *basis,
                           uint32_t k_dim, uint32_t v_dim, uint32_t lines, const float *p,
                           const float *residuals, const float *values, const float *weight,
                           uint32_t n, void *work);
/* What is stored relative to a mean: 16 codes per power of two, from 2^-8 to 2^8 (hri_sketch.miss_of reads them). */
uint8_t hri_sketch_log_code(double square, double mean);
/* z~ of a row: the coded coordinates as they read back, [n]. */
void hri_sketch_round(const struct hri_basis *basis, const float *z, float *rounded);

#endif
