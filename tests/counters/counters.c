/* What a step does for fixed inputs, in numbers that do not depend on how fast the machine is: bytes read at each level, rows and
 * blocks refined, I/Os, bytes asked of the file, hits, allocations.
 *
 *   counters                 prints them as tab-separated lines: case, counter, value
 *   counters check RECORD    compares them with a record; prints what differs and fails
 *   counters step CASE       fills CASE and makes its steps, for callgrind: all within counted_step()
 *
 * Counts come from the plain C kernels, which compilers and processors agree on; one thread, so that nothing depends on who was first. */
#include <headrace/headrace.h>

#include "base/half.h"
#include "base/rng.h"
#include "offload/store.h"
#include "runtime/sequence.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DIM      64u
#define KV_HEADS 2u
#define GROUP    4u
#define Q_HEADS  (KV_HEADS * GROUP)
#define CLUSTERS 64u
#define FILLED   4096u
#define CHUNK    256u
#define STEPS    24u
#define COUNTERS 24u

struct one_case {
    const char *name, *recipe;
    int file;        /* rows lie in a file, with little host memory over it */
    uint32_t filled; /* tokens before the first step; 0: FILLED */
};
static const struct one_case cases[] = {
    {"headrace-host", "headrace", 0, 0},
    {"headrace-file", "headrace", 1, 0},
    {"headrace-summaries-host", "headrace:sketch=0", 0, 0},
    {"headrace-summaries-file", "headrace:sketch=0", 1, 0},
    {"headrace-families-host", "headrace:sketch=0,block=4", 0, 12288},
    {"quest-host", "quest", 0, 0},
    {"quest-file", "quest", 1, 0},
    {"retroinfer-file", "retroinfer", 1, 0},
    {"full-file", "full", 1, 0},
};
#define CASES (sizeof cases / sizeof cases[0])

struct world {
    hr_runtime_t *runtime;
    hr_sequence_t *sequence;
    struct hri_rng rng;
    uint32_t filled;
    float k_centre[KV_HEADS][CLUSTERS][DIM], v_centre[KV_HEADS][CLUSTERS][DIM];
    uint16_t k[CHUNK][KV_HEADS][DIM], v[CHUNK][KV_HEADS][DIM];
    float q[Q_HEADS][DIM], out[Q_HEADS][DIM];
};

static void need(hr_status_t status, const char *what)
{
    if (status == HR_OK)
        return;
    fprintf(stderr, "counters: %s: %s\n", what, hr_last_error());
    exit(1);
}

/* ----------------------------------------------------------------------------------------- inputs */

/* Clusters lie far apart and rows close to their centres: which rows belong together is beyond what rounding can change. */
static void make_rows(struct world *w, uint32_t n)
{
    for (uint32_t t = 0; t < n; t++)
        for (uint32_t h = 0; h < KV_HEADS; h++) {
            uint32_t c = (uint32_t)hri_rng_below(&w->rng, CLUSTERS);
            for (uint32_t i = 0; i < DIM; i++) {
                w->k[t][h][i] = hri_bf16_from_f32(w->k_centre[h][c][i] +
                                                  0.25f * (float)hri_rng_normal(&w->rng));
                w->v[t][h][i] = hri_bf16_from_f32(w->v_centre[h][c][i] +
                                                  0.25f * (float)hri_rng_normal(&w->rng));
            }
        }
}

static void make_queries(struct world *w)
{
    for (uint32_t h = 0; h < Q_HEADS; h++) {
        const float *c = w->k_centre[h / GROUP][hri_rng_below(&w->rng, CLUSTERS)];
        for (uint32_t i = 0; i < DIM; i++)
            w->q[h][i] = 0.9f * c[i] + 0.25f * (float)hri_rng_normal(&w->rng);
    }
}

static void append(struct world *w, uint32_t n)
{
    struct hr_tensor k = hr_tensor_make(w->k, HR_DTYPE_BF16, n, KV_HEADS, DIM);
    struct hr_tensor v = hr_tensor_make(w->v, HR_DTYPE_BF16, n, KV_HEADS, DIM);
    need(hr_sequence_append(w->sequence, 0, &k, &v, NULL), "append");
}

