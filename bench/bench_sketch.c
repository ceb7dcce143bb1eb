/* Scores of sketched rows beside a plain read of the same bytes, and a pass over summaries and
 * sketches beside full attention over the same rows. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/half.h"
#include "base/rng.h"
#include "base/threads.h"
#include "bench/measure.h"
#include "bench/peak.h"
#include "bench/read_memory.h"
#include "bench/subjects.h"
#include "kernels/kernels.h"

#define DIM          128
#define PIECE_ROWS   4096 /* rows of one task */
#define HEAD_ROWS    131072
#define HEAD_GROUPS  (HEAD_ROWS / 16)
#define HEAD_BLOCKS  (HEAD_ROWS / 32)
#define CHUNK_ROWS   1024 /* scored at a time, as in a step (index/ladder_state.h) */
#define CHUNK_GROUPS (CHUNK_ROWS / 16)

/* Widths as water-filling deals them to the keys of a language model at a mean of 1 and 2 bits. */
#define N4_1BIT 8
#define N2_1BIT 48
#define N4_2BIT 24
#define N2_2BIT 80

struct scan {
    const struct hri_kernels *kernels;
    struct hri_pool *pool;
    uint32_t g, n4, n2;
    uint32_t
        n_groups; /* of a piece: PIECE_ROWS beside a read, a head beside full attention, as in a step */
    unsigned n_pieces;
    size_t piece_bytes;      /* of codes */
    struct hri_region codes; /* [n_pieces] */
    struct hri_sketch_query *query;
    float *x;                   /* [g][n4 + n2] */
    uint32_t list[HEAD_GROUPS]; /* groups of a piece that are scored */
    uint32_t n_list;
    float *scores; /* [threads][g][CHUNK_ROWS] */
    uint64_t sink;
    /* beside full attention */
    struct hri_region rows, centroids; /* bf16 K and V; summaries: codes then steps */
    float *q, *floats;                 /* [g][DIM]; the partials' memory */
    struct hri_partial *part;          /* [ROW_PIECES] */
    float *block_scores, *acc;         /* [threads][g][HEAD_BLOCKS]; [threads][g][DIM] */
    struct hri_region weights;         /* [threads][g][HEAD_ROWS] floats */
    bool sum;                          /* with the weighted sum over the codes */
};

static void scan_fini(struct scan *s)
{
    hri_region_free(NULL, &s->codes);
    hri_region_free(NULL, &s->rows);
    hri_region_free(NULL, &s->centroids);
    hri_region_free(NULL, &s->weights);
    hri_pool_destroy(s->pool);
    free(s->query);
    free(s->x);
    free(s->scores);
    free(s->q);
    free(s->floats);
    free(s->part);
    free(s->block_scores);
    free(s->acc);
}

static unsigned char *codes_at(const struct scan *s, unsigned piece)
{
    return (unsigned char *)s->codes.base + piece * s->piece_bytes;
}

static float *scores_at(const struct scan *s, unsigned worker)
{
    return s->scores + worker * s->g * CHUNK_ROWS;
}

/* The caller has set g, n4, n2 and n_groups. */
static int scan_init(struct scan *s, const struct hrb_options *options, unsigned n_pieces)
{
    struct hri_rng rng;
    const size_t width = s->n4 + s->n2;
    s->kernels = hri_kernels_get(hri_kernels_best());
    s->n_pieces = n_pieces;
    s->piece_bytes = s->n_groups * hri_sketch_group_bytes(s->n4, s->n2);
    if (hri_pool_create(NULL, options->n_threads, &s->pool) != HR_OK ||
        hri_region_alloc(NULL, n_pieces * s->piece_bytes, &s->codes) != HR_OK)
        return 1;
    const size_t score_floats = hri_pool_size(s->pool) * s->g * CHUNK_ROWS;
    s->query = aligned_alloc(64, sizeof *s->query);
    s->x = malloc(sizeof(float) * s->g * width);
    s->scores = malloc(sizeof(float) * score_floats);
    if (!s->query || !s->x || !s->scores)
        return 1;
    memset(s->scores, 0, sizeof(float) * score_floats);
    hri_rng_seed(&rng, 4);
    for (size_t i = 0; i < s->g * width; i++)
        s->x[i] = (float)hri_rng_normal(&rng) * 0.1f;
    hri_sketch_query_make(s->query, s->x, s->g, s->n4, s->n2);
    for (size_t i = 0; i < s->piece_bytes; i++)
        ((unsigned char *)s->codes.base)[i] = (unsigned char)hri_rng_below(&rng, 256);
    for (unsigned i = 1; i < n_pieces; i++)
        memcpy(codes_at(s, i), s->codes.base, s->piece_bytes);
    for (uint32_t i = 0; i < s->n_groups; i++)
        s->list[s->n_list++] = i;
    return 0;
}

