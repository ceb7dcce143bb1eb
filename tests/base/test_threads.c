#include "base/threads.h"

#include <pthread.h>
#include <stdatomic.h>

#include "base/clock.h"
#include "tests/test.h"

#define TASKS_MAX 5000

struct tally {
    _Atomic unsigned runs[TASKS_MAX];
    _Atomic unsigned inside[HRI_POOL_THREADS_MAX]; /* tasks now running under a worker's number */
    _Atomic unsigned clashes;
    unsigned workers;
};

static void count_task(void *ctx, unsigned task, unsigned worker)
{
    struct tally *tally = ctx;
    if (worker >= tally->workers || atomic_fetch_add(&tally->inside[worker], 1) != 0)
        atomic_fetch_add(&tally->clashes, 1);
    atomic_fetch_add(&tally->runs[task], 1);
    atomic_fetch_sub(&tally->inside[worker], 1);
}

static void check_runs(struct tally *tally, unsigned task_count, unsigned expected)
{
    for (unsigned i = 0; i < TASKS_MAX; i++)
        assert_int_equal(tally->runs[i], i < task_count ? expected : 0);
    assert_int_equal(tally->clashes, 0);
}

static void test_every_task_once(void **state)
{
    (void)state;
    static struct tally tally;
    static const unsigned task_counts[] = {0, 1, 2, 3, 7, 64, TASKS_MAX};
    static const unsigned sizes[] = {1, 2, 3, 8};
    for (unsigned s = 0; s < 4; s++) {
        struct hri_pool *pool;
        assert_ok(hri_pool_create(NULL, sizes[s], &pool));
        assert_int_equal(hri_pool_size(pool), sizes[s]);
        for (unsigned t = 0; t < sizeof task_counts / sizeof task_counts[0]; t++) {
            memset(&tally, 0, sizeof tally);
            tally.workers = sizes[s];
            hri_pool_run(pool, count_task, &tally, task_counts[t]);
            check_runs(&tally, task_counts[t], 1);
        }
        hri_pool_destroy(pool);
    }
}

/*
 * Plain, not atomic: TSan sees it if a run ended before its tasks did, or a late worker ran a
 * task of an old run.
 */
static void plain_task(void *ctx, unsigned task, unsigned worker)
{
    (void)worker;
    unsigned *values = ctx;
    values[task]++;
}

static void test_many_short_runs(void **state)
{
    (void)state;
    for (int sleeping = 0; sleeping < 2; sleeping++) {
        struct hri_pool *pool;
        assert_ok(hri_pool_create(NULL, 4, &pool));
        if (sleeping)
            hri_pool_set_spin_ns(pool, 0);
        unsigned values[5] = {0}, runs = sleeping ? 2000 : 10000, sums[6] = {0};
        for (unsigned run = 0; run < runs; run++) {
            unsigned task_count = 2 + run % 4;
            hri_pool_run(pool, plain_task, values, task_count);
            sums[task_count]++;
        }
        for (unsigned task = 0; task < 5; task++) {
            unsigned expected = 0;
            for (unsigned count = task + 1; count <= 5; count++)
                expected += sums[count];
            assert_int_equal(values[task], expected);
        }
        hri_pool_destroy(pool);
    }
}

struct caller {
    struct hri_pool *pool;
    struct tally *tally;
};

static void *call_often(void *argument)
{
    struct caller *caller = argument;
    for (int i = 0; i < 300; i++)
        hri_pool_run(caller->pool, count_task, caller->tally, 10);
    return NULL;
}

static void test_several_callers(void **state)
{
    (void)state;
    static struct tally tally;
    struct hri_pool *pool;
    assert_ok(hri_pool_create(NULL, 2, &pool));
    tally.workers = 2;
    struct caller caller = {pool, &tally};
    pthread_t threads[3];
    for (int i = 0; i < 3; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, call_often, &caller), 0);
    for (int i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
    check_runs(&tally, 10, 900);
    hri_pool_destroy(pool);
}

