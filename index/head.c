/* An index head: its tables, and the calls that pass on to the selector. */
#include "index/head.h"

#include "base/assert.h"
#include "base/error.h"
#include "index/families.h"
#include "index/group.h"
#include "index/job.h"
#include "index/ladder.h"

#include <math.h>
#include <string.h>

#define PAGE_BYTES       4096u
#define PLAIN_BLOCK_ROWS 32u /* of selectors without blocks of their own */
/* Of headrace: with sketches larger blocks are no worse, and their summaries cost less. */
#define SKETCHED_BLOCK_ROWS 48u
#define SUMMARY_BLOCK_ROWS  36u
/* Of segments of so few rows they are a third as large, or half, where the tables have room for that: rows are alike more rarely among few.
 * The room is that of so many rows in large blocks. */
#define SMALL_SEGMENT_ROWS 1024u
#define SMALL_PARTS        3u
#define SMALL_ROOM_ROWS    16384u

uint32_t hri_index_target_rows(const struct hri_recipe *recipe)
{
    double rows = hri_recipe_value(recipe, "block");
    if (rows > 0)
        return (uint32_t)rows;
    if (recipe->selector->codec == HRI_CODEC_EXACT)
        return PLAIN_BLOCK_ROWS;
    return hri_recipe_value(recipe, "sketch") > 0 ? SKETCHED_BLOCK_ROWS : SUMMARY_BLOCK_ROWS;
}

static bool has_small_blocks(const struct hri_recipe *recipe)
{
    return recipe->selector->codec == HRI_CODEC_I8 && hri_recipe_value(recipe, "sketch") > 0 &&
           !(hri_recipe_value(recipe, "block") > 0);
}

static uint32_t large_blocks(uint32_t n_rows, uint32_t most)
{
    return (n_rows < most ? n_rows : most) / SKETCHED_BLOCK_ROWS;
}

/* Room for small blocks beside that for large ones; at least what a segment of all the rows may need. */
static uint32_t small_blocks_room(const struct hri_recipe *recipe, uint32_t n_rows)
{
    return has_small_blocks(recipe) ? large_blocks(n_rows, SMALL_ROOM_ROWS) +
                                          large_blocks(n_rows, SMALL_SEGMENT_ROWS) + 2
                                    : 0;
}

uint32_t hri_index_target_rows_least(const struct hri_recipe *recipe)
{
    uint32_t rows = hri_index_target_rows(recipe);
    return has_small_blocks(recipe) ? rows / SMALL_PARTS : rows;
}

/* Whatever segments follow, the tables hold them: large blocks have their room in any case (hri_index_blocks_bound). */
static uint32_t segment_target(const struct hri_index_head *head, uint32_t n)
{
    const struct hri_index_options *o = &head->options;
    uint32_t large = hri_index_target_rows(&o->recipe);
    if (n > SMALL_SEGMENT_ROWS || !has_small_blocks(&o->recipe))
        return large;
    uint64_t room =
        (head->n_rows + (uint64_t)n) / large + small_blocks_room(&o->recipe, o->rows_max);
    for (uint32_t parts = SMALL_PARTS; parts > 1; parts--)
        if (head->n_blocks + (uint64_t)hri_group_blocks_max(n, large / parts) <= room)
            return large / parts;
    return large;
}

static bool groups_by_similarity(const struct hri_selector *selector)
{
    return selector->ops->group != NULL || selector->ops->group_turn != NULL;
}

/* Clusters may be up to twice the target. Where that is a little over whole pages of int8 rows,
 * whole pages are better: a read of a block then touches no page for a few bytes. */
uint32_t hri_index_block_rows_max(const struct hri_recipe *recipe, uint32_t k_dim, uint32_t v_dim)
{
    uint32_t target = hri_index_target_rows(recipe), row_bytes = k_dim + v_dim;
    if (!groups_by_similarity(recipe->selector))
        return target;
    uint32_t whole = 2 * target * row_bytes / PAGE_BYTES * PAGE_BYTES / row_bytes;
    return 4 * whole >= 7 * target ? whole : 2 * target;
}

uint32_t hri_index_part_rows(const struct hri_recipe *recipe, uint32_t k_dim, uint32_t v_dim)
{
    uint32_t most = hri_index_block_rows_max(recipe, k_dim, v_dim),
             rows = PAGE_BYTES / (k_dim + v_dim);
    return hri_index_takes_rows(recipe) && rows < most ? rows : most;
}

