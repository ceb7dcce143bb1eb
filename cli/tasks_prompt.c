#include "cli/tasks_prompt.h"

#include <stdlib.h>
#include <string.h>

#include "cli/out.h"

#define TINY_KEYS 48

bool cli_model_is_tiny(const struct cli_model *model)
{
    return strcmp(model->info->architecture, "headrace-tiny") == 0;
}

static unsigned answer_tokens(const struct cli_task_maker *maker, const struct cli_task *task)
{
    return maker->answer_tokens ? (unsigned)maker->answer_tokens : task->answer_tokens;
}

/* -------------------------------------------------------------------------------------- first turn */

/* The text of the first turn up to the answer, and where the context lies in it. */
struct opening {
    struct hre_chat_text chat; /* plain: what the user wrote */
    size_t context_begin, question_begin;
};

static int format_chat(const struct cli_task_maker *maker, const struct hre_bytes *content,
                       struct opening *opening)
{
    struct hre_chat_message message = {.role = "user", .content = content->data};
    hr_status_t status = hre_chat_format(maker->chat, &message, 1, NULL, &opening->chat);
    if (status != HR_OK)
        return cli_fail_engine("chat", status);
    opening->context_begin = opening->chat.plain[0].begin;
    return 0;
}

static hr_status_t append(struct hre_bytes *to, const struct hre_bytes *part)
{
    return hre_bytes_append(to, part->data, part->bytes);
}

/* Context, a line's end, question; in the model's chat format where it has one; the answer's beginning. */
static int open_text(const struct cli_task_maker *maker, const struct cli_task_text *text,
                     struct opening *opening)
{
    const struct cli_task_question *question = &text->question[0];
    struct hre_bytes content = {0};
    hr_status_t status = append(&content, &text->context);
    if (status == HR_OK)
        status = hre_bytes_append(&content, "\n", 1);
    if (status == HR_OK)
        status = append(&content, &question->text);
    if (status == HR_OK && !maker->chat)
        status = hre_bytes_append(&content, "\n", 1);
    memset(opening, 0, sizeof *opening);
    int code = status == HR_OK ? 0 : cli_fail("out of memory");
    if (code == 0 && maker->chat) {
        code = format_chat(maker, &content, opening);
        hre_bytes_fini(&content);
    } else {
        opening->chat.text = content;
    }
    opening->question_begin = opening->context_begin + text->context.bytes;
    if (code == 0 && append(&opening->chat.text, &question->prefix) != HR_OK)
        code = cli_fail("out of memory");
    return code;
}

static int encode(const struct cli_task_maker *maker, const struct hre_chat_text *text, bool first,
                  struct hre_tokens *tokens_out)
{
    struct hre_encode_options options;
    hre_encode_options_init(&options);
    options.parse_special = maker->chat != NULL;
    options.plain = text->plain;
    options.n_plain = text->n_plain;
    options.add_eos = HRE_ADD_NEVER;
    if (!first)
        options.add_bos = HRE_ADD_NEVER;
    hr_status_t status = hre_tokenizer_encode(maker->model->tokenizer, text->text.data,
                                              text->text.bytes, &options, tokens_out);
    return status == HR_OK ? 0 : cli_fail_engine("text", status);
}

static int encode_opening(const struct cli_task_maker *maker, const struct cli_task_text *text,
                          struct opening *opening, struct hre_tokens *tokens_out)
{
    int code = open_text(maker, text, opening);
    return code ? code : encode(maker, &opening->chat, true, tokens_out);
}

/* --------------------------------------------------------------------------------------- next turns */

