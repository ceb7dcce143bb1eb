/* Lists of words, some of which are more frequent than others. */
#include <stdlib.h>
#include <string.h>

#include "cli/tasks_make.h"

/* ------------------------------------------------------------------------------------ common words */

#define COMMON       10   /* words to name */
#define SHORT_TOKENS 4096 /* shorter texts repeat words less often */

struct mix {
    size_t n_uncommon, times_common, times_uncommon;
};

static struct mix example_mix(const struct cli_task_request *request)
{
    return request->tokens < SHORT_TOKENS ? (struct mix){10, 3, 1} : (struct mix){30, 10, 3};
}

static struct mix main_mix(const struct cli_task_request *request)
{
    return request->tokens < SHORT_TOKENS ? (struct mix){request->units, 6, 1}
                                          : (struct mix){request->units, 30, 3};
}

size_t cli_common_words_max(const struct cli_task_request *request)
{
    size_t others = 2 * COMMON + example_mix(request).n_uncommon;
    return request->source->n_words > others ? request->source->n_words - others : 0;
}

/* The first n of a random order of all words. */
static size_t *draw_words(struct cli_task_text *text, const struct cli_task_request *request,
                          size_t n)
{
    struct cli_random random = cli_random_make(request->seed, CLI_STREAM_NEEDLES);
    size_t *order = cli_task_allocate(text, request->source->n_words, sizeof *order);
    for (size_t i = 0; order && i < request->source->n_words; i++)
        order[i] = i;
    for (size_t i = 0; order && i < n; i++) {
        size_t j = i + (size_t)cli_random_below(&random, request->source->n_words - i);
        size_t kept = order[i];
        order[i] = order[j];
        order[j] = kept;
    }
    return order;
}

/* "1. word 2. word ...", the common ones first among `words`. question NULL: an example. */
static void put_list(struct cli_task_text *text, const struct cli_task_request *request,
                     const size_t *words, struct mix mix, struct cli_random *random,
                     struct cli_task_question *question)
{
    struct hre_bytes *to = &text->context;
    size_t n = COMMON * mix.times_common + mix.n_uncommon * mix.times_uncommon, at = 0;
    size_t *list = cli_task_allocate(text, n, sizeof *list);
    if (!list)
        return;
    for (size_t i = 0; i < COMMON + mix.n_uncommon; i++) {
        for (size_t j = 0; j < (i < COMMON ? mix.times_common : mix.times_uncommon); j++)
            list[at++] = i;
    }
    cli_random_shuffle(random, list, n);
    cli_task_put(text, to,
                 "Below is a numbered list of words. In these words, some appear more often than "
                 "others. Memorize the ones that appear most often.\n");
    for (size_t i = 0; i < n; i++) {
        const char *word = request->source->words[words[list[i]]];
        cli_task_put(text, to, "%s%zu. %s", i ? " " : "", i + 1, word);
        if (question && list[i] < COMMON)
            cli_task_evidence(text, question,
                              (struct cli_span){to->bytes - strlen(word), to->bytes});
    }
    free(list);
}

#define COMMON_QUESTION "Question: What are the 10 most common words in the above list?"
#define COMMON_PREFIX   "Answer: The top 10 words that appear most often in the list are:"

static void put_example(struct cli_task_text *text, const struct cli_task_request *request,
                        const size_t *words, struct cli_random *random)
{
    struct hre_bytes *to = &text->context;
    put_list(text, request, words, example_mix(request), random, NULL);
    cli_task_put(text, to, "\n%s %s", COMMON_QUESTION, COMMON_PREFIX);
    for (size_t i = 0; i < COMMON; i++)
        cli_task_put(text, to, " %zu. %s", i + 1, request->source->words[words[i]]);
    cli_task_put(text, to, "\n");
}

