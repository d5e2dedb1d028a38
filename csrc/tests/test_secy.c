/* secy: tables, and batches whose every octet outside the frames is watched. */
#include "check.h"
#include "secy.h"

#include <stdlib.h>

/* ipsec-mb's manager lives as long as the process, at an address that it keeps hidden. */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void)
{
    return "leak:alloc_mb_mgr";
}

enum { STRIDE = 2048, FRAMES = 200 };

static const uint8_t sci[8] = {2, 0, 0, 0, 0, 10, 0, 1};
static const uint8_t other[8] = {2, 0, 0, 0, 0, 11, 0, 1};
static const uint8_t sak[32] = {1, 2, 3, 4, 5, 6, 7, 8};

static struct secy_config base_config(void)
{
    const struct secy_config config = {
        .suite = UINT64_C(0x0080C20001000004),
        .sci = {2, 0, 0, 0, 0, 10, 0, 1},
        .frame_max = 9216,
        .replay_window = 1024,
        .replay_protect = 1,
        .protect = 1,
        .encrypt = 1,
        .include_sci = 1,
    };
    return config;
}

static const struct secy_key key = {.sak = sak, .sak_len = 32, .ssci = 9};

static void config_is_checked(void)
{
    struct secy *secy;
    struct secy_config config = base_config();
    CHECK_EQUAL(secy_new(&config, "no such cipher", &secy), ERR_BACKEND);
    CHECK(secy == NULL);
#define REFUSED(field, value, code)                                                                \
    config = base_config();                                                                        \
    config.field = (value);                                                                        \
    CHECK_EQUAL(secy_new(&config, NULL, &secy), (code));                                           \
    CHECK(secy == NULL)
    REFUSED(suite, UINT64_C(0x0080C20001000000), ERR_SUITE);
    REFUSED(suite, UINT64_C(0x0080C20001000005), ERR_SUITE);
    REFUSED(suite, 0, ERR_SUITE);
    REFUSED(replay_window, UINT32_C(1) << 30, ERR_WINDOW);
    REFUSED(conf_offset, 31, ERR_OFFSET);
    REFUSED(end_station, 1, ERR_TCI);
    REFUSED(scb, 1, ERR_TCI);
    REFUSED(validate, 3, ERR_ARGUMENT);
    REFUSED(clear_tags, 3, ERR_ARGUMENT);
    config = base_config();
    config.replay_window = (UINT32_C(1) << 30) - 1;
    CHECK_EQUAL(secy_new(&config, NULL, &secy), ERR_OK);
    secy_free(secy);
    secy_free(NULL);
}

