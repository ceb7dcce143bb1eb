/* Bad input: one clear error that says what and where, and nothing lost. */
#include "tests/runtime/naive.h"

#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const struct shape shape = {
    .n_layers = 2, .n_q = 4, .n_kv = 2, .dk = 32, .dv = 32, .dtype = HR_DTYPE_BF16};

static void expect(hr_status_t got, hr_status_t want, const char *words)
{
    if (got != want || strstr(hr_last_error(), words) == NULL) {
        fail_msg("got %s \"%s\", want %s with \"%s\"", hr_status_name(got), hr_last_error(),
                 hr_status_name(want), words);
    }
}

/* One thread that says it were three. */
static void run_backwards(void *n_tasks_sum, hr_task_fn fn, void *fn_context, uint32_t n_tasks)
{
    *(uint32_t *)n_tasks_sum += n_tasks;
    for (uint32_t i = n_tasks; i-- > 0;) {
        fn(fn_context, i, i % 3);
    }
}

static void test_runtime_options(void **state)
{
    (void)state;
    struct hr_runtime_options o;
    hr_runtime_t *rt = (hr_runtime_t *)&o;
    expect(hr_runtime_create(NULL, &rt), HR_ERR_INVALID, "no options");
    hr_runtime_options_init(&o);
    o.struct_size = 8;
    expect(hr_runtime_create(&o, &rt), HR_ERR_VERSION, "struct_size 8");
    hr_runtime_options_init(&o);
    o.file_dir = disk_dir();
    expect(hr_runtime_create(&o, &rt), HR_ERR_INVALID, "file_bytes");
    o.file_bytes = 1 << 20;
    o.file_dir = "/nonexistent/folder";
    hr_status_t status = hr_runtime_create(&o, &rt);
    assert_true(status != HR_OK && strstr(hr_last_error(), "/nonexistent/folder") != NULL);
    o.file_dir = "/etc/passwd";
    status = hr_runtime_create(&o, &rt);
    assert_true(status != HR_OK && strstr(hr_last_error(), "/etc/passwd") != NULL);
    hr_runtime_options_init(&o);
    o.cpu_level = "mmx";
    expect(hr_runtime_create(&o, &rt), HR_ERR_INVALID, "mmx");
    hr_runtime_options_init(&o);
    o.io_mode = (hr_io_mode_t)9;
    expect(hr_runtime_create(&o, &rt), HR_ERR_INVALID, "io_mode");
    hr_runtime_options_init(&o);
    o.run_tasks = run_backwards;
    expect(hr_runtime_create(&o, &rt), HR_ERR_INVALID, "0 threads of the caller's");
    assert_ptr_equal(rt, &o); /* outputs are written only on success */
    assert_int_equal(hr_runtime_destroy(NULL), HR_OK);
}

struct bad_option {
    hr_status_t status;
    const char *words;
    void (*spoil)(struct hr_sequence_options *o);
};

#define SPOIL(name, code)                                                                          \
    static void spoil_##name(struct hr_sequence_options *o)                                        \
    {                                                                                              \
        code;                                                                                      \
    }
SPOIL(size, o->struct_size = 1)
SPOIL(layers, o->n_layers = 0)
SPOIL(heads, o->n_q_heads = 5)
SPOIL(kv, o->n_kv_heads = 0)
SPOIL(group, o->n_q_heads = 64)
SPOIL(dim, o->k_dim = 33)
SPOIL(big, o->v_dim = 512)
SPOIL(dtype, o->dtype = (hr_dtype_t)7)
SPOIL(scale, o->scale = NAN)
SPOIL(cap, o->soft_cap = -1.0f)
SPOIL(zero, o->tokens_max = 0)
SPOIL(moved0, o->moved = 0.0)
SPOIL(moved_negative, o->moved = -0.5)
SPOIL(moved_over, o->moved = 1.01)
SPOIL(moved_nan, o->moved = (double)NAN)
SPOIL(tolerance, o->tolerance = 1.5)
SPOIL(recipe, o->recipe = "headrase")
SPOIL(key, o->recipe = "quest:pagee=3")
SPOIL(value, o->recipe = "quest:page=-3")
SPOIL(twice, o->recipe = "quest:page=8,block=8")
#define ZEROS "00000000000000000000000000000000000000000000"
SPOIL(recipe_long, o->recipe = "headrace:sink=" ZEROS "4,window=" ZEROS "64,segment=" ZEROS
                               "8192,decode_segment=" ZEROS "512,dense=" ZEROS "0,block=" ZEROS
                               "32,sketch=" ZEROS "2,iterations=" ZEROS "3,reuse=" ZEROS
                               "1,share=" ZEROS "2,rests=" ZEROS "1")

