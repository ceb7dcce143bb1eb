/* headrace eval tasks: answers of recipes to questions about texts, next to dense attention's. */
#include <stdlib.h>
#include <string.h>

#include "cli/args.h"
#include "cli/commands.h"
#include "cli/eval_tasks.h"
#include "cli/json_file.h"
#include "cli/out.h"
#include "cli/whole_file.h"

static const struct cli_command command = {
    .name = "eval tasks",
    .about =
        "Makes texts that hide something, asks for it, and scores the answers of every recipe next "
        "to\n"
        "those of dense attention: RULER's tasks, passkey, key-value retrieval, several questions "
        "on "
        "one\n"
        "cache, and the embedded model's own. Definitions and scores: docs/tasks.md. All recipes "
        "of a "
        "pass\n"
        "share one prefill.",
    .examples = "  headrace eval tasks --list\n"
                "  headrace eval tasks --model SmolLM2-135M-Instruct.Q4_1.gguf --recipes "
                "headrace,quest \\\n"
                "      --moved 2% --json result.json\n"
                "  headrace eval tasks --model tiny --tokens-context 16384 --moved 1%,2%",
};

static int parse(int argc, char **argv, struct cli_tasks_options *o)
{
    const struct cli_option options[] = {
        CLI_HEADING("Model and tasks:"),
        CLI_OPTION("model", CLI_STRING, &o->model, "FILE",
                   "GGUF file, or tiny: the embedded retrieval model"),
        CLI_OPTION("tasks", CLI_NAMES, &o->tasks, "A,B",
                   "names from --list, or all: those that the model has the words for"),
        CLI_SWITCH("list", &o->list, "name the tasks, then end"),
        CLI_RANGE("tokens-context", CLI_COUNT, &o->tokens_context, "N", 8, 1u << 24,
                  "tokens of a text with its questions and answers"),
        CLI_RANGE("samples", CLI_COUNT, &o->samples, "K", 1, 1u << 20, "texts of each task"),
        CLI_RANGE("seed", CLI_COUNT, &o->seed, "S", 0, 0, "of the texts, and of grouping [0]"),
        CLI_RANGE("tokens-answer", CLI_COUNT, &o->answer_tokens, "N", 0, 4096,
                  "most tokens of an answer; 0: each task's own limit (--list) [0]"),
        CLI_WORD(
            "question", &o->question, "WAY", "decode prefill",
            "how the first question is read: decode (by the recipe, from a cache that was made "
            "without it) or prefill (exactly, with the text)"),
        CLI_OPTION("prose", CLI_STRING, &o->files.prose, "TEXT",
                   "text to hide needles in [Debian's bible-kjv, else its licences]"),
        CLI_OPTION("words", CLI_STRING, &o->files.words, "FILE",
                   "word list, one on each line [/usr/share/dict/words, else a built-in one]"),
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
        CLI_WORD("dtype", &o->recipe.dtype, "TYPE", CLI_DTYPES,
                 "how exact rows are kept: f32, f16 or bf16"),
        CLI_PLACE_OPTIONS(o->place),
        CLI_OPTION("memory-bytes", CLI_BYTES, &o->memory_bytes, "SIZE",
                   "memory for the caches of one pass; what does not fit waits for the next pass"),
        CLI_HEADING("Output:"),
        CLI_OPTION("json", CLI_STRING, &o->json, "FILE",
                   "also write results, texts' questions and all answers as JSON; - is standard "
                   "output, text then goes to standard error"),
        CLI_OPTION("csv", CLI_STRING, &o->csv, "FILE", "also write the results as CSV"),
        CLI_SWITCH("quiet", &o->quiet, "no progress"),
    };
    return cli_args_parse(&command, options, sizeof options / sizeof options[0], argc, argv, NULL);
}

/* --------------------------------------------------------------------------------------------- check */

static int unknown_task(const char *name)
{
    char nearest[64], words[600];
    snprintf(words, sizeof words, "all %s", cli_task_names());
    if (*cli_nearest(name, words, nearest, sizeof nearest))
        return cli_usage_error(
            command.name, "--tasks '%s': there is no such task; did you mean %s?", name, nearest);
    return cli_usage_error(command.name, "--tasks '%s': there is no such task; there are: %s", name,
                           words);
}

