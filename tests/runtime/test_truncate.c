/* Truncate: afterwards a sequence is as one that never had the dropped rows. Bit for bit where all rows are attended, and where no
 * segment was undone or all were; within the method's own error otherwise. Every recipe, every tier, every kind of place to cut at. */
#include "runtime/sequence.h"
#include "tests/runtime/naive.h"
#include "tests/test.h"

#include <math.h>
#include <stdbool.h>

enum { HEADS = 4, KV = 2, D = 64, N = 2400, LAYERS = 2 };

static const struct shape shape = {
    .n_layers = LAYERS, .n_q = HEADS, .n_kv = KV, .dk = D, .dv = D, .dtype = HR_DTYPE_BF16};

/* Rows that stay, and rows that will be dropped. */
static float k[N * KV * D], v[N * KV * D], q[N * HEADS * D];
static float k_other[N * KV * D], v_other[N * KV * D];

static int text_setup(void **state)
{
    struct random r = {.state = 77};
    (void)state;
    rows_make(&r, &shape, N, k, v);
    rows_make(&r, &shape, N, k_other, v_other);
    queries_make(&r, &shape, N, q);
    return 0;
}

enum tier { MEMORY, BOTH, DISK };
static hr_runtime_t *runtime_for(enum tier tier)
{
    static const uint64_t host[] = {64u << 20, 512u << 10, 0};
    hr_runtime_t *rt = runtime_make(256u << 20, host[tier], tier == MEMORY ? NULL : disk_dir(),
                                    128u << 20, HR_IO_AUTO);
    assert_non_null(rt);
    return rt;
}

static hr_sequence_t *sequence_for(hr_runtime_t *rt, const struct shape *sh, const char *recipe)
{
    static const float gates[LAYERS * KV] = {1.0f, 0.0f, 0.0f, 1.0f};
    size_t heads = (size_t)sh->n_layers * sh->n_kv;
    struct hr_sequence_options o;
    hr_sequence_t *s = NULL;
    options_for(sh, N, recipe, 0.05, &o);
    o.head_gates = heads == LAYERS * KV ? gates : NULL;
    assert_ok(hr_sequence_create(rt, &o, &s));
    return s;
}

static void append_layer(hr_sequence_t *s, uint32_t layer, const float *kk, const float *vv,
                         uint32_t first, uint32_t n)
{
    assert_ok(rows_append(s, &shape, layer, kk, vv, first, n));
}

static void append(hr_sequence_t *s, const float *kk, const float *vv, uint32_t first, uint32_t n)
{
    for (uint32_t i = 0; i < LAYERS && n > 0; i++) {
        append_layer(s, i, kk, vv, first, n);
    }
}

static void attend(hr_sequence_t *s, uint32_t layer, hr_attend_mode_t mode, uint32_t first,
                   uint32_t n, float *out, struct hr_attend_report *report)
{
    assert_ok(queries_attend(s, &shape, layer, mode, q, first, n, out, report));
}

/* The prompt [0, n), attended in one go. */
static void prompt(hr_sequence_t *s, uint32_t n)
{
    static float out[N * HEADS * D];
    for (uint32_t i = 0; i < LAYERS && n > 0; i++) {
        append_layer(s, i, k, v, 0, n);
        attend(s, i, HR_ATTEND_EXACT, 0, n, out, NULL);
    }
}

/* Steps through tokens [first, end); outputs [token - first][layer]. */
static void steps(hr_sequence_t *s, uint32_t first, uint32_t end, float *out, double *error)
{
    struct hr_attend_report report;
    double sum = 0;
    for (uint32_t t = first; t < end; t++) {
        for (uint32_t i = 0; i < LAYERS; i++) {
            append_layer(s, i, k, v, t, 1);
            attend(s, i, HR_ATTEND_AUTO, t, 1, out, error ? &report : NULL);
            out += HEADS * D;
            sum += error ? report.true_error : 0;
        }
    }
    if (error) {
        *error = sum / ((end - first) * LAYERS);
    }
}

enum { MORE = 20 };
static float got[MORE * LAYERS * HEADS * D], want[MORE * LAYERS * HEADS * D];

