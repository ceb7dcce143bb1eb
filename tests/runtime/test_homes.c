/* Folders that sequences hold: the one that was opened, the one that was claimed. Known by what they are, however they are spelled; held until the
 * sequence ends; and nothing is left of one that was made for nothing. */
#include "tests/test.h"

#include <stdbool.h>
#include <stdio.h>
#include <errno.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/runtime/naive.h"

enum { KV = 2, D = 16, TOKENS = 100 };

static const struct shape shape = {
    .n_layers = 1, .n_q = KV, .n_kv = KV, .dk = D, .dv = D, .dtype = HR_DTYPE_BF16};
static float k_rows[TOKENS * KV * D], v_rows[TOKENS * KV * D];
static hr_runtime_t *rt, *other_rt;
static char root[300], came_from[4096];

static hr_sequence_t *sequence_make(hr_runtime_t *runtime)
{
    struct hr_sequence_options o;
    hr_sequence_t *seq = NULL;
    options_for(&shape, TOKENS, "full", 0.1, &o);
    assert_ok(hr_sequence_create(runtime, &o, &seq));
    assert_ok(rows_append(seq, &shape, 0, k_rows, v_rows, 0, TOKENS));
    return seq;
}

static hr_sequence_t *session_open(hr_runtime_t *runtime, const char *path)
{
    struct hr_sequence_options o;
    hr_sequence_t *seq = NULL;
    options_for(&shape, TOKENS, NULL, 0.1, &o);
    assert_ok(hr_sequence_open(runtime, path, &o, NULL, &seq));
    return seq;
}

/* Another sequence is refused by the number of our process. */
static void check_held(const char *path)
{
    hr_sequence_t *seq = sequence_make(other_rt);
    char words[40];
    snprintf(words, sizeof words, "in use by process %d", (int)getpid());
    assert_fails(hr_sequence_save(seq, path, NULL), HR_ERR_BUSY, words);
    assert_fails(hr_sequence_claim(seq, path), HR_ERR_BUSY, words);
    assert_fails(hr_session_remove(path), HR_ERR_BUSY, words);
    hr_sequence_destroy(seq);
}

static void check_free(const char *path)
{
    hr_sequence_t *seq = sequence_make(other_rt);
    assert_ok(hr_sequence_claim(seq, path));
    hr_sequence_destroy(seq);
}

static bool there(const char *path)
{
    struct stat st;
    return lstat(path, &st) == 0;
}

static void test_claim(void **state)
{
    (void)state;
    hr_sequence_t *seq = sequence_make(rt), *fork = NULL;
    assert_ok(hr_sequence_claim(seq, "a"));
    assert_ok(hr_sequence_claim(seq, "./a/"));
    check_held("a");
    check_held("b/../a");
    assert_false(there("a/session.new"));
    /* A fork has no folder of its own. */
    assert_ok(hr_sequence_fork(seq, &fork));
    assert_fails(hr_sequence_save(fork, "a", NULL), HR_ERR_BUSY, "in use");
    hr_sequence_destroy(fork);
    check_held("a");
    for (int strict = 0; strict < 2; strict++) {
        struct hr_save_options o;
        hr_save_options_init(&o);
        o.durability = strict ? HR_DURABILITY_STRICT : HR_DURABILITY_NONE;
        assert_ok(hr_sequence_save(seq, "b/../a", &o));
    }
    check_held("a/");
    hr_sequence_destroy(seq);
    check_free("a");
    assert_true(there("a/session"));
    assert_ok(hr_session_remove("a/"));
    assert_false(there("a"));
}

