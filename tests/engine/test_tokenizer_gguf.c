/*
 * Tokenizers and chat templates from files: what they read, and what they say about files that do
 * not fit.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/chat.h"
#include "engine/tokenizer.h"
#include "gguf_make.h"

#define STRINGS(...) ((const char *const[]){__VA_ARGS__, NULL})

static void key_strings(struct gguf_maker *m, const char *key, const char *const *texts)
{
    unsigned char raw[1024];
    uint32_t type = HRE_GGUF_STRING;
    uint64_t count = 0;
    size_t at = 12;

    for (; texts[count]; count++) {
        uint64_t bytes = strlen(texts[count]);
        memcpy(raw + at, &bytes, 8);
        memcpy(raw + at + 8, texts[count], bytes);
        at += 8 + bytes;
    }
    memcpy(raw, &type, 4);
    memcpy(raw + 4, &count, 8);
    gguf_key_raw(m, key, HRE_GGUF_ARRAY, raw, at);
}

static void key_types(struct gguf_maker *m, uint32_t type, uint64_t count, const int32_t *types)
{
    unsigned char raw[256];

    memcpy(raw, &type, 4);
    memcpy(raw + 4, &count, 8);
    memcpy(raw + 12, types, count * 4);
    gguf_key_raw(m, "tokenizer.ggml.token_type", HRE_GGUF_ARRAY, raw, 12 + count * 4);
}

static void begin_gpt2(struct gguf_maker *m, const char *pre)
{
    gguf_begin(m, 1);
    gguf_key_string(m, "tokenizer.ggml.model", "gpt2");
    gguf_key_string(m, "tokenizer.ggml.pre", pre);
    key_strings(m, "tokenizer.ggml.tokens", STRINGS("a", "b", "ab", "<|eot_id|>", "\xc4\xa0"));
}

/* Finishes the file and makes a tokenizer from it. */
static hr_status_t open_tokenizer(struct gguf_maker *m, hre_tokenizer_t **tokenizer_out)
{
    struct gguf_bytes file = gguf_finish(m);
    hre_gguf_t *gguf = NULL;

    if (hre_gguf_open_memory(file.data, file.count, "m.gguf", &gguf) != HR_OK)
        fail_msg("%s", hre_last_error());
    hr_status_t status = hre_tokenizer_from_gguf(gguf, tokenizer_out);
    hre_gguf_close(gguf);
    free(file.data);
    return status;
}

static void assert_refused(struct gguf_maker *m, hr_status_t want, const char *line)
{
    hre_tokenizer_t *tokenizer = NULL;

    assert_int_equal(open_tokenizer(m, &tokenizer), want);
    assert_null(tokenizer);
    if (line)
        assert_string_equal(hre_last_error(), line);
}

static void assert_encodes(const hre_tokenizer_t *t, const char *text, const uint32_t *want,
                           size_t n)
{
    struct hre_encode_options options;
    struct hre_tokens got;

    hre_encode_options_init(&options);
    options.parse_special = true;
    assert_int_equal(hre_tokenizer_encode(t, text, strlen(text), &options, &got), HR_OK);
    assert_int_equal(got.count, n);
    assert_memory_equal(got.ids, want, n * sizeof(*want));
    hre_tokens_fini(&got);
}

static void test_reads_everything(void **state)
{
    const int32_t types[] = {1, 1, 1, 3, 1};
    const unsigned char yes = 1, no = 0;
    struct gguf_maker m;
    hre_tokenizer_t *t;

    (void)state;
    begin_gpt2(&m, "smollm");
    key_strings(&m, "tokenizer.ggml.merges", STRINGS("a b"));
    key_types(&m, HRE_GGUF_I32, 5, types);
    gguf_key_u32(&m, "tokenizer.ggml.bos_token_id", 1);
    gguf_key_u32(&m, "tokenizer.ggml.eos_token_id", 4);
    gguf_key_raw(&m, "tokenizer.ggml.add_bos_token", HRE_GGUF_BOOL, &yes, 1);
    gguf_key_raw(&m, "tokenizer.ggml.add_eos_token", HRE_GGUF_BOOL, &no, 1);
    assert_int_equal(open_tokenizer(&m, &t), HR_OK);
    assert_encodes(t, "ab<|eot_id|>a b", (uint32_t[]){1, 2, 3, 0, 4, 1}, 6);
    assert_int_equal(hre_tokenizer_vocab(t), 5);
    assert_int_equal(hre_tokenizer_bos(t), 1);
    assert_true(hre_tokenizer_is_end(t, 3));
    assert_true(hre_tokenizer_is_end(t, 4));
    assert_false(hre_tokenizer_is_end(t, 1));
    hre_tokenizer_destroy(t);
}

/*
 * Without the key, Llama-3's begin with the marker and the others do not. Neither types nor ids
 * need be there.
 */
