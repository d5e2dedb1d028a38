/* What gcm_vaes512.c (ops) and gcm_vaes512_frames.c (whole frames) share: the key's state, and
 * GHASH on registers of four blocks. Private to the two; needs what GCM_VAES512_TARGET says.
 *
 * A "unit" is 64 octets of one frame: four blocks, one zmm.
 *
 * GHASH in the usual reflected form: blocks are byte-swapped, the powers of H are kept multiplied
 * by x (one bit to the left) so that the product of two reflected polynomials needs no shift.
 * Sums are carried unreduced as (lo, mid, hi): Karatsuba's three products, each of them a sum. */
#ifndef LASTMILE_GCM_VAES512_H
#define LASTMILE_GCM_VAES512_H

#include "aes_inline.h"
#include "aes_x86.h"
#include "gcm_backend.h"

#include <immintrin.h>

/* Between these two, code is compiled for the instructions that CPU_VAES512 promises. */
#define VAES512_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define VAES512_FEATURES "aes,pclmul,avx2,bmi2,vaes,vpclmulqdq,avx512f,avx512bw,avx512dq,avx512vl"
#define VAES512_BEGIN                                                                              \
    VAES512_PRAGMA(                                                                                \
        clang attribute push(__attribute__((target(VAES512_FEATURES))), apply_to = function))
#define VAES512_END VAES512_PRAGMA(clang attribute pop)
#else
#define VAES512_BEGIN                                                                              \
    VAES512_PRAGMA(GCC push_options)                                                               \
    VAES512_PRAGMA(GCC target("aes,pclmul,avx2,bmi2,vaes,vpclmulqdq,avx512f,avx512bw,avx512dq"     \
                              ",avx512vl"))
#define VAES512_END VAES512_PRAGMA(GCC pop_options)
#endif

/* In gcm_vaes512_frames.c: see gcm_frames.h. */
size_t gcm_vaes512_protect(const struct gcm_key *gcm, const struct gcm_usual *usual, uint8_t *arena,
                           struct frame *frames, size_t n, uint64_t pn);
size_t gcm_vaes512_validate(const struct gcm_key *gcm, const struct gcm_usual *usual,
                            uint8_t *arena, struct frame *frames, size_t n, uint64_t lowest_pn,
                            struct gcm_seen *seen);

VAES512_BEGIN

/* Compilers like to gather the instructions of one kind. What stands interleaved here is meant to
 * stay so: this is a barrier that costs nothing. */
#define KEEP_ORDER(s)                                                                              \
    __asm__ volatile(""                                                                            \
                     : "+v"((s)[0]), "+v"((s)[1]), "+v"((s)[2]), "+v"((s)[3]), "+v"((s)[4]),       \
                       "+v"((s)[5]), "+v"((s)[6]), "+v"((s)[7]))

enum {
    UNIT = 64,       /* octets */
    CHUNK = 24,      /* units between two reductions of a long frame */
    LAST_CHUNK = 31, /* units: 124 blocks + 2 of AAD + 1 of lengths */
    SHORT_AAD = 32,  /* octets: this much is hashed with the data, more beforehand */
    POWERS = 128,    /* H^128 .. H^1 */
    POWERS_PAD = 8,  /* read beside H^1, met only by zero blocks */
};

struct vaes512_key {
    __m512i rk[AES_ROUND_KEYS_MAX]; /* each round key four times */
    __m128i h[POWERS + POWERS_PAD]; /* h[i] = H^(POWERS - i) x */
    __m128i k[POWERS + POWERS_PAD]; /* its halves added, twice: for Karatsuba's middle product */
    int rounds;
};

_Static_assert(sizeof(struct vaes512_key) <= GCM_KEY_STATE, "the state must fit into a key");
_Static_assert(4 * LAST_CHUNK + SHORT_AAD / 16 + 1 <= POWERS, "a chunk needs a power per block");

/* ---- small things on four blocks ---- */

/* xor of three: one instruction */
INLINE __m512i xor3(__m512i a, __m512i b, __m512i c)
{
    return _mm512_ternarylogic_epi64(a, b, c, 0x96);
}

