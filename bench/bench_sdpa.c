/* Full attention through the public API beside PyTorch's scaled_dot_product_attention: the same rows and threads, outputs compared, in
 * turns. Each turn of PyTorch is a process of its own, which reports the median of its repeats; so do ours. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <headrace/headrace.h>

#include "base/half.h"
#include "base/rng.h"
#include "base/topology.h"
#include "bench/measure.h"
#include "bench/process.h"
#include "bench/subjects.h"

#define DIM            128u
#define KV_HEADS       8u
#define Q_HEADS        32u
#define DECODE_ROWS    32768u
#define PREFILL_ROWS   4096u
#define DECODE_REPEATS 15u
#define REPEATS_MAX    32u
#define HOST_EXTRA     (64ull << 20)

struct sdpa {
    const struct hrb_options *options;
    hr_dtype_t dtype; /* of rows; queries are floats of the same precision */
    uint32_t rows, queries, repeats;
    hr_runtime_t *runtime;
    hr_sequence_t *sequence;
    void *k, *v;          /* [KV_HEADS][rows][DIM] */
    float *q, *out, *got; /* [Q_HEADS][queries][DIM]; got: PyTorch's */
    char dir[512], way[32];
    char reason[1024];
};

static const char *const files[] = {"q", "k", "v", "out"};

static int say(struct sdpa *s, const char *what)
{
    snprintf(s->reason, sizeof s->reason, "%s: %s", what, hr_last_error());
    return 1;
}

/* ----------------------------------------------------------------------------------------- rows */

/* All values fit bfloat16, so that both precisions have the same ones. */
static float value(struct hri_rng *rng, float size)
{
    return hri_f32_from_bf16(hri_bf16_from_f32(size * (float)hri_rng_normal(rng)));
}

static void fill_rows(const struct sdpa *s, struct hri_rng *rng, void *rows)
{
    for (size_t i = 0; i < (size_t)KV_HEADS * s->rows * DIM; i++) {
        const float x = value(rng, 1);
        if (s->dtype == HR_DTYPE_F32)
            ((float *)rows)[i] = x;
        else
            ((uint16_t *)rows)[i] = hri_bf16_from_f32(x);
    }
}

static int write_file(struct sdpa *s, const char *name, const void *data, size_t bytes)
{
    char path[600];
    snprintf(path, sizeof path, "%s/%s", s->dir, name);
    FILE *file = fopen(path, "wb");
    bool fine = file && fwrite(data, 1, bytes, file) == bytes;
    if (file && fclose(file))
        fine = false;
    if (!fine)
        snprintf(s->reason, sizeof s->reason, "cannot write '%s'", path);
    return fine ? 0 : 1;
}

/* PyTorch's queries have the type of its rows. */
static int write_queries(struct sdpa *s)
{
    const size_t n = (size_t)Q_HEADS * s->queries * DIM;
    if (s->dtype == HR_DTYPE_F32)
        return write_file(s, "q", s->q, n * sizeof *s->q);
    uint16_t *halves = malloc(n * sizeof *halves);
    for (size_t i = 0; halves && i < n; i++)
        halves[i] = hri_bf16_from_f32(s->q[i]);
    int code = halves ? write_file(s, "q", halves, n * sizeof *halves) : say(s, "out of memory");
    free(halves);
    return code;
}

static int make_rows(struct sdpa *s)
{
    const size_t row_bytes = (size_t)KV_HEADS * s->rows * DIM * hr_dtype_bytes(s->dtype),
                 n = (size_t)Q_HEADS * s->queries * DIM;
    struct hri_rng rng;
    hri_rng_seed(&rng, 21);
    s->k = malloc(row_bytes);
    s->v = malloc(row_bytes);
    s->q = malloc(n * sizeof *s->q);
    s->out = malloc(n * sizeof *s->out);
    s->got = malloc(n * sizeof *s->got);
    if (!s->k || !s->v || !s->q || !s->out || !s->got)
        return say(s, "out of memory");
    fill_rows(s, &rng, s->k);
    fill_rows(s, &rng, s->v);
    for (size_t i = 0; i < n; i++)
        s->q[i] = value(&rng, 2);
    if (mkdir(s->dir, 0700)) {
        snprintf(s->reason, sizeof s->reason, "cannot make '%s'", s->dir);
        return 1;
    }
    return write_queries(s) || write_file(s, "k", s->k, row_bytes) ||
           write_file(s, "v", s->v, row_bytes);
}

