// The network step by step. Vectors of one sample are kept per lane, padded to whole vectors with
// zeros: x [R'], skip [S'], h [tanh rows G' | sigmoid rows G'], z [G'].
#include "wavenet.h"

#include <algorithm>
#include <cstring>

namespace vconv {

namespace {

constexpr std::size_t kCacheLine = 16;  // floats

// Taps of the past are multiplied for this many columns (samples of all lanes) at once where the
// dilation allows, so that one pass over their weights serves them all.
constexpr std::size_t kPastColumns = 16;

std::size_t round_up(std::size_t n, std::size_t step) { return (n + step - 1) / step * step; }

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

Floats::Floats(std::size_t count)
    : memory_(new float[count + kCacheLine]()), data_(memory_.get()) {
    const auto misplaced = reinterpret_cast<std::uintptr_t>(data_) % (kCacheLine * sizeof(float));
    if (misplaced != 0) {
        data_ += kCacheLine - misplaced / sizeof(float);
    }
}

// ---- weights --------------------------------------------------------------------------------------

WaveNet::WaveNet(const vconv_wavenet_shape& shape, const vconv_wavenet_weights& weights,
                 const Kernels& kernels)
    : shape_(shape),
      kernels_(kernels),
      residual_(round_up(shape.residual, kernels.vector)),
      gate_(round_up(shape.gate, kernels.vector)),
      skip_(round_up(shape.skip, kernels.vector)),
      levels_(round_up(shape.levels, kernels.vector)),
      // In the order in which a step reads it, so that it streams.
      weights_([&] {
          const std::size_t layers = std::size_t{shape.blocks} * shape.layers;
          const std::size_t layer = 2 * gate_ * shape.kernel_size * shape.residual +
                                    (residual_ + skip_) * shape.gate + residual_;
          return shape.levels * residual_ + layers * layer + (skip_ + levels_) * shape.skip +
                 2 * skip_ + levels_ + kCacheLine * ((shape.kernel_size + 2) * layers + 8);
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
        float* packed = take(dense.outputs * dense.inputs);
        pack(kernels, dense.outputs, dense.inputs, dense.values.data(), packed);
        return Matrix{dense.inputs, dense.outputs, packed};
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
    return L * 2 * G * R * shape_.kernel_size + (L - 1) * R * G + L * S * G + S * S +
           S * shape_.levels;
}

// ---- state ----------------------------------------------------------------------------------------

// Each layer's context is a ring of the (k - 1) * dilation latest inputs, [slot, lane, R'].
std::size_t WaveNet::context_floats(std::size_t lanes) const {
    std::size_t slots = 0;
    for (const Layer& layer : layers_) {
        slots += (layer.taps.size() - 1) * layer.dilation;
    }
    return slots * lanes * residual_;
}

// Where a run keeps what it need not carry to the next.
struct WaveNet::Workspace {
    std::size_t block;               // samples whose past taps are multiplied at once, at most
    std::vector<std::size_t> slots;  // per layer the slot the present sample goes to: the oldest
    std::vector<std::size_t> past_offsets;
    std::size_t sample_in_frame = 0;
    Floats memory;
    float* stream;  // [lane, x | skip]
    float* z;       // [lane, G']
    float* hidden;  // [lane, S']
    float* logits;  // [lane, Q']
    float* base;    // [lane, layer, 2G'] conditioning at the start of the frame
    float* slope;   // and its change to the next
    float* past;    // per layer [sample of the block, lane, 2G']

    Workspace(const WaveNet& net, std::size_t lanes, std::uint64_t position)
        : block(std::max<std::size_t>(1, kPastColumns / lanes)), memory([&] {
              std::size_t past_floats = 0;
              for (const Layer& layer : net.layers_) {
                  slots.push_back(position % ((layer.taps.size() - 1) * layer.dilation));
                  past_offsets.push_back(past_floats);
                  past_floats += block_of(layer) * lanes * 2 * net.gate_;
              }
              return lanes * (net.residual_ + 2 * net.skip_ + net.gate_ + net.levels_ +
                              4 * net.layers_.size() * net.gate_) +
                     past_floats + 8 * kCacheLine;
          }()) {
        float* next = memory.data();
        const auto take = [&next](std::size_t count) {
            float* taken = next;
            next += round_up(count, kCacheLine);
            return taken;
        };
        stream = take(lanes * (net.residual_ + net.skip_));
        z = take(lanes * net.gate_);
        hidden = take(lanes * net.skip_);
        logits = take(lanes * net.levels_);
        base = take(lanes * net.layers_.size() * 2 * net.gate_);
        slope = take(lanes * net.layers_.size() * 2 * net.gate_);
        past = next;
    }

    // No longer than the dilation: everything that the past taps of a block see came before it.
    std::size_t block_of(const Layer& layer) const { return std::min(block, layer.dilation); }
};

// ---- a run ----------------------------------------------------------------------------------------

bool WaveNet::run(const Job& job, std::uint64_t& position, std::int32_t* previous,
                  float* contexts) const {
    Workspace work(*this, job.lanes, position);
    const std::size_t rows = layers_.size() * 2, frames = job.samples / shape_.hop;
    for (std::size_t sample = 0; sample < job.samples; ++sample) {
        work.sample_in_frame = sample % shape_.hop;
        if (work.sample_in_frame == 0) {
            for (std::size_t lane = 0; lane < job.lanes; ++lane) {
                const std::size_t frame = lane * (frames + 1) + sample / shape_.hop;
                const float* now = job.conditioning + frame * rows * shape_.gate;
                const float* then = now + rows * shape_.gate;
                for (std::size_t row = 0; row < rows; ++row) {
                    float* base = work.base + (lane * rows + row) * gate_;
                    float* slope = work.slope + (lane * rows + row) * gate_;
                    for (std::size_t g = 0; g < shape_.gate; ++g, ++now, ++then) {
                        base[g] = *now;
                        slope[g] = *then - *now;
                    }
                }
            }
        }
        const std::size_t stride = residual_ + skip_;
        for (std::size_t lane = 0; lane < job.lanes; ++lane) {
            float* x = work.stream + lane * stride;
            std::copy_n(embedding_ + previous[lane] * residual_, residual_, x);
            std::copy_n(skip_bias_, skip_, x + residual_);
        }
        float* context = contexts;
        for (std::size_t l = 0; l < layers_.size(); ++l) {
            layer_step(layers_[l], l, job, sample, context, work);
            context += (layers_[l].taps.size() - 1) * layers_[l].dilation * job.lanes * residual_;
        }
        if (!output_step(job, sample, previous, work)) {
            return false;
        }
    }
    position += job.samples;
    return true;
}

// h of the next `count` samples as far as the past decides it: conditioning and all taps but the last.
void WaveNet::prepare_past(const Layer& layer, std::size_t index, const Job& job,
                           std::size_t sample, std::size_t count, const float* context,
                           Workspace& work) const {
    const std::size_t lanes = job.lanes, width = 2 * gate_;
    float* past = work.past + work.past_offsets[index];
    for (std::size_t i = 0; i < count; ++i) {
        const float fraction =
            static_cast<float>(sample % shape_.hop + i) / static_cast<float>(shape_.hop);
        for (std::size_t lane = 0; lane < lanes; ++lane) {
            const std::size_t row = (lane * layers_.size() + index) * width;
            kernels_.interpolate(width, work.base + row, work.slope + row, fraction,
                                 past + (i * lanes + lane) * width);
        }
    }
    const std::size_t taps = layer.taps.size(), slots = (taps - 1) * layer.dilation;
    for (std::size_t j = 0; j + 1 < taps; ++j) {
        std::size_t slot = (work.slots[index] + j * layer.dilation) % slots;  // the oldest tap's first
        for (std::size_t done = 0; done < count;) {
            const std::size_t span = std::min(count - done, slots - slot);
            kernels_.accumulate(layer.taps[j], context + slot * lanes * residual_, residual_,
                                past + done * lanes * width, width, span * lanes);
            done += span;
            slot = 0;
        }
    }
}

void WaveNet::layer_step(const Layer& layer, std::size_t index, const Job& job,
                         std::size_t sample, float* context, Workspace& work) const {
    const std::size_t lanes = job.lanes, width = 2 * gate_, stride = residual_ + skip_;
    const std::size_t block = work.block_of(layer), in_block = work.sample_in_frame % block;
    if (in_block == 0) {
        const std::size_t left = shape_.hop - work.sample_in_frame;
        prepare_past(layer, index, job, sample, std::min(block, left), context, work);
    }
    float* h = work.past + work.past_offsets[index] + in_block * lanes * width;
    kernels_.accumulate(layer.taps.back(), work.stream, stride, h, width, lanes);

    std::size_t& slot = work.slots[index];
    for (std::size_t lane = 0; lane < lanes; ++lane) {
        const float* x = work.stream + lane * stride;
        std::copy_n(x, residual_, context + (slot * lanes + lane) * residual_);
    }
    slot = slot + 1 == (layer.taps.size() - 1) * layer.dilation ? 0 : slot + 1;

    for (std::size_t lane = 0; lane < lanes; ++lane) {
        kernels_.gate(gate_, h + lane * width, work.z + lane * gate_);
    }
    if (layer.residual_bias == nullptr) {  // the last layer: skip only
        kernels_.accumulate(layer.output, work.z, gate_, work.stream + residual_, stride, lanes);
        return;
    }
    for (std::size_t lane = 0; lane < lanes; ++lane) {
        kernels_.add(residual_, layer.residual_bias, work.stream + lane * stride);
    }
    kernels_.accumulate(layer.output, work.z, gate_, work.stream, stride, lanes);
}

bool WaveNet::output_step(const Job& job, std::size_t sample, std::int32_t* previous,
                          Workspace& work) const {
    const std::size_t lanes = job.lanes, stride = residual_ + skip_;
    if (job.forced == nullptr || job.logits != nullptr) {
        float* skip = work.stream + residual_;
        for (std::size_t lane = 0; lane < lanes; ++lane) {
            kernels_.rectify(skip_, skip + lane * stride);
            std::copy_n(hidden_bias_, skip_, work.hidden + lane * skip_);
            std::copy_n(logits_bias_, levels_, work.logits + lane * levels_);
        }
        kernels_.accumulate(hidden_, skip, stride, work.hidden, skip_, lanes);
        kernels_.rectify(lanes * skip_, work.hidden);
        kernels_.accumulate(logits_, work.hidden, skip_, work.logits, levels_, lanes);
    }
    for (std::size_t lane = 0; lane < lanes; ++lane) {
        const std::size_t at = lane * job.samples + sample;
        float* logits = work.logits + lane * levels_;
        if (job.logits != nullptr) {
            std::copy_n(logits, shape_.levels, job.logits + at * shape_.levels);
        }
        if (job.forced != nullptr) {
            previous[lane] = job.forced[at];
        } else {
            const float uniform = job.uniforms == nullptr ? 0.0f : job.uniforms[at];
            previous[lane] = kernels_.draw(shape_.levels, logits, job.temperature, uniform);
            if (previous[lane] < 0) {
                return false;
            }
        }
        if (job.codes != nullptr) {
            job.codes[at] = static_cast<std::int16_t>(previous[lane]);
        }
    }
    return true;
}

}  // namespace vconv
