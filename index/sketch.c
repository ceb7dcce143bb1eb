/* Sketches of a head: memory, encoding of a segment, queries in a basis. */
#include "index/sketch.h"

#include "base/arena.h"
#include "base/assert.h"
#include "base/error.h"
#include "index/head.h"
#include "index/image.h"
#include "index/job.h"

#include <math.h>
#include <string.h>

#define FIT_ROWS    2048u /* a basis is fitted to about so many rows of a segment */
#define CHUNK_ROWS  512u
#define CHECK_ROWS  128u /* rows on which an old basis is compared with a fresh one */
#define LANES       HRI_LANES
#define LINE_BYTES  64u
#define BASIS_ROWS  4096u /* the device has room for a basis per so many rows */
#define STALE       1.15  /* a basis that misses so much more than a fresh one would is replaced */
#define STALE_SMALL 1.5   /* the same for segments too small to fit one of their own */
#define MISS_STEPS  16.0f /* of the log coding: 16 per power of two */
#define MISS_ZERO   128
#define GAIN_ONE    128.0f
/* Twice as far, squared, as rows are on the mean. */
#define LONE_FAR_MIN 16
/* Five times as much is missed of a stray's length, squared, as of other rows'; with one bit, where all are missed more, four times. Logs in
 * steps. */
#define STRAY_MISSED     37
#define STRAY_MISSED_ONE 32

static uint32_t lines_of(const struct hri_index_options *o)
{
    uint32_t lines = hri_sketch_bits(o) * o->k_dim / 32;
    return lines > 0 ? lines : 1;
}

uint32_t hri_sketch_bits(const struct hri_index_options *o)
{
    return (uint32_t)hri_recipe_value(&o->recipe, "sketch");
}

uint32_t hri_sketch_bases_max(const struct hri_index_options *o)
{
    uint32_t n = o->rows_max / BASIS_ROWS + 2;
    return n < HRI_SKETCH_BASES_MAX ? n : HRI_SKETCH_BASES_MAX;
}

uint32_t hri_sketch_lanes_max(const struct hri_index_options *o)
{
    return hri_lanes_up(o->rows_max) + LANES * hri_sketch_bases_max(o);
}

uint32_t hri_sketch_lone_max(const struct hri_index_options *o)
{
    return o->rows_max / HRI_SKETCH_LONE + 1;
}

#define LONE_BYTES (sizeof(uint32_t) + 1)

/* Coordinates that may get bits. */
static uint32_t coded_max(const struct hri_index_options *o)
{
    uint32_t n = 16 * lines_of(o);
    return n < o->k_dim ? n : o->k_dim;
}

/* On the device: A and V with their scales, steps, missed. */
static uint64_t basis_bytes(const struct hri_index_options *o)
{
    uint64_t dk = o->k_dim, dv = o->v_dim, n = coded_max(o);
    return dk * dk + n * dv + (2 * dk + 2 * n) * sizeof(float);
}

static uint64_t code_bytes(const struct hri_index_options *o, uint64_t lanes)
{
    return lanes / LANES * lines_of(o) * LINE_BYTES;
}

bool hri_sketch_in_host(const struct hri_index_options *o)
{
    return hri_recipe_value(&o->recipe, "sketch_host") > 0;
}

/* Where the codes are. */
static struct hri_alloc *codes_alloc(const struct hri_index_options *o)
{
    return hri_sketch_in_host(o) ? o->scratch : o->device;
}

uint64_t hri_sketch_bytes(const struct hri_index_options *o)
{
    if (hri_sketch_bits(o) == 0)
        return 0;
    uint64_t codes = hri_sketch_in_host(o) ? 0 : code_bytes(o, hri_sketch_lanes_max(o));
    return hri_sketch_bases_max(o) * basis_bytes(o) + codes +
           o->blocks_max * (sizeof(uint32_t) + 3) + hri_sketch_lone_max(o) * LONE_BYTES +
           hri_strays_bytes(o, hri_strays_max(o));
}

static uint32_t next_lane(const struct hri_index_head *head)
{
    uint32_t n = head->n_blocks;
    return n ? head->sketch->first_lane[n - 1] + head->block_rows[n - 1] : 0;
}

uint64_t hri_sketch_code_bytes(const struct hri_index_head *head)
{
    return code_bytes(&head->options, hri_lanes_up(next_lane(head)));
}

uint64_t hri_sketch_held_host(const struct hri_index_head *head)
{
    return hri_sketch_in_host(&head->options) ? hri_sketch_code_bytes(head) : 0;
}

