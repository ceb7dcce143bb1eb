#include "engine/linear.h"

#include <stdlib.h>
#include <string.h>

#if HR_HAVE_BLAS
#include <cblas.h>
#endif

#include "engine/fail.h"
#include "engine/repack.h"

/* With fewer rows of activations than this, dequantising costs more than it saves. */
#define MATRIX_ROWS_MIN 4
/* A thread's share of a vector's products is one item, or several of so many rows: to claim more of them costs more than an even end
 * gains. */
#define VECTOR_ROWS_MAX   (32 * HRE_GROUP_ROWS)
#define BLAS_ROWS         64 /* weights dequantised for one call of the BLAS */
#define SCRATCH_ALIGNMENT 64

struct scratch {
    float *rows;   /* [rows_max][cols_max] dequantised */
    float *packed; /* [cols_max][tile_rows] */
};

struct hre_linear {
    const struct hre_ops *ops;
    struct hre_workers *workers;
    uint32_t tile_rows; /* rows of weights an item of a matrix product handles at once */
    int blas;
    float *sums, *steps;       /* [cols_max / HRE_SUM_GROUP] */
    int16_t *halves;           /* [2 cols_max] */
    struct hre_digits *digits; /* [cols_max / HRE_SUM_GROUP]; a level has these or halves */
    float *memory;
    uint64_t bytes;
    struct scratch *scratch; /* [threads] */
};

struct job {
    struct hre_linear *linear;
    const float *x;
    uint32_t m;
    const struct hre_product *products;
    uint32_t n_products;
    uint32_t item_rows;
    struct hre_activations activations;
};

hr_status_t hre_linear_create(const struct hre_ops *ops, struct hre_workers *workers,
                              uint32_t cols_max, struct hre_linear **linear_out)
{
    uint32_t n_threads = hre_workers_count(workers);
    struct hre_linear *linear = calloc(1, sizeof(*linear));

    if (!linear) {
        return hre_fail(HR_ERR_NOMEM, "no memory for linear layers");
    }
    linear->ops = ops;
    linear->workers = workers;
#if HR_HAVE_BLAS
    /* The plain C level has no fast tile; a BLAS knows the machine. */
    linear->blas = ops == &hre_ops_ref;
    /* Whoever calls it in this process: threads of its own would fight with ours and spin. */
    openblas_set_num_threads(1);
#endif
    linear->tile_rows = linear->blas ? BLAS_ROWS : ops->tile_rows;
    cols_max = (cols_max + HRE_SUM_GROUP - 1) / HRE_SUM_GROUP * HRE_SUM_GROUP;
    size_t tile = (size_t)linear->tile_rows * cols_max;
    /* Halves or digits take one each, sums and steps less than another. */
    size_t vectors = 2 * (size_t)cols_max;
    size_t floats = vectors + 2 * tile * n_threads;
    linear->scratch = calloc(n_threads, sizeof(*linear->scratch));
    linear->memory = aligned_alloc(SCRATCH_ALIGNMENT, floats * sizeof(float));
    if (!linear->scratch || !linear->memory) {
        hre_linear_destroy(linear);
        return hre_fail(HR_ERR_NOMEM, "no memory for %zu bytes of scratch for linear layers",
                        floats * sizeof(float));
    }
    linear->bytes = floats * sizeof(float);
    linear->sums = linear->memory;
    linear->steps = linear->sums + cols_max / HRE_SUM_GROUP;
    linear->halves = (int16_t *)(void *)(linear->steps + cols_max / HRE_SUM_GROUP);
    linear->digits = (struct hre_digits *)(void *)linear->halves;
    for (uint32_t i = 0; i < n_threads; i++) {
        linear->scratch[i].rows = linear->memory + vectors + 2 * i * tile;
        linear->scratch[i].packed = linear->scratch[i].rows + tile;
    }
    *linear_out = linear;
    return HR_OK;
}

void hre_linear_destroy(struct hre_linear *linear)
{
    if (!linear) {
        return;
    }
    free(linear->scratch);
    free(linear->memory);
    free(linear);
}

uint64_t hre_linear_bytes(const struct hre_linear *linear)
{
    return linear->bytes;
}

/* Rows [*first_out, *first_out + *count_out) of the product that item falls into. */
static const struct hre_product *find_rows(const struct job *job, uint32_t item,
                                           uint32_t *first_out, uint32_t *count_out)
{
    const struct hre_product *p = job->products;

    for (;; p++) {
        uint32_t items = (p->w->rows + job->item_rows - 1) / job->item_rows;

        if (item < items) {
            break;
        }
        item -= items;
    }
    *first_out = item * job->item_rows;
    *count_out =
        p->w->rows - *first_out < job->item_rows ? p->w->rows - *first_out : job->item_rows;
    return p;
}

static uint32_t count_items(const struct job *job)
{
    uint32_t items = 0;

    for (uint32_t i = 0; i < job->n_products; i++) {
        items += (job->products[i].w->rows + job->item_rows - 1) / job->item_rows;
    }
    return items;
}

/* -------------------------------------------------------------------------- one row: a vector */

/* Rows of all products one behind the other, each product's up to a whole group. */
static uint32_t whole_groups(uint32_t rows)
{
    return (rows + HRE_GROUP_ROWS - 1) / HRE_GROUP_ROWS * HRE_GROUP_ROWS;
}

static uint32_t total_rows(const struct job *job)
{
    uint32_t rows = 0;

    for (uint32_t i = 0; i < job->n_products; i++) {
        rows += whole_groups(job->products[i].w->rows);
    }
    return rows;
}

