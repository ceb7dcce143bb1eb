/* A device with memory of its own, and what runs there. One code path drives two implementations:
 *
 *   hri_device_cuda       a GPU by the CUDA runtime (kernels/cuda/device_cuda.c); only in builds that
 *                         have the toolkit (hri_device_cuda_get). The driver is found when the program runs:
 *                         no driver and no device are answers.
 *   the emulator          the same launchers on the CPU, for tests alone (tests/emu/device_emu.c). It
 *                         says of itself that it is one, and nothing but a test can ask for it.
 *
 * struct hri_device is what the rest of the library uses: a device, opened, with a budget. It turns
 * errors into statuses with messages, counts memory, and remembers that the device was lost: from
 * then on every call fails at once with HR_ERR_DEVICE and the first message; that is logged once.
 *
 * Threads: a device and everything made on it belong to one thread at a time. */
#ifndef HRI_KERNELS_DEVICE_H
#define HRI_KERNELS_DEVICE_H

#include "base/log.h"
#include "base/status.h"
#include "kernels/cuda/launch.h"
#include <stdbool.h>

/* ------------------------------------------------------------------------------------ implementers
 * The launchers, so that the library links whether they are there or not. */
struct hri_launchers {
    int (*nothing)(void *stream);
    int (*read)(const void *memory, size_t bytes, uint32_t *sum, void *stream);
    void (*set_machine)(struct hri_cuda_machine machine);
    int (*append)(const struct hri_cuda_append_args *, struct hri_cuda_heads, uint32_t n, void *);
    int (*scale)(const float *q, const float *factor, uint32_t n_q, uint32_t dk, float *out,
                 void *);
    int (*query)(const float *, struct hri_cuda_heads, const struct hri_cuda_shape *,
                 const struct hri_cuda_query_out *, void *);
    size_t (*score_work)(struct hri_cuda_heads);
    int (*score)(const struct hri_cuda_score_args *, const struct hri_cuda_summaries *,
                 struct hri_cuda_heads, void *);
    int (*factor)(const struct hri_cuda_factor_args *, struct hri_cuda_heads, void *);
    int (*query_sketch)(const float *, struct hri_cuda_heads, const struct hri_cuda_basis *,
                        uint32_t n_bases, const uint32_t *there, struct hri_cuda_sketch_query *,
                        float *rest, void *);
    int (*score_sketch)(const struct hri_cuda_sketch_list *, const struct hri_cuda_sketch_query *,
                        struct hri_cuda_heads, float *out, size_t stride, void *);
    size_t (*sum_sketch_work)(struct hri_cuda_heads, uint32_t n_bases, uint32_t lines);
    size_t (*sum_sketch_counters)(struct hri_cuda_heads, uint32_t n_bases, uint32_t lines);
    int (*sum_sketch)(const struct hri_cuda_sketch_list *, const struct hri_cuda_sketch_sum *,
                      struct hri_cuda_heads, void *);
    int (*weigh_rows)(const struct hri_cuda_rows *, const struct hri_cuda_strays *, const float *q,
                      const float *dots, float soft_cap, struct hri_cuda_heads, void *);
    int (*total_rows)(const struct hri_cuda_rows *, const float *near_lse, float *top, float *total,
                      struct hri_cuda_heads, void *);
    int (*list_rows)(const struct hri_cuda_rows *, struct hri_cuda_rows_least,
                     const struct hri_cuda_rows_list *, struct hri_cuda_heads, void *);
    int (*fill_rows)(const struct hri_cuda_rows *, struct hri_cuda_rows_least,
                     const struct hri_cuda_rows_fill *, struct hri_cuda_heads, void *);
    int (*value_rows)(const struct hri_cuda_rows_values *, struct hri_cuda_heads, void *);
    int (*worth_rows)(const struct hri_cuda_rows *, const struct hri_cuda_worth_rows_args *,
                      struct hri_cuda_heads, void *);
    int (*predict_rows)(const struct hri_cuda_rows *, const struct hri_cuda_predict_rows_args *,
                        struct hri_cuda_heads, void *);
    int (*worth)(const struct hri_cuda_worth_args *, struct hri_cuda_heads, void *);
    int (*select)(const struct hri_cuda_select_args *, uint32_t n_heads, void *);
    int (*residency_clear)(const struct hri_cuda_residency *, uint32_t n_heads, void *);
    int (*residency_drop)(const struct hri_cuda_residency *, const struct hri_cuda_job *,
                          const uint32_t *n, void *);
    int (*resolve)(const struct hri_cuda_residency *, const struct hri_cuda_resolve_args *,
                   uint32_t n_heads, void *);
    int (*resolve_late)(const struct hri_cuda_residency *, const struct hri_cuda_resolve_args *,
                        const struct hri_cuda_job *late, const uint32_t *n, void *);
    int (*gather)(const struct hri_cuda_gather_args *, uint32_t n_blocks, enum hri_cuda_path,
                  void *);
    int (*mail_post)(const struct hri_cuda_mailbox *, const struct hri_cuda_mail_args *, void *);
    int (*mail_collect)(const struct hri_cuda_mailbox *, const struct hri_cuda_mail_args *, void *);
    int (*mark)(const struct hri_cuda_refined *, const uint32_t *n, uint32_t blocks_max, uint8_t *,
                uint32_t n_heads, void *);
    int (*predict)(const struct hri_cuda_predict_args *, struct hri_cuda_heads, void *);
    size_t (*attend_work)(struct hri_cuda_heads);
    size_t (*attend_counters)(struct hri_cuda_heads);
    int (*attend)(const struct hri_cuda_attend_args *, struct hri_cuda_heads, void *);
    int (*prefill)(const struct hri_cuda_prefill_args *, struct hri_cuda_heads, void *);
    int (*pack)(const struct hri_cuda_pack_args *, struct hri_cuda_heads, void *);
    int (*pack_sketch)(const struct hri_cuda_pack_sketch_args *, uint32_t n_heads, void *);
    int (*group_points)(const struct hri_cuda_points_args *, struct hri_cuda_heads, void *);
    int (*group_begin)(const struct hri_cuda_clusters *, uint32_t n_heads, void *);
    int (*group_assign)(const struct hri_cuda_clusters *, uint32_t n_heads, void *);
    int (*group_move)(const struct hri_cuda_clusters *, uint32_t n_heads, void *);
    int (*residual_turn)(const struct hri_cuda_residual_args *, const float *matrix, float *z,
                         struct hri_cuda_heads, void *);
    int (*residual_squares)(const struct hri_cuda_residual_args *, const float *z, float *sum,
                            float *most, struct hri_cuda_heads, void *);
    int (*residual_moment)(const struct hri_cuda_residual_args *, float *moment,
                           struct hri_cuda_heads, void *);
    int (*missed)(const struct hri_cuda_missed_args *, void *);
    int (*embed)(const struct hri_cuda_embed_args *, uint32_t n, void *);
    int (*norm)(const struct hri_cuda_norm_args *, uint32_t n, void *);
    int (*rope)(const struct hri_cuda_rope_args *, uint32_t n, void *);
    int (*activate)(const float *gate, const float *up, size_t n, void *out, hr_dtype_t, void *);
    int (*round)(const float *x, size_t n, uint16_t *y, void *);
    int (*repeat)(const float *bias, uint32_t n, uint32_t width, float *y, void *);
    size_t (*linear_work)(uint32_t m);
    size_t (*linear_counters)(void);
    int (*linear)(const struct hri_cuda_linear_args *, void *);
    int (*matmul)(const struct hri_cuda_matmul_args *, void *);
};
extern const struct hri_launchers
    hri_launchers; /* kernels/cuda/launchers.c, beside the launchers */

