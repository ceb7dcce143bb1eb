/* The runtime handle: tiers, threads, kernels; creation in one order, undoing in the reverse one. */
#include "runtime/device_index.h"
#include "runtime/sequence.h"

#include "base/cpu.h"
#include "base/error.h"
#include "base/topology.h"
#include "index/linalg.h"
#include "offload/device_tier.h"
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define STRINGIFY2(x) #x
#define STRINGIFY(x)  STRINGIFY2(x)

const char *hr_version(void)
{
    return STRINGIFY(HR_VERSION_MAJOR) "." STRINGIFY(HR_VERSION_MINOR) "." STRINGIFY(
        HR_VERSION_PATCH);
}

const char *hr_stage_name(unsigned stage)
{
    static const char *const names[HR_STAGES] = {"append", "store", "index",
                                                 "select", "fetch", "attend"};
    return stage < HR_STAGES ? names[stage] : "?";
}

const char *hr_level_name(unsigned level)
{
    static const char *const names[HR_LEVELS] = {"summary", "sketch", "int8", "exact"};
    return level < HR_LEVELS ? names[level] : "?";
}

const char *hr_tier_name(unsigned tier)
{
    static const char *const names[HR_TIERS] = {"device", "host", "file"};
    return tier < HR_TIERS ? names[tier] : "?";
}

void hr_runtime_options_init(struct hr_runtime_options *options)
{
    memset(options, 0, sizeof *options);
    options->struct_size = sizeof *options;
    options->device_bytes = 256ull << 20;
    options->host_bytes = 1ull << 30;
    options->io_mode = HR_IO_AUTO;
}

static void *hook_alloc(void *context, size_t bytes, size_t alignment)
{
    struct hr_runtime *rt = context;
    return rt->user_alloc(rt->user_context, bytes, alignment);
}

static void hook_free(void *context, void *pointer, size_t bytes)
{
    struct hr_runtime *rt = context;
    (void)bytes;
    rt->user_free(rt->user_context, pointer);
}

static void log_forward(void *context, int level, const char *message)
{
    struct hr_runtime *rt = context;
    rt->log_fn(rt->log_context, (hr_log_level_t)level, message);
}

static hr_status_t options_check(const struct hr_runtime_options *o)
{
    if (o->struct_size != sizeof *o) {
        return hri_error_set(
            HR_ERR_VERSION,
            "runtime options: struct_size %zu where this library has %zu (use the _init function)",
            o->struct_size, sizeof *o);
    }
    if ((unsigned)o->io_mode > HR_IO_THREADS) {
        return hri_error_set(HR_ERR_INVALID, "runtime options: io_mode %d does not exist",
                             (int)o->io_mode);
    }
    if (o->file_dir != NULL && o->file_bytes == 0) {
        return hri_error_set(HR_ERR_INVALID,
                             "runtime options: file_bytes is 0; a file tier needs a cap");
    }
    if (o->n_threads > HRI_POOL_THREADS_MAX) {
        return hri_error_set(HR_ERR_INVALID, "runtime options: n_threads %u, at most %d",
                             o->n_threads, HRI_POOL_THREADS_MAX);
    }
    if (o->io_timeout_ns > HR_IO_TIMEOUT_NS_MAX) {
        return hri_error_set(
            HR_ERR_INVALID, "runtime options: io_timeout_ns is %llu; at most %llu (an hour)",
            (unsigned long long)o->io_timeout_ns, (unsigned long long)HR_IO_TIMEOUT_NS_MAX);
    }
    if ((o->alloc == NULL) != (o->free == NULL)) {
        return hri_error_set(HR_ERR_INVALID,
                             "runtime options: alloc and free must be set together");
    }
    return HR_OK;
}

static hr_status_t kernels_choose(struct hr_runtime *rt, const char *level_name)
{
    struct hri_cpu cpu;
    hr_status_t status =
        level_name != NULL ? hri_cpu_detect_level(level_name, &cpu) : hri_cpu_detect(&cpu);
    if (status != HR_OK) {
        return status;
    }
    rt->kernels = hri_kernels_get((enum hri_kernel_level)cpu.level);
    return HR_OK;
}

