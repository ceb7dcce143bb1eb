/* A runtime on the device under test, or on the CPU alone, for tests of single layers. */
#ifndef DEVICE_RUNTIME_H
#define DEVICE_RUNTIME_H

#include "tests/emu/device_emu.h"
#include "tests/runtime/naive.h"
#include "tests/test.h"

#include "offload/io_ops.h"
#include "runtime/sequence.h"

#include <stdbool.h>
#include <unistd.h>

static struct hri_device *the_device; /* of the last runtime that has one */

static inline hr_runtime_t *runtime_on(const char *device, uint64_t host_bytes, bool file)
{
    struct hr_runtime_options o;
    hr_runtime_t *rt = NULL;
    hr_runtime_options_init(&o);
    o.device = device;
    o.device_bytes = 64u << 20;
    o.host_bytes = host_bytes;
    if (file) {
        o.file_dir = access(disk_dir(), W_OK) == 0 ? disk_dir() : "/var/tmp"; /* in a bundle */
        o.file_bytes = 64u << 20;
    }
    o.n_threads = 1;
    assert_ok(hri_runtime_create_on(&o, hri_io_real(), device_emu_ops(), &rt));
    the_device = rt->gpu != NULL ? rt->gpu : the_device;
    return rt;
}

#endif
