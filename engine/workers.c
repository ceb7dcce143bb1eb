#include "engine/workers.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "engine/fail.h"

/* Waiting before a thread sleeps, where each has a core of its own: longer than anything between two products of a token. */
#define SPIN_NS     50000u
#define SPIN_PAUSES 32 /* pauses between two looks at the clock */

struct worker {
    struct hre_workers *workers;
    pthread_t thread;
    uint32_t index;
};

/*
 * ticket packs the job's number of items (bits 20-39) and the next unclaimed item (bits 0-19); bits
 * 40-63 count jobs. A thread claims an item by compare-and-swap. That a claim succeeded means that
 * the job cannot be over, so work and context, written before the ticket was published, hold still
 * until the item is reported as done.
 */
struct hre_workers {
    _Atomic uint64_t ticket;
    _Atomic uint32_t done;
    _Atomic uint32_t sleepers;
    _Atomic uint32_t caller_sleeps;
    _Atomic int rest;
    _Atomic int stop;
    uint64_t spin_ns;
    int shared;
    hre_work_fn work;
    void *context;
    uint32_t n_threads; /* with the caller */
    uint32_t n_started;
    pthread_mutex_t mutex;
    pthread_cond_t wake, finished;
    struct worker list[];
};

static inline void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static uint64_t now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static inline uint32_t ticket_items(uint64_t ticket)
{
    return (uint32_t)(ticket >> 20) & HRE_WORKERS_ITEMS_MAX;
}

static inline uint32_t ticket_next(uint64_t ticket)
{
    return (uint32_t)ticket & HRE_WORKERS_ITEMS_MAX;
}

static inline int has_work(struct hre_workers *w)
{
    uint64_t ticket = atomic_load(&w->ticket);

    return ticket_next(ticket) < ticket_items(ticket);
}

/* Does items until none is left. */
static void share(struct hre_workers *w, uint32_t thread)
{
    uint64_t ticket = atomic_load(&w->ticket);

    while (ticket_next(ticket) < ticket_items(ticket)) {
        if (!atomic_compare_exchange_weak(&w->ticket, &ticket, ticket + 1)) {
            continue;
        }
        uint32_t n_items = ticket_items(ticket);
        w->work(w->context, ticket_next(ticket), thread);
        if (atomic_fetch_add(&w->done, 1) + 1 == n_items && atomic_load(&w->caller_sleeps)) {
            pthread_mutex_lock(&w->mutex);
            pthread_cond_signal(&w->finished);
            pthread_mutex_unlock(&w->mutex);
        }
        ticket = atomic_load(&w->ticket);
    }
}

static void sleep_until_work(struct hre_workers *w)
{
    pthread_mutex_lock(&w->mutex);
    /* Announced before looking once more, as the caller publishes before it looks for sleepers: one
     * of us sees the other. */
    atomic_fetch_add(&w->sleepers, 1);
    while (!has_work(w) && !atomic_load(&w->stop)) {
        pthread_cond_wait(&w->wake, &w->mutex);
    }
    atomic_fetch_sub(&w->sleepers, 1);
    pthread_mutex_unlock(&w->mutex);
}

/* Whether there was work before the time was over, or before the workers were told to rest. */
static int spin_for_work(struct hre_workers *w)
{
    uint64_t end = now_ns() + w->spin_ns;

    do {
        for (int i = 0; i < SPIN_PAUSES && w->spin_ns; i++) {
            if (has_work(w)) {
                return 1;
            }
            relax();
        }
    } while (!atomic_load_explicit(&w->rest, memory_order_relaxed) && now_ns() < end);
    return has_work(w);
}

static void *worker_main(void *argument)
{
    struct worker *self = argument;
    struct hre_workers *w = self->workers;

    (void)pthread_setname_np(pthread_self(), "hr-engine");
    while (!atomic_load(&w->stop)) {
        if (!spin_for_work(w)) {
            sleep_until_work(w);
        }
        share(w, self->index);
    }
    return NULL;
}

static uint32_t usable_cores(void)
{
    cpu_set_t set;
    /* The call fails where the machine has more cores than a cpu_set_t. */
    int known = sched_getaffinity(0, sizeof(set), &set) == 0;
    long n = known ? CPU_COUNT(&set) : sysconf(_SC_NPROCESSORS_ONLN);

    return n < 1 ? 1 : n > HRE_WORKERS_MAX ? HRE_WORKERS_MAX : (uint32_t)n;
}

