/* preadv and pwritev on a few threads: what works everywhere. Blocked threads cost nothing, so
 * there are as many as a disk needs to be busy, not as many as there are processors. */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/error.h"
#include "offload/disk_engine.h"

#define THREADS_MAX 16u
#define STACK_BYTES (128u * 1024u)

struct threads {
    const struct hri_io_ops *io;
    int fd;
    pthread_mutex_t mutex;
    pthread_cond_t work, done;
    const struct hri_ring_op **queue; /* [n_max] ring of what waits for a thread */
    struct hri_ring_result *results;  /* [n_max] stack of what waits for a reap */
    uint32_t n_max; /* a power of two: twice the depth or more, as repeats overtake stray results */
    uint32_t head, tail, n_results, n_busy;
    bool stop;
    bool leaked; /* the disk is gone, the last thread cleans up */
    uint32_t n_threads, n_alive;
    pthread_t ids[THREADS_MAX];
};

static void free_state(struct threads *threads)
{
    pthread_cond_destroy(&threads->work);
    pthread_cond_destroy(&threads->done);
    pthread_mutex_destroy(&threads->mutex);
    free(threads->queue);
    free(threads->results);
    free(threads);
}

/* Runs without the lock on copies, as an abandoned request may be gone by the time the kernel
 * answers. */
static int32_t transfer(const struct threads *threads, const struct hri_ring_op *op,
                        const struct iovec *iov)
{
    int n_iov = (int)op->n_iov;
    ssize_t n;
    if (op->write)
        n = threads->io->writev(threads->io->ctx, threads->fd, iov, n_iov, op->offset);
    else
        n = threads->io->readv(threads->io->ctx, threads->fd, iov, n_iov, op->offset);
    return (int32_t)n;
}

static void serve_one(struct threads *threads)
{
    struct hri_ring_op op = *threads->queue[threads->head++ & (threads->n_max - 1)];
    struct iovec iov[HRI_DISK_IOV_MAX];
    memcpy(iov, op.iov, op.n_iov * sizeof *iov);
    threads->n_busy++;
    pthread_mutex_unlock(&threads->mutex);
    int32_t result = transfer(threads, &op, iov);
    pthread_mutex_lock(&threads->mutex);
    threads->n_busy--;
    if (threads->n_results < threads->n_max)
        threads->results[threads->n_results++] = (struct hri_ring_result){op.user, result};
    pthread_cond_signal(&threads->done);
}

static void *thread_main(void *ctx)
{
    struct threads *threads = ctx;
    pthread_mutex_lock(&threads->mutex);
    while (!threads->stop) {
        if (threads->head == threads->tail)
            pthread_cond_wait(&threads->work, &threads->mutex);
        else
            serve_one(threads);
    }
    bool last = --threads->n_alive == 0 && threads->leaked;
    pthread_mutex_unlock(&threads->mutex);
    if (last)
        free_state(threads);
    return NULL;
}

static struct threads *make_state(const struct hri_disk_options *options)
{
    struct threads *threads = calloc(1, sizeof *threads);
    if (threads == NULL)
        return NULL;
    threads->io = options->io;
    threads->fd = options->fd;
    threads->n_max = 2;
    while (threads->n_max < 2 * options->depth)
        threads->n_max *= 2;
    threads->queue = calloc(threads->n_max, sizeof(const struct hri_ring_op *));
    threads->results = calloc(threads->n_max, sizeof *threads->results);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_mutex_init(&threads->mutex, NULL);
    pthread_cond_init(&threads->work, NULL);
    pthread_cond_init(&threads->done, &attr);
    pthread_condattr_destroy(&attr);
    if (threads->queue != NULL && threads->results != NULL)
        return threads;
    free_state(threads);
    return NULL;
}

static void start_threads(struct threads *threads, uint32_t n)
{
    pthread_attr_t attr;
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, STACK_BYTES);
    pthread_mutex_lock(&threads->mutex);
    while (threads->n_threads < n &&
           pthread_create(&threads->ids[threads->n_threads], &attr, thread_main, threads) == 0)
        threads->n_threads++;
    threads->n_alive = threads->n_threads;
    pthread_mutex_unlock(&threads->mutex);
    pthread_attr_destroy(&attr);
}

static hr_status_t threads_create(struct hri_disk *disk, void **state_out)
{
    struct threads *threads = make_state(&disk->options);
    if (threads == NULL)
        return hri_error_set(HR_ERR_NOMEM, "disk threads: out of memory");
    start_threads(threads, disk->options.depth < THREADS_MAX ? disk->options.depth : THREADS_MAX);
    if (threads->n_threads == 0) {
        free_state(threads);
        return hri_error_set(HR_ERR_NOMEM, "disk threads: no thread could be started");
    }
    *state_out = threads;
    return HR_OK;
}

static bool threads_destroy(struct hri_disk *disk, void *state)
{
    (void)disk;
    struct threads *threads = state;
    pthread_mutex_lock(&threads->mutex);
    threads->stop = true;
    bool stuck = threads->n_busy > 0; /* only after a hard timeout: joining could take for ever */
    threads->leaked = stuck;
    uint32_t n = threads->n_threads;
    pthread_cond_broadcast(&threads->work);
    for (uint32_t i = 0; stuck && i < n; i++)
        pthread_detach(threads->ids[i]);
    pthread_mutex_unlock(&threads->mutex);
    if (stuck)
        return true;
    for (uint32_t i = 0; i < n; i++)
        pthread_join(threads->ids[i], NULL);
    free_state(threads);
    return false;
}

static int threads_push(void *state, const struct hri_ring_op *op)
{
    struct threads *threads = state;
    int error = 0;
    pthread_mutex_lock(&threads->mutex);
    if (threads->tail - threads->head < threads->n_max)
        threads->queue[threads->tail++ & (threads->n_max - 1)] = op;
    else
        error = -EBUSY;
    pthread_cond_signal(&threads->work);
    pthread_mutex_unlock(&threads->mutex);
    return error;
}

static int threads_flush(void *state)
{
    (void)state;
    return 0;
}

static int threads_reap(void *state, struct hri_ring_result *results, uint32_t n_max,
                        uint64_t wait_ns)
{
    struct threads *threads = state;
    uint64_t end_ns = hri_now_ns() + wait_ns;
    struct timespec end = {(time_t)(end_ns / 1000000000u), (long)(end_ns % 1000000000u)};
    uint32_t n = 0;
    pthread_mutex_lock(&threads->mutex);
    while (threads->n_results == 0 && wait_ns > 0)
        if (pthread_cond_timedwait(&threads->done, &threads->mutex, &end) == ETIMEDOUT)
            break;
    while (threads->n_results > 0 && n < n_max)
        results[n++] = threads->results[--threads->n_results];
    pthread_mutex_unlock(&threads->mutex);
    return (int)n;
}

const struct hri_disk_engine hri_disk_threads = {
    .name = "threads",
    .mode = HR_IO_THREADS,
    .create = threads_create,
    .destroy = threads_destroy,
    .push = threads_push,
    .flush = threads_flush,
    .reap = threads_reap,
};
