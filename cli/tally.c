#include "cli/tally.h"

#include <string.h>

#include <headrace/parse.h>

#include "cli/json_file.h"
#include "cli/out.h"

#define TEXT 32

void cli_step_without_prefill(struct hre_step_report *step)
{
    enum { STAGE_APPEND = 0, STAGE_INDEX = 2 }; /* the order of hr_stage_name */
    for (unsigned i = STAGE_APPEND; i <= STAGE_INDEX; i++)
        step->sum.time_ns[i] = 0;
}

void cli_tally_add(struct cli_tally *tally, const struct hre_step_report *step)
{
    tally->steps++;
    hre_report_add(&tally->sum, &step->sum);
    tally->total_ns += step->total_ns;
    tally->linear_ns += step->linear_ns;
    tally->append_ns += step->append_ns;
    tally->attend_ns += step->attend_ns;
}

/* --------------------------------------------------------------------------------------- tables */

static char *count_text(uint64_t count, char *text)
{
    return cli_format_count(count, text, TEXT);
}

static char *bytes_text(uint64_t bytes, char *text)
{
    return hr_format_bytes(bytes, text, TEXT);
}

static uint64_t per(uint64_t sum, uint64_t n)
{
    return n ? (sum + n / 2) / n : 0;
}

static double ratio(double a, double b)
{
    return b > 0 ? a / b : 0;
}

static void print_levels(FILE *file, const struct hr_attend_report *sum, uint64_t n)
{
    char rows[TEXT], bytes[TEXT], share[TEXT];
    fprintf(file, "  %-10s %12s %12s %10s\n", "level", "rows", "bytes", "of body");
    for (unsigned i = 0; i < HR_LEVELS; i++) {
        if (sum->rows_by_level[i] == 0 && sum->bytes_by_level[i] == 0)
            continue;
        fprintf(file, "  %-10s %12s %12s %10s", hr_level_name(i),
                count_text(per(sum->rows_by_level[i], n), rows),
                bytes_text(per(sum->bytes_by_level[i], n), bytes),
                cli_format_share(ratio((double)sum->bytes_by_level[i], (double)sum->body_bytes),
                                 share, sizeof share));
        if (i == HR_LEVELS - 1 && sum->rows_device)
            fprintf(file, "   %s of them on the device",
                    count_text(per(sum->rows_device, n), rows));
        fputc('\n', file);
    }
}

/* Of the body's exact bytes. */
static char *share_text(uint64_t bytes, const struct hr_attend_report *sum, char *text)
{
    return cli_format_share(ratio((double)bytes, (double)sum->body_bytes), text, TEXT);
}

static void print_moves(FILE *file, const struct hr_attend_report *sum, uint64_t n)
{
    char a[TEXT], b[TEXT], c[TEXT], d[TEXT], e[TEXT];
    fprintf(file, "  %-10s %s in all: %s hit, %s fetched, %s estimated, %s late\n", "blocks",
            count_text(per(sum->blocks_total, n), a), count_text(per(sum->blocks_hit, n), b),
            count_text(per(sum->blocks_fetched, n), c),
            count_text(per(sum->blocks_estimated, n), d), count_text(per(sum->blocks_late, n), e));
    if (sum->blocks_lost)
        fprintf(file, "  %-10s %s blocks in all steps could not be read\n", "lost",
                count_text(sum->blocks_lost, a));
    fprintf(file, "  %-10s %s, %s of the body, hit or fetched\n", "refined",
            bytes_text(per(sum->bytes_selected, n), a), share_text(sum->bytes_selected, sum, b));
    if (sum->rows_rests)
        fprintf(file, "  %-10s %s of it, of the values of %s sketched rows\n", "rests",
                bytes_text(per(sum->bytes_rests, n), a), count_text(per(sum->rows_rests, n), b));
    uint64_t moved = sum->bytes_from_host + sum->bytes_from_file;
    fprintf(file, "  %-10s %s, %s of the body: %s from host, %s from file in %s reads\n", "moved",
            bytes_text(per(moved, n), a), share_text(moved, sum, b),
            bytes_text(per(sum->bytes_from_host, n), c),
            bytes_text(per(sum->bytes_from_file, n), d), count_text(per(sum->ios, n), e));
}

