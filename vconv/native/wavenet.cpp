// The network step by step. Vectors of one sample are kept per lane, padded to whole vectors with
// zeros: x [R'], skip [S'], h [tanh rows G' | sigmoid rows G'], z [G'].
#include "wavenet.h"

#include <algorithm>
#include <cstring>

namespace vconv {

namespace {

// Taps of the past are multiplied for this many columns (samples of all lanes) at once where the
// dilation allows, so that one pass over their weights serves them all.
constexpr std::size_t kPastColumns = 16;

bool finite(const float* values, std::size_t count) {
    float sum = 0.0f;  // x - x is 0 for a finite x, else NaN
    for (std::size_t i = 0; i < count; ++i) {
        sum += values[i] - values[i];
    }
    return sum == 0.0f;
}

}  // namespace

// ---- state --------------------------------------------------------------------------------------

// Each layer's context is a ring of its latest inputs, [slot, lane, R'] or quantised.
std::size_t WaveNet::context_floats(std::size_t lanes) const {
    std::size_t slots = 0;
    for (const Layer& layer : layers_) {
        slots += layer.reach();
    }
    return slots * lanes * column_;
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
    float* columns;   // room for quantised inputs

    Workspace(const WaveNet& net, const Job& job, std::uint64_t position, float* contexts)
        : job(job),
          lanes(job.lanes),
          segment(net.projects() ? job.samples : net.shape_.hop),
          memory([&] {
              std::size_t width = net.residual_ + 2 * net.skip_ + net.gate_ + net.levels_ +
                                  longest_block() * (net.channels() + net.quantised(net.channels())) +
                              net.quantised(std::max(net.gate_, net.skip_));
              for (const Layer& layer : net.layers_) {
                  width += (block_of(layer) + (net.projects() ? 0 : 2)) * 2 * net.gate_;
              }
              return lanes * width + (net.layers_.size() + 8) * kCacheLine;
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
        columns = take(lanes * std::max(longest_block() * net.quantised(net.channels()),
                                        net.quantised(std::max(net.gate_, net.skip_))));
        for (const Layer& layer : net.layers_) {
            const std::size_t block = block_of(layer);
            places.push_back({contexts, position % layer.reach(),
                              take(block * lanes * 2 * net.gate_), block,
                              places.size() * 2 * net.gate_});
            contexts += layer.reach() * lanes * net.column_;
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

// A column as a product takes it.
void WaveNet::keep(std::size_t inputs, const float* in, float* column) const {
    if (precision_ == Precision::int8) {
        kernels_.quantise(inputs, in, column);
    } else {
        std::copy_n(in, inputs, column);
    }
}

// Columns as a product takes them: where they are, or quantised in `room`.
WaveNet::Columns WaveNet::prepared(std::size_t inputs, const float* in, std::size_t stride,
                                   std::size_t count, float* room) const {
    if (precision_ != Precision::int8) {
        return {in, stride};
    }
    const std::size_t width = quantised_floats(inputs);
    for (std::size_t c = 0; c < count; ++c) {
        kernels_.quantise(inputs, in + c * stride, room + c * width);
    }
    return {room, width};
}

void WaveNet::accumulate(const Matrix& matrix, Columns in, std::size_t count, float* out,
                         std::size_t out_stride) const {
    kernels_.accumulate[static_cast<int>(precision_)](matrix, in.first, in.stride, out, out_stride,
                                                      count);
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
    const Columns columns =
        prepared(channels(), work.channels, channels(), count * lanes, work.columns);
    accumulate(layer.condition, columns, count * lanes, place.past, width);
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
            accumulate(layer.taps[j], {place.context + slot * lanes * column_, column_},
                       span * lanes, place.past + done * lanes * width, width);
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
    float* present = place.context + place.slot * lanes * column_;
    for (std::size_t lane = 0; lane < lanes; ++lane) {
        keep(shape_.residual, work.stream + lane * stride, present + lane * column_);
    }
    float* h = place.past + work.sample % place.block * lanes * width;
    accumulate(layer.taps.back(), {present, column_}, lanes, h, width);
    for (std::size_t lane = 0; lane < lanes; ++lane) {
        kernels_.gate(gate_, h + lane * width, work.z + lane * gate_);
    }
    const Columns z = prepared(shape_.gate, work.z, gate_, lanes, work.columns);
    place.slot = place.slot + 1 == layer.reach() ? 0 : place.slot + 1;

    if (layer.residual_bias == nullptr) {  // the last layer: skip only
        accumulate(layer.output, z, lanes, work.stream + residual_, stride);
        return;
    }
    for (std::size_t lane = 0; lane < lanes; ++lane) {
        kernels_.add(residual_, layer.residual_bias, work.stream + lane * stride);
    }
    accumulate(layer.output, z, lanes, work.stream, stride);
}

void WaveNet::output_step(Workspace& work) const {
    const std::size_t stride = residual_ + skip_;
    float* skip = work.stream + residual_;
    for (std::size_t lane = 0; lane < work.lanes; ++lane) {
        kernels_.rectify(skip_, skip + lane * stride);
        std::copy_n(hidden_bias_, skip_, work.hidden + lane * skip_);
        std::copy_n(logits_bias_, levels_, work.logits + lane * levels_);
    }
    accumulate(hidden_, prepared(shape_.skip, skip, stride, work.lanes, work.columns), work.lanes,
               work.hidden, skip_);
    kernels_.rectify(work.lanes * skip_, work.hidden);
    accumulate(logits_, prepared(shape_.skip, work.hidden, skip_, work.lanes, work.columns),
               work.lanes, work.logits, levels_);
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
