#include "cli/out.h"

#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "cli/args.h"

#define BAR_WIDTH    30
#define BAR_EVERY_NS 100000000u

/* One process, one terminal: this state belongs to the tool, not to the library. */
static struct {
    FILE *text;
    bool quiet;
    bool bar_open;
} out;

FILE *cli_out(void)
{
    return out.text ? out.text : stdout;
}

void cli_out_move_to_stderr(void)
{
    out.text = stderr;
}

void cli_out_set_quiet(bool quiet)
{
    out.quiet = quiet;
}

bool cli_out_is_quiet(void)
{
    return out.quiet;
}

uint64_t cli_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

void cli_out_end_progress(void)
{
    if (out.bar_open)
        fputc('\n', stderr);
    out.bar_open = false;
}

static void message(const char *prefix, const char *format, va_list list)
{
    cli_out_end_progress();
    fflush(cli_out());
    fputs(prefix, stderr);
    vfprintf(stderr, format, list);
    fputc('\n', stderr);
}

int cli_fail(const char *format, ...)
{
    va_list list;
    va_start(list, format);
    message("headrace: ", format, list);
    va_end(list);
    return CLI_EXIT_FAILED;
}

int cli_fail_status(const char *what, hr_status_t status)
{
    const char *text = hr_last_error();
    return cli_fail("%s: %s", what, *text ? text : hr_status_text(status));
}

void cli_warn(const char *format, ...)
{
    va_list list;
    va_start(list, format);
    message("headrace: warning: ", format, list);
    va_end(list);
}

void cli_note(const char *format, ...)
{
    va_list list;
    if (out.quiet)
        return;
    va_start(list, format);
    message("", format, list);
    va_end(list);
}

/* ------------------------------------------------------------------------------------- progress */

static double rate_of(const struct cli_progress *progress, uint64_t done, uint64_t now_ns)
{
    double seconds = (double)(now_ns - progress->start_ns) * 1e-9;
    return seconds > 0 ? (double)done / seconds : 0;
}

static void draw_bar(const struct cli_progress *progress, uint64_t done, uint64_t now_ns)
{
    char bar[BAR_WIDTH + 1];
    size_t filled = progress->total ? (size_t)(BAR_WIDTH * done / progress->total) : 0;
    memset(bar, ' ', BAR_WIDTH);
    memset(bar, '=', filled > BAR_WIDTH ? BAR_WIDTH : filled);
    bar[BAR_WIDTH] = '\0';
    fprintf(stderr, "\r%s [%s] %llu/%llu %s, %.1f/s\033[K", progress->label, bar,
            (unsigned long long)done, (unsigned long long)progress->total, progress->unit,
            rate_of(progress, done, now_ns));
    fflush(stderr);
    out.bar_open = true;
}

void cli_progress_begin(struct cli_progress *progress, const char *label, const char *unit,
                        uint64_t total)
{
    *progress = (struct cli_progress){
        .label = label, .unit = unit, .total = total, .start_ns = cli_now_ns()};
    if (!out.quiet && isatty(STDERR_FILENO))
        draw_bar(progress, 0, progress->start_ns);
}

void cli_progress_update(struct cli_progress *progress, uint64_t done)
{
    uint64_t now_ns = cli_now_ns();
    if (out.quiet || !progress->total)
        return;
    if (isatty(STDERR_FILENO)) {
        if (now_ns - progress->shown_ns >= BAR_EVERY_NS)
            draw_bar(progress, done, now_ns);
        else
            return;
        progress->shown_ns = now_ns;
        return;
    }
    unsigned tenth = (unsigned)(10 * done / progress->total);
    if (tenth == progress->tenth || tenth >= 10)
        return;
    progress->tenth = tenth;
    fprintf(stderr, "%s %3u%%  %llu/%llu %s, %.1f/s\n", progress->label,
            (unsigned)(100 * done / progress->total), (unsigned long long)done,
            (unsigned long long)progress->total, progress->unit, rate_of(progress, done, now_ns));
}

void cli_progress_end(struct cli_progress *progress, uint64_t done)
{
    uint64_t now_ns = cli_now_ns();
    char text[32];
    if (out.quiet)
        return;
    if (out.bar_open)
        fprintf(stderr, "\r\033[K");
    out.bar_open = false;
    fprintf(stderr, "%s %llu %s in %s, %.1f %s/s\n", progress->label, (unsigned long long)done,
            progress->unit, cli_format_ns(now_ns - progress->start_ns, text, sizeof text),
            rate_of(progress, done, now_ns), progress->unit);
}

/* ----------------------------------------------------------------------------------- formatting */

char *cli_format_ns(uint64_t ns, char *text, size_t text_bytes)
{
    double value = (double)ns;
    if (ns < 1000)
        snprintf(text, text_bytes, "%llu ns", (unsigned long long)ns);
    else if (ns < 1000000)
        snprintf(text, text_bytes, "%.3g us", value * 1e-3);
    else if (ns < 1000000000)
        snprintf(text, text_bytes, "%.3g ms", value * 1e-6);
    else if (ns < 600000000000)
        snprintf(text, text_bytes, value < 99.95e9 ? "%.3g s" : "%.0f s", value * 1e-9);
    else
        snprintf(text, text_bytes, "%.1f min", value / 60e9);
    return text;
}

char *cli_format_count(uint64_t count, char *text, size_t text_bytes)
{
    char digits[24];
    int n = snprintf(digits, sizeof digits, "%llu", (unsigned long long)count);
    size_t at = 0;
    for (int i = 0; i < n && at + 2 < text_bytes; i++) {
        if (i && (n - i) % 3 == 0)
            text[at++] = ',';
        text[at++] = digits[i];
    }
    text[at] = '\0';
    return text;
}

char *cli_format_share(double share, char *text, size_t text_bytes)
{
    double percent = 100 * share;
    int decimals = percent >= 99.95                    ? 0
                   : percent >= 9.995                  ? 1
                   : percent >= 0.9995 || percent == 0 ? 2
                                                       : 3;
    snprintf(text, text_bytes, "%.*f%%", decimals, percent);
    return text;
}

int cli_out_close(void)
{
    cli_out_end_progress();
    if (fflush(stdout) == 0 && !ferror(stdout))
        return CLI_EXIT_OK;
    return cli_fail("cannot write standard output: %s", strerror(errno));
}
