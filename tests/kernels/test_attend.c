/* attend_rows, attend_runs, attend_gather, score_rows, attend_block_i8: every level against the reference, the
 * reference against the definition. Rows are the exact values of their dtype, so only the
 * arithmetic counts.
 *
 *   operation        tolerance, relative to the output's length (lse: absolute, times 1 + |lse|)
 *   reference        1e-6   against the definition in double
 *   attend_rows      1e-5
 *   attend_runs      1e-5
 *   attend_gather    1e-5
 *   attend_block_i8  1e-5
 *   score_rows       3e-6   relative to |q| |k| */
#include "kernel_test.h"

#define TOLERANCE_REF    1e-6
#define TOLERANCE_ATTEND 1e-5
#define TOLERANCE_SCORE  3e-6

struct shape {
    uint32_t g, dk, dv, n;
    hr_dtype_t dtype;
    float soft_cap;
    uint64_t seed;
};

struct data {
    float *q;      /* [g][dk] */
    float *values; /* [n][dk + dv] as floats */
    struct hri_rows rows;
    struct hri_partial start; /* what was seen before */
};

static struct data data_make(const struct shape *s)
{
    struct data data;
    struct hri_rng rng;
    const uint32_t width = s->dk + s->dv;
    const size_t element = dtype_bytes(s->dtype);

    hri_rng_seed(&rng, s->seed);
    /* Peaked for some seeds, flat for others; sometimes with a gap between rows. */
    const double deviation = 0.3 + 6.0 * hri_rng_f64(&rng);
    const size_t gap = hri_rng_below(&rng, 2) ? 0 : 4 * hri_rng_below(&rng, 9);
    data.q = guarded_floats((size_t)s->g * s->dk);
    fill_normal(&rng, data.q, (size_t)s->g * s->dk, deviation / sqrt(s->dk));
    data.values = guarded_floats((size_t)s->n * width);
    fill_normal(&rng, data.values, (size_t)s->n * width, 1.0);
    data.rows =
        (struct hri_rows){.stride_bytes = width * element + gap, .n = s->n, .dtype = s->dtype};
    char *base = guarded_alloc(s->n ? s->n * data.rows.stride_bytes - gap : 0);
    for (uint32_t r = 0; r < s->n; r++)
        to_dtype(base + r * data.rows.stride_bytes, data.values + (size_t)r * width, s->dtype,
                 width);
    data.rows.base = base;
    data.start = partial_make(s->g, s->dv);
    for (uint32_t i = 0; i < s->g && (s->seed & 1); i++) {
        data.start.m[i] = (float)hri_rng_normal(&rng) * 4.0f;
        data.start.l[i] = 1.0f + hri_rng_f32(&rng) * 10.0f;
        fill_normal(&rng, data.start.o + (size_t)i * s->dv, s->dv, 3.0);
    }
    return data;
}

static double logit_of(const struct shape *s, const float *q, const float *row)
{
    double dot = 0.0;

    for (uint32_t j = 0; j < s->dk; j++)
        dot += (double)q[j] * (double)row[j];
    return s->soft_cap > 0.0f ? (double)s->soft_cap * tanh(dot / (double)s->soft_cap) : dot;
}

/* The definition: two passes over all rows, what was seen before as one more row of weight l. */
static void naive(const struct shape *s, const struct data *data, struct hri_partial *part)
{
    for (uint32_t i = 0; i < s->g; i++) {
        const float *q = data->q + (size_t)i * s->dk;
        double m = (double)data->start.m[i], l, o[256];
        for (uint32_t r = 0; r < s->n; r++)
            m = fmax(m, logit_of(s, q, data->values + (size_t)r * (s->dk + s->dv)));
        if (isinf(m))
            continue;
        double before = exp((double)data->start.m[i] - m);
        l = before * (double)data->start.l[i];
        for (uint32_t j = 0; j < s->dv; j++)
            o[j] = before * (double)data->start.o[(size_t)i * s->dv + j];
        for (uint32_t r = 0; r < s->n; r++) {
            const float *row = data->values + (size_t)r * (s->dk + s->dv);
            double weight = exp(logit_of(s, q, row) - m);
            l += weight;
            for (uint32_t j = 0; j < s->dv; j++)
                o[j] += weight * (double)row[s->dk + j];
        }
        part->m[i] = (float)m;
        part->l[i] = (float)(l * exp(m - (double)(float)m));
        for (uint32_t j = 0; j < s->dv; j++)
            part->o[(size_t)i * s->dv + j] = (float)(o[j] * exp(m - (double)(float)m));
    }
}

