/* Whole steps of one layer by the kernels: recorded once, replayed for every token while the sequence
 * grows, with far fewer frames than blocks. Each is compared with the same step in double on the CPU.
 *
 *   append . query . window . score . worth . select . resolve . gather . mark . attend
 *
 * Which blocks are refined is checked in two halves: their worth against docs/algorithm.md in double,
 * and the choice against the worth, exactly (test_select). Worth is a square of exp(score), and a
 * score may be off by 2^-13 |q|_inf sum |centre| (test_score), some 0.002 here: 5e-3. The output is
 * then that of the blocks chosen, to 1e-3 of its size. */
#include "tests/emu/emu_test.h"

#define HEADS      2u
#define GROUP      4u
#define DIM        64u
#define ROWS       700u
#define BLOCKS     40u
#define BLOCKS_MAX 48u
#define SINK       4u
#define TAIL       64u
#define ROWS_MAX   40u
#define FRAME      (ROWS_MAX * 2 * DIM)
#define RANK       8u
#define TOLERANCE  1e-3
#define WORTH      5e-3

static const struct hri_cuda_heads heads = {HEADS, GROUP, DIM, DIM};

struct layer {
    uint32_t n_frames;
    float *q, *k_new, *v_new;
    uint32_t *length; /* of the tail */
    struct hri_cuda_append_args append;
    struct hri_cuda_shape shape;
    struct hri_cuda_query_out query;
    struct hri_cuda_pack_args blocks;
    struct hri_cuda_summaries summaries;
    struct hri_cuda_score_args score;
    struct hri_cuda_worth_args worth;
    struct hri_cuda_select_args select;
    struct hri_cuda_residency table;
    struct hri_cuda_resolve_args resolve;
    struct hri_cuda_gather_args gather;
    struct hri_cuda_attend_args near, all;
    unsigned char *host;
    struct hri_emu_graph *graph;
};

/* ----------------------------------------------------------------------------------------- setting up */

static void make_blocks(struct layer *l, struct hri_rng *rng)
{
    const size_t width = 2 * DIM, blocks = HEADS * BLOCKS_MAX;
    float *wide = malloc(HEADS * ROWS * width * 4);
    uint32_t *order = device_alloc(HEADS * ROWS * 4),
             *begin = device_alloc(HEADS * (BLOCKS + 1) * 4);
    uint16_t *rows = device_alloc(HEADS * ROWS * width * 2);
    assert_non_null(wide);
    for (uint32_t h = 0; h < HEADS; h++)
        for (uint32_t b = 0; b <= BLOCKS; b++) {
            begin[h * (BLOCKS + 1) + b] = b * ROWS / BLOCKS;
            for (uint32_t i = b * ROWS / BLOCKS; b < BLOCKS && i < (b + 1) * ROWS / BLOCKS; i++) {
                order[h * ROWS + i] = ROWS - 1 - i;
                float *row = wide + (h * (size_t)ROWS + ROWS - 1 - i) * width;
                struct hri_rng centre; /* rows of a block lie around a point of their own */
                hri_rng_seed(&centre, h * 1000 + b);
                for (size_t j = 0; j < width; j++)
                    row[j] = (float)(1.5 * hri_rng_normal(&centre) + 0.5 * hri_rng_normal(rng));
            }
        }
    to_dtype(rows, wide, HR_DTYPE_BF16, HEADS * ROWS * width);
    free(wide);
    l->blocks = (struct hri_cuda_pack_args){.rows = rows,
                                            .dtype = HR_DTYPE_BF16,
                                            .n = ROWS,
                                            .n_blocks = BLOCKS,
                                            .order = order,
                                            .block_begin = begin,
                                            .k_mean = device_normal(rng, HEADS * DIM, 0.3),
                                            .blocks_max = BLOCKS_MAX,
                                            .k_codes = device_alloc(blocks * DIM),
                                            .v_codes = device_alloc(blocks * DIM),
                                            .k_scale = device_zero(blocks * 4),
                                            .v_scale = device_zero(blocks * 4),
                                            .block_rows = device_zero(blocks),
                                            .codes = device_alloc(HEADS * ROWS * width),
                                            .k_step = device_zero(blocks * 4),
                                            .v_step = device_zero(blocks * 4)};
    RUN(hri_cuda_pack(&l->blocks, heads, NULL));
}

