#include "pn.h"

uint32_t pn_take(struct pn *pn, uint32_t want, uint64_t *first)
{
    uint64_t next = pn_next(pn);
    uint64_t after;
    uint32_t take;

    do {
        if (next == 0 || want == 0)
            return 0;
        const uint64_t beside = pn->max - next; /* numbers left behind `next` */
        if (beside >= want) {
            take = want;
            after = next + want;
        } else {
            take = (uint32_t)beside + 1;
            after = 0;
        }
    } while (!atomic_compare_exchange_weak_explicit(&pn->next, &next, after, memory_order_relaxed,
                                                    memory_order_relaxed));
    *first = next;
    return take;
}