uint64_t hri_sketch_held(const struct hri_index_head *head)
{
    if (!head->sketch)
        return 0;
    uint64_t codes = hri_sketch_in_host(&head->options) ? 0 : hri_sketch_code_bytes(head);
    return head->sketch->n_bases * basis_bytes(&head->options) + codes +
           head->n_blocks * (sizeof(uint32_t) + 3) + head->sketch->n_lone * LONE_BYTES +
           hri_strays_bytes(&head->options, head->sketch->strays.n);
}

static bool basis_create(const struct hri_index_options *o, struct hri_basis *basis)
{
    uint32_t dk = o->k_dim, dv = o->v_dim, n = coded_max(o);
    basis->query = hri_aligned(o->device, 64, (size_t)dk * dk);
    basis->query_scale = hri_array(o->device, dk, sizeof(float));
    basis->step = hri_array(o->device, n, sizeof(float));
    basis->missed = hri_array(o->device, dk, sizeof(float));
    basis->value = hri_aligned(o->device, 64, (size_t)n * dv);
    basis->value_scale = hri_array(o->device, n, sizeof(float));
    basis->turn = hri_aligned(o->scratch, 64, (size_t)dk * dk * sizeof(float));
    return basis->query && basis->query_scale && basis->step && basis->missed && basis->value &&
           basis->value_scale && basis->turn;
}

static void basis_destroy(const struct hri_index_options *o, struct hri_basis *basis)
{
    hri_free(o->device, basis->query);
    hri_free(o->device, basis->query_scale);
    hri_free(o->device, basis->step);
    hri_free(o->device, basis->missed);
    hri_free(o->device, basis->value);
    hri_free(o->device, basis->value_scale);
    hri_free(o->scratch, basis->turn);
}

hr_status_t hri_sketch_create(struct hri_index_head *head)
{
    const struct hri_index_options *o = &head->options;
    if (hri_sketch_bits(o) == 0)
        return HR_OK;
    struct hri_sketch *s = head->sketch = hri_calloc(o->scratch, 1, sizeof *s);
    if (!s)
        return hri_alloc_status();
    s->bits = hri_sketch_bits(o);
    s->lines = lines_of(o);
    s->bases_max = hri_sketch_bases_max(o);
    s->lanes_max = hri_sketch_lanes_max(o);
    s->codes = hri_aligned_zero(codes_alloc(o), 64, code_bytes(o, s->lanes_max));
    s->first_lane = hri_array(o->device, o->blocks_max, sizeof *s->first_lane);
    s->miss = hri_array(o->device, o->blocks_max, 1);
    s->value_miss = hri_array(o->device, o->blocks_max, 1);
    s->gain = hri_array(o->device, o->blocks_max, 1);
    for (int i = 0; i < 256; i++)
        s->miss_of[i] = exp2f(((float)i - MISS_ZERO) / MISS_STEPS);
    s->lone_max = hri_sketch_lone_max(o);
    s->lone_lane = hri_array(o->device, s->lone_max, sizeof *s->lone_lane);
    s->lone_miss = hri_array(o->device, s->lone_max, 1);
    bool all = hri_strays_create(o, &s->strays) && hri_rests_create(o, s->lanes_max, &s->rests) &&
               s->codes && s->first_lane && s->miss && s->value_miss && s->gain && s->lone_lane &&
               s->lone_miss;
    for (uint32_t i = 0; all && i < s->bases_max; i++)
        all = basis_create(o, &s->bases[i]);
    if (all)
        return HR_OK;
    hr_status_t status = hri_alloc_status();
    hri_sketch_destroy(head);
    return status;
}

void hri_sketch_destroy(struct hri_index_head *head)
{
    const struct hri_index_options *o = &head->options;
    struct hri_sketch *s = head->sketch;
    if (!s)
        return;
    for (uint32_t i = 0; i < s->bases_max; i++)
        basis_destroy(o, &s->bases[i]);
    hri_free(codes_alloc(o), s->codes);
    hri_free(o->device, s->first_lane);
    hri_free(o->device, s->miss);
    hri_free(o->device, s->value_miss);
    hri_free(o->device, s->gain);
    hri_free(o->device, s->lone_lane);
    hri_free(o->device, s->lone_miss);
    hri_strays_destroy(o, &s->strays);
    hri_rests_destroy(o, &s->rests);
    hri_free(o->scratch, s);
    head->sketch = NULL;
}

/* ------------------------------------------------------------------------------------- encoding */

