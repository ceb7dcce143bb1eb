#include "cli/trace_plots.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cli/plot.h"

/* --------------------------------------------------------------------------------------- curves */

struct point {
    double x, y;
};

struct curve {
    size_t n, rank;
    struct point points[CLI_LIST_MAX];
    double label_at; /* pixel of its name */
};

static int by_x(const void *a, const void *b)
{
    const struct point *p = a, *q = b;
    return (p->x > q->x) - (p->x < q->x);
}

/* Bytes a recipe needs: nothing on a logarithmic axis for one that moves none. */
static void curve_fill(const struct cli_trace_page *page, size_t trace, bool held, size_t rank,
                       struct curve *curve)
{
    const struct cli_trace_options *o = page->eval->options;
    struct cli_trace_figures f;
    *curve = (struct curve){.rank = rank};
    for (size_t j = 0; j < o->moved.n; j++) {
        if (!cli_trace_figures(page->eval, trace, page->order[rank], j, &f))
            continue;
        double x = f.moved_fraction + (held ? f.device_fraction : 0);
        if (f.error_mean > CLI_TRACE_EXACT && x > 0)
            curve->points[curve->n++] = (struct point){x, f.error_mean};
    }
    qsort(curve->points, curve->n, sizeof curve->points[0], by_x);
}

/* Mean error of a recipe that moves nothing, or 0. */
static double still_error(const struct cli_trace_page *page, size_t trace, size_t rank)
{
    struct cli_trace_figures f;
    if (!cli_trace_figures(page->eval, trace, page->order[rank], 0, &f))
        return 0;
    return f.moved_fraction + f.device_fraction > 0 ? 0 : f.error_mean;
}

static void draw_curve(const struct cli_plot *p, const struct curve *c, const char *name)
{
    const char *colour = cli_plot_colour(c->rank);
    fprintf(p->file, "<g><title>");
    cli_html_text(p->file, name);
    fprintf(p->file, "</title><path class=\"curve\" stroke=\"%s\" stroke-dasharray=\"%s\" d=\"",
            colour, cli_plot_dash(c->rank));
    for (size_t i = 0; i < c->n; i++)
        fprintf(p->file, "%c%.1f %.1f", i ? 'L' : 'M', cli_axis_at(&p->x, c->points[i].x),
                cli_axis_at(&p->y, c->points[i].y));
    fprintf(p->file, "\"/>");
    for (size_t i = 0; i < c->n; i++)
        fprintf(p->file, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3.4\" fill=\"%s\"/>",
                cli_axis_at(&p->x, c->points[i].x), cli_axis_at(&p->y, c->points[i].y), colour);
    fprintf(p->file, "</g>\n");
}

#define LABEL_STEP     14.0
#define NAME_CHARS_MAX 18

static int by_label(const void *a, const void *b)
{
    const struct curve *p = *(const struct curve *const *)a, *q = *(const struct curve *const *)b;
    return (p->label_at > q->label_at) - (p->label_at < q->label_at);
}

/* Names beside the curves' right ends, pushed apart: down first, then up from the bottom edge. */
static void place_labels(struct curve **curves, size_t n, double top, double bottom)
{
    qsort(curves, n, sizeof(struct curve *), by_label);
    for (size_t i = 0; i < n; i++) {
        double least = i ? curves[i - 1]->label_at + LABEL_STEP : top;
        if (curves[i]->label_at < least)
            curves[i]->label_at = least;
    }
    for (size_t i = n; i-- > 0;) {
        double most = i + 1 < n ? curves[i + 1]->label_at - LABEL_STEP : bottom;
        if (curves[i]->label_at > most)
            curves[i]->label_at = most;
    }
}

/* What the margin has room for. */
static void draw_name(FILE *file, const char *name)
{
    char text[NAME_CHARS_MAX + 1];
    size_t n = strlen(name);
    snprintf(text, sizeof text, "%s", name);
    cli_html_text(file, text);
    if (n > NAME_CHARS_MAX)
        fprintf(file, "&#8230;");
}

