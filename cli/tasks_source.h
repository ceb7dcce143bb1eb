/* Where the words and the prose of task texts come from. */
#ifndef CLI_TASKS_SOURCE_H
#define CLI_TASKS_SOURCE_H

#include "cli/tasks.h"

struct cli_source_files {
    const char *words; /* a word on each line; NULL: the system's list, else the built-in one */
    const char *prose; /* NULL: a text of the system */
};

/* What was read, and from where. */
struct cli_sources {
    struct cli_task_source source;
    char words_from[256], prose_from[256];   /* "" where none was needed */
    uint64_t words_checksum, prose_checksum; /* FNV-1a: equal ones make equal texts */
    size_t prose_bytes;
    void *memory[4]; /* what the source points into */
};

/* Reads what `needs` (enum cli_task_needs) asks for: 0, or an exit code after a message. */
int cli_sources_open(const struct cli_source_files *files, unsigned needs,
                     struct cli_sources *sources_out);
void cli_sources_close(struct cli_sources *sources);

/* Puts every run of white space as one space and finds the sentences. The text is changed in place;
 * *sentences_out is the caller's to free, NULL: out of memory. */
size_t cli_split_sentences(char *text, struct cli_span **sentences_out);
/* The lines of a text that can serve as words, in place. NULL: out of memory. */
const char **cli_split_words(char *text, size_t *n_out);

#endif
