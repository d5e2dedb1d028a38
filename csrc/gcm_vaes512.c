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
 * Powers lie in memory from the highest to H^1, so four blocks that follow each other meet the
 * right powers with one load of 64 octets at any block offset. A last, partial unit is loaded
 * under a byte mask: the octets that are not there read as zero, so do blocks, and zero times
 * any power is zero. Hence no case for odd lengths: the mask comes from the length.
 *
 * Powers are limited, so a long frame is hashed in chunks: the sums of a chunk are reduced to a
 * digest, which meets the highest power of the next chunk. */
#include "gcm_backend.h"

#if defined(__x86_64__)
#include "cpu.h"
#include "gcm_vaes512.h"

#if !defined(__clang__)
/* `stream` reads what the group before left behind, but not at the first one: gcc cannot see it. */
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
VAES512_BEGIN

enum {
    SLOTS_MAX = 8, /* units in a step: two of each of four frames, one of each of eight */
    FRAMES_MAX = 8,
    WIDTH_MAX = 2,
    QUADS_MAX = FRAMES_MAX / 4, /* what is done once a frame is done for four at a time */
    CHUNKS_MAX = 6,             /* chunks of the longest frame that goes into a quad */
    GROUPS_AHEAD = 3,           /* whose lines are asked for, where a frame is but one step */
    TURN = 8,                   /* units in a turn of solo */
    TURN_OCTETS = TURN * UNIT,
    REST = 2 * 16,      /* more octets than this are left over from the turns: see solo_turn */
    LEFTOVER_UNITS = 8, /* up to this length an incomplete quad beats solo */
};

_Static_assert(4 * (TURN + 1) + 1 <= POWERS, "solo needs its powers");

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

INLINE __m512i iv_blocks(const struct gcm_op *op)
{
    /* The 16 octets at iv are the IV and `ok`; the mask puts zero where the counter goes. */
    return _mm512_maskz_broadcast_i32x4(0x7777, _mm_loadu_si128((const __m128i *)op->iv));
}

