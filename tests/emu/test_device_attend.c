/* Exact attention of queries in device memory (hr_sequence_attend_device) against the CPU's (hr_sequence_attend) over the same rows:
 * with as much work as it asks for, with the least, rows in the file, sliding windows, soft caps, log-n; misuse and loss.
 *
 * Tolerance: queries and weights are rounded to the rows' type (prefill.cu), 1.5e-2 of the output in bfloat16, 2e-3 in float16. */
#include "tests/emu/device_runtime.h"

#include "base/half.h"
#include "runtime/device_part.h"
#include "runtime/device_rows.h"

#include <math.h>

enum { TOKENS = 700, HEADS = 6, KV = 2, DK = 64, DV = 32 };

static hr_runtime_t *runtime_open(const char *device, bool file)
{
    return runtime_on(device, file ? 192u << 10 : 32u << 20, file);
}

struct setup {
    hr_dtype_t dtype, out_dtype;
    const char *recipe;
    uint32_t n; /* queries */
    uint32_t sliding;
    float soft_cap, log_n;
    bool file, least; /* rows in the file; the least work */
    uint32_t pages;   /* of rows that the device holds, 0: all stream past */
};

static hr_sequence_t *sequence_open(hr_runtime_t *rt, const struct shape *shape,
                                    const struct setup *t)
{
    struct hr_sequence_options so;
    hr_sequence_t *s = NULL;
    const uint32_t windows[] = {t->sliding};
    options_for(shape, TOKENS, t->recipe, 0.2, &so);
    so.sliding_window = windows;
    so.soft_cap = t->soft_cap;
    assert_ok(hr_sequence_create(rt, &so, &s));
    return s;
}

/* The least work that one token needs, as the message says. */
static size_t least_work(hr_sequence_t *s)
{
    struct hr_device_attend a;
    hr_device_attend_init(&a);
    a.n_tokens = 1;
    assert_int_equal(hr_sequence_attend_device(s, 0, &a, NULL), HR_ERR_BUDGET);
    const char *number = strrchr(hr_last_error(), ' ');
    assert_non_null(number);
    return (size_t)strtoul(number, NULL, 10);
}

