/* The way in: see the steps at the top of secy.h. */
#include "secy.h"

/* A frame that waits for the cipher's word. */
struct pending {
    struct frame *frame;
    uint64_t pn;
    uint32_t data_len;
    uint8_t data_at;
    bool changed; /* C: the payload is of no use unless it authenticates */
    uint8_t clear_count;
    uint8_t clear[SECY_CLEAR_TAGS_MAX * VLAN_SIZE];
};

/* Frames in a row under one SA. Most frames look like the one before them: an explicit SCI, no
 * short length, the same TCI and AN. `likeness` holds what is equal then, so that one comparison
 * stands for reading the SecTAG and finding SC and SA. */
struct run {
    struct secy_rx_sa *sa;
    unsigned count;
    bool alike; /* likeness is set, and is of `sa` */
    struct likeness {
        uint32_t head; /* EtherType, TCI and AN, SL: as they stand in the frame */
        uint64_t sci;
    } likeness;
    struct gcm_op ops[SECY_CHUNK];
    struct pending pending[SECY_CHUNK];
};

static inline struct likeness likeness(const uint8_t *start)
{
    struct likeness likeness;
    memcpy(&likeness.head, start + SECTAG_AT, sizeof likeness.head);
    memcpy(&likeness.sci, start + SECTAG_AT + SECTAG_SIZE, sizeof likeness.sci);
    return likeness;
}

/* Step 6: take the SecTAG off, then the VLAN tag where that is asked for. */
static inline void decapsulate(bool pop_vlan, uint8_t *arena, const struct pending *p)
{
    struct frame *frame = p->frame;
    uint8_t *const from = arena + frame->at;
    uint8_t *type = from + p->data_at;
    uint32_t data_len = p->data_len;
    uint16_t vlan = FRAME_NO_VLAN;

    if (pop_vlan && data_len >= VLAN_SIZE + 2 && wire_get16(type) == VLAN_TPID) {
        vlan = wire_get16(type + 2);
        type += VLAN_SIZE;
        data_len -= VLAN_SIZE;
    }
    wire_move_addresses(type - SECTAG_AT, from);
    frame->at = (uint32_t)(type - SECTAG_AT - arena);
    frame->len = SECTAG_AT + data_len;
    frame->vlan = vlan;
    if (p->clear_count)
        secy_tags_lower(arena, frame, p->clear_count, p->clear);
}

