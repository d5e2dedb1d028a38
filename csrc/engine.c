#define _GNU_SOURCE
#include "engine.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "err.h"
#include "gro.h"
#include "gso.h"
#include "port.h"
#include "verdict.h"

_Static_assert((int)ENGINE_PACKET == (int)PORT_PACKET && (int)ENGINE_XDP_TX == (int)PORT_XDP_TX &&
                   (int)ENGINE_XDP == (int)PORT_XDP,
               "the paths have one numbering");
_Static_assert((int)PORT_BATCH <= (int)GRO_FRAMES, "a batch fits the table of gro");

enum {
    CHANNELS_MAX = 64,                                      /* of one engine */
    SOURCES = 1 + CHANNELS_MAX * (2 + ENGINE_FEATURES_MAX), /* of one worker, at most */
    ROOM_WAIT_MS = 5,      /* one wait for a port that takes no more */
    ROOM_WAITS = 4,        /* then the rest of the batch is dropped */
    BURST_MIN = 256 << 10, /* octets: the bucket of a slow feature still holds super-segments */
    BURST_MS = 5,          /* what a fast feature may send in one go */
    VIDS = 4096,
    NO_FEATURE = 0xFF,
    REGION_ALIGN = 64, /* frames of a batch start on cache lines */
};

/* What happens to packets outside the SecY. */
#define COUNTERS(X)                                                                                \
    X(OUT_BATCHES, "out_batches")                                                                  \
    X(OUT_FRAMES, "out_frames")                   /* handed to the device */                       \
    X(OUT_DROP_MALFORMED, "out_drop_malformed")   /* the TAP's header does not fit its packet */   \
    X(OUT_DROP_PORT_FULL, "out_drop_port_full")   /* the device took no more for 20 ms */          \
    X(OUT_DROP_PORT_ERROR, "out_drop_port_error") /* the device is down or gone */                 \
    X(IN_BATCHES, "in_batches")                                                                    \
    X(IN_FRAMES, "in_frames")                   /* taken from the device */                        \
    X(IN_DROP_NO_FEATURE, "in_drop_no_feature") /* valid, but no feature has its VLAN */           \
    X(IN_DROP_TAP, "in_drop_tap")               /* the kernel did not take it: device down */      \
    X(IN_DROP_OVERRUN, "in_drop_overrun")       /* came faster than they were taken */

enum {
#define COUNTER_ENUM(name, text) COUNTER_##name,
    COUNTERS(COUNTER_ENUM)
#undef COUNTER_ENUM
        COUNTER_COUNT
};

static const char *const counter_names[] = {
#define COUNTER_NAME(name, text) text,
    COUNTERS(COUNTER_NAME)
#undef COUNTER_NAME
};

/* What a worker waits on. */
struct source {
    struct channel *channel;
    struct feature *feature; /* NULL: the port */
    unsigned index;          /* in the worker's lists */
};

struct feature {
    struct source source;
    int fd; /* -1: this place is free */
    char device[ENGINE_DEVICE_SIZE];
    uint16_t vid;
    bool uso;
    bool throttled;
    struct feature *next_throttled; /* of the worker's list */
    uint64_t rate;                  /* octets per second, 0: no limit */
    int64_t tokens;                 /* octets; below 0 nothing is read */
    uint64_t refill;                /* ns: when tokens was right */
    uint64_t counters[4];
};

struct channel {
    struct engine *engine;
    struct worker *out_worker, *in_worker;
    struct source port_source, xdp_source;
    struct port port;
    struct secy *out, *in;
    int encoding_an;
    struct feature features[ENGINE_FEATURES_MAX];
    uint8_t by_vid[VIDS];
    uint8_t untagged;
    uint64_t counters[COUNTER_COUNT];
    struct gro gro;
    uint8_t packet[sizeof(struct vnet_hdr) + VNET_PACKET_MAX]; /* as read from a TAP */
};

struct worker {
    pthread_t thread;
    unsigned number;
    int wake; /* eventfd, so that a request to park is seen at once */
    unsigned count;
    struct pollfd fds[SOURCES];
    struct source *sources[SOURCES]; /* NULL for `wake` */
    struct feature *throttled;       /* features whose bucket is empty */
    struct engine *engine;
    atomic_bool park;
    atomic_bool stop;
    sem_t parked, go;
};

