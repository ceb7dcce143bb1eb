#include "cli/args.h"

#include <ctype.h>
#include <getopt.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <headrace/headrace.h>
#include <headrace/parse.h>

#include "cli/out.h"

#define HELP_COLUMN 26
#define HELP_WIDTH  96
#define HELP_SPACE  '\x1f' /* a space that ends no line */
#define WORD_MAX    64

int cli_usage_error(const char *command, const char *format, ...)
{
    va_list list;
    cli_out_end_progress();
    fprintf(stderr, "headrace%s%s: ", *command ? " " : "", command);
    va_start(list, format);
    vfprintf(stderr, format, list);
    va_end(list);
    fprintf(stderr, "\n");
    return CLI_EXIT_USAGE;
}

/* --------------------------------------------------------------------------------- nearest word */

static size_t edit_distance(const char *a, const char *b)
{
    size_t n = strlen(b);
    if (strlen(a) >= WORD_MAX || n >= WORD_MAX)
        return WORD_MAX;
    size_t row[WORD_MAX + 1];
    for (size_t j = 0; j <= n; j++)
        row[j] = j;
    for (size_t i = 1; a[i - 1]; i++) {
        size_t corner = row[0];
        row[0] = i;
        for (size_t j = 1; j <= n; j++) {
            size_t best = corner + (a[i - 1] != b[j - 1]);
            corner = row[j];
            if (row[j] + 1 < best)
                best = row[j] + 1;
            if (row[j - 1] + 1 < best)
                best = row[j - 1] + 1;
            row[j] = best;
        }
    }
    return row[n];
}

const char *cli_nearest(const char *text, const char *words, char *nearest, size_t nearest_bytes)
{
    size_t best = strlen(text) / 2 + 1; /* farther than that is no help */
    nearest[0] = '\0';
    while (*words) {
        char word[WORD_MAX];
        size_t n = strcspn(words, " ");
        snprintf(word, sizeof word, "%.*s", (int)n, words);
        bool begins = *text && strncmp(text, word, strlen(text)) == 0;
        size_t distance = begins ? 1 : edit_distance(text, word);
        if (distance < best) {
            best = distance;
            snprintf(nearest, nearest_bytes, "%s", word);
        }
        words += n + (words[n] == ' ');
    }
    return nearest;
}

static int unknown_option(const struct cli_command *command, const struct cli_option *options,
                          size_t n_options, const char *text)
{
    char words[2048] = "help", nearest[WORD_MAX], name[WORD_MAX];
    size_t at = strlen(words);
    for (size_t i = 0; i < n_options; i++) {
        if (options[i].name)
            at += (size_t)snprintf(words + at, sizeof words - at, " %s", options[i].name);
    }
    size_t dashes = strspn(text, "-");
    snprintf(name, sizeof name, "%.*s", (int)strcspn(text + dashes, "="), text + dashes);
    if (*cli_nearest(name, words, nearest, sizeof nearest))
        return cli_usage_error(command->name, "unknown option '%s'; the nearest is --%s", text,
                               nearest);
    return cli_usage_error(command->name, "unknown option '%s'; --help lists what there is", text);
}

/* --------------------------------------------------------------------------------------- values */

static bool parse_share(const char *text, double *share_out)
{
    double share;
    if (hr_parse_fraction(text, &share) != HR_OK || !(share > 0))
        return false;
    *share_out = share;
    return true;
}

bool cli_budget_parse(const char *text, double *budget_out)
{
    static const char tokens[] = "tokens";
    char number[32];
    uint64_t n = 0;
    size_t digits = strspn(text, "0123456789");
    const char *unit = text + digits + strspn(text + digits, " ");
    if (strcmp(unit, tokens) == 0 || strcmp(unit, "token") == 0) {
        snprintf(number, sizeof number, "%.*s", (int)digits, text);
        if (hr_parse_count(number, 1, HR_TOKENS_MAX, &n) != HR_OK)
            return false;
        *budget_out = -(double)n;
        return true;
    }
    if (parse_share(text, budget_out))
        return true;
    bool is_size = strpbrk(text, "bBkKmMgG") != NULL; /* a number alone could be anything */
    if (!is_size || hr_parse_bytes(text, &n) != HR_OK || n < 2 || n > UINT64_C(1) << 50)
        return false;
    *budget_out = (double)n;
    return true;
}

