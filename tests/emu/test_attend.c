/* Decode attention at all levels against the reference in double: exact rows by attend_rows and
 * attend_gather, int8 blocks by attend_block_i8, summaries one by one.
 *
 * Tolerances: queries and weights keep 15 or 16 bits (two terms), so outputs agree to 2e-4 of their
 * size and log-sum-exps to 2e-4, where logits are a few units; the error grows with the logits. */
#include "tests/emu/emu_test.h"

#define TOLERANCE 2e-4

struct setup {
    struct hri_cuda_heads heads;
    hr_dtype_t dtype;
    float soft_cap;
    uint32_t n_sink, n_tail, tail_first, n_paged, blocks[3], blocks_max, rows_max;
    uint32_t refined_every; /* one block in so many is refined; 0: none */
    bool
        split; /* blocks are refined in two parts of rows_max rows, and what is left of them is estimated */
    bool added; /* values come on top */
    bool estimate, shift, part;
    float q_size;
    struct hri_cuda_attend_args a;
    uint32_t *n_blocks;
};

static void *rows_of(struct hri_rng *rng, size_t n, size_t width, hr_dtype_t dtype)
{
    float *wide = malloc(n * width * sizeof *wide + 4);
    void *rows = device_alloc(n * width * dtype_bytes(dtype));
    assert_non_null(wide);
    fill_normal(rng, wide, n * width, 1);
    to_dtype(rows, wide, dtype, n * width);
    free(wide);
    return rows;
}

static uint32_t *number(uint32_t x)
{
    return device_copy(&x, sizeof x);
}

#define PAGE_ROWS 32u

static void make_runs(struct setup *t, struct hri_rng *rng)
{
    const struct hri_cuda_heads hd = t->heads;
    const size_t width = hd.dk + hd.dv, row = width * dtype_bytes(t->dtype);
    struct hri_cuda_run *runs = t->a.runs;
    const uint32_t capacity = t->n_tail + 5;
    if (t->n_sink)
        runs[t->a.n_runs++] =
            (struct hri_cuda_run){.rows = rows_of(rng, hd.n * t->n_sink, width, t->dtype),
                                  .head_stride_bytes = t->n_sink * row,
                                  .n = number(t->n_sink),
                                  .capacity = t->n_sink};
    if (t->n_tail)
        runs[t->a.n_runs++] =
            (struct hri_cuda_run){.rows = rows_of(rng, hd.n * capacity, width, t->dtype),
                                  .head_stride_bytes = capacity * row,
                                  .n = number(t->n_tail),
                                  .first = number(t->tail_first),
                                  .capacity = capacity};
    if (t->n_paged) {
        const uint32_t pages_max = (t->n_paged + PAGE_ROWS - 1) / PAGE_ROWS, all = hd.n * pages_max;
        uint32_t *pages = device_alloc(all * 4);
        for (uint32_t i = 0; i < all; i++) /* all heads in one pool, backwards */
            pages[i] = all - 1 - i;
        runs[t->a.n_runs++] =
            (struct hri_cuda_run){.rows = rows_of(rng, all * PAGE_ROWS, width, t->dtype),
                                  .n = number(t->n_paged),
                                  .pages = pages,
                                  .pages_max = pages_max,
                                  .page_rows = PAGE_ROWS};
    }
}

static float *steps_of(struct hri_rng *rng, size_t n, float most)
{
    float *steps = device_alloc(n * sizeof *steps);
    for (size_t i = 0; i < n; i++)
        steps[i] = most * (0.2f + hri_rng_f32(rng));
    return steps;
}

