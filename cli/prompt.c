#include "cli/prompt.h"

#include <stdlib.h>
#include <string.h>

#include "engine/chat.h"
#include "cli/out.h"
#include "cli/text_file.h"

/* --------------------------------------------------------------------------------------- tokens */

static int encode(const struct cli_model *model, const char *what, const char *text, size_t n,
                  const struct hre_encode_options *options, struct hre_tokens *tokens_out)
{
    hr_status_t status = hre_tokenizer_encode(model->tokenizer, text, n, options, tokens_out);
    if (status != HR_OK)
        return cli_fail_engine(what, status);
    if (tokens_out->dropped_bytes)
        cli_warn("%s: the vocabulary has no token for %zu bytes; they are left out", what,
                 tokens_out->dropped_bytes);
    return 0;
}

int cli_prompt_encode_file(const struct cli_model *model, const char *path,
                           struct hre_tokens *tokens_out)
{
    struct hre_encode_options options;
    char *text;
    size_t n;
    int code = cli_text_read(path, &text, &n);
    if (code)
        return code;
    hre_encode_options_init(&options);
    options.add_eos = HRE_ADD_NEVER;
    code = encode(model, path, text, n, &options, tokens_out);
    free(text);
    return code;
}

/* ------------------------------------------------------------------------------ the text itself */

/* Keeps the text of the file's first n tokens; a character that this would cut in half goes. */
static int cut(const struct cli_model *model, const struct cli_prompt_options *o,
               struct hre_bytes *text)
{
    struct hre_encode_options options;
    struct hre_tokens tokens = {0};
    struct hre_bytes shorter = {0};
    hre_encode_options_init(&options);
    options.add_bos = options.add_eos = HRE_ADD_NEVER;
    int code = encode(model, o->file, text->data, text->bytes, &options, &tokens);
    if (code)
        return code;
    if (tokens.count < o->tokens_context)
        cli_note("'%s' has %zu tokens, fewer than --tokens-context %llu", o->file, tokens.count,
                 (unsigned long long)o->tokens_context);
    if (tokens.count > o->tokens_context) {
        hr_status_t status = hre_tokenizer_decode(model->tokenizer, tokens.ids, o->tokens_context,
                                                  true, true, &shorter);
        if (status == HR_OK && shorter.data) {
            shorter.bytes = cli_utf8_check(shorter.data, shorter.bytes);
            shorter.data[shorter.bytes] = '\0';
            hre_bytes_fini(text);
            *text = shorter;
        } else {
            code = cli_fail_engine(o->file, status);
        }
    }
    hre_tokens_fini(&tokens);
    return code;
}

/* File, empty line, question; whichever of them there are. */
static int collect(const struct cli_model *model, const struct cli_prompt_options *o,
                   struct hre_bytes *text)
{
    int code = 0;
    if (o->file) {
        size_t n;
        if ((code = cli_text_read(o->file, &text->data, &n)))
            return code;
        text->bytes = n;
        text->capacity = n + 1;
        if (o->tokens_context)
            code = cut(model, o, text);
    }
    if (code || !o->question)
        return code;
    size_t n = strlen(o->question), bad = cli_utf8_check(o->question, n);
    if (bad < n)
        return cli_fail("--prompt is not UTF-8: byte 0x%02x at offset %zu",
                        (unsigned char)o->question[bad], bad);
    hr_status_t status = o->file ? hre_bytes_append(text, "\n\n", 2) : HR_OK;
    if (status == HR_OK)
        status = hre_bytes_append(text, o->question, n);
    return status == HR_OK ? 0 : cli_fail("out of memory");
}

/* --------------------------------------------------------------------------------------- prompt */

static int encode_chat(const struct cli_model *model, const char *what,
                       const struct hre_bytes *text, struct hre_tokens *tokens_out)
{
    struct hre_chat_template chat;
    const char *content = text->data ? text->data : "";
    struct hre_chat_message message = {.role = "user", .content = content};
    if (strlen(content) < text->bytes)
        return cli_fail("'%s' has a zero byte at offset %zu, which cannot be part of a chat", what,
                        strlen(content));
    hr_status_t status = hre_chat_template_from_gguf(hre_model_gguf(model->model), &chat);
    if (status == HR_OK)
        status = hre_chat_encode(&chat, model->tokenizer, &message, 1, NULL, tokens_out);
    return status == HR_OK ? 0 : cli_fail_engine("chat", status);
}

static int encode_prompt(const struct cli_model *model, const struct cli_prompt_options *o,
                         const struct hre_bytes *text, struct cli_prompt *prompt_out)
{
    struct hre_tokens tokens = {0};
    const char *what = o->file ? o->file : "--prompt";
    struct hre_encode_options options;
    int code;
    hre_encode_options_init(&options);
    if (o->goes_on)
        options.add_bos = HRE_ADD_NEVER;
    if (o->chat)
        code = encode_chat(model, what, text, &tokens);
    else
        code = encode(model, what, text->data, text->bytes, &options, &tokens);
    if (code)
        return code;
    if (tokens.count == 0 || tokens.count > UINT32_MAX / 2) {
        code = cli_fail("%s gives %zu tokens", what, tokens.count);
        hre_tokens_fini(&tokens);
        return code;
    }
    *prompt_out = (struct cli_prompt){.ids = tokens.ids, .n_ids = (uint32_t)tokens.count};
    return 0;
}

static int make_puzzle(const struct cli_prompt_options *o, struct cli_prompt *prompt_out)
{
    struct cli_prompt prompt = {.n_ids = o->tokens_context ? (uint32_t)o->tokens_context : 4096,
                                .n_keys = (uint32_t)o->keys};
    uint32_t least = 2 * prompt.n_keys + (8 * prompt.n_keys + 2) / 3; /* engine/models/README.md */
    if (prompt.n_ids < least)
        return cli_fail("--tokens-context %u has no room for %u keys; they take at least %u tokens",
                        prompt.n_ids, prompt.n_keys, least);
    prompt.ids = calloc(prompt.n_ids, sizeof *prompt.ids);
    prompt.answers = calloc(prompt.n_keys, sizeof *prompt.answers);
    int code = prompt.ids && prompt.answers ? 0 : cli_fail("out of memory");
    if (code == 0) {
        hr_status_t status =
            hre_tiny_text(prompt.n_ids, prompt.n_keys, o->seed, prompt.ids, prompt.answers);
        code = status == HR_OK ? 0 : cli_fail_engine("text", status);
    }
    if (code)
        cli_prompt_fini(&prompt);
    else
        *prompt_out = prompt;
    return code;
}

int cli_prompt_make(const struct cli_model *model, const struct cli_prompt_options *options,
                    struct cli_prompt *prompt_out)
{
    struct hre_bytes text = {0};
    if (!options->file && !options->question)
        return make_puzzle(options, prompt_out);
    int code = collect(model, options, &text);
    if (code == 0)
        code = encode_prompt(model, options, &text, prompt_out);
    hre_bytes_fini(&text);
    return code;
}

void cli_prompt_fini(struct cli_prompt *prompt)
{
    free(prompt->ids);
    free(prompt->answers);
    memset(prompt, 0, sizeof *prompt);
}
