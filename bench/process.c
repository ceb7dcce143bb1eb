#include "bench/process.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench/measure.h"

#define OUTPUT_BYTES_MAX (4u << 20) /* more than that is read and dropped */

extern char **environ;

bool hrb_program_exists(const char *name)
{
    const char *path = getenv("PATH");
    char file[PATH_MAX];
    while (path && *path) {
        size_t n = strcspn(path, ":");
        snprintf(file, sizeof file, "%.*s/%s", (int)n, path, name);
        if (access(file, X_OK) == 0)
            return true;
        path += n + (path[n] == ':');
    }
    return false;
}

/* Keeps the last line that is not empty. */
static void keep_line(struct hrb_process *p, const char *text, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        size_t at = strlen(p->message);
        if (text[i] == '\n' || text[i] == '\r')
            continue;
        if (i > 0 && (text[i - 1] == '\n' || text[i - 1] == '\r'))
            at = 0;
        if (at + 1 < sizeof p->message) {
            p->message[at] = text[i];
            p->message[at + 1] = '\0';
        }
    }
}

static bool keep_output(struct hrb_process *p, size_t *used, const char *text, size_t n)
{
    if (*used + n > OUTPUT_BYTES_MAX)
        return true;
    char *larger = realloc(p->output, *used + n + 1);
    if (!larger)
        return false;
    p->output = larger;
    memcpy(larger + *used, text, n);
    *used += n;
    larger[*used] = '\0';
    return true;
}

/* Both pipes to their ends, so that neither fills up. */
static void collect(struct hrb_process *p, int out, int err)
{
    struct pollfd fds[2] = {{out, POLLIN, 0}, {err, POLLIN, 0}};
    char text[4096];
    size_t used = 0;
    int open_fds = 2;
    while (open_fds > 0 && (poll(fds, 2, -1) >= 0 || errno == EINTR)) {
        for (int i = 0; i < 2; i++) {
            if (fds[i].fd < 0 || !fds[i].revents)
                continue;
            ssize_t n = read(fds[i].fd, text, sizeof text);
            if (n > 0 && i == 0)
                keep_output(p, &used, text, (size_t)n);
            else if (n > 0)
                keep_line(p, text, (size_t)n);
            else if (n == 0 || errno != EINTR) {
                fds[i].fd = -1;
                open_fds--;
            }
        }
    }
}

static bool spawn(const char *const *argv, pid_t *pid, int out[2], int err[2])
{
    posix_spawn_file_actions_t actions;
    char *args[64];
    size_t n = 0;
    for (; argv[n] && n < 63; n++)
        args[n] = (char *)(uintptr_t)argv[n]; /* posix_spawn does not write to them */
    args[n] = NULL;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, out[1], STDOUT_FILENO);
    posix_spawn_file_actions_adddup2(&actions, err[1], STDERR_FILENO);
    int code = posix_spawnp(pid, argv[0], &actions, NULL, args, environ);
    posix_spawn_file_actions_destroy(&actions);
    return code == 0;
}

bool hrb_process_run(const char *const *argv, struct hrb_process *process_out)
{
    int out[2], err[2], status = 0;
    struct rusage usage = {0};
    pid_t pid;
    memset(process_out, 0, sizeof *process_out);
    if (pipe2(out, O_CLOEXEC) < 0)
        return false;
    if (pipe2(err, O_CLOEXEC) < 0) {
        close(out[0]);
        close(out[1]);
        return false;
    }
    double start = hrb_seconds();
    bool started = spawn(argv, &pid, out, err);
    close(out[1]);
    close(err[1]);
    if (started) {
        collect(process_out, out[0], err[0]);
        while (wait4(pid, &status, 0, &usage) < 0 && errno == EINTR)
            continue;
    }
    close(out[0]);
    close(err[0]);
    process_out->seconds = hrb_seconds() - start;
    process_out->code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    process_out->peak_rss_bytes = (uint64_t)usage.ru_maxrss * 1024;
    return started;
}

void hrb_peer_script(const char *name, char *path, size_t path_bytes)
{
    const char *dir = getenv("HEADRACE_PEERS");
    snprintf(path, path_bytes, "%s/%s", dir && *dir ? dir : HRB_PEERS_DIR, name);
}

bool hrb_peer_is_there(const char *name, char *why, size_t why_bytes)
{
    char script[512];
    struct hrb_process p;
    const char *argv[] = {"sh", script, "check", NULL};
    hrb_peer_script(name, script, sizeof script);
    bool there = hrb_process_run(argv, &p) && p.code == 0;
    if (!there)
        snprintf(why, why_bytes, "%s", *p.message ? p.message : "the peer is not installed");
    free(p.output);
    return there;
}
