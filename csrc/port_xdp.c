/*
 * port_xdp: AF_XDP on the queues of the device, by system calls alone (no libbpf, no compiler).
 *
 *     lane 0   queue 0: sends and receives   queue n: receives   queue 2n: receives ...
 *     lane 1   queue 1: sends and receives   queue n+1 ...                       (of n lanes)
 *
 * Every receive queue has a socket: which one a frame comes in by is the NIC's choice. A lane sends
 * by its first socket. Where only sending is by AF_XDP there is that one alone, and no program.
 *
 * Each socket has a UMEM: tx arena, then rx arena, one mapping, so that frames are built where the
 * device reads.
 *
 *     tx: regions 0..3 |batch|batch|batch|batch|   a region is free again when all its descriptors
 *                                                  have come back on the completion ring
 *     rx: chunks of 4096 octets, given to the fill ring, taken from the rx ring
 *
 * A descriptor must not cross a 4096-octet chunk, so a frame is one descriptor for each chunk that
 * it touches (XDP_USE_SG, Linux 6.6). Each costs the kernel a page in copy mode; port->chunk tells
 * the engine to lay frames so that they cross as few as possible, and none that fits into one. A
 * received frame of several chunks is copied together into a slot, one of one chunk is validated
 * where it lies.
 *
 * The program on the device is 12 instructions: EtherType 0x88E5 goes to the socket of its queue,
 * everything else to the kernel; so does MACsec on a queue without a socket (one that was added
 * while we run), where the packet socket takes it. It is attached by a link that dies with the file
 * descriptor, so with us; the first lane holds it.
 */
#define _GNU_SOURCE
#include "port.h"

#include <errno.h>
#include <linux/bpf.h>
#include <linux/if_link.h>
#include <linux/if_xdp.h>
#include <poll.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "wire.h"

#ifndef XDP_USE_SG /* Linux 6.6 */
#define XDP_USE_SG    (1 << 4)
#define XDP_PKT_CONTD (1 << 0)
#endif
#ifndef BPF_F_XDP_HAS_FRAGS /* Linux 5.18 */
#define BPF_F_XDP_HAS_FRAGS (1U << 5)
#endif
#ifndef XDP_MAX_TX_SKB_BUDGET /* Linux 6.18 */
#define XDP_MAX_TX_SKB_BUDGET 9
#endif

enum {
    CHUNK = 4096,
    RING = 4096,         /* descriptors; a power of two. All regions' frames fit */
    RX_CHUNKS = 4096,    /* of all sockets of a lane; what one fill ring holds */
    RX_CHUNKS_MIN = 512, /* of one socket */
    BUSY_WAITS = 20,     /* for a queue that was just given up */
    BUSY_WAIT_MS = 10,
    KICK_WAITS = 3,    /* ms for a device that takes nothing */
    RX_HEADROOM = 256, /* XDP_PACKET_HEADROOM: the kernel leaves it in front of each frame */
};

/* One ring shared with the kernel: producer and consumer count up and wrap. */
struct ring {
    uint32_t *producer, *consumer;
    void *entries;
    void *map;
    size_t size;
};

/* One socket, on one queue. */
struct xsk {
    int fd;
    uint32_t queue;
    uint8_t *umem;
    size_t umem_size, tx_size; /* octets; of the whole, and of the tx arena at its start */
    uint32_t rx_chunks, slots; /* chunks behind it; offset of the slots behind them */
    bool sg, zero_copy;
    struct ring tx, completion, rx, fill;
    uint64_t taken[PORT_BATCH * 4]; /* rx chunks to give back */
    unsigned taken_count;
};

struct port_xdp {
    int map_fd, program_fd, link_fd;     /* the first lane's; -1 in the others */
    unsigned region;                     /* the next batch's */
    unsigned in_flight[PORT_TX_REGIONS]; /* descriptors */
    unsigned turn;                       /* socket that is looked at first next time */
    unsigned count;
    struct xsk xsk[]; /* the first one sends, too */
};

