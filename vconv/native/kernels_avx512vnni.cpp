// The kernels for x86-64 processors with AVX-512 and its products of bytes (Ice Lake, Zen 4 and
// later), which differ from those of kernels_avx512.cpp with int8 only.
#if defined(__x86_64__)

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <immintrin.h>

#include "kernels.h"

#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")
#endif

#define VCONV_NAME avx512vnni
#define VCONV_DOT(sum, x, w) \
    (Integers)_mm512_dpbusd_epi32((__m512i)(sum), (__m512i)(x), (__m512i)(w))
#include "kernels_avx512.h"
#include "kernels_impl.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif

namespace vconv {
const Kernels kernels_avx512vnni = avx512vnni::kKernels;
}

#endif
