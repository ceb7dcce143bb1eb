/* The bytes of an archive, shared by its writer and its reader. */
#ifndef HRI_ARCHIVE_IMPL_H
#define HRI_ARCHIVE_IMPL_H

#include "offload/archive.h"
#include "offload/disk.h"

#define HRI_ARCHIVE_TRIES       32         /* of one transfer that the kernel asks to repeat */
#define HRI_ARCHIVE_GROUP_BYTES (4u << 20) /* blocks that are written at once */

static const char hri_archive_magic[8] = {'H', 'R', 'S', 'E', 'S', 'S', '\r', '\n'};
#define HRI_ARCHIVE_BLOCK_MAGIC 0x6b6c4248u /* "HBlk" */

struct hri_archive_superblock {
    char magic[8];
    uint32_t version, page_bytes;
    uint64_t generation, file_bytes;
    uint64_t index_address, n_blocks;
    uint64_t saved_unix_s;
    uint32_t index_crc;
    uint32_t copy; /* 0 or 1 */
    uint8_t zero[HRI_ARCHIVE_PAGE - 68];
    uint32_t crc; /* of all before it */
};
_Static_assert(sizeof(struct hri_archive_superblock) == HRI_ARCHIVE_PAGE, "on disk");

struct hri_archive_header {
    uint32_t magic, crc; /* of the payload */
    uint64_t key, address, generation;
    uint32_t bytes; /* of the payload */
    uint32_t zero[6];
    uint32_t header_crc; /* of all before it */
};
_Static_assert(sizeof(struct hri_archive_header) == HRI_ARCHIVE_HEADER_BYTES, "on disk");

struct hri_archive_entry {
    uint64_t key, address;
    uint32_t bytes, crc;
};
_Static_assert(sizeof(struct hri_archive_entry) == 24, "on disk");
_Static_assert(sizeof(struct hri_archive_entry) == sizeof(struct hri_archive_block),
               "the index is read into place");

static inline uint64_t hri_archive_round(uint64_t bytes)
{
    return (bytes + HRI_ARCHIVE_PAGE - 1) / HRI_ARCHIVE_PAGE * HRI_ARCHIVE_PAGE;
}

/* Whole transfers: short ones are continued, EINTR and EAGAIN tried again. Minus an errno value; a read at the end of the file is
 * -ENODATA. */
int hri_archive_write_all(const struct hri_io_ops *io, int fd, const void *data, size_t bytes,
                          uint64_t offset);
int hri_archive_read_all(const struct hri_io_ops *io, int fd, void *data, size_t bytes,
                         uint64_t offset);

/* A disk for the file, by the mode or, where it is AUTO, the first that there is. HR_OK and no disk: there is no such mode here. */
hr_status_t hri_archive_disk(const struct hri_disk_options *options, struct hri_disk **disk_out);
/* HR_ERR_TIMEOUT, HR_ERR_IO with its message from an errno value. */
hr_status_t hri_archive_status(int error, const char *what, const char *path);

/* -- the way to the file (archive_flow.c) -- */

struct hri_archive_flow;
hr_status_t hri_archive_flow_begin(const struct hri_archive_out_options *options,
                                   struct hri_archive_flow **flow_out);
/* The group to be filled, [HRI_ARCHIVE_GROUP_BYTES]; another one after each send. */
unsigned char *hri_archive_flow_group(struct hri_archive_flow *flow);
/* Its first bytes go to that place in the file, both whole pages. HR_ERR_IO, HR_ERR_TIMEOUT: this write or an earlier one failed. */
hr_status_t hri_archive_flow_send(struct hri_archive_flow *flow, size_t bytes, uint64_t address);
/* Until all that was sent is written; the same errors. */
hr_status_t hri_archive_flow_wait(struct hri_archive_flow *flow);
/* Waits, too. True: a thread that was given up may still use the file, so that it has to stay open for good. NULL is legal. */
bool hri_archive_flow_end(struct hri_archive_flow *flow);

/* -- the way from the file (archive_feed.c) -- */

struct hri_archive_feed;
hr_status_t hri_archive_feed_begin(const struct hri_archive_in_options *options,
                                   struct hri_archive_feed **feed_out);
/* At most HRI_ARCHIVE_BLOCK_BYTES; they stay until the next read. HR_ERR_CORRUPT where the file ends before, HR_ERR_IO,
 * HR_ERR_TIMEOUT. */
hr_status_t hri_archive_feed_read(struct hri_archive_feed *feed, size_t bytes, uint64_t address,
                                  const unsigned char **data_out);
/* Will be read next, if there is room for it; nothing is said of how it went before it is asked for. */
void hri_archive_feed_ahead(struct hri_archive_feed *feed, size_t bytes, uint64_t address);
/* As hri_archive_flow_end. */
bool hri_archive_feed_end(struct hri_archive_feed *feed);

#endif
