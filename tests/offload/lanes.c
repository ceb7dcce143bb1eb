#include "tests/offload/lanes.h"

#include <unistd.h>

static uint64_t model_word(uint64_t seed, uint32_t index)
{
    uint64_t word = (seed + index + 1) * 0x9e3779b97f4a7c15u;
    return word ^ word >> 29;
}

void model_bytes(uint64_t seed, uint32_t offset, void *out, uint32_t bytes)
{
    unsigned char *to = out;
    uint32_t n_words = bytes / 8;
    for (uint32_t i = 0; i < n_words; i++) {
        uint64_t word = model_word(seed, offset / 8 + i);
        memcpy(to + 8 * (size_t)i, &word, 8);
    }
    uint64_t last = model_word(seed, offset / 8 + n_words);
    memcpy(to + 8 * (size_t)n_words, &last, bytes % 8);
}

bool model_equal(uint64_t seed, uint32_t offset, const void *bytes, uint32_t n_bytes)
{
    unsigned char expected[4096];
    const unsigned char *from = bytes;
    while (n_bytes > 0) {
        uint32_t part = n_bytes < sizeof expected ? n_bytes : (uint32_t)sizeof expected;
        model_bytes(seed, offset, expected, part);
        if (memcmp(from, expected, part) != 0)
            return false;
        from += part;
        offset += part;
        n_bytes -= part;
    }
    return true;
}

const char *model_dir(bool shm)
{
    return shm && access("/dev/shm", W_OK) == 0 ? "/dev/shm" : HR_BINARY_DIR;
}

void model_create(struct hri_store *store, struct model_lane *lane, uint32_t cell_bytes,
                  enum hri_lane_priority priority, uint64_t tag)
{
    struct hri_lane_options options = {
        .cell_bytes = cell_bytes,
        .cells_max = MODEL_CELLS_MAX,
        .priority = priority,
        .tag = tag,
    };
    memset(lane, 0, sizeof *lane);
    assert_ok(hri_lane_create(store, &options, &lane->lane));
    lane->cell_bytes = cell_bytes;
    lane->tag = tag;
}

void model_destroy(struct model_lane *lane)
{
    hri_lane_destroy(lane->lane);
    memset(lane, 0, sizeof *lane);
}

hr_status_t model_append(struct model_lane *lane, struct hri_rng *rng, uint32_t n_cells)
{
    unsigned char *data = malloc((size_t)n_cells * lane->cell_bytes + 16);
    uint64_t *seeds = malloc((n_cells + 1) * sizeof *seeds);
    unsigned char *from = data + hri_rng_below(rng, 16);
    for (uint32_t i = 0; i < n_cells; i++) {
        seeds[i] = hri_rng_u64(rng);
        model_bytes(seeds[i], 0, from + (size_t)i * lane->cell_bytes, lane->cell_bytes);
    }
    uint32_t first = UINT32_MAX;
    hr_status_t status = hri_lane_append(lane->lane, from, n_cells, &first);
    if (status == HR_OK) {
        assert_int_equal(first, lane->n_cells);
        memcpy(lane->seeds + first, seeds, n_cells * sizeof *seeds);
        lane->n_cells += n_cells;
    } else {
        assert_int_equal(first, UINT32_MAX);
    }
    assert_int_equal(hri_lane_cells(lane->lane), lane->n_cells);
    free(seeds);
    free(data);
    return status;
}

void model_truncate(struct model_lane *lane, uint32_t n_cells)
{
    assert_ok(hri_lane_truncate(lane->lane, n_cells));
    lane->n_cells = n_cells;
}

