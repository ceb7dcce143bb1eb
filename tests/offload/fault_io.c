#include "tests/offload/fault_io.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define RING_DEPTH_MAX 256

/* One pushed operation: what the disk wanted and what the kernel was asked for instead. */
struct pushed {
    bool used;
    struct hri_ring_op op;
    struct iovec iov[64];
    int kind, error;
    int64_t asked_bytes;
};

struct fault_ring {
    void *real;
    struct pushed pushed[RING_DEPTH_MAX];
    struct hri_ring_result held[FAULT_HELD_MAX]; /* results kept back, and doubles */
    int n_held;
};

static int64_t bytes_of(const struct iovec *iov, uint32_t n_iov)
{
    int64_t bytes = 0;
    for (uint32_t i = 0; i < n_iov; i++)
        bytes += (int64_t)iov[i].iov_len;
    return bytes;
}

/* The fault for the next transfer. */
static int next_fault(struct fault_io *io, bool write, int *error_out)
{
    pthread_mutex_lock(&io->mutex);
    const struct fault_rule copy = write ? io->write : io->read, *rule = &copy;
    pthread_mutex_unlock(&io->mutex);
    long n = atomic_fetch_add(write ? &io->n_writes : &io->n_reads, 1);
    *error_out = rule->error;
    if (io->direct && io->refuse_direct_io) {
        *error_out = EINVAL;
        return FAULT_ERROR;
    }
    if (rule->kind == FAULT_NONE || n < rule->after || n >= rule->after + rule->count)
        return FAULT_NONE;
    atomic_fetch_add(&io->n_faults, 1);
    return (int)rule->kind;
}

/* Cuts iov to half, in whole sectors. */
static uint32_t cut(struct iovec *iov, uint32_t n_iov)
{
    int64_t left = bytes_of(iov, n_iov) / 2 / 512 * 512;
    if (left == 0)
        left = 512;
    uint32_t n = 0;
    while (left > 0) {
        if ((int64_t)iov[n].iov_len > left)
            iov[n].iov_len = (size_t)left;
        left -= (int64_t)iov[n++].iov_len;
    }
    return n;
}

/* What the transfer reports, given what the kernel said. */
static int64_t bend(int kind, int error, int64_t asked_bytes, int64_t result,
                    const struct iovec *iov)
{
    if (result < 0 && kind != FAULT_ERROR)
        return result;
    switch (kind) {
    case FAULT_ERROR:
        return -error;
    case FAULT_ODD:
        return result > 700 ? result - 300 : result;
    case FAULT_ZERO:
        return 0;
    case FAULT_LONG:
        return asked_bytes + 512;
    case FAULT_FLIP:
        ((unsigned char *)iov[0].iov_base)[17] ^= 4;
        return result;
    default:
        return result;
    }
}

/* ---------------------------------------------------------------------------------------- files */

static void nap(void)
{
    struct timespec pause = {0, 1000000};
    nanosleep(&pause, NULL);
}

static void call_begin(struct fault_io *io, int call)
{
    long n = atomic_fetch_add(&io->n_calls, 1);
    if (!atomic_load(&io->hangs) || n != atomic_load(&io->hang_at))
        return;
    atomic_store(&io->hung, call);
    while (atomic_load(&io->hangs))
        nap();
}

void fault_io_hang(struct fault_io *io, long at)
{
    atomic_store(&io->n_calls, 0);
    atomic_store(&io->hang_at, at);
    atomic_store(&io->hung, CALLS);
    atomic_store(&io->hangs, true);
}

void fault_io_answer(struct fault_io *io)
{
    atomic_store(&io->hangs, false);
}

static int fault_folder_open(void *ctx, const char *path, bool make, bool *made_out)
{
    call_begin(ctx, CALL_FOLDER_OPEN);
    return hri_io_real()->folder_open(NULL, path, make, made_out);
}

static int fault_folder_alone(void *ctx, int folder, const char *names)
{
    call_begin(ctx, CALL_FOLDER_ALONE);
    return hri_io_real()->folder_alone(NULL, folder, names);
}

