/* A step on the device, the part of the sketches: from their codes to weights, and from weights to what they add to the output
 * (kernels/cuda/rows.cu). Twice: before the choice for the blocks that make the output, after it for all that is left. */
#include "runtime/device_launch.h"

/* As index/ladder_read.c: blocks with more of some query head's weight count by their rows where errors are measured. */
#define HEAVY 0.002f
/* As index/ladder_estimate.c: so much of the mass counts with the blocks' mean values, in blocks that are light. */
#define NEGLIGIBLE 1e-3f

static struct hri_cuda_rows rows_of(const struct hri_device_launches *l)
{
    const struct hri_device_sketches *k = &l->d->sketches;
    const struct hri_device_sketch_work *w = &l->p->sketch_work;
    return (struct hri_cuda_rows){.n = l->d->in.n_blocks,
                                  .blocks_max = l->p->blocks_max,
                                  .parts = l->p->parts,
                                  .part_rows = l->p->part_rows,
                                  .first_lane = k->first_lane,
                                  .rows = l->d->rows,
                                  .miss = k->miss,
                                  .gain = k->gain,
                                  .value_miss = k->value_miss,
                                  .basis_of = k->basis_of,
                                  .bases = k->bases,
                                  .n_bases = l->p->sizes.bases_max,
                                  .rest = w->rest,
                                  .x = w->x,
                                  .lanes = l->p->sizes.lanes,
                                  .log_mass = l->w->log_mass,
                                  .focus = w->focus,
                                  .stride = l->p->blocks_max,
                                  .top = l->w->top,
                                  .total = l->w->total};
}

static struct hri_cuda_sketch_list list_of(const struct hri_device_launches *l)
{
    const struct hri_device_sketch_sizes *z = &l->p->sizes;
    const struct hri_cuda_rows_list *list = &l->p->sketch_work.list;
    return (struct hri_cuda_sketch_list){.codes = l->d->sketches.codes,
                                         .codes_stride = (size_t)z->lanes / 16 * z->lines * 64,
                                         .bases = l->d->sketches.bases,
                                         .n_bases = z->bases_max,
                                         .lines = z->lines,
                                         .there = l->d->in.n_bases,
                                         .groups = list->groups,
                                         .pair_basis = list->pair_basis,
                                         .n_pairs = list->n_pairs,
                                         .pairs_max = z->pairs_max};
}

int hri_device_sketch_query(const struct hri_device_launches *l)
{
    const struct hri_device_sketch_work *w = &l->p->sketch_work;
    return l->p->launch->query_sketch(l->q, l->p->heads, l->d->sketches.bases,
                                      l->p->sizes.bases_max, l->d->in.n_bases, w->queries, w->rest,
                                      l->stream);
}

/* What the rows of blocks that weigh more than `least` add to the weighted values, less what mark has refined. */
static int values_add(const struct hri_device_launches *l, const struct hri_cuda_rows *rows,
                      struct hri_cuda_rows_least least, const struct hri_cuda_rows_fill *fill)
{
    const struct hri_launchers *launch = l->p->launch;
    const struct hri_device_sketch_work *w = &l->p->sketch_work;
    const struct hri_cuda_sketch_list list = list_of(l);
    const struct hri_cuda_sketch_sum sum = {.w = w->w,
                                            .stride = rows->lanes,
                                            .sum = w->sum,
                                            .work = w->sum_work,
                                            .arrived = w->sum_arrived};
    const struct hri_cuda_rows_values values = {.sum = w->sum,
                                                .bases = list.bases,
                                                .n_bases = list.n_bases,
                                                .there = list.there,
                                                .out = w->added,
                                                .work = w->value_work,
                                                .arrived = w->value_arrived};
    HRI_LAUNCHED(launch->list_rows(rows, least, &w->list, l->p->heads, l->stream));
    HRI_LAUNCHED(launch->fill_rows(rows, least, fill, l->p->heads, l->stream));
    HRI_LAUNCHED(launch->sum_sketch(&list, &sum, l->p->heads, l->stream));
    return launch->value_rows(&values, l->p->heads, l->stream);
}

