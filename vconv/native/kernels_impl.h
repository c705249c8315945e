// The kernels, written once in the vector extensions of GCC and Clang. Included by one source file
// per instruction set, which first sets
//   VCONV_NAME             the code path's name, also the namespace that keeps the copies apart
//   VCONV_VECTOR           floats in a vector
//   VCONV_COLUMNS          columns that share a weight load; 4 vectors of sums for each must fit
//                          the registers
//   VCONV_REDUCED_COLUMNS  the same for weights of 16 and 8 bits, which take registers to unpack
//   VCONV_KEEP(v)          keeps the vector v in a register
//   VCONV_DOT(s, x, w)     s + the sums of 4 products: Integers s; x and w are Integers made of
//                          bytes, x of 0 to 127 and w of -127 to 127
//   VCONV_NARROW(v, p)     writes the Integers v[0] .. v[kTileVectors - 1], of 0 to 127, to p as
//                          bytes
// Standard headers are included by that file before it selects the instruction set: an inline
// function of theirs compiled here could otherwise be the copy that a lesser processor is given.

namespace vconv {
namespace VCONV_NAME {
namespace {

constexpr std::size_t kVector = VCONV_VECTOR;
constexpr std::size_t kPanelVectors = 8;  // one column: 8 sums hide the latency of a multiply-add
constexpr std::size_t kTileVectors = 4;   // several columns: part of a panel, re-read from L1
constexpr std::size_t kColumns = VCONV_COLUMNS;

typedef float Vector __attribute__((vector_size(kVector * sizeof(float))));
typedef std::int32_t Integers __attribute__((vector_size(kVector * sizeof(float))));
typedef std::uint32_t Bits __attribute__((vector_size(kVector * sizeof(float))));

#define VCONV_INLINE static inline __attribute__((always_inline))

// Not std::min, whose copy compiled here could serve the whole program.
VCONV_INLINE std::size_t smaller(std::size_t a, std::size_t b) { return b < a ? b : a; }

VCONV_INLINE Vector load(const float* p) {
    Vector v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

VCONV_INLINE void store(float* p, Vector v) { std::memcpy(p, &v, sizeof v); }

VCONV_INLINE Vector splat(float x) { return x - Vector{}; }  // x - 0 is x, folded; x + 0 is not

// a * b + c, fused where the instruction set can. Written only here, so that no expression leaves
// the compiler a choice of which product to fuse.
VCONV_INLINE Vector multiply_add(Vector a, Vector b, Vector c) { return a * b + c; }

// A comparison with NaN is false, so clamp leaves NaN as it is: it must reach the check in draw.
VCONV_INLINE Vector clamp(Vector x, float low, float high) {
    x = x < splat(low) ? splat(low) : x;
    return x > splat(high) ? splat(high) : x;
}

// y where x is finite, else NaN. Where a function with a limit would hide an overflow before it,
// this hands it on to the check in draw.
VCONV_INLINE Vector unless_infinite(Vector x, Vector y) {
    return multiply_add(x, splat(0.0f), y);
}

// ---- matrix products ----------------------------------------------------------------------------

template <std::size_t VECTORS, std::size_t COLUMNS>
using Sums = Vector[COLUMNS][VECTORS];

// One input's share: every sum gains its weight times its column's x. The xs stay in registers
// while the weights pass by, since there are fewer of them.
template <std::size_t VECTORS, std::size_t COLUMNS>
VCONV_INLINE void accumulate_input(Sums<VECTORS, COLUMNS>& sum, const float* weights,
                                   const float* in, std::size_t in_stride) {
    Vector x[COLUMNS];
    for (std::size_t c = 0; c < COLUMNS; ++c) {
        x[c] = splat(in[c * in_stride]);
    }
    for (std::size_t v = 0; v < VECTORS; ++v) {
        Vector weight = load(weights + v * kVector);
        if constexpr (COLUMNS > 1) {
            VCONV_KEEP(weight);  // the compiler may otherwise load it again for every column
        }
        for (std::size_t c = 0; c < COLUMNS; ++c) {
            sum[c][v] = multiply_add(weight, x[c], sum[c][v]);
        }
    }
}

// VECTORS vectors of outputs for COLUMNS columns, summed in registers over all inputs.
template <std::size_t VECTORS, std::size_t COLUMNS>
VCONV_INLINE void accumulate_tile(std::size_t inputs, const float* weights,
                                  std::size_t weight_stride, const float* in, std::size_t in_stride,
                                  float* out, std::size_t out_stride) {
    Sums<VECTORS, COLUMNS> sum;
    for (std::size_t c = 0; c < COLUMNS; ++c) {
        for (std::size_t v = 0; v < VECTORS; ++v) {
            sum[c][v] = load(out + c * out_stride + v * kVector);
        }
    }
    for (std::size_t i = 0; i < inputs; ++i) {
        accumulate_input<VECTORS, COLUMNS>(sum, weights, in + i, in_stride);
        weights += weight_stride;
    }
    for (std::size_t c = 0; c < COLUMNS; ++c) {
        for (std::size_t v = 0; v < VECTORS; ++v) {
            store(out + c * out_stride + v * kVector, sum[c][v]);
        }
    }
}

// The tile of VECTORS vectors for `columns` columns, in groups of at most COLUMNS. A last group of
// one would leave the multiply-add units waiting for its few sums, so the group before gives it
// one.
template <std::size_t VECTORS, std::size_t COLUMNS>
VCONV_INLINE void accumulate_columns(std::size_t inputs, const float* weights,
                                     std::size_t weight_stride, const float* in,
                                     std::size_t in_stride, float* out, std::size_t out_stride,
                                     std::size_t columns) {
    if constexpr (COLUMNS == 1) {
        for (std::size_t c = 0; c < columns; ++c) {
            accumulate_tile<VECTORS, 1>(inputs, weights, weight_stride, in + c * in_stride,
                                        in_stride, out + c * out_stride, out_stride);
        }
    } else {
        while (columns >= COLUMNS && (columns != COLUMNS + 1 || COLUMNS == 2)) {
            accumulate_tile<VECTORS, COLUMNS>(inputs, weights, weight_stride, in, in_stride, out,
                                              out_stride);
            in += COLUMNS * in_stride;
            out += COLUMNS * out_stride;
            columns -= COLUMNS;
        }
        if (columns > 0) {
            accumulate_columns<VECTORS, COLUMNS - 1>(inputs, weights, weight_stride, in, in_stride,
                                                     out, out_stride, columns);
        }
    }
}

void accumulate_fp32(const Matrix& matrix, const float* in, std::size_t in_stride, float* out,
                     std::size_t out_stride, std::size_t columns) {
    constexpr std::size_t kTile = kTileVectors * kVector;
    const std::size_t inputs = matrix.inputs;
    const float* weights = static_cast<const float*>(matrix.weights);
    for (std::size_t first = 0; first < matrix.outputs; first += kPanelVectors * kVector) {
        const std::size_t width = smaller(kPanelVectors * kVector, matrix.outputs - first);
        if (columns == 1 && width == kPanelVectors * kVector) {
            accumulate_tile<kPanelVectors, 1>(inputs, weights, width, in, in_stride, out + first,
                                              out_stride);
        } else {
            std::size_t o = 0;
            for (; o + kTile <= width; o += kTile) {
                accumulate_columns<kTileVectors, kColumns>(inputs, weights + o, width, in,
                                                           in_stride, out + first + o, out_stride,
                                                           columns);
            }
            for (; o + 2 * kVector <= width; o += 2 * kVector) {
                accumulate_columns<2, kColumns>(inputs, weights + o, width, in, in_stride,
                                                out + first + o, out_stride, columns);
            }
            if (o < width) {
                accumulate_columns<1, kColumns>(inputs, weights + o, width, in, in_stride,
                                                out + first + o, out_stride, columns);
            }
        }
        weights += width * inputs;
    }
}

#include "kernels_reduced.h"

// ---- elementwise --------------------------------------------------------------------------------

// e^(factor x) for |factor x| <= 87, with log2e_factor = factor / ln 2: with t = log2e_factor x,
// n the integer nearest to t and f = t - n, it is 2^n 2^f. The polynomial is the minimax one of
// degree 5 for 2^f on |f| <= 1/2 with p(0) = 1: within 1.1e-7, relatively. Rounding log2e_factor
// adds 3e-8 |factor x|.
VCONV_INLINE Vector exponential(Vector x, float log2e_factor) {
    const Vector factor = splat(log2e_factor);
    const Vector shift = splat(12582912.0f);  // 1.5 * 2^23: adding it leaves n in the low bits
    const Vector shifted = multiply_add(x, factor, shift);
    const Vector f = multiply_add(x, factor, shift - shifted);
    Vector p = splat(1.3264727e-3f);
    p = multiply_add(p, f, splat(9.671513e-3f));
    p = multiply_add(p, f, splat(5.5507336e-2f));
    p = multiply_add(p, f, splat(2.4022242e-1f));
    p = multiply_add(p, f, splat(6.93147e-1f));
    p = multiply_add(p, f, splat(1.0f));
    Bits n, bits;  // multiplying by 2^n is adding n to the exponent
    std::memcpy(&n, &shifted, sizeof n);
    std::memcpy(&bits, &p, sizeof bits);
    bits += n << 23;
    std::memcpy(&p, &bits, sizeof p);
    return p;
}

constexpr float kLog2E = 1.44269504f;

// tanh(a) sigmoid(b) = (A - 1) / ((A + 1) (B + 1)) with A = e^2a, B = e^-b: one division. Beyond
// the bounds both functions equal their limits to float, and the products stay far from overflow.
void gate(std::size_t width, const float* h, float* z) {
    const Vector one = splat(1.0f);
    for (std::size_t i = 0; i < width; i += kVector) {
        const Vector filter = load(h + i), opening = load(h + width + i);
        const Vector a = exponential(clamp(filter, -10.0f, 10.0f), 2.0f * kLog2E);
        const Vector b = exponential(clamp(opening, -40.0f, 40.0f), -kLog2E);
        const Vector gated = (a - one) / ((a + one) * (b + one));
        store(z + i, unless_infinite(filter, unless_infinite(opening, gated)));
    }
}

void add(std::size_t width, const float* x, float* out) {
    for (std::size_t i = 0; i < width; i += kVector) {
        store(out + i, load(out + i) + load(x + i));
    }
}

void interpolate(std::size_t width, const float* base, const float* slope, float fraction,
                 float* out) {
    const Vector f = splat(fraction);
    for (std::size_t i = 0; i < width; i += kVector) {
        store(out + i, multiply_add(f, load(slope + i), load(base + i)));
    }
}

void rectify(std::size_t width, float* x) {
    const Vector zero = splat(0.0f);
    for (std::size_t i = 0; i < width; i += kVector) {
        const Vector v = load(x + i);
        store(x + i, unless_infinite(v, v < zero ? zero : v));
    }
}

// ---- the draw -----------------------------------------------------------------------------------

// Weights are summed in runs of 16, each in order, and the runs in order: short chains that
// overlap. The search below repeats the same additions, so it cannot step past a run that holds the
// answer.
constexpr std::size_t kRun = 16;

VCONV_INLINE double sum_run(const float* weights, std::size_t count) {
    double sum = 0.0;
    for (std::size_t i = 0; i < count; ++i) {
        sum += weights[i];
    }
    return sum;
}

int draw(std::size_t levels, float* logits, float temperature, float uniform) {
    for (std::size_t i = levels; i % kVector != 0; ++i) {
        logits[i] = logits[0];  // padding that changes neither the maximum nor the check
    }
    Vector highest = load(logits);
    Vector check = splat(0.0f);  // x - x is 0 for a finite x, else NaN
    for (std::size_t i = 0; i < levels; i += kVector) {
        const Vector v = load(logits + i);
        highest = v > highest ? v : highest;
        check += v - v;
    }
    float top = highest[0];
    float bad = check[0];
    for (std::size_t i = 1; i < kVector; ++i) {
        top = highest[i] > top ? highest[i] : top;
        bad += check[i];
    }
    if (bad != 0.0f) {  // true for NaN
        return -1;
    }
    if (temperature == 0.0f) {
        std::size_t code = 0;
        while (logits[code] != top) {
            ++code;
        }
        return static_cast<int>(code);
    }
    for (std::size_t i = 0; i < levels; i += kVector) {
        const Vector scaled = (load(logits + i) - splat(top)) / splat(temperature);
        const Vector weight = exponential(clamp(scaled, -87.0f, 0.0f), kLog2E);
        store(logits + i, scaled < splat(-87.0f) ? splat(0.0f) : weight);  // as the true one would
    }
    double total = 0.0;
    for (std::size_t first = 0; first < levels; first += kRun) {
        total += sum_run(logits + first, smaller(kRun, levels - first));
    }
    const double target = static_cast<double>(uniform) * total;
    double before = 0.0;
    for (std::size_t first = 0; first < levels; first += kRun) {
        const std::size_t count = smaller(kRun, levels - first);
        const double after = before + sum_run(logits + first, count);
        if (after > target) {
            double within = 0.0;
            for (std::size_t i = 0; i < count; ++i) {
                within += logits[first + i];
                if (before + within > target) {
                    return static_cast<int>(first + i);
                }
            }
        }
        before = after;
    }
    return static_cast<int>(levels) - 1;  // a uniform of 1 or more
}

#undef VCONV_INLINE

#define VCONV_TEXT_OF(name) #name
#define VCONV_TEXT(name) VCONV_TEXT_OF(name)

constexpr Kernels kKernels = {
    VCONV_TEXT(VCONV_NAME),
    kVector,
    kPanelVectors * kVector,
    {accumulate_fp32, accumulate_bf16, accumulate_int8},
    quantise,
    gate,
    add,
    interpolate,
    rectify,
    draw,
};

}  // namespace
}  // namespace VCONV_NAME

}  // namespace vconv
