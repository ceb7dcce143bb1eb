/* What an engine of struct hri_disk does: take operations, give results. Private to
 * offload/disk*.c. */
#ifndef HRI_OFFLOAD_DISK_ENGINE_H
#define HRI_OFFLOAD_DISK_ENGINE_H

#include "offload/disk.h"

#define HRI_DISK_RESULTS_MAX 64

struct hri_disk_buffer {
    unsigned char *base; /* NULL: free */
    size_t bytes;
    bool taken; /* by the kernel */
};

struct hri_disk_engine {
    const char *name;
    hr_io_mode_t mode;
    hr_status_t (*create)(struct hri_disk *disk, void **state_out);
    bool (*destroy)(struct hri_disk *disk, void *state); /* true: fd is still in use */
    /* 0, or minus an errno value; op lives until its result. */
    int (*push)(void *state, const struct hri_ring_op *op);
    int (*flush)(void *state);
    /* Flushes too. Count of results, or minus an errno value. */
    int (*reap)(void *state, struct hri_ring_result *results, uint32_t n_max, uint64_t wait_ns);
    /* May be NULL: no registered buffers. base NULL: forgets the slot. */
    int (*set_buffer)(void *state, uint32_t slot, void *base, size_t bytes);
    /* May be NULL. True where the calling thread may not use what another one made; remake then
     * starts anew. */
    bool (*foreign)(const void *state);
    int (*remake)(void *state);
};

extern const struct hri_disk_engine hri_disk_uring, hri_disk_uring_plain, hri_disk_threads;

struct hri_disk {
    const struct hri_disk_engine *engine;
    void *state;
    struct hri_disk_options options;
    uint64_t timeout_ns, looked_ns;
    struct hri_disk_request **slots; /* [depth], NULL: free */
    uint32_t *generations;           /* [depth]; a result with another one is a stray */
    uint32_t *free_slots;            /* [depth] stack */
    uint32_t n_free;
    uint32_t n_in_flight;
    int broken;                        /* 0, or the errno value that broke it */
    struct hri_disk_request *again;    /* to be pushed again at the end of a round */
    struct hri_disk_request *finished; /* waiting to be handed out by a reap */
    struct hri_disk_buffer buffers[HRI_RING_BUFFERS];
    struct hri_disk_stats stats;
};

#endif
