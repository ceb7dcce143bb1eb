/* Published selection rules against an implementation of their own in NumPy (tests/reference/recipes_*.py): the same rows
 * and queries, played through the public API; which rows were refined and what came out are written to a folder and judged
 * there. Without Python or NumPy the test counts as skipped and says so. */
#include "tests/runtime/naive.h"
#include "tests/runtime/recipe_state.h"

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SCRIPT     HR_SOURCE_DIR "/tests/reference/recipes_judge.py"
#define PATH_BYTES 768
#define SKIPPED    77
#define CHUNK      400u

struct run {
    const char *recipe;
    double moved;
    uint32_t n_q, n_kv, dk, dv, prompt, steps;
    hr_rope_layout_t rope;
    bool gates, early;
};

static const struct run runs[] = {
    {"window:sink=4,window=64", 0.02, 4, 2, 64, 64, 900, 6, HR_ROPE_NONE, false, false},
    {"exact-topk:sink=4,window=64", 0.02, 4, 2, 64, 64, 900, 6, HR_ROPE_NONE, false, false},
    {"quest", 0.05, 4, 2, 64, 64, 1500, 40, HR_ROPE_NONE, false, false},
    {"quest:page=32,window=16,decode_segment=64", 0.1, 8, 1, 128, 64, 700, 160, HR_ROPE_NONE, false,
     false},
    {"quest:page=64,window=16,decode_segment=16", 0.9, 1, 1, 256, 256, 60, 40, HR_ROPE_NONE, false,
     false}, /* fewer rows than a page */
    {"quest:window=16,decode_segment=16", 0.9, 2, 2, 64, 64, 36, 8, HR_ROPE_NONE, false,
     false},                                                            /* one page */
    {"quest", 0.001, 4, 2, 64, 64, 500, 8, HR_ROPE_NONE, false, false}, /* a budget of no page */
    {"quest", 0.5, 2, 1, 64, 64, 20, 8, HR_ROPE_NONE, false, false},    /* no body */
    {"arkvale", 0.06, 6, 2, 64, 64, 1500, 40, HR_ROPE_NONE, false, false},
    {"arkvale:decode_segment=64", 0.2, 8, 1, 256, 128, 600, 150, HR_ROPE_NONE, false, false},
    {"arkvale:sink=4,window=16,decode_segment=16", 0.9, 3, 3, 128, 128, 40, 30, HR_ROPE_NONE, false,
     false},
    {"shadowkv:rank=0", 0.03, 4, 2, 64, 64, 1500, 30, HR_ROPE_NONE, false, false},
    {"shadowkv:rank=0,outliers=0", 0.05, 8, 1, 128, 64, 700, 30, HR_ROPE_NONE, false, false},
    {"shadowkv:rank=0,outliers=10,decode_segment=32", 0.05, 2, 1, 256, 256, 400, 100, HR_ROPE_NONE,
     false, false},
    {"shadowkv:rank=0,decode_segment=16", 0.5, 2, 1, 64, 64, 145, 6, HR_ROPE_NONE, false,
     false}, /* all are outliers */
    {"shadowkv:rank=128,outliers=8", 0.03, 4, 2, 64, 64, 1000, 20, HR_ROPE_HALF, false, false},
    {"shadowkv:rank=24,outliers=8,decode_segment=64", 0.03, 6, 3, 64, 64, 1000, 140,
     HR_ROPE_INTERLEAVED, false, false},
    {"shadowkv:rank=40", 0.06, 2, 1, 128, 64, 700, 10, HR_ROPE_NONE, false, false},
    {"retroinfer", 0.03, 4, 2, 64, 64, 1200, 20, HR_ROPE_NONE, false, false},
    {"retroinfer:block=8,estimate=0.5,decode_segment=64", 0.05, 8, 1, 128, 64, 600, 140,
     HR_ROPE_NONE, false, false},
    {"retroinfer:window=16,decode_segment=16", 0.4, 3, 1, 256, 64, 30, 60, HR_ROPE_NONE, false,
     false},
    {"freekv", 0.08, 4, 2, 64, 64, 1500, 60, HR_ROPE_NONE, false, false},
    {"freekv:page=8,tau=0.95", 0.05, 8, 1, 128, 128, 600, 60, HR_ROPE_NONE, false, false},
    {"louiskv", 0.04, 4, 2, 64, 64, 1200, 60, HR_ROPE_NONE, false, false},
    {"louiskv:block=8,decode_segment=64,window=16", 0.06, 2, 1, 64, 64, 333, 300, HR_ROPE_NONE,
     false, false},
    {"actqkv", 0.08, 4, 2, 64, 64, 1500, 40, HR_ROPE_NONE, false, false},
    {"actqkv:page=8,queries=40,probes=0.1", 0.3, 8, 1, 128, 64, 600, 40, HR_ROPE_NONE, false,
     false},
    {"lserve", 0.1, 4, 4, 64, 64, 1500, 30, HR_ROPE_NONE, true, false},
    {"lserve:window=64,steps=1,page=32,logical=8", 0.08, 8, 4, 64, 64, 1100, 30, HR_ROPE_NONE,
     false, false},
    {"tokenselect:sink=4,window=64", 0.03, 4, 2, 64, 64, 1200, 60, HR_ROPE_NONE, false, false},
    {"tokenselect:sink=4,window=16,reuse_cosine=-1", 0.05, 8, 2, 128, 64, 300, 20, HR_ROPE_NONE,
     false, false},
    {"infinigen", 0.05, 4, 2, 64, 64, 1200, 30, HR_ROPE_NONE, false, true},
    {"infinigen:columns=0.5,alpha=2", 0.2, 8, 1, 128, 64, 500, 30, HR_ROPE_NONE, false, false},
    {"instinfer", 0.01, 4, 2, 64, 64, 900, 10, HR_ROPE_NONE, false, false},
    {"duoattention:window=64", 0.01, 8, 4, 64, 64, 900, 10, HR_ROPE_NONE, true, false},
    {"duoattention:window=64,sparsity=0.75", 0.01, 8, 4, 64, 64, 900, 10, HR_ROPE_NONE, true,
     false},
    {"rlkv", 0.01, 4, 4, 64, 128, 900, 10, HR_ROPE_NONE, true, false},
    {"razorattention:window=64", 0.01, 8, 4, 64, 64, 900, 300, HR_ROPE_NONE, false, false},
    {"razorattention:window=64", 0.01, 8, 4, 64, 64, 900, 10, HR_ROPE_NONE, true, false},
    {"task-kv", 0.05, 8, 4, 64, 64, 900, 10, HR_ROPE_NONE, false, false},
    {"full", 0.05, 4, 2, 64, 64, 300, 6, HR_ROPE_NONE, false, false},
    {"clusterkv", 0.05, 4, 2, 64, 64, 1500, 20, HR_ROPE_NONE, false, false},
    {"clusterkv:cluster=16,decode_segment=64", 0.1, 8, 1, 128, 64, 600, 150, HR_ROPE_NONE, false,
     false},
    {"clusterkv:window=16,decode_segment=16", 0.3, 1, 1, 256, 256, 40, 40, HR_ROPE_NONE, false,
     false}, /* one cluster */
    {"squeezed", 0.05, 4, 2, 64, 64, 1500, 20, HR_ROPE_NONE, false, false},
    {"squeezed:levels=2,decode_segment=64", 0.05, 6, 3, 64, 64, 900, 150, HR_ROPE_NONE, false,
     false},
    {"squeezed:threshold=0.002,cluster=10", 0.5, 8, 1, 128, 64, 600, 20, HR_ROPE_NONE, false,
     false},
    {"pqcache", 0.03, 4, 2, 64, 64, 1200, 20, HR_ROPE_NONE, false, false},
    {"pqcache:parts=4,bits=4,train=600,decode_segment=64", 0.05, 8, 1, 128, 64, 400, 300,
     HR_ROPE_NONE, false, false}, /* trained three times, then kept */
    {"pqcache:window=16,decode_segment=16", 0.3, 3, 1, 96, 64, 60, 40, HR_ROPE_NONE, false, false},
    {"a2ats:codes=64", 0.03, 4, 2, 64, 64, 1200, 20, HR_ROPE_NONE, false, false},
    {"a2ats:codes=100,distance=300,train=500,decode_segment=64", 0.05, 8, 1, 128, 64, 300, 350,
     HR_ROPE_HALF, false, false},
    {"a2ats:codes=40", 0.05, 2, 2, 80, 64, 600, 10, HR_ROPE_INTERLEAVED, false, false},
    {"magicpig", 0.9, 4, 2, 64, 64, 900, 20, HR_ROPE_NONE, false, false},
    {"magicpig:bits=6,tables=40,collisions=3,decode_segment=64", 0.03, 8, 1, 128, 64, 600, 150,
     HR_ROPE_NONE, false, false}, /* a sample larger than the budget */
    {"pariskv", 0.05, 4, 2, 64, 64, 1500, 20, HR_ROPE_NONE, false, false},
    {"pariskv:candidates=0.1,collide=0.2,decode_segment=64", 0.02, 8, 1, 128, 64, 700, 150,
     HR_ROPE_NONE, false, false},
    {"retrievalattention:queries=200,degree=12,neighbours=16", 0.03, 4, 2, 64, 64, 600, 20,
     HR_ROPE_NONE, false, false},
    {"retrievalattention:queries=100,degree=16,neighbours=8,beam=20,decode_segment=64", 0.02, 8, 1,
     128, 64, 500, 150, HR_ROPE_NONE, false, false},
    {"retrievalattention:queries=0,degree=10", 0.05, 1, 1, 256, 64, 400, 6, HR_ROPE_NONE, false,
     false}, /* keys alone */
    {"faiss:Flat", 0.03, 4, 2, 64, 64, 900, 20, HR_ROPE_NONE, false, false},
    {"faiss:IVF16,Flat;nprobe=16", 0.03, 8, 1, 128, 64, 1300, 20, HR_ROPE_NONE, false, false},
    {"faiss:IVF16,Flat;train=900,nprobe=16,decode_segment=64", 0.05, 4, 2, 64, 64, 800, 300,
     HR_ROPE_NONE, false, false}, /* trained while decoding */
    {"faiss:HNSW16,Flat;efSearch=200", 0.03, 4, 2, 64, 64, 1300, 20, HR_ROPE_NONE, false, false},
    {"faiss:PQ8np", 0.05, 4, 2, 64, 64, 1300, 20, HR_ROPE_NONE, false, false},
    {"triforce", 0.05, 4, 2, 64, 64, 1200, 20, HR_ROPE_NONE, false, false},
    {"triforce:page=16,decode_segment=64", 0.1, 8, 1, 128, 64, 600, 150, HR_ROPE_NONE, false,
     false},
};

