/* Whole steps with sketches on the emulated device, against docs/algorithm.md (level 1) in double from the head's own tables.
 *
 * The choice: worth of every part of a block; what was chosen of misses and of hits is the best of each to within 2e-2 of
 * the worth (what is worth 1e-10 of squared error), and what is best of the rest did not fit. The output: sketches of all rows, strays by their keys, parts
 * that came by their int8 rows; to 2e-3. The predicted error: what the sketches of the other rows leave, to 3e-2. And beside
 * the CPU's steps within the same budget: as near to exact attention as the one with parts, to within a quarter. */
#include "tests/emu/sketch_reference.h"

#define TOLERANCE 2e-3
#define NEARLY    2e-2
#define FORESEEN  3e-2
#define SEEN      1e-10
#define SETTINGS  ",block=24,decode_segment=64,window=32"
#define RECIPE    "headrace:sketch=2" SETTINGS

static const struct shape shape_1 = {.n_layers = LAYERS,
                                     .n_q = KV,
                                     .n_kv = KV,
                                     .dk = D,
                                     .dv = D,
                                     .dtype = HR_DTYPE_BF16,
                                     .rope = HR_ROPE_HALF};
static const struct shape shape_4 = {.n_layers = LAYERS,
                                     .n_q = KV * 4,
                                     .n_kv = KV,
                                     .dk = D,
                                     .dv = D,
                                     .dtype = HR_DTYPE_BF16,
                                     .rope = HR_ROPE_HALF};

static const struct plan plain = {.device = NULL,
                                  .recipe = RECIPE,
                                  .moved = 0.1,
                                  .device_bytes = 64u << 20,
                                  .host_bytes = 32u << 20,
                                  .dtype = HR_DTYPE_BF16};

/* ------------------------------------------------------------------------------------------- checks */

/* Of misses and of hits the best were chosen, and the next did not fit. */
static void check_choice(const struct reference *r, const struct choice *c)
{
    const hr_sequence_t *s = r->b->seq;
    const uint64_t *budgets = s->part->ins[r->layer].budget + 2 * r->h;
    for (int hit = 0; hit < 2; hit++) {
        const uint64_t budget = budgets[hit];
        double worst = INFINITY, best = 0;
        uint64_t spent = 0;
        uint32_t next = 0;
        for (uint32_t i = 0; i < r->head->n_blocks * s->parts; i++) {
            if (c->hit[i] != hit || hri_index_item_rows(r->head, i) == 0)
                continue;
            if (c->chosen[i]) {
                spent += (uint64_t)hri_index_item_rows(r->head, i) * s->code_bytes;
                worst = fmin(worst, r->key[i]);
            } else if (r->key[i] > best) {
                best = r->key[i];
                next = i;
            }
        }
        assert_true(spent <= budget);
        const uint64_t most = (uint64_t)s->part_rows * s->code_bytes;
        const bool seen = best * (double)most > SEEN; /* rows of lighter blocks are not looked at */
        if (seen && !(worst >= best * (1 - NEARLY)))
            fail_msg("layer %u head %u hit %d: chose worth %g, left %g", r->layer, r->h, hit, worst,
                     best);
        if (s->tolerance == 0 && best > 0)
            assert_true(spent + hri_index_item_rows(r->head, next) * (uint64_t)s->code_bytes >
                            budget ||
                        (worst < best * (1 + NEARLY) && spent + most > budget));
    }
}

