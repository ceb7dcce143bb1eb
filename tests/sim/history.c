#include "tests/sim/history.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "runtime/sequence.h"

enum { HEADS = 2, KV = 1, D = 8 };

const char *history_dir(uint32_t i)
{
    static const char *const dirs[HISTORY_DIRS] = {"/sim/one", "/sim/two"};
    return dirs[i];
}

static bool wrong(struct history *h, const char *format, ...) __attribute__((format(printf, 2, 3)));

static bool wrong(struct history *h, const char *format, ...)
{
    va_list args;
    if (h->error[0] != '\0')
        return false;
    va_start(args, format);
    vsnprintf(h->error, sizeof h->error, format, args);
    va_end(args);
    return false;
}

/* ----------------------------------------------------------------------------------------- rows */

static void numbers_of(uint32_t token, uint32_t kind, float *x, uint32_t n)
{
    struct hri_rng rng;
    hri_rng_seed(&rng, (uint64_t)token * 4 + kind);
    for (uint32_t i = 0; i < n; i++)
        x[i] = (float)hri_rng_below(&rng, 2001) / 1000.0f - 1.0f;
}

static hr_status_t append(hr_sequence_t *seq, const uint32_t *tokens, uint32_t n)
{
    float k[TEXT_TOKENS * KV * D], v[TEXT_TOKENS * KV * D];
    for (uint32_t i = 0; i < n; i++) {
        numbers_of(tokens[i], 0, k + (size_t)i * KV * D, KV * D);
        numbers_of(tokens[i], 1, v + (size_t)i * KV * D, KV * D);
    }
    struct hr_tensor kt = hr_tensor_make(k, HR_DTYPE_F32, n, KV, D);
    struct hr_tensor vt = hr_tensor_make(v, HR_DTYPE_F32, n, KV, D);
    return hr_sequence_append(seq, 0, &kt, &vt, NULL);
}

static hr_status_t attend(hr_sequence_t *seq, uint32_t token, hr_attend_mode_t mode, float *out)
{
    float q[HEADS * D];
    struct hr_attend_options options;
    hr_attend_options_init(&options);
    options.mode = mode;
    numbers_of(token, 2, q, HEADS * D);
    struct hr_tensor qt = hr_tensor_make(q, HR_DTYPE_F32, 1, HEADS, D);
    struct hr_tensor ot = hr_tensor_make(out, HR_DTYPE_F32, 1, HEADS, D);
    return hr_sequence_attend(seq, 0, &qt, &options, &ot, NULL, NULL);
}

static struct hr_sequence_options options_of(const struct history *h)
{
    struct hr_sequence_options o;
    hr_sequence_options_init(&o);
    o.n_layers = 1;
    o.n_q_heads = HEADS;
    o.n_kv_heads = KV;
    o.k_dim = o.v_dim = D;
    o.tokens_max = TEXT_TOKENS;
    o.recipe = h->recipe;
    o.moved = 0.2;
    return o;
}

void history_options(struct history *h, const struct hri_io_ops *io, const char *recipe)
{
    hr_runtime_options_init(&h->options);
    h->options.device_bytes = 4u << 20;
    h->options.host_bytes = 4u << 20;
    h->options.n_threads = 1;
    h->io = io;
    h->recipe = recipe;
}

hr_status_t history_runtime(const struct history *h, hr_runtime_t **rt_out)
{
    return hri_runtime_create(&h->options, h->io, rt_out);
}

hr_status_t history_create(const struct history *h, hr_runtime_t *rt, hr_sequence_t **seq_out)
{
    struct hr_sequence_options o = options_of(h);
    return hr_sequence_create(rt, &o, seq_out);
}

hr_status_t history_open(const struct history *h, hr_runtime_t *rt, const char *dir,
                         hr_sequence_t **seq_out)
{
    struct hr_sequence_options o = options_of(h);
    return hr_sequence_open(rt, dir, &o, NULL, seq_out);
}

hr_status_t history_append(hr_sequence_t *seq, const uint32_t *tokens, uint32_t n)
{
    return append(seq, tokens, n);
}

hr_status_t history_attend(hr_sequence_t *seq, uint32_t token, hr_attend_mode_t mode)
{
    float out[HEADS * D];
    return attend(seq, token, mode, out);
}

/* Sums may be in another order where rows lie elsewhere; a wrong row is far off. */
static bool near(const float *got, const float *want)
{
    for (uint32_t i = 0; i < HEADS * D; i++)
        if (!(fabsf(got[i] - want[i]) < 1e-5f))
            return false;
    return true;
}