/* Rows [first, end) of one product; first is a multiple of HRE_GROUP_ROWS. */
static void vector_rows(const struct job *job, const struct hre_product *p, uint32_t first,
                        uint32_t end)
{
    const struct hre_weight *w = p->w;
    const struct hre_ops *ops = job->linear->ops;
    const char *rows = w->data;
    uint32_t packed_end = w->packed_rows < end ? w->packed_rows : end, r = first;

    if (r < packed_end) {
        ops->dot_groups[w->type](rows + r * w->row_bytes, w->row_bytes, packed_end - r, w->cols,
                                 &job->activations, p->y + r);
        r = packed_end;
    }
    if (r < end) {
        ops->dot[w->type](rows + r * w->row_bytes, w->row_bytes, end - r, w->cols,
                          &job->activations, p->y + r);
    }
    if (w->bias) {
        ops->add(p->y + first, w->bias + first, end - first);
    }
}

static void vector_item(void *context, uint32_t item, uint32_t thread)
{
    const struct job *job = context;
    uint32_t first = item * job->item_rows, end = first + job->item_rows;

    (void)thread;
    for (uint32_t i = 0; i < job->n_products; i++) {
        uint32_t rows = job->products[i].w->rows, padded = whole_groups(rows);

        if (first < rows) {
            vector_rows(job, &job->products[i], first, end < rows ? end : rows);
        }
        if (end <= padded) {
            return;
        }
        first = first > padded ? first - padded : 0;
        end -= padded;
    }
}

static void apply_vector(struct job *job, const float *x)
{
    struct hre_linear *linear = job->linear;
    uint32_t cols = job->products[0].w->cols, rows = total_rows(job);
    uint32_t share = whole_groups(rows / hre_workers_count(linear->workers));

    job->item_rows = share < HRE_GROUP_ROWS    ? HRE_GROUP_ROWS
                     : share > VECTOR_ROWS_MAX ? VECTOR_ROWS_MAX
                                               : share;
    linear->ops->sum_groups(x, cols, linear->sums);
    if (linear->ops->halve) {
        linear->ops->halve(x, cols, linear->sums, linear->halves, linear->steps);
    }
    if (linear->ops->digits) {
        linear->ops->digits(x, cols, linear->sums, linear->digits);
    }
    job->activations =
        (struct hre_activations){x, linear->sums, linear->halves, linear->steps, linear->digits};
    hre_workers_run(linear->workers, vector_item, job,
                    (rows + job->item_rows - 1) / job->item_rows);
}

/* ------------------------------------------------------------------------ many rows: a matrix */

/* Rows [first, first + count) of w as floats. */
static void dequantise_rows(const struct job *job, const struct scratch *s,
                            const struct hre_weight *w, uint32_t first, uint32_t count)
{
    for (uint32_t r = 0; r < count; r++) {
        /* Nothing is packed yet: the memory is free for a row of quants. */
        const void *row = hre_weight_row(w, first + r, s->packed);

        job->linear->ops->dequantise[w->type](row, w->cols, s->rows + (size_t)r * w->cols);
    }
}

static void multiply_rows(const struct job *job, const struct scratch *s,
                          const struct hre_product *p, uint32_t first, uint32_t count)
{
    const struct hre_ops *ops = job->linear->ops;
    const struct hre_weight *w = p->w;

#if HR_HAVE_BLAS
    if (job->linear->blas) {
        dequantise_rows(job, s, w, first, count);
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)job->m, (int)count, (int)w->cols,
                    1.0f, job->x, (int)w->cols, s->rows, (int)w->cols, 0.0f, p->y + first,
                    (int)w->rows);
        return;
    }
#endif
    if (count == ops->tile_rows && first + count <= w->packed_rows) {
        ops->tile_groups[w->type]((const char *)w->data + first * w->row_bytes, w->row_bytes,
                                  w->cols, s->packed);
    } else {
        dequantise_rows(job, s, w, first, count);
        ops->pack(s->rows, count, w->cols, s->packed);
    }
    ops->multiply(job->x, w->cols, job->m, s->packed, w->cols, p->y + first, w->rows, count);
}

static void matrix_item(void *context, uint32_t item, uint32_t thread)
{
    const struct job *job = context;
    const struct hre_ops *ops = job->linear->ops;
    uint32_t first, count;
    const struct hre_product *p = find_rows(job, item, &first, &count);
    const struct hre_weight *w = p->w;

    multiply_rows(job, &job->linear->scratch[thread], p, first, count);
    for (uint32_t i = 0; w->bias && i < job->m; i++) {
        ops->add(p->y + (size_t)i * w->rows + first, w->bias + first, count);
    }
}

void hre_linear_apply(struct hre_linear *linear, const float *x, uint32_t m,
                      const struct hre_product *products, uint32_t n_products)
{
    struct job job = {
        .linear = linear, .x = x, .m = m, .products = products, .n_products = n_products};

    if (m >= MATRIX_ROWS_MIN) {
        job.item_rows = linear->tile_rows;
        hre_workers_run(linear->workers, matrix_item, &job, count_items(&job));
        return;
    }
    struct hre_product row[8];
    uint32_t n = n_products < 8 ? n_products : 8;
    for (uint32_t i = 0; i < m; i++) {
        for (uint32_t j = 0; j < n; j++) {
            row[j] = (struct hre_product){products[j].w,
                                          products[j].y + (size_t)i * products[j].w->rows};
        }
        job.products = row;
        apply_vector(&job, x + (size_t)i * products[0].w->cols);
    }
}
