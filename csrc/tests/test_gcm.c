/* What must be true of AES-GCM, for every backend that this machine can run: the known answers of
 * the standards; equality with libcrypto over all lengths, alignments and mixtures; refusal of
 * whatever was forged; not one octet touched outside the frame; and a selection that passes over
 * a backend that computes wrongly.
 *
 *   test_gcm                     all of it, a few seconds
 *   test_gcm --random N [SEED]   N random batches per backend instead, for as long as you like */
#include "check.h"
#include "gcm.h"
#include "gcm_backend.h"

#include <openssl/evp.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

enum {
    LEN_MAX = 9216,           /* octets of data or AAD */
    BATCH_MAX = 64,           /* ops */
    ROOM = 2 * LEN_MAX + 256, /* octets for one op with its margins */
    LINE_MAX_LEN = 65536,
};

/* ---- the reference: libcrypto, used directly ---- */

struct reference {
    EVP_CIPHER_CTX *ctx;
};

static void reference_key(struct reference *r, const uint8_t *key, size_t key_len)
{
    r->ctx = EVP_CIPHER_CTX_new();
    if (r->ctx == NULL ||
        EVP_EncryptInit_ex(r->ctx, key_len == 16 ? EVP_aes_128_gcm() : EVP_aes_256_gcm(), NULL, key,
                           NULL) != 1)
        abort();
}

static void reference_free(struct reference *r)
{
    EVP_CIPHER_CTX_free(r->ctx);
}

/* Encrypts op->data to `cipher`. */
static void reference_seal(struct reference *r, const struct gcm_op *op, uint8_t *cipher,
                           uint8_t *tag)
{
    int len;
    if (EVP_EncryptInit_ex(r->ctx, NULL, NULL, NULL, op->iv) != 1 ||
        (op->aad_len && EVP_EncryptUpdate(r->ctx, NULL, &len, op->aad, (int)op->aad_len) != 1) ||
        (op->data_len &&
         EVP_EncryptUpdate(r->ctx, cipher, &len, op->data, (int)op->data_len) != 1) ||
        EVP_EncryptFinal_ex(r->ctx, (uint8_t[16]){0}, &len) != 1 ||
        EVP_CIPHER_CTX_ctrl(r->ctx, EVP_CTRL_AEAD_GET_TAG, GCM_TAG_LEN, tag) != 1)
        abort();
}

/* ---- random numbers that come again with the same seed ---- */

static uint64_t random_state = 0x9e3779b97f4a7c15u;

static uint64_t random64(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    return random_state ^= random_state << 17;
}

static uint32_t random_below(uint32_t bound)
{
    return (uint32_t)(random64() >> 32) % bound;
}

static void random_fill(uint8_t *at, size_t len)
{
    for (; len >= 8; at += 8, len -= 8) {
        const uint64_t word = random64();
        memcpy(at, &word, 8);
    }
    for (; len > 0; len--)
        *at++ = (uint8_t)random64();
}

/* ---- a workbench: room for a batch, before and after ---- */

static struct {
    uint8_t text[BATCH_MAX][ROOM];     /* before */
    uint8_t work[BATCH_MAX][ROOM];     /* what the backend works on */
    uint8_t expected[BATCH_MAX][ROOM]; /* what must come out */
    struct gcm_op op[BATCH_MAX];
} bench;

/* How an op lies in its room: | margin | AAD | gap | data | gap | tag | margin |. */
struct layout {
    uint32_t data_len, aad_len;
    uint32_t aad_at, data_at, tag_at;
};

static struct layout packed(uint32_t data_len, uint32_t aad_len, uint32_t at)
{
    return (struct layout){data_len, aad_len, at, at + aad_len, at + aad_len + data_len};
}

