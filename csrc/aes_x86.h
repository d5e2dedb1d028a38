/* AES key schedule with AES-NI, for the x86 backends of gcm.h.
 *
 * Done once per SA, so it is written to be read, not to be fast. Constant time. */
#ifndef LASTMILE_AES_X86_H
#define LASTMILE_AES_X86_H

#include <stdint.h>

enum { AES_BLOCK = 16, AES128_ROUNDS = 10, AES256_ROUNDS = 14, AES_ROUND_KEYS_MAX = 15 };

/* aes_x86_keys: the round keys in the order in which encryption uses them. Secret. */
struct aes_x86_keys {
    uint8_t round_key[AES_ROUND_KEYS_MAX][AES_BLOCK];
    int rounds; /* 10 or 14; round_key[0..rounds] are set */
};

/* aes_x86_expand: the round keys of `key` of 16 or 32 octets. Needs CPU_AESNI. */
void aes_x86_expand(struct aes_x86_keys *keys, const uint8_t *key, uint32_t key_len);

/* aes_x86_encrypt: one block. Needs CPU_AESNI. */
void aes_x86_encrypt(uint8_t out[AES_BLOCK], const uint8_t in[AES_BLOCK],
                     const struct aes_x86_keys *keys);

#endif
