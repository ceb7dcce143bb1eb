#include "engine/unicode.h"

#include <string.h>

#include "engine/unicode_tables.h"

enum hre_char_class hre_char_class(uint32_t code_point)
{
    uint32_t block = code_point / HRE_UNICODE_BLOCK;
    uint32_t within = code_point % HRE_UNICODE_BLOCK;

    if (block >= hre_unicode_index_count)
        return HRE_CHAR_OTHER;
    uint8_t pair =
        hre_unicode_blocks[hre_unicode_index[block] * (HRE_UNICODE_BLOCK / 2) + within / 2];
    return (enum hre_char_class)(within & 1 ? pair >> 4 : pair & 15);
}

/*
 * Bytes of the sequence that `first` begins (0: none does) and the range of its second byte, which
 * is where overlong forms, surrogates and too large values show.
 */
static size_t sequence_length(unsigned char first, unsigned char *low, unsigned char *high)
{
    *low = 0x80;
    *high = 0xbf;
    if (first < 0x80)
        return 1;
    if (first < 0xc2)
        return 0;
    if (first < 0xe0)
        return 2;
    if (first < 0xf0) {
        if (first == 0xe0)
            *low = 0xa0;
        if (first == 0xed)
            *high = 0x9f;
        return 3;
    }
    if (first == 0xf0)
        *low = 0x90;
    if (first == 0xf4)
        *high = 0x8f;
    return first < 0xf5 ? 4 : 0;
}

/* How many bytes at t belong to one sequence, whole or cut short; *whole_out tells which. */
static size_t sequence_prefix(const unsigned char *t, size_t bytes, bool *whole_out)
{
    unsigned char low, high;
    size_t length = sequence_length(t[0], &low, &high);
    size_t n = 1;

    *whole_out = false;
    if (length == 0)
        return 1;
    while (n < length && n < bytes && t[n] >= low && t[n] <= high) {
        low = 0x80;
        high = 0xbf;
        n++;
    }
    *whole_out = n == length;
    return n;
}

size_t hre_utf8_invalid_at(const char *text, size_t text_bytes)
{
    const unsigned char *t = (const unsigned char *)text;
    size_t at = 0;

    while (at < text_bytes) {
        bool whole;
        uint64_t eight;
        while (at + 8 <= text_bytes) {
            memcpy(&eight, t + at, 8);
            if (eight & 0x8080808080808080u)
                break;
            at += 8;
        }
        if (at == text_bytes)
            break;
        size_t n = sequence_prefix(t + at, text_bytes - at, &whole);
        if (!whole)
            return at;
        at += n;
    }
    return at;
}

size_t hre_utf8_invalid_length(const char *text, size_t text_bytes)
{
    bool whole;

    return sequence_prefix((const unsigned char *)text, text_bytes, &whole);
}

bool hre_utf8_incomplete(const char *text, size_t text_bytes)
{
    const unsigned char *t = (const unsigned char *)text;
    unsigned char low, high;
    bool whole;

    if (text_bytes == 0 || text_bytes > 3 || sequence_length(t[0], &low, &high) <= text_bytes)
        return false;
    return sequence_prefix(t, text_bytes, &whole) == text_bytes;
}
