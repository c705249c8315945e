// What the two code paths with AVX-512 share, included by each once it has selected its instruction
// set; kernels_impl.h says what these are.

#define VCONV_VECTOR 16
#define VCONV_COLUMNS 6  // 24 of 32 registers
#define VCONV_KEEP(vector) asm("" : "+v"(vector))
#define VCONV_REDUCED_COLUMNS 4
// Masked, because GCC 12 warns of the undefined operand inside the plain form.
#define VCONV_NARROW(v, bytes)                                                        \
    for (std::size_t each = 0; each < kTileVectors; ++each) {                         \
        _mm_storeu_si128((__m128i*)(void*)((bytes) + each * kVector),                 \
                         _mm512_maskz_cvtepi32_epi8(0xffff, (__m512i)(v)[each]));     \
    }
