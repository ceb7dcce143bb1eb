#include "tests/index/trace.h"

#include "base/half.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char *read_file(const char *dir, const char *name, size_t *bytes_out)
{
    char path[1024];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *file = fopen(path, "rb");
    if (!file) {
        fprintf(stderr, "%s: cannot be opened\n", path);
        return NULL;
    }
    fseek(file, 0, SEEK_END);
    long size = ftell(file);
    rewind(file);
    char *data = malloc((size_t)size + 1);
    if (data && fread(data, 1, (size_t)size, file) != (size_t)size) {
        free(data);
        data = NULL;
    }
    fclose(file);
    if (data) {
        data[size] = '\0';
        *bytes_out = (size_t)size;
    }
    return data;
}

/* A float16 or float32 array of n numbers as floats. */
static float *read_npy(const char *dir, const char *name, size_t n)
{
    size_t bytes = 0;
    char *data = read_file(dir, name, &bytes);
    float *out = malloc(n * sizeof *out);
    if (!data || !out || bytes < 10 || memcmp(data, "\x93NUMPY", 6) != 0)
        goto err_free;
    size_t begin = 10 + (unsigned char)data[8] + 256u * (unsigned char)data[9];
    size_t item = memmem(data, begin, "<f2", 3) ? 2 : 4;
    if (begin + n * item != bytes)
        goto err_free;
    for (size_t i = 0; i < n; i++) {
        uint16_t half;
        if (item == 4) {
            memcpy(&out[i], data + begin + 4 * i, 4);
            continue;
        }
        memcpy(&half, data + begin + 2 * i, 2);
        out[i] = hri_f32_from_f16(half);
    }
    free(data);
    return out;

err_free:
    fprintf(stderr, "%s/%s: not an array of %zu numbers\n", dir, name, n);
    free(data);
    free(out);
    return NULL;
}

/* Blanks go: writers of JSON differ in theirs, and no string that is looked for here has any. */
static void blanks_drop(char *json)
{
    char *to = json;
    for (const char *from = json; *from != '\0'; from++)
        if (strchr(" \t\r\n", *from) == NULL)
            *to++ = *from;
    *to = '\0';
}

static double meta_number(const char *json, const char *key)
{
    char quoted[64];
    snprintf(quoted, sizeof quoted, "\"%s\":", key);
    const char *at = strstr(json, quoted);
    return at ? strtod(at + strlen(quoted), NULL) : 0;
}

static uint32_t *meta_list(const char *json, const char *key, uint32_t *n_out)
{
    char quoted[64];
    snprintf(quoted, sizeof quoted, "\"%s\":[", key);
    const char *at = strstr(json, quoted);
    uint32_t *list = calloc(65536, sizeof *list);
    *n_out = 0;
    for (at = at ? at + strlen(quoted) : NULL; list && at && *n_out < 65536;) {
        char *end;
        list[(*n_out)++] = (uint32_t)strtoul(at, &end, 10);
        at = *end == ',' ? end + 1 : NULL;
    }
    return list;
}

bool trace_load(const char *dir, struct trace *t)
{
    size_t bytes;
    char *json = read_file(dir, "meta.json", &bytes);
    if (!json)
        return false;
    blanks_drop(json);
    memset(t, 0, sizeof *t);
    const char *slash = strrchr(dir, '/');
    snprintf(t->name, sizeof t->name, "%s", slash && slash[1] ? slash + 1 : dir);
    t->n_q_heads = (uint32_t)meta_number(json, "n_q_heads");
    t->n_kv_heads = (uint32_t)meta_number(json, "n_kv_heads");
    t->d = (uint32_t)meta_number(json, "head_dim");
    t->n_tokens = (uint32_t)meta_number(json, "n_tokens");
    t->rope_base = strstr(json, "\"layout\":\"half\"") ? meta_number(json, "base") : 0;
    t->q_position = meta_list(json, "q_positions", &t->n_q);
    t->seen_position = meta_list(json, "q_seen_positions", &t->n_seen);
    free(json);
    t->k = read_npy(dir, "k.npy", (size_t)t->n_kv_heads * t->n_tokens * t->d);
    t->v = read_npy(dir, "v.npy", (size_t)t->n_kv_heads * t->n_tokens * t->d);
    t->q = read_npy(dir, "q.npy", (size_t)t->n_q_heads * t->n_q * t->d);
    t->seen = read_npy(dir, "q_seen.npy", (size_t)t->n_q_heads * t->n_seen * t->d);
    if (t->k && t->v && t->q && t->seen && t->n_q && t->n_seen)
        return true;
    trace_free(t);
    return false;
}

void trace_free(struct trace *t)
{
    free(t->k);
    free(t->v);
    free(t->q);
    free(t->seen);
    free(t->q_position);
    free(t->seen_position);
    memset(t, 0, sizeof *t);
}
