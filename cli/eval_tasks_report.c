/* What eval tasks found, as tables, JSON and CSV. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include <headrace/parse.h>

#include "cli/eval_tasks.h"
#include "cli/json_file.h"
#include "cli/out.h"
#include "cli/whole_file.h"

#define NAME_WIDTH_MAX 40

/* ------------------------------------------------------------------------------------------- figures */

static double ratio(double a, double b)
{
    return b > 0 ? a / b : 0;
}

static double per_answer(const struct cli_tasks_figure *f, double sum)
{
    return ratio(sum, (double)f->answers);
}

static const struct cli_tasks_figure *figure_at(const struct cli_tasks_eval *eval, size_t task,
                                                size_t item)
{
    return &eval->figures[task * eval->n_items + item];
}

static double selected_fraction(const struct cli_tasks_figure *f)
{
    return ratio((double)f->tally.sum.bytes_selected, (double)f->tally.sum.body_bytes);
}

static double moved_bytes(const struct cli_tasks_figure *f)
{
    return ratio((double)(f->tally.sum.bytes_from_host + f->tally.sum.bytes_from_file),
                 (double)f->tally.steps);
}

/* Layers with a window of their own retrieve nothing. */
static bool retrieves(const struct cli_tasks_eval *eval, size_t layer)
{
    return eval->model.info->sliding_windows[layer] == 0;
}

/* Of the rows that held an answer, those refined when it was said: mean over heads; negative: nobody
 * knows which rows held it. */
static double refined_share(const struct cli_tasks_eval *eval, const struct cli_tasks_figure *f)
{
    const struct hre_model_info *info = eval->model.info;
    double sum = 0, heads = 0;
    for (size_t l = 0; l < info->n_layers; l++) {
        for (size_t h = 0; h < info->n_kv_heads && retrieves(eval, l); h++, heads++)
            sum += (double)f->refined[l * info->n_kv_heads + h];
    }
    return f->rows && heads > 0 ? sum / heads / (double)f->rows : -1;
}

/* -------------------------------------------------------------------------------------------- tables */

static int recipe_width(const struct cli_tasks_eval *eval)
{
    size_t width = 6;
    for (size_t i = 0; i < eval->n_items; i++) {
        size_t n = strlen(eval->items[i].recipe);
        width = n > width ? n : width;
    }
    return (int)(width < NAME_WIDTH_MAX ? width : NAME_WIDTH_MAX);
}

static void print_figure(FILE *file, const struct cli_tasks_eval *eval, size_t task, size_t item,
                         int width)
{
    const struct cli_tasks_figure *f = figure_at(eval, task, item);
    char refined[32], bytes[32], rows[32];
    double share = refined_share(eval, f);
    if (share >= 0)
        cli_format_share(share, rows, sizeof rows);
    else
        snprintf(rows, sizeof rows, "-");
    fprintf(file, "%-16s %-*s %6s %7llu  %6.3f  %6.3f  %6.3f %6llu %6llu  %9.6f %8s %8s %10s\n",
            eval->tasks[task]->name, width, eval->items[item].recipe, eval->items[item].moved_text,
            (unsigned long long)f->answers, per_answer(f, f->score), per_answer(f, f->score_dense),
            per_answer(f, (double)f->equal), (unsigned long long)f->worse,
            (unsigned long long)f->better, ratio(f->kl, (double)f->kl_tokens), rows,
            cli_format_share(selected_fraction(f), refined, sizeof refined),
            hr_format_bytes((uint64_t)moved_bytes(f), bytes, sizeof bytes));
}

/* The tasks that the model can do at all, together. */
struct able {
    size_t n, n_lower;
    double score, score_dense;
};

static struct able sum_able(const struct cli_tasks_eval *eval, size_t item)
{
    struct able able = {0};
    for (size_t t = 0; t < eval->n_tasks; t++) {
        const struct cli_tasks_figure *f = figure_at(eval, t, item);
        double dense = per_answer(f, f->score_dense), own = per_answer(f, f->score);
        if (f->answers == 0 || dense < CLI_TASKS_ABLE)
            continue;
        able.n++;
        able.n_lower += own < dense;
        able.score += own;
        able.score_dense += dense;
    }
    return able;
}

