/*
 * Arbitrary bytes as text and as vocabularies: whatever comes in, encoding ends, ids are in range,
 * and decoding gives back the text. Built with libFuzzer by clang (target fuzz_tokenizer); the
 * replay test runs it over tests/fuzz/corpus/tokenizer.
 *
 * Input: one byte of switches; then the text, or (bit 7) vocabulary lines, an empty line, merge
 * lines, an empty line, the text.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "engine/chat.h"
#include "engine/tokenizer.h"
#include "engine/unicode.h"
#include "engine/unicode_nfc.h"

#define LINES_MAX 1024

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char *const pre_names[] = {"smollm", "gpt-2", "llama-bpe", "qwen2"};

static void require(int holds)
{
    if (!holds)
        abort();
}

/* Lines up to an empty one or LINES_MAX; the rest of the input is written back. */
static size_t take_lines(const char **data, size_t *size, struct hre_text *lines)
{
    size_t n = 0;

    while (*size > 0 && n < LINES_MAX) {
        const char *end = memchr(*data, '\n', *size);
        size_t bytes = end ? (size_t)(end - *data) : *size;
        lines[n] = (struct hre_text){*data, bytes};
        *data += bytes + (end != NULL);
        *size -= bytes + (end != NULL);
        if (bytes == 0)
            break;
        n++;
    }
    return n;
}

/* All bytes of the alphabet, some merges of letters, spaces and dots, and two markers. */
static size_t own_lines(struct hre_text *tokens, struct hre_text *merges, size_t *n_merges_out)
{
    static char spelled[256][3];
    static const char *const more[] = {"aa",
                                       "aaaa",
                                       ("\xc4\xa0"
                                        "a"),
                                       "\xc4\xa0\xc4\xa0",
                                       "..",
                                       "12",
                                       "123",
                                       "ab",
                                       "abab"};
    static const char *const pairs[] = {
        "a a", "aa aa", "\xc4\xa0 a", "\xc4\xa0 \xc4\xa0", ". .", "1 2", "12 3", "a b", "ab ab"};
    static const char *const markers[] = {"<|im_start|>", "<|im"};
    size_t n = 0;

    for (int byte = 0, next = 256; byte < 256; byte++) {
        int same = (byte >= 33 && byte <= 126) || (byte >= 161 && byte != 173);
        int c = same ? byte : next++;
        size_t bytes = 0;
        if (c < 0x80) {
            spelled[byte][bytes++] = (char)c;
        } else {
            spelled[byte][bytes++] = (char)(0xc0 | c >> 6);
            spelled[byte][bytes++] = (char)(0x80 | (c & 0x3f));
        }
        tokens[n++] = (struct hre_text){spelled[byte], bytes};
    }
    for (size_t i = 0; i < sizeof(more) / sizeof(more[0]); i++) {
        tokens[n++] = (struct hre_text){more[i], strlen(more[i])};
        merges[i] = (struct hre_text){pairs[i], strlen(pairs[i])};
    }
    *n_merges_out = sizeof(pairs) / sizeof(pairs[0]);
    for (size_t i = 0; i < sizeof(markers) / sizeof(markers[0]); i++)
        tokens[n++] = (struct hre_text){markers[i], strlen(markers[i])};
    return n;
}

/* What was encoded without loss comes back; what a stream gives is always text. */
static void check_decode(const hre_tokenizer_t *t, const struct hre_tokens *tokens,
                         const char *text, size_t bytes)
{
    struct hre_bytes raw = {0}, shown = {0};

    for (size_t i = 0; i < tokens->count; i++)
        require(tokens->ids[i] < hre_tokenizer_vocab(t));
    require(hre_tokenizer_decode(t, tokens->ids, tokens->count, true, true, &raw) == HR_OK);
    require(hre_tokenizer_decode(t, tokens->ids, tokens->count, true, false, &shown) == HR_OK);
    require(hre_utf8_invalid_at(shown.data, shown.bytes) == shown.bytes);
    if (text && tokens->replaced == 0)
        require(raw.bytes + tokens->dropped_bytes == bytes);
    if (text && tokens->replaced == 0 && tokens->dropped_bytes == 0)
        require(memcmp(raw.data, text, bytes) == 0 && shown.bytes == bytes &&
                memcmp(shown.data, text, bytes) == 0);
    hre_bytes_fini(&raw);
    hre_bytes_fini(&shown);
}