int hri_device_sketch_read(const struct hri_device_launches *l)
{
    const struct hri_launchers *launch = l->p->launch;
    const struct hri_device_sketches *k = &l->d->sketches;
    const struct hri_device_sketch_work *w = &l->p->sketch_work;
    const struct hri_cuda_rows rows = rows_of(l);
    const struct hri_cuda_sketch_list list = list_of(l);
    const struct hri_cuda_strays strays = {.block = k->stray_block,
                                           .first = k->first_stray,
                                           .row = k->stray_row,
                                           .step = k->stray_step,
                                           .key = k->stray_key,
                                           .n = l->d->in.n_strays,
                                           .max = l->p->sizes.strays_max};
    const struct hri_cuda_rows_least all = {.share_min = -1}, heavy = {.share_min = HEAVY};
    const struct hri_cuda_rows_fill fill = {.w = w->w};
    HRI_LAUNCHED(launch->list_rows(&rows, all, &w->list, l->p->heads, l->stream));
    HRI_LAUNCHED(launch->score_sketch(&list, w->queries, l->p->heads, w->x, rows.lanes, l->stream));
    HRI_LAUNCHED(launch->weigh_rows(&rows, &strays, l->q, l->w->dots, l->s->soft_cap, l->p->heads,
                                    l->stream));
    HRI_LAUNCHED(
        launch->total_rows(&rows, l->w->near_lse, l->w->top, l->w->total, l->p->heads, l->stream));
    return values_add(l, &rows, heavy, &fill);
}

int hri_device_sketch_worth(const struct hri_device_launches *l,
                            const struct hri_cuda_residency *table)
{
    const struct hri_device_sketches *k = &l->d->sketches;
    const struct hri_cuda_rows rows = rows_of(l);
    const struct hri_cuda_worth_rows_args a = {.factor = l->w->factor,
                                               .size = l->p->sketch_work.size,
                                               .common = l->s->tolerance > 0 ? l->w->common : NULL,
                                               .lone = {.lane = k->lone_lane,
                                                        .item = k->lone_item,
                                                        .miss = k->lone_miss,
                                                        .n = l->d->in.n_lone,
                                                        .max = l->p->sizes.lone_max},
                                               .row_bytes = l->s->code_bytes,
                                               .frame_of = table->frame_of,
                                               .key = l->w->key,
                                               .error = l->w->error,
                                               .cost = l->w->cost,
                                               .class_ = l->w->class_,
                                               .left = l->w->left,
                                               .bins = l->d->out.worth,
                                               .bins_work = l->p->sketch_work.worth};
    _Static_assert(HRI_CUDA_WORTH_BINS == HRI_WORTH_BINS, "the same bins");
    return l->p->launch->worth_rows(&rows, &a, l->p->heads, l->stream);
}

int hri_device_sketch_rest(const struct hri_device_launches *l)
{
    const struct hri_device_sketch_work *w = &l->p->sketch_work;
    const struct hri_cuda_rows rows = rows_of(l);
    const struct hri_cuda_rows_least light = {.share_min = NEGLIGIBLE, .of_mean = 1};
    const struct hri_cuda_rows_fill fill = {
        .mark = l->w->mark, .w = w->w, .left_mass = w->left_mass, .left_square = w->left_square};
    return values_add(l, &rows, light, &fill);
}

int hri_device_sketch_predict(const struct hri_device_launches *l)
{
    const struct hri_device_layer *d = l->d;
    const struct hri_cuda_rows rows = rows_of(l);
    const struct hri_cuda_predict_rows_args a = {.factor = l->w->factor,
                                                 .size = l->p->sketch_work.size,
                                                 .common = l->w->common,
                                                 .left_mass = l->p->sketch_work.left_mass,
                                                 .left_square = l->p->sketch_work.left_square,
                                                 .items = d->lists.items,
                                                 .n_items = d->out.n_items,
                                                 .frames_of = d->lists.frames,
                                                 .items_max = l->s->items_max,
                                                 .class_ = l->w->class_,
                                                 .predicted = d->out.predicted,
                                                 .late = d->out.late,
                                                 .counts = d->out.counts};
    return l->p->launch->predict_rows(&rows, &a, l->p->heads, l->stream);
}
