#include "cli/plan_model.h"

#include <math.h>
#include <string.h>

/* As the recipe `headrace` has them (docs/algorithm.md). */
#define SINK_ROWS       4
#define WINDOW_ROWS     64
#define SEGMENT_ROWS    256 /* leave the window together while decoding */
#define LOG_ROWS        64
#define FRAME_STEPS     8 /* frames for so many steps' worth of refined rows */
#define SKETCHED_ROWS   48.0
#define SUMMARY_ROWS    36.0
#define FAMILY_BLOCKS   8.0 /* blocks of a family, where a head without sketches has at least ... */
#define FAMILIES_FROM   2048.0 /* ... so many */
#define RESTS_FROM_BITS 2
#define BASIS_ROWS      4096.0 /* a basis of sketches serves at least so many */
#define BASES_MAX       512.0
#define LONE_ROWS       64.0 /* one row in so many is listed with its own miss */
#define SHAPE_C_RANK    24
#define SHAPE_D_RANK    8
#define BISECTIONS      60
#define RATE_MOST       1e15 /* bytes a second; more than any machine has */

const char *plan_part_name(enum plan_part part)
{
    static const char *const names[PLAN_PARTS] = {"append",
                                                  "index",
                                                  "select",
                                                  "fetch from host",
                                                  "fetch from file",
                                                  "attend",
                                                  "the rest of the model"};
    return part < PLAN_PARTS ? names[part] : "?";
}

static double block_rows(unsigned sketch)
{
    return sketch ? SKETCHED_ROWS : SUMMARY_ROWS;
}

static double least(double a, double b)
{
    return a < b ? a : b;
}

/* Codes of mean key and mean value, their steps, rows, spread, peak, and the steps of the int8 rows;
 * per head the mean key and the shape. In long texts without sketches, families. */
double plan_summary_bytes(const struct plan_shape *shape, double rows, unsigned sketch)
{
    double d = shape->head_dim, blocks = ceil(rows / block_rows(sketch));
    double per_head = 4 * d + SHAPE_C_RANK * (d + 4) + SHAPE_D_RANK * (2 * d + 8) + 4 * d;
    double bytes = blocks * (2 * d + 4 + 4 + 9 + 3) + per_head;
    if (sketch == 0 && blocks >= FAMILIES_FROM) /* members' keys once more; families */
        bytes += blocks * (d + 4 + 4 + (2 * d + 8 + 3 + 18) / FAMILY_BLOCKS) + per_head;
    return bytes;
}

double plan_sketch_bytes(const struct plan_shape *shape, double rows, unsigned sketch)
{
    if (sketch == 0)
        return 0;
    double d = shape->head_dim, lines = floor(sketch * d / 32), coded = least(16 * lines, d);
    double bases = least(rows / BASIS_ROWS + 2, BASES_MAX);
    double basis = d * d + coded * d + 4 * (2 * d + 2 * coded);
    return rows * lines * 4 + bases * basis + rows / SKETCHED_ROWS * 5 + rows / LONE_ROWS * 5;
}

struct plan_rates plan_given_rates(const struct plan_machine *m, double layer_s)
{
    struct plan_rates r = {.sketch_share = 1, .sketch_share_rows = 1, .sketch_slope = 1};
    r.select = (struct plan_cost){layer_s, m->device_bps > 0 ? 1 / m->device_bps : 0};
    r.attend = (struct plan_cost){0, r.select.s_per_byte};
    r.fetch[0].s_per_byte = m->host_bps > 0 ? 1 / m->host_bps : 0;
    r.fetch[1].s_per_byte = m->file_bps > 0 ? 1 / m->file_bps : 0;
    return r;
}

/* ------------------------------------------------------------------------------ what lies where */

static double body_rows(uint64_t tokens)
{
    double near = SINK_ROWS + WINDOW_ROWS;
    return (double)tokens > near ? (double)tokens - near : 0;
}

static double near_rows(uint64_t tokens)
{
    return (double)tokens - body_rows(tokens);
}

static double heads_of(const struct plan_shape *shape, const struct plan_use *use)
{
    return (double)shape->layers * shape->kv_heads * use->sequences;
}

static double exact_row_bytes(const struct plan_shape *shape)
{
    return 2.0 * shape->head_dim * shape->dtype_bytes;
}