static void place(size_t i, const struct layout *l)
{
    bench.op[i] = (struct gcm_op){.data = bench.work[i] + l->data_at,
                                  .aad = bench.work[i] + l->aad_at,
                                  .tag = bench.work[i] + l->tag_at,
                                  .data_len = l->data_len,
                                  .aad_len = l->aad_len,
                                  .ok = (uint32_t)random64()};
    random_fill(bench.op[i].iv, GCM_IV_LEN);
}

/* Seals ops[0..n) as laid out, compares whole rooms with the reference, opens them, compares with
 * the text. Where `forge` has a bit set, one bit of that frame is flipped before it is opened.
 * Returns 1 if all was as it must be. */
static int round_trip(const struct gcm_key *key, struct reference *ref, const struct layout *layout,
                      size_t n, uint64_t forge)
{
    int right = 1;

    for (size_t i = 0; i < n; i++) {
        const struct layout *l = &layout[i];
        const size_t used = l->tag_at + GCM_TAG_LEN + 64;
        place(i, l);
        memcpy(bench.work[i], bench.text[i], used);
        memcpy(bench.expected[i], bench.text[i], used);
        reference_seal(ref, &bench.op[i], bench.expected[i] + l->data_at,
                       bench.expected[i] + l->tag_at);
    }
    gcm_seal(key, bench.op, n);
    for (size_t i = 0; i < n; i++) {
        right &= bench.op[i].ok == 1;
        right &= memcmp(bench.work[i], bench.expected[i], layout[i].tag_at + GCM_TAG_LEN + 64) == 0;
    }

    for (size_t i = 0; i < n; i++) {
        const struct layout *l = &layout[i];
        struct gcm_op *op = &bench.op[i];
        op->ok = (uint32_t)random64();
        if (!(forge >> i & 1)) {
            memcpy(bench.expected[i] + l->data_at, bench.text[i] + l->data_at, l->data_len);
            continue;
        }
        const uint8_t bit = (uint8_t)(1 << random_below(8));
        const uint32_t what = random_below(4);
        if (what == 0 && l->data_len) {
            op->data[random_below(l->data_len)] ^= bit;
        } else if (what == 1 && l->aad_len) {
            const uint32_t at = l->aad_at + random_below(l->aad_len);
            bench.work[i][at] ^= bit;
            bench.expected[i][at] ^= bit;
        } else if (what == 2) {
            op->iv[random_below(GCM_IV_LEN)] ^= bit;
        } else {
            const uint32_t at = l->tag_at + random_below(GCM_TAG_LEN);
            bench.work[i][at] ^= bit;
            bench.expected[i][at] ^= bit;
        }
        memset(bench.expected[i] + l->data_at, 0, l->data_len);
    }
    gcm_open(key, bench.op, n);
    for (size_t i = 0; i < n; i++) {
        right &= bench.op[i].ok == !(forge >> i & 1);
        right &= memcmp(bench.work[i], bench.expected[i], layout[i].tag_at + GCM_TAG_LEN + 64) == 0;
    }
    return right;
}

/* ---- known answers ---- */

static size_t unhex(const char *text, uint8_t *out)
{
    size_t n = 0;
    unsigned octet;

    if (text[0] == '-')
        return 0;
    for (; sscanf(text, "%2x", &octet) == 1 && text[0] && text[1]; text += 2)
        out[n++] = (uint8_t)octet;
    return n;
}

/* Each line of the file: name key iv aad plaintext ciphertext tag, in hex, "-" for nothing. Every
 * case is sealed alone, in a batch of five, and opened. */
