/* Saved sessions: what is opened goes on bit for bit as the saved one does; whatever is done to the file or asked in vain, nothing but a
 * clear error comes of it, and the files are as they were. */
#include "tests/runtime/naive.h"
#include "tests/test.h"

#include "base/checksum.h"
#include "offload/archive_impl.h"
#include "runtime/saved.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdbool.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { HEADS = 4, KV = 2, D = 64, N = 1700, LAYERS = 2, MORE = 24, WIDTH = HEADS * D };

static const struct shape shape = {.n_layers = LAYERS,
                                   .n_q = HEADS,
                                   .n_kv = KV,
                                   .dk = D,
                                   .dv = D,
                                   .dtype = HR_DTYPE_BF16,
                                   .rope = HR_ROPE_HALF};

static float k[N * KV * D], v[N * KV * D], q[N * WIDTH];
static float got[MORE * LAYERS * WIDTH], want[MORE * LAYERS * WIDTH];
static char root[1024], dir[1100];

static void wipe(const char *path)
{
    char command[1200];
    snprintf(command, sizeof command, "rm -rf '%s'", path);
    assert_int_equal(system(command), 0);
}

static int setup(void **state)
{
    struct random r = {.state = 91};
    (void)state;
    rows_make(&r, &shape, N, k, v);
    queries_make(&r, &shape, N, q);
    snprintf(root, sizeof root, "%s/session-test-%ld", disk_dir(), (long)getpid());
    snprintf(dir, sizeof dir, "%s/one", root);
    return mkdir(root, 0700);
}

static int teardown(void **state)
{
    (void)state;
    wipe(root);
    return 0;
}

static hr_runtime_t *runtime_for(bool file)
{
    hr_runtime_t *rt = runtime_make(256u << 20, file ? 512u << 10 : 128u << 20,
                                    file ? disk_dir() : NULL, 128u << 20, HR_IO_AUTO);
    assert_non_null(rt);
    return rt;
}

static void options_of(struct hr_sequence_options *o, const char *recipe)
{
    static const float gates[LAYERS * KV] = {1.0f, 0.0f, 0.0f, 1.0f};
    options_for(&shape, N, recipe, 0.05, o);
    o->head_gates = gates;
}

static hr_sequence_t *sequence_make(hr_runtime_t *rt, const char *recipe)
{
    struct hr_sequence_options o;
    hr_sequence_t *s = NULL;
    options_of(&o, recipe);
    assert_ok(hr_sequence_create(rt, &o, &s));
    return s;
}

static hr_sequence_t *sequence_open(hr_runtime_t *rt, const char *recipe)
{
    struct hr_sequence_options o;
    hr_sequence_t *s = NULL;
    options_of(&o, recipe);
    assert_ok(hr_sequence_open(rt, dir, &o, NULL, &s));
    return s;
}

static void append(hr_sequence_t *s, uint32_t layer, uint32_t first, uint32_t n)
{
    assert_ok(rows_append(s, &shape, layer, k, v, first, n));
}

static void attend(hr_sequence_t *s, uint32_t layer, hr_attend_mode_t mode, uint32_t first,
                   uint32_t n, float *out)
{
    assert_ok(queries_attend(s, &shape, layer, mode, q, first, n, out, NULL));
}

static void prompt(hr_sequence_t *s, uint32_t n)
{
    static float out[N * WIDTH];
    for (uint32_t i = 0; i < LAYERS && n > 0; i++) {
        append(s, i, 0, n);
        attend(s, i, HR_ATTEND_EXACT, 0, n, out);
    }
}

static void steps(hr_sequence_t *s, uint32_t first, uint32_t n, float *out)
{
    for (uint32_t t = first; t < first + n; t++) {
        for (uint32_t i = 0; i < LAYERS; i++, out += WIDTH) {
            append(s, i, t, 1);
            attend(s, i, HR_ATTEND_AUTO, t, 1, out);
        }
    }
}

static void save(hr_sequence_t *s, hr_durability_t durability)
{
    struct hr_save_options o;
    hr_save_options_init(&o);
    o.durability = durability;
    o.user = "tokens";
    o.user_bytes = 6;
    o.model_id[3] = 42;
    assert_ok(hr_sequence_save(s, dir, &o));
}

