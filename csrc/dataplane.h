/*
 * dataplane: all that Python may call; the cffi build lifts what stands between the two marks, so
 * this part is plain declarations.
 *
 * A SecY (IEEE 802.1AE-2018 clause 10) protects and validates batches of frames that lie in one
 * buffer, the arena. Frames grow and shrink in place: SECY_HEADROOM octets before and
 * SECY_TAILROOM behind each one belong to it. secy_protect and secy_validate make no system call,
 * allocate nothing and take no lock.
 *
 * Threads: one thread at a time per SecY, whatever the call; only secy_counter and secy_next_pn
 * may be called beside it. Several threads send and receive under the same SAs with a SecY each:
 * secy_new_beside.
 */
#ifndef LASTMILE_DATAPLANE_H
#define LASTMILE_DATAPLANE_H

#include <stddef.h>
#include <stdint.h>

/* cffi: begin */

enum {
    SECY_HEADROOM = 20, /* octets: SecTAG 16, VLAN tag 4 */
    SECY_TAILROOM = 16, /* octets: ICV */
    SECY_RX_SC_MAX = 8, /* receive SCs of one SecY */
    FRAME_NO_VLAN = 0xFFFF,
};

/* frame: one Ethernet frame in the arena, without FCS. */
struct frame {
    uint32_t at;     /* offset of DA in the arena; moves when the frame grows or shrinks */
    uint32_t len;    /* octets */
    uint16_t vlan;   /* protect: TCI of the 802.1Q tag to push, or FRAME_NO_VLAN.
                        validate with pop_vlan: TCI of the tag popped, or FRAME_NO_VLAN */
    uint8_t verdict; /* how it ended: verdict.h. Of a dropped frame only this is defined */
    uint8_t unused;
};

/* What a receiver does with frames that prove nothing (802.1AE validateFrames). */
enum { SECY_STRICT, SECY_CHECK, SECY_DISABLED };

struct secy_config {
    uint64_t suite;         /* identifier of the cipher suite: 0x0080C2000100000{1,2,3,4} */
    uint8_t sci[8];         /* our SCI, as in a SecTAG */
    uint32_t frame_max;     /* octets that the port carries, SecTAG and ICV included, no FCS */
    uint32_t replay_window; /* frames, 0 to 2^30-1; 0 is strict order */
    uint8_t replay_protect; /* booleans are 0 or 1 */
    uint8_t validate;       /* SECY_STRICT and so on */
    uint8_t protect;        /* 0: frames leave untagged */
    uint8_t encrypt;        /* 0: integrity only */
    uint8_t conf_offset;    /* leading octets of secure data left readable: 0, 30 or 50 */
    uint8_t include_sci;    /* explicit SCI in the SecTAG */
    uint8_t end_station;    /* ES bit: our SCI is our MAC address and port 1 */
    uint8_t scb;            /* SCB bit */
    uint8_t pop_vlan;       /* validate: take the outermost tag off into frame.vlan */
    uint8_t clear_tags;     /* 0 to 2: VLAN tags that stand in clear before the SecTAG */
};

/* Keying of one SA. The caller wipes its copy of the key. */
struct secy_key {
    const uint8_t *sak;
    size_t sak_len;   /* octets: 16 or 32 */
    uint32_t ssci;    /* XPN suites: of the sender; else 0 */
    uint8_t salt[12]; /* XPN suites; else ignored */
};

struct secy;

/* secy_new allocates a SecY and chooses the cipher backend (NULL for the fastest here). *secy is
 * NULL and the result an error code where that fails. */
int secy_new(const struct secy_config *config, const char *backend, struct secy **secy);

/* secy_new_beside makes a SecY for another thread that is one entity with `first`. All calls that
 * change SAs are to be made on each of them, on the first one first, while no thread works with
 * any; the first one is freed last. */
int secy_new_beside(struct secy *first, struct secy **secy);

/* secy_free wipes all keys and frees; NULL is fine. */
void secy_free(struct secy *secy);

/* secy_backend names the cipher backend in use. secy_note is a sentence to log if a faster backend
 * was passed over or the one asked for is missing, else empty. */
const char *secy_backend(const struct secy *secy);
const char *secy_note(const struct secy *secy);

/* Transmit: an SA is installed, then enabled (frames go out under it from then on), then deleted.
 * `next_pn` is 1 for a fresh key. */
int secy_tx_install(struct secy *secy, unsigned an, const struct secy_key *key, uint64_t next_pn);
int secy_tx_enable(struct secy *secy, unsigned an);
int secy_tx_delete(struct secy *secy, unsigned an);

/* Receive: up to SECY_RX_SC_MAX channels, four SAs each. Adding one that is there succeeds. */
int secy_rx_add(struct secy *secy, const uint8_t sci[8]);
int secy_rx_remove(struct secy *secy, const uint8_t sci[8]);
int secy_rx_install(struct secy *secy, const uint8_t sci[8], unsigned an,
                    const struct secy_key *key, uint64_t lowest_pn);
int secy_rx_enable(struct secy *secy, const uint8_t sci[8], unsigned an, int active);
int secy_rx_raise(struct secy *secy, const uint8_t sci[8], unsigned an, uint64_t lowest_pn);
int secy_rx_delete(struct secy *secy, const uint8_t sci[8], unsigned an);

/* secy_set_clear: from the next frame on all pass in clear (protectFrames off, validateFrames
 * Check), or none does. secy_set_confidentiality: what is encrypted of the frames sent, and the
 * offset that frames under way in either direction have. A SecY is made protecting. */
void secy_set_clear(struct secy *secy, int clear);
int secy_set_confidentiality(struct secy *secy, int encrypt, unsigned offset);

/* secy_tx_next_pn: number of the next frame; 0 if the SA is exhausted or there is none.
 * secy_rx_lowest_pn: lowest acceptable number; 0 if there is no such SA. */
uint64_t secy_tx_next_pn(const struct secy *secy, unsigned an);
uint64_t secy_rx_lowest_pn(struct secy *secy, const uint8_t sci[8], unsigned an);

/* secy_protect turns user frames into MACsec frames, secy_validate back; both in place, each
 * frame with its verdict. Frames are trusted to lie in the arena: see frames_check. */
void secy_protect(struct secy *secy, uint8_t *arena, struct frame *frames, size_t count);
void secy_validate(struct secy *secy, uint8_t *arena, struct frame *frames, size_t count);

/* secy_counter reads the i-th counter, counter_name names it; NULL behind the last. The first
 * ones are the verdicts, in packets; then octets of secure data. */
uint64_t secy_counter(const struct secy *secy, unsigned i);
const char *counter_name(unsigned i);

/* frames_check tells whether all frames, sorted by offset, lie in an arena of `size` octets with
 * so much room before and behind each, and none over another: 0 or ERR_BOUNDS. Protecting takes
 * SECY_HEADROOM and SECY_TAILROOM, validating nothing. */
int frames_check(const struct frame *frames, size_t count, size_t size, size_t headroom,
                 size_t tailroom);

/* verdict_delivers: 1 if a verdict lets the frame go on, else 0. */
int verdict_delivers(unsigned verdict);

/* err_strerror: a sentence for a negative code. */
const char *err_strerror(int code);

/* wipe overwrites memory that held a key, in a way that the compiler keeps. */
void wipe(void *memory, size_t size);

/* cffi: end */

#endif
