#include "cli/trace_capture.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <headrace/parse.h>

#include "cli/out.h"
#include "cli/prompt.h"
#include "cli/setup.h"
#include "cli/trace.h"

#define LAYERS_MAX 64

struct capture {
    const struct cli_capture_options *options;
    struct cli_model model;
    struct hr_sequence_options geometry; /* rope, log-n, windows: the model's */
    uint32_t *ids;
    uint32_t n_ids;
    uint32_t layers[LAYERS_MAX];
    size_t n_layers;
    struct cli_trace traces[LAYERS_MAX];
    char *folders
        [LAYERS_MAX]; /* where they belong; a trace's path is beside it until all is written */
    struct cli_progress progress;
    uint32_t bad_layer, bad_position; /* the first row that float16 does not hold */
    bool bad;
};

/* --------------------------------------------------------------------------------------- layers */

static int take_layer(struct capture *c, const char *text, size_t n)
{
    const struct hre_model_info *info = c->model.info;
    char word[16];
    uint64_t layer;
    snprintf(word, sizeof word, "%.*s", (int)n, text);
    if (n >= sizeof word || hr_parse_count(word, 0, info->n_layers - 1, &layer) != HR_OK)
        return cli_fail("--layers '%s': '%.*s' is no layer; the model has 0 to %u",
                        c->options->layers, (int)n, text, info->n_layers - 1);
    if (info->sliding_windows[layer])
        return cli_fail("layer %u attends to the newest %u tokens only; a trace is of a layer that "
                        "attends to all",
                        (uint32_t)layer, info->sliding_windows[layer]);
    if (c->n_layers == LAYERS_MAX)
        return cli_fail("--layers '%s' has more than %d layers", c->options->layers, LAYERS_MAX);
    for (size_t i = 0; i < c->n_layers; i++) {
        if (c->layers[i] == layer)
            return cli_fail("--layers '%s' has layer %u twice", c->options->layers,
                            (uint32_t)layer);
    }
    c->layers[c->n_layers++] = (uint32_t)layer;
    return 0;
}

static int take_layers(struct capture *c)
{
    const struct hre_model_info *info = c->model.info;
    const char *rest = c->options->layers;
    int code = 0;
    hr_sequence_options_init(&c->geometry);
    hre_model_sequence_options(c->model.model, &c->geometry);
    if (info->k_dim != info->v_dim || c->geometry.soft_cap != 0)
        return cli_fail("the model's heads (k %u, v %u, soft cap %g) do not fit the trace format",
                        info->k_dim, info->v_dim, (double)c->geometry.soft_cap);
    do {
        size_t n = strcspn(rest, ",");
        code = take_layer(c, rest, n);
        rest += n;
    } while (code == 0 && *rest++ == ',');
    return code;
}

/* ----------------------------------------------------------------------------------------- text */

static int read_ids(struct capture *c)
{
    const struct cli_capture_options *o = c->options;
    int code;
    if (!o->file) {
        struct cli_prompt prompt = {0};
        struct cli_prompt_options made = {.tokens_context = o->tokens, .keys = 48, .seed = o->seed};
        if ((code = cli_prompt_make(&c->model, &made, &prompt)))
            return code;
        c->ids = prompt.ids;
        c->n_ids = prompt.n_ids;
        prompt.ids = NULL;
        cli_prompt_fini(&prompt);
        return 0;
    }
    struct hre_tokens tokens = {0};
    if ((code = cli_prompt_encode_file(&c->model, o->file, &tokens)))
        return code;
    c->ids = tokens.ids;
    c->n_ids = (uint32_t)o->tokens;
    if (tokens.count < o->tokens)
        return cli_fail("'%s' has %zu tokens; --tokens asks for %llu", o->file, tokens.count,
                        (unsigned long long)o->tokens);
    return 0;
}

