/* AES-GCM with AES-NI and PCLMULQDQ: every x86-64 of the last ten years. One block a register; the
 * work is in gcm_lanes.h. */
#include "gcm_backend.h"

#if defined(__x86_64__)
#include "aes_x86.h"
#include "cpu.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("aes,pclmul,ssse3,sse4.1"))),                   \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("aes,pclmul,ssse3,sse4.1")
#endif
#include <immintrin.h>

#define LANES            1
#define V                __m128i
#define V_ZERO           _mm_setzero_si128()
#define V_XOR            _mm_xor_si128
#define V_AESENC         _mm_aesenc_si128
#define V_AESENCLAST     _mm_aesenclast_si128
#define V_CLMUL          _mm_clmulepi64_si128
#define V_SWAP_HALVES(x) _mm_shuffle_epi32(x, 0x4e)

static inline __m128i v_load(const void *at)
{
    return _mm_loadu_si128(at);
}

static inline void v_store(void *at, __m128i x)
{
    _mm_storeu_si128(at, x);
}

static inline __m128i v_broadcast(__m128i x)
{
    return x;
}

/* x in the first lane, zero in the others */
static inline __m128i v_first(__m128i x)
{
    return x;
}

static inline __m128i v_add_lanes(__m128i x)
{
    return x;
}

static inline __m128i v_byte_swap(__m128i x)
{
    return _mm_shuffle_epi8(x, _mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
}

/* iv with the counters n, n+1, .. xored into the last words */
static inline __m128i v_counters(__m128i iv, uint32_t n)
{
    return _mm_xor_si128(iv, _mm_set_epi32((int)__builtin_bswap32(n), 0, 0, 0));
}

#include "gcm_lanes.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

static int aesni_usable(void)
{
    return (cpu_features() & CPU_AESNI) != 0;
}

const struct gcm_backend gcm_aesni = {
    .name = "aesni",
    .usable = aesni_usable,
    .key_init = lanes_key_init,
    .key_wipe = NULL,
    .seal = lanes_seal,
    .open = lanes_open,
};
#else
typedef int gcm_aesni_is_empty; /* ISO C wants a declaration in every file */
#endif