static void known_answers(const struct gcm_backend *backend, const char *path)
{
    FILE *file = fopen(path, "r");
    char *line = malloc(LINE_MAX_LEN);
    unsigned cases = 0;

    CHECK(file != NULL);
    while (file != NULL && fgets(line, LINE_MAX_LEN, file) != NULL) {
        static uint8_t key[64], iv[64], aad[LEN_MAX], plain[LEN_MAX], cipher[LEN_MAX], tag[64];
        static uint8_t data[5][LEN_MAX], got[5][GCM_TAG_LEN];
        struct gcm_op op[5];
        struct gcm_key k;
        char *field[7], *rest = line;
        int fields = 0;

        if (line[0] == '#' || line[0] == '\n')
            continue;
        while (fields < 7 && (field[fields] = strtok_r(rest, " \n", &rest)) != NULL)
            fields++;
        CHECK_EQUAL(fields, 7);
        if (fields != 7)
            break;
        const size_t key_len = unhex(field[1], key);
        CHECK_EQUAL(unhex(field[2], iv), GCM_IV_LEN);
        const uint32_t aad_len = (uint32_t)unhex(field[3], aad);
        const uint32_t data_len = (uint32_t)unhex(field[4], plain);
        CHECK_EQUAL(unhex(field[5], cipher), data_len);
        CHECK_EQUAL(unhex(field[6], tag), GCM_TAG_LEN);

        CHECK_EQUAL(gcm_key_init(&k, backend, key, key_len), GCM_OK);
        for (size_t n = 1; n <= 5; n += 4) {
            for (size_t i = 0; i < n; i++) {
                memcpy(data[i], plain, data_len);
                op[i] = (struct gcm_op){.data = data_len ? data[i] : NULL,
                                        .aad = aad_len ? aad : NULL,
                                        .tag = got[i],
                                        .data_len = data_len,
                                        .aad_len = aad_len};
                memcpy(op[i].iv, iv, GCM_IV_LEN);
            }
            gcm_seal(&k, op, n);
            for (size_t i = 0; i < n; i++) {
                CHECK(memcmp(data[i], cipher, data_len) == 0);
                CHECK(memcmp(got[i], tag, GCM_TAG_LEN) == 0);
            }
            gcm_open(&k, op, n);
            for (size_t i = 0; i < n; i++) {
                CHECK_EQUAL(op[i].ok, 1);
                CHECK(memcmp(data[i], plain, data_len) == 0);
            }
        }
        gcm_key_wipe(&k);
        cases++;
    }
    CHECK(cases >= 40); /* the file was not empty */
    free(line);
    if (file != NULL)
        fclose(file);
}

/* IEEE 802.1AE: SCI | PN, and (SSCI | PN) xor salt, on both sides of 2^32. */
static void ivs(void)
{
    static const uint8_t sci[8] = {0xfe, 0x2f, 0xcd, 0x14, 0x24, 0x1b, 0x88, 0x2c};
    static const uint8_t salt[12] = {0xe6, 0x30, 0xe8, 0x1a, 0x48, 0xde,
                                     0x86, 0xa2, 0x1c, 0x66, 0xfa, 0x6d};
    static const uint8_t want_sci[12] = {0xfe, 0x2f, 0xcd, 0x14, 0x24, 0x1b,
                                         0x88, 0x2c, 0x39, 0x38, 0x97, 0x44};
    static const uint8_t want_xpn[12] = {0x9c, 0x00, 0x29, 0x02, 0xf8, 0x01,
                                         0xc3, 0x3e, 0x6a, 0xb2, 0xad, 0x80};
    struct gcm_iv_base base = gcm_iv_base_sci(sci);
    uint8_t iv[12];

    gcm_iv(iv, &base, 0x39389744);
    CHECK(memcmp(iv, want_sci, sizeof iv) == 0);
    base = gcm_iv_base_xpn(0x7a30c118, salt);
    gcm_iv(iv, &base, 0xb0df459c76d457ed);
    CHECK(memcmp(iv, want_xpn, sizeof iv) == 0);
}

/* ---- against libcrypto ---- */

/* Every length: one frame alone, and a run of it with one of another length behind: 20 of a run
 * where eight go in step, 8 where four do. */
