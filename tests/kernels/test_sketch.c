/* Sketched rows and gathered int8 rows, against decoding from the documented layout one code at a
 * time.
 *
 *   operation         tolerance
 *   pack_sketch       codes equal
 *   score_sketch      1e-6 of sum |q| (largest code) against the rounded query; against the float
 *                     query half a step of it per dimension
 *   sum_sketch        2^-13 of the largest weight per row (weights are rounded), times |c|
 *   score_gather_i8   3e-6 relative to sum |q c step|
 *   sum_gather_i8     3e-6 relative to sum |w step c|
 */
#include "kernel_test.h"

#define TOLERANCE_SUM 3e-6
#define WEIGHT_MIN    1e-30f /* smaller ones may count nothing */

static const uint32_t all_rows[] = {1, 15, 16, 17, 48, 100, 160};

/* -- the layout, read bit by bit from its description -- */

static int code_at(const uint8_t *codes, uint32_t n4, uint32_t n2, uint32_t row, uint32_t i)
{
    const uint32_t lines = n4 / 8 + n2 / 16;
    const uint8_t *group = codes + (size_t)(row / 16) * lines * 64;
    uint32_t line, byte, shift;

    if (i < n4) {
        line = i / 8;
        byte = i % 8 % 4;
        shift = i % 8 < 4 ? 0 : 4;
        return group[line * 64 + row % 16 * 4 + byte] >> shift & 15;
    }
    i -= n4;
    line = n4 / 8 + i / 16;
    byte = i % 4;
    shift = 2 * (i % 16 / 4);
    return group[line * 64 + row % 16 * 4 + byte] >> shift & 3;
}

static double value_at(const uint8_t *codes, uint32_t n4, uint32_t n2, uint32_t row, uint32_t i)
{
    return code_at(codes, n4, n2, row, i) - (i < n4 ? 7.5 : 1.5);
}

/* -- pack and unpack -- */

static void check_pack(uint32_t n4, uint32_t n2, uint32_t first, uint32_t n, uint64_t seed)
{
    const struct hri_kernels *levels[LEVELS_MAX];
    const unsigned n_levels = levels_here(levels);
    struct hri_rng rng;
    const uint32_t d = n4 + n2, groups = (first + n + 15) / 16;
    const size_t bytes = groups * hri_sketch_group_bytes(n4, n2), stride = d + seed % 9;
    float *z = guarded_floats(n ? (n - 1) * stride + d : 0), *inverse = guarded_floats(d),
          *back = guarded_floats(d);

    hri_rng_seed(&rng, seed);
    if (n)
        fill_normal(&rng, z, (n - 1) * stride + d, 3.0);
    for (uint32_t i = 0; i < d; i++)
        inverse[i] = 0.2f + 3.0f * hri_rng_f32(&rng);
    if (n && d >= 8) { /* halves, which go to even, and what cannot be held */
        const float odd[] = {0.0f, 1.0f, -1.0f, 1e30f, -1e30f, INFINITY, -INFINITY, NAN};
        for (uint32_t i = 0; i < 8; i++)
            z[i] = odd[i];
        inverse[0] = inverse[1] = inverse[2] = 1.0f;
    }
    for (unsigned level = 0; level < n_levels; level++) {
        uint8_t *codes = guarded_alloc(bytes), *before = guarded_alloc(bytes);
        for (size_t j = 0; j < bytes; j++)
            codes[j] = before[j] = (uint8_t)(seed * 31 + j * 7);
        CASE("%s pack_sketch n4 %u n2 %u first %u n %u seed %llu", levels[level]->name, n4, n2,
             first, n, (unsigned long long)seed);
        levels[level]->pack_sketch(z, stride, n, inverse, n4, n2, codes, first);
        for (uint32_t row = 0; row < groups * 16; row++) {
            const bool written = row >= first && row < first + n;
            hri_sketch_unpack(codes, n4, n2, row, back);
            for (uint32_t i = 0; i < d; i++) {
                const int code = code_at(codes, n4, n2, row, i), most = i < n4 ? 15 : 3;
                int want = code_at(before, n4, n2, row, i);
                if (written) {
                    float x = fmaf(z[(row - first) * stride + i], inverse[i], i < n4 ? 7.5f : 1.5f);
                    want = !(x > 0.0f) ? 0 : x > (float)most ? most : (int)nearbyintf(x);
                }
                if (code != want)
                    fail_msg("%s: row %u dimension %u is %d, not %d", case_text, row, i, code,
                             want);
                assert_true((double)back[i] == value_at(codes, n4, n2, row, i));
            }
        }
    }
    guarded_free_all();
}