static void hold_device(const struct plan_shape *shape, const struct plan_use *use,
                        const struct plan_machine *machine, struct plan *p)
{
    double heads = heads_of(shape, use), rows = body_rows(p->tokens), row = exact_row_bytes(shape),
           frames;
    double step = use->moved * rows * row * heads; /* bytes that one step refines */
    p->window_bytes = heads * row * (2 * SINK_ROWS + WINDOW_ROWS + SEGMENT_ROWS + 2 * LOG_ROWS);
    p->sketch = use->sketch + 1;
    do {
        p->sketch--;
        p->summary_bytes = heads * plan_summary_bytes(shape, rows, p->sketch);
        p->sketch_bytes = heads * plan_sketch_bytes(shape, rows, p->sketch);
        p->device_need_bytes =
            p->window_bytes + p->summary_bytes + p->sketch_bytes + step / shape->layers;
    } while (p->sketch > 0 && p->device_need_bytes > machine->device_bytes);
    frames = machine->device_bytes - (p->device_need_bytes - step / shape->layers);
    p->frame_bytes = frames < 0 ? step / shape->layers : least(frames, FRAME_STEPS * step);
    p->device_room_bytes = machine->device_bytes - p->window_bytes - p->summary_bytes -
                           p->sketch_bytes - p->frame_bytes;
}

/* int8 rows come first: they are what a step moves. Exact rows take what is left of the host. */
static void hold_below(const struct plan_shape *shape, const struct plan_use *use,
                       const struct plan_machine *machine, struct plan *p)
{
    double heads = heads_of(shape, use);
    p->int8_bytes = heads * body_rows(p->tokens) * 2 * shape->head_dim;
    p->exact_bytes = heads * (double)p->tokens * exact_row_bytes(shape);
    /* Where host memory has the only copy: what sketches leave of the rows' values. */
    bool rests = machine->file_bytes <= 0 && p->sketch >= RESTS_FROM_BITS;
    p->rest_bytes = rests ? heads * body_rows(p->tokens) * (shape->head_dim / 4.0 + 1) : 0;
    double host = machine->host_bytes - p->rest_bytes;
    host = host > 0 ? host : 0;
    p->host_int8_bytes = least(host, p->int8_bytes);
    p->host_exact_bytes = least(host - p->host_int8_bytes, p->exact_bytes);
    double all = p->int8_bytes + p->exact_bytes + p->rest_bytes;
    double lower = machine->file_bytes > 0 ? machine->file_bytes : machine->host_bytes;
    p->file_room_bytes = lower - all;
    p->fits = p->device_room_bytes >= 0 && p->file_room_bytes >= 0;
}

/* ----------------------------------------------------------------------------------- what moves */

static double sketch_read(const struct plan_rates *rates, double rows, double all)
{
    double share = rates->sketch_share;
    if (rows > 0 && rates->sketch_share_rows > 0)
        share *= pow(rows / rates->sketch_share_rows, rates->sketch_slope - 1);
    return least(share, 1) * all;
}

struct reads { /* of one layer of one sequence */
    double select, attend, host, file;
};

static struct reads reads_of(const struct plan_shape *shape, const struct plan_use *use,
                             const struct plan_rates *rates, const struct plan *p)
{
    double units = (double)shape->layers * use->sequences, rows = body_rows(p->tokens);
    double row = exact_row_bytes(shape) * shape->kv_heads;
    double refined = use->moved * rows * row, missed = refined * (1 - use->hit);
    double in_host = p->int8_bytes > 0 ? p->host_int8_bytes / p->int8_bytes : 1;
    double sketch = sketch_read(rates, rows, p->sketch_bytes / units);
    return (struct reads){
        .select = p->summary_bytes / units + sketch,
        .attend = near_rows(p->tokens) * row + refined +
                  rates->rereads * (p->summary_bytes / units + sketch),
        .host = missed * in_host,
        .file = missed * (1 - in_host),
    };
}

static double cost(const struct plan_cost *c, double bytes)
{
    return bytes > 0 || c->fixed_s > 0 ? c->fixed_s + bytes * c->s_per_byte : 0;
}

/* Given rates say nothing of fixed times but a layer's, which sequences share. */
static void time_parts(const struct plan_shape *shape, const struct plan_use *use,
                       const struct plan_rates *rates, const struct reads *r, struct plan *p)
{
    double n = (double)shape->layers * use->sequences, hide;
    struct plan_cost select = rates->select;
    if (!rates->measured)
        select.fixed_s /= use->sequences;
    p->part_s[PLAN_APPEND] = n * rates->append.fixed_s;
    p->part_s[PLAN_INDEX] = n * shape->kv_heads * rates->index_s_per_row;
    p->part_s[PLAN_SELECT] = n * cost(&select, r->select);
    p->part_s[PLAN_ATTEND] = n * cost(&rates->attend, r->attend);
    p->part_s[PLAN_FETCH_HOST] = r->host > 0 ? n * cost(&rates->fetch[0], r->host) : 0;
    p->part_s[PLAN_FETCH_FILE] = r->file > 0 ? n * cost(&rates->fetch[1], r->file) : 0;
    p->part_s[PLAN_OTHER] = use->other_s;
    /* What was measured is what a step waited for. Otherwise the file's reads run while the rest is attended. */
    hide = rates->measured ? 0 : least(p->part_s[PLAN_FETCH_FILE], p->part_s[PLAN_ATTEND]);
    p->hidden_s = hide;
    p->part_s[PLAN_FETCH_FILE] -= hide;
}

