#include "bench/device_steps.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "offload/io_ops.h"

#define NOISE      (1u << 16) /* numbers that rows are made of */
#define TOPIC_ROWS 64u        /* rows of a kind, on average */

/* -------------------------------------------------------------------------------------------- text */

/* Rows come in topics, as keys do: a direction of the topic's and noise of half its size, both out of one table. */
static void rows_make(struct hrb_steps *s, const float *noise, float *x, uint32_t n)
{
    for (uint32_t i = 0; i < n * HEADS; i++) {
        const uint64_t topic = hri_rng_below(&s->rng, 1 + s->tokens / TOPIC_ROWS);
        const uint32_t first =
            (uint32_t)((topic * HEADS + i % HEADS) * 0x9e3779b97f4a7c15u >> 32) % NOISE;
        const uint32_t other = (uint32_t)hri_rng_below(&s->rng, NOISE);
        for (uint32_t j = 0; j < DIM; j++)
            x[(size_t)i * DIM + j] = noise[(first + j) % NOISE] + 0.5f * noise[(other + j) % NOISE];
    }
}

static hr_status_t rows_put(struct hrb_steps *s)
{
    enum { CHUNK = 1024 };
    float *k = malloc(sizeof(float) * (CHUNK * HEADS * DIM * 2 + NOISE)),
          *v = k + CHUNK * HEADS * DIM, *noise = v + CHUNK * HEADS * DIM;
    hr_status_t status = k != NULL ? HR_OK : HR_ERR_NOMEM;
    for (uint32_t i = 0; status == HR_OK && i < NOISE; i++)
        noise[i] = (float)hri_rng_normal(&s->rng);
    for (uint32_t done = 0, n; done < s->tokens && status == HR_OK; done += n) {
        n = s->tokens - done < CHUNK ? s->tokens - done : CHUNK;
        rows_make(s, noise, k, n);
        rows_make(s, noise, v, n);
        struct hr_tensor tk = hr_tensor_make(k, HR_DTYPE_F32, n, HEADS, DIM),
                         tv = hr_tensor_make(v, HR_DTYPE_F32, n, HEADS, DIM);
        status = hr_sequence_append(s->seq, 0, &tk, &tv, NULL);
    }
    free(k);
    return status == HR_OK ? hr_sequence_settle(s->seq, 0) : status;
}

static hr_status_t sequence_open(struct hrb_steps *s, const struct hrb_options *options,
                                 const char *recipe)
{
    struct hr_runtime_options ro;
    struct hr_sequence_options so;
    const uint64_t exact = (uint64_t)s->tokens * HEADS * 2 * DIM * 2;
    hr_runtime_options_init(&ro);
    ro.device = device_ops()->name;
    ro.device_bytes = exact / 4 * s->n_layers + (128u << 20);
    ro.host_bytes = 2 * exact + (64u << 20);
    ro.n_threads = options->n_threads;
    hr_status_t status = hri_runtime_create_on(&ro, hri_io_real(), device_ops(), &s->rt);
    if (status == HR_OK)
        s->rt->index_on_host = device_is_emulated(); /* it takes its time */
    if (status != HR_OK)
        return status;
    hr_sequence_options_init(&so);
    so.n_layers = s->n_layers;
    so.n_q_heads = HEADS * GROUP;
    so.n_kv_heads = HEADS;
    so.k_dim = so.v_dim = DIM;
    so.tokens_max = s->tokens + 64;
    so.recipe = recipe;
    so.moved = options->moved > 0 ? options->moved : 0.01;
    return hr_sequence_create(s->rt, &so, &s->seq);
}

/* What the device has of the first layer goes to each other one, from the host as after a grouping. */
static hr_status_t layers_fill(struct hrb_steps *s)
{
    hr_status_t status = HR_OK;
    for (uint32_t i = 1; i < s->n_layers && status == HR_OK; i++) {
        struct hri_layer *l = &s->seq->layers[i], own = *l;
        *l = s->seq->layers[0];
        status = hri_device_sync(s->seq, l, l->n_tokens);
        *l = own;
    }
    return status;
}

/* ----------------------------------------------------------------------------------------- queries */

static void queries_turn(struct hrb_steps *s)
{
    const float keep = (float)sqrt(1 - s->turned * s->turned), turn = (float)s->turned;
    for (size_t i = 0; i < (size_t)s->n_layers * HEADS * GROUP * DIM; i++)
        s->q[i] = keep * s->q[i] + turn * (float)hri_rng_normal(&s->rng);
}

static hr_status_t first_attend(struct hrb_steps *s)
{
    float out[HEADS * GROUP * DIM];
    struct hr_attend_options o;
    hr_attend_options_init(&o);
    o.check_exact = 1;
    struct hr_tensor q = hr_tensor_make(s->q, HR_DTYPE_F32, 1, HEADS * GROUP, DIM);
    struct hr_tensor to = hr_tensor_make(out, HR_DTYPE_F32, 1, HEADS * GROUP, DIM);
    return hr_sequence_attend(s->seq, 0, &q, &o, &to, &s->report, NULL);
}

