/* Calls of the disk that never come back: each one of every operation on a session and of the file tier in turn. The operation ends with one error
 * that names the call and the folder; the old session or the new one is there, whole; nobody gets the folder before the call has returned;
 * sequences, runtimes and their other work go on and end. Then the call returns after all, and what it still does harms nothing. */
#include "tests/test.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "runtime/saved.h"
#include "tests/offload/fault_io.h"
#include "tests/runtime/naive.h"

enum { KV = 2, D = 16, OLD = 200, NEW = 280, TOKENS_MAX = 4000 };
#define END_NS 200000000u /* a call has so long: 2 T */
/* Under a sanitizer, on a busy machine: still far from for ever. */
#define MUCH_LATER_NS 20000000000u

static const struct shape shape = {
    .n_layers = 1, .n_q = KV, .n_kv = KV, .dk = D, .dv = D, .dtype = HR_DTYPE_BF16};
static float *k_rows, *v_rows, *q_rows;
static bool hung_once[CALLS];

/* What is there for the others: a runtime with a disk in order. */
static hr_runtime_t *good;
static char dir[400];

static void nap_ms(long ms)
{
    struct timespec pause = {0, ms * 1000000};
    nanosleep(&pause, NULL);
}

/* Names, not bytes, are what is looked at: they need no disk. */
static const char *names_dir(void)
{
    return access("/dev/shm", W_OK | X_OK) == 0 ? "/dev/shm" : disk_dir();
}

static hr_sequence_t *sequence_make(hr_runtime_t *rt, uint32_t n)
{
    struct hr_sequence_options o;
    hr_sequence_t *seq = NULL;
    options_for(&shape, TOKENS_MAX, "headrace:window=64,decode_segment=64", 0.1, &o);
    assert_ok(hr_sequence_create(rt, &o, &seq));
    assert_ok(rows_append(seq, &shape, 0, k_rows, v_rows, 0, n));
    return seq;
}

static hr_runtime_t *runtime_on(const struct fault_io *io)
{
    struct hr_runtime_options o;
    hr_runtime_t *rt = NULL;
    hr_runtime_options_init(&o);
    o.device_bytes = o.host_bytes = 16u << 20;
    o.n_threads = 1;
    assert_ok(hri_runtime_create(&o, &io->ops, &rt));
    return rt;
}

static hr_status_t save_to(hr_sequence_t *seq, const char *path, hr_durability_t durability)
{
    struct hr_save_options o;
    hr_save_options_init(&o);
    o.durability = durability;
    return hr_sequence_save(seq, path, &o);
}

static hr_status_t open_from(hr_runtime_t *rt, hr_sequence_t **seq_out)
{
    struct hr_sequence_options o;
    options_for(&shape, TOKENS_MAX, NULL, 0.1, &o);
    return hr_sequence_open(rt, dir, &o, NULL, seq_out);
}

/* The old session, without anything beside it. */
static void folder_reset(void)
{
    hr_status_t status = hr_session_remove(dir);
    assert_true(status == HR_OK || status == HR_ERR_NOTFOUND);
    hr_sequence_t *seq = sequence_make(good, OLD);
    assert_ok(save_to(seq, dir, HR_DURABILITY_NONE));
    hr_sequence_destroy(seq);
}

enum what {
    SAVE_NONE,
    SAVE_RELAXED,
    SAVE_STRICT,
    SAVE_HOME,
    SAVE_PLAIN,
    CLAIM,
    CLAIM_NEW,
    OPEN,
    LEAVE,
    LEAVE_NEW, /* a folder that was claimed and never saved to */
    INFO,
    VERIFY,
    REMOVE,
    REMOVE_LEFT, /* what a first save that failed has left */
    WHATS
};

struct case_of {
    struct fault_io *io;
    hr_runtime_t *rt;
    hr_sequence_t *seq, *other, *opened;
};