static void print_able(FILE *file, const struct cli_tasks_eval *eval, size_t item, int width)
{
    struct able able = sum_able(eval, item);
    const char *sign = "lower on";
    if (able.n == 0)
        return;
    fprintf(file, "%-*s %6s  %zu tasks: %.3f, dense %.3f", width, eval->items[item].recipe,
            eval->items[item].moved_text, able.n, able.score / (double)able.n,
            able.score_dense / (double)able.n);
    for (size_t t = 0; t < eval->n_tasks && able.n_lower; t++) {
        const struct cli_tasks_figure *f = figure_at(eval, t, item);
        if (f->answers == 0 || per_answer(f, f->score_dense) < CLI_TASKS_ABLE ||
            f->score >= f->score_dense)
            continue;
        fprintf(file, "%s %s", sign[0] == 'l' ? "; lower on" : ",", eval->tasks[t]->name);
        sign = "";
    }
    fprintf(file, "%s\n", able.n_lower ? "" : "; lower on none");
}

static void print_sources(FILE *file, const struct cli_tasks_eval *eval)
{
    const struct cli_sources *s = &eval->sources;
    if (s->words_from[0])
        fprintf(file, "words: %zu from %s", s->source.n_words, s->words_from);
    if (s->prose_from[0])
        fprintf(file, "%sprose: %zu sentences from %s", s->words_from[0] ? "; " : "",
                s->source.n_sentences, s->prose_from);
    if (s->words_from[0] || s->prose_from[0])
        fputc('\n', file);
}

void cli_tasks_print(FILE *file, const struct cli_tasks_eval *eval)
{
    const struct cli_tasks_options *o = eval->options;
    int width = recipe_width(eval);
    bool any = false;
    fprintf(
        file,
        "%llu tokens a text with its answers, %llu texts a task, seed %llu; the question is %s\n",
        (unsigned long long)o->tokens_context, (unsigned long long)o->samples,
        (unsigned long long)o->seed,
        strcmp(o->question, "prefill") == 0 ? "read with the text (exact)" : "read by the recipe");
    print_sources(file, eval);
    fprintf(file, "\n%-16s %-*s %6s %7s  %6s  %6s  %6s %6s %6s  %9s %8s %8s %10s\n", "task", width,
            "recipe", "budget", "answers", "score", "dense", "equal", "worse", "better", "KL",
            "rows", "refined", "moved");
    for (size_t t = 0; t < eval->n_tasks; t++) {
        for (size_t i = 0; i < eval->n_items; i++) {
            if (figure_at(eval, t, i)->answers)
                print_figure(file, eval, t, i, width);
        }
    }
    for (size_t i = 0; i < eval->n_items; i++)
        any |= sum_able(eval, i).n > 0;
    if (any)
        fprintf(file, "\nwhere dense attention scores at least %.1f:\n", CLI_TASKS_ABLE);
    for (size_t i = 0; i < eval->n_items; i++)
        print_able(file, eval, i, width);
    fprintf(
        file,
        "\nscore: share of the references that the answer names, mean over answers; equal: answers "
        "that are dense attention's, word for word;\n"
        "worse, better: answers that score lower or higher than it; KL: of the next-token "
        "distribution to dense attention's, while both\n"
        "read the same; rows: of the rows that hold the answer, those refined when it was said, "
        "mean over heads and layers; refined: bytes a\n"
        "step chose, of the body's; moved: bytes per token from host or file\n");
}

/* ---------------------------------------------------------------------------------------------- JSON */

static cJSON *refined_json(const struct cli_tasks_eval *eval, const struct cli_tasks_figure *f)
{
    const struct hre_model_info *info = eval->model.info;
    cJSON *layers = cJSON_CreateArray();
    for (size_t l = 0; l < info->n_layers; l++) {
        cJSON *heads = cJSON_CreateArray();
        for (size_t h = 0; h < info->n_kv_heads && retrieves(eval, l); h++)
            cJSON_AddItemToArray(
                heads, cJSON_CreateNumber(
                           ratio((double)f->refined[l * info->n_kv_heads + h], (double)f->rows)));
        cJSON_AddItemToArray(layers, heads);
    }
    return layers;
}

