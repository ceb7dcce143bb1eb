#include "cli/eval_tasks.h"

#include <stdlib.h>
#include <string.h>

#include "cli/json_file.h"
#include "cli/logits.h"
#include "cli/out.h"

#define KL_TOKENS_MAX 32 /* of an answer: dense attention's logits are kept for so many */

struct answer {
    uint32_t *ids; /* [answer_tokens] */
    uint32_t n;
    struct hre_bytes text;
    double score;
};

/* One reader of the text: sequence 0 is dense, the others are the items'. */
struct reader {
    uint32_t pending; /* said last, but not read yet: HRE_TOKEN_NONE without */
    bool same;        /* has read and said what dense has, so far */
    struct answer answer;
};

/* Some of the items on one text. */
struct pass {
    struct cli_tasks_eval *eval;
    const struct cli_task *task;
    const struct cli_task_prompt *prompt;
    const struct cli_tasks_item *items;
    struct cli_tasks_figure *figures; /* [n] */
    size_t n;
    struct cli_cache *caches;  /* [1 + n] */
    hr_sequence_t **sequences; /* [1 + n] */
    struct reader *readers;    /* [1 + n] */
    hre_session_t *session;
    float *logits;          /* [vocab] */
    float *dense_logits;    /* [KL_TOKENS_MAX][vocab] of the turn's answer */
    uint32_t n_dense;       /* of them */
    uint8_t *refined;       /* [n_kv_heads][tokens_max] */
    uint64_t tokens_before; /* of the progress */
};

/* ------------------------------------------------------------------------------------ open and close */

static int open_caches(struct pass *pass)
{
    const struct cli_tasks_options *o = pass->eval->options;
    const struct cli_model *model = &pass->eval->model;
    struct cli_recipe recipe = o->recipe;
    uint32_t n = pass->prompt->tokens_max;
    int code = cli_cache_open_dense(model, &o->place, recipe.dtype, n, &pass->caches[0]);
    recipe.head_gates = pass->eval->head_gates;
    recipe.keep_tokens = true;
    for (size_t i = 0; i < pass->n && code == 0; i++) {
        recipe.name = pass->items[i].recipe;
        recipe.moved = pass->items[i].moved;
        code = cli_cache_open(model, &o->place, &recipe, n, &pass->caches[1 + i]);
    }
    for (size_t i = 0; i <= pass->n; i++)
        pass->sequences[i] = pass->caches[i].sequence;
    return code;
}

static int open_readers(struct pass *pass)
{
    uint32_t n = pass->prompt->answer_tokens;
    for (size_t i = 0; i <= pass->n; i++) {
        pass->readers[i] = (struct reader){.pending = HRE_TOKEN_NONE, .same = true};
        pass->readers[i].answer.ids = calloc(n, sizeof(uint32_t));
        if (!pass->readers[i].answer.ids)
            return cli_fail("out of memory");
    }
    return 0;
}

static int open_pass(struct pass *pass)
{
    const struct hre_model_info *info = pass->eval->model.info;
    struct hre_session_options options;
    pass->caches = calloc(1 + pass->n, sizeof *pass->caches);
    pass->sequences = calloc(1 + pass->n, sizeof(hr_sequence_t *));
    pass->readers = calloc(1 + pass->n, sizeof *pass->readers);
    pass->logits = malloc(info->vocab * sizeof *pass->logits);
    pass->dense_logits = malloc((size_t)KL_TOKENS_MAX * info->vocab * sizeof *pass->dense_logits);
    pass->refined = malloc((size_t)info->n_kv_heads * pass->prompt->tokens_max);
    if (!pass->caches || !pass->sequences || !pass->readers || !pass->logits ||
        !pass->dense_logits || !pass->refined)
        return cli_fail("out of memory");
    int code = open_readers(pass);
    if (code == 0)
        code = open_caches(pass);
    if (code)
        return code;
    hre_session_options_init(&options);
    options.sequences = pass->sequences;
    options.n_sequences = (uint32_t)(1 + pass->n);
    options.tokens_max = pass->prompt->tokens_max;
    hr_status_t status = hre_session_create(pass->eval->model.model, &options, &pass->session);
    return status == HR_OK ? 0 : cli_fail_engine("session", status);
}

