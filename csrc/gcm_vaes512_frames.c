/* Whole frames with AVX-512: see gcm_frames.h. What is said of units, GHASH and its powers in
 * gcm_vaes512.c and .h holds here, too.
 *
 * A frame's AAD is 28 octets, two blocks: they are made (out) or read (in) for four frames at once,
 * transposed: block 0 of four frames in one register, block 1 in another. From there come the
 * SecTAGs, the IVs, the comparison with what a usual frame looks like, and the hash of the AAD; so
 * nothing of it goes through memory but the frames themselves.
 *
 *   out   block 0: DA, SA of the frame, EtherType, TCI, SL     block 1: PN, SCI, 4 octets not ours
 *
 * Two kernels, both with four frames a "quad":
 *
 *   small  to 128 octets of secure data: a group is one step of eight units, of eight or of four
 *          frames. The hash works on transposed blocks: all of a register meet one power, the sums
 *          are a lane a frame, and there is nothing to fold at the end.
 *   large  from there on: four frames, two units of each a step. Each frame has sums of its own,
 *          which are folded into lanes once a chunk; transposing every unit would cost more.
 *
 * Nothing of a group waits for the end of the one before: out, its hash runs a step behind the
 * cipher; in, its last reduction, the tags and the stripping stand in the first rounds of the next
 * group. So the pipes stay busy also where a group is one step, and with half a core's window,
 * when a sibling thread has the other half. */
#include "gcm_backend.h"

#if defined(__x86_64__)
#include "gcm_vaes512.h"
#include "verdict.h"
#include "vlan.h"

#if !defined(__clang__)
/* What the group before left behind is read, but not by the first one: gcc cannot see it. */
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
VAES512_BEGIN

enum {
    AAD_LEN = SECTAG_AT + SECTAG_SIZE_MAX,
    SLOTS = 8, /* units in a step */
    QUADS_MAX = 2,
    STRIDE = 2 * UNIT,                        /* octets of a frame in a step of the large ones */
    TAG_SHIFT = SECTAG_SIZE_MAX,              /* the frame's start moves by so much */
    VLAN_SHIFT = SECTAG_SIZE_MAX + VLAN_SIZE, /* with a VLAN tag */
    GROUPS_AHEAD = 2,                         /* whose lines small asks for */
};

_Static_assert((int)AAD_LEN <= (int)SHORT_AAD, "two blocks");

/* How a kernel works; all constants to the compiler. */
struct how {
    int rounds, open;
    int frames; /* in a group: 4 or 8 */
    int width;  /* units of each frame in a step */
    int whole;  /* all units are */
};

/* What is the same for all groups of a call. An X is a block in GHASH's order, byte-swapped. */
struct same {
    const struct vaes512_key *key;
    uint8_t *arena;
    uint32_t data_len; /* of secure data; all of it is encrypted */
    uint32_t shift;    /* out: TAG_SHIFT or VLAN_SHIFT */
    uint8_t verdict;
    bool pop_vlan;
    __m512i head;         /* block 0 but for the addresses */
    __m512i sci;          /* X of block 1 but for the PN */
    __m512i iv;           /* but for the low PN; the first round key is in */
    __m512i vlan;         /* out: the VLAN tag, where the data begin */
    __m512i lowest;       /* in: low half of the lowest PN */
    struct sums lengths;  /* the length block times H */
    const __m128i *h, *k; /* powers that block 0 of the AAD meets where there is but one chunk */
    __mmask64 mask[2];    /* octets of the two units of the last step; small has one: the second */
    __mmask64 payload;    /* out: octets of the first unit that are not the VLAN tag */
};

INLINE __m512i lanes(__m128i x)
{
    return _mm512_broadcast_i32x4(x);
}

INLINE __m512i lanes_of(const uint8_t octets[16])
{
    return lanes(_mm_loadu_si128((const __m128i *)octets));
}

/* X of block 1 -> the PN as it stands in an IV */
INLINE __m512i pn_in_iv(__m512i x1)
{
    return _mm512_shuffle_epi8(
        x1, lanes(_mm_set_epi8(-1, -1, -1, -1, 12, 13, 14, 15, -1, -1, -1, -1, -1, -1, -1, -1)));
}