/* Before anything hangs. */
static void case_begin(struct case_of *c, enum what what)
{
    *c = (struct case_of){.io = fault_io_make()};
    c->io->ops.call_timeout_ns = END_NS;
    if (what == SAVE_PLAIN || what == VERIFY) { /* one transfer after the other */
        c->io->ops.ring_create = NULL;
        c->io->transfers_are_calls = true;
    }
    c->io->no_direct = what == SAVE_RELAXED;
    if (what == CLAIM_NEW || what == LEAVE_NEW)
        assert_ok(hr_session_remove(dir));
    if (what == REMOVE_LEFT) {
        char path[450];
        snprintf(path, sizeof path, "%s/session", dir);
        assert_int_equal(unlink(path), 0);
    }
    c->rt = runtime_on(c->io);
    if (what == SAVE_HOME || what == LEAVE) {
        assert_ok(open_from(c->rt, &c->seq));
        assert_ok(rows_append(c->seq, &shape, 0, k_rows, v_rows, OLD, NEW - OLD));
    } else {
        c->seq = sequence_make(c->rt, NEW);
    }
    if (what == LEAVE_NEW)
        assert_ok(hr_sequence_claim(c->seq, dir));
    c->other = sequence_make(c->rt, OLD);
}

static hr_status_t case_run(struct case_of *c, enum what what)
{
    struct hr_session_info info = {.struct_size = sizeof info};
    struct hr_session_check check = {.struct_size = sizeof check};
    switch (what) {
    case SAVE_NONE:
        return save_to(c->seq, dir, HR_DURABILITY_NONE);
    case SAVE_RELAXED:
    case SAVE_PLAIN:
        return save_to(c->seq, dir, HR_DURABILITY_RELAXED);
    case SAVE_STRICT:
    case SAVE_HOME:
        return save_to(c->seq, dir, HR_DURABILITY_STRICT);
    case CLAIM:
    case CLAIM_NEW:
        return hr_sequence_claim(c->seq, dir);
    case OPEN:
        return open_from(c->rt, &c->opened);
    case LEAVE:
    case LEAVE_NEW:
        hr_sequence_destroy(c->seq);
        c->seq = NULL;
        return HR_OK;
    case INFO:
        return hri_session_info_get(&c->io->ops, dir, &info);
    case VERIFY:
        return hri_session_verify(&c->io->ops, dir, &check);
    case REMOVE:
    case REMOVE_LEFT:
        return hri_session_remove(&c->io->ops, dir);
    default:
        return HR_ERR_INTERNAL;
    }
}

static bool has_none(enum what what)
{
    return what >= REMOVE || what == CLAIM_NEW || what == LEAVE_NEW;
}

/* The old session or the new one; none at all where there was none or it was to be removed. */
static void check_whole(enum what what)
{
    struct hr_session_check check = {.struct_size = sizeof check};
    struct hr_session_info info = {.struct_size = sizeof info};
    hr_status_t status = hr_session_verify(dir, &check);
    if (has_none(what) && status == HR_ERR_NOTFOUND)
        return;
    assert_ok(status);
    assert_ok(hr_session_info_get(dir, &info));
    assert_true(info.n_tokens == OLD || info.n_tokens == NEW);
}

/* Who was stopped inside of a change has the folder until it is done. */
static void check_locked(enum what what, int call)
{
    bool changes = what <= CLAIM_NEW || what == LEAVE_NEW || what >= REMOVE;
    if (!changes || (call != CALL_RENAME && call != CALL_REMOVE && call != CALL_SYNC))
        return;
    hr_sequence_t *seq = sequence_make(good, OLD);
    char words[40];
    snprintf(words, sizeof words, "in use by process %d", (int)getpid());
    assert_fails(save_to(seq, dir, HR_DURABILITY_NONE), HR_ERR_BUSY, words);
    hr_sequence_destroy(seq);
}

static void check_goes_on(struct case_of *c)
{
    static float out[KV * D];
    assert_ok(rows_append(c->other, &shape, 0, k_rows, v_rows, OLD, 40));
    assert_ok(
        queries_attend(c->other, &shape, 0, HR_ATTEND_RECIPE, q_rows, OLD + 39, 1, out, NULL));
    assert_ok(queries_attend(c->other, &shape, 0, HR_ATTEND_EXACT, q_rows, OLD + 39, 1, out, NULL));
}

