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
        "      --prompt 'What is this about?' --tokens-context 7500 --device-bytes 24MiB \\\n"
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
        CLI_RANGE("seed", CLI_COUNT, &o->recipe.seed, "S", 0, 0,
                  "of the sampling, of tiny's own text, of grouping [0]"),
        CLI_HEADING("How to attend:"),
        CLI_OPTION("recipe", CLI_STRING, &o->recipe.name, "NAME", cli_recipe_help()),
        CLI_HEAD_GATES_OPTION(o->recipe),
        CLI_OPTION("moved", CLI_SHARE, &o->recipe.moved, "SHARE",
                   "bytes a step may select, as a share of the body's exact bytes"),
        CLI_OPTION(
            "tolerance", CLI_FRACTION, &o->recipe.tolerance, "X",
            "stop earlier, when the predicted error of the output is below X; 0: spend --moved"),
        CLI_WORD("dtype", &o->recipe.dtype, "TYPE", CLI_DTYPES,
                 "how exact rows are kept: f32, f16 or bf16"),
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
    if (!has_text && strcmp(o->model, "tiny") != 0)
        return cli_usage_error(command.name,
                               "--file or --prompt is missing: there is nothing to read");
    if (o->top_p <= 0)
        return cli_usage_error(
            command.name, "--top-p '%g' is not a number of more than 0 and at most 1", o->top_p);
    if (o->prompt.chat && !has_text)
        return cli_usage_error(command.name, "--chat needs --file or --prompt");
    code = cli_recipe_resolve(command.name, o->recipe.name, o->recipe_text, sizeof o->recipe_text);
    o->recipe.name = o->recipe_text;
    return code;
}

static int open_session(struct cli_run *run)
{
    const struct cli_run_options *o = run->options;
    struct hre_session_options options;
    size_t vocab = run->model.info->vocab;
    struct cli_recipe recipe = o->recipe;
    recipe.head_gates = run->head_gates;
    int code = cli_cache_open(&run->model, &o->place, &recipe, run->tokens_max, &run->cache);
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
    run->speculation.tokens = cli_recipe_drafts(recipe.name);
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
        code = cli_prompt_make(&run->model, &run->options->prompt, &run->prompt);
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
    };
    struct cli_run run = {.options = &o};
    int code = parse(argc, argv, &o);
    if (code < 0)
        code = check(&o);
    if (code >= 0)
        return code;
    o.prompt.seed = o.recipe.seed;
    cli_out_set_quiet(o.quiet);
    if (o.json && strcmp(o.json, "-") == 0)
        cli_out_move_to_stderr();
    if ((code = cli_json_check(o.json)))
        return code;
    cli_stop_install();
    run.steps = cJSON_CreateArray();
    code = open_run(&run);
    if (code == 0)
        code = cli_run_prefill(&run);
    if (code == 0)
        code = cli_run_generate(&run);
    if (code == 0)
        code = finish(&run);
    close_run(&run);
    return code == 0 && cli_stop_signal() ? 128 + cli_stop_signal() : code;
}
