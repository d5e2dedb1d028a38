/*
 * replay: which packet numbers a receive SA still accepts (IEEE 802.1AE-2018 10.6.5).
 *
 *        floor      lowest acceptable                    highest
 *          |               |<------- window -------------->|
 *     late | late          | accepted                      | accepted, moves the window
 *
 * The standard asks for no more than the lowest acceptable PN, under which duplicates inside the
 * window pass. A bitmap over the window refuses those too. Memory is bounded: the bitmap covers
 * the last REPLAY_BITS_MAX numbers; with a larger window, frames older than that are accepted as
 * the standard says, duplicates or not.
 *
 * Three steps, and their order is the point: check, authenticate, commit. A forged number must not
 * move the window, so only an authenticated frame is committed; and since a batch is checked as a
 * whole before any of it is committed, commit looks again.
 *
 * A window is used by one thread at a time.
 */
#ifndef LASTMILE_REPLAY_H
#define LASTMILE_REPLAY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define REPLAY_WINDOW_MAX ((UINT32_C(1) << 30) - 1)
#define REPLAY_BITS_MAX   (UINT32_C(1) << 20) /* 128 KiB for one SA, at most */

struct replay {
    uint64_t floor;   /* nothing below is accepted: set at installation, raised by MKA */
    uint64_t highest; /* greatest number committed; floor - 1 before the first */
    uint32_t window;  /* frames; 0 is strict order */
    uint32_t mask;    /* bits in the bitmap - 1 */
    uint64_t *bitmap; /* a ring: number n has bit n & mask; replay_words(window) words */
};

/* replay_words returns the 64-bit words that the bitmap of a window needs. */
size_t replay_words(uint32_t window);

/* replay_init accepts numbers from `lowest`, at least 1, on. `bitmap` stays the caller's. */
void replay_init(struct replay *replay, uint32_t window, uint64_t lowest, uint64_t *bitmap);

/* replay_raise raises the lowest acceptable number (delay protection); lower ones do nothing. */
void replay_raise(struct replay *replay, uint64_t lowest);

/* replay_lowest returns the lowest acceptable number (for strict order after the last number of
 * all: that number). */
static inline uint64_t replay_lowest(const struct replay *replay)
{
    uint64_t lowest = replay->highest - replay->window;

    if (replay->highest < replay->window)
        lowest = 0;
    lowest += lowest != UINT64_MAX;
    return lowest > replay->floor ? lowest : replay->floor;
}

/* replay_check tells whether a frame with this number may be authenticated: false if it is late
 * or was seen before. Changes nothing. */
static inline bool replay_check(const struct replay *replay, uint64_t pn)
{
    if (pn < replay->floor)
        return false;
    if (pn > replay->highest)
        return true;
    const uint64_t age = replay->highest - pn;
    if (age >= replay->window)
        return false;
    if (age > replay->mask)
        return true;
    const uint64_t bit = pn & replay->mask;
    return !(replay->bitmap[bit / 64] >> bit % 64 & 1);
}

/* replay_commit_next records `count` numbers that follow the highest one, all authenticated: what
 * a batch in order comes to. */
void replay_commit_next(struct replay *replay, uint32_t count);

/* replay_advance clears the bits between the highest number and a greater one; not to be called
 * from outside. */
void replay_advance(struct replay *replay, uint64_t pn);

/* replay_commit records an authenticated number. Returns false, and records nothing, if it became
 * late or was seen since it was checked. */
static inline bool replay_commit(struct replay *replay, uint64_t pn)
{
    if (!replay_check(replay, pn))
        return false;
    const uint64_t bit = pn & replay->mask;
    if (pn > replay->highest) {
        if (pn != replay->highest + 1) /* else its bit is set below, whatever it was */
            replay_advance(replay, pn);
        replay->highest = pn;
    }
    if (replay->highest - pn <= replay->mask)
        replay->bitmap[bit / 64] |= UINT64_C(1) << bit % 64;
    return true;
}

#endif
