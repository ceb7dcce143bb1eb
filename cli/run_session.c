/* --save, --open and --fork of a run. Beside the rows a session keeps the tokens, the last logits and how the text was attended. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/logits.h"
#include "cli/out.h"
#include "cli/run.h"

#define VERSION 1

/* Before the tokens and the logits. */
struct head {
    char magic[8];
    uint32_t version, n_ids, pending, tokens_max, vocab, zero;
    double moved, tolerance;
    uint64_t seed;
};
static const char magic[8] = "HRTOOL1";

int cli_run_ran(struct cli_run *run, const uint32_t *ids, uint32_t n)
{
    if (n > run->ids_max - run->n_ids) {
        uint32_t most = 2 * run->ids_max > run->n_ids + n ? 2 * run->ids_max : run->n_ids + n + 256;
        uint32_t *more = realloc(run->ids, (size_t)most * sizeof *more);
        if (!more)
            return cli_fail("out of memory");
        run->ids = more;
        run->ids_max = most;
    }
    memcpy(run->ids + run->n_ids, ids, n * sizeof *ids);
    run->n_ids += n;
    run->pending = CLI_NO_TOKEN;
    return 0;
}

/* ---------------------------------------------------------------------------------------- open */

void cli_saved_fini(struct cli_saved *saved)
{
    free(saved->ids);
    free(saved->logits);
}

static const char *dtype_name(hr_dtype_t dtype)
{
    const char *name = hr_dtype_name(dtype);
    return name ? name : "bf16";
}

static int unpack(struct cli_run *run, const char *dir, const unsigned char *data, uint64_t n)
{
    struct cli_saved *s = &run->saved;
    struct head h;
    size_t vocab = run->model.info->vocab;
    if (n < sizeof h || memcmp(data, magic, sizeof magic) != 0)
        return cli_fail("open: session %s was not saved by this tool; it has no tokens", dir);
    memcpy(&h, data, sizeof h);
    if (h.version != VERSION)
        return cli_fail("open: session %s: version %u of the tool's part; this one reads %d", dir,
                        h.version, VERSION);
    if (h.vocab != vocab || n != sizeof h + h.n_ids * sizeof(uint32_t) + vocab * sizeof(float))
        return cli_fail("open: session %s is of another model: its vocabulary has %u tokens, here "
                        "%zu",
                        dir, h.vocab, vocab);
    s->ids = malloc(((size_t)h.n_ids + 1) * sizeof *s->ids);
    s->logits = malloc(vocab * sizeof *s->logits);
    if (!s->ids || !s->logits)
        return cli_fail("out of memory");
    memcpy(s->ids, data + sizeof h, h.n_ids * sizeof *s->ids);
    memcpy(s->logits, data + sizeof h + h.n_ids * sizeof *s->ids, vocab * sizeof *s->logits);
    for (uint32_t i = 0; i < h.n_ids; i++)
        if (s->ids[i] >= vocab)
            return cli_fail("open: session %s: token %u has id %u", dir, i, s->ids[i]);
    if (h.pending != CLI_NO_TOKEN && h.pending >= vocab)
        return cli_fail("open: session %s: its newest token has id %u", dir, h.pending);
    s->n_ids = h.n_ids;
    s->pending = h.pending;
    s->tokens_max = h.tokens_max;
    s->moved = h.moved;
    s->tolerance = h.tolerance;
    s->seed = h.seed;
    return 0;
}

int cli_run_open_begin(struct cli_run *run)
{
    const struct cli_run_options *o = run->options;
    struct cli_saved *s = &run->saved;
    struct hr_session_info info = {.struct_size = sizeof info};
    uint64_t id[4];
    run->recipe = o->recipe;
    run->recipe.head_gates = run->head_gates;
    run->pending = CLI_NO_TOKEN;
    if (!o->open_dir)
        return 0;
    hr_status_t status = hr_session_info_get(o->open_dir, &info);
    if (status != HR_OK)
        return cli_fail_status("open", status);
    cli_model_id(&run->model, id);
    if (memcmp(id, info.model_id, sizeof id) != 0)
        return cli_fail("open: session %s is of another model: weights or tokenizer differ",
                        o->open_dir);
    unsigned char *data = malloc(info.user_bytes + 1);
    if (!data)
        return cli_fail("out of memory");
    status = hr_session_user_read(o->open_dir, data, info.user_bytes);
    int code = status == HR_OK ? unpack(run, o->open_dir, data, info.user_bytes)
                               : cli_fail_status("open", status);
    free(data);
    if (code == 0 && s->n_ids != info.n_tokens)
        code = cli_fail("open: session %s has %u tokens and rows of %u", o->open_dir, s->n_ids,
                        info.n_tokens);
    if (code)
        return code;
    memcpy(s->recipe, info.recipe, sizeof s->recipe);
    s->dtype = dtype_name(info.dtype);
    s->opened = true;
    if (!o->recipe_given)
        run->recipe.name = s->recipe;
    if (!o->dtype_given)
        run->recipe.dtype = s->dtype;
    if (!o->moved_given)
        run->recipe.moved = s->moved;
    if (!o->tolerance_given)
        run->recipe.tolerance = s->tolerance;
    if (!o->seed_given)
        run->recipe.seed = s->seed;
    run->pending = s->pending;
    return 0;
}

/* ---------------------------------------------------------------------------------------- save */

