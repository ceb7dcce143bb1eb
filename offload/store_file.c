/* The file behind the file tier: made, probed, preallocated in steps under the cap, handed out in
 * runs of grains. */
#include "offload/store_impl.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/error.h"

#define STEP_BYTES_MIN      (4u << 20)
#define STEP_BYTES_MAX      (64u << 20)
#define WASTE_SHARE         16u /* an extent wastes at most a sixteenth */
#define EXTENT_GRAINS_MAX   64u
#define EXTENT_BYTES_WANTED HRI_RUN_BYTES_MAX
#define SLACK_BYTES_MIN     65536u /* of the cap, for the file system's own tables */
#define SLACK_SHARE         512u
#define PROBE_BYTES         HRI_PAGE_BYTES

static const hr_io_mode_t auto_modes[] = {HR_IO_URING, HR_IO_URING_PLAIN, HR_IO_THREADS};

static hr_status_t make_disks(struct hri_store *store, const struct hri_store_options *options,
                              hr_io_mode_t mode)
{
    struct hri_disk_options disk = {
        .io = store->io,
        .alloc = store->alloc,
        .fd = store->file.fd,
        .mode = mode,
        .depth = options->queue_depth ? options->queue_depth : 64,
        .align_bytes = store->file.direct ? store->file.offset_align : 1,
        .timeout_ns = 2 * store->timeout_ns,
    };
    HRI_TRY(hri_disk_create(&disk, &store->read_disk));
    /* Writes go on between calls, which may come from different threads: only a plain ring allows
     * that. */
    disk.mode = mode == HR_IO_URING ? HR_IO_URING_PLAIN : mode;
    disk.depth = HRI_WRITE_OPS;
    hr_status_t status = hri_disk_create(&disk, &store->write_disk);
    if (status != HR_OK) {
        (void)hri_disk_destroy(store->read_disk); /* nothing was asked of it yet */
        store->read_disk = NULL;
        return status;
    }
    hri_disk_register(store->read_disk, store->read_arena.region.base,
                      store->read_arena.region.bytes);
    return HR_OK;
}

static void drop_disks(struct hri_store *store)
{
    bool reads = hri_disk_destroy(store->read_disk), writes = hri_disk_destroy(store->write_disk);
    store->file.in_use |= reads || writes;
    store->read_disk = NULL;
    store->write_disk = NULL;
}

/* One transfer with nothing else under way: the errno value, 0 for success. */
static int transfer_now(struct hri_disk *disk, struct hri_disk_request *request)
{
    hri_disk_submit(disk, request);
    struct hri_disk_request *done = NULL;
    while (done == NULL && hri_disk_in_flight(disk) > 0)
        done = hri_disk_reap(disk, HRI_DISK_TIMEOUT_NS);
    return done == NULL ? EIO : done->error;
}

static int probe_transfer(struct hri_disk *disk, bool write, void *memory)
{
    struct hri_disk_request request = {
        .write = write,
        .n_iov = 1,
        .iov = {{memory, PROBE_BYTES}},
    };
    return transfer_now(disk, &request);
}

/* Writes a page and reads it back through the disks that were just made. */
static int probe_disks(struct hri_store *store)
{
    unsigned char *page = hri_page_arena_take(&store->read_arena, 1);
    unsigned char *back = hri_page_arena_take(&store->read_arena, 1);
    for (uint32_t i = 0; i < PROBE_BYTES; i++)
        page[i] = (unsigned char)(i * 31 + (i >> 8) + 1);
    memset(back, 0, PROBE_BYTES);
    int error = probe_transfer(store->write_disk, true, page);
    if (error == 0)
        error = probe_transfer(store->read_disk, false, back);
    if (error == 0 && memcmp(page, back, PROBE_BYTES) != 0)
        error = EILSEQ;
    hri_page_arena_put(&store->read_arena, page, 1);
    hri_page_arena_put(&store->read_arena, back, 1);
    return error;
}

