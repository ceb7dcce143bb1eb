/* Sketched rows of a step: lists, logits and sums of blocks, weights of what is left, values, worth and prediction,
 * against the formulas of docs/algorithm.md (level 1) in double.
 *
 * Tolerances: logits 1e-4 of the sum of their parts' sizes (the query is taken as the int8 that it became); masses,
 * shares and worth 1e-3 of themselves; values 1e-3 of the sum of their parts' sizes (weights keep 16 bits). Lists, marks, costs
 * and counts exactly. */
#include "tests/emu/emu_test.h"

enum { H = 2, BASES = 4, THERE = 3, PART_ROWS = 16, PARTS = 3, BLOCKS_MAX = 64, ROWS_MOST = 48 };
enum { LANES = BLOCKS_MAX * 32, ITEMS = BLOCKS_MAX * PARTS, STRAYS_MAX = 200, LONE_MAX = 200 };
enum { PAIRS_MAX = LANES / 32 + BASES, LIST_MAX = 30 };

struct setup {
    struct hri_cuda_heads heads;
    float soft_cap;
    uint32_t n_blocks[H], n_strays[H], n_lone[H];
    uint32_t *first_lane, *stray_block, *stray_first, *lone_lane, *lone_item;
    uint8_t *block_rows, *miss, *gain, *value_miss, *stray_row, *lone_miss, *codes;
    uint16_t *basis_of;
    float *stray_step, *q, *dots, *near_lse, *factor, *size;
    int8_t *stray_key;
    struct hri_cuda_basis *bases;
    struct hri_cuda_sketch_query *queries;
    struct hri_cuda_rows rows;
    struct hri_cuda_strays strays;
    struct hri_cuda_rows_list list;
    struct hri_cuda_sketch_list sketches;
    /* In double: */
    double *x;                            /* [H][G][LANES] logits */
    double log_mass[H * 16 * BLOCKS_MAX]; /* [H][G][BLOCKS_MAX] */
    double top[H * 16], total[H * 16];
};

static double missed_of(uint32_t code)
{
    return exp2(((double)code - 128) / 16);
}

static void basis_make(struct hri_rng *rng, struct hri_cuda_basis *b, struct hri_cuda_heads heads,
                       uint32_t n4, uint32_t n2)
{
    const uint32_t dk = heads.dk, n = n4 + n2;
    float *scale = device_alloc(dk * 4), *step = device_alloc(n * 4),
          *missed = device_alloc(dk * 4);
    float *value_scale = device_alloc(n * 4);
    for (uint32_t i = 0; i < dk; i++) {
        scale[i] = 0.01f * hri_rng_f32(rng);
        missed[i] = 0.05f * hri_rng_f32(rng);
    }
    for (uint32_t i = 0; i < n; i++) {
        step[i] = 0.1f + 0.2f * hri_rng_f32(rng);
        value_scale[i] = 0.01f * hri_rng_f32(rng);
    }
    *b = (struct hri_cuda_basis){.query = device_codes(rng, (size_t)dk * dk),
                                 .query_scale = scale,
                                 .step = step,
                                 .missed = missed,
                                 .n4 = n4,
                                 .n2 = n2,
                                 .value = device_codes(rng, (size_t)n * heads.dv),
                                 .value_scale = value_scale,
                                 .value_rest = hri_rng_f32(rng)};
}

/* Blocks of a head: of few rows, so that many share a group, or of many; bases begin at groups. */
static void blocks_make(struct hri_rng *rng, struct setup *t, uint32_t h)
{
    uint32_t lane = 0, basis = 0;
    t->n_blocks[h] = h == 0 ? 53 : 37;
    for (uint32_t b = 0; b < t->n_blocks[h]; b++) {
        const size_t at = (size_t)h * BLOCKS_MAX + b;
        if (b == 19 || b == 30) {
            basis++;
            lane = (lane + 15) / 16 * 16;
        }
        t->block_rows[at] = (uint8_t)(1 + hri_rng_below(rng, b % 3 == 0 ? ROWS_MOST : 6));
        t->first_lane[at] = lane;
        t->miss[at] = (uint8_t)(100 + hri_rng_below(rng, 40));
        t->gain[at] = (uint8_t)(60 + hri_rng_below(rng, 100));
        t->value_miss[at] = (uint8_t)(100 + hri_rng_below(rng, 60));
        t->basis_of[at] = (uint16_t)basis;
        lane += t->block_rows[at];
        t->stray_first[at] = t->n_strays[h];
        for (uint32_t r = 0; r < t->block_rows[at] && b % 5 == 2; r += 3) {
            const size_t s = (size_t)h * STRAYS_MAX + t->n_strays[h]++;
            t->stray_block[s] = b;
            t->stray_row[s] = (uint8_t)r;
            t->stray_step[s] = 0.02f * hri_rng_f32(rng);
        }
        for (uint32_t r = 1; r < t->block_rows[at] && b % 6 == 0; r += 7) {
            const size_t s = (size_t)h * LONE_MAX + t->n_lone[h]++;
            t->lone_lane[s] = t->first_lane[at] + r;
            t->lone_item[s] = b * PARTS + r / PART_ROWS;
            t->lone_miss[s] = (uint8_t)(120 + hri_rng_below(rng, 60));
        }
    }
    assert_true(lane <= LANES && t->n_strays[h] <= STRAYS_MAX && t->n_lone[h] <= LONE_MAX);
}

