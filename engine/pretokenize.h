/*
 * Pre-tokenizers: how text is cut into the pieces inside which byte pairs are merged. Each is a
 * published regular expression, matched by hand over Unicode classes, in time linear in the text.
 */
#ifndef HRE_PRETOKENIZE_H
#define HRE_PRETOKENIZE_H

#include <stdbool.h>
#include <stddef.h>

typedef enum hre_pretokenizer {
    HRE_PRETOKENIZER_GPT2,
    HRE_PRETOKENIZER_SMOLLM,
    HRE_PRETOKENIZER_LLAMA_BPE,
    HRE_PRETOKENIZER_QWEN2,
    HRE_PRETOKENIZERS
} hre_pretokenizer_t;

/* By the value of tokenizer.ggml.pre; false where it is not known. */
bool hre_pretokenizer_find(const char *name, hre_pretokenizer_t *pretokenizer_out);
const char *hre_pretokenizer_name(hre_pretokenizer_t pretokenizer);
/* "smollm, gpt-2, ...", for messages. */
const char *hre_pretokenizer_names(void);

/*
 * End of the piece that starts at `at`, at < text_bytes; always beyond `at`. text is valid UTF-8
 * and `at` lies on a character. Pieces cover the text without gaps: call with the last end until it
 * is text_bytes.
 */
size_t hre_pretokenize_next(hre_pretokenizer_t pretokenizer, const char *text, size_t text_bytes,
                            size_t at);

#endif