/* `pn`: out, the first number; in, the lowest acceptable one. */
INLINE struct same same_of(const struct vaes512_key *key, const struct gcm_usual *usual,
                           uint8_t *arena, const struct frame *first, uint64_t pn, bool open)
{
    const bool tagged = !open && first->vlan != FRAME_NO_VLAN;
    struct same s = {.key = key,
                     .arena = arena,
                     .verdict = usual->verdict,
                     .pop_vlan = usual->pop_vlan,
                     .shift = tagged ? VLAN_SHIFT : TAG_SHIFT};
    uint8_t head[16] = {0}, sci[16] = {0}, iv[16] = {0}, vlan[16] = {0};

    s.data_len = open ? first->len - AAD_LEN - SECTAG_ICV_SIZE
                      : first->len - SECTAG_AT + s.shift - TAG_SHIFT;
    memcpy(head + SECTAG_AT, usual->sectag, 4);
    if (!open)
        head[SECTAG_AT + 3] = sectag_short_length(s.data_len);
    for (int i = 0; i < SECTAG_SCI_SIZE; i++)
        sci[11 - i] = usual->sectag[SECTAG_SIZE + i];
    gcm_iv(iv, &usual->iv, pn & ~(uint64_t)UINT32_MAX);
    wire_put16(vlan, VLAN_TPID);
    wire_put16(vlan + 2, first->vlan);
    s.head = lanes_of(head);
    s.sci = lanes_of(sci);
    s.iv = _mm512_xor_si512(lanes_of(iv), key->rk[0]);
    s.vlan = _mm512_maskz_mov_epi32(tagged, lanes_of(vlan));
    s.payload = tagged ? ~(__mmask64)0xf : ~(__mmask64)0;
    s.lowest = _mm512_set1_epi32((int)(uint32_t)pn);
    s.lengths = no_sums();
    multiply_add(&s.lengths, lanes(_mm_set_epi64x(AAD_LEN * 8, (long long)s.data_len * 8)),
                 lanes(key->h[POWERS - 1]), lanes(key->k[POWERS - 1]));
    if (s.data_len <= LAST_CHUNK * UNIT) {
        const int32_t e =
            (int32_t)blocks(s.data_len) + 3; /* data, lengths, and block 1 behind it */
        s.h = &key->h[POWERS - e];
        s.k = &key->k[POWERS - e];
    }
    const int64_t rest =
        s.data_len <= UNIT ? (int64_t)s.data_len + UNIT : (int64_t)((s.data_len - 1) % STRIDE + 1);
    s.mask[0] = unit_mask(rest);
    s.mask[1] = unit_mask(rest - UNIT);
    return s;
}

/* ---- the beginning of four frames ---- */

struct header {
    __m512i block0, x1;
};

INLINE void store_lanes(uint8_t *const at[4], uint32_t offset, __m512i x)
{
    _mm_storeu_si128((__m128i *)(at[0] + offset), _mm512_castsi512_si128(x));
    _mm_storeu_si128((__m128i *)(at[1] + offset), _mm512_extracti32x4_epi32(x, 1));
    _mm_storeu_si128((__m128i *)(at[2] + offset), _mm512_extracti32x4_epi32(x, 2));
    _mm_storeu_si128((__m128i *)(at[3] + offset), _mm512_extracti32x4_epi32(x, 3));
}

INLINE __m512i load_lanes(uint8_t *const at[4], uint32_t offset)
{
    return four_blocks(_mm_loadu_si128((const __m128i *)(at[0] + offset)),
                       _mm_loadu_si128((const __m128i *)(at[1] + offset)),
                       _mm_loadu_si128((const __m128i *)(at[2] + offset)),
                       _mm_loadu_si128((const __m128i *)(at[3] + offset)));
}

/* A frame's description is three words: at; len; vlan and verdict. */
_Static_assert(sizeof(struct frame) == 12 && offsetof(struct frame, len) == 4 &&
                   offsetof(struct frame, vlan) == 8 && offsetof(struct frame, verdict) == 10,
               "frames are described by a double word and a word at once");

INLINE void describe(struct frame *frame, uint64_t at_and_len, uint16_t vlan, uint8_t verdict)
{
    const uint32_t rest = vlan | (uint32_t)verdict << 16;

    memcpy(frame, &at_and_len, sizeof at_and_len);
    memcpy(&frame->vlan, &rest, sizeof rest);
}

/* Out: makes and writes the AADs of four frames; their descriptions are final then. */
INLINE struct header header_out(const struct same *s, struct frame *frames, uint32_t pn)
{
    const uint64_t grown = ((uint64_t)(s->shift + SECTAG_ICV_SIZE) << 32) - s->shift;
    const __m512i numbers =
        _mm512_add_epi32(_mm512_maskz_set1_epi32(0x8888, (int)pn),
                         _mm512_set_epi32(3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0));
    struct header header = {.block0 = s->head, .x1 = _mm512_xor_si512(s->sci, numbers)};
    uint8_t *start[4];

    UNROLL for (int f = 0; f < 4; f++)
    {
        uint64_t at_and_len;
        memcpy(&at_and_len, &frames[f], sizeof at_and_len);
        const uint8_t *from = s->arena + (uint32_t)at_and_len;
        header.block0 = _mm512_mask_broadcast_i32x4(header.block0, (__mmask16)(0x7 << 4 * f),
                                                    _mm_loadu_si128((const __m128i *)from));
        at_and_len += grown;
        start[f] = s->arena + (uint32_t)at_and_len;
        describe(&frames[f], at_and_len, frames[0].vlan, s->verdict);
    }
    store_lanes(start, 0, header.block0);
    store_lanes(start, SECTAG_AT, _mm512_alignr_epi8(byte_swap(header.x1), header.block0, 12));
    return header;
}

