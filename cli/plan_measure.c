#include "cli/plan_measure.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <headrace/headrace.h>

#include "cli/out.h"

/* New clusters come as the text grows, finer than blocks: blocks then look alike at any length, and nearly all sketches are read,
 * which is the dear case. */
#define CLUSTER_ROWS 16u
#define CLUSTERS_MIN 64u
#define CHUNK        1024u
#define STEPS        24u
#define WARM_STEPS   4u
#define STEPS_MAX    128u
#define DEEP         0.35f /* a row's distance from its cluster's centre, in deviations of the centres */
#define SEGMENT_ROWS 512u /* decode_segment of the recipe */

struct plan_probe {
    struct plan_probe_options o;
    uint32_t heads, group, dim, clusters_max;
    hr_runtime_t *runtime;
    hr_sequence_t *sequence;
    uint64_t random;
    float *centre;   /* [2][heads][clusters_max][dim]: of keys, then of values */
    uint16_t *k, *v; /* [CHUNK][heads][dim] bf16 */
    float *q, *out;  /* [heads * group][dim] */
};

/* ----------------------------------------------------------------------------------------- rows */

static uint64_t next(struct plan_probe *p) /* splitmix64 */
{
    uint64_t z = p->random += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* A sum of four uniforms is near enough to normal. */
static float noise(struct plan_probe *p)
{
    uint64_t bits = next(p);
    int sum = (int)(bits & 0xffff) + (int)((bits >> 16) & 0xffff) + (int)((bits >> 32) & 0xffff) +
              (int)(bits >> 48);
    return ((float)sum * (1 / 65536.0f) - 2) * 1.7320508f;
}

static uint16_t bf16(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}

static const float *centre_of(const struct plan_probe *p, uint32_t side, uint32_t head,
                              uint32_t cluster)
{
    return p->centre + (((size_t)side * p->heads + head) * p->clusters_max + cluster) * p->dim;
}

/* A cluster that the text has met so far. */
static uint32_t any_cluster(struct plan_probe *p)
{
    uint32_t met = p->sequence ? hr_sequence_length(p->sequence, 0) / CLUSTER_ROWS : 0;
    met = met < CLUSTERS_MIN ? CLUSTERS_MIN : met;
    return (uint32_t)(next(p) % (met < p->clusters_max ? met : p->clusters_max));
}

static void make_rows(struct plan_probe *p, uint32_t n)
{
    for (uint32_t i = 0; i < n * p->heads; i++) {
        uint32_t head = i % p->heads, cluster = any_cluster(p);
        const float *k = centre_of(p, 0, head, cluster), *v = centre_of(p, 1, head, cluster);
        for (uint32_t j = 0; j < p->dim; j++) {
            p->k[(size_t)i * p->dim + j] = bf16(k[j] + DEEP * noise(p));
            p->v[(size_t)i * p->dim + j] = bf16(v[j] + DEEP * noise(p));
        }
    }
}

/* Each query head looks for one cluster. */
static void make_queries(struct plan_probe *p)
{
    float pull = 1.1f * sqrtf(128.0f / (float)p->dim);
    for (uint32_t h = 0; h < p->heads * p->group; h++) {
        const float *k = centre_of(p, 0, h / p->group, any_cluster(p));
        for (uint32_t j = 0; j < p->dim; j++)
            p->q[(size_t)h * p->dim + j] = pull * k[j] + DEEP * noise(p);
    }
}

static hr_status_t append(struct plan_probe *p, uint32_t n)
{
    struct hr_tensor k = hr_tensor_make(p->k, HR_DTYPE_BF16, n, p->heads, p->dim);
    struct hr_tensor v = hr_tensor_make(p->v, HR_DTYPE_BF16, n, p->heads, p->dim);
    make_rows(p, n);
    return hr_sequence_append(p->sequence, 0, &k, &v, NULL);
}

static hr_status_t attend(struct plan_probe *p, hr_attend_mode_t mode,
                          struct hr_attend_report *report)
{
    uint32_t n_q = p->heads * p->group;
    struct hr_tensor q = hr_tensor_make(p->q, HR_DTYPE_F32, 1, n_q, p->dim);
    struct hr_tensor out = hr_tensor_make(p->out, HR_DTYPE_F32, 1, n_q, p->dim);
    struct hr_attend_options options;
    hr_attend_options_init(&options);
    options.mode = mode;
    make_queries(p);
    return hr_sequence_attend(p->sequence, 0, &q, &options, &out, report, NULL);
}

/* ---------------------------------------------------------------------------------------- set-up */

static hr_status_t open_runtime(struct plan_probe *p)
{
    struct hr_runtime_options o;
    uint64_t exact = (uint64_t)p->o.tokens_max * p->heads * 4 * p->dim;
    hr_runtime_options_init(&o);
    o.device_bytes = exact / 2 + (64u << 20);
    o.host_bytes = 3 * exact + (64u << 20);
    o.n_threads = p->o.threads;
    if (p->o.file_dir) {
        /* A host tier too small to matter: what is wanted is the file's time. */
        o.file_dir = p->o.file_dir;
        o.file_bytes = o.host_bytes;
        o.host_bytes = 4u << 20;
    }
    return hr_runtime_create(&o, &p->runtime);
}

static hr_status_t open_sequence(struct plan_probe *p)
{
    struct hr_sequence_options o;
    char recipe[64];
    snprintf(recipe, sizeof recipe, "headrace:sketch=%u", p->o.sketch);
    hr_sequence_options_init(&o);
    o.n_layers = 1;
    o.n_kv_heads = p->heads;
    o.n_q_heads = p->heads * p->group;
    o.k_dim = o.v_dim = p->dim;
    o.tokens_max = p->o.tokens_max;
    o.recipe = recipe;
    o.moved = p->o.moved;
    return hr_sequence_create(p->runtime, &o, &p->sequence);
}

static bool alloc_arrays(struct plan_probe *p)
{
    size_t centres = (size_t)2 * p->heads * p->clusters_max * p->dim,
           rows = (size_t)CHUNK * p->heads * p->dim, queries = (size_t)p->heads * p->group * p->dim;
    p->centre = malloc(centres * sizeof *p->centre);
    p->k = malloc(rows * sizeof *p->k);
    p->v = malloc(rows * sizeof *p->v);
    p->q = malloc(queries * sizeof *p->q);
    p->out = malloc(queries * sizeof *p->out);
    if (!p->centre || !p->k || !p->v || !p->q || !p->out)
        return false;
    for (size_t i = 0; i < centres; i++)
        p->centre[i] = noise(p);
    return true;
}

int plan_probe_open(const struct plan_probe_options *options, struct plan_probe **probe_out)
{
    struct plan_probe *p = calloc(1, sizeof *p);
    if (!p)
        return cli_fail("out of memory");
    p->o = *options;
    p->heads = options->shape.kv_heads;
    p->group = options->shape.group;
    p->dim = options->shape.head_dim;
    p->random = 7;
    p->clusters_max = options->tokens_max / CLUSTER_ROWS + CLUSTERS_MIN;
    int code = alloc_arrays(p) ? 0 : cli_fail("out of memory");
    hr_status_t status = code ? HR_OK : open_runtime(p);
    if (!code && status == HR_OK)
        status = open_sequence(p);
    if (!code && status != HR_OK)
        code = cli_fail_status("measuring a step", status);
    if (code) {
        plan_probe_close(p);
        return code;
    }
    *probe_out = p;
    return 0;
}

void plan_probe_close(struct plan_probe *p)
{
    if (!p)
        return;
    hr_sequence_destroy(p->sequence);
    hr_runtime_destroy(p->runtime);
    free(p->centre);
    free(p->k);
    free(p->v);
    free(p->q);
    free(p->out);
    free(p);
}

int plan_probe_grow(struct plan_probe *p, uint32_t tokens)
{
    struct hr_attend_report report;
    hr_status_t status = HR_OK;
    for (uint32_t at = hr_sequence_length(p->sequence, 0); at < tokens && status == HR_OK;
         at = hr_sequence_length(p->sequence, 0)) {
        if (p->o.stop && p->o.stop())
            return cli_fail("stopped");
        status = append(p, tokens - at < CHUNK ? tokens - at : CHUNK);
        /* The method learns from the queries that pass, as in a prompt. */
        if (status == HR_OK && at % (8 * CHUNK) == 0)
            status = attend(p, HR_ATTEND_EXACT, &report);
    }
    if (status == HR_OK)
        status = hr_sequence_settle(p->sequence, 0);
    return status == HR_OK ? 0 : cli_fail_status("measuring a step", status);
}

/* ----------------------------------------------------------------------------------------- steps */

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *x, unsigned n)
{
    qsort(x, n, sizeof *x, compare);
    return n ? x[n / 2] : 0;
}

