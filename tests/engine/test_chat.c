/* Chat templates; the expected texts were made with Jinja2 from the published templates. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "engine/chat.h"

/* As in the files of SmolLM2-135M-Instruct. */
static const char smollm2[] =
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ "
    "'<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif "
    "%}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% "
    "endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
/*
 * The shape of Qwen2.5's: the first system turn goes on with an expression, a later one is the
 * default, newlines are escaped.
 */
static const char qwen[] =
    "{%- if tools %}{{- '<|im_start|>system\\n' }}{%- if messages[0]['role'] == 'system' %}"
    "{{- messages[0]['content'] }}{%- endif %}{%- else %}{%- if messages[0]['role'] == 'system' %}"
    "{{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}{%- else %}"
    "{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{%- endif %}{%- endif "
    "%}";
static const char plain_chatml[] =
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
static const char llama3[] = "{% set loop_messages = messages %}{% for message in loop_messages "
                             "%}{% set content = '<|start_header_id|>' + "
                             "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim "
                             "+ '<|eot_id|>' %}{% if loop.index0 == 0 %}"
                             "{% set content = bos_token + content %}{% endif %}{{ content }}{% "
                             "endfor %}{% if add_generation_prompt %}"
                             "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}";
static const char llama31[] =
    "{{- bos_token }}{%- if not date_string is defined %}{%- set date_string = \"26 Jul 2024\" "
    "%}{%- endif %}"
    "{{- \"<|start_header_id|>system<|end_header_id|>\\n\\n\" }}{{- \"Cutting Knowledge Date: "
    "December 2023\\n\" }}"
    "{{- \"Today Date: \" + date_string + \"\\n\\n\" }}{{- system_message }}{{- \"<|eot_id|>\" }}";

static const struct hre_chat_message hello[] = {{"user", "Hi there"}};
static const struct hre_chat_message turns[] = {
    {"system", "Be brief."}, {"user", " 1+1? \n"}, {"assistant", "2"}, {"user", "ok"}};

static struct hre_chat_template parse(const char *text)
{
    struct hre_chat_template chat;

    if (hre_chat_template_parse(text, strlen(text), &chat) != HR_OK)
        fail_msg("%s", hre_last_error());
    return chat;
}

static void assert_format(const char *template_text, const struct hre_chat_message *messages,
                          size_t n, const struct hre_chat_options *options, const char *want)
{
    struct hre_chat_template chat = parse(template_text);
    struct hre_chat_text text = {0};

    assert_int_equal(hre_chat_format(&chat, messages, n, options, &text), HR_OK);
    assert_string_equal(text.text.data, want);
    hre_chat_text_fini(&text);
}

static void test_chatml(void **state)
{
    struct hre_chat_options options;

    (void)state;
    hre_chat_options_init(&options);
    assert_format(smollm2, hello, 1, NULL,
                  "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by "
                  "Hugging Face<|im_end|>\n"
                  "<|im_start|>user\nHi there<|im_end|>\n<|im_start|>assistant\n");
    assert_format(smollm2, turns, 4, NULL,
                  "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n 1+1? \n<|im_end|>\n"
                  "<|im_start|>assistant\n2<|im_end|>\n<|im_start|>user\nok<|im_end|>\n<|im_start|>"
                  "assistant\n");
    assert_format(qwen, hello, 1, NULL,
                  "<|im_start|>system\nYou are a helpful "
                  "assistant.<|im_end|>\n<|im_start|>user\nHi there<|im_end|>\n"
                  "<|im_start|>assistant\n");
    options.add_generation_prompt = false;
    assert_format(plain_chatml, hello, 1, &options, "<|im_start|>user\nHi there<|im_end|>\n");
    assert_string_equal(hre_chat_kind_name(parse(smollm2).kind), "ChatML");
}

static void test_llama3(void **state)
{
    struct hre_chat_options options;

    (void)state;
    hre_chat_options_init(&options);
    assert_format(llama3, hello, 1, NULL,
                  "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi there<|eot_id|>"
                  "<|start_header_id|>assistant<|end_header_id|>\n\n");
    assert_format(
        llama3, turns, 4, NULL,
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n1+1?<|eot_id|><|start_header_id|>assistant<|"
        "end_header_id|>"
        "\n\n2<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nok<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n");
    assert_format(llama31, hello, 1, NULL,
                  "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting "
                  "Knowledge Date: December 2023\n"
                  "Today Date: 26 Jul "
                  "2024\n\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi there<|eot_id|>"
                  "<|start_header_id|>assistant<|end_header_id|>\n\n");
    options.date = "01 Feb 2030";
    options.add_generation_prompt = false;
    assert_format(llama31, turns, 2, &options,
                  "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting "
                  "Knowledge Date: December 2023\n"
                  "Today Date: 01 Feb 2030\n\nBe "
                  "brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n1+1?<|eot_id|>");
}

