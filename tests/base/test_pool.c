#include "base/pool.h"

#include "tests/test.h"

static void test_all_objects_once(void **state)
{
    (void)state;
    struct hri_alloc alloc;
    hri_alloc_init(&alloc, "pool", 0, NULL);
    struct hri_object_pool pool;
    assert_ok(hri_object_pool_init(&pool, &alloc, 5, 24, 64));
    uint64_t calls = alloc.alloc_count;
    void *objects[5];
    for (uint32_t i = 0; i < 5; i++) {
        objects[i] = hri_object_pool_get(&pool);
        assert_int_equal((uintptr_t)objects[i] % 64, 0);
        assert_int_equal(hri_object_pool_index(&pool, objects[i]), i);
        assert_ptr_equal(hri_object_pool_at(&pool, i), objects[i]);
        memset(objects[i], 0xaa, 24);
    }
    assert_null(hri_object_pool_get(&pool));
    hri_object_pool_put(&pool, objects[3]);
    hri_object_pool_put(&pool, objects[1]);
    assert_int_equal(pool.free_count, 2);
    assert_ptr_equal(hri_object_pool_get(&pool), objects[1]);
    assert_ptr_equal(hri_object_pool_get(&pool), objects[3]);
    assert_int_equal(alloc.alloc_count, calls);
    hri_object_pool_fini(&pool);
    assert_int_equal(alloc.live_bytes, 0);
}

static void test_bad_sizes_and_no_memory(void **state)
{
    (void)state;
    struct hri_alloc alloc;
    struct hri_object_pool pool;
    hri_alloc_init(&alloc, "pool", 0, NULL);
    assert_fails(hri_object_pool_init(&pool, &alloc, 0, 8, 8), HR_ERR_INVALID, "capacity");
    assert_fails(hri_object_pool_init(&pool, &alloc, 1, 0, 8), HR_ERR_INVALID, "size");
    for (int n = 0; n < 2; n++) {
        hri_alloc_fail_after(&alloc, n);
        assert_int_equal(hri_object_pool_init(&pool, &alloc, 4, 8, 8), HR_ERR_NOMEM);
        assert_int_equal(alloc.live_bytes, 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all_objects_once),
        cmocka_unit_test(test_bad_sizes_and_no_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
