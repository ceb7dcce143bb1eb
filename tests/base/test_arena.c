#include "base/arena.h"

#include "tests/test.h"

static void test_take_and_rewind(void **state)
{
    (void)state;
    struct hri_alloc alloc;
    hri_alloc_init(&alloc, "arena", 0, NULL);
    struct hri_arena arena;
    assert_ok(hri_arena_init(&arena, &alloc, 1024));
    char *a = hri_arena_take(&arena, 10, 1);
    size_t mark = hri_arena_mark(&arena);
    char *b = hri_arena_take(&arena, 10, 64);
    assert_int_equal((uintptr_t)b % 64, 0);
    assert_true(b >= a + 10);
    hri_arena_rewind(&arena, mark);
    assert_ptr_equal(hri_arena_take(&arena, 10, 64), b);
    assert_int_equal(arena.peak_bytes, 74);
    hri_arena_fini(&arena);
    assert_int_equal(alloc.live_bytes, 0);
    assert_int_equal(alloc.alloc_count, 1);
}

static void test_full(void **state)
{
    (void)state;
    _Alignas(64) unsigned char buffer[128];
    struct hri_arena arena;
    hri_arena_init_buffer(&arena, buffer, sizeof buffer);
    assert_null(hri_arena_take(&arena, 129, 1));
    assert_non_null(hri_arena_take(&arena, 65, 1));
    assert_null(hri_arena_take(&arena, 1, 64)); /* the padding alone uses up what is left */
    assert_non_null(hri_arena_take(&arena, 63, 1));
    assert_null(hri_arena_take(&arena, 1, 1));
    assert_non_null(hri_arena_take(&arena, 0, 1));
    assert_null(hri_arena_take(&arena, SIZE_MAX, 64));
    hri_arena_fini(&arena);
}

static void test_arrays_check_overflow(void **state)
{
    (void)state;
    _Alignas(64) unsigned char buffer[256];
    struct hri_arena arena;
    hri_arena_init_buffer(&arena, buffer, sizeof buffer);
    assert_null(hri_arena_array(&arena, SIZE_MAX / 2, 4));
    assert_ptr_equal(hri_arena_array(&arena, 8, 8), buffer);
    assert_ptr_equal(hri_arena_array(&arena, 1, 1), buffer + 64);
    assert_ptr_equal(hri_arena_array(&arena, 1, 1), buffer + 128);
}

static void test_no_memory(void **state)
{
    (void)state;
    struct hri_alloc alloc;
    hri_alloc_init(&alloc, "arena", 100, NULL);
    struct hri_arena arena;
    assert_int_equal(hri_arena_init(&arena, &alloc, 101), HR_ERR_BUDGET);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_take_and_rewind),
        cmocka_unit_test(test_full),
        cmocka_unit_test(test_arrays_check_overflow),
        cmocka_unit_test(test_no_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
