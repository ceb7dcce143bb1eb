/* headrace plan: what a cache of so many tokens asks of a machine. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <headrace/headrace.h>
#include <headrace/parse.h>

#include "cli/args.h"
#include "cli/commands.h"
#include "cli/json_file.h"
#include "cli/out.h"
#include "cli/plan_measure.h"
#include "cli/plan_model.h"
#include "cli/setup.h"

#define LENGTHS_MAX 16
#define TOKENS_MOST (1ull << 40)

static const struct cli_command command = {
    .name = "plan",
    .about = "Says what each tier holds and moves for a cache of so many tokens, how long a step "
             "takes and by\n"
             "which part it is bound, and the least hardware that reaches a speed. Rates are those "
             "given, without\n"
             "any overhead but --layer-us, so that times are lower bounds; with --measured they "
             "are those of this\n"
             "machine's processor, from timed steps of one layer. The cache is that of the recipe "
             "headrace.",
    .examples =
        "  headrace plan --model-geometry 32x8x128 --tokens 128K,1M,10M --gpu-bytes 40GiB \\\n"
        "      --host-bytes 512GiB --pcie-gbps 55 --nvme-gbps 12 --target 20\n"
        "  headrace plan --model-geometry 32x8x128 --tokens 128K --measured --file-dir /var/tmp",
};

struct request {
    const char *geometry, *tokens, *json, *file_dir;
    uint64_t group, sketch, sequences, threads, dtype_bytes;
    uint64_t device_bytes, host_bytes, file_bytes;
    double device_gbps, pcie_gbps, nvme_gbps, layer_us, other_ms, target;
    double moved, hit;
    bool measured, quiet, host_given, nvme_given;
    uint64_t lengths[LENGTHS_MAX];
    unsigned n_lengths;
    struct plan_shape shape;
    struct plan_use use;
    struct plan_machine machine;
    struct plan_rates rates;
};

/* ----------------------------------------------------------------------------------------- input */

static int parse_geometry(struct request *r)
{
    unsigned layers, heads, dim;
    char extra;
    bool fine = sscanf(r->geometry, "%4ux%4ux%3u%c", &layers, &heads, &dim, &extra) == 3 &&
                strspn(r->geometry, "0123456789x") == strlen(r->geometry) && layers >= 1 &&
                layers <= HR_LAYERS_MAX && heads >= 1 && heads * r->group <= HR_HEADS_MAX &&
                dim >= HR_HEAD_DIM_MIN && dim <= HR_HEAD_DIM_MAX && dim % 8 == 0;
    if (!fine)
        return cli_usage_error(
            command.name, "--model-geometry '%s' is not LAYERSxKV_HEADSxHEAD_DIM, such as 32x8x128",
            r->geometry);
    r->shape = (struct plan_shape){.layers = layers,
                                   .kv_heads = heads,
                                   .group = (uint32_t)r->group,
                                   .head_dim = dim,
                                   .dtype_bytes = (uint32_t)r->dtype_bytes};
    return -1;
}

/* 128K is 131,072 tokens. */
static bool parse_length(const char *text, size_t n, uint64_t *length_out)
{
    char number[24];
    unsigned shift = 0;
    if (n == 0 || n >= sizeof number)
        return false;
    memcpy(number, text, n);
    number[n] = '\0';
    if (strchr("kKmMgG", number[n - 1])) {
        shift = strchr("kK", number[n - 1]) ? 10 : strchr("mM", number[n - 1]) ? 20 : 30;
        number[n - 1] = '\0';
    }
    if (hr_parse_count(number, 1, TOKENS_MOST >> shift, length_out) != HR_OK)
        return false;
    *length_out <<= shift;
    return true;
}

static int parse_lengths(struct request *r)
{
    for (const char *at = r->tokens;; at++) {
        size_t n = strcspn(at, ",");
        if (r->n_lengths == LENGTHS_MAX)
            return cli_usage_error(command.name, "--tokens has more than %d lengths", LENGTHS_MAX);
        if (!parse_length(at, n, &r->lengths[r->n_lengths]))
            return cli_usage_error(
                command.name, "--tokens '%.*s' is not a number of tokens, such as 131072 or 128K",
                (int)n, at);
        r->n_lengths++;
        at += n;
        if (*at == '\0')
            return -1;
    }
}

