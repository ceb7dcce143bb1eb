/* Indexing on the device against the CPU's.
 *
 * Job by job: two heads get the same segments, one with jobs on the device, one with the CPU's; after each job results are compared and
 * the CPU's put in the place of both, so that the next job has the same input. Points 1e-5; assignments but for ties within 1e-4
 * of the squared distance; centres, int8 rows, summaries and bases bit for bit; spreads to one step of their code; moments 1e-4; codes of
 * sketches but for what lies within 2e-6 of the products' sizes of the middle between two; what they miss to one step of its code.
 *
 * Whole sequences: errors within noise of those indexed by the CPU; a device that is lost or full leaves the CPU's index; copies go on alike. */
#include "tests/emu/device_emu.h"
#include "tests/index/image_bytes.h"
#include "tests/runtime/naive.h"
#include "tests/test.h"

#include "base/half.h"
#include "index/head.h"
#include "offload/io_ops.h"
#include "runtime/device_index.h"
#include "runtime/device_part.h"

#include <math.h>
#include <unistd.h>

enum { KV = 2, TOKENS = 900, LAYERS = 2, DIMS = 32 };

static char log_text[1024];

static void log_keep(void *context, hr_log_level_t level, const char *line)
{
    (void)context, (void)level;
    snprintf(log_text, sizeof log_text, "%s", line);
}

static int calm(void **state)
{
    (void)state;
    device_emu_faults = (struct device_emu_faults){0};
    log_text[0] = 0;
    return 0;
}

struct bed {
    struct shape shape;
    const char *recipe;
    hr_runtime_t *rt;
    hr_sequence_t *seq;
    float *k, *v, *q;
    uint32_t n;
};

static hr_runtime_t *runtime_open(const char *device)
{
    struct hr_runtime_options o;
    hr_runtime_t *rt = NULL;
    hr_runtime_options_init(&o);
    o.device = device;
    o.device_bytes = 64u << 20;
    o.host_bytes = 32u << 20;
    o.n_threads = 2;
    o.log = log_keep;
    assert_ok(hri_runtime_create_on(&o, hri_io_real(), device_emu_ops(), &rt));
    return rt;
}

static void options_of(const struct bed *b, struct hr_sequence_options *so)
{
    options_for(&b->shape, TOKENS, b->recipe, 0.1, so);
    so->keep_tokens = 1;
}

static struct shape shape_of(uint32_t d, uint32_t g)
{
    return (struct shape){.n_layers = LAYERS,
                          .n_q = KV * g,
                          .n_kv = KV,
                          .dk = d,
                          .dv = d,
                          .dtype = d == 80 ? HR_DTYPE_F16 : HR_DTYPE_BF16,
                          .rope = HR_ROPE_HALF};
}

/* A sequence on the device (or device "cpu") and a text for it, the same for all. */
static void bed_make(struct bed *b, const struct shape *shape, const char *recipe,
                     const char *device)
{
    struct random r = {.state = 11};
    struct hr_sequence_options so;
    *b = (struct bed){.shape = *shape, .recipe = recipe};
    b->rt = runtime_open(device ? device : device_emu_ops()->name);
    options_of(b, &so);
    assert_ok(hr_sequence_create(b->rt, &so, &b->seq));
    b->k = malloc(sizeof(float) * TOKENS * KV * shape->dk);
    b->v = malloc(sizeof(float) * TOKENS * KV * shape->dv);
    b->q = malloc(sizeof(float) * TOKENS * shape->n_q * shape->dk);
    assert_true(b->k && b->v && b->q);
    rows_make(&r, shape, TOKENS, b->k, b->v);
    queries_make(&r, shape, TOKENS, b->q);
}

static void bed_free(struct bed *b)
{
    hr_sequence_destroy(b->seq);
    assert_ok(hr_runtime_destroy(b->rt));
    free(b->k);
    free(b->v);
    free(b->q);
    assert_int_equal(device_emu_counts().device_bytes, 0);
    assert_int_equal(device_emu_counts().pinned_bytes, 0);
}

static void append_to(const struct bed *b, hr_sequence_t *seq, uint32_t n)
{
    for (uint32_t i = 0; i < LAYERS; i++)
        assert_ok(rows_append(seq, &b->shape, i, b->k, b->v, b->n, n));
}

