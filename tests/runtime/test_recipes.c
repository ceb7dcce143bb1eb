/* Every recipe there is, through the public API: lengths from nothing on, both tiers, no allocation in a step, budgets kept, and the
 * calls that describe recipes and read their files. */
#include "tests/runtime/naive.h"

#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include <headrace/parse.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { HEADS = 4, KV = 2, D = 64, N = 1700 };

static const struct shape shape = {
    .n_layers = 1, .n_q = HEADS, .n_kv = KV, .dk = D, .dv = D, .dtype = HR_DTYPE_BF16};

static float k[N * KV * D], v[N * KV * D], q[N * HEADS * D], out[N * HEADS * D];

static int text_setup(void **state)
{
    struct random r = {.state = 5};
    (void)state;
    rows_make(&r, &shape, N, k, v);
    queries_make(&r, &shape, N, q);
    return 0;
}

static hr_dtype_t dtype = HR_DTYPE_BF16;

static hr_sequence_t *sequence_open(hr_runtime_t *rt, const char *recipe, double moved)
{
    static const float gates[KV] = {1.0f, 0.0f};
    struct hr_sequence_options o;
    hr_sequence_t *s = NULL;
    options_for(&shape, N, recipe, moved, &o);
    o.head_gates = gates;
    o.dtype = dtype;
    if (hr_sequence_create(rt, &o, &s) != HR_OK) {
        fail_msg("%s: %s", recipe, hr_last_error());
    }
    return s;
}

static void append(hr_sequence_t *s, uint32_t first, uint32_t n)
{
    assert_int_equal(rows_append(s, &shape, 0, k, v, first, n), HR_OK);
}

static void attend(const char *name, hr_sequence_t *s, uint32_t first, uint32_t n, bool check,
                   struct hr_attend_report *report)
{
    struct hr_tensor tq = hr_tensor_make(q + first * HEADS * D, HR_DTYPE_F32, n, HEADS, D),
                     to = hr_tensor_make(out, HR_DTYPE_F32, n, HEADS, D);
    struct hr_attend_options o;
    hr_attend_options_init(&o);
    o.check_exact = check;
    if (hr_sequence_attend(s, 0, &tq, &o, &to, report, NULL) != HR_OK) {
        fail_msg("%s: token %u: %s", name, first, hr_last_error());
    }
    for (uint32_t i = 0; i < n * HEADS * D; i++) {
        assert_true(isfinite(out[i]));
    }
}

static uint64_t allocations(const hr_runtime_t *rt)
{
    struct hr_runtime_stats st = {.struct_size = sizeof st};
    assert_int_equal(hr_runtime_stats_get(rt, &st), HR_OK);
    for (int i = 0; i < HR_TIERS; i++) {
        assert_true(st.tier[i].bytes_peak <= st.tier[i].bytes_cap);
    }
    return st.allocations;
}

/* A step whose body did not grow allocates nothing, and spends no more than it may. */
static void play(const char *name, double moved, uint32_t prompt, uint32_t end, bool file)
{
    hr_runtime_t *rt = runtime_make(64u << 20, file ? 256u << 10 : 64u << 20,
                                    file ? disk_dir() : NULL, 64u << 20, HR_IO_AUTO);
    hr_sequence_t *s = sequence_open(rt, name, moved);
    struct hr_attend_report report;
    uint64_t body = 0;
    append(s, 0, prompt);
    attend(name, s, 0, prompt, false, &report);
    for (uint32_t p = prompt; p < end; p++) {
        append(s, p, 1);
        uint64_t before = allocations(rt);
        attend(name, s, p, 1, false, &report);
        if (p > prompt && report.body_bytes == body && allocations(rt) != before) {
            fail_msg("%s: token %u: a step allocated", name, p);
        }
        body = report.body_bytes;
        if (!recipe_streams(name) && !file && strcmp(name, "headrace") != 0) {
            /* heads of a layer may share their budgets */
            assert_true(report.bytes_selected <= (uint64_t)(moved * (double)body) + KV);
        }
    }
    hr_sequence_destroy(s);
    assert_int_equal(hr_runtime_destroy(rt), HR_OK);
}

static void test_lengths(void **state)
{
    static const uint32_t prompts[] = {1, 3, 70, 330};
    (void)state;
    for (size_t i = 0; hr_recipe_name(i); i++) {
        for (size_t j = 0; j < 4 && recipe_is_plain(i); j++) {
            play(hr_recipe_name(i), 0.05, prompts[j], prompts[j] + 40, false);
        }
    }
}

