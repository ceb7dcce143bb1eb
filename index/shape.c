/* C and D: the shared second-order part of the summaries (docs/algorithm.md, level 0). */
#include "base/arena.h"
#include "base/assert.h"
#include "base/half.h"
#include "index/head.h"
#include "index/linalg.h"
#include "index/image.h"
#include "index/passes.h"

#include <float.h>
#include <math.h>
#include <string.h>

#define RANK_C     24u  /* of C: the whole of it is 2 % better and three times as large */
#define RANK_D     8u   /* of D: more gains nothing that can be measured */
#define CHUNK_ROWS 512u /* residuals are formed so many rows at a time; a block has at most 255 */
#define SPREAD_MAX 1e30 /* squares of huge keys overflow; a finite spread keeps zeros zero */
#define REFRESH_GROWTH                                                                             \
    1.25 /* C and D are made anew when the rows behind them have grown by this factor */

static uint32_t rank_c_of(const struct hri_index_options *o)
{
    return o->k_dim < RANK_C ? o->k_dim : RANK_C;
}

static uint32_t rank_d_of(const struct hri_index_options *o)
{
    uint32_t d = o->k_dim < o->v_dim ? o->k_dim : o->v_dim;
    return d < RANK_D ? d : RANK_D;
}

void hri_shape_ranks(const struct hri_index_options *options, uint32_t *rank_c_out,
                     uint32_t *rank_d_out)
{
    *rank_c_out = rank_c_of(options);
    *rank_d_out = rank_d_of(options);
}

uint64_t hri_shape_bytes(const struct hri_index_options *o, uint32_t n_blocks)
{
    uint64_t rank_c = rank_c_of(o), rank_d = rank_d_of(o);
    return rank_c * (o->k_dim + sizeof(float)) +
           rank_d * (o->k_dim + o->v_dim + 2 * sizeof(float)) + o->v_dim * sizeof(float) +
           n_blocks * (sizeof(uint16_t) + 1);
}

hr_status_t hri_shape_create(struct hri_index_head *head)
{
    const struct hri_index_options *o = &head->options;
    struct hri_shape *s = &head->shape;
    size_t width = o->k_dim + o->v_dim;
    uint32_t rank_c = rank_c_of(o), rank_d = rank_d_of(o);
    s->f = hri_calloc(o->device, rank_c, o->k_dim);
    s->f_scale = hri_calloc(o->device, rank_c, sizeof(float));
    s->w = hri_calloc(o->device, rank_d, o->k_dim);
    s->u = hri_calloc(o->device, rank_d, o->v_dim);
    s->w_scale = hri_calloc(o->device, rank_d, sizeof(float));
    s->u_scale = hri_calloc(o->device, rank_d, sizeof(float));
    s->v_mean = hri_calloc(o->device, o->v_dim, sizeof(float));
    s->spread = hri_array(o->device, o->blocks_max, sizeof(uint16_t));
    s->peak = hri_array(o->device, o->blocks_max, 1);
    s->joint = hri_aligned_zero(o->scratch, 64, width * width * sizeof(float));
    s->v_sum = hri_calloc(o->scratch, o->v_dim, sizeof(double));
    if (!s->f || !s->f_scale || !s->w || !s->u || !s->w_scale || !s->u_scale || !s->v_mean ||
        !s->spread || !s->peak || !s->joint || !s->v_sum) {
        hri_shape_destroy(head);
        return hri_alloc_status();
    }
    s->rank_c = rank_c;
    s->rank_d = rank_d;
    return HR_OK;
}

void hri_shape_destroy(struct hri_index_head *head)
{
    struct hri_shape *s = &head->shape;
    struct hri_alloc *device = head->options.device, *scratch = head->options.scratch;
    hri_free(device, s->f);
    hri_free(device, s->f_scale);
    hri_free(device, s->w);
    hri_free(device, s->u);
    hri_free(device, s->w_scale);
    hri_free(device, s->u_scale);
    hri_free(device, s->v_mean);
    hri_free(device, s->spread);
    hri_free(device, s->peak);
    hri_free(scratch, s->joint);
    hri_free(scratch, s->v_sum);
    *s = (struct hri_shape){0};
}