uint32_t hri_index_parts(const struct hri_recipe *recipe, uint32_t k_dim, uint32_t v_dim)
{
    uint32_t rows = hri_index_part_rows(recipe, k_dim, v_dim);
    return (hri_index_block_rows_max(recipe, k_dim, v_dim) + rows - 1) / rows;
}

/* Every segment has at most ceil(rows / target) blocks, or clusters, of which a large one is cut; and small blocks beside. */
uint32_t hri_index_blocks_bound(const struct hri_recipe *recipe, uint32_t k_dim, uint32_t v_dim,
                                uint32_t n_rows, uint32_t n_segments)
{
    uint32_t target = hri_index_target_rows(recipe);
    uint64_t bound = (uint64_t)n_rows / target + (n_segments ? n_segments : 1) +
                     small_blocks_room(recipe, n_rows);
    if (recipe->selector->splits_clusters)
        bound += n_rows / hri_index_block_rows_max(recipe, k_dim, v_dim);
    return bound < n_rows ? (uint32_t)bound : n_rows;
}

static uint64_t table_bytes(const struct hri_index_options *o, uint32_t n_blocks)
{
    bool coded = o->recipe.selector->codec == HRI_CODEC_I8;
    return n_blocks * (sizeof(uint8_t) + (coded ? 2 * sizeof(float) : 0));
}

uint64_t hri_index_device_bytes(const struct hri_index_options *o)
{
    const struct hri_selector_ops *ops = o->recipe.selector->ops;
    return table_bytes(o, o->blocks_max) + (ops->device_bytes ? ops->device_bytes(o) : 0);
}

static hr_status_t check_options(const struct hri_index_options *o)
{
    if (!o->recipe.selector || !o->kernels)
        return hri_error_set(HR_ERR_INVALID, "index head: no recipe or no kernels");
    if (o->g < 1 || o->g > HR_GROUP_MAX)
        return hri_error_set(HR_ERR_SHAPE,
                             "index head: %u query heads per kv-head, allowed are 1 to %d", o->g,
                             HR_GROUP_MAX);
    if (o->k_dim < HR_HEAD_DIM_MIN || o->k_dim > HR_HEAD_DIM_MAX || o->k_dim % 8 ||
        o->v_dim < HR_HEAD_DIM_MIN || o->v_dim > HR_HEAD_DIM_MAX || o->v_dim % 8)
        return hri_error_set(
            HR_ERR_SHAPE,
            "index head: dimensions %u and %u, allowed are multiples of 8 from %d to %d", o->k_dim,
            o->v_dim, HR_HEAD_DIM_MIN, HR_HEAD_DIM_MAX);
    return HR_OK;
}

static hr_status_t create_tables(struct hri_index_head *head)
{
    const struct hri_index_options *o = &head->options;
    bool coded = o->recipe.selector->codec == HRI_CODEC_I8;
    head->block_rows = hri_calloc(o->device, o->blocks_max, sizeof *head->block_rows);
    if (!head->block_rows)
        return hri_alloc_status();
    if (coded) {
        head->k_step = hri_calloc(o->device, o->blocks_max, sizeof *head->k_step);
        head->v_step = hri_calloc(o->device, o->blocks_max, sizeof *head->v_step);
        if (!head->k_step || !head->v_step)
            return hri_alloc_status();
    }
    for (uint32_t i = 1; i <= HRI_BLOCK_ROWS_LIMIT; i++)
        head->log_rows[i] = logf((float)i);
    return HR_OK;
}

