/*
 * engine: moves packets between TAPs and uplinks through SecYs, on threads of its own.
 *
 *     out   TAP read -> gso_cut -> secy_protect (VLAN tag, SecTAG, cipher) -> port_send
 *     in    port_receive -> secy_validate -> feature by VLAN tag -> gro -> TAP write
 *
 * A channel is an uplink port with a SecY; a feature is one VLAN on it, seen by the kernel as a
 * TAP. A worker is a thread, meant for one core, that waits with poll for what it was given.
 *
 * A channel has lanes, at least one. A lane has sockets of its own on the port, a queue of its own
 * of each TAP, a struct secy of its own for each direction; its half that sends belongs to one
 * worker, its half that receives to one. The two halves share nothing that changes, and lanes share
 * only what MACsec has once for an SC: the packet numbers and the replay window (secy.h). Counters
 * are a half's own, and summed when somebody asks.
 *
 * One lane or several is a choice between order and speed:
 *
 *   One lane: all frames of the SC leave in the order of their packet numbers, so the receiver can
 *   keep a narrow replay window (or none). One core cuts and encrypts all that the channel sends.
 *
 *   Several: the kernel spreads flows over the TAP's queues, so frames of one flow stay in order,
 *   but those of different lanes overtake each other by what is in flight: a lane takes the numbers
 *   of a batch, PORT_BATCH at most, when it starts to encrypt it, and others send meanwhile. The
 *   receiver's window must cover that: lanes x PORT_BATCH at the very least, and some thousands
 *   where a thread can lose its core in the middle of a batch.
 *
 * What arrives is spread by the port's receive queues, whose order is kept: queue q is lane
 * q modulo lanes. To a NIC all MACsec frames look alike, so most put them into one queue, and one
 * lane receives them all, whatever the number of lanes.
 *
 * Control calls come from any other thread. They park the workers concerned at the end of their
 * batch, change tables and keys in place, and let them go on: some microseconds in which packets
 * wait in the kernel's queues, so a rekey loses nothing. On the packets' side this costs one load
 * per batch.
 *
 * Fail closed, unless channel_set_clear() opens the channel for plain frames: without an SA to send
 * under nothing leaves (the SecY drops it, counted); what does not validate goes no further; a TAP
 * has no carrier until channel_carrier() says so, and if the process dies the kernel takes all
 * carriers away.
 */
#ifndef LASTMILE_ENGINE_H
#define LASTMILE_ENGINE_H

#include "dataplane.h"

/* cffi: begin */

enum {
    ENGINE_WORKERS_MAX = 64,
    ENGINE_LANES_MAX = 16,    /* of one channel */
    ENGINE_FEATURES_MAX = 64, /* of one channel */
    ENGINE_UNTAGGED = 0xFFFF, /* in place of a VID: the feature without a tag */
    ENGINE_DEVICE_SIZE = 16,  /* octets of a device name with its terminating 0 */
};

/* How a port's frames travel: port.h. */
enum { ENGINE_PACKET, ENGINE_XDP_TX, ENGINE_XDP };

struct engine;
struct channel;

struct channel_config {
    char device[16];         /* the uplink */
    unsigned path;           /* ENGINE_PACKET and so on */
    unsigned lanes;          /* 1 to ENGINE_LANES_MAX */
    unsigned out_worker[16]; /* by lane: number of the worker that sends */
    unsigned in_worker[16];  /* by lane: number of the worker that receives; may be the same */
    struct secy_config secy;
};

/* Errors are codes of err.h, or system errors as ENGINE_SYSTEM - errno; engine_error prints both
 * into `text` and returns it. */
const char *engine_error(int code, char *text, size_t size);

/* engine_new starts `workers` threads; with `pin`, worker i stays on core i. engine_free ends
 * them; all channels must be gone. */
int engine_new(unsigned workers, int pin, struct engine **engine);
void engine_free(struct engine *engine);

/* channel_new opens the port and starts to move packets as soon as there are features and SAs.
 * `backend` names the cipher backend, NULL for the fastest here. channel_free wipes the keys
 * and closes the port; the features' TAPs are removed or, with `keep`, stay without carrier, with
 * their addresses, for the next channel. */
