/* A recorded trace made longer. The text begins and ends as the trace does, queries and all; between its first rows and the rest lie
 * copies of the rest, each turned by rotations of its own: K and V of every head, about their means, by random angles in planes of
 * neighbouring principal axes. So to any query a copy's keys have the mean and the spread of logits that the trace's keys have,
 * while other rows are large: as hard to tell apart as more of the same text, and no needle twice. A shift of RoPE would turn the keys'
 * mean too, against which a model balances its sink: copies then take all of the attention (docs/decisions/0014). */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "bench/rows.h"
#include "cli/trace.h"
#include "index/linalg.h"
#include "index/rotation.h"

#define SINK_ROWS 16u /* of the beginning, which is there once */

/* The rows of one head's K or V, and how the present copy turns them. */
struct body {
    const uint16_t *rows; /* [n_tokens][dim] float16 */
    float *mean;          /* [dim] */
    double *axes;         /* [dim][dim]: row i is the i-th principal axis */
    float *turn;          /* [dim][dim]: (row - mean) times it */
};

struct tiled {
    struct hrb_rows base;
    struct cli_trace trace;
    struct hr_rope rope;
    struct hri_rotation rotation; /* by it */
    uint32_t first;               /* the trace's row of the first step */
    uint32_t gap;                 /* rows of copies */
    uint32_t at;                  /* next row */
    uint32_t step;                /* next step's query */
    uint32_t shown_from;          /* queries seen from here on are at consecutive positions */
    uint32_t copy;                /* of the turns, UINT32_MAX: none yet */
    struct body *bodies;          /* [2][kv_heads]: K, V */
    float *floats;
    double *doubles;
};

/* --------------------------------------------------------------------------------------- turning */

static uint32_t span(const struct tiled *t)
{
    return t->first - SINK_ROWS;
}

static void add_row(const struct tiled *t, const struct body *b, uint32_t row, double *sum,
                    double *gram)
{
    const uint32_t d = t->base.dim;
    double x[HR_HEAD_DIM_MAX];
    for (uint32_t i = 0; i < d; i++) {
        x[i] = (double)cli_float_from_half(b->rows[(size_t)row * d + i]);
        sum[i] += x[i];
    }
    for (uint32_t i = 0; i < d; i++)
        for (uint32_t j = 0; j < d; j++)
            gram[(size_t)i * d + j] += x[i] * x[j];
}

static bool find_axes(const struct tiled *t, struct body *b)
{
    const uint32_t d = t->base.dim;
    double sum[HR_HEAD_DIM_MAX] = {0}, values[HR_HEAD_DIM_MAX];
    void *work = malloc(hri_eigen_work_bytes(d));
    if (!work)
        return false;
    memset(b->axes, 0, (size_t)d * d * sizeof *b->axes);
    for (uint32_t row = SINK_ROWS; row < t->first; row++)
        add_row(t, b, row, sum, b->axes);
    for (uint32_t i = 0; i < d; i++)
        for (uint32_t j = 0; j < d; j++)
            b->axes[(size_t)i * d + j] -= sum[i] * sum[j] / span(t);
    for (uint32_t i = 0; i < d; i++)
        b->mean[i] = (float)(sum[i] / span(t));
    bool fine = hri_eigen(b->axes, d, values, work) == HR_OK;
    free(work);
    return fine;
}

/* turn += c (a'a + b'b) + s (a'b - b'a): both axes turned in their plane. */
static void add_plane(float *turn, uint32_t d, const double *a, const double *b, double c, double s)
{
    for (uint32_t i = 0; i < d; i++)
        for (uint32_t j = 0; j < d; j++)
            turn[(size_t)i * d + j] +=
                (float)(c * (a[i] * a[j] + b[i] * b[j]) + s * (a[i] * b[j] - b[i] * a[j]));
}

