/* The WaveNet sampler of vconv: a small, plain C interface.
 *
 * Legend: Q levels, R residual, G gate, S skip and C conditioning channels, L = blocks * layers
 * gated layers, k taps, B lanes (independent streams generated together), T samples of one call,
 * hop samples a frame. Layer l has dilation 2^(l mod layers). Matrices are row-major [outputs,
 * inputs], floats are IEEE binary32. The network, from the previous code to the logits of the next
 * one:
 *
 *   x = embedding[code]
 *   for each layer:
 *     h = sum over taps j of W_j x[t - (k-1-j) * dilation] + c[t]         W = [W_0 | ... | W_k-1]
 *     z = tanh(h[0:G]) * sigmoid(h[G:2G])
 *     x = x + residual_weight z + residual_bias                          (not in the last layer)
 *   y = relu(skip_weight [z_0 .. z_L-1] + skip_bias)
 *   logits = logits_weight relu(hidden_weight y + hidden_bias) + logits_bias
 *
 * c is the conditioning. With hop > 1 it is given projected for every layer, once a frame as P, and
 * interpolated linearly: sample r of frame j has c = P[j] + (r / hop) * (P[j+1] - P[j]). With hop 1
 * it is given as C channels of every sample, which each layer projects:
 * c[t] = condition_weight channels[t] + condition_bias.
 *
 * Nothing is global: a sampler is constant after its creation and may serve any number of threads,
 * each with a state of its own. No function throws; those that can fail return a vconv_status.
 * For one machine code path and precision the same inputs give the same bits, however a stream is
 * cut into calls and however many lanes share a call.
 */
#ifndef VCONV_NATIVE_SAMPLER_H
#define VCONV_NATIVE_SAMPLER_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define VCONV_API __declspec(dllexport)
#else
#define VCONV_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Raised whenever a function, structure or status below changes its meaning. */
#define VCONV_SAMPLER_VERSION 3

typedef enum vconv_status {
    VCONV_OK = 0,
    VCONV_BAD_SHAPE = 1,    /* a size is zero or too large, or a required pointer is NULL */
    VCONV_BAD_WEIGHTS = 2,  /* a weight is NaN or infinite; the message names the tensor */
    VCONV_BAD_CPU = 3,      /* the code path asked for is unknown or not for this processor */
    VCONV_BAD_STATE = 4,    /* not a state of this sampler for this many lanes */
    VCONV_BAD_ARGUMENT = 5, /* samples not whole frames, temperature < 0 or NaN, code >= Q, uniform
                               outside [0, 1], unknown precision, a required pointer NULL .. */
    VCONV_OUT_OF_MEMORY = 6,
    /* a number became or was NaN or infinite on the way to the logits; the state is lost */
    VCONV_NOT_FINITE = 7
} vconv_status;

/* How the weights are kept. What lies between the matrices is binary32 in each. */
typedef enum vconv_precision {
    VCONV_FP32 = 0,
    VCONV_BF16 = 1, /* weights rounded to bfloat16 */
    /* A matrix's weights to 8 bits, w = a_o * W with a_o = max |w_o| / 127 for output o and W to
     * nearest, ties to even, or all 0 where a_o is below the least normal number. Its inputs to 7
     * bits: with lo and hi the least and the largest of 0 and the vector's numbers, n = 127 /
     * (hi - lo), zero = floor(-lo n + 1/2), X = floor(x n + zero + 1/2) within 0 .. 127; zeros
     * where hi - lo < 1e-36. The product is a_o * (hi - lo) / 127 * sum of W (X - zero). */
    VCONV_INT8 = 2
} vconv_precision;

typedef struct vconv_wavenet_shape {
    uint32_t levels, residual, gate, skip; /* Q, R, G, S */
    uint32_t blocks, layers, kernel_size;  /* L = blocks * layers; k >= 2 */
    uint32_t hop;                          /* samples per conditioning frame, >= 1 */
    uint32_t conditioning;                 /* C; read with hop 1 only */
} vconv_wavenet_shape;

