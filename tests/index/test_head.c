/* A head's life: segments, truncation, refining everything, memory. */
#include "index_test.h"

#include "index/group.h"

static void refine_all(const char *recipe, uint32_t n, uint32_t segment, uint32_t g, uint32_t dk,
                       uint32_t dv, double tolerance)
{
    static struct test_part made, truth;
    struct hri_rng rng;
    struct hri_select_out out;
    struct bench_head b;
    hri_rng_seed(&rng, n + dk);
    struct synth rows = synth_make(&rng, n, dk, dv);
    float *q = synth_queries(&rng, &rows, 20, g);
    struct bench_geometry geometry = {
        .recipe = recipe, .g = g, .k_dim = dk, .v_dim = dv, .horizon_tokens = 64};
    bench_head_init(&b, &geometry, rows.k, rows.v, n, q, 20, 0, n, segment);
    uint32_t sum = 0;
    for (uint32_t i = 0; i < hri_index_blocks(b.head); i++)
        sum += hri_index_block_rows(b.head, i);
    assert_int_equal(sum, n);
    assert_true(hri_index_blocks(b.head) <= b.options.blocks_max);
    for (uint32_t i = 0; i < 3; i++) {
        const float *one = q + (size_t)i * g * dk;
        test_part_clear(&made, g, dv);
        test_part_clear(&truth, g, dv);
        bench_head_step(&b, one, UINT64_MAX / 4, 0, NULL, &made.part, &out);
        bench_attend(one, g, dk, dv, rows.k, rows.v, n, 0, &truth.part);
        if (hri_index_takes_rows(&b.options.recipe))
            assert_true(out.n_items == 0 && out.n_rows <= n);
        else
            assert_int_equal(out.n_items, b.options.recipe.selector->unit == HRI_UNIT_ROWS
                                              ? n
                                              : hri_index_blocks(b.head));
        if (n)
            CHECK_NEAR(relative_error(test_part_finish(&made, g, dv),
                                      test_part_finish(&truth, g, dv), g * dv),
                       0, tolerance);
        else
            assert_true(made.l[0] == 0);
    }
    bench_head_fini(&b);
    synth_free(&rows);
    free(q);
}

/* Every length around the edges of blocks and segments, every head dimension: estimate plus
 * refinement of all blocks is exact attention, to the precision of the rows' codec. */
static void test_refine_all(void **state)
{
    static const uint32_t lengths[] = {0,  1,  2,  15, 16,  17,  18,  19, 31,
                                       32, 33, 36, 37, 255, 256, 257, 600};
    static const uint32_t dims[] = {64, 80, 96, 128, 256};
    (void)state;
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        uint32_t d = dims[i % 5];
        refine_all("headrace", lengths[i], 0, 1 + (uint32_t)i % 4, d, d, 0.02);
        refine_all("retroinfer", lengths[i], 100, 2, d, 64, 1e-5);
        refine_all("quest", lengths[i], 100, 2, 64, d, 1e-5);
        refine_all("exact-topk", lengths[i], 100, 3, d, d, 1e-5);
    }
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++)
        refine_all("headrace:sketch=0,block=18", lengths[i], 0, 2, dims[i % 5], 64, 0.02);
    refine_all("headrace:sketch=1", 3000, 256, 3, 64, 64, 0.02);
    refine_all("headrace:sketch=3", 3000, 0, 3, 128, 64, 0.02);
    refine_all("headrace", 8192, 0, 3, 64, 64, 0.02);
    refine_all("headrace", 1000, 256, 3, 64, 64, 0.02);
    refine_all("headrace:block=32", 1000, 256, 16, 32, 8, 0.02);
}

