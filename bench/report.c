/* A run as a page: docs/benchmarks.md, or HTML with a bar per benchmark. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/report.h"
#include "cli/args.h"
#include "cli/out.h"
#include "cli/plot.h"
#include "cli/whole_file.h"

#define BAR_WIDTH 320

static double number(const cJSON *object, const char *name)
{
    const cJSON *item = cJSON_GetObjectItem(object, name);
    return cJSON_IsNumber(item) ? item->valuedouble : 0;
}

static const char *text(const cJSON *object, const char *name)
{
    const char *value = cJSON_GetStringValue(cJSON_GetObjectItem(object, name));
    return value ? value : "";
}

static const char *why_not(const cJSON *b)
{
    return *text(b, "failed") ? text(b, "failed") : text(b, "skipped");
}

/* ---------------------------------------------------------------------------------------- markdown */

static void markdown_machine(FILE *file, const cJSON *run)
{
    const cJSON *m = cJSON_GetObjectItem(run, "machine");
    fprintf(file,
            "Run of %s%s. Machine: %s, %g cores, %g threads used, L2 %.0f KiB, L3 %.0f MiB, %.0f "
            "GiB of "
            "memory read at %.1f GB/s\nby all threads, disk %s, Linux %s. Features: %s.\n\n",
            text(run, "date"), cJSON_IsTrue(cJSON_GetObjectItem(run, "quick")) ? " (--quick)" : "",
            text(m, "cpu"), number(m, "cores"), number(m, "threads"), number(m, "l2_bytes") / 1024,
            number(m, "l3_bytes") / 1048576, number(m, "memory_bytes") / 1073741824,
            number(m, "memory_read_gbps"), text(m, "disk"), text(m, "kernel"), text(m, "features"));
}

static void markdown_row(FILE *file, const cJSON *b)
{
    if (*why_not(b)) {
        fprintf(file, "| `%s` | %s | | | | %g | %s |\n", text(b, "name"), text(b, "what"),
                number(b, "goal"), why_not(b));
        return;
    }
    fprintf(file, "| `%s` | %s | %.4g (p99 %.4g) %s | %.4g | %.3f | %g | %s%s |\n", text(b, "name"),
            text(b, "what"), number(b, "value"), number(b, "value_p99"), text(b, "unit"),
            number(b, "limit"), number(b, "ratio"), number(b, "goal"), text(b, "limit_is"),
            number(b, "ratio") >= number(b, "goal") ? "" : "; **not reached**");
}

static void markdown_details(FILE *file, const cJSON *run)
{
    const cJSON *b, *item;
    cJSON_ArrayForEach(b, cJSON_GetObjectItem(run, "benchmarks"))
    {
        const cJSON *details = cJSON_GetObjectItem(b, "details");
        if (!details || !details->child)
            continue;
        fprintf(file, "* `%s`:", text(b, "name"));
        cJSON_ArrayForEach(item, details)
        {
            if (cJSON_IsNumber(item))
                fprintf(file, " %s %.4g%s", item->string, item->valuedouble, item->next ? "," : "");
            else if (cJSON_IsString(item))
                fprintf(file, " %s %s%s", item->string, item->valuestring, item->next ? "," : "");
        }
        fprintf(file, "\n");
    }
}

int hrb_report_markdown(const char *path)
{
    cJSON *run = hrb_run_read(path);
    FILE *file = cli_out();
    const cJSON *b;
    if (!run)
        return CLI_EXIT_FAILED;
    fprintf(file, "# Benchmarks\n\nWritten by `headrace bench report RUN.json` from one run of "
                  "`headrace bench --json RUN.json`. Every benchmark "
                  "first checks its result\nagainst the reference, then measures the code and its "
                  "limit in turns, A-B-B-A. `ratio` is the median over rounds of limit time over\n"
                  "ours (1: as fast as the limit); times of different rows, taken at different "
                  "moments of a shared machine, say little.\n\n");
    markdown_machine(file, run);
    fprintf(file, "| benchmark | what | ours | limit | ratio | goal | the limit is "
                  "|\n|---|---|---|---|---|---|---|\n");
    cJSON_ArrayForEach(b, cJSON_GetObjectItem(run, "benchmarks"))
    {
        markdown_row(file, b);
    }
    fprintf(file, "\n## Details\n\n");
    markdown_details(file, run);
    cJSON_Delete(run);
    return CLI_EXIT_OK;
}