static int check_outputs(const struct cli_tasks_options *o)
{
    bool json = o->json && strcmp(o->json, "-") == 0, csv = o->csv && strcmp(o->csv, "-") == 0;
    int code;
    if (json && csv)
        return cli_usage_error(command.name, "only one of --json and --csv can be '-'");
    if (json || csv)
        cli_out_move_to_stderr();
    if ((code = cli_whole_file_check(o->json)) || (code = cli_whole_file_check(o->csv)))
        return code;
    return -1;
}

static int check(struct cli_tasks_options *o)
{
    int code = cli_place_check(command.name, &o->place);
    for (size_t i = 0; i < o->tasks.n && code < 0; i++) {
        if (strcmp(o->tasks.name[i], "all") != 0 && !cli_task_find(o->tasks.name[i]))
            code = unknown_task(o->tasks.name[i]);
    }
    for (size_t i = 0; i < o->recipes.n && code < 0; i++)
        code = cli_recipe_resolve(command.name, o->recipes.name[i], o->recipes.name[i],
                                  sizeof o->recipes.name[i]);
    return code < 0 ? check_outputs(o) : code;
}

static int list_tasks(void)
{
    const struct cli_task *task;
    printf("%-16s %6s  %s\n", "task", "answer", "what is asked for (tokens of an answer; source)");
    for (size_t i = 0; (task = cli_task_at(i)); i++)
        printf("%-16s %6u  %s (%s)\n", task->name, task->answer_tokens, task->brief, task->source);
    return cli_out_close();
}

/* ---------------------------------------------------------------------------------------------- plan */

static bool is_able(const struct cli_tasks_eval *eval, const struct cli_task *task)
{
    return cli_model_is_tiny(&eval->model) == !task->make;
}

static int add_task(struct cli_tasks_eval *eval, const struct cli_task *task)
{
    for (size_t i = 0; i < eval->n_tasks; i++) {
        if (eval->tasks[i] == task)
            return 0;
    }
    if (!is_able(eval, task))
        return cli_fail(
            task->make ? "task '%s' is a text in words, of which the embedded model knows none; "
                         "it can do mqar"
                       : "task '%s' is made of the embedded model's own tokens; it needs --model "
                         "tiny",
            task->name);
    eval->tasks[eval->n_tasks++] = task;
    return 0;
}

static int choose_tasks(struct cli_tasks_eval *eval)
{
    const struct cli_names *names = &eval->options->tasks;
    const struct cli_task *task;
    int code = 0;
    for (size_t i = 0; i < names->n && code == 0; i++) {
        if (strcmp(names->name[i], "all") != 0) {
            code = add_task(eval, cli_task_find(names->name[i]));
            continue;
        }
        for (size_t t = 0; (task = cli_task_at(t)) && code == 0; t++) {
            if (is_able(eval, task))
                code = add_task(eval, task);
        }
    }
    return code;
}

static int check_length(const struct cli_tasks_eval *eval)
{
    unsigned long long need = eval->options->tokens_context;
    uint32_t context = eval->model.info->context_length;
    if (!context || need <= context)
        return 0;
    if (!eval->options->allow_longer)
        return cli_fail("--tokens-context %llu is more than the %u the model was trained for; "
                        "--allow-longer goes on regardless",
                        need, context);
    cli_warn("--tokens-context %llu is more than the %u the model was trained for", need, context);
    return 0;
}

static int open_sources(struct cli_tasks_eval *eval)
{
    unsigned needs = CLI_NEEDS_NOTHING;
    for (size_t i = 0; i < eval->n_tasks; i++)
        needs |= eval->tasks[i]->needs;
    int code = cli_sources_open(&eval->options->files, needs, &eval->sources);
    if (code || !hre_gguf_has(hre_model_gguf(eval->model.model), "tokenizer.chat_template"))
        return code;
    hr_status_t status =
        hre_chat_template_from_gguf(hre_model_gguf(eval->model.model), &eval->chat);
    eval->has_chat = status == HR_OK;
    return eval->has_chat ? 0 : cli_fail_engine("chat", status);
}