/* Rows and queries of absurd sizes: nothing fails, nothing but finite numbers comes out. */
static void test_absurd_rows(void **state)
{
    enum { N = 400, G = 2, D = 64 };
    static const char *const recipes[] = {"headrace", "retroinfer", "quest"};
    static const float sizes[] = {0, 1e-30f, 1e-10f, 1e10f, 1e19f, 1e25f, 1e37f};
    static struct test_part part;
    (void)state;
    for (size_t i = 0; i < 3 * sizeof sizes / sizeof *sizes; i++) {
        struct hri_rng rng;
        struct hri_select_out out;
        struct bench_head b;
        float size = sizes[i / 3];
        hri_rng_seed(&rng, i);
        struct synth rows = synth_make(&rng, N, D, D);
        float *q = synth_queries(&rng, &rows, 20, G);
        for (uint32_t j = 0; j < N * D; j++) {
            rows.k[j] *= size * 0.1f;
            rows.v[j] *= i % 2 ? size * 0.1f : 1;
        }
        for (uint32_t j = 0; j < 20 * G * D; j++)
            q[j] *= size > 1 ? 1 / size : 1;
        struct bench_geometry geometry = {
            .recipe = recipes[i % 3], .g = G, .k_dim = D, .v_dim = D, .horizon_tokens = 64};
        bench_head_init(&b, &geometry, rows.k, rows.v, N, q, 20, 0, N, 0);
        for (uint64_t budget = 0; budget <= N * D * 4; budget += N * D) {
            test_part_clear(&part, G, D);
            bench_attend(q, G, D, D, rows.k, rows.v, 7, 0, &part.part);
            bench_head_step(&b, q, budget, 0, NULL, &part.part, &out);
            test_part_finish(&part, G, D);
            for (uint32_t j = 0; j < G * D; j++)
                assert_true(isfinite(part.out[j]));
            for (uint32_t g = 0; g < G; g++)
                assert_false(isnan(out.predicted[g]));
        }
        bench_head_fini(&b);
        synth_free(&rows);
        free(q);
    }
}

/* A sink that outweighs the body by more than float's range. */
static void test_heavy_sink(void **state)
{
    enum { N = 300, D = 32 };
    static struct test_part part;
    struct hri_rng rng;
    struct hri_select_out out;
    struct bench_head b;
    (void)state;
    hri_rng_seed(&rng, 6);
    struct synth rows = synth_make(&rng, N, D, D);
    float *q = synth_queries(&rng, &rows, 20, 1), sink[D], value[D];
    double square = 0;
    for (int j = 0; j < D; j++)
        square += q[j] * q[j];
    for (int j = 0; j < D; j++) {
        sink[j] = (float)(300 * q[j] / square);
        value[j] = (float)j;
    }
    struct bench_geometry geometry = {.recipe = "headrace:sketch=0,block=18",
                                      .g = 1,
                                      .k_dim = D,
                                      .v_dim = D,
                                      .horizon_tokens = 64};
    bench_head_init(&b, &geometry, rows.k, rows.v, N, q, 20, 0, N, 0);
    test_part_clear(&part, 1, D);
    bench_attend(q, 1, D, D, sink, value, 1, 0, &part.part);
    bench_head_step(&b, q, 2000, 0, NULL, &part.part, &out);
    CHECK_NEAR(relative_error(test_part_finish(&part, 1, D), value, D), 0, 1e-6);
    assert_true(isfinite(out.predicted[0]) && out.predicted[0] < 1e-6);
    bench_head_fini(&b);
    synth_free(&rows);
    free(q);
}