void hri_shape_clear(struct hri_index_head *head)
{
    struct hri_shape *s = &head->shape;
    size_t width = head->options.k_dim + head->options.v_dim;
    memset(s->joint, 0, width * width * sizeof *s->joint);
    memset(s->v_sum, 0, head->options.v_dim * sizeof *s->v_sum);
    s->spread_sum = s->v_square_sum = s->rows = 0;
    s->rows_at_refresh = 0;
}

struct work {
    float *residuals; /* [CHUNK_ROWS][k_dim + v_dim] */
    float *keys;      /* [CHUNK_ROWS][k_dim] */
    float *turned;    /* [CHUNK_ROWS][k_dim] keys in the metric */
    double *a, *b;    /* [dim][dim] */
    double *values;   /* [dim] */
    double *products; /* 2 [dim][dim] */
    double *square;   /* [k_dim] |p_i|^2 */
    void *eigen;
};

static size_t work_dim(const struct hri_index_options *o)
{
    return o->k_dim > o->v_dim ? o->k_dim : o->v_dim;
}

size_t hri_shape_work_bytes(const struct hri_index_options *o)
{
    size_t dim = work_dim(o);
    return CHUNK_ROWS * ((size_t)3 * o->k_dim + o->v_dim) * sizeof(float) +
           (4 * dim * dim + 2 * dim) * sizeof(double) + hri_eigen_work_bytes(o->k_dim) + 10 * 64;
}

static struct work take_work(const struct hri_index_options *o, void *memory)
{
    struct hri_arena arena;
    size_t dim = work_dim(o);
    hri_arena_init_buffer(&arena, memory, hri_shape_work_bytes(o));
    struct work w = {0};
    w.residuals = hri_arena_array(&arena, CHUNK_ROWS, (o->k_dim + o->v_dim) * sizeof(float));
    w.keys = hri_arena_array(&arena, CHUNK_ROWS, o->k_dim * sizeof(float));
    w.turned = hri_arena_array(&arena, CHUNK_ROWS, o->k_dim * sizeof(float));
    w.a = hri_arena_array(&arena, dim * dim, sizeof(double));
    w.b = hri_arena_array(&arena, dim * dim, sizeof(double));
    w.values = hri_arena_array(&arena, dim, sizeof(double));
    w.products = hri_arena_array(&arena, 2 * dim * dim, sizeof(double));
    w.square = hri_arena_array(&arena, dim, sizeof(double));
    w.eigen = hri_arena_array(&arena, hri_eigen_work_bytes(o->k_dim), 1);
    HRI_ASSERT(w.eigen != NULL);
    return w;
}

/* residuals [i] = (k - m | v - v_m) of one block, keys [i] = k - m. */
static void block_residuals(const struct hri_index_head *head, uint32_t b, const float *k,
                            const float *v, const uint32_t *rows, uint32_t n, float *residuals,
                            float *keys)
{
    uint32_t dk = head->options.k_dim, dv = head->options.v_dim;
    float k_center[HR_HEAD_DIM_MAX], v_center[HR_HEAD_DIM_MAX];
    hri_summary_centers(head, b, k_center, v_center);
    for (uint32_t i = 0; i < n; i++) {
        float *row = residuals + (size_t)i * (dk + dv);
        for (uint32_t j = 0; j < dk; j++)
            keys[(size_t)i * dk + j] = row[j] = k[(size_t)rows[i] * dk + j] - k_center[j];
        for (uint32_t j = 0; j < dv; j++)
            row[dk + j] = v[(size_t)rows[i] * dv + j] - v_center[j];
    }
}

static void add_values(struct hri_shape *s, const float *v, uint32_t dv, const uint32_t *rows,
                       uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t j = 0; j < dv; j++) {
            double x = v[(size_t)rows[i] * dv + j];
            s->v_sum[j] += x;
            s->v_square_sum += x * x;
        }
    s->rows += n;
}

/* A block's spread and peak, from the sum of its rows' |P (k - m)|^2 and the largest of them. */
static void spread_write(struct hri_shape *s, uint32_t block, uint32_t rows, double sum,
                         double most)
{
    double peak = sum > 0 ? 16 * sqrt(most * rows / sum) : 0;
    s->peak[block] = (uint8_t)fmin(isfinite(peak) ? peak : 0, 255);
    sum = sum < SPREAD_MAX ? sum : SPREAD_MAX;
    s->spread[block] = hri_bf16_from_f32((float)(sum / rows));
    s->spread_sum += sum;
}

