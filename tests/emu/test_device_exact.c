/* Exact attention of single queries on the emulated device: the same text on the CPU and in double beside it, with device budgets that
 * hold no page, one, some and all of the rows; with windows, soft caps, log-n, both 16-bit types; through cuts, forks, sessions, files;
 * when the device is lost, and when another sequence needs the memory. */
#include "tests/emu/device_emu.h"
#include "tests/runtime/naive.h"
#include "tests/test.h"

#include "offload/io_ops.h"
#include "runtime/device_rows.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { HEADS = 4, KV = 2, DK = 64, DV = 48, TOKENS = 400, PAGE = HRI_LOG_ROWS };
#define ROW_BYTES ((DK + DV) * 2)
/* Of the output: what splitting the rows otherwise and the device's exponentials change, over float's rounding. */
#define TOLERANCE 5e-4

static char log_text[1024];
static unsigned log_losses;

static void log_keep(void *context, hr_log_level_t level, const char *line)
{
    (void)context;
    log_losses += level <= HR_LOG_WARN && strstr(line, "is lost") != NULL;
    if (strstr(line, "attends the others") || strstr(line, "make room") ||
        strstr(line, "on the host"))
        snprintf(log_text, sizeof log_text, "%s", line);
}

static int calm(void **state)
{
    (void)state;
    device_emu_faults = (struct device_emu_faults){0};
    log_text[0] = 0;
    log_losses = 0;
    return 0;
}

static hr_runtime_t *runtime_open(const char *device, uint64_t device_bytes, bool file)
{
    struct hr_runtime_options o;
    hr_runtime_t *rt = NULL;
    hr_runtime_options_init(&o);
    o.device = device;
    o.device_bytes = device_bytes;
    o.host_bytes = file ? 96u << 10 : 32u << 20;
    if (file) {
        o.file_dir = access(disk_dir(), W_OK) == 0 ? disk_dir() : "/var/tmp"; /* in a bundle */
        o.file_bytes = 64u << 20;
    }
    o.n_threads = 2;
    o.log = log_keep;
    assert_ok(hri_runtime_create_on(&o, hri_io_real(), device_emu_ops(), &rt));
    return rt;
}

struct setup {
    const char *recipe;
    uint32_t pages; /* of all layers that the budget is to hold; UINT32_MAX: plenty */
    bool no_room;   /* not even for the work */
    bool file;
    struct shape shape;
};

static const struct shape plain = {
    .n_layers = 1, .n_q = HEADS, .n_kv = KV, .dk = DK, .dv = DV, .dtype = HR_DTYPE_BF16};
#define ALL UINT32_MAX

struct bed {
    struct setup t;
    hr_runtime_t *rt, *cpu;
    hr_sequence_t *there, *here;
    struct naive naive;
    float *k, *v, *q;
    uint32_t n;
};

static hr_sequence_t *sequence_open(hr_runtime_t *rt, const struct setup *t)
{
    struct hr_sequence_options so;
    hr_sequence_t *s = NULL;
    options_for(&t->shape, TOKENS, t->recipe, 0.3, &so);
    assert_ok(hr_sequence_create(rt, &so, &s));
    return s;
}

/* What a sequence takes beside its rows. */
static uint64_t fixed_bytes(const struct setup *t)
{
    hr_runtime_t *rt = runtime_open(device_emu_ops()->name, 64u << 20, false);
    hr_sequence_t *s = sequence_open(rt, t);
    const uint64_t bytes =
        hri_device_stats(rt->gpu).bytes_held - hri_held_bytes(s) + hri_step_graph_bytes(s);
    assert_true(s->held != NULL && bytes > 0);
    hr_sequence_destroy(s);
    assert_ok(hr_runtime_destroy(rt));
    return bytes;
}

