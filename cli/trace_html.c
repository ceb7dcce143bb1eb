/* The page of eval trace: everything in one file, nothing from elsewhere. */
#include <stdlib.h>
#include <string.h>

#include "cli/out.h"
#include "cli/plot.h"
#include "cli/trace_plots.h"

static const char style[] =
    ":root{color-scheme:light}"
    "body{margin:0;background:#fff;color:#1d2327;font:15px/1.5 system-ui,-apple-system,'Segoe UI',"
    "'Noto Sans','DejaVu Sans',sans-serif}"
    "main{max-width:1240px;margin:0 auto;padding:28px 32px 60px}"
    "h1{font-size:25px;margin:0 0 2px}h2{font-size:18px;margin:40px 0 6px;border-top:1px solid "
    "#e3e6e8;padding-top:22px}"
    "p{max-width:96ch;margin:6px 0;color:#4a545a}"
    ".scroll{overflow-x:auto}"
    "table{border-collapse:collapse;margin:12px 0;font-variant-numeric:tabular-nums;font-size:14px}"
    "th,td{padding:4px 11px;text-align:right;white-space:nowrap}"
    "th{font-weight:600;color:#4a545a;border-bottom:1px solid #c3c9cd}"
    "tr:nth-child(even) td{background:#f6f7f8}"
    "td:first-child,th:first-child{text-align:left}td.first,th.first{border-left:1px solid #dde1e4}"
    "td.dim{color:#7a858c}b.best{color:#0b5fa5}.over{color:#b23a1e;font-size:12px}"
    ".swatch{display:inline-block;width:11px;height:11px;border-radius:3px;margin-right:8px}"
    ".row{display:flex;flex-wrap:wrap;gap:10px 26px;align-items:flex-start}"
    "figure{margin:8px 0}figcaption{font-weight:600;font-size:14px;margin:2px 0 4px}"
    "svg{max-width:100%;height:auto;font:12px system-ui,-apple-system,'Segoe UI','Noto "
    "Sans','DejaVu "
    "Sans',sans-serif}"
    ".frame{fill:#fcfcfd;stroke:#c3c9cd}.grid{stroke:#dfe3e6;fill:none}.fine{stroke:#f0f2f4;fill:"
    "none}"
    ".tick{fill:#5b6770;font-size:11px}.axis{fill:#39424a;font-size:12.5px}"
    ".curve{fill:none;stroke-width:2.2;stroke-linejoin:round}"
    ".leader{fill:none;stroke-width:1;opacity:.45}"
    ".still{fill:none;stroke-width:1.6;stroke-dasharray:2 4}"
    ".name{font-size:12px;font-weight:600}.note{font-size:11.5px;fill:#39424a}"
    ".band{fill:#d9e9f6;stroke:#a9c9e2}.diagonal{stroke:#6d9cc2;fill:none}"
    ".dots{fill:none;stroke-width:2.6;stroke-linecap:round;opacity:.38}"
    ".cell{font-size:9.5px;text-anchor:middle;fill:#3a2a2a}.white{fill:#fff}";

static void head(const struct cli_trace_page *page)
{
    const struct cli_trace_options *o = page->eval->options;
    fprintf(page->file,
            "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n"
            "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
            "<title>Recipes on recorded attention</title>\n<style>%s</style></head>\n<body><main>\n"
            "<h1>Recipes on recorded attention</h1>\n<p>headrace %s, rows in the %s tier",
            style, hr_version(), o->tier);
    if (o->tolerance > 0)
        fprintf(page->file, ", tolerance %g", o->tolerance);
    fprintf(
        page->file,
        ". Error: |out &#8722; full| / |full| of every attention output against full attention in "
        "double. Bytes are shares of the body&#8217;s bf16 K and V: <i>device</i> is what "
        "summaries "
        "and sketches hold, <i>moved</i> what a step refined, fetched or found on the device. Sink "
        "and window are free, and the same for all.</p>\n");
}

/* --------------------------------------------------------------------------------------- tables */

