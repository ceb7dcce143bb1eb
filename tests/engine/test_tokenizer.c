/*
 * The tokenizer with a small vocabulary; expected ids and pieces are those of the PyPI package
 * `tokenizers`, committed beside.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "engine/unicode.h"
#include "engine/unicode_nfc.h"
#include "tokenizer_data.h"

static const char *const pre_names[] = {"smollm", "gpt-2", "llama-bpe", "qwen2"};
static const char *const control[] = {"<|im_start|>", "<|endoftext|>", "<|im", "<|end"};
#define N_CONTROL (sizeof(control) / sizeof(control[0]))

/* A vocabulary to make tokenizers from. */
struct small {
    struct file vocab_file, merges_file;
    struct hre_text *tokens, *merges;
    int32_t *types;
    struct hre_vocab vocab;
};

static struct small small;
static struct file golden;

static int setup(void **state)
{
    (void)state;
    golden = data_read("golden.txt");
    small.vocab_file = data_read("small.vocab");
    small.merges_file = data_read("small.merges");
    small.tokens = lines_of(&small.vocab_file, &small.vocab.n_tokens);
    small.merges = lines_of(&small.merges_file, &small.vocab.n_merges);
    small.types = malloc((small.vocab.n_tokens + N_CONTROL) * sizeof(*small.types));
    for (size_t i = 0; i < small.vocab.n_tokens; i++)
        small.types[i] = HRE_TOKEN_NORMAL;
    for (size_t i = 0; i < N_CONTROL; i++) {
        small.types[small.vocab.n_tokens] = HRE_TOKEN_CONTROL;
        small.tokens[small.vocab.n_tokens++] = (struct hre_text){control[i], strlen(control[i])};
    }
    small.vocab.model = "gpt2";
    small.vocab.pre = "smollm";
    small.vocab.tokens = small.tokens;
    small.vocab.token_types = small.types;
    small.vocab.merges = small.merges;
    small.vocab.bos_id = small.vocab.eos_id = small.vocab.eot_id = HRE_TOKEN_NONE;
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    free(golden.data);
    free(small.vocab_file.data);
    free(small.merges_file.data);
    free(small.tokens);
    free(small.merges);
    free(small.types);
    return 0;
}

static hre_tokenizer_t *create(const struct hre_vocab *vocab)
{
    hre_tokenizer_t *t = NULL;
    hr_status_t status = hre_tokenizer_create(vocab, &t);

    if (status != HR_OK)
        fail_msg("%s", hre_last_error());
    return t;
}

static hre_tokenizer_t *create_pre(const char *pre)
{
    struct hre_vocab vocab = small.vocab;

    vocab.pre = pre;
    return create(&vocab);
}

static struct hre_tokens encode(const hre_tokenizer_t *t, const char *text, size_t bytes,
                                const struct hre_encode_options *options)
{
    struct hre_tokens tokens = {0};

    if (hre_tokenizer_encode(t, text, bytes, options, &tokens) != HR_OK)
        fail_msg("%s", hre_last_error());
    return tokens;
}

static void assert_ids(struct hre_tokens *got, const uint32_t *want, size_t n)
{
    const char *difference = ids_differ(got->ids, got->count, want, n);

    if (difference)
        fail_msg("%s", difference);
    hre_tokens_fini(got);
}

static void test_golden_ids(void **state)
{
    (void)state;
    for (size_t i = 0; i < 4; i++) {
        char name[64];
        snprintf(name, sizeof(name), "small.%s.ids", pre_names[i]);
        struct numbers want = data_numbers(name);
        hre_tokenizer_t *t = create_pre(pre_names[i]);
        struct hre_tokens got = encode(t, golden.data, golden.bytes, NULL);
        assert_true(want.count > 1000);
        assert_int_equal(got.dropped_bytes, 0);
        assert_ids(&got, want.values, want.count);
        free(want.values);
        hre_tokenizer_destroy(t);
    }
}

