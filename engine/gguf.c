#include "engine/gguf.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/fail.h"

#define ALIGNMENT_DEFAULT 32
#define ALIGNMENT_MAX     (1u << 20)
#define NESTING_MAX       4
/* The least a metadata entry (key of one byte, one-byte value) and a tensor's description can take.
 * They bound counts by the file's size, so that no count makes us allocate more than a small
 * multiple of the file. */
#define ENTRY_BYTES_MIN  (8 + 1 + 4 + 1)
#define TENSOR_BYTES_MIN (8 + 1 + 4 + 8 + 4 + 8)

struct entry {
    struct hre_gguf_string key;
    hre_gguf_type_t type;
    uint64_t value; /* offset of the value in the file */
};

struct hre_gguf {
    const unsigned char *data;
    size_t bytes;
    int mapped;
    char *name;
    struct entry *entries; /* sorted by key */
    uint64_t n_entries;
    struct hre_gguf_tensor *tensors;
    uint32_t *by_name; /* indices of tensors, sorted by name */
    uint64_t n_tensors;
};

/* A read position that never leaves the file. */
struct cursor {
    const hre_gguf_t *gguf;
    size_t at;
};

static const struct weight_type {
    const char *name;
    uint16_t block_elements, block_bytes;
} weight_types[] = {
    [0] = {"F32", 1, 4},         [1] = {"F16", 1, 2},         [2] = {"Q4_0", 32, 18},
    [3] = {"Q4_1", 32, 20},      [6] = {"Q5_0", 32, 22},      [7] = {"Q5_1", 32, 24},
    [8] = {"Q8_0", 32, 34},      [9] = {"Q8_1", 32, 36},      [10] = {"Q2_K", 256, 84},
    [11] = {"Q3_K", 256, 110},   [12] = {"Q4_K", 256, 144},   [13] = {"Q5_K", 256, 176},
    [14] = {"Q6_K", 256, 210},   [15] = {"Q8_K", 256, 292},   [16] = {"IQ2_XXS", 256, 66},
    [17] = {"IQ2_XS", 256, 74},  [18] = {"IQ3_XXS", 256, 98}, [19] = {"IQ1_S", 256, 50},
    [20] = {"IQ4_NL", 32, 18},   [21] = {"IQ3_S", 256, 110},  [22] = {"IQ2_S", 256, 82},
    [23] = {"IQ4_XS", 256, 136}, [24] = {"I8", 1, 1},         [25] = {"I16", 1, 2},
    [26] = {"I32", 1, 4},        [27] = {"I64", 1, 8},        [28] = {"F64", 1, 8},
    [29] = {"IQ1_M", 256, 56},   [30] = {"BF16", 1, 2},       [34] = {"TQ1_0", 256, 54},
    [35] = {"TQ2_0", 256, 66},   [39] = {"MXFP4", 32, 17},
};
#define WEIGHT_TYPES (sizeof(weight_types) / sizeof(weight_types[0]))

const char *hre_weight_type_name(uint32_t type)
{
    return type < WEIGHT_TYPES ? weight_types[type].name : NULL;
}

/* -------------------------------------------------------------------------------- raw reading */

static hr_status_t corrupt(const hre_gguf_t *gguf, size_t at, const char *what)
{
    return hre_fail(HR_ERR_CORRUPT, "%s: offset %zu: %s", gguf->name, at, what);
}

static hr_status_t read_bytes(struct cursor *c, void *out, size_t bytes, const char *what)
{
    if (bytes > c->gguf->bytes - c->at) {
        return hre_fail(HR_ERR_CORRUPT, "%s: offset %zu: the file ends inside %s", c->gguf->name,
                        c->at, what);
    }
    memcpy(out, c->gguf->data + c->at, bytes);
    c->at += bytes;
    return HR_OK;
}

static hr_status_t read_u32(struct cursor *c, uint32_t *out, const char *what)
{
    return read_bytes(c, out, sizeof(*out), what);
}

static hr_status_t read_u64(struct cursor *c, uint64_t *out, const char *what)
{
    return read_bytes(c, out, sizeof(*out), what);
}

