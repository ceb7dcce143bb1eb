/* What a folder and the kernel offer, for `headrace info`. */
#include "offload/store_impl.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>

#include "base/error.h"
#include "offload/io_ring.h"

#define PROBE_FILE_BYTES (1u << 20)

struct text {
    char *buf;
    size_t bytes, length;
};

static void add(struct text *text, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void add(struct text *text, const char *format, ...)
{
    if (text->length >= text->bytes)
        return;
    va_list args;
    va_start(args, format);
    int n = vsnprintf(text->buf + text->length, text->bytes - text->length, format, args);
    va_end(args);
    text->length += n > 0 ? (size_t)n : 0;
}

/* A JSON string; bytes that are no plain text become '?', as the texts here are paths and messages.
 */
static void add_string(struct text *text, const char *value)
{
    add(text, "\"");
    for (; *value != '\0'; value++) {
        unsigned char c = (unsigned char)*value;
        if (c == '"' || c == '\\')
            add(text, "\\%c", c);
        else
            add(text, "%c", c < 0x20 ? '?' : c);
    }
    add(text, "\"");
}

static const char *fs_name(uint64_t magic)
{
    static const struct {
        uint64_t magic;
        const char *name;
    } names[] = {
        {0xef53, "ext4"},        {0x58465342, "xfs"}, {0x9123683e, "btrfs"}, {0x01021994, "tmpfs"},
        {0x794c7630, "overlay"}, {0x6969, "nfs"},     {0x2fc12fc1, "zfs"},   {0xf2f52010, "f2fs"},
        {0x65735546, "fuse"},    {0x01021997, "9p"},  {0x858458f6, "ramfs"}, {0xff534d42, "cifs"},
    };
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (names[i].magic == magic)
            return names[i].name;
    return "other";
}

static const char *yes(bool value)
{
    return value ? "true" : "false";
}

static void add_ring(struct text *text)
{
    struct hri_io_ring_features ring;
    hri_io_ring_probe(&ring);
    add(text, "\"io_uring\": {\"usable\": %s, ", yes(ring.error == 0));
    if (ring.error != 0) {
        add(text, "\"reason\": ");
        add_string(text, strerror(-ring.error));
        add(text, ", ");
    }
    add(text,
        "\"defer_taskrun\": %s, \"registered_buffers\": %s, \"read_fixed\": %s, \"readv\": %s, "
        "\"writev\": %s}",
        yes(ring.defer_taskrun), yes(ring.registered_buffers), yes(ring.read_fixed),
        yes(ring.readv), yes(ring.writev));
}

static void add_memlock(struct text *text)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_MEMLOCK, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY)
        add(text, ", \"memlock_bytes\": null");
    else
        add(text, ", \"memlock_bytes\": %llu", (unsigned long long)limit.rlim_cur);
}

/* Makes a small store there, which probes as a real one does. */
static void add_dir(struct text *text, const char *dir)
{
    struct hri_store_options options = {
        .file_dir = dir,
        .file_bytes = PROBE_FILE_BYTES,
        .queue_depth = 4,
    };
    struct hri_store *store;
    add(text, ", \"dir\": ");
    add_string(text, dir);
    if (hri_store_create(&options, &store) != HR_OK) {
        add(text, ", \"usable\": false, \"reason\": ");
        add_string(text, hr_last_error());
        return;
    }
    struct hri_io_stat info = {0};
    struct hri_disk_stats disk;
    store->io->stat_file(store->io->ctx, store->file.fd, &info);
    hri_disk_stats(store->read_disk, &disk);
    add(text, ", \"usable\": true, \"io_mode\": \"%s\", \"direct\": %s",
        hri_disk_name(store->read_disk), yes(store->file.direct));
    add(text, ", \"direct_memory_align\": %u, \"direct_offset_align\": %u", info.dio_memory_align,
        info.dio_offset_align);
    add(text, ", \"registered_buffers_used\": %s", yes(disk.registered_buffers > 0));
    add(text, ", \"file_system\": \"%s\", \"free_bytes\": %llu", fs_name(info.fs_magic),
        (unsigned long long)info.free_bytes);
    hri_store_destroy(store);
}

hr_status_t hri_store_probe_json(const char *dir, char *buf, size_t buf_bytes)
{
    if (buf == NULL || buf_bytes == 0)
        return hri_error_set(HR_ERR_INVALID, "probe: no buffer");
    struct text text = {buf, buf_bytes, 0};
    add(&text, "{");
    add_ring(&text);
    add_memlock(&text);
    if (dir != NULL)
        add_dir(&text, dir);
    add(&text, "}");
    return HR_OK;
}
