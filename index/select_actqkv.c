/* ActQKV (arXiv 2502.13542): blocks of consecutive tokens are chosen by a probe query: the mean of those queries of the newest
 * window whose activation bias, their distance from the window's mean in units of its deviation per channel, is largest. A block's
 * score is the softmax of probe times mean key, summed over the group. How many blocks a layer reads at most follows its
 * information density: exp of the entropy of the layer's distribution over blocks. What is not chosen is dropped. */
#include "index/head.h"
#include "index/means.h"
#include "index/params.h"
#include "index/sort.h"
#include "index/image.h"

#include <math.h>
#include <string.h>

#define WINDOW_MAX 256u

struct act {
    struct hri_means means;
    float *queries; /* [window][g][k_dim] newest queries, a ring */
    float *probe;   /* [g][k_dim] */
    uint32_t window, n, next;
};

static uint64_t device_bytes(const struct hri_index_options *o)
{
    return hri_means_bytes(o, o->blocks_max, false);
}

static uint64_t held_bytes(const struct hri_index_head *head, uint32_t n_blocks)
{
    return hri_means_bytes(&head->options, n_blocks, false);
}

static void destroy(struct hri_index_head *head)
{
    struct act *s = head->state;
    const struct hri_index_options *o = &head->options;
    hri_means_destroy(&s->means, o);
    hri_free(o->scratch, s->queries);
    hri_free(o->scratch, s->probe);
    hri_free(o->scratch, s);
}

static hr_status_t create(struct hri_index_head *head)
{
    const struct hri_index_options *o = &head->options;
    struct act *s = hri_calloc(o->scratch, 1, sizeof *s);
    if (!s)
        return hri_alloc_status();
    head->state = s;
    s->window = (uint32_t)hri_recipe_value(&o->recipe, "queries");
    size_t width = (size_t)o->g * o->k_dim;
    s->queries = hri_array(o->scratch, s->window * width, sizeof *s->queries);
    s->probe = hri_array(o->scratch, width, sizeof *s->probe);
    hr_status_t status = s->queries && s->probe
                             ? hri_means_create(&s->means, o, o->blocks_max, false)
                             : hri_alloc_status();
    if (status != HR_OK)
        destroy(head);
    return status;
}

static void remember(struct act *s, const float *q, size_t width)
{
    memcpy(s->queries + s->next * width, q, width * sizeof *q);
    s->next = (s->next + 1) % s->window;
    s->n += s->n < s->window;
}

static void observe(struct hri_index_head *head, const float *q, uint32_t n,
                    uint32_t first_position)
{
    struct act *s = head->state;
    size_t width = (size_t)head->options.g * head->options.k_dim;
    (void)first_position;
    if (n == 1)
        return; /* a step's own query was remembered when it chose */
    for (uint32_t i = n > s->window ? n - s->window : 0; i < n; i++)
        remember(s, q + i * width, width);
}

static hr_status_t summarise(struct hri_index_head *head, const struct hri_segment *segment)
{
    struct act *s = head->state;
    const float *k = segment->k;
    for (uint32_t b = 0; b < segment->n_blocks; b++) {
        hri_means_write(&s->means, &head->options, head->n_blocks + b, k, NULL, NULL,
                        segment->block_rows[b]);
        k += (size_t)segment->block_rows[b] * head->options.k_dim;
    }
    return HR_OK;
}

/* Mean square, over the channels, of the distance from the window's mean in its deviations. */
static void activation_bias(const struct act *s, size_t width, struct hri_ranked *bias)
{
    for (uint32_t t = 0; t < s->n; t++)
        bias[t] = (struct hri_ranked){0, t};
    for (size_t j = 0; j < width; j++) {
        double mean = 0, variance = 0;
        for (uint32_t t = 0; t < s->n; t++)
            mean += s->queries[t * width + j] / (double)s->n;
        for (uint32_t t = 0; t < s->n; t++)
            variance += pow(s->queries[t * width + j] - mean, 2) / s->n;
        for (uint32_t t = 0; variance > 0 && t < s->n; t++)
            bias[t].key +=
                (float)(pow(s->queries[t * width + j] - mean, 2) / variance / (double)width);
    }
}

static void make_probe(struct act *s, const struct hri_index_options *o)
{
    size_t width = (size_t)o->g * o->k_dim;
    struct hri_ranked bias[WINDOW_MAX];
    uint32_t n = (uint32_t)ceil(hri_recipe_value(&o->recipe, "probes") * s->n);
    n = n ? n : 1;
    activation_bias(s, width, bias);
    hri_rank_sort(bias, s->n);
    for (size_t j = 0; j < width; j++) {
        double sum = 0;
        for (uint32_t i = 0; i < n; i++)
            sum += s->queries[bias[i].item * width + j];
        s->probe[j] = (float)(sum / n);
    }
}