/* Of two claims the later one counts; what the first had made for nothing is gone. */
static void test_claim_another(void **state)
{
    (void)state;
    hr_sequence_t *seq = sequence_make(rt);
    assert_ok(hr_sequence_claim(seq, "first"));
    assert_true(there("first"));
    assert_ok(hr_sequence_claim(seq, "second"));
    assert_false(there("first"));
    check_held("second");
    /* One that cannot be claimed leaves the other. */
    assert_fails(hr_sequence_claim(seq, "no/such/folder"), HR_ERR_NOTFOUND, "no/such/folder");
    assert_fails(hr_sequence_claim(seq, ""), HR_ERR_INVALID, "no folder");
    assert_fails(hr_sequence_claim(seq, NULL), HR_ERR_INVALID, "no folder");
    assert_fails(hr_sequence_claim(NULL, "second"), HR_ERR_INVALID, "no sequence");
    assert_int_equal(symlink("b", "link"), 0);
    assert_fails(hr_sequence_claim(seq, "link"), HR_ERR_INVALID, "symbolic link");
    assert_int_equal(unlink("link"), 0);
    check_held("second");
    hr_sequence_destroy(seq);
    assert_false(there("second"));
}

/* Nothing of somebody else's is removed: neither what lies in the folder, nor a folder that was there, nor one that has the path now. */
static void test_leaves_others(void **state)
{
    (void)state;
    hr_sequence_t *seq = sequence_make(rt);
    assert_int_equal(mkdir("mine", 0700), 0);
    assert_ok(hr_sequence_claim(seq, "mine"));
    hr_sequence_destroy(seq);
    assert_true(there("mine"));
    assert_int_equal(unlink("mine/lock"), 0);
    assert_int_equal(rmdir("mine"), 0);

    seq = sequence_make(rt);
    assert_ok(hr_sequence_claim(seq, "used"));
    assert_int_equal(mkdir("used/theirs", 0700), 0);
    hr_sequence_destroy(seq);
    assert_true(there("used/theirs"));
    assert_int_equal(rmdir("used/theirs"), 0);
    assert_ok(hr_session_remove("used"));

    seq = sequence_make(rt);
    assert_ok(hr_sequence_claim(seq, "here"));
    assert_int_equal(mkdir("b/here", 0700), 0);
    assert_int_equal(chdir("b"), 0);
    hr_sequence_destroy(seq);
    assert_true(there("here"));
    assert_int_equal(chdir(".."), 0);
    assert_false(there("here"));
    assert_int_equal(rmdir("b/here"), 0);
}

static void test_opened(void **state)
{
    static const char *const names[] = {"s", "s/", "./s", "b/../s", "b/.././s//"};
    (void)state;
    hr_sequence_t *seq = sequence_make(rt);
    assert_ok(hr_sequence_save(seq, "s", NULL));
    hr_sequence_destroy(seq);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        seq = session_open(rt, names[i]);
        check_held("s");
        for (size_t j = 0; j < sizeof names / sizeof *names; j++)
            assert_ok(hr_sequence_save(seq, names[j], NULL));
        assert_ok(hr_sequence_claim(seq, "s"));
        /* And another one beside it. */
        assert_ok(hr_sequence_claim(seq, "t"));
        check_held("s");
        check_held("t");
        assert_ok(hr_sequence_save(seq, "t", NULL));
        hr_sequence_destroy(seq);
        check_free("s");
        check_free("t");
    }
    /* The path is another folder's by now. */
    seq = session_open(rt, "s");
    assert_int_equal(rename("s", "moved"), 0);
    assert_ok(hr_sequence_save(seq, "s", NULL));
    check_held("moved");
    check_free("s");
    assert_ok(hr_sequence_save(seq, "moved", NULL));
    hr_sequence_destroy(seq);
    assert_ok(hr_session_remove("s"));
    assert_ok(hr_session_remove("t"));
    assert_ok(hr_session_remove("moved"));
}

