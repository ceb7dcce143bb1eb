/*
 * Text to token ids and back, with a model's own vocabulary.
 *
 * Two kinds (the value of tokenizer.ggml.model):
 *   "gpt2"            byte-level byte pair encoding with the pre-tokenizers of
 *                     engine/pretokenize.h. Ids are those of the Hugging Face `tokenizers` package
 *                     for the same vocabulary and merges. With `qwen2` text is composed first
 *                     (NFC), as there: decoding then gives back the composed text.
 *   "headrace-words"  words between ASCII whitespace, each exactly one token
 *
 * Threads: a tokenizer never changes after create; any number of threads may use it. A stream
 * belongs to one thread.
 * Errors: outputs are written only on success; hre_last_error() (engine/fail.h) has the line of
 * text.
 */
#ifndef HRE_TOKENIZER_H
#define HRE_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <headrace/headrace.h>

#include "engine/fail.h"
#include "engine/gguf.h"
#include "engine/pretokenize.h"

#define HRE_TOKEN_NONE       UINT32_MAX
#define HRE_VOCAB_MAX        (1u << 24) /* tokens */
#define HRE_MARKER_BYTES_MAX 1024       /* longest control or user-defined token */
#define HRE_ENCODE_BYTES_MAX (1u << 31) /* longest text of one encode */

typedef struct hre_tokenizer hre_tokenizer_t;

/* Bytes that someone else owns, not terminated. */
struct hre_text {
    const char *data;
    size_t bytes;
};

/* Values of tokenizer.ggml.token_type. */
enum hre_token_type {
    HRE_TOKEN_NORMAL = 1,
    HRE_TOKEN_UNKNOWN = 2,
    HRE_TOKEN_CONTROL = 3,      /* a marker that text spells only where the caller allows it */
    HRE_TOKEN_USER_DEFINED = 4, /* recognised wherever text spells it */
    HRE_TOKEN_UNUSED = 5,
    HRE_TOKEN_BYTE = 6
};

/* What a tokenizer is made from. Everything is copied. */
struct hre_vocab {
    const char *model; /* "gpt2" or "headrace-words" */
    const char *pre;   /* pre-tokenizer of "gpt2" */
    const struct hre_text
        *tokens; /* [n_tokens] as in the file: "gpt2" spells bytes in its own alphabet */
    const int32_t *token_types; /* [n_tokens] enum hre_token_type, NULL: all normal */
    size_t n_tokens;
    const struct hre_text *merges; /* [n_merges] "left right", most wanted first */
    size_t n_merges;
    uint32_t bos_id, eos_id,
        eot_id; /* text begins, text ends, turn ends; HRE_TOKEN_NONE: there is none */
    bool add_bos, add_eos;
};

/*
 * HR_ERR_UNSUPPORTED (model or pre-tokenizer; the message lists the supported ones), HR_ERR_CORRUPT
 * (a merge of unknown tokens, an id or count out of range), HR_ERR_NOMEM.
 */
hr_status_t hre_tokenizer_create(const struct hre_vocab *vocab, hre_tokenizer_t **tokenizer_out);
/* From a file's tokenizer.ggml.* keys; also HR_ERR_NOTFOUND where it has no tokenizer. */
hr_status_t hre_tokenizer_from_gguf(const hre_gguf_t *gguf, hre_tokenizer_t **tokenizer_out);
void hre_tokenizer_destroy(hre_tokenizer_t *tokenizer); /* NULL is legal */

uint32_t hre_tokenizer_vocab(const hre_tokenizer_t *tokenizer); /* number of tokens */
uint32_t hre_tokenizer_bos(const hre_tokenizer_t *tokenizer);   /* HRE_TOKEN_NONE: none */
uint32_t hre_tokenizer_eos(const hre_tokenizer_t *tokenizer);
/*
 * True for tokens after which an answer is over: end of text, and the end-of-turn markers of the
 * supported chat formats.
 */
