#include "tests/emu/device_emu.h"

#include "kernels/emu/emu_api.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define RANGES_MAX 2048u
#define QUEUE_MAX  65536u

struct device_emu_faults device_emu_faults;

struct span {
    unsigned char *base;
    size_t bytes;
    size_t mapped; /* device memory: whole pages */
};
struct event {
    int done;
    struct timespec at;
};
struct node { /* of the queue */
    struct hri_emu_graph *graph;
    bool owned; /* freed once run */
    void *to, *snapshot;
    const void *from;
    size_t to_stride, from_stride, bytes, n;
    int fill; /* -1: a copy */
    struct event *event;
};

static struct span device_memory[RANGES_MAX], pinned[RANGES_MAX];
static unsigned n_device, n_pinned;
static struct node queue[QUEUE_MAX];
static unsigned n_queue;
static struct device_emu_counts counts;
static bool recording; /* a graph that the caller records, not the stream */
static uint32_t n_waits, n_pins;
static bool lost;

static void give_up(const char *what)
{
    fprintf(stderr, "device_emu: %s\n", what);
    abort();
}

/* -- memory -- */

static bool inside(const struct span *s, const void *p)
{
    return (const unsigned char *)p >= s->base && (const unsigned char *)p < s->base + s->bytes;
}

static bool is_in(const struct span *spans, unsigned n, const void *p)
{
    for (unsigned i = 0; i < n; i++)
        if (inside(&spans[i], p))
            return true;
    return false;
}

static void protect(int how)
{
    for (unsigned i = 0; i < n_device; i++)
        if (mprotect(device_memory[i].base, device_memory[i].mapped, how) != 0)
            give_up("mprotect");
}

static int emu_alloc(size_t bytes, void **memory_out)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), mapped = (bytes + page - 1) / page * page;
    const size_t all = device_emu_faults.memory_bytes ? device_emu_faults.memory_bytes : 1u << 30;
    if (counts.device_bytes + bytes > all)
        return DEVICE_EMU_NO_MEMORY;
    void *base = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED || n_device == RANGES_MAX)
        give_up("out of memory");
    memset(base, 0xff, mapped);
    hri_emu_register(base, bytes);
    device_memory[n_device++] = (struct span){base, bytes, mapped};
    counts.device_bytes += bytes;
    protect(PROT_NONE);
    *memory_out = base;
    return 0;
}

static int queue_run(void);

/* What is under way may still use it: as cudaFree, this waits. */
static void emu_free(void *memory)
{
    (void)queue_run();
    for (unsigned i = 0; i < n_device; i++) {
        if (device_memory[i].base != memory)
            continue;
        hri_emu_unregister(memory);
        counts.device_bytes -= device_memory[i].bytes;
        munmap(memory, device_memory[i].mapped);
        device_memory[i] = device_memory[--n_device];
        return;
    }
    give_up("free of what is no device memory");
}

static int pin(void *base, size_t bytes)
{
    if (device_emu_faults.no_pinning ||
        (device_emu_faults.pins_end && n_pins >= device_emu_faults.pins_before))
        return DEVICE_EMU_REFUSED;
    if (n_pinned == RANGES_MAX)
        give_up("too much pinned");
    n_pins++;
    hri_emu_register(base, bytes);
    pinned[n_pinned++] = (struct span){base, bytes, 0};
    counts.pinned_bytes += bytes;
    return 0;
}

static void unpin(void *base)
{
    for (unsigned i = 0; i < n_pinned; i++) {
        if (pinned[i].base != base)
            continue;
        hri_emu_unregister(base);
        counts.pinned_bytes -= pinned[i].bytes;
        pinned[i] = pinned[--n_pinned];
        return;
    }
    give_up("unpin of what is not pinned");
}

static int host_alloc(size_t bytes, void **memory_out)
{
    void *memory = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    if (memory == NULL)
        give_up("out of memory");
    const int error = pin(memory, bytes);
    if (error == 0)
        *memory_out = memory;
    else
        free(memory);
    return error;
}

static void host_free(void *memory)
{
    unpin(memory);
    free(memory);
}

/* -- the queue -- */

static void push(struct node node)
{
    if (n_queue == QUEUE_MAX)
        give_up("nobody waits for the stream");
    queue[n_queue++] = node;
}

/* What was launched since goes to the queue. */
static void flush_launches(void)
{
    struct hri_emu_graph *graph = hri_emu_capture_end();
    if (graph != NULL && hri_emu_graph_launches(graph) > 0)
        push((struct node){.graph = graph, .owned = true});
    else
        hri_emu_graph_free(graph);
    hri_emu_capture_begin();
}