static void test_pack(void **state)
{
    uint64_t seed = 10;

    (void)state;
    for (uint32_t n4 = 0; n4 <= 128; n4 += 8) {
        for (uint32_t n2 = 0; n2 <= 128; n2 += 16) {
            seed++;
            check_pack(n4, n2, (uint32_t)(seed % 40), (uint32_t)(seed * 7 % 35), seed);
        }
    }
    for (uint32_t first = 0; first < 16; first++) {
        for (uint32_t n = 0; n <= 17; n++)
            check_pack(16, 32, first + 16, n, ++seed);
    }
    check_pack(256, 0, 5, 20, 1);
    check_pack(0, 256, 5, 20, 2);
}

/* -- scores -- */

/* Groups in any order, some left out. */
static uint32_t pick_groups(struct hri_rng *rng, uint32_t n, uint32_t *list)
{
    uint32_t count = 0;

    for (uint32_t j = 0; j < n; j++) {
        if (hri_rng_below(rng, 4) != 0)
            list[count++] = j;
    }
    for (uint32_t j = count; j > 1; j--) {
        const uint32_t other = (uint32_t)hri_rng_below(rng, j), kept = list[j - 1];
        if (hri_rng_below(rng, 2) != 0)
            continue;
        list[j - 1] = list[other];
        list[other] = kept;
    }
    return count;
}

static uint8_t *random_codes(struct hri_rng *rng, uint32_t n4, uint32_t n2, uint32_t groups,
                             bool extreme)
{
    const size_t bytes = groups * hri_sketch_group_bytes(n4, n2);
    uint8_t *codes = guarded_alloc(bytes ? bytes : 64);

    for (size_t j = 0; j < bytes; j++)
        codes[j] = extreme ? 0xff : (uint8_t)hri_rng_below(rng, 256);
    return codes;
}