/* The step that was just made, of which the hits were read before. */
static void check_step(const struct bed *b, uint32_t layer, struct choice c[KV], bool best)
{
    const uint32_t g_n = b->shape.n_q / KV;
    double predicted = 0;
    choice_read(b, c);
    check_report(b, layer, c);
    for (uint32_t h = 0; h < KV; h++) {
        struct reference *r = reference_of(b, layer, h, &c[h]);
        for (uint32_t g = 0; g < g_n; g++) {
            float want[D];
            const double foreseen = (double)b->seq->steps[h].out.predicted[g];
            for (uint32_t j = 0; j < D; j++)
                want[j] = (float)r->out[g][j];
            double e = apart(b->out + (h * g_n + g) * D, want, D);
            if (!(e < TOLERANCE))
                fail_msg("token %u layer %u head %u.%u: apart by %g", b->n, layer, h, g, e);
            if (!(fabs(foreseen - r->predicted[g]) <= FORESEEN * r->predicted[g] + 1e-9))
                fail_msg("token %u layer %u head %u.%u: predicted %g, by the sketches %g", b->n,
                         layer, h, g, foreseen, r->predicted[g]);
            predicted += foreseen / b->shape.n_q;
        }
        if (best)
            check_choice(r, &c[h]);
        free(r);
    }
    assert_true(fabs(predicted - b->report.predicted_error) < 1e-5);
}

/* One budget, dealt out to the heads of all layers by what rows were worth to the last token. Returns how far one is from its equal
 * share. */
static double check_budgets(const struct bed *b)
{
    const hr_sequence_t *s = b->seq;
    const uint64_t body = s->layers[0].body_end - s->n_sink;
    const double equal = s->moved * (double)body * s->row_bytes;
    double sum = 0, most = 0;
    if (body == 0)
        return 0;
    for (uint32_t i = 0; i < LAYERS * KV; i++) {
        const double part = (double)s->part->ins[i / KV].budget[2 * (i % KV)] / equal;
        if (!(part > 0.499 && part < 2.001))
            fail_msg("token %u layer %u head %u: a budget of %g", b->n, i / KV, i % KV, part);
        sum += part / (LAYERS * KV);
        most = fmax(most, fabs(part - 1));
    }
    assert_true(fabs(sum - 1) < 1e-2);
    return most;
}

static void step(struct bed *b)
{
    static struct choice c[KV];
    append(b, 1);
    for (uint32_t i = 0; i < LAYERS; i++) {
        hri_settle(b->seq, &b->seq->layers[i], b->seq->decode_segment, true);
        hits_read(b, i, c);
        attend(b, i);
        check_step(b, i, c, true);
    }
}

/* -------------------------------------------------------------------------------------------- tests */

struct counts {
    uint64_t hits, fetched, late;
    double apart; /* budgets of heads from equal shares */
};

static struct counts steps(const struct plan *p, const struct shape *shape, uint32_t prefill,
                           uint32_t n, bool over_segment)
{
    struct bed b;
    struct counts sum = {0};
    bed_make_of(&b, p, shape);
    append(&b, prefill);
    const uint64_t before = device_emu_counts().graph_launches;
    uint32_t body_end = 0;
    for (uint32_t i = 0; i < n; i++) {
        if (i == 1 && over_segment) { /* up to a few tokens before a segment leaves the window */
            append(&b, 61);
            body_end = b.seq->layers[0].body_end;
        }
        step(&b);
        sum.hits += b.report.blocks_hit;
        sum.fetched += b.report.blocks_fetched;
        sum.late += b.report.blocks_late;
        sum.apart = fmax(sum.apart, check_budgets(&b));
    }
    assert_true(!over_segment || b.seq->layers[0].body_end > body_end);
    /* Recorded once, replayed for every token and layer. */
    assert_int_equal(device_emu_counts().graph_launches - before,
                     n * LAYERS * (b.seq->part->direct || b.seq->part->mailed ? 1u : 2u));
    struct hr_runtime_stats st = {.struct_size = sizeof st};
    assert_ok(hr_runtime_stats_get(b.rt, &st));
    for (int i = 0; i < HR_TIERS; i++)
        assert_true(st.tier[i].bytes_peak <= st.tier[i].bytes_cap);
    bed_free(&b);
    return sum;
}

