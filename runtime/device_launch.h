/* The launches of a layer's step: device_step.c makes them, those of sketches are in device_step_sketch.c. */
#ifndef HRI_RUNTIME_DEVICE_LAUNCH_H
#define HRI_RUNTIME_DEVICE_LAUNCH_H

#include "runtime/device_part.h"

struct hri_device_launches { /* of one layer */
    const hr_sequence_t *s;
    const struct hri_device_part *p;
    const struct hri_device_layer *d;
    const struct hri_device_work *w;
    void *stream;
    const float *q; /* scaled */
};

/* The first error ends it. */
#define HRI_LAUNCHED(call)                                                                         \
    do {                                                                                           \
        int launch_error = (call);                                                                 \
        if (launch_error != 0)                                                                     \
            return launch_error;                                                                   \
    } while (0)

static inline bool hri_device_sketched(const struct hri_device_part *p)
{
    return p->sizes.lines > 0;
}

/* A token's new row, floats on the device (k [n_kv][k_dim], v [n_kv][v_dim]): into the ring, of which tail, capacity, length and bad are
 * given, and beside [n_kv][k_dim + v_dim], where the host finds it. */
int hri_device_append(const hr_sequence_t *s, const struct hri_launchers *launch, const float *k,
                      const float *v, struct hri_cuda_append_args ring, void *beside, void *stream);
/* Of the query, once it is there: in the bases of the sketches. */
int hri_device_sketch_query(const struct hri_device_launches *l);
/* After the scores of the summaries: all sketches are read, blocks and total weigh what their rows do, and what heavy ones add to
 * the output beside their mean values is known. */
int hri_device_sketch_read(const struct hri_device_launches *l);
int hri_device_sketch_worth(const struct hri_device_launches *l,
                            const struct hri_cuda_residency *table);
/* After mark: what is not refined. */
int hri_device_sketch_rest(const struct hri_device_launches *l);
int hri_device_sketch_predict(const struct hri_device_launches *l);

#endif