static void check_score(uint32_t g, uint32_t n4, uint32_t n2, uint32_t n_rows, uint64_t seed)
{
    const struct hri_kernels *levels[LEVELS_MAX];
    const unsigned n_levels = levels_here(levels);
    struct hri_rng rng;
    const uint32_t d = n4 + n2, groups = (n_rows + 15) / 16;
    const size_t stride = 16 * groups + 3;
    const bool extreme = seed % 5 == 0;
    hri_rng_seed(&rng, seed);
    uint8_t *codes = random_codes(&rng, n4, n2, groups, extreme);
    uint32_t *list = guarded_alloc(groups * sizeof *list);
    const uint32_t n_groups = pick_groups(&rng, groups, list);
    float *x = guarded_floats((size_t)g * d);
    struct hri_sketch_query *query = aligned_alloc(64, sizeof *query);
    assert_non_null(query);

    fill_normal(&rng, x, (size_t)g * d, 0.3);
    for (uint32_t i = 0; i < g * d && extreme; i++)
        x[i] = x[i] > 0.0f || i / d % 2 ? 0.7f : -0.7f;
    memset(query, 0x7f, sizeof *query);
    hri_sketch_query_make(query, x, g, n4, n2);
    const struct hri_sketch_rows s = {codes, n4, n2};
    for (unsigned level = 0; level < n_levels; level++) {
        float *out = guarded_floats(g * stride);
        CASE("%s score_sketch g %u n4 %u n2 %u rows %u seed %llu", levels[level]->name, g, n4, n2,
             n_rows, (unsigned long long)seed);
        /* Of a list that goes on only the first ones are scored. */
        const uint32_t scored = seed % 3 == 0 ? n_groups - n_groups / 3 : n_groups;
        levels[level]->score_sketch(query, g, s, list, scored, n_groups, out, stride);
        for (uint32_t gh = 0; gh < g; gh++) {
            const float *at = x + (size_t)gh * d;
            uint32_t written = 0;
            for (uint32_t j = 0; j < scored; j++) {
                for (uint32_t r = 0; r < 16; r++) {
                    const uint32_t row = 16 * list[j] + r;
                    const float got = out[gh * stride + 16 * j + r];
                    double exact = 0.0, half_steps = 0.0, rounded = 0.0, size = 0.0;
                    for (uint32_t i = 0; i < d; i++) {
                        const double value = value_at(codes, n4, n2, row, i);
                        const double step = (double)(i < n4 ? query->scale4 : query->scale2)[gh];
                        const int8_t byte = i < n4 ? query->q4[gh][i] : query->q2[gh][i - n4];
                        exact += (double)at[i] * value;
                        half_steps += fabs(value) * step * 0.5001;
                        rounded += step * byte * value;
                        size += step * abs(byte) * (i < n4 ? 15 : 3);
                    }
                    CHECK_BELOW(fabs((double)got - rounded), 1e-6 * size);
                    CHECK_BELOW(fabs((double)got - exact), half_steps + 1e-6 * size);
                }
            }
            for (uint32_t row = 0; row < stride; row++)
                written += !isnan(out[gh * stride + row]);
            assert_int_equal(written, 16 * scored);
        }
    }
    free(query);
    guarded_free_all();
}

static void test_score(void **state)
{
    uint64_t seed = 100;

    (void)state;
    for (uint32_t n4 = 0; n4 <= 128; n4 += 8) {
        for (uint32_t n2 = 0; n2 <= 128; n2 += 16) {
            seed++;
            check_score(1 + (uint32_t)(seed % HR_GROUP_MAX), n4, n2,
                        all_rows[seed % COUNT_OF(all_rows)], seed);
        }
    }
    for (uint32_t g = 1; g <= HR_GROUP_MAX; g++) {
        FOR_EACH(b, all_rows)
        {
            check_score(g, 32, 64, all_rows[b], ++seed);
            check_score(g, 0, 128, all_rows[b], ++seed);
        }
        check_score(g, 256, 0, 50, ++seed);
        check_score(g, 0, 256, 50, ++seed);
        check_score(g, 128, 128, 50, ++seed);
    }
    check_score(4, 16, 32, 0, ++seed);
}

/* Queries of 0, and so small that their step cannot be told from it. */
static void test_query_small(void **state)
{
    float x[2 * 32];
    struct hri_sketch_query *query = aligned_alloc(64, sizeof *query);

    (void)state;
    assert_non_null(query);
    for (unsigned i = 0; i < 64; i++)
        x[i] = i < 32 ? 0.0f : 1e-38f;
    hri_sketch_query_make(query, x, 2, 16, 16);
    for (unsigned gh = 0; gh < 2; gh++) {
        assert_true(query->scale4[gh] == 0.0f && query->scale2[gh] == 0.0f);
        assert_true(query->offset[gh] == 0.0f);
        for (unsigned i = 0; i < 16; i++)
            assert_true(query->q4[gh][i] == 0 && query->q2[gh][i] == 0);
    }
    free(query);
}

/* -- weighted sums -- */

