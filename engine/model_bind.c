/* From a GGUF file to a model: which tensors and keys an architecture has, and whether they fit
 * together. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/model.h"

#define NAME_BYTES 128
#define WIDTH_MAX  (1u << 20)

static const struct architecture {
    const char *name;
    hr_rope_layout_t rope_layout;
    int layer_norm; /* LayerNorm and GELU instead of RMSNorm and SwiGLU */
    int smear;      /* every embedding gets a share of the one before */
} architectures[] = {
    {"llama", HR_ROPE_INTERLEAVED, 0, 0},
    {"qwen2", HR_ROPE_HALF, 0, 0},
    {"headrace-tiny", HR_ROPE_HALF, 1, 1},
};
#define ARCHITECTURES (sizeof(architectures) / sizeof(architectures[0]))

/* What binding passes around. */
struct binding {
    struct hre_model *model;
    const hre_gguf_t *gguf;
    const struct architecture *arch;
    const char *file;
};

/* --------------------------------------------------------------------------------------- keys */

static const char *key_of(const struct binding *b, const char *suffix, char name[NAME_BYTES])
{
    snprintf(name, NAME_BYTES, "%s.%s", b->arch->name, suffix);
    return name;
}

static int has_key(const struct binding *b, const char *suffix)
{
    char name[NAME_BYTES];

    return hre_gguf_has(b->gguf, key_of(b, suffix, name));
}

/* A key that must be there is missing: the file is broken, not the question. */
static hr_status_t as_corrupt(hr_status_t status)
{
    return status == HR_ERR_NOTFOUND || status == HR_ERR_DTYPE ? HR_ERR_CORRUPT : status;
}

static hr_status_t get_u32(const struct binding *b, const char *suffix, uint32_t min, uint32_t max,
                           uint32_t *out)
{
    char name[NAME_BYTES];
    uint64_t value = 0;
    hr_status_t status = hre_gguf_get_u64(b->gguf, key_of(b, suffix, name), &value);

    if (status != HR_OK) {
        return as_corrupt(status);
    }
    if (value < min || value > max) {
        return hre_fail(HR_ERR_CORRUPT, "%s: '%s' is %llu; %u to %u was expected", b->file, name,
                        (unsigned long long)value, min, max);
    }
    *out = (uint32_t)value;
    return HR_OK;
}

static hr_status_t get_u32_or(const struct binding *b, const char *suffix, uint32_t min,
                              uint32_t max, uint32_t missing, uint32_t *out)
{
    if (!has_key(b, suffix)) {
        *out = missing;
        return HR_OK;
    }
    return get_u32(b, suffix, min, max, out);
}

/* A finite number above 0. */
static hr_status_t get_positive_or(const struct binding *b, const char *suffix, double missing,
                                   double *out)
{
    char name[NAME_BYTES];
    double value = missing;

    if (has_key(b, suffix)) {
        hr_status_t status = hre_gguf_get_f64(b->gguf, key_of(b, suffix, name), &value);

        if (status != HR_OK) {
            return as_corrupt(status);
        }
    }
    if (!(value > 0.0 && value < 1e30)) {
        return hre_fail(HR_ERR_CORRUPT, "%s: '%s' is %g; a positive number was expected", b->file,
                        key_of(b, suffix, name), value);
    }
    *out = value;
    return HR_OK;
}

/* One value for every layer, or an array with one for each. */
static hr_status_t get_per_layer(const struct binding *b, const char *suffix, double missing,
                                 double *out)
{
    uint32_t n = b->model->info.n_layers;
    char name[NAME_BYTES];
    struct hre_gguf_array array;
    double value = missing;

    key_of(b, suffix, name);
    if (hre_gguf_has(b->gguf, name) && hre_gguf_get_array(b->gguf, name, &array) == HR_OK) {
        if (array.count != n || array.type == HRE_GGUF_STRING || array.type == HRE_GGUF_ARRAY) {
            return hre_fail(HR_ERR_CORRUPT, "%s: '%s' must have a number for each of %u layers",
                            b->file, name, n);
        }
        for (uint32_t i = 0; i < n; i++) {
            out[i] = hre_gguf_array_f64(&array, i);
        }
        return HR_OK;
    }
    if (hre_gguf_has(b->gguf, name)) {
        hr_status_t status = hre_gguf_get_f64(b->gguf, name, &value);

        if (status != HR_OK) {
            return as_corrupt(status);
        }
    }
    for (uint32_t i = 0; i < n; i++) {
        out[i] = value;
    }
    return HR_OK;
}

