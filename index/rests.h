/* Rests: what the sketch leaves of a row's value, 2 bits per dimension with a step of the row's own, in host memory (docs/algorithm.md,
 * level 1).
 *
 * Where keys are coded well, most of what a sketched row is off by is its value. A rest costs an eighth of the row's int8 codes and mends
 * seven eighths of that: the row keeps the weight that its sketch gives it, and v_m + V z~ + the rest stands for its value. So a step may take a row's rest
 * or all of it, whichever removes more error for its bytes.
 *
 * Only where all rows lie in host memory: there a few bytes of a row can move alone. Threads: as a head's tables.
 */
#ifndef HRI_INDEX_RESTS_H
#define HRI_INDEX_RESTS_H

#include "index/selector_ops.h"

struct hri_basis;
struct hri_image;
struct hri_index_head;

struct hri_rests {
    /* [lanes_max][v_dim / 4] host: dimensions j, j + v_dim / 4 and so on from the lowest bits on; 0 to 3 are -1.5 to 1.5 steps. NULL: none
     * are kept. */
    uint8_t *codes;
    uint8_t
        *step; /* [lanes_max] host: its square over value_rest / v_dim of the basis, log coded */
    uint32_t bytes;       /* what a rest moves; 0: none are kept */
    uint32_t first_block; /* blocks before it have none: they came with a session that kept none */
};
/* Of what a rest mends so much is left: the distortion of four levels. */
#define HRI_REST_LEFT 0.12f

bool hri_rests_wanted(const struct hri_index_options *options);
/* False: no memory. */
bool hri_rests_create(const struct hri_index_options *options, uint32_t lanes,
                      struct hri_rests *rests);
void hri_rests_destroy(const struct hri_index_options *options, struct hri_rests *rests);
/* Of the blocks there are. */
uint64_t hri_rests_held(const struct hri_index_head *head);
/* Lanes [first, end) will have no rows. */
void hri_rests_pass(struct hri_index_head *head, uint32_t first, uint32_t end);
/* Of n rows that are coded in the lanes from `lane` on: values [n][v_dim] v - v_m. work: hri_rests_work_bytes. */
size_t hri_rests_work_bytes(const struct hri_index_options *options);
void hri_rests_add(struct hri_index_head *head, const struct hri_basis *basis, const float *values,
                   uint32_t lane, uint32_t n, void *work);
/* Says that a lane's rest is wanted soon: brings it into the caches. */
void hri_rests_ahead(const struct hri_index_head *head, uint32_t lane);
/* Adds to sum [G][v_dim] what the rests of n lanes of blocks of a basis (at most HRI_RESTS_AT_ONCE) weigh: weight [G][stride], by lane. */
#define HRI_RESTS_AT_ONCE 64u
void hri_rests_sum(const struct hri_index_head *head, const struct hri_basis *basis,
                   const uint32_t *lane, uint32_t n, const float *weight, size_t stride,
                   float *sum);
/* Lanes of the blocks there are end with `end`. A head that keeps none passes over what another kept. */
void hri_rests_image(struct hri_index_head *head, uint32_t end, struct hri_image *image);

#endif
