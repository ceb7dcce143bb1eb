/* Saved sessions: what is opened goes on bit for bit as the saved one does. */
#include "tests/runtime/session_bed.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* -- going on -- */

static void round_trip(const char *recipe, uint32_t n_prompt, uint32_t n_steps)
{
    hr_runtime_t *rt = runtime_for(false), *other = runtime_for(false);
    hr_sequence_t *s = sequence_make(rt, recipe);
    prompt(s, n_prompt);
    steps(s, n_prompt, n_steps, want);
    wipe(dir);
    save(s, HR_DURABILITY_NONE);
    hr_sequence_t *o = sequence_open(other, recipe);
    assert_int_equal(hr_sequence_length(o, 1), n_prompt + n_steps);
    steps(s, n_prompt + n_steps, MORE, want);
    steps(o, n_prompt + n_steps, MORE, got);
    same(recipe, MORE);
    hr_sequence_destroy(s);
    hr_sequence_destroy(o);
    assert_ok(hr_runtime_destroy(rt));
    assert_ok(hr_runtime_destroy(other));
}

static void test_every_recipe_goes_on(void **state)
{
    (void)state;
    for (size_t i = 0; hr_recipe_name(i); i++) {
        if (recipe_is_plain(i)) {
            round_trip(hr_recipe_name(i), 900, 20);
        }
    }
    round_trip("headrace:sketch=0", 900, 20);
    round_trip("headrace:sketch=1,segment=512", 1300, 20);
    round_trip("headrace:sketch_host=1", 900, 20);
    round_trip("shadowkv:rank=0", 900, 5);
#if HR_HAVE_FAISS
    round_trip("faiss:IVF8,Flat", 900, 5);
#endif
}

static void test_lengths(void **state)
{
    static const uint32_t lengths[] = {0, 1, 3, 4, 5, 63, 64, 65, 68, 69, 127, 128, 129, 330, 400};
    (void)state;
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        round_trip("headrace", lengths[i], 0);
        round_trip("full", lengths[i], lengths[i] > 0 ? 1 : 0);
    }
}

/* Saved while some of the heads have grouped the segment that is next, before its time. */
static void test_made_ahead(void **state)
{
    static const uint32_t lengths[] = {260, 261, 292, 300, 323, 324};
    static const char *const names[] = {"headrace:decode_segment=256",
                                        "headrace:sketch=0,decode_segment=256",
                                        "headrace:decode_segment=48"};
    hr_runtime_t *rt = runtime_for(false);
    hr_sequence_t *s = sequence_make(rt, "headrace:decode_segment=256");
    struct hr_sequence_stats st = {.struct_size = sizeof st};
    (void)state;
    prompt(s, 250);
    steps(s, 250, 23, want);
    assert_ok(hr_sequence_stats_get(s, &st));
    assert_true(st.index_ns > 0 && st.body_rows == 0);
    hr_sequence_destroy(s);
    assert_ok(hr_runtime_destroy(rt));
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        for (size_t j = 0; j < sizeof names / sizeof *names; j++) {
            round_trip(names[j], lengths[i] - 15, 15);
        }
    }
}

/* After cuts, and after many decode segments. */
static void test_long_histories(void **state)
{
    static const char *const names[] = {"headrace", "quest",    "retroinfer", "clusterkv",
                                        "magicpig", "shadowkv", "lserve"};
    (void)state;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        hr_runtime_t *rt = runtime_for(false), *other = runtime_for(false);
        hr_sequence_t *s = sequence_make(rt, names[i]);
        static float out[WIDTH];
        prompt(s, 500);
        for (uint32_t t = 500; t < 1500; t++) {
            for (uint32_t layer = 0; layer < LAYERS; layer++) {
                append(s, layer, t, 1);
                if (t % 5 == 0) {
                    attend(s, layer, HR_ATTEND_AUTO, t, 1, out);
                }
            }
        }
        assert_ok(hr_sequence_truncate(s, 1203));
        wipe(dir);
        save(s, HR_DURABILITY_NONE);
        hr_sequence_t *o = sequence_open(other, names[i]);
        steps(s, 1203, MORE, want);
        steps(o, 1203, MORE, got);
        same(names[i], MORE);
        assert_ok(hr_sequence_truncate(o, 700));
        assert_ok(hr_sequence_truncate(s, 700));
        steps(s, 700, MORE, want);
        steps(o, 700, MORE, got);
        same(names[i], MORE);
        hr_sequence_destroy(s);
        hr_sequence_destroy(o);
        assert_ok(hr_runtime_destroy(rt));
        assert_ok(hr_runtime_destroy(other));
    }
}

