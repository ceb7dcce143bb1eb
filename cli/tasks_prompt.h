/* A task's text as the tokens of a model: what is read at once, then turns of question and answer. */
#ifndef CLI_TASKS_PROMPT_H
#define CLI_TASKS_PROMPT_H

#include "engine/chat.h"
#include "cli/setup.h"
#include "cli/tasks.h"

struct cli_task_turn {
    char *question; /* for people */
    uint32_t *ids;  /* [n] read one by one, by the recipe, before the answer */
    uint32_t n;
    uint32_t *rows; /* [n_rows] tokens of the context that hold the answer; may be none */
    uint32_t n_rows;
    struct cli_references references;
};

struct cli_task_prompt {
    uint32_t *ids; /* [n] read at once, attended exactly */
    uint32_t n;
    struct cli_task_turn *turns; /* [n_turns] */
    size_t n_turns;
    uint32_t answer_tokens; /* most of one answer */
    bool forget_answers;    /* what was said is not kept: the truth is part of the next turn */
    uint32_t tokens_max;    /* all turns with the longest answers */
};

/* What prompts of a run have in common. */
struct cli_task_maker {
    const struct cli_model *model;
    const struct hre_chat_template *chat; /* NULL: the model has none */
    const struct cli_task_source *source;
    uint64_t tokens;        /* that a prompt and its answers may take */
    uint64_t answer_tokens; /* 0: the task's own */
    bool question_at_once;  /* the first question is read with the context */
};

bool cli_model_is_tiny(const struct cli_model *model);

/* As long as it may be. 0, or an exit code after a message. */
int cli_task_prompt_make(const struct cli_task_maker *maker, const struct cli_task *task,
                         uint64_t seed, struct cli_task_prompt *prompt_out);
void cli_task_prompt_fini(struct cli_task_prompt *prompt);

#endif