static void draw_labels(const struct cli_plot *p, struct curve *curves, size_t n,
                        const struct cli_trace_page *page)
{
    struct curve *sorted[CLI_LIST_MAX];
    double right = p->width - p->right;
    size_t used = 0;
    for (size_t i = 0; i < n; i++) {
        if (curves[i].n == 0)
            continue;
        curves[i].label_at = cli_axis_at(&p->y, curves[i].points[curves[i].n - 1].y);
        sorted[used++] = &curves[i];
    }
    place_labels(sorted, used, p->top + 4, p->height - p->bottom - 2);
    for (size_t i = 0; i < used; i++) {
        const struct curve *c = sorted[i];
        const struct point *end = &c->points[c->n - 1];
        const char *colour = cli_plot_colour(c->rank);
        fprintf(p->file, "<path class=\"leader\" stroke=\"%s\" d=\"M%.1f %.1fL%.1f %.1f\"/>",
                colour, cli_axis_at(&p->x, end->x) + 5, cli_axis_at(&p->y, end->y), right + 6,
                c->label_at);
        fprintf(p->file, "<text class=\"name\" x=\"%.1f\" y=\"%.1f\" fill=\"%s\">", right + 9,
                c->label_at + 4, colour);
        draw_name(p->file, page->eval->options->recipes.name[page->order[c->rank]]);
        fprintf(p->file, "</text>\n");
    }
}

/* A line across for what moves nothing. */
static void draw_still(const struct cli_plot *p, const struct cli_trace_page *page, size_t trace,
                       bool named)
{
    for (size_t i = 0; i < page->n; i++) {
        double error = still_error(page, trace, i), y = cli_axis_at(&p->y, error);
        if (error <= CLI_TRACE_EXACT)
            continue;
        fprintf(p->file, "<path class=\"still\" stroke=\"%s\" d=\"M%.1f %.1fH%.1f\"/>",
                cli_plot_colour(i), p->left, y, p->width - p->right);
        if (!named)
            continue;
        fprintf(p->file, "<text class=\"name\" x=\"%.1f\" y=\"%.1f\" fill=\"%s\">", p->left + 6,
                y - 5, cli_plot_colour(i));
        cli_html_text(p->file, page->eval->options->recipes.name[page->order[i]]);
        fprintf(p->file, " (moves nothing)</text>\n");
    }
}

void cli_trace_curves(const struct cli_trace_page *page, size_t trace, bool held, double width,
                      double height, bool named)
{
    struct curve *curves = calloc(CLI_LIST_MAX, sizeof *curves);
    struct cli_plot p = {.file = page->file,
                         .width = width,
                         .height = height,
                         .left = named ? 62 : 46,
                         .right = named ? 150 : 12,
                         .top = 12,
                         .bottom = named ? 46 : 28,
                         .x = {.percent = true},
                         .y = {.max = 0}};
    if (!curves)
        return;
    if (named) {
        p.x.label = held ? "held and moved, share of the body&#8217;s bf16 K and V"
                         : "moved per step, share of the body&#8217;s bf16 K and V";
        p.y.label = "mean relative error of the output";
    }
    for (size_t i = 0; i < page->n; i++) {
        curve_fill(page, trace, held, i, &curves[i]);
        for (size_t j = 0; j < curves[i].n; j++) {
            cli_axis_hold(&p.x, curves[i].points[j].x);
            cli_axis_hold(&p.y, curves[i].points[j].y);
        }
        double still = still_error(page, trace, i);
        cli_axis_hold(&p.y, still > CLI_TRACE_EXACT ? still : 0);
    }
    cli_axis_finish(&p.x, 4);
    cli_axis_finish(&p.y, 4);
    cli_plot_begin(&p);
    draw_still(&p, page, trace, named);
    for (size_t i = page->n; i-- > 0;) { /* the best on top */
        if (curves[i].n)
            draw_curve(&p, &curves[i], page->eval->options->recipes.name[page->order[i]]);
    }
    if (named)
        draw_labels(&p, curves, page->n, page);
    cli_plot_end(&p);
    free(curves);
}