static void test_without_a_pool(void **state)
{
    (void)state;
    unsigned values[3] = {0};
    hri_pool_run(NULL, plain_task, values, 3);
    assert_int_equal(values[0] + values[1] + values[2], 3);
    assert_int_equal(hri_pool_size(NULL), 1);
    hri_pool_destroy(NULL);
}

static void test_memory(void **state)
{
    (void)state;
    struct hri_alloc alloc;
    hri_alloc_init(&alloc, "threads", 0, NULL);
    struct hri_pool *pool;
    for (int n = 0; n < 2; n++) {
        hri_alloc_fail_after(&alloc, n);
        assert_int_equal(hri_pool_create(&alloc, 2, &pool), HR_ERR_NOMEM);
    }
    hri_alloc_fail_after(&alloc, -1);
    assert_ok(hri_pool_create(&alloc, 2, &pool));
    uint64_t calls = alloc.alloc_count;
    unsigned values[4] = {0};
    for (int i = 0; i < 100; i++)
        hri_pool_run(pool, plain_task, values, 4);
    assert_int_equal(alloc.alloc_count, calls);
    hri_pool_destroy(pool);
    assert_int_equal(alloc.live_bytes, 0);
    assert_fails(hri_pool_create(&alloc, HRI_POOL_THREADS_MAX + 1, &pool), HR_ERR_INVALID, "257");
    assert_ok(hri_pool_create(&alloc, 0, &pool));
    assert_true(hri_pool_size(pool) >= 1);
    hri_pool_destroy(pool);
}

static void test_split(void **state)
{
    (void)state;
    for (uint64_t count = 0; count < 40; count++) {
        for (unsigned parts = 1; parts < 9; parts++) {
            uint64_t next = 0, begin, end;
            for (unsigned part = 0; part < parts; part++) {
                hri_split(count, parts, part, &begin, &end);
                assert_int_equal(begin, next);
                assert_true(end - begin == count / parts || end - begin == count / parts + 1);
                next = end;
            }
            assert_int_equal(next, count);
        }
    }
}

/* Not a timed test: the figure is for the log. */
static void test_cost_of_a_run(void **state)
{
    (void)state;
    for (unsigned size = 1; size <= 2; size++) {
        struct hri_pool *pool;
        assert_ok(hri_pool_create(NULL, size, &pool));
        unsigned values[2] = {0};
        uint64_t begin_ns = hri_now_ns();
        for (int i = 0; i < 5000; i++)
            hri_pool_run(pool, plain_task, values, 2);
        print_message("%u threads: %.0f ns a run of 2 empty tasks\n", size,
                      (double)(hri_now_ns() - begin_ns) / 5000);
        hri_pool_destroy(pool);
    }
}

static void run_on_another(void *other, hri_task_fn fn, void *ctx, unsigned task_count)
{
    hri_pool_run(other, fn, ctx, task_count);
}

static void test_threads_of_another(void **state)
{
    (void)state;
    static struct tally tally;
    struct hri_pool *other, *pool = NULL;
    assert_ok(hri_pool_create(NULL, 3, &other));
    assert_int_equal(hri_pool_create_over(NULL, 0, run_on_another, other, &pool), HR_ERR_INVALID);
    assert_int_equal(hri_pool_create_over(NULL, 257, run_on_another, other, &pool), HR_ERR_INVALID);
    assert_null(pool);
    assert_ok(hri_pool_create_over(NULL, 3, run_on_another, other, &pool));
    assert_int_equal(hri_pool_size(pool), 3);
    for (unsigned n = 0; n < 100; n++) {
        memset(&tally, 0, sizeof tally);
        tally.workers = 3;
        hri_pool_run(pool, count_task, &tally, n);
        check_runs(&tally, n, 1);
    }
    hri_pool_destroy(pool);
    hri_pool_destroy(other);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_task_once), cmocka_unit_test(test_many_short_runs),
        cmocka_unit_test(test_several_callers), cmocka_unit_test(test_without_a_pool),
        cmocka_unit_test(test_memory),          cmocka_unit_test(test_split),
        cmocka_unit_test(test_cost_of_a_run),   cmocka_unit_test(test_threads_of_another),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
