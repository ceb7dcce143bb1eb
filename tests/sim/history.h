/* Random histories of a sequence on a simulated disk, with a naive model beside it: which token is where, and which states each folder may
 * hold after a power cut. */
#ifndef HR_TESTS_SIM_HISTORY_H
#define HR_TESTS_SIM_HISTORY_H

#include <headrace/headrace.h>

#include "base/rng.h"
#include "tests/sim/sim_disk.h"

#define TEXT_TOKENS 400
/* Windows and segments so small that texts of this length have blocks and rows that lie nowhere but in the store. */
#define HISTORY_SMALL    ":window=16,decode_segment=32"
#define HISTORY_HEADRACE "headrace" HISTORY_SMALL
#define HISTORY_QUEST    "quest" HISTORY_SMALL
#define HISTORY_FULL     "full" HISTORY_SMALL
#define HISTORY_DIRS     2
#define HISTORY_STATES   24

/* A text: what its tokens are; a token's rows and query follow from its number. */
struct text {
    uint32_t n, token[TEXT_TOKENS];
};

struct folder_model {
    struct text states[HISTORY_STATES]; /* any of these may be there */
    uint32_t n_states;
    bool maybe_nothing; /* no session at all */
    bool
        maybe_damaged; /* a save without durability was interrupted by the cut: the open must say so */
};

struct history {
    struct sim_disk disk;
    const struct hri_io_ops *io; /* of the runtime: the disk's */
    struct hr_runtime_options options;
    struct hri_rng rng;
    hr_runtime_t *rt;
    hr_sequence_t *seq; /* NULL: none */
    struct text text;
    struct folder_model folders[HISTORY_DIRS];
    uint32_t next_token;
    const char *recipe;
    char error[512]; /* what is wrong with the library, "": nothing */
};

/* All of it on a disk of this seed. False: see error. */
bool history_begin(struct history *h, uint64_t seed);
void history_end(struct history *h);
/* One random step: append, fork, truncate, save, open, attend. False when the disk is off, or error is set. */
bool history_step(struct history *h);
/* After sim_power_cut: a new runtime opens every folder; what it finds must be one of the states. */
bool history_check(struct history *h);
/* The sequence attends to exactly these tokens. */
bool history_same(struct history *h, hr_sequence_t *seq, const struct text *text);
const char *history_dir(uint32_t i);

/* Parts of it, for scripts. */
void history_options(struct history *h, const struct hri_io_ops *io, const char *recipe);
hr_status_t history_runtime(const struct history *h, hr_runtime_t **rt_out);
hr_status_t history_create(const struct history *h, hr_runtime_t *rt, hr_sequence_t **seq_out);
hr_status_t history_open(const struct history *h, hr_runtime_t *rt, const char *dir,
                         hr_sequence_t **seq_out);
hr_status_t history_append(hr_sequence_t *seq, const uint32_t *tokens, uint32_t n);
hr_status_t history_attend(hr_sequence_t *seq, uint32_t token, hr_attend_mode_t mode);

#endif