static void same(const char *what, uint32_t n)
{
    for (size_t i = 0; i < (size_t)n * LAYERS * WIDTH; i++) {
        if (memcmp(&got[i], &want[i], sizeof *got) != 0) {
            fail_msg("%s: step %zu, number %zu: %g, not %g", what, i / (LAYERS * WIDTH), i,
                     (double)got[i], (double)want[i]);
        }
    }
}

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

/* -- damage -- */

static unsigned char *file;
static size_t file_bytes;

static void file_path(char path[1200])
{
    snprintf(path, 1200, "%s/session", dir);
}

static void file_read(void)
{
    char path[1200];
    struct stat st;
    file_path(path);
    int fd = open(path, O_RDONLY);
    assert_true(fd >= 0);
    assert_int_equal(fstat(fd, &st), 0);
    file_bytes = (size_t)st.st_size;
    file = realloc(file, file_bytes);
    assert_non_null(file);
    assert_int_equal(read(fd, file, file_bytes), file_bytes);
    close(fd);
}

static void file_write(const void *data, size_t bytes)
{
    char path[1200];
    file_path(path);
    int fd = open(path, O_WRONLY | O_TRUNC);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, data, bytes), bytes);
    close(fd);
}

static void small_session(hr_runtime_t *rt, const char *recipe, uint32_t n)
{
    hr_sequence_t *s = sequence_make(rt, recipe);
    prompt(s, n);
    steps(s, n, 3, want);
    wipe(dir);
    save(s, HR_DURABILITY_NONE);
    static float exact[WIDTH];
    attend(s, 1, HR_ATTEND_EXACT, n + 2, 1, exact);
    memcpy(want, exact, sizeof exact);
    hr_sequence_destroy(s);
    file_read();
}

static hr_status_t try_open(hr_runtime_t *rt, const char *recipe, hr_sequence_t **s)
{
    struct hr_sequence_options o;
    options_of(&o, recipe);
    *s = NULL;
    return hr_sequence_open(rt, dir, &o, NULL, s);
}

/* Opened in spite of damage: then every exact row is what it was, and steps work. */
static void right_or_refused(hr_runtime_t *rt, const char *recipe, uint32_t n, const char *what)
{
    hr_sequence_t *s;
    static float exact[WIDTH], out[WIDTH];
    hr_status_t status = try_open(rt, recipe, &s);
    if (status == HR_OK) {
        attend(s, 1, HR_ATTEND_EXACT, n - 1, 1, exact);
        if (!(apart(exact, want, WIDTH) < 1e-5)) {
            fail_msg("%s: wrong rows", what);
        }
        append(s, 1, n, 1);
        attend(s, 1, HR_ATTEND_AUTO, n, 1, out);
        hr_sequence_destroy(s);
    } else if (hr_last_error()[0] == '\0' || status == HR_ERR_INTERNAL) {
        fail_msg("%s: %s, '%s'", what, hr_status_name(status), hr_last_error());
    }
}

static void test_every_flip_is_noticed(void **state)
{
    uint64_t seed = test_seed(11);
    struct random r = {.state = seed};
    char what[80];
    unsigned lost = 0;
    (void)state;
    hr_runtime_t *rt = runtime_for(false);
    small_session(rt, "headrace", 600);
    struct hr_session_check check = {.struct_size = sizeof check};
    assert_ok(hr_session_verify(dir, &check));
    assert_int_equal(check.bytes_read, file_bytes);
    assert_int_equal(check.blocks_bad, 0);
    for (int i = 0; i < 300; i++) {
        size_t at = i < 150 ? (size_t)(random_uniform(&r) * (double)file_bytes)
                    : i % 2 ? (size_t)(random_uniform(&r) * 8192)
                            : file_bytes - 1 - (size_t)(random_uniform(&r) * 4096);
        file[at] ^= (unsigned char)(1u << i % 8);
        file_write(file, file_bytes);
        snprintf(what, sizeof what, "seed %llu, flip at byte %zu", (unsigned long long)seed, at);
        check = (struct hr_session_check){.struct_size = sizeof check};
        if (hr_session_verify(dir, &check) == HR_OK) {
            fail_msg("%s: verify saw nothing", what);
        }
        lost += check.tokens_lost > 0;
        right_or_refused(rt, "headrace", 603, what);
        file[at] ^= (unsigned char)(1u << i % 8);
    }
    assert_true(lost > 20);
    assert_ok(hr_runtime_destroy(rt));
}

