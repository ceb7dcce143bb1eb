/* Lanes with a naive model beside them: every cell's bytes follow from a seed, the model keeps only
 * the seeds. */
#ifndef HR_TESTS_OFFLOAD_LANES_H
#define HR_TESTS_OFFLOAD_LANES_H

#include "tests/test.h"

#include "base/rng.h"
#include "offload/store.h"

#define MODEL_CELLS_MAX 512u

struct model_lane {
    struct hri_lane *lane; /* NULL: none */
    uint32_t cell_bytes, n_cells;
    uint64_t tag;
    uint64_t seeds[MODEL_CELLS_MAX];
};

/* The bytes [offset, offset + bytes) of the cell with this seed; offset a multiple of 8. */
void model_bytes(uint64_t seed, uint32_t offset, void *out, uint32_t bytes);
bool model_equal(uint64_t seed, uint32_t offset, const void *bytes, uint32_t n_bytes);

/* The folder of file tiers in tests: on a disk, or (shm) in memory, where direct I/O is refused. */
const char *model_dir(bool shm);

void model_create(struct hri_store *store, struct model_lane *lane, uint32_t cell_bytes,
                  enum hri_lane_priority priority, uint64_t tag);
void model_destroy(struct model_lane *lane);
/* Appends n cells with seeds from rng. On success the model follows. */
hr_status_t model_append(struct model_lane *lane, struct hri_rng *rng, uint32_t n_cells);
void model_truncate(struct model_lane *lane, uint32_t n_cells);

/* A batch of random reads with memory of its own. */
struct model_batch {
    struct hri_read reads[64];
    const struct model_lane *lanes[64];
    unsigned char *memory[64];
    struct hri_read_batch batch;
};
void model_batch_begin(struct hri_store *store, struct model_batch *batch,
                       const struct model_lane *lanes, uint32_t n_lanes, struct hri_rng *rng,
                       uint32_t n_reads);
/* Checks every read that says HR_OK; the number of others. Frees the memory. */
uint32_t model_batch_check(struct model_batch *batch);
/* Waits without a deadline, then checks. */
hr_status_t model_batch_end(struct hri_store *store, struct model_batch *batch,
                            uint32_t *n_failed_out);

/* Reads every cell of the lane alone and checks it; the number of cells that failed. */
uint32_t model_verify(struct hri_store *store, const struct model_lane *lane);

#endif
