/* Where the KV cache may lie: the options that every command with a model shares. */
#ifndef CLI_PLACE_H
#define CLI_PLACE_H

#include <stdbool.h>
#include <stdint.h>

#include <headrace/headrace.h>

#include "cli/args.h"

struct cli_place {
    uint64_t device_bytes, host_bytes, file_bytes;
    const char *file_dir;
    const char *io;
    const char *cpu;
    const char *device; /* NULL: the CPU */
    uint64_t threads;
    double io_timeout; /* seconds */
    bool file_wipe;
};

#define CLI_PLACE_DEFAULTS                                                                         \
    {                                                                                              \
        .device_bytes = 256u << 20, .host_bytes = 1u << 30, .io = "auto", .io_timeout = 30         \
    }

/* Rows for a command's option table: uint64_t and const char *. */
#define CLI_MACHINE_OPTIONS(threads, cpu)                                                          \
    CLI_HEADING("Machine:"),                                                                       \
        CLI_RANGE("threads", CLI_COUNT, &(threads), "N", 1, 256, "worker threads [one per core]"), \
        CLI_WORD("cpu", &(cpu), "LEVEL", "ref avx2 avx512 amx",                                    \
                 "kernels: ref, avx2, avx512 or amx [the best there is]")

/* The same; place is a struct cli_place. */
#define CLI_PLACE_OPTIONS(place)                                                                   \
    CLI_HEADING("Where the KV cache lies:"),                                                       \
        CLI_OPTION("device", CLI_STRING, &(place).device, "DEVICE",                                \
                   "cpu, cuda or cuda:NUMBER: the model runs on that GPU, the fast tier is its "   \
                   "memory, and so are steps of headrace (not measured on a GPU) [cpu]"),          \
        CLI_OPTION("device-bytes", CLI_BYTES, &(place).device_bytes, "SIZE",                       \
                   "budget of the fast tier: sink, window, summaries, blocks in use"),             \
        CLI_OPTION("host-bytes", CLI_BYTES, &(place).host_bytes, "SIZE",                           \
                   "budget of the host tier; without --file-dir it must hold everything"),         \
        CLI_OPTION("file-dir", CLI_STRING, &(place).file_dir, "DIR",                               \
                   "folder of the file tier; its file has no name and goes with the process"),     \
        CLI_OPTION("file-bytes", CLI_BYTES, &(place).file_bytes, "SIZE",                           \
                   "cap on what the file takes on disk; required with --file-dir"),                \
        CLI_SWITCH("file-wipe", &(place).file_wipe,                                                \
                   "overwrite the file with zeros before it is closed"),                           \
        CLI_WORD("io", &(place).io, "MODE", "auto uring uring-plain threads",                      \
                 "how the file is read: auto (first that works), uring (registered files "         \
                 "and buffers), uring-plain, threads (pread and pwrite)"),                         \
        CLI_RANGE("io-timeout", CLI_REAL, &(place).io_timeout, "SECONDS", 0.001, 3600,             \
                  "no wait for the file lasts longer; after twice as long without an answer it "   \
                  "is given up"),                                                                  \
        CLI_MACHINE_OPTIONS((place).threads, (place).cpu)

/* -1, or the exit code after a message, when the options do not fit together. */
int cli_place_check(const char *command, const struct cli_place *place);

/* A log line of the library or the engine: warnings and errors go to standard error. */
void cli_place_log(void *context, hr_log_level_t level, const char *line);

/* The runtime's options; log lines of level warning and above go to standard error. */
struct hr_runtime_options cli_place_runtime_options(const struct cli_place *place);

/* Most bytes that a runtime with these options can come to hold in memory. */
uint64_t cli_place_memory_bytes(const struct cli_place *place);

#endif
