/* Writing an archive; the folder it lies in. */
#include "offload/archive_impl.h"

#include <errno.h>
#include <string.h>

#include "base/checksum.h"
#include "base/error.h"

#define PIECE_BYTES (64u << 10) /* copied, then summed while it is near */

/* -- folders -- */

hr_status_t hri_folder_status(int error, const char *what, const char *path)
{
    int e = -error;
    if (e == ETIMEDOUT || e == ENOMEM)
        return hri_archive_status(e, what, path);
    hr_status_t status = e == ENOENT                                 ? HR_ERR_NOTFOUND
                         : e == EMEDIUMTYPE                          ? HR_ERR_INVALID
                         : e == ELOOP || e == ENOTDIR || e == EINVAL ? HR_ERR_INVALID
                         : e == EACCES || e == EPERM || e == EROFS   ? HR_ERR_INVALID
                                                                     : HR_ERR_IO;
    const char *why = e == ELOOP         ? "it is a symbolic link"
                      : e == EMEDIUMTYPE ? "it is no plain file"
                                         : strerror(e);
    return hri_error_set(status, "session %s: %s: %s", path, what, why);
}

hr_status_t hri_folder_open(const struct hri_io_ops *io, const char *path, bool make,
                            bool *made_out, int *folder_out)
{
    if (path == NULL || path[0] == '\0')
        return hri_error_set(HR_ERR_INVALID, "session: no folder is named");
    int fd = io->folder_open(io->ctx, path, make, made_out);
    if (fd < 0)
        return hri_folder_status(fd, make ? "making the folder" : "opening the folder", path);
    *folder_out = fd;
    return HR_OK;
}

static hr_status_t folder_lock(const struct hri_io_ops *io, int folder, const char *path,
                               bool to_read, int *lock_out)
{
    int holder = 0, fd = io->file_lock(io->ctx, folder, HRI_SESSION_LOCK, &holder);
    if (fd == -EROFS && to_read) {
        *lock_out = -1;
        return HR_OK;
    }
    if (fd == -EBUSY && holder > 0)
        return hri_error_set(HR_ERR_BUSY, "session %s: in use by process %d", path, holder);
    if (fd == -EBUSY)
        return hri_error_set(HR_ERR_BUSY, "session %s: in use by another process", path);
    if (fd < 0)
        return hri_folder_status(fd, "locking the folder", path);
    *lock_out = fd;
    return HR_OK;
}

hr_status_t hri_folder_lock(const struct hri_io_ops *io, int folder, const char *path,
                            int *lock_out)
{
    return folder_lock(io, folder, path, false, lock_out);
}

hr_status_t hri_folder_lock_to_read(const struct hri_io_ops *io, int folder, const char *path,
                                    int *lock_out)
{
    return folder_lock(io, folder, path, true, lock_out);
}

/* -- transfers -- */

static bool again(ssize_t n, int *tries)
{
    return (n == -EINTR || n == -EAGAIN) && ++*tries < HRI_ARCHIVE_TRIES;
}

int hri_archive_write_all(const struct hri_io_ops *io, int fd, const void *data, size_t bytes,
                          uint64_t offset)
{
    union {
        const void *in;
        unsigned char *out;
    } at = {.in = data};
    for (int tries = 0; bytes > 0;) {
        struct iovec iov = {at.out, bytes};
        ssize_t n = io->writev(io->ctx, fd, &iov, 1, offset);
        if (again(n, &tries))
            continue;
        if (n <= 0 || (size_t)n > bytes)
            return n < 0 ? (int)n : -EIO;
        at.out += n;
        offset += (uint64_t)n;
        bytes -= (size_t)n;
    }
    return 0;
}

int hri_archive_read_all(const struct hri_io_ops *io, int fd, void *data, size_t bytes,
                         uint64_t offset)
{
    unsigned char *at = data;
    for (int tries = 0; bytes > 0;) {
        struct iovec iov = {at, bytes};
        ssize_t n = io->readv(io->ctx, fd, &iov, 1, offset);
        if (again(n, &tries))
            continue;
        if (n <= 0 || (size_t)n > bytes)
            return n < 0 ? (int)n : n == 0 ? -ENODATA : -EIO;
        at += n;
        offset += (uint64_t)n;
        bytes -= (size_t)n;
    }
    return 0;
}

