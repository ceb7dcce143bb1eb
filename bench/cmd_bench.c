/* headrace bench: runs the benchmarks of bench/ and shows them beside their limits. */
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <headrace/headrace.h>

#include "base/cpu.h"
#include "cli/args.h"
#include "bench/bench.h"
#include "bench/report.h"
#include "cli/commands.h"
#include "cli/json_file.h"
#include "cli/out.h"
#include "cli/setup.h"
#include "cli/whole_file.h"

#define BENCHMARKS_MAX 128

static const struct cli_command command = {
    .name = "bench",
    .operands = "[list | NAME... | compare A.json B.json | report RUN.json]",
    .about = "Runs the named benchmarks, or all of them. Each checks its result, then measures the "
             "code and\n"
             "its limit (a plain read of the same bytes, fio, full attention, llama.cpp) in turns "
             "in the\n"
             "same run. ratio is how near the code comes to the limit, or by how much it passes "
             "it; goal is\n"
             "the ratio to reach. 'list' names them without running any; 'compare' says what "
             "changed between two\n"
             "runs beyond their noise and fails when something became worse; 'report' prints a run "
             "as the\n"
             "page docs/benchmarks.md.",
    .examples = "  headrace bench attention-bf16 summary-score\n"
                "  headrace bench --model SmolLM2-135M-Instruct.Q4_1.gguf --file-dir /var/tmp \\\n"
                "      --json bench.json --html bench.html\n"
                "  headrace bench compare before.json after.json\n"
                "  headrace bench report bench.json > docs/benchmarks.md",
};

static bool stop(void)
{
    return cli_stop_signal() != 0;
}

static void note(const char *format, ...)
{
    char line[512];
    va_list list;
    va_start(list, format);
    vsnprintf(line, sizeof line, format, list);
    va_end(list);
    cli_note("%s", line);
}

static int print_list(void)
{
    const struct hrb_benchmark *b;
    for (size_t i = 0; (b = hrb_benchmark_at(i)); i++)
        fprintf(cli_out(), "%-24s %-62s goal %g\n", b->name, b->what, b->goal);
    return 0;
}

static int choose(const struct cli_operands *names, const struct hrb_benchmark **chosen,
                  size_t *n_out)
{
    char words[4096] = "", nearest[64];
    const struct hrb_benchmark *b;
    size_t n = 0;
    for (size_t i = 0; (b = hrb_benchmark_at(i)) && i < BENCHMARKS_MAX; i++) {
        snprintf(words + strlen(words), sizeof words - strlen(words), "%s%s", i ? " " : "",
                 b->name);
        if (names->n == 0)
            chosen[n++] = b;
    }
    for (size_t j = 0; j < names->n && n < BENCHMARKS_MAX; j++) {
        size_t i = 0;
        while ((b = hrb_benchmark_at(i)) && strcmp(b->name, names->text[j]) != 0)
            i++;
        if (!b && *cli_nearest(names->text[j], words, nearest, sizeof nearest))
            return cli_usage_error(command.name, "unknown benchmark '%s'; the nearest is '%s'",
                                   names->text[j], nearest);
        if (!b)
            return cli_usage_error(command.name,
                                   "unknown benchmark '%s'; 'headrace bench list' names them",
                                   names->text[j]);
        chosen[n++] = b;
    }
    *n_out = n;
    return -1;
}

static void print_result(const struct hrb_benchmark *b, const struct hrb_result *r, int code)
{
    FILE *file = cli_out();
    if (r->skipped || code) {
        fprintf(file, "%-24s %s: %s\n", b->name, code ? "FAILED" : "skipped", r->reason);
        return;
    }
    fprintf(file, "%-24s %10.4g %10.4g %-9s %8.3f %6.2f  %-5s %s\n", b->name, r->value, r->limit,
            r->unit, r->ratio, b->goal, r->ratio >= b->goal ? "yes" : "no", r->limit_is);
    const cJSON *item;
    cJSON_ArrayForEach(item, r->details)
    {
        if (cJSON_IsNumber(item))
            fprintf(file, "%-24s   %-18s %.6g\n", "", item->string, item->valuedouble);
        else if (cJSON_IsString(item))
            fprintf(file, "%-24s   %-18s %s\n", "", item->string, item->valuestring);
    }
}

static cJSON *result_json(const struct hrb_benchmark *b, const struct hrb_result *r, int code)
{
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "name", b->name);
    cJSON_AddStringToObject(json, "what", b->what);
    cJSON_AddNumberToObject(json, "goal", b->goal);
    if (r->skipped || code) {
        cJSON_AddNullToObject(json, "value");
        cJSON_AddNullToObject(json, "limit");
        cJSON_AddNullToObject(json, "ratio");
        cJSON_AddNullToObject(json, "unit");
        cJSON_AddStringToObject(json, code ? "failed" : "skipped", r->reason);
        return json;
    }
    cli_json_real(json, "value", r->value);
    cli_json_real(json, "limit", r->limit);
    cli_json_real(json, "ratio", r->ratio);
    if (r->spread > 0)
        cli_json_real(json, "ratio_spread", r->spread);
    cJSON_AddStringToObject(json, "unit", r->unit);
    cJSON_AddStringToObject(json, "limit_is", r->limit_is);
    cJSON_AddBoolToObject(json, "reached", r->ratio >= b->goal);
    cli_json_real(json, "value_p99", r->value_p99);
    cli_json_u64(json, "rounds", r->rounds);
    cli_json_u64(json, "bytes", r->bytes);
    if (r->details)
        cJSON_AddItemToObject(json, "details", cJSON_Duplicate(r->details, 1));
    return json;
}