static void fill(struct request *r)
{
    r->use = (struct plan_use){.moved = r->moved,
                               .hit = r->hit,
                               .sketch = (unsigned)r->sketch,
                               .sequences = (uint32_t)r->sequences,
                               .other_s = r->other_ms * 1e-3};
    r->machine = (struct plan_machine){.device_bytes = (double)r->device_bytes,
                                       .host_bytes = (double)r->host_bytes,
                                       .file_bytes = (double)r->file_bytes,
                                       .device_bps = r->device_gbps * 1e9,
                                       .host_bps = r->pcie_gbps * 1e9,
                                       .file_bps = r->nvme_gbps * 1e9};
    r->rates = plan_given_rates(&r->machine, r->layer_us * 1e-6);
}

static bool stop(void)
{
    return cli_stop_signal() != 0;
}

static int measure(struct request *r)
{
    struct plan_probe_options o = {.shape = r->shape,
                                   .moved = r->moved,
                                   .sketch = (unsigned)r->sketch,
                                   .file_dir = r->file_dir,
                                   .threads = (uint32_t)r->threads,
                                   .stop = stop};
    cli_stop_install();
    int code = plan_measure(&o, &r->machine, &r->rates);
    if (code == 0 && r->host_given) {
        r->machine.host_bps = r->pcie_gbps * 1e9;
        r->rates.fetch[0].s_per_byte = 1 / r->machine.host_bps;
    }
    if (code == 0 && (r->nvme_given || !r->file_dir)) {
        r->machine.file_bps = r->nvme_gbps * 1e9;
        r->rates.fetch[1].s_per_byte = 1 / r->machine.file_bps;
    }
    return code;
}

/* ---------------------------------------------------------------------------------------- output */

static const char *size_text(double bytes, char *text, size_t n)
{
    char number[32];
    bool less = bytes < 0;
    snprintf(text, n, "%s%s", less ? "-" : "",
             hr_format_bytes((uint64_t)fabs(bytes), number, sizeof number));
    return text;
}
#define SIZE(bytes) size_text(bytes, (char[40]){0}, 40)

static const char *time_text(double s, char *text, size_t n)
{
    return cli_format_ns((uint64_t)(s * 1e9), text, n);
}
#define TIME(s) time_text(s, (char[40]){0}, 40)

static void print_rates(FILE *file, const struct request *r)
{
    const struct plan_rates *t = &r->rates;
    fprintf(file,
            "geometry   %u layers, %u kv-heads of %u, %u query heads each; %.3g%% moved, %.3g%% of "
            "it in frames\n",
            r->shape.layers, r->shape.kv_heads, r->shape.head_dim, r->shape.group, 100 * r->moved,
            100 * r->hit);
    if (!t->measured) {
        fprintf(file,
                "rates      given: device %.4g GB/s, host to device %.4g, file %.4g, %g us a "
                "layer; times are lower bounds\n",
                r->machine.device_bps * 1e-9, r->machine.host_bps * 1e-9,
                r->machine.file_bps * 1e-9, r->layer_us);
        return;
    }
    fprintf(file,
            "rates      measured: this machine's processor is the device, times are a layer's\n");
    const struct plan_cost *costs[] = {&t->select, &t->attend, &t->fetch[0], &t->fetch[1]};
    const char *names[] = {"select", "attend", "from host", "from file"};
    for (unsigned i = 0; i < 4; i++)
        fprintf(file, "           %-10s %10s + %.4g GB/s\n", names[i], TIME(costs[i]->fixed_s),
                costs[i]->s_per_byte > 0 ? 1e-9 / costs[i]->s_per_byte : 0.0);
}

