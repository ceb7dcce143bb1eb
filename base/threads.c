#include "base/threads.h"

#include <linux/futex.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/topology.h"

#define SPIN_NS_DEFAULT 50000u
#define SPIN_PAUSES     32 /* pauses between two looks at the clock */

static void futex_wait(_Atomic uint32_t *word, uint32_t seen)
{
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}

static void futex_wake(_Atomic uint32_t *word, unsigned count)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, count > INT_MAX ? INT_MAX : count, NULL, NULL, 0);
}

static inline void pause_cpu(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/*
 * How a run works. `claim` holds the run's number in its upper half and the tasks nobody has
 * taken in the lower. A thread takes a task by lowering the count with a compare-and-swap on the
 * whole word. When that succeeds the word did not change since it was read, so the task belongs
 * to the run of that number, and that run cannot end, nor fn, ctx and task_count change, before
 * the task is counted in `done`. So a worker that wakes late finds either nothing to take or a
 * task of the run that is going on; the caller never waits for a worker that took nothing.
 */
struct hri_pool {
    _Alignas(64) _Atomic uint64_t claim;
    _Alignas(64) _Atomic uint32_t done;
    _Atomic uint32_t caller_sleeps;
    _Alignas(64) _Atomic uint32_t signal; /* changes with every run; workers sleep on it */
    _Atomic uint32_t sleepers;
    _Atomic uint32_t stop;
    _Atomic uint64_t spin_ns;
    /* What the current run does; written by the caller while no task is open. */
    _Alignas(64) hri_task_fn fn;
    void *ctx;
    unsigned task_count;
    unsigned size;
    pthread_mutex_t run_mutex;
    struct hri_alloc *alloc;
    hri_run_fn run; /* somebody else's threads, then there are none here; or NULL */
    void *run_ctx;
    pthread_t *threads; /* [size - 1] */
};

struct worker_start {
    struct hri_pool *pool;
    unsigned worker;
    _Atomic uint32_t taken; /* the new thread has read the two above */
};

#define CLAIM_LEFT(word) ((uint32_t)(word))

/* Takes and runs tasks until none is left. */
static void run_tasks(struct hri_pool *pool, unsigned worker)
{
    uint64_t word = atomic_load_explicit(&pool->claim, memory_order_acquire);
    while (CLAIM_LEFT(word) != 0) {
        if (!atomic_compare_exchange_weak_explicit(&pool->claim, &word, word - 1,
                                                   memory_order_acq_rel, memory_order_acquire))
            continue;
        unsigned task_count = pool->task_count;
        pool->fn(pool->ctx, task_count - CLAIM_LEFT(word), worker);
        /* After this the caller may begin another run: nothing of this one may be read any more. */
        if (atomic_fetch_add(&pool->done, 1) + 1 == task_count && atomic_load(&pool->caller_sleeps))
            futex_wake(&pool->done, 1);
        word = atomic_load_explicit(&pool->claim, memory_order_acquire);
    }
}

/* Waits until *word differs from seen: first spinning, then asleep. */
static void wait_for_signal(struct hri_pool *pool, uint32_t seen)
{
    uint64_t spin_ns = atomic_load_explicit(&pool->spin_ns, memory_order_relaxed);
    uint64_t begin_ns = spin_ns != 0 ? hri_now_ns() : 0;
    while (spin_ns != 0 && hri_now_ns() - begin_ns < spin_ns) {
        for (int i = 0; i < SPIN_PAUSES; i++) {
            if (atomic_load_explicit(&pool->signal, memory_order_acquire) != seen)
                return;
            pause_cpu();
        }
    }
    atomic_fetch_add(&pool->sleepers, 1);
    while (atomic_load(&pool->signal) == seen)
        futex_wait(&pool->signal, seen);
    atomic_fetch_sub(&pool->sleepers, 1);
}

static void *worker_main(void *argument)
{
    struct worker_start *start = argument;
    struct hri_pool *pool = start->pool;
    unsigned worker = start->worker;
    /* Read before the creator goes on, so that no run can be missed and then slept through. */
    uint32_t seen = atomic_load(&pool->signal);
    atomic_store(&start->taken, 1);
    futex_wake(&start->taken, 1);

    char name[16];
    snprintf(name, sizeof name, "hr-pool-%u", worker % 1000);
    pthread_setname_np(pthread_self(), name);
    for (;;) {
        wait_for_signal(pool, seen);
        seen = atomic_load(&pool->signal);
        if (atomic_load(&pool->stop))
            return NULL;
        run_tasks(pool, worker);
    }
}

static hr_status_t start_worker(struct hri_pool *pool, unsigned worker)
{
    struct worker_start start = {pool, worker, 0};
    int code = pthread_create(&pool->threads[worker - 1], NULL, worker_main, &start);
    if (code != 0)
        return hri_error_set(HR_ERR_NOMEM, "cannot start thread %u: %s", worker, strerror(code));
    while (atomic_load(&start.taken) == 0)
        futex_wait(&start.taken, 0);
    return HR_OK;
}

/* Ends the workers 1 to started. */
static void stop_workers(struct hri_pool *pool, unsigned started)
{
    atomic_store(&pool->stop, 1);
    atomic_fetch_add(&pool->signal, 1);
    futex_wake(&pool->signal, INT_MAX);
    for (unsigned i = 0; i < started; i++)
        pthread_join(pool->threads[i], NULL);
}

hr_status_t hri_pool_create(struct hri_alloc *alloc, unsigned thread_count,
                            struct hri_pool **pool_out)
{
    unsigned cpu_count = hri_cpu_usable_count();
    if (thread_count == 0)
        thread_count = cpu_count < HRI_POOL_THREADS_MAX ? cpu_count : HRI_POOL_THREADS_MAX;
    if (thread_count > HRI_POOL_THREADS_MAX)
        return hri_error_set(HR_ERR_INVALID, "%u threads are too many; at most %u", thread_count,
                             HRI_POOL_THREADS_MAX);
    struct hri_pool *pool = hri_aligned_zero(alloc, 64, sizeof *pool);
    if (pool == NULL)
        return hri_alloc_status();
    hr_status_t status = HR_OK;
    pool->alloc = alloc;
    pool->size = thread_count;
    atomic_init(&pool->spin_ns, thread_count <= cpu_count ? SPIN_NS_DEFAULT : 0);
    pthread_mutex_init(&pool->run_mutex, NULL);
    pool->threads = hri_calloc(alloc, thread_count, sizeof *pool->threads);
    if (pool->threads == NULL) {
        status = hri_alloc_status();
        goto err_pool;
    }
    for (unsigned worker = 1; worker < thread_count; worker++) {
        status = start_worker(pool, worker);
        if (status != HR_OK) {
            stop_workers(pool, worker - 1);
            goto err_threads;
        }
    }
    *pool_out = pool;
    return HR_OK;

err_threads:
    hri_free(alloc, pool->threads);
err_pool:
    pthread_mutex_destroy(&pool->run_mutex);
    hri_free(alloc, pool);
    return status;
}

hr_status_t hri_pool_create_over(struct hri_alloc *alloc, unsigned thread_count, hri_run_fn run,
                                 void *run_ctx, struct hri_pool **pool_out)
{
    if (thread_count == 0 || thread_count > HRI_POOL_THREADS_MAX)
        return hri_error_set(HR_ERR_INVALID, "%u threads of the caller's; 1 to %u can be",
                             thread_count, HRI_POOL_THREADS_MAX);
    struct hri_pool *pool = hri_aligned_zero(alloc, 64, sizeof *pool);
    if (pool == NULL)
        return hri_alloc_status();
    pool->alloc = alloc;
    pool->size = thread_count;
    pool->run = run;
    pool->run_ctx = run_ctx;
    pthread_mutex_init(&pool->run_mutex, NULL);
    *pool_out = pool;
    return HR_OK;
}

void hri_pool_destroy(struct hri_pool *pool)
{
    if (pool == NULL)
        return;
    stop_workers(pool, pool->run != NULL ? 0 : pool->size - 1);
    pthread_mutex_destroy(&pool->run_mutex);
    hri_free(pool->alloc, pool->threads);
    hri_free(pool->alloc, pool);
}

unsigned hri_pool_size(const struct hri_pool *pool)
{
    return pool != NULL ? pool->size : 1;
}

void hri_pool_set_spin_ns(struct hri_pool *pool, uint64_t spin_ns)
{
    atomic_store(&pool->spin_ns, spin_ns);
}

/* The caller's end of a run: others may still be inside their last tasks. */
static void wait_for_tasks(struct hri_pool *pool, unsigned task_count)
{
    uint64_t spin_ns = atomic_load_explicit(&pool->spin_ns, memory_order_relaxed);
    uint64_t begin_ns = 0;
    for (unsigned turn = 1; atomic_load_explicit(&pool->done, memory_order_acquire) != task_count;
         turn++) {
        pause_cpu();
        if (turn % SPIN_PAUSES != 0)
            continue;
        uint64_t now_ns = hri_now_ns();
        if (begin_ns == 0)
            begin_ns = now_ns;
        if (now_ns - begin_ns >= spin_ns)
            break;
    }
    if (atomic_load_explicit(&pool->done, memory_order_acquire) == task_count)
        return;
    atomic_store(&pool->caller_sleeps, 1);
    uint32_t done;
    while ((done = atomic_load(&pool->done)) != task_count)
        futex_wait(&pool->done, done);
    atomic_store(&pool->caller_sleeps, 0);
}

static void open_run(struct hri_pool *pool, hri_task_fn fn, void *ctx, unsigned task_count)
{
    pool->fn = fn;
    pool->ctx = ctx;
    pool->task_count = task_count;
    atomic_store_explicit(&pool->done, 0, memory_order_relaxed);
    uint64_t word = atomic_load_explicit(&pool->claim, memory_order_relaxed);
    HRI_ASSERT(CLAIM_LEFT(word) == 0);
    uint64_t run = (word >> 32) + 1;
    atomic_store_explicit(&pool->claim, run << 32 | task_count, memory_order_release);
    atomic_fetch_add(&pool->signal, 1);
    unsigned sleepers = atomic_load(&pool->sleepers);
    if (sleepers != 0)
        futex_wake(&pool->signal, sleepers < task_count - 1 ? sleepers : task_count - 1);
}

void hri_pool_run(struct hri_pool *pool, hri_task_fn fn, void *ctx, unsigned task_count)
{
    if (pool == NULL || pool->size == 1 || task_count <= 1) {
        if (pool != NULL)
            pthread_mutex_lock(&pool->run_mutex);
        for (unsigned task = 0; task < task_count; task++)
            fn(ctx, task, 0);
        if (pool != NULL)
            pthread_mutex_unlock(&pool->run_mutex);
        return;
    }
    pthread_mutex_lock(&pool->run_mutex);
    if (pool->run != NULL) {
        pool->run(pool->run_ctx, fn, ctx, task_count);
    } else {
        open_run(pool, fn, ctx, task_count);
        run_tasks(pool, 0);
        wait_for_tasks(pool, task_count);
    }
    pthread_mutex_unlock(&pool->run_mutex);
}
