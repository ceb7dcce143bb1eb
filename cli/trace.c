#include "cli/trace.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/json_file.h"
#include "cli/npy.h"
#include "cli/out.h"

/* ------------------------------------------------------------------------------------- numbers */

float cli_float_from_half(uint16_t half)
{
    uint32_t sign = (uint32_t)(half & 0x8000u) << 16, exponent = half >> 10 & 31,
             mantissa = half & 0x3ffu, bits;
    float value;
    if (exponent == 0) { /* zero and subnormals: mantissa times 2^-24 */
        value = (float)mantissa * 0x1p-24f;
        return sign ? -value : value;
    }
    bits = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | mantissa << 13;
    memcpy(&value, &bits, sizeof value);
    return value;
}

uint16_t cli_half_from_float(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000u);
    bits &= 0x7fffffffu;
    if (bits > 0x7f800000u) /* NaN */
        return sign | 0x7e00u;
    if (bits >= 0x477ff000u) /* from 65520 on it rounds to infinity */
        return sign | 0x7c00u;
    if (bits < 0x38800000u) { /* below 2^-14: let the addition round to multiples of 2^-24 */
        float magnitude, rounded;
        memcpy(&magnitude, &bits, sizeof magnitude);
        rounded = magnitude + 0.5f;
        memcpy(&bits, &rounded, sizeof bits);
        return sign | (uint16_t)(bits - 0x3f000000u);
    }
    return sign | (uint16_t)((bits - 0x38000000u + 0xfffu + (bits >> 13 & 1u)) >> 13);
}

/* --------------------------------------------------------------------------------------- paths */

char *cli_folder_name(const char *path)
{
    char resolved[PATH_MAX];
    const char *at = path, *slash;
    size_t n = strlen(at);
    while (n > 1 && at[n - 1] == '/')
        n--;
    bool dots = (n == 1 && *at == '.') || (n >= 2 && at[n - 1] == '.' && at[n - 2] == '.') ||
                (n >= 2 && at[n - 1] == '.' && at[n - 2] == '/');
    if (dots && realpath(path, resolved)) {
        at = resolved;
        n = strlen(at);
    }
    slash = memrchr(at, '/', n);
    if (slash && slash + 1 < at + n) {
        n -= (size_t)(slash + 1 - at);
        at = slash + 1;
    }
    return strndup(at, n);
}

static int path_of(const char *folder, const char *name, char *path)
{
    if (snprintf(path, PATH_MAX, "%s/%s", folder, name) >= PATH_MAX)
        return cli_fail("cannot read '%s': %s", folder, strerror(ENAMETOOLONG));
    return 0;
}

/* --------------------------------------------------------------------------------------- reading */

static char *read_text(const char *path, size_t *bytes_out)
{
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        cli_fail("cannot read '%s': %s", path, strerror(errno));
        return NULL;
    }
    char *text = NULL;
    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode)) {
        cli_fail("'%s' is not a regular file", path);
    } else if (st.st_size > (off_t)CLI_TRACE_META_BYTES) {
        cli_fail("'%s' has %lld bytes; at most %zu are read", path, (long long)st.st_size,
                 CLI_TRACE_META_BYTES);
    } else if (!(text = malloc((size_t)st.st_size + 1))) {
        cli_fail("cannot read '%s': out of memory", path);
    } else if (read(fd, text, (size_t)st.st_size) != (ssize_t)st.st_size) {
        cli_fail("cannot read '%s': %s", path, strerror(errno ? errno : EIO));
        free(text);
        text = NULL;
    } else {
        *bytes_out = (size_t)st.st_size;
    }
    close(fd);
    return text;
}

static int load_meta(const char *folder, struct cli_trace_meta *meta)
{
    char path[PATH_MAX], why[CLI_TRACE_WHY_BYTES];
    size_t n;
    int code = path_of(folder, "meta.json", path);
    if (code)
        return code;
    char *text = read_text(path, &n);
    if (!text)
        return 1;
    if (!cli_trace_meta_parse(text, n, meta, why))
        code = cli_fail("'%s' %s", path, why);
    free(text);
    return code;
}

static struct cli_npy_want rows_array(const struct cli_trace_meta *meta)
{
    return (struct cli_npy_want){
        .dtype = "<f2", .n_dims = 3, .shape = {meta->n_kv_heads, meta->n_tokens, meta->head_dim}};
}

static struct cli_npy_want queries_array(const struct cli_trace_meta *meta, uint32_t n)
{
    return (struct cli_npy_want){
        .dtype = "<f4", .n_dims = 3, .shape = {meta->n_q_heads, n, meta->head_dim}};
}

static int load_array(const char *folder, const char *name, struct cli_npy_want want,
                      void *data_out)
{
    char path[PATH_MAX];
    void *data = NULL;
    int code = path_of(folder, name, path);
    if (code == 0)
        code = cli_npy_read(path, &want, &data);
    memcpy(data_out, &data, sizeof data);
    return code;
}

static int load_arrays(struct cli_trace *t)
{
    const struct cli_trace_meta *m = &t->meta;
    int code = load_array(t->path, "k.npy", rows_array(m), &t->k);
    if (code == 0)
        code = load_array(t->path, "v.npy", rows_array(m), &t->v);
    if (code == 0)
        code = load_array(t->path, "q_seen.npy", queries_array(m, m->seen.n), &t->seen);
    if (code == 0)
        code = load_array(t->path, "q.npy", queries_array(m, m->scored.n), &t->q);
    return code;
}

int cli_trace_load(const char *path, struct cli_trace *trace_out)
{
    struct cli_trace t = {.path = strdup(path), .name = cli_folder_name(path)};
    int code = t.path && t.name ? load_meta(path, &t.meta) : cli_fail("out of memory");
    if (code == 0)
        code = load_arrays(&t);
    if (code == 0)
        *trace_out = t;
    else
        cli_trace_fini(&t);
    return code;
}

void cli_trace_fini(struct cli_trace *trace)
{
    cli_trace_meta_fini(&trace->meta);
    free(trace->path);
    free(trace->name);
    free(trace->k);
    free(trace->v);
    free(trace->seen);
    free(trace->q);
    memset(trace, 0, sizeof *trace);
}

/* --------------------------------------------------------------------------------------- writing */

static int save_array(const char *folder, const char *name, struct cli_npy_want array,
                      const void *data)
{
    char path[PATH_MAX];
    int code = path_of(folder, name, path);
    return code ? code : cli_npy_write(path, &array, data);
}

int cli_trace_save(const struct cli_trace *t)
{
    const struct cli_trace_meta *m = &t->meta;
    char path[PATH_MAX];
    int code = path_of(t->path, "meta.json", path);
    if (code)
        return code;
    if (mkdir(t->path, 0777) < 0 && errno != EEXIST)
        return cli_fail("cannot make the folder '%s': %s", t->path, strerror(errno));
    if (unlink(path) < 0 && errno != ENOENT)
        return cli_fail("cannot write '%s': %s", path, strerror(errno));
    code = save_array(t->path, "k.npy", rows_array(m), t->k);
    if (code == 0)
        code = save_array(t->path, "v.npy", rows_array(m), t->v);
    if (code == 0)
        code = save_array(t->path, "q_seen.npy", queries_array(m, m->seen.n), t->seen);
    if (code == 0)
        code = save_array(t->path, "q.npy", queries_array(m, m->scored.n), t->q);
    if (code)
        return code;
    cJSON *json = cli_trace_meta_json(m);
    code = cli_json_write(path, json);
    cJSON_Delete(json);
    return code;
}
