/* Needles in a haystack: lines that name a key and its value, hidden in noise, prose or other such
 * lines; questions ask for the values of some of the keys. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/tasks_make.h"

#define KEYS_MAX   5
#define VALUES_MAX 4
#define NAME_BYTES (2 * CLI_TASK_WORD_BYTES_MAX)
#define DEPTHS     40 /* places in prose, evenly spread from the beginning to the end */

struct needle {
    unsigned key, value;
    struct cli_span span; /* of the value, where it was put */
};

struct work {
    const struct cli_niah *niah;
    const struct cli_task_request *request;
    struct cli_task_text *text;
    char key[KEYS_MAX][NAME_BYTES];
    char value[KEYS_MAX][VALUES_MAX][NAME_BYTES];
    struct needle needle[KEYS_MAX * VALUES_MAX]; /* in the order in which they stand */
    size_t n_needles;
};

static const char *kind_name(enum cli_needle kind)
{
    return kind == CLI_NEEDLE_NUMBER ? "number" : kind == CLI_NEEDLE_UUID ? "uuid" : "word";
}

/* ----------------------------------------------------------------------------------------- needles */

static void draw(const struct cli_task_source *source, enum cli_needle kind,
                 struct cli_random *random, char name[static NAME_BYTES])
{
    if (kind == CLI_NEEDLE_NUMBER) {
        snprintf(name, NAME_BYTES, "%u", 1000000 + (unsigned)cli_random_below(random, 9000000));
    } else if (kind == CLI_NEEDLE_UUID) {
        cli_uuid(random, name);
    } else {
        const char *first = source->words[cli_random_below(random, source->n_words)];
        const char *second = source->words[cli_random_below(random, source->n_words)];
        snprintf(name, NAME_BYTES, "%s-%s", first, second);
    }
}

static bool is_taken(const struct work *w, unsigned n_keys, unsigned n_values, const char *name)
{
    for (unsigned k = 0; k < n_keys; k++) {
        if (strcmp(w->key[k], name) == 0)
            return true;
    }
    for (unsigned i = 0; i < n_values; i++) {
        if (strcmp(w->value[i / VALUES_MAX][i % VALUES_MAX], name) == 0)
            return true;
    }
    return false;
}

/* One that stands for nothing else in this text. */
static void draw_new(const struct work *w, unsigned n_keys, unsigned n_values, enum cli_needle kind,
                     struct cli_random *random, char name[static NAME_BYTES])
{
    do {
        draw(w->request->source, kind, random, name);
    } while (is_taken(w, n_keys, n_values, name));
}

static void draw_needles(struct work *w)
{
    const struct cli_niah *niah = w->niah;
    struct cli_random random = cli_random_make(w->request->seed, CLI_STREAM_NEEDLES);
    struct needle all[KEYS_MAX * VALUES_MAX];
    size_t order[KEYS_MAX * VALUES_MAX];
    for (unsigned k = 0; k < niah->n_keys; k++) {
        draw_new(w, k, k * VALUES_MAX, niah->key, &random, w->key[k]);
        for (unsigned v = 0; v < niah->n_values; v++) {
            draw_new(w, k + 1, k * VALUES_MAX + v, niah->value, &random, w->value[k][v]);
            order[w->n_needles] = w->n_needles;
            all[w->n_needles++] = (struct needle){.key = k, .value = v};
        }
    }
    cli_random_shuffle(&random, order, w->n_needles);
    for (size_t i = 0; i < w->n_needles; i++)
        w->needle[i] = all[order[i]];
}

/* Returns where the value stands. */
static struct cli_span put_line(struct work *w, const char *key, const char *value)
{
    struct hre_bytes *to = &w->text->context;
    struct cli_span span;
    cli_task_put(w->text, to, "One of the special magic %ss for %s is: ", kind_name(w->niah->value),
                 key);
    span.begin = to->bytes;
    cli_task_put(w->text, to, "%s", value);
    span.end = to->bytes;
    cli_task_put(w->text, to, ".");
    return span;
}

static void put_needle(struct work *w, size_t i)
{
    struct needle *needle = &w->needle[i];
    needle->span = put_line(w, w->key[needle->key], w->value[needle->key][needle->value]);
}

/* ---------------------------------------------------------------------------------------- haystack */

static int by_size(const void *a, const void *b)
{
    size_t x = *(const size_t *)a, y = *(const size_t *)b;
    return (x > y) - (x < y);
}

/* Before which of the units each needle stands, ascending. Prose: at some of the depths. */
static void choose_places(const struct work *w, size_t *places)
{
    struct cli_random random = cli_random_make(w->request->seed, CLI_STREAM_PLACES);
    size_t n = w->request->units;
    if (w->niah->haystack == CLI_HAYSTACK_PROSE) {
        cli_random_sample(&random, DEPTHS, w->n_needles, places);
        for (size_t i = 0; i < w->n_needles; i++)
            places[i] = places[i] * n / (DEPTHS - 1);
    } else {
        for (size_t i = 0; i < w->n_needles; i++)
            places[i] = (size_t)cli_random_below(&random, n + 1);
    }
    qsort(places, w->n_needles, sizeof *places, by_size);
}