static void all_lengths(const struct gcm_key *key, struct reference *ref)
{
    for (uint32_t len = 0; len <= LEN_MAX; len++) {
        const uint32_t run = len <= 130 ? 20 : 8;
        struct layout l[21];
        for (uint32_t i = 0; i <= run; i++)
            l[i] = packed(i < run ? len : random_below(LEN_MAX), len % 2 ? 20 : 28, 16 + len % 64);
        CHECK(round_trip(key, ref, l, 1, 0));
        if (len < 2200 || len % 16 == 0)
            CHECK(round_trip(key, ref, l, run + 1, len % 5 ? 0 : random64() & random64()));
    }
}

static void all_alignments(const struct gcm_key *key, struct reference *ref)
{
    static const uint32_t lens[] = {1, 16, 46, 64, 79, 512, 1500, 2049};
    for (uint32_t at = 0; at < 64; at++) {
        for (size_t k = 0; k < sizeof lens / sizeof lens[0]; k++) {
            struct layout l[4];
            for (uint32_t i = 0; i < 4; i++) {
                l[i] = packed(lens[k], 28, 0);
                l[i].aad_at = random_below(64);
                l[i].data_at = 128 + at;
                l[i].tag_at = l[i].data_at + lens[k] + random_below(64);
            }
            CHECK(round_trip(key, ref, l, 4, 0));
            CHECK(round_trip(key, ref, l, 1, 0));
        }
    }
}

/* Every AAD up to past two units, then the edges of blocks, units and chunks up to a jumbo. */
static void all_aads(const struct gcm_key *key, struct reference *ref)
{
    static const uint32_t lens[] = {0, 1, 48, 64, 640, 1500};
    uint32_t step = 1;
    for (uint32_t aad_len = 0; aad_len <= LEN_MAX; aad_len += step) {
        step = aad_len < 260 ? 1 : aad_len % 16 == 15 || aad_len % 16 == 0 ? 1 : 15;
        const size_t count = aad_len < 260 ? sizeof lens / sizeof lens[0] : 2;
        for (size_t k = 0; k < count; k++) {
            struct layout l[4];
            for (int i = 0; i < 4; i++)
                l[i] = packed(lens[k], aad_len, 16);
            CHECK(round_trip(key, ref, l, aad_len < 260 ? 4 : 1, 0));
        }
    }
}

static uint32_t random_len(void)
{
    switch (random_below(8)) {
    case 0:
        return random_below(17);
    case 1:
        return 46;
    case 2:
    case 3:
        return random_below(130);
    case 4:
        return random_below(600);
    case 5:
        return 1400 + random_below(200);
    case 6:
        return random_below(2600);
    default:
        return random_below(16) ? random_below(600) : random_below(LEN_MAX + 1);
    }
}

static uint32_t random_aad_len(void)
{
    static const uint32_t usual[] = {20, 28, 28, 28, 28, 28, 12, 58, 78, 50, 32, 33};
    return random_below(10) ? usual[random_below(sizeof usual / sizeof usual[0])]
                            : random_below(random_below(8) ? 100 : 3000);
}

/* Mixtures: any lengths, any alignment, any number of frames, some of them forged. */
static void random_batches(const struct gcm_key *key, struct reference *ref, uint64_t batches)
{
    struct layout l[BATCH_MAX];
    for (uint64_t b = 0; b < batches; b++) {
        const uint32_t n = 1 + random_below(random_below(4) ? 12 : BATCH_MAX);
        const uint64_t forge = random_below(3) ? 0 : random64() & random64();
        const int one_length = random_below(4) == 0; /* runs of equal frames with a few others */
        const uint32_t len = random_len() % 2000, aad_len = random_aad_len();
        for (uint32_t i = 0; i < n; i++) {
            const int same = one_length && random_below(16);
            l[i] = packed(same ? len : random_len(), same ? aad_len : random_aad_len(),
                          random_below(64));
        }
        CHECK(round_trip(key, ref, l, n, forge));
    }
}