static void run(const struct setup *t)
{
    const struct shape shape = {.n_layers = 1,
                                .n_q = HEADS,
                                .n_kv = KV,
                                .dk = DK,
                                .dv = DV,
                                .dtype = t->dtype,
                                .log_n = t->log_n,
                                .rope = HR_ROPE_HALF};
    struct random r = {.state = 5 + t->n};
    const size_t row = HEADS * DK, out_row = HEADS * DV;
    float *k = malloc(sizeof(float) * TOKENS * KV * DK),
          *v = malloc(sizeof(float) * TOKENS * KV * DV), *q = malloc(sizeof(float) * TOKENS * row),
          *want = malloc(sizeof(float) * t->n * out_row);
    void *got = malloc(sizeof(float) * t->n * out_row);
    assert_true(k && v && q && want && got);
    rows_make(&r, &shape, TOKENS, k, v);
    queries_make(&r, &shape, TOKENS, q);
    hr_runtime_t *cpu = runtime_open("cpu", false),
                 *rt = runtime_open(device_emu_ops()->name, t->file);
    hr_sequence_t *here = sequence_open(cpu, &shape, t), *there = sequence_open(rt, &shape, t);
    if (t->pages == 0)
        hri_held_give_way(rt);
    else if (there->held->layers[0].capacity > t->pages * HRI_LOG_ROWS)
        there->held->layers[0].capacity = t->pages * HRI_LOG_ROWS;
    assert_ok(rows_append(here, &shape, 0, k, v, 0, TOKENS));
    assert_ok(rows_append(there, &shape, 0, k, v, 0, TOKENS));
    if (t->file)
        assert_ok(hri_store_flush(rt->store));
    const float *queries = q + (TOKENS - t->n) * row;
    struct hr_tensor tq =
                         hr_tensor_make((float *)(uintptr_t)queries, HR_DTYPE_F32, t->n, HEADS, DK),
                     to = hr_tensor_make(want, HR_DTYPE_F32, t->n, HEADS, DV);
    struct hr_attend_options exact;
    struct hr_attend_report report, expected;
    hr_attend_options_init(&exact);
    exact.mode = HR_ATTEND_EXACT;
    assert_ok(hr_sequence_attend(here, 0, &tq, &exact, &to, &expected, NULL));

    struct hr_device_attend a;
    struct hri_device_memory memory = {0};
    struct hri_device_carve c = {0};
    hr_device_attend_init(&a);
    a.n_tokens = t->n;
    a.out_dtype = t->out_dtype;
    a.stream = hri_device_stream(rt->gpu);
    a.work_bytes = t->least ? least_work(there) : hr_sequence_device_work(there, t->n);
    assert_true(a.work_bytes > 0);
    assert_ok(hri_device_alloc(rt->gpu, "a test",
                               (t->n + 1) * (row + out_row) * sizeof(float) + a.work_bytes + 4096,
                               &memory));
    c.base = memory.base;
    float *q_there = hri_device_carve(&c, t->n * row, sizeof(float));
    a.q = q_there;
    a.out = hri_device_carve(&c, t->n * out_row, sizeof(float));
    a.work = hri_device_carve(&c, a.work_bytes, 1);
    assert_ok(hri_device_copy(rt->gpu, q_there, queries, t->n * row * sizeof(float)));
    const uint64_t copies = device_emu_counts().copies;
    assert_ok(hr_sequence_attend_device(there, 0, &a, &report));
    /* Pages in pinned memory are brought by one launch, those of the tail by one copy per head. */
    if (!t->file && !t->least && t->sliding == 0 && t->pages == 0)
        assert_true(device_emu_counts().copies - copies <= 12);
    device_emu_read(got, a.out, t->n * out_row * hr_dtype_bytes(t->out_dtype));
    assert_true((report.bytes_from_file > 0) == t->file);
    assert_true((report.rows_device > 0) == (t->pages > 0));
    if (!t->least) /* else in several passes */
        assert_int_equal(report.rows_by_level[3], expected.rows_by_level[3]);
    const double tolerance =
        t->dtype == HR_DTYPE_F16 && t->out_dtype == HR_DTYPE_F32 ? 2e-3 : 1.5e-2;
    for (uint32_t i = 0; i < t->n * HEADS; i++) {
        double diff = 0, size = 0;
        for (uint32_t j = 0; j < DV; j++) {
            const size_t at = (size_t)i * DV + j;
            const double x = t->out_dtype == HR_DTYPE_F32
                                 ? (double)((float *)got)[at]
                                 : (double)hri_f32_from_bf16(((uint16_t *)got)[at]);
            diff += (x - (double)want[at]) * (x - (double)want[at]);
            size += (double)want[at] * (double)want[at];
        }
        if (!(sqrt(diff) <= tolerance * sqrt(size)))
            fail_msg("%s, %u queries: vector %u is off by %g", t->recipe, t->n, i,
                     sqrt(diff / size));
    }
    hri_device_free(rt->gpu, &memory);
    hr_sequence_destroy(here);
    hr_sequence_destroy(there);
    assert_ok(hr_runtime_destroy(rt));
    assert_ok(hr_runtime_destroy(cpu));
    free(k);
    free(v);
    free(q);
    free(want);
    free(got);
}

static void test_equal(void **state)
{
    (void)state;
    run(&(struct setup){.dtype = HR_DTYPE_BF16, .recipe = "full", .n = 1});
    run(&(struct setup){.dtype = HR_DTYPE_F16, .recipe = "full", .n = 65, .log_n = 0.1f});
    run(&(struct setup){
        .dtype = HR_DTYPE_BF16, .out_dtype = HR_DTYPE_BF16, .recipe = "headrace", .n = 130});
    run(&(struct setup){.dtype = HR_DTYPE_F16, .recipe = "full", .n = 90, .soft_cap = 2});
    run(&(struct setup){.dtype = HR_DTYPE_BF16, .recipe = "full", .n = 100, .sliding = 16});
    run(&(struct setup){.dtype = HR_DTYPE_F16, .recipe = "full", .n = 40, .sliding = 300});
}

