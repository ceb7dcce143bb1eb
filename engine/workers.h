/*
 * The engine's threads for linear layers: a few workers that share the items of one job with the
 * caller.
 *
 * Items are claimed one by one, so the caller never waits for a worker that is still asleep: it
 * does the work itself. A worker without work spins for some tens of microseconds, then sleeps.
 */
#ifndef HRE_WORKERS_H
#define HRE_WORKERS_H

#include <stdint.h>

#include <headrace/headrace.h>

#define HRE_WORKERS_MAX       256
#define HRE_WORKERS_ITEMS_MAX ((1u << 20) - 1)

struct hre_workers;

/* item in [0, n_items), thread in [0, n_threads). */
typedef void (*hre_work_fn)(void *context, uint32_t item, uint32_t thread);

/* n_threads counts the caller; 0: a thread per usable core. HR_ERR_INVALID, HR_ERR_NOMEM. */
hr_status_t hre_workers_create(uint32_t n_threads, struct hre_workers **workers_out);
void hre_workers_destroy(struct hre_workers *workers);
uint32_t hre_workers_count(const struct hre_workers *workers);

/* Runs work on every item and returns when all are done. One caller at a time. */
void hre_workers_run(struct hre_workers *workers, hre_work_fn work, void *context,
                     uint32_t n_items);

/* Sends spinning workers to sleep: somebody else is about to use the cores. Nothing, once the workers are shared with them. */
void hre_workers_rest(struct hre_workers *workers);

/* The library will run its tasks with hre_workers_run, too. */
void hre_workers_share(struct hre_workers *workers);

#endif
