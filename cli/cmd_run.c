/* headrace run: a text, a model, an answer and a report. */
#include <stdlib.h>
#include <string.h>

#include "cli/args.h"
#include "cli/commands.h"
#include "cli/json_file.h"
#include "cli/out.h"
#include "cli/run.h"

static const struct cli_command command = {
    .name = "run",
    .about =
        "Reads a text with a model whose KV cache lies in three tiers, writes what comes next, "
        "and\n"
        "reports what moved, what was estimated and how far that is from dense attention.\n\n"
        "The text is --file, --prompt, or both: then the file is the context and the prompt the\n"
        "question after it. The model 'tiny' with neither of them makes a text that hides keys "
        "and\n"
        "values, asks for them and counts the answers.",
    .examples =
        "  headrace run --model SmolLM2-135M-Instruct.Q4_1.gguf --file book.txt --chat \\\n"
        "      --prompt 'What is this about?' --tokens-context 7500 --device-bytes 32MiB \\\n"
        "      --host-bytes 64MiB --file-dir /var/tmp --file-bytes 1GiB\n"
        "  headrace run --model tiny --tokens-context 16384 --moved 2% --check-dense",
};

static int parse(int argc, char **argv, struct cli_run_options *o)
{
    const struct cli_option options[] = {
        CLI_HEADING("Model and text:"),
        CLI_OPTION("model", CLI_STRING, &o->model, "FILE",
                   "GGUF file, or tiny: the embedded retrieval model"),
        CLI_OPTION("file", CLI_STRING, &o->prompt.file, "TEXT",
                   "file with the text to read, UTF-8; - is standard input"),
        CLI_OPTION("prompt", CLI_STRING, &o->prompt.question, "TEXT",
                   "the text itself, or the question that follows --file"),
        CLI_SWITCH("chat", &o->prompt.chat, "as one turn of a chat, in the model's format"),
        CLI_RANGE("tokens-context", CLI_COUNT, &o->prompt.tokens_context, "N", 1, 1u << 30,
                  "use the first N tokens of --file [all]; length of tiny's own text [4096]"),
        CLI_RANGE("keys", CLI_COUNT, &o->prompt.keys, "N", 1, 64, "keys in tiny's own text"),
        CLI_SWITCH("allow-longer", &o->allow_longer,
                   "go on beyond the context the model was trained for"),
        CLI_HEADING("What to write:"),
        CLI_RANGE("tokens", CLI_COUNT, &o->tokens, "N", 1, 1u << 24, "at most N tokens"),
        CLI_RANGE("temperature", CLI_REAL, &o->temperature, "T", 0, 100,
                  "0: always the likeliest token"),
        CLI_RANGE("top-p", CLI_REAL, &o->top_p, "P", 0, 1,
                  "choose among the likeliest tokens that together have this probability"),
        {.name = "seed",
         .kind = CLI_COUNT,
         .value = &o->recipe.seed,
         .metavar = "S",
         .text = "of the sampling, of tiny's own text, of grouping [0]",
         .given = &o->seed_given},
        CLI_RANGE(
            "fork", CLI_COUNT, &o->forks, "N", 1, 10000,
            "N continuations of the same text, with seeds S, S + 1, ...; its rows are shared"),
        CLI_HEADING("Sessions:"),
        CLI_OPTION("save", CLI_STRING, &o->save_dir, "DIR",
                   "save the session to a folder at the end; what was there is replaced whole"),
        CLI_WORD(
            "save-mode", &o->save_mode, "MODE", "none relaxed strict",
            "what a save survives: none: a killed process; relaxed: also a power cut (then the "
            "old one may be there); strict: the new one is there when the command ends"),
        CLI_OPTION("open", CLI_STRING, &o->open_dir, "DIR",
                   "go on from a saved session: only new text is read; recipe, budget and seed are "
                   "the saved ones unless given"),
        CLI_RANGE("tokens-max", CLI_COUNT, &o->tokens_max, "N", 1, 1u << 30,
                  "make room for N tokens in all [what is read and written; when opened: at least "
                  "the saved room]"),
        CLI_HEADING("How to attend:"),
        {.name = "recipe",
         .kind = CLI_STRING,
         .value = &o->recipe.name,
         .metavar = "NAME",
         .text = cli_recipe_help(),
         .given = &o->recipe_given},
        CLI_HEAD_GATES_OPTION(o->recipe),
        {.name = "moved",
         .kind = CLI_BUDGET,
         .value = &o->recipe.moved,
         .metavar = "BUDGET",
         .text = "what a step may select: a share of the body's exact bytes, or for each kv-head "
                 "bytes, such as 64KiB, or exact rows, such as 82tokens",
         .given = &o->moved_given},
        {.name = "tolerance",
         .kind = CLI_FRACTION,
         .value = &o->recipe.tolerance,
         .metavar = "X",
         .text =
             "stop earlier, when the predicted error of the output is below X; 0: spend --moved",
         .given = &o->tolerance_given},
        {.name = "dtype",
         .kind = CLI_CHOICE,
         .value = &o->recipe.dtype,
         .metavar = "TYPE",
         .choices = CLI_DTYPES,
         .text = "how exact rows are kept: f32, f16 or bf16",
         .given = &o->dtype_given},
        CLI_RANGE("deadline-ms", CLI_REAL, &o->deadline_ms, "MS", 0, 3600000,
                  "time for a token: blocks that the file has not brought by then stay at their "
                  "sketch or summary; 0: none"),
        CLI_SWITCH(
            "strict-exact", &o->strict_exact,
            "wait for late blocks all the same, for --io-timeout at most, and fail where one "
            "cannot be read"),
        CLI_SWITCH("check-dense", &o->check_dense,
                   "also attend densely: true error, KL and top-1 agreement (slow, and the cache a "
                   "second time)"),
        CLI_PLACE_OPTIONS(o->place),
        CLI_HEADING("Output:"),
        CLI_OPTION(
            "json", CLI_STRING, &o->json, "FILE",
            "also write the report as JSON; - is standard output, text then goes to standard "
            "error"),
        CLI_SWITCH("quiet", &o->quiet, "no progress and no report, only the text"),
    };
    return cli_args_parse(&command, options, sizeof options / sizeof options[0], argc, argv, NULL);
}