/* What the device holds of the rows is read there: some pages, all of them; also once more, when nothing is to be brought. */
static void test_held(void **state)
{
    (void)state;
    run(&(struct setup){.dtype = HR_DTYPE_BF16, .recipe = "full", .n = 1, .pages = 99});
    run(&(struct setup){
        .dtype = HR_DTYPE_F16, .recipe = "full", .n = 65, .log_n = 0.1f, .pages = 3});
    run(&(struct setup){
        .dtype = HR_DTYPE_F16, .recipe = "full", .n = 90, .soft_cap = 2, .pages = 99});
    run(&(struct setup){.dtype = HR_DTYPE_BF16,
                        .out_dtype = HR_DTYPE_BF16,
                        .recipe = "full",
                        .n = 130,
                        .pages = 10}); /* the last one ends within the queries' rows */
    run(&(struct setup){
        .dtype = HR_DTYPE_BF16, .recipe = "full", .n = 5, .least = true, .pages = 5});
    run(&(struct setup){
        .dtype = HR_DTYPE_BF16, .recipe = "full", .n = 5, .least = true, .pages = 99});
    run(&(struct setup){
        .dtype = HR_DTYPE_BF16, .recipe = "full", .n = 70, .file = true, .pages = 4});
}

static void test_little_work(void **state)
{
    (void)state;
    run(&(struct setup){.dtype = HR_DTYPE_BF16, .recipe = "full", .n = 5, .least = true});
    run(&(struct setup){
        .dtype = HR_DTYPE_F16, .recipe = "full", .n = 4, .sliding = 100, .least = true});
}

static void test_file(void **state)
{
    (void)state;
    run(&(struct setup){.dtype = HR_DTYPE_BF16, .recipe = "full", .n = 70, .file = true});
}

static void test_misuse(void **state)
{
    (void)state;
    const struct setup t = {.dtype = HR_DTYPE_BF16, .recipe = "full"};
    struct shape shape = {
        .n_layers = 1, .n_q = HEADS, .n_kv = KV, .dk = DK, .dv = DV, .dtype = HR_DTYPE_BF16};
    hr_runtime_t *cpu = runtime_open("cpu", false),
                 *rt = runtime_open(device_emu_ops()->name, false);
    hr_sequence_t *here = sequence_open(cpu, &shape, &t), *there = sequence_open(rt, &shape, &t);
    struct hr_device_attend a;
    hr_device_attend_init(&a);
    assert_int_equal(hr_sequence_device_work(here, 1), 0);
    assert_int_equal(hr_sequence_device_work(NULL, 1), 0);
    assert_true(hr_sequence_device_work(there, 9) > hr_sequence_device_work(there, 1));
    assert_fails(hr_sequence_attend_device(NULL, 0, &a, NULL), HR_ERR_INVALID, "no sequence");
    assert_fails(hr_sequence_attend_device(there, 1, &a, NULL), HR_ERR_INVALID, "no such layer");
    assert_fails(hr_sequence_attend_device(there, 0, NULL, NULL), HR_ERR_INVALID, "no queries");
    assert_fails(hr_sequence_attend_device(here, 0, &a, NULL), HR_ERR_UNSUPPORTED, "has no GPU");
    a.n_tokens = 1;
    assert_fails(hr_sequence_attend_device(there, 0, &a, NULL), HR_ERR_STATE, "0 tokens");
    a.struct_size = 3;
    assert_fails(hr_sequence_attend_device(there, 0, &a, NULL), HR_ERR_VERSION, "struct_size 3");
    hr_sequence_destroy(there);
    shape.dk = 40;
    there = sequence_open(rt, &shape, &t);
    hr_device_attend_init(&a);
    assert_int_equal(hr_sequence_device_work(there, 1), 0);
    assert_fails(hr_sequence_attend_device(there, 0, &a, NULL), HR_ERR_UNSUPPORTED,
                 "multiples of 16");
    hr_sequence_destroy(there);
    hr_sequence_destroy(here);
    assert_ok(hr_runtime_destroy(cpu));
    assert_ok(hr_runtime_destroy(rt));
}

int main(void)
{
    if (!device_emu_available()) {
        printf("skipped: no CUDA device\n");
        return 77;
    }
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_equal), cmocka_unit_test(test_held),
                                       cmocka_unit_test(test_little_work),
                                       cmocka_unit_test(test_file), cmocka_unit_test(test_misuse)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
