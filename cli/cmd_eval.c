/* headrace eval: measures recipes against dense attention. */
#include <stdlib.h>
#include <string.h>

#include <headrace/parse.h>

#include "cli/args.h"
#include "cli/commands.h"
#include "cli/eval_model.h"
#include "cli/json_file.h"
#include "cli/out.h"
#include "cli/prompt.h"

/* ----------------------------------------------------------------------------------- eval model */

static const struct cli_command command = {
    .name = "eval model",
    .about = "Reads the first tokens of a text, then feeds the tokens that follow one by one and "
             "compares,\n"
             "for every recipe and budget, the next-token distribution with that of dense "
             "attention over\n"
             "the same text: negative log-likelihood, KL(dense || recipe), top-1 agreement, bytes "
             "held and\n"
             "moved. All recipes of a pass share one prefill.",
    .examples =
        "  headrace eval model --model SmolLM2-135M-Instruct.Q4_1.gguf --file book.txt \\\n"
        "      --tokens-context 7900 --tokens-scored 128 --recipes headrace,retroinfer,quest \\\n"
        "      --moved 0.5%,1%,2% --json -",
};

static int parse(int argc, char **argv, struct cli_eval_options *o)
{
    const struct cli_option options[] = {
        CLI_HEADING("Model and text:"),
        CLI_OPTION("model", CLI_STRING, &o->model, "FILE",
                   "GGUF file, or tiny: the embedded retrieval model"),
        CLI_OPTION("file", CLI_STRING, &o->file, "TEXT",
                   "file with the text, UTF-8; - is standard input; tiny makes its own without it"),
        CLI_RANGE("tokens-context", CLI_COUNT, &o->tokens_context, "N", 2, 1u << 30,
                  "tokens read before the first scored one"),
        CLI_RANGE(
            "tokens-decoded", CLI_COUNT, &o->tokens_decoded, "D", 0, 1u << 30,
            "of these, the last D come one by one: every recipe decodes them with its budget, "
            "as a text that grows"),
        CLI_RANGE("tokens-scored", CLI_COUNT, &o->tokens_scored, "M", 1, 1u << 24,
                  "tokens scored after them"),
        CLI_SWITCH("allow-longer", &o->allow_longer,
                   "go on beyond the context the model was trained for"),
        CLI_HEADING("What to compare:"),
        CLI_OPTION("recipes", CLI_NAMES, &o->recipes, "A,B", cli_recipe_help()),
        CLI_HEAD_GATES_OPTION(o->recipe),
        CLI_OPTION(
            "moved", CLI_SHARES, &o->moved, "S,T",
            "budgets: what a step may select, as shares of the body's exact bytes, or for each "
            "kv-head as bytes, such as 64KiB, or exact rows, such as 82tokens"),
        CLI_OPTION("tolerance", CLI_FRACTION, &o->recipe.tolerance, "X",
                   "stop earlier, when the predicted error is below X; 0: spend the budget"),
        CLI_SWITCH("true-error", &o->true_error,
                   "also measure the true error of every attention output (slow)"),
        CLI_WORD("dtype", &o->recipe.dtype, "TYPE", CLI_DTYPES,
                 "how exact rows are kept: f32, f16 or bf16"),
        CLI_RANGE("seed", CLI_COUNT, &o->recipe.seed, "S", 0, 0, "of grouping [0]"),
        CLI_PLACE_OPTIONS(o->place),
        CLI_OPTION("memory-bytes", CLI_BYTES, &o->memory_bytes, "SIZE",
                   "memory for the caches of one pass; what does not fit waits for the next pass"),
        CLI_HEADING("Output:"),
        CLI_OPTION(
            "json", CLI_STRING, &o->json, "FILE",
            "also write the results as JSON; - is standard output, text then goes to standard "
            "error"),
        CLI_SWITCH("quiet", &o->quiet, "no progress"),
    };
    return cli_args_parse(&command, options, sizeof options / sizeof options[0], argc, argv, NULL);
}

