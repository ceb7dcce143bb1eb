/*
 * Reader of GGUF files (version 3; version 2 differs in nothing that matters here).
 *
 * The whole header is checked at open: magic, version, counts, string lengths, value types, array
 * nesting, name clashes, tensor types, dimensions, offsets, alignment and the end of the file. What
 * is opened can therefore be read without further checks. Everything returned points into the
 * mapping and lives until hre_gguf_close.
 *
 * Threads: an open file is read-only; any number of threads may read it.
 */
#ifndef HRE_GGUF_H
#define HRE_GGUF_H

#include <stddef.h>
#include <stdint.h>

#include <headrace/headrace.h>

#define HRE_GGUF_DIMS_MAX 4

typedef struct hre_gguf hre_gguf_t;

typedef enum hre_gguf_type {
    HRE_GGUF_U8 = 0,
    HRE_GGUF_I8 = 1,
    HRE_GGUF_U16 = 2,
    HRE_GGUF_I16 = 3,
    HRE_GGUF_U32 = 4,
    HRE_GGUF_I32 = 5,
    HRE_GGUF_F32 = 6,
    HRE_GGUF_BOOL = 7,
    HRE_GGUF_STRING = 8,
    HRE_GGUF_ARRAY = 9,
    HRE_GGUF_U64 = 10,
    HRE_GGUF_I64 = 11,
    HRE_GGUF_F64 = 12
} hre_gguf_type_t;

/* Tensor element types that the engine computes with; the reader knows the sizes of more. Numbers
 * are the file's. */
typedef enum hre_weight_type {
    HRE_WEIGHT_F32 = 0,
    HRE_WEIGHT_F16 = 1,
    HRE_WEIGHT_Q4_0 = 2,
    HRE_WEIGHT_Q4_1 = 3,
    HRE_WEIGHT_Q8_0 = 8,
    HRE_WEIGHT_Q4_K = 12,
    HRE_WEIGHT_Q6_K = 14,
    HRE_WEIGHT_BF16 = 30
} hre_weight_type_t;

/* Bytes in the file, not terminated. */
struct hre_gguf_string {
    const char *data;
    size_t length;
};

/* A metadata array. Elements are packed; read them with the functions below. */
struct hre_gguf_array {
    hre_gguf_type_t type; /* of the elements */
    uint64_t count;
    const unsigned char *data;
};

struct hre_gguf_tensor {
    struct hre_gguf_string name;
    uint32_t type; /* hre_weight_type_t, or another type of the format */
    uint32_t n_dims;
    uint64_t dims[HRE_GGUF_DIMS_MAX]; /* innermost first; 1 beyond n_dims */
    uint64_t n_elements;
    uint64_t n_bytes;
    const void *data;
};

/*
 * HR_ERR_NOTFOUND (no such file), HR_ERR_IO, HR_ERR_CORRUPT (not GGUF, truncated, absurd),
 * HR_ERR_VERSION, HR_ERR_UNSUPPORTED (tensor type this reader does not know), HR_ERR_NOMEM. The
 * message has the file's name and the offset.
 */
hr_status_t hre_gguf_open(const char *path, hre_gguf_t **gguf_out);
/* The same over memory that the caller keeps until close; name stands in for the file's name in
 * messages. */
hr_status_t hre_gguf_open_memory(const void *data, size_t bytes, const char *name,
                                 hre_gguf_t **gguf_out);
void hre_gguf_close(hre_gguf_t *gguf);

int hre_gguf_is_mapped(const hre_gguf_t *gguf); /* from a file, not from memory */
/* Gives the memory of a mapped file's bytes back for now: who reads them again reads the file. */
void hre_gguf_release(const hre_gguf_t *gguf, const void *data, size_t bytes);

const char *hre_gguf_name(const hre_gguf_t *gguf); /* path or name given at open */
uint64_t hre_gguf_file_bytes(const hre_gguf_t *gguf);

/*
 * Metadata by key. HR_ERR_NOTFOUND where the key is missing, HR_ERR_DTYPE where its value has
 * another type or does not fit; the message names file and key.
 */
int hre_gguf_has(const hre_gguf_t *gguf, const char *key);
hr_status_t hre_gguf_get_u64(const hre_gguf_t *gguf, const char *key,
                             uint64_t *value_out); /* any integer >= 0, or bool */
hr_status_t hre_gguf_get_f64(const hre_gguf_t *gguf, const char *key,
                             double *value_out); /* any number */
hr_status_t hre_gguf_get_string(const hre_gguf_t *gguf, const char *key,
                                struct hre_gguf_string *value_out);
hr_status_t hre_gguf_get_array(const hre_gguf_t *gguf, const char *key,
                               struct hre_gguf_array *value_out);

/* Element i of an array of integers or bools (as its sign-extended 64 bits) or of any numbers; i <
 * count. */
uint64_t hre_gguf_array_u64(const struct hre_gguf_array *array, uint64_t i);
double hre_gguf_array_f64(const struct hre_gguf_array *array, uint64_t i);
/* Strings lie one behind the other: start with *offset = 0 and call count times. */
struct hre_gguf_string hre_gguf_array_string_next(const struct hre_gguf_array *array,
                                                  size_t *offset);

uint64_t hre_gguf_tensor_count(const hre_gguf_t *gguf);
const struct hre_gguf_tensor *hre_gguf_tensor_at(const hre_gguf_t *gguf, uint64_t i);
/* NULL where there is no such tensor (no error is set: many tensors are optional). */
const struct hre_gguf_tensor *hre_gguf_tensor_find(const hre_gguf_t *gguf, const char *name);

/* "Q4_1"; "type 99" is not returned: unknown numbers give NULL. */
const char *hre_weight_type_name(uint32_t type);

#endif
