#include "tests/sim/sim_disk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define FD_BASE 1000

static void die(const char *why)
{
    (void)why;
    abort(); /* a limit of the rig itself */
}

/* True if the call is to be done; else *error_out is its result. Counts the calls that change something. */
static bool call_begins(struct sim_disk *disk, int *error_out)
{
    static const int errors[SIM_FAULTS] = {0, 0, EINTR, EAGAIN, EIO, ENOSPC, EDQUOT};
    *error_out = -EIO;
    if (disk->off)
        return false;
    uint64_t n = ++disk->n_calls;
    if (disk->cut_at != 0 && n >= disk->cut_at)
        disk->off = true; /* this one may still be done: the caller asks `off` */
    bool faulty =
        disk->fault != SIM_RIGHT && n >= disk->fault_at && n - disk->fault_at < disk->fault_count;
    disk->n_faults += faulty;
    if (!faulty || disk->fault == SIM_SHORT)
        return true;
    *error_out = -errors[disk->fault];
    return false;
}

static bool is_short(const struct sim_disk *disk)
{
    return disk->fault == SIM_SHORT && disk->n_calls >= disk->fault_at &&
           disk->n_calls - disk->fault_at < disk->fault_count;
}

static int fd_new(struct sim_disk *disk, int kind, uint32_t index)
{
    for (int i = 0; i < SIM_FDS; i++)
        if (disk->fds[i].kind == 0) {
            disk->fds[i].kind = kind;
            disk->fds[i].index = index;
            return FD_BASE + i;
        }
    return -EMFILE;
}

static struct sim_folder *folder_of(struct sim_disk *disk, int fd)
{
    return &disk->folders[disk->fds[fd - FD_BASE].index];
}

static struct sim_file *file_of(struct sim_disk *disk, int fd)
{
    return &disk->files[disk->fds[fd - FD_BASE].index];
}

/* ---------------------------------------------------------------------------------------- bytes */

static void put(unsigned char **bytes, uint64_t *n, uint64_t *capacity, uint64_t offset,
                const unsigned char *data, uint64_t n_data)
{
    uint64_t end = offset + n_data;
    if (end > *capacity) {
        *capacity = end + end / 2 + 4096;
        *bytes = realloc(*bytes, *capacity);
        if (*bytes == NULL)
            die("memory");
    }
    if (end > *n) {
        memset(*bytes + *n, 0, end - *n);
        *n = end;
    }
    memcpy(*bytes + offset, data, n_data);
}

#define DIRECT_BYTES 4096u

static void check_direct(const struct sim_file *file, const struct iovec *iov, uint64_t offset)
{
    if (file->direct && ((uintptr_t)iov->iov_base % DIRECT_BYTES != 0 ||
                         iov->iov_len % DIRECT_BYTES != 0 || offset % DIRECT_BYTES != 0))
        die("a direct transfer that is not aligned");
}

static ssize_t sim_writev(void *ctx, int fd, const struct iovec *iov, int n_iov, uint64_t offset)
{
    struct sim_disk *disk = ctx;
    struct sim_file *file = file_of(disk, fd);
    uint64_t bytes = 0;
    int error;
    if (!call_begins(disk, &error))
        return error;
    for (int i = 0; i < n_iov; i++) {
        bytes += iov[i].iov_len;
        check_direct(file, &iov[i], offset);
    }
    uint64_t most = is_short(disk) && bytes > 1 ? bytes / 2 : bytes, at = 0;
    struct sim_write *write = malloc(sizeof *write + most);
    if (write == NULL)
        die("memory");
    write->offset = offset;
    write->bytes = most;
    for (int i = 0; i < n_iov && at < most; i++) {
        uint64_t n = iov[i].iov_len < most - at ? iov[i].iov_len : most - at;
        memcpy(write->data + at, iov[i].iov_base, n);
        at += n;
    }
    write->next = file->unsynced;
    file->unsynced = write;
    put(&file->live, &file->bytes, &file->capacity, offset, write->data, most);
    return disk->off ? -EIO : (ssize_t)most;
}

static ssize_t sim_readv(void *ctx, int fd, const struct iovec *iov, int n_iov, uint64_t offset)
{
    struct sim_disk *disk = ctx;
    const struct sim_file *file = file_of(disk, fd);
    uint64_t done = 0, most = UINT64_MAX;
    int error;
    if (!call_begins(disk, &error))
        return error;
    if (is_short(disk) && iov[0].iov_len > 1)
        most = iov[0].iov_len / 2;
    for (int i = 0; i < n_iov && offset < file->bytes && done < most; i++) {
        uint64_t n = iov[i].iov_len, left = file->bytes - offset;
        n = n < left ? n : left;
        n = n < most - done ? n : most - done;
        memcpy(iov[i].iov_base, file->live + offset, n);
        done += n;
        offset += n;
    }
    return (ssize_t)done;
}

