// The kernels for x86-64 processors with AVX2 and FMA (Haswell, Zen and later).
#if defined(__x86_64__)

#include <cstddef>
#include <cstdint>
#include <cstring>

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
#include "kernels_impl.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif

namespace vconv {
const Kernels kernels_avx2 = avx2::kKernels;
}

#endif
