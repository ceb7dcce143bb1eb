/*
 * Two ways to use more than one core, and no others:
 *   struct hri_pool    a parallel loop over tasks; the caller takes part and returns at its end
 *   struct hri_worker  one background thread that runs submitted jobs in order
 */
#ifndef HRI_BASE_THREADS_H
#define HRI_BASE_THREADS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/alloc.h"
#include "base/status.h"

#define HRI_POOL_THREADS_MAX 256

/*
 * worker: 0 is the thread that called hri_pool_run, others up to hri_pool_size() - 1; at any time
 * no two tasks run with the same number, so it may index scratch. Tasks must not call
 * hri_pool_run on the same pool.
 */
typedef void (*hri_task_fn)(void *ctx, unsigned task, unsigned worker);

struct hri_pool;

/*
 * thread_count includes the caller: 1 makes a pool that starts no thread and runs everything
 * inline. 0: one per CPU the process may use. alloc may be NULL.
 */
hr_status_t hri_pool_create(struct hri_alloc *alloc, unsigned thread_count,
                            struct hri_pool **pool_out);
/* Somebody else's threads, thread_count with the caller: run does what hri_pool_run is to do, without the lock. */
typedef void (*hri_run_fn)(void *run_ctx, hri_task_fn fn, void *ctx, unsigned task_count);
hr_status_t hri_pool_create_over(struct hri_alloc *alloc, unsigned thread_count, hri_run_fn run,
                                 void *run_ctx, struct hri_pool **pool_out);
/* NULL is fine. No run may be going on. */
void hri_pool_destroy(struct hri_pool *pool);

/* Threads, the caller included; a NULL pool has 1. */
unsigned hri_pool_size(const struct hri_pool *pool);

/*
 * Runs fn(ctx, task, worker) for every task in [0, task_count), each once, in no particular
 * order, and returns when all are done. Never allocates. Idle workers spin some tens of
 * microseconds before they sleep, so that a loop per layer costs about a microsecond; a task
 * costs a few tens of nanoseconds to claim, so make tasks of 1 us or more. Calls from several
 * threads are served one after the other. pool may be NULL: everything runs inline.
 */
void hri_pool_run(struct hri_pool *pool, hri_task_fn fn, void *ctx, unsigned task_count);

/*
 * How long idle workers spin before they sleep; the default is 50 us, or 0 where there are more
 * threads than CPUs.
 */
void hri_pool_set_spin_ns(struct hri_pool *pool, uint64_t spin_ns);

/*
 * Splits [0, count) into `parts` nearly equal ranges; writes the part-th. Lengths differ by at
 * most one.
 */
static inline void hri_split(uint64_t count, unsigned parts, unsigned part, uint64_t *begin_out,
                             uint64_t *end_out)
{
    uint64_t base = count / parts, extra = count % parts;
    *begin_out = part * base + (part < extra ? part : extra);
    *end_out = *begin_out + base + (part < extra ? 1 : 0);
}

typedef void (*hri_job_fn)(void *ctx);

struct hri_worker;

/*
 * One thread with a ring of at most capacity jobs. name (at most 15 characters are kept) is the
 * thread's name in tools such as top. A job's failures travel in its ctx.
 */
hr_status_t hri_worker_create(struct hri_alloc *alloc, const char *name, unsigned capacity,
                              struct hri_worker **worker_out);

/* Runs what was submitted, then ends the thread. NULL is fine. */
void hri_worker_destroy(struct hri_worker *worker);

/*
 * Queues a job; any thread may. HR_ERR_FULL when the ring is full (no message is recorded: it is
 * an answer, not a failure). *ticket_out (may be NULL) names the job for poll and wait. Jobs run
 * in order of their tickets.
 */
hr_status_t hri_worker_submit(struct hri_worker *worker, hri_job_fn fn, void *ctx,
                              uint64_t *ticket_out);

/* True once the job is done. */
bool hri_worker_poll(const struct hri_worker *worker, uint64_t ticket);
void hri_worker_wait(struct hri_worker *worker, uint64_t ticket);

/* Waits until all jobs submitted before the call are done. */
void hri_worker_drain(struct hri_worker *worker);

#endif