/* Over the end of a segment, with 1, 2 and 3 bits, 1 and 4 query heads: blocks, bases, lone rows come while steps go on. */
static void test_steps(void **state)
{
    (void)state;
    static const char *const recipes[] = {"headrace:sketch=1" SETTINGS, RECIPE,
                                          "headrace:sketch=3" SETTINGS};
    for (uint32_t i = 0; i < 3; i++)
        for (uint32_t four = 0; four < 2; four++) {
            struct plan p = plain;
            p.recipe = recipes[i];
            struct counts sum = steps(&p, four ? &shape_4 : &shape_1, 542, 5, true);
            assert_true(sum.hits > 0 && sum.fetched > 0 && sum.late == 0);
            assert_true(sum.apart > 0.05);
        }
    struct plan alone = plain;
    alone.recipe = RECIPE ",share=0";
    assert_true(steps(&alone, &shape_4, 542, 2, false).apart < 1e-3);
    steps(&plain, &shape_4, 90, 4, false); /* few blocks, all new */
}

static void test_kinds(void **state)
{
    (void)state;
    struct plan p = plain;
    p.dtype = HR_DTYPE_F16;
    p.soft_cap = 5;
    steps(&p, &shape_4, 300, 2, false);
    p = plain;
    p.recipe = "headrace:block=12,sink=0,window=16,reuse=3"; /* blocks of one part */
    steps(&p, &shape_1, 300, 2, false);
    p.recipe = "headrace"; /* as it is */
    steps(&p, &shape_4, 880, 2, false);
}

/* A text that repeats itself, with a line unlike the others here and there: what the sketches lose of those is kept. */
static void test_strays(void **state)
{
    (void)state;
    struct bed b;
    uint32_t strays = 0;
    bed_make_of(&b, &plain, &shape_4);
    struct random r = {.state = 3};
    for (uint32_t i = 0; i < TOKENS * KV; i++) {
        const bool odd = i / KV % 61 == 30;
        for (uint32_t j = 0; j < D; j++) {
            float line = j < 6 ? 3 * (float)random_normal(&r) : 0.02f * (float)random_normal(&r);
            b.k[(size_t)i * D + j] = odd ? 1.5f * (float)random_normal(&r) : line;
        }
    }
    append(&b, 700);
    for (uint32_t i = 0; i < 3; i++) {
        append(&b, 1);
        /* The query looks for one of those lines. */
        for (uint32_t h = 0; h < b.shape.n_q; h++)
            memcpy(b.q + ((size_t)(b.n - 1) * b.shape.n_q + h) * D,
                   b.k + ((size_t)(61 * (2 + 3 * i) + 30) * KV + h / 4) * D, sizeof(float) * D);
        static struct choice c[KV];
        for (uint32_t layer = 0; layer < LAYERS; layer++) {
            hri_settle(b.seq, &b.seq->layers[layer], b.seq->decode_segment, true);
            hits_read(&b, layer, c);
            attend(&b, layer);
            check_step(&b, layer, c, true);
            assert_true(b.report.true_error < 0.02);
        }
    }
    for (uint32_t h = 0; h < KV; h++)
        strays += b.seq->layers[0].heads[h]->sketch->strays.n;
    print_message("strays: %u of %u rows\n", strays, b.seq->layers[0].body_end * KV);
    assert_true(strays > 8);
    bed_free(&b);
}

/* Everything refined: exact attention but for int8 rows, and nothing is predicted to be left. */
static void test_growth(void **state)
{
    (void)state;
    struct bed b;
    struct plan p = plain;
    p.moved = 1;
    bed_make_of(&b, &p, &shape_4);
    append(&b, 40);
    double most = 0;
    while (b.n < TOKENS) {
        append(&b, TOKENS - b.n < 43 ? TOKENS - b.n : 43);
        attend(&b, 0);
        most = fmax(most, b.report.true_error_max);
        assert_int_equal(b.report.blocks_estimated, 0);
        assert_true(b.report.predicted_error == 0);
    }
    print_message("everything refined: error at most %.5f\n", most);
    assert_true(most < 0.02);
    bed_free(&b);
}

/* The CPU's steps within the same budget, which refine parts of blocks, too, where these lie in the file, and single rows where they lie
 * in host memory: the errors, and what was predicted of them. */