static void test_long(void **state)
{
    (void)state;
    for (size_t i = 0; hr_recipe_name(i); i++) {
        if (recipe_is_plain(i)) {
            play(hr_recipe_name(i), 0.02, 1200, N, false);
        }
    }
}

static void test_file_tier(void **state)
{
    (void)state;
    for (size_t i = 0; hr_recipe_name(i); i++) {
        if (recipe_is_plain(i)) {
            play(hr_recipe_name(i), 0.1, 1200, 1320, true);
        }
    }
}

/* With the whole body as budget a recipe that drops the rest drops nothing. */
static void test_everything(void **state)
{
    static const char *const names[] = {"full",
                                        "exact-topk",
                                        "quest",
                                        "arkvale",
                                        "shadowkv:rank=0",
                                        "shadowkv:rank=128",
                                        "retroinfer",
                                        "freekv",
                                        "louiskv",
                                        "tokenselect:sink=4,window=64",
                                        "infinigen:alpha=8,most=1,columns=1",
                                        "instinfer"};
    (void)state;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        for (int file = 0; file < 2; file++) {
            hr_runtime_t *rt = runtime_make(64u << 20, file ? 256u << 10 : 64u << 20,
                                            file ? disk_dir() : NULL, 64u << 20, HR_IO_AUTO);
            hr_sequence_t *s = sequence_open(rt, names[i], 1.0);
            struct hr_attend_report report;
            append(s, 0, 900);
            attend(names[i], s, 0, 900, false, &report);
            for (uint32_t p = 900; p < 910; p++) {
                append(s, p, 1);
                attend(names[i], s, p, 1, true, &report);
                /* On the file a block costs a whole cell, so the budget does not reach for all of them. */
                double most = file || strncmp(names[i], "infinigen", 9) == 0 ? 0.35 : 2e-3;
                if (!(report.true_error_max <= most)) {
                    fail_msg("%s: error %g", names[i], report.true_error_max);
                }
            }
            hr_sequence_destroy(s);
            assert_int_equal(hr_runtime_destroy(rt), HR_OK);
        }
    }
}

/* InstInfer moves an output and a log-sum-exp per query head, wherever the rows lie. */
static void test_in_place(void **state)
{
    (void)state;
    dtype = HR_DTYPE_F32;
    for (int file = 0; file < 2; file++) {
        hr_runtime_t *rt = runtime_make(64u << 20, file ? 128u << 10 : 64u << 20,
                                        file ? disk_dir() : NULL, 64u << 20, HR_IO_AUTO);
        hr_sequence_t *s = sequence_open(rt, "instinfer", 0.01);
        struct hr_attend_report report;
        append(s, 0, 1600);
        attend("instinfer", s, 0, 1600, false, &report);
        append(s, 1600, 1);
        attend("instinfer", s, 1600, 1, true, &report);
        assert_true(report.true_error_max < 1e-5);
        assert_int_equal(report.bytes_from_host, HEADS * (D + 1) * sizeof(float));
        assert_int_equal(report.bytes_selected, report.bytes_from_host);
        assert_int_equal(report.bytes_from_file, 0);
        assert_int_equal(report.rows_by_level[3], 1601 * KV);
        hr_sequence_destroy(s);
        assert_int_equal(hr_runtime_destroy(rt), HR_OK);
    }
    dtype = HR_DTYPE_BF16;
}

static void expect(hr_status_t got, hr_status_t want, const char *words)
{
    assert_int_equal(got, want);
    if (!strstr(hr_last_error(), words)) {
        fail_msg("'%s' does not say '%s'", hr_last_error(), words);
    }
}

