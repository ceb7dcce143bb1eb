/* Indexing a segment on a GPU: all its launches, 8 kv-heads side by side, its rows being there. What the host does between them (cuts, fits)
 * is not in it. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/half.h"
#include "base/rng.h"
#include "bench/device_bed.h"
#include "bench/subjects.h"

#define INDEX_TARGET                                                                               \
    48u /* rows of a block, as headrace has it; its k-means begins with .6 clusters per block */

struct indexing {
    struct bed bed;
    struct hri_cuda_heads heads;
    uint32_t n, k, n_blocks, blocks_max;
    size_t bytes; /* of the rows */
    void *other;
    struct hri_cuda_points_args points;
    struct hri_cuda_clusters clusters;
    struct hri_cuda_pack_args pack;
    struct hri_cuda_residual_args residual;
    struct hri_cuda_pack_sketch_args sketch;
    struct hri_cuda_missed_args missed; /* of the first head */
    float *matrix, *z, *sum, *most, *moment;
};

static int indexing_group(const struct indexing *x)
{
    const struct hri_launchers *launch = x->bed.ops->launch;
    int error = launch->group_points(&x->points, x->heads, x->bed.stream);
    error = error == 0 ? launch->group_begin(&x->clusters, HEADS, x->bed.stream) : error;
    for (int i = 0; i < 5 && error == 0; i++) { /* three iterations, two moves of rows */
        error = launch->group_assign(&x->clusters, HEADS, x->bed.stream);
        error =
            error == 0 && i < 3 ? launch->group_move(&x->clusters, HEADS, x->bed.stream) : error;
    }
    return error;
}

static int indexing_pack(const struct indexing *x)
{
    const struct hri_launchers *launch = x->bed.ops->launch;
    void *stream = x->bed.stream;
    int error = launch->pack(&x->pack, x->heads, stream);
    for (int turn = 0; turn < 2 && error == 0; turn++) /* the metric, the basis */
        error = launch->residual_turn(&x->residual, x->matrix, x->z, x->heads, stream);
    error = error == 0
                ? launch->residual_squares(&x->residual, x->z, x->sum, x->most, x->heads, stream)
                : error;
    error = error == 0 ? launch->residual_moment(&x->residual, x->moment, x->heads, stream) : error;
    error = error == 0 ? launch->pack_sketch(&x->sketch, HEADS, stream) : error;
    for (uint32_t h = 0; h < HEADS && error == 0; h++) {
        struct hri_cuda_missed_args m = x->missed;
        m.z += (size_t)h * x->n * DIM;
        m.rows = (const unsigned char *)m.rows + (size_t)h * x->bytes / HEADS;
        m.order += (size_t)h * x->n;
        m.block_begin += (size_t)h * (x->n_blocks + 1);
        m.centres += (size_t)h * x->blocks_max * 2 * DIM;
        error = launch->missed(&m, stream);
    }
    return error;
}

static int indexing_call(void *context)
{
    const struct indexing *x = context;
    const int error = indexing_group(x);
    return error == 0 ? indexing_pack(x) : error;
}

static int indexing_read(void *context)
{
    const struct indexing *x = context;
    const size_t half = x->bytes / 2;
    return x->bed.ops->copy(x->other, half, x->points.rows, half, half, 1, x->bed.stream);
}

static double indexing_seconds(void *context)
{
    struct indexing *x = context;
    return seconds_of(&x->bed, indexing_call, x);
}

static double indexing_read_seconds(void *context)
{
    struct indexing *x = context;
    return seconds_of(&x->bed, indexing_read, x);
}