enum { DEVICE, CPU_PARTS, CPU_ROWS, PLACES };

static void beside_cpu(const char *recipe, const struct shape *shape)
{
    struct bed b;
    struct plan p = plain;
    float out[KV * G_MOST * D];
    double error[PLACES] = {0}, foreseen[PLACES] = {0};
    hr_runtime_t *rt[PLACES];
    hr_sequence_t *seq[PLACES] = {NULL};
    struct hr_sequence_options so;
    struct hr_attend_options options;
    hr_attend_options_init(&options);
    options.check_exact = 1;
    p.recipe = recipe;
    bed_make_of(&b, &p, shape);
    const char *dir = access(disk_dir(), W_OK) == 0 ? disk_dir() : "/var/tmp";
    rt[CPU_PARTS] = runtime_make(64u << 20, 128u << 10, dir, 64u << 20, HR_IO_THREADS);
    rt[CPU_ROWS] = runtime_make(64u << 20, 32u << 20, NULL, 0, HR_IO_AUTO);
    options_for(&b.shape, TOKENS, recipe, p.moved, &so);
    for (int i = CPU_PARTS; i < PLACES; i++) {
        assert_ok(hr_sequence_create(rt[i], &so, &seq[i]));
        append_to(&b, seq[i], 800);
    }
    seq[DEVICE] = b.seq;
    append(&b, 800);
    for (uint32_t n = 0; n < 6; n++) {
        for (int i = CPU_PARTS; i < PLACES; i++)
            append_to(&b, seq[i], 1);
        append(&b, 1);
        for (int i = 0; i < PLACES * LAYERS; i++) {
            struct hr_attend_report r;
            assert_ok(attend_with(&b, seq[i / LAYERS], i % LAYERS, &options, out, &r));
            error[i / LAYERS] += r.true_error / (6 * LAYERS);
            foreseen[i / LAYERS] += r.predicted_error / (6 * LAYERS);
        }
    }
    print_message(
        "%s, %u query heads: error %.4f on the device, on the CPU %.4f with parts, %.4f with "
        "rows; predicted %.4f, %.4f, %.4f\n",
        recipe, shape->n_q, error[0], error[1], error[2], foreseen[0], foreseen[1], foreseen[2]);
    assert_true(error[DEVICE] < 1.25 * error[CPU_PARTS]);
    assert_true(foreseen[DEVICE] / error[DEVICE] > 0.5 * foreseen[CPU_ROWS] / error[CPU_ROWS]);
    assert_true(foreseen[DEVICE] / error[DEVICE] < 2 * foreseen[CPU_ROWS] / error[CPU_ROWS]);
    for (int i = CPU_PARTS; i < PLACES; i++) {
        hr_sequence_destroy(seq[i]);
        assert_ok(hr_runtime_destroy(rt[i]));
    }
    bed_free(&b);
}

static void test_cpu(void **state)
{
    (void)state;
    beside_cpu("headrace:sketch=1" SETTINGS, &shape_4);
    beside_cpu(RECIPE, &shape_4);
    beside_cpu("headrace:sketch=3" SETTINGS, &shape_1);
}

static void test_tolerance(void **state)
{
    (void)state;
    struct bed b;
    struct plan p = plain;
    uint64_t all = 0, some = 0;
    for (int with = 0; with < 2; with++) {
        p.tolerance = with ? 0.1 : 0;
        p.moved = 0.5;
        bed_make_of(&b, &p, &shape_4);
        append(&b, 500);
        for (uint32_t i = 0; i < 3; i++) {
            step(&b);
            *(with ? &some : &all) += b.report.bytes_selected;
            assert_true(!with || b.report.predicted_error <= 0.1 * 1.001 ||
                        b.report.blocks_estimated > 0);
        }
        bed_free(&b);
    }
    assert_true(some < all);
}

