#include "tests/engine/run_model.h"

#include "tests/test.h"

#include <math.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define MODEL "SmolLM2-135M-Instruct.Q4_1.gguf"

void run_open(struct run *run, const struct run_options *o)
{
    struct hre_model_options model;
    struct hr_runtime_options runtime;
    struct hr_sequence_options sequence;
    struct hre_session_options session;

    memset(run, 0, sizeof(*run));
    hre_model_options_init(&model);
    model.n_threads = o->n_threads;
    model.cpu_level = o->cpu_level;
    must(hre_model_open(o->model, &model, &run->model));
    hr_runtime_options_init(&runtime);
    runtime.n_threads = o->n_threads;
    if (o->share_threads) {
        hre_model_runtime_options(run->model, &runtime);
    }
    must(hr_runtime_create(&runtime, &run->runtime));
    hr_sequence_options_init(&sequence);
    hre_model_sequence_options(run->model, &sequence);
    sequence.tokens_max = o->tokens_max;
    sequence.recipe = o->recipe ? o->recipe : "full";
    sequence.dtype = o->dtype;
    if (o->moved > 0.0) {
        sequence.moved = o->moved;
    }
    run->n_sequences = o->n_sequences ? o->n_sequences : 1;
    for (uint32_t i = 0; i < run->n_sequences; i++) {
        must(hr_sequence_create(run->runtime, &sequence, &run->sequences[i]));
    }
    hre_session_options_init(&session);
    session.sequences = run->sequences;
    session.n_sequences = run->n_sequences;
    session.tokens_max = o->tokens_max;
    session.chunk_tokens = o->chunk_tokens ? o->chunk_tokens : session.chunk_tokens;
    must(hre_session_create(run->model, &session, &run->session));
    run->vocab = hre_model_info(run->model)->vocab;
}

void run_close(struct run *run)
{
    hre_session_destroy(run->session);
    for (uint32_t i = 0; i < run->n_sequences; i++) {
        hr_sequence_destroy(run->sequences[i]);
    }
    must(hr_runtime_destroy(run->runtime));
    hre_model_close(run->model);
}

uint32_t run_best(const float *logits, uint32_t vocab)
{
    uint32_t best = 0;

    for (uint32_t i = 1; i < vocab; i++) {
        best = logits[i] > logits[best] ? i : best;
    }
    return best;
}

double run_nll(const float *logits, uint32_t vocab, uint32_t id)
{
    double largest = (double)logits[run_best(logits, vocab)], sum = 0.0;

    for (uint32_t i = 0; i < vocab; i++) {
        sum += exp((double)logits[i] - largest);
    }
    return log(sum) + largest - (double)logits[id];
}

int run_find_model(char path[RUN_PATH_BYTES])
{
    const char *cache = getenv("HEADRACE_CACHE"), *home = getenv("HOME");

    if (cache && cache[0]) {
        snprintf(path, RUN_PATH_BYTES, "%s/%s", cache, MODEL);
    } else {
        snprintf(path, RUN_PATH_BYTES, "%s/.cache/headrace/%s", home ? home : "", MODEL);
    }
    if (access(path, R_OK) == 0) {
        return 1;
    }
    printf("skipped: %s is not there (tools/fetch_model.sh gets it)\n", path);
    return 0;
}

int run_command(const char *format, ...)
{
    char command[4 * RUN_PATH_BYTES];
    va_list args;

    va_start(args, format);
    vsnprintf(command, sizeof(command), format, args);
    va_end(args);
    fflush(NULL);
    int result = system(command);
    return WIFEXITED(result) ? WEXITSTATUS(result) : -1;
}

const char *run_python(void)
{
    const char *choices[] = {getenv("HEADRACE_PYTHON"), "python3", "/usr/bin/python3"};

    for (size_t i = 0; i < sizeof(choices) / sizeof(choices[0]); i++) {
        if (choices[i] && choices[i][0] &&
            run_command("'%s' -c 'import numpy' >/dev/null 2>&1", choices[i]) == 0) {
            return choices[i];
        }
    }
    printf("skipped: no Python with NumPy (HEADRACE_PYTHON, python3, /usr/bin/python3)\n");
    return NULL;
}

float *run_read_npy(const char *path, size_t *count_out)
{
    unsigned char head[10];
    FILE *file = fopen(path, "rb");
    struct stat info;
    float *values = NULL;

    if (!file) {
        return NULL;
    }
    if (fread(head, 1, 10, file) == 10 && memcmp(head, "\x93NUMPY\1", 7) == 0 &&
        fstat(fileno(file), &info) == 0) {
        long start = 10 + head[8] + 256L * head[9];

        *count_out = ((size_t)info.st_size - (size_t)start) / sizeof(float);
        values = malloc(*count_out * sizeof(float));
        if (fseek(file, start, SEEK_SET) != 0 ||
            fread(values, sizeof(float), *count_out, file) != *count_out) {
            free(values);
            values = NULL;
        }
    }
    fclose(file);
    return values;
}

void run_temp_path(char path[RUN_PATH_BYTES], const char *name)
{
    const char *folder = getenv("TMPDIR");

    snprintf(path, RUN_PATH_BYTES, "%s/headrace-%ld-%s", folder && folder[0] ? folder : "/tmp",
             (long)getpid(), name);
}

int run_write_ids(const char *path, const uint32_t *ids, uint32_t n)
{
    FILE *file = fopen(path, "w");

    if (!file) {
        return -1;
    }
    for (uint32_t i = 0; i < n; i++) {
        fprintf(file, "%u\n", ids[i]);
    }
    return fclose(file);
}

int run_write_file(const char *path, const void *data, size_t bytes)
{
    FILE *file = fopen(path, "wb");

    if (!file) {
        return -1;
    }
    size_t written = fwrite(data, 1, bytes, file);
    return fclose(file) == 0 && written == bytes ? 0 : -1;
}