static hr_status_t read_string(struct cursor *c, struct hre_gguf_string *out, const char *what)
{
    size_t start = c->at;
    uint64_t length = 0;
    hr_status_t status = read_u64(c, &length, what);

    if (status != HR_OK) {
        return status;
    }
    if (length > c->gguf->bytes - c->at) {
        return hre_fail(HR_ERR_CORRUPT,
                        "%s: offset %zu: %s of %llu bytes goes beyond the end of the file",
                        c->gguf->name, start, what, (unsigned long long)length);
    }
    out->data = (const char *)c->gguf->data + c->at;
    out->length = (size_t)length;
    c->at += (size_t)length;
    return HR_OK;
}

/* Bytes of a scalar type, 0 for strings, arrays and numbers that are no type. */
static size_t scalar_bytes(uint32_t type)
{
    static const uint8_t bytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

    return type < sizeof(bytes) ? bytes[type] : 0;
}

static hr_status_t skip_value(struct cursor *c, uint32_t type, unsigned depth);

static hr_status_t skip_array(struct cursor *c, unsigned depth)
{
    size_t start = c->at;
    uint32_t type = 0;
    uint64_t count = 0;
    hr_status_t status = read_u32(c, &type, "an array's element type");

    if (status == HR_OK) {
        status = read_u64(c, &count, "an array's count");
    }
    if (status != HR_OK) {
        return status;
    }
    if (depth >= NESTING_MAX) {
        return corrupt(c->gguf, start, "arrays nested too deeply");
    }
    size_t left = c->gguf->bytes - c->at;
    size_t each = scalar_bytes(type);
    size_t least = each ? each : type == HRE_GGUF_STRING ? 8 : 12;
    if (count > left / least) {
        return hre_fail(HR_ERR_CORRUPT,
                        "%s: offset %zu: array of %llu elements goes beyond the end of the file",
                        c->gguf->name, start, (unsigned long long)count);
    }
    if (each) {
        c->at += (size_t)count * each;
        return HR_OK;
    }
    for (uint64_t i = 0; i < count && status == HR_OK; i++) {
        status = skip_value(c, type, depth + 1);
    }
    return status;
}

static hr_status_t skip_value(struct cursor *c, uint32_t type, unsigned depth)
{
    struct hre_gguf_string string;
    size_t bytes = scalar_bytes(type);

    if (type == HRE_GGUF_STRING) {
        return read_string(c, &string, "a string");
    }
    if (type == HRE_GGUF_ARRAY) {
        return skip_array(c, depth);
    }
    if (bytes == 0) {
        return hre_fail(HR_ERR_CORRUPT, "%s: offset %zu: value type %u does not exist",
                        c->gguf->name, c->at, type);
    }
    if (bytes > c->gguf->bytes - c->at) {
        return corrupt(c->gguf, c->at, "the file ends inside a value");
    }
    c->at += bytes;
    return HR_OK;
}

/* ------------------------------------------------------------------------------------ parsing */

static int compare_strings(struct hre_gguf_string a, struct hre_gguf_string b)
{
    size_t n = a.length < b.length ? a.length : b.length;
    int order = n ? memcmp(a.data, b.data, n) : 0;

    return order ? order : (a.length > b.length) - (a.length < b.length);
}

static int compare_entries(const void *a, const void *b)
{
    return compare_strings(((const struct entry *)a)->key, ((const struct entry *)b)->key);
}

static int compare_tensors(const void *a, const void *b, void *context)
{
    const hre_gguf_t *gguf = context;

    return compare_strings(gguf->tensors[*(const uint32_t *)a].name,
                           gguf->tensors[*(const uint32_t *)b].name);
}

static hr_status_t parse_head(struct cursor *c, uint64_t *n_tensors, uint64_t *n_entries)
{
    const hre_gguf_t *gguf = c->gguf;
    char magic[4];
    uint32_t version = 0;

    if (gguf->bytes < 4 || memcmp(gguf->data, "GGUF", 4) != 0) {
        return corrupt(gguf, 0, "not a GGUF file (it does not begin with \"GGUF\")");
    }
    hr_status_t status = read_bytes(c, magic, 4, "the magic");
    if (status == HR_OK) {
        status = read_u32(c, &version, "the version");
    }
    if (status != HR_OK) {
        return status;
    }
    if (version != 2 && version != 3) {
        return hre_fail(
            HR_ERR_VERSION,
            "%s: offset 4: GGUF version %u; versions 2 and 3 (little-endian) can be read",
            gguf->name, version);
    }
    status = read_u64(c, n_tensors, "the tensor count");
    if (status == HR_OK) {
        status = read_u64(c, n_entries, "the metadata count");
    }
    if (status != HR_OK) {
        return status;
    }
    size_t left = gguf->bytes - c->at;
    if (*n_tensors > left / TENSOR_BYTES_MIN || *n_tensors > UINT32_MAX) {
        return hre_fail(HR_ERR_CORRUPT,
                        "%s: offset 8: %llu tensors cannot be in a file of %zu bytes", gguf->name,
                        (unsigned long long)*n_tensors, gguf->bytes);
    }
    if (*n_entries > left / ENTRY_BYTES_MIN) {
        return hre_fail(HR_ERR_CORRUPT,
                        "%s: offset 16: %llu metadata entries cannot be in a file of %zu bytes",
                        gguf->name, (unsigned long long)*n_entries, gguf->bytes);
    }
    return HR_OK;
}