static void arrays_make(struct setup *t)
{
    const size_t blocks = H * BLOCKS_MAX;
    t->first_lane = device_zero(blocks * 4);
    t->stray_first = device_zero(blocks * 4);
    t->block_rows = device_zero(blocks);
    t->miss = device_zero(blocks);
    t->gain = device_zero(blocks);
    t->value_miss = device_zero(blocks);
    t->basis_of = device_zero(blocks * 2);
    t->stray_block = device_zero(H * STRAYS_MAX * 4);
    t->stray_row = device_zero(H * STRAYS_MAX);
    t->stray_step = device_zero(H * STRAYS_MAX * 4);
    t->lone_lane = device_zero(H * LONE_MAX * 4);
    t->lone_item = device_zero(H * LONE_MAX * 4);
    t->lone_miss = device_zero(H * LONE_MAX);
}

static void make(struct setup *t, uint64_t seed)
{
    struct hri_rng rng;
    const struct hri_cuda_heads hd = t->heads;
    const size_t hg = (size_t)H * hd.g;
    const uint32_t lines = hd.dk / 16, stride = LANES / 16 * lines * 64;
    hri_rng_seed(&rng, seed);
    arrays_make(t);
    for (uint32_t h = 0; h < H; h++)
        blocks_make(&rng, t, h);
    t->stray_key = device_codes(&rng, (size_t)H * STRAYS_MAX * hd.dk);
    t->bases = device_zero(H * BASES * sizeof *t->bases);
    for (uint32_t i = 0; i < H * BASES; i++) /* the last of a head is not there */
        if (i % BASES < THERE)
            basis_make(&rng, &t->bases[i], hd, i % 2 ? 8 * lines : 8 * (lines - 1), i % 2 ? 0 : 16);
    t->q = device_normal(&rng, hg * hd.dk, 0.4);
    t->dots = device_normal(&rng, hg * BLOCKS_MAX, 2);
    t->near_lse = device_normal(&rng, hg, 1);
    t->near_lse[0] = -INFINITY;
    t->codes = device_alloc((size_t)H * stride);
    for (size_t i = 0; i < (size_t)H * stride; i++)
        t->codes[i] = (uint8_t)hri_rng_below(&rng, 256);
    t->factor = device_alloc(hg * 4);
    t->size = device_alloc(hg * 4);
    for (size_t i = 0; i < hg; i++) {
        t->factor[i] = 1 + hri_rng_f32(&rng);
        t->size[i] = i == 1 ? 0 : 0.5f + hri_rng_f32(&rng);
    }
    t->queries = device_alloc(H * BASES * sizeof *t->queries);
    t->rows = (struct hri_cuda_rows){.n = device_copy(t->n_blocks, sizeof t->n_blocks),
                                     .blocks_max = BLOCKS_MAX,
                                     .parts = PARTS,
                                     .part_rows = PART_ROWS,
                                     .first_lane = t->first_lane,
                                     .rows = t->block_rows,
                                     .miss = t->miss,
                                     .gain = t->gain,
                                     .value_miss = t->value_miss,
                                     .basis_of = t->basis_of,
                                     .bases = t->bases,
                                     .n_bases = BASES,
                                     .rest = device_zero(H * BASES * hd.g * 4),
                                     .x = device_zero(hg * LANES * 4),
                                     .lanes = LANES,
                                     .log_mass = device_zero(hg * BLOCKS_MAX * 4),
                                     .focus = device_zero(hg * BLOCKS_MAX * 4),
                                     .stride = BLOCKS_MAX,
                                     .top = device_zero(hg * 4),
                                     .total = device_zero(hg * 4)};
    t->strays = (struct hri_cuda_strays){.block = t->stray_block,
                                         .first = t->stray_first,
                                         .row = t->stray_row,
                                         .step = t->stray_step,
                                         .key = t->stray_key,
                                         .n = device_copy(t->n_strays, sizeof t->n_strays),
                                         .max = STRAYS_MAX};
    t->list = (struct hri_cuda_rows_list){.groups = device_zero(H * PAIRS_MAX * 8),
                                          .pair_basis = device_zero(H * PAIRS_MAX * 4),
                                          .n_pairs = device_zero(H * 4),
                                          .pairs_max = PAIRS_MAX,
                                          .work = device_zero(H * BLOCKS_MAX * 4)};
    t->sketches =
        (struct hri_cuda_sketch_list){.codes = t->codes,
                                      .codes_stride = stride,
                                      .bases = t->bases,
                                      .n_bases = BASES,
                                      .lines = lines,
                                      .there = device_copy((uint32_t[H]){THERE, THERE}, 8),
                                      .groups = t->list.groups,
                                      .pair_basis = t->list.pair_basis,
                                      .n_pairs = t->list.n_pairs,
                                      .pairs_max = PAIRS_MAX};
    t->x = calloc(hg * LANES, sizeof *t->x);
    assert_non_null(t->x);
}

