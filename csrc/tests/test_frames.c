/* What must be true of frames in runs, which a cipher may take whole (gcm_frames.h): nothing that
 * anybody can see tells how they were done. Every case goes through two SecYs, one with the cipher
 * under test and one with openssl, which knows nothing of whole frames: the same octets in the
 * arena, the same descriptions, verdicts, counters and numbers must come out of both.
 *
 *   test_frames                   all of it, a few seconds
 *   test_frames --random N [SEED] N random conversations per cipher, for as long as you like */
#include "check.h"
#include "secy.h"

#include <stdlib.h>

/* ipsec-mb's manager lives as long as the process, at an address that it keeps hidden. */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void)
{
    return "leak:alloc_mb_mgr";
}

enum {
    RUN_MAX = 150, /* frames */
    LEN_MAX = 9216,
    STRIDE_MAX = LEN_MAX + 192,
};

static const uint8_t sci[8] = {2, 0, 0, 0, 0, 10, 0, 1};
static const uint8_t sak[32] = {9, 8, 7, 6, 5, 4, 3, 2, 1};

static uint64_t random_state = 0x9e3779b97f4a7c15u;

static uint32_t random_below(uint32_t bound)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (uint32_t)(random_state >> 32) % bound;
}

/* ---- two SecYs, each with its own arena ---- */

struct side {
    struct secy *secy;
    uint8_t *arena;
    struct frame frames[RUN_MAX];
};

static struct side mine, other;
static uint8_t *original;
static size_t arena_len;

static struct secy_config base_config(uint64_t suite)
{
    const struct secy_config config = {
        .suite = UINT64_C(0x0080C20001000000) + suite,
        .sci = {2, 0, 0, 0, 0, 10, 0, 1},
        .frame_max = LEN_MAX + 64,
        .replay_window = 64,
        .replay_protect = 1,
        .protect = 1,
        .encrypt = 1,
        .include_sci = 1,
        .pop_vlan = 1,
    };
    return config;
}

static struct secy *make(const struct secy_config *config, const char *backend, uint64_t pn,
                         uint64_t lowest_pn)
{
    const uint64_t suite = config->suite & 0xf;
    const struct secy_key key = {.sak = sak,
                                 .sak_len = suite & 1 ? 16 : 32,
                                 .ssci = suite > 2 ? 0x01020304 : 0,
                                 .salt = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}};
    struct secy *secy;

    CHECK_EQUAL(secy_new(config, backend, &secy), ERR_OK);
    CHECK_EQUAL(secy_tx_install(secy, 1, &key, pn), ERR_OK);
    CHECK_EQUAL(secy_tx_enable(secy, 1), ERR_OK);
    CHECK_EQUAL(secy_rx_add(secy, sci), ERR_OK);
    CHECK_EQUAL(secy_rx_install(secy, sci, 1, &key, lowest_pn), ERR_OK);
    CHECK_EQUAL(secy_rx_enable(secy, sci, 1, 1), ERR_OK);
    return secy;
}

static void begin(const struct secy_config *config, const char *backend, uint64_t pn,
                  uint64_t lowest_pn)
{
    mine.secy = make(config, backend, pn, lowest_pn);
    other.secy = make(config, "openssl", pn, lowest_pn);
}

static void end(void)
{
    secy_free(mine.secy);
    secy_free(other.secy);
}

/* `n` frames of one length at any alignment, and random octets all around them. */
static void lay_out(size_t n, uint32_t len, uint16_t vlan, uint32_t shift)
{
    const uint32_t stride = len + 160;

    arena_len = n * stride + 64;
    for (size_t i = 0; i < arena_len; i += 8) {
        random_below(2);
        memcpy(original + i, &random_state, 8);
    }
    for (size_t i = 0; i < n; i++) {
        const uint32_t at = (uint32_t)i * stride + 32 + (shift + (uint32_t)i * (shift >> 6)) % 64;
        mine.frames[i] = (struct frame){.at = at, .len = len, .vlan = vlan};
        wire_put16(original + at + 12, 0x0800);
    }
    memcpy(other.frames, mine.frames, n * sizeof *mine.frames);
    memcpy(mine.arena, original, arena_len);
    memcpy(other.arena, original, arena_len);
}

