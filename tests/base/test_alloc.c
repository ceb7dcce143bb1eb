#include "base/alloc.h"

#include <sys/mman.h>

#include "base/rng.h"
#include "tests/test.h"

static void test_counts(void **state)
{
    (void)state;
    struct hri_alloc alloc;
    hri_alloc_init(&alloc, "test", 0, NULL);
    void *a = hri_malloc(&alloc, 100);
    void *b = hri_calloc(&alloc, 10, 20);
    assert_int_equal(alloc.live_bytes, 300);
    hri_free(&alloc, a);
    assert_int_equal(alloc.live_bytes, 200);
    hri_free(&alloc, b);
    hri_free(&alloc, NULL);
    assert_int_equal(alloc.live_bytes, 0);
    assert_int_equal(alloc.peak_bytes, 300);
    assert_int_equal(alloc.alloc_count, 2);
    assert_int_equal(alloc.free_count, 2);
    assert_int_equal(alloc.fail_count, 0);
}

static void test_alignment_and_contents(void **state)
{
    (void)state;
    struct hri_alloc alloc;
    hri_alloc_init(&alloc, "test", 0, NULL);
    for (size_t alignment = 1; alignment <= 1 << 16; alignment *= 2) {
        unsigned char *ptr = hri_aligned_zero(&alloc, alignment, 333);
        assert_non_null(ptr);
        assert_int_equal((uintptr_t)ptr % alignment, 0);
        for (int i = 0; i < 333; i++)
            assert_int_equal(ptr[i], 0);
        memset(ptr, 0xee, 333);
        hri_free(&alloc, ptr);
    }
    assert_int_equal(alloc.live_bytes, 0);
}

static void test_cap(void **state)
{
    (void)state;
    struct hri_alloc alloc;
    hri_alloc_init(&alloc, "host tier", 1000, NULL);
    void *a = hri_malloc(&alloc, 600);
    assert_non_null(a);
    assert_null(hri_malloc(&alloc, 401));
    assert_int_equal(hri_alloc_status(), HR_ERR_BUDGET);
    assert_non_null(strstr(hr_last_error(), "host tier"));
    assert_non_null(strstr(hr_last_error(), "1000"));
    void *b = hri_malloc(&alloc, 400);
    assert_non_null(b);
    assert_int_equal(alloc.live_bytes, 1000);
    assert_int_equal(alloc.fail_count, 1);
    assert_false(hri_alloc_charge(&alloc, 1));
    assert_false(hri_alloc_charge(&alloc, UINT64_MAX)); /* would wrap */
    hri_free(&alloc, b);
    assert_true(hri_alloc_charge(&alloc, 400));
    hri_alloc_refund(&alloc, 400);
    hri_free(&alloc, a);
    assert_int_equal(alloc.peak_bytes, 1000);
}

static void test_failing_on_purpose(void **state)
{
    (void)state;
    struct hri_alloc alloc;
    hri_alloc_init(&alloc, NULL, 0, NULL);
    hri_alloc_fail_after(&alloc, 2);
    void *a = hri_malloc(&alloc, 1), *b = hri_malloc(&alloc, 1);
    assert_non_null(a);
    assert_non_null(b);
    assert_null(hri_malloc(&alloc, 1));
    assert_null(hri_malloc(&alloc, 1));
    assert_int_equal(hri_alloc_status(), HR_ERR_NOMEM);
    struct hri_region region;
    assert_int_equal(hri_region_alloc(&alloc, 10, &region), HR_ERR_NOMEM);
    hri_alloc_fail_after(&alloc, -1);
    void *c = hri_malloc(&alloc, 1);
    assert_non_null(c);
    hri_free(&alloc, a);
    hri_free(&alloc, b);
    hri_free(&alloc, c);
    assert_int_equal(alloc.live_bytes, 0);
}

static void test_overflow_is_refused(void **state)
{
    (void)state;
    struct hri_alloc alloc;
    hri_alloc_init(&alloc, NULL, 0, NULL);
    volatile size_t huge = SIZE_MAX / 4 + 2;
    assert_null(hri_calloc(&alloc, huge, 4));
    assert_null(hri_array(&alloc, 8, huge));
    assert_null(hri_malloc(&alloc, huge * 3));
    assert_null(hri_malloc(&alloc, SIZE_MAX));
    assert_int_equal(alloc.live_bytes, 0);
    assert_int_equal(alloc.fail_count, 4);
}

static void test_realloc_and_strdup(void **state)
{
    (void)state;
    struct hri_alloc alloc;
    hri_alloc_init(&alloc, NULL, 0, NULL);
    char *text = hri_strdup(&alloc, "sink");
    assert_string_equal(text, "sink");
    text = hri_realloc(&alloc, text, 100);
    assert_string_equal(text, "sink");
    text = hri_realloc(&alloc, text, 2);
    assert_memory_equal(text, "si", 2);
    assert_int_equal(alloc.live_bytes, 2);
    hri_free(&alloc, text);
    text = hri_realloc(NULL, NULL, 5);
    assert_non_null(text);
    hri_free(NULL, text);
}

