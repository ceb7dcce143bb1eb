/* What this build and this machine can do, as JSON text. */
#include "runtime/sequence.h"

#include "base/cpu.h"
#include "base/error.h"
#include "base/threads.h"
#include "base/topology.h"
#include "kernels/device.h"
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>

#ifndef HRI_BUILD_COMPILER /* set by the build; a build by hand does without */
#define HRI_BUILD_COMPILER __VERSION__
#endif
#define INFO_BYTES_MAX   16384
#define PROBE_BYTES_MAX  4096
#define DEVICE_BYTES_MAX 4096

struct text {
    char *at;
    size_t left;
};

static void put(struct text *t, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void put(struct text *t, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int n = vsnprintf(t->at, t->left, format, args);
    va_end(args);
    size_t used = n < 0 ? 0 : (size_t)n < t->left ? (size_t)n : t->left - 1;
    t->at += used;
    t->left -= used;
}

/* Strings of the system can hold anything; JSON cannot. */
static void put_string(struct text *t, const char *name, const char *value)
{
    put(t, "\"%s\":\"", name);
    for (const unsigned char *c = (const unsigned char *)value; *c != '\0'; c++) {
        if (*c == '"' || *c == '\\') {
            put(t, "\\%c", *c);
        } else if (*c < 0x20) {
            put(t, "\\u%04x", *c);
        } else {
            put(t, "%c", *c);
        }
    }
    put(t, "\"");
}

static void put_cpu(struct text *t)
{
    struct hri_cpu cpu;
    char features[512];
    if (hri_cpu_detect(&cpu) != HR_OK) {
        put(t, "\"cpu\":{");
        put_string(t, "error", hr_last_error());
        put(t, "},");
        return;
    }
    put(t, "\"cpu\":{");
    put_string(t, "brand", cpu.brand);
    put(t, ",");
    put_string(t, "level", hri_cpu_level_name(cpu.level));
    put(t, ",");
    put_string(t, "features", hri_cpu_features(&cpu, features, sizeof features));
    put(t, ",");
    put_string(t, "kernels", hri_kernels_get((enum hri_kernel_level)cpu.level)->name);
    put(t, ",\"usable\":%u},", hri_cpu_usable_count());
}

static void put_topology(struct text *t)
{
    struct hri_topology *topology;
    if (hri_topology_create(NULL, NULL, &topology) != HR_OK) {
        put(t, "\"topology\":{");
        put_string(t, "error", hr_last_error());
        put(t, "},");
        return;
    }
    const struct hri_topology_info *i = hri_topology_info(topology);
    put(t,
        "\"topology\":{\"cpus\":%u,\"cores\":%u,\"packages\":%u,\"numa_nodes\":%u,\"l1d_bytes\":%"
        "zu,\"l2_bytes\":%zu,"
        "\"l3_bytes\":%zu,\"line_bytes\":%zu,",
        i->cpu_count, i->core_count, i->package_count, i->node_count, i->l1d_bytes, i->l2_bytes,
        i->l3_bytes, i->line_bytes);
    put_string(t, "source", i->source);
    put(t, "},");
    hri_topology_destroy(topology);
}

static void put_memory(struct text *t)
{
    struct hri_memory_info m;
    if (hri_memory_read(NULL, &m) != HR_OK) {
        put(t, "\"memory\":{");
        put_string(t, "error", hr_last_error());
        put(t, "},");
        return;
    }
    put(t,
        "\"memory\":{\"total_bytes\":%" PRIu64 ",\"available_bytes\":%" PRIu64
        ",\"cgroup_limit_bytes\":%" PRIu64 ",\"cgroup_version\":%u,",
        m.total_bytes, m.available_bytes, m.cgroup_limit_bytes, m.cgroup_version);
    if (m.memlock_bytes == UINT64_MAX) {
        put(t, "\"memlock_bytes\":null},");
    } else {
        put(t, "\"memlock_bytes\":%" PRIu64 "},", m.memlock_bytes);
    }
}

static void put_build(struct text *t)
{
    struct utsname u;
    put(t, "\"headrace\":{");
    put_string(t, "version", hr_version());
    put(t, ",");
    put_string(t, "compiler", HRI_BUILD_COMPILER);
#ifdef HRI_BUILD_LIBRARIES
    put(t, ",");
    put_string(t, "libraries", HRI_BUILD_LIBRARIES);
#endif
    put(t, "},");
    if (uname(&u) == 0) {
        put(t, "\"system\":{");
        put_string(t, "kernel", u.release);
        put(t, ",");
        put_string(t, "machine", u.machine);
        put(t, "},");
    }
    put(t, "\"recipes\":[");
    for (size_t i = 0; hr_recipe_name(i) != NULL; i++) {
        put(t, "%s\"%s\"", i > 0 ? "," : "", hr_recipe_name(i));
    }
    char cuda[DEVICE_BYTES_MAX];
    hri_device_info_json(cuda, sizeof cuda);
    put(t, "],\"cuda\":%s,", cuda);
}

hr_status_t hr_info_json(const char *file_dir, char **json_out)
{
    if (json_out == NULL) {
        return hri_error_set(HR_ERR_INVALID, "hr_info_json: no place for the text");
    }
    char *text = malloc(INFO_BYTES_MAX);
    if (text == NULL) {
        return hri_error_set(HR_ERR_NOMEM, "hr_info_json: out of memory");
    }
    struct text t = {.at = text, .left = INFO_BYTES_MAX};
    put(&t, "{");
    put_build(&t);
    put_cpu(&t);
    put_topology(&t);
    put_memory(&t);
    char probe[PROBE_BYTES_MAX];
    if (file_dir == NULL) {
        put(&t, "\"file_tier\":null}");
    } else if (hri_store_probe_json(file_dir, probe, sizeof probe) == HR_OK) {
        put(&t, "\"file_tier\":%s}", probe);
    } else {
        put(&t, "\"file_tier\":{");
        put_string(&t, "dir", file_dir);
        put(&t, ",");
        put_string(&t, "error", hr_last_error());
        put(&t, "}}");
    }
    *json_out = text;
    return HR_OK;
}

void hr_text_free(char *text)
{
    free(text);
}
