/* Rows of the decode benchmarks that come from a trace: tiled as rows.h says, against the trace itself. */
#include "tests/test.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/half.h"
#include "base/rng.h"
#include "bench/rows.h"
#include "cli/trace.h"

#define KV     2u
#define HEADS  4u
#define DIM    16u
#define TOKENS 300u
#define FIRST  250u /* the first scored query */
#define SPAN   (FIRST - 16)
#define LONG   (3 * SPAN + 100 + FIRST) /* three copies and a part of one */

static uint32_t seen_at[] = {200, 240, 241, 242}, scored_at[] = {FIRST, 260, 299};
static uint16_t k[KV * TOKENS * DIM], v[KV * TOKENS * DIM];
static float seen[HEADS * 4 * DIM], q[HEADS * 3 * DIM];
static char dir[] = "/tmp/headrace-rows-XXXXXX";

static void fill_halves(struct hri_rng *rng, uint16_t *x, size_t n)
{
    for (size_t i = 0; i < n; i++) /* dimensions of different size, around a mean */
        x[i] = cli_half_from_float(3 + (float)(i % DIM) * 0.2f * (float)hri_rng_normal(rng));
}

static int make_trace(void **state)
{
    struct hri_rng rng;
    struct cli_trace trace = {.path = dir,
                              .name = dir,
                              .meta = {.model = (char *)"made up",
                                       .n_q_heads = HEADS,
                                       .n_kv_heads = KV,
                                       .head_dim = DIM,
                                       .n_tokens = TOKENS,
                                       .scale = 0.25,
                                       .seen = {4, seen_at},
                                       .scored = {3, scored_at},
                                       .rope_layout = HR_ROPE_NONE},
                              .k = k,
                              .v = v,
                              .seen = seen,
                              .q = q};
    (void)state;
    hri_rng_seed(&rng, 3);
    fill_halves(&rng, k, sizeof k / sizeof *k);
    fill_halves(&rng, v, sizeof v / sizeof *v);
    for (size_t i = 0; i < sizeof q / sizeof *q; i++)
        q[i] = (float)hri_rng_normal(&rng);
    for (size_t i = 0; i < sizeof seen / sizeof *seen; i++)
        seen[i] = (float)i;
    return !mkdtemp(dir) || cli_trace_save(&trace);
}

static int remove_trace(void **state)
{
    static const char *const files[] = {"meta.json", "k.npy", "v.npy", "q.npy", "q_seen.npy"};
    char path[128];
    (void)state;
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, files[i]);
        unlink(path);
    }
    return rmdir(dir);
}

/* Everything up to the first step, as the benchmark reads it: [LONG][KV][DIM]. */
struct text {
    struct hrb_rows *rows;
    uint32_t n;
    uint16_t *k, *v;
};

static struct text read_text(uint32_t tokens)
{
    char why[256];
    struct text t = {.rows = hrb_rows_trace(dir, tokens, why, sizeof why)};
    assert_non_null(t.rows);
    t.n = t.rows->tokens;
    t.k = calloc((size_t)t.n * KV * DIM, sizeof *t.k);
    t.v = calloc((size_t)t.n * KV * DIM, sizeof *t.v);
    for (uint32_t done = 0; done < t.n;) {
        struct hrb_rows_chunk c = t.rows->chunk(t.rows, done);
        assert_true(c.n > 0 && c.n <= t.n - done);
        t.rows->make(t.rows, c.n, t.k + (size_t)done * KV * DIM, t.v + (size_t)done * KV * DIM);
        done += c.n;
        if (c.queries == 0)
            continue;
        float shown[3 * HEADS * DIM];
        /* 200 does not stand right before the others. */
        assert_int_equal(c.queries, 3);
        assert_int_equal(done, 242 + 1 + (t.n - FIRST));
        t.rows->shown(t.rows, c.queries, shown);
        for (uint32_t i = 0; i < 3; i++)
            for (uint32_t h = 0; h < HEADS; h++)
                assert_memory_equal(shown + (i * HEADS + h) * DIM, seen + (h * 4 + 1 + i) * DIM,
                                    DIM * sizeof(float));
    }
    return t;
}

static void text_free(struct text *t)
{
    t->rows->free(t->rows);
    free(t->k);
    free(t->v);
}