/* The end of a frame that is no longer on the common path. */
__attribute__((noinline, cold)) static void end(struct secy *secy, uint8_t *arena,
                                                const struct pending *p, enum verdict verdict)
{
    p->frame->verdict = (uint8_t)verdict;
    secy_count(&secy->packets[verdict], 1);
    if (verdict_delivers(verdict))
        decapsulate(secy->config.pop_vlan, arena, p);
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

/* Whether all frames of a run are authentic, and their numbers those that follow the highest. */
static inline bool in_order(const struct run *run, const struct replay *replay)
{
    const uint64_t next = replay->highest + 1;
    bool all = next >= replay->floor;

    for (unsigned k = 0; k < run->count; k++)
        all &= run->ops[k].ok & (run->pending[k].pn == next + k);
    return all;
}

/* Step 5 for a frame that does not just follow the one before it. */
static enum verdict commit(const struct secy *secy, struct replay *replay, uint64_t pn,
                           bool authentic, bool changed)
{
    if (!authentic) {
        /* The window may have moved since the check: late comes before not valid. */
        if (secy->config.replay_protect && !replay_check(replay, pn))
            return VERDICT_IN_LATE;
        return secy->config.validate == SECY_STRICT || changed ? VERDICT_IN_NOT_VALID
                                                               : VERDICT_IN_INVALID;
    }
    if (replay_commit(replay, pn))
        return VERDICT_IN_OK;
    if (secy->config.replay_protect)
        return VERDICT_IN_LATE;
    return pn < replay_lowest(replay) ? VERDICT_IN_DELAYED : VERDICT_IN_OK;
}

/* Step 5 for the frames gathered so far. True: all are authentic, and in order. */
static bool commit_all(const struct secy *secy, struct run *run, uint8_t *verdicts)
{
    struct secy_window *const window = run->sa->window;

    secy_window_take(secy, window);
    struct replay replay = window->replay; /* in registers: frames cannot alias it */
    const bool ordered = in_order(run, &replay);
    if (ordered)
        replay_commit_next(&replay, run->count);
    for (unsigned k = 0; !ordered && k < run->count; k++)
        verdicts[k] = (uint8_t)commit(secy, &replay, run->pending[k].pn, run->ops[k].ok,
                                      run->pending[k].changed);
    window->replay = replay;
    secy_window_give(secy, window);
    return ordered;
}

/* Steps 4 to 7 for the frames gathered so far. */
static void flush(struct secy *secy, uint8_t *arena, struct run *run)
{
    uint8_t verdicts[SECY_CHUNK];
    uint64_t octets = 0, decrypted = 0, ok = 0;

    if (run->count == 0)
        return;
    gcm_open(&run->sa->key, run->ops, run->count);
    const bool pop_vlan = secy->config.pop_vlan, ordered = commit_all(secy, run, verdicts);
    for (unsigned k = 0; k < run->count; k++) {
        const struct pending *p = &run->pending[k];
        const enum verdict verdict = ordered ? VERDICT_IN_OK : verdicts[k];
        if (verdict == VERDICT_IN_OK || verdict == VERDICT_IN_DELAYED) {
            octets += p->data_len;
            decrypted += p->changed ? p->data_len : 0;
        }
        if (verdict != VERDICT_IN_OK) {
            end(secy, arena, p, verdict);
            continue;
        }
        p->frame->verdict = VERDICT_IN_OK;
        decapsulate(pop_vlan, arena, p);
        ok++;
    }
    secy_count(&secy->packets[VERDICT_IN_OK], ok);
    secy_count(&secy->octets[OCTETS_IN_VALIDATED], octets - decrypted);
    secy_count(&secy->octets[OCTETS_IN_DECRYPTED], decrypted);
    run->count = 0;
}

/* The window as it was a moment ago. Where it is shared the bitmap may be another thread's right
 * now: then numbers are only recovered with it, and looked up when they are committed. */
static inline struct replay glance(const struct secy *secy, const struct secy_rx_sa *sa)
{
    secy_window_take(secy, sa->window);
    const struct replay replay = sa->window->replay;
    secy_window_give(secy, sa->window);
    return replay;
}

/* Step 3, then the frame joins the run. */
static inline void join(struct secy *secy, uint8_t *arena, struct run *run, struct pending *p,
                        uint32_t pn_low)
{
    const struct replay replay = glance(secy, run->sa);

    p->pn = secy->xpn ? pn_recover(pn_low, replay_lowest(&replay)) : pn_low;
    if (secy->config.replay_protect && !secy->shared && !replay_check(&replay, p->pn)) {
        end(secy, arena, p, VERDICT_IN_LATE);
        return;
    }
    uint32_t readable = p->changed ? secy->config.conf_offset : p->data_len;
    if (readable > p->data_len)
        readable = p->data_len;
    uint8_t *const start = arena + p->frame->at;
    struct gcm_op *op = &run->ops[run->count++];
    op->aad = start;
    op->aad_len = p->data_at + readable;
    op->data = start + op->aad_len;
    op->data_len = p->data_len - readable;
    op->tag = op->data + op->data_len;
    gcm_iv(op->iv, &run->sa->iv, p->pn);
}

/* Steps 1 and 2 for any frame. */
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
    p->data_at = (uint8_t)tag.data_at;
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
    if (sa != run->sa) {
        const struct pending carried = *p;
        flush(secy, arena, run);
        p = &run->pending[0];
        *p = carried;
        run->sa = sa;
    }
    run->alike = tag.sci && start[SECTAG_AT + 3] == 0 && p->changed;
    if (run->alike)
        run->likeness = likeness(start);
    join(secy, arena, run, p, tag.pn_low);
}

/* Steps 1 to 3 for as many frames as look like the one before them; returns how many did. What
 * is the same for all of them is copied first: the compiler must take every store into a frame for
 * one that may change the tables. */