/* Refused, with the least that this recipe needs. */
static unsigned long long refused_for(struct plan p, uint64_t bytes)
{
    struct bed b = {.shape = shape_4};
    hr_sequence_t *seq = NULL;
    unsigned long long least = 0;
    p.device_bytes = bytes;
    assert_ok(runtime_open(&p, &b.rt));
    assert_fails(sequence_open(&b, &p, &seq), HR_ERR_BUDGET, "it needs at least");
    assert_int_equal(sscanf(strstr(hr_last_error(), "at least "), "at least %llu", &least), 1);
    assert_int_equal(device_emu_counts().device_bytes, 0);
    assert_ok(hr_runtime_destroy(b.rt));
    return least;
}

/* As few frames as are let through, sketches and all: parts replace each other. */
static void test_tiny(void **state)
{
    (void)state;
    struct plan p = plain, without = plain;
    p.moved = without.moved = 0.02;
    without.recipe = "headrace:sketch=0" SETTINGS;
    const unsigned long long least = refused_for(p, 100000);
    assert_true(least > refused_for(without, 100000));
    assert_true(refused_for(p, least - 1) == least);
    p.device_bytes = least;
    struct counts sum = steps(&p, &shape_4, 600, 8, false);
    print_message("%llu bytes: %llu hits, %llu fetched, %llu without a frame\n", least,
                  (unsigned long long)sum.hits, (unsigned long long)sum.fetched,
                  (unsigned long long)sum.late);
    assert_true(sum.fetched > 0);
}

/* Pinned memory is refused: the host copies the misses. */
static void test_pageable(void **state)
{
    (void)state;
    device_emu_faults.no_pinning = true;
    struct counts sum = steps(&plain, &shape_4, 500, 3, false);
    assert_true(sum.hits > 0 && sum.fetched > 0 && sum.late == 0);
}

/* Parts in the file: brought by the host; those that miss the deadline stay at their rows' sketches. */
static void file_steps(bool mailbox)
{
    struct fault_io io;
    struct plan p = plain;
    struct bed b;
    static struct choice c[KV];
    fault_io_init(&io);
    p.io = &io.ops;
    p.host_bytes = 128u << 10;
    device_emu_faults.no_pinning = !mailbox;
    bed_make_of(&b, &p, &shape_4);
    assert_int_equal(b.seq->part->mailed, mailbox);
    append(&b, 700);
    assert_ok(hr_sequence_settle(b.seq, 0));
    assert_ok(hr_sequence_settle(b.seq, 1));
    assert_ok(hri_store_flush(b.rt->store));
    uint64_t from_file = 0, late = 0;
    for (uint32_t i = 0; i < 3; i++) {
        step(&b);
        from_file += b.report.bytes_from_file;
    }
    assert_true(from_file > 0);
    for (uint32_t i = 0; i < 3; i++) {
        struct hr_attend_options options;
        hr_attend_options_init(&options);
        options.deadline_ns = 5000000;
        append(&b, 1);
        assert_ok(hri_device_tier_clear(b.seq->part->tier, 0)); /* so that much is missed */
        hits_read(&b, 0, c);
        io.stalled = 1;
        assert_ok(attend_with(&b, b.seq, 0, &options, b.out, &b.report));
        io.stalled = 0;
        check_step(&b, 0, c, false);
        late += b.report.blocks_late;
    }
    assert_true(late > 0);
    step(&b); /* late parts left no trace */
    bed_free(&b);
}

static void test_file(void **state)
{
    (void)state;
    file_steps(true);
    device_emu_faults = (struct device_emu_faults){0};
    file_steps(false);
}

/* Cut within a segment, before it, and so far that bases go, too. */
static void test_truncate(void **state)
{
    (void)state;
    struct bed b;
    bed_make_of(&b, &plain, &shape_4);
    append(&b, 500);
    step(&b);
    for (uint32_t cut = 0; cut < 4; cut++) {
        const uint32_t n = cut == 3 ? 20 : b.n - (cut == 0 ? 1 : cut == 1 ? 90 : 300);
        assert_ok(hr_sequence_truncate(b.seq, n));
        b.n = n;
        append(&b, 130);
        step(&b);
    }
    bed_free(&b);
}