/* Rows that stream past are summed in runs that begin where the tail happens to begin: sums differ in their last bits. */
static void same_steps(const char *what, hr_sequence_t *a, hr_sequence_t *b, uint32_t first)
{
    steps(a, first, first + MORE, got, NULL);
    steps(b, first, first + MORE, want, NULL);
    for (size_t i = 0; recipe_streams(what) && i < MORE * LAYERS; i++) {
        double e = apart(got + i * HEADS * D, want + i * HEADS * D, HEADS * D);
        if (!(e < 1e-5)) {
            fail_msg("%s: step %zu: %g", what, i, e);
        }
    }
    if (recipe_streams(what)) {
        return;
    }
    for (size_t i = 0; i < sizeof got / sizeof *got; i++) {
        if (memcmp(&got[i], &want[i], sizeof *got) != 0) {
            fail_msg("%s: step %zu, number %zu: %g, not %g", what, i / (LAYERS * HEADS * D), i,
                     (double)got[i], (double)want[i]);
        }
    }
}

/* -- full attention: exact whatever is dropped -- */

static void test_full_equals_never_had(void **state)
{
    static const uint32_t cuts[] = {0, 1, 2, 63, 64, 65, 127, 128, 129, 1000, 2047, 2048, 2100};
    (void)state;
    for (enum tier tier = MEMORY; tier <= DISK; tier++) {
        for (size_t i = 0; i < sizeof cuts / sizeof *cuts; i++) {
            hr_runtime_t *rt = runtime_for(tier);
            hr_sequence_t *a = sequence_for(rt, &shape, "full"),
                          *b = sequence_for(rt, &shape, "full");
            append(a, k, v, 0, cuts[i]);
            append(a, k_other, v_other, cuts[i], 2100 - cuts[i]);
            assert_ok(hr_sequence_truncate(a, cuts[i]));
            assert_int_equal(hr_sequence_length(a, 0), cuts[i]);
            append(b, k, v, 0, cuts[i]);
            same_steps("full", a, b, cuts[i]);
            hr_sequence_destroy(a);
            hr_sequence_destroy(b);
            assert_ok(hr_runtime_destroy(rt));
        }
    }
}

/* Many small cuts in a row, against a plain memory of the rows. */
static void test_full_random_history(void **state)
{
    uint64_t seed = test_seed(20);
    struct random r = {.state = seed};
    (void)state;
    hr_runtime_t *rt = runtime_for(BOTH);
    hr_sequence_t *s = sequence_for(rt, &shape, "full");
    struct naive a;
    static float out[HEADS * D];
    static double truth[HEADS * D];
    naive_init(&a, &shape, N);
    for (int round = 0; round < 120; round++) {
        uint32_t n = (uint32_t)(random_uniform(&r) * random_uniform(&r) * 300) + 1;
        n = a.n + n < N ? n : N - a.n;
        append(s, k, v, a.n, n);
        naive_append(&a, k + (size_t)a.n * KV * D, v + (size_t)a.n * KV * D, n);
        if (round % 3 == 0) {
            a.n = (uint32_t)(random_uniform(&r) * (a.n + 1));
            assert_ok(hr_sequence_truncate(s, a.n));
        }
        if (a.n == 0) {
            continue;
        }
        attend(s, 1, HR_ATTEND_AUTO, a.n - 1, 1, out, NULL);
        naive_attend(&a, 1, q + (size_t)(a.n - 1) * HEADS * D, 1, truth);
        if (error_max(out, truth, HEADS, D) > 1e-4) {
            fail_msg("seed %llu, round %d, %u tokens", (unsigned long long)seed, round, a.n);
        }
    }
    naive_fini(&a);
    hr_sequence_destroy(s);
    assert_ok(hr_runtime_destroy(rt));
}

/* -- recipes -- */

/* Dropped before they were grouped: nothing of them is left. */
static void test_in_the_window(void **state)
{
    (void)state;
    for (size_t i = 0; hr_recipe_name(i); i++) {
        if (!recipe_is_plain(i)) {
            continue;
        }
        const char *name = hr_recipe_name(i);
        hr_runtime_t *rt = runtime_for(MEMORY); /* what a file's reads bring first is added first */
        hr_sequence_t *a = sequence_for(rt, &shape, name), *b = sequence_for(rt, &shape, name);
        prompt(a, 700);
        prompt(b, 700);
        same_steps(name, a, b, 700);
        append(a, k_other, v_other, 720, 30);
        assert_ok(hr_sequence_truncate(a, 720));
        same_steps(name, a, b, 720);
        hr_sequence_destroy(a);
        hr_sequence_destroy(b);
        assert_ok(hr_runtime_destroy(rt));
    }
}

/* What a method learns of all rows, or decides once and for all, it keeps: of these the answers differ by their own error. */
static bool decides_once(const char *name)
{
    static const char *const names[] = {"infinigen",          "task-kv", "razorattention", "lserve",
                                        "retrievalattention", "a2ats",   "louiskv"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strcmp(name, names[i]) == 0) {
            return true;
        }
    }
    return false;
}

