#include "tests/index/bench_head.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void must(hr_status_t status, const char *what)
{
    if (status == HR_OK)
        return;
    fprintf(stderr, "%s: %s\n", what, hr_last_error());
    exit(1);
}

static void *get(size_t bytes)
{
    void *memory = NULL;
    if (posix_memalign(&memory, 64, bytes + 64) != 0)
        exit(1);
    memset(memory, 0xff, bytes + 64); /* NaN: nothing may rely on cleared scratch */
    return memory;
}

static void code_blocks(struct bench_head *b, uint32_t block, uint32_t n_blocks)
{
    uint32_t dk = b->options.k_dim, dv = b->options.v_dim, width = dk + dv;
    float k_center[HR_HEAD_DIM_MAX], v_center[HR_HEAD_DIM_MAX];
    for (; block < n_blocks; block++) {
        uint32_t first = b->first[block], rows = b->first[block + 1] - first;
        float *k = get((size_t)rows * dk * sizeof(float)),
              *v = get((size_t)rows * dv * sizeof(float));
        for (uint32_t i = 0; i < rows; i++) {
            memcpy(k + (size_t)i * dk, b->k + (size_t)b->order[first + i] * dk, dk * sizeof(float));
            memcpy(v + (size_t)i * dv, b->v + (size_t)b->order[first + i] * dv, dv * sizeof(float));
        }
        hri_index_centers(b->head, block, k_center, v_center);
        int8_t *codes = b->codes + (size_t)first * width;
        float k_step = b->options.kernels->quantise_i8(k, dk, rows, dk, k_center, codes, width);
        float v_step =
            b->options.kernels->quantise_i8(v, dv, rows, dv, v_center, codes + dk, width);
        if (b->options.recipe.selector->codec == HRI_CODEC_I8)
            hri_index_set_steps(b->head, block, k_step, v_step);
        free(k);
        free(v);
    }
}

static void add_segments(struct bench_head *b, uint32_t segment_rows, uint32_t position_end)
{
    uint32_t dk = b->options.k_dim, dv = b->options.v_dim, n_blocks = 0;
    uint32_t *block_rows = get(b->options.blocks_max * sizeof *block_rows);
    void *workspace = get(hri_index_workspace_bytes(&b->options, segment_rows));
    b->first[0] = 0;
    for (uint32_t done = 0; done < b->n; done += segment_rows) {
        uint32_t rows = b->n - done < segment_rows ? b->n - done : segment_rows, added = 0;
        must(hri_index_add(b->head, b->k + (size_t)done * dk, b->v + (size_t)done * dv, rows,
                           position_end - (b->n - done - rows), workspace, b->order + done,
                           block_rows, &added),
             "hri_index_add");
        for (uint32_t i = 0; i < rows; i++)
            b->order[done + i] += done;
        for (uint32_t i = 0; i < added; i++, n_blocks++)
            b->first[n_blocks + 1] = b->first[n_blocks] + block_rows[i];
        code_blocks(b, n_blocks - added, n_blocks);
    }
    free(block_rows);
    free(workspace);
}