/* In: reads the AADs of four frames; not 0 in *unusual: one is not what it should be. */
INLINE struct header header_in(const struct same *s, const struct frame *frames, uint32_t *unusual)
{
    /* byte_swap, but the four octets behind the AAD become zero */
    const __m512i order = lanes(_mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, -1, -1, -1, -1));
    const __m256i *at[4];
    struct header header;

    UNROLL for (int f = 0; f < 4; f++) at[f] = (const __m256i *)(s->arena + frames[f].at);
    const __m512i ab = _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256(at[0])),
                                          _mm256_loadu_si256(at[1]), 1);
    const __m512i cd = _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256(at[2])),
                                          _mm256_loadu_si256(at[3]), 1);
    header.block0 = _mm512_shuffle_i64x2(ab, cd, 0x88);
    header.x1 = _mm512_shuffle_epi8(_mm512_shuffle_i64x2(ab, cd, 0xdd), order);
    *unusual |= _mm512_mask_cmpneq_epi32_mask(0x8888, header.block0, s->head);
    *unusual |= _mm512_mask_cmpneq_epi32_mask(0x6666, header.x1, s->sci);
    *unusual |= _mm512_mask_cmplt_epu32_mask(0x8888, header.x1, s->lowest);
    return header;
}

/* The numbers of one or two quads, as they came. */
INLINE void store_numbers(uint32_t *at, __m512i x1, __m512i second_x1, int quads)
{
    const __m512i which = _mm512_castsi256_si512(_mm256_set_epi32(31, 27, 23, 19, 15, 11, 7, 3));
    const __m512i numbers = _mm512_permutex2var_epi32(x1, which, second_x1);

    if (quads == 2)
        _mm256_storeu_si256((__m256i *)at, _mm512_castsi512_si256(numbers));
    else
        _mm_storeu_si128((__m128i *)at, _mm512_castsi512_si128(numbers));
}

/* The IVs of four frames, a lane each; and J0, which has counter 1. */
INLINE __m512i ivs_of(const struct same *s, const struct header *header)
{
    return _mm512_xor_si512(pn_in_iv(header->x1), s->iv);
}

INLINE __m512i j0_of(__m512i ivs)
{
    return _mm512_xor_si512(ivs, _mm512_maskz_set1_epi32(0x8888, 1 << 24));
}

/* The IV of frame f in all lanes; f is a constant. */
#define IV_OF(ivs, f) _mm512_shuffle_i64x2(ivs, ivs, 0x55 * (f))

/* ---- the end of four frames ---- */

INLINE void starts(const struct same *s, const struct frame *frames, uint8_t *start[4])
{
    UNROLL for (int f = 0; f < 4; f++) start[f] = s->arena + frames[f].at;
}

/* Out: the tags; `digest` is a lane a frame, `j0` encrypted. */
INLINE void finish_out(const struct same *s, const struct frame *frames, __m512i digest, __m512i j0)
{
    uint8_t *start[4];

    starts(s, frames, start);
    store_lanes(start, AAD_LEN + s->data_len, _mm512_xor_si512(byte_swap(digest), j0));
}

/* The same steps as finish_in for frames that are not all authentic, or do not all have a VLAN tag
 * to take off. Bits 2f and 2f+1 of `wrong` belong to frame f. */
static __attribute__((noinline, cold)) uint64_t finish_each(const struct same *s,
                                                            struct frame *frames, uint32_t wrong)
{
    uint64_t refused = 0;

    for (unsigned f = 0; f < 4; f++) {
        uint8_t *const start = s->arena + frames[f].at, *const data = start + AAD_LEN;
        if (wrong >> 2 * f & 3) {
            memset(data, 0, s->data_len);
            frames[f].verdict = VERDICT_IN_NOT_VALID;
            refused |= 1u << f;
            continue;
        }
        const bool popped = s->pop_vlan && wire_get16(data) == VLAN_TPID;
        const uint32_t shift = popped ? VLAN_SHIFT : TAG_SHIFT;
        frames[f].vlan = popped ? wire_get16(data + 2) : FRAME_NO_VLAN;
        frames[f].at += shift;
        frames[f].len = SECTAG_AT + s->data_len + TAG_SHIFT - shift;
        wire_move_addresses(start + shift, start); /* over the VLAN tag */
        frames[f].verdict = s->verdict;
    }
    return refused;
}

