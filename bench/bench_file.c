/* The file tier's random block reads beside fio with the same job: same folder, block size,
 * depth, direct I/O. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/rng.h"
#include "bench/fio.h"
#include "bench/measure.h"
#include "bench/process.h"
#include "bench/subjects.h"
#include "offload/store.h"

#define BATCH 128 /* reads handed over at once */
#define SLOTS                                                                                      \
    2 /* batches under way: while one is waited for, the next keeps the queue full, as fio does */

struct file_bench {
    const struct hrb_options *options;
    struct hri_store *store;
    struct hri_lane *lane;
    uint32_t cell_bytes, n_cells, depth;
    unsigned batches;
    struct hri_region memory; /* [SLOTS][BATCH][cell_bytes] */
    struct hri_read *reads;   /* [SLOTS][BATCH] */
    struct hri_read_batch slots[SLOTS];
    struct hri_rng rng;
    char fio_path[512];
    char reason[1024];
};

/* ----------------------------------------------------------------------------------------- ours */

/* Each cell starts with its number; the rest is noise, so that no layer below can make it
 * smaller. */
static int write_cells(struct file_bench *b)
{
    uint64_t *cell = malloc(b->cell_bytes);
    hr_status_t status = cell ? HR_OK : HR_ERR_NOMEM;
    uint32_t first;
    for (uint32_t i = 0; i < b->n_cells && status == HR_OK; i++) {
        for (uint32_t j = 1; j < b->cell_bytes / 8; j++)
            cell[j] = hri_rng_u64(&b->rng);
        cell[0] = i;
        status = hri_lane_append(b->lane, cell, 1, &first);
    }
    free(cell);
    if (status == HR_OK)
        status = hri_store_flush(b->store);
    if (status != HR_OK)
        snprintf(b->reason, sizeof b->reason, "writing the cells: %s", hr_last_error());
    return status != HR_OK;
}

static int open_ours(struct file_bench *b, uint64_t bytes)
{
    struct hri_store_options options = {
        .host_bytes = 1u << 20,
        .file_dir = b->options->file_dir,
        .file_bytes = bytes + bytes / 8 + (64u << 20),
        .io_mode = HR_IO_AUTO,
        .queue_depth = b->depth,
    };
    struct hri_lane_options lane = {
        .cell_bytes = b->cell_bytes, .cells_max = b->n_cells, .priority = HRI_LANE_BLOCKS};
    hr_status_t status = hri_store_create(&options, &b->store);
    if (status == HR_OK)
        status = hri_lane_create(b->store, &lane, &b->lane);
    if (status == HR_OK)
        status = hri_region_alloc(NULL, (size_t)SLOTS * BATCH * b->cell_bytes, &b->memory);
    b->reads = calloc((size_t)SLOTS * BATCH, sizeof *b->reads);
    if (status != HR_OK || !b->reads) {
        snprintf(b->reason, sizeof b->reason, "opening the store: %s", hr_last_error());
        return 1;
    }
    hri_store_register(b->store, b->memory.base, b->memory.bytes);
    return write_cells(b);
}

static int begin_batch(struct file_bench *b, unsigned slot)
{
    struct hri_read *reads = b->reads + (size_t)slot * BATCH;
    unsigned char *memory = (unsigned char *)b->memory.base + (size_t)slot * BATCH * b->cell_bytes;
    for (unsigned i = 0; i < BATCH; i++) {
        reads[i] = (struct hri_read){.lane = b->lane,
                                     .n_cells = 1,
                                     .cell = (uint32_t)hri_rng_below(&b->rng, b->n_cells),
                                     .dst = memory + (size_t)i * b->cell_bytes};
    }
    b->slots[slot] = (struct hri_read_batch){.reads = reads, .n_reads = BATCH};
    if (hri_store_read_begin(b->store, &b->slots[slot]) == HR_OK)
        return 0;
    snprintf(b->reason, sizeof b->reason, "reading: %s", hr_last_error());
    return 1;
}

static int end_batch(struct file_bench *b, unsigned slot)
{
    const struct hri_read *reads = b->slots[slot].reads;
    if (hri_store_read_wait(b->store, &b->slots[slot], 0) != HR_OK) {
        snprintf(b->reason, sizeof b->reason, "reading: %s", hr_last_error());
        return 1;
    }
    for (unsigned i = 0; i < BATCH; i++) {
        uint64_t number;
        memcpy(&number, reads[i].dst, sizeof number);
        if (number != reads[i].cell) {
            snprintf(b->reason, sizeof b->reason, "cell %u came back as %llu", reads[i].cell,
                     (unsigned long long)number);
            return 1;
        }
    }
    return 0;
}