/* ------------------------------------------------------------------------------------ heat maps */

#define HEAT_LEAST 1e-3 /* heads that are attended exactly must not stretch the scale */

/* Mean error of a query head over the queries. */
static double head_error(const struct cli_trace_item *item, uint32_t head)
{
    double sum = 0;
    for (uint32_t i = 0; i < item->n_queries; i++)
        sum += item->error[(size_t)head * item->n_queries + i];
    return sum / item->n_queries;
}

bool cli_trace_heat_range(const struct cli_trace_page *page, size_t moved, double *min, double *max)
{
    struct cli_axis range = {.max = 0};
    for (size_t t = 0; t < page->eval->options->folders.n; t++) {
        for (size_t i = 0; i < page->n; i++) {
            const struct cli_trace_item *item =
                cli_trace_item_at(page->eval, t, page->order[i], moved);
            for (uint32_t h = 0; item->done && h < item->n_q_heads; h++) {
                double error = head_error(item, h);
                cli_axis_hold(&range, error > HEAT_LEAST ? error : 0);
            }
        }
    }
    *min = range.min;
    *max = range.max > range.min ? range.max : range.min * 1.001;
    return range.max > 0;
}

static double shade_of(double error, double min, double max)
{
    return error <= min ? 0 : log(error / min) / log(max / min);
}

static void heat_cell(FILE *file, double x, double y, double size, double error, double min,
                      double max, const char *trace, uint32_t head)
{
    char colour[8], text[16];
    bool white = cli_plot_shade(shade_of(error, min, max), colour);
    fprintf(file, "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" fill=\"%s\"><title>",
            x, y, size, size, colour);
    cli_html_text(file, trace);
    fprintf(file, ", head %u: %.4f</title></rect>", head, error);
    if (size < 26)
        return;
    snprintf(text, sizeof text, error < 0.0995 ? "%.3f" : "%.2f", error);
    fprintf(file, "<text class=\"cell%s\" x=\"%.1f\" y=\"%.1f\">%s</text>", white ? " white" : "",
            x + size / 2, y + size / 2 + 3.5, text + (text[0] == '0' && text[1] == '.'));
}

static double heat_size(uint32_t n_heads)
{
    return n_heads <= 12 ? 30 : n_heads <= 20 ? 20 : n_heads <= 40 ? 13 : 8;
}

static uint32_t heads_most(const struct cli_trace_page *page)
{
    uint32_t most = 0;
    for (size_t t = 0; t < page->eval->options->folders.n; t++)
        most = page->eval->traces[t].n_q_heads > most ? page->eval->traces[t].n_q_heads : most;
    return most;
}

static void heat_row(const struct cli_trace_page *page, const struct cli_trace_item *item,
                     const struct cli_trace_about *about, double left, double y, double size,
                     double min, double max)
{
    uint32_t group = item->n_q_heads / item->n_kv_heads;
    fprintf(page->file, "<text class=\"tick\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"end\">", left - 7,
            y + size / 2 + 4);
    cli_html_text(page->file, about->name);
    fprintf(page->file, "</text>");
    for (uint32_t h = 0; h < item->n_q_heads; h++) {
        uint32_t kv_head = h / group; /* a gap before each but the first */
        heat_cell(page->file, left + h * (size + 1) + kv_head * 4.0, y, size, head_error(item, h),
                  min, max, about->name, h);
    }
    fputc('\n', page->file);
}