static char *copy_string(struct hre_gguf_string s)
{
    char *copy = calloc(s.length + 1, 1);

    if (copy && s.length) {
        memcpy(copy, s.data, s.length);
    }
    return copy;
}

/* ------------------------------------------------------------------------------------ tensors */

static const struct hre_gguf_tensor *find_tensor(const struct binding *b, int layer,
                                                 const char *suffix, char name[NAME_BYTES])
{
    if (layer >= 0) {
        snprintf(name, NAME_BYTES, "blk.%d.%s", layer, suffix);
    } else {
        snprintf(name, NAME_BYTES, "%s", suffix);
    }
    return hre_gguf_tensor_find(b->gguf, name);
}

/* Floats, n of them; NULL where an optional tensor is missing. */
static hr_status_t bind_vector(const struct binding *b, int layer, const char *suffix, uint32_t n,
                               int optional, const float **out)
{
    char name[NAME_BYTES];
    const struct hre_gguf_tensor *t = find_tensor(b, layer, suffix, name);

    *out = NULL;
    if (!t) {
        return optional ? HR_OK
                        : hre_fail(HR_ERR_CORRUPT, "%s: tensor '%s' is missing", b->file, name);
    }
    if (t->type != HRE_WEIGHT_F32) {
        return hre_fail(HR_ERR_UNSUPPORTED, "%s: tensor '%s' is %s; F32 was expected", b->file,
                        name, hre_weight_type_name(t->type));
    }
    if (t->n_elements != n || t->dims[0] != n) {
        return hre_fail(HR_ERR_CORRUPT, "%s: tensor '%s' has %llu elements; %u were expected",
                        b->file, name, (unsigned long long)t->n_elements, n);
    }
    *out = t->data;
    return HR_OK;
}

static hr_status_t bind_matrix(const struct binding *b, int layer, const char *suffix,
                               uint32_t cols, uint32_t rows, struct hre_weight *out)
{
    char name[NAME_BYTES];
    const struct hre_gguf_tensor *t = find_tensor(b, layer, suffix, name);

    if (!t) {
        return hre_fail(HR_ERR_CORRUPT, "%s: tensor '%s' is missing", b->file, name);
    }
    if (t->type >= HRE_WEIGHT_TYPES || !b->model->ops->dot[t->type]) {
        return hre_fail(
            HR_ERR_UNSUPPORTED,
            "%s: tensor '%s' is %s; F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q4_K and Q6_K are supported",
            b->file, name, hre_weight_type_name(t->type));
    }
    if (t->dims[0] != cols || t->dims[1] != rows || t->n_elements != (uint64_t)cols * rows) {
        return hre_fail(HR_ERR_CORRUPT, "%s: tensor '%s' is %llu x %llu; %u x %u was expected",
                        b->file, name, (unsigned long long)t->dims[0],
                        (unsigned long long)t->dims[1], cols, rows);
    }
    *out = (struct hre_weight){.data = t->data,
                               .type = t->type,
                               .rows = rows,
                               .cols = cols,
                               .row_bytes = (size_t)(t->n_bytes / rows)};
    return HR_OK;
}

/* A matrix and the bias it may have. */
static hr_status_t bind_linear(const struct binding *b, int layer, const char *stem, uint32_t cols,
                               uint32_t rows, struct hre_weight *out)
{
    char name[NAME_BYTES];

    snprintf(name, sizeof(name), "%s.weight", stem);
    hr_status_t status = bind_matrix(b, layer, name, cols, rows, out);
    if (status != HR_OK) {
        return status;
    }
    snprintf(name, sizeof(name), "%s.bias", stem);
    return bind_vector(b, layer, name, rows, 1, &out->bias);
}

static hr_status_t bind_norm(const struct binding *b, int layer, const char *stem,
                             struct hre_norm *out)
{
    char name[NAME_BYTES];