struct work {
    float *residuals, *values; /* [FIT_ROWS or CHUNK_ROWS][dim] */
    float *turned;             /* [CHUNK_ROWS][k_dim] */
    float *weight;             /* [FIT_ROWS] */
    float *check;              /* 2 [CHECK_ROWS][k_dim] */
    float *columns;            /* [k_dim][k_dim] */
    /* [n] of every row: what is missed, how far it is from its centre, and what is missed of its length, whatever queries make of it */
    uint8_t *miss, *far, *plain;
    float *length;  /* [k_dim] square of what a coordinate of 1 is long */
    float *rounded; /* [HRI_BLOCK_ROWS_LIMIT][k_dim] */
    void *fit, *rests;
};

static size_t fit_rows(void)
{
    return FIT_ROWS > CHUNK_ROWS ? FIT_ROWS : CHUNK_ROWS;
}

size_t hri_sketch_work_bytes(const struct hri_index_options *o, uint32_t n)
{
    size_t checking = (2 * CHECK_ROWS + (size_t)o->k_dim + HRI_BLOCK_ROWS_LIMIT) * o->k_dim;
    return (fit_rows() * ((size_t)2 * o->k_dim + o->v_dim + 1) + checking) * sizeof(float) +
           hri_sketch_fit_bytes(o->k_dim, o->v_dim) + hri_rests_work_bytes(o) + 3 * (size_t)n +
           o->k_dim * sizeof(float) + 13 * 64;
}

static struct work take_work(const struct hri_index_options *o, uint32_t n, void *memory)
{
    struct hri_arena arena;
    struct work w;
    hri_arena_init_buffer(&arena, memory, hri_sketch_work_bytes(o, n));
    w.residuals = hri_arena_array(&arena, fit_rows() * o->k_dim, sizeof(float));
    w.values = hri_arena_array(&arena, fit_rows() * o->v_dim, sizeof(float));
    w.turned = hri_arena_array(&arena, fit_rows() * o->k_dim, sizeof(float));
    w.weight = hri_arena_array(&arena, fit_rows(), sizeof(float));
    w.check = hri_arena_array(&arena, 2 * CHECK_ROWS * o->k_dim, sizeof(float));
    w.columns = hri_arena_array(&arena, (size_t)o->k_dim * o->k_dim, sizeof(float));
    w.miss = hri_arena_array(&arena, n, 1);
    w.far = hri_arena_array(&arena, n, 1);
    w.plain = hri_arena_array(&arena, n, 1);
    w.length = hri_arena_array(&arena, o->k_dim, sizeof(float));
    w.rounded = hri_arena_array(&arena, (size_t)HRI_BLOCK_ROWS_LIMIT * o->k_dim, sizeof(float));
    w.fit = hri_arena_array(&arena, hri_sketch_fit_bytes(o->k_dim, o->v_dim), 1);
    w.rests = hri_arena_array(&arena, hri_rests_work_bytes(o) + 1, 1);
    HRI_ASSERT(w.rests != NULL);
    return w;
}

/* k - m and v - v_m of every stride-th row of blocks [begin, end) of the segment; `row` is the first one's place in order. */
static uint32_t gather(const struct hri_index_head *head, const struct hri_segment *g,
                       uint32_t begin, uint32_t end, uint32_t row, uint32_t stride,
                       float *residuals, float *values)
{
    uint32_t dk = head->options.k_dim, dv = head->options.v_dim, n = 0;
    float k_center[HR_HEAD_DIM_MAX], v_center[HR_HEAD_DIM_MAX];
    for (uint32_t b = begin; b < end; b++) {
        hri_summary_centers(head, head->n_blocks + b, k_center, v_center);
        for (uint32_t i = 0; i < g->block_rows[b]; i++, row++) {
            if (row % stride != 0)
                continue;
            const float *k = g->k + (size_t)g->order[row] * dk,
                        *v = g->v + (size_t)g->order[row] * dv;
            for (uint32_t j = 0; j < dk; j++)
                residuals[(size_t)n * dk + j] = k[j] - k_center[j];
            for (uint32_t j = 0; values && j < dv; j++)
                values[(size_t)n * dv + j] = v[j] - v_center[j];
            n++;
        }
    }
    return n;
}

/* Weights of the rows that gather gives for the whole segment, of mean 1; NULL where there are none. */
static const float *gather_weights(const struct hri_segment *g, uint32_t stride, float *weight)
{
    double sum = 0;
    uint32_t n = 0;
    if (!g->weight)
        return NULL;
    for (uint32_t row = 0; row < g->n; row += stride) {
        weight[n] = g->weight[g->order[row]];
        sum += (double)weight[n++];
    }
    for (uint32_t i = 0; i < n; i++)
        weight[i] = sum > 0 ? (float)(weight[i] * n / sum) : 1;
    return weight;
}