enum way { WAY_ROWS, WAY_RUNS, WAY_GATHER, WAYS };

/* The rows as runs of several lengths, empty ones among them, the later ones first. */
static void attend_by_runs(const struct hri_kernels *k, const struct shape *s,
                           const struct data *data, struct hri_partial *part)
{
    static const uint32_t lengths_of_runs[] = {0, 1, 64, 3, 0, 0, 17, 64, 130, 0};
    struct hri_rows runs[1024];
    uint32_t n_runs = 0;
    for (uint32_t end = data->rows.n, i = 0; end > 0 || n_runs == 0; i++) {
        struct hri_rows run = data->rows;
        run.n =
            lengths_of_runs[(s->seed + i) % 10] < end ? lengths_of_runs[(s->seed + i) % 10] : end;
        end -= run.n;
        run.base = (const char *)run.base + end * run.stride_bytes;
        assert_true(n_runs < 1024);
        runs[n_runs++] = run;
    }
    k->attend_runs(data->q, s->g, s->dk, s->dv, runs, n_runs, s->soft_cap, part);
}

static void attend_by(const struct hri_kernels *k, const struct shape *s, const struct data *data,
                      enum way way, struct hri_partial *part)
{
    if (way == WAY_ROWS) {
        k->attend_rows(data->q, s->g, s->dk, s->dv, data->rows, s->soft_cap, part);
        return;
    }
    if (way == WAY_RUNS) {
        attend_by_runs(k, s, data, part);
        return;
    }
    const void **list = guarded_alloc(s->n * sizeof *list);
    for (uint32_t r = 0; r < s->n; r++) /* backwards: the order does not matter */
        list[r] = (const char *)data->rows.base + (s->n - 1 - r) * data->rows.stride_bytes;
    k->attend_gather(data->q, s->g, s->dk, s->dv, list, s->n, s->dtype, s->soft_cap, part);
}

static void check_attend(const struct shape *s)
{
    static const char *const names[WAYS] = {"attend_rows", "attend_runs", "attend_gather"};
    const struct hri_kernels *levels[LEVELS_MAX];
    const unsigned n_levels = levels_here(levels);
    struct data data = data_make(s);
    struct hri_partial want = partial_copy(&data.start, s->g, s->dv);

    naive(s, &data, &want);
    for (unsigned level = 0; level < n_levels; level++) {
        for (int way = 0; way < WAYS; way++) {
            struct hri_partial part = partial_copy(&data.start, s->g, s->dv);
            CASE("%s %s dtype %d g %u dk %u dv %u n %u cap %g seed %llu", levels[level]->name,
                 names[way], (int)s->dtype, s->g, s->dk, s->dv, s->n, (double)s->soft_cap,
                 (unsigned long long)s->seed);
            attend_by(levels[level], s, &data, (enum way)way, &part);
            check_partials(&part, &want, s->g, s->dv,
                           level == 0 ? TOLERANCE_REF : TOLERANCE_ATTEND);
            if (s->n == 0)
                assert_memory_equal(part.o, data.start.o, (size_t)s->g * s->dv * sizeof(float));
        }
    }
    guarded_free_all();
}