/* The int8 rows move to host memory, one block after the other. */
static void make_host(struct layer *l)
{
    const size_t width = 2 * DIM;
    uint64_t *offset = device_zero(HEADS * BLOCKS_MAX * 8);
    uint32_t *bytes = device_zero(HEADS * BLOCKS_MAX * 4);
    l->host = malloc(HEADS * ROWS * width);
    assert_non_null(l->host);
    memcpy(l->host, l->blocks.codes, HEADS * ROWS * width);
    hri_emu_register(l->host, HEADS * ROWS * width);
    for (uint32_t h = 0; h < HEADS; h++)
        for (uint32_t b = 0; b < BLOCKS; b++) {
            const uint32_t *begin = l->blocks.block_begin + h * (BLOCKS + 1) + b;
            offset[h * BLOCKS_MAX + b] = (h * (uint64_t)ROWS + begin[0]) * width;
            bytes[h * BLOCKS_MAX + b] = (begin[1] - begin[0]) * (uint32_t)width;
        }
    l->gather = (struct hri_cuda_gather_args){.jobs = l->resolve.jobs,
                                              .n_jobs = l->resolve.n_jobs,
                                              .host = l->host,
                                              .host_offset = offset,
                                              .bytes = bytes,
                                              .blocks_max = BLOCKS_MAX,
                                              .frames = device_alloc((size_t)l->n_frames * FRAME),
                                              .frame_bytes = FRAME};
}

static float *constant(size_t n, float x)
{
    float *all = device_alloc(n * sizeof *all);
    for (size_t i = 0; i < n; i++)
        all[i] = x;
    return all;
}

static void make_query_and_score(struct layer *l, struct hri_rng *rng)
{
    const size_t hg = HEADS * GROUP, blocks = HEADS * BLOCKS_MAX;
    uint16_t *spread = device_zero(blocks * 2);
    uint32_t *n = device_alloc(HEADS * 4);
    for (size_t b = 0; b < blocks; b++)
        spread[b] = hri_bf16_from_f32(0.3f + hri_rng_f32(rng));
    for (uint32_t h = 0; h < HEADS; h++)
        n[h] = BLOCKS;
    l->shape = (struct hri_cuda_shape){.f = device_codes(rng, HEADS * RANK * DIM),
                                       .w = device_codes(rng, HEADS * RANK * DIM),
                                       .u = device_codes(rng, HEADS * RANK * DIM),
                                       .f_scale = constant(HEADS * RANK, 0.004f),
                                       .w_scale = constant(HEADS * RANK, 0.004f),
                                       .u_scale = constant(HEADS * RANK, 0.001f),
                                       .rank_c = RANK,
                                       .rank_d = RANK,
                                       .k_mean = l->blocks.k_mean};
    l->query = (struct hri_cuda_query_out){{device_alloc(hg * 2 * DIM), device_alloc(hg * 4)},
                                           device_alloc(hg * 4),
                                           device_alloc(hg * 4),
                                           device_alloc(hg * DIM * 4)};
    l->summaries = (struct hri_cuda_summaries){l->blocks.k_codes,    l->blocks.k_scale, spread,
                                               l->blocks.block_rows, BLOCKS_MAX,        n};
    l->score = (struct hri_cuda_score_args){.q = l->query.i8,
                                            .common = l->query.common,
                                            .variance = l->query.variance,
                                            .near_m = l->near.lse,
                                            .near_l = constant(hg, 1),
                                            .dots = device_alloc(hg * BLOCKS_MAX * 4),
                                            .log_mass = device_alloc(hg * BLOCKS_MAX * 4),
                                            .stride = BLOCKS_MAX,
                                            .top = device_alloc(hg * 4),
                                            .total = device_alloc(hg * 4),
                                            .work = device_alloc(hri_cuda_score_work(heads) * 4),
                                            .arrived = device_zero(HEADS * 4)};
}

