/* Quality of the selectors on recorded attention: for each recipe the bytes kept on the device as a
 * share of the body's bf16 bytes, and the relative error of the attention output when 0.5, 1 and 2
 * % of those bytes are refined per step.
 *
 * usage: trace_quality [-r recipe]... [-H horizon_tokens] [-q queries] [-s segment_rows] [-a
 * ahead_tokens] [-f fraction]... [-p] [DIR...] -a: group as if so many tokens came between the
 * segment and the queries. -p: how good the predictions are. Without DIR it reads the folders
 * inside the one that the variable HEADRACE_TRACES names; without that it is skipped (77). */
#include "tests/index/bench_head.h"
#include "tests/index/trace.h"

#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define SINK     4
#define WINDOW   64
#define LIST_MAX 64

struct setup {
    const char *recipes[LIST_MAX];
    char *dirs[LIST_MAX];
    double fractions[LIST_MAX];
    uint32_t n_recipes, n_dirs, n_fractions, n_queries, horizon, segment, ahead;
    bool predictions;
};

struct result {
    double *error, *predicted; /* [count] */
    size_t count, room;
    double device, index_seconds;
    uint32_t heads;
};

static void record(struct result *r, double error, double predicted)
{
    if (r->count == r->room) {
        r->room = r->room ? 2 * r->room : 256;
        r->error = realloc(r->error, r->room * sizeof *r->error);
        r->predicted = realloc(r->predicted, r->room * sizeof *r->predicted);
    }
    r->error[r->count] = error;
    r->predicted[r->count++] = predicted;
}

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* [n][g][d] of one kv-head, times the softmax scale. */
static float *group_queries(const struct trace *t, const float *q, uint32_t n, uint32_t kv_head)
{
    uint32_t g = t->n_q_heads / t->n_kv_heads;
    float *out = malloc((size_t)n * g * t->d * sizeof *out), scale = 1 / sqrtf((float)t->d);
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t h = 0; h < g; h++)
            for (uint32_t j = 0; j < t->d; j++)
                out[((size_t)i * g + h) * t->d + j] =
                    scale * q[((size_t)(kv_head * g + h) * n + i) * t->d + j];
    return out;
}

static double relative_error(const float *out, const float *truth, uint32_t d)
{
    double far = 0, size = 0;
    for (uint32_t j = 0; j < d; j++) {
        far += ((double)out[j] - truth[j]) * ((double)out[j] - truth[j]);
        size += (double)truth[j] * truth[j];
    }
    return sqrt(far / size);
}

struct output {
    float m[HR_GROUP_MAX], l[HR_GROUP_MAX], o[HR_GROUP_MAX * HR_HEAD_DIM_MAX],
        out[HR_GROUP_MAX * HR_HEAD_DIM_MAX];
    struct hri_partial part;
};

static void one_query(const struct setup *s, const struct trace *t, struct bench_head *b,
                      const float *k, const float *v, uint32_t body_end, uint32_t position,
                      const float *q, struct result *results)
{
    static struct output near, full, sparse;
    uint32_t g = t->n_q_heads / t->n_kv_heads, d = t->d, n = body_end - SINK;
    struct output *all[] = {&near, &full, &sparse};
    for (int i = 0; i < 3; i++)
        all[i]->part = (struct hri_partial){all[i]->m, all[i]->l, all[i]->o};
    hri_partial_clear(&near.part, g, d);
    bench_attend(q, g, d, d, k, v, SINK, 0, &near.part);
    bench_attend(q, g, d, d, k + (size_t)body_end * d, v + (size_t)body_end * d,
                 position + 1 - body_end, 0, &near.part);
    hri_partial_clear(&full.part, g, d);
    bench_attend(q, g, d, d, k, v, position + 1, 0, &full.part);
    hri_partial_finish(&full.part, g, d, full.out, NULL);
    for (uint32_t f = 0; f < s->n_fractions; f++) {
        struct hri_select_out out;
        uint64_t budget = (uint64_t)(s->fractions[f] * n * (double)d * 4);
        memcpy(sparse.m, near.m, sizeof near.m);
        memcpy(sparse.l, near.l, sizeof near.l);
        memcpy(sparse.o, near.o, sizeof near.o);
        bench_head_step(b, q, budget, 0, NULL, &sparse.part, &out);
        hri_partial_finish(&sparse.part, g, d, sparse.out, NULL);
        for (uint32_t h = 0; h < g; h++)
            record(&results[f],
                   relative_error(sparse.out + (size_t)h * d, full.out + (size_t)h * d, d),
                   out.predicted[h]);
    }
}

