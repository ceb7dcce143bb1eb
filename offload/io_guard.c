#include "offload/io_guard.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/error.h"
#include "offload/disk.h"

#define STACK_BYTES (128u * 1024u)
#define PATH_BYTES  4096u
#define NAME_BYTES  256u
#define KEPT_MAX    8u /* descriptors; what is more stays open */
#define LOOKS       8u /* the time-out in parts: a process that was stopped loses one of them, not all */

/* All that a call reads and writes: the guard's own, as its caller may be gone when it returns. */
struct job {
    ssize_t (*run)(const struct hri_io_ops *io, struct job *job);
    int fd, n_iov;
    bool flag;    /* direct, make or create, as the call says */
    bool late_fd; /* its result is a descriptor that nobody waits for if it is late */
    uint64_t offset, bytes;
    struct iovec iov[HRI_DISK_IOV_MAX];
    char path[PATH_BYTES], name[NAME_BYTES];
    ssize_t result;
    bool made;
    int holder;
    struct hri_io_stat stat;
};

struct hri_io_guard {
    struct hri_io_ops ops; /* ctx is the guard */
    const struct hri_io_ops *io;
    uint64_t timeout_ns;
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t work, done;
    struct job job; /* the thread's while it is busy */
    bool busy, stop;
    bool gave_up;
    int kept[KEPT_MAX];
    uint32_t n_kept;
};

static void guard_free(struct hri_io_guard *guard)
{
    pthread_cond_destroy(&guard->work);
    pthread_cond_destroy(&guard->done);
    pthread_mutex_destroy(&guard->mutex);
    free(guard);
}

/* ------------------------------------------------------------------------------------ the thread */

static void run_job(struct hri_io_guard *guard)
{
    struct job *job = &guard->job;
    pthread_mutex_unlock(&guard->mutex);
    ssize_t result = job->run(guard->io, job);
    pthread_mutex_lock(&guard->mutex);
    job->result = result;
    guard->busy = false;
    if (guard->gave_up && job->late_fd && result >= 0 && guard->n_kept < KEPT_MAX)
        guard->kept[guard->n_kept++] = (int)result;
    pthread_cond_signal(&guard->done);
}

/* The call that they were kept for has returned. */
static void close_kept(struct hri_io_guard *guard)
{
    while (guard->n_kept > 0) {
        int fd = guard->kept[--guard->n_kept];
        pthread_mutex_unlock(&guard->mutex);
        (void)guard->io->close_file(guard->io->ctx, fd);
        pthread_mutex_lock(&guard->mutex);
    }
}

static void *guard_main(void *ctx)
{
    struct hri_io_guard *guard = ctx;
    pthread_mutex_lock(&guard->mutex);
    for (;;) {
        if (guard->busy)
            run_job(guard);
        else if (guard->n_kept > 0)
            close_kept(guard);
        else if (guard->stop)
            break;
        else
            pthread_cond_wait(&guard->work, &guard->mutex);
    }
    bool left_behind = guard->gave_up;
    pthread_mutex_unlock(&guard->mutex);
    if (left_behind)
        guard_free(guard);
    return NULL;
}

/* -------------------------------------------------------------------------------------- the calls */

static struct job *job_begin(struct hri_io_guard *guard,
                             ssize_t (*run)(const struct hri_io_ops *io, struct job *job), int fd)
{
    struct job *job = &guard->job; /* the thread is not busy, or the guard has given up */
    job->run = run;
    job->fd = fd;
    job->late_fd = false;
    return job;
}

static int text_set(char *to, size_t bytes, const char *text)
{
    size_t n = strlen(text) + 1;
    if (n > bytes)
        return -ENAMETOOLONG;
    memcpy(to, text, n);
    return 0;
}

static bool wait_done(struct hri_io_guard *guard)
{
    for (uint32_t i = 0; i < LOOKS && guard->busy; i++) {
        uint64_t end_ns = hri_now_ns() + guard->timeout_ns / LOOKS;
        struct timespec end = {(time_t)(end_ns / 1000000000u), (long)(end_ns % 1000000000u)};
        while (guard->busy)
            if (pthread_cond_timedwait(&guard->done, &guard->mutex, &end) == ETIMEDOUT)
                break;
    }
    return !guard->busy;
}

