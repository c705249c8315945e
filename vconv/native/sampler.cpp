// The C interface: checks what comes in, lays out the state, lets nothing throw out.
#include "sampler.h"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <new>
#include <string>

#include "wavenet.h"

struct vconv_sampler {
    vconv::WaveNet net;
};

namespace {

// Up to these no size overflows 64 bits, and a code fits int16.
constexpr std::uint32_t kMaxChannels = 1u << 13, kMaxLevels = 1u << 15, kMaxLayers = 20;
constexpr std::uint32_t kMaxBlocks = 64, kMaxKernel = 16;
constexpr std::size_t kMaxLanes = 1u << 10;
constexpr std::size_t kMaxSamples = std::size_t{1} << 32;  // of a call

// A state: this header, the previous codes [lanes], padded to 8 bytes, the contexts.
struct Header {
    std::uint64_t bytes;  // of the whole state: it is for these lanes, this shape, this padding
    std::uint64_t position;
};

std::size_t codes_bytes(std::size_t lanes) { return (lanes + 1) / 2 * 2 * sizeof(std::int32_t); }

struct State {
    Header* header;
    std::int32_t* previous;
    float* contexts;

    State(void* memory, std::size_t lanes) {
        auto* bytes = static_cast<unsigned char*>(memory);
        header = reinterpret_cast<Header*>(bytes);
        previous = reinterpret_cast<std::int32_t*>(bytes + sizeof(Header));
        contexts = reinterpret_cast<float*>(bytes + sizeof(Header) + codes_bytes(lanes));
    }
};

bool possible(const vconv_wavenet_shape& s) {
    const auto within = [](std::uint32_t n, std::uint32_t most) { return n >= 1 && n <= most; };
    return within(s.levels, kMaxLevels) && within(s.residual, kMaxChannels) &&
           within(s.gate, kMaxChannels) && within(s.skip, kMaxChannels) &&
           within(s.blocks, kMaxBlocks) && within(s.layers, kMaxLayers) && s.kernel_size >= 2 &&
           s.kernel_size <= kMaxKernel && s.hop >= 1 &&
           (s.hop > 1 || within(s.conditioning, kMaxChannels));
}

// The name of the first tensor that is missing (count 0) or not finite (how many numbers), or "".
struct Fault {
    std::string tensor;
    std::size_t count = 0;
};

Fault find_fault(const vconv_wavenet_shape& s, const vconv_wavenet_weights& w) {
    Fault fault;
    const auto bad = [&fault](const std::string& name, const float* tensor, std::size_t count) {
        std::size_t wrong = 0;
        for (std::size_t i = 0; tensor != nullptr && i < count; ++i) {
            wrong += std::isfinite(tensor[i]) ? 0 : 1;
        }
        if (tensor == nullptr || wrong != 0) {
            fault = {name, wrong};
            return true;
        }
        return false;
    };
    const std::size_t Q = s.levels, R = s.residual, G = s.gate, S = s.skip;
    const std::size_t L = std::size_t{s.blocks} * s.layers;
    if (bad("embedding.weight", w.embedding, Q * R)) {
        return fault;
    }
    for (std::size_t l = 0; l < L; ++l) {
        const std::string layer = "layers." + std::to_string(l);
        const float* dilated = w.dilated == nullptr ? nullptr : w.dilated[l];
        if (bad(layer + ".dilated.weight", dilated, 2 * G * s.kernel_size * R)) {
            return fault;
        }
        if (l + 1 < L) {
            const float* weight = w.residual_weight == nullptr ? nullptr : w.residual_weight[l];
            const float* bias = w.residual_bias == nullptr ? nullptr : w.residual_bias[l];
            if (bad(layer + ".residual.weight", weight, R * G) ||
                bad(layer + ".residual.bias", bias, R)) {
                return fault;
            }
        }
        if (s.hop == 1) {
            const float* weight = w.condition_weight == nullptr ? nullptr : w.condition_weight[l];
            const float* bias = w.condition_bias == nullptr ? nullptr : w.condition_bias[l];
            if (bad(layer + ".condition.weight", weight, 2 * G * s.conditioning) ||
                bad(layer + ".condition.bias", bias, 2 * G)) {
                return fault;
            }
        }
    }
    static_cast<void>(
        bad("skip.weight", w.skip_weight, S * L * G) || bad("skip.bias", w.skip_bias, S) ||
        bad("hidden.weight", w.hidden_weight, S * S) || bad("hidden.bias", w.hidden_bias, S) ||
        bad("logits.weight", w.logits_weight, Q * S) || bad("logits.bias", w.logits_bias, Q));
    return fault;
}

}  // namespace

