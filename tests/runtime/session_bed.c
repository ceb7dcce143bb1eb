#include "tests/runtime/session_bed.h"

#include <sys/stat.h>
#include <unistd.h>

const struct shape session_shape = {.n_layers = LAYERS,
                                    .n_q = HEADS,
                                    .n_kv = KV,
                                    .dk = D,
                                    .dv = D,
                                    .dtype = HR_DTYPE_BF16,
                                    .rope = HR_ROPE_HALF};

float session_k[N * KV * D], session_v[N * KV * D], session_q[N * WIDTH];
float got[MORE * LAYERS * WIDTH], want[MORE * LAYERS * WIDTH];
char root[1024], dir[1100];

void wipe(const char *path)
{
    char command[1200];
    snprintf(command, sizeof command, "rm -rf '%s'", path);
    assert_int_equal(system(command), 0);
}

int setup(void **state)
{
    struct random r = {.state = 91};
    (void)state;
    rows_make(&r, &session_shape, N, session_k, session_v);
    queries_make(&r, &session_shape, N, session_q);
    snprintf(root, sizeof root, "%s/session-test-%ld", disk_dir(), (long)getpid());
    snprintf(dir, sizeof dir, "%s/one", root);
    return mkdir(root, 0700);
}

int teardown(void **state)
{
    (void)state;
    wipe(root);
    return 0;
}

hr_runtime_t *runtime_for(bool file)
{
    hr_runtime_t *rt = runtime_make(256u << 20, file ? 512u << 10 : 128u << 20,
                                    file ? disk_dir() : NULL, 128u << 20, HR_IO_AUTO);
    assert_non_null(rt);
    return rt;
}

void options_of(struct hr_sequence_options *o, const char *recipe)
{
    static const float gates[LAYERS * KV] = {1.0f, 0.0f, 0.0f, 1.0f};
    options_for(&session_shape, N, recipe, 0.05, o);
    o->head_gates = gates;
}

hr_sequence_t *sequence_make(hr_runtime_t *rt, const char *recipe)
{
    struct hr_sequence_options o;
    hr_sequence_t *s = NULL;
    options_of(&o, recipe);
    assert_ok(hr_sequence_create(rt, &o, &s));
    return s;
}

hr_sequence_t *sequence_open(hr_runtime_t *rt, const char *recipe)
{
    struct hr_sequence_options o;
    hr_sequence_t *s = NULL;
    options_of(&o, recipe);
    assert_ok(hr_sequence_open(rt, dir, &o, NULL, &s));
    return s;
}

void append(hr_sequence_t *s, uint32_t layer, uint32_t first, uint32_t n)
{
    assert_ok(rows_append(s, &session_shape, layer, session_k, session_v, first, n));
}

void attend(hr_sequence_t *s, uint32_t layer, hr_attend_mode_t mode, uint32_t first, uint32_t n,
            float *out)
{
    assert_ok(queries_attend(s, &session_shape, layer, mode, session_q, first, n, out, NULL));
}

void prompt(hr_sequence_t *s, uint32_t n)
{
    static float out[N * WIDTH];
    for (uint32_t i = 0; i < LAYERS && n > 0; i++) {
        append(s, i, 0, n);
        attend(s, i, HR_ATTEND_EXACT, 0, n, out);
    }
}

void steps(hr_sequence_t *s, uint32_t first, uint32_t n, float *out)
{
    for (uint32_t t = first; t < first + n; t++) {
        for (uint32_t i = 0; i < LAYERS; i++, out += WIDTH) {
            append(s, i, t, 1);
            attend(s, i, HR_ATTEND_AUTO, t, 1, out);
        }
    }
}

void save(hr_sequence_t *s, hr_durability_t durability)
{
    struct hr_save_options o;
    hr_save_options_init(&o);
    o.durability = durability;
    o.user = "tokens";
    o.user_bytes = 6;
    o.model_id[3] = 42;
    assert_ok(hr_sequence_save(s, dir, &o));
}

void same(const char *what, uint32_t n)
{
    for (size_t i = 0; i < (size_t)n * LAYERS * WIDTH; i++) {
        if (memcmp(&got[i], &want[i], sizeof *got) != 0) {
            fail_msg("%s: step %zu, number %zu: %g, not %g", what, i / (LAYERS * WIDTH), i,
                     (double)got[i], (double)want[i]);
        }
    }
}