static void make_blocks(struct setup *t, struct hri_rng *rng)
{
    const struct hri_cuda_heads hd = t->heads;
    const size_t blocks = (size_t)hd.n * t->blocks_max, hg = (size_t)hd.n * hd.g;
    struct hri_cuda_attend_args *a = &t->a;
    a->blocks_max = t->blocks_max;
    a->stride = t->blocks_max;
    a->v_codes = device_codes(rng, blocks * hd.dv);
    a->v_scale = steps_of(rng, blocks, 0.01f);
    t->n_blocks = device_copy(t->blocks, hd.n * 4);
    if (t->refined_every) {
        const uint32_t items_max = t->blocks_max;
        uint32_t *items = device_alloc(hd.n * items_max * 4),
                 *frames = device_alloc(hd.n * items_max * 4), *n_items = device_zero(hd.n * 4),
                 n_frames = 0;
        uint8_t *rows = device_alloc(blocks);
        for (size_t b = 0; b < blocks; b++)
            rows[b] = (uint8_t)(1 + hri_rng_below(rng, (1 + t->split) * t->rows_max));
        for (uint32_t h = 0; h < hd.n; h++)
            for (uint32_t b = 0; b < t->blocks[h]; b += t->refined_every) {
                const bool second = rows[(size_t)h * t->blocks_max + b] > t->rows_max && b % 4 != 0;
                items[h * items_max + n_items[h]] = t->split ? 2 * b + second : b;
                frames[h * items_max + n_items[h]++] = b % 5 == 4 ? HRI_CUDA_NONE : n_frames++;
            }
        const uint32_t frame_bytes = t->rows_max * (hd.dk + hd.dv);
        a->refined =
            (struct hri_cuda_refined){.items = items,
                                      .n_items = n_items,
                                      .frames_of = frames,
                                      .items_max = items_max,
                                      .rows_max = t->rows_max,
                                      .frames = device_codes(rng, (size_t)n_frames * frame_bytes),
                                      .frame_bytes = frame_bytes,
                                      .k_step = steps_of(rng, blocks, 0.02f),
                                      .v_step = steps_of(rng, blocks, 0.02f),
                                      .rows = rows,
                                      .dots = device_normal(rng, hg * a->stride, 1),
                                      .parts = 1 + t->split};
        const size_t up = (size_t)hd.n * hri_cuda_g_up(hd.g);
        struct hri_cuda_shape shape = {0};
        struct hri_cuda_query_out out = {
            .i8 = {device_alloc(up * 2 * hri_cuda_dk_up(hd.dk)), device_alloc(up * 4)}};
        RUN(hri_cuda_query(a->q, hd, &shape, &out, NULL));
        a->q8 = out.i8;
    }
    if (t->estimate) {
        uint8_t *mark = device_alloc(blocks);
        uint16_t *spread = device_alloc(blocks * 2);
        for (size_t b = 0; b < blocks; b++)
            spread[b] = hri_bf16_from_f32(hri_rng_f32(rng));
        float *mass = device_normal(rng, hg * a->stride, 2);
        mass[0] = -INFINITY;
        const bool marked = t->refined_every && !t->split;
        RUN(hri_cuda_mark(&a->refined, t->n_blocks, t->blocks_max, mark, marked ? hd.n : 0, NULL));
        a->estimate = (struct hri_cuda_estimate){
            .n = t->n_blocks, .log_mass = mass, .mark = marked ? mark : NULL};
        if (t->shift) {
            a->estimate.spread = spread;
            a->estimate.shift = device_normal(rng, hg * hd.dv, 0.5);
        }
    }
}

static void make(struct setup *t, uint64_t seed)
{
    struct hri_rng rng;
    hri_rng_seed(&rng, seed);
    const struct hri_cuda_heads hd = t->heads;
    const size_t hg = (size_t)hd.n * hd.g;
    t->a = (struct hri_cuda_attend_args){.dtype = t->dtype, .soft_cap = t->soft_cap};
    t->a.q = device_normal(&rng, hg * hd.dk, (double)(t->q_size ? t->q_size : 1) / sqrt(hd.dk));
    make_runs(t, &rng);
    make_blocks(t, &rng);
    if (t->part) {
        t->a.n_parts = 2;
        t->a.parts_out = device_normal(&rng, 2 * hg * hd.dv, 1);
        float *lse = device_normal(&rng, 2 * hg, 2);
        lse[0] = -INFINITY;
        t->a.parts_lse = lse;
    }
    if (t->added) {
        t->a.added = device_normal(&rng, hg * hd.dv, 1);
        t->a.added_top = device_normal(&rng, hg, 1);
    }
    t->a.out = device_alloc(hg * hd.dv * 4);
    t->a.lse = device_alloc(hg * 4);
    t->a.work = device_alloc(hri_cuda_attend_work(hd) * 4);
    t->a.arrived = device_zero(hri_cuda_attend_counters(hd) * 4);
}

static void want_runs(const struct setup *t, uint32_t h, uint32_t g, struct hri_partial *part)
{
    const struct hri_kernels *ref = hri_kernels_get(HRI_KERNEL_REF);
    const struct hri_cuda_heads hd = t->heads;
    const size_t row = (hd.dk + hd.dv) * dtype_bytes(t->dtype);
    for (uint32_t r = 0; r < t->a.n_runs; r++) {
        const struct hri_cuda_run *run = &t->a.runs[r];
        const char *base = (const char *)run->rows + h * run->head_stride_bytes;
        for (uint32_t i = 0; i < *run->n; i++) {
            size_t at = run->pages
                            ? (size_t)run->pages[h * run->pages_max + i / PAGE_ROWS] * PAGE_ROWS +
                                  i % PAGE_ROWS
                            : ((run->first ? *run->first : 0) + i) % run->capacity;
            const void *p = base + at * row;
            ref->attend_gather(t->a.q + ((size_t)h * hd.g + g) * hd.dk, 1, hd.dk, hd.dv, &p, 1,
                               t->dtype, t->soft_cap, part);
        }
    }
}

