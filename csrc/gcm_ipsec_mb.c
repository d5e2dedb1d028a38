/* AES-GCM by intel-ipsec-mb, where that library is installed (Debian: libipsec-mb1).
 *
 * The library is loaded at run time, so a box without it needs nothing; its header is needed at
 * build time only. It takes one packet at a time and expands the key once per SA. */
#include "gcm_backend.h"

#if defined(GCM_HAVE_IPSEC_MB)
#include <dlfcn.h>
#include <intel-ipsec-mb.h>
#include <pthread.h>

struct ipsec_mb_state {
    struct gcm_key_data key;
};

_Static_assert(sizeof(struct ipsec_mb_state) <= GCM_KEY_STATE, "the state must fit into a key");

/* The functions that the library chose for this CPU. Set once, then only read. */
struct library {
    aes_gcm_pre_t pre[2]; /* [0]: 128, [1]: 256 bits */
    aes_gcm_enc_dec_t seal[2];
    aes_gcm_enc_dec_t open[2];
    int loaded;
};

static struct library library;
static pthread_once_t library_once = PTHREAD_ONCE_INIT;

/* dlsym gives an object pointer; POSIX says that it may be a function's. */
static void symbol(void *handle, const char *name, void *function)
{
    void *address = dlsym(handle, name);
    memcpy(function, &address, sizeof address);
}

static void library_load(void)
{
    IMB_MGR *(*alloc)(uint64_t) = NULL;
    void (*init)(IMB_MGR *, IMB_ARCH *) = NULL;
    void (*release)(IMB_MGR *) = NULL;
    uint32_t (*version)(void) = NULL;
    void *handle = dlopen("libIPSec_MB.so.1", RTLD_NOW | RTLD_LOCAL);
    IMB_MGR *manager;

    if (handle == NULL)
        return;
    symbol(handle, "alloc_mb_mgr", &alloc);
    symbol(handle, "init_mb_mgr_auto", &init);
    symbol(handle, "free_mb_mgr", &release);
    symbol(handle, "imb_get_version", &version);
    /* The manager is a struct of function pointers that grows from version to version: only the
     * one that we were built against has them where we look. */
    if (alloc == NULL || init == NULL || release == NULL || version == NULL ||
        version() != IMB_VERSION_NUM || (manager = alloc(0)) == NULL)
        return;
    init(manager, NULL);
    library = (struct library){
        .pre = {manager->gcm128_pre, manager->gcm256_pre},
        .seal = {manager->gcm128_enc, manager->gcm256_enc},
        .open = {manager->gcm128_dec, manager->gcm256_dec},
        .loaded = 1,
    };
    release(manager); /* only jobs need it */
}

static int ipsec_mb_usable(void)
{
    return pthread_once(&library_once, library_load) == 0 && library.loaded;
}

static int ipsec_mb_key_init(struct gcm_key *gcm, const uint8_t *secret)
{
    struct ipsec_mb_state *state = (struct ipsec_mb_state *)gcm->state;

    library.pre[gcm->key_len == 32](secret, &state->key);
    return 0;
}

static void ipsec_mb_seal(const struct gcm_key *gcm, struct gcm_op *ops, size_t n)
{
    const struct ipsec_mb_state *state = (const struct ipsec_mb_state *)gcm->state;
    aes_gcm_enc_dec_t seal = library.seal[gcm->key_len == 32];
    struct gcm_context_data context;

    for (size_t i = 0; i < n; i++) {
        struct gcm_op *op = &ops[i];
        seal(&state->key, &context, op->data, op->data, op->data_len, op->iv, op->aad, op->aad_len,
             op->tag, GCM_TAG_LEN);
        op->ok = 1;
    }
    explicit_bzero(&context, sizeof context);
}

/* Constant time. */
static int equal(const uint8_t a[GCM_TAG_LEN], const uint8_t b[GCM_TAG_LEN])
{
    uint64_t x[2], y[2];

    memcpy(x, a, sizeof x);
    memcpy(y, b, sizeof y);
    return ((x[0] ^ y[0]) | (x[1] ^ y[1])) == 0;
}

static void ipsec_mb_open(const struct gcm_key *gcm, struct gcm_op *ops, size_t n)
{
    const struct ipsec_mb_state *state = (const struct ipsec_mb_state *)gcm->state;
    aes_gcm_enc_dec_t open = library.open[gcm->key_len == 32];
    struct gcm_context_data context;
    uint8_t tag[GCM_TAG_LEN];

    for (size_t i = 0; i < n; i++) {
        struct gcm_op *op = &ops[i];
        open(&state->key, &context, op->data, op->data, op->data_len, op->iv, op->aad, op->aad_len,
             tag, GCM_TAG_LEN);
        op->ok = 1;
        if (!equal(tag, op->tag))
            gcm_refuse(op);
    }
    explicit_bzero(&context, sizeof context);
    explicit_bzero(tag, sizeof tag);
}

const struct gcm_backend gcm_ipsec_mb = {
    .name = "ipsec-mb",
    .usable = ipsec_mb_usable,
    .key_init = ipsec_mb_key_init,
    .key_wipe = NULL,
    .seal = ipsec_mb_seal,
    .open = ipsec_mb_open,
};
#else
typedef int gcm_ipsec_mb_is_empty;
#endif
