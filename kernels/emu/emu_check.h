/* What the emulator knows of memory, and how it says what went wrong. Part of emu_run.h.
 *
 * Every byte of shared memory has a state and the last write and read of it. Two accesses are
 * ordered when a barrier of the block lies between them, or, within a warp, a warp operation both
 * took part in; if one of them is a write and they are not, it is a race. */
#ifndef HRI_EMU_CHECK_H
#define HRI_EMU_CHECK_H

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <link.h>
#include <pthread.h>
#include <string>
#include <vector>

#include "kernels/emu/emu.h"
#include "kernels/emu/emu_fiber.h"

/* Lowest and one past the highest byte of the program itself: constant tables lie there. */
extern "C" char __executable_start, _end;

namespace emu
{

#define EMU_SHARED_MAX  (227u * 1024) /* what a block may have at most, sm_90 */
#define EMU_STATIC_MAX  (48u * 1024)
#define EMU_REDZONE     256u
#define EMU_ARENA_BYTES (2 * EMU_SHARED_MAX)

enum thread_state { RUNNABLE, AT_BARRIER, AT_WARP, AT_MBARRIER, DONE };
struct pending_copy {
    void *to;
    const void *from;
    size_t bytes, filled;
    unsigned group;
    where at;
};
struct thread {
    fiber f;
    ids id;
    unsigned number;
    thread_state state;
    uint32_t warp_epoch;
    where at;        /* where it waits */
    unsigned groups; /* of asynchronous copies, committed */
    std::vector<pending_copy> copies;
    uint64_t *bar;
    unsigned bar_phase;
};

enum byte_state : uint8_t { NOT_SHARED = 0, UNWRITTEN, WRITTEN };
#define EMU_MANY 0xffffu
struct byte_info {
    byte_state state;
    bool wrote, was_read;
    uint16_t writer, reader, reader_warp; /* EMU_MANY: several */
    uint32_t write_epoch, write_warp_epoch, read_epoch, read_warp_epoch;
    uintptr_t write_pc, read_pc;
    where write_at, read_at;
};

struct range {
    uintptr_t begin, end;
};

struct checker {
    std::vector<range> ranges; /* device and registered memory, ascending */
    size_t last_range;
    unsigned char *arena; /* shared memory of the running block */
    byte_info *info;      /* [EMU_ARENA_BYTES] */
    size_t arena_used;
    uint32_t epoch;                /* barriers of the running block */
    range host_stack, own, params; /* own: threadIdx and the like */
    std::string error;
    bool failed;
    const char *kernel;
    thread *current; /* NULL: no kernel is running */
    fiber host;
    hri_emu_counts counts;
    bool hooked;
};
inline checker &state()
{
    static checker c = {};
    return c;
}

/* ------------------------------------------------------------------------------------- reporting */

inline std::string place_of(where at)
{
    const char *slash = at.file ? strrchr(at.file, '/') : nullptr;
    return at.file ? std::string(slash ? slash + 1 : at.file) + ":" + std::to_string(at.line)
                   : std::string("?");
}

inline uintptr_t program_base()
{
    uintptr_t base = 0;
    dl_iterate_phdr(
        [](dl_phdr_info *info, size_t, void *out) {
            *static_cast<uintptr_t *>(out) = info->dlpi_addr;
            return 1; /* the first is the program */
        },
        &base);
    return base;
}

/* file:line of a return address, by addr2line; the address itself where that is not there. A struct that is copied by its members is
 * inlined from emu.h: then it is the line that copies it. */
inline std::string place_of(uintptr_t pc)
{
    char command[128], text[512] = "", line[512], exe[4096];
    ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);
    snprintf(command, sizeof command, " 0x%zx 2>/dev/null", (size_t)(pc - 1 - program_base()));
    if (n > 0) {
        exe[n] = 0;
        FILE *pipe = popen((std::string("addr2line -i -e '") + exe + "'" + command).c_str(), "r");
        while (pipe && fgets(line, sizeof line, pipe))
            if (text[0] == 0 || strstr(text, "/emu.h:"))
                memcpy(text, line, sizeof text);
        if (pipe)
            pclose(pipe);
    }
    text[strcspn(text, " \n")] = 0;
    const char *slash = strrchr(text, '/');
    if (text[0] == 0 || text[0] == '?')
        snprintf(text, sizeof text, "pc %#zx", (size_t)(pc - program_base()));
    return slash ? slash + 1 : text;
}

