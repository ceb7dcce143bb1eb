/* meta.json of a trace. */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/trace.h"

#define LAYER_MAX 65535

static bool refuse(char *why, const char *format, ...) __attribute__((format(printf, 2, 3)));
static bool refuse(char *why, const char *format, ...)
{
    va_list list;
    va_start(list, format);
    vsnprintf(why, CLI_TRACE_WHY_BYTES, format, list);
    va_end(list);
    return false;
}

/* NULL with the reason if it is missing or there twice. */
static const cJSON *member(const cJSON *object, const char *key, char *why)
{
    const cJSON *found = NULL;
    for (const cJSON *item = object->child; item; item = item->next) {
        if (strcmp(item->string, key) != 0)
            continue;
        if (found) {
            refuse(why, "has %s twice", key);
            return NULL;
        }
        found = item;
    }
    if (!found)
        refuse(why, "has no %s", key);
    return found;
}

static bool is_whole(const cJSON *item, double min, double max)
{
    return cJSON_IsNumber(item) && item->valuedouble == floor(item->valuedouble) &&
           item->valuedouble >= min && item->valuedouble <= max;
}

/* What stands there, short enough for one line. */
static char *shown(const cJSON *item, char *text, size_t text_bytes)
{
    char *all = cJSON_PrintUnformatted(item);
    snprintf(text, text_bytes, "%s", all ? all : "?");
    if (all && strlen(all) >= text_bytes)
        memcpy(text + text_bytes - 4, "...", 4);
    cJSON_free(all);
    return text;
}

static bool take_count(const cJSON *object, const char *key, uint32_t min, uint32_t max,
                       uint32_t *value_out, char *why)
{
    char text[40];
    const cJSON *item = member(object, key, why);
    if (!item)
        return false;
    if (!is_whole(item, min, max))
        return refuse(why, "has %s %s; it must be a whole number from %u to %u", key,
                      shown(item, text, sizeof text), min, max);
    *value_out = (uint32_t)item->valuedouble;
    return true;
}

static bool take_positions(const cJSON *object, const char *key, uint32_t n_tokens, uint32_t min,
                           struct cli_positions *positions, char *why)
{
    char text[40];
    const cJSON *list = member(object, key, why);
    if (!list)
        return false;
    if (!cJSON_IsArray(list))
        return refuse(why, "has %s that is not a list", key);
    int n = cJSON_GetArraySize(list);
    if ((uint32_t)n < min)
        return refuse(why, "has an empty %s; at least one query must be there", key);
    positions->at = calloc(n ? (size_t)n : 1, sizeof *positions->at);
    if (!positions->at)
        return refuse(why, "cannot be read: out of memory");
    for (const cJSON *item = list->child; item; item = item->next) {
        if (!is_whole(item, 0, (double)n_tokens - 1))
            return refuse(why, "has %s[%u] = %s; positions are whole numbers from 0 to %u", key,
                          positions->n, shown(item, text, sizeof text), n_tokens - 1);
        uint32_t at = (uint32_t)item->valuedouble;
        if (positions->n && at <= positions->at[positions->n - 1])
            return refuse(why, "has %s[%u] = %u after %u; positions must increase", key,
                          positions->n, at, positions->at[positions->n - 1]);
        positions->at[positions->n++] = at;
    }
    return true;
}

/* ---------------------------------------------------------------------------------------- rope */

static bool take_frequencies(const cJSON *list, struct cli_trace_meta *meta, char *why)
{
    char text[40];
    uint32_t i = 0;
    if (!cJSON_IsArray(list) || (uint32_t)cJSON_GetArraySize(list) != meta->n_rot / 2)
        return refuse(why, "has rope.frequencies that are not a list of %u numbers",
                      meta->n_rot / 2);
    for (const cJSON *item = list->child; item; item = item->next) {
        if (!cJSON_IsNumber(item) || !isfinite((float)item->valuedouble) || item->valuedouble < 0)
            return refuse(why, "has rope.frequencies[%u] = %s; it must be a number of at least 0",
                          i, shown(item, text, sizeof text));
        meta->rope_frequencies[i++] = (float)item->valuedouble;
    }
    return true;
}

static bool take_layout(const cJSON *rope, struct cli_trace_meta *meta, char *why)
{
    char text[40];
    const cJSON *layout = member(rope, "layout", why);
    if (!layout)
        return refuse(why, "has a rope without exactly one layout");
    const char *name = cJSON_IsString(layout) ? layout->valuestring : "";
    meta->rope_layout = strcmp(name, "half") == 0          ? HR_ROPE_HALF
                        : strcmp(name, "interleaved") == 0 ? HR_ROPE_INTERLEAVED
                                                           : HR_ROPE_NONE;
    if (meta->rope_layout == HR_ROPE_NONE)
        return refuse(why, "has rope.layout %s; it must be \"half\" or \"interleaved\"",
                      shown(layout, text, sizeof text));
    return true;
}

