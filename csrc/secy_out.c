/* The way out: see the steps at the top of secy.h. */
#include "secy.h"

/* Step 1: whether the frame may go; `grows` octets come on top of it. */
static inline bool admit(const struct secy *secy, struct frame *frame, uint32_t grows)
{
    if (frame->len < SECY_FRAME_MIN) {
        frame->verdict = VERDICT_OUT_TOO_SHORT;
        return false;
    }
    if (frame->vlan != FRAME_NO_VLAN)
        grows += VLAN_SIZE;
    if (frame->len > secy->config.frame_max || secy->config.frame_max - frame->len < grows) {
        frame->verdict = VERDICT_OUT_TOO_LONG;
        return false;
    }
    return true;
}

/* Step 3: VLAN tag and SecTAG into the headroom. Returns the octets of secure data. */
static inline uint32_t encapsulate(const struct secy *secy, uint8_t *arena, struct frame *frame,
                                   uint32_t tag_size, uint64_t pn)
{
    uint8_t *const from = arena + frame->at;
    uint8_t *type = from + SECTAG_AT;
    uint8_t addresses[SECTAG_AT];

    wire_move_addresses(addresses, from);
    if (frame->vlan != FRAME_NO_VLAN) {
        type -= VLAN_SIZE;
        wire_put16(type, VLAN_TPID);
        wire_put16(type + 2, frame->vlan);
    }
    const uint32_t data_len = (uint32_t)(from + frame->len - type);
    uint8_t *const sectag = type - tag_size;
    memcpy(sectag, secy->sectag, SECTAG_SIZE);
    if (tag_size == SECTAG_SIZE_MAX)
        memcpy(sectag + SECTAG_SIZE, secy->sectag + SECTAG_SIZE, SECTAG_SCI_SIZE);
    sectag[3] = sectag_short_length(data_len);
    wire_put32(sectag + 4, (uint32_t)pn);
    wire_move_addresses(sectag - SECTAG_AT, addresses);
    frame->at = (uint32_t)(sectag - SECTAG_AT - arena);
    frame->len = SECTAG_AT + tag_size + data_len + SECTAG_ICV_SIZE;
    return data_len;
}

static void untagged(struct secy *secy, uint8_t *arena, struct frame *frames, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        struct frame *frame = &frames[i];
        if (admit(secy, frame, 0)) {
            if (frame->vlan != FRAME_NO_VLAN) {
                frame->at =
                    (uint32_t)(vlan_push(arena + frame->at, VLAN_TPID, frame->vlan) - arena);
                frame->len += VLAN_SIZE;
            }
            frame->verdict = VERDICT_OUT_UNTAGGED;
        }
        secy_count(&secy->packets[frame->verdict], 1);
    }
}

static void no_sa(struct secy *secy, struct frame *frames, size_t count)
{
    for (size_t i = 0; i < count; i++)
        frames[i].verdict = VERDICT_OUT_NO_SA;
    secy_count(&secy->packets[VERDICT_OUT_NO_SA], count);
}

/* One chunk of at most SECY_CHUNK frames. */
static void protect(struct secy *secy, struct secy_tx_sa *sa, uint8_t *arena, struct frame *frames,
                    size_t count)
{
    const struct secy_config *config = &secy->config;
    const uint32_t tag_size = sectag_size(secy->tci);
    struct gcm_op ops[SECY_CHUNK];
    uint8_t clear[SECY_CHUNK][SECY_CLEAR_TAGS_MAX * VLAN_SIZE];
    uint8_t clear_count[SECY_CHUNK] = {0};
    uint8_t admitted[SECY_CHUNK];
    uint64_t pn = 0, octets = 0;
    uint32_t want = 0;

    for (size_t i = 0; i < count; i++) {
        if (admit(secy, &frames[i], tag_size + SECTAG_ICV_SIZE))
            admitted[want++] = (uint8_t)i;
        else
            secy_count(&secy->packets[frames[i].verdict], 1);
    }

    const uint32_t taken = pn_take(&sa->pn, want, &pn);
    for (uint32_t k = taken; k < want; k++)
        frames[admitted[k]].verdict = VERDICT_OUT_PN_EXHAUSTED;
    if (taken < want)
        secy_count(&secy->packets[VERDICT_OUT_PN_EXHAUSTED], want - taken);

    const enum verdict done = config->encrypt ? VERDICT_OUT_ENCRYPTED : VERDICT_OUT_PROTECTED;
    for (uint32_t k = 0; k < taken; k++, pn++) {
        struct frame *frame = &frames[admitted[k]];
        struct gcm_op *op = &ops[k];

        if (config->clear_tags)
            clear_count[k] = (uint8_t)secy_tags_lift(arena, frame, config->clear_tags, clear[k]);
        const uint32_t data_len = encapsulate(secy, arena, frame, tag_size, pn);
        const uint32_t readable = !config->encrypt                 ? data_len
                                  : config->conf_offset < data_len ? config->conf_offset
                                                                   : data_len;
        uint8_t *const start = arena + frame->at;
        op->aad = start;
        op->aad_len = SECTAG_AT + tag_size + readable;
        op->data = start + op->aad_len;
        op->data_len = data_len - readable;
        op->tag = op->data + op->data_len;
        gcm_iv(op->iv, &sa->iv, pn);
        octets += data_len;
        frame->verdict = (uint8_t)done;
    }
    gcm_seal(&sa->key, ops, taken);

    if (config->clear_tags)
        for (uint32_t k = 0; k < taken; k++)
            secy_tags_lower(arena, &frames[admitted[k]], clear_count[k], clear[k]);
    secy_count(&secy->packets[done], taken);
    secy_count(&secy->octets[config->encrypt ? OCTETS_OUT_ENCRYPTED : OCTETS_OUT_PROTECTED],
               octets);
}

void secy_protect(struct secy *secy, uint8_t *arena, struct frame *frames, size_t count)
{
    if (!secy->config.protect) {
        untagged(secy, arena, frames, count);
        return;
    }
    if (secy->encoding_an < 0) {
        no_sa(secy, frames, count);
        return;
    }
    for (size_t done = 0; done < count; done += SECY_CHUNK)
        protect(secy, &secy->tx[secy->encoding_an], arena, frames + done,
                count - done < SECY_CHUNK ? count - done : SECY_CHUNK);
}
