/* A step with sketches (index/ladder.c) against loops in double that read every code one by one.
 *
 *   what                                     tolerance
 *   output, given which blocks were read     1e-3 of the output: weights are kept to 15 bits
 *   output against exact attention           int8 rows and what may stay unread, at full budget
 *   rows chosen                              the best by the documented worth, ties aside: 1e-3 of it
 */
#include "tests/index/image_bytes.h"
#include "tests/index/ladder_naive.h"

/* ------------------------------------------------------------------------------------ one step */

static struct test_part result;

static void say(const char *what)
{
    fail_msg("%s: recipe %s, %u rows, group %u, dims %u and %u, seed %llu", what, world.recipe,
             world.b.n, world.b.options.g, world.b.options.k_dim, world.b.options.v_dim,
             (unsigned long long)world.seed);
}

static struct hri_select_in question(void)
{
    const struct hri_index_options *o = &world.b.options;
    return (struct hri_select_in){
        .q = world.q, .scratch = world.b.scratch, .row_bytes = o->k_dim + o->v_dim};
}

static void near_attend(struct test_part *part, uint32_t n)
{
    const struct hri_index_options *o = &world.b.options;
    test_part_clear(part, o->g, o->v_dim);
    bench_attend(world.q, o->g, o->k_dim, o->v_dim, world.rows.k, world.rows.v,
                 n < world.b.n ? n : world.b.n, o->soft_cap, &part->part);
}

/* The same of rests, in naive.rested. Returns their bytes. */
static uint64_t rests_mark(const struct hri_select_out *out)
{
    const struct hri_index_head *head = world.b.head;
    struct hri_select_in in = question();
    uint32_t n = 0;
    memset(naive.rested, 0, sizeof naive.rested);
    for (uint32_t b = 0; b < head->n_blocks; b++)
        for (uint32_t row = first_of(b); row < first_of(b + 1); row++) {
            if (hri_ladder_taken(head, &in, b, row - first_of(b)) != HRI_TAKEN_REST)
                continue;
            naive.rested[row] = 1;
            n++;
            if (naive.refined[row])
                say("a row and its rest");
        }
    if (n != out->n_rests || (n > 0 && !world.b.options.rows_in_host))
        say("n_rests is wrong");
    return (uint64_t)n * (world.b.options.v_dim / 4 + 1);
}

/* What was chosen, once: marks it in naive.refined. Returns the bytes that have to move for it. */
static uint64_t chosen_mark(const struct hri_select_out *out, const uint8_t *place)
{
    const struct hri_index_head *head = world.b.head;
    uint32_t bytes = world.b.options.k_dim + world.b.options.v_dim;
    uint64_t moved = 0, all = 0;
    memset(naive.refined, 0, sizeof naive.refined);
    for (uint32_t i = 0; i < out->n_rows; i++) {
        uint32_t row = first_of(out->rows[i].block) + out->rows[i].row;
        uint32_t item = out->rows[i].block * head->parts + out->rows[i].row / head->part_rows;
        if (out->rows[i].row >= head->block_rows[out->rows[i].block] || naive.refined[row]++)
            say("a row twice or one that is not there");
        if (place && place[item] != HRI_PLACE_HOST)
            say("a single row that is not in host memory");
        if (i > 0 && row <= first_of(out->rows[i - 1].block) + out->rows[i - 1].row)
            say("rows out of order");
        moved += bytes;
        all += bytes;
    }
    for (uint32_t i = 0; i < out->n_items; i++) {
        uint32_t item = out->items[i], n = hri_index_item_rows(head, item);
        uint32_t row = first_of(item / head->parts) + item % head->parts * head->part_rows;
        all += (uint64_t)n * bytes;
        moved += place && place[item] == HRI_PLACE_FRAME  ? 0
                 : place && place[item] == HRI_PLACE_FILE ? 4096
                                                          : (uint64_t)n * bytes;
        for (uint32_t j = 0; j < n; j++)
            if (naive.refined[row + j]++)
                say("a row in two items");
        if (n == 0)
            say("an item that is not there");
    }
    uint64_t rests = rests_mark(out);
    uint64_t sketches = hri_sketch_in_host(&world.b.options) ? out->bytes_sketched : 0;
    if (all + rests + sketches != out->bytes || rests != out->bytes_rests ||
        sketches != out->bytes_sketched_host)
        say("bytes do not add up");
    return moved + rests + sketches;
}

