/* Summaries against their formulas, written out in double: centres, spreads, C and D, and the
 * estimate made of them. */
#include "index/clusters.h"
#include "base/half.h"
#include "index_test.h"

struct fixture {
    struct synth rows;
    float *q;
    struct bench_head b;
};

static void fixture_init(struct fixture *f, const char *recipe, uint32_t n, uint32_t g, uint32_t dk,
                         uint32_t dv, uint64_t seed)
{
    struct hri_rng rng;
    hri_rng_seed(&rng, seed);
    f->rows = synth_make(&rng, n, dk, dv);
    f->q = synth_queries(&rng, &f->rows, 64, g);
    struct bench_geometry geometry = {
        .recipe = recipe, .g = g, .k_dim = dk, .v_dim = dv, .horizon_tokens = 100};
    bench_head_init(&f->b, &geometry, f->rows.k, f->rows.v, n, f->q, 64, 0, n, 0);
}

static void fixture_fini(struct fixture *f)
{
    bench_head_fini(&f->b);
    synth_free(&f->rows);
    free(f->q);
}

static void mean_of_block(const struct bench_head *b, uint32_t block, const float *x, uint32_t d,
                          double *mean)
{
    uint32_t first = b->first[block], rows = b->first[block + 1] - first;
    memset(mean, 0, d * sizeof *mean);
    for (uint32_t i = 0; i < rows; i++)
        for (uint32_t j = 0; j < d; j++)
            mean[j] += (double)x[(size_t)b->order[first + i] * d + j] / rows;
}

/* Half an int8 step of the largest difference. */
static void check_center(const double *mean, const float *center, const float *common, uint32_t d)
{
    double most = 0;
    for (uint32_t j = 0; j < d; j++)
        most = fmax(most, fabs(mean[j] - (common ? common[j] : 0)));
    for (uint32_t j = 0; j < d; j++)
        CHECK_NEAR(center[j], mean[j], most / 127 * 0.51 + 1e-5);
}

static void check_centers(struct fixture *f)
{
    const struct bench_head *b = &f->b;
    uint32_t dk = b->options.k_dim, dv = b->options.v_dim;
    float k_center[HR_HEAD_DIM_MAX], v_center[HR_HEAD_DIM_MAX];
    double mean[HR_HEAD_DIM_MAX];
    for (uint32_t block = 0; block < hri_index_blocks(b->head); block++) {
        assert_int_equal(hri_index_block_rows(b->head, block),
                         b->first[block + 1] - b->first[block]);
        hri_index_centers(b->head, block, k_center, v_center);
        mean_of_block(b, block, f->rows.k, dk, mean);
        check_center(mean, k_center, b->head->summary.k_mean, dk);
        mean_of_block(b, block, f->rows.v, dv, mean);
        check_center(mean, v_center, NULL, dv);
    }
}

static void test_centers(void **state)
{
    static const uint32_t dims[] = {8, 64, 80, 96, 128, 256};
    (void)state;
    for (size_t i = 0; i < 6; i++) {
        struct fixture f;
        fixture_init(&f, "headrace:sketch=0,block=18", 100 + (uint32_t)i * 37, 2, dims[i],
                     dims[5 - i], i);
        check_centers(&f);
        fixture_fini(&f);
    }
}

/* RetroInfer's: the mean of a whole cluster, to a float16's precision, for each of its blocks. */
static void check_cluster(const struct fixture *f, const struct hri_cluster *cluster)
{
    const struct bench_head *b = &f->b;
    uint32_t first = b->first[cluster->first_block],
             end = b->first[cluster->first_block + cluster->n_blocks];
    float center[2][HR_HEAD_DIM_MAX];
    assert_int_equal(end - first, cluster->n_rows);
    for (uint32_t block = 0; block < cluster->n_blocks; block++) {
        hri_index_centers(b->head, cluster->first_block + block, center[0], center[1]);
        for (int part = 0; part < 2; part++) {
            uint32_t d = part ? b->options.v_dim : b->options.k_dim;
            for (uint32_t j = 0; j < d; j++) {
                double mean = 0;
                for (uint32_t i = first; i < end; i++)
                    mean += (part ? b->v : b->k)[(size_t)b->order[i] * d + j];
                mean /= end - first;
                CHECK_NEAR(center[part][j], mean, fabs(mean) / 2040 + 1e-7);
            }
        }
    }
}

static void test_cluster_centers(void **state)
{
    static const uint32_t dims[] = {8, 64, 80, 96, 128, 256};
    (void)state;
    for (size_t i = 0; i < 6; i++) {
        struct fixture f;
        uint32_t blocks = 0;
        fixture_init(&f, "retroinfer", 100 + (uint32_t)i * 37, 2, dims[i], dims[5 - i], i);
        const struct hri_clusters *clusters = f.b.head->state;
        for (uint32_t c = 0; c < clusters->n; c++) {
            assert_int_equal(clusters->cluster[c].first_block, blocks);
            blocks += clusters->cluster[c].n_blocks;
            check_cluster(&f, &clusters->cluster[c]);
        }
        assert_int_equal(blocks, hri_index_blocks(f.b.head));
        fixture_fini(&f);
    }
}

