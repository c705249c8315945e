// The kernel layer: the few inner loops of the sampler, one implementation per instruction set.
//
// The loops are written once, in kernels_impl.h, and compiled once per instruction set by the small
// files kernels_<name>.cpp; wavenet.cpp sees this table only. Every kernel works on whole vectors:
// the widths given to it are multiples of `vector`, and buffers are padded to that.
//
// Every output of `accumulate` is one chain of multiply-adds over the inputs in their order (for
// int8 an integer, which no order changes), whatever the number of columns. That is what makes
// lanes, blocks of time and chunks agree to the bit.
#pragma once

#include <cstddef>
#include <cstdint>

namespace vconv {

constexpr std::size_t kCacheLine = 16;  // floats

constexpr std::size_t round_up(std::size_t n, std::size_t step) {
    return (n + step - 1) / step * step;
}

// How weights are kept. Sums, states and everything between matrices are float.
enum class Precision {
    fp32,
    bf16,  // weights rounded to the upper half of a float
    int8,  // weights as bytes with a scale for each output, inputs as 7 bits with one for each
           // column; sampler.h has the definition
};

// A matrix packed for one code path and precision (see pack). Outputs lie in panels of `panel`, the
// last of which may be narrower; a product with one column reads memory from front to back once.
//   fp32   within a panel the weights of input 0 for all its outputs, then those of input 1 ..
//   bf16   the same, with each pair of vectors in one: the first's numbers in the lower halves
//   int8   within a panel groups of 4 inputs: for each output its 4 weights
struct Matrix {
    std::size_t inputs = 0;
    std::size_t outputs = 0;  // padded to whole vectors
    const void* weights = nullptr;
    const float* scales = nullptr;  // int8: [outputs], what a step of the output's weights is worth
    const float* sums = nullptr;    // int8: [outputs], the sum of the output's weights as bytes
};

struct Kernels {
    const char* name;
    std::size_t vector;  // floats in a vector
    std::size_t panel;   // outputs in a panel

    // out[c] += matrix @ in[c] for every column c; columns lie in_stride and out_stride floats
    // apart. One function for each precision; for int8 the columns of `in` are quantised.
    using Accumulate = void (*)(const Matrix& matrix, const float* in, std::size_t in_stride,
                                float* out, std::size_t out_stride, std::size_t columns);
    Accumulate accumulate[3];
    // A column of inputs as int8 multiplies it, in quantised_floats(inputs).
    void (*quantise)(std::size_t inputs, const float* in, float* column);
    // z[i] = tanh(h[i]) * sigmoid(h[width + i]), NaN where either h is not finite
    void (*gate)(std::size_t width, const float* h, float* z);
    // out[i] += x[i]
    void (*add)(std::size_t width, const float* x, float* out);
    // out[i] = base[i] + fraction * slope[i]
    void (*interpolate)(std::size_t width, const float* base, const float* slope, float fraction,
                        float* out);
    // x[i] = max(x[i], 0), NaN where x[i] is not finite
    void (*rectify)(std::size_t width, float* x);
    // The code drawn from softmax(logits / temperature), or -1 when a logit is not finite. Uses
    // logits (levels, padded to whole vectors) as scratch.
    int (*draw)(std::size_t levels, float* logits, float temperature, float uniform);
};

extern const Kernels kernels_generic;
#if defined(__x86_64__)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
extern const Kernels kernels_avx512vnni;
#endif

// The named kernels if this processor can run them, else nullptr; a null name asks for the best.
const Kernels* find_kernels(const char* name);

constexpr std::size_t kGroup = 4;  // inputs whose weights lie together as bytes

// A quantised column: what a step of its bytes is worth, the byte that stands for 0, the bytes in
// whole groups. All zeros stand for zeros.
constexpr std::size_t kQuantisedHead = 2;  // floats
constexpr std::size_t quantised_floats(std::size_t inputs) {
    return kQuantisedHead + round_up(inputs, kGroup) / sizeof(float);
}

// The floats that a packed matrix takes, and packing dense [outputs, inputs] (outputs a multiple of
// kernels.vector) into them, from a cache line's boundary.
std::size_t packed_floats(const Kernels& kernels, Precision precision, std::size_t outputs,
                          std::size_t inputs);
Matrix pack(const Kernels& kernels, Precision precision, std::size_t outputs, std::size_t inputs,
            const float* dense, float* packed);

}  // namespace vconv