/* What stands behind an answer up to the next answer. */
static int encode_next(const struct cli_task_maker *maker, const struct cli_task_question *question,
                       struct hre_tokens *tokens_out)
{
    struct hre_chat_text text = {0};
    size_t begin = 0;
    hr_status_t status = HR_OK;
    if (maker->chat) {
        struct hre_chat_message messages[] = {
            {"user", "x"}, {"assistant", "x"}, {"user", question->text.data}};
        status = hre_chat_format(maker->chat, messages, 3, NULL, &text);
        begin = status == HR_OK ? text.plain[1].end : 0;
    } else {
        status = hre_bytes_append(&text.text, "\n\n", 2);
        if (status == HR_OK)
            status = append(&text.text, &question->text);
        if (status == HR_OK)
            status = hre_bytes_append(&text.text, "\n", 1);
    }
    if (status == HR_OK)
        status = append(&text.text, &question->prefix);
    int code = status == HR_OK ? 0 : cli_fail_engine("chat", status);
    if (code == 0) {
        struct hre_range plain = {0};
        struct hre_chat_text rest = {
            .text = {.data = text.text.data + begin, .bytes = text.text.bytes - begin}};
        if (maker->chat) {
            plain = (struct hre_range){text.plain[2].begin - begin, text.plain[2].end - begin};
            rest.plain = &plain;
            rest.n_plain = 1;
        }
        code = encode(maker, &rest, false, tokens_out);
    }
    hre_chat_text_fini(&text);
    return code;
}

/* --------------------------------------------------------------------------------------------- fit */

struct counting {
    const struct cli_task_maker *maker;
    unsigned answer_tokens;
};

static int64_t count_tokens(void *context, const struct cli_task_text *text)
{
    const struct counting *c = context;
    struct opening opening = {0};
    struct hre_tokens tokens = {0};
    int64_t n = -1;
    if (encode_opening(c->maker, text, &opening, &tokens) == 0)
        n = (int64_t)tokens.count;
    hre_tokens_fini(&tokens);
    hre_chat_text_fini(&opening.chat);
    for (size_t i = 1; i < text->n_questions && n >= 0; i++) {
        memset(&tokens, 0, sizeof tokens);
        n = encode_next(c->maker, &text->question[i], &tokens) == 0 ? n + (int64_t)tokens.count
                                                                    : -1;
        hre_tokens_fini(&tokens);
    }
    return n < 0 ? -1 : n + (int64_t)text->n_questions * c->answer_tokens;
}

static int fit(const struct cli_task_maker *maker, const struct cli_task *task, uint64_t seed,
               struct cli_task_text *text_out)
{
    struct cli_task_request request = {
        .source = maker->source, .seed = seed, .tokens = maker->tokens};
    struct counting counting = {maker, answer_tokens(maker, task)};
    int64_t n;
    enum cli_task_fit result = cli_task_fit(task, &request, count_tokens, &counting, text_out, &n);
    if (result == CLI_FIT_TOO_SMALL)
        return cli_fail("task '%s' takes at least %lld tokens; --tokens-context is %llu",
                        task->name, (long long)n, (unsigned long long)maker->tokens);
    if (result == CLI_FIT_FAILED)
        return cli_fail("task '%s': the text could not be made", task->name);
    if (task->units_max && request.units == task->units_max(&request) &&
        n < (int64_t)(maker->tokens - maker->tokens / 10))
        cli_note("task '%s': %zu words are too few for %llu tokens, the text has %lld", task->name,
                 maker->source->n_words, (unsigned long long)maker->tokens, (long long)n);
    return 0;
}

/* ------------------------------------------------------------------------------------------- tokens */

/* ends[t]: byte behind token t. False where tokens and text do not go together byte by byte (a
 * tokenizer that composes characters). */
static bool token_ends(const struct cli_task_maker *maker, const struct hre_tokens *tokens,
                       const struct hre_bytes *text, size_t *ends)
{
    size_t at = 0;
    struct hre_text piece;
    for (size_t t = 0; t < tokens->count; t++) {
        if (hre_tokenizer_piece(maker->model->tokenizer, tokens->ids[t], &piece) != HR_OK)
            return false;
        bool here = text->bytes - at >= piece.bytes &&
                    memcmp(text->data + at, piece.data, piece.bytes) == 0;
        if (!here && !(t == 0 && tokens->ids[0] == hre_tokenizer_bos(maker->model->tokenizer)))
            return false;
        at += here ? piece.bytes : 0; /* a marker that was added is no part of the text */
        ends[t] = at;
    }
    return at == text->bytes;
}

