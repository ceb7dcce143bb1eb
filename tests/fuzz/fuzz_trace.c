/*
 * Fuzz target: the files of a trace. The first byte says which: 'M' a meta.json, anything else a
 * .npy file. What is accepted must be whole: a meta that is written again reads back as the same, and an
 * array's numbers lie within its bytes. replay_main.c runs it over a corpus; built with clang's fuzzer it
 * finds new ones: `tests/fuzz_trace -max_len=4000 CORPUS`.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/npy.h"
#include "cli/trace.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static volatile uint64_t sink;

static void require(int condition, const char *what)
{
    if (!condition) {
        fprintf(stderr, "fuzz_trace: %s\n", what);
        abort();
    }
}

static void check_meta(const struct cli_trace_meta *m)
{
    require(m->model && m->n_kv_heads && m->n_q_heads % m->n_kv_heads == 0, "heads");
    require(m->head_dim % 8 == 0 && m->n_tokens && m->scale > 0 && m->scored.n, "shape");
    for (uint32_t i = 0; i < m->scored.n; i++)
        require(m->scored.at[i] < m->n_tokens && (i == 0 || m->scored.at[i] > m->scored.at[i - 1]),
                "positions");
    for (uint32_t i = 0; i < m->seen.n; i++)
        sink += m->seen.at[i];
    for (uint32_t i = 0; m->rope_layout != HR_ROPE_NONE && i < m->n_rot / 2; i++)
        sink += m->rope_frequencies[i] > 0.5f;
}

static void try_meta(const char *text, size_t n)
{
    char why[CLI_TRACE_WHY_BYTES];
    struct cli_trace_meta meta, again;
    if (!cli_trace_meta_parse(text, n, &meta, why)) {
        require(strlen(why) > 0 && !strchr(why, '\n'), "a reason in one line");
        return;
    }
    check_meta(&meta);
    cJSON *json = cli_trace_meta_json(&meta);
    char *written = cJSON_Print(json);
    require(written && cli_trace_meta_parse(written, strlen(written), &again, why), "written meta");
    require(again.n_tokens == meta.n_tokens && again.scored.n == meta.scored.n &&
                again.rope_layout == meta.rope_layout && again.n_rot == meta.n_rot &&
                strcmp(again.model, meta.model) == 0,
            "the same meta");
    cJSON_free(written);
    cJSON_Delete(json);
    cli_trace_meta_fini(&meta);
    cli_trace_meta_fini(&again);
}

static void try_array(const uint8_t *bytes, size_t n)
{
    char why[CLI_NPY_WHY_BYTES];
    struct cli_npy npy;
    struct cli_npy_want want = {.n_dims = 0};
    if (!cli_npy_parse(bytes, n, &npy, why)) {
        require(strlen(why) > 0 && !strchr(why, '\n'), "a reason in one line");
        return;
    }
    want.dtype = npy.dtype;
    want.n_dims = npy.n_dims;
    memcpy(want.shape, npy.shape, sizeof want.shape);
    const uint8_t *numbers = cli_npy_check(bytes, n, &want, why);
    if (!numbers)
        return;
    require(numbers + npy.count * npy.item_bytes == bytes + n, "numbers up to the end");
    for (uint64_t i = 0; i < npy.count * npy.item_bytes; i++)
        sink += numbers[i];
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size && data[0] == 'M')
        try_meta((const char *)data + 1, size - 1);
    else if (size)
        try_array(data + 1, size - 1);
    return 0;
}