static int node_run(const struct node *node)
{
    if (node->graph != NULL)
        return hri_emu_graph_replay(node->graph) != 0;
    if (node->event != NULL) {
        node->event->done = 1;
        clock_gettime(CLOCK_MONOTONIC, &node->event->at);
        return 0;
    }
    unsigned char *to = node->to;
    const unsigned char *from = node->snapshot != NULL ? node->snapshot : node->from;
    for (size_t i = 0; i < node->n; i++)
        if (node->fill >= 0)
            memset(to + i * node->to_stride, node->fill, node->bytes);
        else
            memcpy(to + i * node->to_stride, from + i * node->from_stride, node->bytes);
    return 0;
}

static void node_free(struct node *node)
{
    if (node->owned)
        hri_emu_graph_free(node->graph);
    free(node->snapshot);
}

/* What the stream does while somebody asks for an event: a thread of its own, so that the host can answer kernels that
 * wait for it. Nothing else of the emulator is used meanwhile. */
static struct {
    pthread_t thread;
    bool running;
    _Atomic int done;
    int error;
} worker;

static void worker_join(void)
{
    if (!worker.running)
        return;
    pthread_join(worker.thread, NULL);
    worker.running = false;
}

/* All that is queued; a kernel that reports something loses the device. */
static int queue_run_here(void)
{
    flush_launches();
    protect(PROT_READ | PROT_WRITE);
    struct hri_emu_graph *idle = hri_emu_capture_end(); /* so that replays run */
    for (unsigned i = 0; i < n_queue; i++) {
        if (!lost && node_run(&queue[i]) != 0) {
            fprintf(stderr, "device_emu: %s\n", hri_emu_error());
            lost = true;
        }
        node_free(&queue[i]);
    }
    n_queue = 0;
    hri_emu_graph_free(idle);
    hri_emu_capture_begin();
    protect(PROT_NONE);
    return lost ? DEVICE_EMU_KERNEL : 0;
}

static int queue_run(void)
{
    worker_join();
    return queue_run_here();
}

static void *worker_run(void *unused)
{
    worker.error = queue_run_here();
    worker.done = 1;
    return unused;
}

/* All streams are one: everything is done in the order in which it was asked for. */
static unsigned n_streams;

static int stream_create(void **stream_out)
{
    static int one;
    n_streams++;
    hri_emu_capture_begin();
    *stream_out = &one;
    return 0;
}

static void stream_destroy(void *stream)
{
    (void)stream;
    (void)queue_run();
    if (--n_streams > 0)
        return;
    hri_emu_graph_free(hri_emu_capture_end());
    lost = false;
    hri_emu_error_clear();
}

static int stream_wait(void *stream)
{
    (void)stream;
    counts.waits++;
    if (n_waits++ >= device_emu_faults.waits_before_loss && device_emu_faults.loss) {
        lost = true;
        (void)queue_run();
        return DEVICE_EMU_LOST;
    }
    if (device_emu_faults.no_code)
        return DEVICE_EMU_NO_CODE;
    return queue_run();
}

static int copy(void *to, size_t to_stride, const void *from, size_t from_stride, size_t bytes,
                size_t n, void *stream)
{
    (void)stream;
    if (recording)
        give_up("a copy while a graph is recorded");
    struct node node = {.to = to,
                        .from = from,
                        .to_stride = to_stride,
                        .from_stride = from_stride,
                        .bytes = bytes,
                        .n = n,
                        .fill = -1};
    counts.copies++;
    flush_launches();
    if (!is_in(device_memory, n_device, from) && !is_in(pinned, n_pinned, from)) {
        node.snapshot = malloc((n - 1) * from_stride + bytes);
        if (node.snapshot == NULL)
            give_up("out of memory");
        memcpy(node.snapshot, from, (n - 1) * from_stride + bytes);
    }
    push(node);
    /* Into pageable memory a copy is done when the call returns. */
    return is_in(device_memory, n_device, to) || is_in(pinned, n_pinned, to) ? 0 : queue_run();
}

static int fill(void *memory, int byte, size_t bytes, void *stream)
{
    (void)stream;
    if (recording)
        give_up("a fill while a graph is recorded");
    flush_launches();
    push((struct node){.to = memory, .bytes = bytes, .n = 1, .fill = byte & 255});
    return 0;
}

static int event_create(void **event_out)
{
    *event_out = calloc(1, sizeof(struct event));
    return *event_out == NULL ? DEVICE_EMU_NO_MEMORY : 0;
}

static void event_destroy(void *event)
{
    free(event);
}

static int event_record(void *event, void *stream)
{
    (void)stream;
    ((struct event *)event)->done = 0;
    flush_launches();
    push((struct node){.event = event});
    return 0;
}

static int event_query(void *event)
{
    if (device_emu_faults.loss_asked) {
        lost = true;
        (void)queue_run();
        return DEVICE_EMU_LOST;
    }
    if (!worker.running) {
        worker.done = 0;
        if (pthread_create(&worker.thread, NULL, worker_run, NULL) != 0)
            give_up("no thread");
        worker.running = true;
    }
    if (!worker.done)
        return DEVICE_EMU_NOT_READY;
    worker_join();
    return worker.error != 0               ? worker.error
           : ((struct event *)event)->done ? 0
                                           : DEVICE_EMU_REFUSED;
}

