/* Queries and the scores of summaries.
 *
 * Tolerances: the int8 terms of a query are those of the CPU, so dots agree with the reference
 * (double, unrounded query) to what query_i8.h promises: 2^-13 |q|_inf sum |centroid|. Log masses
 * add 1e-5 of their size; total 1e-4 relative. */
#include "tests/emu/emu_test.h"

#include "kernels/cpu/query_i8.h"

struct setup {
    struct hri_cuda_heads heads;
    uint32_t blocks_max, n[4];
    float soft_cap;
    bool near;
    float *q;
    struct hri_cuda_summaries s;
    struct hri_cuda_shape shape;
    struct hri_cuda_query_out query;
    struct hri_cuda_score_args score;
};

static float *device_steps(struct hri_rng *rng, size_t n, float most)
{
    float *steps = device_alloc(n * sizeof *steps);
    for (size_t i = 0; i < n; i++)
        steps[i] = most * (0.1f + hri_rng_f32(rng));
    return steps;
}

static void make(struct setup *t, uint64_t seed)
{
    struct hri_rng rng;
    hri_rng_seed(&rng, seed);
    const struct hri_cuda_heads hd = t->heads;
    const size_t hg = (size_t)hd.n * hd.g, blocks = (size_t)hd.n * t->blocks_max;
    t->q = device_normal(&rng, hg * hd.dk, 1.0 / sqrt(hd.dk));
    uint8_t *codes = device_alloc(blocks * hd.dk), *rows = device_alloc(blocks);
    uint16_t *spread = device_alloc(blocks * 2);
    for (size_t i = 0; i < blocks * hd.dk; i++)
        codes[i] = (uint8_t)(1 + hri_rng_below(&rng, 255));
    for (size_t i = 0; i < blocks; i++) {
        rows[i] = (uint8_t)(1 + hri_rng_below(&rng, 255));
        spread[i] = hri_bf16_from_f32(3 * hri_rng_f32(&rng));
    }
    t->s =
        (struct hri_cuda_summaries){codes,         device_steps(&rng, blocks, 0.05f), spread, rows,
                                    t->blocks_max, device_copy(t->n, hd.n * 4)};
    const uint32_t rank_c = 24, rank_d = 8;
    t->shape = (struct hri_cuda_shape){.f = device_codes(&rng, (size_t)hd.n * rank_c * hd.dk),
                                       .w = device_codes(&rng, (size_t)hd.n * rank_d * hd.dk),
                                       .u = device_codes(&rng, (size_t)hd.n * rank_d * hd.dv),
                                       .f_scale = device_steps(&rng, hd.n * rank_c, 0.004f),
                                       .w_scale = device_steps(&rng, hd.n * rank_d, 0.01f),
                                       .u_scale = device_steps(&rng, hd.n * rank_d, 0.01f),
                                       .rank_c = rank_c,
                                       .rank_d = rank_d,
                                       .k_mean = device_normal(&rng, (size_t)hd.n * hd.dk, 1)};
    const size_t up = (size_t)hd.n * hri_cuda_g_up(hd.g);
    t->query = (struct hri_cuda_query_out){
        {device_alloc(up * 2 * hri_cuda_dk_up(hd.dk)), device_alloc(up * 4)},
        device_alloc(hg * 4),
        device_alloc(hg * 4),
        device_alloc(hg * hd.dv * 4)};
    t->score = (struct hri_cuda_score_args){.q = t->query.i8,
                                            .common = t->query.common,
                                            .variance = t->query.variance,
                                            .soft_cap = t->soft_cap,
                                            .stride = t->blocks_max,
                                            .dots = device_alloc(hg * t->blocks_max * 4),
                                            .log_mass = device_alloc(hg * t->blocks_max * 4),
                                            .top = device_alloc(hg * 4),
                                            .total = device_alloc(hg * 4),
                                            .work = device_alloc(hri_cuda_score_work(hd) * 4),
                                            .arrived = device_zero(hd.n * 4)};
    if (t->near) {
        t->score.near_m = device_normal(&rng, hg, 3);
        float *l = device_steps(&rng, hg, 5);
        l[0] = 0; /* nothing near */
        t->score.near_l = l;
    }
}