/* Whole cells, runs of cells, parts; aligned and unaligned memory. */
static void random_read(struct model_batch *batch, uint32_t i, const struct model_lane *lane,
                        struct hri_rng *rng)
{
    struct hri_read *read = &batch->reads[i];
    *read = (struct hri_read){.lane = lane->lane, .n_cells = 1};
    read->cell = (uint32_t)hri_rng_below(rng, lane->n_cells);
    uint64_t kind = hri_rng_below(rng, 4);
    if (kind == 0) {
        uint32_t left = lane->n_cells - read->cell;
        read->n_cells = 1 + (uint32_t)hri_rng_below(rng, left < 40 ? left : 40);
    } else if (kind == 1) {
        read->offset = 8 * (uint32_t)hri_rng_below(rng, lane->cell_bytes / 8);
        read->bytes = 1 + (uint32_t)hri_rng_below(rng, lane->cell_bytes - read->offset);
    }
    size_t bytes = (size_t)read->n_cells * lane->cell_bytes;
    assert_int_equal(posix_memalign((void **)&batch->memory[i], 4096, bytes + 64), 0);
    memset(batch->memory[i], 0xee, bytes + 64);
    read->dst = batch->memory[i] + (kind == 3 ? 1 + hri_rng_below(rng, 63) : 0);
    batch->lanes[i] = lane;
}

void model_batch_begin(struct hri_store *store, struct model_batch *batch,
                       const struct model_lane *lanes, uint32_t n_lanes, struct hri_rng *rng,
                       uint32_t n_reads)
{
    memset(&batch->batch, 0, sizeof batch->batch);
    batch->batch.reads = batch->reads;
    batch->batch.cache = hri_rng_below(rng, 2) == 0;
    for (uint32_t i = 0; i < n_reads; i++) {
        const struct model_lane *lane = &lanes[hri_rng_below(rng, n_lanes)];
        if (lane->lane == NULL || lane->n_cells == 0)
            continue;
        random_read(batch, batch->batch.n_reads++, lane, rng);
    }
    assert_ok(hri_store_read_begin(store, &batch->batch));
}

static bool read_equal(const struct hri_read *read, const struct model_lane *lane)
{
    const unsigned char *at = read->dst;
    if (read->n_cells == 1 && read->bytes)
        return model_equal(lane->seeds[read->cell], read->offset, at, read->bytes);
    for (uint32_t i = 0; i < read->n_cells; i++)
        if (!model_equal(lane->seeds[read->cell + i], 0, at + (size_t)i * lane->cell_bytes,
                         lane->cell_bytes))
            return false;
    return true;
}

uint32_t model_batch_check(struct model_batch *batch)
{
    uint32_t n_failed = 0;
    for (uint32_t i = 0; i < batch->batch.n_reads; i++) {
        const struct hri_read *read = &batch->reads[i];
        assert_true(read->done);
        if (read->status != HR_OK)
            n_failed++;
        else if (!read_equal(read, batch->lanes[i]))
            fail_msg("wrong bytes: lane %llx cell %u n_cells %u offset %u bytes %u",
                     (unsigned long long)batch->lanes[i]->tag, read->cell, read->n_cells,
                     read->offset, read->bytes);
        free(batch->memory[i]);
    }
    return n_failed;
}

hr_status_t model_batch_end(struct hri_store *store, struct model_batch *batch,
                            uint32_t *n_failed_out)
{
    hr_status_t status = hri_store_read_wait(store, &batch->batch, 0);
    assert_int_equal(batch->batch.n_pending, 0);
    *n_failed_out = model_batch_check(batch);
    assert_true((status == HR_OK) == (*n_failed_out == 0));
    return status;
}

uint32_t model_verify(struct hri_store *store, const struct model_lane *lane)
{
    uint32_t n_failed = 0;
    unsigned char *memory = NULL;
    assert_int_equal(posix_memalign((void **)&memory, 4096, lane->cell_bytes), 0);
    for (uint32_t i = 0; i < lane->n_cells; i++) {
        struct hri_read read = {.lane = lane->lane, .cell = i, .n_cells = 1, .dst = memory};
        struct hri_read_batch batch = {.reads = &read, .n_reads = 1};
        assert_ok(hri_store_read_begin(store, &batch));
        hr_status_t status = hri_store_read_wait(store, &batch, 0);
        assert_int_equal(status, read.status);
        if (status != HR_OK) {
            assert_int_equal(read.bad_cell, i);
            n_failed++;
        } else if (!model_equal(lane->seeds[i], 0, memory, lane->cell_bytes)) {
            fail_msg("wrong bytes: lane %llx cell %u", (unsigned long long)lane->tag, i);
        }
    }
    free(memory);
    return n_failed;
}