static int check(struct cli_eval_options *o)
{
    int code = cli_place_check(command.name, &o->place);
    if (code >= 0)
        return code;
    if (o->tokens_decoded > o->tokens_context - 2)
        return cli_usage_error(command.name,
                               "--tokens-decoded %llu: at most --tokens-context less 2, which is "
                               "%llu",
                               (unsigned long long)o->tokens_decoded,
                               (unsigned long long)o->tokens_context - 2);
    if (!o->file && strcmp(o->model, "tiny") != 0)
        return cli_usage_error(command.name, "--file is missing: there is nothing to read");
    for (size_t i = 0; i < o->recipes.n && code < 0; i++)
        code = cli_recipe_resolve(command.name, o->recipes.name[i], o->recipes.name[i],
                                  sizeof o->recipes.name[i]);
    return code;
}

/* Enough tokens in the text, and not too many for the model. */
static int check_lengths(const struct cli_eval *eval, size_t n_tokens)
{
    const struct cli_eval_options *o = eval->options;
    unsigned long long need = o->tokens_context + o->tokens_scored;
    uint32_t context = eval->model.info->context_length;
    if (n_tokens < need)
        return cli_fail(
            "'%s' has %zu tokens; --tokens-context %llu and --tokens-scored %llu need %llu",
            o->file, n_tokens, (unsigned long long)o->tokens_context,
            (unsigned long long)o->tokens_scored, need);
    if (!context || need <= context)
        return 0;
    if (!o->allow_longer)
        return cli_fail("%llu tokens are more than the %u the model was trained for; "
                        "--allow-longer goes on regardless",
                        need, context);
    cli_warn("%llu tokens are more than the %u the model was trained for", need, context);
    return 0;
}

static int read_ids(struct cli_eval *eval)
{
    const struct cli_eval_options *o = eval->options;
    int code;
    if (o->file) {
        struct hre_tokens tokens = {0};
        if ((code = cli_prompt_encode_file(&eval->model, o->file, &tokens)))
            return code;
        eval->ids = tokens.ids;
        code = check_lengths(eval, tokens.count);
    } else {
        struct cli_prompt prompt = {0};
        struct cli_prompt_options made = {.tokens_context = o->tokens_context + o->tokens_scored,
                                          .seed = o->recipe.seed};
        made.keys = o->tokens_scored >= 96 ? 48 : (o->tokens_scored + 1) / 2;
        if ((code = cli_prompt_make(&eval->model, &made, &prompt)))
            return code;
        eval->ids = prompt.ids;
        prompt.ids = NULL;
        cli_prompt_fini(&prompt);
        code = check_lengths(eval, (size_t)made.tokens_context);
    }
    eval->n_ids = (uint32_t)(o->tokens_context + o->tokens_scored);
    return code;
}

static int plan(struct cli_eval *eval)
{
    const struct cli_eval_options *o = eval->options;
    size_t at = 0;
    eval->n_items = o->recipes.n * o->moved.n;
    eval->items = calloc(eval->n_items, sizeof *eval->items);
    if (!eval->items)
        return cli_fail("out of memory");
    for (size_t i = 0; i < o->recipes.n; i++) {
        for (size_t j = 0; j < o->moved.n; j++)
            eval->items[at++] = (struct cli_eval_item){.recipe = o->recipes.name[i],
                                                       .moved = o->moved.share[j],
                                                       .moved_text = o->moved.text[j]};
    }
    eval->items_per_pass =
        cli_caches_per_pass(&eval->model, &o->place, o->recipe.dtype, eval->n_ids, o->memory_bytes);
    return 0;
}