struct engine {
    unsigned channels;
    pthread_mutex_t control; /* one control call at a time; never taken by a worker */
    unsigned count;
    struct worker workers[];
};

static void count(uint64_t *counter, uint64_t add)
{
    __atomic_store_n(counter, __atomic_load_n(counter, __ATOMIC_RELAXED) + add, __ATOMIC_RELAXED);
}

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000U + (uint64_t)t.tv_nsec;
}

/* ---- out ------------------------------------------------------------------------------------ */

/* Lists of what a worker waits on; only changed by itself or while it is parked. poll() and not
 * epoll: an epoll set is called back for each packet that arrives while the worker is busy anyway,
 * which costs more than looking at a few descriptors once a batch. */
static void watch(struct worker *worker, int fd, struct source *source)
{
    source->index = worker->count++;
    worker->sources[source->index] = source;
    worker->fds[source->index] = (struct pollfd){.fd = fd, .events = POLLIN};
}

static void unwatch(struct worker *worker, const struct source *source)
{
    const unsigned last = --worker->count;
    worker->sources[source->index] = worker->sources[last];
    worker->fds[source->index] = worker->fds[last];
    worker->sources[source->index]->index = source->index;
}

/* Stop or go on to look at a source: poll ignores negative descriptors. */
static void look_at(struct worker *worker, const struct source *source, int fd, bool look)
{
    worker->fds[source->index].fd = look ? fd : -1;
}

/* Leave a TAP unread for a while, so that packets wait in the kernel's queueing discipline and not
 * here. */
static void throttle(struct worker *worker, struct feature *feature)
{
    feature->throttled = true;
    feature->next_throttled = worker->throttled;
    worker->throttled = feature;
    look_at(worker, &feature->source, feature->fd, false);
}

static void release(struct worker *worker, struct feature *feature)
{
    struct feature **at = &worker->throttled;
    while (*at != feature)
        at = &(*at)->next_throttled;
    *at = feature->next_throttled;
    feature->throttled = false;
    look_at(worker, &feature->source, feature->fd, true);
}

/* Refill the bucket by the time that has passed; whether the feature may send. */
static bool may_send(struct worker *worker, struct feature *feature, uint64_t now)
{
    const uint64_t passed = now - feature->refill;
    const uint64_t burst = feature->rate / 1000 * BURST_MS;
    const int64_t most = (int64_t)(burst > BURST_MIN ? burst : BURST_MIN);

    feature->refill += passed / 1000 * 1000; /* the rest counts next time */
    /* An idle second fills any bucket; more would overflow. */
    feature->tokens +=
        passed > 1000000000U ? most : (int64_t)(feature->rate * (passed / 1000) / 1000000U);
    if (feature->tokens > most)
        feature->tokens = most;
    if (feature->tokens <= 0 && !feature->throttled)
        throttle(worker, feature);
    return feature->tokens > 0;
}

/* Send a batch; waits a little for a device that is full, then drops by name. */
static void send_batch(struct channel *channel, const struct frame *frames, unsigned n)
{
    struct port *port = &channel->port;
    unsigned done = 0, waits = 0, dropped = 0;

    while (done < n) {
        const int sent = port_send(port, frames + done, n - done);
        if (sent > 0) {
            done += (unsigned)sent;
            waits = 0;
        } else if (sent == 0 && waits++ < ROOM_WAITS) {
            struct pollfd room = {.fd = port->tx_fd, .events = POLLOUT};
            (void)poll(&room, 1, ROOM_WAIT_MS);
        } else {
            for (; done < n; done++)
                dropped += verdict_delivers(frames[done].verdict) != 0;
            count(&channel->counters[sent == 0 ? COUNTER_OUT_DROP_PORT_FULL
                                               : COUNTER_OUT_DROP_PORT_ERROR],
                  dropped);
        }
    }
    unsigned delivered = 0;
    for (unsigned i = 0; i < n; i++)
        delivered += verdict_delivers(frames[i].verdict) != 0;
    count(&channel->counters[COUNTER_OUT_FRAMES], delivered - dropped);
    count(&channel->counters[COUNTER_OUT_BATCHES], 1);
}

/* Read one packet of a feature and plan how to cut it. False: nothing waits. */
static bool read_packet(struct worker *worker, struct channel *channel, struct feature *feature,
                        struct gso *gso)
{
    uint8_t *const packet = channel->packet + sizeof(struct vnet_hdr);
    struct vnet_hdr hdr;

