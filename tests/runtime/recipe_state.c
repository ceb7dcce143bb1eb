#include "tests/runtime/recipe_state.h"

#include "index/magicpig.h"
#include "index/pariskv.h"
#include "index/retrievalattention.h"
#include "runtime/sequence.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PATH_BYTES 800

static FILE *file_open(const char *folder, const char *name)
{
    char path[PATH_BYTES];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "wb");
    if (file == NULL) {
        fprintf(stderr, "cannot write %s\n", path);
        exit(1);
    }
    return file;
}

static void part_write(FILE *file, const void *data, size_t bytes)
{
    if (bytes > 0 && fwrite(data, 1, bytes, file) != bytes) {
        perror("write");
        exit(1);
    }
}

static void file_close(FILE *file)
{
    if (fclose(file) != 0) {
        perror("close");
        exit(1);
    }
}

void file_write(const char *folder, const char *name, const void *data, size_t bytes)
{
    FILE *file = file_open(folder, name);
    part_write(file, data, bytes);
    file_close(file);
}

static const void *state_of(const hr_sequence_t *s, uint32_t head)
{
    return s->layers[0].heads[head]->state;
}

/* [n_kv][planes][d] */
static void planes_write(const hr_sequence_t *s, const char *folder)
{
    FILE *file = file_open(folder, "planes.bin");
    for (uint32_t h = 0; h < s->n_kv; h++) {
        const struct hri_simhash *hash = &((const struct hri_magicpig *)state_of(s, h))->hash;
        part_write(file, hash->planes,
                   (size_t)hash->tables * hash->bits * hash->d * sizeof *hash->planes);
    }
    file_close(file);
}

/* [n_kv][d][d] */
static void turn_write(const hr_sequence_t *s, const char *folder)
{
    FILE *file = file_open(folder, "turn.bin");
    for (uint32_t h = 0; h < s->n_kv; h++) {
        const struct hri_pariskv *p = state_of(s, h);
        part_write(file, p->turn, (size_t)s->dk * s->dk * sizeof *p->turn);
    }
    file_close(file);
}

static void named(char *name, size_t bytes, const char *what, const char *when, int head)
{
    if (head < 0) {
        snprintf(name, bytes, "%s_%s.bin", what, when);
    } else {
        snprintf(name, bytes, "%s_%s_%d.bin", what, when, head);
    }
}

static void graph_write(const hr_sequence_t *s, const char *folder, const char *when)
{
    char name[64];
    uint32_t *rows = calloc(2 * (size_t)s->n_kv, sizeof *rows);
    if (rows == NULL) {
        abort();
    }
    for (uint32_t h = 0; h < s->n_kv; h++) {
        const struct hri_retrievalattention *r = state_of(s, h);
        const struct hri_graph *g = &r->graph;
        rows[h] = g->n;
        rows[s->n_kv + h] = g->entry;
        named(name, sizeof name, "edges", when, (int)h);
        file_write(folder, name, g->edge, 2 * (size_t)g->degree * g->n * sizeof *g->edge);
        named(name, sizeof name, "edge_counts", when, (int)h);
        file_write(folder, name, g->n_edges, g->n * sizeof *g->n_edges);
        if (strcmp(when, "prompt") == 0) {
            snprintf(name, sizeof name, "queries_%u.bin", h);
            file_write(folder, name, r->query, (size_t)r->n_query * s->dk * sizeof *r->query);
        }
    }
    named(name, sizeof name, "graph_rows", when, -1);
    file_write(folder, name, rows, s->n_kv * sizeof *rows);
    named(name, sizeof name, "entry", when, -1);
    file_write(folder, name, rows + s->n_kv, s->n_kv * sizeof *rows);
    free(rows);
}

void recipe_state_write(const hr_sequence_t *s, const char *folder, const char *when)
{
    const char *recipe = s->recipe.selector->name;
    if (strcmp(recipe, "magicpig") == 0) {
        planes_write(s, folder);
    } else if (strcmp(recipe, "pariskv") == 0) {
        turn_write(s, folder);
    } else if (strcmp(recipe, "retrievalattention") == 0) {
        graph_write(s, folder, when);
    }
}
