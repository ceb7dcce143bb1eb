/* The public calls about recipes: which there are, what they take, and recipe files. */
#include "runtime/sequence.h"

#include "base/error.h"
#include <stdio.h>
#include <string.h>

#define LINE_BYTES_MAX 512u
#define KEYS_MAX       (HRI_SELECTOR_PARAMS_MAX + 2)

const char *hr_recipe_name(size_t index)
{
    const struct hri_selector *selector = hri_selector_at(index);
    return selector != NULL ? selector->name : NULL;
}

static uint32_t params_count(const struct hri_selector *selector)
{
    uint32_t n = 0;
    while (selector->params[n].name != NULL) {
        n++;
    }
    return n;
}

hr_status_t hr_recipe_describe(size_t index, struct hr_recipe_info *info_out)
{
    const struct hri_selector *selector = hri_selector_at(index);
    if (selector == NULL) {
        return hri_error_set(HR_ERR_NOTFOUND, "there is no recipe number %zu", index);
    }
    *info_out = (struct hr_recipe_info){.name = selector->name,
                                        .summary = selector->summary,
                                        .source = selector->source,
                                        .n_params = params_count(selector),
                                        .needs_gates = selector->needs_gates,
                                        .takes_argument = selector->takes_argument,
                                        .drafts = selector->drafts};
    return HR_OK;
}

hr_status_t hr_recipe_param(size_t index, uint32_t param, struct hr_recipe_param *param_out)
{
    const struct hri_selector *selector = hri_selector_at(index);
    if (selector == NULL || param >= params_count(selector)) {
        return hri_error_set(HR_ERR_NOTFOUND, "recipe number %zu has no parameter number %u", index,
                             param);
    }
    const struct hri_param *p = &selector->params[param];
    *param_out =
        (struct hr_recipe_param){.name = p->name,
                                 .meaning = p->meaning,
                                 .source = *p->source ? p->source : "ours, docs/recipes.md",
                                 .value_default = p->value_default,
                                 .min = p->min,
                                 .max = p->max,
                                 .whole = hri_param_counts(p)};
    return HR_OK;
}

hr_status_t hr_recipe_value(const char *recipe, const char *param, double *value_out)
{
    struct hri_recipe parsed;
    if (recipe == NULL || param == NULL || value_out == NULL) {
        return hri_error_set(HR_ERR_INVALID, "hr_recipe_value: no recipe, name or place for it");
    }
    hr_status_t status = hri_recipe_parse(recipe, &parsed);
    for (uint32_t i = 0; status == HR_OK && i < params_count(parsed.selector); i++) {
        if (strcmp(parsed.selector->params[i].name, param) == 0) {
            *value_out = parsed.values[i];
            return HR_OK;
        }
    }
    return status != HR_OK ? status
                           : hri_error_set(HR_ERR_NOTFOUND, "recipe %s has no parameter '%.40s'",
                                           parsed.selector->name, param);
}

hr_status_t hr_recipe_check(const char *recipe)
{
    struct hri_recipe parsed;
    return hri_recipe_parse(recipe, &parsed);
}

/* -- recipe files -- */

struct entry {
    char line[LINE_BYTES_MAX]; /* key '\0' value '\0' */
    const char *key, *value;
    uint32_t number;
};

struct recipe_file {
    const char *path;
    struct entry entries[KEYS_MAX];
    uint32_t n;
};

static char *trimmed(char *text)
{
    while (*text == ' ' || *text == '\t') {
        text++;
    }
    size_t n = strlen(text);
    while (n > 0 && (text[n - 1] == ' ' || text[n - 1] == '\t' || text[n - 1] == '\r')) {
        text[--n] = '\0';
    }
    return text;
}

static const struct entry *entry_find(const struct recipe_file *f, const char *key)
{
    for (uint32_t i = 0; i < f->n; i++) {
        if (strcmp(f->entries[i].key, key) == 0) {
            return &f->entries[i];
        }
    }
    return NULL;
}