/* Spreads of the blocks whose rows lie in turned, one after the other. */
static void write_spreads(struct hri_index_head *head, uint32_t first_block,
                          const uint32_t *block_rows, uint32_t n_blocks, const float *turned)
{
    uint32_t dk = head->options.k_dim;
    for (uint32_t b = 0; b < n_blocks; b++) {
        double sum = 0, most = 0;
        for (uint32_t i = 0; i < block_rows[b]; i++) {
            double square = 0;
            for (uint32_t j = 0; j < dk; j++)
                square += (double)turned[(size_t)i * dk + j] * turned[(size_t)i * dk + j];
            sum += square;
            most = fmax(most, square);
        }
        spread_write(&head->shape, first_block + b, block_rows[b], sum, most);
        turned += (size_t)block_rows[b] * dk;
    }
}

/* Codes a column as int8; returns its scale. */
static float code_column(const double *x, uint32_t d, int8_t *codes)
{
    double most = 0, sum = 0;
    for (uint32_t j = 0; j < d; j++) {
        most = fmax(most, fabs(x[j]));
        sum += x[j];
    }
    /* Sums that overflowed give a column of zeros: first order is better than nonsense. */
    float scale = isfinite(sum) && most < FLT_MAX ? (float)(most / 127) : 0;
    for (uint32_t j = 0; j < d; j++)
        codes[j] = scale > 0 ? (int8_t)lrint(x[j] / scale) : 0;
    return scale;
}

/* out[j] = sum_i z[i] p_ij / |p_i|^2: takes a direction from the whitened queries' space back to that of queries. The i-th row of the
 * metric and its inverse have the same direction: rows of p are eigenvectors times root values. */
static void unwhiten(const float *p, uint32_t d, const double *square, const double *z, double *out)
{
    memset(out, 0, d * sizeof *out);
    for (uint32_t i = 0; i < d; i++) {
        double t = z[i] / fmax(square[i], 1e-30);
        for (uint32_t j = 0; j < d; j++)
            out[j] += t * p[(size_t)i * d + j];
    }
}

/* w.a = P C P' from the joint sums. */
static void metric_of_c(const struct hri_index_head *head, const float *p, double scale,
                        struct work *w)
{
    uint32_t d = head->options.k_dim, width = d + head->options.v_dim;
    for (uint32_t i = 0; i < d; i++)
        for (uint32_t j = 0; j < d; j++)
            w->a[(size_t)i * d + j] = scale * (double)head->shape.joint[(size_t)i * width + j];
    hri_congruence(p, d, w->a, w->products);
}

/* F: columns sqrt(value) * direction of the largest eigenvalues of P C P', taken back to queries.
 */
static hr_status_t refresh_c(struct hri_index_head *head, const float *p, double scale,
                             struct work *w)
{
    struct hri_shape *s = &head->shape;
    uint32_t d = head->options.k_dim;
    double column[HR_HEAD_DIM_MAX];
    metric_of_c(head, p, scale, w);
    hr_status_t status = hri_eigen(w->a, d, w->values, w->eigen);
    if (status != HR_OK)
        return status;
    double kept = 0, all = 0;
    for (uint32_t i = 0; i < d; i++) {
        all += fmax(w->values[i], 0);
        kept += i >= d - s->rank_c ? fmax(w->values[i], 0) : 0;
    }
    /* What the low rank leaves out is spread over what it keeps, so that the expected variance is
     * right. */
    double swell = kept > 0 ? sqrt(all / kept) : 0;
    for (uint32_t r = 0; r < s->rank_c; r++) {
        uint32_t i = d - 1 - r;
        unwhiten(p, d, w->square, w->a + (size_t)i * d, column);
        for (uint32_t j = 0; j < d; j++)
            column[j] *= swell * sqrt(fmax(w->values[i], 0));
        s->f_scale[r] = code_column(column, d, s->f + (size_t)r * d);
    }
    return HR_OK;
}

