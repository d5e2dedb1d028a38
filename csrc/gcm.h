/* AES-GCM made for MACsec: one key, a batch of frames, in place.
 *
 * A general GCM library is handed one packet and any key. MACsec hands over a batch of frames
 * under one SA: one key schedule, one hash key H, 96-bit IVs, 16-octet ICVs, an AAD of 20 or 28
 * octets. So the interface is a batch: gcm_key_init() expands the round keys and the powers of H
 * once per SA, gcm_seal() and gcm_open() take an array of struct gcm_op and are free to work on
 * several frames at once (that is where small frames gain their speed) and in any order.
 *
 *      op.aad ----v               v---- op.data              v---- op.tag
 *      | DA SA SecTAG (20 or 28)  | user data (data_len)     | ICV (16) |
 *        authenticated              encrypted in place         written by seal, compared by open
 *
 * The three parts need not touch each other and need no alignment, headroom or padding: nothing
 * outside them is read or written. They must not overlap, neither within an op nor between the
 * ops of a batch (two ops may share an AAD).
 *   integrity only                data_len 0, everything in the AAD
 *   confidentiality offset 30/50  the AAD is 30 or 50 octets longer, the data begins later
 *
 * Backends, fastest first, each checked by a power-on self-test before its first use:
 *   vaes512    AVX-512 VAES + VPCLMULQDQ, several frames at once
 *   ipsec-mb   intel-ipsec-mb, loaded at run time where it is installed
 *   vaes256    AVX2 VAES + VPCLMULQDQ
 *   aesni      AES-NI + PCLMULQDQ
 *   openssl    libcrypto's EVP: any CPU, the reference that the others are compared with
 * None of them branches on, or indexes by, a key, a plaintext or a tag. Lengths are public.
 *
 * Once a key is set up, no call here allocates, locks or enters the kernel. */
#ifndef LASTMILE_GCM_H
#define LASTMILE_GCM_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define GCM_IV_LEN    12
#define GCM_TAG_LEN   16
#define GCM_KEY_STATE 5376 /* octets of a backend's state; each asserts that its own fits */

enum gcm_error {
    GCM_OK = 0,
    GCM_E_KEY_LEN = -1,  /* a key is 16 or 32 octets */
    GCM_E_BACKEND = -2,  /* the backend could not set the key up (out of memory in libcrypto) */
    GCM_E_SELFTEST = -3, /* a backend computed a wrong answer */
};

/* gcm_strerror: the words for one of enum gcm_error; never NULL. */
const char *gcm_strerror(int error);

/* gcm_op: one frame to seal or to open. The caller keeps the memory. 48 octets. */
struct gcm_op {
    uint8_t *data;      /* encrypted or decrypted in place; may be NULL if data_len is 0 */
    const uint8_t *aad; /* authenticated only; may be NULL if aad_len is 0 */
    uint8_t *tag;       /* GCM_TAG_LEN octets: written by seal, read by open */
    uint32_t data_len;
    uint32_t aad_len;
    uint8_t iv[GCM_IV_LEN];
    uint32_t ok; /* 1: sealed, or opened and authentic. 0: refused, and the data is zeroed */
};

struct gcm_backend;

/* gcm_key: everything of one SA that the cipher needs, ready to use. Secret: wipe it after use.
 * Plain memory of fixed size; it must not be moved or copied after gcm_key_init (openssl keeps
 * its context on libcrypto's heap). A key serves one thread at a time: cores that send under one
 * SA each set up their own. */
struct gcm_key {
    _Alignas(64) uint8_t state[GCM_KEY_STATE];
    const struct gcm_backend *backend;
    uint32_t key_len; /* octets: 16 or 32 */
};

/* gcm_backend_select: the backend called `name`, or with NULL the fastest that this CPU runs. The
 * self-test has passed for whatever is returned; what fails it is passed over, down to openssl.
 * `note` (may be NULL) gets a sentence that the caller must log if anything was passed over or
 * the backend that was asked for is missing, else the empty string.
 * Returns NULL if `name` is unknown, or if not even openssl passes: do not run then.
 * Takes about a millisecond; loads libraries: call it at start. */
const struct gcm_backend *gcm_backend_select(const char *name, char *note, size_t note_len);

/* gcm_backend_name: "vaes512", "ipsec-mb", "vaes256", "aesni" or "openssl". */
const char *gcm_backend_name(const struct gcm_backend *backend);

/* gcm_backend_at: the i-th backend compiled in, fastest first; NULL past the last. It may not run
 * here: ask gcm_backend_usable. */
const struct gcm_backend *gcm_backend_at(size_t i);

/* gcm_backend_usable: 1 if this CPU (and an installed library) can run it, else 0. */
int gcm_backend_usable(const struct gcm_backend *backend);

/* gcm_key_init: set up `key` for a usable backend. Returns GCM_OK, GCM_E_KEY_LEN or GCM_E_BACKEND;
 * after an error the key is all zero and must not be used. */
int gcm_key_init(struct gcm_key *key, const struct gcm_backend *backend, const uint8_t *secret,
                 size_t secret_len);

/* gcm_key_wipe: free what the backend holds and zero the key. Wiping twice does no harm. */
void gcm_key_wipe(struct gcm_key *key);

/* gcm_seal: encrypt ops[0..n), write their tags, set each ok. Only openssl can refuse a frame (out
 * of memory, or a part above 2^31-1 octets); such a frame must not be sent. The caller sees to it
 * that no IV is ever used twice under a key. */
void gcm_seal(const struct gcm_key *key, struct gcm_op *ops, size_t n);

/* gcm_open: decrypt and verify ops[0..n) and set each ok. Where ok is 0 the data has been zeroed:
 * unauthenticated plaintext never leaves this function. */
void gcm_open(const struct gcm_key *key, struct gcm_op *ops, size_t n);

/* ---- IVs of 802.1AE ---- */

/* gcm_iv_base: the part of the IV that is the same for all frames of an SA. XPN or not, the IV is
 * then base xor (0^32 | 64-bit PN), IEEE 802.1AE-2018 clauses 14.1 and 14.7. */
struct gcm_iv_base {
    uint8_t octets[GCM_IV_LEN];
};

/* gcm_iv_base_sci: GCM-AES-128/256: IV = SCI | 32-bit PN. */
static inline struct gcm_iv_base gcm_iv_base_sci(const uint8_t sci[8])
{
    struct gcm_iv_base base = {{0}};
    memcpy(base.octets, sci, 8);
    return base;
}

/* gcm_iv_base_xpn: GCM-AES-XPN-128/256: IV = (SSCI | 64-bit PN) xor salt; ssci in host order. */
static inline struct gcm_iv_base gcm_iv_base_xpn(uint32_t ssci, const uint8_t salt[GCM_IV_LEN])
{
    struct gcm_iv_base base;
    for (int i = 0; i < GCM_IV_LEN; i++)
        base.octets[i] = (uint8_t)(salt[i] ^ (i < 4 ? ssci >> (24 - 8 * i) : 0));
    return base;
}

/* gcm_iv: the IV of the frame `pn` (host order; below 2^32 unless the suite is XPN). */
static inline void gcm_iv(uint8_t iv[GCM_IV_LEN], const struct gcm_iv_base *base, uint64_t pn)
{
    uint64_t low;
    memcpy(&low, base->octets + 4, 8);
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    pn = __builtin_bswap64(pn);
#endif
    low ^= pn;
    memcpy(iv, base->octets, 4);
    memcpy(iv + 4, &low, 8);
}

#endif
