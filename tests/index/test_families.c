/* Families of blocks: what they hold, what a look at them sees and estimates, against the definition; truncated, hidden, saved. */
#include "index/families.h"
#include "image_bytes.h"
#include "index_test.h"

#include "base/half.h"

#define DK      32
#define DV      24
#define N       40000u
#define SEGMENT 4000u
#define KINDS   50u
#define RECIPE  "headrace:sketch=0,block=16"

struct fixture {
    struct synth rows;
    float *q; /* [16][g][DK] */
    uint32_t g;
    struct bench_head b;
};

/* Keys and values of a few kinds, which all segments have. */
static struct synth recurring(struct hri_rng *rng, uint32_t n)
{
    struct synth s = {.n = n, .k_dim = DK, .v_dim = DV, .n_centers = KINDS};
    float *values = synth_normal(rng, (size_t)KINDS * DV, 1.0);
    s.k = synth_normal(rng, (size_t)n * DK, 0.3);
    s.v = synth_normal(rng, (size_t)n * DV, 0.3);
    s.centers = synth_normal(rng, (size_t)KINDS * DK, 1.5);
    for (uint32_t i = 0; i < n; i++) {
        size_t c = hri_rng_below(rng, KINDS);
        for (uint32_t j = 0; j < DK; j++)
            s.k[(size_t)i * DK + j] += s.centers[c * DK + j] + (j == 3 ? 6 : 0);
        for (uint32_t j = 0; j < DV; j++)
            s.v[(size_t)i * DV + j] += values[c * DV + j];
    }
    free(values);
    return s;
}

static struct fixture *fixture_new(const char *recipe, uint32_t g, uint32_t n)
{
    struct hri_rng rng;
    struct fixture *f = calloc(1, sizeof *f);
    hri_rng_seed(&rng, 11);
    f->g = g;
    f->rows = recurring(&rng, n);
    f->q = synth_queries(&rng, &f->rows, 64, g);
    struct bench_geometry geometry = {
        .recipe = recipe, .g = g, .k_dim = DK, .v_dim = DV, .horizon_tokens = 1000};
    bench_head_init(&f->b, &geometry, f->rows.k, f->rows.v, n, f->q, 64, 0, n, SEGMENT);
    return f;
}

static void fixture_free(struct fixture *f)
{
    bench_head_fini(&f->b);
    synth_free(&f->rows);
    free(f->q);
    free(f);
}

static const float *query(const struct fixture *f, uint32_t i)
{
    return f->q + (size_t)i * f->g * DK;
}

/* The output of one step with the first `near` rows as sink and window. */
static const float *step(struct fixture *f, const float *q, uint32_t near, uint64_t budget,
                         double tolerance, struct test_part *part, struct hri_select_out *out)
{
    test_part_clear(part, f->g, DV);
    bench_attend(q, f->g, DK, DV, f->rows.k, f->rows.v, near, 0, &part->part);
    bench_head_step(&f->b, q, budget, tolerance, NULL, &part->part, out);
    return test_part_finish(part, f->g, DV);
}

static const float *truth(struct fixture *f, const float *q, uint32_t near, struct test_part *part)
{
    test_part_clear(part, f->g, DV);
    bench_attend(q, f->g, DK, DV, f->rows.k, f->rows.v, near, 0, &part->part);
    bench_attend(q, f->g, DK, DV, f->rows.k, f->rows.v, f->b.n, 0, &part->part);
    return test_part_finish(part, f->g, DV);
}

/* -- what they hold -- */