static void check_query(const struct setup *t, uint32_t h, uint32_t g)
{
    const struct hri_cuda_heads hd = t->heads;
    const size_t at = (size_t)h * hd.g + g, up = hri_cuda_dk_up(hd.dk);
    const float *q = t->q + at * hd.dk;
    struct query_i8 want;
    query_i8_make(&want, q, hd.dk);
    const size_t row = (size_t)h * hri_cuda_g_up(hd.g) + g;
    const int8_t *codes = t->query.i8.codes + row * 2 * up;
    CHECK_BELOW(fabs((double)(t->query.i8.step[row] - want.step)), 0);
    assert_memory_equal(codes, want.high, hd.dk);
    assert_memory_equal(codes + up, want.low, hd.dk);
    for (size_t j = hd.dk; j < up; j++)
        assert_true(codes[j] == 0 && codes[up + j] == 0);
    double common = 0, variance = 0, *shift = calloc(hd.dv, sizeof *shift);
    assert_non_null(shift);
    for (uint32_t j = 0; j < hd.dk; j++)
        common += (double)q[j] * t->shape.k_mean[h * hd.dk + j];
    for (uint32_t r = 0; r < t->shape.rank_c; r++) {
        double dot = 0;
        for (uint32_t j = 0; j < hd.dk; j++)
            dot += (double)q[j] * t->shape.f[((size_t)h * t->shape.rank_c + r) * hd.dk + j];
        dot *= t->shape.f_scale[h * t->shape.rank_c + r];
        variance += dot * dot;
    }
    for (uint32_t r = 0; r < t->shape.rank_d; r++) {
        const size_t i = (size_t)h * t->shape.rank_d + r;
        double dot = 0;
        for (uint32_t j = 0; j < hd.dk; j++)
            dot += (double)q[j] * t->shape.w[i * hd.dk + j];
        dot *= (double)t->shape.w_scale[i] * t->shape.u_scale[i];
        for (uint32_t j = 0; j < hd.dv; j++)
            shift[j] += dot * t->shape.u[i * hd.dv + j];
    }
    CHECK_BELOW(fabs(t->query.common[at] - common), 1e-5 * (1 + fabs(common)));
    CHECK_BELOW(fabs(t->query.variance[at] - variance), 1e-5 * (1 + variance));
    for (uint32_t j = 0; j < hd.dv; j++)
        CHECK_BELOW(fabs(t->query.shift[at * hd.dv + j] - shift[j]), 1e-4 * (1 + fabs(shift[j])));
    free(shift);
}

static double wanted_mass(const struct setup *t, uint32_t h, double dot, double variance,
                          uint32_t b)
{
    const size_t at = (size_t)h * t->s.blocks_max + b;
    variance *= (double)hri_f32_from_bf16(t->s.spread[at]);
    if (t->soft_cap > 0) {
        double bent = tanh(dot / (double)t->soft_cap), slope = 1 - bent * bent;
        dot = (double)t->soft_cap * bent;
        variance *= slope * slope;
    }
    return dot + fmin(variance / 2, 3) + log(t->s.rows[at]);
}