static void append(struct bed *b, uint32_t n)
{
    append_to(b, b->seq, n);
    b->n += n;
}

static void settle(hr_sequence_t *seq)
{
    for (uint32_t i = 0; i < LAYERS; i++)
        assert_ok(hr_sequence_settle(seq, i));
}

/* Every row of the body is in one block, of every head. */
static void check_body(const hr_sequence_t *s)
{
    for (uint32_t i = 0; i < LAYERS; i++)
        for (uint32_t h = 0; h < KV; h++) {
            const struct hri_layer *l = &s->layers[i];
            const uint32_t n = hri_body_tokens(s, l);
            uint8_t seen[TOKENS] = {0};
            assert_int_equal(hri_index_rows(l->heads[h]), n);
            for (uint32_t row = 0; row < n; row++) {
                const uint32_t token = l->block_tokens[h].token[row];
                assert_true(token >= s->n_sink && token < l->body_end && !seen[token]);
                seen[token] = 1;
            }
        }
}

/* ------------------------------------------------------------------------------------- job by job */

struct side {
    struct hri_index_adding adding[KV];
    struct hri_index_head *heads[KV];
    void *workspace[KV];
    uint32_t order[KV][TOKENS], block_rows[KV][TOKENS];
};

struct pair {
    struct bed bed, cpu;
    struct side there, here;
    uint32_t first, n;
    unsigned char *rows; /* [KV][n][row_bytes] */
    float *k, *v;        /* [KV][n][dim], rounded */
    uint64_t codes, codes_off;
};

static void segment_rows(struct pair *p)
{
    const struct shape *s = &p->bed.shape;
    const struct hri_kernels *ref = hri_kernels_get(HRI_KERNEL_REF);
    const size_t dk = s->dk, dv = s->dv;
    for (uint32_t h = 0; h < KV; h++)
        for (uint32_t i = 0; i < p->n; i++) {
            const size_t at = (size_t)h * p->n + i, from = (size_t)(p->first + i) * KV + h;
            uint16_t *row = (uint16_t *)(void *)p->rows + at * (dk + dv);
            ref->from_f32(row, p->bed.k + from * dk, s->dtype, dk);
            ref->from_f32(row + dk, p->bed.v + from * dv, s->dtype, dv);
            ref->to_f32(p->k + at * dk, row, s->dtype, dk);
            ref->to_f32(p->v + at * dv, row + dk, s->dtype, dv);
        }
}

static void side_begin(struct pair *p, struct side *s, const struct bed *b)
{
    const size_t dk = b->shape.dk, dv = b->shape.dv;
    for (uint32_t h = 0; h < KV; h++) {
        s->heads[h] = b->seq->layers[0].heads[h];
        size_t bytes = hri_index_workspace_bytes(&s->heads[h]->options, p->n);
        s->workspace[h] = aligned_alloc(64, hri_round_up(bytes, 64));
        assert_non_null(s->workspace[h]);
        hri_index_adding_init(&s->adding[h], s->heads[h], p->k + h * p->n * dk,
                              p->v + h * p->n * dv, p->n, p->first + p->n, s->workspace[h],
                              s->order[h], s->block_rows[h]);
    }
}

static double square_distance(const float *a, const float *b)
{
    double sum = 0;
    for (uint32_t j = 0; j < DIMS; j++)
        sum += ((double)a[j] - (double)b[j]) * ((double)a[j] - (double)b[j]);
    return sum;
}

static void check_points(struct hri_index_job *a, const struct hri_index_job *b, uint32_t n)
{
    double size = 0;
    for (uint32_t i = 0; i < n * DIMS; i++)
        size = fmax(size, fabs((double)b->y[i]));
    for (uint32_t i = 0; i < n * DIMS; i++)
        assert_true(fabs((double)a->y[i] - (double)b->y[i]) < 1e-5 * size);
    memcpy(a->y, b->y, sizeof(float) * n * DIMS);
}

