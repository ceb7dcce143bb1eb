#include "cli/npy.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/out.h"
#include "cli/whole_file.h"

#define MAGIC       "\x93NUMPY"
#define MAGIC_BYTES 6

static bool refuse(char *why, const char *format, ...) __attribute__((format(printf, 2, 3)));
static bool refuse(char *why, const char *format, ...)
{
    va_list list;
    va_start(list, format);
    vsnprintf(why, CLI_NPY_WHY_BYTES, format, list);
    va_end(list);
    return false;
}

char *cli_npy_shape_text(const uint64_t *shape, size_t n_dims, char *text, size_t text_bytes)
{
    size_t at = (size_t)snprintf(text, text_bytes, "(");
    for (size_t i = 0; i < n_dims && at < text_bytes; i++)
        at += (size_t)snprintf(text + at, text_bytes - at, "%s%" PRIu64 "%s", i ? ", " : "",
                               shape[i], n_dims == 1 ? "," : "");
    if (at < text_bytes)
        snprintf(text + at, text_bytes - at, ")");
    return text;
}

/* ------------------------------------------------------------------------------------- header */

/* The header is a Python dictionary: {'descr': '<f2', 'fortran_order': False, 'shape': (3, 64), } */
struct cursor {
    const char *at, *end;
    char *why;
};

static void skip_spaces(struct cursor *c)
{
    while (c->at < c->end && (*c->at == ' ' || *c->at == '\t' || *c->at == '\n' || *c->at == '\r'))
        c->at++;
}

static bool take_char(struct cursor *c, char wanted)
{
    skip_spaces(c);
    if (c->at == c->end || *c->at != wanted)
        return false;
    c->at++;
    return true;
}

static bool take_word(struct cursor *c, const char *word)
{
    size_t n = strlen(word);
    skip_spaces(c);
    if ((size_t)(c->end - c->at) < n || memcmp(c->at, word, n) != 0)
        return false;
    c->at += n;
    return true;
}

/* 'text' or "text", without escapes. */
static bool take_string(struct cursor *c, char *text, size_t text_bytes)
{
    skip_spaces(c);
    if (c->at == c->end || (*c->at != '\'' && *c->at != '"'))
        return false;
    char quote = *c->at++;
    size_t n = 0;
    for (; c->at < c->end && *c->at != quote; c->at++) {
        if (*c->at < ' ' || *c->at > '~' || *c->at == '\\' || n + 1 >= text_bytes)
            return false;
        text[n++] = *c->at;
    }
    text[n] = '\0';
    return take_char(c, quote);
}

static bool take_number(struct cursor *c, uint64_t *value_out)
{
    uint64_t value = 0;
    skip_spaces(c);
    const char *first = c->at;
    for (; c->at < c->end && *c->at >= '0' && *c->at <= '9'; c->at++) {
        uint64_t digit = (uint64_t)(*c->at - '0');
        if (value > (UINT64_MAX - digit) / 10)
            return false;
        value = value * 10 + digit;
    }
    *value_out = value;
    return c->at > first;
}

static bool take_shape(struct cursor *c, struct cli_npy *npy)
{
    npy->n_dims = 0;
    if (!take_char(c, '('))
        return refuse(c->why, "has a damaged header: its shape is not a tuple");
    while (!take_char(c, ')')) {
        if (npy->n_dims == CLI_NPY_DIMS_MAX)
            return refuse(c->why, "has more than %d dimensions", CLI_NPY_DIMS_MAX);
        if (!take_number(c, &npy->shape[npy->n_dims]))
            return refuse(c->why, "has a damaged header: dimension %zu of its shape is not a count",
                          npy->n_dims);
        npy->n_dims++;
        bool comma = take_char(c, ',');
        skip_spaces(c);
        bool closes = c->at < c->end && *c->at == ')';
        if (!comma && (!closes || npy->n_dims == 1))
            return refuse(c->why, "has a damaged header: its shape is not a tuple");
    }
    return true;
}

