/*
 * vnet: the header that a TAP with IFF_VNET_HDR puts in front of each packet (virtio 1.2, 5.1.6,
 * the legacy layout in host order), and the TCP and UDP fields that segmentation touches.
 *
 * With offloads on, the kernel hands over super-segments of up to 64 KiB: one set of headers, many
 * payloads, the L4 checksum field filled with the pseudo-header's sum only. gso.h cuts them for
 * the wire, gro.h makes them again from the wire, so that the TAP is crossed once for many frames.
 */
#ifndef LASTMILE_VNET_H
#define LASTMILE_VNET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "wire.h"

enum {
    VNET_NEEDS_CSUM = 1, /* flags: finish the checksum from csum_start on */

    VNET_GSO_NONE = 0,
    VNET_GSO_TCPV4 = 1,
    VNET_GSO_TCPV6 = 4,
    VNET_GSO_UDP_L4 = 5,
    VNET_GSO_ECN = 0x80, /* CWR stands in the first segment and only there */

    VNET_PACKET_MAX = 14 + 4 + 65535, /* Ethernet header, a tag, the longest IP packet */
};

struct vnet_hdr {
    uint8_t flags;
    uint8_t gso_type;
    uint16_t hdr_len;  /* octets of Ethernet, IP and L4 headers; a hint only */
    uint16_t gso_size; /* octets of payload in each segment but the last */
    uint16_t csum_start;
    uint16_t csum_offset;
};
_Static_assert(sizeof(struct vnet_hdr) == 10, "the legacy virtio-net header has 10 octets");

enum {
    TYPE_IPV4 = 0x0800,
    TYPE_IPV6 = 0x86DD,
    IPV4_SIZE = 20,
    IPV6_SIZE = 40,
    TCP_SIZE = 20,
    UDP_SIZE = 8,
    PROTO_TCP = 6,
    PROTO_UDP = 17,

    TCP_FIN = 0x01,
    TCP_SYN = 0x02,
    TCP_RST = 0x04,
    TCP_PSH = 0x08,
    TCP_URG = 0x20,
    TCP_CWR = 0x80,
    TCP_FLAGS_AT = 13,
    TCP_CHECK_AT = 16,
    UDP_CHECK_AT = 6,
};

/* vnet_sum adds `len` octets to a one's complement sum (RFC 1071). The sum is kept in the order of
 * memory, so that no octet is ever swapped; `len` may be odd only for the last part. */
static inline uint64_t vnet_sum(uint64_t sum, const uint8_t *at, size_t len)
{
    uint64_t lanes[4] = {0, 0, 0, 0};
    uint32_t word[4];
    for (; len >= sizeof word; len -= sizeof word, at += sizeof word) {
        memcpy(word, at, sizeof word);
        for (int i = 0; i < 4; i++)
            lanes[i] += word[i];
    }
    sum += lanes[0] + lanes[1] + lanes[2] + lanes[3];
    for (; len >= 4; len -= 4, at += 4) {
        memcpy(word, at, 4);
        sum += word[0];
    }
    if (len) {
        word[0] = 0;
        memcpy(word, at, len);
        sum += word[0];
    }
    return sum;
}

/* vnet_fold brings a sum to 16 bits, not complemented. */
static inline uint16_t vnet_fold(uint64_t sum)
{
    sum = (sum & 0xFFFFFFFF) + (sum >> 32);
    sum = (sum & 0xFFFFFFFF) + (sum >> 32);
    sum = (sum & 0xFFFF) + (sum >> 16);
    sum = (sum & 0xFFFF) + (sum >> 16);
    return (uint16_t)sum;
}

/* vnet_be16 is a number as it contributes to a sum in memory order. */
static inline uint16_t vnet_be16(uint32_t value)
{
    return __builtin_bswap16((uint16_t)value);
}

/* vnet_put_sum stores 16 bits that are in memory order already. */
static inline void vnet_put_sum(uint8_t *at, uint16_t sum)
{
    memcpy(at, &sum, sizeof sum);
}

/* vnet_pseudo sums the pseudo-header of an IP header at `l3` but for the L4 length. */
static inline uint64_t vnet_pseudo(const uint8_t *l3, unsigned proto)
{
    const bool v4 = l3[0] >> 4 == 4;
    return vnet_sum(vnet_be16(proto), l3 + (v4 ? 12 : 8), v4 ? 8 : 32);
}

/* vnet_ipv4_check fills in the header checksum of an IPv4 header of `size` octets. */
static inline void vnet_ipv4_check(uint8_t *l3, unsigned size)
{
    wire_put16(l3 + 10, 0);
    vnet_put_sum(l3 + 10, (uint16_t)~vnet_fold(vnet_sum(0, l3, size)));
}

#endif