/* The points are the same but for rounding. Clusters drift apart from a tie on, so of these only that they are nearly all the same. */
static void check_nearest(struct hri_index_job *a, const struct hri_index_job *b, uint32_t n)
{
    uint32_t others = 0;
    for (uint32_t i = 0; i < n; i++) {
        const float *y = b->y + (size_t)i * DIMS;
        const uint32_t got = a->nearest[i], want = b->nearest[i];
        assert_true(got < a->k);
        others += got != want;
        if (got == want || a->kind == HRI_INDEX_JOB_CLUSTER)
            continue;
        const double d = square_distance(y, b->centroids + (size_t)got * DIMS),
                     best = square_distance(y, b->centroids + (size_t)want * DIMS);
        assert_true(d - best < 1e-4 * (d + best));
    }
    assert_true(others <= n / 50);
    memcpy(a->nearest, b->nearest, sizeof(uint32_t) * n);
    if (a->kind == HRI_INDEX_JOB_CLUSTER) {
        memcpy(a->counts, b->counts, sizeof(uint32_t) * a->k);
        memcpy(a->centroids, b->centroids, sizeof(float) * a->k * DIMS);
    }
}

static void check_codes(const struct pair *p, uint32_t h)
{
    const struct hri_kernels *ref = hri_kernels_get(HRI_KERNEL_REF);
    const struct side *s = &p->here;
    const size_t dk = p->bed.shape.dk, dv = p->bed.shape.dv, width = dk + dv;
    float *wide = malloc(sizeof(float) * 256 * width), centre[2 * HR_HEAD_DIM_MAX];
    int8_t *codes = malloc(256 * width);
    struct hri_device_coded coded;
    assert_true(wide && codes && hri_device_index_codes(p->bed.seq, h, &coded));
    uint32_t row = 0, first = s->heads[h]->n_blocks;
    for (uint32_t b = 0; b < s->adding[h].segment.n_blocks; b++) {
        const uint32_t n = s->block_rows[h][b];
        for (uint32_t i = 0; i < n; i++) {
            const size_t at = (size_t)h * p->n + s->order[h][row + i];
            memcpy(wide + i * width, p->k + at * dk, dk * sizeof(float));
            memcpy(wide + i * width + dk, p->v + at * dv, dv * sizeof(float));
        }
        hri_summary_centers(s->heads[h], first + b, centre, centre + dk); /* not counted yet */
        float step = ref->quantise_i8(wide, width, n, (uint32_t)dk, centre, codes, width);
        assert_true(step == coded.k_step[b]);
        step = ref->quantise_i8(wide + dk, width, n, (uint32_t)dv, centre + dk, codes + dk, width);
        assert_true(step == coded.v_step[b]);
        assert_memory_equal(codes, coded.codes + row * width, n * width);
        row += n;
    }
    free(wide);
    free(codes);
}

static void check_packed(const struct pair *p, uint32_t h)
{
    struct hri_index_head *a = p->there.heads[h];
    const struct hri_index_head *b = p->here.heads[h];
    const uint32_t first = b->n_blocks, n = p->here.adding[h].segment.n_blocks;
    const uint32_t dk = p->bed.shape.dk, dv = p->bed.shape.dv, width = dk + dv;
    for (uint32_t i = first; i < first + n; i++) {
        float x[2][HR_HEAD_DIM_MAX];
        hri_centroid_unpack(a->summary.k_codes, dk, i, 1, x[0]);
        hri_centroid_unpack(b->summary.k_codes, dk, i, 1, x[1]);
        assert_memory_equal(x[0], x[1], dk * sizeof(float));
        assert_memory_equal(a->summary.v_codes + (size_t)i * dv,
                            b->summary.v_codes + (size_t)i * dv, dv);
        assert_true(a->summary.k_scale[i] == b->summary.k_scale[i] &&
                    a->summary.v_scale[i] == b->summary.v_scale[i]);
        assert_true(abs((int)a->shape.spread[i] - (int)b->shape.spread[i]) <= 1);
        assert_true(abs((int)a->shape.peak[i] - (int)b->shape.peak[i]) <= 1);
    }
    assert_true(fabs(a->shape.spread_sum - b->shape.spread_sum) < 1e-5 * b->shape.spread_sum);
    for (uint32_t i = 0; i < width; i++)
        for (uint32_t j = 0; j < width; j++) {
            const float *x = b->shape.joint;
            const double size = sqrt((double)x[i * width + i] * (double)x[j * width + j]);
            assert_true(fabs((double)a->shape.joint[i * width + j] - (double)x[i * width + j]) <
                        1e-4 * size);
        }
    assert_true(a->shape.v_square_sum == b->shape.v_square_sum);
    assert_memory_equal(a->shape.v_sum, b->shape.v_sum, dv * sizeof(double));
    memcpy(a->shape.spread, b->shape.spread, (first + n) * sizeof *b->shape.spread);
    memcpy(a->shape.peak, b->shape.peak, first + n);
    memcpy(a->shape.joint, b->shape.joint, sizeof(float) * width * width);
    a->shape.spread_sum = b->shape.spread_sum;
    check_codes(p, h);
}

