#include "offload/store_impl.h"

#include <string.h>

#include "base/checksum.h"
#include "base/error.h"

unsigned char *hri_cell_memory(const struct hri_lane *lane, uint32_t cell)
{
    const struct hri_cell *entry = &lane->cells[cell];
    if (entry->slot != HRI_NONE)
        return hri_host_memory(&lane->store->host, entry->slot);
    if (!(entry->flags & HRI_CELL_DIRTY))
        return NULL;
    const struct hri_op *op = &lane->store->ops[entry->op];
    return op->memory[cell - op->first_cell];
}

/* ---------------------------------------------------------------------------------------- lanes */

static hr_status_t check_lane_options(const struct hri_store *store,
                                      const struct hri_lane_options *options)
{
    uint32_t bytes = options->cell_bytes;
    if (bytes == 0 || bytes % HRI_PAGE_BYTES != 0 || bytes > HRI_CELL_BYTES_MAX)
        return hri_error_set(
            HR_ERR_INVALID, "lane %llx: cell_bytes is %u, must be a multiple of %u up to %u",
            (unsigned long long)options->tag, bytes, HRI_PAGE_BYTES, HRI_CELL_BYTES_MAX);
    if ((unsigned)options->priority >= HRI_PRIORITIES)
        return hri_error_set(HR_ERR_INVALID, "lane %llx: no such priority",
                             (unsigned long long)options->tag);
    if (store->file.fd < 0 && bytes > store->host.slab_bytes)
        return hri_error_set(HR_ERR_BUDGET,
                             "host tier: cells of %u bytes need at least %llu bytes of host memory",
                             bytes, (unsigned long long)bytes * 8);
    return HR_OK;
}

static void free_lane(struct hri_store *store, struct hri_lane *lane)
{
    hri_free(store->alloc, lane->extents);
    hri_free(store->alloc, lane->in_memory);
    hri_free(store->alloc, lane->cells);
    hri_free(store->alloc, lane);
}

/* Tables are sized for the longest text, but touched only as far as there are cells: a fork then costs the same at any length. */
static void make_entries(struct hri_lane *lane, uint32_t end)
{
    if (end <= lane->n_made)
        return;
    memset(lane->cells + lane->n_made, 0, (end - lane->n_made) * sizeof *lane->cells);
    memset(lane->in_memory + lane->n_made, 0, end - lane->n_made);
    lane->n_made = end;
}

/* What a lane shares has no entries of its own; the one before its first is looked at. */
static hr_status_t alloc_lane_tables(struct hri_store *store, struct hri_lane *lane)
{
    lane->cells = hri_array(store->alloc, lane->cells_max, sizeof *lane->cells);
    lane->in_memory = hri_array(store->alloc, lane->cells_max, 1);
    if (lane->cells == NULL || lane->in_memory == NULL)
        return hri_alloc_status();
    lane->n_made = lane->base_cells > 0 ? lane->base_cells - 1 : 0;
    make_entries(lane, lane->base_cells);
    if (store->file.fd < 0)
        return HR_OK;
    hri_file_layout(&store->file, lane->cell_bytes, &lane->extent_grains, &lane->extent_cells);
    uint32_t n = lane->cells_max / lane->extent_cells + 1;
    lane->extents = hri_array(store->alloc, n, sizeof *lane->extents);
    lane->n_extents = lane->base_cells / lane->extent_cells;
    return lane->extents != NULL ? HR_OK : hri_alloc_status();
}

static void drop_own_cells(struct hri_lane *lane, uint32_t n_cells);

/* base NULL: an empty lane; else one that shares the first n_cells of base. */
static hr_status_t make_lane(struct hri_store *store, const struct hri_lane_options *options,
                             struct hri_lane *base, uint32_t n_cells, struct hri_lane **lane_out)
{
    struct hri_lane *lane = hri_calloc(store->alloc, 1, sizeof *lane);
    if (lane == NULL)
        return hri_alloc_status();
    lane->base_cells = lane->n_cells = n_cells;
    lane->store = store;
    lane->tag = options->tag;
    lane->cell_bytes = options->cell_bytes;
    lane->cells_max = options->cells_max;
    lane->priority = (uint32_t)options->priority;
    hr_status_t status = alloc_lane_tables(store, lane);
    if (status == HR_OK)
        status = hri_host_class_get(&store->host, lane->cell_bytes, &lane->class_index);
    if (status != HR_OK) {
        free_lane(store, lane);
        return status;
    }
    lane->next = store->lanes;
    if (store->lanes != NULL)
        store->lanes->prev = lane;
    store->lanes = lane;
    if (base != NULL) {
        lane->base = base;
        base->refs++;
    }
    *lane_out = lane;
    return HR_OK;
}