/* The groups listed from the i-th on that one chunk holds. */
static uint32_t chunk_groups(const struct scan *s, uint32_t i)
{
    return s->n_list - i < CHUNK_GROUPS ? s->n_list - i : CHUNK_GROUPS;
}

static void score_chunk(struct scan *s, unsigned piece, uint32_t i, float *out)
{
    const struct hri_sketch_rows rows = {codes_at(s, piece), s->n4, s->n2};
    s->kernels->score_sketch(s->query, s->g, rows, s->list + i, chunk_groups(s, i), s->n_list - i,
                             out, CHUNK_ROWS);
}

/* The largest difference from the decoded codes times the float query. The rounding of the query
 * allows a hundredth of the spread of the scores. */
static double score_error(struct scan *s)
{
    float centred[DIM];
    double worst = 0, square = 0;
    float *out = scores_at(s, 0);
    for (uint32_t j = 0; j < s->n_list * 16; j++) {
        const uint32_t row = s->list[j / 16] * 16 + j % 16;
        if (j % CHUNK_ROWS == 0)
            score_chunk(s, 0, j / 16, out);
        hri_sketch_unpack(codes_at(s, 0), s->n4, s->n2, row, centred);
        for (uint32_t gh = 0; gh < s->g; gh++) {
            double dot = 0;
            for (uint32_t i = 0; i < s->n4 + s->n2; i++)
                dot += (double)s->x[gh * (s->n4 + s->n2) + i] * (double)centred[i];
            square += dot * dot;
            worst = fmax(worst, fabs(dot - (double)out[gh * CHUNK_ROWS + j % CHUNK_ROWS]));
        }
    }
    return worst / sqrt(square / (s->n_list * 16.0 * s->g));
}

/* -- scores beside a read -- */

static void score_task(void *context, unsigned task, unsigned worker)
{
    struct scan *s = context;
    for (uint32_t i = 0; i < s->n_list; i += CHUNK_GROUPS)
        score_chunk(s, task, i, scores_at(s, worker));
}

static double score_run(void *context)
{
    struct scan *s = context;
    return hrb_pool_seconds(s->pool, score_task, s, s->n_pieces);
}

static void read_task(void *context, unsigned task, unsigned worker)
{
    struct scan *s = context;
    (void)worker;
    uint64_t sum = hrb_read_memory(codes_at(s, task), s->piece_bytes);
    __atomic_fetch_xor(&s->sink, sum, __ATOMIC_RELAXED);
}

static double read_run(void *context)
{
    struct scan *s = context;
    return hrb_pool_seconds(s->pool, read_task, s, s->n_pieces);
}

/* The roofline: a byte of codes stands for several products with every query, and what the processor can multiply a second may be the
 * lower roof. share_of_roof is the rate over the lower one. */
static void roof_tell(const struct scan *s, struct hrb_result *result)
{
    double per_byte = 16.0 * (s->n4 + s->n2) * s->g / (double)hri_sketch_group_bytes(s->n4, s->n2);
    double peak = hrb_peak_products(s->pool, hri_kernels_best());
    if (peak <= 0)
        return;
    double roof = peak / per_byte * 1e-9;
    result->details = cJSON_CreateObject();
    cJSON_AddNumberToObject(result->details, "products_per_byte", per_byte);
    cJSON_AddNumberToObject(result->details, "multiplying_gbps", roof);
    cJSON_AddNumberToObject(result->details, "share_of_roof",
                            result->value / fmin(roof, result->limit));
}