/* Off the fast path: bits 2f and 2f+1 of `wrong` belong to frame f. */
static __attribute__((noinline, cold)) void refuse_wrong(struct gcm_op *const *op, uint32_t wrong)
{
    for (int f = 0; f < 4; f++)
        if (wrong >> 2 * f & 3)
            gcm_refuse(op[f]);
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

/* ---- stream: frames in step ---- */

/* The frames of a step: one or two quads. */
struct group {
    struct gcm_op *op[FRAMES_MAX];
    uint8_t *data[FRAMES_MAX];
    uint32_t len[FRAMES_MAX]; /* of the data */
    uint32_t end, whole;      /* the longest and the shortest of them */
};

/* How a stream works; all constants to the compiler. */
struct plan {
    int rounds, open;
    int frames; /* in step: 4 or 8 */
    int width;  /* units of each frame in a step */
    int same;   /* all frames have the lengths of the first */
    int single; /* and one step is enough for them */
    int listed; /* they are those of a list; else they follow each other */
};

/* The i-th group of `ops`, or of `list`. */
INLINE struct group group_of(struct gcm_op *ops, struct gcm_op *const *list, size_t i,
                             struct plan plan)
{
    struct group g = {.end = 0, .whole = UINT32_MAX};

    UNROLL for (int f = 0; f < plan.frames; f++)
    {
        const size_t at = i * (size_t)plan.frames + (size_t)f;
        g.op[f] = plan.listed ? list[at] : &ops[at];
        g.data[f] = g.op[f]->data_len ? g.op[f]->data : g.op[f]->tag; /* never NULL to add to */
        g.len[f] = plan.same ? g.op[0]->data_len : g.op[f]->data_len;
        g.end = g.len[f] > g.end ? g.len[f] : g.end;
        g.whole = g.len[f] < g.whole ? g.len[f] : g.whole;
    }
    return g;
}

/* Where the hash of a group stands. */
struct hash {
    struct sums sums[FRAMES_MAX];
    uint32_t at;                 /* offset of the next unit */
    uint32_t chunk_end;          /* offset of the end of the chunk */
    uint32_t chunks;             /* to come, with this one */
    int32_t e[FRAMES_MAX];       /* the power that the next unit's first block meets */
    int32_t chunk_e[FRAMES_MAX]; /* and that the first one of the chunk met */
    int digested;                /* `digest` stands for all that came before this chunk; if not, */
                                 /* that is an AAD of at most SHORT_AAD octets */
    __m512i digest[QUADS_MAX];   /* a lane a frame */
};

INLINE void hash_begin_chunk(struct hash *hash, const struct group *g, struct plan plan)
{
    UNROLL for (int f = 0; f < plan.frames; f++)
    {
        hash->chunk_e[f] = hash->e[f] =
            hash->chunks > 1 ? 4 * CHUNK : (int32_t)blocks(g->len[f] - hash->at) + 1;
        hash->sums[f] = no_sums();
    }
    hash->chunk_end = hash->at + (hash->chunks > 1 ? (uint32_t)CHUNK : LAST_CHUNK) * UNIT;
}

INLINE void hash_begin(const struct vaes512_key *key, struct hash *hash, const struct group *g,
                       struct plan plan)
{
    int short_aad = g->op[0]->aad_len <= SHORT_AAD;

    if (!plan.same) {
        UNROLL for (int f = 1; f < plan.frames; f++) short_aad &= g->op[f]->aad_len <= SHORT_AAD;
    }
    hash->at = 0;
    hash->chunks = plan.single ? 1 : chunks(g->end);
    hash->digested = !short_aad;
    if (__builtin_expect(!short_aad, 0)) {
        __m128i y[FRAMES_MAX];
        for (int f = 0; f < plan.frames; f++)
            y[f] = _mm512_castsi512_si128(hash_aad(key, g->op[f]->aad, g->op[f]->aad_len));
        UNROLL for (int q = 0; q < plan.frames / 4; q++) hash->digest[q] =
            four_blocks(y[4 * q], y[4 * q + 1], y[4 * q + 2], y[4 * q + 3]);
    }
    hash_begin_chunk(hash, g, plan);
}

/* The sums of the frames f and f+1, with their short AADs if those have not been hashed before. An
 * AAD is two blocks; it stands before the data, so it meets the powers above the data's. */
INLINE struct sums pair_sums(const struct vaes512_key *key, const struct hash *hash,
                             const struct group *g, int f, int same)
{
    const struct sums *a = &hash->sums[f], *b = &hash->sums[f + 1];
    struct sums pair = {pair_lanes(a->lo, b->lo), pair_lanes(a->mid, b->mid),
                        pair_lanes(a->hi, b->hi)};
    __m256i x[2], h[2], k[2];

    if (hash->digested)
        return pair;
    UNROLL for (int i = 0; i < 2; i++)
    {
        const uint32_t len = g->op[same ? 0 : f + i]->aad_len;
        const int at = POWERS - hash->chunk_e[same ? 0 : f + i] - (int)blocks(len);
        x[i] = _mm256_maskz_loadu_epi8((__mmask32)_bzhi_u64(~0ULL, len), g->op[f + i]->aad);
        h[i] = _mm256_loadu_si256((const __m256i *)&key->h[at]);
        k[i] = _mm256_loadu_si256((const __m256i *)&key->k[at]);
    }
    multiply_add(&pair, byte_swap(_mm512_inserti64x4(_mm512_castsi256_si512(x[0]), x[1], 1)),
                 _mm512_inserti64x4(_mm512_castsi256_si512(h[0]), h[1], 1),
                 _mm512_inserti64x4(_mm512_castsi256_si512(k[0]), k[1], 1));
    return pair;
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

/* What has been summed up of a chunk, and what came before it, into the digests. */
INLINE void hash_end_chunk(const struct vaes512_key *key, struct hash *hash, const struct group *g,
                           const struct sums *lengths, struct plan plan)
{
    UNROLL for (int q = 0; q < plan.frames / 4; q++)
    {
        struct sums ab = pair_sums(key, hash, g, 4 * q, plan.same);
        struct sums cd = pair_sums(key, hash, g, 4 * q + 2, plan.same);
        struct sums all = {quad_lanes(ab.lo, cd.lo), quad_lanes(ab.mid, cd.mid),
                           quad_lanes(ab.hi, cd.hi)};

        if (hash->digested) {
            const __m128i *h = &key->h[POWERS], *k = &key->k[POWERS];
            const int32_t *e = &hash->chunk_e[4 * q];
            multiply_add(&all, hash->digest[q], four_blocks(h[-e[0]], h[-e[1]], h[-e[2]], h[-e[3]]),
                         four_blocks(k[-e[0]], k[-e[1]], k[-e[2]], k[-e[3]]));
        }
        if (plan.single || hash->chunks == 1) {
            all.lo = _mm512_xor_si512(all.lo, lengths->lo);
            all.mid = _mm512_xor_si512(all.mid, lengths->mid);
            all.hi = _mm512_xor_si512(all.hi, lengths->hi);
        }
        hash->digest[q] = reduce(&all);
    }
    hash->digested = 1;
    hash->chunks--;
}

/* The last digest is the tag but for E(J0). */
INLINE void group_finish(struct group *g, const struct hash *hash, const __m512i *j0,
                         struct plan plan)
{
    UNROLL for (int q = 0; q < plan.frames / 4; q++)
    {
        __m512i tags = _mm512_xor_si512(byte_swap(hash->digest[q]), j0[q]);
        struct gcm_op **op = &g->op[4 * q];

        UNROLL for (int f = 0; f < 4; f++) op[f]->ok = 1;
        if (plan.open) {
            __m512i sent = four_blocks(_mm_loadu_si128((const __m128i *)op[0]->tag),
                                       _mm_loadu_si128((const __m128i *)op[1]->tag),
                                       _mm_loadu_si128((const __m128i *)op[2]->tag),
                                       _mm_loadu_si128((const __m128i *)op[3]->tag));
            uint32_t wrong = _mm512_cmpneq_epi64_mask(tags, sent);
            if (__builtin_expect(wrong != 0, 0))
                refuse_wrong(op, wrong);
        } else {
            _mm_storeu_si128((__m128i *)op[0]->tag, _mm512_castsi512_si128(tags));
            _mm_storeu_si128((__m128i *)op[1]->tag, _mm512_extracti32x4_epi32(tags, 1));
            _mm_storeu_si128((__m128i *)op[2]->tag, _mm512_extracti32x4_epi32(tags, 2));
            _mm_storeu_si128((__m128i *)op[3]->tag, _mm512_extracti32x4_epi32(tags, 3));
        }
    }
}

/* The cipher's side of a group. */
struct cipher {
    __m512i iv[FRAMES_MAX]; /* after the first round key; the counters are xored in */
    __m512i j0[QUADS_MAX];  /* a lane a frame; encrypted by the first step */
    __m512i counter;
    uint32_t at; /* offset of the next unit */
};

INLINE void cipher_begin(const struct vaes512_key *key, struct cipher *c, const struct group *g,
                         struct plan plan)
{
    UNROLL for (int q = 0; q < plan.frames / 4; q++)
    {
        __m512i *iv = &c->iv[4 * q];
        UNROLL for (int f = 0; f < 4; f++) iv[f] =
            _mm512_xor_si512(iv_blocks(g->op[4 * q + f]), key->rk[0]);
        /* J0: the IVs of four frames, each with counter 1 */
        c->j0[q] = _mm512_mask_mov_epi64(iv[0], 0x0c, iv[1]);
        c->j0[q] = _mm512_mask_mov_epi64(c->j0[q], 0x30, iv[2]);
        c->j0[q] = _mm512_mask_mov_epi64(c->j0[q], 0xc0, iv[3]);
        c->j0[q] = _mm512_xor_si512(c->j0[q], _mm512_maskz_set1_epi32(0x8888, 1 << 24));
    }
    c->counter = counters(2);
    c->at = 0;
}

/* One step: the cipher on the next units of the group `g`, and the hash of as many units of `hg`.
 * In the first step of a group J0 is encrypted, too; in one that ends a chunk the sums are folded
 * up. All arguments that follow `lengths` are constants to the compiler. */
INLINE void step(const struct vaes512_key *key, const struct group *g, struct cipher *c,
                 const struct group *hg, struct hash *hash, const struct sums *lengths,
                 struct plan plan, enum part ciphered, enum part hashed, int first, int last)
{
    const int width = plan.width, slots = plan.frames * width;
    const int hash_rounds = last ? plan.rounds * 2 / 3 : plan.rounds - 1;
    __m512i s[SLOTS_MAX], power[WIDTH_MAX], folded[WIDTH_MAX], j0[QUADS_MAX];
    __mmask64 mask[WIDTH_MAX], hash_mask[WIDTH_MAX];

    if (ciphered) {
        UNROLL for (int w = 0; w < width; w++)
        {
            __m512i n = counter_blocks(c->counter);
            c->counter = count_on(c->counter, 4);
            UNROLL for (int f = 0; f < plan.frames; f++) s[f * width + w] =
                _mm512_xor_si512(c->iv[f], n);
            mask[w] = unit_mask((int64_t)g->len[0] - c->at - w * UNIT);
        }
        if (first) {
            UNROLL for (int q = 0; q < plan.frames / 4; q++) j0[q] = c->j0[q];
        }
    }
    if (hashed && plan.same) {
        UNROLL for (int w = 0; w < width; w++)
        {
            hash_mask[w] = unit_mask((int64_t)hg->len[0] - hash->at - w * UNIT);
            power[w] = powers(key, hash->e[0] - 4 * w);
            folded[w] = powers_folded(key, hash->e[0] - 4 * w);
        }
    }
    UNROLL for (int r = 1; r < plan.rounds; r++)
    {
        if (ciphered) {
            __m512i rk = key->rk[r];
            UNROLL for (int i = 0; i < slots; i++) s[i] = _mm512_aesenc_epi128(s[i], rk);
            if (first) {
                UNROLL for (int q = 0; q < plan.frames / 4; q++) j0[q] =
                    _mm512_aesenc_epi128(j0[q], rk);
            }
            KEEP_ORDER(s);
        }
        UNROLL for (int i = 0; i < slots; i++)
        {
            if (hashed && i * hash_rounds / slots == r - 1) {
                const int f = i / width, w = i % width;
                const __mmask64 m =
                    plan.same ? hash_mask[w] : unit_mask((int64_t)hg->len[f] - hash->at - w * UNIT);
                __m512i x = byte_swap(load_unit(hg->data[f] + hash->at + w * UNIT, hashed, m));
                if (plan.same) {
                    multiply_add(&hash->sums[f], x, power[w], folded[w]);
                } else {
                    int32_t e = hash->e[f] - 4 * w;
                    e = e < 0 ? 0 : e; /* a frame that has ended meets the padding */
                    multiply_add(&hash->sums[f], x, powers(key, e), powers_folded(key, e));
                }
            }
        }
        if (hashed && last && r == hash_rounds)
            hash_end_chunk(key, hash, hg, lengths, plan);
    }
    if (ciphered) {
        __m512i rk = key->rk[plan.rounds];
        UNROLL for (int i = 0; i < slots; i++)
        {
            const int f = i / width, w = i % width;
            const __mmask64 m =
                plan.same ? mask[w] : unit_mask((int64_t)g->len[f] - c->at - w * UNIT);
            uint8_t *data = g->data[f] + c->at + w * UNIT;
            s[i] = _mm512_aesenclast_epi128(s[i], rk);
            s[i] = _mm512_xor_si512(s[i], load_unit(data, ciphered, m));
            if (ciphered == WHOLE)
                _mm512_storeu_si512(data, s[i]);
            else
                _mm512_mask_storeu_epi8(data, m, s[i]);
        }
        if (first) {
            UNROLL for (int q = 0; q < plan.frames / 4; q++) c->j0[q] =
                _mm512_aesenclast_epi128(j0[q], rk);
        }
        c->at += (uint32_t)width * UNIT;
    }
    if (hashed) {
        hash->at += (uint32_t)width * UNIT;
        UNROLL for (int f = 0; f < plan.frames; f++) hash->e[f] -= 4 * width;
    }
}

/* Asks for the lines of a group that comes later, those at the offset at which this one works: so
 * all of it will have been asked for in time. */
INLINE void prefetch(const struct group *next, uint32_t at, struct plan plan)
{
    UNROLL for (int f = 0; f < plan.frames; f++)
    {
        UNROLL for (int w = 0; w < plan.width + plan.single; w++)
            _mm_prefetch((const char *)next->data[f] + at + w * UNIT, _MM_HINT_T0);
    }
}

/* `groups` times plan.frames frames, of `ops` or of `list`: all of the same lengths; or else
 * (plan.same is 0) one group, which has the same number of chunks.
 *
 * Sealing, the hash is one step behind the cipher, also from one group to the next; opening, both
 * work on the same units. */
INLINE void stream(const struct vaes512_key *key, struct gcm_op *ops, struct gcm_op *const *list,
                   size_t groups, struct plan plan)
{
    const uint32_t stride = (uint32_t)plan.width * UNIT;
    struct group g = group_of(ops, list, 0, plan);
    struct sums lengths = length_sums(key, g.op);
    struct hash hash;
    struct cipher c;
    __m512i j0[QUADS_MAX]; /* of the group that is being hashed */

    for (size_t i = 0; i < groups; i++) {
        g = group_of(ops, list, i, plan);
        const size_t later = i + (plan.single ? GROUPS_AHEAD : 1);
        const struct group next = group_of(ops, list, later < groups ? later : i, plan);
        cipher_begin(key, &c, &g, plan);
        prefetch(&next, 0, plan);
        if (plan.open) {
            hash_begin(key, &hash, &g, plan);
            step(key, &g, &c, &g, &hash, &lengths, plan, MASKED, MASKED, 1, plan.single);
        } else {
            if (i == 0) {
                step(key, &g, &c, NULL, NULL, NULL, plan, MASKED, NONE, 1, 0);
            } else {
                struct group before = group_of(ops, list, i - 1, plan);
                step(key, &g, &c, &before, &hash, &lengths, plan, MASKED, MASKED, 1, 1);
                group_finish(&before, &hash, j0, plan);
            }
            hash_begin(key, &hash, &g, plan);
        }
        UNROLL for (int q = 0; q < plan.frames / 4; q++) j0[q] = c.j0[q];
        while (!plan.single && c.at < g.end) {
            while (c.at + stride <= g.whole && hash.at < hash.chunk_end) {
                prefetch(&next, c.at, plan);
                step(key, &g, &c, &g, &hash, NULL, plan, WHOLE, WHOLE, 0, 0);
            }
            if (hash.at >= hash.chunk_end) {
                hash_end_chunk(key, &hash, &g, &lengths, plan);
                hash_begin_chunk(&hash, &g, plan);
            } else if (c.at < g.end) {
                prefetch(&next, c.at, plan);
                step(key, &g, &c, &g, &hash, NULL, plan, MASKED, MASKED, 0, 0);
            }
        }
        if (plan.open) {
            if (!plan.single)
                hash_end_chunk(key, &hash, &g, &lengths, plan);
            group_finish(&g, &hash, j0, plan);
        }
    }
    if (!plan.open) {
        step(key, NULL, NULL, &g, &hash, &lengths, plan, NONE, MASKED, 0, 1);
        group_finish(&g, &hash, j0, plan);
    }
}

/* ---- solo: one frame of any length ---- */

/* One turn of solo: AES of the eight units at `data`, between its rounds GHASH of the eight units
 * of ciphertext at `text`: the same ones when opening, those of the turn before when sealing. Both
 * are bound to a few pipes of the core, but not to the same, so neither may wait for the other.
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
        UNROLL for (int i = 0; i < TURN; i++) s[i] =
            _mm512_xor_si512(i < TURN - 1 ? low : carried, turn_counters[i]);
    }
    UNROLL for (int r = 1; r < rounds; r++)
    {
        if (cipher) {
            __m512i rk = key->rk[r];
            UNROLL for (int i = 0; i < TURN; i++) s[i] = _mm512_aesenc_epi128(s[i], rk);
            KEEP_ORDER(s);
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
    __m512i s[2], j0 = _mm512_xor_si512(iv, counter_blocks(counters(1)));

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
        UNROLL for (int i = 0; i < 2; i++) s[i] =
            _mm512_xor_si512(iv, counter_blocks(counters(n + 4 * (uint32_t)i)));
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
    __m128i tag = _mm512_castsi512_si128(_mm512_xor_si512(byte_swap(add_lanes(reduce(&sums))), j0));
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

typedef void equal_fn(const struct vaes512_key *key, struct gcm_op *ops, size_t groups);
typedef void listed_fn(const struct vaes512_key *key, struct gcm_op *const *list, size_t groups);
typedef void mixed_fn(const struct vaes512_key *key, struct gcm_op *const *op);
typedef void solo_fn(const struct vaes512_key *key, struct gcm_op *op);

/* Frames of one length: groups of eight up to one unit, of four up to two units, of four of any. */
enum { EIGHTS, TWO, EQUAL, WAYS };

struct kernels {
    equal_fn *equal[WAYS];   /* that follow each other */
    listed_fn *listed[WAYS]; /* that stand in a list */
    mixed_fn *mixed;         /* four frames of several lengths */
    solo_fn *solo;
};

#define NOINLINE static __attribute__((noinline))
#define SAME(name, rounds, open, frames, width, single)                                            \
    NOINLINE void name(const struct vaes512_key *key, struct gcm_op *ops, size_t groups)           \
    {                                                                                              \
        stream(key, ops, NULL, groups, (struct plan){rounds, open, frames, width, 1, single, 0});  \
    }                                                                                              \
    NOINLINE void name##_listed(const struct vaes512_key *key, struct gcm_op *const *list,         \
                                size_t groups)                                                     \
    {                                                                                              \
        stream(key, NULL, list, groups, (struct plan){rounds, open, frames, width, 1, single, 1}); \
    }
#define KERNELS(name, rounds, open)                                                                \
    SAME(eights_##name, rounds, open, 8, 1, 1)                                                     \
    SAME(two_##name, rounds, open, 4, 2, 1)                                                        \
    SAME(equal_##name, rounds, open, 4, 2, 0)                                                      \
    NOINLINE void mixed_##name(const struct vaes512_key *key, struct gcm_op *const *op)            \
    {                                                                                              \
        stream(key, NULL, op, 1, (struct plan){rounds, open, 4, 2, 0, 0, 1});                      \
    }                                                                                              \
    NOINLINE void solo_##name(const struct vaes512_key *key, struct gcm_op *op)                    \
    {                                                                                              \
        solo(key, op, rounds, open);                                                               \
    }                                                                                              \
    static const struct kernels name = {                                                           \
        {eights_##name, two_##name, equal_##name},                                                 \
        {eights_##name##_listed, two_##name##_listed, equal_##name##_listed},                      \
        mixed_##name,                                                                              \
        solo_##name};

KERNELS(seal_128, AES128_ROUNDS, 0)
KERNELS(seal_256, AES256_ROUNDS, 0)
KERNELS(open_128, AES128_ROUNDS, 1)
KERNELS(open_256, AES256_ROUNDS, 1)

/* ---- which frames meet in a group ---- */

enum {
    CLASSES = LAST_CHUNK + CHUNKS_MAX, /* of lengths that may meet: equal units, then chunks */
    LISTS = 6,                         /* lengths that are looked for in a batch */
    LIST_MAX = 32,
};

/* Frames of one length that do not follow each other. */
struct list {
    uint64_t lengths;
    uint32_t count;
    struct gcm_op *op[LIST_MAX];
};

/* Frames that wait for others of about their length. */
struct waiting {
    struct gcm_op *op[CLASSES][4];
    uint8_t count[CLASSES];
    uint64_t used;
};

INLINE uint64_t lengths_of(const struct gcm_op *op)
{
    return op->data_len | (uint64_t)op->aad_len << 32;
}

/* 0 .. CLASSES-1 */
INLINE uint32_t length_class(uint32_t data_len)
{
    uint32_t n = units(data_len);
    return n <= LAST_CHUNK ? n : LAST_CHUNK - 1 + chunks(data_len);
}

/* How `count` frames of one length are done, and how many of them in a group. */
INLINE int way_of(uint32_t data_len, size_t count)
{
    if (data_len <= UNIT && count >= 8)
        return EIGHTS;
    return data_len <= 2 * UNIT ? TWO : EQUAL;
}

INLINE size_t group_size(int way)
{
    return way == EIGHTS ? 8 : 4;
}

static void wait_for_others(const struct kernels *kernels, const struct vaes512_key *key,
                            struct waiting *waiting, struct gcm_op *op)
{
    const uint32_t class = length_class(op->data_len);

    waiting->op[class][waiting->count[class]++] = op;
    waiting->used |= 1ULL << class;
    if (waiting->count[class] == 4) {
        kernels->mixed(key, waiting->op[class]);
        waiting->count[class] = 0;
    }
}

/* Whole groups of a list; what is left waits for others. */
static void work_off(const struct kernels *kernels, const struct vaes512_key *key,
                     struct list *list, struct waiting *waiting)
{
    uint32_t done = 0;

    while (list->count - done >= 4) {
        const int way = way_of(list->op[0]->data_len, list->count - done);
        const size_t groups = (list->count - done) / group_size(way);
        kernels->listed[way](key, list->op + done, groups);
        done += (uint32_t)(groups * group_size(way));
    }
    for (; done < list->count; done++)
        wait_for_others(kernels, key, waiting, list->op[done]);
    list->count = 0;
}

/* The end of a batch, from short to long: short neighbours in quads, long frames alone. */
static void leftovers(const struct kernels *kernels, const struct vaes512_key *key,
                      struct waiting *waiting)
{
    struct gcm_op *four[4];
    size_t have = 0;

    for (; waiting->used; waiting->used &= waiting->used - 1) {
        uint32_t class = (uint32_t)__builtin_ctzll(waiting->used);
        for (uint32_t c = 0; c < waiting->count[class]; c++) {
            if (class > LEFTOVER_UNITS) {
                kernels->solo(key, waiting->op[class][c]);
                continue;
            }
            four[have++] = waiting->op[class][c];
            if (have == 4) {
                kernels->mixed(key, four);
                have = 0;
            }
        }
    }
    if (have == 1) {
        kernels->solo(key, four[0]);
    } else if (have > 1) {
        uint8_t tag[GCM_TAG_LEN] = {0}, *nothing = tag;
        struct gcm_op nobody[2] = {{.data = nothing, .tag = tag}, {.data = nothing, .tag = tag}};
        for (size_t f = have; f < 4; f++)
            four[f] = &nobody[f - have];
        kernels->mixed(key, four);
    }
}

static void batch(const struct kernels *kernels, const struct vaes512_key *key, struct gcm_op *ops,
                  size_t n)
{
    struct list lists[LISTS];
    struct waiting waiting;
    uint32_t used = 0; /* lists */

    waiting.used = 0;
    memset(waiting.count, 0, sizeof waiting.count);
    for (size_t i = 0, run; i < n; i += run) {
        struct gcm_op *op = &ops[i];
        uint32_t l = 0;

        run = 1;
        if (chunks(op->data_len) > CHUNKS_MAX) {
            kernels->solo(key, op);
            continue;
        }
        while (i + run < n && lengths_of(op + run) == lengths_of(op))
            run++;
        if (run >= 4) {
            const int way = way_of(op->data_len, run);
            const size_t groups = run / group_size(way);
            kernels->equal[way](key, op, groups);
            run = groups * group_size(way);
            continue;
        }
        run = 1;
        while (l < used && lists[l].lengths != lengths_of(op))
            l++;
        if (l == LISTS) {
            wait_for_others(kernels, key, &waiting, op);
            continue;
        }
        if (l == used) {
            lists[used].lengths = lengths_of(op);
            lists[used++].count = 0;
        }
        lists[l].op[lists[l].count++] = op;
        if (lists[l].count == LIST_MAX)
            work_off(kernels, key, &lists[l], &waiting);
    }
    for (uint32_t l = 0; l < used; l++)
        work_off(kernels, key, &lists[l], &waiting);
    leftovers(kernels, key, &waiting);
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

VAES512_END

const struct gcm_backend gcm_vaes512 = {
    .name = "vaes512",
    .usable = vaes512_usable,
    .key_init = vaes512_key_init,
    .key_wipe = NULL,
    .seal = vaes512_seal,
    .open = vaes512_open,
    .protect = gcm_vaes512_protect,
    .validate = gcm_vaes512_validate,
};
#else
typedef int gcm_vaes512_is_empty;
#endif
