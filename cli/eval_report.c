/* What eval model found, as a table and as JSON. */
#include <stdio.h>

#include <headrace/parse.h>

#include "cli/eval_model.h"
#include "cli/json_file.h"
#include "cli/out.h"

static double mean(double sum, uint64_t n)
{
    return n ? sum / (double)n : 0;
}

static double device_fraction(const struct cli_eval_item *item)
{
    uint64_t held = item->cache.summary_bytes + item->cache.sketch_bytes;
    return item->cache.body_bytes ? (double)held / (double)item->cache.body_bytes : 0;
}

static double selected_fraction(const struct cli_eval_item *item)
{
    const struct hr_attend_report *sum = &item->tally.sum;
    return sum->body_bytes ? (double)sum->bytes_selected / (double)sum->body_bytes : 0;
}

static double fetched_fraction(const struct cli_eval_item *item)
{
    const struct hr_attend_report *sum = &item->tally.sum;
    return sum->body_bytes
               ? (double)(sum->bytes_from_host + sum->bytes_from_file) / (double)sum->body_bytes
               : 0;
}

static double moved_bytes(const struct cli_eval_item *item)
{
    return mean((double)(item->tally.sum.bytes_from_host + item->tally.sum.bytes_from_file),
                item->tally.steps);
}

static void print_item(FILE *file, const struct cli_eval_item *item, bool true_error)
{
    char device[32], moved[32], bytes[32], predicted[32];
    double error = mean(item->tally.sum.predicted_error, item->tally.steps);
    snprintf(predicted, sizeof predicted, error > 0 ? "%.4f" : "-",
             error); /* selectors that drop the rest predict nothing */
    fprintf(file, "%-24s %6s %8s %8s %10s  %+9.5f %9.6f  %6.4f  %9s", item->recipe,
            item->moved_text, cli_format_share(device_fraction(item), device, sizeof device),
            cli_format_share(selected_fraction(item), moved, sizeof moved),
            hr_format_bytes((uint64_t)moved_bytes(item), bytes, sizeof bytes),
            mean(item->nll - item->nll_dense, item->scored), mean(item->kl, item->scored),
            mean((double)item->agreed, item->scored), predicted);
    if (true_error)
        fprintf(file, " %9.4f", mean(item->tally.sum.true_error, item->tally.steps));
    fputc('\n', file);
}

void cli_eval_print(FILE *file, const struct cli_eval *eval)
{
    const struct cli_eval_item *first = &eval->items[0];
    bool true_error = eval->options->true_error;
    fprintf(file, "%llu tokens scored after %llu; dense NLL %.5f per token\n\n",
            (unsigned long long)first->scored, (unsigned long long)eval->options->tokens_context,
            mean(first->nll_dense, first->scored));
    fprintf(file, "%-24s %6s %8s %8s %10s  %9s %9s  %6s  %9s%s\n", "recipe", "budget", "device",
            "refined", "moved", "delta NLL", "KL", "top-1", "predicted",
            true_error ? "      true" : "");
    for (size_t i = 0; i < eval->n_items; i++) {
        if (eval->items[i].scored)
            print_item(file, &eval->items[i], true_error);
    }
    fprintf(file,
            "\ndevice: summaries and sketches as a share of the body's exact K and V; refined: "
            "bytes a step chose, hit or fetched,\n"
            "as a share of them; moved: bytes per token that had to come from host or file; "
            "predicted%s: relative error of the attention output\n",
            true_error ? " and true" : "");
}

static cJSON *item_json(const struct cli_eval_item *item, bool true_error)
{
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "recipe", item->recipe);
    cJSON_AddStringToObject(json, "moved", item->moved_text);
    cli_json_real(
        json, "moved_fraction",
        cli_budget_share(item->moved)); /* the budget: it names the result, as the recipe does */
    cJSON_AddNumberToObject(json, "selected_fraction", selected_fraction(item));
    cJSON_AddNumberToObject(json, "fetched_fraction", fetched_fraction(item));
    cJSON_AddNumberToObject(json, "device_fraction", device_fraction(item));
    cli_json_u64(json, "tokens_scored", item->scored);
    cli_json_real(json, "nll_dense", mean(item->nll_dense, item->scored));
    cli_json_real(json, "nll", mean(item->nll, item->scored));
    cli_json_real(json, "nll_delta", mean(item->nll - item->nll_dense, item->scored));
    cli_json_real(json, "kl", mean(item->kl, item->scored));
    cli_json_real(json, "kl_max", item->kl_max);
    cJSON_AddNumberToObject(json, "top1_agreement", mean((double)item->agreed, item->scored));
    cJSON_AddNumberToObject(json, "bytes_moved_per_token", moved_bytes(item));
    cJSON_AddNumberToObject(json, "bytes_selected_per_token",
                            mean((double)item->tally.sum.bytes_selected, item->tally.steps));
    cli_json_real(json, "predicted_error",
                  mean(item->tally.sum.predicted_error, item->tally.steps));
    if (true_error)
        cli_json_real(json, "true_error", mean(item->tally.sum.true_error, item->tally.steps));
    cli_json_u64(json, "summary_bytes", item->cache.summary_bytes);
    cli_json_u64(json, "sketch_bytes", item->cache.sketch_bytes);
    cli_json_u64(json, "body_bytes", item->cache.body_bytes);
    cJSON_AddNumberToObject(json, "index_seconds", (double)item->cache.index_ns * 1e-9);
    cJSON_AddItemToObject(json, "tiers", cli_tiers_json(&item->tiers));
    cJSON_AddItemToObject(json, "step_mean", cli_tally_json(&item->tally));
    return json;
}

cJSON *cli_eval_json(const struct cli_eval *eval)
{
    const struct cli_eval_options *o = eval->options;
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "command", "eval model");
    cJSON_AddStringToObject(json, "version", hr_version());
    cJSON_AddItemToObject(json, "model", cli_model_json(&eval->model));
    cJSON_AddStringToObject(json, "file", o->file);
    cli_json_u64(json, "tokens_context", o->tokens_context);
    cli_json_u64(json, "tokens_decoded", o->tokens_decoded);
    cli_json_u64(json, "tokens_scored", o->tokens_scored);
    cJSON_AddStringToObject(json, "dtype", o->recipe.dtype);
    cJSON_AddBoolToObject(json, "interrupted", cli_stop_signal() != 0);
    cJSON *results = cJSON_AddArrayToObject(json, "results");
    for (size_t i = 0; i < eval->n_items; i++) {
        if (eval->items[i].scored)
            cJSON_AddItemToArray(results, item_json(&eval->items[i], o->true_error));
    }
    return json;
}