/* w.b = D P' [v_dim][k_dim], w.a = b'b. */
static void metric_of_d(const struct hri_index_head *head, const float *p, double scale,
                        struct work *w)
{
    uint32_t dk = head->options.k_dim, dv = head->options.v_dim, width = dk + dv;
    double *d = w->products, *wide = d + (size_t)dv * dk;
    for (uint32_t i = 0; i < dv; i++)
        for (uint32_t j = 0; j < dk; j++)
            d[(size_t)i * dk + j] = scale * (double)head->shape.joint[(size_t)(dk + i) * width + j];
    for (size_t i = 0; i < (size_t)dk * dk; i++)
        wide[i] = p[i];
    hri_multiply(d, dv, dk, wide, dk, true, w->b);
    for (uint32_t i = 0; i < dk; i++) /* b' */
        for (uint32_t j = 0; j < dv; j++)
            d[(size_t)i * dv + j] = w->b[(size_t)j * dk + i];
    hri_multiply(d, dk, dv, w->b, dk, false, w->a);
}

/* D = U W': W from the largest right singular vectors of D P', U = D P' times them. */
static hr_status_t refresh_d(struct hri_index_head *head, const float *p, double scale,
                             struct work *w)
{
    struct hri_shape *s = &head->shape;
    uint32_t dk = head->options.k_dim, dv = head->options.v_dim;
    double column[HR_HEAD_DIM_MAX];
    metric_of_d(head, p, scale, w);
    hr_status_t status = hri_eigen(w->a, dk, w->values, w->eigen);
    if (status != HR_OK)
        return status;
    for (uint32_t r = 0; r < s->rank_d; r++) {
        const double *z = w->a + (size_t)(dk - 1 - r) * dk;
        unwhiten(p, dk, w->square, z, column);
        s->w_scale[r] = code_column(column, dk, s->w + (size_t)r * dk);
        for (uint32_t i = 0; i < dv; i++) {
            column[i] = 0;
            for (uint32_t j = 0; j < dk; j++)
                column[i] += w->b[(size_t)i * dk + j] * z[j];
        }
        s->u_scale[r] = code_column(column, dv, s->u + (size_t)r * dv);
    }
    return HR_OK;
}

static hr_status_t refresh(struct hri_index_head *head, const float *p, struct work *w)
{
    struct hri_shape *s = &head->shape;
    uint32_t dv = head->options.v_dim;
    double mean_square = 0, scale = s->spread_sum > 0 ? 1 / s->spread_sum : 0;
    for (uint32_t j = 0; j < dv; j++) {
        s->v_mean[j] = (float)(s->v_sum[j] / s->rows);
        mean_square += (double)s->v_mean[j] * s->v_mean[j];
    }
    s->v_variance = fmax(s->v_square_sum / s->rows - mean_square, 0);
    hri_row_squares(p, head->options.k_dim, w->square);
    hr_status_t status = refresh_c(head, p, scale, w);
    if (status == HR_OK)
        status = refresh_d(head, p, scale, w);
    if (status == HR_OK)
        s->rows_at_refresh = (uint64_t)s->rows;
    return status;
}

void hri_shape_take(struct hri_index_head *head, const float *k, const float *v,
                    const uint32_t *order, const uint32_t *block_rows, uint32_t n_blocks,
                    const float *p, void *memory)
{
    const struct hri_index_options *o = &head->options;
    struct hri_shape *s = &head->shape;
    struct work w = take_work(o, memory);
    uint32_t width = o->k_dim + o->v_dim, first = 0, b = 0;
    while (b < n_blocks) {
        uint32_t held = 0, begin = b;
        for (; b < n_blocks && held + block_rows[b] <= CHUNK_ROWS; b++) {
            block_residuals(head, head->n_blocks + b, k, v, order + first, block_rows[b],
                            w.residuals + (size_t)held * width, w.keys + (size_t)held * o->k_dim);
            add_values(s, v, o->v_dim, order + first, block_rows[b]);
            held += block_rows[b];
            first += block_rows[b];
        }
        o->kernels->matmul_nt(w.keys, held, o->k_dim, p, o->k_dim, w.turned);
        o->kernels->second_moment(w.residuals, held, width, s->joint);
        write_spreads(head, head->n_blocks + begin, block_rows + begin, b - begin, w.turned);
    }
}