void bench_head_init(struct bench_head *b, const struct bench_geometry *geometry, const float *k,
                     const float *v, uint32_t n, const float *seen, uint32_t n_seen,
                     uint32_t first_seen, uint32_t position_end, uint32_t segment_rows)
{
    memset(b, 0, sizeof *b);
    hri_alloc_init(&b->memory, "test", 0, NULL);
    b->k = k;
    b->v = v;
    b->n = n;
    b->options = (struct hri_index_options){.g = geometry->g,
                                            .k_dim = geometry->k_dim,
                                            .v_dim = geometry->v_dim,
                                            .scale = 1,
                                            .soft_cap = geometry->soft_cap,
                                            .dtype = HR_DTYPE_BF16,
                                            .rope = geometry->rope,
                                            .horizon_tokens = geometry->horizon_tokens,
                                            .rows_in_host = geometry->rows_in_host,
                                            .kernels = hri_kernels_get(hri_kernels_best()),
                                            .device = &b->memory,
                                            .scratch = &b->memory};
    must(hri_recipe_parse(geometry->recipe, &b->options.recipe), "recipe");
    segment_rows = segment_rows ? segment_rows : n ? n : 1;
    uint32_t n_segments = (n + segment_rows - 1) / segment_rows;
    b->options.rows_max = n;
    b->options.blocks_max =
        hri_index_blocks_bound(&b->options.recipe, geometry->k_dim, geometry->v_dim, n, n_segments);
    must(hri_index_head_create(&b->options, &b->head), "hri_index_head_create");
    b->order = get(n * sizeof *b->order);
    b->first = get(((size_t)b->options.blocks_max + 1) * sizeof *b->first);
    b->codes = get((size_t)n * (geometry->k_dim + geometry->v_dim));
    b->scratch = get(hri_index_step_scratch_bytes(&b->options));
    b->rows = get((size_t)n * sizeof *b->rows);
    b->items = get(((size_t)n + b->options.blocks_max) * sizeof *b->items);
    b->row_scores = get((size_t)geometry->g * n * sizeof(float));
    hri_index_observe(b->head, seen, n_seen, first_seen);
    add_segments(b, segment_rows, position_end);
}

void bench_head_fini(struct bench_head *b)
{
    hri_index_head_destroy(b->head);
    free(b->order);
    free(b->first);
    free(b->codes);
    free(b->scratch);
    free(b->items);
    free(b->rows);
    free(b->row_scores);
    memset(b, 0, sizeof *b);
}

static double logit_of(const float *q, const float *k, uint32_t d, float soft_cap)
{
    double sum = 0;
    for (uint32_t j = 0; j < d; j++)
        sum += (double)q[j] * k[j];
    return soft_cap > 0 ? soft_cap * tanh(sum / soft_cap) : sum;
}

void bench_attend(const float *q, uint32_t g, uint32_t dk, uint32_t dv, const float *k,
                  const float *v, uint32_t n, float soft_cap, struct hri_partial *part)
{
    double *logit = malloc((n + 1) * sizeof *logit), sum[HR_HEAD_DIM_MAX];
    for (uint32_t h = 0; n && h < g; h++) {
        double top = part->m[h], mass;
        for (uint32_t i = 0; i < n; i++) {
            logit[i] = logit_of(q + (size_t)h * dk, k + (size_t)i * dk, dk, soft_cap);
            top = fmax(top, logit[i]);
        }
        double scale = part->l[h] > 0 ? exp(part->m[h] - top) : 0;
        mass = scale > 0 ? part->l[h] * scale : 0;
        for (uint32_t j = 0; j < dv; j++)
            sum[j] = scale > 0 ? part->o[(size_t)h * dv + j] * scale : 0;
        for (uint32_t i = 0; i < n; i++) {
            double w = exp(logit[i] - top);
            mass += w;
            for (uint32_t j = 0; j < dv; j++)
                sum[j] += w * v[(size_t)i * dv + j];
        }
        part->m[h] = (float)top;
        part->l[h] = (float)mass;
        for (uint32_t j = 0; j < dv; j++)
            part->o[(size_t)h * dv + j] = (float)sum[j];
    }
    free(logit);
}

