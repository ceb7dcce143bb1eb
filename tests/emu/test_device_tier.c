/* The device tier under random histories: turns, blocks that do not come, truncation, clearing. After each the
 * tables are read back and compared with a model as anyone would write it: a list of frames and a hand. */
#include "tests/emu/device_emu.h"
#include "tests/test.h"

#include "base/rng.h"
#include "offload/device_tier.h"

#define LAYERS 3u
#define HEADS  2u
#define BLOCKS 90u
#define ITEMS  12u
#define FRAME  64u
#define TURNS  150u
#define NONE   HRI_CUDA_NONE

/* One layer. */
struct model {
    uint32_t n_frames, hand, turn;
    uint32_t holds[64], last_turn[64];
    uint8_t referenced[64];
};

static uint32_t find(const struct model *m, uint32_t entry)
{
    for (uint32_t f = 0; f < m->n_frames; f++)
        if (m->holds[f] == entry)
            return f;
    return NONE;
}

/* There is one. */
static uint32_t victim(struct model *m)
{
    for (;;) {
        uint32_t f = m->hand;
        m->hand = (m->hand + 1) % m->n_frames;
        if (m->last_turn[f] == m->turn)
            continue;
        if (!m->referenced[f])
            return f;
        m->referenced[f] = 0;
    }
}

static uint32_t open_frames(const struct model *m)
{
    uint32_t n = 0;
    for (uint32_t f = 0; f < m->n_frames; f++)
        n += m->last_turn[f] != m->turn;
    return n;
}

/* frames: of each item; the jobs in order. */
static uint32_t turn(struct model *m, const uint32_t *items, const uint32_t *n_items,
                     uint32_t *frames, struct hri_cuda_job *jobs)
{
    uint32_t n = 0;
    m->turn++;
    for (uint32_t h = 0; h < HEADS; h++)
        for (uint32_t i = 0; i < n_items[h]; i++) {
            uint32_t f = find(m, h * BLOCKS + items[h * ITEMS + i]);
            frames[h * ITEMS + i] = f;
            if (f != NONE) {
                m->last_turn[f] = m->turn;
                m->referenced[f] = 1;
            }
        }
    for (uint32_t h = 0; h < HEADS; h++)
        for (uint32_t i = 0; i < n_items[h]; i++) {
            if (frames[h * ITEMS + i] != NONE || open_frames(m) == 0)
                continue;
            uint32_t f = victim(m), block = items[h * ITEMS + i];
            m->holds[f] = h * BLOCKS + block;
            m->last_turn[f] = m->turn;
            m->referenced[f] = 1;
            frames[h * ITEMS + i] = f;
            jobs[n++] = (struct hri_cuda_job){h, block, f, i};
        }
    return n;
}

static void forget(struct model *m, uint32_t head, uint32_t n_blocks)
{
    for (uint32_t f = 0; f < m->n_frames; f++)
        if (m->holds[f] != NONE && m->holds[f] / BLOCKS == head &&
            m->holds[f] % BLOCKS >= n_blocks) {
            m->holds[f] = NONE;
            m->referenced[f] = 0;
        }
}

static void clear(struct model *m)
{
    uint32_t n = m->n_frames;
    memset(m, 0, sizeof *m);
    m->n_frames = n;
    memset(m->holds, 0xff, sizeof m->holds);
}

struct place { /* device memory of the turns */
    struct hri_device_memory memory;
    uint32_t *items, *n_items, *frames, *n_jobs, *counts, *n_late;
    struct hri_cuda_job *jobs;
};

static void place_make(struct hri_device *device, struct place *p)
{
    assert_ok(hri_device_alloc(device, "a test", 1 << 16, &p->memory));
    struct hri_device_carve c = {p->memory.base, 0};
    p->items = hri_device_carve(&c, HEADS * ITEMS, 4);
    p->n_items = hri_device_carve(&c, HEADS, 4);
    p->frames = hri_device_carve(&c, HEADS * ITEMS, 4);
    p->n_jobs = hri_device_carve(&c, 1, 4);
    p->counts = hri_device_carve(&c, 3, 4);
    p->n_late = hri_device_carve(&c, 1, 4);
    p->jobs = hri_device_carve(&c, HEADS * ITEMS, sizeof *p->jobs);
    assert_ok(hri_device_fill(device, p->counts, 0, 12));
}

static void check(struct hri_device_tier *tier, uint32_t layer, const struct model *m)
{
    const struct hri_cuda_residency *t = hri_device_tier_table(tier, layer);
    uint32_t holds[64], frame_of[HEADS * BLOCKS], used = 0;
    device_emu_read(holds, t->holds, m->n_frames * 4);
    device_emu_read(frame_of, t->frame_of, sizeof frame_of);
    assert_memory_equal(holds, m->holds, m->n_frames * 4);
    for (uint32_t e = 0; e < HEADS * BLOCKS; e++) {
        assert_int_equal(frame_of[e], find(m, e));
        used += frame_of[e] != NONE;
    }
    assert_true(used <= m->n_frames);
}