void hri_shape_take_sums(struct hri_index_head *head, const struct hri_segment *segment,
                         const float *square_sum, const float *square_most, const float *joint)
{
    struct hri_shape *s = &head->shape;
    uint32_t width = head->options.k_dim + head->options.v_dim;
    add_values(s, segment->v, head->options.v_dim, segment->order, segment->n);
    for (uint32_t b = 0; b < segment->n_blocks; b++)
        spread_write(s, head->n_blocks + b, segment->block_rows[b], (double)square_sum[b],
                     (double)square_most[b]);
    for (size_t i = 0; i < (size_t)width * width; i++)
        s->joint[i] += joint[i];
}

hr_status_t hri_shape_refresh(struct hri_index_head *head, const float *p, void *memory)
{
    const struct hri_shape *s = &head->shape;
    struct work w = take_work(&head->options, memory);
    return s->rows > REFRESH_GROWTH * (double)s->rows_at_refresh ? refresh(head, p, &w) : HR_OK;
}

hr_status_t hri_shape_add(struct hri_index_head *head, const float *k, const float *v,
                          const uint32_t *order, const uint32_t *block_rows, uint32_t n_blocks,
                          const float *p, void *memory)
{
    hri_shape_take(head, k, v, order, block_rows, n_blocks, p, memory);
    return hri_shape_refresh(head, p, memory);
}

/* out[g][r] = scale[r] * q_g . axes[r] */
static void axes_dots(const struct hri_index_options *o, const float *q, uint32_t g,
                      const int8_t *axes, const float *scale, uint32_t rank, float *out)
{
    const int8_t *axis[RANK_C];
    for (uint32_t r = 0; r < rank; r++)
        axis[r] = axes + (size_t)r * o->k_dim;
    if (rank > 0)
        o->kernels->score_gather_i8(q, g, o->k_dim, axis, scale, rank, out, rank);
}

void hri_shape_query(const struct hri_index_head *head, const float *q, uint32_t g,
                     float *variance_out, float *shift_out)
{
    const struct hri_index_options *o = &head->options;
    const struct hri_shape *s = &head->shape;
    float dots[HR_GROUP_MAX * RANK_C];
    axes_dots(o, q, g, s->f, s->f_scale, s->rank_c, dots);
    for (uint32_t i = 0; i < g; i++) {
        variance_out[i] = 0;
        for (uint32_t r = 0; r < s->rank_c; r++)
            variance_out[i] += dots[i * s->rank_c + r] * dots[i * s->rank_c + r];
    }
    axes_dots(o, q, g, s->w, s->w_scale, s->rank_d, dots);
    memset(shift_out, 0, (size_t)g * o->v_dim * sizeof *shift_out);
    for (uint32_t i = 0; i < g; i++)
        for (uint32_t r = 0; r < s->rank_d; r++)
            hri_pass_value_add(s->u + (size_t)r * o->v_dim, dots[i * s->rank_d + r] * s->u_scale[r],
                               shift_out + (size_t)i * o->v_dim, o->v_dim);
}

void hri_shape_image(struct hri_index_head *head, struct hri_image *im)
{
    struct hri_shape *s = &head->shape;
    size_t dk = head->options.k_dim, dv = head->options.v_dim;
    hri_image_bytes(im, s->f, s->rank_c * dk);
    hri_image_floats(im, s->f_scale, s->rank_c);
    hri_image_bytes(im, s->w, s->rank_d * dk);
    hri_image_bytes(im, s->u, s->rank_d * dv);
    hri_image_floats(im, s->w_scale, s->rank_d);
    hri_image_floats(im, s->u_scale, s->rank_d);
    hri_image_bytes(im, s->spread, head->n_blocks * sizeof *s->spread);
    for (uint32_t b = 0; im->loads && hri_image_ok(im) && b < head->n_blocks; b++)
        hri_image_check(im, isfinite(hri_f32_from_bf16(s->spread[b])), "a spread is not finite");
    hri_image_bytes(im, s->peak, head->n_blocks);
    hri_image_floats(im, s->v_mean, dv);
    hri_image_doubles(im, &s->v_variance, 1);
    hri_image_floats(im, s->joint, (dk + dv) * (dk + dv));
    hri_image_doubles(im, s->v_sum, dv);
    hri_image_doubles(im, &s->spread_sum, 1);
    hri_image_doubles(im, &s->v_square_sum, 1);
    hri_image_doubles(im, &s->rows, 1);
    hri_image_u64(im, &s->rows_at_refresh);
}