/* "key = value" of a line without its comment. */
static hr_status_t line_read(struct recipe_file *f, const char *text, size_t n, uint32_t number)
{
    struct entry *e = &f->entries[f->n];
    const char *comment = memchr(text, '#', n);
    n = comment != NULL ? (size_t)(comment - text) : n;
    if (n >= sizeof e->line) {
        return hri_error_set(HR_ERR_INVALID, "%s:%u: the line has %zu bytes; %u are allowed",
                             f->path, number, n, LINE_BYTES_MAX - 1);
    }
    if (memchr(text, '\0', n) != NULL) {
        return hri_error_set(HR_ERR_INVALID, "%s:%u: the line has a zero byte", f->path, number);
    }
    memcpy(e->line, text, n);
    e->line[n] = '\0';
    char *whole = trimmed(e->line), *equals = strchr(whole, '=');
    if (*whole == '\0') {
        return HR_OK;
    }
    if (equals == NULL) {
        return hri_error_set(HR_ERR_INVALID, "%s:%u: '%.80s' is not key = value", f->path, number,
                             whole);
    }
    *equals = '\0';
    char *key = trimmed(whole), *value = trimmed(equals + 1);
    if (*key == '\0' || *value == '\0') {
        return hri_error_set(HR_ERR_INVALID, "%s:%u: the %s is missing", f->path, number,
                             *key == '\0' ? "key" : "value");
    }
    const struct entry *before = entry_find(f, key);
    if (before != NULL) {
        return hri_error_set(HR_ERR_INVALID, "%s:%u: '%s' is set already in line %u", f->path,
                             number, key, before->number);
    }
    if (f->n + 1 == KEYS_MAX) {
        return hri_error_set(HR_ERR_INVALID, "%s:%u: more than %d keys", f->path, number,
                             KEYS_MAX - 1);
    }
    e->key = key;
    e->value = value;
    e->number = number;
    f->n++;
    return HR_OK;
}

static hr_status_t lines_read(struct recipe_file *f, const char *text, size_t n_bytes)
{
    const char *end = text + n_bytes;
    hr_status_t status = HR_OK;
    for (uint32_t number = 1; text < end && status == HR_OK; number++) {
        const char *newline = memchr(text, '\n', (size_t)(end - text));
        status = line_read(f, text, (size_t)((newline != NULL ? newline : end) - text), number);
        text = newline != NULL ? newline + 1 : end;
    }
    return status;
}

static bool takes_argument(const char *name)
{
    struct hri_recipe parsed;
    return hri_recipe_parse(name, &parsed) == HR_OK && parsed.selector->takes_argument;
}

/* A recipe with this one parameter, so that its message is about this line. */
static hr_status_t entry_check(const struct recipe_file *f, const char *name, const struct entry *e)
{
    char text[LINE_BYTES_MAX + 80], message[HRI_ERROR_BYTES_MAX];
    bool argument = strcmp(e->key, "argument") == 0, is_name = strcmp(e->key, "recipe") == 0;
    if (strchr(e->value, ',') != NULL && !argument) {
        return hri_error_set(HR_ERR_INVALID, "%s:%u: %s is '%.80s', which has a comma", f->path,
                             e->number, e->key, e->value);
    }
    int n = is_name    ? snprintf(text, sizeof text, "%s", e->value)
            : argument ? snprintf(text, sizeof text, "%.64s:%s", name, e->value)
                       : snprintf(text, sizeof text, "%.64s:%s%s=%s", name,
                                  takes_argument(name) ? ";" : "", e->key, e->value);
    struct hri_recipe parsed;
    hr_status_t status = n < (int)sizeof text ? hri_recipe_parse(text, &parsed) : HR_ERR_INVALID;
    if (status != HR_OK) {
        hri_error_get(message, sizeof message);
        return hri_error_set(status, "%s:%u: %s", f->path, e->number, message);
    }
    return HR_OK;
}

