/* The way out: see the steps at the top of secy.h. */
#include "secy.h"

_Static_assert(SECTAG_SIZE == sizeof(uint64_t), "encapsulate stores its parts as one number");

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

#define ALWAYS_INLINE static inline __attribute__((always_inline))

/* What all frames of a chunk have in common: the compiler must take every store into a frame for
 * one that may change the tables. */
struct common {
    struct gcm_iv_base iv;
    uint64_t head; /* EtherType, TCI and AN; SL and PN are 0 */
    uint64_t sci;
    uint32_t readable; /* leading octets of secure data that are not encrypted */
    uint8_t verdict;
};

/* Step 3: VLAN tag and SecTAG into the headroom, the operation for the cipher. Returns the octets
 * of secure data. */
ALWAYS_INLINE uint32_t encapsulate(const struct common *common, uint32_t tag_size, uint8_t *arena,
                                   struct frame *frame, uint64_t pn, struct gcm_op *op)
{
    uint8_t *const from = arena + frame->at;
    uint8_t *type = from + SECTAG_AT;
    uint8_t addresses[SECTAG_AT];

    wire_move_addresses(addresses, from);
    if (frame->vlan != FRAME_NO_VLAN) {
        type -= VLAN_SIZE;
        wire_put32(type, (uint32_t)VLAN_TPID << 16 | frame->vlan);
    }
    const uint32_t data_len = (uint32_t)(from + frame->len - type);
    const uint32_t readable = common->readable < data_len ? common->readable : data_len;
    uint8_t *const sectag = type - tag_size;
    uint8_t *const start = sectag - SECTAG_AT;
    const uint64_t head = common->head | (uint64_t)sectag_short_length(data_len) << 24 |
                          (uint64_t)__builtin_bswap32((uint32_t)pn) << 32;
    memcpy(sectag, &head, sizeof head);
    if (tag_size == SECTAG_SIZE_MAX)
        memcpy(sectag + SECTAG_SIZE, &common->sci, sizeof common->sci);
    wire_move_addresses(start, addresses);

    op->data = type + readable;
    op->aad = start;
    op->tag = type + data_len;
    op->data_len = data_len - readable;
    op->aad_len = SECTAG_AT + tag_size + readable;
    gcm_iv(op->iv, &common->iv, pn);

    frame->at = (uint32_t)(start - arena);
    frame->len = SECTAG_AT + tag_size + data_len + SECTAG_ICV_SIZE;
    frame->verdict = common->verdict;
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

/* Clear VLAN tags that were lifted off the frames of a chunk. */
struct lifted {
    unsigned limit;
    uint8_t count[SECY_CHUNK];
    uint8_t tags[SECY_CHUNK][SECY_CLEAR_TAGS_MAX * VLAN_SIZE];
};

/* Step 3 for a chunk, compiled for each size of SecTAG. Returns the octets of secure data. */
ALWAYS_INLINE uint64_t encapsulate_all(const struct common *common, uint32_t tag_size,
                                       uint8_t *arena, struct frame *frames,
                                       const uint8_t *admitted, uint32_t count, uint64_t pn,
                                       struct gcm_op *ops)
{
    uint64_t octets = 0;