struct hri_device_facts {
    char name[128], pci[32];
    uint32_t n_devices, arch, sm_count; /* arch: 10 major + minor */
    uint64_t memory_bytes, free_bytes;
    bool maps_host; /* kernels reach pinned host memory by its own address */
};

/* What an error means to the caller. */
enum hri_device_fault {
    HRI_DEVICE_FINE,
    HRI_DEVICE_ABSENT,     /* no driver, no device */
    HRI_DEVICE_OLD_DRIVER, /* older than this build's runtime */
    HRI_DEVICE_NO_CODE,    /* this build has no code for its architecture */
    HRI_DEVICE_NO_MEMORY,
    HRI_DEVICE_NOT_READY, /* an event that has not happened yet */
    HRI_DEVICE_REFUSED,   /* this call failed; the device goes on */
    HRI_DEVICE_LOST       /* sticky: nothing works any more */
};

/* Functions return 0 or an error number of the implementation. All required. */
struct hri_device_ops {
    const char *name;
    bool emulated;
    const struct hri_launchers *launch;
    size_t pin_bytes_max; /* host memory registered in one call */

    /* Versions as CUDA counts them (13000 is 13.0); driver 0: there is none. */
    int (*count)(uint32_t *driver_out, uint32_t *runtime_out, uint32_t *n_devices_out);
    /* For the calling thread. */
    int (*open)(uint32_t ordinal, struct hri_device_facts *facts_out);