static const uint16_t *at(const uint16_t *text, uint32_t token, uint32_t head)
{
    return text + ((size_t)token * KV + head) * DIM;
}

static const uint16_t *row_of(const uint16_t *trace, uint32_t token, uint32_t head)
{
    return trace + ((size_t)head * TOKENS + token) * DIM;
}

static double distance(const uint16_t *a, const uint16_t *b)
{
    double sum = 0;
    for (uint32_t i = 0; i < DIM; i++)
        sum += pow((double)hri_f32_from_f16(a[i]) - hri_f32_from_f16(b[i]), 2);
    return sqrt(sum);
}

static void test_as_it_is(void **state)
{
    struct text t = read_text(TOKENS);
    (void)state;
    assert_int_equal(t.n, FIRST);
    for (uint32_t i = 0; i < t.n; i++)
        for (uint32_t h = 0; h < KV; h++) {
            assert_memory_equal(at(t.k, i, h), row_of(k, i, h), DIM * sizeof *k);
            assert_memory_equal(at(t.v, i, h), row_of(v, i, h), DIM * sizeof *v);
        }
    text_free(&t);
}

static void test_ends_are_the_traces(void **state)
{
    struct text t = read_text(LONG);
    (void)state;
    assert_int_equal(t.n, LONG);
    for (uint32_t i = 0; i < LONG; i++) {
        if (i >= 16 && i < LONG - SPAN)
            continue;
        const uint32_t row = i < 16 ? i : i - (LONG - FIRST);
        for (uint32_t h = 0; h < KV; h++) {
            assert_memory_equal(at(t.k, i, h), row_of(k, row, h), DIM * sizeof *k);
            assert_memory_equal(at(t.v, i, h), row_of(v, row, h), DIM * sizeof *v);
        }
    }
    text_free(&t);
}

/* A rotation about the mean keeps all distances, that to the mean as well; and it moves the rows. */
static void check_copy(const uint16_t *text, const uint16_t *trace, uint32_t first, uint32_t head)
{
    double mean[DIM] = {0}, want[DIM] = {0};
    for (uint32_t i = 0; i < SPAN; i++) {
        const uint16_t *got = at(text, first + i, head), *row = row_of(trace, 16 + i, head);
        const uint32_t other = (i * 37 + 5) % SPAN;
        assert_true(fabs(distance(got, at(text, first + other, head)) -
                         distance(row, row_of(trace, 16 + other, head))) < 0.02);
        for (uint32_t j = 0; j < DIM; j++) {
            mean[j] += (double)hri_f32_from_f16(got[j]) / SPAN;
            want[j] += (double)hri_f32_from_f16(row[j]) / SPAN;
        }
    }
    for (uint32_t j = 0; j < DIM; j++)
        assert_true(fabs(mean[j] - want[j]) < 0.002);
}

static void test_copies_are_turned(void **state)
{
    struct text t = read_text(LONG);
    (void)state;
    for (uint32_t h = 0; h < KV; h++) {
        for (uint32_t c = 0; c < 3; c++) {
            double moved = 0;
            check_copy(t.k, k, 16 + c * SPAN, h);
            check_copy(t.v, v, 16 + c * SPAN, h);
            /* Away from the trace's rows and from the next copy's. */
            for (uint32_t i = 0; i < SPAN; i++)
                moved += fmin(distance(at(t.k, 16 + c * SPAN + i, h), row_of(k, 16 + i, h)),
                              distance(at(t.k, 16 + c * SPAN + i, h),
                                       at(t.k, 16 + ((c + 1) % 3) * SPAN + i, h)));
            assert_true(moved / SPAN > 1);
        }
    }
    text_free(&t);
}

/* The variance of any query's logits over a copy stays about the trace's. */
static void test_spread_of_logits(void **state)
{
    struct text t = read_text(LONG);
    double ratio = 0;
    (void)state;
    for (uint32_t n = 0; n < 3 * HEADS; n++) {
        double sum[2] = {0}, square[2] = {0};
        for (uint32_t i = 0; i < SPAN; i++) {
            const uint16_t *rows[2] = {at(t.k, 16 + i, 0), row_of(k, 16 + i, 0)};
            for (int s = 0; s < 2; s++) {
                double logit = 0;
                for (uint32_t j = 0; j < DIM; j++)
                    logit += (double)q[n * DIM + j] * hri_f32_from_f16(rows[s][j]);
                sum[s] += logit / SPAN;
                square[s] += logit * logit / SPAN;
            }
        }
        assert_true(fabs(sum[0] - sum[1]) < 0.01);
        ratio += (square[0] - sum[0] * sum[0]) / (square[1] - sum[1] * sum[1]) / (3.0 * HEADS);
    }
    assert_true(ratio > 0.8 && ratio < 1.25);
    text_free(&t);
}

