/* Every level's arithmetic against the plain C one and against formulas in double, over all weight
 * types and odd lengths. */
#include "tests/test.h"

#include <math.h>

#include "engine/fail.h"
#include "engine/gguf.h"
#include "engine/ops.h"
#include "engine/quant.h"
#include "engine/repack.h"
#include "tests/engine/gguf_make.h"

static const uint32_t types[] = {HRE_WEIGHT_F32,  HRE_WEIGHT_F16,  HRE_WEIGHT_BF16,
                                 HRE_WEIGHT_Q4_0, HRE_WEIGHT_Q4_1, HRE_WEIGHT_Q8_0,
                                 HRE_WEIGHT_Q4_K, HRE_WEIGHT_Q6_K};
#define TYPES (sizeof(types) / sizeof(types[0]))

static const struct hre_ops *levels[3];
static size_t n_levels;

static void find_levels(void)
{
    static const char *const names[] = {"ref", "avx2", "avx512"};

    for (size_t i = 0; i < 3; i++) {
        if (hre_ops_choose(names[i], &levels[n_levels]) == HR_OK) {
            n_levels++;
        }
    }
}

static float uniform(uint64_t *state)
{
    return (float)(gguf_random(state) >> 8) * 0x1p-23f - 1.0f;
}

static void fill(uint64_t *state, float *x, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        x[i] = uniform(state);
    }
}

static uint32_t block_of(uint32_t type)
{
    return type == HRE_WEIGHT_Q4_K || type == HRE_WEIGHT_Q6_K ? 256
           : gguf_weight_bytes(type, 32) % 32                 ? 32
                                                              : 1;
}

/* Halves, all 65,536 of them, against their definition. */
static void test_halves(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        int exponent = (int)(h >> 10 & 31), fraction = (int)(h & 1023);
        double value = exponent ? ldexp(1024 + fraction, exponent - 25) : ldexp(fraction, -24);

        if (exponent == 31) {
            continue;
        }
        assert_true(float_of_f16((uint16_t)h) == (float)(h & 0x8000 ? -value : value));
    }
    assert_true(isinf(float_of_f16(0x7c00)) && isnan(float_of_f16(0x7e00)));
}

/* dequantise of every level equals the plain one bit for bit. */
static void test_dequantise(void **state)
{
    uint64_t seed = test_seed(3);
    unsigned char weights[4 * 1024];
    float expected[1024], got[1024];

    (void)state;
    for (size_t t = 0; t < TYPES; t++) {
        gguf_random_weights(&seed, types[t], 1024, 1.0f, weights);
        levels[0]->dequantise[types[t]](weights, 1024, expected);
        double largest = 0.0;
        for (int i = 0; i < 1024; i++) {
            largest = fmax(largest, fabs((double)expected[i]));
        }
        assert_true(largest > 0.2 && largest < 5.0);
        for (size_t l = 1; l < n_levels; l++) {
            levels[l]->dequantise[types[t]](weights, 1024, got);
            for (int i = 0; i < 1024; i++) {
                if (fabsf(got[i] - expected[i]) > 1e-6f) {
                    fail_msg("%s %s weight %d: %g, not %g", levels[l]->name,
                             hre_weight_type_name(types[t]), i, (double)got[i],
                             (double)expected[i]);
                }
            }
        }
    }
}

/* A tile made of groups is the one that is made of the rows as floats. */
static void check_tile_of_groups(const struct hre_ops *ops, uint32_t type, uint32_t n,
                                 const unsigned char *groups, const unsigned char *weights)
{
    size_t row_bytes = gguf_weight_bytes(type, n), floats = (size_t)ops->tile_rows * n;
    float *rows = malloc(4 * floats), *expected = malloc(4 * floats), *got = malloc(4 * floats);

    for (uint32_t r = 0; r < ops->tile_rows; r++) {
        ops->dequantise[type](weights + r * row_bytes, n, rows + (size_t)r * n);
    }
    ops->pack(rows, ops->tile_rows, n, expected);
    ops->tile_groups[type](groups, row_bytes, n, got);
    for (size_t i = 0; i < floats; i++) {
        if (!(fabsf(got[i] - expected[i]) <= 1e-6f)) {
            fail_msg("%s %s n %u, %zu of the tile: %g, not %g", ops->name,
                     hre_weight_type_name(type), n, i, (double)got[i], (double)expected[i]);
        }
    }
    free(rows);
    free(expected);
    free(got);
}