/* Tokens that touch the evidence. Spans ascend or not; rows come once each. */
static int find_rows(const struct cli_task_question *question, size_t context_begin,
                     const size_t *ends, size_t n_tokens, struct cli_task_turn *turn)
{
    turn->rows = calloc(n_tokens, sizeof *turn->rows);
    if (!turn->rows)
        return cli_fail("out of memory");
    for (size_t t = 0; t < n_tokens; t++) {
        size_t begin = t ? ends[t - 1] : 0;
        for (size_t i = 0; i < question->n_evidence; i++) {
            struct cli_span s = question->evidence[i];
            if (begin < context_begin + s.end && ends[t] > context_begin + s.begin) {
                turn->rows[turn->n_rows++] = (uint32_t)t;
                break;
            }
        }
    }
    return 0;
}

static char *copy_text(const struct hre_bytes *bytes)
{
    char *copy = malloc(bytes->bytes + 1);
    if (copy)
        memcpy(copy, bytes->data, bytes->bytes + 1);
    return copy;
}

/* Cuts the first turn's tokens where the question begins. */
static int split_opening(const struct cli_task_maker *maker, const struct opening *opening,
                         struct hre_tokens *tokens, const size_t *ends,
                         struct cli_task_prompt *prompt)
{
    struct cli_task_turn *turn = &prompt->turns[0];
    size_t n = 0;
    while (n + 1 < tokens->count && (maker->question_at_once || ends[n] <= opening->question_begin))
        n++;
    turn->n = (uint32_t)(tokens->count - n);
    turn->ids = malloc(turn->n * sizeof *turn->ids);
    if (!turn->ids)
        return cli_fail("out of memory");
    memcpy(turn->ids, tokens->ids + n, turn->n * sizeof *turn->ids);
    prompt->ids = tokens->ids;
    prompt->n = (uint32_t)n;
    tokens->ids = NULL;
    return 0;
}

/* Ends of tokens from their number alone, where bytes do not tell. */
static void guess_ends(const struct hre_tokens *tokens, const struct hre_bytes *text, size_t *ends)
{
    for (size_t t = 0; t < tokens->count; t++)
        ends[t] = text->bytes * (t + 1) / tokens->count;
}

static int read_opening(const struct cli_task_maker *maker, const struct cli_task_text *text,
                        struct cli_task_prompt *prompt)
{
    struct opening opening = {0};
    struct hre_tokens tokens = {0};
    size_t *ends = NULL;
    int code = encode_opening(maker, text, &opening, &tokens);
    if (code == 0 && !(ends = calloc(tokens.count + 1, sizeof *ends)))
        code = cli_fail("out of memory");
    if (code == 0) {
        bool exact = token_ends(maker, &tokens, &opening.chat.text, ends);
        if (!exact)
            guess_ends(&tokens, &opening.chat.text, ends);
        for (size_t i = 0; i < text->n_questions && exact && code == 0; i++)
            code = find_rows(&text->question[i], opening.context_begin, ends, tokens.count,
                             &prompt->turns[i]);
        if (code == 0)
            code = split_opening(maker, &opening, &tokens, ends, prompt);
    }
    free(ends);
    hre_tokens_fini(&tokens);
    hre_chat_text_fini(&opening.chat);
    return code;
}

static int read_next(const struct cli_task_maker *maker, const struct cli_task_text *text, size_t i,
                     struct cli_task_prompt *prompt)
{
    struct hre_tokens tokens = {0};
    int code = encode_next(maker, &text->question[i], &tokens);
    if (code)
        return code;
    prompt->turns[i].ids = tokens.ids;
    prompt->turns[i].n = (uint32_t)tokens.count;
    return 0;
}

static int make_text_prompt(const struct cli_task_maker *maker, const struct cli_task *task,
                            uint64_t seed, struct cli_task_prompt *prompt)
{
    struct cli_task_text text = {.n_questions = 0};
    int code = fit(maker, task, seed, &text);
    if (code)
        return code;
    prompt->answer_tokens = answer_tokens(maker, task);
    prompt->n_turns = text.n_questions;
    prompt->turns = calloc(text.n_questions, sizeof *prompt->turns);
    code = prompt->turns ? read_opening(maker, &text, prompt) : cli_fail("out of memory");
    for (size_t i = 0; i < prompt->n_turns && code == 0; i++) {
        prompt->turns[i].references = text.question[i].references;
        prompt->turns[i].question = copy_text(&text.question[i].text);
        code = prompt->turns[i].question ? 0 : cli_fail("out of memory");
        if (code == 0 && i > 0)
            code = read_next(maker, &text, i, prompt);
    }
    cli_task_text_fini(&text);
    return code;
}