/* Coordinate j of the i-th row's residual in steps, in double; what its products add up to. */
static double coordinate(const struct pair *p, uint32_t h, uint32_t i, const float *centre,
                         uint32_t j, double *size_out)
{
    const struct hri_basis *basis = p->here.adding[h].job.basis;
    const size_t dk = p->bed.shape.dk;
    const float *k = p->k + ((size_t)h * p->n + p->here.order[h][i]) * dk;
    double sum = 0, size = 0;
    for (size_t t = 0; t < dk; t++) {
        double x = ((double)k[t] - (double)centre[t]) * (double)basis->turn[j * dk + t];
        sum += x;
        size += fabs(x);
    }
    *size_out = basis->step[j] > 0 ? size / (double)basis->step[j] : INFINITY;
    return basis->step[j] > 0 ? sum / (double)basis->step[j] : 0;
}

/* Another code only where what it rounds lies between both but for rounding. */
static void check_row_codes(struct pair *p, uint32_t h, uint32_t i, const float *centre)
{
    const struct hri_index_job *x = &p->there.adding[h].job, *y = &p->here.adding[h].job;
    float ours[HR_HEAD_DIM_MAX], theirs[HR_HEAD_DIM_MAX];
    hri_sketch_unpack(x->head->sketch->codes, x->basis->n4, x->basis->n2, x->lane + i, ours);
    hri_sketch_unpack(y->head->sketch->codes, y->basis->n4, y->basis->n2, y->lane + i, theirs);
    for (uint32_t j = 0; j < x->basis->n; j++) {
        double size, z = coordinate(p, h, i, centre, j, &size);
        p->codes++;
        if (ours[j] == theirs[j])
            continue;
        p->codes_off++;
        assert_true(fabsf(ours[j] - theirs[j]) <= 1);
        if (!(fabs(z - 0.5 * (double)(ours[j] + theirs[j])) < 2e-6 * (1 + size)))
            fail_msg("%s: row %u coordinate %u of %g steps (%g) is %g and %g", p->bed.recipe, i, j,
                     z, size, (double)ours[j], (double)theirs[j]);
    }
}

static void check_sketched(struct pair *p, uint32_t h)
{
    const struct hri_sketch *a = p->there.heads[h]->sketch, *b = p->here.heads[h]->sketch;
    const struct hri_index_job *x = &p->there.adding[h].job, *y = &p->here.adding[h].job;
    const uint32_t dk = p->bed.shape.dk, first = p->here.heads[h]->n_blocks;
    float centre[2][HR_HEAD_DIM_MAX];
    uint32_t row = 0;
    assert_int_equal(x->lane, y->lane);
    assert_int_equal(x->basis->n4, y->basis->n4);
    assert_memory_equal(x->basis->turn, y->basis->turn, sizeof(float) * dk * dk);
    for (uint32_t i = 0; i < p->here.adding[h].segment.n_blocks; i++) {
        assert_int_equal(a->first_lane[first + i], b->first_lane[first + i]);
        assert_true(abs(a->miss[first + i] - b->miss[first + i]) <= 1);
        assert_true(abs(a->gain[first + i] - b->gain[first + i]) <= 1);
        assert_true(abs(a->value_miss[first + i] - b->value_miss[first + i]) <= 1);
        hri_summary_centers(p->here.heads[h], first + i, centre[0], centre[1]);
        for (uint32_t j = 0; j < p->here.block_rows[h][i]; j++)
            check_row_codes(p, h, row++, centre[0]);
    }
}

static void check_job(struct pair *p, uint32_t h)
{
    struct hri_index_job *a = &p->there.adding[h].job;
    const struct hri_index_job *b = &p->here.adding[h].job;
    if (a->kind == HRI_INDEX_JOB_CLUSTER)
        check_points(a, b, p->n);
    if (a->kind == HRI_INDEX_JOB_CLUSTER || a->kind == HRI_INDEX_JOB_NEAREST)
        check_nearest(a, b, p->n);
    else if (a->kind == HRI_INDEX_JOB_PACK)
        check_packed(p, h);
    else
        check_sketched(p, h);
}