static int bad_value(const char *command, const struct cli_option *o, const char *text,
                     const char *what)
{
    return cli_usage_error(command, "--%s '%s' is not %s", o->name, text, what);
}

static const char budget_text[] =
    "a share of more than 0 and at most 100%, such as 1% or 0.01, nor a "
    "size with its unit, such as 64KiB, nor tokens, such as 82tokens";
static const char share_text[] = "a share of more than 0 and at most 100%, such as 1% or 0.01";

static int parse_number(const char *command, const struct cli_option *o, const char *text)
{
    double value = 0;
    bool ok;
    if (o->kind == CLI_COUNT) {
        uint64_t count = 0;
        uint64_t max = o->max > 0 ? (uint64_t)o->max : UINT64_MAX;
        ok = hr_parse_count(text, (uint64_t)o->min, max, &count) == HR_OK;
        if (ok)
            *(uint64_t *)o->value = count;
    } else {
        ok = hr_parse_real(text, &value) == HR_OK && value >= o->min &&
             (o->max <= 0 || value <= o->max);
        if (ok)
            *(double *)o->value = value;
    }
    if (ok)
        return -1;
    char what[128];
    const char *kind = o->kind == CLI_COUNT ? "a whole number" : "a number";
    if (o->max > 0)
        snprintf(what, sizeof what, "%s from %.15g to %.15g", kind, o->min, o->max);
    else
        snprintf(what, sizeof what, "%s of at least %.15g", kind, o->min);
    return bad_value(command, o, text, what);
}

static int parse_shares(const char *command, const struct cli_option *o, const char *text)
{
    struct cli_shares *shares = o->value;
    const char *rest = text;
    shares->n = 0;
    do {
        char word[16];
        size_t n = strcspn(rest, ",");
        if (shares->n == CLI_LIST_MAX)
            return cli_usage_error(command, "--%s '%s' has more than %d shares", o->name, text,
                                   CLI_LIST_MAX);
        snprintf(word, sizeof word, "%.*s", (int)n, rest);
        if (n >= sizeof word || !cli_budget_parse(word, &shares->share[shares->n]))
            return cli_usage_error(command, "--%s '%s': '%.*s' is not %s", o->name, text, (int)n,
                                   rest, budget_text);
        for (size_t i = 0; i < shares->n; i++)
            if (shares->share[i] == shares->share[shares->n])
                return cli_usage_error(command, "--%s '%s': '%s' is there twice", o->name, text,
                                       word);
        memcpy(shares->text[shares->n++], word, sizeof word);
        rest += n;
    } while (*rest++ == ',');
    return -1;
}

/* "faiss:IVF256,Flat,quest": commas belong to the argument of a recipe that takes one, until a recipe's name comes. */
static bool goes_on_argument(const char *before, const char *piece, size_t n)
{
    struct hr_recipe_info info;
    size_t n_name = strcspn(before, ":"), n_piece = strcspn(piece, ":,");
    bool takes = false;
    n_piece = n_piece < n ? n_piece : n;
    for (size_t i = 0; hr_recipe_name(i); i++) {
        const char *name = hr_recipe_name(i);
        if (strlen(name) == n_piece && strncmp(name, piece, n_piece) == 0)
            return false;
        if (strlen(name) == n_name && strncmp(name, before, n_name) == 0)
            takes = hr_recipe_describe(i, &info) == HR_OK && info.takes_argument;
    }
    return takes && before[n_name] == ':' && !strchr(before, ';') && piece[0] != '@';
}

