#include "base/topology.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"

#if HR_HAVE_HWLOC

#include <hwloc.h>

struct hri_topology {
    struct hri_topology_info info;
    struct hri_alloc *alloc;
    hwloc_topology_t hwloc;
    bool synthetic;
    char source[48];
};

static size_t cache_bytes(hwloc_topology_t hwloc, hwloc_obj_type_t type, size_t *line_bytes)
{
    hwloc_obj_t cache = hwloc_get_next_obj_by_type(hwloc, type, NULL);
    if (cache == NULL || cache->attr == NULL)
        return 0;
    if (cache->attr->cache.linesize != 0)
        *line_bytes = cache->attr->cache.linesize;
    return cache->attr->cache.size;
}

static unsigned count_at_least_one(hwloc_topology_t hwloc, hwloc_obj_type_t type)
{
    int count = hwloc_get_nbobjs_by_type(hwloc, type);
    return count > 0 ? (unsigned)count : 1;
}

static void fill_info(struct hri_topology *topology)
{
    hwloc_topology_t hwloc = topology->hwloc;
    struct hri_topology_info *info = &topology->info;
    info->cpu_count = count_at_least_one(hwloc, HWLOC_OBJ_PU);
    info->core_count = count_at_least_one(hwloc, HWLOC_OBJ_CORE);
    info->package_count = count_at_least_one(hwloc, HWLOC_OBJ_PACKAGE);
    info->node_count = count_at_least_one(hwloc, HWLOC_OBJ_NUMANODE);
    info->line_bytes = 64;
    info->l3_bytes = cache_bytes(hwloc, HWLOC_OBJ_L3CACHE, &info->line_bytes);
    info->l2_bytes = cache_bytes(hwloc, HWLOC_OBJ_L2CACHE, &info->line_bytes);
    info->l1d_bytes = cache_bytes(hwloc, HWLOC_OBJ_L1CACHE, &info->line_bytes);
    snprintf(topology->source, sizeof topology->source, "hwloc %s%s", HWLOC_VERSION,
             topology->synthetic ? " synthetic" : "");
    info->source = topology->source;
}

static hr_status_t load(struct hri_topology *topology, const char *synthetic)
{
    if (hwloc_topology_init(&topology->hwloc) != 0)
        return hri_error_set(HR_ERR_NOMEM, "hwloc cannot start: %s", strerror(errno));
    topology->synthetic = synthetic != NULL;
    if (synthetic != NULL && hwloc_topology_set_synthetic(topology->hwloc, synthetic) != 0) {
        hri_error_set(HR_ERR_INVALID, "'%.120s' is not a topology that hwloc understands",
                      synthetic);
        goto err_topology;
    }
    if (hwloc_topology_load(topology->hwloc) != 0) {
        hri_error_set(HR_ERR_UNSUPPORTED, "hwloc cannot read the topology: %s", strerror(errno));
        goto err_topology;
    }
    return HR_OK;

err_topology:
    hwloc_topology_destroy(topology->hwloc);
    return synthetic != NULL ? HR_ERR_INVALID : HR_ERR_UNSUPPORTED;
}

hr_status_t hri_topology_create(struct hri_alloc *alloc, const char *synthetic,
                                struct hri_topology **topology_out)
{
    struct hri_topology *topology = hri_calloc(alloc, 1, sizeof *topology);
    if (topology == NULL)
        return hri_alloc_status();
    topology->alloc = alloc;
    hr_status_t status = load(topology, synthetic);
    if (status != HR_OK) {
        hri_free(alloc, topology);
        return status;
    }
    fill_info(topology);
    *topology_out = topology;
    return HR_OK;
}

void hri_topology_destroy(struct hri_topology *topology)
{
    if (topology == NULL)
        return;
    hwloc_topology_destroy(topology->hwloc);
    hri_free(topology->alloc, topology);
}

static hwloc_obj_t node_object(const struct hri_topology *topology, unsigned node)
{
    return hwloc_get_obj_by_type(topology->hwloc, HWLOC_OBJ_NUMANODE, node);
}

unsigned hri_topology_node_cpus(const struct hri_topology *topology, unsigned node)
{
    hwloc_obj_t object = node_object(topology, node);
    int count = object != NULL ? hwloc_bitmap_weight(object->cpuset) : 0;
    return count > 0 ? (unsigned)count : 0;
}

unsigned hri_topology_cpu_node(const struct hri_topology *topology, unsigned cpu_index)
{
    hwloc_obj_t cpu = hwloc_get_obj_by_type(topology->hwloc, HWLOC_OBJ_PU, cpu_index);
    for (unsigned node = 0; cpu != NULL && node < topology->info.node_count; node++) {
        hwloc_obj_t object = node_object(topology, node);
        if (object != NULL && hwloc_bitmap_isset(object->cpuset, cpu->os_index))
            return node;
    }
    return 0;
}

