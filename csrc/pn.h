/*
 * pn: packet numbers (IEEE 802.1AE-2018 10.5.2, 10.6.2).
 *
 * A transmit SA hands out 1, 2, 3 ... to the suite's last number and then nothing more: a number
 * used twice under one key gives the key away. Numbers are taken in blocks, one atomic exchange a
 * batch, so that several cores may send under one SA.
 *
 * The wire carries the low 32 bits. With extended packet numbering the receiver finds the high
 * half from the lowest acceptable PN: of the two numbers with these low bits that enclose it, the
 * one less than 2^31 away upwards.
 */
#ifndef LASTMILE_PN_H
#define LASTMILE_PN_H

#include <stdatomic.h>
#include <stdint.h>

#define PN_MAX     UINT64_C(0xFFFFFFFF)         /* last number of GCM-AES-128 and -256 */
#define PN_MAX_XPN UINT64_C(0xFFFFFFFFFFFFFFFF) /* last number of the XPN suites */

struct pn {
    _Atomic uint64_t next; /* 0: exhausted. Never goes back. */
    uint64_t max;          /* last number that may be used: the suite's */
};

/* pn_init starts at `next`, 1 to max. */
static inline void pn_init(struct pn *pn, uint64_t next, uint64_t max)
{
    atomic_store_explicit(&pn->next, next, memory_order_relaxed);
    pn->max = max;
}

/* pn_next returns the number of the next frame, 0 if there is none left. */
static inline uint64_t pn_next(const struct pn *pn)
{
    return atomic_load_explicit(&pn->next, memory_order_relaxed);
}

/* pn_take takes up to `want` consecutive numbers, from *first on; returns how many there were.
 * Safe from several threads. */
uint32_t pn_take(struct pn *pn, uint32_t want, uint64_t *first);

/* pn_recover returns the 64-bit number whose low half is `low`, given the lowest acceptable one.
 * Above 2^64 - 2^31 there is nothing to carry into: the result then wraps below `lowest`, where
 * the replay check refuses it. */
static inline uint64_t pn_recover(uint32_t low, uint64_t lowest)
{
    const uint32_t lowest_low = (uint32_t)lowest;
    const uint64_t high = lowest & ~PN_MAX;

    return (high | low) + (lowest_low & ~low & UINT32_C(0x80000000) ? PN_MAX + 1 : 0);
}

#endif