static int run_passes(struct cli_eval *eval)
{
    size_t passes = (eval->n_items + eval->items_per_pass - 1) / eval->items_per_pass;
    int code = 0;
    for (size_t first = 0; first < eval->n_items && code == 0 && !cli_stop_signal();
         first += eval->items_per_pass) {
        size_t left = eval->n_items - first,
               n = left < eval->items_per_pass ? left : eval->items_per_pass;
        if (passes > 1)
            cli_note("pass %zu of %zu: %zu of %zu combinations (--memory-bytes)",
                     first / eval->items_per_pass + 1, passes, n, eval->n_items);
        code = cli_eval_pass(eval, first, n);
    }
    return code;
}

static int finish(const struct cli_eval *eval)
{
    FILE *file = cli_out();
    fprintf(file, "model ");
    cli_model_print(file, &eval->model);
    cli_eval_print(file, eval);
    cJSON *json = cli_eval_json(eval);
    int code = cli_json_write(eval->options->json, json);
    cJSON_Delete(json);
    return code;
}

static int eval_model(const struct cli_eval_options *o)
{
    struct cli_eval eval = {.options = o};
    int code = cli_model_open(o->model, &o->place, &eval.model);
    if (code)
        return code;
    code = read_ids(&eval);
    if (code == 0)
        code = cli_head_gates_read(o->recipe.head_gates_path, &eval.model, &eval.head_gates);
    if (code == 0)
        code = plan(&eval);
    if (code == 0)
        code = run_passes(&eval);
    if (code == 0 && eval.items[0].scored)
        code = finish(&eval);
    free(eval.items);
    free(eval.head_gates);
    free(eval.ids);
    cli_model_close(&eval.model);
    return code == 0 && cli_stop_signal() ? 128 + cli_stop_signal() : code;
}

int cli_eval_model(int argc, char **argv)
{
    struct cli_eval_options o = {
        .model = "tiny",
        .tokens_context = 4000,
        .tokens_scored = 128,
        .recipes = {.n = 4, .name = {"headrace", "retroinfer", "quest", "exact-topk"}},
        .moved = {.n = 1, .share = {0.01}, .text = {"1%"}},
        .recipe = CLI_RECIPE_DEFAULTS,
        .place = CLI_PLACE_DEFAULTS,
        .memory_bytes = (uint64_t)4 << 30,
    };
    int code = parse(argc, argv, &o);
    if (code < 0)
        code = check(&o);
    if (code >= 0)
        return code;
    cli_out_set_quiet(o.quiet);
    if (o.json && strcmp(o.json, "-") == 0)
        cli_out_move_to_stderr();
    if ((code = cli_json_check(o.json)))
        return code;
    cli_stop_install();
    return eval_model(&o);
}

/* ----------------------------------------------------------------------------------------- eval */

static const struct {
    const char *name;
    int (*main)(int argc, char **argv);
    const char *brief;
} subjects[] = {
    {"model", cli_eval_model, "recipes against dense attention on a model and a text"},
    {"tasks", cli_eval_tasks,
     "answers of recipes to questions about texts, beside dense attention's"},
    {"trace", cli_eval_trace, "recipes against full attention on recorded rows and queries"},
};
#define SUBJECTS (sizeof subjects / sizeof subjects[0])

static void print_usage(FILE *file)
{
    fprintf(file, "usage: headrace eval SUBJECT [OPTION]...\n\n");
    for (size_t i = 0; i < SUBJECTS; i++)
        fprintf(file, "  %-8s %s\n", subjects[i].name, subjects[i].brief);
    fprintf(file,
            "\n'headrace eval SUBJECT --help' has the options, their defaults and an example.\n");
}

int cli_eval(int argc, char **argv)
{
    int code = cli_subject_needed(argc, argv, print_usage);
    if (code >= 0)
        return code;
    for (size_t i = 0; i < SUBJECTS; i++) {
        if (strcmp(argv[1], subjects[i].name) == 0)
            return subjects[i].main(argc - 1, argv + 1);
    }
    return cli_usage_error("eval", "unknown subject '%s'; there are: model, tasks, trace", argv[1]);
}