static hr_status_t parse_entries(hre_gguf_t *gguf, struct cursor *c, uint64_t n_entries)
{
    gguf->entries = calloc(n_entries ? n_entries : 1, sizeof(*gguf->entries));
    if (!gguf->entries) {
        return hre_fail(HR_ERR_NOMEM, "%s: no memory for %llu metadata entries", gguf->name,
                        (unsigned long long)n_entries);
    }
    for (uint64_t i = 0; i < n_entries; i++) {
        struct entry *e = &gguf->entries[i];
        uint32_t type = 0;
        hr_status_t status = read_string(c, &e->key, "a metadata key");

        if (status == HR_OK) {
            status = read_u32(c, &type, "a metadata type");
        }
        if (status != HR_OK) {
            return status;
        }
        e->type = (hre_gguf_type_t)type;
        e->value = c->at;
        status = skip_value(c, type, 0);
        if (status != HR_OK) {
            return status;
        }
    }
    gguf->n_entries = n_entries;
    qsort(gguf->entries, n_entries, sizeof(*gguf->entries), compare_entries);
    for (uint64_t i = 1; i < n_entries; i++) {
        struct entry *e = &gguf->entries[i];

        if (compare_entries(e - 1, e) == 0) {
            return hre_fail(HR_ERR_CORRUPT, "%s: offset %llu: metadata key '%.*s' occurs twice",
                            gguf->name, (unsigned long long)e->value,
                            (int)(e->key.length < 100 ? e->key.length : 100), e->key.data);
        }
    }
    return HR_OK;
}

/* Dimensions, type and size; the offset waits until the start of the data is known. */
static hr_status_t parse_tensor(struct cursor *c, struct hre_gguf_tensor *t, uint64_t *offset)
{
    const hre_gguf_t *gguf = c->gguf;
    hr_status_t status = read_string(c, &t->name, "a tensor's name");
    size_t at = c->at;

    if (status == HR_OK) {
        status = read_u32(c, &t->n_dims, "a tensor's dimensions");
    }
    if (status != HR_OK) {
        return status;
    }
    int length = (int)(t->name.length < 100 ? t->name.length : 100);
    if (t->n_dims < 1 || t->n_dims > HRE_GGUF_DIMS_MAX) {
        return hre_fail(HR_ERR_CORRUPT, "%s: offset %zu: tensor '%.*s' has %u dimensions (1 to %d)",
                        gguf->name, at, length, t->name.data, t->n_dims, HRE_GGUF_DIMS_MAX);
    }
    t->n_elements = 1;
    for (uint32_t i = 0; i < HRE_GGUF_DIMS_MAX; i++) {
        t->dims[i] = 1;
        status = i < t->n_dims ? read_u64(c, &t->dims[i], "a tensor's dimensions") : HR_OK;
        if (status != HR_OK) {
            return status;
        }
        if (t->dims[i] == 0 || t->dims[i] > (UINT64_MAX >> 6) / t->n_elements) {
            return hre_fail(HR_ERR_CORRUPT, "%s: offset %zu: dimension %u of tensor '%.*s' is %llu",
                            gguf->name, at, i, length, t->name.data,
                            (unsigned long long)t->dims[i]);
        }
        t->n_elements *= t->dims[i];
    }
    at = c->at;
    status = read_u32(c, &t->type, "a tensor's type");
    if (status == HR_OK) {
        status = read_u64(c, offset, "a tensor's offset");
    }
    if (status != HR_OK) {
        return status;
    }
    if (!hre_weight_type_name(t->type)) {
        return hre_fail(HR_ERR_UNSUPPORTED, "%s: offset %zu: tensor '%.*s' has unknown type %u",
                        gguf->name, at, length, t->name.data, t->type);
    }
    const struct weight_type *type = &weight_types[t->type];
    if (t->dims[0] % type->block_elements) {
        return hre_fail(
            HR_ERR_CORRUPT,
            "%s: offset %zu: rows of %llu elements of tensor '%.*s' are no whole %s blocks",
            gguf->name, at, (unsigned long long)t->dims[0], length, t->name.data, type->name);
    }
    uint64_t blocks = t->n_elements / type->block_elements;
    if (blocks > gguf->bytes / type->block_bytes) {
        return hre_fail(HR_ERR_CORRUPT,
                        "%s: offset %zu: tensor '%.*s' of %llu elements is larger than the file",
                        gguf->name, at, length, t->name.data, (unsigned long long)t->n_elements);
    }
    t->n_bytes = blocks * type->block_bytes;
    return HR_OK;
}

