/* Reading an archive. Nothing in the file is believed before its checksum fits, and nothing that fits its checksum is believed either:
 * every number is compared with what a writer can have written. */
#include "offload/archive_impl.h"

#include <errno.h>
#include <string.h>

#include "base/checksum.h"
#include "base/error.h"

struct hri_archive_in {
    const struct hri_io_ops *io;
    struct hri_alloc *alloc;
    int fd;
    const char *path;
    struct hri_archive_superblock super;
    int superblocks_bad;
    struct hri_archive_block *blocks; /* [n_blocks] */
    unsigned char *buffer;            /* [BLOCK_BYTES] */
    /* The stream being read. */
    uint64_t next, end; /* blocks left: [next, end) */
    uint64_t stream_first;
    uint32_t have, used; /* payload bytes in the buffer, and given out */
};

static hr_status_t read_at(const struct hri_archive_in *in, void *data, size_t bytes,
                           uint64_t address)
{
    int error = hri_archive_read_all(in->io, in->fd, data, bytes, address);
    if (error == -ENODATA)
        return hri_error_set(HR_ERR_CORRUPT, "session %s: the file ends before byte %llu", in->path,
                             (unsigned long long)(address + bytes));
    return error == 0
               ? HR_OK
               : hri_error_set(HR_ERR_IO, "session %s: reading: %s", in->path, strerror(-error));
}

/* -- superblocks and index -- */

static bool superblock_fits(const struct hri_archive_superblock *s, uint32_t copy)
{
    return memcmp(s->magic, hri_archive_magic, sizeof s->magic) == 0 &&
           hri_crc32c(0, s, offsetof(struct hri_archive_superblock, crc)) == s->crc &&
           s->copy == copy;
}

static hr_status_t superblocks_read(struct hri_archive_in *in, uint64_t file_bytes)
{
    struct hri_archive_superblock s[2];
    bool fits[2] = {false, false};
    if (file_bytes < sizeof s)
        return hri_error_set(HR_ERR_CORRUPT, "session %s: %llu bytes are less than its beginning",
                             in->path, (unsigned long long)file_bytes);
    for (int tries = 0; tries < 2 && !(fits[0] && fits[1]); tries++) {
        HRI_TRY(read_at(in, s, sizeof s, 0));
        fits[0] = superblock_fits(&s[0], 0);
        fits[1] = superblock_fits(&s[1], 1);
    }
    if (!fits[0] && !fits[1]) {
        bool ours = memcmp(s[0].magic, hri_archive_magic, sizeof s[0].magic) == 0 ||
                    memcmp(s[1].magic, hri_archive_magic, sizeof s[1].magic) == 0;
        return ours ? hri_error_set(HR_ERR_CORRUPT, "session %s: both superblocks are damaged",
                                    in->path)
                    : hri_error_set(HR_ERR_INVALID, "session %s: the file is no session", in->path);
    }
    /* Of two that fit, the later save's; a writer leaves two of the same. */
    uint32_t best = fits[0] && (!fits[1] || s[0].generation >= s[1].generation) ? 0 : 1;
    in->superblocks_bad = !fits[0] + !fits[1];
    in->super = s[best];
    if (in->super.version != HRI_ARCHIVE_VERSION)
        return hri_error_set(HR_ERR_VERSION,
                             "session %s: format version %u; this library reads version %u",
                             in->path, in->super.version, HRI_ARCHIVE_VERSION);
    return HR_OK;
}

/* The index ends the file, and its blocks fill all between it and the superblocks. */
static hr_status_t layout_check(const struct hri_archive_in *in, uint64_t file_bytes)
{
    const struct hri_archive_superblock *s = &in->super;
    uint64_t blocks_max = file_bytes / HRI_ARCHIVE_PAGE;
    bool fits =
        s->page_bytes == HRI_ARCHIVE_PAGE && s->n_blocks <= blocks_max &&
        s->index_address >= 2 * HRI_ARCHIVE_PAGE && s->index_address <= file_bytes &&
        s->index_address + hri_archive_round(s->n_blocks * sizeof(struct hri_archive_entry)) ==
            s->file_bytes;
    if (fits && s->file_bytes == file_bytes)
        return HR_OK;
    return hri_error_set(HR_ERR_CORRUPT,
                         "session %s: the file has %llu bytes; its superblock speaks of %llu, an "
                         "index at %llu and %llu blocks",
                         in->path, (unsigned long long)file_bytes,
                         (unsigned long long)s->file_bytes, (unsigned long long)s->index_address,
                         (unsigned long long)s->n_blocks);
}

