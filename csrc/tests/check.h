/* check: the least that a test program needs. CHECK prints the place of a failure and counts it;
 * check_report, the last line of main, prints the sum and returns the exit code. */
#ifndef LASTMILE_TESTS_CHECK_H
#define LASTMILE_TESTS_CHECK_H

#include <stdio.h>

static unsigned long check_count, check_failed;

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        check_count++;                                                                             \
        if (!(condition)) {                                                                        \
            check_failed++;                                                                        \
            printf("%s:%d: not true: %s\n", __FILE__, __LINE__, #condition);                       \
        }                                                                                          \
    } while (0)

#define CHECK_EQUAL(got, wanted)                                                                   \
    do {                                                                                           \
        const unsigned long long got_ = (unsigned long long)(got);                                 \
        const unsigned long long wanted_ = (unsigned long long)(wanted);                           \
        check_count++;                                                                             \
        if (got_ != wanted_) {                                                                     \
            check_failed++;                                                                        \
            printf("%s:%d: %s is %llu, not %llu\n", __FILE__, __LINE__, #got, got_, wanted_);      \
        }                                                                                          \
    } while (0)

static inline int check_report(const char *name)
{
    printf("%s: %lu checks, %lu failed\n", name, check_count, check_failed);
    return check_failed != 0;
}

#endif
