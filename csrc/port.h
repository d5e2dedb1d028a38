/*
 * port: the uplink's device and the TAPs, the only files (port*.c) with system calls on packets.
 *
 * A port moves batches of MACsec frames between an arena and a device:
 *
 *     port_tx_begin -> frames are built in port->tx_arena -> port_send
 *     port_receive  -> frames lie in port->rx_arena      -> port_release
 *
 * Only frames of EtherType 0x88E5 are taken from the device; all others (EAPOL among them) go to
 * the kernel as if we were not there, unless the port is open for plain frames (port_clear.c). Two
 * ways in and two ways out:
 *
 *     packet   AF_PACKET, recvmmsg and sendmmsg with the queueing discipline bypassed. Everywhere.
 *     xdp      AF_XDP. Zero-copy where the driver can, else copy mode, which saves the socket
 *              layer's cost per frame on the way out (the way in is not cheaper in copy mode).
 *
 * The packet socket always stays open: what an XDP program does not redirect (a frame on a queue
 * that was added since) arrives there. Why not PACKET_MMAP: a TPACKET_V3 block is handed over when
 * full or after a timer tick, which adds milliseconds to a quiet line; V2 costs more per frame
 * than recvmmsg, and so does PACKET_TX_RING against sendmmsg up to 4 KiB.
 *
 * Threads: one sends, one receives; they may be different ones. Several lanes on one device are
 * several ports: each sends on sockets of its own, and what arrives is divided by the device's
 * receive queues, queue q to lane q modulo lanes (AF_PACKET: PACKET_FANOUT_QM; AF_XDP: a socket on
 * each queue), which keeps the order within a queue.
 *
 * All functions here return 0 or a positive count, or an error: a code of err.h, or an errno as
 * port_errno() wraps it.
 */
#ifndef LASTMILE_PORT_H
#define LASTMILE_PORT_H

#include <net/if.h>
#include <stdbool.h>
#include <stdint.h>

#include "dataplane.h"

enum {
    PORT_BATCH = 64,                     /* frames in one batch */
    PORT_TX_REGION = 256 << 10,          /* octets of arena that one batch out may fill */
    PORT_TX_REGIONS = 4,                 /* regions in flight (AF_XDP); AF_PACKET uses the first */
    PORT_FRAME_MAX = 9216 + 14 + 4 + 32, /* octets: jumbo, tag, SecTAG and ICV */
    PORT_SYSTEM = -1000,                 /* an errno e is returned as PORT_SYSTEM - e */
    PORT_QUEUES_MAX = 64,                /* receive queues of a device that AF_XDP serves */
    PORT_FDS_MAX = 1 + PORT_QUEUES_MAX,  /* descriptors to wait on for frames */
};

enum port_path { PORT_PACKET, PORT_XDP_TX, PORT_XDP };

struct port_xdp;

struct port {
    char name[IF_NAMESIZE];
    int ifindex;
    enum port_path path;
    bool zero_copy;
    unsigned lane, lanes;
    uint16_t group; /* PACKET_FANOUT: the lanes' */
    int rx_fd;      /* the packet socket that receives */
    int tx_fd;      /* to wait on for room */
    int clear_fd;   /* the packet socket for plain frames; 0 while the port is protected */
    uint32_t frame_max;
    uint8_t *tx_arena; /* where frames to send are built */
    uint8_t *rx_arena; /* where the frames lie that port_receive filled in */
    uint8_t *slots;    /* receive buffers of the packet socket */
    size_t tx_size, slots_size;
    uint32_t rx_slot;     /* octets from one receive buffer to the next */
    uint32_t chunk;       /* not 0: frames should not cross multiples of this */
    uint64_t overruns;    /* frames that came faster than they were taken; see port_overruns */
    struct port_xdp *xdp; /* NULL: AF_PACKET alone */
};

static inline int port_errno(int number)
{
    return PORT_SYSTEM - number;
}

/* What port_open is to open. */
struct port_order {
    const char *device;
    uint32_t frame_max; /* longest frame without FCS */
    enum port_path path;
    unsigned lane, lanes;
};

