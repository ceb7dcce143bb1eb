/*
 * Character classes of all code points, two tables deep: tools/gen_unicode.py writes
 * unicode_tables.c.
 */
#ifndef HRE_UNICODE_TABLES_H
#define HRE_UNICODE_TABLES_H

#include <stdint.h>

#define HRE_UNICODE_BLOCK 128 /* code points per block; a block has a 4-bit class for each */

extern const char hre_unicode_regex_version[];
extern const char hre_unicode_digits_version[];
extern const uint32_t hre_unicode_index_count; /* blocks; later code points are of class OTHER */
extern const uint8_t
    hre_unicode_index[]; /* [index_count] code point / HRE_UNICODE_BLOCK to block */
extern const uint8_t hre_unicode_blocks[]; /* [blocks][64] low nibble first */

#endif
