/* port_measure: what a path costs on this machine, found out on a wire of our own: a veth pair in
 * a network namespace that only this thread is in, gone when the thread is. */
#define _GNU_SOURCE
#include "port.h"

#include <errno.h>
#include <linux/if_link.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>
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
    ROUNDS = 8,                 /* the best one counts: others run on this machine too */
    BATCHES = 16,               /* in a round */
    FRAME = 1500 + 14 + 4 + 32, /* octets: a full frame of an ordinary MTU, protected */
    EMPTY_READS = 100,          /* then what is missing was lost */
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
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000000U + (uint64_t)t.tv_nsec;
}

/* Send a batch and take it at the other end; returns the frames that came. */
static int pass_batch(struct port *from, struct port *to)
{
    struct frame frames[PORT_BATCH], got[PORT_BATCH];
    const int64_t region = port_tx_begin(from);
    const uint32_t step = from->chunk ? from->chunk / 2 : 2048;
    int n, came = 0;

    if (region < 0)
        return 0;
    for (unsigned i = 0; i < PORT_BATCH; i++) {
        frames[i] = (struct frame){.at = (uint32_t)region + i * step + SECY_HEADROOM,
                                   .len = FRAME,
                                   .verdict = VERDICT_OUT_ENCRYPTED};
        uint8_t *frame = from->tx_arena + frames[i].at;
        memset(frame, 0xFF, 12);
        wire_put16(frame + 12, 0x88E5);
    }
    if (port_send(from, frames, PORT_BATCH) < 0)
        return 0;
    for (unsigned empty = 0; came < PORT_BATCH && empty < EMPTY_READS;) {
        n = port_receive(to, got);
        if (n < 0)
            break;
        empty += n == 0;
        if (n == 0)
            sched_yield();
        came += n;
        port_release(to);
    }
    return came;
}
_Static_assert((int)PORT_TX_REGION >= PORT_BATCH * 2048 + SECY_HEADROOM, "the batch fits a region");

static void measure(struct order *order)
{
    struct port from = {0}, to = {0};

    order->ns = UINT64_MAX;
    order->error = port_open(&from, "m0", FRAME, order->path);
    if (!order->error)
        order->error = port_open(&to, "m1", FRAME, order->path);
    for (unsigned round = 0; !order->error && round < ROUNDS; round++) {
        const uint64_t start = now_ns();
        uint64_t came = 0;
        for (unsigned batch = 0; batch < BATCHES; batch++)
            came += (uint64_t)pass_batch(&from, &to);
        const uint64_t ns = came ? (now_ns() - start) / came : UINT64_MAX;
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