/* In: compares the tags and strips the frames; returns a bit for each that is not authentic. */
INLINE uint64_t finish_in(const struct same *s, struct frame *frames, __m512i digest, __m512i j0)
{
    const uint32_t tpid = __builtin_bswap16(VLAN_TPID); /* as it stands in memory */
    const __m512i tags = _mm512_xor_si512(byte_swap(digest), j0);
    uint8_t *start[4];
    uint32_t tag[4], other = !s->pop_vlan;

    starts(s, frames, start);
    const uint32_t wrong = _mm512_cmpneq_epi64_mask(tags, load_lanes(start, AAD_LEN + s->data_len));
    UNROLL for (int f = 0; f < 4; f++)
    {
        memcpy(&tag[f], start[f] + AAD_LEN, sizeof tag[f]);
        other |= (tag[f] ^ tpid) & 0xffff;
    }
    if (__builtin_expect((wrong | other) != 0, 0))
        return finish_each(s, frames, wrong);
    UNROLL for (int f = 0; f < 4; f++)
    {
        const uint64_t len = SECTAG_AT + s->data_len - VLAN_SIZE;
        wire_move_addresses(start[f] + VLAN_SHIFT, start[f]);
        describe(&frames[f], len << 32 | (frames[f].at + VLAN_SHIFT),
                 (uint16_t)__builtin_bswap32(tag[f]), s->verdict);
    }
    return 0;
}

/* ---- small: a group is one step ---- */

/* Four units of four frames -> each of their blocks for four frames */
INLINE void transpose(__m512i x[4])
{
    const __m512i ab02 = _mm512_shuffle_i64x2(x[0], x[1], 0x88);
    const __m512i ab13 = _mm512_shuffle_i64x2(x[0], x[1], 0xdd);
    const __m512i cd02 = _mm512_shuffle_i64x2(x[2], x[3], 0x88);
    const __m512i cd13 = _mm512_shuffle_i64x2(x[2], x[3], 0xdd);

    x[0] = _mm512_shuffle_i64x2(ab02, cd02, 0x88);
    x[1] = _mm512_shuffle_i64x2(ab13, cd13, 0x88);
    x[2] = _mm512_shuffle_i64x2(ab02, cd02, 0xdd);
    x[3] = _mm512_shuffle_i64x2(ab13, cd13, 0xdd);
}

/* Block `i` of four frames, those of the AAD counted as 0 and 1. */
INLINE void hash_block(const struct same *s, struct sums *sums, int i, __m512i x)
{
    multiply_add(sums, x, lanes(s->h[i]), lanes(s->k[i]));
}

/* Block 0 or 1 of a group's AADs: i is 2 * quad + block. */
INLINE void hash_header(const struct same *s, const struct header *header, struct sums *sums, int i)
{
    const struct header *h = &header[i / 2];

    hash_block(s, &sums[i / 2], i % 2, i % 2 ? h->x1 : byte_swap(h->block0));
}

INLINE enum part part_of(struct how how, int u)
{
    return how.whole || u + 1 < how.width ? WHOLE : MASKED;
}

/* The i-th of the group's blocks of ciphertext, of which there are SLOTS for four frames each. Each
 * fourth call reads four units and leaves the next three blocks in x. */
INLINE void hash_data(const struct same *s, const struct frame *frames, struct sums *sums,
                      __m512i *x, int i, struct how how)
{
    const int q = i / (4 * how.width), u = i / 4 % how.width;

    if (i % 4 == 0) {
        UNROLL for (int f = 0; f < 4; f++)
        {
            const uint8_t *at = s->arena + frames[4 * q + f].at + AAD_LEN + u * UNIT;
            x[f] = byte_swap(load_unit(at, part_of(how, u), s->mask[1]));
        }
        transpose(x);
    }
    hash_block(s, &sums[q], 2 + 4 * u + i % 4, x[i % 4]);
}

INLINE void prefetch_small(const struct same *s, const struct frame *frames, struct how how)
{
    UNROLL for (int f = 0; f < how.frames; f++)
    {
        const uint8_t *line = s->arena + frames[f].at;
        UNROLL for (int u = 0; u <= how.width; u++) _mm_prefetch(line + u * UNIT, _MM_HINT_T0);
    }
}

/* The last reduction and the end of a group. Returns a bit for each frame that is not authentic. */
INLINE uint64_t finish_small(const struct same *s, struct frame *frames, const struct sums *sums,
                             const __m512i *j0, struct how how)
{
    uint64_t refused = 0;

    UNROLL for (int q = 0; q < how.frames / 4; q++)
    {
        if (how.open)
            refused |= finish_in(s, frames + 4 * q, reduce(&sums[q]), j0[q]) << 4 * q;
        else
            finish_out(s, frames + 4 * q, reduce(&sums[q]), j0[q]);
    }
    return refused;
}

INLINE size_t small(const struct same *s, struct frame *frames, size_t n, uint32_t pn,
                    struct gcm_seen *seen, struct how how)
{
    const int quads = how.frames / 4, width = how.width;
    const size_t group = (size_t)how.frames;
    const int hash_rounds = how.rounds - 3; /* out: for the data; the AADs come behind */
    const int open_rounds = how.rounds - 2 - quads;
    struct sums sums[QUADS_MAX], before[QUADS_MAX];
    __m512i j0[QUADS_MAX], j0_before[QUADS_MAX], x[4];
    struct header header[QUADS_MAX];
    uint64_t refused = 0;
    size_t i = 0;

