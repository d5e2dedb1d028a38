/*
 * port_clear: plain frames of a port that is unprotected (should-secure), on a socket of their own.
 *
 * It exists only while the port is open, so that a protected port has no way in for a plain frame.
 * Only frames with an 802.1Q tag are taken: what a feature can be. The kernel has taken the tag off
 * by the time a packet socket sees a frame, and tells it beside; it is put back for the SecY, which
 * decides and counts as with any other frame.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/filter.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "port.h"
#include "vlan.h"

#ifndef PACKET_IGNORE_OUTGOING /* Linux 4.20 */
#define PACKET_IGNORE_OUTGOING 23
#endif

int port_clear_open(struct port *port)
{
    struct sock_filter tagged[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (uint32_t)(SKF_AD_OFF + SKF_AD_VLAN_TAG_PRESENT)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, 0),
        BPF_STMT(BPF_RET | BPF_K, UINT32_MAX),
    };
    const struct sock_fprog program = {.len = sizeof tagged / sizeof tagged[0], .filter = tagged};
    const struct sockaddr_ll here = {
        .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL), .sll_ifindex = port->ifindex};
    const int one = 1;

    if (port->clear_fd > 0)
        return 0;
    const int fd = socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return port_errno(errno);
    if (setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) < 0 ||
        setsockopt(fd, SOL_PACKET, PACKET_AUXDATA, &one, sizeof one) < 0 ||
        setsockopt(fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, &one, sizeof one) < 0 ||
        bind(fd, (const struct sockaddr *)&here, sizeof here) < 0) {
        const int error = port_errno(errno);
        close(fd);
        return error;
    }
    port->clear_fd = fd;
    return 0;
}

void port_clear_close(struct port *port)
{
    if (port->clear_fd > 0)
        close(port->clear_fd);
    port->clear_fd = 0;
}

/* The tag that the kernel took off; false if it was not an 802.1Q tag. */
static bool tag_of(struct msghdr *message, uint16_t *tci)
{
    for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c)) {
        struct tpacket_auxdata aux;
        if (c->cmsg_level != SOL_PACKET || c->cmsg_type != PACKET_AUXDATA)
            continue;
        memcpy(&aux, CMSG_DATA(c), sizeof aux);
        *tci = aux.tp_vlan_tci;
        return (aux.tp_status & TP_STATUS_VLAN_VALID) &&
               (!(aux.tp_status & TP_STATUS_VLAN_TPID_VALID) || aux.tp_vlan_tpid == VLAN_TPID);
    }
    return false;
}

int port_clear_receive(struct port *port, struct frame *frames)
{
    struct mmsghdr messages[PORT_BATCH];
    struct iovec vectors[PORT_BATCH];
    _Alignas(struct cmsghdr) char control[PORT_BATCH][CMSG_SPACE(sizeof(struct tpacket_auxdata))];
    int taken = 0;

    port->rx_arena = port->slots;
    for (unsigned i = 0; i < PORT_BATCH; i++) {
        vectors[i] = (struct iovec){port->slots + port_slot_at(port, i), port->frame_max};
        messages[i].msg_hdr = (struct msghdr){.msg_iov = &vectors[i],
                                              .msg_iovlen = 1,
                                              .msg_control = control[i],
                                              .msg_controllen = sizeof control[i]};
    }
    const int n = recvmmsg(port->clear_fd, messages, PORT_BATCH, MSG_DONTWAIT, NULL);
    if (n < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : port_errno(errno);
    for (int i = 0; i < n; i++) {
        uint8_t *const frame = port->slots + port_slot_at(port, (unsigned)i);
        uint16_t tci;
        if (messages[i].msg_len < ETH_HLEN || !tag_of(&messages[i].msg_hdr, &tci))
            continue;
        uint8_t *const start = vlan_push(frame, VLAN_TPID, tci);
        frames[taken++] = (struct frame){.at = (uint32_t)(start - port->slots),
                                         .len = messages[i].msg_len + VLAN_SIZE};
    }
    return taken;
}
