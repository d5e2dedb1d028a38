/* How fast this core is at AES-GCM alone, backend by backend, and at whole MACsec frames, beside
 * what its ports allow; everything in one program and in rounds, so that ratios come from the same
 * milliseconds.
 *
 *   bench_rounds [--kind cipher|frames] [--backend NAME] [--suite NAME] [--size N | --mix]
 * [--rounds N]
 *                [--cold]
 *
 * Prints JSON, one object a line: in each round the port limit (null without AVX-512), then each
 * backend's sample, both kinds, both directions:
 *   {"round", "suite", "size", "port_limit": {"full_gbps", "bare_gbps"} or null}
 *   {"round", "kind", "memory", "backend", "suite", "direction", "size", "gbps", "mpps"}
 * gbps counts the payload (cipher) or secure data (frames) alone, mpps the frames. One thread,
 * pinned to the core on which it began.
 *
 * Cipher: 28 octets of AAD, payload, ICV; a new PN and its IV a frame; batches of BATCH ops. The
 * peers' figures are these. Frames: the same octets through the SecY: 802.1Q push and pop, SecTAG,
 * PN, IV, AAD, cipher, ICV, replay window, counters; batches of BATCH frames.
 *
 * --mix: frames of 64, 576 and 1500 octets, 7:4:1, in no order; "size" is 0.
 *
 * Both walk a ring of frames that each begin on a cache line, so the payload, 28 octets later, does
 * not. "hot": the ring stays in L2. "cold" (--cold; cipher, gcm-aes-xpn-256, first round): it is
 * larger than the last cache. A pass protects the ring and validates it again; each half is timed
 * by the time stamp counter. A sample is the median of some passes: a pass is short, so those in
 * which the machine did something else fall out. */
#define _GNU_SOURCE
#include "port_limit.h"
#include "secy.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <x86intrin.h>

enum {
    BATCH = 256,
    AAD_LEN = 28,
    HOT_OCTETS = 128 << 10,
    COLD_OCTETS = 48 << 20,
    RING_MULTIPLE = 16, /* frames: no batch ends in a lonely frame */
    BACKENDS_MAX = 8,
    PASSES_MIN = 3,
    PASSES_MAX = 41,
};

static const double sample_ns = 0.4e6; /* of passes, PASSES_MIN and PASSES_MAX permitting */

static const uint32_t sizes[] = {64, 128, 256, 512, 1024, 1500, 4096, 9000};
static const char *const suites[] = {"gcm-aes-128", "gcm-aes-256", "gcm-aes-xpn-128",
                                     "gcm-aes-xpn-256"};
enum { SIZES = sizeof sizes / sizeof *sizes, SUITES = sizeof suites / sizeof *suites };
enum { XPN_256 = 3 };

static const uint8_t sak[32] = {1, 2, 3};
static const uint8_t sci[8] = {2, 0, 0, 0, 0, 10, 0, 1};
static const uint8_t salt[GCM_IV_LEN] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};

static uint32_t key_len(unsigned suite)
{
    return suite & 1 ? 32 : 16;
}

static bool is_xpn(unsigned suite)
{
    return suite >= 2;
}

/* ---- time ---- */

static double ns_per_tick;

static double clock_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static void learn_tick(void)
{
    const double start_ns = clock_ns();
    const uint64_t start = __rdtsc();
    while (clock_ns() - start_ns < 20e6) {
    }
    ns_per_tick = (clock_ns() - start_ns) / (double)(__rdtsc() - start);
}