static int event_elapsed(void *first, void *last, float *ms_out)
{
    const struct event *a = first, *b = last; /* of the emulator: a time that means nothing */
    *ms_out = (float)((double)(b->at.tv_sec - a->at.tv_sec) * 1e3 +
                      (double)(b->at.tv_nsec - a->at.tv_nsec) * 1e-6);
    return 0;
}

static int capture_begin(void *stream)
{
    (void)stream;
    flush_launches();
    recording = true;
    return 0;
}

static int capture_end(void *stream, void **graph_out)
{
    (void)stream;
    *graph_out = hri_emu_capture_end();
    hri_emu_capture_begin();
    recording = false;
    return 0;
}

static int graph_launch(void *graph, void *stream)
{
    (void)stream;
    counts.graph_launches++;
    flush_launches();
    push((struct node){.graph = graph});
    return 0;
}

static void graph_destroy(void *graph)
{
    hri_emu_graph_free(graph);
}

static void range_begin(const char *name)
{
    if (name == NULL || *name == 0)
        give_up("a range without a name");
    counts.ranges++;
    counts.ranges_open++;
}

static void range_end(void)
{
    if (counts.ranges_open-- == 0)
        give_up("the end of a range that was not begun");
}

/* -- what it is -- */

static int count(uint32_t *driver_out, uint32_t *runtime_out, uint32_t *n_devices_out)
{
    const struct device_emu_faults *f = &device_emu_faults;
    *driver_out = f->no_driver ? 0 : f->count_error == DEVICE_EMU_OLD_DRIVER ? 11040 : 13000;
    *runtime_out = 13000;
    *n_devices_out = f->no_driver || f->no_device || f->count_error ? 0 : 1;
    return f->no_driver ? DEVICE_EMU_OLD_DRIVER : f->count_error;
}

static int open_device(uint32_t ordinal, struct hri_device_facts *f)
{
    (void)ordinal;
    const size_t all = device_emu_faults.memory_bytes ? device_emu_faults.memory_bytes : 1u << 30;
    memset(f, 0, sizeof *f);
    n_waits = n_pins = 0;
    snprintf(f->name, sizeof f->name, "emulator");
    f->arch = hri_emu_arch();
    f->sm_count = 2;
    f->memory_bytes = all;
    f->free_bytes = all - counts.device_bytes;
    f->maps_host = true;
    return 0;
}

static enum hri_device_fault fault(int error)
{
    switch (error) {
    case 0:
        return HRI_DEVICE_FINE;
    case DEVICE_EMU_NO_MEMORY:
        return HRI_DEVICE_NO_MEMORY;
    case DEVICE_EMU_OLD_DRIVER:
        return HRI_DEVICE_OLD_DRIVER;
    case DEVICE_EMU_NO_CODE:
        return HRI_DEVICE_NO_CODE;
    case DEVICE_EMU_NOT_READY:
        return HRI_DEVICE_NOT_READY;
    case DEVICE_EMU_LOST:
    case DEVICE_EMU_KERNEL:
        return HRI_DEVICE_LOST;
    default:
        return HRI_DEVICE_REFUSED;
    }
}

static const char *text(int error)
{
    switch (error) {
    case DEVICE_EMU_NO_MEMORY:
        return "out of memory";
    case DEVICE_EMU_OLD_DRIVER:
        return "the driver is too old";
    case DEVICE_EMU_NO_CODE:
        return "no code for this architecture";
    case DEVICE_EMU_LOST:
        return "an illegal address";
    case DEVICE_EMU_KERNEL:
        return "the emulator reported something";
    default:
        return "refused";
    }
}

const struct hri_device_ops *device_emu_ops(void)
{
    static const struct hri_device_ops ops = {
        .name = "emu",
        .emulated = true,
        .launch = &hri_launchers,
        .pin_bytes_max = 2u << 20,
        .count = count,
        .open = open_device,
        .alloc = emu_alloc,
        .free = emu_free,
        .host_alloc = host_alloc,
        .host_free = host_free,
        .pin = pin,
        .unpin = unpin,
        .stream_create = stream_create,
        .stream_destroy = stream_destroy,
        .stream_wait = stream_wait,
        .copy = copy,
        .fill = fill,
        .event_create = event_create,
        .event_destroy = event_destroy,
        .event_record = event_record,
        .event_query = event_query,
        .event_elapsed = event_elapsed,
        .capture_begin = capture_begin,
        .capture_end = capture_end,
        .graph_launch = graph_launch,
        .graph_destroy = graph_destroy,
        .range_begin = range_begin,
        .range_end = range_end,
        .fault = fault,
        .text = text,
    };
    return &ops;
}

int device_emu_available(void)
{
    return 1;
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
    if (copy(to, bytes, from, bytes, bytes, 1, NULL) != 0)
        give_up("a read failed");
}
