#include "bench/bench.h"

#include <stdio.h>
#include <string.h>
#include <sys/utsname.h>

#include "base/cpu.h"
#include "base/topology.h"
#include "bench/subjects.h"

static const struct hrb_benchmark benchmarks[] = {
    {"attention-f32", "full attention of one query head over f32 rows in memory", 0.8,
     hrb_attention_read, 1},
    {"attention-bf16", "full attention of one query head over bf16 rows in memory", 0.8,
     hrb_attention_read, 101},
    {"attention-bf16-gqa4", "full attention of four query heads that share bf16 rows", 0.8,
     hrb_attention_read, 104},
    {"summary-score", "scores of block summaries, one query head", 0.9, hrb_summary_score, 1},
    {"summary-score-gqa4", "scores of block summaries, four query heads that share them", 0.9,
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
    {"file-read-32k", "random reads of 32 KiB blocks from the file tier", 0.95, hrb_file_read, 32},
    {"file-read-64k", "random reads of 64 KiB blocks from the file tier", 0.95, hrb_file_read, 64},
    {"file-read-256k", "random reads of 256 KiB blocks from the file tier", 0.95, hrb_file_read,
     256},
    {"decode-131072", "a decode step at 131,072 tokens, 1% moved", 8, hrb_decode_step, 131072},
    {"decode-131072-fine", "the same, clusters much finer than blocks", 1, hrb_decode_step_fine,
     131072},
    {"plan-host", "what 'plan --measured' says of a step at twice the length, rows in host memory",
     0.75, hrb_plan, 0},
    {"plan-file", "the same with rows in the file", 0.75, hrb_plan, 1},
    {"run-memory", "peak memory of a run whose cache lies in the file tier", 1, hrb_run_memory, 0},
    {"engine-prefill-7900", "prefill of 7,900 tokens", 1.5, hrb_engine, 0},
    {"engine-decode-512", "decoding after 512 tokens, 1% moved", 0.7, hrb_engine, 512},
    {"engine-decode-7900", "decoding after 7,900 tokens, 1% moved", 1.5, hrb_engine, 7900},
};

const struct hrb_benchmark *hrb_benchmark_at(size_t index)
{
    return index < sizeof benchmarks / sizeof benchmarks[0] ? &benchmarks[index] : NULL;
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
    if (uname(&name) == 0)
        cJSON_AddStringToObject(json, "kernel", name.release);
    return json;
}