static void corrections_get(const struct hri_select_in *in)
{
    for (uint32_t g = 0; g < world.b.options.g; g++) {
        naive.corrected[g] = (double)hri_ladder_corrected(world.b.head, in, g);
        if (!(naive.corrected[g] > 0) || !isfinite(naive.corrected[g]))
            say("a correction that is none");
    }
}

/* A step, and its output as the loops have it; returns what moved. */
static uint64_t step_both(uint64_t budget, double tolerance, const uint8_t *place,
                          struct hri_select_out *out)
{
    const struct hri_index_options *o = &world.b.options;
    near_attend(&naive.near, NEAR);
    near_attend(&result, NEAR);
    bench_head_step(&world.b, world.q, budget, tolerance, place, &result.part, out);
    struct hri_select_in in = question();
    uint64_t moved = chosen_mark(out, place);
    uint32_t read = 0;
    for (uint32_t b = 0; b < world.b.head->n_blocks; b++) {
        naive.known[b] = (uint8_t)hri_ladder_known(world.b.head, &in, b);
        read += naive.known[b] != HRI_KNOWN_SUMMARY ? world.b.head->block_rows[b] : 0;
        for (uint32_t i = first_of(b); i < first_of(b + 1); i++)
            if (naive.refined[i] && naive.known[b] == HRI_KNOWN_SUMMARY)
                say("a row refined whose sketch was not read");
    }
    if (read != out->rows_sketched)
        say("rows_sketched is wrong");
    for (uint32_t g = 0; g < o->g; g++)
        if (!(out->predicted[g] >= 0) || !isfinite(out->predicted[g]))
            say("a predicted error that is none");
    corrections_get(&in);
    naive_read(&in);
    naive_total();
    naive_output();
    test_part_finish(&result, o->g, o->v_dim);
    return moved;
}

static double output_error(void)
{
    const struct hri_index_options *o = &world.b.options;
    double worst = 0;
    for (uint32_t g = 0; g < o->g; g++) {
        double far = 0, size = 0;
        for (uint32_t j = 0; j < o->v_dim; j++) {
            double x = (double)result.out[(size_t)g * o->v_dim + j] - naive.output[g][j];
            far += x * x;
            size += naive.output[g][j] * naive.output[g][j];
        }
        double e = sqrt(far / (size + 1e-30));
        worst = e > worst || isnan(e) ? e : worst;
    }
    return worst;
}

static double exact_error(void)
{
    static struct test_part exact;
    const struct hri_index_options *o = &world.b.options;
    near_attend(&exact, NEAR);
    bench_attend(world.q, o->g, o->k_dim, o->v_dim, world.rows.k, world.rows.v, world.b.n,
                 o->soft_cap, &exact.part);
    test_part_finish(&exact, o->g, o->v_dim);
    return relative_error(result.out, exact.out, o->g * o->v_dim);
}

static void check_output(double tolerance)
{
    double e = output_error();
    if (!(e <= tolerance)) {
        print_error("output differs by %g, allowed are %g\n", e, tolerance);
        say("the output is not that of the loops");
    }
}

/* What was taken and what was left of pieces, by what they are worth for their bytes. */
struct pieces {
    double least, most;
    uint64_t left_out;
};

static void piece_see(struct pieces *p, double worth, bool taken)
{
    if (taken) {
        p->least = fmin(p->least, worth);
    } else {
        p->most = fmax(p->most, worth);
        p->left_out += worth > 1e-30;
    }
}

/* Pieces of rows within the budget: the best, ties aside, and as many as fit. A row is one piece, or its rest and what it is beyond that,
 * where the rest is worth more for its bytes. */