static void test_prefetch(void **state)
{
    (void)state;
    hr_runtime_t *rt = runtime_make(64u << 20, 64u << 20, NULL, 0, HR_IO_AUTO);
    hr_sequence_t *s = sequence_open(rt, "infinigen", 0.05),
                  *other = sequence_open(rt, "quest", 0.05);
    struct hr_tensor early = hr_tensor_make(q, HR_DTYPE_F32, 1, HEADS, D),
                     wrong = hr_tensor_make(q, HR_DTYPE_F32, 1, HEADS, D / 2);
    float bad[HEADS * D] = {NAN};
    struct hr_tensor nan = hr_tensor_make(bad, HR_DTYPE_F32, 1, HEADS, D);
    assert_int_equal(hr_sequence_wants_prefetch(s, 0), 1);
    assert_int_equal(hr_sequence_wants_prefetch(s, 1), 0);
    assert_int_equal(hr_sequence_wants_prefetch(other, 0), 0);
    assert_int_equal(hr_sequence_wants_prefetch(NULL, 0), 0);
    assert_int_equal(hr_sequence_prefetch(s, 0, &early, NULL), HR_OK); /* nothing there yet */
    assert_int_equal(hr_sequence_prefetch(other, 0, &early, NULL), HR_OK);
    append(s, 0, 700);
    assert_int_equal(hr_sequence_prefetch(s, 0, &early, NULL), HR_OK);
    expect(hr_sequence_prefetch(s, 0, &wrong, NULL), HR_ERR_SHAPE, "q");
    expect(hr_sequence_prefetch(s, 0, &nan, NULL), HR_ERR_NONFINITE, "q");
    expect(hr_sequence_prefetch(s, 3, &early, NULL), HR_ERR_INVALID, "no such layer");
    expect(hr_sequence_prefetch(NULL, 0, &early, NULL), HR_ERR_INVALID, "no sequence");
    hr_sequence_destroy(s);
    hr_sequence_destroy(other);
    assert_int_equal(hr_runtime_destroy(rt), HR_OK);
}

/* A hint goes where the sequence goes: a fork and a reopened session choose by it, too. It is of the rows it was given for: a truncate
 * forgets it. Without it the choice is another one. */
static void test_prefetch_is_kept(void **state)
{
    enum { PROMPT = 900, WIDTH = HEADS * D, WAYS = 5 };
    static float got[WAYS][WIDTH];
    static const char *const ways[WAYS] = {"itself", "a fork", "a session", "cut", "no hint"};
    char dir[1200];
    static const float gates[KV] = {1.0f, 0.0f};
    struct hr_sequence_options o;
    struct hr_attend_report report;
    struct hr_tensor early = hr_tensor_make(q + (PROMPT + 300) * WIDTH, HR_DTYPE_F32, 1, HEADS, D);
    (void)state;
    snprintf(dir, sizeof dir, "%s/prefetch-%d", disk_dir(), (int)getpid());
    hr_runtime_t *rt = runtime_make(64u << 20, 64u << 20, NULL, 0, HR_IO_AUTO);
    hr_sequence_t *s[WAYS] = {NULL};
    for (int i = 0; i < WAYS; i++) {
        if (i == 1 || i == 2)
            continue;
        s[i] = sequence_open(rt, "infinigen", 0.05);
        append(s[i], 0, PROMPT);
        attend(ways[i], s[i], 0, PROMPT, false, &report);
        assert_int_equal(hr_sequence_settle(s[i], 0), HR_OK);
        if (i < 4)
            assert_int_equal(hr_sequence_prefetch(s[i], 0, &early, NULL), HR_OK);
    }
    assert_int_equal(hr_sequence_fork(s[0], &s[1]), HR_OK);
    assert_int_equal(hr_sequence_save(s[0], dir, NULL), HR_OK);
    options_for(&shape, N, "infinigen", 0.05, &o);
    o.head_gates = gates;
    assert_int_equal(hr_sequence_open(rt, dir, &o, NULL, &s[2]), HR_OK);
    append(s[3], PROMPT, 1);
    assert_int_equal(hr_sequence_truncate(s[3], PROMPT), HR_OK);
    for (int i = 0; i < WAYS; i++) {
        append(s[i], PROMPT, 1);
        attend(ways[i], s[i], PROMPT, 1, false, &report);
        memcpy(got[i], out, sizeof got[i]);
        hr_sequence_destroy(s[i]);
    }
    for (int i = 1; i < WAYS; i++) {
        const float *as = i == 3 ? got[4] : got[0];
        if (i < 4 && memcmp(got[i], as, sizeof got[i]) != 0)
            fail_msg("%s: %g apart", ways[i], apart(got[i], as, WIDTH));
    }
    assert_true(apart(got[4], got[0], WIDTH) > 1e-4);
    assert_int_equal(hr_session_remove(dir), HR_OK);
    assert_int_equal(hr_runtime_destroy(rt), HR_OK);
}