void cli_trace_heat(const struct cli_trace_page *page, size_t recipe, size_t moved, double min,
                    double max)
{
    size_t n_traces = page->n_traces, longest = 0;
    uint32_t heads = heads_most(page);
    double size = heat_size(heads);
    for (size_t t = 0; t < n_traces; t++) {
        size_t n = strlen(page->eval->traces[page->traces[t]].name);
        longest = n > longest ? n : longest;
    }
    double left = 12 + 6.2 * (double)longest;
    double width = left + heads * (size + 5) + 8, height = (double)n_traces * (size + 1) + 22;
    fprintf(page->file, "<svg viewBox=\"0 0 %g %g\" width=\"%g\" height=\"%g\" role=\"img\">\n",
            width, height, width, height);
    for (size_t i = 0; i < n_traces; i++) {
        size_t t = page->traces[i];
        const struct cli_trace_item *item = cli_trace_item_at(page->eval, t, recipe, moved);
        if (item->done)
            heat_row(page, item, &page->eval->traces[t], left, (double)i * (size + 1), size, min,
                     max);
    }
    fprintf(page->file,
            "<text class=\"tick\" x=\"%.1f\" y=\"%.1f\">query heads 0 to %u, grouped by kv head"
            "</text></svg>\n",
            left, height - 6, heads - 1);
}

void cli_trace_heat_legend(const struct cli_trace_page *page, double min, double max)
{
    enum { STEPS = 60, WIDTH = 300 };
    struct cli_axis axis = {.min = min, .max = max, .from = 10, .to = 10 + WIDTH};
    char colour[8];
    fprintf(page->file, "<svg viewBox=\"0 0 %d 40\" width=\"%d\" height=\"40\" role=\"img\">\n",
            WIDTH + 40, WIDTH + 40);
    for (int i = 0; i < STEPS; i++) {
        cli_plot_shade((i + 0.5) / STEPS, colour);
        fprintf(page->file, "<rect x=\"%.2f\" y=\"4\" width=\"%.2f\" height=\"12\" fill=\"%s\"/>",
                10 + (double)WIDTH * i / STEPS, (double)WIDTH / STEPS + 0.3, colour);
    }
    for (int power = -6; power < 2; power++) {
        for (int digit = 1; digit <= 5; digit += digit == 1 ? 1 : 3) {
            double value = digit * pow(10, power);
            if (value < min || value > max || (digit > 1 && max / min > 500))
                continue;
            fprintf(
                page->file,
                "<path class=\"grid\" d=\"M%.1f 16v5\"/><text class=\"tick\" x=\"%.1f\" y=\"33\" "
                "text-anchor=\"middle\">%g</text>",
                cli_axis_at(&axis, value), cli_axis_at(&axis, value), value);
        }
    }
    fprintf(page->file, "</svg>\n");
}

/* -------------------------------------------------------------------------------------- scatter */

#define SCATTER_POINTS_MAX 1500 /* of a budget; more are thinned evenly */
#define SCATTER_LEAST      1e-4

static void band(const struct cli_plot *p)
{
    double low = p->x.min, high = p->x.max;
    /* 2x above and below the diagonal, cut to the frame. */
    double x[] = {low, low, high / 2, high, high, low * 2},
           y[] = {low, low * 2, high, high, high / 2, low};
    fprintf(p->file, "<path class=\"band\" d=\"");
    for (size_t i = 0; i < sizeof x / sizeof x[0]; i++)
        fprintf(p->file, "%c%.1f %.1f", i ? 'L' : 'M', cli_axis_at(&p->x, x[i]),
                cli_axis_at(&p->y, y[i]));
    fprintf(p->file, "Z\"/><path class=\"diagonal\" d=\"M%.1f %.1fL%.1f %.1f\"/>\n", p->x.from,
            p->y.from, p->x.to, p->y.to);
}

static double clamped(const struct cli_axis *axis, double value)
{
    value = value < axis->min ? axis->min : value > axis->max ? axis->max : value;
    return cli_axis_at(axis, value);
}