static hr_status_t index_check(const struct hri_archive_in *in)
{
    uint64_t address = 2 * HRI_ARCHIVE_PAGE;
    const uint64_t part = HRI_ARCHIVE_PARTS_MAX - 1;
    for (uint64_t i = 0; i < in->super.n_blocks; i++) {
        const struct hri_archive_block *b = &in->blocks[i], *before = i > 0 ? b - 1 : NULL;
        bool goes_on = before != NULL && b->key == before->key + 1 && (b->key & part) != 0;
        bool key = goes_on ? before->bytes == HRI_ARCHIVE_PAYLOAD_BYTES
                           : (b->key & part) == 0 && (before == NULL || b->key > before->key);
        if (!key || b->bytes == 0 || b->bytes > HRI_ARCHIVE_PAYLOAD_BYTES || b->address != address)
            return hri_error_set(HR_ERR_CORRUPT,
                                 "session %s: index entry %llu: key %llx, %u bytes at %llu, where "
                                 "a block at %llu should follow",
                                 in->path, (unsigned long long)i, (unsigned long long)b->key,
                                 b->bytes, (unsigned long long)b->address,
                                 (unsigned long long)address);
        address += hri_archive_round(HRI_ARCHIVE_HEADER_BYTES + b->bytes);
    }
    return address == in->super.index_address
               ? HR_OK
               : hri_error_set(HR_ERR_CORRUPT,
                               "session %s: blocks end at %llu, the index is at %llu", in->path,
                               (unsigned long long)address,
                               (unsigned long long)in->super.index_address);
}

static hr_status_t index_read(struct hri_archive_in *in)
{
    size_t bytes = in->super.n_blocks * sizeof *in->blocks;
    in->blocks = hri_aligned(in->alloc, 64, bytes > 0 ? bytes : 64);
    if (in->blocks == NULL)
        return hri_alloc_status();
    bool fits = false;
    for (int tries = 0; tries < 2 && !fits; tries++) {
        HRI_TRY(read_at(in, in->blocks, bytes, in->super.index_address));
        fits = hri_crc32c(0, in->blocks, bytes) == in->super.index_crc;
    }
    return fits ? index_check(in)
                : hri_error_set(HR_ERR_CORRUPT, "session %s: its index is damaged", in->path);
}

hr_status_t hri_archive_open(const struct hri_io_ops *io, struct hri_alloc *alloc, int fd,
                             const char *path, struct hri_archive_in **in_out)
{
    struct hri_io_stat stat = {0};
    struct hri_archive_in *in = hri_calloc(alloc, 1, sizeof *in);
    if (in == NULL)
        return hri_alloc_status();
    in->io = io;
    in->alloc = alloc;
    in->fd = fd;
    in->path = path;
    hr_status_t status = HR_OK;
    int error = io->stat_file(io->ctx, fd, &stat);
    if (error < 0)
        status = hri_folder_status(error, "reading the file's length", path);
    if (status == HR_OK)
        status = superblocks_read(in, stat.file_bytes);
    if (status == HR_OK)
        status = layout_check(in, stat.file_bytes);
    if (status == HR_OK)
        status = index_read(in);
    if (status == HR_OK) {
        in->buffer = hri_aligned(alloc, HRI_ARCHIVE_PAGE, HRI_ARCHIVE_BLOCK_BYTES);
        status = in->buffer != NULL ? HR_OK : hri_alloc_status();
    }
    if (status != HR_OK) {
        hri_archive_in_free(in);
        return status;
    }
    *in_out = in;
    return HR_OK;
}

void hri_archive_in_free(struct hri_archive_in *in)
{
    if (in == NULL)
        return;
    struct hri_alloc *alloc = in->alloc;
    hri_free(alloc, in->blocks);
    hri_free(alloc, in->buffer);
    hri_free(alloc, in);
}

struct hri_archive_facts hri_archive_facts(const struct hri_archive_in *in)
{
    return (struct hri_archive_facts){.version = in->super.version,
                                      .generation = in->super.generation,
                                      .file_bytes = in->super.file_bytes,
                                      .saved_unix_s = in->super.saved_unix_s,
                                      .n_blocks = in->super.n_blocks,
                                      .superblocks_bad = in->superblocks_bad,
                                      .blocks = in->blocks};
}

