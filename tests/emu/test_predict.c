/* A step's knowledge of its own error against docs/algorithm.md in double; counts exactly. What is left of
 * the mass is a difference, hence 1e-3. A block whose
 * share is within 1e-5 of the 0.2 % at which its own value counts is avoided by the data. */
#include "tests/emu/emu_test.h"

#define TOLERANCE 1e-3

struct setup {
    struct hri_cuda_heads heads;
    uint32_t n[3], blocks_max;
    struct hri_cuda_factor_args f;
    struct hri_cuda_predict_args p;
};

static void make_scores(struct setup *t, struct hri_rng *rng)
{
    const size_t hg = (size_t)t->heads.n * t->heads.g, stride = t->blocks_max;
    float *mass = device_normal(rng, hg * stride, 2.0), *top = device_alloc(hg * 4),
          *total = device_alloc(hg * 4), *near = device_normal(rng, hg, 1.0);
    for (size_t i = 0; i < hg; i++) {
        const uint32_t n = t->n[i / t->heads.g];
        if (i % 3 == 1 && n > 0)
            near[i] = -INFINITY;
        top[i] = near[i];
        for (uint32_t b = 0; b < n; b++)
            top[i] = fmaxf(top[i], mass[i * stride + b]);
        double sum = exp((double)near[i] - top[i]);
        for (uint32_t b = 0; b < n; b++)
            sum += exp((double)mass[i * stride + b] - top[i]);
        total[i] = (float)sum;
        for (uint32_t b = 0; b < n; b++) {
            double share = exp((double)mass[i * stride + b] - top[i]) / sum;
            if (fabs(share / 0.002 - 1) < 5e-3)
                mass[i * stride + b] -= 0.02f;
        }
    }
    t->f.log_mass = mass;
    t->f.top = top;
    t->f.total = total;
    t->f.near_lse = near;
    t->f.stride = stride;
}

static void make(struct setup *t, uint64_t seed)
{
    struct hri_rng rng;
    hri_rng_seed(&rng, seed);
    const struct hri_cuda_heads hd = t->heads;
    const size_t hg = (size_t)hd.n * hd.g, blocks = (size_t)hd.n * t->blocks_max;
    make_scores(t, &rng);
    float *scale = device_alloc(blocks * 4), *v_variance = device_alloc(hd.n * 4);
    for (size_t b = 0; b < blocks; b++)
        scale[b] = 0.01f + 0.02f * hri_rng_f32(&rng);
    for (uint32_t h = 0; h < hd.n; h++)
        v_variance[h] = 1 + hri_rng_f32(&rng);
    t->f.near_out = device_normal(&rng, hg * hd.dv, 1);
    t->f.v_codes = device_codes(&rng, blocks * hd.dv);
    t->f.v_scale = scale;
    t->f.v_mean = device_normal(&rng, (size_t)hd.n * hd.dv, 0.3);
    t->f.v_variance = v_variance;
    t->f.n = device_copy(t->n, hd.n * 4);
    t->f.blocks_max = t->blocks_max;
    t->f.factor = device_alloc(hg * 4);
    t->f.common = device_alloc(hg * 4);
    const uint32_t items_max = t->blocks_max;
    uint16_t *spread = device_alloc(blocks * 2);
    uint8_t *rows = device_alloc(blocks), *mark = device_alloc(blocks),
            *class_ = device_zero(blocks);
    uint32_t *items = device_alloc(blocks * 4), *n_items = device_zero(hd.n * 4),
             *frames = device_alloc(blocks * 4);
    float *variance = device_alloc(hg * 4);
    for (size_t i = 0; i < hg; i++)
        variance[i] = 3 * hri_rng_f32(&rng);
    for (size_t b = 0; b < blocks; b++) {
        spread[b] = hri_bf16_from_f32(2 * hri_rng_f32(&rng));
        rows[b] = (uint8_t)(1 + hri_rng_below(&rng, 80));
        mark[b] = 1;
    }
    for (uint32_t h = 0; h < hd.n; h++)
        for (uint32_t b = 0; b < t->n[h]; b++) {
            if (hri_rng_below(&rng, 3) != 0)
                continue;
            const size_t item = (size_t)h * items_max + n_items[h]++,
                         block = (size_t)h * t->blocks_max + b;
            items[item] = b;
            frames[item] = hri_rng_below(&rng, 4) == 0 ? HRI_CUDA_NONE : b;
            mark[block] = frames[item] == HRI_CUDA_NONE;
            class_[block] = (uint8_t)hri_rng_below(&rng, 2);
        }
    t->p = (struct hri_cuda_predict_args){.log_mass = t->f.log_mass,
                                          .top = t->f.top,
                                          .total = t->f.total,
                                          .stride = t->f.stride,
                                          .variance = variance,
                                          .factor = t->f.factor,
                                          .common = t->f.common,
                                          .spread = spread,
                                          .rows = rows,
                                          .mark = mark,
                                          .n = t->f.n,
                                          .blocks_max = t->blocks_max,
                                          .items = items,
                                          .n_items = n_items,
                                          .frames_of = frames,
                                          .items_max = items_max,
                                          .class_ = class_,
                                          .predicted = device_alloc(hg * 4),
                                          .late = device_alloc(hg * 4),
                                          .counts = device_alloc((size_t)hd.n * 6 * 4)};
}

