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
    CHANNELS_MAX = 64,                                                     /* of one engine */
    SOURCES = 1 + CHANNELS_MAX * (PORT_FDS_MAX + 1 + ENGINE_FEATURES_MAX), /* of a worker */
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
    struct lane *lane;
    struct queue *queue; /* NULL: the port */
    unsigned index;      /* in the worker's lists */
};

/* What the lanes of a feature may still send, together. */
struct bucket {
    uint64_t rate;           /* octets per second, 0: no limit */
    _Atomic int64_t tokens;  /* octets; below 0 nothing is read */
    _Atomic uint64_t refill; /* ns: when tokens was right */
};

struct feature {
    bool used; /* false: this place is free */
    char device[ENGINE_DEVICE_SIZE];
    uint16_t vid;
    bool uso;
    struct bucket bucket;
};

/* A lane's queue of a feature's TAP. */
struct queue {
    struct source source;
    struct feature *feature;
    int fd;
    bool throttled;
    struct queue *next_throttled; /* of the worker's list */
    uint64_t counters[4];
};

/* One of the lanes of a channel: all that the core that sends and the one that receives need. */
struct lane {
    struct channel *channel;
    struct worker *out_worker, *in_worker;
    unsigned port_fds;
    struct source port_sources[PORT_FDS_MAX];
    struct source clear_source; /* plain frames of an open port: the first lane's */
    struct port port;
    struct secy *out, *in;
    struct queue queues[ENGINE_FEATURES_MAX];
    uint64_t counters[COUNTER_COUNT];
    struct gro gro;
    uint8_t packet[sizeof(struct vnet_hdr) + VNET_PACKET_MAX]; /* as read from a TAP */
};

struct channel {
    struct engine *engine;
    unsigned lane_count;
    struct lane *lanes[ENGINE_LANES_MAX];
    uint64_t workers; /* a bit for each worker that has a lane of it */
    int encoding_an;
    struct feature features[ENGINE_FEATURES_MAX];
    uint8_t by_vid[VIDS];
    uint8_t untagged;
};

struct worker {
    pthread_t thread;
    unsigned number;
    int wake; /* eventfd, so that a request to park is seen at once */
    unsigned count;
    struct pollfd fds[SOURCES];
    struct source *sources[SOURCES]; /* NULL for `wake` */
    struct queue *throttled;         /* queues whose bucket is empty */
    struct engine *engine;
    atomic_bool park;
    atomic_bool stop;
    sem_t parked, go;
};
_Static_assert(ENGINE_WORKERS_MAX <= 64, "a channel's workers are bits of 64");

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

/* Leave a queue unread for a while, so that packets wait in the kernel's queueing discipline and
 * not here. */
static void throttle(struct worker *worker, struct queue *queue)
{
    queue->throttled = true;
    queue->next_throttled = worker->throttled;
    worker->throttled = queue;
    look_at(worker, &queue->source, queue->fd, false);
}

static void release(struct worker *worker, struct queue *queue)
{
    struct queue **at = &worker->throttled;
    while (*at != queue)
        at = &(*at)->next_throttled;
    *at = queue->next_throttled;
    queue->throttled = false;
    look_at(worker, &queue->source, queue->fd, true);
}

/* Refill the bucket by the time that has passed; returns what is in it. */
static int64_t bucket_level(struct bucket *bucket, uint64_t now)
{
    uint64_t refill = atomic_load_explicit(&bucket->refill, memory_order_relaxed);
    const uint64_t passed =
        now > refill ? (now - refill) / 1000 : 0; /* us; the rest counts later */
    int64_t tokens = atomic_load_explicit(&bucket->tokens, memory_order_relaxed), after;

    if (passed == 0 ||
        !atomic_compare_exchange_strong_explicit(&bucket->refill, &refill, refill + passed * 1000,
                                                 memory_order_relaxed, memory_order_relaxed))
        return tokens; /* another lane has just done it */
    const uint64_t burst = bucket->rate / 1000 * BURST_MS;
    const int64_t most = (int64_t)(burst > BURST_MIN ? burst : BURST_MIN);
    do {
        /* An idle second fills any bucket; more would overflow. */
        after = passed > 1000000U ? most : tokens + (int64_t)(bucket->rate * passed / 1000000U);
        after = after > most ? most : after;
    } while (!atomic_compare_exchange_weak_explicit(&bucket->tokens, &tokens, after,
                                                    memory_order_relaxed, memory_order_relaxed));
    return after;
}

