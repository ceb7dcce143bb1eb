/* A device as the library sees it: statuses for error numbers, a budget, and the memory of a loss. */
#include "kernels/device.h"

#include "base/alloc.h"
#include "base/assert.h"
#include "base/error.h"
#include "base/fmt.h"
#include "base/parse.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct hri_device {
    const struct hri_device_ops *ops;
    struct hri_device_facts facts;
    struct hri_log *log;
    void *stream;
    uint32_t ordinal;
    uint64_t budget_bytes, held_bytes, peak_bytes;
    bool lost, pageable_said;
    char loss[256];
};

/* -- opening -- */

hr_status_t hri_device_find(const char *name, const struct hri_device_ops *ops,
                            const struct hri_device_ops **ops_out, uint32_t *ordinal_out)
{
    *ops_out = NULL;
    *ordinal_out = 0;
    if (name == NULL || strcmp(name, "cpu") == 0)
        return HR_OK;
    const char *known = ops != NULL ? ops->name : "cuda";
    const size_t n = strlen(known);
    uint64_t ordinal = 0;
    const bool numbered = strncmp(name, known, n) == 0 && name[n] == ':';
    if ((!numbered && strcmp(name, known) != 0) ||
        (numbered && hr_parse_count(name + n + 1, 0, UINT32_MAX, &ordinal) != HR_OK))
        return hri_error_set(HR_ERR_INVALID, "device \"%s\" is none of cpu, %s, %s:NUMBER", name,
                             known, known);
    *ops_out = ops != NULL ? ops : hri_device_cuda_get();
    *ordinal_out = (uint32_t)ordinal;
    return *ops_out != NULL
               ? HR_OK
               : hri_error_set(HR_ERR_UNSUPPORTED,
                               "device cuda: this build has no CUDA (HEADRACE_CUDA=ON makes one)");
}

static void version_text(uint32_t version, char text[16])
{
    snprintf(text, 16, "%u.%u", version / 1000, version % 1000 / 10);
}

static hr_status_t none_found(const struct hri_device_ops *ops, int error, uint32_t driver,
                              uint32_t runtime)
{
    char have[16], need[16];
    version_text(driver, have);
    version_text(runtime, need);
    if (driver == 0)
        return hri_error_set(HR_ERR_UNSUPPORTED, "device %s: no driver is installed", ops->name);
    if (ops->fault(error) == HRI_DEVICE_OLD_DRIVER)
        return hri_error_set(
            HR_ERR_UNSUPPORTED,
            "device %s: the driver is too old: it is for CUDA %s, this build needs %s", ops->name,
            have, need);
    return hri_error_set(HR_ERR_UNSUPPORTED, "device %s: no device: %s", ops->name,
                         error != 0 ? ops->text(error) : "the driver finds none");
}

static hr_status_t maps_check(const struct hri_device *device)
{
    return device->facts.maps_host
               ? HR_OK
               : hri_error_set(HR_ERR_UNSUPPORTED,
                               "device %s:%u, %s: it cannot use host memory in place",
                               device->ops->name, device->ordinal, device->facts.name);
}

hr_status_t hri_device_budget(struct hri_device *device, uint64_t bytes, const char *what)
{
    const struct hri_device_facts *facts = &device->facts;
    if (facts->free_bytes < bytes)
        return hri_error_set(HR_ERR_NOMEM,
                             "device %s:%u, %s: %" PRIu64 " bytes are wanted (%s), %" PRIu64
                             " of %" PRIu64 " are free",
                             device->ops->name, device->ordinal, facts->name, bytes, what,
                             facts->free_bytes, facts->memory_bytes);
    device->budget_bytes = bytes;
    return HR_OK;
}

static hr_status_t code_check(struct hri_device *device, uint32_t ordinal)
{
    const struct hri_device_ops *ops = device->ops;
    int error = ops->launch->nothing(device->stream);
    if (error == 0)
        error = ops->stream_wait(device->stream);
    if (error != 0 && ops->fault(error) == HRI_DEVICE_NO_CODE)
        return hri_error_set(
            HR_ERR_UNSUPPORTED,
            "device %s:%u, %s: this build has no code for its architecture (%u.%u)", ops->name,
            ordinal, device->facts.name, device->facts.arch / 10, device->facts.arch % 10);
    return hri_device_check(device, error, "the first launch");
}