/* Of repacked rows and of rows dealt otherwise: the same, bit for bit. Rows can be had back. */
static void check_groups(const struct hre_ops *ops, uint32_t type, uint32_t n, uint32_t rows,
                         const struct hre_activations *a, const unsigned char *weights,
                         const float *y)
{
    size_t row_bytes = gguf_weight_bytes(type, n), group_bytes = HRE_GROUP_ROWS * row_bytes;
    uint32_t groups = rows / HRE_GROUP_ROWS;
    unsigned char *packed = malloc(groups * group_bytes + 1), *scratch = malloc(group_bytes);
    float *z = malloc(rows * sizeof(float));

    assert_true(hre_can_repack(type));
    for (uint32_t r = 0; r < rows; r++) {
        ops->dot[type](weights + r * row_bytes, row_bytes, 1, n, a, z + r);
        assert_memory_equal(&z[r], &y[r], sizeof(float));
    }
    for (uint32_t g = 0; g < groups; g++) {
        hre_repack_group(type, weights + g * group_bytes, row_bytes, packed + g * group_bytes);
    }
    ops->dot_groups[type](packed, row_bytes, groups * HRE_GROUP_ROWS, n, a, z);
    assert_memory_equal(z, y, groups * HRE_GROUP_ROWS * sizeof(float));
    if (rows >= ops->tile_rows) {
        check_tile_of_groups(ops, type, n, packed, weights);
    }
    struct hre_weight w = {packed, type, rows, n, row_bytes, NULL, groups * HRE_GROUP_ROWS};
    for (uint32_t r = 0; r < w.packed_rows; r++) {
        assert_memory_equal(hre_weight_row(&w, r, scratch), weights + r * row_bytes, row_bytes);
    }
    free(packed);
    free(scratch);
    free(z);
}

static void check_dot(const struct hre_ops *ops, uint32_t type, uint32_t n, uint32_t rows,
                      uint64_t *seed)
{
    size_t row_bytes = gguf_weight_bytes(type, n);
    unsigned char *weights =
        malloc(row_bytes * rows); /* exact, so that ASan sees reads beyond the last row */
    float *x = malloc(n * sizeof(float)), *y = malloc(rows * sizeof(float)),
          *w = malloc(n * sizeof(float));
    float *sums = malloc((n / HRE_SUM_GROUP + 1) * sizeof(float));
    float *steps = malloc((n / HRE_SUM_GROUP + 1) * sizeof(float));
    int16_t *halves = malloc(2 * (size_t)n * sizeof(int16_t));
    struct hre_digits *digits = malloc((n / HRE_SUM_GROUP + 1) * sizeof(*digits));

    gguf_random_weights(seed, type, (size_t)n * rows, 1.0f, weights);
    fill(seed, x, n);
    ops->sum_groups(x, n, sums);
    if (ops->halve)
        ops->halve(x, n, sums, halves, steps);
    if (ops->digits)
        ops->digits(x, n, sums, digits);
    struct hre_activations a = {x, sums, halves, steps, digits};
    ops->dot[type](weights, row_bytes, rows, n, &a, y);
    for (uint32_t r = 0; r < rows; r++) {
        double sum = 0.0, size = 0.0;

        levels[0]->dequantise[type](weights + r * row_bytes, n, w);
        for (uint32_t i = 0; i < n; i++) {
            sum += (double)w[i] * (double)x[i];
            size += fabs((double)w[i] * (double)x[i]);
        }
        if (fabs((double)y[r] - sum) > 2e-6 * size + 1e-6) {
            fail_msg("%s %s n %u row %u: %.9g, not %.9g", ops->name, hre_weight_type_name(type), n,
                     r, (double)y[r], sum);
        }
    }
    if (ops->dot_groups[type])
        check_groups(ops, type, n, rows, &a, weights, y);
    free(weights);
    free(x);
    free(y);
    free(w);
    free(sums);
    free(steps);
    free(halves);
    free(digits);
}