static void test_golden_pieces(void **state)
{
    (void)state;
    for (size_t i = 0; i < 4; i++) {
        char name[64];
        snprintf(name, sizeof(name), "golden.%s.lengths", pre_names[i]);
        struct numbers want = data_numbers(name);
        hre_pretokenizer_t pre;
        size_t at = 0;
        assert_true(hre_pretokenizer_find(pre_names[i], &pre));
        assert_string_equal(hre_pretokenizer_name(pre), pre_names[i]);
        for (size_t piece = 0; piece < want.count; piece++) {
            size_t end = hre_pretokenize_next(pre, golden.data, golden.bytes, at);
            if (end - at != want.values[piece])
                fail_msg("%s: piece %zu at byte %zu has %zu bytes, expected %u", pre_names[i],
                         piece, at, end - at, want.values[piece]);
            at = end;
        }
        assert_int_equal(at, golden.bytes);
        free(want.values);
    }
}

static void test_golden_special(void **state)
{
    struct hre_encode_options options;
    hre_tokenizer_t *t = create_pre("smollm");
    struct numbers want = data_numbers("small.special.ids");

    (void)state;
    hre_encode_options_init(&options);
    options.parse_special = true;
    struct hre_tokens got = encode(t, golden.data, golden.bytes, &options);
    assert_ids(&got, want.values, want.count);
    free(want.values);
    hre_tokenizer_destroy(t);
}

/* Longer markers win, and text between them is cut for itself. */
static void test_markers(void **state)
{
    struct hre_encode_options options;
    hre_tokenizer_t *t = create_pre("smollm");
    uint32_t start = hre_tokenizer_find(t, "<|im_start|>", 12),
             im = hre_tokenizer_find(t, "<|im", 4);
    uint32_t x = hre_tokenizer_find(t, "x", 1);

    (void)state;
    hre_encode_options_init(&options);
    options.parse_special = true;
    struct hre_tokens got = encode(t, "x<|im_start|><|imx<|im_start|", 29, &options);
    assert_int_equal(got.ids[0], x);
    assert_int_equal(got.ids[1], start);
    assert_int_equal(got.ids[2], im);
    assert_int_equal(got.ids[3], x);
    assert_int_equal(got.ids[4], im);
    hre_tokens_fini(&got);

    /*
     * Plain ranges: the second marker lies in one, the third only partly and still does not count.
     */
    const char text[] = "<|im_start|><|im_start|><|im_start|>";
    const struct hre_range plain[] = {{12, 20}, {20, 25}};
    options.plain = plain;
    options.n_plain = 2;
    got = encode(t, text, 36, &options);
    struct hre_tokens tail = encode(t, text + 12, 24, NULL);
    assert_int_equal(got.ids[0], start);
    assert_int_equal(got.count, 1 + tail.count);
    assert_memory_equal(got.ids + 1, tail.ids, tail.count * sizeof(*tail.ids));
    hre_tokens_fini(&got);
    hre_tokens_fini(&tail);

    const struct hre_range bad[] = {{5, 8}, {7, 9}};
    options.plain = bad;
    assert_int_equal(hre_tokenizer_encode(t, text, 36, &options, &got), HR_ERR_INVALID);
    hre_tokenizer_destroy(t);
}

/* A marker that begins or ends inside of a character is not found there: it would cut it. */
static void test_markers_in_characters(void **state)
{
    static const char *const broken[] = {"\xa0x", "x\xc4", "\xc4", "\xa0"};
    static const char text[] = "a\xc4\xa0x\xc4\xa0 b";
    struct hre_text tokens[2048];
    struct hre_vocab vocab = small.vocab;
    struct hre_encode_options options;

    (void)state;
    assert_true(vocab.n_tokens <= 2048);
    memcpy(tokens, small.tokens, vocab.n_tokens * sizeof(*tokens));
    for (size_t i = 0; i < N_CONTROL; i++)
        tokens[vocab.n_tokens - N_CONTROL + i] = (struct hre_text){broken[i], strlen(broken[i])};
    vocab.tokens = tokens;
    hre_tokenizer_t *t = create(&vocab);
    hre_encode_options_init(&options);
    struct hre_tokens plain = encode(t, text, sizeof(text) - 1, &options);
    options.parse_special = true;
    struct hre_tokens got = encode(t, text, sizeof(text) - 1, &options);
    assert_int_equal(got.dropped_bytes, plain.dropped_bytes);
    assert_ids(&got, plain.ids, plain.count);
    hre_tokens_fini(&plain);
    hre_tokenizer_destroy(t);
}