/* -------------------------------------------------------------------------------------------- html */

static const char style[] = "<style>body{font:15px/1.5 system-ui,sans-serif;margin:2em "
                            "auto;max-width:72em;padding:0 1em;color:#1c2733}"
                            "table{border-collapse:collapse;width:100%}td,th{padding:.35em "
                            ".7em;border-bottom:1px solid #dde3ea;text-align:left;"
                            "vertical-align:top}td.n{text-align:right;white-space:nowrap}small{"
                            "color:#5b6b7b}.no{color:#9c4a00}</style>";

/* The bar ends at twice the goal; the line in its middle is the goal. */
static void html_bar(FILE *file, double ratio, double goal)
{
    double share = goal > 0 ? 0.5 * ratio / goal : 0;
    double width = BAR_WIDTH * (share < 1 ? share : 1);
    fprintf(file,
            "<svg width=\"%d\" height=\"14\" role=\"img\" aria-label=\"ratio %.3g, goal "
            "%.3g\"><rect width=\"%d\" height=\"14\" "
            "fill=\"#eef2f6\"/><rect width=\"%.0f\" height=\"14\" fill=\"%s\"/><path d=\"M%d "
            "0V14\" stroke=\"#1c2733\"/></svg>",
            BAR_WIDTH, ratio, goal, BAR_WIDTH, width, ratio >= goal ? "#2f7d5b" : "#c9772b",
            BAR_WIDTH / 2);
}

static void html_row(FILE *file, const cJSON *b)
{
    fprintf(file, "<tr><td><code>");
    cli_html_text(file, text(b, "name"));
    fprintf(file, "</code><br><small>");
    cli_html_text(file, text(b, "what"));
    fprintf(file, "</small></td>");
    if (*why_not(b)) {
        fprintf(file, "<td colspan=\"4\" class=\"no\">");
        cli_html_text(file, why_not(b));
        fprintf(file, "</td></tr>\n");
        return;
    }
    fprintf(
        file,
        "<td class=\"n\">%.4g %s<br><small>p99 %.4g</small></td><td class=\"n\">%.4g<br><small>",
        number(b, "value"), text(b, "unit"), number(b, "value_p99"), number(b, "limit"));
    cli_html_text(file, text(b, "limit_is"));
    fprintf(file, "</small></td><td class=\"n\">%.3f<br><small>goal %g</small></td><td>",
            number(b, "ratio"), number(b, "goal"));
    html_bar(file, number(b, "ratio"), number(b, "goal"));
    fprintf(file, "</td></tr>\n");
}

int hrb_report_html(const cJSON *run, const char *path)
{
    char *page = NULL;
    size_t n = 0;
    const cJSON *b, *m = cJSON_GetObjectItem(run, "machine");
    FILE *file = open_memstream(&page, &n);
    if (!file)
        return cli_fail("out of memory");
    fprintf(file,
            "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Headrace "
            "benchmarks</title>%s</head><body>"
            "<h1>Benchmarks</h1><p>%s. ",
            style, text(run, "date"));
    cli_html_text(file, text(m, "cpu"));
    fprintf(file, ", %g threads, memory read at %.1f GB/s, disk ", number(m, "threads"),
            number(m, "memory_read_gbps"));
    cli_html_text(file, text(m, "disk"));
    fprintf(file, ", Linux ");
    cli_html_text(file, text(m, "kernel"));
    fprintf(file, ".</p><table><tr><th>benchmark</th><th>ours</th><th>limit</th><th>ratio</"
                  "th><th>the line is the goal</th></tr>\n");
    cJSON_ArrayForEach(b, cJSON_GetObjectItem(run, "benchmarks"))
    {
        html_row(file, b);
    }
    fprintf(file, "</table></body></html>\n");
    fclose(file);
    struct cli_bytes all = {page, n};
    int code = page ? cli_whole_file_write(path, &all, 1) : cli_fail("out of memory");
    free(page);
    return code;
}
