/* AES-GCM with AVX-512 VAES and VPCLMULQDQ, for batches of frames under one key.
 *
 * A "unit" is 64 octets of one frame: four blocks, one zmm. A unit costs 10 or 14 VAESENC and,
 * by Karatsuba, 3 VPCLMULQDQ; everything else (counters, byte swaps, folds) has to hide behind
 * those. Two kernels do the work:
 *
 *   stream  quads of frames: four frames in step, one or two units of each a step. Each frame has
 *           its own GHASH sums, so nothing waits for anything, and the four share what is done
 *           once a frame: E(J0) is one zmm for four, so are the reduction, the length block and
 *           the tags. When sealing, the hash runs one step behind the cipher, also from one quad
 *           to the next; so frames of 64 octets fill the pipes, too.
 *   solo    one frame, eight units a turn. For what is left over from the quads.
 *
 * In both, the multiplications stand between the AES rounds: they use different pipes of the core.
 *
 * GHASH in the usual reflected form: blocks are byte-swapped, the powers of H are kept multiplied
 * by x (one bit to the left) so that the product of two reflected polynomials needs no shift.
 * Sums are carried unreduced as (lo, mid, hi): Karatsuba's three products, each of them a sum.
 *
 * Powers lie in memory from the highest to H^1, so four blocks that follow each other meet the
 * right powers with one load of 64 octets at any block offset. A last, partial unit is loaded
 * under a byte mask: the octets that are not there read as zero, so do blocks, and zero times
 * any power is zero. Hence no case for odd lengths: the mask comes from the length.
 *
 * Powers are limited, so a long frame is hashed in chunks: the sums of a chunk are reduced to a
 * digest, which meets the highest power of the next chunk. */
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

/* Compilers like to gather the instructions of one kind. What stands interleaved here is meant to
 * stay so: this is a barrier that costs nothing. */
#define KEEP_ORDER4(s)                                                                             \
    __asm__ volatile("" : "+v"((s)[0]), "+v"((s)[1]), "+v"((s)[2]), "+v"((s)[3]))
#define KEEP_ORDER8(s)                                                                             \
    __asm__ volatile("" : "+v"((s)[0]), "+v"((s)[1]), "+v"((s)[2]), "+v"((s)[3]), "+v"((s)[4]),    \
                     "+v"((s)[5]), "+v"((s)[6]), "+v"((s)[7]))

#define INLINE static inline __attribute__((always_inline))

enum {
    UNIT = 64,           /* octets */
    FRAMES = 4,          /* a quad has */
    STEP_MAX = 2,        /* units of each frame in a step */
    CHUNK = 24,          /* units between two reductions of a long frame */
    LAST_CHUNK = 31,     /* units: 124 blocks + 2 of AAD + 1 of lengths */
    CHUNKS_MAX = 6,      /* chunks of the longest frame that goes into a quad */
    SHORT_AAD = 32,      /* octets: this much is hashed with the data, more beforehand */
    POWERS = 128,        /* H^128 .. H^1 */
    POWERS_PAD = 8,      /* read beside H^1, met only by zero blocks */
    TURN = 8,            /* units in a turn of solo */
    TURN_OCTETS = TURN * UNIT,
    REST = 2 * 16,       /* more octets than this are left over from the turns: see solo_turn */
    LEFTOVER_UNITS = 8,  /* up to this length an incomplete quad beats solo */
};

struct vaes512_key {
    __m512i rk[AES_ROUND_KEYS_MAX]; /* each round key four times */
    __m128i h[POWERS + POWERS_PAD]; /* h[i] = H^(POWERS - i) x */
    __m128i k[POWERS + POWERS_PAD]; /* its halves added, twice: for Karatsuba's middle product */
    int rounds;
};

_Static_assert(sizeof(struct vaes512_key) <= GCM_KEY_STATE, "the state must fit into a key");
_Static_assert(4 * LAST_CHUNK + SHORT_AAD / 16 + 1 <= POWERS, "a chunk needs a power per block");
_Static_assert(4 * (TURN + 1) + 1 <= POWERS, "solo needs its powers");

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

/* The low five bits of the 32 counters of a turn that begins with 2 modulo 32. */
#define COUNTERS4(n)                                                                               \
    {                                                                                              \
        0, BE5(n), 0, BE5(n + 1), 0, BE5(n + 2), 0, BE5(n + 3)                                     \
    }