    snprintf(name, sizeof(name), "%s.weight", stem);
    hr_status_t status = bind_vector(b, layer, name, b->model->info.width, 0, &out->weight);
    if (status != HR_OK || !b->arch->layer_norm) {
        return status;
    }
    snprintf(name, sizeof(name), "%s.bias", stem);
    return bind_vector(b, layer, name, b->model->info.width, 0, &out->bias);
}

static hr_status_t bind_layer(const struct binding *b, int i)
{
    const struct hre_model_info *info = &b->model->info;
    struct hre_layer *layer = &b->model->layers[i];
    uint32_t q_rows = info->n_q_heads * info->k_dim, o_cols = info->n_q_heads * info->v_dim;
    const struct {
        const char *stem;
        uint32_t cols, rows;
        struct hre_weight *weight;
    } weights[] = {
        {"attn_q", info->width, q_rows, &layer->q},
        {"attn_k", info->width, info->n_kv_heads * info->k_dim, &layer->k},
        {"attn_v", info->width, info->n_kv_heads * info->v_dim, &layer->v},
        {"attn_output", o_cols, info->width, &layer->output},
        {"ffn_up", info->width, info->ffn_width, &layer->up},
        {"ffn_down", info->ffn_width, info->width, &layer->down},
        {"ffn_gate", info->width, info->ffn_width, &layer->gate}, /* last: the GELU kind has none */
    };
    size_t n = sizeof(weights) / sizeof(weights[0]) - (b->arch->layer_norm ? 1 : 0);
    hr_status_t status = bind_norm(b, i, "attn_norm", &layer->attn_norm);

    if (status == HR_OK) {
        status = bind_norm(b, i, "ffn_norm", &layer->ffn_norm);
    }
    for (size_t w = 0; w < n && status == HR_OK; w++) {
        status =
            bind_linear(b, i, weights[w].stem, weights[w].cols, weights[w].rows, weights[w].weight);
    }
    return status;
}

/* ----------------------------------------------------------------------------------- geometry */

static hr_status_t find_architecture(struct binding *b)
{
    struct hre_gguf_string name;
    hr_status_t status = hre_gguf_get_string(b->gguf, "general.architecture", &name);

    if (status != HR_OK) {
        return as_corrupt(status);
    }
    for (size_t i = 0; i < ARCHITECTURES; i++) {
        if (name.length == strlen(architectures[i].name) &&
            memcmp(name.data, architectures[i].name, name.length) == 0) {
            b->arch = &architectures[i];
        }
    }
    if (!b->arch) {
        return hre_fail(
            HR_ERR_UNSUPPORTED,
            "%s: architecture '%.*s' is not supported; llama, qwen2 and headrace-tiny are", b->file,
            (int)(name.length < 64 ? name.length : 64), name.data);
    }
    struct hre_gguf_string title = {"", 0};
    if (hre_gguf_has(b->gguf, "general.name")) {
        (void)hre_gguf_get_string(b->gguf, "general.name", &title);
    }
    b->model->architecture = copy_string(name);
    b->model->name = copy_string(title);
    if (!b->model->architecture || !b->model->name) {
        return hre_fail(HR_ERR_NOMEM, "%s: no memory", b->file);
    }
    b->model->info.architecture = b->model->architecture;
    b->model->info.name = b->model->name;
    return HR_OK;
}

static hr_status_t read_heads(struct binding *b)
{
    struct hre_model_info *info = &b->model->info;
    hr_status_t status = get_u32(b, "attention.head_count", 1, HR_HEADS_MAX, &info->n_q_heads);

    if (status == HR_OK) {
        status = get_u32_or(b, "attention.head_count_kv", 1, HR_HEADS_MAX, info->n_q_heads,
                            &info->n_kv_heads);
    }
    if (status == HR_OK && info->n_q_heads % info->n_kv_heads) {
        status = hre_fail(HR_ERR_CORRUPT, "%s: %u query heads do not divide among %u kv-heads",
                          b->file, info->n_q_heads, info->n_kv_heads);
    }
    uint32_t dim = info->n_q_heads ? info->width / info->n_q_heads : 0;
    if (status == HR_OK) {
        status = get_u32_or(b, "attention.key_length", HR_HEAD_DIM_MIN, HR_HEAD_DIM_MAX, dim,
                            &info->k_dim);
    }
    if (status == HR_OK) {
        status = get_u32_or(b, "attention.value_length", HR_HEAD_DIM_MIN, HR_HEAD_DIM_MAX, dim,
                            &info->v_dim);
    }
    if (status == HR_OK && (info->k_dim < HR_HEAD_DIM_MIN || info->k_dim > HR_HEAD_DIM_MAX)) {
        status = hre_fail(HR_ERR_UNSUPPORTED, "%s: heads of %u dimensions; %d to %d are supported",
                          b->file, info->k_dim, HR_HEAD_DIM_MIN, HR_HEAD_DIM_MAX);
    }
    return status;
}

