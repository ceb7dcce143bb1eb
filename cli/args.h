/* Options of the subcommands: one table says what getopt_long accepts, what --help prints and
 * how a value is checked. */
#ifndef CLI_ARGS_H
#define CLI_ARGS_H

#include <stdio.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CLI_OPTIONS_MAX  48
#define CLI_OPERANDS_MAX 64

enum cli_exit { CLI_EXIT_OK = 0, CLI_EXIT_FAILED = 1, CLI_EXIT_USAGE = 2 };

/* The type behind `value` stands at each kind. */
enum cli_kind {
    CLI_FLAG,     /* bool */
    CLI_STRING,   /* const char *, not empty */
    CLI_BYTES,    /* uint64_t: 8388608, 8MB, 8MiB */
    CLI_SHARE,    /* double: more than 0, at most 1; "1%" or "0.01" */
    CLI_FRACTION, /* double: 0 to 1 */
    CLI_COUNT,    /* uint64_t between min and max */
    CLI_REAL,     /* double between min and max */
    CLI_BUDGET,   /* double, see cli_budget_parse */
    CLI_SHARES,   /* struct cli_shares: comma-separated CLI_BUDGETs */
    CLI_NAMES,    /* struct cli_names: comma-separated recipes, such as quest:page=32,sink=4,full */
    CLI_CHOICE,   /* const char *, one of the words in `choices` */
};

#define CLI_LIST_MAX 32
struct cli_shares {
    size_t n;
    double share[CLI_LIST_MAX];  /* a budget: see cli_budget_parse */
    char text[CLI_LIST_MAX][16]; /* as given */
};
struct cli_names {
    size_t n;
    char name[CLI_LIST_MAX][256];
};

struct cli_option {
    const char *name; /* without the dashes; NULL: the text is a heading of the help */
    enum cli_kind kind;
    void *value;         /* holds the default on entry */
    const char *metavar; /* NULL for flags */
    const char *text;    /* of the help; wrapped */
    double min, max;     /* CLI_COUNT, CLI_REAL; max 0: no limit */
    const char *choices; /* CLI_CHOICE: words separated by spaces */
    bool *given;         /* NULL or set to true when the option is there */
};

/* Rows of an option table. */
#define CLI_HEADING(text_)                                                                         \
    {                                                                                              \
        .text = (text_)                                                                            \
    }
#define CLI_SWITCH(name_, value_, text_)                                                           \
    {                                                                                              \
        .name = (name_), .kind = CLI_FLAG, .value = (value_), .text = (text_)                      \
    }
#define CLI_OPTION(name_, kind_, value_, metavar_, text_)                                          \
    {                                                                                              \
        .name = (name_), .kind = (kind_), .value = (value_), .metavar = (metavar_),                \
        .text = (text_)                                                                            \
    }
#define CLI_RANGE(name_, kind_, value_, metavar_, min_, max_, text_)                               \
    {                                                                                              \
        .name = (name_), .kind = (kind_), .value = (value_), .metavar = (metavar_),                \
        .text = (text_), .min = (min_), .max = (max_)                                              \
    }
#define CLI_WORD(name_, value_, metavar_, choices_, text_)                                         \
    {                                                                                              \
        .name = (name_), .kind = CLI_CHOICE, .value = (value_), .metavar = (metavar_),             \
        .text = (text_), .choices = (choices_)                                                     \
    }

struct cli_command {
    const char *name;     /* "run", "eval model" */
    const char *brief;    /* one line for the list of commands */
    const char *operands; /* NULL: takes none; else as shown in the usage line */
    const char *about;    /* the paragraph under the usage line */
    const char *examples;
};

struct cli_operands {
    size_t n;
    const char *text[CLI_OPERANDS_MAX];
};

/* argv[0] is the command's own word. Returns -1 to go on, else the exit code (0 after --help). */
int cli_args_parse(const struct cli_command *command, const struct cli_option *options,
                   size_t n_options, int argc, char **argv, struct cli_operands *operands_out);

/* For commands with subjects: without one, or with --help in its place, the usage is printed. Returns -1 to go on, else the exit code. */
int cli_subject_needed(int argc, char **argv, void (*print_usage)(FILE *file));

/* "headrace NAME: message" on standard error, and the exit code of a wrong command line. */
int cli_usage_error(const char *command, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* The word of the list (separated by spaces) that is nearest to text, copied to nearest, or ""
 * if none is near. */
const char *cli_nearest(const char *text, const char *words, char *nearest, size_t nearest_bytes);

/* What a step may move: "1%" or "0.01" of the body is itself, "64KiB" of each kv-head is the number of bytes, above 1, and "82tokens" as many
 * below 0. False: it is none of them. */
bool cli_budget_parse(const char *text, double *budget_out);

#endif