static void check_scaled_sum(uint32_t g, uint32_t n4, uint32_t n2, uint32_t n_rows, float scale,
                             uint64_t seed)
{
    const struct hri_kernels *levels[LEVELS_MAX];
    const unsigned n_levels = levels_here(levels);
    struct hri_rng rng;
    const uint32_t d = n4 + n2, groups = (n_rows + 15) / 16;
    const size_t stride = 16 * groups + 5;
    hri_rng_seed(&rng, seed);
    uint8_t *codes = random_codes(&rng, n4, n2, groups, seed % 5 == 0);
    uint32_t *list = guarded_alloc(groups * sizeof *list);
    const uint32_t n_groups = pick_groups(&rng, groups, list);
    float *w = guarded_floats(g * stride), *start = guarded_floats((size_t)g * d);

    fill_normal(&rng, start, (size_t)g * d, (double)scale);
    for (uint32_t j = 0; j < groups; j++) {
        const bool unused = hri_rng_below(&rng, 3) == 0;
        for (uint32_t gh = 0; gh < g; gh++) {
            const bool head_unused = hri_rng_below(&rng, 4) == 0;
            for (uint32_t r = 0; r < 16; r++)
                w[gh * stride + 16 * j + r] =
                    scale * (unused || head_unused    ? 0.0f
                             : seed % 5 == 0          ? 1.0f
                             : hri_rng_below(&rng, 6) ? expf(-9.0f * hri_rng_f32(&rng))
                                                      : -0.5f * hri_rng_f32(&rng));
        }
    }
    const struct hri_sketch_rows s = {codes, n4, n2};
    const double lost = scale < WEIGHT_MIN ? 1.0 : 0.0; /* they may count nothing */
    for (unsigned level = 0; level < n_levels; level++) {
        float *acc = guarded_floats((size_t)g * d);
        memcpy(acc, start, (size_t)g * d * sizeof *acc);
        CASE("%s sum_sketch g %u n4 %u n2 %u rows %u seed %llu", levels[level]->name, g, n4, n2,
             n_rows, (unsigned long long)seed);
        levels[level]->sum_sketch(s, g, list, n_groups, w, stride, acc);
        for (uint32_t gh = 0; gh < g; gh++) {
            for (uint32_t i = 0; i < d; i++) {
                double sum = (double)start[(size_t)gh * d + i], size = fabs(sum), codes_size = 0.0;
                for (uint32_t j = 0; j < n_groups; j++) {
                    for (uint32_t row = 16 * list[j]; row < 16 * list[j] + 16; row++) {
                        const double weight = (double)w[gh * stride + row];
                        const double value = value_at(codes, n4, n2, row, i);
                        sum += weight * value;
                        size += fabs(weight * value);
                        codes_size += weight == 0.0 ? 0.0 : fabs(value);
                    }
                }
                CHECK_BELOW(fabs((double)acc[(size_t)gh * d + i] - sum),
                            (TOLERANCE_SUM + lost) * size + 0x1p-15 * (double)scale * codes_size);
            }
        }
    }
    guarded_free_all();
}

static void check_sum(uint32_t g, uint32_t n4, uint32_t n2, uint32_t n_rows, uint64_t seed)
{
    check_scaled_sum(g, n4, n2, n_rows, 1, seed);
}

/* Weights whose inverses overflow, or nearly do: their sum may be lost, but nothing larger may come of them. */
static void test_tiny_sums(void **state)
{
    uint64_t seed = 900;

    (void)state;
    for (float scale = 1e-28f; scale > 1e-37f; scale *= 0.1f)
        for (uint32_t g = 1; g <= HR_GROUP_MAX; g += 3)
            check_scaled_sum(g, 32, 64, 160, scale, ++seed);
}

static void test_sum(void **state)
{
    uint64_t seed = 500;

    (void)state;
    for (uint32_t n4 = 0; n4 <= 128; n4 += 8) {
        for (uint32_t n2 = 0; n2 <= 128; n2 += 16) {
            seed++;
            check_sum(1 + (uint32_t)(seed % HR_GROUP_MAX), n4, n2,
                      all_rows[seed % COUNT_OF(all_rows)], seed);
        }
    }
    for (uint32_t g = 1; g <= HR_GROUP_MAX; g++) {
        FOR_EACH(b, all_rows)
        check_sum(g, 32, 64, all_rows[b], ++seed);
        check_sum(g, 24, 16, 1000, ++seed);
        check_sum(g, 256, 0, 50, ++seed);
        check_sum(g, 0, 256, 50, ++seed);
    }
    check_sum(4, 16, 32, 0, ++seed);
}

