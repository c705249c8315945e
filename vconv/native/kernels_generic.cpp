// The kernels for any processor: vectors of four, which compile to SSE2 on x86-64 and NEON on
// AArch64.
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels.h"

#define VCONV_NAME generic
#define VCONV_VECTOR 4
#if defined(__aarch64__)
#define VCONV_COLUMNS 6  // 24 of 32 registers
#define VCONV_KEEP(vector) asm("" : "+w"(vector))
#elif defined(__x86_64__)
#define VCONV_COLUMNS 2  // 8 of 16 registers; a product needs one for itself
#define VCONV_KEEP(vector) asm("" : "+x"(vector))
#else
#define VCONV_COLUMNS 2
#define VCONV_KEEP(vector) static_cast<void>(vector)
#endif
#include "kernels_impl.h"

namespace vconv {
const Kernels kernels_generic = generic::kKernels;
}
