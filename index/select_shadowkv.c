/* ShadowKV (arXiv 2410.21465): chunks of 8 consecutive tokens, known by the mean of their keys (landmark). The chunks whose
 * keys have the lowest cosine to their mean are outliers and stay exact on the device. Chunks are ranked by the softmax of
 * query times landmark per query head, the largest of the group. Keys are not fetched: before rotary embedding they have low
 * rank over all heads of a layer, so the device keeps U (a row of `rank` numbers per token, its columns dealt to the kv-heads)
 * and B = S V' (rank x head_dim per head), and a chunk's keys are U B, turned to their positions; only values move.
 *
 * Every prompt segment has a decomposition of its own; rows that come later in small numbers are projected on the newest. */
#include "index/linalg.h"
#include "index/means.h"
#include "index/head.h"
#include "index/params.h"
#include "index/rotation.h"
#include "index/image.h"

#include "base/error.h"

#include <math.h>
#include <string.h>

#define WIDTH_MAX 8192u /* heads times key dimension that LAPACK is asked to decompose */

/* Rows of one segment. */
struct part {
    uint32_t first_row, n_rows, first_block;
    uint32_t basis, rank;
};
struct outlier {
    float cosine; /* of its worst key and the mean */
    uint32_t block;
};
struct shadow {
    struct hri_means landmarks;
    struct outlier *outliers; /* [outliers_max], in no order */
    unsigned char *rows;      /* [outliers_max][chunk][row_bytes] */
    uint32_t n_outliers, outliers_max, chunk, row_bytes;
    struct hri_rotation rotation;
    uint32_t rank, columns;        /* of the layer; of U that this head keeps */
    uint16_t *u;                   /* [rows_max][columns] float16 */
    uint16_t *b;                   /* [bases_max][k_dim][rank] float16, this head's B, transposed */
    float *work;                   /* [k_dim + HRI_REBUILD_ROWS_MAX][rank] of rebuilding */
    uint32_t n_bases, bases_max;   /* decompositions */
    struct hri_index_head **heads; /* [n_heads] of the layer, once prepare has seen them */
    struct part *parts;
    uint32_t n_parts, parts_max;
};

static uint32_t value_u32(const struct hri_index_options *o, const char *key)
{
    return (uint32_t)hri_recipe_value(&o->recipe, key);
}

static uint32_t rank_of(const struct hri_index_options *o)
{
    uint32_t rank = value_u32(o, "rank"), width = o->n_heads * o->k_dim;
    return rank < width ? rank : width;
}

static uint32_t columns_of(const struct hri_index_options *o, uint32_t head)
{
    uint32_t rank = rank_of(o), n = o->n_heads ? o->n_heads : 1;
    return rank / n + (head < rank % n);
}

/* A segment of at least half the size of a full one is decomposed. */
static uint32_t bases_max_of(const struct hri_index_options *o)
{
    return rank_of(o) ? 2 * o->rows_max / value_u32(o, "segment") + 2 : 0;
}

static uint32_t row_bytes_of(const struct hri_index_options *o)
{
    return (uint32_t)((o->k_dim + o->v_dim) * hr_dtype_bytes(o->dtype));
}

static uint64_t outlier_bytes(const struct hri_index_options *o)
{
    return sizeof(struct outlier) + (uint64_t)value_u32(o, "block") * row_bytes_of(o);
}

static uint64_t device_bytes(const struct hri_index_options *o)
{
    return hri_means_bytes(o, o->blocks_max, false) + value_u32(o, "outliers") * outlier_bytes(o) +
           (uint64_t)o->rows_max * columns_of(o, o->head) * sizeof(uint16_t) +
           (uint64_t)bases_max_of(o) * rank_of(o) * o->k_dim * sizeof(uint16_t);
}

static uint64_t held_bytes(const struct hri_index_head *head, uint32_t n_blocks)
{
    const struct shadow *s = head->state;
    const struct hri_index_options *o = &head->options;
    return hri_means_bytes(o, n_blocks, false) + s->n_outliers * outlier_bytes(o) +
           ((uint64_t)head->n_rows * s->columns + (uint64_t)s->n_bases * s->rank * o->k_dim) *
               sizeof(uint16_t);
}