static double now_s(void)
{
    return (double)cli_now_ns() * 1e-9;
}

static void add_report(struct plan_sample *s, const struct hr_attend_report *r, unsigned n)
{
    for (unsigned i = 0; i < HR_LEVELS; i++)
        s->level_bytes[i] += (double)r->bytes_by_level[i] / n;
    s->host_bytes += (double)r->bytes_from_host / n;
    s->file_bytes += (double)r->bytes_from_file / n;
}

static hr_status_t sample_exact(struct plan_probe *p, struct plan_sample *s)
{
    double rate[3];
    for (unsigned i = 0; i < 3; i++) {
        struct hr_attend_report report;
        double start = now_s();
        hr_status_t status = attend(p, HR_ATTEND_EXACT, &report);
        if (status != HR_OK)
            return status;
        rate[i] = (double)report.bytes_by_level[3] / (now_s() - start);
    }
    s->exact_bps = median(rate, 3);
    return HR_OK;
}

int plan_probe_steps(struct plan_probe *p, unsigned n, struct plan_sample *s)
{
    double stage[HR_STAGES][STEPS_MAX], whole[STEPS_MAX];
    struct hr_sequence_stats stats = {.struct_size = sizeof stats};
    hr_status_t status = HR_OK;
    n = n < STEPS_MAX ? n : STEPS_MAX;
    memset(s, 0, sizeof *s);
    for (unsigned i = 0; i < n + WARM_STEPS && status == HR_OK; i++) {
        struct hr_attend_report report;
        unsigned at = i < WARM_STEPS ? 0 : i - WARM_STEPS;
        make_rows(p, 1);
        status = append(p, 1);
        double start = now_s();
        if (status == HR_OK)
            status = attend(p, HR_ATTEND_RECIPE, &report);
        if (status != HR_OK || i < WARM_STEPS)
            continue;
        for (unsigned j = 0; j < HR_STAGES; j++)
            stage[j][at] = (double)report.time_ns[j] * 1e-9;
        whole[at] = now_s() - start;
        add_report(s, &report, n);
    }
    if (status == HR_OK)
        status = sample_exact(p, s);
    if (status == HR_OK)
        status = hr_sequence_stats_get(p->sequence, &stats);
    if (status != HR_OK)
        return cli_fail_status("measuring a step", status);
    s->tokens = hr_sequence_length(p->sequence, 0);
    for (unsigned j = 0; j < HR_STAGES; j++)
        s->stage_s[j] = median(stage[j], n);
    s->step_s = median(whole, n) + s->stage_s[0];
    s->summary_held = (double)stats.summary_bytes;
    s->sketch_held = (double)stats.sketch_bytes;
    return 0;
}

