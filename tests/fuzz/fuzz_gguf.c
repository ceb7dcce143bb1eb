/*
 * Fuzz target: any bytes as a GGUF file, read to the last tensor and bound as a model.
 * replay_main.c runs it over a corpus; built with clang's fuzzer it finds new ones:
 * `tests/fuzz_gguf -max_len=20000 CORPUS`.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "engine/model.h"

#define TOUCH_BYTES_MAX 65536

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static volatile uint64_t sink;

static void touch_tensors(const hre_gguf_t *g)
{
    for (uint64_t i = 0; i < hre_gguf_tensor_count(g); i++) {
        const struct hre_gguf_tensor *t = hre_gguf_tensor_at(g, i);
        const unsigned char *p = t->data;

        for (uint64_t j = 0; j < t->n_bytes && j < TOUCH_BYTES_MAX; j++) {
            sink += p[j];
        }
        sink += t->n_bytes ? p[t->n_bytes - 1] : 0;
    }
}

static void touch_keys(const hre_gguf_t *g)
{
    static const char *const keys[] = {"general.architecture", "general.alignment",
                                       "tokenizer.ggml.tokens", "a.shorts"};
    struct hre_gguf_string s;
    struct hre_gguf_array a;
    uint64_t u;
    double d;

    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
        size_t offset = 0;

        sink += hre_gguf_get_u64(g, keys[i], &u) == HR_OK;
        sink += hre_gguf_get_f64(g, keys[i], &d) == HR_OK;
        if (hre_gguf_get_string(g, keys[i], &s) == HR_OK && s.length) {
            sink += (uint64_t)s.data[s.length - 1];
        }
        if (hre_gguf_get_array(g, keys[i], &a) != HR_OK) {
            continue;
        }
        for (uint64_t j = 0; j < a.count; j++) {
            s = hre_gguf_array_string_next(&a, &offset);
            sink += s.length + hre_gguf_array_u64(&a, j) + (hre_gguf_array_f64(&a, j) > 0.0);
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    unsigned char *copy = malloc(size ? size : 1); /* aligned, and exact for the sanitizer */
    struct hre_model *model = calloc(1, sizeof(*model));
    hre_gguf_t *g;

    if (!copy || !model) {
        abort();
    }
    if (size) {
        memcpy(copy, data, size);
    }
    if (hre_gguf_open_memory(copy, size, "fuzz", &g) == HR_OK) {
        touch_tensors(g);
        touch_keys(g);
        model->gguf = g;
        model->ops = &hre_ops_ref;
        sink += hre_model_bind(model) == HR_OK;
    }
    hre_model_close(model);
    free(copy);
    return 0;
}
