/* What the mover takes from others: a product of matrices alone, and while blocks are gathered from pinned memory on another stream. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/half.h"
#include "base/rng.h"
#include "bench/device_bed.h"
#include "bench/subjects.h"
#include "kernels/cublas.h"

#define MOVER_BLOCKS 4u /* thread blocks, as in a step */
#define BLOCK_BYTES  4096u

struct mover {
    struct bed bed;
    void *stream, *end;        /* the gathers' own stream, and when they end */
    struct hri_cublas *cublas; /* NULL: our own kernel */
    struct hri_cuda_matmul_args gemm;
    struct hri_cuda_gather_args gather;
    struct hri_device_buffer host;
    uint32_t n, side, gathers; /* blocks; of the matrices; so many outlast the products */
    char reason[128];
};

static int gemm_call(void *context)
{
    struct mover *m = context;
    return m->cublas != NULL ? hri_cublas_matmul(m->cublas, &m->gemm, 0)
                             : m->bed.ops->launch->matmul(&m->gemm, m->bed.stream);
}

static int gather_call(void *context)
{
    struct mover *m = context;
    return m->bed.ops->launch->gather(&m->gather, MOVER_BLOCKS, HRI_CUDA_PATH_AUTO, m->stream);
}

static double alone_seconds(void *context)
{
    struct mover *m = context;
    return seconds_of(&m->bed, gemm_call, m);
}

/* The gathers must still be going on when the last product ends. */
static double both_seconds(void *context)
{
    struct mover *m = context;
    float behind_ms = 0;
    int error = 0;
    for (uint32_t i = 0; i < m->gathers && error == 0; i++)
        error = gather_call(m);
    if (error == 0)
        error = m->bed.ops->event_record(m->end, m->stream);
    const double seconds = error == 0 ? seconds_of(&m->bed, gemm_call, m) : -1;
    if (seconds < 0 || m->bed.ops->stream_wait(m->stream) != 0)
        return -1;
    if (!m->bed.tiny &&
        (m->bed.ops->event_elapsed(m->bed.last, m->end, &behind_ms) != 0 || behind_ms < 0)) {
        snprintf(m->reason, sizeof m->reason, "the gathers ended before the products");
        return -1;
    }
    return seconds;
}

static hr_status_t matrices_make(struct mover *m, struct hri_device_carve *c)
{
    const size_t n = (size_t)m->side * m->side;
    struct hri_rng rng;
    uint16_t *x = malloc(n * sizeof *x);
    if (x == NULL)
        return HR_ERR_NOMEM;
    hri_rng_seed(&rng, 4);
    for (size_t i = 0; i < n; i++)
        x[i] = hri_bf16_from_f32(2 * hri_rng_f32(&rng) - 1);
    uint16_t *left = hri_device_carve(c, n, 2), *right = hri_device_carve(c, n, 2);
    m->gemm =
        (struct hri_cuda_matmul_args){.x = left,
                                      .m = m->side,
                                      .cols = m->side,
                                      .product = {right, NULL, hri_device_carve(c, n, 4), m->side}};
    hr_status_t status = hri_device_copy(m->bed.device, left, x, n * sizeof *x);
    if (status == HR_OK)
        status = hri_device_copy(m->bed.device, right, x, n * sizeof *x);
    status = status == HR_OK ? hri_device_wait(m->bed.device) : status;
    free(x);
    return status;
}

static hr_status_t gather_make(struct mover *m, struct hri_device_carve *c)
{
    struct hri_cuda_job *jobs = calloc(m->n, sizeof *jobs);
    uint64_t *offsets = calloc(m->n, sizeof *offsets);
    struct hri_cuda_job *device_jobs = hri_device_carve(c, m->n, sizeof *jobs);
    uint64_t *device_offsets = hri_device_carve(c, m->n, sizeof *offsets);
    uint32_t *device_n = hri_device_carve(c, 1, sizeof m->n);
    m->gather = (struct hri_cuda_gather_args){.jobs = device_jobs,
                                              .n_jobs = device_n,
                                              .host = m->host.base,
                                              .host_offset = device_offsets,
                                              .blocks_max = m->n,
                                              .frames = hri_device_carve(c, m->n, BLOCK_BYTES),
                                              .frame_bytes = BLOCK_BYTES};
    hr_status_t status = jobs != NULL && offsets != NULL ? HR_OK : HR_ERR_NOMEM;
    for (uint32_t i = 0; status == HR_OK && i < m->n; i++) {
        jobs[i] = (struct hri_cuda_job){0, i, i, i};
        offsets[i] = (uint64_t)(m->n - 1 - i) * BLOCK_BYTES;
    }
    for (size_t i = 0; i < (size_t)m->n * BLOCK_BYTES / 8; i++)
        ((uint64_t *)m->host.base)[i] = i;
    if (status == HR_OK)
        status = hri_device_copy(m->bed.device, device_jobs, jobs, m->n * sizeof *jobs);
    if (status == HR_OK)
        status = hri_device_copy(m->bed.device, device_offsets, offsets, m->n * sizeof *offsets);
    if (status == HR_OK)
        status = hri_device_copy(m->bed.device, device_n, &m->n, sizeof m->n);
    status = status == HR_OK ? hri_device_wait(m->bed.device) : status;
    free(jobs);
    free(offsets);
    return status;
}

