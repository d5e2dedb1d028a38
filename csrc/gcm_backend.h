/* What one implementation of gcm.h is made of. Private to csrc/gcm*.c and their test.
 *
 * gcm.c checks lengths and remembers the backend in the key; a backend sees only its own state:
 * the first octets of struct gcm_key, 64-octet aligned. */
#ifndef LASTMILE_GCM_BACKEND_H
#define LASTMILE_GCM_BACKEND_H

#include "gcm.h"
#include "gcm_frames.h"

struct gcm_backend {
    const char *name;
    /* usable: 1 if this machine can run it; may load a library. */
    int (*usable)(void);
    /* key_init: fill the zeroed key->state from `secret` of key->key_len octets. 0 or -1. */
    int (*key_init)(struct gcm_key *key, const uint8_t *secret);
    /* key_wipe: free what key_init took outside the state; NULL if nothing. */
    void (*key_wipe)(struct gcm_key *key);
    void (*seal)(const struct gcm_key *key, struct gcm_op *ops, size_t n);
    void (*open)(const struct gcm_key *key, struct gcm_op *ops, size_t n);
    /* protect, validate: gcm_frames.h; NULL where there is no such thing. */
    size_t (*protect)(const struct gcm_key *key, const struct gcm_usual *usual, uint8_t *arena,
                      struct frame *frames, size_t n, uint64_t pn);
    size_t (*validate)(const struct gcm_key *key, const struct gcm_usual *usual, uint8_t *arena,
                       struct frame *frames, size_t n, uint64_t lowest_pn, struct gcm_seen *seen);
};

extern const struct gcm_backend gcm_openssl;
#if defined(__x86_64__)
extern const struct gcm_backend gcm_aesni;
extern const struct gcm_backend gcm_vaes256;
extern const struct gcm_backend gcm_vaes512;
#if __has_include(<intel-ipsec-mb.h>)
#define GCM_HAVE_IPSEC_MB 1
extern const struct gcm_backend gcm_ipsec_mb;
#endif
#endif

/* gcm_backend_selftest: known answers, then frames of many lengths against what openssl makes of
 * them, then forgeries. GCM_OK or GCM_E_SELFTEST. The backend must be usable. */
int gcm_backend_selftest(const struct gcm_backend *backend);

/* gcm_backend_select_from: gcm_backend_select over a list of `count`, fastest first. */
const struct gcm_backend *gcm_backend_select_from(const struct gcm_backend *const *list,
                                                  size_t count, const char *name, char *note,
                                                  size_t note_len);

/* gcm_refuse: what becomes of a frame that is forged, or could not be sealed: no plaintext. */
static inline void gcm_refuse(struct gcm_op *op)
{
    if (op->data_len)
        memset(op->data, 0, op->data_len);
    op->ok = 0;
}

#endif