static void test_attend_all_shapes(void **state)
{
    uint64_t seed = 1000;

    (void)state;
    FOR_EACH(t, dtypes)
    {
        FOR_EACH(d, dims)
        {
            FOR_EACH(a, group_sizes)
            {
                FOR_EACH(b, lengths)
                {
                    seed++;
                    /* Every pair of (shape, group) and of (shape, length) is met; all triples would
                     * take minutes under ASan. */
                    if ((a * 3 + b * 5 + d + t) % 4 != 0 && group_sizes[a] != 3 && lengths[b] != 17)
                        continue;
                    struct shape s = {group_sizes[a], dims[d][0], dims[d][1], lengths[b],
                                      dtypes[t],      0.0f,       seed};
                    s.soft_cap = seed % 5 == 0 ? 3.0f : 0.0f;
                    check_attend(&s);
                }
            }
        }
    }
}

static void test_attend_long(void **state)
{
    static const uint32_t long_lengths[] = {64, 127, 128, 129, 255, 300, 513, 1000};
    uint64_t seed = 5000;

    (void)state;
    FOR_EACH(b, long_lengths)
    {
        FOR_EACH(t, dtypes)
        {
            seed++;
            struct shape s = {group_sizes[seed % 9],
                              dims[seed % 12][0],
                              dims[seed % 12][1],
                              long_lengths[b],
                              dtypes[t],
                              seed % 3 ? 0.0f : 30.0f,
                              seed};
            check_attend(&s);
        }
    }
}

/* Logits that overflow float32, and a partial that has seen nothing, give no NaN. */
static void test_attend_extreme(void **state)
{
    const struct hri_kernels *levels[LEVELS_MAX];
    const unsigned n_levels = levels_here(levels);
    float q[2 * 16], rows[33 * 32];

    (void)state;
    for (unsigned level = 0; level < n_levels; level++) {
        for (int sign = -1; sign <= 1; sign += 2) {
            struct hri_partial part = partial_make(2, 16);
            for (int j = 0; j < 32; j++)
                q[j] = j < 16 ? 3e30f : -1e20f;
            for (int j = 0; j < 33 * 32; j++)
                rows[j] = j % 32 < 16 ? (float)sign * 1e30f : 1.0f;
            struct hri_rows r = {
                .base = rows, .stride_bytes = 32 * sizeof(float), .n = 33, .dtype = HR_DTYPE_F32};
            CASE("%s extreme logits, sign %d", levels[level]->name, sign);
            levels[level]->attend_rows(q, 2, 16, 16, r, 0.0f, &part);
            for (int i = 0; i < 2; i++) {
                CHECK_BELOW(fabs((double)part.l[i] - 33.0), 1e-4);
                for (int j = 0; j < 16; j++)
                    CHECK_BELOW(fabs((double)part.o[i * 16 + j] - 33.0), 1e-3);
            }
        }
    }
    guarded_free_all();
}

static void check_scores(const struct shape *s)
{
    const struct hri_kernels *levels[LEVELS_MAX];
    const unsigned n_levels = levels_here(levels);
    struct data data = data_make(s);
    const size_t stride = s->n + 3;

    for (unsigned level = 0; level < n_levels; level++) {
        float *out = guarded_floats((size_t)s->g * stride - 3);
        CASE("%s score_rows dtype %d g %u dk %u n %u cap %g seed %llu", levels[level]->name,
             (int)s->dtype, s->g, s->dk, s->n, (double)s->soft_cap, (unsigned long long)s->seed);
        levels[level]->score_rows(data.q, s->g, s->dk, data.rows, s->soft_cap, out, stride);
        for (uint32_t i = 0; i < s->g; i++) {
            const float *q = data.q + (size_t)i * s->dk;
            for (uint32_t r = 0; r < s->n; r++) {
                const float *row = data.values + (size_t)r * (s->dk + s->dv);
                double size = 0.0;
                for (uint32_t j = 0; j < s->dk; j++)
                    size += fabs((double)q[j] * (double)row[j]);
                CHECK_BELOW(fabs((double)out[i * stride + r] - logit_of(s, q, row)),
                            TOLERANCE_SCORE * size);
            }
        }
    }
    guarded_free_all();
}