int channel_new(struct engine *engine, const struct channel_config *config, const char *backend,
                struct channel **channel);
void channel_free(struct channel *channel, int keep);

/* channel_lanes is their number. channel_path is the path in use; channel_zero_copy tells whether
 * AF_XDP works without copies. */
unsigned channel_lanes(const struct channel *channel);
unsigned channel_path(const struct channel *channel);
int channel_zero_copy(const struct channel *channel);
const char *channel_backend(const struct channel *channel);
const char *channel_note(const struct channel *channel);

/* Features. `vid` is 1 to 4094 or ENGINE_UNTAGGED; `mtu` in octets of IP; `rate` in octets of
 * Ethernet frames per second that may leave, 0 for no limit. The result of channel_feature_add is
 * the feature's number, or an error. The device's MAC address becomes the port's. */
int channel_feature_add(struct channel *channel, const char *device, unsigned vid, unsigned mtu,
                        uint64_t rate);
int channel_feature_set(struct channel *channel, unsigned feature, unsigned mtu, uint64_t rate);
int channel_feature_remove(struct channel *channel, unsigned feature);

/* channel_carrier gives all features carrier, or takes it away. */
int channel_carrier(struct channel *channel, int on);

/* The SecY: as in dataplane.h. channel_tx_delete also tells the number that no frame has reached
 * under this key (`next_pn` may be NULL): frames leave until the very moment. channel_set_clear
 * opens a way in for plain frames with a VLAN tag too, and closes it again. channel_encoding_an is
 * the AN frames are sent under, -1 if none. */
int channel_tx_install(struct channel *channel, unsigned an, const struct secy_key *key,
                       uint64_t next_pn);
int channel_tx_enable(struct channel *channel, unsigned an);
int channel_tx_delete(struct channel *channel, unsigned an, uint64_t *next_pn);
int channel_rx_add(struct channel *channel, const uint8_t sci[8]);
int channel_rx_remove(struct channel *channel, const uint8_t sci[8]);
int channel_rx_install(struct channel *channel, const uint8_t sci[8], unsigned an,
                       const struct secy_key *key, uint64_t lowest_pn);
int channel_rx_enable(struct channel *channel, const uint8_t sci[8], unsigned an, int active);
int channel_rx_raise(struct channel *channel, const uint8_t sci[8], unsigned an,
                     uint64_t lowest_pn);
int channel_rx_delete(struct channel *channel, const uint8_t sci[8], unsigned an);
int channel_set_clear(struct channel *channel, int clear);
int channel_set_confidentiality(struct channel *channel, int encrypt, unsigned offset);
int channel_encoding_an(const struct channel *channel);
uint64_t channel_tx_next_pn(const struct channel *channel, unsigned an);
uint64_t channel_rx_lowest_pn(struct channel *channel, const uint8_t sci[8], unsigned an);

/* channel_secy_counter: the i-th counter of counter_name(). channel_counter: the i-th of
 * engine_counter_name(), which returns NULL behind the last; channel_lane_counter: one lane's. */
uint64_t channel_secy_counter(const struct channel *channel, unsigned i);
uint64_t channel_counter(struct channel *channel, unsigned i);
uint64_t channel_lane_counter(struct channel *channel, unsigned lane, unsigned i);
const char *engine_counter_name(unsigned i);

/* feature_counter: out packets, out octets, in packets, in octets (i = 0 to 3), as the kernel
 * hands them over and takes them: a super-segment is one packet. */
uint64_t feature_counter(const struct channel *channel, unsigned feature, unsigned i);

/* engine_measure: ns of CPU that it takes on this machine to send and to receive a frame of 1550
 * octets on a path, over a veth pair in a namespace of its own. Takes about 50 ms. */
int engine_measure(unsigned path, uint64_t *ns);

/* device_carrier: 1 if a device is up and has carrier, else 0; device_mac reads its address.
 * Errors as above. */
int device_carrier(const char *device);
int device_mac(const char *device, uint8_t mac[6]);

/* cffi: end */

#endif
