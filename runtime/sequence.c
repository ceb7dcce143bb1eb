/* A sequence: checks of its options, how its part of the device budget is dealt out, creation and destruction. */
#include "runtime/device_part.h"
#include "runtime/device_rows.h"

#include "base/error.h"
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#define FRAME_STEPS                                                                                \
    8.0 /* frames for this many tokens' worth of refined bytes; more gains little (docs/decisions) */

void hr_sequence_options_init(struct hr_sequence_options *options)
{
    memset(options, 0, sizeof *options);
    options->struct_size = sizeof *options;
    options->dtype = HR_DTYPE_BF16;
    options->recipe = "headrace";
    options->moved = 0.01;
}

static double param_or(const struct hri_recipe *recipe, const char *key, double otherwise)
{
    for (const struct hri_param *p = recipe->selector->params; p != NULL && p->name != NULL; p++) {
        if (strcmp(p->name, key) == 0) {
            return recipe->values[p - recipe->selector->params];
        }
    }
    return otherwise;
}

static hr_status_t dim_check(const char *name, uint32_t dim)
{
    if (dim < HR_HEAD_DIM_MIN || dim > HR_HEAD_DIM_MAX || dim % 8 != 0) {
        return hri_error_set(HR_ERR_INVALID,
                             "sequence options: %s is %u; it must be a multiple of 8 from %d to %d",
                             name, dim, HR_HEAD_DIM_MIN, HR_HEAD_DIM_MAX);
    }
    return HR_OK;
}

static hr_status_t rope_check(const struct hr_sequence_options *o)
{
    for (uint32_t i = 0; o->rope != NULL && i < o->n_layers; i++) {
        const struct hr_rope *r = &o->rope[i];
        if (r->layout == HR_ROPE_NONE) {
            continue;
        }
        if ((unsigned)r->layout > HR_ROPE_INTERLEAVED || r->n_rot == 0 || r->n_rot % 2 != 0 ||
            r->n_rot > o->k_dim || r->frequencies == NULL) {
            return hri_error_set(
                HR_ERR_INVALID,
                "sequence options: rope of layer %u: layout %d, n_rot %u (even, at most k_dim %u), "
                "frequencies %s",
                i, (int)r->layout, r->n_rot, o->k_dim, r->frequencies ? "given" : "missing");
        }
        for (uint32_t j = 0; j < r->n_rot / 2; j++) {
            if (!isfinite(r->frequencies[j])) {
                return hri_error_set(
                    HR_ERR_INVALID,
                    "sequence options: rope of layer %u: frequency %u is not finite", i, j);
            }
        }
    }
    return HR_OK;
}

static hr_status_t options_check(const struct hr_sequence_options *o)
{
    if (o->struct_size != sizeof *o) {
        return hri_error_set(
            HR_ERR_VERSION,
            "sequence options: struct_size %zu where this library has %zu (use the _init function)",
            o->struct_size, sizeof *o);
    }
    if (o->n_layers == 0 || o->n_layers > HR_LAYERS_MAX) {
        return hri_error_set(HR_ERR_INVALID, "sequence options: n_layers is %u; 1 to %d",
                             o->n_layers, HR_LAYERS_MAX);
    }
    if (o->n_kv_heads == 0 || o->n_q_heads == 0 || o->n_q_heads > HR_HEADS_MAX ||
        o->n_q_heads % o->n_kv_heads != 0 || o->n_q_heads / o->n_kv_heads > HR_GROUP_MAX) {
        return hri_error_set(
            HR_ERR_INVALID,
            "sequence options: n_q_heads %u, n_kv_heads %u: the first must be a multiple of the "
            "second, at most %d of it and at most %d in all",
            o->n_q_heads, o->n_kv_heads, HR_GROUP_MAX, HR_HEADS_MAX);
    }
    hr_status_t status = dim_check("k_dim", o->k_dim);
    if (status == HR_OK) {
        status = dim_check("v_dim", o->v_dim);
    }
    if (status != HR_OK) {
        return status;
    }
    if (hr_dtype_bytes(o->dtype) == 0) {
        return hri_error_set(HR_ERR_DTYPE, "sequence options: dtype %d is none of f32, f16, bf16",
                             (int)o->dtype);
    }
    if (!isfinite(o->scale) || o->scale < 0 || !isfinite(o->soft_cap) || o->soft_cap < 0) {
        return hri_error_set(HR_ERR_INVALID,
                             "sequence options: scale %g, soft_cap %g: finite and not negative",
                             (double)o->scale, (double)o->soft_cap);
    }
    if (o->tokens_max == 0 || o->tokens_max > HR_TOKENS_MAX) {
        return hri_error_set(HR_ERR_INVALID, "sequence options: tokens_max is %u; 1 to %u",
                             o->tokens_max, HR_TOKENS_MAX);
    }
    if (!(o->moved > 0.0) || o->moved > 1.0) {
        return hri_error_set(
            HR_ERR_INVALID,
            "sequence options: moved is %g; it must be above 0 and at most 1 (100 %%)", o->moved);
    }
    if (!(o->tolerance >= 0.0) || o->tolerance >= 1.0) {
        return hri_error_set(
            HR_ERR_INVALID, "sequence options: tolerance is %g; 0 (none) or below 1", o->tolerance);
    }
    return rope_check(o);
}

