#include "bench/bench.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>

#include "base/cpu.h"
#include "base/topology.h"
#include "base/alloc.h"
#include "base/threads.h"
#include "bench/measure.h"
#include "bench/read_memory.h"
#include "bench/subjects.h"

static const struct hrb_benchmark benchmarks[] = {
    /* First: Linux counts what this program held into the peak of programs it starts. */
    {"run-memory", "peak memory of a run whose cache lies in the file tier", 1, hrb_run_memory, 0},
    {"attention-f32", "full attention of one query head over f32 rows in memory", 0.9,
     hrb_attention_read, 1},
    {"attention-bf16", "full attention of one query head over bf16 rows in memory", 0.9,
     hrb_attention_read, 101},
    {"attention-bf16-gqa4", "full attention of four query heads that share bf16 rows", 0.9,
     hrb_attention_read, 104},
    {"exact-f32", "exact attention of one query by the API, eight kv-heads, f32 rows", 0.9,
     hrb_exact, 1128},
    {"exact-bf16", "the same over bf16 rows", 0.9, hrb_exact, 11128},
    {"exact-bf16-gqa4", "the same, four query heads to a kv-head", 0.9, hrb_exact, 14128},
    {"exact-bf16-gqa8", "the same, eight", 0.9, hrb_exact, 18128},
    {"exact-bf16-gqa4-64", "the same, four, heads of 64", 0.9, hrb_exact, 14064},
    {"summary-score", "scores of block summaries, one query head", 0.95, hrb_summary_score, 1},
    {"summary-score-gqa4", "scores of block summaries, four query heads that share them", 0.95,
     hrb_summary_score, 4},
    {"sketch-1bit", "scores of 1-bit sketches, one query head", 0.6, hrb_sketch_score, 101},
    {"sketch-1bit-gqa4", "scores of 1-bit sketches, four query heads", 0.6, hrb_sketch_score, 104},
    {"sketch-1bit-gqa8", "scores of 1-bit sketches, eight query heads", 0.6, hrb_sketch_score, 108},
    {"sketch-2bit", "scores of 2-bit sketches, one query head", 0.6, hrb_sketch_score, 201},
    {"sketch-2bit-gqa4", "scores of 2-bit sketches, four query heads", 0.6, hrb_sketch_score, 204},
    {"sketch-2bit-gqa8", "scores of 2-bit sketches, eight query heads", 0.6, hrb_sketch_score, 208},
    {"sketch-vs-full", "summaries and all 2-bit sketches of 131,072 rows x 8 heads, 4 queries", 10,
     hrb_sketch_full, 100},
    {"sketch-vs-full-quarter", "the same with a quarter of the sketches", 30, hrb_sketch_full, 25},
    {"summary-score-bf16", "scores of bf16 keys as summaries, four query heads", 0.95, hrb_bytes,
     4},
    {"gather-blocks-int8", "attention over int8 blocks of 8 KiB in random order, four query heads",
     0.92, hrb_gather, 0},
    {"gather-blocks-bf16", "the same over bf16 blocks of 16 KiB", 0.92, hrb_gather, 1},
    {"gather-rows-int8", "attention over single int8 rows of 256 bytes, four query heads", 0.75,
     hrb_gather, 2},
    {"gather-rows-bf16", "the same over bf16 rows of 512 bytes", 0.75, hrb_gather, 3},
    {"prefill-tile", "attention of 192 queries over 2,048 bf16 rows", 0.7, hrb_prefill_tile, 0},
    {"sdpa-decode-f32", "full attention of a decode step, 32 query and 8 kv-heads, f32 rows", 1,
     hrb_sdpa, 0},
    {"sdpa-decode-bf16", "the same over bf16 rows", 1, hrb_sdpa, 10},
    {"sdpa-prefill-f32", "causal attention of a prompt, the same heads, f32 rows", 1, hrb_sdpa, 1},
    {"sdpa-prefill-bf16", "the same over bf16 rows", 1, hrb_sdpa, 11},
    {"select", "the best 2% of 131,072 scored rows", 0.5, hrb_select, 0},
    {"ingest", "grouping, summaries and sketches of 8,192 tokens, 32 layers", 1, hrb_ingest, 0},
    {"crc32c", "checksums of 16 KiB pieces", 0.8, hrb_bytes, 0},
    {"bf16-to-f32", "bf16 to float", 0.8, hrb_bytes, 1},
    {"f32-to-bf16", "float to bf16", 0.8, hrb_bytes, 2},
    {"f32-to-int8", "rows of floats to int8 with a step each", 0.8, hrb_bytes, 3},
    {"file-read-4k-qd1", "random reads of 4 KiB, one at a time", 0.9, hrb_file_read, 1004},
    {"file-read-4k-qd8", "the same, 8 under way", 0.9, hrb_file_read, 8004},
    {"file-read-4k-qd64", "the same, 64 under way", 0.9, hrb_file_read, 64004},
    {"file-read-32k", "random reads of 32 KiB blocks from the file tier", 0.98, hrb_file_read,
     32032},
    {"file-read-64k", "random reads of 64 KiB blocks from the file tier", 0.98, hrb_file_read,
     32064},
    {"file-read-256k", "random reads of 256 KiB blocks from the file tier", 0.98, hrb_file_read,
     32256},
    {"file-write", "cells of 64 KiB into the file tier, one after the other", 0.95, hrb_file_write,
     0},
    {"save", "a session of exact rows, strict", 0.8, hrb_file_write, 1},
    {"step-p99-writes", "a step with a deadline of 10 ms while the file tier is written to", 1,
     hrb_step_writes, 0},
    {"append", "append, store and grouping beside the step, at 16,384 tokens", 1, hrb_append_step,
     0},
    {"fork", "a fork of 1,048,576 tokens, per layer", 1, hrb_fork, 0},
    {"decode-131072", "a decode step at 131,072 tokens, 1% moved", 8, hrb_decode_step, 131072},
    {"decode-131072-fine", "the same, clusters much finer than blocks", 1, hrb_decode_step_fine,
     131072},
    {"decode-2pct-8192", "a decode step at 8,192 tokens within an output error of 2 %", 1,
     hrb_decode_2pct, 8192},
    {"decode-2pct-32768", "the same at 32,768 tokens", 1, hrb_decode_2pct, 32768},
    {"decode-2pct-131072", "the same at 131,072 tokens", 25, hrb_decode_2pct, 131072},
    {"decode-2pct-524288", "the same at 524,288 tokens", 61, hrb_decode_2pct, 524288},
    {"decode-2pct-1048576", "the same at 1,048,576 tokens", 96, hrb_decode_2pct, 1048576},
    {"decode-2pct-file-32768", "a decode step at 32,768 tokens within 2 %, rows in the file", 1,
     hrb_decode_2pct_file, 32768},
    {"decode-2pct-file-131072", "the same at 131,072 tokens", 10, hrb_decode_2pct_file, 131072},
    {"decode-2pct-file-524288", "the same at 524,288 tokens", 24, hrb_decode_2pct_file, 524288},
    {"decode-trace-8192", "a decode step over a recorded trace, 8,192 tokens, within 2 %", 1,
     hrb_decode_trace, 8192},
    {"decode-trace-32768", "the same tiled with rotated copies to 32,768 tokens", 1,
     hrb_decode_trace, 32768},
    {"decode-trace-131072", "the same at 131,072 tokens", 25, hrb_decode_trace, 131072},
    {"decode-trace-524288", "the same at 524,288 tokens", 61, hrb_decode_trace, 524288},
    {"decode-trace-1048576", "the same at 1,048,576 tokens", 96, hrb_decode_trace, 1048576},
    {"decode-trace-file-131072", "the same at 131,072 tokens, rows in the file", 10,
     hrb_decode_trace_file, 131072},
    {"plan-host", "what 'plan --measured' says of a step at twice the length, rows in host memory",
     0.75, hrb_plan, 0},
    {"plan-file", "the same with rows in the file", 0.75, hrb_plan, 1},
    {"engine-prefill-7900", "prefill of 7,900 tokens", 2.5, hrb_engine, 0},
    {"engine-decode-512", "decoding after 512 tokens, 1% moved", 1.0, hrb_engine, 512},
    {"engine-decode-7900", "decoding after 7,900 tokens, 1% moved", 2.5, hrb_engine, 7900},
    {"engine-decode-7900-file", "the same, most of the cache in the file tier", 2.0, hrb_engine,
     -7900},
    /* On a GPU; skipped without one. */
    {"device-gather-32k", "blocks of 32 KiB from pinned memory on four SMs", 0.95,
     hrb_device_gather, 32768},
    {"device-gather-4k", "the same, blocks of 4 KiB", 0.88, hrb_device_gather, 4096},
    {"device-gather-512", "the same, rows of 512 bytes", 0.70, hrb_device_gather, 512},
    {"device-decode", "decode attention over 128 MiB of paged bf16 rows, 8 kv-heads", 0.92,
     hrb_device_decode, 32768},
    {"device-decode-64m", "the same over 64 MiB", 0.92, hrb_device_decode, 16384},
    {"device-sparse", "attention over 2,048 refined rows of each of 8 kv-heads, and its merge", 1,
     hrb_device_sparse, 0},
    {"device-choose-128k", "score, select and resolve of a layer of 128 Ki tokens", 1,
     hrb_device_choice, 128},
    {"device-choose-1m", "the same of 1 Mi tokens", 1, hrb_device_choice, 1024},
    {"device-sketch-128k", "sketches of a quarter of the blocks, 128 Ki tokens", 0.5,
     hrb_device_sketch, 128},
    {"device-token-128k", "the attention of a token, 32 layers of 128 Ki tokens", 1,
     hrb_device_token, 128},
    {"device-token-1m", "the same of 1 Mi tokens", 1, hrb_device_token, 1024},
    {"device-token-summaries-128k", "the same without sketches, 128 Ki tokens", 1,
     hrb_device_token_summaries, 128},
    {"device-token-summaries-1m", "the same of 1 Mi tokens", 1, hrb_device_token_summaries, 1024},
    {"device-token-full-128k", "a token beside full attention in the GPU's memory, 128 Ki tokens",
     1, hrb_device_token_full, 128},
    {"device-token-full-1m", "the same of 1 Mi tokens", 1, hrb_device_token_full, 1024},
    {"device-token-sdpa-128k", "a token beside PyTorch's full attention, 128 Ki tokens", 1,
     hrb_device_token_sdpa, 128},
    {"device-graph", "a token's graph beside its launches one by one", 0.95, hrb_device_graph, 128},
    {"device-mover", "a product of matrices while the mover gathers", 0.97, hrb_device_mover, 0},
    {"device-index", "all launches that index 8,192 tokens of a layer", 0.5, hrb_device_index,
     8192},
};