static bool find_python(char *python)
{
    char command[PATH_BYTES + 64];
    const char *choices[] = {getenv("HEADRACE_PYTHON"), "python3"};
    for (size_t i = 0; i < 2; i++) {
        if (!choices[i] || !*choices[i]) {
            continue;
        }
        snprintf(command, sizeof command, "'%s' -c 'import numpy' >/dev/null 2>&1", choices[i]);
        if (system(command) == 0) {
            snprintf(python, PATH_BYTES, "%s", choices[i]);
            return true;
        }
    }
    return false;
}

static void must(bool ok, const struct run *r, const char *what)
{
    if (!ok) {
        fprintf(stderr, "%s: %s: %s\n", r->recipe, what, hr_last_error());
        exit(1);
    }
}

struct text {
    float *k, *v, *q, *early; /* [tokens][heads][dim] */
    uint32_t n;
    float frequencies[HR_HEAD_DIM_MAX / 2], gates[8];
};

static float *floats(size_t n)
{
    float *x = calloc(n + 1, sizeof *x);
    if (x == NULL) {
        abort();
    }
    return x;
}

/* Keys whose pre-rotation form repeats: turned to their positions. */
static void keys_rotate(const struct run *r, struct text *t)
{
    for (size_t i = 0; i < (size_t)t->n * r->n_kv; i++) {
        for (uint32_t p = 0; p < r->dk / 2; p++) {
            float *x = t->k + i * r->dk;
            uint32_t a = r->rope == HR_ROPE_HALF ? p : 2 * p,
                     b = r->rope == HR_ROPE_HALF ? p + r->dk / 2 : 2 * p + 1;
            double angle = (double)t->frequencies[p] * (double)(i / r->n_kv);
            double u = x[a], w = x[b];
            x[a] = (float)(u * cos(angle) - w * sin(angle));
            x[b] = (float)(u * sin(angle) + w * cos(angle));
        }
    }
}