/* From a file tier to memory and back, and under other recipes: exact rows are the same in all of them. */
static void test_tiers_and_recipes(void **state)
{
    static const char *const names[] = {"headrace",       "headrace:sketch=0", "quest", "full",
                                        "razorattention", "tokenselect",       "window"};
    static float exact[WIDTH], again[WIDTH], out[WIDTH];
    (void)state;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        for (int from = 0; from < 2; from++) {
            hr_runtime_t *rt = runtime_for(from == 0), *other = runtime_for(from == 1);
            hr_sequence_t *s = sequence_make(rt, "headrace");
            prompt(s, 1200);
            steps(s, 1200, 5, want);
            wipe(dir);
            save(s, HR_DURABILITY_RELAXED);
            hr_sequence_t *o = sequence_open(other, names[i]);
            attend(s, 1, HR_ATTEND_EXACT, 1204, 1, exact);
            attend(o, 1, HR_ATTEND_EXACT, 1204, 1, again);
            assert_true(apart(again, exact, WIDTH) < 1e-5);
            append(o, 0, 1205, 1);
            attend(o, 0, HR_ATTEND_AUTO, 1205, 1, out);
            append(o, 1, 1205, 1);
            attend(o, 1, HR_ATTEND_AUTO, 1205, 1, out);
            append(s, 1, 1205, 1);
            attend(s, 1, HR_ATTEND_EXACT, 1205, 1, exact);
            bool close = strncmp(names[i], "headrace", 8) == 0 || strcmp(names[i], "full") == 0;
            if (!(apart(out, exact, WIDTH) < (close ? 0.3 : 2))) {
                fail_msg("%s: %g", names[i], apart(out, exact, WIDTH));
            }
            hr_sequence_destroy(s);
            hr_sequence_destroy(o);
            assert_ok(hr_runtime_destroy(rt));
            assert_ok(hr_runtime_destroy(other));
        }
    }
}

/* The saved recipe, when none is named; its own sequence goes on and saves again over the old one. */
static void test_save_again(void **state)
{
    struct hr_session_info info = {.struct_size = sizeof info};
    struct hr_sequence_options o;
    hr_sequence_t *s, *opened = NULL;
    char user[6];
    (void)state;
    hr_runtime_t *rt = runtime_for(false);
    s = sequence_make(rt, "quest:page=16");
    prompt(s, 300);
    wipe(dir);
    save(s, HR_DURABILITY_STRICT);
    assert_ok(hr_session_info_get(dir, &info));
    assert_int_equal(info.generation, 1);
    assert_int_equal(info.n_tokens, 300);
    assert_int_equal(info.user_bytes, 6);
    assert_int_equal(info.model_id[3], 42);
    assert_int_equal(info.k_dim, D);
    assert_string_equal(info.recipe, "quest:page=16");
    assert_true(info.saved_unix_s > 1600000000);
    assert_ok(hr_session_user_read(dir, user, 6));
    assert_memory_equal(user, "tokens", 6);
    assert_fails(hr_session_user_read(dir, user, 5), HR_ERR_INVALID, "it has 6");
    hr_sequence_destroy(s);
    options_of(&o, NULL);
    uint64_t id[4] = {0, 0, 0, 42}, wrong[4] = {1};
    assert_fails(hr_sequence_open(rt, dir, &o, wrong, &opened), HR_ERR_INVALID, "weights or");
    assert_ok(hr_sequence_open(rt, dir, &o, id, &opened));
    steps(opened, 300, 4, got);
    for (int i = 2; i < 5; i++) {
        save(opened, HR_DURABILITY_STRICT);
        assert_ok(hr_session_info_get(dir, &info));
        assert_int_equal(info.generation, i);
        assert_int_equal(info.n_tokens, 304);
        assert_string_equal(info.recipe, "quest:page=16");
    }
    hr_sequence_destroy(opened);
    assert_ok(hr_runtime_destroy(rt));
}