/* The input of a token of all layers, as the first layer's step would fill it. */
static void input_fill(struct hrb_steps *s, unsigned char *to)
{
    struct hri_device_part *p = s->seq->part;
    struct hri_layer *l = &s->seq->layers[0];
    struct hri_device_token t = hri_device_token(s->seq, 0, l->n_tokens - 1, &s->report);
    hri_device_in_fill(&t);
    for (uint32_t h = 0; h < HEADS; h++)
        memcpy(p->ins[0].row + (size_t)h * s->seq->row_bytes,
               hri_tail_row(s->seq, l, h, l->n_tokens - 1), s->seq->row_bytes);
    for (uint32_t i = 0; i < s->n_layers; i++) {
        struct hri_device_in *in = &p->ins[i];
        if (i > 0)
            memcpy(in->n_blocks, p->ins[0].n_blocks, in->bytes);
        for (size_t j = 0; j < HEADS * GROUP * DIM; j++)
            in->q[j] = s->seq->scale * s->q[(size_t)i * HEADS * GROUP * DIM + j];
    }
    memcpy(to, p->ins[0].n_blocks, s->in_bytes);
}

static int token_launch(void *context)
{
    struct hrb_steps *s = context;
    const struct hri_device_ops *ops = s->bed.ops;
    const struct hri_device_part *p = s->seq->part;
    const uint32_t period = s->n_turns > 1 ? 2 * s->n_turns - 2 : 1, at = s->calls++ % period;
    const uint32_t turn = at < s->n_turns ? at : period - at;
    int error = ops->copy(p->layers[0].in.n_blocks, s->in_bytes,
                          (unsigned char *)s->ins.base + turn * s->in_bytes, s->in_bytes,
                          s->in_bytes, 1, s->bed.stream);
    if (error == 0)
        error = ops->graph_launch(s->token, s->bed.stream);
    return error != 0 ? error
                      : ops->copy(p->outs[0].out, s->out_bytes, p->layers[0].out.out, s->out_bytes,
                                  s->out_bytes, 1, s->bed.stream);
}

/* Of the rows that the last token refined, those that lay in frames. */
static double hits_of_last(const struct hrb_steps *s)
{
    double hits = 0, all = 0;
    for (uint32_t i = 0; i < s->n_layers; i++)
        for (uint32_t h = 0; h < HEADS; h++) {
            const uint32_t *c = s->seq->part->outs[i].counts + h * HRI_CUDA_PREDICT_COUNTS;
            hits += c[4];
            all += c[3];
        }
    return all > 0 ? hits / all : 0;
}

static int turns_fill(struct hrb_steps *s, double *hits_out, struct hrb_result *result)
{
    for (uint32_t i = 0; i < s->n_turns; i++) {
        queries_turn(s);
        input_fill(s, (unsigned char *)s->ins.base + i * s->in_bytes);
    }
    double hits = 0;
    s->calls = 0;
    for (uint32_t i = 0; i < 3 * s->n_turns; i++) { /* the first turn fills frames */
        if (token_launch(s) != 0 || s->bed.ops->stream_wait(s->bed.stream) != 0)
            return hrb_failed(result, "a token failed");
        hits += i < s->n_turns ? 0 : hits_of_last(s);
    }
    *hits_out = hits / (2 * s->n_turns);
    return -1;
}

int hrb_steps_turn(struct hrb_steps *s, double hit_rate, double *hit_rate_out,
                   struct hrb_result *result)
{
    double low = 0, high = 1;
    for (int i = 0; i < (s->bed.tiny ? 1 : 10); i++) {
        s->turned = 0.5 * (low + high);
        int code = turns_fill(s, hit_rate_out, result);
        if (code >= 0)
            return code;
        if (fabs(*hit_rate_out - hit_rate) < 0.01)
            break;
        *(*hit_rate_out > hit_rate ? &low : &high) = s->turned;
    }
    return -1;
}

/* ----------------------------------------------------------------------------------------- running */

static int loose_launch(void *context)
{
    struct hrb_steps *s = context;
    int error = 0;
    for (uint32_t i = 0; i < s->n_layers && error == 0; i++)
        error = hri_device_launch_again(s->seq, i);
    return error;
}

static int choices_launch(void *context)
{
    struct hrb_steps *s = context;
    int error = 0;
    for (uint32_t i = 0; i < s->n_layers && error == 0; i++)
        error = hri_device_launch_choice(s->seq, i);
    return error;
}

static int graph_launch(void *context)
{
    struct hrb_steps *s = context;
    return s->bed.ops->graph_launch(s->token, s->bed.stream);
}

static int choice_launch(void *context)
{
    struct hrb_steps *s = context;
    return s->bed.ops->graph_launch(s->choice, s->bed.stream);
}

