/* The tokens that a run reads: a text file, a question, both, or the tiny model's own puzzle. */
#ifndef CLI_PROMPT_H
#define CLI_PROMPT_H

#include <stdbool.h>
#include <stdint.h>

#include "cli/setup.h"

struct cli_prompt_options {
    const char *file;        /* the context, NULL: none */
    const char *question;    /* appended after the context, or all there is */
    bool chat;               /* wrapped as one turn of a user in the model's chat format */
    bool goes_on;            /* what is read follows other text: no beginning-of-text marker */
    uint64_t tokens_context; /* first tokens of the file to keep, 0: all; length of a made text */
    uint64_t keys;           /* of a made text */
    uint64_t seed;           /* of a made text */
};

struct cli_prompt {
    uint32_t *ids; /* [n_ids] */
    uint32_t n_ids;
    uint32_t *answers; /* [n_keys], or NULL: not a made text. Question i: n_ids - 2 n_keys + 2 i */
    uint32_t n_keys;
};

/* 0, or an exit code after a message. */
int cli_prompt_make(const struct cli_model *model, const struct cli_prompt_options *options,
                    struct cli_prompt *prompt_out);
void cli_prompt_fini(struct cli_prompt *prompt);

/* The tokens of a text file, with the beginning-of-text marker where the model wants one: 0, or
 * an exit code after a message. */
int cli_prompt_encode_file(const struct cli_model *model, const char *path,
                           struct hre_tokens *tokens_out);

#endif