static void make_choice(struct layer *l, struct hri_rng *rng, uint64_t budget)
{
    uint8_t *peak = device_alloc(HEADS * BLOCKS_MAX);
    for (uint32_t i = 0; i < HEADS * BLOCKS_MAX; i++)
        peak[i] = (uint8_t)(16 + hri_rng_below(rng, 40));
    l->worth = (struct hri_cuda_worth_args){.log_mass = l->score.log_mass,
                                            .top = l->score.top,
                                            .total = l->score.total,
                                            .variance = l->query.variance,
                                            .spread = l->summaries.spread,
                                            .rows = l->blocks.block_rows,
                                            .peak = peak,
                                            .n = l->summaries.n,
                                            .blocks_max = BLOCKS_MAX,
                                            .row_bytes = 2 * DIM,
                                            .stride = BLOCKS_MAX,
                                            .frame_of = l->table.frame_of,
                                            .key = device_alloc(HEADS * BLOCKS_MAX * 4),
                                            .error = device_alloc(HEADS * BLOCKS_MAX * 4),
                                            .cost = device_alloc(HEADS * BLOCKS_MAX * 4),
                                            .class_ = device_alloc(HEADS * BLOCKS_MAX),
                                            .left = device_alloc(HEADS * 4)};
    uint64_t *budgets = device_alloc(HEADS * 2 * 8);
    for (uint32_t i = 0; i < HEADS * 2; i++)
        budgets[i] = budget;
    l->select = (struct hri_cuda_select_args){.key = l->worth.key,
                                              .cost = l->worth.cost,
                                              .class_ = l->worth.class_,
                                              .error = l->worth.error,
                                              .stride = BLOCKS_MAX,
                                              .n = l->summaries.n,
                                              .budget = budgets,
                                              .left = l->worth.left,
                                              .enough = device_zero(HEADS * 4),
                                              .items = device_alloc(HEADS * BLOCKS_MAX * 4),
                                              .items_max = BLOCKS_MAX,
                                              .n_items = device_zero(HEADS * 4),
                                              .left_out = device_alloc(HEADS * 4)};
}

static void make_table(struct layer *l)
{
    l->table = (struct hri_cuda_residency){.frame_of = device_alloc(HEADS * BLOCKS_MAX * 4),
                                           .holds = device_alloc(l->n_frames * 4),
                                           .last_turn = device_alloc(l->n_frames * 4),
                                           .referenced = device_alloc(l->n_frames),
                                           .hand = device_alloc(4),
                                           .turn = device_alloc(4),
                                           .n_frames = l->n_frames,
                                           .blocks_max = BLOCKS_MAX};
    RUN(hri_cuda_residency_clear(&l->table, HEADS, NULL));
    l->resolve = (struct hri_cuda_resolve_args){
        .items_max = BLOCKS_MAX,
        .frames = device_alloc(HEADS * BLOCKS_MAX * 4),
        .jobs = device_alloc(HEADS * BLOCKS_MAX * sizeof(struct hri_cuda_job)),
        .jobs_max = HEADS * BLOCKS_MAX,
        .n_jobs = device_zero(4),
        .counts = device_zero(12)};
}

static void make_window(struct layer *l, struct hri_rng *rng)
{
    const size_t hg = HEADS * GROUP;
    const uint32_t sink = SINK;
    float *wide = malloc(HEADS * SINK * 2 * DIM * 4);
    void *sinks = device_alloc(HEADS * SINK * 2 * DIM * 2);
    assert_non_null(wide);
    fill_normal(rng, wide, HEADS * SINK * 2 * DIM, 1);
    to_dtype(sinks, wide, HR_DTYPE_BF16, HEADS * SINK * 2 * DIM);
    free(wide);
    l->q = device_alloc(hg * DIM * 4);
    l->k_new = device_alloc(HEADS * DIM * 4);
    l->v_new = device_alloc(HEADS * DIM * 4);
    l->length = device_zero(4);
    l->append = (struct hri_cuda_append_args){.k = l->k_new,
                                              .v = l->v_new,
                                              .k_token_stride = HEADS * DIM,
                                              .k_head_stride = DIM,
                                              .v_token_stride = HEADS * DIM,
                                              .v_head_stride = DIM,
                                              .from = HR_DTYPE_F32,
                                              .to = HR_DTYPE_BF16,
                                              .tail = device_alloc(HEADS * TAIL * 2 * DIM * 2),
                                              .capacity = TAIL,
                                              .length = l->length,
                                              .bad = device_alloc(4),
                                              .advance = 1};
    l->near = (struct hri_cuda_attend_args){.q = l->q, .dtype = HR_DTYPE_BF16, .n_runs = 2};
    l->near.runs[0] = (struct hri_cuda_run){.rows = sinks,
                                            .head_stride_bytes = SINK * 2 * DIM * 2,
                                            .n = device_copy(&sink, 4),
                                            .capacity = SINK};
    l->near.runs[1] = (struct hri_cuda_run){.rows = l->append.tail,
                                            .head_stride_bytes = TAIL * 2 * DIM * 2,
                                            .n = l->length,
                                            .capacity = TAIL};
    l->near.out = device_alloc(hg * DIM * 4);
    l->near.lse = device_alloc(hg * 4);
    l->near.work = device_alloc(hri_cuda_attend_work(heads) * 4);
    l->near.arrived = device_zero(hri_cuda_attend_counters(heads) * 4);
}