/* Touched pages are there, the others are not. Older kernels than 5.14 refuse the wish. */
static void test_region_touch(void **state)
{
    (void)state;
    enum { PAGES = 64 };
    size_t page = hri_page_bytes();
    unsigned char there[PAGES];
    struct hri_region region, empty = {0};
    assert_ok(hri_region_alloc(NULL, PAGES * page, &region));
    ((unsigned char *)region.base)[5 * page] = 3;
    hri_region_touch(&region, 3 * page + 5, 4 * page);
    hri_region_touch(&region, 40 * page, 0);
    hri_region_touch(&region, 60 * page, 5 * page); /* beyond its end: nothing */
    hri_region_touch(&region, SIZE_MAX, 2);
    hri_region_touch(&empty, 0, 1);
    assert_int_equal(mincore(region.base, PAGES * page, there), 0);
    assert_int_equal(((unsigned char *)region.base)[5 * page], 3);
    hri_region_free(NULL, &region);
    if (!(there[3] & 1)) {
        print_message("skipped: this kernel touches no pages for others (Linux 5.14 does)\n");
        skip();
    }
    for (unsigned i = 0; i < PAGES; i++)
        assert_int_equal(there[i] & 1, i >= 3 && i <= 7);
}

static void test_region(void **state)
{
    (void)state;
    struct hri_alloc alloc;
    hri_alloc_init(&alloc, "regions", 8u << 20, NULL);
    struct hri_region region;
    assert_ok(hri_region_alloc(&alloc, (3u << 20) + 1, &region));
    assert_int_equal((uintptr_t)region.base % (2u << 20), 0);
    assert_int_equal(region.bytes % hri_page_bytes(), 0);
    assert_true(region.bytes > 3u << 20);
    assert_int_equal(alloc.live_bytes, region.bytes);
    unsigned char *bytes = region.base;
    assert_int_equal(bytes[0], 0);
    assert_int_equal(bytes[region.bytes - 1], 0);
    bytes[region.bytes - 1] = 1;
    struct hri_region second = {0};
    assert_int_equal(hri_region_alloc(&alloc, 5u << 20, &second), HR_ERR_BUDGET);
    assert_null(second.base);
    hri_region_free(&alloc, &region);
    hri_region_free(&alloc, &region);
    assert_int_equal(alloc.live_bytes, 0);
    assert_fails(hri_region_alloc(&alloc, 0, &region), HR_ERR_INVALID, "0 bytes");
}

static int hook_calls;

static void *hook_alloc(void *ctx, size_t bytes, size_t alignment)
{
    hook_calls++;
    assert_int_equal(*(int *)ctx, 42);
    void *ptr = NULL;
    return posix_memalign(&ptr, alignment, bytes) == 0 ? ptr : NULL;
}

static void hook_free(void *ctx, void *ptr, size_t bytes)
{
    assert_int_equal(*(int *)ctx, 42);
    memset(ptr, 0xdd, bytes); /* the size is right, or ASan says so */
    hook_calls--;
    free(ptr);
}

static void test_hooks(void **state)
{
    (void)state;
    int ctx = 42;
    struct hri_alloc_hooks hooks = {hook_alloc, hook_free, &ctx};
    struct hri_alloc alloc;
    hri_alloc_init(&alloc, "hooked", 0, &hooks);
    void *a = hri_malloc(&alloc, 7), *b = hri_aligned(&alloc, 4096, 1);
    assert_int_equal(hook_calls, 2);
    hri_free(&alloc, a);
    hri_free(&alloc, b);
    assert_int_equal(hook_calls, 0);
}

/* Random allocation and freeing against a sum kept beside it. */
static void test_random_against_a_sum(void **state)
{
    (void)state;
    enum { SLOTS = 64 };
    uint64_t seed = test_seed(1);
    struct hri_rng rng;
    hri_rng_seed(&rng, seed);
    struct hri_alloc alloc;
    hri_alloc_init(&alloc, "random", 20000, NULL);
    void *slots[SLOTS] = {0};
    size_t sizes[SLOTS] = {0}, sum = 0;
    for (int i = 0; i < 20000; i++) {
        unsigned slot = (unsigned)hri_rng_below(&rng, SLOTS);
        if (slots[slot] != NULL) {
            hri_free(&alloc, slots[slot]);
            slots[slot] = NULL;
            sum -= sizes[slot];
        } else {
            size_t bytes = hri_rng_below(&rng, 1000);
            slots[slot] = hri_aligned(&alloc, (size_t)1 << hri_rng_below(&rng, 9), bytes);
            bool fits = sum + bytes <= 20000;
            if ((slots[slot] != NULL) != fits)
                fail_msg("seed %llu, turn %d: cap not kept", (unsigned long long)seed, i);
            sizes[slot] = bytes;
            sum += fits ? bytes : 0;
        }
        assert_int_equal(alloc.live_bytes, sum);
    }
    for (int i = 0; i < SLOTS; i++)
        hri_free(&alloc, slots[i]);
    assert_int_equal(alloc.live_bytes, 0);
    assert_true(alloc.peak_bytes <= 20000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_counts),
        cmocka_unit_test(test_alignment_and_contents),
        cmocka_unit_test(test_cap),
        cmocka_unit_test(test_failing_on_purpose),
        cmocka_unit_test(test_overflow_is_refused),
        cmocka_unit_test(test_realloc_and_strdup),
        cmocka_unit_test(test_region),
        cmocka_unit_test(test_region_touch),
        cmocka_unit_test(test_hooks),
        cmocka_unit_test(test_random_against_a_sum),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
