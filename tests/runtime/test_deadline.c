/* Steps with a deadline on a disk that is slow, stalls, lies or dies: they keep their time, say what that costs, and catch up. */
#include "tests/test.h"

#include <math.h>
#include <stdbool.h>
#include <errno.h>
#include <pthread.h>
#include <time.h>

#include "base/clock.h"
#include "runtime/sequence.h"
#include "tests/offload/fault_io.h"
#include "tests/runtime/naive.h"

enum { HEADS = 4, KV = 2, D = 64, TOKENS = 2600, PREFILL = 2000 };

static const struct shape shape = {
    .n_layers = 1, .n_q = HEADS, .n_kv = KV, .dk = D, .dv = D, .dtype = HR_DTYPE_BF16};
static const hr_io_mode_t modes[] = {HR_IO_URING, HR_IO_URING_PLAIN, HR_IO_THREADS};

/* A sequence on a faulty disk and one that never sees it. */
struct bed {
    struct fault_io *io;
    hr_runtime_t *rt, *twin_rt;
    hr_sequence_t *seq, *twin;
    float *k, *v, *q, *out;
    uint32_t n;
};

/* How long this thread has slept, waiting for something: time that has passed less the time it computed and the time it was ready and had
 * no processor. So what else the machine does is not counted. */
static int64_t slept_ns(void)
{
    struct timespec cpu, now;
    unsigned long long ran = 0, ready = 0;
    FILE *file = fopen("/proc/thread-self/schedstat", "re");
    if (file != NULL && fscanf(file, "%llu %llu", &ran, &ready) != 2)
        ready = 0;
    if (file != NULL)
        fclose(file);
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &cpu);
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (now.tv_sec - cpu.tv_sec) * 1000000000 + (now.tv_nsec - cpu.tv_nsec) - (int64_t)ready;
}

static uint64_t slept_since(int64_t begin_ns)
{
    int64_t now_ns = slept_ns(); /* the three clocks are not read at the same instant */
    return now_ns > begin_ns ? (uint64_t)(now_ns - begin_ns) : 0;
}

static bool long_form(void)
{
    const char *text = getenv("HEADRACE_LONG");
    return text != NULL && text[0] == '1';
}

static void nap_ms(uint64_t ms)
{
    struct timespec pause = {(time_t)(ms / 1000), (long)(ms % 1000) * 1000000};
    nanosleep(&pause, NULL);
}

static void append(struct bed *bed, uint32_t n)
{
    hr_sequence_t *both[2] = {bed->seq, bed->twin};
    for (int i = 0; i < 2; i++) {
        struct hr_tensor k =
            hr_tensor_make(bed->k + (size_t)bed->n * KV * D, HR_DTYPE_F32, n, KV, D);
        struct hr_tensor v =
            hr_tensor_make(bed->v + (size_t)bed->n * KV * D, HR_DTYPE_F32, n, KV, D);
        assert_ok(hr_sequence_append(both[i], 0, &k, &v, NULL));
    }
    bed->n += n;
}

static hr_status_t attend(hr_sequence_t *seq, struct bed *bed, uint32_t n,
                          const struct hr_attend_options *options, float *out,
                          struct hr_attend_report *report)
{
    struct hr_tensor q =
        hr_tensor_make(bed->q + (size_t)(bed->n - n) * HEADS * D, HR_DTYPE_F32, n, HEADS, D);
    struct hr_tensor o = hr_tensor_make(out, HR_DTYPE_F32, n, HEADS, D);
    return hr_sequence_attend(seq, 0, &q, options, &o, report, NULL);
}

static hr_status_t step(struct bed *bed, uint64_t deadline_ns, int strict,
                        struct hr_attend_report *report)
{
    struct hr_attend_options options;
    hr_attend_options_init(&options);
    options.deadline_ns = deadline_ns;
    options.strict_exact = strict;
    return attend(bed->seq, bed, 1, &options, bed->out, report);
}