/* again: the sketch's job comes when its segment's other results are gone. */
static void segment_add(struct pair *p, bool again)
{
    hr_sequence_t *s = p->bed.seq;
    segment_rows(p);
    side_begin(p, &p->there, &p->bed);
    side_begin(p, &p->here, &p->cpu);
    assert_true(hri_device_index_heads(s, p->n) == KV);
    assert_ok(hri_device_index_begin(s, p->rows, p->n, KV));
    for (;;) {
        const struct hri_index_job *jobs[KV];
        for (uint32_t h = 0; h < KV; h++) {
            assert_ok(hri_index_adding_next(&p->there.adding[h]));
            assert_ok(hri_index_adding_next(&p->here.adding[h]));
            jobs[h] = &p->there.adding[h].job;
            assert_int_equal(jobs[h]->kind, p->here.adding[h].job.kind);
        }
        if (jobs[0]->kind == HRI_INDEX_JOB_NONE)
            break;
        if (jobs[0]->kind == HRI_INDEX_JOB_SKETCH && again)
            assert_ok(hri_device_index_begin(s, p->rows, p->n, KV));
        assert_ok(hri_device_index_run(s, jobs, KV));
        for (uint32_t h = 0; h < KV; h++) {
            hri_device_index_take(s, h, jobs[h]);
            hri_index_job_run(&p->here.adding[h].job);
            check_job(p, h);
        }
    }
    for (uint32_t h = 0; h < KV; h++) {
        const struct hri_index_head *a = p->there.heads[h], *b = p->here.heads[h];
        assert_int_equal(a->n_blocks, b->n_blocks);
        assert_memory_equal(p->there.order[h], p->here.order[h], p->n * sizeof(uint32_t));
        assert_true(!a->sketch || abs((int)a->sketch->strays.n - (int)b->sketch->strays.n) <= 2);
        free(p->there.workspace[h]);
        free(p->here.workspace[h]);
    }
}

static void pair_run(uint32_t d, uint32_t g, const char *recipe)
{
    static struct pair p;
    const struct shape shape = shape_of(d, g);
    const uint32_t sizes[] = {230, 13, 90};
    memset(&p, 0, sizeof p);
    bed_make(&p.bed, &shape, recipe, NULL);
    bed_make(&p.cpu, &shape, recipe, "cpu");
    p.rows = malloc((size_t)KV * TOKENS * 4 * d);
    p.k = malloc(sizeof(float) * KV * TOKENS * d);
    p.v = malloc(sizeof(float) * KV * TOKENS * d);
    float *q = malloc(sizeof(float) * TOKENS * g * d);
    assert_true(p.rows && p.k && p.v && q);
    for (uint32_t h = 0; h < KV; h++) {
        for (uint32_t i = 0; i < TOKENS; i++)
            memcpy(q + (size_t)i * g * d, p.bed.q + ((size_t)i * KV + h) * g * d,
                   sizeof(float) * g * d);
        hri_index_observe(p.bed.seq->layers[0].heads[h], q, 300, 0);
        hri_index_observe(p.cpu.seq->layers[0].heads[h], q, 300, 0);
    }
    for (uint32_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        p.first += p.n;
        p.n = sizes[i];
        segment_add(&p, i % 2 == 0);
    }
    printf("%s, d %u: %llu of %llu codes differ\n", recipe, d, (unsigned long long)p.codes_off,
           (unsigned long long)p.codes);
    assert_true(p.codes_off <= p.codes / 200);
    free(q);
    free(p.rows);
    free(p.k);
    free(p.v);
    bed_free(&p.bed);
    bed_free(&p.cpu);
}

static void test_jobs(void **state)
{
    (void)state;
    pair_run(64, 1, "headrace:sketch=2,block=12");
    pair_run(64, 4, "headrace:sketch=0,block=12");
    pair_run(80, 4, "headrace:sketch=1,block=9,iterations=5");
    pair_run(128, 4, "headrace:sketch=3,block=16");
    pair_run(256, 1, "headrace:sketch=2,block=12,iterations=1");
    pair_run(16, 2, "headrace:sketch=2,block=8");
}

/* --------------------------------------------------------------------------------- whole sequences */