static hr_status_t data_alignment(const hre_gguf_t *gguf, uint64_t *alignment_out)
{
    uint64_t alignment = ALIGNMENT_DEFAULT;

    if (hre_gguf_has(gguf, "general.alignment")) {
        hr_status_t status = hre_gguf_get_u64(gguf, "general.alignment", &alignment);
        if (status != HR_OK) {
            return status;
        }
    }
    if (alignment < 8 || alignment > ALIGNMENT_MAX || (alignment & (alignment - 1))) {
        return hre_fail(HR_ERR_CORRUPT,
                        "%s: general.alignment is %llu; a power of two from 8 to %u was expected",
                        gguf->name, (unsigned long long)alignment, ALIGNMENT_MAX);
    }
    *alignment_out = alignment;
    return HR_OK;
}

/* Turns the offsets (kept in `offsets`) into pointers once the start of the data is known. */
static hr_status_t place_tensors(hre_gguf_t *gguf, size_t header_end, const uint64_t *offsets)
{
    uint64_t alignment = ALIGNMENT_DEFAULT;
    hr_status_t status = data_alignment(gguf, &alignment);

    if (status != HR_OK) {
        return status;
    }
    uint64_t start = (header_end + alignment - 1) / alignment * alignment;
    if (gguf->n_tensors && start > gguf->bytes) {
        return corrupt(gguf, header_end, "the file ends before its tensors");
    }
    for (uint64_t i = 0; i < gguf->n_tensors; i++) {
        struct hre_gguf_tensor *t = &gguf->tensors[i];
        int length = (int)(t->name.length < 100 ? t->name.length : 100);

        if (offsets[i] % alignment) {
            return hre_fail(HR_ERR_CORRUPT,
                            "%s: tensor '%.*s' at data offset %llu is not aligned to %llu",
                            gguf->name, length, t->name.data, (unsigned long long)offsets[i],
                            (unsigned long long)alignment);
        }
        if (offsets[i] > gguf->bytes - start || t->n_bytes > gguf->bytes - start - offsets[i]) {
            return hre_fail(HR_ERR_CORRUPT,
                            "%s: tensor '%.*s' needs %llu bytes at data offset %llu, but the file "
                            "has only %llu bytes "
                            "of data (truncated?)",
                            gguf->name, length, t->name.data, (unsigned long long)t->n_bytes,
                            (unsigned long long)offsets[i],
                            (unsigned long long)(gguf->bytes - start));
        }
        t->data = gguf->data + start + offsets[i];
    }
    return HR_OK;
}

static hr_status_t index_tensors(hre_gguf_t *gguf)
{
    for (uint64_t i = 0; i < gguf->n_tensors; i++) {
        gguf->by_name[i] = (uint32_t)i;
    }
    qsort_r(gguf->by_name, gguf->n_tensors, sizeof(*gguf->by_name), compare_tensors, gguf);
    for (uint64_t i = 1; i < gguf->n_tensors; i++) {
        if (compare_tensors(&gguf->by_name[i - 1], &gguf->by_name[i], gguf) == 0) {
            const struct hre_gguf_string *name = &gguf->tensors[gguf->by_name[i]].name;

            return hre_fail(HR_ERR_CORRUPT, "%s: tensor '%.*s' occurs twice", gguf->name,
                            (int)(name->length < 100 ? name->length : 100), name->data);
        }
    }
    return HR_OK;
}