static void check_pieces(const char *text, size_t bytes)
{
    if (hre_utf8_invalid_at(text, bytes) != bytes)
        return;
    for (int pre = 0; pre < HRE_PRETOKENIZERS; pre++) {
        for (size_t at = 0; at < bytes;) {
            size_t next = hre_pretokenize_next((hre_pretokenizer_t)pre, text, bytes, at);
            require(next > at && next <= bytes);
            require(next == bytes || ((unsigned char)text[next] & 0xc0) != 0x80);
            at = next;
        }
    }
}

/* Composed text is text, and composing it again changes nothing. */
static void check_composition(const char *text, size_t bytes)
{
    char *once, *twice;
    size_t once_bytes, twice_bytes;

    if (hre_utf8_invalid_at(text, bytes) != bytes)
        return;
    require(hre_nfc_compose(text, bytes, &once, &once_bytes));
    require(hre_utf8_invalid_at(once, once_bytes) == once_bytes);
    require(hre_nfc_compose(once, once_bytes, &twice, &twice_bytes));
    require(once_bytes == twice_bytes && memcmp(once, twice, once_bytes) == 0);
    require(!hre_nfc_is_stable(text, bytes) ||
            (once_bytes == bytes && memcmp(once, text, bytes) == 0));
    free(once);
    free(twice);
}

static void check_template(const char *text, size_t bytes)
{
    const struct hre_chat_message message = {"user", "hello"};
    struct hre_chat_template chat;
    struct hre_chat_text out;

    if (hre_chat_template_parse(text, bytes, &chat) != HR_OK)
        return;
    require(hre_chat_format(&chat, &message, 1, NULL, &out) == HR_OK);
    hre_chat_text_fini(&out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct hre_text *tokens = calloc(LINES_MAX, sizeof(*tokens)),
                    *merges = calloc(LINES_MAX, sizeof(*merges));
    int32_t *types = calloc(LINES_MAX, sizeof(*types));
    uint8_t switches = size ? data[0] : 0;
    const char *text = (const char *)data + (size > 0);
    size_t bytes = size - (size > 0);
    struct hre_encode_options options;
    struct hre_vocab vocab = {.tokens = tokens,
                              .token_types = types,
                              .merges = merges,
                              .bos_id = 0,
                              .eos_id = 0,
                              .eot_id = HRE_TOKEN_NONE,
                              .add_bos = (switches & 64) != 0};
    hre_tokenizer_t *t = NULL;
    struct hre_tokens ids;

    require(tokens && merges && types);
    hre_encode_options_init(&options);
    options.replace_invalid = switches & 4;
    options.parse_special = switches & 8;
    vocab.pre = pre_names[switches & 3];
    vocab.model = switches & 16 ? "headrace-words" : "gpt2";
    if (switches & 128) {
        vocab.n_tokens = take_lines(&text, &bytes, tokens);
        vocab.n_merges = take_lines(&text, &bytes, merges);
    } else {
        vocab.n_tokens = own_lines(tokens, merges, &vocab.n_merges);
    }
    for (size_t i = 0; i < vocab.n_tokens; i++)
        types[i] = i + 2 >= vocab.n_tokens
                       ? (switches & 32 ? HRE_TOKEN_USER_DEFINED : HRE_TOKEN_CONTROL)
                       : HRE_TOKEN_NORMAL;
    struct hre_range plain = {bytes / 3, bytes / 2};
    options.plain = &plain;
    options.n_plain = 1;
    check_pieces(text, bytes);
    check_composition(text, bytes);
    check_template(text, bytes);
    if (hre_tokenizer_create(&vocab, &t) == HR_OK &&
        hre_tokenizer_encode(t, text, bytes, &options, &ids) == HR_OK) {
        int exact =
            !(switches & 64) && !(switches & 16) && (switches & 3) != 3; /* qwen2 composes */
        check_decode(t, &ids, exact ? text : NULL, bytes);
        hre_tokens_fini(&ids);
    }
    hre_tokenizer_destroy(t);
    free(tokens);
    free(merges);
    free(types);
    return 0;
}