static int check_lengths(const struct capture *c)
{
    const struct cli_capture_options *o = c->options;
    uint32_t context = c->model.info->context_length;
    uint64_t needed = o->seen + o->queries * o->stride;
    if (o->tokens < needed)
        return cli_fail("--tokens %llu have no room for %llu queries that are shown and %llu that "
                        "are scored, every %llu. token; they take %llu",
                        (unsigned long long)o->tokens, (unsigned long long)o->seen,
                        (unsigned long long)o->queries, (unsigned long long)o->stride,
                        (unsigned long long)needed);
    if (!context || o->tokens <= context)
        return 0;
    if (!o->allow_longer)
        return cli_fail("%llu tokens are more than the %u the model was trained for; "
                        "--allow-longer goes on regardless",
                        (unsigned long long)o->tokens, context);
    cli_warn("%llu tokens are more than the %u the model was trained for",
             (unsigned long long)o->tokens, context);
    return 0;
}

/* --------------------------------------------------------------------------------------- folders */

/* "book.txt" -> "book" */
static char *stem_of(const char *file)
{
    char *name = cli_folder_name(file ? file : "tiny");
    char *dot = name ? strrchr(name, '.') : NULL;
    if (dot && dot != name)
        *dot = '\0';
    return name;
}

static int name_folders(struct capture *c)
{
    const struct cli_capture_options *o = c->options;
    char *stem = stem_of(o->file && strcmp(o->file, "-") == 0 ? "stdin" : o->file);
    struct stat st;
    int code = stem ? 0 : cli_fail("out of memory");
    if (code == 0 && mkdir(o->out, 0777) < 0 && errno != EEXIST)
        code = cli_fail("cannot make the folder '%s': %s", o->out, strerror(errno));
    for (size_t i = 0; i < c->n_layers && code == 0; i++) {
        if (asprintf(&c->folders[i], "%s/%s_l%u", o->out, stem, c->layers[i]) < 0) {
            c->folders[i] = NULL;
            code = cli_fail("out of memory");
        } else if (lstat(c->folders[i], &st) == 0) {
            code = cli_fail("'%s' is there already", c->folders[i]);
        } else if (asprintf(&c->traces[i].path, "%s.XXXXXX", c->folders[i]) < 0) {
            c->traces[i].path = NULL;
            code = cli_fail("out of memory");
        }
    }
    free(stem);
    return code;
}

/* ---------------------------------------------------------------------------------------- traces */

static int fill_positions(struct cli_positions *p, uint64_t n, uint64_t first, uint64_t stride)
{
    p->at = calloc(n ? n : 1, sizeof *p->at);
    p->n = p->at ? (uint32_t)n : 0;
    for (uint32_t i = 0; i < p->n; i++)
        p->at[i] = (uint32_t)(first + i * stride);
    return p->at ? 0 : cli_fail("out of memory");
}

static int fill_rope(struct cli_trace_meta *m, const struct hr_rope *rope, float base)
{
    if (!rope || rope->layout == HR_ROPE_NONE)
        return 0;
    m->rope_layout = rope->layout;
    m->rope_base = base;
    m->n_rot = rope->n_rot;
    m->rope_frequencies = calloc(rope->n_rot / 2, sizeof *m->rope_frequencies);
    if (!m->rope_frequencies)
        return cli_fail("out of memory");
    memcpy(m->rope_frequencies, rope->frequencies, rope->n_rot / 2 * sizeof *m->rope_frequencies);
    return 0;
}

