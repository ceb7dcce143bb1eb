/* The way of an archive's blocks from the file. Reads are requests of a disk, so that each of them ends though the disk gives no answer; those
 * that follow in the file are under way while one is being used. */
#include "offload/archive_impl.h"

#include <errno.h>

#include "base/assert.h"
#include "base/error.h"

#define DEPTH   4u /* blocks under way, read ahead or in use */
#define WAIT_NS 1000000000u

struct hri_archive_feed {
    struct hri_archive_in_options options;
    struct hri_disk *disk; /* NULL: a block is read when it is asked for */
    uint32_t n, using;     /* what is in `using` is the caller's until the next read */
    bool cached;           /* the last read found all in memory: so will the next */
    bool leak;             /* the kernel may still write into pieces that were given up */
    /* [HRI_ARCHIVE_BLOCK_BYTES] each, apart: of a session that is only looked at a few small pages are used. */
    struct hri_region pieces[DEPTH];
    enum { FREE, UNDER_WAY, READ } states[DEPTH];
    size_t bytes[DEPTH];
    struct hri_disk_request requests[DEPTH];
};

hr_status_t hri_archive_feed_begin(const struct hri_archive_in_options *options,
                                   struct hri_archive_feed **feed_out)
{
    struct hri_archive_feed *feed = hri_calloc(options->alloc, 1, sizeof *feed);
    if (feed == NULL)
        return hri_alloc_status();
    feed->options = *options;
    hr_status_t status = HR_OK;
    if (hri_io_transfers(options->io)->ring_create != NULL) {
        struct hri_disk_options disk = {.io = options->io,
                                        .alloc = options->alloc,
                                        .fd = options->fd,
                                        .mode = options->mode,
                                        .depth = DEPTH,
                                        .align_bytes = 1,
                                        .timeout_ns = options->timeout_ns};
        status = hri_archive_disk(&disk, &feed->disk);
    }
    feed->n = feed->disk != NULL ? DEPTH : 1;
    for (uint32_t i = 0; i < feed->n && status == HR_OK; i++)
        status = hri_region_alloc(options->alloc, HRI_ARCHIVE_BLOCK_BYTES, &feed->pieces[i]);
    if (status != HR_OK) {
        (void)hri_archive_feed_end(feed);
        return status;
    }
    *feed_out = feed;
    return HR_OK;
}

static unsigned char *piece_at(const struct hri_archive_feed *feed, uint32_t i)
{
    return feed->pieces[i].base;
}

static void reap(struct hri_archive_feed *feed)
{
    const struct hri_disk_request *done = hri_disk_reap(feed->disk, WAIT_NS);
    for (; done != NULL; done = done->next) {
        feed->states[done - feed->requests] = READ;
        feed->leak |= done->abandoned;
    }
}

/* What was read ahead is not wanted any more. Ends: the disk gives up what gets no answer. */
static void drop_all(struct hri_archive_feed *feed)
{
    while (feed->disk != NULL && hri_disk_in_flight(feed->disk) > 0)
        reap(feed);
    for (uint32_t i = 0; i < feed->n; i++)
        feed->states[i] = FREE;
}

bool hri_archive_feed_end(struct hri_archive_feed *feed)
{
    if (feed == NULL)
        return false;
    struct hri_alloc *alloc = feed->options.alloc;
    drop_all(feed);
    bool stuck = hri_disk_destroy(feed->disk);
    for (uint32_t i = 0; i < feed->n && !feed->leak; i++)
        hri_region_free(alloc, &feed->pieces[i]);
    hri_free(alloc, feed);
    return stuck;
}

static void submit(struct hri_archive_feed *feed, uint32_t i, size_t bytes, uint64_t address)
{
    struct hri_disk_request *request = &feed->requests[i];
    request->write = false;
    request->offset = address;
    request->n_iov = 1;
    request->iov[0] = (struct iovec){piece_at(feed, i), bytes};
    feed->states[i] = UNDER_WAY;
    feed->bytes[i] = bytes;
    bool room = hri_disk_submit(feed->disk, request);
    HRI_ASSERT(room); /* the disk's depth is the number of pieces */
    (void)room;
}

/* What is in memory needs no disk. */
static bool read_cached(const struct hri_archive_feed *feed, size_t bytes, uint64_t address)
{
    const struct hri_archive_in_options *o = &feed->options;
    struct iovec iov = {piece_at(feed, 0), bytes};
    return o->io->readv_cached != NULL && !feed->leak &&
           o->io->readv_cached(o->io->ctx, o->fd, &iov, 1, address) == (ssize_t)bytes;
}

/* The piece that holds, or will hold, these bytes; n where none does. */
static uint32_t find(const struct hri_archive_feed *feed, size_t bytes, uint64_t address)
{
    uint32_t i = 0;
    while (i < feed->n && (feed->states[i] == FREE || feed->requests[i].offset != address ||
                           feed->bytes[i] != bytes))
        i++;
    return i;
}

static hr_status_t read_status(const struct hri_archive_feed *feed, int error, size_t bytes,
                               uint64_t address)
{
    const struct hri_archive_in_options *o = &feed->options;
    struct hri_io_stat stat;
    /* A disk does not tell a file that ends from one that cannot be read. */
    if (error == EIO && o->io->stat_file(o->io->ctx, o->fd, &stat) == 0 &&
        stat.file_bytes < address + bytes)
        error = ENODATA;
    if (error == ENODATA)
        return hri_error_set(HR_ERR_CORRUPT, "session %s: the file ends before byte %llu", o->path,
                             (unsigned long long)(address + bytes));
    return error == 0 ? HR_OK : hri_archive_status(error, "reading", o->path);
}

hr_status_t hri_archive_feed_read(struct hri_archive_feed *feed, size_t bytes, uint64_t address,
                                  const unsigned char **data_out)
{
    const struct hri_archive_in_options *o = &feed->options;
    HRI_ASSERT(bytes <= HRI_ARCHIVE_BLOCK_BYTES);
    *data_out = piece_at(feed, 0);
    if (feed->disk == NULL) {
        int error = -hri_archive_read_all(o->io, o->fd, piece_at(feed, 0), bytes, address);
        feed->leak |= error == ETIMEDOUT;
        return read_status(feed, error, bytes, address);
    }
    uint32_t i = find(feed, bytes, address);
    if (i == feed->n) {
        drop_all(feed);
        feed->cached = read_cached(feed, bytes, address);
        if (feed->cached)
            return HR_OK;
        submit(feed, i = 0, bytes, address);
    }
    while (feed->states[i] == UNDER_WAY)
        reap(feed);
    feed->states[i] = FREE; /* asked for again it is read again */
    feed->using = i;
    *data_out = piece_at(feed, i);
    return read_status(feed, feed->requests[i].error, bytes, address);
}

void hri_archive_feed_ahead(struct hri_archive_feed *feed, size_t bytes, uint64_t address)
{
    uint32_t i = 0;
    if (feed->disk == NULL || feed->cached || find(feed, bytes, address) < feed->n)
        return;
    while (i < feed->n && (feed->states[i] != FREE || i == feed->using))
        i++;
    if (i == feed->n)
        return;
    submit(feed, i, bytes, address);
    hri_disk_flush(feed->disk);
}