hr_status_t hri_index_head_create(const struct hri_index_options *options,
                                  struct hri_index_head **head_out)
{
    hr_status_t status = check_options(options);
    if (status != HR_OK)
        return status;
    struct hri_index_head *head = hri_calloc(options->scratch, 1, sizeof *head);
    if (!head)
        return hri_alloc_status();
    head->options = *options;
    head->ops = options->recipe.selector->ops;
    head->parts = hri_index_parts(&options->recipe, options->k_dim, options->v_dim);
    head->part_rows = hri_index_part_rows(&options->recipe, options->k_dim, options->v_dim);
    if (options->recipe.selector->needs_gates && !(options->gate >= 0)) {
        status = hri_error_set(HR_ERR_INVALID,
                               "recipe %s needs a table that says which heads retrieve: "
                               "hr_sequence_options.head_gates, or --head-gates FILE of the tool",
                               options->recipe.selector->name);
        goto err_tables;
    }
    status = create_tables(head);
    if (status != HR_OK)
        goto err_tables;
    head->keeps_stats = options->recipe.selector->keeps_stats;
    if (head->keeps_stats)
        status = hri_qstats_init(&head->stats, options->kernels, options->scratch, options->k_dim,
                                 &options->rope);
    if (status != HR_OK)
        goto err_tables;
    if (head->ops->create)
        status = head->ops->create(head);
    if (status != HR_OK)
        goto err_stats;
    *head_out = head;
    return HR_OK;

err_stats:
    hri_qstats_fini(&head->stats);
err_tables:
    hri_free(options->device, head->block_rows);
    hri_free(options->device, head->k_step);
    hri_free(options->device, head->v_step);
    hri_free(options->scratch, head);
    return status;
}

void hri_index_head_destroy(struct hri_index_head *head)
{
    if (!head)
        return;
    struct hri_index_options o = head->options;
    if (hri_index_is_shared(head)) { /* the others go on with the tables */
        --*head->shared;
        hri_qstats_fini(&head->stats);
        hri_free(o.scratch, head);
        return;
    }
    hri_free(o.scratch, head->shared);
    if (head->ops->destroy)
        head->ops->destroy(head);
    hri_qstats_fini(&head->stats);
    hri_free(o.device, head->block_rows);
    hri_free(o.device, head->k_step);
    hri_free(o.device, head->v_step);
    hri_free(o.scratch, head);
}

void hri_index_observe(struct hri_index_head *head, const float *q, uint32_t n,
                       uint32_t first_position)
{
    if (head->keeps_stats)
        hri_qstats_observe(&head->stats, q, n, head->options.g, first_position);
    if (head->ops->observe)
        head->ops->observe(head, q, n, first_position);
}

size_t hri_index_workspace_bytes(const struct hri_index_options *options, uint32_t n_rows_max)
{
    const struct hri_selector_ops *ops = options->recipe.selector->ops;
    return ops->workspace_bytes ? ops->workspace_bytes(options, n_rows_max) : 64;
}

static void keep_rows(struct hri_index_head *head, const struct hri_segment *segment)
{
    for (uint32_t b = 0; b < segment->n_blocks; b++) {
        HRI_ASSERT(segment->block_rows[b] >= 1 && segment->block_rows[b] <= segment->cap);
        head->block_rows[head->n_blocks + b] = (uint8_t)segment->block_rows[b];
        head->n_rows += segment->block_rows[b];
    }
    head->n_blocks += segment->n_blocks;
}

static struct hri_segment segment_of(const struct hri_index_head *head, const float *k,
                                     const float *v, uint32_t n, void *workspace, uint32_t *order,
                                     uint32_t *block_rows)
{
    const struct hri_index_options *o = &head->options;
    struct hri_segment segment = {.k = k,
                                  .v = v,
                                  .n = n,
                                  .first_row = head->n_rows,
                                  .workspace = workspace,
                                  .order = order,
                                  .block_rows = block_rows};
    segment.target = segment_target(head, n);
    segment.cap = hri_index_block_rows_max(&o->recipe, o->k_dim, o->v_dim);
    segment.blocks_max = hri_group_blocks_max(n, segment.target);
    if (o->recipe.selector->splits_clusters)
        segment.blocks_max += n / segment.cap;
    return segment;
}

static hr_status_t room_check(const struct hri_index_head *head, const struct hri_segment *segment)
{
    uint32_t most = head->options.blocks_max;
    if (segment->blocks_max <= most - head->n_blocks)
        return HR_OK;
    return hri_error_set(HR_ERR_FULL, "index head: %u rows may make %u blocks, %u of %u are left",
                         segment->n, segment->blocks_max, most - head->n_blocks, most);
}

void hri_index_adding_init(struct hri_index_adding *a, struct hri_index_head *head, const float *k,
                           const float *v, uint32_t n, uint32_t position_end, void *workspace,
                           uint32_t *order, uint32_t *block_rows)
{
    HRI_ASSERT(!hri_index_is_shared(head) && head->ahead.n_blocks == 0);
    *a = (struct hri_index_adding){.head = head,
                                   .segment =
                                       segment_of(head, k, v, n, workspace, order, block_rows),
                                   .phase = n > 0 ? HRI_INDEX_GROUP : HRI_INDEX_ADDED,
                                   .end = HRI_INDEX_ADDED};
    a->segment.position_end = position_end;
}