/* One element of the product, and one block, after both ran beside each other. */
static int mover_check(struct mover *m, struct hrb_result *result)
{
    const uint32_t row = m->side / 3, column = m->side / 2, block = m->n / 3;
    uint16_t *x = malloc(2 * m->side * sizeof *x), *y = x + m->side;
    uint64_t words[BLOCK_BYTES / 8];
    float got = 0;
    double want = 0, size = 0;
    int code = x != NULL ? -1 : hrb_failed(result, "out of memory");
    if (code < 0 &&
        (hri_device_fill(m->bed.device, m->gather.frames, 0, (size_t)m->n * BLOCK_BYTES) != HR_OK ||
         hri_device_wait(m->bed.device) != HR_OK || gather_call(m) != 0 || gemm_call(m) != 0 ||
         m->bed.ops->stream_wait(m->stream) != 0 ||
         hri_device_copy(m->bed.device, x, m->gemm.x + (size_t)row * m->side,
                         m->side * sizeof *x) != HR_OK ||
         hri_device_copy(m->bed.device, y, m->gemm.product.w + (size_t)column * m->side,
                         m->side * sizeof *x) != HR_OK ||
         hri_device_copy(m->bed.device, &got, m->gemm.product.y + (size_t)row * m->side + column,
                         sizeof got) != HR_OK ||
         hri_device_copy(m->bed.device, words, m->gather.frames + (size_t)block * BLOCK_BYTES,
                         sizeof words) != HR_OK ||
         hri_device_wait(m->bed.device) != HR_OK))
        code = say(result);
    for (uint32_t j = 0; code < 0 && j < m->side; j++) {
        const double product = (double)hri_f32_from_bf16(x[j]) * hri_f32_from_bf16(y[j]);
        want += product;
        size += fabs(product);
    }
    if (code < 0 && !(fabs(want - got) <= 1e-4 * size))
        code = hrb_failed(result, "the product is off by %.2g of %.2g", want - got, size);
    const unsigned char *lies =
        (unsigned char *)m->host.base + (size_t)(m->n - 1 - block) * BLOCK_BYTES;
    if (code < 0 && memcmp(words, lies, BLOCK_BYTES) != 0)
        code = hrb_failed(result, "block %u is not what lies in host memory", block);
    free(x);
    return code;
}

static double gather_seconds(struct mover *m)
{
    void *own = m->bed.stream; /* the events' stream is the gathers' for once */
    m->bed.stream = m->stream;
    const double seconds = seconds_of(&m->bed, gather_call, m);
    m->bed.stream = own;
    return seconds;
}

static int mover_open(struct mover *m, struct hrb_result *result)
{
    const bool tiny = device_is_emulated();
    m->n = (tiny ? 1u << 16 : 64u << 20) / BLOCK_BYTES;
    m->side = tiny ? 64 : 4096;
    const size_t bytes = (size_t)m->side * m->side * 8 + (size_t)m->n * (BLOCK_BYTES + 32);
    int code = bed_open(&m->bed, bytes + 65536, result);
    if (code >= 0)
        return code;
    struct hri_device_carve c = {m->bed.memory.base, 0};
    if (hri_device_buffer_create(m->bed.device, (size_t)m->n * BLOCK_BYTES, &m->host) != HR_OK)
        return say(result);
    if (!m->host.pinned)
        return hrb_skip(result, "host memory could not be pinned");
    if (m->bed.ops->stream_create(&m->stream) != 0 || m->bed.ops->event_create(&m->end) != 0)
        return hrb_failed(result, "no second stream");
    if (matrices_make(m, &c) != HR_OK || gather_make(m, &c) != HR_OK)
        return say(result);
    if (!tiny) {
        char why[256];
        m->cublas = hri_cublas_open(NULL, m->bed.stream, why, sizeof why);
    }
    return mover_check(m, result);
}

static void mover_close(struct mover *m)
{
    hri_cublas_close(m->cublas);
    if (m->end != NULL)
        m->bed.ops->event_destroy(m->end);
    if (m->stream != NULL)
        m->bed.ops->stream_destroy(m->stream);
    if (m->bed.device != NULL)
        hri_device_buffer_destroy(m->bed.device, &m->host);
    bed_close(&m->bed);
}

int hrb_device_mover(const struct hrb_benchmark *self, const struct hrb_options *options,
                     struct hrb_result *result)
{
    struct mover m = {0};
    struct hrb_pair pair;
    double gemm = 0, gather = 0;
    (void)self;
    int code = mover_open(&m, result);
    if (code < 0) {
        gemm = alone_seconds(&m);
        gather = gather_seconds(&m);
        if (gemm < 0 || gather < 0)
            code = hrb_failed(result, "a launch failed");
    }
    if (code < 0) {
        m.gathers = m.bed.tiny ? 1 : (uint32_t)(1.5 * RUNS * gemm / gather) + 2;
        code = hrb_measure(options, rounds_of(&m.bed, options), both_seconds, &m, alone_seconds, &m,
                           &pair);
        if (code != 0)
            hrb_failed(result, "%s", *m.reason ? m.reason : "a launch failed");
    }
    if (code == 0 && !result->skipped) {
        hrb_result_time(result, &pair, 1e6, "us");
        result->limit_is = m.cublas != NULL ? "the product alone, by cuBLAS"
                                            : "the product alone, by our own kernel";
        result->details = cJSON_CreateObject();
        cJSON_AddNumberToObject(result->details, "gather_gb_s",
                                (double)m.n * BLOCK_BYTES * 1e-9 / gather);
    }
    mover_close(&m);
    return code;
}
