// The kernels for any processor: vectors of four, which compile to SSE2 on x86-64 and NEON on
// AArch64.
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels.h"

#define VCONV_NAME generic
#define VCONV_VECTOR 4
#if defined(__aarch64__)
#define VCONV_COLUMNS 6  // 32 registers
#else
#define VCONV_COLUMNS 2  // 16, and a product needs one for itself
#endif
#define VCONV_KEEP(vector) static_cast<void>(vector)
#include "kernels_impl.h"

namespace vconv {
const Kernels kernels_generic = generic::kKernels;
}
