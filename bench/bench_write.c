/* Writing in a row, beside fio on the same disk: cells into the file tier, and a saved session with its fsync. Both sides write a new file
 * of the same size each time. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <headrace/headrace.h>

#include "base/half.h"
#include "base/rng.h"
#include "bench/fio.h"
#include "bench/measure.h"
#include "bench/process.h"
#include "bench/subjects.h"
#include "offload/store.h"

#define CELL_BYTES  65536u
#define NOISE_BYTES (16u << 20)
#define KV_HEADS    8u
#define DIM         128u
#define ROW_BYTES   (KV_HEADS * DIM * 4u)
#define CHUNK       1024u /* tokens */

struct write_bench {
    const struct hrb_options *options;
    uint64_t bytes;
    unsigned char *noise; /* [NOISE_BYTES + CELL_BYTES]: nothing below can make it smaller */
    uint64_t turn;
    hr_runtime_t *runtime;
    hr_sequence_t *sequence;
    char dir[512], fio_path[512];
    bool sync, direct; /* of fio */
    char reason[1024];
};

static double failed(struct write_bench *b, const char *what)
{
    snprintf(b->reason, sizeof b->reason, "%s: %s", what, hr_last_error());
    return -1;
}

static double run_fio(void *context)
{
    struct write_bench *b = context;
    double bandwidth;
    struct hrb_fio_job job = {.path = b->fio_path,
                              .rw = "write",
                              .more = b->sync ? "--end_fsync=1" : NULL,
                              .bytes = b->bytes,
                              .block_bytes = 1u << 20,
                              .depth = 32,
                              .direct = b->direct,
                              .same_data = true};
    int code = hrb_fio_run(&job, &bandwidth, b->reason, sizeof b->reason);
    unlink(b->fio_path);
    return code || bandwidth <= 0 ? -1 : 1e9 / bandwidth;
}

/* -- the file tier -- */

static hr_status_t append_all(struct write_bench *b, struct hri_store *store, struct hri_lane *lane)
{
    hr_status_t status = HR_OK;
    uint32_t at_once = 16, first;
    for (uint64_t i = 0; i < b->bytes / CELL_BYTES && status == HR_OK; i += at_once) {
        size_t at = (size_t)(b->turn++ * 4099 % (NOISE_BYTES - at_once * CELL_BYTES));
        status = hri_lane_append(lane, b->noise + at, at_once, &first);
    }
    return status == HR_OK ? hri_store_flush(store) : status;
}

static double run_tier(void *context)
{
    struct write_bench *b = context;
    struct hri_store *store = NULL;
    struct hri_lane *lane = NULL;
    struct hri_store_options options = {.host_bytes = 1u << 20,
                                        .file_dir = b->options->file_dir,
                                        .file_bytes = b->bytes + (128u << 20)};
    struct hri_lane_options lane_options = {.cell_bytes = CELL_BYTES,
                                            .cells_max = (uint32_t)(b->bytes / CELL_BYTES),
                                            .priority = HRI_LANE_LOG};
    if (hri_store_create(&options, &store) != HR_OK ||
        hri_lane_create(store, &lane_options, &lane) != HR_OK) {
        hri_store_destroy(store);
        return failed(b, "opening the store");
    }
    double start = hrb_seconds();
    hr_status_t status = append_all(b, store, lane);
    double took = hrb_seconds() - start;
    hri_lane_destroy(lane);
    hri_store_destroy(store);
    return status == HR_OK ? took / (double)b->bytes * 1e9 : failed(b, "writing cells");
}

/* -- a session -- */

static double run_save(void *context)
{
    struct write_bench *b = context;
    struct hr_save_options options;
    hr_save_options_init(&options);
    options.durability = HR_DURABILITY_STRICT;
    (void)hr_session_remove(b->dir);
    double start = hrb_seconds();
    if (hr_sequence_save(b->sequence, b->dir, &options) != HR_OK)
        return failed(b, "saving");
    return (hrb_seconds() - start) / (double)b->bytes * 1e9;
}