static void attend(struct world *w, hr_attend_mode_t mode, struct hr_attend_report *report)
{
    struct hr_tensor q = hr_tensor_make(w->q, HR_DTYPE_F32, 1, Q_HEADS, DIM);
    struct hr_tensor out = hr_tensor_make(w->out, HR_DTYPE_F32, 1, Q_HEADS, DIM);
    struct hr_attend_options options;
    hr_attend_options_init(&options);
    options.mode = mode;
    need(hr_sequence_attend(w->sequence, 0, &q, &options, &out, report, NULL), "attend");
}

/* What has been written to the file may leave host memory. When that is so is a matter of the disk, so wait for it. */
static void come_to_rest(struct world *w)
{
    need(hri_store_flush(w->runtime->store), "flush");
}

/* callgrind collects within this function alone. */
static __attribute__((noinline)) void counted_step(struct world *w, struct hr_attend_report *report)
{
    append(w, 1);
    attend(w, HR_ATTEND_RECIPE, report);
}

static struct world *open_world(const struct one_case *c, const char *cpu)
{
    struct hr_runtime_options ro;
    struct hr_sequence_options so;
    struct world *w = calloc(1, sizeof *w);
    if (!w)
        exit(1);
    w->filled = c->filled > 0 ? c->filled : FILLED;
    hr_runtime_options_init(&ro);
    ro.device_bytes = 6u << 20;
    ro.host_bytes = c->file ? 8u << 10 : 64u << 20;
    ro.file_dir = c->file ? HR_BINARY_DIR : NULL;
    ro.file_bytes = c->file ? 64u << 20 : 0;
    ro.n_threads = 1;
    ro.cpu_level = cpu;
    need(hr_runtime_create(&ro, &w->runtime), "runtime");
    hr_sequence_options_init(&so);
    so.n_layers = 1;
    so.n_q_heads = Q_HEADS;
    so.n_kv_heads = KV_HEADS;
    so.k_dim = so.v_dim = DIM;
    so.tokens_max = w->filled + 2 * STEPS + 256;
    so.recipe = c->recipe;
    so.moved = 0.02;
    need(hr_sequence_create(w->runtime, &so, &w->sequence), "sequence");
    hri_rng_seed(&w->rng, 11);
    for (uint32_t i = 0; i < KV_HEADS * CLUSTERS * DIM; i++) {
        (&w->k_centre[0][0][0])[i] = (float)hri_rng_normal(&w->rng);
        (&w->v_centre[0][0][0])[i] = (float)hri_rng_normal(&w->rng);
    }
    return w;
}

static void fill(struct world *w)
{
    struct hr_attend_report report;
    for (uint32_t done = 0; done < w->filled; done += CHUNK) {
        make_rows(w, CHUNK);
        append(w, CHUNK);
        come_to_rest(w);
        make_queries(w);
        attend(w, HR_ATTEND_EXACT, &report);
    }
    need(hr_sequence_settle(w->sequence, 0), "settle");
    come_to_rest(w);
    for (uint32_t i = 0; i < STEPS; i++) { /* frames and buffers come to rest */
        make_rows(w, 1);
        make_queries(w);
        counted_step(w, &report);
        come_to_rest(w);
    }
}

static void close_world(struct world *w)
{
    hr_sequence_destroy(w->sequence);
    need(hr_runtime_destroy(w->runtime), "runtime");
    free(w);
}

/* ---------------------------------------------------------------------------------------- counting */

struct counter {
    const char *name;
    uint64_t value;
};
struct counts {
    unsigned n;
    struct counter at[COUNTERS];
};

static void add(struct counts *counts, const char *name, uint64_t value)
{
    unsigned i = 0;
    while (i < counts->n && strcmp(counts->at[i].name, name) != 0)
        i++;
    if (i == counts->n)
        counts->at[counts->n++] = (struct counter){name, 0};
    counts->at[i].value += value;
}

static void add_report(struct counts *counts, const struct hr_attend_report *r)
{
    static const char *const bytes[HR_LEVELS] = {"bytes-summary", "bytes-sketch", "bytes-int8",
                                                 "bytes-exact"};
    static const char *const rows[HR_LEVELS] = {"rows-summary", "rows-sketch", "rows-int8",
                                                "rows-exact"};
    for (unsigned i = 0; i < HR_LEVELS; i++) {
        add(counts, bytes[i], r->bytes_by_level[i]);
        add(counts, rows[i], r->rows_by_level[i]);
    }
    add(counts, "blocks-hit", r->blocks_hit);
    add(counts, "blocks-fetched", r->blocks_fetched);
    add(counts, "blocks-estimated", r->blocks_estimated);
    add(counts, "blocks-late", r->blocks_late);
    add(counts, "bytes-selected", r->bytes_selected);
    add(counts, "rows-rests", r->rows_rests);
    add(counts, "bytes-rests", r->bytes_rests);
    add(counts, "bytes-from-host", r->bytes_from_host);
    add(counts, "bytes-from-file", r->bytes_from_file);
    add(counts, "reads", r->ios);
}

