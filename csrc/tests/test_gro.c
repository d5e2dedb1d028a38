/* gro: joins what may be joined, and what was joined is cut again into the same frames. */
#include <stdlib.h>

#include "check.h"
#include "gro.h"
#include "gso.h"
#include "packets.h"

enum { SLOT = 2048, SLOTS = GRO_FRAMES };
static uint8_t arena[SLOT * SLOTS];
static uint8_t before[SLOT * SLOTS]; /* the arena as it was when the frames came */
static struct gro gro;

/* Put packet `i` together as writev would. */
static uint32_t assemble(unsigned i, struct vnet_hdr *hdr, uint8_t *out)
{
    struct gro_piece pieces[GRO_FRAMES];
    uint32_t len = 0;
    const unsigned n = gro_finish(&gro, i, hdr, pieces);
    CHECK_EQUAL(n, gro.packet[i].count);
    for (unsigned k = 0; k < n; k++) {
        memcpy(out + len, arena + pieces[k].at, pieces[k].len);
        len += pieces[k].len;
    }
    CHECK_EQUAL(len, gro.packet[i].len);
    return len;
}

static unsigned expect(unsigned packets, const unsigned *counts)
{
    CHECK_EQUAL(gro.count, packets);
    for (unsigned i = 0; i < packets && i < gro.count; i++)
        CHECK_EQUAL(gro.packet[i].count, counts[i]);
    return gro.count == packets;
}
#define EXPECT(...)                                                                                \
    expect(sizeof((unsigned[]){__VA_ARGS__}) / sizeof(unsigned), (unsigned[]){__VA_ARGS__})

/* A script of frames: each add() is one frame of the flow. */
static unsigned slot;
static uint32_t seq;
static uint16_t id;
static void begin(void)
{
    gro_begin(&gro, arena);
    slot = 0;
    seq = 1000;
    id = 1;
}
static uint8_t *add(const struct flow *flow, uint32_t payload_len, uint8_t flags)
{
    uint8_t *at = arena + slot * SLOT;
    const uint32_t len = build(at, flow, payload_len, seq, id++, flags, (uint8_t)slot);
    gro_add(&gro, slot++ * SLOT, len, 0, true);
    seq += payload_len;
    return at;
}

static void test_tcp_rules(void)
{
    for (int v6 = 0; v6 < 2; v6++) {
        const struct flow flow = {.v6 = v6, .sport = 1, .dport = 2, .options = 12};
        const struct flow other = {.v6 = v6, .sport = 3, .dport = 2, .options = 12};
        const struct flow marked = {.v6 = v6, .sport = 1, .dport = 2, .options = 12, .tos = 3};
        const struct flow optionless = {.v6 = v6, .sport = 1, .dport = 2};

        begin(); /* a short frame is the last one */
        add(&flow, 500, 0x10), add(&flow, 500, 0x10), add(&flow, 100, 0x10), add(&flow, 500, 0x10);
        EXPECT(3, 1);
        begin(); /* a longer one does not fit */
        add(&flow, 500, 0x10), add(&flow, 501, 0x10);
        EXPECT(1, 1);
        begin(); /* PSH and FIN end a packet and stay in it */
        add(&flow, 500, 0x10), add(&flow, 500, 0x18), add(&flow, 500, 0x10), add(&flow, 9, 0x11);
        if (EXPECT(2, 2)) {
            uint8_t out[VNET_PACKET_MAX];
            struct vnet_hdr hdr;
            assemble(0, &hdr, out);
            CHECK_EQUAL(out[gro.packet[0].l4 + TCP_FLAGS_AT], 0x18);
            assemble(1, &hdr, out);
            CHECK_EQUAL(out[gro.packet[1].l4 + TCP_FLAGS_AT], 0x11);
        }
        begin(); /* a hole in the sequence, also backwards */
        add(&flow, 500, 0x10), seq += 500, add(&flow, 500, 0x10), seq -= 1500,
            add(&flow, 500, 0x10);
        EXPECT(1, 1, 1);
        begin(); /* two flows in turns */
        add(&flow, 500, 0x10), seq = 7, add(&other, 500, 0x10);
        seq = 1500, add(&flow, 500, 0x10), seq = 507, add(&other, 500, 0x10);
        id = 1;
        CHECK_EQUAL(gro.count, v6 ? 2 : 4); /* IPv4 identifications jump here */
        begin();                            /* SYN, RST, URG */
        add(&flow, 500, 0x12), add(&flow, 500, 0x14), add(&flow, 500, 0x30);
        EXPECT(1, 1, 1);
        begin(); /* a pure ACK is not overtaken */
        add(&flow, 500, 0x10), add(&flow, 0, 0x10), add(&flow, 500, 0x10);
        EXPECT(1, 1, 1);
        begin(); /* CWR opens a packet and marks it; ECE has to be the same */
        add(&flow, 500, 0x90), add(&flow, 500, 0x10), add(&flow, 500, 0x90), add(&flow, 500, 0x50);
        if (EXPECT(2, 1, 1)) {
            uint8_t out[VNET_PACKET_MAX];
            struct vnet_hdr hdr;
            assemble(0, &hdr, out);
            CHECK(hdr.gso_type & VNET_GSO_ECN);
        }
        begin(); /* TOS or traffic class, options */
        add(&flow, 500, 0x10), add(&marked, 500, 0x10), add(&optionless, 500, 0x10);
        EXPECT(1, 1, 1);
        begin(); /* a wrong checksum is handed on as it is, never repaired */
        add(&flow, 500, 0x10);
        build(arena + SLOT, &flow, 500, seq, id, 0x10, 1);
        arena[SLOT + 300] ^= 1;
        gro_add(&gro, SLOT, headers_size(&flow) + 500, 0, true);
        EXPECT(1, 1);
        begin(); /* another TAP */
        add(&flow, 500, 0x10);
        build(arena + SLOT, &flow, 500, seq, id, 0x10, 1);
        gro_add(&gro, SLOT, headers_size(&flow) + 500, 1, true);
        EXPECT(1, 1);
        begin(); /* no packet beyond what an IP header can say */
        for (int k = 0; k < 100; k++)
            add(&flow, 1448, 0x10);
        EXPECT(v6 ? 45 : 45, v6 ? 45 : 45, 10);
    }
}