    int (*alloc)(size_t bytes, void **memory_out);
    void (*free)(void *memory);
    int (*host_alloc)(size_t bytes, void **memory_out); /* pinned, mapped */
    void (*host_free)(void *memory);
    int (*pin)(void *base, size_t bytes); /* mapped at its own address */
    void (*unpin)(void *base);

    int (*stream_create)(void **stream_out);
    void (*stream_destroy)(void *stream);
    int (*stream_wait)(void *stream); /* until all of it is done */
    /* n runs of `bytes`, `stride`s apart; between any two kinds of memory, in the stream's order. Pageable
     * memory may be read or written before the call returns. */
    int (*copy)(void *to, size_t to_stride, const void *from, size_t from_stride, size_t bytes,
                size_t n, void *stream);
    int (*fill)(void *memory, int byte, size_t bytes, void *stream);

    int (*event_create)(void **event_out);
    void (*event_destroy)(void *event);
    int (*event_record)(void *event, void *stream);
    int (*event_query)(void *event);
    int (*event_elapsed)(void *first, void *last, float *ms_out);

    /* Launches between begin and end are recorded, not run; no copies. */
    int (*capture_begin)(void *stream);
    int (*capture_end)(void *stream, void **graph_out);
    int (*graph_launch)(void *graph, void *stream);
    void (*graph_destroy)(void *graph);

    /* What this thread does until the end, for profilers; nested. */
    void (*range_begin)(const char *name);
    void (*range_end)(void);

    enum hri_device_fault (*fault)(int error);
    const char *(*text)(int error);
};

/* The GPU by CUDA; NULL in builds without it. */
const struct hri_device_ops *hri_device_cuda_get(void);

/* ----------------------------------------------------------------------------------------- callers */
struct hri_device;

/* Which device a name means: "cuda", "cuda:1". With ops, of a test, their name in place of "cuda". NULL and "cpu": none, ops_out is
 * NULL. HR_ERR_INVALID, HR_ERR_UNSUPPORTED (a build without CUDA). */
hr_status_t hri_device_find(const char *name, const struct hri_device_ops *ops,
                            const struct hri_device_ops **ops_out, uint32_t *ordinal_out);

struct hri_device_options {
    const struct hri_device_ops *ops;
    uint32_t ordinal;
    uint64_t budget_bytes; /* of device memory; never exceeded */
    struct hri_log *log;
};
/* HR_ERR_UNSUPPORTED: no driver, driver too old, no such device, no code for its architecture, memory that
 * cannot be mapped: the message says which. HR_ERR_NOMEM: the device has less free memory than the budget. */
hr_status_t hri_device_open(const struct hri_device_options *options,
                            struct hri_device **device_out);