static uint32_t min_u32(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

/* Everything that follows from the options alone. */
/* Only steps with sketches say what rows are worth. */
static bool shares(const hr_sequence_t *s)
{
    return param_or(&s->recipe, "share", 0) > 0 && param_or(&s->recipe, "sketch", 0) > 0;
}

static void shape_fill(hr_sequence_t *s, const struct hr_sequence_options *o)
{
    s->n_layers = o->n_layers;
    s->n_q = o->n_q_heads;
    s->n_kv = o->n_kv_heads;
    s->g = o->n_q_heads / o->n_kv_heads;
    s->dk = o->k_dim;
    s->dv = o->v_dim;
    s->dtype = o->dtype;
    s->row_bytes = (uint32_t)((o->k_dim + o->v_dim) * hr_dtype_bytes(o->dtype));
    s->scale = o->scale != 0.0f ? o->scale : 1.0f / sqrtf((float)o->k_dim);
    s->soft_cap = o->soft_cap;
    s->tokens_max = o->tokens_max;
    double draft = param_or(&s->recipe, "draft", 0);
    s->moved = draft > 0 ? draft : o->moved;
    s->moved_bytes = draft > 0 ? 0 : o->moved_bytes;
    if (s->moved_bytes > 0) {
        s->moved = fmin(1, (double)s->moved_bytes / ((double)s->tokens_max * s->row_bytes));
    }
    s->tolerance = o->tolerance;
    const struct hri_recipe *r = &s->recipe;
    bool blocks = r->selector->unit == HRI_UNIT_BLOCKS;
    bool all = r->selector->unit == HRI_UNIT_ALL;
    s->steps_on_gpu = s->runtime->gpu != NULL && blocks && hri_device_lacks(s) == NULL;
    s->n_sink = all ? 0 : (uint32_t)param_or(r, "sink", 4);
    s->n_window = all ? 0 : (uint32_t)param_or(r, "window", 64);
    s->segment = all ? 0 : (uint32_t)param_or(r, "segment", 8192);
    s->decode_segment = all ? 0 : (uint32_t)param_or(r, "decode_segment", 256);
    s->tail_max = s->n_window + s->decode_segment + 2 * HRI_LOG_ROWS;
    s->log_cell_bytes =
        (uint32_t)hri_round_up((uint64_t)HRI_LOG_ROWS * s->row_bytes, HRI_PAGE_BYTES);
    s->code_bytes = r->selector->codec == HRI_CODEC_I8 ? s->dk + s->dv : s->row_bytes;
    if (hri_index_rebuilds_keys(r)) { /* keys are on the device: blocks hold values alone */
        s->code_bytes = (uint32_t)(s->dv * hr_dtype_bytes(s->dtype));
    }
    uint64_t budget_rows =
        (uint64_t)ceil(s->moved * s->tokens_max * s->row_bytes / s->code_bytes) + 1;
    if (blocks) {
        s->block_rows_max = hri_index_block_rows_max(r, s->dk, s->dv);
        s->part_rows = hri_index_part_rows(r, s->dk, s->dv);
        s->parts = hri_index_parts(r, s->dk, s->dv);
        s->block_cell_bytes =
            (uint32_t)hri_round_up((uint64_t)s->part_rows * s->code_bytes, HRI_PAGE_BYTES);
        uint32_t segments = s->tokens_max / s->decode_segment + 2;
        s->blocks_max = hri_index_blocks_bound(r, s->dk, s->dv, s->tokens_max, segments);
        /* A device with memory of its own refines parts alone. */
        bool rows = hri_index_takes_rows(r) && !s->steps_on_gpu;
        /* Parts cost whole pages, so about three budgets' worth is more than a step can choose; blocks may be small. Where
         * everything is in host memory, rows are chosen and no parts. */
        uint64_t items =
            rows ? 3 * budget_rows / s->part_rows + 32 : 2 * budget_rows * 4 / s->part_rows + 32;
        double most = shares(s) ? HRI_SHARE_MOST : 1;
        items = rows ? items : (uint64_t)(most * (double)items);
        items = rows && s->runtime->file_bytes == 0 ? 1 : items;
        uint64_t whole = (uint64_t)s->blocks_max * s->parts;
        s->items_max = (uint32_t)(items < whole ? items : whole);
        s->rows_max = rows ? min_u32((uint32_t)(most * (double)budget_rows) + 1, s->tokens_max) : 0;
    } else if (r->selector->unit == HRI_UNIT_ROWS) {
        uint64_t rows = r->selector->shares_budget ? budget_rows * s->n_kv : budget_rows;
        s->items_max = rows < s->tokens_max ? (uint32_t)rows + 1 : s->tokens_max;
        s->blocks_max =
            s->tokens_max / hri_index_block_rows_max(r, s->dk, s->dv) + 1; /* sizes its ranking */
    }
}

static void layer_destroy(hr_sequence_t *s, struct hri_layer *l)
{
    struct hri_alloc *scratch = &s->runtime->alloc;
    for (uint32_t h = 0; l->heads != NULL && h < s->n_kv; h++) {
        hri_index_head_destroy(l->heads[h]);
    }
    bool others = l->shared != NULL && --*l->shared > 0;
    for (uint32_t h = 0; !others && l->places != NULL && h < s->n_kv; h++) {
        hri_free(scratch, l->places[h]);
    }
    for (uint32_t h = 0; !others && l->block_tokens != NULL && h < s->n_kv; h++) {
        hri_free(scratch, l->block_tokens[h].token);
        hri_free(scratch, l->block_tokens[h].first);
    }
    if (!others) {
        hri_free(scratch, l->shared);
    }
    hri_free(scratch, l->heads);
    hri_free(scratch, l->places);
    hri_free(scratch, l->block_tokens);
    hri_free(scratch, l->rope_frequencies);
    hri_free(scratch, l->early_q);
    hri_free(scratch, l->settled);
    hri_free(scratch, l->half.order);
    union {
        const float *in;
        float *out;
    } log_n = {.in = l->log_n};
    hri_free(scratch, log_n.out);
    hri_free(&s->runtime->device, l->sink);
    hri_tail_destroy(s, l);
    hri_lane_destroy(l->log_lane);
    hri_lane_destroy(l->block_lane);
}

static hr_status_t layer_copy_options(hr_sequence_t *s, struct hri_layer *l, uint32_t i,
                                      const struct hr_sequence_options *o)
{
    struct hri_alloc *scratch = &s->runtime->alloc;
    l->sliding = o->sliding_window != NULL ? o->sliding_window[i] : 0;
    if (o->rope != NULL && o->rope[i].layout != HR_ROPE_NONE) {
        size_t n = o->rope[i].n_rot / 2;
        l->rope_frequencies = hri_array(scratch, n, sizeof(float));
        if (l->rope_frequencies == NULL) {
            return hri_alloc_status();
        }
        memcpy(l->rope_frequencies, o->rope[i].frequencies, n * sizeof(float));
        l->rope = o->rope[i];
        l->rope.frequencies = l->rope_frequencies;
    }
    if (o->log_n != NULL) {
        float *log_n = hri_array(scratch, s->n_q, sizeof(float));
        if (log_n == NULL) {
            return hri_alloc_status();
        }
        memcpy(log_n, o->log_n + (size_t)i * s->n_q, s->n_q * sizeof(float));
        l->log_n = log_n;
    }
    enum hri_unit unit = s->recipe.selector->unit;
    uint32_t dense = (uint32_t)param_or(&s->recipe, "dense", 0);
    l->exact = unit == HRI_UNIT_ALL || l->sliding != 0 || i < dense;
    l->indexed = unit == HRI_UNIT_BLOCKS && !l->exact;
    l->adds_rows = hri_index_adds_rows(&s->recipe) && !l->exact;
    return HR_OK;
}

void hri_index_options_fill(const hr_sequence_t *s, const struct hri_layer *l,
                            struct hri_index_options *io)
{
    memset(io, 0, sizeof *io);
    io->recipe = s->recipe;
    io->g = s->g;
    io->k_dim = s->dk;
    io->v_dim = s->dv;
    io->scale = s->scale;
    io->soft_cap = s->soft_cap;
    io->dtype = s->dtype;
    io->rope = l->rope;
    io->horizon_tokens = s->tokens_max; /* from anywhere up to its end */
    io->positions_max = s->tokens_max;
    io->blocks_max = s->blocks_max;
    io->rows_max = s->tokens_max;
    io->n_layers = s->n_layers;
    io->n_heads = s->n_kv;
    io->n_sink = s->n_sink;
    io->rows_in_host = s->rows_max > 0 && s->runtime->file_bytes == 0;
    io->gate = -1.0f;
    io->gates = s->head_gates;
    io->kernels = s->runtime->kernels;
    io->device = &s->runtime->device;
    io->scratch = &s->runtime->alloc;
    io->seed = s->serial;
}

hr_status_t hri_heads_create(hr_sequence_t *s, struct hri_layer *l)
{
    struct hri_index_options io;
    hri_index_options_fill(s, l, &io);
    io.layer = (uint32_t)(l - s->layers);
    for (uint32_t h = 0; h < s->n_kv; h++) {
        io.head = h;
        io.gate = s->head_gates != NULL ? s->head_gates[io.layer * s->n_kv + h] : -1.0f;
        hr_status_t status = hri_index_head_create(&io, &l->heads[h]);
        if (status != HR_OK) {
            return status;
        }
    }
    return HR_OK;
}

hr_status_t hri_layer_index_reset(hr_sequence_t *s, struct hri_layer *l)
{
    l->half.n = 0;
    for (uint32_t h = 0; l->heads != NULL && h < s->n_kv; h++) {
        hri_index_head_destroy(l->heads[h]);
        l->heads[h] = NULL;
    }
    l->n_settled = 0;
    l->early_tokens = 0;
    if (l->block_lane != NULL) {
        (void)hri_lane_truncate(l->block_lane, 0);
    }
    return l->heads != NULL ? hri_heads_create(s, l) : HR_OK;
}

static hr_status_t layer_index_create(hr_sequence_t *s, struct hri_layer *l)
{
    struct hri_alloc *scratch = &s->runtime->alloc;
    l->heads = hri_calloc(scratch, s->n_kv, sizeof(struct hri_index_head *));
    l->places = hri_calloc(scratch, s->n_kv, sizeof(struct hri_block_at *));
    if (l->heads == NULL || l->places == NULL) {
        return hri_alloc_status();
    }
    if (s->recipe.selector->wants_early_q) {
        l->early_q = hri_aligned(scratch, 64, (size_t)s->n_q * s->dk * sizeof(float));
        if (l->early_q == NULL) {
            return hri_alloc_status();
        }
    }
    for (uint32_t h = 0; l->indexed && h < s->n_kv; h++) {
        l->places[h] =
            hri_array(scratch, (size_t)s->blocks_max * s->parts, sizeof(struct hri_block_at));
        if (l->places[h] == NULL) {
            return hri_alloc_status();
        }
    }
    return hri_heads_create(s, l);
}

static hr_status_t block_tokens_create(hr_sequence_t *s, struct hri_layer *l)
{
    struct hri_alloc *scratch = &s->runtime->alloc;
    l->block_tokens = hri_calloc(scratch, s->n_kv, sizeof *l->block_tokens);
    for (uint32_t h = 0; l->block_tokens != NULL && h < s->n_kv; h++) {
        struct hri_block_tokens *t = &l->block_tokens[h];
        t->token = hri_array(scratch, s->tokens_max, sizeof *t->token);
        t->first = hri_array(scratch, s->blocks_max, sizeof *t->first);
        if (t->token == NULL || t->first == NULL) {
            return hri_alloc_status();
        }
    }
    return l->block_tokens != NULL ? HR_OK : hri_alloc_status();
}

static hr_status_t layer_create(hr_sequence_t *s, uint32_t i, const struct hr_sequence_options *o)
{
    struct hri_layer *l = &s->layers[i];
    hr_status_t status = layer_copy_options(s, l, i, o);
    if (status != HR_OK) {
        return status;
    }
    if (s->n_sink > 0) {
        l->sink =
            hri_aligned_zero(&s->runtime->device, 64, (size_t)s->n_kv * s->n_sink * s->row_bytes);
    }
    l->tail =
        hri_aligned_zero(&s->runtime->device, 64, (size_t)s->n_kv * s->tail_max * s->row_bytes);
    if (l->tail == NULL || (s->n_sink > 0 && l->sink == NULL)) {
        return hri_alloc_status();
    }
    struct hri_lane_options lane = {
        .cell_bytes = s->log_cell_bytes,
        .cells_max = (s->tokens_max / HRI_LOG_ROWS + 1) * s->n_kv,
        .priority = HRI_LANE_LOG,
        .tag = s->serial << 32 | (uint64_t)i << 8,
    };
    status = hri_lane_create(s->runtime->store, &lane, &l->log_lane);
    if (status == HR_OK && l->indexed) {
        /* The worst packing puts one part in a cell. */
        lane = (struct hri_lane_options){
            .cell_bytes = s->block_cell_bytes,
            .cells_max = s->blocks_max * s->parts * s->n_kv,
            .priority = HRI_LANE_BLOCKS,
            .tag = s->serial << 32 | (uint64_t)i << 8 | 1,
        };
        status = hri_lane_create(s->runtime->store, &lane, &l->block_lane);
    }
    if (status == HR_OK && !l->exact && s->recipe.selector->unit != HRI_UNIT_NONE) {
        status = layer_index_create(s, l);
    }
    uint32_t least = min_u32(s->segment, s->decode_segment);
    if (status == HR_OK && !l->exact && least > 1) {
        l->settled_max = s->tokens_max / least + 2;
        l->settled = hri_array(&s->runtime->alloc, l->settled_max, sizeof *l->settled);
        status = l->settled != NULL ? HR_OK : hri_alloc_status();
    }
    if (status == HR_OK) {
        status = hri_half_create(s, l);
    }
    if (status == HR_OK && l->indexed && o->keep_tokens) {
        status = block_tokens_create(s, l);
    }
    return status;
}

/* One block of memory for everything a head's step needs, so that a step allocates nothing. */
static hr_status_t step_create(hr_sequence_t *s, struct hri_head_step *st, size_t select_bytes)
{
    struct hri_alloc *a = &s->runtime->alloc;
    uint32_t n = s->items_max > 0 ? s->items_max : 1;
    st->q = hri_aligned(a, 64, (size_t)s->g * s->dk * sizeof(float));
    st->part.m = hri_aligned(a, 64, s->g * sizeof(float));
    st->part.l = hri_aligned(a, 64, s->g * sizeof(float));
    st->part.o = hri_aligned(a, 64, (size_t)s->g * s->dv * sizeof(float));
    st->items = hri_array(a, n, sizeof *st->items);
    st->place = hri_array(a, (size_t)s->blocks_max * (s->parts > 0 ? s->parts : 1) + 1, 1);
    st->address = hri_array(a, n, sizeof *st->address);
    st->where = hri_array(a, n, sizeof *st->where);
    st->reads = hri_array(a, n, sizeof *st->reads);
    st->read_block = hri_array(a, n, sizeof *st->read_block);
    st->late = hri_array(a, n, sizeof *st->late);
    if (s->recipe.selector->attends_in_place) {
        st->far.m = hri_aligned(a, 64, s->g * sizeof(float));
        st->far.l = hri_aligned(a, 64, s->g * sizeof(float));
        st->far.o = hri_aligned(a, 64, (size_t)s->g * s->dv * sizeof(float));
        if (!st->far.m || !st->far.l || !st->far.o) {
            return hri_alloc_status();
        }
    }
    if (s->rows_max > 0) {
        st->rows = hri_array(a, s->rows_max, sizeof *st->rows);
        st->row_codes = hri_array(a, s->rows_max, sizeof *st->row_codes);
        if (st->rows == NULL || st->row_codes == NULL) {
            return hri_alloc_status();
        }
    }
    st->select_scratch = hri_aligned(a, 64, select_bytes > 0 ? select_bytes : 64);
    if (!st->q || !st->part.m || !st->part.l || !st->part.o || !st->items || !st->place ||
        !st->address || !st->where || !st->reads || !st->read_block || !st->late ||
        !st->select_scratch) {
        return hri_alloc_status();
    }
    return HR_OK;
}

static void step_destroy(hr_sequence_t *s, struct hri_head_step *st)
{
    struct hri_alloc *a = &s->runtime->alloc;
    hri_free(a, st->q);
    hri_free(a, st->part.m);
    hri_free(a, st->part.l);
    hri_free(a, st->part.o);
    hri_free(a, st->far.m);
    hri_free(a, st->far.l);
    hri_free(a, st->far.o);
    hri_free(a, st->items);
    hri_free(a, st->place);
    hri_free(a, st->address);
    hri_free(a, (void *)st->where);
    hri_free(a, st->reads);
    hri_free(a, st->read_block);
    hri_free(a, st->late);
    hri_free(a, st->rows);
    hri_free(a, (void *)st->row_codes);
    hri_free(a, st->select_scratch);
}

hr_status_t hri_steps_create(hr_sequence_t *s)
{
    struct hri_alloc *a = &s->runtime->alloc;
    s->steps = hri_calloc(a, s->n_kv, sizeof *s->steps);
    if (s->steps == NULL) {
        return hri_alloc_status();
    }
    struct hri_index_options io;
    struct hri_layer none = {0};
    hri_index_options_fill(s, &none, &io);
    size_t select_bytes = hri_index_step_scratch_bytes(&io);
    for (uint32_t h = 0; h < s->n_kv; h++) {
        hr_status_t status = step_create(s, &s->steps[h], select_bytes);
        if (status != HR_OK) {
            return status;
        }
    }
    if (shares(s)) {
        bool layers = param_or(&s->recipe, "share", 0) > 1;
        hr_status_t status = hri_share_create(&s->share, a, s->n_layers, s->n_kv, layers);
        if (status != HR_OK) {
            return status;
        }
    }
    s->whole = hri_calloc(a, s->n_kv, 1);
    s->ins = hri_calloc(a, s->n_kv, sizeof *s->ins);
    s->outs = hri_calloc(a, s->n_kv, sizeof *s->outs);
    if (s->whole == NULL || s->ins == NULL || s->outs == NULL) {
        return hri_alloc_status();
    }
    if (s->recipe.selector->unit == HRI_UNIT_ROWS) {
        s->row_buffer = hri_aligned(a, 64, (size_t)s->n_kv * s->items_max * s->row_bytes);
        if (s->row_buffer == NULL) {
            return hri_alloc_status();
        }
    }
    if (s->recipe.selector->needs_row_scores) {
        s->row_scores = hri_aligned(a, 64, (size_t)s->n_q * s->tokens_max * sizeof(float));
        if (s->row_scores == NULL) {
            return hri_alloc_status();
        }
    }
    return HR_OK;
}

/* Frames take what the budget leaves, up to FRAME_STEPS tokens' worth; one layer's fetch is the least that works. */
hr_status_t hri_frames_attach(hr_sequence_t *s)
{
    if (s->steps_on_gpu) {
        return hri_held_attach_steps(s);
    }
    struct hri_alloc *device = &s->runtime->device;
    uint32_t n_lanes = s->n_layers * s->n_kv;
    uint32_t *blocks_max = hri_array(&s->runtime->alloc, n_lanes, sizeof *blocks_max);
    if (blocks_max == NULL) {
        return hri_alloc_status();
    }
    for (uint32_t i = 0; i < n_lanes; i++) {
        blocks_max[i] = s->layers[i / s->n_kv].indexed ? s->blocks_max * s->parts : 0;
    }
    struct hri_frames_options fo = {
        .frame_bytes = (uint32_t)hri_round_up((uint64_t)s->part_rows * s->code_bytes, 64),
        .n_lanes = n_lanes,
        .blocks_max = blocks_max,
        .device = device,
        .store = s->runtime->store,
    };
    uint64_t live = device->live_bytes, cap = device->cap_bytes;
    uint64_t left = cap > live ? cap - live : 0;
    /* On a machine with a GPU these steps and their frames are the host's, whose working memory has no budget. */
    left = s->runtime->gpu != NULL ? UINT64_MAX : left;
    uint64_t fixed = hri_frames_bytes(&fo);
    fo.n_frames = 1024;
    uint64_t each = (hri_frames_bytes(&fo) - fixed) / 1024 + 1;
    uint64_t need = (uint64_t)s->n_kv * (s->items_max + 1);
    double want = FRAME_STEPS * s->moved * s->tokens_max * s->row_bytes * s->n_kv * s->n_layers /
                  fo.frame_bytes;
    uint64_t fit = left > fixed ? (left - fixed) / each : 0;
    hr_status_t status = HR_OK;
    if (fit < need) {
        status = hri_error_set(
            HR_ERR_BUDGET,
            "device tier: %" PRIu64 " bytes are not enough for this sequence; it needs at least "
            "%" PRIu64 " (windows and summaries %" PRIu64 ", frames for one step %" PRIu64 ")",
            device->cap_bytes, live + fixed + need * each, live, fixed + need * each);
    } else {
        uint64_t n = want < (double)need ? need : want > (double)fit ? fit : (uint64_t)want;
        uint64_t whole = (uint64_t)n_lanes * s->blocks_max * s->parts;
        fo.n_frames = (uint32_t)(n < whole ? n : whole);
        status = hri_frames_create(&fo, &s->frames);
    }
    hri_free(&s->runtime->alloc, blocks_max);
    return status;
}

hr_status_t hri_status_with_hint(const hr_sequence_t *s, hr_status_t status)
{
    if (status != HR_ERR_BUDGET || strstr(hr_last_error(), "it needs at least") != NULL ||
        strncmp(hr_last_error(), "device tier", 11) != 0) {
        return status;
    }
    struct hri_layer none = {0};
    struct hri_index_options io;
    hri_index_options_fill(s, &none, &io);
    uint64_t heads = (uint64_t)s->n_layers * s->n_kv;
    uint64_t near_bytes = heads * (s->n_sink + s->tail_max) * s->row_bytes;
    uint64_t summaries =
        s->recipe.selector->unit != HRI_UNIT_ALL ? heads * hri_index_device_bytes(&io) : 0;
    uint64_t frames = (uint64_t)s->n_kv * (s->items_max + 1) * s->part_rows * s->code_bytes;
    return hri_error_set(status,
                         "device tier: %" PRIu64
                         " bytes are not enough for this sequence; it needs at least about %" PRIu64
                         " (sink and window %" PRIu64 ", summaries %" PRIu64
                         ", frames for one step %" PRIu64 ")",
                         s->runtime->device.cap_bytes, near_bytes + summaries + frames, near_bytes,
                         summaries, frames);
}

static hr_status_t head_gates_copy(hr_sequence_t *s, const struct hr_sequence_options *o)
{
    size_t n = (size_t)o->n_layers * o->n_kv_heads;
    if (o->head_gates == NULL) {
        return HR_OK;
    }
    for (size_t i = 0; i < n; i++) {
        if (!(o->head_gates[i] >= 0.0f && o->head_gates[i] <= 1.0f)) {
            return hri_error_set(HR_ERR_INVALID,
                                 "sequence options: head_gates of layer %zu, kv-head %zu is %g; "
                                 "0 to 1",
                                 i / o->n_kv_heads, i % o->n_kv_heads, (double)o->head_gates[i]);
        }
    }
    float *gates = hri_array(&s->runtime->alloc, n, sizeof *gates);
    if (gates == NULL) {
        return hri_alloc_status();
    }
    memcpy(gates, o->head_gates, n * sizeof *gates);
    s->head_gates = gates;
    return HR_OK;
}

static hr_status_t create(hr_runtime_t *rt, const struct hr_sequence_options *o, const char *recipe,
                          hr_sequence_t **sequence_out)
{
    hr_sequence_t *s = hri_calloc(&rt->alloc, 1, sizeof *s);
    if (s == NULL) {
        return hri_alloc_status();
    }
    s->runtime = rt;
    s->serial = o->seed & 0xffffffffu;
    rt->n_sequences++;
    hr_status_t status = hri_recipe_parse(recipe, &s->recipe);
    int n = snprintf(s->recipe_text, sizeof s->recipe_text, "%s", recipe);
    if (status == HR_OK && n >= (int)sizeof s->recipe_text) {
        status = hri_error_set(HR_ERR_INVALID, "the recipe has %d bytes; at most %zu are possible",
                               n, sizeof s->recipe_text - 1);
    }
    if (status != HR_OK) {
        goto err;
    }
    shape_fill(s, o);
    if (rt->gpu != NULL) {
        hri_held_say_lacks(s);
    }
    status = head_gates_copy(s, o);
    if (status != HR_OK) {
        goto err;
    }
    if (s->log_cell_bytes > HRI_CELL_BYTES_MAX || s->block_cell_bytes > HRI_CELL_BYTES_MAX) {
        status = hri_error_set(HR_ERR_INVALID, "sequence options: rows of %u bytes are too large",
                               s->row_bytes);
        goto err;
    }
    s->layers = hri_calloc(&rt->alloc, s->n_layers, sizeof *s->layers);
    if (s->layers == NULL) {
        status = hri_alloc_status();
        goto err;
    }
    for (uint32_t i = 0; i < s->n_layers && status == HR_OK; i++) {
        status = layer_create(s, i, o);
    }
    if (status == HR_OK) {
        status = hri_steps_create(s);
    }
    if (status == HR_OK && s->recipe.selector->unit == HRI_UNIT_BLOCKS) {
        status = hri_frames_attach(s);
    }
    if (status == HR_OK) {
        status = hri_held_attach(s);
    }
    if (status != HR_OK) {
        status = hri_status_with_hint(s, status);
        goto err;
    }
    *sequence_out = s;
    return HR_OK;

err:
    hr_sequence_destroy(s);
    return status;
}

hr_status_t hr_sequence_create(hr_runtime_t *rt, const struct hr_sequence_options *o,
                               hr_sequence_t **sequence_out)
{
    if (rt == NULL || o == NULL || sequence_out == NULL) {
        return hri_error_set(
            HR_ERR_INVALID,
            "hr_sequence_create: no runtime, no options or no place for the sequence");
    }
    hr_status_t status = options_check(o);
    if (status != HR_OK) {
        return status;
    }
    const char *recipe = o->recipe != NULL ? o->recipe : "headrace";
    char text[sizeof(*sequence_out)->recipe_text];
    status = create(rt, o, recipe, sequence_out);
    for (uint32_t attempt = 1; attempt <= HRI_SMALLER_RECIPES && status == HR_ERR_BUDGET;
         attempt++) {
        if (strncmp(hr_last_error(), "device tier", 11) != 0) {
            break;
        }
        if (!hri_recipe_smaller(recipe, attempt, rt->gpu != NULL, text, sizeof text)) {
            continue;
        }
        hri_log_info(&rt->log,
                     "%" PRIu64 " bytes of device tier are too few for \"%s\": trying \"%s\"",
                     rt->device.cap_bytes, recipe, text);
        status = create(rt, o, text, sequence_out);
    }
    return status;
}

const char *hr_sequence_recipe(const hr_sequence_t *s)
{
    return s != NULL ? s->recipe_text : "";
}

void hr_sequence_cancel(hr_sequence_t *s)
{
    if (s != NULL) {
        __atomic_store_n(&s->cancel, 1, __ATOMIC_RELAXED);
    }
}

void hr_sequence_destroy(hr_sequence_t *s)
{
    if (s == NULL) {
        return;
    }
    struct hr_runtime *rt = s->runtime;
    hri_frames_destroy(s->frames);
    hri_device_detach(s);
    hri_held_detach(s);
    for (uint32_t h = 0; s->steps != NULL && h < s->n_kv; h++) {
        step_destroy(s, &s->steps[h]);
    }
    for (uint32_t i = 0; s->layers != NULL && i < s->n_layers; i++) {
        layer_destroy(s, &s->layers[i]);
    }
    hri_free(&rt->alloc, s->steps);
    hri_free(&rt->alloc, s->layers);
    hri_free(&rt->alloc, s->row_scores);
    if (hri_store_gave_up(rt->store)) { /* the kernel may still write to it */
        hri_lose(s->row_buffer);
    } else {
        hri_free(&rt->alloc, s->row_buffer);
    }
    hri_share_destroy(&s->share, &rt->alloc);
    hri_free(&rt->alloc, s->whole);
    hri_free(&rt->alloc, s->ins);
    hri_free(&rt->alloc, s->outs);
    union {
        const float *in;
        float *out;
    } gates = {.in = s->head_gates};
    hri_free(&rt->alloc, gates.out);
    hri_homes_leave(s);
    hri_free(&rt->alloc, s);
    rt->n_sequences--;
}

uint32_t hr_sequence_length(const hr_sequence_t *s, uint32_t layer)
{
    return s != NULL && layer < s->n_layers ? s->layers[layer].n_tokens : 0;
}

hr_status_t hr_sequence_stats_get(const hr_sequence_t *s, struct hr_sequence_stats *out)
{
    if (s == NULL || out == NULL) {
        return hri_error_set(HR_ERR_INVALID,
                             "hr_sequence_stats_get: no sequence or no place for the figures");
    }
    if (out->struct_size != sizeof *out) {
        return hri_error_set(HR_ERR_VERSION,
                             "hr_sequence_stats_get: struct_size %zu where this library has %zu",
                             out->struct_size, sizeof *out);
    }
    struct hr_sequence_stats st = {.struct_size = sizeof st};
    for (uint32_t i = 0; i < s->n_layers; i++) {
        const struct hri_layer *l = &s->layers[i];
        st.exact_bytes += (uint64_t)l->n_tokens * s->n_kv * s->row_bytes;
        st.window_bytes += (uint64_t)s->n_kv * (s->n_sink + s->tail_max) * s->row_bytes;
        if (!l->exact && l->body_end > s->n_sink) {
            st.body_rows += (uint64_t)(l->body_end - s->n_sink) * s->n_kv;
        }
        for (uint32_t h = 0; l->heads != NULL && h < s->n_kv; h++) {
            st.summary_bytes += hri_index_summary_bytes(l->heads[h]);
            st.sketch_bytes += hri_index_sketch_bytes(l->heads[h]);
            st.blocks += hri_index_blocks(l->heads[h]);
            st.host_index_bytes += hri_index_host_bytes(l->heads[h]);
        }
        uint64_t cells = (uint64_t)hri_lane_cells(l->log_lane) * s->log_cell_bytes;
        cells += l->block_lane != NULL
                     ? (uint64_t)hri_lane_cells(l->block_lane) * s->block_cell_bytes
                     : 0;
        *(s->runtime->file_bytes > 0 ? &st.file_bytes : &st.host_bytes) += cells;
    }
    st.body_bytes = st.body_rows * s->row_bytes;
    if (s->frames != NULL) {
        struct hri_frames_stats fs;
        hri_frames_stats(s->frames, &fs);
        st.frame_bytes =
            (uint64_t)fs.n_frames * hri_round_up((uint64_t)s->part_rows * s->code_bytes, 64);
    }
    if (s->part != NULL) {
        st.frame_bytes = (uint64_t)s->part->n_frames * s->part->frame_bytes * hri_device_layers(s);
    }
    st.device_row_bytes = hri_held_bytes(s);
    st.layers_on_gpu = s->part != NULL ? hri_device_layers(s) : 0;
    st.index_ns = s->index_ns;
    *out = st;
    return HR_OK;
}