static int fault_folder_remove(void *ctx, int folder, const char *path)
{
    call_begin(ctx, CALL_FOLDER_REMOVE);
    return hri_io_real()->folder_remove(NULL, folder, path);
}

static int fault_file_open(void *ctx, int folder, const char *name, bool create)
{
    call_begin(ctx, CALL_FILE_OPEN);
    return hri_io_real()->file_open(NULL, folder, name, create);
}

static int fault_file_rename(void *ctx, int folder, const char *from, const char *to)
{
    call_begin(ctx, CALL_RENAME);
    return hri_io_real()->file_rename(NULL, folder, from, to);
}

static int fault_file_remove(void *ctx, int folder, const char *name)
{
    call_begin(ctx, CALL_REMOVE);
    return hri_io_real()->file_remove(NULL, folder, name);
}

static int fault_file_lock(void *ctx, int folder, const char *name, int *holder_out)
{
    call_begin(ctx, CALL_LOCK);
    return hri_io_real()->file_lock(NULL, folder, name, holder_out);
}

static int fault_sync_file(void *ctx, int fd)
{
    call_begin(ctx, CALL_SYNC);
    return hri_io_real()->sync_file(NULL, fd);
}

static void fault_write_back(void *ctx, int fd, uint64_t offset, uint64_t bytes)
{
    call_begin(ctx, CALL_WRITE_BACK);
    hri_io_real()->write_back(NULL, fd, offset, bytes);
}

static int fault_open_temp(void *ctx, const char *dir, bool direct)
{
    struct fault_io *io = ctx;
    call_begin(io, CALL_OPEN_TEMP);
    if (io->open_error)
        return -io->open_error;
    if (direct && io->no_direct)
        return -EINVAL;
    io->fd = hri_io_real()->open_temp(NULL, dir, direct);
    io->direct = direct;
    return io->fd;
}

static int fault_set_direct(void *ctx, int fd, bool direct)
{
    struct fault_io *io = ctx;
    if (direct && io->no_direct)
        return -EINVAL;
    io->direct = direct;
    return hri_io_real()->set_direct(NULL, fd, direct);
}

static int fault_close_file(void *ctx, int fd)
{
    call_begin(ctx, CALL_CLOSE);
    return hri_io_real()->close_file(NULL, fd);
}

static int fault_stat_file(void *ctx, int fd, struct hri_io_stat *stat_out)
{
    struct fault_io *io = ctx;
    call_begin(io, CALL_STAT);
    if (io->stat_error)
        return -io->stat_error;
    int error = hri_io_real()->stat_file(NULL, fd, stat_out);
    if (io->free_bytes)
        stat_out->free_bytes = io->free_bytes;
    return error;
}

static int fault_allocate(void *ctx, int fd, uint64_t offset, uint64_t bytes)
{
    struct fault_io *io = ctx;
    call_begin(io, CALL_ALLOCATE);
    if (io->allocate_error && io->n_allocates++ >= io->allocate_after)
        return -io->allocate_error;
    return hri_io_real()->allocate(NULL, fd, offset, bytes);
}

static ssize_t transfer(struct fault_io *io, bool write, int fd, const struct iovec *iov, int n_iov,
                        uint64_t offset)
{
    int error, kind = next_fault(io, write, &error);
    if (io->transfers_are_calls)
        call_begin(io, write ? CALL_WRITE : CALL_READ);
    while (atomic_load(&io->stalled))
        nap();
    struct iovec part[64];
    memcpy(part, iov, (size_t)n_iov * sizeof *part);
    uint32_t n = (uint32_t)n_iov;
    if (kind == FAULT_SHORT)
        n = cut(part, n);
    if (kind == FAULT_LOST) {
        struct timespec pause = {3, 0};
        nanosleep(&pause, NULL);
        return -EIO;
    }
    if (kind == FAULT_ERROR)
        return -error;
    ssize_t result = write ? hri_io_real()->writev(NULL, fd, part, (int)n, offset)
                           : hri_io_real()->readv(NULL, fd, part, (int)n, offset);
    return (ssize_t)bend(kind, error, bytes_of(iov, (uint32_t)n_iov), result, part);
}