/* Queries that stay alike for a few tokens, then turn. */
static void text_make(const struct run *r, uint64_t seed, struct text *t)
{
    const struct shape shape = {
        .n_layers = 1, .n_q = r->n_q, .n_kv = r->n_kv, .dk = r->dk, .dv = r->dv};
    struct random rng = {.state = seed};
    t->n = r->prompt + r->steps;
    t->k = floats((size_t)t->n * r->n_kv * r->dk);
    t->v = floats((size_t)t->n * r->n_kv * r->dv);
    t->q = floats((size_t)t->n * r->n_q * r->dk);
    t->early = floats((size_t)t->n * r->n_q * r->dk);
    rows_make(&rng, &shape, t->n, t->k, t->v);
    queries_make(&rng, &shape, t->n, t->q);
    size_t width = (size_t)r->n_q * r->dk;
    for (uint32_t i = 0; i < t->n; i++) {
        bool stays = i > 0 && random_uniform(&rng) < 0.7;
        for (size_t j = 0; j < width; j++) {
            float *q = t->q + i * width + j;
            *q = stays ? *(q - width) + 0.25f * (float)random_normal(&rng) : 0.6f * *q;
            t->early[i * width + j] = *q + 0.1f * (float)random_normal(&rng);
        }
    }
    for (uint32_t p = 0; p < r->dk / 2; p++) {
        t->frequencies[p] = (float)pow(10000.0, -2.0 * p / r->dk);
    }
    for (uint32_t h = 0; h < r->n_kv; h++) {
        t->gates[h] = (float)(h % 2) * 0.75f + (float)h * 0.05f;
    }
    if (r->rope != HR_ROPE_NONE) {
        keys_rotate(r, t);
    }
}

