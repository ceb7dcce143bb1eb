/* Queries in the bases of sketches, scores of sketched rows and weighted sums of their codes.
 *
 * Tolerances: a score is the reference's from the same int8 query to 1e-6 of the sum of its parts'
 * sizes; a sum to 2e-5 of the sum of |w| times the largest code (weights keep 16 bits). */
#include "tests/emu/emu_test.h"

struct setup {
    struct hri_cuda_heads heads;
    uint32_t n_bases, n4[3], n2[3], n_groups, listed; /* of groups listed, of each head */
    uint32_t lines;
    float *q;
    struct hri_cuda_basis *bases;
    struct hri_cuda_sketch_query *queries;
    float *rest;
    struct hri_cuda_sketch_list list;
};

static void make_basis(struct hri_rng *rng, struct hri_cuda_basis *b, uint32_t dk, uint32_t n4,
                       uint32_t n2)
{
    int8_t *codes = device_codes(rng, (size_t)dk * dk);
    float *scale = device_alloc(dk * 4), *step = device_alloc((n4 + n2) * 4),
          *missed = device_alloc(dk * 4);
    for (uint32_t i = 0; i < dk; i++) {
        scale[i] = 0.01f * hri_rng_f32(rng);
        missed[i] = hri_rng_f32(rng);
    }
    for (uint32_t i = 0; i < n4 + n2; i++)
        step[i] = 0.1f + hri_rng_f32(rng);
    *b = (struct hri_cuda_basis){
        .query = codes, .query_scale = scale, .step = step, .missed = missed, .n4 = n4, .n2 = n2};
}

/* Groups g of basis g % n_bases, a random choice of them, in pairs. */
static void make_list(struct hri_rng *rng, struct setup *t)
{
    const uint32_t pairs_max = t->n_groups + t->n_bases, h_n = t->heads.n;
    uint32_t *groups = device_alloc((size_t)h_n * pairs_max * 8),
             *basis = device_alloc((size_t)h_n * pairs_max * 4), *n = device_zero(h_n * 4);
    for (uint32_t h = 0; h < h_n; h++)
        for (uint32_t b = 0; b < t->n_bases; b++) {
            uint32_t in_pair = 0;
            for (uint32_t g = b; g < t->n_groups; g += t->n_bases) {
                if (hri_rng_below(rng, t->n_groups) >= t->listed)
                    continue;
                uint32_t *pair = groups + ((size_t)h * pairs_max + n[h]) * 2;
                pair[in_pair] = g;
                basis[(size_t)h * pairs_max + n[h]] = b;
                n[h] += in_pair;
                in_pair ^= 1;
            }
            if (in_pair) {
                groups[((size_t)h * pairs_max + n[h]) * 2 + 1] = HRI_CUDA_NONE;
                n[h]++;
            }
        }
    t->list.groups = groups;
    t->list.pair_basis = basis;
    t->list.n_pairs = n;
    t->list.pairs_max = pairs_max;
}

static void make(struct setup *t, uint64_t seed)
{
    struct hri_rng rng;
    hri_rng_seed(&rng, seed);
    const uint32_t n = t->heads.n;
    t->lines = t->n4[0] / 8 + t->n2[0] / 16;
    t->q = device_normal(&rng, (size_t)n * t->heads.g * t->heads.dk, 0.3);
    t->bases = device_alloc(n * t->n_bases * sizeof *t->bases);
    for (uint32_t i = 0; i < n * t->n_bases; i++)
        make_basis(&rng, &t->bases[i], t->heads.dk, t->n4[i % t->n_bases], t->n2[i % t->n_bases]);
    t->queries = device_alloc(n * t->n_bases * sizeof *t->queries);
    t->rest = device_alloc((size_t)n * t->n_bases * t->heads.g * 4);
    size_t stride = (size_t)t->n_groups * t->lines * 64;
    uint8_t *codes = device_alloc(n * stride);
    for (size_t i = 0; i < n * stride; i++)
        codes[i] = (uint8_t)hri_rng_below(&rng, 256);
    t->list = (struct hri_cuda_sketch_list){.codes = codes,
                                            .codes_stride = stride,
                                            .bases = t->bases,
                                            .n_bases = t->n_bases,
                                            .lines = t->lines};
    make_list(&rng, t);
}

