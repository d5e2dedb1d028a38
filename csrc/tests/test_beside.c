/* beside: several threads are one SecY. No packet number is used twice and none is skipped, at any
 * wrap; a frame that several threads are handed is accepted by one of them. Also run under
 * ThreadSanitizer. */
#include <pthread.h>
#include <stdlib.h>

#include "check.h"
#include "secy.h"

enum { THREADS = 4, BATCHES = 300, STRIDE = 160, PAYLOAD = 60 };

/* ipsec-mb's manager lives as long as the process, at an address that it keeps hidden. */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void)
{
    return "leak:alloc_mb_mgr";
}

static const uint8_t sci[8] = {2, 0, 0, 0, 0, 10, 0, 1};
static const uint8_t sak[32] = {1, 2, 3, 4, 5, 6, 7, 8};
static const uint64_t suite_256 = UINT64_C(0x0080C20001000002),
                      suite_xpn_256 = UINT64_C(0x0080C20001000004);

/* What one thread works on. */
struct lane {
    pthread_t thread;
    struct secy *secy;
    uint8_t *arena;
    struct frame *frames;
    size_t count;
    unsigned seed;
};

static void entity(struct lane *lanes, uint64_t suite, uint32_t window)
{
    struct secy_config config = {
        .suite = suite,
        .frame_max = 1600,
        .replay_window = window,
        .replay_protect = 1,
        .protect = 1,
        .encrypt = 1,
        .include_sci = 1,
    };
    memcpy(config.sci, sci, sizeof sci);
    CHECK_EQUAL(secy_new(&config, NULL, &lanes[0].secy), ERR_OK);
    for (unsigned i = 1; i < THREADS; i++)
        CHECK_EQUAL(secy_new_beside(lanes[0].secy, &lanes[i].secy), ERR_OK);
}

static void dissolve(struct lane *lanes)
{
    for (unsigned i = THREADS; i-- > 0;)
        secy_free(lanes[i].secy);
}

/* Let all lanes work at once. */
static void run(struct lane *lanes, void *(*work)(void *))
{
    for (unsigned i = 0; i < THREADS; i++)
        CHECK_EQUAL(pthread_create(&lanes[i].thread, NULL, work, &lanes[i]), 0);
    for (unsigned i = 0; i < THREADS; i++)
        pthread_join(lanes[i].thread, NULL);
}

static unsigned draw(unsigned *seed, unsigned below)
{
    *seed = *seed * 1103515245 + 12345;
    return (*seed >> 16) % below;
}

/* Batches of 1 to 100 frames: up to two chunks each. */
static void *protect(void *argument)
{
    struct lane *lane = argument;
    for (size_t done = 0; done < lane->count;) {
        size_t n = 1 + draw(&lane->seed, 100);
        n = n < lane->count - done ? n : lane->count - done;
        secy_protect(lane->secy, lane->arena, lane->frames + done, n);
        done += n;
    }
    return NULL;
}

static void *validate(void *argument)
{
    struct lane *lane = argument;
    for (size_t done = 0; done < lane->count;) {
        size_t n = 1 + draw(&lane->seed, 100);
        n = n < lane->count - done ? n : lane->count - done;
        secy_validate(lane->secy, lane->arena, lane->frames + done, n);
        done += n;
    }
    return NULL;
}

static void fill(struct lane *lane, size_t count, unsigned seed)
{
    lane->count = count;
    lane->seed = seed;
    lane->arena = calloc(count, STRIDE);
    lane->frames = calloc(count, sizeof *lane->frames);
    for (size_t i = 0; i < count; i++) {
        lane->frames[i] = (struct frame){.at = (uint32_t)(i * STRIDE + SECY_HEADROOM),
                                         .len = 14 + PAYLOAD,
                                         .vlan = FRAME_NO_VLAN};
        uint8_t *frame = lane->arena + lane->frames[i].at;
        wire_put16(frame + 12, 0x0800);
        memcpy(frame + 14, &i, sizeof i);
        memcpy(frame + 14 + sizeof i, &seed, sizeof seed);
    }
}

static void empty(struct lane *lanes)
{
    for (unsigned i = 0; i < THREADS; i++) {
        free(lanes[i].arena);
        free(lanes[i].frames);
    }
}

static uint64_t sum(const struct lane *lanes, enum verdict verdict)
{
    uint64_t all = 0;
    for (unsigned i = 0; i < THREADS; i++)
        all += secy_counter(lanes[i].secy, verdict);
    return all;
}

/* Send from all threads, from number `first` on; checks that the numbers used are first, first + 1
 * ... without a gap, each once, up to `last` at most. Returns how many frames left. */