static hr_status_t try_mode(struct hri_store *store, const struct hri_store_options *options,
                            hr_io_mode_t mode, int *error_out)
{
    *error_out = 0;
    HRI_TRY(make_disks(store, options, mode));
    int error = probe_disks(store);
    if (error == 0)
        return HR_OK;
    const char *name = hri_disk_name(store->read_disk);
    if (hri_disk_broken(store->read_disk) || hri_disk_broken(store->write_disk))
        store->read_arena.leak = true;
    drop_disks(store);
    *error_out = error;
    return hri_error_set(HR_ERR_IO, "file tier: %s: writing and reading a page in %s: %s", name,
                         options->file_dir, strerror(error));
}

static hr_status_t choose_mode(struct hri_store *store, const struct hri_store_options *options,
                               int *error_out)
{
    if (options->io_mode != HR_IO_AUTO)
        return try_mode(store, options, options->io_mode, error_out);
    hr_status_t status = HR_OK;
    for (size_t i = 0; i < sizeof auto_modes / sizeof auto_modes[0]; i++) {
        status = try_mode(store, options, auto_modes[i], error_out);
        if (status == HR_OK)
            return HR_OK;
        hri_log_info(store->log, "%s", hr_last_error());
    }
    return status;
}

static hr_status_t call_status(int error, const char *what, const char *where)
{
    if (error == -ETIMEDOUT)
        return hri_error_set(HR_ERR_TIMEOUT, "file tier: %s %s: the disk gives no answer", what,
                             where);
    return hri_error_set(HR_ERR_IO, "file tier: %s %s: %s", what, where, strerror(-error));
}

static hr_status_t open_file(struct hri_store *store, const char *dir, bool direct)
{
    struct hri_file *file = &store->file;
    int fd = store->io->open_temp(store->io->ctx, dir, direct);
    if (fd < 0)
        return call_status(fd, "a file in", dir);
    file->fd = fd;
    file->direct = direct;
    struct hri_io_stat info = {0};
    int error = store->io->stat_file(store->io->ctx, fd, &info);
    if (error < 0)
        return call_status(error, "stat in", dir);
    /* Cells and buffers are whole pages, so coarser alignments than a page cannot be served
     * directly. */
    file->memory_align = info.dio_memory_align ? info.dio_memory_align : HRI_PAGE_BYTES;
    file->offset_align = info.dio_offset_align ? info.dio_offset_align : 512;
    if (direct && (file->memory_align > HRI_PAGE_BYTES || file->offset_align > HRI_PAGE_BYTES))
        return hri_error_set(HR_ERR_UNSUPPORTED,
                             "file tier: direct I/O in %s wants more than pages", dir);
    if (info.free_bytes < file->cap_bytes)
        return hri_error_set(
            HR_ERR_BUDGET, "file tier: file_bytes is %llu but %s has only %llu bytes free",
            (unsigned long long)file->cap_bytes, dir, (unsigned long long)info.free_bytes);
    return HR_OK;
}

static void close_file(struct hri_store *store)
{
    if (store->file.fd >= 0 && !store->file.in_use)
        store->io->close_file(store->io->ctx, store->file.fd);
    store->file.fd = -1;
}

/* Direct I/O first; file systems that have none (tmpfs) refuse it at open or at the first transfer.
 */
static hr_status_t open_and_probe(struct hri_store *store, const struct hri_store_options *options)
{
    int error = 0;
    hr_status_t status = open_file(store, options->file_dir, true);
    if (status == HR_OK)
        status = choose_mode(store, options, &error);
    if (status == HR_OK || status == HR_ERR_BUDGET || status == HR_ERR_NOMEM ||
        status == HR_ERR_TIMEOUT)
        return status;
    hri_log_info(store->log, "no direct I/O, trying buffered: %s", hr_last_error());
    close_file(store);
    HRI_TRY(open_file(store, options->file_dir, false));
    HRI_TRY(choose_mode(store, options, &error));
    hri_log_warn(store->log,
                 "file tier in %s: direct I/O is refused, reads go through the page cache",
                 options->file_dir);
    return HR_OK;
}