/* port_open opens a lane's sockets on a device that exists. `first` is the port of lane 0, which
 * is opened before and closed after the others; NULL for lane 0 itself. A lane beyond the device's
 * queues uses the packet path, whatever was ordered. */
int port_open(struct port *port, const struct port_order *order, struct port *first);

/* port_slot_at: offset in `slots` of the i-th receive buffer's frame. */
static inline uint32_t port_slot_at(const struct port *port, unsigned i)
{
    return i * port->rx_slot + SECY_HEADROOM;
}

/* port_close closes and unmaps; a port that was never opened must be all zero. */
void port_close(struct port *port);

/* port_tx_begin returns the offset of a region of PORT_TX_REGION octets for the next batch, or
 * -1 if the device still works on all of them. */
int64_t port_tx_begin(struct port *port);

/* port_send sends those frames of a batch whose verdict delivers. Returns how many frames of the
 * batch were dealt with (sent, or skipped); fewer than `count` where the device takes no more now.
 * An error means that the first frame left could not be sent at all. */
int port_send(struct port *port, const struct frame *frames, unsigned count);

/* port_receive fills in at most PORT_BATCH frames, with SECY_HEADROOM before and SECY_TAILROOM
 * behind; 0 if none waits. port_release gives the buffers back. */
int port_receive(struct port *port, struct frame *frames);
void port_release(struct port *port);

/* port_clear_open opens a way in for plain frames with an 802.1Q tag, port_clear_close closes it;
 * both may be repeated. port_clear_receive is port_receive on it, without port_release. */
int port_clear_open(struct port *port);
void port_clear_close(struct port *port);
int port_clear_receive(struct port *port, struct frame *frames);

/* port_overruns: frames that the kernel dropped because we were too slow, since opening. */
uint64_t port_overruns(struct port *port);

/* port_measure: ns of CPU that it takes to send and to receive a frame of 1550 octets on a path, in
 * batches of a super-segment, over a veth pair made for it; the best of some rounds. Takes about
 * 50 ms. What it cannot tell: a NIC's zero-copy mode. */
int port_measure(enum port_path path, uint64_t *ns);

/* port_carrier: 1 if the device is up and has a carrier, 0 if not, or an error. */
int port_carrier(const char *device);

/* port_mac reads the device's MAC address. */
int port_mac(const char *device, uint8_t mac[6]);

/* port_rx_fds lists the descriptors to wait on for frames; returns how many there are. */
unsigned port_rx_fds(const struct port *port, int fds[PORT_FDS_MAX]);

/* port_queues: the receive queues of a device, or its transmit queues if they are more; 1 where
 * the driver does not tell. */
unsigned port_queues(const char *device);

/* The AF_XDP half, called by port.c alone. */
int port_xdp_open(struct port *port, const struct port *first);
void port_xdp_close(struct port *port);
int64_t port_xdp_tx_begin(struct port *port);
uint64_t port_xdp_overruns(const struct port *port);
int port_xdp_send(struct port *port, const struct frame *frames, unsigned count);
int port_xdp_receive(struct port *port, struct frame *frames);
void port_xdp_release(struct port *port);
unsigned port_xdp_fds(const struct port *port, int *fds);

/* TAPs: the devices that stand where the kernel's VLAN devices would. */

/* tap_open makes or finds the persistent TAP `name` with segmentation offloads on, carrier off,
 * and sets MTU and MAC address. It has `queues` queues, a non-blocking descriptor each; the kernel
 * spreads flows over them. A device of before that has one queue where several are wanted, or the
 * other way round, is made anew. *uso tells whether it takes UDP super-segments too. */
int tap_open(const char *name, unsigned mtu, const uint8_t mac[6], unsigned queues, int *fds,
             bool *uso);

/* tap_set_mtu, tap_set_carrier change a live one. */
int tap_set_mtu(const char *name, unsigned mtu);
int tap_set_carrier(int fd, bool on);

/* tap_close closes a queue; with the last one the device goes, or with `keep` stays, without
 * carrier. */
void tap_close(int fd, bool keep);

#endif