const struct hrb_benchmark *hrb_benchmark_at(size_t index)
{
    return index < sizeof benchmarks / sizeof benchmarks[0] ? &benchmarks[index] : NULL;
}

/* -------------------------------------------------------------------------------------- the machine */

#define PIECE_BYTES (4u << 20)
#define PIECES      64u

struct memory {
    struct hri_region region;
    uint64_t sink;
};

static void read_piece(void *context, unsigned task, unsigned worker)
{
    struct memory *m = context;
    (void)worker;
    uint64_t sum =
        hrb_read_memory((char *)m->region.base + (size_t)task * PIECE_BYTES, PIECE_BYTES);
    __atomic_fetch_xor(&m->sink, sum, __ATOMIC_RELAXED);
}

/* Bytes a second that all threads read together; 0 where it could not be measured. */
static double memory_bandwidth(unsigned n_threads)
{
    struct memory m = {0};
    struct hri_pool *pool = NULL;
    double seconds[7];
    size_t bytes = (size_t)PIECES * PIECE_BYTES;
    bool fine = hri_pool_create(NULL, n_threads, &pool) == HR_OK &&
                hri_region_alloc(NULL, bytes, &m.region) == HR_OK;
    if (fine)
        memset(m.region.base, 1, bytes);
    for (int i = 0; fine && i < 7; i++) {
        double start = hrb_seconds();
        hri_pool_run(pool, read_piece, &m, PIECES);
        seconds[i] = hrb_seconds() - start;
    }
    hri_region_free(NULL, &m.region);
    hri_pool_destroy(pool);
    return fine ? (double)bytes / hrb_median(seconds, 7) : 0;
}

