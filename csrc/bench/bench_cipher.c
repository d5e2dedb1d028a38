/* How fast AES-GCM runs here, backend by backend, beside what the ports of this core allow.
 *
 *   bench_cipher [--backend NAME] [--suite NAME] [--size N] [--quick]
 *
 * Prints JSON, one object a line, first one per measurement, then the limit (null without AVX-512):
 *   {"backend", "suite", "direction", "size", "memory", "gbps", "mpps",
 *    "of_limit"}
 *   {"port_limit": {"aes128_gbps", "aes256_gbps", "aes128_bare_gbps", "aes256_bare_gbps"}}
 * gbps counts the payload only, mpps the frames; of_limit is the median of gbps over the port limit
 * as sampled just before each run (null without AVX-512). One core, one thread.
 *
 * A measurement is the median of several short runs, and the backends and the limit take turns, run
 * by run: the machine may be shared, so figures are to be compared within one run of this program.
 * Time is CPU time. A run walks a ring of frames in batches of BATCH; every frame gets a new PN and
 * its IV from it, an AAD of 28 octets before and an ICV behind its payload. "hot": the ring stays
 * in L2. "cold": it is larger than the last cache. */
#include "cpu.h"
#include "gcm.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum {
    BATCH = 64,
    AAD_LEN = 28,
    HOT_OCTETS = 128 << 10,
    COLD_OCTETS = 48 << 20,
    BACKENDS_MAX = 8,
    RUNS_MAX = 15,
    LIMITS_MAX = 4096, /* samples */
};

static const uint32_t sizes[] = {64, 128, 256, 512, 1024, 1500, 4096, 9000};
enum { SIZES = sizeof sizes / sizeof sizes[0] };

static const struct suite {
    const char *name;
    uint32_t key_len;
    int xpn;
} suites[] = {
    {"gcm-aes-128", 16, 0},
    {"gcm-aes-256", 32, 0},
    {"gcm-aes-xpn-128", 16, 1},
    {"gcm-aes-xpn-256", 32, 1},
};
enum { SUITES = sizeof suites / sizeof suites[0] };

struct options {
    const char *backend, *suite;
    uint32_t size;
    int runs, cold_runs;
    double run_s;
};

/* Samples of the limit: [128, 256 bits][full, bare] */
struct limits {
    double sample[2][2][LIMITS_MAX];
    int count;
};

/* CPU time of this thread: what others run meanwhile is not counted. */
static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static int compare_doubles(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, int n)
{
    qsort(values, (size_t)n, sizeof *values, compare_doubles);
    return values[n / 2];
}

/* ---- what the ports allow ---- */

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(                                                                      \
    __attribute__((target("vaes,vpclmulqdq,avx512f,avx512bw,avx512dq,avx512vl"))),                 \
    apply_to = function)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#pragma GCC push_options
#pragma GCC target("vaes,vpclmulqdq,avx512f,avx512bw,avx512dq,avx512vl")
#define UNROLL _Pragma("GCC unroll 16")
#endif
#include <immintrin.h>

enum { LIMIT_UNITS = 8, LIMIT_TURNS = 4000 };

/* The work of AES-GCM on 8 units of 64 octets, on values that never leave the registers: AES of
 * one turn beside GHASH of the one before. Not bare: with counters, xors, byte swaps, Karatsuba's
 * folds, sums and a reduction a turn. Bare: VAESENC and three VPCLMULQDQ a unit, nothing else. */
