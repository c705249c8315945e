// The WaveNet, one sample at a time, over packed weights.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "kernels.h"
#include "sampler.h"

namespace vconv {

// Floats on a cache line's boundary.
class Floats {
  public:
    explicit Floats(std::size_t count);  // zeros; throws std::bad_alloc
    float* data() const { return data_; }

  private:
    std::unique_ptr<float[]> memory_;
    float* data_;
};

// What a run is asked for; see vconv_sampler_run.
struct Job {
    std::size_t lanes, samples;
    const float* conditioning;
    const float* uniforms;
    float temperature;
    const std::int16_t* forced;
    std::int16_t* codes;
    float* logits;
};

class WaveNet {
  public:
    // Throws std::bad_alloc. The weights must be finite and the shape possible.
    WaveNet(const vconv_wavenet_shape& shape, const vconv_wavenet_weights& weights,
            const Kernels& kernels, Precision precision);

    std::size_t context_floats(std::size_t lanes) const;
    std::uint64_t multiply_adds() const;
    const Kernels& kernels() const { return kernels_; }
    Precision precision() const { return precision_; }
    const vconv_wavenet_shape& shape() const { return shape_; }

    // Advances `position`, the previous codes [lanes] and the contexts. False: a logit or a channel
    // of the conditioning was not finite. Throws std::bad_alloc before it changes anything.
    bool run(const Job& job, std::uint64_t& position, std::int32_t* previous,
             float* contexts) const;

  private:
    struct Layer {
        std::size_t dilation = 1;
        std::vector<Matrix> taps;              // kernel_size x [2 gate, residual], oldest first
        Matrix output;                         // gate -> [residual | skip]; the last layer: skip
        const float* residual_bias = nullptr;  // nullptr in the last layer
        Matrix condition;                      // conditioning channels -> 2 gate; with hop 1
        const float* condition_bias = nullptr;

        std::size_t reach() const { return (taps.size() - 1) * dilation; }
    };
    struct Workspace;
    struct Place;

    // Inputs of a product, as the precision has them.
    struct Columns {
        const float* first;
        std::size_t stride;  // floats
    };

    // With hop 1 the conditioning comes as channels.
    bool projects() const { return shape_.hop == 1; }
    std::size_t channels() const { return projects() ? shape_.conditioning : 0; }

    std::size_t quantised(std::size_t inputs) const {
        return precision_ == Precision::int8 ? quantised_floats(inputs) : 0;
    }
    void keep(std::size_t inputs, const float* in, float* column) const;
    Columns prepared(std::size_t inputs, const float* in, std::size_t stride, std::size_t count,
                     float* room) const;
    void accumulate(const Matrix& matrix, Columns in, std::size_t count, float* out,
                    std::size_t out_stride) const;
    void enter_frame(std::size_t frame, Workspace& work) const;
    void interpolate(const Place& place, std::size_t count, const Workspace& work) const;
    void project(const Layer& layer, const Place& place, std::size_t count,
                 const Workspace& work) const;
    void prepare_past(const Layer& layer, const Place& place, const Workspace& work) const;
    void layer_step(const Layer& layer, Place& place, Workspace& work) const;
    void output_step(Workspace& work) const;
    bool choose(std::size_t sample, std::int32_t* previous, Workspace& work) const;

    vconv_wavenet_shape shape_;
    const Kernels& kernels_;
    Precision precision_;
    std::size_t residual_, gate_, skip_, levels_;  // widths padded to whole vectors
    std::size_t column_;                           // floats of a layer's input in a context
    Floats weights_;                               // everything below points into it
    float* embedding_ = nullptr;                   // [levels, residual_]
    std::vector<Layer> layers_;
    float* skip_bias_ = nullptr;
    Matrix hidden_, logits_;
    float* hidden_bias_ = nullptr;
    float* logits_bias_ = nullptr;
};

}  // namespace vconv
