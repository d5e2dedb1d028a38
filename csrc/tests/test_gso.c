/* gso: every frame that is cut is one that a kernel would have sent by itself. */
#include <stdlib.h>

#include "check.h"
#include "gso.h"
#include "packets.h"

static uint8_t packet[VNET_PACKET_MAX];

/* The packet in memory of exactly its size, so that the sanitizer sees any step beyond it. */
static void cut_all(const struct vnet_hdr *hdr, uint32_t len, const struct flow *flow, uint32_t seq,
                    uint16_t id, uint8_t flags)
{
    uint8_t *exact = malloc(len);
    memcpy(exact, packet, len);
    struct gso gso;
    CHECK(gso_plan(&gso, hdr, exact, len));

    const uint32_t header = headers_size(flow), payload_len = len - header;
    const uint32_t l4 = 14U + (flow->v6 ? IPV6_SIZE : IPV4_SIZE);
    CHECK_EQUAL(gso.header, header);
    CHECK_EQUAL(gso.segments, payload_len ? (payload_len + hdr->gso_size - 1) / hdr->gso_size : 1);
    uint32_t done = 0;
    for (uint32_t i = 0; i < gso.segments; i++) {
        uint8_t *out = malloc(gso_frame_max(&gso));
        const uint32_t n = gso_cut(&gso, i, out);
        const bool last = i + 1 == gso.segments;
        CHECK(n <= gso_frame_max(&gso));
        CHECK_EQUAL(n - header, last ? payload_len - done : hdr->gso_size);
        CHECK_EQUAL(l4_sum(out, n), 0xFFFF);
        CHECK(memcmp(out + header, packet + header + done, n - header) == 0);
        CHECK(memcmp(out, packet, 14) == 0);
        if (flow->v6) {
            CHECK_EQUAL(wire_get16(out + 18), n - 54);
        } else {
            CHECK_EQUAL(wire_get16(out + 16), n - 14);
            CHECK_EQUAL(wire_get16(out + 18), (uint16_t)(id + i));
            CHECK_EQUAL(slow_sum(0, out + 14, IPV4_SIZE), 0xFFFF);
        }
        if (flow->udp) {
            CHECK_EQUAL(wire_get16(out + l4 + 4), n - l4);
        } else {
            uint8_t wanted = flags;
            if (!last)
                wanted &= (uint8_t) ~(TCP_FIN | TCP_PSH);
            if (i)
                wanted &= (uint8_t)~TCP_CWR;
            CHECK_EQUAL(out[l4 + TCP_FLAGS_AT], wanted);
            CHECK_EQUAL(wire_get32(out + l4 + 4), seq + done);
            CHECK(memcmp(out + l4 + TCP_SIZE, packet + l4 + TCP_SIZE, flow->options) == 0);
        }
        done += n - header;
        free(out);
    }
    CHECK_EQUAL(done, payload_len);
    free(exact);
}

static void test_random_packets(void)
{
    static const uint8_t flag_sets[] = {0x10, 0x18, 0x11, 0x19, 0x90, 0xD9, 0x50};
    for (int round = 0; round < 3000; round++) {
        const struct flow flow = random_flow();
        const uint32_t room = 65535 - (headers_size(&flow) - 14);
        const uint32_t payload_len = random_below(round % 3 ? 9000 : room) + 1;
        const uint16_t mss = (uint16_t)(1 + random_below(round % 2 ? 9000 : 1460));
        if (payload_len / mss > 200)
            continue;
        const uint32_t seq = random_below(8) ? random_below(1U << 31) : 0xFFFFFF00U;
        const uint16_t id = (uint16_t)(0xFFF0 + random_below(32));
        const uint8_t flags = flag_sets[random_below(sizeof flag_sets)];
        const uint32_t len = build(packet, &flow, payload_len, seq, id, flags, (uint8_t)round);
        const struct vnet_hdr hdr = offload(packet, len, &flow, mss);
        cut_all(&hdr, len, &flow, seq, id, flags);
    }
}