static void test_user_defined_always_counts(void **state)
{
    struct hre_vocab vocab = small.vocab;
    int32_t *types = malloc(vocab.n_tokens * sizeof(*types));

    (void)state;
    memcpy(types, small.types, vocab.n_tokens * sizeof(*types));
    types[vocab.n_tokens - N_CONTROL] = HRE_TOKEN_USER_DEFINED; /* <|im_start|> */
    vocab.token_types = types;
    hre_tokenizer_t *t = create(&vocab);
    struct hre_tokens got = encode(t, "<|im_start|>", 12, NULL);
    assert_int_equal(got.count, 1);
    hre_tokens_fini(&got);
    got = encode(t, "<|endoftext|>", 13, NULL);
    assert_true(got.count > 1);
    hre_tokens_fini(&got);
    hre_tokenizer_destroy(t);
    free(types);
}

static void test_added_ends(void **state)
{
    struct hre_vocab vocab = small.vocab;
    struct hre_encode_options options;
    uint32_t bos = (uint32_t)vocab.n_tokens - 4, eos = bos + 1;

    (void)state;
    vocab.bos_id = bos;
    vocab.eos_id = eos;
    vocab.add_bos = true;
    hre_tokenizer_t *t = create(&vocab);
    hre_encode_options_init(&options);
    struct hre_tokens got = encode(t, "", 0, &options);
    assert_ids(&got, &bos, 1);

    options.add_eos = HRE_ADD_ALWAYS;
    options.parse_special = true;
    got = encode(t, "<|im_start|>", 12, &options);
    assert_ids(&got, (uint32_t[]){bos, eos}, 2);

    options.add_bos = options.add_eos = HRE_ADD_NEVER;
    got = encode(t, "", 0, &options);
    assert_ids(&got, NULL, 0);
    assert_true(hre_tokenizer_is_end(t, eos));
    assert_false(hre_tokenizer_is_end(t, bos));
    assert_int_equal(hre_tokenizer_bos(t), bos);
    assert_int_equal(hre_tokenizer_eos(t), eos);
    hre_tokenizer_destroy(t);
}

/* -------------------------------------------------------------------------------------- merging */

/*
 * The rule of byte pair encoding word for word: join the leftmost pair of the lowest rank until
 * none is listed.
 */
static size_t merge_naively(const struct hre_vocab *vocab, const char *text, size_t bytes,
                            size_t *ends_out)
{
    size_t n = bytes;

    for (size_t i = 0; i < n; i++)
        ends_out[i] = i + 1;
    for (;;) {
        size_t best_rank = vocab->n_merges, best = 0;
        for (size_t i = 0; i + 1 < n; i++) {
            size_t begin = i ? ends_out[i - 1] : 0, middle = ends_out[i], end = ends_out[i + 1];
            for (size_t rank = 0; rank < best_rank; rank++) {
                const struct hre_text *merge = &vocab->merges[rank];
                if (merge->bytes == end - begin + 1 && merge->data[middle - begin] == ' ' &&
                    memcmp(merge->data, text + begin, middle - begin) == 0 &&
                    memcmp(merge->data + (middle - begin) + 1, text + middle, end - middle) == 0) {
                    best_rank = rank;
                    best = i;
                }
            }
        }
        if (best_rank == vocab->n_merges)
            return n;
        memmove(ends_out + best, ends_out + best + 1, (n - best - 1) * sizeof(*ends_out));
        n--;
    }
}

static void test_merges_follow_the_rule(void **state)
{
    static const char letters[] = "aaeehilnorrsstt";
    char text[200];
    size_t ends[200];
    uint64_t seed = 1;
    hre_tokenizer_t *t = create_pre("gpt-2");

    (void)state;
    for (size_t bytes = 1; bytes < 200; bytes += 1 + bytes / 4) {
        for (size_t i = 0; i < bytes; i++) {
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            text[i] = letters[(seed >> 33) % (sizeof(letters) - 1)];
        }
        size_t n = merge_naively(&small.vocab, text, bytes, ends);
        struct hre_tokens got = encode(t, text, bytes, NULL);
        assert_int_equal(got.count, n);
        for (size_t i = 0; i < n; i++) {
            size_t begin = i ? ends[i - 1] : 0;
            assert_int_equal(got.ids[i], hre_tokenizer_find(t, text + begin, ends[i] - begin));
        }
        hre_tokens_fini(&got);
    }
    hre_tokenizer_destroy(t);
}