/* Five groups: one as they are, one of nothing, two that are not finite, one that is very large. */
static void fill_odd(uint64_t *seed, float *x)
{
    fill(seed, x, 5 * HRE_SUM_GROUP);
    for (int i = 0; i < HRE_SUM_GROUP; i++) {
        x[HRE_SUM_GROUP + i] = 0.0f;
        x[4 * HRE_SUM_GROUP + i] *= 1e20f;
    }
    x[2 * HRE_SUM_GROUP + 7] = NAN;
    x[3 * HRE_SUM_GROUP + 30] = -INFINITY;
}

/* Activations as pairs of integers: as exact as floats beside the largest of their group; groups that are not finite say so. */
static void test_halve(void **state)
{
    enum { N = 5 * HRE_SUM_GROUP };
    float x[N], sums[5], steps[5];
    int16_t halves[2 * N];
    uint64_t seed = test_seed(9);

    (void)state;
    for (size_t l = 0; l < n_levels; l++) {
        if (!levels[l]->halve)
            continue;
        fill_odd(&seed, x);
        levels[l]->sum_groups(x, N, sums);
        levels[l]->halve(x, N, sums, halves, steps);
        assert_true(isnan(steps[2]) && isnan(steps[3]));
        for (int i = 0; i < N; i++) {
            const int16_t *pair =
                halves + i / HRE_SUM_GROUP * 2 * HRE_SUM_GROUP + i % HRE_SUM_GROUP;
            double step = steps[i / HRE_SUM_GROUP];
            double got = step * (pair[0] + pair[HRE_SUM_GROUP] / 32768.0);
            if (!isnan(step) && !(fabs(got - (double)x[i]) <= 32767 * step * 2e-7))
                fail_msg("%s activation %d: %.9g, not %.9g", levels[l]->name, i, got, (double)x[i]);
        }
    }
}

/* The same as three digits of 256, with their sums. */
static void test_digits(void **state)
{
    enum { N = 5 * HRE_SUM_GROUP };
    float x[N], sums[5];
    struct hre_digits digits[5];
    uint64_t seed = test_seed(10);

    (void)state;
    for (size_t l = 0; l < n_levels; l++) {
        if (!levels[l]->digits)
            continue;
        fill_odd(&seed, x);
        x[3] = 1.0f; /* the largest numbers there are, both ways */
        x[4] = -1.0f;
        levels[l]->sum_groups(x, N, sums);
        levels[l]->digits(x, N, sums, digits);
        assert_true(isnan(digits[2].step) && isnan(digits[3].step));
        for (int g = 0; g < 5; g++) {
            const struct hre_digits *d = &digits[g];
            int32_t sum[HRE_DIGITS] = {0};

            for (int i = 0; i < HRE_SUM_GROUP && !isnan(d->step); i++) {
                double whole = d->digit[0][i] + 256.0 * d->digit[1][i] + 65536.0 * d->digit[2][i];
                double got = (double)d->step * whole, expected = x[g * HRE_SUM_GROUP + i];
                if (!(fabs(got - expected) <= 8355000 * (double)d->step * 2e-7))
                    fail_msg("%s activation %d of %d: %.9g, not %.9g", levels[l]->name, i, g, got,
                             expected);
                for (int p = 0; p < HRE_DIGITS; p++)
                    sum[p] += d->digit[p][i];
            }
            assert_true(isnan(d->step) || memcmp(sum, d->sum, sizeof(sum)) == 0);
        }
    }
}