static hr_status_t size_grains(struct hri_store *store)
{
    struct hri_file *file = &store->file;
    uint64_t slack = file->cap_bytes / SLACK_SHARE;
    if (slack < SLACK_BYTES_MIN)
        slack = SLACK_BYTES_MIN;
    uint64_t least = slack + HRI_GRAIN_BYTES;
    if (file->cap_bytes < least)
        return hri_error_set(HR_ERR_BUDGET, "file tier: file_bytes is %llu, the least is %llu",
                             (unsigned long long)file->cap_bytes, (unsigned long long)least);
    uint64_t n_grains = (file->cap_bytes - slack) / HRI_GRAIN_BYTES;
    if (n_grains >= HRI_NONE)
        return hri_error_set(HR_ERR_INVALID, "file tier: file_bytes is more than 256 TiB");
    file->n_grains = (uint32_t)n_grains;
    file->used = hri_calloc(store->alloc, (file->n_grains + 63) / 64, sizeof *file->used);
    return file->used != NULL ? HR_OK : hri_alloc_status();
}

hr_status_t hri_file_init(struct hri_store *store, const struct hri_store_options *options)
{
    store->file.cap_bytes = options->file_bytes;
    store->file.wipe = options->wipe;
    HRI_TRY(size_grains(store));
    HRI_TRY(open_and_probe(store, options));
    hri_log_info(store->log, "file tier in %s: %s, %s", options->file_dir,
                 hri_disk_name(store->read_disk), store->file.direct ? "direct" : "buffered");
    return HR_OK;
}

/* Zeros over all that was ever in the file. What the disk keeps of it elsewhere, by copy on write or wear levelling, is out of reach. */
static void wipe(struct hri_store *store)
{
    const struct hri_file *file = &store->file;
    uint64_t end = (uint64_t)file->n_made * HRI_GRAIN_BYTES;
    unsigned char *zeros =
        hri_page_arena_take(&store->write_arena, HRI_GRAIN_BYTES / HRI_PAGE_BYTES);
    if (zeros == NULL || hri_disk_broken(store->write_disk) || hri_io_guard_gave_up(store->guard)) {
        hri_log_error(store->log, "file tier: its file could not be wiped");
        return;
    }
    memset(zeros, 0, HRI_GRAIN_BYTES);
    int error = 0;
    for (uint64_t at = 0; at < end && error == 0; at += HRI_GRAIN_BYTES) {
        struct hri_disk_request request = {
            .write = true, .n_iov = 1, .offset = at, .iov = {{zeros, HRI_GRAIN_BYTES}}};
        error = transfer_now(store->write_disk, &request);
    }
    if (error == 0 && store->io->sync_file != NULL)
        error = -store->io->sync_file(store->io->ctx, file->fd);
    if (error != 0)
        hri_log_error(store->log, "file tier: its file could not be wiped: %s", strerror(error));
}

void hri_file_fini(struct hri_store *store)
{
    if (store->file.wipe && store->write_disk != NULL)
        wipe(store);
    bool broken = (store->read_disk != NULL && hri_disk_broken(store->read_disk)) ||
                  (store->write_disk != NULL && hri_disk_broken(store->write_disk));
    store->read_arena.leak |= broken;
    store->write_arena.leak |= broken;
    drop_disks(store);
    close_file(store);
    hri_free(store->alloc, store->file.used);
}

/* --------------------------------------------------------------------------------------- grains */