static void check_rows(uint64_t budget, const struct hri_select_out *out)
{
    const struct hri_index_head *head = world.b.head;
    double row = world.b.options.k_dim + world.b.options.v_dim;
    double rest = world.b.options.v_dim / 4 + 1;
    struct pieces p = {.least = INFINITY};
    naive_worth();
    for (uint32_t b = 0; b < head->n_blocks; b++) {
        double part = naive.value_part[b], first = part / rest, second = (1 - part) / (row - rest);
        for (uint32_t i = first_of(b); i < first_of(b + 1) && naive.known[b] == HRI_KNOWN_ROWS;
             i++) {
            if (first > second) {
                piece_see(&p, naive.worth[i] * first * row, naive.rested[i] || naive.refined[i]);
                piece_see(&p, naive.worth[i] * second * row, naive.refined[i]);
            } else {
                piece_see(&p, naive.worth[i], naive.refined[i]);
            }
        }
    }
    if (out->bytes > budget || (p.left_out > 0 && budget - out->bytes >= row))
        say("not as many rows as fit");
    /* Rests and rows are ranked by eighths of powers of two against each other. */
    double tie = world.b.options.rows_in_host ? 1.126 : 1.002;
    if (out->bytes > 0 && !(p.most <= p.least * tie)) {
        print_error("left out %g, chose %g\n", p.most, p.least);
        say("a worse row was chosen");
    }
}

/* --------------------------------------------------------------------------------------- tests */

static const char *const recipes[] = {"headrace:sketch=1",          "headrace:sketch=2",
                                      "headrace:sketch=3",          "headrace:sketch=2,block=18",
                                      "headrace:sketch=1,block=64", "headrace:sketch=3,block=4"};
static const struct {
    uint32_t dk, dv;
} dims[] = {{64, 64}, {128, 128}, {8, 8},  {16, 16},  {24, 40},   {80, 64},
            {96, 96}, {64, 128},  {8, 32}, {256, 64}, {256, 256}, {128, 8}};

static void test_nothing_refined(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 24; i++) {
        uint32_t dk = dims[i % 12].dk, dv = dims[i % 12].dv;
        world_make(recipes[i % 6], dk > 128 ? 150 : 300 + 17 * i, 1 + i * 7 % 16, dk, dv,
                   i % 3 ? 0 : 211, 0, i % 4 ? 1 : 3, 100 + i);
        struct hri_select_out out;
        step_both(0, 0, NULL, &out);
        assert_int_equal(out.n_rows + out.n_items, 0);
        assert_int_equal(out.bytes, 0);
        assert_false(out.capped);
        check_output(2e-3);
        world_free();
    }
}

static void test_rows_within_budget(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 24; i++) {
        uint32_t dk = dims[i * 5 % 12].dk, dv = dims[i * 5 % 12].dv;
        world_make(recipes[i % 6], dk > 128 ? 200 : 300 + 13 * i, 1 + i * 3 % 16, dk, dv,
                   i % 3 ? 0 : 300, 0, i % 4 ? 1 : 4, 200 + i);
        for (uint32_t share = 1; share <= 64; share *= 16) {
            struct hri_select_out out;
            uint64_t budget = (uint64_t)world.b.n * (dk + dv) * share / 100 + share;
            uint64_t moved = step_both(budget, 0, NULL, &out);
            assert_true(moved <= budget && out.bytes == moved);
            check_output(2e-3);
            check_rows(budget, &out);
        }
        world_free();
    }
}

/* Everything refined: int8 rows, and blocks that may stay unread because they cannot matter. */
static void test_everything_refined(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 12; i++) {
        uint32_t dk = dims[i].dk, dv = dims[i].dv;
        world_make(recipes[i % 6], dk > 128 ? 200 : 300 + 17 * i, 1 + i % 4, dk, dv,
                   i % 2 ? 0 : 256, 0, i % 3 ? 1 : 2, 300 + i);
        struct hri_select_out out;
        step_both(UINT32_MAX, 0, NULL, &out);
        check_output(2e-3);
        double e = exact_error();
        if (!(e < 0.012)) {
            print_error("error %g\n", e);
            say("all rows refined are not exact");
        }
        world_free();
    }
}

/* Soft caps bend the sum of centre and sketch, whatever round a block is read in. */
static void test_soft_cap(void **state)
{
    (void)state;
    static const float caps[] = {50, 5, 1, 0.2f};
    for (uint32_t i = 0; i < 24; i++) {
        world_make(recipes[i % 6], 900, 1 + i % 5, 64, 64, i % 2 ? 0 : 200, caps[i % 4],
                   i % 3 ? 1 : 8, 400 + i);
        for (uint64_t budget = 0; budget < 40000; budget += 13000) {
            struct hri_select_out out;
            step_both(budget, 0, NULL, &out);
            check_output(2e-3);
        }
        world_free();
    }
}

