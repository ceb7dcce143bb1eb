/*
 * The store's inside, shared by offload/store*.c.
 *
 *   lane    cells [n_cells]: checksum, where the bytes are, what is going on with them
 *           extents: where each run of cells lies in the file, in grains
 *   host    one region cut into slabs; a slab holds slots of one size (class); clean slots wait in
 *           a list by last use
 *   file    grains of 64 KiB, a bitmap of those in use; preallocated in steps
 *   op      one request to the disk: a run of neighbouring cells of a lane. Reads wait in a queue
 *           until the disk has room, and pieces (one per cell and caller) hang on them; writes hold
 *           their cells in memory until they are done
 *
 * A cell is in memory (host slot, or the buffer of its write) or in the file, or both; `dirty` says
 * not yet in the file.
 */
#ifndef HRI_OFFLOAD_STORE_IMPL_H
#define HRI_OFFLOAD_STORE_IMPL_H

#include "offload/disk.h"
#include "offload/io_guard.h"
#include "offload/store.h"

#define HRI_NONE                 UINT32_MAX
#define HRI_RUN_CELLS_MAX        HRI_DISK_IOV_MAX
#define HRI_RUN_BYTES_MAX        (256u * 1024u)
#define HRI_READ_OPS             256u
#define HRI_WRITE_OPS            64u
#define HRI_OPS                  (HRI_READ_OPS + HRI_WRITE_OPS)
#define HRI_PIECES               4096u
#define HRI_GRAIN_BYTES          65536u
#define HRI_CLASSES_MAX          32u
#define HRI_PRIORITIES           2u
#define HRI_READ_ARENA_BYTES_MAX (8u << 20)
#define HRI_WRITE_ARENA_BYTES    (16u << 20) /* what a disk needs in hand while nobody appends */

/* Pages handed out in runs, by a bitmap: bounce and write buffers. */
struct hri_page_arena {
    struct hri_region region;
    uint64_t *used; /* [n_pages / 64] bitmap */
    uint32_t n_pages, n_used, hint;
    bool leak; /* the kernel may still write here: never unmapped */
};

/* Unwritten: dirty, in a host slot, and no write is under way or failed: the tier was out of service. */
enum { HRI_CELL_DIRTY = 1, HRI_CELL_READING = 2, HRI_CELL_UNWRITTEN = 4 };

struct hri_cell {
    uint32_t crc;
    uint32_t slot; /* host slot or HRI_NONE */
    uint16_t op;   /* with DIRTY its write (no file: unused), with READING its read */
    uint16_t flags;
};

struct hri_lane {
    struct hri_store *store;
    struct hri_lane *prev, *next;
    uint64_t tag;
    uint32_t cell_bytes, cells_max, n_cells;
    uint32_t
        n_made; /* entries of cells and in_memory below are zero or in use; those above were never touched */
    /* Forks: cells below base_cells are base's. A lane that others are based on changes no more; its handle is gone, and it goes with
     * the last of them. */
    struct hri_lane *base;
    uint32_t base_cells, refs;
    uint32_t class_index;
    uint32_t priority;
    uint32_t extent_cells, extent_grains, n_extents;
    uint32_t n_writes, n_reads; /* operations under way, failed writes not counted */
    uint32_t n_unwritten;       /* cells */
    uint32_t *extents; /* [ceil(cells_max / extent_cells)] first grain; before base_cells unused */
    struct hri_cell *cells; /* [cells_max], the same */
    uint8_t *in_memory;     /* [cells_max] of each cell: see hri_cell_note */
};

/* One slot of the host tier; lane NULL: free, next links the slab's free slots. */
struct hri_slot {
    struct hri_lane *lane;
    uint64_t tick; /* of its last use */
    uint32_t cell;
    uint32_t prev, next; /* in its class's list of clean slots */
};

struct hri_slab {
    uint32_t class_index; /* HRI_NONE: free */
    uint32_t n_used, free_slot;
    uint32_t prev, next; /* in its class's list of slabs with free slots, or in the free list */
};

struct hri_slot_list {
    uint32_t oldest, newest;
};

struct hri_slot_class {
    uint32_t cell_bytes; /* 0: free */
    uint32_t n_lanes;
    uint32_t slab_slots;
    uint32_t partial; /* first slab with free slots */
    struct hri_slot_list clean[HRI_PRIORITIES];
};

struct hri_host {
    struct hri_alloc alloc; /* the tier's budget */
    struct hri_region region, slot_region;
    uint32_t slab_bytes, n_slabs, slab_stride; /* slot number = slab * stride + place */
    uint32_t free_slab;
    struct hri_slab *slabs; /* [n_slabs] */
    struct hri_slot *slots; /* [n_slabs * stride] */
    struct hri_slot_class classes[HRI_CLASSES_MAX];
    uint64_t tick;
    uint64_t held_bytes, peak_bytes;
    bool sole; /* the file is dead: clean cells are the only copy, too */
};

