#include "secy.h"

#include <sched.h>
#include <stdlib.h>

static const uint64_t suite_first = UINT64_C(0x0080C20001000001);

enum { SUITE_128, SUITE_256, SUITE_XPN_128, SUITE_XPN_256, SUITE_COUNT };

static const char *const octet_counters[] = {
    [OCTETS_OUT_PROTECTED] = "out_octets_protected",
    [OCTETS_OUT_ENCRYPTED] = "out_octets_encrypted",
    [OCTETS_IN_VALIDATED] = "in_octets_validated",
    [OCTETS_IN_DECRYPTED] = "in_octets_decrypted",
};

_Static_assert(sizeof octet_counters / sizeof *octet_counters == OCTETS_COUNT, "all are named");

static bool offset_is_known(unsigned offset)
{
    return offset == 0 || offset == 30 || offset == 50;
}

/* TCI of sent frames, AN 0. */
static uint8_t tci_of(const struct secy_config *config)
{
    return (uint8_t)((config->include_sci ? SECTAG_TCI_SC : 0) |
                     (config->end_station ? SECTAG_TCI_ES : 0) |
                     (config->scb ? SECTAG_TCI_SCB : 0) |
                     (config->encrypt ? SECTAG_TCI_E | SECTAG_TCI_C : 0));
}

static int check_config(const struct secy_config *config)
{
    if (config->suite < suite_first || config->suite - suite_first >= SUITE_COUNT)
        return ERR_SUITE;
    if (config->replay_window > REPLAY_WINDOW_MAX)
        return ERR_WINDOW;
    if (!offset_is_known(config->conf_offset))
        return ERR_OFFSET;
    if (config->include_sci && (config->end_station || config->scb))
        return ERR_TCI;
    if (config->validate > SECY_DISABLED || config->clear_tags > SECY_CLEAR_TAGS_MAX)
        return ERR_ARGUMENT;
    return ERR_OK;
}

static struct secy *allocate(void)
{
    struct secy *new = aligned_alloc(_Alignof(struct secy), sizeof *new);
    if (new)
        memset(new, 0, sizeof *new);
    return new;
}

int secy_new(const struct secy_config *config, const char *backend, struct secy **secy)
{
    *secy = NULL;
    const int error = check_config(config);
    if (error)
        return error;

    struct secy *new = allocate();
    if (!new)
        return ERR_MEMORY;
    new->first = new;

    const size_t words = replay_words(config->replay_window);
    new->bitmaps = calloc(words * SECY_RX_SC_MAX * SECY_AN_COUNT, sizeof *new->bitmaps);
    if (!new->bitmaps) {
        free(new);
        return ERR_MEMORY;
    }
    new->backend = gcm_backend_select(backend, new->note, sizeof new->note);
    if (!new->backend) {
        secy_free(new);
        return ERR_BACKEND;
    }
    const uint64_t suite = config->suite - suite_first;
    new->config = *config;
    new->xpn = suite == SUITE_XPN_128 || suite == SUITE_XPN_256;
    new->key_len = suite == SUITE_128 || suite == SUITE_XPN_128 ? 16 : 32;
    new->tci = tci_of(config);
    new->encoding_an = -1;
    *secy = new;
    return ERR_OK;
}

int secy_new_beside(struct secy *first, struct secy **secy)
{
    *secy = NULL;
    struct secy *new = allocate();
    if (!new)
        return ERR_MEMORY;
    new->config = first->config;
    new->backend = first->backend;
    new->first = first;
    new->xpn = first->xpn;
    new->key_len = first->key_len;
    new->tci = first->tci;
    new->encoding_an = -1;
    new->shared = first->shared = true;
    *secy = new;
    return ERR_OK;
}

void secy_free(struct secy *secy)
{
    if (!secy)
        return;
    for (unsigned an = 0; an < SECY_AN_COUNT; an++)
        secy_tx_delete(secy, an);
    for (unsigned i = 0; i < SECY_RX_SC_MAX; i++)
        if (secy->rx[i].used)
            secy_rx_remove(secy, secy->rx[i].sci);
    free(secy->bitmaps);
    wipe(secy, sizeof *secy);
    free(secy);
}

const char *secy_backend(const struct secy *secy)
{
    return gcm_backend_name(secy->backend);
}

const char *secy_note(const struct secy *secy)
{
    return secy->note;
}

/* The checks that both directions share, then the key. */
static int install(const struct secy *secy, const struct secy_key *key, const uint8_t sci[8],
                   uint64_t pn, struct gcm_key *gcm, struct gcm_iv_base *iv)
{
    if (key->sak_len != secy->key_len)
        return ERR_KEY_SIZE;
    if ((key->ssci != 0) != secy->xpn)
        return ERR_SSCI;
    if (pn == 0 || (!secy->xpn && pn > PN_MAX))
        return ERR_PN;
    if (gcm_key_init(gcm, secy->backend, key->sak, key->sak_len) != GCM_OK)
        return ERR_CIPHER;
    *iv = secy->xpn ? gcm_iv_base_xpn(key->ssci, key->salt) : gcm_iv_base_sci(sci);
    return ERR_OK;
}

