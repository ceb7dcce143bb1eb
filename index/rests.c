#include "index/rests.h"

#include "base/arena.h"
#include "base/assert.h"
#include "index/head.h"
#include "index/image.h"
#include "index/passes.h"
#include "index/rows.h"

#include <math.h>
#include <string.h>

#define CHUNK_ROWS 128u /* rows whose values are compared at a time */
/* The best step of four levels for what is Gaussian, in root mean squares, squared. */
#define STEP 0.99
/* With one bit, keys are off by so much that values hardly matter. */
#define SKETCH_BITS_MIN 2

bool hri_rests_wanted(const struct hri_index_options *o)
{
    return o->rows_in_host && hri_sketch_bits(o) >= SKETCH_BITS_MIN &&
           hri_recipe_value(&o->recipe, "rests") > 0;
}

/* Of a row's codes. */
static uint32_t code_bytes(const struct hri_index_options *o)
{
    return o->v_dim / 4;
}

bool hri_rests_create(const struct hri_index_options *o, uint32_t lanes, struct hri_rests *r)
{
    memset(r, 0, sizeof *r);
    if (!hri_rests_wanted(o))
        return true;
    r->codes = hri_aligned(o->scratch, 64, (size_t)lanes * code_bytes(o));
    r->step = hri_aligned(o->scratch, 64, lanes);
    r->bytes = code_bytes(o) + 1;
    return r->codes && r->step;
}

void hri_rests_destroy(const struct hri_index_options *o, struct hri_rests *r)
{
    hri_free(o->scratch, r->codes);
    hri_free(o->scratch, r->step);
    memset(r, 0, sizeof *r);
}

uint64_t hri_rests_held(const struct hri_index_head *head)
{
    const struct hri_sketch *s = head->sketch;
    uint32_t n = head->n_blocks, first = s->rests.first_block;
    if (!s->rests.codes || first >= n)
        return 0;
    uint64_t end = s->first_lane[n - 1] + head->block_rows[n - 1];
    return (end - s->first_lane[first]) * s->rests.bytes;
}

/* ------------------------------------------------------------------------------------- encoding */

size_t hri_rests_work_bytes(const struct hri_index_options *o)
{
    size_t floats = (size_t)CHUNK_ROWS * (o->k_dim + o->v_dim) + (size_t)o->k_dim * o->v_dim;
    return hri_rests_wanted(o) ? floats * sizeof(float) + 4 * 64 : 0;
}

/* columns [v_dim][n]: what a code adds to the value, as the estimate has it. */
static void columns_fill(const struct hri_basis *basis, uint32_t dv, float *columns)
{
    for (uint32_t c = 0; c < basis->n; c++)
        for (uint32_t j = 0; j < dv; j++)
            columns[(size_t)j * basis->n + c] =
                basis->value_scale[c] * (float)basis->value[(size_t)c * dv + j];
}

/* What the log codes of steps are relative to: the square of a dimension of what is left of a value, on the mean. */
static float square_mean(const struct hri_basis *basis, uint32_t dv)
{
    return basis->value_rest / (float)dv;
}

static void row_encode(const struct hri_sketch *s, float mean, const float *x, uint32_t dv,
                       uint8_t *codes, uint8_t *step_code)
{
    double square = (double)hri_dot(x, x, dv);
    *step_code = hri_sketch_log_code(STEP * square / dv, (double)mean);
    float step = sqrtf(mean * s->miss_of[*step_code]), inverse = step > 0 ? 1 / step : 0;
    hri_pass_quarters_code(x, inverse, dv / 4, codes);
}

void hri_rests_pass(struct hri_index_head *head, uint32_t first, uint32_t end)
{
    struct hri_rests *r = &head->sketch->rests;
    size_t bytes = code_bytes(&head->options);
    if (!r->codes || first >= end)
        return;
    memset(r->codes + first * bytes, 0, (end - first) * bytes);
    memset(r->step + first, 0, end - first);
}