static void check_scores(const struct setup *t, uint32_t h, uint32_t g)
{
    const struct hri_kernels *ref = hri_kernels_get(HRI_KERNEL_REF);
    const struct hri_cuda_heads hd = t->heads;
    const uint32_t n = t->n[h], up = (n + 15) / 16 * 16;
    const size_t at = (size_t)h * hd.g + g, blocks = (size_t)h * t->s.blocks_max;
    float *want = malloc((up + 16) * sizeof *want);
    assert_non_null(want);
    struct hri_centroids c = {t->s.k_codes + blocks * hd.dk, t->s.k_scale + blocks, n};
    ref->score_centroids(t->q + at * hd.dk, 1, hd.dk, c, want, up + 16);
    double largest = 0, top = -INFINITY, total = 0;
    for (uint32_t j = 0; j < hd.dk; j++)
        largest = fmax(largest, fabs((double)t->q[at * hd.dk + j]));
    bool near = t->near && t->score.near_l[at] > 0;
    if (near) {
        top = t->score.near_m[at];
        total = t->score.near_l[at];
    }
    for (uint32_t b = 0; b < n; b++) {
        const float *dot = t->score.dots + at * t->score.stride + b;
        const float *mass = t->score.log_mass + at * t->score.stride + b;
        double size = 0, common = t->query.common[at];
        for (uint32_t j = 0; j < hd.dk; j++)
            size += fabs((double)t->s.k_codes[(blocks + b / 16 * 16) * hd.dk + j / 4 * 64 +
                                              b % 16 * 4 + j % 4] -
                         128) *
                    t->s.k_scale[blocks + b];
        CHECK_BELOW(fabs(*dot - (want[b] + common)),
                    largest * size / 8192 + 1e-6 * (1 + fabs(common)));
        double m = wanted_mass(t, h, *dot, t->query.variance[at], b);
        CHECK_BELOW(fabs(*mass - m), 1e-5 * (1 + fabs(m)));
        double most = fmax(top, *mass);
        total = total * exp(top - most) + exp(*mass - most);
        top = most;
    }
    if (n == 0 && !near) {
        assert_true(t->score.top[at] == -INFINITY && t->score.total[at] == 0);
    } else {
        CHECK_BELOW(fabs(t->score.top[at] - top), 0);
        CHECK_BELOW(fabs(t->score.total[at] / total - 1), 1e-4);
    }
    free(want);
}

static void run(struct setup *t, int order)
{
    make(t, 99 + t->n[0]);
    set_order(order);
    RUN(hri_cuda_query(t->q, t->heads, &t->shape, &t->query, NULL));
    for (int again = 0; again < 2; again++) /* what is left behind must do for the next step */
        RUN(hri_cuda_score(&t->score, &t->s, t->heads, NULL));
    for (uint32_t h = 0; h < t->heads.n; h++)
        for (uint32_t g = 0; g < t->heads.g; g++) {
            check_query(t, h, g);
            check_scores(t, h, g);
        }
    device_free_all();
}

static void test_dims(void **state)
{
    (void)state;
    FOR_EACH(d, cuda_dims)
    for (int order = 0; order < 3; order++) {
        struct setup t = {.heads = {2, 4, cuda_dims[d][0], cuda_dims[d][1]},
                          .blocks_max = 48,
                          .n = {33, 48},
                          .near = order > 0};
        CASE("score %u+%u order %d", t.heads.dk, t.heads.dv, order);
        run(&t, order);
    }
}

static void test_groups(void **state)
{
    (void)state;
    FOR_EACH(g, cuda_groups)
    {
        struct setup t = {.heads = {1, cuda_groups[g], 64, 64},
                          .blocks_max = 64,
                          .n = {60},
                          .soft_cap = g % 2 ? 5 : 0,
                          .near = true};
        CASE("score %u heads", t.heads.g);
        run(&t, (int)(g % 3));
    }
}

static void test_lengths(void **state)
{
    (void)state;
    const uint32_t counts[] = {0, 1, 15, 16, 17, 31, 32, 33, 255, 256, 257, 700};
    FOR_EACH(i, counts)
    {
        struct setup t = {.heads = {3, 2, 64, 64}, .blocks_max = 704, .n = {counts[i], 5, 0}};
        CASE("score %u blocks", counts[i]);
        run(&t, (int)(i % 3));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {EMU_TEST(test_dims), EMU_TEST(test_groups),
                                       EMU_TEST(test_lengths)};
    return cmocka_run_group_tests(tests, small_machine, NULL);
}
