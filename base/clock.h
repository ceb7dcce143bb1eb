/* Monotonic time. */
#ifndef HRI_BASE_CLOCK_H
#define HRI_BASE_CLOCK_H

#include <stdint.h>
#include <time.h>

static inline uint64_t hri_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Processor time of the calling thread. */
static inline uint64_t hri_thread_cpu_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

#endif