void hri_rests_add(struct hri_index_head *head, const struct hri_basis *basis, const float *values,
                   uint32_t lane, uint32_t n, void *work)
{
    const struct hri_index_options *o = &head->options;
    struct hri_rests *r = &head->sketch->rests;
    uint32_t dk = o->k_dim, dv = o->v_dim;
    struct hri_arena arena;
    if (!r->codes)
        return;
    hri_arena_init_buffer(&arena, work, hri_rests_work_bytes(o));
    float *coded = hri_arena_array(&arena, (size_t)CHUNK_ROWS * dk, sizeof(float));
    float *rest = hri_arena_array(&arena, (size_t)CHUNK_ROWS * dv, sizeof(float));
    float *columns = hri_arena_array(&arena, (size_t)dk * dv, sizeof(float));
    HRI_ASSERT(columns != NULL);
    columns_fill(basis, dv, columns);
    for (uint32_t first = 0; first < n; first += CHUNK_ROWS) {
        uint32_t rows = n - first < CHUNK_ROWS ? n - first : CHUNK_ROWS;
        for (uint32_t i = 0; i < rows; i++)
            hri_sketch_unpack(head->sketch->codes, basis->n4, basis->n2, lane + first + i,
                              coded + (size_t)i * basis->n);
        o->kernels->matmul_nt(coded, rows, basis->n, columns, dv, rest);
        for (uint32_t i = 0; i < rows; i++) {
            const float *v = values + (size_t)(first + i) * dv;
            float *x = rest + (size_t)i * dv;
            size_t at = lane + first + i;
            for (uint32_t j = 0; j < dv; j++)
                x[j] = v[j] - x[j];
            row_encode(head->sketch, square_mean(basis, dv), x, dv, r->codes + at * code_bytes(o),
                       r->step + at);
        }
    }
}

/* --------------------------------------------------------------------------------------- a step */

void hri_rests_ahead(const struct hri_index_head *head, uint32_t lane)
{
    const struct hri_rests *r = &head->sketch->rests;
    const uint8_t *codes = r->codes + (size_t)lane * code_bytes(&head->options);
    __builtin_prefetch(codes);
    __builtin_prefetch(codes + code_bytes(&head->options) - 1);
    __builtin_prefetch(r->step + lane);
}

void hri_rests_sum(const struct hri_index_head *head, const struct hri_basis *basis,
                   const uint32_t *lane, uint32_t n, const float *weight, size_t stride, float *sum)
{
    const struct hri_index_options *o = &head->options;
    const struct hri_rests *r = &head->sketch->rests;
    _Alignas(64) int8_t wide[HRI_RESTS_AT_ONCE * HR_HEAD_DIM_MAX];
    const int8_t *codes[HRI_RESTS_AT_ONCE];
    float half_step[HRI_RESTS_AT_ONCE], w[HR_GROUP_MAX * HRI_RESTS_AT_ONCE];
    float mean = square_mean(basis, o->v_dim);
    HRI_ASSERT(n <= HRI_RESTS_AT_ONCE);
    if (n == 0)
        return;
    for (uint32_t i = 0; i < n; i++) {
        int8_t *to = wide + (size_t)i * o->v_dim;
        hri_pass_quarters_widen(r->codes + (size_t)lane[i] * code_bytes(o), o->v_dim / 4, to);
        codes[i] = to;
        half_step[i] = 0.5f * sqrtf(mean * head->sketch->miss_of[r->step[lane[i]]]);
        for (uint32_t g = 0; g < o->g; g++)
            w[g * HRI_RESTS_AT_ONCE + i] = weight[g * stride + lane[i]];
    }
    o->kernels->sum_gather_i8(w, HRI_RESTS_AT_ONCE, o->g, 0, o->v_dim, codes, half_step, n, sum);
}

/* -------------------------------------------------------------------------------------- saving */

/* Bytes that this head has no use for. */
static void pass_over(struct hri_image *im, size_t bytes)
{
    unsigned char some[4096];
    for (size_t n; bytes > 0 && hri_image_ok(im); bytes -= n) {
        n = bytes < sizeof some ? bytes : sizeof some;
        hri_image_bytes(im, some, n);
    }
}

void hri_rests_image(struct hri_index_head *head, uint32_t end, struct hri_image *im)
{
    struct hri_rests *r = &head->sketch->rests;
    size_t bytes = code_bytes(&head->options);
    uint32_t first = r->codes ? r->first_block : head->n_blocks;
    hri_image_u32(im, &first, head->n_blocks, "rests of blocks that are not there");
    if (!hri_image_ok(im))
        return;
    r->first_block = first;
    uint32_t lane = first < head->n_blocks ? head->sketch->first_lane[first] : end;
    size_t rows = end - lane;
    if (!r->codes) {
        pass_over(im, rows * (bytes + 1));
        return;
    }
    hri_image_bytes(im, r->codes + lane * bytes, rows * bytes);
    hri_image_bytes(im, r->step + lane, rows);
}