/* -- gathered int8 rows -- */

static void check_gather(uint32_t g, uint32_t dk, uint32_t dv, uint32_t n, uint64_t seed)
{
    const struct hri_kernels *levels[LEVELS_MAX];
    const unsigned n_levels = levels_here(levels);
    struct hri_rng rng;
    const size_t width = dk + dv, stride = n + 3;
    int8_t *codes = guarded_alloc((size_t)(n ? n : 1) * width);
    const int8_t **rows = guarded_alloc(n * sizeof *rows);
    float *q = guarded_floats((size_t)g * dk), *step = guarded_floats(n),
          *w = guarded_floats(g * stride - 3), *start = guarded_floats((size_t)g * dv);

    hri_rng_seed(&rng, seed);
    for (size_t j = 0; j < n * width; j++)
        codes[j] = (int8_t)((int)hri_rng_below(&rng, 255) - 127);
    for (uint32_t i = 0; i < n; i++) {
        rows[i] = codes + hri_rng_below(&rng, n) * width;
        step[i] = hri_rng_f32(&rng);
    }
    fill_normal(&rng, q, (size_t)g * dk, 0.3);
    fill_normal(&rng, start, (size_t)g * dv, 1.0);
    fill_normal(&rng, w, g * stride - 3, 1.0);
    for (unsigned level = 0; level < n_levels; level++) {
        float *out = guarded_floats(g * stride - 3), *o = guarded_floats((size_t)g * dv);
        memcpy(o, start, (size_t)g * dv * sizeof *o);
        CASE("%s gather_i8 g %u dk %u dv %u n %u seed %llu", levels[level]->name, g, dk, dv, n,
             (unsigned long long)seed);
        levels[level]->score_gather_i8(q, g, dk, rows, step, n, out, stride);
        levels[level]->sum_gather_i8(w, stride, g, dk, dv, rows, step, n, o);
        for (uint32_t gh = 0; gh < g; gh++) {
            for (uint32_t i = 0; i < n; i++) {
                double dot = 0.0, size = 0.0;
                for (uint32_t j = 0; j < dk; j++) {
                    const double term = (double)q[(size_t)gh * dk + j] * rows[i][j];
                    dot += term;
                    size += fabs(term);
                }
                CHECK_BELOW(fabs((double)out[gh * stride + i] - dot * (double)step[i]),
                            TOLERANCE_SUM * size * (double)step[i]);
            }
            for (uint32_t j = 0; j < dv; j++) {
                double sum = (double)start[(size_t)gh * dv + j], size = fabs(sum);
                for (uint32_t i = 0; i < n; i++) {
                    const double term =
                        (double)w[gh * stride + i] * (double)step[i] * rows[i][dk + j];
                    sum += term;
                    size += fabs(term);
                }
                CHECK_BELOW(fabs((double)o[(size_t)gh * dv + j] - sum), TOLERANCE_SUM * size);
            }
        }
    }
    guarded_free_all();
}

static void test_gather(void **state)
{
    uint64_t seed = 900;

    (void)state;
    for (uint32_t g = 1; g <= HR_GROUP_MAX; g++) {
        FOR_EACH(d, dims)
        {
            seed++;
            check_gather(g, dims[d][0], dims[d][1], lengths[seed % COUNT_OF(lengths)], seed);
        }
        check_gather(g, 128, 128, 300, ++seed);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pack),        cmocka_unit_test(test_score),
        cmocka_unit_test(test_query_small), cmocka_unit_test(test_sum),
        cmocka_unit_test(test_tiny_sums),   cmocka_unit_test(test_gather),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
