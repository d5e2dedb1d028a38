#include "cpu.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <stdint.h>

/* XCR0: which registers the kernel saves. */
enum { XCR0_AVX = 0x06, XCR0_AVX512 = 0xe6 };

static uint64_t xcr0(void)
{
    uint32_t lo, hi;
    __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    return (uint64_t)hi << 32 | lo;
}

static int has(uint32_t reg, uint32_t bits)
{
    return (reg & bits) == bits;
}

unsigned cpu_features(void)
{
    uint32_t a, b, c, d, b7, c7, d7;
    unsigned features = 0;
    uint64_t saved;

    if (!__get_cpuid(1, &a, &b, &c, &d) || !has(c, bit_AES | bit_PCLMUL | bit_SSSE3 | bit_SSE4_1))
        return 0;
    features |= CPU_AESNI;
    if (!has(c, bit_OSXSAVE | bit_AVX) || !__get_cpuid_count(7, 0, &a, &b7, &c7, &d7))
        return features;
    saved = xcr0();
    if ((saved & XCR0_AVX) != XCR0_AVX || !has(b7, bit_AVX2) || !has(c7, bit_VAES | bit_VPCLMULQDQ))
        return features;
    features |= CPU_VAES256;
    if ((saved & XCR0_AVX512) == XCR0_AVX512 &&
        has(b7, bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL | bit_BMI2))
        features |= CPU_VAES512;
    return features;
}
#else
unsigned cpu_features(void)
{
    return 0;
}
#endif