static void indexing_carve(struct indexing *x, struct hri_device_carve *c)
{
    const size_t rows = (size_t)HEADS * x->n, blocks = (size_t)HEADS * x->blocks_max;
    void *memory = hri_device_carve(c, 1, x->bytes);
    float *centres = hri_device_carve(c, blocks, 2 * DIM * 4);
    uint32_t *order = hri_device_carve(c, rows, 4), *block_of = hri_device_carve(c, rows, 4);
    uint32_t *begin = hri_device_carve(c, (size_t)HEADS * (x->n_blocks + 1), 4);
    float *y = hri_device_carve(c, rows, DIM * 4), *steps = hri_device_carve(c, HEADS, DIM * 4);
    x->other = hri_device_carve(c, 1, x->bytes / 2);
    x->z = y;
    x->matrix = hri_device_carve(c, (size_t)HEADS * DIM, DIM * 4);
    x->sum = hri_device_carve(c, blocks, 4);
    x->most = hri_device_carve(c, blocks, 4);
    x->moment = hri_device_carve(c, (size_t)HEADS * 2 * DIM, 2 * DIM * 4);
    x->points = (struct hri_cuda_points_args){
        memory,
        HR_DTYPE_BF16,
        x->n,
        hri_device_carve(c, (size_t)HEADS * HRI_CUDA_POINT_DIMS, 2 * DIM * 4),
        hri_device_carve(c, HEADS, 4),
        y};
    x->clusters = (struct hri_cuda_clusters){.y = y, .n = x->n, .k_max = x->k};
    x->clusters.k = hri_device_carve(c, HEADS, 4);
    x->clusters.centres = hri_device_carve(c, (size_t)HEADS * x->k, HRI_CUDA_POINT_DIMS * 4);
    x->clusters.nearest = hri_device_carve(c, rows, 4);
    x->clusters.counts = hri_device_carve(c, (size_t)HEADS * x->k, 4);
    x->pack = (struct hri_cuda_pack_args){.rows = memory,
                                          .dtype = HR_DTYPE_BF16,
                                          .n = x->n,
                                          .n_blocks = x->n_blocks,
                                          .order = order,
                                          .block_begin = begin,
                                          .blocks_max = x->blocks_max,
                                          .centres = centres,
                                          .block_of = block_of};
    x->pack.k_mean = hri_device_carve(c, HEADS, DIM * 4);
    x->pack.k_codes = hri_device_carve(c, blocks, DIM);
    x->pack.v_codes = hri_device_carve(c, blocks, DIM);
    x->pack.k_scale = hri_device_carve(c, blocks, 4);
    x->pack.v_scale = hri_device_carve(c, blocks, 4);
    x->pack.k_step = hri_device_carve(c, blocks, 4);
    x->pack.v_step = hri_device_carve(c, blocks, 4);
    x->pack.block_rows = hri_device_carve(c, blocks, 1);
    x->pack.codes = hri_device_carve(c, rows, 2 * DIM);
    x->residual = (struct hri_cuda_residual_args){
        memory, HR_DTYPE_BF16, x->n, x->n_blocks, x->blocks_max, order, begin, block_of, centres};
    const size_t stride = (size_t)(x->n / 16 + 2) * 8 * 64; /* two bits: lines of 16 coordinates */
    x->sketch = (struct hri_cuda_pack_sketch_args){
        y, steps, hri_device_carve(c, HEADS, stride), DIM, stride, 0, DIM, x->n, 0};
    x->missed = (struct hri_cuda_missed_args){.z = y,
                                              .step = steps,
                                              .length = steps,
                                              .n2 = DIM,
                                              .dk = DIM,
                                              .dv = DIM,
                                              .n_blocks = x->n_blocks,
                                              .rows = memory,
                                              .dtype = HR_DTYPE_BF16,
                                              .order = order,
                                              .block_begin = begin,
                                              .centres = centres};
    x->missed.gain = hri_device_carve(c, x->n_blocks, 1);
    x->missed.far = hri_device_carve(c, x->n, 4);
    x->missed.missed = hri_device_carve(c, x->n, 4);
    x->missed.plain = hri_device_carve(c, x->n, 4);
    x->missed.value = hri_device_carve(c, x->n, 4);
}

/* Numbers that are no figures of any text, but as many. */
static hr_status_t floats_put(const struct indexing *x, float *to, size_t n, float size)
{
    struct hri_rng rng;
    float *from = malloc(n * sizeof *from);
    hri_rng_seed(&rng, n);
    for (size_t i = 0; from != NULL && i < n; i++)
        from[i] = size * (2 * hri_rng_f32(&rng) - 1);
    hr_status_t status =
        from == NULL ? HR_ERR_NOMEM : hri_device_copy(x->bed.device, to, from, n * sizeof *from);
    if (status == HR_OK)
        status = hri_device_wait(x->bed.device);
    free(from);
    return status;
}

/* Rows lie in blocks of INDEX_TARGET, taken from all over the segment. */
static void orders_fill(const struct indexing *x, uint32_t *order, uint32_t *begin)
{
    for (uint32_t h = 0; h < HEADS; h++) {
        for (uint32_t b = 0, at = 0; b < x->n_blocks; b++) {
            begin[h * (x->n_blocks + 1) + b] = at;
            for (uint32_t row = b; row < x->n; row += x->n_blocks)
                order[(size_t)h * x->n + at++] = row;
        }
        begin[h * (x->n_blocks + 1) + x->n_blocks] = x->n;
    }
}