static size_t join_alike(struct secy *secy, uint8_t *arena, struct frame *frames, size_t count,
                         struct run *run)
{
    enum { DATA_AT = SECTAG_AT + SECTAG_SIZE_MAX };
    const struct likeness wanted = run->likeness;
    const struct replay replay = glance(secy, run->sa);
    const struct gcm_iv_base iv = run->sa->iv;
    const uint64_t lowest = replay_lowest(&replay);
    const uint32_t offset = secy->config.conf_offset;
    const bool replay_protect = secy->config.replay_protect && !secy->shared, xpn = secy->xpn;
    unsigned joined = run->count;
    size_t i = 0;

    for (; i < count && joined < SECY_CHUNK; i++) {
        struct frame *const frame = &frames[i];
        uint8_t *const start = arena + frame->at;
        if (frame->len < DATA_AT + SECTAG_SHORT_MAX + 1 + SECTAG_ICV_SIZE)
            break;
        const struct likeness seen = likeness(start);
        const uint32_t pn_low = wire_get32(start + SECTAG_AT + 4);
        if (seen.head != wanted.head || seen.sci != wanted.sci || pn_low == 0)
            break;
        const uint64_t pn = xpn ? pn_recover(pn_low, lowest) : pn_low;
        if (replay_protect && !replay_check(&replay, pn)) {
            frame->verdict = VERDICT_IN_LATE;
            secy_count(&secy->packets[VERDICT_IN_LATE], 1);
            continue;
        }
        struct pending *const p = &run->pending[joined];
        struct gcm_op *const op = &run->ops[joined++];
        const uint32_t data_len = frame->len - DATA_AT - SECTAG_ICV_SIZE;
        const uint32_t readable = offset < data_len ? offset : data_len;
        p->frame = frame;
        p->pn = pn;
        p->data_len = data_len;
        p->data_at = DATA_AT;
        p->changed = true;
        p->clear_count = 0;
        op->data = start + DATA_AT + readable;
        op->aad = start;
        op->tag = start + DATA_AT + data_len;
        op->data_len = data_len - readable;
        op->aad_len = DATA_AT + readable;
        gcm_iv(op->iv, &iv, pn);
    }
    run->count = joined;
    return i;
}

/* ---- runs that the cipher takes whole ---- */

/* Steps 1 and 2 for a frame that may begin a run of usual ones (gcm_frames.h): whether it does, and
 * then its SA and what those behind it have to look like. */
static bool recognise(struct secy *secy, const uint8_t *start, uint32_t len, struct secy_rx_sa **sa,
                      struct likeness *wanted)
{
    struct sectag tag;

    if (!sectag_present(start, len) || !sectag_parse(start, len, &tag))
        return false;
    if (!tag.sci || !(tag.tci_an & SECTAG_TCI_C) || start[SECTAG_AT + 3] != 0)
        return false;
    struct secy_rx_sc *const sc = secy_rx_find(secy, tag.sci);
    if (!sc || !sc->sa[tag.tci_an & SECTAG_AN_MASK].active)
        return false;
    *sa = &sc->sa[tag.tci_an & SECTAG_AN_MASK];
    *wanted = likeness(start);
    return true;
}

/* Whether all `n` are authentic, and their numbers those that follow the highest. */
static inline bool seen_in_order(const struct gcm_seen *seen, size_t n, const struct replay *replay,
                                 uint64_t high)
{
    const uint64_t next = replay->highest + 1;
    uint32_t other = 0;

    for (uint32_t i = 0; i < n; i++)
        other |= seen->pn_low[i] ^ ((uint32_t)next + i);
    return other == 0 && seen->authentic == UINT64_MAX >> (64 - n) && next >= replay->floor &&
           (next & ~PN_MAX) == high;
}

/* Steps 5 and 7 for `n` frames that have been through the cipher; `high` is the upper half of their
 * numbers. */
