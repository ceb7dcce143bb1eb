/* The engine beside llama.cpp on the same model file, threads and text; and the memory of a run.
 * Both are run as programs, as a user would run them; what they report is their own time for
 * prefill and for a decoded token. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <headrace/headrace.h>

#include "base/rng.h"
#include "base/topology.h"
#include "bench/measure.h"
#include "bench/process.h"
#include "bench/subjects.h"

#define PREFILL_TOKENS 7900
#define DECODE_TOKENS  48
#define DEVICE_BYTES   (32u << 20)
#define HOST_BYTES     (64u << 20)
#define HOST_BYTES_ALL (512u << 20)
#define FILE_BYTES     (1u << 30)
#define MEMORY_EXTRA   (100u << 20)

struct engine_bench {
    const struct hrb_options *options;
    unsigned tokens, decode_tokens;
    bool prefill,
        file; /* file: most of the cache lies in the file tier, else all of it in host memory */
    char text_path[512];
    char threads[16];
    double ours_tps, peer_tps;
    char reason[1024];
};

/* ----------------------------------------------------------------------------------------- text */

/* Words at random: speed depends on how many tokens there are, not on what they say. */
static int write_text(struct engine_bench *b)
{
    static const char *const words[] = {
        "the",   "river", "carries", "water",  "to",    "a",       "mill",  "and",    "its",
        "wheel", "turns", "slowly",  "under",  "old",   "trees",   "while", "people", "from",
        "town",  "walk",  "along",   "path",   "with",  "baskets", "of",    "grain",  "that",
        "they",  "bring", "each",    "autumn", "after", "harvest", "when",  "days",   "grow",
        "short", "cold",  "wind",    "comes",  "over",  "hills",   "again"};
    struct hri_rng rng;
    FILE *file = fopen(b->text_path, "w");
    if (!file)
        return 1;
    hri_rng_seed(&rng, 11);
    for (unsigned i = 0; i < 2 * PREFILL_TOKENS; i++)
        fprintf(file, "%s%s", words[hri_rng_below(&rng, sizeof words / sizeof words[0])],
                i % 12 == 11 ? ".\n" : " ");
    return fclose(file) != 0;
}

static const cJSON *find(const cJSON *json, const char *outer, const char *inner)
{
    return cJSON_GetObjectItem(cJSON_GetObjectItem(json, outer), inner);
}

/* Tokens per second from {"prefill": {"tokens_per_second"}, "decode": {...}}, which both sides
 * print. */
static double rate_of(struct engine_bench *b, const struct hrb_process *p, const char *who)
{
    cJSON *json = cJSON_Parse(p->output ? p->output : "");
    const cJSON *rate = find(json, b->prefill ? "prefill" : "decode", "tokens_per_second");
    double value = cJSON_IsNumber(rate) ? rate->valuedouble : 0;
    cJSON_Delete(json);
    if (p->code || value <= 0) {
        snprintf(b->reason, sizeof b->reason, "%s failed (exit code %d): %s", who, p->code,
                 p->message);
        return -1;
    }
    return value;
}

/* ----------------------------------------------------------------------------------------- ours */

static double run_ours(void *context)
{
    struct engine_bench *b = context;
    char tokens[16], decode[16], device[32], host[32], cap[32];
    struct hrb_process p;
    snprintf(tokens, sizeof tokens, "%u", b->tokens);
    snprintf(decode, sizeof decode, "%u", b->decode_tokens);
    snprintf(device, sizeof device, "%u", DEVICE_BYTES);
    snprintf(host, sizeof host, "%u", b->file ? HOST_BYTES : HOST_BYTES_ALL);
    snprintf(cap, sizeof cap, "%u", FILE_BYTES);
    const char *argv[] = {b->options->tool,
                          "run",
                          "--model",
                          b->options->model,
                          "--file",
                          b->text_path,
                          "--tokens-context",
                          tokens,
                          "--tokens",
                          decode,
                          "--moved",
                          "1%",
                          "--threads",
                          b->threads,
                          "--device-bytes",
                          device,
                          "--host-bytes",
                          host,
                          "--allow-longer",
                          "--quiet",
                          "--json",
                          "-",
                          b->file ? "--file-dir" : NULL, /* the last: NULL ends the list */
                          b->options->file_dir,
                          "--file-bytes",
                          cap,
                          NULL};
    if (!hrb_process_run(argv, &p)) {
        snprintf(b->reason, sizeof b->reason, "cannot start %s", b->options->tool);
        return -1;
    }
    double rate = rate_of(b, &p, "headrace run");
    free(p.output);
    b->ours_tps = rate;
    return rate > 0 ? 1 / rate : -1;
}

/* ----------------------------------------------------------------------------------------- peer */