    for (;;) {
        const ssize_t got = read(feature->fd, channel->packet, sizeof channel->packet);
        if (got < 0) {
            if (errno != EAGAIN && errno != EINTR) /* somebody deleted the device */
                look_at(worker, &feature->source, feature->fd, false);
            return false;
        }
        const size_t len = (size_t)got - sizeof hdr;
        memcpy(&hdr, channel->packet, sizeof hdr);
        if ((size_t)got > sizeof hdr && gso_plan(gso, &hdr, packet, (uint32_t)len)) {
            count(&feature->counters[0], 1);
            count(&feature->counters[1], len);
            if (feature->rate)
                feature->tokens -= (int64_t)len;
            return true;
        }
        count(&channel->counters[COUNTER_OUT_DROP_MALFORMED], 1);
    }
}

/* Where the next `size` octets of a batch go: behind `at`, and across as few chunks as possible. */
static uint32_t lay(uint32_t at, uint32_t size, uint32_t chunk)
{
    if (chunk == 0 || at % chunk + size <= chunk)
        return at;
    return (at + chunk - 1) / chunk * chunk;
}

/* One batch, or as many as it takes to empty the last packet read. */
static void channel_out(struct worker *worker, struct channel *channel, struct feature *feature)
{
    struct port *port = &channel->port;
    struct frame frames[PORT_BATCH];
    struct gso gso;
    uint32_t segment = 0;
    unsigned waits = 0;
    bool pending = false;

    if (feature->rate && !may_send(worker, feature, now_ns()))
        return;
    do {
        const int64_t region = port_tx_begin(port);
        if (region < 0) {
            if (waits++ == ROOM_WAITS && pending) {
                count(&channel->counters[COUNTER_OUT_DROP_PORT_FULL], gso.segments - segment);
                return;
            }
            struct pollfd room = {.fd = port->tx_fd, .events = POLLOUT};
            (void)poll(&room, 1, ROOM_WAIT_MS);
            continue;
        }
        waits = 0;
        uint32_t at = (uint32_t)region;
        const uint32_t end = at + PORT_TX_REGION;
        unsigned n = 0;
        for (bool room = true; room && n < PORT_BATCH;) {
            if (!pending) {
                if ((feature->rate && feature->tokens <= 0) ||
                    !read_packet(worker, channel, feature, &gso))
                    break;
                pending = true;
                segment = 0;
            }
            const uint32_t need =
                (SECY_HEADROOM + gso_frame_max(&gso) + SECY_TAILROOM + REGION_ALIGN - 1) &
                ~(uint32_t)(REGION_ALIGN - 1);
            for (; n < PORT_BATCH && segment < gso.segments; segment++) {
                at = lay(at, need, port->chunk);
                room = at + need <= end;
                if (!room)
                    break;
                const uint32_t start = at + SECY_HEADROOM;
                frames[n++] = (struct frame){
                    .at = start,
                    .len = gso_cut(&gso, segment, port->tx_arena + start),
                    .vlan = feature->vid == ENGINE_UNTAGGED ? FRAME_NO_VLAN : feature->vid,
                };
                at += need;
            }
            pending = segment < gso.segments;
        }
        if (n == 0)
            return;
        secy_protect(channel->out, port->tx_arena, frames, n);
        send_batch(channel, frames, n);
    } while (pending);
}
_Static_assert((int)PORT_TX_REGION > SECY_HEADROOM + VNET_PACKET_MAX + SECY_TAILROOM,
               "a region holds the longest packet that stays whole");

/* ---- in ------------------------------------------------------------------------------------- */

static void write_packets(struct channel *channel)
{
    struct gro *gro = &channel->gro;
    struct gro_piece pieces[GRO_FRAMES];
    struct iovec vectors[GRO_FRAMES + 1];
    struct vnet_hdr hdr;

    for (unsigned i = 0; i < gro->count; i++) {
        struct feature *feature = &channel->features[gro->packet[i].out];
        const unsigned n = gro_finish(gro, i, &hdr, pieces);
        vectors[0] = (struct iovec){&hdr, sizeof hdr};
        for (unsigned k = 0; k < n; k++)
            vectors[k + 1] = (struct iovec){gro->arena + pieces[k].at, pieces[k].len};
        if (writev(feature->fd, vectors, (int)n + 1) < 0) {
            count(&channel->counters[COUNTER_IN_DROP_TAP], gro->packet[i].count);
        } else {
            count(&feature->counters[2], 1);
            count(&feature->counters[3], gro->packet[i].len);
        }
    }
}