/* A fork, and a session saved and opened, go on as the one they came from. */
static void test_copies(void **state)
{
    (void)state;
    struct bed b;
    hr_sequence_t *fork = NULL, *opened = NULL;
    float out[KV * G_MOST * D];
    char dir[] = "/tmp/device_sketch_XXXXXX", home[64];
    struct hr_sequence_options so;
    assert_non_null(mkdtemp(dir));
    snprintf(home, sizeof home, "%s/s", dir);
    bed_make_of(&b, &plain, &shape_4);
    append(&b, 500);
    step(&b);
    assert_ok(hr_sequence_fork(b.seq, &fork));
    assert_ok(hr_sequence_save(b.seq, home, NULL));
    options_for(&b.shape, TOKENS, plain.recipe, plain.moved, &so);
    so.keep_tokens = 1;
    assert_ok(hr_sequence_open(b.rt, home, &so, NULL, &opened));
    hr_sequence_t *copies[2] = {fork, opened}, *first = b.seq;
    append_to(&b, fork, 1);
    append_to(&b, opened, 1);
    step(&b);
    for (int j = 0; j < 2; j++) {
        struct hr_attend_report report;
        static struct choice c[KV];
        b.seq = copies[j];
        hits_read(&b, 0, c);
        assert_ok(attend_with(&b, b.seq, 0, NULL, out, &report));
        b.report = report;
        memcpy(b.out, out, sizeof out);
        check_step(&b, 0, c, true);
        b.seq = first;
    }
    hr_sequence_destroy(fork);
    hr_sequence_destroy(opened);
    assert_ok(hr_session_remove(home));
    assert_int_equal(rmdir(dir), 0);
    bed_free(&b);
}

/* The device is lost: exact attention goes on. */
static void test_lost(void **state)
{
    (void)state;
    struct bed b;
    float exact[KV * G_MOST * D], out[KV * G_MOST * D];
    struct hr_attend_options options;
    bed_make_of(&b, &plain, &shape_4);
    append(&b, 300);
    step(&b);
    hr_attend_options_init(&options);
    options.mode = HR_ATTEND_EXACT;
    assert_ok(attend_with(&b, b.seq, 0, &options, exact, NULL));
    device_emu_faults.loss = true;
    device_emu_faults.waits_before_loss = 0;
    assert_int_equal(attend_with(&b, b.seq, 0, NULL, out, NULL), HR_ERR_DEVICE);
    assert_ok(attend_with(&b, b.seq, 0, &options, out, NULL));
    assert_true(apart(out, exact, b.shape.n_q * D) <= 5e-4); /* there before, now here */
    append(&b, 200); /* a segment is grouped, and not copied */
    assert_int_equal(attend_with(&b, b.seq, 0, NULL, out, NULL), HR_ERR_DEVICE);
    bed_free(&b);
}

/* A decode step allocates nothing. */
static void test_allocations(void **state)
{
    (void)state;
    struct bed b;
    bed_make_of(&b, &plain, &shape_4);
    append(&b, 400);
    step(&b);
    struct hr_runtime_stats st = {.struct_size = sizeof st};
    assert_ok(hr_runtime_stats_get(b.rt, &st));
    const uint64_t before = st.allocations, held = st.tier[HR_TIER_DEVICE].bytes_held;
    for (uint32_t i = 0; i < 3; i++) {
        append(&b, 1);
        assert_ok(attend_with(&b, b.seq, 0, NULL, b.out, NULL));
    }
    assert_ok(hr_runtime_stats_get(b.rt, &st));
    assert_int_equal(st.allocations, before);
    assert_int_equal(st.tier[HR_TIER_DEVICE].bytes_held, held);
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
        TEST(test_steps),      TEST(test_kinds),    TEST(test_strays),    TEST(test_growth),
        TEST(test_cpu),        TEST(test_tiny),     TEST(test_tolerance), TEST(test_pageable),
        TEST(test_file),       TEST(test_truncate), TEST(test_copies),    TEST(test_lost),
        TEST(test_allocations)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
