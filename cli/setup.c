#include "cli/setup.h"

#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include <headrace/parse.h>

#include "cli/json_file.h"
#include "cli/out.h"
#include "cli/text_file.h"

int cli_fail_engine(const char *what, hr_status_t status)
{
    const char *text = hre_last_error();
    return cli_fail("%s: %s", what, *text ? text : hr_status_text(status));
}

/* ---------------------------------------------------------------------------------------- model */

int cli_model_open(const char *path, const struct cli_place *place, struct cli_model *model_out)
{
    struct cli_model model = {0};
    struct hre_model_options options;
    hre_model_options_init(&options);
    options.n_threads = (uint32_t)place->threads;
    options.cpu_level = place->cpu;
    options.device = place->device;
    options.log = cli_place_log;
    hr_status_t status = hre_model_open(path, &options, &model.model);
    if (status != HR_OK)
        return cli_fail_engine("model", status);
    status = hre_tokenizer_from_gguf(hre_model_gguf(model.model), &model.tokenizer);
    if (status != HR_OK) {
        hre_model_close(model.model);
        return cli_fail_engine("tokenizer", status);
    }
    model.info = hre_model_info(model.model);
    *model_out = model;
    return 0;
}

void cli_model_close(struct cli_model *model)
{
    hre_tokenizer_destroy(model->tokenizer);
    hre_model_close(model->model);
    memset(model, 0, sizeof *model);
}

void cli_model_print(FILE *file, const struct cli_model *model)
{
    const struct hre_model_info *info = model->info;
    char bytes[32];
    fprintf(
        file,
        "%s%s%s, %.*f M parameters in %s; %u layers, %u query and %u kv heads of %u, context %u\n",
        info->name, *info->name ? ": " : "", info->architecture,
        info->n_parameters < 10000000 ? 2 : 0, (double)info->n_parameters * 1e-6,
        hr_format_bytes(info->weight_bytes, bytes, sizeof bytes), info->n_layers, info->n_q_heads,
        info->n_kv_heads, info->k_dim, info->context_length);
    if (info->device)
        fprintf(file, "%-10s %s: weights %s in bfloat16, scratch %s; prompts by %s\n", "device",
                info->device, hr_format_bytes(info->device_weight_bytes, bytes, sizeof bytes),
                hr_format_bytes(info->device_scratch_bytes, (char[32]){0}, 32),
                info->device_blas ? info->device_blas : "own kernels");
}

cJSON *cli_model_json(const struct cli_model *model)
{
    const struct hre_model_info *info = model->info;
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "name", info->name);
    cJSON_AddStringToObject(json, "architecture", info->architecture);
    cli_json_u64(json, "n_layers", info->n_layers);
    cli_json_u64(json, "n_q_heads", info->n_q_heads);
    cli_json_u64(json, "n_kv_heads", info->n_kv_heads);
    cli_json_u64(json, "k_dim", info->k_dim);
    cli_json_u64(json, "v_dim", info->v_dim);
    cli_json_u64(json, "vocab", info->vocab);
    cli_json_u64(json, "context_length", info->context_length);
    cli_json_u64(json, "n_parameters", info->n_parameters);
    cli_json_u64(json, "weight_bytes", info->weight_bytes);
    cli_json_u64(json, "owned_bytes", info->owned_bytes);
    cli_json_u64(json, "n_threads", info->n_threads);
    cJSON_AddStringToObject(json, "cpu_level", info->cpu_level);
    if (info->device) {
        cJSON *device = cJSON_AddObjectToObject(json, "device");
        cJSON_AddStringToObject(device, "name", info->device);
        cli_json_u64(device, "weight_bytes", info->device_weight_bytes);
        cli_json_u64(device, "scratch_bytes", info->device_scratch_bytes);
        cJSON_AddStringToObject(device, "products", info->device_blas ? info->device_blas : "own");
    }
    return json;
}

/* -------------------------------------------------------------------------------------- budgets */

double cli_budget_bytes(double budget, uint64_t body_bytes, uint32_t row_bytes)
{
    return budget < 0 ? -budget * row_bytes : budget > 1 ? budget : budget * (double)body_bytes;
}

void cli_budget_apply(double budget, struct hr_sequence_options *options)
{
    size_t row_bytes = (options->k_dim + options->v_dim) * hr_dtype_bytes(options->dtype);
    if (budget > 0 && budget <= 1)
        options->moved = budget;
    else
        options->moved_bytes = (uint64_t)cli_budget_bytes(budget, 0, (uint32_t)row_bytes);
}

double cli_budget_share(double budget)
{
    return budget > 0 && budget <= 1 ? budget : NAN;
}

char *cli_format_budget(double budget, char *text, size_t text_bytes)
{
    if (budget < 0)
        snprintf(text, text_bytes, "%.0f tokens", -budget);
    else if (budget > 1)
        hr_format_bytes((uint64_t)budget, text, text_bytes);
    else
        cli_format_share(budget, text, text_bytes);
    return text;
}

