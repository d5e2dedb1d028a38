/* engine: packets from a TAP reach the wire protected, frames from the wire reach the TAP; control
 * calls in between. The wire is the back of another TAP, in a network namespace of this process.
 * Without root only what needs no device is tested. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "check.h"
#include "engine.h"
#include "err.h"
#include "port.h"
#include "secy.h"

enum { TYPE = 0x88B5, VID = 100, WAIT_MS = 5000, WARM_UP = 45 };

static const uint8_t near_sci[8] = {2, 0, 0, 0, 0, 1, 0, 1}, far_sci[8] = {2, 0, 0, 0, 0, 2, 0, 1};
static const uint8_t sak[32] = "only for this test, 32 octets ..";

static struct secy_config secy_config(const uint8_t sci[8])
{
    struct secy_config config = {.suite = 0x0080C20001000004,
                                 .frame_max = 1600,
                                 .replay_window = 64,
                                 .replay_protect = 1,
                                 .protect = 1,
                                 .encrypt = 1,
                                 .include_sci = 1,
                                 .pop_vlan = 1};
    memcpy(config.sci, sci, 8);
    return config;
}

static struct secy_key key(uint32_t ssci)
{
    return (struct secy_key){.sak = sak, .sak_len = sizeof sak, .ssci = ssci};
}

static void test_without_devices(void)
{
    struct engine *engine;
    struct channel *channel;
    struct channel_config config = {
        .device = "no such dev", .lanes = 1, .secy = secy_config(near_sci)};
    char text[100];

    CHECK_EQUAL(engine_new(0, 0, &engine), ERR_ARGUMENT);
    CHECK(engine == NULL);
    CHECK_EQUAL(engine_new(ENGINE_WORKERS_MAX + 1, 0, &engine), ERR_ARGUMENT);
    for (unsigned workers = 1; workers <= 3; workers++) {
        CHECK_EQUAL(engine_new(workers, 0, &engine), 0);
        config.out_worker[0] = workers - 1;
        CHECK_EQUAL(channel_new(engine, &config, NULL, &channel), PORT_SYSTEM - ENODEV);
        CHECK(channel == NULL);
        config.out_worker[0] = workers;
        CHECK_EQUAL(channel_new(engine, &config, NULL, &channel), ERR_ARGUMENT);
        engine_free(engine);
    }
    CHECK(strcmp(engine_error(PORT_SYSTEM - ENODEV, text, sizeof text), "No such device") == 0);
    CHECK(strcmp(engine_error(ERR_AN, text, sizeof text), err_strerror(ERR_AN)) == 0);
    CHECK(engine_counter_name(0) != NULL);
    CHECK(engine_counter_name(1000) == NULL);
    engine_free(NULL);
    channel_free(NULL, 0);
}

static void up(const char *device)
{
    struct ifreq ifr = {.ifr_flags = IFF_UP};
    const int s = socket(AF_INET, SOCK_DGRAM, 0);
    memcpy(ifr.ifr_name, device, strlen(device) + 1);
    CHECK_EQUAL(ioctl(s, SIOCSIFFLAGS, &ifr), 0);
    close(s);
}

/* The device `name`, which sends what is written to the descriptor that comes back. */
static int make_wire(const char *name)
{
    struct ifreq ifr = {.ifr_flags = IFF_TAP | IFF_NO_PI};
    const int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK);
    memcpy(ifr.ifr_name, name, strlen(name) + 1);
    CHECK_EQUAL(ioctl(fd, TUNSETIFF, &ifr), 0);
    CHECK_EQUAL(tap_set_mtu(name, 1600), 0);
    up(name);
    return fd;
}

/* The kernel's link watch takes up to a second to tell a change of carrier. */
static void await_carrier(const char *device, int on)
{
    for (int ms = 0; device_carrier(device) != on && ms < WAIT_MS; ms += 10)
        (void)poll(NULL, 0, 10);
    CHECK_EQUAL(device_carrier(device), on);
}

