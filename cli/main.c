/* headrace: runs, measures and explains the library from the command line. */
#include <stdio.h>
#include <string.h>

#include <headrace/headrace.h>

#include "cli/args.h"
#include "cli/commands.h"
#include "cli/out.h"

#ifndef HR_HAVE_BENCH
#define HR_HAVE_BENCH 0 /* built without bench/ */
#endif

static const struct {
    const char *name;
    int (*main)(int argc, char **argv);
    const char *brief;
} commands[] = {
    {"run", cli_run,
     "read a text with a model whose KV cache is spread over tiers, answer, and report"},
    {"eval", cli_eval, "compare recipes with dense attention on a model and a text"},
    {"trace", cli_trace, "record the rows and queries of a model's layers"},
#if HR_HAVE_BENCH
    {"bench", cli_bench, "measure the hot paths beside the machine's limits and their peers"},
#endif
    {"plan", cli_plan, "what a cache asks of a machine, and how fast a step can be"},
    {"recipe", cli_recipe, "list the recipes there are and show their parameters"},
    {"session", cli_session, "list, describe, verify and remove saved sessions"},
    {"info", cli_info, "what this build and this machine can do"},
};
#define COMMANDS (sizeof commands / sizeof commands[0])

static void print_usage(FILE *file)
{
    fprintf(file,
            "usage: headrace COMMAND [OPTION]...\n\n"
            "Attention over a KV cache that is many times larger than the memory it may use.\n\n");
    for (size_t i = 0; i < COMMANDS; i++)
        fprintf(file, "  %-8s %s\n", commands[i].name, commands[i].brief);
    fprintf(file, "\n'headrace COMMAND --help' has the options, their defaults and an example. "
                  "'headrace --version' tells the version.\n");
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        print_usage(stderr);
        return CLI_EXIT_USAGE;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 ||
        strcmp(argv[1], "help") == 0) {
        print_usage(stdout);
        return cli_out_close();
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("headrace %s\n", hr_version());
        return cli_out_close();
    }
    char words[256] = "", nearest[32];
    for (size_t i = 0; i < COMMANDS; i++) {
        if (strcmp(argv[1], commands[i].name) == 0) {
            int code = commands[i].main(argc - 1, argv + 1);
            int closed = cli_out_close();
            return code ? code : closed;
        }
        snprintf(words + strlen(words), sizeof words - strlen(words), "%s%s", i ? " " : "",
                 commands[i].name);
    }
    if (*cli_nearest(argv[1], words, nearest, sizeof nearest))
        return cli_usage_error("", "unknown command '%s'; the nearest is '%s'", argv[1], nearest);
    return cli_usage_error("", "unknown command '%s'; there are: %s", argv[1], words);
}