static bool bed_make_threads(struct bed *bed, hr_io_mode_t mode, uint64_t host_bytes,
                             uint64_t io_timeout_ns, const char *recipe, uint32_t n_threads)
{
    struct random r = {.state = 7};
    struct hr_runtime_options o;
    struct hr_sequence_options so;
    memset(bed, 0, sizeof *bed);
    bed->io = fault_io_make();
    hr_runtime_options_init(&o);
    o.device_bytes = 32u << 20;
    o.host_bytes = host_bytes;
    o.file_dir = disk_dir();
    o.file_bytes = 64u << 20;
    o.io_mode = mode;
    o.io_timeout_ns = io_timeout_ns;
    o.n_threads = n_threads;
    hr_status_t status = hri_runtime_create(&o, &bed->io->ops, &bed->rt);
    if (status == HR_ERR_UNSUPPORTED)
        return false;
    assert_ok(status);
    o.file_dir = NULL;
    o.host_bytes = 64u << 20;
    o.io_mode = HR_IO_AUTO;
    assert_ok(hr_runtime_create(&o, &bed->twin_rt));
    options_for(&shape, TOKENS, recipe, 0.1, &so);
    assert_ok(hr_sequence_create(bed->rt, &so, &bed->seq));
    options_for(&shape, TOKENS, recipe, 0.1, &so);
    assert_ok(hr_sequence_create(bed->twin_rt, &so, &bed->twin));
    bed->k = malloc(sizeof(float) * TOKENS * KV * D);
    bed->v = malloc(sizeof(float) * TOKENS * KV * D);
    bed->q = malloc(sizeof(float) * TOKENS * HEADS * D);
    bed->out = malloc(sizeof(float) * TOKENS * HEADS * D);
    assert_true(bed->k && bed->v && bed->q && bed->out);
    rows_make(&r, &shape, TOKENS, bed->k, bed->v);
    queries_make(&r, &shape, TOKENS, bed->q);
    append(bed, PREFILL);
    assert_ok(attend(bed->seq, bed, PREFILL, NULL, bed->out, NULL));
    assert_ok(hr_sequence_settle(bed->seq, 0));
    assert_ok(hri_store_flush(bed->rt->store)); /* else all of it is still in write buffers */
    return true;
}

static bool bed_make(struct bed *bed, hr_io_mode_t mode, uint64_t host_bytes,
                     uint64_t io_timeout_ns, const char *recipe)
{
    return bed_make_threads(bed, mode, host_bytes, io_timeout_ns, recipe, 2);
}

static void bed_free(struct bed *bed)
{
    hr_sequence_destroy(bed->seq);
    hr_sequence_destroy(bed->twin);
    assert_ok(hr_runtime_destroy(bed->rt));
    assert_ok(hr_runtime_destroy(bed->twin_rt));
    free(bed->k);
    free(bed->v);
    free(bed->q);
    free(bed->out);
}

/* All rows are those that were appended: exact attention gives what the twin gives, bit for bit. */
static void check_rows(struct bed *bed)
{
    static float twin[HEADS * D];
    struct hr_attend_options options;
    hr_attend_options_init(&options);
    options.mode = HR_ATTEND_EXACT;
    assert_ok(attend(bed->seq, bed, 1, &options, bed->out, NULL));
    assert_ok(attend(bed->twin, bed, 1, &options, twin, NULL));
    assert_memory_equal(bed->out, twin, sizeof twin);
}

static uint64_t allocations(const struct bed *bed)
{
    struct hr_runtime_stats stats = {.struct_size = sizeof stats};
    assert_ok(hr_runtime_stats_get(bed->rt, &stats));
    return stats.allocations;
}

/* Every block is chosen at one level and counted once. */
static void check_counts(const struct bed *bed, const struct hr_attend_report *r)
{
    uint64_t rows = 0;
    for (int i = 0; i < HR_LEVELS; i++)
        rows += r->rows_by_level[i];
    assert_int_equal(rows, (uint64_t)bed->n * KV);
    assert_int_equal(r->blocks_total,
                     r->blocks_hit + r->blocks_fetched + r->blocks_estimated + r->blocks_late);
    assert_true(r->blocks_lost <= r->blocks_late);
    assert_true(isfinite(r->late_error) && (r->late_error > 0) == (r->blocks_late > 0));
    assert_true(r->predicted_error >= r->late_error * (1 - 1e-6));
}

