/* A sandbox that refuses io_uring, as container runtimes do: the store falls to threads and
 * everything works. */
#include "tests/offload/lanes.h"

#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef __NR_io_uring_setup
#define __NR_io_uring_setup    425
#define __NR_io_uring_enter    426
#define __NR_io_uring_register 427
#endif

/* Kinds of refusal: of the set-up, or only of the later calls, so that a ring can be made but not
 * used. */
static bool refuse(int error, bool setup_too)
{
    uint32_t first = setup_too ? __NR_io_uring_setup : __NR_io_uring_enter;
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, first, 0, 2),
        BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, __NR_io_uring_register, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ((uint32_t)error & SECCOMP_RET_DATA)),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof filter / sizeof filter[0], filter};
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

#define CHILD_NO_FILTER 3

static int child(int error, bool setup_too)
{
    if (!refuse(error, setup_too))
        return CHILD_NO_FILTER;
    struct hri_store_options options = {
        .host_bytes = 1u << 20, .file_dir = model_dir(false), .file_bytes = 32u << 20};
    struct hri_store *store;
    if (hri_store_create(&options, &store) != HR_OK) {
        fprintf(stderr, "create: %s\n", hr_last_error());
        return 1;
    }
    struct hri_store_stats stats;
    hri_store_stats(store, &stats);
    struct model_lane lane;
    struct hri_rng rng;
    hri_rng_seed(&rng, 1);
    model_create(store, &lane, 32768, HRI_LANE_LOG, 1);
    bool good = strcmp(stats.io_mode, "threads") == 0 && model_append(&lane, &rng, 200) == HR_OK &&
                model_verify(store, &lane) == 0 && hri_store_flush(store) == HR_OK &&
                model_verify(store, &lane) == 0;
    hri_store_stats(store, &stats);
    good = good && stats.file_reads > 0;
    hri_store_destroy(store);
    options.io_mode = HR_IO_URING;
    good = good && hri_store_create(&options, &store) != HR_OK;
    return good ? 0 : 1;
}

static void run_child(int error, bool setup_too)
{
    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0)
        _exit(child(error, setup_too));
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == CHILD_NO_FILTER)
        skip();
    assert_int_equal(WEXITSTATUS(status), 0);
}

static void test_setup_refused(void **state)
{
    (void)state;
    run_child(EPERM, true);
    run_child(ENOSYS, true);
}

static void test_use_refused(void **state)
{
    (void)state;
    run_child(EPERM, false);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_setup_refused),
        cmocka_unit_test(test_use_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
