#include "engine/repack.h"

#include <string.h>

#include "engine/gguf.h"
#include "engine/quant.h"

#define WORD 4

/* A block: `halves` 16-bit floats, then `words` times four bytes of quants. */
struct shape {
    unsigned halves, words;
};

static struct shape shape_of(uint32_t type)
{
    switch (type) {
    case HRE_WEIGHT_Q4_0:
        return (struct shape){1, 4};
    case HRE_WEIGHT_Q4_1:
        return (struct shape){2, 4};
    case HRE_WEIGHT_Q8_0:
        return (struct shape){1, 8};
    default:
        return (struct shape){0, 0};
    }
}

int hre_can_repack(uint32_t type)
{
    return shape_of(type).words != 0;
}

void hre_repack_group(uint32_t type, const void *rows, size_t row_bytes, void *group)
{
    struct shape s = shape_of(type);
    size_t block = 2 * s.halves + WORD * s.words;
    unsigned char *to = group;
    const unsigned char *from = rows;

    for (size_t at = 0; at < row_bytes; at += block) {
        for (unsigned i = 0; i < s.halves; i++) {
            for (unsigned r = 0; r < HRE_GROUP_ROWS; r++, to += 2) {
                memcpy(to, from + r * row_bytes + at + 2 * i, 2);
            }
        }
        for (unsigned i = 0; i < s.words; i++) {
            for (unsigned r = 0; r < HRE_GROUP_ROWS; r++, to += WORD) {
                memcpy(to, from + r * row_bytes + at + 2 * s.halves + WORD * i, WORD);
            }
        }
    }
}

const void *hre_weight_row(const struct hre_weight *w, uint32_t r, void *scratch)
{
    struct shape s = shape_of(w->type);
    size_t block = 2 * s.halves + WORD * s.words, lane = r % HRE_GROUP_ROWS;
    const unsigned char *from = (const unsigned char *)w->data + (r - lane) * w->row_bytes;
    unsigned char *to = scratch;

    if (r >= w->packed_rows) {
        return (const unsigned char *)w->data + r * w->row_bytes;
    }
    for (size_t at = 0; at < w->row_bytes; at += block) {
        for (unsigned i = 0; i < s.halves; i++, to += 2, from += 2 * HRE_GROUP_ROWS) {
            memcpy(to, from + 2 * lane, 2);
        }
        for (unsigned i = 0; i < s.words; i++, to += WORD, from += WORD * HRE_GROUP_ROWS) {
            memcpy(to, from + WORD * lane, WORD);
        }
    }
    return scratch;
}