/* -- the folder -- */

static mode_t mode_of(const char *name)
{
    struct stat st;
    char path[1200];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    assert_int_equal(lstat(path, &st), 0);
    return st.st_mode & 0777;
}

static void test_folder(void **state)
{
    struct hr_sequence_options o;
    hr_sequence_t *s, *a, *b = NULL;
    char path[1200], expected[64];
    (void)state;
    hr_runtime_t *rt = runtime_for(false);
    s = sequence_make(rt, "headrace");
    prompt(s, 100);
    wipe(dir);
    umask(0);
    save(s, HR_DURABILITY_NONE);
    assert_int_equal(mode_of("session"), 0600);
    assert_int_equal(mode_of("lock"), 0600);
    assert_int_equal(mode_of("."), 0700);
    options_of(&o, "headrace");
    a = sequence_open(rt, "headrace");
    snprintf(expected, sizeof expected, "in use by process %ld", (long)getpid());
    assert_fails(hr_sequence_open(rt, dir, &o, NULL, &b), HR_ERR_BUSY, expected);
    assert_fails(hr_sequence_save(s, dir, NULL), HR_ERR_BUSY, expected);
    assert_fails(hr_session_remove(dir), HR_ERR_BUSY, expected);
    pid_t child = fork();
    if (child == 0) {
        _exit(hr_sequence_open(rt, dir, &o, NULL, &b) == HR_ERR_BUSY &&
                      strstr(hr_last_error(), expected) != NULL
                  ? 0
                  : 1);
    }
    int result;
    assert_int_equal(waitpid(child, &result, 0), child);
    assert_int_equal(result, 0);
    assert_ok(hr_sequence_save(a, dir, NULL)); /* its own */
    hr_sequence_destroy(a);
    a = sequence_open(rt, "headrace");
    hr_sequence_destroy(a);

    /* links are not followed, and what is no folder is none */
    snprintf(path, sizeof path, "%s/link", root);
    assert_int_equal(symlink(dir, path), 0);
    assert_fails(hr_sequence_open(rt, path, &o, NULL, &b), HR_ERR_INVALID, "session");
    assert_fails(hr_sequence_save(s, path, NULL), HR_ERR_INVALID, "session");
    assert_int_equal(unlink(path), 0);
    snprintf(path, sizeof path, "%s/session", dir);
    assert_fails(hr_sequence_open(rt, path, &o, NULL, &b), HR_ERR_INVALID, "Not a directory");
    char real[1300];
    snprintf(real, sizeof real, "%s/real", root);
    assert_int_equal(rename(path, real), 0);
    assert_int_equal(symlink(real, path), 0);
    assert_fails(hr_sequence_open(rt, dir, &o, NULL, &b), HR_ERR_INVALID, "symbolic link");
    assert_int_equal(unlink(path), 0);
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_fails(hr_sequence_open(rt, dir, &o, NULL, &b), HR_ERR_INVALID, "session");
    assert_int_equal(unlink(path), 0);
    assert_fails(hr_sequence_open(rt, dir, &o, NULL, &b), HR_ERR_NOTFOUND, "session");
    assert_int_equal(rename(real, path), 0);

    assert_fails(hr_sequence_open(rt, "/nowhere/at/all", &o, NULL, &b), HR_ERR_NOTFOUND, "nowhere");
    assert_fails(hr_sequence_save(s, "/nowhere/at/all", NULL), HR_ERR_NOTFOUND, "nowhere");
    assert_fails(hr_sequence_save(s, "", NULL), HR_ERR_INVALID, "no folder");
    assert_fails(hr_sequence_save(s, NULL, NULL), HR_ERR_INVALID, "no folder");
    assert_fails(hr_session_remove("/nowhere"), HR_ERR_NOTFOUND, "nowhere");

    /* a folder with other files in it keeps them */
    snprintf(path, sizeof path, "%s/mine", dir);
    int fd = open(path, O_CREAT | O_WRONLY, 0600);
    assert_true(fd >= 0);
    close(fd);
    assert_ok(hr_session_remove(dir));
    assert_int_equal(access(path, F_OK), 0);
    assert_fails(hr_session_remove(dir), HR_ERR_NOTFOUND, "session");
    assert_int_equal(unlink(path), 0);
    save(s, HR_DURABILITY_NONE);
    assert_ok(hr_session_remove(dir));
    assert_int_equal(access(dir, F_OK), -1);

    /* what a first save that failed has left goes, unless something else lies beside it */
    char lock[1200];
    snprintf(lock, sizeof lock, "%s/lock", dir);
    assert_int_equal(mkdir(dir, 0700), 0);
    for (int with_mine = 1; with_mine >= 0; with_mine--) {
        for (int i = 0; i <= with_mine; i++) {
            fd = open(i ? path : lock, O_CREAT | O_WRONLY, 0600);
            assert_true(fd >= 0);
            close(fd);
        }
        if (with_mine) {
            assert_fails(hr_session_remove(dir), HR_ERR_NOTFOUND, "session");
            assert_int_equal(access(lock, F_OK), 0);
            assert_int_equal(unlink(path), 0);
        } else {
            assert_ok(hr_session_remove(dir));
        }
    }
    assert_int_equal(access(dir, F_OK), -1);

    if (geteuid() != 0) {
        snprintf(path, sizeof path, "%s/closed", root);
        assert_int_equal(mkdir(path, 0500), 0);
        assert_fails(hr_sequence_save(s, path, NULL), HR_ERR_INVALID, "Permission denied");
    }
    hr_sequence_destroy(s);
    assert_ok(hr_runtime_destroy(rt));
}

