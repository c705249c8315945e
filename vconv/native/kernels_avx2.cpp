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
// The packs work in halves of a register; the last step brings the fours into order.
#define VCONV_NARROW(v, bytes)                                                                   \
    {                                                                                            \
        const __m256i low = _mm256_packs_epi32((__m256i)(v)[0], (__m256i)(v)[1]);                \
        const __m256i high = _mm256_packs_epi32((__m256i)(v)[2], (__m256i)(v)[3]);               \
        const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);                         \
        const __m256i fours = _mm256_packus_epi16(low, high);                                    \
        _mm256_storeu_si256((__m256i*)(void*)(bytes),                                            \
                            _mm256_permutevar8x32_epi32(fours, order));                          \
    }
#include "kernels_impl.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif

namespace vconv {
const Kernels kernels_avx2 = avx2::kKernels;
}

#endif
