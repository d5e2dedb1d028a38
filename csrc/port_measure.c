/* port_measure: what a path costs on this machine, found out on a wire of our own: a veth pair in
 * a network namespace that only this thread is in, gone when it is. It sends a super-segment's
 * worth of frames and takes them at the far end, in turn: so what a path saves the sender and costs
 * the receiver is in the sum, and with the thread's own CPU time (the kernel's work for it
 * included) nobody else who has the machine at start decides. */
#define _GNU_SOURCE
#include "port.h"

#include <errno.h>
#include <linux/if_link.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "verdict.h"
#include "wire.h"

enum {
    ROUNDS = 4, /* the best one counts: caches are shared, too */
    ROUND_BATCHES = 40,
    BATCH = 44,                 /* frames: a super-segment of 64 KiB, cut */
    FRAME = 1500 + 14 + 4 + 32, /* octets: a full frame of an ordinary MTU, protected */
};
_Static_assert((int)BATCH <= (int)PORT_BATCH, "a super-segment is one batch");

struct order {
    enum port_path path;
    uint64_t ns; /* per frame */
    int error;
};

struct request {
    struct nlmsghdr header;
    struct ifinfomsg link;
    uint8_t attributes[256];
};

/* Open an attribute behind what is there; close it with nest_end or by its data. */
static struct rtattr *attribute(struct request *request, unsigned short type, const void *data,
                                size_t size)
{
    struct rtattr *attr =
        (struct rtattr *)(void *)((uint8_t *)request + NLMSG_ALIGN(request->header.nlmsg_len));
    attr->rta_type = type;
    attr->rta_len = (unsigned short)RTA_LENGTH(size);
    if (size)
        memcpy(RTA_DATA(attr), data, size);
    request->header.nlmsg_len =
        NLMSG_ALIGN(request->header.nlmsg_len) + (uint32_t)RTA_ALIGN(attr->rta_len);
    return attr;
}

static void nest_end(struct request *request, struct rtattr *attr)
{
    attr->rta_len =
        (unsigned short)((uint8_t *)request + request->header.nlmsg_len - (uint8_t *)attr);
}

static int make_veth(void)
{
    const uint32_t mtu = 2048;
    const struct ifinfomsg peer_link = {0};
    struct request request = {
        .header = {.nlmsg_len = NLMSG_LENGTH(sizeof(struct ifinfomsg)),
                   .nlmsg_type = RTM_NEWLINK,
                   .nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL},
    };
    struct {
        struct nlmsghdr header;
        struct nlmsgerr error;
        uint8_t rest[512];
    } answer;

    attribute(&request, IFLA_IFNAME, "m0", 3);
    attribute(&request, IFLA_MTU, &mtu, sizeof mtu);
    struct rtattr *info = attribute(&request, IFLA_LINKINFO, NULL, 0);
    attribute(&request, IFLA_INFO_KIND, "veth", 4);
    struct rtattr *data = attribute(&request, IFLA_INFO_DATA, NULL, 0);
    struct rtattr *peer = attribute(&request, VETH_INFO_PEER, &peer_link, sizeof peer_link);
    attribute(&request, IFLA_IFNAME, "m1", 3);
    attribute(&request, IFLA_MTU, &mtu, sizeof mtu);
    nest_end(&request, peer);
    nest_end(&request, data);
    nest_end(&request, info);

    const int s = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    if (s < 0)
        return port_errno(errno);
    int error = 0;
    if (send(s, &request, request.header.nlmsg_len, 0) < 0 ||
        recv(s, &answer, sizeof answer, 0) < (ssize_t)NLMSG_LENGTH(sizeof(struct nlmsgerr)))
        error = port_errno(errno);
    else if (answer.error.error)
        error = port_errno(-answer.error.error);
    close(s);
    return error;
}

static int set_up(const char *name)
{
    struct ifreq ifr = {.ifr_flags = IFF_UP};
    const int s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (s < 0)
        return port_errno(errno);
    strncpy(ifr.ifr_name, name, IF_NAMESIZE - 1);
    const int error = ioctl(s, SIOCSIFFLAGS, &ifr) < 0 ? port_errno(errno) : 0;
    close(s);
    return error;
}

/* CPU time of this thread so far. */
static uint64_t cpu_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000000U + (uint64_t)t.tv_nsec;
}

/* Send one batch; returns how many frames of it left. */
static unsigned send_batch(struct port *from)
{
    struct frame frames[BATCH];
    const uint32_t step = from->chunk ? from->chunk / 2 : 2048;
    const int64_t region = port_tx_begin(from);

    if (region < 0)
        return 0;
    for (unsigned i = 0; i < BATCH; i++) {
        frames[i] = (struct frame){.at = (uint32_t)region + i * step + SECY_HEADROOM,
                                   .len = FRAME,
                                   .verdict = VERDICT_OUT_ENCRYPTED};
        uint8_t *frame = from->tx_arena + frames[i].at;
        memset(frame, 0xFF, 12);
        wire_put16(frame + 12, 0x88E5);
    }
    const int sent = port_send(from, frames, BATCH);
    return sent > 0 ? (unsigned)sent : 0;
}
_Static_assert((int)PORT_TX_REGION >= BATCH * 2048, "the batch fits a region");

/* Take what has come; returns how many frames. */
static unsigned receive_all(struct port *to)
{
    struct frame frames[PORT_BATCH];
    unsigned all = 0;
    int n;

    while ((n = port_receive(to, frames)) > 0) {
        port_release(to);
        all += (unsigned)n;
    }
    return all;
}

/* One round; returns ns for each frame that came through. */
static uint64_t round_ns(struct port *from, struct port *to)
{
    const uint64_t start = cpu_ns();
    unsigned came = 0;

    for (unsigned batch = 0; batch < ROUND_BATCHES; batch++) {
        (void)send_batch(from);
        came += receive_all(to);
    }
    const uint64_t passed = cpu_ns() - start;
    (void)poll(NULL, 0, 1); /* some may be under way on another core: not for the next round */
    (void)receive_all(to);
    return came > ROUND_BATCHES * BATCH / 2 ? passed / came : UINT64_MAX;
}

static void measure(struct order *order)
{
    struct port from = {0}, to = {0};
    struct port_order port = {.device = "m0", .frame_max = FRAME, .path = order->path, .lanes = 1};

    order->ns = UINT64_MAX;
    order->error = port_open(&from, &port, NULL);
    port.device = "m1";
    if (!order->error)
        order->error = port_open(&to, &port, NULL);
    for (unsigned round = 0; !order->error && round < ROUNDS; round++) {
        const uint64_t ns = round_ns(&from, &to);
        if (ns < order->ns)
            order->ns = ns;
    }
    if (!order->error && order->ns == UINT64_MAX)
        order->error = port_errno(EIO); /* nothing came through */
    port_close(&from);
    port_close(&to);
}

static void *run(void *argument)
{
    struct order *order = argument;
    if (unshare(CLONE_NEWNET) < 0)
        order->error = port_errno(errno);
    if (!order->error)
        order->error = make_veth();
    if (!order->error)
        order->error = set_up("m0");
    if (!order->error)
        order->error = set_up("m1");
    if (!order->error)
        measure(order);
    return NULL;
}

int port_measure(enum port_path path, uint64_t *ns)
{
    struct order order = {.path = path};
    pthread_t thread;
    const int error = pthread_create(&thread, NULL, run, &order);
    if (error)
        return port_errno(error);
    pthread_join(thread, NULL);
    *ns = order.ns;
    return order.error;
}