static hr_status_t read_geometry(struct binding *b)
{
    struct hre_model_info *info = &b->model->info;
    uint32_t experts = 0;
    double eps = 0.0;
    hr_status_t status = get_u32(b, "block_count", 1, HR_LAYERS_MAX, &info->n_layers);

    if (status == HR_OK) {
        status = get_u32(b, "embedding_length", 1, WIDTH_MAX, &info->width);
    }
    if (status == HR_OK) {
        status = get_u32(b, "feed_forward_length", 1, WIDTH_MAX, &info->ffn_width);
    }
    if (status == HR_OK) {
        status = get_u32(b, "context_length", 1, HR_TOKENS_MAX, &info->context_length);
    }
    if (status == HR_OK) {
        status = get_u32_or(b, "expert_count", 0, UINT32_MAX, 0, &experts);
    }
    if (status == HR_OK && experts) {
        status = hre_fail(HR_ERR_UNSUPPORTED, "%s: mixtures of experts are not supported", b->file);
    }
    if (status == HR_OK) {
        status = get_positive_or(b,
                                 b->arch->layer_norm ? "attention.layer_norm_epsilon"
                                                     : "attention.layer_norm_rms_epsilon",
                                 1e-5, &eps);
    }
    b->model->norm_eps = (float)eps;
    return status == HR_OK ? read_heads(b) : status;
}

/* --------------------------------------------------------------------------------------- rope */

static hr_status_t read_scaling(struct binding *b, struct hre_rope_scale *scale)
{
    struct hre_model_info *info = &b->model->info;
    struct hre_gguf_string type = {"none", 4};
    char name[NAME_BYTES];
    hr_status_t status = HR_OK;

    *scale = (struct hre_rope_scale){.factor = 1.0, .attention_factor = 1.0};
    info->rope_scaling = "none";
    if (has_key(b, "rope.scaling.type")) {
        status =
            as_corrupt(hre_gguf_get_string(b->gguf, key_of(b, "rope.scaling.type", name), &type));
    } else if (has_key(b, "rope.scale_linear")) {
        type = (struct hre_gguf_string){"linear", 6};
    }
    if (status != HR_OK) {
        return status;
    }
    const char *factor =
        has_key(b, "rope.scale_linear") ? "rope.scale_linear" : "rope.scaling.factor";
    if (type.length == 6 && memcmp(type.data, "linear", 6) == 0) {
        scale->type = HRE_ROPE_SCALING_LINEAR;
        info->rope_scaling = "linear";
    } else if (type.length == 4 && memcmp(type.data, "yarn", 4) == 0) {
        scale->type = HRE_ROPE_SCALING_YARN;
        info->rope_scaling = "yarn";
    } else if (type.length != 4 || memcmp(type.data, "none", 4) != 0) {
        return hre_fail(
            HR_ERR_UNSUPPORTED,
            "%s: RoPE scaling '%.*s' is not supported; none, linear, yarn and llama3 are", b->file,
            (int)(type.length < 64 ? type.length : 64), type.data);
    }
    status = get_positive_or(b, factor, 1.0, &scale->factor);
    if (status == HR_OK) {
        status = get_positive_or(b, "rope.scaling.original_context_length", info->context_length,
                                 &scale->original_context);
    }
    if (status == HR_OK) {
        status = get_positive_or(b, "rope.scaling.attn_factor", 1.0, &scale->attention_factor);
    }
    if (status == HR_OK) {
        status = get_positive_or(b, "rope.scaling.yarn_beta_fast", 32.0, &scale->beta_fast);
    }
    return status == HR_OK
               ? get_positive_or(b, "rope.scaling.yarn_beta_slow", 1.0, &scale->beta_slow)
               : status;
}