/* Logits of hundreds, of both signs: the largest is far above or below what the summary says. */
static void test_peaked(void **state)
{
    (void)state;
    static const double sizes[] = {3, 8, 15, 30};
    for (uint32_t i = 0; i < 24; i++) {
        world_make(recipes[i % 6], 700, 1 + i % 3, 64, 64, i % 2 ? 0 : 100, 0, sizes[i % 4],
                   500 + i);
        for (uint64_t budget = 0; budget < 20000; budget += 6500) {
            struct hri_select_out out;
            step_both(budget, 0, NULL, &out);
            check_output(5e-3);
            check_rows(budget, &out);
        }
        world_free();
    }
}

static void places_fill(uint32_t kind, uint64_t seed)
{
    struct hri_rng rng;
    hri_rng_seed(&rng, seed);
    uint32_t n = world.b.head->n_blocks * world.b.head->parts;
    assert_true(n <= sizeof world.place);
    for (uint32_t i = 0; i < n; i++)
        world.place[i] = kind < 3 ? (uint8_t)kind : (uint8_t)hri_rng_below(&rng, 3);
}

static void test_places(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 24; i++) {
        world_make(recipes[i % 6], 900, 1 + i % 4, dims[i % 3].dk, dims[i % 3].dv, i % 2 ? 0 : 256,
                   0, i % 3 ? 1 : 4, 600 + i);
        places_fill(i % 4, i);
        for (uint64_t budget = 0; budget < 100000; budget += 24000) {
            struct hri_select_out out;
            uint64_t moved = step_both(budget, 0, world.place, &out);
            uint64_t reused = 0;
            for (uint32_t j = 0; j < out.n_items; j++)
                if (world.place[out.items[j]] == HRI_PLACE_FRAME)
                    reused += (uint64_t)hri_index_item_rows(world.b.head, out.items[j]) *
                              (world.b.options.k_dim + world.b.options.v_dim);
            if (moved > budget || reused > 2 * budget)
                say("more than the budget");
            check_output(2e-3);
        }
        world_free();
    }
}

/* Parts in frames cost nothing that moves: rows that nothing is left for do not keep them from being used. */
static void test_frames_are_used(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 6; i++) {
        struct hri_select_out out;
        world_make(recipes[i], 2400, 2, 64, 64, 0, 0, 1, 700 + i);
        const struct hri_index_head *head = world.b.head;
        for (uint32_t item = 0; item < head->n_blocks * head->parts; item++)
            world.place[item] = item % 4 == 0 ? HRI_PLACE_FRAME : HRI_PLACE_HOST;
        uint64_t budget = 60 * 128;
        step_both(budget, 0, world.place, &out);
        uint64_t reused = 0;
        for (uint32_t j = 0; j < out.n_items; j++)
            reused += world.place[out.items[j]] == HRI_PLACE_FRAME
                          ? (uint64_t)hri_index_item_rows(head, out.items[j]) * 128
                          : 0;
        naive_worth();
        for (uint32_t item = 0; item < head->n_blocks * head->parts; item += 4) {
            uint32_t n = hri_index_item_rows(head, item);
            uint32_t row = first_of(item / head->parts) + item % head->parts * head->part_rows;
            if (n > 0 && naive.known[item / head->parts] == HRI_KNOWN_ROWS &&
                naive.worth[row] > 1e-30 && !naive.refined[row] && reused + n * 128 <= budget)
                say("a frame lies unused");
        }
        check_output(2e-3);
        world_free();
    }
}

static double predicted_mean(const struct hri_select_out *out)
{
    double sum = 0;
    for (uint32_t g = 0; g < world.b.options.g; g++)
        sum += (double)out->predicted[g];
    return sum / world.b.options.g;
}