hr_status_t hri_archive_disk(const struct hri_disk_options *options, struct hri_disk **disk_out)
{
    static const hr_io_mode_t modes[] = {HR_IO_URING, HR_IO_URING_PLAIN, HR_IO_THREADS};
    struct hri_disk_options o = *options;
    hr_status_t status = HR_ERR_UNSUPPORTED;
    for (size_t i = 0; i < sizeof modes / sizeof *modes && status == HR_ERR_UNSUPPORTED; i++) {
        o.mode = modes[i];
        if (options->mode == HR_IO_AUTO || options->mode == modes[i])
            status = hri_disk_create(&o, disk_out);
    }
    return status == HR_ERR_UNSUPPORTED ? HR_OK : status;
}

hr_status_t hri_archive_status(int error, const char *what, const char *path)
{
    if (error == ETIMEDOUT)
        return hri_error_set(HR_ERR_TIMEOUT, "session %s: %s: the disk gives no answer", path,
                             what);
    return hri_error_set(error == ENOMEM ? HR_ERR_NOMEM : HR_ERR_IO, "session %s: %s: %s", path,
                         what, strerror(error));
}

/* -- writing -- */

struct hri_archive_out {
    struct hri_archive_out_options options;
    struct hri_archive_flow *flow;
    unsigned char
        *group;         /* [HRI_ARCHIVE_GROUP_BYTES] of the flow: blocks that wait to be written */
    size_t group_bytes; /* of finished blocks in it */
    uint64_t group_address; /* in the file */
    size_t payload_bytes;   /* of the block being filled, behind the finished ones */
    uint32_t payload_crc;
    uint64_t key; /* its key; 0: no stream was begun */
    struct hri_archive_entry *entries;
    uint64_t n_entries, entries_max;
};

hr_status_t hri_archive_begin(const struct hri_archive_out_options *options,
                              struct hri_archive_out **out_out)
{
    struct hri_archive_out *out = hri_calloc(options->alloc, 1, sizeof *out);
    if (out == NULL)
        return hri_alloc_status();
    out->options = *options;
    out->group_address = 2 * HRI_ARCHIVE_PAGE;
    hr_status_t status = hri_archive_flow_begin(options, &out->flow);
    if (status != HR_OK) {
        hri_free(options->alloc, out);
        return status;
    }
    out->group = hri_archive_flow_group(out->flow);
    *out_out = out;
    return HR_OK;
}

bool hri_archive_out_free(struct hri_archive_out *out)
{
    if (out == NULL)
        return false;
    struct hri_alloc *alloc = out->options.alloc;
    bool stuck = hri_archive_flow_end(out->flow);
    hri_free(alloc, out->entries);
    hri_free(alloc, out);
    return stuck;
}

static hr_status_t group_write(struct hri_archive_out *out, uint64_t address, size_t bytes)
{
    if (bytes > 0)
        HRI_TRY(hri_archive_flow_send(out->flow, bytes, address));
    out->group = hri_archive_flow_group(out->flow);
    return HR_OK;
}

static hr_status_t blocks_write(struct hri_archive_out *out)
{
    HRI_TRY(group_write(out, out->group_address, out->group_bytes));
    out->group_address += out->group_bytes;
    out->group_bytes = 0;
    return HR_OK;
}

static hr_status_t entry_add(struct hri_archive_out *out, const struct hri_archive_header *h)
{
    if (out->n_entries == out->entries_max) {
        uint64_t most = out->entries_max > 0 ? 2 * out->entries_max : 256;
        struct hri_archive_entry *more = hri_array(out->options.alloc, most, sizeof *more);
        if (more == NULL)
            return hri_alloc_status();
        if (out->n_entries > 0)
            memcpy(more, out->entries, out->n_entries * sizeof *more);
        hri_free(out->options.alloc, out->entries);
        out->entries = more;
        out->entries_max = most;
    }
    out->entries[out->n_entries++] = (struct hri_archive_entry){
        .key = h->key, .address = h->address, .bytes = h->bytes, .crc = h->crc};
    return HR_OK;
}

