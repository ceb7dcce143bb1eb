/* What eval trace found, as tables, JSON and CSV. */
#include <stdlib.h>
#include <string.h>

#include "cli/eval_trace.h"
#include "cli/json_file.h"
#include "cli/out.h"
#include "cli/setup.h"

#define NAME_WIDTH_MAX 40

/* --------------------------------------------------------------------------------------- tables */

struct ranked {
    size_t recipe;
    double key;
};

static int by_key(const void *a, const void *b)
{
    const struct ranked *x = a, *y = b;
    return x->key != y->key ? (x->key > y->key) - (x->key < y->key)
                            : (x->recipe > y->recipe) - (x->recipe < y->recipe);
}

size_t cli_trace_rank(const struct cli_trace_eval *eval, size_t order[CLI_LIST_MAX])
{
    struct ranked ranked[CLI_LIST_MAX];
    const struct cli_trace_options *o = eval->options;
    size_t n = 0;
    for (size_t i = 0; i < o->recipes.n; i++) {
        struct cli_trace_figures f;
        bool any = false;
        for (size_t j = 0; j < o->moved.n; j++) {
            if (cli_trace_figures(eval, SIZE_MAX, i, j, &f))
                any = true;
        }
        if (any)
            ranked[n++] = (struct ranked){i, f.error_mean};
    }
    qsort(ranked, n, sizeof *ranked, by_key);
    for (size_t i = 0; i < n; i++)
        order[i] = ranked[i].recipe;
    return n;
}

static int name_width(const struct cli_trace_options *o)
{
    size_t width = 6;
    for (size_t i = 0; i < o->recipes.n; i++) {
        size_t n = strlen(o->recipes.name[i]);
        width = n > width ? n : width;
    }
    return (int)(width < NAME_WIDTH_MAX ? width : NAME_WIDTH_MAX);
}

static void print_heads(FILE *file, const struct cli_trace_options *o, int width)
{
    fprintf(file, "%-*s %8s", width, "", "");
    for (size_t j = 0; j < o->moved.n; j++)
        fprintf(file, "   %7s moved  ", o->moved.text[j]);
    fprintf(file, "\n%-*s %8s", width, "recipe", "device");
    for (size_t j = 0; j < o->moved.n; j++)
        fprintf(file, "   %6s %7s ", "error", "p95");
    fputc('\n', file);
}

static void print_errors(FILE *file, const struct cli_trace_eval *eval, size_t trace,
                         const size_t *order, size_t n)
{
    const struct cli_trace_options *o = eval->options;
    int width = name_width(o);
    struct cli_trace_figures f;
    char text[32];
    print_heads(file, o, width);
    for (size_t i = 0; i < n; i++) {
        size_t r = order[i];
        bool named = false;
        for (size_t j = 0; j < o->moved.n; j++) {
            bool there = cli_trace_figures(eval, trace, r, j, &f);
            if (there && !named)
                fprintf(file, "%-*s %8s", width, o->recipes.name[r],
                        cli_format_share(f.device_fraction, text, sizeof text));
            named |= there;
            if (there)
                fprintf(file, "   %6.4f %7.4f%s", f.error_mean, f.error_p95,
                        cli_trace_is_over(&f) ? "*" : " ");
            else if (named)
                fprintf(file, "   %6s %7s ", "-", "-");
        }
        if (named)
            fputc('\n', file);
    }
}

