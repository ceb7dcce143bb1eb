/* usage: proof_kill KILLS [SEED] [caught]
 *
 * A process that appends, saves and opens without end is killed (SIGKILL) at random moments. Afterwards the folder holds a session that verify
 * finds whole, that can be opened at once, and that has the tokens of one of its saves: at least those of the last one that the process had seen
 * succeed. With `caught` the library is a broken one, and the proof must notice. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tests/sim/history.h"

static struct history h;
static char dir[1024];
/* Shared with the child: the largest number of a save that succeeded. A save's number is its number of tokens. */
static volatile uint32_t *saved;

static void text_fill(struct text *text, uint32_t n)
{
    for (text->n = 0; text->n < n; text->n++)
        text->token[text->n] = 1 + text->n;
}

static void child(uint32_t n)
{
    struct hr_save_options save;
    struct text text;
    text_fill(&text, TEXT_TOKENS);
    hr_save_options_init(&save);
    if (history_runtime(&h, &h.rt) != HR_OK)
        _exit(2);
    hr_status_t status =
        n == 0 ? history_create(&h, h.rt, &h.seq) : history_open(&h, h.rt, dir, &h.seq);
    for (; status == HR_OK && n < TEXT_TOKENS; n++) {
        save.durability = n % 2 ? HR_DURABILITY_NONE : HR_DURABILITY_RELAXED;
        status = history_append(h.seq, text.token + n, 1);
        if (status == HR_OK)
            status = hr_sequence_save(h.seq, dir, &save);
        if (status == HR_OK)
            *saved = n + 1;
        if (status == HR_OK && n % 3 == 0) {
            hr_sequence_destroy(h.seq);
            status = history_open(&h, h.rt, dir, &h.seq);
        }
    }
    if (status != HR_OK)
        fprintf(stderr, "child: %s\n", hr_last_error());
    _exit(status == HR_OK ? 0 : 3);
}

/* NULL: as promised; *n_out: tokens that are there. */
static const char *check(uint32_t *n_out)
{
    struct hr_session_check verified = {.struct_size = sizeof verified};
    struct text text;
    hr_sequence_t *seq = NULL;
    if (*saved == 0 && hr_session_verify(dir, &verified) == HR_ERR_NOTFOUND)
        return NULL;
    if (hr_session_verify(dir, &verified) != HR_OK || history_runtime(&h, &h.rt) != HR_OK ||
        history_open(&h, h.rt, dir, &seq) != HR_OK)
        return hr_last_error();
    *n_out = hr_sequence_length(seq, 0);
    text_fill(&text, *n_out);
    bool same = history_same(&h, seq, &text);
    hr_sequence_destroy(seq);
    (void)hr_runtime_destroy(h.rt);
    if (*n_out < *saved)
        return "a save that had succeeded is gone";
    return same ? NULL : "what was opened is not what was saved";
}

int main(int argc, char **argv)
{
    bool caught = argc > 3 && strcmp(argv[3], "caught") == 0;
    long kills = argc > 1 ? atol(argv[1]) : 20;
    struct hri_rng rng;
    uint32_t n = 0, longest = 0;
    const char *wrong = NULL;
    hri_rng_seed(&rng, argc > 2 ? strtoull(argv[2], NULL, 0) : 1);
    snprintf(dir, sizeof dir, "%s/proof-kill-%ld", HR_BINARY_DIR, (long)getpid());
    saved = mmap(NULL, sizeof *saved, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    history_options(&h, hri_io_real(), HISTORY_HEADRACE);
    long alive = 0;
    for (long i = 0; i < kills && wrong == NULL; i++) {
        pid_t pid = fork();
        if (pid == 0)
            child(n);
        struct timespec pause = {0, 500000 + (long)hri_rng_below(&rng, 60000000)};
        nanosleep(&pause, NULL);
        int status = 0;
        kill(pid, SIGKILL);
        waitpid(pid, &status, 0);
        alive += WIFSIGNALED(status) != 0;
        if (!WIFSIGNALED(status) && WEXITSTATUS(status) != 0)
            wrong = "the process failed before it was killed";
        else
            wrong = check(&n);
        longest = n > longest ? n : longest;
        if (n == TEXT_TOKENS) { /* from the beginning */
            (void)hr_session_remove(dir);
            n = *saved = 0;
        }
    }
    (void)hr_session_remove(dir);
    if (wrong != NULL) {
        printf("%s at %u tokens: %s\n", caught ? "caught" : "FAILED", n, wrong);
        return caught ? 0 : 1;
    }
    printf("%ld of %ld processes were killed at work, texts of up to %u saves; every session is "
           "whole\n",
           alive, kills, longest);
    return caught ? 1 : 0;
}
