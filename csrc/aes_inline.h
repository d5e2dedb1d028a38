/* How the ciphers' inner functions are compiled.
 *
 *   UNROLL   before a loop: unroll it fully. These loops run over registers, which only exist as
 *            such once the loop is gone.
 *   INLINE   before a function: always inline it. Its arguments of the kind "how" (rounds, seal or
 *            open) are constants then, and what they rule out disappears.
 *
 * Sanitizers look at every access. Inlined and unrolled that takes minutes to compile and makes no
 * better a test, so there both are left to the compiler. */
#ifndef LASTMILE_AES_INLINE_H
#define LASTMILE_AES_INLINE_H

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(memory_sanitizer)
#define AES_SANITIZED 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#define AES_SANITIZED 1
#endif

#if defined(AES_SANITIZED)
#define UNROLL
#define INLINE static inline
#else
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif
#define INLINE static inline __attribute__((always_inline))
#endif

#endif
