/* Whole tokens on a GPU: the attention of all layers as one graph, the choice alone, the reading of sketches, beside what they may
 * take, beside full attention in the GPU's memory, beside the same launches one by one. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bench/device_decode.h"
#include "bench/device_steps.h"
#include "bench/process.h"
#include "bench/subjects.h"
#include "index/view.h"
#include "kernels/kernels.h"

/* In a small window the few tokens of a test become blocks, too. */
#define SKETCHES (device_is_emulated() ? "headrace:window=64,decode_segment=64" : "headrace")
#define SUMMARIES                                                                                  \
    (device_is_emulated() ? "headrace:window=64,decode_segment=64,sketch=0" : "headrace:sketch=0")

static uint32_t tokens_of(int variant)
{
    return device_is_emulated() ? 200 : (uint32_t)(variant % 10000) * 1024;
}

static bool is_large(const struct hrb_steps *s)
{
    return s->tokens > 262144;
}

/* Rows found in frames on recorded layers, as docs/benchmarks.md has them (decode-trace-131072 and -1048576). */
static double hit_rate(const struct hrb_steps *s)
{
    return is_large(s) ? 0.75 : 0.82;
}

/* ------------------------------------------------------------------------------------------ tokens */

static double token_allowed(void *context)
{
    return is_large(context) ? 3.2e-3 : 2.0e-3;
}

static void token_details(const struct hrb_steps *s, double hits, struct hrb_result *result)
{
    result->details = cJSON_CreateObject();
    cJSON_AddNumberToObject(result->details, "layers", s->n_layers);
    cJSON_AddNumberToObject(result->details, "hit_rate", hits);
    cJSON_AddNumberToObject(result->details, "moved_fraction", s->seq->moved);
    cJSON_AddNumberToObject(result->details, "true_error", s->report.true_error);
    cJSON_AddNumberToObject(result->details, "predicted_error", s->report.predicted_error);
}

/* Of exact attention, all layers of the model; the rows of one are more than a cache has. */
static double full_seconds(void *context)
{
    const double seconds = hrb_decode_seconds(context);
    return seconds < 0 ? seconds : seconds * LAYERS;
}

static double token_seconds(void *context)
{
    const struct hrb_steps *s = context;
    const double seconds = hrb_steps_token_seconds(context);
    return seconds < 0 ? seconds : seconds * LAYERS / s->n_layers;
}

static int token_measure(struct hrb_steps *s, const struct hrb_options *options, double hits,
                         struct hrb_result *result)
{
    struct hrb_pair pair;
    int code = hrb_measure(options, rounds_of(&s->bed, options), token_seconds, s, token_allowed, s,
                           &pair);
    if (code != 0)
        return code;
    hrb_result_time(result, &pair, 1e3, "ms");
    result->limit_is = "the most it may take";
    token_details(s, hits, result);
    return 0;
}

static int full_measure(struct hrb_steps *s, const struct hrb_options *options, double hits,
                        struct hrb_result *result)
{
    struct hrb_decode full;
    struct hrb_pair pair;
    int code = hrb_decode_open(&full, device_is_emulated() ? 128 : s->tokens, false, result);
    if (code < 0)
        code = hrb_measure(options, rounds_of(&s->bed, options), token_seconds, s, full_seconds,
                           &full, &pair);
    if (code == 0 && !result->skipped) {
        hrb_result_time(result, &pair, 1e3, "ms");
        result->limit_is = "full attention by our own kernel, as many layers";
        token_details(s, hits, result);
    }
    hrb_decode_close(&full);
    return code;
}