    for (; i + group <= n; i += group) {
        struct frame *const last = frames + i - group; /* the group before, if i > 0 */
        __m512i state[SLOTS];
        uint32_t unusual = 0;

        UNROLL for (int q = 0; q < quads; q++) header[q] =
            how.open ? header_in(s, frames + i + 4 * q, &unusual)
                     : header_out(s, frames + i + 4 * q, pn + (uint32_t)i + 4 * (uint32_t)q);
        if (__builtin_expect(unusual != 0, 0))
            break;
        if (i + (GROUPS_AHEAD + 1) * group <= n)
            prefetch_small(s, frames + i + GROUPS_AHEAD * group, how);
        UNROLL for (int q = 0; q < quads; q++)
        {
            const __m512i ivs = ivs_of(s, &header[q]);
            j0[q] = j0_of(ivs);
            sums[q] = s->lengths;
            UNROLL for (int u = 0; u < width; u++)
            {
                const __m512i count = counter_blocks(counters(2 + 4 * (uint32_t)u));
                __m512i *const of_unit = &state[4 * q * width + u];
                of_unit[0 * width] = _mm512_xor_si512(IV_OF(ivs, 0), count);
                of_unit[1 * width] = _mm512_xor_si512(IV_OF(ivs, 1), count);
                of_unit[2 * width] = _mm512_xor_si512(IV_OF(ivs, 2), count);
                of_unit[3 * width] = _mm512_xor_si512(IV_OF(ivs, 3), count);
            }
        }
        if (how.open)
            store_numbers(&seen->pn_low[i], header[0].x1, header[quads - 1].x1, quads);

        UNROLL for (int r = 1; r < how.rounds; r++)
        {
            const __m512i rk = s->key->rk[r];
            UNROLL for (int k = 0; k < SLOTS; k++) state[k] = _mm512_aesenc_epi128(state[k], rk);
            UNROLL for (int q = 0; q < quads; q++) j0[q] = _mm512_aesenc_epi128(j0[q], rk);
            KEEP_ORDER(state);
            if (how.open) {
                if (i > 0 && r == 1)
                    refused |= finish_small(s, last, before, j0_before, how) << (i - group);
                UNROLL for (int k = 0; k < 2 * quads; k++)
                {
                    if (r == 2 + k / 2)
                        hash_header(s, header, sums, k);
                }
                UNROLL for (int k = 0; k < SLOTS; k++)
                {
                    if (r == 2 + quads + k * open_rounds / SLOTS)
                        hash_data(s, frames + i, sums, x, k, how);
                }
            } else {
                UNROLL for (int k = 0; k < SLOTS; k++)
                {
                    if (i > 0 && r == 1 + k * hash_rounds / SLOTS)
                        hash_data(s, last, before, x, k, how);
                }
                if (i > 0 && r == 1 + hash_rounds)
                    finish_small(s, last, before, j0_before, how);
                UNROLL for (int k = 0; k < 2 * quads; k++)
                {
                    if (r == how.rounds - quads + k / 2)
                        hash_header(s, header, sums, k);
                }
            }
        }
        const __m512i rk = s->key->rk[how.rounds];
        UNROLL for (int k = 0; k < SLOTS; k++)
        {
            const int f = k / width, u = k % width;
            const enum part part = part_of(how, u);
            const __mmask64 mask = part == WHOLE ? ~(__mmask64)0 : s->mask[1];
            uint8_t *at = s->arena + frames[i + (size_t)f].at + AAD_LEN + u * UNIT;
            const __m512i text = u == 0 && !how.open
                                     ? _mm512_mask_loadu_epi8(s->vlan, mask & s->payload, at)
                                     : load_unit(at, part, mask);
            state[k] = _mm512_xor_si512(_mm512_aesenclast_epi128(state[k], rk), text);
            if (part == WHOLE)
                _mm512_storeu_si512(at, state[k]);
            else
                _mm512_mask_storeu_epi8(at, mask, state[k]);
        }
        UNROLL for (int q = 0; q < quads; q++)
        {
            j0_before[q] = _mm512_aesenclast_epi128(j0[q], rk);
            before[q] = sums[q];
        }
    }
    if (i == 0)
        return 0;
    if (!how.open) {
        UNROLL for (int k = 0; k < SLOTS; k++) hash_data(s, frames + i - group, before, x, k, how);
    }
    refused |= finish_small(s, frames + i - group, before, j0_before, how) << (i - group);
    if (how.open)
        seen->authentic = ~refused & UINT64_MAX >> (64 - i);
    return i;
}

/* ---- large: four frames, two units of each a step ---- */

/* Where the hash of a group stands. */
struct hash {
    struct sums sums[4];  /* of the chunk's units, a frame each */
    struct sums all;      /* a lane a frame: what else goes into the chunk's digest */
    const __m128i *h, *k; /* powers that the next block meets */
    uint32_t chunks;      /* that follow this one */
    uint32_t end;         /* of this one, in octets; beyond the data if it is the last */
};