static void test_score_rows(void **state)
{
    uint64_t seed = 9000;

    (void)state;
    FOR_EACH(t, dtypes)
    {
        FOR_EACH(d, dims)
        {
            FOR_EACH(b, lengths)
            {
                seed++;
                struct shape s = {group_sizes[seed % 9],
                                  dims[d][0],
                                  dims[d][1],
                                  lengths[b] ? lengths[b] : 140,
                                  dtypes[t],
                                  seed % 4 ? 0.0f : 2.0f,
                                  seed};
                check_scores(&s);
            }
        }
    }
}

/* A block of int8 rows against the same rows written out as floats. */
static void check_block(const struct shape *s)
{
    const struct hri_kernels *levels[LEVELS_MAX];
    const unsigned n_levels = levels_here(levels);
    struct data data = data_make(s);
    struct hri_rng rng;
    const uint32_t width = s->dk + s->dv;
    int8_t *codes = guarded_alloc((size_t)s->n * width);
    float *center = guarded_floats(width), *k_dot = guarded_floats(s->g);
    const struct hri_block_i8 block = {.codes = codes,
                                       .k_dot = k_dot,
                                       .v_center = center + s->dk,
                                       .k_step = 0.01f,
                                       .v_step = 0.03f,
                                       .n = s->n,
                                       /* Nothing at all, less and more than the block has. */
                                       .next = s->seed % 3 ? codes : NULL,
                                       .next_bytes = s->seed % 7 * s->n * width / 3 + s->seed % 2};

    hri_rng_seed(&rng, s->seed + 1);
    fill_normal(&rng, center, width, 1.0);
    for (size_t j = 0; j < (size_t)s->n * width; j++) {
        codes[j] = (int8_t)((int)hri_rng_below(&rng, 255) - 127);
        double step = (double)(j % width < s->dk ? block.k_step : block.v_step);
        data.values[j] = (float)((double)center[j % width] + step * codes[j]);
    }
    for (uint32_t i = 0; i < s->g; i++) {
        double dot = 0.0;
        for (uint32_t j = 0; j < s->dk; j++)
            dot += (double)data.q[(size_t)i * s->dk + j] * (double)center[j];
        k_dot[i] = (float)dot;
    }
    struct hri_partial want = partial_copy(&data.start, s->g, s->dv);
    naive(s, &data, &want);
    for (unsigned level = 0; level < n_levels; level++) {
        struct hri_partial part = partial_copy(&data.start, s->g, s->dv);
        CASE("%s attend_block_i8 g %u dk %u dv %u n %u cap %g seed %llu", levels[level]->name, s->g,
             s->dk, s->dv, s->n, (double)s->soft_cap, (unsigned long long)s->seed);
        levels[level]->attend_block_i8(data.q, s->g, s->dk, s->dv, &block, s->soft_cap, &part);
        check_partials(&part, &want, s->g, s->dv, TOLERANCE_ATTEND);
    }
    guarded_free_all();
}

static void test_attend_block_i8(void **state)
{
    uint64_t seed = 20000;

    (void)state;
    FOR_EACH(d, dims)
    {
        FOR_EACH(a, group_sizes)
        {
            FOR_EACH(b, lengths)
            {
                seed++;
                struct shape s = {
                    group_sizes[a],         dims[d][0], dims[d][1], lengths[b], HR_DTYPE_F32,
                    seed % 4 ? 0.0f : 5.0f, seed};
                check_block(&s);
            }
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_attend_all_shapes), cmocka_unit_test(test_attend_long),
        cmocka_unit_test(test_attend_extreme),    cmocka_unit_test(test_score_rows),
        cmocka_unit_test(test_attend_block_i8),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