static hr_status_t indexing_fill(struct indexing *x, uint16_t *rows, uint32_t *order,
                                 uint32_t *begin)
{
    struct hri_device *device = x->bed.device;
    const size_t axes = (size_t)HEADS * HRI_CUDA_POINT_DIMS * 2 * DIM;
    uint32_t k[HEADS], n_k[HEADS];
    hr_status_t status = hri_device_fill(device, x->bed.memory.base, 0, x->bed.memory.bytes);
    orders_fill(x, order, begin);
    for (uint32_t h = 0; h < HEADS; h++) {
        k[h] = x->k;
        n_k[h] = HRI_CUDA_POINT_DIMS / 2;
    }
    for (size_t i = 0; i < x->bytes / 2; i++)
        rows[i] = hri_bf16_from_f32((float)(i * 2654435761u % 65521) / 32760 - 1);
    if (status == HR_OK)
        status = hri_device_copy(device, (void *)(uintptr_t)x->points.rows, rows, x->bytes);
    if (status == HR_OK)
        status = hri_device_copy(device, (void *)(uintptr_t)x->pack.order, order,
                                 (size_t)HEADS * x->n * 4);
    if (status == HR_OK)
        status = hri_device_copy(device, (void *)(uintptr_t)x->pack.block_begin, begin,
                                 (size_t)HEADS * (x->n_blocks + 1) * 4);
    if (status == HR_OK)
        status = hri_device_copy(device, (void *)(uintptr_t)x->clusters.k, k, sizeof k);
    if (status == HR_OK)
        status = hri_device_copy(device, (void *)(uintptr_t)x->points.n_k, n_k, sizeof n_k);
    if (status == HR_OK)
        status = floats_put(x, (float *)(uintptr_t)x->points.axes, axes, 0.1f);
    if (status == HR_OK)
        status = floats_put(x, x->matrix, (size_t)HEADS * DIM * DIM, 0.1f);
    return status == HR_OK ? floats_put(x, (float *)(uintptr_t)x->sketch.inv_step, HEADS * DIM, 1)
                           : status;
}

/* The last head's points and blocks, of which the CPU makes the same. */
static int indexing_check(struct indexing *x, const uint16_t *rows, const uint32_t *order,
                          struct hrb_result *result)
{
    const uint32_t n = x->n / x->n_blocks + (x->n % x->n_blocks > 0), h = HEADS - 1;
    const size_t width = 2 * DIM;
    int8_t got[2 * DIM];
    float scale, centre[DIM], back;
    if (indexing_call(x) != 0 ||
        hri_device_copy(x->bed.device, got, x->pack.v_codes + (size_t)h * x->blocks_max * DIM,
                        DIM) != HR_OK ||
        hri_device_copy(x->bed.device, &scale, x->pack.v_scale + (size_t)h * x->blocks_max, 4) !=
            HR_OK ||
        hri_device_wait(x->bed.device) != HR_OK)
        return say(result);
    for (uint32_t j = 0; j < DIM; j++) {
        double sum = 0;
        for (uint32_t i = 0; i < n; i++) {
            const size_t row = (size_t)h * x->n + order[(size_t)h * x->n + i];
            sum += (double)hri_f32_from_bf16(rows[row * width + DIM + j]);
        }
        centre[j] = (float)(sum / n);
        back = scale * (float)got[j];
        if (!(fabsf(back - centre[j]) <= 0.51f * scale))
            return hrb_failed(result, "a summary is off: %g is not %g", (double)back,
                              (double)centre[j]);
    }
    return -1;
}

static int indexing_make(struct indexing *x, struct hrb_result *result)
{
    struct hri_device_carve c = {x->bed.memory.base, 0};
    uint16_t *rows = malloc(x->bytes);
    uint32_t *order = malloc((size_t)HEADS * x->n * 4),
             *begin = malloc((size_t)HEADS * (x->n_blocks + 1) * 4);
    int code = rows && order && begin ? -1 : hrb_failed(result, "out of memory");
    indexing_carve(x, &c);
    if (code < 0 && indexing_fill(x, rows, order, begin) != HR_OK)
        code = say(result);
    if (code < 0)
        code = indexing_check(x, rows, order, result);
    free(rows);
    free(order);
    free(begin);
    return code;
}

int hrb_device_index(const struct hrb_benchmark *self, const struct hrb_options *options,
                     struct hrb_result *result)
{
    struct indexing x = {.heads = {HEADS, GROUP, DIM, DIM}};
    struct hri_device_carve size = {0};
    struct hrb_pair pair;
    x.n = device_is_emulated() ? 100 : (uint32_t)self->variant;
    x.n_blocks = (x.n + INDEX_TARGET - 1) / INDEX_TARGET;
    x.k = (uint32_t)(0.6 * x.n_blocks);
    x.blocks_max = (x.n_blocks + 15) / 16 * 16;
    x.bytes = (size_t)HEADS * x.n * 2 * DIM * 2;
    indexing_carve(&x, &size);
    int code = bed_open(&x.bed, size.used, result);
    if (code < 0)
        code = indexing_make(&x, result);
    if (code < 0) {
        code = hrb_measure(options, rounds_of(&x.bed, options), indexing_seconds, &x,
                           indexing_read_seconds, &x, &pair);
        if (code == 0) {
            hrb_result_rate(result, &pair, x.bytes);
            result->limit_is =
                "a copy within the GPU of half the rows' bytes, which reads and writes as many";
        }
    }
    bed_close(&x.bed);
    return code;
}
