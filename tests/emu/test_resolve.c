/* The residency table under random histories: after every turn it is what a model says that moves
 * the clock's hand frame by frame. */
#include "tests/emu/emu_test.h"

struct model {
    uint32_t n_frames, blocks_max, n_heads, hand, turn;
    uint32_t *frame_of, *holds, *last_turn;
    uint8_t *referenced;
    uint32_t counts[3];
};

/* The frame given up next, or NONE when all are of this turn. */
static uint32_t model_victim(struct model *m)
{
    uint32_t open = 0;
    for (uint32_t f = 0; f < m->n_frames; f++)
        open += m->last_turn[f] != m->turn;
    while (open > 0) {
        uint32_t f = m->hand;
        m->hand = (m->hand + 1) % m->n_frames;
        if (m->last_turn[f] == m->turn)
            continue;
        if (!m->referenced[f])
            return f;
        m->referenced[f] = 0;
    }
    return HRI_CUDA_NONE;
}

static uint32_t model_turn(struct model *m, const uint32_t *items, const uint32_t *n_items,
                           uint32_t items_max, uint32_t jobs_max, uint32_t *frames,
                           struct hri_cuda_job *jobs)
{
    uint32_t n_jobs = 0;
    m->turn++;
    for (uint32_t p = 0; p < m->n_heads * items_max; p++) {
        uint32_t h = p / items_max;
        if (p % items_max >= n_items[h])
            continue;
        frames[p] = m->frame_of[h * m->blocks_max + items[p]];
        if (frames[p] == HRI_CUDA_NONE)
            continue;
        m->last_turn[frames[p]] = m->turn;
        m->referenced[frames[p]] = 1;
        m->counts[0]++;
    }
    for (uint32_t p = 0; p < m->n_heads * items_max; p++) {
        uint32_t h = p / items_max;
        if (p % items_max >= n_items[h] || frames[p] != HRI_CUDA_NONE)
            continue;
        uint32_t f = n_jobs < jobs_max ? model_victim(m) : HRI_CUDA_NONE;
        if (f == HRI_CUDA_NONE) {
            m->counts[2]++;
            continue;
        }
        if (m->holds[f] != HRI_CUDA_NONE)
            m->frame_of[m->holds[f]] = HRI_CUDA_NONE;
        m->holds[f] = h * m->blocks_max + items[p];
        m->frame_of[m->holds[f]] = f;
        m->last_turn[f] = m->turn;
        m->referenced[f] = 1;
        frames[p] = f;
        jobs[n_jobs++] = (struct hri_cuda_job){h, items[p], f, p % items_max};
        m->counts[1]++;
    }
    return n_jobs;
}

/* Blocks of a head, each once, ascending; few of them often. */
static uint32_t draw(struct hri_rng *rng, uint32_t blocks, uint32_t most, uint32_t *items)
{
    uint32_t n = 0, want = (uint32_t)hri_rng_below(rng, most + 1);
    for (uint32_t b = 0; b < blocks && n < want; b++)
        if (hri_rng_below(rng, 2 + b / 4) == 0)
            items[n++] = b;
    return n;
}