static int token_run(const struct hrb_benchmark *self, const struct hrb_options *options,
                     const char *recipe,
                     int (*measure)(struct hrb_steps *, const struct hrb_options *, double,
                                    struct hrb_result *),
                     struct hrb_result *result)
{
    struct hrb_steps s;
    double hits = 0;
    options->note("%s: filling and indexing %u tokens", self->name, tokens_of(self->variant));
    int code = hrb_steps_open(&s, options, tokens_of(self->variant), recipe, result);
    if (code < 0)
        code = hrb_steps_turn(&s, hit_rate(&s), &hits, result);
    if (code < 0)
        code = measure(&s, options, hits, result);
    hrb_steps_close(&s);
    return code;
}

int hrb_device_token(const struct hrb_benchmark *self, const struct hrb_options *options,
                     struct hrb_result *result)
{
    return token_run(self, options, SKETCHES, token_measure, result);
}

int hrb_device_token_summaries(const struct hrb_benchmark *self, const struct hrb_options *options,
                               struct hrb_result *result)
{
    return token_run(self, options, SUMMARIES, token_measure, result);
}

int hrb_device_token_full(const struct hrb_benchmark *self, const struct hrb_options *options,
                          struct hrb_result *result)
{
    return token_run(self, options, SKETCHES, full_measure, result);
}

/* ------------------------------------------------------------------------------------------ PyTorch */

#define PEER "torch_sdpa_cuda.sh"

struct sdpa {
    struct hrb_steps steps;
    struct hrb_decode full;
    char dir[512], reason[600];
};

/* Of all layers: each turn is a process of its own, which reports the median of its repeats. */
static double sdpa_seconds(void *context)
{
    struct sdpa *s = context;
    char script[512], rows[16], repeats[16], heads[2][16], dim[16];
    struct hrb_process p;
    hrb_peer_script(PEER, script, sizeof script);
    snprintf(rows, sizeof rows, "%u", s->full.n);
    snprintf(repeats, sizeof repeats, "%u", RUNS);
    snprintf(heads[0], sizeof heads[0], "%u", HEADS * GROUP);
    snprintf(heads[1], sizeof heads[1], "%u", HEADS);
    snprintf(dim, sizeof dim, "%u", DIM);
    const char *argv[] = {"sh",     script, "run", s->dir, "bf16",  heads[0],
                          heads[1], "1",    rows,  dim,    repeats, NULL};
    if (!hrb_process_run(argv, &p)) {
        snprintf(s->reason, sizeof s->reason, "cannot start %s", script);
        return -1;
    }
    cJSON *json = cJSON_Parse(p.output != NULL ? p.output : "");
    const cJSON *seconds = cJSON_GetObjectItem(json, "seconds");
    const double value = cJSON_IsNumber(seconds) && p.code == 0 ? seconds->valuedouble : -1;
    if (value <= 0)
        snprintf(s->reason, sizeof s->reason, "PyTorch failed (exit code %d): %s", p.code,
                 p.message);
    cJSON_Delete(json);
    free(p.output);
    return value > 0 ? value * LAYERS : -1;
}

/* Both outputs over the same rows; PyTorch rounds its to bfloat16. */
static int sdpa_check(struct sdpa *s, struct hrb_result *result)
{
    enum { N = HEADS * GROUP * DIM };
    float ours[N], theirs[N];
    double far = 0, size = 0;
    char path[600];
    snprintf(path, sizeof path, "%s/out", s->dir);
    if (sdpa_seconds(s) < 0)
        return hrb_failed(result, "%s", s->reason);
    int code = hrb_decode_output(&s->full, ours, result);
    FILE *file = fopen(path, "rb");
    const bool read = file != NULL && fread(theirs, sizeof *theirs, N, file) == N;
    if (file != NULL)
        fclose(file);
    for (int i = 0; read && i < N; i++) {
        far += ((double)ours[i] - theirs[i]) * ((double)ours[i] - theirs[i]);
        size += (double)ours[i] * ours[i];
    }
    if (code >= 0)
        return code;
    return !read ? hrb_failed(result, "PyTorch wrote no output")
           : sqrt(far / size) < 1.5e-2
               ? -1
               : hrb_failed(result, "the outputs differ by %.2g", sqrt(far / size));
}