static inline __attribute__((always_inline)) __m512i limit_turns(int rounds, int bare, __m512i seed)
{
    __m512i state[LIMIT_UNITS], text[LIMIT_UNITS], sink = seed, y = seed, counter = seed;
    const __m512i swap = _mm512_xor_si512(seed, _mm512_set1_epi8(7));
    const __m512i one = _mm512_set1_epi32(1);

    UNROLL for (int i = 0; i < LIMIT_UNITS; i++) state[i] = text[i] =
        _mm512_add_epi32(seed, _mm512_set1_epi32(i));
    for (int turn = 0; turn < LIMIT_TURNS; turn++) {
        __m512i lo = y, mid = y, hi = y;
        UNROLL for (int i = 0; i < LIMIT_UNITS; i++)
        {
            __m512i s =
                bare ? state[i] : _mm512_xor_si512(_mm512_shuffle_epi8(counter, swap), seed);
            counter = bare ? counter : _mm512_add_epi32(counter, one);
            state[i] = s;
        }
        UNROLL for (int r = 1; r < rounds; r++)
        {
            UNROLL for (int i = 0; i < LIMIT_UNITS; i++) state[i] =
                _mm512_aesenc_epi128(state[i], seed);
        }
        UNROLL for (int i = 0; i < LIMIT_UNITS; i++)
        {
            __m512i x = bare ? text[i] : _mm512_shuffle_epi8(text[i], swap);
            __m512i folded =
                bare ? x : _mm512_xor_si512(x, _mm512_shuffle_epi32(x, (_MM_PERM_ENUM)0x4e));
            if (bare) {
                /* The products must be made, but nobody needs them. */
                __m512i a = _mm512_clmulepi64_epi128(x, seed, 0x00);
                __m512i b = _mm512_clmulepi64_epi128(x, seed, 0x11);
                __m512i c = _mm512_clmulepi64_epi128(x, seed, 0x01);
                __asm__ volatile("" : : "v"(a), "v"(b), "v"(c));
            } else {
                lo = _mm512_xor_si512(lo, _mm512_clmulepi64_epi128(x, seed, 0x00));
                hi = _mm512_xor_si512(hi, _mm512_clmulepi64_epi128(x, seed, 0x11));
                mid = _mm512_xor_si512(mid, _mm512_clmulepi64_epi128(folded, swap, 0x00));
            }
        }
        UNROLL for (int i = 0; i < LIMIT_UNITS; i++)
        {
            state[i] = _mm512_aesenclast_epi128(state[i], seed);
            text[i] = bare ? text[i] : _mm512_xor_si512(state[i], seed);
        }
        if (!bare) {
            mid = _mm512_ternarylogic_epi64(mid, lo, hi, 0x96);
            lo = _mm512_xor_si512(lo, _mm512_bslli_epi128(mid, 8));
            hi = _mm512_xor_si512(hi, _mm512_bsrli_epi128(mid, 8));
            lo = _mm512_xor_si512(_mm512_shuffle_epi32(lo, (_MM_PERM_ENUM)0x4e),
                                  _mm512_clmulepi64_epi128(lo, swap, 0x00));
            y = _mm512_ternarylogic_epi64(hi, _mm512_shuffle_epi32(lo, (_MM_PERM_ENUM)0x4e),
                                          _mm512_clmulepi64_epi128(lo, swap, 0x00), 0x96);
        }
    }
    UNROLL for (int i = 0; i < LIMIT_UNITS; i++) sink = _mm512_xor_si512(sink, state[i]);
    return _mm512_xor_si512(sink, y);
}

static __attribute__((noinline)) double limit_gbps(int rounds, int bare)
{
    const __m512i seed = _mm512_set1_epi32(rounds);
    const double begin = now_s();
    __m512i sink;

    if (rounds == 10)
        sink = bare ? limit_turns(10, 1, seed) : limit_turns(10, 0, seed);
    else
        sink = bare ? limit_turns(14, 1, seed) : limit_turns(14, 0, seed);
    __asm__ volatile("" : : "v"(sink));
    return LIMIT_TURNS * LIMIT_UNITS * 64 * 8.0 / (now_s() - begin) * 1e-9;
}

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

/* Takes a sample of all; returns that for keys of key_len octets, Gbit/s, or 0 if there is none. */
static double limits_sample(struct limits *limits, uint32_t key_len)
{
    if (!(cpu_features() & CPU_VAES512) || limits->count == LIMITS_MAX)
        return 0;
    for (int bits = 0; bits < 2; bits++)
        for (int bare = 0; bare < 2; bare++)
            limits->sample[bits][bare][limits->count] = limit_gbps(bits ? 14 : 10, bare);
    limits->count++;
    return limits->sample[key_len == 32][0][limits->count - 1];
}
#else
static double limits_sample(struct limits *limits, uint32_t key_len)
{
    (void)limits;
    (void)key_len;
    return 0;
}
#endif