static void print_errors(FILE *file, const struct hr_attend_report *sum, uint64_t n)
{
    double steps = n ? (double)n : 1;
    fprintf(file, "  %-10s predicted %.4f, largest %.4f", "error", sum->predicted_error / steps,
            sum->predicted_error_max);
    if (sum->true_error >= 0)
        fprintf(file, "; true %.4f, largest %.4f", sum->true_error / steps, sum->true_error_max);
    fprintf(file, "\n");
    if (sum->heads_capped)
        fprintf(file,
                "  %-10s %.1f kv-heads of all layers: the budget ended them above the tolerance\n",
                "capped", (double)sum->heads_capped / steps);
}

static void print_times(FILE *file, const struct cli_tally *t)
{
    char text[TEXT];
    fprintf(file, "  %-10s %s:", "time",
            cli_format_ns(per(t->total_ns, t->steps), text, sizeof text));
    fprintf(file, " linear %s", cli_format_ns(per(t->linear_ns, t->steps), text, sizeof text));
    for (unsigned i = 0; i < HR_STAGES; i++)
        fprintf(file, ", %s %s", hr_stage_name(i),
                cli_format_ns(per(t->sum.time_ns[i], t->steps), text, sizeof text));
    fprintf(file, "\n");
}

void cli_tally_print(FILE *file, const struct cli_tally *tally)
{
    if (tally->steps == 0)
        return;
    char text[TEXT];
    fprintf(file, "per step, all layers, mean of %s\n", count_text(tally->steps, text));
    if (tally->sum.body_bytes) {
        print_levels(file, &tally->sum, tally->steps);
        print_moves(file, &tally->sum, tally->steps);
    } else {
        fprintf(file, "  %-10s %s, nothing is in blocks yet\n", "rows",
                count_text(per(tally->sum.rows_device, tally->steps), text));
    }
    print_errors(file, &tally->sum, tally->steps);
    print_times(file, tally);
}

void cli_tiers_print(FILE *file, const struct hr_runtime_stats *stats)
{
    char held[TEXT], peak[TEXT], cap[TEXT], reads[TEXT], writes[TEXT];
    fprintf(file, "%-10s %12s %12s %12s\n", "tier", "held", "peak", "cap");
    for (unsigned i = 0; i < HR_TIERS; i++) {
        const struct hr_tier_stats *tier = &stats->tier[i];
        if (i == HR_TIER_FILE && tier->bytes_cap == 0)
            continue;
        fprintf(file, "%-10s %12s %12s %12s\n", hr_tier_name(i), bytes_text(tier->bytes_held, held),
                bytes_text(tier->bytes_peak, peak), bytes_text(tier->bytes_cap, cap));
    }
    fprintf(file, "%-10s %12s %12s\n", "scratch", bytes_text(stats->scratch_bytes, held),
            bytes_text(stats->scratch_bytes_peak, peak));
    if (stats->tier[HR_TIER_FILE].bytes_cap)
        fprintf(file, "%-10s %s: %s reads, %s; %s writes, %s\n", "file I/O", stats->io_mode,
                count_text(stats->file_reads, reads), bytes_text(stats->file_bytes_read, held),
                count_text(stats->file_writes, writes),
                bytes_text(stats->file_bytes_written, peak));
}

/* ----------------------------------------------------------------------------------------- JSON */

static void add_levels(cJSON *json, const struct hr_attend_report *sum, double n)
{
    cJSON *levels = cJSON_AddObjectToObject(json, "levels");
    for (unsigned i = 0; i < HR_LEVELS; i++) {
        cJSON *level = cJSON_AddObjectToObject(levels, hr_level_name(i));
        cJSON_AddNumberToObject(level, "rows", (double)sum->rows_by_level[i] / n);
        cJSON_AddNumberToObject(level, "bytes", (double)sum->bytes_by_level[i] / n);
    }
    cJSON_AddNumberToObject(json, "rows_device", (double)sum->rows_device / n);
}

