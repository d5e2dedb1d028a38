/* Fuzz target: everything that can arrive from the wire.
 *
 * The first two octets choose the receiver's policy and whether the frame is
 * signed with the right key, so that the fuzzer also gets behind the ICV; the
 * rest is the frame. Beside what the sanitizers see: a frame that does not
 * authenticate must not be delivered by a strict receiver, and what is
 * delivered lies inside what arrived. */
#include "secy.h"

#include <stdlib.h>

static const uint8_t sak[32] = {42};
static const uint8_t sci[8] = {2, 0, 0, 0, 0, 10, 0, 1};

enum { POLICIES = 64, FRAME_MAX = 2048 };

static struct secy *receivers[POLICIES];

static struct secy *receiver(unsigned i)
{
    if (receivers[i])
        return receivers[i];
    const bool xpn = i & 1;
    const struct secy_config config = {
        .suite = UINT64_C(0x0080C20001000002) + (xpn ? 2 : 0),
        .sci = {2, 0, 0, 0, 0, 10, 0, 1},
        .frame_max = FRAME_MAX,
        .replay_window = 64,
        .replay_protect = !(i & 32),
        .validate = i >> 1 & 1 ? SECY_CHECK : SECY_STRICT,
        .pop_vlan = i >> 2 & 1,
        .clear_tags = i >> 3 & 1 ? 2 : 0,
        .conf_offset = i >> 4 & 1 ? 30 : 0,
    };
    const struct secy_key key = {.sak = sak, .sak_len = sizeof sak, .ssci = xpn};
    if (secy_new(&config, "openssl", &receivers[i]) || secy_rx_add(receivers[i], sci) ||
        secy_rx_install(receivers[i], sci, 0, &key, 1) || secy_rx_enable(receivers[i], sci, 0, 1))
        abort();
    return receivers[i];
}

/* Put the right ICV where the SecTAG says that it is; false if it says nothing
 * of use. */
static bool sign(struct secy *secy, uint8_t *frame, uint32_t len)
{
    struct sectag tag;
    if (!sectag_present(frame, len) || !sectag_parse(frame, len, &tag))
        return false;
    struct secy_rx_sc *sc = secy_rx_find(secy, sci);
    if (tag.sci && memcmp(tag.sci, sci, sizeof sci) != 0)
        return false;
    struct secy_rx_sa *sa = &sc->sa[0];
    const uint64_t pn = secy->xpn ? pn_recover(tag.pn_low, replay_lowest(&sa->replay)) : tag.pn_low;
    const bool changed = tag.tci_an & SECTAG_TCI_C;
    uint32_t readable = changed ? secy->config.conf_offset : tag.data_len;
    if (readable > tag.data_len)
        readable = tag.data_len;
    struct gcm_op op = {
        .aad = frame,
        .aad_len = tag.data_at + readable,
        .data = frame + tag.data_at + readable,
        .data_len = tag.data_len - readable,
        .tag = frame + tag.data_at + tag.data_len,
    };
    gcm_iv(op.iv, &sa->iv, pn);
    gcm_seal(&sa->key, &op, 1);
    return true;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2 || size > FRAME_MAX)
        return 0;
    struct secy *secy = receiver(data[0] % POLICIES);
    const bool want_signed = data[1] & 1;
    data += 2;
    size -= 2;

    /* A block of its own, exactly as long as the frame: one octet too far is
     * seen. */
    uint8_t *arena = malloc(size + !size);
    memcpy(arena, data, size);
    const bool is_signed = want_signed && sign(secy, arena, (uint32_t)size);
    struct frame frame = {.at = 0, .len = (uint32_t)size};
    secy_validate(secy, arena, &frame, 1);

    if (frame.verdict >= VERDICT_COUNT)
        abort();
    if (verdict_delivers(frame.verdict)) {
        if (!is_signed && secy->config.validate == SECY_STRICT)
            abort();
        if ((size_t)frame.at + frame.len > size)
            abort();
    }
    free(arena);
    return 0;
}