static void test_steps_go_round(void **state)
{
    struct text t = read_text(LONG);
    const uint32_t gap = LONG - FIRST;
    uint32_t length = LONG;
    (void)state;
    for (int i = 0; i < 8; i++) {
        float got[HEADS * DIM];
        uint16_t row_k[64 * KV * DIM], row_v[64 * KV * DIM];
        const uint32_t step = i < 5 ? (uint32_t)i % 3 : (uint32_t)i - 5;
        if (i == 5) /* after the second step of the second round */
            t.rows->rewind(t.rows);
        struct hrb_rows_before before = t.rows->before(t.rows, length);
        assert_int_equal(before.length, step == 0 ? LONG : length);
        assert_int_equal(before.length + before.rows, scored_at[step] + gap);
        t.rows->make(t.rows, before.rows, row_k, row_v);
        t.rows->query(t.rows, got);
        for (uint32_t h = 0; h < HEADS; h++)
            assert_memory_equal(got + h * DIM, q + (h * 3 + step) * DIM, DIM * sizeof *q);
        t.rows->make(t.rows, 1, row_k, row_v);
        assert_memory_equal(row_v, row_of(v, scored_at[step], 0), DIM * sizeof *v);
        length = before.length + before.rows + 1;
    }
    text_free(&t);
}

/* The first step's attention, all rows in one pass. */
static void test_truth(void **state)
{
    struct text t = read_text(LONG);
    float out[HEADS * DIM];
    struct hrb_rows_truth truth = {.out = out};
    uint16_t last_k[KV * DIM], last_v[KV * DIM];
    double all_mass = 0;
    (void)state;
    assert_true(hrb_rows_trace_truth(t.rows, &truth));
    assert_true(fabs(truth.copies - 3 - 100.0 / SPAN) < 1e-9);
    t.rows->make(t.rows, 1, last_k, last_v); /* the rows go on where they were */
    assert_memory_equal(last_k, row_of(k, FIRST, 0), DIM * sizeof *k);
    for (uint32_t h = 0; h < HEADS; h++) {
        double o[DIM] = {0}, sum = 0, copies = 0;
        for (uint32_t i = 0; i <= LONG; i++) {
            const uint16_t *key = i < LONG ? at(t.k, i, h / 2) : last_k + h / 2 * DIM;
            const uint16_t *value = i < LONG ? at(t.v, i, h / 2) : last_v + h / 2 * DIM;
            double logit = 0;
            for (uint32_t j = 0; j < DIM; j++)
                logit += 0.25 * (double)q[h * 3 * DIM + j] * hri_f32_from_f16(key[j]);
            sum += exp(logit);
            copies += i >= 16 && i < LONG - SPAN ? exp(logit) : 0;
            for (uint32_t j = 0; j < DIM; j++)
                o[j] += exp(logit) * hri_f32_from_f16(value[j]);
        }
        all_mass += copies / sum / HEADS;
        for (uint32_t j = 0; j < DIM; j++)
            assert_true(fabs(o[j] / sum - (double)out[h * DIM + j]) < 1e-5);
    }
    assert_true(fabs(truth.copies_mass - all_mass) < 1e-9);
    text_free(&t);
}

static void test_refused(void **state)
{
    char why[256] = "";
    (void)state;
    assert_null(hrb_rows_trace(dir, FIRST - 1, why, sizeof why));
    assert_string_equal(why, "the trace's first scored query stands at token 250");
    assert_null(hrb_rows_trace("/nowhere", TOKENS, why, sizeof why));
    assert_string_equal(why, "the trace cannot be read");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_as_it_is),          cmocka_unit_test(test_ends_are_the_traces),
        cmocka_unit_test(test_copies_are_turned), cmocka_unit_test(test_spread_of_logits),
        cmocka_unit_test(test_steps_go_round),    cmocka_unit_test(test_truth),
        cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests(tests, make_trace, remove_trace);
}