/* Read during vconv_sampler_create only. The arrays of pointers hold one tensor per layer; the last
 * layer has no residual output, so its two entries are not read. The condition tensors are read
 * with hop 1 only. */
typedef struct vconv_wavenet_weights {
    const float* embedding;                   /* [Q, R] */
    const float* const* dilated;              /* L x [2G, k * R], oldest tap first */
    const float* const* residual_weight;      /* L - 1 x [R, G] */
    const float* const* residual_bias;        /* L - 1 x [R] */
    const float *skip_weight, *skip_bias;     /* [S, L * G], [S] */
    const float *hidden_weight, *hidden_bias; /* [S, S], [S] */
    const float *logits_weight, *logits_bias; /* [Q, S], [Q] */
    const float* const* condition_weight;     /* L x [2G, C] */
    const float* const* condition_bias;       /* L x [2G] */
} vconv_wavenet_weights;

typedef struct vconv_sampler vconv_sampler;

/* VCONV_SAMPLER_VERSION of the compiled library. */
VCONV_API uint32_t vconv_sampler_version(void);

/* The name of the best code path that this processor runs; valid for ever. */
VCONV_API const char* vconv_sampler_best_cpu(void);

/* Packs the weights for the best code path of this processor, or for the named one ("generic",
 * "avx2", "avx512", "avx512vnni"; NULL: the best); precision is a vconv_precision. On failure
 * *sampler is NULL and message, when its capacity is not 0, holds a short text without a final full
 * stop. */
VCONV_API vconv_status vconv_sampler_create(const vconv_wavenet_shape* shape,
                                            const vconv_wavenet_weights* weights, const char* cpu,
                                            int precision, vconv_sampler** sampler, char* message,
                                            size_t message_capacity);

VCONV_API void vconv_sampler_destroy(vconv_sampler* sampler);

/* The name of the code path in use; valid for ever. */
VCONV_API const char* vconv_sampler_cpu(const vconv_sampler* sampler);

/* Multiply-adds of the matrix products of one generated sample. */
VCONV_API uint64_t vconv_sampler_multiply_adds(const vconv_sampler* sampler);

/* Bytes of a state for this many lanes; 0 when that is no possible number of lanes. A state is
 * plain memory, aligned to 8 bytes: it may be copied, and belongs to one code path's sampler. */
VCONV_API size_t vconv_sampler_state_size(const vconv_sampler* sampler, size_t lanes);

/* Silence: the previous code is Q / 2 and all contexts are zero. */
VCONV_API vconv_status vconv_sampler_state_init(const vconv_sampler* sampler, void* state,
                                                size_t lanes);

/* Generates n_samples = T of every lane, or follows forced codes; T is F frames, F * hop.
 *   conditioning  [B, F + 1, L * 2G], layer by layer, within a layer the G tanh rows first; with
 *                 hop 1 [B, T, C]
 *   uniforms      [B, T] in [0, 1), or NULL where nothing is drawn (forced, or temperature 0)
 *   temperature   0: the most likely code; otherwise drawn from softmax(logits / temperature), the
 *                 smallest code whose cumulative weight exceeds uniform * total weight
 *   forced_codes  [B, T] codes taken instead of drawn ones, or NULL
 *   codes         [B, T] the codes taken, or NULL
 *   logits        [B, T, Q], logits[t] predicts code t, or NULL; forced and NULL skips their cost
 * What is not finite is noticed where logits are made; without them it stays in the state until
 * they are. The state advances in place. After VCONV_NOT_FINITE it must be initialised again; every
 * other failure leaves it as it was. */
VCONV_API vconv_status vconv_sampler_run(const vconv_sampler* sampler, void* state, size_t lanes,
                                         size_t n_samples, const float* conditioning,
                                         const float* uniforms, float temperature,
                                         const int16_t* forced_codes, int16_t* codes,
                                         float* logits);

#ifdef __cplusplus
}
#endif

#endif
