#include "offload/store_impl.h"

#include <string.h>

#include "base/error.h"

#define WAIT_NS    1000000000u
#define TIMEOUT_NS 30000000000u

static hr_status_t alloc_pools(struct hri_store *store)
{
    store->ops = hri_calloc(store->alloc, HRI_OPS, sizeof *store->ops);
    store->pieces = hri_calloc(store->alloc, HRI_PIECES, sizeof *store->pieces);
    if (store->ops == NULL || store->pieces == NULL)
        return hri_alloc_status();
    for (uint32_t i = HRI_OPS; i-- > 0;) {
        struct hri_op **list = i < HRI_READ_OPS ? &store->free_reads : &store->free_writes;
        store->ops[i].next = *list;
        *list = &store->ops[i];
    }
    store->free_piece = HRI_NONE;
    for (uint32_t i = HRI_PIECES; i-- > 0;) {
        store->pieces[i].next = store->free_piece;
        store->free_piece = i;
    }
    return HR_OK;
}

/* Room for a full queue of the largest runs, within bounds. */
static size_t read_arena_bytes(const struct hri_store_options *options)
{
    size_t depth = options->queue_depth ? options->queue_depth : 64;
    size_t bytes = depth * HRI_RUN_BYTES_MAX / 2;
    bytes = bytes < 2 * HRI_CELL_BYTES_MAX ? 2 * HRI_CELL_BYTES_MAX : bytes;
    return bytes > HRI_READ_ARENA_BYTES_MAX ? HRI_READ_ARENA_BYTES_MAX : bytes;
}

static hr_status_t init_file_tier(struct hri_store *store, const struct hri_store_options *options)
{
    HRI_TRY(alloc_pools(store));
    HRI_TRY(hri_page_arena_init(&store->read_arena, store->alloc, read_arena_bytes(options)));
    HRI_TRY(hri_page_arena_init(&store->write_arena, store->alloc, HRI_WRITE_ARENA_BYTES));
    HRI_TRY(hri_io_guard_create(store->io, 2 * store->timeout_ns, &store->guard));
    store->io = hri_io_guard_ops(store->guard);
    return hri_file_init(store, options);
}

static void free_store(struct hri_store *store)
{
    hri_file_fini(store);
    hri_io_guard_destroy(store->guard);
    hri_page_arena_fini(&store->read_arena, store->alloc);
    hri_host_fini(store);
    hri_page_arena_fini(&store->write_arena, store->alloc);
    hri_free(store->alloc, store->pieces);
    hri_free(store->alloc, store->ops);
    hri_free(store->alloc, store);
}

hr_status_t hri_store_create(const struct hri_store_options *options, struct hri_store **store_out)
{
    struct hri_store *store = hri_calloc(options->alloc, 1, sizeof *store);
    if (store == NULL)
        return hri_alloc_status();
    store->alloc = options->alloc;
    store->log = options->log;
    store->io = options->io != NULL ? options->io : hri_io_real();
    store->file.fd = -1;
    store->timeout_ns = options->timeout_ns ? options->timeout_ns : TIMEOUT_NS;
    hr_status_t status = hri_host_init(store, options->host_bytes);
    if (status == HR_OK && options->file_dir != NULL)
        status = init_file_tier(store, options);
    if (status != HR_OK) {
        free_store(store);
        return status;
    }
    *store_out = store;
    return HR_OK;
}

void hri_store_destroy(struct hri_store *store)
{
    if (store == NULL)
        return;
    for (struct hri_lane *lane = store->lanes; lane != NULL; lane = lane->next)
        lane->base = NULL;
    while (store->lanes != NULL)
        hri_lane_destroy(store->lanes);
    free_store(store);
}

hr_status_t hri_store_flush(struct hri_store *store)
{
    if (store->write_disk == NULL)
        return HR_OK;
    HRI_TRY(hri_write_wait_all(store));
    return hri_tier_flush(store);
}

uint64_t hri_store_timeout_ns(const struct hri_store *store)
{
    return store->timeout_ns;
}

void hri_store_register(struct hri_store *store, void *base, size_t bytes)
{
    if (store->read_disk != NULL)
        hri_disk_register(store->read_disk, base, bytes);
}

void hri_store_unregister(struct hri_store *store, void *base)
{
    if (store->read_disk != NULL)
        hri_disk_unregister(store->read_disk, base);
}

void hri_store_stats(const struct hri_store *store, struct hri_store_stats *stats_out)
{
    *stats_out = store->counts;
    stats_out->host = (struct hr_tier_stats){
        .bytes_held = store->host.held_bytes,
        .bytes_peak = store->host.peak_bytes,
        .bytes_cap = store->host.alloc.cap_bytes,
    };
    stats_out->file = (struct hr_tier_stats){
        .bytes_held = (uint64_t)store->file.n_used * HRI_GRAIN_BYTES,
        .bytes_peak = store->file.peak_bytes,
        .bytes_cap = store->file.cap_bytes,
    };
    stats_out->io_mode = store->read_disk != NULL ? hri_disk_name(store->read_disk) : "none";
}