extern "C" {

uint32_t vconv_sampler_version(void) { return VCONV_SAMPLER_VERSION; }

const char* vconv_sampler_best_cpu(void) { return vconv::find_kernels(nullptr)->name; }

vconv_status vconv_sampler_create(const vconv_wavenet_shape* shape,
                                  const vconv_wavenet_weights* weights, const char* cpu,
                                  int precision, vconv_sampler** sampler, char* message,
                                  size_t message_capacity) {
    const auto fail = [=](vconv_status status, const std::string& text) {
        if (message != nullptr && message_capacity > 0) {
            std::snprintf(message, message_capacity, "%s", text.c_str());
        }
        return status;
    };
    if (sampler == nullptr) {
        return VCONV_BAD_ARGUMENT;
    }
    *sampler = nullptr;
    try {
        if (precision < VCONV_FP32 || precision > VCONV_INT8) {
            return fail(VCONV_BAD_ARGUMENT, "the precision is not a known one");
        }
        if (shape == nullptr || weights == nullptr || !possible(*shape)) {
            return fail(VCONV_BAD_SHAPE, "the WaveNet's shape is not a possible one");
        }
        const vconv::Kernels* kernels = vconv::find_kernels(cpu);
        if (kernels == nullptr) {
            return fail(VCONV_BAD_CPU,
                        "this processor cannot run the code path \"" + std::string(cpu) + "\"");
        }
        const Fault fault = find_fault(*shape, *weights);
        if (!fault.tensor.empty() && fault.count == 0) {
            return fail(VCONV_BAD_SHAPE, "the tensor " + fault.tensor + " is missing");
        }
        if (!fault.tensor.empty()) {
            return fail(VCONV_BAD_WEIGHTS, "the tensor " + fault.tensor + " holds " +
                                               std::to_string(fault.count) +
                                               " NaN or infinite numbers");
        }
        *sampler = new vconv_sampler{
            vconv::WaveNet(*shape, *weights, *kernels, static_cast<vconv::Precision>(precision))};
        return VCONV_OK;
    } catch (...) {  // only allocation can fail
        return VCONV_OUT_OF_MEMORY;
    }
}

void vconv_sampler_destroy(vconv_sampler* sampler) { delete sampler; }

const char* vconv_sampler_cpu(const vconv_sampler* sampler) { return sampler->net.kernels().name; }

uint64_t vconv_sampler_multiply_adds(const vconv_sampler* sampler) {
    return sampler->net.multiply_adds();
}

size_t vconv_sampler_state_size(const vconv_sampler* sampler, size_t lanes) {
    if (sampler == nullptr || lanes == 0 || lanes > kMaxLanes) {
        return 0;
    }
    return sizeof(Header) + codes_bytes(lanes) + sampler->net.context_floats(lanes) * sizeof(float);
}

vconv_status vconv_sampler_state_init(const vconv_sampler* sampler, void* state, size_t lanes) {
    const std::size_t bytes = vconv_sampler_state_size(sampler, lanes);
    if (state == nullptr || bytes == 0) {
        return VCONV_BAD_ARGUMENT;
    }
    std::memset(state, 0, bytes);
    State view(state, lanes);
    view.header->bytes = bytes;
    for (std::size_t lane = 0; lane < lanes; ++lane) {
        view.previous[lane] = static_cast<std::int32_t>(sampler->net.shape().levels / 2);
    }
    return VCONV_OK;
}

vconv_status vconv_sampler_run(const vconv_sampler* sampler, void* state, size_t lanes,
                               size_t n_samples, const float* conditioning, const float* uniforms,
                               float temperature, const int16_t* forced_codes, int16_t* codes,
                               float* logits) {
    const std::size_t bytes = vconv_sampler_state_size(sampler, lanes);
    if (bytes == 0 || n_samples > kMaxSamples || conditioning == nullptr) {
        return VCONV_BAD_ARGUMENT;
    }
    const vconv_wavenet_shape& shape = sampler->net.shape();
    if (n_samples % shape.hop != 0) {
        return VCONV_BAD_ARGUMENT;
    }
    const bool usable = temperature >= 0.0f && std::isfinite(temperature);  // false for NaN
    const bool draws = forced_codes == nullptr && temperature != 0.0f;
    if (forced_codes == nullptr && (!usable || (draws && uniforms == nullptr))) {
        return VCONV_BAD_ARGUMENT;
    }
    if (state == nullptr || reinterpret_cast<std::uintptr_t>(state) % alignof(Header) != 0) {
        return VCONV_BAD_STATE;
    }
    State view(state, lanes);
    if (view.header->bytes != bytes) {
        return VCONV_BAD_STATE;
    }
    for (std::size_t lane = 0; lane < lanes; ++lane) {
        if (view.previous[lane] < 0 ||
            static_cast<std::uint32_t>(view.previous[lane]) >= shape.levels) {
            return VCONV_BAD_STATE;
        }
    }
    // Only now: the lanes are those of the state, as far as these arrays go.
    for (std::size_t i = 0; i < lanes * n_samples; ++i) {
        if (forced_codes != nullptr &&
            (forced_codes[i] < 0 ||
             static_cast<std::uint32_t>(forced_codes[i]) >= shape.levels)) {
            return VCONV_BAD_ARGUMENT;
        }
        if (draws && !(uniforms[i] >= 0.0f && uniforms[i] <= 1.0f)) {  // true for NaN
            return VCONV_BAD_ARGUMENT;
        }
    }
    try {
        const vconv::Job job{lanes,       n_samples,    conditioning, uniforms,
                             temperature, forced_codes, codes,        logits};
        return sampler->net.run(job, view.header->position, view.previous, view.contexts)
                   ? VCONV_OK
                   : VCONV_NOT_FINITE;
    } catch (...) {  // only allocation can fail, and it comes first
        return VCONV_OUT_OF_MEMORY;
    }
}

}  // extern "C"