/* ----------------------------------------------------------------------------------------- in double */

static double capped(const struct setup *t, double x)
{
    return t->soft_cap > 0 ? t->soft_cap * tanh(x / t->soft_cap) : x;
}

static double rest_of(const struct setup *t, uint32_t h, uint32_t b, uint32_t g)
{
    return t->rows.rest[((size_t)h * BASES + t->basis_of[h * BLOCKS_MAX + b]) * t->heads.g + g];
}

/* The row's codes, less the middle. */
static void codes_of(const struct setup *t, uint32_t h, uint32_t b, uint32_t row, float *out)
{
    const struct hri_cuda_basis *basis = &t->bases[h * BASES + t->basis_of[h * BLOCKS_MAX + b]];
    hri_sketch_unpack(t->codes + h * t->sketches.codes_stride, basis->n4, basis->n2,
                      t->first_lane[h * BLOCKS_MAX + b] + row, out);
}

/* What a row adds to its block's dot, by its own key or by its sketch. */
static double row_score(const struct setup *t, uint32_t h, uint32_t b, uint32_t row, uint32_t g,
                        bool *stray_out)
{
    const uint32_t k = t->basis_of[h * BLOCKS_MAX + b];
    const struct hri_cuda_basis *basis = &t->bases[h * BASES + k];
    const struct hri_cuda_sketch_query *q = &t->queries[h * BASES + k];
    double x = 0;
    float codes[HR_HEAD_DIM_MAX];
    *stray_out = true;
    for (uint32_t i = 0; i < t->n_strays[h]; i++) {
        const size_t s = (size_t)h * STRAYS_MAX + i;
        if (t->stray_block[s] != b || t->stray_row[s] != row)
            continue;
        for (uint32_t j = 0; j < t->heads.dk; j++)
            x += (double)t->stray_step[s] * t->stray_key[s * t->heads.dk + j] *
                 (double)t->q[((size_t)h * t->heads.g + g) * t->heads.dk + j];
        return x;
    }
    *stray_out = false;
    codes_of(t, h, b, row, codes);
    for (uint32_t i = 0; i < basis->n4 + basis->n2; i++)
        x += (double)codes[i] * (i < basis->n4 ? (double)q->scale4[g] * q->q4[g][i]
                                               : (double)q->scale2[g] * q->q2[g][i - basis->n4]);
    return x * t->gain[h * BLOCKS_MAX + b] / 128;
}

static double row_logit(const struct setup *t, uint32_t h, uint32_t b, uint32_t row, uint32_t g)
{
    double x = t->dots[((size_t)h * t->heads.g + g) * BLOCKS_MAX + b], sum = 0, others = 0;
    bool stray;
    for (uint32_t i = 0; i < t->block_rows[h * BLOCKS_MAX + b]; i++) {
        sum += row_score(t, h, b, i, g, &stray);
        others += !stray;
    }
    x += row_score(t, h, b, row, g, &stray);
    if (stray)
        return capped(t, x);
    return capped(t, x - sum / others) +
           fmin(0.5 * missed_of(t->miss[h * BLOCKS_MAX + b]) * rest_of(t, h, b, g), 1);
}

static void reference(struct setup *t)
{
    for (uint32_t i = 0; i < H * t->heads.g; i++) {
        const uint32_t h = i / t->heads.g, g = i % t->heads.g;
        double top = (double)t->near_lse[i], total;
        for (uint32_t b = 0; b < t->n_blocks[h]; b++) {
            double sum = 0;
            for (uint32_t r = 0; r < t->block_rows[h * BLOCKS_MAX + b]; r++) {
                double x = row_logit(t, h, b, r, g);
                t->x[(size_t)i * LANES + t->first_lane[h * BLOCKS_MAX + b] + r] = x;
                sum += exp(x);
            }
            t->log_mass[i * BLOCKS_MAX + b] = log(sum);
            top = fmax(top, log(sum));
        }
        total = exp((double)t->near_lse[i] - top);
        for (uint32_t b = 0; b < t->n_blocks[h]; b++)
            total += exp(t->log_mass[i * BLOCKS_MAX + b] - top);
        t->top[i] = top;
        t->total[i] = total;
    }
}