static void set_turns(struct tiled *t, uint32_t copy)
{
    const uint32_t d = t->base.dim;
    struct hri_rng rng;
    if (t->copy == copy)
        return;
    t->copy = copy;
    hri_rng_seed(&rng, 1 + copy);
    for (uint32_t i = 0; i < 2 * t->base.kv_heads; i++) {
        struct body *b = &t->bodies[i];
        memset(b->turn, 0, (size_t)d * d * sizeof *b->turn);
        for (uint32_t p = 0; p + 1 < d; p += 2) {
            double angle = 2 * 3.14159265358979323846 * (double)hri_rng_f32(&rng);
            add_plane(b->turn, d, b->axes + (size_t)p * d, b->axes + (size_t)(p + 1) * d,
                      cos(angle), sin(angle));
        }
    }
}

static void turned(const struct tiled *t, const struct body *b, uint32_t row, uint16_t *out)
{
    const uint32_t d = t->base.dim;
    float sum[HR_HEAD_DIM_MAX];
    memcpy(sum, b->mean, d * sizeof *sum);
    for (uint32_t i = 0; i < d; i++) {
        const float x = cli_float_from_half(b->rows[(size_t)row * d + i]) - b->mean[i];
        const float *turn = b->turn + (size_t)i * d;
        for (uint32_t j = 0; j < d; j++)
            sum[j] += x * turn[j];
    }
    for (uint32_t j = 0; j < d; j++)
        out[j] = cli_half_from_float(sum[j]);
}

/* ----------------------------------------------------------------------------------------- rows */

static bool in_copy(const struct tiled *t, uint32_t at)
{
    return at >= SINK_ROWS && at < SINK_ROWS + t->gap;
}

/* Row `at` of the text, of one head. */
static void put_row(struct tiled *t, const struct body *b, uint32_t at, uint16_t *out)
{
    const uint32_t d = t->base.dim;
    if (in_copy(t, at)) {
        turned(t, b, SINK_ROWS + (at - SINK_ROWS) % span(t), out);
        return;
    }
    const uint32_t row = at < SINK_ROWS ? at : at - t->gap;
    memcpy(out, b->rows + (size_t)row * d, d * sizeof *out);
}

static void make(struct hrb_rows *self, uint32_t n, uint16_t *k, uint16_t *v)
{
    struct tiled *t = (struct tiled *)self;
    const size_t d = self->dim;
    for (uint32_t i = 0; i < n; i++, t->at++) {
        if (in_copy(t, t->at))
            set_turns(t, (t->at - SINK_ROWS) / span(t));
        for (uint32_t h = 0; h < self->kv_heads; h++, k += d, v += d) {
            put_row(t, &t->bodies[h], t->at, k);
            put_row(t, &t->bodies[self->kv_heads + h], t->at, v);
        }
    }
}

/* A prompt's queries are seen while it is read: the trace's, turned to where they stand, come with the first rows too, where it is known
 * how. */
static struct hrb_rows_chunk chunk(const struct hrb_rows *self, uint32_t done)
{
    const struct tiled *t = (const struct tiled *)self;
    const struct cli_positions *seen = &t->trace.meta.seen;
    const uint32_t all = seen->n - t->shown_from;
    uint32_t end = self->tokens, queries = 0;
    if (seen->n > 0 && done <= seen->at[seen->n - 1] + t->gap) {
        end = seen->at[seen->n - 1] + t->gap + 1;
        queries = all;
    }
    const uint32_t n = end - done < HRB_ROWS_CHUNK ? end - done : HRB_ROWS_CHUNK;
    if (self->rope && t->gap > 0 && done == 0 && all <= n && n < end)
        return (struct hrb_rows_chunk){n, all};
    return (struct hrb_rows_chunk){n, done + n == end ? queries : 0};
}

/* The trace has queries head by head. */
static void put_queries(const struct tiled *t, const float *from, uint32_t per_head, uint32_t first,
                        uint32_t n, float *q)
{
    const size_t d = t->base.dim;
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t h = 0; h < t->base.q_heads; h++, q += d)
            memcpy(q, from + ((size_t)h * per_head + first + i) * d, d * sizeof *q);
}

