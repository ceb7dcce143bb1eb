/* The heavy part of indexing on the device: copies there, launches, copies back. */
#include "runtime/device_index.h"

#include "base/assert.h"
#include "base/error.h"
#include "index/view.h"
#include "runtime/device_part.h"
#include <string.h>

/* What one set of arrays is made for. */
struct shape {
    uint32_t heads, rows, dk, dv, blocks, lines;
};

/* On the device and on the host alike; some are on one side alone. */
struct arrays {
    unsigned char *rows; /* device */
    float *y;            /* device: [H][n][32], in the place of */
    float *z;            /* device: [H][n][dk] */
    float *axes, *centroids;
    uint32_t *n_k, *k, *nearest, *counts, *order, *begin, *block_of;
    float *k_mean, *matrix, *centres;
    uint8_t *k_codes, *block_rows;
    int8_t *v_codes, *codes;
    float *k_scale, *v_scale, *k_step, *v_step, *square_sum, *square_most, *moment;
    float *step, *inverse, *length;
    uint8_t *sketch, *gain;
    float *far, *missed, *plain, *value;
};

struct hri_device_index {
    struct hri_device *device;
    struct shape shape;
    uint32_t blocks_up;  /* blocks, up to a multiple of 16 */
    size_t sketch_bytes; /* of a head */
    struct hri_device_memory memory;
    struct hri_device_buffer buffer;
    struct arrays there, here;
    /* Of the heads being added: */
    uint32_t n, n_heads, n_blocks;
    hr_dtype_t dtype;
    bool packed;
};

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

static uint32_t blocks_up(const struct shape *t)
{
    return (uint32_t)hri_round_up(t->blocks, 16);
}

static size_t sketch_bytes(const struct shape *t)
{
    return (size_t)(t->rows / 16 + 2) * t->lines * 64;
}

/* Arrays of the device alone. */
static void carve_there(const struct shape *t, struct hri_device_carve *c, struct arrays *a)
{
    const size_t h = t->heads, n = h * t->rows, width = t->dk + t->dv;
    a->rows = hri_device_carve(c, n, width * 2);
    a->y = hri_device_carve(c, n, larger(HRI_CUDA_POINT_DIMS, t->dk) * sizeof(float));
    a->z = a->y;
    a->order = hri_device_carve(c, n, sizeof *a->order);
    a->block_of = hri_device_carve(c, n, sizeof *a->block_of);
    a->nearest = hri_device_carve(c, n, sizeof *a->nearest);
    a->counts = hri_device_carve(c, h * (t->blocks + 1), sizeof *a->counts);
    a->centroids = hri_device_carve(c, h * (t->blocks + 1), HRI_CUDA_POINT_DIMS * sizeof(float));
    a->centres = hri_device_carve(c, h * blocks_up(t), width * sizeof(float));
    a->block_rows = hri_device_carve(c, h * blocks_up(t), 1);
}