static int sdpa_measure(struct sdpa *s, const struct hrb_options *options, double hits,
                        struct hrb_result *result)
{
    struct hrb_pair pair;
    int code = hrb_decode_open(&s->full, s->steps.tokens, true, result);
    if (code < 0 && mkdir(s->dir, 0700) != 0)
        code = hrb_failed(result, "cannot make '%s'", s->dir);
    if (code < 0)
        code = hrb_decode_export(&s->full, s->dir, result);
    if (code < 0)
        code = sdpa_check(s, result);
    if (code >= 0)
        return code;
    if (hrb_measure(options, 2, token_seconds, &s->steps, sdpa_seconds, s, &pair) != 0)
        return hrb_failed(result, "%s", *s->reason ? s->reason : "stopped");
    hrb_result_time(result, &pair, 1e3, "ms");
    result->limit_is = "full attention by PyTorch's scaled_dot_product_attention, as many layers";
    token_details(&s->steps, hits, result);
    return 0;
}

static void sdpa_files_remove(const struct sdpa *s)
{
    static const char *const names[] = {"q", "k", "v", "out"};
    char path[600];
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(path, sizeof path, "%s/%s", s->dir, names[i]);
        unlink(path);
    }
    rmdir(s->dir);
}

int hrb_device_token_sdpa(const struct hrb_benchmark *self, const struct hrb_options *options,
                          struct hrb_result *result)
{
    double hits = 0;
    if (device_ops() == NULL)
        return hrb_skip(result, "this build has no CUDA");
    struct sdpa *s = calloc(1, sizeof *s);
    if (s == NULL)
        return hrb_failed(result, "out of memory");
    if (!hrb_peer_is_there(PEER, s->reason, sizeof s->reason)) {
        hrb_skip(result, "%s", s->reason);
        free(s);
        return 0;
    }
    options->note("%s: filling and indexing %u tokens", self->name, tokens_of(self->variant));
    snprintf(s->dir, sizeof s->dir, "%s/headrace-sdpa-%d", options->file_dir, (int)getpid());
    int code = hrb_steps_open(&s->steps, options, tokens_of(self->variant), SKETCHES, result);
    if (code < 0)
        code = hrb_steps_turn(&s->steps, hit_rate(&s->steps), &hits, result);
    if (code < 0) {
        code = sdpa_measure(s, options, hits, result);
        hrb_decode_close(&s->full);
        sdpa_files_remove(s);
    }
    hrb_steps_close(&s->steps);
    free(s);
    return code;
}

/* ---------------------------------------------------------------------------------- choice, graph */

static double choice_allowed(void *context)
{
    const struct hrb_steps *s = context;
    return (is_large(s) ? 30e-6 : 8e-6) * s->n_layers;
}

static int choice_measure(struct hrb_steps *s, const struct hrb_options *options,
                          struct hrb_result *result)
{
    struct hrb_pair pair;
    int code = hrb_measure(options, rounds_of(&s->bed, options), hrb_steps_choice_seconds, s,
                           choice_allowed, s, &pair);
    if (code != 0)
        return code;
    hrb_result_time(result, &pair, 1e6 / s->n_layers, "us");
    result->limit_is = "the most it may take";
    result->details = cJSON_CreateObject();
    cJSON_AddNumberToObject(result->details, "summaries_read_us",
                            hrb_steps_read_seconds(s) * 1e6 / s->n_layers);
    return 0;
}

static int graph_measure(struct hrb_steps *s, const struct hrb_options *options,
                         struct hrb_result *result)
{
    struct hrb_pair pair;
    int code = hrb_measure(options, rounds_of(&s->bed, options), hrb_steps_graph_seconds, s,
                           hrb_steps_loose_seconds, s, &pair);
    if (code != 0)
        return code;
    hrb_result_time(result, &pair, 1e3, "ms");
    result->limit_is = "the same launches one by one";
    return 0;
}

