/* usage: proof_nth [SIZE] [caught]
 *
 * A scripted session in which the n-th allocation, call of the disk, thread creation or registration fails, for every n: the call says so, the same
 * call works when it is made again, and what is there at the end is what the script put there. Calls of the disk fail in each way of the fault
 * table; short transfers and EINTR must not be noticed at all. */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/sim/history.h"

#define TRIES 3

static struct history h;
static uint32_t script_tokens = 150;

/* ------------------------------------------------------------------------------------- hooks */

static int64_t alloc_left = -1; /* allocations until the one that fails; < 0: none does */
static int64_t alloc_live, n_refused;

static void *hook_alloc(void *ctx, size_t bytes, size_t alignment)
{
    void *p;
    (void)ctx;
    if (alloc_left >= 0 && alloc_left-- == 0) {
        n_refused++;
        return NULL;
    }
    if (posix_memalign(&p, alignment < 16 ? 16 : alignment, bytes) != 0)
        return NULL;
    alloc_live++;
    return p;
}

static void hook_free(void *ctx, void *p)
{
    (void)ctx;
    alloc_live -= p != NULL;
    free(p);
}

static _Atomic int64_t thread_left = -1;
int __real_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*fn)(void *),
                          void *argument);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*fn)(void *),
                          void *argument);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*fn)(void *),
                          void *argument)
{
    if (thread_left >= 0 && thread_left-- == 0) {
        n_refused++;
        return EAGAIN;
    }
    return __real_pthread_create(thread, attr, fn, argument);
}

static int64_t register_left = -1;

static int real_ring_create(void *ctx, const struct hri_ring_options *options, void **ring_out)
{
    (void)ctx;
    if (register_left >= 0 && register_left-- == 0) {
        n_refused++;
        return -ENOMEM;
    }
    return hri_io_real()->ring_create(NULL, options, ring_out);
}

static int real_ring_register(void *ctx, void *ring, uint32_t slot, void *base, size_t bytes)
{
    (void)ctx;
    if (register_left >= 0 && register_left-- == 0) {
        n_refused++;
        return -ENOMEM;
    }
    return hri_io_real()->ring_register(NULL, ring, slot, base, bytes);
}

/* ------------------------------------------------------------------------------------ script */

/* The call, and once more where it may have failed for the fault. Then it must not fail again. */
#define TRY(call)                                                                                  \
    do {                                                                                           \
        hr_status_t try_status = HR_OK;                                                            \
        for (int try_n = 0; try_n < TRIES; try_n++) {                                              \
            try_status = (call);                                                                   \
            if (try_status == HR_OK)                                                               \
                break;                                                                             \
            n_failed++;                                                                            \
            if (hr_last_error()[0] == '\0')                                                        \
                return "a failure without a message";                                              \
        }                                                                                          \
        if (try_status != HR_OK)                                                                   \
            return hr_last_error();                                                                \
    } while (0)

static uint64_t n_failed; /* calls */

static hr_status_t append_new(struct text *text, hr_sequence_t *seq, uint32_t n)
{
    uint32_t tokens[TEXT_TOKENS];
    for (uint32_t i = 0; i < n; i++)
        tokens[i] = text->n + i + 1;
    hr_status_t status = history_append(seq, tokens, n);
    if (status != HR_OK)
        return hr_sequence_length(seq, 0) == text->n ? status : HR_ERR_INTERNAL;
    memcpy(text->token + text->n, tokens, n * sizeof *tokens);
    text->n += n;
    return HR_OK;
}

/* NULL: as it should be. */
static const char *script(bool sessions)
{
    struct text text = {0};
    hr_sequence_t *fork = NULL, *opened = NULL;
    struct hr_save_options save;
    hr_save_options_init(&save);
    save.durability = HR_DURABILITY_STRICT;
    n_failed = 0;
    TRY(history_runtime(&h, &h.rt));
    TRY(history_create(&h, h.rt, &h.seq));
    for (uint32_t i = 0; i < 2; i++)
        TRY(append_new(&text, h.seq, script_tokens / 2));
    TRY(hr_sequence_settle(h.seq, 0));
    TRY(history_attend(h.seq, 3, HR_ATTEND_RECIPE));
    TRY(history_attend(h.seq, 4, HR_ATTEND_EXACT));
    TRY(hr_sequence_fork(h.seq, &fork));
    hr_sequence_destroy(fork);
    text.n -= 20;
    TRY(hr_sequence_truncate(h.seq, text.n));
    TRY(append_new(&text, h.seq, 40));
    if (sessions) {
        TRY(hr_sequence_save(h.seq, history_dir(0), &save));
        TRY(append_new(&text, h.seq, 10));
        TRY(hr_sequence_save(h.seq, history_dir(0), &save));
        TRY(history_open(&h, h.rt, history_dir(0), &opened));
        bool same = history_same(&h, opened, &text);
        hr_sequence_destroy(opened);
        if (!same)
            return "what was opened is not what was saved";
    }
    return history_same(&h, h.seq, &text) ? NULL : "the sequence is not what was put there";
}

