/* What is left of rows around their blocks' centres, against the same in double: turned 1e-5 of what the products add up to, squares
 * 1e-5, moments 1e-5 of the sums of sizes. What sketches miss: as index/sketch.c counts it, 1e-4; gains within one step. */
#include "tests/emu/emu_test.h"

static const double tolerance = 1e-5;

struct setup {
    uint32_t heads, dk, dv, n, n_blocks;
    hr_dtype_t dtype;
    float *wide, *left; /* rows; residuals in block order [H][n][dk + dv] */
    float *matrix, *z, *sum, *most, *moment;
    struct hri_cuda_residual_args p;
};

static struct hri_cuda_heads heads_of(const struct setup *t)
{
    return (struct hri_cuda_heads){t->heads, 1, t->dk, t->dv};
}

static void deal(struct hri_rng *rng, const struct setup *t, uint32_t *order, uint32_t *begin,
                 uint32_t *block_of)
{
    for (uint32_t i = 0; i < t->n; i++)
        order[i] = (i * 7 + 3) % t->n; /* n is no multiple of 7 */
    begin[0] = 0;
    for (uint32_t b = 0; b < t->n_blocks; b++) {
        uint32_t left = t->n - begin[b], most = left < 30 ? left : 30;
        begin[b + 1] =
            b + 1 == t->n_blocks ? t->n : begin[b] + (uint32_t)hri_rng_below(rng, most + 1);
        for (uint32_t i = begin[b]; i < begin[b + 1]; i++)
            block_of[i] = b;
    }
}

static void make(struct setup *t)
{
    struct hri_rng rng;
    hri_rng_seed(&rng, t->n + t->dk);
    const size_t width = t->dk + t->dv, rows = (size_t)t->heads * t->n;
    const uint32_t blocks_max = (t->n_blocks + 15) / 16 * 16;
    uint32_t *order = device_alloc(rows * 4), *block_of = device_alloc(rows * 4),
             *begin = device_alloc((size_t)t->heads * (t->n_blocks + 1) * 4);
    float *centres = device_normal(&rng, (size_t)t->heads * blocks_max * width, 1);
    void *device_rows = device_alloc(rows * width * 2);
    t->wide = malloc(rows * width * sizeof(float));
    t->left = malloc(rows * width * sizeof(float));
    assert_true(t->wide && t->left);
    fill_normal(&rng, t->wide, rows * width, 2);
    to_dtype(device_rows, t->wide, t->dtype, rows * width);
    for (uint32_t h = 0; h < t->heads; h++) {
        deal(&rng, t, order + h * t->n, begin + h * (t->n_blocks + 1), block_of + h * t->n);
        for (uint32_t i = 0; i < t->n; i++)
            for (size_t j = 0; j < width; j++) {
                const size_t at = (size_t)h * t->n + i;
                t->left[at * width + j] =
                    t->wide[((size_t)h * t->n + order[at]) * width + j] -
                    centres[((size_t)h * blocks_max + block_of[at]) * width + j];
            }
    }
    t->p = (struct hri_cuda_residual_args){device_rows, t->dtype, t->n,     t->n_blocks, blocks_max,
                                           order,       begin,    block_of, centres};
    t->matrix = device_normal(&rng, (size_t)t->heads * t->dk * t->dk, 1);
    t->z = device_alloc(rows * t->dk * sizeof(float));
    t->sum = device_alloc((size_t)t->heads * blocks_max * sizeof(float));
    t->most = device_alloc((size_t)t->heads * blocks_max * sizeof(float));
    t->moment = device_alloc((size_t)t->heads * width * width * sizeof(float));
}

static void check_turned(const struct setup *t)
{
    const size_t width = t->dk + t->dv;
    for (size_t row = 0; row < (size_t)t->heads * t->n; row++)
        for (uint32_t o = 0; o < t->dk; o++) {
            const float *m = t->matrix + (row / t->n * t->dk + o) * t->dk;
            double sum = 0, size = 0;
            for (uint32_t j = 0; j < t->dk; j++) {
                sum += (double)m[j] * (double)t->left[row * width + j];
                size += fabs((double)m[j] * (double)t->left[row * width + j]);
            }
            CHECK_BELOW(fabs((double)t->z[row * t->dk + o] - sum), tolerance * size);
        }
}