/* A socket on a device, for frames of TYPE. */
static int packets(const char *device)
{
    struct sockaddr_ll here = {.sll_family = AF_PACKET,
                               .sll_protocol = __builtin_bswap16(TYPE),
                               .sll_ifindex = (int)if_nametoindex(device)};
    const int s = socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK, 0);
    CHECK_EQUAL(bind(s, (struct sockaddr *)&here, sizeof here), 0);
    return s;
}

/* Read one frame; 0 if none comes. */
static uint32_t take(int fd, uint8_t *frame, size_t size, int wait_ms)
{
    struct pollfd ready = {.fd = fd, .events = POLLIN};
    if (poll(&ready, 1, wait_ms) <= 0)
        return 0;
    const ssize_t got = read(fd, frame, size);
    return got < 0 ? 0 : (uint32_t)got;
}

static uint32_t user_frame(uint8_t *frame, uint32_t payload_len, uint8_t seed)
{
    memcpy(frame, "\xff\xff\xff\xff\xff\xff\x02\0\0\0\0\2", 12);
    wire_put16(frame + 12, TYPE);
    for (uint32_t i = 0; i < payload_len; i++)
        frame[14 + i] = (uint8_t)(seed + i);
    return 14 + payload_len;
}

struct bench {
    struct engine *engine;
    struct channel *channel;
    struct secy *far;
    int wire, tap, feature;
};

static void begin(struct bench *bench, unsigned workers, unsigned lanes, unsigned path)
{
    struct channel_config config = {.device = "wire0",
                                    .path = path,
                                    .lanes = lanes,
                                    .out_worker = {0, workers - 1},
                                    .in_worker = {workers - 1, 0},
                                    .secy = secy_config(near_sci)};
    const struct secy_config far = secy_config(far_sci);
    struct secy_key near_key = key(1), far_key = key(2);

    bench->wire = make_wire("wire0");
    CHECK_EQUAL(engine_new(workers, 0, &bench->engine), 0);
    CHECK_EQUAL(channel_new(bench->engine, &config, NULL, &bench->channel), 0);
    bench->feature = channel_feature_add(bench->channel, "feature0", VID, 1500, 0);
    CHECK(bench->feature >= 0);
    CHECK_EQUAL(channel_feature_add(bench->channel, "feature1", VID, 1500, 0), ERR_ARGUMENT);
    CHECK_EQUAL(channel_feature_add(bench->channel, "feature1", 4095, 1500, 0), ERR_ARGUMENT);
    CHECK_EQUAL(device_carrier("feature0"), 0);
    up("feature0");
    CHECK_EQUAL(channel_carrier(bench->channel, 1), 0);
    await_carrier("feature0", 1);
    bench->tap = packets("feature0");

    CHECK_EQUAL(channel_tx_install(bench->channel, 0, &near_key, 1), 0);
    CHECK_EQUAL(channel_tx_enable(bench->channel, 0), 0);
    CHECK_EQUAL(channel_rx_add(bench->channel, far_sci), 0);
    CHECK_EQUAL(channel_rx_install(bench->channel, far_sci, 1, &far_key, 1), 0);
    CHECK_EQUAL(channel_rx_enable(bench->channel, far_sci, 1, 1), 0);
    CHECK_EQUAL(secy_new(&far, NULL, &bench->far), 0);
    CHECK_EQUAL(secy_tx_install(bench->far, 1, &far_key, 1), 0);
    CHECK_EQUAL(secy_tx_enable(bench->far, 1), 0);
    CHECK_EQUAL(secy_rx_add(bench->far, near_sci), 0);
    CHECK_EQUAL(secy_rx_install(bench->far, near_sci, 0, &near_key, 1), 0);
    CHECK_EQUAL(secy_rx_enable(bench->far, near_sci, 0, 1), 0);

    /* Carrier comes a moment before the queue that makes use of it. */
    uint8_t frame[WARM_UP + 14];
    for (int ms = 0; ms < WAIT_MS; ms += 10) {
        if (feature_counter(bench->channel, (unsigned)bench->feature, 0))
            break;
        CHECK_EQUAL(write(bench->tap, frame, user_frame(frame, WARM_UP, 0)), sizeof frame);
        (void)poll(NULL, 0, 10);
    }
}