static void test_dot(void **state)
{
    static const uint32_t lengths[] = {1, 2, 3, 5, 17, 18, 33, 64, 65, 130};
    uint64_t seed = test_seed(4);

    (void)state;
    for (size_t l = 0; l < n_levels; l++) {
        for (size_t t = 0; t < TYPES; t++) {
            for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
                check_dot(levels[l], types[t], lengths[i] * block_of(types[t]), 1 + i % 3, &seed);
                check_dot(levels[l], types[t], lengths[i] * block_of(types[t]), 16 + 7 * (i % 4),
                          &seed);
            }
        }
    }
}

static void check_tile(const struct hre_ops *ops, uint32_t m, uint32_t n, uint32_t k,
                       uint64_t *seed)
{
    size_t stride = n + 3;
    float *x = malloc(4 * (size_t)m * k), *w = malloc(4 * (size_t)n * k),
          *y = malloc(4 * m * stride);
    float *packed = malloc(4 * (size_t)ops->tile_rows * k);

    fill(seed, x, (size_t)m * k);
    fill(seed, w, (size_t)n * k);
    for (size_t i = 0; i < m * stride; i++) {
        y[i] = 77.0f;
    }
    ops->pack(w, n, k, packed);
    ops->multiply(x, k, m, packed, k, y, stride, n);
    for (uint32_t i = 0; i < m; i++) {
        for (uint32_t j = 0; j < n; j++) {
            double sum = 0.0;

            for (uint32_t p = 0; p < k; p++) {
                sum += (double)x[(size_t)i * k + p] * (double)w[(size_t)j * k + p];
            }
            if (fabs((double)y[i * stride + j] - sum) > 1e-6 * k + 1e-6) {
                fail_msg("%s m %u n %u k %u at %u,%u: %g, not %g", ops->name, m, n, k, i, j,
                         (double)y[i * stride + j], sum);
            }
        }
        for (size_t j = n; i + 1 < m && j < stride; j++) {
            assert_true(y[i * stride + j] == 77.0f);
        }
    }
    free(x);
    free(w);
    free(y);
    free(packed);
}

static void test_tiles(void **state)
{
    static const uint32_t ms[] = {1, 2, 3, 5, 6, 7, 11, 12, 13, 31},
                          ks[] = {1, 7, 16, 33, 1024, 1029, 2050};
    uint64_t seed = test_seed(5);

    (void)state;
    for (size_t l = 0; l < n_levels; l++) {
        for (size_t i = 0; i < sizeof(ms) / sizeof(ms[0]); i++) {
            for (size_t j = 0; j < sizeof(ks) / sizeof(ks[0]); j++) {
                uint32_t full = levels[l]->tile_rows;

                check_tile(levels[l], ms[i], full, ks[j], &seed);
                check_tile(levels[l], ms[i], 1 + (uint32_t)(i + j) % (full - 1), ks[j], &seed);
            }
        }
    }
}

static void assert_close(const char *what, const struct hre_ops *ops, float got, double expected,
                         double tolerance)
{
    if (!(fabs((double)got - expected) <= tolerance * (1.0 + fabs(expected)))) {
        fail_msg("%s %s: %.9g, not %.9g", ops->name, what, (double)got, expected);
    }
}

static void check_norms(const struct hre_ops *ops, uint32_t n, uint64_t *seed)
{
    float x[200] = {0}, w[200] = {0}, b[200] = {0}, rms[200], layer[200];
    double mean = 0.0, squares = 0.0, variance = 0.0;

    fill(seed, x, n);
    fill(seed, w, n);
    fill(seed, b, n);
    for (uint32_t i = 0; i < n; i++) {
        mean += (double)x[i] / n;
        squares += (double)x[i] * (double)x[i] / n;
    }
    for (uint32_t i = 0; i < n; i++) {
        variance += ((double)x[i] - mean) * ((double)x[i] - mean) / n;
    }
    ops->rms_norm(x, w, 1e-5f, n, rms);
    ops->layer_norm(x, w, b, 1e-5f, n, layer);
    for (uint32_t i = 0; i < n; i++) {
        assert_close("rms_norm", ops, rms[i], (double)x[i] / sqrt(squares + 1e-5) * (double)w[i],
                     2e-6);
        assert_close("layer_norm", ops, layer[i],
                     ((double)x[i] - mean) / sqrt(variance + 1e-5) * (double)w[i] + (double)b[i],
                     1e-5);
    }
}