/* The job's result, or -ETIMEDOUT; then the job is the thread's for good. */
static ssize_t job_end(struct hri_io_guard *guard)
{
    ssize_t result = -ETIMEDOUT;
    pthread_mutex_lock(&guard->mutex);
    guard->busy = true;
    pthread_cond_signal(&guard->work);
    if (wait_done(guard))
        result = guard->job.result;
    else
        guard->gave_up = true;
    pthread_mutex_unlock(&guard->mutex);
    return result;
}

static ssize_t run_open_temp(const struct hri_io_ops *io, struct job *job)
{
    return io->open_temp(io->ctx, job->path, job->flag);
}

static int guard_open_temp(void *ctx, const char *dir, bool direct)
{
    struct hri_io_guard *guard = ctx;
    if (guard->gave_up)
        return -ETIMEDOUT;
    struct job *job = job_begin(guard, run_open_temp, -1);
    job->flag = direct;
    job->late_fd = true;
    int error = text_set(job->path, sizeof job->path, dir);
    return error < 0 ? error : (int)job_end(guard);
}

static ssize_t run_close_file(const struct hri_io_ops *io, struct job *job)
{
    return io->close_file(io->ctx, job->fd);
}

static int guard_close_file(void *ctx, int fd)
{
    struct hri_io_guard *guard = ctx;
    if (!guard->gave_up) {
        (void)job_begin(guard, run_close_file, fd);
        return (int)job_end(guard);
    }
    pthread_mutex_lock(&guard->mutex);
    if (guard->n_kept < KEPT_MAX)
        guard->kept[guard->n_kept++] = fd;
    pthread_cond_signal(&guard->work);
    pthread_mutex_unlock(&guard->mutex);
    return -ETIMEDOUT;
}

static ssize_t run_stat_file(const struct hri_io_ops *io, struct job *job)
{
    return io->stat_file(io->ctx, job->fd, &job->stat);
}

static int guard_stat_file(void *ctx, int fd, struct hri_io_stat *stat_out)
{
    struct hri_io_guard *guard = ctx;
    if (guard->gave_up)
        return -ETIMEDOUT;
    struct job *job = job_begin(guard, run_stat_file, fd);
    int error = (int)job_end(guard);
    if (error == 0)
        *stat_out = job->stat;
    return error;
}

static ssize_t run_allocate(const struct hri_io_ops *io, struct job *job)
{
    return io->allocate(io->ctx, job->fd, job->offset, job->bytes);
}

static int guard_allocate(void *ctx, int fd, uint64_t offset, uint64_t bytes)
{
    struct hri_io_guard *guard = ctx;
    if (guard->gave_up)
        return -ETIMEDOUT;
    struct job *job = job_begin(guard, run_allocate, fd);
    job->offset = offset;
    job->bytes = bytes;
    return (int)job_end(guard);
}

static ssize_t run_readv(const struct hri_io_ops *io, struct job *job)
{
    return io->readv(io->ctx, job->fd, job->iov, job->n_iov, job->offset);
}

static ssize_t run_writev(const struct hri_io_ops *io, struct job *job)
{
    return io->writev(io->ctx, job->fd, job->iov, job->n_iov, job->offset);
}

static ssize_t transfer(struct hri_io_guard *guard,
                        ssize_t (*run)(const struct hri_io_ops *io, struct job *job), int fd,
                        const struct iovec *iov, int n_iov, uint64_t offset)
{
    if (guard->gave_up)
        return -ETIMEDOUT;
    if (n_iov > HRI_DISK_IOV_MAX)
        return -EINVAL;
    struct job *job = job_begin(guard, run, fd);
    memcpy(job->iov, iov, (size_t)n_iov * sizeof *iov);
    job->n_iov = n_iov;
    job->offset = offset;
    return job_end(guard);
}

static ssize_t guard_readv(void *ctx, int fd, const struct iovec *iov, int n_iov, uint64_t offset)
{
    return transfer(ctx, run_readv, fd, iov, n_iov, offset);
}

static ssize_t guard_writev(void *ctx, int fd, const struct iovec *iov, int n_iov, uint64_t offset)
{
    return transfer(ctx, run_writev, fd, iov, n_iov, offset);
}