static void close_pass(struct pass *pass)
{
    hre_session_destroy(pass->session);
    for (size_t i = 0; i <= pass->n; i++) {
        if (pass->caches)
            cli_cache_close(&pass->caches[i]);
        if (pass->readers) {
            free(pass->readers[i].answer.ids);
            hre_bytes_fini(&pass->readers[i].answer.text);
        }
    }
    free(pass->caches);
    free(pass->sequences);
    free(pass->readers);
    free(pass->logits);
    free(pass->dense_logits);
    free(pass->refined);
}

/* ------------------------------------------------------------------------------------------- prefill */

static int on_progress(void *context, uint32_t done, uint32_t total)
{
    struct pass *pass = context;
    (void)total;
    cli_progress_update(&pass->eval->progress, pass->tokens_before + done);
    return cli_stop_signal() != 0;
}

static int prefill(struct pass *pass)
{
    struct hre_prefill_options options;
    hre_prefill_options_init(&options);
    options.progress = on_progress;
    options.progress_context = pass;
    options.settle = 1;
    hr_status_t status =
        hre_session_prefill(pass->session, pass->prompt->ids, pass->prompt->n, &options, NULL);
    if (status != HR_OK && !(status == HR_ERR_CANCELED && cli_stop_signal()))
        return cli_fail_engine("prefill", status);
    return 0;
}

/* ------------------------------------------------------------------------------------------- answers */

/* Counts which of the answer's rows a layer refined. */
struct watch {
    struct cli_tasks_figure *figure;
    const struct cli_task_turn *turn;
    uint32_t n_kv_heads;
};

static void on_refined(void *context, uint32_t layer, uint32_t n_tokens, const uint8_t *refined)
{
    const struct watch *watch = context;
    uint64_t *count = watch->figure->refined + (size_t)layer * watch->n_kv_heads;
    for (uint32_t h = 0; h < watch->n_kv_heads; h++) {
        for (uint32_t i = 0; i < watch->turn->n_rows; i++)
            count[h] += refined[(size_t)h * n_tokens + watch->turn->rows[i]];
    }
}

/* One token through a reader's sequence; answering: what it reads now decides about the answer. */
static int step(struct pass *pass, size_t reader, uint32_t id,
                const struct cli_task_turn *answering)
{
    struct hre_decode_options options;
    struct hre_step_report report;
    struct cli_tasks_figure *figure = reader ? &pass->figures[reader - 1] : NULL;
    struct watch watch = {figure, answering, pass->eval->model.info->n_kv_heads};
    hre_decode_options_init(&options);
    if (!figure) {
        options.mode = HR_ATTEND_EXACT;
    } else if (answering && answering->n_rows) {
        options.on_refined = on_refined;
        options.on_refined_context = &watch;
        options.refined_memory = pass->refined;
        figure->rows += answering->n_rows;
    }
    hr_status_t status = hre_session_decode(pass->session, (uint32_t)reader, id, &options,
                                            pass->logits, figure ? &report : NULL);
    if (status != HR_OK)
        return cli_fail_engine(figure ? pass->items[reader - 1].recipe : "dense", status);
    if (figure) {
        /* The first step of a sequence also indexes what prefill left. */
        if (hre_session_length(pass->session, (uint32_t)reader) == pass->prompt->n + 1)
            cli_step_without_prefill(&report);
        cli_tally_add(&figure->tally, &report);
    }
    return 0;
}

/* Dense attention's distribution for the answer's token i is kept, a recipe's compared with it where
 * both read the same so far. */
static void compare(struct pass *pass, size_t reader, uint32_t i)
{
    size_t vocab = pass->eval->model.info->vocab;
    const struct answer *dense = &pass->readers[0].answer, *own = &pass->readers[reader].answer;
    if (reader == 0 && i < KL_TOKENS_MAX) {
        memcpy(pass->dense_logits + i * vocab, pass->logits, vocab * sizeof *pass->logits);
        pass->n_dense = i + 1;
    } else if (reader && pass->readers[reader].same && i < pass->n_dense && i <= dense->n &&
               memcmp(dense->ids, own->ids, i * sizeof *own->ids) == 0) {
        struct cli_tasks_figure *figure = &pass->figures[reader - 1];
        figure->kl += cli_kl(pass->dense_logits + i * vocab, pass->logits, vocab);
        figure->kl_tokens++;
    }
}