static int check(struct cli_run_options *o)
{
    int code = cli_place_check(command.name, &o->place);
    if (code >= 0)
        return code;
    bool has_text = o->prompt.file || o->prompt.question;
    if (o->open_dir && o->check_dense)
        return cli_usage_error(command.name, "--check-dense needs the whole text, which --open "
                                             "does not read");
    if (o->forks && (o->save_dir || o->check_dense))
        return cli_usage_error(command.name, "--fork has no one text to %s",
                               o->save_dir ? "--save" : "--check-dense");
    if (o->forks && !has_text && !o->open_dir)
        return cli_usage_error(command.name, "--fork needs --file, --prompt or --open");
    if (!has_text && !o->open_dir && strcmp(o->model, "tiny") != 0)
        return cli_usage_error(command.name,
                               "--file or --prompt is missing: there is nothing to read");
    if (o->top_p <= 0)
        return cli_usage_error(
            command.name, "--top-p '%g' is not a number of more than 0 and at most 1", o->top_p);
    if (o->prompt.chat && !has_text)
        return cli_usage_error(command.name, "--chat needs --file or --prompt");
    code = cli_recipe_resolve(command.name, o->recipe.name, o->recipe_text, sizeof o->recipe_text);
    o->recipe.name = o->recipe_text;
    if (code < 0 && o->deadline_ms > 0 && cli_recipe_drafts(o->recipe.name))
        return cli_usage_error(command.name,
                               "--deadline-ms: recipe %s verifies every token exactly, which "
                               "cannot be cut short",
                               o->recipe.name);
    return code;
}