/* Within a while the folder can be had, and saved to; the answer has changed nothing that it should not. */
static void check_after(enum what what)
{
    hr_sequence_t *seq = sequence_make(good, NEW);
    hr_status_t status = HR_ERR_BUSY;
    /* A folder that is being removed may go between its opening and its locking. */
    for (int i = 0; i < 5000 && (status == HR_ERR_BUSY || status == HR_ERR_NOTFOUND); i++) {
        nap_ms(i > 0 ? 2 : 0);
        status = save_to(seq, dir, HR_DURABILITY_NONE);
    }
    assert_ok(status);
    check_whole(what);
    hr_sequence_destroy(seq);
    assert_ok(open_from(good, &seq));
    assert_int_equal(hr_sequence_length(seq, 0), NEW);
    hr_sequence_destroy(seq);
}

/* False: the operation does not have so many calls. */
static bool hang_at(enum what what, long n)
{
    struct case_of c;
    folder_reset();
    case_begin(&c, what);
    fault_io_hang(c.io, n);
    uint64_t begin_ns = hri_now_ns();
    hr_status_t status = case_run(&c, what);
    uint64_t took_ns = hri_now_ns() - begin_ns;
    int hung = atomic_load(&c.io->hung);
    if (hung == CALLS) {
        assert_ok(status);
    } else {
        hung_once[hung] = true;
        /* What is left of a call that has done its work, closing files, may fail unheard. */
        if (status != HR_OK || (hung != CALL_CLOSE && what != LEAVE && what != LEAVE_NEW)) {
            if (status != HR_ERR_TIMEOUT)
                fail_msg("%d, call %ld (%d): %s: %s", (int)what, n, hung, hr_status_name(status),
                         hr_last_error());
            assert_non_null(strstr(hr_last_error(), dir));
            assert_non_null(strstr(hr_last_error(), "the disk gives no answer"));
        }
        assert_true(took_ns >= END_NS * 9 / 10 && took_ns < MUCH_LATER_NS);
        check_whole(what);
        check_locked(what, hung);
        check_goes_on(&c);
    }
    begin_ns = hri_now_ns();
    if (n % 2 == 1)
        fault_io_answer(c.io);
    hr_sequence_destroy(c.opened);
    hr_sequence_destroy(c.seq);
    hr_sequence_destroy(c.other);
    assert_ok(hr_runtime_destroy(c.rt));
    assert_true(hri_now_ns() - begin_ns < MUCH_LATER_NS);
    fault_io_answer(c.io);
    check_after(what);
    return hung != CALLS;
}

static void hang_each(enum what what, long at_least)
{
    long n = 0;
    while (hang_at(what, n))
        n++;
    if (n < at_least)
        fail_msg("%d has %ld calls only", (int)what, n);
}

static void test_save(void **state)
{
    (void)state;
    hang_each(SAVE_NONE, 8);
    hang_each(SAVE_RELAXED, 9);
    hang_each(SAVE_STRICT, 12);
}

static void test_save_home(void **state)
{
    (void)state;
    hang_each(SAVE_HOME, 12);
}

/* Without rings and threads. */
static void test_save_plain(void **state)
{
    (void)state;
    hang_each(SAVE_PLAIN, 10);
}

static void test_claim_open(void **state)
{
    (void)state;
    hang_each(CLAIM, 8);
    hang_each(CLAIM_NEW, 8);
    hang_each(OPEN, 6);
    hang_each(LEAVE, 1);
    hang_each(LEAVE_NEW, 4);
}

static void test_look(void **state)
{
    (void)state;
    hang_each(INFO, 4);
    hang_each(VERIFY, 6);
    hang_each(REMOVE, 6);
    hang_each(REMOVE_LEFT, 6);
}

/* ------------------------------------------------------------------------------------- the file tier */

static hr_status_t tier_on(const struct fault_io *io, uint64_t host_bytes, hr_runtime_t **rt_out)
{
    struct hr_runtime_options o;
    hr_runtime_options_init(&o);
    o.device_bytes = 16u << 20;
    o.host_bytes = host_bytes;
    o.file_dir = names_dir();
    o.file_bytes = 64u << 20;
    o.file_wipe = 1;
    o.n_threads = 1;
    return hri_runtime_create(&o, &io->ops, rt_out);
}

