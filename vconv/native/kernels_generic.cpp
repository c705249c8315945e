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
#define VCONV_BYTE_COLUMNS 2
// Byte by byte: shifted to the top and back it has its sign.
#define VCONV_DOT(sum, x, w)                                                                     \
    (sum) + ((x) & 127) * ((w) << 24 >> 24) + ((x) >> 8 & 127) * ((w) << 16 >> 24) +             \
        ((x) >> 16 & 127) * ((w) << 8 >> 24) + ((x) >> 24 & 127) * ((w) >> 24)
#define VCONV_NARROW(integers, bytes)                                                            \
    for (std::size_t each = 0; each < kVector; ++each) {                                         \
        (bytes)[each] = static_cast<std::uint8_t>((integers)[each]);                             \
    }
#include "kernels_impl.h"

namespace vconv {
const Kernels kernels_generic = generic::kKernels;
}