static void test_udp_rules(void)
{
    for (int v6 = 0; v6 < 2; v6++) {
        const struct flow flow = {.v6 = v6, .udp = true, .sport = 1, .dport = 2};
        begin();
        add(&flow, 500, 0), add(&flow, 500, 0), add(&flow, 100, 0), add(&flow, 100, 0);
        EXPECT(3, 1);
        begin();
        for (int k = 0; k < GRO_UDP_MAX + 1; k++)
            add(&flow, 64, 0);
        EXPECT(GRO_UDP_MAX, 1);
        begin(); /* a TAP that takes no UDP super-segments */
        for (slot = 0; slot < 3; slot++) {
            build(arena + slot * SLOT, &flow, 500, 0, id++, 0, 1);
            gro_add(&gro, slot * SLOT, headers_size(&flow) + 500, 0, false);
        }
        EXPECT(1, 1, 1);
        begin(); /* without a checksum there is nothing to verify, so nothing to renew */
        for (slot = 0; slot < 2; slot++) {
            build(arena + slot * SLOT, &flow, 500, 0, id++, 0, 1);
            wire_put16(arena + slot * SLOT + headers_size(&flow) - 2, 0);
            gro_add(&gro, slot * SLOT, headers_size(&flow) + 500, 0, true);
        }
        EXPECT(1, 1);
    }
}

/* Identifications count up, or stand still where DF makes them meaningless; nothing else joins. */
static void test_ipv4_identification(void)
{
    const struct flow flow = {.sport = 1, .dport = 2};
    begin();
    id = 0xFFFF;
    add(&flow, 500, 0x10), add(&flow, 500, 0x10), add(&flow, 500, 0x10);
    EXPECT(3);
    begin();
    add(&flow, 500, 0x10), id = 1, add(&flow, 500, 0x10), id = 1, add(&flow, 500, 0x10);
    EXPECT(3);
    begin();
    add(&flow, 500, 0x10), id = 9, add(&flow, 500, 0x10);
    EXPECT(1, 1);
    begin();
    add(&flow, 500, 0x10), add(&flow, 500, 0x10), id = 2, add(&flow, 500, 0x10);
    EXPECT(2, 1);
}

/* Fragments and IP options pass alone. */
static void test_left_alone(void)
{
    const struct flow flow = {.sport = 1, .dport = 2};
    begin();
    for (slot = 0; slot < 3; slot++) {
        uint8_t *at = arena + slot * SLOT;
        const uint32_t len = build(at, &flow, 500, seq, id++, 0x10, 1);
        if (slot == 1)
            at[20] |= 0x20; /* MF */
        wire_put16(at + 24, 0);
        wire_put16(at + 24, (uint16_t)~slow_sum(0, at + 14, IPV4_SIZE));
        gro_add(&gro, slot * SLOT, len, 0, true);
        seq += 500;
    }
    CHECK_EQUAL(gro.count, 3);
}

