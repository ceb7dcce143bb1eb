/* A saved session's file: named streams of bytes in checksummed blocks (docs/format.md). Written once, front to back, beside the old one
 * and renamed over it; never changed afterwards.
 *
 *   0      superblock, 4 KiB     version, sequence number of the save, length, where the index is; its own CRC
 *   4096   the same again
 *   8192   blocks                header of 64 bytes (key, address, sequence number, length, CRC-32C), payload, zeros up to 4 KiB
 *   ...    index                 key, address, length, CRC-32C of every block, in the order of the file
 *
 * Keys ascend strictly and blocks lie one after the other without a gap, so that no block can be there twice, lie inside another or point
 * anywhere else. Every call of the table is checked: lengths, errors, checksums; a read whose checksum does not fit is tried once more.
 *
 * Threads: an archive belongs to one thread at a time. */
#ifndef HRI_ARCHIVE_H
#define HRI_ARCHIVE_H

#include "base/alloc.h"
#include "offload/io_ops.h"
#include <headrace/headrace.h>

#define HRI_ARCHIVE_VERSION       1u
#define HRI_ARCHIVE_PAGE          4096u
#define HRI_ARCHIVE_BLOCK_BYTES   (1u << 20) /* of a full block with its header */
#define HRI_ARCHIVE_HEADER_BYTES  64u
#define HRI_ARCHIVE_PAYLOAD_BYTES (HRI_ARCHIVE_BLOCK_BYTES - HRI_ARCHIVE_HEADER_BYTES)
#define HRI_ARCHIVE_PARTS_MAX     (1u << 24) /* blocks of a stream: the low bits of a key */

#define HRI_SESSION_FILE     "session"
#define HRI_SESSION_FILE_NEW "session.new"
#define HRI_SESSION_LOCK     "lock"

/* A stream's name: section (0: of the whole; 1: the caller's; 2: of a layer; 3: of the whole, derived), layer, kind, kv-head. Streams are
 * written in ascending order. */
/* The key of a stream's first block; the low 24 bits count its blocks. */
static inline uint64_t hri_archive_key(uint32_t section, uint32_t layer, uint32_t kind,
                                       uint32_t head)
{
    return (uint64_t)section << 60 | (uint64_t)layer << 44 | (uint64_t)kind << 40 |
           (uint64_t)head << 24;
}

/* -- folders -- */

/* Opens the folder of a session; make: it may be new. HR_ERR_NOTFOUND, HR_ERR_INVALID (a link, no folder), HR_ERR_IO. */
hr_status_t hri_folder_open(const struct hri_io_ops *io, const char *path, bool make,
                            bool *made_out, int *folder_out);
/* HR_ERR_BUSY: the message names the process that has it. */
hr_status_t hri_folder_lock(const struct hri_io_ops *io, int folder, const char *path,
                            int *lock_out);
/* The same to read only: none is needed where the medium cannot be written from here, as whoever writes it elsewhere replaces the
 * session's file whole. Then *lock_out is -1. */
hr_status_t hri_folder_lock_to_read(const struct hri_io_ops *io, int folder, const char *path,
                                    int *lock_out);
/* HR_ERR_IO, HR_ERR_NOTFOUND ... from a negative errno value of the table. */
hr_status_t hri_folder_status(int error, const char *what, const char *path);

/* -- writing -- */

struct hri_archive_out;
struct hri_archive_out_options {
    const struct hri_io_ops *io;
    struct hri_alloc *alloc;
    int fd;              /* an empty file, the caller's */
    const char *path;    /* of messages */
    uint64_t generation; /* sequence number of this save */
    uint64_t saved_unix_s;
    bool syncs; /* the caller will sync the file: the disk begins at once, past the page cache */
    hr_io_mode_t mode;   /* of such writes */
    uint64_t timeout_ns; /* a write that gets no answer for so long fails; 0: HRI_DISK_TIMEOUT_NS */
};
hr_status_t hri_archive_begin(const struct hri_archive_out_options *options,
                              struct hri_archive_out **out_out);
/* What is put from here on belongs to this stream; keys ascend. */
hr_status_t hri_archive_stream(struct hri_archive_out *out, uint64_t key);
hr_status_t hri_archive_put(struct hri_archive_out *out, const void *data, size_t bytes);
/* Writes the index and the superblocks and waits for all writes; nothing is synced. */
hr_status_t hri_archive_finish(struct hri_archive_out *out);
/* True: a thread that was given up may still be writing, so that fd has to stay open for good. NULL is legal. */
bool hri_archive_out_free(struct hri_archive_out *out);

/* -- reading -- */

struct hri_archive_block {
    uint64_t key, address;
    uint32_t bytes, crc;
};
struct hri_archive_in;
struct hri_archive_in_options {
    const struct hri_io_ops *io;
    struct hri_alloc *alloc;
    int fd;              /* the caller's */
    const char *path;    /* of messages */
    hr_io_mode_t mode;   /* of the reads */
    uint64_t timeout_ns; /* a read that gets no answer for so long fails; 0: HRI_DISK_TIMEOUT_NS */
};
/* Reads and checks superblocks and index. HR_ERR_VERSION (another format), HR_ERR_CORRUPT, HR_ERR_IO, HR_ERR_TIMEOUT, HR_ERR_NOMEM.
 * *stuck_out: see hri_archive_in_free; it may be set by an open that failed. */
hr_status_t hri_archive_open(const struct hri_archive_in_options *options,
                             struct hri_archive_in **in_out, bool *stuck_out);
/* True: a thread that was given up may still be reading, so that fd has to stay open for good. NULL is legal. */
bool hri_archive_in_free(struct hri_archive_in *in);

struct hri_archive_facts {
    uint32_t version;
    uint64_t generation, file_bytes, saved_unix_s, n_blocks;
    int superblocks_bad;
    const struct hri_archive_block *blocks; /* [n_blocks], in the order of the file */
};
struct hri_archive_facts hri_archive_facts(const struct hri_archive_in *in);

/* Bytes of a stream; 0 if there is none. */
uint64_t hri_archive_bytes(const struct hri_archive_in *in, uint64_t key);
/* The next gets read this stream from its beginning. HR_ERR_CORRUPT if there is none. */
hr_status_t hri_archive_seek(struct hri_archive_in *in, uint64_t key);
/* HR_ERR_CORRUPT when the stream ends before, or a block is not what was written; hri_archive_lost_at is then the stream's byte at which
 * the bad block begins. */
hr_status_t hri_archive_get(struct hri_archive_in *in, void *data, size_t bytes);
/* Bytes of the stream that were not given out yet. */
uint64_t hri_archive_left(const struct hri_archive_in *in);
uint64_t hri_archive_lost_at(const struct hri_archive_in *in);
/* One block by its place, with the zeros behind it; those that follow are read ahead. */
hr_status_t hri_archive_check(struct hri_archive_in *in, uint64_t block);
/* The zeros behind the index. */
hr_status_t hri_archive_check_end(struct hri_archive_in *in);

#endif