inline std::string thread_text(unsigned number)
{
    const checker &c = state();
    if (!c.current)
        return "?";
    const dim3 &dim = c.current->id.block_dim;
    char text[64];
    if (dim.y == 1 && dim.z == 1)
        snprintf(text, sizeof text, "%u", number);
    else
        snprintf(text, sizeof text, "(%u,%u,%u)", number % dim.x, number / dim.x % dim.y,
                 number / dim.x / dim.y);
    return text;
}

inline std::string block_text(const ids &id)
{
    char text[64];
    snprintf(text, sizeof text, "(%u,%u,%u)", id.block.x, id.block.y, id.block.z);
    return text;
}

inline void report(const std::string &text)
{
    checker &c = state();
    if (c.error.empty())
        c.error = std::string(c.kernel ? c.kernel : "?") + ": " + text;
    c.failed = true;
}

/* Leaves the running thread for good: the launch is abandoned. */
[[noreturn]] inline void abandon()
{
    checker &c = state();
    thread *t = c.current;
    switch_fiber(t->f, c.host);
    abort();
}

[[noreturn]] inline void fail_text(const std::string &text, const std::string &place)
{
    checker &c = state();
    if (c.current) {
        report("block " + block_text(c.current->id) + " thread " + thread_text(c.current->number) +
               " at " + place + ": " + text);
        abandon();
    }
    fprintf(stderr, "emulator, outside of a kernel, at %s: %s\n", place.c_str(), text.c_str());
    abort();
}

[[noreturn]] void fail(where at, const char *format, ...)
{
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    fail_text(text, place_of(at));
}

/* --------------------------------------------------------------------------------- global memory */