/* The disk stops answering: in the long form for 30 s, with the time-outs of every day; else everything is scaled down. */
static void test_stall(void **state)
{
    (void)state;
    for (size_t m = 0; m < sizeof modes / sizeof modes[0]; m++) {
        uint64_t stall_ns = long_form() ? 30000000000u : 1500000000u;
        uint64_t timeout_ns = long_form() ? 0 : 1500000000u, deadline_ns = 20000000;
        struct bed bed;
        struct hr_attend_report report;
        /* One thread, as it must not sleep for the work of another. */
        if (!bed_make_threads(&bed, modes[m], 0, timeout_ns, "headrace", 1))
            continue;
        for (int i = 0; i < 10; i++) {
            append(&bed, 1);
            assert_ok(step(&bed, 0, 0, &report));
            assert_true(report.blocks_late == 0 && report.late_error == 0);
        }
        uint64_t allocated = allocations(&bed), late = 0, longest_ns = 0, over = 0, n = 0;
        uint64_t begin_ns = hri_now_ns();
        bed.io->stalled = 1;
        while (hri_now_ns() - begin_ns < stall_ns) {
            int64_t t0 = slept_ns();
            assert_ok(step(&bed, deadline_ns, 0, &report));
            uint64_t took_ns = slept_since(t0);
            check_counts(&bed, &report);
            late += report.blocks_late;
            longest_ns = took_ns > longest_ns ? took_ns : longest_ns;
            over += took_ns > deadline_ns + 5000000;
            n++;
            if (bed.n < PREFILL + 60) /* rows go on to be written behind */
                append(&bed, 1);
        }
        bed.io->stalled = 0;
        print_message(
            "mode %zu: %llu steps in a stall of %.1f s, the longest waited %.1f ms, %llu more than "
            "5 ms over 20 ms; %llu blocks late\n",
            m, (unsigned long long)n, (double)stall_ns * 1e-9, (double)longest_ns * 1e-6,
            (unsigned long long)over, (unsigned long long)late);
        assert_true(late > 0 && n > 0);
        assert_true(over <= n / 10 && longest_ns < 10 * deadline_ns); /* a timer may be late */
        assert_int_equal(allocations(&bed), allocated);
        for (int i = 0; i < 20; i++) {
            append(&bed, 1);
            assert_ok(step(&bed, 0, 1, &report));
            assert_int_equal(report.blocks_late, 0);
        }
        check_rows(&bed);
        bed_free(&bed);
    }
}

/* What comes too late for its step goes to the host tier, where the next one finds it. */
static void test_late_serves_the_next_step(void **state)
{
    (void)state;
    for (size_t m = 0; m < sizeof modes / sizeof modes[0]; m++) {
        struct bed bed;
        struct hr_attend_report report;
        uint64_t first = 0;
        if (!bed_make(&bed, modes[m], 0, 0, "headrace"))
            continue;
        bed_free(&bed);
        bed_make(&bed, modes[m], 256u << 10, 0, "headrace");
        for (int turn = 0; turn < 40; turn++) {
            bed.io->stalled = 1;
            append(&bed, 1);
            assert_ok(step(&bed, 1, 0, &report));
            bed.io->stalled = 0;
            if (report.blocks_late == 0)
                continue;
            first += report.blocks_late;
            for (int i = 0; i < 200 && report.blocks_late > 0; i++) {
                nap_ms(2);
                assert_ok(step(&bed, 1, 0, &report));
                check_counts(&bed, &report);
            }
            assert_int_equal(report.blocks_late, 0);
        }
        assert_true(first > 0);
        check_rows(&bed);
        bed_free(&bed);
    }
}

/* With strict_exact a step waits, to a hard time-out that is an error; afterwards it goes on. */
static void test_strict(void **state)
{
    (void)state;
    for (size_t m = 0; m < sizeof modes / sizeof modes[0]; m++) {
        struct bed bed;
        struct hr_attend_report report;
        if (!bed_make(&bed, modes[m], 0, 300000000, "headrace"))
            continue;
        hr_status_t status = HR_OK;
        bed.io->stalled = 1;
        for (int i = 0; i < 20 && status == HR_OK; i++) {
            uint64_t t0 = hri_now_ns();
            append(&bed, 1);
            status = step(&bed, 1000000, 1, &report);
            assert_true(status == HR_OK || hri_now_ns() - t0 >= 290000000);
        }
        assert_int_equal(status, HR_ERR_TIMEOUT);
        assert_non_null(strstr(hr_last_error(), "layer 0, kv-head"));
        bed.io->stalled = 0;
        assert_ok(step(&bed, 1000000, 1, &report));
        assert_int_equal(report.blocks_late, 0);
        check_rows(&bed);
        bed_free(&bed);
    }
}

/* Without a deadline a stall ends in the same error; rows have no level below and are waited for, whatever the deadline. */
static void test_no_deadline(void **state)
{
    (void)state;
    static const char *const recipes[] = {"headrace", "exact-topk", "quest"};
    for (int i = 0; i < 3; i++) {
        struct bed bed;
        struct hr_attend_report report;
        bed_make(&bed, HR_IO_AUTO, 0, 200000000, recipes[i]);
        bed.io->stalled = 1;
        append(&bed, 1);
        assert_int_equal(step(&bed, i == 1 ? 1000000 : 0, 0, &report), HR_ERR_TIMEOUT);
        bed.io->stalled = 0;
        if (i !=
            1) { /* exact rows are read straight to where they are used: the tier was given up with them */
            assert_ok(step(&bed, 0, 0, &report));
            check_rows(&bed);
        }
        bed_free(&bed);
    }
}