static void check_families(const struct hri_index_head *head)
{
    const struct hri_families *fs = head->families;
    uint8_t *seen = calloc(head->n_blocks, 1);
    uint32_t covered = fs->n_broods > 0 ? fs->brood[fs->n_broods - 1].blocks_end : 0, brood = 0;
    assert_int_equal(fs->first[fs->n], covered);
    for (uint32_t f = 0; f < fs->n; f++) {
        double k[DK] = {0}, v[DV] = {0}, rows = 0, within = 0, most_k = 0, most_v = 0;
        float kc[DK], vc[DV], top_k[DK], top_v[DV];
        assert_in_range(fs->first[f + 1] - fs->first[f], 1, 16);
        for (uint32_t at = fs->first[f]; at < fs->first[f + 1]; at++) {
            uint32_t b = fs->member[at];
            assert_int_equal(seen[b]++, 0);
            brood += at == fs->brood[brood].blocks_end;
            assert_in_range(b, brood > 0 ? fs->brood[brood - 1].blocks_end : 0,
                            fs->brood[brood].blocks_end - 1);
            hri_summary_centers(head, b, kc, vc);
            for (uint32_t j = 0; j < DK; j++)
                k[j] += (double)head->block_rows[b] * (double)kc[j];
            for (uint32_t j = 0; j < DV; j++)
                v[j] += (double)head->block_rows[b] * (double)vc[j];
            within += (double)head->block_rows[b] * (double)hri_block_spread(head, b);
            rows += head->block_rows[b];
        }
        hri_summary_centers(&fs->top, f, top_k, top_v);
        for (uint32_t j = 0; j < DK; j++)
            most_k = fmax(most_k, fabs(k[j] / rows - (double)head->summary.k_mean[j]));
        for (uint32_t j = 0; j < DV; j++)
            most_v = fmax(most_v, fabs(v[j] / rows));
        for (uint32_t j = 0; j < DK; j++)
            CHECK_NEAR(top_k[j], k[j] / rows, most_k / 250 + 1e-6);
        for (uint32_t j = 0; j < DV; j++)
            CHECK_NEAR(top_v[j], v[j] / rows, most_v / 250 + 1e-6);
        CHECK_NEAR(hri_f32_from_bf16(fs->within[f]), within / rows, 0.005 * within / rows);
        assert_int_equal(fs->rows[f], (uint32_t)rows);
    }
    for (uint32_t b = 0; b < covered; b++)
        assert_int_equal(seen[b], 1);
    free(seen);
}

static void test_holds(void **state)
{
    (void)state;
    struct fixture *f = fixture_new(RECIPE, 2, N);
    const struct hri_index_head *head = f->b.head;
    assert_non_null(head->families);
    assert_true(head->n_blocks >= HRI_FAMILIES_LEAST);
    const struct hri_families *fs =
        head->families; /* of all blocks but those of the last segment */
    assert_int_equal(fs->brood[0].blocks_end, HRI_BROOD_BLOCKS);
    assert_int_equal(fs->brood[1].blocks_end, 2 * HRI_BROOD_BLOCKS);
    assert_true(fs->n_broods == 2 ||
                fs->brood[2].blocks_end == 2 * HRI_BROOD_BLOCKS + HRI_BROOD_LEAST);
    check_families(head);
    assert_true(hri_families_held(head) > 0);
    assert_true(hri_families_held(head) <= hri_families_bytes(&head->options));
    fixture_free(f);
}

static void test_wanted(void **state)
{
    (void)state;
    static const char *const without[] = {"headrace:sketch=0,block=16,families=0",
                                          "headrace:sketch=1,block=16"};
    for (uint32_t i = 0; i < 2; i++) {
        struct fixture *f = fixture_new(without[i], 1, N);
        assert_null(f->b.head->families);
        fixture_free(f);
    }
    struct fixture *f = fixture_new(RECIPE, 1, 20000); /* a short text */
    assert_null(f->b.head->families);
    fixture_free(f);
}

/* -- a step -- */

/* What closed families stand for, by the definition: sum of rows exp(q.m + both halved variances), values leaning by D q. */
static void check_closed(const struct fixture *f, const float *q, const struct hri_seen *seen)
{
    const struct hri_index_head *head = f->b.head;
    const struct hri_families *fs = head->families;
    uint8_t *open = calloc(head->n_blocks, 1);
    uint32_t closed_blocks = 0;
    for (uint32_t i = 0; i < seen->head.n_blocks; i++)
        open[seen->block[i]] = 1;
    for (uint32_t g = 0; g < f->g; g++) {
        float variance, between, shift[DV], between_shift[DV], k[DK], v[DV];
        double mass = 0, value[DV] = {0};
        hri_shape_query(head, q + (size_t)g * DK, 1, &variance, shift);
        hri_shape_query(&fs->top, q + (size_t)g * DK, 1, &between, between_shift);
        closed_blocks = 0;
        for (uint32_t i = 0; i < fs->n; i++) {
            double dot = 0, x, w, in = (double)hri_f32_from_bf16(fs->within[i]),
                   of = (double)hri_f32_from_bf16(fs->top.shape.spread[i]);
            if (open[fs->member[fs->first[i]]])
                continue;
            closed_blocks += fs->first[i + 1] - fs->first[i];
            hri_summary_centers(&fs->top, i, k, v);
            for (uint32_t j = 0; j < DK; j++)
                dot += (double)q[(size_t)g * DK + j] * (double)k[j];
            x = fmin((double)between * of / 2, 3) + fmin((double)variance * in / 2, 3);
            w = fs->rows[i] * exp(dot + x);
            mass += w;
            for (uint32_t j = 0; j < DV; j++)
                value[j] +=
                    w * ((double)v[j] + in * (double)shift[j] + of * (double)between_shift[j]);
        }
        double scale = exp((double)seen->closed.m[g]);
        CHECK_NEAR(seen->closed.l[g] * scale, mass, 2e-3 * mass);
        for (uint32_t j = 0; j < DV; j++)
            CHECK_NEAR(seen->closed.o[(size_t)g * DV + j] * scale, value[j], 3e-3 * mass);
    }
    assert_int_equal(closed_blocks, seen->n_closed);
    assert_int_equal(seen->n_closed + seen->head.n_blocks, head->n_blocks);
    free(open);
}