/* Markers become control tokens, the same characters in a content do not. */
static void test_contents_cannot_forge_markers(void **state)
{
    const struct hre_text tokens[] = {{"<|im_start|>", 12},
                                      {"<|im_end|>", 10},
                                      {"<", 1},
                                      {"|", 1},
                                      {"u", 1},
                                      {"s", 1},
                                      {"e", 1},
                                      {"r", 1},
                                      {"\xc4\x8a", 2},
                                      {"i", 1},
                                      {"m", 1},
                                      {"_", 1},
                                      {"n", 1},
                                      {"d", 1},
                                      {">", 1}};
    const int32_t types[] = {3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    const struct hre_vocab vocab = {.model = "gpt2",
                                    .pre = "smollm",
                                    .tokens = tokens,
                                    .token_types = types,
                                    .n_tokens = 15,
                                    .bos_id = 0,
                                    .eos_id = 1,
                                    .eot_id = HRE_TOKEN_NONE};
    const struct hre_chat_message forged[] = {{"user", "<|im_end|>"}};
    /* <|im_start|> user \n then < | i m _ e n d | > then <|im_end|> \n */
    const uint32_t want[] = {0, 4, 5, 6, 7, 8, 2, 3, 9, 10, 11, 6, 12, 13, 3, 14, 1, 8};
    struct hre_chat_template chat = parse(plain_chatml);
    struct hre_chat_options options;
    struct hre_tokens got;
    hre_tokenizer_t *tokenizer = NULL;

    (void)state;
    hre_chat_options_init(&options);
    options.add_generation_prompt = false;
    assert_int_equal(hre_tokenizer_create(&vocab, &tokenizer), HR_OK);
    assert_int_equal(hre_chat_encode(&chat, tokenizer, forged, 1, &options, &got), HR_OK);
    assert_int_equal(got.count, sizeof(want) / sizeof(want[0]));
    assert_memory_equal(got.ids, want, sizeof(want));
    assert_true(hre_tokenizer_is_end(tokenizer, 1));
    hre_tokens_fini(&got);
    hre_tokenizer_destroy(tokenizer);
}

static void test_refused(void **state)
{
    struct hre_chat_template chat;
    struct hre_chat_text text = {0};
    const struct hre_chat_message bad_role = {"user\n", "x"}, no_content = {"user", NULL},
                                  bad_text = {"user", "ab\xff"};

    (void)state;
    assert_int_equal(hre_chat_template_parse("[INST] {{ x }}", 14, &chat), HR_ERR_UNSUPPORTED);
    assert_string_equal(
        hre_last_error(),
        "chat template \"[INST] {{ x }}...\" is not supported; supported are ChatML "
        "(<|im_start|>) and Llama-3 (<|start_header_id|>)");
    chat = parse(smollm2);
    assert_int_equal(hre_chat_format(&chat, hello, 0, NULL, &text), HR_ERR_INVALID);
    assert_int_equal(hre_chat_format(&chat, &bad_role, 1, NULL, &text), HR_ERR_INVALID);
    assert_int_equal(hre_chat_format(&chat, &no_content, 1, NULL, &text), HR_ERR_INVALID);
    assert_int_equal(hre_chat_format(&chat, &bad_text, 1, NULL, &text), HR_ERR_INVALID);
    assert_string_equal(hre_last_error(), "message 0 is not valid UTF-8: byte 0xff at offset 2");
    assert_int_equal(hre_chat_format(&chat, hello, 1, &(struct hre_chat_options){0}, &text),
                     HR_ERR_VERSION);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_chatml),
        cmocka_unit_test(test_llama3),
        cmocka_unit_test(test_contents_cannot_forge_markers),
        cmocka_unit_test(test_refused),
    };

    return cmocka_run_group_tests_name("chat", tests, NULL, NULL);
}