inline size_t range_after(uintptr_t a)
{
    const std::vector<range> &ranges = state().ranges;
    size_t low = 0, high = ranges.size();
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (ranges[middle].begin <= a)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

inline void range_add(uintptr_t begin, size_t bytes)
{
    checker &c = state();
    c.ranges.insert(c.ranges.begin() + (ptrdiff_t)range_after(begin), {begin, begin + bytes});
    c.last_range = 0;
}

inline size_t range_remove(uintptr_t begin)
{
    checker &c = state();
    size_t i = range_after(begin), bytes = 0;
    if (i > 0 && c.ranges[i - 1].begin == begin) {
        bytes = c.ranges[i - 1].end - begin;
        c.ranges.erase(c.ranges.begin() + (ptrdiff_t)(i - 1));
    }
    c.last_range = 0;
    return bytes;
}

inline bool in_range(const range &r, uintptr_t a, size_t bytes)
{
    return a >= r.begin && a + bytes <= r.end;
}

inline bool global_known(uintptr_t a, size_t bytes)
{
    checker &c = state();
    if (c.last_range < c.ranges.size() && in_range(c.ranges[c.last_range], a, bytes))
        return true;
    size_t i = range_after(a);
    if (i > 0 && in_range(c.ranges[i - 1], a, bytes)) {
        c.last_range = i - 1;
        return true;
    }
    range program = {(uintptr_t)&__executable_start, (uintptr_t)&_end};
    return in_range(program, a, bytes) || in_range(c.host_stack, a, bytes) ||
           in_range(c.own, a, bytes) || in_range(c.params, a, bytes);
}

inline std::string nearest_text(uintptr_t a)
{
    const std::vector<range> &ranges = state().ranges;
    size_t i = range_after(a);
    char text[128];
    if (i > 0 && a - ranges[i - 1].end < 65536 && a >= ranges[i - 1].end)
        snprintf(text, sizeof text, "%zu bytes past the end of a buffer of %zu bytes",
                 (size_t)(a - ranges[i - 1].end),
                 (size_t)(ranges[i - 1].end - ranges[i - 1].begin));
    else if (i > 0 && a < ranges[i - 1].end)
        snprintf(text, sizeof text, "across the end of a buffer of %zu bytes",
                 (size_t)(ranges[i - 1].end - ranges[i - 1].begin));
    else if (i < ranges.size() && ranges[i].begin - a < 65536)
        snprintf(text, sizeof text, "%zu bytes before a buffer of %zu bytes",
                 (size_t)(ranges[i].begin - a), (size_t)(ranges[i].end - ranges[i].begin));
    else
        snprintf(text, sizeof text, "not device memory");
    return text;
}

/* --------------------------------------------------------------------------------- shared memory */

inline bool ordered(const thread *me, unsigned other, uint32_t epoch, uint32_t warp_epoch,
                    unsigned other_warp)
{
    return other == me->number || epoch < state().epoch ||
           (other_warp == me->number / 32 && warp_epoch < me->warp_epoch);
}

[[noreturn]] inline void race(const byte_info &b, bool write, bool with_write,
                              const std::string &place, size_t offset)
{
    std::string other = with_write ? b.write_at.file ? place_of(b.write_at) : place_of(b.write_pc)
                        : b.read_at.file ? place_of(b.read_at)
                                         : place_of(b.read_pc);
    unsigned who = with_write ? b.writer : b.reader;
    fail_text(std::string("race: ") + (write ? "write" : "read") + " of shared byte " +
                  std::to_string(offset) + " and " + (with_write ? "write" : "read") +
                  " by thread " + (who == EMU_MANY ? "several" : thread_text(who)) + " at " +
                  other + " with no barrier between",
              place);
}

/* An asynchronous copy writes twice: when it is issued, its bytes become unwritten; when it lands
 * they are there. LAND_ALL: every thread that waits may read them. */
enum access_kind { READ, WRITE, ATOMIC, ISSUE, LAND, LAND_ALL };
/* The caller gives the place as a pc (hooks) or as a line (everything else). */
struct access {
    size_t bytes;
    access_kind kind;
    bool any_alignment; /* the compiler may have put neighbours together */
    uintptr_t pc;
    where at;
    bool write() const
    {
        return kind != READ;
    }
    std::string place() const
    {
        return at.file ? place_of(at) : place_of(pc);
    }
};

inline void shared_read(byte_info &b, const access &a, size_t offset)
{
    thread *me = state().current;
    if (b.wrote && !ordered(me, b.writer, b.write_epoch, b.write_warp_epoch, b.writer / 32u))
        race(b, false, true, a.place(), offset);
    bool same_time = b.was_read && b.read_epoch == state().epoch;
    if (same_time && b.reader_warp != me->number / 32)
        b.reader_warp = EMU_MANY;
    else if (!same_time)
        b.reader_warp = (uint16_t)(me->number / 32);
    b.reader = same_time && b.reader != me->number ? (uint16_t)EMU_MANY : (uint16_t)me->number;
    b.was_read = true;
    b.read_epoch = state().epoch;
    b.read_warp_epoch = me->warp_epoch;
    b.read_pc = a.pc;
    b.read_at = a.at;
}

inline void shared_write_check(const byte_info &b, const access &a, size_t offset)
{
    thread *me = state().current;
    if (b.wrote && !ordered(me, b.writer, b.write_epoch, b.write_warp_epoch, b.writer / 32u))
        race(b, true, true, a.place(), offset);
    if (b.was_read && !ordered(me, b.reader, b.read_epoch, b.read_warp_epoch, b.reader_warp))
        race(b, true, false, a.place(), offset);
}

inline void shared_write(byte_info &b, const access &a)
{
    thread *me = state().current;
    b.state = a.kind == ISSUE ? UNWRITTEN : WRITTEN;
    b.wrote = a.kind == WRITE || a.kind == LAND;
    if (a.kind == ISSUE)
        b.was_read = false;
    b.writer = (uint16_t)me->number;
    b.write_epoch = state().epoch;
    b.write_warp_epoch = me->warp_epoch;
    b.write_pc = a.pc;
    b.write_at = a.at;
}

inline void shared_byte(byte_info &b, const access &a, size_t offset)
{
    if (b.state == NOT_SHARED)
        fail_text(std::string(a.write() ? "write" : "read") + " of " + std::to_string(a.bytes) +
                      " bytes out of bounds of shared memory",
                  a.place());
    if (!state().hooked) /* most writes go unseen */
        return;
    if ((a.kind == READ || a.kind == ATOMIC) && b.state == UNWRITTEN)
        fail_text("read of shared memory that nobody wrote, byte " + std::to_string(offset),
                  a.place());
    if (a.kind == READ) {
        shared_read(b, a, offset);
        return;
    }
    if (a.kind == WRITE || a.kind == ISSUE)
        shared_write_check(b, a, offset);
    shared_write(b, a);
}

inline void check_access(uintptr_t p, const access &a)
{
    checker &c = state();
    const stacks &s = all_stacks();
    if (p - (uintptr_t)s.base < s.total)
        return;
    bool whole = (a.bytes & (a.bytes - 1)) == 0 && a.bytes <= 16;
    if (whole && !a.any_alignment && p % a.bytes != 0)
        fail_text("access of " + std::to_string(a.bytes) + " bytes that is not aligned", a.place());
    if (p - (uintptr_t)c.arena < EMU_ARENA_BYTES) {
        for (size_t i = 0, at = p - (uintptr_t)c.arena; i < a.bytes; i++)
            shared_byte(c.info[at + i], a, at + i);
    } else if (!global_known(p, a.bytes)) {
        fail_text(std::string(a.write() ? "write" : "read") + " of " + std::to_string(a.bytes) +
                      " bytes out of bounds: " + nearest_text(p),
                  a.place());
    }
}

inline void touch_kind(const void *p, size_t bytes, access_kind kind, where at)
{
    if (state().current && bytes)
        check_access((uintptr_t)p, {bytes, kind, true, 0, at});
}

void touch_read(const void *p, size_t bytes, where at)
{
    if (state().current)
        check_access((uintptr_t)p, {bytes, READ, false, 0, at});
}

void touch_atomic(const void *p, size_t bytes, where at)
{
    if (state().current)
        check_access((uintptr_t)p, {bytes, ATOMIC, false, 0, at});
}

/* ----------------------------------------------------------------------- memory of a block, C API */

/* A piece of the arena with room on both sides that must not be touched. */
inline unsigned char *arena_take(size_t bytes, size_t align)
{
    checker &c = state();
    if (!c.arena) {
        c.arena = static_cast<unsigned char *>(aligned_alloc(1024, EMU_ARENA_BYTES));
        c.info = static_cast<byte_info *>(calloc(EMU_ARENA_BYTES, sizeof(byte_info)));
        if (!c.arena || !c.info)
            abort();
    }
    align = align < 16 ? 16 : align;
    size_t begin = (c.arena_used + EMU_REDZONE + align - 1) / align * align;
    if (begin + bytes + EMU_REDZONE > EMU_ARENA_BYTES)
        return nullptr;
#if EMU_ASAN
    __asan_poison_memory_region(c.arena + c.arena_used, begin - c.arena_used);
    __asan_unpoison_memory_region(c.arena + begin, bytes);
    __asan_poison_memory_region(c.arena + begin + bytes, EMU_REDZONE);
#endif
    c.arena_used = begin + bytes;
    memset(c.arena + begin, 0xff, bytes);
    for (size_t i = 0; i < bytes; i++)
        c.info[begin + i].state = UNWRITTEN;
    return c.arena + begin;
}

inline void arena_reset()
{
    checker &c = state();
    if (c.info)
        memset(static_cast<void *>(c.info), 0, c.arena_used * sizeof(byte_info));
    c.arena_used = 0;
    c.epoch = 0;
}

inline void find_host_stack()
{
    pthread_attr_t attributes;
    void *base;
    size_t bytes;
    if (pthread_getattr_np(pthread_self(), &attributes) == 0) {
        if (pthread_attr_getstack(&attributes, &base, &bytes) == 0)
            state().host_stack = {(uintptr_t)base, (uintptr_t)base + bytes};
        pthread_attr_destroy(&attributes);
    }
}

} // namespace emu