static void count_case(const struct one_case *c, struct counts *counts)
{
    struct world *w = open_world(c, "ref");
    struct hr_runtime_stats before = {.struct_size = sizeof before}, after = before;
    struct hr_sequence_stats held = {.struct_size = sizeof held};
    fill(w);
    need(hr_runtime_stats_get(w->runtime, &before), "stats");
    for (uint32_t i = 0; i < STEPS; i++) {
        struct hr_attend_report report;
        make_rows(w, 1);
        make_queries(w);
        counted_step(w, &report);
        come_to_rest(w);
        add_report(counts, &report);
    }
    need(hr_runtime_stats_get(w->runtime, &after), "stats");
    need(hr_sequence_stats_get(w->sequence, &held), "stats");
    add(counts, "allocations", after.allocations - before.allocations);
    add(counts, "file-reads", after.file_reads - before.file_reads);
    add(counts, "file-bytes-read", after.file_bytes_read - before.file_bytes_read);
    add(counts, "summary-bytes-held", held.summary_bytes);
    add(counts, "sketch-bytes-held", held.sketch_bytes);
    add(counts, "blocks-held", held.blocks);
    close_world(w);
}

/* ----------------------------------------------------------------------------------------- compare */

static bool recorded(FILE *record, const char *name, const char *counter, uint64_t *value_out)
{
    char line[256], at_case[64], at_counter[64];
    rewind(record);
    while (fgets(line, sizeof line, record))
        if (sscanf(line, "%63s %63s %" SCNu64, at_case, at_counter, value_out) == 3 &&
            strcmp(at_case, name) == 0 && strcmp(at_counter, counter) == 0)
            return true;
    return false;
}

static unsigned compare(FILE *record, const char *name, const struct counts *counts)
{
    unsigned wrong = 0;
    for (unsigned i = 0; i < counts->n; i++) {
        uint64_t want = 0;
        bool there = recorded(record, name, counts->at[i].name, &want);
        if (there && want == counts->at[i].value)
            continue;
        if (there)
            printf("%s\t%s\tis %" PRIu64 ", the record has %" PRIu64 "\n", name, counts->at[i].name,
                   counts->at[i].value, want);
        else
            printf("%s\t%s\tis %" PRIu64 " and not in the record\n", name, counts->at[i].name,
                   counts->at[i].value);
        wrong++;
    }
    return wrong;
}

static void print(const char *name, const struct counts *counts)
{
    for (unsigned i = 0; i < counts->n; i++)
        printf("%s\t%s\t%" PRIu64 "\n", name, counts->at[i].name, counts->at[i].value);
}

static int step_only(const char *name)
{
    size_t i = 0;
    while (i < CASES && strcmp(cases[i].name, name) != 0)
        i++;
    if (i == CASES)
        return 2;
    struct world *w = open_world(&cases[i], NULL); /* HEADRACE_CPU decides */
    fill(w);
    close_world(w);
    return 0;
}

int main(int argc, char **argv)
{
    FILE *record = NULL;
    unsigned wrong = 0;
    if (argc == 3 && strcmp(argv[1], "step") == 0)
        return step_only(argv[2]);
    if (argc == 3 && strcmp(argv[1], "check") == 0 && !(record = fopen(argv[2], "r"))) {
        fprintf(stderr, "counters: cannot open %s\n", argv[2]);
        return 1;
    }
    for (size_t i = 0; i < CASES; i++) {
        struct counts counts = {0};
        count_case(&cases[i], &counts);
        if (record)
            wrong += compare(record, cases[i].name, &counts);
        else
            print(cases[i].name, &counts);
    }
    if (record)
        fclose(record);
    if (wrong)
        printf("%u counters moved. If that is meant: sh tests/counters/update.sh BUILD_FOLDER, and "
               "commit record.tsv with the change.\n",
               wrong);
    return wrong ? 1 : 0;
}