/* ----------------------------------------------------------------------------------------- ours */

/* [heads][n][DIM] seen as [n][heads][DIM]. */
static struct hr_tensor view(void *data, hr_dtype_t dtype, uint32_t n, uint32_t heads)
{
    struct hr_tensor t = hr_tensor_make(data, dtype, n, heads, DIM);
    t.strides[0] = DIM;
    t.strides[1] = (int64_t)n * DIM;
    t.strides[2] = 1;
    return t;
}

static int open_sequence(struct sdpa *s)
{
    struct hr_runtime_options runtime;
    struct hr_sequence_options sequence;
    uint64_t bytes = (uint64_t)s->rows * KV_HEADS * 2 * DIM * hr_dtype_bytes(s->dtype);
    hr_runtime_options_init(&runtime);
    runtime.device_bytes = HOST_EXTRA;
    runtime.host_bytes = 2 * bytes + HOST_EXTRA;
    runtime.n_threads = s->options->n_threads;
    hr_sequence_options_init(&sequence);
    sequence.n_layers = 1;
    sequence.n_q_heads = Q_HEADS;
    sequence.n_kv_heads = KV_HEADS;
    sequence.k_dim = sequence.v_dim = DIM;
    sequence.dtype = s->dtype;
    sequence.tokens_max = s->rows;
    sequence.recipe = "full";
    if (hr_runtime_create(&runtime, &s->runtime) != HR_OK ||
        hr_sequence_create(s->runtime, &sequence, &s->sequence) != HR_OK)
        return say(s, "sequence");
    struct hr_tensor k = view(s->k, s->dtype, s->rows, KV_HEADS),
                     v = view(s->v, s->dtype, s->rows, KV_HEADS);
    return hr_sequence_append(s->sequence, 0, &k, &v, NULL) == HR_OK ? 0 : say(s, "append");
}

static double run_ours(void *context)
{
    struct sdpa *s = context;
    double seconds[REPEATS_MAX];
    struct hr_attend_options options;
    struct hr_tensor q = view(s->q, HR_DTYPE_F32, s->queries, Q_HEADS),
                     out = view(s->out, HR_DTYPE_F32, s->queries, Q_HEADS);
    hr_attend_options_init(&options);
    options.mode = HR_ATTEND_EXACT;
    for (uint32_t i = 0; i < s->repeats; i++) {
        double start = hrb_seconds();
        if (hr_sequence_attend(s->sequence, 0, &q, &options, &out, NULL, NULL) != HR_OK) {
            say(s, "attend");
            return -1;
        }
        seconds[i] = hrb_seconds() - start;
    }
    return hrb_median(seconds, s->repeats);
}

/* ----------------------------------------------------------------------------------------- peer */

/* The seconds, and which of its ways was the fastest. */
static double seconds_of(struct sdpa *s, const struct hrb_process *p)
{
    cJSON *json = cJSON_Parse(p->output ? p->output : "");
    const cJSON *seconds = cJSON_GetObjectItem(json, "seconds"), *way;
    double value = cJSON_IsNumber(seconds) ? seconds->valuedouble : 0;
    cJSON_ArrayForEach(way, cJSON_GetObjectItem(json, "ways"))
    {
        if (way->valuedouble <= value)
            snprintf(s->way, sizeof s->way, "%s", way->string);
    }
    cJSON_Delete(json);
    if (p->code || value <= 0) {
        snprintf(s->reason, sizeof s->reason, "PyTorch failed (exit code %d): %s", p->code,
                 p->message);
        return -1;
    }
    return value;
}

static double run_peer(void *context)
{
    struct sdpa *s = context;
    enum { NUMBERS = 7 };
    char script[512], text[NUMBERS][16];
    const unsigned numbers[NUMBERS] = {
        Q_HEADS,   KV_HEADS, s->queries,
        s->rows,   DIM,      s->options->n_threads ? s->options->n_threads : hri_cpu_usable_count(),
        s->repeats};
    struct hrb_process p;
    hrb_peer_script("torch_sdpa.sh", script, sizeof script);
    const char *argv[5 + NUMBERS + 1] = {"sh", script, "run", s->dir,
                                         s->dtype == HR_DTYPE_F32 ? "f32" : "bf16"};
    for (int i = 0; i < NUMBERS; i++) {
        snprintf(text[i], sizeof text[i], "%u", numbers[i]);
        argv[5 + i] = text[i];
    }
    if (!hrb_process_run(argv, &p)) {
        snprintf(s->reason, sizeof s->reason, "cannot start %s", script);
        return -1;
    }
    double seconds = seconds_of(s, &p);
    free(p.output);
    return seconds;
}