static hr_status_t recipe_join(const struct recipe_file *f, char *recipe_out, size_t recipe_bytes)
{
    const struct entry *name = entry_find(f, "recipe"), *argument = entry_find(f, "argument");
    if (name == NULL) {
        return hri_error_set(HR_ERR_INVALID, "%s: there is no line 'recipe = NAME'", f->path);
    }
    if (strchr(name->value, ':') != NULL) {
        return hri_error_set(HR_ERR_INVALID,
                             "%s:%u: '%.80s' has parameters; they have lines of their own", f->path,
                             name->number, name->value);
    }
    hr_status_t status = entry_check(f, name->value, name);
    char text[2048];
    size_t at = (size_t)snprintf(text, sizeof text, "%s", name->value);
    if (argument != NULL) {
        at += (size_t)snprintf(text + at, sizeof text - at, ":%s", argument->value);
    }
    for (uint32_t i = 0, n = 0; i < f->n && status == HR_OK; i++) {
        const struct entry *e = &f->entries[i];
        status = e == name ? HR_OK : entry_check(f, name->value, e);
        if (e == name || e == argument || at >= sizeof text) {
            continue;
        }
        bool argued = takes_argument(name->value);
        const char *first = argument != NULL ? ";" : argued ? ":;" : ":";
        const char *separator = n++ == 0 ? first : ",";
        at += (size_t)snprintf(text + at, sizeof text - at, "%s%s=%s", separator, e->key, e->value);
    }
    if (status == HR_OK && (at >= sizeof text || at >= recipe_bytes)) {
        status = hri_error_set(HR_ERR_INVALID, "%s: the recipe is longer than %zu bytes", f->path,
                               recipe_bytes - 1);
    }
    /* Each line was fine by itself; together they may not be (block and page are one parameter). */
    char message[HRI_ERROR_BYTES_MAX];
    struct hri_recipe parsed;
    if (status == HR_OK && (status = hri_recipe_parse(text, &parsed)) != HR_OK) {
        hri_error_get(message, sizeof message);
        status = hri_error_set(status, "%s: %s", f->path, message);
    }
    if (status == HR_OK) {
        memcpy(recipe_out, text, at + 1);
    }
    return status;
}

hr_status_t hr_recipe_parse_file(const char *path, const char *text, size_t n_bytes,
                                 char *recipe_out, size_t recipe_bytes)
{
    if (text == NULL || recipe_out == NULL || recipe_bytes == 0) {
        return hri_error_set(HR_ERR_INVALID,
                             "hr_recipe_parse_file: no text or no place for the recipe");
    }
    struct recipe_file f = {.path = path != NULL ? path : "recipe file"};
    hr_status_t status = lines_read(&f, text, n_bytes);
    return status == HR_OK ? recipe_join(&f, recipe_out, recipe_bytes) : status;
}

#define SHORT_SEGMENT 256 /* decode_segment where windows have little room */

/* Adds key=value unless the recipe's text says it, or it is so already: more than that where less is wanted, less where more is. Sets no error:
 * the one of the budget stands. */
static bool change(const struct hri_recipe *parsed, char *recipe, size_t bytes, const char *key,
                   unsigned value, bool more)
{
    size_t n = strlen(recipe), length = strlen(key);
    double now = hri_recipe_value(parsed, key);
    if (more ? now >= value : now <= value) {
        return false;
    }
    for (const char *said = recipe; (said = strstr(said, key)) != NULL; said += length) {
        if (said[length] == '=') {
            return false;
        }
    }
    int wrote =
        snprintf(recipe + n, bytes - n, "%c%s=%u", strchr(recipe, ':') ? ',' : ':', key, value);
    return wrote > 0 && (size_t)wrote < bytes - n;
}

/* Fewer bits on the device: one; one in host memory, of which a step moves what it reads; none. */
static bool sketch_less(const struct hri_recipe *parsed, char *text, size_t bytes, uint32_t less)
{
    switch (less) {
    case 0:
        return true;
    case 1:
        return change(parsed, text, bytes, "sketch", 1, false);
    case 2:
        return change(parsed, text, bytes, "sketch", 1, false) &&
               change(parsed, text, bytes, "sketch_host", 1, true);
    default:
        return change(parsed, text, bytes, "sketch", 0, false);
    }
}

bool hri_recipe_smaller(const char *recipe, uint32_t attempt, bool on_gpu, char *text, size_t bytes)
{
    struct hri_recipe parsed;
    uint32_t less = attempt / 2;
    int n = snprintf(text, bytes, "%s", recipe);
    if (n < 0 || (size_t)n >= bytes || hri_recipe_parse(recipe, &parsed) != HR_OK ||
        parsed.selector->takes_argument) { /* what follows its colon is not ours to add to */
        return false;
    }
    return !(on_gpu && less == 2) && sketch_less(&parsed, text, bytes, less) &&
           (attempt % 2 == 0 ||
            change(&parsed, text, bytes, "decode_segment", SHORT_SEGMENT, false));
}
