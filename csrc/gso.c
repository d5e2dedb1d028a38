#include "gso.h"

#include "vlan.h"

/* The IP header's offset and type, past up to two VLAN tags; 0 if the packet is not IP. */
static uint16_t find_ip(const uint8_t *packet, uint32_t len, uint16_t *type)
{
    const unsigned tags = vlan_count(packet, len, 2);
    const uint16_t at = (uint16_t)(14 + tags * VLAN_SIZE);
    if (len < at)
        return 0;
    *type = wire_get16(packet + at - 2);
    return at;
}

static bool plan_segments(struct gso *gso, const struct vnet_hdr *hdr)
{
    const uint8_t *packet = gso->packet;
    const bool tcp = gso->kind != VNET_GSO_UDP_L4;
    uint16_t type = 0;

    gso->l3 = find_ip(packet, gso->len, &type);
    gso->l4 = hdr->csum_start;
    gso->mss = hdr->gso_size;
    if (!gso->l3 || gso->mss == 0 || !(hdr->flags & VNET_NEEDS_CSUM))
        return false;
    if (hdr->csum_offset != (tcp ? TCP_CHECK_AT : UDP_CHECK_AT))
        return false;
    if (gso->len < (uint32_t)gso->l4 + (tcp ? TCP_SIZE : UDP_SIZE))
        return false;
    if (type == TYPE_IPV4) {
        if (gso->kind == VNET_GSO_TCPV6 || gso->l4 < gso->l3 + IPV4_SIZE ||
            gso->l4 - gso->l3 != (packet[gso->l3] & 15) * 4)
            return false;
    } else if (type != TYPE_IPV6 || gso->kind == VNET_GSO_TCPV4 || gso->l4 < gso->l3 + IPV6_SIZE) {
        return false;
    }
    const unsigned l4_size = tcp ? (packet[gso->l4 + 12] >> 4) * 4U : UDP_SIZE;
    if (l4_size < (tcp ? TCP_SIZE : UDP_SIZE) || gso->len < gso->l4 + l4_size)
        return false;
    gso->header = (uint16_t)(gso->l4 + l4_size);
    gso->payload_len = gso->len - gso->header;
    gso->segments = gso->payload_len ? (gso->payload_len + gso->mss - 1) / gso->mss : 1;

    /* The field holds the pseudo-header's sum with the length of the whole; take the length out,
     * so that any extension header that changes the addresses stays accounted for. */
    uint16_t field;
    memcpy(&field, packet + gso->l4 + hdr->csum_offset, sizeof field);
    gso->pseudo = (uint64_t)field + (uint16_t)~vnet_be16(gso->len - gso->l4);
    return true;
}

bool gso_plan(struct gso *gso, const struct vnet_hdr *hdr, const uint8_t *packet, uint32_t len)
{
    *gso = (struct gso){.packet = packet,
                        .len = len,
                        .segments = 1,
                        .kind = hdr->gso_type & (uint8_t)~VNET_GSO_ECN,
                        .flags = hdr->flags};
    switch (gso->kind) {
    case VNET_GSO_NONE:
        gso->l4 = hdr->csum_start;
        gso->check = (uint16_t)(hdr->csum_start + hdr->csum_offset);
        return !(hdr->flags & VNET_NEEDS_CSUM) ||
               (uint32_t)hdr->csum_start + hdr->csum_offset + 2 <= len;
    case VNET_GSO_TCPV4:
    case VNET_GSO_TCPV6:
    case VNET_GSO_UDP_L4:
        return plan_segments(gso, hdr);
    default:
        return false;
    }
}

/* A packet that stays whole: copy, and finish the checksum if that is left to us. */
static uint32_t copy_whole(const struct gso *gso, uint8_t *out)
{
    memcpy(out, gso->packet, gso->len);
    if (gso->flags & VNET_NEEDS_CSUM) {
        const uint16_t sum = (uint16_t)~vnet_fold(vnet_sum(0, out + gso->l4, gso->len - gso->l4));
        vnet_put_sum(out + gso->check, sum ? sum : 0xFFFF); /* 0 would mean "none" to UDP */
    }
    return gso->len;
}

uint32_t gso_cut(const struct gso *gso, uint32_t i, uint8_t *out)
{
    if (gso->kind == VNET_GSO_NONE)
        return copy_whole(gso, out);

    const uint32_t from = i * gso->mss;
    const bool last = i + 1 == gso->segments;
    const uint32_t payload_len = last ? gso->payload_len - from : gso->mss;
    const uint32_t len = gso->header + payload_len;
    const uint32_t l4_len = len - gso->l4;
    uint8_t *const l3 = out + gso->l3;
    uint8_t *const l4 = out + gso->l4;

    memcpy(out, gso->packet, gso->header);
    memcpy(out + gso->header, gso->packet + gso->header + from, payload_len);

    if (l3[0] >> 4 == 4) {
        wire_put16(l3 + 2, (uint16_t)(len - gso->l3));
        wire_put16(l3 + 4, (uint16_t)(wire_get16(l3 + 4) + i));
        vnet_ipv4_check(l3, (unsigned)(gso->l4 - gso->l3));
    } else {
        wire_put16(l3 + 4, (uint16_t)(len - gso->l3 - IPV6_SIZE));
    }

    unsigned check = UDP_CHECK_AT;
    if (gso->kind == VNET_GSO_UDP_L4) {
        wire_put16(l4 + 4, (uint16_t)l4_len);
    } else {
        check = TCP_CHECK_AT;
        wire_put32(l4 + 4, wire_get32(l4 + 4) + from);
        if (!last)
            l4[TCP_FLAGS_AT] &= (uint8_t) ~(TCP_FIN | TCP_PSH);
        if (i)
            l4[TCP_FLAGS_AT] &= (uint8_t)~TCP_CWR;
    }
    wire_put16(l4 + check, 0);
    const uint16_t sum =
        (uint16_t)~vnet_fold(vnet_sum(gso->pseudo + vnet_be16(l4_len), l4, l4_len));
    vnet_put_sum(l4 + check, sum || gso->kind != VNET_GSO_UDP_L4 ? sum : 0xFFFF);
    return len;
}