static void file_sync(struct sim_file *file)
{
    free(file->stable);
    file->stable = malloc(file->bytes + 1);
    if (file->stable == NULL)
        die("memory");
    if (file->bytes > 0)
        memcpy(file->stable, file->live, file->bytes);
    file->stable_bytes = file->bytes;
    while (file->unsynced != NULL) {
        struct sim_write *next = file->unsynced->next;
        free(file->unsynced);
        file->unsynced = next;
    }
}

/* ---------------------------------------------------------------------------------------- names */

static struct sim_name *name_find(struct sim_name *names, const char *name)
{
    for (int i = 0; i < SIM_NAMES; i++)
        if (strcmp(names[i].name, name) == 0)
            return &names[i];
    return NULL;
}

static void name_apply(struct sim_name *names, const struct sim_change *change)
{
    struct sim_name *from = change->from[0] ? name_find(names, change->from) : NULL;
    struct sim_name *to = name_find(names, change->name);
    uint32_t file = from != NULL ? from->file : change->file;
    if (from != NULL)
        from->name[0] = '\0';
    if (change->file == SIM_FILES) {
        if (to != NULL)
            to->name[0] = '\0';
        return;
    }
    if (to == NULL)
        to = name_find(names, "");
    if (to == NULL)
        die("names");
    strcpy(to->name, change->name);
    to->file = file;
}

static void change(struct sim_folder *folder, const char *name, const char *from, uint32_t file)
{
    if (folder->n_changes == SIM_CHANGES)
        die("changes");
    struct sim_change *c = &folder->changes[folder->n_changes++];
    memset(c, 0, sizeof *c);
    strncpy(c->name, name, sizeof c->name - 1);
    strncpy(c->from, from, sizeof c->from - 1);
    c->file = file;
    name_apply(folder->live, c);
}

static int sim_folder_open(void *ctx, const char *path, bool make, bool *made_out)
{
    struct sim_disk *disk = ctx;
    size_t length = strlen(path);
    int error, slot = -1;
    if (made_out != NULL)
        *made_out = false;
    if (length > 3 && strcmp(path + length - 3, "/..") == 0)
        return fd_new(disk, 2, 0); /* the root, whose folders are the others */
    for (int i = 1; i < SIM_FOLDERS; i++) {
        if (strcmp(disk->folders[i].path, path) == 0)
            return disk->off ? -EIO : fd_new(disk, 2, (uint32_t)i);
        slot = disk->folders[i].path[0] == '\0' ? i : slot;
    }
    if (!make)
        return -ENOENT;
    if (!call_begins(disk, &error))
        return error;
    if (slot < 0)
        die("folders");
    strncpy(disk->folders[slot].path, path, sizeof disk->folders[slot].path - 1);
    if (made_out != NULL)
        *made_out = true;
    return fd_new(disk, 2, (uint32_t)slot);
}

static int sim_file_open(void *ctx, int folder_fd, const char *name, bool create)
{
    struct sim_disk *disk = ctx;
    struct sim_folder *folder = folder_of(disk, folder_fd);
    const struct sim_name *found = name_find(folder->live, name);
    int error;
    if (!create)
        return disk->off ? -EIO : found == NULL ? -ENOENT : fd_new(disk, 1, found->file);
    if (!call_begins(disk, &error))
        return error;
    if (found != NULL)
        return -EEXIST;
    if (disk->n_files == SIM_FILES)
        die("files");
    uint32_t file = disk->n_files++;
    change(folder, name, "", file);
    return fd_new(disk, 1, file);
}

static int sim_file_rename(void *ctx, int folder_fd, const char *from, const char *to)
{
    struct sim_disk *disk = ctx;
    struct sim_folder *folder = folder_of(disk, folder_fd);
    const struct sim_name *found = name_find(folder->live, from);
    int error;
    if (!call_begins(disk, &error))
        return error;
    if (found == NULL)
        return -ENOENT;
    change(folder, to, from, found->file);
    return disk->off ? -EIO : 0;
}

static int sim_file_remove(void *ctx, int folder_fd, const char *name)
{
    struct sim_disk *disk = ctx;
    struct sim_folder *folder = folder_of(disk, folder_fd);
    int error;
    if (name_find(folder->live, name) == NULL)
        return disk->off ? -EIO : -ENOENT;
    if (!call_begins(disk, &error))
        return error;
    change(folder, name, "", SIM_FILES);
    return disk->off ? -EIO : 0;
}

