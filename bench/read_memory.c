#include "bench/read_memory.h"

#include <string.h>

/* Vectors of 64 bytes: one load on AVX-512, two on AVX2, four on plain x86-64; eight of them in
 * flight. */
typedef uint64_t line_t __attribute__((vector_size(64), may_alias));

/* clang 14 makes clones that do not link. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) &&                             \
    !defined(__SANITIZE_ADDRESS__)
#define CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define CLONES
#endif

CLONES uint64_t hrb_read_memory(const void *data, size_t bytes)
{
    const line_t *at = data, *end = at + bytes / sizeof(line_t);
    line_t sum[8];
    memset(sum, 0, sizeof sum);
    for (; at < end; at += 8) {
        for (int i = 0; i < 8; i++)
            sum[i] ^= at[i];
    }
    for (int i = 1; i < 8; i++)
        sum[0] ^= sum[i];
    return sum[0][0] ^ sum[0][1] ^ sum[0][2] ^ sum[0][3] ^ sum[0][4] ^ sum[0][5] ^ sum[0][6] ^
           sum[0][7];
}