static void check_activations(const struct hre_ops *ops, uint32_t n, float size, uint64_t *seed)
{
    float gate[200] = {0}, up[200] = {0}, before[200], x[200];

    fill(seed, gate, n);
    fill(seed, up, n);
    for (uint32_t i = 0; i < n; i++) {
        before[i] = x[i] = gate[i] = gate[i] * size;
    }
    ops->swiglu(gate, up, n);
    ops->gelu(x, n);
    for (uint32_t i = 0; i < n; i++) {
        double v = before[i];

        assert_close("swiglu", ops, gate[i], v / (1.0 + exp(-v)) * (double)up[i], 1e-6);
        assert_close("gelu", ops, x[i],
                     0.5 * v * (1.0 + tanh(0.7978845608028654 * (v + 0.044715 * v * v * v))), 1e-6);
    }
}

static void check_rope(const struct hre_ops *ops, uint32_t dim, uint32_t n_rot,
                       hr_rope_layout_t layout, uint64_t *seed)
{
    float x[3 * 128] = {0}, before[3 * 128], cosine[64], sine[64];
    int half = layout == HR_ROPE_HALF;

    fill(seed, x, 3 * (size_t)dim);
    memcpy(before, x, sizeof(x));
    for (uint32_t i = 0; i < n_rot / 2; i++) {
        double angle = 3.0 * (double)uniform(seed);

        cosine[i] = (float)cos(angle);
        sine[i] = (float)sin(angle);
    }
    ops->rope(x, 3, dim, n_rot, layout, cosine, sine);
    for (uint32_t h = 0; h < 3; h++) {
        float *y = x + h * dim, *z = before + h * dim;

        for (uint32_t i = 0; i < n_rot / 2; i++) {
            uint32_t a = half ? i : 2 * i, b = half ? i + n_rot / 2 : 2 * i + 1;

            assert_close("rope", ops, y[a], (double)z[a] * cosine[i] - (double)z[b] * sine[i],
                         1e-6);
            assert_close("rope", ops, y[b], (double)z[b] * cosine[i] + (double)z[a] * sine[i],
                         1e-6);
        }
        assert_memory_equal(y + n_rot, z + n_rot, (dim - n_rot) * sizeof(float));
    }
}

static void test_elements(void **state)
{
    static const uint32_t lengths[] = {1, 7, 15, 16, 17, 64, 128, 199};
    uint64_t seed = test_seed(6);

    (void)state;
    for (size_t l = 0; l < n_levels; l++) {
        for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
            check_norms(levels[l], lengths[i], &seed);
            check_activations(levels[l], lengths[i], 3.0f, &seed);
            check_activations(levels[l], lengths[i], 300.0f, &seed);
        }
        check_rope(levels[l], 64, 64, HR_ROPE_HALF, &seed);
        check_rope(levels[l], 64, 64, HR_ROPE_INTERLEAVED, &seed);
        check_rope(levels[l], 80, 20, HR_ROPE_HALF, &seed);
        check_rope(levels[l], 80, 20, HR_ROPE_INTERLEAVED, &seed);
        check_rope(levels[l], 128, 128, HR_ROPE_INTERLEAVED, &seed);
    }
}

static void test_choice(void **state)
{
    const struct hre_ops *ops = NULL;

    (void)state;
    assert_int_equal(hre_ops_choose("sse9", &ops), HR_ERR_INVALID);
    assert_non_null(strstr(hre_last_error(), "sse9"));
    assert_null(ops);
    assert_int_equal(hre_ops_choose("ref", &ops), HR_OK);
    assert_string_equal(ops->name, "ref");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_halves),   cmocka_unit_test(test_dequantise),
        cmocka_unit_test(test_halve),    cmocka_unit_test(test_digits),
        cmocka_unit_test(test_dot),      cmocka_unit_test(test_tiles),
        cmocka_unit_test(test_elements), cmocka_unit_test(test_choice),
    };

    find_levels();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