static int run_all(const struct hrb_benchmark *const *chosen, size_t n,
                   const struct hrb_options *options, cJSON *list)
{
    int failed = 0;
    fprintf(cli_out(), "%-24s %10s %10s %-9s %8s %6s  %-5s %s\n", "benchmark", "value", "limit",
            "unit", "ratio", "goal", "there", "the limit is");
    for (size_t i = 0; i < n && !stop(); i++) {
        struct hrb_result result = {0};
        cli_note("%s: %s", chosen[i]->name, chosen[i]->what);
        int code = chosen[i]->run(chosen[i], options, &result);
        print_result(chosen[i], &result, code);
        fflush(cli_out());
        cJSON_AddItemToArray(list, result_json(chosen[i], &result, code));
        failed |= code;
        cJSON_Delete(result.details);
    }
    return failed ? CLI_EXIT_FAILED : CLI_EXIT_OK;
}

static int bench(const struct hrb_benchmark *const *chosen, size_t n,
                 const struct hrb_options *options, const char *path, const char *html)
{
    char date[32];
    time_t now = time(NULL);
    struct tm utc;
    strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &utc));
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "command", "bench");
    cJSON_AddStringToObject(json, "version", hr_version());
    cJSON_AddStringToObject(json, "date", date);
    cJSON_AddBoolToObject(json, "quick", options->quick);
    int code = run_all(chosen, n, options, cJSON_AddArrayToObject(json, "benchmarks"));
    /* Last: it reads more memory than a benchmark of memory should find in this program. */
    cJSON_AddItemToObject(json, "machine", hrb_machine_json(options));
    cJSON_AddBoolToObject(json, "interrupted", stop());
    int written = cli_json_write(path, json);
    if (html && !written)
        written = hrb_report_html(json, html);
    cJSON_Delete(json);
    return code ? code : written ? written : stop() ? 128 + cli_stop_signal() : CLI_EXIT_OK;
}

/* Debian's OpenBLAS does not know newer processors and then takes kernels of 2004. As a limit it runs at its best, and it reads its
 * setting when it is loaded: the tool starts itself again. */
static void blas_at_its_best(const char *tool, char **argv)
{
    struct hri_cpu cpu;
    if (getenv("OPENBLAS_CORETYPE") || hri_cpu_detect(&cpu) != HR_OK)
        return;
    if (cpu.avx512f || cpu.avx2) {
        setenv("OPENBLAS_CORETYPE", cpu.avx512f ? "SkylakeX" : "Haswell", 1);
        execv(tool, argv);
    }
}

int cli_bench(int argc, char **argv)
{
    const struct hrb_benchmark *chosen[BENCHMARKS_MAX];
    struct cli_operands names;
    struct hrb_options o = {.file_dir = "/var/tmp", .moved = 0.01, .note = note, .stop = stop};
    const char *path = NULL, *html = NULL;
    char tool[PATH_MAX];
    uint64_t threads = 0;
    bool quiet = false;
    size_t n = 0;
    const struct cli_option options[] = {
        CLI_OPTION("model", CLI_STRING, &o.model, "FILE",
                   "GGUF file for the engine's benchmarks; they are skipped without it"),
        CLI_OPTION("trace", CLI_STRING, &o.trace, "DIR",
                   "trace for the decode steps over recorded rows (see 'headrace trace'); they are "
                   "skipped without it"),
        CLI_OPTION("file-dir", CLI_STRING, &o.file_dir, "DIR",
                   "folder on the disk to measure; up to 2.5 GiB are written there and removed"),
        CLI_RANGE("threads", CLI_COUNT, &threads, "N", 1, 256, "threads [one per core]"),
        CLI_OPTION("recipe", CLI_STRING, &o.recipe, "NAME",
                   "recipe of the decode steps' benchmarks, as in 'headrace run'"),
        CLI_OPTION("moved", CLI_SHARE, &o.moved, "SHARE",
                   "bytes such a step may select, as a share of the body's exact bytes"),
        CLI_OPTION("tolerance", CLI_FRACTION, &o.tolerance, "X",
                   "stop earlier, when the predicted error of the output is below X; 0: spend "
                   "--moved"),
        CLI_SWITCH("quick", &o.quick, "fewer rounds and less data: figures are rougher"),
        CLI_OPTION(
            "json", CLI_STRING, &path, "FILE",
            "also write the results as JSON; - is standard output, text then goes to standard "
            "error"),
        CLI_OPTION("html", CLI_STRING, &html, "FILE", "also write them as a page with a bar each"),
        CLI_SWITCH("quiet", &quiet, "no progress"),
    };
    int code =
        cli_args_parse(&command, options, sizeof options / sizeof options[0], argc, argv, &names);
    if (code >= 0)
        return code;
    if (names.n == 1 && strcmp(names.text[0], "list") == 0)
        return print_list();
    if (names.n == 3 && strcmp(names.text[0], "compare") == 0)
        return hrb_compare(names.text[1], names.text[2]);
    if (names.n == 2 && strcmp(names.text[0], "report") == 0)
        return hrb_report_markdown(names.text[1]);
    if ((code = choose(&names, chosen, &n)) >= 0)
        return code;
    ssize_t length = readlink("/proc/self/exe", tool, sizeof tool - 1);
    if (length <= 0)
        return cli_fail("cannot tell where this program lies: /proc/self/exe cannot be read");
    tool[length] = '\0';
    blas_at_its_best(tool, argv - 1);
    o.tool = tool;
    o.n_threads = (unsigned)threads;
    cli_out_set_quiet(quiet);
    if (path && strcmp(path, "-") == 0)
        cli_out_move_to_stderr();
    if ((code = cli_json_check(path)) || (code = cli_whole_file_check(html)))
        return code;
    cli_stop_install();
    return bench(chosen, n, &o, path, html);
}
