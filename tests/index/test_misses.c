/* What a head says that the sketches of its blocks miss, and by how much they are to be taken (index/sketch.c), against loops in double. What a step makes of
 * it is in test_ladder.c.
 *
 *   what                                  claim
 *   a block's gain                        regression of its z on its z~, both around their means, to half a step and 1 %
 *   a block's miss of keys                mean |z - gain (z~ - mean z~)|^2 over the basis's, to the code's step
 *   a block's miss of values              mean |v - v_m|^2 over the basis's mean, to the code's step
 *   rows that queries look at             count for more in it: it lies between the least and the most of its rows
 *   rows nearly alike                     what they are coded as is hardly taken, since no level of a code stands for zero
 *   copies, cut heads                     say the same of the blocks that they have
 */
#include "tests/index/index_test.h"
#include "tests/test.h"

#define ALIKE_GAIN 13 /* a tenth */

enum { ROWS = 2400, SEEN = 24, ALIKE_KINDS = 10 };

struct rows {
    uint32_t g, dk, dv;
    struct synth synth;
    float *seen;
    struct bench_head b;
};

static void make_head(struct rows *r, const char *recipe, uint32_t n_seen, uint32_t segment)
{
    struct bench_geometry geometry = {
        .recipe = recipe, .g = r->g, .k_dim = r->dk, .v_dim = r->dv, .horizon_tokens = 64};
    bench_head_init(&r->b, &geometry, r->synth.k, r->synth.v, ROWS, r->seen, n_seen, 0, ROWS,
                    segment);
}

static void make(struct rows *r, const char *recipe, uint64_t seed, uint32_t n_seen,
                 uint32_t segment)
{
    struct hri_rng rng;
    hri_rng_seed(&rng, seed);
    r->synth = synth_make(&rng, ROWS, r->dk, r->dv);
    r->seen = synth_queries(&rng, &r->synth, SEEN, r->g);
    make_head(r, recipe, n_seen, segment);
}

static void free_rows(struct rows *r)
{
    bench_head_fini(&r->b);
    synth_free(&r->synth);
    free(r->seen);
}

static const struct hri_basis *basis_of(const struct hri_sketch *s, uint32_t block)
{
    uint32_t i = 0;
    while (i + 1 < s->n_bases && s->bases[i + 1].first_block <= block)
        i++;
    return &s->bases[i];
}

static bool has_strays(const struct hri_sketch *s, uint32_t block)
{
    for (uint32_t i = 0; i < s->strays.n; i++)
        if (s->strays.block[i] == block)
            return true;
    return false;
}

/* Sixteenths of a power of two, half a step and what float sums are off. */
static void check_code(const struct rows *r, const char *what, uint32_t block, uint8_t code,
                       double ratio)
{
    double expected = ratio > 0 ? 128 + 16 * log2(ratio) : 0;
    expected = expected < 0 ? 0 : expected > 255 ? 255 : expected;
    if (!(fabs(code - expected) <= 0.6))
        fail_msg("%s of block %u of %u rows: %u, should be %.2f", what, block,
                 r->b.head->block_rows[block], code, expected);
}

/* What the rows of a block are (z), what they are coded as, around its mean (z~), and by what part the one best says the other. */
static struct {
    double z[HRI_BLOCK_ROWS_LIMIT][HR_HEAD_DIM_MAX], coded[HRI_BLOCK_ROWS_LIMIT][HR_HEAD_DIM_MAX];
    double gain;
} block_of;

static void block_code(const struct rows *r, const struct hri_basis *basis, uint32_t block)
{
    uint32_t first = r->b.first[block], n = r->b.head->block_rows[block];
    float center[HR_HEAD_DIM_MAX], value[HR_HEAD_DIM_MAX], z[HR_HEAD_DIM_MAX];
    float rounded[HR_HEAD_DIM_MAX] = {0};
    double product = 0, square = 0;
    hri_index_centers(r->b.head, block, center, value);
    for (uint32_t i = 0; i < n; i++) {
        const float *k = r->synth.k + (size_t)r->b.order[first + i] * r->dk;
        for (uint32_t c = 0; c < r->dk; c++) {
            double along = 0;
            for (uint32_t j = 0; j < r->dk; j++)
                along +=
                    (double)basis->turn[(size_t)c * r->dk + j] * ((double)k[j] - (double)center[j]);
            z[c] = (float)along;
            block_of.z[i][c] = along;
        }
        hri_sketch_round(basis, z, rounded);
        for (uint32_t c = 0; c < r->dk; c++)
            block_of.coded[i][c] = (double)rounded[c];
    }
    for (uint32_t c = 0; c < r->dk; c++) {
        double mean = 0;
        for (uint32_t i = 0; i < n; i++)
            mean += block_of.coded[i][c] / n;
        for (uint32_t i = 0; i < n; i++) {
            block_of.coded[i][c] -= mean;
            square += block_of.coded[i][c] * block_of.coded[i][c];
            product += block_of.coded[i][c] * block_of.z[i][c];
        }
    }
    block_of.gain = square > 0 ? product / square : 0;
}

