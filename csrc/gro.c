#include "gro.h"

/* What a look at one frame tells. */
struct found {
    bool flow;  /* TCP or UDP, and its ports are there: l4 and proto hold */
    bool joins; /* it can be joined with others, as far as it alone can tell */
    uint16_t l3, l4, header;
    uint32_t end; /* octets of the frame without padding */
    uint8_t proto;
};

void gro_begin(struct gro *gro, uint8_t *arena)
{
    gro->arena = arena;
    gro->count = 0;
    gro->frames = 0;
    memset(gro->bucket, 0xFF, sizeof gro->bucket);
}

static bool find_ipv4(const uint8_t *frame, uint32_t len, struct found *f)
{
    const uint8_t *l3 = frame + f->l3;
    if (len < (uint32_t)f->l3 + IPV4_SIZE || l3[0] != 0x45)
        return false;
    if (wire_get16(l3 + 6) & 0xBFFF) /* any fragment; DF alone is fine */
        return false;
    if (vnet_fold(vnet_sum(0, l3, IPV4_SIZE)) != 0xFFFF)
        return false;
    f->end = (uint32_t)f->l3 + wire_get16(l3 + 2);
    f->l4 = (uint16_t)(f->l3 + IPV4_SIZE);
    f->proto = l3[9];
    return true;
}

static bool find_ipv6(const uint8_t *frame, uint32_t len, struct found *f)
{
    const uint8_t *l3 = frame + f->l3;
    if (len < (uint32_t)f->l3 + IPV6_SIZE || l3[0] >> 4 != 6)
        return false;
    f->l4 = (uint16_t)(f->l3 + IPV6_SIZE);
    f->end = (uint32_t)f->l4 + wire_get16(l3 + 4);
    f->proto = l3[6];
    return true;
}

/* The end of find(): what makes a frame of a known flow one that can be joined. */
static bool joins(const uint8_t *frame, struct found *f)
{
    const uint8_t *l4 = frame + f->l4;
    if (f->proto == PROTO_TCP) {
        if (f->end < (uint32_t)f->l4 + TCP_SIZE)
            return false;
        f->header = (uint16_t)(f->l4 + (l4[12] >> 4) * 4);
        if (f->header < f->l4 + TCP_SIZE || l4[TCP_FLAGS_AT] & (TCP_SYN | TCP_RST | TCP_URG))
            return false;
    } else {
        f->header = (uint16_t)(f->l4 + UDP_SIZE);
        if (wire_get16(l4 + 4) != f->end - f->l4 || wire_get16(l4 + UDP_CHECK_AT) == 0)
            return false;
    }
    if (f->end <= f->header) /* no payload: a pure ACK */
        return false;
    const uint32_t l4_len = f->end - f->l4;
    return vnet_fold(vnet_sum(vnet_pseudo(frame + f->l3, f->proto) + vnet_be16(l4_len), l4,
                              l4_len)) == 0xFFFF;
}

/* Read the headers. */
static void find(const uint8_t *frame, uint32_t len, struct found *f)
{
    if (len < 14)
        return;
    const uint16_t type = wire_get16(frame + 12);
    f->l3 = 14;
    if (type == TYPE_IPV4 ? !find_ipv4(frame, len, f)
                          : type != TYPE_IPV6 || !find_ipv6(frame, len, f))
        return;
    if (f->end > len || f->end < (uint32_t)f->l4 + UDP_SIZE ||
        (f->proto != PROTO_TCP && f->proto != PROTO_UDP))
        return;
    f->flow = true;
    f->joins = joins(frame, f);
}

/* The bucket of a flow: addresses' and ports' low bits; a clash costs speed only. */
static unsigned bucket(const uint8_t *frame, const struct found *f, uint16_t out)
{
    uint32_t ports, address;
    memcpy(&ports, frame + f->l4, 4);
    memcpy(&address, frame + f->l4 - 8, 4);
    const uint32_t mix = (ports ^ address ^ (uint32_t)out << 8 ^ f->proto) * 0x9E3779B1U;
    return mix >> 26;
}
_Static_assert(GRO_BUCKETS == 1 << (32 - 26), "the bucket is the top bits of the hash");