/* Rows are appended for as long as it goes; what is there is then attended. */
static hr_status_t tier_work(hr_runtime_t *rt)
{
    static float out[KV * D];
    struct hr_sequence_options o;
    hr_sequence_t *seq = NULL;
    options_for(&shape, TOKENS_MAX, "headrace:window=64,decode_segment=64", 0.1, &o);
    assert_ok(hr_sequence_create(rt, &o, &seq));
    hr_status_t status = HR_OK;
    for (uint32_t n = 0; n < TOKENS_MAX && status == HR_OK; n += 100)
        status = rows_append(seq, &shape, 0, k_rows, v_rows, n, 100);
    char message[256];
    snprintf(message, sizeof message, "%s", hr_last_error());
    uint32_t n = hr_sequence_length(seq, 0);
    if (n > 0)
        assert_ok(queries_attend(seq, &shape, 0, HR_ATTEND_EXACT, q_rows, n - 1, 1, out, NULL));
    hr_sequence_destroy(seq);
    if (status != HR_OK)
        assert_non_null(strstr(message, "room in the file: the disk gives no answer"));
    return status;
}

/* Every call of a runtime with a file tier, from its first to its last. */
static bool tier_hang_at(long n, uint64_t host_bytes, bool *refused_out)
{
    struct fault_io *io = fault_io_make();
    hr_runtime_t *rt = NULL;
    io->ops.call_timeout_ns = END_NS;
    fault_io_hang(io, n);
    uint64_t begin_ns = hri_now_ns();
    hr_status_t status = tier_on(io, host_bytes, &rt);
    if (status != HR_OK) {
        assert_int_equal(status, HR_ERR_TIMEOUT);
        assert_non_null(strstr(hr_last_error(), "file tier: "));
        assert_non_null(strstr(hr_last_error(), "the disk gives no answer"));
    } else {
        *refused_out |= tier_work(rt) != HR_OK;
        assert_ok(hr_runtime_destroy(rt));
    }
    assert_true(hri_now_ns() - begin_ns < MUCH_LATER_NS);
    int hung = atomic_load(&io->hung);
    if (hung != CALLS)
        hung_once[hung] = true;
    fault_io_answer(io);
    return hung != CALLS;
}

static void test_tier(void **state)
{
    bool refused = false, refused_small = false;
    long n = 0;
    (void)state;
    while (tier_hang_at(n, 16u << 20, &refused))
        n++;
    assert_true(n >= 5);
    assert_false(refused); /* host memory has room for all of it */
    for (n = 0; tier_hang_at(n, 128u << 10, &refused_small);)
        n++;
    assert_true(refused_small);
}

/* What has hung above: all that can. */
static void test_all_hung(void **state)
{
    (void)state;
    for (int i = 0; i < CALLS; i++)
        if (!hung_once[i])
            fail_msg("call %d was never one that hung", i);
}

static int group_setup(void **state)
{
    struct random r = {.state = 5};
    (void)state;
    k_rows = malloc(sizeof(float) * TOKENS_MAX * KV * D);
    v_rows = malloc(sizeof(float) * TOKENS_MAX * KV * D);
    q_rows = malloc(sizeof(float) * TOKENS_MAX * KV * D);
    assert_true(k_rows && v_rows && q_rows);
    rows_make(&r, &shape, TOKENS_MAX, k_rows, v_rows);
    queries_make(&r, &shape, TOKENS_MAX, q_rows);
    good = runtime_make(16u << 20, 16u << 20, NULL, 0, HR_IO_AUTO);
    snprintf(dir, sizeof dir, "%s/test-calls-%d", names_dir(), (int)getpid());
    return 0;
}

static int group_teardown(void **state)
{
    (void)state;
    (void)hr_session_remove(dir);
    assert_ok(hr_runtime_destroy(good));
    free(k_rows);
    free(v_rows);
    free(q_rows);
    return 0;
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_save),       cmocka_unit_test(test_save_home),
        cmocka_unit_test(test_save_plain), cmocka_unit_test(test_claim_open),
        cmocka_unit_test(test_look),       cmocka_unit_test(test_tier),
        cmocka_unit_test(test_all_hung),
    };
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