static void want_blocks(const struct setup *t, uint32_t h, uint32_t g, struct hri_partial *part)
{
    const struct hri_kernels *ref = hri_kernels_get(HRI_KERNEL_REF);
    const struct hri_cuda_heads hd = t->heads;
    const struct hri_cuda_attend_args *a = &t->a;
    const size_t head = (size_t)h * hd.g + g;
    uint8_t *refined = calloc(1, t->blocks_max);
    float centre[HR_HEAD_DIM_MAX];
    assert_non_null(refined);
    for (uint32_t k = 0; a->refined.items && k < a->refined.n_items[h]; k++) {
        const uint32_t item = a->refined.items[h * a->refined.items_max + k],
                       b = item / a->refined.parts, before = item % a->refined.parts * t->rows_max,
                       f = a->refined.frames_of[h * a->refined.items_max + k];
        const size_t block = (size_t)h * t->blocks_max + b;
        const uint32_t left = a->refined.rows[block] - before;
        if (f == HRI_CUDA_NONE)
            continue;
        refined[b] = !t->split;
        for (uint32_t j = 0; j < hd.dv; j++)
            centre[j] = a->v_scale[block] * (float)a->v_codes[block * hd.dv + j];
        struct hri_block_i8 i8 = {a->refined.frames + (size_t)f * a->refined.frame_bytes,
                                  a->refined.dots + head * a->stride + b,
                                  centre,
                                  a->refined.k_step[block],
                                  a->refined.v_step[block],
                                  left < t->rows_max ? left : t->rows_max,
                                  NULL,
                                  0};
        ref->attend_block_i8(a->q + head * hd.dk, 1, hd.dk, hd.dv, &i8, t->soft_cap, part);
    }
    for (uint32_t b = 0; a->estimate.log_mass && b < t->blocks[h]; b++) {
        const size_t block = (size_t)h * t->blocks_max + b;
        if (refined[b])
            continue;
        for (uint32_t j = 0; j < hd.dv; j++) {
            centre[j] = a->v_scale[block] * (float)a->v_codes[block * hd.dv + j];
            if (t->shift)
                centre[j] += hri_f32_from_bf16(a->estimate.spread[block]) *
                             a->estimate.shift[head * hd.dv + j];
        }
        hri_partial_add(part, 1, hd.dv, a->estimate.log_mass + head * a->stride + b, centre);
    }
    free(refined);
}

static void check(const struct setup *t, uint32_t h, uint32_t g)
{
    const struct hri_cuda_heads hd = t->heads;
    const size_t head = (size_t)h * hd.g + g, hg = (size_t)hd.n * hd.g;
    float m, l, o[HR_HEAD_DIM_MAX], out[HR_HEAD_DIM_MAX], lse;
    struct hri_partial part = {&m, &l, o};
    hri_partial_clear(&part, 1, hd.dv);
    want_runs(t, h, g, &part);
    want_blocks(t, h, g, &part);
    for (uint32_t p = 0; p < t->a.n_parts; p++)
        hri_partial_add(&part, 1, hd.dv, t->a.parts_lse + p * hg + head,
                        t->a.parts_out + (p * hg + head) * hd.dv);
    hri_partial_finish(&part, 1, hd.dv, out, &lse);
    for (uint32_t j = 0; t->added && !isinf(lse) && j < hd.dv; j++)
        out[j] += expf(t->a.added_top[head] - lse) * t->a.added[head * hd.dv + j];
    const float *got = t->a.out + head * hd.dv;
    if (isinf(lse)) {
        assert_true(isinf(t->a.lse[head]) && t->a.lse[head] < 0);
        CHECK_BELOW(absolute_error(got, out, hd.dv), 0);
        return;
    }
    const double tolerance = TOLERANCE * fmax(1, (double)t->q_size / 4);
    CHECK_BELOW(relative_error(got, out, hd.dv), tolerance);
    CHECK_BELOW(fabs((double)(t->a.lse[head] - lse)), tolerance);
}