static size_t send(struct lane *lanes, uint64_t first, uint64_t last)
{
    const struct secy_key key = {.sak = sak, .sak_len = 32, .ssci = lanes[0].secy->xpn ? 9 : 0};
    size_t sent = 0, offered = 0;

    for (unsigned i = 0; i < THREADS; i++) {
        CHECK_EQUAL(secy_tx_install(lanes[i].secy, 1, &key, first), ERR_OK);
        CHECK_EQUAL(secy_tx_enable(lanes[i].secy, 1), ERR_OK);
        fill(&lanes[i], BATCHES * 50, i + 1);
        offered += lanes[i].count;
    }
    run(lanes, protect);

    uint8_t *seen = calloc(offered, 1);
    for (unsigned i = 0; i < THREADS; i++) {
        for (size_t k = 0; k < lanes[i].count; k++) {
            const struct frame *frame = &lanes[i].frames[k];
            if (frame->verdict != VERDICT_OUT_ENCRYPTED)
                continue;
            const uint32_t low = wire_get32(lanes[i].arena + frame->at + SECTAG_AT + 4);
            const uint64_t place = (uint32_t)(low - (uint32_t)first);
            CHECK(place < offered && !seen[place]);
            if (place < offered)
                seen[place] = 1;
            sent++;
        }
    }
    for (size_t k = 0; k < sent; k++)
        CHECK(seen[k]);
    free(seen);

    const size_t room = last - first < offered ? (size_t)(last - first) + 1 : offered;
    CHECK_EQUAL(sent, room);
    CHECK_EQUAL(sum(lanes, VERDICT_OUT_ENCRYPTED), sent);
    CHECK_EQUAL(sum(lanes, VERDICT_OUT_PN_EXHAUSTED), offered - sent);
    for (unsigned i = 0; i < THREADS; i++)
        CHECK_EQUAL(secy_tx_next_pn(lanes[i].secy, 1), sent < offered ? 0 : first + sent);
    return sent;
}

static void no_number_is_used_twice(void)
{
    static const uint64_t starts[] = {1, UINT64_C(0xFFFFFFFF) - 20000, PN_MAX_XPN - 100000};
    struct lane lanes[THREADS];

    for (unsigned i = 0; i < sizeof starts / sizeof *starts; i++) {
        entity(lanes, suite_xpn_256, 64);
        send(lanes, starts[i], PN_MAX_XPN);
        empty(lanes);
        dissolve(lanes);
    }
}

/* The last number of all is used once, by whoever comes first, and nothing leaves after it. */
static void numbers_run_out_for_all(void)
{
    struct lane lanes[THREADS];

    entity(lanes, suite_256, 64);
    CHECK_EQUAL(send(lanes, PN_MAX - 9999, PN_MAX), 10000);
    empty(lanes);
    dissolve(lanes);
    entity(lanes, suite_xpn_256, 64);
    CHECK_EQUAL(send(lanes, PN_MAX_XPN - 9999, PN_MAX_XPN), 10000);
    empty(lanes);
    dissolve(lanes);
}

/* Frames across 2^32, each handed to two threads: one of them takes it. */
static void a_frame_is_taken_once(void)
{
    struct lane out[THREADS], in[THREADS];
    const uint64_t first = UINT64_C(0xFFFFFFFF) - 20000;
    const struct secy_key key = {.sak = sak, .sak_len = 32, .ssci = 9};

    entity(out, suite_xpn_256, 64);
    const size_t sent = send(out, first, PN_MAX_XPN);
    entity(in, suite_xpn_256, 1 << 20); /* no frame is late but for being there already */
    for (unsigned i = 0; i < THREADS; i++) {
        struct secy *secy = in[i].secy;
        CHECK_EQUAL(secy_rx_add(secy, sci), ERR_OK);
        CHECK_EQUAL(secy_rx_install(secy, sci, 1, &key, first), ERR_OK);
        CHECK_EQUAL(secy_rx_enable(secy, sci, 1, 1), ERR_OK);
    }
    for (unsigned i = 0; i < THREADS; i++) {
        const struct lane *a = &out[i], *b = &out[(i + 1) % THREADS];
        in[i].count = a->count + b->count;
        in[i].seed = i;
        in[i].arena = malloc(in[i].count * STRIDE);
        in[i].frames = malloc(in[i].count * sizeof *in[i].frames);
        memcpy(in[i].arena, a->arena, a->count * STRIDE);
        memcpy(in[i].arena + a->count * STRIDE, b->arena, b->count * STRIDE);
        memcpy(in[i].frames, a->frames, a->count * sizeof *a->frames);
        memcpy(in[i].frames + a->count, b->frames, b->count * sizeof *b->frames);
        for (size_t k = a->count; k < in[i].count; k++)
            in[i].frames[k].at += (uint32_t)(a->count * STRIDE);
    }
    run(in, validate);
    CHECK_EQUAL(sum(in, VERDICT_IN_OK), sent);
    CHECK_EQUAL(sum(in, VERDICT_IN_LATE), sent);
    for (unsigned i = 0; i < THREADS; i++)
        CHECK_EQUAL(secy_rx_lowest_pn(in[i].secy, sci, 1), first);
    empty(in);
    empty(out);
    dissolve(in);
    dissolve(out);
}

int main(void)
{
    no_number_is_used_twice();
    numbers_run_out_for_all();
    a_frame_is_taken_once();
    return check_report("beside");
}
