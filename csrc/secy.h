/*
 * secy: the MACsec entity, its tables and the way of a frame through it (IEEE 802.1AE-2018 10).
 *
 * Out (secy_protect): 1 admit by length, 2 take packet numbers for the batch, 3 push the VLAN tag
 * and build the SecTAG in the headroom, 4 encrypt in place and append the ICV, 5 count.
 *
 * In (secy_validate): 1 read the SecTAG, 2 find SC by SCI and SA by AN, 3 check for replay, 4 open
 * in place, 5 commit to the replay window, 6 strip SecTAG and VLAN tag, 7 count.
 *
 * Most frames are like the one before them. Runs of equal length go through steps 3 and 4 (out), 1
 * to 4 and 6 (in) in one pass (gcm_frames.h); whatever is not of that kind goes step by step.
 *
 * A batch is worked on in chunks of SECY_CHUNK frames, so that the chunk's operations for the
 * cipher stay in L1 and the cipher still gets several frames at once. Receive chunks are cut
 * where the SA changes.
 *
 * Headroom: DA and SA move towards lower addresses by the size of what is put behind them, the
 * payload stays where it is:
 *
 *     before          [headroom 20.............]|DA SA|type payload          |[tailroom 16]
 *     after    |DA SA|SecTAG 16|VLAN tag 4, type payload, encrypted...........|ICV 16     |
 *
 * Keys live in this one allocation and are wiped when an SA goes. The functions that Python calls
 * are declared in dataplane.h.
 *
 * Several threads: each has a struct secy of its own, and those made with secy_new_beside are one
 * entity with the first. Cipher keys, tables and counters are a thread's own; shared are the two
 * things that MACsec has once: the packet numbers of a transmit SA, which a batch takes with one
 * atomic exchange, so that no two threads ever use the same one; and the replay window of a receive
 * SA, under a lock that is held while a batch is committed and never while a frame is deciphered.
 */
#ifndef LASTMILE_SECY_H
#define LASTMILE_SECY_H

#include <stdbool.h>

#include "dataplane.h"
#include "err.h"
#include "gcm.h"
#include "gcm_frames.h"
#include "pn.h"
#include "replay.h"
#include "sectag.h"
#include "verdict.h"
#include "vlan.h"

enum {
    SECY_AN_COUNT = 4,
    SECY_CHUNK = 64,
    SECY_CLEAR_TAGS_MAX = 2,
    SECY_FRAME_MIN = 14, /* DA, SA, type */
    SECY_ALIKE_MIN = 8,  /* frames that make a run worth a look */
};

_Static_assert((int)SECY_HEADROOM == (int)SECTAG_SIZE_MAX + (int)VLAN_SIZE,
               "a SecTAG and a VLAN tag fit");
_Static_assert((int)SECY_TAILROOM == (int)SECTAG_ICV_SIZE, "an ICV fits");
_Static_assert((int)SECY_CHUNK == (int)GCM_FRAMES_MAX, "a chunk fits one call of the cipher");
_Static_assert(SECTAG_ICV_SIZE == GCM_TAG_LEN, "the ICV is GCM's whole tag");
_Static_assert((int)FRAME_NO_VLAN == (int)VLAN_NONE, "one number says that there is no tag");

/* Octet counters, behind the verdicts in the list of counters. */
enum {
    OCTETS_OUT_PROTECTED,
    OCTETS_OUT_ENCRYPTED,
    OCTETS_IN_VALIDATED,
    OCTETS_IN_DECRYPTED,
    OCTETS_COUNT
};

struct secy_tx_sa {
    struct gcm_key key;
    struct gcm_iv_base iv;
    bool installed;
    struct pn *numbers;        /* `pn` of the first SecY of the entity */
    _Alignas(64) struct pn pn; /* a cache line of its own: other threads write it */
};

struct secy_window {
    _Alignas(64) atomic_flag lock; /* only taken where several threads share the window */
    struct replay replay;
};

struct secy_rx_sa {
    struct gcm_key key;
    struct gcm_iv_base iv;
    bool installed;
    bool active;
    struct secy_window *window; /* `own` of the first SecY of the entity */
    struct secy_window own;
};

struct secy_rx_sc {
    uint8_t sci[8];
    bool used;
    struct secy_rx_sa sa[SECY_AN_COUNT];
};

struct secy {
    struct secy_config config;
    const struct gcm_backend *backend;
    struct secy *first; /* of the entity: itself where it stands alone */
    bool shared;        /* there is another thread's beside it */
    bool xpn;
    uint8_t key_len;                 /* octets */
    uint8_t tci;                     /* of sent frames, AN 0 */
    int encoding_an;                 /* -1: none, nothing leaves */
    uint8_t sectag[SECTAG_SIZE_MAX]; /* of frames sent under it, with SL and PN 0 */
    char note[256];                  /* what the choice of the cipher backend has to say */
    uint64_t octets[OCTETS_COUNT];
    uint64_t packets[VERDICT_COUNT];
    uint64_t *bitmaps; /* the first's: replay_words(window) words for each possible receive SA */
    struct secy_tx_sa tx[SECY_AN_COUNT];
    struct secy_rx_sc rx[SECY_RX_SC_MAX];
};

/* secy_count adds to a counter that another thread may be reading. */
static inline void secy_count(uint64_t *counter, uint64_t add)
{
    __atomic_store_n(counter, *counter + add, __ATOMIC_RELAXED);
}

/* secy_window_take and secy_window_give enclose the use of a window that may be shared. */
void secy_window_wait(struct secy_window *window);

static inline void secy_window_take(const struct secy *secy, struct secy_window *window)
{
    if (secy->shared && atomic_flag_test_and_set_explicit(&window->lock, memory_order_acquire))
        secy_window_wait(window);
}

static inline void secy_window_give(const struct secy *secy, struct secy_window *window)
{
    if (secy->shared)
        atomic_flag_clear_explicit(&window->lock, memory_order_release);
}

/* secy_rx_find returns the receive SC with this SCI, NULL if there is none. */
struct secy_rx_sc *secy_rx_find(struct secy *secy, const uint8_t sci[8]);

/* secy_tags_lift takes up to `limit` clear VLAN tags off a frame into `tags` and returns how many;
 * secy_tags_lower puts them back outermost. */
unsigned secy_tags_lift(uint8_t *arena, struct frame *frame, unsigned limit, uint8_t *tags);
void secy_tags_lower(uint8_t *arena, struct frame *frame, unsigned count, const uint8_t *tags);

#endif