static hr_status_t group_turn(struct hri_index_adding *a)
{
    const struct hri_selector_ops *ops = a->head->ops;
    struct hri_segment *g = &a->segment;
    hr_status_t status = a->turn == 0 ? room_check(a->head, g) : HR_OK;
    if (status != HR_OK)
        return status;
    if (ops->group_turn)
        return ops->group_turn(a->head, g, a->turn, &a->job);
    if (ops->group)
        return ops->group(a->head, g);
    g->n_blocks = hri_group_consecutive(g->n, g->target, g->order, g->block_rows);
    return HR_OK;
}

static hr_status_t phase_turn(struct hri_index_adding *a)
{
    const struct hri_selector_ops *ops = a->head->ops;
    switch (a->phase) {
    case HRI_INDEX_GROUP:
        return group_turn(a);
    case HRI_INDEX_SUMMARISE:
        if (ops->summarise_turn)
            return ops->summarise_turn(a->head, &a->segment, a->turn, &a->job);
        return ops->summarise ? ops->summarise(a->head, &a->segment) : HR_OK;
    default:
        return ops->sketch_turn ? ops->sketch_turn(a->head, &a->segment, a->turn, &a->job) : HR_OK;
    }
}

hr_status_t hri_index_adding_next(struct hri_index_adding *a)
{
    a->job = (struct hri_index_job){.head = a->head, .segment = &a->segment};
    while (a->phase < a->end) {
        hr_status_t status = phase_turn(a);
        a->turn++;
        if (status != HR_OK || a->job.kind != HRI_INDEX_JOB_NONE)
            return status;
        a->turn = 0;
        if (++a->phase == HRI_INDEX_ADDED)
            keep_rows(a->head, &a->segment);
    }
    return HR_OK;
}

void hri_index_job_run(const struct hri_index_job *job)
{
    job->head->ops->job_run(job);
}

static hr_status_t adding_run(struct hri_index_adding *a)
{
    hr_status_t status = hri_index_adding_next(a);
    while (status == HR_OK && a->job.kind != HRI_INDEX_JOB_NONE) {
        hri_index_job_run(&a->job);
        status = hri_index_adding_next(a);
    }
    return status;
}

hr_status_t hri_index_add(struct hri_index_head *head, const float *k, const float *v, uint32_t n,
                          uint32_t position_end, void *workspace, uint32_t *order,
                          uint32_t *block_rows, uint32_t *n_blocks_out)
{
    struct hri_index_adding a;
    hri_index_adding_init(&a, head, k, v, n, position_end, workspace, order, block_rows);
    hr_status_t status = adding_run(&a);
    if (status == HR_OK)
        *n_blocks_out = a.segment.n_blocks;
    return status;
}

hr_status_t hri_index_add_begin(struct hri_index_head *head, const float *k, const float *v,
                                uint32_t n, uint32_t position_end, void *workspace, uint32_t *order,
                                uint32_t *block_rows, uint32_t *n_blocks_out, float *weight,
                                bool *weighted_out)
{
    struct hri_index_adding a;
    HRI_ASSERT(n > 0);
    hri_index_adding_init(&a, head, k, v, n, position_end, workspace, order, block_rows);
    a.end = HRI_INDEX_SKETCH;
    hr_status_t status = adding_run(&a);
    *weighted_out = status == HR_OK && a.segment.weight;
    if (*weighted_out)
        memcpy(weight, a.segment.weight, n * sizeof *weight);
    *n_blocks_out = a.segment.n_blocks;
    return status;
}

void hri_index_adding_resume(struct hri_index_adding *a, uint32_t n_blocks, const float *weight)
{
    a->phase = HRI_INDEX_SKETCH;
    a->segment.n_blocks = n_blocks;
    a->segment.weight = weight;
}

hr_status_t hri_index_add_end(struct hri_index_head *head, const float *k, const float *v,
                              uint32_t n, void *workspace, uint32_t *order, uint32_t *block_rows,
                              uint32_t n_blocks, const float *weight)
{
    struct hri_index_adding a;
    hri_index_adding_init(&a, head, k, v, n, 0, workspace, order, block_rows);
    hri_index_adding_resume(&a, n_blocks, weight);
    return adding_run(&a);
}

