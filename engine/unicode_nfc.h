/*
 * Canonical composition (NFC), which the published Qwen2 tokenizers apply to text before anything
 * else: e + U+0301 becomes U+00E9. Of the Unicode version that they use, see tools/gen_unicode.py.
 */
#ifndef HRE_UNICODE_NFC_H
#define HRE_UNICODE_NFC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

extern const char hre_nfc_version[];

/* True where composing would surely change nothing; one pass over the text. text is valid UTF-8. */
bool hre_nfc_is_stable(const char *text, size_t text_bytes);

/* The composed text, to be freed; never NULL on success. False: no memory. */
bool hre_nfc_compose(const char *text, size_t text_bytes, char **composed_out,
                     size_t *composed_bytes_out);

/* The tables, written by tools/gen_unicode.py. Hangul syllables are computed instead. */

/* A code point that is the same as two others, or as one other (second 0). */
struct hre_nfc_pair {
    uint32_t composed, first, second;
};
struct hre_nfc_range {
    uint32_t first, last;
    uint32_t value;
};
extern const uint32_t hre_nfc_pairs_count;
extern const struct hre_nfc_pair hre_nfc_pairs[]; /* ascending by composed */
extern const uint32_t hre_nfc_by_parts_count;
extern const uint16_t
    hre_nfc_by_parts[]; /* into pairs, ascending by (first, second): those that compose */
extern const uint32_t hre_nfc_marks_count;
extern const struct hre_nfc_range hre_nfc_marks[]; /* value: combining class, not 0 */
extern const uint32_t hre_nfc_unstable_count;
extern const struct hre_nfc_range
    hre_nfc_unstable[]; /* what composing may change or join with the character before */

#endif