int hrb_sketch_score(const struct hrb_benchmark *self, const struct hrb_options *options,
                     struct hrb_result *result)
{
    const bool one = self->variant < 200;
    struct scan s = {.g = (uint32_t)self->variant % 100,
                     .n4 = one ? N4_1BIT : N4_2BIT,
                     .n2 = one ? N2_1BIT : N2_2BIT,
                     .n_groups = PIECE_ROWS / 16};
    struct hrb_pair pair;
    const size_t bytes = options->quick ? 256u << 20 : 512u << 20;
    const size_t piece_bytes = s.n_groups * hri_sketch_group_bytes(s.n4, s.n2);
    int code = 1;
    if (scan_init(&s, options, (unsigned)(bytes / piece_bytes))) {
        hrb_failed(result, "out of memory");
        goto out;
    }
    double error = score_error(&s);
    if (!(error < 0.05)) {
        hrb_failed(result, "a score is off by %g of their spread", error);
        goto out;
    }
    if (hrb_measure(options, options->quick ? 5 : 21, score_run, &s, read_run, &s, &pair)) {
        hrb_failed(result, "stopped");
        goto out;
    }
    hrb_result_rate(result, &pair, s.n_pieces * s.piece_bytes);
    result->limit_is = "read of the same bytes";
    roof_tell(&s, result);
    code = 0;
out:
    scan_fini(&s);
    return code;
}

/* -- a pass over summaries and sketches beside full attention -- */

#define HEADS       8
#define GROUP       4
#define ROW_BYTES   (2 * DIM * 2)
#define EVICT_BYTES (64u << 20)                        /* more than the last-level cache keeps */
#define ROW_PIECES  (HEADS * (HEAD_ROWS / PIECE_ROWS)) /* of full attention */
#define EVICT_PIECE (1u << 20)

static size_t summary_bytes(void)
{
    return hri_centroids_bytes(HEAD_BLOCKS, DIM) + HEAD_BLOCKS * sizeof(float);
}

static int full_init(struct scan *s)
{
    struct hri_rng rng;
    float centroid[DIM];
    const size_t piece = (size_t)PIECE_ROWS * ROW_BYTES, entry = (size_t)s->g * (2 + DIM);
    const size_t threads = hri_pool_size(s->pool);
    if (hri_region_alloc(NULL, ROW_PIECES * piece, &s->rows) != HR_OK ||
        hri_region_alloc(NULL, s->n_pieces * summary_bytes(), &s->centroids) != HR_OK ||
        hri_region_alloc(NULL, threads * s->g * HEAD_ROWS * sizeof(float), &s->weights) != HR_OK)
        return 1;
    s->q = malloc(sizeof(float) * s->g * DIM);
    s->floats = malloc(sizeof(float) * entry * ROW_PIECES);
    s->part = calloc(ROW_PIECES, sizeof *s->part);
    s->block_scores = malloc(sizeof(float) * s->g * HEAD_BLOCKS * threads);
    s->acc = calloc(threads * s->g * DIM, sizeof(float));
    if (!s->q || !s->floats || !s->part || !s->block_scores || !s->acc)
        return 1;
    hri_rng_seed(&rng, 5);
    for (uint32_t i = 0; i < s->g * DIM; i++)
        s->q[i] = (float)hri_rng_normal(&rng) * 0.088f;
    for (size_t i = 0; i < piece / 2; i++)
        ((uint16_t *)s->rows.base)[i] = hri_bf16_from_f32(2 * hri_rng_f32(&rng) - 1);
    float *steps =
        (float *)(void *)((char *)s->centroids.base + hri_centroids_bytes(HEAD_BLOCKS, DIM));
    for (uint32_t b = 0; b < HEAD_BLOCKS; b++) {
        for (int i = 0; i < DIM; i++)
            centroid[i] = (float)hri_rng_normal(&rng) * 0.5f;
        steps[b] = hri_centroid_pack(s->centroids.base, DIM, b, centroid);
    }
    for (unsigned i = 0; i < ROW_PIECES; i++) {
        float *at = s->floats + entry * i;
        s->part[i] = (struct hri_partial){.m = at, .l = at + s->g, .o = at + 2 * s->g};
        if (i > 0)
            memcpy((char *)s->rows.base + i * piece, s->rows.base, piece);
    }
    for (unsigned i = 1; i < s->n_pieces; i++)
        memcpy((char *)s->centroids.base + i * summary_bytes(), s->centroids.base, summary_bytes());
    return 0;
}