static void destroy(struct hri_index_head *head)
{
    struct shadow *s = head->state;
    const struct hri_index_options *o = &head->options;
    hri_means_destroy(&s->landmarks, o);
    hri_rotation_destroy(&s->rotation, o->scratch);
    hri_free(o->device, s->outliers);
    hri_free(o->device, s->rows);
    hri_free(o->device, s->u);
    hri_free(o->device, s->b);
    hri_free(o->scratch, s->heads);
    hri_free(o->scratch, s->work);
    hri_free(o->scratch, s->parts);
    hri_free(o->scratch, s);
}

static hr_status_t create_tables(struct shadow *s, const struct hri_index_options *o)
{
    hr_status_t status = hri_means_create(&s->landmarks, o, o->blocks_max, false);
    if (status == HR_OK)
        status = hri_rotation_create(&s->rotation, o->scratch, &o->rope);
    if (status != HR_OK)
        return status;
    if (s->outliers_max) {
        s->outliers = hri_array(o->device, s->outliers_max, sizeof *s->outliers);
        s->rows = hri_array(o->device, (size_t)s->outliers_max * s->chunk, s->row_bytes);
        if (!s->outliers || !s->rows)
            return hri_alloc_status();
    }
    if (s->columns && o->rows_max) {
        s->u = hri_array(o->device, (size_t)o->rows_max * s->columns, sizeof *s->u);
        if (!s->u)
            return hri_alloc_status();
    }
    if (s->rank) {
        s->b = hri_array(o->device, (size_t)s->bases_max * s->rank * o->k_dim, sizeof *s->b);
        s->work = hri_aligned(o->scratch, 64,
                              (size_t)(o->k_dim + HRI_REBUILD_ROWS_MAX) * s->rank * sizeof(float));
        s->heads = hri_calloc(o->scratch, o->n_heads, sizeof(struct hri_index_head *));
        if (!s->b || !s->heads || !s->work)
            return hri_alloc_status();
    }
    return HR_OK;
}

static hr_status_t create(struct hri_index_head *head)
{
    const struct hri_index_options *o = &head->options;
    if (rank_of(o) && o->n_heads * o->k_dim > WIDTH_MAX)
        return hri_error_set(HR_ERR_UNSUPPORTED,
                             "shadowkv: %u kv-heads of %u dimensions are too wide to decompose "
                             "(%u at most); rank=0 keeps the keys as they are",
                             o->n_heads, o->k_dim, WIDTH_MAX);
    struct shadow *s = hri_calloc(o->scratch, 1, sizeof *s);
    if (!s)
        return hri_alloc_status();
    head->state = s;
    s->chunk = value_u32(o, "block");
    s->outliers_max = value_u32(o, "outliers");
    s->row_bytes = row_bytes_of(o);
    s->rank = rank_of(o);
    s->columns = columns_of(o, o->head);
    s->bases_max = bases_max_of(o);
    hr_status_t status = create_tables(s, o);
    if (status != HR_OK)
        destroy(head);
    return status;
}

/* -- low-rank keys -- */

static bool rebuilds(const struct hri_recipe *recipe)
{
    return hri_recipe_value(recipe, "rank") > 0;
}

/* Drops what a truncate has made void. */
static void parts_drop(struct shadow *s, uint32_t first_row)
{
    while (s->n_parts > 0 && s->parts[s->n_parts - 1].first_row >= first_row)
        s->n_parts--;
    s->n_bases = 0;
    for (uint32_t i = 0; i < s->n_parts; i++)
        s->n_bases = s->parts[i].basis + 1 > s->n_bases ? s->parts[i].basis + 1 : s->n_bases;
}

static hr_status_t part_push(struct hri_index_head *head, struct part part)
{
    struct shadow *s = head->state;
    if (s->n_parts == s->parts_max) {
        uint32_t more = s->parts_max ? 2 * s->parts_max : 16;
        struct part *grown = hri_array(head->options.scratch, more, sizeof *grown);
        if (!grown)
            return hri_alloc_status();
        if (s->n_parts)
            memcpy(grown, s->parts, s->n_parts * sizeof *grown);
        hri_free(head->options.scratch, s->parts);
        s->parts = grown;
        s->parts_max = more;
    }
    part.first_block = head->n_blocks;
    s->parts[s->n_parts++] = part;
    return HR_OK;
}

/* The working memory of a decomposition. */
struct decomposition {
    uint32_t n, width, rank;
    float *x;     /* [n][width] keys of all heads at position 0 */
    float *basis; /* [rank][width] orthonormal rows */
    float *u;     /* [n][rank] */
    double *gram, *values;
    void *work;
};