/* The block behind the finished ones gets its header and becomes one of them. */
static hr_status_t block_end(struct hri_archive_out *out)
{
    unsigned char *block = out->group + out->group_bytes;
    size_t used = HRI_ARCHIVE_HEADER_BYTES + out->payload_bytes, whole = hri_archive_round(used);
    struct hri_archive_header h = {
        .magic = HRI_ARCHIVE_BLOCK_MAGIC,
        .crc = out->payload_crc,
        .key = out->key,
        .address = out->group_address + out->group_bytes,
        .generation = out->options.generation,
        .bytes = (uint32_t)out->payload_bytes,
    };
    h.header_crc = hri_crc32c(0, &h, offsetof(struct hri_archive_header, header_crc));
    memcpy(block, &h, sizeof h);
    memset(block + used, 0, whole - used);
    HRI_TRY(entry_add(out, &h));
    out->group_bytes += whole;
    out->payload_bytes = 0;
    out->payload_crc = 0;
    out->key++;
    if (HRI_ARCHIVE_GROUP_BYTES - out->group_bytes < HRI_ARCHIVE_BLOCK_BYTES)
        return blocks_write(out);
    return HR_OK;
}

static hr_status_t stream_end(struct hri_archive_out *out)
{
    return out->payload_bytes > 0 ? block_end(out) : HR_OK;
}

hr_status_t hri_archive_stream(struct hri_archive_out *out, uint64_t key)
{
    HRI_TRY(stream_end(out));
    out->key = key;
    return HR_OK;
}

hr_status_t hri_archive_put(struct hri_archive_out *out, const void *data, size_t bytes)
{
    const unsigned char *at = data;
    while (bytes > 0) {
        size_t room = HRI_ARCHIVE_PAYLOAD_BYTES - out->payload_bytes;
        size_t now = bytes < room ? bytes : room;
        now = now < PIECE_BYTES ? now : PIECE_BYTES;
        memcpy(out->group + out->group_bytes + HRI_ARCHIVE_HEADER_BYTES + out->payload_bytes, at,
               now);
        out->payload_crc = hri_crc32c(out->payload_crc, at, now);
        out->payload_bytes += now;
        at += now;
        bytes -= now;
        if (out->payload_bytes == HRI_ARCHIVE_PAYLOAD_BYTES)
            HRI_TRY(block_end(out));
    }
    return HR_OK;
}

/* Whole pages, the last one with zeros at its end. */
static hr_status_t index_write(struct hri_archive_out *out, uint32_t *crc_out,
                               uint64_t *file_bytes_out)
{
    size_t bytes = out->n_entries * sizeof *out->entries;
    *crc_out = hri_crc32c(0, out->entries, bytes);
    *file_bytes_out = out->group_address + hri_archive_round(bytes);
    for (size_t at = 0; at < bytes; at += HRI_ARCHIVE_GROUP_BYTES) {
        size_t now = bytes - at < HRI_ARCHIVE_GROUP_BYTES ? bytes - at : HRI_ARCHIVE_GROUP_BYTES;
        size_t whole = hri_archive_round(now);
        memcpy(out->group, (const unsigned char *)out->entries + at, now);
        memset(out->group + now, 0, whole - now);
        HRI_TRY(group_write(out, out->group_address + at, whole));
    }
    return HR_OK;
}

hr_status_t hri_archive_finish(struct hri_archive_out *out)
{
    struct hri_archive_superblock super = {
        .version = HRI_ARCHIVE_VERSION,
        .page_bytes = HRI_ARCHIVE_PAGE,
        .generation = out->options.generation,
        .saved_unix_s = out->options.saved_unix_s,
    };
    HRI_TRY(stream_end(out));
    HRI_TRY(blocks_write(out));
    super.n_blocks = out->n_entries;
    super.index_address = out->group_address;
    HRI_TRY(index_write(out, &super.index_crc, &super.file_bytes));
    memcpy(super.magic, hri_archive_magic, sizeof super.magic);
    for (uint32_t i = 0; i < 2; i++) {
        super.copy = i;
        super.crc = hri_crc32c(0, &super, offsetof(struct hri_archive_superblock, crc));
        memcpy(out->group + (size_t)i * HRI_ARCHIVE_PAGE, &super, sizeof super);
    }
    HRI_TRY(group_write(out, 0, 2 * sizeof super));
    return hri_archive_flow_wait(out->flow);
}