hr_status_t hri_index_fit(struct hri_index_head *head, const float *k, const float *v, uint32_t n,
                          uint32_t position_end, void *workspace)
{
    struct hri_segment segment = {
        .k = k, .v = v, .n = n, .position_end = position_end, .workspace = workspace};
    HRI_ASSERT(!hri_index_is_shared(head));
    return head->ops->fit ? head->ops->fit(head, &segment) : HR_OK;
}

bool hri_index_prepares(const struct hri_recipe *recipe)
{
    return recipe->selector->ops->prepare != NULL;
}

hr_status_t hri_index_prepare(struct hri_index_head *const *heads, uint32_t n_heads, const float *k,
                              const float *v, uint32_t n, uint32_t first_row)
{
    return heads[0]->ops->prepare ? heads[0]->ops->prepare(heads, n_heads, k, v, n, first_row)
                                  : HR_OK;
}

bool hri_index_adds_rows(const struct hri_recipe *recipe)
{
    return recipe->selector->ops->add_rows != NULL;
}

hr_status_t hri_index_add_rows(struct hri_index_head *head, const float *k, const float *v,
                               uint32_t n, uint32_t first_row, uint32_t position_end)
{
    HRI_ASSERT(!hri_index_is_shared(head));
    HRI_ASSERT(head->ops->add_rows && first_row == head->n_rows);
    hr_status_t status = head->ops->add_rows(head, k, v, n, first_row, position_end);
    if (status == HR_OK)
        head->n_rows += n;
    return status;
}

void hri_index_truncate_rows(struct hri_index_head *head, uint32_t n_rows)
{
    HRI_ASSERT(head->ops->truncate_rows && n_rows <= head->n_rows);
    head->ops->truncate_rows(head, n_rows);
    head->n_rows = n_rows;
}

uint32_t hri_index_rows(const struct hri_index_head *head)
{
    return head->n_rows;
}

uint32_t hri_index_blocks(const struct hri_index_head *head)
{
    return head->n_blocks;
}

uint32_t hri_index_block_rows(const struct hri_index_head *head, uint32_t block)
{
    HRI_ASSERT(block < head->n_blocks);
    return head->block_rows[block];
}

uint32_t hri_index_items(const struct hri_index_head *head)
{
    uint32_t n = head->parts > 1 ? 0 : head->n_blocks;
    for (uint32_t b = 0; head->parts > 1 && b < head->n_blocks; b++)
        n += (head->block_rows[b] + head->part_rows - 1) / head->part_rows;
    return n;
}

uint32_t hri_index_item_rows(const struct hri_index_head *head, uint32_t item)
{
    uint32_t first = item % head->parts * head->part_rows;
    uint32_t rows = hri_index_block_rows(head, item / head->parts);
    uint32_t left = rows > first ? rows - first : 0;
    return left < head->part_rows ? left : head->part_rows;
}

uint64_t hri_index_summary_bytes(const struct hri_index_head *head)
{
    uint32_t n = head->n_blocks;
    return table_bytes(&head->options, n) +
           (head->ops->held_bytes ? head->ops->held_bytes(head, n) : 0);
}

uint64_t hri_index_sketch_bytes(const struct hri_index_head *head)
{
    return hri_sketch_held(head);
}

bool hri_index_takes_rows(const struct hri_recipe *recipe)
{
    return recipe->selector->codec == HRI_CODEC_I8 && hri_recipe_value(recipe, "sketch") > 0;
}

void hri_index_centers(const struct hri_index_head *head, uint32_t block, float *k_center,
                       float *v_center)
{
    HRI_ASSERT(block < head->n_blocks);
    if (head->ops->centers) {
        head->ops->centers(head, block, k_center, v_center);
        return;
    }
    if (head->summary.k_codes) {
        hri_summary_centers(head, block, k_center, v_center);
        return;
    }
    if (k_center != NULL)
        memset(k_center, 0, head->options.k_dim * sizeof(float));
    memset(v_center, 0, head->options.v_dim * sizeof(float));
}

void hri_index_set_steps(struct hri_index_head *head, uint32_t block, float k_step, float v_step)
{
    HRI_ASSERT(block < head->n_blocks && head->k_step);
    head->k_step[block] = k_step;
    head->v_step[block] = v_step;
}

