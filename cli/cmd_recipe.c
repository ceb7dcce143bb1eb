/* headrace recipe: which recipes there are, and what each takes. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <headrace/headrace.h>

#include "cli/args.h"
#include "cli/commands.h"
#include "cli/json_file.h"
#include "cli/out.h"

/* ------------------------------------------------------------------------------------------ list */

static const struct cli_command list_command = {
    .name = "recipe list",
    .about =
        "Lists the recipes of this build: how a step chooses what to read, and who published it.",
    .examples = "  headrace recipe list\n  headrace recipe list --json -",
};

static cJSON *recipe_json(size_t index)
{
    struct hr_recipe_info info;
    cJSON *object = cJSON_CreateObject();
    if (hr_recipe_describe(index, &info) != HR_OK)
        return object;
    cJSON_AddStringToObject(object, "name", info.name);
    cJSON_AddStringToObject(object, "summary", info.summary);
    cJSON_AddStringToObject(object, "source", info.source);
    cJSON_AddBoolToObject(object, "needs_gates", info.needs_gates != 0);
    cJSON_AddBoolToObject(object, "takes_argument", info.takes_argument != 0);
    cJSON_AddBoolToObject(object, "drafts", info.drafts != 0);
    cJSON *params = cJSON_AddArrayToObject(object, "parameters");
    for (uint32_t i = 0; i < info.n_params; i++) {
        struct hr_recipe_param p;
        if (hr_recipe_param(index, i, &p) != HR_OK)
            continue;
        cJSON *item = cJSON_CreateObject();
        cJSON_AddStringToObject(item, "name", p.name);
        cJSON_AddStringToObject(item, "meaning", p.meaning);
        cli_json_real(item, "default", p.value_default);
        cli_json_real(item, "min", p.min);
        cli_json_real(item, "max", p.max);
        cJSON_AddBoolToObject(item, "whole", p.whole != 0);
        cJSON_AddStringToObject(item, "source", p.source);
        cJSON_AddItemToArray(params, item);
    }
    return object;
}

static int write_json(const char *path, cJSON *json)
{
    int code = cli_json_write(path, json);
    cJSON_Delete(json);
    return code;
}

static int begin_output(const char *json)
{
    if (json && strcmp(json, "-") == 0)
        cli_out_move_to_stderr();
    return cli_json_check(json);
}

static void print_wrapped(FILE *file, int indent, const char *text)
{
    int room = 100 - indent, column = 0;
    while (*text) {
        int n = (int)strcspn(text, " ");
        if (column > 0 && column + 1 + n > room) {
            fprintf(file, "\n%*s", indent, "");
            column = 0;
        }
        column += fprintf(file, "%s%.*s", column ? " " : "", n, text);
        text += n + (text[n] == ' ');
    }
    fputc('\n', file);
}

static int recipe_list(int argc, char **argv)
{
    const char *json = NULL;
    const struct cli_option options[] = {
        CLI_OPTION("json", CLI_STRING, &json, "FILE",
                   "also write them as JSON, with their parameters; - is standard output"),
    };
    int code = cli_args_parse(&list_command, options, 1, argc, argv, NULL);
    if (code >= 0 || (code = begin_output(json)) != 0)
        return code;
    cJSON *array = cJSON_CreateArray();
    struct hr_recipe_info info;
    for (size_t i = 0; hr_recipe_name(i); i++) {
        if (hr_recipe_describe(i, &info) != HR_OK)
            continue;
        fprintf(cli_out(), "%-19s ", info.name);
        print_wrapped(cli_out(), 20, info.summary);
        fprintf(cli_out(), "%-19s %s\n", "", info.source);
        cJSON_AddItemToArray(array, recipe_json(i));
    }
    cJSON *all = cJSON_CreateObject();
    cJSON_AddItemToObject(all, "recipes", array);
    return write_json(json, all);
}

/* ------------------------------------------------------------------------------------------ show */