static void make_attend(struct layer *l)
{
    const size_t hg = HEADS * GROUP;
    l->resolve.items = l->select.items;
    l->resolve.n_items = l->select.n_items;
    l->all = (struct hri_cuda_attend_args){
        .q = l->q,
        .q8 = l->query.i8,
        .dtype = HR_DTYPE_BF16,
        .refined = {l->select.items, l->select.n_items, l->resolve.frames, BLOCKS_MAX, ROWS_MAX,
                    (const int8_t *)l->gather.frames, FRAME, l->blocks.k_step, l->blocks.v_step,
                    l->blocks.block_rows, l->score.dots, 1},
        .estimate = {l->summaries.n, l->score.log_mass, device_alloc(HEADS * BLOCKS_MAX),
                     l->summaries.spread, l->query.shift},
        .blocks_max = BLOCKS_MAX,
        .stride = BLOCKS_MAX,
        .v_codes = l->blocks.v_codes,
        .v_scale = l->blocks.v_scale,
        .parts_out = l->near.out,
        .parts_lse = l->near.lse,
        .n_parts = 1,
        .out = device_alloc(hg * DIM * 4),
        .lse = device_alloc(hg * 4),
        .work = device_alloc(hri_cuda_attend_work(heads) * 4),
        .arrived = device_zero(hri_cuda_attend_counters(heads) * 4)};
}

/* A step's launches, in the order of the moves. */
static int step(const struct layer *l)
{
    void *stream = hri_emu_stream();
    int error = hri_cuda_append(&l->append, heads, 1, stream);
    error |= hri_cuda_query(l->q, heads, &l->shape, &l->query, stream);
    error |= hri_cuda_attend(&l->near, heads, stream);
    error |= hri_cuda_score(&l->score, &l->summaries, heads, stream);
    error |= hri_cuda_worth(&l->worth, heads, stream);
    error |= hri_cuda_select(&l->select, HEADS, stream);
    error |= hri_cuda_resolve(&l->table, &l->resolve, HEADS, stream);
    error |= hri_cuda_gather(&l->gather, 2, HRI_CUDA_PATH_AUTO, stream);
    error |= hri_cuda_mark(&l->all.refined, l->summaries.n, BLOCKS_MAX,
                           (uint8_t *)l->all.estimate.mark, HEADS, stream);
    return error | hri_cuda_attend(&l->all, heads, stream);
}

/* --------------------------------------------------------------------------------------- the same on the CPU */

static void centre_of(const struct layer *l, uint32_t h, uint32_t b, float *k, float *v)
{
    const size_t block = h * BLOCKS_MAX + b;
    hri_centroid_unpack(l->blocks.k_codes + h * BLOCKS_MAX * DIM, DIM, b, l->blocks.k_scale[block],
                        k);
    for (uint32_t j = 0; j < DIM; j++) {
        k[j] += l->blocks.k_mean[h * DIM + j];
        v[j] = l->blocks.v_scale[block] * (float)l->blocks.v_codes[block * DIM + j];
    }
}

static double dot(const float *x, const float *y)
{
    double sum = 0;
    for (uint32_t j = 0; j < DIM; j++)
        sum += (double)x[j] * (double)y[j];
    return sum;
}

static double dot_i8(const float *q, const int8_t *row)
{
    double sum = 0;
    for (uint32_t j = 0; j < DIM; j++)
        sum += (double)q[j] * row[j];
    return sum;
}