/* Blocks that were chosen but are late: their estimate completes the estimate of the others. */
static void test_late_blocks(void **state)
{
    enum { N = 900, G = 3, D = 64 };
    static struct test_part all, parts;
    static const char *const recipes[] = {"headrace:sketch=0,block=18", "retroinfer:estimate=1"};
    (void)state;
    for (int r = 0; r < 2; r++) {
        struct hri_rng rng;
        struct bench_head b;
        hri_rng_seed(&rng, 4);
        struct synth rows = synth_make(&rng, N, D, D);
        float *q = synth_queries(&rng, &rows, 20, G);
        struct bench_geometry geometry = {
            .recipe = recipes[r], .g = G, .k_dim = D, .v_dim = D, .horizon_tokens = 64};
        bench_head_init(&b, &geometry, rows.k, rows.v, N, q, 20, 0, N, 0);
        uint32_t items[N], estimated;
        struct hri_select_in in = {.q = q, .scratch = b.scratch, .row_bytes = 128, .n_rows = N};
        struct hri_select_out out = {.items = items, .items_max = N};
        assert_int_equal(hri_index_select(b.head, &in, &out), HR_OK);
        test_part_clear(&all, G, D);
        hri_index_estimate(b.head, &in, &out, &all.part, &estimated);
        assert_int_equal(estimated, hri_index_blocks(b.head));
        in.budget_bytes = 128 * 100;
        assert_int_equal(hri_index_select(b.head, &in, &out), HR_OK);
        assert_true(out.n_items > 0);
        test_part_clear(&parts, G, D);
        hri_index_estimate(b.head, &in, &out, &parts.part, &estimated);
        assert_true(estimated <= hri_index_blocks(b.head) - out.n_items);
        float error[G];
        hri_index_estimate_items(b.head, &in, out.items, out.n_items, &parts.part, error);
        for (int g = 0; g < G; g++)
            assert_true(r == 0 ? error[g] > 0 && error[g] < 2 : error[g] == 0);
        CHECK_NEAR(
            relative_error(test_part_finish(&parts, G, D), test_part_finish(&all, G, D), G * D), 0,
            1e-3);
        for (int g = 0; g < G; g++)
            CHECK_NEAR(parts.m[g] + log(parts.l[g]), all.m[g] + log(all.l[g]), 1e-3);
        bench_head_fini(&b);
        synth_free(&rows);
        free(q);
    }
}

static struct hri_index_options options_for(const char *recipe, struct hri_alloc *device,
                                            struct hri_alloc *scratch)
{
    struct hri_index_options o = {.g = 2,
                                  .k_dim = 64,
                                  .v_dim = 48,
                                  .scale = 1,
                                  .horizon_tokens = 100,
                                  .blocks_max = 70,
                                  .rows_max = 1000,
                                  .n_layers = 1,
                                  .n_heads = 1,
                                  .kernels = hri_kernels_get(hri_kernels_best()),
                                  .device = device,
                                  .scratch = scratch};
    assert_int_equal(hri_recipe_parse(recipe, &o.recipe), HR_OK);
    if (o.recipe.selector->takes_argument)
        strcpy(o.recipe.argument, "Flat");
    return o;
}