static void test_sequence_options(void **state)
{
    (void)state;
    const struct bad_option bad[] = {
        {HR_ERR_VERSION, "struct_size 1", spoil_size},
        {HR_ERR_INVALID, "n_layers is 0", spoil_layers},
        {HR_ERR_INVALID, "n_q_heads 5", spoil_heads},
        {HR_ERR_INVALID, "n_kv_heads 0", spoil_kv},
        {HR_ERR_INVALID, "n_q_heads 64", spoil_group},
        {HR_ERR_INVALID, "k_dim is 33", spoil_dim},
        {HR_ERR_INVALID, "v_dim is 512", spoil_big},
        {HR_ERR_DTYPE, "dtype 7", spoil_dtype},
        {HR_ERR_INVALID, "scale", spoil_scale},
        {HR_ERR_INVALID, "soft_cap -1", spoil_cap},
        {HR_ERR_INVALID, "tokens_max is 0", spoil_zero},
        {HR_ERR_INVALID, "moved is 0", spoil_moved0},
        {HR_ERR_INVALID, "moved is -0.5", spoil_moved_negative},
        {HR_ERR_INVALID, "moved is 1.01", spoil_moved_over},
        {HR_ERR_INVALID, "moved is", spoil_moved_nan},
        {HR_ERR_INVALID, "tolerance is 1.5", spoil_tolerance},
        {HR_ERR_NOTFOUND, "headrace", spoil_recipe},
        {HR_ERR_NOTFOUND, "page", spoil_key},
        {HR_ERR_INVALID, "page", spoil_value},
        {HR_ERR_INVALID, "page is there twice", spoil_twice},
        {HR_ERR_INVALID, "at most 511 are possible", spoil_recipe_long},
    };
    hr_runtime_t *rt = runtime_make(16u << 20, 16u << 20, NULL, 0, HR_IO_AUTO);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct hr_sequence_options o;
        hr_sequence_t *seq = NULL;
        options_for(&shape, 1000, "headrace", 0.01, &o);
        bad[i].spoil(&o);
        expect(hr_sequence_create(rt, &o, &seq), bad[i].status, bad[i].words);
        assert_null(seq);
    }
    struct hr_runtime_stats st = {.struct_size = sizeof st};
    assert_int_equal(hr_runtime_stats_get(rt, &st), HR_OK);
    assert_int_equal(st.tier[HR_TIER_DEVICE].bytes_held, 0);
    assert_int_equal(hr_runtime_destroy(rt), HR_OK);
}

static void test_budget_message_has_the_minimum(void **state)
{
    (void)state;
    const uint64_t budgets[] = {1, 4096, 100000, 400000};
    const char *const recipes[] = {"headrace", "headrace:sketch=1,decode_segment=512", "quest",
                                   "faiss:IVF16,Flat"};
    for (size_t i = 0; i < 16; i++) {
        /* The last budget is enough for some; a build may have no FAISS. */
        if ((i / 4 == 3 && i % 4 != 0) || hr_recipe_check(recipes[i % 4]) != HR_OK)
            continue;
        hr_runtime_t *rt = runtime_make(budgets[i / 4], 16u << 20, NULL, 0, HR_IO_AUTO);
        struct hr_sequence_options o;
        hr_sequence_t *seq = NULL;
        options_for(&shape, 8192, recipes[i % 4], 0.01, &o);
        expect(hr_sequence_create(rt, &o, &seq), HR_ERR_BUDGET, "it needs at least");
        assert_int_equal(hr_runtime_destroy(rt), HR_OK);
    }
}