/* Errors with families are those without, but for what the closed ones may leave; and what they leave is in what is predicted. */
static void check_steps(uint32_t g, uint32_t near, uint64_t budget, double tolerance)
{
    static struct test_part part, plain_part, true_part;
    struct fixture *f = fixture_new(RECIPE, g, N);
    struct fixture *plain = fixture_new(RECIPE ",families=0", g, N);
    double error = 0, plain_error = 0;
    uint32_t looks = 0, seen_blocks = 0;
    for (uint32_t i = 0; i < 24; i++) {
        struct hri_select_out out, plain_out;
        const float *q = query(f, i);
        const float *exact = truth(f, q, near, &true_part);
        const float *with = step(f, q, near, budget, tolerance, &part, &out);
        const float *without = step(plain, q, near, budget, tolerance, &plain_part, &plain_out);
        struct hri_select_in in = {.scratch = f->b.scratch};
        const struct hri_seen *seen = hri_families_seen_last(f->b.head, &in);
        error += relative_error(with, exact, g * DV) / 24;
        plain_error += relative_error(without, exact, g * DV) / 24;
        uint64_t bytes = 0;
        uint8_t *taken = calloc(hri_index_blocks(f->b.head), 1);
        for (uint32_t j = 0; j < out.n_items; j++) {
            assert_in_range(out.items[j], 0, hri_index_blocks(f->b.head) - 1);
            assert_int_equal(taken[out.items[j]]++, 0);
            bytes += (uint64_t)hri_index_block_rows(f->b.head, out.items[j]) * (DK + DV);
        }
        free(taken);
        assert_int_equal(bytes, out.bytes);
        assert_true(bytes <= budget);
        if (!seen)
            continue;
        looks++;
        seen_blocks += seen->head.n_blocks;
        check_closed(f, q, seen);
        for (uint32_t h = 0; h < g; h++)
            assert_true(seen->left[h] >= 0);
    }
    assert_true(looks >= 12);
    assert_true(seen_blocks < looks * (hri_index_blocks(f->b.head) * 3 / 4));
    assert_true(error <= plain_error + 0.004);
    fixture_free(plain);
    fixture_free(f);
}

static void test_steps(void **state)
{
    (void)state;
    check_steps(1, 64, N / 100 * (DK + DV), 0);
    check_steps(4, 0, N / 100 * (DK + DV), 0);
    check_steps(3, 20, N / 50 * (DK + DV), 0.05);
    check_steps(2, 64, 0, 0);
}

/* Whatever is refined is no longer estimated: with a budget for everything the output is exact but for int8, and what families that stay
 * closed leave. */
static void test_everything(void **state)
{
    static struct test_part part, true_part;
    (void)state;
    struct fixture *f = fixture_new(RECIPE, 2, N);
    for (uint32_t i = 0; i < 8; i++) {
        struct hri_select_out out;
        const float *with = step(f, query(f, i), 16, UINT64_MAX / 4, 0, &part, &out);
        CHECK_NEAR(relative_error(with, truth(f, query(f, i), 16, &true_part), 2 * DV), 0, 0.015);
    }
    fixture_free(f);
}

/* Blocks that were chosen and did not come count as their summaries have them. */
static void test_late(void **state)
{
    static struct test_part part, late_part;
    (void)state;
    struct fixture *f = fixture_new(RECIPE, 2, N);
    const float *q = query(f, 3);
    uint32_t items[4096];
    struct hri_select_in in = {.q = q,
                               .budget_bytes = N / 100 * (DK + DV),
                               .row_bytes = DK + DV,
                               .n_rows = N,
                               .scratch = f->b.scratch};
    struct hri_select_out out = {.items = items, .items_max = 4096};
    assert_int_equal(hri_index_select(f->b.head, &in, &out), HR_OK);
    assert_non_null(hri_families_seen_last(f->b.head, &in));
    assert_true(out.n_items > 2);
    float error[HR_GROUP_MAX];
    test_part_clear(&part, 2, DV);
    hri_index_estimate(f->b.head, &in, &out, &part.part, NULL);
    hri_index_estimate_items(f->b.head, &in, items, out.n_items, &part.part, error);
    assert_true(error[0] > 0 && error[1] > 0);
    /* the same with nothing chosen */
    in.budget_bytes = 0;
    struct hri_select_out none = {.items = items, .items_max = 4096};
    assert_int_equal(hri_index_select(f->b.head, &in, &none), HR_OK);
    assert_int_equal(none.n_items, 0);
    test_part_clear(&late_part, 2, DV);
    hri_index_estimate(f->b.head, &in, &none, &late_part.part, NULL);
    const float *late = test_part_finish(&part, 2, DV), *all = test_part_finish(&late_part, 2, DV);
    CHECK_NEAR(relative_error(late, all, 2 * DV), 0, 1e-4);
    fixture_free(f);
}