static bool take_base(const cJSON *rope, struct cli_trace_meta *meta, char *why)
{
    char text[40];
    const cJSON *base = cJSON_GetObjectItemCaseSensitive(rope, "base");
    if (!base || !cJSON_IsNumber(base) || !(base->valuedouble > 1) || !isfinite(base->valuedouble))
        return refuse(why, "has rope.base %s; it must be a number above 1",
                      base ? shown(base, text, sizeof text) : "missing");
    meta->rope_base = base->valuedouble;
    for (uint32_t i = 0; i < meta->n_rot / 2; i++)
        meta->rope_frequencies[i] = (float)pow(meta->rope_base, -2.0 * i / meta->n_rot);
    return true;
}

/* {"base": 100000.0, "layout": "half"}, and where they differ from that: "n_rot", "frequencies". */
static bool take_rope(const cJSON *object, struct cli_trace_meta *meta, char *why)
{
    char text[40];
    const cJSON *rope = cJSON_GetObjectItemCaseSensitive(object, "rope");
    if (!rope || !member(object, "rope", why)) /* there at all, and once */
        return !rope;
    if (cJSON_IsNull(rope))
        return true;
    if (!cJSON_IsObject(rope))
        return refuse(why, "has a rope that is not an object");
    const cJSON *n_rot = cJSON_GetObjectItemCaseSensitive(rope, "n_rot");
    meta->n_rot = meta->head_dim;
    if (n_rot) {
        if (!is_whole(n_rot, 2, meta->head_dim) || (uint32_t)n_rot->valuedouble % 2)
            return refuse(why, "has rope.n_rot %s; it must be an even number from 2 to %u",
                          shown(n_rot, text, sizeof text), meta->head_dim);
        meta->n_rot = (uint32_t)n_rot->valuedouble;
    }
    meta->rope_frequencies = calloc(meta->n_rot / 2 + 1, sizeof *meta->rope_frequencies);
    if (!meta->rope_frequencies)
        return refuse(why, "cannot be read: out of memory");
    const cJSON *frequencies = cJSON_GetObjectItemCaseSensitive(rope, "frequencies");
    return take_layout(rope, meta, why) && take_base(rope, meta, why) &&
           (!frequencies || take_frequencies(frequencies, meta, why));
}

/* ---------------------------------------------------------------------------------------- meta */

static bool take_names(const cJSON *object, struct cli_trace_meta *meta, char *why)
{
    char text[40];
    const cJSON *format = member(object, "format", why);
    if (!format)
        return false;
    if (!cJSON_IsString(format) || strcmp(format->valuestring, CLI_TRACE_FORMAT) != 0)
        return refuse(why, "has format %s; read is \"%s\"", shown(format, text, sizeof text),
                      CLI_TRACE_FORMAT);
    const cJSON *model = member(object, "model", why);
    if (!model)
        return false;
    if (!cJSON_IsString(model))
        return refuse(why, "has a model that is not a text");
    meta->model = strdup(model->valuestring);
    return meta->model || refuse(why, "cannot be read: out of memory");
}

static bool take_shape(const cJSON *object, struct cli_trace_meta *meta, char *why)
{
    if (!take_count(object, "layer", 0, LAYER_MAX, &meta->layer, why) ||
        !take_count(object, "n_q_heads", 1, HR_HEADS_MAX, &meta->n_q_heads, why) ||
        !take_count(object, "n_kv_heads", 1, HR_HEADS_MAX, &meta->n_kv_heads, why) ||
        !take_count(object, "head_dim", HR_HEAD_DIM_MIN, HR_HEAD_DIM_MAX, &meta->head_dim, why) ||
        !take_count(object, "n_tokens", 1, HR_TOKENS_MAX, &meta->n_tokens, why))
        return false;
    if (meta->head_dim % 8)
        return refuse(why, "has head_dim %u; it must be a multiple of 8", meta->head_dim);
    if (meta->n_kv_heads == 0 || meta->n_q_heads % meta->n_kv_heads ||
        meta->n_q_heads / meta->n_kv_heads > HR_GROUP_MAX)
        return refuse(why,
                      "has n_q_heads %u and n_kv_heads %u; the first must be 1 to %d times the "
                      "second",
                      meta->n_q_heads, meta->n_kv_heads, HR_GROUP_MAX);
    return true;
}