static double run_peer(void *context)
{
    struct engine_bench *b = context;
    char script[512], tokens[16], decode[16];
    struct hrb_process p;
    snprintf(tokens, sizeof tokens, "%u", b->tokens);
    snprintf(decode, sizeof decode, "%u", b->decode_tokens);
    hrb_peer_script("llama_cpp.sh", script, sizeof script);
    const char *argv[] = {"sh",   script,     "run", b->options->model, b->text_path, tokens,
                          decode, b->threads, NULL};
    if (!hrb_process_run(argv, &p)) {
        snprintf(b->reason, sizeof b->reason, "cannot start %s", script);
        return -1;
    }
    double rate = rate_of(b, &p, "llama.cpp");
    free(p.output);
    b->peer_tps = rate;
    return rate > 0 ? 1 / rate : -1;
}

static int measure_engine(struct engine_bench *b, struct hrb_result *result)
{
    struct hrb_pair pair;
    if (write_text(b))
        return hrb_failed(result, "cannot write '%s'", b->text_path);
    b->options->note("engine: %u tokens, ours and llama.cpp in turns; this takes minutes",
                     b->tokens);
    if (hrb_measure(b->options, b->options->quick ? 1 : 3, run_ours, b, run_peer, b, &pair))
        return hrb_failed(result, "%s", *b->reason ? b->reason : "stopped");
    hrb_result_per_second(result, &pair, 1, "tokens/s"); /* of seconds per token */
    result->limit_is = "llama.cpp, same file, threads and text";
    return 0;
}

int hrb_engine(const struct hrb_benchmark *self, const struct hrb_options *options,
               struct hrb_result *result)
{
    struct engine_bench b = {
        .options = options, .prefill = self->variant == 0, .file = self->variant <= 0};
    b.tokens = self->variant ? (unsigned)abs(self->variant) : PREFILL_TOKENS;
    b.decode_tokens = b.prefill ? 2 : DECODE_TOKENS;
    if (!options->model)
        return hrb_skip(result, "needs --model FILE");
    if (!hrb_peer_is_there("llama_cpp.sh", b.reason, sizeof b.reason))
        return hrb_skip(result, "%s", b.reason);
    snprintf(b.threads, sizeof b.threads, "%u",
             options->n_threads ? options->n_threads : hri_cpu_usable_count());
    snprintf(b.text_path, sizeof b.text_path, "%s/headrace-bench-%d.txt", options->file_dir,
             (int)getpid());
    int code = measure_engine(&b, result);
    unlink(b.text_path);
    return code;
}

/* --------------------------------------------------------------------------------------- memory */

static int measure_memory(struct engine_bench *b, struct hrb_result *result)
{
    char device[32], host[32], cap[32];
    struct hrb_process p;
    bool tiny = !b->options->model;
    snprintf(device, sizeof device, "%u", DEVICE_BYTES);
    snprintf(host, sizeof host, "%u", HOST_BYTES);
    snprintf(cap, sizeof cap, "%u", FILE_BYTES);
    const char *argv[] = {b->options->tool,
                          "run",
                          "--device-bytes",
                          device,
                          "--host-bytes",
                          host,
                          "--file-dir",
                          b->options->file_dir,
                          "--file-bytes",
                          cap,
                          "--quiet",
                          "--json",
                          "-",
                          "--tokens-context",
                          tiny ? "16384" : "7900",
                          "--tokens",
                          "16",
                          "--allow-longer",
                          "--model",
                          tiny ? "tiny" : b->options->model,
                          tiny ? NULL : "--file",
                          b->text_path,
                          NULL};
    if (!tiny && write_text(b))
        return hrb_failed(result, "cannot write '%s'", b->text_path);
    if (!hrb_process_run(argv, &p))
        return hrb_failed(result, "cannot start %s", b->options->tool);
    cJSON *json = cJSON_Parse(p.output ? p.output : "");
    const cJSON *weights = find(json, "model", "weight_bytes");
    double weight_bytes = cJSON_IsNumber(weights) ? weights->valuedouble : 0;
    cJSON_Delete(json);
    free(p.output);
    if (p.code || weight_bytes <= 0)
        return hrb_failed(result, "headrace run failed (exit code %d): %s", p.code, p.message);
    result->value = (double)p.peak_rss_bytes / (1 << 20);
    result->limit = (weight_bytes + DEVICE_BYTES + HOST_BYTES + MEMORY_EXTRA) / (1 << 20);
    result->ratio = result->limit / result->value;
    result->rounds = 1;
    result->unit = "MiB";
    result->limit_is = "weights + device and host budgets + 100 MiB";
    return 0;
}

int hrb_run_memory(const struct hrb_benchmark *self, const struct hrb_options *options,
                   struct hrb_result *result)
{
    struct engine_bench b = {.options = options};
    (void)self;
    snprintf(b.text_path, sizeof b.text_path, "%s/headrace-bench-%d.txt", options->file_dir,
             (int)getpid());
    int code = measure_memory(&b, result);
    unlink(b.text_path);
    return code;
}