static ssize_t guard_readv_cached(void *ctx, int fd, const struct iovec *iov, int n_iov,
                                  uint64_t offset)
{
    const struct hri_io_ops *io = ((struct hri_io_guard *)ctx)->io;
    return io->readv_cached(io->ctx, fd, iov, n_iov, offset);
}

static ssize_t run_folder_open(const struct hri_io_ops *io, struct job *job)
{
    return io->folder_open(io->ctx, job->path, job->flag, &job->made);
}

static int guard_folder_open(void *ctx, const char *path, bool make, bool *made_out)
{
    struct hri_io_guard *guard = ctx;
    if (guard->gave_up)
        return -ETIMEDOUT;
    struct job *job = job_begin(guard, run_folder_open, -1);
    job->flag = make;
    job->made = false;
    job->late_fd = true;
    int result = text_set(job->path, sizeof job->path, path);
    if (result == 0)
        result = (int)job_end(guard);
    if (made_out != NULL && !guard->gave_up)
        *made_out = job->made;
    return result;
}

static ssize_t run_folder_remove(const struct hri_io_ops *io, struct job *job)
{
    return io->folder_remove(io->ctx, job->fd, job->path);
}

static int guard_folder_remove(void *ctx, int folder, const char *path)
{
    struct hri_io_guard *guard = ctx;
    if (guard->gave_up)
        return -ETIMEDOUT;
    struct job *job = job_begin(guard, run_folder_remove, folder);
    int error = text_set(job->path, sizeof job->path, path);
    return error < 0 ? error : (int)job_end(guard);
}

/* A call of one name in a folder. */
static ssize_t call_named(struct hri_io_guard *guard,
                          ssize_t (*run)(const struct hri_io_ops *io, struct job *job), int folder,
                          const char *name, const char *to, bool gives_fd, bool create)
{
    if (guard->gave_up)
        return -ETIMEDOUT;
    struct job *job = job_begin(guard, run, folder);
    job->flag = create;
    job->late_fd = gives_fd;
    int error = text_set(job->name, sizeof job->name, name);
    if (error == 0 && to != NULL)
        error = text_set(job->path, sizeof job->path, to);
    return error < 0 ? error : job_end(guard);
}

static ssize_t run_file_open(const struct hri_io_ops *io, struct job *job)
{
    return io->file_open(io->ctx, job->fd, job->name, job->flag);
}

static int guard_file_open(void *ctx, int folder, const char *name, bool create)
{
    return (int)call_named(ctx, run_file_open, folder, name, NULL, true, create);
}

static ssize_t run_file_rename(const struct hri_io_ops *io, struct job *job)
{
    return io->file_rename(io->ctx, job->fd, job->name, job->path);
}

static int guard_file_rename(void *ctx, int folder, const char *from, const char *to)
{
    return (int)call_named(ctx, run_file_rename, folder, from, to, false, false);
}

static ssize_t run_file_remove(const struct hri_io_ops *io, struct job *job)
{
    return io->file_remove(io->ctx, job->fd, job->name);
}

static int guard_file_remove(void *ctx, int folder, const char *name)
{
    return (int)call_named(ctx, run_file_remove, folder, name, NULL, false, false);
}

static ssize_t run_file_lock(const struct hri_io_ops *io, struct job *job)
{
    return io->file_lock(io->ctx, job->fd, job->name, &job->holder);
}

static int guard_file_lock(void *ctx, int folder, const char *name, int *holder_out)
{
    struct hri_io_guard *guard = ctx;
    int result = (int)call_named(guard, run_file_lock, folder, name, NULL, true, false);
    *holder_out = guard->gave_up ? 0 : guard->job.holder;
    return result;
}

static ssize_t run_sync_file(const struct hri_io_ops *io, struct job *job)
{
    return io->sync_file(io->ctx, job->fd);
}

static int guard_sync_file(void *ctx, int fd)
{
    struct hri_io_guard *guard = ctx;
    if (guard->gave_up)
        return -ETIMEDOUT;
    (void)job_begin(guard, run_sync_file, fd);
    return (int)job_end(guard);
}