/* The device holds what was announced, a step allocates nothing, and everything is given back. */
static void test_memory(void **state)
{
    enum { N = 1000 };
    (void)state;
    for (size_t i = 0; hri_selector_at(i); i++) {
        if (hri_selector_at(i)->takes_argument && !HR_HAVE_FAISS)
            continue;
        struct hri_alloc device, scratch;
        struct hri_rng rng;
        struct hri_index_head *head;
        hri_alloc_init(&device, "device", 0, NULL);
        hri_alloc_init(&scratch, "scratch", 0, NULL);
        hri_rng_seed(&rng, i);
        struct synth rows = synth_make(&rng, N, 64, 48);
        float *q = synth_queries(&rng, &rows, 20, 2), *scores = synth_normal(&rng, 2 * N, 1);
        struct hri_index_options o = options_for(hri_selector_at(i)->name, &device, &scratch);
        o.blocks_max = 256; /* of 8 rows and more */
        assert_int_equal(hri_index_head_create(&o, &head), HR_OK);
        assert_int_equal(device.live_bytes, hri_index_device_bytes(&o));
        void *workspace = NULL, *step = NULL;
        uint32_t order[N], block_rows[N], items[N], n_blocks;
        assert_int_equal(posix_memalign(&workspace, 64, hri_index_workspace_bytes(&o, N)), 0);
        assert_int_equal(posix_memalign(&step, 64, hri_index_step_scratch_bytes(&o)), 0);
        hri_index_observe(head, q, 20, 0);
        uint64_t before_add = device.alloc_count + scratch.alloc_count;
        if (hri_index_prepares(&o.recipe))
            assert_int_equal(hri_index_prepare(&head, 1, rows.k, rows.v, N, 0), HR_OK);
        assert_int_equal(hri_index_adds_rows(&o.recipe)
                             ? hri_index_add_rows(head, rows.k, rows.v, N, 0, N)
                             : hri_index_add(head, rows.k, rows.v, N, N, workspace, order,
                                             block_rows, &n_blocks),
                         HR_OK);
        uint64_t before = device.alloc_count + scratch.alloc_count;
        if (!hri_index_adds_rows(&o.recipe) && !hri_index_prepares(&o.recipe))
            assert_int_equal(before, before_add);
        assert_true(hri_index_summary_bytes(head) <= hri_index_device_bytes(&o));
        struct test_part near;
        test_part_clear(&near, 2, 48);
        bench_attend(q, 2, 64, 48, rows.k, rows.v, 5, 0, &near.part);
        struct hri_select_in in = {.q = q,
                                   .near = &near.part,
                                   .budget_bytes = 9000,
                                   .row_bytes = 112,
                                   .n_rows = N,
                                   .scratch = step,
                                   .row_scores = scores,
                                   .row_scores_stride = N};
        struct hri_select_out out = {.items = items, .items_max = N};
        assert_int_equal(hri_index_selects_layers(&o.recipe)
                             ? hri_index_select_layer(&head, 1, &in, &out)
                             : hri_index_select(head, &in, &out),
                         HR_OK);
        hri_index_estimate(head, &in, &out, &near.part, NULL);
        assert_int_equal(device.alloc_count + scratch.alloc_count, before);
        hri_index_head_destroy(head);
        assert_int_equal(device.live_bytes + scratch.live_bytes, 0);
        free(workspace);
        free(step);
        free(q);
        free(scores);
        synth_free(&rows);
    }
    hri_index_head_destroy(NULL);
}

static void test_refused_memory(void **state)
{
    (void)state;
    for (size_t i = 0; hri_selector_at(i); i++)
        for (int64_t pass = 0;; pass++) {
            if (hri_selector_at(i)->takes_argument && !HR_HAVE_FAISS)
                break;
            struct hri_alloc device, scratch;
            struct hri_index_head *head = NULL;
            hri_alloc_init(&device, "device", 0, NULL);
            hri_alloc_init(&scratch, "scratch", 0, NULL);
            struct hri_index_options o = options_for(hri_selector_at(i)->name, &device, &scratch);
            hri_alloc_fail_after(pass % 2 ? &device : &scratch, pass / 2);
            hr_status_t status = hri_index_head_create(&o, &head);
            if (status == HR_OK) {
                hri_index_head_destroy(head);
            } else {
                assert_int_equal(status, HR_ERR_NOMEM);
                assert_null(head);
            }
            assert_int_equal(device.live_bytes + scratch.live_bytes, 0);
            if (pass > 60)
                break;
        }
}

static void test_bad_options(void **state)
{
    struct hri_index_head *head = NULL;
    (void)state;
    struct hri_index_options o = options_for("headrace:sketch=0,block=18", NULL, NULL);
    o.g = 0;
    assert_int_equal(hri_index_head_create(&o, &head), HR_ERR_SHAPE);
    o.g = HR_GROUP_MAX + 1;
    assert_int_equal(hri_index_head_create(&o, &head), HR_ERR_SHAPE);
    o.g = 1;
    o.k_dim = 63;
    assert_int_equal(hri_index_head_create(&o, &head), HR_ERR_SHAPE);
    o.k_dim = 264;
    assert_int_equal(hri_index_head_create(&o, &head), HR_ERR_SHAPE);
    o.k_dim = 64;
    o.kernels = NULL;
    assert_int_equal(hri_index_head_create(&o, &head), HR_ERR_INVALID);
    assert_null(head);
}