static bool weighty(const struct setup *t, uint32_t h, uint32_t b, struct hri_cuda_rows_least l)
{
    const double least = (double)l.share_min / (l.of_mean ? t->n_blocks[h] : 1);
    bool any = least < 0;
    for (uint32_t i = h * t->heads.g; i < (h + 1) * t->heads.g; i++)
        any |= exp(t->log_mass[i * BLOCKS_MAX + b] - t->top[i]) > least * t->total[i];
    return any;
}

/* --------------------------------------------------------------------------------------------- checks */

static void check_list(const struct setup *t, struct hri_cuda_rows_least least)
{
    for (uint32_t h = 0; h < H; h++) {
        uint8_t want[LANES / 16] = {0}, basis[LANES / 16] = {0};
        for (uint32_t b = 0; b < t->n_blocks[h]; b++) {
            const size_t at = h * BLOCKS_MAX + b;
            const uint32_t lane = t->first_lane[at];
            for (uint32_t i = lane / 16; i <= (lane + t->block_rows[at] - 1) / 16; i++) {
                want[i] |= weighty(t, h, b, least);
                basis[i] = (uint8_t)t->basis_of[at];
            }
        }
        for (uint32_t p = 0; p < 2 * t->list.n_pairs[h]; p++) {
            const uint32_t group = t->list.groups[(size_t)h * PAIRS_MAX * 2 + p];
            if (group == HRI_CUDA_NONE) {
                assert_int_equal(p % 2, 1);
                continue;
            }
            assert_true(want[group]);
            assert_int_equal(basis[group], t->list.pair_basis[h * PAIRS_MAX + p / 2]);
            want[group] = 0; /* once */
        }
        for (uint32_t i = 0; i < LANES / 16; i++)
            assert_false(want[i]);
    }
}

static void check_weigh(const struct setup *t)
{
    for (uint32_t i = 0; i < H * t->heads.g; i++) {
        const uint32_t h = i / t->heads.g;
        for (uint32_t b = 0; b < t->n_blocks[h]; b++) {
            double square = 0, mass = exp(t->log_mass[i * BLOCKS_MAX + b]);
            for (uint32_t r = 0; r < t->block_rows[h * BLOCKS_MAX + b]; r++) {
                const size_t at = (size_t)i * LANES + t->first_lane[h * BLOCKS_MAX + b] + r;
                CHECK_BELOW(fabs((double)t->rows.x[at] - t->x[at]), 1e-4 * (10 + fabs(t->x[at])));
                square += exp(2 * t->x[at]);
            }
            CHECK_BELOW(fabs((double)t->rows.log_mass[i * BLOCKS_MAX + b] -
                             t->log_mass[i * BLOCKS_MAX + b]),
                        1e-3);
            CHECK_BELOW(fabs((double)t->rows.focus[i * BLOCKS_MAX + b] * mass * mass / square - 1),
                        4e-3);
        }
        CHECK_BELOW(fabs((double)t->rows.top[i] - t->top[i]), 1e-3);
        CHECK_BELOW(fabs((double)t->rows.total[i] / t->total[i] - 1), 3e-3);
    }
}

/* Of row r of block b: its weight over exp(top), 0 once refined. */
static double weight_left(const struct setup *t, const uint8_t *mark, uint32_t i, uint32_t b,
                          uint32_t r)
{
    const uint32_t h = i / t->heads.g;
    const size_t at = h * BLOCKS_MAX + b;
    const bool in = mark == NULL || mark[at * PARTS + r / PART_ROWS];
    return in ? exp(t->x[(size_t)i * LANES + t->first_lane[at] + r] - t->top[i]) : 0;
}