/* The only segment reached into the window, so it goes as a whole and comes again as it would have. */
static void test_segments_coincide(void **state)
{
    (void)state;
    for (size_t i = 0; hr_recipe_name(i); i++) {
        if (!recipe_is_plain(i) || decides_once(hr_recipe_name(i))) {
            continue;
        }
        const char *name = hr_recipe_name(i);
        hr_runtime_t *rt = runtime_for(MEMORY);
        hr_sequence_t *a = sequence_for(rt, &shape, name), *b = sequence_for(rt, &shape, name);
        prompt(a, 700);
        prompt(b, 700);
        append(a, k_other, v_other, 700, 900);
        for (uint32_t layer = 0; layer < LAYERS; layer++) {
            assert_ok(hr_sequence_settle(a, layer));
        }
        assert_ok(hr_sequence_truncate(a, 700));
        same_steps(name, a, b, 700);
        hr_sequence_destroy(a);
        hr_sequence_destroy(b);
        assert_ok(hr_runtime_destroy(rt));
    }
}

/* Cuts everywhere, also inside segments and blocks; every answer as good as that of one that never had the rows. */
static void play(const char *name, enum tier tier, uint32_t cut)
{
    hr_runtime_t *rt = runtime_for(tier);
    hr_sequence_t *a = sequence_for(rt, &shape, name), *b = sequence_for(rt, &shape, name);
    static float exact_a[HEADS * D], exact_b[HEADS * D];
    double error_a, error_b;
    prompt(a, cut < 700 ? cut : 700);
    prompt(b, cut);
    if (cut > 700) {
        append(a, k, v, 700, cut - 700);
    }
    append(a, k_other, v_other, cut, 700);
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        assert_ok(hr_sequence_settle(a, layer));
    }
    append(a, k_other, v_other, cut, 70);
    assert_ok(hr_sequence_truncate(a, cut));
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        assert_ok(hr_sequence_settle(b, layer));
    }
    /* A block that waits to be written costs nothing to read. */
    assert_ok(tier == MEMORY ? HR_OK : hri_store_flush(rt->store));
    steps(a, cut, cut + MORE, got, &error_a);
    steps(b, cut, cut + MORE, want, &error_b);
    if (!(error_a <= 1.5 * error_b + 0.02)) {
        fail_msg("%s, tier %d, cut at %u: error %g; without the rows %g", name, (int)tier, cut,
                 error_a, error_b);
    }
    attend(a, 1, HR_ATTEND_EXACT, cut + MORE - 1, 1, exact_a, NULL);
    attend(b, 1, HR_ATTEND_EXACT, cut + MORE - 1, 1, exact_b, NULL);
    assert_true(apart(exact_a, exact_b, HEADS * D) < 1e-5);
    hr_sequence_destroy(a);
    hr_sequence_destroy(b);
    assert_ok(hr_runtime_destroy(rt));
}

static void test_recipes_anywhere(void **state)
{
    static const uint32_t cuts[] = {5, 701};
    (void)state;
    for (size_t i = 0; hr_recipe_name(i); i++) {
        for (size_t j = 0; j < sizeof cuts / sizeof *cuts && recipe_is_plain(i); j++) {
            play(hr_recipe_name(i), j % 2 ? BOTH : MEMORY, cuts[j]);
        }
    }
}

static void test_headrace_on_disk(void **state)
{
    static const uint32_t cuts[] = {0, 1, 64, 65, 1000};
    (void)state;
    for (size_t j = 0; j < sizeof cuts / sizeof *cuts; j++) {
        play("headrace", DISK, cuts[j]);
        play("headrace:sketch=0", DISK, cuts[j]);
        play("headrace:sketch_host=1", DISK, cuts[j]);
        play("headrace:segment=512", BOTH, cuts[j]);
        play("quest", DISK, cuts[j]);
    }
}

static struct hr_runtime_stats stats_of(const hr_runtime_t *rt)
{
    struct hr_runtime_stats st = {.struct_size = sizeof st};
    assert_ok(hr_runtime_stats_get(rt, &st));
    return st;
}