static bool take_scale(const cJSON *object, struct cli_trace_meta *meta, char *why)
{
    char text[40];
    const cJSON *scale = member(object, "scale", why);
    if (!scale)
        return false;
    if (!cJSON_IsNumber(scale) || !(scale->valuedouble > 0) ||
        !isfinite((float)scale->valuedouble) || (float)scale->valuedouble <= 0)
        return refuse(why, "has scale %s; it must be a number above 0",
                      shown(scale, text, sizeof text));
    meta->scale = scale->valuedouble;
    return true;
}

bool cli_trace_meta_parse(const char *text, size_t n, struct cli_trace_meta *meta_out, char *why)
{
    struct cli_trace_meta meta = {0};
    const char *end = NULL;
    if (memchr(text, '\0', n))
        return refuse(why, "is not JSON: byte 0 at offset %zu",
                      (size_t)((const char *)memchr(text, '\0', n) - text));
    cJSON *json = cJSON_ParseWithLengthOpts(text, n, &end, false);
    size_t rest = end ? (size_t)(end - text) : n;
    while (json && rest < n && strchr(" \t\r\n", text[rest]))
        rest++;
    bool ok = json && rest == n;
    if (!ok)
        refuse(why, "is not JSON: offset %zu", rest);
    if (ok && !cJSON_IsObject(json))
        ok = refuse(why, "is not a JSON object");
    ok = ok && take_names(json, &meta, why) && take_shape(json, &meta, why) &&
         take_scale(json, &meta, why) &&
         take_positions(json, "q_seen_positions", meta.n_tokens, 0, &meta.seen, why) &&
         take_positions(json, "q_positions", meta.n_tokens, 1, &meta.scored, why) &&
         take_rope(json, &meta, why);
    cJSON_Delete(json);
    if (ok)
        *meta_out = meta;
    else
        cli_trace_meta_fini(&meta);
    return ok;
}

void cli_trace_meta_fini(struct cli_trace_meta *meta)
{
    free(meta->model);
    free(meta->seen.at);
    free(meta->scored.at);
    free(meta->rope_frequencies);
    memset(meta, 0, sizeof *meta);
}

/* ------------------------------------------------------------------------------------- writing */

static void add_positions(cJSON *json, const char *key, const struct cli_positions *positions)
{
    cJSON *list = cJSON_AddArrayToObject(json, key);
    for (uint32_t i = 0; i < positions->n; i++)
        cJSON_AddItemToArray(list, cJSON_CreateNumber(positions->at[i]));
}

/* Frequencies are written where base and n_rot do not give them (scaled RoPE). */
static bool is_scaled(const struct cli_trace_meta *meta)
{
    for (uint32_t i = 0; i < meta->n_rot / 2; i++) {
        double plain = pow(meta->rope_base, -2.0 * i / meta->n_rot);
        if (fabs(meta->rope_frequencies[i] - plain) > 1e-5 * plain)
            return true;
    }
    return false;
}

static void add_rope(cJSON *json, const struct cli_trace_meta *meta)
{
    if (meta->rope_layout == HR_ROPE_NONE)
        return;
    cJSON *rope = cJSON_AddObjectToObject(json, "rope");
    cJSON_AddNumberToObject(rope, "base", meta->rope_base);
    cJSON_AddStringToObject(rope, "layout",
                            meta->rope_layout == HR_ROPE_HALF ? "half" : "interleaved");
    if (meta->n_rot != meta->head_dim)
        cJSON_AddNumberToObject(rope, "n_rot", meta->n_rot);
    if (!is_scaled(meta))
        return;
    cJSON *list = cJSON_AddArrayToObject(rope, "frequencies");
    for (uint32_t i = 0; i < meta->n_rot / 2; i++)
        cJSON_AddItemToArray(list, cJSON_CreateNumber(meta->rope_frequencies[i]));
}

cJSON *cli_trace_meta_json(const struct cli_trace_meta *meta)
{
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "format", CLI_TRACE_FORMAT);
    cJSON_AddStringToObject(json, "model", meta->model);
    cJSON_AddNumberToObject(json, "layer", meta->layer);
    cJSON_AddNumberToObject(json, "n_q_heads", meta->n_q_heads);
    cJSON_AddNumberToObject(json, "n_kv_heads", meta->n_kv_heads);
    cJSON_AddNumberToObject(json, "head_dim", meta->head_dim);
    cJSON_AddNumberToObject(json, "n_tokens", meta->n_tokens);
    cJSON_AddNumberToObject(json, "scale", meta->scale);
    add_positions(json, "q_seen_positions", &meta->seen);
    add_positions(json, "q_positions", &meta->scored);
    add_rope(json, meta);
    return json;
}