/* What stands where a session's file should be. */
static void test_no_plain_file(void **state)
{
    (void)state;
    hr_sequence_t *seq = sequence_make(rt);
    struct hr_session_info info = {.struct_size = sizeof info};
    for (int fifo = 0; fifo < 2; fifo++) {
        assert_int_equal(mkdir("odd", 0700), 0);
        assert_int_equal(fifo ? mkfifo("odd/session", 0600) : mkdir("odd/session", 0700), 0);
        assert_fails(hr_sequence_claim(seq, "odd"), HR_ERR_INVALID,
                     "'session': it is no plain file");
        assert_fails(hr_sequence_save(seq, "odd", NULL), HR_ERR_INVALID, "it is no plain file");
        assert_fails(hr_session_info_get("odd", &info), HR_ERR_INVALID, "it is no plain file");
        assert_fails(hr_session_remove("odd"), HR_ERR_INVALID, "it is no plain file");
        assert_int_equal(fifo ? unlink("odd/session") : rmdir("odd/session"), 0);
        assert_ok(hr_session_remove("odd"));
    }
    /* A session that cannot be removed whole stays whole. */
    assert_ok(hr_sequence_save(seq, "odd", NULL));
    assert_int_equal(mkdir("odd/session.new", 0700), 0);
    assert_int_equal(hr_session_remove("odd"), HR_ERR_IO);
    assert_fails(hr_sequence_claim(seq, "odd"), HR_ERR_IO, "session.new");
    assert_ok(hr_session_info_get("odd", &info));
    assert_int_equal(info.n_tokens, TOKENS);
    assert_int_equal(rmdir("odd/session.new"), 0);
    assert_ok(hr_session_remove("odd"));
    hr_sequence_destroy(seq);
}

/* On a medium that cannot be written: opened, verified, continued, saved elsewhere; not saved there, and nothing is locked. */
static void test_read_only(void **state)
{
    (void)state;
    hr_sequence_t *seq = sequence_make(rt);
    struct hr_session_check check = {.struct_size = sizeof check};
    assert_ok(hr_sequence_save(seq, "kept", NULL));
    hr_sequence_destroy(seq);
    assert_int_equal(mkdir("mounted", 0700), 0);
    if (mount("kept", "mounted", NULL, MS_BIND, NULL) != 0 ||
        mount(NULL, "mounted", NULL, MS_BIND | MS_REMOUNT | MS_RDONLY, NULL) != 0) {
        (void)umount2("mounted", MNT_DETACH);
        assert_ok(hr_session_remove("kept"));
        assert_int_equal(rmdir("mounted"), 0);
        print_message("no mounts here (%s): skipped\n", strerror(errno));
        skip();
    }
    seq = session_open(rt, "mounted");
    hr_sequence_t *other = session_open(other_rt, "mounted");
    assert_int_equal(hr_sequence_length(seq, 0), TOKENS);
    assert_int_equal(hr_sequence_length(other, 0), TOKENS);
    assert_ok(hr_session_verify("mounted", &check));
    assert_fails(hr_sequence_save(seq, "mounted", NULL), HR_ERR_INVALID, "Read-only file system");
    assert_fails(hr_session_remove("mounted"), HR_ERR_INVALID, "Read-only file system");
    assert_ok(hr_sequence_save(seq, "elsewhere", NULL));
    check_free("elsewhere");
    hr_sequence_destroy(other);
    hr_sequence_destroy(seq);
    assert_int_equal(umount2("mounted", MNT_DETACH), 0);
    check_free("kept");
    assert_ok(hr_session_remove("kept"));
    assert_ok(hr_session_remove("elsewhere"));
    assert_int_equal(rmdir("mounted"), 0);
}

static int group_setup(void **state)
{
    struct random r = {.state = 5};
    (void)state;
    rows_make(&r, &shape, TOKENS, k_rows, v_rows);
    rt = runtime_make(16u << 20, 16u << 20, NULL, 0, HR_IO_AUTO);
    other_rt = runtime_make(16u << 20, 16u << 20, NULL, 0, HR_IO_AUTO);
    snprintf(root, sizeof root, "%s/test-homes-%d", disk_dir(), (int)getpid());
    return getcwd(came_from, sizeof came_from) == NULL || mkdir(root, 0700) != 0 ||
           chdir(root) != 0 || mkdir("b", 0700) != 0;
}

static int group_teardown(void **state)
{
    (void)state;
    (void)umount2("mounted", MNT_DETACH); /* where the test did not come that far */
    assert_ok(hr_runtime_destroy(rt));
    assert_ok(hr_runtime_destroy(other_rt));
    return rmdir("b") != 0 || chdir(came_from) != 0 || rmdir(root) != 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_claim),         cmocka_unit_test(test_claim_another),
        cmocka_unit_test(test_leaves_others), cmocka_unit_test(test_opened),
        cmocka_unit_test(test_no_plain_file), cmocka_unit_test(test_read_only),
    };
    return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
