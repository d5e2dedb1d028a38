/*
 * sectag: the MACsec header, read and written (IEEE 802.1AE-2018 clause 9).
 *
 *     DA(6) SA(6) | 88E5 | TCI/AN | SL | PN(4) | [SCI(8)] | secure data | ICV(16) | [padding]
 *                 '---------- SecTAG: 8 or 16 -----------'
 *     TCI/AN   V=0  ES  SC  SCB  E  C  AN(2)           SL: octets of secure data if below 48, else
 * 0
 *
 * Secure data is everything behind SA of the frame as the user sent it, from its type on.
 */
#ifndef LASTMILE_SECTAG_H
#define LASTMILE_SECTAG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "wire.h"

enum {
    SECTAG_ETHERTYPE = 0x88E5,
    SECTAG_AT = 12,        /* octets before it: DA and SA */
    SECTAG_SIZE = 8,       /* with its EtherType, without SCI */
    SECTAG_SCI_SIZE = 8,   /* an explicit SCI */
    SECTAG_SIZE_MAX = 16,  /* with its EtherType and SCI */
    SECTAG_ICV_SIZE = 16,  /* of all four cipher suites */
    SECTAG_SHORT_MAX = 47, /* greatest SL; from 48 octets on SL is 0 (9.7) */
    SECTAG_DATA_MIN = 2,   /* secure data holds at least the type */
    SECTAG_TCI_VERSION = 0x80,
    SECTAG_TCI_ES = 0x40,  /* end station: SCI is SA and port 1 */
    SECTAG_TCI_SC = 0x20,  /* explicit SCI */
    SECTAG_TCI_SCB = 0x10, /* EPON single copy broadcast */
    SECTAG_TCI_E = 0x08,   /* encrypted */
    SECTAG_TCI_C = 0x04,   /* secure data is not the user's octets */
    SECTAG_AN_MASK = 0x03,
};

_Static_assert(SECTAG_SIZE + SECTAG_SCI_SIZE == SECTAG_SIZE_MAX, "the parts make the whole");

/* sectag: what a receiver reads. `sci` points into the frame, NULL where there is none. */
struct sectag {
    const uint8_t *sci;
    uint32_t pn_low;   /* the 32 bits on the wire */
    uint32_t data_at;  /* where secure data begins, from DA: 20 or 28 */
    uint32_t data_len; /* its octets; the ICV follows, padding after that is to be ignored */
    uint8_t tci_an;
};

/* sectag_size returns the octets of a SecTAG with this TCI: 8 or 16. */
static inline uint32_t sectag_size(uint8_t tci_an)
{
    return SECTAG_SIZE + (tci_an & SECTAG_TCI_SC ? SECTAG_SCI_SIZE : 0);
}

/* sectag_short_length returns the SL of `data_len` octets of secure data (9.7). */
static inline uint8_t sectag_short_length(uint32_t data_len)
{
    return data_len <= SECTAG_SHORT_MAX ? (uint8_t)data_len : 0;
}

/* sectag_present tells whether a frame of `len` octets has MACsec's EtherType behind SA. */
static inline bool sectag_present(const uint8_t *frame, size_t len)
{
    return len >= SECTAG_AT + 2 && wire_get16(frame + SECTAG_AT) == SECTAG_ETHERTYPE;
}

/* sectag_tci_valid tells whether TCI and AN may be received on a controlled port: version 0, no
 * explicit SCI beside ES or SCB, and E equal to C: E without C is not for the controlled port, and
 * the suites of clause 14 never change text without encrypting it (9.5, 10.6). */
bool sectag_tci_valid(uint8_t tci_an);

/* sectag_parse reads the SecTAG of a frame for which sectag_present is true, with the checks of
 * 9.12: TCI, SL, and lengths against the frame's. PN 0 passes: whether it is valid depends on the
 * suite. Returns false for what a receiver must discard as a bad tag. */
bool sectag_parse(const uint8_t *frame, size_t len, struct sectag *tag);

/* sectag_build writes a SecTAG of sectag_size(tci_an) octets at `at`; `sci` has 8 octets and is
 * looked at only if TCI says SC. */
void sectag_build(uint8_t *at, uint8_t tci_an, uint8_t short_length, uint32_t pn_low,
                  const uint8_t *sci);

#endif
