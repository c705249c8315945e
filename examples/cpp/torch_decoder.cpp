// decoder.ts in a C++ program: follows the golden codes with explicit state and holds the logits
// against golden.npz, then draws codes from given uniforms and holds those against the logits.
//
//   torch_decoder BUNDLE
//
// decoder.ts is code, run while it is loaded: load it only from authors you trust.
// U units, D latent width, E speaker width, T samples, Q levels.
#include <ATen/Parallel.h>
#include <torch/script.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <tuple>
#include <vector>

#include "bundle.h"

namespace {

using torch::jit::IValue;

at::Tensor as_tensor(const array& numbers, at::ScalarType type) {
    auto rows = static_cast<int64_t>(numbers.rows), columns = static_cast<int64_t>(numbers.columns);
    return torch::from_blob(const_cast<void*>(numbers.data), {rows, columns}, type);
}

// What the decoder takes of golden's units [1, U, D]; with pitch [1, U, D + 2], in octaves above
// the mean of the model's own speakers.
at::Tensor golden_units(const bytes& golden, const bytes& weights, size_t speakers) {
    at::Tensor latents = as_tensor(npz_array(&golden, "latents", "<f4"), at::kFloat);
    // There is no such array in format 1, and an empty one of models without pitch.
    if (!npz_entry(&golden, "pitch")) return latents.unsqueeze(0);
    array numbers = npz_array(&golden, "pitch", "<f4");
    if (numbers.columns == 0) return latents.unsqueeze(0);
    const float* means = tensor(&weights, "pitch.speaker_means", speakers);
    double mean = 0;
    for (size_t i = 0; i < speakers; ++i) mean += means[i] / static_cast<double>(speakers);
    at::Tensor pitch = as_tensor(numbers, at::kFloat);
    at::Tensor voicing = pitch.slice(1, 1, 2);
    return torch::cat({latents, (pitch.slice(1, 0, 1) - mean) * voicing, voicing}, 1).unsqueeze(0);
}

// A method's two results: what was asked for, and the state after it.
std::tuple<at::Tensor, IValue> call(torch::jit::Module& decoder, const char* method,
                                    std::vector<IValue> inputs) {
    auto results = decoder.get_method(method)(std::move(inputs)).toTuple();
    return {results->elements()[0].toTensor(), results->elements()[1]};
}

// How many draws [T] are not the ones that their uniforms [T] ask for under logits [T, Q]. Where a
// uniform is within 1e-4 of a step of the distribution, either side of it is right.
int64_t wrong_draws(const at::Tensor& codes, const at::Tensor& uniforms,
                    const at::Tensor& logits) {
    at::Tensor shares = torch::softmax(logits.to(at::kDouble), -1);
    at::Tensor at_code = codes.to(at::kLong).unsqueeze(-1);
    at::Tensor upper = shares.cumsum(-1).gather(-1, at_code);
    at::Tensor lower = upper - shares.gather(-1, at_code);
    at::Tensor uniform = uniforms.to(at::kDouble).unsqueeze(-1);
    return ((uniform < lower - 1e-4) | (uniform > upper + 1e-4)).sum().item<int64_t>();
}

int run(const char* folder) {
    bytes manifest = read_manifest(folder);
    bytes golden = read_file(folder, "golden.npz");
    bytes weights = read_file(folder, "weights.safetensors");
    torch::jit::Module decoder = torch::jit::load(std::string(folder) + "/decoder.ts");

    const size_t speakers = json_items(json_member(manifest.data, "speakers"));
    at::Tensor units = golden_units(golden, weights, speakers);
    at::Tensor speaker =
        as_tensor(npz_array(&golden, "speaker", "<f4"), at::kFloat).reshape({1, -1});
    at::Tensor forced = as_tensor(npz_array(&golden, "forced", "|u1"), at::kByte).reshape({1, -1});
    at::Tensor logits = as_tensor(npz_array(&golden, "logits", "<f4"), at::kFloat);
    const int64_t unit = manifest_number(&manifest, "geometry.unit_hop");
    const int64_t extra = manifest_number(&manifest, "geometry.chunk.extra_units");
    const int64_t samples = forced.size(1);
    if (unit == 0 || samples % unit || units.size(1) < samples / unit + extra ||
        logits.size(0) > samples)
        stop("%s: its arrays do not have the shapes that the manifest asks for.", golden.name);

    // The units of n samples from t on; the last `extra` are sent again with the next chunk.
    auto units_of = [&](int64_t t, int64_t n) {
        return units.slice(1, t / unit, t / unit + n / unit + extra);
    };

    // The golden codes, a unit at a time; the state goes from one call to the next.
    IValue state = decoder.get_method("initial_state")({int64_t{1}});
    const IValue silence = state;
    std::vector<at::Tensor> pieces(static_cast<size_t>(samples / unit));
    for (int64_t t = 0; t < samples; t += unit)
        std::tie(pieces[t / unit], state) =
            call(decoder, "score",
                 {units_of(t, unit), speaker, forced.slice(1, t, t + unit), state});
    at::Tensor found = torch::cat(pieces, 1)[0].slice(0, 0, logits.size(0));
    double most = (found - logits).abs().max().item<double>();
    std::printf("logits of %ld samples: largest difference from golden %.2g (bound %.2g)\n",
                static_cast<long>(logits.size(0)), most, BOUND);
    if (!(most <= BOUND)) stop("%s: the logits are not the golden ones.", folder);

    // Draws from given uniforms, in chunks again. Scored afterwards, they must be what the logits
    // and the uniforms say. A state is never changed in place: silence still is silence.
    std::vector<float> random(static_cast<size_t>(samples));
    uint64_t seed = 1;
    std::generate(random.begin(), random.end(), [&] { return next_uniform(&seed); });
    at::Tensor uniforms = torch::from_blob(random.data(), {1, samples}, at::kFloat);
    state = silence;
    for (int64_t t = 0; t < samples; t += unit)
        std::tie(pieces[t / unit], state) =
            call(decoder, "forward",
                 {units_of(t, unit), speaker, uniforms.slice(1, t, t + unit), 1.0, state});
    at::Tensor codes = torch::cat(pieces, 1);
    auto [scored, _] = call(decoder, "score", {units_of(0, samples), speaker, codes, silence});
    const int64_t wrong = wrong_draws(codes, uniforms, scored);
    std::printf("drew %ld codes from given uniforms: %ld are not what the logits say\n",
                static_cast<long>(samples), static_cast<long>(wrong));
    if (wrong) stop("%s: decoder.ts does not draw what its logits say.", folder);
    return 0;
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 2) stop("Usage: torch_decoder BUNDLE");
    torch::InferenceMode guard;
    at::set_num_threads(1);
    try {
        return run(arguments[1]);
    } catch (const std::exception& error) {
        const std::string reason = error.what(); // of many lines
        stop("%s: LibTorch cannot run its decoder.ts (%s).", arguments[1],
             reason.substr(0, reason.find('\n')).c_str());
    }
}
