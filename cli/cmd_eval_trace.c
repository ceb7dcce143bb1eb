/* headrace eval trace: recipes against full attention on recorded rows and queries. */
#include <errno.h>
#include <libgen.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/args.h"
#include "cli/commands.h"
#include "cli/eval_trace.h"
#include "cli/json_file.h"
#include "cli/npy.h"
#include "cli/out.h"
#include "cli/setup.h"
#include "cli/whole_file.h"

static const struct cli_command command = {
    .name = "eval trace",
    .operands = "FOLDER...",
    .about =
        "Plays recorded K and V rows and queries through the library, one recipe and budget after "
        "the\n"
        "other, and compares every output with full attention in double. The folders' format and "
        "what\n"
        "is counted stand in docs/traces.md.",
    .examples =
        "  headrace trace capture --model MODEL --file book.txt --layers 2,14,26 --tokens 8192 "
        "--out traces\n"
        "  headrace eval trace traces/* --recipes headrace,retroinfer,quest --moved 0.5%,1%,2% \\\n"
        "      --json result.json --html result.html",
};

static int parse(int argc, char **argv, struct cli_trace_options *o)
{
    const struct cli_option options[] = {
        CLI_HEADING("What to compare:"),
        CLI_OPTION("recipes", CLI_NAMES, &o->recipes, "A,B", cli_recipe_help()),
        CLI_OPTION(
            "moved", CLI_SHARES, &o->moved, "S,T",
            "budgets: what a step may refine, as shares of the body's exact bytes, or for each "
            "kv-head as bytes, such as 64KiB, or exact rows, such as 82tokens"),
        CLI_OPTION("tolerance", CLI_FRACTION, &o->tolerance, "X",
                   "stop earlier, when the predicted error is below X; 0: spend the budget"),
        CLI_RANGE("seed", CLI_COUNT, &o->seed, "S", 0, 0, "of grouping [0]"),
        CLI_OPTION("head-gates", CLI_STRING, &o->head_gates, "FILE",
                   "which heads retrieve, for recipes that split them: a line per layer of the "
                   "model, a gate from 0 to 1 per kv-head"),
        CLI_HEADING("Where the rows lie:"),
        CLI_WORD("tier", &o->tier, "TIER", "host file", "host memory, or a file"),
        CLI_OPTION("file-dir", CLI_STRING, &o->file_dir, "DIR",
                   "folder of that file; it has no name and goes with the process"),
        CLI_OPTION("host-bytes", CLI_BYTES, &o->host_bytes, "SIZE",
                   "host memory beside the file, with --tier file"),
        CLI_MACHINE_OPTIONS(o->threads, o->cpu),
        CLI_HEADING("Output:"),
        CLI_OPTION("json", CLI_STRING, &o->json, "FILE",
                   "also write the results as JSON; - is standard output, text then goes to "
                   "standard error"),
        CLI_OPTION("csv", CLI_STRING, &o->csv, "FILE", "also write them as CSV"),
        CLI_OPTION("html", CLI_STRING, &o->html, "FILE", "also write a page with pictures of them"),
        CLI_OPTION("dump", CLI_STRING, &o->dump, "DIR",
                   "also write every output, as DIR/TRACE/RECIPE_MOVED.npy"),
        CLI_SWITCH("quiet", &o->quiet, "no progress"),
    };
    return cli_args_parse(&command, options, sizeof options / sizeof options[0], argc, argv,
                          &o->folders);
}

/* The folder for outputs is made when they are there; that it can be is looked at before minutes of work. */
static int dump_check(const char *path)
{
    struct stat about;
    if (!path || (stat(path, &about) == 0 && S_ISDIR(about.st_mode) && access(path, W_OK) == 0))
        return 0;
    char *copy = strdup(path);
    bool fine =
        copy && stat(path, &about) < 0 && errno == ENOENT && access(dirname(copy), W_OK) == 0;
    int code = fine ? 0
                    : cli_fail("cannot make the folder '%s': %s", path,
                               errno ? strerror(errno) : "it is a file");
    free(copy);
    return code;
}

/* The file that a path leads to, which need not be there yet; the caller's, NULL: not to be told. */
static char *leads_to(const char *path)
{
    char *real = realpath(path, NULL), *whole = NULL;
    if (real)
        return real;
    const char *slash = strrchr(path, '/');
    char *copy = strdup(path), *folder = copy ? realpath(dirname(copy), NULL) : NULL;
    if (folder && asprintf(&whole, "%s/%s", folder, slash ? slash + 1 : path) < 0)
        whole = NULL;
    free(copy);
    free(folder);
    return whole;
}

static bool same_file(const char *a, const char *b)
{
    bool is_output = strcmp(a, "-") == 0 || strcmp(b, "-") == 0;
    char *one = leads_to(a), *other = leads_to(b);
    bool same = strcmp(a, b) == 0 || (!is_output && one && other && strcmp(one, other) == 0);
    free(one);
    free(other);
    return same;
}