static void limits_print(struct limits *limits)
{
    if (limits->count == 0) {
        puts("{\"port_limit\": null}");
        return;
    }
    printf("{\"port_limit\": {\"aes128_gbps\": %.1f, \"aes256_gbps\": %.1f, "
           "\"aes128_bare_gbps\": %.1f, \"aes256_bare_gbps\": %.1f}}\n",
           median(limits->sample[0][0], limits->count), median(limits->sample[1][0], limits->count),
           median(limits->sample[0][1], limits->count),
           median(limits->sample[1][1], limits->count));
}

/* ---- frames ---- */

struct ring {
    uint8_t *arena;
    struct gcm_op *op;
    size_t frames;
    struct gcm_iv_base iv_base;
    uint64_t pn;
};

/* Frames lie as a NIC's buffers would: each begins on a cache line, so the payload, 28 octets
 * later, does not. */
static int ring_make(struct ring *ring, uint8_t *arena, size_t arena_len, uint32_t size,
                     const struct suite *suite)
{
    static const uint8_t salt[GCM_IV_LEN] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};
    const size_t stride = (AAD_LEN + size + GCM_TAG_LEN + 63) / 64 * 64;

    ring->arena = arena;
    ring->frames = arena_len / stride;
    ring->op = calloc(ring->frames, sizeof *ring->op);
    ring->iv_base = suite->xpn ? gcm_iv_base_xpn(1, salt) : gcm_iv_base_sci(salt);
    ring->pn = 1;
    if (ring->op == NULL)
        return -1;
    for (size_t i = 0; i < ring->frames; i++) {
        uint8_t *frame = arena + i * stride;
        ring->op[i] = (struct gcm_op){.aad = frame,
                                      .data = frame + AAD_LEN,
                                      .tag = frame + AAD_LEN + size,
                                      .data_len = size,
                                      .aad_len = AAD_LEN};
    }
    return 0;
}

typedef void crypt_fn(const struct gcm_key *key, struct gcm_op *ops, size_t n);

/* One walk over frames [from, to) of the ring. */
static void walk(struct ring *ring, const struct gcm_key *key, crypt_fn *crypt, uint64_t first_pn,
                 size_t from, size_t to)
{
    for (size_t at = from; at < to; at += BATCH) {
        const size_t n = to - at < BATCH ? to - at : BATCH;
        for (size_t i = 0; i < n; i++)
            gcm_iv(ring->op[at + i].iv, &ring->iv_base, first_pn + at + i);
        crypt(key, ring->op + at, n);
    }
}

/* Frames per second. To open frames they have to be sealed first, which is not timed: on a cold
 * ring by a walk over all of it, so that it is cold again. */
static double rate(struct ring *ring, const struct gcm_key *key, int open, double run_s)
{
    const double deadline = now_s() + 8 * run_s;
    double took = 0;
    uint64_t frames = 0;

    while (took < run_s && now_s() < deadline) {
        if (open)
            walk(ring, key, gcm_seal, ring->pn, 0, ring->frames);
        const double begin = now_s();
        walk(ring, key, open ? gcm_open : gcm_seal, ring->pn, 0, ring->frames);
        took += now_s() - begin;
        frames += ring->frames;
        ring->pn = (ring->pn + ring->frames) & 0x3fffffff; /* a benchmark's IVs may come again */
        if (open && !ring->op[ring->frames / 2].ok)
            abort();
    }
    return (double)frames / took;
}

static void measure(const struct options *o, const struct gcm_backend *const *backends, int count,
                    const struct suite *suite, uint32_t size, uint8_t *arena, int cold,
                    struct limits *limits)
{
    static struct gcm_key key[BACKENDS_MAX];
    const int runs = cold ? o->cold_runs : o->runs;
    double rates[BACKENDS_MAX][2][RUNS_MAX], ratios[BACKENDS_MAX][2][RUNS_MAX];
    uint8_t secret[32] = {0};
    struct ring ring;