/* Cuts while some heads have grouped the next segment before its time: with rows of it, and without. */
static void test_made_ahead(void **state)
{
    static const uint32_t cuts[] = {255, 279, 319};
    enum { LAST = 320, GO_ON = 70 };
    static const char recipe[] = "headrace:decode_segment=256";
    (void)state;
    for (size_t i = 0; i < 2 * sizeof cuts / sizeof *cuts; i++) {
        uint32_t cut = cuts[i / 2];
        hr_runtime_t *rt = runtime_for(i % 2 ? DISK : MEMORY);
        hr_sequence_t *a = sequence_for(rt, &shape, recipe), *b = sequence_for(rt, &shape, recipe);
        struct hr_sequence_stats st = {.struct_size = sizeof st};
        double error_a, error_b;
        prompt(a, 200);
        prompt(b, cut);
        append(a, k, v, 200, cut - 200);
        for (uint32_t t = cut; t < LAST; t++) {
            append(a, k_other, v_other, t, 1);
            for (uint32_t layer = 0; layer < LAYERS; layer++) {
                assert_ok(hr_sequence_settle(a, layer));
            }
        }
        assert_ok(hr_sequence_stats_get(a, &st));
        assert_true(st.index_ns > 0 && st.body_rows == 0);
        assert_ok(hr_sequence_truncate(a, cut));
        static float all[GO_ON * LAYERS * HEADS * D];
        steps(a, cut, cut + GO_ON, all, &error_a);
        steps(b, cut, cut + GO_ON, all, &error_b);
        /* On disk a block costs more than so short a body's budget, unless it happens to wait to be written. */
        if (i % 2 == 0 && !(error_a <= 1.5 * error_b + 0.02)) {
            fail_msg("cut at %u: error %g; without the rows %g", cut, error_a, error_b);
        }
        attend(a, 1, HR_ATTEND_EXACT, cut + GO_ON - 1, 1, all, NULL);
        attend(b, 1, HR_ATTEND_EXACT, cut + GO_ON - 1, 1, all + HEADS * D, NULL);
        assert_true(apart(all, all + HEADS * D, HEADS * D) < 1e-5);
        assert_ok(hr_sequence_truncate(a, 0));
        assert_ok(hr_sequence_truncate(b, 0));
        assert_int_equal(stats_of(rt).tier[HR_TIER_HOST].bytes_held, 0);
        assert_int_equal(stats_of(rt).tier[HR_TIER_FILE].bytes_held, 0);
        hr_sequence_destroy(a);
        hr_sequence_destroy(b);
        assert_ok(hr_runtime_destroy(rt));
    }
}

/* Draft and take back, again and again, as a speculative decoder does. */
static void test_speculation(void **state)
{
    static const char *const names[] = {"headrace", "triforce", "retroinfer", "pqcache", "full"};
    (void)state;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        hr_runtime_t *rt = runtime_for(BOTH);
        hr_sequence_t *a = sequence_for(rt, &shape, names[i]),
                      *b = sequence_for(rt, &shape, names[i]);
        static float out[HEADS * D], exact_a[HEADS * D], exact_b[HEADS * D];
        prompt(a, 700);
        prompt(b, 700);
        uint32_t at = 700;
        for (int round = 0; round < 60; round++) {
            uint32_t drafted = 1 + (uint32_t)round % 7, taken = (uint32_t)round % (drafted + 1);
            for (uint32_t d = 0; d < drafted; d++) {
                for (uint32_t layer = 0; layer < LAYERS; layer++) {
                    bool right = d < taken;
                    append_layer(a, layer, right ? k : k_other, right ? v : v_other, at + d, 1);
                    attend(a, layer, HR_ATTEND_AUTO, at + d, 1, out, NULL);
                }
            }
            assert_ok(hr_sequence_truncate(a, at + taken));
            append(b, k, v, at, taken);
            at += taken;
            attend(a, 1, HR_ATTEND_EXACT, at - 1, 1, exact_a, NULL);
            attend(b, 1, HR_ATTEND_EXACT, at - 1, 1, exact_b, NULL);
            assert_true(apart(exact_a, exact_b, HEADS * D) < 1e-5);
        }
        hr_sequence_destroy(a);
        hr_sequence_destroy(b);
        assert_ok(hr_runtime_destroy(rt));
    }
}

/* A sliding window beside a layer that sees everything. */
static void test_sliding(void **state)
{
    static const uint32_t cuts[] = {0, 1, 40, 200, 1000};
    struct shape sliding = shape;
    sliding.sliding = 100;
    (void)state;
    for (size_t i = 0; i < sizeof cuts / sizeof *cuts; i++) {
        hr_runtime_t *rt = runtime_for(BOTH);
        hr_sequence_t *a = sequence_for(rt, &sliding, "quest"),
                      *b = sequence_for(rt, &sliding, "quest");
        append(a, k, v, 0, cuts[i]);
        append(a, k_other, v_other, cuts[i], 900);
        assert_ok(hr_sequence_truncate(a, cuts[i]));
        append(b, k, v, 0, cuts[i]);
        same_steps("quest", a, b, cuts[i]);
        hr_sequence_destroy(a);
        hr_sequence_destroy(b);
        assert_ok(hr_runtime_destroy(rt));
    }
}

