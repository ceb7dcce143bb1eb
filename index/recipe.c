/* Reading a recipe: "name", "name:key=value,key=value" or, for recipes that take an argument,
 * "name:ARGUMENT;key=value,key=value". */
#include "base/error.h"
#include "base/parse.h"
#include "index/index.h"

#include <math.h>
#include <string.h>
#include <strings.h>

#define NAME_BYTES_MAX 64

static int lower(char c)
{
    return c >= 'A' && c <= 'Z' ? c + ('a' - 'A') : c;
}

/* Levenshtein distance, for "did you mean", letters' case aside; a word that the other begins with is near. Words longer than the table are
 * simply far away. */
static unsigned edit_distance(const char *a, const char *b)
{
    unsigned row[NAME_BYTES_MAX + 1];
    size_t na = strlen(a), nb = strlen(b);
    if (na > NAME_BYTES_MAX || nb > NAME_BYTES_MAX)
        return NAME_BYTES_MAX;
    if (na > 1 && na < nb && strncasecmp(a, b, na) == 0)
        return 1;
    for (unsigned j = 0; j <= nb; j++)
        row[j] = j;
    for (unsigned i = 1; i <= na; i++) {
        unsigned diagonal = row[0];
        row[0] = i;
        for (unsigned j = 1; j <= nb; j++) {
            unsigned above = row[j], best = diagonal + (lower(a[i - 1]) != lower(b[j - 1]));
            if (above + 1 < best)
                best = above + 1;
            if (row[j - 1] + 1 < best)
                best = row[j - 1] + 1;
            row[j] = best;
            diagonal = above;
        }
    }
    return row[nb];
}

/* "block" and "page" are one parameter under two names: papers say page, the library says block. */
static const char *alias_of(const char *key)
{
    if (strcmp(key, "block") == 0)
        return "page";
    return strcmp(key, "page") == 0 ? "block" : NULL;
}

static int param_index(const struct hri_param *params, const char *key)
{
    for (int i = 0; params[i].name; i++)
        if (strcmp(params[i].name, key) == 0)
            return i;
    return -1;
}

static int find_param(const struct hri_selector *selector, const char *key)
{
    int i = param_index(selector->params, key);
    const char *alias = alias_of(key);
    return i < 0 && alias ? param_index(selector->params, alias) : i;
}

static const struct hri_selector *find_selector(const char *name)
{
    const struct hri_selector *selector;
    for (size_t i = 0; (selector = hri_selector_at(i)); i++)
        if (strcmp(selector->name, name) == 0)
            return selector;
    return NULL;
}

static hr_status_t unknown_selector(const char *name)
{
    const struct hri_selector *selector, *best = hri_selector_at(0);
    for (size_t i = 1; (selector = hri_selector_at(i)); i++)
        if (edit_distance(name, selector->name) < edit_distance(name, best->name))
            best = selector;
    return hri_error_set(HR_ERR_NOTFOUND, "recipe '%s' is not known; the nearest is '%s'", name,
                         best->name);
}

static hr_status_t unknown_param(const struct hri_selector *selector, const char *key)
{
    const struct hri_param *best = selector->params;
    for (const struct hri_param *p = best; p->name; p++)
        if (edit_distance(key, p->name) < edit_distance(key, best->name))
            best = p;
    return hri_error_set(HR_ERR_NOTFOUND, "recipe %s has no parameter '%s'; the nearest is '%s'",
                         selector->name, key, best->name);
}

/* A range that ends beyond 1 is of a count, but for logits ("alpha") and multiples of a budget ("reuse"). */
bool hri_param_counts(const struct hri_param *p)
{
    return p->max > 1 && strcmp(p->name, "alpha") != 0 && strcmp(p->name, "reuse") != 0;
}

/* A number, or a share with a percent sign. */
static bool value_parse(char *text, double *value_out)
{
    size_t n = strlen(text);
    bool percent = n > 0 && text[n - 1] == '%';
    if (percent)
        text[n - 1] = '\0';
    bool ok = hr_parse_real(text, value_out) == HR_OK;
    if (percent)
        text[n - 1] = '%';
    *value_out = ok && percent ? *value_out / 100 : *value_out;
    return ok;
}