/* Mean |z - z~|^2 of at most CHECK_ROWS residuals r under a basis, in the metric p: what the sketch, r - A'z~, would miss of future
 * logits. */
static double missed_under(const struct hri_index_head *head, const struct hri_basis *basis,
                           const float *p, const float *residuals, uint32_t n, struct work *w)
{
    uint32_t d = head->options.k_dim, coded = basis->n;
    const struct hri_kernels *kernels = head->options.kernels;
    float *rounded = w->check, *back = rounded + (size_t)CHECK_ROWS * d, *columns = w->columns;
    double sum = 0;
    for (uint32_t c = 0; c < coded; c++)
        for (uint32_t j = 0; j < d; j++)
            columns[(size_t)j * coded + c] =
                basis->query_scale[c] * (float)basis->query[(size_t)c * d + j];
    kernels->matmul_nt(residuals, n, d, basis->turn, d, w->turned);
    for (uint32_t i = 0; i < n; i++)
        hri_sketch_round(basis, w->turned + (size_t)i * d, rounded + (size_t)i * coded);
    kernels->matmul_nt(rounded, n, coded, columns, d, back);
    for (size_t i = 0; i < (size_t)n * d; i++)
        back[i] = residuals[i] - back[i];
    kernels->matmul_nt(back, n, d, p, d, w->turned);
    for (size_t i = 0; i < (size_t)n * d; i++)
        sum += (double)w->turned[i] * (double)w->turned[i];
    return sum / n;
}

/* The newest basis where it still serves this segment, else a new one. */
static hr_status_t basis_choose(struct hri_index_head *head, const struct hri_segment *g,
                                struct work *w, struct hri_basis **basis_out)
{
    const struct hri_index_options *o = &head->options;
    struct hri_sketch *s = head->sketch;
    uint32_t stride = (g->n + FIT_ROWS - 1) / FIT_ROWS;
    uint32_t n = gather(head, g, 0, g->n_blocks, 0, stride, w->residuals, w->values);
    struct hri_basis *old = s->n_bases > 0 ? &s->bases[s->n_bases - 1] : NULL;
    *basis_out = old;
    if (s->n_bases == s->bases_max)
        return HR_OK;
    const float *p = head->points.metric;
    uint32_t check = n < CHECK_ROWS ? n : CHECK_ROWS;
    double old_missed = old ? missed_under(head, old, p, w->residuals, check, w) : 0;
    if (old && g->n < FIT_ROWS / 2 && old_missed <= STALE_SMALL * (double)old->missed_mean)
        return HR_OK;
    struct hri_basis *fresh = &s->bases[s->n_bases];
    hr_status_t status =
        hri_sketch_fit(o->kernels, fresh, o->k_dim, o->v_dim, s->lines, p, w->residuals, w->values,
                       gather_weights(g, stride, w->weight), n, w->fit);
    if (status != HR_OK)
        return status;
    if (old && old_missed <= STALE * missed_under(head, fresh, p, w->residuals, check, w))
        return HR_OK;
    fresh->first_block = head->n_blocks;
    s->n_bases++;
    *basis_out = fresh;
    return HR_OK;
}

uint8_t hri_sketch_log_code(double square, double mean)
{
    double x = mean > 0 ? square / mean : 1;
    double code = x > 0 ? MISS_ZERO + (double)MISS_STEPS * log2(x) : 0;
    return (uint8_t)(code < 0 || isnan(code) ? 0 : code > 255 ? 255 : lrint(code));
}

float hri_sketch_lone_miss(const struct hri_index_head *head, uint32_t i)
{
    return head->sketch->miss_of[head->sketch->lone_miss[i]];
}

/* Lists the rows that lie farthest out, as many as there is room for; the first row is in lane `lane`. */
static void lone_list(struct hri_sketch *s, const struct work *w, uint32_t n, uint32_t lane)
{
    uint32_t count[256] = {0}, least = 255, room = n / HRI_SKETCH_LONE + 1, taken = 0;
    room = room < s->lone_max - s->n_lone ? room : s->lone_max - s->n_lone;
    for (uint32_t i = 0; i < n; i++)
        count[w->far[i]]++;
    for (; least > MISS_ZERO + LONE_FAR_MIN && taken + count[least] <= room; least--)
        taken += count[least];
    for (uint32_t i = 0; i < n; i++)
        if (w->far[i] > least) {
            s->lone_lane[s->n_lone] = lane + i;
            s->lone_miss[s->n_lone++] = w->miss[i];
        }
}

