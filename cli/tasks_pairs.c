/* A JSON object of UUID keys and values, and questions for some of the values. */
#include <stdlib.h>
#include <string.h>

#include "cli/tasks_make.h"

#define UUID_BYTES 36

struct pair {
    char key[UUID_BYTES + 1], value[UUID_BYTES + 1];
    struct cli_span span; /* of the value */
};

static void put_pairs(struct cli_task_text *text, struct pair *pairs, size_t n)
{
    struct hre_bytes *to = &text->context;
    cli_task_put(text, to,
                 "Extract the value corresponding to the specified key in the JSON object below."
                 "\n\nJSON data:\n{");
    for (size_t i = 0; i < n; i++) {
        cli_task_put(text, to, "%s\"%s\": \"", i ? ", " : "", pairs[i].key);
        pairs[i].span = (struct cli_span){to->bytes, to->bytes + UUID_BYTES};
        cli_task_put(text, to, "%s\"", pairs[i].value);
    }
    cli_task_put(text, to, "}");
}

static void ask(struct cli_task_text *text, const struct pair *pair)
{
    struct cli_task_question *question = cli_task_ask(text);
    cli_task_put(text, &question->text, "Key: \"%s\"", pair->key);
    cli_task_put(text, &question->prefix, "The value associated with the specified key is:");
    cli_task_reference(question, pair->value);
    cli_task_evidence(text, question, pair->span);
}

void cli_make_pairs(const struct cli_task *task, const struct cli_task_request *request,
                    struct cli_task_text *text)
{
    struct cli_random needles = cli_random_make(request->seed, CLI_STREAM_NEEDLES);
    struct cli_random questions = cli_random_make(request->seed, CLI_STREAM_QUESTIONS);
    size_t n = task->n_questions + request->units, asked[CLI_TASK_QUESTIONS_MAX];
    struct pair *pairs = cli_task_allocate(text, n, sizeof *pairs);
    for (size_t i = 0; pairs && i < n; i++) {
        cli_uuid(&needles, pairs[i].key); /* 122 random bits: no two are equal */
        cli_uuid(&needles, pairs[i].value);
    }
    if (!pairs)
        return;
    put_pairs(text, pairs, n);
    cli_random_sample(&questions, n, task->n_questions, asked);
    for (size_t i = 0; i < task->n_questions; i++)
        ask(text, &pairs[asked[i]]);
    free(pairs);
}
