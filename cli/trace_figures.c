/* What eval trace found, as figures. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cli/eval_trace.h"
#include "cli/setup.h"

/* Sums over the head-steps of one item or of several. */
struct sums {
    float *error; /* all of them, for quantiles */
    double error_sum, predicted, recall, within, within_large, budget_bytes;
    uint64_t n, large, held_bytes, body_bytes, attend_ns, index_ns, steps, body_rows;
    uint64_t host_index_bytes, head_rows, kv_steps;
    uint64_t near_min, near_max;
    struct hr_attend_report report;
};

static int by_size(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* Between its neighbours linearly, as NumPy does. */
static double quantile(const float *sorted, uint64_t n, double share)
{
    double at = share * (double)(n - 1);
    uint64_t low = (uint64_t)at, high = low + 1 < n ? low + 1 : low;
    return sorted[low] + (at - (double)low) * ((double)sorted[high] - sorted[low]);
}

static void add_head_steps(struct sums *s, const struct cli_trace_item *item)
{
    uint64_t n = (uint64_t)item->n_q_heads * item->n_queries;
    for (uint64_t i = 0; i < n; i++) {
        double error = item->error[i], predicted = item->predicted[i];
        bool within = predicted >= 0.5 * error && predicted <= 2 * error;
        bool large = error > CLI_TRACE_LARGE_ERROR;
        s->error[s->n + i] = item->error[i];
        s->error_sum += error;
        s->predicted += predicted;
        s->recall += item->recall[i];
        s->within += within;
        s->large += large;
        s->within_large += within && large;
    }
    s->n += n;
}

static void add_report(struct hr_attend_report *sum, const struct hr_attend_report *r)
{
    for (unsigned i = 0; i < HR_LEVELS; i++) {
        sum->rows_by_level[i] += r->rows_by_level[i];
        sum->bytes_by_level[i] += r->bytes_by_level[i];
    }
    for (unsigned i = 0; i < HR_STAGES; i++)
        sum->time_ns[i] += r->time_ns[i];
    sum->bytes_from_host += r->bytes_from_host;
    sum->bytes_from_file += r->bytes_from_file;
    sum->bytes_hit += r->bytes_hit;
    sum->bytes_selected += r->bytes_selected;
    sum->rows_visited += r->rows_visited;
    sum->heads_capped += r->heads_capped;
}

static void add_item(struct sums *s, const struct cli_trace_item *item, double budget)
{
    uint64_t heads = (uint64_t)item->n_queries * item->n_kv_heads;
    s->budget_bytes +=
        (double)heads * cli_budget_bytes(budget, item->body_bytes / heads, item->head_dim * 4);
    add_head_steps(s, item);
    add_report(&s->report, &item->sum);
    s->near_min =
        s->steps == 0 || item->near_rows_min < s->near_min ? item->near_rows_min : s->near_min;
    s->near_max = item->near_rows_max > s->near_max ? item->near_rows_max : s->near_max;
    s->steps += item->n_queries;
    s->kv_steps += heads;
    s->held_bytes += item->held_bytes;
    s->body_bytes += item->body_bytes;
    s->body_rows += item->body_bytes / ((uint64_t)item->n_kv_heads * item->head_dim * 4);
    s->attend_ns += item->attend_ns;
    s->index_ns += item->index_ns;
    s->host_index_bytes += item->host_index_bytes;
    s->head_rows += item->body_bytes / ((uint64_t)item->head_dim * 4);
}

static double share(uint64_t part, uint64_t whole)
{
    return whole ? (double)part / (double)whole : 0;
}

static void bytes_figures(const struct sums *s, struct cli_trace_figures *f)
{
    const struct hr_attend_report *r = &s->report;
    double steps = (double)s->steps;
    uint64_t fetched = r->bytes_from_host + r->bytes_from_file;
    f->device_fraction = share(s->held_bytes, s->body_bytes);
    f->moved_fraction = share(fetched + r->bytes_hit, s->body_bytes);
    f->fetched_fraction = share(fetched, s->body_bytes);
    f->selected_fraction = share(r->bytes_selected, s->body_bytes);
    for (unsigned i = 0; i < HR_LEVELS; i++) {
        f->rows_by_level[i] = (double)r->rows_by_level[i] / steps;
        f->bytes_by_level[i] = (double)r->bytes_by_level[i] / steps;
    }
    f->near_rows_min = (double)s->near_min;
    f->near_rows_max = (double)s->near_max;
    f->body_rows = (double)s->body_rows / steps;
    f->ns_per_step = (double)s->attend_ns / steps;
    f->index_seconds = (double)s->index_ns * 1e-9;
    f->host_index_fraction = share(s->host_index_bytes, s->body_bytes);
    f->capped_fraction = share(r->heads_capped, s->kv_steps);
    f->visited_fraction = share(r->rows_visited, s->head_rows);
    for (unsigned i = 0; i < HR_STAGES; i++)
        f->stage_ns[i] = (double)r->time_ns[i] / steps;
}

static void error_figures(struct sums *s, struct cli_trace_figures *f)
{
    double n = (double)s->n;
    qsort(s->error, s->n, sizeof *s->error, by_size);
    f->steps = s->steps;
    f->head_steps = s->n;
    f->large_steps = s->large;
    f->error_mean = s->error_sum / n;
    f->error_p50 = quantile(s->error, s->n, 0.5);
    f->error_p95 = quantile(s->error, s->n, 0.95);
    f->error_max = s->error[s->n - 1];
    f->predicted_mean = s->predicted / n;
    f->within_2x = s->within / n;
    f->within_2x_large = s->large ? s->within_large / (double)s->large : 0;
    f->mass_recall = s->recall / n;
}

bool cli_trace_figures(const struct cli_trace_eval *eval, size_t trace, size_t recipe, size_t moved,
                       struct cli_trace_figures *figures_out)
{
    struct sums s = {.n = 0};
    size_t first = trace == SIZE_MAX ? 0 : trace,
           end = trace == SIZE_MAX ? eval->options->folders.n : trace + 1, room = 0;
    for (size_t i = first; i < end; i++) {
        const struct cli_trace_item *item = cli_trace_item_at(eval, i, recipe, moved);
        room += item->done ? (size_t)item->n_q_heads * item->n_queries : 0;
    }
    s.error = room ? malloc(room * sizeof *s.error) : NULL;
    if (!s.error)
        return false;
    for (size_t i = first; i < end; i++) {
        const struct cli_trace_item *item = cli_trace_item_at(eval, i, recipe, moved);
        if (item->done)
            add_item(&s, item, eval->options->moved.share[moved]);
    }
    memset(figures_out, 0, sizeof *figures_out);
    error_figures(&s, figures_out);
    bytes_figures(&s, figures_out);
    double budget = cli_budget_share(eval->options->moved.share[moved]);
    figures_out->budget_fraction = isfinite(budget)   ? budget
                                   : s.body_bytes > 0 ? s.budget_bytes / (double)s.body_bytes
                                                      : 0;
    free(s.error);
    return true;
}