static void full_task(void *context, unsigned task, unsigned worker)
{
    struct scan *s = context;
    const struct hri_rows rows = {(char *)s->rows.base + (size_t)task * PIECE_ROWS * ROW_BYTES,
                                  ROW_BYTES, PIECE_ROWS, HR_DTYPE_BF16};
    (void)worker;
    hri_partial_clear(&s->part[task], s->g, DIM);
    s->kernels->attend_rows(s->q, s->g, DIM, DIM, rows, 0, &s->part[task]);
}

static double full_run(void *context)
{
    struct scan *s = context;
    return hrb_pool_seconds(s->pool, full_task, s, ROW_PIECES);
}

/* Of the blocks listed from the i-th group on, two groups each, which have been scored. */
static void weigh_chunk(struct scan *s, unsigned piece, uint32_t i, const float *scores,
                        const float *shift, float *weights)
{
    float sum[GROUP], square[GROUP], most[GROUP];
    for (uint32_t j = 0, n = chunk_groups(s, i); j < n; j += 2) {
        s->kernels->weigh_rows(scores + 16 * j, CHUNK_ROWS, shift, s->g, 32,
                               weights + 16 * s->list[i + j], HEAD_ROWS, sum, square, most);
        for (uint32_t gh = 0; gh < s->g; gh++)
            s->part[piece].l[gh] += sum[gh];
    }
}

/* Scores of a head's summaries and of the listed groups, and the rows' weights, by the chunk and by the block as a step does it. The
 * largest summary's score serves as the shift: a row exceeds it by little. */
static void pass_task(void *context, unsigned task, unsigned worker)
{
    struct scan *s = context;
    char *at = (char *)s->centroids.base + task * summary_bytes();
    const struct hri_centroids c = {
        (const uint8_t *)at,
        (const float *)(const void *)(at + hri_centroids_bytes(HEAD_BLOCKS, DIM)), HEAD_BLOCKS};
    float *blocks = s->block_scores + (size_t)worker * s->g * HEAD_BLOCKS,
          *out = scores_at(s, worker), shift[GROUP],
          *weights = (float *)s->weights.base + (size_t)worker * s->g * HEAD_ROWS;
    s->kernels->score_centroids(s->q, s->g, DIM, c, blocks, HEAD_BLOCKS);
    for (uint32_t gh = 0; gh < s->g; gh++) {
        shift[gh] = s->kernels->max(blocks + (size_t)gh * HEAD_BLOCKS, HEAD_BLOCKS);
        s->part[task].m[gh] = shift[gh];
        s->part[task].l[gh] = 0;
    }
    for (uint32_t i = 0; i < s->n_list; i += CHUNK_GROUPS) {
        score_chunk(s, task, i, out);
        weigh_chunk(s, task, i, out, shift, weights);
    }
    if (s->sum) {
        const struct hri_sketch_rows rows = {codes_at(s, task), s->n4, s->n2};
        s->kernels->sum_sketch(rows, s->g, s->list, s->n_list, weights, HEAD_ROWS,
                               s->acc + (size_t)worker * s->g * DIM);
    }
}

static void evict_task(void *context, unsigned task, unsigned worker)
{
    struct scan *s = context;
    (void)worker;
    uint64_t sum = hrb_read_memory((char *)s->rows.base + task * EVICT_PIECE, EVICT_PIECE);
    __atomic_fetch_xor(&s->sink, sum, __ATOMIC_RELAXED);
}