static int
steps_run(const struct hrb_benchmark *self, const struct hrb_options *options, const char *recipe,
          int (*measure)(struct hrb_steps *, const struct hrb_options *, struct hrb_result *),
          struct hrb_result *result)
{
    struct hrb_steps s;
    options->note("%s: filling and indexing %u tokens", self->name, tokens_of(self->variant));
    int code = hrb_steps_open(&s, options, tokens_of(self->variant), recipe, result);
    if (code < 0)
        code = measure(&s, options, result);
    hrb_steps_close(&s);
    return code;
}

int hrb_device_choice(const struct hrb_benchmark *self, const struct hrb_options *options,
                      struct hrb_result *result)
{
    return steps_run(self, options, SUMMARIES, choice_measure, result);
}

int hrb_device_graph(const struct hrb_benchmark *self, const struct hrb_options *options,
                     struct hrb_result *result)
{
    return steps_run(self, options, SKETCHES, graph_measure, result);
}

/* ---------------------------------------------------------------------------------------- sketches */

/* A quarter of each head's groups, in pairs (a block), their scores and the sums of their codes. */
struct quarter {
    struct hrb_steps *steps;
    struct hri_device_memory memory;
    struct hri_cuda_sketch_list list;
    uint32_t *groups, *pair_basis, *n_pairs; /* on the host */
    uint32_t *sum;
    void *graphs[3]; /* over all layers: scores, sums, reads of the same codes */
    size_t bytes;    /* of codes that are listed, one layer */
};

static int quarter_launch(struct quarter *q, int which, uint32_t layer)
{
    const struct hri_device_part *p = q->steps->seq->part;
    const struct hri_device_sketch_work *w = &p->sketch_work;
    struct hri_cuda_sketch_list list = q->list;
    const struct hri_cuda_sketch_sum sum = {.w = w->w,
                                            .stride = p->sizes.lanes,
                                            .sum = w->sum,
                                            .work = w->sum_work,
                                            .arrived = w->sum_arrived};
    void *stream = q->steps->bed.stream;
    list.codes = p->layers[layer].sketches.codes;
    list.bases = p->layers[layer].sketches.bases;
    list.there = p->layers[layer].in.n_bases;
    return which == 0
               ? p->launch->score_sketch(&list, w->queries, p->heads, w->x, p->sizes.lanes, stream)
           : which == 1 ? p->launch->sum_sketch(&list, &sum, p->heads, stream)
                        : p->launch->read(list.codes, q->bytes, q->sum, stream);
}

static int quarter_record(struct quarter *q, int which, struct hrb_result *result)
{
    const struct hrb_steps *s = q->steps;
    int error = s->bed.ops->capture_begin(s->bed.stream);
    for (uint32_t i = 0; i < s->n_layers && error == 0; i++)
        error = quarter_launch(q, which, i);
    const int ended = s->bed.ops->capture_end(s->bed.stream, &q->graphs[which]);
    return error == 0 && ended == 0 ? -1 : hrb_failed(result, "recording failed");
}

struct quarter_part {
    struct quarter *quarter;
    int which;
};

static int quarter_call(void *context)
{
    const struct quarter_part *p = context;
    const struct hrb_steps *s = p->quarter->steps;
    return s->bed.ops->graph_launch(p->quarter->graphs[p->which], s->bed.stream);
}

static double quarter_seconds(void *context)
{
    const struct quarter_part *p = context;
    return seconds_of(&p->quarter->steps->bed, quarter_call, context) / p->quarter->steps->n_layers;
}

/* Scores, then sums. */
static double both_seconds(void *context)
{
    struct quarter_part scores = {context, 0}, sums = {context, 1};
    const double a = quarter_seconds(&scores), b = quarter_seconds(&sums);
    return a < 0 || b < 0 ? -1 : a + b;
}