static cJSON *figure_json(const struct cli_tasks_eval *eval, size_t task, size_t item)
{
    const struct cli_tasks_figure *f = figure_at(eval, task, item);
    const struct hr_attend_report *sum = &f->tally.sum;
    double steps = f->tally.steps ? (double)f->tally.steps : 1;
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "task", eval->tasks[task]->name);
    cJSON_AddStringToObject(json, "recipe", eval->items[item].recipe);
    cJSON_AddStringToObject(json, "moved", eval->items[item].moved_text);
    cli_json_real(json, "moved_fraction", cli_budget_share(eval->items[item].moved));
    cli_json_u64(json, "answers", f->answers);
    cli_json_real(json, "score", per_answer(f, f->score));
    cli_json_real(json, "score_dense", per_answer(f, f->score_dense));
    cli_json_real(json, "equal", per_answer(f, (double)f->equal));
    cli_json_u64(json, "worse", f->worse);
    cli_json_u64(json, "better", f->better);
    cli_json_real(json, "kl", f->kl_tokens ? f->kl / (double)f->kl_tokens : NAN);
    cli_json_u64(json, "kl_tokens", f->kl_tokens);
    cli_json_real(json, "answer_rows_refined", f->rows ? refined_share(eval, f) : NAN);
    cJSON_AddItemToObject(json, "answer_rows_refined_by_head",
                          f->rows ? refined_json(eval, f) : cJSON_CreateNull());
    cJSON_AddNumberToObject(json, "device_fraction",
                            ratio((double)f->device_bytes, (double)f->body_bytes));
    cJSON_AddNumberToObject(json, "selected_fraction", selected_fraction(f));
    cJSON_AddNumberToObject(
        json, "fetched_fraction",
        ratio((double)(sum->bytes_from_host + sum->bytes_from_file), (double)sum->body_bytes));
    cJSON_AddNumberToObject(json, "bytes_moved_per_token", moved_bytes(f));
    cJSON_AddNumberToObject(json, "bytes_selected_per_token", (double)sum->bytes_selected / steps);
    cli_json_real(json, "predicted_error", sum->predicted_error / steps);
    cJSON_AddItemToObject(json, "step_mean", cli_tally_json(&f->tally));
    return json;
}

static void add_source(cJSON *json, const char *name, const char *from, size_t count,
                       const char *unit, uint64_t checksum)
{
    char text[24];
    if (!from[0])
        return;
    cJSON *source = cJSON_AddObjectToObject(json, name);
    cJSON_AddStringToObject(source, "from", from);
    cli_json_u64(source, unit, count);
    snprintf(text, sizeof text, "%016llx", (unsigned long long)checksum);
    cJSON_AddStringToObject(source, "checksum", text);
}

static void add_able(cJSON *json, const struct cli_tasks_eval *eval)
{
    cJSON *all = cJSON_AddArrayToObject(json, "able");
    for (size_t i = 0; i < eval->n_items; i++) {
        struct able able = sum_able(eval, i);
        cJSON *one = cJSON_CreateObject();
        cJSON_AddStringToObject(one, "recipe", eval->items[i].recipe);
        cJSON_AddStringToObject(one, "moved", eval->items[i].moved_text);
        cli_json_u64(one, "tasks", able.n);
        cli_json_u64(one, "tasks_lower", able.n_lower);
        cli_json_real(one, "score", able.n ? able.score / (double)able.n : NAN);
        cli_json_real(one, "score_dense", able.n ? able.score_dense / (double)able.n : NAN);
        cJSON_AddItemToArray(all, one);
    }
}

