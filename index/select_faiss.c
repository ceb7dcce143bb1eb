/* Any index of FAISS as a selector of rows: "faiss:IVF256,Flat;nprobe=16". What follows the name is FAISS's factory string; after a
 * semicolon come parameters. FAISS is called through its C API alone.
 *
 * Keys go in less the mean of the first ones (softmax does not notice, and indexes of clusters do better), queries search by inner
 * product. A query head's scores are what FAISS returns for the rows it found, exact or approximate as the index
 * stores them; their softmax is summed over the group and the best rows are read. Index types that FAISS has for Euclidean
 * distance alone (LSH) are made for that; then rows count by their place in each query head's list, 1 / (1 + place).
 * The rest is dropped.
 *
 * Training waits for `train` rows (and more, while FAISS says that these are too few); until then all rows are compared one by one.
 * FAISS allocates while it searches, outside of our allocators; its index counts as host memory. */
#include "base/error.h"
#include "index/params.h"
#include "index/rows.h"

#include <math.h>
#include <string.h>

#if HR_HAVE_FAISS
#include <faiss/c_api/AutoTune_c.h>
#include <faiss/c_api/error_c.h>
#include <faiss/c_api/index_factory_c.h>
#include <faiss/c_api/index_io_c.h>
#include <stdio.h>
#include <stdlib.h>

/* Of OpenMP's runtime, which FAISS brings along: teams of threads cost a single query more than they help, and our workers
 * search side by side. The setting is the calling thread's. */
extern void omp_set_num_threads(int n);
extern int omp_get_max_threads(void);

#define DEAD UINT32_MAX

#define SIZE_LEAST_MAX 65536u /* a size in a factory string may be this, or the rows there can be */
#define CODE_BITS_MAX  16

struct faiss_rows {
    FaissIndex *index;
    bool by_distance, trained;
    float *center; /* [k_dim] of the first rows added */
    bool has_center;
    float *waiting;            /* [n_waiting][k_dim] centred rows before training */
    uint32_t n_waiting, tried; /* tried: rows at the last try to train */
    uint32_t *row;             /* [n_ids] the row of a number of FAISS's, DEAD after a truncate */
    uint32_t n_ids, ids_max, n_dead;
    uint64_t bytes; /* of the index, as last measured, at measured_ids */
    uint32_t measured_ids;
    faiss_idx_t *label; /* [rows_max] of a search */
    float *found;       /* [rows_max] */
};

static hr_status_t refused(const char *what, const struct hri_index_options *o)
{
    const char *text = faiss_get_last_error();
    char line[HRI_ERROR_BYTES_MAX];
    snprintf(line, sizeof line, "%s", text ? text : "no reason given");
    for (char *c = line; *c; c++)
        *c = *c == '\n' ? ' ' : *c;
    return hri_error_set(HR_ERR_INVALID, "FAISS %s '%s': %s", what, o->recipe.argument, line);
}

static uint64_t host_bytes(const struct hri_index_head *head)
{
    const struct faiss_rows *s = head->state;
    uint64_t waiting = s->n_waiting * (uint64_t)head->options.k_dim * sizeof(float);
    double share = s->measured_ids ? (double)s->n_ids / s->measured_ids : 0;
    return (uint64_t)((double)s->bytes * share) + waiting + s->n_ids * sizeof *s->row;
}

static void destroy(struct hri_index_head *head)
{
    const struct hri_index_options *o = &head->options;
    struct faiss_rows *s = head->state;
    if (s->index)
        faiss_Index_free(s->index);
    hri_free(o->scratch, s->center);
    hri_free(o->scratch, s->waiting);
    hri_free(o->scratch, s->row);
    hri_free(o->scratch, s->label);
    hri_free(o->scratch, s->found);
    hri_free(o->scratch, s);
}

/* FAISS divides by sizes of 0, and takes memory for any other, before it looks at them. Numbers after an 'x' are bits of a code
 * (PQ16x8), the others count centroids, edges, dimensions. */
static hr_status_t sizes_check(const struct hri_index_options *o)
{
    const char *text = o->recipe.argument;
    double largest = o->rows_max > SIZE_LEAST_MAX ? o->rows_max : SIZE_LEAST_MAX;
    for (const char *c = text; *c;) {
        char *end = (char *)(uintptr_t)c;
        bool bits = c > text && c[-1] == 'x';
        double size = *c >= '0' && *c <= '9' ? (double)strtoull(c, &end, 10) : 1;
        if (size < 1 || size > (bits ? CODE_BITS_MAX : largest))
            return hri_error_set(
                HR_ERR_INVALID, "recipe faiss: '%s': a %s of %.*s; 1 to %.0f are possible", text,
                bits ? "code" : "size", (int)(end - c), c, bits ? (double)CODE_BITS_MAX : largest);
        c = end > c ? end : c + 1;
    }
    return HR_OK;
}