static hr_status_t fill(struct write_bench *b, uint32_t tokens)
{
    uint16_t *rows = (uint16_t *)(void *)b->noise;
    hr_status_t status = HR_OK;
    for (size_t i = 0; i < NOISE_BYTES / sizeof *rows; i++)
        rows[i] = hri_bf16_from_f32((float)rows[i] / 32768.0f - 1);
    for (uint32_t t = 0; t < tokens && status == HR_OK; t += CHUNK) {
        size_t at = (size_t)(b->turn++ * 4099 % (NOISE_BYTES / 4));
        struct hr_tensor k = hr_tensor_make(rows + at, HR_DTYPE_BF16, CHUNK, KV_HEADS, DIM);
        status = hr_sequence_append(b->sequence, 0, &k, &k, NULL);
    }
    return status;
}

/* Exact rows alone: what derived levels cost to make is not the disk's. */
static int open_sequence(struct write_bench *b)
{
    struct hr_runtime_options runtime;
    struct hr_sequence_options o;
    struct hr_session_info info = {.struct_size = sizeof info};
    uint32_t tokens = (uint32_t)(b->bytes / ROW_BYTES) / CHUNK * CHUNK;
    hr_runtime_options_init(&runtime);
    runtime.host_bytes = b->bytes + (64u << 20);
    runtime.n_threads = b->options->n_threads;
    hr_sequence_options_init(&o);
    o.n_layers = 1;
    o.n_q_heads = o.n_kv_heads = KV_HEADS;
    o.k_dim = o.v_dim = DIM;
    o.tokens_max = tokens;
    o.recipe = "full";
    if (hr_runtime_create(&runtime, &b->runtime) != HR_OK ||
        hr_sequence_create(b->runtime, &o, &b->sequence) != HR_OK || fill(b, tokens) != HR_OK ||
        run_save(b) < 0 || hr_session_info_get(b->dir, &info) != HR_OK) {
        (void)failed(b, "a sequence to save");
        return 1;
    }
    b->bytes = info.file_bytes;
    return 0;
}

/* -- both -- */

/* The faster of fio's two ways to a synced file is the limit. */
static int choose_fio(struct write_bench *b)
{
    double direct, cached;
    b->direct = true;
    direct = run_fio(b);
    b->direct = false;
    cached = direct > 0 ? run_fio(b) : -1;
    b->direct = direct < cached;
    return cached < 0;
}

static int compare(struct write_bench *b, hrb_run_fn ours, struct hrb_result *result)
{
    struct hrb_pair pair;
    if (hrb_measure(b->options, b->options->quick ? 3 : 9, ours, b, run_fio, b, &pair))
        return hrb_failed(result, "%s", *b->reason ? b->reason : "stopped");
    hrb_result_per_second(result, &pair, 1, "GB/s"); /* of seconds per GB */
    result->bytes = b->bytes;
    return 0;
}

int hrb_file_write(const struct hrb_benchmark *self, const struct hrb_options *options,
                   struct hrb_result *result)
{
    struct write_bench b = {.options = options,
                            .bytes = options->quick ? 256u << 20 : 1024u << 20,
                            .sync = self->variant == 1,
                            .direct = true};
    struct hri_rng rng;
    bool save = self->variant == 1;
    if (!hrb_program_exists("fio"))
        return hrb_skip(result, HRB_FIO_MISSING);
    b.noise = malloc(NOISE_BYTES + CELL_BYTES);
    if (b.noise == NULL)
        return hrb_failed(result, "no memory");
    hri_rng_seed(&rng, 8);
    for (size_t i = 0; i < (NOISE_BYTES + CELL_BYTES) / 8; i++) {
        uint64_t bits = hri_rng_u64(&rng);
        memcpy(b.noise + i * 8, &bits, sizeof bits);
    }
    snprintf(b.dir, sizeof b.dir, "%s/headrace-bench-%d.session", options->file_dir, (int)getpid());
    snprintf(b.fio_path, sizeof b.fio_path, "%s/headrace-bench-%d.fio", options->file_dir,
             (int)getpid());
    int code =
        save && (open_sequence(&b) || choose_fio(&b)) ? hrb_failed(result, "%s", b.reason) : 0;
    if (code == 0)
        code = compare(&b, save ? run_save : run_tier, result);
    result->limit_is = !save      ? "fio, io_uring, direct, 1 MiB at a time, 32 under way"
                       : b.direct ? "fio, io_uring, direct, 1 MiB at a time, fsync at the end"
                                  : "fio, io_uring, page cache, 1 MiB at a time, fsync at the end";
    hr_sequence_destroy(b.sequence);
    (void)hr_runtime_destroy(b.runtime);
    (void)hr_session_remove(b.dir);
    free(b.noise);
    return code;
}