static void add_report_json(cJSON *json, const struct hr_attend_report *sum, double n)
{
    const struct {
        const char *name;
        uint64_t value;
    } counts[] = {
        {"blocks_total", sum->blocks_total},
        {"blocks_hit", sum->blocks_hit},
        {"blocks_fetched", sum->blocks_fetched},
        {"blocks_estimated", sum->blocks_estimated},
        {"blocks_late", sum->blocks_late},
        {"blocks_lost", sum->blocks_lost},
        {"bytes_from_host", sum->bytes_from_host},
        {"bytes_from_file", sum->bytes_from_file},
        {"bytes_selected", sum->bytes_selected},
        {"rows_rests", sum->rows_rests},
        {"bytes_rests", sum->bytes_rests},
        {"body_bytes", sum->body_bytes},
        {"ios", sum->ios},
        {"heads_capped", sum->heads_capped},
    };
    add_levels(json, sum, n);
    for (unsigned i = 0; i < sizeof counts / sizeof counts[0]; i++)
        cJSON_AddNumberToObject(json, counts[i].name, (double)counts[i].value / n);
    cJSON_AddNumberToObject(json, "selected_fraction",
                            ratio((double)sum->bytes_selected, (double)sum->body_bytes));
    cJSON_AddNumberToObject(
        json, "moved_fraction",
        ratio((double)(sum->bytes_from_host + sum->bytes_from_file), (double)sum->body_bytes));
    cli_json_real(json, "predicted_error", sum->predicted_error / n);
    cli_json_real(json, "predicted_error_max", sum->predicted_error_max);
    cli_json_real(json, "late_error", sum->late_error / n);
    if (sum->true_error >= 0) {
        cli_json_real(json, "true_error", sum->true_error / n);
        cli_json_real(json, "true_error_max", sum->true_error_max);
    }
}

static void add_times(cJSON *json, const struct cli_tally *t)
{
    double n = (double)t->steps * 1e3;
    cJSON *times = cJSON_AddObjectToObject(json, "time_us");
    cJSON_AddNumberToObject(times, "total", (double)t->total_ns / n);
    cJSON_AddNumberToObject(times, "linear", (double)t->linear_ns / n);
    for (unsigned i = 0; i < HR_STAGES; i++)
        cJSON_AddNumberToObject(times, hr_stage_name(i), (double)t->sum.time_ns[i] / n);
}

cJSON *cli_tally_json(const struct cli_tally *tally)
{
    cJSON *json = cJSON_CreateObject();
    cli_json_u64(json, "steps", tally->steps);
    if (tally->steps) {
        add_report_json(json, &tally->sum, (double)tally->steps);
        add_times(json, tally);
    }
    return json;
}

cJSON *cli_step_json(const struct hre_step_report *step)
{
    struct cli_tally tally = {0};
    cJSON *json = cJSON_CreateObject();
    cli_tally_add(&tally, step);
    add_report_json(json, &tally.sum, 1);
    add_times(json, &tally);
    return json;
}

cJSON *cli_tiers_json(const struct hr_runtime_stats *stats)
{
    cJSON *json = cJSON_CreateObject();
    for (unsigned i = 0; i < HR_TIERS; i++) {
        cJSON *tier = cJSON_AddObjectToObject(json, hr_tier_name(i));
        cli_json_u64(tier, "bytes_held", stats->tier[i].bytes_held);
        cli_json_u64(tier, "bytes_peak", stats->tier[i].bytes_peak);
        cli_json_u64(tier, "bytes_cap", stats->tier[i].bytes_cap);
    }
    cJSON *file = cJSON_GetObjectItem(json, hr_tier_name(HR_TIER_FILE));
    cJSON_AddStringToObject(file, "io_mode", stats->io_mode);
    cli_json_u64(file, "reads", stats->file_reads);
    cli_json_u64(file, "writes", stats->file_writes);
    cli_json_u64(file, "bytes_read", stats->file_bytes_read);
    cli_json_u64(file, "bytes_written", stats->file_bytes_written);
    cJSON *scratch = cJSON_AddObjectToObject(json, "scratch");
    cli_json_u64(scratch, "bytes_held", stats->scratch_bytes);
    cli_json_u64(scratch, "bytes_peak", stats->scratch_bytes_peak);
    return json;
}
