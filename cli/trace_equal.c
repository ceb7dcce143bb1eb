/* What makes recipes comparable on traces: the same settings where they have them, and a trace's line of a table of head
 * gates. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <headrace/parse.h>

#include "cli/eval_trace.h"
#include "cli/out.h"
#include "cli/text_file.h"

/* Set where a recipe has the parameter and its text does not say otherwise: the same sink and window,
 * and as many rows that wait behind the window; no blocks used beyond the budget because they happen to lie in frames; no layer left out. */
static const struct {
    const char *key, *value;
} settings[] = {
    {"sink", "4"}, {"window", "64"}, {"decode_segment", "256"}, {"reuse", "0"}, {"dense", "0"}};
#define SETTINGS (sizeof settings / sizeof settings[0])

static bool find_recipe(const char *text, size_t *index_out, struct hr_recipe_info *info_out)
{
    size_t n = strcspn(text, ":");
    for (size_t i = 0; hr_recipe_name(i); i++) {
        if (strlen(hr_recipe_name(i)) == n && strncmp(hr_recipe_name(i), text, n) == 0) {
            *index_out = i;
            return hr_recipe_describe(i, info_out) == HR_OK;
        }
    }
    return false;
}

static bool find_param(size_t recipe, const struct hr_recipe_info *info, const char *key,
                       struct hr_recipe_param *param_out)
{
    for (uint32_t i = 0; i < info->n_params; i++) {
        if (hr_recipe_param(recipe, i, param_out) == HR_OK && strcmp(param_out->name, key) == 0)
            return true;
    }
    return false;
}

/* Whether a recipe's text sets this parameter. */
static bool says(const char *recipe, const char *key, bool argued)
{
    size_t n = strlen(key);
    const char *at = strchr(recipe, argued ? ';' : ':');
    for (; at; at = strchr(at + 1, ',')) {
        const char *word = at + 1 + strspn(at + 1, " \t");
        if (strncmp(word, key, n) == 0 && word[n + strspn(word + n, " \t")] == '=')
            return true;
    }
    return false;
}

/* What parts the parameters from what stands before them; a list of them goes on with a comma. */
static const char *separator(const char *text, bool argued)
{
    if (strchr(text, argued ? ';' : ':'))
        return ",";
    return !argued ? ":" : strchr(text, ':') ? ";" : ":;";
}

static uint32_t value_of(const char *recipe, const char *key)
{
    double value = 0;
    return hr_recipe_value(recipe, key, &value) == HR_OK ? (uint32_t)value : 0;
}

void cli_trace_equalise(const char *recipe, struct cli_trace_item *item)
{
    struct hr_recipe_info info;
    struct hr_recipe_param param;
    size_t index, at, room = sizeof item->used;
    at = (size_t)snprintf(item->used, room, "%s", recipe);
    if (!find_recipe(recipe, &index, &info))
        return;
    bool argued = info.takes_argument;
    for (size_t i = 0; i < SETTINGS && at < room; i++) {
        if (!find_param(index, &info, settings[i].key, &param) ||
            says(recipe, settings[i].key, argued))
            continue;
        at += (size_t)snprintf(item->used + at, room - at, "%s%s=%s", separator(item->used, argued),
                               settings[i].key, settings[i].value);
    }
    item->sink = value_of(item->used, "sink");
    item->window = value_of(item->used, "window");
}

bool cli_trace_needs_gates(const char *recipe)
{
    struct hr_recipe_info info;
    size_t index;
    return find_recipe(recipe, &index, &info) && info.needs_gates;
}

/* Lines that are neither empty nor comments. */
static uint32_t count_lines(const char *text)
{
    uint32_t n = 0;
    while (*text) {
        text += strspn(text, " \t\r");
        n += *text && *text != '\n' && *text != '#';
        text += strcspn(text, "\n");
        text += *text == '\n';
    }
    return n;
}

int cli_trace_gates(const char *path, const struct cli_trace *trace, float **gates_out)
{
    const struct cli_trace_meta *m = &trace->meta;
    char *text = NULL;
    size_t n;
    *gates_out = NULL;
    if (!path)
        return 0;
    int code = cli_text_read(path, &text, &n);
    if (code)
        return code;
    uint32_t lines = count_lines(text);
    float *gates = calloc((size_t)lines + 1, m->n_kv_heads * sizeof *gates);
    if (!gates)
        code = cli_fail("out of memory");
    else if (lines <= m->layer)
        code = cli_fail("'%s' has gates of %u layers; '%s' is of layer %u", path, lines,
                        trace->path, m->layer);
    else if (hr_parse_head_gates(path, text, n, lines, m->n_kv_heads, gates) != HR_OK)
        code = cli_fail("%s", hr_last_error());
    free(text);
    if (!gates || code) {
        free(gates);
        return code;
    }
    memmove(gates, gates + (size_t)m->layer * m->n_kv_heads, m->n_kv_heads * sizeof *gates);
    *gates_out = gates;
    return 0;
}