static void bed_make(struct bed *b, const struct setup *t)
{
    struct random r = {.state = 77};
    const uint64_t bytes = t->pages == ALL ? 64u << 20
                           : t->no_room
                               ? 4096
                               : fixed_bytes(t) + (uint64_t)t->pages * PAGE * KV * ROW_BYTES;
    *b = (struct bed){.t = *t};
    b->rt = runtime_open(device_emu_ops()->name, bytes, t->file);
    b->cpu = runtime_open("cpu", 64u << 20, false);
    b->there = sequence_open(b->rt, t);
    b->here = sequence_open(b->cpu, t);
    b->k = malloc(sizeof(float) * TOKENS * KV * DK);
    b->v = malloc(sizeof(float) * TOKENS * KV * DV);
    b->q = malloc(sizeof(float) * TOKENS * HEADS * DK);
    assert_true(b->k && b->v && b->q);
    rows_make(&r, &t->shape, TOKENS, b->k, b->v);
    queries_make(&r, &t->shape, TOKENS, b->q);
    naive_init(&b->naive, &t->shape, TOKENS);
}

static void bed_free(struct bed *b)
{
    hr_sequence_destroy(b->there);
    hr_sequence_destroy(b->here);
    assert_ok(hr_runtime_destroy(b->rt));
    assert_ok(hr_runtime_destroy(b->cpu));
    naive_fini(&b->naive);
    free(b->k);
    free(b->v);
    free(b->q);
    assert_int_equal(device_emu_counts().device_bytes, 0);
    assert_int_equal(device_emu_counts().pinned_bytes, 0);
}

static void append(struct bed *b, uint32_t n)
{
    for (uint32_t i = 0; i < b->t.shape.n_layers; i++) {
        assert_ok(rows_append(b->there, &b->t.shape, i, b->k, b->v, b->n, n));
        assert_ok(rows_append(b->here, &b->t.shape, i, b->k, b->v, b->n, n));
    }
    naive_append(&b->naive, b->k + (size_t)b->n * KV * DK, b->v + (size_t)b->n * KV * DV, n);
    b->n += n;
}

static void cut(struct bed *b, uint32_t n)
{
    assert_ok(hr_sequence_truncate(b->there, n));
    assert_ok(hr_sequence_truncate(b->here, n));
    b->n = b->naive.n = n;
}

static uint32_t window_of(const struct bed *b, uint32_t layer)
{
    return layer == 0 ? b->t.shape.sliding : 0;
}

static uint32_t capacity_of(const struct bed *b, uint32_t layer)
{
    const struct hri_device_rows *r = b->there->held;
    return r != NULL && !r->given_up ? r->layers[layer].capacity : 0;
}

/* One query of a layer, there beside here and beside the sum in double. */
static void check(struct bed *b, uint32_t layer)
{
    float there[HEADS * DV], here[HEADS * DV];
    double want[HEADS * DV];
    struct hr_attend_report report;
    const float *q = b->q + (size_t)(b->n - 1) * HEADS * DK;
    struct hr_tensor tq = hr_tensor_make((float *)(uintptr_t)q, HR_DTYPE_F32, 1, HEADS, DK),
                     to = hr_tensor_make(there, HR_DTYPE_F32, 1, HEADS, DV),
                     ho = hr_tensor_make(here, HR_DTYPE_F32, 1, HEADS, DV);
    struct hr_attend_options exact;
    hr_attend_options_init(&exact);
    exact.mode = HR_ATTEND_EXACT;
    assert_ok(hr_sequence_attend(b->there, layer, &tq, &exact, &to, &report, NULL));
    assert_ok(hr_sequence_attend(b->here, layer, &tq, &exact, &ho, NULL, NULL));
    naive_attend(&b->naive, layer, q, 1, want);
    const double off = apart(there, here, HEADS * DV), truth = error_max(there, want, HEADS, DV);
    if (!(off <= TOLERANCE && truth <= TOLERANCE))
        fail_msg("%s, %u tokens, layer %u: off by %g from the CPU, %g from double", b->t.recipe,
                 b->n, layer, off, truth);
    /* As many rows as are there were attended there. */
    const uint32_t window = window_of(b, layer), capacity = capacity_of(b, layer),
                   seen = window != 0 && window < b->n ? window : b->n;
    const uint32_t held = window != 0 && window < TOKENS ? (capacity > 0 ? seen : 0)
                          : seen < capacity              ? seen
                                                         : capacity;
    assert_int_equal(report.rows_device, (uint64_t)held * KV);
    assert_int_equal(report.rows_by_level[3], (uint64_t)seen * KV);
}