/* step.work: the sum over the group of the softmax over blocks. */
static void score(struct hri_index_head *head, const struct hri_select_in *in,
                  struct hri_step *step)
{
    const struct hri_index_options *o = &head->options;
    struct act *s = head->state;
    uint32_t n = head->n_blocks;
    remember(s, in->q, (size_t)o->g * o->k_dim);
    make_probe(s, o);
    *step = hri_step_at(head, in);
    hri_means_dots(&s->means, o, s->probe, n, step->dots, step->stride);
    memset(step->work, 0, n * sizeof *step->work);
    for (uint32_t g = 0; g < o->g; g++) {
        float *weight = step->weight + g * step->stride;
        hri_softmax(o->kernels, step->dots + g * step->stride, weight, n);
        for (uint32_t b = 0; b < n; b++)
            step->work[b] += weight[b];
    }
}

/* How many blocks the layer's attention is spread over: mean over the heads of exp(entropy). */
static double density_add(const struct hri_step *step, uint32_t n, uint32_t g, uint32_t n_heads)
{
    double entropy = 0;
    for (uint32_t b = 0; b < n; b++) {
        double p = step->work[b] / (double)g;
        entropy -= p > 0 ? p * log(p) : 0;
    }
    return exp(entropy) / n_heads;
}

static hr_status_t select_layer(struct hri_index_head *const *heads, uint32_t n_heads,
                                const struct hri_select_in *in, struct hri_select_out *out)
{
    struct hri_step step;
    double density = 0;
    for (uint32_t h = 0; h < n_heads; h++) {
        score(heads[h], &in[h], &step);
        density += density_add(&step, heads[h]->n_blocks, heads[h]->options.g, n_heads);
    }
    uint32_t most = (uint32_t)ceil(density);
    for (uint32_t h = 0; h < n_heads; h++) {
        uint32_t n = heads[h]->n_blocks, items_max = out[h].items_max;
        step = hri_step_at(heads[h], &in[h]);
        for (uint32_t b = 0; b < n; b++)
            step.ranked[b] = (struct hri_ranked){step.work[b], b};
        struct hri_take take = {.ranked = step.ranked, .n = n, .budget_bytes = in[h].budget_bytes};
        out[h].items_max = most < items_max ? most : items_max;
        hri_take_blocks(heads[h], &in[h], &take, &out[h]);
        out[h].items_max = items_max;
    }
    return HR_OK;
}

static hr_status_t select_one(struct hri_index_head *head, const struct hri_select_in *in,
                              struct hri_select_out *out)
{
    return select_layer(&head, 1, in, out);
}

static void image(struct hri_index_head *head, struct hri_image *im)
{
    struct act *s = head->state;
    size_t width = (size_t)head->options.g * head->options.k_dim;
    hri_means_image(&s->means, &head->options, head->n_blocks, im);
    hri_image_u32(im, &s->n, s->window, "too many queries");
    hri_image_u32(im, &s->next, s->window - 1, "no such query");
    hri_image_floats(im, s->queries, hri_image_ok(im) ? s->n * width : 0);
}

static const struct hri_selector_ops ops = {
    .device_bytes = device_bytes,
    .held_bytes = held_bytes,
    .create = create,
    .destroy = destroy,
    .summarise = summarise,
    .scratch_bytes = hri_step_bytes,
    .observe = observe,
    .select = select_one,
    .select_layer = select_layer,
    .image = image,
};

static const struct hri_param params_actqkv[] = {
    PARAM_SINK(4),
    PARAM_WINDOW(64),
    PARAM_SEGMENT(8192),
    PARAM_DECODE_SEGMENT(512),
    PARAM_DENSE(""),
    {"page", "consecutive tokens per block (also: block)", "", 32, 4, 64},
    {"queries", "newest queries among which the probe is sought", "ActQKV, section 3.2", 16, 1,
     WINDOW_MAX},
    {"probes", "share of them that make the probe", "ActQKV, section 3.2", 0.25, 0, 1},
    PARAM_END};

const struct hri_selector hri_selector_actqkv = {
    .name = "actqkv",
    .summary = "blocks by a probe query made of the newest queries with the largest activation "
               "bias; a cut-off by information density",
    .source = "ActQKV, arXiv 2502.13542",
    .unit = HRI_UNIT_BLOCKS,
    .codec = HRI_CODEC_EXACT,
    .params = params_actqkv,
    .ops = &ops,
};