static hr_status_t parse_tensors(hre_gguf_t *gguf, struct cursor *c, uint64_t n_tensors)
{
    size_t n = n_tensors ? (size_t)n_tensors : 1;
    uint64_t *offsets = calloc(n, sizeof(*offsets));
    hr_status_t status = HR_OK;

    gguf->tensors = calloc(n, sizeof(*gguf->tensors));
    gguf->by_name = calloc(n, sizeof(*gguf->by_name));
    if (!offsets || !gguf->tensors || !gguf->by_name) {
        free(offsets);
        return hre_fail(HR_ERR_NOMEM, "%s: no memory for %llu tensors", gguf->name,
                        (unsigned long long)n_tensors);
    }
    for (uint64_t i = 0; i < n_tensors && status == HR_OK; i++) {
        status = parse_tensor(c, &gguf->tensors[i], &offsets[i]);
    }
    if (status == HR_OK) {
        gguf->n_tensors = n_tensors;
        status = place_tensors(gguf, c->at, offsets);
    }
    if (status == HR_OK) {
        status = index_tensors(gguf);
    }
    free(offsets);
    return status;
}

static hr_status_t parse(hre_gguf_t *gguf)
{
    struct cursor c = {gguf, 0};
    uint64_t n_tensors = 0, n_entries = 0;
    hr_status_t status = parse_head(&c, &n_tensors, &n_entries);

    if (status == HR_OK) {
        status = parse_entries(gguf, &c, n_entries);
    }
    return status == HR_OK ? parse_tensors(gguf, &c, n_tensors) : status;
}

/* --------------------------------------------------------------------------------------- open */

static hr_status_t open_parsed(hre_gguf_t *gguf, hre_gguf_t **gguf_out)
{
    hr_status_t status = parse(gguf);

    if (status != HR_OK) {
        hre_gguf_close(gguf);
        return status;
    }
    *gguf_out = gguf;
    return HR_OK;
}

static hre_gguf_t *make(const char *name)
{
    hre_gguf_t *gguf = calloc(1, sizeof(*gguf));

    if (gguf) {
        gguf->name = strdup(name);
    }
    if (!gguf || !gguf->name) {
        free(gguf);
        hre_fail(HR_ERR_NOMEM, "%s: no memory", name);
        return NULL;
    }
    return gguf;
}

hr_status_t hre_gguf_open_memory(const void *data, size_t bytes, const char *name,
                                 hre_gguf_t **gguf_out)
{
    if (!data || !name || !gguf_out || (uintptr_t)data % 8) {
        return hre_fail(HR_ERR_INVALID,
                        "hre_gguf_open_memory: data must be there and aligned to 8 bytes");
    }
    hre_gguf_t *gguf = make(name);
    if (!gguf) {
        return HR_ERR_NOMEM;
    }
    gguf->data = data;
    gguf->bytes = bytes;
    return open_parsed(gguf, gguf_out);
}

static hr_status_t map_file(hre_gguf_t *gguf, const char *path)
{
    struct stat info;
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0) {
        hr_status_t status = errno == ENOENT ? HR_ERR_NOTFOUND : HR_ERR_IO;
        return hre_fail(status, "%s: cannot be opened: %s", path, strerror(errno));
    }
    if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
        close(fd);
        return hre_fail(HR_ERR_IO, "%s: not a regular file", path);
    }
    if (info.st_size == 0) {
        close(fd);
        return hre_fail(HR_ERR_CORRUPT, "%s: offset 0: the file is empty", path);
    }
    void *data = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    int error = errno;
    close(fd);
    if (data == MAP_FAILED) {
        return hre_fail(HR_ERR_IO, "%s: cannot be mapped: %s", path, strerror(error));
    }
    /* Every weight is about to be read; whether the advice is taken does not matter. */
    (void)madvise(data, (size_t)info.st_size, MADV_WILLNEED);
    gguf->data = data;
    gguf->bytes = (size_t)info.st_size;
    gguf->mapped = 1;
    return HR_OK;
}

