/* port_tap: TAP devices with virtio headers and offloads (Documentation/networking/tuntap.rst). */
#include "port.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/ethtool.h>
#include <linux/if_tun.h>
#include <linux/sockios.h>
#include <net/if_arp.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "vnet.h"

#ifndef IFF_NO_CARRIER /* Linux 6.0; ignored before */
#define IFF_NO_CARRIER 0x0040
#endif
#ifndef TUN_F_USO4 /* Linux 6.2 */
#define TUN_F_USO4 0x20
#define TUN_F_USO6 0x40
#endif

/* One request to the device layer, over a socket made for it. */
static int ask(unsigned long request, struct ifreq *ifr)
{
    const int s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (s < 0)
        return port_errno(errno);
    const int result = ioctl(s, request, ifr) < 0 ? port_errno(errno) : 0;
    close(s);
    return result;
}

static struct ifreq named(const char *name)
{
    struct ifreq ifr = {0};
    strncpy(ifr.ifr_name, name, IF_NAMESIZE - 1);
    return ifr;
}

int port_carrier(const char *device)
{
    struct ifreq ifr = named(device);
    const int error = ask(SIOCGIFFLAGS, &ifr);
    return error ? error : (ifr.ifr_flags & (IFF_UP | IFF_RUNNING)) == (IFF_UP | IFF_RUNNING);
}

unsigned port_queues(const char *device)
{
    struct ethtool_channels channels = {.cmd = ETHTOOL_GCHANNELS};
    struct ifreq ifr = named(device);
    ifr.ifr_data = (void *)&channels;
    if (ask(SIOCETHTOOL, &ifr))
        return 1;
    const unsigned rx = channels.rx_count + channels.combined_count;
    const unsigned tx = channels.tx_count + channels.combined_count;
    const unsigned queues = rx > tx ? rx : tx;
    return queues == 0 ? 1 : queues < PORT_QUEUES_MAX ? queues : PORT_QUEUES_MAX;
}

int port_mac(const char *device, uint8_t mac[6])
{
    struct ifreq ifr = named(device);
    const int error = ask(SIOCGIFHWADDR, &ifr);
    if (!error)
        memcpy(mac, ifr.ifr_hwaddr.sa_data, 6);
    return error;
}

int tap_set_mtu(const char *name, unsigned mtu)
{
    struct ifreq ifr = named(name);
    ifr.ifr_mtu = (int)mtu;
    return ask(SIOCSIFMTU, &ifr);
}

int tap_set_carrier(int fd, bool on)
{
    const unsigned value = on;
    return ioctl(fd, TUNSETCARRIER, &value) < 0 ? port_errno(errno) : 0;
}

static int set_mac(const char *name, const uint8_t mac[6])
{
    struct ifreq ifr = named(name);
    ifr.ifr_hwaddr.sa_family = ARPHRD_ETHER;
    memcpy(ifr.ifr_hwaddr.sa_data, mac, 6);
    return ask(SIOCSIFHWADDR, &ifr);
}

/* Open one queue of the device; makes the device if there is none. */
static int open_queue(const char *name, short flags, int *fd)
{
    struct ifreq ifr = named(name);
    int error = 0;

    *fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (*fd < 0)
        return port_errno(errno);
    ifr.ifr_flags = (short)(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | IFF_NO_CARRIER | flags);
    if (ioctl(*fd, TUNSETIFF, &ifr) < 0) {
        error = port_errno(errno);
        close(*fd);
    }
    return error;
}

/* The first queue; a device with the other kind of queues goes first. */
static int open_first(const char *name, short flags, int *fd)
{
    const int error = open_queue(name, flags, fd);
    if (error != port_errno(EINVAL) || open_queue(name, flags ^ IFF_MULTI_QUEUE, fd) != 0)
        return error;
    tap_close(*fd, false);
    return open_queue(name, flags, fd);
}

static int set_up(const char *name, unsigned mtu, const uint8_t mac[6], int fd, bool *uso)
{
    const unsigned offloads = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;
    const int header = sizeof(struct vnet_hdr);

    if (ioctl(fd, TUNSETVNETHDRSZ, &header) < 0 || ioctl(fd, TUNSETPERSIST, 1UL) < 0)
        return port_errno(errno);
    *uso = ioctl(fd, TUNSETOFFLOAD, (unsigned long)(offloads | TUN_F_USO4 | TUN_F_USO6)) == 0;
    if (!*uso && ioctl(fd, TUNSETOFFLOAD, (unsigned long)offloads) < 0)
        return port_errno(errno);
    int error = tap_set_carrier(fd, false);
    if (!error)
        error = tap_set_mtu(name, mtu);
    if (!error)
        error = set_mac(name, mac);
    return error;
}

int tap_open(const char *name, unsigned mtu, const uint8_t mac[6], unsigned queues, int *fds,
             bool *uso)
{
    const short flags = queues > 1 ? IFF_MULTI_QUEUE : 0;
    unsigned n = 0;
    int error = open_first(name, flags, &fds[0]);

    n += !error;
    if (!error)
        error = set_up(name, mtu, mac, fds[0], uso);
    while (!error && n < queues) {
        error = open_queue(name, flags, &fds[n]);
        n += !error;
    }
    while (error && n > 0)
        tap_close(fds[--n], false);
    return error;
}

void tap_close(int fd, bool keep)
{
    if (!keep)
        ioctl(fd, TUNSETPERSIST, 0UL);
    close(fd);
}
