#include "replay.h"

_Static_assert((REPLAY_BITS_MAX & (REPLAY_BITS_MAX - 1)) == 0, "the ring's size is a power of two");

/* Bits in the ring: the next power of two, from one word up to the bound. */
static uint32_t ring_bits(uint32_t window)
{
    uint32_t bits = 64;

    while (bits < window && bits < REPLAY_BITS_MAX)
        bits *= 2;
    return bits;
}

size_t replay_words(uint32_t window)
{
    return ring_bits(window) / 64;
}

void replay_init(struct replay *replay, uint32_t window, uint64_t lowest, uint64_t *bitmap)
{
    replay->floor = lowest;
    replay->highest = lowest - 1;
    replay->window = window;
    replay->mask = ring_bits(window) - 1;
    replay->bitmap = bitmap;
    memset(bitmap, 0, replay_words(window) * sizeof *bitmap);
}

void replay_raise(struct replay *replay, uint64_t lowest)
{
    if (lowest <= replay->floor)
        return;
    replay->floor = lowest;
    if (replay->highest < lowest - 1) {
        replay_advance(replay, lowest - 1);
        replay->highest = lowest - 1;
    }
}

/* Set or clear the bits of `count` numbers from `from` on, at most the whole ring, word by word. */
static void fill(struct replay *replay, uint64_t from, uint64_t count, bool seen)
{
    while (count > 0) {
        const uint32_t at = (uint32_t)(from & replay->mask);
        const uint32_t room = 64 - at % 64;
        const uint32_t span = count < room ? (uint32_t)count : room;
        const uint64_t bits = UINT64_MAX >> (64 - span) << at % 64;
        if (seen)
            replay->bitmap[at / 64] |= bits;
        else
            replay->bitmap[at / 64] &= ~bits;
        from += span;
        count -= span;
    }
}

void replay_advance(struct replay *replay, uint64_t pn)
{
    const uint64_t ahead = pn - replay->highest, ring = (uint64_t)replay->mask + 1;

    if (ahead >= ring)
        memset(replay->bitmap, 0, ring / 8);
    else
        fill(replay, replay->highest + 1, ahead, false);
}

void replay_commit_next(struct replay *replay, uint32_t count)
{
    const uint64_t ring = (uint64_t)replay->mask + 1;

    /* Whatever the bits were, they are set now: nothing to clear. */
    fill(replay, replay->highest + 1, count < ring ? count : ring, true);
    replay->highest += count;
}