/* --------------------------------------------------------------------------------- embedded model */

static int name_of(const struct cli_task_maker *maker, uint32_t id, char *name, size_t name_bytes)
{
    struct hre_text piece;
    hr_status_t status = hre_tokenizer_piece(maker->model->tokenizer, id, &piece);
    if (status != HR_OK)
        return cli_fail_engine("text", status);
    snprintf(name, name_bytes, "%.*s", (int)piece.bytes, piece.data);
    return 0;
}

/* A turn is the true value of the question before, then a key. */
static int make_tiny_turn(const struct cli_task_maker *maker, const uint32_t *text, uint32_t body,
                          const uint32_t *answers, size_t i, struct cli_task_prompt *prompt)
{
    struct cli_task_turn *turn = &prompt->turns[i];
    uint32_t key = text[body + 2 * i];
    turn->question = malloc(CLI_TASK_REFERENCE_BYTES_MAX);
    turn->ids = calloc(2, sizeof *turn->ids);
    turn->rows = calloc(1, sizeof *turn->rows);
    if (!turn->question || !turn->ids || !turn->rows)
        return cli_fail("out of memory");
    if (i > 0)
        turn->ids[turn->n++] = answers[i - 1];
    turn->ids[turn->n++] = key;
    for (uint32_t t = 0; t < body && turn->n_rows == 0; t++) {
        if (text[t] == key)
            turn->rows[turn->n_rows++] = t + 1;
    }
    turn->references.n = 1;
    int code = name_of(maker, key, turn->question, CLI_TASK_REFERENCE_BYTES_MAX);
    return code ? code
                : name_of(maker, answers[i], turn->references.text[0],
                          sizeof turn->references.text[0]);
}

static int make_tiny_prompt(const struct cli_task_maker *maker, const struct cli_task *task,
                            uint64_t seed, struct cli_task_prompt *prompt)
{
    uint32_t n = (uint32_t)maker->tokens, keys = TINY_KEYS;
    while (keys > 1 && n < 2 * keys + (8 * keys + 2) / 3)
        keys--;
    uint32_t *text = calloc(n, sizeof *text), answers[TINY_KEYS];
    prompt->turns = calloc(keys, sizeof *prompt->turns);
    if (!text || !prompt->turns) {
        free(text);
        return cli_fail("out of memory");
    }
    hr_status_t status = hre_tiny_text(n, keys, seed, text, answers);
    prompt->ids = text;
    prompt->n = n - 2 * keys;
    prompt->n_turns = keys;
    prompt->answer_tokens = 1;
    prompt->forget_answers = true;
    int code = status == HR_OK ? 0 : cli_fail_engine(task->name, status);
    for (size_t i = 0; i < keys && code == 0; i++)
        code = make_tiny_turn(maker, text, prompt->n, answers, i, prompt);
    return code;
}

/* ------------------------------------------------------------------------------------------- prompt */

int cli_task_prompt_make(const struct cli_task_maker *maker, const struct cli_task *task,
                         uint64_t seed, struct cli_task_prompt *prompt_out)
{
    struct cli_task_prompt prompt = {.n = 0};
    int code = task->make ? make_text_prompt(maker, task, seed, &prompt)
                          : make_tiny_prompt(maker, task, seed, &prompt);
    if (code) {
        cli_task_prompt_fini(&prompt);
        return code;
    }
    prompt.tokens_max = prompt.n;
    for (size_t i = 0; i < prompt.n_turns; i++)
        prompt.tokens_max += prompt.turns[i].n + (prompt.forget_answers ? 0 : prompt.answer_tokens);
    *prompt_out = prompt;
    return 0;
}

void cli_task_prompt_fini(struct cli_task_prompt *prompt)
{
    for (size_t i = 0; prompt->turns && i < prompt->n_turns; i++) {
        free(prompt->turns[i].question);
        free(prompt->turns[i].ids);
        free(prompt->turns[i].rows);
    }
    free(prompt->turns);
    free(prompt->ids);
    memset(prompt, 0, sizeof *prompt);
}