/* given: bits of the parameters that the text has named. */
static hr_status_t set_param(struct hri_recipe *recipe, char *item, uint32_t *given)
{
    const char *name = recipe->selector->name;
    char *equals = strchr(item, '=');
    if (!equals)
        return hri_error_set(HR_ERR_INVALID, "recipe %s: '%s' is not key=value", name, item);
    *equals = '\0';
    int i = find_param(recipe->selector, item);
    if (i < 0)
        return unknown_param(recipe->selector, item);
    const struct hri_param *p = &recipe->selector->params[i];
    if (*given >> i & 1)
        return hri_error_set(HR_ERR_INVALID, "recipe %s: %s is there twice", name, p->name);
    *given |= UINT32_C(1) << i;
    double value = 0;
    if (!value_parse(equals + 1, &value))
        return hri_error_set(HR_ERR_INVALID, "recipe %s: %s is '%s', which is not a number", name,
                             p->name, equals + 1);
    if (value < p->min || value > p->max)
        return hri_error_set(HR_ERR_INVALID, "recipe %s: %s is %.15g, allowed is %.15g to %.15g",
                             name, p->name, value, p->min, p->max);
    if (hri_param_counts(p) && value != floor(value))
        return hri_error_set(HR_ERR_INVALID, "recipe %s: %s is %.15g, it must be a whole number",
                             name, p->name, value);
    recipe->values[i] = value;
    return HR_OK;
}

/* All of "key=value,key=value". */
static hr_status_t set_params(struct hri_recipe *recipe, const char *text)
{
    const char *cursor = text;
    uint32_t given = 0;
    while (cursor) {
        char item[HRI_PARSE_ITEM_BYTES_MAX], why[HRI_ERROR_BYTES_MAX];
        hr_status_t status = hri_parse_list_next(&cursor, item);
        if (status != HR_OK) {
            hri_error_get(why, sizeof why);
            return hri_error_set(status, "recipe %s: %s", recipe->selector->name, why);
        }
        status = set_param(recipe, item, &given);
        if (status != HR_OK)
            return status;
    }
    return HR_OK;
}

/* "ARGUMENT;rest": *cursor becomes the rest, or NULL. */
static hr_status_t take_argument(struct hri_recipe *recipe, const char **cursor)
{
    const char *text = *cursor;
    size_t n = text ? strcspn(text, ";") : 0;
    *cursor = text && text[n] == ';' ? text + n + 1 : NULL;
    if (n >= sizeof recipe->argument)
        return hri_error_set(HR_ERR_INVALID,
                             "recipe %s: the argument has %zu characters; at most %zu",
                             recipe->selector->name, n, sizeof recipe->argument - 1);
    if (n)
        memcpy(recipe->argument, text, n);
    return HR_OK;
}

hr_status_t hri_recipe_parse(const char *text, struct hri_recipe *recipe_out)
{
    char name[NAME_BYTES_MAX];
    struct hri_recipe recipe = {0};
    if (!text || !*text)
        return hri_error_set(HR_ERR_INVALID, "recipe is empty; say for example 'headrace'");
    size_t length = strcspn(text, ":");
    if (length >= sizeof name)
        return hri_error_set(HR_ERR_NOTFOUND, "recipe name of %zu characters is not known", length);
    memcpy(name, text, length);
    name[length] = '\0';
    recipe.selector = find_selector(name);
    if (!recipe.selector)
        return unknown_selector(name);
    for (int i = 0; recipe.selector->params[i].name; i++)
        recipe.values[i] = recipe.selector->params[i].value_default;

    const char *cursor = text[length] == ':' ? text + length + 1 : NULL;
    if (recipe.selector->takes_argument) {
        hr_status_t status = take_argument(&recipe, &cursor);
        if (status != HR_OK)
            return status;
    }
    hr_status_t status = set_params(&recipe, cursor);
    if (status != HR_OK)
        return status;
    *recipe_out = recipe;
    return HR_OK;
}

double hri_recipe_value(const struct hri_recipe *recipe, const char *key)
{
    int i = find_param(recipe->selector, key);
    return i < 0 ? 0 : recipe->values[i];
}
