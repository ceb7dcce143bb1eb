/* struct hri_worker: one background thread with a bounded ring of jobs. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/threads.h"

#define WORKER_CAPACITY_MAX 65536u

struct worker_job {
    hri_job_fn fn;
    void *ctx;
};

struct hri_worker {
    pthread_mutex_t mutex;
    pthread_cond_t submitted; /* a job was queued, or stop was set */
    pthread_cond_t finished;  /* a job ended while somebody waited */
    uint64_t submit_count;    /* the ticket of the newest job */
    _Atomic uint64_t done_count;
    unsigned waiters;
    bool stop;
    char name[16];
    unsigned capacity;
    struct worker_job *jobs; /* [capacity], job of ticket t at (t - 1) % capacity */
    struct hri_alloc *alloc;
    pthread_t thread;
};

static void *worker_main(void *argument)
{
    struct hri_worker *worker = argument;
    pthread_setname_np(pthread_self(), worker->name);
    pthread_mutex_lock(&worker->mutex);
    for (;;) {
        uint64_t done = atomic_load_explicit(&worker->done_count, memory_order_relaxed);
        while (done == worker->submit_count && !worker->stop)
            pthread_cond_wait(&worker->submitted, &worker->mutex);
        if (done == worker->submit_count)
            break;
        struct worker_job job = worker->jobs[done % worker->capacity];
        pthread_mutex_unlock(&worker->mutex);
        job.fn(job.ctx);
        pthread_mutex_lock(&worker->mutex);
        atomic_store_explicit(&worker->done_count, done + 1, memory_order_release);
        if (worker->waiters != 0)
            pthread_cond_broadcast(&worker->finished);
    }
    pthread_mutex_unlock(&worker->mutex);
    return NULL;
}

hr_status_t hri_worker_create(struct hri_alloc *alloc, const char *name, unsigned capacity,
                              struct hri_worker **worker_out)
{
    if (capacity == 0 || capacity > WORKER_CAPACITY_MAX)
        return hri_error_set(HR_ERR_INVALID, "a job ring of %u is not possible; 1 to %u", capacity,
                             WORKER_CAPACITY_MAX);
    struct hri_worker *worker = hri_calloc(alloc, 1, sizeof *worker);
    if (worker == NULL)
        return hri_alloc_status();
    hr_status_t status;
    worker->alloc = alloc;
    worker->capacity = capacity;
    snprintf(worker->name, sizeof worker->name, "%s", name != NULL ? name : "hr-worker");
    worker->jobs = hri_calloc(alloc, capacity, sizeof *worker->jobs);
    if (worker->jobs == NULL) {
        status = hri_alloc_status();
        goto err_worker;
    }
    pthread_mutex_init(&worker->mutex, NULL);
    pthread_cond_init(&worker->submitted, NULL);
    pthread_cond_init(&worker->finished, NULL);
    int code = pthread_create(&worker->thread, NULL, worker_main, worker);
    if (code != 0) {
        status =
            hri_error_set(HR_ERR_NOMEM, "cannot start thread %s: %s", worker->name, strerror(code));
        goto err_sync;
    }
    *worker_out = worker;
    return HR_OK;

err_sync:
    pthread_cond_destroy(&worker->finished);
    pthread_cond_destroy(&worker->submitted);
    pthread_mutex_destroy(&worker->mutex);
    hri_free(alloc, worker->jobs);
err_worker:
    hri_free(alloc, worker);
    return status;
}

void hri_worker_destroy(struct hri_worker *worker)
{
    if (worker == NULL)
        return;
    pthread_mutex_lock(&worker->mutex);
    worker->stop = true;
    pthread_cond_signal(&worker->submitted);
    pthread_mutex_unlock(&worker->mutex);
    pthread_join(worker->thread, NULL);
    pthread_cond_destroy(&worker->finished);
    pthread_cond_destroy(&worker->submitted);
    pthread_mutex_destroy(&worker->mutex);
    hri_free(worker->alloc, worker->jobs);
    hri_free(worker->alloc, worker);
}

hr_status_t hri_worker_submit(struct hri_worker *worker, hri_job_fn fn, void *ctx,
                              uint64_t *ticket_out)
{
    pthread_mutex_lock(&worker->mutex);
    uint64_t done = atomic_load_explicit(&worker->done_count, memory_order_relaxed);
    if (worker->submit_count - done == worker->capacity) {
        pthread_mutex_unlock(&worker->mutex);
        return HR_ERR_FULL;
    }
    worker->jobs[worker->submit_count % worker->capacity] = (struct worker_job){fn, ctx};
    uint64_t ticket = ++worker->submit_count;
    pthread_cond_signal(&worker->submitted);
    pthread_mutex_unlock(&worker->mutex);
    if (ticket_out != NULL)
        *ticket_out = ticket;
    return HR_OK;
}

bool hri_worker_poll(const struct hri_worker *worker, uint64_t ticket)
{
    return atomic_load_explicit(&worker->done_count, memory_order_acquire) >= ticket;
}

void hri_worker_wait(struct hri_worker *worker, uint64_t ticket)
{
    if (hri_worker_poll(worker, ticket))
        return;
    pthread_mutex_lock(&worker->mutex);
    worker->waiters++;
    while (!hri_worker_poll(worker, ticket))
        pthread_cond_wait(&worker->finished, &worker->mutex);
    worker->waiters--;
    pthread_mutex_unlock(&worker->mutex);
}

void hri_worker_drain(struct hri_worker *worker)
{
    pthread_mutex_lock(&worker->mutex);
    uint64_t newest = worker->submit_count;
    pthread_mutex_unlock(&worker->mutex);
    hri_worker_wait(worker, newest);
}