/* Results go by these names. */
static int names_differ(const char *command, const struct cli_option *o, const char *text)
{
    const struct cli_names *names = o->value;
    for (size_t i = 0; i < names->n; i++)
        for (size_t j = 0; j < i; j++)
            if (strcmp(names->name[i], names->name[j]) == 0)
                return cli_usage_error(command, "--%s '%s': '%s' is there twice", o->name, text,
                                       names->name[i]);
    return -1;
}

/* "quest:page=32,sink=4,full": a piece with a '=' but no ':' goes on with the recipe before it. */
static int parse_names(const char *command, const struct cli_option *o, const char *text)
{
    struct cli_names *names = o->value;
    const char *rest = text;
    names->n = 0;
    do {
        size_t n = strcspn(rest, ",");
        const char *equal = memchr(rest, '=', n), *colon = memchr(rest, ':', n);
        if (n == 0)
            return cli_usage_error(command, "--%s '%s' has an empty name", o->name, text);
        const char *before = names->n > 0 ? names->name[names->n - 1] : "";
        bool goes_on = (equal && (!colon || colon > equal) && strchr(before, ':')) ||
                       goes_on_argument(before, rest, n);
        if (!goes_on && names->n == CLI_LIST_MAX)
            return cli_usage_error(command, "--%s '%s' has more than %d names", o->name, text,
                                   CLI_LIST_MAX);
        char *name = goes_on ? names->name[names->n - 1] : names->name[names->n];
        size_t at = goes_on ? strlen(name) : 0;
        int length = snprintf(name + at, sizeof names->name[0] - at, "%s%.*s", goes_on ? "," : "",
                              (int)n, rest);
        if ((size_t)length >= sizeof names->name[0] - at)
            return cli_usage_error(command, "--%s '%s': a name is longer than %zu characters",
                                   o->name, text, sizeof names->name[0] - 1);
        names->n += !goes_on;
        rest += n;
    } while (*rest++ == ',');
    return names_differ(command, o, text);
}

static bool is_choice(const char *text, const char *choices)
{
    size_t n = strlen(text);
    for (const char *at = choices; n && (at = strstr(at, text)); at += n) {
        if ((at == choices || at[-1] == ' ') && (at[n] == ' ' || at[n] == '\0'))
            return true;
    }
    return false;
}

static int parse_value(const char *command, const struct cli_option *o, const char *text)
{
    switch (o->kind) {
    case CLI_FLAG:
        *(bool *)o->value = true;
        return -1;
    case CLI_STRING:
        if (!*text)
            return cli_usage_error(command, "--%s is empty; it takes %s", o->name, o->metavar);
        *(const char **)o->value = text;
        return -1;
    case CLI_BYTES:
        if (hr_parse_bytes(text, o->value) != HR_OK)
            return bad_value(command, o, text, "a size, such as 8388608, 8MB or 8MiB");
        return -1;
    case CLI_SHARE:
        return parse_share(text, o->value) ? -1 : bad_value(command, o, text, share_text);
    case CLI_BUDGET:
        return cli_budget_parse(text, o->value) ? -1 : bad_value(command, o, text, budget_text);
    case CLI_FRACTION:
        if (hr_parse_fraction(text, o->value) != HR_OK)
            return bad_value(command, o, text, "a share from 0 to 1, such as 0.02 or 2%");
        return -1;
    case CLI_COUNT:
    case CLI_REAL:
        return parse_number(command, o, text);
    case CLI_SHARES:
        return parse_shares(command, o, text);
    case CLI_NAMES:
        return parse_names(command, o, text);
    case CLI_CHOICE:
        if (!is_choice(text, o->choices))
            return cli_usage_error(command, "--%s '%s' is not one of: %s", o->name, text,
                                   o->choices);
        *(const char **)o->value = text;
        return -1;
    }
    return CLI_EXIT_USAGE;
}

/* ----------------------------------------------------------------------------------------- help */