static void check_fill(const struct setup *t, struct hri_cuda_rows_least least,
                       const struct hri_cuda_rows_fill *f)
{
    for (uint32_t i = 0; i < H * t->heads.g; i++) {
        const uint32_t h = i / t->heads.g;
        double want[LANES] = {0};
        for (uint32_t b = 0; b < t->n_blocks[h]; b++) {
            double mass = 0, square = 0;
            for (uint32_t r = 0; r < t->block_rows[h * BLOCKS_MAX + b]; r++) {
                double w = weight_left(t, f->mark, i, b, r);
                mass += w;
                square += w * w;
                if (weighty(t, h, b, least))
                    want[t->first_lane[h * BLOCKS_MAX + b] + r] = w;
            }
            if (f->left_mass == NULL)
                continue;
            double got = exp((double)f->left_mass[i * BLOCKS_MAX + b] - t->top[i]);
            CHECK_BELOW(fabs(got - mass), 2e-3 * mass + 1e-30);
            CHECK_BELOW(fabs((double)f->left_square[i * BLOCKS_MAX + b] - square),
                        5e-3 * square + 1e-30);
        }
        for (uint32_t p = 0; p < 2 * t->list.n_pairs[h]; p++) {
            const uint32_t group = t->list.groups[(size_t)h * PAIRS_MAX * 2 + p];
            for (uint32_t r = 0; group != HRI_CUDA_NONE && r < 16; r++) {
                const double w = want[group * 16 + r];
                CHECK_BELOW(fabs((double)f->w[(size_t)i * LANES + group * 16 + r] - w),
                            2e-3 * w + 1e-30);
            }
        }
    }
}

static void check_values(const struct setup *t, struct hri_cuda_rows_least least,
                         const uint8_t *mark, const float *got)
{
    const uint32_t dv = t->heads.dv;
    for (uint32_t i = 0; i < H * t->heads.g; i++) {
        const uint32_t h = i / t->heads.g;
        double want[HR_HEAD_DIM_MAX] = {0}, size = 0;
        for (uint32_t b = 0; b < t->n_blocks[h]; b++) {
            const struct hri_cuda_basis *basis =
                &t->bases[h * BASES + t->basis_of[h * BLOCKS_MAX + b]];
            for (uint32_t r = 0; weighty(t, h, b, least) && r < t->block_rows[h * BLOCKS_MAX + b];
                 r++) {
                float codes[HR_HEAD_DIM_MAX];
                double w = weight_left(t, mark, i, b, r);
                codes_of(t, h, b, r, codes);
                for (uint32_t c = 0; c < basis->n4 + basis->n2; c++)
                    for (uint32_t j = 0; j < dv; j++) {
                        double x = w * (double)codes[c] * (double)basis->value_scale[c] *
                                   basis->value[c * dv + j];
                        want[j] += x;
                        size += fabs(x) / dv;
                    }
            }
        }
        for (uint32_t j = 0; j < dv; j++)
            CHECK_BELOW(fabs((double)got[(size_t)i * dv + j] - want[j]), 2e-3 * size + 1e-30);
    }
}

/* Relative squared error of row r of block b for query head i; lift: of what it promises, with this miss of its own. */
static double row_error(const struct setup *t, uint32_t i, uint32_t b, uint32_t r, double lone)
{
    const uint32_t h = i / t->heads.g, g = i % t->heads.g;
    const size_t at = h * BLOCKS_MAX + b;
    double p = weight_left(t, NULL, i, b, r) / t->total[i], rest = rest_of(t, h, b, g);
    double v = fmin(missed_of(t->miss[at]) * rest, 1), excess = v + v * v / 2 + v * v * v / 6;
    double factor = excess * (double)t->factor[i];
    if (t->size[i] > 0)
        factor += (1 + excess) * missed_of(t->value_miss[at]) *
                  (double)t->bases[h * BASES + t->basis_of[at]].value_rest / (double)t->size[i];
    return factor * p * p * exp(2 * fmin(1.4 * sqrt(lone * rest), 20));
}

/* Squared relative error that all weights of query head i leave by being off in common. */
static double drift_left(const struct setup *t, const uint8_t *mark, uint32_t i,
                         const float *common)
{
    const uint32_t h = i / t->heads.g, g = i % t->heads.g;
    double drift = 0;
    for (uint32_t b = 0; b < t->n_blocks[h]; b++) {
        const double missed = missed_of(t->miss[h * BLOCKS_MAX + b]) * rest_of(t, h, b, g);
        for (uint32_t r = 0; r < t->block_rows[h * BLOCKS_MAX + b]; r++)
            drift += weight_left(t, mark, i, b, r) / t->total[i] * 0.15 * fmin(missed, 1);
    }
    return drift * drift * (double)common[i];
}

/* How many rows are worth so much: to within one part that lies at an edge. */
static void check_bins(const struct setup *t, uint32_t h, const uint32_t *bins)
{
    int more[HRI_CUDA_WORTH_BINS] = {0}, sum = 0;
    for (uint32_t item = 0; item < t->n_blocks[h] * PARTS; item++) {
        const uint32_t b = item / PARTS, all = t->block_rows[h * BLOCKS_MAX + b];
        double worth = 0;
        int n = 0;
        for (uint32_t r = item % PARTS * PART_ROWS; r < all && n < PART_ROWS; r++, n++)
            for (uint32_t i = h * t->heads.g; i < (h + 1) * t->heads.g; i++)
                worth += row_error(t, i, b, r, 0);
        if (n == 0 || !weighty(t, h, b, (struct hri_cuda_rows_least){1e-3f, 1}))
            continue;
        const int exponent = 127 + (int)floor(log2(worth / n));
        more[exponent > 0 ? exponent : 0] -= n;
    }
    for (uint32_t i = HRI_CUDA_WORTH_BINS; i-- > 1;) {
        sum += more[i] + (int)bins[i];
        assert_true(abs(sum) <= PART_ROWS);
    }
}