/* A chunk that begins at `at`. */
INLINE void chunk_begin(const struct same *s, struct hash *hash, uint32_t at)
{
    const uint32_t e = hash->chunks > 0 ? 4 * CHUNK : blocks(s->data_len - at) + 1;

    UNROLL for (int f = 0; f < 4; f++) hash->sums[f] = no_sums();
    hash->all = hash->chunks > 0 ? no_sums() : s->lengths;
    hash->h = &s->key->h[POWERS - e];
    hash->k = &s->key->k[POWERS - e];
    hash->end = hash->chunks > 0 ? at + CHUNK * UNIT : UINT32_MAX;
}

/* The sums of the chunk into `all`. */
INLINE void chunk_fold(struct hash *hash)
{
    const struct sums *a = &hash->sums[0], *b = &hash->sums[1];
    const struct sums *c = &hash->sums[2], *d = &hash->sums[3];

    hash->all.lo = _mm512_xor_si512(hash->all.lo,
                                    quad_lanes(pair_lanes(a->lo, b->lo), pair_lanes(c->lo, d->lo)));
    hash->all.mid = _mm512_xor_si512(
        hash->all.mid, quad_lanes(pair_lanes(a->mid, b->mid), pair_lanes(c->mid, d->mid)));
    hash->all.hi = _mm512_xor_si512(hash->all.hi,
                                    quad_lanes(pair_lanes(a->hi, b->hi), pair_lanes(c->hi, d->hi)));
}

/* From a chunk to the next: its digest meets the power of the first block that follows. */
INLINE void chunk_next(const struct same *s, struct hash *hash)
{
    chunk_fold(hash);
    const __m512i digest = reduce(&hash->all);
    hash->chunks--;
    chunk_begin(s, hash, hash->end);
    multiply_add(&hash->all, digest, lanes(hash->h[0]), lanes(hash->k[0]));
}

/* The hash of a group up to its data. */
INLINE void hash_begin(const struct same *s, struct hash *hash, const struct header *header)
{
    hash->chunks = chunks(s->data_len) - 1;
    chunk_begin(s, hash, 0);
    multiply_add(&hash->all, byte_swap(header->block0), lanes(hash->h[-2]), lanes(hash->k[-2]));
    multiply_add(&hash->all, header->x1, lanes(hash->h[-1]), lanes(hash->k[-1]));
}

/* The cipher's side of a group. */
struct cipher {
    uint8_t *data[4];
    __m512i iv[4]; /* after the first round key; the counters are xored in */
    __m512i j0;    /* a lane a frame; encrypted by the first step */
    __m512i counter;
};

INLINE void cipher_begin(const struct same *s, struct cipher *c, const struct frame *frames,
                         const struct header *header)
{
    const __m512i ivs = ivs_of(s, header);

    UNROLL for (int f = 0; f < 4; f++) c->data[f] = s->arena + frames[f].at + AAD_LEN;
    c->iv[0] = IV_OF(ivs, 0);
    c->iv[1] = IV_OF(ivs, 1);
    c->iv[2] = IV_OF(ivs, 2);
    c->iv[3] = IV_OF(ivs, 3);
    c->j0 = j0_of(ivs);
    c->counter = counters(2);
}

/* Which step it is; constants to the compiler. */
struct kind {
    int rounds, open, first;
    enum part ciphered, hashed;
};

/* One step: the cipher on the units of `c` at `at`, the hash on those of `text` at `hash_at`. */
INLINE void step(const struct same *s, struct cipher *c, uint32_t at, uint8_t *const text[4],
                 uint32_t hash_at, struct hash *hash, struct kind kind)
{
    const int hash_rounds = kind.rounds - 1;
    __m512i state[SLOTS], power[2], folded[2];
    struct sums product;

    if (kind.ciphered) {
        UNROLL for (int u = 0; u < 2; u++)
        {
            const __m512i n = counter_blocks(c->counter);
            c->counter = count_on(c->counter, 4);
            UNROLL for (int f = 0; f < 4; f++) state[2 * f + u] = _mm512_xor_si512(c->iv[f], n);
        }
    }
    if (kind.hashed) {
        UNROLL for (int u = 0; u < 2; u++)
        {
            power[u] = _mm512_loadu_si512(hash->h + 4 * u);
            folded[u] = _mm512_loadu_si512(hash->k + 4 * u);
        }
        hash->h += STRIDE / 16;
        hash->k += STRIDE / 16;
    }
    UNROLL for (int r = 1; r < kind.rounds; r++)
    {
        if (kind.ciphered) {
            const __m512i rk = s->key->rk[r];
            UNROLL for (int k = 0; k < SLOTS; k++) state[k] = _mm512_aesenc_epi128(state[k], rk);
            if (kind.first)
                c->j0 = _mm512_aesenc_epi128(c->j0, rk);
            KEEP_ORDER(state);
        }
        UNROLL for (int k = 0; k < SLOTS; k++)
        {
            if (kind.hashed && r == 1 + k * hash_rounds / SLOTS) {
                const int f = k / 2, u = k % 2;
                const uint8_t *from = text[f] + hash_at + u * UNIT;
                const __m512i x = byte_swap(load_unit(from, kind.hashed, s->mask[u]));
                if (u == 0) {
                    product = multiply(x, power[0], folded[0]);
                } else {
                    add_two(&hash->sums[f], product, multiply(x, power[1], folded[1]));
                    KEEP_SUMS(hash->sums[f]);
                }
            }
        }
    }
    if (kind.ciphered) {
        const __m512i rk = s->key->rk[kind.rounds];
        UNROLL for (int k = 0; k < SLOTS; k++)
        {
            const int f = k / 2, u = k % 2;
            uint8_t *data = c->data[f] + at + u * UNIT;
            const __m512i in = kind.first && !kind.open && u == 0
                                   ? _mm512_mask_loadu_epi8(s->vlan, s->payload, data)
                                   : load_unit(data, kind.ciphered, s->mask[u]);
            state[k] = _mm512_xor_si512(_mm512_aesenclast_epi128(state[k], rk), in);
            if (kind.ciphered == WHOLE)
                _mm512_storeu_si512(data, state[k]);
            else
                _mm512_mask_storeu_epi8(data, s->mask[u], state[k]);
        }
        if (kind.first)
            c->j0 = _mm512_aesenclast_epi128(c->j0, rk);
    }
}