/* Arrays of both sides. */
static void carve_both(const struct shape *t, struct hri_device_carve *c, struct arrays *a)
{
    const size_t h = t->heads, n = h * t->rows, blocks = h * blocks_up(t);
    const size_t width = t->dk + t->dv, sketched = t->lines > 0 ? 1 : 0, dk = h * t->dk;
    a->axes = hri_device_carve(c, h * HRI_CUDA_POINT_DIMS, width * sizeof(float));
    a->n_k = hri_device_carve(c, h, sizeof *a->n_k);
    a->k = hri_device_carve(c, h, sizeof *a->k);
    a->begin = hri_device_carve(c, h * (t->blocks + 1), sizeof *a->begin);
    a->k_mean = hri_device_carve(c, dk, sizeof(float));
    a->matrix = hri_device_carve(c, dk, t->dk * sizeof(float));
    a->k_codes = hri_device_carve(c, blocks, t->dk);
    a->v_codes = hri_device_carve(c, blocks, t->dv);
    a->codes = hri_device_carve(c, n, width);
    a->k_scale = hri_device_carve(c, blocks, sizeof(float));
    a->v_scale = hri_device_carve(c, blocks, sizeof(float));
    a->k_step = hri_device_carve(c, blocks, sizeof(float));
    a->v_step = hri_device_carve(c, blocks, sizeof(float));
    a->square_sum = hri_device_carve(c, blocks, sizeof(float));
    a->square_most = hri_device_carve(c, blocks, sizeof(float));
    a->moment = hri_device_carve(c, h * width, width * sizeof(float));
    a->step = hri_device_carve(c, sketched * dk, sizeof(float));
    a->inverse = hri_device_carve(c, sketched * dk, sizeof(float));
    a->length = hri_device_carve(c, sketched * dk, sizeof(float));
    a->sketch = hri_device_carve(c, sketched * h, sketch_bytes(t));
    a->gain = hri_device_carve(c, sketched * blocks, 1);
    a->far = hri_device_carve(c, sketched * n, sizeof(float));
    a->missed = hri_device_carve(c, sketched * n, sizeof(float));
    a->plain = hri_device_carve(c, sketched * n, sizeof(float));
    a->value = hri_device_carve(c, sketched * n, sizeof(float));
}

/* -- memory -- */

static void index_destroy(hr_runtime_t *rt)
{
    struct hri_device_index *x = rt->device_index;
    if (x == NULL) {
        return;
    }
    hri_device_free(x->device, &x->memory);
    hri_device_buffer_destroy(x->device, &x->buffer);
    hri_free(&rt->alloc, x);
    rt->device_index = NULL;
}

void hri_device_index_yield(hr_runtime_t *rt, uint64_t bytes)
{
    rt->device_index_refused = false; /* whoever comes next may find room */
    if (rt->device_index != NULL) {
        const struct hr_tier_stats tier = hri_device_stats(rt->gpu);
        if (tier.bytes_cap - tier.bytes_held < bytes) {
            index_destroy(rt);
        }
    }
}

static bool index_create(hr_runtime_t *rt, const struct shape *shape)
{
    struct hri_device_carve there = {0}, here = {0};
    struct arrays none;
    const struct hr_tier_stats tier = hri_device_stats(rt->gpu);
    carve_there(shape, &there, &none);
    carve_both(shape, &there, &none);
    carve_both(shape, &here, &none);
    if (there.used > tier.bytes_cap - tier.bytes_held) {
        return false;
    }
    struct hri_device_index *x = rt->device_index = hri_calloc(&rt->alloc, 1, sizeof *x);
    if (x == NULL) {
        return false;
    }
    x->device = rt->gpu;
    x->shape = *shape;
    x->blocks_up = blocks_up(shape);
    x->sketch_bytes = sketch_bytes(shape);
    hr_status_t status =
        hri_device_alloc(x->device, "indexing on the device", there.used, &x->memory);
    if (status == HR_OK) {
        status = hri_device_buffer_create(x->device, here.used, &x->buffer);
    }
    if (status != HR_OK) {
        index_destroy(rt);
        return false;
    }
    there = (struct hri_device_carve){x->memory.base, 0};
    here = (struct hri_device_carve){x->buffer.base, 0};
    carve_there(shape, &there, &x->there);
    carve_both(shape, &there, &x->there);
    carve_both(shape, &here, &x->here);
    return true;
}

static struct shape shape_of(const hr_sequence_t *s)
{
    uint32_t rows = s->segment > s->decode_segment ? s->segment : s->decode_segment;
    rows = rows < s->tokens_max ? rows : s->tokens_max;
    return (struct shape){.rows = rows,
                          .dk = s->dk,
                          .dv = s->dv,
                          .blocks = hri_index_blocks_bound(&s->recipe, s->dk, s->dv, rows, 1),
                          .lines = s->part->sizes.lines};
}

