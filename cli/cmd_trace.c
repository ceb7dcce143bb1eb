/* headrace trace: recordings of a model's attention. */
#include <string.h>

#include "cli/args.h"
#include "cli/commands.h"
#include "cli/out.h"
#include "cli/setup.h"
#include "cli/trace_capture.h"

static const struct cli_command command = {
    .name = "trace capture",
    .about = "Lets a model read a text and records K and V of some layers, and queries at the "
             "text's end:\n"
             "first some that a method may learn from, then some to be scored. Every layer becomes "
             "a\n"
             "folder OUT/TEXT_lLAYER (docs/traces.md).",
    .examples =
        "  headrace trace capture --model SmolLM2-135M-Instruct.Q4_1.gguf --file book.txt \\\n"
        "      --layers 2,14,26 --tokens 8192 --out traces",
};

static int parse(int argc, char **argv, struct cli_capture_options *o)
{
    const struct cli_option options[] = {
        CLI_HEADING("Model and text:"),
        CLI_OPTION("model", CLI_STRING, &o->model, "FILE",
                   "GGUF file, or tiny: the embedded retrieval model"),
        CLI_OPTION("file", CLI_STRING, &o->file, "TEXT",
                   "file with the text, UTF-8; - is standard input; tiny makes its own without it"),
        CLI_OPTION("layers", CLI_STRING, &o->layers, "A,B", "layers to record, from 0"),
        CLI_RANGE("tokens", CLI_COUNT, &o->tokens, "N", 2, 1u << 30, "first tokens of the text"),
        CLI_RANGE("queries", CLI_COUNT, &o->queries, "N", 1, 1u << 20,
                  "queries to be scored, the last of the text"),
        CLI_RANGE("stride", CLI_COUNT, &o->stride, "N", 1, 1u << 20,
                  "tokens from one of them to the next"),
        CLI_RANGE("seen", CLI_COUNT, &o->seen, "N", 0, 1u << 20,
                  "queries before them that a method may learn from"),
        CLI_RANGE("seed", CLI_COUNT, &o->seed, "S", 0, 0, "of a made text [0]"),
        CLI_SWITCH("allow-longer", &o->allow_longer,
                   "go on beyond the context the model was trained for"),
        CLI_MACHINE_OPTIONS(o->place.threads, o->place.cpu),
        CLI_HEADING("Output:"),
        CLI_OPTION("out", CLI_STRING, &o->out, "DIR", "folder for the folders; made if missing"),
        CLI_SWITCH("quiet", &o->quiet, "no progress"),
    };
    return cli_args_parse(&command, options, sizeof options / sizeof options[0], argc, argv, NULL);
}

static int capture(int argc, char **argv)
{
    struct cli_capture_options o = {.model = "tiny",
                                    .tokens = 8192,
                                    .queries = 64,
                                    .stride = 2,
                                    .seen = 128,
                                    .place = CLI_PLACE_DEFAULTS};
    int code = parse(argc, argv, &o);
    if (code >= 0)
        return code;
    if (!o.layers)
        return cli_usage_error(command.name, "--layers is missing; say for example 2,14,26");
    if (!o.out)
        return cli_usage_error(command.name, "--out is missing: the folder for the traces");
    if (!o.file && strcmp(o.model, "tiny") != 0)
        return cli_usage_error(command.name, "--file is missing: there is nothing to read");
    cli_out_set_quiet(o.quiet);
    cli_stop_install();
    return cli_trace_capture(&o);
}

/* ----------------------------------------------------------------------------------------- trace */

static const struct {
    const char *name;
    int (*main)(int argc, char **argv);
    const char *brief;
} subjects[] = {
    {"capture", capture, "record rows and queries of a model's layers while it reads a text"},
};
#define SUBJECTS (sizeof subjects / sizeof subjects[0])

static void print_usage(FILE *file)
{
    fprintf(file, "usage: headrace trace SUBJECT [OPTION]...\n\n");
    for (size_t i = 0; i < SUBJECTS; i++)
        fprintf(file, "  %-8s %s\n", subjects[i].name, subjects[i].brief);
    fprintf(file, "\n'headrace trace SUBJECT --help' has the options, their defaults and an "
                  "example; 'headrace eval trace' plays\nrecordings.\n");
}

int cli_trace(int argc, char **argv)
{
    int code = cli_subject_needed(argc, argv, print_usage);
    if (code >= 0)
        return code;
    for (size_t i = 0; i < SUBJECTS; i++) {
        if (strcmp(argv[1], subjects[i].name) == 0)
            return subjects[i].main(argc - 1, argv + 1);
    }
    return cli_usage_error("trace", "unknown subject '%s'; there is: capture", argv[1]);
}