    if (ring_make(&ring, arena, cold ? COLD_OCTETS : HOT_OCTETS, size, suite) != 0)
        abort();
    for (uint32_t i = 0; i < suite->key_len; i++)
        secret[i] = (uint8_t)(i * 7 + 3);
    for (int b = 0; b < count; b++)
        if (gcm_key_init(&key[b], backends[b], secret, suite->key_len) != GCM_OK)
            abort();
    for (int run = cold ? 0 : -1; run < runs; run++) { /* run -1 warms up */
        const int slot = run < 0 ? 0 : run;
        const double limit_fps = limits_sample(limits, suite->key_len) * 1e9 / 8 / size;
        for (int b = 0; b < count; b++) {
            for (int open = 0; open < 2; open++) {
                rates[b][open][slot] = rate(&ring, &key[b], open, o->run_s);
                ratios[b][open][slot] = limit_fps > 0 ? rates[b][open][slot] / limit_fps : 0;
            }
        }
    }
    for (int b = 0; b < count; b++) {
        for (int open = 0; open < 2; open++) {
            const double fps = median(rates[b][open], runs);
            printf("{\"backend\": \"%s\", \"suite\": \"%s\", \"direction\": \"%s\", "
                   "\"size\": %u, \"memory\": \"%s\", \"gbps\": %.2f, \"mpps\": %.3f, ",
                   gcm_backend_name(backends[b]), suite->name, open ? "validate" : "protect", size,
                   cold ? "cold" : "hot", fps * size * 8e-9, fps * 1e-6);
            if (limits->count > 0)
                printf("\"of_limit\": %.3f}\n", median(ratios[b][open], runs));
            else
                puts("\"of_limit\": null}");
        }
        gcm_key_wipe(&key[b]);
    }
    fflush(stdout);
    free(ring.op);
}

int main(int argc, char **argv)
{
    struct options o = {.runs = 13, .cold_runs = 3, .run_s = 0.4e-3};
    static struct limits limits;
    const struct gcm_backend *backends[BACKENDS_MAX];
    int count = 0;
    char note[512];

    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--quick") == 0) {
            o.runs = 3;
            o.cold_runs = 1;
            o.run_s = 0.3e-3;
        } else if (i + 1 < argc && strcmp(argv[i], "--backend") == 0) {
            o.backend = argv[++i];
        } else if (i + 1 < argc && strcmp(argv[i], "--suite") == 0) {
            o.suite = argv[++i];
        } else if (i + 1 < argc && strcmp(argv[i], "--size") == 0) {
            o.size = (uint32_t)strtoul(argv[++i], NULL, 10);
        } else {
            fputs("usage: bench_cipher [--backend NAME] [--suite NAME] [--size N] [--quick]\n",
                  stderr);
            return 2;
        }
    }
    for (size_t i = 0; gcm_backend_at(i) != NULL && count < BACKENDS_MAX; i++) {
        const struct gcm_backend *backend = gcm_backend_at(i);
        if (o.backend != NULL && strcmp(o.backend, gcm_backend_name(backend)) != 0)
            continue;
        if (!gcm_backend_usable(backend))
            continue;
        if (gcm_backend_select(gcm_backend_name(backend), note, sizeof note) != backend) {
            fprintf(stderr, "%s\n", note); /* a wrong answer has no speed */
            return 1;
        }
        backends[count++] = backend;
    }
    uint8_t *arena = aligned_alloc(64, COLD_OCTETS);
    if (arena == NULL)
        return 1;
    memset(arena, 0x5a, COLD_OCTETS);
    for (int s = 0; s < SUITES; s++) {
        if (o.suite != NULL && strcmp(o.suite, suites[s].name) != 0)
            continue;
        for (int k = 0; k < SIZES; k++) {
            if (o.size != 0 && o.size != sizes[k])
                continue;
            measure(&o, backends, count, &suites[s], sizes[k], arena, 0, &limits);
            if (suites[s].xpn && suites[s].key_len == 32)
                measure(&o, backends, count, &suites[s], sizes[k], arena, 1, &limits);
        }
    }
    limits_print(&limits);
    free(arena);
    return 0;
}
