/* Files of tests/engine/data and of tests/reference/tokenizer_reference.py. */
#ifndef TOKENIZER_DATA_H
#define TOKENIZER_DATA_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/tokenizer.h"

#define DATA_DIR HR_SOURCE_DIR "/tests/engine/data/"

struct file {
    char *data; /* terminated */
    size_t bytes;
};

struct numbers {
    uint32_t *values;
    size_t count;
};

/* data NULL where it cannot be read. */
static inline struct file file_read(const char *path)
{
    struct file file = {0};
    FILE *f = fopen(path, "rb");
    long size;

    if (f && fseek(f, 0, SEEK_END) == 0 && (size = ftell(f)) >= 0 && fseek(f, 0, SEEK_SET) == 0) {
        file.data = malloc((size_t)size + 1);
        file.bytes = fread(file.data, 1, (size_t)size, f);
        file.data[file.bytes] = '\0';
    }
    if (f)
        fclose(f);
    return file;
}

static inline struct file data_read(const char *name)
{
    char path[1024];

    snprintf(path, sizeof(path), DATA_DIR "%s", name);
    struct file file = file_read(path);
    if (!file.data) {
        fprintf(stderr, "cannot read %s\n", path);
        exit(1);
    }
    return file;
}

static inline struct numbers data_numbers(const char *name)
{
    struct file file = data_read(name);
    struct numbers numbers = {malloc(file.bytes * sizeof(uint32_t) + 4), 0};
    char *at = file.data, *end;

    for (;;) {
        unsigned long value = strtoul(at, &end, 10);
        if (end == at)
            break;
        numbers.values[numbers.count++] = (uint32_t)value;
        at = end;
    }
    free(file.data);
    return numbers;
}

/* Lines of a file as texts; they point into it. */
static inline struct hre_text *lines_of(const struct file *file, size_t *count_out)
{
    struct hre_text *lines = malloc((file->bytes + 1) * sizeof(*lines));
    const char *at = file->data, *end;

    *count_out = 0;
    while ((end = strchr(at, '\n')) != NULL) {
        lines[(*count_out)++] = (struct hre_text){at, (size_t)(end - at)};
        at = end + 1;
    }
    return lines;
}

/* "id 3: 17, expected 20", or NULL where they are equal. */
static inline const char *ids_differ(const uint32_t *got, size_t n_got, const uint32_t *want,
                                     size_t n_want)
{
    static char line[128];

    for (size_t i = 0; i < n_got && i < n_want; i++) {
        if (got[i] != want[i]) {
            snprintf(line, sizeof(line), "number %zu is %u, expected %u", i, got[i], want[i]);
            return line;
        }
    }
    if (n_got == n_want)
        return NULL;
    snprintf(line, sizeof(line), "%zu numbers, expected %zu", n_got, n_want);
    return line;
}

#endif