static void channel_in(struct channel *channel)
{
    struct port *port = &channel->port;
    struct gro *gro = &channel->gro;
    struct frame frames[PORT_BATCH];
    unsigned no_feature = 0;

    const int n = port_receive(port, frames);
    if (n <= 0)
        return; /* nothing, or the device is gone: its owner learns that by netlink */
    secy_validate(channel->in, port->rx_arena, frames, (size_t)n);
    gro_begin(gro, port->rx_arena);
    for (int i = 0; i < n; i++) {
        const struct frame *frame = &frames[i];
        if (!verdict_delivers(frame->verdict))
            continue;
        const uint8_t f =
            frame->vlan == FRAME_NO_VLAN ? channel->untagged : channel->by_vid[frame->vlan % VIDS];
        if (f == NO_FEATURE) {
            no_feature++;
            continue;
        }
        gro_add(gro, frame->at, frame->len, f, channel->features[f].uso);
    }
    write_packets(channel);
    port_release(port);
    count(&channel->counters[COUNTER_IN_BATCHES], 1);
    count(&channel->counters[COUNTER_IN_FRAMES], (uint64_t)n);
    if (no_feature)
        count(&channel->counters[COUNTER_IN_DROP_NO_FEATURE], no_feature);
}

/* ---- workers -------------------------------------------------------------------------------- */

/* Let those features go on whose buckets have filled. */
static void release_throttled(struct worker *worker)
{
    const uint64_t now = now_ns();
    struct feature *next;
    for (struct feature *feature = worker->throttled; feature; feature = next) {
        next = feature->next_throttled;
        if (may_send(worker, feature, now))
            release(worker, feature);
    }
}

static void *run(void *argument)
{
    struct worker *worker = argument;
    bool busy = false;

    while (!atomic_load_explicit(&worker->stop, memory_order_acquire)) {
        if (atomic_load_explicit(&worker->park, memory_order_acquire)) {
            uint64_t drain;
            (void)!read(worker->wake, &drain, sizeof drain);
            sem_post(&worker->parked);
            while (sem_wait(&worker->go) < 0)
                ;
            continue;
        }
        const int timeout = busy ? 0 : worker->throttled ? 1 : -1;
        const int ready = poll(worker->fds, worker->count, timeout);
        if (worker->throttled)
            release_throttled(worker);
        busy = false;
        for (unsigned i = 0, left = ready > 0 ? (unsigned)ready : 0; left && i < worker->count;
             i++) {
            const struct source *source = worker->sources[i];
            if (!worker->fds[i].revents)
                continue;
            left--;
            if (!source)
                continue;
            busy = true;
            if (source->feature)
                channel_out(worker, source->channel, source->feature);
            else
                channel_in(source->channel);
        }
    }
    return NULL;
}

/* park stops a worker between two batches; everything it uses may be changed until unpark. */
static void park(struct worker *worker)
{
    const uint64_t one = 1;
    atomic_store_explicit(&worker->park, true, memory_order_release);
    (void)!write(worker->wake, &one, sizeof one);
    while (sem_wait(&worker->parked) < 0)
        ;
    atomic_store_explicit(&worker->park, false, memory_order_release);
}

static void unpark(struct worker *worker)
{
    sem_post(&worker->go);
}

static void channel_park(struct channel *channel)
{
    pthread_mutex_lock(&channel->engine->control);
    park(channel->out_worker);
    if (channel->in_worker != channel->out_worker)
        park(channel->in_worker);
}

static void channel_unpark(struct channel *channel)
{
    unpark(channel->out_worker);
    if (channel->in_worker != channel->out_worker)
        unpark(channel->in_worker);
    pthread_mutex_unlock(&channel->engine->control);
}

