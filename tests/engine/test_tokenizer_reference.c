/*
 * The tokenizer against the PyPI package `tokenizers`, with the real vocabulary of SmolLM2: a
 * megabyte of mixed text with all pre-tokenizers, and the class of every code point. Wants the
 * model in the cache folder, Python and the package; what is missing is printed, and the test
 * counts as skipped.
 */
#include <stdbool.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "engine/unicode.h"
#include "engine/unicode_nfc.h"
#include "tokenizer_data.h"

#define MODEL      "SmolLM2-135M-Instruct.Q4_1.gguf"
#define SCRIPT     HR_SOURCE_DIR "/tests/reference/tokenizer_reference.py"
#define PATH_BYTES 768
#define SKIPPED    77

static const char *const pre_names[] = {"smollm", "gpt-2", "llama-bpe", "qwen2"};
static int failures;

static void check(bool ok, const char *what, const char *detail)
{
    printf("%s %s%s%s\n", ok ? "ok  " : "FAIL", what, detail ? ": " : "", detail ? detail : "");
    failures += !ok;
}

static double seconds(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void cache_path(char *path, const char *name)
{
    const char *cache = getenv("HEADRACE_CACHE"), *home = getenv("HOME");

    if (cache && *cache)
        snprintf(path, PATH_BYTES, "%s/%s", cache, name);
    else
        snprintf(path, PATH_BYTES, "%s/.cache/headrace/%s", home ? home : "", name);
}

/* A Python that has the package: HEADRACE_PYTHON, the cache's environment, or python3. */
static bool find_python(char *python)
{
    char command[PATH_BYTES + 64], cached[PATH_BYTES];
    const char *choices[] = {getenv("HEADRACE_PYTHON"), cached, "python3"};

    cache_path(cached, "venv/bin/python");
    for (size_t i = 0; i < 3; i++) {
        if (!choices[i] || !*choices[i])
            continue;
        snprintf(command, sizeof(command), "'%s' -c 'import tokenizers' >/dev/null 2>&1",
                 choices[i]);
        if (system(command) == 0) {
            snprintf(python, PATH_BYTES, "%s", choices[i]);
            return true;
        }
    }
    return false;
}

static struct numbers read_numbers(const char *folder, const char *name, const char *suffix)
{
    char path[2 * PATH_BYTES];

    snprintf(path, sizeof(path), "%s/%s%s", folder, name, suffix);
    struct file file = file_read(path);
    if (!file.data) {
        fprintf(stderr, "cannot read %s\n", path);
        exit(1);
    }
    /* Little endian in the file. */
    struct numbers numbers = {malloc(file.bytes + 4), file.bytes / 4};
    for (size_t i = 0; i < numbers.count; i++) {
        const unsigned char *b = (const unsigned char *)file.data + 4 * i;
        numbers.values[i] =
            (uint32_t)b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24;
    }
    free(file.data);
    return numbers;
}

/* The model's tokenizer, with another pre-tokenizer. */
static hre_tokenizer_t *create_with(const hre_gguf_t *gguf, const char *pre)
{
    struct hre_gguf_array tokens, types, merges;
    struct hre_vocab vocab = {.model = "gpt2",
                              .pre = pre,
                              .bos_id = HRE_TOKEN_NONE,
                              .eos_id = HRE_TOKEN_NONE,
                              .eot_id = HRE_TOKEN_NONE};
    hre_tokenizer_t *tokenizer = NULL;

    if (hre_gguf_get_array(gguf, "tokenizer.ggml.tokens", &tokens) != HR_OK ||
        hre_gguf_get_array(gguf, "tokenizer.ggml.token_type", &types) != HR_OK ||
        hre_gguf_get_array(gguf, "tokenizer.ggml.merges", &merges) != HR_OK) {
        fprintf(stderr, "%s\n", hre_last_error());
        exit(1);
    }
    struct hre_text *token_texts = malloc(tokens.count * sizeof(*token_texts));
    struct hre_text *merge_texts = malloc(merges.count * sizeof(*merge_texts));
    int32_t *token_types = malloc(tokens.count * sizeof(*token_types));
    size_t offset = 0;
    for (uint64_t i = 0; i < tokens.count; i++) {
        struct hre_gguf_string s = hre_gguf_array_string_next(&tokens, &offset);
        token_texts[i] = (struct hre_text){s.data, s.length};
        token_types[i] = (int32_t)hre_gguf_array_u64(&types, i);
    }
    offset = 0;
    for (uint64_t i = 0; i < merges.count; i++) {
        struct hre_gguf_string s = hre_gguf_array_string_next(&merges, &offset);
        merge_texts[i] = (struct hre_text){s.data, s.length};
    }
    vocab.tokens = token_texts;
    vocab.token_types = token_types;
    vocab.n_tokens = tokens.count;
    vocab.merges = merge_texts;
    vocab.n_merges = merges.count;
    if (hre_tokenizer_create(&vocab, &tokenizer) != HR_OK) {
        fprintf(stderr, "%s\n", hre_last_error());
        exit(1);
    }
    free(token_texts);
    free(token_types);
    free(merge_texts);
    return tokenizer;
}

static void check_ids(const hre_tokenizer_t *tokenizer, const struct file *text, bool special,
                      const struct numbers *want, const char *what)
{
    struct hre_encode_options options;
    struct hre_tokens got;
    char detail[256];

    hre_encode_options_init(&options);
    options.parse_special = special;
    double begin = seconds();
    if (hre_tokenizer_encode(tokenizer, text->data, text->bytes, &options, &got) != HR_OK) {
        check(false, what, hre_last_error());
        return;
    }
    double took = seconds() - begin;
    const char *difference = ids_differ(got.ids, got.count, want->values, want->count);
    snprintf(detail, sizeof(detail), "%zu ids, %zu bytes without a token, %.1f MB/s", got.count,
             got.dropped_bytes, (double)text->bytes / took / 1e6);
    check(!difference, what, difference ? difference : detail);
    hre_tokens_fini(&got);
}

static void check_pieces(const char *pre_name, const struct file *text, const struct numbers *want)
{
    hre_pretokenizer_t pre;
    char what[64];
    size_t at = 0, wrong = 0;

    hre_pretokenizer_find(pre_name, &pre);
    for (size_t i = 0; i < want->count && at < text->bytes; i++) {
        at = hre_pretokenize_next(pre, text->data, text->bytes, at);
        wrong += at != want->values[i];
    }
    snprintf(what, sizeof(what), "%s: %zu pieces", pre_name, want->count);
    check(wrong == 0 && at == text->bytes, what, NULL);
}

static void check_golden(const hre_gguf_t *gguf)
{
    struct file text = data_read("golden.txt");
    struct numbers want = data_numbers("smollm2.smollm.ids");
    hre_tokenizer_t *tokenizer;

    if (hre_tokenizer_from_gguf(gguf, &tokenizer) != HR_OK) {
        check(false, "tokenizer of the model", hre_last_error());
    } else {
        check_ids(tokenizer, &text, false, &want, "committed sample");
        check(hre_tokenizer_bos(tokenizer) == 1 && hre_tokenizer_eos(tokenizer) == 2,
              "ids of markers", NULL);
        check(hre_tokenizer_is_end(tokenizer, 0) && hre_tokenizer_is_end(tokenizer, 2),
              "end tokens", NULL);
        hre_tokenizer_destroy(tokenizer);
    }
    free(text.data);
    free(want.values);
}

static void check_mixed_text(const hre_gguf_t *gguf, const char *folder)
{
    char path[2 * PATH_BYTES], what[64];

    snprintf(path, sizeof(path), "%s/text.bin", folder);
    struct file text = file_read(path);
    for (size_t i = 0; i < 4; i++) {
        hre_tokenizer_t *tokenizer = create_with(gguf, pre_names[i]);
        struct numbers ends = read_numbers(folder, pre_names[i], ".ends");
        struct numbers ids = read_numbers(folder, pre_names[i], ".ids");
        struct numbers special = read_numbers(folder, pre_names[i], ".special.ids");
        check_pieces(pre_names[i], &text, &ends);
        snprintf(what, sizeof(what), "%s: ids", pre_names[i]);
        check_ids(tokenizer, &text, false, &ids, what);
        snprintf(what, sizeof(what), "%s: ids with control tokens", pre_names[i]);
        check_ids(tokenizer, &text, true, &special, what);
        free(ends.values);
        free(ids.values);
        free(special.values);
        hre_tokenizer_destroy(tokenizer);
    }
    free(text.data);
}

static void check_classes(const char *folder)
{
    char path[2 * PATH_BYTES], detail[96];
    size_t wrong = 0, first = 0;

    snprintf(path, sizeof(path), "%s/classes.bin", folder);
    struct file classes = file_read(path);
    for (size_t c = 0; c < classes.bytes; c++) {
        if ((c >= 0xd800 && c < 0xe000) ||
            (unsigned)classes.data[c] == (unsigned)hre_char_class((uint32_t)c))
            continue;
        first = wrong++ ? first : c;
    }
    snprintf(detail, sizeof(detail),
             "%zu differ, the first is U+%04zX; the package follows another Unicode version?",
             wrong, first);
    check(classes.bytes == 0x110000 && wrong == 0, "class of every code point",
          wrong ? detail : NULL);
    free(classes.data);
}

static void check_composition(const char *folder)
{
    char path[2 * PATH_BYTES], *composed = NULL;
    size_t bytes = 0, same = 0;

    snprintf(path, sizeof(path), "%s/marks.bin", folder);
    struct file marks = file_read(path);
    snprintf(path, sizeof(path), "%s/composed.bin", folder);
    struct file want = file_read(path);
    bool ok =
        marks.data && want.data && hre_nfc_compose(marks.data, marks.bytes, &composed, &bytes);
    while (ok && same < bytes && same < want.bytes && composed[same] == want.data[same])
        same++;
    snprintf(path, sizeof(path), "byte %zu of %zu differs", same, want.bytes);
    check(ok && same == bytes && bytes == want.bytes, "canonical composition",
          ok && same < want.bytes ? path : NULL);
    free(composed);
    free(marks.data);
    free(want.data);
}

static bool run_script(const char *python, const char *arguments, const char *folder)
{
    char command[4 * PATH_BYTES];

    snprintf(command, sizeof(command), "'%s' '%s' %s --out '%s'", python, SCRIPT, arguments,
             folder);
    return system(command) == 0;
}

static void compare_with_package(const hre_gguf_t *gguf, const char *python, const char *model)
{
    char folder[] = "/tmp/headrace-tokenizer-XXXXXX", arguments[2 * PATH_BYTES];

    if (!mkdtemp(folder)) {
        check(false, "temporary folder", NULL);
        return;
    }
    snprintf(arguments, sizeof(arguments), "compare --gguf '%s'", model);
    bool ran = run_script(python, arguments, folder) && run_script(python, "characters", folder);
    check(ran, "reference script", NULL);
    if (ran) {
        check_mixed_text(gguf, folder);
        check_classes(folder);
        check_composition(folder);
    }
    snprintf(arguments, sizeof(arguments), "rm -r '%s'", folder);
    if (system(arguments) != 0)
        fprintf(stderr, "%s is left behind\n", folder);
}

int main(void)
{
    char model[PATH_BYTES], python[PATH_BYTES];
    hre_gguf_t *gguf;

    cache_path(model, MODEL);
    if (access(model, R_OK) != 0) {
        printf("skipped: %s is not there\n", model);
        return SKIPPED;
    }
    if (hre_gguf_open(model, &gguf) != HR_OK) {
        printf("%s\n", hre_last_error());
        return 1;
    }
    check_golden(gguf);
    bool has_package = find_python(python);
    if (has_package)
        compare_with_package(gguf, python, model);
    hre_gguf_close(gguf);
    if (failures)
        return 1;
    if (!has_package) {
        printf("skipped after the committed sample: no Python with the package tokenizers (pip "
               "install tokenizers)\n");
        return SKIPPED;
    }
    return 0;
}
