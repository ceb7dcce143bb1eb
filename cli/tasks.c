#include "cli/tasks.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include "cli/tasks_make.h"

#define RULER         "RULER, arXiv 2404.06654"
#define INFINITEBENCH "InfiniteBench, arXiv 2402.13718"
#define SCBENCH       "SCBench, arXiv 2412.10319"

#define UNITS_MAX ((size_t)1 << 24)

/* ------------------------------------------------------------------------------------------- table */

static const struct cli_task tasks[] = {
    {
        .name = "passkey",
        .brief = "a five-digit key among sentences that repeat",
        .source = INFINITEBENCH,
        .answer_tokens = 12,
        .published_tokens = 6,
        .match = CLI_MATCH_PART,
        .make = cli_make_passkey,
    },
    {
        .name = "niah_single_1",
        .brief = "one number among sentences that repeat",
        .source = RULER,
        .needs = CLI_NEEDS_WORDS,
        .answer_tokens = 16,
        .published_tokens = 128,
        .make = cli_make_niah,
        .niah = {CLI_HAYSTACK_NOISE, CLI_NEEDLE_WORD, CLI_NEEDLE_NUMBER, 1, 1, 1, 1},
    },
    {
        .name = "niah_single_2",
        .brief = "one number in prose",
        .source = RULER,
        .needs = CLI_NEEDS_WORDS | CLI_NEEDS_PROSE,
        .answer_tokens = 16,
        .published_tokens = 128,
        .make = cli_make_niah,
        .niah = {CLI_HAYSTACK_PROSE, CLI_NEEDLE_WORD, CLI_NEEDLE_NUMBER, 1, 1, 1, 1},
    },
    {
        .name = "niah_single_3",
        .brief = "one UUID in prose",
        .source = RULER,
        .needs = CLI_NEEDS_WORDS | CLI_NEEDS_PROSE,
        .answer_tokens = 48,
        .published_tokens = 128,
        .make = cli_make_niah,
        .niah = {CLI_HAYSTACK_PROSE, CLI_NEEDLE_WORD, CLI_NEEDLE_UUID, 1, 1, 1, 1},
    },
    {
        .name = "niah_multikey_1",
        .brief = "one of four numbers in prose, by its key",
        .source = RULER,
        .needs = CLI_NEEDS_WORDS | CLI_NEEDS_PROSE,
        .answer_tokens = 16,
        .published_tokens = 128,
        .make = cli_make_niah,
        .niah = {CLI_HAYSTACK_PROSE, CLI_NEEDLE_WORD, CLI_NEEDLE_NUMBER, 4, 1, 1, 1},
    },
    {
        .name = "niah_multikey_2",
        .brief = "one number by its key; the text is nothing but such lines",
        .source = RULER,
        .needs = CLI_NEEDS_WORDS,
        .answer_tokens = 16,
        .published_tokens = 128,
        .make = cli_make_niah,
        .niah = {CLI_HAYSTACK_NEEDLES, CLI_NEEDLE_WORD, CLI_NEEDLE_NUMBER, 1, 1, 1, 1},
    },
    {
        .name = "niah_multikey_3",
        .brief = "the same with UUIDs as keys and values",
        .source = RULER,
        .answer_tokens = 48,
        .published_tokens = 128,
        .make = cli_make_niah,
        .niah = {CLI_HAYSTACK_NEEDLES, CLI_NEEDLE_UUID, CLI_NEEDLE_UUID, 1, 1, 1, 1},
    },
    {
        .name = "niah_multivalue",
        .brief = "all four numbers of one key, in prose",
        .source = RULER,
        .needs = CLI_NEEDS_WORDS | CLI_NEEDS_PROSE,
        .answer_tokens = 64,
        .published_tokens = 128,
        .make = cli_make_niah,
        .niah = {CLI_HAYSTACK_PROSE, CLI_NEEDLE_WORD, CLI_NEEDLE_NUMBER, 1, 4, 1, 1},
    },
    {
        .name = "niah_multiquery",
        .brief = "the numbers of four keys, in prose",
        .source = RULER,
        .needs = CLI_NEEDS_WORDS | CLI_NEEDS_PROSE,
        .answer_tokens = 64,
        .published_tokens = 128,
        .make = cli_make_niah,
        .niah = {CLI_HAYSTACK_PROSE, CLI_NEEDLE_WORD, CLI_NEEDLE_NUMBER, 4, 1, 4, 1},
    },
    {
        .name = "vt",
        .brief = "variable tracking: all names that a number came to through four assignments",
        .source = RULER,
        .answer_tokens = 30,
        .published_tokens = 30,
        .make = cli_make_variables,
    },
    {
        .name = "cwe",
        .brief = "the ten common words of a list of words",
        .source = RULER,
        .needs = CLI_NEEDS_WORDS,
        .answer_tokens = 120,
        .published_tokens = 120,
        .units_min = 1,
        .units_max = cli_common_words_max,
        .make = cli_make_common_words,
    },
    {
        .name = "fwe",
        .brief = "the three most frequent made-up words, their counts Zeta-distributed",
        .source = RULER,
        .answer_tokens = 50,
        .published_tokens = 50,
        .units_min = 60,
        .make = cli_make_frequent_words,
    },
    {
        .name = "kv_retrieval",
        .brief = "the value of one key in a JSON object of UUIDs",
        .source = INFINITEBENCH,
        .answer_tokens = 48,
        .published_tokens = 50,
        .match = CLI_MATCH_PART,
        .make = cli_make_pairs,
        .n_questions = 1,
    },
    {
        .name = "multiturn_niah",
        .brief = "five numbers in prose, asked for one after the other on one cache",
        .source = SCBENCH,
        .needs = CLI_NEEDS_WORDS | CLI_NEEDS_PROSE,
        .answer_tokens = 16,
        .make = cli_make_niah,
        .niah = {CLI_HAYSTACK_PROSE, CLI_NEEDLE_WORD, CLI_NEEDLE_NUMBER, 5, 1, 1, 5},
    },
    {
        .name = "multiturn_kv",
        .brief =
            "the values of five keys in a JSON object of UUIDs, one after the other on one cache",
        .source = SCBENCH,
        .answer_tokens = 48,
        .match = CLI_MATCH_PART,
        .make = cli_make_pairs,
        .n_questions = 5,
    },
    {
        .name = "mqar",
        .brief = "the value of each key in turn; of the embedded model, which knows no other task",
        .source = "Zoology, arXiv 2312.04927; engine/models/README.md",
        .answer_tokens = 1,
    },
};
#define TASKS (sizeof tasks / sizeof tasks[0])