static void check_squares(const struct setup *t)
{
    for (uint32_t h = 0; h < t->heads; h++)
        for (uint32_t b = 0; b < t->n_blocks; b++) {
            const uint32_t *begin = t->p.block_begin + h * (t->n_blocks + 1) + b;
            double sum = 0, most = 0;
            for (uint32_t i = begin[0]; i < begin[1]; i++) {
                double square = 0;
                for (uint32_t j = 0; j < t->dk; j++)
                    square += pow((double)t->z[((size_t)h * t->n + i) * t->dk + j], 2);
                sum += square;
                most = fmax(most, square);
            }
            const size_t at = (size_t)h * t->p.blocks_max + b;
            CHECK_BELOW(fabs((double)t->sum[at] - sum), tolerance * sum);
            CHECK_BELOW(fabs((double)t->most[at] - most), tolerance * most);
        }
}

static void check_moment(const struct setup *t)
{
    const size_t width = t->dk + t->dv;
    for (uint32_t h = 0; h < t->heads; h++)
        for (size_t a = 0; a < width; a++)
            for (size_t b = 0; b <= a; b++) {
                double sum = 0, size = 0;
                for (uint32_t i = 0; i < t->n; i++) {
                    const float *x = t->left + ((size_t)h * t->n + i) * width;
                    sum += (double)x[a] * (double)x[b];
                    size += fabs((double)x[a] * (double)x[b]);
                }
                const float *got = t->moment + h * width * width;
                CHECK_BELOW(fabs((double)got[a * width + b] - sum), tolerance * size);
                assert_true(got[a * width + b] == got[b * width + a]);
            }
}

static void run(struct setup *t, int order)
{
    make(t);
    set_order(order);
    RUN(hri_cuda_residual_turn(&t->p, t->matrix, t->z, heads_of(t), NULL));
    check_turned(t);
    RUN(hri_cuda_residual_squares(&t->p, t->z, t->sum, t->most, heads_of(t), NULL));
    check_squares(t);
    RUN(hri_cuda_residual_moment(&t->p, t->moment, heads_of(t), NULL));
    check_moment(t);
    free(t->wide);
    free(t->left);
    device_free_all();
}

static void test_residuals(void **state)
{
    (void)state;
    const uint32_t counts[] = {1, 17, 100};
    FOR_EACH(d, cuda_dims)
    {
        const uint32_t n = counts[d % 3];
        struct setup t = {.heads = 1 + (uint32_t)d % 2,
                          .dk = cuda_dims[d][0],
                          .dv = cuda_dims[d][1],
                          .n = n,
                          .n_blocks = n / 18 + 2,
                          .dtype = dtypes[1 + d % 2]};
        CASE("residual %u+%u, %u rows, dtype %d", t.dk, t.dv, t.n, t.dtype);
        run(&t, (int)(d % 3));
    }
}

/* ------------------------------------------------------------------------------------------ missed */
static double rounded(double z, double step, uint32_t most)
{
    double code = step > 0 ? rint(z / step + 0.5 * most) : 0.5 * most;
    code = code < 0 ? 0 : code > most ? most : code;
    return (code - 0.5 * most) * step;
}