/* Long text without a gap; a quadratic algorithm would run into the test's time limit. */
static void test_long_runs(void **state)
{
    size_t bytes = 1 << 18;
    char *text = malloc(bytes);

    (void)state;
    for (size_t i = 0; i < 4; i += 2) {
        hre_tokenizer_t *t = create_pre(pre_names[i]);
        for (const char *c = "a \n.'"; *c; c++) {
            struct hre_bytes back = {0};
            memset(text, *c, bytes);
            struct hre_tokens got = encode(t, text, bytes, NULL);
            assert_int_equal(hre_tokenizer_decode(t, got.ids, got.count, true, true, &back), HR_OK);
            assert_int_equal(back.bytes, bytes);
            assert_memory_equal(back.data, text, bytes);
            hre_tokens_fini(&got);
            hre_bytes_fini(&back);
        }
        hre_tokenizer_destroy(t);
    }
    free(text);
}

/* A byte that the vocabulary lacks is left out and counted. */
static void test_missing_bytes(void **state)
{
    const struct hre_text tokens[] = {{"a", 1}, {"b", 1}, {"ab", 2}}, merges[] = {{"a b", 3}};
    struct hre_vocab vocab = {.model = "gpt2",
                              .pre = "gpt-2",
                              .tokens = tokens,
                              .n_tokens = 3,
                              .merges = merges,
                              .n_merges = 1,
                              .bos_id = HRE_TOKEN_NONE,
                              .eos_id = HRE_TOKEN_NONE,
                              .eot_id = HRE_TOKEN_NONE};
    hre_tokenizer_t *t = create(&vocab);
    struct hre_tokens got = encode(t, "axb abc", 7, NULL);

    (void)state;
    assert_int_equal(got.dropped_bytes, 3);
    assert_ids(&got, (uint32_t[]){2, 2}, 2);
    hre_tokenizer_destroy(t);
}

/* ---------------------------------------------------------------------------------------- UTF-8 */

static void test_utf8(void **state)
{
    static const struct {
        const char *text;
        size_t bytes, invalid_at, invalid_length;
    } cases[] = {
        {"abc", 3, 3, 0},
        {"\xc3\xa9\xe4\xb8\x80\xf0\x9f\x98\x80", 9, 9, 0},
        {"\xf4\x8f\xbf\xbf\xed\x9f\xbf\xee\x80\x80", 10, 10, 0},
        {"a\xff", 2, 1, 1},
        {"12345678\x80", 9, 8, 1},
        {"\xc0\x80", 2, 0, 1},
        {"\xc1\xbf", 2, 0, 1},
        {"\xe0\x9f\xbf", 3, 0, 1},
        {"\xed\xa0\x80", 3, 0, 1},
        {"\xf0\x8f\xbf\xbf", 4, 0, 1},
        {"\xf4\x90\x80\x80", 4, 0, 1},
        {"\xf5\x80\x80\x80", 4, 0, 1},
        {"a\xe4\xb8", 3, 1, 2},
        {"\xf0\x9f\x98z", 4, 0, 3},
        {"\xe4z", 2, 0, 1},
        {"", 0, 0, 0},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        size_t at = hre_utf8_invalid_at(cases[i].text, cases[i].bytes);
        if (at != cases[i].invalid_at)
            fail_msg("case %zu: invalid at %zu, expected %zu", i, at, cases[i].invalid_at);
        if (at < cases[i].bytes)
            assert_int_equal(hre_utf8_invalid_length(cases[i].text + at, cases[i].bytes - at),
                             cases[i].invalid_length);
    }
    assert_true(hre_utf8_incomplete("\xf0\x9f\x98", 3));
    assert_false(hre_utf8_incomplete("\xf0\x8f", 2));
    assert_false(hre_utf8_incomplete("a", 1));
    assert_false(hre_utf8_incomplete("\xff", 1));
}

static void test_character_classes(void **state)
{
    (void)state;
    assert_int_equal(hre_char_class('a'), HRE_CHAR_LETTER);
    assert_int_equal(hre_char_class('7'), HRE_CHAR_NUMBER);
    assert_int_equal(hre_char_class('_'), HRE_CHAR_OTHER);
    assert_int_equal(hre_char_class(0x85), HRE_CHAR_SPACE);
    assert_int_equal(hre_char_class(0x1c),
                     HRE_CHAR_OTHER); /* white space for some, not for the expressions */
    assert_int_equal(hre_char_class(0x200b), HRE_CHAR_OTHER);
    assert_int_equal(hre_char_class(0x2167), HRE_CHAR_NUMBER);
    assert_int_equal(hre_char_class(0x301), HRE_CHAR_OTHER);
    assert_int_equal(hre_char_class(0x4e00), HRE_CHAR_LETTER);
    assert_int_equal(hre_char_class(0x10d40), HRE_CHAR_NUMBER);      /* new in Unicode 16 */
    assert_int_equal(hre_char_class(0x11de0), HRE_CHAR_NUMBER_LATE); /* new in Unicode 17 */
    assert_int_equal(hre_char_class(0x1f600), HRE_CHAR_OTHER);
    assert_int_equal(hre_char_class(0x10ffff), HRE_CHAR_OTHER);
    assert_int_equal(hre_char_class(UINT32_MAX), HRE_CHAR_OTHER);
}

