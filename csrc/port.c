/* port: opens a device on the chosen path, and AF_PACKET; port_xdp.c adds AF_XDP. */
#define _GNU_SOURCE
#include "port.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

enum { SOCKET_BUFFER = 16 << 20 }; /* octets: some milliseconds at line rate */

/* A packet socket on the device that receives `protocol` (network order), nothing if that is 0. */
static int packet_socket(int ifindex, uint16_t protocol, int *fd)
{
    const struct sockaddr_ll here = {
        .sll_family = AF_PACKET, .sll_protocol = protocol, .sll_ifindex = ifindex};
    const int size = SOCKET_BUFFER, one = 1;

    *fd = socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (*fd < 0)
        return port_errno(errno);
    if (setsockopt(*fd, SOL_SOCKET, protocol ? SO_RCVBUFFORCE : SO_SNDBUFFORCE, &size,
                   sizeof size) < 0 ||
        setsockopt(*fd, SOL_PACKET, PACKET_QDISC_BYPASS, &one, sizeof one) < 0 ||
        bind(*fd, (const struct sockaddr *)&here, sizeof here) < 0)
        return port_errno(errno);
    return 0;
}

static int map(uint8_t **arena, size_t size)
{
    void *memory =
        mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (memory == MAP_FAILED)
        return port_errno(errno);
    *arena = memory;
    return 0;
}

/* Divide what arrives among the lanes' sockets by receive queue. */
static int join_lanes(struct port *port, const struct port *first)
{
    uint32_t fanout = PACKET_FANOUT_QM << 16;
    socklen_t size = sizeof fanout;

    if (port->lanes == 1)
        return 0;
    fanout |= first ? first->group : (uint32_t)PACKET_FANOUT_FLAG_UNIQUEID << 16;
    if (setsockopt(port->rx_fd, SOL_PACKET, PACKET_FANOUT, &fanout, sizeof fanout) < 0 ||
        getsockopt(port->rx_fd, SOL_PACKET, PACKET_FANOUT, &fanout, &size) < 0)
        return port_errno(errno);
    port->group = (uint16_t)fanout;
    return 0;
}

int port_open(struct port *port, const struct port_order *order, struct port *first)
{
    *port = (struct port){
        .rx_fd = -1,
        .tx_fd = -1,
        .path = order->path,
        .lane = order->lane,
        .lanes = order->lanes,
        .frame_max = order->frame_max,
    };
    strncpy(port->name, order->device, sizeof port->name - 1);
    port->ifindex = (int)if_nametoindex(order->device);
    port->rx_slot = (SECY_HEADROOM + port->frame_max + SECY_TAILROOM + 63) & ~63U;
    port->slots_size = (size_t)port->rx_slot * PORT_BATCH;
    port->tx_size = (size_t)PORT_TX_REGION * PORT_TX_REGIONS;
    int error = port->ifindex ? 0 : port_errno(ENODEV);
    if (!error)
        error = map(&port->tx_arena, port->tx_size);
    if (!error)
        error = map(&port->slots, port->slots_size);
    if (!error)
        error = packet_socket(port->ifindex, htons(ETH_P_MACSEC), &port->rx_fd);
    if (!error)
        error = join_lanes(port, first);
    if (!error)
        error = packet_socket(port->ifindex, 0, &port->tx_fd);
    if (!error && port->path != PORT_PACKET && port->lane >= port_queues(port->name))
        port->path = PORT_PACKET;
    if (!error && port->path != PORT_PACKET)
        error = port_xdp_open(port, first);
    if (error)
        port_close(port);
    return error;
}

void port_close(struct port *port)
{
    if (port->xdp)
        port_xdp_close(port);
    if (port->rx_fd > 0)
        close(port->rx_fd);
    if (port->tx_fd > 0)
        close(port->tx_fd);
    port_clear_close(port);
    if (port->slots)
        munmap(port->slots, port->slots_size);
    if (port->tx_arena)
        munmap(port->tx_arena, port->tx_size);
    *port = (struct port){.rx_fd = -1, .tx_fd = -1};
}

unsigned port_rx_fds(const struct port *port, int fds[PORT_FDS_MAX])
{
    fds[0] = port->rx_fd;
    return 1 + (port->path == PORT_XDP ? port_xdp_fds(port, fds + 1) : 0);
}

int64_t port_tx_begin(struct port *port)
{
    return port->xdp ? port_xdp_tx_begin(port) : 0;
}

int port_send(struct port *port, const struct frame *frames, unsigned count)
{
    struct mmsghdr messages[PORT_BATCH];
    struct iovec vectors[PORT_BATCH];
    uint8_t index[PORT_BATCH];
    unsigned n = 0;

    if (port->xdp)
        return port_xdp_send(port, frames, count);
    for (unsigned i = 0; i < count; i++) {
        if (!verdict_delivers(frames[i].verdict))
            continue;
        vectors[n] = (struct iovec){port->tx_arena + frames[i].at, frames[i].len};
        messages[n].msg_hdr = (struct msghdr){.msg_iov = &vectors[n], .msg_iovlen = 1};
        index[n++] = (uint8_t)i;
    }
    if (n == 0)
        return (int)count;
    const int sent = sendmmsg(port->tx_fd, messages, n, MSG_DONTWAIT);
    if (sent < 0)
        return errno == EAGAIN || errno == ENOBUFS ? index[0] : port_errno(errno);
    return sent == (int)n ? (int)count : index[sent];
}

int port_receive(struct port *port, struct frame *frames)
{
    struct mmsghdr messages[PORT_BATCH];
    struct iovec vectors[PORT_BATCH];

    if (port->path == PORT_XDP) {
        const int n = port_xdp_receive(port, frames);
        if (n != 0)
            return n;
    }
    port->rx_arena = port->slots;
    for (unsigned i = 0; i < PORT_BATCH; i++) {
        vectors[i] = (struct iovec){port->slots + port_slot_at(port, i), port->frame_max};
        messages[i].msg_hdr = (struct msghdr){.msg_iov = &vectors[i], .msg_iovlen = 1};
    }
    const int n = recvmmsg(port->rx_fd, messages, PORT_BATCH, MSG_DONTWAIT, NULL);
    if (n < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : port_errno(errno);
    for (int i = 0; i < n; i++)
        frames[i] =
            (struct frame){.at = port_slot_at(port, (unsigned)i), .len = messages[i].msg_len};
    return n;
}

void port_release(struct port *port)
{
    if (port->path == PORT_XDP)
        port_xdp_release(port);
}

uint64_t port_overruns(struct port *port)
{
    struct tpacket_stats stats; /* reading them resets them */
    socklen_t size = sizeof stats;
    if (getsockopt(port->rx_fd, SOL_PACKET, PACKET_STATISTICS, &stats, &size) == 0)
        port->overruns += stats.tp_drops;
    return port->overruns + (port->xdp ? port_xdp_overruns(port) : 0);
}