/* A sequence that is only shown the prompt's queries chooses and answers as one that attended them. */
static void test_observe(void **state)
{
    enum { PROMPT = 900, STEPS = 12, WIDTH = HEADS * D };
    static float twin[WIDTH];
    (void)state;
    for (size_t i = 0; hr_recipe_name(i); i++) {
        if (!recipe_is_plain(i)) {
            continue;
        }
        const char *name = hr_recipe_name(i);
        hr_runtime_t *rt = runtime_make(64u << 20, 64u << 20, NULL, 0, HR_IO_AUTO);
        hr_sequence_t *attended = sequence_open(rt, name, 0.05),
                      *shown = sequence_open(rt, name, 0.05);
        struct hr_attend_report a, b;
        for (uint32_t p = 0; p < PROMPT; p += 300) {
            struct hr_tensor tq = hr_tensor_make(q + p * WIDTH, HR_DTYPE_F32, 300, HEADS, D);
            append(attended, p, 300);
            attend(name, attended, p, 300, false, &a);
            append(shown, p, 300);
            assert_int_equal(hr_sequence_observe(shown, 0, &tq), HR_OK);
        }
        assert_int_equal(hr_sequence_settle(attended, 0), HR_OK);
        assert_int_equal(hr_sequence_settle(shown, 0), HR_OK);
        for (uint32_t p = PROMPT; p < PROMPT + STEPS; p++) {
            append(attended, p, 1);
            attend(name, attended, p, 1, false, &a);
            memcpy(twin, out, sizeof twin);
            append(shown, p, 1);
            attend(name, shown, p, 1, false, &b);
            if (memcmp(twin, out, sizeof twin) != 0 || a.bytes_selected != b.bytes_selected) {
                fail_msg("%s: token %u: shown and attended queries differ in effect", name, p);
            }
        }
        hr_sequence_destroy(attended);
        hr_sequence_destroy(shown);
        assert_int_equal(hr_runtime_destroy(rt), HR_OK);
    }
    hr_runtime_t *rt = runtime_make(64u << 20, 64u << 20, NULL, 0, HR_IO_AUTO);
    hr_sequence_t *s = sequence_open(rt, "headrace", 0.05);
    struct hr_tensor tq = hr_tensor_make(q, HR_DTYPE_F32, 2, HEADS, D);
    expect(hr_sequence_observe(NULL, 0, &tq), HR_ERR_INVALID, "no sequence");
    expect(hr_sequence_observe(s, 1, &tq), HR_ERR_INVALID, "no such layer");
    expect(hr_sequence_observe(s, 0, &tq), HR_ERR_STATE, "has 0 tokens; 2 queries are more");
    tq.shape[1] = HEADS + 1;
    append(s, 0, 2);
    expect(hr_sequence_observe(s, 0, &tq), HR_ERR_SHAPE, "");
    expect(hr_sequence_observe(s, 0, NULL), HR_ERR_INVALID, "");
    hr_sequence_destroy(s);
    assert_int_equal(hr_runtime_destroy(rt), HR_OK);
}

static void test_gates(void **state)
{
    float gates[KV] = {0.2f, 1.5f};
    struct hr_sequence_options o;
    hr_sequence_t *s = NULL;
    (void)state;
    hr_runtime_t *rt = runtime_make(64u << 20, 64u << 20, NULL, 0, HR_IO_AUTO);
    options_for(&shape, N, "duoattention", 0.05, &o);
    expect(hr_sequence_create(rt, &o, &s), HR_ERR_INVALID, "head_gates");
    o.head_gates = gates;
    expect(hr_sequence_create(rt, &o, &s), HR_ERR_INVALID, "kv-head 1 is 1.5");
    gates[1] = NAN;
    expect(hr_sequence_create(rt, &o, &s), HR_ERR_INVALID, "kv-head 1");
    assert_null(s);
    assert_int_equal(hr_runtime_destroy(rt), HR_OK);
}

static void test_gate_tables(void **state)
{
    float gates[4] = {-7, -7, -7, -7};
    (void)state;
#define READ(text, layers, heads)                                                                  \
    hr_parse_head_gates("t", text, sizeof text - 1, layers, heads, gates)
    assert_int_equal(READ("1\t-9.58e-05\n1.004 0.25", 2, 2), HR_OK);
    assert_true(gates[0] == 1 && gates[1] == 0 && gates[2] == 1 && gates[3] == 0.25f);
    assert_int_equal(READ("# a\n\n 0.5 , 0\r\n0,1\t\n", 2, 2), HR_OK);
    assert_true(gates[0] == 0.5f && gates[3] == 1);
    gates[0] = -7;
    expect(READ("1 1\n1", 2, 2), HR_ERR_SHAPE, "t:2: 1 gates");
    expect(READ("1 1\n1 1 1", 2, 2), HR_ERR_SHAPE, "t:2: 3 gates");
    expect(READ("1 1\n", 2, 2), HR_ERR_SHAPE, "1 lines");
    expect(READ("", 2, 2), HR_ERR_SHAPE, "0 lines");
    expect(READ("1 1\n1 inf", 2, 2), HR_ERR_INVALID, "t:2: head 1: 'inf'");
    expect(READ("1 1\n1 1.2", 2, 2), HR_ERR_INVALID, "not between 0 and 1");
    expect(READ("1 1\n1 -0.2", 2, 2), HR_ERR_INVALID, "not between 0 and 1");
    expect(READ("1,,1\n1 1", 2, 2), HR_ERR_INVALID, "t:1");
    expect(READ("1 1\0\n1 1", 2, 2), HR_ERR_INVALID, "t:1");
    expect(hr_parse_head_gates("t", NULL, 0, 1, 1, gates), HR_ERR_INVALID, "no text");
    assert_true(gates[0] == -7); /* nothing half-written */
#undef READ
}