static void test_composition(void **state)
{
    static const char *const cases[][2] = {
        {"plain \xe4\xb8\x80 \xf0\x9f\x98\x80", "plain \xe4\xb8\x80 \xf0\x9f\x98\x80"},
        {"e\xcc\x81x", "\xc3\xa9x"},
        {"q\xcc\x81", "q\xcc\x81"},
        {"\xcc\x81"
         "e",
         "\xcc\x81"
         "e"},
        {"a\xcc\x81\xcc\xa3", "\xe1\xba\xa1\xcc\x81"}, /* sorted first: the dot below joins */
        {"\xc3\xa1\xcc\xa3", "\xe1\xba\xa1\xcc\x81"},  /* taken apart for that */
        {"a\xcc\x81\xcc\x81", "\xc3\xa1\xcc\x81"},     /* the second of a class is blocked */
        {"\xe1\x84\x92\xe1\x85\xa1\xe1\x86\xab", "\xed\x95\x9c"}, /* Hangul */
        {"\xea\xb0\x80\xe1\x86\xa8", "\xea\xb0\x81"},
        {"\xe2\x84\xab", "\xc3\x85"},                 /* the angstrom sign is a letter */
        {"\xe0\xa5\x98", "\xe0\xa4\x95\xe0\xa4\xbc"}, /* excluded: stays apart */
        {"", ""},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char *composed;
        size_t bytes, n = strlen(cases[i][0]);
        assert_true(hre_nfc_compose(cases[i][0], n, &composed, &bytes));
        if (bytes != strlen(cases[i][1]) || memcmp(composed, cases[i][1], bytes) != 0)
            fail_msg("case %zu is %.*s, expected %s", i, (int)bytes, composed, cases[i][1]);
        free(composed);
    }
    assert_true(hre_nfc_is_stable(cases[0][0], strlen(cases[0][0])));
    assert_false(hre_nfc_is_stable("e\xcc\x81", 3));
}

static void test_invalid_text(void **state)
{
    struct hre_encode_options options;
    struct hre_tokens got = {0};
    hre_tokenizer_t *t = create_pre("smollm");
    const char text[] = "ab\xff<|im_start|>\xe4\xb8"
                        "c<|im_start|>";
    const struct hre_range plain[] = {{3, 15}};

    (void)state;
    assert_int_equal(hre_tokenizer_encode(t, text, sizeof(text) - 1, NULL, &got), HR_ERR_INVALID);
    assert_string_equal(hre_last_error(), "text is not valid UTF-8: byte 0xff at offset 2");
    assert_null(got.ids);

    hre_encode_options_init(&options);
    options.replace_invalid = true;
    options.parse_special = true;
    options.plain = plain;
    options.n_plain = 1;
    got = encode(t, text, sizeof(text) - 1, &options);
    assert_int_equal(got.replaced, 2);
    assert_int_equal(got.ids[got.count - 1], hre_tokenizer_find(t, "<|im_start|>", 12));
    /* The first marker stayed text, although the replacement before it moved it. */
    for (size_t i = 0; i + 1 < got.count; i++)
        assert_true(got.ids[i] < small.vocab.n_tokens - N_CONTROL);
    struct hre_bytes back = {0};
    assert_int_equal(hre_tokenizer_decode(t, got.ids, got.count, true, false, &back), HR_OK);
    assert_string_equal(back.data, "ab\xef\xbf\xbd<|im_start|>\xef\xbf\xbd"
                                   "c<|im_start|>");
    hre_bytes_fini(&back);
    hre_tokens_fini(&got);
    hre_tokenizer_destroy(t);
}

/* --------------------------------------------------------------------------------------- decode */

