/* What a cache of so many tokens asks of a machine, and how long a step then takes: the arithmetic behind
 * `headrace plan`. Pure functions of their arguments, no machine is touched here (plan_measure.h does that).
 *
 * Bytes are those of docs/algorithm.md: per block its summary, per row its sketch (device), its int8 row
 * (host, file) and its exact row (file, or host). Times are linear in the bytes that a stage reads:
 * fixed + bytes * seconds per byte, per layer. Rates that are given have no overhead in them, so times from them are lower
 * bounds; rates that were measured have what this machine really takes. */
#ifndef CLI_PLAN_MODEL_H
#define CLI_PLAN_MODEL_H

#include <stdbool.h>
#include <stdint.h>

#include <headrace/headrace.h>

struct plan_shape {
    uint32_t layers, kv_heads, group, head_dim; /* K and V have head_dim dimensions each */
    uint32_t dtype_bytes;                       /* of an exact number */
};

struct plan_use {
    double moved;       /* share of the body's exact bytes refined per step */
    double hit;         /* share of it that lies in frames already */
    unsigned sketch;    /* bits per key dimension on the mean; 0: summaries only */
    uint32_t sequences; /* of the same length, decoding together */
    double other_s;     /* of a token outside attention: weights, sampling */
};

struct plan_machine {
    double device_bytes, host_bytes, file_bytes; /* room for the cache; 0: no such tier */
    double device_bps;                           /* bytes a second from device memory */
    double host_bps;                             /* host to device */
    double file_bps;
};

/* One layer of one sequence. */
struct plan_cost {
    double fixed_s, s_per_byte;
};

/* How a machine does the stages. fetch[0]: from the host tier, fetch[1]: from the file. */
struct plan_rates {
    bool measured;
    struct plan_cost append, select, attend, fetch[2];
    double index_s_per_row; /* grouping a new token's rows, per kv-head; 0: not known */
    /* Bytes of sketches a step reads grow as share * all * (rows / share_rows)^(slope - 1). */
    double sketch_share, sketch_share_rows, sketch_slope;
    double
        rereads; /* times that attention reads summaries and sketches again for the estimate; 0: one pass for both */
};

enum plan_part {
    PLAN_APPEND,
    PLAN_INDEX,
    PLAN_SELECT,
    PLAN_FETCH_HOST,
    PLAN_FETCH_FILE,
    PLAN_ATTEND,
    PLAN_OTHER,
    PLAN_PARTS
};

/* Of all layers and sequences. */
struct plan {
    uint64_t tokens;
    double window_bytes, summary_bytes, sketch_bytes, frame_bytes; /* held on the device */
    double device_need_bytes; /* of these, what a step cannot do without */
    double int8_bytes, exact_bytes;
    double
        rest_bytes; /* what sketches leave of values, in host memory without a file; 0: none are kept */
    double host_int8_bytes, host_exact_bytes;                     /* of those, in the host tier */
    double device_read_bytes, host_moved_bytes, file_moved_bytes; /* per step */
    double device_room_bytes, file_room_bytes; /* what is left, negative: lacking */
    unsigned sketch;                           /* bits that fit: at most what was asked for */
    bool fits;
    double part_s
        [PLAN_PARTS]; /* time of a step that the part takes for itself, hidden time not counted */
    double hidden_s;  /* of the file's reads, behind attention */
    double step_s;
    enum plan_part bound; /* the largest */
    double tokens_per_s;  /* of all sequences together */
    double
        exact_step_s; /* lower bound of exact attention: reads every row once from where it lies */
};

const char *plan_part_name(enum plan_part part);

/* Bytes of one kv-head of one layer with `rows` rows in blocks. */
double plan_summary_bytes(const struct plan_shape *shape, double rows, unsigned sketch);
double plan_sketch_bytes(const struct plan_shape *shape, double rows, unsigned sketch);

/* Rates that follow from the machine's bandwidths alone. layer_s: what a layer costs whatever its length. */
struct plan_rates plan_given_rates(const struct plan_machine *machine, double layer_s);

void plan_evaluate(const struct plan_shape *shape, const struct plan_use *use,
                   const struct plan_machine *machine, const struct plan_rates *rates,
                   uint64_t tokens, struct plan *plan_out);

/* The least of one thing that gives `tokens_per_s` with all others as they are; 0 where none of it is needed, -1 where no amount
 * is enough. */
enum plan_thing {
    PLAN_DEVICE_BYTES,
    PLAN_HOST_BYTES,
    PLAN_DEVICE_BPS,
    PLAN_HOST_BPS,
    PLAN_FILE_BPS
};
#define PLAN_THINGS 5
double plan_least(const struct plan_shape *shape, const struct plan_use *use,
                  const struct plan_machine *machine, const struct plan_rates *rates,
                  uint64_t tokens, double tokens_per_s, enum plan_thing thing);

#endif