static void print_details(FILE *file, const struct cli_trace_eval *eval, const size_t *order,
                          size_t n)
{
    const struct cli_trace_options *o = eval->options;
    int width = name_width(o);
    struct cli_trace_figures f;
    char host[32], moved[32], fetched[32], recall[32], within[32], large[32], time[32], capped[32];
    fprintf(file, "%-*s %7s %10s %8s %8s %8s %10s %8s %8s%s %10s\n", width, "recipe", "budget",
            "host index", "moved", "fetched", "recall", "predicted", "in 2x", "large",
            o->tolerance > 0 ? "   capped" : "", "a step");
    for (size_t i = 0; i < n; i++) {
        for (size_t j = 0; j < o->moved.n; j++) {
            if (!cli_trace_figures(eval, SIZE_MAX, order[i], j, &f))
                continue;
            bool predicts = f.predicted_mean > 0;
            cli_format_share(f.within_2x, within, sizeof within);
            cli_format_share(f.within_2x_large, large, sizeof large);
            fprintf(file, "%-*s %7s %10s %8s %8s %8s ", width, o->recipes.name[order[i]],
                    o->moved.text[j],
                    f.host_index_fraction > 0
                        ? cli_format_share(f.host_index_fraction, host, sizeof host)
                        : "-",
                    cli_format_share(f.moved_fraction, moved, sizeof moved),
                    cli_format_share(f.fetched_fraction, fetched, sizeof fetched),
                    cli_format_share(f.mass_recall, recall, sizeof recall));
            if (predicts)
                fprintf(file, "%10.4f %8s %8s", f.predicted_mean, within, large);
            else
                fprintf(file, "%10s %8s %8s", "-", "-", "-");
            if (o->tolerance > 0)
                fprintf(file, " %8s",
                        predicts ? cli_format_share(f.capped_fraction, capped, sizeof capped)
                                 : "-");
            fprintf(file, " %10s\n", cli_format_ns((uint64_t)f.ns_per_step, time, sizeof time));
        }
    }
}

void cli_trace_print(FILE *file, const struct cli_trace_eval *eval)
{
    size_t order[CLI_LIST_MAX], n = cli_trace_rank(eval, order),
                                n_traces = eval->options->folders.n;
    for (size_t t = 0; t < n_traces; t++) {
        const struct cli_trace_about *a = &eval->traces[t];
        if (!a->name)
            continue;
        fprintf(file, "%s: %s, layer %u, %u query and %u kv heads of %u; %u tokens, %u queries\n",
                a->name, a->model, a->layer, a->n_q_heads, a->n_kv_heads, a->head_dim, a->n_tokens,
                a->n_queries);
        if (n_traces > 1) {
            print_errors(file, eval, t, order, n);
            fputc('\n', file);
        }
    }
    if (n_traces > 1)
        fprintf(file, "all traces\n");
    print_errors(file, eval, SIZE_MAX, order, n);
    fputc('\n', file);
    print_details(file, eval, order, n);
    fprintf(
        file,
        "\nerror: |out - full| / |full| against full attention in double, mean and 95th percentile "
        "over query heads and queries;\n"
        "*: it moved more than the budget, see the second table; device: summaries and sketches "
        "held; host index: what is held\nin host memory to search in, beside the rows; moved: "
        "everything refined,\n"
        "fetched or found on the device; fetched: what had to come for it; all as shares of the "
        "body's bf16 K and V. recall:\n"
        "attention mass of the body whose rows were refined; in 2x: head-steps whose predicted "
        "error is within a factor of two of\n"
        "the true one; large: the same where that is above %g\n",
        CLI_TRACE_LARGE_ERROR);
    if (eval->options->tolerance > 0)
        fprintf(file,
                "capped: kv-heads and steps where the budget was spent before the predicted error "
                "was below %g\n",
                eval->options->tolerance);
}

/* ----------------------------------------------------------------------------------------- JSON */

static void add_levels(cJSON *json, const struct cli_trace_figures *f)
{
    cJSON *levels = cJSON_AddObjectToObject(json, "levels");
    for (unsigned i = 0; i < HR_LEVELS; i++) {
        cJSON *level = cJSON_AddObjectToObject(levels, hr_level_name(i));
        cJSON_AddNumberToObject(level, "rows", f->rows_by_level[i]);
        cJSON_AddNumberToObject(level, "bytes", f->bytes_by_level[i]);
    }
    cJSON *stages = cJSON_AddObjectToObject(json, "stage_ns");
    for (unsigned i = 0; i < HR_STAGES; i++)
        cJSON_AddNumberToObject(stages, hr_stage_name(i), f->stage_ns[i]);
}