/* Seconds per gigabyte, so that runs of different size compare. */
static double run_ours(void *context)
{
    struct file_bench *b = context;
    double start = hrb_seconds();
    unsigned begun = 0;
    for (; begun < SLOTS && begun < b->batches; begun++) {
        if (begin_batch(b, begun))
            return -1;
    }
    for (unsigned ended = 0; ended < b->batches; ended++) {
        if (end_batch(b, ended % SLOTS) || (begun < b->batches && begin_batch(b, begun++ % SLOTS)))
            return -1;
    }
    double bytes = (double)b->batches * BATCH * b->cell_bytes;
    return (hrb_seconds() - start) / bytes * 1e9;
}

/* ------------------------------------------------------------------------------------------ fio */

static int run_fio(struct file_bench *b, const char *rw, const char *more, double *bandwidth_out)
{
    struct hrb_fio_job job = {.path = b->fio_path,
                              .rw = rw,
                              .more = more,
                              .bytes = (uint64_t)b->n_cells * b->cell_bytes,
                              .block_bytes = strcmp(rw, "write") == 0 ? 1u << 20 : b->cell_bytes,
                              .depth = b->depth,
                              .direct = true};
    return hrb_fio_run(&job, bandwidth_out, b->reason, sizeof b->reason);
}

static double run_peer(void *context)
{
    struct file_bench *b = context;
    char amount[64];
    double bandwidth;
    snprintf(amount, sizeof amount, "--io_size=%llu",
             (unsigned long long)b->batches * BATCH * b->cell_bytes);
    if (run_fio(b, "randread", amount, &bandwidth) || bandwidth <= 0)
        return -1;
    return 1e9 / bandwidth;
}

/* ------------------------------------------------------------------------------------ benchmark */

static int compare_with_fio(struct file_bench *b, struct hrb_result *result)
{
    struct hrb_pair pair;
    double ignored;
    struct hri_store_stats stats;
    if (run_fio(b, "write", "--end_fsync=1", &ignored))
        return hrb_failed(result, "%s", b->reason);
    if (hrb_measure(b->options, b->options->quick ? 3 : 9, run_ours, b, run_peer, b, &pair))
        return hrb_failed(result, "%s", *b->reason ? b->reason : "stopped");
    hri_store_stats(b->store, &stats);
    hrb_result_per_second(result, &pair, 1, "GB/s"); /* of seconds per GB */
    result->bytes = (uint64_t)b->batches * BATCH * b->cell_bytes;
    result->limit_is = "fio, io_uring, registered file and buffers, the same depth";
    result->details = cJSON_CreateObject();
    cJSON_AddStringToObject(result->details, "io_mode", stats.io_mode);
    cJSON_AddNumberToObject(result->details, "block_bytes", b->cell_bytes);
    cJSON_AddNumberToObject(result->details, "queue_depth", b->depth);
    return 0;
}

int hrb_file_read(const struct hrb_benchmark *self, const struct hrb_options *options,
                  struct hrb_result *result)
{
    if (!hrb_program_exists("fio"))
        return hrb_skip(result, HRB_FIO_MISSING);
    struct file_bench b = {.options = options,
                           .cell_bytes = (uint32_t)self->variant % 1000 * 1024,
                           .depth = (uint32_t)self->variant / 1000};
    uint64_t bytes = options->quick ? 256u << 20 : 1024u << 20;
    /* Small reads take long, alone they take longest. */
    uint64_t read = b.cell_bytes >= 32768
                        ? (options->quick ? 256u << 20 : 768u << 20)
                        : (options->quick ? 1u << 20 : 2u << 20) * (b.depth + 8ull);
    b.n_cells = (uint32_t)(bytes / b.cell_bytes);
    b.batches = (unsigned)(read / (BATCH * b.cell_bytes));
    b.batches = b.batches ? b.batches : 1;
    hri_rng_seed(&b.rng, 5);
    snprintf(b.fio_path, sizeof b.fio_path, "%s/headrace-bench-%d.fio", options->file_dir,
             (int)getpid());
    int code =
        open_ours(&b, bytes) ? hrb_failed(result, "%s", b.reason) : compare_with_fio(&b, result);
    unlink(b.fio_path);
    hri_store_destroy(b.store);
    hri_region_free(NULL, &b.memory);
    free(b.reads);
    return code;
}
