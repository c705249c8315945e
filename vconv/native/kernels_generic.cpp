// The kernels for any processor: vectors of four, which compile to SSE2 on x86-64 and NEON on
// AArch64. With VCONV_PORTABLE no code for either is used, as on all others.
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__aarch64__) && !defined(VCONV_PORTABLE)
#include <arm_neon.h>
#elif defined(__x86_64__) && !defined(VCONV_PORTABLE)
#include <emmintrin.h>
#endif

#include "kernels.h"

#define VCONV_NAME generic
#define VCONV_VECTOR 4
#define VCONV_REDUCED_COLUMNS 2

#if defined(__aarch64__) && !defined(VCONV_PORTABLE)

#define VCONV_COLUMNS 6  // 24 of 32 registers
#define VCONV_KEEP(vector) asm("" : "+w"(vector))
#if defined(__ARM_FEATURE_DOTPROD)
#define VCONV_DOT(sum, x, w) \
    (Integers)vdotq_s32((int32x4_t)(sum), (int8x16_t)(x), (int8x16_t)(w))
#else
// Two products of at most 127 * 127 stay below 2^15.
#define VCONV_DOT(sum, x, w)                                                            \
    (Integers)vpadalq_s16(                                                              \
        (int32x4_t)(sum),                                                               \
        vpaddq_s16(vmull_s8(vget_low_s8((int8x16_t)(x)), vget_low_s8((int8x16_t)(w))), \
                   vmull_high_s8((int8x16_t)(x), (int8x16_t)(w))))
#endif

#elif defined(__x86_64__) && !defined(VCONV_PORTABLE)

#define VCONV_COLUMNS 2  // 8 of 16 registers; a product needs one for itself
#define VCONV_KEEP(vector) asm("" : "+x"(vector))
// The bytes at even and at odd places as 16 bits each.
#define VCONV_DOT(sum, x, w)                                                           \
    (sum) +                                                                            \
        (Integers)_mm_madd_epi16(_mm_and_si128((__m128i)(x), _mm_set1_epi16(0xff)),    \
                                 _mm_srai_epi16(_mm_slli_epi16((__m128i)(w), 8), 8)) + \
        (Integers)_mm_madd_epi16(_mm_srli_epi16((__m128i)(x), 8), _mm_srai_epi16((__m128i)(w), 8))

#else

#define VCONV_COLUMNS 2
#define VCONV_KEEP(vector) static_cast<void>(vector)
// Byte by byte: shifted to the top, which Bits may lose, and back it has its sign.
#define VCONV_BYTE(w, up) ((Integers)((Bits)(w) << (up)) >> 24)
#define VCONV_DOT(sum, x, w)                                                             \
    (sum) + ((x) & 127) * VCONV_BYTE(w, 24) + ((x) >> 8 & 127) * VCONV_BYTE(w, 16) + \
        ((x) >> 16 & 127) * VCONV_BYTE(w, 8) + ((x) >> 24 & 127) * VCONV_BYTE(w, 0)

#endif

#define VCONV_NARROW(v, bytes)                                                          \
    for (std::size_t each = 0; each < kTileVectors * kVector; ++each) {                 \
        (bytes)[each] = static_cast<std::uint8_t>((v)[each / kVector][each % kVector]); \
    }
#include "kernels_impl.h"

namespace vconv {
const Kernels kernels_generic = generic::kKernels;
}