static bool serves(const struct hri_device_index *x, const struct shape *t)
{
    const struct shape *has = &x->shape;
    return has->rows >= t->rows && has->dk == t->dk && has->dv == t->dv &&
           has->blocks >= t->blocks && has->lines >= t->lines;
}

uint32_t hri_device_index_heads(hr_sequence_t *s, uint32_t n_rows)
{
    hr_runtime_t *rt = s->runtime;
    if (s->part == NULL || rt->index_on_host || hri_device_is_lost(rt->gpu) ||
        s->dk + s->dv < HRI_CUDA_POINT_DIMS) {
        return 0;
    }
    struct shape t = shape_of(s);
    if (n_rows > t.rows) {
        return 0;
    }
    if (rt->device_index != NULL && !serves(rt->device_index, &t)) {
        index_destroy(rt);
    }
    t.heads = rt->n_workers < s->n_kv ? rt->n_workers : s->n_kv;
    while (rt->device_index == NULL && !rt->device_index_refused && t.heads > 0) {
        if (!index_create(rt, &t)) {
            t.heads /= 2;
        }
    }
    if (rt->device_index == NULL && !rt->device_index_refused) {
        rt->device_index_refused = true;
        hri_log_write(&rt->log, HR_LOG_INFO,
                      "device: no memory is left for indexing there; the CPU does it");
    }
    return rt->device_index != NULL ? rt->device_index->shape.heads : 0;
}

/* -- copies -- */

struct moves {
    struct hri_device_index *x;
    hr_status_t status;
};

static void put(struct moves *m, void *to, const void *from, size_t bytes)
{
    if (m->status == HR_OK && bytes > 0) {
        m->status = hri_device_copy(m->x->device, to, from, bytes);
    }
}

static void check(struct moves *m, int error, const char *what)
{
    if (m->status == HR_OK) {
        m->status = hri_device_check(m->x->device, error, what);
    }
}

