#include "base/threads.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#include "tests/test.h"

struct order {
    unsigned count;
    unsigned numbers[1000];
};

struct job {
    struct order *order;
    unsigned number;
};

static void note(void *ctx)
{
    struct job *job = ctx;
    job->order->numbers[job->order->count++] = job->number;
}

static void test_jobs_run_in_order(void **state)
{
    (void)state;
    static struct order order;
    static struct job jobs[1000];
    struct hri_worker *worker;
    assert_ok(hri_worker_create(NULL, "hr-test", 8, &worker));
    uint64_t ticket = 0;
    for (unsigned i = 0; i < 1000; i++) {
        jobs[i] = (struct job){&order, i};
        hr_status_t status;
        while ((status = hri_worker_submit(worker, note, &jobs[i], &ticket)) == HR_ERR_FULL)
            sched_yield();
        assert_int_equal(status, HR_OK);
        assert_int_equal(ticket, i + 1);
    }
    hri_worker_wait(worker, ticket);
    assert_true(hri_worker_poll(worker, ticket));
    assert_int_equal(order.count, 1000);
    for (unsigned i = 0; i < 1000; i++)
        assert_int_equal(order.numbers[i], i);
    hri_worker_destroy(worker);
}

static void wait_for_gate(void *ctx)
{
    _Atomic int *gate = ctx;
    while (atomic_load(gate) == 0)
        sched_yield();
}

static void test_full_poll_and_drain(void **state)
{
    (void)state;
    _Atomic int gate = 0;
    struct hri_worker *worker;
    assert_ok(hri_worker_create(NULL, "a name longer than fifteen", 2, &worker));
    hri_worker_drain(worker); /* nothing to wait for */
    uint64_t first, second;
    assert_ok(hri_worker_submit(worker, wait_for_gate, &gate, &first));
    assert_ok(hri_worker_submit(worker, wait_for_gate, &gate, &second));
    assert_int_equal(hri_worker_submit(worker, wait_for_gate, &gate, NULL), HR_ERR_FULL);
    assert_false(hri_worker_poll(worker, first));
    atomic_store(&gate, 1);
    hri_worker_drain(worker);
    assert_true(hri_worker_poll(worker, second));
    hri_worker_destroy(worker);
}

static void test_destroy_runs_what_was_submitted(void **state)
{
    (void)state;
    static struct order order;
    struct job jobs[3];
    struct hri_worker *worker;
    assert_ok(hri_worker_create(NULL, NULL, 3, &worker));
    for (unsigned i = 0; i < 3; i++) {
        jobs[i] = (struct job){&order, i};
        assert_ok(hri_worker_submit(worker, note, &jobs[i], NULL));
    }
    hri_worker_destroy(worker);
    assert_int_equal(order.count, 3);
    hri_worker_destroy(NULL);
}

static _Atomic unsigned total;

static void add_one(void *ctx)
{
    (void)ctx;
    atomic_fetch_add(&total, 1);
}

static void *submit_and_wait(void *worker)
{
    for (int i = 0; i < 500; i++) {
        uint64_t ticket;
        while (hri_worker_submit(worker, add_one, NULL, &ticket) == HR_ERR_FULL)
            sched_yield();
        if (i % 3 == 0)
            hri_worker_wait(worker, ticket);
    }
    return NULL;
}

static void test_several_submitters(void **state)
{
    (void)state;
    struct hri_worker *worker;
    assert_ok(hri_worker_create(NULL, NULL, 4, &worker));
    pthread_t threads[3];
    for (int i = 0; i < 3; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, submit_and_wait, worker), 0);
    for (int i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
    hri_worker_drain(worker);
    assert_int_equal(total, 1500);
    hri_worker_destroy(worker);
}

static void test_no_memory_and_bad_capacity(void **state)
{
    (void)state;
    struct hri_alloc alloc;
    hri_alloc_init(&alloc, "worker", 0, NULL);
    struct hri_worker *worker;
    for (int n = 0; n < 2; n++) {
        hri_alloc_fail_after(&alloc, n);
        assert_int_equal(hri_worker_create(&alloc, NULL, 4, &worker), HR_ERR_NOMEM);
    }
    assert_int_equal(alloc.live_bytes, 0);
    assert_fails(hri_worker_create(&alloc, NULL, 0, &worker), HR_ERR_INVALID, "job ring");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_jobs_run_in_order),
        cmocka_unit_test(test_full_poll_and_drain),
        cmocka_unit_test(test_destroy_runs_what_was_submitted),
        cmocka_unit_test(test_several_submitters),
        cmocka_unit_test(test_no_memory_and_bad_capacity),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
