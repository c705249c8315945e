// Runs the sampler through its C interface over awkward shapes, every code path of this processor,
// cut and whole, right and wrong calls; built with sanitizers by test_sanitizers.py. All buffers
// have their exact size, so that a read or write beside one is seen.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <vector>

#include "../../vconv/native/sampler.h"

namespace {

int failures = 0;

void check(bool holds, const char* what, const char* where) {
    if (!holds) {
        std::fprintf(stderr, "%s: %s\n", where, what);
        ++failures;
    }
}

#define CHECK(condition) check((condition), #condition, cpu)

struct Random {
    std::uint64_t state = 1;
    float uniform() {  // [0, 1)
        state = state * 6364136223846793005u + 1442695040888963407u;
        return static_cast<float>(state >> 40) / 16777216.0f;
    }
    std::vector<float> vector(std::size_t count, std::size_t fan_in) {
        std::vector<float> v(count);
        for (float& x : v) {
            x = (uniform() * 2 - 1) * 1.7f / std::sqrt(static_cast<float>(fan_in));
        }
        return v;
    }
};

struct Model {
    vconv_wavenet_shape shape;
    std::vector<std::vector<float>> tensors;
    std::vector<const float*> dilated, residual_weight, residual_bias;
    std::vector<const float*> condition_weight, condition_bias;  // with hop 1
    vconv_wavenet_weights weights{};