/* As the budget grows, from an error to ever more bits and rows behind the window; bits asked for by name are never less. */
static void test_sketches_give_way(void **state)
{
    (void)state;
    const char *const texts[] = {"headrace:block=40,sketch=0,decode_segment=256",
                                 "headrace:block=40,sketch=0",
                                 "headrace:block=40,sketch=1,sketch_host=1,decode_segment=256",
                                 "headrace:block=40,sketch=1,sketch_host=1",
                                 "headrace:block=40,sketch=1,decode_segment=256",
                                 "headrace:block=40,sketch=1",
                                 "headrace:block=40,decode_segment=256",
                                 "headrace:block=40"};
    unsigned seen = 0, at = 0;
    for (uint64_t budget = 300000; at < 7 && budget < (64u << 20); budget += budget / 40) {
        hr_runtime_t *rt = runtime_make(budget, 16u << 20, NULL, 0, HR_IO_AUTO);
        struct hr_sequence_options o;
        hr_sequence_t *seq = NULL, *named = NULL;
        options_for(&shape, 8192, "headrace:block=40", 0.01, &o);
        if (hr_sequence_create(rt, &o, &seq) == HR_OK) {
            while (at < 7 && strcmp(hr_sequence_recipe(seq), texts[at]) != 0)
                at++;
            assert_string_equal(hr_sequence_recipe(seq), texts[at]);
            seen |= 1u << at;
            hr_sequence_destroy(seq);
            options_for(&shape, 8192, "headrace:block=40,sketch=2", 0.01, &o);
            hr_status_t status = hr_sequence_create(rt, &o, &named);
            assert_int_equal(status, at >= 6 ? HR_OK : HR_ERR_BUDGET);
            hr_sequence_destroy(named);
        } else {
            assert_int_equal(seen, 0);
        }
        assert_int_equal(hr_runtime_destroy(rt), HR_OK);
    }
    /* Summaries alone may want larger frames; two bits and few rows take less than one and many. */
    assert_int_equal(seen & 0xf4, 0xf4);
}

