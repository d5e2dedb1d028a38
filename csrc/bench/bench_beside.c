/* bench_beside: what several cores gain that are one SecY: frames protected under one SC, its
 * packet numbers shared, and validated again against one shared replay window.
 *
 *     bench_beside [THREADS]        two, if left out; prints a JSON line for each size
 *
 * Time is the threads' own CPU time, so that the machine's other work does not count, while waiting
 * for each other (the exchange on the numbers, the lock of the window, cache lines) does.
 * `of_alone` is a core's rate with the others beside it, of its rate alone: 1 is linear. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "secy.h"

enum { THREADS_MAX = 16, BATCH = 64, FRAME_MAX = 9216 + 64, ROUND_OCTETS = 2000 << 20, ROUNDS = 3 };

static const uint8_t sci[8] = {2, 0, 0, 0, 0, 10, 0, 1};
static const uint8_t sak[32] = {1, 2, 3};

struct lane {
    pthread_t thread;
    struct secy *secy;
    uint32_t size; /* octets of secure data */
    uint64_t frames, ns, bad;
};

static uint64_t clock_ns(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000000000U + (uint64_t)t.tv_nsec;
}

static void *work(void *argument)
{
    struct lane *lane = argument;
    const uint32_t stride = (SECY_HEADROOM + 12 + lane->size + SECY_TAILROOM + 63) & ~63U;
    uint8_t *arena = aligned_alloc(64, (size_t)stride * BATCH);
    struct frame frames[BATCH];
    const unsigned batches = ROUND_OCTETS / BATCH / (lane->size + 400);

    memset(arena, 1, (size_t)stride * BATCH);
    const uint64_t start = clock_ns(CLOCK_THREAD_CPUTIME_ID);
    for (unsigned batch = 0; batch < batches; batch++) {
        for (unsigned i = 0; i < BATCH; i++)
            frames[i] = (struct frame){
                .at = i * stride + SECY_HEADROOM, .len = 12 + lane->size, .vlan = FRAME_NO_VLAN};
        secy_protect(lane->secy, arena, frames, BATCH);
        secy_validate(lane->secy, arena, frames, BATCH);
        for (unsigned i = 0; i < BATCH; i++)
            lane->bad += frames[i].verdict != VERDICT_IN_OK;
    }
    lane->ns = clock_ns(CLOCK_THREAD_CPUTIME_ID) - start;
    lane->frames = (uint64_t)batches * BATCH;
    free(arena);
    return NULL;
}

/* Million frames that a core protects and validates in a second of its time, `threads` at once.
 * `at_once` is the share of the time in which they were: other work takes cores away. */
static double rate(unsigned threads, uint32_t size, double *at_once)
{
    struct secy_config config = {.suite = UINT64_C(0x0080C20001000004),
                                 .frame_max = FRAME_MAX,
                                 .replay_window = 1 << 20,
                                 .replay_protect = 1,
                                 .protect = 1,
                                 .encrypt = 1,
                                 .include_sci = 1};
    const struct secy_key key = {.sak = sak, .sak_len = sizeof sak, .ssci = 1};
    struct lane lanes[THREADS_MAX] = {0};
    uint64_t frames = 0, ns = 0;

    memcpy(config.sci, sci, sizeof sci);
    for (unsigned i = 0; i < threads; i++) {
        struct lane *lane = &lanes[i];
        lane->size = size;
        int error =
            i ? secy_new_beside(lanes[0].secy, &lane->secy) : secy_new(&config, NULL, &lane->secy);
        if (!error)
            error = secy_tx_install(lane->secy, 0, &key, 1);
        if (!error)
            error = secy_tx_enable(lane->secy, 0);
        if (!error)
            error = secy_rx_add(lane->secy, sci);
        if (!error)
            error = secy_rx_install(lane->secy, sci, 0, &key, 1);
        if (!error)
            error = secy_rx_enable(lane->secy, sci, 0, 1);
        if (error) {
            fprintf(stderr, "bench_beside: %s\n", err_strerror(error));
            exit(1);
        }
    }
    const uint64_t start = clock_ns(CLOCK_MONOTONIC);
    for (unsigned i = 0; i < threads; i++)
        if (pthread_create(&lanes[i].thread, NULL, work, &lanes[i]))
            exit(1);
    for (unsigned i = 0; i < threads; i++) {
        pthread_join(lanes[i].thread, NULL);
        frames += lanes[i].frames - lanes[i].bad;
        ns += lanes[i].ns;
    }
    *at_once = (double)ns / (double)(clock_ns(CLOCK_MONOTONIC) - start) / threads;
    for (unsigned i = threads; i-- > 0;)
        secy_free(lanes[i].secy);
    return (double)frames * 1e3 / (double)ns;
}

int main(int argc, char **argv)
{
    static const uint32_t sizes[] = {64, 512, 1500, 9000};
    const unsigned threads = argc > 1 ? (unsigned)atoi(argv[1]) : 2;

    if (threads == 0 || threads > THREADS_MAX) {
        fprintf(stderr, "usage: bench_beside [1 to %d]\n", THREADS_MAX);
        return 1;
    }
    for (unsigned s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        double alone = 0, beside = 0, at_once = 0, share; /* the best of rounds in turn */
        for (unsigned round = 0; round < ROUNDS; round++) {
            const double one = rate(1, sizes[s], &share);
            const double many = rate(threads, sizes[s], &share);
            alone = one > alone ? one : alone;
            beside = many > beside ? many : beside;
            at_once = share > at_once ? share : at_once;
        }
        printf("{\"size\": %u, \"threads\": %u, \"mpps_alone\": %.2f, \"mpps_each\": %.2f, "
               "\"of_alone\": %.2f, \"at_once\": %.2f}\n",
               sizes[s], threads, alone, beside, beside / alone, at_once);
    }
    return 0;
}