static void check_worth(const struct setup *t, const struct hri_cuda_worth_rows_args *a)
{
    for (uint32_t h = 0; h < H; h++) {
        double left = 0;
        check_bins(t, h, a->bins + h * HRI_CUDA_WORTH_BINS);
        for (uint32_t item = 0; item < t->n_blocks[h] * PARTS; item++) {
            const uint32_t b = item / PARTS, first = item % PARTS * PART_ROWS;
            const uint32_t all = t->block_rows[h * BLOCKS_MAX + b];
            const uint32_t rows =
                all > first ? (all - first < PART_ROWS ? all - first : PART_ROWS) : 0;
            const bool singly = weighty(t, h, b, (struct hri_cuda_rows_least){1e-3f, 1});
            double error = 0, lift = 0;
            for (uint32_t i = h * t->heads.g; i < (h + 1) * t->heads.g; i++) {
                double whole = 0, part = 0;
                for (uint32_t r = 0; r < all; r++) {
                    double e = row_error(t, i, b, r, 0);
                    whole += e;
                    part += r >= first && r < first + rows ? e : 0;
                }
                error += singly ? part : whole * rows / all;
            }
            for (uint32_t k = 0; k < t->n_lone[h]; k++) {
                const size_t s = (size_t)h * LONE_MAX + k;
                double more = 0;
                if (t->lone_item[s] != item)
                    continue;
                for (uint32_t i = h * t->heads.g; i < (h + 1) * t->heads.g; i++) {
                    const uint32_t r = t->lone_lane[s] - t->first_lane[h * BLOCKS_MAX + b];
                    more += row_error(t, i, b, r, missed_of(t->lone_miss[s])) -
                            row_error(t, i, b, r, 0);
                }
                lift += more;
            }
            const size_t at = (size_t)h * ITEMS + item;
            assert_int_equal(a->cost[at], rows * a->row_bytes);
            if (rows == 0) {
                assert_true(a->key[at] == 0 && a->error[at] == 0);
                continue;
            }
            assert_true(a->key[at] > 0);
            assert_int_equal(a->class_[at], a->frame_of[at] != HRI_CUDA_NONE);
            CHECK_BELOW(fabs((double)a->error[at] - error), 5e-3 * error + 1e-30);
            CHECK_BELOW(fabs((double)a->key[at] - (error + lift) / a->cost[at]),
                        1e-2 * (error + lift) / a->cost[at] + 1e-30);
            left += error;
        }
        for (uint32_t i = h * t->heads.g; a->common && i < (h + 1) * t->heads.g; i++)
            left += drift_left(t, NULL, i, a->common);
        CHECK_BELOW(fabs((double)a->left[h] - left), 5e-3 * left);
    }
}

static void check_predict(const struct setup *t, const uint8_t *mark,
                          const struct hri_cuda_predict_rows_args *a)
{
    for (uint32_t i = 0; i < H * t->heads.g; i++) {
        const uint32_t h = i / t->heads.g;
        double left = 0, late = 0;
        uint32_t counts[6] = {0};
        for (uint32_t b = 0; b < t->n_blocks[h]; b++)
            for (uint32_t r = 0; r < t->block_rows[h * BLOCKS_MAX + b]; r++) {
                const size_t item = ((size_t)h * BLOCKS_MAX + b) * PARTS + r / PART_ROWS;
                left += mark[item] ? row_error(t, i, b, r, 0) : 0;
            }
        for (uint32_t k = 0; k < a->n_items[h]; k++) {
            const size_t at = h * LIST_MAX + k;
            const uint32_t item = a->items[at], b = item / PARTS;
            const bool came = a->frames_of[at] != HRI_CUDA_NONE;
            uint32_t rows = 0;
            for (uint32_t r = item % PARTS * PART_ROWS;
                 r < t->block_rows[h * BLOCKS_MAX + b] && rows < PART_ROWS; r++, rows++)
                late += came ? 0 : row_error(t, i, b, r, 0);
            const bool hit = a->class_[(size_t)h * ITEMS + item];
            counts[0] += came;
            counts[1] += came && hit;
            counts[2] += !came;
            counts[3] += came ? rows : 0;
            counts[4] += came && hit ? rows : 0;
            counts[5] += came ? 0 : rows;
        }
        left += drift_left(t, mark, i, a->common);
        CHECK_BELOW(fabs((double)a->predicted[i] - sqrt(left)), 5e-3 * sqrt(left) + 1e-12);
        CHECK_BELOW(fabs((double)a->late[i] - sqrt(late)), 5e-3 * sqrt(late) + 1e-12);
        for (uint32_t k = 0; i % t->heads.g == 0 && k < 6; k++)
            assert_int_equal(a->counts[h * 6 + k], counts[k]);
    }
}