static void test_tensors(void **state)
{
    (void)state;
    hr_runtime_t *rt = runtime_make(16u << 20, 16u << 20, NULL, 0, HR_IO_AUTO);
    struct hr_sequence_options o;
    hr_sequence_t *seq;
    options_for(&shape, 100, "headrace", 0.01, &o);
    assert_int_equal(hr_sequence_create(rt, &o, &seq), HR_OK);
    float rows[101 * 2 * 32] = {0}, q[101 * 4 * 32] = {0}, out[101 * 4 * 32];
    struct hr_tensor k = hr_tensor_make(rows, HR_DTYPE_F32, 3, 2, 32), v = k, bad = k;
    struct hr_tensor tq = hr_tensor_make(q, HR_DTYPE_F32, 3, 4, 32),
                     to = hr_tensor_make(out, HR_DTYPE_F32, 3, 4, 32);

    expect(hr_sequence_append(NULL, 0, &k, &v, NULL), HR_ERR_INVALID, "no sequence");
    expect(hr_sequence_append(seq, 2, &k, &v, NULL), HR_ERR_INVALID, "no such layer");
    bad.shape[1] = 3;
    expect(hr_sequence_append(seq, 0, &bad, &v, NULL), HR_ERR_SHAPE,
           "k: shape [3][3][32] where [3][2][32]");
    expect(hr_sequence_append(seq, 0, &k, &bad, NULL), HR_ERR_SHAPE, "v: shape");
    bad = k;
    bad.dtype = (hr_dtype_t)5;
    expect(hr_sequence_append(seq, 0, &bad, &v, NULL), HR_ERR_DTYPE, "k: dtype 5");
    bad = k;
    bad.strides[0] = 64;
    bad.strides[1] = 32;
    bad.strides[2] = 2;
    expect(hr_sequence_append(seq, 0, &bad, &v, NULL), HR_ERR_SHAPE, "strides");
    bad = k;
    bad.data = NULL;
    expect(hr_sequence_append(seq, 0, &bad, &v, NULL), HR_ERR_INVALID, "no data");
    expect(hr_sequence_append(seq, 0, NULL, &v, NULL), HR_ERR_INVALID, "k: no tensor");

    rows[64 + 32 + 5] = NAN;
    expect(hr_sequence_append(seq, 0, &k, &k, NULL), HR_ERR_NONFINITE,
           "k: token 1, head 1, dimension 5");
    rows[64 + 32 + 5] = INFINITY;
    expect(hr_sequence_append(seq, 0, &k, &k, NULL), HR_ERR_NONFINITE,
           "k: token 1, head 1, dimension 5");
    rows[64 + 32 + 5] = 0.0f;
    assert_int_equal(hr_sequence_length(seq, 0), 0);

    expect(hr_sequence_attend(seq, 0, &tq, NULL, &to, NULL, NULL), HR_ERR_STATE,
           "3 queries are more");
    assert_int_equal(hr_sequence_append(seq, 0, &k, &v, NULL), HR_OK);
    assert_int_equal(hr_sequence_attend(seq, 0, &tq, NULL, &to, NULL, NULL), HR_OK);
    q[128 + 7] = NAN;
    expect(hr_sequence_attend(seq, 0, &tq, NULL, &to, NULL, NULL), HR_ERR_NONFINITE,
           "q: token 1, head 0, dimension 7");
    q[128 + 7] = 0.0f;
    struct hr_tensor small = to;
    small.shape[2] = 16;
    expect(hr_sequence_attend(seq, 0, &tq, NULL, &small, NULL, NULL), HR_ERR_SHAPE, "out: shape");

    k.shape[0] = v.shape[0] = 98;
    expect(hr_sequence_append(seq, 0, &k, &v, NULL), HR_ERR_FULL, "98 more exceed tokens_max 100");
    k.shape[0] = v.shape[0] = 0;
    assert_int_equal(hr_sequence_append(seq, 0, &k, &v, NULL), HR_OK);
    assert_int_equal(hr_sequence_length(seq, 0), 3);
    assert_int_equal(hr_sequence_length(seq, 9), 0);
    expect(hr_runtime_destroy(rt), HR_ERR_STATE, "1 of its sequences");
    hr_sequence_destroy(seq);
    hr_sequence_destroy(NULL);
    assert_int_equal(hr_runtime_destroy(rt), HR_OK);
}

/* A row that is finite in float but not in half. */
static void test_overflow_of_half(void **state)
{
    (void)state;
    hr_runtime_t *rt = runtime_make(16u << 20, 16u << 20, NULL, 0, HR_IO_AUTO);
    struct hr_sequence_options o;
    hr_sequence_t *seq;
    options_for(&shape, 100, "full", 0.01, &o);
    o.dtype = HR_DTYPE_F16;
    assert_int_equal(hr_sequence_create(rt, &o, &seq), HR_OK);
    float rows[2 * 32] = {0};
    rows[33] = 1e6f;
    struct hr_tensor k = hr_tensor_make(rows, HR_DTYPE_F32, 1, 2, 32);
    expect(hr_sequence_append(seq, 0, &k, &k, NULL), HR_ERR_NONFINITE, "not finite in f16");
    hr_sequence_destroy(seq);
    assert_int_equal(hr_runtime_destroy(rt), HR_OK);
}