static int plan(struct cli_tasks_eval *eval)
{
    const struct cli_tasks_options *o = eval->options;
    const struct hre_model_info *info = eval->model.info;
    size_t at = 0, heads = (size_t)info->n_layers * info->n_kv_heads;
    eval->n_items = o->recipes.n * o->moved.n;
    eval->items = calloc(eval->n_items, sizeof *eval->items);
    eval->figures = calloc(eval->n_tasks * eval->n_items, sizeof *eval->figures);
    eval->samples = cJSON_CreateArray();
    if (!eval->items || !eval->figures || !eval->samples)
        return cli_fail("out of memory");
    for (size_t i = 0; i < o->recipes.n; i++) {
        for (size_t j = 0; j < o->moved.n; j++)
            eval->items[at++] = (struct cli_tasks_item){.recipe = o->recipes.name[i],
                                                        .moved = o->moved.share[j],
                                                        .moved_text = o->moved.text[j]};
    }
    for (size_t i = 0; i < eval->n_tasks * eval->n_items; i++) {
        eval->figures[i].refined = calloc(heads, sizeof(uint64_t));
        if (!eval->figures[i].refined)
            return cli_fail("out of memory");
    }
    eval->items_per_pass = cli_caches_per_pass(&eval->model, &o->place, o->recipe.dtype,
                                               o->tokens_context, o->memory_bytes);
    return 0;
}

/* ----------------------------------------------------------------------------------------------- run */

static int run_tasks(struct cli_tasks_eval *eval)
{
    const struct cli_tasks_options *o = eval->options;
    uint64_t passes = (eval->n_items + eval->items_per_pass - 1) / eval->items_per_pass;
    int code = 0;
    cli_progress_begin(&eval->progress, "tasks", "tokens",
                       eval->n_tasks * o->samples * passes * o->tokens_context);
    /* The first sample of every task, then the second: an interrupted run has seen all of them. */
    for (uint64_t s = 0; s < o->samples && code == 0 && !cli_stop_signal(); s++) {
        for (size_t t = 0; t < eval->n_tasks && code == 0 && !cli_stop_signal(); t++) {
            eval->progress.label = eval->tasks[t]->name;
            code = cli_tasks_run_sample(eval, t, s);
        }
    }
    eval->progress.label = "tasks";
    cli_progress_end(&eval->progress, eval->tokens_done);
    return code;
}

static int finish(struct cli_tasks_eval *eval)
{
    FILE *file = cli_out();
    fprintf(file, "model ");
    cli_model_print(file, &eval->model);
    cli_tasks_print(file, eval);
    int code = cli_tasks_write_csv(eval);
    cJSON *json = cli_tasks_json(eval);
    if (code == 0)
        code = cli_json_write(eval->options->json, json);
    cJSON_Delete(json);
    return code;
}

static void close_eval(struct cli_tasks_eval *eval)
{
    for (size_t i = 0; eval->figures && i < eval->n_tasks * eval->n_items; i++)
        free(eval->figures[i].refined);
    free(eval->figures);
    free(eval->items);
    free(eval->head_gates);
    cJSON_Delete(eval->samples);
    cli_sources_close(&eval->sources);
    cli_model_close(&eval->model);
}

static int eval_tasks(const struct cli_tasks_options *o)
{
    struct cli_tasks_eval eval = {.options = o};
    int code = cli_model_open(o->model, &o->place, &eval.model);
    if (code)
        return code;
    code = choose_tasks(&eval);
    if (code == 0)
        code = check_length(&eval);
    if (code == 0)
        code = open_sources(&eval);
    if (code == 0)
        code = cli_head_gates_read(o->recipe.head_gates_path, &eval.model, &eval.head_gates);
    if (code == 0)
        code = plan(&eval);
    if (code == 0)
        code = run_tasks(&eval);
    if (code == 0)
        code = finish(&eval);
    close_eval(&eval);
    return code == 0 && cli_stop_signal() ? 128 + cli_stop_signal() : code;
}

int cli_eval_tasks(int argc, char **argv)
{
    struct cli_tasks_options o = {
        .model = "tiny",
        .tasks = {.n = 1, .name = {"all"}},
        .recipes = {.n = 1, .name = {"headrace"}},
        .moved = {.n = 1, .share = {0.02}, .text = {"2%"}},
        .tokens_context = 4096,
        .samples = 1,
        .question = "decode",
        .recipe = CLI_RECIPE_DEFAULTS,
        .place = CLI_PLACE_DEFAULTS,
        .memory_bytes = (uint64_t)4 << 30,
    };
    int code = parse(argc, argv, &o);
    if (code < 0 && o.list)
        return list_tasks();
    cli_out_set_quiet(o.quiet);
    if (code < 0)
        code = check(&o);
    if (code >= 0)
        return code;
    o.recipe.seed = o.seed;
    cli_stop_install();
    return eval_tasks(&o);
}