/* Divisors that the converter worked out for Llama 3. */
static hr_status_t read_divisors(struct binding *b, struct hre_rope_scale *scale)
{
    uint32_t n = b->model->info.n_rot / 2;
    hr_status_t status = bind_vector(b, -1, "rope_freqs.weight", n, 1, &scale->divisors);

    for (uint32_t i = 0; status == HR_OK && scale->divisors && i < n; i++) {
        if (!(scale->divisors[i] > 0.0f)) {
            return hre_fail(HR_ERR_CORRUPT, "%s: tensor 'rope_freqs.weight' has %g at %u", b->file,
                            (double)scale->divisors[i], i);
        }
    }
    if (status == HR_OK && scale->divisors) {
        b->model->info.rope_scaling = "llama3";
    }
    return status;
}

/* A table for each distinct base, and which layer uses which. */
static hr_status_t build_ropes(struct binding *b, const struct hre_rope_scale *scale,
                               const double *bases)
{
    struct hre_model *model = b->model;

    for (uint32_t i = 0; i < model->info.n_layers; i++) {
        uint32_t r = 0;

        if (!(bases[i] > 1.0 && bases[i] < 1e15)) {
            return hre_fail(HR_ERR_CORRUPT, "%s: RoPE base %g of layer %u", b->file, bases[i], i);
        }
        while (r < model->n_ropes && model->ropes[r].base != bases[i]) {
            r++;
        }
        if (r == model->n_ropes) {
            hr_status_t status =
                hre_rope_table_init(&model->ropes[r], model->info.n_rot, bases[i], scale);

            if (status != HR_OK) {
                return status;
            }
            model->n_ropes++;
        }
        model->layers[i].rope = r;
        model->rope_bases[i] = (float)bases[i];
        model->library_ropes[i] = (struct hr_rope){.layout = b->arch->rope_layout,
                                                   .n_rot = model->info.n_rot,
                                                   .frequencies = model->ropes[r].rounded};
    }
    return HR_OK;
}

static hr_status_t read_rope(struct binding *b, double *per_layer)
{
    struct hre_model_info *info = &b->model->info;
    struct hre_rope_scale scale;
    hr_status_t status =
        get_u32_or(b, "rope.dimension_count", 2, info->k_dim, info->k_dim, &info->n_rot);

    if (status == HR_OK && info->n_rot % 2) {
        status = hre_fail(HR_ERR_CORRUPT, "%s: an odd number (%u) of rotated dimensions", b->file,
                          info->n_rot);
    }
    info->rope_layout = b->arch->rope_layout;
    if (status == HR_OK) {
        status = read_scaling(b, &scale);
    }
    if (status == HR_OK) {
        status = read_divisors(b, &scale);
    }
    if (status == HR_OK) {
        status = get_per_layer(b, "rope.freq_base", 10000.0, per_layer);
    }
    return status == HR_OK ? build_ropes(b, &scale, per_layer) : status;
}

static hr_status_t read_windows(struct binding *b, double *per_layer)
{
    hr_status_t status = get_per_layer(b, "attention.sliding_window", 0.0, per_layer);

    for (uint32_t i = 0; status == HR_OK && i < b->model->info.n_layers; i++) {
        if (!(per_layer[i] >= 0.0 && per_layer[i] <= HR_TOKENS_MAX)) {
            return hre_fail(HR_ERR_CORRUPT, "%s: sliding window %g of layer %u", b->file,
                            per_layer[i], i);
        }
        b->model->windows[i] = (uint32_t)per_layer[i];
        b->model->any_window |= b->model->windows[i] != 0;
    }
    return status;
}