/* Host memory without a file behind it, and a capped file: appends are refused whole and what is there stays readable. */
static void test_full_tiers(void **state)
{
    (void)state;
    for (int file = 0; file < 2; file++) {
        hr_runtime_t *rt = runtime_make(16u << 20, file ? 0 : 1u << 20, file ? disk_dir() : NULL,
                                        1u << 20, HR_IO_AUTO);
        assert_non_null(rt);
        struct hr_sequence_options o;
        hr_sequence_t *seq;
        options_for(&shape, 100000, "full", 0.01, &o);
        assert_int_equal(hr_sequence_create(rt, &o, &seq), HR_OK);
        struct random r = {.state = 1};
        static float k[64 * 64], v[64 * 64], q[64 * 128], out[128];
        rows_make(&r, &shape, 64, k, v);
        queries_make(&r, &shape, 64, q);
        struct hr_tensor tk = hr_tensor_make(k, HR_DTYPE_F32, 64, 2, 32),
                         tv = hr_tensor_make(v, HR_DTYPE_F32, 64, 2, 32);
        hr_status_t status = HR_OK;
        uint32_t n = 0;
        while (status == HR_OK && n < 100000) {
            status = hr_sequence_append(seq, 0, &tk, &tv, NULL);
            n += status == HR_OK ? 64 : 0;
        }
        expect(status, HR_ERR_BUDGET, file ? "file" : "host");
        assert_int_equal(hr_sequence_length(seq, 0), n);
        assert_true(n >= 1024);
        struct hr_tensor tq = hr_tensor_make(q, HR_DTYPE_F32, 1, 4, 32),
                         to = hr_tensor_make(out, HR_DTYPE_F32, 1, 4, 32);
        assert_int_equal(hr_sequence_attend(seq, 0, &tq, NULL, &to, NULL, NULL), HR_OK);
        hr_sequence_destroy(seq);
        assert_int_equal(hr_runtime_destroy(rt), HR_OK);
    }
}

static int fail_at;
static int alloc_count;
static void *failing_alloc(void *context, size_t bytes, size_t alignment)
{
    (void)context;
    if (fail_at >= 0 && alloc_count++ >= fail_at) {
        return NULL;
    }
    void *p = NULL;
    return posix_memalign(&p, alignment < sizeof(void *) ? sizeof(void *) : alignment, bytes) == 0
               ? p
               : NULL;
}
static void failing_free(void *context, void *pointer)
{
    (void)context;
    free(pointer);
}

static hr_status_t scripted_session(void)
{
    struct hr_runtime_options ro;
    hr_runtime_options_init(&ro);
    ro.device_bytes = 16u << 20;
    ro.host_bytes = 4u << 20;
    ro.n_threads = 2;
    ro.alloc = failing_alloc;
    ro.free = failing_free;
    hr_runtime_t *rt = NULL;
    hr_sequence_t *seq = NULL;
    hr_status_t status = hr_runtime_create(&ro, &rt);
    if (status != HR_OK) {
        return status;
    }
    struct hr_sequence_options o;
    options_for(&shape, 800, "headrace", 0.1, &o);
    status = hr_sequence_create(rt, &o, &seq);
    static float k[500 * 64], v[500 * 64], q[500 * 128], out[500 * 128];
    if (k[0] == 0.0f) {
        struct random r = {.state = 1};
        rows_make(&r, &shape, 500, k, v);
        queries_make(&r, &shape, 500, q);
    }
    for (uint32_t n = 500; n >= 1 && status == HR_OK; n -= 499) {
        struct hr_tensor tk = hr_tensor_make(k, HR_DTYPE_F32, n, 2, 32),
                         tv = hr_tensor_make(v, HR_DTYPE_F32, n, 2, 32);
        struct hr_tensor tq = hr_tensor_make(q, HR_DTYPE_F32, n, 4, 32),
                         to = hr_tensor_make(out, HR_DTYPE_F32, n, 4, 32);
        status = hr_sequence_append(seq, 0, &tk, &tv, NULL);
        if (status == HR_OK) {
            status = hr_sequence_attend(seq, 0, &tq, NULL, &to, NULL, NULL);
        }
        if (n == 1) {
            break;
        }
    }
    hr_sequence_destroy(seq);
    assert_int_equal(hr_runtime_destroy(rt), HR_OK);
    return status;
}