extern "C" void *hri_emu_alloc(size_t bytes)
{
    size_t all = (bytes + 255) / 256 * 256 + 512;
    unsigned char *p = static_cast<unsigned char *>(aligned_alloc(256, all));
    if (!p)
        abort();
    memset(p, 0xff, all);
    emu::range_add((uintptr_t)p + 256, bytes);
#if EMU_ASAN
    __asan_poison_memory_region(p, 256);
    __asan_poison_memory_region(p + 256 + bytes, all - 256 - bytes);
#endif
    return p + 256;
}

extern "C" void hri_emu_free(void *memory)
{
    if (!memory)
        return;
    size_t bytes = emu::range_remove((uintptr_t)memory);
    unsigned char *p = static_cast<unsigned char *>(memory) - 256;
#if EMU_ASAN
    __asan_unpoison_memory_region(p, (bytes + 255) / 256 * 256 + 512);
#endif
    (void)bytes;
    free(p);
}

extern "C" void hri_emu_register(void *memory, size_t bytes)
{
    emu::range_add((uintptr_t)memory, bytes);
}

extern "C" void hri_emu_unregister(void *memory)
{
    emu::range_remove((uintptr_t)memory);
}

extern "C" const char *hri_emu_error(void)
{
    return emu::state().failed ? emu::state().error.c_str() : nullptr;
}

extern "C" void hri_emu_error_clear(void)
{
    emu::state().failed = false;
    emu::state().error.clear();
}

extern "C" struct hri_emu_counts hri_emu_counts_take(void)
{
    hri_emu_counts counts = emu::state().counts;
    emu::state().counts = {};
    return counts;
}

extern "C" int hri_emu_hooked(void)
{
    return emu::state().hooked;
}

/* ---------------------------------------------------------------------------------- access hooks
 * Kernels are compiled with -fsanitize=thread, which calls these before every access to memory, and
 * linked without its library. */
