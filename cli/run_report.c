/* What a run has to tell at its end, for people and for programs. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include <headrace/parse.h>

#include "cli/json_file.h"
#include "cli/out.h"
#include "cli/run.h"

static double per_second(uint64_t n, uint64_t ns)
{
    return ns ? (double)n * 1e9 / (double)ns : 0;
}

static void print_text_line(FILE *file, const struct cli_run *run,
                            const struct hre_session_stats *stats)
{
    char count[32], read[32], wrote[32];
    fprintf(file, "%-10s %s tokens read in %s, %.1f tokens/s; ", "text",
            cli_format_count(run->prefilled, count, sizeof count),
            cli_format_ns(stats->prefill_ns, read, sizeof read),
            per_second(run->prefilled, stats->prefill_ns));
    fprintf(file, "%llu decoded in %s, %.1f tokens/s\n", (unsigned long long)run->tally.steps,
            cli_format_ns(run->tally.total_ns, wrote, sizeof wrote),
            per_second(run->tally.steps, run->tally.total_ns));
}

static void print_recipe_line(FILE *file, const struct cli_run *run)
{
    const struct cli_recipe *recipe = &run->recipe;
    char share[32];
    bool is_share = isfinite(cli_budget_share(recipe->moved));
    fprintf(file, "%-10s %s, %s of %s moved per step", "recipe",
            hr_sequence_recipe(run->cache.sequence),
            cli_format_budget(recipe->moved, share, sizeof share),
            is_share ? "the body" : "each kv-head");
    if (recipe->tolerance > 0)
        fprintf(file, " at most, until the predicted error is below %g", recipe->tolerance);
    fprintf(file, "\n");
}

static void print_cache_line(FILE *file, const struct cli_run *run,
                             const struct hr_sequence_stats *s)
{
    char exact[32], body[32], summaries[32], share[32];
    (void)run;
    fprintf(file, "%-10s %s of exact K and V, %s of them in blocks", "cache",
            hr_format_bytes(s->exact_bytes, exact, sizeof exact),
            hr_format_bytes(s->body_bytes, body, sizeof body));
    if (s->body_bytes)
        fprintf(file, "; summaries %s, %s of that",
                hr_format_bytes(s->summary_bytes, summaries, sizeof summaries),
                cli_format_share((double)s->summary_bytes / (double)s->body_bytes, share,
                                 sizeof share));
    if (s->sketch_bytes)
        fprintf(file, "; sketches %s",
                hr_format_bytes(s->sketch_bytes, summaries, sizeof summaries));
    fprintf(file, "\n");
}

/* What of the sequence is on the GPU: its steps, exact rows. */
static void print_gpu_line(FILE *file, const struct cli_run *run, const struct hr_sequence_stats *s)
{
    char bytes[32];
    if (!run->model.info->device)
        return;
    fprintf(file, "%-10s steps of %u of %u layers by the recipe there", "gpu", s->layers_on_gpu,
            run->model.info->n_layers);
    fprintf(file, "; room for %s of exact rows; the rest is the host's\n",
            hr_format_bytes(s->device_row_bytes, bytes, sizeof bytes));
}

static void print_dense_line(FILE *file, const struct cli_run *run)
{
    const struct cli_dense *d = &run->dense;
    if (!run->dense_logits || d->tokens == 0)
        return;
    fprintf(file,
            "%-10s KL %.5f, largest %.5f; top-1 agreement %llu of %llu (times of a step include "
            "this check)\n",
            "dense", d->kl_sum / (double)d->tokens, d->kl_max, (unsigned long long)d->agreed,
            (unsigned long long)d->tokens);
}

static void print_deadline_line(FILE *file, const struct cli_run *run)
{
    const struct cli_deadline *d = &run->deadline;
    char largest[32];
    if (run->options->deadline_ms <= 0 || run->tally.steps == 0)
        return;
    fprintf(
        file,
        "%-10s %g ms per token: %llu of %llu took longer, the longest %s; %llu with late blocks",
        "deadline", run->options->deadline_ms, (unsigned long long)d->over,
        (unsigned long long)run->tally.steps, cli_format_ns(d->largest_ns, largest, sizeof largest),
        (unsigned long long)d->with_late);
    fprintf(file, ", which cost a predicted error of %.4f\n",
            run->tally.sum.late_error / (double)run->tally.steps);
}

static void print_speculation_line(FILE *file, const struct cli_run *run)
{
    const struct cli_speculation *s = &run->speculation;
    char drafting[32], verifying[32];
    if (s->rounds == 0)
        return;
    fprintf(file,
            "%-10s %llu rounds, %llu of %llu drafted tokens accepted; drafting %s, verifying %s; "
            "%.1f tokens/s\n",
            "draft", (unsigned long long)s->rounds, (unsigned long long)s->accepted,
            (unsigned long long)s->drafted, cli_format_ns(s->draft_ns, drafting, sizeof drafting),
            cli_format_ns(s->verify_ns, verifying, sizeof verifying),
            per_second(s->accepted + s->rounds, s->draft_ns + s->verify_ns));
}