int secy_tx_install(struct secy *secy, unsigned an, const struct secy_key *key, uint64_t next_pn)
{
    if (an >= SECY_AN_COUNT)
        return ERR_AN;
    struct secy_tx_sa *sa = &secy->tx[an];
    if (sa->installed)
        return ERR_AN_IN_USE;
    const int error = install(secy, key, secy->config.sci, next_pn, &sa->key, &sa->iv);
    if (error)
        return error;
    sa->numbers = &secy->first->tx[an].pn;
    if (secy == secy->first)
        pn_init(&sa->pn, next_pn, secy->xpn ? PN_MAX_XPN : PN_MAX);
    sa->installed = true;
    return ERR_OK;
}

int secy_tx_enable(struct secy *secy, unsigned an)
{
    if (an >= SECY_AN_COUNT)
        return ERR_AN;
    if (!secy->tx[an].installed)
        return ERR_NO_SA;
    sectag_build(secy->sectag, (uint8_t)(secy->tci | an), 0, 0, secy->config.sci);
    secy->encoding_an = (int)an;
    return ERR_OK;
}

int secy_tx_delete(struct secy *secy, unsigned an)
{
    if (an >= SECY_AN_COUNT)
        return ERR_AN;
    struct secy_tx_sa *sa = &secy->tx[an];
    if (!sa->installed)
        return ERR_NO_SA;
    if (secy->encoding_an == (int)an)
        secy->encoding_an = -1;
    gcm_key_wipe(&sa->key);
    wipe(sa, sizeof *sa);
    return ERR_OK;
}

void secy_set_clear(struct secy *secy, int clear)
{
    secy->config.protect = !clear;
    secy->config.validate = clear ? SECY_CHECK : SECY_STRICT;
}

int secy_set_confidentiality(struct secy *secy, int encrypt, unsigned offset)
{
    if (!offset_is_known(offset))
        return ERR_OFFSET;
    secy->config.encrypt = encrypt != 0;
    secy->config.conf_offset = (uint8_t)offset;
    secy->tci = tci_of(&secy->config);
    if (secy->encoding_an >= 0)
        return secy_tx_enable(secy, (unsigned)secy->encoding_an);
    return ERR_OK;
}

struct secy_rx_sc *secy_rx_find(struct secy *secy, const uint8_t sci[8])
{
    for (unsigned i = 0; i < SECY_RX_SC_MAX; i++)
        if (secy->rx[i].used && memcmp(secy->rx[i].sci, sci, sizeof secy->rx[i].sci) == 0)
            return &secy->rx[i];
    return NULL;
}

int secy_rx_add(struct secy *secy, const uint8_t sci[8])
{
    if (secy_rx_find(secy, sci))
        return ERR_OK;
    for (unsigned i = 0; i < SECY_RX_SC_MAX; i++) {
        if (!secy->rx[i].used) {
            memcpy(secy->rx[i].sci, sci, sizeof secy->rx[i].sci);
            secy->rx[i].used = true;
            return ERR_OK;
        }
    }
    return ERR_SC_FULL;
}

static void rx_wipe(struct secy_rx_sa *sa)
{
    if (sa->installed)
        gcm_key_wipe(&sa->key);
    wipe(sa, sizeof *sa);
}

int secy_rx_remove(struct secy *secy, const uint8_t sci[8])
{
    struct secy_rx_sc *sc = secy_rx_find(secy, sci);
    if (!sc)
        return ERR_NO_SC;
    for (unsigned an = 0; an < SECY_AN_COUNT; an++)
        rx_wipe(&sc->sa[an]);
    sc->used = false;
    return ERR_OK;
}

/* Find an SC and the place of an SA in it. */
static int rx_place(struct secy *secy, const uint8_t sci[8], unsigned an, struct secy_rx_sc **sc,
                    struct secy_rx_sa **sa)
{
    *sc = secy_rx_find(secy, sci);
    if (!*sc)
        return ERR_NO_SC;
    if (an >= SECY_AN_COUNT)
        return ERR_AN;
    *sa = &(*sc)->sa[an];
    return ERR_OK;
}

