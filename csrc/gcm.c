/* The part of gcm.h that all backends share: which one runs, whether it computes right, keys. */
#include "gcm.h"
#include "gcm_backend.h"
#include "vlan.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>

static const struct gcm_backend *const backends[] = {
#if defined(__x86_64__)
    &gcm_vaes512,
#if defined(GCM_HAVE_IPSEC_MB)
    &gcm_ipsec_mb,
#endif
    &gcm_vaes256,  &gcm_aesni,
#endif
    &gcm_openssl,
};

enum { BACKENDS = sizeof backends / sizeof backends[0] };

const char *gcm_strerror(int error)
{
    switch (error) {
    case GCM_OK:
        return "no error";
    case GCM_E_KEY_LEN:
        return "an AES key is 16 or 32 octets";
    case GCM_E_BACKEND:
        return "the cipher backend could not set the key up";
    case GCM_E_SELFTEST:
        return "the cipher backend computed a wrong answer in its self-test";
    default:
        return "unknown error";
    }
}

/* ---- keys and batches ---- */

int gcm_key_init(struct gcm_key *key, const struct gcm_backend *backend, const uint8_t *secret,
                 size_t secret_len)
{
    memset(key, 0, sizeof *key);
    if (secret_len != 16 && secret_len != 32)
        return GCM_E_KEY_LEN;
    key->backend = backend;
    key->key_len = (uint32_t)secret_len;
    if (backend->key_init(key, secret) != 0) {
        explicit_bzero(key, sizeof *key);
        return GCM_E_BACKEND;
    }
    return GCM_OK;
}

void gcm_key_wipe(struct gcm_key *key)
{
    if (key->backend != NULL && key->backend->key_wipe != NULL)
        key->backend->key_wipe(key);
    explicit_bzero(key, sizeof *key);
}

void gcm_seal(const struct gcm_key *key, struct gcm_op *ops, size_t n)
{
    assert(key->backend != NULL);
    key->backend->seal(key, ops, n);
}

void gcm_open(const struct gcm_key *key, struct gcm_op *ops, size_t n)
{
    assert(key->backend != NULL);
    key->backend->open(key, ops, n);
}

/* ---- whole frames ---- */

enum {
    FRAME_MIN = SECTAG_AT + SECTAG_DATA_MIN,
    PROTECTED_MIN = SECTAG_AT + SECTAG_SIZE_MAX + SECTAG_SHORT_MAX + 1 + SECTAG_ICV_SIZE,
};

size_t gcm_protect(const struct gcm_key *key, const struct gcm_usual *usual, uint8_t *arena,
                   struct frame *frames, size_t n, uint64_t pn)
{
    assert(n <= GCM_FRAMES_MAX);
    if (key->backend->protect == NULL || n == 0 || frames->len < FRAME_MIN ||
        UINT32_MAX - (uint32_t)pn < n) /* the upper half of the numbers must not change */
        return 0;
    return key->backend->protect(key, usual, arena, frames, n, pn);
}

size_t gcm_validate(const struct gcm_key *key, const struct gcm_usual *usual, uint8_t *arena,
                    struct frame *frames, size_t n, uint64_t lowest_pn, struct gcm_seen *seen)
{
    assert(n <= GCM_FRAMES_MAX);
    if (key->backend->validate == NULL || n == 0 || frames->len < PROTECTED_MIN)
        return 0;
    return key->backend->validate(key, usual, arena, frames, n, lowest_pn, seen);
}

/* ---- self-test ---- */

/* Test cases 4 and 16 of "The Galois/Counter Mode of Operation (GCM)", McGrew and Viega: a
 * partial last block and an AAD that is not whole blocks, 128 and 256 bits. Key, IV, plaintext
 * and AAD are the same in both, but for the key's length. */