/* Coordinates are along the rows of A: seen as if they stood upright on each other. */
void hri_sketch_lengths(const struct hri_basis *basis, uint32_t d, float *length)
{
    for (uint32_t c = 0; c < d; c++) {
        float sum = 0, scale = basis->query_scale[c];
        for (uint32_t j = 0; j < d; j++)
            sum += (float)basis->query[(size_t)c * d + j] * (float)basis->query[(size_t)c * d + j];
        length[c] = sum * scale * scale;
    }
}

/* Sums over a block's rows: what they are, what they are coded as, its square, and the product of both. */
struct coded {
    float z[HR_HEAD_DIM_MAX], sum[HR_HEAD_DIM_MAX];
    double square, product;
};

/* Codes the rows z [rows][d] of a block. far: how far they lie out. */
static void rows_code(const struct hri_basis *basis, uint32_t rows, uint32_t d, const float *z,
                      double mean, float *rounded, uint8_t *far, struct coded *out)
{
    memset(out, 0, sizeof *out);
    for (uint32_t i = 0; i < rows; i++) {
        const float *x = z + (size_t)i * d;
        float *y = rounded + (size_t)i * basis->n;
        float all = 0, square = 0, product = 0;
        hri_sketch_round(basis, x, y);
        for (uint32_t j = 0; j < d; j++)
            all += x[j] * x[j];
        for (uint32_t j = 0; j < basis->n; j++) {
            out->z[j] += x[j];
            out->sum[j] += y[j];
            square += y[j] * y[j];
            product += x[j] * y[j];
        }
        out->square += (double)square;
        out->product += (double)product;
        far[i] = hri_sketch_log_code((double)all, mean);
    }
}

/* Where a block's rows differ by less than the levels of the codes do, what they are coded as is mostly noise: it is taken by the part that
 * best says what they are, both around their means. */
static uint8_t gain_of(const struct hri_basis *basis, uint32_t rows, const struct coded *coded)
{
    double square = coded->square, product = coded->product;
    for (uint32_t j = 0; j < basis->n; j++) {
        square -= (double)coded->sum[j] * (double)coded->sum[j] / rows;
        product -= (double)coded->sum[j] * (double)coded->z[j] / rows;
    }
    double gain = square > 1e-6 * coded->square ? GAIN_ONE * product / square : 0;
    return (uint8_t)(gain > 255 ? 255 : gain > 0 ? lrint(gain) : 0);
}

static void blocks_miss(struct hri_index_head *head, const struct hri_basis *basis,
                        const struct hri_segment *g, uint32_t begin, uint32_t end, struct work *w,
                        uint32_t row)
{
    uint8_t *miss = w->miss + row, *far = w->far + row, *plain = w->plain + row;
    uint32_t d = head->options.k_dim;
    const float *z = w->turned;
    double plain_mean = 0;
    double mean = head->shape.rows > 0 ? head->shape.spread_sum / head->shape.rows : 0;
    for (uint32_t j = 0; j < d; j++)
        plain_mean += (double)w->length[j] * (double)basis->missed[j];
    for (uint32_t b = begin; b < end; b++) {
        double sum = 0;
        uint32_t rows = g->block_rows[b];
        struct coded coded;
        rows_code(basis, rows, d, z, mean, w->rounded, far, &coded);
        uint8_t code = gain_of(basis, rows, &coded);
        float gain = (float)code / GAIN_ONE;
        head->sketch->gain[head->n_blocks + b] = code;
        far += rows;
        for (uint32_t i = 0; i < rows; i++, z += d) {
            const float *y = w->rounded + (size_t)i * basis->n;
            float square = 0, plain_square = 0;
            for (uint32_t j = 0; j < d; j++) {
                float x = z[j];
                if (j < basis->n)
                    x -= gain * (y[j] - coded.sum[j] / (float)rows);
                square += x * x;
                plain_square += x * x * w->length[j];
            }
            *miss++ = hri_sketch_log_code((double)square, (double)basis->missed_mean);
            *plain++ = hri_sketch_log_code((double)plain_square, plain_mean);
            sum += (double)square;
        }
        head->sketch->miss[head->n_blocks + b] =
            hri_sketch_log_code(sum / g->block_rows[b], (double)basis->missed_mean);
    }
}

/* Of values, rows that queries look at count for more: it is their values that are off by this. `row` is the first one's place in order. */
static void blocks_value_miss(struct hri_index_head *head, const struct hri_basis *basis,
                              const struct hri_segment *g, uint32_t begin, uint32_t end,
                              const float *values, uint32_t row)
{
    uint32_t d = head->options.v_dim;
    for (uint32_t b = begin; b < end; b++) {
        double sum = 0, weights = 0;
        for (uint32_t i = 0; i < g->block_rows[b]; i++, row++, values += d) {
            double square = 0, weight = g->weight ? (double)g->weight[g->order[row]] : 1;
            for (uint32_t j = 0; j < d; j++)
                square += (double)values[j] * (double)values[j];
            sum += weight * square;
            weights += weight;
        }
        head->sketch->value_miss[head->n_blocks + b] =
            hri_sketch_log_code(weights > 0 ? sum / weights : 0, (double)basis->value_spread);
    }
}