static int worker_start(struct engine *engine, unsigned number, int pin)
{
    struct worker *worker = &engine->workers[number];
    pthread_attr_t attributes;
    sigset_t all, before;
    char name[16];

    worker->engine = engine;
    worker->number = number;
    worker->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (worker->wake < 0)
        return port_errno(errno);
    worker->fds[worker->count++] = (struct pollfd){.fd = worker->wake, .events = POLLIN};
    sem_init(&worker->parked, 0, 0);
    sem_init(&worker->go, 0, 0);

    pthread_attr_init(&attributes);
    if (pin) {
        cpu_set_t core;
        CPU_ZERO(&core);
        CPU_SET(number, &core);
        pthread_attr_setaffinity_np(&attributes, sizeof core, &core);
    }
    sigfillset(&all); /* signals are for the process's first thread */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const int error = pthread_create(&worker->thread, &attributes, run, worker);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    if (error)
        return port_errno(error);
    snprintf(name, sizeof name, "engine-%u", number);
    pthread_setname_np(worker->thread, name);
    return 0;
}

int engine_new(unsigned workers, int pin, struct engine **engine)
{
    *engine = NULL;
    if (workers == 0 || workers > ENGINE_WORKERS_MAX)
        return ERR_ARGUMENT;
    struct engine *new = calloc(1, sizeof *new + workers * sizeof new->workers[0]);
    if (!new)
        return ERR_MEMORY;
    pthread_mutex_init(&new->control, NULL);
    for (; new->count < workers; new->count++) {
        const int error = worker_start(new, new->count, pin);
        if (error) {
            engine_free(new);
            return error;
        }
    }
    *engine = new;
    return 0;
}

void engine_free(struct engine *engine)
{
    if (!engine)
        return;
    for (unsigned i = 0; i < engine->count; i++) {
        struct worker *worker = &engine->workers[i];
        park(worker);
        atomic_store_explicit(&worker->stop, true, memory_order_release);
        unpark(worker);
        pthread_join(worker->thread, NULL);
        close(worker->wake);
        sem_destroy(&worker->parked);
        sem_destroy(&worker->go);
    }
    pthread_mutex_destroy(&engine->control);
    free(engine);
}

/* ---- channels and features ------------------------------------------------------------------ */

const char *engine_error(int code, char *text, size_t size)
{
    if (code <= PORT_SYSTEM) {
        char buffer[128];
        snprintf(text, size, "%s", strerror_r(PORT_SYSTEM - code, buffer, sizeof buffer));
    } else {
        snprintf(text, size, "%s", err_strerror(code));
    }
    return text;
}

int channel_new(struct engine *engine, const struct channel_config *config, const char *backend,
                struct channel **channel)
{
    *channel = NULL;
    if (config->out_worker >= engine->count || config->in_worker >= engine->count ||
        config->path > ENGINE_XDP || config->secy.frame_max > PORT_FRAME_MAX ||
        config->secy.clear_tags || !config->secy.pop_vlan ||
        !memchr(config->device, 0, sizeof config->device))
        return ERR_ARGUMENT;
    if (engine->channels == CHANNELS_MAX)
        return ERR_ARGUMENT;
    struct channel *new = calloc(1, sizeof *new);
    if (!new)
        return ERR_MEMORY;
    new->engine = engine;
    new->out_worker = &engine->workers[config->out_worker];
    new->in_worker = &engine->workers[config->in_worker];
    new->port_source = new->xdp_source = (struct source){.channel = new};
    new->encoding_an = -1;
    new->untagged = NO_FEATURE;
    memset(new->by_vid, NO_FEATURE, sizeof new->by_vid);
    for (unsigned i = 0; i < ENGINE_FEATURES_MAX; i++)
        new->features[i].fd = -1;
    int error = secy_new(&config->secy, backend, &new->out);
    if (!error)
        error = secy_new(&config->secy, backend, &new->in);
    if (!error)
        error = port_open(&new->port, config->device, config->secy.frame_max,
                          (enum port_path)config->path);
    if (error) {
        secy_free(new->out);
        secy_free(new->in);
        free(new);
        return error;
    }
    channel_park(new);
    watch(new->in_worker, new->port.rx_fd, &new->port_source);
    if (new->port.path == PORT_XDP)
        watch(new->in_worker, port_xdp_fd(&new->port), &new->xdp_source);
    engine->channels++;
    channel_unpark(new);
    *channel = new;
    return 0;
}