static bool take_descr(struct cursor *c, struct cli_npy *npy)
{
    static const char *const known[] = {"<f2", "<f4", "<f8"};
    skip_spaces(c);
    if (c->at < c->end && *c->at == '[')
        return refuse(c->why, "has a structured dtype; it must be an array of numbers");
    if (!take_string(c, npy->dtype, sizeof npy->dtype))
        return refuse(c->why, "has a damaged header: its descr is not a short text");
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        if (strcmp(npy->dtype, known[i]) == 0) {
            npy->item_bytes = (size_t)2 << i;
            return true;
        }
    }
    return refuse(c->why, "has dtype '%s'; read are little-endian floats: <f2, <f4, <f8",
                  npy->dtype);
}

static bool take_order(struct cursor *c)
{
    if (take_word(c, "True"))
        return refuse(c->why, "is in Fortran order; only C order is read");
    if (!take_word(c, "False"))
        return refuse(c->why, "has a damaged header: fortran_order is neither True nor False");
    return true;
}

enum { HAS_DESCR = 1, HAS_ORDER = 2, HAS_SHAPE = 4 };

/* One "key: value" of the dictionary. */
static bool take_entry(struct cursor *c, struct cli_npy *npy, unsigned *has)
{
    char key[32];
    if (!take_string(c, key, sizeof key) || !take_char(c, ':'))
        return refuse(c->why, "has a damaged header: a key is missing");
    unsigned bit = strcmp(key, "descr") == 0           ? HAS_DESCR
                   : strcmp(key, "fortran_order") == 0 ? HAS_ORDER
                   : strcmp(key, "shape") == 0         ? HAS_SHAPE
                                                       : 0;
    if (bit == 0 || (*has & bit))
        return refuse(c->why, "has a damaged header: key '%s' is %s", key,
                      bit ? "there twice" : "not known");
    *has |= bit;
    return bit == HAS_DESCR   ? take_descr(c, npy)
           : bit == HAS_ORDER ? take_order(c)
                              : take_shape(c, npy);
}

static bool take_dictionary(struct cursor *c, struct cli_npy *npy)
{
    unsigned has = 0;
    if (!take_char(c, '{'))
        return refuse(c->why, "has a damaged header: it is not a dictionary");
    while (!take_char(c, '}')) {
        if (!take_entry(c, npy, &has))
            return false;
        skip_spaces(c);
        if (!take_char(c, ',') && (c->at == c->end || *c->at != '}'))
            return refuse(c->why, "has a damaged header: it does not end");
    }
    skip_spaces(c);
    if (c->at != c->end)
        return refuse(c->why, "has a damaged header: something follows the dictionary");
    if (has != (HAS_DESCR | HAS_ORDER | HAS_SHAPE))
        return refuse(c->why, "has a damaged header: %s is missing",
                      !(has & HAS_DESCR)   ? "descr"
                      : !(has & HAS_ORDER) ? "fortran_order"
                                           : "shape");
    return true;
}

static bool count_numbers(struct cli_npy *npy, char *why)
{
    char text[CLI_NPY_DIMS_MAX * 24];
    npy->count = 1;
    for (size_t i = 0; i < npy->n_dims; i++) {
        if (npy->shape[i] && npy->count > (uint64_t)INT64_MAX / 8 / npy->shape[i])
            return refuse(why, "has an absurd shape: %s",
                          cli_npy_shape_text(npy->shape, npy->n_dims, text, sizeof text));
        npy->count *= npy->shape[i];
    }
    return true;
}

