/*
 * The regular expressions (Oniguruma's reading: leftmost, alternatives in order, greedy):
 *
 *   gpt-2      's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
 *   smollm     every number character by itself, then gpt-2 inside of what lies between
 *   llama-bpe  (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|
 *              ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
 *   qwen2      the same with \p{N} instead of \p{N}{1,3}
 *
 * The fourth alternative of llama-bpe begins with a space, which the line break above hides.
 */
#include "engine/pretokenize.h"

#include <stdint.h>
#include <string.h>

#include "engine/unicode.h"

/* What a rule sees at a place: a class of the regular expressions, or the end of its text. */
enum seen { SEEN_OTHER, SEEN_LETTER, SEEN_NUMBER, SEEN_SPACE, SEEN_END };

struct rules {
    const char *name;
    const unsigned char *classes; /* [HRE_CHAR_CLASSES] enum hre_char_class to enum seen */
    bool is_gpt2;
    unsigned numbers_max; /* longest run of numbers in a piece; not used by gpt-2 */
};

static const unsigned char regex_classes[HRE_CHAR_CLASSES] = {SEEN_OTHER, SEEN_LETTER, SEEN_NUMBER,
                                                              SEEN_SPACE, SEEN_OTHER};
/* The first split of smollm makes every number an end of text for the second. */
static const unsigned char digits_classes[HRE_CHAR_CLASSES] = {SEEN_OTHER, SEEN_LETTER, SEEN_END,
                                                               SEEN_SPACE, SEEN_END};

static const struct rules all_rules[HRE_PRETOKENIZERS] = {
    [HRE_PRETOKENIZER_GPT2] = {"gpt-2", regex_classes, true, 0},
    [HRE_PRETOKENIZER_SMOLLM] = {"smollm", digits_classes, true, 0},
    [HRE_PRETOKENIZER_LLAMA_BPE] = {"llama-bpe", regex_classes, false, 3},
    [HRE_PRETOKENIZER_QWEN2] = {"qwen2", regex_classes, false, 1},
};

/* Other names in the wild for the same expression. */
static const struct {
    const char *name;
    hre_pretokenizer_t pretokenizer;
} aliases[] = {
    {"gpt2", HRE_PRETOKENIZER_GPT2},
    {"llama3", HRE_PRETOKENIZER_LLAMA_BPE},
    {"llama-v3", HRE_PRETOKENIZER_LLAMA_BPE},
};

bool hre_pretokenizer_find(const char *name, hre_pretokenizer_t *pretokenizer_out)
{
    for (int i = 0; i < HRE_PRETOKENIZERS; i++) {
        if (strcmp(name, all_rules[i].name) == 0) {
            *pretokenizer_out = (hre_pretokenizer_t)i;
            return true;
        }
    }
    for (size_t i = 0; i < sizeof(aliases) / sizeof(aliases[0]); i++) {
        if (strcmp(name, aliases[i].name) == 0) {
            *pretokenizer_out = aliases[i].pretokenizer;
            return true;
        }
    }
    return false;
}

const char *hre_pretokenizer_name(hre_pretokenizer_t pretokenizer)
{
    return all_rules[pretokenizer].name;
}

const char *hre_pretokenizer_names(void)
{
    return "smollm, gpt-2, llama-bpe, qwen2";
}

struct text {
    const char *data;
    size_t bytes;
    const struct rules *rules;
};

/* Class of the character at `at` and where the next one starts. */
static enum seen look(const struct text *t, size_t at, size_t *next_out)
{
    size_t length;

    if (at >= t->bytes) {
        *next_out = at;
        return SEEN_END;
    }
    uint32_t code_point = hre_utf8_decode(t->data + at, &length);
    *next_out = at + length;
    return (enum seen)t->rules->classes[hre_char_class(code_point)];
}

static size_t run_end(const struct text *t, size_t at, enum seen class)
{
    size_t next;

    while (look(t, at, &next) == class)
        at = next;
    return at;
}