/* Columns of the CSV and members of the JSON, in one list. */
static const struct {
    const char *name;
    size_t at; /* of a double in struct cli_trace_figures */
} columns[] = {
    {"error_mean", offsetof(struct cli_trace_figures, error_mean)},
    {"error_p50", offsetof(struct cli_trace_figures, error_p50)},
    {"error_p95", offsetof(struct cli_trace_figures, error_p95)},
    {"error_max", offsetof(struct cli_trace_figures, error_max)},
    {"device_fraction", offsetof(struct cli_trace_figures, device_fraction)},
    {"moved_fraction", offsetof(struct cli_trace_figures, moved_fraction)},
    {"fetched_fraction", offsetof(struct cli_trace_figures, fetched_fraction)},
    {"selected_fraction", offsetof(struct cli_trace_figures, selected_fraction)},
    {"predicted_error_mean", offsetof(struct cli_trace_figures, predicted_mean)},
    {"predicted_within_2x", offsetof(struct cli_trace_figures, within_2x)},
    {"predicted_within_2x_large", offsetof(struct cli_trace_figures, within_2x_large)},
    {"mass_recall", offsetof(struct cli_trace_figures, mass_recall)},
    {"capped_fraction", offsetof(struct cli_trace_figures, capped_fraction)},
    {"near_rows_min", offsetof(struct cli_trace_figures, near_rows_min)},
    {"near_rows_max", offsetof(struct cli_trace_figures, near_rows_max)},
    {"body_rows", offsetof(struct cli_trace_figures, body_rows)},
    {"ns_per_step", offsetof(struct cli_trace_figures, ns_per_step)},
    {"index_seconds", offsetof(struct cli_trace_figures, index_seconds)},
    {"visited_fraction", offsetof(struct cli_trace_figures, visited_fraction)},
    {"host_index_fraction", offsetof(struct cli_trace_figures, host_index_fraction)},
};
#define COLUMNS (sizeof columns / sizeof columns[0])

static double column_value(const struct cli_trace_figures *f, size_t column)
{
    double value;
    memcpy(&value, (const char *)f + columns[column].at, sizeof value);
    return value;
}

static cJSON *result_json(const struct cli_trace_eval *eval, size_t trace, size_t recipe,
                          size_t moved, const struct cli_trace_figures *f)
{
    const struct cli_trace_options *o = eval->options;
    cJSON *json = cJSON_CreateObject();
    size_t any = trace == SIZE_MAX ? 0 : trace;
    cJSON_AddStringToObject(json, "trace", trace == SIZE_MAX ? "all" : eval->traces[trace].name);
    cJSON_AddStringToObject(json, "recipe", o->recipes.name[recipe]);
    cJSON_AddStringToObject(json, "recipe_used", cli_trace_item_at(eval, any, recipe, moved)->used);
    cJSON_AddStringToObject(json, "moved", o->moved.text[moved]);
    cli_json_real(json, "moved_budget", f->budget_fraction);
    cli_json_u64(json, "steps", f->steps);
    cli_json_u64(json, "head_steps", f->head_steps);
    cli_json_u64(json, "head_steps_large", f->large_steps);
    for (size_t i = 0; i < COLUMNS; i++)
        cli_json_real(json, columns[i].name, column_value(f, i));
    add_levels(json, f);
    return json;
}

static cJSON *traces_json(const struct cli_trace_eval *eval)
{
    cJSON *list = cJSON_CreateArray();
    for (size_t i = 0; i < eval->options->folders.n; i++) {
        const struct cli_trace_about *a = &eval->traces[i];
        if (!a->name)
            continue;
        cJSON *json = cJSON_CreateObject();
        cJSON_AddStringToObject(json, "name", a->name);
        cJSON_AddStringToObject(json, "path", eval->options->folders.text[i]);
        cJSON_AddStringToObject(json, "model", a->model);
        cli_json_u64(json, "layer", a->layer);
        cli_json_u64(json, "n_q_heads", a->n_q_heads);
        cli_json_u64(json, "n_kv_heads", a->n_kv_heads);
        cli_json_u64(json, "head_dim", a->head_dim);
        cli_json_u64(json, "n_tokens", a->n_tokens);
        cli_json_u64(json, "queries_seen", a->n_seen);
        cli_json_u64(json, "queries_scored", a->n_queries);
        cJSON_AddItemToArray(list, json);
    }
    return list;
}