static void token(struct bed *b)
{
    append(b, 1);
    for (uint32_t i = 0; i < b->t.shape.n_layers; i++)
        check(b, i);
}

/* A prompt, tokens over the end of a page, a prompt more, tokens. */
static void grow(struct bed *b)
{
    append(b, 1);
    check(b, b->t.shape.n_layers - 1);
    append(b, 120);
    for (uint32_t i = 0; i < 12; i++)
        token(b);
    append(b, 90);
    for (uint32_t i = 0; i < 3; i++)
        token(b);
}

static void run(const struct setup *t)
{
    struct bed b;
    bed_make(&b, t);
    grow(&b);
    bed_free(&b);
}

static void test_budgets(void **state)
{
    (void)state;
    const uint32_t pages[] = {0, 1, 2, 3, 6, 7, ALL};
    for (size_t i = 0; i < sizeof pages / sizeof *pages; i++) {
        struct bed b;
        log_text[0] = 0;
        bed_make(&b, &(struct setup){.recipe = "full", .pages = pages[i], .shape = plain});
        const uint32_t most = (TOKENS + PAGE - 1) / PAGE;
        assert_int_equal(capacity_of(&b, 0), (pages[i] < most ? pages[i] : most) * PAGE);
        assert_true((strstr(log_text, "attends the others") != NULL) == (pages[i] < most));
        grow(&b);
        struct hr_sequence_stats st = {.struct_size = sizeof st};
        assert_ok(hr_sequence_stats_get(b.there, &st));
        assert_int_equal(st.device_row_bytes, (uint64_t)capacity_of(&b, 0) * KV * ROW_BYTES);
        bed_free(&b);
    }
    run(&(struct setup){.recipe = "full", .no_room = true, .shape = plain});
}

static void test_kinds(void **state)
{
    (void)state;
    struct setup t = {.recipe = "full", .pages = ALL, .shape = plain};
    t.shape.dtype = HR_DTYPE_F16;
    t.shape.soft_cap = 3;
    t.shape.log_n = 0.1f;
    run(&t);
    t.pages = 3;
    run(&t);
    t.shape.n_layers = 3; /* equal shares */
    t.pages = 4;
    run(&t);
}

/* Layer 0 sees a window. */
static void test_windows(void **state)
{
    (void)state;
    const uint32_t windows[] = {1, 16, 64, 100, 130, TOKENS};
    for (size_t i = 0; i < sizeof windows / sizeof *windows; i++) {
        struct setup t = {.recipe = "full", .pages = ALL, .shape = plain};
        t.shape.n_layers = 2;
        t.shape.sliding = windows[i];
        run(&t);
    }
    struct setup t = {.recipe = "full", .pages = 3, .shape = plain};
    t.shape.n_layers = 2;
    t.shape.sliding = 100;
    run(&t);     /* room for the window and a page of the other layer */
    t.pages = 1; /* of a window all or none */
    run(&t);
}

static void test_file(void **state)
{
    (void)state;
    struct setup t = {.recipe = "full", .pages = 3, .file = true, .shape = plain};
    run(&t);
    t.pages = ALL;
    run(&t);
}