static void end(struct bench *bench)
{
    channel_free(bench->channel, 0);
    CHECK_EQUAL(if_nametoindex("feature0"), 0);
    engine_free(bench->engine);
    secy_free(bench->far);
    close(bench->tap);
    close(bench->wire);
}

/* Send a user frame on the TAP and open what arrives on the wire. The kernel's own frames
 * (neighbour discovery) are protected too, and skipped here. */
static void out_once(struct bench *bench, uint32_t payload_len)
{
    uint8_t frame[2000], arena[4096];
    const uint32_t len = user_frame(frame, payload_len, (uint8_t)payload_len);
    CHECK_EQUAL(write(bench->tap, frame, len), len);
    for (;;) {
        struct frame got = {.at = 64, .len = take(bench->wire, arena + 64, 3000, WAIT_MS)};
        CHECK(got.len > 0);
        if (got.len == 0)
            return;
        if (wire_get16(arena + 64 + 12) != 0x88E5)
            continue; /* the kernel's own chatter on the port: the guard's business */
        secy_validate(bench->far, arena, &got, 1);
        CHECK_EQUAL(got.verdict, VERDICT_IN_OK);
        CHECK_EQUAL(got.vlan, VID);
        if (wire_get16(arena + got.at + 12) != TYPE || got.len == 14 + WARM_UP)
            continue;
        CHECK_EQUAL(got.len, len);
        CHECK(memcmp(arena + got.at, frame, len) == 0);
        return;
    }
}

/* Protect a frame with VLAN tag `vid` at the far end, put it on the wire, see what the TAP gives.
 */
static void in_once(struct bench *bench, uint32_t payload_len, uint16_t vid, bool arrives)
{
    uint8_t arena[4096], got[2000];
    struct frame sent = {.at = 64, .vlan = vid};
    sent.len = user_frame(arena + 64, payload_len, 7);
    secy_protect(bench->far, arena, &sent, 1);
    CHECK_EQUAL(sent.verdict, VERDICT_OUT_ENCRYPTED);
    CHECK_EQUAL(write(bench->wire, arena + sent.at, sent.len), sent.len);
    uint32_t len;
    do { /* the socket also shows what we sent on the device ourselves */
        len = take(bench->tap, got, sizeof got, arrives ? WAIT_MS : 100);
    } while (len && got[14] != 7);
    CHECK_EQUAL(len, arrives ? 14 + payload_len : 0);
    user_frame(arena, payload_len, 7);
    if (arrives)
        CHECK(memcmp(got, arena, 14 + payload_len) == 0);
}

static uint64_t counter(const struct bench *bench, const char *name)
{
    for (unsigned i = 0; engine_counter_name(i); i++)
        if (strcmp(engine_counter_name(i), name) == 0)
            return channel_counter(bench->channel, i);
    CHECK(false); /* no such counter */
    return 0;
}