static int same_counters(void)
{
    int same = 1;

    for (unsigned i = 0; counter_name(i); i++)
        same &= secy_counter(mine.secy, i) == secy_counter(other.secy, i);
    return same && secy_tx_next_pn(mine.secy, 1) == secy_tx_next_pn(other.secy, 1) &&
           secy_rx_lowest_pn(mine.secy, sci, 1) == secy_rx_lowest_pn(other.secy, sci, 1);
}

/* Of a dropped frame only the verdict is defined, and that nothing of its payload can be read. */
static int same_frames(size_t n)
{
    int same = 1;

    for (size_t i = 0; i < n; i++) {
        const struct frame *a = &mine.frames[i], *b = &other.frames[i];
        same &= a->verdict == b->verdict;
        if (verdict_delivers(b->verdict))
            same &= a->at == b->at && a->len == b->len && a->vlan == b->vlan &&
                    memcmp(mine.arena + a->at, other.arena + b->at, b->len) == 0;
    }
    return same;
}

static int protect(size_t n)
{
    secy_protect(mine.secy, mine.arena, mine.frames, n);
    secy_protect(other.secy, other.arena, other.frames, n);
    return same_frames(n) && same_counters() && memcmp(mine.arena, other.arena, arena_len) == 0;
}

static int validate(size_t n)
{
    secy_validate(mine.secy, mine.arena, mine.frames, n);
    secy_validate(other.secy, other.arena, other.frames, n);
    return same_frames(n) && same_counters();
}

static int restored(size_t i, uint32_t len, uint16_t vlan, uint32_t at)
{
    const struct frame *frame = &mine.frames[i];

    return frame->verdict == VERDICT_IN_OK && frame->at == at && frame->len == len &&
           frame->vlan == vlan && memcmp(mine.arena + at, original + at, len) == 0;
}

/* ---- cases ---- */

/* Out and in again; the octets beside the frames stay what they were. */
static void there_and_back(size_t n, uint32_t len, uint16_t vlan, uint32_t shift)
{
    uint32_t at[RUN_MAX];

    lay_out(n, len, vlan, shift);
    for (size_t i = 0; i < n; i++)
        at[i] = mine.frames[i].at;
    CHECK(protect(n));
    CHECK(validate(n));
    int right = 1;
    for (size_t i = 0; i < n; i++) {
        const size_t from = i ? at[i - 1] + len + SECY_TAILROOM : 0;
        right &= restored(i, len, vlan, at[i]);
        right &= memcmp(mine.arena + from, original + from, at[i] - SECY_HEADROOM - from) == 0;
    }
    CHECK(right);
}

static void every_length(const char *backend, uint64_t suite)
{
    const struct secy_config config = base_config(suite);

    begin(&config, backend, 1, 1);
    for (uint32_t len = SECY_FRAME_MIN; len <= LEN_MAX;
         len += len < 420 ? 1 : 1 + random_below(151))
        there_and_back(8 + random_below(9), len, len & 1 ? 100 : FRAME_NO_VLAN, random_below(4096));
    end();
}

static void every_alignment(const char *backend, uint64_t suite)
{
    static const uint32_t lens[] = {60, 72, 76, 124, 135, 252, 300, 1000};
    const struct secy_config config = base_config(suite);

    begin(&config, backend, 1, 1);
    for (size_t k = 0; k < sizeof lens / sizeof *lens; k++)
        for (uint32_t shift = 0; shift < 64; shift++)
            there_and_back(12, lens[k], shift & 1 ? 7 : FRAME_NO_VLAN, shift);
    end();
}

static void every_count(const char *backend, uint64_t suite)
{
    const struct secy_config config = base_config(suite);

    begin(&config, backend, 1, 1);
    for (uint32_t n = 1; n <= RUN_MAX; n++)
        there_and_back(n, n % 3 == 0 ? 72 : n % 3 == 1 ? 200 : 124, 5, n);
    end();
}

