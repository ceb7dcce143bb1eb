/* The limit of everything that streams: reading bytes with all threads and doing next to nothing
 * with them. */
#ifndef BENCH_READ_MEMORY_H
#define BENCH_READ_MEMORY_H

#include <stddef.h>
#include <stdint.h>

/* Reads [data, data + bytes), 64-byte aligned, bytes a multiple of 512; the result depends on
 * every byte. */
uint64_t hrb_read_memory(const void *data, size_t bytes);

#endif