/* Extents waste little and are long enough that neighbours can be read at once. */
void hri_file_layout(const struct hri_file *file, uint32_t cell_bytes, uint32_t *grains_out,
                     uint32_t *cells_out)
{
    uint32_t grains = (cell_bytes + HRI_GRAIN_BYTES - 1) / HRI_GRAIN_BYTES;
    uint32_t wanted = EXTENT_BYTES_WANTED / HRI_GRAIN_BYTES;
    if (grains < wanted && file->n_grains > 256 * wanted)
        grains = wanted;
    while (grains < EXTENT_GRAINS_MAX &&
           grains * HRI_GRAIN_BYTES % cell_bytes > grains * HRI_GRAIN_BYTES / WASTE_SHARE)
        grains++;
    *grains_out = grains;
    *cells_out = grains * HRI_GRAIN_BYTES / cell_bytes;
}

static hr_status_t over_cap(const struct hri_store *store)
{
    return hri_error_set(HR_ERR_BUDGET, "file tier: its cap of %llu bytes is reached",
                         (unsigned long long)store->file.cap_bytes);
}

/* Without fallocate the blocks appear as they are written; grains still bound how many. */
static hr_status_t make_grains(struct hri_store *store, uint32_t n)
{
    struct hri_file *file = &store->file;
    if (!file->no_fallocate) {
        int error =
            store->io->allocate(store->io->ctx, file->fd, (uint64_t)file->n_made * HRI_GRAIN_BYTES,
                                (uint64_t)n * HRI_GRAIN_BYTES);
        if (error == -EOPNOTSUPP || error == -ENOSYS)
            file->no_fallocate = true;
        else if (error < 0)
            return call_status(error, "making room in", "the file");
    }
    struct hri_io_stat info = {0};
    int error = store->io->stat_file(store->io->ctx, file->fd, &info);
    if (error < 0)
        return call_status(error, "stat of", "the file");
    if (info.physical_bytes > file->cap_bytes)
        return over_cap(store);
    if (info.physical_bytes > file->peak_bytes)
        file->peak_bytes = info.physical_bytes;
    file->n_made += n;
    return HR_OK;
}

static hr_status_t grow(struct hri_store *store, uint32_t n_needed)
{
    struct hri_file *file = &store->file;
    uint32_t room = file->n_grains - file->n_made;
    if (room < n_needed)
        return over_cap(store);
    uint64_t step_bytes = (uint64_t)file->n_grains * HRI_GRAIN_BYTES / 32;
    step_bytes = step_bytes < STEP_BYTES_MIN ? STEP_BYTES_MIN : step_bytes;
    step_bytes = step_bytes > STEP_BYTES_MAX ? STEP_BYTES_MAX : step_bytes;
    uint32_t step = (uint32_t)(step_bytes / HRI_GRAIN_BYTES);
    step = step < n_needed ? n_needed : step;
    step = step > room ? room : step;
    hr_status_t status = make_grains(store, step);
    if (status == HR_OK || step == n_needed || status == HR_ERR_BUDGET)
        return status;
    return make_grains(store, n_needed); /* a disk that is nearly full may still have this much */
}

hr_status_t hri_file_take(struct hri_store *store, uint32_t n_grains, uint32_t *first_out)
{
    struct hri_file *file = &store->file;
    uint32_t first = HRI_NONE;
    if (file->n_made - file->n_used >= n_grains)
        first = hri_bits_find(file->used, file->n_made, file->hint, n_grains);
    while (first == HRI_NONE) {
        HRI_TRY(grow(store, n_grains));
        first = hri_bits_find(file->used, file->n_made, file->hint, n_grains);
    }
    hri_bits_set(file->used, first, n_grains, true);
    file->n_used += n_grains;
    file->hint = first + n_grains;
    *first_out = first;
    return HR_OK;
}

void hri_file_put(struct hri_store *store, uint32_t first, uint32_t n_grains)
{
    hri_bits_set(store->file.used, first, n_grains, false);
    store->file.n_used -= n_grains;
    if (first < store->file.hint)
        store->file.hint = first;
}