static void budget_points(const struct cli_trace_page *page, const struct cli_plot *p,
                          size_t recipe, size_t moved)
{
    size_t n_traces = page->eval->options->folders.n, total = 0, at = 0;
    for (size_t t = 0; t < n_traces; t++) {
        const struct cli_trace_item *item = cli_trace_item_at(page->eval, t, recipe, moved);
        total += item->done ? (size_t)item->n_q_heads * item->n_queries : 0;
    }
    size_t every = total / SCATTER_POINTS_MAX + 1;
    fprintf(p->file, "<path class=\"dots\" stroke=\"%s\" d=\"", cli_plot_colour(moved));
    for (size_t t = 0; t < n_traces; t++) {
        const struct cli_trace_item *item = cli_trace_item_at(page->eval, t, recipe, moved);
        size_t n = item->done ? (size_t)item->n_q_heads * item->n_queries : 0;
        for (size_t i = 0; i < n; i++, at++) {
            if (at % every == 0)
                fprintf(p->file, "M%.1f %.1fh0", clamped(&p->x, item->error[i]),
                        clamped(&p->y, item->predicted[i]));
        }
    }
    fprintf(p->file, "\"/>\n");
}

/* Both axes alike, so that the diagonal is where predictions are right. */
static bool scatter_range(const struct cli_trace_page *page, size_t recipe, struct cli_axis *axis)
{
    const struct cli_trace_options *o = page->eval->options;
    bool predicts = false;
    for (size_t t = 0; t < o->folders.n; t++) {
        for (size_t j = 0; j < o->moved.n; j++) {
            const struct cli_trace_item *item = cli_trace_item_at(page->eval, t, recipe, j);
            size_t n = item->done ? (size_t)item->n_q_heads * item->n_queries : 0;
            for (size_t i = 0; i < n; i++) {
                predicts |= item->predicted[i] > 0;
                cli_axis_hold(axis, item->error[i] < SCATTER_LEAST ? 0 : item->error[i]);
                cli_axis_hold(axis, item->predicted[i] < SCATTER_LEAST ? 0 : item->predicted[i]);
            }
        }
    }
    cli_axis_finish(axis, 10);
    return predicts;
}

static void scatter_legend(const struct cli_trace_page *page, size_t recipe)
{
    const struct cli_trace_options *o = page->eval->options;
    fprintf(page->file,
            "<table><tr><th>budget</th><th>in the band</th><th>where true is above %g</th>"
            "</tr>\n",
            CLI_TRACE_LARGE_ERROR);
    for (size_t j = 0; j < o->moved.n; j++) {
        struct cli_trace_figures f;
        if (cli_trace_figures(page->eval, SIZE_MAX, recipe, j, &f))
            fprintf(page->file,
                    "<tr><td><span class=\"swatch\" style=\"background:%s\"></span>%s</td>"
                    "<td>%.1f%%</td><td>%.1f%%</td></tr>\n",
                    cli_plot_colour(j), o->moved.text[j], 100 * f.within_2x,
                    100 * f.within_2x_large);
    }
    fprintf(page->file, "</table>");
}

bool cli_trace_scatter(const struct cli_trace_page *page, size_t recipe)
{
    const struct cli_trace_options *o = page->eval->options;
    struct cli_plot p = {.file = page->file,
                         .width = 420,
                         .height = 400,
                         .left = 62,
                         .right = 14,
                         .top = 12,
                         .bottom = 46};
    struct cli_axis axis = {.max = 0};
    if (!scatter_range(page, recipe, &axis))
        return false;
    p.x = p.y = axis;
    p.x.label = "true error";
    p.y.label = "predicted error";
    fprintf(page->file, "<figure><figcaption>");
    cli_html_text(page->file, o->recipes.name[recipe]);
    fprintf(page->file, "</figcaption>");
    cli_plot_begin(&p);
    band(&p);
    for (size_t j = 0; j < o->moved.n; j++)
        budget_points(page, &p, recipe, j);
    cli_plot_end(&p);
    scatter_legend(page, recipe);
    fprintf(page->file, "</figure>\n");
    return true;
}