bool history_same(struct history *h, hr_sequence_t *seq, const struct text *text)
{
    float got[HEADS * D], want[HEADS * D];
    if (hr_sequence_length(seq, 0) != text->n)
        return false;
    if (text->n == 0)
        return true;
    hr_sequence_t *twin = NULL;
    hr_runtime_t *rt = NULL;
    struct history plain = *h; /* the twin sees no faults */
    plain.options.alloc = NULL;
    plain.options.free = NULL;
    plain.options.file_dir = NULL;
    plain.options.host_bytes = 4u << 20;
    plain.options.n_threads = 1;
    bool ok = history_runtime(&plain, &rt) == HR_OK && history_create(&plain, rt, &twin) == HR_OK &&
              append(twin, text->token, text->n) == HR_OK;
    bool same = ok;
    for (uint32_t i = 0; i < 3 && same; i++)
        same = attend(seq, 7 + i, HR_ATTEND_EXACT, got) == HR_OK &&
               attend(twin, 7 + i, HR_ATTEND_EXACT, want) == HR_OK && near(got, want);
    hr_sequence_destroy(twin);
    (void)hr_runtime_destroy(rt);
    return ok ? same : wrong(h, "the twin: %s", hr_last_error());
}

/* ---------------------------------------------------------------------------------------- model */

static bool state_add(struct history *h, struct folder_model *f, const struct text *text)
{
    if (f->n_states == HISTORY_STATES)
        return wrong(h, "the history is too long for its model");
    f->states[f->n_states++] = *text;
    return true;
}

static void state_only(struct folder_model *f, const struct text *text)
{
    f->states[0] = *text;
    f->n_states = 1;
    f->maybe_nothing = f->maybe_damaged = false;
}

/* ---------------------------------------------------------------------------------------- steps */

static bool step_append(struct history *h)
{
    uint32_t tokens[TEXT_TOKENS], n = 1 + (uint32_t)hri_rng_below(&h->rng, 90);
    n = n > TEXT_TOKENS - h->text.n ? TEXT_TOKENS - h->text.n : n;
    for (uint32_t i = 0; i < n; i++)
        tokens[i] = h->next_token++;
    if (append(h->seq, tokens, n) != HR_OK)
        return wrong(h, "append: %s", hr_last_error());
    memcpy(h->text.token + h->text.n, tokens, n * sizeof *tokens);
    h->text.n += n;
    return true;
}

/* One of the two goes on: the model knows no difference between a sequence and its fork. */
static bool step_fork(struct history *h)
{
    hr_sequence_t *fork = NULL;
    hr_status_t status = hr_sequence_fork(h->seq, &fork);
    if (status == HR_ERR_FULL || status == HR_ERR_BUDGET)
        return true;
    if (status != HR_OK)
        return wrong(h, "fork: %s", hr_last_error());
    bool first = hri_rng_below(&h->rng, 2) != 0;
    hr_sequence_destroy(first ? h->seq : fork);
    h->seq = first ? fork : h->seq;
    return true;
}

static bool step_truncate(struct history *h)
{
    uint32_t n = (uint32_t)hri_rng_below(&h->rng, h->text.n + 1);
    if (hr_sequence_truncate(h->seq, n) != HR_OK)
        return wrong(h, "truncate: %s", hr_last_error());
    h->text.n = n;
    return true;
}

static bool step_save(struct history *h)
{
    struct folder_model *f = &h->folders[hri_rng_below(&h->rng, HISTORY_DIRS)];
    struct hr_save_options options;
    hr_save_options_init(&options);
    options.durability = (hr_durability_t)hri_rng_below(&h->rng, 3);
    bool none = options.durability == HR_DURABILITY_NONE;
    hr_status_t status =
        hr_sequence_save(h->seq, history_dir((uint32_t)(f - h->folders)), &options);
    if (status == HR_OK && options.durability == HR_DURABILITY_STRICT) {
        state_only(f, &h->text);
        return true;
    }
    f->maybe_damaged |= none;
    if (status == HR_OK || h->disk.off) /* failed before the rename: then the old one is there */
        return state_add(h, f, &h->text) && !h->disk.off;
    return status == HR_ERR_BUSY || h->disk.fault != SIM_RIGHT ||
           wrong(h, "save: %s", hr_last_error());
}

