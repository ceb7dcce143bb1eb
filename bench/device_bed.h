/* What the benchmarks of a GPU share: a device with its memory, and times between two of its events. */
#ifndef BENCH_DEVICE_BED_H
#define BENCH_DEVICE_BED_H

#include "bench/bench_device.h"
#include "bench/measure.h"

#define DIM    128u
#define HEADS  8u /* kv-heads */
#define GROUP  4u
#define RUNS   20u /* of what is measured, between two events */
#define LAYERS 32u /* of the model whose token is spoken of */

static inline const struct hri_device_ops *device_ops(void)
{
    return hrb_device_ops != NULL ? hrb_device_ops : hri_device_cuda_get();
}
static inline bool device_is_emulated(void)
{
    return device_ops() != NULL && device_ops()->emulated;
}

struct bed {
    struct hri_device *device;
    const struct hri_device_ops *ops;
    void *stream, *first, *last;
    struct hri_device_memory memory;
    bool tiny;
};

static inline int say(struct hrb_result *result)
{
    return hrb_failed(result, "%s", hr_last_error());
}

static inline void bed_close(struct bed *b)
{
    if (b->device == NULL)
        return;
    if (b->first != NULL)
        b->ops->event_destroy(b->first);
    if (b->last != NULL)
        b->ops->event_destroy(b->last);
    hri_device_free(b->device, &b->memory);
    hri_device_close(b->device);
}

/* -1: it is there; else the code to return. */
static inline int bed_events(struct bed *b, struct hri_device *device, struct hrb_result *result)
{
    b->ops = device_ops();
    b->tiny = b->ops->emulated;
    b->stream = hri_device_stream(device);
    if (b->ops->event_create(&b->first) != 0 || b->ops->event_create(&b->last) != 0)
        return hrb_failed(result, "no events");
    return -1;
}

static inline int bed_open(struct bed *b, size_t bytes, struct hrb_result *result)
{
    const struct hri_device_options o = {.ops = device_ops(), .budget_bytes = bytes};
    if (o.ops == NULL)
        return hrb_skip(result, "this build has no CUDA");
    if (hri_device_open(&o, &b->device) != HR_OK)
        return hrb_skip(result, "%s", hr_last_error());
    if (hri_device_alloc(b->device, "a benchmark", bytes, &b->memory) != HR_OK)
        return say(result);
    return bed_events(b, b->device, result);
}

/* Seconds of one of RUNS calls; negative: failed. */
static inline double seconds_of(const struct bed *b, int (*call)(void *), void *context)
{
    float ms = 0;
    int error = b->ops->event_record(b->first, b->stream);
    const unsigned runs = b->tiny ? 1 : RUNS;
    for (unsigned i = 0; i < runs && error == 0; i++)
        error = call(context);
    if (error == 0)
        error = b->ops->event_record(b->last, b->stream);
    if (error == 0)
        error = b->ops->stream_wait(b->stream);
    if (error == 0)
        error = b->ops->event_elapsed(b->first, b->last, &ms);
    return error == 0 ? (double)ms * 1e-3 / runs : -1;
}

static inline unsigned rounds_of(const struct bed *b, const struct hrb_options *options)
{
    return b->tiny ? 1 : options->quick ? 5 : 15;
}

#endif