const struct cli_task *cli_task_at(size_t index)
{
    return index < TASKS ? &tasks[index] : NULL;
}

const struct cli_task *cli_task_find(const char *name)
{
    for (size_t i = 0; i < TASKS; i++) {
        if (strcmp(tasks[i].name, name) == 0)
            return &tasks[i];
    }
    return NULL;
}

const char *cli_task_names(void)
{
    static char names[512];
    size_t at = 0;
    for (size_t i = 0; i < TASKS && at < sizeof names; i++)
        at += (size_t)snprintf(names + at, sizeof names - at, "%s%s", i ? " " : "", tasks[i].name);
    return names;
}

uint64_t cli_task_seed(const struct cli_task *task, uint64_t seed, uint64_t sample)
{
    uint64_t hash = 0xcbf29ce484222325u; /* FNV-1a of the name */
    for (const char *c = task->name; *c; c++)
        hash = (hash ^ (unsigned char)*c) * 0x100000001b3u;
    struct cli_random random = {seed};
    random.state = cli_random_u64(&random) ^ hash;
    random.state = cli_random_u64(&random) + sample;
    return cli_random_u64(&random);
}

/* --------------------------------------------------------------------------------------------- fit */

struct search {
    const struct cli_task *task;
    struct cli_task_request *request;
    cli_task_count_fn count;
    void *context;
};

/* Makes the text of so many units and counts it; negative: failed. The text is the caller's. */
static int64_t try_units(const struct search *s, size_t units, struct cli_task_text *text)
{
    memset(text, 0, sizeof *text);
    s->request->units = units;
    s->task->make(s->task, s->request, text);
    return text->failed ? -1 : s->count(s->context, text);
}

static int64_t count_units(const struct search *s, size_t units)
{
    struct cli_task_text text;
    int64_t n = try_units(s, units, &text);
    cli_task_text_fini(&text);
    return n;
}

/* low fits: the largest that does, or SIZE_MAX when counting failed. */
static size_t largest_units(const struct search *s, size_t low, size_t most)
{
    int64_t limit = (int64_t)s->request->tokens, n;
    size_t high = most + 1; /* does not fit */
    for (size_t step = 8; low < most; step *= 2) {
        size_t units = step < most - low ? low + step : most;
        if ((n = count_units(s, units)) < 0)
            return SIZE_MAX;
        if (n > limit) {
            high = units;
            break;
        }
        low = units;
    }
    while (high - low > 1) {
        size_t middle = low + (high - low) / 2;
        if ((n = count_units(s, middle)) < 0)
            return SIZE_MAX;
        *(n <= limit ? &low : &high) = middle;
    }
    return low;
}

enum cli_task_fit cli_task_fit(const struct cli_task *task, struct cli_task_request *request,
                               cli_task_count_fn count, void *context,
                               struct cli_task_text *text_out, int64_t *count_out)
{
    struct search s = {task, request, count, context};
    size_t most = task->units_max ? task->units_max(request) : UNITS_MAX;
    if ((*count_out = count_units(&s, task->units_min)) < 0)
        return CLI_FIT_FAILED;
    if (*count_out > (int64_t)request->tokens)
        return CLI_FIT_TOO_SMALL;
    size_t units = largest_units(&s, task->units_min, most);
    if (units == SIZE_MAX)
        return CLI_FIT_FAILED;
    *count_out = try_units(&s, units, text_out);
    if (*count_out >= 0)
        return CLI_FIT_OK;
    cli_task_text_fini(text_out);
    return CLI_FIT_FAILED;
}

/* ------------------------------------------------------------------------------------------- score */

static bool names(const char *answer, const char *reference)
{
    size_t n = strlen(reference);
    for (; *answer; answer++) {
        size_t i = 0;
        while (i < n && tolower((unsigned char)answer[i]) == tolower((unsigned char)reference[i]))
            i++;
        if (i == n)
            return true;
    }
    return false;
}

double cli_task_score(enum cli_task_match match, const struct cli_references *references,
                      const char *answer)
{
    size_t found = 0;
    for (size_t i = 0; i < references->n; i++)
        found += names(answer, references->text[i]);
    if (match == CLI_MATCH_PART)
        return found > 0;
    return references->n ? (double)found / (double)references->n : 0;
}