/* Blocks that cannot be read stay at their sketch or summary and are counted; strict_exact makes that an error that names tokens. */
static void test_lost(void **state)
{
    (void)state;
    static const char *const recipes[] = {"headrace", "headrace:sketch=0"};
    for (size_t m = 0; m < sizeof modes / sizeof modes[0]; m++)
        for (int kind = 0; kind < 2; kind++) {
            struct bed bed;
            struct hr_attend_report report = {0};
            if (!bed_make(&bed, modes[m], 0, 0, recipes[kind]))
                continue;
            fault_io_arm(bed.io, false, kind ? FAULT_ERROR : FAULT_FLIP, EIO, 0, 1000000);
            for (int i = 0; i < 20 && report.blocks_lost == 0; i++) {
                append(&bed, 1);
                assert_ok(step(&bed, 0, 0, &report));
                check_counts(&bed, &report);
            }
            assert_true(report.blocks_lost > 0);
            assert_fails(step(&bed, 0, 1, &report), kind ? HR_ERR_IO : HR_ERR_CORRUPT,
                         "layer 0, kv-head");
            fault_io_disarm(bed.io);
            assert_ok(step(&bed, 0, 1, &report));
            assert_int_equal(report.blocks_late, 0);
            check_rows(&bed);
            bed_free(&bed);
        }
}

/* -- calls that meet a disk in trouble half-way -- */

static void check_cut(struct bed *bed, uint32_t n)
{
    hr_sequence_t *both[2] = {bed->seq, bed->twin};
    for (int i = 0; i < 2; i++)
        assert_ok(hr_sequence_truncate(both[i], n));
    bed->n = n;
    append(bed, 1);
    check_rows(bed);
}

/* A truncate that cannot read what its window needs leaves the sequence as it was, and works once the disk does. */
static void test_truncate(void **state)
{
    static const struct {
        int kind, error;
        hr_status_t status;
    } faults[] = {
        {FAULT_ERROR, EIO, HR_ERR_IO}, {FAULT_ZERO, 0, HR_ERR_IO}, {FAULT_FLIP, 0, HR_ERR_CORRUPT}};
    (void)state;
    for (size_t m = 0; m < sizeof modes / sizeof modes[0]; m++)
        for (int f = 0; f < 3; f++) {
            struct bed bed;
            if (!bed_make(&bed, modes[m], 0, 0, "headrace"))
                continue;
            fault_io_arm(bed.io, false, faults[f].kind, faults[f].error, 0, 1000000);
            assert_fails(hr_sequence_truncate(bed.seq, 1000), faults[f].status, "tokens");
            assert_int_equal(hr_sequence_length(bed.seq, 0), PREFILL);
            fault_io_disarm(bed.io);
            check_rows(&bed);
            check_cut(&bed, 1000);
            bed_free(&bed);
        }
}

/* The disk is silent: a truncate ends with its time-out; where the disk answers in time, it waits. */
static void test_truncate_stalled(void **state)
{
    struct bed bed;
    (void)state;
    bed_make(&bed, HR_IO_AUTO, 0, 300000000, "headrace");
    bed.io->stalled = 1;
    int64_t begin_ns = slept_ns();
    assert_int_equal(hr_sequence_truncate(bed.seq, 1000), HR_ERR_TIMEOUT);
    assert_true(slept_since(begin_ns) < 5 * 300000000u);
    assert_int_equal(hr_sequence_length(bed.seq, 0), PREFILL);
    bed.io->stalled = 0;
    bed_free(&bed);
}

struct canceler {
    struct bed *bed;
    bool dead;            /* the disk answers when the call has returned, or after DEAD_MS */
    _Atomic int returned; /* the call has */
};
#define DEAD_MS 60000

static void *cancel_later(void *argument)
{
    struct canceler *c = argument;
    nap_ms(50);
    hr_sequence_cancel(c->bed->seq);
    for (int i = 0; i < (c->dead ? DEAD_MS : 100) && (!c->dead || !c->returned); i++)
        nap_ms(1);
    if (!c->dead)
        c->bed->io->stalled = 0;
    return NULL;
}

/* Canceled while the disk is silent: the call ends when the disk answers, and the sequence goes on; where the disk never does, with its
 * time-outs. */