/* ops: the device of a test, or NULL. */
static hr_status_t device_open(struct hr_runtime *rt, const struct hr_runtime_options *o,
                               const struct hri_device_ops *ops)
{
    struct hri_device_options device = {.budget_bytes = o->device_bytes, .log = &rt->log};
    hr_status_t status = hri_device_find(o->device, ops, &device.ops, &device.ordinal);
    if (status == HR_ERR_INVALID) {
        return hri_error_set(status, "runtime options: %s", hr_last_error());
    }
    return status == HR_OK && device.ops != NULL ? hri_device_open(&device, &rt->gpu) : status;
}

static void host_pin(struct hr_runtime *rt)
{
    struct hri_host_run host = hri_store_host_run(rt->store);
    if (rt->gpu != NULL && host.bytes > 0) {
        rt->host_pinned = hri_device_pin(rt->gpu, host.base, host.bytes);
    }
}

static void host_unpin(struct hr_runtime *rt)
{
    struct hri_host_run host = hri_store_host_run(rt->store);
    if (rt->host_pinned) {
        hri_device_unpin(rt->gpu, host.base, host.bytes);
    }
}

static hr_status_t store_open(struct hr_runtime *rt, const struct hr_runtime_options *o)
{
    struct hri_store_options so = {
        .host_bytes = o->host_bytes,
        .file_dir = o->file_dir,
        .file_bytes = o->file_bytes,
        .io_mode = o->io_mode,
        .io = rt->io,
        .timeout_ns = o->io_timeout_ns,
        .wipe = o->file_wipe != 0,
        .alloc = &rt->alloc,
        .log = &rt->log,
    };
    return hri_store_create(&so, &rt->store);
}

hr_status_t hr_runtime_create(const struct hr_runtime_options *options, hr_runtime_t **runtime_out)
{
    return hri_runtime_create(options, hri_io_real(), runtime_out);
}

hr_status_t hri_runtime_create(const struct hr_runtime_options *options,
                               const struct hri_io_ops *io, hr_runtime_t **runtime_out)
{
    return hri_runtime_create_on(options, io, NULL, runtime_out);
}

hr_status_t hri_runtime_create_on(const struct hr_runtime_options *options,
                                  const struct hri_io_ops *io, const struct hri_device_ops *ops,
                                  hr_runtime_t **runtime_out)
{
    if (options == NULL || runtime_out == NULL) {
        return hri_error_set(HR_ERR_INVALID,
                             "hr_runtime_create: no options or no place for the runtime");
    }
    hr_status_t status = options_check(options);
    if (status != HR_OK) {
        return status;
    }
    struct hr_runtime *rt = options->alloc != NULL
                                ? options->alloc(options->alloc_context, sizeof *rt, 64)
                                : aligned_alloc(64, hri_round_up(sizeof *rt, 64));
    if (rt == NULL) {
        return hri_error_set(HR_ERR_NOMEM, "hr_runtime_create: out of memory");
    }
    memset(rt, 0, sizeof *rt);
    rt->io = io;
    rt->io_mode = options->io_mode;
    rt->user_alloc = options->alloc;
    rt->user_free = options->free;
    rt->user_context = options->alloc_context;
    rt->hooks = (struct hri_alloc_hooks){.alloc = hook_alloc, .free = hook_free, .ctx = rt};
    const struct hri_alloc_hooks *hooks = options->alloc != NULL ? &rt->hooks : NULL;
    hri_alloc_init(&rt->alloc, "scratch", 0, hooks);
    hri_alloc_init(&rt->device, "device tier", options->device_bytes, hooks);
    rt->log_fn = options->log;
    rt->log_context = options->log_context;
    rt->log = (struct hri_log){
        .fn = options->log != NULL ? log_forward : NULL, .ctx = rt, .level_max = HRI_LOG_DEBUG};
    rt->host_bytes = options->host_bytes;
    rt->file_bytes = options->file_dir != NULL ? options->file_bytes : 0;
    struct hri_scratch *scratch[] = {&rt->stream, &rt->queries, &rt->tiles, &rt->rows, &rt->group};
    for (size_t i = 0; i < sizeof scratch / sizeof *scratch; i++) {
        scratch[i]->alloc = &rt->alloc;
    }
    hri_linalg_start();
    status = kernels_choose(rt, options->cpu_level);
    if (status != HR_OK) {
        goto err_free;
    }
    status = options->run_tasks != NULL
                 ? hri_pool_create_over(&rt->alloc, options->n_threads, options->run_tasks,
                                        options->run_tasks_context, &rt->pool)
                 : hri_pool_create(&rt->alloc, options->n_threads, &rt->pool);
    if (status != HR_OK) {
        goto err_free;
    }
    rt->n_workers = hri_pool_size(rt->pool);
    status = device_open(rt, options, ops);
    if (status != HR_OK) {
        goto err_pool;
    }
    if (rt->gpu != NULL) {
        rt->device.cap_bytes =
            0; /* what the host keeps of the device tier is working memory there */
    }
    status = store_open(rt, options);
    if (status != HR_OK) {
        goto err_device;
    }
    host_pin(rt);
    *runtime_out = rt;
    return HR_OK;

err_device:
    hri_device_close(rt->gpu);
err_pool:
    hri_pool_destroy(rt->pool);
err_free:
    if (rt->user_free != NULL) {
        rt->user_free(rt->user_context, rt);
    } else {
        free(rt);
    }
    return status;
}