static void test_tolerance(void **state)
{
    (void)state;
    static const double tolerances[] = {0.5, 0.05, 0.02, 0.005, 0.001};
    for (uint32_t i = 0; i < 12; i++) {
        uint64_t before = 0;
        world_make(recipes[i % 6], 1000, 1 + i % 3, 64, 64, 0, 0, i % 2 ? 1 : 3, 800 + i);
        if (i % 4 == 3)
            places_fill(3, i);
        const uint8_t *place = i % 4 == 3 ? world.place : NULL;
        for (uint32_t t = 0; t < 5; t++) {
            struct hri_select_out out;
            step_both(1000 * 4096, 0, place, &out);
            double codes = predicted_mean(&out), half = tolerances[t] / 2;
            step_both(1000 * 4096, tolerances[t], place, &out);
            double enough = fmax(tolerances[t], codes + half);
            if (out.capped || (predicted_mean(&out) > enough * 1.001 && t < 3))
                say("a tolerance was not reached though nothing was in the way");
            if (out.bytes < before)
                say("a smaller tolerance chose less");
            before = out.bytes;
            check_output(2e-3);
            step_both(256, tolerances[t], place, &out);
            if (out.bytes > 512)
                say("more than the budget");
            if (out.capped != (predicted_mean(&out) > tolerances[t]) && out.n_rows == 0)
                say("capped is wrong");
            step_both(0, tolerances[t], place, &out);
            assert_int_equal(out.bytes, 0);
        }
        world_free();
    }
}

/* The output where all that was chosen is late: as if it had not been chosen. */
static void late_output(const struct hri_select_in *in, const struct hri_select_out *out)
{
    const struct hri_index_head *head = world.b.head;
    for (uint32_t b = 0; b < head->n_blocks; b++)
        naive.known[b] = (uint8_t)hri_ladder_known(head, in, b);
    corrections_get(in);
    memset(naive.refined, 0, sizeof naive.refined);
    naive_read(in);
    naive_total();
    naive_output();
    chosen_mark(out, in->place);
}

/* Chosen parts that never came stay at their rows' sketches: all rows are there once, and what they leave of the error is known. */
static void test_late(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 12; i++) {
        world_make(recipes[i % 6], 900, 1 + i % 3, 64, 64, 0, i % 4 == 3 ? 10 : 0, i % 3 ? 1 : 20,
                   900 + i);
        const struct hri_index_options *o = &world.b.options;
        places_fill(HRI_PLACE_FILE, 0);
        near_attend(&naive.near, NEAR);
        near_attend(&result, NEAR);
        struct hri_select_in in = question();
        in.near = &naive.near.part;
        in.place = world.place;
        in.cell_bytes = 4096;
        in.budget_bytes = 5 * 4096;
        struct hri_select_out out = {.items = world.b.items,
                                     .items_max = world.b.n,
                                     .rows = world.b.rows,
                                     .rows_max = world.b.n};
        uint32_t estimated;
        assert_ok(hri_index_select(world.b.head, &in, &out));
        assert_int_equal(out.n_rows, 0);
        assert_true(out.n_items > 0);
        hri_index_estimate(world.b.head, &in, &out, &result.part, &estimated);
        assert_int_equal(estimated, hri_index_items(world.b.head) - out.n_items);
        float error[HR_GROUP_MAX];
        hri_index_estimate_items(world.b.head, &in, out.items, out.n_items, &result.part, error);
        test_part_finish(&result, o->g, o->v_dim);
        for (uint32_t j = 0; j < o->g * o->v_dim; j++)
            if (!isfinite(result.out[j]))
                say("late parts spoil the output");
        late_output(&in, &out);
        check_output(i % 3 ? 2e-3 : 5e-3);
        double left = 0, naive_left = 0;
        naive_worth();
        for (uint32_t j = 0; j < world.b.n; j++)
            naive_left += naive.refined[j] ? naive.plain_worth[j] : 0;
        for (uint32_t g = 0; g < o->g; g++)
            left += (double)error[g] * (double)error[g];
        if (!(fabs(left - naive_left) <= 0.02 * naive_left))
            say("the error of late parts is wrong");
        world_free();
    }
}