static void refine_block(struct bench_head *b, const struct hri_select_in *in, uint32_t item,
                         struct hri_partial *part)
{
    const struct hri_index_options *o = &b->options;
    uint32_t dk = o->k_dim, dv = o->v_dim, parts = hri_index_parts(&o->recipe, dk, dv);
    uint32_t block = item / parts, rows = hri_index_item_rows(b->head, item);
    uint32_t first = b->first[block] + item % parts * hri_index_part_rows(&o->recipe, dk, dv);
    if (o->recipe.selector->codec == HRI_CODEC_I8) {
        float dots[HR_GROUP_MAX], k_center[HR_HEAD_DIM_MAX], v_center[HR_HEAD_DIM_MAX];
        struct hri_block_i8 coded = {.codes = b->codes + (size_t)first * (dk + dv),
                                     .k_dot = dots,
                                     .v_center = v_center,
                                     .n = rows};
        hri_index_block_dots(b->head, in, block, dots);
        hri_index_centers(b->head, block, k_center, v_center);
        hri_index_steps(b->head, block, &coded.k_step, &coded.v_step);
        o->kernels->attend_block_i8(in->q, o->g, dk, dv, &coded, o->soft_cap, part);
        return;
    }
    for (uint32_t i = 0; i < rows; i++) {
        uint32_t row = b->order[first + i];
        bench_attend(in->q, o->g, dk, dv, b->k + (size_t)row * dk, b->v + (size_t)row * dv, 1,
                     o->soft_cap, part);
    }
}

static void fill_row_scores(struct bench_head *b, const float *q)
{
    const struct hri_index_options *o = &b->options;
    for (uint32_t g = 0; g < o->g; g++)
        for (uint32_t i = 0; i < b->n; i++)
            b->row_scores[(size_t)g * b->n + i] = (float)logit_of(
                q + (size_t)g * o->k_dim, b->k + (size_t)i * o->k_dim, o->k_dim, o->soft_cap);
}

void bench_head_step(struct bench_head *b, const float *q, uint64_t budget_bytes, double tolerance,
                     const uint8_t *place, struct hri_partial *part, struct hri_select_out *out)
{
    const struct hri_index_options *o = &b->options;
    const struct hri_selector *selector = o->recipe.selector;
    float m[HR_GROUP_MAX], l[HR_GROUP_MAX];
    float *near_o = get((size_t)o->g * o->v_dim * sizeof(float));
    memcpy(m, part->m, o->g * sizeof *m);
    memcpy(l, part->l, o->g * sizeof *l);
    memcpy(near_o, part->o, (size_t)o->g * o->v_dim * sizeof(float));
    struct hri_partial near = {m, l, near_o};
    struct hri_select_in in = {.q = q,
                               .near = &near,
                               .budget_bytes = budget_bytes,
                               .tolerance = tolerance,
                               .n_rows = b->n,
                               .place = place,
                               .cell_bytes = 4096,
                               .scratch = b->scratch,
                               .row_scores = b->row_scores,
                               .row_scores_stride = b->n,
                               .row_bytes = (o->k_dim + o->v_dim) *
                                            (selector->codec == HRI_CODEC_I8 ? 1u : 2u)};
    if (selector->needs_row_scores)
        fill_row_scores(b, q);
    memset(out, 0, sizeof *out);
    out->items = b->items;
    out->rows = b->rows;
    out->rows_max = b->n;
    out->items_max = b->n + o->blocks_max;
    must(hri_index_select(b->head, &in, out), "hri_index_select");
    for (uint32_t i = 0; i < out->n_items; i++) {
        uint32_t item = out->items[i];
        if (selector->unit == HRI_UNIT_BLOCKS)
            refine_block(b, &in, item, part);
        else
            bench_attend(q, o->g, o->k_dim, o->v_dim, b->k + (size_t)item * o->k_dim,
                         b->v + (size_t)item * o->v_dim, 1, o->soft_cap, part);
    }
    if (selector->unit == HRI_UNIT_ALL)
        bench_attend(q, o->g, o->k_dim, o->v_dim, b->k, b->v, b->n, o->soft_cap, part);
    if (out->n_rows > 0) {
        const int8_t **codes = get(out->n_rows * sizeof *codes);
        for (uint32_t i = 0; i < out->n_rows; i++)
            codes[i] = b->codes + (size_t)(b->first[out->rows[i].block] + out->rows[i].row) *
                                      (o->k_dim + o->v_dim);
        hri_index_attend_rows(b->head, &in, out, codes, part);
        free(codes);
    }
    hri_index_estimate(b->head, &in, out, part, NULL);
    free(near_o);
}
