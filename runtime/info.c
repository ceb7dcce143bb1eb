/* What this build and this machine can do, as JSON text. */
#include "runtime/sequence.h"

#include "base/fmt.h"
#include "base/cpu.h"
#include "base/error.h"
#include "base/threads.h"
#include "base/topology.h"
#include "kernels/device.h"
#include <inttypes.h>
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

/* Strings of the system can hold anything; JSON cannot. */
static void put_string(struct hri_text *t, const char *name, const char *value)
{
    hri_text_put(t, "\"%s\":\"", name);
    for (const unsigned char *c = (const unsigned char *)value; *c != '\0'; c++) {
        if (*c == '"' || *c == '\\') {
            hri_text_put(t, "\\%c", *c);
        } else if (*c < 0x20) {
            hri_text_put(t, "\\u%04x", *c);
        } else {
            hri_text_put(t, "%c", *c);
        }
    }
    hri_text_put(t, "\"");
}

static void put_cpu(struct hri_text *t)
{
    struct hri_cpu cpu;
    char features[512];
    if (hri_cpu_detect(&cpu) != HR_OK) {
        hri_text_put(t, "\"cpu\":{");
        put_string(t, "error", hr_last_error());
        hri_text_put(t, "},");
        return;
    }
    hri_text_put(t, "\"cpu\":{");
    put_string(t, "brand", cpu.brand);
    hri_text_put(t, ",");
    put_string(t, "level", hri_cpu_level_name(cpu.level));
    hri_text_put(t, ",");
    put_string(t, "features", hri_cpu_features(&cpu, features, sizeof features));
    hri_text_put(t, ",");
    put_string(t, "kernels", hri_kernels_get((enum hri_kernel_level)cpu.level)->name);
    hri_text_put(t, ",\"usable\":%u},", hri_cpu_usable_count());
}

static void put_topology(struct hri_text *t)
{
    struct hri_topology *topology;
    if (hri_topology_create(NULL, NULL, &topology) != HR_OK) {
        hri_text_put(t, "\"topology\":{");
        put_string(t, "error", hr_last_error());
        hri_text_put(t, "},");
        return;
    }
    const struct hri_topology_info *i = hri_topology_info(topology);
    hri_text_put(
        t,
        "\"topology\":{\"cpus\":%u,\"cores\":%u,\"packages\":%u,\"numa_nodes\":%u,\"l1d_bytes\":%"
        "zu,\"l2_bytes\":%zu,"
        "\"l3_bytes\":%zu,\"line_bytes\":%zu,",
        i->cpu_count, i->core_count, i->package_count, i->node_count, i->l1d_bytes, i->l2_bytes,
        i->l3_bytes, i->line_bytes);
    put_string(t, "source", i->source);
    hri_text_put(t, "},");
    hri_topology_destroy(topology);
}

static void put_memory(struct hri_text *t)
{
    struct hri_memory_info m;
    if (hri_memory_read(NULL, &m) != HR_OK) {
        hri_text_put(t, "\"memory\":{");
        put_string(t, "error", hr_last_error());
        hri_text_put(t, "},");
        return;
    }
    hri_text_put(t,
                 "\"memory\":{\"total_bytes\":%" PRIu64 ",\"available_bytes\":%" PRIu64
                 ",\"cgroup_limit_bytes\":%" PRIu64 ",\"cgroup_version\":%u,",
                 m.total_bytes, m.available_bytes, m.cgroup_limit_bytes, m.cgroup_version);
    if (m.memlock_bytes == UINT64_MAX) {
        hri_text_put(t, "\"memlock_bytes\":null},");
    } else {
        hri_text_put(t, "\"memlock_bytes\":%" PRIu64 "},", m.memlock_bytes);
    }
}

static void put_build(struct hri_text *t)
{
    struct utsname u;
    hri_text_put(t, "\"headrace\":{");
    put_string(t, "version", hr_version());
    hri_text_put(t, ",");
    put_string(t, "compiler", HRI_BUILD_COMPILER);
#ifdef HRI_BUILD_LIBRARIES
    hri_text_put(t, ",");
    put_string(t, "libraries", HRI_BUILD_LIBRARIES);
#endif
    hri_text_put(t, "},");
    if (uname(&u) == 0) {
        hri_text_put(t, "\"system\":{");
        put_string(t, "kernel", u.release);
        hri_text_put(t, ",");
        put_string(t, "machine", u.machine);
        hri_text_put(t, "},");
    }
    hri_text_put(t, "\"recipes\":[");
    for (size_t i = 0; hr_recipe_name(i) != NULL; i++) {
        hri_text_put(t, "%s\"%s\"", i > 0 ? "," : "", hr_recipe_name(i));
    }
    char cuda[DEVICE_BYTES_MAX];
    hri_device_info_json(cuda, sizeof cuda);
    hri_text_put(t, "],\"cuda\":%s,", cuda);
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
    struct hri_text t = {.at = text, .left = INFO_BYTES_MAX};
    hri_text_put(&t, "{");
    put_build(&t);
    put_cpu(&t);
    put_topology(&t);
    put_memory(&t);
    char probe[PROBE_BYTES_MAX];
    if (file_dir == NULL) {
        hri_text_put(&t, "\"file_tier\":null}");
    } else if (hri_store_probe_json(file_dir, probe, sizeof probe) == HR_OK) {
        hri_text_put(&t, "\"file_tier\":%s}", probe);
    } else {
        hri_text_put(&t, "\"file_tier\":{");
        put_string(&t, "dir", file_dir);
        hri_text_put(&t, ",");
        put_string(&t, "error", hr_last_error());
        hri_text_put(&t, "}}");
    }
    *json_out = text;
    return HR_OK;
}

void hr_text_free(char *text)
{
    free(text);
}
