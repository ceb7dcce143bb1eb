/* Forks: each goes its own way from the same rows, whoever is cut, grown or destroyed first. */
#include "tests/runtime/naive.h"
#include "tests/test.h"

#include <math.h>
#include <stdbool.h>

enum { HEADS = 4, KV = 2, D = 64, N = 2000, LAYERS = 2, MORE = 20, WIDTH = HEADS * D };

static const struct shape shape = {
    .n_layers = LAYERS, .n_q = HEADS, .n_kv = KV, .dk = D, .dv = D, .dtype = HR_DTYPE_BF16};

/* Three texts that part at different places. */
static float k[3][N * KV * D], v[3][N * KV * D], q[N * WIDTH];

static int text_setup(void **state)
{
    struct random r = {.state = 31};
    (void)state;
    for (int i = 0; i < 3; i++) {
        rows_make(&r, &shape, N, k[i], v[i]);
    }
    queries_make(&r, &shape, N, q);
    return 0;
}

static hr_runtime_t *runtime_for(bool file)
{
    hr_runtime_t *rt = runtime_make(256u << 20, file ? 512u << 10 : 128u << 20,
                                    file ? disk_dir() : NULL, 256u << 20, HR_IO_AUTO);
    assert_non_null(rt);
    return rt;
}

static hr_sequence_t *sequence_make(hr_runtime_t *rt, const char *recipe)
{
    static const float gates[LAYERS * KV] = {1.0f, 0.0f, 0.0f, 1.0f};
    struct hr_sequence_options o;
    hr_sequence_t *s = NULL;
    options_for(&shape, N, recipe, 0.05, &o);
    o.head_gates = gates;
    o.keep_tokens = 1;
    assert_ok(hr_sequence_create(rt, &o, &s));
    return s;
}

static void append(hr_sequence_t *s, uint32_t layer, int text, uint32_t first, uint32_t n)
{
    assert_ok(rows_append(s, &shape, layer, k[text], v[text], first, n));
}

static void attend(hr_sequence_t *s, uint32_t layer, hr_attend_mode_t mode, uint32_t first,
                   uint32_t n, float *out)
{
    assert_ok(queries_attend(s, &shape, layer, mode, q, first, n, out, NULL));
}

static void prompt(hr_sequence_t *s, uint32_t n)
{
    static float out[N * WIDTH];
    for (uint32_t i = 0; i < LAYERS; i++) {
        append(s, i, 0, 0, n);
        attend(s, i, HR_ATTEND_EXACT, 0, n, out);
    }
}

static void steps(hr_sequence_t *s, int text, uint32_t first, uint32_t n, float *out)
{
    for (uint32_t t = first; t < first + n; t++) {
        for (uint32_t i = 0; i < LAYERS; i++, out += WIDTH) {
            append(s, i, text, t, 1);
            attend(s, i, HR_ATTEND_AUTO, t, 1, out);
        }
    }
}

static float got[700 * LAYERS * WIDTH], want[700 * LAYERS * WIDTH];

/* The frames of a fork are empty, and headrace's choice depends on what lies in frames; with a file tier every recipe's depends on what
 * lies in host memory. */
static void close_to(const char *recipe, bool file, uint32_t n)
{
    double most = file ? 1 : strncmp(recipe, "headrace", 8) == 0 ? 0.2 : 1e-5;
    double e = apart(got, want, (size_t)n * LAYERS * WIDTH);
    if (!(e < most)) {
        fail_msg("%s: %g apart", recipe, e);
    }
}

static void same_rows(hr_sequence_t *a, hr_sequence_t *b, uint32_t n)
{
    static float x[WIDTH], y[WIDTH];
    for (uint32_t i = 0; i < LAYERS; i++) {
        assert_int_equal(hr_sequence_length(a, i), n);
        attend(a, i, HR_ATTEND_EXACT, n - 1, 1, x);
        attend(b, i, HR_ATTEND_EXACT, n - 1, 1, y);
        assert_true(apart(x, y, WIDTH) < 1e-5);
    }
}