/* While the machine runs, the folder holds the last save that succeeded. */
static bool step_open(struct history *h)
{
    uint32_t i = (uint32_t)hri_rng_below(&h->rng, HISTORY_DIRS);
    struct folder_model *f = &h->folders[i];
    hr_sequence_t *seq = NULL;
    hr_status_t status = history_open(h, h->rt, history_dir(i), &seq);
    if (h->disk.off) {
        hr_sequence_destroy(seq);
        return false;
    }
    if (status == HR_ERR_NOTFOUND && f->maybe_nothing && f->n_states == 0)
        return true;
    if (status == HR_ERR_BUSY) /* by the sequence at hand */
        return true;
    if (status != HR_OK)
        return h->disk.fault != SIM_RIGHT || wrong(h, "open: %s", hr_last_error());
    const struct text *newest = &f->states[f->n_states - 1];
    if (f->n_states == 0 || !history_same(h, seq, newest)) {
        hr_sequence_destroy(seq);
        return wrong(h, "open: the folder does not hold its last save");
    }
    hr_sequence_destroy(h->seq);
    h->seq = seq;
    h->text = *newest;
    return true;
}

static bool step_attend(struct history *h)
{
    float out[HEADS * D];
    if (h->text.n > 0 && attend(h->seq, 5, HR_ATTEND_RECIPE, out) != HR_OK)
        return wrong(h, "attend: %s", hr_last_error());
    return true;
}

bool history_step(struct history *h)
{
    switch (hri_rng_below(&h->rng, 10)) {
    case 0:
    case 1:
    case 2:
        return step_append(h);
    case 3:
        return step_truncate(h);
    case 4:
        return step_attend(h);
    case 5:
        return step_open(h);
    case 6:
        return step_fork(h);
    default:
        return step_save(h);
    }
}

bool history_begin(struct history *h, uint64_t seed)
{
    static const char *const recipes[] = {HISTORY_FULL, HISTORY_HEADRACE, HISTORY_QUEST};
    memset(h, 0, sizeof *h);
    sim_init(&h->disk, seed);
    if (seed % 2 == 0)
        sim_add_rings(&h->disk);
    hri_rng_seed(&h->rng, seed * 31 + 7);
    history_options(h, &h->disk.ops, recipes[seed % 3]);
    for (uint32_t i = 0; i < HISTORY_DIRS; i++)
        h->folders[i].maybe_nothing = true;
    if (history_runtime(h, &h->rt) != HR_OK || history_create(h, h->rt, &h->seq) != HR_OK)
        return wrong(h, "begin: %s", hr_last_error());
    return true;
}

void history_end(struct history *h)
{
    hr_sequence_destroy(h->seq);
    if (hr_runtime_destroy(h->rt) != HR_OK)
        wrong(h, "end: %s", hr_last_error());
    sim_fini(&h->disk);
}

static bool folder_check(struct history *h, uint32_t i)
{
    const struct folder_model *f = &h->folders[i];
    hr_sequence_t *seq = NULL;
    hr_status_t status = history_open(h, h->rt, history_dir(i), &seq);
    if (status == HR_ERR_NOTFOUND)
        return f->maybe_nothing || wrong(h, "%s: what was saved is gone", history_dir(i));
    if (status == HR_ERR_CORRUPT || status == HR_ERR_VERSION || status == HR_ERR_INVALID)
        return f->maybe_damaged || wrong(h, "%s: damaged: %s", history_dir(i), hr_last_error());
    if (status != HR_OK)
        return wrong(h, "%s: open gives %s: %s", history_dir(i), hr_status_name(status),
                     hr_last_error());
    bool found = false;
    for (uint32_t s = 0; s < f->n_states && !found; s++)
        found = history_same(h, seq, &f->states[s]);
    uint32_t n = hr_sequence_length(seq, 0);
    hr_sequence_destroy(seq);
    return found || wrong(h, "%s: %u tokens that were never saved like that", history_dir(i), n);
}

bool history_check(struct history *h)
{
    hr_sequence_destroy(h->seq);
    h->seq = NULL;
    if (hr_runtime_destroy(h->rt) != HR_OK || history_runtime(h, &h->rt) != HR_OK)
        return wrong(h, "after the cut: %s", hr_last_error());
    for (uint32_t i = 0; i < HISTORY_DIRS; i++)
        if (!folder_check(h, i))
            return false;
    return h->error[0] == '\0';
}