/* Layers of a recipe that attend everything, and those that are asked to: exact mode, checks. */
static void test_recipes(void **state)
{
    (void)state;
    struct setup t = {.recipe = "headrace:decode_segment=32,window=32,dense=1,sketch=0",
                      .pages = ALL,
                      .shape = plain};
    struct bed b;
    t.shape.n_layers = 2;
    bed_make(&b, &t);
    assert_true(b.there->part != NULL);
    assert_int_equal(b.there->held->layers[1].capacity, 0); /* nobody asked yet */
    grow(&b);
    assert_true(b.there->held->layers[1].capacity > 0);

    /* The check of a step is against the same rows: what it finds is what the outputs say. */
    float out[HEADS * DV], exact[HEADS * DV];
    struct hr_attend_options o;
    struct hr_attend_report report;
    struct hr_tensor q = hr_tensor_make(b.q + (size_t)(b.n - 1) * HEADS * DK, HR_DTYPE_F32, 1,
                                        HEADS, DK),
                     to = hr_tensor_make(out, HR_DTYPE_F32, 1, HEADS, DV);
    hr_attend_options_init(&o);
    o.check_exact = 1;
    assert_ok(hr_sequence_attend(b.there, 1, &q, &o, &to, &report, NULL));
    o.mode = HR_ATTEND_EXACT;
    to.data = exact;
    assert_ok(hr_sequence_attend(b.here, 1, &q, &o, &to, NULL, NULL));
    double mean = 0;
    for (uint32_t h = 0; h < HEADS; h++)
        mean += apart(out + h * DV, exact + h * DV, DV) / HEADS;
    assert_true(fabs(report.true_error - mean) <= TOLERANCE);
    bed_free(&b);

    /* Recipes whose steps the host does: their exact rows are there all the same. */
    t.recipe = "quest:dense=1,page=8,window=32,decode_segment=32";
    bed_make(&b, &t);
    assert_true(b.there->part == NULL && b.there->held->layers[0].capacity > 0);
    assert_non_null(strstr(log_text, "this recipe's steps run on the host"));
    grow(&b);
    bed_free(&b);
}

static void test_truncate(void **state)
{
    (void)state;
    for (int turn = 0; turn < 2; turn++) {
        struct bed b;
        struct setup t = {.recipe = "full", .pages = turn == 0 ? 3 : ALL, .shape = plain};
        t.shape.n_layers = 2;
        t.shape.sliding = 70;
        bed_make(&b, &t);
        grow(&b);
        const uint32_t cuts[] = {190, 189, 129, 128, 127, 60, 1};
        for (size_t i = 0; i < sizeof cuts / sizeof *cuts; i++) {
            cut(&b, cuts[i]);
            check(&b, 0);
            check(&b, 1);
            /* Other rows take the place of those that went. */
            for (size_t j = (size_t)b.n * KV * DK; j < (size_t)TOKENS * KV * DK; j++)
                b.k[j] = -b.k[j];
            token(&b);
            append(&b, 70);
            token(&b);
        }
        cut(&b, 0);
        append(&b, 30);
        token(&b);
        bed_free(&b);
    }
}

/* A fork, and a session that was saved and opened, go on by themselves. */
static void test_copies(void **state)
{
    (void)state;
    for (int turn = 0; turn < 2; turn++) {
        struct bed b;
        struct setup t = {.recipe = "full", .pages = turn == 0 ? 8 : ALL, .shape = plain};
        t.shape.n_layers = 2;
        t.shape.sliding = 70;
        bed_make(&b, &t);
        grow(&b);
        hr_sequence_t *first = b.there, *fork = NULL, *opened = NULL;
        struct hr_sequence_options so;
        char dir[] = "/tmp/device_exact_XXXXXX", home[64];
        assert_non_null(mkdtemp(dir));
        assert_ok(hr_sequence_fork(first, &fork));
        assert_true(fork->held != NULL && fork->held != first->held);
        snprintf(home, sizeof home, "%s/s", dir);
        assert_ok(hr_sequence_save(first, home, NULL));
        options_for(&t.shape, TOKENS, t.recipe, 0.3, &so);
        assert_ok(hr_sequence_open(b.rt, home, &so, NULL, &opened));
        hr_sequence_t *all[3] = {first, fork, opened};
        const uint32_t n = b.n;
        for (int i = 0; i < 3; i++) {
            b.there = all[i];
            cut(&b, n - 3 * (uint32_t)i); /* each another way */
            token(&b);
            append(&b, 66);
            token(&b);
        }
        cut(&b, n - 20);
        b.there = fork;
        hr_sequence_destroy(first);
        hr_sequence_destroy(opened);
        assert_ok(hr_sequence_truncate(fork, b.n));
        token(&b);
        bed_free(&b);
        assert_ok(hr_session_remove(home));
        assert_int_equal(rmdir(dir), 0);
    }
}