/* Pushed one by one, the text is valid at every moment and in the end the same. */
static void test_stream(void **state)
{
    struct hre_stream stream;
    struct hre_bytes text = {0};
    hre_tokenizer_t *t = create_pre("llama-bpe");
    struct hre_tokens tokens = encode(t, golden.data, golden.bytes, NULL);

    (void)state;
    hre_stream_init(&stream, t, true);
    for (size_t i = 0; i < tokens.count; i++) {
        size_t before = text.bytes;
        assert_int_equal(hre_stream_push(&stream, tokens.ids[i], &text), HR_OK);
        assert_int_equal(hre_utf8_invalid_at(text.data + before, text.bytes - before),
                         text.bytes - before);
    }
    assert_int_equal(hre_stream_end(&stream, &text), HR_OK);
    assert_int_equal(text.bytes, golden.bytes);
    assert_memory_equal(text.data, golden.data, golden.bytes);
    hre_bytes_fini(&text);
    hre_tokens_fini(&tokens);
    hre_tokenizer_destroy(t);
}

static void push_bytes(struct hre_stream *stream, const hre_tokenizer_t *t, const char *bytes,
                       struct hre_bytes *text)
{
    for (; *bytes; bytes++)
        assert_int_equal(hre_stream_push(stream, hre_tokenizer_find(t, bytes, 1), text), HR_OK);
}

static void test_stream_of_broken_text(void **state)
{
    struct hre_stream stream;
    struct hre_bytes text = {0};
    hre_tokenizer_t *t = create_pre("gpt-2");

    (void)state;
    hre_stream_init(&stream, t, false);
    push_bytes(&stream, t, "\xf0\x9f\x98", &text);
    assert_int_equal(text.bytes, 0);
    push_bytes(&stream, t, "\x80", &text);
    assert_string_equal(text.data, "\xf0\x9f\x98\x80");
    text.bytes = 0;
    push_bytes(&stream, t, "\xe4\xb8\xc3\xa9\x80z\xf4\x90\xe4", &text);
    assert_string_equal(text.data, "\xef\xbf\xbd\xc3\xa9\xef\xbf\xbdz\xef\xbf\xbd\xef\xbf\xbd");
    text.bytes = 0;
    assert_int_equal(hre_stream_end(&stream, &text), HR_OK);
    assert_string_equal(text.data, "\xef\xbf\xbd");

    /* Control tokens are left out, and an id that does not exist leaves the text alone. */
    text.bytes = 0;
    assert_int_equal(hre_stream_push(&stream, hre_tokenizer_find(t, "<|im_start|>", 12), &text),
                     HR_OK);
    assert_int_equal(text.bytes, 0);
    assert_int_equal(hre_stream_push(&stream, 123456, &text), HR_ERR_INVALID);
    assert_string_equal(hre_last_error(), "token 123456 is outside of the vocabulary of 704");
    hre_bytes_fini(&text);
    hre_tokenizer_destroy(t);
}

/* ---------------------------------------------------------------------------------------- words */

static const struct hre_text words[] = {{"k00", 3}, {"k01", 3}, {"v00", 3}, {"f63", 3}};
static const struct hre_vocab word_vocab = {.model = "headrace-words",
                                            .tokens = words,
                                            .n_tokens = 4,
                                            .bos_id = HRE_TOKEN_NONE,
                                            .eos_id = HRE_TOKEN_NONE,
                                            .eot_id = HRE_TOKEN_NONE};

static void test_words(void **state)
{
    hre_tokenizer_t *t = create(&word_vocab);
    struct hre_bytes text = {0};
    struct hre_stream stream;

    (void)state;
    struct hre_tokens got = encode(t, "\n k00\tf63\r\n\v\fv00 k01", 20, NULL);
    assert_int_equal(hre_tokenizer_decode(t, got.ids, got.count, false, false, &text), HR_OK);
    assert_string_equal(text.data, "k00 f63 v00 k01");
    assert_ids(&got, (uint32_t[]){0, 3, 2, 1}, 4);
    got = encode(t, " \n", 2, NULL);
    assert_ids(&got, NULL, 0);

    text.bytes = 0;
    hre_stream_init(&stream, t, false);
    assert_int_equal(hre_stream_push(&stream, 1, &text), HR_OK);
    assert_string_equal(text.data, "k01");
    assert_int_equal(hre_stream_push(&stream, 2, &text), HR_OK);
    assert_string_equal(text.data, "k01 v00");

    assert_int_equal(hre_tokenizer_encode(t, "k00 k0 v00", 10, NULL, &got), HR_ERR_INVALID);
    assert_string_equal(hre_last_error(),
                        "unknown word \"k0\" at byte 4: the model knows 4 words such as k00");
    hre_bytes_fini(&text);
    hre_tokenizer_destroy(t);
}