void hri_sketch_truncate(struct hri_index_head *head)
{
    struct hri_sketch *s = head->sketch;
    uint32_t lane = next_lane(head);
    while (s->n_bases > 0 && s->bases[s->n_bases - 1].first_block >= head->n_blocks)
        s->n_bases--;
    while (s->n_lone > 0 && s->lone_lane[s->n_lone - 1] >= lane)
        s->n_lone--;
    hri_strays_truncate(&s->strays, head->n_blocks);
    if (s->rests.first_block > head->n_blocks)
        s->rests.first_block = head->n_blocks;
}

/* Of blocks that have strays the miss is that of the other rows. */
static void blocks_miss_again(struct hri_index_head *head, const struct hri_segment *g,
                              const uint8_t *miss, uint32_t first_stray)
{
    struct hri_sketch *s = head->sketch;
    for (uint32_t b = 0, row = 0, i = first_stray; i < s->strays.n; row += g->block_rows[b++]) {
        uint32_t end = hri_strays_from(&s->strays, i, head->n_blocks + b + 1);
        uint32_t others = g->block_rows[b] - (end - i);
        double sum = 0;
        for (uint32_t j = 0; end > i && j < g->block_rows[b]; j++)
            sum += miss[row + j] > 0 ? (double)s->miss_of[miss[row + j]] : 0;
        if (end > i)
            s->miss[head->n_blocks + b] = hri_sketch_log_code(others > 0 ? sum / others : 0, 1);
        i = end;
    }
}

/* Takes them out of what lone rows and blocks miss. */
static void strays_keep(struct hri_index_head *head, const struct hri_segment *g, struct work *w)
{
    uint32_t first = head->sketch->strays.n;
    uint32_t least = MISS_ZERO + (head->sketch->bits > 1 ? STRAY_MISSED : STRAY_MISSED_ONE);
    if (hri_strays_add(head, g, least, w->plain) == 0)
        return;
    for (uint32_t i = 0; i < g->n; i++)
        if (w->plain[i] == 0)
            w->far[i] = w->miss[i] = 0;
    blocks_miss_again(head, g, w->miss, first);
}

void hri_sketch_inverse(const struct hri_basis *basis, float *inverse)
{
    for (uint32_t j = 0; j < basis->n; j++)
        inverse[j] = basis->step[j] > 0 ? 1 / basis->step[j] : 0;
}

hr_status_t hri_sketch_begin(struct hri_index_head *head, const struct hri_segment *g,
                             struct hri_index_job *job)
{
    struct hri_sketch *s = head->sketch;
    struct work w = take_work(&head->options, g->n, g->workspace);
    struct hri_basis *basis;
    hr_status_t status = basis_choose(head, g, &w, &basis);
    if (status != HR_OK)
        return status;
    uint32_t lane = next_lane(head);
    if (basis->first_block == head->n_blocks) {
        hri_rests_pass(head, lane, hri_lanes_up(lane));
        lane = hri_lanes_up(lane);
    }
    if (g->n > s->lanes_max - lane) {
        hri_sketch_truncate(head);
        return hri_error_set(HR_ERR_FULL, "index head: %u rows, %u have sketches, %u more fit",
                             g->n, head->n_rows, s->lanes_max - lane);
    }
    for (uint32_t b = 0; b < g->n_blocks; lane += g->block_rows[b++])
        s->first_lane[head->n_blocks + b] = lane;
    hri_sketch_lengths(basis, head->options.k_dim, w.length);
    job->kind = HRI_INDEX_JOB_SKETCH;
    job->basis = basis;
    job->lane = s->first_lane[head->n_blocks];
    return HR_OK;
}

/* The end of a run of blocks from `begin` on that is worked on at once, and its rows. */
static uint32_t run_end(const struct hri_segment *g, uint32_t begin, uint32_t *rows_out)
{
    uint32_t b = begin, rows = 0;
    for (; b < g->n_blocks && rows + g->block_rows[b] <= CHUNK_ROWS; b++)
        rows += g->block_rows[b];
    *rows_out = rows;
    return b;
}