/* Mean error of steps after a prompt, which decodes through further segments. */
static double error_of(struct bed *b, uint32_t prompt, uint32_t steps)
{
    double sum = 0;
    uint32_t n = 0;
    float *out = malloc(sizeof(float) * b->shape.n_q * b->shape.dv);
    assert_non_null(out);
    append(b, prompt);
    for (uint32_t i = 0; i < steps; i++) {
        append(b, 1);
        for (uint32_t layer = 0; layer < LAYERS; layer++) {
            struct hr_attend_report report = {0};
            assert_ok(hr_sequence_settle(b->seq, layer));
            if (i % 20 > 0)
                continue;
            assert_ok(queries_attend(b->seq, &b->shape, layer, HR_ATTEND_RECIPE, b->q, b->n - 1, 1,
                                     out, &report));
            sum += report.true_error;
            n++;
        }
    }
    check_body(b->seq);
    free(out);
    return sum / n;
}

static void compare(uint32_t d, uint32_t g, const char *recipe)
{
    const struct shape shape = shape_of(d, g);
    double error[2];
    for (int there = 0; there < 2; there++) {
        struct bed b;
        bed_make(&b, &shape, recipe, NULL);
        b.rt->index_on_host = !there;
        error[there] = error_of(&b, 300, 81);
        assert_true((b.rt->device_index != NULL) == there);
        bed_free(&b);
    }
    printf("d %u, %u query heads, %s: error %.4f, indexed by the CPU %.4f\n", d, g, recipe,
           error[1], error[0]);
    assert_true(error[1] < 1.25 * error[0] + 1e-4 && error[0] < 1.25 * error[1] + 1e-4);
}

static void test_errors(void **state)
{
    (void)state;
    compare(64, 1, "headrace:sketch=0,block=12,decode_segment=64,window=32");
    compare(64, 4, "headrace:sketch=2,block=12,decode_segment=64,window=32");
}

/* All that the heads know, as it is saved. */
static struct bytes image_of(const hr_sequence_t *s)
{
    struct bytes all = {0};
    for (uint32_t i = 0; i < LAYERS; i++)
        for (uint32_t h = 0; h < KV; h++) {
            struct hri_image im = {.move = bytes_out, .context = &all};
            assert_ok(hri_index_image(s->layers[i].heads[h], &im));
        }
    return all;
}

static struct bytes image_of_cpu(const struct shape *shape, const char *recipe)
{
    struct bed b;
    bed_make(&b, shape, recipe, NULL);
    b.rt->index_on_host = true;
    append(&b, 400);
    settle(b.seq);
    struct bytes image = image_of(b.seq);
    bed_free(&b);
    return image;
}

static void same_images(const struct bytes *a, const struct bytes *b)
{
    assert_int_equal(a->n, b->n);
    assert_memory_equal(a->data, b->data, a->n);
}

static const char recipe_64[] = "headrace:sketch=2,block=12,decode_segment=64,window=32";

/* Lost at the n-th wait of the indexing: what is left is the CPU's; nothing is missing, and all of it is saved. */
static void test_lost(void **state)
{
    (void)state;
    const struct shape shape = shape_of(64, 2);
    struct bytes cpu = image_of_cpu(&shape, recipe_64);
    char dir[] = "/tmp/device_index_XXXXXX", home[64];
    assert_non_null(mkdtemp(dir));
    snprintf(home, sizeof home, "%s/s", dir);
    for (uint32_t waits = 0; waits < 7; waits++) {
        struct bed b;
        struct hr_sequence_options so;
        hr_sequence_t *opened = NULL;
        calm(NULL);
        bed_make(&b, &shape, recipe_64, NULL);
        append(&b, 400);
        device_emu_faults.waits_before_loss = device_emu_waits() + waits;
        device_emu_faults.loss = true;
        settle(b.seq);
        assert_true(hri_device_is_lost(b.rt->gpu));
        check_body(b.seq);
        struct bytes image = image_of(b.seq);
        if (waits == 0)
            same_images(&image, &cpu);
        assert_ok(hr_sequence_save(b.seq, home, NULL));
        hr_runtime_t *rt = runtime_open("cpu");
        options_of(&b, &so);
        assert_ok(hr_sequence_open(rt, home, &so, NULL, &opened));
        struct bytes again = image_of(opened);
        same_images(&again, &image);
        hr_sequence_destroy(opened);
        assert_ok(hr_runtime_destroy(rt));
        assert_ok(hr_session_remove(home));
        bed_free(&b);
        free(image.data);
        free(again.data);
    }
    assert_int_equal(rmdir(dir), 0);
    free(cpu.data);
}

