// The kernels for x86-64 processors with AVX-512 (Skylake-X, Zen 4 and later).
#if defined(__x86_64__)

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <immintrin.h>

#include "kernels.h"

#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#endif

#define VCONV_NAME avx512
#define VCONV_VECTOR 16
#define VCONV_COLUMNS 6  // 24 of 32 registers
#define VCONV_KEEP(vector) asm("" : "+v"(vector))
#define VCONV_REDUCED_COLUMNS 4
#define VCONV_DOT(sum, x, w)                                                              \
    (sum) + (Integers)_mm512_madd_epi16(_mm512_maddubs_epi16((__m512i)(x), (__m512i)(w)), \
                                        _mm512_set1_epi16(1))
// Masked, because GCC 12 warns of the undefined operand inside the plain form.
#define VCONV_NARROW(v, bytes)                                                        \
    for (std::size_t each = 0; each < kTileVectors; ++each) {                         \
        _mm_storeu_si128((__m128i*)(void*)((bytes) + each * kVector),                 \
                         _mm512_maskz_cvtepi32_epi8(0xffff, (__m512i)(v)[each]));     \
    }
#include "kernels_impl.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif

namespace vconv {
const Kernels kernels_avx512 = avx512::kKernels;
}

#endif