/* -- what does not fit -- */

static void test_other_models(void **state)
{
    struct hr_sequence_options o;
    hr_sequence_t *s, *b = NULL;
    float frequencies[D / 2] = {1};
    struct hr_rope rope[LAYERS];
    (void)state;
    hr_runtime_t *rt = runtime_for(false);
    s = sequence_make(rt, "headrace");
    prompt(s, 200);
    wipe(dir);
    save(s, HR_DURABILITY_NONE);
    hr_sequence_destroy(s);
#define REFUSED(status, words, ...)                                                                \
    options_of(&o, "headrace");                                                                    \
    __VA_ARGS__;                                                                                   \
    assert_fails(hr_sequence_open(rt, dir, &o, NULL, &b), status, words)
    REFUSED(HR_ERR_INVALID, "layers 2, here 1", o.n_layers = 1);
    REFUSED(HR_ERR_INVALID, "query heads 4, here 2", o.n_q_heads = 2);
    REFUSED(HR_ERR_INVALID, "kv-heads 2, here 1", o.n_kv_heads = 1; o.head_gates = NULL);
    REFUSED(HR_ERR_INVALID, "k_dim 64, here 72", o.k_dim = 72);
    REFUSED(HR_ERR_INVALID, "v_dim 64, here 128", o.v_dim = 128);
    REFUSED(HR_ERR_INVALID, "dtype 2, here 0", o.dtype = HR_DTYPE_F32);
    REFUSED(HR_ERR_INVALID, "scale", o.scale = 0.5f);
    REFUSED(HR_ERR_INVALID, "soft_cap", o.soft_cap = 30);
    REFUSED(HR_ERR_INVALID, "rotary", o.rope = NULL);
    for (int i = 0; i < LAYERS; i++) {
        rope[i] = (struct hr_rope){HR_ROPE_HALF, D, frequencies};
    }
    REFUSED(HR_ERR_INVALID, "rotary", o.rope = rope);
    REFUSED(HR_ERR_INVALID, "sliding", o.sliding_window = (const uint32_t[]){100, 0});
    REFUSED(HR_ERR_INVALID, "log-n", o.log_n = (const float[LAYERS * HEADS]){0.5f});
    REFUSED(HR_ERR_FULL, "200 tokens, tokens_max is 199", o.tokens_max = 199);
    REFUSED(HR_ERR_VERSION, "struct_size", o.struct_size = 3);
    REFUSED(HR_ERR_NOTFOUND, "recipe", o.recipe = "headrce");
    options_of(&o, "headrace");
    o.tokens_max = 200;
    assert_ok(hr_sequence_open(rt, dir, &o, NULL, &b));
    hr_sequence_destroy(b);
    assert_fails(hr_sequence_open(NULL, dir, &o, NULL, &b), HR_ERR_INVALID, "no runtime");
    assert_ok(hr_runtime_destroy(rt));

    /* caps that are too small: which, and nothing is left behind */
    rt = runtime_make(64u << 20, 128u << 10, NULL, 0, HR_IO_AUTO);
    options_of(&o, "headrace");
    assert_fails(hr_sequence_open(rt, dir, &o, NULL, &b), HR_ERR_BUDGET, "host tier");
    assert_ok(hr_runtime_destroy(rt));
    rt = runtime_make(100u << 10, 64u << 20, NULL, 0, HR_IO_AUTO);
    assert_fails(hr_sequence_open(rt, dir, &o, NULL, &b), HR_ERR_BUDGET, "device tier");
    assert_ok(hr_runtime_destroy(rt));
}