static void test_swapped_sectors(void **state)
{
    struct random r = {.state = test_seed(12)};
    (void)state;
    hr_runtime_t *rt = runtime_for(false);
    small_session(rt, "quest", 600);
    unsigned char page[4096];
    size_t pages = file_bytes / sizeof page;
    for (int i = 0; i < 100; i++) {
        size_t a = (size_t)(random_uniform(&r) * (double)pages) * sizeof page,
               b = (size_t)(random_uniform(&r) * (double)pages) * sizeof page;
        if (memcmp(file + a, file + b, sizeof page) == 0) {
            continue;
        }
        for (int twice = 0; twice < 2; twice++) {
            memcpy(page, file + a, sizeof page);
            memcpy(file + a, file + b, sizeof page);
            memcpy(file + b, page, sizeof page);
            if (twice == 0) {
                struct hr_session_check check = {.struct_size = sizeof check};
                file_write(file, file_bytes);
                assert_int_not_equal(hr_session_verify(dir, &check), HR_OK);
                right_or_refused(rt, "quest", 603, "swapped sectors");
            }
        }
    }
    assert_ok(hr_runtime_destroy(rt));
}

static void test_truncated_at_every_length(void **state)
{
    (void)state;
    hr_runtime_t *rt = runtime_for(false);
    small_session(rt, "quest", 100);
    for (size_t n = 0; n < file_bytes; n += n < 9000 ? 97 : 1531) {
        hr_sequence_t *s;
        struct hr_session_check check = {.struct_size = sizeof check};
        file_write(file, n);
        hr_status_t status = try_open(rt, "quest", &s);
        assert_true(status == HR_ERR_CORRUPT || status == HR_ERR_INVALID);
        assert_int_not_equal(hr_session_verify(dir, &check), HR_OK);
    }
    file_write(file, file_bytes);
    hr_sequence_t *s;
    assert_ok(try_open(rt, "quest", &s));
    hr_sequence_destroy(s);
    unsigned char more[10] = {0};
    file = realloc(file, file_bytes + sizeof more);
    memcpy(file + file_bytes, more, sizeof more);
    file_write(file, file_bytes + sizeof more);
    assert_int_equal(try_open(rt, "quest", &s), HR_ERR_CORRUPT);
    assert_ok(hr_runtime_destroy(rt));
}

/* Layout of docs/format.md, by hand: offsets of the fields that are changed. */
enum { S_VERSION = 8, S_FILE = 24, S_INDEX = 32, S_BLOCKS = 40, S_INDEX_CRC = 56, S_CRC = 4092 };

static void put(size_t at, const void *value, size_t bytes)
{
    memcpy(file + at, value, bytes);
}
static uint64_t get_u64(size_t at)
{
    uint64_t x;
    memcpy(&x, file + at, sizeof x);
    return x;
}

/* Both superblocks get the change and a right checksum. */
static void super_change(size_t field, const void *value, size_t bytes)
{
    for (size_t at = 0; at < 8192; at += 4096) {
        put(at + field, value, bytes);
        uint32_t crc = hri_crc32c(0, file + at, S_CRC);
        put(at + S_CRC, &crc, sizeof crc);
    }
    file_write(file, file_bytes);
}

static void index_change(size_t entry, size_t field, uint64_t value, size_t bytes)
{
    uint64_t index = get_u64(S_INDEX), n = get_u64(S_BLOCKS);
    put(index + entry * 24 + field, &value, bytes);
    uint32_t crc = hri_crc32c(0, file + index, n * 24);
    super_change(S_INDEX_CRC, &crc, sizeof crc);
}