static hr_status_t index_make(struct faiss_rows *s, const struct hri_index_options *o)
{
    const char *text = o->recipe.argument;
    int d = (int)o->k_dim;
    hr_status_t fits = sizes_check(o);
    if (fits != HR_OK)
        return fits;
    if (faiss_index_factory(&s->index, d, text, METRIC_INNER_PRODUCT) == 0)
        return HR_OK;
    hr_status_t status = refused("refuses", o);
    s->index = NULL;
    s->by_distance = faiss_index_factory(&s->index, d, text, METRIC_L2) == 0;
    if (!s->by_distance)
        s->index = NULL;
    return s->by_distance ? HR_OK : status;
}

/* What the recipe asks for beyond FAISS's own settings. */
static hr_status_t index_tune(struct faiss_rows *s, const struct hri_index_options *o)
{
    static const char *const names[] = {"nprobe", "efSearch", "k_factor", "ht"};
    FaissParameterSpace *space;
    hr_status_t status = HR_OK;
    if (faiss_ParameterSpace_new(&space) != 0)
        return refused("has no parameters for", o);
    for (size_t i = 0; i < sizeof names / sizeof *names && status == HR_OK; i++) {
        double value = hri_recipe_value(&o->recipe, names[i]);
        const char *name = strcmp(names[i], "k_factor") == 0 ? "k_factor_rf" : names[i];
        if (value > 0 && faiss_ParameterSpace_set_index_parameter(space, s->index, name, value))
            status = refused("does not tune", o);
    }
    faiss_ParameterSpace_free(space);
    return status;
}

static hr_status_t create(struct hri_index_head *head)
{
    const struct hri_index_options *o = &head->options;
    if (o->recipe.argument[0] == '\0')
        return hri_error_set(HR_ERR_INVALID,
                             "recipe faiss needs a factory string: 'faiss:IVF256,Flat'");
    struct faiss_rows *s = hri_calloc(o->scratch, 1, sizeof *s);
    if (!s)
        return hri_alloc_status();
    head->state = s;
    s->center = hri_calloc(o->scratch, o->k_dim, sizeof *s->center);
    s->label = hri_array(o->scratch, o->rows_max + (size_t)1, sizeof *s->label);
    s->found = hri_array(o->scratch, o->rows_max + (size_t)1, sizeof *s->found);
    hr_status_t status = s->center && s->label && s->found ? HR_OK : hri_alloc_status();
    if (status == HR_OK)
        status = index_make(s, o);
    if (status == HR_OK)
        status = index_tune(s, o);
    if (status == HR_OK)
        s->trained = faiss_Index_is_trained(s->index);
    if (status != HR_OK)
        destroy(head);
    return status;
}

/* -- adding -- */

static ssize_t count_write(void *context, const char *data, size_t n)
{
    (void)data;
    *(uint64_t *)context += n;
    return (ssize_t)n;
}

/* The index's size is that of its file, which is written to nowhere; anew each time the rows have grown by an eighth. */
static void measure(struct faiss_rows *s)
{
    uint64_t bytes = 0;
    cookie_io_functions_t io = {.write = count_write};
    if (s->n_ids < s->measured_ids + s->measured_ids / 8 + 1)
        return;
    FILE *file = fopencookie(&bytes, "wb", io);
    int code = file ? faiss_write_index(s->index, file) : -1;
    if (file)
        fclose(file);
    if (code == 0) {
        s->bytes = bytes;
        s->measured_ids = s->n_ids;
    }
}

static hr_status_t ids_grow(struct faiss_rows *s, struct hri_alloc *alloc, uint32_t n)
{
    uint64_t most = s->ids_max + (uint64_t)s->ids_max / 2;
    most = most < (uint64_t)s->n_ids + n ? (uint64_t)s->n_ids + n : most;
    if (s->n_ids + (uint64_t)n <= s->ids_max)
        return HR_OK;
    uint32_t *row = hri_array(alloc, most, sizeof *row);
    if (!row)
        return hri_alloc_status();
    if (s->n_ids)
        memcpy(row, s->row, s->n_ids * sizeof *row);
    hri_free(alloc, s->row);
    s->row = row;
    s->ids_max = (uint32_t)most;
    return HR_OK;
}

