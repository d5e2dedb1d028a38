/* packets: TCP and UDP packets for the tests of gso and gro, built and judged octet by octet. */
#ifndef LASTMILE_TESTS_PACKETS_H
#define LASTMILE_TESTS_PACKETS_H

#include <stdint.h>
#include <string.h>

#include "vnet.h"

struct flow {
    bool v6, udp;
    uint16_t sport, dport;
    uint8_t options; /* octets of TCP options, a multiple of 4 */
    uint8_t tos;
};

/* A generator that gives the same numbers in every run. */
static uint64_t random_state = 0x853C49E6748FEA9BULL;
static inline uint32_t random_below(uint32_t n)
{
    random_state = random_state * 6364136223846793005ULL + 1442695040888963407ULL;
    return (uint32_t)((random_state >> 33) % n);
}

/* The checksum of RFC 1071 the way it stands there: 16 bits at a time, big endian. */
static inline uint32_t slow_sum(uint32_t sum, const uint8_t *at, size_t len)
{
    for (size_t i = 0; i < len; i++)
        sum += i & 1 ? at[i] : (uint32_t)at[i] << 8;
    while (sum >> 16)
        sum = (sum & 0xFFFF) + (sum >> 16);
    return sum;
}

static inline unsigned headers_size(const struct flow *flow)
{
    return 14U + (flow->v6 ? IPV6_SIZE : IPV4_SIZE) +
           (flow->udp ? UDP_SIZE : TCP_SIZE + flow->options);
}

/* The sum over pseudo-header and L4 of a frame without VLAN tag: 0xFFFF if its checksum is right.
 */
static inline uint32_t l4_sum(const uint8_t *frame, uint32_t len)
{
    const uint8_t *l3 = frame + 14;
    const bool v4 = l3[0] >> 4 == 4;
    const uint32_t l4 = 14U + (v4 ? IPV4_SIZE : IPV6_SIZE);
    uint32_t sum = slow_sum(0, l3 + (v4 ? 12 : 8), v4 ? 8 : 32);
    sum += (v4 ? l3[9] : l3[6]) + len - l4;
    return slow_sum(sum, frame + l4, len - l4);
}

/* build writes a packet with right lengths and checksums; payload octet k is seed + k * 7.
 * Returns its octets. */
static inline uint32_t build(uint8_t *out, const struct flow *flow, uint32_t payload_len,
                             uint32_t seq, uint16_t id, uint8_t flags, uint8_t seed)
{
    const uint32_t len = headers_size(flow) + payload_len;
    uint8_t *l3 = out + 14, *l4 = l3 + (flow->v6 ? IPV6_SIZE : IPV4_SIZE);
    uint8_t *const check = l4 + (flow->udp ? UDP_CHECK_AT : TCP_CHECK_AT);

    memset(out, 0, headers_size(flow));
    memcpy(out, "\x02\0\0\0\0\1\x02\0\0\0\0\2", 12);
    wire_put16(out + 12, flow->v6 ? TYPE_IPV6 : TYPE_IPV4);
    if (flow->v6) {
        wire_put32(l3, 0x60000000U | (uint32_t)flow->tos << 20 | 0x12345);
        wire_put16(l3 + 4, (uint16_t)(len - 14 - IPV6_SIZE));
        l3[6] = flow->udp ? PROTO_UDP : PROTO_TCP;
        l3[7] = 64;
        l3[8] = l3[24] = 0xFD;
        l3[23] = 1;
        l3[39] = 2;
    } else {
        l3[0] = 0x45;
        l3[1] = flow->tos;
        wire_put16(l3 + 2, (uint16_t)(len - 14));
        wire_put16(l3 + 4, id);
        l3[6] = 0x40;
        l3[8] = 64;
        l3[9] = flow->udp ? PROTO_UDP : PROTO_TCP;
        memcpy(l3 + 12, "\x0a\0\0\1\x0a\0\0\2", 8);
        wire_put16(l3 + 10, (uint16_t)~slow_sum(0, l3, IPV4_SIZE));
    }
    wire_put16(l4, flow->sport);
    wire_put16(l4 + 2, flow->dport);
    if (flow->udp) {
        wire_put16(l4 + 4, (uint16_t)(len - (uint32_t)(l4 - out)));
    } else {
        wire_put32(l4 + 4, seq);
        wire_put32(l4 + 8, 0xABCD0123);
        l4[12] = (uint8_t)((TCP_SIZE + flow->options) / 4 << 4);
        l4[TCP_FLAGS_AT] = flags;
        wire_put16(l4 + 14, 501);
        for (unsigned i = 0; i < flow->options; i++)
            l4[TCP_SIZE + i] = (uint8_t)(i + 1);
    }
    for (uint32_t k = 0; k < payload_len; k++)
        out[len - payload_len + k] = (uint8_t)(seed + k * 7);
    const uint16_t sum = (uint16_t)~l4_sum(out, len);
    wire_put16(check, flow->udp && sum == 0 ? 0xFFFF : sum);
    return len;
}

/* offload makes of a whole packet what the kernel hands over: the checksum field holds the
 * pseudo-header's sum, the header tells how to cut. */
static inline struct vnet_hdr offload(uint8_t *packet, uint32_t len, const struct flow *flow,
                                      uint16_t mss)
{
    const uint16_t l4 = 14 + (flow->v6 ? IPV6_SIZE : IPV4_SIZE);
    const uint16_t check = flow->udp ? UDP_CHECK_AT : TCP_CHECK_AT;
    const uint8_t *l3 = packet + 14;
    uint32_t sum = slow_sum(0, l3 + (flow->v6 ? 8 : 12), flow->v6 ? 32 : 8);
    sum = slow_sum(sum + (flow->udp ? PROTO_UDP : PROTO_TCP) + len - l4, NULL, 0);
    wire_put16(packet + l4 + check, (uint16_t)sum);
    return (struct vnet_hdr){
        .flags = VNET_NEEDS_CSUM,
        .gso_type = flow->udp  ? VNET_GSO_UDP_L4
                    : flow->v6 ? VNET_GSO_TCPV6
                               : VNET_GSO_TCPV4,
        .hdr_len = (uint16_t)headers_size(flow),
        .gso_size = mss,
        .csum_start = l4,
        .csum_offset = check,
    };
}

static inline struct flow random_flow(void)
{
    return (struct flow){.v6 = random_below(2),
                         .udp = random_below(3) == 0,
                         .sport = (uint16_t)(1024 + random_below(4)),
                         .dport = 5201,
                         .options = (uint8_t)(4 * random_below(11)),
                         .tos = (uint8_t)random_below(4)};
}

#endif