/* Every exact row once: those in the host over its link, the rest from the file, both at once at best. Where
 * the device has room for all of it, from there. */
static double exact_bound(const struct plan_machine *m, const struct plan *p)
{
    double host = least(m->host_bytes, p->exact_bytes), file = p->exact_bytes - host;
    if (m->device_bytes >= p->exact_bytes)
        return p->exact_bytes / m->device_bps;
    double host_s = m->host_bps > 0 ? host / m->host_bps : 0;
    double file_s = file <= 0 ? 0 : m->file_bps > 0 ? file / m->file_bps : INFINITY;
    return host_s > file_s ? host_s : file_s;
}

void plan_evaluate(const struct plan_shape *shape, const struct plan_use *use,
                   const struct plan_machine *machine, const struct plan_rates *rates,
                   uint64_t tokens, struct plan *p)
{
    memset(p, 0, sizeof *p);
    p->tokens = tokens;
    hold_device(shape, use, machine, p);
    hold_below(shape, use, machine, p);
    struct reads r = reads_of(shape, use, rates, p);
    double n = (double)shape->layers * use->sequences;
    p->device_read_bytes = n * (r.select + r.attend);
    p->host_moved_bytes = n * r.host;
    p->file_moved_bytes = n * r.file;
    time_parts(shape, use, rates, &r, p);
    for (unsigned i = 0; i < PLAN_PARTS; i++) {
        p->step_s += p->part_s[i];
        if (p->part_s[i] > p->part_s[p->bound])
            p->bound = i;
    }
    p->tokens_per_s = p->step_s > 0 ? use->sequences / p->step_s : 0;
    p->exact_step_s = exact_bound(machine, p);
}

/* -------------------------------------------------------------------------------- what is enough */

static double with(const struct plan_shape *shape, const struct plan_use *use,
                   struct plan_machine machine, struct plan_rates rates, uint64_t tokens,
                   enum plan_thing thing, double amount)
{
    struct plan p;
    double per_byte = amount > 0 ? 1 / amount : INFINITY;
    if (thing == PLAN_HOST_BYTES)
        machine.host_bytes = amount;
    if (thing == PLAN_DEVICE_BPS)
        rates.select.s_per_byte = rates.attend.s_per_byte = per_byte;
    if (thing == PLAN_HOST_BPS)
        rates.fetch[0].s_per_byte = per_byte;
    if (thing == PLAN_FILE_BPS)
        rates.fetch[1].s_per_byte = per_byte;
    plan_evaluate(shape, use, &machine, &rates, tokens, &p);
    return isfinite(p.step_s) ? p.tokens_per_s : 0;
}

double plan_least(const struct plan_shape *shape, const struct plan_use *use,
                  const struct plan_machine *machine, const struct plan_rates *rates,
                  uint64_t tokens, double tokens_per_s, enum plan_thing thing)
{
    struct plan p;
    struct plan_machine roomy = *machine;
    roomy.device_bytes = INFINITY;
    plan_evaluate(shape, use, &roomy, rates, tokens, &p);
    if (thing ==
        PLAN_DEVICE_BYTES) /* room is needed whatever the speed; more of it does not help */
        return p.device_need_bytes;
    double low = 0, high = thing == PLAN_HOST_BYTES ? p.int8_bytes : RATE_MOST;
    if (with(shape, use, *machine, *rates, tokens, thing, 0) >= tokens_per_s)
        return 0;
    if (with(shape, use, *machine, *rates, tokens, thing, high) < tokens_per_s)
        return -1;
    for (int i = 0; i < BISECTIONS; i++) {
        /* Rates spread over many powers of ten: the middle of their logarithms. */
        double middle =
            thing == PLAN_HOST_BYTES || low <= 0 ? 0.5 * (low + high) : sqrt(low * high);
        if (with(shape, use, *machine, *rates, tokens, thing, middle) >= tokens_per_s)
            high = middle;
        else
            low = middle;
    }
    return high;
}