static int ascending(const void *a, const void *b)
{
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static double median_ns(uint64_t *ticks, unsigned count)
{
    qsort(ticks, count, sizeof *ticks, ascending);
    return (double)ticks[count / 2] * ns_per_tick;
}

/* The passes of one sample, what each half of them took: out, in. */
struct passes {
    uint64_t ticks[PASSES_MAX][2];
    unsigned count;
};

static bool enough(const struct passes *passes)
{
    uint64_t ticks = 0;

    if (passes->count < PASSES_MIN)
        return false;
    for (unsigned i = 0; i < passes->count; i++)
        ticks += passes->ticks[i][0] + passes->ticks[i][1];
    return passes->count == PASSES_MAX || (double)ticks * ns_per_tick >= 2 * sample_ns;
}

static void must(int code, const char *what)
{
    if (code == 0)
        return;
    fprintf(stderr, "bench_rounds: %s\n", what);
    exit(1);
}

/* ---- rings ---- */

/* Frames of one size or of the mix, for one thing that is measured on them. */
struct ring {
    uint8_t *arena;
    size_t frames, octets; /* octets: of secure data, of all frames */
    uint32_t size;         /* of each; 0: the mix */
    uint64_t pn;
    struct gcm_iv_base iv_base;
    struct gcm_op *op;           /* cipher */
    struct frame *fresh, *frame; /* frames */
};

/* The size of the i-th frame of the mix: the usual seven small, four middle, one large, shuffled.
 */
static uint32_t mixed_size(size_t i)
{
    static const uint16_t sizes_of_12[] = {64, 64, 64, 64, 64, 64, 64, 576, 576, 576, 576, 1500};
    const uint64_t shuffled = (i + 1) * UINT64_C(0x9e3779b97f4a7c15);

    return sizes_of_12[(shuffled >> 32) % 12];
}

static struct ring ring_make(uint8_t *arena, size_t octets, uint32_t size, unsigned suite)
{
    const uint32_t longest = size ? size : 1500;
    const size_t stride = (SECY_HEADROOM + SECTAG_AT + longest + SECY_TAILROOM + 63) / 64 * 64;
    const size_t fitting = octets / stride / RING_MULTIPLE * RING_MULTIPLE;
    struct ring ring = {
        .arena = arena, .frames = fitting ? fitting : RING_MULTIPLE, .size = size, .pn = 1};

    ring.iv_base = is_xpn(suite) ? gcm_iv_base_xpn(1, salt) : gcm_iv_base_sci(sci);
    ring.op = calloc(ring.frames, sizeof *ring.op);
    ring.fresh = calloc(ring.frames, sizeof *ring.fresh);
    ring.frame = calloc(ring.frames, sizeof *ring.frame);
    must(!ring.op || !ring.fresh || !ring.frame, "out of memory");
    for (size_t i = 0; i < ring.frames; i++) {
        uint8_t *at = arena + i * stride;
        const uint32_t len = size ? size : mixed_size(i);
        ring.octets += len;
        ring.op[i] = (struct gcm_op){.aad = at,
                                     .data = at + AAD_LEN,
                                     .tag = at + AAD_LEN + len,
                                     .data_len = len,
                                     .aad_len = AAD_LEN};
        ring.fresh[i] = (struct frame){.at = (uint32_t)(i * stride) + SECY_HEADROOM,
                                       .len = SECTAG_AT + len - VLAN_SIZE,
                                       .vlan = 100};
    }
    return ring;
}

static void ring_free(struct ring *ring)
{
    free(ring->op);
    free(ring->fresh);
    free(ring->frame);
}

/* ---- one sample ---- */

typedef void crypt_fn(const struct gcm_key *key, struct gcm_op *ops, size_t n);

static void walk(struct ring *ring, const struct gcm_key *key, crypt_fn *crypt)
{
    for (size_t at = 0; at < ring->frames; at += BATCH) {
        const size_t n = ring->frames - at < BATCH ? ring->frames - at : BATCH;
        for (size_t i = 0; i < n; i++)
            gcm_iv(ring->op[at + i].iv, &ring->iv_base, ring->pn + at + i);
        crypt(key, ring->op + at, n);
    }
}

static void cipher_pass(struct ring *ring, const struct gcm_key *key, uint64_t ticks[2])
{
    const uint64_t start = __rdtsc();
    walk(ring, key, gcm_seal);
    const uint64_t between = __rdtsc();
    walk(ring, key, gcm_open);
    ticks[1] = __rdtsc() - between;
    ticks[0] = between - start;
    ring->pn = (ring->pn + ring->frames) & 0x3fffffff; /* a benchmark's IVs may come again */
    must(!ring->op[ring->frames / 2].ok, "a frame did not open");
}

typedef void through_fn(struct secy *secy, uint8_t *arena, struct frame *frames, size_t count);

static void carry(struct ring *ring, struct secy *secy, through_fn *through)
{
    for (size_t at = 0; at < ring->frames; at += BATCH)
        through(secy, ring->arena, ring->frame + at,
                ring->frames - at < BATCH ? ring->frames - at : BATCH);
}

static void frames_pass(struct ring *ring, struct secy *secy, uint64_t ticks[2])
{
    const uint64_t ok = secy_counter(secy, VERDICT_IN_OK);

    memcpy(ring->frame, ring->fresh, ring->frames * sizeof *ring->frame);
    const uint64_t start = __rdtsc();
    carry(ring, secy, secy_protect);
    const uint64_t between = __rdtsc();
    carry(ring, secy, secy_validate);
    ticks[1] = __rdtsc() - between;
    ticks[0] = between - start;
    must(secy_counter(secy, VERDICT_IN_OK) - ok != ring->frames, "a frame was not valid");
}

static struct secy *make_secy(const char *backend, unsigned suite)
{
    const struct secy_config config = {
        .suite = UINT64_C(0x0080C20001000001) + suite,
        .sci = {2, 0, 0, 0, 0, 10, 0, 1},
        .frame_max = 9216,
        .replay_window = 64,
        .replay_protect = 1,
        .protect = 1,
        .encrypt = 1,
        .include_sci = 1,
        .pop_vlan = 1,
    };
    const struct secy_key key = {.sak = sak, .sak_len = key_len(suite), .ssci = is_xpn(suite)};
    struct secy *secy;

    must(secy_new(&config, backend, &secy), "no SecY");
    must(secy_tx_install(secy, 0, &key, 1), "no transmit SA");
    must(secy_tx_enable(secy, 0), "no transmit SA");
    must(secy_rx_add(secy, sci), "no receive SC");
    must(secy_rx_install(secy, sci, 0, &key, 1), "no receive SA");
    must(secy_rx_enable(secy, sci, 0, 1), "no receive SA");
    return secy;
}

/* ---- rounds ---- */

struct options {
    const char *kind, *backend, *suite;
    uint32_t size;
    unsigned rounds;
    bool cold, mix;
};

/* A backend, set up for one suite. */
struct candidate {
    const struct gcm_backend *backend;
    struct gcm_key key;
    struct secy *secy;
};

static void print_limit(unsigned round, unsigned suite, uint32_t size)
{
    double gbps[2];

    printf("{\"round\": %u, \"suite\": \"%s\", \"size\": %u, \"port_limit\": ", round,
           suites[suite], size);
    if (!limit_usable()) {
        puts("null}");
        return;
    }
    for (int bare = 0; bare < 2; bare++) {
        uint64_t ticks[PASSES_MAX];
        for (int pass = 0; pass < PASSES_MAX; pass++) {
            const uint64_t start = __rdtsc();
            limit_pass(key_len(suite) == 32 ? 14 : 10, bare);
            ticks[pass] = __rdtsc() - start;
        }
        gbps[bare] = LIMIT_OCTETS * 8.0 / median_ns(ticks, PASSES_MAX);
    }
    printf("{\"full_gbps\": %.2f, \"bare_gbps\": %.2f}}\n", gbps[0], gbps[1]);
}

static void print_sample(unsigned round, const char *kind, bool cold, const char *backend,
                         unsigned suite, const struct ring *ring, const struct passes *passes)
{
    for (unsigned in = 0; in < 2; in++) {
        uint64_t ticks[PASSES_MAX];
        for (unsigned i = 0; i < passes->count; i++)
            ticks[i] = passes->ticks[i][in];
        const double ns = median_ns(ticks, passes->count);
        printf("{\"round\": %u, \"kind\": \"%s\", \"memory\": \"%s\", \"backend\": \"%s\", "
               "\"suite\": \"%s\", \"direction\": \"%s\", \"size\": %u, \"gbps\": %.3f, "
               "\"mpps\": %.4f}\n",
               round, kind, cold ? "cold" : "hot", backend, suites[suite],
               in ? "validate" : "protect", ring->size, (double)ring->octets * 8 / ns,
               (double)ring->frames * 1e3 / ns);
    }
}

static bool wanted(const char *option, const char *name)
{
    return option == NULL || strcmp(option, name) == 0;
}

static void one_round(const struct options *o, unsigned round, unsigned suite,
                      struct candidate *candidates, unsigned count, struct ring *hot,
                      struct ring *cold)
{
    print_limit(round, suite, hot->size);
    for (unsigned b = 0; b < count; b++) {
        struct candidate *c = &candidates[b];
        const char *name = gcm_backend_name(c->backend);
        struct passes passes;
        if (wanted(o->kind, "cipher")) {
            for (passes.count = 0; !enough(&passes); passes.count++)
                cipher_pass(hot, &c->key, passes.ticks[passes.count]);
            print_sample(round, "cipher", false, name, suite, hot, &passes);
        }
        if (wanted(o->kind, "frames")) {
            for (passes.count = 0; !enough(&passes); passes.count++)
                frames_pass(hot, c->secy, passes.ticks[passes.count]);
            print_sample(round, "frames", false, name, suite, hot, &passes);
        }
        if (cold != NULL) {
            cipher_pass(cold, &c->key, passes.ticks[0]); /* what is in the cache is this one's */
            cipher_pass(cold, &c->key, passes.ticks[0]);
            passes.count = 1;
            print_sample(round, "cipher", true, name, suite, cold, &passes);
        }
    }
}

static void measure(const struct options *o, unsigned suite, uint32_t size,
                    const struct gcm_backend *const *backends, unsigned count, uint8_t *arena)
{
    static struct candidate candidates[BACKENDS_MAX];
    const bool with_cold = o->cold && suite == XPN_256;
    struct ring hot = ring_make(arena, HOT_OCTETS, size, suite), cold = {0};

    if (with_cold)
        cold = ring_make(arena, COLD_OCTETS, size, suite);
    for (unsigned b = 0; b < count; b++) {
        struct candidate *c = &candidates[b];
        c->backend = backends[b];
        must(gcm_key_init(&c->key, c->backend, sak, key_len(suite)), "no key");
        c->secy = make_secy(gcm_backend_name(c->backend), suite);
    }
    for (unsigned round = 0; round < o->rounds; round++)
        one_round(o, round, suite, candidates, count, &hot, with_cold && round == 0 ? &cold : NULL);
    fflush(stdout);
    for (unsigned b = 0; b < count; b++) {
        gcm_key_wipe(&candidates[b].key);
        secy_free(candidates[b].secy);
    }
    ring_free(&hot);
    ring_free(&cold);
}

static void stay_on_this_core(void)
{
    const int cpu = sched_getcpu();
    cpu_set_t set;

    must(cpu < 0, "no core");
    CPU_ZERO(&set);
    CPU_SET((unsigned)cpu, &set);
    must(sched_setaffinity(0, sizeof set, &set), "cannot stay on a core");
}

static void usage(void)
{
    fputs("usage: bench_rounds [--kind cipher|frames] [--backend NAME] [--suite NAME] [--size N | "
          "--mix]"
          " [--rounds N] [--cold]\n",
          stderr);
    exit(2);
}

static struct options parse(int argc, char **argv)
{
    struct options o = {.rounds = 3};

    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--cold") == 0 || strcmp(argv[i], "--mix") == 0) {
            *(argv[i][2] == 'c' ? &o.cold : &o.mix) = true;
            continue;
        }
        if (i + 1 == argc)
            usage();
        const char *name = argv[i++], *value = argv[i];
        if (strcmp(name, "--kind") == 0)
            o.kind = value;
        else if (strcmp(name, "--backend") == 0)
            o.backend = value;
        else if (strcmp(name, "--suite") == 0)
            o.suite = value;
        else if (strcmp(name, "--size") == 0)
            o.size = (uint32_t)strtoul(value, NULL, 10);
        else if (strcmp(name, "--rounds") == 0)
            o.rounds = (unsigned)strtoul(value, NULL, 10);
        else
            usage();
    }
    if (o.rounds == 0 || (o.size != 0 && (o.size < 16 || o.size > 9000)))
        usage();
    return o;
}

