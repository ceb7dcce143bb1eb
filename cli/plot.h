/* Pictures as inline SVG: logarithmic axes, lines, points. Coordinates are pixels of the picture unless said otherwise. */
#ifndef CLI_PLOT_H
#define CLI_PLOT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

/* A logarithmic axis: values min..max lie at pixels from..to. */
struct cli_axis {
    double min, max, from, to;
    bool percent;      /* labels: 0.5% instead of 0.005 */
    const char *label; /* HTML */
};
/* Widens to hold a value; start with min = max = 0. Values that are not above 0 are ignored. */
void cli_axis_hold(struct cli_axis *axis, double value);
/* A little room at both ends, and at least a factor of least between them. */
void cli_axis_finish(struct cli_axis *axis, double least);
double cli_axis_at(const struct cli_axis *axis, double value);

struct cli_plot {
    FILE *file;
    double width, height;
    double left, right, top, bottom; /* margins */
    struct cli_axis x, y;
};
/* <svg>, frame, grid, ticks and labels; sets the axes' pixels. */
void cli_plot_begin(struct cli_plot *plot);
void cli_plot_end(struct cli_plot *plot);

/* A colour and a dash for the i-th of a set of lines; the dash is "" for the first dozen. */
const char *cli_plot_colour(size_t i);
const char *cli_plot_dash(size_t i);
/* From light (0) to dark (1), as #rrggbb into text [8]; true if white text reads better on it. */
bool cli_plot_shade(double share, char *text);

/* Text with <, >, & and quotes escaped. */
void cli_html_text(FILE *file, const char *text);

#endif