/* The checksum of a packet that stays whole is completed, and nothing else is touched. */
static void test_whole(void)
{
    for (int round = 0; round < 500; round++) {
        const struct flow flow = random_flow();
        const uint32_t len = build(packet, &flow, random_below(1400), 7, 9, 0x10, (uint8_t)round);
        uint8_t wanted[2000], out[2000];
        memcpy(wanted, packet, len);
        struct vnet_hdr hdr = offload(packet, len, &flow, 0);
        hdr.gso_type = VNET_GSO_NONE;
        struct gso gso;
        CHECK(gso_plan(&gso, &hdr, packet, len));
        CHECK_EQUAL(gso.segments, 1);
        CHECK_EQUAL(gso_cut(&gso, 0, out), len);
        CHECK_EQUAL(l4_sum(out, len), 0xFFFF);
        CHECK(memcmp(out, wanted, len) == 0);

        hdr.flags = 0;
        CHECK(gso_plan(&gso, &hdr, packet, len));
        CHECK_EQUAL(gso_cut(&gso, 0, out), len);
        CHECK(memcmp(out, packet, len) == 0);
    }
}

/* A header that does not fit its packet is refused. */
static void test_refused(void)
{
    const struct flow flow = {.sport = 1, .dport = 2, .options = 12};
    const uint32_t len = build(packet, &flow, 5000, 1, 1, 0x10, 1);
    const struct vnet_hdr good = offload(packet, len, &flow, 1448);
    struct vnet_hdr bad;
    struct gso gso;

    CHECK(gso_plan(&gso, &good, packet, len));
#define REFUSED(change)                                                                            \
    bad = good;                                                                                    \
    change;                                                                                        \
    CHECK(!gso_plan(&gso, &bad, packet, len))
    REFUSED(bad.gso_size = 0);
    REFUSED(bad.flags = 0);
    REFUSED(bad.gso_type = 2);
    REFUSED(bad.gso_type = VNET_GSO_TCPV6);
    REFUSED(bad.gso_type = VNET_GSO_UDP_L4);
    REFUSED(bad.csum_start = 33);
    REFUSED(bad.csum_start = 35);
    REFUSED(bad.csum_start = 65535);
    REFUSED(bad.csum_offset = 15);
    REFUSED(bad = ((struct vnet_hdr){.flags = 1, .csum_start = 65535, .csum_offset = 65535}));
    REFUSED(bad = ((struct vnet_hdr){.flags = 1, .csum_start = (uint16_t)(len - 1)}));
#undef REFUSED
    for (uint32_t cut = 0; cut < 14 + IPV4_SIZE + TCP_SIZE + 12; cut++)
        CHECK(!gso_plan(&gso, &good, packet, cut));
}

/* Whatever the header and the packet say, nothing outside the packet is touched. */
static void test_rubbish(void)
{
    for (int round = 0; round < 20000; round++) {
        const struct flow flow = random_flow();
        uint32_t len = build(packet, &flow, random_below(600), 1, 1, 0x10, 3);
        struct vnet_hdr hdr = offload(packet, len, &flow, (uint16_t)(1 + random_below(300)));
        for (unsigned k = random_below(3); k > 0; k--)
            ((uint8_t *)&hdr)[random_below(sizeof hdr)] = (uint8_t)random_below(256);
        for (unsigned k = random_below(3); k > 0; k--)
            packet[random_below(80)] = (uint8_t)random_below(256);
        if (random_below(3) == 0)
            len = random_below(len + 1);
        uint8_t *exact = malloc(len + !len);
        memcpy(exact, packet, len);
        struct gso gso;
        if (gso_plan(&gso, &hdr, exact, len)) {
            const uint32_t room = gso_frame_max(&gso);
            uint8_t *out = malloc(room + !room);
            for (uint32_t i = 0; i < gso.segments; i++)
                CHECK(gso_cut(&gso, i, out) <= room);
            free(out);
        }
        free(exact);
    }
}

int main(void)
{
    test_random_packets();
    test_whole();
    test_refused();
    test_rubbish();
    return check_report("gso");
}