/* -- blocks -- */

static bool block_fits(const struct hri_archive_in *in, const struct hri_archive_block *b)
{
    struct hri_archive_header h;
    memcpy(&h, in->buffer, sizeof h);
    return h.magic == HRI_ARCHIVE_BLOCK_MAGIC && h.key == b->key && h.address == b->address &&
           h.generation == in->super.generation && h.bytes == b->bytes && h.crc == b->crc &&
           h.header_crc == hri_crc32c(0, &h, offsetof(struct hri_archive_header, header_crc)) &&
           hri_crc32c(0, in->buffer + HRI_ARCHIVE_HEADER_BYTES, b->bytes) == b->crc;
}

/* `whole`: with the zeros behind the payload. */
static hr_status_t block_read(struct hri_archive_in *in, uint64_t i, bool whole)
{
    const struct hri_archive_block *b = &in->blocks[i];
    size_t used = HRI_ARCHIVE_HEADER_BYTES + b->bytes,
           bytes = whole ? hri_archive_round(used) : used;
    for (int tries = 0; tries < 2; tries++) {
        HRI_TRY(read_at(in, in->buffer, bytes, b->address));
        bool fits = block_fits(in, b);
        for (size_t j = used; fits && j < bytes; j++)
            fits = in->buffer[j] == 0;
        if (fits)
            return HR_OK;
    }
    return hri_error_set(HR_ERR_CORRUPT, "session %s: the block at byte %llu is damaged", in->path,
                         (unsigned long long)b->address);
}

hr_status_t hri_archive_check(struct hri_archive_in *in, uint64_t block)
{
    in->have = in->used = 0; /* the buffer is shared with the stream */
    in->next = in->end = 0;
    return block_read(in, block, true);
}

/* -- streams -- */

/* The first block with this key or a larger one. */
static uint64_t lower_bound(const struct hri_archive_in *in, uint64_t key)
{
    uint64_t low = 0, high = in->super.n_blocks;
    while (low < high) {
        uint64_t middle = low + (high - low) / 2;
        if (in->blocks[middle].key < key)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

uint64_t hri_archive_bytes(const struct hri_archive_in *in, uint64_t key)
{
    uint64_t i = lower_bound(in, key), end = lower_bound(in, key + HRI_ARCHIVE_PARTS_MAX);
    return i == end ? 0 : (end - i - 1) * HRI_ARCHIVE_PAYLOAD_BYTES + in->blocks[end - 1].bytes;
}

hr_status_t hri_archive_seek(struct hri_archive_in *in, uint64_t key)
{
    in->next = in->stream_first = lower_bound(in, key);
    in->end = lower_bound(in, key + HRI_ARCHIVE_PARTS_MAX);
    in->have = in->used = 0;
    return in->next < in->end ? HR_OK
                              : hri_error_set(HR_ERR_CORRUPT, "session %s: stream %llx is missing",
                                              in->path, (unsigned long long)key);
}

hr_status_t hri_archive_get(struct hri_archive_in *in, void *data, size_t bytes)
{
    unsigned char *at = data;
    while (bytes > 0) {
        if (in->used == in->have) {
            if (in->next == in->end)
                return hri_error_set(HR_ERR_CORRUPT, "session %s: a stream ends too early",
                                     in->path);
            in->have = in->used = 0;
            HRI_TRY(block_read(in, in->next, false));
            in->have = in->blocks[in->next++].bytes;
        }
        size_t now = in->have - in->used < bytes ? in->have - in->used : bytes;
        memcpy(at, in->buffer + HRI_ARCHIVE_HEADER_BYTES + in->used, now);
        in->used += (uint32_t)now;
        at += now;
        bytes -= now;
    }
    return HR_OK;
}

uint64_t hri_archive_lost_at(const struct hri_archive_in *in)
{
    return (in->next - in->stream_first) * (uint64_t)HRI_ARCHIVE_PAYLOAD_BYTES;
}

uint64_t hri_archive_left(const struct hri_archive_in *in)
{
    uint64_t left = in->have - in->used;
    for (uint64_t i = in->next; i < in->end; i++)
        left += in->blocks[i].bytes;
    return left;
}