static void print_session_line(FILE *file, const struct cli_run *run)
{
    const struct cli_saved *s = &run->saved;
    char time[32], bytes[32];
    if (s->opened)
        fprintf(file, "%-10s %u tokens opened from %s in %s\n", "session", s->n_ids,
                run->options->open_dir, cli_format_ns(s->open_ns, time, sizeof time));
    if (s->save_bytes)
        fprintf(file, "%-10s %u tokens, %s, saved to %s in %s\n", "session", run->n_ids,
                hr_format_bytes(s->save_bytes, bytes, sizeof bytes), run->options->save_dir,
                cli_format_ns(s->save_ns, time, sizeof time));
}

void cli_run_report(const struct cli_run *run)
{
    FILE *file = cli_out();
    struct hre_session_stats session;
    struct hr_runtime_stats runtime = {.struct_size = sizeof runtime};
    struct hr_sequence_stats sequence = {.struct_size = sizeof sequence};
    char text[32];
    hre_session_stats(run->session, &session);
    fprintf(file, "\n%-10s ", "model");
    cli_model_print(file, &run->model);
    print_recipe_line(file, run);
    print_text_line(file, run, &session);
    print_session_line(file, run);
    if (hr_sequence_stats_get(run->cache.sequence, &sequence) == HR_OK)
        print_cache_line(file, run, &sequence);
    print_gpu_line(file, run, &sequence);
    if (hr_runtime_stats_get(run->cache.runtime, &runtime) == HR_OK) {
        fputc('\n', file);
        cli_tiers_print(file, &runtime);
        fprintf(file, "%-10s %12s %12s   peak resident memory; weights are %s of it\n", "process",
                "", hr_format_bytes(cli_peak_resident_bytes(), text, sizeof text),
                hr_format_bytes(run->model.info->weight_bytes, (char[32]){0}, 32));
    }
    if (run->tally.steps)
        fputc('\n', file);
    cli_tally_print(file, &run->tally);
    print_deadline_line(file, run);
    print_speculation_line(file, run);
    print_dense_line(file, run);
    if (run->prompt.n_keys)
        fprintf(file, "\n%u of %u answered%s\n", run->answered, run->prompt.n_keys,
                run->asked < run->prompt.n_keys ? " (interrupted)" : "");
    else if (run->ended && strcmp(run->ended, "interrupted") == 0)
        fprintf(file, "\ninterrupted\n");
}

/* ----------------------------------------------------------------------------------------- JSON */

static void add_request(cJSON *json, const struct cli_run *run)
{
    const struct cli_recipe *o = &run->recipe;
    cJSON_AddStringToObject(json, "recipe", hr_sequence_recipe(run->cache.sequence));
    char budget[32];
    if (isfinite(cli_budget_share(o->moved)))
        cJSON_AddNumberToObject(json, "moved", o->moved);
    else
        cJSON_AddStringToObject(json, "moved", cli_format_budget(o->moved, budget, sizeof budget));
    cJSON_AddNumberToObject(json, "tolerance", o->tolerance);
    cJSON_AddStringToObject(json, "dtype", o->dtype);
    cJSON_AddNumberToObject(json, "deadline_ms", run->options->deadline_ms);
    cJSON_AddBoolToObject(json, "strict_exact", run->options->strict_exact);
    cli_json_u64(json, "seed", o->seed);
}

static void add_times(cJSON *json, const struct cli_run *run)
{
    struct hre_session_stats s;
    hre_session_stats(run->session, &s);
    cJSON *prefill = cJSON_AddObjectToObject(json, "prefill");
    cli_json_u64(prefill, "tokens", run->prefilled);
    cJSON_AddNumberToObject(prefill, "seconds", (double)s.prefill_ns * 1e-9);
    cJSON_AddNumberToObject(prefill, "tokens_per_second", per_second(run->prefilled, s.prefill_ns));
    cJSON_AddNumberToObject(prefill, "linear_seconds", (double)s.prefill_linear_ns * 1e-9);
    cJSON_AddNumberToObject(prefill, "append_seconds", (double)s.prefill_append_ns * 1e-9);
    cJSON_AddNumberToObject(prefill, "attend_seconds", (double)s.prefill_attend_ns * 1e-9);
    cJSON_AddNumberToObject(prefill, "settle_seconds", (double)s.prefill_settle_ns * 1e-9);
    cJSON *decode = cJSON_AddObjectToObject(json, "decode");
    cli_json_u64(decode, "tokens", run->tally.steps);
    cJSON_AddNumberToObject(decode, "seconds", (double)run->tally.total_ns * 1e-9);
    cJSON_AddNumberToObject(decode, "tokens_per_second",
                            per_second(run->tally.steps, run->tally.total_ns));
    if (run->model.info->device)
        cli_json_u64(decode, "graph_tokens", s.decode_graph_tokens);
}