#define EMU_HOOK(name, size, kind, any)                                                            \
    extern "C" void name(void *p);                                                                 \
    extern "C" void name(void *p)                                                                  \
    {                                                                                              \
        emu::checker &c = emu::state();                                                            \
        if (!c.current)                                                                            \
            return;                                                                                \
        c.counts.accesses++;                                                                       \
        emu::check_access(                                                                         \
            (uintptr_t)p,                                                                          \
            {size, emu::kind, any, (uintptr_t)__builtin_return_address(0), {nullptr, 0}});         \
    }
#ifdef HRI_EMU_HOOKS
EMU_HOOK(__tsan_read1, 1, READ, false)
EMU_HOOK(__tsan_read2, 2, READ, false)
EMU_HOOK(__tsan_read4, 4, READ, false)
EMU_HOOK(__tsan_read8, 8, READ, false)
EMU_HOOK(__tsan_read16, 16, READ, false)
EMU_HOOK(__tsan_write1, 1, WRITE, false)
EMU_HOOK(__tsan_write2, 2, WRITE, false)
EMU_HOOK(__tsan_write4, 4, WRITE, false)
EMU_HOOK(__tsan_write8, 8, WRITE, false)
EMU_HOOK(__tsan_write16, 16, WRITE, false)
EMU_HOOK(__tsan_unaligned_read2, 2, READ, true)
EMU_HOOK(__tsan_unaligned_read4, 4, READ, true)
EMU_HOOK(__tsan_unaligned_read8, 8, READ, true)
EMU_HOOK(__tsan_unaligned_read16, 16, READ, true)
EMU_HOOK(__tsan_unaligned_write2, 2, WRITE, true)
EMU_HOOK(__tsan_unaligned_write4, 4, WRITE, true)
EMU_HOOK(__tsan_unaligned_write8, 8, WRITE, true)
EMU_HOOK(__tsan_unaligned_write16, 16, WRITE, true)
#define EMU_HOOK_RANGE(name, kind)                                                                 \
    extern "C" void name(void *p, unsigned long bytes);                                            \
    extern "C" void name(void *p, unsigned long bytes)                                             \
    {                                                                                              \
        uintptr_t pc = (uintptr_t)__builtin_return_address(0);                                     \
        for (unsigned long i = 0; emu::state().current && i < bytes; i++)                          \
            emu::check_access((uintptr_t)p + i, {1, emu::kind, true, pc, {nullptr, 0}});           \
    }
EMU_HOOK_RANGE(__tsan_read_range, READ)
EMU_HOOK_RANGE(__tsan_write_range, WRITE)
extern "C" void __tsan_init(void);
extern "C" void __tsan_init(void)
{
    emu::state().hooked = true;
}
extern "C" void __tsan_func_entry(void *pc);
extern "C" void __tsan_func_entry(void *)
{
}
extern "C" void __tsan_func_exit(void);
extern "C" void __tsan_func_exit(void)
{
}
extern "C" void *__tsan_memcpy(void *to, const void *from, unsigned long bytes);
extern "C" void *__tsan_memcpy(void *to, const void *from, unsigned long bytes)
{
    return memcpy(to, from, bytes);
}
extern "C" void *__tsan_memset(void *to, int x, unsigned long bytes);
extern "C" void *__tsan_memset(void *to, int x, unsigned long bytes)
{
    return memset(to, x, bytes);
}
extern "C" void *__tsan_memmove(void *to, const void *from, unsigned long bytes);
extern "C" void *__tsan_memmove(void *to, const void *from, unsigned long bytes)
{
    return memmove(to, from, bytes);
}
#endif

#if EMU_ASAN
/* A thread that failed is left where it is, with the strings of its report. */
#define EMU_VISIBLE extern "C" __attribute__((visibility("default")))
EMU_VISIBLE const char *__lsan_default_suppressions(void);
EMU_VISIBLE const char *__lsan_default_suppressions(void)
{
    return "leak:emu::fail\nleak:emu::race\nleak:emu::check_access\nleak:emu::shared_byte\n";
}
/* AddressSanitizer names the line of the kernel; the thread is ours to say. */
EMU_VISIBLE void __asan_on_error(void);
EMU_VISIBLE void __asan_on_error(void)
{
    emu::checker &c = emu::state();
    if (c.current)
        fprintf(stderr, "emulated kernel %s, block %s, thread %s\n", c.kernel,
                emu::block_text(c.current->id).c_str(),
                emu::thread_text(c.current->number).c_str());
}
#endif

#endif