void hri_index_steps(const struct hri_index_head *head, uint32_t block, float *k_step,
                     float *v_step)
{
    HRI_ASSERT(block < head->n_blocks && head->k_step);
    *k_step = head->k_step[block];
    *v_step = head->v_step[block];
}

static void blocks_leave(struct hri_index_head *head, uint32_t n_blocks)
{
    while (head->n_blocks > n_blocks) {
        head->n_blocks--;
        head->n_rows -= head->block_rows[head->n_blocks];
    }
    if (head->sketch)
        hri_sketch_truncate(head);
}

void hri_index_truncate(struct hri_index_head *head, uint32_t n_blocks)
{
    HRI_ASSERT(n_blocks == head->n_blocks || !hri_index_is_shared(head));
    HRI_ASSERT(head->ahead.n_blocks == 0);
    blocks_leave(head, n_blocks);
    hri_families_truncate(head);
    if (head->n_blocks > 0)
        return;
    /* Nothing is left, so nothing is known. */
    head->summary.has_mean = false;
    head->points.rows = 0;
    if (head->shape.joint)
        hri_shape_clear(head);
}

bool hri_index_makes_ahead(const struct hri_recipe *recipe)
{
    return recipe->selector->makes_ahead;
}

void hri_index_hide(struct hri_index_head *head, uint32_t n_blocks)
{
    HRI_ASSERT(head->ahead.n_blocks == 0 && n_blocks < head->n_blocks);
    head->ahead.n_blocks = head->n_blocks;
    head->ahead.n_rows = head->n_rows;
    if (head->sketch) {
        head->ahead.n_bases = head->sketch->n_bases;
        head->ahead.n_lone = head->sketch->n_lone;
        head->ahead.n_strays = head->sketch->strays.n;
    }
    blocks_leave(head, n_blocks);
}

void hri_index_show(struct hri_index_head *head)
{
    if (head->ahead.n_blocks == 0)
        return;
    head->n_blocks = head->ahead.n_blocks;
    head->n_rows = head->ahead.n_rows;
    if (head->sketch) {
        head->sketch->n_bases = head->ahead.n_bases;
        head->sketch->n_lone = head->ahead.n_lone;
        head->sketch->strays.n = head->ahead.n_strays;
    }
    hri_index_drop_ahead(head);
}

void hri_index_drop_ahead(struct hri_index_head *head)
{
    memset(&head->ahead, 0, sizeof head->ahead);
}

uint32_t hri_index_blocks_ahead(const struct hri_index_head *head)
{
    return head->ahead.n_blocks > 0 ? head->ahead.n_blocks - head->n_blocks : 0;
}

uint32_t hri_index_rows_ahead(const struct hri_index_head *head)
{
    return head->ahead.n_blocks > 0 ? head->ahead.n_rows - head->n_rows : 0;
}

void hri_index_forget(struct hri_index_head *head, uint32_t n_tokens)
{
    if (head->ops->forget)
        head->ops->forget(head, n_tokens);
}

size_t hri_index_step_scratch_bytes(const struct hri_index_options *options)
{
    const struct hri_selector_ops *ops = options->recipe.selector->ops;
    return ops->scratch_bytes ? ops->scratch_bytes(options) : 64;
}

static void out_clear(struct hri_select_out *out)
{
    out->n_items = 0;
    out->n_rows = 0;
    out->n_rests = 0;
    out->bytes_rests = 0;
    out->rows_sketched = 0;
    out->rows_visited = 0;
    out->bytes_sketched = 0;
    out->bytes_sketched_host = 0;
    out->bytes_summaries = 0;
    out->bytes = 0;
    out->all = false;
    out->capped = false;
    memset(out->predicted, 0, sizeof out->predicted);
}

static bool nothing_to_choose(const struct hri_index_head *head)
{
    return head->n_blocks == 0 && head->options.recipe.selector->unit == HRI_UNIT_BLOCKS;
}

hr_status_t hri_index_select(struct hri_index_head *head, const struct hri_select_in *in,
                             struct hri_select_out *out)
{
    out_clear(out);
    return nothing_to_choose(head) ? HR_OK : head->ops->select(head, in, out);
}

bool hri_index_selects_layers(const struct hri_recipe *recipe)
{
    return recipe->selector->ops->select_layer != NULL;
}