hr_status_t hre_workers_create(uint32_t n_threads, struct hre_workers **workers_out)
{
    if (n_threads > HRE_WORKERS_MAX) {
        return hre_fail(HR_ERR_INVALID, "n_threads is %u; at most %d", n_threads, HRE_WORKERS_MAX);
    }
    n_threads = n_threads ? n_threads : usable_cores();
    struct hre_workers *w = calloc(1, sizeof(*w) + n_threads * sizeof(w->list[0]));
    if (!w) {
        return hre_fail(HR_ERR_NOMEM, "no memory for %u threads", n_threads);
    }
    pthread_mutex_init(&w->mutex, NULL);
    pthread_cond_init(&w->wake, NULL);
    pthread_cond_init(&w->finished, NULL);
    w->n_threads = n_threads;
    w->spin_ns = n_threads <= usable_cores() ? SPIN_NS : 0;
    for (uint32_t i = 0; i + 1 < n_threads; i++) {
        w->list[i] = (struct worker){.workers = w, .index = i + 1};
        int error = pthread_create(&w->list[i].thread, NULL, worker_main, &w->list[i]);
        if (error) {
            hre_workers_destroy(w);
            return hre_fail(HR_ERR_NOMEM, "thread %u of %u cannot be started: %s", i + 1, n_threads,
                            strerror(error));
        }
        w->n_started++;
    }
    *workers_out = w;
    return HR_OK;
}

void hre_workers_destroy(struct hre_workers *workers)
{
    if (!workers) {
        return;
    }
    pthread_mutex_lock(&workers->mutex);
    atomic_store(&workers->stop, 1);
    pthread_cond_broadcast(&workers->wake);
    pthread_mutex_unlock(&workers->mutex);
    for (uint32_t i = 0; i < workers->n_started; i++) {
        pthread_join(workers->list[i].thread, NULL);
    }
    pthread_cond_destroy(&workers->finished);
    pthread_cond_destroy(&workers->wake);
    pthread_mutex_destroy(&workers->mutex);
    free(workers);
}

uint32_t hre_workers_count(const struct hre_workers *workers)
{
    return workers->n_threads;
}

static void wait_until_done(struct hre_workers *w, uint32_t n_items)
{
    uint64_t end = 0;

    for (uint32_t spins = 1; w->spin_ns; spins++) {
        if (atomic_load(&w->done) == n_items) {
            return;
        }
        relax();
        if (spins % SPIN_PAUSES) {
            continue;
        }
        uint64_t now = now_ns();
        end = end ? end : now + w->spin_ns;
        if (now >= end) {
            break;
        }
    }
    pthread_mutex_lock(&w->mutex);
    atomic_store(&w->caller_sleeps, 1);
    while (atomic_load(&w->done) != n_items) {
        pthread_cond_wait(&w->finished, &w->mutex);
    }
    atomic_store(&w->caller_sleeps, 0);
    pthread_mutex_unlock(&w->mutex);
}

void hre_workers_run(struct hre_workers *workers, hre_work_fn work, void *context, uint32_t n_items)
{
    if (workers->n_threads == 1 || n_items <= 1) {
        for (uint32_t i = 0; i < n_items; i++) {
            work(context, i, 0);
        }
        return;
    }
    workers->work = work;
    workers->context = context;
    atomic_store(&workers->done, 0);
    atomic_store_explicit(&workers->rest, 0, memory_order_relaxed);
    uint64_t jobs = (atomic_load(&workers->ticket) >> 40) + 1;
    atomic_store(&workers->ticket, jobs << 40 | (uint64_t)n_items << 20);
    if (atomic_load(&workers->sleepers)) {
        pthread_mutex_lock(&workers->mutex);
        pthread_cond_broadcast(&workers->wake);
        pthread_mutex_unlock(&workers->mutex);
    }
    share(workers, 0);
    wait_until_done(workers, n_items);
}

void hre_workers_rest(struct hre_workers *workers)
{
    if (!workers->shared) {
        atomic_store_explicit(&workers->rest, 1, memory_order_relaxed);
    }
}

void hre_workers_share(struct hre_workers *workers)
{
    workers->shared = 1;
}
