#include "engine/chat.h"

#include <stdlib.h>
#include <string.h>

#include "engine/fail.h"
#include "engine/unicode.h"

#define LITERAL(text) (text), sizeof(text) - 1

static const char *const kind_names[HRE_CHAT_KINDS] = {"ChatML", "Llama-3"};

const char *hre_chat_kind_name(hre_chat_kind_t kind)
{
    return (unsigned)kind < HRE_CHAT_KINDS ? kind_names[kind] : "?";
}

static const char *find(const char *text, size_t text_bytes, const char *what)
{
    return memmem(text, text_bytes, what, strlen(what));
}

/*
 * The content of the quoted text that starts behind `text`, up to <|im_end|>, with Jinja's escapes
 * undone. False where it is not one literal: a quote or brace comes first, or it is too long.
 */
static bool read_literal(const char *text, size_t text_bytes, char *content_out)
{
    const char *end = find(text, text_bytes, "<|im_end|>");
    size_t n = 0;

    if (!end)
        return false;
    for (; text < end; text++) {
        char c = *text;
        if (c == '{' || c == '}' || c == '"' || c == '\'' || n + 1 >= HRE_CHAT_SYSTEM_BYTES_MAX)
            return false;
        if (c == '\\' && text + 1 < end) {
            c = *++text;
            c = c == 'n' ? '\n' : c == 't' ? '\t' : c;
        }
        content_out[n++] = c;
    }
    content_out[n] = '\0';
    return true;
}

/*
 * ChatML templates give a conversation without a system message their own: '<|im_start|>system\nYou
 * are ...<|im_end|>' in one literal, the newline real or escaped. Other places where a system turn
 * opens go on with an expression.
 */
static void find_default_system(const char *text, size_t text_bytes, char *system_out)
{
    static const char opening[] = "<|im_start|>system";
    const char *end = text + text_bytes;
    char content[HRE_CHAT_SYSTEM_BYTES_MAX] = "";

    system_out[0] = '\0';
    while ((text = find(text, (size_t)(end - text), opening)) != NULL) {
        text += sizeof(opening) - 1;
        if (end - text >= 2 && text[0] == '\\' && text[1] == 'n')
            text += 2;
        else if (end > text && text[0] == '\n')
            text++;
        else
            continue;
        if (read_literal(text, (size_t)(end - text), content) && content[0]) {
            memcpy(system_out, content, sizeof(content));
            return;
        }
    }
}

hr_status_t hre_chat_template_parse(const char *text, size_t text_bytes,
                                    struct hre_chat_template *template_out)
{
    struct hre_chat_template chat = {.kind = HRE_CHAT_CHATML};

    if (find(text, text_bytes, "<|start_header_id|>") && find(text, text_bytes, "<|eot_id|>")) {
        chat.kind = HRE_CHAT_LLAMA3;
        chat.has_dates = find(text, text_bytes, "Cutting Knowledge Date: December 2023") != NULL;
    } else if (find(text, text_bytes, "<|im_start|>") && find(text, text_bytes, "<|im_end|>")) {
        find_default_system(text, text_bytes, chat.default_system);
    } else {
        return hre_fail(HR_ERR_UNSUPPORTED,
                        "chat template \"%.*s...\" is not supported; supported are ChatML "
                        "(<|im_start|>) and Llama-3 (<|start_header_id|>)",
                        (int)(text_bytes < 60 ? text_bytes : 60), text);
    }
    *template_out = chat;
    return HR_OK;
}

hr_status_t hre_chat_template_from_gguf(const hre_gguf_t *gguf,
                                        struct hre_chat_template *template_out)
{
    struct hre_gguf_string text;

    if (!hre_gguf_has(gguf, "tokenizer.chat_template"))
        return hre_fail(HR_ERR_NOTFOUND,
                        "%s: the file has no chat template (tokenizer.chat_template)",
                        hre_gguf_name(gguf));
    hr_status_t status = hre_gguf_get_string(gguf, "tokenizer.chat_template", &text);
    if (status != HR_OK)
        return status;
    return hre_chat_template_parse(text.data, text.length, template_out);
}

void hre_chat_options_init(struct hre_chat_options *options)
{
    *options =
        (struct hre_chat_options){.struct_size = sizeof(*options), .add_generation_prompt = true};
}

void hre_chat_text_fini(struct hre_chat_text *text)
{
    hre_bytes_fini(&text->text);
    free(text->plain);
    *text = (struct hre_chat_text){0};
}

/* The text being made; the first failure stays. plain has room for every message. */
struct writer {
    struct hre_chat_text out;
    hr_status_t status;
};

static void put(struct writer *w, const char *data, size_t data_bytes)
{
    if (w->status == HR_OK)
        w->status = hre_bytes_append(&w->out.text, data, data_bytes);
}

static void put_text(struct writer *w, const char *text)
{
    put(w, text, strlen(text));
}

static void put_content(struct writer *w, const char *content, size_t content_bytes)
{
    size_t begin = w->out.text.bytes;

    put(w, content, content_bytes);
    if (content_bytes > 0)
        w->out.plain[w->out.n_plain++] = (struct hre_range){begin, begin + content_bytes};
}

/*
 * Jinja's trim filter takes whitespace from both ends; contents are ASCII there in all but curious
 * cases.
 */
static const char *trim(const char *content, size_t *bytes_out)
{
    static const char blank[] = " \t\n\r\v\f";
    size_t n;

    content += strspn(content, blank);
    for (n = strlen(content); n > 0 && strchr(blank, content[n - 1]); n--)
        continue;
    *bytes_out = n;
    return content;
}

