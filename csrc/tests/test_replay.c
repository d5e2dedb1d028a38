#include "check.h"
#include "replay.h"

#include <stdlib.h>
#include <string.h>

/* The same window as a list of all numbers seen: slow, and plainly right. */
enum { SEEN_MAX = 4096 };
struct slow {
    uint64_t floor, highest, seen[SEEN_MAX];
    unsigned count;
    uint32_t window;
};

static bool slow_accept(struct slow *slow, uint64_t pn)
{
    const uint64_t next = slow->highest + 1;
    const uint64_t edge = next > slow->window ? next - slow->window : 0;
    if (pn < slow->floor || pn < edge)
        return false;
    for (unsigned i = 0; i < slow->count; i++)
        if (slow->seen[i] == pn)
            return false;
    slow->seen[slow->count++] = pn;
    if (pn > slow->highest)
        slow->highest = pn;
    return true;
}

static uint64_t random64(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    return *state ^= *state << 17;
}

static void against_slow(uint32_t window, uint64_t lowest, uint64_t spread)
{
    static struct slow slow;
    struct replay replay;
    uint64_t *bitmap = malloc(replay_words(window) * sizeof *bitmap);
    uint64_t state = 88172645463325252u + window;

    memset(&slow, 0, sizeof slow);
    slow.window = window;
    slow.floor = lowest;
    slow.highest = lowest - 1;
    replay_init(&replay, window, lowest, bitmap);
    for (unsigned i = 0; i < SEEN_MAX; i++) {
        const uint64_t centre = slow.highest + (random64(&state) % 100 == 0 ? spread : 0);
        const uint64_t back = random64(&state) % (2 * spread);
        const uint64_t pn = centre + 8 > back ? centre + 8 - back : 0;
        const bool wanted = slow_accept(&slow, pn);
        CHECK_EQUAL(replay_check(&replay, pn), wanted);
        CHECK_EQUAL(replay_commit(&replay, pn), wanted);
        CHECK(!replay_check(&replay, pn));
    }
    free(bitmap);
}

int main(void)
{
    uint64_t bits[32];
    struct replay replay;

    /* The edge of the window, n-1, n, n+1: with 128 and highest 1000, 873 is the last accepted. */
    replay_init(&replay, 128, 1, bits);
    CHECK_EQUAL(replay_lowest(&replay), 1);
    CHECK(replay_commit(&replay, 1000));
    CHECK_EQUAL(replay_lowest(&replay), 873);
    CHECK(!replay_check(&replay, 872));
    CHECK(replay_check(&replay, 873));
    CHECK(replay_check(&replay, 874));
    CHECK(!replay_check(&replay, 1000));
    CHECK(replay_commit(&replay, 873));
    CHECK(!replay_commit(&replay, 873));
    CHECK(replay_commit(&replay, 1001));
    CHECK(!replay_check(&replay, 873));

    /* Checking moves nothing: a forged number costs nobody anything. */
    replay_init(&replay, 64, 1, bits);
    CHECK(replay_check(&replay, 1u << 30));
    CHECK_EQUAL(replay_lowest(&replay), 1);
    CHECK(replay_commit(&replay, 1));

    /* Window 0 is strict order; window 1 too, but for nothing. */
    replay_init(&replay, 0, 5, bits);
    CHECK(!replay_check(&replay, 4));
    CHECK(replay_commit(&replay, 5));
    CHECK(!replay_commit(&replay, 5));
    CHECK_EQUAL(replay_lowest(&replay), 6);
    CHECK(replay_commit(&replay, 7));
    CHECK(!replay_commit(&replay, 6));

    /* Numbers beyond 2^32 and up to the last one of all. */
    replay_init(&replay, 64, 0xFFFFFFF0, bits);
    for (uint64_t pn = 0xFFFFFFF0; pn < 0x100000020; pn++)
        CHECK(replay_commit(&replay, pn));
    CHECK(!replay_commit(&replay, 0xFFFFFFFF));
    CHECK_EQUAL(replay_lowest(&replay), 0xFFFFFFF0);
    CHECK(replay_commit(&replay, UINT64_MAX - 1));
    CHECK(replay_commit(&replay, UINT64_MAX));
    CHECK(!replay_commit(&replay, UINT64_MAX));
    CHECK(!replay_commit(&replay, 0));
    replay_init(&replay, 0, UINT64_MAX, bits);
    CHECK(replay_commit(&replay, UINT64_MAX));
    CHECK(!replay_commit(&replay, UINT64_MAX));
    CHECK_EQUAL(replay_lowest(&replay), UINT64_MAX);

    /* Raising refuses what is below, keeps what was seen above, and never lowers. */
    replay_init(&replay, 64, 1, bits);
    CHECK(replay_commit(&replay, 10));
    CHECK(replay_commit(&replay, 20));
    replay_raise(&replay, 15);
    CHECK(!replay_check(&replay, 14));
    CHECK(replay_check(&replay, 15));
    CHECK(!replay_check(&replay, 20));
    replay_raise(&replay, 3);
    CHECK_EQUAL(replay_lowest(&replay), 15);
    replay_raise(&replay, 500);
    CHECK_EQUAL(replay_lowest(&replay), 500);
    CHECK(replay_commit(&replay, 500));

    /* Numbers in order, committed at once, are as if they had come one by one. */
    for (uint32_t count = 1; count < 300; count += 7) {
        uint64_t one_bits[8], many_bits[8];
        struct replay one, many;
        replay_init(&one, 128, 1, one_bits);
        replay_init(&many, 128, 1, many_bits);
        CHECK(replay_commit(&one, 3) && replay_commit(&many, 3));
        for (uint32_t i = 0; i < count; i++)
            CHECK(replay_commit(&one, 4 + i));
        replay_commit_next(&many, count);
        CHECK_EQUAL(many.highest, one.highest);
        for (uint64_t pn = 1; pn < 3 + count + 200; pn++)
            CHECK_EQUAL(replay_check(&many, pn), replay_check(&one, pn));
    }

    /* The bitmap is bounded; the widest window still has its edge where it belongs. */
    CHECK_EQUAL(replay_words(0), 1);
    CHECK_EQUAL(replay_words(64), 1);
    CHECK_EQUAL(replay_words(65), 2);
    CHECK_EQUAL(replay_words(REPLAY_WINDOW_MAX), REPLAY_BITS_MAX / 64);
    uint64_t *wide = malloc(replay_words(REPLAY_WINDOW_MAX) * sizeof *wide);
    replay_init(&replay, REPLAY_WINDOW_MAX, 1, wide);
    const uint64_t top = UINT64_C(1) << 40;
    CHECK(replay_commit(&replay, top));
    CHECK(!replay_check(&replay, top - REPLAY_WINDOW_MAX));
    CHECK(replay_commit(&replay, top - REPLAY_WINDOW_MAX + 1));
    CHECK(replay_commit(&replay, top - REPLAY_BITS_MAX + 1));
    CHECK(!replay_commit(&replay, top - REPLAY_BITS_MAX + 1)); /* the last that is remembered */
    free(wide);

    /* Random walks against the slow window. */
    const uint32_t windows[] = {0, 1, 2, 63, 64, 65, 127, 128, 1000, 1024};
    for (unsigned i = 0; i < sizeof windows / sizeof *windows; i++) {
        against_slow(windows[i], 1, 40);
        against_slow(windows[i], 0xFFFFFF00, 200);
        against_slow(windows[i], 1, 1500);
    }
    return check_report("replay");
}
