/*
 * vlan: 802.1Q tags, pushed and popped in place (IEEE 802.1Q-2018 clause 9).
 *
 *     DA(6) SA(6) | TPID(2) TCI(2) | type ...        TCI = PCP(3) DEI(1) VID(12)
 *
 * A push moves DA and SA four octets towards lower addresses (the buffer's headroom), so that the
 * payload never moves; a pop moves them back. QinQ is two pushes, the customer's tag (8100) first
 * and the service tag (88A8) second.
 */
#ifndef LASTMILE_VLAN_H
#define LASTMILE_VLAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "wire.h"

enum {
    VLAN_SIZE = 4,       /* octets of one tag */
    VLAN_TPID = 0x8100,  /* customer tag */
    VLAN_STPID = 0x88A8, /* service tag of QinQ */
    VLAN_NONE = 0xFFFF,  /* no tag: VID 4095 is reserved, so no TCI has this value */
};

/* vlan_is_tag tells whether an EtherType opens an 802.1Q tag. */
static inline bool vlan_is_tag(uint16_t type)
{
    return type == VLAN_TPID || type == VLAN_STPID;
}

/* vlan_push puts a tag between SA and type and returns the frame's new start, 4 octets lower. */
static inline uint8_t *vlan_push(uint8_t *frame, uint16_t tpid, uint16_t tci)
{
    uint8_t *start = frame - VLAN_SIZE;
    wire_move_addresses(start, frame);
    wire_put16(start + 12, tpid);
    wire_put16(start + 14, tci);
    return start;
}

/* vlan_pop takes the outermost tag off a frame that has one and returns the frame's new start, 4
 * octets higher. The caller has seen TPID and TCI. */
static inline uint8_t *vlan_pop(uint8_t *frame)
{
    uint8_t *start = frame + VLAN_SIZE;
    wire_move_addresses(start, frame);
    return start;
}

/* vlan_count returns how many whole tags, at most `limit`, stand between SA and the type of a
 * frame of `len` octets; a type must follow the last one. */
unsigned vlan_count(const uint8_t *frame, size_t len, unsigned limit);

#endif