/* Whether the headers of a frame are those of an open packet, but for what changes by itself. */
static bool same_flow(const uint8_t *head, const struct gro_packet *p, const uint8_t *frame,
                      const struct found *f)
{
    if (p->proto != f->proto || p->l3 != f->l3 || p->l4 != f->l4 || p->header != f->header)
        return false;
    if (memcmp(head, frame, f->l3) != 0)
        return false;
    const uint8_t *a = head + f->l3, *b = frame + f->l3;
    if (a[0] != b[0])
        return false;
    if (a[0] >> 4 == 4) {
        /* TOS; DF, TTL, protocol; addresses */
        if (a[1] != b[1] || memcmp(a + 6, b + 6, 4) != 0 || memcmp(a + 12, b + 12, 8) != 0)
            return false;
    } else if (memcmp(a, b, 4) != 0 || memcmp(a + 6, b + 6, IPV6_SIZE - 6) != 0) {
        return false;
    }
    return memcmp(head + f->l4, frame + f->l4, 4) == 0; /* ports */
}

/* Whether a frame of the same flow continues the packet. */
static bool continues(const uint8_t *head, const struct gro_packet *p, const uint8_t *frame,
                      const struct found *f)
{
    const uint32_t payload_len = f->end - f->header;
    const uint8_t *a = head + f->l4, *b = frame + f->l4;

    if (payload_len > p->mss || p->len + payload_len - f->l3 > 65535)
        return false;
    if (frame[f->l3] >> 4 == 4) {
        const uint16_t id = wire_get16(frame + f->l3 + 4);
        const uint16_t first_id = wire_get16(head + f->l3 + 4);
        const bool df = frame[f->l3 + 6] & 0x40;
        const bool still = df && id == first_id && (p->count == 1 || p->same_id);
        const bool counts = id == p->next_id && !(p->same_id && p->count > 1);
        if (!still && !counts)
            return false;
    }
    if (f->proto == PROTO_UDP)
        return p->count < GRO_UDP_MAX;
    if (wire_get32(b + 4) != p->next_seq)
        return false;
    /* acknowledgement; length and flags but for PSH and FIN; window; urgent pointer; options */
    return memcmp(a + 8, b + 8, 4) == 0 && a[12] == b[12] && !(b[TCP_FLAGS_AT] & TCP_CWR) &&
           ((a[TCP_FLAGS_AT] ^ b[TCP_FLAGS_AT]) & ~(TCP_PSH | TCP_FIN | TCP_CWR)) == 0 &&
           memcmp(a + 14, b + 14, 2) == 0 && memcmp(a + 18, b + 18, f->header - f->l4 - 18U) == 0;
}

static void join(struct gro *gro, struct gro_packet *p, uint32_t at, const struct found *f)
{
    uint8_t *head = gro->arena + p->at;
    const uint8_t *frame = gro->arena + at;
    const uint32_t payload_len = f->end - f->header;
    const uint16_t piece = gro->frames++;

    gro->piece[piece] = (struct gro_piece){at + f->header, payload_len};
    gro->next[piece] = GRO_NONE;
    if (p->first == GRO_NONE)
        p->first = piece;
    else
        gro->next[p->last] = piece;
    p->last = piece;
    if (head[f->l3] >> 4 == 4) {
        const uint16_t id = wire_get16(frame + f->l3 + 4);
        p->same_id = id == wire_get16(head + f->l3 + 4);
        p->next_id = (uint16_t)(id + 1);
    }
    p->count++;
    p->len += payload_len;
    p->next_seq += payload_len;
    p->open = payload_len == p->mss;
    if (f->proto == PROTO_TCP) {
        const uint8_t ends = frame[f->l4 + TCP_FLAGS_AT] & (TCP_PSH | TCP_FIN);
        head[f->l4 + TCP_FLAGS_AT] |= ends;
        if (ends)
            p->open = false;
    }
}