/* Nothing may depend on what the scratch held before: not even in a head that lost blocks. */
/* Where blocks stay unread, audits bring the sum of their weights nearer to what their sketches would have said, or leave it near. */
static void test_audits(void **state)
{
    double before = 0, after = 0, share = 0;
    uint32_t n = 0;
    (void)state;
    for (uint32_t seed = 0; seed < 24; seed++) {
        struct hri_select_out out;
        world_make("headrace:sketch=2,block=4", 2800, 2, 64, 64, 700, 0, 1, 900 + seed);
        step_both(20 * 128, 0, NULL, &out);
        for (uint32_t g = 0; g < world.b.options.g; g++) {
            double level0 = 0, sketches = 0;
            for (uint32_t b = 0; b < world.b.head->n_blocks; b++) {
                if (naive.known[b] != HRI_KNOWN_SUMMARY)
                    continue;
                level0 += exp(naive.mass[g][b] - naive.top[g]);
                for (uint32_t i = first_of(b); i < first_of(b + 1); i++)
                    sketches += exp(naive.sketch[g][i] - naive.top[g]);
            }
            if (!(sketches > 0))
                continue;
            before += fabs(level0 - sketches) / naive.total[g];
            after += fabs(naive.corrected[g] * level0 - sketches) / naive.total[g];
            share += sketches / naive.total[g];
            n++;
        }
        world_free();
    }
    print_message("%u heads: %.4f unread on the mean, off by %.4f without audits, %.4f with them\n",
                  n, share / n, before / n, after / n);
    assert_true(n >= 12);
    assert_true(after <= before);
}

static void test_scratch(void **state)
{
    static struct test_part again;
    (void)state;
    for (uint32_t i = 0; i < 12; i++) {
        struct hri_select_out out;
        world_make(recipes[i % 6], 1500, 2, 64, 64, 500, i % 2 ? 20 : 0, 1, 1000 + i);
        for (uint32_t j = 0; j < 2; j++) {
            if (j == 1) {
                hri_index_truncate(world.b.head, world.b.head->n_blocks * (i % 3 + 1) / 4);
                world.b.n = hri_index_rows(world.b.head);
            }
            for (int fill = 0; fill < 5; fill++) {
                memset(world.b.scratch, fill < 4 ? fill : 255,
                       hri_index_step_scratch_bytes(&world.b.options));
                step_both(3000, 0, NULL, &out);
                check_output(2e-3);
                if (fill == 0)
                    memcpy(&again, &result, sizeof again);
                else if (memcmp(again.out, result.out, 2 * 64 * sizeof(float)) != 0)
                    say("the output depends on old scratch");
            }
        }
        world_free();
    }
}

/* -- images -- */

/* What the world's head knows goes to a fresh one, which takes its place. Returns that in whose place it is. */
static struct hri_index_head *head_follow(bool rows_in_host)
{
    struct bytes b = {0};
    struct hri_image out = {.move = bytes_out, .context = &b},
                     in = {.move = bytes_in, .context = &b, .loads = true};
    struct hri_index_head *from = world.b.head, *to;
    assert_ok(hri_index_image(from, &out));
    world.b.options.rows_in_host = rows_in_host;
    assert_ok(hri_index_head_create(&world.b.options, &to));
    assert_ok(hri_index_image(to, &in));
    assert_int_equal(b.at, b.n);
    free(b.data);
    world.b.head = to;
    return from;
}

/* Heads that keep rests and heads that keep none can follow each other: what was kept is the same to the bit, what was not is not missed. */
static void test_images(void **state)
{
    static struct test_part first;
    uint64_t all = 0;
    (void)state;
    for (uint32_t i = 0; i < 6; i++) {
        struct hri_select_out out;
        uint64_t budget = 3000;
        world_make(recipes[i], 1200, 1 + i, 64, 64, 400, 0, 1, 1101 + 2 * i);
        uint64_t held = hri_index_host_bytes(world.b.head), rests = 0;
        assert_int_equal(held, i % 6 == 0 || i % 6 == 4 ? 0 : 1200 * 17);
        step_both(budget, 0, NULL, &out);
        rests = out.n_rests;
        first = result;
        for (int kept = 1; kept >= 0; kept--) {
            hri_index_head_destroy(head_follow(kept));
            step_both(budget, 0, NULL, &out);
            assert_int_equal(out.n_rests, kept ? rests : 0);
            assert_int_equal(hri_index_host_bytes(world.b.head), kept ? held : 0);
            if (kept)
                assert_memory_equal(first.out, result.out, (1 + i) * 64 * sizeof(float));
            check_output(2e-3);
            check_rows(budget, &out);
        }
        first = result;
        hri_index_head_destroy(head_follow(true));
        step_both(budget, 0, NULL, &out);
        assert_int_equal(out.n_rests, 0);
        assert_memory_equal(first.out, result.out, (1 + i) * 64 * sizeof(float));
        hri_index_truncate(world.b.head, world.b.head->n_blocks / 2);
        assert_true(world.b.head->sketch->rests.first_block <= world.b.head->n_blocks);
        all += rests;
        world_free();
    }
    assert_true(all > 0);
}