    explicit Model(const vconv_wavenet_shape& s) : shape(s) {
        Random random;
        const std::size_t L = s.blocks * s.layers, Q = s.levels, R = s.residual, G = s.gate;
        const std::size_t S = s.skip;
        tensors.reserve(5 * L + 7);
        const auto tensor = [&](std::size_t outputs, std::size_t inputs) {
            tensors.push_back(random.vector(outputs * inputs, inputs));
            return static_cast<const float*>(tensors.back().data());
        };
        for (std::size_t l = 0; l < L; ++l) {
            dilated.push_back(tensor(2 * G, s.kernel_size * R));
            residual_weight.push_back(l + 1 < L ? tensor(R, G) : nullptr);
            residual_bias.push_back(l + 1 < L ? tensor(R, 1) : nullptr);
            if (s.hop == 1) {
                condition_weight.push_back(tensor(2 * G, s.conditioning));
                condition_bias.push_back(tensor(2 * G, 1));
            }
        }
        weights.embedding = tensor(Q, R);
        weights.dilated = dilated.data();
        weights.residual_weight = residual_weight.data();
        weights.residual_bias = residual_bias.data();
        weights.skip_weight = tensor(S, L * G);
        weights.skip_bias = tensor(S, 1);
        weights.hidden_weight = tensor(S, S);
        weights.hidden_bias = tensor(S, 1);
        weights.logits_weight = tensor(Q, S);
        weights.logits_bias = tensor(Q, 1);
        weights.condition_weight = condition_weight.data();
        weights.condition_bias = condition_bias.data();
    }
};

// A state in memory of exactly its size.
struct State {
    std::vector<std::uint64_t> memory;
    State(const vconv_sampler* sampler, std::size_t lanes)
        : memory((vconv_sampler_state_size(sampler, lanes) + 7) / 8) {
        vconv_sampler_state_init(sampler, memory.data(), lanes);
    }
    void* data() { return memory.data(); }
};

void run_model(const Model& model, std::size_t lanes, const char* cpu) {
    const vconv_wavenet_shape& s = model.shape;
    vconv_sampler* sampler = nullptr;
    char message[128] = "";
    if (vconv_sampler_create(&s, &model.weights, cpu, &sampler, message, sizeof message) ==
        VCONV_BAD_CPU) {
        return;
    }
    CHECK(sampler != nullptr);
    CHECK(std::strcmp(vconv_sampler_cpu(sampler), cpu) == 0);

    // With hop 1 a frame is a sample, there is no step at the end, and channels are projected here.
    const bool projects = s.hop == 1;
    const std::size_t frames = projects ? 45 : 5, cut = projects ? 21 : 2, end = projects ? 0 : 1;
    const std::size_t width = projects ? s.conditioning : s.blocks * s.layers * 2 * s.gate;
    const std::size_t samples = frames * s.hop;
    Random random;
    const std::vector<float> conditioning = random.vector(lanes * (frames + end) * width, 1);
    std::vector<float> uniforms(lanes * samples);
    for (float& u : uniforms) {
        u = random.uniform();
    }
    std::vector<std::int16_t> codes(lanes * samples), again(lanes * samples);
    std::vector<float> logits(lanes * samples * s.levels), forced(lanes * samples * s.levels);
    State whole(sampler, lanes);
    CHECK(vconv_sampler_run(sampler, whole.data(), lanes, samples, conditioning.data(),
                            uniforms.data(), 1.0f, nullptr, codes.data(),
                            logits.data()) == VCONV_OK);
    State follower(sampler, lanes);
    CHECK(vconv_sampler_run(sampler, follower.data(), lanes, samples, conditioning.data(), nullptr,
                            0.0f, codes.data(), nullptr, forced.data()) == VCONV_OK);
    CHECK(logits == forced);
    CHECK(whole.memory == follower.memory);

    // The same in two calls, each with its own copy of its part.
    State parts(sampler, lanes);
    for (std::size_t first = 0, count = cut; first < frames; first += count, count = frames - cut) {
        std::vector<float> c, u;
        std::vector<std::int16_t> expected;
        for (std::size_t lane = 0; lane < lanes; ++lane) {
            const float* frame = conditioning.data() + (lane * (frames + end) + first) * width;
            c.insert(c.end(), frame, frame + (count + end) * width);
            const std::size_t at = lane * samples + first * s.hop;
            u.insert(u.end(), uniforms.begin() + at, uniforms.begin() + at + count * s.hop);
            expected.insert(expected.end(), codes.begin() + at, codes.begin() + at + count * s.hop);
        }
        std::vector<std::int16_t> part(expected.size());
        CHECK(vconv_sampler_run(sampler, parts.data(), lanes, count * s.hop, c.data(), u.data(),
                                1.0f, nullptr, part.data(), nullptr) == VCONV_OK);
        CHECK(part == expected);
    }
    CHECK(parts.memory == whole.memory);
    CHECK(vconv_sampler_run(sampler, parts.data(), lanes, 0, conditioning.data(), nullptr, 0.0f,
                            nullptr, nullptr, nullptr) == VCONV_OK);
    CHECK(vconv_sampler_run(sampler, parts.data(), lanes, samples, conditioning.data(), nullptr,
                            0.0f, nullptr, again.data(), nullptr) == VCONV_OK);

    // Wrong calls leave the state as it is.
    const auto refused = [&](vconv_status status, std::size_t for_lanes, std::size_t n,
                             const float* c, const float* u, float temperature,
                             const std::int16_t* forced_codes) {
        State state(sampler, lanes);
        const std::vector<std::uint64_t> before = state.memory;
        CHECK(vconv_sampler_run(sampler, state.data(), for_lanes, n, c, u, temperature,
                                forced_codes, nullptr, nullptr) == status);
        CHECK(state.memory == before);
    };
    const float nan = std::numeric_limits<float>::quiet_NaN();
    const float* c = conditioning.data();
    const float* u = uniforms.data();
    if (s.hop > 1) {
        refused(VCONV_BAD_ARGUMENT, lanes, samples - 1, c, u, 1.0f, nullptr);
    }
    refused(VCONV_BAD_ARGUMENT, 0, samples, c, u, 1.0f, nullptr);
    refused(VCONV_BAD_ARGUMENT, std::size_t{1} << 40, samples, c, u, 1.0f, nullptr);
    refused(VCONV_BAD_STATE, lanes + 1, samples, c, u, 1.0f, nullptr);
    refused(VCONV_BAD_ARGUMENT, lanes, samples, nullptr, u, 1.0f, nullptr);
    refused(VCONV_BAD_ARGUMENT, lanes, samples, c, nullptr, 1.0f, nullptr);
    refused(VCONV_BAD_ARGUMENT, lanes, samples, c, u, -1.0f, nullptr);
    refused(VCONV_BAD_ARGUMENT, lanes, samples, c, u, nan, nullptr);
    again.back() = static_cast<std::int16_t>(s.levels);
    refused(VCONV_BAD_ARGUMENT, lanes, samples, c, u, 1.0f, again.data());
    again.back() = -1;
    refused(VCONV_BAD_ARGUMENT, lanes, samples, c, u, 1.0f, again.data());

    State broken(sampler, lanes);
    std::memset(broken.data(), 0xff, broken.memory.size() * 8);
    CHECK(vconv_sampler_run(sampler, broken.data(), lanes, samples, c, u, 1.0f, nullptr, nullptr,
                            nullptr) == VCONV_BAD_STATE);
    for (float wrong : {nan, std::numeric_limits<float>::infinity()}) {
        std::vector<float> poisoned = conditioning;
        poisoned[width / 2] = wrong;
        State lost(sampler, lanes);
        CHECK(vconv_sampler_run(sampler, lost.data(), lanes, samples, poisoned.data(), u, 1.0f,
                                nullptr, nullptr, nullptr) == VCONV_NOT_FINITE);
    }
    vconv_sampler_destroy(sampler);
}

void refuse_models() {
    const char* cpu = "generic";
    const vconv_wavenet_shape good{16, 4, 4, 4, 1, 2, 2, 4, 0};
    const vconv_wavenet_shape projecting{16, 4, 4, 4, 1, 2, 2, 1, 3};
    char message[24];
    vconv_sampler* sampler = nullptr;
    const auto create = [&](const vconv_wavenet_shape& shape, const vconv_wavenet_weights& w) {
        return vconv_sampler_create(&shape, &w, cpu, &sampler, message, sizeof message);
    };
    for (const vconv_wavenet_shape& shape : {good, projecting}) {
        Model model(shape);
        for (float wrong : {std::numeric_limits<float>::infinity(), std::nanf("")}) {
            for (std::vector<float>& tensor : model.tensors) {
                const float kept = tensor.back();
                tensor.back() = wrong;
                CHECK(create(shape, model.weights) == VCONV_BAD_WEIGHTS && sampler == nullptr);
                tensor.back() = kept;
            }
        }
    }
    Model projector(projecting);
    projector.weights.condition_bias = nullptr;
    CHECK(create(projecting, projector.weights) == VCONV_BAD_SHAPE);
    vconv_wavenet_shape deaf = projecting;
    deaf.conditioning = 0;
    CHECK(create(deaf, Model(projecting).weights) == VCONV_BAD_SHAPE);
    Model model(good);
    vconv_wavenet_shape shape = good;
    for (std::uint32_t vconv_wavenet_shape::* size :
         {&vconv_wavenet_shape::levels, &vconv_wavenet_shape::residual, &vconv_wavenet_shape::gate,
          &vconv_wavenet_shape::skip, &vconv_wavenet_shape::blocks, &vconv_wavenet_shape::layers,
          &vconv_wavenet_shape::kernel_size, &vconv_wavenet_shape::hop}) {
        shape.*size = 0;
        CHECK(create(shape, model.weights) == VCONV_BAD_SHAPE);
        shape.*size = good.*size;
    }
    shape.layers = 40;
    CHECK(create(shape, model.weights) == VCONV_BAD_SHAPE);
    vconv_wavenet_weights missing = model.weights;
    missing.residual_bias = nullptr;
    CHECK(create(good, missing) == VCONV_BAD_SHAPE);
    CHECK(vconv_sampler_create(&good, &model.weights, "none", VCONV_FP32, &sampler, nullptr, 0) ==
          VCONV_BAD_CPU);
    CHECK(vconv_sampler_create(&good, &model.weights, nullptr, &sampler, nullptr, 0) == VCONV_OK);
    vconv_sampler_destroy(sampler);
    vconv_sampler_destroy(nullptr);
}

}  // namespace

int main() {
    const vconv_wavenet_shape shapes[] = {
        // levels, residual, gate, skip, blocks, layers, k, hop, conditioning
        {256, 32, 32, 96, 2, 4, 2, 20, 0},   //
        {17, 5, 7, 9, 2, 3, 3, 10, 0},       //
        {33, 21, 13, 70, 1, 5, 2, 7, 0},     //
        {300, 64, 46, 130, 1, 6, 2, 16, 0},  //
        {8, 3, 2, 4, 1, 1, 4, 5, 0},         //
        {2, 1, 1, 1, 3, 2, 2, 1, 1},         //
        {40, 21, 34, 24, 1, 6, 3, 1, 19},    //
    };
    for (const char* cpu : {"generic", "avx2", "avx512"}) {
        for (const vconv_wavenet_shape& shape : shapes) {
            const Model model(shape);
            for (std::size_t lanes : {1, 2, 3, 4, 8, 19}) {
                run_model(model, lanes, cpu);
            }
        }
    }
    refuse_models();
    std::printf("%d failures\n", failures);
    return failures == 0 ? 0 : 1;
}