static uint32_t load(const uint32_t *at)
{
    return __atomic_load_n(at, __ATOMIC_ACQUIRE);
}

static void store(uint32_t *at, uint32_t value)
{
    __atomic_store_n(at, value, __ATOMIC_RELEASE);
}

static int ring_map(struct ring *ring, int fd, const struct xdp_ring_offset *at, size_t entry,
                    off_t page)
{
    ring->size = at->desc + RING * entry;
    ring->map = mmap(NULL, ring->size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, page);
    if (ring->map == MAP_FAILED) {
        ring->map = NULL;
        return port_errno(errno);
    }
    uint8_t *base = ring->map;
    ring->producer = (uint32_t *)(void *)(base + at->producer);
    ring->consumer = (uint32_t *)(void *)(base + at->consumer);
    ring->entries = base + at->desc;
    return 0;
}

static struct xdp_desc *desc(const struct ring *ring, uint32_t i)
{
    return (struct xdp_desc *)ring->entries + (i & (RING - 1));
}

static uint64_t *address(const struct ring *ring, uint32_t i)
{
    return (uint64_t *)ring->entries + (i & (RING - 1));
}

/* ---- the program ---------------------------------------------------------------------------- */

static int bpf(int command, union bpf_attr *attributes)
{
    return (int)syscall(SYS_bpf, command, attributes, sizeof *attributes);
}

#define INSN(c, d, s, o, i)                                                                        \
    ((struct bpf_insn){.code = (c), .dst_reg = (d), .src_reg = (s), .off = (o), .imm = (i)})

/* if (data + 14 <= data_end && type == 0x88E5) return redirect(socket of this queue); else pass */
static int load_program(int map_fd, bool frags)
{
    const struct bpf_insn program[] = {
        INSN(BPF_LDX | BPF_W | BPF_MEM, 2, 1, offsetof(struct xdp_md, data), 0),
        INSN(BPF_LDX | BPF_W | BPF_MEM, 3, 1, offsetof(struct xdp_md, data_end), 0),
        INSN(BPF_ALU64 | BPF_MOV | BPF_X, 4, 2, 0, 0),
        INSN(BPF_ALU64 | BPF_ADD | BPF_K, 4, 0, 0, 14),
        INSN(BPF_JMP | BPF_JGT | BPF_X, 4, 3, 8, 0), /* too short: pass */
        INSN(BPF_LDX | BPF_H | BPF_MEM, 4, 2, 12, 0),
        INSN(BPF_JMP | BPF_JNE | BPF_K, 4, 0, 6, 0xE588), /* as a little endian load sees it */
        INSN(BPF_LDX | BPF_W | BPF_MEM, 2, 1, offsetof(struct xdp_md, rx_queue_index), 0),
        INSN(BPF_LD | BPF_DW | BPF_IMM, 1, BPF_PSEUDO_MAP_FD, 0, map_fd),
        INSN(0, 0, 0, 0, 0),
        INSN(BPF_ALU64 | BPF_MOV | BPF_K, 3, 0, 0, XDP_PASS), /* no socket on this queue */
        INSN(BPF_JMP | BPF_CALL, 0, 0, 0, BPF_FUNC_redirect_map),
        INSN(BPF_JMP | BPF_EXIT, 0, 0, 0, 0),
        INSN(BPF_ALU64 | BPF_MOV | BPF_K, 0, 0, 0, XDP_PASS),
        INSN(BPF_JMP | BPF_EXIT, 0, 0, 0, 0),
    };
    union bpf_attr attributes = {
        .prog_type = BPF_PROG_TYPE_XDP,
        .insn_cnt = sizeof program / sizeof program[0],
        .insns = (uintptr_t)program,
        .license = (uintptr_t) "Apache-2.0",
        .prog_flags = frags ? BPF_F_XDP_HAS_FRAGS : 0,
    };
    return bpf(BPF_PROG_LOAD, &attributes);
}

