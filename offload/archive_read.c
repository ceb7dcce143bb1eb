/* Reading an archive. Nothing in the file is believed before its checksum fits, and nothing that fits its checksum is believed either:
 * every number is compared with what a writer can have written. */
#include "offload/archive_impl.h"

#include <errno.h>
#include <string.h>

#include "base/checksum.h"
#include "base/error.h"

#define AHEAD 3 /* blocks that are read ahead */

struct hri_archive_in {
    struct hri_alloc *alloc;
    const char *path;
    struct hri_archive_feed *feed;
    struct hri_archive_superblock super;
    int superblocks_bad;
    struct hri_archive_block *blocks; /* [n_blocks] */
    const unsigned char *block;       /* the feed's: what was read last */
    /* The stream being read. */
    uint64_t next, end; /* blocks left: [next, end) */
    uint64_t stream_first;
    uint32_t have, used; /* payload bytes of the block, and given out */
};

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
    const unsigned char *data;
    bool fits[2] = {false, false};
    if (file_bytes < sizeof s)
        return hri_error_set(HR_ERR_CORRUPT, "session %s: %llu bytes are less than its beginning",
                             in->path, (unsigned long long)file_bytes);
    for (int tries = 0; tries < 2 && !(fits[0] && fits[1]); tries++) {
        HRI_TRY(hri_archive_feed_read(in->feed, sizeof s, 0, &data));
        memcpy(s, data, sizeof s);
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

static hr_status_t entries_read(struct hri_archive_in *in, size_t bytes)
{
    unsigned char *at = (unsigned char *)in->blocks;
    uint64_t address = in->super.index_address;
    while (bytes > 0) {
        const unsigned char *data;
        size_t now = bytes < HRI_ARCHIVE_BLOCK_BYTES ? bytes : HRI_ARCHIVE_BLOCK_BYTES;
        HRI_TRY(hri_archive_feed_read(in->feed, now, address, &data));
        memcpy(at, data, now);
        at += now;
        address += now;
        bytes -= now;
    }
    return HR_OK;
}

static hr_status_t index_read(struct hri_archive_in *in)
{
    size_t bytes = in->super.n_blocks * sizeof *in->blocks;
    in->blocks = hri_aligned(in->alloc, 64, bytes > 0 ? bytes : 64);
    if (in->blocks == NULL)
        return hri_alloc_status();
    bool fits = false;
    for (int tries = 0; tries < 2 && !fits; tries++) {
        HRI_TRY(entries_read(in, bytes));
        fits = hri_crc32c(0, in->blocks, bytes) == in->super.index_crc;
    }
    return fits ? index_check(in)
                : hri_error_set(HR_ERR_CORRUPT, "session %s: its index is damaged", in->path);
}

static hr_status_t in_begin(struct hri_archive_in *in, const struct hri_archive_in_options *o)
{
    struct hri_io_stat stat = {0};
    int error = o->io->stat_file(o->io->ctx, o->fd, &stat);
    if (error < 0)
        return hri_folder_status(error, "reading the file's length", o->path);
    HRI_TRY(hri_archive_feed_begin(o, &in->feed));
    HRI_TRY(superblocks_read(in, stat.file_bytes));
    HRI_TRY(layout_check(in, stat.file_bytes));
    return index_read(in);
}

hr_status_t hri_archive_open(const struct hri_archive_in_options *options,
                             struct hri_archive_in **in_out, bool *stuck_out)
{
    struct hri_archive_in *in = hri_calloc(options->alloc, 1, sizeof *in);
    *stuck_out = false;
    if (in == NULL)
        return hri_alloc_status();
    in->alloc = options->alloc;
    in->path = options->path;
    hr_status_t status = in_begin(in, options);
    if (status != HR_OK) {
        *stuck_out = hri_archive_in_free(in);
        return status;
    }
    *in_out = in;
    return HR_OK;
}

bool hri_archive_in_free(struct hri_archive_in *in)
{
    if (in == NULL)
        return false;
    struct hri_alloc *alloc = in->alloc;
    bool stuck = hri_archive_feed_end(in->feed);
    hri_free(alloc, in->blocks);
    hri_free(alloc, in);
    return stuck;
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
    memcpy(&h, in->block, sizeof h);
    return h.magic == HRI_ARCHIVE_BLOCK_MAGIC && h.key == b->key && h.address == b->address &&
           h.generation == in->super.generation && h.bytes == b->bytes && h.crc == b->crc &&
           h.header_crc == hri_crc32c(0, &h, offsetof(struct hri_archive_header, header_crc)) &&
           hri_crc32c(0, in->block + HRI_ARCHIVE_HEADER_BYTES, b->bytes) == b->crc;
}

/* Of a block in the file, with the zeros behind its payload or without. */
static size_t bytes_of(const struct hri_archive_block *b, bool whole)
{
    size_t used = HRI_ARCHIVE_HEADER_BYTES + b->bytes;
    return whole ? hri_archive_round(used) : used;
}

static bool zeros_fit(const struct hri_archive_in *in, size_t first, size_t end)
{
    while (first < end && in->block[first] == 0)
        first++;
    return first == end;
}

/* Of those up to `end` the next ones are read ahead. */
static hr_status_t block_read(struct hri_archive_in *in, uint64_t i, uint64_t end, bool whole)
{
    const struct hri_archive_block *b = &in->blocks[i];
    size_t bytes = bytes_of(b, whole);
    for (int tries = 0; tries < 2; tries++) {
        HRI_TRY(hri_archive_feed_read(in->feed, bytes, b->address, &in->block));
        for (uint64_t j = i + 1; j < end && j <= i + AHEAD; j++)
            hri_archive_feed_ahead(in->feed, bytes_of(&in->blocks[j], whole),
                                   in->blocks[j].address);
        if (block_fits(in, b) && zeros_fit(in, bytes_of(b, false), bytes))
            return HR_OK;
    }
    return hri_error_set(HR_ERR_CORRUPT, "session %s: the block at byte %llu is damaged", in->path,
                         (unsigned long long)b->address);
}

static void stream_leave(struct hri_archive_in *in) /* whose block makes room for another */
{
    in->have = in->used = 0;
    in->next = in->end = 0;
}

hr_status_t hri_archive_check(struct hri_archive_in *in, uint64_t block)
{
    stream_leave(in);
    return block_read(in, block, in->super.n_blocks, true);
}

hr_status_t hri_archive_check_end(struct hri_archive_in *in)
{
    const struct hri_archive_superblock *s = &in->super;
    size_t n = s->file_bytes - s->index_address - s->n_blocks * sizeof *in->blocks;
    stream_leave(in);
    for (int tries = 0; tries < 2 && n > 0; tries++) {
        HRI_TRY(hri_archive_feed_read(in->feed, n, s->file_bytes - n, &in->block));
        if (zeros_fit(in, 0, n))
            return HR_OK;
    }
    return n == 0 ? HR_OK
                  : hri_error_set(HR_ERR_CORRUPT,
                                  "session %s: the end of the file is damaged; no token is lost",
                                  in->path);
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
            HRI_TRY(block_read(in, in->next, in->end, false));
            in->have = in->blocks[in->next++].bytes;
        }
        size_t now = in->have - in->used < bytes ? in->have - in->used : bytes;
        memcpy(at, in->block + HRI_ARCHIVE_HEADER_BYTES + in->used, now);
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
