/* The names of device_emu.h on a real GPU, so that the tests of the device layer and of whole steps run there as
 * they are: CUDA's operations with the same faults put in between. */
#include "tests/emu/device_emu.h"

#include <stdio.h>
#include <stdlib.h>

#define RANGES_MAX 256u

struct device_emu_faults device_emu_faults;

static struct {
    void *base;
    size_t bytes;
} device_memory[RANGES_MAX], pinned[RANGES_MAX];
static struct device_emu_counts counts;
static uint32_t n_waits, n_pins;
static bool lost;
static void *the_stream;

static const struct hri_device_ops *real(void)
{
    return hri_device_cuda_get();
}

static size_t memory_bytes(void)
{
    return device_emu_faults.memory_bytes ? device_emu_faults.memory_bytes : 1u << 30;
}

#define NOTE(list, memory, size)                                                                   \
    for (unsigned note = 0; note < RANGES_MAX; note++)                                             \
        if (list[note].base == NULL) {                                                             \
            list[note].base = memory;                                                              \
            list[note].bytes = size;                                                               \
            break;                                                                                 \
        }
#define FORGET(list, memory, sum)                                                                  \
    for (unsigned note = 0; note < RANGES_MAX; note++)                                             \
        if (list[note].base == memory) {                                                           \
            sum -= list[note].bytes;                                                               \
            list[note].base = NULL;                                                                \
            break;                                                                                 \
        }

static int count(uint32_t *driver_out, uint32_t *runtime_out, uint32_t *n_devices_out)
{
    const struct device_emu_faults *f = &device_emu_faults;
    int error = real()->count(driver_out, runtime_out, n_devices_out);
    *n_devices_out = *n_devices_out > 0 ? 1 : 0;
    if (f->no_driver || f->no_device || f->count_error)
        *n_devices_out = 0;
    if (f->no_driver)
        *driver_out = 0;
    if (f->count_error == DEVICE_EMU_OLD_DRIVER) {
        *driver_out = 11040;
        *runtime_out = 13000;
    }
    return f->no_driver ? DEVICE_EMU_OLD_DRIVER : f->count_error ? f->count_error : error;
}

static int open_device(uint32_t ordinal, struct hri_device_facts *facts_out)
{
    int error = real()->open(ordinal, facts_out);
    n_waits = n_pins = 0;
    lost = false;
    facts_out->memory_bytes = memory_bytes();
    facts_out->free_bytes = memory_bytes() - counts.device_bytes;
    return error;
}

static int alloc(size_t bytes, void **memory_out)
{
    if (counts.device_bytes + bytes > memory_bytes())
        return DEVICE_EMU_NO_MEMORY;
    int error = real()->alloc(bytes, memory_out);
    if (error != 0)
        return error;
    NOTE(device_memory, *memory_out, bytes)
    counts.device_bytes += bytes;
    return 0;
}

static void free_memory(void *memory)
{
    FORGET(device_memory, memory, counts.device_bytes)
    real()->free(memory);
}

static bool pin_refused(void)
{
    return device_emu_faults.no_pinning ||
           (device_emu_faults.pins_end && n_pins >= device_emu_faults.pins_before);
}

static int pin(void *base, size_t bytes)
{
    if (pin_refused())
        return DEVICE_EMU_REFUSED;
    int error = real()->pin(base, bytes);
    if (error != 0)
        return error;
    n_pins++;
    NOTE(pinned, base, bytes)
    counts.pinned_bytes += bytes;
    return 0;
}

static void unpin(void *base)
{
    FORGET(pinned, base, counts.pinned_bytes)
    real()->unpin(base);
}

static int host_alloc(size_t bytes, void **memory_out)
{
    return pin_refused() ? DEVICE_EMU_REFUSED : real()->host_alloc(bytes, memory_out);
}

static int stream_create(void **stream_out)
{
    int error = real()->stream_create(stream_out);
    the_stream = error == 0 ? *stream_out : NULL;
    return error;
}

static int stream_wait(void *stream)
{
    counts.waits++;
    int error = real()->stream_wait(stream);
    if (device_emu_faults.loss && n_waits++ >= device_emu_faults.waits_before_loss)
        lost = true;
    if (lost)
        return DEVICE_EMU_LOST;
    return error == 0 && device_emu_faults.no_code ? DEVICE_EMU_NO_CODE : error;
}

static int event_query(void *event)
{
    if (device_emu_faults.loss_asked) {
        (void)real()->stream_wait(the_stream);
        lost = true;
        return DEVICE_EMU_LOST;
    }
    return real()->event_query(event);
}

static int copy(void *to, size_t to_stride, const void *from, size_t from_stride, size_t bytes,
                size_t n, void *stream)
{
    counts.copies++;
    return real()->copy(to, to_stride, from, from_stride, bytes, n, stream);
}

static int graph_launch(void *graph, void *stream)
{
    counts.graph_launches++;
    return real()->graph_launch(graph, stream);
}

const struct hri_device_ops *device_emu_ops(void)
{
    static struct hri_device_ops ops;
    if (ops.name == NULL) {
        ops = *real();
        ops.pin_bytes_max = 2u << 20;
        ops.count = count;
        ops.open = open_device;
        ops.alloc = alloc;
        ops.free = free_memory;
        ops.pin = pin;
        ops.unpin = unpin;
        ops.host_alloc = host_alloc;
        ops.stream_create = stream_create;
        ops.stream_wait = stream_wait;
        ops.event_query = event_query;
        ops.copy = copy;
        ops.graph_launch = graph_launch;
    }
    return &ops;
}

int device_emu_available(void)
{
    uint32_t driver, runtime, n = 0;
    return real()->count(&driver, &runtime, &n) == 0 && n > 0;
}

uint32_t device_emu_waits(void)
{
    return n_waits;
}

struct device_emu_counts device_emu_counts(void)
{
    return counts;
}

void device_emu_read(void *to, const void *from, size_t bytes)
{
    if (real()->copy(to, bytes, from, bytes, bytes, 1, the_stream) != 0 ||
        real()->stream_wait(the_stream) != 0) {
        fprintf(stderr, "device_gpu: a read failed\n");
        abort();
    }
}