static int attach(struct port *port)
{
    struct port_xdp *xdp = port->xdp;
    union bpf_attr map = {.map_type = BPF_MAP_TYPE_XSKMAP,
                          .key_size = 4,
                          .value_size = 4,
                          .max_entries = PORT_QUEUES_MAX};

    xdp->map_fd = bpf(BPF_MAP_CREATE, &map);
    if (xdp->map_fd < 0)
        return port_errno(errno);
    xdp->program_fd = load_program(xdp->map_fd, xdp->xsk[0].sg);
    if (xdp->program_fd < 0)
        return port_errno(errno);
    union bpf_attr link = {0};
    link.link_create.prog_fd = (uint32_t)xdp->program_fd;
    link.link_create.target_ifindex = (uint32_t)port->ifindex;
    link.link_create.attach_type = BPF_XDP;
    xdp->link_fd = bpf(BPF_LINK_CREATE, &link);
    return xdp->link_fd < 0 ? port_errno(errno) : 0;
}

/* Have the program hand frames of a socket's queue to it; closing the socket takes it back. */
static int show(int map_fd, const struct xsk *xsk)
{
    union bpf_attr update = {
        .map_fd = (uint32_t)map_fd, .key = (uintptr_t)&xsk->queue, .value = (uintptr_t)&xsk->fd};
    return bpf(BPF_MAP_UPDATE_ELEM, &update) < 0 ? port_errno(errno) : 0;
}

/* ---- the sockets ---------------------------------------------------------------------------- */

static int bind_once(const struct port *port, struct xsk *xsk)
{
    const bool jumbo = port->frame_max > CHUNK - RX_HEADROOM;
    struct sockaddr_xdp here = {.sxdp_family = AF_XDP,
                                .sxdp_ifindex = (uint32_t)port->ifindex,
                                .sxdp_queue_id = xsk->queue};
    struct xdp_options options;
    socklen_t size = sizeof options;

    /* Zero-copy needs the driver; SG needs Linux 6.6. The best that binds is taken. */
    static const uint16_t ways[] = {XDP_ZEROCOPY | XDP_USE_SG, XDP_COPY | XDP_USE_SG, XDP_ZEROCOPY,
                                    XDP_COPY};
    for (unsigned i = 0; i < sizeof ways / sizeof ways[0]; i++) {
        xsk->sg = ways[i] & XDP_USE_SG;
        if (jumbo && !xsk->sg)
            continue;
        here.sxdp_flags = ways[i] | XDP_USE_NEED_WAKEUP;
        if (bind(xsk->fd, (const struct sockaddr *)&here, sizeof here) == 0) {
            if (getsockopt(xsk->fd, SOL_XDP, XDP_OPTIONS, &options, &size) == 0)
                xsk->zero_copy = options.flags & XDP_OPTIONS_ZEROCOPY;
            return 0;
        }
    }
    return port_errno(errno);
}

/* A queue whose socket was closed is free a moment later: the kernel takes it apart in the
 * background. */
static int bind_socket(const struct port *port, struct xsk *xsk)
{
    int error = bind_once(port, xsk);
    for (unsigned waits = 0; error == port_errno(EBUSY) && waits < BUSY_WAITS; waits++) {
        (void)poll(NULL, 0, BUSY_WAIT_MS);
        error = bind_once(port, xsk);
    }
    return error;
}

