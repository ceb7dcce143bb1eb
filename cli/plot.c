#include "cli/plot.h"

#include <math.h>
#include <string.h>

void cli_axis_hold(struct cli_axis *axis, double value)
{
    if (!(value > 0) || !isfinite(value))
        return;
    if (axis->max <= 0) {
        axis->min = axis->max = value;
        return;
    }
    axis->min = value < axis->min ? value : axis->min;
    axis->max = value > axis->max ? value : axis->max;
}

void cli_axis_finish(struct cli_axis *axis, double least)
{
    if (axis->max <= 0)
        axis->min = axis->max = 1;
    double middle = sqrt(axis->min * axis->max), half = sqrt(axis->max / axis->min) * 1.15;
    half = half < sqrt(least) ? sqrt(least) : half;
    axis->min = middle / half;
    axis->max = middle * half;
}

double cli_axis_at(const struct cli_axis *axis, double value)
{
    double share = log(value / axis->min) / log(axis->max / axis->min);
    return axis->from + share * (axis->to - axis->from);
}

void cli_html_text(FILE *file, const char *text)
{
    for (; *text; text++) {
        switch (*text) {
        case '<':
            fputs("&lt;", file);
            break;
        case '>':
            fputs("&gt;", file);
            break;
        case '&':
            fputs("&amp;", file);
            break;
        case '"':
            fputs("&quot;", file);
            break;
        default:
            fputc(*text, file);
        }
    }
}

/* ---------------------------------------------------------------------------------------- ticks */

static char *tick_text(const struct cli_axis *axis, double value, char *text, size_t text_bytes)
{
    if (axis->percent)
        snprintf(text, text_bytes, "%g%%", 100 * value);
    else if (value < 1e-4)
        snprintf(text, text_bytes, "%.0e", value);
    else
        snprintf(text, text_bytes, "%g", value);
    return text;
}

static void one_tick(const struct cli_plot *p, const struct cli_axis *axis, bool is_x, double value,
                     bool labelled)
{
    char text[24];
    double at = cli_axis_at(axis, value), bottom = p->height - p->bottom,
           right = p->width - p->right;
    if (is_x)
        fprintf(p->file, "<path class=\"%s\" d=\"M%.1f %.1fV%.1f\"/>", labelled ? "grid" : "fine",
                at, p->top, bottom);
    else
        fprintf(p->file, "<path class=\"%s\" d=\"M%.1f %.1fH%.1f\"/>", labelled ? "grid" : "fine",
                p->left, at, right);
    if (!labelled)
        return;
    tick_text(axis, value, text, sizeof text);
    if (is_x)
        fprintf(p->file,
                "<text class=\"tick\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">%s</text>\n", at,
                bottom + 16, text);
    else
        fprintf(p->file,
                "<text class=\"tick\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"end\">%s</text>\n",
                p->left - 7, at + 4, text);
}

/* All digits as fine lines; labels at 1, 2, 5 where decades are few, else at each power of ten. */
static void ticks(const struct cli_plot *p, const struct cli_axis *axis, bool is_x)
{
    double decades = log10(axis->max / axis->min);
    int every = decades > 9 ? (int)ceil(decades / 9) : 1;
    for (int power = (int)floor(log10(axis->min)); power <= (int)ceil(log10(axis->max)); power++) {
        for (int digit = 1; digit < 10; digit++) {
            double value = digit * pow(10, power);
            bool labelled =
                digit == 1 ? power % every == 0 : (digit == 2 || digit == 5) && decades < 2.7;
            if (value < axis->min * 0.9999 || value > axis->max * 1.0001 ||
                (!labelled && decades > 4))
                continue;
            one_tick(p, axis, is_x, value, labelled);
        }
    }
}

/* ----------------------------------------------------------------------------------------- plot */

void cli_plot_begin(struct cli_plot *p)
{
    double bottom = p->height - p->bottom, right = p->width - p->right;
    p->x.from = p->left;
    p->x.to = right;
    p->y.from = bottom;
    p->y.to = p->top;
    fprintf(p->file,
            "<svg viewBox=\"0 0 %g %g\" width=\"%g\" height=\"%g\" role=\"img\">\n"
            "<rect class=\"frame\" x=\"%g\" y=\"%g\" width=\"%g\" height=\"%g\"/>\n",
            p->width, p->height, p->width, p->height, p->left, p->top, right - p->left,
            bottom - p->top);
    ticks(p, &p->x, true);
    ticks(p, &p->y, false);
    if (p->x.label)
        fprintf(p->file,
                "<text class=\"axis\" x=\"%g\" y=\"%g\" text-anchor=\"middle\">%s</text>\n",
                (p->left + right) / 2, p->height - 6, p->x.label);
    if (p->y.label)
        fprintf(p->file,
                "<text class=\"axis\" transform=\"translate(14 %g) rotate(-90)\" "
                "text-anchor=\"middle\">%s</text>\n",
                (p->top + bottom) / 2, p->y.label);
}

void cli_plot_end(struct cli_plot *p)
{
    fputs("</svg>\n", p->file);
}

/* --------------------------------------------------------------------------------------- colours */

static const char *const colours[] = {"#0b5fa5", "#d1495b", "#2e8b57", "#e08e0b",
                                      "#7b4fa3", "#17a2a8", "#8c5a2b", "#e0559a",
                                      "#5b6770", "#94a80d", "#3f6bd8", "#b23a1e"};
static const char *const dashes[] = {"", "6 3", "2 3", "8 3 2 3"};
#define COLOURS (sizeof colours / sizeof colours[0])
#define DASHES  (sizeof dashes / sizeof dashes[0])

const char *cli_plot_colour(size_t i)
{
    return colours[i % COLOURS];
}

const char *cli_plot_dash(size_t i)
{
    return dashes[i / COLOURS % DASHES];
}

bool cli_plot_shade(double share, char *text)
{
    /* Evenly darker all the way, so that it also reads without colour. */
    static const double stops[][3] = {{255, 252, 236}, {254, 224, 158}, {247, 167, 94},
                                      {222, 92, 84},   {151, 42, 98},   {62, 16, 82}};
    size_t last = sizeof stops / sizeof stops[0] - 1;
    share = share < 0 ? 0 : share > 1 ? 1 : share;
    size_t low = (size_t)(share * (double)last);
    low = low < last ? low : last - 1;
    double t = share * (double)last - (double)low;
    unsigned rgb[3];
    for (int i = 0; i < 3; i++)
        rgb[i] = (unsigned)lround(stops[low][i] + t * (stops[low + 1][i] - stops[low][i]));
    snprintf(text, 8, "#%02x%02x%02x", rgb[0] & 255, rgb[1] & 255, rgb[2] & 255);
    return share > 0.55;
}