/* Values and keys of extreme sizes, and rows that are all the same. */
static void test_absurd_rows(void **state)
{
    (void)state;
    static const float sizes[] = {0, 1e-20f, 1e-6f, 1e4f, 1e12f};
    for (uint32_t i = 0; i < 60; i++) {
        enum { N = 400, D = 32 };
        static struct test_part part;
        struct hri_rng rng;
        struct hri_select_out out;
        hri_rng_seed(&rng, i);
        struct synth rows = synth_make(&rng, N, D, D);
        float *q = synth_queries(&rng, &rows, 20, 2);
        for (uint32_t j = 0; j < N * D; j++) {
            rows.k[j] = i % 4 == 3 ? rows.k[j % D] : rows.k[j] * sizes[i % 5];
            rows.v[j] = i / 5 % 4 == 3 ? rows.v[j % D] : rows.v[j] * sizes[i / 5 % 4];
        }
        for (uint32_t j = 0; j < 40 * D; j++)
            q[j] /= sizes[i % 5] > 1 && i % 4 != 3 ? sizes[i % 5] : 1;
        struct bench_head b;
        struct bench_geometry geometry = {.recipe = recipes[i % 6],
                                          .g = 2,
                                          .k_dim = D,
                                          .v_dim = D,
                                          .horizon_tokens = 64,
                                          .rows_in_host = i / 2 % 2};
        bench_head_init(&b, &geometry, rows.k, rows.v, N, q, 20, 0, N, i % 2 ? 0 : 90);
        for (uint64_t budget = 0; budget <= N * 64; budget += 8 * 64) {
            test_part_clear(&part, 2, D);
            bench_attend(q, 2, D, D, rows.k, rows.v, 3, 0, &part.part);
            bench_head_step(&b, q, budget, 0, NULL, &part.part, &out);
            test_part_finish(&part, 2, D);
            for (uint32_t j = 0; j < 2 * D; j++)
                if (!isfinite(part.out[j]))
                    fail_msg("case %u, budget %llu: not finite", i, (unsigned long long)budget);
            for (uint32_t g = 0; g < 2; g++)
                if (isnan(out.predicted[g]))
                    fail_msg("case %u: predicted error", i);
            assert_true(out.bytes <= budget);
        }
        bench_head_fini(&b);
        synth_free(&rows);
        free(q);
    }
}

/* Random shapes, recipes, places and budgets. HEADRACE_TEST_SEED repeats one. */
/* Sketches in host memory: the device holds all but their codes, a budget pays for what is read of them and is kept, also where it is less
 * than a block's; a budget for everything takes everything; with a budget that is no matter a tolerance chooses as beside the device. */