static double variance_of(const struct layer *l, uint32_t h, const float *q)
{
    double sum = 0;
    for (uint32_t r = 0; r < RANK; r++) {
        double x = l->shape.f_scale[h * RANK + r] * dot_i8(q, l->shape.f + (h * RANK + r) * DIM);
        sum += x * x;
    }
    return sum;
}

struct head_step { /* of one query head */
    double variance, lse, mass[BLOCKS];
    float out[DIM];
    struct hri_partial near;
    float near_m, near_l, near_o[DIM];
};

static void near_of(const struct layer *l, uint32_t h, const float *q, struct head_step *s)
{
    const struct hri_kernels *ref = hri_kernels_get(HRI_KERNEL_REF);
    s->near = (struct hri_partial){&s->near_m, &s->near_l, s->near_o};
    hri_partial_clear(&s->near, 1, DIM);
    for (uint32_t r = 0; r < 2; r++) {
        const struct hri_cuda_run *run = &l->near.runs[r];
        struct hri_rows rows = {(const char *)run->rows + h * run->head_stride_bytes, 2 * DIM * 2,
                                *run->n, HR_DTYPE_BF16};
        ref->attend_rows(q, 1, DIM, DIM, rows, 0, &s->near);
    }
}

static void score_of(const struct layer *l, uint32_t h, const float *q, struct head_step *s)
{
    float k[DIM], v[DIM];
    double sum = (double)s->near_l * exp((double)s->near_m);
    s->variance = variance_of(l, h, q);
    for (uint32_t b = 0; b < BLOCKS; b++) {
        centre_of(l, h, b, k, v);
        double x = s->variance * hri_f32_from_bf16(l->summaries.spread[h * BLOCKS_MAX + b]);
        s->mass[b] = dot(q, k) + fmin(x / 2, 3) + log(l->blocks.block_rows[h * BLOCKS_MAX + b]);
        sum += exp(s->mass[b]);
    }
    s->lse = log(sum);
}

static double doubt_of(const struct layer *l, uint32_t h, uint32_t b, const struct head_step *s,
                       double *lift)
{
    const size_t block = h * BLOCKS_MAX + b;
    double n = l->blocks.block_rows[block], p = exp(s->mass[b] - s->lse);
    double x = s->variance * hri_f32_from_bf16(l->summaries.spread[block]), v = fmin(x, 3);
    double series = v + v * v / 2 + v * v * v / 6 + v * v * v * v / 24;
    double doubt = p * p * (series + 0.3) / n;
    double extra = 1.4 * l->worth.peak[block] / 16.0 * sqrt(x) - log(n) - fmin(x / 2, 3);
    *lift = extra > 0 ? doubt * (exp(2 * fmin(extra, 40)) - 1) : 0;
    return doubt;
}

static void output_of(const struct layer *l, uint32_t h, uint32_t g, const float *q,
                      struct head_step *s)
{
    const struct hri_kernels *ref = hri_kernels_get(HRI_KERNEL_REF);
    uint8_t refined[BLOCKS] = {0};
    float k[DIM], v[DIM], lse;
    for (uint32_t i = 0; i < l->select.n_items[h]; i++)
        refined[l->select.items[h * BLOCKS_MAX + i]] =
            l->resolve.frames[h * BLOCKS_MAX + i] != HRI_CUDA_NONE;
    for (uint32_t b = 0; b < BLOCKS; b++) {
        const size_t block = h * BLOCKS_MAX + b;
        centre_of(l, h, b, k, v);
        float centre = (float)dot(q, k), mass = (float)s->mass[b];
        struct hri_block_i8 i8 = {(const int8_t *)l->host + l->gather.host_offset[block],
                                  &centre,
                                  v,
                                  l->blocks.k_step[block],
                                  l->blocks.v_step[block],
                                  l->blocks.block_rows[block],
                                  NULL,
                                  0};
        if (refined[b]) {
            ref->attend_block_i8(q, 1, DIM, DIM, &i8, 0, &s->near);
            continue;
        }
        for (uint32_t j = 0; j < DIM; j++)
            v[j] += hri_f32_from_bf16(l->summaries.spread[block]) *
                    l->query.shift[(h * GROUP + g) * DIM + j];
        hri_partial_add(&s->near, 1, DIM, &mass, v);
    }
    hri_partial_finish(&s->near, 1, DIM, s->out, &lse);
    CHECK_BELOW(relative_error(l->all.out + (h * GROUP + g) * DIM, s->out, DIM), TOLERANCE);
    CHECK_BELOW(fabs((double)(l->all.lse[h * GROUP + g] - lse)), TOLERANCE);
}

