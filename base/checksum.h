/* CRC-32C (Castagnoli), the checksum of every block on file. */
#ifndef HRI_BASE_CHECKSUM_H
#define HRI_BASE_CHECKSUM_H

#include <stddef.h>
#include <stdint.h>

/*
 * Standard CRC-32C of the bytes; "123456789" gives 0xe3069283. seed is 0 to begin with, or the
 * checksum of what came before: crc(crc(0, a), b) == crc(0, ab).
 */
uint32_t hri_crc32c(uint32_t seed, const void *data, size_t bytes);

/* The same from a table, bit by definition: the reference and the last fallback. */
uint32_t hri_crc32c_table(uint32_t seed, const void *data, size_t bytes);

/* "isa-l", "sse4.2" or "table" */
const char *hri_crc32c_backend(void);

#endif