bool hre_tokenizer_is_end(const hre_tokenizer_t *tokenizer, uint32_t id);
/*
 * The token that is spelled like this (control tokens by their text, others by the bytes they stand
 * for).
 */
uint32_t hre_tokenizer_find(const hre_tokenizer_t *tokenizer, const char *text, size_t text_bytes);

/* --------------------------------------------------------------------------------------- encode */

typedef enum hre_add_marker {
    HRE_ADD_AS_MODEL = 0,
    HRE_ADD_NEVER = 1,
    HRE_ADD_ALWAYS = 2
} hre_add_marker_t;

/* Bytes [begin, end) of a text. */
struct hre_range {
    size_t begin, end;
};

struct hre_encode_options {
    size_t struct_size;
    hre_add_marker_t add_bos; /* never doubles a marker that the text already starts with */
    hre_add_marker_t add_eos;
    bool parse_special; /* control tokens spelled in the text become those tokens. Default false */
    bool replace_invalid; /* each invalid piece of UTF-8 becomes U+FFFD. Default false: an error */
    /*
     * Where parse_special does not apply, in ascending order: what a user wrote into a chat. Bytes
     * before replacement.
     */
    const struct hre_range *plain; /* [n_plain] */
    size_t n_plain;
};
void hre_encode_options_init(struct hre_encode_options *options);

/* Filled by encode, owned by the caller: free with hre_tokens_fini. */
struct hre_tokens {
    uint32_t *ids;
    size_t count;
    size_t dropped_bytes; /* bytes the vocabulary has no token for; left out, as the published
                             tokenizers do */
    size_t replaced;      /* invalid pieces of UTF-8 that became U+FFFD */
};
void hre_tokens_fini(struct hre_tokens *tokens);

/*
 * options may be NULL. HR_ERR_INVALID (UTF-8, or a word that is not in the vocabulary: the message
 * has the byte offset), HR_ERR_NOMEM.
 */
hr_status_t hre_tokenizer_encode(const hre_tokenizer_t *tokenizer, const char *text,
                                 size_t text_bytes, const struct hre_encode_options *options,
                                 struct hre_tokens *tokens_out);

/* --------------------------------------------------------------------------------------- decode */

/*
 * The bytes of one token, valid as long as the tokenizer; may be half a character. Control tokens
 * give their text. Words come without the space between them. HR_ERR_INVALID: no such id.
 */
hr_status_t hre_tokenizer_piece(const hre_tokenizer_t *tokenizer, uint32_t id,
                                struct hre_text *piece_out);

/* Bytes that grow. Zero-initialise; data is always terminated when not NULL. */
struct hre_bytes {
    char *data;
    size_t bytes, capacity;
};
hr_status_t hre_bytes_append(struct hre_bytes *bytes, const char *data, size_t data_bytes);
void hre_bytes_fini(struct hre_bytes *bytes);

/*
 * Decodes tokens one at a time. What it appends is always whole, valid UTF-8: the beginning of a
 * character is held back until the rest arrives, bytes that cannot be text become U+FFFD.
 */
struct hre_stream {
    const hre_tokenizer_t *tokenizer;
    bool keep_special; /* control tokens appear as their text; else they are left out */
    bool started;
    unsigned n_held;
    char held[4];
};
void hre_stream_init(struct hre_stream *stream, const hre_tokenizer_t *tokenizer,
                     bool keep_special);
/* Appends to text; on error nothing was appended. HR_ERR_INVALID: no such id. */
hr_status_t hre_stream_push(struct hre_stream *stream, uint32_t id, struct hre_bytes *text);
/* What is still held back has no end: appends U+FFFD for it. */
hr_status_t hre_stream_end(struct hre_stream *stream, struct hre_bytes *text);

/* All at once, appended to text. raw: the tokens' bytes as they are, without replacement. */
hr_status_t hre_tokenizer_decode(const hre_tokenizer_t *tokenizer, const uint32_t *ids,
                                 size_t count, bool keep_special, bool raw, struct hre_bytes *text);

#endif