/* A frame with any one octet changed is refused, alone, and nothing of it can be read. */
static void every_octet(const char *backend, uint64_t suite, uint32_t len)
{
    enum { N = 9 };
    struct secy_config config = base_config(suite);
    config.replay_protect = 0;
    config.replay_window = 1 << 20;

    begin(&config, backend, 1, 1);
    const uint32_t sealed = len + SECY_HEADROOM + SECY_TAILROOM;
    for (uint32_t octet = 0; octet < sealed; octet++) {
        const unsigned victim = octet % N;
        lay_out(N, len, 100, octet);
        CHECK(protect(N));
        const uint32_t at = mine.frames[victim].at;
        mine.arena[at + octet] ^= (uint8_t)(1 << octet % 8);
        other.arena[at + octet] ^= (uint8_t)(1 << octet % 8);
        CHECK(validate(N));
        CHECK(mine.frames[victim].verdict != VERDICT_IN_OK);
        if (mine.frames[victim].verdict == VERDICT_IN_NOT_VALID) {
            int clear = 0;
            for (uint32_t i = 28; i < sealed - SECY_TAILROOM; i++)
                clear |= mine.arena[at + i] != 0;
            CHECK_EQUAL(clear, 0);
        }
        for (unsigned i = 0; i < N; i++)
            CHECK(i == victim || mine.frames[i].verdict == VERDICT_IN_OK);
    }
    end();
}

/* Numbers: exhausted within a run, the low half wraps, the receiver's too. */
static void numbers(const char *backend, uint64_t suite)
{
    const bool xpn = suite > 2;
    struct secy_config config = base_config(suite);

    for (uint32_t left = 0; left < 40; left++) {
        const uint64_t pn = (xpn ? UINT64_MAX : UINT32_MAX) - left;
        begin(&config, backend, pn, pn - 3);
        lay_out(30, 72, 9, left);
        CHECK(protect(30));
        CHECK_EQUAL(mine.frames[29].verdict == VERDICT_OUT_PN_EXHAUSTED, left + 1 < 30);
        size_t sent = left + 1 < 30 ? left + 1 : 30;
        CHECK(validate(sent));
        CHECK_EQUAL(secy_counter(mine.secy, VERDICT_IN_OK), sent);
        end();
    }
    for (uint32_t before = 0; xpn && before < 40; before++) {
        const uint64_t pn = (UINT64_C(7) << 32) - before;
        begin(&config, backend, pn, pn - 3);
        for (unsigned round = 0; round < 3; round++)
            there_and_back(30, 124, 9, before);
        end();
    }
}

/* Frames that a run must not swallow: too long, foreign, untagged, of another AN, PN 0. */
static void misfits(const char *backend, uint64_t suite)
{
    struct secy_config config = base_config(suite);

    config.frame_max = 200;
    begin(&config, backend, 1, 1);
    for (uint32_t len = 160; len < 172; len++) {
        lay_out(20, len, 3, len);
        CHECK(protect(20));
        CHECK_EQUAL(mine.frames[0].verdict == VERDICT_OUT_TOO_LONG, len + 36 > 200);
    }
    end();
    config = base_config(suite);
    begin(&config, backend, 1, 1);
    for (uint32_t octet = 12; octet < 28; octet++) {
        lay_out(40, 80, 3, octet);
        CHECK(protect(40));
        for (unsigned i = 17; i < 40; i += octet) {
            mine.arena[mine.frames[i].at + octet] ^= 0x55;
            other.arena[other.frames[i].at + octet] ^= 0x55;
        }
        CHECK(validate(40));
        CHECK(mine.frames[17].verdict != VERDICT_IN_OK);
        CHECK_EQUAL(mine.frames[16].verdict, VERDICT_IN_OK);
        CHECK_EQUAL(mine.frames[18].verdict, VERDICT_IN_OK);
    }
    end();
}

