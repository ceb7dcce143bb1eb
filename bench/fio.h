/* fio as the limit of what a disk does. */
#ifndef BENCH_FIO_H
#define BENCH_FIO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define HRB_FIO_MISSING "fio is not installed ('sh tools/deps.sh bench'; Debian's package fio)"

struct hrb_fio_job {
    const char *path; /* of its file */
    const char *rw;   /* "randread", "write", ... */
    const char *more; /* one more option, or NULL */
    uint64_t bytes, block_bytes;
    uint32_t depth;
    bool direct;
    bool
        same_data; /* the same noise, a buffer's worth for each I/O under way, again and again: fio then makes none while it writes */
};
/* io_uring with a registered file, and registered buffers where it goes past the page cache. Bytes a second of its reads, or of its writes
 * where rw begins with 'w' or ends with it; 0, or 1 with the reason. */
int hrb_fio_run(const struct hrb_fio_job *job, double *bandwidth_out, char *reason,
                size_t reason_bytes);

#endif