static void add_cache(cJSON *json, const struct cli_run *run)
{
    struct hr_sequence_stats s = {.struct_size = sizeof s};
    if (hr_sequence_stats_get(run->cache.sequence, &s) != HR_OK)
        return;
    cJSON *cache = cJSON_AddObjectToObject(json, "cache");
    cli_json_u64(cache, "exact_bytes", s.exact_bytes);
    cli_json_u64(cache, "body_bytes", s.body_bytes);
    cli_json_u64(cache, "body_rows", s.body_rows);
    cli_json_u64(cache, "blocks", s.blocks);
    cli_json_u64(cache, "summary_bytes", s.summary_bytes);
    cli_json_u64(cache, "sketch_bytes", s.sketch_bytes);
    cli_json_u64(cache, "window_bytes", s.window_bytes);
    cli_json_u64(cache, "frame_bytes", s.frame_bytes);
    if (run->model.info->device) {
        cli_json_u64(cache, "device_row_bytes", s.device_row_bytes);
        cli_json_u64(cache, "layers_on_gpu", s.layers_on_gpu);
    }
    cli_json_u64(cache, "host_bytes", s.host_bytes);
    cli_json_u64(cache, "file_bytes", s.file_bytes);
    cJSON_AddNumberToObject(
        cache, "device_fraction",
        s.body_bytes ? (double)(s.summary_bytes + s.sketch_bytes) / (double)s.body_bytes : 0);
    cJSON_AddNumberToObject(cache, "index_seconds", (double)s.index_ns * 1e-9);
}

static void add_dense(cJSON *json, const struct cli_run *run)
{
    const struct cli_dense *d = &run->dense;
    if (!run->dense_logits || d->tokens == 0)
        return;
    cJSON *dense = cJSON_AddObjectToObject(json, "dense");
    cli_json_u64(dense, "tokens", d->tokens);
    cli_json_real(dense, "kl", d->kl_sum / (double)d->tokens);
    cli_json_real(dense, "kl_max", d->kl_max);
    cJSON_AddNumberToObject(dense, "top1_agreement", (double)d->agreed / (double)d->tokens);
}

cJSON *cli_run_json(const struct cli_run *run)
{
    struct hr_runtime_stats stats = {.struct_size = sizeof stats};
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "command", "run");
    cJSON_AddStringToObject(json, "version", hr_version());
    cJSON_AddItemToObject(json, "model", cli_model_json(&run->model));
    add_request(json, run);
    cli_json_u64(json, "prompt_tokens", run->prompt.n_ids);
    cli_json_u64(json, "generated_tokens", run->generated);
    cJSON_AddStringToObject(json, "text", run->text.data ? run->text.data : "");
    cJSON_AddStringToObject(json, "ended", run->ended ? run->ended : "failed");
    if (run->prompt.n_keys) {
        cJSON *recall = cJSON_AddObjectToObject(json, "recall");
        cli_json_u64(recall, "keys", run->prompt.n_keys);
        cli_json_u64(recall, "asked", run->asked);
        cli_json_u64(recall, "answered", run->answered);
    }
    add_times(json, run);
    add_cache(json, run);
    if (hr_runtime_stats_get(run->cache.runtime, &stats) == HR_OK)
        cJSON_AddItemToObject(json, "tiers", cli_tiers_json(&stats));
    cli_json_u64(json, "peak_resident_bytes", cli_peak_resident_bytes());
    cJSON_AddItemToObject(json, "step_mean", cli_tally_json(&run->tally));
    if (run->saved.opened || run->saved.save_bytes) {
        cJSON *session = cJSON_AddObjectToObject(json, "session");
        cli_json_u64(session, "opened_tokens", run->saved.n_ids);
        cJSON_AddNumberToObject(session, "open_seconds", (double)run->saved.open_ns * 1e-9);
        cli_json_u64(session, "saved_tokens", run->saved.save_bytes ? run->n_ids : 0);
        cli_json_u64(session, "saved_bytes", run->saved.save_bytes);
        cJSON_AddNumberToObject(session, "save_seconds", (double)run->saved.save_ns * 1e-9);
    }
    if (run->options->deadline_ms > 0) {
        cJSON *deadline = cJSON_AddObjectToObject(json, "deadline");
        cli_json_u64(deadline, "steps_over", run->deadline.over);
        cli_json_u64(deadline, "steps_with_late_blocks", run->deadline.with_late);
        cJSON_AddNumberToObject(deadline, "longest_ms", (double)run->deadline.largest_ns * 1e-6);
    }
    if (run->speculation.tokens) {
        cJSON *draft = cJSON_AddObjectToObject(json, "draft");
        cli_json_u64(draft, "rounds", run->speculation.rounds);
        cli_json_u64(draft, "drafted", run->speculation.drafted);
        cli_json_u64(draft, "accepted", run->speculation.accepted);
        cJSON_AddNumberToObject(draft, "draft_seconds", (double)run->speculation.draft_ns * 1e-9);
        cJSON_AddNumberToObject(draft, "verify_seconds", (double)run->speculation.verify_ns * 1e-9);
    }
    add_dense(json, run);
    cJSON_AddItemToObject(json, "steps", cJSON_Duplicate(run->steps, 1));
    return json;
}