/* As often as the codes are read: twice. */
static double reads_seconds(void *context)
{
    struct quarter_part reads = {context, 2};
    const double seconds = quarter_seconds(&reads);
    return seconds < 0 ? -1 : 2 * seconds;
}

/* Every fourth pair of each basis; random ones would end up as far apart. */
static void quarter_choose(struct quarter *q)
{
    const struct hri_device_part *p = q->steps->seq->part;
    const uint32_t pairs_max = p->sizes.pairs_max;
    uint64_t listed = 0;
    for (uint32_t h = 0; h < HEADS; h++) {
        const struct hri_index_view v = hri_index_view(q->steps->seq->layers[0].heads[h]);
        const struct hri_sketch *k = v.sketch;
        uint32_t n = 0;
        for (uint32_t b = 0; b < k->n_bases; b++) {
            const uint32_t end = b + 1 < k->n_bases ? k->bases[b + 1].first_block : v.n_blocks;
            const uint32_t last =
                (k->first_lane[end - 1] + v.block_rows[end - 1] + 15) / 16; /* groups */
            for (uint32_t g = k->first_lane[k->bases[b].first_block] / 16; g < last; g += 8, n++) {
                q->groups[2 * (h * pairs_max + n)] = g;
                q->groups[2 * (h * pairs_max + n) + 1] = g + 1 < last ? g + 1 : HRI_CUDA_NONE;
                q->pair_basis[h * pairs_max + n] = b;
                listed += 1 + (g + 1 < last);
            }
        }
        q->n_pairs[h] = n;
    }
    q->bytes = listed * p->sizes.lines * 64;
}

static int quarter_make(struct quarter *q, struct hrb_result *result)
{
    struct hri_device_part *p = q->steps->seq->part;
    const size_t pairs = (size_t)HEADS * p->sizes.pairs_max;
    if (p->sizes.lines == 0)
        return hrb_failed(result, "the sequence has no sketches");
    q->groups = calloc(2 * pairs, sizeof *q->groups);
    q->pair_basis = calloc(pairs, sizeof *q->pair_basis);
    q->n_pairs = calloc(HEADS, sizeof *q->n_pairs);
    if (q->groups == NULL || q->pair_basis == NULL || q->n_pairs == NULL)
        return hrb_failed(result, "out of memory");
    if (hri_device_alloc(p->device, "a benchmark", 16 * pairs + 4096, &q->memory) != HR_OK)
        return say(result);
    quarter_choose(q);
    struct hri_device_carve c = {q->memory.base, 0};
    uint32_t *groups = hri_device_carve(&c, 2 * pairs, 4), *basis = hri_device_carve(&c, pairs, 4),
             *n = hri_device_carve(&c, HEADS, 4);
    q->sum = hri_device_carve(&c, 1, 4);
    q->list = (struct hri_cuda_sketch_list){.codes_stride =
                                                (size_t)p->sizes.lanes / 16 * p->sizes.lines * 64,
                                            .n_bases = p->sizes.bases_max,
                                            .lines = p->sizes.lines,
                                            .groups = groups,
                                            .pair_basis = basis,
                                            .n_pairs = n,
                                            .pairs_max = p->sizes.pairs_max};
    if (hri_device_copy(p->device, groups, q->groups, 8 * pairs) != HR_OK ||
        hri_device_copy(p->device, basis, q->pair_basis, 4 * pairs) != HR_OK ||
        hri_device_copy(p->device, n, q->n_pairs, 4 * HEADS) != HR_OK ||
        hri_device_fill(p->device, q->sum, 0, 4) != HR_OK)
        return say(result);
    return -1;
}

