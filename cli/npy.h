/* NumPy's .npy files: one array of numbers, C order, little-endian. Strict: what is not exactly that is refused with the reason. */
#ifndef CLI_NPY_H
#define CLI_NPY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CLI_NPY_DIMS_MAX   8
#define CLI_NPY_DTYPE_MAX  16
#define CLI_NPY_HEADER_MAX 65536 /* NumPy itself writes 128 bytes */
#define CLI_NPY_WHY_BYTES  256

struct cli_npy {
    char dtype[CLI_NPY_DTYPE_MAX]; /* "<f2" */
    size_t n_dims;
    uint64_t shape[CLI_NPY_DIMS_MAX];
    uint64_t count;    /* numbers */
    size_t item_bytes; /* of one */
    size_t data_at;    /* where they begin */
};

/* Reads the header in the first n bytes of a file (or all of it). False with the reason in why [CLI_NPY_WHY_BYTES]: it is no .npy
 * file, of another version, in Fortran order, of a dtype that is not one of <f2 <f4 <f8, or its header is damaged. */
bool cli_npy_parse(const void *bytes, size_t n, struct cli_npy *npy_out, char *why);
/* "(3, 8192, 64)" */
char *cli_npy_shape_text(const uint64_t *shape, size_t n_dims, char *text, size_t text_bytes);

/* What a file must hold. */
struct cli_npy_want {
    const char *dtype;
    size_t n_dims;
    uint64_t shape[CLI_NPY_DIMS_MAX];
};
/* The file's numbers as they lie in it, checked to be finite; the caller frees *data_out. 0, or an exit code after a message that
 * names the file and what is wrong with it. */
int cli_npy_read(const char *path, const struct cli_npy_want *want, void **data_out);
/* The same over bytes in memory, without messages: where the numbers begin, or NULL with the reason. */
const void *cli_npy_check(const void *bytes, size_t n, const struct cli_npy_want *want, char *why);

/* Writes a whole file or none: 0, or an exit code after a message. */
int cli_npy_write(const char *path, const struct cli_npy_want *array, const void *data);

#endif
