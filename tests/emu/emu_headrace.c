/* The tool with the emulated device where CUDA's would be, for tests alone: `--device cuda` is the emulator, which says so. EMU_LOSS=N loses it
 * after N waits, EMU_MEMORY=BYTES is what it has. */
#include "tests/emu/device_emu.h"

#include <stdlib.h>

/* Takes the place of the one of a build without CUDA (kernels/device.c). */
const struct hri_device_ops *hri_device_cuda_get(void)
{
    const char *loss = getenv("EMU_LOSS"), *memory = getenv("EMU_MEMORY");
    device_emu_faults.loss = loss != NULL;
    device_emu_faults.waits_before_loss = loss != NULL ? (uint32_t)strtoul(loss, NULL, 10) : 0;
    device_emu_faults.memory_bytes = memory != NULL ? strtoul(memory, NULL, 10) : 0;
    return device_emu_ops();
}
