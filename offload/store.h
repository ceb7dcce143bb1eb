/* The store: host tier and file tier of one runtime, seen as lanes of cells.
 *
 * A lane is an append-only array of equal-size cells, one lane per (sequence, layer, kind): the
 * exact rows in token order ("log"), the blocks of the index in the recipe's codec ("blocks"). A
 * cell is a multiple of 4 KiB, the unit that is placed, written, checksummed and read. With a file
 * tier every cell is written to the file (the authoritative copy) and the host tier is a cache of
 * it; without one the host tier is the only copy and a full host tier is HR_ERR_BUDGET.
 *
 * Contract: a read gives exactly the bytes appended, or a status and the cells that are lost; never
 * anything else. Lengths of completed I/O are compared with what was asked; CRC-32C is verified on
 * every read from the file; a failed check is retried once.
 *
 * Threads: a store and its lanes belong to one thread at a time (its I/O may use threads inside).
 * Appends return when the data has been copied; writes go on in the background, bounded;
 * hri_store_flush waits for them.
 */
#ifndef HRI_STORE_H
#define HRI_STORE_H

#include "base/alloc.h"
#include "base/log.h"
#include <headrace/headrace.h>
#include <stdbool.h>

#define HRI_PAGE_BYTES     4096u
#define HRI_CELL_BYTES_MAX (1u << 20)

struct hri_store;
struct hri_lane;
struct hri_io_ops; /* offload/io_ops.h: open, read, write ..., so that tests can fail them */

struct hri_store_options {
    uint64_t host_bytes;
    const char *file_dir; /* NULL: no file tier */
    uint64_t file_bytes;  /* cap on physical bytes; the file is preallocated as extents are needed,
                             never beyond */
    hr_io_mode_t io_mode;
    const struct hri_io_ops *io; /* NULL: the real ones */
    struct hri_alloc *alloc;     /* tables, bounce and write buffers (scratch) */
    struct hri_log *log;
    uint32_t queue_depth; /* 0: 64 */
    /* A wait without a deadline ends after so long; an I/O that has no answer after twice as long is
     * given up, and the file tier with it. 0: 30 s */
    uint64_t timeout_ns;
    bool wipe; /* the file is overwritten with zeros before it is closed */
};
/* The file is created unlinked-on-close (O_TMPFILE where possible, else mkstemp + unlink), mode
 * 0600. */
hr_status_t hri_store_create(const struct hri_store_options *options, struct hri_store **store_out);
/* All lanes are destroyed; outstanding I/O is waited for. NULL is legal. */
void hri_store_destroy(struct hri_store *store);

/* Which cells give way first when the host tier is full: low before high, least recently used
 * first. */
enum hri_lane_priority { HRI_LANE_LOG = 0, HRI_LANE_BLOCKS = 1 };
struct hri_lane_options {
    uint32_t cell_bytes; /* multiple of HRI_PAGE_BYTES, at most HRI_CELL_BYTES_MAX */
    uint32_t cells_max;
    enum hri_lane_priority priority;
    uint64_t tag; /* for messages: (sequence << 32) | layer << 8 | kind */
};
hr_status_t hri_lane_create(struct hri_store *store, const struct hri_lane_options *options,
                            struct hri_lane **lane_out);
/* Frees its host cells and file extents. NULL is legal. */
void hri_lane_destroy(struct hri_lane *lane);
uint32_t hri_lane_cells(const struct hri_lane *lane);

/* Adds n_cells cells from data (n_cells * cell_bytes, any alignment; copied). All or nothing.
 * HR_ERR_FULL (cells_max), HR_ERR_BUDGET (host or file cap; the message names the tier), HR_ERR_IO.
 */
hr_status_t hri_lane_append(struct hri_lane *lane, const void *data, uint32_t n_cells,
                            uint32_t *first_out);
/* Forgets the cells from n_cells on (their space is reused). Batches that read them must be
 * finished or cancelled before. */
hr_status_t hri_lane_truncate(struct hri_lane *lane, uint32_t n_cells);

/* The cell's bytes if the host tier (or a write buffer) has them, else NULL. Valid until the next
 * append, truncate, flush or read with `cache` on this store; plain reads leave it alone. */
const void *hri_lane_peek(struct hri_lane *lane, uint32_t cell);
/* Lowest tier number that holds the cell: HR_TIER_HOST or HR_TIER_FILE. */
hr_tier_t hri_lane_where(const struct hri_lane *lane, uint32_t cell);
/* The same of many cells at once: in_memory[cell] for the cells first <= cell < end that the lane has, 1 where memory has it, else 0.
 * All cells of a lane that was not forked are in one run. Kept up to date; the array stays where it is as long as the
 * lane lives. */