static const char *script_run(bool sessions)
{
    const char *wrong = script(sessions);
    hr_sequence_destroy(h.seq);
    h.seq = NULL;
    if (hr_runtime_destroy(h.rt) != HR_OK && wrong == NULL)
        wrong = hr_last_error();
    h.rt = NULL;
    return wrong;
}

static int report(const char *what, uint64_t n, const char *how, const char *wrong, bool caught)
{
    printf("%s: %s %llu%s%s: %s\n", caught ? "caught" : "FAILED", what, (unsigned long long)n,
           how[0] ? " with " : "", how, wrong);
    return caught ? 0 : 1;
}

/* ------------------------------------------------------------------------------------- proofs */

static const char *prove_allocations(uint64_t *n_out)
{
    static const char *const recipes[] = {HISTORY_HEADRACE, HISTORY_QUEST, HISTORY_FULL};
    const char *wrong = NULL;
    uint64_t total = 0;
    for (int r = 0; r < 3 && wrong == NULL; r++)
        for (*n_out = 0; wrong == NULL; ++*n_out) {
            memset(&h, 0, sizeof h);
            sim_init(&h.disk, 1);
            sim_add_rings(&h.disk);
            history_options(&h, &h.disk.ops, recipes[r]);
            h.options.alloc = hook_alloc;
            h.options.free = hook_free;
            alloc_live = n_refused = 0;
            alloc_left = (int64_t)*n_out;
            wrong = script_run(true);
            sim_fini(&h.disk);
            alloc_left = -1;
            if (wrong == NULL && alloc_live != 0)
                wrong = "memory was not freed";
            total++;
            if (n_refused == 0)
                break;
        }
    if (wrong == NULL)
        printf("%llu allocations failed, one at a time\n", (unsigned long long)total - 3);
    return wrong;
}

static const char *prove_io(bool rings, uint64_t *n_out, const char **how_out)
{
    static const char *const names[SIM_FAULTS] = {"",    "a short transfer", "EINTR", "EAGAIN",
                                                  "EIO", "ENOSPC",           "EDQUOT"};
    const char *wrong = NULL;
    uint64_t total = 0;
    for (int fault = SIM_SHORT; fault < SIM_FAULTS && wrong == NULL; fault++)
        for (*n_out = 1; wrong == NULL; ++*n_out) {
            *how_out = names[fault];
            memset(&h, 0, sizeof h);
            sim_init(&h.disk, 1);
            if (rings)
                sim_add_rings(&h.disk);
            history_options(&h, &h.disk.ops, HISTORY_HEADRACE);
            h.disk.fault = (enum sim_fault)fault;
            h.disk.fault_at = *n_out;
            h.disk.fault_count = 1;
            wrong = script_run(true);
            uint64_t faults = h.disk.n_faults;
            sim_fini(&h.disk);
            if (wrong == NULL && fault == SIM_SHORT && n_failed > 0)
                wrong = "a call failed for a short transfer";
            total++;
            if (faults == 0)
                break;
        }
    if (wrong == NULL)
        printf("%llu calls of the disk failed, one at a time%s\n",
               (unsigned long long)total - (SIM_FAULTS - 1), rings ? ", through rings" : "");
    return wrong;
}

/* Threads of the pool and of the disk; rings and registered memory. */
static const char *prove_threads_and_rings(uint64_t *n_out)
{
    static struct hri_io_ops io;
    const char *wrong = NULL;
    uint64_t total = 0;
    io = *hri_io_real();
    io.ring_create = real_ring_create;
    io.ring_register = real_ring_register;
    for (int rings = 0; rings < 2 && wrong == NULL; rings++)
        for (*n_out = 0; wrong == NULL; ++*n_out) {
            memset(&h, 0, sizeof h);
            history_options(&h, &io, HISTORY_HEADRACE);
            h.options.n_threads = 3;
            h.options.host_bytes = 64u << 10;
            h.options.file_dir = HR_BINARY_DIR;
            h.options.file_bytes = 16u << 20;
            h.options.io_mode = rings ? HR_IO_AUTO : HR_IO_THREADS;
            n_refused = 0;
            *(rings ? &register_left : (int64_t *)(void *)&thread_left) = (int64_t)*n_out;
            wrong = script_run(false);
            thread_left = register_left = -1;
            if (wrong == NULL && rings && n_failed > 0)
                wrong = "a call failed though there are other ways";
            total++;
            if (n_refused == 0)
                break;
        }
    if (wrong == NULL)
        printf("%llu threads and registrations were refused, one at a time\n",
               (unsigned long long)total - 2);
    return wrong;
}

int main(int argc, char **argv)
{
    bool caught = argc > 2 && strcmp(argv[2], "caught") == 0;
    const char *how = "";
    uint64_t n = 0;
    if (argc > 1)
        script_tokens = (uint32_t)atol(argv[1]);
    const char *wrong = prove_io(false, &n, &how);
    if (wrong == NULL)
        wrong = prove_io(true, &n, &how);
    if (wrong != NULL)
        return report("call of the disk", n, how, wrong, caught);
    if (caught)
        return 1;
    wrong = prove_allocations(&n);
    if (wrong != NULL)
        return report("allocation", n, "", wrong, false);
    wrong = prove_threads_and_rings(&n);
    return wrong != NULL ? report("thread or registration", n, "", wrong, false) : 0;
}