/* -- growing and shrinking -- */

static void test_truncate(void **state)
{
    static struct test_part part;
    (void)state;
    struct fixture *f = fixture_new(RECIPE, 1, N);
    struct hri_index_head *head = f->b.head;
    struct hri_select_out out;
    uint32_t n_blocks;
    hri_index_hide(head, HRI_BROOD_BLOCKS + 5); /* those of the second brood are not seen */
    assert_true(hri_families_seen(head, &n_blocks) < head->families->n);
    assert_int_equal(n_blocks, HRI_BROOD_BLOCKS);
    hri_index_show(head);
    hri_families_seen(head, &n_blocks);
    assert_true(n_blocks >= 2 * HRI_BROOD_BLOCKS);
    hri_index_truncate(head, 2 * HRI_BROOD_BLOCKS - 1);
    assert_int_equal(head->families->n_broods, 1);
    f->b.n = hri_index_rows(head);
    check_families(head);
    for (uint32_t i = 0; i < f->b.n; i++) /* blocks hold rows of their own segments only */
        assert_true(f->b.order[i] < N);
    step(f, query(f, 0), 0, N / 100 * (DK + DV), 0, &part, &out);
    assert_true(isfinite(part.out[0]));
    hri_index_truncate(head, 0);
    assert_int_equal(head->families->n, 0);
    fixture_free(f);
}

static hr_status_t load(const struct fixture *f, struct bytes *b, struct hri_index_head **head_out)
{
    struct hri_image in = {.move = bytes_in, .context = b, .loads = true};
    b->at = 0;
    assert_int_equal(hri_index_head_create(&f->b.options, head_out), HR_OK);
    return hri_index_image(*head_out, &in);
}

/* A head that was saved and loaded gives the same outputs, bit for bit; one whose families are not right is refused. */
static void test_image(void **state)
{
    static struct test_part part, again;
    struct hri_select_out out;
    struct bytes b = {0};
    (void)state;
    struct fixture *f = fixture_new(RECIPE, 2, N);
    struct hri_image save = {.move = bytes_out, .context = &b};
    struct hri_index_head *own = f->b.head, *loaded;
    assert_int_equal(hri_index_image(own, &save), HR_OK);
    assert_int_equal(load(f, &b, &loaded), HR_OK);
    assert_int_equal(b.at, b.n);
    check_families(loaded);
    for (uint32_t i = 0; i < 4; i++) {
        step(f, query(f, i), 8, N / 100 * (DK + DV), 0, &part, &out);
        f->b.head = loaded;
        step(f, query(f, i), 8, N / 100 * (DK + DV), 0, &again, &out);
        f->b.head = own;
        assert_memory_equal(part.out, again.out, 2 * DV * sizeof(float));
    }
    hri_index_head_destroy(loaded);
    /* The members are found in the image by their bytes; two of them made the same. */
    const struct hri_families *fs = own->families;
    size_t n = fs->first[fs->n] * sizeof(uint32_t);
    unsigned char *at = memmem(b.data, b.n, fs->member, n);
    assert_non_null(at);
    memcpy(at, at + 4, 4);
    assert_int_equal(load(f, &b, &loaded), HR_ERR_CORRUPT);
    assert_non_null(strstr(hr_last_error(), "brood"));
    hri_index_head_destroy(loaded);
    memcpy(at, fs->member, 4);
    memset(at - 4, 0xff, 4); /* the end of the last family */
    assert_int_equal(load(f, &b, &loaded), HR_ERR_CORRUPT);
    hri_index_head_destroy(loaded);
    free(b.data);
    fixture_free(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_holds), cmocka_unit_test(test_wanted),
        cmocka_unit_test(test_steps), cmocka_unit_test(test_everything),
        cmocka_unit_test(test_late),  cmocka_unit_test(test_truncate),
        cmocka_unit_test(test_image),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