static double key_miss(const struct rows *r, uint32_t block)
{
    uint32_t n = r->b.head->block_rows[block];
    double sum = 0, gain = r->b.head->sketch->gain[block] / 128.0;
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t c = 0; c < r->dk; c++) {
            double x = block_of.z[i][c] - gain * block_of.coded[i][c];
            sum += x * x / n;
        }
    return sum;
}

/* |v - v_m|^2 of the i-th row in block order. */
static double value_square(const struct rows *r, uint32_t block, uint32_t i)
{
    float center[HR_HEAD_DIM_MAX], value[HR_HEAD_DIM_MAX];
    const float *v = r->synth.v + (size_t)r->b.order[i] * r->dv;
    double sum = 0;
    hri_index_centers(r->b.head, block, center, value);
    for (uint32_t j = 0; j < r->dv; j++)
        sum += pow((double)v[j] - (double)value[j], 2);
    return sum;
}

/* Codes lie where a last bit may move one, so a block of few rows may be off by a level of one coordinate. */
static void test_keys(void **state)
{
    (void)state;
    static const char *const recipes[] = {"headrace:sketch=1", "headrace:sketch=2",
                                          "headrace:sketch=3,block=12"};
    for (uint64_t seed = 0; seed < 6; seed++) {
        struct rows r = {.g = 2, .dk = seed % 2 ? 128 : 64, .dv = 64};
        make(&r, recipes[seed % 3], 100 + seed, SEEN, seed < 3 ? 0 : 800);
        const struct hri_sketch *s = r.b.head->sketch;
        for (uint32_t b = 0; b < r.b.head->n_blocks; b++) {
            const struct hri_basis *basis = basis_of(s, b);
            if (r.b.head->block_rows[b] < 4 || has_strays(s, b))
                continue;
            block_code(&r, basis, b);
            double gain = 128 * fmin(fmax(block_of.gain, 0), 255.0 / 128);
            if (!(fabs(s->gain[b] - gain) <= 0.6 + 0.01 * gain))
                fail_msg("block %u is taken by %u / 128, should be %.2f", b, s->gain[b], gain);
            check_code(&r, "miss of keys", b, s->miss[b],
                       key_miss(&r, b) / (double)basis->missed_mean);
        }
        free_rows(&r);
    }
}

/* Without queries all rows count alike. */
static void test_values(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 4; seed++) {
        struct rows r = {.g = 2, .dk = 64, .dv = seed % 2 ? 40 : 64};
        make(&r, "headrace", 200 + seed, 0, seed < 2 ? 0 : 800);
        const struct hri_sketch *s = r.b.head->sketch;
        double all = 0;
        for (uint32_t b = 0; b < r.b.head->n_blocks; b++) {
            double sum = 0;
            for (uint32_t i = r.b.first[b]; i < r.b.first[b + 1]; i++)
                sum += value_square(&r, b, i);
            all += seed < 2 ? sum / ROWS : 0;
            check_code(&r, "miss of values", b, s->value_miss[b],
                       sum / r.b.head->block_rows[b] / (double)basis_of(s, b)->value_spread);
        }
        /* One segment: the basis's mean is that of a sample of all rows. */
        if (seed < 2)
            CHECK_NEAR(s->bases[0].value_spread, all, 0.1 * all);
        free_rows(&r);
    }
}