/* --------------------------------------------------------------------------------------- caches */

static hr_dtype_t dtype_of(const char *name)
{
    return strcmp(name, "f32") == 0   ? HR_DTYPE_F32
           : strcmp(name, "f16") == 0 ? HR_DTYPE_F16
                                      : HR_DTYPE_BF16;
}

uint64_t cli_exact_bytes(const struct cli_model *model, const char *dtype, uint64_t n_tokens)
{
    const struct hre_model_info *info = model->info;
    uint64_t row_bytes = (uint64_t)(info->k_dim + info->v_dim) * hr_dtype_bytes(dtype_of(dtype));
    return n_tokens * info->n_layers * info->n_kv_heads * row_bytes;
}

size_t cli_caches_per_pass(const struct cli_model *model, const struct cli_place *place,
                           const char *dtype, uint64_t n_tokens, uint64_t memory_bytes)
{
    uint64_t dense_bytes = cli_exact_bytes(model, dtype, n_tokens);
    uint64_t most_bytes =
        2 * dense_bytes + (32u << 20); /* exact rows, blocks, summaries and windows */
    uint64_t cache_bytes = cli_place_memory_bytes(place);
    cache_bytes = cache_bytes < most_bytes ? cache_bytes : most_bytes;
    uint64_t left = memory_bytes > dense_bytes ? memory_bytes - dense_bytes : 0;
    return left / cache_bytes > 0 ? (size_t)(left / cache_bytes) : 1;
}

static int open_cache(const struct cli_model *model,
                      const struct hr_runtime_options *runtime_options,
                      const struct cli_recipe *recipe, uint32_t tokens_max, const char *saved,
                      struct cli_cache *cache_out)
{
    struct cli_cache cache = {0};
    uint64_t id[4];
    struct hr_sequence_options options;
    struct hr_runtime_options with_threads = *runtime_options;
    hre_model_runtime_options(model->model, &with_threads);
    hr_status_t status = hr_runtime_create(&with_threads, &cache.runtime);
    if (status != HR_OK)
        return cli_fail_status("cache", status);
    hr_sequence_options_init(&options);
    hre_model_sequence_options(model->model, &options);
    options.recipe = recipe->name;
    options.tolerance = recipe->tolerance;
    options.dtype = dtype_of(recipe->dtype);
    cli_budget_apply(recipe->moved, &options);
    options.seed = recipe->seed;
    options.head_gates = recipe->head_gates;
    options.keep_tokens = recipe->keep_tokens;
    options.tokens_max = tokens_max;
    if (saved) {
        cli_model_id(model, id);
        status = hr_sequence_open(cache.runtime, saved, &options, id, &cache.sequence);
    } else {
        status = hr_sequence_create(cache.runtime, &options, &cache.sequence);
    }
    if (status != HR_OK) {
        int code = cli_fail_status(saved ? "open" : "cache", status);
        hr_runtime_destroy(cache.runtime);
        return code;
    }
    if (recipe->name && strcmp(hr_sequence_recipe(cache.sequence), recipe->name) != 0)
        cli_note("the device tier is too small for %s; going on with %s", recipe->name,
                 hr_sequence_recipe(cache.sequence));
    *cache_out = cache;
    return 0;
}

int cli_cache_open(const struct cli_model *model, const struct cli_place *place,
                   const struct cli_recipe *recipe, uint32_t tokens_max,
                   struct cli_cache *cache_out)
{
    struct hr_runtime_options options = cli_place_runtime_options(place);
    return open_cache(model, &options, recipe, tokens_max, NULL, cache_out);
}

int cli_cache_open_saved(const struct cli_model *model, const struct cli_place *place,
                         const struct cli_recipe *recipe, uint32_t tokens_max, const char *dir,
                         struct cli_cache *cache_out)
{
    struct hr_runtime_options options = cli_place_runtime_options(place);
    return open_cache(model, &options, recipe, tokens_max, dir, cache_out);
}

static uint64_t fnv1a(uint64_t hash, const void *data, size_t bytes)
{
    const unsigned char *at = data;
    for (size_t i = 0; i < bytes; i++)
        hash = (hash ^ at[i]) * 0x100000001b3u;
    return hash;
}

void cli_model_id(const struct cli_model *model, uint64_t id_out[4])
{
    const uint64_t begin = 0xcbf29ce484222325u;
    const struct hre_model_info *info = model->info;
    uint64_t pieces = begin, about = begin;
    struct hre_text piece;
    for (uint32_t i = 0; i < info->vocab; i++) {
        uint64_t n = hre_tokenizer_piece(model->tokenizer, i, &piece) == HR_OK ? piece.bytes : 0;
        pieces = fnv1a(pieces, &n, sizeof n);
        if (n)
            pieces = fnv1a(pieces, piece.data, n);
    }
    about = fnv1a(about, info->architecture, strlen(info->architecture) + 1);
    about = fnv1a(about, info->name, strlen(info->name) + 1);
    id_out[0] = pieces;
    id_out[1] = about;
    id_out[2] = info->weight_bytes;
    id_out[3] = info->n_parameters;
}

