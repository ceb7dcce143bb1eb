#include "base/checksum.h"

#include <string.h>

#if HR_HAVE_ISAL
#include <isa-l/crc.h>
#endif

#define CRC32C_POLYNOMIAL 0x82f63b78u /* Castagnoli, bits reversed */

/*
 * One nibble at a time: 64 bytes of table that can be checked by eye. Only machines without
 * better use it.
 */
static uint32_t table_update(uint32_t crc, const unsigned char *data, size_t bytes)
{
    uint32_t table[16];
    for (uint32_t i = 0; i < 16; i++) {
        uint32_t value = i;
        for (int bit = 0; bit < 4; bit++)
            value = (value >> 1) ^ ((value & 1) ? CRC32C_POLYNOMIAL : 0);
        table[i] = value;
    }
    for (size_t i = 0; i < bytes; i++) {
        crc = (crc >> 4) ^ table[(crc ^ data[i]) & 15];
        crc = (crc >> 4) ^ table[(crc ^ (data[i] >> 4)) & 15];
    }
    return crc;
}

uint32_t hri_crc32c_table(uint32_t seed, const void *data, size_t bytes)
{
    return ~table_update(~seed, data, bytes);
}

#if HR_HAVE_ISAL

/* A piece at a time, what follows being asked for before: the processor itself does not look beyond a page. */
#define PIECE_BYTES ((size_t)1024)
#define AHEAD_BYTES ((size_t)2048)

static void ask(const unsigned char *data, size_t bytes)
{
    size_t end = bytes < AHEAD_BYTES + PIECE_BYTES ? bytes : AHEAD_BYTES + PIECE_BYTES;
    for (size_t i = AHEAD_BYTES; i < end; i += 64)
        __builtin_prefetch(data + i);
}

uint32_t hri_crc32c(uint32_t seed, const void *data, size_t bytes)
{
    const unsigned char *cursor = data;
    uint32_t crc = ~seed;
    while (bytes > 0) {
        size_t piece = bytes < PIECE_BYTES ? bytes : PIECE_BYTES;
        ask(cursor, bytes);
        crc = crc32_iscsi((unsigned char *)cursor, (int)piece, crc);
        cursor += piece;
        bytes -= piece;
    }
    return ~crc;
}

const char *hri_crc32c_backend(void)
{
    return "isa-l";
}

#elif defined(__x86_64__)

#include <nmmintrin.h>

__attribute__((target("sse4.2"))) static uint32_t
sse42_update(uint32_t seed, const unsigned char *data, size_t bytes)
{
    uint64_t crc = seed;
    for (; bytes >= 8; bytes -= 8, data += 8) {
        uint64_t word;
        memcpy(&word, data, sizeof word);
        crc = _mm_crc32_u64(crc, word);
    }
    for (; bytes > 0; bytes--, data++)
        crc = _mm_crc32_u8((uint32_t)crc, *data);
    return (uint32_t)crc;
}

uint32_t hri_crc32c(uint32_t seed, const void *data, size_t bytes)
{
    if (__builtin_cpu_supports("sse4.2"))
        return ~sse42_update(~seed, data, bytes);
    return hri_crc32c_table(seed, data, bytes);
}

const char *hri_crc32c_backend(void)
{
    return __builtin_cpu_supports("sse4.2") ? "sse4.2" : "table";
}

#else

uint32_t hri_crc32c(uint32_t seed, const void *data, size_t bytes)
{
    return hri_crc32c_table(seed, data, bytes);
}

const char *hri_crc32c_backend(void)
{
    return "table";
}

#endif