/* From the query on at which the device is lost the host attends everything; that is said once. */
static void test_lost(void **state)
{
    (void)state;
    for (uint32_t wait = 0; wait < 4; wait++) {
        struct bed b;
        calm(NULL);
        bed_make(&b,
                 &(struct setup){.recipe = "full", .pages = wait % 2 ? 2 : ALL, .shape = plain});
        append(&b, 150);
        token(&b);
        device_emu_faults.waits_before_loss = device_emu_waits() + wait / 2;
        device_emu_faults.loss = true;
        if (wait == 3)
            append(&b, 70); /* the rows of a prompt are on their way */
        for (uint32_t i = 0; i < 4; i++) {
            append(&b, 1);
            float out[HEADS * DV];
            double want[HEADS * DV];
            const float *q = b.q + (size_t)(b.n - 1) * HEADS * DK;
            struct hr_attend_report report;
            assert_ok(queries_attend(b.there, &b.t.shape, 0, HR_ATTEND_EXACT, b.q, b.n - 1, 1, out,
                                     &report));
            naive_attend(&b.naive, 0, q, 1, want);
            assert_true(error_max(out, want, HEADS, DV) <= TOLERANCE);
            if (i > 1)
                assert_int_equal(report.rows_device, 0);
        }
        assert_int_equal(log_losses, 1);
        assert_true(b.there->held->given_up);
        device_emu_faults.loss = false;
        bed_free(&b);
    }
}

/* Steps of a later sequence need the memory. */
static void test_give_way(void **state)
{
    (void)state;
    struct setup steps = {
        .recipe = "headrace:decode_segment=32,window=32,sketch=0", .pages = ALL, .shape = plain};
    hr_runtime_t *rt = runtime_open(device_emu_ops()->name, 64u << 20, false);
    hr_sequence_t *s = sequence_open(rt, &steps), *other = NULL;
    const uint64_t needs = hri_device_stats(rt->gpu).bytes_held;
    hr_sequence_destroy(s);
    assert_ok(hr_runtime_destroy(rt));

    struct bed b;
    struct hr_sequence_options so;
    struct setup t = {.recipe = "full", .shape = plain};
    t.pages = (uint32_t)(needs / ((uint64_t)PAGE * KV * ROW_BYTES)) + 1;
    t.shape.n_layers = t.pages / ((TOKENS + PAGE - 1) / PAGE) + 1; /* all of it is taken */
    bed_make(&b, &t);
    append(&b, 100);
    token(&b);
    assert_true(capacity_of(&b, 0) > 0);
    options_for(&steps.shape, TOKENS, steps.recipe, 0.3, &so);
    assert_ok(hr_sequence_create(b.rt, &so, &other));
    assert_non_null(strstr(log_text, "make room"));
    assert_int_equal(capacity_of(&b, 0), 0);
    token(&b);
    hr_sequence_destroy(other);
    token(&b);
    bed_free(&b);
}

/* Every recipe, also with next to no device memory and with rows in the file: the CPU's output, but for those that have steps there, whose
 * own tests compare them (emu_device_step). */