static void test_both_ways(unsigned workers, unsigned lanes, unsigned path)
{
    static const uint32_t sizes[] = {46, 47, 63, 64, 500, 1485, 1486};
    struct bench bench;
    begin(&bench, workers, lanes, path);
    CHECK_EQUAL(channel_path(bench.channel), path);
    CHECK_EQUAL(channel_lanes(bench.channel), lanes);
    for (unsigned i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        out_once(&bench, sizes[i]);
        in_once(&bench, sizes[i], VID, true);
    }
    in_once(&bench, 100, VID + 1, false);
    CHECK_EQUAL(counter(&bench, "in_drop_no_feature"), 1);
    in_once(&bench, 100, FRAME_NO_VLAN, false);
    CHECK_EQUAL(counter(&bench, "in_drop_no_feature"), 2);
    CHECK(feature_counter(bench.channel, (unsigned)bench.feature, 0) >= 7);
    CHECK_EQUAL(feature_counter(bench.channel, (unsigned)bench.feature, 2), 7);

    /* New keys, the old ones gone, and back to work. */
    struct secy_key near_key = key(1);
    uint64_t next_pn = 0;
    CHECK_EQUAL(channel_tx_install(bench.channel, 0, &near_key, 1), ERR_AN_IN_USE);
    CHECK_EQUAL(channel_tx_delete(bench.channel, 0, &next_pn), 0);
    CHECK(next_pn >= 8);
    CHECK_EQUAL(channel_encoding_an(bench.channel), -1);
    uint8_t frame[200];
    CHECK_EQUAL(write(bench.tap, frame, user_frame(frame, 50, 1)), 64);
    for (int ms = 0; ms < WAIT_MS && !channel_secy_counter(bench.channel, VERDICT_OUT_NO_SA); ms++)
        (void)poll(NULL, 0, 1);
    CHECK(channel_secy_counter(bench.channel, VERDICT_OUT_NO_SA) > 0);
    CHECK_EQUAL(channel_tx_install(bench.channel, 0, &near_key, next_pn), 0);
    CHECK_EQUAL(channel_tx_enable(bench.channel, 0), 0);
    out_once(&bench, 300);
    CHECK_EQUAL(channel_feature_set(bench.channel, (unsigned)bench.feature, 1400, 1000), 0);
    out_once(&bench, 300);
    CHECK_EQUAL(channel_feature_set(bench.channel, (unsigned)bench.feature + 1, 1400, 0),
                ERR_ARGUMENT);
    CHECK_EQUAL(channel_feature_remove(bench.channel, (unsigned)bench.feature), 0);
    CHECK_EQUAL(if_nametoindex("feature0"), 0);
    end(&bench);
}

/* A TAP that is kept has the same index for the next channel, and no carrier in between. */
static void test_keep(void)
{
    struct bench bench;
    begin(&bench, 1, 1, ENGINE_PACKET);
    const unsigned index = if_nametoindex("feature0");
    channel_free(bench.channel, 1);
    CHECK_EQUAL(if_nametoindex("feature0"), index);
    await_carrier("feature0", 0);
    struct channel_config config = {.device = "wire0", .lanes = 1, .secy = secy_config(near_sci)};
    CHECK_EQUAL(channel_new(bench.engine, &config, NULL, &bench.channel), 0);
    CHECK_EQUAL(channel_feature_add(bench.channel, "feature0", VID, 1500, 0), 0);
    CHECK_EQUAL(if_nametoindex("feature0"), index);
    end(&bench);
}

/* Send a user frame on the TAP; the first of ours that the wire carries, and its EtherType. */
static uint16_t on_the_wire(struct bench *bench, uint32_t payload_len, uint8_t *frame,
                            uint32_t *len)
{
    uint8_t sent[2000];
    const uint32_t size = user_frame(sent, payload_len, (uint8_t)payload_len);
    CHECK_EQUAL(write(bench->tap, sent, size), size);
    while ((*len = take(bench->wire, frame, 2000, WAIT_MS)) > 0) {
        const uint16_t type = wire_get16(frame + 12);
        const uint32_t more = type == 0x8100 ? 4 : 16 + 4 + 16; /* tag; SecTAG, tag, ICV */
        if ((type == 0x8100 || type == 0x88E5) && *len == size + more)
            return type;
    }
    return 0;
}

/* Put a plain frame with VLAN tag `vid` on the wire; whether the TAP gives it. */
static bool plain_arrives(struct bench *bench, uint16_t vid, uint8_t seed, int wait_ms)
{
    uint8_t frame[204], got[2000];
    uint8_t *start = frame + 4;
    const uint32_t size = user_frame(start, 100, seed) + 4;
    memmove(frame, start, 12);
    wire_put16(frame + 12, 0x8100);
    wire_put16(frame + 14, vid);
    CHECK_EQUAL(write(bench->wire, frame, size), size);
    for (uint32_t len; (len = take(bench->tap, got, sizeof got, wait_ms)) > 0;)
        if (len == size - 4 && got[14] == seed && wire_get16(got + 12) == TYPE)
            return true;
    return false;
}

/* An open port passes plain frames of its VLANs both ways; a protected one never does. What is
 * encrypted can be changed while frames pass. */