static void part_ways(const char *recipe, bool file, uint32_t n, uint32_t turns)
{
    hr_runtime_t *rt = runtime_for(file);
    hr_sequence_t *s = sequence_make(rt, recipe), *a = sequence_make(rt, recipe),
                  *b = sequence_make(rt, recipe), *fork = NULL;
    prompt(s, n);
    prompt(a, n);
    prompt(b, n);
    steps(s, 0, n, 5, got);
    steps(a, 0, n, 5, want);
    steps(b, 0, n, 5, want);
    assert_ok(hr_sequence_fork(s, &fork));
    /* in turns, past where segments are grouped */
    for (uint32_t t = n + 5; t < n + 5 + turns * 100; t += 100) {
        steps(s, 1, t, 100, got);
        steps(a, 1, t, 100, want);
        close_to(recipe, file, 100);
        steps(fork, 2, t, 100, got);
        steps(b, 2, t, 100, want);
        close_to(recipe, file, 100);
    }
    same_rows(s, a, n + 5 + turns * 100);
    same_rows(fork, b, n + 5 + turns * 100);
    /* the fork falls back behind the place where they parted, the other goes */
    assert_ok(hr_sequence_truncate(fork, n - 70));
    assert_ok(hr_sequence_truncate(b, n - 70));
    hr_sequence_destroy(s);
    steps(fork, 1, n - 70, MORE, got);
    steps(b, 1, n - 70, MORE, want);
    same_rows(fork, b, n - 70 + MORE);
    hr_sequence_destroy(a);
    hr_sequence_destroy(b);
    hr_sequence_destroy(fork);
    struct hr_runtime_stats st = {.struct_size = sizeof st};
    assert_ok(hr_runtime_stats_get(rt, &st));
    assert_int_equal(st.tier[HR_TIER_HOST].bytes_held, 0);
    assert_int_equal(st.tier[HR_TIER_FILE].bytes_held, 0);
    assert_int_equal(st.tier[HR_TIER_DEVICE].bytes_held, 0);
    assert_ok(hr_runtime_destroy(rt));
}

static void test_every_recipe(void **state)
{
    struct hr_recipe_info info;
    (void)state;
    for (size_t i = 0; hr_recipe_describe(i, &info) == HR_OK; i++) {
        if (!info.takes_argument) {
            part_ways(info.name, i % 2, 500, 1);
        }
    }
    part_ways("headrace", false, 700, 3);
    part_ways("headrace", false, 290, 1); /* while some heads have grouped the next segment */
    part_ways("headrace", true, 313, 2);
    part_ways("headrace:sketch=0,decode_segment=48", false, 300, 2);
    part_ways("headrace:sketch_host=1,decode_segment=48", true, 300, 2);
    part_ways("retroinfer", false, 700, 3);
    part_ways("pqcache", true, 700, 3);
    part_ways("quest", false, 1000, 3);
#if HR_HAVE_FAISS
    part_ways("faiss:Flat", false, 500, 1);
#endif
}

static void test_lengths(void **state)
{
    static const uint32_t lengths[] = {75, 128, 129, 320, 400};
    (void)state;
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        part_ways("quest", i % 2, lengths[i], 1);
        part_ways("full", i % 2, lengths[i], 1);
    }
}

