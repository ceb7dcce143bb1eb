/*
 * What the machine is made of: CPUs, caches, NUMA nodes (through hwloc where it is there, else
 * from sysconf), and how much memory there is to use (from /proc/meminfo and the control group,
 * because hwloc's figures can be wrong in virtual machines).
 */
#ifndef HRI_BASE_TOPOLOGY_H
#define HRI_BASE_TOPOLOGY_H

#include <stddef.h>
#include <stdint.h>

#include "base/alloc.h"
#include "base/status.h"

#define HRI_NUMA_NODES_MAX 64

struct hri_topology;

struct hri_topology_info {
    unsigned cpu_count; /* hardware threads this process may run on */
    unsigned core_count;
    unsigned package_count;
    unsigned node_count; /* NUMA nodes, at least 1 */
    size_t l1d_bytes;    /* of one cache; 0: not known */
    size_t l2_bytes;
    size_t l3_bytes;
    size_t line_bytes;
    const char *source; /* "hwloc 2.9.0", "hwloc 2.9.0 synthetic" or "sysconf" */
};

/*
 * synthetic NULL: this machine. Otherwise a description such as "pack:2 [numa] l3:1 core:8 pu:2",
 * for tests; binding then does nothing and succeeds. Without hwloc a description is
 * HR_ERR_UNSUPPORTED.
 */
hr_status_t hri_topology_create(struct hri_alloc *alloc, const char *synthetic,
                                struct hri_topology **topology_out);
void hri_topology_destroy(struct hri_topology *topology);
const struct hri_topology_info *hri_topology_info(const struct hri_topology *topology);

/* CPUs of a node; 0 for a node that is not there. */
unsigned hri_topology_node_cpus(const struct hri_topology *topology, unsigned node);
/* The node of the index-th CPU (0 to cpu_count - 1, in the topology's order). */
unsigned hri_topology_cpu_node(const struct hri_topology *topology, unsigned cpu_index);

/*
 * Binding is a wish: HR_ERR_UNSUPPORTED where the system refuses it, which callers log and go on
 * from.
 */
hr_status_t hri_topology_bind_thread_node(struct hri_topology *topology, unsigned node);
hr_status_t hri_topology_bind_thread_cpu(struct hri_topology *topology, unsigned cpu_index);
hr_status_t hri_topology_unbind_thread(struct hri_topology *topology);

/* For pages that are not touched yet; the same answers. */
hr_status_t hri_topology_bind_memory(struct hri_topology *topology, void *base, size_t bytes,
                                     unsigned node);

/*
 * CPUs the calling process may use now: affinity mask and control-group quota (rounded up); at
 * least 1.
 */
unsigned hri_cpu_usable_count(void);

struct hri_memory_info {
    uint64_t total_bytes; /* MemTotal */
    uint64_t
        available_bytes; /* MemAvailable, or what the control group leaves, whichever is less */
    uint64_t cgroup_limit_bytes; /* 0: no limit */
    uint64_t cgroup_used_bytes;  /* without reclaimable file pages where the group tells them */
    unsigned cgroup_version;     /* 0: none found */
    uint64_t memlock_bytes;      /* RLIMIT_MEMLOCK; UINT64_MAX: no limit */
};

/* root NULL or "": the running system. Tests pass a folder that holds proc/ and sys/fs/cgroup/. */
hr_status_t hri_memory_read(const char *root, struct hri_memory_info *info_out);

#endif