static void test_defaults(void **state)
{
    struct gguf_maker m;
    hre_tokenizer_t *t;

    (void)state;
    begin_gpt2(&m, "llama-bpe");
    key_strings(&m, "tokenizer.ggml.merges", STRINGS("a b"));
    gguf_key_u32(&m, "tokenizer.ggml.bos_token_id", 3);
    assert_int_equal(open_tokenizer(&m, &t), HR_OK);
    assert_encodes(t, "ab", (uint32_t[]){3, 2}, 2);
    hre_tokenizer_destroy(t);

    begin_gpt2(&m, "qwen2");
    key_strings(&m, "tokenizer.ggml.merges", STRINGS("a b"));
    gguf_key_u32(&m, "tokenizer.ggml.bos_token_id", 3);
    assert_int_equal(open_tokenizer(&m, &t), HR_OK);
    assert_encodes(t, "ab", (uint32_t[]){2}, 1);
    hre_tokenizer_destroy(t);

    gguf_begin(&m, 1);
    gguf_key_string(&m, "tokenizer.ggml.model", "headrace-words");
    key_strings(&m, "tokenizer.ggml.tokens", STRINGS("k00", "v00"));
    assert_int_equal(open_tokenizer(&m, &t), HR_OK);
    assert_encodes(t, "v00 k00\n", (uint32_t[]){1, 0}, 2);
    hre_tokenizer_destroy(t);
}

static void test_missing_tokenizer(void **state)
{
    static const char line[] =
        "m.gguf: the file has no tokenizer (tokenizer.ggml.model and .tokens)";
    struct gguf_maker m;

    (void)state;
    gguf_begin(&m, 1);
    assert_refused(&m, HR_ERR_NOTFOUND, line);
    gguf_begin(&m, 1);
    gguf_key_string(&m, "tokenizer.ggml.model", "gpt2");
    assert_refused(&m, HR_ERR_NOTFOUND, line);
    begin_gpt2(&m, "smollm"); /* no merges */
    assert_refused(&m, HR_ERR_NOTFOUND, NULL);
    assert_non_null(strstr(hre_last_error(), "tokenizer.ggml.merges"));
}

static void test_unsupported(void **state)
{
    struct gguf_maker m;

    (void)state;
    gguf_begin(&m, 1);
    gguf_key_string(&m, "tokenizer.ggml.model", "bert");
    key_strings(&m, "tokenizer.ggml.tokens", STRINGS("a"));
    assert_refused(
        &m, HR_ERR_UNSUPPORTED,
        "m.gguf: tokenizer model \"bert\" is not supported; supported are gpt2, headrace-words");
    begin_gpt2(&m, "tekken");
    key_strings(&m, "tokenizer.ggml.merges", STRINGS("a b"));
    assert_refused(&m, HR_ERR_UNSUPPORTED,
                   "m.gguf: pre-tokenizer \"tekken\" is not supported; supported are smollm, "
                   "gpt-2, llama-bpe, qwen2");
}

static void test_corrupt(void **state)
{
    const int32_t types[] = {1, 1, 1, 99, 1};
    struct gguf_maker m;

    (void)state;
    begin_gpt2(&m, "smollm");
    key_strings(&m, "tokenizer.ggml.merges", STRINGS("a b", "b a"));
    assert_refused(&m, HR_ERR_CORRUPT,
                   "m.gguf: merge 1 \"b a\" names or makes a token that is not in the vocabulary");
    begin_gpt2(&m, "smollm");
    key_strings(&m, "tokenizer.ggml.merges", STRINGS("a b"));
    key_types(&m, HRE_GGUF_I32, 4, types);
    assert_refused(&m, HR_ERR_CORRUPT, "m.gguf: 4 token types for 5 tokens");
    begin_gpt2(&m, "smollm");
    key_strings(&m, "tokenizer.ggml.merges", STRINGS("a b"));
    key_types(&m, HRE_GGUF_I32, 5, types);
    assert_refused(&m, HR_ERR_CORRUPT, NULL);
    begin_gpt2(&m, "smollm");
    key_strings(&m, "tokenizer.ggml.merges", STRINGS("a b"));
    key_types(&m, HRE_GGUF_F32, 5, types);
    assert_refused(&m, HR_ERR_DTYPE,
                   "m.gguf: tokenizer.ggml.token_type is not an array of integers");
    begin_gpt2(&m, "smollm");
    key_strings(&m, "tokenizer.ggml.merges", STRINGS("a b"));
    gguf_key_u32(&m, "tokenizer.ggml.eos_token_id", 5);
    assert_refused(&m, HR_ERR_CORRUPT, "m.gguf: eos token 5 is outside of the vocabulary of 5");
    begin_gpt2(&m, "smollm");
    key_strings(&m, "tokenizer.ggml.merges", STRINGS("a b"));
    gguf_key_string(&m, "tokenizer.ggml.bos_token_id", "1");
    assert_refused(&m, HR_ERR_DTYPE, NULL);
}

static void test_chat_template(void **state)
{
    struct hre_chat_template chat = {.kind = HRE_CHAT_KINDS};

    (void)state;
    for (int has = 0; has < 2; has++) {
        struct gguf_maker m;
        hre_gguf_t *gguf;
        gguf_begin(&m, 1);
        if (has)
            gguf_key_string(&m, "tokenizer.chat_template", "<|im_start|><|im_end|>");
        struct gguf_bytes file = gguf_finish(&m);
        assert_int_equal(hre_gguf_open_memory(file.data, file.count, "m.gguf", &gguf), HR_OK);
        assert_int_equal(hre_chat_template_from_gguf(gguf, &chat), has ? HR_OK : HR_ERR_NOTFOUND);
        assert_int_equal(chat.kind, has ? HRE_CHAT_CHATML : HRE_CHAT_KINDS);
        hre_gguf_close(gguf);
        free(file.data);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reads_everything),  cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_missing_tokenizer), cmocka_unit_test(test_unsupported),
        cmocka_unit_test(test_corrupt),           cmocka_unit_test(test_chat_template),
    };

    return cmocka_run_group_tests_name("tokenizer_gguf", tests, NULL, NULL);
}