hr_status_t hri_lane_create(struct hri_store *store, const struct hri_lane_options *options,
                            struct hri_lane **lane_out)
{
    HRI_TRY(check_lane_options(store, options));
    return make_lane(store, options, NULL, 0, lane_out);
}

/* One of those based on it is no more. */
static void release_base(struct hri_lane *lane)
{
    struct hri_lane *base = lane->base;
    lane->base = NULL;
    if (base != NULL && --base->refs == 0)
        hri_lane_destroy(base);
}

void hri_lane_destroy(struct hri_lane *lane)
{
    if (lane == NULL)
        return;
    struct hri_store *store = lane->store;
    drop_own_cells(lane, lane->base_cells);
    release_base(lane);
    hri_host_class_put(&store->host, lane->class_index);
    if (lane->prev != NULL)
        lane->prev->next = lane->next;
    else
        store->lanes = lane->next;
    if (lane->next != NULL)
        lane->next->prev = lane->prev;
    free_lane(store, lane);
}

uint32_t hri_lane_cells(const struct hri_lane *lane)
{
    return lane->n_cells;
}

/* -------------------------------------------------------------------------- append and truncate */

static uint32_t extents_for(const struct hri_lane *lane, uint32_t n_cells)
{
    return n_cells / lane->extent_cells + (n_cells % lane->extent_cells != 0);
}

static void shrink_extents(struct hri_lane *lane, uint32_t n_cells)
{
    if (lane->extents == NULL)
        return;
    uint32_t n = extents_for(lane, n_cells), least = lane->base_cells / lane->extent_cells;
    n = n_cells == lane->base_cells ? least : n;
    while (lane->n_extents > n)
        hri_file_put(lane->store, lane->extents[--lane->n_extents], lane->extent_grains);
}

hr_status_t hri_lane_grow(struct hri_lane *lane, uint32_t n_cells)
{
    if (lane->extents == NULL)
        return HR_OK;
    uint32_t n = extents_for(lane, n_cells);
    while (lane->n_extents < n) {
        hr_status_t status =
            hri_file_take(lane->store, lane->extent_grains, &lane->extents[lane->n_extents]);
        if (status != HR_OK) {
            shrink_extents(lane, lane->n_cells);
            return status;
        }
        lane->n_extents++;
    }
    return HR_OK;
}

static void forget_cells(struct hri_lane *lane, uint32_t n_cells)
{
    struct hri_host *host = &lane->store->host;
    for (uint32_t i = n_cells; i < lane->n_cells; i++) {
        struct hri_cell *cell = &lane->cells[i];
        bool unwritten = (cell->flags & HRI_CELL_UNWRITTEN) != 0;
        if (unwritten)
            hri_tier_unkeep(lane, i);
        if (cell->slot != HRI_NONE) {
            if (lane->store->file.fd >= 0 && !unwritten)
                hri_host_unclean(host, cell->slot);
            hri_host_put(host, cell->slot);
        }
        memset(cell, 0, sizeof *cell);
        lane->in_memory[i] = 0;
    }
    lane->n_cells = n_cells;
    shrink_extents(lane, n_cells);
}

/* Down to n_cells, at least base_cells. Freed space is reused, so nothing that is under way may still touch it. */
static void drop_own_cells(struct hri_lane *lane, uint32_t n_cells)
{
    hri_read_wait_lane(lane->store, lane);
    hri_write_wait_lane(lane->store, lane);
    hri_write_forget(lane->store, lane, n_cells);
    forget_cells(lane, n_cells);
}

