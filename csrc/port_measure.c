/* port_measure: how fast a path is on this machine, found out on a wire of our own: a veth pair in
 * a network namespace that only these threads are in, gone when they are. One thread sends, one
 * receives, as in the engine: what a path saves one of them it may cost the other. */
#define _GNU_SOURCE
#include "port.h"

#include <errno.h>
#include <linux/if_link.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "verdict.h"
#include "wire.h"

enum {
    ROUNDS = 8, /* the best one counts: others run on this machine too */
    ROUND_NS = 5000000,
    FRAME = 1500 + 14 + 4 + 32, /* octets: a full frame of an ordinary MTU, protected */
    IDLE_MS = 5,
};

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

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000U + (uint64_t)t.tv_nsec;
}

struct receiver {
    struct port port;
    atomic_bool stop;
    atomic_uint_fast64_t frames;
};

static void *receive(void *argument)
{
    struct receiver *receiver = argument;
    struct port *port = &receiver->port;
    struct frame frames[PORT_BATCH];
    struct pollfd ready[PORT_FDS_MAX];
    int fds[PORT_FDS_MAX];
    const unsigned sources = port_rx_fds(port, fds);

    for (unsigned i = 0; i < sources; i++)
        ready[i] = (struct pollfd){.fd = fds[i], .events = POLLIN};

    while (!atomic_load(&receiver->stop)) {
        const int n = port_receive(port, frames);
        if (n > 0) {
            port_release(port);
            atomic_fetch_add(&receiver->frames, (unsigned)n);
        } else {
            (void)poll(ready, sources, IDLE_MS);
        }
    }
    return NULL;
}

/* Send for the time of a round; returns ns for each frame that arrived. */
static uint64_t round_ns(struct port *from, struct receiver *to)
{
    struct frame frames[PORT_BATCH];
    const uint32_t step = from->chunk ? from->chunk / 2 : 2048;
    const uint64_t start = now_ns(), came = atomic_load(&to->frames);
    uint64_t passed;

    do {
        const int64_t region = port_tx_begin(from);
        for (unsigned i = 0; region >= 0 && i < PORT_BATCH; i++) {
            frames[i] = (struct frame){.at = (uint32_t)region + i * step + SECY_HEADROOM,
                                       .len = FRAME,
                                       .verdict = VERDICT_OUT_ENCRYPTED};
            uint8_t *frame = from->tx_arena + frames[i].at;
            memset(frame, 0xFF, 12);
            wire_put16(frame + 12, 0x88E5);
        }
        if (region < 0 || port_send(from, frames, PORT_BATCH) <= 0)
            (void)poll(NULL, 0, 1);
        passed = now_ns() - start;
    } while (passed < ROUND_NS);
    const uint64_t frames_come = atomic_load(&to->frames) - came;
    return frames_come ? passed / frames_come : UINT64_MAX;
}
_Static_assert((int)PORT_TX_REGION >= PORT_BATCH * 2048, "the batch fits a region");

static void measure(struct order *order)
{
    struct port from = {0};
    struct receiver to = {0};
    pthread_t thread;

    order->ns = UINT64_MAX;
    struct port_order port = {.device = "m0", .frame_max = FRAME, .path = order->path, .lanes = 1};
    order->error = port_open(&from, &port, NULL);
    port.device = "m1";
    if (!order->error)
        order->error = port_open(&to.port, &port, NULL);
    if (!order->error)
        order->error = pthread_create(&thread, NULL, receive, &to) ? port_errno(EAGAIN) : 0;
    if (!order->error) {
        for (unsigned round = 0; round < ROUNDS; round++) {
            const uint64_t ns = round_ns(&from, &to);
            if (ns < order->ns)
                order->ns = ns;
        }
        atomic_store(&to.stop, true);
        pthread_join(thread, NULL);
        if (order->ns == UINT64_MAX)
            order->error = port_errno(EIO); /* nothing came through */
    }
    port_close(&from);
    port_close(&to.port);
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