hr_status_t hre_gguf_open(const char *path, hre_gguf_t **gguf_out)
{
    if (!path || !gguf_out) {
        return hre_fail(HR_ERR_INVALID, "hre_gguf_open: path and gguf_out must not be NULL");
    }
    hre_gguf_t *gguf = make(path);
    if (!gguf) {
        return HR_ERR_NOMEM;
    }
    hr_status_t status = map_file(gguf, path);
    if (status != HR_OK) {
        hre_gguf_close(gguf);
        return status;
    }
    return open_parsed(gguf, gguf_out);
}

int hre_gguf_is_mapped(const hre_gguf_t *gguf)
{
    return gguf->mapped;
}

void hre_gguf_release(const hre_gguf_t *gguf, const void *data, size_t bytes)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t begin = ((uintptr_t)data + page - 1) / page * page;
    uintptr_t end = ((uintptr_t)data + bytes) / page * page;

    if (gguf->mapped && end > begin) {
        (void)madvise((void *)begin, end - begin, MADV_DONTNEED);
    }
}

void hre_gguf_close(hre_gguf_t *gguf)
{
    if (!gguf) {
        return;
    }
    if (gguf->mapped) {
        munmap((void *)(uintptr_t)gguf->data, gguf->bytes);
    }
    free(gguf->entries);
    free(gguf->tensors);
    free(gguf->by_name);
    free(gguf->name);
    free(gguf);
}

const char *hre_gguf_name(const hre_gguf_t *gguf)
{
    return gguf->name;
}

uint64_t hre_gguf_file_bytes(const hre_gguf_t *gguf)
{
    return gguf->bytes;
}

/* ----------------------------------------------------------------------------------- metadata */

static const struct entry *find_entry(const hre_gguf_t *gguf, const char *key)
{
    struct entry wanted = {.key = {key, strlen(key)}};

    return bsearch(&wanted, gguf->entries, gguf->n_entries, sizeof(wanted), compare_entries);
}

static hr_status_t require_entry(const hre_gguf_t *gguf, const char *key,
                                 const struct entry **entry_out)
{
    *entry_out = find_entry(gguf, key);
    return *entry_out
               ? HR_OK
               : hre_fail(HR_ERR_NOTFOUND, "%s: metadata key '%s' is missing", gguf->name, key);
}

/* An integer or bool, sign-extended. */
static uint64_t integer_at(const unsigned char *p, hre_gguf_type_t type)
{
    uint64_t u64 = 0;
    uint32_t u32;
    uint16_t u16;

    switch (type) {
    case HRE_GGUF_U8:
        return p[0];
    case HRE_GGUF_BOOL:
        return p[0] != 0;
    case HRE_GGUF_I8:
        return (uint64_t)(int64_t)(int8_t)p[0];
    case HRE_GGUF_U16:
    case HRE_GGUF_I16:
        memcpy(&u16, p, 2);
        return type == HRE_GGUF_U16 ? u16 : (uint64_t)(int64_t)(int16_t)u16;
    case HRE_GGUF_U32:
    case HRE_GGUF_I32:
        memcpy(&u32, p, 4);
        return type == HRE_GGUF_U32 ? u32 : (uint64_t)(int64_t)(int32_t)u32;
    default:
        memcpy(&u64, p, 8);
        return u64;
    }
}

static int is_integer(hre_gguf_type_t type)
{
    return type <= HRE_GGUF_I64 && type != HRE_GGUF_F32 && type != HRE_GGUF_STRING &&
           type != HRE_GGUF_ARRAY;
}

static int is_signed(hre_gguf_type_t type)
{
    return type == HRE_GGUF_I8 || type == HRE_GGUF_I16 || type == HRE_GGUF_I32 ||
           type == HRE_GGUF_I64;
}

static double number_at(const unsigned char *p, hre_gguf_type_t type)
{
    double f64;
    float f32;

    if (type == HRE_GGUF_F32) {
        memcpy(&f32, p, 4);
        return f32;
    }
    if (type == HRE_GGUF_F64) {
        memcpy(&f64, p, 8);
        return f64;
    }
    return is_signed(type) ? (double)(int64_t)integer_at(p, type) : (double)integer_at(p, type);
}

int hre_gguf_has(const hre_gguf_t *gguf, const char *key)
{
    return find_entry(gguf, key) != NULL;
}