bool cli_npy_parse(const void *bytes, size_t n, struct cli_npy *npy_out, char *why)
{
    const unsigned char *b = bytes;
    struct cli_npy npy = {.n_dims = 0};
    if (n < MAGIC_BYTES || memcmp(b, MAGIC, MAGIC_BYTES) != 0)
        return refuse(why, "is not a .npy file: it does not begin with \\x93NUMPY");
    if (n < 10)
        return refuse(why, "is short: it ends within its header");
    unsigned major = b[6], minor = b[7];
    if ((major != 1 && major != 2) || minor != 0)
        return refuse(why, "has .npy version %u.%u; read are 1.0 and 2.0", major, minor);
    size_t at = major == 1 ? 10 : 12;
    if (n < at)
        return refuse(why, "is short: it ends within its header");
    size_t length = b[8] | (size_t)b[9] << 8;
    if (major == 2)
        length |= (size_t)b[10] << 16 | (size_t)b[11] << 24;
    if (length > CLI_NPY_HEADER_MAX)
        return refuse(why, "has a header of %zu bytes; at most %d are read", length,
                      CLI_NPY_HEADER_MAX);
    if (n - at < length)
        return refuse(why, "is short: it ends within its header");
    struct cursor c = {
        .at = (const char *)b + at, .end = (const char *)b + at + length, .why = why};
    if (!take_dictionary(&c, &npy) || !count_numbers(&npy, why))
        return false;
    npy.data_at = at + length;
    *npy_out = npy;
    return true;
}

/* --------------------------------------------------------------------------------------- check */

static bool is_wanted(const struct cli_npy *npy, const struct cli_npy_want *want, char *why)
{
    char has[CLI_NPY_DIMS_MAX * 24], wanted[CLI_NPY_DIMS_MAX * 24];
    if (strcmp(npy->dtype, want->dtype) != 0)
        return refuse(why, "has dtype '%s'; it must be '%s'", npy->dtype, want->dtype);
    if (npy->n_dims != want->n_dims ||
        memcmp(npy->shape, want->shape, want->n_dims * sizeof want->shape[0]) != 0)
        return refuse(why, "has shape %s; by meta.json it must be %s",
                      cli_npy_shape_text(npy->shape, npy->n_dims, has, sizeof has),
                      cli_npy_shape_text(want->shape, want->n_dims, wanted, sizeof wanted));
    return true;
}

static bool has_length(const struct cli_npy *npy, uint64_t file_bytes, char *why)
{
    uint64_t needs = npy->data_at + npy->count * npy->item_bytes;
    if (file_bytes == needs)
        return true;
    return refuse(why, "is %s: it has %" PRIu64 " bytes, its header says %" PRIu64,
                  file_bytes < needs ? "short" : "too long", file_bytes, needs);
}

/* First number that is not finite, or count. All bits of the exponent are ones in those. */
static uint64_t find_nonfinite(const void *data, const struct cli_npy *npy)
{
    const unsigned char *at = data;
    for (uint64_t i = 0; i < npy->count; i++, at += npy->item_bytes) {
        uint16_t top;
        memcpy(&top, at + npy->item_bytes - 2, 2);
        unsigned mask = npy->item_bytes == 2 ? 0x7c00u : npy->item_bytes == 4 ? 0x7f80u : 0x7ff0u;
        if ((top & mask) == mask)
            return i;
    }
    return npy->count;
}

static bool is_finite(const void *data, const struct cli_npy *npy, char *why)
{
    char text[CLI_NPY_DIMS_MAX * 24];
    uint64_t index[CLI_NPY_DIMS_MAX], at = find_nonfinite(data, npy);
    if (at == npy->count)
        return true;
    for (size_t i = npy->n_dims; i-- > 0; at /= npy->shape[i])
        index[i] = at % npy->shape[i];
    cli_npy_shape_text(index, npy->n_dims, text, sizeof text);
    return refuse(why, "has a number that is not finite at index %s", text);
}

const void *cli_npy_check(const void *bytes, size_t n, const struct cli_npy_want *want, char *why)
{
    struct cli_npy npy = {.n_dims = 0};
    if (!cli_npy_parse(bytes, n, &npy, why) || !is_wanted(&npy, want, why) ||
        !has_length(&npy, n, why))
        return NULL;
    const unsigned char *data = (const unsigned char *)bytes + npy.data_at;
    return is_finite(data, &npy, why) ? data : NULL;
}

