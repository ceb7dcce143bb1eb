/* headrace session: saved sessions in their folders. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include <headrace/headrace.h>
#include <headrace/parse.h>

#include "cli/args.h"
#include "cli/commands.h"
#include "cli/json_file.h"
#include "cli/out.h"

#define JSON_TEXT "also write it as JSON; - is standard output, text then goes to standard error"

static cJSON *info_json(const char *dir, const struct hr_session_info *info)
{
    cJSON *o = cJSON_CreateObject();
    cJSON_AddStringToObject(o, "folder", dir);
    cli_json_u64(o, "version", info->version);
    cli_json_u64(o, "tokens", info->n_tokens);
    cli_json_u64(o, "bytes", info->file_bytes);
    cli_json_u64(o, "user_bytes", info->user_bytes);
    cli_json_u64(o, "generation", info->generation);
    cli_json_u64(o, "saved_unix_s", info->saved_unix_s);
    cli_json_u64(o, "n_layers", info->n_layers);
    cli_json_u64(o, "n_q_heads", info->n_q_heads);
    cli_json_u64(o, "n_kv_heads", info->n_kv_heads);
    cli_json_u64(o, "k_dim", info->k_dim);
    cli_json_u64(o, "v_dim", info->v_dim);
    const char *dtype = hr_dtype_name(info->dtype);
    cJSON_AddStringToObject(o, "dtype", dtype ? dtype : "?");
    cJSON_AddStringToObject(o, "recipe", info->recipe);
    return o;
}

static const char *date_of(uint64_t unix_s, char *text, size_t bytes)
{
    time_t t = (time_t)unix_s;
    struct tm tm;
    if (!localtime_r(&t, &tm) || !strftime(text, bytes, "%Y-%m-%d %H:%M:%S", &tm))
        snprintf(text, bytes, "?");
    return text;
}

static void print_line(const char *name, const struct hr_session_info *info)
{
    char date[64], bytes[32], tokens[32];
    fprintf(cli_out(), "%-24s %12s tokens %12s  %s  %s\n", name,
            cli_format_count(info->n_tokens, tokens, sizeof tokens),
            hr_format_bytes(info->file_bytes, bytes, sizeof bytes),
            date_of(info->saved_unix_s, date, sizeof date), info->recipe);
}

/* ------------------------------------------------------------------------------------------ ls */

struct list {
    char **names;
    size_t n;
};

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* Folders in dir, no links; sorted. */
static int list_make(const char *dir, struct list *list)
{
    if (dir[0] == '\0')
        return cli_fail("session: no folder is named");
    DIR *d = opendir(dir);
    if (!d)
        return cli_fail("session: %s: %s", dir, strerror(errno));
    int code = 0;
    for (const struct dirent *e; code == 0 && (e = readdir(d)) != NULL;) {
        struct stat st;
        if (e->d_name[0] == '.' || fstatat(dirfd(d), e->d_name, &st, AT_SYMLINK_NOFOLLOW) != 0 ||
            !S_ISDIR(st.st_mode))
            continue;
        char **more = realloc(list->names, (list->n + 1) * sizeof *more);
        char *name = strdup(e->d_name);
        if (more)
            list->names = more;
        if (more && name)
            list->names[list->n++] = name;
        else
            free(name);
        code = more && name ? 0 : cli_fail("out of memory");
    }
    closedir(d);
    if (list->n)
        qsort(list->names, list->n, sizeof *list->names, by_name);
    return code;
}

static int list_one(const char *dir, const char *name, cJSON *json)
{
    struct hr_session_info info = {.struct_size = sizeof info};
    char path[4096];
    if (snprintf(path, sizeof path, "%s/%s", dir, name) >= (int)sizeof path)
        return 0;
    hr_status_t status = hr_session_info_get(path, &info);
    if (status == HR_OK) {
        print_line(name, &info);
        cJSON_AddItemToArray(json, info_json(path, &info));
    } else if (status != HR_ERR_NOTFOUND) {
        cli_fail("%s", hr_last_error());
        return 1;
    }
    return 0;
}

static int session_ls(const char *dir, cJSON *json)
{
    struct list list = {0};
    cJSON *sessions = cJSON_AddArrayToObject(json, "sessions");
    int code = list_make(dir, &list), bad = 0;
    for (size_t i = 0; i < list.n; i++) {
        bad |= code == 0 && list_one(dir, list.names[i], sessions);
        free(list.names[i]);
    }
    free(list.names);
    if (code == 0 && !bad && cJSON_GetArraySize(sessions) == 0)
        cli_note("no session in the folders of %s", dir);
    return code ? code : bad;
}

/* ------------------------------------------------------------------------------ info, verify, rm */

