/* What goes over every byte on its way between tiers: checksums and conversions, beside a read of the same bytes. Results go to a small buffer
 * per thread, as the runtime's do, so that it is the input that counts. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/checksum.h"
#include "base/half.h"
#include "base/rng.h"
#include "base/threads.h"
#include "bench/measure.h"
#include "bench/read_memory.h"
#include "bench/subjects.h"
#include "kernels/kernels.h"

#define PIECE_BYTES                                                                                \
    16384u /* of input, one call; keys are scored in one call per task, as selectors do */
#define TASK_PIECES 64u
#define ROW_DIM     128u

enum work { CRC, BF16_TO_F32, F32_TO_BF16, F32_TO_I8, SCORE_BF16 };
#define GROUP 4u

struct stream {
    const struct hri_kernels *kernels;
    struct hri_pool *pool;
    struct hri_region region;
    enum work work;
    unsigned n_tasks;
    float *buffer; /* [threads][PIECE_BYTES floats] */
    float q[GROUP * ROW_DIM];
    uint64_t sink;
};

static const unsigned char *piece_at(const struct stream *s, unsigned piece)
{
    return (const unsigned char *)s->region.base + (size_t)piece * PIECE_BYTES;
}

/* Bytes of input of one call; its results fill at most PIECE_BYTES floats. */
static size_t call_bytes(const struct stream *s)
{
    return s->work == SCORE_BF16 ? TASK_PIECES * PIECE_BYTES : PIECE_BYTES;
}

static uint64_t work_on(const struct stream *s, const struct hri_kernels *kernels,
                        const unsigned char *at, float *out)
{
    static const float zero[ROW_DIM];
    struct hri_rows rows = {at, 2 * ROW_DIM, (uint32_t)(call_bytes(s) / (2 * ROW_DIM)),
                            HR_DTYPE_BF16};
    switch (s->work) {
    case CRC:
        return kernels->level == HRI_KERNEL_REF ? hri_crc32c_table(0, at, PIECE_BYTES)
                                                : hri_crc32c(0, at, PIECE_BYTES);
    case BF16_TO_F32:
        kernels->to_f32(out, at, HR_DTYPE_BF16, PIECE_BYTES / 2);
        break;
    case F32_TO_BF16:
        kernels->from_f32(out, (const float *)(const void *)at, HR_DTYPE_BF16, PIECE_BYTES / 4);
        break;
    case F32_TO_I8:
        kernels->quantise_i8((const float *)(const void *)at, ROW_DIM, PIECE_BYTES / 4 / ROW_DIM,
                             ROW_DIM, zero, (int8_t *)out, ROW_DIM);
        break;
    case SCORE_BF16:
        kernels->score_rows(s->q, GROUP, ROW_DIM, rows, 0, out, rows.n);
        break;
    }
    return 0;
}

static void code_task(void *context, unsigned task, unsigned worker)
{
    struct stream *s = context;
    uint64_t sum = 0;
    for (unsigned i = 0; i < TASK_PIECES; i += (unsigned)(call_bytes(s) / PIECE_BYTES))
        sum ^= work_on(s, s->kernels, piece_at(s, task * TASK_PIECES + i),
                       s->buffer + (size_t)worker * PIECE_BYTES);
    __atomic_fetch_xor(&s->sink, sum, __ATOMIC_RELAXED);
}

static void read_task(void *context, unsigned task, unsigned worker)
{
    struct stream *s = context;
    (void)worker;
    uint64_t sum = hrb_read_memory(piece_at(s, task * TASK_PIECES), TASK_PIECES * PIECE_BYTES);
    __atomic_fetch_xor(&s->sink, sum, __ATOMIC_RELAXED);
}

static double code_run(void *context)
{
    struct stream *s = context;
    return hrb_pool_seconds(s->pool, code_task, s, s->n_tasks);
}

static double read_run(void *context)
{
    struct stream *s = context;
    return hrb_pool_seconds(s->pool, read_task, s, s->n_tasks);
}

static void fill(struct stream *s)
{
    struct hri_rng rng;
    size_t task_bytes = (size_t)TASK_PIECES * PIECE_BYTES;
    unsigned char *base = s->region.base;
    hri_rng_seed(&rng, 9);
    for (size_t i = 0; i < task_bytes / 4; i++) {
        float x = (float)hri_rng_normal(&rng);
        uint16_t pair[2] = {hri_bf16_from_f32(x), hri_bf16_from_f32(-x)};
        memcpy(base + 4 * i,
               s->work == BF16_TO_F32 || s->work == SCORE_BF16 ? (void *)pair : (void *)&x, 4);
    }
    for (unsigned i = 1; i < s->n_tasks; i++)
        memcpy(base + i * task_bytes, base, task_bytes);
    for (unsigned i = 0; i < GROUP * ROW_DIM; i++)
        s->q[i] = 0.088f * (float)hri_rng_normal(&rng);
}

/* Against the reference: bits, but for scores, which are sums in another order. */
static bool right(struct stream *s)
{
    float *want = calloc(PIECE_BYTES, sizeof *want), *got = calloc(PIECE_BYTES, sizeof *got);
    bool same = want && got;
    const unsigned step = (unsigned)(call_bytes(s) / PIECE_BYTES);
    for (unsigned piece = 0; same && piece < 4 * step; piece += step) {
        uint64_t a = work_on(s, hri_kernels_get(HRI_KERNEL_REF), piece_at(s, piece), want);
        uint64_t b = work_on(s, s->kernels, piece_at(s, piece), got);
        same = a == b;
        for (size_t i = 0; i < PIECE_BYTES && same; i++)
            same = s->work == SCORE_BF16 ? fabsf(want[i] - got[i]) < 1e-4f
                                         : memcmp(&want[i], &got[i], 4) == 0;
    }
    free(want);
    free(got);
    return same;
}

int hrb_bytes(const struct hrb_benchmark *self, const struct hrb_options *options,
              struct hrb_result *result)
{
    struct stream s = {.work = (enum work)self->variant,
                       .kernels = hri_kernels_get(hri_kernels_best())};
    size_t bytes = options->quick ? 256u << 20 : 1024u << 20;
    struct hrb_pair pair;
    int code = 1;
    s.n_tasks = (unsigned)(bytes / (TASK_PIECES * PIECE_BYTES));
    if (hri_pool_create(NULL, options->n_threads, &s.pool) == HR_OK)
        s.buffer = malloc(sizeof(float) * PIECE_BYTES * hri_pool_size(s.pool));
    if (!s.buffer || hri_region_alloc(NULL, bytes, &s.region) != HR_OK) {
        hrb_failed(result, "out of memory");
        goto out;
    }
    fill(&s);
    if (!right(&s))
        hrb_failed(result, "the result differs from the reference");
    else if (hrb_measure(options, options->quick ? 5 : 21, code_run, &s, read_run, &s, &pair))
        hrb_failed(result, "stopped");
    else {
        hrb_result_rate(result, &pair, bytes);
        result->limit_is = "read of the same bytes";
        code = 0;
    }
out:
    hri_region_free(NULL, &s.region);
    hri_pool_destroy(s.pool);
    free(s.buffer);
    return code;
}
