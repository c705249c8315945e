// The network's weights, packed once in the order in which a step reads them.
#include <algorithm>
#include <cstring>

#include "wavenet.h"

namespace vconv {

namespace {

// A dense matrix with padded rows, to be filled from tensors and then packed.
struct Dense {
    std::size_t outputs, inputs;
    std::vector<float> values;

    Dense(std::size_t outputs, std::size_t inputs)
        : outputs(outputs), inputs(inputs), values(outputs * inputs, 0.0f) {}

    // Rows of `inputs` floats that lie `stride` apart in a tensor.
    void place(std::size_t first_output, std::size_t count, const float* tensor,
               std::size_t stride) {
        for (std::size_t o = 0; o < count; ++o) {
            std::copy_n(tensor + o * stride, inputs, &values[(first_output + o) * inputs]);
        }
    }
};

}  // namespace

Floats::Floats(std::size_t count) : memory_(new float[count + kCacheLine]()), data_(memory_.get()) {
    const auto misplaced = reinterpret_cast<std::uintptr_t>(data_) % (kCacheLine * sizeof(float));
    if (misplaced != 0) {
        data_ += kCacheLine - misplaced / sizeof(float);
    }
}

WaveNet::WaveNet(const vconv_wavenet_shape& shape, const vconv_wavenet_weights& weights,
                 const Kernels& kernels, Precision precision)
    : shape_(shape),
      kernels_(kernels),
      precision_(precision),
      residual_(round_up(shape.residual, kernels.vector)),
      gate_(round_up(shape.gate, kernels.vector)),
      skip_(round_up(shape.skip, kernels.vector)),
      levels_(round_up(shape.levels, kernels.vector)),
      column_(precision == Precision::int8 ? quantised_floats(shape.residual) : residual_),
      weights_([&] {
          const auto packed = [&](std::size_t outputs, std::size_t inputs) {
              return packed_floats(kernels, precision, outputs, inputs);
          };
          const std::size_t layers = std::size_t{shape.blocks} * shape.layers;
          const std::size_t condition =
              projects() ? packed(2 * gate_, shape.conditioning) + 2 * gate_ : 0;
          const std::size_t layer = condition +
                                    shape.kernel_size * packed(2 * gate_, shape.residual) +
                                    packed(residual_ + skip_, shape.gate) + residual_;
          return shape.levels * residual_ + layers * layer + packed(skip_, shape.skip) +
                 packed(levels_, shape.skip) + 2 * skip_ + levels_ +
                 kCacheLine * ((shape.kernel_size + 4) * layers + 8);
      }()) {
    float* next = weights_.data();
    const auto take = [&next](std::size_t count) {
        float* taken = next;
        next += round_up(count, kCacheLine);
        return taken;
    };
    const auto vector = [&take](std::size_t padded, const float* tensor, std::size_t count) {
        return static_cast<float*>(std::memcpy(take(padded), tensor, count * sizeof(float)));
    };
    const auto matrix = [&](const Dense& dense) {
        float* packed = take(packed_floats(kernels, precision, dense.outputs, dense.inputs));
        return pack(kernels, precision, dense.outputs, dense.inputs, dense.values.data(), packed);
    };
    const std::size_t residual = shape.residual, gate = shape.gate, skip = shape.skip;
    const std::size_t taps = shape.kernel_size;

    embedding_ = take(shape.levels * residual_);
    for (std::size_t code = 0; code < shape.levels; ++code) {
        std::copy_n(weights.embedding + code * residual, residual, embedding_ + code * residual_);
    }
    layers_.resize(std::size_t{shape.blocks} * shape.layers);
    for (std::size_t l = 0; l < layers_.size(); ++l) {
        Layer& layer = layers_[l];
        layer.dilation = std::size_t{1} << (l % shape.layers);
        if (projects()) {
            const std::size_t channels = shape.conditioning;
            Dense dense(2 * gate_, channels);
            dense.place(0, gate, weights.condition_weight[l], channels);
            dense.place(gate_, gate, weights.condition_weight[l] + gate * channels, channels);
            layer.condition = matrix(dense);
            float* bias = take(2 * gate_);
            std::copy_n(weights.condition_bias[l], gate, bias);
            std::copy_n(weights.condition_bias[l] + gate, gate, bias + gate_);
            layer.condition_bias = bias;
        }
        for (std::size_t j = 0; j < taps; ++j) {
            const float* tap = weights.dilated[l] + j * residual;
            Dense dense(2 * gate_, residual);
            dense.place(0, gate, tap, taps * residual);
            dense.place(gate_, gate, tap + gate * taps * residual, taps * residual);
            layer.taps.push_back(matrix(dense));
        }
        const float* skip_weight = weights.skip_weight + l * gate;
        if (l + 1 < layers_.size()) {
            Dense dense(residual_ + skip_, gate);
            dense.place(0, residual, weights.residual_weight[l], gate);
            dense.place(residual_, skip, skip_weight, layers_.size() * gate);
            layer.output = matrix(dense);
            layer.residual_bias = vector(residual_, weights.residual_bias[l], residual);
        } else {
            Dense dense(skip_, gate);
            dense.place(0, skip, skip_weight, layers_.size() * gate);
            layer.output = matrix(dense);
        }
    }
    skip_bias_ = vector(skip_, weights.skip_bias, skip);
    Dense hidden(skip_, skip);
    hidden.place(0, skip, weights.hidden_weight, skip);
    hidden_ = matrix(hidden);
    hidden_bias_ = vector(skip_, weights.hidden_bias, skip);
    Dense logits(levels_, skip);
    logits.place(0, shape.levels, weights.logits_weight, skip);
    logits_ = matrix(logits);
    logits_bias_ = vector(levels_, weights.logits_bias, shape.levels);
}

std::uint64_t WaveNet::multiply_adds() const {
    const std::uint64_t R = shape_.residual, G = shape_.gate, S = shape_.skip, L = layers_.size();
    const std::uint64_t C = projects() ? shape_.conditioning : 0;
    return L * 2 * G * (R * shape_.kernel_size + C) + (L - 1) * R * G + L * S * G + S * S +
           S * shape_.levels;
}

}  // namespace vconv
