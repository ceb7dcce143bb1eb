/* UTF-8 and the character classes that pre-tokenizers ask for. Pure functions. */
#ifndef HRE_UNICODE_H
#define HRE_UNICODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Values are those of tools/gen_unicode.py. */
enum hre_char_class {
    HRE_CHAR_OTHER = 0,
    HRE_CHAR_LETTER = 1, /* \p{L} */
    HRE_CHAR_NUMBER = 2, /* \p{N} */
    HRE_CHAR_SPACE = 3,  /* \s */
    HRE_CHAR_NUMBER_LATE =
        4, /* a number only in the newer Unicode that the Digits pre-tokenizer follows */
    HRE_CHAR_CLASSES = 5
};

enum hre_char_class hre_char_class(uint32_t code_point);

/*
 * Offset of the first byte that does not begin or continue a valid sequence (RFC 3629: no
 * surrogates, nothing overlong or above U+10FFFF), or text_bytes if all is valid.
 */
size_t hre_utf8_invalid_at(const char *text, size_t text_bytes);

/*
 * Length of the maximal invalid piece at the start of text (text_bytes > 0, and it does not start
 * with a valid sequence): what one replacement character stands for.
 */
size_t hre_utf8_invalid_length(const char *text, size_t text_bytes);

/*
 * True where text (all of it, at most 3 bytes) is the beginning of a valid sequence that has not
 * ended.
 */
bool hre_utf8_incomplete(const char *text, size_t text_bytes);

/* Decodes one code point of valid UTF-8 at text; *length_out is 1 to 4. */
static inline uint32_t hre_utf8_decode(const char *text, size_t *length_out)
{
    const unsigned char *t = (const unsigned char *)text;

    if (t[0] < 0x80) {
        *length_out = 1;
        return t[0];
    }
    if (t[0] < 0xe0) {
        *length_out = 2;
        return (uint32_t)(t[0] & 0x1f) << 6 | (t[1] & 0x3f);
    }
    if (t[0] < 0xf0) {
        *length_out = 3;
        return (uint32_t)(t[0] & 0x0f) << 12 | (uint32_t)(t[1] & 0x3f) << 6 | (t[2] & 0x3f);
    }
    *length_out = 4;
    return (uint32_t)(t[0] & 0x07) << 18 | (uint32_t)(t[1] & 0x3f) << 12 |
           (uint32_t)(t[2] & 0x3f) << 6 | (t[3] & 0x3f);
}

#endif