/* The first head's scores against the CPU's kernel, with the queries that the device made. */
static int quarter_check(struct quarter *q, struct hrb_result *result)
{
    struct hri_device_part *p = q->steps->seq->part;
    const struct hri_sketch *k = hri_index_view(q->steps->seq->layers[0].heads[0]).sketch;
    const size_t lanes = p->sizes.lanes;
    struct hri_sketch_query *query = NULL;
    float *got = malloc(lanes * sizeof *got), *want = calloc(GROUP * lanes, sizeof *want);
    _Static_assert(sizeof *query == sizeof(struct hri_cuda_sketch_query), "the same layout");
    int code = got == NULL || want == NULL ||
                       posix_memalign((void **)&query, 64, k->n_bases * sizeof *query) != 0
                   ? hrb_failed(result, "out of memory")
                   : -1;
    double far = 0, size = 0;
    if (code < 0 &&
        (quarter_launch(q, 0, 0) != 0 ||
         hri_device_copy(p->device, got, p->sketch_work.x, lanes * sizeof *got) != HR_OK ||
         hri_device_copy(p->device, query, p->sketch_work.queries, k->n_bases * sizeof *query) !=
             HR_OK ||
         hri_device_wait(p->device) != HR_OK))
        code = say(result);
    for (uint32_t i = 0; code < 0 && i < q->n_pairs[0]; i++)
        for (uint32_t j = 0; j < 2 && q->groups[2 * i + j] != HRI_CUDA_NONE; j++) {
            const uint32_t g = q->groups[2 * i + j], b = q->pair_basis[i];
            const struct hri_sketch_rows rows = {k->codes, k->bases[b].n4, k->bases[b].n2};
            float scores[GROUP * 16];
            hri_kernels_get(HRI_KERNEL_REF)
                ->score_sketch(&query[b], GROUP, rows, &g, 1, 1, scores, 16);
            for (uint32_t r = 0; r < 16; r++) {
                const double d = (double)scores[r] - got[(size_t)g * 16 + r];
                far += d * d;
                size += (double)scores[r] * scores[r];
            }
        }
    if (code < 0 && !(sqrt(far / size) < 1e-4))
        code = hrb_failed(result, "the scores are off by %.2g", sqrt(far / size));
    free(got);
    free(want);
    free(query);
    return code;
}

static void quarter_close(struct quarter *q)
{
    for (int i = 0; i < 3; i++)
        if (q->graphs[i] != NULL)
            q->steps->bed.ops->graph_destroy(q->graphs[i]);
    if (q->memory.base != NULL)
        hri_device_free(q->steps->seq->part->device, &q->memory);
    free(q->groups);
    free(q->pair_basis);
    free(q->n_pairs);
}

static int sketch_measure(struct hrb_steps *s, const struct hrb_options *options,
                          struct hrb_result *result)
{
    struct quarter q = {.steps = s};
    struct quarter_part scores = {&q, 0}, sums = {&q, 1};
    struct hrb_pair pair;
    int code = quarter_make(&q, result);
    if (code < 0)
        code = quarter_check(&q, result);
    for (int i = 0; i < 3 && code < 0; i++)
        code = quarter_record(&q, i, result);
    if (code < 0) {
        code = hrb_measure(options, rounds_of(&s->bed, options), both_seconds, &q, reads_seconds,
                           &q, &pair);
        if (code == 0) {
            hrb_result_rate(result, &pair, 2 * q.bytes);
            result->limit_is = "reads of the same codes: once for scores, once for sums";
            result->details = cJSON_CreateObject();
            cJSON_AddNumberToObject(result->details, "scores_us", 1e6 * quarter_seconds(&scores));
            cJSON_AddNumberToObject(result->details, "sums_us", 1e6 * quarter_seconds(&sums));
            cJSON_AddNumberToObject(result->details, "share_of_one_read", pair.ratio / 2);
        }
    }
    quarter_close(&q);
    return code;
}

int hrb_device_sketch(const struct hrb_benchmark *self, const struct hrb_options *options,
                      struct hrb_result *result)
{
    return steps_run(self, options, SKETCHES, sketch_measure, result);
}