/* ---------------------------------------------------------------------------------------- files */

static bool read_fully(int fd, void *bytes, size_t n)
{
    for (size_t at = 0; at < n;) {
        ssize_t got = read(fd, (char *)bytes + at, n - at);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0) {
            errno = got == 0 ? EIO : errno; /* it was longer a moment ago */
            return false;
        }
        at += (size_t)got;
    }
    return true;
}

/* Header first: a file that is wrong is not read further. */
static bool read_header(int fd, uint64_t file_bytes, const struct cli_npy_want *want,
                        struct cli_npy *npy, char *why)
{
    size_t n = file_bytes < CLI_NPY_HEADER_MAX + 12 ? (size_t)file_bytes : CLI_NPY_HEADER_MAX + 12;
    char *head = malloc(n ? n : 1);
    if (!head)
        return refuse(why, "cannot be read: out of memory");
    bool ok = read_fully(fd, head, n) || refuse(why, "cannot be read: %s", strerror(errno));
    ok = ok && cli_npy_parse(head, n, npy, why) && is_wanted(npy, want, why) &&
         has_length(npy, file_bytes, why);
    free(head);
    return ok;
}

static bool read_numbers(int fd, const struct cli_npy *npy, void **data_out, char *why)
{
    size_t n = (size_t)npy->count * npy->item_bytes;
    void *data = malloc(n ? n : 1);
    if (!data)
        return refuse(why, "cannot be read: out of memory for %zu bytes", n);
    if (lseek(fd, (off_t)npy->data_at, SEEK_SET) < 0 || !read_fully(fd, data, n)) {
        free(data);
        return refuse(why, "cannot be read: %s", strerror(errno));
    }
    if (!is_finite(data, npy, why)) {
        free(data);
        return false;
    }
    *data_out = data;
    return true;
}

int cli_npy_read(const char *path, const struct cli_npy_want *want, void **data_out)
{
    char why[CLI_NPY_WHY_BYTES];
    struct stat st;
    struct cli_npy npy = {.n_dims = 0};
    /* A pipe without a writer must not block. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return cli_fail("cannot read '%s': %s", path, strerror(errno));
    bool ok = fstat(fd, &st) == 0 && S_ISREG(st.st_mode);
    if (!ok)
        refuse(why, "is not a regular file");
    ok = ok && read_header(fd, (uint64_t)st.st_size, want, &npy, why) &&
         read_numbers(fd, &npy, data_out, why);
    close(fd);
    return ok ? 0 : cli_fail("'%s' %s", path, why);
}

/* --------------------------------------------------------------------------------------- writing */

/* Version 1.0, padded so that the numbers begin at a multiple of 64. */
static size_t header_text(const struct cli_npy_want *array, char *text, size_t text_bytes)
{
    char shape[CLI_NPY_DIMS_MAX * 24];
    cli_npy_shape_text(array->shape, array->n_dims, shape, sizeof shape);
    int n = snprintf(text + 10, text_bytes - 10,
                     "{'descr': '%s', 'fortran_order': False, 'shape': %s, }", array->dtype, shape);
    size_t end = (10 + (size_t)n + 1 + 63) / 64 * 64;
    memset(text + 10 + n, ' ', end - 10 - (size_t)n);
    text[end - 1] = '\n';
    memcpy(text, MAGIC "\x01", 8); /* and the minor version, 0 */
    text[8] = (char)((end - 10) & 0xff);
    text[9] = (char)((end - 10) >> 8);
    return end;
}

int cli_npy_write(const char *path, const struct cli_npy_want *array, const void *data)
{
    char header[512];
    size_t n = header_text(array, header, sizeof header);
    size_t bytes = (size_t)(array->dtype[2] - '0');
    for (size_t i = 0; i < array->n_dims; i++)
        bytes *= (size_t)array->shape[i];
    struct cli_bytes parts[] = {{header, n}, {data, bytes}};
    return cli_whole_file_write(path, parts, 2);
}