static void feature_end(struct channel *channel, unsigned i, bool keep)
{
    struct feature *feature = &channel->features[i];
    if (feature->throttled)
        release(channel->out_worker, feature);
    unwatch(channel->out_worker, &feature->source);
    tap_close(feature->fd, keep);
    if (feature->vid == ENGINE_UNTAGGED)
        channel->untagged = channel->by_vid[0] = NO_FEATURE;
    else
        channel->by_vid[feature->vid] = NO_FEATURE;
    feature->fd = -1;
}

void channel_free(struct channel *channel, int keep)
{
    if (!channel)
        return;
    channel_park(channel);
    for (unsigned i = 0; i < ENGINE_FEATURES_MAX; i++)
        if (channel->features[i].fd >= 0)
            feature_end(channel, i, keep != 0);
    unwatch(channel->in_worker, &channel->port_source);
    if (channel->port.path == PORT_XDP)
        unwatch(channel->in_worker, &channel->xdp_source);
    port_close(&channel->port);
    secy_free(channel->out);
    secy_free(channel->in);
    channel->engine->channels--;
    channel_unpark(channel);
    free(channel);
}

unsigned channel_path(const struct channel *channel)
{
    return channel->port.path;
}

int channel_zero_copy(const struct channel *channel)
{
    return channel->port.zero_copy;
}

const char *channel_backend(const struct channel *channel)
{
    return secy_backend(channel->out);
}

const char *channel_note(const struct channel *channel)
{
    return secy_note(channel->out);
}

int channel_feature_add(struct channel *channel, const char *device, unsigned vid, unsigned mtu,
                        uint64_t rate)
{
    unsigned place = 0;
    uint8_t mac[6];
    bool uso;
    int fd;

    const bool untagged = vid == ENGINE_UNTAGGED;
    if ((!untagged && (vid == 0 || vid >= VIDS - 1)) || strlen(device) >= ENGINE_DEVICE_SIZE ||
        (untagged ? channel->untagged : channel->by_vid[vid]) != NO_FEATURE)
        return ERR_ARGUMENT;
    while (place < ENGINE_FEATURES_MAX && channel->features[place].fd >= 0)
        place++;
    if (place == ENGINE_FEATURES_MAX)
        return ERR_ARGUMENT;
    int error = port_mac(channel->port.name, mac);
    if (!error)
        error = tap_open(device, mtu, mac, &fd, &uso);
    if (error)
        return error;

    struct feature *feature = &channel->features[place];
    channel_park(channel);
    *feature = (struct feature){
        .source = {.channel = channel, .feature = feature},
        .fd = fd,
        .vid = (uint16_t)vid,
        .uso = uso,
        .rate = rate,
        .refill = now_ns(),
        .tokens = BURST_MIN,
    };
    memcpy(feature->device, device, strlen(device) + 1);
    if (untagged)
        channel->untagged = channel->by_vid[0] = (uint8_t)place;
    else
        channel->by_vid[vid] = (uint8_t)place;
    watch(channel->out_worker, fd, &feature->source);
    channel_unpark(channel);
    return (int)place;
}

static bool has_feature(const struct channel *channel, unsigned feature)
{
    return feature < ENGINE_FEATURES_MAX && channel->features[feature].fd >= 0;
}

int channel_feature_set(struct channel *channel, unsigned i, unsigned mtu, uint64_t rate)
{
    if (!has_feature(channel, i))
        return ERR_ARGUMENT;
    struct feature *feature = &channel->features[i];
    const int error = tap_set_mtu(feature->device, mtu);
    if (error)
        return error;
    channel_park(channel);
    feature->rate = rate;
    feature->tokens = BURST_MIN;
    feature->refill = now_ns();
    if (feature->throttled)
        release(channel->out_worker, feature);
    channel_unpark(channel);
    return 0;
}

int channel_feature_remove(struct channel *channel, unsigned feature)
{
    if (!has_feature(channel, feature))
        return ERR_ARGUMENT;
    channel_park(channel);
    feature_end(channel, feature, false);
    channel_unpark(channel);
    return 0;
}

int channel_carrier(struct channel *channel, int on)
{
    int result = 0;
    for (unsigned i = 0; i < ENGINE_FEATURES_MAX; i++) {
        if (channel->features[i].fd < 0)
            continue;
        const int error = tap_set_carrier(channel->features[i].fd, on != 0);
        if (error)
            result = error;
    }
    return result;
}

