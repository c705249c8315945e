// Runs the sampler through its C interface over awkward shapes, every code path of this processor,
// every precision, cut and whole, right and wrong calls, and the matrix products by themselves;
// built with sanitizers by test_sources.py. All buffers have their exact size, so that a read or
// write beside one is seen. `driver fuzz SEED COUNT` does the same with shapes and weights at
// random, `driver products` the products only.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <vector>

#include "../../vconv/native/kernels.h"
#include "../../vconv/native/sampler.h"

namespace {

int failures = 0;

const char* const kPaths[] = {"generic", "avx2", "avx512", "avx512vnni"};
const vconv_precision kPrecisions[] = {VCONV_FP32, VCONV_BF16, VCONV_INT8};

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
    std::size_t below(std::size_t n) {
        return std::min(static_cast<std::size_t>(uniform() * static_cast<float>(n)), n - 1);
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

    explicit Model(const vconv_wavenet_shape& s, Random random = {}) : shape(s) {
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

void run_model(const Model& model, std::size_t lanes, const char* cpu,
               vconv_precision precision) {
    const vconv_wavenet_shape& s = model.shape;
    vconv_sampler* sampler = nullptr;
    char message[128] = "";
    if (vconv_sampler_create(&s, &model.weights, cpu, precision, &sampler, message,
                             sizeof message) == VCONV_BAD_CPU) {
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
    refused(VCONV_BAD_ARGUMENT, lanes, SIZE_MAX / s.hop * s.hop, c, u, 1.0f, nullptr);
    for (float wrong : {nan, -0.1f, 1.1f, std::numeric_limits<float>::infinity()}) {
        std::vector<float> outside = uniforms;
        outside.back() = wrong;
        refused(VCONV_BAD_ARGUMENT, lanes, samples, c, outside.data(), 1.0f, nullptr);
    }
    CHECK(vconv_sampler_run(nullptr, whole.data(), lanes, samples, c, u, 1.0f, nullptr, nullptr,
                            nullptr) == VCONV_BAD_ARGUMENT);
    CHECK(vconv_sampler_run(sampler, nullptr, lanes, samples, c, u, 1.0f, nullptr, nullptr,
                            nullptr) == VCONV_BAD_STATE);
    CHECK(vconv_sampler_state_init(nullptr, whole.data(), lanes) == VCONV_BAD_ARGUMENT);
    CHECK(vconv_sampler_state_init(sampler, nullptr, lanes) == VCONV_BAD_ARGUMENT);

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
        return vconv_sampler_create(&shape, &w, cpu, VCONV_INT8, &sampler, message, sizeof message);
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
    for (int precision : {-1, 3, 1 << 20}) {
        CHECK(vconv_sampler_create(&good, &model.weights, cpu, precision, &sampler, message,
                                   sizeof message) == VCONV_BAD_ARGUMENT);
        CHECK(sampler == nullptr && message[0] != 0);
    }
    CHECK(vconv_sampler_create(&good, &model.weights, nullptr, VCONV_FP32, &sampler, nullptr, 0) ==
          VCONV_OK);
    vconv_sampler_destroy(sampler);
    vconv_sampler_destroy(nullptr);
}

// ---- products -----------------------------------------------------------------------------------

// Whole numbers that no precision rounds: weights of at most 127, one of which each output has, and
// inputs between -zero and 127 - zero, both of which each column has. So every product is the whole
// number that integers give; int8's scale of 1 is 127 * (1 / 127), off by an ulp at most.
void multiply(const vconv::Kernels& kernels, vconv::Precision precision, std::size_t outputs,
              std::size_t inputs, std::size_t columns, Random& random) {
    const char* cpu = kernels.name;
    std::vector<float> dense(outputs * inputs);
    for (std::size_t o = 0; o < outputs; ++o) {
        for (std::size_t i = 0; i < inputs; ++i) {
            dense[o * inputs + i] = static_cast<float>(random.below(255)) - 127;
        }
        dense[o * inputs + random.below(inputs)] = o % 2 == 0 ? 127.0f : -127.0f;
    }
    // 64 bytes on a boundary, as the sampler has them, and the end where it is needed.
    const std::size_t floats = vconv::packed_floats(kernels, precision, outputs, inputs);
    std::vector<float> memory(floats + 16);
    float* packed = memory.data();
    packed += (64 - reinterpret_cast<std::uintptr_t>(packed) % 64) % 64 / sizeof(float);
    const vconv::Matrix matrix =
        vconv::pack(kernels, precision, outputs, inputs, dense.data(), packed);
    std::vector<float> in(columns * inputs), out(columns * outputs);
    for (std::size_t c = 0; c < columns; ++c) {
        const float zero = inputs < 2 ? 0.0f : static_cast<float>(random.below(128));
        float* x = &in[c * inputs];
        for (std::size_t i = 0; i < inputs; ++i) {
            x[i] = static_cast<float>(random.below(128)) - zero;
        }
        x[0] = 127.0f - zero;
        if (inputs > 1) {
            x[1 + random.below(inputs - 1)] = -zero;
        }
    }
    for (float& y : out) {
        y = static_cast<float>(random.below(100));
    }
    const std::vector<float> before = out;
    std::vector<float> prepared = in;
    std::size_t stride = inputs;
    if (precision == vconv::Precision::int8) {
        stride = vconv::quantised_floats(inputs);
        prepared.resize(columns * stride);
        for (std::size_t c = 0; c < columns; ++c) {
            kernels.quantise(inputs, &in[c * inputs], &prepared[c * stride]);
        }
    }
    kernels.accumulate[static_cast<int>(precision)](matrix, prepared.data(), stride, out.data(),
                                                    outputs, columns);
    for (std::size_t c = 0; c < columns; ++c) {
        for (std::size_t o = 0; o < outputs; ++o) {
            double truth = before[c * outputs + o];
            for (std::size_t i = 0; i < inputs; ++i) {
                truth += static_cast<double>(dense[o * inputs + i]) * in[c * inputs + i];
            }
            const double error = std::fabs(out[c * outputs + o] - truth);
            CHECK(precision == vconv::Precision::int8 ? error < 0.45 : error == 0.0);
        }
    }
}

void multiply_all(Random random) {
    for (const char* cpu : kPaths) {
        const vconv::Kernels* kernels = vconv::find_kernels(cpu);
        if (kernels == nullptr) {
            continue;
        }
        for (vconv_precision precision : kPrecisions) {
            for (std::size_t vectors = 1; vectors <= 19; ++vectors) {
                for (std::size_t inputs : {1, 2, 3, 4, 5, 8, 15, 16, 17, 31, 64, 99}) {
                    for (std::size_t columns : {1, 2, 3, 5, 16, 19}) {
                        multiply(*kernels, static_cast<vconv::Precision>(precision),
                                 vectors * kernels->vector, inputs, columns, random);
                    }
                }
            }
        }
    }
}

// ---- at random ----------------------------------------------------------------------------------

// Numbers that a sane network does not have.
float hostile(Random& random, bool finite) {
    const float numbers[] = {0.0f,  -0.0f, 1e-45f,  -3e-39f,  1.2e-38f, 1e-30f, 1e-20f,   -1.0f,
                             1e19f, 1e30f, 3.4e38f, -3.4e38f, 127.0f,   0.5f,   INFINITY, NAN};
    return numbers[random.below(finite ? 14 : 16)];
}

bool all_finite(const std::vector<float>& values) {
    return std::all_of(values.begin(), values.end(), [](float x) { return std::isfinite(x); });
}

struct Outcome {
    vconv_status status;
    std::vector<std::int16_t> codes;
    std::vector<float> logits;
};

void fuzz_once(Random& random) {
    const auto between = [&](std::size_t low, std::size_t high) {
        return static_cast<std::uint32_t>(low + random.below(high - low + 1));
    };
    const char* cpu = kPaths[random.below(4)];
    const vconv_precision precision = kPrecisions[random.below(3)];
    const bool projects = random.below(3) == 0;
    const vconv_wavenet_shape s{
        between(1, 300), between(1, 70), between(1, 70), between(1, 140),
        between(1, 2),   between(1, 5),  between(2, 4),  projects ? 1 : between(2, 40),
        between(1, 40)};
    Random seed{random.state};
    random.uniform();
    Model model(s, seed);
    const std::size_t kind = random.below(5);  // 0, 1: sane
    if (kind == 2) {                           // all of a tensor beyond what is usual
        const float factor = random.below(2) == 0 ? 1e37f : 1e-37f;
        for (float& x : model.tensors[random.below(model.tensors.size())]) {
            x *= factor;
        }
    } else if (kind > 2) {  // some numbers, anywhere
        for (std::size_t n = between(1, 20); n > 0; --n) {
            std::vector<float>& tensor = model.tensors[random.below(model.tensors.size())];
            tensor[random.below(tensor.size())] = hostile(random, kind == 3);
        }
    }
    const bool sound = std::all_of(model.tensors.begin(), model.tensors.end(), all_finite);
    vconv_sampler* sampler = nullptr;
    char message[40];
    const vconv_status made = vconv_sampler_create(&s, &model.weights, cpu, precision, &sampler,
                                                   message, random.below(sizeof message + 1));
    if (made == VCONV_BAD_CPU) {
        return;
    }
    CHECK(made == (sound ? VCONV_OK : VCONV_BAD_WEIGHTS));
    CHECK((sampler != nullptr) == sound);
    if (sampler == nullptr) {
        return;
    }
    const std::size_t lanes = between(1, random.below(4) == 0 ? 40 : 5);
    const std::size_t frames = projects ? between(1, 60) : between(1, 3), end = projects ? 0 : 1;
    const std::size_t width = projects ? s.conditioning : s.blocks * s.layers * 2 * s.gate;
    const std::size_t samples = frames * s.hop;
    std::vector<float> conditioning = random.vector(lanes * (frames + end) * width, 1);
    const bool heard = random.below(8) != 0;
    if (!heard) {
        conditioning[random.below(conditioning.size())] = hostile(random, false);
    }
    std::vector<float> uniforms(lanes * samples);
    for (float& u : uniforms) {
        u = random.uniform();
    }
    const float temperatures[] = {0.0f, 1e-45f, 1e-3f, 1.0f, 1e30f};
    const float temperature = temperatures[random.below(5)];

    // Chunks of `most` frames of lanes `first` to `last`.
    const auto run = [&](std::size_t first, std::size_t last, std::size_t most) {
        const std::size_t count = last - first;
        Outcome all{VCONV_OK, std::vector<std::int16_t>(count * samples),
                    std::vector<float>(count * samples * s.levels)};
        State state(sampler, count);
        for (std::size_t done = 0; done < frames && all.status == VCONV_OK;) {
            const std::size_t now = std::min(most, frames - done), n = now * s.hop;
            std::vector<float> c, u, logits(count * n * s.levels);
            std::vector<std::int16_t> codes(count * n);
            for (std::size_t lane = first; lane < last; ++lane) {
                const float* frame = conditioning.data() + (lane * (frames + end) + done) * width;
                c.insert(c.end(), frame, frame + (now + end) * width);
                const float* draw = uniforms.data() + lane * samples + done * s.hop;
                u.insert(u.end(), draw, draw + n);
            }
            all.status = vconv_sampler_run(sampler, state.data(), count, n, c.data(), u.data(),
                                           temperature, nullptr, codes.data(), logits.data());
            for (std::size_t lane = 0; lane < count && all.status == VCONV_OK; ++lane) {
                const std::size_t at = lane * samples + done * s.hop;
                std::copy_n(&codes[lane * n], n, &all.codes[at]);
                std::copy_n(&logits[lane * n * s.levels], n * s.levels, &all.logits[at * s.levels]);
            }
            done += now;
        }
        return all;
    };
    const Outcome whole = run(0, lanes, frames), parts = run(0, lanes, between(1, frames));
    CHECK(whole.status == VCONV_OK || whole.status == VCONV_NOT_FINITE);
    CHECK(whole.status == VCONV_OK || !heard || kind > 1);
    CHECK(parts.status == whole.status);
    if (whole.status == VCONV_OK) {
        CHECK(all_finite(whole.logits));
        CHECK(parts.codes == whole.codes && parts.logits == whole.logits);
        for (std::int16_t code : whole.codes) {
            CHECK(code >= 0 && static_cast<std::uint32_t>(code) < s.levels);
        }
        const std::size_t lane = random.below(lanes);
        const Outcome alone = run(lane, lane + 1, frames);
        CHECK(alone.status == VCONV_OK);
        CHECK(std::equal(alone.codes.begin(), alone.codes.end(), &whole.codes[lane * samples]));
    }
    vconv_sampler_destroy(sampler);
}

}  // namespace

int main(int argc, char** argv) {
    if (argc == 2 && std::strcmp(argv[1], "products") == 0) {
        multiply_all(Random{});
        std::printf("%d failures\n", failures);
        return failures == 0 ? 0 : 1;
    }
    if (argc == 4 && std::strcmp(argv[1], "fuzz") == 0) {
        Random random{std::strtoull(argv[2], nullptr, 10) * 2 + 1};
        for (int left = std::atoi(argv[3]); left > 0; --left) {
            fuzz_once(random);
        }
        std::printf("%d failures\n", failures);
        return failures == 0 ? 0 : 1;
    }
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
    for (const vconv_wavenet_shape& shape : shapes) {
        const Model model(shape);
        for (const char* cpu : kPaths) {
            for (vconv_precision precision : kPrecisions) {
                for (std::size_t lanes : {1, 2, 3, 4, 8, 19}) {
                    run_model(model, lanes, cpu, precision);
                }
            }
        }
    }
    refuse_models();
    multiply_all(Random{});
    std::printf("%d failures\n", failures);
    return failures == 0 ? 0 : 1;
}