/* Two outputs into one file would leave the last. */
static int same_files_check(const struct cli_trace_options *o)
{
    const char *path[] = {o->json, o->csv, o->html};
    for (size_t i = 0; i < 3; i++)
        for (size_t j = 0; j < i; j++)
            if (path[i] && path[j] && same_file(path[i], path[j]))
                return cli_usage_error(command.name,
                                       "--json, --csv and --html must differ; '%s' is named twice",
                                       path[i]);
    return 0;
}

static int check(struct cli_trace_options *o)
{
    int code = -1;
    if (o->folders.n == 0)
        return cli_usage_error(command.name, "no trace folder is named");
    for (size_t i = 0; i < o->recipes.n && code < 0; i++)
        code = cli_recipe_resolve(command.name, o->recipes.name[i], o->recipes.name[i],
                                  sizeof o->recipes.name[i]);
    for (size_t i = 0; i < o->recipes.n && code < 0; i++) {
        if (cli_trace_needs_gates(o->recipes.name[i]) && !o->head_gates)
            code = cli_usage_error(command.name, "recipe %s needs --head-gates FILE",
                                   o->recipes.name[i]);
    }
    if (code >= 0)
        return code;
    int to_stdout = (o->json && strcmp(o->json, "-") == 0) + (o->csv && strcmp(o->csv, "-") == 0) +
                    (o->html && strcmp(o->html, "-") == 0);
    if (to_stdout > 1)
        return cli_usage_error(command.name, "only one of --json, --csv and --html can be '-'");
    if ((code = same_files_check(o)) != 0)
        return code;
    if (to_stdout)
        cli_out_move_to_stderr();
    if ((code = cli_whole_file_check(o->json)) || (code = cli_whole_file_check(o->csv)) ||
        (code = cli_whole_file_check(o->html)) || (code = dump_check(o->dump)))
        return code;
    return -1;
}

/* ------------------------------------------------------------------------------------------ run */

static int plan(struct cli_trace_eval *eval)
{
    const struct cli_trace_options *o = eval->options;
    eval->n_items = o->folders.n * o->recipes.n * o->moved.n;
    eval->items = calloc(eval->n_items + 1, sizeof *eval->items);
    eval->traces = calloc(o->folders.n + 1, sizeof *eval->traces);
    if (!eval->items || !eval->traces)
        return cli_fail("out of memory");
    for (size_t i = 0; i < o->recipes.n; i++) {
        struct cli_trace_item first = {0};
        cli_trace_equalise(o->recipes.name[i], &first);
        for (size_t t = 0; t < o->folders.n; t++) {
            for (size_t j = 0; j < o->moved.n; j++) {
                struct cli_trace_item *item = cli_trace_item_at(eval, t, i, j);
                *item = first;
                item->trace = t;
                item->recipe = i;
                item->moved = j;
            }
        }
    }
    return 0;
}

static int about(struct cli_trace_about *a, const struct cli_trace *trace)
{
    const struct cli_trace_meta *m = &trace->meta;
    *a = (struct cli_trace_about){.name = strdup(trace->name),
                                  .model = strdup(m->model),
                                  .layer = m->layer,
                                  .n_q_heads = m->n_q_heads,
                                  .n_kv_heads = m->n_kv_heads,
                                  .head_dim = m->head_dim,
                                  .n_tokens = m->n_tokens,
                                  .n_seen = m->seen.n,
                                  .n_queries = m->scored.n};
    return a->name && a->model ? 0 : cli_fail("out of memory");
}

static int run_trace(struct cli_trace_eval *eval, size_t at, struct cli_progress *progress)
{
    const struct cli_trace_options *o = eval->options;
    size_t n = o->recipes.n * o->moved.n;
    struct cli_trace trace = {0};
    struct cli_trace_truth truth = {0};
    float *gates = NULL;
    int code = cli_trace_load(o->folders.text[at], &trace);
    if (code == 0)
        code = cli_trace_gates(o->head_gates, &trace, &gates);
    if (code == 0)
        code = cli_trace_truth_make(&trace, &truth);
    if (code == 0)
        code = about(&eval->traces[at], &trace);
    for (size_t i = 0; i < n && code == 0 && !cli_stop_signal(); i++) {
        struct cli_trace_item *item = &eval->items[at * n + i];
        code = cli_trace_item_run(o, &trace, &truth, gates, item);
        if (!o->dump) {
            free(item->out);
            item->out = NULL;
        }
        cli_progress_update(progress, at * n + i + 1);
    }
    free(gates);
    cli_trace_truth_fini(&truth);
    cli_trace_fini(&trace);
    return code;
}

