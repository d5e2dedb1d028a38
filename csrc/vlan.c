#include "vlan.h"

unsigned vlan_count(const uint8_t *frame, size_t len, unsigned limit)
{
    unsigned count = 0;
    size_t type_at = 12;

    while (count < limit && type_at + VLAN_SIZE + 2 <= len &&
           vlan_is_tag(wire_get16(frame + type_at))) {
        type_at += VLAN_SIZE;
        count++;
    }
    return count;
}