static void keys_load(struct hri_index_head *const *heads, uint32_t n_heads, const float *k,
                      uint32_t first_row, struct decomposition *d)
{
    const struct hri_index_options *o = &heads[0]->options;
    const struct shadow *s = heads[0]->state;
    for (uint32_t h = 0; h < n_heads; h++) {
        for (uint32_t i = 0; i < d->n; i++)
            memcpy(d->x + (size_t)i * d->width + h * o->k_dim,
                   k + ((size_t)h * d->n + i) * o->k_dim, o->k_dim * sizeof(float));
        hri_rotation_apply(&s->rotation, d->x + h * o->k_dim, d->n, d->width, o->n_sink + first_row,
                           -1);
    }
}

/* The directions with the largest singular values, from the eigenvectors of x'x; rounded as the device keeps them. */
static hr_status_t basis_make(struct decomposition *d)
{
    hri_gram(d->x, d->n, d->width, d->gram, d->work);
    hr_status_t status = hri_eigen(d->gram, d->width, d->values, d->work);
    for (uint32_t r = 0; r < d->rank && status == HR_OK; r++)
        for (uint32_t j = 0; j < d->width; j++)
            d->basis[(size_t)r * d->width + j] =
                (float)d->gram[(size_t)(d->width - 1 - r) * d->width + j];
    return status;
}

static void basis_store(struct hri_index_head *const *heads, uint32_t n_heads,
                        const struct decomposition *d)
{
    for (uint32_t h = 0; h < n_heads; h++) {
        struct shadow *s = heads[h]->state;
        uint32_t dk = heads[h]->options.k_dim;
        uint16_t *b = s->b + (size_t)s->n_bases * s->rank * dk;
        for (uint32_t r = 0; r < d->rank; r++)
            for (uint32_t j = 0; j < dk; j++)
                b[(size_t)j * s->rank + r] =
                    hri_half_clamped(d->basis[(size_t)r * d->width + h * dk + j]);
    }
}

static void basis_load(struct hri_index_head *const *heads, uint32_t n_heads, uint32_t basis,
                       struct decomposition *d)
{
    for (uint32_t h = 0; h < n_heads; h++) {
        const struct shadow *s = heads[h]->state;
        uint32_t dk = heads[h]->options.k_dim;
        for (uint32_t j = 0; j < dk; j++) {
            heads[h]->options.kernels->to_f32(s->work, s->b + ((size_t)basis * dk + j) * s->rank,
                                              HR_DTYPE_F16, s->rank);
            for (uint32_t r = 0; r < d->rank; r++)
                d->basis[(size_t)r * d->width + h * dk + j] = s->work[r];
        }
    }
}

static void u_store(struct hri_index_head *const *heads, uint32_t n_heads, uint32_t first_row,
                    const struct decomposition *d)
{
    for (uint32_t h = 0, column = 0; h < n_heads; h++) {
        struct shadow *s = heads[h]->state;
        for (uint32_t i = 0; i < d->n; i++)
            for (uint32_t c = 0; c < s->columns; c++)
                s->u[(size_t)(first_row + i) * s->columns + c] = hri_half_clamped(
                    column + c < d->rank ? d->u[(size_t)i * d->rank + column + c] : 0);
        column += s->columns;
    }
}

static hr_status_t decompose(struct hri_index_head *const *heads, uint32_t n_heads, const float *k,
                             uint32_t first_row, struct decomposition *d)
{
    struct shadow *s = heads[0]->state;
    const struct hri_index_options *o = &heads[0]->options;
    bool fresh =
        s->n_bases == 0 || (2 * d->n >= value_u32(o, "segment") && s->n_bases < s->bases_max);
    uint32_t basis = fresh ? s->n_bases : s->n_bases - 1;
    hr_status_t status = HR_OK;
    keys_load(heads, n_heads, k, first_row, d);
    if (fresh)
        status = basis_make(d);
    if (status != HR_OK)
        return status;
    if (fresh)
        basis_store(heads, n_heads, d);
    basis_load(heads, n_heads, basis, d); /* as rounded, so that U fits what is kept */
    o->kernels->matmul_nt(d->x, d->n, d->width, d->basis, d->rank, d->u);
    u_store(heads, n_heads, first_row, d);
    for (uint32_t h = 0; h < n_heads && status == HR_OK; h++) {
        struct shadow *own = heads[h]->state;
        memcpy(own->heads, heads, n_heads * sizeof *own->heads);
        status = part_push(
            heads[h],
            (struct part){.first_row = first_row, .n_rows = d->n, .basis = basis, .rank = d->rank});
        own->n_bases = basis + 1 > own->n_bases ? basis + 1 : own->n_bases;
    }
    return status;
}