/* What C and D should be for one query: pooled over all rows, divided by the sum of squares in the
 * metric. */
struct moments {
    double variance, shift[HR_HEAD_DIM_MAX], total;
};

static void naive_moments(const struct fixture *f, const float *q, struct moments *m,
                          double *spread)
{
    const struct bench_head *b = &f->b;
    uint32_t dk = b->options.k_dim, dv = b->options.v_dim;
    float k_center[HR_HEAD_DIM_MAX], v_center[HR_HEAD_DIM_MAX];
    memset(m, 0, sizeof *m);
    for (uint32_t block = 0; block < hri_index_blocks(b->head); block++) {
        double square = 0;
        hri_index_centers(b->head, block, k_center, v_center);
        for (uint32_t i = b->first[block]; i < b->first[block + 1]; i++) {
            const float *k = b->k + (size_t)b->order[i] * dk, *v = b->v + (size_t)b->order[i] * dv;
            double dot = 0;
            for (uint32_t r = 0; r < dk; r++) {
                double y = 0;
                for (uint32_t j = 0; j < dk; j++)
                    y += (double)b->head->points.metric[(size_t)r * dk + j] *
                         ((double)k[j] - k_center[j]);
                square += y * y;
            }
            for (uint32_t j = 0; j < dk; j++)
                dot += q[j] * ((double)k[j] - k_center[j]);
            m->variance += dot * dot;
            for (uint32_t j = 0; j < dv; j++)
                m->shift[j] += dot * ((double)v[j] - v_center[j]);
        }
        m->total += square;
        spread[block] = square / (b->first[block + 1] - b->first[block]);
    }
    m->variance /= m->total;
    for (uint32_t j = 0; j < dv; j++)
        m->shift[j] /= m->total;
}

/* With few dimensions C and D have full rank and only int8 stands between them and the formula. */
static void test_shape(void **state)
{
    struct fixture f;
    struct moments m;
    (void)state;
    fixture_init(&f, "headrace:sketch=0,block=18", 500, 2, 8, 8, 7);
    double *spread = calloc(500, sizeof *spread);
    for (uint32_t i = 0; i < 20; i++) {
        float variance, shift[HR_HEAD_DIM_MAX];
        const float *q = f.q + (size_t)i * 8;
        naive_moments(&f, q, &m, spread);
        hri_shape_query(f.b.head, q, 1, &variance, shift);
        CHECK_NEAR(variance, m.variance, 0.02 * m.variance);
        double size = 0;
        for (uint32_t j = 0; j < 8; j++)
            size += m.shift[j] * m.shift[j];
        for (uint32_t j = 0; j < 8; j++)
            CHECK_NEAR(shift[j], m.shift[j], 0.03 * sqrt(size) + 1e-4);
    }
    for (uint32_t b = 0; b < hri_index_blocks(f.b.head); b++)
        CHECK_NEAR(hri_block_spread(f.b.head, b), spread[b], spread[b] / 200 + 1e-6);
    free(spread);
    fixture_fini(&f);
}

/* With many, the expected variance over the queries still holds. */
static void test_shape_low_rank(void **state)
{
    struct fixture f;
    struct moments m;
    double ratio = 0, *spread = calloc(2000, sizeof *spread);
    (void)state;
    fixture_init(&f, "headrace:sketch=0,block=18", 2000, 2, 96, 64, 8);
    for (uint32_t i = 0; i < 16; i++) {
        float variance, shift[HR_HEAD_DIM_MAX];
        const float *q = f.q + (size_t)i * 96;
        naive_moments(&f, q, &m, spread);
        hri_shape_query(f.b.head, q, 1, &variance, shift);
        ratio += variance / m.variance / 16;
    }
    CHECK_NEAR(ratio, 1, 0.3);
    free(spread);
    fixture_fini(&f);
}

