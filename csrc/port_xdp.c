/*
 * port_xdp: AF_XDP on queue 0 of the device, by system calls alone (no libbpf, no compiler).
 *
 *     UMEM = tx arena, then rx arena: one mapping, so that frames are built where the device reads
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
 * everything else to the kernel; so does MACsec on a queue without a socket, where the packet
 * socket takes it. It is attached by a link that dies with the file descriptor, so with us.
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
    RING = 4096,       /* descriptors; a power of two. All regions' frames fit */
    RX_CHUNKS = 4096,  /* what the fill ring holds */
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

struct port_xdp {
    int fd, map_fd, program_fd, link_fd;
    uint8_t *umem;
    size_t umem_size;
    bool sg;
    struct ring tx, completion, rx, fill;
    unsigned region;                     /* the next batch's */
    unsigned in_flight[PORT_TX_REGIONS]; /* descriptors */
    uint64_t taken[PORT_BATCH * 4];      /* rx chunks to give back */
    unsigned taken_count;
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

static int attach(struct port *port, bool frags)
{
    struct port_xdp *xdp = port->xdp;
    union bpf_attr map = {
        .map_type = BPF_MAP_TYPE_XSKMAP, .key_size = 4, .value_size = 4, .max_entries = 1};
    const uint32_t queue = 0;

    xdp->map_fd = bpf(BPF_MAP_CREATE, &map);
    if (xdp->map_fd < 0)
        return port_errno(errno);
    xdp->program_fd = load_program(xdp->map_fd, frags);
    if (xdp->program_fd < 0)
        return port_errno(errno);
    union bpf_attr update = {
        .map_fd = (uint32_t)xdp->map_fd, .key = (uintptr_t)&queue, .value = (uintptr_t)&xdp->fd};
    if (bpf(BPF_MAP_UPDATE_ELEM, &update) < 0)
        return port_errno(errno);
    union bpf_attr link = {0};
    link.link_create.prog_fd = (uint32_t)xdp->program_fd;
    link.link_create.target_ifindex = (uint32_t)port->ifindex;
    link.link_create.attach_type = BPF_XDP;
    xdp->link_fd = bpf(BPF_LINK_CREATE, &link);
    return xdp->link_fd < 0 ? port_errno(errno) : 0;
}

/* ---- the socket ----------------------------------------------------------------------------- */

static int bind_socket(struct port *port)
{
    struct port_xdp *xdp = port->xdp;
    const bool jumbo = port->frame_max > CHUNK - RX_HEADROOM;
    struct sockaddr_xdp here = {.sxdp_family = AF_XDP, .sxdp_ifindex = (uint32_t)port->ifindex};
    struct xdp_options options;
    socklen_t size = sizeof options;

    /* Zero-copy needs the driver; SG needs Linux 6.6. The best that binds is taken. */
    static const uint16_t ways[] = {XDP_ZEROCOPY | XDP_USE_SG, XDP_COPY | XDP_USE_SG, XDP_ZEROCOPY,
                                    XDP_COPY};
    for (unsigned i = 0; i < sizeof ways / sizeof ways[0]; i++) {
        xdp->sg = ways[i] & XDP_USE_SG;
        if (jumbo && !xdp->sg)
            continue;
        here.sxdp_flags = ways[i] | XDP_USE_NEED_WAKEUP;
        if (bind(xdp->fd, (const struct sockaddr *)&here, sizeof here) == 0) {
            if (getsockopt(xdp->fd, SOL_XDP, XDP_OPTIONS, &options, &size) == 0)
                port->zero_copy = options.flags & XDP_OPTIONS_ZEROCOPY;
            return 0;
        }
    }
    return port_errno(errno);
}

static int open_socket(struct port *port)
{
    struct port_xdp *xdp = port->xdp;
    const int entries = RING, budget = PORT_BATCH * 4;
    struct xdp_umem_reg umem = {
        .addr = (uintptr_t)xdp->umem, .len = xdp->umem_size, .chunk_size = CHUNK, .headroom = 0};
    struct xdp_mmap_offsets at;
    socklen_t size = sizeof at;

    xdp->fd = socket(AF_XDP, SOCK_RAW | SOCK_CLOEXEC, 0);
    if (xdp->fd < 0)
        return port_errno(errno);
    if (setsockopt(xdp->fd, SOL_XDP, XDP_UMEM_REG, &umem, sizeof umem) < 0 ||
        setsockopt(xdp->fd, SOL_XDP, XDP_UMEM_FILL_RING, &entries, sizeof entries) < 0 ||
        setsockopt(xdp->fd, SOL_XDP, XDP_UMEM_COMPLETION_RING, &entries, sizeof entries) < 0 ||
        setsockopt(xdp->fd, SOL_XDP, XDP_TX_RING, &entries, sizeof entries) < 0 ||
        setsockopt(xdp->fd, SOL_XDP, XDP_RX_RING, &entries, sizeof entries) < 0 ||
        getsockopt(xdp->fd, SOL_XDP, XDP_MMAP_OFFSETS, &at, &size) < 0)
        return port_errno(errno);
    /* Frames that one system call sends, in copy mode; older kernels know 32 only. */
    (void)setsockopt(xdp->fd, SOL_XDP, XDP_MAX_TX_SKB_BUDGET, &budget, sizeof budget);
    int error = ring_map(&xdp->tx, xdp->fd, &at.tx, sizeof(struct xdp_desc), XDP_PGOFF_TX_RING);
    if (!error)
        error = ring_map(&xdp->rx, xdp->fd, &at.rx, sizeof(struct xdp_desc), XDP_PGOFF_RX_RING);
    if (!error)
        error = ring_map(&xdp->fill, xdp->fd, &at.fr, sizeof(uint64_t),
                         (off_t)XDP_UMEM_PGOFF_FILL_RING);
    if (!error)
        error = ring_map(&xdp->completion, xdp->fd, &at.cr, sizeof(uint64_t),
                         (off_t)XDP_UMEM_PGOFF_COMPLETION_RING);
    return error;
}

int port_xdp_open(struct port *port)
{
    struct port_xdp *xdp = calloc(1, sizeof *xdp);
    if (!xdp)
        return port_errno(ENOMEM);
    port->xdp = xdp;
    xdp->fd = xdp->map_fd = xdp->program_fd = xdp->link_fd = -1;

    /* The arenas move into the UMEM: [tx regions | rx chunks | slots to copy frames together]. */
    const size_t rx_chunks = (size_t)RX_CHUNKS * CHUNK;
    const size_t slots = (port->rx_size + CHUNK - 1) / CHUNK * CHUNK;
    xdp->umem_size = port->tx_size + rx_chunks + slots;
    void *umem = mmap(NULL, xdp->umem_size, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (umem == MAP_FAILED)
        return port_errno(errno);
    xdp->umem = umem;
    int error = open_socket(port);
    if (error)
        return error;
    for (uint32_t i = 0; i < RX_CHUNKS; i++)
        *address(&xdp->fill, i) = port->tx_size + (uint64_t)i * CHUNK;
    store(xdp->fill.producer, RX_CHUNKS);
    error = bind_socket(port);
    if (!error && port->path == PORT_XDP)
        error = attach(port, xdp->sg);
    if (error)
        return error;
    munmap(port->tx_arena, port->tx_size);
    munmap(port->rx_arena, port->rx_size);
    port->tx_arena = port->rx_arena = xdp->umem;
    port->rx_slots = (uint32_t)(port->tx_size + rx_chunks);
    port->chunk = CHUNK;
    close(port->tx_fd);
    port->tx_fd = xdp->fd;
    return 0;
}

static void ring_unmap(struct ring *ring)
{
    if (ring->map)
        munmap(ring->map, ring->size);
}

void port_xdp_close(struct port *port)
{
    struct port_xdp *xdp = port->xdp;
    const int fds[] = {xdp->link_fd, xdp->program_fd, xdp->map_fd};
    for (unsigned i = 0; i < sizeof fds / sizeof fds[0]; i++)
        if (fds[i] >= 0)
            close(fds[i]);
    if (port->tx_arena == xdp->umem) {
        port->tx_arena = port->rx_arena = NULL;
        port->tx_fd = -1;
    }
    if (xdp->fd >= 0)
        close(xdp->fd);
    ring_unmap(&xdp->tx);
    ring_unmap(&xdp->rx);
    ring_unmap(&xdp->fill);
    ring_unmap(&xdp->completion);
    if (xdp->umem)
        munmap(xdp->umem, xdp->umem_size);
    free(xdp);
    port->xdp = NULL;
}

/* ---- out ------------------------------------------------------------------------------------ */

/* Take what has been sent off the completion ring. */
static void complete(struct port_xdp *xdp)
{
    const uint32_t end = load(xdp->completion.producer);
    uint32_t i = *xdp->completion.consumer;
    for (; i != end; i++)
        xdp->in_flight[*address(&xdp->completion, i) / PORT_TX_REGION]--;
    store(xdp->completion.consumer, end);
}

static int kick(struct port_xdp *xdp)
{
    if (sendto(xdp->fd, NULL, 0, MSG_DONTWAIT, NULL, 0) < 0 && errno != EAGAIN && errno != EBUSY &&
        errno != ENOBUFS)
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
        *desc(&xdp->tx, (*at)++) =
            (struct xdp_desc){.addr = from, .len = len, .options = left ? XDP_PKT_CONTD : 0};
        from += len;
    }
    xdp->in_flight[frame->at / PORT_TX_REGION] += last - first + 1;
    return true;
}

int port_xdp_send(struct port *port, const struct frame *frames, unsigned count)
{
    struct port_xdp *xdp = port->xdp;
    uint32_t at = *xdp->tx.producer;
    const uint32_t room_end = load(xdp->tx.consumer) + RING;
    unsigned i = 0;

    for (; i < count; i++) {
        if (!verdict_delivers(frames[i].verdict))
            continue;
        if (!put(xdp, &at, room_end, &frames[i]))
            break;
    }
    store(xdp->tx.producer, at);
    /* In copy mode one call sends what its budget allows, and the ring is to be empty at the end:
     * nobody would send the rest if no further packet came. A driver goes on by itself. */
    uint32_t before = load(xdp->tx.consumer);
    for (unsigned waits = 0; before != at && waits < KICK_WAITS;) {
        const int error = kick(xdp);
        if (error)
            return error;
        const uint32_t now = load(xdp->tx.consumer);
        if (port->zero_copy)
            break;
        if (now == before) {
            struct pollfd room = {.fd = xdp->fd, .events = POLLOUT};
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
    struct xdp_statistics stats = {0};
    socklen_t size = sizeof stats;
    (void)getsockopt(port->xdp->fd, SOL_XDP, XDP_STATISTICS, &stats, &size);
    return stats.rx_dropped + stats.rx_ring_full;
}

/* ---- in ------------------------------------------------------------------------------------- */

int port_xdp_receive(struct port *port, struct frame *frames)
{
    struct port_xdp *xdp = port->xdp;
    const uint32_t end = load(xdp->rx.producer);
    uint32_t i = *xdp->rx.consumer;
    int n = 0;

    xdp->taken_count = 0;
    while (i != end && n < PORT_BATCH) {
        uint32_t parts = 1;
        while (desc(&xdp->rx, i + parts - 1)->options & XDP_PKT_CONTD)
            if (i + parts++ == end)
                goto out; /* the kernel publishes whole frames; do not run beyond in any case */
        if (xdp->taken_count + parts > sizeof xdp->taken / sizeof xdp->taken[0])
            break;
        const struct xdp_desc *first = desc(&xdp->rx, i);
        struct frame frame = {.at = (uint32_t)first->addr};
        if (parts > 1)
            frame.at = port->rx_slots + (uint32_t)n * port->rx_slot + SECY_HEADROOM;
        bool fits = true;
        for (uint32_t k = 0; k < parts; k++) {
            const struct xdp_desc *part = desc(&xdp->rx, i + k);
            xdp->taken[xdp->taken_count++] = part->addr / CHUNK * CHUNK;
            fits = fits && part->len <= port->frame_max - frame.len;
            if (!fits)
                continue;
            if (parts > 1)
                memcpy(xdp->umem + frame.at + frame.len, xdp->umem + part->addr, part->len);
            frame.len += part->len;
        }
        i += parts;
        if (fits)
            frames[n++] = frame;
    }
out:
    store(xdp->rx.consumer, i);
    if (n == 0)
        port_xdp_release(port);
    return n;
}

void port_xdp_release(struct port *port)
{
    struct port_xdp *xdp = port->xdp;
    uint32_t at = *xdp->fill.producer;
    for (unsigned i = 0; i < xdp->taken_count; i++)
        *address(&xdp->fill, at++) = xdp->taken[i];
    store(xdp->fill.producer, at);
    xdp->taken_count = 0;
}

int port_xdp_fd(const struct port *port)
{
    return port->path == PORT_XDP ? port->xdp->fd : -1;
}
