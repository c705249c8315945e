// The kernels for x86-64 processors with AVX2 and FMA (Haswell, Zen and later).
#if defined(__x86_64__)

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <immintrin.h>

#include "kernels.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

#define VCONV_NAME avx2
#define VCONV_VECTOR 8
#define VCONV_COLUMNS 3  // 12 of 16 registers
#define VCONV_KEEP(vector) asm("" : "+x"(vector))
#define VCONV_REDUCED_COLUMNS 2
#define VCONV_DOT(sum, x, w)                                                              \
    (sum) + (Integers)_mm256_madd_epi16(_mm256_maddubs_epi16((__m256i)(x), (__m256i)(w)), \
                                        _mm256_set1_epi16(1))
#define VCONV_NARROW(integers, bytes)                                                       \
    {                                                                                       \
        const __m256i words = _mm256_packs_epi32((__m256i)(integers), (__m256i)(integers)); \
        const __m256i eight = _mm256_packus_epi16(words, words);                            \
        const int low = _mm256_extract_epi32(eight, 0), high = _mm256_extract_epi32(eight, 4); \
        std::memcpy(bytes, &low, 4);                                                        \
        std::memcpy((bytes) + 4, &high, 4);                                                 \
    }
#include "kernels_impl.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif

namespace vconv {
const Kernels kernels_avx2 = avx2::kKernels;
}

#endif