struct hri_file {
    int fd;      /* -1: no file tier */
    bool in_use; /* by a thread that was given up: fd is never closed */
    bool direct;
    uint32_t memory_align, offset_align;
    uint64_t cap_bytes;
    uint64_t *used;    /* [n_grains / 64] bitmap */
    uint32_t n_grains; /* that fit under the cap */
    uint32_t n_made;   /* preallocated */
    uint32_t n_used, hint;
    uint64_t peak_bytes; /* physical */
    bool no_fallocate;
    bool wipe;
};

/* A cell wanted by one read of one batch. */
struct hri_piece {
    struct hri_read_batch *batch;
    struct hri_read *read;
    uint32_t cell;
    uint32_t next;
};

enum hri_op_state {
    HRI_OP_FREE,
    HRI_OP_QUEUED,
    HRI_OP_FLYING,
    HRI_OP_AGAIN,
    HRI_OP_FAILED,
    HRI_OP_KEPT
};

struct hri_op {
    struct hri_disk_request request; /* first: a request that came back is its op */
    struct hri_lane *lane;
    struct hri_op *prev,
        *next; /* queue of reads that wait, or list of failed writes; next also links free ops */
    enum hri_op_state state;
    uint32_t first_cell, n_cells;
    uint32_t pieces;       /* list */
    uint32_t solo;         /* second try: index of the cell that is read alone, else HRI_NONE */
    uint32_t bad_mask;     /* cells that failed the first try */
    uint32_t good_mask;    /* cells that came right */
    bool trial;            /* a write while the tier is out of service */
    bool keep;             /* somebody gave up on it: what comes goes to the host tier */
    unsigned char *bounce; /* pages of the read arena */
    uint32_t bounce_pages;
    unsigned char *memory[HRI_RUN_CELLS_MAX]; /* where each cell's bytes are or go */
};

struct hri_op_list {
    struct hri_op *first, *last;
};

static inline void hri_op_list_add(struct hri_op_list *list, struct hri_op *op)
{
    op->next = NULL;
    op->prev = list->last;
    if (list->last != NULL)
        list->last->next = op;
    else
        list->first = op;
    list->last = op;
}

static inline void hri_op_list_add_first(struct hri_op_list *list, struct hri_op *op)
{
    op->prev = NULL;
    op->next = list->first;
    if (list->first != NULL)
        list->first->prev = op;
    else
        list->last = op;
    list->first = op;
}

static inline void hri_op_list_remove(struct hri_op_list *list, struct hri_op *op)
{
    if (op->prev != NULL)
        op->prev->next = op->next;
    else
        list->first = op->next;
    if (op->next != NULL)
        op->next->prev = op->prev;
    else
        list->last = op->prev;
}

struct hri_store {
    struct hri_alloc *alloc;
    struct hri_log *log;
    const struct hri_io_ops *io;
    struct hri_disk *read_disk, *write_disk;
    struct hri_host host;
    struct hri_file file;
    struct hri_page_arena read_arena, write_arena;
    struct hri_op *ops; /* [HRI_OPS]: reads, then writes */
    struct hri_op *free_reads, *free_writes;
    struct hri_op_list queue;  /* reads waiting for the disk */
    struct hri_op_list kept;   /* reads that came too late; their cells are in the bounce buffers */
    uint32_t n_kept_wanted;    /* operations with keep, under way or in the list */
    struct hri_op_list failed; /* writes to try again; their cells are safe in memory */
    struct hri_piece *pieces;  /* [HRI_PIECES] */
    uint32_t free_piece;
    struct hri_lane *lanes;
    int write_error; /* errno value of the last failed write */
    bool out;        /* of service: new cells stay in host memory (store_service.c) */
    bool said_lost;
    uint64_t retry_ns; /* when a write is tried again */
    uint32_t n_unwritten;
    char out_why[128];
    uint64_t timeout_ns;
    struct hri_io_guard *guard; /* of io; NULL without a file tier */
    struct hri_store_stats counts;
};

/* store_pages.c */
hr_status_t hri_page_arena_init(struct hri_page_arena *arena, struct hri_alloc *alloc,
                                size_t bytes);
void hri_page_arena_fini(struct hri_page_arena *arena, struct hri_alloc *alloc);
void *hri_page_arena_take(struct hri_page_arena *arena, uint32_t n_pages); /* NULL: no such run */
void hri_page_arena_put(struct hri_page_arena *arena, void *pages, uint32_t n_pages);
bool hri_page_arena_holds(const struct hri_page_arena *arena, const void *at);
/* First run of n zero bits below limit, from hint on, then from 0; HRI_NONE when there is none. */
uint32_t hri_bits_find(const uint64_t *bits, uint32_t limit, uint32_t hint, uint32_t n);
void hri_bits_set(uint64_t *bits, uint32_t first, uint32_t n, bool value);

