#include "base/ring.h"

#include <pthread.h>
#include <sched.h>

#include "tests/test.h"

struct item {
    uint32_t producer;
    uint32_t number;
    uint64_t check; /* a torn item does not satisfy it */
};

static struct item make_item(uint32_t producer, uint32_t number)
{
    return (struct item){producer, number,
                         ((uint64_t)producer << 32 | number) * 0x9e3779b97f4a7c15u};
}

static void check_item(const struct item *item)
{
    struct item expected = make_item(item->producer, item->number);
    assert_memory_equal(item, &expected, sizeof expected);
}

static void test_spsc_full_and_empty(void **state)
{
    (void)state;
    struct hri_spsc ring;
    assert_ok(hri_spsc_init(&ring, NULL, 3, sizeof(int)));
    assert_int_equal(ring.capacity, 4);
    int value = -1;
    assert_false(hri_spsc_pop(&ring, &value));
    for (int round = 0; round < 100; round++) {
        for (int i = 0; i < 4; i++)
            assert_true(hri_spsc_push(&ring, &i));
        assert_false(hri_spsc_push(&ring, &value));
        assert_int_equal(hri_spsc_count(&ring), 4);
        for (int i = 0; i < 4; i++) {
            assert_true(hri_spsc_pop(&ring, &value));
            assert_int_equal(value, i);
        }
        assert_false(hri_spsc_pop(&ring, &value));
    }
    hri_spsc_fini(&ring);
}

static void test_mpsc_full_and_empty(void **state)
{
    (void)state;
    for (uint32_t capacity = 1; capacity <= 4; capacity++) {
        struct hri_mpsc ring;
        assert_ok(hri_mpsc_init(&ring, NULL, capacity, 12));
        char item[12] = "item", out[12];
        assert_false(hri_mpsc_pop(&ring, out));
        for (int round = 0; round < 50; round++) {
            for (uint32_t i = 0; i < ring.capacity; i++) {
                item[5] = (char)i;
                assert_true(hri_mpsc_push(&ring, item));
            }
            assert_false(hri_mpsc_push(&ring, item));
            for (uint32_t i = 0; i < ring.capacity; i++) {
                assert_true(hri_mpsc_pop(&ring, out));
                assert_int_equal(out[5], i);
            }
            assert_false(hri_mpsc_pop(&ring, out));
        }
        hri_mpsc_fini(&ring);
    }
}

static void test_bad_sizes(void **state)
{
    (void)state;
    struct hri_spsc spsc;
    struct hri_mpsc mpsc;
    assert_fails(hri_spsc_init(&spsc, NULL, 0, 4), HR_ERR_INVALID, "ring");
    assert_fails(hri_mpsc_init(&mpsc, NULL, 4, 0), HR_ERR_INVALID, "ring");
    struct hri_alloc alloc;
    hri_alloc_init(&alloc, "ring", 16, NULL);
    assert_int_equal(hri_spsc_init(&spsc, &alloc, 64, 8), HR_ERR_BUDGET);
    assert_int_equal(hri_mpsc_init(&mpsc, &alloc, 64, 8), HR_ERR_BUDGET);
}

enum { PER_PRODUCER = 20000, PRODUCERS = 3 };

static void *spsc_producer(void *ring)
{
    for (uint32_t i = 0; i < PER_PRODUCER; i++) {
        struct item item = make_item(0, i);
        while (!hri_spsc_push(ring, &item))
            sched_yield();
    }
    return NULL;
}

static void test_spsc_between_threads(void **state)
{
    (void)state;
    struct hri_spsc ring;
    assert_ok(hri_spsc_init(&ring, NULL, 16, sizeof(struct item)));
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, spsc_producer, &ring), 0);
    for (uint32_t i = 0; i < PER_PRODUCER; i++) {
        struct item item;
        while (!hri_spsc_pop(&ring, &item))
            sched_yield();
        check_item(&item);
        assert_int_equal(item.number, i);
    }
    pthread_join(thread, NULL);
    hri_spsc_fini(&ring);
}

struct mpsc_producer {
    struct hri_mpsc *ring;
    uint32_t number;
};

static void *mpsc_producer(void *argument)
{
    struct mpsc_producer *self = argument;
    for (uint32_t i = 0; i < PER_PRODUCER; i++) {
        struct item item = make_item(self->number, i);
        while (!hri_mpsc_push(self->ring, &item))
            sched_yield();
    }
    return NULL;
}

static void test_mpsc_between_threads(void **state)
{
    (void)state;
    struct hri_mpsc ring;
    assert_ok(hri_mpsc_init(&ring, NULL, 16, sizeof(struct item)));
    pthread_t threads[PRODUCERS];
    struct mpsc_producer producers[PRODUCERS];
    for (uint32_t i = 0; i < PRODUCERS; i++) {
        producers[i] = (struct mpsc_producer){&ring, i};
        assert_int_equal(pthread_create(&threads[i], NULL, mpsc_producer, &producers[i]), 0);
    }
    uint32_t next[PRODUCERS] = {0};
    for (uint32_t i = 0; i < PRODUCERS * PER_PRODUCER; i++) {
        struct item item;
        while (!hri_mpsc_pop(&ring, &item))
            sched_yield();
        check_item(&item);
        assert_true(item.producer < PRODUCERS);
        assert_int_equal(item.number, next[item.producer]++);
    }
    for (uint32_t i = 0; i < PRODUCERS; i++)
        pthread_join(threads[i], NULL);
    hri_mpsc_fini(&ring);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_spsc_full_and_empty),
        cmocka_unit_test(test_mpsc_full_and_empty),
        cmocka_unit_test(test_bad_sizes),
        cmocka_unit_test(test_spsc_between_threads),
        cmocka_unit_test(test_mpsc_between_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
