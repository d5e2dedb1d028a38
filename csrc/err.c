#include "err.h"

const char *err_strerror(int code)
{
    switch (code) {
    case ERR_OK:
        return "no error";
#define ERR_CASE(name, number, text)                                                               \
    case ERR_##name:                                                                               \
        return text;
        ERR_LIST(ERR_CASE)
#undef ERR_CASE
    default:
        return "unknown error";
    }
}