/* --------------------------------------------------------------------------------------------- the run */

static void values(const struct setup *t, struct hri_cuda_rows_least l, const uint8_t *mark)
{
    const struct hri_cuda_heads hd = t->heads;
    const size_t hg = (size_t)H * hd.g;
    struct hri_cuda_rows_fill fill = {.mark = mark, .w = device_zero(hg * LANES * 4)};
    for (size_t i = 0; i < hg * LANES; i++)
        fill.w[i] = NAN; /* what is not listed is not looked at */
    if (mark != NULL) {
        fill.left_mass = device_zero(hg * BLOCKS_MAX * 4);
        fill.left_square = device_zero(hg * BLOCKS_MAX * 4);
    }
    RUN(hri_cuda_list_rows(&t->rows, l, &t->list, hd, NULL));
    RUN(hri_cuda_fill_rows(&t->rows, l, &fill, hd, NULL));
    check_list(t, l);
    check_fill(t, l, &fill);
    struct hri_cuda_sketch_sum sum = {.w = fill.w, .stride = LANES};
    sum.sum = device_zero(hg * BASES * HR_HEAD_DIM_MAX * 4);
    sum.work = device_alloc(hri_cuda_sum_sketch_work(hd, BASES, t->sketches.lines) * 4);
    sum.arrived = device_zero(hri_cuda_sum_sketch_counters(hd, BASES, t->sketches.lines) * 4);
    RUN(hri_cuda_sum_sketch(&t->sketches, &sum, hd, NULL));
    struct hri_cuda_rows_values v = {.sum = sum.sum,
                                     .bases = t->bases,
                                     .n_bases = BASES,
                                     .there = t->sketches.there,
                                     .out = device_alloc(hg * hd.dv * 4),
                                     .work = device_alloc(hg * BASES * hd.dv * 4),
                                     .arrived = device_zero(H * 4)};
    for (int again = 0; again < 2; again++)
        RUN(hri_cuda_value_rows(&v, hd, NULL));
    check_values(t, l, mark, v.out);
}

static void worth(const struct setup *t, struct hri_rng *rng, uint8_t *mark)
{
    const size_t hg = (size_t)H * t->heads.g;
    struct hri_cuda_worth_rows_args a = {.factor = t->factor,
                                         .size = t->size,
                                         .lone = {t->lone_lane, t->lone_item, t->lone_miss,
                                                  device_copy(t->n_lone, sizeof t->n_lone),
                                                  LONE_MAX},
                                         .row_bytes = 32,
                                         .key = device_zero(H * ITEMS * 4),
                                         .error = device_zero(H * ITEMS * 4),
                                         .cost = device_zero(H * ITEMS * 4),
                                         .class_ = device_zero(H * ITEMS),
                                         .left = device_zero(H * 4),
                                         .bins = device_alloc(H * HRI_CUDA_WORTH_BINS * 4),
                                         .bins_work = device_zero(H * HRI_CUDA_WORTH_BINS * 4)};
    uint32_t *frame_of = device_zero(H * ITEMS * 4), *items = device_zero(H * LIST_MAX * 4);
    uint32_t *frames = device_zero(H * LIST_MAX * 4), *n_items = device_zero(H * 4);
    for (uint32_t i = 0; i < H * ITEMS; i++)
        frame_of[i] = hri_rng_below(rng, 3) ? HRI_CUDA_NONE : i;
    a.frame_of = frame_of;
    float *common = device_alloc(hg * 4);
    for (size_t i = 0; i < hg; i++)
        common[i] = t->factor[i] * hri_rng_f32(rng);
    for (int with = 0; with < 2; with++) {
        a.common = with ? common : NULL;
        RUN(hri_cuda_worth_rows(&t->rows, &a, t->heads, NULL));
        check_worth(t, &a);
    }
    for (uint32_t h = 0; h < H; h++)
        for (uint32_t i = h; i < t->n_blocks[h] * PARTS && n_items[h] < LIST_MAX; i += 2) {
            if (a.cost[(size_t)h * ITEMS + i] == 0)
                continue;
            frames[h * LIST_MAX + n_items[h]] = i % 5 == 1 ? HRI_CUDA_NONE : i;
            items[h * LIST_MAX + n_items[h]++] = i;
            mark[(size_t)h * ITEMS + i] = i % 5 == 1;
        }
    values(t, (struct hri_cuda_rows_least){0.01f, 0}, mark);
    values(t, (struct hri_cuda_rows_least){1e-3f, 1}, mark);
    struct hri_cuda_rows_fill fill = {.mark = mark,
                                      .w = device_alloc(hg * LANES * 4),
                                      .left_mass = device_alloc(hg * BLOCKS_MAX * 4),
                                      .left_square = device_alloc(hg * BLOCKS_MAX * 4)};
    RUN(hri_cuda_fill_rows(&t->rows, (struct hri_cuda_rows_least){1e-3f, 1}, &fill, t->heads,
                           NULL));
    struct hri_cuda_predict_rows_args p = {.factor = t->factor,
                                           .size = t->size,
                                           .common = common,
                                           .left_mass = fill.left_mass,
                                           .left_square = fill.left_square,
                                           .items = items,
                                           .n_items = n_items,
                                           .frames_of = frames,
                                           .items_max = LIST_MAX,
                                           .class_ = a.class_,
                                           .predicted = device_alloc(hg * 4),
                                           .late = device_alloc(hg * 4),
                                           .counts = device_alloc(H * 24)};
    RUN(hri_cuda_predict_rows(&t->rows, &p, t->heads, NULL));
    check_predict(t, mark, &p);
}

