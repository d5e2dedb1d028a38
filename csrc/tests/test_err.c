#include "check.h"
#include "err.h"

#include <string.h>

int main(void)
{
    CHECK(strcmp(err_strerror(ERR_OK), "no error") == 0);
    /* Every code of the list has a sentence of its own, and nothing else has one. */
#define CHECK_NAMED(name, number, text) CHECK(strcmp(err_strerror(ERR_##name), text) == 0);
    ERR_LIST(CHECK_NAMED)
    CHECK(strcmp(err_strerror(1), "unknown error") == 0);
    CHECK(strcmp(err_strerror(-1000), "unknown error") == 0);
    return check_report("err");
}