static void text_free(struct text *t)
{
    free(t->k);
    free(t->v);
    free(t->q);
    free(t->early);
}

static void meta_write(const struct run *r, const struct text *t, const char *folder)
{
    char text[1024];
    int n = snprintf(
        text, sizeof text,
        "{\"recipe\": \"%s\", \"moved\": %.17g, \"n_q\": %u, \"n_kv\": %u, \"dk\": %u, \"dv\": %u, "
        "\"prompt\": %u, \"steps\": %u, \"chunk\": %u, \"rope\": %d, \"early\": %d, \"gates\": [",
        r->recipe, r->moved, r->n_q, r->n_kv, r->dk, r->dv, r->prompt, r->steps, CHUNK,
        (int)r->rope, (int)r->early);
    for (uint32_t h = 0; r->gates && h < r->n_kv; h++) {
        n += snprintf(text + n, sizeof text - (size_t)n, "%s%.9g", h ? ", " : "",
                      (double)t->gates[h]);
    }
    n += snprintf(text + n, sizeof text - (size_t)n, "]}\n");
    file_write(folder, "meta.json", text, (size_t)n);
}

/* NULL where the build lacks what the recipe needs (FAISS). */
static hr_sequence_t *sequence_open(const struct run *r, const struct text *t, hr_runtime_t *rt)
{
    struct hr_sequence_options o;
    struct hr_rope rope = {.layout = r->rope, .n_rot = r->dk, .frequencies = t->frequencies};
    hr_sequence_t *s = NULL;
    hr_sequence_options_init(&o);
    o.n_layers = 1;
    o.n_q_heads = r->n_q;
    o.n_kv_heads = r->n_kv;
    o.k_dim = r->dk;
    o.v_dim = r->dv;
    o.dtype = HR_DTYPE_F32;
    o.tokens_max = t->n;
    o.recipe = r->recipe;
    o.moved = r->moved;
    o.keep_tokens = 1;
    o.rope = r->rope != HR_ROPE_NONE ? &rope : NULL;
    o.head_gates = r->gates ? t->gates : NULL;
    hr_status_t status = hr_sequence_create(rt, &o, &s);
    must(status == HR_OK || status == HR_ERR_UNSUPPORTED, r, "sequence");
    return s;
}

