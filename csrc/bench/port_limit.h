/* What the ports of this core allow: the work of AES-GCM on values that never leave the registers.
 *
 * "Full" has all that GCM cannot do without: per 64 octets the rounds of AES, a counter, the xors,
 * a byte swap, three carry-less multiplications by Karatsuba and their sums, and a reduction a turn
 * of eight. "Bare" is the rounds and three multiplications alone. The AES of a turn stands beside
 * the GHASH of the one before, and nothing is loaded or stored: no implementation that reads and
 * writes memory passes "full" but by the noise of the machine. */
#ifndef LASTMILE_BENCH_PORT_LIMIT_H
#define LASTMILE_BENCH_PORT_LIMIT_H

#include "cpu.h"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(                                                                      \
    __attribute__((target("vaes,vpclmulqdq,avx512f,avx512bw,avx512dq,avx512vl"))),                 \
    apply_to = function)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#pragma GCC push_options
#pragma GCC target("vaes,vpclmulqdq,avx512f,avx512bw,avx512dq,avx512vl")
#define UNROLL _Pragma("GCC unroll 16")
#endif

enum { LIMIT_UNITS = 8, LIMIT_TURNS = 500, LIMIT_OCTETS = LIMIT_TURNS * LIMIT_UNITS * 64 };

static inline __attribute__((always_inline)) __m512i limit_turns(int rounds, int bare, __m512i seed)
{
    __m512i state[LIMIT_UNITS], text[LIMIT_UNITS], sink = seed, y = seed, counter = seed;
    const __m512i swap = _mm512_xor_si512(seed, _mm512_set1_epi8(7));
    const __m512i one = _mm512_set1_epi32(1);

    UNROLL for (int i = 0; i < LIMIT_UNITS; i++) state[i] = text[i] =
        _mm512_add_epi32(seed, _mm512_set1_epi32(i));
    for (int turn = 0; turn < LIMIT_TURNS; turn++) {
        __m512i lo = y, mid = y, hi = y;
        UNROLL for (int i = 0; i < LIMIT_UNITS; i++)
        {
            __m512i s =
                bare ? state[i] : _mm512_xor_si512(_mm512_shuffle_epi8(counter, swap), seed);
            counter = bare ? counter : _mm512_add_epi32(counter, one);
            state[i] = s;
        }
        UNROLL for (int r = 1; r < rounds; r++)
        {
            UNROLL for (int i = 0; i < LIMIT_UNITS; i++) state[i] =
                _mm512_aesenc_epi128(state[i], seed);
        }
        UNROLL for (int i = 0; i < LIMIT_UNITS; i++)
        {
            __m512i x = bare ? text[i] : _mm512_shuffle_epi8(text[i], swap);
            __m512i folded =
                bare ? x : _mm512_xor_si512(x, _mm512_shuffle_epi32(x, (_MM_PERM_ENUM)0x4e));
            if (bare) {
                /* The products must be made, but nobody needs them. */
                __m512i a = _mm512_clmulepi64_epi128(x, seed, 0x00);
                __m512i b = _mm512_clmulepi64_epi128(x, seed, 0x11);
                __m512i c = _mm512_clmulepi64_epi128(x, seed, 0x01);
                __asm__ volatile("" : : "v"(a), "v"(b), "v"(c));
            } else {
                lo = _mm512_xor_si512(lo, _mm512_clmulepi64_epi128(x, seed, 0x00));
                hi = _mm512_xor_si512(hi, _mm512_clmulepi64_epi128(x, seed, 0x11));
                mid = _mm512_xor_si512(mid, _mm512_clmulepi64_epi128(folded, swap, 0x00));
            }
        }
        UNROLL for (int i = 0; i < LIMIT_UNITS; i++)
        {
            state[i] = _mm512_aesenclast_epi128(state[i], seed);
            text[i] = bare ? text[i] : _mm512_xor_si512(state[i], seed);
        }
        if (!bare) {
            mid = _mm512_ternarylogic_epi64(mid, lo, hi, 0x96);
            lo = _mm512_xor_si512(lo, _mm512_bslli_epi128(mid, 8));
            hi = _mm512_xor_si512(hi, _mm512_bsrli_epi128(mid, 8));
            lo = _mm512_xor_si512(_mm512_shuffle_epi32(lo, (_MM_PERM_ENUM)0x4e),
                                  _mm512_clmulepi64_epi128(lo, swap, 0x00));
            y = _mm512_ternarylogic_epi64(hi, _mm512_shuffle_epi32(lo, (_MM_PERM_ENUM)0x4e),
                                          _mm512_clmulepi64_epi128(lo, swap, 0x00), 0x96);
        }
    }
    UNROLL for (int i = 0; i < LIMIT_UNITS; i++) sink = _mm512_xor_si512(sink, state[i]);
    return _mm512_xor_si512(sink, y);
}

/* One pass over LIMIT_OCTETS octets that do not exist. */
static __attribute__((noinline)) void limit_pass(int rounds, int bare)
{
    const __m512i seed = _mm512_set1_epi32(rounds);
    __m512i sink;

    if (rounds == 10)
        sink = bare ? limit_turns(10, 1, seed) : limit_turns(10, 0, seed);
    else
        sink = bare ? limit_turns(14, 1, seed) : limit_turns(14, 0, seed);
    __asm__ volatile("" : : "v"(sink));
}

#undef UNROLL
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

/* 1 if this CPU has the instructions. */
static inline int limit_usable(void)
{
    return (cpu_features() & CPU_VAES512) != 0;
}
#else
enum { LIMIT_OCTETS = 1 };
static inline void limit_pass(int rounds, int bare)
{
    (void)rounds, (void)bare;
}
static inline int limit_usable(void)
{
    return 0;
}
#endif

#endif
