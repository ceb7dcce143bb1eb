/* Made-up systems in a folder: what /proc and /sys say on machines we do not have. */
#include "base/topology.h"

#include <sys/stat.h>
#include <unistd.h>

#include "tests/test.h"

static char root[64];

static void write_file(const char *path, const char *text)
{
    char name[512];
    snprintf(name, sizeof name, "%s/%s", root, path);
    for (char *slash = strchr(name + strlen(root) + 1, '/'); slash != NULL;
         slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        mkdir(name, 0777);
        *slash = '/';
    }
    FILE *file = fopen(name, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static int set_up(void **state)
{
    (void)state;
    snprintf(root, sizeof root, "/tmp/hr-memory-XXXXXX");
    return mkdtemp(root) != NULL ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    char command[128];
    snprintf(command, sizeof command, "rm -r '%s'", root);
    return system(command);
}

static const char meminfo[] = "MemTotal:       16384 kB\nMemFree: 1 kB\nMemAvailable:    8192 kB\n";

static void test_no_group(void **state)
{
    (void)state;
    write_file("proc/meminfo", meminfo);
    struct hri_memory_info info;
    assert_ok(hri_memory_read(root, &info));
    assert_int_equal(info.total_bytes, 16u << 20);
    assert_int_equal(info.available_bytes, 8u << 20);
    assert_int_equal(info.cgroup_version, 0);
    assert_int_equal(info.cgroup_limit_bytes, 0);
}

static void test_version_2_takes_the_tightest_of_the_path(void **state)
{
    (void)state;
    write_file("proc/meminfo", meminfo);
    write_file("proc/self/cgroup", "0::/slice/job\n");
    write_file("sys/fs/cgroup/slice/job/memory.max", "max\n");
    write_file("sys/fs/cgroup/slice/job/memory.current", "1000\n");
    write_file("sys/fs/cgroup/slice/memory.max", "5000000\n");
    write_file("sys/fs/cgroup/slice/memory.current", "3000000\n");
    write_file("sys/fs/cgroup/slice/memory.stat", "anon 5\ninactive_file 1000000\n");
    struct hri_memory_info info;
    assert_ok(hri_memory_read(root, &info));
    assert_int_equal(info.cgroup_version, 2);
    assert_int_equal(info.cgroup_limit_bytes, 5000000);
    assert_int_equal(info.cgroup_used_bytes, 2000000);
    assert_int_equal(info.available_bytes, 3000000);
}

static void test_version_2_inside_a_container(void **state)
{
    (void)state;
    write_file("proc/meminfo", meminfo);
    write_file("proc/self/cgroup", "0::/\n");
    write_file("sys/fs/cgroup/memory.max", "4194304\n");
    write_file("sys/fs/cgroup/memory.current", "0\n");
    struct hri_memory_info info;
    assert_ok(hri_memory_read(root, &info));
    assert_int_equal(info.available_bytes, 4u << 20);
}

static void test_version_1(void **state)
{
    (void)state;
    write_file("proc/meminfo", meminfo);
    write_file("proc/self/cgroup", "12:cpu,cpuacct:/a\n4:memory:/docker/1\n0::/\n");
    write_file("sys/fs/cgroup/memory/docker/1/memory.limit_in_bytes", "2097152\n");
    write_file("sys/fs/cgroup/memory/docker/1/memory.usage_in_bytes", "1048576\n");
    write_file("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
    write_file("sys/fs/cgroup/memory/memory.usage_in_bytes", "1048576\n");
    struct hri_memory_info info;
    assert_ok(hri_memory_read(root, &info));
    assert_int_equal(info.cgroup_version, 1);
    assert_int_equal(info.cgroup_limit_bytes, 2u << 20);
    assert_int_equal(info.available_bytes, 1u << 20);
}

static void test_over_its_limit(void **state)
{
    (void)state;
    write_file("proc/meminfo", meminfo);
    write_file("proc/self/cgroup", "0::/\n");
    write_file("sys/fs/cgroup/memory.max", "1000\n");
    write_file("sys/fs/cgroup/memory.current", "2000\n");
    struct hri_memory_info info;
    assert_ok(hri_memory_read(root, &info));
    assert_int_equal(info.available_bytes, 0);
}

static void test_nothing_to_read(void **state)
{
    (void)state;
    struct hri_memory_info info;
    assert_fails(hri_memory_read(root, &info), HR_ERR_IO, "MemTotal");
}

static void test_running_system(void **state)
{
    (void)state;
    struct hri_memory_info info;
    assert_ok(hri_memory_read(NULL, &info));
    assert_true(info.total_bytes > 1u << 20);
    assert_true(info.available_bytes <= info.total_bytes);
    assert_true(hri_cpu_usable_count() >= 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_no_group, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_version_2_takes_the_tightest_of_the_path, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(test_version_2_inside_a_container, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_version_1, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_over_its_limit, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_nothing_to_read, set_up, tear_down),
        cmocka_unit_test(test_running_system),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