/* Layers without the tensor keep zeros, which leave their logits alone. */
static hr_status_t read_log_n(struct binding *b)
{
    struct hre_model *model = b->model;
    uint32_t heads = model->info.n_q_heads;

    for (uint32_t i = 0; i < model->info.n_layers; i++) {
        const float *w;
        hr_status_t status = bind_vector(b, (int)i, "attn_logn.weight", heads, 1, &w);

        if (status != HR_OK) {
            return status;
        }
        if (w && !model->log_n) {
            model->log_n = calloc((size_t)model->info.n_layers * heads, sizeof(float));
            if (!model->log_n) {
                return hre_fail(HR_ERR_NOMEM, "%s: no memory", b->file);
            }
        }
        if (w) {
            memcpy(model->log_n + (size_t)i * heads, w, heads * sizeof(float));
        }
    }
    return HR_OK;
}

/* --------------------------------------------------------------------------------------- bind */

static hr_status_t bind_ends(struct binding *b)
{
    struct hre_model *model = b->model;
    const struct hre_gguf_tensor *t = hre_gguf_tensor_find(b->gguf, "token_embd.weight");
    uint32_t width = model->info.width;

    model->info.vocab = t && t->dims[1] < (1u << 28) ? (uint32_t)t->dims[1] : 0;
    hr_status_t status =
        bind_matrix(b, -1, "token_embd.weight", width, model->info.vocab, &model->embedding);
    if (status == HR_OK) {
        status = bind_norm(b, -1, "output_norm", &model->output_norm);
    }
    if (status == HR_OK && b->arch->smear) {
        status = bind_vector(b, -1, "smear.weight", width, 0, &model->smear);
    }
    if (status != HR_OK) {
        return status;
    }
    model->output = model->embedding;
    if (hre_gguf_tensor_find(b->gguf, "output.weight")) {
        status = bind_matrix(b, -1, "output.weight", width, model->info.vocab, &model->output);
    }
    return status;
}

static hr_status_t allocate_layers(struct binding *b)
{
    struct hre_model *model = b->model;
    uint32_t n = model->info.n_layers;

    model->layers = calloc(n, sizeof(*model->layers));
    model->ropes = calloc(n, sizeof(*model->ropes));
    model->rope_bases = calloc(n, sizeof(*model->rope_bases));
    model->windows = calloc(n, sizeof(*model->windows));
    model->library_ropes = calloc(n, sizeof(*model->library_ropes));
    if (!model->layers || !model->ropes || !model->rope_bases || !model->windows ||
        !model->library_ropes) {
        return hre_fail(HR_ERR_NOMEM, "%s: no memory for %u layers", b->file, n);
    }
    model->info.rope_bases = model->rope_bases;
    model->info.sliding_windows = model->windows;
    model->info.owned_bytes =
        n * (sizeof(*model->layers) + sizeof(*model->ropes) + sizeof(*model->library_ropes));
    return HR_OK;
}

static void count_weights(struct binding *b)
{
    struct hre_model_info *info = &b->model->info;

    info->file_bytes = hre_gguf_file_bytes(b->gguf);
    for (uint64_t i = 0; i < hre_gguf_tensor_count(b->gguf); i++) {
        const struct hre_gguf_tensor *t = hre_gguf_tensor_at(b->gguf, i);

        info->weight_bytes += t->n_bytes;
        info->n_parameters += t->n_elements;
    }
}

static hr_status_t bind_layers(struct binding *b)
{
    double *per_layer = calloc(b->model->info.n_layers, sizeof(*per_layer));

    if (!per_layer) {
        return hre_fail(HR_ERR_NOMEM, "%s: no memory", b->file);
    }
    hr_status_t status = read_rope(b, per_layer);
    if (status == HR_OK) {
        status = read_windows(b, per_layer);
    }
    free(per_layer);
    if (status == HR_OK) {
        status = read_log_n(b);
    }
    for (uint32_t i = 0; i < b->model->info.n_layers && status == HR_OK; i++) {
        status = bind_layer(b, (int)i);
    }
    return status;
}

hr_status_t hre_model_bind(struct hre_model *model)
{
    struct binding b = {.model = model, .gguf = model->gguf, .file = hre_gguf_name(model->gguf)};
    hr_status_t status = find_architecture(&b);

    if (status == HR_OK) {
        status = read_geometry(&b);
    }
    if (status == HR_OK) {
        status = allocate_layers(&b);
    }
    if (status == HR_OK) {
        status = bind_ends(&b);
    }
    if (status == HR_OK) {
        status = bind_layers(&b);
    }
    count_weights(&b);
    return status;
}
