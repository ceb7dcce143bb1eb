/*
 * A table of I/O operations that passes everything on to the real one, but fails where it is told
 * to. Deterministic: every fault counts calls, so the same run fails at the same place.
 */
#ifndef HR_TESTS_OFFLOAD_FAULT_IO_H
#define HR_TESTS_OFFLOAD_FAULT_IO_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/rng.h"
#include "offload/io_ops.h"

#define FAULT_HELD_MAX 64

/* Calls that the kernel gives no time-out; a read or write is one where no disk makes it. */
enum fault_call {
    CALL_OPEN_TEMP,
    CALL_CLOSE,
    CALL_STAT,
    CALL_ALLOCATE,
    CALL_READ,
    CALL_WRITE,
    CALL_FOLDER_OPEN,
    CALL_FOLDER_ALONE,
    CALL_FOLDER_REMOVE,
    CALL_FILE_OPEN,
    CALL_RENAME,
    CALL_REMOVE,
    CALL_SYNC,
    CALL_WRITE_BACK,
    CALL_LOCK,
    CALLS
};

/* A transfer is one readv or writev, or one operation pushed to a ring. */
struct fault_io {
    struct hri_io_ops ops;
    /* Of the transfers numbered from `after` on (reads and writes apart), `count` get the fault. */
    struct fault_rule {
        enum {
            FAULT_NONE,
            FAULT_ERROR, /* result is -error */
            FAULT_SHORT, /* asks the kernel for part of it: half, in whole 512 bytes, at least 512
                          */
            FAULT_ODD,   /* reports a short count that is no multiple of 512 */
            FAULT_ZERO,  /* result is 0 */
            FAULT_LONG,  /* reports more than was asked for */
            FAULT_LOST,  /* no result ever (ring), or blocks for 3 s (threads) */
            FAULT_FLIP   /* one bit of what was read is wrong */
        } kind;
        int error;
        long after, count;
    } read, write;
    int open_error, stat_error, allocate_error, ring_create_error, ring_register_error;
    long allocate_after;           /* allocate_error from this call on */
    bool no_direct;                /* open with O_DIRECT is EINVAL */
    _Atomic bool refuse_direct_io; /* transfers on a direct descriptor are EINVAL */
    uint64_t free_bytes;           /* 0: the truth */
    bool shuffle;                  /* ring results come late, out of order, and some twice */
    int hide_reaps;                /* so many looks at a ring see nothing */
    _Atomic int stalled;           /* no I/O gets an answer while it is set */
    /* The call numbered hang_at, of all such calls from fault_io_hang on, does not come back while `hangs` is set; then it is made. */
    _Atomic long n_calls, hang_at;
    _Atomic bool hangs;
    _Atomic int hung;         /* which call that was; CALLS: none yet */
    bool transfers_are_calls; /* no disk makes them */
    /* counted */
    _Atomic long n_reads, n_writes, n_faults;
    long n_allocates;
    int fd;              /* of the last open */
    _Atomic bool direct; /* the last file that was opened for a tier, or told to be */
    struct hri_rng rng;
    pthread_mutex_t mutex; /* of the rules: threads read them */
    struct fault_io *next; /* of fault_io_make's */
};

/* Zeroes it and fills ops. */
void fault_io_init(struct fault_io *io);

/* One that is never freed: a thread given up while it waited for the disk uses it after the store is gone. */
struct fault_io *fault_io_make(void);

/* Of the reads or writes from now on, the ones numbered after .. after + count - 1 get the fault. */
void fault_io_arm(struct fault_io *io, bool write, int kind, int error, long after, long count);
void fault_io_disarm(struct fault_io *io);
void fault_io_hang(struct fault_io *io, long at);
void fault_io_answer(struct fault_io *io);

#endif
