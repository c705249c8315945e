// Products with weights of 16 and 8 bits: a part of kernels_impl.h, inside its namespaces.

VCONV_INLINE Integers load_integers(const void* p) {
    Integers v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

VCONV_INLINE Vector as_floats(Bits bits) {
    Vector v;
    std::memcpy(&v, &bits, sizeof v);
    return v;
}

// ---- weights of 16 bits -------------------------------------------------------------------------

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
            Bits pair;
            std::memcpy(&pair, weights + p * kVector, sizeof pair);
            VCONV_KEEP(pair);  // or it is loaded for each half
            const Vector first = as_floats(pair << 16), second = as_floats(pair & 0xffff0000u);
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

template <std::size_t PAIRS>
VCONV_INLINE void accumulate_pair_columns(std::size_t inputs, const std::uint32_t* weights,
                                          std::size_t weight_stride, const float* in,
                                          std::size_t in_stride, float* out,
                                          std::size_t out_stride, std::size_t columns) {
    constexpr std::size_t kTogether = VCONV_REDUCED_COLUMNS;
    std::size_t c = 0;
    for (; c + kTogether <= columns; c += kTogether) {
        accumulate_pairs<PAIRS, kTogether>(inputs, weights, weight_stride, in + c * in_stride,
                                           in_stride, out + c * out_stride, out_stride);
    }
    for (; c < columns; ++c) {
        accumulate_pairs<PAIRS, 1>(inputs, weights, weight_stride, in + c * in_stride, in_stride,
                                   out + c * out_stride, out_stride);
    }
}

// A panel for one column, in a function of its own: among the other tiles GCC runs out of
// registers.
__attribute__((noinline)) void accumulate_pair_panel(std::size_t inputs,
                                                     const std::uint32_t* weights, const float* in,
                                                     float* out) {
    accumulate_pairs<kPanelVectors / 2, 1>(inputs, weights, kPanelVectors / 2 * kVector, in, 0, out,
                                           0);
}

void accumulate_bf16(const Matrix& matrix, const float* in, std::size_t in_stride, float* out,
                     std::size_t out_stride, std::size_t columns) {
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
            accumulate_pair_columns<kTilePairs>(inputs, weights + p * kVector, stride, in,
                                                in_stride, out + first + p * kPair, out_stride,
                                                columns);
        }
        for (; p < whole; ++p) {
            accumulate_pair_columns<1>(inputs, weights + p * kVector, stride, in, in_stride,
                                       out + first + p * kPair, out_stride, columns);
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

// ---- weights of 8 bits --------------------------------------------------------------------------

constexpr float kMostByte = 127;    // two products of such with a weight stay below 2^15
constexpr float kLeastRange = 1e-36f;  // below it 127 / range is infinite: inputs count as zeros

// The four numbers left of a vector by combining its quarters, as far as it has more.
typedef float Quad __attribute__((vector_size(4 * sizeof(float))));

struct Range {
    float low, high, check;
};

VCONV_INLINE Range reduce(Vector lowest, Vector highest, Vector check) {
    Quad low[kVector / 4], high[kVector / 4], bad[kVector / 4];
    std::memcpy(low, &lowest, sizeof low);
    std::memcpy(high, &highest, sizeof high);
    std::memcpy(bad, &check, sizeof bad);
    for (std::size_t i = 1; i < kVector / 4; ++i) {
        low[0] = low[i] < low[0] ? low[i] : low[0];
        high[0] = high[i] > high[0] ? high[i] : high[0];
        bad[0] += bad[i];
    }
    Range range{low[0][0], high[0][0], bad[0][0]};
    for (std::size_t i = 1; i < 4; ++i) {
        range.low = low[0][i] < range.low ? low[0][i] : range.low;
        range.high = high[0][i] > range.high ? high[0][i] : range.high;
        range.check += bad[0][i];
    }
    return range;
}

// A tile of inputs as bytes: the integer part of x * factor + offset, within 0 .. 127.
VCONV_INLINE void narrow(const float* in, Vector factor, Vector offset, Vector none, Vector most,
                         std::uint8_t* bytes) {
    Integers places[kTileVectors];
    for (std::size_t v = 0; v < kTileVectors; ++v) {
        Vector place = multiply_add(load(in + v * kVector), factor, offset);
        place = place > none ? place : none;  // NaN, which has no integer part, becomes 0
        place = place < most ? place : most;
        places[v] = __builtin_convertvector(place, Integers);
    }
    VCONV_NARROW(places, bytes);
}

// x = scale * (byte - zero), as near as 127 steps allow; 0 is exact. Scale and zero are NaN where an
// input is not finite or the inputs' range is not. byte = the integer part of x / range * 127 +
// zero + 1/2, zero = that of -low / range * 127 + 1/2.
void quantise(std::size_t inputs, const float* in, float* column) {
    constexpr std::size_t kTile = kTileVectors * kVector;
    auto* bytes = reinterpret_cast<std::uint8_t*>(column + kQuantisedHead);
    Vector lowest = splat(0.0f), highest = lowest, check = lowest;
    const std::size_t whole = inputs / kVector * kVector;
    for (std::size_t i = 0; i < whole; i += kVector) {
        const Vector v = load(in + i);
        lowest = v < lowest ? v : lowest;
        highest = v > highest ? v : highest;
        check = unless_infinite(v, check);  // a comparison would not show NaN
    }
    Range found = reduce(lowest, highest, check);
    for (std::size_t i = whole; i < inputs; ++i) {
        found.low = in[i] < found.low ? in[i] : found.low;
        found.high = in[i] > found.high ? in[i] : found.high;
        found.check += in[i] - in[i];
    }
    const float range = found.high - found.low;
    const bool usable = range >= kLeastRange && range - range == 0.0f;
    const float inverse = usable ? kMostByte / range : 0.0f;
    const auto zero = static_cast<float>(
        usable ? static_cast<std::int32_t>(found.low * -inverse + 0.5f) : 0);
    const float spoiled = found.check + (range - range);  // 0, or NaN
    column[0] = range * (1.0f / kMostByte) + spoiled;
    column[1] = zero;

    const Vector factor = splat(inverse), offset = splat(zero + 0.5f);
    Vector none = splat(0.0f), most = splat(kMostByte);
    VCONV_KEEP(none);  // of known constants the compiler makes more than a minimum and a maximum
    VCONV_KEEP(most);
    std::size_t i = 0;
    for (; i + kTile <= inputs; i += kTile) {
        narrow(in + i, factor, offset, none, most, bytes + i);
    }
    if (i < inputs) {
        float rest[kTile] = {};
        std::uint8_t narrowed[kTile];
        std::memcpy(rest, in + i, (inputs - i) * sizeof(float));
        narrow(rest, factor, offset, none, most, narrowed);
        // Beyond the inputs are weights of 0.
        std::memcpy(bytes + i, narrowed, (inputs - i + kGroup - 1) / kGroup * kGroup);
    }
}

// VECTORS vectors of outputs for COLUMNS quantised columns.
template <std::size_t VECTORS, std::size_t COLUMNS>
VCONV_INLINE void accumulate_bytes(std::size_t groups, const std::int8_t* weights,
                                   std::size_t weight_stride, const float* in,
                                   std::size_t in_stride, const float* scales, const float* sums,
                                   float* out, std::size_t out_stride) {
    Integers sum[COLUMNS][VECTORS] = {};
    for (std::size_t g = 0; g < groups; ++g) {
        Integers x[COLUMNS];
        for (std::size_t c = 0; c < COLUMNS; ++c) {
            std::int32_t four;
            std::memcpy(&four, in + c * in_stride + kQuantisedHead + g, sizeof four);
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
        const Vector step = splat(in[c * in_stride]), zero = splat(-in[c * in_stride + 1]);
        for (std::size_t v = 0; v < VECTORS; ++v) {
            float* at = out + c * out_stride + v * kVector;
            // The bytes' products less the zero's: whole numbers, exact below 2^24, which 1040
            // inputs cannot reach.
            const Vector total = multiply_add(load(sums + v * kVector), zero,
                                              __builtin_convertvector(sum[c][v], Vector));
            store(at, multiply_add(total, load(scales + v * kVector) * step, load(at)));
        }
    }
}

template <std::size_t VECTORS>
VCONV_INLINE void accumulate_byte_columns(std::size_t groups, const std::int8_t* weights,
                                          std::size_t weight_stride, const float* in,
                                          std::size_t in_stride, const float* scales,
                                          const float* sums, float* out, std::size_t out_stride,
                                          std::size_t columns) {
    constexpr std::size_t kTogether = VCONV_REDUCED_COLUMNS;
    std::size_t c = 0;
    for (; c + kTogether <= columns; c += kTogether) {
        accumulate_bytes<VECTORS, kTogether>(groups, weights, weight_stride, in + c * in_stride,
                                             in_stride, scales, sums, out + c * out_stride,
                                             out_stride);
    }
    for (; c < columns; ++c) {
        accumulate_bytes<VECTORS, 1>(groups, weights, weight_stride, in + c * in_stride, in_stride,
                                     scales, sums, out + c * out_stride, out_stride);
    }
}

// A panel for one column, in a function of its own like accumulate_pair_panel.
__attribute__((noinline)) void accumulate_byte_panel(std::size_t groups,
                                                     const std::int8_t* weights, const float* in,
                                                     const float* scales, const float* sums,
                                                     float* out) {
    accumulate_bytes<kPanelVectors, 1>(groups, weights, kPanelVectors * kVector * kGroup, in, 0,
                                       scales, sums, out, 0);
}

void accumulate_int8(const Matrix& matrix, const float* in, std::size_t in_stride, float* out,
                     std::size_t out_stride, std::size_t columns) {
    constexpr std::size_t kTile = kTileVectors * kVector;
    const std::size_t groups = (matrix.inputs + kGroup - 1) / kGroup;
    const auto* weights = static_cast<const std::int8_t*>(matrix.weights);
    for (std::size_t first = 0; first < matrix.outputs; first += kPanelVectors * kVector) {
        const std::size_t width = smaller(kPanelVectors * kVector, matrix.outputs - first);
        const float *scales = matrix.scales + first, *sums = matrix.sums + first;
        std::size_t o = 0;
        if (columns == 1 && width == kPanelVectors * kVector) {
            accumulate_byte_panel(groups, weights, in, scales, sums, out + first);
            o = width;
        }
        for (; o + kTile <= width; o += kTile) {
            accumulate_byte_columns<kTileVectors>(groups, weights + o * kGroup, width * kGroup, in,
                                                  in_stride, scales + o, sums + o, out + first + o,
                                                  out_stride, columns);
        }
        for (; o < width; o += kVector) {
            accumulate_byte_columns<1>(groups, weights + o * kGroup, width * kGroup, in, in_stride,
                                       scales + o, sums + o, out + first + o, out_stride, columns);
        }
        weights += width * groups * kGroup;
    }
}