static int session_info(const char *dir, cJSON *json)
{
    struct hr_session_info info = {.struct_size = sizeof info};
    char date[64], bytes[32], tokens[32];
    if (hr_session_info_get(dir, &info) != HR_OK)
        return cli_fail("%s", hr_last_error());
    FILE *f = cli_out();
    const char *dtype = hr_dtype_name(info.dtype);
    fprintf(f, "%-10s %s tokens, %s\n", "session",
            cli_format_count(info.n_tokens, tokens, sizeof tokens),
            hr_format_bytes(info.file_bytes, bytes, sizeof bytes));
    fprintf(f, "%-10s %s, save number %llu, format version %u\n", "saved",
            date_of(info.saved_unix_s, date, sizeof date), (unsigned long long)info.generation,
            info.version);
    fprintf(f, "%-10s %u layers, %u query and %u kv heads of %u and %u, rows in %s\n", "model",
            info.n_layers, info.n_q_heads, info.n_kv_heads, info.k_dim, info.v_dim,
            dtype ? dtype : "?");
    fprintf(f, "%-10s %s\n", "recipe", info.recipe);
    cJSON_AddItemToObject(json, "session", info_json(dir, &info));
    return 0;
}

static int session_verify(const char *dir, cJSON *json)
{
    struct hr_session_check check = {.struct_size = sizeof check};
    char bytes[32];
    hr_status_t status = hr_session_verify(dir, &check);
    cJSON_AddBoolToObject(json, "whole", status == HR_OK);
    cli_json_u64(json, "bytes_read", check.bytes_read);
    cli_json_u64(json, "blocks", check.blocks);
    cli_json_u64(json, "blocks_bad", check.blocks_bad);
    cli_json_u64(json, "superblocks_bad", (uint64_t)check.superblocks_bad);
    cli_json_u64(json, "tokens_lost", check.tokens_lost);
    cJSON_AddBoolToObject(json, "text_lost", check.user_bad != 0);
    if (check.tokens_lost) {
        cli_json_u64(json, "first_lost", check.first_lost);
        cli_json_u64(json, "last_lost", check.last_lost);
    }
    if (status != HR_OK)
        return cli_fail("%s", hr_last_error());
    fprintf(cli_out(), "%s: whole; %s read, %llu blocks\n", dir,
            hr_format_bytes(check.bytes_read, bytes, sizeof bytes),
            (unsigned long long)check.blocks);
    return 0;
}

static int session_rm(const char *dir, cJSON *json)
{
    hr_status_t status = hr_session_remove(dir);
    cJSON_AddBoolToObject(json, "removed", status == HR_OK);
    return status == HR_OK ? 0 : cli_fail("%s", hr_last_error());
}

/* --------------------------------------------------------------------------------------- session */

static const struct subject {
    const char *word;
    int (*work)(const char *dir, cJSON *json);
    struct cli_command command;
} subjects[] = {
    {"ls",
     session_ls,
     {.name = "session ls",
      .operands = "DIR",
      .about = "Lists the sessions in the folders of DIR.",
      .examples = "  headrace session ls ~/sessions"}},
    {"info",
     session_info,
     {.name = "session info",
      .operands = "DIR",
      .about = "Says what a session is, from its first pages.",
      .examples = "  headrace session info ~/sessions/book"}},
    {"verify",
     session_verify,
     {.name = "session verify",
      .operands = "DIR",
      .about = "Reads every byte of a session and compares checksums. Exit code 1: it is damaged; "
               "the message\nsays which tokens are lost.",
      .examples = "  headrace session verify ~/sessions/book"}},
    {"rm",
     session_rm,
     {.name = "session rm",
      .operands = "DIR",
      .about = "Removes a session, and its folder if nothing else is in it. One that is in use "
               "stays.",
      .examples = "  headrace session rm ~/sessions/book"}},
};
#define SUBJECTS (sizeof subjects / sizeof subjects[0])

static void print_usage(FILE *file)
{
    fprintf(file,
            "usage: headrace session SUBJECT [OPTION]... DIR\n\n"
            "  ls       the sessions in a folder's folders\n"
            "  info     what a session is\n"
            "  verify   reads every byte of a session and says what is damaged\n"
            "  rm       removes a session\n\n"
            "'headrace run --save DIR' makes one, 'headrace run --open DIR' goes on from it.\n");
}

static int run_subject(const struct subject *subject, int argc, char **argv)
{
    const char *json_path = NULL;
    struct cli_operands operands = {0};
    const struct cli_option options[] = {
        CLI_OPTION("json", CLI_STRING, &json_path, "FILE", JSON_TEXT),
    };
    int code = cli_args_parse(&subject->command, options, 1, argc, argv, &operands);
    if (code >= 0)
        return code;
    if (operands.n != 1)
        return cli_usage_error(subject->command.name, "it takes one folder, not %zu", operands.n);
    if ((code = cli_json_check(json_path)))
        return code;
    if (json_path && strcmp(json_path, "-") == 0)
        cli_out_move_to_stderr();
    cJSON *json = cJSON_CreateObject();
    code = subject->work(operands.text[0], json);
    int written =
        code == 0 || subject->work == session_verify ? cli_json_write(json_path, json) : 0;
    cJSON_Delete(json);
    return code ? code : written;
}

int cli_session(int argc, char **argv)
{
    int code = cli_subject_needed(argc, argv, print_usage);
    if (code >= 0)
        return code;
    for (size_t i = 0; i < SUBJECTS; i++)
        if (strcmp(argv[1], subjects[i].word) == 0)
            return run_subject(&subjects[i], argc - 1, argv + 1);
    return cli_usage_error("session", "unknown subject '%s'; there are: ls, info, verify, rm",
                           argv[1]);
}