static void chatml_open(struct writer *w, const char *role)
{
    put(w, LITERAL("<|im_start|>"));
    put_text(w, role);
    put(w, LITERAL("\n"));
}

static void format_chatml(struct writer *w, const struct hre_chat_template *chat,
                          const struct hre_chat_message *messages, size_t n_messages,
                          const struct hre_chat_options *options)
{
    if (chat->default_system[0] && strcmp(messages[0].role, "system") != 0) {
        chatml_open(w, "system");
        put_text(w, chat->default_system);
        put(w, LITERAL("<|im_end|>\n"));
    }
    for (size_t i = 0; i < n_messages; i++) {
        chatml_open(w, messages[i].role);
        put_content(w, messages[i].content, strlen(messages[i].content));
        put(w, LITERAL("<|im_end|>\n"));
    }
    if (options->add_generation_prompt)
        chatml_open(w, "assistant");
}

static void llama3_open(struct writer *w, const char *role)
{
    put(w, LITERAL("<|start_header_id|>"));
    put_text(w, role);
    put(w, LITERAL("<|end_header_id|>\n\n"));
}

static void format_llama3(struct writer *w, const struct hre_chat_template *chat,
                          const struct hre_chat_message *messages, size_t n_messages,
                          const struct hre_chat_options *options)
{
    size_t i = 0, n;
    const char *content;

    put(w, LITERAL("<|begin_of_text|>"));
    if (chat->has_dates) {
        llama3_open(w, "system");
        put(w, LITERAL("Cutting Knowledge Date: December 2023\nToday Date: "));
        put_text(w, options->date ? options->date : "26 Jul 2024");
        put(w, LITERAL("\n\n"));
        if (strcmp(messages[0].role, "system") == 0) {
            content = trim(messages[i++].content, &n);
            put_content(w, content, n);
        }
        put(w, LITERAL("<|eot_id|>"));
    }
    for (; i < n_messages; i++) {
        llama3_open(w, messages[i].role);
        content = trim(messages[i].content, &n);
        put_content(w, content, n);
        put(w, LITERAL("<|eot_id|>"));
    }
    if (options->add_generation_prompt)
        llama3_open(w, "assistant");
}

static bool is_word(const char *role)
{
    static const char letters[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_";

    return role && role[0] && strspn(role, letters) == strlen(role);
}

static hr_status_t check(const struct hre_chat_message *messages, size_t n_messages,
                         const struct hre_chat_options *options)
{
    if (options->struct_size != sizeof(*options))
        return hre_fail(HR_ERR_VERSION, "chat options have size %zu, expected %zu",
                        options->struct_size, sizeof(*options));
    if (n_messages == 0)
        return hre_fail(HR_ERR_INVALID, "a chat needs at least one message");
    for (size_t i = 0; i < n_messages; i++) {
        if (!is_word(messages[i].role))
            return hre_fail(HR_ERR_INVALID,
                            "role of message %zu is \"%.40s\"; a word such as user is expected", i,
                            messages[i].role ? messages[i].role : "");
        if (!messages[i].content)
            return hre_fail(HR_ERR_INVALID, "message %zu has no content", i);
        size_t bytes = strlen(messages[i].content),
               at = hre_utf8_invalid_at(messages[i].content, bytes);
        if (at < bytes)
            return hre_fail(HR_ERR_INVALID,
                            "message %zu is not valid UTF-8: byte 0x%02x at offset %zu", i,
                            (unsigned char)messages[i].content[at], at);
    }
    return HR_OK;
}

hr_status_t hre_chat_format(const struct hre_chat_template *chat,
                            const struct hre_chat_message *messages, size_t n_messages,
                            const struct hre_chat_options *options, struct hre_chat_text *text_out)
{
    struct hre_chat_options defaults;
    struct writer w = {.status = HR_OK};

    if (!options) {
        hre_chat_options_init(&defaults);
        options = &defaults;
    }
    hr_status_t status = check(messages, n_messages, options);
    if (status != HR_OK)
        return status;
    w.out.plain = calloc(n_messages, sizeof(*w.out.plain));
    if (!w.out.plain)
        return hre_fail(HR_ERR_NOMEM, "out of memory for %zu messages", n_messages);
    if (chat->kind == HRE_CHAT_LLAMA3)
        format_llama3(&w, chat, messages, n_messages, options);
    else
        format_chatml(&w, chat, messages, n_messages, options);
    if (w.status != HR_OK) {
        hre_chat_text_fini(&w.out);
        return w.status;
    }
    *text_out = w.out;
    return HR_OK;
}

hr_status_t hre_chat_encode(const struct hre_chat_template *chat, const hre_tokenizer_t *tokenizer,
                            const struct hre_chat_message *messages, size_t n_messages,
                            const struct hre_chat_options *options, struct hre_tokens *tokens_out)
{
    struct hre_encode_options encode;
    struct hre_chat_text text = {0};
    hr_status_t status = hre_chat_format(chat, messages, n_messages, options, &text);

    if (status != HR_OK)
        return status;
    hre_encode_options_init(&encode);
    encode.parse_special = true;
    encode.plain = text.plain;
    encode.n_plain = text.n_plain;
    status = hre_tokenizer_encode(tokenizer, text.text.data, text.text.bytes, &encode, tokens_out);
    hre_chat_text_fini(&text);
    return status;
}