/* Whatever is left of the budget is taken, but `left` bytes. */
static void room_take(hr_runtime_t *rt, uint64_t left, struct hri_device_memory *memory)
{
    const struct hr_tier_stats t = hri_device_stats(rt->gpu);
    assert_true(t.bytes_cap - t.bytes_held > left);
    assert_ok(hri_device_alloc(rt->gpu, "a test", t.bytes_cap - t.bytes_held - left, memory));
}

/* No room: the CPU's index, said once. Room for one head of two: one after the other. */
static void test_room(void **state)
{
    (void)state;
    const struct shape shape = shape_of(64, 2);
    struct bytes cpu = image_of_cpu(&shape, recipe_64);
    struct hri_device_memory memory;
    struct bed b;
    uint64_t held;
    bed_make(&b, &shape, recipe_64, NULL);
    held = hri_device_stats(b.rt->gpu).bytes_held;
    assert_int_equal(hri_device_index_heads(b.seq, 400), KV);
    const uint64_t both = hri_device_stats(b.rt->gpu).bytes_held - held;
    hri_device_index_yield(b.rt, UINT64_MAX);
    assert_int_equal(hri_device_stats(b.rt->gpu).bytes_held, held);
    room_take(b.rt, 4096, &memory);
    append(&b, 400);
    settle(b.seq);
    assert_null(b.rt->device_index);
    assert_non_null(strstr(log_text, "no memory is left for indexing"));
    struct bytes image = image_of(b.seq);
    same_images(&image, &cpu);
    hri_device_free(b.rt->gpu, &memory);
    room_take(b.rt, both * 3 / 4, &memory);
    hri_device_index_yield(b.rt, 0); /* as when a sequence is created */
    assert_int_equal(hri_device_index_heads(b.seq, 64), 1);
    append(&b, 200);
    settle(b.seq);
    check_body(b.seq);
    hri_device_free(b.rt->gpu, &memory);
    bed_free(&b);
    free(image.data);
    free(cpu.data);
}

/* A fork, and a session saved and opened, index what comes next as the one they came from, also from the middle of a segment ahead. */
static void test_copies(void **state)
{
    (void)state;
    const struct shape shape = shape_of(64, 2);
    char dir[] = "/tmp/device_index_XXXXXX", home[64];
    struct hr_sequence_options so;
    struct bed b;
    hr_sequence_t *copies[2] = {NULL, NULL};
    assert_non_null(mkdtemp(dir));
    snprintf(home, sizeof home, "%s/s", dir);
    bed_make(&b, &shape, recipe_64, NULL);
    append(&b, 300);
    settle(b.seq);
    for (uint32_t i = 0; i < 45; i++) {
        append(&b, 1);
        settle(b.seq);
    }
    options_of(&b, &so);
    assert_ok(hr_sequence_fork(b.seq, &copies[0]));
    assert_ok(hr_sequence_save(b.seq, home, NULL));
    assert_ok(hr_sequence_open(b.rt, home, &so, NULL, &copies[1]));
    for (uint32_t i = 0; i < 80; i++) {
        for (int j = 0; j < 2; j++) {
            append_to(&b, copies[j], 1);
            settle(copies[j]);
        }
        append(&b, 1);
        settle(b.seq);
    }
    struct bytes first = image_of(b.seq);
    check_body(b.seq);
    for (int j = 0; j < 2; j++) {
        struct bytes image = image_of(copies[j]);
        same_images(&image, &first);
        hr_sequence_destroy(copies[j]);
        free(image.data);
    }
    free(first.data);
    assert_ok(hr_session_remove(home));
    assert_int_equal(rmdir(dir), 0);
    bed_free(&b);
}

int main(void)
{
    if (!device_emu_available()) {
        printf("skipped: no CUDA device\n");
        return 77;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_jobs, calm), cmocka_unit_test_setup(test_errors, calm),
        cmocka_unit_test_setup(test_lost, calm), cmocka_unit_test_setup(test_room, calm),
        cmocka_unit_test_setup(test_copies, calm)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
