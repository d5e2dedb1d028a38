/*
 * gso: cuts what the kernel handed over as one packet into the frames that go on the wire.
 *
 *     Ethernet IP TCP | payload 1 | payload 2 | payload 3 |        one packet from the TAP
 *     Ethernet IP TCP | payload 1 |
 *     Ethernet IP TCP             | payload 2 |                    three frames, each with its own
 *     Ethernet IP TCP                         | payload 3 |        lengths, numbers and checksums
 *
 * gso_plan looks at the packet once, gso_cut writes one frame of it. What changes from frame to
 * frame is what Linux changes (net/ipv4/tcp_offload.c, udp_offload.c): IPv4 total length and
 * identification (counting up), IPv6 payload length, TCP sequence number, FIN and PSH (last frame
 * only), CWR (first frame only, RFC 3168 6.1.2), UDP length, checksums.
 *
 * Pure: no system call, no allocation. The packet is the kernel's, but nothing about it is
 * believed: whatever does not add up is refused.
 */
#ifndef LASTMILE_GSO_H
#define LASTMILE_GSO_H

#include "vnet.h"

struct gso {
    const uint8_t *packet;
    uint32_t len;
    uint32_t payload_len; /* of the whole packet */
    uint32_t segments;    /* frames that come out of it, at least 1 */
    uint16_t l3;          /* offset of the IP header */
    uint16_t l4;          /* offset of the TCP or UDP header */
    uint16_t header;      /* octets in front of the payload */
    uint16_t mss;         /* octets of payload in each frame but the last */
    uint8_t kind;         /* VNET_GSO_TCPV4 and so on, VNET_GSO_NONE: only the checksum is due */
    uint8_t flags;        /* VNET_NEEDS_CSUM */
    uint16_t check;       /* VNET_GSO_NONE: offset of the checksum field */
    uint64_t pseudo;      /* sum of the pseudo-header, L4 length left out */
};

/* gso_plan prepares a packet of `len` octets that starts with its Ethernet header. Returns false
 * if header and packet do not fit each other: the packet is to be dropped. The packet must stay
 * where it is until the last gso_cut. */
bool gso_plan(struct gso *gso, const struct vnet_hdr *hdr, const uint8_t *packet, uint32_t len);

/* gso_frame_max: octets of the longest frame that will be cut. */
static inline uint32_t gso_frame_max(const struct gso *gso)
{
    return gso->kind == VNET_GSO_NONE || gso->payload_len < gso->mss
               ? gso->len
               : (uint32_t)gso->header + gso->mss;
}

/* gso_cut writes frame `i` (below gso->segments) to `out`, which has room for gso_frame_max()
 * octets and does not touch the packet. Returns the frame's octets. */
uint32_t gso_cut(const struct gso *gso, uint32_t i, uint8_t *out);

#endif
