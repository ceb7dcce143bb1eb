/* The emulator's machinery: scheduling of a block's fibers, barriers, warp operations, asynchronous
 * copies, launches and recorded graphs. Include it in exactly one C++ source of a program, which is
 * compiled without access hooks.
 *
 * A fiber runs until it waits. When every thread of the block waits at the same barrier, all go on;
 * a warp operation completes when the last lane of its mask arrives. If nothing can run, that is
 * reported with the places where threads wait. */
#ifndef HRI_EMU_RUN_H
#define HRI_EMU_RUN_H

#include "kernels/emu/emu.h"
#include "kernels/emu/emu_check.h"
#include "kernels/emu/emu_fiber.h"

#include <ctime>

namespace emu
{

#define EMU_MASKS_MAX 16u

/* A warp operation in the making: what its lanes gave so far, and what the last one of this mask
 * gave, which its lanes may not have read yet. */
struct meeting {
    uint32_t mask, arrived;
    operation op;
    where at;
    alignas(16) unsigned char in[32 * EMU_LANE_BYTES], out[32 * EMU_LANE_BYTES];
};
struct warp {
    unsigned n_meetings;
    meeting meetings[EMU_MASKS_MAX];
};
struct mbarrier {
    uint64_t *at;
    unsigned arrivals, missing, phase;
    uint64_t expected, arrived_bytes;
    std::vector<pending_copy> copies;
};
struct shared_piece {
    const void *tag;
    void *memory;
};

struct scheduler {
    thread threads[EMU_THREADS_MAX];
    warp warps[EMU_THREADS_MAX / 32];
    unsigned order[EMU_THREADS_MAX];
    unsigned n, n_done, n_waiting, predicates, predicates_out;
    std::vector<shared_piece> pieces;
    std::vector<mbarrier> bars;
    void *dynamic;
    size_t dynamic_bytes, static_bytes;
    body_fn body;
    void *params;
    hri_emu_order how;
    uint64_t seed;
    hri_emu_graph *recording;
};
inline scheduler &sched()
{
    static scheduler *s = nullptr;
    if (!s) {
        s = new scheduler();
        state().own = {(uintptr_t)s, (uintptr_t)s + sizeof *s};
    }
    return *s;
}

const ids &now()
{
    return state().current->id;
}
unsigned lane_id()
{
    return state().current->number % 32;
}

inline void wait_in(thread_state how, where at)
{
    thread *t = state().current;
    t->state = how;
    t->at = at;
    switch_fiber(t->f, state().host);
}

/* -------------------------------------------------------------------------------------- barriers */

int barrier(int predicate, where at)
{
    scheduler &s = sched();
    s.predicates += predicate != 0;
    s.n_waiting++;
    wait_in(AT_BARRIER, at);
    return (int)s.predicates_out;
}

/* "threads 0-31, 64 at file:line" for every place where threads wait. */
inline std::string waiting_text()
{
    scheduler &s = sched();
    std::vector<std::pair<std::string, std::string>> places;
    for (unsigned i = 0; i < s.n;) {
        const thread &t = s.threads[i];
        std::string place = t.state == DONE ? "returned" : "wait at " + place_of(t.at);
        unsigned last = i;
        while (last + 1 < s.n && s.threads[last + 1].state == t.state &&
               (t.state == DONE || (s.threads[last + 1].at.line == t.at.line &&
                                    s.threads[last + 1].at.file == t.at.file)))
            last++;
        std::string who = std::to_string(i) + (last > i ? "-" + std::to_string(last) : "");
        size_t p = 0;
        while (p < places.size() && places[p].first != place)
            p++;
        if (p == places.size())
            places.push_back({place, who});
        else
            places[p].second += ", " + who;
        i = last + 1;
    }
    std::string text;
    for (const auto &p : places)
        text += (text.empty() ? "threads " : "; threads ") + p.second + " " + p.first;
    return text;
}

inline void stuck(const char *what)
{
    report("block " + block_text(sched().threads[0].id) + ": " + what + ": " + waiting_text());
}

/* All threads of the block wait, or have returned. */
inline void barrier_complete()
{
    scheduler &s = sched();
    if (s.n_done > 0) {
        stuck("divergent barrier");
        return;
    }
    for (unsigned i = 1; i < s.n; i++) {
        if (s.threads[i].at.line != s.threads[0].at.line ||
            s.threads[i].at.file != s.threads[0].at.file) {
            stuck("divergent barrier");
            return;
        }
    }
    for (unsigned i = 0; i < s.n; i++)
        s.threads[i].state = RUNNABLE;
    s.predicates_out = s.predicates;
    s.predicates = 0;
    s.n_waiting = 0;
    state().epoch++;
    state().counts.barriers++;
}

/* ------------------------------------------------------------------------------- warp operations */

inline meeting &meeting_of(warp &w, uint32_t mask, where at)
{
    for (unsigned i = 0; i < w.n_meetings; i++)
        if (w.meetings[i].mask == mask)
            return w.meetings[i];
    if (w.n_meetings == EMU_MASKS_MAX)
        fail(at, "warp operations with more than %u masks", EMU_MASKS_MAX);
    meeting &m = w.meetings[w.n_meetings++];
    m.mask = mask;
    m.arrived = 0;
    return m;
}

const unsigned char *exchange(operation op, uint32_t mask, const void *in, size_t bytes, where at)
{
    scheduler &s = sched();
    thread *t = state().current;
    unsigned lane = t->number % 32, first = t->number - lane;
    unsigned lanes = s.n - first < 32 ? s.n - first : 32;
    if (lanes < 32)
        mask &= (1u << lanes) - 1;
    if (!(mask >> lane & 1))
        fail(at, "warp operation with mask %#x by lane %u, which is not in it", mask, lane);
    meeting &m = meeting_of(s.warps[t->number / 32], mask, at);
    if (m.arrived && (m.op != op || m.at.line != at.line || m.at.file != at.file))
        fail(at, "divergent warp operation: other lanes (%#x) are at %s", m.arrived,
             place_of(m.at).c_str());
    m.op = op;
    m.at = at;
    m.arrived |= 1u << lane;
    if (bytes)
        memcpy(m.in + lane * EMU_LANE_BYTES, in, bytes);
    if (m.arrived != mask) {
        wait_in(AT_WARP, at);
        return m.out;
    }
    uint32_t epoch = 0;
    for (unsigned i = 0; i < lanes; i++)
        if ((mask >> i & 1) && s.threads[first + i].warp_epoch > epoch)
            epoch = s.threads[first + i].warp_epoch;
    for (unsigned i = 0; i < lanes; i++)
        if (mask >> i & 1) {
            s.threads[first + i].warp_epoch = epoch + 1;
            s.threads[first + i].state = RUNNABLE;
        }
    memcpy(m.out, m.in, sizeof m.out);
    m.arrived = 0;
    state().counts.warp_operations++;
    return m.out;
}

/* --------------------------------------------------------------------------------- shared memory */

void *shared_static(const void *tag, size_t bytes, size_t align, where at)
{
    scheduler &s = sched();
    for (const shared_piece &p : s.pieces)
        if (p.tag == tag)
            return p.memory;
    s.static_bytes += bytes;
    if (s.static_bytes > EMU_STATIC_MAX)
        fail(at, "%zu bytes of static shared memory, the most is %u", s.static_bytes,
             EMU_STATIC_MAX);
    void *memory = arena_take(bytes, align);
    s.pieces.push_back({tag, memory});
    return memory;
}

void *shared_dynamic(where at)
{
    if (sched().dynamic_bytes == 0)
        fail(at, "the launch gave no dynamic shared memory");
    return sched().dynamic;
}

/* --------------------------------------------------------------------------- asynchronous copies
 * Bytes arrive when somebody waits for them, so that a read before the wait finds memory that
 * nobody wrote. */

inline bool in_arena(const void *p)
{
    return (uintptr_t)p - (uintptr_t)state().arena < EMU_ARENA_BYTES;
}

inline void copy_issue(const pending_copy &c)
{
    touch_kind(c.from, c.filled, READ, c.at);
    touch_kind(c.to, c.bytes, in_arena(c.to) ? ISSUE : WRITE, c.at);
}

inline void copy_land(const pending_copy &c, access_kind kind)
{
    if (in_arena(c.to))
        touch_kind(c.to, c.bytes, kind, c.at);
    memcpy(c.to, c.from, c.filled);
    memset(static_cast<char *>(c.to) + c.filled, 0, c.bytes - c.filled);
}

void copy_async(void *shared, const void *global, size_t bytes, size_t filled, where at)
{
    if ((uintptr_t)shared % bytes || (filled && (uintptr_t)global % bytes))
        fail(at, "asynchronous copy of %zu bytes that is not aligned", bytes);
    thread *t = state().current;
    t->copies.push_back({shared, global, bytes, filled, t->groups, at});
    copy_issue(t->copies.back());
}

void copy_commit()
{
    state().current->groups++;
}

void copy_wait(unsigned pending, where)
{
    thread *t = state().current;
    size_t landed = 0;
    while (landed < t->copies.size() && t->copies[landed].group + pending < t->groups)
        copy_land(t->copies[landed++], LAND);
    t->copies.erase(t->copies.begin(), t->copies.begin() + (ptrdiff_t)landed);
}

inline mbarrier *mbarrier_of(const uint64_t *bar)
{
    for (mbarrier &b : sched().bars)
        if (b.at == bar)
            return &b;
    return nullptr;
}

inline mbarrier &mbarrier_must(const uint64_t *bar, where at)
{
    mbarrier *b = mbarrier_of(bar);
    if (!b)
        fail(at, "an mbarrier that was not initialised");
    return *b;
}

void mbarrier_init(uint64_t *bar, unsigned arrivals, where at)
{
    touch_kind(bar, sizeof *bar, WRITE, at);
    if (mbarrier_of(bar))
        fail(at, "an mbarrier that was initialised before");
    sched().bars.push_back({bar, arrivals, arrivals, 0, 0, 0, {}});
    *bar = 0;
}

inline bool mbarrier_try(mbarrier &b)
{
    uint64_t bytes = 0;
    for (const pending_copy &c : b.copies)
        bytes += c.bytes;
    if (b.missing > 0)
        return false;
    if (bytes != b.expected) {
        report("block " + block_text(sched().threads[0].id) + ": an mbarrier expects " +
               std::to_string(b.expected) + " bytes, " + std::to_string(bytes) +
               " are on their way");
        return false;
    }
    for (const pending_copy &c : b.copies)
        copy_land(c, LAND_ALL);
    b.copies.clear();
    b.expected = 0;
    b.missing = b.arrivals;
    b.phase ^= 1;
    return true;
}

void mbarrier_expect(uint64_t *bar, uint32_t bytes, where at)
{
    mbarrier &b = mbarrier_must(bar, at);
    if (b.missing == 0)
        fail(at, "more arrivals at an mbarrier than it was made for");
    b.missing--;
    b.expected += bytes;
}

/* Another thread's fence orders what it brought; the waiting threads see it as their own. */
void mbarrier_wait(uint64_t *bar, unsigned phase, where at)
{
    for (;;) {
        mbarrier &b = mbarrier_must(bar, at);
        if (b.phase != phase || mbarrier_try(b))
            break;
        if (state().failed)
            abandon();
        state().current->bar = bar;
        state().current->bar_phase = phase;
        wait_in(AT_MBARRIER, at);
    }
}

inline void bulk_check(const void *shared, const void *global, uint32_t bytes, where at)
{
    if ((uintptr_t)shared % 16 || (uintptr_t)global % 16 || bytes % 16)
        fail(at, "bulk copy of %u bytes: addresses and size must be multiples of 16", bytes);
}

void bulk_load(void *shared, const void *global, uint32_t bytes, uint64_t *bar, where at)
{
    bulk_check(shared, global, bytes, at);
    mbarrier &b = mbarrier_must(bar, at);
    b.copies.push_back({shared, global, bytes, bytes, 0, at});
    copy_issue(b.copies.back());
}

/* Reads shared memory when it is waited for, which is as late as the machine may. */
void bulk_store(void *global, const void *shared, uint32_t bytes, where at)
{
    bulk_check(shared, global, bytes, at);
    thread *t = state().current;
    t->copies.push_back({global, shared, bytes, bytes, t->groups, at});
    copy_issue(t->copies.back());
}

/* ----------------------------------------------------------------------------- what the host sees
 * Flags in mapped memory that another thread of the program reads and writes meanwhile. */

uint32_t load_system(const uint32_t *flag, where at)
{
    touch_kind(flag, sizeof *flag, ATOMIC, at);
    return __atomic_load_n(flag, __ATOMIC_ACQUIRE);
}

void store_system(uint32_t *flag, uint32_t x, where at)
{
    touch_kind(flag, sizeof *flag, ATOMIC, at);
    __atomic_store_n(flag, x, __ATOMIC_RELEASE);
}

uint64_t now_ns()
{
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* --------------------------------------------------------------------------------------- running */

inline void thread_entry()
{
    arrived();
    scheduler &s = sched();
    s.body(s.params);
    thread *t = state().current;
    if (!t->copies.empty())
        fail(t->copies[0].at, "a copy that nobody waits for");
    t->state = DONE;
    s.n_done++;
    switch_fiber(t->f, state().host);
    abort();
}

inline uint64_t next_random(uint64_t &x)
{
    x += 0x9e3779b97f4a7c15u; /* splitmix64 */
    uint64_t z = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

template <class T> void order_fill(T *order, size_t n)
{
    scheduler &s = sched();
    for (size_t i = 0; i < n; i++)
        order[i] = (T)(s.how == HRI_EMU_BACKWARD ? n - 1 - i : i);
    for (size_t i = n; s.how == HRI_EMU_SHUFFLED && i > 1; i--) {
        size_t j = next_random(s.seed) % i;
        T swap = order[i - 1];
        order[i - 1] = order[j];
        order[j] = swap;
    }
}

/* Threads that wait at an mbarrier whose turn has come. Returns how many. */
inline unsigned mbarriers_wake()
{
    scheduler &s = sched();
    unsigned n = 0;
    for (unsigned i = 0; i < s.n; i++) {
        thread &t = s.threads[i];
        if (t.state != AT_MBARRIER)
            continue;
        const mbarrier *b = mbarrier_of(t.bar);
        if (b && (b->phase != t.bar_phase || b->missing == 0)) {
            t.state = RUNNABLE;
            n++;
        }
    }
    return n;
}

inline void block_schedule()
{
    scheduler &s = sched();
    checker &c = state();
    while (s.n_done < s.n && !c.failed) {
        unsigned ran = 0;
        for (unsigned i = 0; i < s.n && !c.failed; i++) {
            thread &t = s.threads[s.order[i]];
            if (t.state != RUNNABLE)
                continue;
            ran++;
            c.current = &t;
            switch_fiber(c.host, t.f);
        }
        if (c.failed || s.n_done == s.n)
            break;
        c.current = &s.threads[0]; /* for reports */
        if (s.n_waiting > 0 && s.n_waiting + s.n_done == s.n)
            barrier_complete();
        else if (ran == 0 && mbarriers_wake() == 0)
            stuck("nothing can go on");
    }
    c.current = nullptr;
}

inline void block_run(const launch_config &config, dim3 block)
{
    scheduler &s = sched();
    arena_reset();
    s.n = config.block.x * config.block.y * config.block.z;
    s.n_done = s.n_waiting = s.predicates = s.predicates_out = 0;
    s.pieces.clear();
    s.bars.clear();
    s.static_bytes = 0;
    s.dynamic_bytes = config.shared_bytes;
    s.dynamic = config.shared_bytes ? arena_take(config.shared_bytes, 1024) : nullptr;
    for (unsigned w = 0; w * 32 < s.n; w++)
        s.warps[w].n_meetings = 0;
    for (unsigned i = 0; i < s.n; i++) {
        thread &t = s.threads[i];
        const dim3 &dim = config.block;
        t.id = {dim3(i % dim.x, i / dim.x % dim.y, i / dim.x / dim.y), block, dim, config.grid};
        t.number = i;
        t.state = RUNNABLE;
        t.warp_epoch = 0;
        t.groups = 0;
        t.copies.clear();
        make_fiber(t.f, i, thread_entry);
    }
    order_fill(s.order, s.n);
    block_schedule();
    checker &c = state();
    c.counts.blocks++;
    if (s.static_bytes + s.dynamic_bytes > c.counts.shared_bytes_most)
        c.counts.shared_bytes_most = s.static_bytes + s.dynamic_bytes;
    if (!c.failed && s.static_bytes + s.dynamic_bytes > EMU_SHARED_MAX)
        report("more shared memory than a block may have");
}

inline bool config_check(const launch_config &config)
{
    uint64_t threads = (uint64_t)config.block.x * config.block.y * config.block.z;
    uint64_t blocks = (uint64_t)config.grid.x * config.grid.y * config.grid.z;
    if (threads == 0 || threads > EMU_THREADS_MAX || blocks == 0 || config.grid.y > 65535 ||
        config.grid.z > 65535 || config.shared_bytes > EMU_SHARED_MAX) {
        report("launch at " + place_of(config.at) + " with a grid of " + std::to_string(blocks) +
               " blocks of " + std::to_string(threads) + " threads and " +
               std::to_string(config.shared_bytes) + " bytes of shared memory");
        return false;
    }
    return true;
}

} // namespace emu

struct hri_emu_graph {
    struct node {
        emu::launch_config config;
        emu::body_fn body;
        void *params;
        void (*destroy)(void *);
    };
    std::vector<node> nodes;
};

namespace emu
{

inline int run_now(const launch_config &config, body_fn body, void *params)
{
    scheduler &s = sched();
    checker &c = state();
    if (c.failed)
        return 1;
    c.kernel = config.kernel;
    c.counts.launches++;
    if (!config_check(config))
        return 1;
    find_host_stack();
    s.body = body;
    s.params = params;
    c.params = {(uintptr_t)params, (uintptr_t)params + config.params_bytes};
    size_t n = (size_t)config.grid.x * config.grid.y * config.grid.z;
    std::vector<uint32_t> order(n);
    order_fill(order.data(), n);
    for (size_t i = 0; i < n && !c.failed; i++) {
        uint32_t b = order[i];
        block_run(config, dim3(b % config.grid.x, b / config.grid.x % config.grid.y,
                               b / config.grid.x / config.grid.y));
    }
    return c.failed;
}

int run(const launch_config &config, body_fn body, void *params, void *(*copy)(const void *),
        void (*destroy)(void *))
{
    scheduler &s = sched();
    if (!s.recording)
        return run_now(config, body, params);
    s.recording->nodes.push_back({config, body, copy(params), destroy});
    return 0;
}

} // namespace emu

extern "C" void hri_emu_set_order(enum hri_emu_order order, uint64_t seed)
{
    emu::sched().how = order;
    emu::sched().seed = seed;
}

extern "C" int hri_emu_available(void)
{
    return 1;
}

extern "C" uint32_t hri_emu_arch(void)
{
    return 90;
}

extern "C" void *hri_emu_stream(void)
{
    return nullptr;
}

extern "C" void hri_emu_capture_begin(void)
{
    if (!emu::sched().recording)
        emu::sched().recording = new hri_emu_graph();
}

extern "C" struct hri_emu_graph *hri_emu_capture_end(void)
{
    hri_emu_graph *graph = emu::sched().recording;
    emu::sched().recording = nullptr;
    return graph;
}

extern "C" size_t hri_emu_graph_launches(const struct hri_emu_graph *graph)
{
    return graph->nodes.size();
}

extern "C" int hri_emu_graph_replay(const struct hri_emu_graph *graph)
{
    for (const hri_emu_graph::node &n : graph->nodes)
        if (emu::run_now(n.config, n.body, n.params))
            return 1;
    return 0;
}

extern "C" void hri_emu_graph_free(struct hri_emu_graph *graph)
{
    if (!graph)
        return;
    for (const hri_emu_graph::node &n : graph->nodes)
        n.destroy(n.params);
    delete graph;
}

#endif