static int open_rings(struct xsk *xsk)
{
    const int entries = RING, budget = PORT_BATCH * 4;
    struct xdp_umem_reg umem = {
        .addr = (uintptr_t)xsk->umem, .len = xsk->umem_size, .chunk_size = CHUNK, .headroom = 0};
    struct xdp_mmap_offsets at;
    socklen_t size = sizeof at;

    xsk->fd = socket(AF_XDP, SOCK_RAW | SOCK_CLOEXEC, 0);
    if (xsk->fd < 0)
        return port_errno(errno);
    if (setsockopt(xsk->fd, SOL_XDP, XDP_UMEM_REG, &umem, sizeof umem) < 0 ||
        setsockopt(xsk->fd, SOL_XDP, XDP_UMEM_FILL_RING, &entries, sizeof entries) < 0 ||
        setsockopt(xsk->fd, SOL_XDP, XDP_UMEM_COMPLETION_RING, &entries, sizeof entries) < 0 ||
        setsockopt(xsk->fd, SOL_XDP, XDP_TX_RING, &entries, sizeof entries) < 0 ||
        setsockopt(xsk->fd, SOL_XDP, XDP_RX_RING, &entries, sizeof entries) < 0 ||
        getsockopt(xsk->fd, SOL_XDP, XDP_MMAP_OFFSETS, &at, &size) < 0)
        return port_errno(errno);
    /* Frames that one system call sends, in copy mode; older kernels know 32 only. */
    (void)setsockopt(xsk->fd, SOL_XDP, XDP_MAX_TX_SKB_BUDGET, &budget, sizeof budget);
    int error = ring_map(&xsk->tx, xsk->fd, &at.tx, sizeof(struct xdp_desc), XDP_PGOFF_TX_RING);
    if (!error)
        error = ring_map(&xsk->rx, xsk->fd, &at.rx, sizeof(struct xdp_desc), XDP_PGOFF_RX_RING);
    if (!error)
        error = ring_map(&xsk->fill, xsk->fd, &at.fr, sizeof(uint64_t),
                         (off_t)XDP_UMEM_PGOFF_FILL_RING);
    if (!error)
        error = ring_map(&xsk->completion, xsk->fd, &at.cr, sizeof(uint64_t),
                         (off_t)XDP_UMEM_PGOFF_COMPLETION_RING);
    return error;
}

/* UMEM: [tx regions | rx chunks | slots to copy frames together], as far as the socket needs them:
 * `sends`, and `chunks` to receive into. */