static double pass_run(void *context)
{
    struct scan *s = context;
    /* Nothing of the last pass is at hand, and no thread asleep, as between the layers of a token. */
    hri_pool_run(s->pool, evict_task, s, EVICT_BYTES / EVICT_PIECE);
    double start = hrb_seconds();
    for (unsigned i = 0; i < HEADS; i++)
        hri_sketch_query_make(s->query, s->x, s->g, s->n4, s->n2);
    hri_pool_run(s->pool, pass_task, s, s->n_pieces);
    return hrb_seconds() - start;
}

/* The relative difference of the full attention of one piece from the reference. */
static double full_error(struct scan *s)
{
    float m[GROUP], l[GROUP], o[GROUP * DIM], want[GROUP * DIM], got[GROUP * DIM];
    struct hri_partial part = {m, l, o};
    const struct hri_rows rows = {s->rows.base, ROW_BYTES, PIECE_ROWS, HR_DTYPE_BF16};
    double difference = 0, size = 0;
    hri_partial_clear(&part, s->g, DIM);
    hri_kernels_get(HRI_KERNEL_REF)->attend_rows(s->q, s->g, DIM, DIM, rows, 0, &part);
    hri_partial_finish(&part, s->g, DIM, want, NULL);
    full_task(s, 0, 0);
    hri_partial_finish(&s->part[0], s->g, DIM, got, NULL);
    for (unsigned i = 0; i < GROUP * DIM; i++) {
        difference += (double)(got[i] - want[i]) * (double)(got[i] - want[i]);
        size += (double)want[i] * (double)want[i];
    }
    return sqrt(difference / size);
}

/* Blocks of two groups, a quarter of them, in no regular order. */
static void keep_quarter(struct scan *s)
{
    struct hri_rng rng;
    hri_rng_seed(&rng, 6);
    s->n_list = 0;
    for (uint32_t b = 0; b < HEAD_BLOCKS; b += 4) {
        const uint32_t block = b + (uint32_t)hri_rng_below(&rng, 4);
        s->list[s->n_list++] = 2 * block;
        s->list[s->n_list++] = 2 * block + 1;
    }
}

int hrb_sketch_full(const struct hrb_benchmark *self, const struct hrb_options *options,
                    struct hrb_result *result)
{
    struct scan s = {.g = GROUP, .n4 = N4_2BIT, .n2 = N2_2BIT, .n_groups = HEAD_GROUPS};
    struct hrb_pair pair, with_sum;
    const unsigned rounds = options->quick ? 5 : 21;
    int code = 1;
    if (scan_init(&s, options, HEADS) || full_init(&s)) {
        hrb_failed(result, "out of memory");
        goto out;
    }
    if (self->variant == 25)
        keep_quarter(&s);
    double error = score_error(&s), attention = full_error(&s);
    if (!(error < 0.05 && attention < 1e-5)) {
        hrb_failed(result, "scores off by %g, attention by %g", error, attention);
        goto out;
    }
    int failed = hrb_measure(options, rounds, pass_run, &s, full_run, &s, &pair);
    s.sum = true;
    if (failed || hrb_measure(options, rounds, pass_run, &s, full_run, &s, &with_sum)) {
        hrb_failed(result, "stopped");
        goto out;
    }
    result->value = pair.a_median * 1e3;
    result->limit = pair.b_median * 1e3;
    result->value_p99 = pair.a_p99 * 1e3;
    result->ratio = pair.ratio;
    result->spread = pair.spread;
    result->unit = "ms";
    result->limit_is = "full attention over the same rows as bf16";
    result->bytes = s.n_pieces * (summary_bytes() + s.piece_bytes * s.n_list / HEAD_GROUPS);
    result->rounds = pair.rounds;
    result->details = cJSON_CreateObject();
    cJSON_AddNumberToObject(result->details, "ms_with_weighted_sum", with_sum.a_median * 1e3);
    cJSON_AddNumberToObject(result->details, "ratio_with_weighted_sum", with_sum.ratio);
    code = 0;
out:
    scan_fini(&s);
    return code;
}