static const struct cli_command show_command = {
    .name = "recipe show",
    .operands = "NAME",
    .about =
        "Shows a recipe's parameters: what each means, its default, its range and its source.\n"
        "Set them as in --recipe quest:page=32,sink=4, or in a file of lines 'key = value'\n"
        "with a line 'recipe = quest', given as --recipe @FILE.",
    .examples = "  headrace recipe show quest",
};

static int find_recipe(const char *name, size_t *index_out)
{
    char words[2048] = "", nearest[64];
    for (size_t i = 0; hr_recipe_name(i); i++) {
        if (strcmp(hr_recipe_name(i), name) == 0) {
            *index_out = i;
            return -1;
        }
        snprintf(words + strlen(words), sizeof words - strlen(words), "%s%s", i ? " " : "",
                 hr_recipe_name(i));
    }
    if (*cli_nearest(name, words, nearest, sizeof nearest))
        return cli_usage_error(show_command.name, "recipe '%s' is not known; the nearest is '%s'",
                               name, nearest);
    return cli_usage_error(show_command.name, "recipe '%s' is not known; there are: %s", name,
                           words);
}

static void print_recipe(FILE *file, size_t index)
{
    struct hr_recipe_info info;
    if (hr_recipe_describe(index, &info) != HR_OK)
        return;
    fprintf(file, "%s: ", info.name);
    print_wrapped(file, 2, info.summary);
    fprintf(file, "  source: %s\n", info.source);
    if (info.needs_gates)
        fprintf(file, "  needs a table of head gates: --head-gates FILE\n");
    if (info.takes_argument)
        fprintf(file, "  takes an argument: %s:ARGUMENT\n", info.name);
    fprintf(file, "\n  %-15s %10s  %-20s meaning\n", "parameter", "default", "range");
    for (uint32_t i = 0; i < info.n_params; i++) {
        struct hr_recipe_param p;
        char range[48];
        if (hr_recipe_param(index, i, &p) != HR_OK)
            continue;
        snprintf(range, sizeof range, "%.10g to %.10g", p.min, p.max);
        fprintf(file, "  %-15s %10.6g  %-20s ", p.name, p.value_default, range);
        print_wrapped(file, 51, p.meaning);
        fprintf(file, "%51s(%s)\n", "", p.source);
    }
}

static int recipe_show(int argc, char **argv)
{
    const char *json = NULL;
    struct cli_operands operands = {0};
    size_t index = 0;
    const struct cli_option options[] = {
        CLI_OPTION("json", CLI_STRING, &json, "FILE",
                   "also write it as JSON; - is standard output, text then goes to standard error"),
    };
    int code = cli_args_parse(&show_command, options, 1, argc, argv, &operands);
    if (code >= 0)
        return code;
    if (operands.n != 1)
        return cli_usage_error(show_command.name, "it takes the name of one recipe, not %zu",
                               operands.n);
    if ((code = find_recipe(operands.text[0], &index)) >= 0)
        return code;
    if ((code = begin_output(json)) != 0)
        return code;
    print_recipe(cli_out(), index);
    return write_json(json, recipe_json(index));
}

/* ---------------------------------------------------------------------------------------- recipe */

static void print_usage(FILE *file)
{
    fprintf(file, "usage: headrace recipe SUBJECT [OPTION]...\n\n"
                  "  list     the recipes there are\n"
                  "  show     one recipe's parameters, their meanings, defaults and sources\n\n"
                  "'headrace recipe SUBJECT --help' has the options and an example.\n");
}

int cli_recipe(int argc, char **argv)
{
    int code = cli_subject_needed(argc, argv, print_usage);
    if (code >= 0)
        return code;
    if (strcmp(argv[1], "list") == 0)
        return recipe_list(argc - 1, argv + 1);
    if (strcmp(argv[1], "show") == 0)
        return recipe_show(argc - 1, argv + 1);
    return cli_usage_error("recipe", "unknown subject '%s'; there are: list, show", argv[1]);
}
