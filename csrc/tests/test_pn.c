#include "check.h"
#include "pn.h"

#include <pthread.h>

enum { THREADS = 4, ROUNDS = 20000 };

static struct pn shared;

static void *taker(void *sum)
{
    for (unsigned i = 0; i < ROUNDS; i++) {
        uint64_t first;
        const uint32_t got = pn_take(&shared, 1 + i % 7, &first);
        for (uint32_t k = 0; k < got; k++)
            *(uint64_t *)sum += first + k;
    }
    return NULL;
}

int main(void)
{
    struct pn pn;
    uint64_t first = 0;

    /* 32 bits: the last number is used, then there is none, for ever. */
    pn_init(&pn, PN_MAX - 2, PN_MAX);
    CHECK_EQUAL(pn_take(&pn, 0, &first), 0);
    CHECK_EQUAL(pn_take(&pn, 1, &first), 1);
    CHECK_EQUAL(first, PN_MAX - 2);
    CHECK_EQUAL(pn_next(&pn), PN_MAX - 1);
    CHECK_EQUAL(pn_take(&pn, 5, &first), 2);
    CHECK_EQUAL(first, PN_MAX - 1);
    CHECK_EQUAL(pn_next(&pn), 0);
    CHECK_EQUAL(pn_take(&pn, 1, &first), 0);
    CHECK_EQUAL(pn_take(&pn, 1, &first), 0);

    /* Taken to the last one exactly, and one short of it. */
    pn_init(&pn, PN_MAX - 2, PN_MAX);
    CHECK_EQUAL(pn_take(&pn, 3, &first), 3);
    CHECK_EQUAL(pn_next(&pn), 0);
    pn_init(&pn, PN_MAX - 2, PN_MAX);
    CHECK_EQUAL(pn_take(&pn, 2, &first), 2);
    CHECK_EQUAL(pn_next(&pn), PN_MAX);

    /* 64 bits: 2^32 is a number like any other, 2^64 does not exist. */
    pn_init(&pn, PN_MAX, PN_MAX_XPN);
    CHECK_EQUAL(pn_take(&pn, 3, &first), 3);
    CHECK_EQUAL(pn_next(&pn), PN_MAX + 3);
    pn_init(&pn, PN_MAX_XPN - 1, PN_MAX_XPN);
    CHECK_EQUAL(pn_take(&pn, 64, &first), 2);
    CHECK_EQUAL(first, PN_MAX_XPN - 1);
    CHECK_EQUAL(pn_take(&pn, 64, &first), 0);

    /* Several threads: no number twice, none lost. */
    pthread_t threads[THREADS];
    uint64_t sums[THREADS] = {0}, sum = 0;
    pn_init(&shared, 1, PN_MAX);
    for (unsigned i = 0; i < THREADS; i++)
        pthread_create(&threads[i], NULL, taker, &sums[i]);
    for (unsigned i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        sum += sums[i];
    }
    const uint64_t last = pn_next(&shared) - 1;
    CHECK_EQUAL(sum, last * (last + 1) / 2);

    /* Recovery (10.6.2): from each lowest number, every number up to 2^31 - 1 ahead comes back,
     * and what is behind it in the same half stays behind. */
    const uint64_t lowest[] = {1,
                               0x7FFFFFFF,
                               0x80000000,
                               0x80000001,
                               0xFFFFFFFE,
                               0xFFFFFFFF,
                               0x100000000,
                               0x100000001,
                               0x17FFFFFFF,
                               0x180000000,
                               UINT64_C(0xB0DF459CFFFFFFFF),
                               UINT64_C(0xB0DF459D00000000)};
    const uint64_t ahead[] = {0, 1, 2, 63, 64, 0x7FFFFFFE, 0x7FFFFFFF};
    for (unsigned i = 0; i < sizeof lowest / sizeof *lowest; i++)
        for (unsigned j = 0; j < sizeof ahead / sizeof *ahead; j++)
            CHECK_EQUAL(pn_recover((uint32_t)(lowest[i] + ahead[j]), lowest[i]),
                        lowest[i] + ahead[j]);
    CHECK_EQUAL(pn_recover(0xFFFFFFF0, 0x100000005), 0x1FFFFFFF0); /* not below the lowest */
    CHECK_EQUAL(pn_recover(4, 5), 4);
    CHECK_EQUAL(pn_recover(0, PN_MAX_XPN), 0); /* nothing above the last: refused as late */
    return check_report("pn");
}
