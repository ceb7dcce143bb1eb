/* headrace info: the library's own account of build and machine, laid out for reading. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <headrace/headrace.h>
#include <headrace/parse.h>

#include "cli/args.h"
#include "cli/commands.h"
#include "cli/json_file.h"
#include "cli/out.h"

#define KEY_WIDTH 26

static bool ends_with(const char *text, const char *tail)
{
    size_t n = strlen(text), m = strlen(tail);
    return n >= m && strcmp(text + n - m, tail) == 0;
}

/* "limit_bytes" with 25165824 reads "limit" and "24 MiB"; other keys only lose their
 * underscores. */
static void print_number(FILE *file, const char *key, double value)
{
    char text[32];
    if (key && ends_with(key, "_bytes") && value >= 1.8e19)
        fputs("no limit", file);
    else if (key && ends_with(key, "limit_bytes") && value == 0)
        fputs("none", file);
    else if (key && ends_with(key, "_bytes") && value >= 0)
        fputs(hr_format_bytes((uint64_t)value, text, sizeof text), file);
    else
        fprintf(file, "%.15g", value);
}

static void print_scalar(FILE *file, const char *key, const cJSON *item)
{
    if (cJSON_IsString(item))
        fputs(*item->valuestring ? item->valuestring : "none", file);
    else if (cJSON_IsNumber(item))
        print_number(file, key, item->valuedouble);
    else if (cJSON_IsBool(item))
        fputs(cJSON_IsTrue(item) ? "yes" : "no", file);
    else
        fputs("none", file);
}

/* "io_uring_bytes" reads "io uring": the unit shows in the value. */
static const char *spaced(const char *key, char *name, size_t name_bytes)
{
    int n = (int)strlen(key) - (ends_with(key, "_bytes") ? 6 : 0);
    snprintf(name, name_bytes, "%.*s", n, key);
    for (char *c = name; *c; c++)
        *c = *c == '_' ? ' ' : *c;
    return name;
}

static void print_key(FILE *file, const char *key, unsigned depth)
{
    char name[64];
    fprintf(file, "%*s%-*s ", (int)(2 * depth), "", (int)(KEY_WIDTH - 2 * depth),
            spaced(key, name, sizeof name));
}

static bool is_flat_array(const cJSON *item)
{
    const cJSON *child;
    if (!cJSON_IsArray(item))
        return false;
    cJSON_ArrayForEach(child, item)
    {
        if (cJSON_IsObject(child) || cJSON_IsArray(child))
            return false;
    }
    return true;
}

static void print_values(FILE *file, const cJSON *array)
{
    const cJSON *child;
    cJSON_ArrayForEach(child, array)
    {
        print_scalar(file, array->string, child);
        fputc(child->next ? ' ' : '\n', file);
    }
    if (!array->child)
        fputs("none\n", file);
}

static void print_item(FILE *file, const cJSON *item, unsigned depth)
{
    const char *key = item->string ? item->string : "";
    const cJSON *child;
    if (is_flat_array(item)) {
        print_key(file, key, depth);
        print_values(file, item);
    } else if (cJSON_IsObject(item) || cJSON_IsArray(item)) {
        if (*key)
            fprintf(file, "%*s%s\n", (int)(2 * depth), "", spaced(key, (char[64]){0}, 64));
        cJSON_ArrayForEach(child, item) print_item(file, child, depth + (*key != '\0'));
    } else {
        print_key(file, key, depth);
        print_scalar(file, key, item);
        fputc('\n', file);
    }
}

int cli_info(int argc, char **argv)
{
    static const struct cli_command command = {
        .name = "info",
        .brief = "what this build and this machine can do",
        .about = "Prints the CPU features in use, topology, memory and its limits, what I/O a "
                 "folder allows\n"
                 "(found by probing), the CUDA device and the libraries with their versions.",
        .examples = "  headrace info --file-dir /var/tmp\n"
                    "  headrace info --json - | jq .",
    };
    const char *dir = NULL, *path = NULL;
    const struct cli_option options[] = {
        CLI_OPTION("file-dir", CLI_STRING, &dir, "DIR",
                   "folder that would hold the file tier: probe its I/O"),
        CLI_OPTION("json", CLI_STRING, &path, "FILE",
                   "write it as JSON; - is standard output, without the text"),
    };
    int code =
        cli_args_parse(&command, options, sizeof options / sizeof options[0], argc, argv, NULL);
    if (code >= 0)
        return code;
    if ((code = cli_json_check(path)))
        return code;
    char *text = NULL;
    hr_status_t status = hr_info_json(dir, &text);
    if (status != HR_OK)
        return cli_fail_status("info", status);
    cJSON *json = cJSON_Parse(text);
    hr_text_free(text);
    if (!json)
        return cli_fail("info: the library's JSON does not parse");
    if (!path || strcmp(path, "-") != 0) {
        const cJSON *item;
        bool group = false; /* groups stand apart from each other and from single lines */
        cJSON_ArrayForEach(item, json)
        {
            if (item != json->child && (group || cJSON_IsObject(item)))
                fputc('\n', cli_out());
            print_item(cli_out(), item, 0);
            group = cJSON_IsObject(item);
        }
    }
    code = cli_json_write(path, json);
    cJSON_Delete(json);
    return code;
}