int main(int argc, char **argv)
{
    const struct options o = parse(argc, argv);
    const struct gcm_backend *backends[BACKENDS_MAX];
    unsigned count = 0;
    char note[512];

    for (size_t i = 0; gcm_backend_at(i) != NULL && count < BACKENDS_MAX; i++) {
        const struct gcm_backend *backend = gcm_backend_at(i);
        if (!wanted(o.backend, gcm_backend_name(backend)) || !gcm_backend_usable(backend))
            continue;
        /* A wrong answer has no speed. */
        must(gcm_backend_select(gcm_backend_name(backend), note, sizeof note) != backend, note);
        backends[count++] = backend;
    }
    uint8_t *arena = aligned_alloc(4096, COLD_OCTETS);
    must(arena == NULL, "out of memory");
    memset(arena, 0x5a, o.cold ? COLD_OCTETS : 2 * HOT_OCTETS);
    stay_on_this_core();
    learn_tick();
    for (unsigned suite = 0; suite < SUITES; suite++) {
        if (!wanted(o.suite, suites[suite]))
            continue;
        for (unsigned i = 0; i < (o.size || o.mix ? 1 : SIZES); i++)
            measure(&o, suite, o.size || o.mix ? o.size : sizes[i], backends, count, arena);
    }
    free(arena);
    return 0;
}
