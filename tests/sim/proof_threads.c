/* usage: proof_threads SECONDS [caught]
 *
 * Four threads, each with sequences of its own, on one runtime with a file tier. A runtime belongs to one thread at a time, so a lock goes with it
 * from thread to thread, call by call, while another thread cancels what is under way. Every sequence must hold its own tokens at any time; memory and file
 * do not grow. For ThreadSanitizer, and as a soak. With `caught` the library is a broken one, and the proof must notice. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "tests/sim/history.h"

#define THREADS 4

static struct history h;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t end_ns;
static _Atomic uint64_t n_texts, n_canceled;
static _Atomic int stop;
static hr_sequence_t *volatile canceling; /* under the lock of cancel */
static pthread_mutex_t cancel_lock = PTHREAD_MUTEX_INITIALIZER;

static hr_status_t one_call(struct hri_rng *rng, hr_sequence_t *seq, struct text *text,
                            uint32_t *next)
{
    uint32_t tokens[TEXT_TOKENS], n = 1 + (uint32_t)hri_rng_below(rng, 70);
    hr_status_t status = HR_OK;
    switch (hri_rng_below(rng, 6)) {
    case 0:
        return text->n > 0 ? history_attend(seq, *next, HR_ATTEND_EXACT) : HR_OK;
    case 1:
        return text->n > 0 ? history_attend(seq, *next, HR_ATTEND_RECIPE) : HR_OK;
    case 2:
        n = (uint32_t)hri_rng_below(rng, text->n + 1);
        status = hr_sequence_truncate(seq, n);
        text->n = status == HR_OK ? n : text->n;
        return status;
    default:
        n = n < TEXT_TOKENS - text->n ? n : TEXT_TOKENS - text->n;
        for (uint32_t i = 0; i < n; i++)
            tokens[i] = (*next)++;
        status = history_append(seq, tokens, n);
        if (status == HR_OK) {
            memcpy(text->token + text->n, tokens, n * sizeof *tokens);
            text->n += n;
        }
        return status;
    }
}

/* NULL, or what went wrong. */
static const char *one_text(struct hri_rng *rng, uint32_t *next)
{
    struct text text = {0};
    hr_sequence_t *seq = NULL;
    pthread_mutex_lock(&lock);
    hr_status_t status = history_create(&h, h.rt, &seq);
    pthread_mutex_unlock(&lock);
    for (int i = 0; i < 20 && (status == HR_OK || status == HR_ERR_CANCELED); i++) {
        pthread_mutex_lock(&lock);
        pthread_mutex_lock(&cancel_lock);
        canceling = seq;
        pthread_mutex_unlock(&cancel_lock);
        status = one_call(rng, seq, &text, next);
        n_canceled += status == HR_ERR_CANCELED;
        pthread_mutex_lock(&cancel_lock);
        canceling = NULL;
        pthread_mutex_unlock(&cancel_lock);
        pthread_mutex_unlock(&lock);
    }
    bool failed = status != HR_OK && status != HR_ERR_CANCELED, same = true;
    pthread_mutex_lock(&lock);
    if (!failed && seq != NULL)
        same = history_same(&h, seq, &text);
    hr_sequence_destroy(seq);
    pthread_mutex_unlock(&lock);
    n_texts++;
    return failed ? hr_last_error() : same ? NULL : "a sequence does not hold its tokens";
}

static void *work(void *argument)
{
    static _Thread_local char wrong[512];
    struct hri_rng rng;
    uint32_t next = 1 + 1000000 * (uint32_t)(uintptr_t)argument;
    hri_rng_seed(&rng, (uint64_t)(uintptr_t)argument);
    const char *text = NULL;
    do
        text = one_text(&rng, &next);
    while (text == NULL && hri_now_ns() < end_ns);
    if (text == NULL)
        return NULL;
    snprintf(wrong, sizeof wrong, "%s", text);
    return strdup(wrong);
}

static void *cancel(void *argument)
{
    (void)argument;
    while (!stop) {
        pthread_mutex_lock(&cancel_lock);
        if (canceling != NULL)
            hr_sequence_cancel(canceling);
        pthread_mutex_unlock(&cancel_lock);
        struct timespec pause = {0, 3000000};
        nanosleep(&pause, NULL);
    }
    return NULL;
}

static struct hr_runtime_stats stats(void)
{
    struct hr_runtime_stats s = {.struct_size = sizeof s};
    (void)hr_runtime_stats_get(h.rt, &s);
    return s;
}

static const char *prove(double seconds)
{
    pthread_t ids[THREADS], canceler;
    const char *wrong = NULL;
    end_ns = hri_now_ns() + (uint64_t)(seconds * 1e9);
    if (pthread_create(&canceler, NULL, cancel, NULL) != 0)
        return "no thread";
    for (uintptr_t i = 0; i < THREADS; i++)
        if (pthread_create(&ids[i], NULL, work, (void *)(i + 1)) != 0)
            return "no thread";
    for (int i = 0; i < THREADS; i++) {
        void *text = NULL;
        pthread_join(ids[i], &text);
        wrong = text != NULL ? text : wrong;
    }
    stop = 1;
    pthread_join(canceler, NULL);
    stop = 0;
    return wrong;
}

int main(int argc, char **argv)
{
    static const hr_io_mode_t modes[] = {HR_IO_AUTO, HR_IO_THREADS};
    bool caught = argc > 2 && strcmp(argv[2], "caught") == 0;
    uint64_t n_reads = 0;
    double seconds = argc > 1 ? atof(argv[1]) : 2;
    for (int m = 0; m < 2; m++) {
        history_options(&h, hri_io_real(), m ? HISTORY_QUEST : HISTORY_HEADRACE);
        h.options.n_threads = 2;
        h.options.device_bytes = 16u << 20;
        h.options.host_bytes = 0; /* so that all that leaves the window is read from the file */
        h.options.file_dir = HR_BINARY_DIR;
        h.options.file_bytes = 32u << 20;
        h.options.io_mode = modes[m];
        h.options.io_timeout_ns = caught ? 1000000000 : 0; /* a result that was lost ends it */
        const char *wrong = history_runtime(&h, &h.rt) == HR_OK ? NULL : hr_last_error();
        if (wrong == NULL)
            wrong = prove(seconds / 8);
        struct hr_runtime_stats before = stats();
        if (wrong == NULL)
            wrong = prove(seconds * 3 / 8);
        struct hr_runtime_stats after = stats();
        if (wrong == NULL &&
            (after.tier[HR_TIER_FILE].bytes_held != 0 ||
             after.tier[HR_TIER_DEVICE].bytes_held != before.tier[HR_TIER_DEVICE].bytes_held ||
             after.tier[HR_TIER_FILE].bytes_peak > h.options.file_bytes ||
             after.scratch_bytes > before.scratch_bytes + (1u << 20)))
            wrong = "memory or file grow";
        if (wrong == NULL && after.file_reads == before.file_reads)
            wrong = "nothing was read from the file";
        n_reads += after.file_reads;
        if (wrong == NULL && hr_runtime_destroy(h.rt) != HR_OK)
            wrong = hr_last_error();
        if (wrong != NULL) {
            printf("%s: %s\n", caught ? "caught" : "FAILED", wrong);
            fflush(stdout);
            _exit(caught ? 0 : 1); /* other threads may have left anything */
        }
    }
    printf("%llu texts, %llu calls canceled, %llu reads of the file, nothing grew\n",
           (unsigned long long)n_texts, (unsigned long long)n_canceled,
           (unsigned long long)n_reads);
    return caught ? 1 : 0;
}