cJSON *cli_tasks_json(struct cli_tasks_eval *eval)
{
    const struct cli_tasks_options *o = eval->options;
    const struct cli_sources *s = &eval->sources;
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "command", "eval tasks");
    cJSON_AddStringToObject(json, "version", hr_version());
    cJSON_AddItemToObject(json, "model", cli_model_json(&eval->model));
    cli_json_u64(json, "tokens_context", o->tokens_context);
    cli_json_u64(json, "samples_per_task", o->samples);
    cli_json_u64(json, "seed", o->seed);
    cJSON_AddStringToObject(json, "question", o->question);
    cJSON_AddStringToObject(json, "dtype", o->recipe.dtype);
    cJSON_AddBoolToObject(json, "chat", eval->has_chat);
    add_source(json, "words", s->words_from, s->source.n_words, "words", s->words_checksum);
    add_source(json, "prose", s->prose_from, s->source.n_sentences, "sentences", s->prose_checksum);
    cJSON_AddBoolToObject(json, "interrupted", cli_stop_signal() != 0);
    cJSON *results = cJSON_AddArrayToObject(json, "results");
    for (size_t t = 0; t < eval->n_tasks; t++) {
        for (size_t i = 0; i < eval->n_items; i++) {
            if (figure_at(eval, t, i)->answers)
                cJSON_AddItemToArray(results, figure_json(eval, t, i));
        }
    }
    add_able(json, eval);
    cJSON_AddItemToObject(json, "samples", eval->samples);
    eval->samples = NULL;
    return json;
}

/* ----------------------------------------------------------------------------------------------- CSV */

/* Recipes have commas. */
static bool put_name(struct hre_bytes *csv, const char *name)
{
    bool fine = hre_bytes_append(csv, "\"", 1) == HR_OK;
    for (; *name && fine; name++)
        fine = hre_bytes_append(csv, *name == '"' ? "\"\"" : name, *name == '"' ? 2 : 1) == HR_OK;
    return fine && hre_bytes_append(csv, "\"", 1) == HR_OK;
}

static bool put_line(struct hre_bytes *csv, const struct cli_tasks_eval *eval, size_t task,
                     size_t item)
{
    const struct cli_tasks_figure *f = figure_at(eval, task, item);
    char line[512], kl[32] = "", rows[32] = "";
    if (f->kl_tokens)
        snprintf(kl, sizeof kl, "%.9g", f->kl / (double)f->kl_tokens);
    if (f->rows)
        snprintf(rows, sizeof rows, "%.9g", refined_share(eval, f));
    int n = snprintf(line, sizeof line, ",%s,%llu,%.9g,%.9g,%.9g,%llu,%llu,%s,%s,%.9g,%.9g,%.9g\n",
                     eval->items[item].moved_text, (unsigned long long)f->answers,
                     per_answer(f, f->score), per_answer(f, f->score_dense),
                     per_answer(f, (double)f->equal), (unsigned long long)f->worse,
                     (unsigned long long)f->better, kl, rows,
                     ratio((double)f->device_bytes, (double)f->body_bytes), selected_fraction(f),
                     moved_bytes(f));
    return hre_bytes_append(csv, eval->tasks[task]->name, strlen(eval->tasks[task]->name)) ==
               HR_OK &&
           hre_bytes_append(csv, ",", 1) == HR_OK && put_name(csv, eval->items[item].recipe) &&
           hre_bytes_append(csv, line, (size_t)n) == HR_OK;
}

int cli_tasks_write_csv(const struct cli_tasks_eval *eval)
{
    static const char head[] = "task,recipe,moved,answers,score,score_dense,equal,worse,better,kl,"
                               "answer_rows_refined,device_fraction,selected_fraction,"
                               "bytes_moved_per_token\n";
    struct hre_bytes csv = {0};
    if (!eval->options->csv)
        return 0;
    bool fine = hre_bytes_append(&csv, head, sizeof head - 1) == HR_OK;
    for (size_t t = 0; t < eval->n_tasks; t++) {
        for (size_t i = 0; i < eval->n_items && fine; i++) {
            if (figure_at(eval, t, i)->answers)
                fine = put_line(&csv, eval, t, i);
        }
    }
    struct cli_bytes part = {csv.data, csv.bytes};
    int code = fine ? cli_whole_file_write(eval->options->csv, &part, 1)
                    : cli_fail("cannot write '%s': out of memory", eval->options->csv);
    hre_bytes_fini(&csv);
    return code;
}