static void put_distractor(struct work *w, struct cli_random *random)
{
    char key[NAME_BYTES], value[NAME_BYTES];
    unsigned all = KEYS_MAX * VALUES_MAX; /* names not drawn are empty and equal to none */
    draw_new(w, KEYS_MAX, all, w->niah->key, random, key);
    draw_new(w, KEYS_MAX, all, w->niah->value, random, value);
    put_line(w, key, value);
}

static void put_unit(struct work *w, size_t unit, size_t first_sentence, struct cli_random *random)
{
    const struct cli_task_source *source = w->request->source;
    struct hre_bytes *to = &w->text->context;
    if (w->niah->haystack == CLI_HAYSTACK_NOISE) {
        cli_task_put(w->text, to, "%s", CLI_NOISE);
    } else if (w->niah->haystack == CLI_HAYSTACK_NEEDLES) {
        put_distractor(w, random);
    } else {
        struct cli_span s = source->sentences[(first_sentence + unit) % source->n_sentences];
        cli_task_put_bytes(w->text, to, source->prose + s.begin, s.end - s.begin);
    }
}

static void put_haystack(struct work *w)
{
    struct cli_random random = cli_random_make(w->request->seed, CLI_STREAM_FILLER);
    size_t places[KEYS_MAX * VALUES_MAX], next = 0, first = 0, n = w->request->units;
    bool prose = w->niah->haystack == CLI_HAYSTACK_PROSE;
    const char *between = prose ? " " : "\n";
    if (prose)
        first = (size_t)cli_random_below(&random, w->request->source->n_sentences);
    choose_places(w, places);
    for (size_t unit = 0; unit <= n; unit++) {
        for (; next < w->n_needles && places[next] == unit; next++) {
            if (unit + next)
                cli_task_put(w->text, &w->text->context, "%s", between);
            put_needle(w, next);
        }
        if (unit == n)
            break;
        if (unit + next)
            cli_task_put(w->text, &w->text->context, "%s", between);
        put_unit(w, unit, first, &random);
    }
}

/* --------------------------------------------------------------------------------------- questions */

/* "a", "a, and b", "a, b, and c" */
static void list_keys(const struct work *w, const size_t *keys, unsigned n, char *list,
                      size_t list_bytes)
{
    size_t at = 0;
    for (unsigned i = 0; i < n; i++)
        at += (size_t)snprintf(list + at, list_bytes - at, "%s%s",
                               i == 0       ? ""
                               : i + 1 == n ? ", and "
                                            : ", ",
                               w->key[keys[i]]);
}

static void ask(struct work *w, const size_t *keys)
{
    const struct cli_niah *niah = w->niah;
    struct cli_task_question *question = cli_task_ask(w->text);
    bool one = niah->n_queries * niah->n_values == 1;
    const char *kind = kind_name(niah->value), *verb = one ? "is" : "are", *s = one ? "" : "s";
    char list[KEYS_MAX * (NAME_BYTES + 8)];
    list_keys(w, keys, niah->n_queries, list, sizeof list);
    cli_task_put(w->text, &question->text,
                 "What %s the special magic %s%s for %s mentioned in the provided text?",
                 one ? "is" : "are all", kind, s, list);
    cli_task_put(w->text, &question->prefix,
                 "The special magic %s%s for %s mentioned in the provided text %s", kind, s, list,
                 verb);
    for (unsigned q = 0; q < niah->n_queries; q++) {
        for (unsigned v = 0; v < niah->n_values; v++)
            cli_task_reference(question, w->value[keys[q]][v]);
    }
    for (size_t i = 0; i < w->n_needles; i++) {
        for (unsigned q = 0; q < niah->n_queries; q++) {
            if (w->needle[i].key == keys[q])
                cli_task_evidence(w->text, question, w->needle[i].span);
        }
    }
}

void cli_make_niah(const struct cli_task *task, const struct cli_task_request *request,
                   struct cli_task_text *text)
{
    const struct cli_niah *niah = &task->niah;
    struct work w = {.niah = niah, .request = request, .text = text};
    struct cli_random random = cli_random_make(request->seed, CLI_STREAM_QUESTIONS);
    bool one = niah->n_queries * niah->n_values * niah->n_questions == 1;
    const char *kind = kind_name(niah->value), *s = one ? "" : "s";
    size_t keys[KEYS_MAX];
    draw_needles(&w);
    cli_task_put(text, &text->context,
                 "%s special magic %s%s %s hidden within the following text. Make sure to memorize "
                 "it. I will quiz you about the %s%s afterwards.\n",
                 one ? "A" : "Some", kind, s, one ? "is" : "are", kind, s);
    put_haystack(&w);
    cli_random_sample(&random, niah->n_keys, niah->n_queries * niah->n_questions, keys);
    for (unsigned i = 0; i < niah->n_questions; i++)
        ask(&w, keys + i * niah->n_queries);
}