static int sim_sync_file(void *ctx, int fd)
{
    struct sim_disk *disk = ctx;
    int error;
    if (!call_begins(disk, &error))
        return error;
    if (disk->off && hri_rng_below(&disk->rng, 2)) /* cut before it was done, or after */
        return -EIO;
    if (disk->fds[fd - FD_BASE].kind == 1) {
        file_sync(file_of(disk, fd));
    } else if (disk->fds[fd - FD_BASE].index == 0) {
        for (int i = 1; i < SIM_FOLDERS; i++)
            disk->folders[i].stable = disk->folders[i].path[0] != '\0';
    } else {
        struct sim_folder *folder = folder_of(disk, fd);
        memcpy(folder->kept, folder->live, sizeof folder->kept);
        folder->n_changes = 0;
    }
    return disk->off ? -EIO : 0;
}

static int sim_file_lock(void *ctx, int folder_fd, const char *name, int *holder_out)
{
    struct sim_disk *disk = ctx;
    uint32_t index = disk->fds[folder_fd - FD_BASE].index;
    (void)name;
    *holder_out = 0;
    for (int i = 0; i < SIM_FDS; i++)
        if (disk->fds[i].kind == 3 && disk->fds[i].index == index)
            return -EBUSY;
    return disk->off ? -EIO : fd_new(disk, 3, index);
}

static int sim_close_file(void *ctx, int fd)
{
    struct sim_disk *disk = ctx;
    disk->fds[fd - FD_BASE].kind = 0;
    return disk->off ? -EIO : 0;
}

static int sim_stat_file(void *ctx, int fd, struct hri_io_stat *stat_out)
{
    struct sim_disk *disk = ctx;
    *stat_out = (struct hri_io_stat){.free_bytes = 1ull << 40};
    if (disk->fds[fd - FD_BASE].kind == 1)
        stat_out->file_bytes = stat_out->physical_bytes = file_of(disk, fd)->bytes;
    return disk->off ? -EIO : 0;
}

static int sim_set_direct(void *ctx, int fd, bool direct)
{
    struct sim_disk *disk = ctx;
    file_of(disk, fd)->direct = direct;
    return disk->off ? -EIO : 0;
}

/* ---------------------------------------------------------------------------------------- rings */

#define RING_OPS 64

struct sim_ring {
    int fd;
    uint32_t n_ops, n_results;
    struct hri_ring_op ops[RING_OPS];
    struct hri_ring_result results[RING_OPS];
};

static int sim_ring_create(void *ctx, const struct hri_ring_options *options, void **ring_out)
{
    (void)ctx;
    struct sim_ring *ring = calloc(1, sizeof *ring);
    if (ring == NULL || options->depth > RING_OPS)
        die("a ring");
    ring->fd = options->fd;
    *ring_out = ring;
    return 0;
}

static void sim_ring_destroy(void *ctx, void *ring)
{
    (void)ctx;
    free(ring);
}

static int sim_ring_register(void *ctx, void *ring, uint32_t slot, void *base, size_t bytes)
{
    (void)ctx, (void)ring, (void)slot, (void)base, (void)bytes;
    return -ENOMEM;
}

static int sim_ring_push(void *ctx, void *state, const struct hri_ring_op *op)
{
    struct sim_ring *ring = state;
    (void)ctx;
    if (ring->n_ops + ring->n_results == RING_OPS)
        return -EBUSY;
    ring->ops[ring->n_ops++] = *op;
    return 0;
}

static int sim_ring_enter(void *ctx, void *state, bool wait, uint64_t timeout_ns)
{
    struct sim_disk *disk = ctx;
    struct sim_ring *ring = state;
    (void)timeout_ns;
    while (ring->n_ops > 0 && (wait || hri_rng_below(&disk->rng, 2))) {
        wait = false;
        uint32_t at = (uint32_t)hri_rng_below(&disk->rng, ring->n_ops);
        struct hri_ring_op op = ring->ops[at];
        ring->ops[at] = ring->ops[--ring->n_ops];
        ssize_t n = op.write ? sim_writev(disk, ring->fd, op.iov, (int)op.n_iov, op.offset)
                             : sim_readv(disk, ring->fd, op.iov, (int)op.n_iov, op.offset);
        ring->results[ring->n_results++] =
            (struct hri_ring_result){.user = op.user, .result = (int32_t)n};
    }
    return 0;
}

static int sim_ring_reap(void *ctx, void *state, struct hri_ring_result *results, uint32_t n_max)
{
    struct sim_disk *disk = ctx;
    struct sim_ring *ring = state;
    uint32_t n = 0;
    while (n < n_max && ring->n_results > 0) {
        uint32_t at = (uint32_t)hri_rng_below(&disk->rng, ring->n_results);
        results[n++] = ring->results[at];
        ring->results[at] = ring->results[--ring->n_results];
    }
    return (int)n;
}

