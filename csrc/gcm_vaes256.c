/* AES-GCM with VAES and VPCLMULQDQ on 256-bit registers: CPUs without AVX-512. Two blocks a
 * register; the work is in gcm_lanes.h. */
#include "gcm_backend.h"

#if defined(__x86_64__)
#include "aes_x86.h"
#include "cpu.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("aes,pclmul,avx2,vaes,vpclmulqdq"))),           \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("aes,pclmul,avx2,vaes,vpclmulqdq")
#endif
#include <immintrin.h>

#define LANES            2
#define V                __m256i
#define V_ZERO           _mm256_setzero_si256()
#define V_XOR            _mm256_xor_si256
#define V_AESENC         _mm256_aesenc_epi128
#define V_AESENCLAST     _mm256_aesenclast_epi128
#define V_CLMUL          _mm256_clmulepi64_epi128
#define V_SWAP_HALVES(x) _mm256_shuffle_epi32(x, 0x4e)

static inline __m256i v_load(const void *at)
{
    return _mm256_loadu_si256(at);
}

static inline void v_store(void *at, __m256i x)
{
    _mm256_storeu_si256(at, x);
}

static inline __m256i v_broadcast(__m128i x)
{
    return _mm256_broadcastsi128_si256(x);
}

/* x in the first lane, zero in the others */
static inline __m256i v_first(__m128i x)
{
    return _mm256_inserti128_si256(_mm256_setzero_si256(), x, 0);
}

static inline __m128i v_add_lanes(__m256i x)
{
    return _mm_xor_si128(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
}

static inline __m256i v_byte_swap(__m256i x)
{
    return _mm256_shuffle_epi8(x, _mm256_broadcastsi128_si256(_mm_set_epi8(
                                      0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)));
}

/* iv with the counters n, n+1, .. xored into the last words */
static inline __m256i v_counters(__m128i iv, uint32_t n)
{
    return _mm256_xor_si256(v_broadcast(iv),
                            _mm256_set_epi32((int)__builtin_bswap32(n + 1), 0, 0, 0,
                                             (int)__builtin_bswap32(n), 0, 0, 0));
}

#include "gcm_lanes.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

static int vaes256_usable(void)
{
    return (cpu_features() & CPU_VAES256) != 0;
}

const struct gcm_backend gcm_vaes256 = {
    .name = "vaes256",
    .usable = vaes256_usable,
    .key_init = lanes_key_init,
    .key_wipe = NULL,
    .seal = lanes_seal,
    .open = lanes_open,
};
#else
typedef int gcm_vaes256_is_empty; /* ISO C wants a declaration in every file */
#endif