static void recipe_run(const char *name, bool little, bool file)
{
    struct setup t = {
        .recipe = name, .pages = little ? 0 : ALL, .no_room = little, .file = file, .shape = plain};
    struct bed b;
    float gates[2 * KV] = {1, 0, 0, 1};
    struct hr_sequence_options so;
    t.shape.n_layers = 2;
    t.shape.rope = HR_ROPE_HALF;
    b.t = t;
    b.n = 0;
    b.rt = runtime_open(device_emu_ops()->name, little ? 4096 : 64u << 20, file);
    b.cpu = runtime_open("cpu", 64u << 20, file);
    options_for(&t.shape, TOKENS, name, 0.3, &so);
    so.head_gates = gates;
    if (little && strncmp(name, "headrace", 8) == 0) { /* its steps need room */
        assert_fails(hr_sequence_create(b.rt, &so, &b.there), HR_ERR_BUDGET, "it needs at least");
        assert_ok(hr_runtime_destroy(b.rt));
        assert_ok(hr_runtime_destroy(b.cpu));
        return;
    }
    assert_ok(hr_sequence_create(b.rt, &so, &b.there));
    assert_ok(hr_sequence_create(b.cpu, &so, &b.here));
    struct random r = {.state = 78};
    b.k = malloc(sizeof(float) * TOKENS * KV * DK);
    b.v = malloc(sizeof(float) * TOKENS * KV * DV);
    b.q = malloc(sizeof(float) * TOKENS * HEADS * DK);
    assert_true(b.k && b.v && b.q);
    rows_make(&r, &t.shape, TOKENS, b.k, b.v);
    queries_make(&r, &t.shape, TOKENS, b.q);
    naive_init(&b.naive, &t.shape, TOKENS);
    append(&b, 380);
    for (uint32_t i = 0; i < 3; i++) {
        append(&b, 1);
        for (uint32_t layer = 0; layer < 2; layer++) {
            float there[HEADS * DV], here[HEADS * DV];
            assert_ok(queries_attend(b.there, &t.shape, layer, HR_ATTEND_RECIPE, b.q, b.n - 1, 1,
                                     there, NULL));
            assert_ok(queries_attend(b.here, &t.shape, layer, HR_ATTEND_RECIPE, b.q, b.n - 1, 1,
                                     here, NULL));
            const double off = apart(there, here, HEADS * DV);
            if (b.there->part == NULL && !(off <= TOLERANCE))
                fail_msg("%s, layer %u: off by %g", name, layer, off);
            if (b.there->part == NULL && !b.there->layers[layer].exact)
                assert_memory_equal(there, here, sizeof there);
        }
    }
    bed_free(&b);
}

static void test_every_recipe(void **state)
{
    (void)state;
    for (size_t i = 0; hr_recipe_name(i) != NULL; i++) {
        if (recipe_is_plain(i)) {
            recipe_run(hr_recipe_name(i), i % 2 == 0, i % 3 == 0);
            recipe_run(hr_recipe_name(i), i % 2 != 0, i % 3 == 1);
        }
    }
}

/* Rows in f32 and of odd widths stay with the host. */
static void test_host_only(void **state)
{
    (void)state;
    for (int turn = 0; turn < 2; turn++) {
        struct setup t = {.recipe = turn == 0 ? "full" : "headrace", .shape = plain};
        struct bed b;
        t.shape.dtype = HR_DTYPE_F32;
        t.pages = ALL;
        bed_make(&b, &t);
        assert_null(b.there->held);
        assert_null(b.there->part);
        assert_non_null(strstr(log_text, "in f32"));
        grow(&b);
        bed_free(&b);
    }
}

/* A token allocates nothing. */
static void test_allocations(void **state)
{
    (void)state;
    struct bed b;
    struct hr_runtime_stats st = {.struct_size = sizeof st};
    bed_make(&b, &(struct setup){.recipe = "full", .pages = 3, .shape = plain});
    append(&b, 250);
    token(&b);
    assert_ok(hr_runtime_stats_get(b.rt, &st));
    const uint64_t before = st.allocations, held = st.tier[HR_TIER_DEVICE].bytes_held;
    for (uint32_t i = 0; i < 3; i++) {
        const struct device_emu_counts counts = device_emu_counts();
        token(&b);
        /* Input there, output back, and one wait. */
        assert_int_equal(device_emu_counts().copies - counts.copies, 2);
        assert_int_equal(device_emu_counts().waits - counts.waits, 1);
    }
    assert_ok(hr_runtime_stats_get(b.rt, &st));
    assert_int_equal(st.allocations, before);
    assert_int_equal(st.tier[HR_TIER_DEVICE].bytes_held, held);
    assert_true(held <= st.tier[HR_TIER_DEVICE].bytes_cap);
    bed_free(&b);
}

int main(void)
{
    if (!device_emu_available()) {
        printf("skipped: no CUDA device\n");
        return 77;
    }
#define TEST(name) cmocka_unit_test_setup(name, calm)
    const struct CMUnitTest tests[] = {
        TEST(test_budgets), TEST(test_kinds),        TEST(test_windows),   TEST(test_file),
        TEST(test_recipes), TEST(test_every_recipe), TEST(test_truncate),  TEST(test_copies),
        TEST(test_lost),    TEST(test_give_way),     TEST(test_host_only), TEST(test_allocations)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