/* Frames of a few lengths in no order: those of one length may be done together. */
static void few_lengths(const struct gcm_key *key, struct reference *ref, uint64_t batches)
{
    struct layout l[BATCH_MAX];

    for (uint64_t batch = 0; batch < batches; batch++) {
        const uint32_t n = 1 + random_below(BATCH_MAX), kinds = 1 + random_below(8);
        uint32_t lens[8], aad_lens[8];
        for (uint32_t k = 0; k < kinds; k++) {
            lens[k] = random_len() % 2000;
            aad_lens[k] = random_below(8) ? 28 : random_aad_len();
        }
        for (uint32_t i = 0; i < n; i++) {
            const uint32_t k = random_below(kinds);
            l[i] = packed(lens[k], aad_lens[k], random_below(64));
        }
        CHECK(round_trip(key, ref, l, n, random_below(2) ? random64() & random64() : 0));
    }
}

/* Every single bit of a short frame's data, AAD, tag and IV matters, alone and in a batch. */
static void every_bit(const struct gcm_key *key)
{
    static uint8_t good[8][128], work[8][128];
    struct gcm_op op[8], sealed[8];
    const uint32_t aad_len = 28, data_len = 35, total = aad_len + data_len + GCM_TAG_LEN;

    for (size_t i = 0; i < 8; i++) {
        random_fill(good[i], sizeof good[i]);
        sealed[i] = (struct gcm_op){.aad = good[i],
                                    .data = good[i] + aad_len,
                                    .tag = good[i] + aad_len + data_len,
                                    .data_len = data_len,
                                    .aad_len = aad_len};
        random_fill(sealed[i].iv, GCM_IV_LEN);
    }
    gcm_seal(key, sealed, 8);
    for (uint32_t bit = 0; bit < 8 * (total + GCM_IV_LEN); bit++) {
        const size_t victim = bit % 8 ^ bit / 8 % 8, n = bit % 3 ? 8 : 1;
        const size_t first = n == 1 ? victim : 0;
        memcpy(work, good, sizeof work);
        for (size_t i = 0; i < 8; i++) {
            op[i] = sealed[i];
            op[i].aad = work[i];
            op[i].data = work[i] + aad_len;
            op[i].tag = work[i] + aad_len + data_len;
        }
        if (bit < 8 * total)
            work[victim][bit / 8] ^= (uint8_t)(1 << bit % 8);
        else
            op[victim].iv[bit / 8 - total] ^= (uint8_t)(1 << bit % 8);
        gcm_open(key, op + first, n);
        for (size_t i = first; i < first + n; i++)
            CHECK_EQUAL(op[i].ok, i != victim);
        CHECK(memcmp(op[victim].data, (uint8_t[35]){0}, data_len) == 0);
    }
}

/* Frames that end, and begin, where memory does: whoever reads or writes beside them dies. */
static void memory_edges(const struct gcm_key *key, struct reference *ref)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), inner = 3 * page;
    uint8_t *map = mmap(NULL, inner + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    CHECK(map != MAP_FAILED);
    if (map == MAP_FAILED)
        return;
    CHECK(mprotect(map + page, inner, PROT_READ | PROT_WRITE) == 0);
    for (uint32_t len = 0; len <= 2200; len += len < 260 ? 1 : 61) {
        for (uint32_t edge = 0; edge < 6; edge++) {
            const uint32_t aad_len = len % 3 ? 28 : len % 100;
            static uint8_t aads[LEN_MAX], plain[LEN_MAX], cipher[LEN_MAX], datas[4][LEN_MAX];
            uint8_t tags[4][GCM_TAG_LEN], tag[GCM_TAG_LEN], *begin = map + page;
            uint8_t *end = begin + inner;
            struct gcm_op op[4];
            const size_t n = len % 2 ? 4 : 1;

            random_fill(plain, len);
            for (size_t i = 0; i < n; i++) {
                memcpy(datas[i], plain, len);
                op[i] = (struct gcm_op){.data = datas[i],
                                        .aad = aads,
                                        .tag = tags[i],
                                        .data_len = len,
                                        .aad_len = aad_len};
            }
            struct gcm_op *one = &op[len % n];
            if (edge == 0 || edge == 1) {
                one->data = edge ? end - len : begin;
                memcpy(one->data, plain, len);
            } else if (edge == 2 || edge == 3) {
                uint8_t *aad = edge == 3 ? end - aad_len : begin;
                memcpy(aad, aads, aad_len);
                one->aad = aad;
            } else {
                one->tag = edge == 5 ? end - GCM_TAG_LEN : begin;
            }
            reference_seal(ref, one, cipher, tag);
            gcm_seal(key, op, n);
            CHECK(memcmp(one->data, cipher, len) == 0);
            CHECK(memcmp(one->tag, tag, GCM_TAG_LEN) == 0);
            gcm_open(key, op, n);
            CHECK(one->ok == 1 && memcmp(one->data, plain, len) == 0);
        }
    }
    munmap(map, inner + 2 * page);
}