static void test_lies_with_right_checksums(void **state)
{
    static const uint64_t numbers[] = {
        0, 1, 4096, 8192, 1u << 20, 1u << 30, UINT32_MAX, UINT64_MAX, (uint64_t)1 << 63};
    (void)state;
    hr_sequence_t *s;
    hr_runtime_t *rt = runtime_for(false);
    small_session(rt, "headrace", 300);
    size_t bytes = file_bytes;
    unsigned char *right = malloc(bytes);
    memcpy(right, file, bytes);
    uint32_t version = 2;
    super_change(S_VERSION, &version, sizeof version);
    assert_fails(try_open(rt, "headrace", &s), HR_ERR_VERSION, "format version 2");
    memcpy(file, right, bytes);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        static const size_t fields[] = {S_FILE, S_INDEX, S_BLOCKS};
        for (size_t f = 0; f < 3; f++) {
            super_change(fields[f], &numbers[i], sizeof *numbers);
            if (memcmp(file, right, bytes) != 0) {
                assert_int_equal(try_open(rt, "headrace", &s), HR_ERR_CORRUPT);
            }
            memcpy(file, right, bytes);
        }
        static const size_t entry_fields[] = {0, 8, 16}, widths[] = {8, 8, 4};
        for (size_t entry = 0; entry < 6; entry++) {
            for (size_t f = 0; f < 3; f++) {
                index_change(entry, entry_fields[f], numbers[i], widths[f]);
                if (memcmp(file + 8192, right + 8192, bytes - 8192) != 0) {
                    right_or_refused(rt, "headrace", 303, "a lie in the index");
                }
                memcpy(file, right, bytes);
            }
        }
    }
    /* a block twice, and one that points to its neighbour */
    uint64_t index = get_u64(S_INDEX);
    index_change(3, 0, get_u64(index + 2 * 24), 8);
    assert_int_equal(try_open(rt, "headrace", &s), HR_ERR_CORRUPT);
    memcpy(file, right, bytes);
    index_change(3, 8, get_u64(index + 2 * 24 + 8), 8);
    assert_int_equal(try_open(rt, "headrace", &s), HR_ERR_CORRUPT);
    memcpy(file, right, bytes);
    file_write(file, bytes);
    assert_ok(try_open(rt, "headrace", &s));
    hr_sequence_destroy(s);
    free(right);
    assert_ok(hr_runtime_destroy(rt));
}

/* A NaN for the n-th number of the first block of a stream, under right checksums. */
static void nan_put(uint32_t layer, uint32_t kind, size_t n)
{
    uint64_t key = hri_archive_key(HRI_SAVED_LAYER, layer, kind, 0), index = get_u64(S_INDEX),
             i = 0;
    const uint16_t not_a_number = 0x7fc0;
    while (get_u64(index + i * 24) != key) {
        assert_true(++i < get_u64(S_BLOCKS));
    }
    struct hri_archive_header *h = (void *)(file + get_u64(index + i * 24 + 8));
    memcpy((unsigned char *)(h + 1) + n * 2, &not_a_number, 2);
    h->crc = hri_crc32c(0, h + 1, h->bytes);
    h->header_crc = hri_crc32c(0, h, offsetof(struct hri_archive_header, header_crc));
    index_change(i, 20, h->crc, 4);
}

static void test_rows_that_are_not_finite(void **state)
{
    (void)state;
    hr_sequence_t *s;
    hr_runtime_t *rt = runtime_for(false);
    small_session(rt, "headrace", 600);
    unsigned char *right = malloc(file_bytes);
    memcpy(right, file, file_bytes);
    nan_put(1, HRI_SAVED_NEAR, 5);
    assert_fails(try_open(rt, "headrace", &s), HR_ERR_CORRUPT, "a number is not finite");
    memcpy(file, right, file_bytes);
    nan_put(1, HRI_SAVED_LOG, (size_t)HRI_LOG_ROWS * KV * 2 * D);
    assert_fails(try_open(rt, "headrace", &s), HR_ERR_CORRUPT, "layer 1: tokens 64 to 127 are");
    free(right);
    assert_ok(hr_runtime_destroy(rt));
}