/* They stand at the ends of the rows made so far, one after the other. */
static void shown(struct hrb_rows *self, uint32_t n, float *q)
{
    const struct tiled *t = (const struct tiled *)self;
    const uint32_t all = t->trace.meta.seen.n;
    put_queries(t, t->trace.seen, all, all - n, n, q);
    for (uint32_t i = 0; t->base.rope && i < n; i++) {
        const uint32_t stands = t->at - n + i, stood = t->trace.meta.seen.at[all - n + i] + t->gap;
        for (uint32_t h = 0; stands < stood && h < t->base.q_heads; h++)
            hri_rotation_apply(&t->rotation, q + ((size_t)i * t->base.q_heads + h) * t->base.dim, 1,
                               0, stood - stands, -1);
    }
}

/* After the last scored query the text is cut back to the first one. */
static struct hrb_rows_before before(struct hrb_rows *self, uint32_t length)
{
    struct tiled *t = (struct tiled *)self;
    const struct cli_positions *scored = &t->trace.meta.scored;
    if (t->step == scored->n) {
        t->step = 0;
        length = t->at = self->tokens;
    }
    return (struct hrb_rows_before){length, scored->at[t->step] + t->gap - length};
}

static void rewind_to_first(struct hrb_rows *self)
{
    struct tiled *t = (struct tiled *)self;
    t->step = t->trace.meta.scored.n;
}

static void query(struct hrb_rows *self, float *q)
{
    struct tiled *t = (struct tiled *)self;
    put_queries(t, t->trace.q, t->trace.meta.scored.n, t->step++, 1, q);
}

/* ---------------------------------------------------------------------------------------- set-up */

static void tiled_free(struct hrb_rows *self)
{
    struct tiled *t = (struct tiled *)self;
    cli_trace_fini(&t->trace);
    hri_rotation_destroy(&t->rotation, NULL);
    free(t->bodies);
    free(t->floats);
    free(t->doubles);
    free(t);
}

static bool alloc_bodies(struct tiled *t)
{
    const size_t d = t->base.dim, n = 2 * (size_t)t->base.kv_heads,
                 rows = (size_t)t->trace.meta.n_tokens * d;
    t->bodies = calloc(n, sizeof *t->bodies);
    t->floats = malloc(n * d * (d + 1) * sizeof *t->floats);
    t->doubles = malloc(n * d * d * sizeof *t->doubles);
    if (!t->bodies || !t->floats || !t->doubles ||
        hri_rotation_create(&t->rotation, NULL, &t->rope) != HR_OK)
        return false;
    for (size_t i = 0; i < n; i++) {
        const size_t h = i % t->base.kv_heads;
        struct body *b = &t->bodies[i];
        b->rows = (i < t->base.kv_heads ? t->trace.k : t->trace.v) + h * rows;
        b->mean = t->floats + i * d * (d + 1);
        b->turn = b->mean + d;
        b->axes = t->doubles + i * d * d;
        if (t->gap > 0 && !find_axes(t, b))
            return false;
    }
    return true;
}

static void set_shape(struct tiled *t, uint32_t tokens)
{
    const struct cli_trace_meta *m = &t->trace.meta;
    t->rope = (struct hr_rope){m->rope_layout, m->n_rot, m->rope_frequencies};
    t->base = (struct hrb_rows){.q_heads = m->n_q_heads,
                                .kv_heads = m->n_kv_heads,
                                .dim = m->head_dim,
                                .dtype = HR_DTYPE_F16,
                                .scale = (float)m->scale,
                                .rope = m->rope_layout == HR_ROPE_NONE ? NULL : &t->rope,
                                .error_steps = m->scored.n,
                                .chunk = chunk,
                                .make = make,
                                .shown = shown,
                                .before = before,
                                .rewind = rewind_to_first,
                                .query = query,
                                .free = tiled_free};
    t->first = m->scored.at[0];
    t->gap = tokens > m->n_tokens ? tokens - t->first : 0;
    t->base.tokens = t->first + t->gap;
    t->copy = UINT32_MAX;
    t->shown_from = m->seen.n;
    while (t->shown_from > 0 && m->seen.n - t->shown_from < HRB_ROWS_CHUNK &&
           (t->shown_from == m->seen.n ||
            m->seen.at[t->shown_from - 1] + 1 == m->seen.at[t->shown_from]))
        t->shown_from--;
}