cJSON *cli_trace_json(const struct cli_trace_eval *eval)
{
    const struct cli_trace_options *o = eval->options;
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "command", "eval trace");
    cJSON_AddStringToObject(json, "version", hr_version());
    cJSON_AddStringToObject(json, "tier", o->tier);
    cJSON_AddNumberToObject(json, "tolerance", o->tolerance);
    cli_json_u64(json, "seed", o->seed);
    cJSON_AddBoolToObject(json, "interrupted", cli_stop_signal() != 0);
    cJSON_AddItemToObject(json, "traces", traces_json(eval));
    cJSON *results = cJSON_AddArrayToObject(json, "results");
    for (size_t t = 0; t <= o->folders.n; t++) {
        for (size_t i = 0; i < o->recipes.n; i++) {
            for (size_t j = 0; j < o->moved.n; j++) {
                struct cli_trace_figures f;
                size_t trace = t < o->folders.n ? t : SIZE_MAX;
                if (cli_trace_figures(eval, trace, i, j, &f))
                    cJSON_AddItemToArray(results, result_json(eval, trace, i, j, &f));
            }
        }
    }
    return json;
}

/* ------------------------------------------------------------------------------------------ CSV */

/* Quoted where it must be (RFC 4180). */
static void csv_text(FILE *file, const char *text)
{
    if (!strpbrk(text, ",\"\r\n")) {
        fputs(text, file);
        return;
    }
    fputc('"', file);
    for (; *text; text++) {
        if (*text == '"')
            fputc('"', file);
        fputc(*text, file);
    }
    fputc('"', file);
}

static void csv_row(FILE *file, const struct cli_trace_eval *eval, size_t trace, size_t recipe,
                    size_t moved)
{
    const struct cli_trace_options *o = eval->options;
    struct cli_trace_figures f;
    if (!cli_trace_figures(eval, trace, recipe, moved, &f))
        return;
    csv_text(file, trace == SIZE_MAX ? "all" : eval->traces[trace].name);
    fputc(',', file);
    csv_text(file, o->recipes.name[recipe]);
    fprintf(file, ",%s,%llu", o->moved.text[moved], (unsigned long long)f.head_steps);
    for (size_t i = 0; i < COLUMNS; i++)
        fprintf(file, ",%.9g", column_value(&f, i));
    for (unsigned i = 0; i < HR_LEVELS; i++)
        fprintf(file, ",%.9g", f.bytes_by_level[i]);
    fputs("\r\n", file);
}

char *cli_trace_csv(const struct cli_trace_eval *eval)
{
    const struct cli_trace_options *o = eval->options;
    char *text = NULL;
    size_t bytes;
    FILE *file = open_memstream(&text, &bytes);
    if (!file)
        return NULL;
    fputs("trace,recipe,moved,head_steps", file);
    for (size_t i = 0; i < COLUMNS; i++)
        fprintf(file, ",%s", columns[i].name);
    for (unsigned i = 0; i < HR_LEVELS; i++)
        fprintf(file, ",bytes_%s", hr_level_name(i));
    fputs("\r\n", file);
    for (size_t t = 0; t <= o->folders.n; t++)
        for (size_t i = 0; i < o->recipes.n; i++)
            for (size_t j = 0; j < o->moved.n; j++)
                csv_row(file, eval, t < o->folders.n ? t : SIZE_MAX, i, j);
    if (fclose(file) == 0)
        return text;
    free(text);
    return NULL;
}
