/* A fork of a sequence of a million tokens: what it costs a layer, and that nothing of the rows is copied.
 *
 * One layer, 8 kv-heads of 128, so that all that a fork does once counts for this layer too. The rows are the same 8,192 again and
 * again: what lies in them does not matter here. */
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include <headrace/headrace.h>

#include "base/alloc.h"
#include "base/half.h"
#include "base/rng.h"
#include "base/topology.h"
#include "bench/measure.h"
#include "bench/subjects.h"

#define DIM        128u
#define KV_HEADS   8u
#define CHUNK      8192u
#define TOKENS     (1u << 20)
#define QUICK      (1u << 17) /* tokens; tables are as large as for all of them */
#define FORKS      15u
#define GOAL_MS    1.0
#define MEMORY_MIN (10ull << 30)

struct fork_bench {
    hr_runtime_t *runtime;
    hr_sequence_t *sequence;
    uint16_t *rows; /* [CHUNK][KV_HEADS][DIM] */
};

static int open_sequence(struct fork_bench *b, const struct hrb_options *options, uint32_t tokens)
{
    struct hr_runtime_options runtime;
    struct hr_sequence_options o;
    uint64_t exact = (uint64_t)tokens * KV_HEADS * DIM * 4;
    hr_runtime_options_init(&runtime);
    runtime.device_bytes =
        (uint64_t)TOKENS * KV_HEADS * DIM * 4 * 4; /* of every fork, not touched */
    runtime.host_bytes = 2 * exact;
    runtime.n_threads = options->n_threads;
    hr_sequence_options_init(&o);
    o.n_layers = 1;
    o.n_q_heads = 4 * KV_HEADS;
    o.n_kv_heads = KV_HEADS;
    o.k_dim = o.v_dim = DIM;
    o.tokens_max = TOKENS + CHUNK;
    return hr_runtime_create(&runtime, &b->runtime) != HR_OK ||
           hr_sequence_create(b->runtime, &o, &b->sequence) != HR_OK;
}

static int fill(struct fork_bench *b, const struct hrb_options *options, uint32_t tokens)
{
    struct hri_rng rng;
    size_t n = (size_t)CHUNK * KV_HEADS * DIM;
    hri_rng_seed(&rng, 3);
    b->rows = malloc(n * sizeof *b->rows);
    for (size_t i = 0; b->rows != NULL && i < n; i++)
        b->rows[i] = hri_bf16_from_f32((float)(hri_rng_u64(&rng) & 0xffff) / 32768.0f - 1);
    if (b->rows == NULL)
        return 1;
    struct hr_tensor rows = hr_tensor_make(b->rows, HR_DTYPE_BF16, CHUNK, KV_HEADS, DIM);
    for (uint32_t t = 0; t < tokens; t += CHUNK)
        if ((options->stop && options->stop()) ||
            hr_sequence_append(b->sequence, 0, &rows, &rows, NULL) != HR_OK ||
            hr_sequence_settle(b->sequence, 0) != HR_OK)
            return 1;
    return 0;
}

static long faults(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_minflt;
}

static struct hr_runtime_stats stats_of(const struct fork_bench *b)
{
    struct hr_runtime_stats stats = {.struct_size = sizeof stats};
    (void)hr_runtime_stats_get(b->runtime, &stats);
    return stats;
}

static int measure(struct fork_bench *b, struct hrb_result *result)
{
    double fork_ms[FORKS], touched[FORKS];
    hr_sequence_t *forks[FORKS] = {NULL};
    int code = 0;
    uint64_t held = stats_of(b).tier[HR_TIER_HOST].bytes_held;
    for (unsigned i = 0; i < FORKS && code == 0; i++) {
        long before = faults();
        double start = hrb_seconds();
        if (hr_sequence_fork(b->sequence, &forks[i]) != HR_OK)
            code = hrb_failed(result, "fork: %s", hr_last_error());
        fork_ms[i] = (hrb_seconds() - start) * 1e3;
        touched[i] = (double)(faults() - before) * (double)hri_page_bytes();
        if (code == 0 && (stats_of(b).tier[HR_TIER_HOST].bytes_held != held ||
                          hr_sequence_length(forks[i], 0) != hr_sequence_length(b->sequence, 0)))
            code = hrb_failed(result, "a fork copied rows");
    }
    for (unsigned i = 0; i < FORKS; i++) /* all at once, so that none gets the memory of another */
        hr_sequence_destroy(forks[i]);
    if (code != 0)
        return code;
    result->value = hrb_median(fork_ms, FORKS);
    result->value_p99 = fork_ms[FORKS - 1];
    result->limit = GOAL_MS;
    result->unit = "ms";
    result->ratio = GOAL_MS / result->value;
    result->rounds = FORKS;
    result->spread = hrb_spread(fork_ms, FORKS);
    result->limit_is = "1 ms a layer";
    result->details = cJSON_CreateObject();
    cJSON_AddNumberToObject(result->details, "touched_bytes", hrb_median(touched, FORKS));
    cJSON_AddNumberToObject(result->details, "tokens", hr_sequence_length(b->sequence, 0));
    cJSON_AddNumberToObject(result->details, "host_bytes_held", (double)held);
    return 0;
}

int hrb_fork(const struct hrb_benchmark *self, const struct hrb_options *options,
             struct hrb_result *result)
{
    struct hri_memory_info memory;
    struct fork_bench b = {0};
    uint32_t tokens = options->quick ? QUICK : TOKENS;
    (void)self;
    if (!options->quick && hri_memory_read(NULL, &memory) == HR_OK &&
        memory.available_bytes < MEMORY_MIN)
        return hrb_skip(result, "a million tokens of one layer need 10 GiB of free memory");
    int code = open_sequence(&b, options, tokens) || fill(&b, options, tokens)
                   ? hrb_failed(result, "filling a sequence: %s", hr_last_error())
                   : measure(&b, result);
    hr_sequence_destroy(b.sequence);
    (void)hr_runtime_destroy(b.runtime);
    free(b.rows);
    return code;
}