static void check_head(const struct layer *l, uint32_t h)
{
    struct head_step s[GROUP];
    for (uint32_t g = 0; g < GROUP; g++) {
        const float *q = l->q + (h * GROUP + g) * DIM;
        near_of(l, h, q, &s[g]);
        score_of(l, h, q, &s[g]);
    }
    for (uint32_t b = 0; b < BLOCKS; b++) {
        double key = 0, error = 0, lift, n = l->blocks.block_rows[h * BLOCKS_MAX + b];
        for (uint32_t g = 0; g < GROUP; g++) {
            double doubt = doubt_of(l, h, b, &s[g], &lift);
            key += (doubt + lift) / n;
            error += doubt;
        }
        CHECK_BELOW(fabs(l->worth.key[h * BLOCKS_MAX + b] / key - 1), WORTH);
        CHECK_BELOW(fabs(l->worth.error[h * BLOCKS_MAX + b] / error - 1), WORTH);
    }
    for (uint32_t g = 0; g < GROUP; g++)
        output_of(l, h, g, l->q + (h * GROUP + g) * DIM, &s[g]);
}

/* --------------------------------------------------------------------------------------------- the tests */

static void run(uint32_t n_frames, uint64_t budget, uint32_t tokens, int order)
{
    struct layer l = {.n_frames = n_frames};
    struct hri_rng rng;
    hri_rng_seed(&rng, n_frames);
    set_order(HRI_EMU_FORWARD);
    make_blocks(&l, &rng);
    make_window(&l, &rng);
    make_table(&l);
    make_query_and_score(&l, &rng);
    make_choice(&l, &rng, budget);
    make_host(&l);
    make_attend(&l);
    hri_emu_capture_begin();
    const int error = step(&l);
    l.graph = hri_emu_capture_end();
    assert_int_equal(error, 0);
    assert_int_equal(hri_emu_graph_launches(l.graph), 11); /* append has two */
    set_order(order);
    for (uint32_t t = 0; t < tokens; t++) {
        if (t % 2 == 0) /* every other query is the one before, a little moved */
            fill_normal(&rng, l.q, HEADS * GROUP * DIM, 0.25);
        for (uint32_t i = 0; i < HEADS * GROUP * DIM; i++)
            l.q[i] += 0.02f * (float)hri_rng_normal(&rng);
        fill_normal(&rng, l.k_new, HEADS * DIM, 1);
        fill_normal(&rng, l.v_new, HEADS * DIM, 1);
        RUN(hri_emu_graph_replay(l.graph));
        assert_int_equal(*l.length, t + 1);
        for (uint32_t h = 0; h < HEADS; h++)
            check_head(&l, h);
    }
    const uint32_t *counts = l.resolve.counts; /* hits, misses, misses without a frame */
    assert_true(counts[1] > 0);
    assert_true(n_frames < 2 || counts[0] > 0);
    assert_true(n_frames > 4 || counts[2] > 0);
    hri_emu_graph_free(l.graph);
    hri_emu_unregister(l.host);
    free(l.host);
    device_free_all();
}

static void test_steps(void **state)
{
    (void)state;
    CASE("steps with frames for some blocks");
    run(16, 5 * 18 * 2 * DIM, 8, HRI_EMU_SHUFFLED);
}

static void test_tiny_budget(void **state)
{
    (void)state;
    CASE("steps with one frame");
    run(1, 3 * 18 * 2 * DIM, 3, HRI_EMU_BACKWARD);
    CASE("steps with four frames");
    run(4, 4 * 18 * 2 * DIM, 4, HRI_EMU_FORWARD);
}

static void test_everything_fits(void **state)
{
    (void)state;
    CASE("steps with frames for all blocks");
    run(HEADS * BLOCKS, 1u << 30, 4, HRI_EMU_SHUFFLED);
}

int main(void)
{
    const struct CMUnitTest tests[] = {EMU_TEST(test_steps), EMU_TEST(test_tiny_budget),
                                       EMU_TEST(test_everything_fits)};
    return cmocka_run_group_tests(tests, small_machine, NULL);
}
