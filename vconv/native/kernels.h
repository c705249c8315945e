// The kernel layer: the few inner loops of the sampler, one implementation per instruction set.
//
// The loops are written once, in kernels_impl.h, and compiled once per instruction set by the small
// files kernels_<name>.cpp; wavenet.cpp sees this table only. Every kernel works on whole vectors:
// the widths given to it are multiples of `vector`, and buffers are padded to that.
//
// Every output of `accumulate` is one chain of multiply-adds over the inputs in their order,
// whatever the number of columns. That is what makes lanes, blocks of time and chunks agree to the
// bit.
#pragma once

#include <cstddef>

namespace vconv {

// A matrix packed for one code path (see pack): panels of `panel` outputs; within a panel the
// weights of input 0 for all its outputs, then those of input 1, and so on, so that a matrix-vector
// product reads memory from front to back once. The last panel may be narrower.
struct Matrix {
    std::size_t inputs = 0;
    std::size_t outputs = 0;  // padded to whole vectors
    const float* weights = nullptr;
};

struct Kernels {
    const char* name;
    std::size_t vector;  // floats in a vector
    std::size_t panel;   // outputs in a panel

    // out[c] += matrix @ in[c] for every column c; columns lie in_stride and out_stride floats
    // apart.
    void (*accumulate)(const Matrix& matrix, const float* in, std::size_t in_stride, float* out,
                       std::size_t out_stride, std::size_t columns);
    // z[i] = tanh(h[i]) * sigmoid(h[width + i])
    void (*gate)(std::size_t width, const float* h, float* z);
    // out[i] += x[i]
    void (*add)(std::size_t width, const float* x, float* out);
    // out[i] = base[i] + fraction * slope[i]
    void (*interpolate)(std::size_t width, const float* base, const float* slope, float fraction,
                        float* out);
    // x[i] = max(x[i], 0)
    void (*rectify)(std::size_t width, float* x);
    // The code drawn from softmax(logits / temperature), or -1 when a logit is not finite. Uses
    // logits (levels, padded to whole vectors) as scratch.
    int (*draw)(std::size_t levels, float* logits, float temperature, float uniform);
};

extern const Kernels kernels_generic;
#if defined(__x86_64__)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif

// The named kernels if this processor can run them, else nullptr; a null name asks for the best.
const Kernels* find_kernels(const char* name);

// Packs dense [outputs, inputs] (outputs a multiple of kernels.vector) into outputs * inputs
// floats.
void pack(const Kernels& kernels, std::size_t outputs, std::size_t inputs, const float* dense,
          float* packed);

}  // namespace vconv