/* ---- the SecY ------------------------------------------------------------------------------- */

int channel_tx_install(struct channel *channel, unsigned an, const struct secy_key *key,
                       uint64_t next_pn)
{
    channel_park(channel);
    const int error = secy_tx_install(channel->out, an, key, next_pn);
    channel_unpark(channel);
    return error;
}

int channel_tx_enable(struct channel *channel, unsigned an)
{
    channel_park(channel);
    const int error = secy_tx_enable(channel->out, an);
    if (!error)
        channel->encoding_an = (int)an;
    channel_unpark(channel);
    return error;
}

int channel_tx_delete(struct channel *channel, unsigned an, uint64_t *next_pn)
{
    channel_park(channel);
    if (next_pn)
        *next_pn = secy_tx_next_pn(channel->out, an);
    const int error = secy_tx_delete(channel->out, an);
    if (!error && channel->encoding_an == (int)an)
        channel->encoding_an = -1;
    channel_unpark(channel);
    return error;
}

int channel_rx_add(struct channel *channel, const uint8_t sci[8])
{
    channel_park(channel);
    const int error = secy_rx_add(channel->in, sci);
    channel_unpark(channel);
    return error;
}

int channel_rx_remove(struct channel *channel, const uint8_t sci[8])
{
    channel_park(channel);
    const int error = secy_rx_remove(channel->in, sci);
    channel_unpark(channel);
    return error;
}

int channel_rx_install(struct channel *channel, const uint8_t sci[8], unsigned an,
                       const struct secy_key *key, uint64_t lowest_pn)
{
    channel_park(channel);
    const int error = secy_rx_install(channel->in, sci, an, key, lowest_pn);
    channel_unpark(channel);
    return error;
}

int channel_rx_enable(struct channel *channel, const uint8_t sci[8], unsigned an, int active)
{
    channel_park(channel);
    const int error = secy_rx_enable(channel->in, sci, an, active);
    channel_unpark(channel);
    return error;
}

int channel_rx_raise(struct channel *channel, const uint8_t sci[8], unsigned an, uint64_t lowest_pn)
{
    channel_park(channel);
    const int error = secy_rx_raise(channel->in, sci, an, lowest_pn);
    channel_unpark(channel);
    return error;
}

int channel_rx_delete(struct channel *channel, const uint8_t sci[8], unsigned an)
{
    channel_park(channel);
    const int error = secy_rx_delete(channel->in, sci, an);
    channel_unpark(channel);
    return error;
}

int channel_encoding_an(const struct channel *channel)
{
    return channel->encoding_an;
}

uint64_t channel_tx_next_pn(const struct channel *channel, unsigned an)
{
    return secy_tx_next_pn(channel->out, an);
}

uint64_t channel_rx_lowest_pn(struct channel *channel, const uint8_t sci[8], unsigned an)
{
    channel_park(channel);
    const uint64_t lowest = secy_rx_lowest_pn(channel->in, sci, an);
    channel_unpark(channel);
    return lowest;
}

/* ---- counters ------------------------------------------------------------------------------- */

uint64_t channel_secy_counter(const struct channel *channel, unsigned i)
{
    return secy_counter(channel->out, i) + secy_counter(channel->in, i);
}

uint64_t channel_counter(struct channel *channel, unsigned i)
{
    if (i >= COUNTER_COUNT)
        return 0;
    if (i == COUNTER_IN_DROP_OVERRUN)
        return port_overruns(&channel->port);
    return __atomic_load_n(&channel->counters[i], __ATOMIC_RELAXED);
}

const char *engine_counter_name(unsigned i)
{
    return i < COUNTER_COUNT ? counter_names[i] : NULL;
}

uint64_t feature_counter(const struct channel *channel, unsigned feature, unsigned i)
{
    if (!has_feature(channel, feature) || i >= 4)
        return 0;
    return __atomic_load_n(&channel->features[feature].counters[i], __ATOMIC_RELAXED);
}

int engine_measure(unsigned path, uint64_t *ns)
{
    return path > ENGINE_XDP ? ERR_ARGUMENT : port_measure((enum port_path)path, ns);
}

int device_carrier(const char *device)
{
    return port_carrier(device);
}

int device_mac(const char *device, uint8_t mac[6])
{
    return port_mac(device, mac);
}