struct hri_lane_run {
    const uint8_t *in_memory;
    uint32_t first, end;
};
struct hri_lane_run hri_lane_run_of(struct hri_lane *lane, uint32_t cell);

/* -- forks: lanes that share cells -- */
/* *fork_out has the same cells as *lane; nothing is copied. From there on each has its own end. *lane becomes another pointer. Fails with
 * HR_ERR_FULL when more than depth_max lanes would lie one on the other. Batches that read it must be finished before. */
hr_status_t hri_lane_fork(struct hri_lane **lane, uint32_t depth_max, struct hri_lane **fork_out);

/* -- reads, in batches -- */
struct hri_read {
    struct hri_lane *lane;
    uint32_t cell;    /* first cell */
    uint32_t n_cells; /* consecutive cells to read into dst; when 1, offset and bytes choose a part
                         of the cell */
    uint32_t offset, bytes; /* for n_cells == 1; bytes 0: the whole cell */
    void *dst;
    /* out */
    hr_status_t status; /* HR_OK once done */
    bool done;
    hr_tier_t tier;     /* where it came from */
    uint32_t bad_cell;  /* the first cell lost when status is not HR_OK */
    const void *from;   /* leave_host: where the bytes wait to be copied to dst, else NULL */
    uint32_t n_pending; /* private: cells that have not arrived */
};
struct hri_read_batch {
    struct hri_read *reads; /* the caller's, until the wait returned */
    uint32_t n_reads;
    bool cache; /* keep a host copy of what came from the file if there is room by priority */
    /* The kernel never writes straight to a dst, so that a cancel does not wait. What a cancelled read
     * still brings goes to the host tier, if there is room. */
    bool indirect;
    /* Parts of host cells (n_cells 1) are not copied: `from` says where they lie, as valid as what
     * hri_lane_peek gives, and the read counts as done. So the caller may share out the copying. */
    bool leave_host;
    /* out, and private */
    uint32_t n_pending;
    uint32_t n_begun, cells_begun; /* reads, and cells of the next one, that are on their way */
    int error;                     /* errno value of the last failed I/O */
    /* Whole cells count for the file, the part asked for the host. */
    uint64_t bytes_from_host, bytes_from_file, ios;
};
/* Starts all reads: host cells are copied at once, file cells are submitted (neighbours joined,
 * doubles read once). What finds the queue full starts in a later poll or wait. Several batches may
 * be under way. Fails only for bad arguments. */
hr_status_t hri_store_read_begin(struct hri_store *store, struct hri_read_batch *batch);
/* Takes completions without blocking. */
void hri_store_read_poll(struct hri_store *store, struct hri_read_batch *batch);
/* Until all are done, or deadline_ns (hri_now_ns; 0: the store's own time-out) has passed:
 * HR_ERR_TIMEOUT, and the batch is still under way: call again or hri_store_read_cancel. HR_ERR_CORRUPT / HR_ERR_IO when a
 * read failed for good (see its status). */
hr_status_t hri_store_read_wait(struct hri_store *store, struct hri_read_batch *batch,
                                uint64_t deadline_ns);
/* Gives the batch up: when this returns no dst will be written any more, unless the disk itself was given up (hri_store_gave_up). Waits
 * for what the kernel writes straight to a dst; never with `indirect`. */
void hri_store_read_cancel(struct hri_store *store, struct hri_read_batch *batch);
/* The file's disk gave no answer and was given up, for good: the kernel may still write to every dst that a read had until then, which so
 * must not be used or freed again (hri_lose). */
bool hri_store_gave_up(const struct hri_store *store);

/* Brings to the host tier what cancelled indirect reads have brought since: it comes too late for its step, not for the next. Like an
 * append it ends the validity of what hri_lane_peek gave. */
void hri_store_take_late(struct hri_store *store);

/* HR_ERR_IO, HR_ERR_TIMEOUT. */
hr_status_t hri_store_flush(struct hri_store *store);
uint64_t hri_store_timeout_ns(const struct hri_store *store);
/* Best effort: lets reads into [base, base + bytes) use registered buffers. The memory must stay
 * mapped until hri_store_unregister. */
void hri_store_register(struct hri_store *store, void *base, size_t bytes);
void hri_store_unregister(struct hri_store *store, void *base);

struct hri_store_stats {
    struct hr_tier_stats host, file;
    uint64_t file_reads, file_writes, file_bytes_read, file_bytes_written, crc_failures, retries;
    const char *io_mode; /* "uring", "uring-plain", "threads", "none" */
};
void hri_store_stats(const struct hri_store *store, struct hri_store_stats *stats_out);

/* What the probes find in a folder (headrace info): JSON object text into buf, truncated to its
 * size. */
hr_status_t hri_store_probe_json(const char *dir, char *buf, size_t buf_bytes);

#endif
