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

bool finite(const float* values, std::size_t count) {
    float sum = 0.0f;  // x - x is 0 for a finite x, else NaN
    for (std::size_t i = 0; i < count; ++i) {
        sum += values[i] - values[i];
    }
    return sum == 0.0f;
}

}  // namespace

Floats::Floats(std::size_t count) : memory_(new float[count + kCacheLine]()), data_(memory_.get()) {
    const auto misplaced = reinterpret_cast<std::uintptr_t>(data_) % (kCacheLine * sizeof(float));
    if (misplaced != 0) {
        data_ += kCacheLine - misplaced / sizeof(float);
    }
}

// ---- weights ------------------------------------------------------------------------------------

WaveNet::WaveNet(const vconv_wavenet_shape& shape, const vconv_wavenet_weights& weights,
                 const Kernels& kernels, Precision precision)
    : shape_(shape),
      kernels_(kernels),
      precision_(precision),
      residual_(round_up(shape.residual, kernels.vector)),
      gate_(round_up(shape.gate, kernels.vector)),
      skip_(round_up(shape.skip, kernels.vector)),
      levels_(round_up(shape.levels, kernels.vector)),
      // In the order in which a step reads it, so that it streams.
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

// ---- state --------------------------------------------------------------------------------------

// Each layer's context is a ring of its latest inputs, [slot, lane, R'].
std::size_t WaveNet::context_floats(std::size_t lanes) const {
    std::size_t slots = 0;
    for (const Layer& layer : layers_) {
        slots += layer.reach();
    }
    return slots * lanes * residual_;
}

// Where a layer stands in a run.
struct WaveNet::Place {
    float* context;
    std::size_t slot;    // where in the context the present input goes: in place of the oldest
    float* past;         // [sample of the block, lane, 2G'] h, as far as prepare_past knows it
    std::size_t block;   // samples that prepare_past serves at once, at most
    std::size_t column;  // the layer's share of base and slope begins here
};

// What a run need not hand on to the next.
struct WaveNet::Workspace {
    const Job& job;
    std::size_t lanes;
    std::size_t segment;     // samples whose conditioning is at hand: the run's or a frame's
    std::size_t sample = 0;  // in the segment
    std::vector<Place> places;
    Floats memory;
    float* stream;    // [lane, x | skip]
    float* z;         // [lane, G']
    float* hidden;    // [lane, S']
    float* logits;    // [lane, Q']
    float* channels;  // [sample of a block, lane, C] with hop 1
    float* base;      // else [lane, layer, 2G'] conditioning at the start of the frame
    float* slope;     // and its change until the next
    float* scratch;   // the kernels'