static int open_socket(const struct port *port, struct xsk *xsk, bool sends, uint32_t chunks)
{
    const size_t slots = chunks ? (port->slots_size + CHUNK - 1) / CHUNK * CHUNK : 0;

    xsk->tx_size = sends ? port->tx_size : 0;
    xsk->rx_chunks = chunks;
    xsk->slots = (uint32_t)xsk->tx_size + chunks * CHUNK;
    xsk->umem_size = xsk->slots + slots;
    void *umem = mmap(NULL, xsk->umem_size, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (umem == MAP_FAILED)
        return port_errno(errno);
    xsk->umem = umem;
    const int error = open_rings(xsk);
    if (error)
        return error;
    for (uint32_t i = 0; i < chunks; i++)
        *address(&xsk->fill, i) = xsk->tx_size + (uint64_t)i * CHUNK;
    store(xsk->fill.producer, chunks);
    return bind_socket(port, xsk);
}

int port_xdp_open(struct port *port, const struct port *first)
{
    const bool receives = port->path == PORT_XDP;
    const unsigned queues = receives ? port_queues(port->name) : port->lane + 1;
    const unsigned sockets = (queues - port->lane + port->lanes - 1) / port->lanes;
    const uint32_t share = RX_CHUNKS / sockets;
    const uint32_t chunks = !receives ? 0 : share > RX_CHUNKS_MIN ? share : RX_CHUNKS_MIN;
    struct port_xdp *xdp = calloc(1, sizeof *xdp + sockets * sizeof xdp->xsk[0]);
    int error = 0;

    if (!xdp)
        return port_errno(ENOMEM);
    port->xdp = xdp;
    xdp->map_fd = xdp->program_fd = xdp->link_fd = -1;
    for (; !error && xdp->count < sockets; xdp->count++) {
        struct xsk *xsk = &xdp->xsk[xdp->count];
        xsk->fd = -1;
        xsk->queue = port->lane + xdp->count * port->lanes;
        error = open_socket(port, xsk, xdp->count == 0, chunks);
    }
    if (!error && receives && !first)
        error = attach(port);
    for (unsigned i = 0; !error && receives && i < sockets; i++)
        error = show(first ? first->xdp->map_fd : xdp->map_fd, &xdp->xsk[i]);
    if (error)
        return error;
    munmap(port->tx_arena, port->tx_size);
    port->tx_arena = xdp->xsk[0].umem;
    port->chunk = CHUNK;
    port->zero_copy = xdp->xsk[0].zero_copy;
    close(port->tx_fd);
    port->tx_fd = xdp->xsk[0].fd;
    return 0;
}

static void ring_unmap(struct ring *ring)
{
    if (ring->map)
        munmap(ring->map, ring->size);
}

static void close_socket(struct xsk *xsk)
{
    if (xsk->fd >= 0)
        close(xsk->fd);
    ring_unmap(&xsk->tx);
    ring_unmap(&xsk->rx);
    ring_unmap(&xsk->fill);
    ring_unmap(&xsk->completion);
    if (xsk->umem)
        munmap(xsk->umem, xsk->umem_size);
}

void port_xdp_close(struct port *port)
{
    struct port_xdp *xdp = port->xdp;
    const int fds[] = {xdp->link_fd, xdp->program_fd, xdp->map_fd};
    for (unsigned i = 0; i < sizeof fds / sizeof fds[0]; i++)
        if (fds[i] >= 0)
            close(fds[i]);
    if (xdp->count && port->tx_arena == xdp->xsk[0].umem) {
        port->tx_arena = NULL;
        port->tx_fd = -1;
    }
    for (unsigned i = 0; i < xdp->count; i++)
        close_socket(&xdp->xsk[i]);
    free(xdp);
    port->xdp = NULL;
}

unsigned port_xdp_fds(const struct port *port, int *fds)
{
    for (unsigned i = 0; i < port->xdp->count; i++)
        fds[i] = port->xdp->xsk[i].fd;
    return port->xdp->count;
}

/* ---- out ------------------------------------------------------------------------------------ */

/* Take what has been sent off the completion ring. */
static void complete(struct port_xdp *xdp)
{
    struct ring *completion = &xdp->xsk[0].completion;
    const uint32_t end = load(completion->producer);
    uint32_t i = *completion->consumer;
    for (; i != end; i++)
        xdp->in_flight[*address(completion, i) / PORT_TX_REGION]--;
    store(completion->consumer, end);
}

static int kick(const struct port_xdp *xdp)
{
    if (sendto(xdp->xsk[0].fd, NULL, 0, MSG_DONTWAIT, NULL, 0) < 0 && errno != EAGAIN &&
        errno != EBUSY && errno != ENOBUFS)
        return port_errno(errno);
    return 0;
}

int64_t port_xdp_tx_begin(struct port *port)
{
    struct port_xdp *xdp = port->xdp;
    complete(xdp);
    if (xdp->in_flight[xdp->region]) {
        (void)kick(xdp);
        complete(xdp);
        if (xdp->in_flight[xdp->region])
            return -1;
    }
    const unsigned region = xdp->region;
    xdp->region = (region + 1) % PORT_TX_REGIONS;
    return (int64_t)region * PORT_TX_REGION;
}

/* Put one frame on the tx ring; false if there is no room. */
static bool put(struct port_xdp *xdp, uint32_t *at, uint32_t room_end, const struct frame *frame)
{
    const uint32_t first = frame->at / CHUNK, last = (frame->at + frame->len - 1) / CHUNK;
    uint32_t from = frame->at, left = frame->len;

    if (room_end - *at < last - first + 1)
        return false;
    for (uint32_t chunk = first; chunk <= last; chunk++) {
        const uint32_t chunk_left = (chunk + 1) * CHUNK - from;
        const uint32_t len = left < chunk_left ? left : chunk_left;
        left -= len;
        *desc(&xdp->xsk[0].tx, (*at)++) =
            (struct xdp_desc){.addr = from, .len = len, .options = left ? XDP_PKT_CONTD : 0};
        from += len;
    }
    xdp->in_flight[frame->at / PORT_TX_REGION] += last - first + 1;
    return true;
}

int port_xdp_send(struct port *port, const struct frame *frames, unsigned count)
{
    struct port_xdp *xdp = port->xdp;
    struct ring *tx = &xdp->xsk[0].tx;
    uint32_t at = *tx->producer;
    const uint32_t room_end = load(tx->consumer) + RING;
    unsigned i = 0;

    for (; i < count; i++) {
        if (!verdict_delivers(frames[i].verdict))
            continue;
        if (!put(xdp, &at, room_end, &frames[i]))
            break;
    }
    store(tx->producer, at);
    /* In copy mode one call sends what its budget allows, and the ring is to be empty at the end:
     * nobody would send the rest if no further packet came. A driver goes on by itself. */
    uint32_t before = load(tx->consumer);
    for (unsigned waits = 0; before != at && waits < KICK_WAITS;) {
        const int error = kick(xdp);
        if (error)
            return error;
        const uint32_t now = load(tx->consumer);
        if (port->zero_copy)
            break;
        if (now == before) {
            struct pollfd room = {.fd = port->tx_fd, .events = POLLOUT};
            (void)poll(&room, 1, 1);
            waits++;
        }
        before = now;
    }
    complete(xdp);
    return (int)i;
}

uint64_t port_xdp_overruns(const struct port *port)
{
    uint64_t sum = 0;
    for (unsigned i = 0; i < port->xdp->count; i++) {
        struct xdp_statistics stats = {0};
        socklen_t size = sizeof stats;
        (void)getsockopt(port->xdp->xsk[i].fd, SOL_XDP, XDP_STATISTICS, &stats, &size);
        sum += stats.rx_dropped + stats.rx_ring_full;
    }
    return sum;
}

/* ---- in ------------------------------------------------------------------------------------- */

/* Take a batch off one socket's ring. */
static int take(const struct port *port, struct xsk *xsk, struct frame *frames)
{
    const uint32_t end = load(xsk->rx.producer);
    uint32_t i = *xsk->rx.consumer;
    int n = 0;

    while (i != end && n < PORT_BATCH) {
        uint32_t parts = 1;
        while (desc(&xsk->rx, i + parts - 1)->options & XDP_PKT_CONTD)
            if (i + parts++ == end)
                goto out; /* the kernel publishes whole frames; do not run beyond in any case */
        if (xsk->taken_count + parts > sizeof xsk->taken / sizeof xsk->taken[0])
            break;
        const struct xdp_desc *first = desc(&xsk->rx, i);
        struct frame frame = {.at = (uint32_t)first->addr};
        if (parts > 1)
            frame.at = xsk->slots + (uint32_t)n * port->rx_slot + SECY_HEADROOM;
        bool fits = true;
        for (uint32_t k = 0; k < parts; k++) {
            const struct xdp_desc *part = desc(&xsk->rx, i + k);
            xsk->taken[xsk->taken_count++] = part->addr / CHUNK * CHUNK;
            fits = fits && part->len <= port->frame_max - frame.len;
            if (!fits)
                continue;
            if (parts > 1)
                memcpy(xsk->umem + frame.at + frame.len, xsk->umem + part->addr, part->len);
            frame.len += part->len;
        }
        i += parts;
        if (fits)
            frames[n++] = frame;
    }
out:
    store(xsk->rx.consumer, i);
    return n;
}

static void give_back(struct xsk *xsk)
{
    uint32_t at = *xsk->fill.producer;
    for (unsigned i = 0; i < xsk->taken_count; i++)
        *address(&xsk->fill, at++) = xsk->taken[i];
    store(xsk->fill.producer, at);
    xsk->taken_count = 0;
}

int port_xdp_receive(struct port *port, struct frame *frames)
{
    struct port_xdp *xdp = port->xdp;

    for (unsigned i = 0; i < xdp->count; i++) {
        struct xsk *xsk = &xdp->xsk[xdp->turn];
        xdp->turn = (xdp->turn + 1) % xdp->count;
        const int n = take(port, xsk, frames);
        if (n > 0) {
            port->rx_arena = xsk->umem;
            return n;
        }
        give_back(xsk); /* of frames that were too long */
    }
    return 0;
}

void port_xdp_release(struct port *port)
{
    for (unsigned i = 0; i < port->xdp->count; i++)
        give_back(&port->xdp->xsk[i]);
}
