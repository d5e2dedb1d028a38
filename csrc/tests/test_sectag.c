#include "check.h"
#include "sectag.h"

#include <string.h>

static uint8_t frame[256];
static const uint8_t sci[8] = {2, 0, 0, 0, 0, 10, 0, 1};

static uint32_t build(uint8_t tci_an, uint32_t data_len, uint32_t pn)
{
    memset(frame, 0x5A, sizeof frame);
    sectag_build(frame + 12, tci_an, sectag_short_length(data_len), pn, sci);
    return 12 + sectag_size(tci_an) + data_len + 16;
}

/* What 9.5 and 10.6 allow, spelled out apart from the code under test. */
static bool allowed(unsigned tci_an)
{
    const bool version = tci_an >> 7 & 1, es = tci_an >> 6 & 1, sc = tci_an >> 5 & 1;
    const bool scb = tci_an >> 4 & 1, e = tci_an >> 3 & 1, c = tci_an >> 2 & 1;
    if (version)
        return false;
    if (sc && es)
        return false;
    if (sc && scb)
        return false;
    return e == c;
}

int main(void)
{
    struct sectag tag;

    /* All 256 first octets: what is allowed parses to what was built, the rest is a bad tag. */
    for (unsigned tci_an = 0; tci_an < 256; tci_an++) {
        const uint32_t len = build((uint8_t)tci_an, 60, 0x01020304);
        const bool ok = sectag_parse(frame, len, &tag);
        CHECK_EQUAL(ok, allowed(tci_an));
        if (!ok)
            continue;
        CHECK_EQUAL(tag.tci_an, tci_an);
        CHECK_EQUAL(tag.pn_low, 0x01020304);
        CHECK_EQUAL(tag.data_at, tci_an & SECTAG_TCI_SC ? 28 : 20);
        CHECK_EQUAL(tag.data_len, 60);
        CHECK((tag.sci != NULL) == ((tci_an & SECTAG_TCI_SC) != 0));
        CHECK(!tag.sci || memcmp(tag.sci, sci, 8) == 0);
    }

    /* SL: every length around the limit, exact, padded, and one octet short. */
    for (uint32_t data_len = 2; data_len < 80; data_len++) {
        const uint32_t len = build(SECTAG_TCI_SC, data_len, 1);
        CHECK_EQUAL(frame[15], data_len < 48 ? data_len : 0);
        CHECK(sectag_parse(frame, len, &tag));
        CHECK_EQUAL(tag.data_len, data_len);
        CHECK(sectag_parse(frame, len + 9, &tag));
        CHECK_EQUAL(tag.data_len, data_len < 48 ? data_len : data_len + 9);
        if (data_len <= 48)
            CHECK(!sectag_parse(frame, len - 1, &tag));
    }
    for (unsigned sl = 0; sl < 256; sl++) {
        build(SECTAG_TCI_SC, 60, 1);
        frame[15] = (uint8_t)sl;
        CHECK_EQUAL(sectag_parse(frame, 12 + 16 + 60 + 16, &tag), sl == 0 || (sl >= 2 && sl < 48));
    }

    /* Truncated anywhere, nothing is read beyond the end (the sanitizer watches). */
    for (uint32_t len = 14; len < 44; len++) {
        uint8_t exact[64];
        build(SECTAG_TCI_SC, 2, 1);
        memcpy(exact + sizeof exact - len, frame, len);
        CHECK(!sectag_present(exact + sizeof exact - len, 13));
        CHECK(sectag_present(exact + sizeof exact - len, len));
        CHECK(!sectag_parse(exact + sizeof exact - len, len, &tag) || len >= 46);
    }
    frame[13] = 0;
    CHECK(!sectag_present(frame, 60));
    return check_report("sectag");
}