static void recipe_cell(const struct cli_trace_page *page, size_t rank)
{
    fprintf(page->file, "<tr><td><span class=\"swatch\" style=\"background:%s\"></span>",
            cli_plot_colour(rank));
    cli_html_text(page->file, page->eval->options->recipes.name[page->order[rank]]);
    fprintf(page->file, "</td>");
}

/* The smallest error of a column that is not exact. */
static double best_error(const struct cli_trace_page *page, size_t trace, size_t moved)
{
    double best = 1e300;
    for (size_t i = 0; i < page->n; i++) {
        struct cli_trace_figures f;
        if (cli_trace_figures(page->eval, trace, page->order[i], moved, &f) &&
            !cli_trace_is_over(&f) && f.error_mean > CLI_TRACE_EXACT && f.error_mean < best)
            best = f.error_mean;
    }
    return best;
}

static void error_cells(const struct cli_trace_page *page, const struct cli_trace_figures *f,
                        double best)
{
    bool is_over = cli_trace_is_over(f);
    bool is_best = !is_over && f->error_mean <= best && f->error_mean > CLI_TRACE_EXACT;
    char text[32];
    fprintf(page->file, "<td class=\"first\">%s%.4f%s</td><td class=\"dim\">%.4f",
            is_best ? "<b class=\"best\">" : "", f->error_mean, is_best ? "</b>" : "",
            f->error_p95);
    if (is_over)
        fprintf(page->file, " <span class=\"over\">%s moved</span>",
                cli_format_share(f->moved_fraction, text, sizeof text));
    fprintf(page->file, "</td>");
}

static void error_table(const struct cli_trace_page *page, size_t trace)
{
    const struct cli_trace_options *o = page->eval->options;
    char text[32];
    fprintf(page->file, "<div class=\"scroll\"><table><tr><th rowspan=\"2\">recipe</th>"
                        "<th rowspan=\"2\">device</th>");
    for (size_t j = 0; j < o->moved.n; j++)
        fprintf(page->file, "<th colspan=\"2\" class=\"first\">%s moved</th>", o->moved.text[j]);
    fprintf(page->file, "</tr>\n<tr>");
    for (size_t j = 0; j < o->moved.n; j++)
        fprintf(page->file,
                "<th class=\"first\" style=\"text-align:right\">error</th><th>95th pct</th>");
    fprintf(page->file, "</tr>\n");
    for (size_t i = 0; i < page->n; i++) {
        recipe_cell(page, i);
        for (size_t j = 0; j < o->moved.n; j++) {
            struct cli_trace_figures f;
            bool there = cli_trace_figures(page->eval, trace, page->order[i], j, &f);
            if (j == 0)
                fprintf(page->file, "<td>%s</td>",
                        there ? cli_format_share(f.device_fraction, text, sizeof text) : "");
            if (there)
                error_cells(page, &f, best_error(page, trace, j));
            else
                fprintf(page->file, "<td class=\"first\"></td><td></td>");
        }
        fprintf(page->file, "</tr>\n");
    }
    fprintf(page->file, "</table></div>\n");
}

static void detail_row(const struct cli_trace_page *page, size_t rank, size_t moved)
{
    struct cli_trace_figures f;
    char a[32], b[32], c[32], d[32], e[32], h[32], t[32], k[32];
    if (!cli_trace_figures(page->eval, SIZE_MAX, page->order[rank], moved, &f))
        return;
    recipe_cell(page, rank);
    fprintf(page->file,
            "<td>%s</td><td class=\"first\">%s</td><td>%s</td><td>%s</td><td>%s</td><td "
            "class=\"first\">%s</td>",
            page->eval->options->moved.text[moved],
            cli_format_share(f.device_fraction, a, sizeof a),
            f.host_index_fraction > 0 ? cli_format_share(f.host_index_fraction, h, sizeof h) : "",
            cli_format_share(f.moved_fraction, b, sizeof b),
            cli_format_share(f.fetched_fraction, c, sizeof c),
            cli_format_share(f.mass_recall, d, sizeof d));
    fprintf(page->file, "<td class=\"first\">%.4f</td>", f.error_mean);
    if (f.predicted_mean > 0)
        fprintf(page->file, "<td>%.4f</td><td>%s</td><td>%s</td>", f.predicted_mean,
                cli_format_share(f.within_2x, d, sizeof d),
                cli_format_share(f.within_2x_large, e, sizeof e));
    else
        fprintf(page->file, "<td class=\"dim\">none</td><td></td><td></td>");
    if (page->eval->options->tolerance > 0)
        fprintf(page->file, "<td>%s</td>",
                f.predicted_mean > 0 ? cli_format_share(f.capped_fraction, k, sizeof k) : "");
    fprintf(page->file, "<td class=\"first\">%s</td></tr>\n",
            cli_format_ns((uint64_t)f.ns_per_step, t, sizeof t));
}

