#include "base/topology.h"

#include "tests/test.h"

static void test_this_machine(void **state)
{
    (void)state;
    struct hri_alloc alloc;
    hri_alloc_init(&alloc, "topology", 0, NULL);
    struct hri_topology *topology;
    assert_ok(hri_topology_create(&alloc, NULL, &topology));
    const struct hri_topology_info *info = hri_topology_info(topology);
    print_message("%s: %u cpus, %u cores, %u nodes, l3 %zu\n", info->source, info->cpu_count,
                  info->core_count, info->node_count, info->l3_bytes);
    assert_true(info->cpu_count >= 1 && info->core_count >= 1 && info->node_count >= 1);
    assert_true(info->line_bytes >= 16);
    assert_true(hri_topology_cpu_node(topology, 0) < info->node_count);
    unsigned cpus = 0;
    for (unsigned node = 0; node < info->node_count; node++)
        cpus += hri_topology_node_cpus(topology, node);
    assert_true(cpus >= info->cpu_count);
    assert_int_equal(hri_topology_node_cpus(topology, info->node_count), 0);
    /* Binding may be refused (a container, a build without hwloc) but only with that answer. */
    hr_status_t status = hri_topology_bind_thread_cpu(topology, 0);
    assert_true(status == HR_OK || status == HR_ERR_UNSUPPORTED);
    if (status == HR_OK)
        assert_int_equal(hri_cpu_usable_count(), 1);
    (void)hri_topology_unbind_thread(topology);
    struct hri_region region;
    assert_ok(hri_region_alloc(&alloc, 4u << 20, &region));
    status = hri_topology_bind_memory(topology, region.base, region.bytes, 0);
    assert_true(status == HR_OK || status == HR_ERR_UNSUPPORTED);
    memset(region.base, 1, region.bytes);
    hri_region_free(&alloc, &region);
    hri_topology_destroy(topology);
    hri_topology_destroy(NULL);
    assert_int_equal(alloc.live_bytes, 0);
}

#if HR_HAVE_HWLOC
static void test_synthetic(void **state)
{
    (void)state;
    struct hri_topology *topology;
    assert_ok(hri_topology_create(NULL, "pack:2 [numa] l3:1 core:8 pu:2", &topology));
    const struct hri_topology_info *info = hri_topology_info(topology);
    assert_int_equal(info->package_count, 2);
    assert_int_equal(info->node_count, 2);
    assert_int_equal(info->core_count, 16);
    assert_int_equal(info->cpu_count, 32);
    assert_int_equal(hri_topology_node_cpus(topology, 1), 16);
    assert_int_equal(hri_topology_cpu_node(topology, 15), 0);
    assert_int_equal(hri_topology_cpu_node(topology, 16), 1);
    assert_ok(hri_topology_bind_thread_node(topology, 1));
    assert_fails(hri_topology_bind_thread_node(topology, 2), HR_ERR_INVALID, "node 2");
    assert_fails(hri_topology_bind_thread_cpu(topology, 32), HR_ERR_INVALID, "cpu 32");
    assert_fails(hri_topology_bind_memory(topology, NULL, 0, 5), HR_ERR_INVALID, "node 5");
    hri_topology_destroy(topology);
    assert_fails(hri_topology_create(NULL, "no such thing", &topology), HR_ERR_INVALID,
                 "no such thing");
}
#else
static void test_synthetic(void **state)
{
    (void)state;
    struct hri_topology *topology;
    assert_fails(hri_topology_create(NULL, "pack:2", &topology), HR_ERR_UNSUPPORTED, "hwloc");
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_this_machine),
        cmocka_unit_test(test_synthetic),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