static void test_sketches_in_host(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 12; i++) {
        static const uint32_t shares[] = {0, 1, 3, 10, 30, 100, 1000};
        struct hri_select_out out, there;
        char recipe[64];
        uint32_t dk = dims[i].dk, dv = dims[i].dv, n = dk > 128 ? 400 : 1500;
        uint64_t all = (uint64_t)n * (dk + dv), read = 0;
        snprintf(recipe, sizeof recipe, "headrace:sketch=%u", 1 + i % 3);
        world_make(recipe, n, 1 + i % 5, dk, dv, i % 4 ? 0 : 500, 0, i % 2 ? 1 : 3, 1300 + i);
        step_both(100 * all, 0.05, NULL, &there);
        uint64_t host = hri_index_host_bytes(world.b.head);
        uint64_t device = hri_index_sketch_bytes(world.b.head);
        uint64_t codes = hri_sketch_code_bytes(world.b.head);
        world_free();
        strcat(recipe, ",sketch_host=1");
        world_make(recipe, n, 1 + i % 5, dk, dv, i % 4 ? 0 : 500, 0, i % 2 ? 1 : 3, 1300 + i);
        assert_int_equal(hri_index_sketch_bytes(world.b.head), device - codes);
        assert_int_equal(hri_index_host_bytes(world.b.head), host + codes);
        for (uint32_t j = 0; j < sizeof shares / sizeof *shares; j++) {
            uint64_t budget = all * shares[j] / 1000 + (j % 2 ? 77 : 0);
            assert_true(step_both(budget, 0, NULL, &out) <= budget);
            read += out.bytes_sketched_host;
            check_output(2e-3);
            check_rows(budget, &out);
        }
        assert_true(read > 0);
        step_both(all + codes, 0, NULL, &out);
        assert_int_equal(out.rows_sketched, n);
        step_both(100 * all, 0.05, NULL, &out);
        check_output(2e-3);
        assert_true(out.bytes_sketched_host > 0 && !out.capped);
        assert_true(predicted_mean(&out) <= fmax(0.05, predicted_mean(&there) * 1.05));
        step_both(all / 1000, 1e-4, NULL, &out);
        assert_true(out.capped && out.bytes <= all / 1000);
        world_free();
    }
}

static void test_random(void **state)
{
    static const uint32_t blocks[] = {4, 7, 18, 36, 48, 64};
    static const double sizes[] = {0, 0.3, 1, 3, 10};
    uint64_t base = test_seed(0);
    (void)state;
    for (uint32_t i = 0; i < (base ? 1 : 40); i++) {
        struct hri_rng rng;
        uint64_t seed = base ? base : 77000 + i;
        hri_rng_seed(&rng, seed);
        char recipe[64];
        uint32_t dk = 8 * (1 + (uint32_t)hri_rng_below(&rng, 16)),
                 dv = 8 * (1 + (uint32_t)hri_rng_below(&rng, 16)),
                 n = 1 + (uint32_t)hri_rng_below(&rng, i % 8 ? 500 : 2500);
        snprintf(recipe, sizeof recipe, "headrace:sketch=%d,block=%u,sketch_host=%d",
                 1 + (int)hri_rng_below(&rng, 3), blocks[hri_rng_below(&rng, 6)], i % 3 == 2);
        world_make(recipe, n, 1 + (uint32_t)hri_rng_below(&rng, 6), dk, dv,
                   hri_rng_below(&rng, 2) ? 0 : 1 + (uint32_t)hri_rng_below(&rng, n),
                   hri_rng_below(&rng, 3) ? 0 : 10, sizes[hri_rng_below(&rng, 5)], seed);
        for (int j = 0; j < 3; j++) {
            struct hri_select_out out;
            uint32_t kind = (uint32_t)hri_rng_below(&rng, 5);
            uint64_t budget = hri_rng_below(&rng, (uint64_t)n * (dk + dv) + 2);
            double tolerance = hri_rng_below(&rng, 4) ? 0 : 0.1 * hri_rng_f64(&rng);
            places_fill(kind, seed);
            if (step_both(budget, tolerance, kind == 4 ? NULL : world.place, &out) > budget)
                say("more than the budget");
            check_output(3e-3);
            if ((kind == 4 || kind == HRI_PLACE_HOST) && tolerance <= 0)
                check_rows(budget, &out);
        }
        world_free();
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nothing_refined),
        cmocka_unit_test(test_rows_within_budget),
        cmocka_unit_test(test_everything_refined),
        cmocka_unit_test(test_soft_cap),
        cmocka_unit_test(test_peaked),
        cmocka_unit_test(test_places),
        cmocka_unit_test(test_frames_are_used),
        cmocka_unit_test(test_tolerance),
        cmocka_unit_test(test_late),
        cmocka_unit_test(test_audits),
        cmocka_unit_test(test_scratch),
        cmocka_unit_test(test_images),
        cmocka_unit_test(test_absurd_rows),
        cmocka_unit_test(test_sketches_in_host),
        cmocka_unit_test(test_random),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