/* Estimates all blocks by the formula. */
static void naive_estimate(const struct fixture *f, const float *q, struct hri_partial *part)
{
    const struct bench_head *b = &f->b;
    const struct hri_index_options *o = &b->options;
    bool second_order = b->head->shape.spread != NULL;
    for (uint32_t g = 0; g < o->g; g++) {
        const float *one = q + (size_t)g * o->k_dim;
        float variance = 0, shift[HR_HEAD_DIM_MAX] = {0}, k_center[HR_HEAD_DIM_MAX],
              v_center[HR_HEAD_DIM_MAX];
        if (second_order)
            hri_shape_query(b->head, one, 1, &variance, shift);
        for (uint32_t block = 0; block < hri_index_blocks(b->head); block++) {
            double dot = 0, s = second_order ? hri_f32_from_bf16(b->head->shape.spread[block]) : 0,
                   slope = 1, value[HR_HEAD_DIM_MAX];
            hri_index_centers(b->head, block, k_center, v_center);
            for (uint32_t j = 0; j < o->k_dim; j++)
                dot += (double)one[j] * k_center[j];
            if (o->soft_cap > 0) {
                double bent = tanh(dot / o->soft_cap);
                dot = o->soft_cap * bent;
                slope = 1 - bent * bent;
            }
            double log_mass = dot + fmin(0.5 * variance * s * slope * slope, 3) +
                              log(hri_index_block_rows(b->head, block));
            for (uint32_t j = 0; j < o->v_dim; j++)
                value[j] = v_center[j] + s * shift[j];
            double top = fmax(part->m[g], log_mass),
                   old = part->l[g] > 0 ? exp(part->m[g] - top) : 0, w = exp(log_mass - top);
            for (uint32_t j = 0; j < o->v_dim; j++) {
                float *sum = &part->o[(size_t)g * o->v_dim + j];
                *sum = (float)((old > 0 ? *sum * old : 0) + w * value[j]);
            }
            part->l[g] = (float)((old > 0 ? part->l[g] * old : 0) + w);
            part->m[g] = (float)top;
        }
    }
}

static void check_estimate(const char *recipe, uint32_t g, uint32_t dk, uint32_t dv, float soft_cap,
                           uint64_t seed)
{
    static struct test_part made, truth;
    struct fixture f;
    struct hri_select_out out;
    fixture_init(&f, recipe, 700, g, dk, dv, seed);
    f.b.options.soft_cap = f.b.head->options.soft_cap = soft_cap;
    for (uint32_t i = 0; i < 5; i++) {
        const float *q = f.q + (size_t)i * g * dk;
        test_part_clear(&made, g, dv);
        test_part_clear(&truth, g, dv);
        bench_attend(q, g, dk, dv, f.rows.k, f.rows.v, i ? 3 : 0, soft_cap,
                     &made.part); /* sometimes there is no sink */
        bench_attend(q, g, dk, dv, f.rows.k, f.rows.v, i ? 3 : 0, soft_cap, &truth.part);
        bench_head_step(&f.b, q, 0, 0, NULL, &made.part, &out);
        assert_int_equal(out.n_items, 0);
        naive_estimate(&f, q, &truth.part);
        test_part_finish(&made, g, dv);
        test_part_finish(&truth, g, dv);
        for (uint32_t h = 0; h < g; h++) {
            double lse = made.m[h] + log(made.l[h]), lse_truth = truth.m[h] + log(truth.l[h]);
            CHECK_NEAR(lse, lse_truth, 5e-3);
            CHECK_NEAR(relative_error(made.out + (size_t)h * dv, truth.out + (size_t)h * dv, dv), 0,
                       1e-2);
        }
    }
    fixture_fini(&f);
}

static void test_estimate(void **state)
{
    (void)state;
    check_estimate("headrace:sketch=0,block=18", 1, 64, 64, 0, 1);
    check_estimate("headrace:sketch=0,block=18", 4, 128, 64, 0, 2);
    check_estimate("headrace:sketch=0,block=32", 3, 80, 96, 0, 3);
    check_estimate("headrace:sketch=0,block=18", 2, 256, 256, 0, 4);
    check_estimate("headrace:sketch=0,block=18", 2, 64, 64, 8, 5);
    check_estimate("retroinfer:estimate=1", 3, 64, 128, 0, 6);
}

/* Second order must earn its bytes: on such rows the estimate alone is nearer to the truth than
 * centroids alone. */
static void test_second_order_helps(void **state)
{
    static struct test_part sparse, truth;
    double error[2] = {0, 0};
    (void)state;
    for (int r = 0; r < 2; r++) {
        struct fixture f;
        struct hri_select_out out;
        fixture_init(&f, r ? "headrace:sketch=0,block=16" : "retroinfer:estimate=1,block=16", 3000,
                     1, 64, 64, 21);
        for (uint32_t i = 0; i < 32; i++) {
            const float *q = f.q + (size_t)i * 64;
            test_part_clear(&sparse, 1, 64);
            test_part_clear(&truth, 1, 64);
            bench_head_step(&f.b, q, 0, 0, NULL, &sparse.part, &out);
            bench_attend(q, 1, 64, 64, f.rows.k, f.rows.v, 3000, 0, &truth.part);
            error[r] += relative_error(test_part_finish(&sparse, 1, 64),
                                       test_part_finish(&truth, 1, 64), 64) /
                        32;
        }
        fixture_fini(&f);
    }
    assert_true(error[1] < error[0]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_centers),  cmocka_unit_test(test_cluster_centers),
        cmocka_unit_test(test_shape),    cmocka_unit_test(test_shape_low_rank),
        cmocka_unit_test(test_estimate), cmocka_unit_test(test_second_order_helps),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