static void detail_table(const struct cli_trace_page *page)
{
    const bool tolerant = page->eval->options->tolerance > 0;
    fprintf(
        page->file,
        "<h2>All figures</h2>\n<p><i>Host index</i>: what is held in host memory to search in, "
        "beside "
        "the rows. <i>Fetched</i>: what really had to come from host or file; the "
        "rest "
        "of <i>moved</i> lay in frames. <i>Recall</i>: share of the body&#8217;s attention mass "
        "whose "
        "rows were refined. <i>In 2x</i>: query heads and queries whose predicted error is within "
        "a "
        "factor of two of the true one; the second column counts those with a true error above %g "
        "only.%s</p>\n<div class=\"scroll\"><table><tr><th>recipe</th><th>budget</th>"
        "<th class=\"first\">device</th><th>host index</th><th>moved</th><th>fetched</th><th "
        "class=\"first\">recall</th>"
        "<th class=\"first\">error</th><th>predicted</th><th>in 2x</th><th>of large</th>%s"
        "<th class=\"first\">a step</th></tr>\n",
        CLI_TRACE_LARGE_ERROR,
        tolerant
            ? " <i>Capped</i>: kv-heads and steps where the budget was spent before the predicted "
              "error was below the tolerance."
            : "",
        tolerant ? "<th>capped</th>" : "");
    for (size_t i = 0; i < page->n; i++)
        for (size_t j = 0; j < page->eval->options->moved.n; j++)
            detail_row(page, i, j);
    fprintf(page->file, "</table></div>\n");
}

static void trace_table(const struct cli_trace_page *page)
{
    fprintf(page->file,
            "<h2>Traces</h2>\n<div class=\"scroll\"><table><tr><th>trace</th><th>model</th>"
            "<th>layer</th><th>query heads</th><th>kv heads</th><th>dim</th><th>tokens</th>"
            "<th>queries shown</th><th>queries scored</th></tr>\n");
    for (size_t i = 0; i < page->n_traces; i++) {
        const struct cli_trace_about *a = &page->eval->traces[page->traces[i]];
        char tokens[32];
        fprintf(page->file, "<tr><td>");
        cli_html_text(page->file, a->name);
        fprintf(page->file, "</td><td>");
        cli_html_text(page->file, a->model);
        fprintf(page->file,
                "</td><td>%u</td><td>%u</td><td>%u</td><td>%u</td><td>%s</td><td>%u</td><td>%u</td>"
                "</tr>\n",
                a->layer, a->n_q_heads, a->n_kv_heads, a->head_dim,
                cli_format_count(a->n_tokens, tokens, sizeof tokens), a->n_seen, a->n_queries);
    }
    fprintf(page->file, "</table></div>\n");
}

/* ------------------------------------------------------------------------------------- pictures */