/* ------------------------------------------------------------------------------------------ cut */

/* One unsynced write as the disk has it: whole, not at all, or some of its sectors. */
static void write_survives(struct sim_disk *disk, struct sim_file *file, uint64_t *capacity,
                           const struct sim_write *write)
{
    uint64_t fate = hri_rng_below(&disk->rng, 4);
    uint64_t sector = hri_rng_below(&disk->rng, 2) ? 512 : 4096;
    if (fate == 0)
        return;
    for (uint64_t at = 0; at < write->bytes;) {
        uint64_t n = sector - (write->offset + at) % sector;
        n = n < write->bytes - at ? n : write->bytes - at;
        if (fate == 1 || hri_rng_below(&disk->rng, 2))
            put(&file->stable, &file->stable_bytes, capacity, write->offset + at, write->data + at,
                n);
        at += n;
    }
}

static void file_cut(struct sim_disk *disk, struct sim_file *file)
{
    const struct sim_write *writes[1024];
    uint32_t n = 0;
    uint64_t capacity = file->stable_bytes;
    for (const struct sim_write *w = file->unsynced; w != NULL && n < 1024; w = w->next)
        writes[n++] = w;
    while (n > 0) {
        uint32_t at = (uint32_t)hri_rng_below(&disk->rng, n);
        write_survives(disk, file, &capacity, writes[at]);
        writes[at] = writes[--n];
    }
    free(file->live);
    file->live = file->stable != NULL ? file->stable : malloc(1);
    file->bytes = file->stable_bytes;
    file->capacity = capacity;
    file->stable = NULL;
    file_sync(file);
}

void sim_power_cut(struct sim_disk *disk)
{
    for (uint32_t i = 0; i < disk->n_files; i++)
        file_cut(disk, &disk->files[i]);
    for (int i = 1; i < SIM_FOLDERS; i++) {
        struct sim_folder *folder = &disk->folders[i];
        if (!folder->stable && hri_rng_below(&disk->rng, 2)) {
            memset(folder, 0, sizeof *folder);
            continue;
        }
        folder->stable = folder->path[0] != '\0';
        uint32_t n = (uint32_t)hri_rng_below(&disk->rng, folder->n_changes + 1);
        for (uint32_t c = 0; c < n; c++)
            name_apply(folder->kept, &folder->changes[c]);
        folder->n_changes = 0;
        memcpy(folder->live, folder->kept, sizeof folder->live);
    }
    memset(disk->fds, 0, sizeof disk->fds);
    disk->off = false;
    disk->cut_at = 0;
}

unsigned char *sim_bytes(struct sim_disk *disk, const char *path, const char *name,
                         uint64_t *bytes_out)
{
    for (int i = 1; i < SIM_FOLDERS; i++) {
        const struct sim_name *found = strcmp(disk->folders[i].path, path) == 0
                                           ? name_find(disk->folders[i].live, name)
                                           : NULL;
        if (found == NULL)
            continue;
        *bytes_out = disk->files[found->file].bytes;
        return disk->files[found->file].live;
    }
    return NULL;
}

void sim_init(struct sim_disk *disk, uint64_t seed)
{
    memset(disk, 0, sizeof *disk);
    hri_rng_seed(&disk->rng, seed);
    disk->ops = (struct hri_io_ops){
        .ctx = disk,
        .close_file = sim_close_file,
        .stat_file = sim_stat_file,
        .readv = sim_readv,
        .writev = sim_writev,
        .folder_open = sim_folder_open,
        .file_open = sim_file_open,
        .file_rename = sim_file_rename,
        .file_remove = sim_file_remove,
        .sync_file = sim_sync_file,
        .file_lock = sim_file_lock,
    };
}

void sim_add_rings(struct sim_disk *disk)
{
    disk->ops.set_direct = sim_set_direct;
    disk->ops.ring_create = sim_ring_create;
    disk->ops.ring_destroy = sim_ring_destroy;
    disk->ops.ring_register = sim_ring_register;
    disk->ops.ring_push = sim_ring_push;
    disk->ops.ring_enter = sim_ring_enter;
    disk->ops.ring_reap = sim_ring_reap;
}

void sim_fini(struct sim_disk *disk)
{
    for (uint32_t i = 0; i < disk->n_files; i++) {
        file_sync(&disk->files[i]);
        free(disk->files[i].live);
        free(disk->files[i].stable);
    }
    memset(disk, 0, sizeof *disk);
}