hr_status_t hri_index_select_layer(struct hri_index_head *const *heads, uint32_t n_heads,
                                   const struct hri_select_in *in, struct hri_select_out *out)
{
    for (uint32_t h = 0; h < n_heads; h++)
        out_clear(&out[h]);
    return nothing_to_choose(heads[0]) ? HR_OK
                                       : heads[0]->ops->select_layer(heads, n_heads, in, out);
}

bool hri_index_rebuilds_keys(const struct hri_recipe *recipe)
{
    const struct hri_selector_ops *ops = recipe->selector->ops;
    return (ops->rebuild_keys || ops->rebuild_row) && (!ops->rebuilds || ops->rebuilds(recipe));
}

void hri_index_rebuild_keys(struct hri_index_head *head, uint32_t block, float *k)
{
    HRI_ASSERT(block < head->n_blocks && head->block_rows[block] <= HRI_REBUILD_ROWS_MAX);
    head->ops->rebuild_keys(head, block, k);
}

void hri_index_rebuild_row(struct hri_index_head *head, uint32_t row, float *k)
{
    HRI_ASSERT(row < head->n_rows);
    head->ops->rebuild_row(head, row, k);
}

bool hri_index_weighs_rows(const struct hri_recipe *recipe)
{
    return recipe->selector->ops->weigh_row != NULL;
}

void hri_index_weigh_row(struct hri_index_head *head, const struct hri_select_in *in, uint32_t i,
                         uint32_t row, const float *dots, float *log_weight_out)
{
    HRI_ASSERT(row < head->n_rows);
    head->ops->weigh_row(head, in, i, row, dots, log_weight_out);
}

uint64_t hri_index_host_bytes(const struct hri_index_head *head)
{
    return head->ops->host_bytes ? head->ops->host_bytes(head) : 0;
}

void hri_index_block_dots(const struct hri_index_head *head, const struct hri_select_in *in,
                          uint32_t block, float *dots_out)
{
    const float *dots = hri_step_dots(in);
    size_t stride = hri_lanes_up(head->n_blocks);
    HRI_ASSERT(block < head->n_blocks);
    for (uint32_t g = 0; g < head->options.g; g++)
        dots_out[g] = dots[g * stride + block];
}

void hri_index_block_ahead(const struct hri_index_head *head, const struct hri_select_in *in,
                           uint32_t block)
{
    const float *dots = hri_step_dots(in);
    size_t stride = hri_lanes_up(head->n_blocks), dv = head->options.v_dim;
    HRI_ASSERT(block < head->n_blocks && head->k_step);
    for (uint32_t g = 0; g < head->options.g; g++)
        __builtin_prefetch(dots + g * stride + block);
    __builtin_prefetch(head->block_rows + block);
    __builtin_prefetch(head->k_step + block);
    __builtin_prefetch(head->v_step + block);
    if (head->summary.v_codes == NULL)
        return;
    __builtin_prefetch(head->summary.v_scale + block);
    for (size_t j = 0; j < dv; j += 64)
        __builtin_prefetch(head->summary.v_codes + block * dv + j);
}

void hri_index_estimate(struct hri_index_head *head, const struct hri_select_in *in,
                        const struct hri_select_out *out, struct hri_partial *part,
                        uint32_t *estimated_blocks_out)
{
    uint32_t n =
        head->n_rows && head->ops->estimate ? head->ops->estimate(head, in, out, NULL, 0, part) : 0;
    if (estimated_blocks_out)
        *estimated_blocks_out = n;
}

void hri_index_attend_rows(struct hri_index_head *head, const struct hri_select_in *in,
                           const struct hri_select_out *out, const int8_t *const *codes,
                           struct hri_partial *part)
{
    struct hri_step step = hri_step_at(head, in);
    if (out->n_rows > 0)
        hri_ladder_attend_rows(head, in, &step, out, codes, part);
}

void hri_index_estimate_items(struct hri_index_head *head, const struct hri_select_in *in,
                              const uint32_t *items, uint32_t n, struct hri_partial *part,
                              float *error_out)
{
    memset(error_out, 0, head->options.g * sizeof *error_out);
    if (n && head->ops->late)
        head->ops->late(head, in, items, n, part, error_out);
    else if (n && head->ops->estimate)
        head->ops->estimate(head, in, NULL, items, n, part);
}