#define BE5(n) ((n) % 32ULL << 56)
static const union {
    uint64_t word[TURN][8];
    __m512i vector[TURN];
} turn_counter_table = {{COUNTERS4(2), COUNTERS4(6), COUNTERS4(10), COUNTERS4(14), COUNTERS4(18),
                         COUNTERS4(22), COUNTERS4(26), COUNTERS4(30)}};
#define turn_counters turn_counter_table.vector

/* The other bits: `a` for lanes 0 and 1, `b` for lanes 2 and 3. */
INLINE __m512i counter_base(uint32_t a, uint32_t b)
{
    a = __builtin_bswap32(a & ~31u);
    b = __builtin_bswap32(b & ~31u);
    __m512i base = _mm512_maskz_set1_epi32(0x0088, (int)a);
    return _mm512_mask_set1_epi32(base, 0x8800, (int)b);
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
INLINE __m512i powers(const struct vaes512_key *key, int32_t e)
{
    return _mm512_loadu_si512(&key->h[POWERS - e]);
}

INLINE __m512i powers_folded(const struct vaes512_key *key, int32_t e)
{
    return _mm512_loadu_si512(&key->k[POWERS - e]);
}

/* the length block of GHASH, byte-swapped: octets -> bits */
INLINE __m128i length_block(const struct gcm_op *op)
{
    return _mm_set_epi64x((long long)((uint64_t)op->aad_len * 8),
                          (long long)((uint64_t)op->data_len * 8));
}

INLINE void aes_units(const struct vaes512_key *key, __m512i *s, int count, int rounds)
{
    for (int r = 1; r < rounds; r++) {
        __m512i rk = key->rk[r];
        UNROLL for (int i = 0; i < count; i++) s[i] = _mm512_aesenc_epi128(s[i], rk);
    }
    UNROLL for (int i = 0; i < count; i++) s[i] = _mm512_aesenclast_epi128(s[i], key->rk[rounds]);
}

/* One AAD of any length into a digest (lane 0; the other lanes zero). */
INLINE __m512i hash_aad(const struct vaes512_key *key, const uint8_t *aad, uint32_t len)
{
    __m512i y = _mm512_setzero_si512();

    while (len > 0) {
        uint32_t part = len < CHUNK * UNIT ? len : CHUNK * UNIT;
        int32_t e = (int32_t)blocks(part);
        struct sums s = no_sums();

        for (uint32_t at = 0; at < part; at += UNIT, e -= 4) {
            __m512i x = _mm512_maskz_loadu_epi8(unit_mask((int64_t)part - at), aad + at);
            multiply_add(&s, _mm512_xor_si512(byte_swap(x), y), powers(key, e),
                         powers_folded(key, e));
            y = _mm512_setzero_si512();
        }
        y = _mm512_maskz_mov_epi64(0x03, add_lanes(reduce(&s)));
        aad += part;
        len -= part;
    }
    return y;
}

/* ---- stream: quads of frames ---- */

/* Where the hash of a quad stands. */
struct quad {
    struct gcm_op *const *op; /* four */
    uint32_t chunks;          /* to come, with this one */
    int32_t e[FRAMES];        /* the power that the next unit's first block meets */
    int32_t chunk_e[FRAMES];  /* and that the first one of the chunk met */
    uint32_t at;              /* offset of the next unit to be hashed */
    uint32_t chunk_end;       /* offset of the end of the chunk */
    int digested;             /* `digest` stands for all that came before this chunk; if not, */
                              /* that is an AAD of at most SHORT_AAD octets */
    __m512i digest, j0;       /* a lane a frame */
};

INLINE uint32_t chunks(uint32_t data_len)
{
    uint32_t n = units(data_len);
    return n <= LAST_CHUNK ? 1 : 1 + (n - LAST_CHUNK + CHUNK - 1) / CHUNK;
}

INLINE void quad_begin_chunk(struct quad *q)
{
    UNROLL for (int f = 0; f < FRAMES; f++)
    {
        uint32_t left = q->op[f]->data_len - q->at;
        q->chunk_e[f] = q->e[f] = q->chunks > 1 ? 4 * CHUNK : (int32_t)blocks(left) + 1;
    }
    q->chunk_end = q->at + (q->chunks > 1 ? CHUNK : LAST_CHUNK) * UNIT;
}

INLINE __m512i four_blocks(__m128i a, __m128i b, __m128i c, __m128i d)
{
    __m256i ab = _mm256_inserti128_si256(_mm256_castsi128_si256(a), b, 1);
    __m256i cd = _mm256_inserti128_si256(_mm256_castsi128_si256(c), d, 1);
    return _mm512_inserti64x4(_mm512_castsi256_si512(ab), cd, 1);
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
    return _mm512_xor_si512(_mm512_shuffle_i64x2(ab, cd, 0x88),
                            _mm512_shuffle_i64x2(ab, cd, 0xdd));
}

INLINE struct sums pair_sums(const struct sums *a, const struct sums *b)
{
    return (struct sums){pair_lanes(a->lo, b->lo), pair_lanes(a->mid, b->mid),
                         pair_lanes(a->hi, b->hi)};
}

/* AADs of two frames, two blocks each, into the shared sums of these frames. An AAD stands before
 * the data, so it meets the powers above the data's. */
INLINE void add_short_aads(const struct vaes512_key *key, struct sums *pair, const struct quad *q,
                           int a, int b, int same)
{
    const struct gcm_op *op[2] = {q->op[a], q->op[b]};
    __m256i x[2], h[2], k[2];

    UNROLL for (int i = 0; i < 2; i++)
    {
        const int from = same ? 0 : i;
        const int at = POWERS - q->chunk_e[same ? 0 : i ? b : a] - (int)blocks(op[from]->aad_len);
        const __mmask32 mask = (__mmask32)_bzhi_u64(~0ULL, op[from]->aad_len);
        x[i] = _mm256_maskz_loadu_epi8(mask, op[i]->aad);
        h[i] = _mm256_loadu_si256((const __m256i *)&key->h[at]);
        k[i] = _mm256_loadu_si256((const __m256i *)&key->k[at]);
    }
    multiply_add(pair, byte_swap(_mm512_inserti64x4(_mm512_castsi256_si512(x[0]), x[1], 1)),
                 _mm512_inserti64x4(_mm512_castsi256_si512(h[0]), h[1], 1),
                 _mm512_inserti64x4(_mm512_castsi256_si512(k[0]), k[1], 1));
}

/* The length blocks of four frames times H. */
INLINE struct sums length_sums(const struct vaes512_key *key, struct gcm_op *const *op)
{
    struct sums s = no_sums();
    multiply_add(&s,
                 four_blocks(length_block(op[0]), length_block(op[1]), length_block(op[2]),
                             length_block(op[3])),
                 _mm512_broadcast_i32x4(key->h[POWERS - 1]),
                 _mm512_broadcast_i32x4(key->k[POWERS - 1]));
    return s;
}

/* What has been summed up of a chunk, and what came before it, into the digest. */
INLINE void quad_end_chunk(const struct vaes512_key *key, struct quad *q, struct sums *sums,
                           const struct sums *lengths, int same)
{
    struct sums ab = pair_sums(&sums[0], &sums[1]), cd = pair_sums(&sums[2], &sums[3]), all;

    if (!q->digested) {
        add_short_aads(key, &ab, q, 0, 1, same);
        add_short_aads(key, &cd, q, 2, 3, same);
    }
    all.lo = quad_lanes(ab.lo, cd.lo);
    all.mid = quad_lanes(ab.mid, cd.mid);
    all.hi = quad_lanes(ab.hi, cd.hi);
    if (q->digested) {
        const __m128i *h = &key->h[POWERS], *k = &key->k[POWERS];
        const int32_t *e = q->chunk_e;
        multiply_add(&all, q->digest, four_blocks(h[-e[0]], h[-e[1]], h[-e[2]], h[-e[3]]),
                     four_blocks(k[-e[0]], k[-e[1]], k[-e[2]], k[-e[3]]));
    }
    if (q->chunks == 1) {
        all.lo = _mm512_xor_si512(all.lo, lengths->lo);
        all.mid = _mm512_xor_si512(all.mid, lengths->mid);
        all.hi = _mm512_xor_si512(all.hi, lengths->hi);
    }
    q->digest = reduce(&all);
    q->digested = 1;
    q->chunks--;
    UNROLL for (int f = 0; f < FRAMES; f++) sums[f] = no_sums();
}

/* The last digest is the tag but for E(J0). */
INLINE void quad_finish(const struct quad *q, int open)
{
    __m512i tags = _mm512_xor_si512(byte_swap(q->digest), q->j0);
    struct gcm_op *const *op = q->op;

    UNROLL for (int f = 0; f < FRAMES; f++) op[f]->ok = 1;
    if (open) {
        __m512i sent = four_blocks(_mm_loadu_si128((const __m128i *)op[0]->tag),
                                   _mm_loadu_si128((const __m128i *)op[1]->tag),
                                   _mm_loadu_si128((const __m128i *)op[2]->tag),
                                   _mm_loadu_si128((const __m128i *)op[3]->tag));
        uint32_t wrong = _mm512_cmpneq_epi64_mask(tags, sent);
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
    }
}

/* One step: the cipher on units [at, at + width) of the quad `op`, and the hash of as many units
 * of `q`, each frame into its sums. Only one of the two where the other's `op` is NULL. In the
 * first step of a quad E(J0) goes along, in `j0`. With `same`, all frames have the lengths of the
 * first. `width` and all that follow `at` are constants to the compiler. */
INLINE void step(const struct vaes512_key *key, struct gcm_op *const *op, const __m512i *iv,
                 __m512i *j0, uint32_t at, struct quad *q, struct sums *sums, int rounds, int width,
                 int same, int cipher, int hash, int first)
{
    __m512i s[FRAMES * STEP_MAX], h[STEP_MAX], k[STEP_MAX];
    __mmask64 mask[STEP_MAX], hash_mask[STEP_MAX];
    const int slots = FRAMES * width;

    if (cipher) {
        UNROLL for (int w = 0; w < width; w++)
        {
            __m512i counter = counters(2 + (at / UNIT + (uint32_t)w) * 4);
            mask[w] = unit_mask((int64_t)op[0]->data_len - at - w * UNIT);
            UNROLL for (int f = 0; f < FRAMES; f++)
                s[f * width + w] = _mm512_xor_si512(iv[f], counter);
        }
    }
    if (hash) {
        UNROLL for (int w = 0; w < width; w++)
        {
            hash_mask[w] = unit_mask((int64_t)q->op[0]->data_len - q->at - w * UNIT);
            if (same) {
                h[w] = powers(key, q->e[0] - 4 * w);
                k[w] = powers_folded(key, q->e[0] - 4 * w);
            }
        }
    }
    UNROLL for (int r = 1; r < rounds; r++)
    {
        if (cipher) {
            __m512i rk = key->rk[r];
            UNROLL for (int i = 0; i < slots; i++) s[i] = _mm512_aesenc_epi128(s[i], rk);
            if (first)
                *j0 = _mm512_aesenc_epi128(*j0, rk);
            if (width == 1)
                KEEP_ORDER4(s);
            else
                KEEP_ORDER8(s);
        }
        UNROLL for (int i = 0; i < slots; i++)
        {
            if (hash && i * (rounds - 1) / slots == r - 1) {
                const int f = i / width, w = i % width;
                const __mmask64 m =
                    same ? hash_mask[w]
                         : unit_mask((int64_t)q->op[f]->data_len - q->at - w * UNIT);
                __m512i x = _mm512_maskz_loadu_epi8(m, q->op[f]->data + q->at + w * UNIT);
                int32_t e = q->e[f] - 4 * w;
                e = e < 0 ? 0 : e;
                multiply_add(&sums[f], byte_swap(x), same ? h[w] : powers(key, e),
                             same ? k[w] : powers_folded(key, e));
            }
        }
    }
    if (cipher) {
        __m512i rk = key->rk[rounds];
        UNROLL for (int i = 0; i < slots; i++)
        {
            const int f = i / width, w = i % width;
            const __mmask64 m =
                same ? mask[w] : unit_mask((int64_t)op[f]->data_len - at - w * UNIT);
            uint8_t *data = op[f]->data + at + w * UNIT;
            s[i] = _mm512_aesenclast_epi128(s[i], rk);
            s[i] = _mm512_xor_si512(s[i], _mm512_maskz_loadu_epi8(m, data));
            _mm512_mask_storeu_epi8(data, m, s[i]);
        }
        if (first)
            *j0 = _mm512_aesenclast_epi128(*j0, rk);
    }
    if (hash) {
        q->at += (uint32_t)width * UNIT;
        UNROLL for (int f = 0; f < FRAMES; f++) q->e[f] -= 4 * width;
    }
}

/* `quads` times four frames. The frames of a quad have the same number of chunks; with `same`, all
 * frames have the same lengths. `width`: units of a frame in a step. */
INLINE void stream(const struct vaes512_key *key, struct gcm_op *const *op, size_t quads,
                   int rounds, int open, int same, int width)
{
    struct sums sums[FRAMES] = {no_sums(), no_sums(), no_sums(), no_sums()}, lengths;
    struct quad q = {.op = NULL};

    if (same)
        lengths = length_sums(key, op);
    for (; quads > 0; quads--, op += FRAMES) {
        __m512i iv[FRAMES], j0;
        uint32_t end = 0, at = 0;
        int long_aad = 0;

        UNROLL for (int f = 0; f < FRAMES; f++)
        {
            iv[f] = _mm512_xor_si512(iv_blocks(op[f]), key->rk[0]);
            if (!same || f == 0) {
                end = op[f]->data_len > end ? op[f]->data_len : end;
                long_aad |= op[f]->aad_len > SHORT_AAD;
            }
        }
        /* J0: the IVs of four frames, each with counter 1 */
        j0 = _mm512_mask_mov_epi64(iv[0], 0x0c, iv[1]);
        j0 = _mm512_mask_mov_epi64(j0, 0x30, iv[2]);
        j0 = _mm512_mask_mov_epi64(j0, 0xc0, iv[3]);
        j0 = _mm512_xor_si512(j0, _mm512_maskz_set1_epi32(0x8888, 1 << 24));

        /* Sealing, the hash is a step behind: here it ends the quad before. */
        if (!open) {
            if (q.op != NULL) {
                step(key, op, iv, &j0, 0, &q, sums, rounds, width, same, 1, 1, 1);
                quad_end_chunk(key, &q, sums, &lengths, same);
                quad_finish(&q, 0);
            } else {
                step(key, op, iv, &j0, 0, &q, sums, rounds, width, same, 1, 0, 1);
            }
            at = (uint32_t)width * UNIT;
        }
        q.op = op;
        q.at = 0;
        q.chunks = chunks(end);
        q.digested = long_aad;
        if (__builtin_expect(long_aad, 0)) {
            __m512i y[FRAMES];
            for (int f = 0; f < FRAMES; f++)
                y[f] = hash_aad(key, op[f]->aad, op[f]->aad_len);
            q.digest = four_blocks(_mm512_castsi512_si128(y[0]), _mm512_castsi512_si128(y[1]),
                                   _mm512_castsi512_si128(y[2]), _mm512_castsi512_si128(y[3]));
        }
        quad_begin_chunk(&q);
        if (!same)
            lengths = length_sums(key, op);
        if (open) {
            step(key, op, iv, &j0, 0, &q, sums, rounds, width, same, 1, 1, 1);
            at = (uint32_t)width * UNIT;
        }
        q.j0 = j0;
        for (; at < end; at += (uint32_t)width * UNIT) {
            if (open && q.at == q.chunk_end) {
                quad_end_chunk(key, &q, sums, &lengths, same);
                quad_begin_chunk(&q);
            }
            step(key, op, iv, &j0, at, &q, sums, rounds, width, same, 1, 1, 0);
            if (!open && q.at == q.chunk_end) {
                quad_end_chunk(key, &q, sums, &lengths, same);
                quad_begin_chunk(&q);
            }
        }
        if (open) {
            quad_end_chunk(key, &q, sums, &lengths, same);
            quad_finish(&q, 1);
        }
    }
    if (!open) {
        step(key, NULL, NULL, NULL, 0, &q, sums, rounds, width, same, 0, 1, 0);
        quad_end_chunk(key, &q, sums, &lengths, same);
        quad_finish(&q, 0);
    }
}

/* ---- solo: one frame of any length ---- */

/* One turn of solo: AES of the eight units at `data`, between its rounds GHASH of the eight units of
 * ciphertext at `text`: the same ones when opening, those of the turn before when sealing. Both are
 * bound to a few pipes of the core, but not to the same, so neither may wait for the other.
 *
 * Whole turns hash each lane by itself: four interleaved hashes in H^4, so a turn ends with one
 * reduction of all lanes and no shuffling across them. What follows the turns joins them: its
 * first four blocks meet H^e .. H^(e-3), and so do the lanes; hence e >= 4, at least three blocks
 * (and the one of lengths) must follow. */
INLINE __m512i solo_turn(const struct vaes512_key *key, __m512i iv, uint32_t n, uint8_t *data,
                         const uint8_t *text, __m512i y, int rounds, int cipher, int hash)
{
    __m512i s[TURN];
    struct sums sums = no_sums();

    if (cipher) {
        /* Counters n .. n+31, of which n = 2 modulo 32: the low five bits differ by constants,
         * but for two lanes that have a carry. */
        __m512i low = _mm512_xor_si512(iv, counter_base(n, n));
        __m512i carried = _mm512_xor_si512(iv, counter_base(n, n + 4 * TURN));
        UNROLL for (int i = 0; i < TURN; i++)
            s[i] = _mm512_xor_si512(i < TURN - 1 ? low : carried, turn_counters[i]);
    }
    UNROLL for (int r = 1; r < rounds; r++)
    {
        if (cipher) {
            __m512i rk = key->rk[r];
            UNROLL for (int i = 0; i < TURN; i++) s[i] = _mm512_aesenc_epi128(s[i], rk);
            KEEP_ORDER8(s);
        }
        if (hash) {
            UNROLL for (int i = 0; i < TURN; i++)
            {
                if (i * (rounds - 1) / TURN == r - 1) {
                    const int at = POWERS - 4 * (TURN - i);
                    __m512i x = byte_swap(_mm512_loadu_si512(text + i * UNIT));
                    if (i == 0)
                        x = _mm512_xor_si512(x, y);
                    multiply_add(&sums, x, _mm512_broadcast_i32x4(key->h[at]),
                                 _mm512_broadcast_i32x4(key->k[at]));
                }
            }
        }
    }
    if (cipher) {
        __m512i rk = key->rk[rounds];
        UNROLL for (int i = 0; i < TURN; i++)
        {
            s[i] = _mm512_aesenclast_epi128(s[i], rk);
            s[i] = _mm512_xor_si512(s[i], _mm512_loadu_si512(data + i * UNIT));
            _mm512_storeu_si512(data + i * UNIT, s[i]);
        }
    }
    return hash ? reduce(&sums) : y;
}

INLINE void solo(const struct vaes512_key *key, struct gcm_op *op, int rounds, int open)
{
    const __m512i iv = _mm512_xor_si512(iv_blocks(op), key->rk[0]);
    uint8_t *data = op->data;
    uint32_t left = op->data_len, n = 2;
    __m512i y = hash_aad(key, op->aad, op->aad_len);
    __m512i s[2], j0 = _mm512_xor_si512(iv, counters(1));

    aes_units(key, &j0, 1, rounds);
    if (left > TURN_OCTETS + REST) {
        /* When sealing, the hash is a turn behind. */
        if (!open) {
            solo_turn(key, iv, n, data, NULL, y, rounds, 1, 0);
            data += TURN_OCTETS, left -= TURN_OCTETS, n += 4 * TURN;
        }
        for (; left > TURN_OCTETS + REST; data += TURN_OCTETS, left -= TURN_OCTETS, n += 4 * TURN)
            y = solo_turn(key, iv, n, data, open ? data : data - TURN_OCTETS, y, rounds, 1, 1);
        if (!open)
            y = solo_turn(key, iv, n, NULL, data - TURN_OCTETS, y, rounds, 0, 1);
    }

    /* The last units, 9 at most, with powers that end at H^2. */
    struct sums sums = no_sums();
    int32_t e = (int32_t)blocks(left) + 1;
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
            e -= 4;
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

typedef void stream_fn(const struct vaes512_key *key, struct gcm_op *const *op, size_t quads);
typedef void solo_fn(const struct vaes512_key *key, struct gcm_op *op);

struct kernels {
    stream_fn *tiny;  /* quads of one length, up to a unit */
    stream_fn *equal; /* quads of one length */
    stream_fn *mixed;
    solo_fn *solo;
};

#define NOINLINE static __attribute__((noinline))
#define KERNELS(name, rounds, open)                                                                \
    NOINLINE void tiny_##name(const struct vaes512_key *k, struct gcm_op *const *op, size_t quads) \
    {                                                                                              \
        stream(k, op, quads, rounds, open, 1, 1);                                                  \
    }                                                                                              \
    NOINLINE void equal_##name(const struct vaes512_key *k, struct gcm_op *const *op,              \
                               size_t quads)                                                       \
    {                                                                                              \
        stream(k, op, quads, rounds, open, 1, 2);                                                  \
    }                                                                                              \
    NOINLINE void mixed_##name(const struct vaes512_key *k, struct gcm_op *const *op,              \
                               size_t quads)                                                       \
    {                                                                                              \
        stream(k, op, quads, rounds, open, 0, 2);                                                  \
    }                                                                                              \
    NOINLINE void solo_##name(const struct vaes512_key *k, struct gcm_op *op)                      \
    {                                                                                              \
        solo(k, op, rounds, open);                                                                 \
    }                                                                                              \
    static const struct kernels name = {tiny_##name, equal_##name, mixed_##name, solo_##name};

KERNELS(seal_128, AES128_ROUNDS, 0)
KERNELS(seal_256, AES256_ROUNDS, 0)
KERNELS(open_128, AES128_ROUNDS, 1)
KERNELS(open_256, AES256_ROUNDS, 1)

/* ---- which frames meet in a quad ---- */

enum {
    GATHER = 64,                          /* frames of a run */
    CLASSES = LAST_CHUNK + CHUNKS_MAX,    /* lengths that may meet: equal units, then chunks */
};

INLINE int equal_lengths(const struct gcm_op *a, const struct gcm_op *b)
{
    return a->data_len == b->data_len && a->aad_len == b->aad_len;
}

/* 0 .. CLASSES-1 */
INLINE uint32_t length_class(uint32_t data_len)
{
    uint32_t n = units(data_len);
    return n <= LAST_CHUNK ? n : LAST_CHUNK - 1 + chunks(data_len);
}

static void batch(const struct kernels *kernels, const struct vaes512_key *key, struct gcm_op *ops,
                  size_t n)
{
    struct gcm_op *waiting[CLASSES][FRAMES], *run[GATHER];
    uint8_t count[CLASSES] = {0};
    uint64_t used = 0;

    for (size_t i = 0; i < n;) {
        struct gcm_op *op = &ops[i];
        size_t same = 1;

        if (chunks(op->data_len) > CHUNKS_MAX) {
            kernels->solo(key, op);
            i++;
            continue;
        }
        run[0] = op;
        while (same < GATHER && i + same < n && equal_lengths(op, op + same)) {
            run[same] = op + same;
            same++;
        }
        same &= ~(size_t)(FRAMES - 1);
        if (same > 0) {
            (op->data_len <= UNIT ? kernels->tiny : kernels->equal)(key, run, same / FRAMES);
            i += same;
            continue;
        }
        uint32_t class = length_class(op->data_len);
        waiting[class][count[class]++] = op;
        used |= 1ULL << class;
        if (count[class] == FRAMES) {
            kernels->mixed(key, waiting[class], 1);
            count[class] = 0;
        }
        i++;
    }

    /* What is left, from short to long: short neighbours in quads, long frames alone. */
    size_t have = 0;
    for (; used; used &= used - 1) {
        uint32_t class = (uint32_t)__builtin_ctzll(used);
        for (uint32_t c = 0; c < count[class]; c++) {
            if (class > LEFTOVER_UNITS) {
                kernels->solo(key, waiting[class][c]);
                continue;
            }
            run[have++] = waiting[class][c];
            if (have == FRAMES) {
                kernels->mixed(key, run, 1);
                have = 0;
            }
        }
    }
    if (have == 1) {
        kernels->solo(key, run[0]);
    } else if (have > 1) {
        uint8_t tag[GCM_TAG_LEN] = {0}, *nothing = tag;
        struct gcm_op nobody[2] = {{.data = nothing, .tag = tag}, {.data = nothing, .tag = tag}};
        for (size_t f = have; f < FRAMES; f++)
            run[f] = &nobody[f - have];
        kernels->mixed(key, run, 1);
    }
}

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

    batch(key->rounds == AES128_ROUNDS ? &seal_128 : &seal_256, key, ops, n);
}

static void vaes512_open(const struct gcm_key *gcm, struct gcm_op *ops, size_t n)
{
    const struct vaes512_key *key = (const struct vaes512_key *)gcm->state;

    batch(key->rounds == AES128_ROUNDS ? &open_128 : &open_256, key, ops, n);
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