/* Asks for the lines of the next group at the offset at which this one works. */
INLINE void prefetch_large(const struct same *s, const struct frame *next, uint32_t at)
{
    UNROLL for (int f = 0; f < 4; f++)
    {
        const uint8_t *line = s->arena + next[f].at + at;
        _mm_prefetch(line, _MM_HINT_T0);
        _mm_prefetch(line + UNIT, _MM_HINT_T0);
    }
}

/* Out: the hash is a step behind the cipher, also from one group to the next. */
INLINE size_t large_out(const struct same *s, struct frame *frames, size_t n, uint32_t pn,
                        int rounds, int whole)
{
    const uint32_t whole_end = s->data_len / STRIDE * STRIDE;
    const uint32_t last_at = (s->data_len - 1) / STRIDE * STRIDE;
    const enum part last = whole ? WHOLE : MASKED;
    uint8_t *text[4]; /* of the group before */
    struct cipher c;
    struct hash hash;
    __m512i j0;
    size_t i = 0;

    for (; i + 4 <= n; i += 4) {
        const struct frame *next = frames + (i + 8 <= n ? i + 4 : i);
        const struct header header = header_out(s, frames + i, pn + (uint32_t)i);
        uint32_t at = STRIDE;

        cipher_begin(s, &c, frames + i, &header);
        prefetch_large(s, next, 0);
        if (i == 0) {
            step(s, &c, 0, NULL, 0, NULL, (struct kind){rounds, 0, 1, WHOLE, NONE});
        } else {
            step(s, &c, 0, text, last_at, &hash, (struct kind){rounds, 0, 1, WHOLE, last});
            chunk_fold(&hash);
            finish_out(s, frames + i - 4, reduce(&hash.all), j0);
        }
        j0 = c.j0;
        UNROLL for (int f = 0; f < 4; f++) text[f] = s->arena + frames[i + (size_t)f].at + AAD_LEN;
        hash_begin(s, &hash, &header);
        for (;;) {
            const uint32_t stop = hash.end < whole_end - STRIDE ? hash.end + STRIDE : whole_end;
            for (; at < stop; at += STRIDE) {
                prefetch_large(s, next, at);
                step(s, &c, at, c.data, at - STRIDE, &hash,
                     (struct kind){rounds, 0, 0, WHOLE, WHOLE});
            }
            if (at - STRIDE < hash.end)
                break;
            chunk_next(s, &hash);
        }
        if (!whole) {
            prefetch_large(s, next, at);
            step(s, &c, at, c.data, at - STRIDE, &hash, (struct kind){rounds, 0, 0, MASKED, WHOLE});
            if (at == hash.end)
                chunk_next(s, &hash);
        }
    }
    if (i == 0)
        return 0;
    step(s, NULL, 0, text, last_at, &hash, (struct kind){rounds, 0, 0, NONE, last});
    chunk_fold(&hash);
    finish_out(s, frames + i - 4, reduce(&hash.all), j0);
    return i;
}