/* Scored queries end with the text, those that are shown come right before them. */
static int open_trace(struct capture *c, size_t at)
{
    const struct cli_capture_options *o = c->options;
    const struct hre_model_info *info = c->model.info;
    struct cli_trace *t = &c->traces[at];
    struct cli_trace_meta *m = &t->meta;
    uint64_t scored = o->tokens - o->queries * o->stride;
    m->model = strdup(*info->name ? info->name : info->architecture);
    m->layer = c->layers[at];
    m->n_q_heads = info->n_q_heads;
    m->n_kv_heads = info->n_kv_heads;
    m->head_dim = info->k_dim;
    m->n_tokens = c->n_ids;
    m->scale = c->geometry.scale != 0 ? (double)c->geometry.scale : 1 / sqrt(info->k_dim);
    size_t rows = (size_t)m->n_kv_heads * m->n_tokens * m->head_dim;
    size_t per_query = (size_t)m->n_q_heads * m->head_dim;
    t->k = calloc(rows, sizeof *t->k);
    t->v = calloc(rows, sizeof *t->v);
    t->seen = calloc(per_query * o->seen + 1, sizeof *t->seen);
    t->q = calloc(per_query * o->queries, sizeof *t->q);
    if (!m->model || !t->k || !t->v || !t->seen || !t->q)
        return cli_fail("out of memory for %u tokens of layer %u", c->n_ids, m->layer);
    int code = fill_positions(&m->seen, o->seen, scored - o->seen, 1);
    if (code == 0)
        code = fill_positions(&m->scored, o->queries, scored, o->stride);
    if (code == 0)
        code = fill_rope(m, c->geometry.rope ? &c->geometry.rope[m->layer] : NULL,
                         info->rope_bases[m->layer]);
    return code;
}

static bool keep_row(uint16_t *to, const float *from, uint32_t n)
{
    bool finite = true;
    for (uint32_t i = 0; i < n; i++) {
        to[i] = cli_half_from_float(from[i]);
        finite &= (to[i] & 0x7c00u) != 0x7c00u;
    }
    return finite;
}

/* A query carries its log-n factor; the trace's scale is one for all. */
static void keep_query(const struct capture *c, const struct cli_trace *t, float *to,
                       const struct cli_positions *positions, uint32_t position, const float *q)
{
    const struct cli_trace_meta *m = &t->meta;
    const float *log_n =
        c->geometry.log_n ? c->geometry.log_n + (size_t)m->layer * m->n_q_heads : NULL;
    uint32_t low = 0, high = positions->n;
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if (positions->at[middle] < position)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == positions->n || positions->at[low] != position)
        return;
    for (uint32_t h = 0; h < m->n_q_heads; h++) {
        float factor = log_n ? 1 + log_n[h] * logf((float)position + 1) : 1;
        float *row = to + ((size_t)h * positions->n + low) * m->head_dim;
        for (uint32_t j = 0; j < m->head_dim; j++)
            row[j] = factor * q[(size_t)h * m->head_dim + j];
    }
}

static void keep_token(struct capture *c, struct cli_trace *t, uint32_t position, const float *q,
                       const float *k, const float *v)
{
    const struct cli_trace_meta *m = &t->meta;
    for (uint32_t h = 0; h < m->n_kv_heads; h++) {
        size_t to = ((size_t)h * m->n_tokens + position) * m->head_dim,
               from = (size_t)h * m->head_dim;
        bool finite = keep_row(t->k + to, k + from, m->head_dim);
        finite &= keep_row(t->v + to, v + from, m->head_dim);
        if (!finite && !c->bad) {
            c->bad = true;
            c->bad_layer = m->layer;
            c->bad_position = position;
        }
    }
    keep_query(c, t, t->seen, &m->seen, position, q);
    keep_query(c, t, t->q, &m->scored, position, q);
}

static void on_rows(void *context, uint32_t layer, uint32_t first_position, uint32_t n,
                    const float *q, const float *k, const float *v)
{
    struct capture *c = context;
    const struct hre_model_info *info = c->model.info;
    size_t at = 0;
    while (at < c->n_layers && c->layers[at] != layer)
        at++;
    for (uint32_t i = 0; at < c->n_layers && i < n; i++)
        keep_token(c, &c->traces[at], first_position + i,
                   q + (size_t)i * info->n_q_heads * info->k_dim,
                   k + (size_t)i * info->n_kv_heads * info->k_dim,
                   v + (size_t)i * info->n_kv_heads * info->v_dim);
}

