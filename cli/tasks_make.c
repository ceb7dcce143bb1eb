#include "cli/tasks_make.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---------------------------------------------------------------------------------- random numbers */

uint64_t cli_random_u64(struct cli_random *random)
{
    uint64_t z = random->state += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

struct cli_random cli_random_make(uint64_t seed, enum cli_stream stream)
{
    struct cli_random random = {seed};
    random.state = cli_random_u64(&random) + (uint64_t)stream * 0xD1B54A32D192ED03u;
    random.state = cli_random_u64(&random);
    return random;
}

uint64_t cli_random_below(struct cli_random *random, uint64_t bound)
{
    uint64_t reject_below = -bound % bound, value;
    do {
        value = cli_random_u64(random);
    } while (value < reject_below);
    return value % bound;
}

void cli_random_sample(struct cli_random *random, size_t bound, size_t n, size_t *out)
{
    for (size_t i = 0; i < n; i++) {
        bool again;
        do {
            out[i] = (size_t)cli_random_below(random, bound);
            again = false;
            for (size_t j = 0; j < i && !again; j++)
                again = out[j] == out[i];
        } while (again);
    }
}

void cli_random_shuffle(struct cli_random *random, size_t *items, size_t n)
{
    for (size_t i = n; i > 1; i--) {
        size_t j = (size_t)cli_random_below(random, i), kept = items[i - 1];
        items[i - 1] = items[j];
        items[j] = kept;
    }
}

void cli_uuid(struct cli_random *random, char text[static 37])
{
    uint64_t high = cli_random_u64(random), low = cli_random_u64(random);
    high = (high & ~(uint64_t)0xf000) | 0x4000;             /* version 4 */
    low = (low & ~((uint64_t)3 << 62)) | (uint64_t)1 << 63; /* variant 1 */
    snprintf(text, 37, "%08x-%04x-%04x-%04x-%012llx", (unsigned)(high >> 32),
             (unsigned)(high >> 16 & 0xffff), (unsigned)(high & 0xffff), (unsigned)(low >> 48),
             (unsigned long long)(low & 0xffffffffffff));
}

/* -------------------------------------------------------------------------------------------- text */

void cli_task_put_bytes(struct cli_task_text *text, struct hre_bytes *to, const char *data,
                        size_t n)
{
    if (!text->failed && hre_bytes_append(to, data, n) != HR_OK)
        text->failed = true;
}

void cli_task_put(struct cli_task_text *text, struct hre_bytes *to, const char *format, ...)
{
    char line[1024]; /* longer than any format with its words */
    va_list list;
    va_start(list, format);
    int n = vsnprintf(line, sizeof line, format, list);
    va_end(list);
    if (n < 0 || (size_t)n >= sizeof line)
        text->failed = true;
    else
        cli_task_put_bytes(text, to, line, (size_t)n);
}

struct cli_task_question *cli_task_ask(struct cli_task_text *text)
{
    return &text->question[text->n_questions++];
}

void cli_task_reference(struct cli_task_question *question, const char *reference)
{
    struct cli_references *r = &question->references;
    snprintf(r->text[r->n++], sizeof r->text[0], "%s", reference);
}

void cli_task_evidence(struct cli_task_text *text, struct cli_task_question *question,
                       struct cli_span span)
{
    if (question->n_evidence == question->evidence_capacity) {
        size_t capacity = question->evidence_capacity ? 2 * question->evidence_capacity : 8;
        struct cli_span *larger = realloc(question->evidence, capacity * sizeof *larger);
        if (!larger) {
            text->failed = true;
            return;
        }
        question->evidence = larger;
        question->evidence_capacity = capacity;
    }
    question->evidence[question->n_evidence++] = span;
}

void *cli_task_allocate(struct cli_task_text *text, size_t n, size_t bytes)
{
    void *memory = calloc(n ? n : 1, bytes);
    if (!memory)
        text->failed = true;
    return memory;
}

void cli_task_text_fini(struct cli_task_text *text)
{
    hre_bytes_fini(&text->context);
    for (size_t i = 0; i < CLI_TASK_QUESTIONS_MAX; i++) {
        hre_bytes_fini(&text->question[i].text);
        hre_bytes_fini(&text->question[i].prefix);
        free(text->question[i].evidence);
    }
    memset(text, 0, sizeof *text);
}