/* Full heads refuse more rows and stay as they are; a truncated head takes rows again. */
static void test_full_and_truncate(void **state)
{
    enum { N = 1500 };
    struct hri_rng rng;
    struct hri_index_head *head;
    uint32_t order[N], block_rows[N], n_blocks = 7;
    void *workspace = NULL;
    (void)state;
    hri_rng_seed(&rng, 2);
    struct synth rows = synth_make(&rng, N, 64, 48);
    struct hri_index_options o = options_for("headrace:sketch=0,block=18", NULL, NULL);
    assert_int_equal(posix_memalign(&workspace, 64, hri_index_workspace_bytes(&o, N)), 0);
    assert_int_equal(hri_index_head_create(&o, &head), HR_OK);
    assert_int_equal(
        hri_index_add(head, rows.k, rows.v, 0, 0, workspace, order, block_rows, &n_blocks), HR_OK);
    assert_int_equal(n_blocks, 0);
    assert_int_equal(
        hri_index_add(head, rows.k, rows.v, 900, 900, workspace, order, block_rows, &n_blocks),
        HR_OK);
    uint32_t first = n_blocks;
    assert_int_equal(
        hri_index_add(head, rows.k, rows.v, 600, N, workspace, order, block_rows, &n_blocks),
        HR_ERR_FULL);
    assert_int_equal(n_blocks, first);
    assert_int_equal(hri_index_blocks(head), first);
    float before[64 + 48], after[64 + 48], k_step, v_step;
    hri_index_set_steps(head, 3, 0.25f, 1e-20f);
    hri_index_centers(head, 3, before, before + 64);
    hri_index_truncate(head, 10);
    assert_int_equal(hri_index_blocks(head), 10);
    hri_index_truncate(head, 20);
    assert_int_equal(hri_index_blocks(head), 10);
    assert_int_equal(
        hri_index_add(head, rows.k, rows.v, 600, N, workspace, order, block_rows, &n_blocks),
        HR_OK);
    assert_int_equal(hri_index_blocks(head), 10 + n_blocks);
    hri_index_centers(head, 3, after, after + 64);
    hri_index_steps(head, 3, &k_step, &v_step);
    assert_memory_equal(before, after, sizeof before);
    assert_true(k_step == 0.25f && v_step == 1e-20f);
    hri_index_head_destroy(head);
    free(workspace);
    synth_free(&rows);
}

/* Steps of two heads give the same output, bit for bit. q [n][g][k_dim]. */
static void steps_equal(struct bench_head *a, struct bench_head *b, const float *q, uint32_t n,
                        uint64_t budget)
{
    static struct test_part one, other;
    const struct hri_index_options *o = &a->options;
    struct hri_select_out out;
    for (uint32_t i = 0; i < n; i++, q += (size_t)o->g * o->k_dim) {
        test_part_clear(&one, o->g, o->v_dim);
        test_part_clear(&other, o->g, o->v_dim);
        bench_head_step(a, q, budget, 0, NULL, &one.part, &out);
        bench_head_step(b, q, budget, 0, NULL, &other.part, &out);
        assert_memory_equal(one.o, other.o, o->g * o->v_dim * sizeof(float));
    }
}

/* Hidden blocks are as if they were not there, and shown as if they had never been hidden: bit for bit. */
static void made_ahead(const char *recipe, uint64_t budget)
{
    enum { ALL = 1100, SEEN = 600, G = 2, D = 64 };
    struct hri_rng rng;
    struct bench_head a, b, c;
    hri_rng_seed(&rng, 17);
    struct synth rows = synth_make(&rng, ALL, D, D);
    float *q = synth_queries(&rng, &rows, 20, G);
    struct bench_geometry geometry = {
        .recipe = recipe, .g = G, .k_dim = D, .v_dim = D, .horizon_tokens = 64};
    bench_head_init(&a, &geometry, rows.k, rows.v, ALL, q, 20, 0, ALL, SEEN);
    bench_head_init(&b, &geometry, rows.k, rows.v, ALL, q, 20, 0, ALL, SEEN);
    bench_head_init(&c, &geometry, rows.k, rows.v, ALL, q, 20, 0, ALL, SEEN);
    assert_true(hri_index_makes_ahead(&a.options.recipe));
    uint32_t blocks = 0, all = hri_index_blocks(a.head);
    for (uint32_t n = 0; n < SEEN; n += hri_index_block_rows(a.head, blocks++))
        ;
    hri_index_hide(a.head, blocks);
    hri_index_truncate(b.head, blocks);
    assert_int_equal(hri_index_rows(a.head), SEEN);
    assert_int_equal(hri_index_rows_ahead(a.head), ALL - SEEN);
    assert_int_equal(hri_index_blocks_ahead(a.head), all - blocks);
    assert_int_equal(hri_index_sketch_bytes(a.head), hri_index_sketch_bytes(b.head));
    steps_equal(&a, &b, q, 20, budget);
    hri_index_show(a.head);
    assert_int_equal(hri_index_rows(a.head), ALL);
    assert_int_equal(hri_index_blocks_ahead(a.head), 0);
    steps_equal(&a, &c, q, 20, budget);
    bench_head_fini(&a);
    bench_head_fini(&b);
    bench_head_fini(&c);
    synth_free(&rows);
    free(q);
}

