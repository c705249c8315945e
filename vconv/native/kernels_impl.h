// The kernels, written once in the vector extensions of GCC and Clang. Included by one source file
// per instruction set, which first sets
//   VCONV_NAME      the code path's name, also the namespace that keeps the copies apart
//   VCONV_VECTOR    floats in a vector
//   VCONV_COLUMNS   columns that share a weight load; 4 vectors of sums for each must fit the
//                   registers
//   VCONV_KEEP(v)   keeps the vector v in a register
//   VCONV_DOT(s, x, w)   s + the sums of 4 products: Integers s; x and w Integers made of bytes, of
//                   which x has none over 127
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
                     std::size_t out_stride, std::size_t columns, void*) {
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

// ---- products with weights of 16 bits -----------------------------------------------------------

VCONV_INLINE Integers load_integers(const void* p) {
    Integers v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

VCONV_INLINE Vector as_floats(Integers bits) {
    Vector v;
    std::memcpy(&v, &bits, sizeof v);
    return v;
}

// PAIRS pairs of vectors of outputs for COLUMNS columns. A number's upper half is a float: a pair
// comes apart by a shift and a mask.
template <std::size_t PAIRS, std::size_t COLUMNS>
VCONV_INLINE void accumulate_pairs(std::size_t inputs, const std::uint32_t* weights,
                                   std::size_t weight_stride, const float* in,
                                   std::size_t in_stride, float* out, std::size_t out_stride) {
    Sums<2 * PAIRS, COLUMNS> sum;
    for (std::size_t c = 0; c < COLUMNS; ++c) {
        for (std::size_t v = 0; v < 2 * PAIRS; ++v) {
            sum[c][v] = load(out + c * out_stride + v * kVector);
        }
    }
    for (std::size_t i = 0; i < inputs; ++i) {
        Vector x[COLUMNS];
        for (std::size_t c = 0; c < COLUMNS; ++c) {
            x[c] = splat(in[c * in_stride + i]);
        }
        for (std::size_t p = 0; p < PAIRS; ++p) {
            Integers pair = load_integers(weights + p * kVector);
            VCONV_KEEP(pair);  // or it is loaded for each half
            const Vector first = as_floats(pair << 16), second = as_floats(pair & ~0xffff);
            for (std::size_t c = 0; c < COLUMNS; ++c) {
                sum[c][2 * p] = multiply_add(first, x[c], sum[c][2 * p]);
                sum[c][2 * p + 1] = multiply_add(second, x[c], sum[c][2 * p + 1]);
            }
        }
        weights += weight_stride;
    }
    for (std::size_t c = 0; c < COLUMNS; ++c) {
        for (std::size_t v = 0; v < 2 * PAIRS; ++v) {
            store(out + c * out_stride + v * kVector, sum[c][v]);
        }
    }
}

template <std::size_t PAIRS, std::size_t COLUMNS>
VCONV_INLINE void accumulate_pair_columns(std::size_t inputs, const std::uint32_t* weights,
                                          std::size_t weight_stride, const float* in,
                                          std::size_t in_stride, float* out,
                                          std::size_t out_stride, std::size_t columns) {
    std::size_t c = 0;
    for (; c + COLUMNS <= columns; c += COLUMNS) {
        accumulate_pairs<PAIRS, COLUMNS>(inputs, weights, weight_stride, in + c * in_stride,
                                         in_stride, out + c * out_stride, out_stride);
    }
    for (; c < columns; ++c) {
        accumulate_pairs<PAIRS, 1>(inputs, weights, weight_stride, in + c * in_stride, in_stride,
                                   out + c * out_stride, out_stride);
    }
}

// A panel for one column, in a function of its own: among the other tiles GCC runs out of registers.
__attribute__((noinline)) void accumulate_pair_panel(std::size_t inputs,
                                                     const std::uint32_t* weights, const float* in,
                                                     float* out) {
    accumulate_pairs<kPanelVectors / 2, 1>(inputs, weights, kPanelVectors / 2 * kVector, in, 0, out,
                                           0);
}

void accumulate_bf16(const Matrix& matrix, const float* in, std::size_t in_stride, float* out,
                     std::size_t out_stride, std::size_t columns, void*) {
    constexpr std::size_t kPair = 2 * kVector, kPanelPairs = kPanelVectors / 2;
    constexpr std::size_t kTilePairs = kTileVectors / 2;
    const std::size_t inputs = matrix.inputs;
    const auto* weights = static_cast<const std::uint32_t*>(matrix.weights);
    for (std::size_t first = 0; first < matrix.outputs; first += kPanelVectors * kVector) {
        const std::size_t width = smaller(kPanelVectors * kVector, matrix.outputs - first);
        const std::size_t pairs = (width + kPair - 1) / kPair, whole = width / kPair;
        const std::size_t stride = pairs * kVector;
        std::size_t p = 0;
        if (columns == 1 && whole == kPanelPairs) {
            accumulate_pair_panel(inputs, weights, in, out + first);
            p = kPanelPairs;
        }
        for (; p + kTilePairs <= whole; p += kTilePairs) {
            accumulate_pair_columns<kTilePairs, VCONV_BYTE_COLUMNS>(inputs, weights + p * kVector, stride, in,
                                                          in_stride, out + first + p * kPair,
                                                          out_stride, columns);
        }
        for (; p < whole; ++p) {
            accumulate_pair_columns<1, VCONV_BYTE_COLUMNS>(inputs, weights + p * kVector, stride, in,
                                                 in_stride, out + first + p * kPair, out_stride,
                                                 columns);
        }
        for (std::size_t c = 0; p < pairs && c < columns; ++c) {  // half a pair: beside the outputs
            float* at = out + c * out_stride + first + p * kPair;
            float both[kPair] = {};
            store(both, load(at));
            accumulate_pairs<1, 1>(inputs, weights + p * kVector, stride, in + c * in_stride,
                                   in_stride, both, kPair);
            store(at, load(both));
        }
        weights += stride * inputs;
    }
}

// ---- products with weights of 8 bits ------------------------------------------------------------

template <std::size_t N>
struct Count {
    static constexpr std::size_t value = N;
};

// A comparison with NaN is false, so clamp leaves NaN as it is: it must reach the check in draw.
VCONV_INLINE Vector clamp(Vector x, float low, float high) {
    x = x < splat(low) ? splat(low) : x;
    return x > splat(high) ? splat(high) : x;
}

constexpr std::size_t kGroup = 4;  // inputs that a VCONV_DOT takes
constexpr float kMostByte = 127;   // two products of such with a weight stay below 2^15

// x = scale * (byte - zero) for a column's inputs, as near as 127 steps allow; 0 is exact.
struct Bytes {
    float scale;
    std::int32_t zero;
};

Bytes to_bytes(const float* in, std::size_t inputs, std::uint8_t* bytes) {
    Vector lowest = splat(0.0f), highest = splat(0.0f), check = splat(0.0f);
    std::size_t whole = inputs / kVector * kVector;
    for (std::size_t i = 0; i < whole; i += kVector) {
        const Vector v = load(in + i);
        lowest = v < lowest ? v : lowest;
        highest = v > highest ? v : highest;
        check += v - v;  // 0 for a finite number, else NaN, which no comparison above would show
    }
    float low = 0, high = 0, bad = 0;
    for (std::size_t i = 0; i < kVector; ++i) {
        low = lowest[i] < low ? lowest[i] : low;
        high = highest[i] > high ? highest[i] : high;
        bad += check[i];
    }
    for (std::size_t i = whole; i < inputs; ++i) {
        low = in[i] < low ? in[i] : low;
        high = in[i] > high ? in[i] : high;
        bad += in[i] - in[i];
    }
    const float range = high - low;
    const float scale = range / kMostByte;
    const bool usable = range > 1e-30f && range - range == 0.0f;
    const float inverse = usable ? kMostByte / range : 0.0f;
    const auto zero = usable ? static_cast<std::int32_t>(-low * inverse + 0.5f) : 0;
    const float shift = static_cast<float>(zero) + 0.5f;
    const Vector factor = splat(inverse), offset = splat(shift);
    for (std::size_t i = 0; i < whole; i += kVector) {
        const Vector place = multiply_add(load(in + i), factor, offset);
        const Integers byte = __builtin_convertvector(clamp(place, 0.0f, kMostByte), Integers);
        VCONV_NARROW(byte, bytes + i);
    }
    for (std::size_t i = whole; i < inputs; ++i) {
        const float place = in[i] * inverse + shift;
        const float most = place < kMostByte ? place : kMostByte;
        bytes[i] = place > 0.0f ? static_cast<std::uint8_t>(most) : std::uint8_t{0};
    }
    for (std::size_t i = inputs; i % kGroup != 0; ++i) {
        bytes[i] = 0;  // met by weights of 0
    }
    return {scale + bad, zero};
}

// VECTORS vectors of outputs for COLUMNS columns of bytes.
template <std::size_t VECTORS, std::size_t COLUMNS>
VCONV_INLINE void accumulate_bytes(std::size_t groups, const std::int8_t* weights,
                                   std::size_t weight_stride, const std::uint8_t* bytes,
                                   std::size_t byte_stride, const Bytes* columns,
                                   const float* scales, const std::int32_t* sums, float* out,
                                   std::size_t out_stride) {
    Integers sum[COLUMNS][VECTORS] = {};
    for (std::size_t g = 0; g < groups; ++g) {
        Integers x[COLUMNS];
        for (std::size_t c = 0; c < COLUMNS; ++c) {
            std::int32_t four;
            std::memcpy(&four, bytes + c * byte_stride + g * kGroup, sizeof four);
            x[c] = four - Integers{};
        }
        for (std::size_t v = 0; v < VECTORS; ++v) {
            const Integers weight = load_integers(weights + v * kVector * kGroup);
            for (std::size_t c = 0; c < COLUMNS; ++c) {
                sum[c][v] = VCONV_DOT(sum[c][v], x[c], weight);
            }
        }
        weights += weight_stride;
    }
    for (std::size_t c = 0; c < COLUMNS; ++c) {
        for (std::size_t v = 0; v < VECTORS; ++v) {
            float* at = out + c * out_stride + v * kVector;
            const Integers total =
                sum[c][v] - load_integers(sums + v * kVector) * columns[c].zero;
            const Vector scale = load(scales + v * kVector) * splat(columns[c].scale);
            store(at, multiply_add(__builtin_convertvector(total, Vector), scale, load(at)));
        }
    }
}

template <std::size_t VECTORS>
VCONV_INLINE void accumulate_byte_columns(std::size_t groups, const std::int8_t* weights,
                                          std::size_t weight_stride, const std::uint8_t* bytes,
                                          std::size_t byte_stride, const Bytes* quantised,
                                          const float* scales, const std::int32_t* sums, float* out,
                                          std::size_t out_stride, std::size_t columns) {
    constexpr std::size_t kTogether = VCONV_BYTE_COLUMNS;
    std::size_t c = 0;
    for (; c + kTogether <= columns; c += kTogether) {
        accumulate_bytes<VECTORS, kTogether>(groups, weights, weight_stride,
                                             bytes + c * byte_stride, byte_stride, quantised + c,
                                             scales, sums, out + c * out_stride, out_stride);
    }
    for (; c < columns; ++c) {
        accumulate_bytes<VECTORS, 1>(groups, weights, weight_stride, bytes + c * byte_stride,
                                     byte_stride, quantised + c, scales, sums,
                                     out + c * out_stride, out_stride);
    }
}

// A panel for one column, in a function of its own like accumulate_pair_panel.
__attribute__((noinline)) void accumulate_byte_panel(std::size_t groups,
                                                     const std::int8_t* weights,
                                                     const std::uint8_t* bytes, Bytes column,
                                                     const float* scales, const std::int32_t* sums,
                                                     float* out) {
    accumulate_bytes<kPanelVectors, 1>(groups, weights, kPanelVectors * kVector * kGroup, bytes, 0,
                                       &column, scales, sums, out, 0);
}

void accumulate_int8(const Matrix& matrix, const float* in, std::size_t in_stride, float* out,
                     std::size_t out_stride, std::size_t columns, void* scratch) {
    constexpr std::size_t kTile = kTileVectors * kVector;
    auto* bytes = static_cast<std::uint8_t*>(scratch);
    const std::size_t groups = (matrix.inputs + kGroup - 1) / kGroup, stride = groups * kGroup;
    for (std::size_t begin = 0; begin < columns; begin += kByteColumns) {
        const std::size_t count = smaller(kByteColumns, columns - begin);
        Bytes quantised[kByteColumns];
        for (std::size_t c = 0; c < count; ++c) {
            quantised[c] =
                to_bytes(in + (begin + c) * in_stride, matrix.inputs, bytes + c * stride);
        }
        const auto* weights = static_cast<const std::int8_t*>(matrix.weights);
        for (std::size_t first = 0; first < matrix.outputs; first += kPanelVectors * kVector) {
            const std::size_t width = smaller(kPanelVectors * kVector, matrix.outputs - first);
            const auto tile = [&](auto vectors, std::size_t o) __attribute__((always_inline)) {
                accumulate_byte_columns<vectors.value>(
                    groups, weights + o * kGroup, width * kGroup, bytes, stride, quantised,
                    matrix.scales + first + o, matrix.sums + first + o,
                    out + begin * out_stride + first + o, out_stride, count);
            };
            std::size_t o = 0;
            if (count == 1 && width == kPanelVectors * kVector) {
                accumulate_byte_panel(groups, weights, bytes, quantised[0], matrix.scales + first,
                                      matrix.sums + first, out + begin * out_stride + first);
                o = width;
            }
            for (; o + kTile <= width; o += kTile) {
                tile(Count<kTileVectors>{}, o);
            }
            for (; o < width; o += kVector) {
                tile(Count<1>{}, o);
            }
            weights += width * stride;
        }
    }
}

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
    Integers n, bits;  // multiplying by 2^n is adding n to the exponent
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
        const Vector a = exponential(clamp(load(h + i), -10.0f, 10.0f), 2.0f * kLog2E);
        const Vector b = exponential(clamp(load(h + width + i), -40.0f, 40.0f), -kLog2E);
        store(z + i, (a - one) / ((a + one) * (b + one)));
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
        store(x + i, v < zero ? zero : v);
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
    gate,
    add,
    interpolate,
    rectify,
    draw,
};

}  // namespace
}  // namespace VCONV_NAME

}  // namespace vconv
