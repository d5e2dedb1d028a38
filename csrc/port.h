/*
 * port: the uplink's device and the TAPs, the only files (port*.c) with system calls on packets.
 *
 * A port moves batches of MACsec frames between an arena and a device:
 *
 *     port_tx_begin -> frames are built in port->tx_arena -> port_send
 *     port_receive  -> frames lie in port->rx_arena      -> port_release
 *
 * Only frames of EtherType 0x88E5 are taken from the device; all others (EAPOL among them) go to
 * the kernel as if we were not there. Two ways in and two ways out:
 *
 *     packet   AF_PACKET, recvmmsg and sendmmsg with the queueing discipline bypassed. Everywhere.
 *     xdp      AF_XDP. Zero-copy where the driver can, else copy mode, which saves the socket
 *              layer's cost per frame on the way out (the way in is not cheaper in copy mode).
 *
 * The packet socket always stays open: what an XDP program does not redirect (a frame on a queue
 * that has no socket) arrives there. Why not PACKET_MMAP: a TPACKET_V3 block is handed over when
 * full or after a timer tick, which adds milliseconds to a quiet line; V2 costs more per frame
 * than recvmmsg, and so does PACKET_TX_RING against sendmmsg up to 4 KiB.
 *
 * Threads: one sends, one receives; they may be different ones.
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
};

enum port_path { PORT_PACKET, PORT_XDP_TX, PORT_XDP };

struct port_xdp;

struct port {
    char name[IF_NAMESIZE];
    int ifindex;
    enum port_path path;
    bool zero_copy;
    int rx_fd; /* to wait on for frames */
    int tx_fd; /* to wait on for room */
    uint32_t frame_max;
    uint8_t *tx_arena;
    uint8_t *rx_arena;
    size_t tx_size, rx_size;
    uint32_t rx_slot;     /* octets from one receive buffer to the next */
    uint32_t rx_slots;    /* offset of the first one in rx_arena */
    uint32_t chunk;       /* not 0: frames should not cross multiples of this */
    uint64_t overruns;    /* frames that came faster than they were taken; see port_overruns */
    struct port_xdp *xdp; /* NULL: AF_PACKET alone */
};

static inline int port_errno(int number)
{
    return PORT_SYSTEM - number;
}

/* port_open opens the sockets on a device that exists. frame_max: longest frame without FCS. */
int port_open(struct port *port, const char *device, uint32_t frame_max, enum port_path path);

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

/* port_overruns: frames that the kernel dropped because we were too slow, since opening. */
uint64_t port_overruns(struct port *port);

/* port_measure: ns for each frame of 1550 octets that one thread sends and another receives on a
 * path, over a veth pair made for it; the best of some rounds. Takes about 50 ms. What it cannot
 * tell: a NIC's zero-copy mode. */
int port_measure(enum port_path path, uint64_t *ns);

/* port_carrier: 1 if the device is up and has a carrier, 0 if not, or an error. */
int port_carrier(const char *device);

/* port_mac reads the device's MAC address. */
int port_mac(const char *device, uint8_t mac[6]);

/* port_xdp_fd: where frames redirected by XDP are waited for; -1 if there is none. */
int port_xdp_fd(const struct port *port);

/* The AF_XDP half, called by port.c alone. */
int port_xdp_open(struct port *port);
void port_xdp_close(struct port *port);
int64_t port_xdp_tx_begin(struct port *port);
uint64_t port_xdp_overruns(const struct port *port);
int port_xdp_send(struct port *port, const struct frame *frames, unsigned count);
int port_xdp_receive(struct port *port, struct frame *frames);
void port_xdp_release(struct port *port);

/* TAPs: the devices that stand where the kernel's VLAN devices would. */

/* tap_open makes or finds the persistent TAP `name` with segmentation offloads on, carrier off,
 * and sets MTU and MAC address. *uso tells whether it takes UDP super-segments too. *fd is
 * non-blocking. */
int tap_open(const char *name, unsigned mtu, const uint8_t mac[6], int *fd, bool *uso);

/* tap_set_mtu, tap_set_carrier change a live one. */
int tap_set_mtu(const char *name, unsigned mtu);
int tap_set_carrier(int fd, bool on);

/* tap_close removes the device, or with `keep` leaves it, without carrier. */
void tap_close(int fd, bool keep);

#endif