static void test_made_ahead(void **state)
{
    static const char *const recipes[] = {"headrace", "headrace:sketch=0", "headrace:sketch=1"};
    (void)state;
    for (size_t i = 0; i < sizeof recipes / sizeof *recipes; i++) {
        made_ahead(recipes[i], 0);
        made_ahead(recipes[i], 4000);
        made_ahead(recipes[i], UINT64_MAX / 4);
    }
}

/* Rows added by two calls are added as by one: the same blocks, and what estimates of them give, bit for bit. */
static void added_in_two(const char *recipe)
{
    enum { ALL = 1100, FIRST = 600, N = ALL - FIRST, G = 2, D = 64 };
    struct hri_rng rng;
    struct bench_head a, b;
    uint32_t order[2][N], block_rows[2][N], n_blocks[2];
    float weight[N];
    bool weighted = false;
    void *workspace = NULL;
    hri_rng_seed(&rng, 23);
    struct synth rows = synth_make(&rng, ALL, D, D);
    float *q = synth_queries(&rng, &rows, 20, G);
    struct bench_geometry geometry = {
        .recipe = recipe, .g = G, .k_dim = D, .v_dim = D, .horizon_tokens = 64};
    bench_head_init(&a, &geometry, rows.k, rows.v, ALL, q, 20, 0, ALL, FIRST);
    bench_head_init(&b, &geometry, rows.k, rows.v, ALL, q, 20, 0, ALL, FIRST);
    const float *k = rows.k + (size_t)FIRST * D, *v = rows.v + (size_t)FIRST * D;
    size_t bytes = hri_index_workspace_bytes(&a.options, N);
    assert_int_equal(posix_memalign(&workspace, 64, bytes), 0);
    uint32_t before = 0; /* blocks of the first rows; the others go, to come back by either way */
    for (uint32_t n = 0; n < FIRST; n += hri_index_block_rows(a.head, before++))
        ;
    hri_index_truncate(a.head, before);
    hri_index_truncate(b.head, before);
    assert_int_equal(
        hri_index_add(a.head, k, v, N, ALL, workspace, order[0], block_rows[0], &n_blocks[0]),
        HR_OK);
    assert_int_equal(hri_index_add_begin(b.head, k, v, N, ALL, workspace, order[1], block_rows[1],
                                         &n_blocks[1], weight, &weighted),
                     HR_OK);
    assert_int_equal(hri_index_blocks(b.head), before);
    assert_int_equal(hri_index_rows(b.head), FIRST);
    memset(workspace, 0x5a, bytes);
    assert_int_equal(hri_index_add_end(b.head, k, v, N, workspace, order[1], block_rows[1],
                                       n_blocks[1], weighted ? weight : NULL),
                     HR_OK);
    assert_int_equal(n_blocks[0], n_blocks[1]);
    assert_memory_equal(order[0], order[1], sizeof order[0]);
    assert_memory_equal(block_rows[0], block_rows[1], n_blocks[0] * sizeof block_rows[0][0]);
    assert_int_equal(hri_index_blocks(a.head), hri_index_blocks(b.head));
    assert_int_equal(hri_index_rows(b.head), ALL);
    assert_int_equal(hri_index_sketch_bytes(a.head), hri_index_sketch_bytes(b.head));
    steps_equal(&a, &b, q, 20, 0);
    bench_head_fini(&a);
    bench_head_fini(&b);
    free(workspace);
    synth_free(&rows);
    free(q);
}