static struct hr_tensor part(float *x, uint32_t first, uint32_t n, uint32_t heads, uint32_t d)
{
    return hr_tensor_make(x + (size_t)first * heads * d, HR_DTYPE_F32, n, heads, d);
}

/* The prompt in chunks, each attended exactly, as a model would do it. */
static void prefill(const struct run *r, struct text *t, hr_sequence_t *s)
{
    float *out = floats((size_t)CHUNK * r->n_q * r->dv);
    for (uint32_t i = 0; i < r->prompt; i += CHUNK) {
        uint32_t n = r->prompt - i < CHUNK ? r->prompt - i : CHUNK;
        struct hr_tensor k = part(t->k, i, n, r->n_kv, r->dk), v = part(t->v, i, n, r->n_kv, r->dv),
                         q = part(t->q, i, n, r->n_q, r->dk), o = part(out, 0, n, r->n_q, r->dv);
        must(hr_sequence_append(s, 0, &k, &v, NULL) == HR_OK, r, "append");
        must(hr_sequence_attend(s, 0, &q, NULL, &o, NULL, NULL) == HR_OK, r, "prefill");
    }
    must(hr_sequence_settle(s, 0) == HR_OK, r, "settle");
    free(out);
}

struct record {
    float *out;       /* [steps][n_q][dv] */
    uint8_t *refined; /* [steps][n_kv][tokens] */
    uint32_t *body;   /* [steps][2] rows of the body; bytes selected */
};

static void decode(const struct run *r, struct text *t, hr_sequence_t *s, struct record *record)
{
    uint8_t *refined = calloc((size_t)r->n_kv * t->n, 1);
    for (uint32_t i = 0; i < r->steps && refined; i++) {
        uint32_t at = r->prompt + i;
        struct hr_tensor k = part(t->k, at, 1, r->n_kv, r->dk),
                         v = part(t->v, at, 1, r->n_kv, r->dv),
                         q = part(t->q, at, 1, r->n_q, r->dk),
                         e = part(t->early, at, 1, r->n_q, r->dk),
                         o = part(record->out, i, 1, r->n_q, r->dv);
        struct hr_attend_options options;
        struct hr_attend_report report;
        hr_attend_options_init(&options);
        options.refined_out = refined;
        if (r->early) {
            must(hr_sequence_wants_prefetch(s, 0) == 1, r, "wants no prefetch");
            must(hr_sequence_prefetch(s, 0, &e, NULL) == HR_OK, r, "prefetch");
        }
        must(hr_sequence_append(s, 0, &k, &v, NULL) == HR_OK, r, "append");
        must(hr_sequence_attend(s, 0, &q, &options, &o, &report, NULL) == HR_OK, r, "step");
        for (uint32_t h = 0; h < r->n_kv; h++) {
            memcpy(record->refined + ((size_t)i * r->n_kv + h) * t->n,
                   refined + (size_t)h * (at + 1), at + 1);
        }
        record->body[2 * i] =
            (uint32_t)(report.body_bytes / (r->n_kv * (r->dk + r->dv) * sizeof(float)));
        record->body[2 * i + 1] = (uint32_t)report.bytes_selected;
    }
    free(refined);
}

