/* The emulator as a device (kernels/device.h), for tests alone. It is as late as a GPU may be: launches and
 * copies are queued and run when somebody waits for the stream, so that reading a result or reusing a buffer
 * too early is seen; and device memory cannot be touched by the host at all in between. */
#ifndef DEVICE_EMU_H
#define DEVICE_EMU_H

#include "kernels/device.h"

/* What goes wrong, for tests; all zero: nothing. */
struct device_emu_faults {
    int count_error;           /* of the count: DEVICE_EMU_... */
    bool no_driver, no_device; /* count says so */
    bool no_code;              /* the first launch fails */
    bool no_pinning;           /* pinned host memory is refused */
    uint32_t pins_before;      /* with pins_end: registrations that pass before one is refused */
    bool pins_end;
    size_t memory_bytes;        /* of the device; 0: 1 GiB */
    uint32_t waits_before_loss; /* with loss: waits that pass */
    bool loss;
    bool loss_asked; /* lost when an event is asked for */
};
extern struct device_emu_faults device_emu_faults;
enum {
    DEVICE_EMU_NO_MEMORY = 2,
    DEVICE_EMU_OLD_DRIVER = 35,
    DEVICE_EMU_REFUSED = 1,
    DEVICE_EMU_NO_CODE = 209,
    DEVICE_EMU_NOT_READY = 600,
    DEVICE_EMU_LOST = 700,
    DEVICE_EMU_KERNEL = 719
};

const struct hri_device_ops *device_emu_ops(void);
/* 0: there is no device, and the test is skipped. The same names on a real GPU: tests/emu/device_gpu.c. */
int device_emu_available(void);
/* Launches run so far, graphs replayed so far, host memory pinned now. */
struct device_emu_counts {
    uint64_t graph_launches, copies, waits;
    size_t pinned_bytes, device_bytes;
    uint32_t ranges, ranges_open; /* of profilers: so far, now */
};
struct device_emu_counts device_emu_counts(void);
/* Waits since a device was opened, as waits_before_loss counts them. */
uint32_t device_emu_waits(void);
/* For a test that wants to look at device memory: copies it out, in the stream's order. */
void device_emu_read(void *to, const void *from, size_t bytes);

#endif