void hri_sketch_encode(const struct hri_index_job *job, const struct hri_segment *g)
{
    struct hri_index_head *head = job->head;
    const struct hri_index_options *o = &head->options;
    const struct hri_basis *basis = job->basis;
    struct work w = take_work(o, g->n, g->workspace);
    uint32_t d = o->k_dim, lane = job->lane, row = 0, held;
    float inverse[HR_HEAD_DIM_MAX];
    hri_sketch_inverse(basis, inverse);
    for (uint32_t begin = 0, end; begin < g->n_blocks; begin = end) {
        end = run_end(g, begin, &held);
        gather(head, g, begin, end, row, 1, w.residuals, w.values);
        o->kernels->matmul_nt(w.residuals, held, d, basis->turn, d, w.turned);
        o->kernels->pack_sketch(w.turned, d, held, inverse, basis->n4, basis->n2,
                                head->sketch->codes, lane);
        blocks_miss(head, basis, g, begin, end, &w, row);
        blocks_value_miss(head, basis, g, begin, end, w.values, row);
        hri_rests_add(head, basis, w.values, lane, held, w.rests);
        lane += held;
        row += held;
    }
}

static void lanes_take(struct hri_sketch *s, const struct hri_index_job *job, const uint8_t *codes,
                       uint32_t n)
{
    size_t group_bytes = hri_sketch_group_bytes(job->basis->n4, job->basis->n2);
    uint32_t first = job->lane / LANES * LANES;
    for (uint32_t lane = job->lane; lane < job->lane + n; lane++) {
        uint8_t *to = s->codes + lane / LANES * group_bytes + (size_t)(lane % LANES) * 4;
        const uint8_t *from =
            codes + (lane - first) / LANES * group_bytes + (size_t)(lane % LANES) * 4;
        for (size_t i = 0; i < group_bytes; i += LINE_BYTES)
            memcpy(to + i, from + i, 4);
    }
}

/* What of rows [row, row + rows) and their block is coded from squares. */
static void block_take(struct hri_index_head *head, const struct hri_basis *basis,
                       const struct hri_segment *g, const struct hri_index_sketched *x, uint32_t b,
                       uint32_t row, struct work *w)
{
    struct hri_sketch *s = head->sketch;
    double sum = 0, values = 0, weights = 0, plain_mean = 0;
    double mean = head->shape.rows > 0 ? head->shape.spread_sum / head->shape.rows : 0;
    uint32_t end = row + g->block_rows[b];
    for (uint32_t j = 0; j < head->options.k_dim; j++)
        plain_mean += (double)w->length[j] * (double)basis->missed[j];
    for (; row < end; row++) {
        double weight = g->weight ? (double)g->weight[g->order[row]] : 1;
        w->far[row] = hri_sketch_log_code((double)x->far[row], mean);
        w->miss[row] = hri_sketch_log_code((double)x->missed[row], (double)basis->missed_mean);
        w->plain[row] = hri_sketch_log_code((double)x->plain[row], plain_mean);
        sum += (double)x->missed[row];
        values += weight * (double)x->value[row];
        weights += weight;
    }
    s->gain[head->n_blocks + b] = x->gain[b];
    s->miss[head->n_blocks + b] =
        hri_sketch_log_code(sum / g->block_rows[b], (double)basis->missed_mean);
    s->value_miss[head->n_blocks + b] =
        hri_sketch_log_code(weights > 0 ? values / weights : 0, (double)basis->value_spread);
}

/* Rests are made here all the same. */
void hri_sketch_take(const struct hri_index_job *job, const struct hri_segment *g,
                     const struct hri_index_sketched *x)
{
    struct hri_index_head *head = job->head;
    struct work w = take_work(&head->options, g->n, g->workspace);
    uint32_t lane = job->lane, row = 0, held;
    lanes_take(head->sketch, job, x->codes, g->n);
    for (uint32_t b = 0; b < g->n_blocks; row += g->block_rows[b++])
        block_take(head, job->basis, g, x, b, row, &w);
    row = 0;
    for (uint32_t begin = 0, end; head->sketch->rests.codes && begin < g->n_blocks; begin = end) {
        end = run_end(g, begin, &held);
        gather(head, g, begin, end, row, 1, w.residuals, w.values);
        hri_rests_add(head, job->basis, w.values, lane, held, w.rests);
        lane += held;
        row += held;
    }
}

void hri_sketch_end(struct hri_index_head *head, const struct hri_segment *g)
{
    struct work w = take_work(&head->options, g->n, g->workspace);
    strays_keep(head, g, &w);
    lone_list(head->sketch, &w, g->n, head->sketch->first_lane[head->n_blocks]);
}

/* --------------------------------------------------------------------------------------- a step */