/* One block, as index/sketch.c has it. */
static void check_block(const struct setup *t, const struct hri_cuda_missed_args *p, uint32_t b)
{
    const uint32_t first = p->block_begin[b], end = p->block_begin[b + 1], n = p->n4 + p->n2;
    const size_t width = t->dk + t->dv;
    double mean[HR_HEAD_DIM_MAX] = {0}, z_mean[HR_HEAD_DIM_MAX] = {0}, square = 0, product = 0,
           raw = 0;
    for (uint32_t i = first; i < end; i++)
        for (uint32_t j = 0; j < n; j++) {
            double z = (double)p->z[i * t->dk + j],
                   y = rounded(z, (double)p->step[j], j < p->n4 ? 15 : 3);
            mean[j] += y / (end - first);
            z_mean[j] += z / (end - first);
            square += y * y;
            product += y * z;
        }
    raw = square;
    for (uint32_t j = 0; j < n; j++) {
        square -= (end - first) * mean[j] * mean[j];
        product -= (end - first) * mean[j] * z_mean[j];
    }
    double gain = square > 1e-6 * raw ? 128 * product / square : 0;
    gain = gain > 255 ? 255 : gain > 0 ? rint(gain) : 0;
    if (first < end)
        CHECK_BELOW(fabs((double)p->gain[b] - gain), 1);
    for (uint32_t i = first; i < end; i++) {
        double all = 0, missed = 0, plain = 0, value = 0;
        for (uint32_t j = 0; j < t->dk; j++) {
            double x = (double)p->z[i * t->dk + j];
            all += x * x;
            if (j < n)
                x -= p->gain[b] / 128.0 *
                     (rounded(x, (double)p->step[j], j < p->n4 ? 15 : 3) - mean[j]);
            missed += x * x;
            plain += x * x * (double)p->length[j];
        }
        for (uint32_t j = t->dk; j < width; j++)
            value += pow((double)t->left[i * width + j], 2);
        CHECK_BELOW(fabs((double)p->far[i] - all), 1e-4 * all);
        CHECK_BELOW(fabs((double)p->missed[i] - missed), 1e-4 * (missed + 1e-3 * all));
        CHECK_BELOW(fabs((double)p->plain[i] - plain), 1e-4 * (plain + 1e-3 * all));
        CHECK_BELOW(fabs((double)p->value[i] - value), 1e-4 * value);
    }
}

static void run_missed(struct setup *t, uint32_t n4, uint32_t n2, int order)
{
    make(t);
    struct hri_rng rng;
    hri_rng_seed(&rng, n4 + 3 * n2);
    float *step = device_alloc(t->dk * sizeof *step),
          *length = device_alloc(t->dk * sizeof *length);
    for (uint32_t j = 0; j < t->dk; j++) {
        step[j] = j % 11 == 5 ? 0 : 0.2f + hri_rng_f32(&rng);
        length[j] = 0.5f + hri_rng_f32(&rng);
    }
    float *z = device_normal(&rng, (size_t)t->n * t->dk, 1);
    const size_t rows = t->n * sizeof(float);
    struct hri_cuda_missed_args p = {.z = z,
                                     .step = step,
                                     .length = length,
                                     .n4 = n4,
                                     .n2 = n2,
                                     .dk = t->dk,
                                     .dv = t->dv,
                                     .n_blocks = t->n_blocks,
                                     .rows = t->p.rows,
                                     .dtype = t->dtype,
                                     .order = t->p.order,
                                     .block_begin = t->p.block_begin,
                                     .centres = t->p.centres,
                                     .gain = device_alloc(t->n_blocks),
                                     .far = device_alloc(rows),
                                     .missed = device_alloc(rows),
                                     .plain = device_alloc(rows),
                                     .value = device_alloc(rows)};
    set_order(order);
    RUN(hri_cuda_missed(&p, NULL));
    for (uint32_t b = 0; b < t->n_blocks; b++)
        check_block(t, &p, b);
    free(t->wide);
    free(t->left);
    device_free_all();
}

static void test_missed(void **state)
{
    (void)state;
    FOR_EACH(d, cuda_dims)
    {
        struct setup t = {.heads = 1,
                          .dk = cuda_dims[d][0],
                          .dv = cuda_dims[d][1],
                          .n = 100,
                          .n_blocks = 7,
                          .dtype = dtypes[1 + d % 2]};
        const uint32_t n4 = d % 3 == 0 ? t.dk / 2 / 8 * 8 : 0, n2 = (t.dk - n4) / 16 * 16;
        CASE("missed %u+%u, %u and %u coded, dtype %d", t.dk, t.dv, n4, n2, t.dtype);
        run_missed(&t, n4, d % 2 ? n2 : 0, (int)(d % 3));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {EMU_TEST(test_residuals), EMU_TEST(test_missed)};
    return cmocka_run_group_tests(tests, small_machine, NULL);
}
