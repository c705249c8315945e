// Which kernels this processor can run, and the packing that all of them share.
#include "kernels.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

namespace vconv {

const Kernels* find_kernels(const char* name) {
    const auto wanted = [name](const Kernels& kernels) {
        return name == nullptr || std::strcmp(name, kernels.name) == 0;
    };
#if defined(__x86_64__)
    __builtin_cpu_init();  // not every run-time library does it by itself
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (wanted(kernels_avx512vnni) && avx512 && __builtin_cpu_supports("avx512vnni")) {
        return &kernels_avx512vnni;
    }
    if (wanted(kernels_avx512) && avx512) {
        return &kernels_avx512;
    }
    if (wanted(kernels_avx2) && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        return &kernels_avx2;
    }
#endif
    return wanted(kernels_generic) ? &kernels_generic : nullptr;
}

namespace {

constexpr float kMostWeight = 127;  // of a byte; -128 is left out

// Rounded to nearest, ties to even; what would become infinite stays the largest finite number.
std::uint16_t to_bf16(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const std::uint32_t rounded = bits + 0x7fff + (bits >> 16 & 1);
    const bool overflows = (rounded & 0x7f800000) == 0x7f800000;
    return static_cast<std::uint16_t>((overflows ? bits : rounded) >> 16);
}

void pack_fp32(std::size_t panel, std::size_t outputs, std::size_t inputs, const float* dense,
               float* packed) {
    for (std::size_t first = 0; first < outputs; first += panel) {
        const std::size_t width = std::min(panel, outputs - first);
        for (std::size_t i = 0; i < inputs; ++i) {
            for (std::size_t o = 0; o < width; ++o) {
                *packed++ = dense[(first + o) * inputs + i];
            }
        }
    }
}

void pack_bf16(std::size_t vector, std::size_t panel, std::size_t outputs, std::size_t inputs,
               const float* dense, std::uint32_t* packed) {
    const auto weight = [=](std::size_t o, std::size_t i) -> std::uint32_t {
        return o < outputs ? to_bf16(dense[o * inputs + i]) : 0;
    };
    for (std::size_t first = 0; first < outputs; first += panel) {
        const std::size_t width = std::min(panel, outputs - first);
        for (std::size_t i = 0; i < inputs; ++i) {
            for (std::size_t pair = first; pair < first + width; pair += 2 * vector) {
                for (std::size_t o = pair; o < pair + vector; ++o) {
                    *packed++ = weight(o, i) | weight(o + vector, i) << 16;
                }
            }
        }
    }
}

// The scale for each output makes its largest weight a 127. Weights so small that the scale is not
// a normal number (under 1.5e-36) count as zeros.
void pack_int8(std::size_t panel, std::size_t outputs, std::size_t inputs, const float* dense,
               std::int8_t* packed, float* scales, float* sums) {
    std::vector<std::int8_t> bytes(outputs * inputs);
    std::fill_n(scales, outputs, 0.0f);
    std::fill_n(sums, outputs, 0.0f);
    for (std::size_t o = 0; o < outputs; ++o) {
        float largest = 0;
        for (std::size_t i = 0; i < inputs; ++i) {
            largest = std::max(largest, std::fabs(dense[o * inputs + i]));
        }
        const float scale = largest / kMostWeight;
        if (scale < std::numeric_limits<float>::min()) {
            continue;
        }
        scales[o] = scale;
        for (std::size_t i = 0; i < inputs; ++i) {
            const float steps = std::nearbyint(dense[o * inputs + i] / scale);
            const float byte = std::min(std::max(steps, -kMostWeight), kMostWeight);
            bytes[o * inputs + i] = static_cast<std::int8_t>(byte);
            sums[o] += byte;  // exact: 2^13 inputs of 2^7
        }
    }
    for (std::size_t first = 0; first < outputs; first += panel) {
        const std::size_t width = std::min(panel, outputs - first);
        for (std::size_t group = 0; group < inputs; group += kGroup) {
            for (std::size_t o = first; o < first + width; ++o) {
                for (std::size_t i = group; i < group + kGroup; ++i) {
                    *packed++ = i < inputs ? bytes[o * inputs + i] : std::int8_t{0};
                }
            }
        }
    }
}

// Floats that hold the weights alone.
std::size_t weight_floats(const Kernels& kernels, Precision precision, std::size_t outputs,
                          std::size_t inputs) {
    switch (precision) {
        case Precision::bf16:
            return round_up(round_up(outputs, 2 * kernels.vector) * inputs / 2, kCacheLine);
        case Precision::int8:
            return round_up(outputs * round_up(inputs, kGroup) / sizeof(float), kCacheLine);
        default:
            return round_up(outputs * inputs, kCacheLine);
    }
}

}  // namespace

std::size_t packed_floats(const Kernels& kernels, Precision precision, std::size_t outputs,
                          std::size_t inputs) {
    const std::size_t of_outputs = precision == Precision::int8 ? 2 * round_up(outputs, kCacheLine) : 0;
    return weight_floats(kernels, precision, outputs, inputs) + of_outputs;
}

Matrix pack(const Kernels& kernels, Precision precision, std::size_t outputs, std::size_t inputs,
            const float* dense, float* packed) {
    Matrix matrix{inputs, outputs, packed, nullptr, nullptr};
    if (precision == Precision::fp32) {
        pack_fp32(kernels.panel, outputs, inputs, dense, packed);
    } else if (precision == Precision::bf16) {
        pack_bf16(kernels.vector, kernels.panel, outputs, inputs, dense,
                  reinterpret_cast<std::uint32_t*>(packed));
    } else {
        float* scales = packed + weight_floats(kernels, precision, outputs, inputs);
        float* sums = scales + round_up(outputs, kCacheLine);
        pack_int8(kernels.panel, outputs, inputs, dense, reinterpret_cast<std::int8_t*>(packed),
                  scales, sums);
        matrix.scales = scales;
        matrix.sums = sums;
    }
    return matrix;
}

}  // namespace vconv
