/*
 * wire: numbers in network order at any alignment.
 *
 * memcpy of a constant size compiles to one load or store; a cast would be undefined behaviour
 * where the pointer is not aligned.
 */
#ifndef LASTMILE_WIRE_H
#define LASTMILE_WIRE_H

#include <stdint.h>
#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "wire_* swap on little endian machines");

static inline uint16_t wire_get16(const uint8_t *at)
{
    uint16_t raw;
    memcpy(&raw, at, sizeof raw);
    return __builtin_bswap16(raw);
}

static inline uint32_t wire_get32(const uint8_t *at)
{
    uint32_t raw;
    memcpy(&raw, at, sizeof raw);
    return __builtin_bswap32(raw);
}

static inline void wire_put16(uint8_t *at, uint16_t value)
{
    const uint16_t raw = __builtin_bswap16(value);
    memcpy(at, &raw, sizeof raw);
}

static inline void wire_put32(uint8_t *at, uint32_t value)
{
    const uint32_t raw = __builtin_bswap32(value);
    memcpy(at, &raw, sizeof raw);
}

static inline void wire_put64(uint8_t *at, uint64_t value)
{
    const uint64_t raw = __builtin_bswap64(value);
    memcpy(at, &raw, sizeof raw);
}

/* wire_move_addresses copies the 12 octets of DA and SA; the places may overlap. */
static inline void wire_move_addresses(uint8_t *to, const uint8_t *from)
{
    uint64_t head;
    uint32_t tail;
    memcpy(&head, from, sizeof head);
    memcpy(&tail, from + sizeof head, sizeof tail);
    memcpy(to, &head, sizeof head);
    memcpy(to + sizeof head, &tail, sizeof tail);
}

#endif
