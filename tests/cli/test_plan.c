/* The arithmetic of `headrace plan`: bytes against what the library itself says it holds, times against sums by hand. */
#include "tests/test.h"

#include <math.h>
#include <string.h>

#include "base/half.h"
#include "base/rng.h"
#include "cli/plan_measure.h"
#include "cli/plan_model.h"

static const struct plan_shape llama = {32, 8, 4, 128, 2};
static const struct plan_machine machine = {.device_bytes = 64e9,
                                            .host_bytes = 512e9,
                                            .file_bytes = 8e12,
                                            .device_bps = 1e12,
                                            .host_bps = 50e9,
                                            .file_bps = 10e9};
static const struct plan_use use = {.moved = 0.01, .sketch = 2, .sequences = 1};

#define ROWS 3000u

/* Fills a layer of one head and returns its statistics. */
static struct hr_sequence_stats held(uint32_t dim, unsigned sketch, uint32_t rows)
{
    struct hr_runtime_options ro;
    struct hr_sequence_options so;
    struct hr_sequence_stats stats = {.struct_size = sizeof stats};
    hr_runtime_t *runtime;
    hr_sequence_t *sequence;
    char recipe[32];
    struct hri_rng rng;
    hr_runtime_options_init(&ro);
    ro.n_threads = 1;
    assert_int_equal(hr_runtime_create(&ro, &runtime), HR_OK);
    hr_sequence_options_init(&so);
    snprintf(recipe, sizeof recipe, "headrace:sketch=%u", sketch);
    so.n_layers = so.n_q_heads = so.n_kv_heads = 1;
    so.k_dim = so.v_dim = dim;
    so.tokens_max = rows;
    so.recipe = recipe;
    assert_int_equal(hr_sequence_create(runtime, &so, &sequence), HR_OK);
    uint16_t *x = malloc((size_t)rows * dim * sizeof *x);
    hri_rng_seed(&rng, dim);
    for (size_t i = 0; i < (size_t)rows * dim; i++)
        x[i] = hri_bf16_from_f32((float)hri_rng_normal(&rng));
    struct hr_tensor t = hr_tensor_make(x, HR_DTYPE_BF16, rows, 1, dim);
    assert_int_equal(hr_sequence_append(sequence, 0, &t, &t, NULL), HR_OK);
    assert_int_equal(hr_sequence_settle(sequence, 0), HR_OK);
    assert_int_equal(hr_sequence_stats_get(sequence, &stats), HR_OK);
    free(x);
    hr_sequence_destroy(sequence);
    assert_int_equal(hr_runtime_destroy(runtime), HR_OK);
    return stats;
}

static void bytes_are_the_librarys(void **state)
{
    static const uint32_t dims[] = {64, 128, 256};
    (void)state;
    for (unsigned i = 0; i < 3; i++)
        for (unsigned sketch = 0; sketch <= 3; sketch++) {
            struct hr_sequence_stats s = held(dims[i], sketch, ROWS);
            struct plan_shape shape = {1, 1, 1, dims[i], 2};
            double rows = (double)s.body_rows, summary = plan_summary_bytes(&shape, rows, sketch),
                   codes = plan_sketch_bytes(&shape, rows, sketch);
            assert_true(fabs(summary - (double)s.summary_bytes) <
                        0.06 * summary + 16.0 * 2 * dims[i]);
            /* The plan has room for two bases more than a text this short has fitted. */
            assert_true(codes >= (double)s.sketch_bytes);
            double bases = 3.0 * (2.0 * dims[i] * dims[i] + 16.0 * dims[i]);
            assert_true(sketch == 0 || codes <= (double)s.sketch_bytes * 1.02 + bases);
        }
}

/* Long texts without sketches have families. The last blocks are in none. */
static void bytes_of_long_texts(void **state)
{
    struct plan_shape shape = {1, 1, 1, 64, 2};
    (void)state;
    struct hr_sequence_stats s = held(64, 0, 100000);
    double summary = plan_summary_bytes(&shape, (double)s.body_rows, 0);
    assert_true(s.blocks >= 2048);
    assert_true(summary >= (double)s.summary_bytes && summary < 1.15 * (double)s.summary_bytes);
}

static void times_add_up(void **state)
{
    struct plan p;
    struct plan_rates rates = plan_given_rates(&machine, 20e-6);
    (void)state;
    plan_evaluate(&llama, &use, &machine, &rates, 131072, &p);
    double body = 131072 - 68, heads = 32 * 8;
    assert_true(p.fits);
    assert_true(fabs(p.int8_bytes - heads * body * 256) < 1);
    assert_true(fabs(p.exact_bytes - heads * 131072.0 * 512) < 1);
    assert_true(fabs(p.host_moved_bytes - 0.01 * heads * body * 512) < 1);
    assert_true(p.file_moved_bytes == 0);
    assert_true(fabs(p.part_s[PLAN_FETCH_HOST] - p.host_moved_bytes / 50e9) < 1e-12);
    assert_true(fabs(p.part_s[PLAN_SELECT] -
                     (32 * 20e-6 + (p.summary_bytes + p.sketch_bytes) / 1e12)) < 1e-9);
    double sum = 0;
    for (unsigned i = 0; i < PLAN_PARTS; i++)
        sum += p.part_s[i];
    assert_true(fabs(sum - p.step_s) < 1e-12);
    assert_int_equal(p.bound, PLAN_FETCH_HOST);
    assert_true(fabs(p.exact_step_s - p.exact_bytes / 1e12) < 1e-9); /* it fits the device */
}