hr_status_t hri_device_open(const struct hri_device_options *o, struct hri_device **device_out)
{
    uint32_t driver = 0, runtime = 0, n = 0;
    int error = o->ops->count(&driver, &runtime, &n);
    if (error != 0 || n == 0)
        return none_found(o->ops, error, driver, runtime);
    if (o->ordinal >= n)
        return hri_error_set(HR_ERR_UNSUPPORTED, "device %s:%u: there are %u, the first is 0",
                             o->ops->name, o->ordinal, n);
    struct hri_device *device = calloc(1, sizeof *device);
    if (device == NULL)
        return hri_error_set(HR_ERR_NOMEM, "device: out of memory");
    device->ops = o->ops;
    device->log = o->log;
    device->ordinal = o->ordinal;
    error = o->ops->open(o->ordinal, &device->facts);
    hr_status_t status = hri_device_check(device, error, "opening");
    device->facts.n_devices = n;
    if (status == HR_OK)
        status = maps_check(device);
    if (status == HR_OK)
        status = hri_device_budget(device, o->budget_bytes, "device_bytes");
    if (status == HR_OK)
        status = hri_device_check(device, o->ops->stream_create(&device->stream), "a stream");
    if (status != HR_OK)
        goto err_free;
    o->ops->launch->set_machine(
        (struct hri_cuda_machine){device->facts.sm_count, device->facts.arch});
    status = code_check(device, o->ordinal);
    if (status != HR_OK)
        goto err_stream;
    *device_out = device;
    return HR_OK;

err_stream:
    o->ops->stream_destroy(device->stream);
err_free:
    free(device);
    return status;
}

void hri_device_close(struct hri_device *device)
{
    if (device == NULL)
        return;
    HRI_ASSERT(device->held_bytes == 0);
    device->ops->stream_destroy(device->stream);
    free(device);
}

const struct hri_device_facts *hri_device_facts(const struct hri_device *device)
{
    return &device->facts;
}

const struct hri_device_ops *hri_device_ops(const struct hri_device *device)
{
    return device->ops;
}

void *hri_device_stream(const struct hri_device *device)
{
    return device->stream;
}

struct hr_tier_stats hri_device_stats(const struct hri_device *device)
{
    return (struct hr_tier_stats){.bytes_held = device->held_bytes,
                                  .bytes_peak = device->peak_bytes,
                                  .bytes_cap = device->budget_bytes};
}

/* -- errors -- */

bool hri_device_is_lost(const struct hri_device *device)
{
    return device->lost;
}

hr_status_t hri_device_alive(struct hri_device *device)
{
    return device->lost ? hri_error_set(HR_ERR_DEVICE, "%s", device->loss) : HR_OK;
}

hr_status_t hri_device_check(struct hri_device *device, int error, const char *what)
{
    if (error == 0)
        return HR_OK;
    HRI_TRY(hri_device_alive(device));
    const char *text = device->ops->text(error);
    switch (device->ops->fault(error)) {
    case HRI_DEVICE_NO_MEMORY:
        return hri_error_set(HR_ERR_NOMEM, "device %s: %s: out of memory", device->ops->name, what);
    case HRI_DEVICE_LOST:
        device->lost = true;
        snprintf(device->loss, sizeof device->loss,
                 "device %s is lost: %s: %s; rows in host memory and in the file stay readable",
                 device->ops->name, what, text);
        hri_log_error(device->log, "%s", device->loss);
        return hri_device_alive(device);
    default:
        return hri_error_set(HR_ERR_DEVICE, "device %s: %s: %s", device->ops->name, what, text);
    }
}

/* -- memory -- */