/* Centres and values of a layer lie one after the other. The sum goes where no benchmark looks. */
static int summaries_read(void *context)
{
    struct hrb_steps *s = context;
    const struct hri_device_part *p = s->seq->part;
    uint64_t blocks = 0;
    for (uint32_t h = 0; h < HEADS; h++)
        blocks += p->ins[0].n_blocks[h];
    int error = 0;
    for (uint32_t i = 0; i < s->n_layers && error == 0; i++)
        error = s->bed.ops->launch->read(p->layers[i].k_codes, blocks * 2 * DIM, p->work.bad,
                                         s->bed.stream);
    return error;
}

double hrb_steps_token_seconds(void *context)
{
    return seconds_of(&((struct hrb_steps *)context)->bed, token_launch, context);
}

double hrb_steps_graph_seconds(void *context)
{
    return seconds_of(&((struct hrb_steps *)context)->bed, graph_launch, context);
}

double hrb_steps_loose_seconds(void *context)
{
    return seconds_of(&((struct hrb_steps *)context)->bed, loose_launch, context);
}

double hrb_steps_choice_seconds(void *context)
{
    return seconds_of(&((struct hrb_steps *)context)->bed, choice_launch, context);
}

double hrb_steps_read_seconds(void *context)
{
    return seconds_of(&((struct hrb_steps *)context)->bed, summaries_read, context);
}

static hr_status_t record(struct hrb_steps *s, int (*call)(void *), void **graph_out)
{
    struct hri_device *device = s->seq->part->device;
    hr_status_t status =
        hri_device_check(device, s->bed.ops->capture_begin(s->bed.stream), "recording");
    if (status != HR_OK)
        return status;
    const int error = call(s), ended = s->bed.ops->capture_end(s->bed.stream, graph_out);
    return hri_device_check(device, error != 0 ? error : ended, "recording");
}

/* ------------------------------------------------------------------------------------ open, close */

static hr_status_t fill(struct hrb_steps *s)
{
    const struct hri_device_part *p = s->seq->part;
    hr_status_t status = rows_put(s);
    s->turned = 1;
    queries_turn(s);
    s->turned = 0.5;
    for (int i = 0; status == HR_OK && i < 4; i++) { /* the last one is checked */
        queries_turn(s);
        status = first_attend(s);
    }
    if (status == HR_OK && s->seq->layers[0].body_end <= s->seq->n_sink)
        status = hri_error_set(HR_ERR_STATE, "%u tokens make no block", s->tokens);
    status = status == HR_OK ? layers_fill(s) : status;
    s->in_bytes = s->n_layers * p->ins[0].bytes;
    s->out_bytes = s->n_layers * p->outs[0].bytes;
    if (status == HR_OK)
        status = hri_device_buffer_create(p->device, s->n_turns * s->in_bytes, &s->ins);
    status = status == HR_OK ? record(s, loose_launch, &s->token) : status;
    return status == HR_OK ? record(s, choices_launch, &s->choice) : status;
}

int hrb_steps_open(struct hrb_steps *s, const struct hrb_options *options, uint32_t tokens,
                   const char *recipe, struct hrb_result *result)
{
    const bool tiny = device_is_emulated();
    *s = (struct hrb_steps){
        .tokens = tokens, .n_layers = tiny ? 2 : LAYERS, .n_turns = tiny ? 2 : HRB_TURNS};
    if (device_ops() == NULL)
        return hrb_skip(result, "this build has no CUDA");
    hri_rng_seed(&s->rng, 9);
    s->q = calloc((size_t)s->n_layers * HEADS * GROUP * DIM, sizeof *s->q);
    hr_status_t status = s->q != NULL ? sequence_open(s, options, recipe) : HR_ERR_NOMEM;
    if (status == HR_ERR_UNSUPPORTED || status == HR_ERR_NOMEM)
        return hrb_skip(result, "%s", hr_last_error());
    if (status != HR_OK)
        return say(result);
    if (!s->seq->part->direct)
        return hrb_skip(result, "host memory could not be pinned");
    int code = bed_events(&s->bed, s->seq->part->device, result);
    if (code >= 0)
        return code;
    if (fill(s) != HR_OK)
        return say(result);
    return s->report.true_error < 0.5
               ? -1
               : hrb_failed(result, "the output is off by %.2g", s->report.true_error);
}

void hrb_steps_close(struct hrb_steps *s)
{
    if (s->token != NULL)
        s->bed.ops->graph_destroy(s->token);
    if (s->choice != NULL)
        s->bed.ops->graph_destroy(s->choice);
    if (s->bed.first != NULL)
        s->bed.ops->event_destroy(s->bed.first);
    if (s->bed.last != NULL)
        s->bed.ops->event_destroy(s->bed.last);
    if (s->ins.base != NULL)
        hri_device_buffer_destroy(s->seq->part->device, &s->ins);
    hr_sequence_destroy(s->seq);
    hr_runtime_destroy(s->rt);
    free(s->q);
}