static void print_tiers(FILE *file, const struct request *r, const struct plan *p)
{
    fprintf(file,
            "  device   %s of %s: windows %s, summaries %s, sketches %s (%u bits), frames %s\n",
            SIZE(p->window_bytes + p->summary_bytes + p->sketch_bytes + p->frame_bytes),
            SIZE(r->machine.device_bytes), SIZE(p->window_bytes), SIZE(p->summary_bytes),
            SIZE(p->sketch_bytes), p->sketch, SIZE(p->frame_bytes));
    fprintf(file, "  host     %s of %s: int8 rows %s of %s, exact rows %s of %s%s%s\n",
            SIZE(p->host_int8_bytes + p->host_exact_bytes + p->rest_bytes),
            SIZE(r->machine.host_bytes), SIZE(p->host_int8_bytes), SIZE(p->int8_bytes),
            SIZE(p->host_exact_bytes), SIZE(p->exact_bytes), p->rest_bytes > 0 ? ", rests " : "",
            p->rest_bytes > 0 ? SIZE(p->rest_bytes) : "");
    fprintf(file, "  file     %s of %s\n",
            r->machine.file_bytes > 0 ? SIZE(p->int8_bytes + p->exact_bytes) : "0 B",
            SIZE(r->machine.file_bytes));
    if (p->device_room_bytes < 0)
        fprintf(file, "  lacking  %s of device memory\n", SIZE(-p->device_room_bytes));
    if (p->file_room_bytes < 0)
        fprintf(file, "  lacking  %s where all rows are kept\n", SIZE(-p->file_room_bytes));
    fprintf(file,
            "  moves    per step: %s read on the device, %s from the host, %s from the file\n",
            SIZE(p->device_read_bytes), SIZE(p->host_moved_bytes), SIZE(p->file_moved_bytes));
}

static void print_step(FILE *file, const struct plan *p)
{
    fprintf(file, "  step     %s: %.4g tokens/s%s; bound by %s\n", TIME(p->step_s), p->tokens_per_s,
            p->fits ? "" : " if it did fit", plan_part_name(p->bound));
    for (unsigned i = 0; i < PLAN_PARTS; i++)
        if (p->part_s[i] > 0)
            fprintf(file, "           %-22s %10s %5.1f%%\n", plan_part_name(i), TIME(p->part_s[i]),
                    100 * p->part_s[i] / p->step_s);
    if (p->hidden_s > 0)
        fprintf(file, "           %-22s %10s\n", "hidden behind attend", TIME(p->hidden_s));
    fprintf(file, "  exact    attention cannot take less than %s here\n", TIME(p->exact_step_s));
}

static const char *const thing_names[PLAN_THINGS] = {"device bytes", "host bytes", "device GB/s",
                                                     "host to device GB/s", "file GB/s"};
static const char *const thing_keys[PLAN_THINGS] = {"device_bytes", "host_bytes", "device_gbps",
                                                    "pcie_gbps", "nvme_gbps"};

static void print_target(FILE *file, const struct request *r, uint64_t tokens)
{
    fprintf(file, "  target   %g tokens/s: the least of each, the others as they are\n", r->target);
    for (unsigned i = 0; i < PLAN_THINGS; i++) {
        double least = plan_least(&r->shape, &r->use, &r->machine, &r->rates, tokens, r->target, i);
        char rate[32];
        snprintf(rate, sizeof rate, "%.4g", least * 1e-9);
        fprintf(file, "           %-22s %s\n", thing_names[i],
                least < 0              ? "no amount is enough"
                : least == 0           ? "none"
                : i <= PLAN_HOST_BYTES ? SIZE(least)
                                       : rate);
    }
}