static hr_status_t prepare(struct hri_index_head *const *heads, uint32_t n_heads, const float *k,
                           const float *v, uint32_t n, uint32_t first_row)
{
    const struct hri_index_options *o = &heads[0]->options;
    struct shadow *s = heads[0]->state;
    (void)v;
    if (!s->rank)
        return HR_OK;
    for (uint32_t h = 0; h < n_heads; h++)
        parts_drop(heads[h]->state, first_row);
    struct decomposition d = {.n = n, .width = n_heads * o->k_dim, .rank = s->rank};
    size_t work = hri_eigen_work_bytes(d.width) + hri_gram_work_bytes(d.width);
    d.x = hri_aligned(o->scratch, 64, (size_t)n * d.width * sizeof *d.x);
    d.basis = hri_aligned(o->scratch, 64, (size_t)d.rank * d.width * sizeof *d.basis);
    d.u = hri_aligned(o->scratch, 64, (size_t)n * d.rank * sizeof *d.u);
    d.gram = hri_array(o->scratch, (size_t)d.width * d.width, sizeof *d.gram);
    d.values = hri_array(o->scratch, d.width, sizeof *d.values);
    d.work = hri_aligned(o->scratch, 64, work);
    hr_status_t status = d.x && d.basis && d.u && d.gram && d.values && d.work
                             ? decompose(heads, n_heads, k, first_row, &d)
                             : hri_alloc_status();
    hri_free(o->scratch, d.x);
    hri_free(o->scratch, d.basis);
    hri_free(o->scratch, d.u);
    hri_free(o->scratch, d.gram);
    hri_free(o->scratch, d.values);
    hri_free(o->scratch, d.work);
    return status;
}

static const struct part *part_of(const struct shadow *s, uint32_t block)
{
    uint32_t low = 0, high = s->n_parts;
    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;
        *(s->parts[middle].first_block <= block ? &low : &high) = middle;
    }
    return &s->parts[low];
}

static void rebuild_keys(struct hri_index_head *head, uint32_t block, float *k)
{
    const struct hri_index_options *o = &head->options;
    const struct shadow *s = head->state;
    const struct part *part = part_of(s, block);
    uint32_t row = part->first_row + (block - part->first_block) * s->chunk,
             n = head->block_rows[block], dk = o->k_dim;
    float *b = s->work, *u = b + (size_t)dk * s->rank;
    o->kernels->to_f32(b, s->b + (size_t)part->basis * dk * s->rank, HR_DTYPE_F16,
                       (size_t)dk * s->rank);
    for (uint32_t h = 0, column = 0; h < o->n_heads; h++) {
        const struct shadow *own = s->heads[h]->state;
        for (uint32_t i = 0; i < n; i++)
            o->kernels->to_f32(u + (size_t)i * s->rank + column,
                               own->u + (size_t)(row + i) * own->columns, HR_DTYPE_F16,
                               own->columns);
        column += own->columns;
    }
    o->kernels->matmul_nt(u, n, s->rank, b, dk, k);
    hri_rotation_apply(&s->rotation, k, n, dk, o->n_sink + row, 1);
}

/* -- landmarks and outliers -- */

static float worst_cosine(const float *k, uint32_t n, uint32_t d)
{
    double mean[HR_HEAD_DIM_MAX] = {0}, worst = 1, mm = 0;
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t j = 0; j < d; j++)
            mean[j] += (double)k[(size_t)i * d + j] / n;
    for (uint32_t j = 0; j < d; j++)
        mm += mean[j] * mean[j];
    for (uint32_t i = 0; i < n; i++) {
        double km = 0, kk = 0;
        for (uint32_t j = 0; j < d; j++) {
            km += k[(size_t)i * d + j] * mean[j];
            kk += (double)k[(size_t)i * d + j] * k[(size_t)i * d + j];
        }
        double cosine = kk > 0 && mm > 0 ? km / sqrt(kk * mm) : 0;
        worst = cosine < worst ? cosine : worst;
    }
    return (float)worst;
}

/* Where an outlier of this cosine goes; outliers_max: nowhere. */
static uint32_t outlier_slot(const struct shadow *s, float cosine)
{
    if (s->n_outliers < s->outliers_max || s->outliers_max == 0)
        return s->n_outliers;
    uint32_t mildest = 0;
    for (uint32_t i = 1; i < s->n_outliers; i++)
        if (s->outliers[i].cosine > s->outliers[mildest].cosine)
            mildest = i;
    return s->outliers[mildest].cosine > cosine ? mildest : s->outliers_max;
}