hr_status_t hre_gguf_get_u64(const hre_gguf_t *gguf, const char *key, uint64_t *value_out)
{
    const struct entry *e;
    hr_status_t status = require_entry(gguf, key, &e);

    if (status != HR_OK) {
        return status;
    }
    if (!is_integer(e->type)) {
        return hre_fail(HR_ERR_DTYPE, "%s: metadata key '%s' is not an integer", gguf->name, key);
    }
    uint64_t value = integer_at(gguf->data + e->value, e->type);
    if (is_signed(e->type) && (int64_t)value < 0) {
        return hre_fail(HR_ERR_DTYPE, "%s: metadata key '%s' is negative", gguf->name, key);
    }
    *value_out = value;
    return HR_OK;
}

hr_status_t hre_gguf_get_f64(const hre_gguf_t *gguf, const char *key, double *value_out)
{
    const struct entry *e;
    hr_status_t status = require_entry(gguf, key, &e);

    if (status != HR_OK) {
        return status;
    }
    if (scalar_bytes(e->type) == 0 || e->type == HRE_GGUF_BOOL) {
        return hre_fail(HR_ERR_DTYPE, "%s: metadata key '%s' is not a number", gguf->name, key);
    }
    *value_out = number_at(gguf->data + e->value, e->type);
    return HR_OK;
}

static struct hre_gguf_string string_at(const unsigned char *p)
{
    uint64_t length;

    memcpy(&length, p, 8);
    return (struct hre_gguf_string){(const char *)p + 8, (size_t)length};
}

hr_status_t hre_gguf_get_string(const hre_gguf_t *gguf, const char *key,
                                struct hre_gguf_string *value_out)
{
    const struct entry *e;
    hr_status_t status = require_entry(gguf, key, &e);

    if (status != HR_OK) {
        return status;
    }
    if (e->type != HRE_GGUF_STRING) {
        return hre_fail(HR_ERR_DTYPE, "%s: metadata key '%s' is not a string", gguf->name, key);
    }
    *value_out = string_at(gguf->data + e->value);
    return HR_OK;
}

hr_status_t hre_gguf_get_array(const hre_gguf_t *gguf, const char *key,
                               struct hre_gguf_array *value_out)
{
    const struct entry *e;
    hr_status_t status = require_entry(gguf, key, &e);

    if (status != HR_OK) {
        return status;
    }
    if (e->type != HRE_GGUF_ARRAY) {
        return hre_fail(HR_ERR_DTYPE, "%s: metadata key '%s' is not an array", gguf->name, key);
    }
    const unsigned char *p = gguf->data + e->value;
    value_out->type = (hre_gguf_type_t)integer_at(p, HRE_GGUF_U32);
    value_out->count = integer_at(p + 4, HRE_GGUF_U64);
    value_out->data = p + 12;
    return HR_OK;
}

uint64_t hre_gguf_array_u64(const struct hre_gguf_array *array, uint64_t i)
{
    return is_integer(array->type)
               ? integer_at(array->data + i * scalar_bytes(array->type), array->type)
               : 0;
}

double hre_gguf_array_f64(const struct hre_gguf_array *array, uint64_t i)
{
    size_t bytes = scalar_bytes(array->type);

    return bytes ? number_at(array->data + i * bytes, array->type) : 0.0;
}

struct hre_gguf_string hre_gguf_array_string_next(const struct hre_gguf_array *array,
                                                  size_t *offset)
{
    struct hre_gguf_string string = {"", 0};

    if (array->type == HRE_GGUF_STRING) {
        string = string_at(array->data + *offset);
        *offset += 8 + string.length;
    }
    return string;
}

/* ------------------------------------------------------------------------------------ tensors */

uint64_t hre_gguf_tensor_count(const hre_gguf_t *gguf)
{
    return gguf->n_tensors;
}

const struct hre_gguf_tensor *hre_gguf_tensor_at(const hre_gguf_t *gguf, uint64_t i)
{
    return i < gguf->n_tensors ? &gguf->tensors[i] : NULL;
}

const struct hre_gguf_tensor *hre_gguf_tensor_find(const hre_gguf_t *gguf, const char *name)
{
    struct hre_gguf_string wanted = {name, strlen(name)};
    uint64_t low = 0, high = gguf->n_tensors;

    while (low < high) {
        uint64_t middle = low + (high - low) / 2;
        const struct hre_gguf_tensor *t = &gguf->tensors[gguf->by_name[middle]];
        int order = compare_strings(t->name, wanted);

        if (order == 0) {
            return t;
        }
        if (order < 0) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return NULL;
}
