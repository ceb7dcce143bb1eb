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
    uint64_t threads;
};

#define CLI_PLACE_DEFAULTS                                                                                             \
    {                                                                                                                  \
        .device_bytes = 256u << 20, .host_bytes = 1u << 30, .io = "auto"                                               \
    }

/* Rows for a command's option table; place is a struct cli_place. */
#define CLI_PLACE_OPTIONS(place)                                                                                       \
    {.text = "Where the KV cache lies:"},                                                                              \
        {.name = "device-bytes",                                                                                       \
         .kind = CLI_BYTES,                                                                                            \
         .value = &(place).device_bytes,                                                                               \
         .metavar = "SIZE",                                                                                            \
         .text = "budget of the fast tier: sink, window, summaries, blocks in use"},                                   \
        {.name = "host-bytes",                                                                                         \
         .kind = CLI_BYTES,                                                                                            \
         .value = &(place).host_bytes,                                                                                 \
         .metavar = "SIZE",                                                                                            \
         .text = "budget of the host tier; without --file-dir it must hold everything"},                               \
        {.name = "file-dir",                                                                                           \
         .kind = CLI_STRING,                                                                                           \
         .value = &(place).file_dir,                                                                                   \
         .metavar = "DIR",                                                                                             \
         .text = "folder of the file tier; its file has no name and goes with the process"},                           \
        {.name = "file-bytes",                                                                                         \
         .kind = CLI_BYTES,                                                                                            \
         .value = &(place).file_bytes,                                                                                 \
         .metavar = "SIZE",                                                                                            \
         .text = "cap on what the file takes on disk; required with --file-dir"},                                      \
        {.name = "io",                                                                                                 \
         .kind = CLI_CHOICE,                                                                                           \
         .value = &(place).io,                                                                                         \
         .metavar = "MODE",                                                                                            \
         .choices = "auto uring uring-plain threads",                                                                  \
         .text = "how the file is read: auto (first that works), uring (registered files\n"                            \
                 "and buffers), uring-plain, threads (pread and pwrite)"},                                             \
        {.text = "Machine:"},                                                                                          \
        {.name = "threads",                                                                                            \
         .kind = CLI_COUNT,                                                                                            \
         .value = &(place).threads,                                                                                    \
         .metavar = "N",                                                                                               \
         .min = 1,                                                                                                     \
         .max = 256,                                                                                                   \
         .text = "worker threads [one per core]"},                                                                     \
    {                                                                                                                  \
        .name = "cpu", .kind = CLI_CHOICE, .value = &(place).cpu, .metavar = "LEVEL", .choices = "ref avx2 avx512",    \
        .text = "kernels: ref, avx2 or avx512 [the best there is]"                                                     \
    }

/* -1, or the exit code after a message, when the options do not fit together. */
int cli_place_check(const char *command, const struct cli_place *place);

/* The runtime's options; log lines of level warning and above go to standard error. */
struct hr_runtime_options cli_place_runtime_options(const struct cli_place *place);

/* Most bytes that a runtime with these options can come to hold in memory. */
uint64_t cli_place_memory_bytes(const struct cli_place *place);

#endif