static void one_turn(struct hri_device *device, struct hri_device_tier *tier, uint32_t layer,
                     struct model *m, struct hri_rng *rng, struct place *p)
{
    const struct hri_launchers *launch = hri_device_ops(device)->launch;
    void *stream = hri_device_stream(device);
    uint32_t items[HEADS * ITEMS] = {0}, n_items[HEADS] = {0}, frames[HEADS * ITEMS] = {0}, got_n;
    uint32_t got_frames[HEADS * ITEMS];
    struct hri_cuda_job jobs[HEADS * ITEMS], got[HEADS * ITEMS];
    for (uint32_t h = 0; h < HEADS; h++) {
        uint32_t most = (uint32_t)hri_rng_below(rng, ITEMS + 1);
        for (uint32_t b = 0; b < BLOCKS && n_items[h] < most; b++)
            if (hri_rng_below(rng, 2 + b / 3) == 0)
                items[h * ITEMS + n_items[h]++] = b;
    }
    const struct hri_cuda_resolve_args a = {.items = p->items,
                                            .n_items = p->n_items,
                                            .items_max = ITEMS,
                                            .frames = p->frames,
                                            .jobs = p->jobs,
                                            .jobs_max = HEADS * ITEMS,
                                            .n_jobs = p->n_jobs,
                                            .counts = p->counts};
    assert_ok(hri_device_copy(device, p->items, items, sizeof items));
    assert_ok(hri_device_copy(device, p->n_items, n_items, sizeof n_items));
    assert_int_equal(launch->resolve(hri_device_tier_table(tier, layer), &a, HEADS, stream), 0);
    uint32_t n = turn(m, items, n_items, frames, jobs), n_late = 0;
    device_emu_read(&got_n, p->n_jobs, 4);
    assert_int_equal(got_n, n);
    device_emu_read(got, p->jobs, n * sizeof *got + 4);
    assert_memory_equal(got, jobs, n * sizeof *got);
    for (uint32_t j = 0; j < n; j++) /* some do not come */
        if (hri_rng_below(rng, 5) == 0)
            got[n_late++] = jobs[j];
    for (uint32_t j = 0; j < n_late; j++) {
        m->holds[got[j].frame] = NONE;
        m->referenced[got[j].frame] = 0;
        frames[got[j].head * ITEMS + got[j].item] = NONE;
    }
    assert_ok(hri_device_copy(device, p->jobs, got, n_late * sizeof *got));
    assert_ok(hri_device_copy(device, p->n_late, &n_late, 4));
    assert_int_equal(
        launch->resolve_late(hri_device_tier_table(tier, layer), &a, p->jobs, p->n_late, stream),
        0);
    device_emu_read(got_frames, p->frames, sizeof got_frames);
    for (uint32_t h = 0; h < HEADS; h++)
        assert_memory_equal(got_frames + h * ITEMS, frames + h * ITEMS, n_items[h] * 4);
}

static void history(uint32_t n_frames)
{
    struct hri_device *device = NULL;
    struct hri_device_tier *tier = NULL;
    struct model models[LAYERS];
    struct place p;
    struct hri_rng rng;
    uint64_t seed = test_seed(n_frames);
    hri_rng_seed(&rng, seed);
    const struct hri_device_options o = {.ops = device_emu_ops(), .budget_bytes = 1 << 20};
    assert_ok(hri_device_open(&o, &device));
    const struct hri_device_tier_options t = {.device = device,
                                              .n_layers = LAYERS,
                                              .n_heads = HEADS,
                                              .blocks_max = BLOCKS,
                                              .n_frames = n_frames,
                                              .frame_bytes = FRAME};
    assert_ok(hri_device_tier_create(&t, &tier));
    assert_int_equal(hri_device_stats(device).bytes_held, hri_device_tier_bytes(&t));
    place_make(device, &p);
    for (uint32_t i = 0; i < LAYERS; i++) {
        models[i].n_frames = n_frames;
        clear(&models[i]);
    }
    for (uint32_t i = 0; i < TURNS; i++) {
        uint32_t layer = i % LAYERS;
        one_turn(device, tier, layer, &models[layer], &rng, &p);
        if (hri_rng_below(&rng, 6) == 0) {
            uint32_t head = (uint32_t)hri_rng_below(&rng, HEADS);
            uint32_t blocks = (uint32_t)hri_rng_below(&rng, BLOCKS + 1);
            assert_ok(hri_device_tier_truncate(tier, layer, head, blocks));
            forget(&models[layer], head, blocks);
        }
        if (hri_rng_below(&rng, 40) == 0) {
            assert_ok(hri_device_tier_clear(tier, layer));
            clear(&models[layer]);
        }
        for (uint32_t j = 0; j < LAYERS; j++) /* other layers too: nothing was touched there */
            check(tier, j, &models[j]);
    }
    assert_ok(hri_device_wait(device));
    hri_device_free(device, &p.memory);
    hri_device_tier_destroy(tier);
    hri_device_close(device);
}

static void test_histories(void **state)
{
    (void)state;
    const uint32_t frames[] = {1, 2, 5, 17, 64};
    for (size_t i = 0; i < sizeof frames / sizeof *frames; i++)
        history(frames[i]);
}

static void test_budget(void **state)
{
    (void)state;
    struct hri_device *device = NULL;
    struct hri_device_tier *tier = NULL;
    const struct hri_device_options o = {.ops = device_emu_ops(), .budget_bytes = 1 << 16};
    assert_ok(hri_device_open(&o, &device));
    struct hri_device_tier_options t = {.device = device,
                                        .n_layers = LAYERS,
                                        .n_heads = HEADS,
                                        .blocks_max = BLOCKS,
                                        .n_frames = 1000,
                                        .frame_bytes = FRAME};
    assert_fails(hri_device_tier_create(&t, &tier), HR_ERR_BUDGET, "frames needs");
    assert_int_equal(hri_device_stats(device).bytes_held, 0);
    t.n_frames = 1;
    assert_ok(hri_device_tier_create(&t, &tier));
    assert_true(hri_device_stats(device).bytes_peak <= 1 << 16);
    hri_device_tier_destroy(tier);
    assert_int_equal(hri_device_stats(device).bytes_held, 0);
    hri_device_close(device);
}

int main(void)
{
    if (!device_emu_available()) {
        printf("skipped: no CUDA device\n");
        return 77;
    }
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_histories),
                                       cmocka_unit_test(test_budget)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
