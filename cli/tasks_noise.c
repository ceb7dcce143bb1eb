/* The passkey, and variables assigned from one to the next: both among sentences that repeat. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/tasks_make.h"

/* ----------------------------------------------------------------------------------------- passkey */

void cli_make_passkey(const struct cli_task *task, const struct cli_task_request *request,
                      struct cli_task_text *text)
{
    struct cli_random needles = cli_random_make(request->seed, CLI_STREAM_NEEDLES);
    struct cli_random places = cli_random_make(request->seed, CLI_STREAM_PLACES);
    struct hre_bytes *to = &text->context;
    struct cli_task_question *question = cli_task_ask(text);
    size_t place = (size_t)cli_random_below(&places, request->units + 1);
    char key[8];
    (void)task;
    snprintf(key, sizeof key, "%05u", (unsigned)cli_random_below(&needles, 100000));
    cli_task_put(text, to,
                 "There is an important info hidden inside a lot of irrelevant text. Find it and "
                 "memorize them. I will quiz you about the important information there.\n");
    for (size_t i = 0; i <= request->units; i++) {
        if (i == place) {
            size_t begin = to->bytes + strlen("The pass key is ");
            cli_task_put(text, to, "The pass key is %s. Remember it. ", key);
            cli_task_evidence(text, question, (struct cli_span){begin, begin + 5});
            cli_task_evidence(text, question, (struct cli_span){to->bytes, to->bytes + 5});
            cli_task_put(text, to, "%s is the pass key.%s", key, i < request->units ? "\n" : "");
        }
        if (i < request->units)
            cli_task_put(text, to, "%s%s", CLI_NOISE,
                         i + 1 < request->units || place == request->units ? "\n" : "");
    }
    cli_task_put(text, &question->text, "What is the pass key?");
    cli_task_put(text, &question->prefix, "The pass key is");
    cli_task_reference(question, key);
}

/* --------------------------------------------------------------------------------------- variables */

#define HOPS          4
#define VARIABLES     (HOPS + 1)
#define EXAMPLE_UNITS 5 /* lines of noise in the worked example */

struct chain {
    char name[VARIABLES][8];
    unsigned value;
};

static void draw_chain(struct cli_random *random, size_t letters, struct chain *chain)
{
    for (size_t i = 0; i < VARIABLES; i++) {
        bool again;
        do {
            for (size_t j = 0; j < letters; j++)
                chain->name[i][j] = (char)('A' + cli_random_below(random, 26));
            chain->name[i][letters] = '\0';
            again = false;
            for (size_t j = 0; j < i && !again; j++)
                again = strcmp(chain->name[j], chain->name[i]) == 0;
        } while (again);
    }
    chain->value = 10000 + (unsigned)cli_random_below(random, 90000);
}

/* question NULL: an example, whose answer is given. */
static void put_assignment(struct cli_task_text *text, const struct chain *chain, size_t i,
                           struct cli_task_question *question)
{
    struct hre_bytes *to = &text->context;
    struct cli_span span = {to->bytes + strlen("VAR "), 0};
    span.end = span.begin + strlen(chain->name[i]);
    if (i == 0)
        cli_task_put(text, to, "VAR %s = %u", chain->name[0], chain->value);
    else
        cli_task_put(text, to, "VAR %s = VAR %s", chain->name[i], chain->name[i - 1]);
    if (question)
        cli_task_evidence(text, question, span);
}

static int by_size(const void *a, const void *b)
{
    size_t x = *(const size_t *)a, y = *(const size_t *)b;
    return (x > y) - (x < y);
}

/* The chain in its order among lines of noise. */
static void put_chain(struct cli_task_text *text, const struct chain *chain,
                      struct cli_random *random, size_t units, struct cli_task_question *question)
{
    size_t places[VARIABLES], next = 0;
    for (size_t i = 0; i < VARIABLES; i++)
        places[i] = (size_t)cli_random_below(random, units + 1);
    qsort(places, VARIABLES, sizeof *places, by_size);
    cli_task_put(text, &text->context,
                 "Memorize and track the chain(s) of variable assignment hidden in the following "
                 "text.\n\n");
    for (size_t unit = 0; unit <= units; unit++) {
        for (; next < VARIABLES && places[next] == unit; next++) {
            if (unit + next)
                cli_task_put(text, &text->context, "\n");
            put_assignment(text, chain, next, question);
        }
        if (unit < units)
            cli_task_put(text, &text->context, "%s%s", unit + next ? "\n" : "", CLI_NOISE);
    }
}

static void put_question(struct cli_task_text *text, const struct chain *chain,
                         struct hre_bytes *to)
{
    cli_task_put(text, to,
                 "Question: Find all variables that are assigned the value %u in the text above.",
                 chain->value);
}

static void put_prefix(struct cli_task_text *text, const struct chain *chain, struct hre_bytes *to)
{
    cli_task_put(text, to,
                 "Answer: According to the chain(s) of variable assignment in the text above, %d "
                 "variables are assigned the value %u, they are:",
                 VARIABLES, chain->value);
}

static void put_example(struct cli_task_text *text, struct cli_random *random)
{
    struct hre_bytes *to = &text->context;
    struct chain chain;
    draw_chain(random, 3, &chain);
    put_chain(text, &chain, random, EXAMPLE_UNITS, NULL);
    cli_task_put(text, to, "\n");
    put_question(text, &chain, to);
    cli_task_put(text, to, " ");
    put_prefix(text, &chain, to);
    for (size_t i = 0; i < VARIABLES; i++)
        cli_task_put(text, to, " %s", chain.name[i]);
    cli_task_put(text, to, "\n\n");
}

void cli_make_variables(const struct cli_task *task, const struct cli_task_request *request,
                        struct cli_task_text *text)
{
    struct cli_random needles = cli_random_make(request->seed, CLI_STREAM_NEEDLES);
    struct cli_random filler = cli_random_make(request->seed, CLI_STREAM_FILLER);
    struct cli_random places = cli_random_make(request->seed, CLI_STREAM_PLACES);
    struct cli_task_question *question = cli_task_ask(text);
    struct chain chain;
    (void)task;
    draw_chain(&needles, 5, &chain);
    put_example(text, &filler);
    put_chain(text, &chain, &places, request->units, question);
    put_question(text, &chain, &question->text);
    put_prefix(text, &chain, &question->prefix);
    for (size_t i = 0; i < VARIABLES; i++)
        cli_task_reference(question, chain.name[i]);
}