int cli_cache_open_dense(const struct cli_model *model, const struct cli_place *place,
                         const char *dtype, uint32_t tokens_max, struct cli_cache *cache_out)
{
    struct hr_runtime_options options = cli_place_runtime_options(place);
    struct cli_recipe recipe = {.name = "full", .dtype = dtype, .moved = 1};
    uint64_t exact_bytes = cli_exact_bytes(model, dtype, tokens_max);
    options.file_dir = NULL;
    options.file_bytes = 0;
    options.host_bytes = exact_bytes + exact_bytes / 4 + (64u << 20);
    /* A GPU's memory is not for checks: what these bytes hold is attended there, the rest here. */
    options.device_bytes = (model->info->device ? 0 : exact_bytes) + (64u << 20);
    return open_cache(model, &options, &recipe, tokens_max, NULL, cache_out);
}

void cli_cache_close(struct cli_cache *cache)
{
    hr_sequence_destroy(cache->sequence);
    hr_runtime_destroy(cache->runtime);
    memset(cache, 0, sizeof *cache);
}

/* --------------------------------------------------------------------------------------- recipe */

const char *cli_recipe_help(void)
{
    static char text[2048];
    size_t at = 0;
    for (size_t i = 0; hr_recipe_name(i) && at < sizeof text; i++)
        at +=
            (size_t)snprintf(text + at, sizeof text - at, "%s%s", i ? ", " : "", hr_recipe_name(i));
    if (at < sizeof text)
        snprintf(text + at, sizeof text - at,
                 "; with parameters as in quest:page=32, or @FILE with a recipe in it "
                 "('headrace recipe list')");
    return text;
}

int cli_recipe_check(const char *command, const char *recipe)
{
    return hr_recipe_check(recipe) == HR_OK ? -1 : cli_usage_error(command, "%s", hr_last_error());
}

uint32_t cli_recipe_drafts(const char *recipe)
{
    struct hr_recipe_info info;
    double tokens;
    size_t n = strcspn(recipe, ":");
    for (size_t i = 0; hr_recipe_describe(i, &info) == HR_OK; i++)
        if (strlen(info.name) == n && memcmp(info.name, recipe, n) == 0)
            return info.drafts && hr_recipe_value(recipe, "tokens", &tokens) == HR_OK
                       ? (uint32_t)tokens
                       : 0;
    return 0;
}

int cli_recipe_resolve(const char *command, const char *given, char *text, size_t text_bytes)
{
    if (*given != '@') {
        if (strlen(given) >= text_bytes)
            return cli_usage_error(command, "recipe '%.40s...' is longer than %zu characters",
                                   given, text_bytes - 1);
        memmove(text, given, strlen(given) + 1);
        return cli_recipe_check(command, text);
    }
    char *file = NULL, path[512];
    size_t n_bytes;
    snprintf(path, sizeof path, "%s", given + 1);
    int code = cli_text_read(path, &file, &n_bytes);
    if (code)
        return code;
    hr_status_t status = hr_recipe_parse_file(path, file, n_bytes, text, text_bytes);
    free(file);
    return status == HR_OK ? -1 : cli_fail("%s", hr_last_error());
}

int cli_head_gates_read(const char *path, const struct cli_model *model, float **gates_out)
{
    const struct hre_model_info *info = model->info;
    char *text = NULL;
    size_t n_bytes;
    *gates_out = NULL;
    if (!path)
        return 0;
    int code = cli_text_read(path, &text, &n_bytes);
    if (code)
        return code;
    float *gates = malloc((size_t)info->n_layers * info->n_kv_heads * sizeof *gates);
    if (!gates) {
        code = cli_fail("out of memory");
    } else if (hr_parse_head_gates(path, text, n_bytes, info->n_layers, info->n_kv_heads, gates) !=
               HR_OK) {
        code = cli_fail("%s", hr_last_error());
        free(gates);
    } else {
        *gates_out = gates;
    }
    free(text);
    return code;
}

/* ------------------------------------------------------------------------------ signals, memory */

static volatile sig_atomic_t stop_signal;

static void on_signal(int number)
{
    stop_signal = number;
}

void cli_stop_install(void)
{
    /* SA_RESETHAND: the second one has its usual effect. Calls go on, so that no I/O of the
     * library fails with EINTR. */
    struct sigaction action = {.sa_handler = on_signal,
                               .sa_flags = (int)(SA_RESETHAND | SA_RESTART)};
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

int cli_stop_signal(void)
{
    return stop_signal;
}

uint64_t cli_peak_resident_bytes(void)
{
    struct rusage usage;
    return getrusage(RUSAGE_SELF, &usage) == 0 ? (uint64_t)usage.ru_maxrss * 1024 : 0;
}