static void test_values_looked_at(void **state)
{
    (void)state;
    struct rows r = {.g = 2, .dk = 64, .dv = 64};
    make(&r, "headrace", 300, SEEN, 0);
    for (uint32_t b = 0; b < r.b.head->n_blocks; b++) {
        double least = INFINITY, most = 0;
        for (uint32_t i = r.b.first[b]; i < r.b.first[b + 1]; i++) {
            least = fmin(least, value_square(&r, b, i));
            most = fmax(most, value_square(&r, b, i));
        }
        double says = exp2((r.b.head->sketch->value_miss[b] - 128.0) / 16) *
                      (double)basis_of(r.b.head->sketch, b)->value_spread;
        if (r.b.head->block_rows[b] > 1 && !(says > 0.97 * least && says < 1.03 * most))
            fail_msg("block %u: %g is not between %g and %g", b, says, least, most);
    }
    free_rows(&r);
}

/* Every other row is one of few kinds, a little apart, which make blocks of their own; those between them are all unlike, and codes have
 * levels as far apart as those need. */
static void alike_make(struct rows *r, struct hri_rng *rng)
{
    float *k = synth_normal(rng, (size_t)ALIKE_KINDS * r->dk, 1);
    float *v = synth_normal(rng, (size_t)ALIKE_KINDS * r->dv, 1);
    for (uint32_t i = 0; i < ROWS; i += 2) {
        for (uint32_t j = 0; j < r->dk; j++)
            r->synth.k[(size_t)i * r->dk + j] =
                k[(size_t)(i / 2 % ALIKE_KINDS) * r->dk + j] + (float)(1e-3 * hri_rng_normal(rng));
        for (uint32_t j = 0; j < r->dv; j++)
            r->synth.v[(size_t)i * r->dv + j] =
                v[(size_t)(i / 2 % ALIKE_KINDS) * r->dv + j] + (float)(1e-3 * hri_rng_normal(rng));
    }
    free(k);
    free(v);
}

static bool of_one_kind(const struct rows *r, uint32_t block)
{
    const uint32_t *at = r->b.order + r->b.first[block];
    for (uint32_t i = 0; i < r->b.head->block_rows[block]; i++)
        if (at[i] % 2 != 0 || at[i] / 2 % ALIKE_KINDS != at[0] / 2 % ALIKE_KINDS)
            return false;
    return true;
}

static void test_alike(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 6; seed++) {
        struct rows r = {.g = 2, .dk = seed % 2 ? 128 : 64, .dv = 64};
        struct hri_rng rng;
        uint32_t n_alike = 0;
        hri_rng_seed(&rng, 400 + seed);
        r.synth = synth_make(&rng, ROWS, r.dk, r.dv);
        r.seen = synth_queries(&rng, &r.synth, SEEN, r.g);
        alike_make(&r, &rng);
        make_head(&r, seed % 3 ? "headrace" : "headrace:sketch=1", SEEN, 0);
        for (uint32_t b = 0; b < r.b.head->n_blocks; b++) {
            if (r.b.head->block_rows[b] < 2 || !of_one_kind(&r, b))
                continue;
            n_alike++;
            if (r.b.head->sketch->gain[b] > ALIKE_GAIN)
                fail_msg("block %u of rows alike is taken by %u / 128", b,
                         r.b.head->sketch->gain[b]);
        }
        assert_true(n_alike > ALIKE_KINDS / 2);
        free_rows(&r);
    }
}

static void test_follow(void **state)
{
    (void)state;
    struct rows r = {.g = 2, .dk = 64, .dv = 64};
    make(&r, "headrace", 500, SEEN, 800);
    struct hri_index_head *head = r.b.head, *copy;
    uint32_t n = head->n_blocks;
    uint64_t bytes = hri_index_sketch_bytes(head);
    assert_ok(hri_index_head_create(&r.b.options, &copy));
    assert_ok(hri_index_copy(head, copy));
    assert_memory_equal(copy->sketch->value_miss, head->sketch->value_miss, n);
    assert_memory_equal(copy->sketch->miss, head->sketch->miss, n);
    assert_memory_equal(copy->sketch->gain, head->sketch->gain, n);
    for (uint32_t i = 0; i < head->sketch->n_bases; i++)
        assert_true(copy->sketch->bases[i].value_spread == head->sketch->bases[i].value_spread);
    assert_int_equal(hri_index_sketch_bytes(copy), bytes);
    hri_index_truncate(copy, n / 2);
    assert_memory_equal(copy->sketch->value_miss, head->sketch->value_miss, n / 2);
    hri_index_head_destroy(copy);
    free_rows(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_keys),
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_values_looked_at),
        cmocka_unit_test(test_alike),
        cmocka_unit_test(test_follow),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