/* ---- keys and selection ---- */

static void keys(const struct gcm_backend *backend)
{
    static const struct gcm_key zero;
    struct gcm_key key;

    for (size_t len = 0; len <= 33; len++) {
        const int right = len == 16 || len == 32;
        const int result = gcm_key_init(&key, backend, bench.text[0], len);
        CHECK_EQUAL(result, right ? GCM_OK : GCM_E_KEY_LEN);
        if (right)
            gcm_seal(&key, NULL, 0); /* an empty batch is nothing to do */
        gcm_key_wipe(&key);
        CHECK(memcmp(&key, &zero, sizeof key) == 0);
        gcm_key_wipe(&key);
    }
}

/* Backends with a fault: each computes like openssl but for one thing. */
static void seal_wrong_tag(const struct gcm_key *key, struct gcm_op *ops, size_t n)
{
    gcm_openssl.seal(key, ops, n);
    for (size_t i = 0; i < n; i++)
        if (ops[i].data_len == 1500)
            ops[i].tag[15] ^= 1;
}

static void seal_clear(const struct gcm_key *key, struct gcm_op *ops, size_t n)
{
    (void)key;
    for (size_t i = 0; i < n; i++)
        ops[i].ok = 1;
}

static void open_believes(const struct gcm_key *key, struct gcm_op *ops, size_t n)
{
    gcm_openssl.open(key, ops, n);
    for (size_t i = 0; i < n; i++)
        ops[i].ok = 1;
}

static void open_leaks(const struct gcm_key *key, struct gcm_op *ops, size_t n)
{
    gcm_openssl.open(key, ops, n);
    for (size_t i = 0; i < n; i++)
        if (!ops[i].ok && ops[i].data_len)
            ops[i].data[0] = 1;
}

static int never(void)
{
    return 0;
}

static int no_key(struct gcm_key *key, const uint8_t *secret)
{
    (void)key;
    (void)secret;
    return -1;
}