static void default_text(const struct cli_option *o, char *text, size_t text_bytes)
{
    char number[32];
    text[0] = '\0';
    switch (o->kind) {
    case CLI_BYTES:
        if (*(uint64_t *)o->value)
            snprintf(text, text_bytes, " [%s]",
                     hr_format_bytes(*(uint64_t *)o->value, number, sizeof number));
        break;
    case CLI_BUDGET:
    case CLI_SHARE:
        if (*(double *)o->value > 0)
            snprintf(text, text_bytes, " [%g%%]", 100 * *(double *)o->value);
        break;
    case CLI_COUNT:
        if (*(uint64_t *)o->value)
            snprintf(text, text_bytes, " [%llu]", (unsigned long long)*(uint64_t *)o->value);
        break;
    case CLI_FRACTION:
    case CLI_REAL:
        snprintf(text, text_bytes, " [%g]", *(double *)o->value);
        break;
    case CLI_STRING:
    case CLI_CHOICE:
        if (*(const char **)o->value)
            snprintf(text, text_bytes, " [%s]", *(const char **)o->value);
        break;
    case CLI_SHARES: {
        const struct cli_shares *shares = o->value;
        size_t at = 0;
        for (size_t i = 0; i < shares->n && at < text_bytes; i++)
            at += (size_t)snprintf(text + at, text_bytes - at, "%s%s", i ? "," : " [",
                                   shares->text[i]);
        if (at && at < text_bytes)
            snprintf(text + at, text_bytes - at, "]");
        break;
    }
    case CLI_NAMES: {
        const struct cli_names *names = o->value;
        size_t at = 0;
        for (size_t i = 0; i < names->n && at < text_bytes; i++)
            at += (size_t)snprintf(text + at, text_bytes - at, "%s%s", i ? "," : " [",
                                   names->name[i]);
        if (at && at < text_bytes)
            snprintf(text + at, text_bytes - at, "]");
        break;
    }
    case CLI_FLAG:
        break;
    }
}

/* Prints text after the column, in lines of at most HELP_WIDTH; width: what the first line has. */
static void print_wrapped(const char *text, const char *initial, int width)
{
    char all[1024];
    size_t n_text = strlen(text);
    snprintf(all, sizeof all, "%s%s", text, initial);
    for (size_t i = n_text + 1; *initial && i < sizeof all && all[i]; i++)
        all[i] = all[i] == ' ' ? HELP_SPACE : all[i]; /* "[24 MiB]" stays together */
    for (const char *at = all; *at;) {
        size_t n = strlen(at), room = HELP_WIDTH - HELP_COLUMN;
        if (n > room) {
            for (n = room; n > 1 && at[n] != ' ';)
                n--;
        }
        printf("%*s", HELP_COLUMN - width, "");
        for (size_t i = 0; i < n; i++)
            putchar(at[i] == HELP_SPACE ? ' ' : at[i]);
        putchar('\n');
        at += n;
        at += strspn(at, " ");
        width = 0;
    }
}

static void print_option(const char *name, const char *metavar, const char *text,
                         const char *initial)
{
    int width = printf("  --%s%s%s", name, metavar ? " " : "", metavar ? metavar : "");
    if (width >= HELP_COLUMN) {
        printf("\n");
        width = 0;
    }
    print_wrapped(text, initial, width);
}

static void print_help(const struct cli_command *command, const struct cli_option *options,
                       size_t n_options)
{
    char initial[CLI_LIST_MAX * 16];
    printf("usage: headrace %s%s%s%s\n\n%s\n\n", command->name, n_options ? " [OPTION]..." : "",
           command->operands ? " " : "", command->operands ? command->operands : "",
           command->about);
    for (size_t i = 0; i < n_options; i++) {
        const struct cli_option *o = &options[i];
        if (!o->name) {
            printf("%s%s\n", i ? "\n" : "", o->text);
            continue;
        }
        default_text(o, initial, sizeof initial);
        print_option(o->name, o->metavar, o->text, initial);
    }
    print_option("help", NULL, "this text", "");
    printf("\nDefaults stand in [brackets]. Sizes: 8388608, 8MB (10^6) or 8MiB (2^20).\n"
           "Exit code: 0 done, 1 it failed on the way, 2 the command line is wrong, 128 + N ended "
           "by signal N.\n");
    if (command->examples)
        printf("\nExamples\n%s\n", command->examples);
}

