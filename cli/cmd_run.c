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
        "Reads a text with a model whose KV cache lies in three tiers, writes what comes next, and reports what moved,\n"
        "what was estimated and how far that is from dense attention.\n\n"
        "The text is --file, --prompt, or both: then the file is the context and the prompt the question after it. The\n"
        "model 'tiny' with neither of them makes a text that hides keys and values, asks for them and counts the answers.",
    .examples =
        "  headrace run --model SmolLM2-135M-Instruct.Q4_1.gguf --file book.txt --tokens-context 7500 --chat \\\n"
        "      --prompt 'What is this about?' --device-bytes 24MiB --host-bytes 64MiB --file-dir /var/tmp --file-bytes 1GiB\n"
        "  headrace run --model tiny --tokens-context 16384 --moved 2% --check-dense",
};

static int parse(int argc, char **argv, struct cli_run_options *o)
{
    const struct cli_option options[] = {
        {.text = "Model and text:"},
        {.name = "model", .kind = CLI_STRING, .value = &o->model, .metavar = "FILE",
         .text = "GGUF file, or tiny: the embedded retrieval model"},
        {.name = "file", .kind = CLI_STRING, .value = &o->prompt.file, .metavar = "TEXT",
         .text = "file with the text to read, UTF-8; - is standard input"},
        {.name = "prompt", .kind = CLI_STRING, .value = &o->prompt.question, .metavar = "TEXT",
         .text = "the text itself, or the question that follows --file"},
        {.name = "chat", .kind = CLI_FLAG, .value = &o->prompt.chat, .text = "as one turn of a chat, in the model's format"},
        {.name = "tokens-context", .kind = CLI_COUNT, .value = &o->prompt.tokens_context, .metavar = "N", .min = 1, .max = 1u << 30,
         .text = "use the first N tokens of --file [all]; length of tiny's own text [4096]"},
        {.name = "keys", .kind = CLI_COUNT, .value = &o->prompt.keys, .metavar = "N", .min = 1, .max = 64,
         .text = "keys in tiny's own text"},
        {.name = "allow-longer", .kind = CLI_FLAG, .value = &o->allow_longer,
         .text = "go on beyond the context the model was trained for"},
        {.text = "What to write:"},
        {.name = "tokens", .kind = CLI_COUNT, .value = &o->tokens, .metavar = "N", .min = 1, .max = 1u << 24,
         .text = "at most N tokens"},
        {.name = "temperature", .kind = CLI_REAL, .value = &o->temperature, .metavar = "T", .min = 0, .max = 100,
         .text = "0: always the likeliest token"},
        {.name = "top-p", .kind = CLI_REAL, .value = &o->top_p, .metavar = "P", .min = 0, .max = 1,
         .text = "choose among the likeliest tokens that together have this probability"},
        {.name = "seed", .kind = CLI_COUNT, .value = &o->recipe.seed, .metavar = "S",
         .text = "of the sampling, of tiny's own text, of grouping [0]"},
        {.text = "How to attend:"},
        {.name = "recipe", .kind = CLI_STRING, .value = &o->recipe.name, .metavar = "NAME",
         .text = "full, window, exact-topk, quest, retroinfer, headrace; with parameters as in quest:page=32"},
        {.name = "moved", .kind = CLI_SHARE, .value = &o->recipe.moved, .metavar = "SHARE",
         .text = "bytes a step may select, as a share of the body's exact bytes"},
        {.name = "tolerance", .kind = CLI_FRACTION, .value = &o->recipe.tolerance, .metavar = "X",
         .text = "stop earlier, when the predicted error of the output is below X; 0: spend --moved"},
        {.name = "dtype", .kind = CLI_CHOICE, .value = &o->recipe.dtype, .metavar = "TYPE", .choices = CLI_DTYPES,
         .text = "how exact rows are kept: f32, f16 or bf16"},
        {.name = "check-dense", .kind = CLI_FLAG, .value = &o->check_dense,
         .text = "also attend densely: true error, KL and top-1 agreement (slow, and the cache a second time)"},
        CLI_PLACE_OPTIONS(o->place),
        {.text = "Output:"},
        {.name = "json", .kind = CLI_STRING, .value = &o->json, .metavar = "FILE",
         .text = "also write the report as JSON; - is standard output, text then goes to standard error"},
        {.name = "quiet", .kind = CLI_FLAG, .value = &o->quiet, .text = "no progress and no report, only the text"},
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
        return cli_usage_error(command.name, "--file or --prompt is missing: there is nothing to read");
    if (o->top_p <= 0)
        return cli_usage_error(command.name, "--top-p '%g' is not a number of more than 0 and at most 1", o->top_p);
    if (o->prompt.chat && !has_text)
        return cli_usage_error(command.name, "--chat needs --file or --prompt");
    return cli_recipe_check(command.name, o->recipe.name);
}

static int open_session(struct cli_run *run)
{
    const struct cli_run_options *o = run->options;
    struct hre_session_options options;
    size_t vocab = run->model.info->vocab;
    int code = cli_cache_open(&run->model, &o->place, &o->recipe, run->tokens_max, &run->cache);
    if (code == 0 && o->check_dense)
        code = cli_cache_open_dense(&run->model, &o->place, o->recipe.dtype, run->tokens_max, &run->dense_cache);
    if (code)
        return code;
    hr_sequence_t *sequences[2] = {run->cache.sequence, run->dense_cache.sequence};
    hre_session_options_init(&options);
    options.sequences = sequences;
    options.n_sequences = o->check_dense ? 2 : 1;
    options.tokens_max = run->tokens_max;
    run->logits = malloc(vocab * sizeof *run->logits);
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
