/*
 * Chat templates: how the turns of a conversation become the text that a model was trained on. The
 * template in the file is recognised by its markers, not executed.
 *
 *   ChatML    <|im_start|>role\ncontent<|im_end|>\n
 *             with the template's own default system message, where it has one
 *   Llama-3   <|begin_of_text|><|start_header_id|>role<|end_header_id|>\n\ncontent<|eot_id|>
 *             3.1 and later begin with a system turn that names two dates
 */
#ifndef HRE_CHAT_H
#define HRE_CHAT_H

#include <stdbool.h>
#include <stddef.h>

#include <headrace/headrace.h>

#include "engine/gguf.h"
#include "engine/tokenizer.h"

typedef enum hre_chat_kind {
    HRE_CHAT_CHATML = 0,
    HRE_CHAT_LLAMA3 = 1,
    HRE_CHAT_KINDS
} hre_chat_kind_t;

#define HRE_CHAT_SYSTEM_BYTES_MAX 1024

/* What a template says; plain data, copy it freely. */
struct hre_chat_template {
    hre_chat_kind_t kind;
    char default_system[HRE_CHAT_SYSTEM_BYTES_MAX]; /* ChatML: used where the first message is not
                                                       the system's; "": none */
    bool has_dates;                                 /* Llama-3: the system turn names two dates */
};

const char *hre_chat_kind_name(hre_chat_kind_t kind);

/*
 * From the text of tokenizer.chat_template. HR_ERR_UNSUPPORTED: the message lists the supported
 * ones.
 */
hr_status_t hre_chat_template_parse(const char *text, size_t text_bytes,
                                    struct hre_chat_template *template_out);
/* From a file; HR_ERR_NOTFOUND where it has no template. */
hr_status_t hre_chat_template_from_gguf(const hre_gguf_t *gguf,
                                        struct hre_chat_template *template_out);

struct hre_chat_message {
    const char *role; /* "system", "user", "assistant"; letters, digits, - and _ */
    const char *content;
};

struct hre_chat_options {
    size_t struct_size;
    bool add_generation_prompt; /* ends with the opening of the assistant's turn. Default true */
    const char *date; /* Llama-3's "Today Date"; NULL: the template's fixed "26 Jul 2024" */
};
void hre_chat_options_init(struct hre_chat_options *options);

/*
 * The text, and where in it contents lie: pass them to the encoder as plain, and no content can
 * forge a marker.
 */
struct hre_chat_text {
    struct hre_bytes text;
    struct hre_range *plain; /* [n_plain] */
    size_t n_plain;
};
void hre_chat_text_fini(struct hre_chat_text *text);

/*
 * options may be NULL. HR_ERR_INVALID (no messages, a role that is not a word, content that is not
 * UTF-8), HR_ERR_NOMEM.
 */
hr_status_t hre_chat_format(const struct hre_chat_template *chat,
                            const struct hre_chat_message *messages, size_t n_messages,
                            const struct hre_chat_options *options, struct hre_chat_text *text_out);

/* Formats and encodes, markers as control tokens and contents as plain text. */
hr_status_t hre_chat_encode(const struct hre_chat_template *chat, const hre_tokenizer_t *tokenizer,
                            const struct hre_chat_message *messages, size_t n_messages,
                            const struct hre_chat_options *options, struct hre_tokens *tokens_out);

#endif