static void run(uint32_t n_heads, uint32_t blocks, uint32_t n_frames, uint32_t items_max,
                uint32_t jobs_max, uint32_t turns, int order)
{
    struct hri_rng rng;
    hri_rng_seed(&rng, n_frames * 7 + n_heads);
    const uint32_t all = n_heads * items_max, entries = n_heads * blocks;
    struct hri_cuda_residency t = {.n_frames = n_frames, .blocks_max = blocks};
    t.frame_of = device_alloc(entries * 4);
    t.holds = device_alloc(n_frames * 4);
    t.last_turn = device_alloc(n_frames * 4);
    t.referenced = device_alloc(n_frames);
    t.hand = device_alloc(4);
    t.turn = device_alloc(4);
    uint32_t *items = device_alloc(all * 4), *n_items = device_alloc(n_heads * 4);
    struct hri_cuda_resolve_args a = {
        .items = items, .n_items = n_items, .items_max = items_max, .jobs_max = jobs_max};
    a.frames = device_alloc(all * 4);
    a.jobs = device_alloc((jobs_max + 1) * sizeof *a.jobs);
    a.n_jobs = device_alloc(4);
    a.counts = device_zero(12);
    struct model m = {n_frames,
                      blocks,
                      n_heads,
                      0,
                      0,
                      malloc(entries * 4),
                      malloc(n_frames * 4 + 4),
                      calloc(n_frames + 1, 4),
                      calloc(n_frames + 1, 1),
                      {0}};
    uint32_t *frames = malloc(all * 4);
    struct hri_cuda_job *jobs = malloc((jobs_max + 1) * sizeof *jobs);
    assert_true(m.frame_of && m.holds && m.last_turn && m.referenced && frames && jobs);
    memset(m.frame_of, 0xff, entries * 4);
    memset(m.holds, 0xff, n_frames * 4);
    set_order(order);
    RUN(hri_cuda_residency_clear(&t, n_heads, NULL));
    for (uint32_t turn = 0; turn < turns; turn++) {
        for (uint32_t h = 0; h < n_heads; h++)
            n_items[h] = draw(&rng, blocks, items_max, items + h * items_max);
        RUN(hri_cuda_resolve(&t, &a, n_heads, NULL));
        uint32_t n = model_turn(&m, items, n_items, items_max, jobs_max, frames, jobs);
        assert_int_equal(*a.n_jobs, n);
        assert_memory_equal(a.jobs, jobs, n * sizeof *jobs);
        for (uint32_t p = 0; p < all; p++)
            if (p % items_max < n_items[p / items_max])
                assert_int_equal(a.frames[p], frames[p]);
        assert_memory_equal(t.frame_of, m.frame_of, entries * 4);
        assert_memory_equal(t.holds, m.holds, n_frames * 4);
        assert_memory_equal(t.last_turn, m.last_turn, n_frames * 4);
        assert_memory_equal(t.referenced, m.referenced, n_frames);
        assert_memory_equal(a.counts, m.counts, 12);
        assert_true(*t.hand == m.hand && *t.turn == m.turn);
        if (turn % 5 == 4 && n > 0) { /* some copies fail: their blocks leave */
            const uint32_t drop = 1 + n / 3;
            uint32_t *n_drop = device_copy(&drop, 4);
            if (turn % 2)
                RUN(hri_cuda_residency_drop(&t, a.jobs, n_drop, NULL));
            else
                RUN(hri_cuda_resolve_late(&t, &a, a.jobs, n_drop, NULL));
            assert_true(hri_emu_error() == NULL);
            for (uint32_t j = 0; j < n; j++) /* late ones have no frame in the list either */
                assert_int_equal(a.frames[jobs[j].head * items_max + jobs[j].item],
                                 turn % 2 == 0 && j < drop ? HRI_CUDA_NONE : jobs[j].frame);
            hri_emu_free(device_list[--device_count]);
            for (uint32_t j = 0; j < drop; j++) {
                m.frame_of[jobs[j].head * blocks + jobs[j].block] = HRI_CUDA_NONE;
                m.holds[jobs[j].frame] = HRI_CUDA_NONE;
                m.referenced[jobs[j].frame] = 0;
            }
        }
    }
    free(m.frame_of);
    free(m.holds);
    free(m.last_turn);
    free(m.referenced);
    free(frames);
    free(jobs);
    device_free_all();
}

static void test_histories(void **state)
{
    (void)state;
    const uint32_t frames[] = {1, 2, 7, 31, 32, 64, 500, 513, 1100};
    FOR_EACH(i, frames)
    {
        CASE("resolve with %u frames", frames[i]);
        run(3, 300, frames[i], 40, 120, 12, (int)(i % 3));
    }
}

static void test_more_items_than_threads(void **state)
{
    (void)state;
    CASE("resolve 2,400 items");
    run(4, 900, 700, 600, 2400, 4, HRI_EMU_SHUFFLED);
}

static void test_few_jobs(void **state)
{
    (void)state;
    CASE("resolve with room for 10 copies");
    run(2, 100, 64, 30, 10, 20, HRI_EMU_BACKWARD);
    CASE("resolve with room for no copy");
    run(2, 100, 64, 30, 0, 3, HRI_EMU_FORWARD);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        EMU_TEST(test_histories), EMU_TEST(test_more_items_than_threads), EMU_TEST(test_few_jobs)};
    return cmocka_run_group_tests(tests, small_machine, NULL);
}