static void one_head(const struct setup *s, const struct trace *t, const char *recipe,
                     uint32_t head, struct result *results)
{
    uint32_t d = t->d, body_end = t->q_position[0] - WINDOW + 1;
    const float *k = t->k + (size_t)head * t->n_tokens * d,
                *v = t->v + (size_t)head * t->n_tokens * d;
    float frequencies[HR_HEAD_DIM_MAX / 2];
    for (uint32_t i = 0; i < d / 2; i++)
        frequencies[i] = (float)pow(t->rope_base, -2.0 * i / d);
    struct bench_geometry geometry = {.recipe = recipe,
                                      .g = t->n_q_heads / t->n_kv_heads,
                                      .k_dim = d,
                                      .v_dim = d,
                                      .horizon_tokens = s->horizon};
    if (t->rope_base > 0)
        geometry.rope = (struct hr_rope){HR_ROPE_HALF, d, frequencies};
    float *seen = group_queries(t, t->seen, t->n_seen, head),
          *q = group_queries(t, t->q, t->n_q, head);
    struct bench_head b;
    double start = seconds();
    bench_head_init(&b, &geometry, k + (size_t)SINK * d, v + (size_t)SINK * d, body_end - SINK,
                    seen, t->n_seen, t->seen_position[0], t->q_position[0] - s->ahead, s->segment);
    results[0].index_seconds += seconds() - start;
    results[0].device +=
        (double)(hri_index_summary_bytes(b.head) + hri_index_sketch_bytes(b.head)) /
        ((double)b.n * d * 4);
    results[0].heads++;
    for (uint32_t i = 0; i < s->n_queries; i++) {
        uint32_t at = s->n_queries > 1 ? i * (t->n_q - 1) / (s->n_queries - 1) : 0;
        one_query(s, t, &b, k, v, body_end, t->q_position[at], q + (size_t)at * geometry.g * d,
                  results);
    }
    bench_head_fini(&b);
    free(seen);
    free(q);
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void print_predictions(const struct result *r)
{
    double within = 0, xy = 0, xx = 0, yy = 0, x1 = 0, y1 = 0, n = (double)r->count;
    double *ratio = malloc(r->count * sizeof *ratio);
    for (size_t i = 0; i < r->count; i++) {
        double x = log(r->predicted[i] + 1e-9), y = log(r->error[i] + 1e-9);
        ratio[i] = r->predicted[i] / (r->error[i] + 1e-12);
        within += ratio[i] > 0.5 && ratio[i] < 2;
        x1 += x, y1 += y, xx += x * x, yy += y * y, xy += x * y;
    }
    qsort(ratio, r->count, sizeof *ratio, by_size);
    double correlation = (xy - x1 * y1 / n) / sqrt((xx - x1 * x1 / n) * (yy - y1 * y1 / n));
    printf("    predicted / true: median %.2f, 10 %% %.2f, 90 %% %.2f, within 2x %.0f %%, log "
           "correlation %.2f\n",
           ratio[r->count / 2], ratio[r->count / 10], ratio[r->count * 9 / 10], 100 * within / n,
           correlation);
    free(ratio);
}

static void print_row(const struct setup *s, const char *recipe, struct result *results)
{
    printf("%-32s %5.2f%%", recipe, 100 * results[0].device / results[0].heads);
    for (uint32_t f = 0; f < s->n_fractions; f++) {
        struct result *r = &results[f];
        double sum = 0;
        double *sorted = malloc(r->count * sizeof *sorted);
        memcpy(sorted, r->error, r->count * sizeof *sorted);
        for (size_t i = 0; i < r->count; i++)
            sum += r->error[i];
        qsort(sorted, r->count, sizeof *sorted, by_size);
        printf("  %.4f / %.4f", sum / (double)r->count,
               sorted[(size_t)(0.95 * (double)(r->count - 1))]);
        free(sorted);
    }
    printf("  index %.0f ms\n", 1e3 * results[0].index_seconds / results[0].heads);
    for (uint32_t f = 0; s->predictions && f < s->n_fractions; f++)
        print_predictions(&results[f]);
    fflush(stdout);
}

static void find_traces(struct setup *s, const char *root)
{
    DIR *dir = opendir(root);
    for (struct dirent *e; dir && (e = readdir(dir)) && s->n_dirs < LIST_MAX;) {
        char path[1024];
        struct stat st;
        snprintf(path, sizeof path, "%s/%s/meta.json", root, e->d_name);
        if (stat(path, &st) != 0)
            continue;
        path[strlen(path) - strlen("/meta.json")] = '\0';
        s->dirs[s->n_dirs++] = strdup(path);
    }
    if (dir)
        closedir(dir);
}

static bool read_arguments(int argc, char **argv, struct setup *s)
{
    int option;
    while ((option = getopt(argc, argv, "r:H:q:s:a:f:p")) != -1) {
        if (option == 'r' && s->n_recipes < LIST_MAX)
            s->recipes[s->n_recipes++] = optarg;
        else if (option == 'H')
            s->horizon = (uint32_t)strtoul(optarg, NULL, 10);
        else if (option == 'q')
            s->n_queries = (uint32_t)strtoul(optarg, NULL, 10);
        else if (option == 's')
            s->segment = (uint32_t)strtoul(optarg, NULL, 10);
        else if (option == 'a')
            s->ahead = (uint32_t)strtoul(optarg, NULL, 10);
        else if (option == 'f' && s->n_fractions < LIST_MAX)
            s->fractions[s->n_fractions++] = strtod(optarg, NULL);
        else if (option == 'p')
            s->predictions = true;
        else
            return false;
    }
    for (; optind < argc && s->n_dirs < LIST_MAX; optind++)
        s->dirs[s->n_dirs++] = strdup(argv[optind]);
    if (s->n_dirs == 0 && getenv("HEADRACE_TRACES"))
        find_traces(s, getenv("HEADRACE_TRACES"));
    return true;
}

static void use_defaults(struct setup *s)
{
    static const char *const recipes[] = {"exact-topk", "quest", "retroinfer", "headrace:block=32",
                                          "headrace"};
    static const double fractions[] = {0.005, 0.01, 0.02};
    for (uint32_t i = 0; s->n_recipes == 0 || (i && i < 5); i++)
        s->recipes[s->n_recipes++] = recipes[i];
    for (uint32_t i = 0; s->n_fractions == 0 || (i && i < 3); i++)
        s->fractions[s->n_fractions++] = fractions[i];
}

int main(int argc, char **argv)
{
    static struct setup s = {.n_queries = 6, .horizon = 8192};
    if (!read_arguments(argc, argv, &s))
        return 2;
    if (s.n_dirs == 0) {
        printf("skipped: no trace folder; set HEADRACE_TRACES to one that holds them\n");
        return 77;
    }
    bool own_recipes = s.n_recipes > 0, own_fractions = s.n_fractions > 0;
    if (!own_recipes || !own_fractions) {
        struct setup defaults = {0};
        use_defaults(&defaults);
        for (uint32_t i = 0; !own_recipes && i < defaults.n_recipes; i++)
            s.recipes[s.n_recipes++] = defaults.recipes[i];
        for (uint32_t i = 0; !own_fractions && i < defaults.n_fractions; i++)
            s.fractions[s.n_fractions++] = defaults.fractions[i];
    }
    static struct trace traces[LIST_MAX];
    for (uint32_t i = 0; i < s.n_dirs; i++)
        if (!trace_load(s.dirs[i], &traces[i]))
            return 1;
    printf("%u traces; device share, then mean / 95 %% error at moved share", s.n_dirs);
    for (uint32_t f = 0; f < s.n_fractions; f++)
        printf(" %.1f%%", 100 * s.fractions[f]);
    printf("\n");
    for (uint32_t r = 0; r < s.n_recipes; r++) {
        struct result results[LIST_MAX] = {0};
        for (uint32_t i = 0; i < s.n_dirs; i++)
            for (uint32_t h = 0; h < traces[i].n_kv_heads; h++)
                one_head(&s, &traces[i], s.recipes[r], h, results);
        print_row(&s, s.recipes[r], results);
        for (uint32_t f = 0; f < s.n_fractions; f++) {
            free(results[f].error);
            free(results[f].predicted);
        }
    }
    for (uint32_t i = 0; i < s.n_dirs; i++) {
        trace_free(&traces[i]);
        free(s.dirs[i]);
    }
    return 0;
}