static void selection(void)
{
    struct gcm_backend bad[5];
    struct gcm_key key;
    char note[256];

    for (size_t i = 0; i < 5; i++) {
        bad[i] = gcm_openssl;
        bad[i].name = "faulty";
    }
    bad[0].seal = seal_wrong_tag;
    bad[1].seal = seal_clear;
    bad[2].open = open_believes;
    bad[3].open = open_leaks;
    bad[4].key_init = no_key;
    for (size_t i = 0; i < 5; i++) {
        const struct gcm_backend *list[] = {&bad[i], &gcm_openssl};
        CHECK_EQUAL(gcm_backend_selftest(&bad[i]), GCM_E_SELFTEST);
        CHECK(gcm_backend_select_from(list, 2, NULL, note, sizeof note) == &gcm_openssl);
        CHECK(strstr(note, "faulty FAILED its self-test") != NULL);
        CHECK(gcm_backend_select_from(list, 1, NULL, note, sizeof note) == NULL);
        CHECK(gcm_backend_select_from(list, 2, NULL, NULL, 0) == &gcm_openssl);
        CHECK(gcm_backend_select_from(list, 2, NULL, note, 8) == &gcm_openssl);
        CHECK(memchr(note, 0, 8) != NULL);
    }
    CHECK_EQUAL(gcm_key_init(&key, &bad[4], bench.text[0], 16), GCM_E_BACKEND);

    /* Not for this machine: passed over in silence, unless it was asked for. */
    bad[0] = gcm_openssl;
    bad[0].name = "foreign";
    bad[0].usable = never;
    const struct gcm_backend *list[] = {&bad[0], &gcm_openssl};
    CHECK(gcm_backend_select_from(list, 2, NULL, note, sizeof note) == &gcm_openssl);
    CHECK_EQUAL(strlen(note), 0);
    CHECK(gcm_backend_select_from(list, 2, "foreign", note, sizeof note) == &gcm_openssl);
    CHECK(strstr(note, "foreign does not run on this machine") != NULL);

    CHECK(gcm_backend_select("rot13", note, sizeof note) == NULL);
    CHECK(strstr(note, "rot13 is not one of this build") != NULL);
    CHECK(gcm_backend_select("openssl", note, sizeof note) == &gcm_openssl);
    CHECK_EQUAL(strlen(note), 0);
    const struct gcm_backend *best = gcm_backend_select(NULL, note, sizeof note);
    CHECK(best != NULL && gcm_backend_usable(best));
    CHECK_EQUAL(strlen(note), 0); /* nothing that this machine can run computes wrongly */
    printf("fastest backend here: %s\n", best ? gcm_backend_name(best) : "none");
}

/* ---- */

static void against_reference(const struct gcm_backend *backend, size_t key_len, uint64_t batches)
{
    uint8_t secret[32];
    struct gcm_key key;
    struct reference ref;

    random_fill(secret, sizeof secret);
    CHECK_EQUAL(gcm_key_init(&key, backend, secret, key_len), GCM_OK);
    reference_key(&ref, secret, key_len);
    if (batches > 0) {
        random_batches(&key, &ref, batches);
        few_lengths(&key, &ref, batches);
    } else {
        all_lengths(&key, &ref);
        all_alignments(&key, &ref);
        all_aads(&key, &ref);
        random_batches(&key, &ref, 600);
        few_lengths(&key, &ref, 300);
        every_bit(&key);
        memory_edges(&key, &ref);
    }
    reference_free(&ref);
    gcm_key_wipe(&key);
}

int main(int argc, char **argv)
{
    const int random_only = argc >= 3 && strcmp(argv[1], "--random") == 0;
    const uint64_t batches = random_only ? strtoull(argv[2], NULL, 0) : 0;
    const char *vectors =
        getenv("GCM_VECTORS") ? getenv("GCM_VECTORS") : "../tests/vectors/gcm.txt";

    if (random_only && argc >= 4)
        random_state = strtoull(argv[3], NULL, 0) | 1;
    random_fill(bench.text[0], sizeof bench.text);
    if (!random_only) {
        ivs();
        selection();
    }
    for (size_t i = 0; gcm_backend_at(i) != NULL; i++) {
        const struct gcm_backend *backend = gcm_backend_at(i);
        if (!gcm_backend_usable(backend)) {
            printf("%s: does not run on this machine, not tested\n", gcm_backend_name(backend));
            continue;
        }
        const unsigned long before = check_count, failed = check_failed;
        if (!random_only) {
            keys(backend);
            known_answers(backend, vectors);
        }
        /* Key by key, so that a long run sees many keys. */
        for (uint64_t done = 0; done <= batches; done += 1000) {
            const uint64_t part = batches - done < 1000 ? batches - done : 1000;
            if (random_only && part == 0)
                break;
            against_reference(backend, 16, part);
            against_reference(backend, 32, part);
        }
        printf("%s: %lu passed, %lu failed\n", gcm_backend_name(backend),
               check_count - before - (check_failed - failed), check_failed - failed);
    }
    printf("%lu passed, %lu failed\n", check_count - check_failed, check_failed);
    return check_failed != 0;
}