static void check_turned(const struct setup *t, uint32_t h, uint32_t b)
{
    const struct hri_cuda_basis *basis = &t->bases[h * t->n_bases + b];
    const struct hri_cuda_sketch_query *got = &t->queries[h * t->n_bases + b];
    const uint32_t dk = t->heads.dk, n = basis->n4 + basis->n2;
    for (uint32_t g = 0; g < t->heads.g; g++) {
        const float *q = t->q + ((size_t)h * t->heads.g + g) * dk;
        double rest = 0, offset = 0;
        for (uint32_t c = 0; c < dk; c++) {
            double x = 0;
            for (uint32_t j = 0; j < dk; j++)
                x += (double)basis->query[(size_t)c * dk + j] * (double)q[j];
            x *= (double)basis->query_scale[c];
            rest += x * x * (double)basis->missed[c];
            if (c >= n)
                continue;
            x *= (double)basis->step[c];
            bool wide = c < basis->n4;
            int code = wide ? got->q4[g][c] : got->q2[g][c - basis->n4];
            double scale = wide ? got->scale4[g] : got->scale2[g];
            offset -= (wide ? 7.5 : 1.5) * scale * code;
            CHECK_BELOW(fabs(scale * code - x), 0.501 * scale + 1e-6);
        }
        CHECK_BELOW(fabs(got->offset[g] - offset), 1e-5 * (1 + fabs(offset)));
        CHECK_BELOW(fabs(t->rest[((size_t)h * t->n_bases + b) * t->heads.g + g] - rest),
                    1e-4 * rest + 1e-9);
    }
}

/* The reference on the groups of one basis, one head: groups of 16 rows lie in a plain array. */
static uint32_t groups_of(const struct setup *t, uint32_t h, uint32_t b, uint32_t *groups)
{
    uint32_t n = 0;
    for (uint32_t p = 0; p < t->list.n_pairs[h]; p++)
        for (uint32_t i = 0; i < 2; i++) {
            uint32_t g = t->list.groups[((size_t)h * t->list.pairs_max + p) * 2 + i];
            if (t->list.pair_basis[(size_t)h * t->list.pairs_max + p] == b && g != HRI_CUDA_NONE)
                groups[n++] = g;
        }
    return n;
}

static void check_scores(const struct setup *t, const float *got, uint32_t h)
{
    const struct hri_kernels *ref = hri_kernels_get(HRI_KERNEL_REF);
    const size_t stride = (size_t)t->n_groups * 16, g_n = t->heads.g;
    float *want = malloc(g_n * stride * sizeof *want + 4);
    float *listed = malloc(g_n * stride * sizeof *listed + 4);
    uint32_t *groups = malloc(t->n_groups * sizeof *groups);
    static struct hri_sketch_query q;
    assert_true(want && listed && groups);
    memset(want, 0xff, g_n * stride * sizeof *want);
    for (uint32_t b = 0; b < t->n_bases; b++) {
        const struct hri_cuda_basis *basis = &t->bases[h * t->n_bases + b];
        memcpy(&q, &t->queries[h * t->n_bases + b], sizeof(struct hri_cuda_sketch_query));
        struct hri_sketch_rows rows = {t->list.codes + h * t->list.codes_stride, basis->n4,
                                       basis->n2};
        uint32_t n = groups_of(t, h, b, groups);
        ref->score_sketch(&q, (uint32_t)g_n, rows, groups, n, n, listed, stride);
        for (uint32_t i = 0; i < n * 16; i++)
            for (size_t g = 0; g < g_n; g++)
                want[g * stride + groups[i / 16] * 16 + i % 16] = listed[g * stride + i];
    }
    for (size_t i = 0; i < g_n * stride; i++) {
        const float x = got[(size_t)h * g_n * stride + i];
        if (isnan(want[i]))
            assert_true(isnan(x)); /* what is not listed is not touched */
        else
            CHECK_BELOW(fabs((double)(x - want[i])), 2e-5 * (1 + fabs((double)want[i])));
    }
    free(want);
    free(listed);
    free(groups);
}

static void check_sums(const struct setup *t, const struct hri_cuda_sketch_sum *s, uint32_t h)
{
    const struct hri_kernels *ref = hri_kernels_get(HRI_KERNEL_REF);
    uint32_t *groups = malloc(t->n_groups * sizeof *groups), g_n = t->heads.g;
    assert_non_null(groups);
    for (uint32_t b = 0; b < t->n_bases; b++) {
        const struct hri_cuda_basis *basis = &t->bases[h * t->n_bases + b];
        const uint32_t n = basis->n4 + basis->n2, n_groups = groups_of(t, h, b, groups);
        float *want = calloc((size_t)g_n * n, sizeof *want);
        assert_non_null(want);
        struct hri_sketch_rows rows = {t->list.codes + h * t->list.codes_stride, basis->n4,
                                       basis->n2};
        const float *w = s->w + (size_t)h * g_n * s->stride;
        ref->sum_sketch(rows, g_n, groups, n_groups, w, s->stride, want);
        for (uint32_t g = 0; g < g_n; g++) {
            double size = 0;
            for (uint32_t i = 0; i < n_groups * 16; i++)
                size += fabs((double)w[g * s->stride + groups[i / 16] * 16 + i % 16]);
            const float *got = s->sum + (((size_t)h * t->n_bases + b) * g_n + g) * HR_HEAD_DIM_MAX;
            CHECK_BELOW(absolute_error(got, want + (size_t)g * n, n), 2e-5 * 8 * size);
        }
        free(want);
    }
    free(groups);
}