void gro_add(struct gro *gro, uint32_t at, uint32_t len, uint16_t out, bool udp)
{
    const uint8_t *frame = gro->arena + at;
    struct found f = {0};
    unsigned b = 0;

    find(frame, len, &f);
    if (f.proto == PROTO_UDP && !udp)
        f.flow = f.joins = false;
    if (f.flow) {
        b = bucket(frame, &f, out);
        struct gro_packet *p = gro->bucket[b] == GRO_NONE ? NULL : &gro->packet[gro->bucket[b]];
        if (f.joins && p && p->open && p->out == out &&
            same_flow(gro->arena + p->at, p, frame, &f) &&
            continues(gro->arena + p->at, p, frame, &f)) {
            join(gro, p, at, &f);
            return;
        }
        gro->bucket[b] = gro->count; /* what comes later of this flow does not overtake it */
    }
    struct gro_packet *p = &gro->packet[gro->count++];
    *p = (struct gro_packet){.at = at, .len = len, .count = 1, .first = GRO_NONE, .out = out};
    if (!f.joins)
        return;
    const uint8_t *l4 = frame + f.l4;
    const uint32_t payload_len = f.end - f.header;
    p->len = f.end;
    p->l3 = f.l3;
    p->l4 = f.l4;
    p->header = f.header;
    p->proto = f.proto;
    p->mss = (uint16_t)payload_len;
    p->next_id = (uint16_t)(wire_get16(frame + f.l3 + 4) + 1);
    p->open = true;
    if (f.proto == PROTO_TCP) {
        p->next_seq = wire_get32(l4 + 4) + payload_len;
        p->open = !(l4[TCP_FLAGS_AT] & (TCP_PSH | TCP_FIN));
    }
}

unsigned gro_finish(struct gro *gro, unsigned i, struct vnet_hdr *hdr, struct gro_piece *pieces)
{
    const struct gro_packet *p = &gro->packet[i];
    uint8_t *head = gro->arena + p->at;

    *hdr = (struct vnet_hdr){0};
    pieces[0] = (struct gro_piece){p->at, p->len};
    if (p->count == 1)
        return 1;

    uint8_t *l3 = head + p->l3, *l4 = head + p->l4;
    const bool v4 = l3[0] >> 4 == 4;
    const uint32_t l4_len = p->len - p->l4;
    unsigned n = 1;

    pieces[0].len = (uint32_t)p->header + p->mss;
    for (uint16_t k = p->first; k != GRO_NONE; k = gro->next[k])
        pieces[n++] = gro->piece[k];

    if (v4) {
        wire_put16(l3 + 2, (uint16_t)(p->len - p->l3));
        vnet_ipv4_check(l3, IPV4_SIZE);
    } else {
        wire_put16(l3 + 4, (uint16_t)(p->len - p->l3 - IPV6_SIZE));
    }
    hdr->flags = VNET_NEEDS_CSUM;
    hdr->hdr_len = p->header;
    hdr->gso_size = p->mss;
    hdr->csum_start = p->l4;
    if (p->proto == PROTO_TCP) {
        hdr->gso_type = v4 ? VNET_GSO_TCPV4 : VNET_GSO_TCPV6;
        if (l4[TCP_FLAGS_AT] & TCP_CWR)
            hdr->gso_type |= VNET_GSO_ECN;
        hdr->csum_offset = TCP_CHECK_AT;
    } else {
        hdr->gso_type = VNET_GSO_UDP_L4;
        hdr->csum_offset = UDP_CHECK_AT;
        wire_put16(l4 + 4, (uint16_t)l4_len);
    }
    vnet_put_sum(l4 + hdr->csum_offset, vnet_fold(vnet_pseudo(l3, p->proto) + vnet_be16(l4_len)));
    return n;
}