INLINE __m512i byte_swap(__m512i x)
{
    const __m512i order =
        _mm512_broadcast_i32x4(_mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    return _mm512_shuffle_epi8(x, order);
}

/* the halves of each block, swapped */
INLINE __m512i swap_halves(__m512i x)
{
    return _mm512_shuffle_epi32(x, (_MM_PERM_ENUM)0x4e);
}

/* four counters n, n+1, n+2, n+3 in the last words of four otherwise zero blocks */
INLINE __m512i counters(uint32_t n)
{
    const __m512i steps = _mm512_set_epi32(3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0);
    return _mm512_add_epi32(_mm512_maskz_set1_epi32(0x8888, (int)n), steps);
}

/* n added to each of them */
INLINE __m512i count_on(__m512i counters, int n)
{
    return _mm512_add_epi32(counters, _mm512_maskz_set1_epi32(0x8888, n));
}

/* as they stand in the blocks: big-endian */
INLINE __m512i counter_blocks(__m512i counters)
{
    const __m512i swap_last = _mm512_broadcast_i32x4(
        _mm_set_epi8(12, 13, 14, 15, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1));
    return _mm512_shuffle_epi8(counters, swap_last);
}

/* octets left -> mask of the octets of a unit that are there; left may be below 0 or above 64 */
INLINE __mmask64 unit_mask(int64_t left)
{
    left = left < 0 ? 0 : left > UNIT ? UNIT : left;
    return _bzhi_u64(~0ULL, (uint32_t)left);
}

INLINE uint32_t blocks(uint32_t octets)
{
    return octets / 16 + (octets % 16 != 0);
}

INLINE uint32_t units(uint32_t octets)
{
    return octets / UNIT + (octets % UNIT != 0);
}

INLINE uint32_t chunks(uint32_t data_len)
{
    uint32_t n = units(data_len);
    return n <= LAST_CHUNK ? 1 : 1 + (n - LAST_CHUNK + CHUNK - 1) / CHUNK;
}

INLINE __m512i four_blocks(__m128i a, __m128i b, __m128i c, __m128i d)
{
    __m256i ab = _mm256_inserti128_si256(_mm256_castsi128_si256(a), b, 1);
    __m256i cd = _mm256_inserti128_si256(_mm256_castsi128_si256(c), d, 1);
    return _mm512_inserti64x4(_mm512_castsi256_si512(ab), cd, 1);
}

/* ---- GHASH ---- */

struct sums {
    __m512i lo, mid, hi;
};

INLINE struct sums no_sums(void)
{
    return (struct sums){_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512()};
}

/* sums += x * h, lane by lane; k holds the added halves of h */
INLINE void multiply_add(struct sums *s, __m512i x, __m512i h, __m512i k)
{
    __m512i folded = _mm512_xor_si512(x, swap_halves(x));
    s->lo = _mm512_xor_si512(s->lo, _mm512_clmulepi64_epi128(x, h, 0x00));
    s->hi = _mm512_xor_si512(s->hi, _mm512_clmulepi64_epi128(x, h, 0x11));
    s->mid = _mm512_xor_si512(s->mid, _mm512_clmulepi64_epi128(folded, k, 0x00));
}

/* the same product alone */
INLINE struct sums multiply(__m512i x, __m512i h, __m512i k)
{
    const __m512i folded = _mm512_xor_si512(x, swap_halves(x));
    return (struct sums){_mm512_clmulepi64_epi128(x, h, 0x00),
                         _mm512_clmulepi64_epi128(folded, k, 0x00),
                         _mm512_clmulepi64_epi128(x, h, 0x11)};
}

/* sums += a + b: one instruction each */
INLINE void add_two(struct sums *s, struct sums a, struct sums b)
{
    s->lo = xor3(s->lo, a.lo, b.lo);
    s->mid = xor3(s->mid, a.mid, b.mid);
    s->hi = xor3(s->hi, a.hi, b.hi);
}

/* Keeps the compiler from putting off an addition: products that wait for it take registers. */
#define KEEP_SUMS(s) __asm__("" : "+v"((s).lo), "+v"((s).mid), "+v"((s).hi))

/* the sums modulo the polynomial of GCM, lane by lane */
INLINE __m512i reduce(const struct sums *s)
{
    const __m512i poly = _mm512_set1_epi64((long long)0xc200000000000000ULL);
    __m512i mid = xor3(s->mid, s->lo, s->hi);
    __m512i lo = _mm512_xor_si512(s->lo, _mm512_bslli_epi128(mid, 8));
    __m512i hi = _mm512_xor_si512(s->hi, _mm512_bsrli_epi128(mid, 8));
    lo = _mm512_xor_si512(swap_halves(lo), _mm512_clmulepi64_epi128(lo, poly, 0x00));
    return xor3(hi, swap_halves(lo), _mm512_clmulepi64_epi128(lo, poly, 0x00));
}

/* the four lanes of x added up, in lane 0 (the other lanes hold other sums) */
INLINE __m512i add_lanes(__m512i x)
{
    x = _mm512_xor_si512(x, _mm512_shuffle_i64x2(x, x, 0x4e));
    return _mm512_xor_si512(x, _mm512_shuffle_i64x2(x, x, 0xb1));
}

/* H^e, H^(e-1), H^(e-2), H^(e-3) */
INLINE __m512i powers(const struct vaes512_key *key, int32_t e)
{
    return _mm512_loadu_si512(&key->h[POWERS - e]);
}

INLINE __m512i powers_folded(const struct vaes512_key *key, int32_t e)
{
    return _mm512_loadu_si512(&key->k[POWERS - e]);
}

/* The sums of two frames may share a zmm: lanes 0 and 1 are one frame's, 2 and 3 the other's.
 * Brings the lanes of two frames to that form: */
INLINE __m512i pair_lanes(__m512i a, __m512i b)
{
    return _mm512_xor_si512(_mm512_shuffle_i64x2(a, b, 0x44), _mm512_shuffle_i64x2(a, b, 0xee));
}

/* and two of that form to one lane a frame: */
INLINE __m512i quad_lanes(__m512i ab, __m512i cd)
{
    return _mm512_xor_si512(_mm512_shuffle_i64x2(ab, cd, 0x88), _mm512_shuffle_i64x2(ab, cd, 0xdd));
}

/* What a step does with the units that it is given: whole ones need no masks. */
enum part { NONE, WHOLE, MASKED };

INLINE __m512i load_unit(const uint8_t *at, enum part part, __mmask64 mask)
{
    return part == WHOLE ? _mm512_loadu_si512(at) : _mm512_maskz_loadu_epi8(mask, at);
}

VAES512_END

#endif