void cli_make_common_words(const struct cli_task *task, const struct cli_task_request *request,
                           struct cli_task_text *text)
{
    struct cli_random random = cli_random_make(request->seed, CLI_STREAM_FILLER);
    struct cli_task_question *question = cli_task_ask(text);
    size_t n_example = COMMON + example_mix(request).n_uncommon;
    size_t *words = draw_words(text, request, n_example + COMMON + request->units);
    (void)task;
    if (!words)
        return;
    put_example(text, request, words, &random);
    put_list(text, request, words + n_example, main_mix(request), &random, question);
    cli_task_put(text, &question->text, COMMON_QUESTION);
    cli_task_put(text, &question->prefix, COMMON_PREFIX);
    for (size_t i = 0; i < COMMON; i++)
        cli_task_reference(question, request->source->words[words[n_example + i]]);
    free(words);
}

/* ---------------------------------------------------------------------------------- frequent words */

#define CODED_BYTES 6
#define FREQUENT    3
#define ZETA_2      1.6449340668482264 /* pi^2 / 6, the sum over all ranks of 1 / rank^2 */
#define NOISE_WORD  "..."
#define RANK_TOKENS 50 /* a rank for so many tokens */

struct coded {
    char word[CODED_BYTES + 1];
};

static struct coded *draw_coded(struct cli_task_text *text, struct cli_random *random, size_t n)
{
    struct coded *words = cli_task_allocate(text, n, sizeof *words);
    for (size_t i = 1; words && i < n; i++) {
        bool again;
        do {
            for (size_t j = 0; j < CODED_BYTES; j++)
                words[i].word[j] = (char)('a' + cli_random_below(random, 26));
            again = false;
            for (size_t j = 1; j < i && !again; j++)
                again = strcmp(words[j].word, words[i].word) == 0;
        } while (again);
    }
    if (words)
        memcpy(words[0].word, NOISE_WORD, sizeof NOISE_WORD); /* the most frequent one is noise */
    return words;
}

/* How often the word of a rank (from 1) stands in a text of so many. */
static size_t times_of_rank(size_t n_words, size_t rank)
{
    return (size_t)((double)n_words / ((double)rank * (double)rank) / ZETA_2);
}

static void put_coded(struct cli_task_text *text, const struct coded *words, const size_t *list,
                      size_t n, struct cli_task_question *question)
{
    struct hre_bytes *to = &text->context;
    for (size_t i = 0; i < n; i++) {
        const char *word = words[list[i]].word;
        cli_task_put(text, to, "%s%s", i ? " " : "", word);
        if (list[i] >= 1 && list[i] <= FREQUENT)
            cli_task_evidence(text, question,
                              (struct cli_span){to->bytes - strlen(word), to->bytes});
    }
}

void cli_make_frequent_words(const struct cli_task *task, const struct cli_task_request *request,
                             struct cli_task_text *text)
{
    struct cli_random needles = cli_random_make(request->seed, CLI_STREAM_NEEDLES);
    struct cli_random filler = cli_random_make(request->seed, CLI_STREAM_FILLER);
    struct cli_task_question *question = cli_task_ask(text);
    size_t ranks =
        request->tokens / RANK_TOKENS > FREQUENT + 2 ? request->tokens / RANK_TOKENS : FREQUENT + 2;
    struct coded *words = draw_coded(text, &needles, ranks);
    size_t *list = cli_task_allocate(text, request->units, sizeof *list), n = 0;
    (void)task;
    for (size_t r = 0; words && list && r < ranks; r++) {
        for (size_t j = times_of_rank(request->units, r + 1); j > 0; j--)
            list[n++] = r; /* at most `units` in all: the shares add up to less than 1 */
    }
    if (words && list) {
        cli_random_shuffle(&filler, list, n);
        cli_task_put(text, &text->context,
                     "Read the following coded text and track the frequency of each coded word. "
                     "Find the three most frequently appeared coded words. ");
        put_coded(text, words, list, n, question);
        for (size_t i = 1; i <= FREQUENT; i++)
            cli_task_reference(question, words[i].word);
    }
    cli_task_put(text, &question->text,
                 "Question: Do not provide any explanation. Please ignore the dots '....'. What "
                 "are the three most frequently appeared words in the above coded text?");
    cli_task_put(text, &question->prefix,
                 "Answer: According to the coded text above, the three most frequently appeared "
                 "words are:");
    free(words);
    free(list);
}
