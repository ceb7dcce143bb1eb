/* Tables of head gates: text of numbers, one line per layer. */
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include <headrace/parse.h>

#include "base/error.h"

#define OVERSHOOT 0.01 /* trained gates may leave 0..1 by so much */

/* What is being read, for messages. */
struct table {
    const char *path;
    uint32_t n_layers, n_heads, layer, line;
    float *gates; /* NULL: only checked */
};

static bool is_blank(char c)
{
    return c == ' ' || c == '\t' || c == '\r';
}

/* One number; a separator is blanks, with at most one comma among them. */
static hr_status_t read_gate(const struct table *t, uint32_t head, const char *text, size_t n)
{
    char word[64];
    double gate;
    if (n >= sizeof word || memchr(text, '\0', n))
        return hri_error_set(HR_ERR_INVALID, "%s:%u: head %u: %zu characters that are not a number",
                             t->path, t->line, head, n);
    memcpy(word, text, n);
    word[n] = '\0';
    if (hr_parse_real(word, &gate) != HR_OK)
        return hri_error_set(HR_ERR_INVALID, "%s:%u: head %u: '%s' is not a number", t->path,
                             t->line, head, word);
    if (!(gate >= -OVERSHOOT && gate <= 1 + OVERSHOOT))
        return hri_error_set(HR_ERR_INVALID, "%s:%u: head %u: gate %s is not between 0 and 1",
                             t->path, t->line, head, word);
    if (t->gates && t->layer < t->n_layers && head < t->n_heads)
        t->gates[(size_t)t->layer * t->n_heads + head] = (float)fmin(fmax(gate, 0), 1);
    return HR_OK;
}

static hr_status_t read_line(struct table *t, const char *text, const char *end)
{
    uint32_t head = 0;
    bool comma = false;
    while (text < end) {
        if (is_blank(*text) || (*text == ',' && head > 0 && !comma)) {
            comma |= *text++ == ',';
            continue;
        }
        const char *word = text;
        while (text < end && !is_blank(*text) && *text != ',')
            text++;
        hr_status_t status = read_gate(t, head, word, (size_t)(text - word));
        if (status != HR_OK)
            return status;
        head++;
        comma = false;
    }
    if (head != t->n_heads)
        return hri_error_set(HR_ERR_SHAPE, "%s:%u: %u gates in a line; there are %u kv-heads",
                             t->path, t->line, head, t->n_heads);
    t->layer++;
    return HR_OK;
}

static hr_status_t read_table(struct table *t, const char *text, size_t n_bytes)
{
    const char *end = text + n_bytes;
    while (text < end) {
        const char *newline = memchr(text, '\n', (size_t)(end - text));
        const char *line_end = newline ? newline : end, *first = text;
        t->line++;
        while (first < line_end && is_blank(*first))
            first++;
        if (first < line_end && *first != '#') {
            hr_status_t status = read_line(t, first, line_end);
            if (status != HR_OK)
                return status;
        }
        text = newline ? newline + 1 : end;
    }
    if (t->layer != t->n_layers)
        return hri_error_set(HR_ERR_SHAPE, "%s: %u lines of gates; there are %u layers", t->path,
                             t->layer, t->n_layers);
    return HR_OK;
}

hr_status_t hr_parse_head_gates(const char *path, const char *text, size_t n_bytes,
                                uint32_t n_layers, uint32_t n_heads, float *gates_out)
{
    if (!text || !gates_out)
        return hri_error_set(HR_ERR_INVALID, "hr_parse_head_gates: no text or no place for gates");
    struct table check = {
        .path = path ? path : "head gates", .n_layers = n_layers, .n_heads = n_heads};
    struct table write = check;
    write.gates = gates_out;
    hr_status_t status = read_table(&check, text, n_bytes);
    return status == HR_OK ? read_table(&write, text, n_bytes) : status;
}