static void outlier_offer(struct hri_index_head *head, uint32_t block, const float *k,
                          const float *v, uint32_t n)
{
    const struct hri_index_options *o = &head->options;
    struct shadow *s = head->state;
    float cosine = worst_cosine(k, n, o->k_dim);
    uint32_t slot = outlier_slot(s, cosine);
    if (slot >= s->outliers_max)
        return;
    s->n_outliers += slot == s->n_outliers;
    s->outliers[slot] = (struct outlier){cosine, block};
    for (uint32_t i = 0; i < n; i++) {
        unsigned char *row = s->rows + ((size_t)slot * s->chunk + i) * s->row_bytes;
        o->kernels->from_f32(row, k + (size_t)i * o->k_dim, o->dtype, o->k_dim);
        o->kernels->from_f32(row + o->k_dim * hr_dtype_bytes(o->dtype), v + (size_t)i * o->v_dim,
                             o->dtype, o->v_dim);
    }
}

static void outliers_heal(struct hri_index_head *head)
{
    struct shadow *s = head->state;
    for (uint32_t i = 0; i < s->n_outliers;) {
        if (s->outliers[i].block < head->n_blocks) {
            i++;
            continue;
        }
        uint32_t last = --s->n_outliers;
        s->outliers[i] = s->outliers[last];
        memmove(s->rows + (size_t)i * s->chunk * s->row_bytes,
                s->rows + (size_t)last * s->chunk * s->row_bytes, (size_t)s->chunk * s->row_bytes);
    }
}

static hr_status_t summarise(struct hri_index_head *head, const struct hri_segment *segment)
{
    const struct hri_index_options *o = &head->options;
    struct shadow *s = head->state;
    const float *k = segment->k, *v = segment->v;
    outliers_heal(head);
    for (uint32_t b = 0; b < segment->n_blocks; b++) {
        uint32_t n = segment->block_rows[b];
        hri_means_write(&s->landmarks, o, head->n_blocks + b, k, v, NULL, n);
        outlier_offer(head, head->n_blocks + b, k, v, n);
        k += (size_t)n * o->k_dim;
        v += (size_t)n * o->v_dim;
    }
    return HR_OK;
}

/* -- a step -- */

/* Softmax over the chunks that are no outliers per query head, the largest of the group. */
static hr_status_t select_chunks(struct hri_index_head *head, const struct hri_select_in *in,
                                 struct hri_select_out *out)
{
    const struct hri_index_options *o = &head->options;
    struct shadow *s = head->state;
    struct hri_step step = hri_step_at(head, in);
    uint32_t n = 0;
    outliers_heal(head);
    hri_means_dots(&s->landmarks, o, in->q, head->n_blocks, step.dots, step.stride);
    memset(step.mark, 0, head->n_blocks);
    for (uint32_t i = 0; i < s->n_outliers; i++)
        step.mark[s->outliers[i].block] = 1;
    for (uint32_t b = 0; b < head->n_blocks; b++)
        if (!step.mark[b])
            step.ranked[n++] = (struct hri_ranked){0, b};
    for (uint32_t g = 0; g < o->g; g++) {
        for (uint32_t i = 0; i < n; i++)
            step.work[i] = step.dots[g * step.stride + step.ranked[i].item];
        hri_softmax(o->kernels, step.work, step.work, n);
        for (uint32_t i = 0; i < n; i++)
            step.ranked[i].key = fmaxf(step.ranked[i].key, step.work[i]);
    }
    struct hri_take take = {.ranked = step.ranked, .n = n, .budget_bytes = in->budget_bytes};
    hri_take_blocks(head, in, &take, out);
    return HR_OK;
}

/* The outliers, exactly. */
static uint32_t attend_outliers(struct hri_index_head *head, const struct hri_select_in *in,
                                const struct hri_select_out *out, const uint32_t *blocks,
                                uint32_t n, struct hri_partial *part)
{
    const struct hri_index_options *o = &head->options;
    const struct shadow *s = head->state;
    (void)blocks, (void)n;
    for (uint32_t i = 0; out && i < s->n_outliers; i++) {
        struct hri_rows rows = {.base = s->rows + (size_t)i * s->chunk * s->row_bytes,
                                .stride_bytes = s->row_bytes,
                                .n = head->block_rows[s->outliers[i].block],
                                .dtype = o->dtype};
        o->kernels->attend_rows(in->q, o->g, o->k_dim, o->v_dim, rows, o->soft_cap, part);
    }
    return 0; /* nothing is estimated */
}