static void bucket_set(struct bucket *bucket, uint64_t rate)
{
    bucket->rate = rate;
    atomic_store_explicit(&bucket->tokens, BURST_MIN, memory_order_relaxed);
    atomic_store_explicit(&bucket->refill, now_ns(), memory_order_relaxed);
}

/* Whether the bucket, if there is one, lets another packet out. */
static bool bucket_lets(struct bucket *bucket)
{
    return bucket->rate == 0 || atomic_load_explicit(&bucket->tokens, memory_order_relaxed) > 0;
}

/* Whether a queue of a limited feature may send now; if not it is left alone until it may. */
static bool may_send(struct worker *worker, struct queue *queue, uint64_t now)
{
    const bool may = bucket_level(&queue->feature->bucket, now) > 0;
    if (!may && !queue->throttled)
        throttle(worker, queue);
    return may;
}

/* Send a batch; waits a little for a device that is full, then drops by name. */
static void send_batch(struct lane *lane, const struct frame *frames, unsigned n)
{
    struct port *port = &lane->port;
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
            count(&lane->counters[sent == 0 ? COUNTER_OUT_DROP_PORT_FULL
                                            : COUNTER_OUT_DROP_PORT_ERROR],
                  dropped);
        }
    }
    unsigned delivered = 0;
    for (unsigned i = 0; i < n; i++)
        delivered += verdict_delivers(frames[i].verdict) != 0;
    count(&lane->counters[COUNTER_OUT_FRAMES], delivered - dropped);
    count(&lane->counters[COUNTER_OUT_BATCHES], 1);
}

/* Read one packet of a feature and plan how to cut it. False: nothing waits. */
static bool read_packet(struct worker *worker, struct lane *lane, struct queue *queue,
                        struct gso *gso)
{
    uint8_t *const packet = lane->packet + sizeof(struct vnet_hdr);
    struct vnet_hdr hdr;