static void run(struct setup *t, int order)
{
    if (t->blocks_max == 0)
        t->blocks_max = 16;
    if (t->rows_max == 0)
        t->rows_max = 33;
    make(t, 1000 + t->n_tail + t->heads.dk);
    set_order(order);
    for (int again = 0; again < 2; again++)
        RUN(hri_cuda_attend(&t->a, t->heads, NULL));
    for (uint32_t h = 0; h < t->heads.n; h++)
        for (uint32_t g = 0; g < t->heads.g; g++)
            check(t, h, g);
    device_free_all();
}

static void test_everything_by_dims(void **state)
{
    (void)state;
    FOR_EACH(d, cuda_dims)
    for (int f16 = 0; f16 < 2; f16++) {
        struct setup t = {.heads = {2, 4, cuda_dims[d][0], cuda_dims[d][1]},
                          .dtype = f16 ? HR_DTYPE_F16 : HR_DTYPE_BF16,
                          .n_sink = 4,
                          .n_tail = 70,
                          .tail_first = 33,
                          .n_paged = 65,
                          .blocks = {37, 21},
                          .blocks_max = 48,
                          .refined_every = 3,
                          .estimate = true,
                          .shift = d % 2,
                          .part = f16};
        CASE("attend %u+%u, dtype %d", t.heads.dk, t.heads.dv, t.dtype);
        run(&t, (int)(d % 3));
    }
}

/* Parts of blocks, whose other rows are estimated, and what their sketches add. */
static void test_parts(void **state)
{
    (void)state;
    FOR_EACH(d, cuda_dims)
    FOR_EACH_ORDER(order)
    {
        struct setup t = {.heads = {2, d % 2 ? 9 : 3, cuda_dims[d][0], cuda_dims[d][1]},
                          .dtype = HR_DTYPE_BF16,
                          .n_tail = d % 3 ? 20 : 0,
                          .blocks = {37, 21},
                          .blocks_max = 48,
                          .rows_max = 16 + 8 * (uint32_t)(d % 2),
                          .refined_every = 2,
                          .split = true,
                          .added = true,
                          .estimate = true};
        CASE("parts, attend %u+%u order %d", t.heads.dk, t.heads.dv, order);
        run(&t, order);
    }
}

static void test_groups(void **state)
{
    (void)state;
    FOR_EACH(g, cuda_groups)
    {
        struct setup t = {.heads = {1, cuda_groups[g], 64, 64},
                          .dtype = HR_DTYPE_BF16,
                          .n_tail = 40,
                          .blocks = {20},
                          .blocks_max = 32,
                          .refined_every = 2,
                          .estimate = true,
                          .soft_cap = g % 2 ? 3 : 0,
                          .shift = true};
        CASE("attend %u heads", t.heads.g);
        run(&t, (int)(g % 3));
    }
}

static void test_lengths(void **state)
{
    (void)state;
    const uint32_t counts[] = {0, 1, 15, 16, 17, 31, 32, 33, 300};
    FOR_EACH(i, counts)
    {
        const uint32_t n = counts[i];
        struct setup exact = {.heads = {2, 3, 64, 64}, .dtype = HR_DTYPE_F16, .n_tail = n};
        CASE("attend %u rows", n);
        run(&exact, (int)(i % 3));
        struct setup pages = {.heads = {2, 1, 128, 128}, .dtype = HR_DTYPE_BF16, .n_paged = n};
        CASE("attend %u rows in pages", n);
        run(&pages, (int)(i % 3));
        struct setup blocks = {.heads = {2, 2, 64, 64},
                               .dtype = HR_DTYPE_BF16,
                               .blocks = {n, n / 2},
                               .blocks_max = 304,
                               .estimate = true,
                               .refined_every = n > 40 ? 9 : 1,
                               .rows_max = n < 33 ? n + 1 : 48};
        CASE("attend %u blocks", n);
        run(&blocks, (int)(i % 3));
        blocks.refined_every = 0;
        run(&blocks, (int)(i % 3));
    }
}

/* Logits far apart: what came before vanishes beside what comes. */
static void test_peaked(void **state)
{
    (void)state;
    for (int order = 0; order < 3; order++) {
        struct setup t = {.heads = {2, 2, 64, 64},
                          .dtype = order % 2 ? HR_DTYPE_F16 : HR_DTYPE_BF16,
                          .n_tail = 100,
                          .blocks = {30, 30},
                          .blocks_max = 32,
                          .refined_every = 4,
                          .estimate = true,
                          .q_size = 30};
        CASE("attend peaked, order %d", order);
        run(&t, order);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {EMU_TEST(test_everything_by_dims), EMU_TEST(test_parts),
                                       EMU_TEST(test_groups), EMU_TEST(test_lengths),
                                       EMU_TEST(test_peaked)};
    return cmocka_run_group_tests(tests, small_machine, NULL);
}