    for (uint32_t k = 0; k < count; k++)
        octets += encapsulate(common, tag_size, arena, &frames[admitted[k]], pn + k, &ops[k]);
    return octets;
}

/*
 * Drop what the cipher refused (only a library's can, out of memory): its data are zeros by now and
 * nothing of it may leave. Returns the octets of secure data that are not sent after all.
 */
static uint64_t drop_unsealed(struct secy *secy, uint32_t tag_size, struct frame *frames,
                              const uint8_t *admitted, uint32_t count, const struct gcm_op *ops)
{
    uint64_t octets = 0;

    for (uint32_t k = 0; k < count; k++) {
        struct frame *frame = &frames[admitted[k]];
        if (ops[k].ok)
            continue;
        octets += frame->len - SECTAG_AT - tag_size - SECTAG_ICV_SIZE;
        frame->verdict = VERDICT_OUT_NOT_SEALED;
        secy_count(&secy->packets[VERDICT_OUT_NOT_SEALED], 1);
    }
    return octets;
}

/* Step 1 for a chunk: which frames may go. Returns how many. */
static uint32_t admit_all(struct secy *secy, struct frame *frames, size_t count, uint32_t grows,
                          uint8_t *admitted)
{
    uint32_t want = 0;

    for (size_t i = 0; i < count; i++) {
        if (admit(secy, &frames[i], grows))
            admitted[want++] = (uint8_t)i;
        else
            secy_count(&secy->packets[frames[i].verdict], 1);
    }
    return want;
}

/* Step 2: numbers for the admitted frames, as far as there are. Returns for how many. */
static uint32_t number(struct secy *secy, struct secy_tx_sa *sa, struct frame *frames,
                       const uint8_t *admitted, uint32_t want, uint64_t *pn)
{
    const uint32_t taken = pn_take(sa->numbers, want, pn);

    for (uint32_t k = taken; k < want; k++)
        frames[admitted[k]].verdict = VERDICT_OUT_PN_EXHAUSTED;
    if (taken < want)
        secy_count(&secy->packets[VERDICT_OUT_PN_EXHAUSTED], want - taken);
    return taken;
}

/* Steps 3 to 5 for the admitted frames of a chunk, under the numbers from `pn` on, by ops. */
static void seal(struct secy *secy, struct secy_tx_sa *sa, uint8_t *arena, struct frame *frames,
                 const uint8_t *admitted, uint32_t taken, uint64_t pn)
{
    const struct secy_config *config = &secy->config;
    const uint32_t tag_size = sectag_size(secy->tci);
    struct gcm_op ops[SECY_CHUNK];
    struct lifted lifted;
    struct common common = {
        .iv = sa->iv,
        .readable = config->encrypt ? config->conf_offset : UINT32_MAX,
        .verdict = config->encrypt ? VERDICT_OUT_ENCRYPTED : VERDICT_OUT_PROTECTED,
    };

    memcpy(&common.head, secy->sectag, sizeof common.head);
    memcpy(&common.sci, secy->sectag + SECTAG_SIZE, sizeof common.sci);
    lifted.limit = config->clear_tags;
    for (uint32_t k = 0; lifted.limit && k < taken; k++)
        lifted.count[k] =
            (uint8_t)secy_tags_lift(arena, &frames[admitted[k]], lifted.limit, lifted.tags[k]);
    uint64_t octets =
        tag_size == SECTAG_SIZE_MAX
            ? encapsulate_all(&common, SECTAG_SIZE_MAX, arena, frames, admitted, taken, pn, ops)
            : encapsulate_all(&common, SECTAG_SIZE, arena, frames, admitted, taken, pn, ops);
    gcm_seal(&sa->key, ops, taken);
    uint32_t sealed = 0;
    for (uint32_t k = 0; k < taken; k++)
        sealed += ops[k].ok;
    if (sealed < taken)
        octets -= drop_unsealed(secy, tag_size, frames, admitted, taken, ops);
    for (uint32_t k = 0; lifted.limit && k < taken; k++)
        secy_tags_lower(arena, &frames[admitted[k]], lifted.count[k], lifted.tags[k]);

    secy_count(&secy->packets[common.verdict], sealed);
    secy_count(&secy->octets[config->encrypt ? OCTETS_OUT_ENCRYPTED : OCTETS_OUT_PROTECTED],
               octets);
}

/* One chunk of at most SECY_CHUNK frames. */
static void protect(struct secy *secy, struct secy_tx_sa *sa, uint8_t *arena, struct frame *frames,
                    size_t count)
{
    uint8_t admitted[SECY_CHUNK];
    uint64_t pn = 0;

    const uint32_t grows = sectag_size(secy->tci) + SECTAG_ICV_SIZE;
    const uint32_t want = admit_all(secy, frames, count, grows, admitted);
    const uint32_t taken = number(secy, sa, frames, admitted, want, &pn);
    seal(secy, sa, arena, frames, admitted, taken, pn);
}

/* Frames from the first on that have its length and VLAN tag; at most SECY_CHUNK. */
static size_t run_length(const struct frame *frames, size_t count)
{
    const size_t most = count < SECY_CHUNK ? count : SECY_CHUNK;
    size_t n = 1;

    while (n < most && frames[n].len == frames->len && frames[n].vlan == frames->vlan)
        n++;
    return n;
}

/* The same for `count` frames with the length and the VLAN tag of the first one: one look admits or
 * refuses all of them, and the cipher takes as many as it can whole. */
static void protect_alike(struct secy *secy, struct secy_tx_sa *sa, uint8_t *arena,
                          struct frame *frames, size_t count)
{
    const struct frame first = *frames;
    struct gcm_usual usual = {.iv = sa->iv, .verdict = VERDICT_OUT_ENCRYPTED};
    uint8_t admitted[SECY_CHUNK];
    uint64_t pn = 0;

    if (!admit(secy, frames, SECTAG_SIZE_MAX + SECTAG_ICV_SIZE)) {
        protect(secy, sa, arena, frames, count);
        return;
    }
    const uint32_t taken = pn_take(sa->numbers, (uint32_t)count, &pn);
    memcpy(usual.sectag, secy->sectag, sizeof usual.sectag);
    const uint32_t done = (uint32_t)gcm_protect(&sa->key, &usual, arena, frames, taken, pn);
    const uint32_t data_len =
        first.len - SECTAG_AT + (first.vlan != FRAME_NO_VLAN ? (uint32_t)VLAN_SIZE : 0);
    secy_count(&secy->packets[VERDICT_OUT_ENCRYPTED], done);
    secy_count(&secy->octets[OCTETS_OUT_ENCRYPTED], (uint64_t)done * data_len);
    if (done == count)
        return;
    for (uint32_t k = done; k < count; k++)
        admitted[k] = (uint8_t)k;
    for (uint32_t k = taken; k < count; k++)
        frames[k].verdict = VERDICT_OUT_PN_EXHAUSTED;
    secy_count(&secy->packets[VERDICT_OUT_PN_EXHAUSTED], count - taken);
    seal(secy, sa, arena, frames, admitted + done, taken - done, pn + done);
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
    const struct secy_config *config = &secy->config;
    const bool usual = config->encrypt && config->include_sci && config->conf_offset == 0 &&
                       config->clear_tags == 0;
    struct secy_tx_sa *const sa = &secy->tx[secy->encoding_an];
    for (size_t done = 0, n; done < count; done += n) {
        n = usual ? run_length(frames + done, count - done) : 0;
        if (n >= SECY_ALIKE_MIN) {
            protect_alike(secy, sa, arena, frames + done, n);
        } else {
            n = count - done < SECY_CHUNK ? count - done : SECY_CHUNK;
            protect(secy, sa, arena, frames + done, n);
        }
    }
}