/* All folders are looked at before minutes of work. */
static int look(const struct cli_trace_options *o)
{
    int code = 0;
    for (size_t i = 0; i < o->folders.n && code == 0; i++) {
        struct cli_trace trace = {0};
        float *gates = NULL;
        code = cli_trace_load(o->folders.text[i], &trace);
        if (code == 0)
            code = cli_trace_gates(o->head_gates, &trace, &gates);
        free(gates);
        for (size_t j = 0; j < i && code == 0; j++) {
            char *other = cli_folder_name(o->folders.text[j]);
            if (other && strcmp(other, trace.name) == 0)
                code = cli_fail("'%s' and '%s' have the same name; results go by it",
                                o->folders.text[j], o->folders.text[i]);
            free(other);
        }
        cli_trace_fini(&trace);
    }
    return code;
}

static int run(struct cli_trace_eval *eval)
{
    struct cli_progress progress;
    int code = 0;
    cli_progress_begin(&progress, "eval", "combinations", eval->n_items);
    for (size_t i = 0; i < eval->options->folders.n && code == 0 && !cli_stop_signal(); i++)
        code = run_trace(eval, i, &progress);
    if (code == 0)
        cli_progress_end(&progress, eval->n_items);
    return code;
}

/* --------------------------------------------------------------------------------------- output */

static int make_folder(const char *path)
{
    if (mkdir(path, 0777) < 0 && errno != EEXIST)
        return cli_fail("cannot make the folder '%s': %s", path, strerror(errno));
    return 0;
}

/* A '/' of a recipe becomes '_': it is a file's name. */
static int dump_item(const struct cli_trace_eval *eval, const struct cli_trace_item *item)
{
    const struct cli_trace_options *o = eval->options;
    char *path = NULL, *name;
    const char *folder = eval->traces[item->trace].name;
    struct cli_npy_want array = {
        .dtype = "<f4", .n_dims = 3, .shape = {item->n_q_heads, item->n_queries, item->head_dim}};
    if (asprintf(&path, "%s/%s", o->dump, folder) < 0)
        return cli_fail("out of memory");
    int code = make_folder(path);
    free(path);
    if (code)
        return code;
    if (asprintf(&path, "%s/%s/%s_%s.npy", o->dump, folder, o->recipes.name[item->recipe],
                 o->moved.text[item->moved]) < 0)
        return cli_fail("out of memory");
    for (name = path + strlen(o->dump) + strlen(folder) + 2; (name = strchr(name, '/'));)
        *name = '_';
    code = cli_npy_write(path, &array, item->out);
    free(path);
    return code;
}

static int dump(const struct cli_trace_eval *eval)
{
    int code = eval->options->dump ? make_folder(eval->options->dump) : 0;
    for (size_t i = 0; i < eval->n_items && code == 0 && eval->options->dump; i++) {
        if (eval->items[i].done)
            code = dump_item(eval, &eval->items[i]);
    }
    return code;
}

static int write_text(const char *path, char *text)
{
    struct cli_bytes all = {text, text ? strlen(text) : 0};
    int code = text ? cli_whole_file_write(path, &all, 1)
                    : cli_fail("cannot write '%s': out of memory", path);
    free(text);
    return code;
}

static int finish(const struct cli_trace_eval *eval)
{
    const struct cli_trace_options *o = eval->options;
    cli_trace_print(cli_out(), eval);
    cJSON *json = cli_trace_json(eval);
    int code = cli_json_write(o->json, json);
    cJSON_Delete(json);
    if (code == 0 && o->csv)
        code = write_text(o->csv, cli_trace_csv(eval));
    if (code == 0 && o->html)
        code = write_text(o->html, cli_trace_html(eval));
    if (code == 0)
        code = dump(eval);
    return code;
}

static int eval_trace(const struct cli_trace_options *o)
{
    struct cli_trace_eval eval = {.options = o};
    int code = look(o);
    if (code == 0)
        code = plan(&eval);
    if (code == 0)
        code = run(&eval);
    if (code == 0 && eval.items[0].done)
        code = finish(&eval);
    for (size_t i = 0; eval.items && i < eval.n_items; i++)
        cli_trace_item_fini(&eval.items[i]);
    for (size_t i = 0; eval.traces && i < o->folders.n; i++) {
        free(eval.traces[i].name);
        free(eval.traces[i].model);
    }
    free(eval.items);
    free(eval.traces);
    return code == 0 && cli_stop_signal() ? 128 + cli_stop_signal() : code;
}

int cli_eval_trace(int argc, char **argv)
{
    struct cli_trace_options o = {
        .recipes = {.n = 4, .name = {"headrace", "retroinfer", "quest", "exact-topk"}},
        .moved = {.n = 3, .share = {0.005, 0.01, 0.02}, .text = {"0.5%", "1%", "2%"}},
        .tier = "host",
        .file_dir = ".",
        .host_bytes = 1u << 20,
    };
    int code = parse(argc, argv, &o);
    if (code < 0)
        code = check(&o);
    if (code >= 0)
        return code;
    cli_out_set_quiet(o.quiet);
    cli_stop_install();
    return eval_trace(&o);
}
