/* How much memory there is to use: /proc/meminfo and the control group. */
#include <errno.h>
#include <math.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/error.h"
#include "base/topology.h"

#define PATH_BYTES_MAX   1024
#define CGROUP_DEPTH_MAX 32

/* A v1 group without a limit reports a number near 2^63. */
#define NO_LIMIT_BYTES ((uint64_t)1 << 60)

/* The "name: value kB" or "name value" line of a file, in the file's unit. */
static bool read_field(const char *path, const char *name, uint64_t *value_out)
{
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return false;
    char line[256];
    size_t length = strlen(name);
    bool found = false;
    while (!found && fgets(line, sizeof line, file) != NULL) {
        if (strncmp(line, name, length) != 0 || (line[length] != ':' && line[length] != ' '))
            continue;
        unsigned long long value;
        found = sscanf(line + length + 1, "%llu", &value) == 1;
        if (found)
            *value_out = value;
    }
    fclose(file);
    return found;
}

/* A file that holds one number; "max" and absent files are false. */
static bool read_number(const char *path, uint64_t *value_out)
{
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return false;
    unsigned long long value;
    bool found = fscanf(file, "%llu", &value) == 1;
    fclose(file);
    if (found)
        *value_out = value;
    return found;
}

/*
 * The process's folder below the hierarchy's mount, from /proc/self/cgroup: the line "0::/path"
 * for version 2, or the one that lists the controller for version 1.
 */
static bool group_path(const char *root, const char *controller, char path[PATH_BYTES_MAX])
{
    char name[PATH_BYTES_MAX];
    snprintf(name, sizeof name, "%s/proc/self/cgroup", root);
    FILE *file = fopen(name, "re");
    if (file == NULL)
        return false;
    char line[PATH_BYTES_MAX];
    bool found = false;
    while (!found && fgets(line, sizeof line, file) != NULL) {
        char *controllers = strchr(line, ':');
        char *where = controllers != NULL ? strchr(controllers + 1, ':') : NULL;
        if (where == NULL)
            continue;
        *where++ = '\0';
        controllers++;
        where[strcspn(where, "\n")] = '\0';
        if (controller == NULL) {
            found = controllers[0] == '\0';
        } else {
            char list[PATH_BYTES_MAX + 2], wanted[64];
            snprintf(list, sizeof list, ",%s,", controllers);
            snprintf(wanted, sizeof wanted, ",%s,", controller);
            found = strstr(list, wanted) != NULL;
        }
        if (found)
            snprintf(path, PATH_BYTES_MAX, "%s", strcmp(where, "/") == 0 ? "" : where);
    }
    fclose(file);
    return found;
}

/* Cuts the last part off; false at the top. */
static bool parent_path(char *path)
{
    char *slash = strrchr(path, '/');
    if (slash == NULL)
        return false;
    *slash = '\0';
    return true;
}

static bool group_file(const char *root, const char *mount, const char *path, const char *file,
                       char name[PATH_BYTES_MAX])
{
    int length = snprintf(name, PATH_BYTES_MAX, "%s/sys/fs/cgroup%s%s/%s", root, mount, path, file);
    return length > 0 && length < PATH_BYTES_MAX;
}

struct group_files {
    unsigned version;
    const char *controller;
    const char *mount;
    const char *limit;
    const char *used;
    const char *reclaimable; /* the field of memory.stat */
};

/*
 * The tightest limit of the group and all groups above it. Inside a container the path in /proc
 * may not exist below the mount, which then shows the container's own group at its top; walking
 * up ends there too.
 */
static bool read_group(const char *root, const struct group_files *files,
                       struct hri_memory_info *info)
{
    char path[PATH_BYTES_MAX], name[PATH_BYTES_MAX];
    if (!group_path(root, files->controller, path))
        return false;
    bool seen = false;
    uint64_t room_min = UINT64_MAX;
    for (unsigned depth = 0; depth < CGROUP_DEPTH_MAX; depth++) {
        uint64_t limit, used = 0, reclaimable = 0;
        if (group_file(root, files->mount, path, files->used, name) && read_number(name, &used)) {
            seen = true;
            if (group_file(root, files->mount, path, "memory.stat", name))
                (void)read_field(name, files->reclaimable, &reclaimable);
            used -= reclaimable < used ? reclaimable : used;
        }
        if (group_file(root, files->mount, path, files->limit, name) && read_number(name, &limit) &&
            limit < NO_LIMIT_BYTES) {
            seen = true;
            uint64_t room = limit > used ? limit - used : 0;
            if (room < room_min) {
                room_min = room;
                info->cgroup_limit_bytes = limit;
                info->cgroup_used_bytes = used;
            }
        }
        if (!parent_path(path))
            break;
    }
    if (room_min < info->available_bytes)
        info->available_bytes = room_min;
    if (seen)
        info->cgroup_version = files->version;
    return seen;
}

hr_status_t hri_memory_read(const char *root, struct hri_memory_info *info_out)
{
    static const struct group_files v2 = {
        2, NULL, "", "memory.max", "memory.current", "inactive_file"};
    static const struct group_files v1 = {1,
                                          "memory",
                                          "/memory",
                                          "memory.limit_in_bytes",
                                          "memory.usage_in_bytes",
                                          "total_inactive_file"};
    struct hri_memory_info info = {0};
    char name[PATH_BYTES_MAX];
    if (root == NULL)
        root = "";
    snprintf(name, sizeof name, "%s/proc/meminfo", root);
    uint64_t total_kib, available_kib;
    if (!read_field(name, "MemTotal", &total_kib))
        return hri_error_set(HR_ERR_IO, "cannot read MemTotal from %s", name);
    if (!read_field(name, "MemAvailable", &available_kib))
        available_kib = total_kib; /* kernels before 3.14 */
    info.total_bytes = total_kib * 1024;
    info.available_bytes = available_kib * 1024;
    if (!read_group(root, &v2, &info))
        (void)read_group(root, &v1, &info);

    struct rlimit memlock;
    info.memlock_bytes = UINT64_MAX;
    if (getrlimit(RLIMIT_MEMLOCK, &memlock) == 0 && memlock.rlim_cur != RLIM_INFINITY)
        info.memlock_bytes = memlock.rlim_cur;
    *info_out = info;
    return HR_OK;
}

/* CPUs' worth of time the control group grants; 0 where there is no quota. */
static unsigned quota_cpus(void)
{
    FILE *file = fopen("/sys/fs/cgroup/cpu.max", "re");
    long long quota_us, period_us;
    int fields = 0;
    if (file != NULL) {
        fields = fscanf(file, "%lld %lld", &quota_us, &period_us);
        fclose(file);
    } else {
        uint64_t quota, period;
        if (!read_number("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", &quota) ||
            !read_number("/sys/fs/cgroup/cpu/cpu.cfs_period_us", &period))
            return 0;
        quota_us = (long long)quota;
        period_us = (long long)period;
        fields = 2;
    }
    if (fields != 2 || quota_us <= 0 || period_us <= 0)
        return 0;
    return (unsigned)((quota_us + period_us - 1) / period_us);
}

unsigned hri_cpu_usable_count(void)
{
    cpu_set_t set;
    long count = 0;
    if (sched_getaffinity(0, sizeof set, &set) == 0)
        count = CPU_COUNT(&set);
    if (count <= 0)
        count = sysconf(_SC_NPROCESSORS_ONLN);
    unsigned quota = quota_cpus();
    if (quota != 0 && (long)quota < count)
        count = (long)quota;
    return count > 0 ? (unsigned)count : 1;
}
