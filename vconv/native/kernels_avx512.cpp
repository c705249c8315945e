// The kernels for x86-64 processors with AVX-512 (Skylake-X, Zen 4 and later).
#if defined(__x86_64__)

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512vl,avx2,fma"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512dq,avx512vl,avx2,fma")
#endif

#define VCONV_NAME avx512
#define VCONV_VECTOR 16
#define VCONV_COLUMNS 6  // 24 of 32 registers
#define VCONV_KEEP(vector) asm("" : "+v"(vector))
#include "kernels_impl.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif

namespace vconv {
const Kernels kernels_avx512 = avx512::kKernels;
}

#endif