static int read_question(struct pass *pass, size_t reader, const struct cli_task_turn *turn)
{
    struct reader *r = &pass->readers[reader];
    int code = 0;
    if (r->pending != HRE_TOKEN_NONE && !pass->prompt->forget_answers)
        code = step(pass, reader, r->pending, NULL);
    r->pending = HRE_TOKEN_NONE;
    for (uint32_t i = 0; i < turn->n && code == 0 && !cli_stop_signal(); i++)
        code = step(pass, reader, turn->ids[i], i + 1 == turn->n ? turn : NULL);
    return code;
}

/* Greedy, up to the end that the model gives it or the longest that the task allows. */
static int say(struct pass *pass, size_t reader, const struct cli_task_turn *turn)
{
    struct reader *r = &pass->readers[reader];
    const struct cli_model *model = &pass->eval->model;
    int code = 0;
    r->answer.n = 0;
    while (code == 0 && !cli_stop_signal()) {
        uint32_t id = cli_argmax(pass->logits, model->info->vocab);
        compare(pass, reader, r->answer.n);
        if (hre_tokenizer_is_end(model->tokenizer, id))
            break;
        r->answer.ids[r->answer.n++] = id;
        if (r->answer.n == pass->prompt->answer_tokens) {
            r->pending = id;
            break;
        }
        code = step(pass, reader, id, turn);
    }
    return code;
}

static int score_answer(struct pass *pass, size_t reader, const struct cli_task_turn *turn)
{
    struct answer *answer = &pass->readers[reader].answer;
    answer->text.bytes = 0;
    hr_status_t status = hre_tokenizer_decode(pass->eval->model.tokenizer, answer->ids, answer->n,
                                              false, false, &answer->text);
    if (status != HR_OK)
        return cli_fail_engine("answer", status);
    if (answer->text.bytes == 0 && hre_bytes_append(&answer->text, "", 0) != HR_OK)
        return cli_fail("out of memory");
    answer->score = cli_task_score(pass->task->match, &turn->references,
                                   answer->text.data ? answer->text.data : "");
    return 0;
}

static void count_answer(struct pass *pass, size_t reader)
{
    struct cli_tasks_figure *figure = &pass->figures[reader - 1];
    struct reader *r = &pass->readers[reader];
    const struct answer *dense = &pass->readers[0].answer, *own = &r->answer;
    bool equal = dense->n == own->n && memcmp(dense->ids, own->ids, own->n * sizeof *own->ids) == 0;
    figure->answers++;
    figure->score += own->score;
    figure->score_dense += dense->score;
    figure->equal += equal;
    figure->better += own->score > dense->score;
    figure->worse += own->score < dense->score;
    r->same = r->same && (equal || pass->prompt->forget_answers);
}

/* ---------------------------------------------------------------------------------------------- turns */

static cJSON *answer_json(const struct answer *answer)
{
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "text", answer->text.data ? answer->text.data : "");
    cJSON_AddNumberToObject(json, "score", answer->score);
    return json;
}

static void keep_answers(const struct pass *pass, const struct cli_task_turn *turn,
                         cJSON *questions, size_t i, bool first_pass)
{
    if (first_pass) {
        cJSON *question = cJSON_CreateObject();
        cJSON_AddStringToObject(question, "question", turn->question);
        cJSON *references = cJSON_AddArrayToObject(question, "references");
        for (size_t r = 0; r < turn->references.n; r++)
            cJSON_AddItemToArray(references, cJSON_CreateString(turn->references.text[r]));
        cJSON_AddItemToObject(question, "dense", answer_json(&pass->readers[0].answer));
        cJSON_AddArrayToObject(question, "answers");
        cJSON_AddItemToArray(questions, question);
    }
    cJSON *answers = cJSON_GetObjectItem(cJSON_GetArrayItem(questions, (int)i), "answers");
    for (size_t k = 0; answers && k < pass->n; k++) {
        cJSON *answer = answer_json(&pass->readers[1 + k].answer);
        cJSON_AddStringToObject(answer, "recipe", pass->items[k].recipe);
        cJSON_AddStringToObject(answer, "moved", pass->items[k].moved_text);
        cJSON_AddItemToArray(answers, answer);
    }
}