/* Both outputs, relative; PyTorch rounds bfloat16 ones. */
static int compare(struct sdpa *s)
{
    const size_t n = (size_t)Q_HEADS * s->queries * DIM;
    double far = 0, size = 0, allowed = s->dtype == HR_DTYPE_F32 ? 1e-4 : 1e-2;
    char path[600];
    snprintf(path, sizeof path, "%s/out", s->dir);
    FILE *file = fopen(path, "rb");
    bool read = file && fread(s->got, sizeof *s->got, n, file) == n;
    if (file)
        fclose(file);
    for (size_t i = 0; read && i < n; i++) {
        far += ((double)s->got[i] - s->out[i]) * ((double)s->got[i] - s->out[i]);
        size += (double)s->out[i] * s->out[i];
    }
    if (read && sqrt(far / size) < allowed)
        return 0;
    snprintf(s->reason, sizeof s->reason,
             read ? "the outputs differ by %g" : "PyTorch wrote no output", sqrt(far / size));
    return 1;
}

/* ---------------------------------------------------------------------------------- measurement */

static void sdpa_fini(struct sdpa *s)
{
    char path[600];
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        snprintf(path, sizeof path, "%s/%s", s->dir, files[i]);
        unlink(path);
    }
    rmdir(s->dir);
    hr_sequence_destroy(s->sequence);
    hr_runtime_destroy(s->runtime);
    free(s->k);
    free(s->v);
    free(s->q);
    free(s->out);
    free(s->got);
}

static void fill_result(const struct sdpa *s, const struct hrb_pair *pair,
                        struct hrb_result *result)
{
    if (s->queries > 1) {
        hrb_result_per_second(
            result, pair, 2.0 * Q_HEADS * DIM * s->rows * ((double)s->rows + 1) * 1e-9, "GFLOP/s");
    } else {
        hrb_result_rate(result, pair,
                        (uint64_t)KV_HEADS * s->rows * 2 * DIM * hr_dtype_bytes(s->dtype));
    }
    result->limit_is = "PyTorch's scaled_dot_product_attention, same rows and threads";
    result->details = cJSON_CreateObject();
    cJSON_AddNumberToObject(result->details, "rows", s->rows);
    cJSON_AddStringToObject(result->details, "its_way", s->way);
}

int hrb_sdpa(const struct hrb_benchmark *self, const struct hrb_options *options,
             struct hrb_result *result)
{
    const bool prefill = self->variant % 10 == 1;
    struct sdpa s = {.options = options,
                     .dtype = self->variant < 10 ? HR_DTYPE_F32 : HR_DTYPE_BF16,
                     .rows = prefill ? PREFILL_ROWS : DECODE_ROWS,
                     .queries = prefill ? PREFILL_ROWS : 1,
                     .repeats = prefill ? 1 : DECODE_REPEATS};
    struct hrb_pair pair;
    int code = 1;
    if (!hrb_peer_is_there("torch_sdpa.sh", s.reason, sizeof s.reason))
        return hrb_skip(result, "%s", s.reason);
    snprintf(s.dir, sizeof s.dir, "%s/headrace-sdpa-%d", options->file_dir, (int)getpid());
    options->note("%s: ours and PyTorch in turns, a process each", self->name);
    if (make_rows(&s) || open_sequence(&s) || run_ours(&s) < 0 || run_peer(&s) < 0 || compare(&s))
        hrb_failed(result, "%s", s.reason);
    else if (hrb_measure(options, options->quick ? 3 : 7, run_ours, &s, run_peer, &s, &pair))
        hrb_failed(result, "%s", *s.reason ? s.reason : "stopped");
    else {
        fill_result(&s, &pair, result);
        code = 0;
    }
    sdpa_fini(&s);
    return code;
}