int plan_probe_trace(struct plan_probe *p, unsigned n, double *append_s, double *step_s)
{
    struct hr_attend_report r;
    hr_status_t status = attend(p, HR_ATTEND_RECIPE, &r); /* its report has the growing's times */
    for (unsigned i = 0; i < n && status == HR_OK; i++) {
        struct hr_tensor k = hr_tensor_make(p->k, HR_DTYPE_BF16, 1, p->heads, p->dim);
        struct hr_tensor v = hr_tensor_make(p->v, HR_DTYPE_BF16, 1, p->heads, p->dim);
        make_rows(p, 1);
        double start = now_s();
        status = hr_sequence_append(p->sequence, 0, &k, &v, NULL);
        if (status == HR_OK)
            status = attend(p, HR_ATTEND_RECIPE, &r);
        step_s[i] = now_s() - start;
        append_s[i] = (double)(r.time_ns[0] + r.time_ns[1] + r.time_ns[2]) * 1e-9;
    }
    return status == HR_OK ? 0 : cli_fail_status("measuring a step", status);
}

int plan_probe_index(struct plan_probe *p, double *s_per_row_out)
{
    struct hr_sequence_stats before = {.struct_size = sizeof before}, after = before;
    struct hr_attend_report report;
    hr_status_t status = hr_sequence_stats_get(p->sequence, &before);
    for (uint32_t i = 0; i < SEGMENT_ROWS + 1 && status == HR_OK; i++) {
        status = append(p, 1);
        if (status == HR_OK && (i == SEGMENT_ROWS || i == 0))
            status = attend(p, HR_ATTEND_RECIPE, &report);
    }
    if (status == HR_OK)
        status = hr_sequence_stats_get(p->sequence, &after);
    if (status != HR_OK)
        return cli_fail_status("measuring grouping", status);
    double rows = (double)(after.body_rows - before.body_rows);
    *s_per_row_out = rows > 0 ? (double)(after.index_ns - before.index_ns) * 1e-9 / rows : 0;
    return 0;
}