struct hrb_rows *hrb_rows_trace(const char *dir, uint32_t tokens, char *why, size_t why_bytes)
{
    struct tiled *t = calloc(1, sizeof *t);
    if (!t || cli_trace_load(dir, &t->trace)) {
        snprintf(why, why_bytes, "%s", t ? "the trace cannot be read" : "out of memory");
        free(t);
        return NULL;
    }
    set_shape(t, tokens);
    if (t->first < 2 * SINK_ROWS || tokens < t->first)
        snprintf(why, why_bytes, "the trace's first scored query stands at token %u", t->first);
    else if (!alloc_bodies(t))
        snprintf(why, why_bytes, "out of memory");
    else
        return &t->base;
    tiled_free(&t->base);
    return NULL;
}

/* ----------------------------------------------------------------------------------------- truth */

/* A softmax that goes on; o beside it. */
struct softmax {
    double most, sum, copies;
    double *o;
};

static void attend_row(struct tiled *t, struct softmax *s, const float *q, const uint16_t *k,
                       const uint16_t *v, bool copy)
{
    const uint32_t d = t->base.dim;
    double logit = 0;
    for (uint32_t i = 0; i < d; i++)
        logit += (double)q[i] * (double)cli_float_from_half(k[i]);
    logit *= t->trace.meta.scale;
    if (logit > s->most) {
        const double shrink = exp(s->most - logit);
        s->most = logit;
        s->sum *= shrink;
        s->copies *= shrink;
        for (uint32_t i = 0; i < d; i++)
            s->o[i] *= shrink;
    }
    const double weight = exp(logit - s->most);
    s->sum += weight;
    s->copies += copy ? weight : 0;
    for (uint32_t i = 0; i < d; i++)
        s->o[i] += weight * (double)cli_float_from_half(v[i]);
}

static void attend_all(struct tiled *t, struct softmax *s, const float *q, uint16_t *k, uint16_t *v)
{
    const size_t d = t->base.dim;
    const uint32_t n = t->base.tokens + 1, group = t->base.q_heads / t->base.kv_heads;
    t->at = 0;
    for (uint32_t at = 0; at < n; at++) {
        t->base.make(&t->base, 1, k, v);
        for (uint32_t h = 0; h < t->base.q_heads; h++)
            attend_row(t, &s[h], q + h * d, k + (h / group) * d, v + (h / group) * d,
                       in_copy(t, at));
    }
}

bool hrb_rows_trace_truth(struct hrb_rows *self, struct hrb_rows_truth *truth)
{
    struct tiled *t = (struct tiled *)self;
    const size_t d = self->dim, heads = self->q_heads;
    const uint32_t at = t->at;
    struct softmax *s = calloc(heads, sizeof *s);
    double *o = calloc(heads * d, sizeof *o);
    float *q = malloc(heads * d * sizeof *q);
    uint16_t *rows = malloc(2 * self->kv_heads * d * sizeof *rows);
    const bool fine = s && o && q && rows;
    truth->copies_mass = 0;
    truth->copies = (double)t->gap / span(t);
    for (size_t h = 0; fine && h < heads; h++)
        s[h] = (struct softmax){.most = -INFINITY, .o = o + h * d};
    if (fine) {
        put_queries(t, t->trace.q, t->trace.meta.scored.n, 0, 1, q);
        attend_all(t, s, q, rows, rows + self->kv_heads * d);
    }
    for (size_t h = 0; fine && h < heads; h++) {
        truth->copies_mass += s[h].copies / s[h].sum / (double)heads;
        for (size_t i = 0; i < d; i++)
            truth->out[h * d + i] = (float)(s[h].o[i] / s[h].sum);
    }
    t->at = at;
    free(s);
    free(o);
    free(q);
    free(rows);
    return fine;
}
