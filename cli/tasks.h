/* Tasks with known answers: a text that hides something, questions about it, and what an answer must
 * name. Making one is a pure function: the same task, seed, size, words and prose give the same text
 * anywhere. docs/tasks.md has the definitions with their sources. */
#ifndef CLI_TASKS_H
#define CLI_TASKS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/tokenizer.h"

#define CLI_TASK_QUESTIONS_MAX       8
#define CLI_TASK_REFERENCES_MAX      10
#define CLI_TASK_REFERENCE_BYTES_MAX 72
#define CLI_TASK_WORD_BYTES_MAX      24

/* Bytes [begin, end) of a text. */
struct cli_span {
    size_t begin, end;
};

/* What an answer must name. */
struct cli_references {
    size_t n;
    char text[CLI_TASK_REFERENCES_MAX][CLI_TASK_REFERENCE_BYTES_MAX];
};

struct cli_task_question {
    struct hre_bytes text;   /* what is asked */
    struct hre_bytes prefix; /* how the answer begins: it is read, not generated */
    struct cli_references references;
    struct cli_span *evidence; /* [n_evidence] where the context holds the answer */
    size_t n_evidence, evidence_capacity;
};

struct cli_task_text {
    struct hre_bytes context; /* the task in words, and what it is about */
    struct cli_task_question question[CLI_TASK_QUESTIONS_MAX];
    size_t n_questions;
    bool failed; /* out of memory: what is there is not whole */
};
void cli_task_text_fini(struct cli_task_text *text);

/* What texts are made of. */
struct cli_task_source {
    const char *const
        *words; /* [n_words] distinct, lower case, shorter than CLI_TASK_WORD_BYTES_MAX */
    size_t n_words;
    const char *prose;                /* words separated by single spaces */
    const struct cli_span *sentences; /* [n_sentences] of it */
    size_t n_sentences;
};

struct cli_task_request {
    const struct cli_task_source *source;
    uint64_t seed;
    uint64_t tokens; /* that the text is meant to have; some rules depend on it */
    size_t
        units; /* of filler: noise lines, sentences, distractors, words. A text with more units is longer */
};

/* How references count: the share of them that the answer names, or any of them. */
enum cli_task_match { CLI_MATCH_ALL, CLI_MATCH_PART };
/* What a task needs besides a seed. */
enum cli_task_needs { CLI_NEEDS_NOTHING = 0, CLI_NEEDS_WORDS = 1, CLI_NEEDS_PROSE = 2 };

/* Needles in a haystack. */
enum cli_needle { CLI_NEEDLE_NUMBER, CLI_NEEDLE_WORD, CLI_NEEDLE_UUID };
enum cli_haystack { CLI_HAYSTACK_NOISE, CLI_HAYSTACK_PROSE, CLI_HAYSTACK_NEEDLES };
struct cli_niah {
    enum cli_haystack haystack;
    enum cli_needle key, value;
    unsigned n_keys, n_values, n_queries; /* a question names n_queries of the keys */
    unsigned n_questions;                 /* one after the other */
};

struct cli_task {
    const char *name;
    const char *brief;
    const char *source;        /* where it is defined */
    unsigned needs;            /* enum cli_task_needs */
    unsigned answer_tokens;    /* most tokens of an answer */
    unsigned published_tokens; /* the same where it is defined, 0: not said */
    enum cli_task_match match;
    size_t units_min;
    /* Most units that the source has room for; NULL: any number. */
    size_t (*units_max)(const struct cli_task_request *request);
    /* NULL: made of the embedded model's tokens (hre_tiny_text). */
    void (*make)(const struct cli_task *task, const struct cli_task_request *request,
                 struct cli_task_text *text);
    struct cli_niah niah;
    unsigned n_questions; /* of a key-value task */
};

/* In the order of --list. NULL after the last. */
const struct cli_task *cli_task_at(size_t index);
const struct cli_task *cli_task_find(const char *name); /* NULL: there is none */
/* Names separated by spaces. */
const char *cli_task_names(void);
/* The seed of a task's sample: samples differ, and do not depend on which tasks are run. */
uint64_t cli_task_seed(const struct cli_task *task, uint64_t seed, uint64_t sample);

/* Tokens that the text needs, answers included, or negative: failed, after a message. */
typedef int64_t (*cli_task_count_fn)(void *context, const struct cli_task_text *text);

enum cli_task_fit { CLI_FIT_OK, CLI_FIT_TOO_SMALL, CLI_FIT_FAILED };
/*
 * The longest text whose count is at most request->tokens; request->units is chosen here and left
 * there. TOO_SMALL: not even the shortest fits, *count_out says what that takes. FAILED: the count
 * said why, or text_out->failed. On OK the caller frees text_out.
 */
enum cli_task_fit cli_task_fit(const struct cli_task *task, struct cli_task_request *request,
                               cli_task_count_fn count, void *context,
                               struct cli_task_text *text_out, int64_t *count_out);

/* 0 to 1: how much of the references the answer names, letters' case aside. */
double cli_task_score(enum cli_task_match match, const struct cli_references *references,
                      const char *answer);

/* A list of words for where there is no other: distinct, in no order. */
const char *const *cli_builtin_words(size_t *n_out);

#endif