/* Any policy, any run, and a wire that loses, repeats, reorders and forges. */
static void conversation(const char *backend)
{
    const uint64_t suite = 1 + random_below(4);
    struct secy_config config = base_config(suite);
    static struct frame kept[RUN_MAX];

    config.replay_protect = random_below(4) != 0;
    config.replay_window = random_below(3) ? random_below(200) : 0;
    config.pop_vlan = random_below(4) != 0;
    config.validate = (uint8_t)random_below(2); /* SECY_STRICT or SECY_CHECK */
    if (random_below(4) == 0)
        config.conf_offset = random_below(2) ? 30 : 50;
    config.encrypt = random_below(8) != 0;
    config.include_sci = random_below(8) != 0;
    uint64_t pn = 1;
    if (suite > 2 && random_below(2)) {
        /* The low half wraps. A late frame's number is then guessed from where the window was when
         * its batch began: only a window that holds the whole conversation leaves no doubt. */
        pn = (UINT64_C(3) << 32) - random_below(300);
        config.replay_window = 2048;
    }
    begin(&config, backend, pn, pn);
    for (unsigned round = 0; round < 4; round++) {
        const uint32_t n = 1 + random_below(RUN_MAX);
        const uint32_t len = 14 + random_below(random_below(3) ? 300 : 2000);
        lay_out(n, len, random_below(3) ? (uint16_t)random_below(4095) : FRAME_NO_VLAN,
                random_below(4096));
        for (uint32_t i = 0; i < n; i++) { /* some are not like the others */
            if (random_below(20) == 0)
                mine.frames[i].len -= random_below(len - 13);
            if (random_below(40) == 0)
                mine.frames[i].vlan = 77;
        }
        memcpy(other.frames, mine.frames, n * sizeof *mine.frames);
        CHECK(protect(n));

        uint32_t arriving = 0;
        const uint32_t trouble = random_below(4); /* 0: none */
        for (uint32_t i = 0; i < n; i++) {
            if (mine.frames[i].verdict != VERDICT_OUT_ENCRYPTED &&
                mine.frames[i].verdict != VERDICT_OUT_PROTECTED)
                continue;
            if (trouble && random_below(12) == 0) /* lost */
                continue;
            if (trouble > 1 && random_below(12) == 0) {
                const uint32_t at = mine.frames[i].at + random_below(mine.frames[i].len);
                mine.arena[at] ^= 0x10;
                other.arena[at] ^= 0x10;
            }
            kept[arriving++] = mine.frames[i];
        }
        for (uint32_t i = 0; trouble && i + 1 < arriving; i++) {
            const uint32_t with = i + random_below(arriving - i < 9 ? arriving - i : 9);
            if (random_below(6) == 0) { /* reordered */
                const struct frame swapped = kept[i];
                kept[i] = kept[with];
                kept[with] = swapped;
            }
        }
        memcpy(mine.frames, kept, arriving * sizeof *kept);
        memcpy(other.frames, kept, arriving * sizeof *kept);
        static uint8_t *sealed;
        if (!sealed)
            sealed = malloc((size_t)RUN_MAX * STRIDE_MAX);
        memcpy(sealed, mine.arena, arena_len);
        CHECK(validate(arriving));
        if (trouble == 3) { /* all of it once more */
            memcpy(mine.arena, sealed, arena_len);
            memcpy(other.arena, sealed, arena_len);
            memcpy(mine.frames, kept, arriving * sizeof *kept);
            memcpy(other.frames, kept, arriving * sizeof *kept);
            CHECK(validate(arriving));
        }
    }
    end();
}

/* All numbers of a run are used once, whoever does it: those on the wire count up by one. */
static void numbers_count_up(const char *backend)
{
    const struct secy_config config = base_config(4);

    begin(&config, backend, 1, 1);
    for (uint32_t round = 0, pn = 1; round < 50; round++) {
        const uint32_t n = 1 + random_below(RUN_MAX);
        lay_out(n, 14 + random_below(200), 8, round);
        CHECK(protect(n));
        for (uint32_t i = 0; i < n; i++)
            CHECK_EQUAL(wire_get32(mine.arena + mine.frames[i].at + 16), pn++);
    }
    end();
}

int main(int argc, char **argv)
{
    const bool random = argc > 1 && strcmp(argv[1], "--random") == 0;
    unsigned long conversations = random && argc > 2 ? strtoul(argv[2], NULL, 10) : 100;

    if (random && argc > 3)
        random_state ^= strtoull(argv[3], NULL, 10);
    mine.arena = malloc((size_t)RUN_MAX * STRIDE_MAX);
    other.arena = malloc((size_t)RUN_MAX * STRIDE_MAX);
    original = malloc((size_t)RUN_MAX * STRIDE_MAX);
    for (size_t b = 0; gcm_backend_at(b); b++) {
        const char *name = gcm_backend_name(gcm_backend_at(b));
        if (!gcm_backend_usable(gcm_backend_at(b)) || strcmp(name, "openssl") == 0)
            continue;
        for (unsigned long i = 0; i < conversations; i++)
            conversation(name);
        if (random)
            continue;
        numbers_count_up(name);
        for (uint64_t suite = 1; suite <= 4; suite++) {
            every_alignment(name, suite);
            every_count(name, suite);
            numbers(name, suite);
            misfits(name, suite);
        }
        every_length(name, 1);
        every_length(name, 4);
        every_octet(name, 4, 72);
        every_octet(name, 3, 130);
        every_octet(name, 2, 300);
    }
    free(mine.arena);
    free(other.arena);
    free(original);
    return check_report("frames");
}