hr_status_t hri_device_alloc(struct hri_device *device, const char *what, size_t bytes,
                             struct hri_device_memory *memory_out)
{
    HRI_TRY(hri_device_alive(device));
    const uint64_t held = device->held_bytes, cap = device->budget_bytes;
    if (bytes > cap - held)
        return hri_error_set(HR_ERR_BUDGET,
                             "device tier: %" PRIu64 " bytes are not enough: %s needs %zu, %" PRIu64
                             " are in use",
                             cap, what, bytes, held);
    void *base = NULL;
    const int error = device->ops->alloc(bytes > 0 ? bytes : 1, &base);
    if (error != 0 && device->ops->fault(error) == HRI_DEVICE_NO_MEMORY)
        return hri_error_set(HR_ERR_NOMEM,
                             "device %s: out of memory: %s needs %zu bytes beside the %" PRIu64
                             " in use",
                             device->ops->name, what, bytes, held);
    HRI_TRY(hri_device_check(device, error, what));
    device->held_bytes = held + bytes;
    if (device->held_bytes > device->peak_bytes)
        device->peak_bytes = device->held_bytes;
    *memory_out = (struct hri_device_memory){base, bytes};
    return HR_OK;
}

void hri_device_free(struct hri_device *device, struct hri_device_memory *memory)
{
    if (memory->base == NULL)
        return;
    device->ops->free(memory->base);
    device->held_bytes -= memory->bytes;
    *memory = (struct hri_device_memory){0};
}

static void say_pageable(struct hri_device *device, size_t bytes)
{
    if (!device->pageable_said)
        hri_log_warn(device->log,
                     "device %s: pinning %zu bytes of host memory was refused (see ulimit -l); "
                     "blocks are copied by the host instead, which is slower",
                     device->ops->name, bytes);
    device->pageable_said = true;
}

hr_status_t hri_device_buffer_create(struct hri_device *device, size_t bytes,
                                     struct hri_device_buffer *buffer_out)
{
    HRI_TRY(hri_device_alive(device));
    struct hri_device_buffer buffer = {.bytes = bytes};
    const size_t whole = hri_round_up(bytes > 0 ? bytes : 1, 4096);
    buffer.pinned = device->ops->host_alloc(whole, &buffer.base) == 0;
    if (!buffer.pinned) {
        say_pageable(device, bytes);
        buffer.base = aligned_alloc(4096, whole);
        if (buffer.base == NULL)
            return hri_error_set(HR_ERR_NOMEM, "device %s: out of host memory (%zu bytes)",
                                 device->ops->name, bytes);
    }
    memset(buffer.base, 0, whole);
    *buffer_out = buffer;
    return HR_OK;
}

void hri_device_buffer_destroy(struct hri_device *device, struct hri_device_buffer *buffer)
{
    if (buffer->base == NULL)
        return;
    if (buffer->pinned)
        device->ops->host_free(buffer->base);
    else
        free(buffer->base);
    *buffer = (struct hri_device_buffer){0};
}

/* Bytes of the chunk that begins at `first`. */
static size_t chunk_of(const struct hri_device *device, size_t first, size_t bytes)
{
    const size_t most = device->ops->pin_bytes_max;
    return bytes - first < most ? bytes - first : most;
}

static void unpin(struct hri_device *device, unsigned char *base, size_t bytes)
{
    for (size_t at = 0; at < bytes; at += chunk_of(device, at, bytes))
        device->ops->unpin(base + at);
}

bool hri_device_pin(struct hri_device *device, void *base, size_t bytes)
{
    if (device->lost)
        return false;
    for (size_t at = 0; at < bytes; at += chunk_of(device, at, bytes)) {
        if (device->ops->pin((unsigned char *)base + at, chunk_of(device, at, bytes)) == 0)
            continue;
        unpin(device, base, at);
        say_pageable(device, bytes);
        return false;
    }
    return true;
}

void hri_device_unpin(struct hri_device *device, void *base, size_t bytes)
{
    unpin(device, base, bytes);
}

/* -- the stream -- */

hr_status_t hri_device_copy_rows(struct hri_device *device, void *to, size_t to_stride,
                                 const void *from, size_t from_stride, size_t bytes, size_t n)
{
    if (bytes == 0 || n == 0)
        return HR_OK;
    HRI_TRY(hri_device_alive(device));
    return hri_device_check(
        device, device->ops->copy(to, to_stride, from, from_stride, bytes, n, device->stream),
        "a copy");
}

