/* What this CPU can do, asked once at start.
 *
 * A bit is set only if the CPU has the instructions and the kernel saves the registers that they
 * use. On anything but x86-64 the set is empty. */
#ifndef LASTMILE_CPU_H
#define LASTMILE_CPU_H

enum cpu_feature {
    CPU_AESNI = 1 << 0,   /* AES-NI, PCLMULQDQ, SSSE3, SSE4.1 */
    CPU_VAES256 = 1 << 1, /* VAES and VPCLMULQDQ on 256-bit registers, AVX2 */
    CPU_VAES512 = 1 << 2, /* the same on 512-bit registers, AVX-512 F, BW, DQ, VL; BMI2 */
};

/* cpu_features: the set of enum cpu_feature of this CPU. */
unsigned cpu_features(void);

#endif