static void more_is_never_slower(void **state)
{
    struct plan_rates rates = plan_given_rates(&machine, 20e-6);
    (void)state;
    for (double host = 0; host <= 1e12; host += 1e11) {
        struct plan a, b;
        struct plan_machine less = machine, more = machine;
        less.host_bytes = host;
        more.host_bytes = host + 1e11;
        plan_evaluate(&llama, &use, &less, &rates, 10u << 20, &a);
        plan_evaluate(&llama, &use, &more, &rates, 10u << 20, &b);
        assert_true(b.tokens_per_s >= a.tokens_per_s);
    }
}

/* Fewer bits where the device has no room, and nothing where not even summaries fit. */
static void small_devices(void **state)
{
    struct plan p;
    struct plan_rates rates = plan_given_rates(&machine, 0);
    struct plan_machine m = machine;
    (void)state;
    m.device_bytes = 1.2e9;
    plan_evaluate(&llama, &use, &m, &rates, 131072, &p);
    assert_int_equal(p.sketch, 1);
    assert_true(p.fits && p.frame_bytes > 0);
    m.device_bytes = 5e8;
    plan_evaluate(&llama, &use, &m, &rates, 131072, &p);
    assert_int_equal(p.sketch, 0);
    assert_true(p.fits);
    m.device_bytes = 1e8;
    plan_evaluate(&llama, &use, &m, &rates, 131072, &p);
    assert_true(!p.fits && p.device_room_bytes < 0);
    m = machine;
    m.file_bytes = 1e9;
    plan_evaluate(&llama, &use, &m, &rates, 131072, &p);
    assert_true(!p.fits && p.file_room_bytes < 0);
}

/* A text shorter than the window has no body. */
static void short_texts(void **state)
{
    struct plan_rates rates = plan_given_rates(&machine, 1e-6);
    (void)state;
    for (uint64_t n = 0; n < 70; n++) {
        struct plan p;
        plan_evaluate(&llama, &use, &machine, &rates, n, &p);
        assert_true(p.fits && isfinite(p.step_s));
        assert_true(n > 68 || p.host_moved_bytes == 0);
    }
}

/* What is said to be the least is enough, and a little less is not. */
static void least_is_least(void **state)
{
    struct plan_rates rates = plan_given_rates(&machine, 20e-6);
    (void)state;
    double least = plan_least(&llama, &use, &machine, &rates, 1u << 20, 20, PLAN_HOST_BPS);
    assert_true(least > 0);
    for (int i = 0; i < 2; i++) {
        struct plan p;
        struct plan_machine m = machine;
        m.host_bps = least * (i ? 0.99 : 1.01);
        rates = plan_given_rates(&m, 20e-6);
        plan_evaluate(&llama, &use, &m, &rates, 1u << 20, &p);
        assert_int_equal(p.tokens_per_s >= 20, i == 0);
    }
    assert_true(plan_least(&llama, &use, &machine, &rates, 131072, 1e9, PLAN_HOST_BPS) == -1);
    assert_true(plan_least(&llama, &use, &machine, &rates, 131072, 1, PLAN_HOST_BYTES) == 0);
}

static void fits_go_through_their_samples(void **state)
{
    (void)state;
    struct plan_cost c = plan_cost_through(1e6, 2e-3, 4e6, 5e-3);
    assert_true(fabs(c.fixed_s - 1e-3) < 1e-9 && fabs(c.s_per_byte - 1e-9) < 1e-15);
    c = plan_cost_through(1e6, 5e-3, 4e6, 2e-3); /* noise: no time is won by reading more */
    assert_true(c.s_per_byte == 0 && c.fixed_s == 2e-3);
    c = plan_cost_through(1e6, 1e-3, 4e6, 8e-3); /* worse than linear */
    assert_true(c.fixed_s == 0 && fabs(c.s_per_byte - 2e-9) < 1e-15);
    c = plan_cost_through(0, 1e-3, 0, 2e-3);
    assert_true(c.s_per_byte == 0 && c.fixed_s == 1e-3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bytes_are_the_librarys), cmocka_unit_test(bytes_of_long_texts),
        cmocka_unit_test(times_add_up),           cmocka_unit_test(more_is_never_slower),
        cmocka_unit_test(small_devices),          cmocka_unit_test(short_texts),
        cmocka_unit_test(least_is_least),         cmocka_unit_test(fits_go_through_their_samples),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
