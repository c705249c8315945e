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
#define VCONV_DOT(sum, x, w)                                                              \
    (sum) + (Integers)_mm512_madd_epi16(_mm512_maddubs_epi16((__m512i)(x), (__m512i)(w)), \
                                        _mm512_set1_epi16(1))
#include "kernels_avx512.h"
#include "kernels_impl.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif

namespace vconv {
const Kernels kernels_avx512 = avx512::kKernels;
}

#endif