/* Another budget than it was opened with, for who must know the device first; what it is for completes a message.
 * HR_ERR_NOMEM: not so much was free when it was opened. */
hr_status_t hri_device_budget(struct hri_device *device, uint64_t bytes, const char *what);
/* All memory must be freed first. NULL is legal. */
void hri_device_close(struct hri_device *device);

const struct hri_device_facts *hri_device_facts(const struct hri_device *device);
const struct hri_device_ops *hri_device_ops(const struct hri_device *device);
/* The stream of everything this device does for the runtime. */
void *hri_device_stream(const struct hri_device *device);
struct hr_tier_stats hri_device_stats(const struct hri_device *device);
bool hri_device_is_lost(const struct hri_device *device);

/* What an operation returned, as a status; `what` completes "device: ... failed". */
hr_status_t hri_device_check(struct hri_device *device, int error, const char *what);
/* HR_OK, or HR_ERR_DEVICE with the message of the loss. */
hr_status_t hri_device_alive(struct hri_device *device);

/* Device memory, 256-byte aligned, contents undefined. HR_ERR_BUDGET, HR_ERR_NOMEM (both messages say what it is
 * for and how much there is), HR_ERR_DEVICE. */
struct hri_device_memory {
    void *base; /* NULL: none */
    size_t bytes;
};
hr_status_t hri_device_alloc(struct hri_device *device, const char *what, size_t bytes,
                             struct hri_device_memory *memory_out);
void hri_device_free(struct hri_device *device, struct hri_device_memory *memory);

/* Host memory that copies are made from and to: pinned, or where that is refused pageable, which is said once.
 * HR_ERR_NOMEM. */
struct hri_device_buffer {
    void *base;
    size_t bytes;
    bool pinned;
};
hr_status_t hri_device_buffer_create(struct hri_device *device, size_t bytes,
                                     struct hri_device_buffer *buffer_out);
void hri_device_buffer_destroy(struct hri_device *device, struct hri_device_buffer *buffer);

/* Pins memory that exists, in chunks of at most ops->pin_bytes_max, whose ends lie on pages. False: refused (said once),
 * nothing is pinned, and kernels must not touch it. */
bool hri_device_pin(struct hri_device *device, void *base, size_t bytes);
void hri_device_unpin(struct hri_device *device, void *base, size_t bytes);

/* On the device's stream. */
hr_status_t hri_device_copy(struct hri_device *device, void *to, const void *from, size_t bytes);
hr_status_t hri_device_copy_rows(struct hri_device *device, void *to, size_t to_stride,
                                 const void *from, size_t from_stride, size_t bytes, size_t n);
hr_status_t hri_device_fill(struct hri_device *device, void *memory, int byte, size_t bytes);
/* Until everything before is done; errors of it come out here. */
hr_status_t hri_device_wait(struct hri_device *device);

/* A range that profilers show (NVTX); every begin has its end. */
void hri_device_range_begin(const struct hri_device *device, const char *name);
void hri_device_range_end(const struct hri_device *device);

/* Deals one allocation out to arrays of 256-byte alignment. With base NULL it only adds up. */
struct hri_device_carve {
    unsigned char *base;
    size_t used;
};
static inline void *hri_device_carve(struct hri_device_carve *carve, size_t count, size_t bytes)
{
    void *at = carve->base != NULL ? carve->base + carve->used : NULL;
    carve->used += (count * bytes + 255u) & ~(size_t)255u;
    return at;
}

/* What `headrace info` says of GPUs: a JSON object text, or null where this build has no CUDA. */
void hri_device_info_json(char *buf, size_t buf_bytes);

/* Clocks and the like of a GPU by its PCI address, from NVIDIA's management library where that is installed. */
struct hri_nvml_facts {
    char driver[80];
    uint32_t sm_mhz, sm_mhz_max, memory_mhz, memory_mhz_max, power_w, temperature_c;
    uint32_t pcie_generation, pcie_lanes;
};
bool hri_nvml_read(const char *pci, struct hri_nvml_facts *facts_out);

#endif
