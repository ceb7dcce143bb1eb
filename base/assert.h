/*
 * Assertions are for invariants of our own code, never for what a user passed in. They are on in
 * debug and sanitizer builds and in tests; elsewhere the condition is compiled and not evaluated,
 * so variables used only in it raise no warning.
 */
#ifndef HRI_BASE_ASSERT_H
#define HRI_BASE_ASSERT_H

#ifdef HR_ASSERTS
#define HRI_ASSERT(condition)                                                                      \
    do {                                                                                           \
        if (__builtin_expect(!(condition), 0))                                                     \
            __builtin_trap();                                                                      \
    } while (0)
#else
#define HRI_ASSERT(condition) ((void)sizeof((condition) ? 1 : 0))
#endif

#define HRI_LIKELY(x)   __builtin_expect(!!(x), 1)
#define HRI_UNLIKELY(x) __builtin_expect(!!(x), 0)

#endif