static void test_every_allocation_fails_once(void **state)
{
    (void)state;
    fail_at = -1;
    assert_int_equal(scripted_session(), HR_OK);
    hr_status_t status = HR_ERR_NOMEM;
    for (fail_at = 0; status != HR_OK; fail_at++) {
        alloc_count = 0;
        status = scripted_session();
        assert_true(status == HR_OK || status == HR_ERR_NOMEM || status == HR_ERR_BUDGET);
        assert_true(fail_at < 20000);
    }
    print_message("%d allocations, each refused in its turn\n", fail_at - 1);
}

/* A prompt and tokens after it; every head's work passes through run_tasks. */
static void decode_over(hr_run_tasks_fn run_tasks, void *context, float out[128])
{
    enum { PROMPT = 2400, TOKENS = 40 }; /* long enough for steps to share threads */
    static float k[PROMPT * 64], v[PROMPT * 64], q[PROMPT * 128], all[PROMPT * 128];
    struct hr_runtime_options ro;
    struct hr_sequence_options o;
    struct random r = {.state = 3};
    hr_runtime_t *rt = NULL;
    hr_sequence_t *seq = NULL;
    hr_runtime_options_init(&ro);
    ro.device_bytes = 16u << 20;
    ro.host_bytes = 4u << 20;
    ro.n_threads = 3;
    ro.run_tasks = run_tasks;
    ro.run_tasks_context = context;
    assert_int_equal(hr_runtime_create(&ro, &rt), HR_OK);
    options_for(&shape, PROMPT + TOKENS, "headrace", 0.1, &o);
    assert_int_equal(hr_sequence_create(rt, &o, &seq), HR_OK);
    for (uint32_t t = 0; t <= TOKENS; t++) {
        uint32_t n = t == 0 ? PROMPT : 1;
        rows_make(&r, &shape, n, k, v);
        queries_make(&r, &shape, n, q);
        struct hr_tensor tk = hr_tensor_make(k, HR_DTYPE_F32, n, 2, 32),
                         tv = hr_tensor_make(v, HR_DTYPE_F32, n, 2, 32);
        struct hr_tensor tq = hr_tensor_make(q, HR_DTYPE_F32, n, 4, 32),
                         to = hr_tensor_make(all, HR_DTYPE_F32, n, 4, 32);
        assert_int_equal(hr_sequence_append(seq, 0, &tk, &tv, NULL), HR_OK);
        assert_int_equal(hr_sequence_attend(seq, 0, &tq, NULL, &to, NULL, NULL), HR_OK);
    }
    memcpy(out, all, 128 * sizeof *out);
    hr_sequence_destroy(seq);
    assert_int_equal(hr_runtime_destroy(rt), HR_OK);
}

static void test_threads_of_the_caller(void **state)
{
    (void)state;
    float own[128], lent[128];
    uint32_t n_tasks = 0;
    decode_over(NULL, NULL, own);
    decode_over(run_backwards, &n_tasks, lent);
    assert_memory_equal(own, lent, sizeof own);
    assert_true(n_tasks > 40);
}

static void test_info(void **state)
{
    (void)state;
    char *json;
    assert_int_equal(hr_info_json(disk_dir(), &json), HR_OK);
    assert_true(json[0] == '{' && json[strlen(json) - 1] == '}');
    assert_non_null(strstr(json, "\"file_tier\":{"));
    hr_text_free(json);
    assert_int_equal(hr_info_json(NULL, &json), HR_OK);
    hr_text_free(json);
    expect(hr_info_json(NULL, NULL), HR_ERR_INVALID, "no place");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_runtime_options),
        cmocka_unit_test(test_sequence_options),
        cmocka_unit_test(test_budget_message_has_the_minimum),
        cmocka_unit_test(test_sketches_give_way),
        cmocka_unit_test(test_tensors),
        cmocka_unit_test(test_overflow_of_half),
        cmocka_unit_test(test_full_tiers),
        cmocka_unit_test(test_every_allocation_fails_once),
        cmocka_unit_test(test_threads_of_the_caller),
        cmocka_unit_test(test_info),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