static void test_describe(void **state)
{
    struct hr_recipe_info info;
    struct hr_recipe_param p;
    size_t n = 0;
    (void)state;
    for (; hr_recipe_name(n); n++) {
        assert_int_equal(hr_recipe_describe(n, &info), HR_OK);
        assert_string_equal(info.name, hr_recipe_name(n));
        assert_true(*info.summary && *info.source);
        for (uint32_t i = 0; i < info.n_params; i++) {
            assert_int_equal(hr_recipe_param(n, i, &p), HR_OK);
            assert_true(p.name && *p.meaning && p.source && p.value_default <= p.max);
            assert_true(p.min <= p.value_default || p.value_default == 0); /* 0: by itself */
            assert_true(!p.whole || p.value_default == floor(p.value_default));
        }
        expect(hr_recipe_param(n, info.n_params, &p), HR_ERR_NOTFOUND, "no parameter number");
        assert_true(info.takes_argument || hr_recipe_check(info.name) == HR_OK);
    }
    expect(hr_recipe_describe(n, &info), HR_ERR_NOTFOUND, "no recipe number");
    expect(hr_recipe_param(n, 0, &p), HR_ERR_NOTFOUND, "no parameter");
    expect(hr_recipe_check("qest"), HR_ERR_NOTFOUND, "nearest is 'quest'");
    expect(hr_recipe_check(NULL), HR_ERR_INVALID, "empty");
}

static void test_recipe_files(void **state)
{
    char text[64];
    (void)state;
#define READ(file, bytes) hr_recipe_parse_file("f", file, sizeof file - 1, text, bytes)
    assert_int_equal(READ("recipe=quest", sizeof text), HR_OK);
    assert_string_equal(text, "quest");
    assert_int_equal(READ("# x\nsink = 8 # y\n\trecipe = quest\r\npage=\t32\n", sizeof text),
                     HR_OK);
    assert_string_equal(text, "quest:sink=8,page=32");
    strcpy(text, "kept");
    expect(READ("recipe = quest\npage = 32", 10), HR_ERR_INVALID, "longer than 9");
    expect(READ("recipe = quest\n\npge = 3", sizeof text), HR_ERR_NOTFOUND,
           "f:3: recipe quest has no");
    expect(READ("recipe = quest\npage = x", sizeof text), HR_ERR_INVALID, "f:2:");
    expect(READ("recipe = quest\nrecipe = quest", sizeof text), HR_ERR_INVALID,
           "set already in line 1");
    expect(READ("recipe = quest\npage\0= 3", sizeof text), HR_ERR_INVALID, "zero byte");
    expect(READ("recipe = quest\nargument = x,y", sizeof text), HR_ERR_INVALID, "f:2:");
    expect(READ("", sizeof text), HR_ERR_INVALID, "recipe = NAME");
    expect(hr_recipe_parse_file("f", NULL, 0, text, sizeof text), HR_ERR_INVALID, "no text");
    assert_string_equal(text, "kept");
#undef READ
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lengths),
        cmocka_unit_test(test_long),
        cmocka_unit_test(test_file_tier),
        cmocka_unit_test(test_everything),
        cmocka_unit_test(test_in_place),
        cmocka_unit_test(test_prefetch),
        cmocka_unit_test(test_prefetch_is_kept),
        cmocka_unit_test(test_observe),
        cmocka_unit_test(test_gates),
        cmocka_unit_test(test_gate_tables),
        cmocka_unit_test(test_describe),
        cmocka_unit_test(test_recipe_files),
    };
    return cmocka_run_group_tests(tests, text_setup, NULL);
}
