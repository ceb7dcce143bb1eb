/*
 * Most text is composed already, so only what surrounds an unstable character is worked on: the
 * span from the stable character before it to the next stable one. There, as the standard says:
 * decompose, sort marks by combining class, compose.
 */
#include "engine/unicode_nfc.h"

#include <stdlib.h>
#include <string.h>

#include "engine/unicode.h"

#define UNSTABLE_MIN 0x300 /* nothing below is unstable */
#define PARTS_MAX    4     /* of a full decomposition */

/* Hangul syllables: 19 leading consonants x 21 vowels x 27 trailing consonants or none. */
enum {
    S_BASE = 0xac00,
    L_BASE = 0x1100,
    V_BASE = 0x1161,
    T_BASE = 0x11a7,
    L_COUNT = 19,
    V_COUNT = 21,
    T_COUNT = 28,
    S_COUNT = L_COUNT * V_COUNT * T_COUNT
};

/* A code point with its place: sorting by the whole number keeps equal classes in order. */
struct span {
    uint64_t *marks; /* class << 56 | place << 24 | code point, or the code point alone */
    size_t count, capacity;
};

static const struct hre_nfc_range *range_find(const struct hre_nfc_range *ranges, uint32_t count,
                                              uint32_t c)
{
    uint32_t low = 0, high = count;

    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if (c > ranges[middle].last)
            low = middle + 1;
        else
            high = middle;
    }
    return low < count && c >= ranges[low].first ? &ranges[low] : NULL;
}

static bool is_unstable(uint32_t c)
{
    return c >= UNSTABLE_MIN && range_find(hre_nfc_unstable, hre_nfc_unstable_count, c) != NULL;
}

static unsigned combining_class(uint32_t c)
{
    const struct hre_nfc_range *range =
        c < UNSTABLE_MIN ? NULL : range_find(hre_nfc_marks, hre_nfc_marks_count, c);

    return range ? range->value : 0;
}

static const struct hre_nfc_pair *pair_of(uint32_t c)
{
    uint32_t low = 0, high = hre_nfc_pairs_count;

    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if (hre_nfc_pairs[middle].composed < c)
            low = middle + 1;
        else
            high = middle;
    }
    return low < hre_nfc_pairs_count && hre_nfc_pairs[low].composed == c ? &hre_nfc_pairs[low]
                                                                         : NULL;
}

/* What two code points compose to, or 0. */
static uint32_t compose_pair(uint32_t first, uint32_t second)
{
    uint32_t low = 0, high = hre_nfc_by_parts_count;

    if (first - L_BASE < L_COUNT && second - V_BASE < V_COUNT)
        return S_BASE + ((first - L_BASE) * V_COUNT + (second - V_BASE)) * T_COUNT;
    if (first - S_BASE < S_COUNT && (first - S_BASE) % T_COUNT == 0 && second > T_BASE &&
        second < T_BASE + T_COUNT)
        return first + (second - T_BASE);
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        const struct hre_nfc_pair *pair = &hre_nfc_pairs[hre_nfc_by_parts[middle]];
        if (pair->first < first || (pair->first == first && pair->second < second))
            low = middle + 1;
        else
            high = middle;
    }
    if (low == hre_nfc_by_parts_count)
        return 0;
    const struct hre_nfc_pair *pair = &hre_nfc_pairs[hre_nfc_by_parts[low]];
    return pair->first == first && pair->second == second ? pair->composed : 0;
}

/* All the way down; the number of parts. */
static unsigned decompose(uint32_t c, uint32_t *parts)
{
    const struct hre_nfc_pair *pair;
    uint32_t tail[PARTS_MAX];
    unsigned n_tail = 0, n = 0;

    if (c - S_BASE < S_COUNT) {
        uint32_t s = c - S_BASE;
        parts[0] = L_BASE + s / (V_COUNT * T_COUNT);
        parts[1] = V_BASE + s % (V_COUNT * T_COUNT) / T_COUNT;
        parts[2] = T_BASE + s % T_COUNT;
        return s % T_COUNT ? 3 : 2;
    }
    /* Only the first part of a pair decomposes further. */
    while (c >= 0xc0 && n_tail + 1 < PARTS_MAX && (pair = pair_of(c)) != NULL) {
        if (pair->second)
            tail[n_tail++] = pair->second;
        c = pair->first;
    }
    parts[n++] = c;
    while (n_tail > 0)
        parts[n++] = tail[--n_tail];
    return n;
}

static bool span_add(struct span *span, uint32_t c)
{
    uint32_t parts[PARTS_MAX];
    unsigned n = decompose(c, parts);

    if (span->count + n > span->capacity) {
        size_t capacity = 2 * span->capacity + 64;
        uint64_t *grown = realloc(span->marks, capacity * sizeof(*grown));
        if (!grown)
            return false;
        span->marks = grown;
        span->capacity = capacity;
    }
    for (unsigned i = 0; i < n; i++) {
        span->marks[span->count] =
            (uint64_t)combining_class(parts[i]) << 56 | (uint64_t)span->count << 24 | parts[i];
        span->count++;
    }
    return true;
}

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return x < y ? -1 : x > y;
}

