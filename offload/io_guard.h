/* Calls that may not come back. The kernel has no time-out for open, fsync, rename, fallocate and their like: on a disk that hangs they stay
 * inside for as long as it does. A guard is a table of I/O operations that makes each of them on a thread of its own and waits for it so
 * long and no longer. What does not return is left behind with its memory; it and every later call of the guard end with -ETIMEDOUT.
 *
 * What such a call would still do, it does when the disk answers, however late. So what may not change until then is kept for it: a
 * descriptor that is closed through the guard after it gave up is closed when the call has returned, and the lock of a folder with it. A
 * descriptor that the late call itself brings is closed at once. Memory that readv and writev were given is not to be used or freed.
 *
 * Of the table readv_cached and set_direct, which wait for no disk, are passed on as they are; rings and transfers of disks, which have
 * time-outs of their own, go to the table below (hri_io_transfers).
 *
 * Threads: one at a time. */
#ifndef HRI_OFFLOAD_IO_GUARD_H
#define HRI_OFFLOAD_IO_GUARD_H

#include "offload/io_ops.h"
#include <headrace/headrace.h>

struct hri_io_guard;

/* timeout_ns: of a call; 0: HRI_DISK_TIMEOUT_NS; the table's own, if it has one, comes first. HR_ERR_NOMEM: no memory or no thread. */
hr_status_t hri_io_guard_create(const struct hri_io_ops *io, uint64_t timeout_ns,
                                struct hri_io_guard **guard_out);
/* Waits for nothing. NULL is legal. */
void hri_io_guard_destroy(struct hri_io_guard *guard);
/* Valid as long as the guard. */
const struct hri_io_ops *hri_io_guard_ops(const struct hri_io_guard *guard);
/* A call did not come back. */
bool hri_io_guard_gave_up(const struct hri_io_guard *guard);

#endif
