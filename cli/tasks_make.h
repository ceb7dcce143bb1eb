/* What makers of task texts share: random numbers that are the same anywhere, and text that grows. */
#ifndef CLI_TASKS_MAKE_H
#define CLI_TASKS_MAKE_H

#include "cli/tasks.h"

/* The sentences that stand for nothing, of the passkey test and RULER. */
#define CLI_NOISE                                                                                  \
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."

/* splitmix64. Every kind of choice has a stream of its own, so that a longer text begins with the
 * same choices. */
struct cli_random {
    uint64_t state;
};
enum cli_stream { CLI_STREAM_NEEDLES, CLI_STREAM_FILLER, CLI_STREAM_PLACES, CLI_STREAM_QUESTIONS };
struct cli_random cli_random_make(uint64_t seed, enum cli_stream stream);
uint64_t cli_random_u64(struct cli_random *random);
uint64_t cli_random_below(struct cli_random *random, uint64_t bound); /* without bias; bound > 0 */
/* n distinct numbers of [0, bound), in random order; n <= bound. */
void cli_random_sample(struct cli_random *random, size_t bound, size_t n, size_t *out);
void cli_random_shuffle(struct cli_random *random, size_t *items, size_t n);

void cli_uuid(struct cli_random *random, char text[static 37]); /* version 4 */

/* Appends; a failure is kept in text->failed. */
void cli_task_put(struct cli_task_text *text, struct hre_bytes *to, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
void cli_task_put_bytes(struct cli_task_text *text, struct hre_bytes *to, const char *data,
                        size_t n);
/* The next question; its references and texts are the caller's to fill. */
struct cli_task_question *cli_task_ask(struct cli_task_text *text);
void cli_task_reference(struct cli_task_question *question, const char *reference);
void cli_task_evidence(struct cli_task_text *text, struct cli_task_question *question,
                       struct cli_span span);
/* malloc; NULL is kept in text->failed. */
void *cli_task_allocate(struct cli_task_text *text, size_t n, size_t bytes);

/* The makers. */
void cli_make_niah(const struct cli_task *task, const struct cli_task_request *request,
                   struct cli_task_text *text);
void cli_make_passkey(const struct cli_task *task, const struct cli_task_request *request,
                      struct cli_task_text *text);
void cli_make_variables(const struct cli_task *task, const struct cli_task_request *request,
                        struct cli_task_text *text);
void cli_make_common_words(const struct cli_task *task, const struct cli_task_request *request,
                           struct cli_task_text *text);
size_t cli_common_words_max(const struct cli_task_request *request);
void cli_make_frequent_words(const struct cli_task *task, const struct cli_task_request *request,
                             struct cli_task_text *text);
void cli_make_pairs(const struct cli_task *task, const struct cli_task_request *request,
                    struct cli_task_text *text);

#endif