static hr_status_t index_add(struct faiss_rows *s, const struct hri_index_options *o,
                             const float *x, uint32_t n, uint32_t first_row)
{
    hr_status_t status = ids_grow(s, o->scratch, n);
    if (status != HR_OK)
        return status;
    if (faiss_Index_add(s->index, n, x) != 0)
        return refused("cannot add rows to", o);
    for (uint32_t i = 0; i < n; i++)
        s->row[s->n_ids + i] = first_row + i;
    s->n_ids += n;
    measure(s);
    return HR_OK;
}

static hr_status_t wait(struct faiss_rows *s, const struct hri_index_options *o, const float *x,
                        uint32_t n)
{
    size_t old = (size_t)s->n_waiting * o->k_dim, more = (size_t)n * o->k_dim;
    float *all = hri_aligned(o->scratch, 64, (old + more) * sizeof *all);
    if (!all)
        return hri_alloc_status();
    if (old)
        memcpy(all, s->waiting, old * sizeof *all);
    memcpy(all + old, x, more * sizeof *all);
    hri_free(o->scratch, s->waiting);
    s->waiting = all;
    s->n_waiting += n;
    return HR_OK;
}

/* Too few rows are no error: there will be more. */
static hr_status_t train(struct faiss_rows *s, const struct hri_index_options *o)
{
    if (s->n_waiting < hri_recipe_value(&o->recipe, "train") || s->n_waiting < 2 * s->tried)
        return HR_OK;
    s->tried = s->n_waiting;
    if (faiss_Index_train(s->index, s->n_waiting, s->waiting) != 0)
        return HR_OK;
    s->trained = true;
    hr_status_t status = index_add(s, o, s->waiting, s->n_waiting, 0);
    if (status == HR_OK) {
        hri_free(o->scratch, s->waiting);
        s->waiting = NULL;
        s->n_waiting = 0;
    }
    return status;
}

static void center_make(struct faiss_rows *s, const float *k, uint32_t n, uint32_t d)
{
    for (uint32_t j = 0; j < d; j++) {
        double sum = 0;
        for (uint32_t i = 0; i < n; i++)
            sum += k[(size_t)i * d + j];
        s->center[j] = (float)(sum / n);
    }
    s->has_center = true;
}

static hr_status_t add_rows(struct hri_index_head *head, const float *k, const float *v, uint32_t n,
                            uint32_t first_row, uint32_t position_end)
{
    const struct hri_index_options *o = &head->options;
    struct faiss_rows *s = head->state;
    int threads = omp_get_max_threads();
    (void)v, (void)position_end;
    float *x = hri_aligned(o->scratch, 64, (size_t)n * o->k_dim * sizeof *x);
    if (!x)
        return hri_alloc_status();
    if (!s->has_center)
        center_make(s, k, n, o->k_dim);
    for (size_t i = 0; i < (size_t)n * o->k_dim; i++)
        x[i] = k[i] - s->center[i % o->k_dim];
    omp_set_num_threads(1);
    hr_status_t status = s->trained ? index_add(s, o, x, n, first_row) : wait(s, o, x, n);
    if (status == HR_OK && !s->trained)
        status = train(s, o);
    omp_set_num_threads(threads);
    hri_free(o->scratch, x);
    return status;
}

/* Not every index can remove what it holds, so numbers are crossed out instead. */
static void truncate_rows(struct hri_index_head *head, uint32_t n_rows)
{
    struct faiss_rows *s = head->state;
    s->n_waiting = n_rows < s->n_waiting ? n_rows : s->n_waiting;
    for (uint32_t i = 0; i < s->n_ids; i++) {
        if (s->row[i] != DEAD && s->row[i] >= n_rows) {
            s->row[i] = DEAD;
            s->n_dead++;
        }
    }
}

/* -- a step -- */

/* Rows found for one query head, best first, into label[] (as row numbers) and found[]. */
static uint32_t search(struct faiss_rows *s, const struct hri_index_options *o, const float *q,
                       uint32_t k)
{
    uint64_t wanted = (uint64_t)k + s->n_dead;
    uint32_t n = 0, asked = wanted < s->n_ids ? (uint32_t)wanted : s->n_ids;
    asked = asked < o->rows_max ? asked : o->rows_max;
    if (asked == 0 || faiss_Index_search(s->index, 1, q, asked, s->found, s->label) != 0)
        asked = 0;
    for (uint32_t i = 0; i < asked && n < k; i++) {
        uint32_t row = s->label[i] >= 0 ? s->row[s->label[i]] : DEAD;
        if (row == DEAD)
            continue;
        s->label[n] = row;
        s->found[n++] = s->found[i];
    }
    return n;
}

static void scan(struct faiss_rows *s, const struct hri_index_head *head, const float *q,
                 const struct hri_rows_step *step)
{
    const struct hri_index_options *o = &head->options;
    struct hri_rows rows = {.base = s->waiting,
                            .stride_bytes = o->k_dim * sizeof(float),
                            .n = s->n_waiting,
                            .dtype = HR_DTYPE_F32};
    o->kernels->score_rows(q, o->g, o->k_dim, rows, 0, step->logits, step->stride);
}

