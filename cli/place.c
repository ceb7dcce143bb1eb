#include "cli/place.h"

#include <stdio.h>
#include <string.h>

#include "cli/out.h"

int cli_place_check(const char *command, const struct cli_place *place)
{
    if (place->file_dir && place->file_bytes == 0)
        return cli_usage_error(command,
                               "--file-dir '%s' needs --file-bytes, the most it may take on disk",
                               place->file_dir);
    if (!place->file_dir && place->file_bytes)
        return cli_usage_error(command, "--file-bytes needs --file-dir, the folder of the file");
    if (!place->file_dir && place->file_wipe)
        return cli_usage_error(command, "--file-wipe needs --file-dir, the folder of the file");
    return -1;
}

void cli_place_log(void *context, hr_log_level_t level, const char *line)
{
    static _Thread_local char
        last[512]; /* a GPU that is lost is lost to the model and to the cache */
    (void)context;
    if (level > HR_LOG_WARN || cli_out_is_quiet() || strncmp(line, last, sizeof last - 1) == 0)
        return;
    snprintf(last, sizeof last, "%s", line);
    cli_warn("%s", line);
}

static hr_io_mode_t io_mode_of(const char *name)
{
    return strcmp(name, "uring") == 0         ? HR_IO_URING
           : strcmp(name, "uring-plain") == 0 ? HR_IO_URING_PLAIN
           : strcmp(name, "threads") == 0     ? HR_IO_THREADS
                                              : HR_IO_AUTO;
}

struct hr_runtime_options cli_place_runtime_options(const struct cli_place *place)
{
    struct hr_runtime_options options;
    hr_runtime_options_init(&options);
    options.device_bytes = place->device_bytes;
    options.host_bytes = place->host_bytes;
    options.file_dir = place->file_dir;
    options.file_bytes = place->file_bytes;
    options.io_mode = io_mode_of(place->io);
    options.file_wipe = place->file_wipe;
    options.io_timeout_ns = (uint64_t)(place->io_timeout * 1e9);
    options.n_threads = (uint32_t)place->threads;
    options.cpu_level = place->cpu;
    options.device = place->device;
    options.log = cli_place_log;
    return options;
}

uint64_t cli_place_memory_bytes(const struct cli_place *place)
{
    return place->device_bytes + place->host_bytes;
}