/* Parts follow each other, in rows and in blocks. */
static void parts_image(struct hri_index_head *head, struct hri_image *im)
{
    struct shadow *s = head->state;
    uint32_t n_parts = s->n_parts, row = 0, block = 0;
    hri_image_u32(im, &n_parts, head->n_blocks, "more parts than blocks");
    for (uint32_t i = 0; i < n_parts && hri_image_ok(im); i++) {
        struct part part = i < s->n_parts ? s->parts[i] : (struct part){0};
        hri_image_u32(im, &part.n_rows, head->n_rows - row, "a part of too many rows");
        hri_image_u32(im, &part.basis, s->n_bases - 1, "no such basis");
        hri_image_check(im, part.n_rows > 0 && s->n_bases > 0, "a part without rows or basis");
        part.first_row = row;
        part.rank = s->rank;
        row += part.n_rows;
        if (im->loads && hri_image_ok(im)) {
            im->status = part_push(head, part);
            s->parts[i].first_block = block;
        }
        block += (part.n_rows + s->chunk - 1) / s->chunk;
    }
    hri_image_check(im, row == head->n_rows && block == head->n_blocks,
                    "rows or blocks without a part");
}

static void image(struct hri_index_head *head, struct hri_image *im)
{
    const struct hri_index_options *o = &head->options;
    struct shadow *s = head->state;
    if (!im->loads) {
        outliers_heal(head);
        parts_drop(s, head->n_rows);
    }
    hri_means_image(&s->landmarks, o, head->n_blocks, im);
    hri_image_u32(im, &s->n_outliers, s->outliers_max, "too many outliers");
    for (uint32_t i = 0; i < s->n_outliers && hri_image_ok(im); i++) {
        hri_image_floats(im, &s->outliers[i].cosine, 1);
        hri_image_u32(im, &s->outliers[i].block, head->n_blocks - 1, "no such outlier");
        hri_image_check(im, head->n_blocks > 0, "no such outlier");
    }
    hri_image_bytes(im, s->rows, (size_t)s->n_outliers * s->chunk * s->row_bytes);
    if (!s->rank)
        return;
    hri_image_u32(im, &s->n_bases, s->bases_max, "too many bases");
    hri_image_halfs(im, s->b, hri_image_ok(im) ? (size_t)s->n_bases * s->rank * o->k_dim : 0);
    hri_image_halfs(im, s->u, (size_t)head->n_rows * s->columns);
    parts_image(head, im);
}

static void link_heads(struct hri_index_head *const *heads, uint32_t n_heads)
{
    for (uint32_t h = 0; h < n_heads; h++) {
        struct shadow *s = heads[h]->state;
        if (s->heads)
            memcpy(s->heads, heads, n_heads * sizeof *s->heads);
    }
}

static const struct hri_selector_ops ops = {
    .device_bytes = device_bytes,
    .held_bytes = held_bytes,
    .create = create,
    .destroy = destroy,
    .prepare = prepare,
    .summarise = summarise,
    .scratch_bytes = hri_step_bytes,
    .select = select_chunks,
    .estimate = attend_outliers,
    .rebuild_keys = rebuild_keys,
    .rebuilds = rebuilds,
    .image = image,
    .link = link_heads,
};

static const struct hri_param params_shadowkv[] = {
    PARAM_SINK(4),
    PARAM_WINDOW(32),
    PARAM_SEGMENT(8192),
    PARAM_DECODE_SEGMENT(512),
    PARAM_DENSE(""),
    {"block", "consecutive tokens per chunk (also: page)", "ShadowKV, section 4.1", 8, 4, 32},
    {"outliers", "chunks kept exact on the device, per kv-head", "ShadowKV, section 4.1", 48, 0,
     65536},
    {"rank", "of the keys before rotary embedding, over all heads of a layer; 0: keys are fetched",
     "ShadowKV, section 4.1", 160, 0, 4096},
    PARAM_END};

const struct hri_selector hri_selector_shadowkv = {
    .name = "shadowkv",
    .summary = "chunks by their mean key; outlier chunks stay exact; keys rebuilt from low rank, "
               "values fetched",
    .source = "ShadowKV, arXiv 2410.21465",
    .unit = HRI_UNIT_BLOCKS,
    .codec = HRI_CODEC_EXACT,
    .params = params_shadowkv,
    .ops = &ops,
};