/* Entries from base_cells on are in use from now on. */
static void rebase_tables(struct hri_lane *lane, uint32_t base_cells)
{
    uint32_t from = base_cells > 0 ? base_cells - 1 : 0;
    memset(lane->cells + from, 0, (lane->base_cells - from) * sizeof *lane->cells);
    memset(lane->in_memory + from, 0, lane->base_cells - from);
    lane->base_cells = lane->n_cells = base_cells;
    lane->n_extents = lane->extents != NULL ? base_cells / lane->extent_cells : 0;
}

/* What is shared stays for the others: the lane then ends inside of one that lies deeper. */
static void cut_lane(struct hri_lane *lane, uint32_t n_cells)
{
    drop_own_cells(lane, n_cells > lane->base_cells ? n_cells : lane->base_cells);
    if (n_cells >= lane->base_cells)
        return;
    struct hri_lane *base = lane->base;
    while (base != NULL && n_cells <= base->base_cells)
        base = base->base;
    if (n_cells == 0)
        base = NULL;
    if (base != NULL)
        base->refs++;
    release_base(lane);
    lane->base = base;
    if (base != NULL && base->refs == 1) /* nobody else's */
        cut_lane(base, n_cells);
    rebase_tables(lane, n_cells);
}

hr_status_t hri_lane_truncate(struct hri_lane *lane, uint32_t n_cells)
{
    if (n_cells > lane->n_cells)
        return hri_error_set(HR_ERR_INVALID, "lane %llx: truncate to %u of %u cells",
                             (unsigned long long)lane->tag, n_cells, lane->n_cells);
    if (n_cells == lane->n_cells)
        return HR_OK;
    cut_lane(lane, n_cells);
    return HR_OK;
}

hr_status_t hri_lane_fork(struct hri_lane **lane, uint32_t depth_max, struct hri_lane **fork_out)
{
    struct hri_lane *trunk = *lane, *own = NULL, *fork = NULL;
    struct hri_lane_options options = {.cell_bytes = trunk->cell_bytes,
                                       .cells_max = trunk->cells_max,
                                       .priority = (enum hri_lane_priority)trunk->priority,
                                       .tag = trunk->tag};
    uint32_t depth = 1;
    /* A lane without cells of its own is no step deeper than what it is based on. */
    if (trunk->n_cells == trunk->base_cells)
        return make_lane(trunk->store, &options, trunk->base, trunk->n_cells, fork_out);
    for (const struct hri_lane *at = trunk; at->base != NULL; at = at->base)
        depth++;
    if (depth > depth_max)
        return hri_error_set(HR_ERR_FULL, "lane %llx: a fork of %u forks in a row; %u is the limit",
                             (unsigned long long)trunk->tag, depth - 1, depth_max);
    HRI_TRY(make_lane(trunk->store, &options, trunk, trunk->n_cells, &own));
    hr_status_t status = make_lane(trunk->store, &options, trunk, trunk->n_cells, &fork);
    if (status != HR_OK) {
        trunk->refs = 2; /* its handle still counts */
        hri_lane_destroy(own);
        trunk->refs = 0;
        return status;
    }
    *lane = own;
    *fork_out = fork;
    return HR_OK;
}

static hr_status_t host_full(const struct hri_lane *lane)
{
    return hri_error_set(HR_ERR_BUDGET, "host tier: its budget of %llu bytes is full (lane %llx)",
                         (unsigned long long)lane->store->host.alloc.cap_bytes,
                         (unsigned long long)lane->tag);
}