static const uint8_t kat_key[32] = {
    0xfe, 0xff, 0xe9, 0x92, 0x86, 0x65, 0x73, 0x1c, 0x6d, 0x6a, 0x8f, 0x94, 0x67, 0x30, 0x83, 0x08,
    0xfe, 0xff, 0xe9, 0x92, 0x86, 0x65, 0x73, 0x1c, 0x6d, 0x6a, 0x8f, 0x94, 0x67, 0x30, 0x83, 0x08,
};
static const uint8_t kat_iv[GCM_IV_LEN] = {
    0xca, 0xfe, 0xba, 0xbe, 0xfa, 0xce, 0xdb, 0xad, 0xde, 0xca, 0xf8, 0x88,
};
static const uint8_t kat_aad[20] = {
    0xfe, 0xed, 0xfa, 0xce, 0xde, 0xad, 0xbe, 0xef, 0xfe, 0xed,
    0xfa, 0xce, 0xde, 0xad, 0xbe, 0xef, 0xab, 0xad, 0xda, 0xd2,
};
static const uint8_t kat_plain[60] = {
    0xd9, 0x31, 0x32, 0x25, 0xf8, 0x84, 0x06, 0xe5, 0xa5, 0x59, 0x09, 0xc5, 0xaf, 0xf5, 0x26,
    0x9a, 0x86, 0xa7, 0xa9, 0x53, 0x15, 0x34, 0xf7, 0xda, 0x2e, 0x4c, 0x30, 0x3d, 0x8a, 0x31,
    0x8a, 0x72, 0x1c, 0x3c, 0x0c, 0x95, 0x95, 0x68, 0x09, 0x53, 0x2f, 0xcf, 0x0e, 0x24, 0x49,
    0xa6, 0xb5, 0x25, 0xb1, 0x6a, 0xed, 0xf5, 0xaa, 0x0d, 0xe6, 0x57, 0xba, 0x63, 0x7b, 0x39,
};
static const struct {
    uint32_t key_len;
    uint8_t cipher[60];
    uint8_t tag[GCM_TAG_LEN];
} kats[] = {
    {16,
     {0x42, 0x83, 0x1e, 0xc2, 0x21, 0x77, 0x74, 0x24, 0x4b, 0x72, 0x21, 0xb7, 0x84, 0xd0, 0xd4,
      0x9c, 0xe3, 0xaa, 0x21, 0x2f, 0x2c, 0x02, 0xa4, 0xe0, 0x35, 0xc1, 0x7e, 0x23, 0x29, 0xac,
      0xa1, 0x2e, 0x21, 0xd5, 0x14, 0xb2, 0x54, 0x66, 0x93, 0x1c, 0x7d, 0x8f, 0x6a, 0x5a, 0xac,
      0x84, 0xaa, 0x05, 0x1b, 0xa3, 0x0b, 0x39, 0x6a, 0x0a, 0xac, 0x97, 0x3d, 0x58, 0xe0, 0x91},
     {0x5b, 0xc9, 0x4f, 0xbc, 0x32, 0x21, 0xa5, 0xdb, 0x94, 0xfa, 0xe9, 0x5a, 0xe7, 0x12, 0x1a,
      0x47}},
    {32,
     {0x52, 0x2d, 0xc1, 0xf0, 0x99, 0x56, 0x7d, 0x07, 0xf4, 0x7f, 0x37, 0xa3, 0x2a, 0x84, 0x42,
      0x7d, 0x64, 0x3a, 0x8c, 0xdc, 0xbf, 0xe5, 0xc0, 0xc9, 0x75, 0x98, 0xa2, 0xbd, 0x25, 0x55,
      0xd1, 0xaa, 0x8c, 0xb0, 0x8e, 0x48, 0x59, 0x0d, 0xbb, 0x3d, 0xa7, 0xb0, 0x8b, 0x10, 0x56,
      0x82, 0x88, 0x38, 0xc5, 0xf6, 0x1e, 0x63, 0x93, 0xba, 0x7a, 0x0a, 0xbc, 0xc9, 0xf6, 0x62},
     {0x76, 0xfc, 0x6e, 0xce, 0x0f, 0x4e, 0x17, 0x68, 0xcd, 0xdf, 0x88, 0x53, 0xbb, 0x2d, 0x55,
      0x1b}},
};

/* Frames of the comparison with openssl: runs of equal lengths, mixtures, jumbo; with the AADs of
 * MACsec with and without an SCI, with a confidentiality offset, and integrity only. */