static bool play(const struct run *r, uint64_t seed, const char *folder)
{
    struct text t;
    text_make(r, seed, &t);
    hr_runtime_t *rt = runtime_make(256u << 20, 256u << 20, NULL, 0, HR_IO_AUTO);
    must(rt != NULL, r, "runtime");
    hr_sequence_t *s = sequence_open(r, &t, rt);
    if (s == NULL) {
        printf("left out: %s: %s\n", r->recipe, hr_last_error());
        must(hr_runtime_destroy(rt) == HR_OK, r, "destroy");
        text_free(&t);
        return false;
    }
    struct record record = {.out = floats((size_t)r->steps * r->n_q * r->dv),
                            .refined = calloc((size_t)r->steps * r->n_kv * t.n, 1),
                            .body = calloc(2 * (size_t)r->steps, sizeof(uint32_t))};
    must(record.refined && record.body, r, "memory");
    prefill(r, &t, s);
    recipe_state_write(s, folder, "prompt");
    decode(r, &t, s, &record);
    recipe_state_write(s, folder, "end");
    meta_write(r, &t, folder);
    file_write(folder, "k.bin", t.k, (size_t)t.n * r->n_kv * r->dk * sizeof(float));
    file_write(folder, "v.bin", t.v, (size_t)t.n * r->n_kv * r->dv * sizeof(float));
    file_write(folder, "q.bin", t.q, (size_t)t.n * r->n_q * r->dk * sizeof(float));
    file_write(folder, "early.bin", t.early, (size_t)t.n * r->n_q * r->dk * sizeof(float));
    file_write(folder, "out.bin", record.out, (size_t)r->steps * r->n_q * r->dv * sizeof(float));
    file_write(folder, "refined.bin", record.refined, (size_t)r->steps * r->n_kv * t.n);
    file_write(folder, "body.bin", record.body, 2 * (size_t)r->steps * sizeof(uint32_t));
    hr_sequence_destroy(s);
    must(hr_runtime_destroy(rt) == HR_OK, r, "destroy");
    free(record.out);
    free(record.refined);
    free(record.body);
    text_free(&t);
    return true;
}

int main(int argc, char **argv)
{
    char python[PATH_BYTES], folder[] = "/tmp/headrace-recipes-XXXXXX", path[PATH_BYTES],
                             command[4 * PATH_BYTES];
    if (!find_python(python)) {
        printf("skipped: no Python with NumPy (HEADRACE_PYTHON names one)\n");
        return SKIPPED;
    }
    if (mkdtemp(folder) == NULL) {
        perror(folder);
        return 1;
    }
    for (size_t i = 0; i < sizeof runs / sizeof runs[0]; i++) {
        if (argc > 1 && strstr(runs[i].recipe, argv[1]) != runs[i].recipe) {
            continue;
        }
        snprintf(path, sizeof path, "%s/%02zu", folder, i);
        if (mkdir(path, 0777) != 0) {
            perror(path);
            return 1;
        }
        if (!play(&runs[i], 1000 + i, path)) {
            rmdir(path);
        }
    }
    fflush(stdout);
    snprintf(command, sizeof command, "'%s' '%s' '%s'", python, SCRIPT, folder);
    int code = system(command);
    if (code != 0) {
        printf("seed of run i: 1000 + i; the runs are in %s\n", folder);
        return 1;
    }
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    return system(command) != 0;
}