#define LAUNCH(m, operation, ...)                                                                  \
    do {                                                                                           \
        if ((m)->status == HR_OK) {                                                                \
            check(m, hri_device_ops((m)->x->device)->launch->operation(__VA_ARGS__), #operation);  \
        }                                                                                          \
    } while (0)

hr_status_t hri_device_index_begin(hr_sequence_t *s, const void *rows, uint32_t n, uint32_t n_heads)
{
    struct hri_device_index *x = s->runtime->device_index;
    struct moves m = {x, HR_OK};
    HRI_ASSERT(n <= x->shape.rows && n_heads <= x->shape.heads);
    x->n = n;
    x->n_heads = n_heads;
    x->dtype = s->dtype;
    x->packed = false;
    put(&m, x->there.rows, rows, (size_t)n_heads * n * s->row_bytes);
    return m.status;
}

/* -- jobs -- */

static struct hri_cuda_heads heads_of(const struct hri_device_index *x)
{
    return (struct hri_cuda_heads){x->n_heads, 1, x->shape.dk, x->shape.dv};
}

static struct hri_cuda_clusters clusters_of(const struct hri_device_index *x)
{
    const struct arrays *a = &x->there;
    return (struct hri_cuda_clusters){.y = a->y,
                                      .n = x->n,
                                      .k_max = x->shape.blocks + 1,
                                      .k = a->k,
                                      .centres = a->centroids,
                                      .nearest = a->nearest,
                                      .counts = a->counts};
}

static void axes_put(struct moves *m, const struct hri_index_job *const *jobs)
{
    struct hri_device_index *x = m->x;
    const size_t width = x->shape.dk + x->shape.dv, dk = x->shape.dk, dv = x->shape.dv;
    const size_t each = HRI_CUDA_POINT_DIMS * width;
    memset(x->here.axes, 0, x->n_heads * each * sizeof(float));
    for (uint32_t h = 0; h < x->n_heads; h++) {
        const struct hri_points *p = jobs[h]->points;
        float *to = x->here.axes + h * each;
        for (uint32_t r = 0; r < p->n_k; r++) {
            memcpy(to + r * width, p->k_axes + r * dk, dk * sizeof *to);
        }
        for (uint32_t r = 0; r < p->n_v; r++) {
            memcpy(to + (p->n_k + r) * width + dk, p->v_axes + r * dv, dv * sizeof *to);
        }
        x->here.n_k[h] = p->n_k;
    }
    put(m, x->there.axes, x->here.axes, x->n_heads * each * sizeof(float));
    put(m, x->there.n_k, x->here.n_k, x->n_heads * sizeof *x->here.n_k);
}

static void k_put(struct moves *m, const struct hri_index_job *const *jobs)
{
    struct hri_device_index *x = m->x;
    for (uint32_t h = 0; h < x->n_heads; h++) {
        HRI_ASSERT(jobs[h]->k <= x->shape.blocks + 1 && jobs[h]->segment->n == x->n);
        x->here.k[h] = jobs[h]->k;
    }
    put(m, x->there.k, x->here.k, x->n_heads * sizeof *x->here.k);
}

static void cluster_run(struct moves *m, const struct hri_index_job *const *jobs)
{
    struct hri_device_index *x = m->x;
    void *stream = hri_device_stream(x->device);
    const struct arrays *a = &x->there;
    const struct hri_cuda_clusters c = clusters_of(x);
    const struct hri_cuda_points_args points = {a->rows, x->dtype, x->n, a->axes, a->n_k, a->y};
    axes_put(m, jobs);
    k_put(m, jobs);
    LAUNCH(m, group_points, &points, heads_of(x), stream);
    LAUNCH(m, group_begin, &c, x->n_heads, stream);
    for (uint32_t i = 0; i < jobs[0]->iterations; i++) {
        LAUNCH(m, group_assign, &c, x->n_heads, stream);
        LAUNCH(m, group_move, &c, x->n_heads, stream);
    }
    for (uint32_t h = 0; h < x->n_heads; h++) {
        const size_t each = HRI_CUDA_POINT_DIMS, k = jobs[h]->k, first = (size_t)h * c.k_max;
        put(m, jobs[h]->y, a->y + (size_t)h * x->n * each, x->n * each * sizeof(float));
        put(m, jobs[h]->centroids, a->centroids + first * each, k * each * sizeof(float));
        put(m, jobs[h]->counts, a->counts + first, k * sizeof(uint32_t));
        put(m, jobs[h]->nearest, a->nearest + (size_t)h * x->n, x->n * sizeof(uint32_t));
    }
}

static void nearest_run(struct moves *m, const struct hri_index_job *const *jobs)
{
    struct hri_device_index *x = m->x;
    const struct hri_cuda_clusters c = clusters_of(x);
    const size_t each = HRI_CUDA_POINT_DIMS;
    k_put(m, jobs);
    for (uint32_t h = 0; h < x->n_heads; h++) {
        put(m, x->there.centroids + (size_t)h * c.k_max * each, jobs[h]->centroids,
            jobs[h]->k * each * sizeof(float));
    }
    LAUNCH(m, group_assign, &c, x->n_heads, hri_device_stream(x->device));
    for (uint32_t h = 0; h < x->n_heads; h++) {
        put(m, jobs[h]->nearest, x->there.nearest + (size_t)h * x->n, x->n * sizeof(uint32_t));
    }
}

/* Blocks of all heads as they were grouped; heads with fewer than the most end with empty ones. */
static void blocks_put(struct moves *m, const struct hri_index_job *const *jobs)
{
    struct hri_device_index *x = m->x;
    x->n_blocks = 0;
    for (uint32_t h = 0; h < x->n_heads; h++) {
        const uint32_t n = jobs[h]->segment->n_blocks;
        HRI_ASSERT(n <= x->shape.blocks);
        x->n_blocks = n > x->n_blocks ? n : x->n_blocks;
    }
    for (uint32_t h = 0; h < x->n_heads; h++) {
        const struct hri_segment *g = jobs[h]->segment;
        uint32_t *begin = x->here.begin + (size_t)h * (x->n_blocks + 1);
        begin[0] = 0;
        for (uint32_t b = 0; b < x->n_blocks; b++) {
            begin[b + 1] = begin[b] + (b < g->n_blocks ? g->block_rows[b] : 0);
        }
        memcpy(x->here.k_mean + (size_t)h * x->shape.dk, hri_index_view(jobs[h]->head).k_mean,
               x->shape.dk * sizeof(float));
        put(m, x->there.order + (size_t)h * x->n, g->order, x->n * sizeof *g->order);
    }
    put(m, x->there.begin, x->here.begin,
        (size_t)x->n_heads * (x->n_blocks + 1) * sizeof(uint32_t));
    put(m, x->there.k_mean, x->here.k_mean, (size_t)x->n_heads * x->shape.dk * sizeof(float));
}

static void pack_launch(struct moves *m, const struct hri_index_job *const *jobs)
{
    struct hri_device_index *x = m->x;
    const struct arrays *a = &x->there;
    blocks_put(m, jobs);
    const struct hri_cuda_pack_args pack = {.rows = a->rows,
                                            .dtype = x->dtype,
                                            .n = x->n,
                                            .n_blocks = x->n_blocks,
                                            .order = a->order,
                                            .block_begin = a->begin,
                                            .k_mean = a->k_mean,
                                            .blocks_max = x->blocks_up,
                                            .k_codes = a->k_codes,
                                            .v_codes = a->v_codes,
                                            .k_scale = a->k_scale,
                                            .v_scale = a->v_scale,
                                            .block_rows = a->block_rows,
                                            .codes = a->codes,
                                            .k_step = a->k_step,
                                            .v_step = a->v_step,
                                            .centres = a->centres,
                                            .block_of = a->block_of};
    LAUNCH(m, pack, &pack, heads_of(x), hri_device_stream(x->device));
    const size_t blocks = (size_t)x->n_heads * x->blocks_up;
    put(m, x->here.codes, a->codes, (size_t)x->n_heads * x->n * (x->shape.dk + x->shape.dv));
    put(m, x->here.k_step, a->k_step, blocks * sizeof(float));
    put(m, x->here.v_step, a->v_step, blocks * sizeof(float));
}

static struct hri_cuda_residual_args residual_of(const struct hri_device_index *x)
{
    const struct arrays *a = &x->there;
    return (struct hri_cuda_residual_args){.rows = a->rows,
                                           .dtype = x->dtype,
                                           .n = x->n,
                                           .n_blocks = x->n_blocks,
                                           .blocks_max = x->blocks_up,
                                           .order = a->order,
                                           .block_begin = a->begin,
                                           .block_of = a->block_of,
                                           .centres = a->centres};
}

/* [dk][dk] of every head: the metric, or the basis's turn. */
static void matrix_put(struct moves *m, const struct hri_index_job *const *jobs)
{
    struct hri_device_index *x = m->x;
    const size_t each = (size_t)x->shape.dk * x->shape.dk;
    for (uint32_t h = 0; h < x->n_heads; h++) {
        const float *from = jobs[h]->basis != NULL ? jobs[h]->basis->turn : jobs[h]->points->metric;
        memcpy(x->here.matrix + h * each, from, each * sizeof(float));
    }
    put(m, x->there.matrix, x->here.matrix, x->n_heads * each * sizeof(float));
}

static void pack_run(struct moves *m, const struct hri_index_job *const *jobs)
{
    struct hri_device_index *x = m->x;
    const struct arrays *a = &x->there;
    void *stream = hri_device_stream(x->device);
    const size_t blocks = (size_t)x->n_heads * x->blocks_up, width = x->shape.dk + x->shape.dv;
    pack_launch(m, jobs);
    matrix_put(m, jobs);
    const struct hri_cuda_residual_args residual = residual_of(x);
    LAUNCH(m, residual_turn, &residual, a->matrix, a->z, heads_of(x), stream);
    LAUNCH(m, residual_squares, &residual, a->z, a->square_sum, a->square_most, heads_of(x),
           stream);
    LAUNCH(m, residual_moment, &residual, a->moment, heads_of(x), stream);
    put(m, x->here.k_codes, a->k_codes, blocks * x->shape.dk);
    put(m, x->here.v_codes, a->v_codes, blocks * x->shape.dv);
    put(m, x->here.k_scale, a->k_scale, blocks * sizeof(float));
    put(m, x->here.v_scale, a->v_scale, blocks * sizeof(float));
    put(m, x->here.square_sum, a->square_sum, blocks * sizeof(float));
    put(m, x->here.square_most, a->square_most, blocks * sizeof(float));
    put(m, x->here.moment, a->moment, x->n_heads * width * width * sizeof(float));
}

static void basis_put(struct moves *m, const struct hri_index_job *const *jobs)
{
    struct hri_device_index *x = m->x;
    const size_t dk = x->shape.dk, all = x->n_heads * dk * sizeof(float);
    memset(x->here.step, 0, all);
    memset(x->here.inverse, 0, all);
    for (uint32_t h = 0; h < x->n_heads; h++) {
        const struct hri_basis *basis = jobs[h]->basis;
        memcpy(x->here.step + h * dk, basis->step, basis->n * sizeof(float));
        hri_sketch_inverse(basis, x->here.inverse + h * dk);
        hri_sketch_lengths(basis, x->shape.dk, x->here.length + h * dk);
    }
    put(m, x->there.step, x->here.step, all);
    put(m, x->there.inverse, x->here.inverse, all);
    put(m, x->there.length, x->here.length, all);
}

/* Bases differ in what they code, so heads are encoded one after the other. */
static void sketch_launch(struct moves *m, const struct hri_index_job *job, size_t h)
{
    struct hri_device_index *x = m->x;
    const struct arrays *a = &x->there;
    const uint32_t dk = x->shape.dk, dv = x->shape.dv;
    const size_t first = h * x->n, blocks = h * x->blocks_up;
    const float *z = a->z + first * dk;
    const struct hri_cuda_pack_sketch_args pack = {.z = z,
                                                   .inv_step = a->inverse + h * dk,
                                                   .codes = a->sketch + h * x->sketch_bytes,
                                                   .z_stride = dk,
                                                   .codes_stride = x->sketch_bytes,
                                                   .n4 = job->basis->n4,
                                                   .n2 = job->basis->n2,
                                                   .n = x->n,
                                                   .first_row = job->lane % 16};
    const struct hri_cuda_missed_args missed = {.z = z,
                                                .step = a->step + h * dk,
                                                .length = a->length + h * dk,
                                                .n4 = job->basis->n4,
                                                .n2 = job->basis->n2,
                                                .dk = dk,
                                                .dv = dv,
                                                .n_blocks = job->segment->n_blocks,
                                                .rows = a->rows + first * (dk + dv) * 2,
                                                .dtype = x->dtype,
                                                .order = a->order + first,
                                                .block_begin = a->begin + h * (x->n_blocks + 1),
                                                .centres = a->centres + blocks * (dk + dv),
                                                .gain = a->gain + blocks,
                                                .far = a->far + first,
                                                .missed = a->missed + first,
                                                .plain = a->plain + first,
                                                .value = a->value + first};
    LAUNCH(m, pack_sketch, &pack, 1, hri_device_stream(x->device));
    LAUNCH(m, missed, &missed, hri_device_stream(x->device));
}

static void sketch_run(struct moves *m, const struct hri_index_job *const *jobs)
{
    struct hri_device_index *x = m->x;
    const struct arrays *a = &x->there;
    const size_t rows = (size_t)x->n_heads * x->n * sizeof(float);
    if (!x->packed) { /* some tokens ago: centres are made again */
        pack_launch(m, jobs);
    }
    matrix_put(m, jobs);
    basis_put(m, jobs);
    const struct hri_cuda_residual_args residual = residual_of(x);
    LAUNCH(m, residual_turn, &residual, a->matrix, a->z, heads_of(x), hri_device_stream(x->device));
    for (uint32_t h = 0; h < x->n_heads; h++) {
        sketch_launch(m, jobs[h], h);
    }
    put(m, x->here.sketch, a->sketch, x->n_heads * x->sketch_bytes);
    put(m, x->here.gain, a->gain, (size_t)x->n_heads * x->blocks_up);
    put(m, x->here.far, a->far, rows);
    put(m, x->here.missed, a->missed, rows);
    put(m, x->here.plain, a->plain, rows);
    put(m, x->here.value, a->value, rows);
}

hr_status_t hri_device_index_run(hr_sequence_t *s, const struct hri_index_job *const *jobs,
                                 uint32_t n_heads)
{
    struct hri_device_index *x = s->runtime->device_index;
    struct moves m = {x, HR_OK};
    HRI_ASSERT(n_heads == x->n_heads);
    hri_device_range_begin(x->device, "headrace index");
    switch (jobs[0]->kind) {
    case HRI_INDEX_JOB_CLUSTER:
        cluster_run(&m, jobs);
        break;
    case HRI_INDEX_JOB_NEAREST:
        nearest_run(&m, jobs);
        break;
    case HRI_INDEX_JOB_PACK:
        pack_run(&m, jobs);
        break;
    case HRI_INDEX_JOB_SKETCH:
        sketch_run(&m, jobs);
        break;
    case HRI_INDEX_JOB_NONE:
        break;
    }
    /* Also after an error: what was copied from is the caller's again. */
    hr_status_t waited = hri_device_wait(x->device);
    hri_device_range_end(x->device);
    m.status = m.status == HR_OK ? waited : m.status;
    x->packed = x->packed || (m.status == HR_OK && jobs[0]->kind >= HRI_INDEX_JOB_PACK);
    return m.status;
}

/* -- results -- */

void hri_device_index_take(const hr_sequence_t *s, uint32_t i, const struct hri_index_job *job)
{
    const struct hri_device_index *x = s->runtime->device_index;
    const struct arrays *a = &x->here;
    const size_t blocks = (size_t)i * x->blocks_up, rows = (size_t)i * x->n;
    const size_t width = x->shape.dk + x->shape.dv;
    if (job->kind == HRI_INDEX_JOB_PACK) {
        const struct hri_index_packed packed = {.k_codes = a->k_codes + blocks * x->shape.dk,
                                                .k_scale = a->k_scale + blocks,
                                                .v_codes = a->v_codes + blocks * x->shape.dv,
                                                .v_scale = a->v_scale + blocks,
                                                .square_sum = a->square_sum + blocks,
                                                .square_most = a->square_most + blocks,
                                                .joint = a->moment + i * width * width};
        hri_index_job_packed(job, &packed);
    } else if (job->kind == HRI_INDEX_JOB_SKETCH) {
        const struct hri_index_sketched sketched = {.codes = a->sketch + i * x->sketch_bytes,
                                                    .gain = a->gain + blocks,
                                                    .far = a->far + rows,
                                                    .missed = a->missed + rows,
                                                    .plain = a->plain + rows,
                                                    .value = a->value + rows};
        hri_index_job_sketched(job, &sketched);
    }
}

bool hri_device_index_codes(const hr_sequence_t *s, uint32_t i, struct hri_device_coded *coded_out)
{
    const struct hri_device_index *x = s->runtime->device_index;
    if (!x->packed) {
        return false;
    }
    coded_out->codes = x->here.codes + (size_t)i * x->n * (x->shape.dk + x->shape.dv);
    coded_out->k_step = x->here.k_step + (size_t)i * x->blocks_up;
    coded_out->v_step = x->here.v_step + (size_t)i * x->blocks_up;
    return true;
}