    for (;;) {
        const ssize_t got = read(queue->fd, lane->packet, sizeof lane->packet);
        if (got < 0) {
            if (errno != EAGAIN && errno != EINTR) /* somebody deleted the device */
                look_at(worker, &queue->source, queue->fd, false);
            return false;
        }
        const size_t len = (size_t)got - sizeof hdr;
        memcpy(&hdr, lane->packet, sizeof hdr);
        if ((size_t)got > sizeof hdr && gso_plan(gso, &hdr, packet, (uint32_t)len)) {
            count(&queue->counters[0], 1);
            count(&queue->counters[1], len);
            if (queue->feature->bucket.rate)
                atomic_fetch_sub_explicit(&queue->feature->bucket.tokens, (int64_t)len,
                                          memory_order_relaxed);
            return true;
        }
        count(&lane->counters[COUNTER_OUT_DROP_MALFORMED], 1);
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
static void lane_out(struct worker *worker, struct lane *lane, struct queue *queue)
{
    struct feature *feature = queue->feature;
    struct port *port = &lane->port;
    struct frame frames[PORT_BATCH];
    struct gso gso;
    uint32_t segment = 0;
    unsigned waits = 0;
    bool pending = false;

    if (feature->bucket.rate && !may_send(worker, queue, now_ns()))
        return;
    do {
        const int64_t region = port_tx_begin(port);
        if (region < 0) {
            if (waits++ == ROOM_WAITS && pending) {
                count(&lane->counters[COUNTER_OUT_DROP_PORT_FULL], gso.segments - segment);
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
                if (!bucket_lets(&feature->bucket) || !read_packet(worker, lane, queue, &gso))
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
        secy_protect(lane->out, port->tx_arena, frames, n);
        send_batch(lane, frames, n);
    } while (pending);
}
_Static_assert((int)PORT_TX_REGION > SECY_HEADROOM + VNET_PACKET_MAX + SECY_TAILROOM,
               "a region holds the longest packet that stays whole");

/* ---- in ------------------------------------------------------------------------------------- */

static void write_packets(struct lane *lane)
{
    struct gro *gro = &lane->gro;
    struct gro_piece pieces[GRO_FRAMES];
    struct iovec vectors[GRO_FRAMES + 1];
    struct vnet_hdr hdr;

    for (unsigned i = 0; i < gro->count; i++) {
        struct queue *queue = &lane->queues[gro->packet[i].out];
        const unsigned n = gro_finish(gro, i, &hdr, pieces);
        vectors[0] = (struct iovec){&hdr, sizeof hdr};
        for (unsigned k = 0; k < n; k++)
            vectors[k + 1] = (struct iovec){gro->arena + pieces[k].at, pieces[k].len};
        if (writev(queue->fd, vectors, (int)n + 1) < 0) {
            count(&lane->counters[COUNTER_IN_DROP_TAP], gro->packet[i].count);
        } else {
            count(&queue->counters[2], 1);
            count(&queue->counters[3], gro->packet[i].len);
        }
    }
}

static void lane_in(struct lane *lane, bool clear)
{
    const struct channel *channel = lane->channel;
    struct port *port = &lane->port;
    struct gro *gro = &lane->gro;
    struct frame frames[PORT_BATCH];
    unsigned no_feature = 0;

    const int n = clear ? port_clear_receive(port, frames) : port_receive(port, frames);
    if (n <= 0)
        return; /* nothing, or the device is gone: its owner learns that by netlink */
    secy_validate(lane->in, port->rx_arena, frames, (size_t)n);
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
    write_packets(lane);
    if (!clear)
        port_release(port);
    count(&lane->counters[COUNTER_IN_BATCHES], 1);
    count(&lane->counters[COUNTER_IN_FRAMES], (uint64_t)n);
    if (no_feature)
        count(&lane->counters[COUNTER_IN_DROP_NO_FEATURE], no_feature);
}

/* ---- workers -------------------------------------------------------------------------------- */

/* Let those queues go on whose buckets have filled. */
static void release_throttled(struct worker *worker)
{
    const uint64_t now = now_ns();
    struct queue *next;
    for (struct queue *queue = worker->throttled; queue; queue = next) {
        next = queue->next_throttled;
        if (may_send(worker, queue, now))
            release(worker, queue);
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
            if (source->queue)
                lane_out(worker, source->lane, source->queue);
            else
                lane_in(source->lane, source == &source->lane->clear_source);
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

/* A channel's workers stand still all at once: no lane sends under an SA when another does not. */
static void channel_park(struct channel *channel)
{
    struct engine *engine = channel->engine;
    pthread_mutex_lock(&engine->control);
    for (unsigned i = 0; i < engine->count; i++)
        if (channel->workers >> i & 1)
            park(&engine->workers[i]);
}

static void channel_unpark(struct channel *channel)
{
    struct engine *engine = channel->engine;
    for (unsigned i = 0; i < engine->count; i++)
        if (channel->workers >> i & 1)
            unpark(&engine->workers[i]);
    pthread_mutex_unlock(&engine->control);
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

static bool valid(const struct engine *engine, const struct channel_config *config)
{
    if (config->lanes == 0 || config->lanes > ENGINE_LANES_MAX || config->path > ENGINE_XDP ||
        config->secy.frame_max > PORT_FRAME_MAX || config->secy.clear_tags ||
        !config->secy.pop_vlan || !memchr(config->device, 0, sizeof config->device))
        return false;
    for (unsigned i = 0; i < config->lanes; i++)
        if (config->out_worker[i] >= engine->count || config->in_worker[i] >= engine->count)
            return false;
    return true;
}

/* Whether the lane looks at plain frames. */
static bool is_clear(const struct lane *lane)
{
    return lane->port.clear_fd > 0;
}

static void lane_free(struct lane *lane)
{
    port_close(&lane->port);
    secy_free(lane->out);
    secy_free(lane->in);
    free(lane);
}

static int lane_new(struct channel *channel, const struct channel_config *config,
                    const char *backend)
{
    const unsigned number = channel->lane_count;
    struct lane *first = channel->lanes[0];
    struct lane *new = calloc(1, sizeof *new);
    if (!new)
        return ERR_MEMORY;
    new->channel = channel;
    new->out_worker = &channel->engine->workers[config->out_worker[number]];
    new->in_worker = &channel->engine->workers[config->in_worker[number]];
    int error = number ? secy_new_beside(first->out, &new->out)
                       : secy_new(&config->secy, backend, &new->out);
    if (!error)
        error = number ? secy_new_beside(first->in, &new->in)
                       : secy_new(&config->secy, backend, &new->in);
    if (!error) {
        const struct port_order order = {
            .device = config->device,
            .frame_max = config->secy.frame_max,
            .path = (enum port_path)config->path,
            .lane = number,
            .lanes = config->lanes,
        };
        error = port_open(&new->port, &order, number ? &first->port : NULL);
    }
    if (error) {
        lane_free(new);
        return error;
    }
    channel->workers |= UINT64_C(1) << new->out_worker->number;
    channel->workers |= UINT64_C(1) << new->in_worker->number;
    channel->lanes[channel->lane_count++] = new;
    return 0;
}

static void lanes_free(struct channel *channel)
{
    while (channel->lane_count)
        lane_free(channel->lanes[--channel->lane_count]);
}

int channel_new(struct engine *engine, const struct channel_config *config, const char *backend,
                struct channel **channel)
{
    int fds[PORT_FDS_MAX];

    *channel = NULL;
    if (!valid(engine, config) || engine->channels == CHANNELS_MAX)
        return ERR_ARGUMENT;
    struct channel *new = calloc(1, sizeof *new);
    if (!new)
        return ERR_MEMORY;
    new->engine = engine;
    new->encoding_an = -1;
    new->untagged = NO_FEATURE;
    memset(new->by_vid, NO_FEATURE, sizeof new->by_vid);
    int error = 0;
    while (!error && new->lane_count < config->lanes)
        error = lane_new(new, config, backend);
    if (error) {
        lanes_free(new);
        free(new);
        return error;
    }
    channel_park(new);
    for (unsigned i = 0; i < new->lane_count; i++) {
        struct lane *lane = new->lanes[i];
        lane->port_fds = port_rx_fds(&lane->port, fds);
        for (unsigned k = 0; k < lane->port_fds; k++) {
            lane->port_sources[k] = (struct source){.lane = lane};
            watch(lane->in_worker, fds[k], &lane->port_sources[k]);
        }
    }
    engine->channels++;
    channel_unpark(new);
    *channel = new;
    return 0;
}

static void feature_end(struct channel *channel, unsigned i, bool keep)
{
    struct feature *feature = &channel->features[i];
    for (unsigned k = 0; k < channel->lane_count; k++) {
        struct lane *lane = channel->lanes[k];
        struct queue *queue = &lane->queues[i];
        if (queue->throttled)
            release(lane->out_worker, queue);
        unwatch(lane->out_worker, &queue->source);
        tap_close(queue->fd, keep);
        queue->fd = -1;
    }
    if (feature->vid == ENGINE_UNTAGGED)
        channel->untagged = channel->by_vid[0] = NO_FEATURE;
    else
        channel->by_vid[feature->vid] = NO_FEATURE;
    feature->used = false;
}

void channel_free(struct channel *channel, int keep)
{
    if (!channel)
        return;
    channel_park(channel);
    for (unsigned i = 0; i < ENGINE_FEATURES_MAX; i++)
        if (channel->features[i].used)
            feature_end(channel, i, keep != 0);
    for (unsigned i = 0; i < channel->lane_count; i++)
        for (unsigned k = 0; k < channel->lanes[i]->port_fds; k++)
            unwatch(channel->lanes[i]->in_worker, &channel->lanes[i]->port_sources[k]);
    if (is_clear(channel->lanes[0]))
        unwatch(channel->lanes[0]->in_worker, &channel->lanes[0]->clear_source);
    channel->engine->channels--;
    channel_unpark(channel);
    lanes_free(channel);
    free(channel);
}

unsigned channel_lanes(const struct channel *channel)
{
    return channel->lane_count;
}

unsigned channel_path(const struct channel *channel)
{
    return channel->lanes[0]->port.path;
}

int channel_zero_copy(const struct channel *channel)
{
    return channel->lanes[0]->port.zero_copy;
}

const char *channel_backend(const struct channel *channel)
{
    return secy_backend(channel->lanes[0]->out);
}

const char *channel_note(const struct channel *channel)
{
    return secy_note(channel->lanes[0]->out);
}

int channel_feature_add(struct channel *channel, const char *device, unsigned vid, unsigned mtu,
                        uint64_t rate)
{
    unsigned place = 0;
    int fds[ENGINE_LANES_MAX];
    uint8_t mac[6];
    bool uso;

    const bool untagged = vid == ENGINE_UNTAGGED;
    if ((!untagged && (vid == 0 || vid >= VIDS - 1)) || strlen(device) >= ENGINE_DEVICE_SIZE ||
        (untagged ? channel->untagged : channel->by_vid[vid]) != NO_FEATURE)
        return ERR_ARGUMENT;
    while (place < ENGINE_FEATURES_MAX && channel->features[place].used)
        place++;
    if (place == ENGINE_FEATURES_MAX)
        return ERR_ARGUMENT;
    int error = port_mac(channel->lanes[0]->port.name, mac);
    if (!error)
        error = tap_open(device, mtu, mac, channel->lane_count, fds, &uso);
    if (error)
        return error;

    struct feature *feature = &channel->features[place];
    channel_park(channel);
    *feature = (struct feature){.used = true, .vid = (uint16_t)vid, .uso = uso};
    bucket_set(&feature->bucket, rate);
    memcpy(feature->device, device, strlen(device) + 1);
    for (unsigned i = 0; i < channel->lane_count; i++) {
        struct lane *lane = channel->lanes[i];
        struct queue *queue = &lane->queues[place];
        *queue = (struct queue){
            .source = {.lane = lane, .queue = queue}, .feature = feature, .fd = fds[i]};
        watch(lane->out_worker, queue->fd, &queue->source);
    }
    if (untagged)
        channel->untagged = channel->by_vid[0] = (uint8_t)place;
    else
        channel->by_vid[vid] = (uint8_t)place;
    channel_unpark(channel);
    return (int)place;
}

static bool has_feature(const struct channel *channel, unsigned feature)
{
    return feature < ENGINE_FEATURES_MAX && channel->features[feature].used;
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
    bucket_set(&feature->bucket, rate);
    for (unsigned k = 0; k < channel->lane_count; k++)
        if (channel->lanes[k]->queues[i].throttled)
            release(channel->lanes[k]->out_worker, &channel->lanes[k]->queues[i]);
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
        if (!channel->features[i].used)
            continue;
        const int error = tap_set_carrier(channel->lanes[0]->queues[i].fd, on != 0);
        if (error)
            result = error;
    }
    return result;
}

/* ---- the SecY ------------------------------------------------------------------------------- */

/* Every change is made in all lanes while all of them stand still, in the first one first. They
 * have the same tables, so what one refuses all refuse; but setting up a key may also fail for want
 * of memory, in any of them: then the others give theirs back. */

int channel_tx_install(struct channel *channel, unsigned an, const struct secy_key *key,
                       uint64_t next_pn)
{
    unsigned done = 0;
    int error = 0;
    channel_park(channel);
    while (!error && done < channel->lane_count) {
        error = secy_tx_install(channel->lanes[done]->out, an, key, next_pn);
        done += !error;
    }
    while (error && done > 0)
        secy_tx_delete(channel->lanes[--done]->out, an);
    channel_unpark(channel);
    return error;
}

int channel_tx_enable(struct channel *channel, unsigned an)
{
    int error = 0;
    channel_park(channel);
    for (unsigned i = 0; !error && i < channel->lane_count; i++)
        error = secy_tx_enable(channel->lanes[i]->out, an);
    if (!error)
        channel->encoding_an = (int)an;
    channel_unpark(channel);
    return error;
}

int channel_tx_delete(struct channel *channel, unsigned an, uint64_t *next_pn)
{
    int error = 0;
    channel_park(channel);
    if (next_pn)
        *next_pn = secy_tx_next_pn(channel->lanes[0]->out, an);
    for (unsigned i = 0; !error && i < channel->lane_count; i++)
        error = secy_tx_delete(channel->lanes[i]->out, an);
    if (!error && channel->encoding_an == (int)an)
        channel->encoding_an = -1;
    channel_unpark(channel);
    return error;
}

/* A call on the receiving SecY of each lane. */
#define IN_ALL_LANES(call)                                                                         \
    do {                                                                                           \
        int error = 0;                                                                             \
        channel_park(channel);                                                                     \
        for (unsigned i = 0; !error && i < channel->lane_count; i++) {                             \
            struct secy *in = channel->lanes[i]->in;                                               \
            error = (call);                                                                        \
        }                                                                                          \
        channel_unpark(channel);                                                                   \
        return error;                                                                              \
    } while (0)

int channel_rx_add(struct channel *channel, const uint8_t sci[8])
{
    IN_ALL_LANES(secy_rx_add(in, sci));
}

int channel_rx_remove(struct channel *channel, const uint8_t sci[8])
{
    IN_ALL_LANES(secy_rx_remove(in, sci));
}

int channel_rx_install(struct channel *channel, const uint8_t sci[8], unsigned an,
                       const struct secy_key *key, uint64_t lowest_pn)
{
    unsigned done = 0;
    int error = 0;
    channel_park(channel);
    while (!error && done < channel->lane_count) {
        error = secy_rx_install(channel->lanes[done]->in, sci, an, key, lowest_pn);
        done += !error;
    }
    while (error && done > 0)
        secy_rx_delete(channel->lanes[--done]->in, sci, an);
    channel_unpark(channel);
    return error;
}

int channel_rx_enable(struct channel *channel, const uint8_t sci[8], unsigned an, int active)
{
    IN_ALL_LANES(secy_rx_enable(in, sci, an, active));
}

int channel_rx_raise(struct channel *channel, const uint8_t sci[8], unsigned an, uint64_t lowest_pn)
{
    IN_ALL_LANES(secy_rx_raise(in, sci, an, lowest_pn));
}

int channel_rx_delete(struct channel *channel, const uint8_t sci[8], unsigned an)
{
    IN_ALL_LANES(secy_rx_delete(in, sci, an));
}

int channel_set_clear(struct channel *channel, int clear)
{
    struct lane *first = channel->lanes[0];
    int error = 0;

    channel_park(channel);
    if (clear && !is_clear(first)) {
        error = port_clear_open(&first->port);
        if (!error) {
            first->clear_source = (struct source){.lane = first};
            watch(first->in_worker, first->port.clear_fd, &first->clear_source);
        }
    } else if (!clear && is_clear(first)) {
        unwatch(first->in_worker, &first->clear_source);
        port_clear_close(&first->port);
    }
    for (unsigned i = 0; !error && i < channel->lane_count; i++) {
        secy_set_clear(channel->lanes[i]->out, clear);
        secy_set_clear(channel->lanes[i]->in, clear);
    }
    channel_unpark(channel);
    return error;
}

int channel_set_confidentiality(struct channel *channel, int encrypt, unsigned offset)
{
    int error = 0;

    channel_park(channel);
    for (unsigned i = 0; !error && i < channel->lane_count; i++) {
        error = secy_set_confidentiality(channel->lanes[i]->out, encrypt, offset);
        if (!error)
            error = secy_set_confidentiality(channel->lanes[i]->in, encrypt, offset);
    }
    channel_unpark(channel);
    return error;
}

int channel_encoding_an(const struct channel *channel)
{
    return channel->encoding_an;
}

uint64_t channel_tx_next_pn(const struct channel *channel, unsigned an)
{
    return secy_tx_next_pn(channel->lanes[0]->out, an);
}

uint64_t channel_rx_lowest_pn(struct channel *channel, const uint8_t sci[8], unsigned an)
{
    channel_park(channel);
    const uint64_t lowest = secy_rx_lowest_pn(channel->lanes[0]->in, sci, an);
    channel_unpark(channel);
    return lowest;
}

/* ---- counters ------------------------------------------------------------------------------- */

uint64_t channel_secy_counter(const struct channel *channel, unsigned i)
{
    uint64_t sum = 0;
    for (unsigned k = 0; k < channel->lane_count; k++)
        sum += secy_counter(channel->lanes[k]->out, i) + secy_counter(channel->lanes[k]->in, i);
    return sum;
}

uint64_t channel_lane_counter(struct channel *channel, unsigned lane, unsigned i)
{
    if (lane >= channel->lane_count || i >= COUNTER_COUNT)
        return 0;
    if (i == COUNTER_IN_DROP_OVERRUN)
        return port_overruns(&channel->lanes[lane]->port);
    return __atomic_load_n(&channel->lanes[lane]->counters[i], __ATOMIC_RELAXED);
}

uint64_t channel_counter(struct channel *channel, unsigned i)
{
    uint64_t sum = 0;
    for (unsigned k = 0; k < channel->lane_count; k++)
        sum += channel_lane_counter(channel, k, i);
    return sum;
}

const char *engine_counter_name(unsigned i)
{
    return i < COUNTER_COUNT ? counter_names[i] : NULL;
}

uint64_t feature_counter(const struct channel *channel, unsigned feature, unsigned i)
{
    uint64_t sum = 0;
    if (!has_feature(channel, feature) || i >= 4)
        return 0;
    for (unsigned k = 0; k < channel->lane_count; k++)
        sum += __atomic_load_n(&channel->lanes[k]->queues[feature].counters[i], __ATOMIC_RELAXED);
    return sum;
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
