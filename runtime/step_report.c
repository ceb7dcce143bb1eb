#include "runtime/step.h"

/* Rows that the selector chose after it had read their sketches; late ones stay there. */
static uint64_t refined_sketched(const struct step *st, uint32_t head)
{
    const struct hri_head_step *hs = &st->s->steps[head];
    uint64_t n = hs->out.n_rows;
    for (uint32_t i = 0; hs->out.rows_sketched > 0 && i < hs->out.n_items; i++) {
        n += hri_index_item_rows(st->layer->heads[head], hs->items[i]);
    }
    for (uint32_t i = 0; hs->out.rows_sketched > 0 && i < hs->n_late; i++) {
        n -= hri_index_item_rows(st->layer->heads[head], hs->late[i]);
    }
    return n < hs->out.rows_sketched ? n : hs->out.rows_sketched;
}

void hri_step_report(struct step *st)
{
    const hr_sequence_t *s = st->s;
    const struct hri_layer *l = st->layer;
    struct hr_attend_report *r = st->report;
    uint32_t body = hri_body_tokens(s, l), near = st->position + 1 - body;
    unsigned level = l->indexed && s->recipe.selector->codec == HRI_CODEC_I8 ? 2 : 3;
    r->rows_device = (uint64_t)near * s->n_kv;
    r->bytes_by_level[3] += r->rows_device * s->row_bytes;
    r->rows_by_level[3] += r->rows_device;
    r->body_bytes = (uint64_t)body * s->n_kv * s->row_bytes;
    double sum = 0.0, late = 0.0;
    for (uint32_t h = 0; l->heads != NULL && h < s->n_kv; h++) {
        const struct hri_head_step *hs = &s->steps[h];
        r->rows_by_level[level] += hs->refined_rows;
        r->bytes_by_level[level] += hs->refined_rows * s->code_bytes;
        r->bytes_selected += hs->out.bytes;
        r->rows_visited += hs->out.rows_visited;
        r->rows_rests += hs->out.n_rests;
        r->bytes_rests += hs->out.bytes_rests;
        r->bytes_from_host += hs->out.bytes_sketched_host;
        r->heads_capped += hs->out.capped;
        if (l->indexed) {
            r->blocks_total += hri_index_items(l->heads[h]);
            r->blocks_hit += hs->fetch.n_hits;
            r->blocks_fetched += hs->fetch.n_misses - hs->n_late;
            r->blocks_estimated += hs->estimated;
            r->blocks_late += hs->n_late;
            r->blocks_lost += hs->n_lost;
            uint64_t estimated = hs->estimated + hs->n_late > 0 ? body - hs->refined_rows : 0;
            uint64_t sketched = hs->out.rows_sketched - refined_sketched(st, h);
            r->rows_by_level[0] += estimated - sketched;
            r->rows_by_level[1] += sketched;
            r->bytes_by_level[0] += hs->out.bytes_summaries > 0
                                        ? hs->out.bytes_summaries
                                        : hri_index_summary_bytes(l->heads[h]);
            r->bytes_by_level[1] += hs->out.bytes_sketched;
        }
        for (uint32_t g = 0; g < s->g; g++) {
            sum += hs->out.predicted[g];
            late += hs->late_error[g];
            r->predicted_error_max = hs->out.predicted[g] > r->predicted_error_max
                                         ? hs->out.predicted[g]
                                         : r->predicted_error_max;
        }
    }
    r->predicted_error = sum / s->n_q;
    r->late_error = late / s->n_q;
}
