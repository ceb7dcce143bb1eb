/* What the tests of whole models share: a model with a runtime and sequences, Python with NumPy,
 * .npy files. */
#ifndef HRE_TESTS_RUN_MODEL_H
#define HRE_TESTS_RUN_MODEL_H

#include <stddef.h>
#include <stdint.h>

#include "engine/engine.h"

/* Of a test that includes tests/test.h. */
#define must(expr)                                                                                 \
    do {                                                                                           \
        hr_status_t must_status = (expr);                                                          \
        if (must_status != HR_OK)                                                                  \
            fail_msg("%s gave %s: engine '%s', library '%s'", #expr, hr_status_name(must_status),  \
                     hre_last_error(), hr_last_error());                                           \
    } while (0)

#define RUN_SEQUENCES_MAX 4
#define RUN_SKIPPED       77
#define RUN_PATH_BYTES    1024

struct run {
    hre_model_t *model;
    hr_runtime_t *runtime;
    hr_sequence_t *sequences[RUN_SEQUENCES_MAX];
    hre_session_t *session;
    uint32_t n_sequences, vocab;
};

struct run_options {
    const char *model, *recipe, *cpu_level;
    double moved;
    uint32_t n_threads, n_sequences, tokens_max, chunk_tokens;
    hr_dtype_t dtype;
    int share_threads; /* the runtime has the model's */
};

/* Fails the test that calls it when something does not work. */
void run_open(struct run *run, const struct run_options *options);
void run_close(struct run *run);
uint32_t run_best(const float *logits, uint32_t vocab);
/* -log p(id) */
double run_nll(const float *logits, uint32_t vocab, uint32_t id);

/* Path of the 98 MB model in the cache; 0 if it is not there (the reason is printed). */
int run_find_model(char path[RUN_PATH_BYTES]);
/* Prints why and returns NULL where no Python with NumPy can be found; HEADRACE_PYTHON, python3,
 * /usr/bin/python3. */
const char *run_python(void);
/* Runs a command of printf form; returns its exit status. */
int run_command(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* The floats of a little-endian float32 .npy file and their number; NULL on failure. The caller
 * frees. */
float *run_read_npy(const char *path, size_t *count_out);
/* A file of a test's own in the temporary folder. */
void run_temp_path(char path[RUN_PATH_BYTES], const char *name);
int run_write_ids(const char *path, const uint32_t *ids, uint32_t n);
int run_write_file(const char *path, const void *data, size_t bytes);

#endif