static cJSON *plan_json(const struct request *r, const struct plan *p)
{
    cJSON *json = cJSON_CreateObject();
    cli_json_u64(json, "tokens", p->tokens);
    cJSON_AddBoolToObject(json, "fits", p->fits);
    const struct {
        const char *name;
        double value;
    } fields[] = {{"sketch_bits", p->sketch},
                  {"window_bytes", p->window_bytes},
                  {"summary_bytes", p->summary_bytes},
                  {"sketch_bytes", p->sketch_bytes},
                  {"frame_bytes", p->frame_bytes},
                  {"device_need_bytes", p->device_need_bytes},
                  {"int8_bytes", p->int8_bytes},
                  {"exact_bytes", p->exact_bytes},
                  {"rest_bytes", p->rest_bytes},
                  {"host_int8_bytes", p->host_int8_bytes},
                  {"host_exact_bytes", p->host_exact_bytes},
                  {"device_read_bytes", p->device_read_bytes},
                  {"host_moved_bytes", p->host_moved_bytes},
                  {"file_moved_bytes", p->file_moved_bytes},
                  {"step_seconds", p->step_s},
                  {"hidden_seconds", p->hidden_s},
                  {"tokens_per_second", p->tokens_per_s},
                  {"exact_step_seconds", p->exact_step_s}};
    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++)
        cli_json_real(json, fields[i].name, fields[i].value);
    cJSON_AddStringToObject(json, "bound", plan_part_name(p->bound));
    cJSON *parts = cJSON_AddObjectToObject(json, "seconds");
    for (unsigned i = 0; i < PLAN_PARTS; i++)
        cli_json_real(parts, plan_part_name(i), p->part_s[i]);
    if (r->target > 0) {
        cJSON *least = cJSON_AddObjectToObject(json, "least");
        for (unsigned i = 0; i < PLAN_THINGS; i++) {
            double x =
                plan_least(&r->shape, &r->use, &r->machine, &r->rates, p->tokens, r->target, i);
            cli_json_real(least, thing_keys[i], x < 0 ? NAN : i > PLAN_HOST_BYTES ? x * 1e-9 : x);
        }
    }
    return json;
}

static int report(const struct request *r)
{
    cJSON *json = cJSON_CreateObject(), *list;
    cJSON_AddStringToObject(json, "command", "plan");
    cJSON_AddStringToObject(json, "version", hr_version());
    cJSON_AddStringToObject(json, "geometry", r->geometry);
    cJSON_AddBoolToObject(json, "measured", r->rates.measured);
    cli_json_real(json, "moved", r->moved);
    cli_json_real(json, "device_gbps", r->machine.device_bps * 1e-9);
    cli_json_real(json, "pcie_gbps", r->machine.host_bps * 1e-9);
    cli_json_real(json, "nvme_gbps", r->machine.file_bps * 1e-9);
    if (r->target > 0)
        cli_json_real(json, "target", r->target);
    list = cJSON_AddArrayToObject(json, "plans");
    print_rates(cli_out(), r);
    for (unsigned i = 0; i < r->n_lengths; i++) {
        struct plan p;
        char count[32];
        plan_evaluate(&r->shape, &r->use, &r->machine, &r->rates, r->lengths[i], &p);
        fprintf(cli_out(), "\n%s tokens, %u sequence%s\n",
                cli_format_count(p.tokens, count, sizeof count), r->use.sequences,
                r->use.sequences > 1 ? "s" : "");
        print_tiers(cli_out(), r, &p);
        print_step(cli_out(), &p);
        if (r->target > 0)
            print_target(cli_out(), r, p.tokens);
        cJSON_AddItemToArray(list, plan_json(r, &p));
    }
    int code = cli_json_write(r->json, json);
    cJSON_Delete(json);
    return code;
}