static void curves(const struct cli_trace_page *page)
{
    fprintf(page->file,
            "<h2>Error against bytes</h2>\n<p>All traces; both axes logarithmic. Left: what a "
            "step moves. Right: with what is held for it on the device. Exact recipes are "
            "not drawn.</p>\n<div class=\"row\">\n<figure>");
    cli_trace_curves(page, SIZE_MAX, false, 600, 440, true);
    fprintf(page->file, "</figure>\n<figure>");
    cli_trace_curves(page, SIZE_MAX, true, 600, 440, true);
    fprintf(page->file, "</figure>\n</div>\n");
    if (page->n_traces < 2)
        return;
    fprintf(page->file, "<p>Each trace, bytes moved:</p>\n<div class=\"row\">\n");
    for (size_t i = 0; i < page->n_traces; i++) {
        size_t t = page->traces[i];
        fprintf(page->file, "<figure><figcaption>");
        cli_html_text(page->file, page->eval->traces[t].name);
        fprintf(page->file, "</figcaption>");
        cli_trace_curves(page, t, false, 280, 220, false);
        fprintf(page->file, "</figure>\n");
    }
    fprintf(page->file, "</div>\n");
}

static void heat_maps(const struct cli_trace_page *page)
{
    const struct cli_trace_options *o = page->eval->options;
    size_t moved = o->moved.n / 2;
    double min, max;
    if (!cli_trace_heat_range(page, moved, &min, &max))
        return;
    fprintf(
        page->file,
        "<h2>Error by layer and head</h2>\n<p>Mean over the queries at %s moved; one row for each "
        "trace, one column for each query head, one scale for all recipes.</p>\n",
        o->moved.text[moved]);
    cli_trace_heat_legend(page, min, max);
    fprintf(page->file, "<div class=\"row\">\n");
    for (size_t i = 0; i < page->n; i++) {
        struct cli_trace_figures f;
        if (!cli_trace_figures(page->eval, SIZE_MAX, page->order[i], moved, &f) ||
            f.error_mean <= CLI_TRACE_EXACT)
            continue;
        fprintf(page->file, "<figure><figcaption>");
        cli_html_text(page->file, o->recipes.name[page->order[i]]);
        fprintf(page->file, " &#8211; %.4f</figcaption>", f.error_mean);
        cli_trace_heat(page, page->order[i], moved, min, max);
        fprintf(page->file, "</figure>\n");
    }
    fprintf(page->file, "</div>\n");
}

static void scatters(const struct cli_trace_page *page)
{
    fprintf(page->file,
            "<h2>Predicted against true error</h2>\n<p>One point for each query head at each "
            "query; the band is a factor of two. Recipes that predict nothing are not "
            "here.</p>\n<div class=\"row\">\n");
    bool any = false;
    for (size_t i = 0; i < page->n; i++)
        any |= cli_trace_scatter(page, page->order[i]);
    if (!any)
        fprintf(page->file, "<p>None of these recipes predicts its error.</p>");
    fprintf(page->file, "</div>\n");
}

static void trace_tables(const struct cli_trace_page *page)
{
    for (size_t i = 0; page->n_traces > 1 && i < page->n_traces; i++) {
        fprintf(page->file, "<h2>");
        cli_html_text(page->file, page->eval->traces[page->traces[i]].name);
        fprintf(page->file, "</h2>\n");
        error_table(page, page->traces[i]);
    }
}

/* Insertion keeps the given order within a layer. */
static void order_traces(struct cli_trace_page *page)
{
    const struct cli_trace_about *about = page->eval->traces;
    for (size_t t = 0; t < page->eval->options->folders.n; t++) {
        size_t at = page->n_traces;
        if (!about[t].name)
            continue;
        for (; at > 0 && about[page->traces[at - 1]].layer > about[t].layer; at--)
            page->traces[at] = page->traces[at - 1];
        page->traces[at] = t;
        page->n_traces++;
    }
}

char *cli_trace_html(const struct cli_trace_eval *eval)
{
    char *text = NULL;
    size_t bytes;
    struct cli_trace_page page = {.eval = eval};
    page.n = cli_trace_rank(eval, page.order);
    order_traces(&page);
    page.file = open_memstream(&text, &bytes);
    if (!page.file)
        return NULL;
    head(&page);
    error_table(&page, SIZE_MAX);
    curves(&page);
    heat_maps(&page);
    scatters(&page);
    detail_table(&page);
    trace_tables(&page);
    trace_table(&page);
    fprintf(page.file, "</main></body></html>\n");
    if (fclose(page.file) == 0)
        return text;
    free(text);
    return NULL;
}