/* In: both work on the same units; the last reduction waits for the next group's first step. */
INLINE size_t large_in(const struct same *s, struct frame *frames, size_t n, struct gcm_seen *seen,
                       int rounds, int whole)
{
    const uint32_t whole_end = s->data_len / STRIDE * STRIDE;
    struct cipher c;
    struct hash hash;
    struct sums before;
    __m512i j0;
    uint64_t refused = 0;
    size_t i = 0;

    for (; i + 4 <= n; i += 4) {
        const struct frame *next = frames + (i + 8 <= n ? i + 4 : i);
        uint32_t unusual = 0, at = STRIDE;
        const struct header header = header_in(s, frames + i, &unusual);

        if (__builtin_expect(unusual != 0, 0))
            break;
        store_numbers(&seen->pn_low[i], header.x1, header.x1, 1);
        cipher_begin(s, &c, frames + i, &header);
        prefetch_large(s, next, 0);
        hash_begin(s, &hash, &header);
        if (i > 0)
            refused |= finish_in(s, frames + i - 4, reduce(&before), j0) << (i - 4);
        step(s, &c, 0, c.data, 0, &hash, (struct kind){rounds, 1, 1, WHOLE, WHOLE});
        for (;;) {
            const uint32_t stop = hash.end < whole_end ? hash.end : whole_end;
            for (; at < stop; at += STRIDE) {
                prefetch_large(s, next, at);
                step(s, &c, at, c.data, at, &hash, (struct kind){rounds, 1, 0, WHOLE, WHOLE});
            }
            if (at < hash.end)
                break;
            chunk_next(s, &hash);
        }
        if (!whole) {
            prefetch_large(s, next, at);
            step(s, &c, at, c.data, at, &hash, (struct kind){rounds, 1, 0, MASKED, MASKED});
        }
        chunk_fold(&hash);
        before = hash.all;
        j0 = c.j0;
    }
    if (i == 0)
        return 0;
    refused |= finish_in(s, frames + i - 4, reduce(&before), j0) << (i - 4);
    seen->authentic = ~refused & UINT64_MAX >> (64 - i);
    return i;
}

/* ---- one function for each way: the compiler unrolls each ---- */

typedef size_t run_fn(const struct same *s, struct frame *frames, size_t n, uint32_t pn,
                      struct gcm_seen *seen);

#define NOINLINE static __attribute__((noinline))
#define SMALL(name, rounds, open, count, width, whole)                                             \
    NOINLINE size_t name(const struct same *s, struct frame *frames, size_t n, uint32_t pn,        \
                         struct gcm_seen *seen)                                                    \
    {                                                                                              \
        return small(s, frames, n, pn, seen, (struct how){rounds, open, count, width, whole});     \
    }
#define LARGE(name, rounds, open, whole)                                                           \
    NOINLINE size_t name(const struct same *s, struct frame *frames, size_t n, uint32_t pn,        \
                         struct gcm_seen *seen)                                                    \
    {                                                                                              \
        (void)pn, (void)seen;                                                                      \
        return open ? large_in(s, frames, n, seen, rounds, whole)                                  \
                    : large_out(s, frames, n, pn, rounds, whole);                                  \
    }

/* By length: exactly one unit, less; two, less; whole steps, any. */
enum { WAYS = 6 };

#define KERNELS(name, rounds, open)                                                                \
    SMALL(name##_one, rounds, open, 8, 1, 1)                                                       \
    SMALL(name##_to_one, rounds, open, 8, 1, 0)                                                    \
    SMALL(name##_two, rounds, open, 4, 2, 1)                                                       \
    SMALL(name##_to_two, rounds, open, 4, 2, 0)                                                    \
    LARGE(name##_steps, rounds, open, 1)                                                           \
    LARGE(name##_any, rounds, open, 0)                                                             \
    static run_fn *const name[WAYS] = {name##_one,    name##_to_one, name##_two,                   \
                                       name##_to_two, name##_steps,  name##_any};

KERNELS(out_128, AES128_ROUNDS, 0)
KERNELS(out_256, AES256_ROUNDS, 0)
KERNELS(in_128, AES128_ROUNDS, 1)
KERNELS(in_256, AES256_ROUNDS, 1)

static run_fn *choose(run_fn *const ways[WAYS], uint32_t data_len)
{
    if (data_len <= UNIT)
        return ways[data_len != UNIT];
    if (data_len <= STRIDE)
        return ways[2 + (data_len != STRIDE)];
    return ways[4 + (data_len % STRIDE != 0)];
}

size_t gcm_vaes512_protect(const struct gcm_key *gcm, const struct gcm_usual *usual, uint8_t *arena,
                           struct frame *frames, size_t n, uint64_t pn)
{
    const struct vaes512_key *key = (const struct vaes512_key *)gcm->state;
    const struct same s = same_of(key, usual, arena, frames, pn, false);

    return choose(key->rounds == AES128_ROUNDS ? out_128 : out_256, s.data_len)(&s, frames, n,
                                                                                (uint32_t)pn, NULL);
}

size_t gcm_vaes512_validate(const struct gcm_key *gcm, const struct gcm_usual *usual,
                            uint8_t *arena, struct frame *frames, size_t n, uint64_t lowest_pn,
                            struct gcm_seen *seen)
{
    const struct vaes512_key *key = (const struct vaes512_key *)gcm->state;
    const struct same s = same_of(key, usual, arena, frames, lowest_pn, true);

    return choose(key->rounds == AES128_ROUNDS ? in_128 : in_256, s.data_len)(&s, frames, n, 0,
                                                                              seen);
}

VAES512_END
#else
typedef int gcm_vaes512_frames_is_empty;
#endif