/* store_host.c */
hr_status_t hri_host_init(struct hri_store *store, uint64_t bytes);
void hri_host_fini(struct hri_store *store);
/* HR_ERR_FULL: too many different cell sizes. */
hr_status_t hri_host_class_get(struct hri_host *host, uint32_t cell_bytes, uint32_t *class_out);
void hri_host_class_put(struct hri_host *host, uint32_t class_index);
/* A slot for the cell, evicting clean cells that are worth no more; HRI_NONE when there is none.
 * Not in the clean list yet. */
uint32_t hri_host_take(struct hri_host *host, struct hri_lane *lane, uint32_t cell);
void hri_host_put(struct hri_host *host, uint32_t slot); /* not in the clean list */
void hri_host_clean(struct hri_host *host,
                    uint32_t slot); /* may be evicted from now on, last used now */
void hri_host_unclean(struct hri_host *host, uint32_t slot); /* takes it out of the clean list */
void hri_host_touch(struct hri_host *host, uint32_t slot);   /* of a clean slot */
unsigned char *hri_host_memory(const struct hri_host *host, uint32_t slot);

/* store_file.c */
hr_status_t hri_file_init(struct hri_store *store, const struct hri_store_options *options);
void hri_file_fini(struct hri_store *store);
hr_status_t hri_file_take(struct hri_store *store, uint32_t n_grains, uint32_t *first_out);
void hri_file_put(struct hri_store *store, uint32_t first, uint32_t n_grains);
void hri_file_layout(const struct hri_file *file, uint32_t cell_bytes, uint32_t *grains_out,
                     uint32_t *cells_out);

/* store_write.c */
/* The op of the cell's write, or HRI_NONE with *status_out. memory holds the bytes. Joined to
 * *open_op where it fits. */
hr_status_t hri_write_add(struct hri_store *store, struct hri_lane *lane, uint32_t cell,
                          unsigned char *memory, struct hri_op **open_op);
void hri_write_close(struct hri_store *store, struct hri_op **open_op);
hr_status_t hri_write_buffer(struct hri_store *store, uint32_t bytes, unsigned char **memory_out);
void hri_write_reap(struct hri_store *store, uint64_t wait_ns);
void hri_write_wait_lane(struct hri_store *store, const struct hri_lane *lane);
void hri_write_forget(struct hri_store *store, struct hri_lane *lane,
                      uint32_t n_cells); /* failed writes of cells from n_cells on */
void hri_write_submit(struct hri_store *store, struct hri_op *op);
/* A free operation for cells of the lane from first_cell on; NULL: none. */
struct hri_op *hri_write_op(struct hri_store *store, struct hri_lane *lane, uint32_t first_cell);
bool hri_write_fits(const struct hri_op *op, const struct hri_lane *lane, uint32_t cell);
hr_status_t hri_write_wait_all(struct hri_store *store); /* HR_ERR_TIMEOUT */

/* store_service.c */
/* One log line, the first time. */
void hri_tier_out(struct hri_store *store, const char *why, ...)
    __attribute__((format(printf, 2, 3)));
/* A write came through: what waits follows. */
void hri_tier_back(struct hri_store *store);
/* Once a second, while the tier is out: one write is tried again. Does not wait. */
void hri_tier_try(struct hri_store *store);
/* Tries all that waits again and waits for it: HR_ERR_IO, HR_ERR_TIMEOUT. */
hr_status_t hri_tier_flush(struct hri_store *store);
/* The error of a call that the tier would have been needed for. */
hr_status_t hri_tier_status(const struct hri_store *store);
/* The cell stays in its host slot; its write comes when the tier is back. */
void hri_tier_keep(struct hri_lane *lane, uint32_t cell);
void hri_tier_unkeep(struct hri_lane *lane, uint32_t cell);

/* store_lane.c */
hr_status_t hri_lane_grow(struct hri_lane *lane, uint32_t n_cells); /* file space for so many */

/* store_read.c */
void hri_read_reap(struct hri_store *store, uint64_t wait_ns);
void hri_read_wait_lane(struct hri_store *store, const struct hri_lane *lane);

/* store.c, store_lane.c */
static inline uint64_t hri_lane_position(const struct hri_lane *lane, uint32_t cell)
{
    return (uint64_t)lane->extents[cell / lane->extent_cells] * HRI_GRAIN_BYTES +
           (uint64_t)(cell % lane->extent_cells) * lane->cell_bytes;
}
/* The lane of a fork's chain that has the cell. */
static inline struct hri_lane *hri_lane_of(struct hri_lane *lane, uint32_t cell)
{
    while (cell < lane->base_cells)
        lane = lane->base;
    return lane;
}
/* The cell's bytes in memory, NULL: only in the file. Of the lane itself, not of what it is based on. */
unsigned char *hri_cell_memory(const struct hri_lane *lane, uint32_t cell);
/* To be called whenever a cell got or lost its slot or its write buffer. */
static inline void hri_cell_note(struct hri_lane *lane, uint32_t cell)
{
    const struct hri_cell *entry = &lane->cells[cell];
    lane->in_memory[cell] = entry->slot != HRI_NONE || (entry->flags & HRI_CELL_DIRTY) != 0;
}

#endif