/* A tree of forks against plain memories of their rows. */
static void test_random_trees(void **state)
{
    enum { MOST = 6 };
    uint64_t seed = test_seed(5);
    struct random r = {.state = seed};
    static struct naive memory[MOST];
    static float out[WIDTH];
    static double truth[WIDTH];
    hr_sequence_t *s[MOST] = {NULL};
    (void)state;
    hr_runtime_t *rt = runtime_for(true);
    for (int i = 0; i < MOST; i++) {
        naive_init(&memory[i], &shape, N);
    }
    s[0] = sequence_make(rt, "full");
    unsigned refused = 0;
    for (int round = 0; round < 500; round++) {
        uint32_t i = (uint32_t)(random_uniform(&r) * MOST),
                 j = (uint32_t)(random_uniform(&r) * MOST);
        double what = random_uniform(&r);
        struct naive *m = &memory[i];
        if (s[i] == NULL) {
            continue;
        }
        if (what < 0.15 && s[j] == NULL) {
            hr_status_t status = hr_sequence_fork(s[i], &s[j]);
            if (status == HR_ERR_FULL) {
                refused++;
                s[j] = NULL;
                continue;
            }
            assert_ok(status);
            memory[j].n = m->n;
            memcpy(memory[j].k, m->k, (size_t)m->n * KV * D * sizeof(float));
            memcpy(memory[j].v, m->v, (size_t)m->n * KV * D * sizeof(float));
        } else if (what < 0.22 && j != i && s[j] != NULL) {
            hr_sequence_destroy(s[i]);
            s[i] = NULL;
            continue;
        } else if (what < 0.45) {
            m->n = (uint32_t)(sqrt(random_uniform(&r)) * (m->n + 1));
            assert_ok(hr_sequence_truncate(s[i], m->n));
        } else {
            uint32_t n = (uint32_t)(random_uniform(&r) * random_uniform(&r) * 400) + 1;
            int text = (int)(random_uniform(&r) * 3);
            n = m->n + n < N ? n : N - m->n;
            for (uint32_t layer = 0; layer < LAYERS && n > 0; layer++) {
                append(s[i], layer, text, m->n, n);
            }
            naive_append(m, k[text] + (size_t)m->n * KV * D, v[text] + (size_t)m->n * KV * D, n);
        }
        if (m->n > 0) {
            attend(s[i], 1, HR_ATTEND_EXACT, m->n - 1, 1, out);
            naive_attend(m, 1, q + (size_t)(m->n - 1) * WIDTH, 1, truth);
            if (error_max(out, truth, HEADS, D) > 1e-4) {
                fail_msg("seed %llu, round %d", (unsigned long long)seed, round);
            }
        }
    }
    for (int i = 0; i < MOST; i++) {
        hr_sequence_destroy(s[i]);
        naive_fini(&memory[i]);
    }
    struct hr_runtime_stats st = {.struct_size = sizeof st};
    assert_ok(hr_runtime_stats_get(rt, &st));
    assert_int_equal(st.tier[HR_TIER_FILE].bytes_held, 0);
    assert_int_equal(st.tier[HR_TIER_DEVICE].bytes_held, 0);
    assert_ok(hr_runtime_destroy(rt));
}

/* Until somebody writes, all forks read one window; who leaves it first or last, and who is destroyed before, does not matter. What a fork
 * brought is enough: the first append afterwards allocates nothing. */
static void test_shared_windows(void **state)
{
    enum { MOST = 4, CUT = 300 };
    static const int orders[][MOST] = {{0, 1, 2, 3}, {3, 2, 1, 0}, {1, 3, 0, 2}, {2, 0, 3, 1}};
    static float out[WIDTH], want_out[WIDTH];
    struct hr_runtime_stats before = {.struct_size = sizeof before}, after = before;
    (void)state;
    for (int order = 0; order < 4; order++) {
        hr_runtime_t *rt = runtime_for(order % 2);
        hr_sequence_t *s[MOST] = {sequence_make(rt, "full")}, *alone[MOST];
        prompt(s[0], CUT);
        for (int i = 1; i < MOST; i++) {
            assert_ok(hr_sequence_fork(s[i / 2], &s[i]));
        }
        for (int i = 0; i < MOST; i++) {
            alone[i] = sequence_make(rt, "full");
            prompt(alone[i], CUT);
        }
        for (int i = 0; i < MOST; i++) {
            int at = orders[order][i];
            if (i == 2) { /* one of them never writes */
                hr_sequence_destroy(s[at]);
                s[at] = NULL;
                continue;
            }
            assert_ok(hr_runtime_stats_get(rt, &before));
            for (uint32_t layer = 0; layer < LAYERS; layer++) {
                append(s[at], layer, at % 3, CUT, 1);
            }
            assert_ok(hr_runtime_stats_get(rt, &after));
            assert_int_equal(after.allocations, before.allocations);
            for (uint32_t layer = 0; layer < LAYERS; layer++) {
                append(alone[at], layer, at % 3, CUT, 1);
            }
        }
        for (int i = 0; i < MOST; i++) {
            for (uint32_t layer = 0; layer < LAYERS && s[i] != NULL; layer++) {
                attend(s[i], layer, HR_ATTEND_EXACT, CUT, 1, out);
                attend(alone[i], layer, HR_ATTEND_EXACT, CUT, 1, want_out);
                assert_memory_equal(out, want_out, sizeof out);
            }
            hr_sequence_destroy(s[i]);
            hr_sequence_destroy(alone[i]);
        }
        assert_ok(hr_runtime_stats_get(rt, &after));
        assert_int_equal(after.tier[HR_TIER_DEVICE].bytes_held, 0);
        assert_ok(hr_runtime_destroy(rt));
    }
}

