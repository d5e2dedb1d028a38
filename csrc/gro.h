/*
 * gro: joins frames of one TCP or UDP flow that came in a row into one packet for the TAP.
 *
 *     validated frames -> gro_add each -> packets 0 .. gro->count-1 -> gro_finish each -> writev
 *
 * Joined is only what Linux itself would join (net/ipv4/tcp_offload.c, udp_offload.c) and what
 * gso.h would cut again into the same frames: same addresses, ports, TTL, TOS, TCP options,
 * acknowledgement, window and flags; sequence numbers without a gap; all payloads of one size, the
 * last may be shorter; the checksum right (it is verified here, as the joined packet gets a new
 * one); PSH and FIN end a packet; SYN, RST, URG, fragments, IP options and extension headers are
 * left alone. Order within a flow is kept: a frame that does not fit closes what it follows.
 *
 * Payloads are not moved: a packet is a list of pieces of the arena, for writev.
 *
 * Pure: no system call, no allocation. Frames are what a peer sent, so nothing in them is believed.
 */
#ifndef LASTMILE_GRO_H
#define LASTMILE_GRO_H

#include "vnet.h"

enum {
    GRO_FRAMES = 128,  /* frames of one batch, at most */
    GRO_BUCKETS = 64,  /* flows that can be open at once */
    GRO_NONE = 0xFFFF, /* no frame, no packet */
    GRO_UDP_MAX = 64,  /* datagrams in one packet: UDP_MAX_SEGMENTS of older kernels */
};

struct gro_piece {
    uint32_t at;  /* offset in the arena */
    uint32_t len; /* octets */
};

/* gro_packet: one packet for the TAP. */
struct gro_packet {
    uint32_t at;       /* offset of the first frame in the arena */
    uint32_t len;      /* octets, all pieces together */
    uint32_t next_seq; /* TCP: sequence number that continues it */
    uint16_t l3, l4, header;
    uint16_t mss;
    uint16_t next_id;     /* IPv4: identification that continues it */
    uint16_t count;       /* frames */
    uint16_t first, last; /* further frames: list through gro->next */
    uint16_t out;         /* the caller's number of the TAP */
    uint8_t proto;        /* PROTO_TCP, PROTO_UDP, 0: cannot be joined */
    bool open;            /* a next frame may join */
    bool same_id;         /* IPv4: the identification stands still (DF, RFC 6864) */
};

struct gro {
    uint8_t *arena;
    uint16_t count; /* packets */
    uint16_t frames;
    uint16_t bucket[GRO_BUCKETS];
    struct gro_packet packet[GRO_FRAMES];
    struct gro_piece piece[GRO_FRAMES];
    uint16_t next[GRO_FRAMES];
};

/* gro_begin empties the table; frames to come lie in `arena`. */
void gro_begin(struct gro *gro, uint8_t *arena);

/* gro_add takes a frame bound for the TAP `out`; at most GRO_FRAMES of them. UDP is joined only
 * where `udp` says that the TAP takes it (Linux 6.2); TCP any TAP takes. */
void gro_add(struct gro *gro, uint32_t at, uint32_t len, uint16_t out, bool udp);

/* gro_finish completes packet `i`: fills `hdr`, rewrites its headers in the arena where frames
 * were joined, and lists its pieces in order, the first with all headers. Returns the number of
 * pieces, at most GRO_FRAMES. */
unsigned gro_finish(struct gro *gro, unsigned i, struct vnet_hdr *hdr, struct gro_piece *pieces);

#endif