hr_status_t hri_device_copy(struct hri_device *device, void *to, const void *from, size_t bytes)
{
    return hri_device_copy_rows(device, to, bytes, from, bytes, bytes, 1);
}

hr_status_t hri_device_fill(struct hri_device *device, void *memory, int byte, size_t bytes)
{
    if (bytes == 0)
        return HR_OK;
    HRI_TRY(hri_device_alive(device));
    return hri_device_check(device, device->ops->fill(memory, byte, bytes, device->stream),
                            "a fill");
}

hr_status_t hri_device_wait(struct hri_device *device)
{
    HRI_TRY(hri_device_alive(device));
    return hri_device_check(device, device->ops->stream_wait(device->stream), "waiting");
}

void hri_device_range_begin(const struct hri_device *device, const char *name)
{
    device->ops->range_begin(name);
}

void hri_device_range_end(const struct hri_device *device)
{
    device->ops->range_end();
}

/* -- headrace info -- */

static void put_nvml(struct hri_text *t, const char *pci)
{
    struct hri_nvml_facts f;
    if (!hri_nvml_read(pci, &f))
        return;
    hri_text_put(t,
                 ",\"driver_version\":\"%s\",\"sm_mhz\":%u,\"sm_mhz_max\":%u,\"memory_mhz\":%u,"
                 "\"memory_mhz_max\":%u,\"power_w\":%u,\"temperature_c\":%u,\"pcie_generation\":%u,"
                 "\"pcie_lanes\":%u",
                 f.driver, f.sm_mhz, f.sm_mhz_max, f.memory_mhz, f.memory_mhz_max, f.power_w,
                 f.temperature_c, f.pcie_generation, f.pcie_lanes);
}

static void put_device(struct hri_text *t, const struct hri_device_ops *ops, uint32_t ordinal)
{
    struct hri_device_facts f = {0};
    int error = ops->open(ordinal, &f);
    if (error != 0) {
        hri_text_put(t, "{\"error\":\"%s\"}", ops->text(error));
        return;
    }
    hri_text_put(t,
                 "{\"name\":\"%s\",\"arch\":%u,\"sms\":%u,\"memory_bytes\":%" PRIu64
                 ",\"free_bytes\":%" PRIu64 ",\"pci\":\"%s\",\"maps_host_memory\":%s",
                 f.name, f.arch, f.sm_count, f.memory_bytes, f.free_bytes, f.pci,
                 f.maps_host ? "true" : "false");
    put_nvml(t, f.pci);
    hri_text_put(t, "}");
}

void hri_device_info_json(char *buf, size_t buf_bytes)
{
    const struct hri_device_ops *ops = hri_device_cuda_get();
    struct hri_text t = {buf, buf_bytes};
    if (ops == NULL) {
        hri_text_put(&t, "null");
        return;
    }
    uint32_t driver = 0, runtime = 0, n = 0;
    char text[16];
    int error = ops->count(&driver, &runtime, &n);
    version_text(runtime, text);
    hri_text_put(&t, "{\"runtime\":\"%s\",", text);
    version_text(driver, text);
    hri_text_put(&t, "\"driver\":\"%s\",\"devices\":[", driver != 0 ? text : "");
    if (error != 0 || n == 0) {
        (void)none_found(ops, error, driver, runtime);
        hri_text_put(&t, "],\"error\":\"%s\"}", hr_last_error());
        hri_error_clear();
        return;
    }
    for (uint32_t i = 0; i < n; i++) {
        hri_text_put(&t, "%s", i > 0 ? "," : "");
        put_device(&t, ops, i);
    }
    hri_text_put(&t, "]}");
}

#if !HRI_DEVICE_CUDA
/* Weak: the tool of a test has the emulator in its place (tests/emu/emu_headrace.c). */
__attribute__((weak)) const struct hri_device_ops *hri_device_cuda_get(void)
{
    return NULL;
}
#endif