static char byte_at(const struct text *t, size_t at)
{
    return at < t->bytes ? t->data[at] : '\0';
}

static bool is_newline(const struct text *t, size_t at)
{
    return at < t->bytes && (t->data[at] == '\r' || t->data[at] == '\n');
}

/* 's|'t|'re|'ve|'m|'ll|'d at an apostrophe; the end of it, or 0 where none matches. */
static size_t contraction_end(const struct text *t, size_t at, bool any_case)
{
    char fold = any_case ? 0x20 : 0;
    char a = (char)(byte_at(t, at + 1) | fold);
    char b = (char)(byte_at(t, at + 2) | fold);

    if (a == 's' || a == 't' || a == 'm' || a == 'd')
        return at + 2;
    if ((a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l'))
        return at + 3;
    /* U+017F, the long s, is an s when case does not matter. */
    if (any_case && byte_at(t, at + 1) == '\xc5' && byte_at(t, at + 2) == '\xbf')
        return at + 3;
    return 0;
}

/* \s+(?!\S)|\s+: the run, without its last character where text follows that it could lead. */
static size_t space_end(const struct text *t, size_t at)
{
    size_t last = at, end = at, next;

    while (look(t, end, &next) == SEEN_SPACE) {
        last = end;
        end = next;
    }
    if (look(t, end, &next) == SEEN_END || last == at)
        return end;
    return last;
}

static size_t gpt2_end(const struct text *t, size_t at)
{
    size_t next, end;
    enum seen first = look(t, at, &next);

    if (first == SEEN_END) /* a number, when the digits were split off before */
        return next;
    if (t->data[at] == '\'' && (end = contraction_end(t, at, false)) != 0)
        return end;
    if (t->data[at] == ' ') {
        enum seen second = look(t, next, &end);
        if (second != SEEN_SPACE && second != SEEN_END)
            return run_end(t, end, second);
    }
    return first == SEEN_SPACE ? space_end(t, at) : run_end(t, next, first);
}

/* \s*[\r\n]+ at the start of whitespace: up to the last newline of the run, 0 if it has none. */
static size_t newlines_end(const struct text *t, size_t at)
{
    size_t end = 0, next;

    while (look(t, at, &next) == SEEN_SPACE) {
        if (is_newline(t, at))
            end = next;
        at = next;
    }
    return end;
}

static size_t numbers_end(const struct text *t, size_t at, unsigned numbers_max)
{
    size_t next;

    for (unsigned i = 0; i < numbers_max && look(t, at, &next) == SEEN_NUMBER; i++)
        at = next;
    return at;
}

static size_t symbols_end(const struct text *t, size_t at)
{
    at = run_end(t, at, SEEN_OTHER);
    while (is_newline(t, at))
        at++;
    return at;
}

static size_t llama_end(const struct text *t, size_t at)
{
    size_t next, after, end;
    enum seen first = look(t, at, &next);

    if (t->data[at] == '\'' && (end = contraction_end(t, at, true)) != 0)
        return end;
    if (first == SEEN_LETTER)
        return run_end(t, next, SEEN_LETTER);
    if (first == SEEN_NUMBER)
        return numbers_end(t, at, t->rules->numbers_max);
    enum seen second = look(t, next, &after);
    if (second == SEEN_LETTER && !is_newline(t, at))
        return run_end(t, after, SEEN_LETTER);
    if (first == SEEN_OTHER)
        return symbols_end(t, at);
    if (t->data[at] == ' ' && second == SEEN_OTHER)
        return symbols_end(t, next);
    end = newlines_end(t, at);
    return end ? end : space_end(t, at);
}

size_t hre_pretokenize_next(hre_pretokenizer_t pretokenizer, const char *text, size_t text_bytes,
                            size_t at)
{
    struct text t = {.data = text, .bytes = text_bytes, .rules = &all_rules[pretokenizer]};

    return t.rules->is_gpt2 ? gpt2_end(&t, at) : llama_end(&t, at);
}
