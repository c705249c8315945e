// Which kernels this processor can run, and the packing that all of them share.
#include "kernels.h"

#include <algorithm>
#include <cstring>

namespace vconv {

const Kernels* find_kernels(const char* name) {
    const auto wanted = [name](const Kernels& kernels) {
        return name == nullptr || std::strcmp(name, kernels.name) == 0;
    };
#if defined(__x86_64__)
    __builtin_cpu_init();  // not every run-time library does it by itself
    if (wanted(kernels_avx512) && __builtin_cpu_supports("avx512f") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
        return &kernels_avx512;
    }
    if (wanted(kernels_avx2) && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        return &kernels_avx2;
    }
#endif
    return wanted(kernels_generic) ? &kernels_generic : nullptr;
}

void pack(const Kernels& kernels, std::size_t outputs, std::size_t inputs, const float* dense,
          float* packed) {
    for (std::size_t first = 0; first < outputs; first += kernels.panel) {
        const std::size_t width = std::min(kernels.panel, outputs - first);
        for (std::size_t i = 0; i < inputs; ++i) {
            for (std::size_t o = 0; o < width; ++o) {
                *packed++ = dense[(first + o) * inputs + i];
            }
        }
    }
}

}  // namespace vconv
