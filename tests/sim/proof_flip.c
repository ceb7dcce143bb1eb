/* usage: proof_flip FLIPS|all [caught]
 *
 * A saved session with one bit flipped, or with two sectors of 4 KiB swapped: verify says that it is damaged, and an open either refuses it or
 * gives exactly the tokens that were saved (what is derived is made anew). `all`: every byte that is no payload, and as many random ones. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "offload/archive.h"
#include "tests/sim/history.h"

static struct history h;
static struct text text;
static char dir[1024], path[1100];
static unsigned char *bytes;
static uint64_t n_bytes, n_refused, n_same;

static const char *make(void)
{
    struct hr_save_options save;
    hr_save_options_init(&save);
    history_options(&h, hri_io_real(), HISTORY_HEADRACE);
    if (history_runtime(&h, &h.rt) != HR_OK || history_create(&h, h.rt, &h.seq) != HR_OK)
        return hr_last_error();
    for (; text.n < 300; text.n++)
        text.token[text.n] = 100 + text.n;
    if (history_append(h.seq, text.token, text.n) != HR_OK ||
        hr_sequence_settle(h.seq, 0) != HR_OK || hr_sequence_save(h.seq, dir, &save) != HR_OK)
        return hr_last_error();
    hr_sequence_destroy(h.seq);
    h.seq = NULL;
    int fd = open(path, O_RDONLY);
    struct stat info;
    if (fd < 0 || fstat(fd, &info) != 0)
        return "the session's file is not there";
    n_bytes = (uint64_t)info.st_size;
    bytes = malloc(n_bytes);
    bool all = bytes != NULL && pread(fd, bytes, n_bytes, 0) == (ssize_t)n_bytes;
    close(fd);
    return all ? NULL : "the session's file cannot be read";
}

/* NULL: noticed. */
static const char *look(void)
{
    struct hr_session_check check = {.struct_size = sizeof check};
    hr_sequence_t *seq = NULL;
    if (hr_session_verify(dir, &check) == HR_OK)
        return "verify noticed nothing";
    if (history_open(&h, h.rt, dir, &seq) != HR_OK) {
        n_refused++;
        return NULL;
    }
    bool same = history_same(&h, seq, &text);
    hr_sequence_destroy(seq);
    n_same += same;
    return same ? NULL : "what was opened is not what was saved";
}

static const char *change(uint64_t at, const unsigned char *with, size_t n)
{
    int fd = open(path, O_RDWR);
    bool done = fd >= 0 && pwrite(fd, with, n, (off_t)at) == (ssize_t)n;
    if (fd >= 0)
        close(fd);
    return done ? NULL : "the session's file cannot be changed";
}

static const char *flip(uint64_t at, uint32_t bit)
{
    unsigned char with = (unsigned char)(bytes[at] ^ 1u << bit);
    const char *wrong = change(at, &with, 1);
    wrong = wrong == NULL ? look() : wrong;
    const char *undone = change(at, &bytes[at], 1);
    return wrong != NULL ? wrong : undone;
}

static const char *swap(uint64_t a, uint64_t b)
{
    if (memcmp(bytes + a, bytes + b, 4096) == 0)
        return NULL;
    const char *wrong = change(a, bytes + b, 4096);
    wrong = wrong == NULL ? change(b, bytes + a, 4096) : wrong;
    wrong = wrong == NULL ? look() : wrong;
    const char *undone = change(a, bytes + a, 4096);
    undone = undone == NULL ? change(b, bytes + b, 4096) : undone;
    return wrong != NULL ? wrong : undone;
}

/* Superblocks, headers of blocks and the index; the rest is payload and the zeros behind it. */
static bool is_metadata(uint64_t at)
{
    uint64_t index;
    memcpy(&index, bytes + 32, sizeof index); /* docs/format.md: little endian */
    if (at < 8192 || at >= index)
        return true;
    return at % 4096 < HRI_ARCHIVE_HEADER_BYTES;
}

static const char *prove(long flips, uint64_t *at_out)
{
    struct hri_rng rng;
    const char *wrong = NULL;
    hri_rng_seed(&rng, 77);
    for (*at_out = 0; flips < 0 && *at_out < n_bytes && wrong == NULL; ++*at_out)
        if (is_metadata(*at_out))
            wrong = flip(*at_out, (uint32_t)hri_rng_below(&rng, 8));
    flips = flips < 0 ? (long)n_bytes / 8 : flips;
    for (long i = 0; i < flips && wrong == NULL; i++) {
        bool near = i % 4 == 0; /* superblocks are a small part of all */
        *at_out = hri_rng_below(&rng, near ? 8192 : n_bytes);
        if (i % 8 == 7)
            wrong = swap(*at_out / 4096 * 4096, hri_rng_below(&rng, n_bytes / 4096) * 4096);
        else
            wrong = flip(*at_out, (uint32_t)hri_rng_below(&rng, 8));
    }
    return wrong;
}

int main(int argc, char **argv)
{
    bool caught = argc > 2 && strcmp(argv[2], "caught") == 0;
    uint64_t at = 0;
    snprintf(dir, sizeof dir, "%s/proof-flip-%ld", HR_BINARY_DIR, (long)getpid());
    snprintf(path, sizeof path, "%s/%s", dir, HRI_SESSION_FILE);
    const char *wrong = make();
    if (wrong == NULL)
        wrong = prove(argc > 1 && strcmp(argv[1], "all") == 0 ? -1
                      : argc > 1                              ? atol(argv[1])
                                                              : 2000,
                      &at);
    (void)hr_runtime_destroy(h.rt);
    (void)hr_session_remove(dir);
    free(bytes);
    if (wrong != NULL) {
        printf("%s: byte %llu of %llu: %s\n", caught ? "caught" : "FAILED", (unsigned long long)at,
               (unsigned long long)n_bytes, wrong);
        return caught ? 0 : 1;
    }
    printf("all noticed: %llu opens refused, %llu gave what was saved\n",
           (unsigned long long)n_refused, (unsigned long long)n_same);
    return caught ? 1 : 0;
}