static const struct {
    uint16_t data_len, aad_len;
} shapes[] = {
    {46, 28},   {46, 28},   {46, 28},   {46, 28},  {1, 20},   {64, 20},   {65, 20},   {17, 12},
    {128, 28},  {128, 28},  {128, 28},  {128, 28}, {0, 28},   {16, 28},   {63, 58},   {0, 78},
    {1500, 28}, {1504, 28}, {1500, 28}, {999, 28}, {600, 28}, {1984, 32}, {1985, 32}, {512, 33},
    {9000, 28}, {4096, 28}, {2048, 28}, {100, 28}, {777, 28}, {2500, 64}, {15, 28},   {0, 1500},
};

enum {
    SHAPES = sizeof shapes / sizeof shapes[0],
    ROOM = 9216 + 128, /* for AAD, data and tag of any shape */
};

struct bench_of_frames {
    struct gcm_key mine, reference;
    struct gcm_op op[SHAPES], expected[SHAPES];
    uint8_t room[SHAPES][ROOM], expected_room[SHAPES][ROOM];
};

static void lay_out(struct gcm_op *op, uint8_t *room, size_t i)
{
    *op = (struct gcm_op){.aad = room,
                          .data = room + shapes[i].aad_len,
                          .tag = room + shapes[i].aad_len + shapes[i].data_len,
                          .data_len = shapes[i].data_len,
                          .aad_len = shapes[i].aad_len};
    for (size_t b = 0; b < GCM_IV_LEN; b++)
        op->iv[b] = (uint8_t)(17 * i + 29 * b + 1);
    for (size_t b = 0; b < ROOM; b++)
        room[b] = (uint8_t)((b + 1) * (2 * i + 3) ^ b >> 8);
}

static int known_answers(const struct gcm_backend *backend, struct gcm_key *key)
{
    for (size_t i = 0; i < sizeof kats / sizeof kats[0]; i++) {
        uint8_t data[sizeof kat_plain], tag[GCM_TAG_LEN];
        struct gcm_op op = {.data = data,
                            .aad = kat_aad,
                            .tag = tag,
                            .data_len = sizeof data,
                            .aad_len = sizeof kat_aad};
        int right;

        memcpy(op.iv, kat_iv, sizeof kat_iv);
        memcpy(data, kat_plain, sizeof data);
        if (gcm_key_init(key, backend, kat_key, kats[i].key_len) != GCM_OK)
            return 0;
        gcm_seal(key, &op, 1);
        right = op.ok == 1 && memcmp(data, kats[i].cipher, sizeof data) == 0 &&
                memcmp(tag, kats[i].tag, sizeof tag) == 0;
        gcm_open(key, &op, 1);
        right = right && op.ok == 1 && memcmp(data, kat_plain, sizeof data) == 0;
        gcm_key_wipe(key);
        if (!right)
            return 0;
    }
    return 1;
}

/* Seal all shapes in one batch with both; open them again, every third one forged. */
static int like_openssl(const struct gcm_backend *backend, struct bench_of_frames *b,
                        size_t key_len)
{
    static const uint8_t nothing[ROOM];
    int right;

    if (gcm_key_init(&b->mine, backend, kat_plain, key_len) != GCM_OK)
        return 0;
    if (gcm_key_init(&b->reference, &gcm_openssl, kat_plain, key_len) != GCM_OK) {
        gcm_key_wipe(&b->mine);
        return 0;
    }
    for (size_t i = 0; i < SHAPES; i++) {
        lay_out(&b->op[i], b->room[i], i);
        lay_out(&b->expected[i], b->expected_room[i], i);
    }
    gcm_seal(&b->mine, b->op, SHAPES);
    gcm_seal(&b->reference, b->expected, SHAPES);
    right = memcmp(b->room, b->expected_room, sizeof b->room) == 0;

    for (size_t i = 0; i < SHAPES; i++) {
        lay_out(&b->expected[i], b->expected_room[i], i); /* plaintext */
        if (i % 3 == 0)
            b->op[i].tag[i % GCM_TAG_LEN] ^= (uint8_t)(1 << i % 8);
    }
    gcm_open(&b->mine, b->op, SHAPES);
    for (size_t i = 0; i < SHAPES; i++) {
        const uint8_t *plain = i % 3 == 0 ? nothing : b->expected[i].data;
        right = right && b->op[i].ok == (i % 3 != 0) &&
                memcmp(b->op[i].data, plain, b->op[i].data_len) == 0;
    }
    gcm_key_wipe(&b->mine);
    gcm_key_wipe(&b->reference);
    return right;
}

