/* Choosing the best of many scores beside one pass over them. */
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "bench/measure.h"
#include "bench/subjects.h"
#include "index/sort.h"

#define ROWS  131072u
#define BEST  (ROWS / 50)
#define TURNS 32 /* in one run */

struct choice {
    struct hri_ranked *scored, *work; /* [ROWS] */
    float sink;
};

static double select_run(void *context)
{
    struct choice *c = context;
    double start = hrb_seconds();
    for (int i = 0; i < TURNS; i++) {
        memcpy(c->work, c->scored, ROWS * sizeof *c->work);
        hri_rank_select(c->work, ROWS, BEST);
    }
    return hrb_seconds() - start;
}

/* The copy that a selection in place needs, and one look at every score. */
static double pass_run(void *context)
{
    struct choice *c = context;
    double start = hrb_seconds();
    for (int i = 0; i < TURNS; i++) {
        float most = 0;
        memcpy(c->work, c->scored, ROWS * sizeof *c->work);
        for (uint32_t j = 0; j < ROWS; j++)
            most = c->work[j].key > most ? c->work[j].key : most;
        c->sink += most;
    }
    return hrb_seconds() - start;
}

static bool right(struct choice *c)
{
    memcpy(c->work, c->scored, ROWS * sizeof *c->work);
    hri_rank_sort(c->work, ROWS);
    float least = c->work[BEST - 1].key;
    memcpy(c->work, c->scored, ROWS * sizeof *c->work);
    hri_rank_select(c->work, ROWS, BEST);
    for (uint32_t i = 0; i < BEST; i++)
        if (c->work[i].key < least)
            return false;
    return true;
}

int hrb_select(const struct hrb_benchmark *self, const struct hrb_options *options,
               struct hrb_result *result)
{
    struct choice c = {malloc(ROWS * sizeof *c.scored), malloc(ROWS * sizeof *c.work), 0};
    struct hri_rng rng;
    struct hrb_pair pair;
    int code = 1;
    (void)self;
    hri_rng_seed(&rng, 6);
    for (uint32_t i = 0; c.scored && i < ROWS; i++) {
        float x = (float)hri_rng_normal(&rng);
        c.scored[i] = (struct hri_ranked){x * x, i}; /* squared shares: few are large */
    }
    if (!c.scored || !c.work)
        hrb_failed(result, "out of memory");
    else if (!right(&c))
        hrb_failed(result, "a chosen score is smaller than one that was left");
    else if (hrb_measure(options, options->quick ? 5 : 21, select_run, &c, pass_run, &c, &pair))
        hrb_failed(result, "stopped");
    else {
        hrb_result_rate(result, &pair, (uint64_t)TURNS * ROWS * sizeof *c.scored);
        result->limit_is = "a copy and one pass over the scores, one thread";
        code = 0;
    }
    free(c.scored);
    free(c.work);
    return code;
}