/* Adds a query head's list to the ranks of all rows. */
static void vote(struct faiss_rows *s, const struct hri_index_options *o, uint32_t n,
                 struct hri_ranked *ranked)
{
    hri_soft_cap(s->found, n, s->by_distance ? 0 : o->soft_cap);
    float total = 0, top = n ? s->found[0] : 0;
    for (uint32_t i = 0; i < n; i++) {
        s->found[i] = s->by_distance ? 1 / (1 + (float)i) : expf(s->found[i] - top);
        total += s->by_distance ? 0 : s->found[i];
    }
    for (uint32_t i = 0; i < n; i++)
        ranked[s->label[i]].key += s->by_distance ? s->found[i] : s->found[i] / total;
}

static hr_status_t select_rows(struct hri_index_head *head, const struct hri_select_in *in,
                               struct hri_select_out *out)
{
    const struct hri_index_options *o = &head->options;
    struct faiss_rows *s = head->state;
    struct hri_rows_step step = hri_rows_step_at(head, in);
    uint32_t n = head->n_rows, fit = hri_rows_fit(head, in, out), n_ranked = 0;
    int threads = omp_get_max_threads();
    if (!s->trained) {
        scan(s, head, in->q, &step);
        hri_rows_take_softmax(head, in, &step, out);
        return HR_OK;
    }
    for (uint32_t i = 0; i < n; i++)
        step.ranked[i] = (struct hri_ranked){0, i};
    omp_set_num_threads(1);
    for (uint32_t g = 0; g < o->g && fit; g++) {
        vote(s, o, search(s, o, in->q + (size_t)g * o->k_dim, fit), step.ranked);
    }
    omp_set_num_threads(threads);
    for (uint32_t i = 0; i < n; i++)
        if (step.ranked[i].key > 0)
            step.ranked[n_ranked++] = step.ranked[i];
    hri_rows_take(step.ranked, n_ranked, fit, in, out);
    return HR_OK;
}

#else

static hr_status_t create(struct hri_index_head *head)
{
    (void)head;
    return hri_error_set(HR_ERR_UNSUPPORTED, "recipe faiss: this build has no FAISS");
}

static hr_status_t add_rows(struct hri_index_head *head, const float *k, const float *v, uint32_t n,
                            uint32_t first_row, uint32_t position_end)
{
    (void)head, (void)k, (void)v, (void)n, (void)first_row, (void)position_end;
    return HR_OK;
}

static void truncate_rows(struct hri_index_head *head, uint32_t n_rows)
{
    (void)head, (void)n_rows;
}

static hr_status_t select_rows(struct hri_index_head *head, const struct hri_select_in *in,
                               struct hri_select_out *out)
{
    (void)head, (void)in, (void)out;
    return HR_OK;
}

#endif

static const struct hri_selector_ops ops = {
    .create = create,
#if HR_HAVE_FAISS
    .destroy = destroy,
    .host_bytes = host_bytes,
#endif
    .scratch_bytes = hri_rows_step_bytes,
    .select = select_rows,
    .add_rows = add_rows,
    .truncate_rows = truncate_rows,
};

static const struct hri_param params_faiss[] = {
    PARAM_SINK(4),
    PARAM_WINDOW(64),
    PARAM_SEGMENT(8192),
    PARAM_DECODE_SEGMENT(512),
    PARAM_DENSE(""),
    {"train", "rows to train on at least; until then all rows are compared", "", 1024, 9, 1048576},
    {"nprobe", "lists that a search visits; 0: as FAISS has it", "FAISS, IndexIVF", 0, 0, 1048576},
    {"efSearch", "width of a search in a graph; 0: as FAISS has it", "FAISS, IndexHNSW", 0, 0,
     1048576},
    {"k_factor", "rows that a refining index compares per row asked for; 0: as FAISS has it",
     "FAISS, IndexRefine", 0, 0, 1000},
    {"ht", "Hamming threshold of polysemous codes; 0: as FAISS has it", "FAISS, IndexPQ", 0, 0,
     1024},
    PARAM_END};

const struct hri_selector hri_selector_faiss = {
    .name = "faiss",
    .summary = "rows by any index of FAISS: faiss:IVF256,Flat;nprobe=16",
    .source = "FAISS, arXiv 2401.08281",
    .unit = HRI_UNIT_ROWS,
    .codec = HRI_CODEC_EXACT,
    .takes_argument = true,
    .params = params_faiss,
    .ops = &ops,
};