static void tables(void)
{
    struct secy_config config = base_config();
    struct secy *secy;
    CHECK_EQUAL(secy_new(&config, NULL, &secy), ERR_OK);
    CHECK_EQUAL(secy_tx_install(secy, 4, &key, 1), ERR_AN);
    CHECK_EQUAL(secy_tx_install(secy, 0, &key, 0), ERR_PN);
    CHECK_EQUAL(secy_tx_enable(secy, 0), ERR_NO_SA);
    CHECK_EQUAL(secy_tx_install(secy, 0, &key, 1), ERR_OK);
    CHECK_EQUAL(secy_tx_install(secy, 0, &key, 1), ERR_AN_IN_USE);
    CHECK_EQUAL(secy_tx_enable(secy, 0), ERR_OK);
    CHECK_EQUAL(secy_tx_next_pn(secy, 0), 1);
    CHECK_EQUAL(secy_tx_delete(secy, 0), ERR_OK);
    CHECK_EQUAL(secy_tx_delete(secy, 0), ERR_NO_SA);
    CHECK_EQUAL(secy->encoding_an, -1);

    CHECK_EQUAL(secy_rx_install(secy, sci, 0, &key, 1), ERR_NO_SC);
    CHECK_EQUAL(secy_rx_add(secy, sci), ERR_OK);
    CHECK_EQUAL(secy_rx_add(secy, sci), ERR_OK);
    CHECK_EQUAL(secy_rx_install(secy, sci, 4, &key, 1), ERR_AN);
    CHECK_EQUAL(secy_rx_install(secy, sci, 3, &key, 5), ERR_OK);
    CHECK_EQUAL(secy_rx_install(secy, sci, 3, &key, 5), ERR_AN_IN_USE);
    CHECK_EQUAL(secy_rx_lowest_pn(secy, sci, 3), 5);
    CHECK_EQUAL(secy_rx_lowest_pn(secy, sci, 2), 0);
    CHECK_EQUAL(secy_rx_raise(secy, sci, 3, 77), ERR_OK);
    CHECK_EQUAL(secy_rx_raise(secy, sci, 3, 0), ERR_PN);
    CHECK_EQUAL(secy_rx_lowest_pn(secy, sci, 3), 77);
    CHECK_EQUAL(secy_rx_enable(secy, other, 3, 1), ERR_NO_SC);
    CHECK_EQUAL(secy_rx_delete(secy, sci, 3), ERR_OK);

    /* Deleting leaves nothing of the key behind. */
    CHECK_EQUAL(secy_tx_install(secy, 1, &key, 1), ERR_OK);
    CHECK_EQUAL(secy_tx_delete(secy, 1), ERR_OK);
    const uint8_t *octets = (const uint8_t *)&secy->tx[1];
    unsigned left = 0;
    for (size_t i = 0; i < sizeof secy->tx[1]; i++)
        left += octets[i] != 0;
    CHECK_EQUAL(left, 0);

    uint8_t one[8] = {2, 0, 0, 0, 1, 0, 0, 0};
    for (uint8_t i = 0; i < SECY_RX_SC_MAX - 1; i++) {
        one[7] = (uint8_t)(i + 1);
        CHECK_EQUAL(secy_rx_add(secy, one), ERR_OK);
    }
    CHECK_EQUAL(secy_rx_add(secy, other), ERR_SC_FULL);
    CHECK_EQUAL(secy_rx_remove(secy, sci), ERR_OK);
    CHECK_EQUAL(secy_rx_remove(secy, sci), ERR_NO_SC);
    CHECK_EQUAL(secy_rx_add(secy, other), ERR_OK);
    secy_free(secy);
}

/* Batches of all sizes with each cipher: there and back, and no octet of the arena changes beside
 * the frames and the room that belongs to them. */