/* -------------------------------------------------------------------------------------- parsing */

/* getopt_long accepts any unambiguous beginning; a new option would then break old command
 * lines, so only whole names count. */
static bool is_whole_name(const char *argument, const char *name)
{
    size_t n = strlen(name);
    return strncmp(argument, "--", 2) == 0 && strncmp(argument + 2, name, n) == 0 &&
           (argument[2 + n] == '\0' || argument[2 + n] == '=');
}

static int take_operand(const struct cli_command *command, const char *text,
                        struct cli_operands *operands)
{
    if (!command->operands || !operands)
        return cli_usage_error(command->name, "unexpected argument '%s'", text);
    if (operands->n == CLI_OPERANDS_MAX)
        return cli_usage_error(command->name, "more than %d arguments", CLI_OPERANDS_MAX);
    operands->text[operands->n++] = text;
    return -1;
}

static int take_option(const struct cli_command *command, const struct cli_option *options,
                       size_t n_options, const struct cli_option *o, char *argument)
{
    if (!is_whole_name(argument, o->name))
        return unknown_option(command, options, n_options, argument);
    if (o->given)
        *o->given = true;
    return parse_value(command->name, o, optarg);
}

/* getopt's answers to what it cannot take: '?' and ':'. */
static int refuse(const struct cli_command *command, const struct cli_option *options,
                  size_t n_options, int got, const char *argument)
{
    if (got == ':')
        return cli_usage_error(command->name, "%s needs a value", argument);
    size_t n = strcspn(argument, "=");
    for (size_t i = 0; i < n_options; i++) {
        if (options[i].name && argument[n] == '=' && is_whole_name(argument, options[i].name))
            return cli_usage_error(command->name, "--%s takes no value ('%s')", options[i].name,
                                   argument);
    }
    return unknown_option(command, options, n_options, argument);
}

int cli_args_parse(const struct cli_command *command, const struct cli_option *options,
                   size_t n_options, int argc, char **argv, struct cli_operands *operands_out)
{
    struct option table[CLI_OPTIONS_MAX + 2] = {{0}};
    int index_of[CLI_OPTIONS_MAX + 1];
    int n = 0;
    for (size_t i = 0; i < n_options; i++) {
        if (!options[i].name)
            continue;
        table[n] = (struct option){options[i].name,
                                   options[i].kind == CLI_FLAG ? no_argument : required_argument,
                                   NULL, 256 + n};
        index_of[n++] = (int)i;
    }
    table[n] = (struct option){"help", no_argument, NULL, 'h'};
    optind = 0; /* glibc: start over */
    opterr = 0;
    if (operands_out)
        operands_out->n = 0;
    for (;;) {
        int at = optind ? optind : 1;
        int got = getopt_long(argc, argv, "-:h", table, NULL);
        int code = -1;
        if (got == -1)
            break;
        if (got == 'h') {
            print_help(command, options, n_options);
            return cli_out_close();
        }
        if (got == 1)
            code = take_operand(command, optarg, operands_out);
        else if (got == '?' || got == ':')
            code = refuse(command, options, n_options, got, argv[at]);
        else
            code =
                take_option(command, options, n_options, &options[index_of[got - 256]], argv[at]);
        if (code >= 0)
            return code;
    }
    for (int i = optind; i < argc; i++) { /* what follows "--" */
        int code = take_operand(command, argv[i], operands_out);
        if (code >= 0)
            return code;
    }
    return -1;
}

int cli_subject_needed(int argc, char **argv, void (*print_usage)(FILE *file))
{
    if (argc < 2) {
        print_usage(stderr);
        return CLI_EXIT_USAGE;
    }
    if (strcmp(argv[1], "--help") != 0 && strcmp(argv[1], "-h") != 0)
        return -1;
    print_usage(stdout);
    return cli_out_close();
}