/* All readers answer one question, dense first. */
static int run_turn(struct pass *pass, const struct cli_task_turn *turn)
{
    int code = 0;
    pass->n_dense = 0;
    for (size_t i = 0; i <= pass->n && code == 0 && !cli_stop_signal(); i++) {
        code = read_question(pass, i, turn);
        if (code == 0 && !cli_stop_signal())
            code = say(pass, i, turn);
        if (code == 0)
            code = score_answer(pass, i, turn);
    }
    return code;
}

static void keep_stats(struct pass *pass)
{
    for (size_t i = 0; i < pass->n; i++) {
        struct hr_sequence_stats stats = {.struct_size = sizeof stats};
        if (hr_sequence_stats_get(pass->caches[1 + i].sequence, &stats) == HR_OK) {
            pass->figures[i].device_bytes += stats.summary_bytes + stats.sketch_bytes;
            pass->figures[i].body_bytes += stats.body_bytes;
        }
    }
}

static int run_pass(struct pass *pass, cJSON *questions, bool first_pass)
{
    int code = open_pass(pass);
    if (code == 0)
        code = prefill(pass);
    for (size_t t = 0; t < pass->prompt->n_turns && code == 0 && !cli_stop_signal(); t++) {
        code = run_turn(pass, &pass->prompt->turns[t]);
        if (code || cli_stop_signal())
            break; /* a question that not all have answered does not count */
        for (size_t i = 1; i <= pass->n; i++)
            count_answer(pass, i);
        keep_answers(pass, &pass->prompt->turns[t], questions, t, first_pass);
    }
    if (code == 0)
        keep_stats(pass);
    close_pass(pass);
    return code;
}

/* --------------------------------------------------------------------------------------------- sample */

static cJSON *sample_json(const struct cli_tasks_eval *eval, size_t task, uint64_t sample,
                          const struct cli_task_prompt *prompt)
{
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "task", eval->tasks[task]->name);
    cli_json_u64(json, "sample", sample);
    cli_json_u64(json, "tokens_prefilled", prompt->n);
    cli_json_u64(json, "tokens_max", prompt->tokens_max);
    return json;
}

static int run_passes(struct cli_tasks_eval *eval, size_t task,
                      const struct cli_task_prompt *prompt, cJSON *questions)
{
    uint64_t before = eval->tokens_done;
    int code = 0;
    for (size_t first = 0; first < eval->n_items && code == 0 && !cli_stop_signal();
         first += eval->items_per_pass) {
        size_t left = eval->n_items - first;
        struct pass pass = {
            .eval = eval,
            .task = eval->tasks[task],
            .prompt = prompt,
            .items = eval->items + first,
            .figures = eval->figures + task * eval->n_items + first,
            .n = left < eval->items_per_pass ? left : eval->items_per_pass,
            .tokens_before = before,
        };
        code = run_pass(&pass, questions, first == 0);
        before += eval->options->tokens_context;
    }
    eval->tokens_done = before;
    cli_progress_update(&eval->progress, before);
    return code;
}

int cli_tasks_run_sample(struct cli_tasks_eval *eval, size_t task, uint64_t sample)
{
    const struct cli_tasks_options *o = eval->options;
    struct cli_task_maker maker = {
        .model = &eval->model,
        .chat = eval->has_chat ? &eval->chat : NULL,
        .source = &eval->sources.source,
        .tokens = o->tokens_context,
        .answer_tokens = o->answer_tokens,
        .question_at_once = strcmp(o->question, "prefill") == 0,
    };
    struct cli_task_prompt prompt;
    int code = cli_task_prompt_make(&maker, eval->tasks[task],
                                    cli_task_seed(eval->tasks[task], o->seed, sample), &prompt);
    if (code)
        return code;
    cJSON *json = sample_json(eval, task, sample, &prompt);
    cJSON *questions = cJSON_AddArrayToObject(json, "questions");
    code = run_passes(eval, task, &prompt, questions);
    cJSON_AddItemToArray(eval->samples, json);
    cli_task_prompt_fini(&prompt);
    return code;
}
