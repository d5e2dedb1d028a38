/* The way in: see the steps at the top of secy.h. */
#include "secy.h"

/* A frame that waits for the cipher's word. */
struct pending {
    struct frame *frame;
    uint64_t pn;
    uint32_t data_at;
    uint32_t data_len;
    bool changed; /* C: the payload is of no use unless it authenticates */
    uint8_t clear_count;
    uint8_t clear[SECY_CLEAR_TAGS_MAX * VLAN_SIZE];
};

/* Frames in a row under one SA. */
struct run {
    struct secy_rx_sa *sa;
    unsigned count;
    struct gcm_op ops[SECY_CHUNK];
    struct pending pending[SECY_CHUNK];
};

/* Step 6: take the SecTAG off, then the VLAN tag where that is asked for. */
static inline void decapsulate(const struct secy *secy, uint8_t *arena, struct pending *p)
{
    struct frame *frame = p->frame;
    uint8_t *const from = arena + frame->at;
    uint8_t *type = from + p->data_at;
    uint32_t data_len = p->data_len;

    frame->vlan = FRAME_NO_VLAN;
    if (secy->config.pop_vlan && data_len >= VLAN_SIZE + 2 && wire_get16(type) == VLAN_TPID) {
        frame->vlan = wire_get16(type + 2);
        type += VLAN_SIZE;
        data_len -= VLAN_SIZE;
    }
    wire_move_addresses(type - SECTAG_AT, from);
    frame->at = (uint32_t)(type - SECTAG_AT - arena);
    frame->len = SECTAG_AT + data_len;
    if (p->clear_count)
        secy_tags_lower(arena, frame, p->clear_count, p->clear);
}

static void end(struct secy *secy, uint8_t *arena, struct pending *p, enum verdict verdict)
{
    p->frame->verdict = (uint8_t)verdict;
    secy_count(&secy->packets[verdict], 1);
    if (verdict_delivers(verdict))
        decapsulate(secy, arena, p);
}

/* Step 2: the SC that a SecTAG names (7.1.2, 9.5), NULL if it is not known here. */
static struct secy_rx_sc *find_sc(struct secy *secy, const uint8_t *frame, const struct sectag *tag)
{
    if (tag->sci)
        return secy_rx_find(secy, tag->sci);
    if (tag->tci_an & SECTAG_TCI_ES) {
        uint8_t sci[8];
        memcpy(sci, frame + 6, 6);
        wire_put16(sci + 6, 1);
        return secy_rx_find(secy, sci);
    }
    /* Point to point: the only peer there is. */
    struct secy_rx_sc *only = NULL;
    for (unsigned i = 0; i < SECY_RX_SC_MAX; i++) {
        if (!secy->rx[i].used)
            continue;
        if (only)
            return NULL;
        only = &secy->rx[i];
    }
    return only;
}

/* Steps 4 to 7 for the frames gathered so far. */
static void flush(struct secy *secy, uint8_t *arena, struct run *run)
{
    struct secy_rx_sa *sa = run->sa;
    uint64_t validated = 0, decrypted = 0, ok = 0;

    if (run->count == 0)
        return;
    gcm_open(&sa->key, run->ops, run->count);
    for (unsigned k = 0; k < run->count; k++) {
        struct pending *p = &run->pending[k];
        if (!run->ops[k].ok) {
            const bool drop = secy->config.validate == SECY_STRICT || p->changed;
            end(secy, arena, p, drop ? VERDICT_IN_NOT_VALID : VERDICT_IN_INVALID);
            continue;
        }
        if (!replay_commit(&sa->replay, p->pn)) {
            if (secy->config.replay_protect) {
                end(secy, arena, p, VERDICT_IN_LATE);
                continue;
            }
            if (p->pn < replay_lowest(&sa->replay)) {
                *(p->changed ? &decrypted : &validated) += p->data_len;
                end(secy, arena, p, VERDICT_IN_DELAYED);
                continue;
            }
        }
        *(p->changed ? &decrypted : &validated) += p->data_len;
        p->frame->verdict = VERDICT_IN_OK;
        decapsulate(secy, arena, p);
        ok++;
    }
    secy_count(&secy->packets[VERDICT_IN_OK], ok);
    secy_count(&secy->octets[OCTETS_IN_VALIDATED], validated);
    secy_count(&secy->octets[OCTETS_IN_DECRYPTED], decrypted);
    run->count = 0;
}

