#include "check.h"
#include "verdict.h"

#include <string.h>

int main(void)
{
    for (unsigned i = 0; i < VERDICT_COUNT; i++) {
        CHECK(verdict_name(i) != NULL);
        for (unsigned j = 0; j < i; j++)
            CHECK(strcmp(verdict_name(i), verdict_name(j)) != 0);
    }
    CHECK(verdict_name(VERDICT_COUNT) == NULL);
    CHECK(!verdict_delivers(VERDICT_COUNT));
    CHECK(verdict_delivers(VERDICT_IN_OK));
    CHECK(verdict_delivers(VERDICT_OUT_ENCRYPTED));
    CHECK(!verdict_delivers(VERDICT_IN_NOT_VALID));
    CHECK(!verdict_delivers(VERDICT_IN_LATE));
    CHECK(!verdict_delivers(VERDICT_OUT_NO_SA));
    return check_report("verdict");
}