/* Ethernet padding of a short frame does not become payload. */
static void test_padding(void)
{
    const struct flow flow = {.sport = 1, .dport = 2};
    begin();
    for (slot = 0; slot < 3; slot++) {
        build(arena + slot * SLOT, &flow, 3, seq, id++, 0x10, (uint8_t)slot);
        memset(arena + slot * SLOT + 57, 0xEE, 3);
        gro_add(&gro, slot * SLOT, 60, 0, true);
        seq += 3;
    }
    if (EXPECT(3)) {
        uint8_t out[VNET_PACKET_MAX];
        struct vnet_hdr hdr;
        CHECK_EQUAL(assemble(0, &hdr, out), 54 + 9);
        CHECK(memchr(out + 54, 0xEE, 9) == NULL);
    }
}

/* Random mixed flows with loss and disorder: all frames come out again, in the order of their
 * flow, when what was joined is cut; and the checksum field is what the kernel expects. */
static void test_cut_again(void)
{
    static uint8_t out[VNET_PACKET_MAX], frame[VNET_PACKET_MAX];
    for (int round = 0; round < 400; round++) {
        struct flow flows[3] = {random_flow(), random_flow(), random_flow()};
        uint32_t seqs[3] = {1, 0xFFFFF000U, 77};
        uint16_t ids[3] = {0xFFF8, 1, 500};
        uint32_t lens[SLOTS];
        unsigned flow_of[SLOTS];
        const unsigned frames = 1 + random_below(SLOTS);
        const unsigned size = 1 + random_below(1400);
        unsigned joined = 0;

        for (unsigned f = 0; f < 3; f++)
            flows[f].sport = (uint16_t)(100 + f);
        gro_begin(&gro, arena);
        for (unsigned i = 0; i < frames; i++) {
            const unsigned f = flow_of[i] = random_below(3);
            const uint32_t payload_len = random_below(10) ? size : random_below(size + 1);
            if (random_below(15) == 0)
                seqs[f] += size;
            lens[i] = build(arena + i * SLOT, &flows[f], payload_len, seqs[f], ids[f]++,
                            random_below(12) ? 0x10 : 0x18, (uint8_t)i);
            seqs[f] += payload_len;
        }
        memcpy(before, arena, sizeof arena);
        for (unsigned i = 0; i < frames; i++)
            gro_add(&gro, i * SLOT, lens[i], 0, true);

        bool seen[SLOTS] = {false};
        unsigned at[3] = {0, 0, 0}; /* next frame to look at, by flow */
        for (unsigned p = 0; p < gro.count; p++) {
            struct vnet_hdr hdr;
            struct gso gso;
            const uint32_t len = assemble(p, &hdr, out);
            CHECK(gso_plan(&gso, &hdr, out, len));
            CHECK_EQUAL(gso.segments, gro.packet[p].count);
            joined += gro.packet[p].count > 1;
            for (uint32_t k = 0; k < gso.segments; k++) {
                const uint32_t n = gso_cut(&gso, k, frame);
                const uint8_t *l4 = frame + (frame[12] == 8 ? 34 : 54);
                const unsigned f = wire_get16(l4) - 100U;
                CHECK(f < 3);
                if (f >= 3)
                    return;
                while (at[f] < frames && flow_of[at[f]] != f)
                    at[f]++;
                const unsigned i = at[f]++;
                CHECK(i < frames && !seen[i]);
                if (i >= frames)
                    return;
                seen[i] = true;
                CHECK_EQUAL(n, lens[i]);
                CHECK(memcmp(frame, before + i * SLOT, n) == 0);
            }
        }
        for (unsigned i = 0; i < frames; i++)
            CHECK(seen[i]);
        if (frames == SLOTS && size > 10)
            CHECK(joined > 0);
    }
}

/* Octets from the wire, whatever they are, in memory of exactly their size. */
static void test_rubbish(void)
{
    for (int round = 0; round < 20000; round++) {
        const struct flow flow = random_flow();
        uint8_t *one = NULL;
        uint32_t len = build(arena, &flow, random_below(200), 1, 1, 0x10, 3);
        for (unsigned k = random_below(4); k > 0; k--)
            arena[random_below(80)] = (uint8_t)random_below(256);
        if (random_below(2))
            len = random_below(len + 1);
        one = malloc(2 * len + 1);
        memcpy(one, arena, len);
        memcpy(one + len, arena, len);
        gro_begin(&gro, one);
        gro_add(&gro, 0, len, 0, true);
        gro_add(&gro, len, len, 0, true);
        struct vnet_hdr hdr;
        struct gro_piece pieces[GRO_FRAMES];
        for (unsigned i = 0; i < gro.count; i++)
            CHECK(gro_finish(&gro, i, &hdr, pieces) >= 1);
        free(one);
    }
}

int main(void)
{
    test_tcp_rules();
    test_udp_rules();
    test_ipv4_identification();
    test_left_alone();
    test_padding();
    test_cut_again();
    test_rubbish();
    return check_report("gro");
}