/* -- the rest of the contract -- */

static void test_arguments(void **state)
{
    (void)state;
    hr_runtime_t *rt = runtime_for(MEMORY);
    hr_sequence_t *s = sequence_for(rt, &shape, "headrace");
    static float before[HEADS * D], after[HEADS * D];
    assert_fails(hr_sequence_truncate(NULL, 0), HR_ERR_INVALID, "no sequence");
    assert_ok(hr_sequence_truncate(s, 0));
    assert_fails(hr_sequence_truncate(s, 1), HR_ERR_INVALID, "layer 0 has 0");
    prompt(s, 300);
    attend(s, 1, HR_ATTEND_EXACT, 299, 1, before, NULL);
    assert_fails(hr_sequence_truncate(s, 301), HR_ERR_INVALID, "layer 0 has 300");
    assert_ok(hr_sequence_truncate(s, 300));
    attend(s, 1, HR_ATTEND_EXACT, 299, 1, after, NULL);
    assert_memory_equal(before, after, sizeof before);
    /* A token that reached the first layer only is taken back. */
    append_layer(s, 0, k, v, 300, 1);
    assert_fails(hr_sequence_truncate(s, 301), HR_ERR_INVALID, "layer 1 has 300");
    assert_ok(hr_sequence_truncate(s, 300));
    assert_int_equal(hr_sequence_length(s, 0), 300);
    hr_sequence_destroy(s);
    assert_ok(hr_runtime_destroy(rt));
}

/* A cancel that met no call is forgotten, also by one that then reads more than one buffer full. */
static void test_idle_cancel(void **state)
{
    enum { WIDE = 256, WIDE_KV = 8, ROWS = 1000 };
    static const struct shape wide = {.n_layers = 1,
                                      .n_q = WIDE_KV,
                                      .n_kv = WIDE_KV,
                                      .dk = WIDE,
                                      .dv = WIDE,
                                      .dtype = HR_DTYPE_BF16};
    static float kk[ROWS * WIDE_KV * WIDE], vv[ROWS * WIDE_KV * WIDE];
    struct random r = {.state = 78};
    (void)state;
    rows_make(&r, &wide, ROWS, kk, vv);
    hr_runtime_t *rt = runtime_for(BOTH);
    hr_sequence_t *s = sequence_for(rt, &wide, "headrace:window=600");
    assert_ok(rows_append(s, &wide, 0, kk, vv, 0, ROWS));
    hr_sequence_cancel(s);
    assert_ok(hr_sequence_truncate(s, ROWS - 100));
    hr_sequence_destroy(s);
    assert_ok(hr_runtime_destroy(rt));
}

/* Space comes back, and what is read does not grow with what stays. */
static void test_costs(void **state)
{
    static const uint32_t lengths[] = {700, 2300};
    uint64_t read[2] = {0};
    (void)state;
    for (int i = 0; i < 2; i++) {
        hr_runtime_t *rt = runtime_for(DISK);
        hr_sequence_t *s = sequence_for(rt, &shape, "headrace:decode_segment=256");
        prompt(s, lengths[i]);
        for (uint32_t layer = 0; layer < LAYERS; layer++) {
            assert_ok(hr_sequence_settle(s, layer));
        }
        uint64_t before = stats_of(rt).file_bytes_read;
        assert_ok(hr_sequence_truncate(s, lengths[i] - 150));
        read[i] = stats_of(rt).file_bytes_read - before;
        assert_ok(hr_sequence_truncate(s, 0));
        assert_int_equal(stats_of(rt).tier[HR_TIER_FILE].bytes_held, 0);
        hr_sequence_destroy(s);
        assert_ok(hr_runtime_destroy(rt));
    }
    assert_true(read[0] > 0);
    assert_true(read[1] <= read[0] + 2u * LAYERS * KV * 64 * 2 * D * 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_full_equals_never_had),
        cmocka_unit_test(test_full_random_history),
        cmocka_unit_test(test_in_the_window),
        cmocka_unit_test(test_segments_coincide),
        cmocka_unit_test(test_recipes_anywhere),
        cmocka_unit_test(test_headrace_on_disk),
        cmocka_unit_test(test_made_ahead),
        cmocka_unit_test(test_speculation),
        cmocka_unit_test(test_sliding),
        cmocka_unit_test(test_arguments),
        cmocka_unit_test(test_idle_cancel),
        cmocka_unit_test(test_costs),
    };
    return cmocka_run_group_tests(tests, text_setup, NULL);
}