/* ------------------------------------------------------------------------------------------ run */

static int on_progress(void *context, uint32_t done, uint32_t total)
{
    struct capture *c = context;
    (void)total;
    cli_progress_update(&c->progress, done);
    return cli_stop_signal() != 0 || c->bad;
}

static int read_text(struct capture *c)
{
    struct cli_cache cache = {0};
    struct hre_session_options session_options;
    struct hre_prefill_options options;
    hre_session_t *session = NULL;
    int code = cli_cache_open_dense(&c->model, &c->options->place, "f32", c->n_ids, &cache);
    if (code)
        return code;
    hre_session_options_init(&session_options);
    session_options.sequences = &cache.sequence;
    session_options.n_sequences = 1;
    session_options.tokens_max = c->n_ids;
    hr_status_t status = hre_session_create(c->model.model, &session_options, &session);
    if (status == HR_OK) {
        hre_prefill_options_init(&options);
        options.progress = on_progress;
        options.progress_context = c;
        options.rows = on_rows;
        options.rows_context = c;
        cli_progress_begin(&c->progress, "capture", "tokens", c->n_ids);
        status = hre_session_prefill(session, c->ids, c->n_ids, &options, NULL);
        cli_progress_end(&c->progress, hre_session_length(session, 0));
    }
    if (c->bad)
        code = cli_fail("layer %u, token %u: a row is too large for float16", c->bad_layer,
                        c->bad_position);
    else if (status != HR_OK && !cli_stop_signal())
        code = cli_fail_engine("capture", status);
    hre_session_destroy(session);
    cli_cache_close(&cache);
    return code;
}

static void discard(const char *folder)
{
    static const char *const names[] = {"meta.json", "k.npy", "v.npy", "q_seen.npy", "q.npy"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        char *path = NULL;
        if (asprintf(&path, "%s/%s", folder, names[i]) >= 0) {
            unlink(path);
            free(path);
        }
    }
    rmdir(folder);
}

/* Written beside their places; then all move there, or none stays. */
static int save(struct capture *c)
{
    size_t made = 0, moved = 0;
    mode_t mask = umask(0);
    int code = 0;
    umask(mask);
    while (made < c->n_layers && code == 0) {
        if (!mkdtemp(c->traces[made].path) || chmod(c->traces[made].path, 0777 & ~mask) < 0)
            code = cli_fail("cannot make a folder in '%s': %s", c->options->out, strerror(errno));
        else
            code = cli_trace_save(&c->traces[made++]);
    }
    for (; moved < made && code == 0; moved += code == 0) {
        if (rename(c->traces[moved].path, c->folders[moved]) < 0)
            code = cli_fail("cannot make '%s': %s", c->folders[moved], strerror(errno));
    }
    for (size_t i = 0; i < made && code; i++)
        discard(i < moved ? c->folders[i] : c->traces[i].path);
    for (size_t i = 0; i < made && code == 0; i++)
        fprintf(cli_out(), "%s\n", c->folders[i]);
    return code;
}

int cli_trace_capture(const struct cli_capture_options *o)
{
    struct capture c = {.options = o};
    int code = cli_model_open(o->model, &o->place, &c.model);
    if (code)
        return code;
    code = take_layers(&c);
    if (code == 0)
        code = check_lengths(&c);
    if (code == 0)
        code = read_ids(&c);
    if (code == 0)
        code = name_folders(&c);
    for (size_t i = 0; i < c.n_layers && code == 0; i++)
        code = open_trace(&c, i);
    if (code == 0)
        code = read_text(&c);
    if (code == 0 && !cli_stop_signal())
        code = save(&c);
    for (size_t i = 0; i < c.n_layers; i++) {
        cli_trace_fini(&c.traces[i]);
        free(c.folders[i]);
    }
    free(c.ids);
    cli_model_close(&c.model);
    return code == 0 && cli_stop_signal() ? 128 + cli_stop_signal() : code;
}