static void run(struct hri_cuda_heads heads, float soft_cap, int order)
{
    struct setup *t = calloc(1, sizeof *t);
    struct hri_rng rng;
    assert_non_null(t);
    hri_rng_seed(&rng, 17);
    t->heads = heads;
    t->soft_cap = soft_cap;
    make(t, 5 + heads.dk + heads.g);
    set_order(order);
    const struct hri_cuda_rows_least all = {-1, 0};
    RUN(hri_cuda_query_sketch(t->q, heads, t->bases, BASES, t->sketches.there, t->queries,
                              (float *)(uintptr_t)t->rows.rest, NULL));
    RUN(hri_cuda_list_rows(&t->rows, all, &t->list, heads, NULL));
    RUN(hri_cuda_score_sketch(&t->sketches, t->queries, heads, t->rows.x, LANES, NULL));
    RUN(hri_cuda_weigh_rows(&t->rows, &t->strays, t->q, t->dots, soft_cap, heads, NULL));
    RUN(hri_cuda_total_rows(&t->rows, t->near_lse, (float *)(uintptr_t)t->rows.top,
                            (float *)(uintptr_t)t->rows.total, heads, NULL));
    reference(t);
    check_list(t, all);
    check_weigh(t);
    uint8_t *mark = device_alloc(H * ITEMS);
    memset(mark, 1, H * ITEMS);
    values(t, (struct hri_cuda_rows_least){0.002f, 0}, NULL);
    worth(t, &rng, mark);
    free(t->x);
    free(t);
    device_free_all();
}

static void test_rows(void **state)
{
    (void)state;
    const struct hri_cuda_heads heads[] = {
        {H, 1, 16, 16}, {H, 4, 64, 64}, {H, 9, 80, 96}, {H, 16, 128, 128}, {H, 2, 256, 256}};
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++)
        FOR_EACH_ORDER(order)
        {
            snprintf(case_text, sizeof case_text, "dk %u g %u order %d", heads[i].dk, heads[i].g,
                     order);
            run(heads[i], i == 1 ? 6 : 0, order);
        }
}

/* No blocks yet: nothing is listed, and what was attended before is all there is. */
static void test_none(void **state)
{
    (void)state;
    struct setup *t = calloc(1, sizeof *t);
    assert_non_null(t);
    t->heads = (struct hri_cuda_heads){H, 4, 64, 64};
    make(t, 3);
    t->rows.n = device_zero(H * 4);
    RUN(hri_cuda_list_rows(&t->rows, (struct hri_cuda_rows_least){-1, 0}, &t->list, t->heads,
                           NULL));
    RUN(hri_cuda_total_rows(&t->rows, t->near_lse, (float *)(uintptr_t)t->rows.top,
                            (float *)(uintptr_t)t->rows.total, t->heads, NULL));
    for (uint32_t h = 0; h < H; h++)
        assert_int_equal(t->list.n_pairs[h], 0);
    assert_true(t->rows.total[0] == 0 && isinf(t->rows.top[0]));
    assert_true(t->rows.total[1] == 1 && t->rows.top[1] == t->near_lse[1]);
    free(t->x);
    free(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {EMU_TEST(test_rows), EMU_TEST(test_none)};
    return cmocka_run_group_tests(tests, small_machine, NULL);
}
