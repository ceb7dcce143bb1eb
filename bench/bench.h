/* Benchmarks: each checks its result, then measures the code and its limit (or a peer) in turns,
 * A-B-B-A, in the same run, and reports the median of the paired ratios. Absolute times of two
 * runs on a shared machine say little; these ratios hold. */
#ifndef BENCH_BENCH_H
#define BENCH_BENCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cjson/cJSON.h>

struct hrb_options {
    bool quick;           /* fewer rounds, smaller data where the result allows it */
    unsigned n_threads;   /* 0: one per core */
    const char *file_dir; /* folder for the file benchmarks */
    const char *model;    /* GGUF file for the engine benchmarks, NULL: they are skipped */
    const char *trace;    /* folder of a trace for the decode steps over its rows, NULL: skipped */
    const char *tool;     /* path of this program, for benchmarks that run it as a user would */
    const char *recipe;   /* of the decode step's benchmarks, NULL: theirs */
    double moved, tolerance;
    void (*note)(const char *format, ...)
        __attribute__((format(printf, 1, 2))); /* progress, one line */
    bool (*stop)(void);                        /* true: the user wants to end */
};

struct hrb_result {
    double value, limit; /* medians, in unit */
    double ratio;        /* median over rounds of the paired ratio; more is better */
    double spread;       /* of the ratio: two standard errors as a share of it, 0: not known */
    double value_p99;    /* 99th percentile (the largest of fewer than 100), 0: not measured */
    const char *unit;
    const char *limit_is; /* what the limit is, in words */
    uint64_t bytes;       /* that one run of the code moves or reads, 0: not told */
    unsigned rounds;
    cJSON *details; /* object or NULL; owned by the result */
    bool skipped;
    char reason[1024]; /* why it was skipped or failed */
};

struct hrb_benchmark {
    const char *name, *what;
    double goal; /* the ratio to reach */
    /* 0: measured or skipped; 1: failed, with the reason in the result. */
    int (*run)(const struct hrb_benchmark *self, const struct hrb_options *options,
               struct hrb_result *result);
    int variant; /* for benchmarks that share a function */
};

/* Static, ordered; NULL past the end. */
const struct hrb_benchmark *hrb_benchmark_at(size_t index);

/* What the machine is, for the record: CPU, cores, caches, memory and its read bandwidth, the disk under file_dir, kernel. */
cJSON *hrb_machine_json(const struct hrb_options *options);

#endif
