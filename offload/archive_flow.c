/* The way of an archive's groups to the file. They are requests of a disk, so that each of them ends though the disk gives no answer, and a few
 * are under way while the next is filled. Where the caller will sync the file anyway they go past the page cache, which saves a copy and
 * the memory it takes. */
#include "offload/archive_impl.h"

#include <errno.h>
#include <string.h>

#include "base/assert.h"
#include "base/error.h"

#define DEPTH   4u /* groups under way or being filled */
#define WAIT_NS 1000000000u

struct hri_archive_flow {
    struct hri_archive_out_options options;
    struct hri_region region; /* [n][HRI_ARCHIVE_GROUP_BYTES] */
    struct hri_disk *disk;    /* NULL: a group is written before the next one is filled */
    uint32_t n, filling;
    struct hri_disk_request requests[DEPTH];
    size_t bytes[DEPTH]; /* of the group that is under way; 0: free */
    bool direct;
    int error; /* errno value of the first write that failed */
    bool leak; /* the kernel may still read a group that was given up */
};

/* *direct_out: the file now goes past the page cache, in pages. HR_ERR_TIMEOUT. */
static hr_status_t go_direct(const struct hri_archive_out_options *o, bool *direct_out)
{
    struct hri_io_stat st;
    *direct_out = false;
    if (!o->syncs || o->io->set_direct == NULL)
        return HR_OK;
    int error = o->io->stat_file(o->io->ctx, o->fd, &st);
    *direct_out = error == 0 && st.dio_offset_align <= HRI_ARCHIVE_PAGE &&
                  st.dio_memory_align <= HRI_ARCHIVE_PAGE &&
                  o->io->set_direct(o->io->ctx, o->fd, true) == 0;
    return error == -ETIMEDOUT ? hri_archive_status(ETIMEDOUT, "looking at the new file", o->path)
                               : HR_OK;
}

hr_status_t hri_archive_flow_begin(const struct hri_archive_out_options *options,
                                   struct hri_archive_flow **flow_out)
{
    struct hri_archive_flow *flow = hri_calloc(options->alloc, 1, sizeof *flow);
    if (flow == NULL)
        return hri_alloc_status();
    flow->options = *options;
    hr_status_t status = HR_OK;
    if (hri_io_transfers(options->io)->ring_create != NULL) {
        status = go_direct(options, &flow->direct);
        struct hri_disk_options disk = {.io = options->io,
                                        .alloc = options->alloc,
                                        .fd = options->fd,
                                        .mode = options->mode,
                                        .depth = DEPTH,
                                        .align_bytes = flow->direct ? HRI_ARCHIVE_PAGE : 1,
                                        .timeout_ns = options->timeout_ns};
        status = status == HR_OK ? hri_archive_disk(&disk, &flow->disk) : status;
    }
    flow->n = flow->disk != NULL ? DEPTH : 1;
    if (status == HR_OK)
        status = hri_region_alloc(options->alloc, (size_t)flow->n * HRI_ARCHIVE_GROUP_BYTES,
                                  &flow->region);
    if (status != HR_OK) {
        (void)hri_archive_flow_end(flow);
        return status;
    }
    *flow_out = flow;
    return HR_OK;
}

bool hri_archive_flow_end(struct hri_archive_flow *flow)
{
    if (flow == NULL)
        return false;
    struct hri_alloc *alloc = flow->options.alloc;
    bool stuck = false;
    if (flow->disk != NULL) {
        (void)hri_archive_flow_wait(flow);
        stuck = hri_disk_destroy(flow->disk);
    }
    if (!flow->leak)
        hri_region_free(alloc, &flow->region);
    hri_free(alloc, flow);
    return stuck;
}

static unsigned char *group_at(const struct hri_archive_flow *flow, uint32_t i)
{
    return (unsigned char *)flow->region.base + (size_t)i * HRI_ARCHIVE_GROUP_BYTES;
}

unsigned char *hri_archive_flow_group(struct hri_archive_flow *flow)
{
    return group_at(flow, flow->filling);
}

static int write_now(struct hri_archive_flow *flow, uint32_t i, uint64_t address, size_t bytes)
{
    const struct hri_archive_out_options *o = &flow->options;
    int error = -hri_archive_write_all(o->io, o->fd, group_at(flow, i), bytes, address);
    flow->leak |= error == ETIMEDOUT;
    return error;
}

/* A file system may take the flag and refuse the transfers; then all of them come here. */
static int write_again(struct hri_archive_flow *flow, uint32_t i)
{
    const struct hri_archive_out_options *o = &flow->options;
    if (flow->direct)
        (void)o->io->set_direct(o->io->ctx, o->fd, false);
    flow->direct = false;
    return write_now(flow, i, flow->requests[i].offset, flow->bytes[i]);
}

static void group_finished(struct hri_archive_flow *flow, const struct hri_disk_request *request)
{
    const struct hri_archive_out_options *o = &flow->options;
    uint32_t i = (uint32_t)(request - flow->requests);
    int error = request->error;
    flow->leak |= request->abandoned;
    if (error == EINVAL && !request->abandoned)
        error = write_again(flow, i);
    if (error == 0 && o->syncs && !flow->direct && o->io->write_back != NULL)
        o->io->write_back(o->io->ctx, o->fd, request->offset, flow->bytes[i]);
    if (flow->error == 0)
        flow->error = error;
    flow->bytes[i] = 0;
}

static void reap(struct hri_archive_flow *flow, uint64_t wait_ns)
{
    struct hri_disk_request *done = hri_disk_reap(flow->disk, wait_ns);
    while (done != NULL) {
        struct hri_disk_request *next = done->next;
        group_finished(flow, done);
        done = next;
    }
}

static hr_status_t flow_status(const struct hri_archive_flow *flow)
{
    return flow->error == 0 ? HR_OK
                            : hri_archive_status(flow->error, "writing", flow->options.path);
}

hr_status_t hri_archive_flow_wait(struct hri_archive_flow *flow)
{
    while (flow->disk != NULL && hri_disk_in_flight(flow->disk) > 0)
        reap(flow, WAIT_NS); /* ends: the disk gives up what gets no answer */
    return flow_status(flow);
}

/* The next group to be filled is one that is not under way. */
static hr_status_t next_group(struct hri_archive_flow *flow)
{
    for (;;) {
        for (uint32_t i = 0; i < flow->n; i++) {
            flow->filling = i;
            if (flow->bytes[i] == 0)
                return flow_status(flow);
        }
        reap(flow, WAIT_NS);
    }
}

hr_status_t hri_archive_flow_send(struct hri_archive_flow *flow, size_t bytes, uint64_t address)
{
    uint32_t i = flow->filling;
    if (flow->disk == NULL) {
        flow->error = write_now(flow, i, address, bytes);
        return flow_status(flow);
    }
    struct hri_disk_request *request = &flow->requests[i];
    request->write = true;
    request->offset = address;
    request->n_iov = 1;
    request->iov[0] = (struct iovec){group_at(flow, i), bytes};
    flow->bytes[i] = bytes;
    bool room = hri_disk_submit(flow->disk, request);
    HRI_ASSERT(room); /* the disk's depth is the number of groups */
    (void)room;
    hri_disk_flush(flow->disk);
    reap(flow, 0);
    return next_group(flow);
}