/* Steps 1 to 3; a frame that passes them joins the run. */
static void admit(struct secy *secy, uint8_t *arena, struct frame *frame, struct run *run)
{
    const struct secy_config *config = &secy->config;
    const bool strict = config->validate == SECY_STRICT;
    struct pending whole = {.frame = frame, .data_at = SECTAG_AT};
    struct pending *p = &run->pending[run->count];
    struct sectag tag;

    if (frame->len < SECY_FRAME_MIN) {
        end(secy, arena, &whole, VERDICT_IN_TOO_SHORT);
        return;
    }
    p->clear_count = 0;
    if (config->clear_tags)
        p->clear_count = (uint8_t)secy_tags_lift(arena, frame, config->clear_tags, p->clear);

    const uint8_t *const start = arena + frame->at;
    if (!sectag_present(start, frame->len)) {
        if (p->clear_count)
            secy_tags_lower(arena, frame, p->clear_count, p->clear);
        whole.data_len = frame->len - SECTAG_AT;
        end(secy, arena, &whole, strict ? VERDICT_IN_NO_TAG : VERDICT_IN_UNTAGGED);
        return;
    }
    p->frame = frame;
    if (!sectag_parse(start, frame->len, &tag) || (tag.pn_low == 0 && !secy->xpn)) {
        end(secy, arena, p, VERDICT_IN_BAD_TAG);
        return;
    }
    p->data_at = tag.data_at;
    p->data_len = tag.data_len;
    p->changed = tag.tci_an & SECTAG_TCI_C;

    const bool drop = strict || p->changed;
    struct secy_rx_sc *sc = find_sc(secy, start, &tag);
    if (!sc) {
        end(secy, arena, p, drop ? VERDICT_IN_NO_SCI : VERDICT_IN_UNKNOWN_SCI);
        return;
    }
    struct secy_rx_sa *sa = &sc->sa[tag.tci_an & SECTAG_AN_MASK];
    if (!sa->active) {
        end(secy, arena, p, drop ? VERDICT_IN_NOT_USING_SA : VERDICT_IN_UNUSED_SA);
        return;
    }
    if (config->validate == SECY_DISABLED && !p->changed) {
        end(secy, arena, p, VERDICT_IN_UNCHECKED);
        return;
    }
    if (sa != run->sa && run->count > 0) {
        const struct pending carried = *p;
        flush(secy, arena, run);
        p = &run->pending[0];
        *p = carried;
    }
    run->sa = sa;

    p->pn = secy->xpn ? pn_recover(tag.pn_low, replay_lowest(&sa->replay)) : tag.pn_low;
    if (config->replay_protect && !replay_check(&sa->replay, p->pn)) {
        end(secy, arena, p, VERDICT_IN_LATE);
        return;
    }

    const uint32_t readable = !p->changed                         ? p->data_len
                              : config->conf_offset < p->data_len ? config->conf_offset
                                                                  : p->data_len;
    uint8_t *const at = arena + frame->at;
    struct gcm_op *op = &run->ops[run->count++];
    op->aad = at;
    op->aad_len = p->data_at + readable;
    op->data = at + op->aad_len;
    op->data_len = p->data_len - readable;
    op->tag = op->data + op->data_len;
    gcm_iv(op->iv, &sa->iv, p->pn);
}

void secy_validate(struct secy *secy, uint8_t *arena, struct frame *frames, size_t count)
{
    struct run run;

    run.sa = NULL;
    run.count = 0;
    for (size_t i = 0; i < count; i++) {
        admit(secy, arena, &frames[i], &run);
        if (run.count == SECY_CHUNK)
            flush(secy, arena, &run);
    }
    flush(secy, arena, &run);
}