/* Octets of secure data of whole frames: each way in which a backend may take them. */
static const uint16_t frame_lens[] = {50, 64, 77, 128, 200, 256, 640, 1500, 1985, 9000};

enum { RUN = 8, FORGED = 5, TCI_AN = 0x2e };

/* Frame i of a run as the ops would make it, in its room: the reference. */
static void frame_by_ops(struct bench_of_frames *b, size_t i, const struct gcm_usual *usual,
                         const struct frame *frame, uint32_t data_len, uint64_t pn)
{
    uint8_t *const room = b->expected_room[i];
    uint8_t *const data = room + SECY_HEADROOM + SECTAG_AT + frame->len - SECTAG_AT - data_len;
    uint8_t *const start = data - SECTAG_AT - SECTAG_SIZE_MAX;
    struct gcm_op op = {.aad = start,
                        .data = data,
                        .tag = data + data_len,
                        .data_len = data_len,
                        .aad_len = SECTAG_AT + SECTAG_SIZE_MAX};

    memmove(start, room + SECY_HEADROOM, SECTAG_AT);
    sectag_build(start + SECTAG_AT, TCI_AN, sectag_short_length(data_len), (uint32_t)pn,
                 usual->sectag + SECTAG_SIZE);
    if (frame->vlan != FRAME_NO_VLAN)
        wire_put32(data, (uint32_t)VLAN_TPID << 16 | frame->vlan);
    gcm_iv(op.iv, &usual->iv, pn);
    gcm_seal(&b->reference, &op, 1);
}

/* A run of whole frames out and in again, one of them forged. */
static int one_run(struct bench_of_frames *b, uint32_t data_len, uint16_t vlan)
{
    const uint32_t len = SECTAG_AT + data_len - (vlan == FRAME_NO_VLAN ? 0 : VLAN_SIZE);
    const uint64_t pn = UINT64_C(0x1fffffff0);
    struct gcm_usual usual = {.verdict = 1, .pop_vlan = 1};
    struct frame frames[RUN];
    struct gcm_seen seen;
    uint8_t *const arena = b->room[0];
    int right;

    memcpy(usual.iv.octets, kat_iv, sizeof kat_iv);
    sectag_build(usual.sectag, TCI_AN, 0, 0, kat_aad);
    for (size_t i = 0; i < RUN; i++) {
        struct gcm_op unused;
        lay_out(&unused, b->room[i], i);
        lay_out(&unused, b->expected_room[i], i);
        wire_put16(b->room[i] + SECY_HEADROOM + SECTAG_AT, 0x0800);
        wire_put16(b->expected_room[i] + SECY_HEADROOM + SECTAG_AT, 0x0800);
        frames[i] =
            (struct frame){.at = (uint32_t)(i * ROOM + SECY_HEADROOM), .len = len, .vlan = vlan};
        frame_by_ops(b, i, &usual, &frames[i], data_len, pn + i);
    }
    right = gcm_protect(&b->mine, &usual, arena, frames, RUN, pn) == RUN;
    right = right && memcmp(b->room, b->expected_room, RUN * sizeof b->room[0]) == 0;
    if (!right || data_len <= SECTAG_SHORT_MAX)
        return right;

    b->room[FORGED][frames[FORGED].at % ROOM + frames[FORGED].len - 1] ^= 1;
    right = gcm_validate(&b->mine, &usual, arena, frames, RUN, pn, &seen) == RUN &&
            seen.authentic == (0xff ^ 1 << FORGED);
    for (size_t i = 0; i < RUN; i++) {
        struct gcm_op unused;
        lay_out(&unused, b->expected_room[i], i);
        wire_put16(b->expected_room[i] + SECY_HEADROOM + SECTAG_AT, 0x0800);
        right = right && seen.pn_low[i] == (uint32_t)(pn + i);
        if (i != FORGED)
            right = right && frames[i].at == i * ROOM + SECY_HEADROOM && frames[i].len == len &&
                    frames[i].vlan == vlan && frames[i].verdict == usual.verdict &&
                    memcmp(arena + frames[i].at, b->expected_room[i] + SECY_HEADROOM, len) == 0;
    }
    return right && frames[FORGED].verdict != usual.verdict;
}