static hr_status_t bind_thread(struct hri_topology *topology, hwloc_const_cpuset_t set)
{
    if (topology->synthetic)
        return HR_OK;
    if (hwloc_set_cpubind(topology->hwloc, set, HWLOC_CPUBIND_THREAD) != 0)
        return hri_error_set(HR_ERR_UNSUPPORTED, "cannot bind a thread: %s", strerror(errno));
    return HR_OK;
}

hr_status_t hri_topology_bind_thread_node(struct hri_topology *topology, unsigned node)
{
    hwloc_obj_t object = node_object(topology, node);
    if (object == NULL)
        return hri_error_set(HR_ERR_INVALID, "there is no node %u; the machine has %u", node,
                             topology->info.node_count);
    return bind_thread(topology, object->cpuset);
}

hr_status_t hri_topology_bind_thread_cpu(struct hri_topology *topology, unsigned cpu_index)
{
    hwloc_obj_t object = hwloc_get_obj_by_type(topology->hwloc, HWLOC_OBJ_PU, cpu_index);
    if (object == NULL)
        return hri_error_set(HR_ERR_INVALID, "there is no cpu %u; the machine has %u", cpu_index,
                             topology->info.cpu_count);
    return bind_thread(topology, object->cpuset);
}

hr_status_t hri_topology_unbind_thread(struct hri_topology *topology)
{
    return bind_thread(topology, hwloc_topology_get_topology_cpuset(topology->hwloc));
}

hr_status_t hri_topology_bind_memory(struct hri_topology *topology, void *base, size_t bytes,
                                     unsigned node)
{
    hwloc_obj_t object = node_object(topology, node);
    if (object == NULL)
        return hri_error_set(HR_ERR_INVALID, "there is no node %u; the machine has %u", node,
                             topology->info.node_count);
    if (topology->synthetic)
        return HR_OK;
    if (hwloc_set_area_membind(topology->hwloc, base, bytes, object->nodeset, HWLOC_MEMBIND_BIND,
                               HWLOC_MEMBIND_BYNODESET) != 0)
        return hri_error_set(HR_ERR_UNSUPPORTED, "cannot bind memory to node %u: %s", node,
                             strerror(errno));
    return HR_OK;
}

#else

struct hri_topology {
    struct hri_topology_info info;
    struct hri_alloc *alloc;
};

static size_t sysconf_bytes(int name)
{
    long value = sysconf(name);
    return value > 0 ? (size_t)value : 0;
}

hr_status_t hri_topology_create(struct hri_alloc *alloc, const char *synthetic,
                                struct hri_topology **topology_out)
{
    if (synthetic != NULL)
        return hri_error_set(HR_ERR_UNSUPPORTED,
                             "a synthetic topology needs hwloc, which this build lacks");
    struct hri_topology *topology = hri_calloc(alloc, 1, sizeof *topology);
    if (topology == NULL)
        return hri_alloc_status();
    unsigned cpu_count = hri_cpu_usable_count();
    size_t line_bytes = sysconf_bytes(_SC_LEVEL1_DCACHE_LINESIZE);
    topology->alloc = alloc;
    topology->info = (struct hri_topology_info){
        .cpu_count = cpu_count,
        .core_count = cpu_count,
        .package_count = 1,
        .node_count = 1,
        .l1d_bytes = sysconf_bytes(_SC_LEVEL1_DCACHE_SIZE),
        .l2_bytes = sysconf_bytes(_SC_LEVEL2_CACHE_SIZE),
        .l3_bytes = sysconf_bytes(_SC_LEVEL3_CACHE_SIZE),
        .line_bytes = line_bytes != 0 ? line_bytes : 64,
        .source = "sysconf",
    };
    *topology_out = topology;
    return HR_OK;
}

void hri_topology_destroy(struct hri_topology *topology)
{
    if (topology != NULL)
        hri_free(topology->alloc, topology);
}

unsigned hri_topology_node_cpus(const struct hri_topology *topology, unsigned node)
{
    return node == 0 ? topology->info.cpu_count : 0;
}

unsigned hri_topology_cpu_node(const struct hri_topology *topology, unsigned cpu_index)
{
    (void)topology;
    (void)cpu_index;
    return 0;
}

static hr_status_t no_binding(void)
{
    return hri_error_set(HR_ERR_UNSUPPORTED, "binding needs hwloc, which this build lacks");
}

hr_status_t hri_topology_bind_thread_node(struct hri_topology *topology, unsigned node)
{
    (void)topology;
    (void)node;
    return no_binding();
}

hr_status_t hri_topology_bind_thread_cpu(struct hri_topology *topology, unsigned cpu_index)
{
    (void)topology;
    (void)cpu_index;
    return no_binding();
}

hr_status_t hri_topology_unbind_thread(struct hri_topology *topology)
{
    (void)topology;
    return HR_OK;
}

hr_status_t hri_topology_bind_memory(struct hri_topology *topology, void *base, size_t bytes,
                                     unsigned node)
{
    (void)topology;
    (void)base;
    (void)bytes;
    (void)node;
    return no_binding();
}

#endif

const struct hri_topology_info *hri_topology_info(const struct hri_topology *topology)
{
    return &topology->info;
}