/* ------------------------------------------------------------------------------------------- fit */

struct plan_cost plan_cost_through(double bytes_a, double s_a, double bytes_b, double s_b)
{
    struct plan_cost c = {s_a < s_b ? s_a : s_b, 0};
    if (!(bytes_b > bytes_a * 1.05))
        return c;
    c.s_per_byte = (s_b - s_a) / (bytes_b - bytes_a);
    c.fixed_s = s_b - c.s_per_byte * bytes_b;
    if (c.s_per_byte <= 0)
        return (struct plan_cost){s_b, 0};
    if (c.fixed_s < 0) /* slower per byte at the greater length: what it was there */
        return (struct plan_cost){0, s_b / bytes_b};
    return c;
}

static double known_bytes(const struct plan_sample *s)
{
    return s->level_bytes[0] + s->level_bytes[1];
}

static double attend_bytes(const struct plan_sample *s)
{
    return known_bytes(s) + s->level_bytes[2] + s->level_bytes[3];
}

void plan_rates_fit(const struct plan_sample *a, const struct plan_sample *b, bool file,
                    struct plan_rates *r)
{
    r->measured = true;
    r->rereads = 1;
    r->append = (struct plan_cost){b->stage_s[0] + b->stage_s[1], 0};
    r->select = plan_cost_through(known_bytes(a), a->stage_s[3], known_bytes(b), b->stage_s[3]);
    r->attend = plan_cost_through(attend_bytes(a), a->stage_s[5], attend_bytes(b), b->stage_s[5]);
    double moved_a = file ? a->file_bytes : a->host_bytes,
           moved_b = file ? b->file_bytes : b->host_bytes;
    r->fetch[file] = plan_cost_through(moved_a, a->stage_s[4], moved_b, b->stage_s[4]);
    r->sketch_share_rows = (double)b->tokens;
    r->sketch_share = b->sketch_held > 0 ? b->level_bytes[1] / b->sketch_held : 1;
    double growth = log((double)b->tokens / (double)a->tokens);
    r->sketch_slope = 1;
    if (a->level_bytes[1] > 0 && growth > 0)
        r->sketch_slope = log(b->level_bytes[1] / a->level_bytes[1]) / growth;
    r->sketch_slope = r->sketch_slope < 0 ? 0 : r->sketch_slope > 1 ? 1 : r->sketch_slope;
}

static int measure_one(const struct plan_probe_options *options, bool file, struct plan_sample *a,
                       struct plan_sample *b, double *index_s)
{
    struct plan_probe_options o = *options;
    struct plan_probe *probe = NULL;
    o.file_dir = file ? options->file_dir : NULL;
    o.tokens_max = PLAN_MEASURE_LONG + 4 * SEGMENT_ROWS;
    cli_note("measuring steps of a layer at %u and %u tokens, rows in %s", PLAN_MEASURE_SHORT,
             PLAN_MEASURE_LONG, file ? "the file" : "host memory");
    int code = plan_probe_open(&o, &probe);
    if (!code)
        code = plan_probe_grow(probe, PLAN_MEASURE_SHORT);
    if (!code)
        code = plan_probe_steps(probe, STEPS, a);
    if (!code)
        code = plan_probe_grow(probe, PLAN_MEASURE_LONG);
    if (!code)
        code = plan_probe_steps(probe, STEPS, b);
    if (!code && !file)
        code = plan_probe_index(probe, index_s);
    plan_probe_close(probe);
    return code;
}

int plan_measure(const struct plan_probe_options *options, struct plan_machine *machine,
                 struct plan_rates *rates_out)
{
    struct plan_sample a, b;
    struct plan_rates r = {0};
    double index_s = 0;
    int code = measure_one(options, false, &a, &b, &index_s);
    if (code)
        return code;
    plan_rates_fit(&a, &b, false, &r);
    r.index_s_per_row = index_s;
    machine->device_bps = machine->host_bps = b.exact_bps;
    if (options->file_dir) {
        struct plan_rates file = {0};
        if ((code = measure_one(options, true, &a, &b, &index_s)) != 0)
            return code;
        plan_rates_fit(&a, &b, true, &file);
        file.fetch[0] = r.fetch[0];
        file.index_s_per_row = r.index_s_per_row;
        r = file;
        machine->file_bps = r.fetch[1].s_per_byte > 0 ? 1 / r.fetch[1].s_per_byte : b.exact_bps;
    }
    *rates_out = r;
    return 0;
}