static int whole_frames(const struct gcm_backend *backend, struct bench_of_frames *b,
                        size_t key_len)
{
    int right = 1;

    if (backend->protect == NULL)
        return 1;
    if (gcm_key_init(&b->mine, backend, kat_plain, key_len) != GCM_OK)
        return 0;
    if (gcm_key_init(&b->reference, &gcm_openssl, kat_plain, key_len) != GCM_OK) {
        gcm_key_wipe(&b->mine);
        return 0;
    }
    for (size_t i = 0; i < sizeof frame_lens / sizeof frame_lens[0]; i++)
        right = right && one_run(b, frame_lens[i], 100) && one_run(b, frame_lens[i], FRAME_NO_VLAN);
    gcm_key_wipe(&b->mine);
    gcm_key_wipe(&b->reference);
    return right;
}

int gcm_backend_selftest(const struct gcm_backend *backend)
{
    struct bench_of_frames *b = aligned_alloc(64, (sizeof *b + 63) / 64 * 64);
    int right;

    if (b == NULL)
        return GCM_E_SELFTEST;
    right = known_answers(backend, &b->mine) && like_openssl(backend, b, 16) &&
            like_openssl(backend, b, 32) && whole_frames(backend, b, 16) &&
            whole_frames(backend, b, 32);
    free(b);
    return right ? GCM_OK : GCM_E_SELFTEST;
}

/* ---- selection ---- */

const char *gcm_backend_name(const struct gcm_backend *backend)
{
    return backend->name;
}

const struct gcm_backend *gcm_backend_at(size_t i)
{
    return i < BACKENDS ? backends[i] : NULL;
}

int gcm_backend_usable(const struct gcm_backend *backend)
{
    return backend->usable();
}

/* What select tells its caller to log; several remarks follow each other. */
struct note {
    char *text;
    size_t room;
};

static void note_add(struct note *note, const char *backend, const char *what)
{
    int len;

    if (note->text == NULL || note->room == 0)
        return;
    len = snprintf(note->text, note->room, "AES-GCM backend %s %s. ", backend, what);
    if (len > 0 && (size_t)len < note->room) {
        note->text += len;
        note->room -= (size_t)len;
    } else {
        note->room = 0;
    }
}

const struct gcm_backend *gcm_backend_select_from(const struct gcm_backend *const *list,
                                                  size_t count, const char *name, char *text,
                                                  size_t text_len)
{
    struct note note = {text, text_len};
    size_t first = 0;

    if (text != NULL && text_len > 0)
        text[0] = '\0';
    if (name != NULL) {
        while (first < count && strcmp(list[first]->name, name) != 0)
            first++;
        if (first == count) {
            note_add(&note, name, "is not one of this build");
            return NULL;
        }
    }
    for (size_t i = first; i < count; i++) {
        if (!list[i]->usable()) {
            if (name != NULL && i == first)
                note_add(&note, list[i]->name, "does not run on this machine");
            continue;
        }
        if (gcm_backend_selftest(list[i]) == GCM_OK)
            return list[i];
        note_add(&note, list[i]->name, "FAILED its self-test and is not used");
    }
    note_add(&note, "of any kind", "is not left");
    return NULL;
}

const struct gcm_backend *gcm_backend_select(const char *name, char *note, size_t note_len)
{
    return gcm_backend_select_from(backends, BACKENDS, name, note, note_len);
}