/* Whatever was asked that cannot be, of a session that is right: the file is byte for byte what it was, and opens. */
static void test_refusals_change_nothing(void **state)
{
    struct hr_sequence_options o;
    hr_sequence_t *s, *again;
    (void)state;
    hr_runtime_t *rt = runtime_for(false);
    small_session(rt, "headrace", 1500);
    size_t bytes = file_bytes;
    unsigned char *right = malloc(bytes);
    assert_non_null(right);
    memcpy(right, file, bytes);
    options_of(&o, "headrace");
    o.v_dim = 128;
    assert_fails(hr_sequence_open(rt, dir, &o, NULL, &s), HR_ERR_INVALID, "v_dim");
    options_of(&o, "headrace");
    o.tokens_max = 100;
    assert_fails(hr_sequence_open(rt, dir, &o, NULL, &s), HR_ERR_FULL, "tokens_max is 100");
    assert_ok(try_open(rt, "headrace", &s));
    assert_fails(try_open(rt, "headrace", &again), HR_ERR_BUSY, "in use by process");
    assert_fails(hr_sequence_truncate(s, 2000), HR_ERR_INVALID, "layer 0 has 1503");
    hr_sequence_destroy(s);
    assert_ok(hr_runtime_destroy(rt));
    /* caps: of the host tier, of the device, of the file */
    rt = runtime_make(64u << 20, 128u << 10, NULL, 0, HR_IO_AUTO);
    assert_fails(try_open(rt, "headrace", &s), HR_ERR_BUDGET, "host tier");
    assert_ok(hr_runtime_destroy(rt));
    rt = runtime_make(100u << 10, 64u << 20, NULL, 0, HR_IO_AUTO);
    assert_fails(try_open(rt, "headrace", &s), HR_ERR_BUDGET, "device tier");
    assert_ok(hr_runtime_destroy(rt));
    rt = runtime_make(64u << 20, 128u << 10, disk_dir(), 1u << 20, HR_IO_AUTO);
    assert_non_null(rt);
    assert_fails(try_open(rt, "headrace", &s), HR_ERR_BUDGET, "file tier");
    assert_ok(hr_runtime_destroy(rt));
    file_read();
    assert_int_equal(file_bytes, bytes);
    assert_memory_equal(file, right, bytes);
    rt = runtime_for(false);
    assert_ok(try_open(rt, "headrace", &s));
    hr_sequence_destroy(s);
    free(right);
    assert_ok(hr_runtime_destroy(rt));
}

/* A damaged block of rows: the message and the check name its tokens, and no others. */
static void test_lost_tokens_are_named(void **state)
{
    (void)state;
    hr_runtime_t *rt = runtime_for(false);
    hr_sequence_t *s;
    small_session(rt, "headrace", 1500);
    uint64_t index = get_u64(S_INDEX), n = get_u64(S_BLOCKS);
    for (uint64_t i = 0; i < n; i++) {
        uint64_t key = get_u64(index + i * 24), address = get_u64(index + i * 24 + 8);
        if (key >> 40 != (2ull << 20 | 1 << 4 | 2)) { /* log of layer 1 */
            continue;
        }
        file[address + 1000] ^= 1;
        file_write(file, file_bytes);
        struct hr_session_check check = {.struct_size = sizeof check};
        assert_fails(hr_session_verify(dir, &check), HR_ERR_CORRUPT, "tokens are lost");
        assert_int_equal(check.blocks_bad, 1);
        assert_int_equal(check.tokens_lost, check.last_lost - check.first_lost + 1);
        char words[80];
        snprintf(words, sizeof words, "layer 1: tokens %u to %u are lost", check.first_lost,
                 check.last_lost);
        assert_fails(try_open(rt, "headrace", &s), HR_ERR_CORRUPT, words);
        assert_true(check.first_lost == 0 || (key & 0xffffff) > 0);
        file[address + 1000] ^= 1;
    }
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
        cmocka_unit_test(test_every_flip_is_noticed),
        cmocka_unit_test(test_swapped_sectors),
        cmocka_unit_test(test_truncated_at_every_length),
        cmocka_unit_test(test_refusals_change_nothing),
        cmocka_unit_test(test_lies_with_right_checksums),
        cmocka_unit_test(test_rows_that_are_not_finite),
        cmocka_unit_test(test_lost_tokens_are_named),
    };
    int result = cmocka_run_group_tests(tests, setup, teardown);
    free(file);
    return result;
}