void hri_sketch_turn(const struct hri_index_head *head, const struct hri_basis *basis,
                     const float *q, float *turned, float *x, float *rest)
{
    uint32_t d = head->options.k_dim, n_g = head->options.g;
    const int8_t *row[HR_HEAD_DIM_MAX];
    for (uint32_t c = 0; c < d; c++)
        row[c] = basis->query + (size_t)c * d;
    head->options.kernels->score_gather_i8(q, n_g, d, row, basis->query_scale, d, turned, d);
    for (uint32_t g = 0; g < n_g; g++) {
        const float *t = turned + (size_t)g * d;
        rest[g] = 0;
        for (uint32_t c = 0; c < d; c++)
            rest[g] += t[c] * t[c] * basis->missed[c];
        for (uint32_t c = 0; c < basis->n; c++)
            x[(size_t)g * basis->n + c] = t[c] * basis->step[c];
    }
}

/* -------------------------------------------------------------------------------------- saving */

static void basis_image(const struct hri_index_head *head, struct hri_basis *basis,
                        struct hri_image *im)
{
    const struct hri_index_options *o = &head->options;
    size_t dk = o->k_dim, dv = o->v_dim;
    hri_image_u32(im, &basis->first_block, head->n_blocks, "a basis begins after the last block");
    hri_image_u32(im, &basis->n4, coded_max(o), "a basis has too many coordinates");
    hri_image_u32(im, &basis->n2, coded_max(o), "a basis has too many coordinates");
    basis->n = basis->n4 + basis->n2;
    hri_image_check(
        im, basis->n <= coded_max(o) && 4 * basis->n4 + 2 * basis->n2 <= 32 * head->sketch->lines,
        "a basis has too many coordinates");
    if (!hri_image_ok(im))
        return;
    hri_image_bytes(im, basis->query, dk * dk);
    hri_image_floats(im, basis->query_scale, dk);
    hri_image_floats(im, basis->step, basis->n);
    hri_image_floats(im, basis->missed, dk);
    hri_image_bytes(im, basis->value, basis->n * dv);
    hri_image_floats(im, basis->value_scale, basis->n);
    hri_image_floats(im, &basis->value_rest, 1);
    hri_image_floats(im, &basis->value_spread, 1);
    hri_image_floats(im, basis->turn, dk * dk);
    hri_image_floats(im, &basis->missed_mean, 1);
}

/* Blocks lie one after the other, a new basis's on a new group; lone rows are rows of blocks. */
static void lanes_check(struct hri_index_head *head, struct hri_image *im)
{
    const struct hri_sketch *s = head->sketch;
    uint32_t end = 0, basis = 0, lone = 0;
    for (uint32_t b = 0; hri_image_ok(im) && b < head->n_blocks; b++) {
        bool starts = basis < s->n_bases && s->bases[basis].first_block == b;
        basis += starts;
        end = starts ? hri_lanes_up(end) : end;
        hri_image_check(im, basis > 0 && s->first_lane[b] == end, "a block's sketch is misplaced");
        while (lone < s->n_lone && s->lone_lane[lone] < end + head->block_rows[b] &&
               s->lone_lane[lone] >= end)
            lone++;
        end += head->block_rows[b];
        hri_image_check(im, end <= s->lanes_max, "more sketches than there is room for");
    }
    hri_image_check(im, basis == s->n_bases && lone == s->n_lone,
                    "sketches of blocks that are not there");
}

void hri_sketch_image(struct hri_index_head *head, struct hri_image *im)
{
    struct hri_sketch *s = head->sketch;
    hri_image_u32(im, &s->n_bases, s->bases_max, "too many bases");
    for (uint32_t i = 0; i < s->n_bases && hri_image_ok(im); i++)
        basis_image(head, &s->bases[i], im);
    hri_image_u32s(im, s->first_lane, head->n_blocks, s->lanes_max, "no such lane");
    hri_image_bytes(im, s->miss, head->n_blocks);
    hri_image_bytes(im, s->value_miss, head->n_blocks);
    hri_image_bytes(im, s->gain, head->n_blocks);
    hri_image_u32(im, &s->n_lone, s->lone_max, "too many lone rows");
    hri_image_u32s(im, s->lone_lane, s->n_lone, s->lanes_max, "no such lane");
    hri_image_bytes(im, s->lone_miss, s->n_lone);
    hri_strays_image(head, im);
    if (im->loads && hri_image_ok(im))
        lanes_check(head, im);
    if (hri_image_ok(im))
        hri_image_bytes(im, s->codes, code_bytes(&head->options, hri_lanes_up(next_lane(head))));
    if (hri_image_ok(im))
        hri_rests_image(head, next_lane(head), im);
}