int secy_rx_install(struct secy *secy, const uint8_t sci[8], unsigned an,
                    const struct secy_key *key, uint64_t lowest_pn)
{
    struct secy_rx_sc *sc;
    struct secy_rx_sa *sa;
    int error = rx_place(secy, sci, an, &sc, &sa);
    if (error)
        return error;
    if (sa->installed)
        return ERR_AN_IN_USE;
    error = install(secy, key, sci, lowest_pn, &sa->key, &sa->iv);
    if (error)
        return error;
    const size_t sc_index = (size_t)(sc - secy->rx);
    sa->window = &secy->first->rx[sc_index].sa[an].own; /* same calls, so the same places */
    if (secy == secy->first) {
        const uint32_t window = secy->config.replay_window;
        const size_t place = sc_index * SECY_AN_COUNT + an;
        replay_init(&sa->own.replay, window, lowest_pn,
                    secy->bitmaps + place * replay_words(window));
    }
    sa->active = false;
    sa->installed = true;
    return ERR_OK;
}

/* Find an SA that is installed. */
static int rx_installed(struct secy *secy, const uint8_t sci[8], unsigned an,
                        struct secy_rx_sa **sa)
{
    struct secy_rx_sc *sc;
    const int error = rx_place(secy, sci, an, &sc, sa);
    if (error)
        return error;
    return (*sa)->installed ? ERR_OK : ERR_NO_SA;
}

int secy_rx_enable(struct secy *secy, const uint8_t sci[8], unsigned an, int active)
{
    struct secy_rx_sa *sa;
    const int error = rx_installed(secy, sci, an, &sa);
    if (!error)
        sa->active = active != 0;
    return error;
}

int secy_rx_raise(struct secy *secy, const uint8_t sci[8], unsigned an, uint64_t lowest_pn)
{
    struct secy_rx_sa *sa;
    const int error = rx_installed(secy, sci, an, &sa);
    if (error)
        return error;
    if (lowest_pn == 0 || (!secy->xpn && lowest_pn > PN_MAX))
        return ERR_PN;
    replay_raise(&sa->window->replay, lowest_pn);
    return ERR_OK;
}

int secy_rx_delete(struct secy *secy, const uint8_t sci[8], unsigned an)
{
    struct secy_rx_sa *sa;
    const int error = rx_installed(secy, sci, an, &sa);
    if (!error)
        rx_wipe(sa);
    return error;
}

uint64_t secy_tx_next_pn(const struct secy *secy, unsigned an)
{
    return an < SECY_AN_COUNT && secy->tx[an].installed ? pn_next(secy->tx[an].numbers) : 0;
}

uint64_t secy_rx_lowest_pn(struct secy *secy, const uint8_t sci[8], unsigned an)
{
    struct secy_rx_sa *sa;
    return rx_installed(secy, sci, an, &sa) ? 0 : replay_lowest(&sa->window->replay);
}

/* The window is free again in a microsecond, unless its holder was put to sleep: then let it run.
 */
void secy_window_wait(struct secy_window *window)
{
    enum { SPINS = 4096 };
    for (unsigned spins = 1; atomic_flag_test_and_set_explicit(&window->lock, memory_order_acquire);
         spins++)
        if (spins % SPINS == 0)
            sched_yield();
}

uint64_t secy_counter(const struct secy *secy, unsigned i)
{
    if (i < VERDICT_COUNT)
        return __atomic_load_n(&secy->packets[i], __ATOMIC_RELAXED);
    i -= VERDICT_COUNT;
    return i < OCTETS_COUNT ? __atomic_load_n(&secy->octets[i], __ATOMIC_RELAXED) : 0;
}

const char *counter_name(unsigned i)
{
    if (i < VERDICT_COUNT)
        return verdict_name(i);
    i -= VERDICT_COUNT;
    return i < OCTETS_COUNT ? octet_counters[i] : NULL;
}

unsigned secy_tags_lift(uint8_t *arena, struct frame *frame, unsigned limit, uint8_t *tags)
{
    uint8_t *at = arena + frame->at;
    const unsigned count = vlan_count(at, frame->len, limit);
    const uint32_t size = count * VLAN_SIZE;

    memcpy(tags, at + 12, size);
    memmove(at + size, at, 12);
    frame->at += size;
    frame->len -= size;
    return count;
}

void secy_tags_lower(uint8_t *arena, struct frame *frame, unsigned count, const uint8_t *tags)
{
    const uint32_t size = count * VLAN_SIZE;

    frame->at -= size;
    frame->len += size;
    uint8_t *at = arena + frame->at;
    memmove(at, at + size, 12);
    memcpy(at + 12, tags, size);
}

int frames_check(const struct frame *frames, size_t count, size_t size, size_t headroom,
                 size_t tailroom)
{
    size_t end = 0; /* of the frame before, with its tailroom */

    for (size_t i = 0; i < count; i++) {
        if (frames[i].at < end + headroom)
            return ERR_BOUNDS;
        end = (size_t)frames[i].at + frames[i].len + tailroom;
        if (end > size)
            return ERR_BOUNDS;
    }
    return ERR_OK;
}

void wipe(void *memory, size_t size)
{
    memset(memory, 0, size);
    __asm__ volatile("" : : "r"(memory) : "memory"); /* the compiler may not drop the store */
}