static void test_added_in_two(void **state)
{
    (void)state;
    added_in_two("headrace");
    added_in_two("headrace:sketch=0");
    added_in_two("headrace:sketch=3");
}

/* Small segments have small blocks as long as there is room for them; whatever follows fits the tables. */
static void test_small_segments(void **state)
{
    enum { D = 16, SEGMENT = 512, PROMPT = 3000, N = PROMPT + 60 * SEGMENT };
    (void)state;
    struct hri_alloc device, scratch;
    struct hri_rng rng;
    struct hri_index_head *head;
    hri_alloc_init(&device, "device", 0, NULL);
    hri_alloc_init(&scratch, "scratch", 0, NULL);
    hri_rng_seed(&rng, 7);
    struct synth rows = synth_make(&rng, N, D, D);
    float *q = synth_queries(&rng, &rows, 20, 2);
    struct hri_index_options o = options_for("headrace:sketch=1", &device, &scratch);
    o.k_dim = o.v_dim = D;
    o.rows_max = N;
    o.blocks_max = hri_index_blocks_bound(&o.recipe, D, D, N, N / SEGMENT + 2);
    assert_int_equal(hri_index_head_create(&o, &head), HR_OK);
    void *workspace = NULL;
    uint32_t *order = malloc(N * sizeof *order), *block_rows = malloc(N * sizeof *block_rows);
    uint32_t n_blocks, kind = 0, of_kind[3] = {0}, done = 0;
    assert_non_null(order);
    assert_non_null(block_rows);
    assert_int_equal(posix_memalign(&workspace, 64, hri_index_workspace_bytes(&o, PROMPT)), 0);
    hri_index_observe(head, q, 20, 0);
    for (uint32_t n = PROMPT; done < N; done += n, n = SEGMENT) {
        assert_int_equal(hri_index_add(head, rows.k + (size_t)done * D, rows.v + (size_t)done * D,
                                       n, done + n, workspace, order, block_rows, &n_blocks),
                         HR_OK);
        if (n == PROMPT) {
            assert_true(n_blocks <= hri_group_blocks_max(n, 48));
            continue;
        }
        /* By thirds, then by halves, then large ones. */
        uint32_t now = n_blocks > hri_group_blocks_max(n, 24)   ? 0
                       : n_blocks > hri_group_blocks_max(n, 48) ? 1
                                                                : 2;
        assert_true(n_blocks <= hri_group_blocks_max(n, 16));
        assert_true(now >= kind);
        kind = now;
        of_kind[kind]++;
    }
    assert_in_range(of_kind[0], 16384 / SEGMENT / 2 - 2, 16384 / SEGMENT / 2 + 2);
    assert_in_range(of_kind[1], 0, 3);
    assert_int_equal(of_kind[0] + of_kind[1] + of_kind[2], 60);
    hri_index_head_destroy(head);
    free(workspace);
    free(order);
    free(block_rows);
    synth_free(&rows);
    free(q);
    assert_int_equal(device.live_bytes, 0);
    assert_int_equal(scratch.live_bytes, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refine_all),     cmocka_unit_test(test_absurd_rows),
        cmocka_unit_test(test_heavy_sink),     cmocka_unit_test(test_late_blocks),
        cmocka_unit_test(test_memory),         cmocka_unit_test(test_refused_memory),
        cmocka_unit_test(test_bad_options),    cmocka_unit_test(test_full_and_truncate),
        cmocka_unit_test(test_made_ahead),     cmocka_unit_test(test_added_in_two),
        cmocka_unit_test(test_small_segments),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