/* Copies one cell into memory and starts its way to the file. end: what the lane will have. */
static hr_status_t append_cell(struct hri_lane *lane, uint32_t index, uint32_t end,
                               const void *data, struct hri_op **open_op)
{
    struct hri_store *store = lane->store;
    struct hri_cell *cell = &lane->cells[index];
    unsigned char *memory = NULL;
    cell->slot = hri_host_take(&store->host, lane, index);
    cell->flags = 0;
    if (cell->slot == HRI_NONE && store->out) {
        HRI_TRY(hri_tier_flush(store));
        HRI_TRY(hri_lane_grow(lane, end));
    }
    if (cell->slot != HRI_NONE)
        memory = hri_host_memory(&store->host, cell->slot);
    else if (store->file.fd < 0)
        return host_full(lane);
    else {
        /* The open write may hold the last buffers, so it goes first. */
        if (store->write_arena.n_pages - store->write_arena.n_used <
            2 * (HRI_CELL_BYTES_MAX / HRI_PAGE_BYTES))
            hri_write_close(store, open_op);
        HRI_TRY(hri_write_buffer(store, lane->cell_bytes, &memory));
    }
    memcpy(memory, data, lane->cell_bytes);
    cell->crc = hri_crc32c(0, memory, lane->cell_bytes);
    if (store->file.fd < 0)
        return HR_OK;
    hr_status_t status =
        store->out ? HR_ERR_IO : hri_write_add(store, lane, index, memory, open_op);
    if (status == HR_OK)
        return HR_OK;
    if (store->out && cell->slot != HRI_NONE) {
        hri_tier_keep(lane, index);
        return HR_OK;
    }
    if (cell->slot != HRI_NONE)
        hri_host_put(&store->host, cell->slot);
    else
        hri_page_arena_put(&store->write_arena, memory, lane->cell_bytes / HRI_PAGE_BYTES);
    cell->slot = HRI_NONE;
    return status;
}

hr_status_t hri_lane_append(struct hri_lane *lane, const void *data, uint32_t n_cells,
                            uint32_t *first_out)
{
    struct hri_store *store = lane->store;
    uint32_t first = lane->n_cells;
    if (n_cells > lane->cells_max - first)
        return hri_error_set(HR_ERR_FULL, "lane %llx: %u cells on top of %u, cells_max is %u",
                             (unsigned long long)lane->tag, n_cells, first, lane->cells_max);
    make_entries(lane, first + n_cells);
    hri_write_reap(store, 0);
    hri_tier_try(store);
    struct hri_op *open_op = NULL;
    hr_status_t status = store->out ? HR_OK : hri_lane_grow(lane, first + n_cells);
    if (status == HR_ERR_IO || status == HR_ERR_TIMEOUT) {
        hri_tier_out(store, "%s", hr_last_error() + sizeof "file tier: " - 1);
        status = HR_OK;
    }
    for (uint32_t i = 0; i < n_cells && status == HR_OK; i++) {
        const unsigned char *from = (const unsigned char *)data + (size_t)i * lane->cell_bytes;
        status = append_cell(lane, first + i, first + n_cells, from, &open_op);
        hri_cell_note(lane, first + i);
        lane->n_cells += status == HR_OK;
    }
    hri_write_close(store, &open_op);
    if (store->write_disk != NULL)
        hri_disk_flush(store->write_disk);
    if (status != HR_OK) {
        hri_lane_truncate(lane, first);
        shrink_extents(lane, first);
        return status;
    }
    if (first_out != NULL)
        *first_out = first;
    return HR_OK;
}

/* ------------------------------------------------------------------------------------ questions */

const void *hri_lane_peek(struct hri_lane *lane, uint32_t cell)
{
    if (cell >= lane->n_cells)
        return NULL;
    lane = hri_lane_of(lane, cell);
    const struct hri_cell *entry = &lane->cells[cell];
    if (entry->slot != HRI_NONE && lane->store->file.fd >= 0 && !(entry->flags & HRI_CELL_DIRTY))
        hri_host_touch(&lane->store->host, entry->slot);
    return hri_cell_memory(lane, cell);
}

hr_tier_t hri_lane_where(const struct hri_lane *lane, uint32_t cell)
{
    if (cell >= lane->n_cells)
        return HR_TIER_FILE;
    while (cell < lane->base_cells)
        lane = lane->base;
    return hri_cell_memory(lane, cell) != NULL ? HR_TIER_HOST : HR_TIER_FILE;
}

struct hri_lane_run hri_lane_run_of(struct hri_lane *lane, uint32_t cell)
{
    uint32_t end = lane->cells_max;
    while (cell < lane->base_cells) {
        end = lane->base_cells;
        lane = lane->base;
    }
    return (struct hri_lane_run){lane->in_memory, lane->base_cells, end};
}