static void there_and_back(const char *backend, uint64_t suite, bool encrypt, uint8_t offset)
{
    struct secy_config config = base_config();
    config.suite = suite;
    config.encrypt = encrypt;
    config.conf_offset = offset;
    config.pop_vlan = 1;
    struct secy_key fitting = key;
    fitting.sak_len = suite & 1 ? 16 : 32;
    fitting.ssci = (suite & 0xF) > 2 ? 9 : 0;

    struct secy *secy;
    CHECK_EQUAL(secy_new(&config, backend, &secy), ERR_OK);
    CHECK_EQUAL(secy_tx_install(secy, 2, &fitting, 1), ERR_OK);
    CHECK_EQUAL(secy_tx_enable(secy, 2), ERR_OK);
    CHECK_EQUAL(secy_rx_add(secy, sci), ERR_OK);
    CHECK_EQUAL(secy_rx_install(secy, sci, 2, &fitting, 1), ERR_OK);
    CHECK_EQUAL(secy_rx_enable(secy, sci, 2, 1), ERR_OK);

    uint8_t *arena = malloc(FRAMES * STRIDE), *before = malloc(FRAMES * STRIDE);
    struct frame frames[FRAMES];
    for (size_t i = 0; i < FRAMES * STRIDE; i++)
        arena[i] = (uint8_t)(i * 131 >> 3);
    for (unsigned i = 0; i < FRAMES; i++) {
        const uint32_t len = 14 + i * 9 % 1600;
        const uint16_t vlan = i % 3 ? (uint16_t)(i + 1) : FRAME_NO_VLAN;
        frames[i] = (struct frame){.at = i * STRIDE + 64 + i % 64, .len = len, .vlan = vlan};
        wire_put16(arena + frames[i].at + 12, 0x0800);
    }
    memcpy(before, arena, FRAMES * STRIDE);

    CHECK_EQUAL(frames_check(frames, FRAMES, FRAMES * STRIDE, SECY_HEADROOM, SECY_TAILROOM), 0);
    secy_protect(secy, arena, frames, FRAMES);
    for (unsigned i = 0; i < FRAMES; i++) {
        CHECK(verdict_delivers(frames[i].verdict));
        CHECK_EQUAL(frames[i].at, i * STRIDE + 64 + i % 64 - (i % 3 ? 20 : 16));
    }
    /* A forged, a repeated and a foreign frame among the good ones. */
    arena[frames[7].at + 40] ^= 1;
    secy_validate(secy, arena, frames, FRAMES);
    for (unsigned i = 0; i < FRAMES; i++) {
        const uint32_t at = i * STRIDE + 64 + i % 64, len = 14 + i * 9 % 1600;
        if (i == 7) {
            CHECK_EQUAL(frames[i].verdict, VERDICT_IN_NOT_VALID);
            continue;
        }
        CHECK_EQUAL(frames[i].verdict, VERDICT_IN_OK);
        CHECK_EQUAL(frames[i].at, at);
        CHECK_EQUAL(frames[i].len, len);
        CHECK_EQUAL(frames[i].vlan, i % 3 ? i + 1 : FRAME_NO_VLAN);
        CHECK(memcmp(arena + at, before + at, len) == 0);
        CHECK(memcmp(arena + i * STRIDE, before + i * STRIDE, at - 20 - i * STRIDE) == 0);
        CHECK(memcmp(arena + at + len + 16, before + at + len + 16,
                     (i + 1) * STRIDE - (at + len + 16)) == 0);
    }
    CHECK_EQUAL(secy_counter(secy, VERDICT_IN_OK), FRAMES - 1);
    CHECK_EQUAL(secy_counter(secy, VERDICT_IN_NOT_VALID), 1);
    CHECK_EQUAL(secy_counter(secy, encrypt ? VERDICT_OUT_ENCRYPTED : VERDICT_OUT_PROTECTED),
                FRAMES);
    free(arena);
    free(before);
    secy_free(secy);
}

static void bounds(void)
{
    struct frame two[2] = {{.at = 20, .len = 60}, {.at = 116, .len = 60}};
    CHECK_EQUAL(frames_check(two, 2, 192, 20, 16), ERR_OK);
    CHECK_EQUAL(frames_check(two, 2, 191, 20, 16), ERR_BOUNDS);
    two[1].at = 115;
    CHECK_EQUAL(frames_check(two, 2, 192, 20, 16), ERR_BOUNDS);
    CHECK_EQUAL(frames_check(two, 2, 192, 0, 0), ERR_OK);
    two[0].at = 19;
    CHECK_EQUAL(frames_check(two, 1, 192, 20, 16), ERR_BOUNDS);
    two[0] = (struct frame){.at = UINT32_MAX, .len = UINT32_MAX};
    CHECK_EQUAL(frames_check(two, 1, 1 << 20, 20, 16), ERR_BOUNDS);
    CHECK_EQUAL(frames_check(two, 0, 0, 20, 16), ERR_OK);
}

int main(void)
{
    config_is_checked();
    tables();
    bounds();
    for (size_t i = 0; gcm_backend_at(i); i++) {
        if (!gcm_backend_usable(gcm_backend_at(i)))
            continue;
        const char *name = gcm_backend_name(gcm_backend_at(i));
        for (uint64_t suite = 1; suite <= 4; suite++) {
            there_and_back(name, UINT64_C(0x0080C20001000000) + suite, true, 0);
            there_and_back(name, UINT64_C(0x0080C20001000000) + suite, true, 30);
            there_and_back(name, UINT64_C(0x0080C20001000000) + suite, false, 0);
        }
    }
    unsigned named = 0;
    while (counter_name(named))
        named++;
    CHECK_EQUAL(named, VERDICT_COUNT + OCTETS_COUNT);
    return check_report("secy");
}