static void test_depth(void **state)
{
    hr_sequence_t *s[HR_FORK_DEPTH_MAX + 3] = {NULL}, *more = NULL;
    (void)state;
    hr_runtime_t *rt = runtime_for(false);
    s[0] = sequence_make(rt, "full");
    prompt(s[0], 64);
    /* many forks of one text are no deeper than one */
    for (uint32_t i = 0; i < 3 * HR_FORK_DEPTH_MAX; i++) {
        assert_ok(hr_sequence_fork(s[0], &more));
        hr_sequence_destroy(more);
    }
    uint32_t depth = 0;
    hr_status_t status = HR_OK;
    while (status == HR_OK && depth + 1 < sizeof s / sizeof *s) {
        for (uint32_t layer = 0; layer < LAYERS; layer++) {
            append(s[depth], layer, 1, 64 * (depth + 1), 64);
        }
        status = hr_sequence_fork(s[depth], &s[depth + 1]);
        depth += status == HR_OK;
    }
    assert_int_equal(status, HR_ERR_FULL);
    assert_non_null(strstr(hr_last_error(), "16 is the limit"));
    assert_in_range(depth, HR_FORK_DEPTH_MAX - 1, HR_FORK_DEPTH_MAX);
    /* what could not be forked still works */
    static float out[WIDTH];
    attend(s[depth], 0, HR_ATTEND_EXACT, 64 * (depth + 2) - 1, 1, out);
    for (uint32_t i = 0; i <= depth; i++) {
        hr_sequence_destroy(s[i]);
    }
    assert_fails(hr_sequence_fork(NULL, &more), HR_ERR_INVALID, "no sequence");
    assert_ok(hr_runtime_destroy(rt));
}

/* Rows are shared: the host tier holds them once; a device that has no room for another window refuses. */
static void test_costs(void **state)
{
    (void)state;
    hr_runtime_t *rt = runtime_for(false);
    hr_sequence_t *s = sequence_make(rt, "quest"), *fork = NULL;
    struct hr_runtime_stats before = {.struct_size = sizeof before}, after = before;
    prompt(s, 1800);
    for (uint32_t i = 0; i < LAYERS; i++) {
        assert_ok(hr_sequence_settle(s, i));
    }
    assert_ok(hr_runtime_stats_get(rt, &before));
    assert_ok(hr_sequence_fork(s, &fork));
    assert_ok(hr_runtime_stats_get(rt, &after));
    assert_int_equal(after.tier[HR_TIER_HOST].bytes_held, before.tier[HR_TIER_HOST].bytes_held);
    hr_sequence_destroy(fork);
    hr_sequence_destroy(s);
    assert_ok(hr_runtime_destroy(rt));

    rt = runtime_make(1600u << 10, 64u << 20, NULL, 0, HR_IO_AUTO);
    s = sequence_make(rt, "quest");
    prompt(s, 500);
    hr_status_t status = HR_OK;
    hr_sequence_t *many[64] = {NULL};
    uint32_t n = 0;
    while (n < 64 && (status = hr_sequence_fork(s, &many[n])) == HR_OK) {
        n++;
    }
    assert_int_equal(status, HR_ERR_BUDGET);
    assert_non_null(strstr(hr_last_error(), "device tier"));
    steps(s, 1, 500, 2, got);
    for (uint32_t i = 0; i < n; i++) {
        hr_sequence_destroy(many[i]);
    }
    hr_sequence_destroy(s);
    assert_ok(hr_runtime_destroy(rt));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_recipe), cmocka_unit_test(test_lengths),
        cmocka_unit_test(test_random_trees), cmocka_unit_test(test_shared_windows),
        cmocka_unit_test(test_depth),        cmocka_unit_test(test_costs),
    };
    return cmocka_run_group_tests(tests, text_setup, NULL);
}
