/* Attention and scoring kernels beside a plain read of the same bytes by the same threads. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/half.h"
#include "base/rng.h"
#include "base/threads.h"
#include "bench/measure.h"
#include "bench/read_memory.h"
#include "bench/subjects.h"
#include "kernels/kernels.h"

#define DIM          128
#define PIECE_ROWS   4096 /* rows of one task */
#define PIECE_BLOCKS 8192 /* summaries of one task */

/* One body of bytes cut into pieces; each piece is read or computed on by one task. */
struct field {
    const struct hri_kernels *kernels;
    struct hri_pool *pool;
    struct hri_region region;
    size_t piece_bytes;
    unsigned n_pieces;
    uint32_t g;
    hr_dtype_t dtype;
    float *q;                 /* [g][DIM] */
    struct hri_partial *part; /* [n_pieces] */
    float *floats;            /* memory of the partials */
    float *scores;            /* [threads][g][PIECE_BLOCKS] */
    uint64_t sink;
};

static void field_fini(struct field *f)
{
    hri_region_free(NULL, &f->region);
    hri_pool_destroy(f->pool);
    free(f->q);
    free(f->part);
    free(f->floats);
    free(f->scores);
}

static int field_init(struct field *f, const struct hrb_options *options, uint32_t g,
                      size_t piece_bytes, size_t bytes)
{
    memset(f, 0, sizeof *f);
    f->kernels = hri_kernels_get(hri_kernels_best());
    f->g = g;
    f->piece_bytes = piece_bytes;
    f->n_pieces = (unsigned)(bytes / piece_bytes);
    size_t entry = (size_t)g * (2 + DIM);
    if (hri_pool_create(NULL, options->n_threads, &f->pool) != HR_OK ||
        hri_region_alloc(NULL, f->n_pieces * piece_bytes, &f->region) != HR_OK)
        return 1;
    f->q = malloc(sizeof(float) * g * DIM);
    f->part = calloc(f->n_pieces, sizeof *f->part);
    f->floats = malloc(sizeof(float) * entry * f->n_pieces);
    f->scores = malloc(sizeof(float) * g * PIECE_BLOCKS * hri_pool_size(f->pool));
    if (!f->q || !f->part || !f->floats || !f->scores)
        return 1;
    for (unsigned i = 0; i < f->n_pieces; i++) {
        float *at = f->floats + entry * i;
        f->part[i] = (struct hri_partial){.m = at, .l = at + g, .o = at + 2 * g};
    }
    struct hri_rng rng;
    hri_rng_seed(&rng, 1);
    for (size_t i = 0; i < (size_t)g * DIM; i++)
        f->q[i] = (float)hri_rng_normal(&rng) * 0.088f;
    return 0;
}

static unsigned char *piece_at(const struct field *f, unsigned piece)
{
    return (unsigned char *)f->region.base + piece * f->piece_bytes;
}

/* ------------------------------------------------------------------------------- the read limit */

static void read_task(void *context, unsigned task, unsigned worker)
{
    struct field *f = context;
    (void)worker;
    uint64_t sum = hrb_read_memory(piece_at(f, task), f->piece_bytes);
    __atomic_fetch_xor(&f->sink, sum, __ATOMIC_RELAXED);
}

static double read_run(void *context)
{
    struct field *f = context;
    return hrb_pool_seconds(f->pool, read_task, f, f->n_pieces);
}

/* ------------------------------------------------------------------------------------ attention */

static struct hri_rows rows_of(const struct field *f, unsigned piece)
{
    return (struct hri_rows){piece_at(f, piece), 2 * DIM * hr_dtype_bytes(f->dtype), PIECE_ROWS,
                             f->dtype};
}

static void attend_task(void *context, unsigned task, unsigned worker)
{
    struct field *f = context;
    (void)worker;
    hri_partial_clear(&f->part[task], f->g, DIM);
    f->kernels->attend_rows(f->q, f->g, DIM, DIM, rows_of(f, task), 0, &f->part[task]);
}

static double attend_run(void *context)
{
    struct field *f = context;
    double start = hrb_seconds();
    hri_pool_run(f->pool, attend_task, f, f->n_pieces);
    for (unsigned i = 1; i < f->n_pieces; i++)
        hri_partial_merge(&f->part[0], &f->part[i], f->g, DIM);
    return hrb_seconds() - start;
}

static void fill_rows(struct field *f)
{
    struct hri_rng rng;
    hri_rng_seed(&rng, 2);
    /* One piece of random rows, copied: the arithmetic does not depend on the values, filling a
     * gigabyte would. */
    size_t n = f->piece_bytes / hr_dtype_bytes(f->dtype);
    for (size_t i = 0; i < n; i++) {
        float x = 2 * hri_rng_f32(&rng) - 1;
        if (f->dtype == HR_DTYPE_F32)
            ((float *)f->region.base)[i] = x;
        else
            ((uint16_t *)f->region.base)[i] = hri_bf16_from_f32(x);
    }
    for (unsigned i = 1; i < f->n_pieces; i++)
        memcpy(piece_at(f, i), f->region.base, f->piece_bytes);
}

/* Equal pieces have equal attention, so the merged result must be that of one piece by the
 * reference. */
