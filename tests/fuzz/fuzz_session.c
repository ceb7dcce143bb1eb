/* Session files. The input is a list of edits to a session that is made here, in memory; afterwards its checksums are made right again (or
 * not), so that the edits reach what is behind them. What is opened must work: steps, a cut, a fork, another save. */
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checksum.h"
#include "offload/archive_impl.h"
#include "runtime/sequence.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { FILE_MAX = 1 << 20, D = 16, Q = 2, TOKENS = 150, TOKENS_MAX = 400 };

#define must(expr)                                                                                 \
    do {                                                                                           \
        if (!(expr)) {                                                                             \
            fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #expr, hr_last_error());        \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

/* -- a folder in memory: two names at most, a lock that is always free -- */

enum { FOLDER = 100, LOCK, OLD, NEW };
static struct {
    unsigned char bytes[FILE_MAX];
    size_t n;
    bool exists;
} files[2];

static int m_folder(void *c, const char *path, bool make, bool *made)
{
    (void)c, (void)path, (void)make;
    if (made)
        *made = false;
    return FOLDER;
}
static int which(const char *name)
{
    return strcmp(name, HRI_SESSION_FILE_NEW) == 0;
}
static int m_open(void *c, int folder, const char *name, bool create)
{
    (void)c, (void)folder;
    int i = which(name);
    if (create) {
        files[i].n = 0;
        files[i].exists = true;
    }
    return files[i].exists ? OLD + i : -ENOENT;
}
static int m_rename(void *c, int folder, const char *from, const char *to)
{
    (void)c, (void)folder, (void)from, (void)to;
    files[0] = files[1];
    files[1].exists = false;
    return 0;
}
static int m_remove(void *c, int folder, const char *name)
{
    (void)c, (void)folder;
    int i = which(name);
    bool was = files[i].exists;
    files[i].exists = false;
    return was ? 0 : -ENOENT;
}
static int m_sync(void *c, int fd)
{
    (void)c, (void)fd;
    return 0;
}
static int m_lock(void *c, int folder, const char *name, int *holder)
{
    (void)c, (void)folder, (void)name;
    *holder = 0;
    return LOCK;
}
static int m_stat(void *c, int fd, struct hri_io_stat *st)
{
    (void)c;
    *st = (struct hri_io_stat){.file_bytes = fd >= OLD ? files[fd - OLD].n : 0, .inode = 1};
    return 0;
}
static ssize_t m_read(void *c, int fd, const struct iovec *iov, int n, uint64_t at)
{
    (void)c, (void)n;
    size_t have = files[fd - OLD].n, left = at < have ? have - at : 0;
    size_t now = iov->iov_len < left ? iov->iov_len : left;
    if (now > 0)
        memcpy(iov->iov_base, files[fd - OLD].bytes + at, now);
    return (ssize_t)now;
}
static ssize_t m_write(void *c, int fd, const struct iovec *iov, int n, uint64_t at)
{
    (void)c, (void)n;
    if (at > FILE_MAX || iov->iov_len > FILE_MAX - at)
        return -ENOSPC;
    memcpy(files[fd - OLD].bytes + at, iov->iov_base, iov->iov_len);
    if (at + iov->iov_len > files[fd - OLD].n)
        files[fd - OLD].n = at + iov->iov_len;
    return (ssize_t)iov->iov_len;
}

static const struct hri_io_ops memory_io = {.close_file = m_sync,
                                            .stat_file = m_stat,
                                            .readv = m_read,
                                            .writev = m_write,
                                            .folder_open = m_folder,
                                            .file_open = m_open,
                                            .file_rename = m_rename,
                                            .file_remove = m_remove,
                                            .sync_file = m_sync,
                                            .file_lock = m_lock};

/* -- a session of each kind -- */

static const char *const recipes[] = {"headrace:window=16,decode_segment=16",
                                      "quest:window=16,decode_segment=16",
                                      "retroinfer:window=16,decode_segment=16",
                                      "clusterkv:window=16,decode_segment=16",
                                      "magicpig:window=16,decode_segment=16,tables=20,bits=4",
                                      "retrievalattention:window=16,decode_segment=16",
                                      "pqcache:window=16,decode_segment=16",
                                      "lserve:window=16,decode_segment=16",
                                      "shadowkv:window=16,decode_segment=16",
                                      "full"};
enum { RECIPES = sizeof recipes / sizeof *recipes };
static struct {
    unsigned char *bytes;
    size_t n;
} sessions[RECIPES];
static float rows[TOKENS_MAX * Q * D], out[TOKENS_MAX * Q * D];

static struct hr_sequence_options options_of(const char *recipe)
{
    struct hr_sequence_options o;
    hr_sequence_options_init(&o);
    o.n_layers = 1;
    o.n_q_heads = Q;
    o.n_kv_heads = 1;
    o.k_dim = o.v_dim = D;
    o.tokens_max = TOKENS_MAX;
    o.moved = 0.3;
    o.recipe = recipe;
    return o;
}

static hr_status_t step(hr_sequence_t *s, uint32_t n)
{
    struct hr_tensor k = hr_tensor_make(rows, HR_DTYPE_F32, n, 1, D),
                     q = hr_tensor_make(rows, HR_DTYPE_F32, n, Q, D),
                     o = hr_tensor_make(out, HR_DTYPE_F32, n, Q, D);
    hr_status_t status = hr_sequence_append(s, 0, &k, &k, NULL);
    return status == HR_OK ? hr_sequence_attend(s, 0, &q, NULL, &o, NULL, NULL) : status;
}

static hr_runtime_t *runtime_make(void)
{
    struct hr_runtime_options o;
    hr_runtime_t *rt = NULL;
    hr_runtime_options_init(&o);
    o.device_bytes = 32u << 20;
    o.host_bytes = 8u << 20;
    o.n_threads = 1;
    must(hri_runtime_create(&o, &memory_io, &rt) == HR_OK);
    return rt;
}

static void sessions_make(hr_runtime_t *rt)
{
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        rows[i] = (float)((i * 2654435761u >> 7) % 2000) / 1000 - 1;
    for (int i = 0; i < RECIPES; i++) {
        struct hr_sequence_options o = options_of(recipes[i]);
        hr_sequence_t *s = NULL;
        must(hr_sequence_create(rt, &o, &s) == HR_OK);
        must(step(s, TOKENS) == HR_OK && step(s, 1) == HR_OK && step(s, 1) == HR_OK);
        must(hr_sequence_save(s, "memory", NULL) == HR_OK);
        hr_sequence_destroy(s);
        sessions[i].n = files[0].n;
        sessions[i].bytes = malloc(files[0].n);
        memcpy(sessions[i].bytes, files[0].bytes, files[0].n);
    }
}

/* -- edits -- */

static void put(size_t at, const void *value, size_t n)
{
    for (size_t i = 0; i < n && at + i < files[0].n; i++)
        files[0].bytes[at + i] = ((const unsigned char *)value)[i];
}

/* Seven bytes each: what to do, where (3), with what (3). */
static void edit(const uint8_t *e)
{
    size_t at = (e[1] | (size_t)e[2] << 8 | (size_t)e[3] << 16) % (files[0].n + 1);
    uint64_t small = e[4] | (uint64_t)e[5] << 8, value = small << e[6] % 49;
    switch (e[0] % 5) {
    case 0:
        put(at, &value, 1);
        break;
    case 1:
        put(at & ~(size_t)3, &value, 4);
        break;
    case 2:
        put(at & ~(size_t)7, &value, 8);
        break;
    case 3:
        value = files[0].bytes[at % FILE_MAX] ^ (1u << e[4] % 8);
        put(at, &value, 1);
        break;
    default:
        files[0].n = at;
    }
}

/* Right checksums over what is there, as far as it can be followed. */
static void checksums_mend(void)
{
    struct hri_archive_superblock *super = (void *)files[0].bytes;
    if (files[0].n < 2 * HRI_ARCHIVE_PAGE)
        return;
    uint64_t n = super->n_blocks, index = super->index_address;
    if (index % 8 == 0 && index < files[0].n &&
        n <= (files[0].n - index) / sizeof(struct hri_archive_entry)) {
        struct hri_archive_entry *e = (void *)(files[0].bytes + index);
        for (uint64_t i = 0; i < n; i++) {
            if (e[i].address % 8 != 0 || e[i].address > files[0].n - HRI_ARCHIVE_HEADER_BYTES ||
                e[i].bytes > files[0].n - e[i].address - HRI_ARCHIVE_HEADER_BYTES)
                continue;
            struct hri_archive_header *h = (void *)(files[0].bytes + e[i].address);
            e[i].crc = h->crc = hri_crc32c(0, h + 1, e[i].bytes);
            h->header_crc = hri_crc32c(0, h, offsetof(struct hri_archive_header, header_crc));
        }
        super->index_crc = hri_crc32c(0, e, n * sizeof *e);
    }
    super[1] = super[0];
    for (uint32_t i = 0; i < 2; i++) {
        super[i].copy = i;
        super[i].crc = hri_crc32c(0, &super[i], offsetof(struct hri_archive_superblock, crc));
    }
}

static void use(hr_runtime_t *rt, hr_sequence_t *s)
{
    hr_sequence_t *fork = NULL;
    uint32_t n = hr_sequence_length(s, 0);
    for (int i = 0; i < 20 && step(s, 1) == HR_OK; i++) {
    }
    if (hr_sequence_fork(s, &fork) == HR_OK) {
        (void)step(fork, 1);
        (void)hr_sequence_truncate(fork, n / 2);
        (void)step(fork, 1);
    }
    hr_sequence_destroy(fork);
    (void)hr_sequence_truncate(s, n > 3 ? n - 3 : 0);
    (void)step(s, 1);
    (void)hr_sequence_save(s, "other", NULL);
    (void)rt;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static hr_runtime_t *rt;
    if (rt == NULL) {
        rt = runtime_make();
        sessions_make(rt);
    }
    if (size < 1)
        return 0;
    int i = data[0] % 16 % RECIPES;
    memcpy(files[0].bytes, sessions[i].bytes, sessions[i].n);
    files[0].n = sessions[i].n;
    files[0].exists = true;
    for (size_t at = 1; at + 7 <= size; at += 7)
        edit(data + at);
    if (data[0] < 240)
        checksums_mend();
    struct hr_sequence_options o = options_of(recipes[i]);
    hr_sequence_t *s = NULL;
    hr_status_t status = hr_sequence_open(rt, "memory", &o, NULL, &s);
    if (status == HR_OK)
        use(rt, s);
    else
        must(hr_last_error()[0] != '\0' && status != HR_ERR_INTERNAL);
    hr_sequence_destroy(s);
    return 0;
}
