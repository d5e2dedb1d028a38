/* AES-GCM with AVX-512 VAES and VPCLMULQDQ, for batches of frames under one key.
 *
 * A "unit" is 64 octets of one frame: four blocks, one zmm. A unit costs 10 or 14 VAESENC and,
 * by Karatsuba, 3 VPCLMULQDQ; everything else (counters, byte swaps, folds) has to hide behind
 * those. Two kernels do the work:
 *
 *   quad   four frames of up to QUAD_UNITS units in step, one unit of each a turn. Each has its
 *          own GHASH sums, so nothing waits for anything; sums are kept unreduced over the whole
 *          frame (that needs as many powers of H as it has blocks), and the four frames share
 *          what is done once a frame: E(J0) is one zmm for four, so are the fold, the reduction,
 *          the length block and the tags. This is what makes small frames fast.
 *   solo   one frame of any length with any AAD: eight units a turn, AES of this turn between
 *          the multiplications of the last. For jumbo frames, and for what is left over.
 *
 * GHASH in the usual reflected form: blocks are byte-swapped, the powers of H are kept multiplied
 * by x (one bit to the left) so that the product of two reflected polynomials needs no shift.
 * Sums are carried unreduced as (lo, mid, hi): Karatsuba's three products, each of them a sum.
 *
 * Powers lie in memory from the highest to H^1, so four blocks that follow each other meet the
 * right powers with one load of 64 octets at any block offset. A last, partial unit is loaded
 * under a byte mask: the octets that are not there read as zero, so do blocks, and zero times
 * any power is zero. Hence no case for odd lengths: the mask comes from the length. */
#include "gcm_backend.h"

#if defined(__x86_64__)
#include "aes_x86.h"
#include "cpu.h"

#if defined(__clang__)
#pragma clang attribute push(                                                                     \
    __attribute__((target("aes,pclmul,avx2,bmi2,vaes,vpclmulqdq,avx512f,avx512bw,avx512dq,avx512vl"))), \
    apply_to = function)
#define UNROLL _Pragma("unroll")
#else
#pragma GCC push_options
#pragma GCC target("aes,pclmul,avx2,bmi2,vaes,vpclmulqdq,avx512f,avx512bw,avx512dq,avx512vl")
#define UNROLL _Pragma("GCC unroll 16")
#endif
#include <immintrin.h>

#define INLINE static inline __attribute__((always_inline))

enum {
    UNIT = 64,          /* octets */
    FRAMES = 4,         /* a quad has */
    QUAD_UNITS = 31,    /* the longest frame of a quad: 124 blocks + 2 of AAD + 1 of lengths */
    QUAD_AAD = 32,      /* the longest AAD of a quad, octets */
    POWERS = 128,       /* H^128 .. H^1 */
    POWERS_PAD = 4,     /* read beside H^1, met only by zero blocks */
    TURN = 8,           /* units in a turn of solo */
    REST = 2 * 16,      /* more octets than this are left over from the turns: see solo */
    AAD_CHUNK = 24,     /* units of AAD between two reductions */
    LEFTOVER_UNITS = 8, /* up to this length an incomplete quad beats solo */
};

struct vaes512_key {
    __m512i rk[AES_ROUND_KEYS_MAX]; /* each round key four times */
    __m128i h[POWERS + POWERS_PAD]; /* h[i] = H^(POWERS - i) x */
    __m128i k[POWERS + POWERS_PAD]; /* its halves added, twice: for Karatsuba's middle product */
    int rounds;
};

_Static_assert(sizeof(struct vaes512_key) <= GCM_KEY_STATE, "the state must fit into a key");
_Static_assert(4 * QUAD_UNITS + QUAD_AAD / 16 + 1 <= POWERS, "a quad needs a power per block");
_Static_assert(4 * AAD_CHUNK <= POWERS && 4 * (TURN + 1) + 1 <= POWERS, "solo needs its powers");

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