/* --------------------------------------------------------------------------------------- errors */

static void assert_refused(const struct hre_vocab *vocab, hr_status_t status, const char *line)
{
    hre_tokenizer_t *t = NULL;

    assert_int_equal(hre_tokenizer_create(vocab, &t), status);
    assert_null(t);
    assert_string_equal(hre_last_error(), line);
}

static void test_refused_vocabularies(void **state)
{
    struct hre_vocab vocab = small.vocab;
    struct hre_text merge;

    (void)state;
    vocab.model = "llama";
    assert_refused(
        &vocab, HR_ERR_UNSUPPORTED,
        "tokenizer model \"llama\" is not supported; supported are gpt2, headrace-words");
    vocab = small.vocab;
    vocab.pre = "deepseek-coder";
    assert_refused(&vocab, HR_ERR_UNSUPPORTED,
                   "pre-tokenizer \"deepseek-coder\" is not supported; supported are smollm, "
                   "gpt-2, llama-bpe, qwen2");
    vocab.pre = NULL;
    assert_refused(
        &vocab, HR_ERR_UNSUPPORTED,
        "pre-tokenizer \"\" is not supported; supported are smollm, gpt-2, llama-bpe, qwen2");
    vocab = small.vocab;
    vocab.eos_id = 704;
    assert_refused(&vocab, HR_ERR_CORRUPT, "eos token 704 is outside of the vocabulary of 704");
    vocab = small.vocab;
    vocab.n_tokens = 0;
    assert_refused(&vocab, HR_ERR_CORRUPT, "vocabulary of 0 tokens; 1 to 16777216 are possible");

    vocab = small.vocab;
    vocab.merges = &merge;
    vocab.n_merges = 1;
    merge = (struct hre_text){"ab", 2};
    assert_refused(&vocab, HR_ERR_CORRUPT, "merge 0 \"ab\" is not two tokens with a space between");
    merge = (struct hre_text){"a ", 2};
    assert_refused(&vocab, HR_ERR_CORRUPT, "merge 0 \"a \" is not two tokens with a space between");
    merge = (struct hre_text){"a \xff", 3};
    assert_refused(&vocab, HR_ERR_CORRUPT,
                   "merge 0 \"a \xff\" names or makes a token that is not in the vocabulary");
}

static void test_refused_options(void **state)
{
    hre_tokenizer_t *t = create_pre("smollm");
    struct hre_encode_options options = {.struct_size = 4};
    struct hre_tokens got;
    struct hre_text piece;

    (void)state;
    assert_int_equal(hre_tokenizer_encode(t, "a", 1, &options, &got), HR_ERR_VERSION);
    assert_int_equal(hre_tokenizer_piece(t, 704, &piece), HR_ERR_INVALID);
    assert_int_equal(hre_tokenizer_vocab(t), 704);
    assert_int_equal(hre_tokenizer_find(t, "no such token", 13), HRE_TOKEN_NONE);
    hre_tokenizer_destroy(t);
    hre_tokenizer_destroy(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden_ids),
        cmocka_unit_test(test_golden_pieces),
        cmocka_unit_test(test_golden_special),
        cmocka_unit_test(test_markers),
        cmocka_unit_test(test_user_defined_always_counts),
        cmocka_unit_test(test_markers_in_characters),
        cmocka_unit_test(test_added_ends),
        cmocka_unit_test(test_merges_follow_the_rule),
        cmocka_unit_test(test_long_runs),
        cmocka_unit_test(test_missing_bytes),
        cmocka_unit_test(test_utf8),
        cmocka_unit_test(test_character_classes),
        cmocka_unit_test(test_composition),
        cmocka_unit_test(test_invalid_text),
        cmocka_unit_test(test_stream),
        cmocka_unit_test(test_stream_of_broken_text),
        cmocka_unit_test(test_words),
        cmocka_unit_test(test_refused_vocabularies),
        cmocka_unit_test(test_refused_options),
    };

    return cmocka_run_group_tests_name("tokenizer", tests, setup, teardown);
}