static int guard_set_direct(void *ctx, int fd, bool direct)
{
    const struct hri_io_ops *io = ((struct hri_io_guard *)ctx)->io;
    return io->set_direct(io->ctx, fd, direct);
}

static ssize_t run_write_back(const struct hri_io_ops *io, struct job *job)
{
    io->write_back(io->ctx, job->fd, job->offset, job->bytes);
    return 0;
}

static void guard_write_back(void *ctx, int fd, uint64_t offset, uint64_t bytes)
{
    struct hri_io_guard *guard = ctx;
    if (guard->gave_up)
        return;
    struct job *job = job_begin(guard, run_write_back, fd);
    job->offset = offset;
    job->bytes = bytes;
    (void)job_end(guard);
}

static ssize_t run_folder_alone(const struct hri_io_ops *io, struct job *job)
{
    return io->folder_alone(io->ctx, job->fd, job->name);
}

static int guard_folder_alone(void *ctx, int folder, const char *names)
{
    return (int)call_named(ctx, run_folder_alone, folder, names, NULL, false, false);
}

/* What the table has not, the guard has not. */
static void ops_fill(struct hri_io_guard *guard)
{
    const struct hri_io_ops *io = guard->io;
    struct hri_io_ops *ops = &guard->ops;
#define PASS(name) ops->name = io->name != NULL ? guard_##name : NULL
    ops->ctx = guard;
    ops->timeout_ns = io->timeout_ns;
    ops->transfers = hri_io_transfers(io);
    PASS(open_temp);
    PASS(close_file);
    PASS(stat_file);
    PASS(allocate);
    PASS(readv);
    PASS(writev);
    PASS(readv_cached);
    PASS(folder_open);
    PASS(folder_alone);
    PASS(folder_remove);
    PASS(file_open);
    PASS(file_rename);
    PASS(file_remove);
    PASS(sync_file);
    PASS(set_direct);
    PASS(write_back);
    PASS(file_lock);
#undef PASS
}

/* -------------------------------------------------------------------------------------- its life */

hr_status_t hri_io_guard_create(const struct hri_io_ops *io, uint64_t timeout_ns,
                                struct hri_io_guard **guard_out)
{
    struct hri_io_guard *guard = calloc(1, sizeof *guard);
    if (guard == NULL)
        return hri_error_set(HR_ERR_NOMEM, "disk calls: out of memory");
    guard->io = io;
    guard->timeout_ns = io->call_timeout_ns != 0 ? io->call_timeout_ns
                        : timeout_ns != 0        ? timeout_ns
                                                 : HRI_DISK_TIMEOUT_NS;
    ops_fill(guard);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_mutex_init(&guard->mutex, NULL);
    pthread_cond_init(&guard->work, NULL);
    pthread_cond_init(&guard->done, &attr);
    pthread_condattr_destroy(&attr);
    pthread_attr_t thread_attr;
    pthread_attr_init(&thread_attr);
    pthread_attr_setstacksize(&thread_attr, STACK_BYTES);
    int code = pthread_create(&guard->thread, &thread_attr, guard_main, guard);
    pthread_attr_destroy(&thread_attr);
    if (code != 0) {
        guard_free(guard);
        return hri_error_set(HR_ERR_NOMEM, "disk calls: no thread could be started: %s",
                             strerror(code));
    }
    *guard_out = guard;
    return HR_OK;
}

void hri_io_guard_destroy(struct hri_io_guard *guard)
{
    if (guard == NULL)
        return;
    pthread_mutex_lock(&guard->mutex);
    guard->stop = true;
    bool left_behind = guard->gave_up;
    pthread_t thread = guard->thread;
    if (left_behind)
        pthread_detach(thread); /* it frees the guard when its call returns */
    pthread_cond_signal(&guard->work);
    pthread_mutex_unlock(&guard->mutex);
    if (left_behind)
        return;
    pthread_join(thread, NULL);
    guard_free(guard);
}

const struct hri_io_ops *hri_io_guard_ops(const struct hri_io_guard *guard)
{
    return &guard->ops;
}

bool hri_io_guard_gave_up(const struct hri_io_guard *guard)
{
    return guard->gave_up;
}