static double factor_of(const struct setup *t, size_t at, double *common_out)
{
    const uint32_t h = (uint32_t)(at / t->heads.g), dv = t->heads.dv;
    const double top = t->f.top[at], near = exp(t->f.near_lse[at] - top);
    double output[HR_HEAD_DIM_MAX] = {0}, rest = 0, total = near, far = 0, size = 0;
    for (uint32_t b = 0; b < t->n[h]; b++)
        total += exp(t->f.log_mass[at * t->f.stride + b] - top);
    for (uint32_t j = 0; j < dv; j++)
        output[j] = near * t->f.near_out[at * dv + j];
    for (uint32_t b = 0; b < t->n[h]; b++) {
        const double w = exp(t->f.log_mass[at * t->f.stride + b] - top);
        const size_t block = (size_t)h * t->blocks_max + b;
        if (w < 0.002 * total) {
            rest += w;
            continue;
        }
        for (uint32_t j = 0; j < dv; j++)
            output[j] += w * t->f.v_scale[block] * t->f.v_codes[block * dv + j];
    }
    for (uint32_t j = 0; j < dv; j++) {
        const double mean = t->f.v_mean[h * dv + j], x = (output[j] + rest * mean) / total;
        far += (x - mean) * (x - mean);
        size += x * x;
    }
    *common_out = far / size;
    return (far + (double)t->f.v_variance[h]) / size;
}

static double doubt_of(const struct setup *t, size_t at, uint32_t b)
{
    const size_t block = at / t->heads.g * t->blocks_max + b;
    const double p = exp(t->p.log_mass[at * t->p.stride + b] - t->p.top[at]) / t->p.total[at];
    const double v = fmin(t->p.variance[at] * hri_f32_from_bf16(t->p.spread[block]), 3);
    return p * p * (v + v * v / 2 + v * v * v / 6 + v * v * v * v / 24 + 0.3) / t->p.rows[block];
}

static double drift_of(const struct setup *t, size_t at, uint32_t b)
{
    const size_t block = at / t->heads.g * t->blocks_max + b;
    const double p = exp(t->p.log_mass[at * t->p.stride + b] - t->p.top[at]) / t->p.total[at];
    return 0.05 * p * fmin(t->p.variance[at] * hri_f32_from_bf16(t->p.spread[block]), 6);
}

static void check(const struct setup *t)
{
    for (size_t at = 0; at < (size_t)t->heads.n * t->heads.g; at++) {
        const uint32_t h = (uint32_t)(at / t->heads.g);
        double left = 0, late = 0, drift = 0, drift_late = 0, common;
        const double factor = factor_of(t, at, &common);
        CHECK_BELOW(fabs(t->f.common[at] - common), TOLERANCE * factor);
        CHECK_BELOW(fabs(t->f.factor[at] / factor - 1), TOLERANCE);
        for (uint32_t b = 0; b < t->n[h]; b++)
            if (t->p.mark[h * t->blocks_max + b]) {
                left += doubt_of(t, at, b);
                drift += drift_of(t, at, b);
            }
        for (uint32_t i = 0; i < t->p.n_items[h]; i++) {
            const size_t item = (size_t)h * t->p.items_max + i;
            if (t->p.frames_of[item] == HRI_CUDA_NONE) {
                late += doubt_of(t, at, t->p.items[item]);
                drift_late += drift_of(t, at, t->p.items[item]);
            }
        }
        const double want = sqrt(left * factor + drift * drift * common),
                     want_late = sqrt(late * factor + drift_late * drift_late * common);
        CHECK_BELOW(fabs(t->p.predicted[at] - want), TOLERANCE * want + 1e-9);
        CHECK_BELOW(fabs(t->p.late[at] - want_late), TOLERANCE * want_late + 1e-9);
    }
    for (uint32_t h = 0; h < t->heads.n; h++) {
        uint32_t want[6] = {0};
        for (uint32_t i = 0; i < t->p.n_items[h]; i++) {
            const size_t item = (size_t)h * t->p.items_max + i;
            const size_t block = (size_t)h * t->blocks_max + t->p.items[item];
            const bool came = t->p.frames_of[item] != HRI_CUDA_NONE;
            const uint32_t rows = t->p.rows[block];
            want[0] += came, want[3] += came ? rows : 0;
            want[1] += came && t->p.class_[block], want[4] += came && t->p.class_[block] ? rows : 0;
            want[2] += !came, want[5] += came ? 0 : rows;
        }
        assert_memory_equal(want, t->p.counts + h * 6, sizeof want);
    }
}

static void test_predict(void **state)
{
    (void)state;
    const uint32_t n[][3] = {{300, 0, 700}, {1, 2, 16}, {256, 257, 255}};
    FOR_EACH_ORDER(order)
    for (size_t d = (size_t)order; d < sizeof cuda_dims / sizeof *cuda_dims; d += 3)
        for (size_t i = 0; i < sizeof n / sizeof *n; i++) {
            struct setup t = {
                .heads = {3, cuda_groups[(d + i) % 9], cuda_dims[d][0], cuda_dims[d][1]},
                .blocks_max = 704};
            memcpy(t.n, n[i], sizeof t.n);
            CASE("dv %u, g %u, blocks %u, order %d", t.heads.dv, t.heads.g, n[i][0], order);
            set_order(order);
            make(&t, 77 + d);
            RUN(hri_cuda_factor(&t.f, t.heads, NULL));
            RUN(hri_cuda_predict(&t.p, t.heads, NULL));
            check(&t);
            device_free_all();
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {EMU_TEST(test_predict)};
    return cmocka_run_group_tests(tests, small_machine, NULL);
}