static double attend_error(struct field *f)
{
    float m[HR_GROUP_MAX], l[HR_GROUP_MAX], o[HR_GROUP_MAX * DIM], want[HR_GROUP_MAX * DIM],
        got[HR_GROUP_MAX * DIM];
    struct hri_partial part = {m, l, o};
    hri_partial_clear(&part, f->g, DIM);
    hri_kernels_get(HRI_KERNEL_REF)->attend_rows(f->q, f->g, DIM, DIM, rows_of(f, 0), 0, &part);
    hri_partial_finish(&part, f->g, DIM, want, NULL);
    attend_run(f);
    hri_partial_finish(&f->part[0], f->g, DIM, got, NULL);
    double error = 0;
    for (size_t i = 0; i < (size_t)f->g * DIM; i++)
        error = fmax(error, fabs((double)got[i] - want[i]));
    return error;
}

int hrb_attention_read(const struct hrb_benchmark *self, const struct hrb_options *options,
                       struct hrb_result *result)
{
    struct field f;
    struct hrb_pair pair;
    hr_dtype_t dtype = self->variant < 100 ? HR_DTYPE_F32 : HR_DTYPE_BF16;
    size_t piece_bytes = (size_t)PIECE_ROWS * 2 * DIM * hr_dtype_bytes(dtype);
    int code = 1;
    if (field_init(&f, options, (uint32_t)self->variant % 100, piece_bytes,
                   options->quick ? 512u << 20 : 1024u << 20)) {
        hrb_failed(result, "out of memory");
        goto out;
    }
    f.dtype = dtype;
    fill_rows(&f);
    double error = attend_error(&f);
    if (!(error < 1e-4)) {
        hrb_failed(result, "the result differs from the reference by %g", error);
        goto out;
    }
    if (hrb_measure(options, options->quick ? 5 : 21, attend_run, &f, read_run, &f, &pair)) {
        hrb_failed(result, "stopped");
        goto out;
    }
    hrb_result_rate(result, &pair, f.n_pieces * piece_bytes);
    result->limit_is = "read of the same bytes";
    code = 0;
out:
    field_fini(&f);
    return code;
}

/* -------------------------------------------------------------------------------------- scoring */

static const float *steps_of(const struct field *f, unsigned piece)
{
    return (const float *)(const void *)(piece_at(f, piece) +
                                         hri_centroids_bytes(PIECE_BLOCKS, DIM));
}

static void score_task(void *context, unsigned task, unsigned worker)
{
    struct field *f = context;
    struct hri_centroids c = {piece_at(f, task), steps_of(f, task), PIECE_BLOCKS};
    f->kernels->score_centroids(f->q, f->g, DIM, c,
                                f->scores + (size_t)worker * f->g * PIECE_BLOCKS, PIECE_BLOCKS);
}

static double score_run(void *context)
{
    struct field *f = context;
    return hrb_pool_seconds(f->pool, score_task, f, f->n_pieces);
}

static void fill_centroids(struct field *f)
{
    float centroid[DIM];
    struct hri_rng rng;
    hri_rng_seed(&rng, 3);
    float *steps = (float *)(void *)(piece_at(f, 0) + hri_centroids_bytes(PIECE_BLOCKS, DIM));
    for (uint32_t b = 0; b < PIECE_BLOCKS; b++) {
        for (int i = 0; i < DIM; i++)
            centroid[i] = (float)hri_rng_normal(&rng);
        steps[b] = hri_centroid_pack(f->region.base, DIM, b, centroid);
    }
    for (unsigned i = 1; i < f->n_pieces; i++)
        memcpy(piece_at(f, i), f->region.base, f->piece_bytes);
}

/* Largest difference from the dot product with the unpacked centroids, over the bound that the
 * contract gives. */
static double score_error(struct field *f)
{
    float centroid[DIM];
    double worst = 0;
    score_task(f, 0, 0);
    for (uint32_t b = 0; b < PIECE_BLOCKS; b++) {
        hri_centroid_unpack(f->region.base, DIM, b, steps_of(f, 0)[b], centroid);
        for (uint32_t g = 0; g < f->g; g++) {
            double dot = 0, size = 0, q_max = 0;
            for (int i = 0; i < DIM; i++) {
                dot += (double)f->q[g * DIM + i] * centroid[i];
                size += fabs(centroid[i]);
                q_max = fmax(q_max, fabs(f->q[g * DIM + i]));
            }
            worst = fmax(worst, fabs(dot - f->scores[(size_t)g * PIECE_BLOCKS + b]) /
                                    (size * q_max * 0x1p-13));
        }
    }
    return worst;
}

int hrb_summary_score(const struct hrb_benchmark *self, const struct hrb_options *options,
                      struct hrb_result *result)
{
    struct field f;
    struct hrb_pair pair;
    size_t bytes = hri_centroids_bytes(PIECE_BLOCKS, DIM) + PIECE_BLOCKS * sizeof(float);
    int code = 1;
    if (field_init(&f, options, (uint32_t)self->variant, hri_round_up(bytes, 4096),
                   options->quick ? 512u << 20 : 1024u << 20)) {
        hrb_failed(result, "out of memory");
        goto out;
    }
    fill_centroids(&f);
    double error = score_error(&f);
    if (!(error <= 1)) {
        hrb_failed(result, "a score is off by %g times the bound", error);
        goto out;
    }
    if (hrb_measure(options, options->quick ? 5 : 21, score_run, &f, read_run, &f, &pair)) {
        hrb_failed(result, "stopped");
        goto out;
    }
    hrb_result_rate(result, &pair, f.n_pieces * f.piece_bytes);
    result->limit_is = "read of the same bytes";
    code = 0;
out:
    field_fini(&f);
    return code;
}