static void test_clear(unsigned path)
{
    struct bench bench;
    uint8_t frame[2000];
    uint32_t len;
    begin(&bench, 2, 1, path);
    CHECK(!plain_arrives(&bench, VID, 200, 100));
    CHECK_EQUAL(channel_set_clear(bench.channel, 1), 0);
    CHECK_EQUAL(channel_set_clear(bench.channel, 1), 0);
    CHECK_EQUAL(on_the_wire(&bench, 333, frame, &len), 0x8100);
    CHECK_EQUAL(wire_get16(frame + 14), VID);
    CHECK_EQUAL(frame[18 + 5], (uint8_t)(333 + 5));
    CHECK(plain_arrives(&bench, VID, 201, WAIT_MS));
    CHECK(!plain_arrives(&bench, VID + 1, 202, 100));
    CHECK(channel_secy_counter(bench.channel, VERDICT_OUT_UNTAGGED) > 0);
    CHECK(channel_secy_counter(bench.channel, VERDICT_IN_UNTAGGED) > 0);
    CHECK_EQUAL(channel_set_clear(bench.channel, 0), 0);
    const uint64_t untagged = channel_secy_counter(bench.channel, VERDICT_IN_UNTAGGED);
    CHECK(!plain_arrives(&bench, VID, 203, 100));
    CHECK_EQUAL(channel_secy_counter(bench.channel, VERDICT_IN_UNTAGGED), untagged);
    CHECK_EQUAL(on_the_wire(&bench, 334, frame, &len), 0x88E5);
    out_once(&bench, 335);
    in_once(&bench, 336, VID, true);

    enum { DATA = 14 + 16 - 2 + 4 + 2 }; /* of the user's payload, behind SecTAG, tag and type */
    CHECK_EQUAL(channel_set_confidentiality(bench.channel, 1, 31), ERR_OFFSET);
    CHECK_EQUAL(channel_set_confidentiality(bench.channel, 0, 0), 0);
    CHECK_EQUAL(on_the_wire(&bench, 337, frame, &len), 0x88E5);
    CHECK_EQUAL(frame[14] & (SECTAG_TCI_E | SECTAG_TCI_C), 0);
    CHECK_EQUAL(frame[DATA + 100], (uint8_t)(337 + 100));
    out_once(&bench, 338);
    CHECK_EQUAL(channel_set_confidentiality(bench.channel, 1, 30), 0);
    CHECK_EQUAL(on_the_wire(&bench, 339, frame, &len), 0x88E5);
    CHECK_EQUAL(frame[14] & (SECTAG_TCI_E | SECTAG_TCI_C), SECTAG_TCI_E | SECTAG_TCI_C);
    CHECK_EQUAL(frame[DATA + 23], (uint8_t)(339 + 23)); /* the 30th octet of secure data */
    CHECK(memcmp(frame + DATA + 24, "\x6b\x6c\x6d\x6e\x6f\x70\x71\x72", 8) != 0);
    CHECK_EQUAL(secy_set_confidentiality(bench.far, 1, 30), 0);
    out_once(&bench, 341);
    in_once(&bench, 342, VID, true);
    CHECK_EQUAL(secy_set_confidentiality(bench.far, 1, 0), 0);
    CHECK_EQUAL(channel_set_confidentiality(bench.channel, 1, 0), 0);
    out_once(&bench, 340);
    CHECK_EQUAL(channel_set_clear(bench.channel, 1), 0); /* and freed while it is open */
    end(&bench);
}

int main(void)
{
    test_without_devices();
    if (unshare(CLONE_NEWNET) == 0) {
        for (unsigned workers = 1; workers <= 2; workers++)
            for (unsigned path = ENGINE_PACKET; path <= ENGINE_XDP; path++)
                for (unsigned lanes = 1; lanes <= 2; lanes++)
                    test_both_ways(workers, lanes, path);
        test_keep();
        test_clear(ENGINE_PACKET);
        test_clear(ENGINE_XDP);
    } else {
        printf("engine: not root, devices left out\n");
    }
    return check_report("engine");
}
