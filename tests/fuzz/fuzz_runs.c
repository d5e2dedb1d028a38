/* Fuzz target: runs of frames, which a cipher may take whole (gcm_frames.h).
 *
 * The first octets choose the suite, the receiver's policy, the length and the
 * number of the frames; the rest are steps, four octets each, that change the
 * run after it was protected: an octet of a frame, its length, its place. The
 * fastest cipher and openssl, which knows nothing of whole frames, must come to
 * the same verdicts, octets and counters. */
#include "secy.h"

#include <stdlib.h>

enum { SUITES = 4, POLICIES = 16, FRAMES = 40, LEN_MAX = 600, STRIDE = 768, STEP = 4, HEAD = 5 };

static const uint8_t sak[32] = {42};
static const uint8_t sci[8] = {2, 0, 0, 0, 0, 10, 0, 1};

static void must(int error)
{
    if (error)
        abort();
}

/* The SecY of a choice, with fresh SAs. */
static struct secy *fresh(struct secy **made, const char *backend, const uint8_t *choice)
{
    const unsigned suite = choice[0] % SUITES;
    const struct secy_config config = {
        .suite = UINT64_C(0x0080C20001000001) + suite,
        .sci = {2, 0, 0, 0, 0, 10, 0, 1},
        .frame_max = LEN_MAX + 64,
        .replay_window = choice[1] >> 2 & 1 ? 64 : 0,
        .replay_protect = choice[1] & 1,
        .validate = choice[1] >> 1 & 1 ? SECY_CHECK : SECY_STRICT,
        .pop_vlan = choice[1] >> 3 & 1,
        .protect = 1,
        .encrypt = 1,
        .include_sci = 1,
    };
    const struct secy_key key = {.sak = sak, .sak_len = suite & 1 ? 32 : 16, .ssci = suite >= 2};
    struct secy **const place = &made[suite * POLICIES + choice[1] % POLICIES];

    if (!*place) {
        must(secy_new(&config, backend, place));
        must(secy_rx_add(*place, sci));
    } else {
        must(secy_tx_delete(*place, 0));
        must(secy_rx_delete(*place, sci, 0));
    }
    must(secy_tx_install(*place, 0, &key, 1));
    must(secy_tx_enable(*place, 0));
    must(secy_rx_install(*place, sci, 0, &key, 1));
    must(secy_rx_enable(*place, sci, 0, 1));
    return *place;
}

/* One step on a frame as it lies on the wire. */
static void change(uint8_t *arena, struct frame *frames, size_t count, const uint8_t *step)
{
    struct frame *const frame = &frames[step[1] % count];
    struct frame *const beside = &frames[step[2] % count];
    const struct frame kept = *frame;

    switch (step[0] % 4) {
    case 0: /* an octet */
        arena[frame->at + (step[2] | (uint32_t)step[0] >> 7 << 8) % frame->len] ^= step[3];
        break;
    case 1: /* shorter */
        frame->len -= frame->len > step[3] + 14u ? step[3] : 0;
        break;
    case 2: /* out of order */
        *frame = *beside;
        *beside = kept;
        break;
    default: /* again, over another one of its length */
        if (frame->len == beside->len)
            memmove(arena + beside->at, arena + frame->at, frame->len);
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < HEAD)
        return 0;
    static struct secy *fastest[SUITES * POLICIES], *openssl[SUITES * POLICIES];
    struct secy *const mine = fresh(fastest, NULL, data);
    struct secy *const other = fresh(openssl, "openssl", data);
    const size_t count = 1 + data[2] % FRAMES;
    const uint32_t len = 14 + (data[3] | (uint32_t)data[4] << 8) % (LEN_MAX - 14);
    const uint16_t vlan = data[1] >> 4 & 1 ? 7 : FRAME_NO_VLAN;
    uint8_t *arena = calloc(2, FRAMES * STRIDE), *copy = arena + FRAMES * STRIDE;
    struct frame frames[FRAMES], twins[FRAMES];

    for (size_t i = 0; i < count; i++)
        frames[i] = (struct frame){
            .at = (uint32_t)i * STRIDE + SECY_HEADROOM + data[2] % 64, .len = len, .vlan = vlan};
    memcpy(twins, frames, sizeof twins);
    secy_protect(mine, arena, frames, count);
    secy_protect(other, copy, twins, count);
    if (memcmp(arena, copy, FRAMES * STRIDE) != 0 ||
        memcmp(frames, twins, count * sizeof *frames) != 0)
        abort();
    for (size_t at = HEAD; at + STEP <= size; at += STEP)
        change(arena, frames, count, data + at);
    memcpy(twins, frames, sizeof twins);
    memcpy(copy, arena, FRAMES * STRIDE);
    secy_validate(mine, arena, frames, count);
    secy_validate(other, copy, twins, count);
    for (size_t i = 0; i < count; i++) {
        if (frames[i].verdict != twins[i].verdict)
            abort();
        if (verdict_delivers(twins[i].verdict) &&
            (memcmp(&frames[i], &twins[i], sizeof *frames) != 0 ||
             memcmp(arena + frames[i].at, copy + twins[i].at, twins[i].len) != 0))
            abort();
    }
    for (unsigned i = 0; counter_name(i); i++)
        if (secy_counter(mine, i) != secy_counter(other, i))
            abort();
    free(arena);
    return 0;
}