hr_status_t hr_runtime_destroy(hr_runtime_t *rt)
{
    if (rt == NULL) {
        return HR_OK;
    }
    if (rt->n_sequences != 0) {
        return hri_error_set(HR_ERR_STATE, "hr_runtime_destroy: %u of its sequences still exist",
                             rt->n_sequences);
    }
    host_unpin(rt);
    hri_scratch_forget(rt);
    hri_store_destroy(rt->store);
    hri_device_index_yield(rt, UINT64_MAX);
    hri_device_close(rt->gpu);
    hri_pool_destroy(rt->pool);
    hri_scratch_fini(&rt->stream);
    hri_scratch_fini(&rt->queries);
    hri_scratch_fini(&rt->tiles);
    hri_scratch_fini(&rt->rows);
    hri_scratch_fini(&rt->group);
    if (rt->user_free != NULL) {
        rt->user_free(rt->user_context, rt);
    } else {
        free(rt);
    }
    return HR_OK;
}

hr_status_t hr_runtime_stats_get(const hr_runtime_t *rt, struct hr_runtime_stats *stats_out)
{
    if (rt == NULL || stats_out == NULL) {
        return hri_error_set(HR_ERR_INVALID,
                             "hr_runtime_stats_get: no runtime or no place for the figures");
    }
    if (stats_out->struct_size != sizeof *stats_out) {
        return hri_error_set(HR_ERR_VERSION,
                             "hr_runtime_stats_get: struct_size %zu where this library has %zu",
                             stats_out->struct_size, sizeof *stats_out);
    }
    struct hri_store_stats st;
    hri_store_stats(rt->store, &st);
    stats_out->tier[HR_TIER_DEVICE] = (struct hr_tier_stats){.bytes_held = rt->device.live_bytes,
                                                             .bytes_peak = rt->device.peak_bytes,
                                                             .bytes_cap = rt->device.cap_bytes};
    if (rt->gpu != NULL) {
        stats_out->tier[HR_TIER_DEVICE] = hri_device_stats(rt->gpu);
    }
    stats_out->tier[HR_TIER_HOST] = st.host;
    stats_out->tier[HR_TIER_FILE] = st.file;
    stats_out->scratch_bytes = rt->alloc.live_bytes + (rt->gpu != NULL ? rt->device.live_bytes : 0);
    stats_out->scratch_bytes_peak =
        rt->alloc.peak_bytes + (rt->gpu != NULL ? rt->device.peak_bytes : 0);
    stats_out->allocations = rt->alloc.alloc_count + rt->device.alloc_count;
    stats_out->file_reads = st.file_reads;
    stats_out->file_writes = st.file_writes;
    stats_out->file_bytes_read = st.file_bytes_read;
    stats_out->file_bytes_written = st.file_bytes_written;
    stats_out->io_mode = st.io_mode;
    stats_out->cpu_level = rt->kernels->name;
    return HR_OK;
}