    Workspace(const WaveNet& net, const Job& job, std::uint64_t position, float* contexts)
        : job(job),
          lanes(job.lanes),
          segment(net.projects() ? job.samples : net.shape_.hop),
          memory([&] {
              std::size_t width = net.residual_ + 2 * net.skip_ + net.gate_ + net.levels_ +
                                  longest_block() * net.channels();
              for (const Layer& layer : net.layers_) {
                  width += (block_of(layer) + (net.projects() ? 0 : 2)) * 2 * net.gate_;
              }
              return lanes * width + net.scratch_floats() + (net.layers_.size() + 8) * kCacheLine;
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
        const std::size_t frame = net.projects() ? 0 : lanes * net.layers_.size() * 2 * net.gate_;
        base = take(frame);
        slope = take(frame);
        channels = take(lanes * longest_block() * net.channels());
        scratch = take(net.scratch_floats());
        for (const Layer& layer : net.layers_) {
            const std::size_t block = block_of(layer);
            places.push_back({contexts, position % layer.reach(),
                              take(block * lanes * 2 * net.gate_), block,
                              places.size() * 2 * net.gate_});
            contexts += layer.reach() * lanes * net.residual_;
        }
    }

    std::size_t longest_block() const { return std::max<std::size_t>(1, kPastColumns / lanes); }

    // No longer than the dilation: all that the past taps of a block see came before the block.
    std::size_t block_of(const Layer& layer) const {
        return std::min(longest_block(), layer.dilation);
    }
};

// ---- a run --------------------------------------------------------------------------------------

bool WaveNet::run(const Job& job, std::uint64_t& position, std::int32_t* previous,
                  float* contexts) const {
    // A gate maps an infinite projection to a finite number, so it would never be seen later.
    if (!finite(job.conditioning, job.lanes * job.samples * channels())) {
        return false;
    }
    Workspace work(*this, job, position, contexts);
    const std::size_t stride = residual_ + skip_;
    for (std::size_t sample = 0; sample < job.samples; ++sample) {
        work.sample = sample % work.segment;
        if (work.sample == 0 && !projects()) {
            enter_frame(sample / shape_.hop, work);
        }
        for (std::size_t lane = 0; lane < job.lanes; ++lane) {
            float* x = work.stream + lane * stride;
            std::copy_n(embedding_ + previous[lane] * residual_, residual_, x);
            std::copy_n(skip_bias_, skip_, x + residual_);
        }
        for (std::size_t l = 0; l < layers_.size(); ++l) {
            layer_step(layers_[l], work.places[l], work);
        }
        if (job.forced == nullptr || job.logits != nullptr) {
            output_step(work);
        }
        if (!choose(sample, previous, work)) {
            return false;
        }
    }
    position += job.samples;
    return true;
}

std::size_t WaveNet::scratch_floats() const {
    const std::size_t inputs = std::max({residual_, gate_, skip_, channels()});
    return precision_ == Precision::int8 ? scratch_bytes(inputs) / sizeof(float) : 0;
}

void WaveNet::accumulate(const Matrix& matrix, const float* in, std::size_t in_stride, float* out,
                         std::size_t out_stride, std::size_t columns, const Workspace& work) const {
    kernels_.accumulate[static_cast<int>(precision_)](matrix, in, in_stride, out, out_stride,
                                                      columns, work.scratch);
}

void WaveNet::enter_frame(std::size_t frame, Workspace& work) const {
    const std::size_t halves = layers_.size() * 2, steps = work.job.samples / shape_.hop + 1;
    for (std::size_t lane = 0; lane < work.lanes; ++lane) {
        const float* now = work.job.conditioning + (lane * steps + frame) * halves * shape_.gate;
        const float* then = now + halves * shape_.gate;
        for (std::size_t half = 0; half < halves; ++half) {
            float* base = work.base + (lane * halves + half) * gate_;
            float* slope = work.slope + (lane * halves + half) * gate_;
            for (std::size_t g = 0; g < shape_.gate; ++g, ++now, ++then) {
                base[g] = *now;
                slope[g] = *then - *now;
            }
        }
    }
}

// The conditioning of the block's samples, between two frames.
void WaveNet::interpolate(const Place& place, std::size_t count, const Workspace& work) const {
    const std::size_t lanes = work.lanes, width = 2 * gate_;
    for (std::size_t i = 0; i < count; ++i) {
        const float fraction = static_cast<float>(work.sample + i) / static_cast<float>(shape_.hop);
        for (std::size_t lane = 0; lane < lanes; ++lane) {
            const std::size_t at = lane * layers_.size() * width + place.column;
            kernels_.interpolate(width, work.base + at, work.slope + at, fraction,
                                 place.past + (i * lanes + lane) * width);
        }
    }
}

// The conditioning of the block's samples, from their channels.
void WaveNet::project(const Layer& layer, const Place& place, std::size_t count,
                      const Workspace& work) const {
    const std::size_t lanes = work.lanes, width = 2 * gate_;
    for (std::size_t i = 0; i < count; ++i) {
        for (std::size_t lane = 0; lane < lanes; ++lane) {
            const std::size_t at = lane * work.job.samples + work.sample + i;
            const std::size_t column = i * lanes + lane;
            std::copy_n(work.job.conditioning + at * channels(), channels(),
                        work.channels + column * channels());
            std::copy_n(layer.condition_bias, width, place.past + column * width);
        }
    }
    accumulate(layer.condition, work.channels, channels(), place.past, width, count * lanes, work);
}

// h of the block's samples as far as the past decides it: conditioning and all taps but the last.
void WaveNet::prepare_past(const Layer& layer, const Place& place, const Workspace& work) const {
    const std::size_t lanes = work.lanes, width = 2 * gate_;
    const std::size_t count = std::min(place.block, work.segment - work.sample);
    if (projects()) {
        project(layer, place, count, work);
    } else {
        interpolate(place, count, work);
    }
    const std::size_t slots = layer.reach();
    for (std::size_t j = 0; j + 1 < layer.taps.size(); ++j) {
        std::size_t slot = (place.slot + j * layer.dilation) % slots;
        for (std::size_t done = 0; done < count;) {
            const std::size_t span = std::min(count - done, slots - slot);  // to the ring's end
            accumulate(layer.taps[j], place.context + slot * lanes * residual_, residual_,
                       place.past + done * lanes * width, width, span * lanes, work);
            done += span;
            slot = 0;
        }
    }
}

void WaveNet::layer_step(const Layer& layer, Place& place, Workspace& work) const {
    const std::size_t lanes = work.lanes, width = 2 * gate_, stride = residual_ + skip_;
    if (work.sample % place.block == 0) {
        prepare_past(layer, place, work);
    }
    float* h = place.past + work.sample % place.block * lanes * width;
    accumulate(layer.taps.back(), work.stream, stride, h, width, lanes, work);
    for (std::size_t lane = 0; lane < lanes; ++lane) {
        kernels_.gate(gate_, h + lane * width, work.z + lane * gate_);
    }
    for (std::size_t lane = 0; lane < lanes; ++lane) {
        std::copy_n(work.stream + lane * stride, residual_,
                    place.context + (place.slot * lanes + lane) * residual_);
    }
    place.slot = place.slot + 1 == layer.reach() ? 0 : place.slot + 1;

    if (layer.residual_bias == nullptr) {  // the last layer: skip only
        accumulate(layer.output, work.z, gate_, work.stream + residual_, stride, lanes, work);
        return;
    }
    for (std::size_t lane = 0; lane < lanes; ++lane) {
        kernels_.add(residual_, layer.residual_bias, work.stream + lane * stride);
    }
    accumulate(layer.output, work.z, gate_, work.stream, stride, lanes, work);
}

void WaveNet::output_step(Workspace& work) const {
    const std::size_t stride = residual_ + skip_;
    float* skip = work.stream + residual_;
    for (std::size_t lane = 0; lane < work.lanes; ++lane) {
        kernels_.rectify(skip_, skip + lane * stride);
        std::copy_n(hidden_bias_, skip_, work.hidden + lane * skip_);
        std::copy_n(logits_bias_, levels_, work.logits + lane * levels_);
    }
    accumulate(hidden_, skip, stride, work.hidden, skip_, work.lanes, work);
    kernels_.rectify(work.lanes * skip_, work.hidden);
    accumulate(logits_, work.hidden, skip_, work.logits, levels_, work.lanes, work);
}

// Hands out the logits, and takes the forced code or draws one. False: a logit is not finite.
bool WaveNet::choose(std::size_t sample, std::int32_t* previous, Workspace& work) const {
    const Job& job = work.job;
    for (std::size_t lane = 0; lane < job.lanes; ++lane) {
        const std::size_t at = lane * job.samples + sample;
        float* logits = work.logits + lane * levels_;
        if (job.logits != nullptr) {
            std::copy_n(logits, shape_.levels, job.logits + at * shape_.levels);
        }
        if (job.forced == nullptr) {
            const float uniform = job.uniforms == nullptr ? 0.0f : job.uniforms[at];
            previous[lane] = kernels_.draw(shape_.levels, logits, job.temperature, uniform);
            if (previous[lane] < 0) {
                return false;
            }
        } else {
            previous[lane] = job.forced[at];
            if (job.logits != nullptr && !finite(logits, shape_.levels)) {
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
