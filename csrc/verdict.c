#include "verdict.h"

#include <stddef.h>

static const struct {
    const char *name;
    int delivers;
} verdicts[] = {
#define VERDICT_ROW(name, text, fate) [VERDICT_##name] = {text, (fate) == VERDICT_DELIVER},
    VERDICT_LIST(VERDICT_ROW)
#undef VERDICT_ROW
};

_Static_assert(sizeof verdicts / sizeof *verdicts == VERDICT_COUNT, "a verdict has no row");
_Static_assert(VERDICT_COUNT <= 256, "a verdict fits an octet of struct frame");

int verdict_delivers(unsigned verdict)
{
    return verdict < VERDICT_COUNT && verdicts[verdict].delivers;
}

const char *verdict_name(unsigned verdict)
{
    return verdict < VERDICT_COUNT ? verdicts[verdict].name : NULL;
}
