/* How fast whole MACsec frames go through the SecY here: PN, SecTAG, AAD, cipher, ICV, replay,
 * counters, 802.1Q push and pop.
 *
 *   bench_frames [--backend NAME] [--suite NAME] [--size N] [--quick]
 *
 * Prints JSON, one object a line: {"backend", "suite", "direction", "size", "gbps", "mpps"}. size
 * is secure data, that is what is encrypted: type, VLAN tag and payload of the user's frame; gbps
 * counts it alone. One core, one thread.
 *
 * A pass protects a ring of frames that stays in L2, in batches, and validates it again; each half
 * is timed by the time stamp counter. The figure is the median pass: a pass is short, so those in
 * which the machine did something else fall out. */
#include "secy.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <x86intrin.h>

enum { BATCH = 256, RING_OCTETS = 128 << 10, PASSES_MAX = 4000 };

static const uint32_t sizes[] = {64, 128, 256, 512, 1024, 1500, 4096, 9000};
static const char *const suites[] = {"gcm-aes-128", "gcm-aes-256", "gcm-aes-xpn-128",
                                     "gcm-aes-xpn-256"};
enum { SIZES = sizeof sizes / sizeof *sizes, SUITES = sizeof suites / sizeof *suites };

static const uint8_t sci[8] = {2, 0, 0, 0, 0, 10, 0, 1};

static double clock_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

/* Nanoseconds of one tick of the time stamp counter. */
static double tick_ns(void)
{
    const double start_ns = clock_ns();
    const uint64_t start = __rdtsc();
    while (clock_ns() - start_ns < 20e6) {
    }
    return (clock_ns() - start_ns) / (double)(__rdtsc() - start);
}

static int ascending(const void *a, const void *b)
{
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static uint64_t median(uint64_t *ticks, size_t count)
{
    qsort(ticks, count, sizeof *ticks, ascending);
    return ticks[count / 2];
}

static int must(int code)
{
    if (code) {
        fprintf(stderr, "bench_frames: %s\n", err_strerror(code));
        exit(2);
    }
    return code;
}

static struct secy *make(const char *backend, unsigned suite)
{
    const bool xpn = suite >= 2;
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
    static const uint8_t sak[32] = {1, 2, 3};
    const struct secy_key key = {.sak = sak, .sak_len = suite & 1 ? 32 : 16, .ssci = xpn};
    struct secy *secy;

    must(secy_new(&config, backend, &secy));
    must(secy_tx_install(secy, 0, &key, 1));
    must(secy_tx_enable(secy, 0));
    must(secy_rx_add(secy, sci));
    must(secy_rx_install(secy, sci, 0, &key, 1));
    must(secy_rx_enable(secy, sci, 0, 1));
    return secy;
}

static void measure(const char *backend, unsigned suite, uint32_t size, size_t passes,
                    double ns_per_tick)
{
    static uint64_t out_ticks[PASSES_MAX], in_ticks[PASSES_MAX];
    const uint32_t stride = (SECY_HEADROOM + 12 + size + SECY_TAILROOM + 63) / 64 * 64;
    const size_t fitting = RING_OCTETS / stride, count = fitting < 16 ? 16 : fitting;
    uint8_t *arena = aligned_alloc(64, count * stride);
    struct frame *fresh = calloc(count, sizeof *fresh), *frames = calloc(count, sizeof *frames);
    struct secy *secy = make(backend, suite);

    if (!arena || !fresh || !frames)
        exit(2);
    memset(arena, 0x5A, count * stride);
    for (size_t i = 0; i < count; i++)
        fresh[i] = (struct frame){
            .at = (uint32_t)i * stride + SECY_HEADROOM, .len = 12 + size - VLAN_SIZE, .vlan = 100};
    for (size_t pass = 0; pass < passes; pass++) {
        memcpy(frames, fresh, count * sizeof *frames);
        const uint64_t start = __rdtsc();
        for (size_t i = 0; i < count; i += BATCH)
            secy_protect(secy, arena, frames + i, count - i < BATCH ? count - i : BATCH);
        const uint64_t between = __rdtsc();
        for (size_t i = 0; i < count; i += BATCH)
            secy_validate(secy, arena, frames + i, count - i < BATCH ? count - i : BATCH);
        const uint64_t end = __rdtsc();
        out_ticks[pass] = between - start;
        in_ticks[pass] = end - between;
    }
    if (secy_counter(secy, VERDICT_IN_OK) != passes * count)
        exit(2);
    for (unsigned in = 0; in < 2; in++) {
        const double ns = (double)median(in ? in_ticks : out_ticks, passes) * ns_per_tick;
        printf("{\"backend\": \"%s\", \"suite\": \"%s\", \"direction\": \"%s\", \"size\": %u, "
               "\"gbps\": %.2f, \"mpps\": %.2f}\n",
               secy_backend(secy), suites[suite], in ? "validate" : "protect", size,
               (double)count * size * 8 / ns, (double)count * 1e3 / ns);
    }
    fflush(stdout);
    secy_free(secy);
    free(frames);
    free(fresh);
    free(arena);
}

int main(int argc, char **argv)
{
    const char *backend = NULL, *suite = NULL;
    uint32_t size = 0;
    size_t passes = 2000;

    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--backend") == 0 && i + 1 < argc)
            backend = argv[++i];
        else if (strcmp(argv[i], "--suite") == 0 && i + 1 < argc)
            suite = argv[++i];
        else if (strcmp(argv[i], "--size") == 0 && i + 1 < argc)
            size = (uint32_t)strtoul(argv[++i], NULL, 10);
        else if (strcmp(argv[i], "--quick") == 0)
            passes = 400;
        else {
            fprintf(stderr,
                    "usage: bench_frames [--backend NAME] [--suite NAME] [--size N] [--quick]\n");
            return 2;
        }
    }
    if (size != 0 && (size < 16 || size > 9000)) {
        fprintf(stderr, "bench_frames: --size is 16 to 9000\n");
        return 2;
    }
    const double ns_per_tick = tick_ns();
    for (size_t b = 0; gcm_backend_at(b); b++) {
        const char *name = gcm_backend_name(gcm_backend_at(b));
        if (!gcm_backend_usable(gcm_backend_at(b)) || (backend && strcmp(backend, name) != 0))
            continue;
        for (unsigned s = 0; s < SUITES; s++) {
            if (suite && strcmp(suite, suites[s]) != 0)
                continue;
            for (size_t i = 0; i < (size ? 1 : SIZES); i++)
                measure(name, s, size ? size : sizes[i], passes, ns_per_tick);
        }
    }
    return 0;
}
