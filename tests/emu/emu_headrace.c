/* The tool with the emulated device where CUDA's would be, for tests alone: `--device cuda` is the emulator, which says so. EMU_LOSS=N loses it
 * after N waits, EMU_MEMORY=BYTES is what it has, EMU_FAULT=no-driver, old-driver, no-code or no-pinning. */
#include "tests/emu/device_emu.h"

#include <stdlib.h>
#include <string.h>

static bool fault_is(const char *name)
{
    const char *fault = getenv("EMU_FAULT");
    return fault != NULL && strcmp(fault, name) == 0;
}

/* Takes the place of the one of a build without CUDA (kernels/device.c). */
const struct hri_device_ops *hri_device_cuda_get(void)
{
    const char *loss = getenv("EMU_LOSS"), *memory = getenv("EMU_MEMORY");
    device_emu_faults.loss = loss != NULL;
    device_emu_faults.waits_before_loss = loss != NULL ? (uint32_t)strtoul(loss, NULL, 10) : 0;
    device_emu_faults.memory_bytes = memory != NULL ? strtoul(memory, NULL, 10) : 0;
    device_emu_faults.no_driver = fault_is("no-driver");
    device_emu_faults.count_error = fault_is("old-driver") ? DEVICE_EMU_OLD_DRIVER : 0;
    device_emu_faults.no_code = fault_is("no-code");
    device_emu_faults.no_pinning = fault_is("no-pinning");
    return device_emu_ops();
}
