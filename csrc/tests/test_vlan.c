#include "check.h"
#include "vlan.h"

#include <string.h>

int main(void)
{
    uint8_t buffer[64];
    uint8_t *const frame = buffer + 16;
    for (unsigned i = 0; i < sizeof buffer; i++)
        buffer[i] = (uint8_t)(i + 1);
    uint8_t before[48];
    memcpy(before, frame, sizeof before);
    frame[12] = before[12] = 0x08;
    frame[13] = before[13] = 0x00;
    CHECK_EQUAL(vlan_count(frame, 48, 2), 0);

    /* Two pushes make QinQ, outermost last; addresses stay in front, the payload stays put. */
    uint8_t *one = vlan_push(frame, VLAN_TPID, 0x6064);
    CHECK(one == frame - 4);
    CHECK_EQUAL(vlan_count(one, 52, 2), 1);
    uint8_t *two = vlan_push(one, VLAN_STPID, 0x0004);
    CHECK(memcmp(two, before, 12) == 0);
    CHECK_EQUAL(wire_get32(two + 12), 0x88A80004);
    CHECK_EQUAL(wire_get32(two + 16), 0x81006064);
    CHECK(memcmp(two + 20, before + 12, sizeof before - 12) == 0);
    CHECK_EQUAL(vlan_count(two, 56, 0), 0);
    CHECK_EQUAL(vlan_count(two, 56, 1), 1);
    CHECK_EQUAL(vlan_count(two, 56, 2), 2);
    CHECK_EQUAL(vlan_count(two, 56, 9), 2);

    /* A tag needs a type behind it: at the end of a frame, one octet decides. */
    CHECK_EQUAL(vlan_count(two, 22, 2), 2);
    CHECK_EQUAL(vlan_count(two, 21, 2), 1);
    CHECK_EQUAL(vlan_count(two, 18, 2), 1);
    CHECK_EQUAL(vlan_count(two, 17, 2), 0);
    CHECK_EQUAL(vlan_count(two, 0, 2), 0);

    /* Popping undoes pushing. */
    CHECK(vlan_pop(vlan_pop(two)) == frame);
    CHECK(memcmp(frame, before, sizeof before) == 0);
    return check_report("vlan");
}