/* four big-endian counters n, n+1, n+2, n+3 in the last words of four otherwise zero blocks */
INLINE __m512i counters(uint32_t n)
{
    const __m512i steps = _mm512_set_epi32(3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0);
    const __m512i swap_last = _mm512_broadcast_i32x4(
        _mm_set_epi8(12, 13, 14, 15, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1));
    __m512i n4 = _mm512_maskz_set1_epi32(0x8888, (int)n);
    return _mm512_shuffle_epi8(_mm512_add_epi32(n4, steps), swap_last);
}

/* octets left -> mask of the octets of a unit that are there; left may be below 0 or above 64 */
INLINE __mmask64 unit_mask(int64_t left)
{
    left = left < 0 ? 0 : left > UNIT ? UNIT : left;
    return _bzhi_u64(~0ULL, (uint32_t)left);
}

INLINE __m512i iv_blocks(const struct gcm_op *op)
{
    /* The 16 octets at iv are the IV and `ok`; the mask puts zero where the counter goes. */
    return _mm512_maskz_broadcast_i32x4(0x7777, _mm_loadu_si128((const __m128i *)op->iv));
}

INLINE uint32_t blocks(uint32_t octets)
{
    return octets / 16 + (octets % 16 != 0);
}

INLINE uint32_t units(uint32_t octets)
{
    return octets / UNIT + (octets % UNIT != 0);
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
INLINE __m512i powers(const struct vaes512_key *key, uint32_t e)
{
    return _mm512_loadu_si512(&key->h[POWERS - e]);
}

INLINE __m512i powers_folded(const struct vaes512_key *key, uint32_t e)
{
    return _mm512_loadu_si512(&key->k[POWERS - e]);
}

/* the length block of GHASH, byte-swapped: octets -> bits */
INLINE __m128i length_block(const struct gcm_op *op)
{
    return _mm_set_epi64x((long long)((uint64_t)op->aad_len * 8),
                          (long long)((uint64_t)op->data_len * 8));
}

/* ---- quad: four frames in step ---- */

INLINE void aes_units(const struct vaes512_key *key, __m512i *s, int count, int rounds)
{
    for (int r = 1; r < rounds; r++) {
        __m512i rk = key->rk[r];
        UNROLL for (int i = 0; i < count; i++) s[i] = _mm512_aesenc_epi128(s[i], rk);
    }
    UNROLL for (int i = 0; i < count; i++) s[i] = _mm512_aesenclast_epi128(s[i], key->rk[rounds]);
}

/* The sums of two frames (their AAD) share a zmm: lanes 0 and 1 are one frame's, 2 and 3 the
 * other's. Brings four frames' lanes to that form: */
INLINE __m512i pair_lanes(__m512i a, __m512i b)
{
    return _mm512_xor_si512(_mm512_shuffle_i64x2(a, b, 0x44), _mm512_shuffle_i64x2(a, b, 0xee));
}

/* and that form to one lane a frame: */
INLINE __m512i quad_lanes(__m512i ab, __m512i cd)
{
    return _mm512_xor_si512(_mm512_shuffle_i64x2(ab, cd, 0x88),
                            _mm512_shuffle_i64x2(ab, cd, 0xdd));
}

INLINE __m512i four_blocks(__m128i a, __m128i b, __m128i c, __m128i d)
{
    __m256i ab = _mm256_inserti128_si256(_mm256_castsi128_si256(a), b, 1);
    __m256i cd = _mm256_inserti128_si256(_mm256_castsi128_si256(c), d, 1);
    return _mm512_inserti64x4(_mm512_castsi256_si512(ab), cd, 1);
}

/* AAD of up to 32 octets: two blocks */
INLINE __m256i load_aad(const struct gcm_op *op)
{
    return _mm256_maskz_loadu_epi8((__mmask32)_bzhi_u64(~0ULL, op->aad_len), op->aad);
}

INLINE __m512i two_aads(const struct gcm_op *a, const struct gcm_op *b)
{
    return byte_swap(
        _mm512_inserti64x4(_mm512_castsi256_si512(load_aad(a)), load_aad(b), 1));
}

/* One unit of each of four frames: E(counters), xor, and the ciphertext into the sums. `e[f]` is
 * the power that the unit's first block meets; with `same`, all frames have e[0]. */
INLINE void quad_unit(const struct vaes512_key *key, struct sums *sums, const __m512i *iv,
                      uint8_t *const *data, const uint32_t *e, const __mmask64 *mask, __m512i ctr,
                      int rounds, int open, int same, int whole)
{
    __m512i s[FRAMES], text[FRAMES];

    UNROLL for (int f = 0; f < FRAMES; f++)
    {
        s[f] = _mm512_xor_si512(iv[f], ctr);
        text[f] = whole ? _mm512_loadu_si512(data[f]) : _mm512_maskz_loadu_epi8(mask[f], data[f]);
    }
    aes_units(key, s, FRAMES, rounds);
    __m512i h = powers(key, e[0]), k = powers_folded(key, e[0]);
    UNROLL for (int f = 0; f < FRAMES; f++)
    {
        __m512i out = _mm512_xor_si512(text[f], s[f]);
        __m512i cipher = open ? text[f] : out;
        if (whole) {
            _mm512_storeu_si512(data[f], out);
        } else {
            _mm512_mask_storeu_epi8(data[f], mask[f], out);
            if (!open)
                cipher = _mm512_maskz_mov_epi8(mask[f], out);
        }
        if (!same && f > 0) {
            h = powers(key, e[f]);
            k = powers_folded(key, e[f]);
        }
        multiply_add(&sums[f], byte_swap(cipher), h, k);
    }
}

/* Four frames of at most QUAD_UNITS units and QUAD_AAD octets of AAD. With `same`, all four have
 * the lengths of the first. */
INLINE void quad(const struct vaes512_key *key, struct gcm_op *const *op, int rounds, int open,
                 int same)
{
    struct sums sums[FRAMES], all;
    __m512i iv[FRAMES], j0, ctr;
    uint8_t *data[FRAMES];
    uint32_t e[FRAMES], whole = QUAD_UNITS, most = 0;
    __mmask64 mask[FRAMES] = {0};

    UNROLL for (int f = 0; f < FRAMES; f++)
    {
        iv[f] = _mm512_xor_si512(iv_blocks(op[f]), key->rk[0]);
        data[f] = op[f]->data_len ? op[f]->data : op[f]->tag; /* never a NULL to add to */
        sums[f] = no_sums();
        e[f] = blocks(op[f]->data_len) + 1;
        if (!same || f == 0) {
            uint32_t full = op[f]->data_len / UNIT, any = units(op[f]->data_len);
            whole = full < whole ? full : whole;
            most = any > most ? any : most;
        }
    }
    /* E(J0): the IVs of four frames, each with counter 1 */
    j0 = _mm512_mask_mov_epi64(iv[0], 0x0c, iv[1]);
    j0 = _mm512_mask_mov_epi64(j0, 0x30, iv[2]);
    j0 = _mm512_mask_mov_epi64(j0, 0xc0, iv[3]);
    j0 = _mm512_xor_si512(j0, _mm512_maskz_set1_epi32(0x8888, 1 << 24));
    aes_units(key, &j0, 1, rounds);

    /* The AAD stands before the data, so it meets the powers above the data's. */
    struct sums ab = no_sums(), cd = no_sums();
    {
        __m256i h[FRAMES], k[FRAMES];
        UNROLL for (int f = 0; f < FRAMES; f++)
        {
            const struct gcm_op *o = op[same ? 0 : f];
            uint32_t at = POWERS - (e[same ? 0 : f] + blocks(o->aad_len));
            h[f] = _mm256_loadu_si256((const __m256i *)&key->h[at]);
            k[f] = _mm256_loadu_si256((const __m256i *)&key->k[at]);
        }
        multiply_add(&ab, two_aads(op[0], op[1]),
                     _mm512_inserti64x4(_mm512_castsi256_si512(h[0]), h[1], 1),
                     _mm512_inserti64x4(_mm512_castsi256_si512(k[0]), k[1], 1));
        multiply_add(&cd, two_aads(op[2], op[3]),
                     _mm512_inserti64x4(_mm512_castsi256_si512(h[2]), h[3], 1),
                     _mm512_inserti64x4(_mm512_castsi256_si512(k[2]), k[3], 1));
    }

    uint32_t u = 0;
    for (; u < whole; u++) {
        ctr = counters(2 + 4 * u);
        quad_unit(key, sums, iv, data, e, mask, ctr, rounds, open, same, 1);
        UNROLL for (int f = 0; f < FRAMES; f++)
        {
            data[f] += UNIT;
            e[f] -= 4;
        }
    }
    for (; u < most; u++) {
        ctr = counters(2 + 4 * u);
        UNROLL for (int f = 0; f < FRAMES; f++)
            mask[f] = unit_mask((int64_t)op[f]->data_len - (int64_t)u * UNIT);
        quad_unit(key, sums, iv, data, e, mask, ctr, rounds, open, same, 0);
        UNROLL for (int f = 0; f < FRAMES; f++)
        {
            data[f] += UNIT;
            e[f] = e[f] > 4 ? e[f] - 4 : 0;
        }
    }

    ab.lo = _mm512_xor_si512(ab.lo, pair_lanes(sums[0].lo, sums[1].lo));
    ab.mid = _mm512_xor_si512(ab.mid, pair_lanes(sums[0].mid, sums[1].mid));
    ab.hi = _mm512_xor_si512(ab.hi, pair_lanes(sums[0].hi, sums[1].hi));
    cd.lo = _mm512_xor_si512(cd.lo, pair_lanes(sums[2].lo, sums[3].lo));
    cd.mid = _mm512_xor_si512(cd.mid, pair_lanes(sums[2].mid, sums[3].mid));
    cd.hi = _mm512_xor_si512(cd.hi, pair_lanes(sums[2].hi, sums[3].hi));
    all.lo = quad_lanes(ab.lo, cd.lo);
    all.mid = quad_lanes(ab.mid, cd.mid);
    all.hi = quad_lanes(ab.hi, cd.hi);
    multiply_add(&all,
                 four_blocks(length_block(op[0]), length_block(op[1]), length_block(op[2]),
                             length_block(op[3])),
                 _mm512_broadcast_i32x4(key->h[POWERS - 1]),
                 _mm512_broadcast_i32x4(key->k[POWERS - 1]));
    __m512i tags = _mm512_xor_si512(byte_swap(reduce(&all)), j0);

    if (open) {
        __m512i sent = four_blocks(_mm_loadu_si128((const __m128i *)op[0]->tag),
                                   _mm_loadu_si128((const __m128i *)op[1]->tag),
                                   _mm_loadu_si128((const __m128i *)op[2]->tag),
                                   _mm_loadu_si128((const __m128i *)op[3]->tag));
        uint32_t wrong = _mm512_cmpneq_epi64_mask(tags, sent);
        UNROLL for (int f = 0; f < FRAMES; f++) op[f]->ok = 1;
        if (__builtin_expect(wrong != 0, 0)) {
            for (int f = 0; f < FRAMES; f++)
                if (wrong >> 2 * f & 3)
                    gcm_refuse(op[f]);
        }
    } else {
        _mm_storeu_si128((__m128i *)op[0]->tag, _mm512_castsi512_si128(tags));
        _mm_storeu_si128((__m128i *)op[1]->tag, _mm512_extracti32x4_epi32(tags, 1));
        _mm_storeu_si128((__m128i *)op[2]->tag, _mm512_extracti32x4_epi32(tags, 2));
        _mm_storeu_si128((__m128i *)op[3]->tag, _mm512_extracti32x4_epi32(tags, 3));
        UNROLL for (int f = 0; f < FRAMES; f++) op[f]->ok = 1;
    }
}

/* ---- solo: one frame of any length ---- */

/* The AAD into a digest (lane 0; the other lanes zero). */
INLINE __m512i hash_aad(const struct vaes512_key *key, const uint8_t *aad, uint32_t len)
{
    __m512i y = _mm512_setzero_si512();

    while (len > 0) {
        uint32_t part = len < AAD_CHUNK * UNIT ? len : AAD_CHUNK * UNIT;
        uint32_t e = blocks(part);
        struct sums s = no_sums();

        for (uint32_t at = 0; at < part; at += UNIT) {
            __m512i x = _mm512_maskz_loadu_epi8(unit_mask((int64_t)part - at), aad + at);
            x = _mm512_xor_si512(byte_swap(x), y);
            y = _mm512_setzero_si512();
            multiply_add(&s, x, powers(key, e), powers_folded(key, e));
            e = e > 4 ? e - 4 : 0;
        }
        y = _mm512_maskz_mov_epi64(0x03, add_lanes(reduce(&s)));
        aad += part;
        len -= part;
    }
    return y;
}

/* Whole turns: the four lanes are four interleaved hashes in H^4, so a turn ends with one
 * reduction of all lanes and no shuffling across them. What follows the turns joins them: its
 * first four blocks meet H^e .. H^(e-3), and so do the lanes; hence e >= 4, at least three blocks
 * (and the one of lengths) must follow. x: byte-swapped ciphertext. */
INLINE __m512i hash_turn(const struct vaes512_key *key, __m512i y, const __m512i *x)
{
    struct sums s = no_sums();

    UNROLL for (int i = 0; i < TURN; i++)
    {
        const int at = POWERS - 4 * (TURN - i);
        multiply_add(&s, i == 0 ? _mm512_xor_si512(x[0], y) : x[i],
                     _mm512_broadcast_i32x4(key->h[at]), _mm512_broadcast_i32x4(key->k[at]));
    }
    return reduce(&s);
}

INLINE void solo(const struct vaes512_key *key, struct gcm_op *op, int rounds, int open)
{
    const __m512i iv = _mm512_xor_si512(iv_blocks(op), key->rk[0]);
    uint8_t *data = op->data;
    uint32_t left = op->data_len, n = 2;
    __m512i y = hash_aad(key, op->aad, op->aad_len);
    __m512i s[TURN], x[TURN], j0 = _mm512_xor_si512(iv, counters(1));
    int pending = 0;

    aes_units(key, &j0, 1, rounds);
    for (; left > TURN * UNIT + REST; left -= TURN * UNIT, data += TURN * UNIT, n += 4 * TURN) {
        UNROLL for (int i = 0; i < TURN; i++)
            s[i] = _mm512_xor_si512(iv, counters(n + 4 * (uint32_t)i));
        if (open) {
            UNROLL for (int i = 0; i < TURN; i++)
                x[i] = byte_swap(_mm512_loadu_si512(data + i * UNIT));
            y = hash_turn(key, y, x);
        } else if (pending) {
            y = hash_turn(key, y, x);
        }
        aes_units(key, s, TURN, rounds);
        UNROLL for (int i = 0; i < TURN; i++)
        {
            __m512i out = _mm512_xor_si512(s[i], _mm512_loadu_si512(data + i * UNIT));
            _mm512_storeu_si512(data + i * UNIT, out);
            if (!open)
                x[i] = byte_swap(out);
        }
        pending = 1;
    }
    if (!open && pending)
        y = hash_turn(key, y, x);

    /* The last units, 9 at most, with powers that end at H^2. */
    struct sums sums = no_sums();
    uint32_t e = blocks(left) + 1;
    for (; left > 0; left -= left < 2 * UNIT ? left : 2 * UNIT, data += 2 * UNIT, n += 8) {
        UNROLL for (int i = 0; i < 2; i++)
            s[i] = _mm512_xor_si512(iv, counters(n + 4 * (uint32_t)i));
        aes_units(key, s, 2, rounds);
        UNROLL for (int i = 0; i < 2; i++)
        {
            __mmask64 mask = unit_mask((int64_t)left - i * UNIT);
            __m512i text = _mm512_maskz_loadu_epi8(mask, data + i * UNIT);
            __m512i out = _mm512_xor_si512(s[i], text);
            _mm512_mask_storeu_epi8(data + i * UNIT, mask, out);
            __m512i block = byte_swap(open ? text : _mm512_maskz_mov_epi8(mask, out));
            multiply_add(&sums, _mm512_xor_si512(block, y), powers(key, e), powers_folded(key, e));
            y = _mm512_setzero_si512();
            e = e > 4 ? e - 4 : 0;
        }
    }
    /* Without data the AAD's digest has not been used yet: it meets the length block. */
    multiply_add(&sums, _mm512_xor_si512(_mm512_zextsi128_si512(length_block(op)), y),
                 powers(key, 1), powers_folded(key, 1));
    __m128i tag = _mm512_castsi512_si128(
        _mm512_xor_si512(byte_swap(add_lanes(reduce(&sums))), j0));
    if (open) {
        __m128i sent = _mm_loadu_si128((const __m128i *)op->tag);
        op->ok = 1;
        if (__builtin_expect(_mm_cmpneq_epi64_mask(tag, sent) != 0, 0))
            gcm_refuse(op);
    } else {
        _mm_storeu_si128((__m128i *)op->tag, tag);
        op->ok = 1;
    }
}

/* ---- one function per number of rounds and direction: the compiler unrolls each ---- */

#define KERNEL(name, rounds, open)                                                                \
    static __attribute__((noinline)) void quad_same_##name(const struct vaes512_key *key,         \
                                                           struct gcm_op *const *op)              \
    {                                                                                             \
        quad(key, op, rounds, open, 1);                                                           \
    }                                                                                             \
    static __attribute__((noinline)) void quad_mixed_##name(const struct vaes512_key *key,        \
                                                            struct gcm_op *const *op)             \
    {                                                                                             \
        quad(key, op, rounds, open, 0);                                                           \
    }                                                                                             \
    static __attribute__((noinline)) void solo_##name(const struct vaes512_key *key,              \
                                                      struct gcm_op *op)                          \
    {                                                                                             \
        solo(key, op, rounds, open);                                                              \
    }                                                                                             \
    static void batch_##name(const struct vaes512_key *key, struct gcm_op *ops, size_t n)         \
    {                                                                                             \
        batch(key, ops, n, quad_same_##name, quad_mixed_##name, solo_##name);                     \
    }

typedef void quad_fn(const struct vaes512_key *key, struct gcm_op *const *op);
typedef void solo_fn(const struct vaes512_key *key, struct gcm_op *op);

/* Frames meet in quads of equal numbers of units: a quad takes as long as its longest. */
INLINE void batch(const struct vaes512_key *key, struct gcm_op *ops, size_t n, quad_fn *same,
                  quad_fn *mixed, solo_fn *solo_one)
{
    struct gcm_op *waiting[QUAD_UNITS + 1][FRAMES];
    uint8_t count[QUAD_UNITS + 1] = {0};
    uint32_t used = 0;

    for (size_t i = 0; i < n; i++) {
        struct gcm_op *op = &ops[i];

        if (op->data_len > QUAD_UNITS * UNIT || op->aad_len > QUAD_AAD) {
            solo_one(key, op);
            continue;
        }
        if (n - i >= FRAMES) {
            uint32_t differ = 0;
            for (int f = 1; f < FRAMES; f++)
                differ |= (op->data_len ^ op[f].data_len) | (op->aad_len ^ op[f].aad_len);
            if (!differ) {
                same(key, (struct gcm_op *const[]){op, op + 1, op + 2, op + 3});
                i += FRAMES - 1;
                continue;
            }
        }
        uint32_t u = units(op->data_len);
        waiting[u][count[u]++] = op;
        used |= 1u << u;
        if (count[u] == FRAMES) {
            mixed(key, waiting[u]);
            count[u] = 0;
        }
    }
    /* What is left, from short to long: quads of neighbours while they are short. */
    struct gcm_op *four[FRAMES];
    uint32_t have = 0;
    for (; used; used &= used - 1) {
        uint32_t u = (uint32_t)__builtin_ctz(used);
        for (uint32_t c = 0; c < count[u]; c++) {
            if (u > LEFTOVER_UNITS) {
                solo_one(key, waiting[u][c]);
                continue;
            }
            four[have++] = waiting[u][c];
            if (have == FRAMES) {
                mixed(key, four);
                have = 0;
            }
        }
    }
    if (have == 1) {
        solo_one(key, four[0]);
    } else if (have > 1) {
        uint8_t tag[GCM_TAG_LEN] = {0};
        struct gcm_op nobody[2] = {{.tag = tag}, {.tag = tag}};
        for (uint32_t f = have; f < FRAMES; f++)
            four[f] = &nobody[f - have];
        mixed(key, four);
    }
}

KERNEL(seal_128, AES128_ROUNDS, 0)
KERNEL(seal_256, AES256_ROUNDS, 0)
KERNEL(open_128, AES128_ROUNDS, 1)
KERNEL(open_256, AES256_ROUNDS, 1)

/* ---- the key ---- */

/* a * b of two numbers kept as powers are: a * b * x */
static __m512i times(__m512i a, __m512i b)
{
    struct sums s = no_sums();
    multiply_add(&s, a, b, _mm512_xor_si512(b, swap_halves(b)));
    return reduce(&s);
}

/* H, byte-swapped, times x modulo the polynomial */
static __m128i times_x(__m128i h)
{
    const __m128i poly = _mm_set_epi64x((long long)0xc200000000000000ULL, 1);
    __m128i carry = _mm_srli_epi64(h, 63);
    __m128i top = _mm_shuffle_epi32(_mm_srai_epi32(h, 31), 0xff); /* all ones if bit 127 is set */
    __m128i doubled = _mm_or_si128(_mm_slli_epi64(h, 1), _mm_slli_si128(carry, 8));
    return _mm_xor_si128(doubled, _mm_and_si128(top, poly));
}

static int vaes512_key_init(struct gcm_key *gcm, const uint8_t *secret)
{
    struct vaes512_key *key = (struct vaes512_key *)gcm->state;
    struct aes_x86_keys aes;
    uint8_t hash_key[AES_BLOCK];
    __m128i h, at[4];
    __m512i four, h4;

    aes_x86_expand(&aes, secret, gcm->key_len);
    key->rounds = aes.rounds;
    for (int r = 0; r <= key->rounds; r++)
        key->rk[r] = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)aes.round_key[r]));
    aes_x86_encrypt(hash_key, (const uint8_t[AES_BLOCK]){0}, &aes);

    h = _mm512_castsi512_si128(
        byte_swap(_mm512_zextsi128_si512(_mm_loadu_si128((const __m128i *)hash_key))));
    at[0] = times_x(h);
    for (int i = 1; i < 4; i++)
        at[i] = _mm512_castsi512_si128(
            times(_mm512_zextsi128_si512(at[i - 1]), _mm512_zextsi128_si512(at[0])));
    four = four_blocks(at[3], at[2], at[1], at[0]);
    h4 = _mm512_broadcast_i32x4(at[3]);
    for (int i = POWERS - 4; i >= 0; i -= 4) {
        _mm512_storeu_si512(&key->h[i], four);
        _mm512_storeu_si512(&key->k[i], _mm512_xor_si512(four, swap_halves(four)));
        four = times(four, h4);
    }
    explicit_bzero(&aes, sizeof aes);
    explicit_bzero(hash_key, sizeof hash_key);
    explicit_bzero(at, sizeof at);
    return 0;
}

static void vaes512_seal(const struct gcm_key *gcm, struct gcm_op *ops, size_t n)
{
    const struct vaes512_key *key = (const struct vaes512_key *)gcm->state;

    if (key->rounds == AES128_ROUNDS)
        batch_seal_128(key, ops, n);
    else
        batch_seal_256(key, ops, n);
}

static void vaes512_open(const struct gcm_key *gcm, struct gcm_op *ops, size_t n)
{
    const struct vaes512_key *key = (const struct vaes512_key *)gcm->state;

    if (key->rounds == AES128_ROUNDS)
        batch_open_128(key, ops, n);
    else
        batch_open_256(key, ops, n);
}

static int vaes512_usable(void)
{
    return (cpu_features() & CPU_VAES512) != 0;
}

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

const struct gcm_backend gcm_vaes512 = {
    .name = "vaes512",
    .usable = vaes512_usable,
    .key_init = vaes512_key_init,
    .key_wipe = NULL,
    .seal = vaes512_seal,
    .open = vaes512_open,
};
#else
typedef int gcm_vaes512_is_empty;
#endif