/* "/dev/vda ext4" of the longest mount point that is a prefix of the folder. */
static void disk_of(const char *dir, char *text, size_t n)
{
    char path[PATH_MAX], line[1024], device[128], point[512], kind[64];
    size_t best = 0;
    FILE *mounts = fopen("/proc/self/mounts", "re");
    snprintf(text, n, "unknown");
    if (!mounts || !realpath(dir, path)) {
        if (mounts)
            fclose(mounts);
        return;
    }
    while (fgets(line, sizeof line, mounts)) {
        size_t length;
        if (sscanf(line, "%127s %511s %63s", device, point, kind) != 3)
            continue;
        length = strlen(point);
        if (length < best || strncmp(point, path, length) != 0 ||
            (length > 1 && path[length] != '/' && path[length] != '\0'))
            continue;
        best = length;
        snprintf(text, n, "%s %s", device, kind);
    }
    fclose(mounts);
}

cJSON *hrb_machine_json(const struct hrb_options *options)
{
    struct hri_cpu cpu;
    struct hri_topology *topology = NULL;
    struct hri_memory_info memory;
    struct utsname name;
    char features[256];
    cJSON *json = cJSON_CreateObject();
    if (hri_cpu_detect(&cpu) == HR_OK) {
        cJSON_AddStringToObject(json, "cpu", cpu.brand);
        cJSON_AddStringToObject(json, "features",
                                hri_cpu_features(&cpu, features, sizeof features));
    }
    cJSON_AddNumberToObject(json, "threads",
                            options->n_threads ? options->n_threads : hri_cpu_usable_count());
    if (hri_topology_create(NULL, NULL, &topology) == HR_OK) {
        const struct hri_topology_info *info = hri_topology_info(topology);
        cJSON_AddNumberToObject(json, "cores", info->core_count);
        cJSON_AddNumberToObject(json, "l2_bytes", (double)info->l2_bytes);
        cJSON_AddNumberToObject(json, "l3_bytes", (double)info->l3_bytes);
        hri_topology_destroy(topology);
    }
    if (hri_memory_read(NULL, &memory) == HR_OK)
        cJSON_AddNumberToObject(json, "memory_bytes", (double)memory.total_bytes);
    cJSON_AddNumberToObject(json, "memory_read_gbps", memory_bandwidth(options->n_threads) * 1e-9);
    disk_of(options->file_dir, features, sizeof features);
    cJSON_AddStringToObject(json, "disk", features);
    if (uname(&name) == 0)
        cJSON_AddStringToObject(json, "kernel", name.release);
    return json;
}