static void run(struct setup *t, int order)
{
    make(t, 31 + t->n_groups);
    struct hri_rng rng;
    hri_rng_seed(&rng, 7);
    set_order(order);
    RUN(hri_cuda_query_sketch(t->q, t->heads, t->bases, t->n_bases, NULL, t->queries, t->rest,
                              NULL));
    const size_t stride = (size_t)t->n_groups * 16, all = t->heads.n * t->heads.g * stride;
    float *out = device_alloc(all * 4), *w = device_alloc(all * 4);
    RUN(hri_cuda_score_sketch(&t->list, t->queries, t->heads, out, stride, NULL));
    for (size_t i = 0; i < all; i++) /* some groups weigh nothing */
        w[i] = i / 16 % 3 == 1 ? 0 : expf(4 * (float)hri_rng_normal(&rng));
    struct hri_cuda_sketch_sum s = {.w = w, .stride = stride};
    s.sum = device_alloc((size_t)t->heads.n * t->n_bases * t->heads.g * HR_HEAD_DIM_MAX * 4);
    s.work = device_alloc(hri_cuda_sum_sketch_work(t->heads, t->n_bases, t->lines) * 4);
    s.arrived = device_zero(hri_cuda_sum_sketch_counters(t->heads, t->n_bases, t->lines) * 4);
    for (int again = 0; again < 2; again++)
        RUN(hri_cuda_sum_sketch(&t->list, &s, t->heads, NULL));
    for (uint32_t h = 0; h < t->heads.n; h++) {
        for (uint32_t b = 0; b < t->n_bases; b++)
            check_turned(t, h, b);
        check_scores(t, out, h);
        check_sums(t, &s, h);
    }
    device_free_all();
}

static void test_splits_of_bits(void **state)
{
    (void)state;
    const uint32_t shapes[][3] = {/* dk, n4, n2 */
                                  {16, 0, 16},   {16, 16, 0},   {64, 0, 64},   {64, 64, 0},
                                  {64, 24, 32},  {80, 16, 48},  {128, 0, 128}, {128, 8, 112},
                                  {128, 128, 0}, {128, 64, 64}, {256, 256, 0}, {256, 0, 256},
                                  {256, 72, 176}};
    FOR_EACH(i, shapes)
    {
        struct setup t = {.heads = {2, 4, shapes[i][0], shapes[i][0]},
                          .n_bases = 1,
                          .n4 = {shapes[i][1]},
                          .n2 = {shapes[i][2]},
                          .n_groups = 7,
                          .listed = 6};
        CASE("sketch d %u, %u+%u", shapes[i][0], shapes[i][1], shapes[i][2]);
        run(&t, (int)(i % 3));
    }
}

static void test_groups_of_heads(void **state)
{
    (void)state;
    FOR_EACH(g, cuda_groups)
    {
        struct setup t = {.heads = {1, cuda_groups[g], 64, 64},
                          .n_bases = 2,
                          .n4 = {16, 32},
                          .n2 = {48, 16},
                          .n_groups = 9,
                          .listed = 9};
        CASE("sketch %u heads", t.heads.g);
        run(&t, (int)(g % 3));
    }
}

static void test_lengths(void **state)
{
    (void)state;
    const uint32_t counts[] = {1, 2, 3, 33, 70};
    FOR_EACH(i, counts)
    for (uint32_t listed = 0; listed <= counts[i]; listed += 1 + counts[i] / 2) {
        struct setup t = {.heads = {2, 3, 64, 64},
                          .n_bases = 3,
                          .n4 = {0, 64, 32},
                          .n2 = {128, 0, 64},
                          .n_groups = counts[i],
                          .listed = listed};
        t.heads.dk = 128;
        CASE("sketch %u of %u groups", listed, counts[i]);
        run(&t, (int)(i % 3));
    }
}

int main(void)
{
    assert_int_equal(sizeof(struct hri_cuda_sketch_query), sizeof(struct hri_sketch_query));
    const struct CMUnitTest tests[] = {EMU_TEST(test_splits_of_bits),
                                       EMU_TEST(test_groups_of_heads), EMU_TEST(test_lengths)};
    return cmocka_run_group_tests(tests, small_machine, NULL);
}