static void test_cancel_stalled(void **state)
{
    (void)state;
    for (size_t m = 0; m < sizeof modes / sizeof modes[0]; m++)
        for (int dead = 0; dead < 2; dead++) {
            struct bed bed;
            struct hr_attend_options options;
            pthread_t thread;
            if (!bed_make(&bed, modes[m], 0, dead ? 300000000 : 0, "headrace"))
                continue;
            struct canceler canceler = {.bed = &bed, .dead = dead};
            hr_attend_options_init(&options);
            options.mode = HR_ATTEND_EXACT;
            bed.io->stalled = 1;
            assert_int_equal(pthread_create(&thread, NULL, cancel_later, &canceler), 0);
            hr_status_t status = attend(bed.seq, &bed, PREFILL, &options, bed.out, NULL);
            int still = bed.io->stalled;
            canceler.returned = 1;
            pthread_join(thread, NULL);
            assert_int_equal(status, dead ? HR_ERR_TIMEOUT : HR_ERR_CANCELED);
            assert_int_equal(still, dead);
            if (!dead)
                check_rows(&bed);
            struct fault_io *io = bed.io;
            bed_free(&bed);
            if (dead) { /* what it was asked for comes now, and is written to memory that nobody else has */
                io->stalled = 0;
                nap_ms(50);
            }
        }
}

/* A hint needs no disk. */
static void test_prefetch_stalled(void **state)
{
    struct bed bed;
    (void)state;
    bed_make(&bed, HR_IO_AUTO, 0, 0, "infinigen");
    struct hr_tensor q = hr_tensor_make(bed.q, HR_DTYPE_F32, 1, HEADS, D);
    long reads = bed.io->n_reads;
    bed.io->stalled = 1;
    assert_ok(hr_sequence_prefetch(bed.seq, 0, &q, NULL));
    assert_int_equal(bed.io->n_reads, reads);
    bed.io->stalled = 0;
    check_rows(&bed);
    bed_free(&bed);
}

/* Mean relative distance over query heads. */
static double distance(const float *got, const float *want)
{
    double sum = 0;
    for (int h = 0; h < HEADS; h++) {
        double far = 0, size = 0;
        for (int j = h * D; j < (h + 1) * D; j++) {
            far += ((double)got[j] - (double)want[j]) * ((double)got[j] - (double)want[j]);
            size += (double)want[j] * (double)want[j];
        }
        sum += sqrt(far / size) / HEADS;
    }
    return sum;
}

/* Late blocks make the output worse than in time, and about as wrong as the predicted error says. */
static void test_late_error_is_honest(void **state)
{
    (void)state;
    static float late_out[HEADS * D], exact[HEADS * D];
    struct bed bed;
    struct hr_attend_options options;
    double predicted = 0, true_late = 0, true_in_time = 0;
    uint32_t n = 0;
    bed_make(&bed, HR_IO_AUTO, 0, 0, "headrace");
    hr_attend_options_init(&options);
    options.mode = HR_ATTEND_EXACT;
    for (int i = 0; i < 40; i++) {
        struct hr_attend_report late, in_time;
        append(&bed, 1);
        bed.io->stalled = 1;
        assert_ok(step(&bed, 1, 0, &late));
        bed.io->stalled = 0;
        memcpy(late_out, bed.out, sizeof late_out);
        assert_ok(step(&bed, 0, 0, &in_time));
        assert_ok(attend(bed.twin, &bed, 1, &options, exact, NULL));
        if (late.blocks_late == 0)
            continue;
        n++;
        predicted += late.predicted_error;
        true_late += distance(late_out, exact);
        true_in_time += distance(bed.out, exact);
    }
    print_message("%u steps with late blocks: predicted %.4f, true %.4f, in time %.4f\n", n,
                  predicted / n, true_late / n, true_in_time / n);
    assert_true(n > 10 && true_late > true_in_time);
    assert_true(predicted > true_late / 4 && predicted < true_late * 4);
    bed_free(&bed);
}

/* usage: test_deadline [TEST] */
int main(int argc, char **argv)
{
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stall),          cmocka_unit_test(test_late_serves_the_next_step),
        cmocka_unit_test(test_strict),         cmocka_unit_test(test_no_deadline),
        cmocka_unit_test(test_lost),           cmocka_unit_test(test_late_error_is_honest),
        cmocka_unit_test(test_truncate),       cmocka_unit_test(test_truncate_stalled),
        cmocka_unit_test(test_cancel_stalled), cmocka_unit_test(test_prefetch_stalled),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
