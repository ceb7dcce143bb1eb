/* Fibers: one stack per CUDA thread, switched by eight instructions on x86-64 and by ucontext
 * elsewhere. AddressSanitizer is told of every switch. Part of emu_run.h. */
#ifndef HRI_EMU_FIBER_H
#define HRI_EMU_FIBER_H

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <sys/mman.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__)
#define EMU_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define EMU_ASAN 1
#endif
#endif
#ifndef EMU_ASAN
#define EMU_ASAN 0
#endif

#if EMU_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace emu
{

#define EMU_THREADS_MAX 1024u
#define EMU_STACK_BYTES (EMU_ASAN ? 512u * 1024 : 128u * 1024)

struct fiber {
#if defined(__x86_64__)
    void *sp;
#else
    ucontext_t context;
#endif
    char *stack; /* EMU_STACK_BYTES; NULL: the thread that launches */
    const void *bottom;
    size_t bytes;
    void *fake; /* AddressSanitizer's */
};

#if defined(__x86_64__)
extern "C" void hri_emu_switch(void **save, void *load);
__asm__(".text\n"
        ".globl hri_emu_switch\n"
        ".hidden hri_emu_switch\n"
        ".type hri_emu_switch, @function\n"
        "hri_emu_switch:\n"
        "    pushq %rbp\n    pushq %rbx\n    pushq %r12\n"
        "    pushq %r13\n    pushq %r14\n    pushq %r15\n"
        "    movq %rsp, (%rdi)\n"
        "    movq %rsi, %rsp\n"
        "    popq %r15\n    popq %r14\n    popq %r13\n"
        "    popq %r12\n    popq %rbx\n    popq %rbp\n"
        "    ret\n"
        ".size hri_emu_switch, .-hri_emu_switch\n"
        ".section .note.GNU-stack,\"\",@progbits\n.text\n");
#endif

/* All stacks are one mapping, each with a page below it that must not be touched. */
struct stacks {
    char *base;
    size_t stride, total;
};
inline stacks &all_stacks()
{
    static stacks s = {nullptr, 0, 0};
    if (s.base == nullptr) {
        size_t page = (size_t)sysconf(_SC_PAGESIZE);
        s.stride = EMU_STACK_BYTES + page;
        s.total = s.stride * EMU_THREADS_MAX;
        void *map = mmap(nullptr, s.total, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (map == MAP_FAILED) {
            perror("emulator: stacks");
            abort();
        }
        s.base = static_cast<char *>(map);
        for (unsigned i = 0; i < EMU_THREADS_MAX; i++)
            mprotect(s.base + i * s.stride, page, PROT_NONE);
    }
    return s;
}

/* The fiber that was left and the one entered, for the sanitizer's bookkeeping on arrival. */
struct crossing {
    fiber *from, *to;
};
inline crossing &last_crossing()
{
    static crossing c = {nullptr, nullptr};
    return c;
}

inline void arrived()
{
#if EMU_ASAN
    crossing &c = last_crossing();
    const void *bottom;
    size_t bytes;
    __sanitizer_finish_switch_fiber(c.to->fake, &bottom, &bytes);
    if (c.from->stack == nullptr) {
        c.from->bottom = bottom;
        c.from->bytes = bytes;
    }
#endif
}

inline void switch_fiber(fiber &from, fiber &to)
{
    last_crossing() = {&from, &to};
#if EMU_ASAN
    __sanitizer_start_switch_fiber(&from.fake, to.bottom, to.bytes);
#endif
#if defined(__x86_64__)
    hri_emu_switch(&from.sp, to.sp);
#else
    swapcontext(&from.context, &to.context);
#endif
    arrived();
}

/* Makes `entry` run on stack number i at the first switch to it; entry never returns. */
inline void make_fiber(fiber &f, unsigned i, void (*entry)())
{
    stacks &s = all_stacks();
    f.stack = s.base + i * s.stride + (s.stride - EMU_STACK_BYTES);
    f.bottom = f.stack;
    f.bytes = EMU_STACK_BYTES;
    f.fake = nullptr;
#if EMU_ASAN
    __asan_unpoison_memory_region(f.stack, EMU_STACK_BYTES);
#endif
#if defined(__x86_64__)
    /* Six registers, the entry as return address; at entry the stack is 8 short of a multiple of
     * 16, as after a call. */
    void **top = reinterpret_cast<void **>(f.stack + EMU_STACK_BYTES) - 1;
    *top = nullptr;
    *--top = reinterpret_cast<void *>(entry);
    for (int r = 0; r < 6; r++)
        *--top = nullptr;
    f.sp = top;
#else
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack;
    f.context.uc_stack.ss_size = EMU_STACK_BYTES;
    f.context.uc_link = nullptr;
    makecontext(&f.context, entry, 0);
#endif
}

} // namespace emu

#endif