static ssize_t fault_readv(void *ctx, int fd, const struct iovec *iov, int n_iov, uint64_t offset)
{
    return transfer(ctx, false, fd, iov, n_iov, offset);
}

static ssize_t fault_writev(void *ctx, int fd, const struct iovec *iov, int n_iov, uint64_t offset)
{
    return transfer(ctx, true, fd, iov, n_iov, offset);
}

/* ---------------------------------------------------------------------------------------- rings */

static int fault_ring_create(void *ctx, const struct hri_ring_options *options, void **ring_out)
{
    struct fault_io *io = ctx;
    if (io->ring_create_error)
        return -io->ring_create_error;
    struct fault_ring *ring = calloc(1, sizeof *ring);
    int error = hri_io_real()->ring_create(NULL, options, &ring->real);
    if (error < 0)
        free(ring);
    else
        *ring_out = ring;
    return error;
}

static void fault_ring_destroy(void *ctx, void *ring_opaque)
{
    (void)ctx;
    struct fault_ring *ring = ring_opaque;
    hri_io_real()->ring_destroy(NULL, ring->real);
    free(ring);
}

static int fault_ring_register(void *ctx, void *ring_opaque, uint32_t slot, void *base,
                               size_t bytes)
{
    struct fault_io *io = ctx;
    struct fault_ring *ring = ring_opaque;
    if (io->ring_register_error)
        return -io->ring_register_error;
    return hri_io_real()->ring_register(NULL, ring->real, slot, base, bytes);
}

/* The kernel sees our copy, under the number of its place. */
static int fault_ring_push(void *ctx, void *ring_opaque, const struct hri_ring_op *op)
{
    struct fault_io *io = ctx;
    struct fault_ring *ring = ring_opaque;
    uint32_t at = 0;
    while (at < RING_DEPTH_MAX && ring->pushed[at].used)
        at++;
    if (at == RING_DEPTH_MAX)
        return -EBUSY;
    struct pushed *pushed = &ring->pushed[at];
    pushed->op = *op;
    memcpy(pushed->iov, op->iov, op->n_iov * sizeof *op->iov);
    pushed->asked_bytes = bytes_of(op->iov, op->n_iov);
    pushed->kind = next_fault(io, op->write, &pushed->error);
    struct hri_ring_op asked = *op;
    asked.iov = pushed->iov;
    asked.user = at;
    if (pushed->kind == FAULT_SHORT)
        asked.n_iov = cut(pushed->iov, op->n_iov);
    int error = hri_io_real()->ring_push(NULL, ring->real, &asked);
    pushed->used = error == 0;
    return error;
}

static int fault_ring_enter(void *ctx, void *ring_opaque, bool wait, uint64_t timeout_ns)
{
    struct fault_io *io = ctx;
    struct fault_ring *ring = ring_opaque;
    /* With results kept back, waiting for the kernel could be waiting for nothing. */
    if (io->shuffle && wait && timeout_ns > 1000000)
        timeout_ns = 1000000;
    if (wait && atomic_load(&io->stalled)) {
        int error = hri_io_real()->ring_enter(NULL, ring->real, false, 0);
        if (timeout_ns > 0)
            nap();
        return error;
    }
    return hri_io_real()->ring_enter(NULL, ring->real, wait, timeout_ns);
}

/* Takes what the kernel has, bends it. False: the result is lost. */
static bool translate(struct fault_ring *ring, struct hri_ring_result *result)
{
    struct pushed *pushed = &ring->pushed[result->user];
    pushed->used = false;
    if (pushed->kind == FAULT_LOST)
        return false;
    result->result = (int32_t)bend(pushed->kind, pushed->error, pushed->asked_bytes, result->result,
                                   pushed->iov);
    result->user = pushed->op.user;
    return true;
}

