/* The heavy parts of adding a segment to a head, as jobs: for the CPU, which is the reference, or for a device, which may do those of
 * several heads side by side (runtime/device_index.c).
 *
 * Adding runs in turns: hri_index_adding_next does what is left to the head's own thread (fits, eigenvectors, cuts, lists) up to the next
 * job. Whoever does that job leaves in memory what hri_index_job_run would; then comes the next turn. Jobs of headrace:
 *
 *   cluster   rows become points (index/points.h), k-means of these                       O(rows (k_dim + v_dim) dims)
 *   nearest   the nearest of other centres, of the same points; twice                     O(rows centres dims)
 *   pack      summaries of blocks, spreads, the joint second moment of what is left       O(rows (k_dim + v_dim)^2)
 *   sketch    residuals in the basis, coded, and what the codes miss                      O(rows k_dim^2)
 *
 * Other selectors have none: one turn does all. A job may be done by either at any time: a device that fails in the middle leaves its job
 * to the CPU.
 *
 * Threads: as a head; jobs of different heads at once. */
#ifndef HRI_INDEX_JOB_H
#define HRI_INDEX_JOB_H

#include "index/points.h"
#include "index/selector_ops.h"
#include "index/sketch.h"

enum hri_index_job_kind {
    HRI_INDEX_JOB_NONE,
    HRI_INDEX_JOB_CLUSTER,
    HRI_INDEX_JOB_NEAREST,
    HRI_INDEX_JOB_PACK,
    HRI_INDEX_JOB_SKETCH
};

struct hri_index_job {
    enum hri_index_job_kind kind;
    struct hri_index_head *head;
    const struct hri_segment *segment; /* order and block_rows from pack on */
    /* cluster, nearest. y is written by cluster and read by nearest and the turns after. */
    const struct hri_points *points;
    float *y; /* [n][dims] */
    float
        *centroids; /* [k][dims]: cluster leaves those of the last assignment, nearest reads them */
    uint32_t *counts;  /* [k] rows of each, of cluster */
    uint32_t *nearest; /* [n] */
    uint32_t k, iterations;
    void *work; /* for the CPU */
    /* pack: the metric is points->metric */
    /* sketch */
    const struct hri_basis *basis;
    uint32_t lane; /* of the segment's first row */
};

/* A segment being added. */
enum hri_index_phase { HRI_INDEX_GROUP, HRI_INDEX_SUMMARISE, HRI_INDEX_SKETCH, HRI_INDEX_ADDED };
struct hri_index_adding {
    struct hri_index_head *head;
    struct hri_segment segment;
    uint32_t phase, end; /* enum hri_index_phase: now; done when it is reached */
    uint32_t turn;
    struct hri_index_job job; /* kind NONE: all is done */
};
/* Arguments as of hri_index_add. */
void hri_index_adding_init(struct hri_index_adding *adding, struct hri_index_head *head,
                           const float *k, const float *v, uint32_t n, uint32_t position_end,
                           void *workspace, uint32_t *order, uint32_t *block_rows);
/* After init, for the second half of what was begun with `end` HRI_INDEX_SKETCH (hri_index_add_begin, hri_index_add_end). */
void hri_index_adding_resume(struct hri_index_adding *adding, uint32_t n_blocks,
                             const float *weight);
/* Up to the next job. After an error the head is as after one of hri_index_add. */
hr_status_t hri_index_adding_next(struct hri_index_adding *adding);
/* The job, on the CPU. */
void hri_index_job_run(const struct hri_index_job *job);

/* -- results of jobs done elsewhere; of cluster and nearest they go where the job says -- */
struct hri_index_packed {
    const uint8_t *k_codes; /* as hri_centroids of the segment's blocks alone */
    const float *k_scale;   /* [n_blocks] */
    const int8_t *v_codes;  /* [n_blocks][v_dim] */
    const float *v_scale;   /* [n_blocks] */
    /* Of a block's rows |P (k - m)|^2: their sum and the largest, [n_blocks] */
    const float *square_sum, *square_most;
    const float
        *joint; /* [k_dim + v_dim][k_dim + v_dim] sum of (k - m | v - v_m) (k - m | v - v_m)' */
};
void hri_index_job_packed(const struct hri_index_job *job, const struct hri_index_packed *packed);

struct hri_index_sketched {
    const uint8_t *
        codes; /* groups of 16 lanes, the first holds job->lane; other rows' lanes are not looked at */
    const uint8_t *gain; /* [n_blocks] */
    /* Of a row in block order, [n]: |z|^2; |z - gain (z~ - mean z~)|^2; the same by the coordinates' lengths; |v - v_m|^2 */
    const float *far, *missed, *plain, *value;
};
void hri_index_job_sketched(const struct hri_index_job *job,
                            const struct hri_index_sketched *sketched);
/* length [k_dim]: the square of what a coordinate of 1 is long; inverse [basis->n]: 1 / step. */
void hri_sketch_lengths(const struct hri_basis *basis, uint32_t k_dim, float *length);
void hri_sketch_inverse(const struct hri_basis *basis, float *inverse);

#endif
