#include "aes_x86.h"

#if defined(__x86_64__)
#include <assert.h>
#include <immintrin.h>

#define TARGET __attribute__((target("sse4.1,aes")))

/* w[i] ^= w[i-1] over the four words of a round key, then the word from SubWord/RotWord. */
TARGET static __m128i mix(__m128i previous, __m128i word)
{
    previous = _mm_xor_si128(previous, _mm_slli_si128(previous, 4));
    previous = _mm_xor_si128(previous, _mm_slli_si128(previous, 8));
    return _mm_xor_si128(previous, word);
}

/* SubWord(RotWord(last word)) ^ rcon, in all four words; FIPS 197, clause 5.2. The round constant
 * is an immediate of the instruction, so it is added here instead. */
TARGET static __m128i rotated(__m128i previous, int rcon)
{
    __m128i word = _mm_shuffle_epi32(_mm_aeskeygenassist_si128(previous, 0), 0xff);
    return _mm_xor_si128(word, _mm_set1_epi32(rcon));
}

TARGET static __m128i substituted(__m128i previous)
{
    return _mm_shuffle_epi32(_mm_aeskeygenassist_si128(previous, 0), 0xaa);
}

TARGET void aes_x86_expand(struct aes_x86_keys *keys, const uint8_t *key, uint32_t key_len)
{
    static const uint8_t rcon[10] = {0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0x1b, 0x36};
    __m128i *rk = (__m128i *)keys->round_key;
    __m128i even = _mm_loadu_si128((const __m128i *)key);
    __m128i odd;

    assert(key_len == 16 || key_len == 32);
    _mm_storeu_si128(rk, even);
    if (key_len == 16) {
        keys->rounds = AES128_ROUNDS;
        for (int i = 1; i <= AES128_ROUNDS; i++) {
            even = mix(even, rotated(even, rcon[i - 1]));
            _mm_storeu_si128(rk + i, even);
        }
        return;
    }
    keys->rounds = AES256_ROUNDS;
    odd = _mm_loadu_si128((const __m128i *)(key + 16));
    _mm_storeu_si128(rk + 1, odd);
    for (int i = 2; i <= AES256_ROUNDS; i += 2) {
        even = mix(even, rotated(odd, rcon[i / 2 - 1]));
        _mm_storeu_si128(rk + i, even);
        if (i < AES256_ROUNDS) {
            odd = mix(odd, substituted(even));
            _mm_storeu_si128(rk + i + 1, odd);
        }
    }
}

TARGET void aes_x86_encrypt(uint8_t out[AES_BLOCK], const uint8_t in[AES_BLOCK],
                            const struct aes_x86_keys *keys)
{
    const __m128i *rk = (const __m128i *)keys->round_key;
    __m128i block = _mm_xor_si128(_mm_loadu_si128((const __m128i *)in), _mm_loadu_si128(rk));

    for (int i = 1; i < keys->rounds; i++)
        block = _mm_aesenc_si128(block, _mm_loadu_si128(rk + i));
    block = _mm_aesenclast_si128(block, _mm_loadu_si128(rk + keys->rounds));
    _mm_storeu_si128((__m128i *)out, block);
}
#else
typedef int aes_x86_is_empty; /* ISO C wants a declaration in every file */
#endif
