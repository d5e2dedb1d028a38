/* AES-GCM by libcrypto: any CPU, the reference of gcm.h. One EVP context per direction lives on
 * libcrypto's heap as long as the key; per frame only the IV is set. */
#include "gcm_backend.h"

#include <limits.h>
#include <openssl/evp.h>

struct openssl_state {
    EVP_CIPHER_CTX *seal;
    EVP_CIPHER_CTX *open;
};

_Static_assert(sizeof(struct openssl_state) <= GCM_KEY_STATE, "the state must fit into a key");

static int openssl_usable(void)
{
    return 1;
}

static EVP_CIPHER_CTX *context(const uint8_t *secret, uint32_t key_len, int encrypt)
{
    const EVP_CIPHER *cipher = key_len == 16 ? EVP_aes_128_gcm() : EVP_aes_256_gcm();
    EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();

    if (ctx != NULL && EVP_CipherInit_ex(ctx, cipher, NULL, secret, NULL, encrypt) == 1)
        return ctx;
    EVP_CIPHER_CTX_free(ctx);
    return NULL;
}

static void openssl_key_wipe(struct gcm_key *key)
{
    struct openssl_state *state = (struct openssl_state *)key->state;

    EVP_CIPHER_CTX_free(state->seal); /* libcrypto clears what it frees */
    EVP_CIPHER_CTX_free(state->open);
    state->seal = state->open = NULL;
}

static int openssl_key_init(struct gcm_key *key, const uint8_t *secret)
{
    struct openssl_state *state = (struct openssl_state *)key->state;

    state->seal = context(secret, key->key_len, 1);
    state->open = context(secret, key->key_len, 0);
    if (state->seal != NULL && state->open != NULL)
        return 0;
    openssl_key_wipe(key);
    return -1;
}

/* 1 if every step succeeded; EVP_CipherFinal_ex is where open compares the tag. */
static int run(EVP_CIPHER_CTX *ctx, struct gcm_op *op, int encrypt)
{
    int len;

    return op->data_len <= INT_MAX && op->aad_len <= INT_MAX &&
           EVP_CipherInit_ex(ctx, NULL, NULL, NULL, op->iv, encrypt) == 1 &&
           (encrypt ||
            EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_SET_TAG, GCM_TAG_LEN, op->tag) == 1) &&
           (op->aad_len == 0 ||
            EVP_CipherUpdate(ctx, NULL, &len, op->aad, (int)op->aad_len) == 1) &&
           (op->data_len == 0 ||
            EVP_CipherUpdate(ctx, op->data, &len, op->data, (int)op->data_len) == 1) &&
           EVP_CipherFinal_ex(ctx, (uint8_t[16]){0}, &len) == 1 &&
           (!encrypt || EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_GET_TAG, GCM_TAG_LEN, op->tag) == 1);
}

static void openssl_seal(const struct gcm_key *key, struct gcm_op *ops, size_t n)
{
    const struct openssl_state *state = (const struct openssl_state *)key->state;

    for (size_t i = 0; i < n; i++) {
        if (run(state->seal, &ops[i], 1))
            ops[i].ok = 1;
        else
            gcm_refuse(&ops[i]); /* out of memory in libcrypto: nothing may leave in clear */
    }
}

static void openssl_open(const struct gcm_key *key, struct gcm_op *ops, size_t n)
{
    const struct openssl_state *state = (const struct openssl_state *)key->state;

    for (size_t i = 0; i < n; i++) {
        if (run(state->open, &ops[i], 0))
            ops[i].ok = 1;
        else
            gcm_refuse(&ops[i]);
    }
}

const struct gcm_backend gcm_openssl = {
    .name = "openssl",
    .usable = openssl_usable,
    .key_init = openssl_key_init,
    .key_wipe = openssl_key_wipe,
    .seal = openssl_seal,
    .open = openssl_open,
};