static void commit_seen(struct secy *secy, struct secy_window *window, struct frame *frames,
                        size_t n, uint32_t data_len, const struct gcm_seen *seen, uint64_t high)
{
    uint64_t count[VERDICT_COUNT] = {0};

    secy_window_take(secy, window);
    struct replay replay = window->replay;
    const bool ordered = seen_in_order(seen, n, &replay, high);
    if (ordered)
        replay_commit_next(&replay, (uint32_t)n);
    for (size_t i = 0; !ordered && i < n; i++) {
        const enum verdict verdict =
            commit(secy, &replay, high | seen->pn_low[i], seen->authentic >> i & 1, true);
        frames[i].verdict = (uint8_t)verdict;
        count[verdict]++;
    }
    window->replay = replay;
    secy_window_give(secy, window);

    const uint64_t ok = ordered ? n : count[VERDICT_IN_OK];
    secy_count(&secy->packets[VERDICT_IN_OK], ok);
    secy_count(&secy->octets[OCTETS_IN_DECRYPTED], (ok + count[VERDICT_IN_DELAYED]) * data_len);
    if (ordered)
        return;
    secy_count(&secy->packets[VERDICT_IN_DELAYED], count[VERDICT_IN_DELAYED]);
    secy_count(&secy->packets[VERDICT_IN_LATE], count[VERDICT_IN_LATE]);
    secy_count(&secy->packets[VERDICT_IN_NOT_VALID], count[VERDICT_IN_NOT_VALID]);
}

/* All steps for the first of `count` frames of one length, with the cipher in one pass. Returns how
 * many that did: 0 or more, up to the first frames that are not usual. */
static size_t validate_alike(struct secy *secy, uint8_t *arena, struct frame *frames, size_t count,
                             struct run *run)
{
    const uint8_t *const start = arena + frames->at;
    struct secy_rx_sa *sa;
    struct likeness wanted;
    struct gcm_seen seen;

    if (!recognise(secy, start, frames->len, &sa, &wanted))
        return 0;
    flush(secy, arena, run); /* frames are committed in the order in which they came */
    const struct replay replay = glance(secy, sa);
    const uint64_t lowest = replay_lowest(&replay), high = lowest & ~PN_MAX;
    if (high && !secy->xpn) /* the SA is used up */
        return 0;
    struct gcm_usual usual = {
        .iv = sa->iv, .verdict = VERDICT_IN_OK, .pop_vlan = secy->config.pop_vlan};
    memcpy(usual.sectag, &wanted.head, sizeof wanted.head);
    memcpy(usual.sectag + SECTAG_SIZE, &wanted.sci, sizeof wanted.sci);
    const uint32_t data_len = frames->len - SECTAG_AT - SECTAG_SIZE_MAX - SECTAG_ICV_SIZE;
    const size_t n = gcm_validate(&sa->key, &usual, arena, frames, count, lowest, &seen);
    if (n > 0)
        commit_seen(secy, sa->window, frames, n, data_len, &seen, high);
    return n;
}

/* Frames from the first on that have its length; at most SECY_CHUNK. */
static size_t run_length(const struct frame *frames, size_t count)
{
    const size_t most = count < SECY_CHUNK ? count : SECY_CHUNK;
    size_t n = 1;

    while (n < most && frames[n].len == frames->len)
        n++;
    return n;
}

void secy_validate(struct secy *secy, uint8_t *arena, struct frame *frames, size_t count)
{
    const bool usual = secy->config.conf_offset == 0 && secy->config.clear_tags == 0;
    struct run run;
    size_t again = 0; /* where to look for a run next */

    run.sa = NULL;
    run.count = 0;
    run.alike = false;
    for (size_t i = 0, done; i < count; i += done) {
        done = 0;
        if (usual && i >= again) {
            const size_t n = run_length(frames + i, count - i);
            if (n >= SECY_ALIKE_MIN)
                done = validate_alike(secy, arena, frames + i, n, &run);
            again = done > 0 ? i + done : i + n;
        }
        if (done == 0 && run.alike)
            done = join_alike(secy, arena, frames + i, count - i, &run);
        if (done == 0) {
            admit(secy, arena, &frames[i], &run);
            done = 1;
        }
        if (run.count == SECY_CHUNK)
            flush(secy, arena, &run);
    }
    flush(secy, arena, &run);
}