int cli_plan(int argc, char **argv)
{
    struct request r = {.geometry = "32x8x128",
                        .tokens = "128K,1M,10M",
                        .group = 4,
                        .sketch = 2,
                        .sequences = 1,
                        .dtype_bytes = 2,
                        .device_bytes = 64ull << 30,
                        .host_bytes = 512ull << 30,
                        .file_bytes = 8ull << 40,
                        .device_gbps = 3350,
                        .pcie_gbps = 55,
                        .nvme_gbps = 12,
                        .layer_us = 25,
                        .moved = 0.01};
    struct cli_option options[] = {
        CLI_HEADING("What is planned"),
        CLI_OPTION("model-geometry", CLI_STRING, &r.geometry, "LxHxD",
                   "layers, kv-heads, head dimensions"),
        CLI_RANGE("group", CLI_COUNT, &r.group, "N", 1, HR_GROUP_MAX, "query heads per kv-head"),
        CLI_RANGE("dtype-bytes", CLI_COUNT, &r.dtype_bytes, "N", 2, 4, "bytes of an exact number"),
        CLI_OPTION("tokens", CLI_STRING, &r.tokens, "N,...", "lengths; 128K is 131,072"),
        CLI_RANGE("sequences", CLI_COUNT, &r.sequences, "N", 1, 1000000,
                  "sequences of that length that decode together"),
        CLI_OPTION("moved", CLI_SHARE, &r.moved, "SHARE",
                   "of the body's exact bytes, refined per step"),
        CLI_OPTION("hit", CLI_FRACTION, &r.hit, "SHARE",
                   "of what is refined, found in frames; 0 is the worst case"),
        CLI_RANGE("sketch", CLI_COUNT, &r.sketch, "BITS", 0, 3,
                  "bits per key dimension; fewer are planned where the device has no room"),
        CLI_RANGE("other-ms", CLI_REAL, &r.other_ms, "MS", 0, 1e6,
                  "time of a step outside attention: weights, sampling"),
        CLI_RANGE("target", CLI_REAL, &r.target, "TOKENS/S", 0, 1e9,
                  "say the least hardware for this speed, of all sequences together"),
        CLI_HEADING("Where"),
        CLI_OPTION("gpu-bytes", CLI_BYTES, &r.device_bytes, "SIZE", "device memory for the cache"),
        CLI_OPTION("host-bytes", CLI_BYTES, &r.host_bytes, "SIZE", "host memory for the cache"),
        CLI_OPTION("file-bytes", CLI_BYTES, &r.file_bytes, "SIZE",
                   "room on disk; 0: host memory has the only copy"),
        CLI_RANGE("gpu-gbps", CLI_REAL, &r.device_gbps, "GB/S", 0.001, 1e9,
                  "rate of device memory"),
        CLI_RANGE("pcie-gbps", CLI_REAL, &r.pcie_gbps, "GB/S", 0.001, 1e9,
                  "rate from host memory to the device"),
        CLI_RANGE("nvme-gbps", CLI_REAL, &r.nvme_gbps, "GB/S", 0.001, 1e9,
                  "rate of random 4 KiB reads from the file"),
        CLI_RANGE("layer-us", CLI_REAL, &r.layer_us, "US", 0, 1e6,
                  "what a layer costs at any length: launches, latency"),
        CLI_SWITCH("measured", &r.measured,
                   "rates of this machine's processor instead, from timed steps; about 20 seconds"),
        CLI_OPTION("file-dir", CLI_STRING, &r.file_dir, "DIR",
                   "with --measured: also measure a file tier in this folder"),
        CLI_RANGE("threads", CLI_COUNT, &r.threads, "N", 1, 256, "threads [one per core]"),
        CLI_HEADING("Output"),
        CLI_OPTION("json", CLI_STRING, &r.json, "FILE",
                   "also write it as JSON; - is standard output, text then goes to standard error"),
        CLI_SWITCH("quiet", &r.quiet, "no progress"),
    };
    size_t n = sizeof options / sizeof options[0];
    for (size_t i = 0; i < n; i++) {
        if (options[i].value == &r.pcie_gbps)
            options[i].given = &r.host_given;
        if (options[i].value == &r.nvme_gbps)
            options[i].given = &r.nvme_given;
    }
    int code = cli_args_parse(&command, options, n, argc, argv, NULL);
    if (code >= 0 || (code = parse_geometry(&r)) >= 0 || (code = parse_lengths(&r)) >= 0)
        return code;
    if (r.dtype_bytes == 3)
        return cli_usage_error(command.name, "--dtype-bytes is 2 or 4");
    if (r.file_dir && !r.measured)
        return cli_usage_error(command.name, "--file-dir is of use with --measured only");
    cli_out_set_quiet(r.quiet);
    if (r.json && strcmp(r.json, "-") == 0)
        cli_out_move_to_stderr();
    if ((code = cli_json_check(r.json)) != 0)
        return code;
    fill(&r);
    if (r.measured && (code = measure(&r)) != 0)
        return code;
    return report(&r);
}
