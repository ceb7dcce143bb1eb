/* usage: proof_power_cut CUTS [SEED] [caught]
 *
 * Power is cut at random calls of random histories of append, save, fork, truncate and open; whatever the disk then holds, every folder has one of
 * the sessions that the naive model allows, whole, or an open that says that it is damaged where the mode allows damage. With `caught` the library
 * is a broken one, and the proof must notice. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/sim/history.h"

#define STEPS 14

static struct history history;

/* A run without a cut says how many calls there are. */
static uint64_t calls_of(uint64_t seed)
{
    uint64_t n = 0;
    if (history_begin(&history, seed))
        for (int i = 0; i < STEPS && history_step(&history); i++)
            continue;
    n = history.disk.n_calls;
    history_end(&history);
    return history.error[0] ? 0 : n;
}

static void cut(uint64_t seed, uint64_t at)
{
    if (history_begin(&history, seed)) {
        history.disk.cut_at = at;
        for (int i = 0; i < STEPS && history_step(&history); i++)
            continue;
        if (history.error[0] == '\0') {
            sim_power_cut(&history.disk);
            (void)history_check(&history);
        }
    }
    history_end(&history);
}

int main(int argc, char **argv)
{
    long cuts = argc > 1 ? atol(argv[1]) : 500;
    uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 0) : 1;
    bool caught = argc > 3 && strcmp(argv[3], "caught") == 0;
    struct hri_rng rng;
    hri_rng_seed(&rng, seed);
    for (long i = 0; i < cuts; seed++) {
        uint64_t n = calls_of(seed), at = 0;
        /* Up to 8 cuts of a history. */
        for (int c = 0; c < 8 && i < cuts && n > 0 && history.error[0] == '\0'; c++, i++) {
            at = 1 + hri_rng_below(&rng, n);
            cut(seed, at);
        }
        if (history.error[0] != '\0') {
            printf("%s: seed %llu, call %llu of %llu: %s\n", caught ? "caught" : "FAILED",
                   (unsigned long long)seed, (unsigned long long)at, (unsigned long long)n,
                   history.error);
            return caught ? 0 : 1;
        }
    }
    printf("%ld cuts, all as promised\n", cuts);
    return caught ? 1 : 0;
}
