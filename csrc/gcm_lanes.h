/* AES-GCM one frame at a time, for registers of one or two blocks: the body of gcm_aesni.c and of
 * gcm_vaes256.c, which define the operations on V, a register of LANES blocks, and include this.
 *
 * A turn is eight registers: their AES rounds, and between them the GHASH of as many blocks: the
 * same ones when opening, those of the turn before when sealing. The conventions of GHASH (byte
 * order, powers times x, Karatsuba, highest power first) are those of gcm_vaes512.c. */

#include "aes_inline.h"

enum {
    TURN = 8, /* registers */
    TURN_BLOCKS = TURN * LANES,
    TURN_OCTETS = TURN_BLOCKS * AES_BLOCK,
};

struct lanes_key {
    __m128i rk[AES_ROUND_KEYS_MAX];
    __m128i h[TURN_BLOCKS + 1]; /* h[i] = H^(TURN_BLOCKS + 1 - i) x */
    __m128i k[TURN_BLOCKS + 1]; /* its halves added, in both halves */
    int rounds;
};

_Static_assert(sizeof(struct lanes_key) <= GCM_KEY_STATE, "the state must fit into a key");

INLINE __m128i byte_swap(__m128i x)
{
    return _mm_shuffle_epi8(x, _mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
}

INLINE __m128i swap_halves(__m128i x)
{
    return _mm_shuffle_epi32(x, 0x4e);
}

/* ---- GHASH ---- */

struct sums {
    __m128i lo, mid, hi;
};

INLINE void multiply_add(struct sums *s, __m128i x, __m128i h, __m128i k)
{
    __m128i folded = _mm_xor_si128(x, swap_halves(x));
    s->lo = _mm_xor_si128(s->lo, _mm_clmulepi64_si128(x, h, 0x00));
    s->hi = _mm_xor_si128(s->hi, _mm_clmulepi64_si128(x, h, 0x11));
    s->mid = _mm_xor_si128(s->mid, _mm_clmulepi64_si128(folded, k, 0x00));
}

INLINE __m128i reduce(const struct sums *s)
{
    const __m128i poly = _mm_set1_epi64x((long long)0xc200000000000000ULL);
    __m128i mid = _mm_xor_si128(s->mid, _mm_xor_si128(s->lo, s->hi));
    __m128i lo = _mm_xor_si128(s->lo, _mm_slli_si128(mid, 8));
    __m128i hi = _mm_xor_si128(s->hi, _mm_srli_si128(mid, 8));
    lo = _mm_xor_si128(swap_halves(lo), _mm_clmulepi64_si128(lo, poly, 0x00));
    lo = _mm_xor_si128(swap_halves(lo), _mm_clmulepi64_si128(lo, poly, 0x00));
    return _mm_xor_si128(hi, lo);
}

/* sums += y * H^e */
INLINE void add_power(const struct lanes_key *key, struct sums *s, __m128i y, uint32_t e)
{
    multiply_add(s, y, key->h[TURN_BLOCKS + 1 - e], key->k[TURN_BLOCKS + 1 - e]);
}

/* 1 to 16 octets, the rest of the block zero */
INLINE __m128i load_part(const uint8_t *at, uint32_t len)
{
    uint8_t block[AES_BLOCK] = {0};

    if (len >= AES_BLOCK)
        return _mm_loadu_si128((const __m128i *)at);
    memcpy(block, at, len);
    return _mm_loadu_si128((const __m128i *)block);
}

INLINE void store_part(uint8_t *at, uint32_t len, __m128i x)
{
    uint8_t block[AES_BLOCK];

    if (len >= AES_BLOCK) {
        _mm_storeu_si128((__m128i *)at, x);
        return;
    }
    _mm_storeu_si128((__m128i *)block, x);
    memcpy(at, block, len);
}

/* The digest y after `len` octets more, a part of a block counting as a block. */
INLINE __m128i hash_octets(const struct lanes_key *key, __m128i y, const uint8_t *at, uint32_t len)
{
    while (len > 0) {
        const uint32_t part = len < TURN_OCTETS ? len : TURN_OCTETS;
        uint32_t e = (part + AES_BLOCK - 1) / AES_BLOCK;
        struct sums s = {_mm_setzero_si128(), _mm_setzero_si128(), _mm_setzero_si128()};

        for (uint32_t i = 0; i < part; i += AES_BLOCK, e--) {
            __m128i x = byte_swap(load_part(at + i, part - i));
            add_power(key, &s, i == 0 ? _mm_xor_si128(x, y) : x, e);
        }
        y = reduce(&s);
        at += part;
        len -= part;
    }
    return y;
}

/* ---- turns ---- */

/* AES of one turn at `data` with counters from n on, and the digest y after the whole turn of
 * ciphertext at `text`; either pointer may be NULL, which is known to the compiler. */
INLINE __m128i turn(const struct lanes_key *key, __m128i iv, uint32_t n, uint8_t *data,
                    const uint8_t *text, __m128i y, int rounds)
{
    V s[TURN], lo = V_ZERO, mid = V_ZERO, hi = V_ZERO;

    if (data != NULL) {
        UNROLL for (int i = 0; i < TURN; i++) s[i] = v_counters(iv, n + (uint32_t)(i * LANES));
    }
    UNROLL for (int r = 1; r < rounds; r++)
    {
        if (data != NULL) {
            const V rk = v_broadcast(key->rk[r]);
            UNROLL for (int i = 0; i < TURN; i++) s[i] = V_AESENC(s[i], rk);
        }
        UNROLL for (int i = 0; i < TURN; i++)
        {
            if (text != NULL && i * (rounds - 1) / TURN == r - 1) {
                V x = v_byte_swap(v_load(text + i * LANES * AES_BLOCK));
                if (i == 0)
                    x = V_XOR(x, v_first(y));
                const V h = v_load(&key->h[1 + i * LANES]), k = v_load(&key->k[1 + i * LANES]);
                lo = V_XOR(lo, V_CLMUL(x, h, 0x00));
                hi = V_XOR(hi, V_CLMUL(x, h, 0x11));
                mid = V_XOR(mid, V_CLMUL(V_XOR(x, V_SWAP_HALVES(x)), k, 0x00));
            }
        }
    }
    if (data != NULL) {
        const V rk = v_broadcast(key->rk[rounds]);
        UNROLL for (int i = 0; i < TURN; i++)
        {
            uint8_t *at = data + i * LANES * AES_BLOCK;
            v_store(at, V_XOR(V_AESENCLAST(s[i], rk), v_load(at)));
        }
    }
    if (text != NULL)
        y = reduce(&(struct sums){v_add_lanes(lo), v_add_lanes(mid), v_add_lanes(hi)});
    return y;
}

/* Less than a turn, or the counter block of the tag: key stream for `len` octets from counter n. */
INLINE void key_stream(const struct lanes_key *key, __m128i iv, uint32_t n, __m128i *stream,
                       uint32_t len, int rounds)
{
    for (uint32_t i = 0; i * AES_BLOCK < len; i += TURN_BLOCKS / 2, n += TURN_BLOCKS / 2) {
        V s[TURN / 2];
        UNROLL for (int j = 0; j < TURN / 2; j++) s[j] = v_counters(iv, n + (uint32_t)(j * LANES));
        UNROLL for (int r = 1; r < rounds; r++)
        {
            const V rk = v_broadcast(key->rk[r]);
            UNROLL for (int j = 0; j < TURN / 2; j++) s[j] = V_AESENC(s[j], rk);
        }
        UNROLL for (int j = 0; j < TURN / 2; j++) v_store(
            &stream[i + (uint32_t)(j * LANES)], V_AESENCLAST(s[j], v_broadcast(key->rk[rounds])));
    }
}

INLINE void one_frame(const struct lanes_key *key, struct gcm_op *op, int rounds, int open)
{
    const __m128i no_counter = _mm_set_epi32(0, -1, -1, -1);
    const __m128i iv = _mm_xor_si128(
        _mm_and_si128(_mm_loadu_si128((const __m128i *)op->iv), no_counter), key->rk[0]);
    __m128i y = hash_octets(key, _mm_setzero_si128(), op->aad, op->aad_len);
    __m128i stream[TURN_BLOCKS];
    uint8_t *data = op->data;
    uint32_t left = op->data_len, n = 2;

    /* Whole turns but for a last short one; E(J0) goes with that. */
    if (left > TURN_OCTETS) {
        if (!open) {
            turn(key, iv, n, data, NULL, y, rounds);
            data += TURN_OCTETS, left -= TURN_OCTETS, n += TURN_BLOCKS;
        }
        for (; left >= TURN_OCTETS; data += TURN_OCTETS, left -= TURN_OCTETS, n += TURN_BLOCKS)
            y = turn(key, iv, n, data, open ? data : data - TURN_OCTETS, y, rounds);
        if (!open)
            y = turn(key, iv, n, NULL, data - TURN_OCTETS, y, rounds);
    }

    /* The rest, then the length block: powers from `rest` + 1 down to 1. */
    struct sums s = {_mm_setzero_si128(), _mm_setzero_si128(), _mm_setzero_si128()};
    uint32_t e = (left + AES_BLOCK - 1) / AES_BLOCK + 1;
    key_stream(key, iv, n, stream, left, rounds);
    for (uint32_t i = 0; i < left; i += AES_BLOCK, e--) {
        const __m128i text = load_part(data + i, left - i);
        const __m128i out = _mm_xor_si128(text, stream[i / AES_BLOCK]);
        store_part(data + i, left - i, out);
        const __m128i x = byte_swap(open ? text : load_part(data + i, left - i));
        add_power(key, &s, _mm_xor_si128(x, y), e);
        y = _mm_setzero_si128();
    }
    const __m128i lengths = _mm_set_epi64x((long long)((uint64_t)op->aad_len * 8),
                                           (long long)((uint64_t)op->data_len * 8));
    add_power(key, &s, _mm_xor_si128(lengths, y), 1);
    __m128i j0 = _mm_xor_si128(iv, _mm_set_epi32(1 << 24, 0, 0, 0));
    for (int r = 1; r < rounds; r++)
        j0 = _mm_aesenc_si128(j0, key->rk[r]);
    const __m128i tag =
        _mm_xor_si128(byte_swap(reduce(&s)), _mm_aesenclast_si128(j0, key->rk[rounds]));

    op->ok = 1;
    if (!open) {
        _mm_storeu_si128((__m128i *)op->tag, tag);
        return;
    }
    const __m128i sent = _mm_loadu_si128((const __m128i *)op->tag);
    if (_mm_movemask_epi8(_mm_cmpeq_epi8(tag, sent)) != 0xffff)
        gcm_refuse(op);
}

/* ---- the backend ---- */

static int lanes_key_init(struct gcm_key *gcm, const uint8_t *secret)
{
    const __m128i poly = _mm_set_epi64x((long long)0xc200000000000000ULL, 1);
    struct lanes_key *key = (struct lanes_key *)gcm->state;
    struct aes_x86_keys aes;
    uint8_t hash_key[AES_BLOCK];

    aes_x86_expand(&aes, secret, gcm->key_len);
    key->rounds = aes.rounds;
    for (int r = 0; r <= aes.rounds; r++)
        key->rk[r] = _mm_loadu_si128((const __m128i *)aes.round_key[r]);
    aes_x86_encrypt(hash_key, (const uint8_t[AES_BLOCK]){0}, &aes);

    /* H times x, modulo the polynomial */
    __m128i h = byte_swap(_mm_loadu_si128((const __m128i *)hash_key));
    const __m128i top = _mm_shuffle_epi32(_mm_srai_epi32(h, 31), 0xff);
    h = _mm_or_si128(_mm_slli_epi64(h, 1), _mm_slli_si128(_mm_srli_epi64(h, 63), 8));
    h = _mm_xor_si128(h, _mm_and_si128(top, poly));

    __m128i power = h;
    for (int i = TURN_BLOCKS; i >= 0; i--) {
        struct sums s = {_mm_setzero_si128(), _mm_setzero_si128(), _mm_setzero_si128()};
        key->h[i] = power;
        key->k[i] = _mm_xor_si128(power, swap_halves(power));
        multiply_add(&s, power, h, _mm_xor_si128(h, swap_halves(h)));
        power = reduce(&s);
    }
    explicit_bzero(&aes, sizeof aes);
    explicit_bzero(hash_key, sizeof hash_key);
    return 0;
}

static void lanes_seal(const struct gcm_key *gcm, struct gcm_op *ops, size_t n)
{
    const struct lanes_key *key = (const struct lanes_key *)gcm->state;

    for (size_t i = 0; i < n; i++) {
        if (key->rounds == AES128_ROUNDS)
            one_frame(key, &ops[i], AES128_ROUNDS, 0);
        else
            one_frame(key, &ops[i], AES256_ROUNDS, 0);
    }
}

static void lanes_open(const struct gcm_key *gcm, struct gcm_op *ops, size_t n)
{
    const struct lanes_key *key = (const struct lanes_key *)gcm->state;

    for (size_t i = 0; i < n; i++) {
        if (key->rounds == AES128_ROUNDS)
            one_frame(key, &ops[i], AES128_ROUNDS, 1);
        else
            one_frame(key, &ops[i], AES256_ROUNDS, 1);
    }
}