static void test_save_arguments(void **state)
{
    struct hr_save_options o;
    hr_sequence_t *s;
    (void)state;
    hr_runtime_t *rt = runtime_for(false);
    s = sequence_make(rt, "headrace");
    wipe(dir);
    hr_save_options_init(&o);
    assert_fails(hr_sequence_save(NULL, dir, &o), HR_ERR_INVALID, "no sequence");
    o.struct_size = 1;
    assert_fails(hr_sequence_save(s, dir, &o), HR_ERR_VERSION, "struct_size");
    hr_save_options_init(&o);
    o.durability = (hr_durability_t)7;
    assert_fails(hr_sequence_save(s, dir, &o), HR_ERR_INVALID, "durability 7");
    hr_save_options_init(&o);
    o.user_bytes = 3;
    assert_fails(hr_sequence_save(s, dir, &o), HR_ERR_INVALID, "no place");
    append(s, 0, 0, 1);
    hr_save_options_init(&o);
    assert_fails(hr_sequence_save(s, dir, &o), HR_ERR_STATE, "under way");
    assert_int_equal(access(dir, F_OK), -1);
    hr_sequence_destroy(s);
    assert_ok(hr_runtime_destroy(rt));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_recipe_goes_on),
        cmocka_unit_test(test_lengths),
        cmocka_unit_test(test_made_ahead),
        cmocka_unit_test(test_long_histories),
        cmocka_unit_test(test_tiers_and_recipes),
        cmocka_unit_test(test_save_again),
        cmocka_unit_test(test_folder),
        cmocka_unit_test(test_other_models),
        cmocka_unit_test(test_save_arguments),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