int cli_run_save_check(const struct cli_run_options *o)
{
    if (!o->save_dir)
        return 0;
    char parent[4096];
    struct stat st;
    if (lstat(o->save_dir, &st) == 0 && S_ISLNK(st.st_mode))
        return cli_fail("save: '%s' is a symbolic link, and links are not followed", o->save_dir);
    if (stat(o->save_dir, &st) == 0 && !S_ISDIR(st.st_mode))
        return cli_fail("save: '%s' is not a folder", o->save_dir);
    if (access(o->save_dir, F_OK) == 0)
        return access(o->save_dir, R_OK | W_OK | X_OK) == 0
                   ? 0
                   : cli_fail("save: folder '%s' cannot be written: %s", o->save_dir,
                              strerror(errno));
    snprintf(parent, sizeof parent, "%s", o->save_dir);
    for (size_t n = strlen(parent); n > 1 && parent[n - 1] == '/';)
        parent[--n] = '\0';
    char *slash = strrchr(parent, '/');
    if (slash)
        slash[slash == parent] = '\0';
    const char *where = slash ? parent : ".";
    return access(where, W_OK | X_OK) == 0
               ? 0
               : cli_fail("save: folder '%s' cannot be made in '%s': %s", o->save_dir, where,
                          strerror(errno));
}

int cli_run_save_claim(struct cli_run *run)
{
    const char *dir = run->options->save_dir;
    hr_status_t status = dir ? hr_sequence_claim(run->cache.sequence, dir) : HR_OK;
    return status == HR_OK ? 0 : cli_fail_status("save", status);
}

static hr_durability_t durability_of(const char *name)
{
    return strcmp(name, "none") == 0     ? HR_DURABILITY_NONE
           : strcmp(name, "strict") == 0 ? HR_DURABILITY_STRICT
                                         : HR_DURABILITY_RELAXED;
}

int cli_run_save(struct cli_run *run)
{
    const struct cli_run_options *o = run->options;
    size_t vocab = run->model.info->vocab;
    struct head h = {.version = VERSION,
                     .n_ids = run->n_ids,
                     .pending = run->pending,
                     .tokens_max = run->tokens_max,
                     .vocab = (uint32_t)vocab,
                     .moved = run->recipe.moved,
                     .tolerance = run->recipe.tolerance,
                     .seed = run->recipe.seed};
    if (!o->save_dir)
        return 0;
    if (run->n_ids != hre_session_length(run->session, 0))
        return cli_fail("save: nothing is saved of a text that was not read to its end");
    memcpy(h.magic, magic, sizeof magic);
    size_t ids = run->n_ids * sizeof *run->ids, bytes = sizeof h + ids + vocab * sizeof(float);
    unsigned char *data = malloc(bytes);
    if (!data)
        return cli_fail("out of memory");
    memcpy(data, &h, sizeof h);
    memcpy(data + sizeof h, run->ids, ids);
    memcpy(data + sizeof h + ids, run->logits, vocab * sizeof(float));
    struct hr_save_options options;
    hr_save_options_init(&options);
    options.durability = durability_of(o->save_mode);
    options.user = data;
    options.user_bytes = bytes;
    cli_model_id(&run->model, options.model_id);
    uint64_t begin = cli_now_ns();
    hr_status_t status = hr_sequence_save(run->cache.sequence, o->save_dir, &options);
    run->saved.save_ns = cli_now_ns() - begin;
    free(data);
    if (status != HR_OK)
        return cli_fail_status("save", status);
    struct hr_session_info info = {.struct_size = sizeof info};
    if (hr_session_info_get(o->save_dir, &info) == HR_OK)
        run->saved.save_bytes = info.file_bytes;
    return 0;
}

/* ---------------------------------------------------------------------------------------- fork */

static int fork_one(struct cli_run *run, uint64_t number, const float *logits,
                    int (*generate)(struct cli_run *run))
{
    hre_session_t *whole = run->session;
    hr_sequence_t *fork = NULL;
    struct hre_session_options options;
    uint32_t n_ids = run->n_ids, pending = run->pending;
    uint64_t seed = run->recipe.seed;
    hr_status_t status = hr_sequence_fork(run->cache.sequence, &fork);
    if (status != HR_OK)
        return cli_fail_status("fork", status);
    hre_session_options_init(&options);
    options.sequences = &fork;
    options.n_sequences = 1;
    options.tokens_max = run->tokens_max;
    options.resume = 1;
    options.last_id = run->n_ids ? run->ids[run->n_ids - 1] : 0;
    status = hre_session_create(run->model.model, &options, &run->session);
    int code = status == HR_OK ? 0 : cli_fail_engine("fork", status);
    if (code == 0) {
        memcpy(run->logits, logits, run->model.info->vocab * sizeof *logits);
        fprintf(cli_out(), "--- %llu ---\n", (unsigned long long)number + 1);
        run->recipe.seed = seed + number;
        run->generated = 0;
        run->ended = NULL;
        code = generate(run);
        hre_session_destroy(run->session);
    }
    run->session = whole;
    run->recipe.seed = seed;
    run->n_ids = n_ids;
    run->pending = pending;
    hr_sequence_destroy(fork);
    return code;
}

int cli_run_forks(struct cli_run *run, int (*generate)(struct cli_run *run))
{
    size_t vocab = run->model.info->vocab;
    float *logits = malloc(vocab * sizeof *logits);
    int code = logits ? 0 : cli_fail("out of memory");
    uint64_t generated = 0;
    if (code == 0)
        memcpy(logits, run->logits, vocab * sizeof *logits);
    for (uint64_t i = 0; i < run->options->forks && code == 0 && !cli_stop_signal(); i++) {
        code = fork_one(run, i, logits, generate);
        generated += run->generated;
    }
    run->generated = (uint32_t)generated;
    if (code == 0)
        memcpy(run->logits, logits, vocab * sizeof *logits);
    free(logits);
    return code;
}