static int open_session(struct cli_run *run)
{
    const struct cli_run_options *o = run->options;
    struct hre_session_options options;
    size_t vocab = run->model.info->vocab;
    uint64_t begin = cli_now_ns();
    int code = run->saved.opened ? cli_cache_open_saved(&run->model, &o->place, &run->recipe,
                                                        run->tokens_max, o->open_dir, &run->cache)
                                 : cli_cache_open(&run->model, &o->place, &run->recipe,
                                                  run->tokens_max, &run->cache);
    run->saved.open_ns = run->saved.opened ? cli_now_ns() - begin : 0;
    if (code == 0 && o->check_dense)
        code = cli_cache_open_dense(&run->model, &o->place, o->recipe.dtype, run->tokens_max,
                                    &run->dense_cache);
    if (code)
        return code;
    hr_sequence_t *sequences[2] = {run->cache.sequence, run->dense_cache.sequence};
    hre_session_options_init(&options);
    options.sequences = sequences;
    options.n_sequences = o->check_dense ? 2 : 1;
    options.tokens_max = run->tokens_max;
    if (run->model.info->device)
        options.chunk_tokens = run->model.info->device_rows;
    options.resume = run->saved.opened;
    options.last_id = run->saved.n_ids ? run->saved.ids[run->saved.n_ids - 1] : 0;
    run->speculation.tokens = cli_recipe_drafts(run->recipe.name);
    run->logits = malloc((run->speculation.tokens + 1) * vocab * sizeof *run->logits);
    run->dense_logits = o->check_dense ? malloc(vocab * sizeof *run->dense_logits) : NULL;
    if (!run->logits || (o->check_dense && !run->dense_logits))
        return cli_fail("out of memory");
    hr_status_t status = hre_session_create(run->model.model, &options, &run->session);
    return status == HR_OK ? 0 : cli_fail_engine("session", status);
}

static int open_run(struct cli_run *run)
{
    int code = cli_model_open(run->options->model, &run->options->place, &run->model);
    if (code == 0)
        code = cli_head_gates_read(run->options->recipe.head_gates_path, &run->model,
                                   &run->head_gates);
    if (code == 0)
        code = cli_run_open_begin(run);
    struct cli_prompt_options prompt = run->options->prompt;
    prompt.goes_on = run->saved.opened;
    if (code == 0 && (!run->saved.opened || prompt.file || prompt.question))
        code = cli_prompt_make(&run->model, &prompt, &run->prompt);
    if (code == 0)
        code = cli_run_fit(run);
    if (code == 0)
        code = open_session(run);
    return code;
}

static void close_run(struct cli_run *run)
{
    hre_session_destroy(run->session);
    cli_cache_close(&run->cache);
    cli_cache_close(&run->dense_cache);
    cli_prompt_fini(&run->prompt);
    hre_bytes_fini(&run->text);
    free(run->logits);
    free(run->dense_logits);
    free(run->head_gates);
    free(run->ids);
    cli_saved_fini(&run->saved);
    cJSON_Delete(run->steps);
    cli_model_close(&run->model);
}

static int finish(const struct cli_run *run)
{
    if (!run->options->quiet)
        cli_run_report(run);
    cJSON *json = cli_run_json(run);
    int code = cli_json_write(run->options->json, json);
    cJSON_Delete(json);
    return code;
}

int cli_run(int argc, char **argv)
{
    struct cli_run_options o = {
        .model = "tiny",
        .prompt = {.keys = 48},
        .recipe = CLI_RECIPE_DEFAULTS,
        .place = CLI_PLACE_DEFAULTS,
        .tokens = 64,
        .top_p = 1,
        .save_mode = "relaxed",
    };
    struct cli_run run = {.options = &o};
    int saved = 0;
    int code = parse(argc, argv, &o);
    if (code < 0)
        code = check(&o);
    if (code >= 0)
        return code;
    o.prompt.seed = o.recipe.seed;
    cli_out_set_quiet(o.quiet);
    if (o.json && strcmp(o.json, "-") == 0)
        cli_out_move_to_stderr();
    if ((code = cli_json_check(o.json)) || (code = cli_run_save_check(&o)))
        return code;
    cli_stop_install();
    run.steps = cJSON_CreateArray();
    code = open_run(&run);
    if (code == 0)
        code = cli_run_save_claim(&run);
    if (code == 0)
        code = cli_run_prefill(&run);
    if (code == 0) {
        code = cli_run_generate(&run);
        /* What was read and written so far outlives a GPU that is lost on the way. */
        if (code == 0 || (run.model.info->device && !o.forks))
            saved = cli_run_save(&run);
    }
    code = code == 0 ? saved : code;
    if (code == 0)
        code = finish(&run);
    close_run(&run);
    return code == 0 && cli_stop_signal() ? 128 + cli_stop_signal() : code;
}