static unsigned class_of(uint64_t mark)
{
    return (unsigned)(mark >> 56);
}

static uint32_t code_point_of(uint64_t mark)
{
    return (uint32_t)mark & 0xffffff;
}

/* Sorts each run of marks by class; text rarely has any that need it. */
static void span_sort(struct span *span)
{
    for (size_t begin = 0; begin < span->count; begin++) {
        size_t end = begin;
        bool sorted = true;
        while (end < span->count && class_of(span->marks[end]) != 0) {
            sorted = sorted &&
                     (end == begin || class_of(span->marks[end - 1]) <= class_of(span->marks[end]));
            end++;
        }
        if (!sorted)
            qsort(span->marks + begin, end - begin, sizeof(*span->marks), by_value);
        begin = end;
    }
}

/* A mark joins the last starter unless one of its class or higher stands between. */
static void span_compose(struct span *span)
{
    size_t starter = SIZE_MAX, kept = 0;
    unsigned last_class = 0;

    for (size_t i = 0; i < span->count; i++) {
        uint64_t mark = span->marks[i];
        unsigned class = class_of(mark);
        bool adjacent = starter != SIZE_MAX && kept == starter + 1;
        if (starter != SIZE_MAX && (adjacent || (last_class < class && last_class != 0))) {
            uint32_t composed =
                compose_pair(code_point_of(span->marks[starter]), code_point_of(mark));
            if (composed) {
                span->marks[starter] = composed; /* class 0 */
                continue;
            }
        }
        if (class == 0)
            starter = kept;
        last_class = class;
        span->marks[kept++] = mark;
    }
    span->count = kept;
}

static size_t encode(uint32_t c, char *out)
{
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    if (c < 0x800) {
        out[0] = (char)(0xc0 | c >> 6);
        out[1] = (char)(0x80 | (c & 0x3f));
        return 2;
    }
    if (c < 0x10000) {
        out[0] = (char)(0xe0 | c >> 12);
        out[1] = (char)(0x80 | (c >> 6 & 0x3f));
        out[2] = (char)(0x80 | (c & 0x3f));
        return 3;
    }
    out[0] = (char)(0xf0 | c >> 18);
    out[1] = (char)(0x80 | (c >> 12 & 0x3f));
    out[2] = (char)(0x80 | (c >> 6 & 0x3f));
    out[3] = (char)(0x80 | (c & 0x3f));
    return 4;
}

/*
 * The first unstable character at or after `at`, text_bytes if there is none; *before_out is where
 * the one before it starts.
 */
static size_t next_unstable(const char *text, size_t text_bytes, size_t at, size_t *before_out)
{
    size_t before = at, length;

    while (at < text_bytes) {
        if ((unsigned char)text[at] < 0xcc) { /* below U+0300 */
            before = at;
            at += (unsigned char)text[at] < 0x80 ? 1 : 2;
            continue;
        }
        if (is_unstable(hre_utf8_decode(text + at, &length)))
            break;
        before = at;
        at += length;
    }
    *before_out = before;
    return at;
}

bool hre_nfc_is_stable(const char *text, size_t text_bytes)
{
    size_t before;

    return next_unstable(text, text_bytes, 0, &before) == text_bytes;
}

/*
 * Gathers the span that begins at `at` with whatever and goes on to the next stable character; the
 * end of it, 0: no memory.
 */
static size_t read_span(struct span *span, const char *text, size_t text_bytes, size_t at)
{
    size_t length;

    span->count = 0;
    for (size_t begin = at; at < text_bytes; at += length) {
        uint32_t c = hre_utf8_decode(text + at, &length);
        if (at > begin && !is_unstable(c))
            break;
        if (!span_add(span, c))
            return 0;
    }
    return at;
}

/*
 * Unicode promises that composing never makes text more than three times as long; that is at marks
 * which stay apart.
 */
bool hre_nfc_compose(const char *text, size_t text_bytes, char **composed_out,
                     size_t *composed_bytes_out)
{
    struct span span = {0};
    char *out = malloc(3 * text_bytes + 1);
    size_t from = 0, to = 0, begin;

    if (!out)
        return false;
    while (from < text_bytes) {
        size_t unstable = next_unstable(text, text_bytes, from, &begin);
        if (unstable == text_bytes)
            begin = text_bytes;
        memcpy(out + to, text + from, begin - from);
        to += begin - from;
        from = begin;
        if (from == text_bytes)
            break;
        from = read_span(&span, text, text_bytes, from);
        if (from == 0) {
            free(out);
            free(span.marks);
            return false;
        }
        span_sort(&span);
        span_compose(&span);
        for (size_t i = 0; i < span.count; i++)
            to += encode(code_point_of(span.marks[i]), out + to);
    }
    free(span.marks);
    *composed_out = out;
    *composed_bytes_out = to;
    return true;
}