/* Keeps results back, returns them in random order, now and then one twice. */
static int shuffle(struct fault_io *io, struct fault_ring *ring, struct hri_ring_result *results,
                   int n, uint32_t n_max)
{
    for (int i = 0; i < n; i++) {
        int copies = 1 + (hri_rng_below(&io->rng, 4) == 0);
        while (copies-- > 0 && ring->n_held < FAULT_HELD_MAX)
            ring->held[ring->n_held++] = results[i];
    }
    int n_out = 0;
    uint32_t n_give = ring->n_held ? 1 + (uint32_t)hri_rng_below(&io->rng, 3) : 0;
    while (n_give-- > 0 && ring->n_held > 0 && (uint32_t)n_out < n_max) {
        int at = (int)hri_rng_below(&io->rng, (uint64_t)ring->n_held);
        results[n_out++] = ring->held[at];
        ring->held[at] = ring->held[--ring->n_held];
    }
    return n_out;
}

static int fault_ring_reap(void *ctx, void *ring_opaque, struct hri_ring_result *results,
                           uint32_t n_max)
{
    struct fault_io *io = ctx;
    struct fault_ring *ring = ring_opaque;
    uint32_t n_ask = n_max;
    if (atomic_load(&io->stalled))
        return 0;
    if (io->hide_reaps > 0) {
        io->hide_reaps--;
        return 0;
    }
    if (io->shuffle && n_ask > (uint32_t)(FAULT_HELD_MAX - ring->n_held) / 2)
        n_ask = (uint32_t)(FAULT_HELD_MAX - ring->n_held) / 2;
    int n = hri_io_real()->ring_reap(NULL, ring->real, results, n_ask), n_kept = 0;
    for (int i = 0; i < n; i++) {
        struct hri_ring_result result = results[i];
        if (translate(ring, &result))
            results[n_kept++] = result;
    }
    return io->shuffle ? shuffle(io, ring, results, n_kept, n_max) : n_kept;
}

void fault_io_arm(struct fault_io *io, bool write, int kind, int error, long after, long count)
{
    struct fault_rule *rule = write ? &io->write : &io->read;
    pthread_mutex_lock(&io->mutex);
    rule->kind = kind;
    rule->error = error;
    rule->after = (write ? io->n_writes : io->n_reads) + after;
    rule->count = count;
    pthread_mutex_unlock(&io->mutex);
}

void fault_io_disarm(struct fault_io *io)
{
    fault_io_arm(io, false, FAULT_NONE, 0, 0, 0);
    fault_io_arm(io, true, FAULT_NONE, 0, 0, 0);
}

void fault_io_init(struct fault_io *io)
{
    memset(io, 0, sizeof *io);
    pthread_mutex_init(&io->mutex, NULL);
    hri_rng_seed(&io->rng, 99);
    io->ops = (struct hri_io_ops){
        .ctx = io,
        .call_timeout_ns =
            60000000000u, /* a real disk may be slow, whatever a test expects of its reads and writes */
        .folder_open = fault_folder_open,
        .folder_alone = fault_folder_alone,
        .folder_remove = fault_folder_remove,
        .file_open = fault_file_open,
        .file_rename = fault_file_rename,
        .file_remove = fault_file_remove,
        .file_lock = fault_file_lock,
        .sync_file = fault_sync_file,
        .write_back = fault_write_back,
        .set_direct = fault_set_direct,
        .open_temp = fault_open_temp,
        .close_file = fault_close_file,
        .stat_file = fault_stat_file,
        .allocate = fault_allocate,
        .readv = fault_readv,
        .writev = fault_writev,
        .ring_create = fault_ring_create,
        .ring_destroy = fault_ring_destroy,
        .ring_register = fault_ring_register,
        .ring_push = fault_ring_push,
        .ring_enter = fault_ring_enter,
        .ring_reap = fault_ring_reap,
    };
}

struct fault_io *fault_io_make(void)
{
    static struct fault_io *all; /* so that a leak checker finds them */
    struct fault_io *io = malloc(sizeof *io);
    if (io == NULL)
        abort();
    fault_io_init(io);
    io->next = all;
    all = io;
    return io;
}
