/* trace capture: records the rows and queries of some of a model's layers while it reads a text. */
#ifndef CLI_TRACE_CAPTURE_H
#define CLI_TRACE_CAPTURE_H

#include <stdbool.h>
#include <stdint.h>

#include "cli/args.h"
#include "cli/place.h"

struct cli_capture_options {
    const char *model, *file, *layers, *out;
    uint64_t tokens, seen, queries, stride, seed;
    struct cli_place place;
    bool allow_longer, quiet;
};

/* 0, or an exit code after a message; then no folder of it is there. */
int cli_trace_capture(const struct cli_capture_options *options);

#endif
