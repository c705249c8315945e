/* The native sampler in a program without Python: reads a bundle, follows the golden codes, holds
 * the logits against golden.npz, then draws a second of sound and says how fast.
 *
 *   native_sampler BUNDLE
 *
 * Letters are those of vconv/native/sampler.h. Nothing here asks which member of the family the
 * model is: golden.npz has the conditioning as the sampler takes it.
 */
#include <time.h>

#include "bundle.h"
#include "sampler.h"

#define DRAWN 16000 /* samples: a second */

/* The WaveNet's tensor of this name, or of this name in a layer (-1: of none). */
static const float* weight(const bytes* file, int layer, const char* name, size_t count) {
    char path[128];
    if (layer < 0)
        snprintf(path, sizeof path, "decoder.wavenet.%s", name);
    else
        snprintf(path, sizeof path, "decoder.wavenet.layers.%d.%s", layer, name);
    return tensor(file, path, count);
}

static vconv_wavenet_shape read_shape(const bytes* manifest) {
    vconv_wavenet_shape shape = {
        .levels = manifest_number(manifest, "model.audio.levels"),
        .residual = manifest_number(manifest, "model.decoder.residual_channels"),
        .gate = manifest_number(manifest, "model.decoder.gate_channels"),
        .skip = manifest_number(manifest, "model.decoder.skip_channels"),
        .blocks = manifest_number(manifest, "model.decoder.blocks"),
        .layers = manifest_number(manifest, "model.decoder.layers"),
        .kernel_size = manifest_number(manifest, "model.decoder.kernel_size"),
        .hop = manifest_number(manifest, "geometry.conditioning_hop"),
        .conditioning = manifest_number(manifest, "model.decoder.conditioning_channels"),
    };
    /* The sampler has limits of its own; these keep the products below from overflowing. */
    if (shape.levels > 65536 || shape.residual > 65536 || shape.gate > 65536 ||
        shape.skip > 65536 || shape.conditioning > 65536 || shape.blocks > 64 ||
        shape.layers > 64 || shape.kernel_size > 64 || !shape.hop)
        stop("%s: the model's widths are out of range.", manifest->name);
    return shape;
}

static vconv_sampler* make_sampler(const char* folder, const vconv_wavenet_shape* shape) {
    bytes file = read_file(folder, "weights.safetensors");
    size_t Q = shape->levels, R = shape->residual, G = shape->gate, S = shape->skip;
    size_t C = shape->conditioning, k = shape->kernel_size;
    int L = (int)(shape->blocks * shape->layers);
    const float** layers = (const float**)memory(5 * (size_t)L * sizeof *layers);
    const float **dilated = layers;
    const float **residual_weight = layers + L, **residual_bias = layers + 2 * L;
    const float **condition_weight = layers + 3 * L, **condition_bias = layers + 4 * L;
    for (int l = 0; l < L; ++l) {
        dilated[l] = weight(&file, l, "dilated.weight", 2 * G * k * R);
        if (l < L - 1) {
            residual_weight[l] = weight(&file, l, "residual.weight", R * G);
            residual_bias[l] = weight(&file, l, "residual.bias", R);
        }
        if (shape->hop == 1) { /* otherwise conditioner.onnx has projected already */
            condition_weight[l] = weight(&file, l, "condition.weight", 2 * G * C);
            condition_bias[l] = weight(&file, l, "condition.bias", 2 * G);
        }
    }
    vconv_wavenet_weights weights = {
        .embedding = weight(&file, -1, "embedding.weight", Q * R),
        .dilated = dilated,
        .residual_weight = residual_weight,
        .residual_bias = residual_bias,
        .skip_weight = weight(&file, -1, "skip.weight", S * (size_t)L * G),
        .skip_bias = weight(&file, -1, "skip.bias", S),
        .hidden_weight = weight(&file, -1, "hidden.weight", S * S),
        .hidden_bias = weight(&file, -1, "hidden.bias", S),
        .logits_weight = weight(&file, -1, "logits.weight", Q * S),
        .logits_bias = weight(&file, -1, "logits.bias", Q),
        .condition_weight = condition_weight,
        .condition_bias = condition_bias,
    };
    vconv_sampler* sampler;
    char message[256];
    if (vconv_sampler_create(shape, &weights, NULL, VCONV_FP32, &sampler, message, sizeof message))
        stop("%s: the sampler cannot use it: %s.", file.name, message);
    return sampler;
}

/* Silence, as a stream begins. */
static void begin(const vconv_sampler* sampler, void* state) {
    if (vconv_sampler_state_init(sampler, state, 1)) stop("The state cannot be initialised.");
}

int main(int count, char** arguments) {
    if (count != 2) stop("Usage: native_sampler BUNDLE");
    if (vconv_sampler_version() != VCONV_SAMPLER_VERSION)
        stop("The library has interface %u; this program was compiled for %u.",
             vconv_sampler_version(), (unsigned)VCONV_SAMPLER_VERSION);
    const char* folder = arguments[1];
    bytes manifest = read_manifest(folder);
    vconv_wavenet_shape shape = read_shape(&manifest);
    vconv_sampler* sampler = make_sampler(folder, &shape);

    /* The conditioning of T samples, of which the first steps are dropped. */
    bytes golden = read_file(folder, "golden.npz");
    array conditioning = npz_array(&golden, "conditioning", "<f4");
    array forced = npz_array(&golden, "forced", "|u1");
    array logits = npz_array(&golden, "logits", "<f4");
    size_t hop = shape.hop, T = forced.rows;
    size_t chunk = manifest_number(&manifest, "geometry.unit_hop");
    size_t skip = manifest_number(&manifest, "geometry.chunk.skip");
    size_t extra = manifest_number(&manifest, "geometry.chunk.extra_steps");
    size_t width = hop == 1 ? shape.conditioning
                            : (size_t)shape.blocks * shape.layers * 2 * shape.gate;
    if (!chunk || T % chunk || chunk % hop || conditioning.columns != width ||
        conditioning.rows < skip + T / hop + extra || logits.rows > T ||
        logits.columns != shape.levels)
        stop("%s: its arrays do not have the shapes that the manifest asks for.", golden.name);
    const float* steps = (const float*)conditioning.data + skip * width;

    /* The golden codes, a chunk at a time; the state goes from one to the next. */
    void* state = memory(vconv_sampler_state_size(sampler, 1));
    begin(sampler, state);
    int16_t* codes = (int16_t*)memory(T * sizeof *codes);
    float* found = (float*)memory(T * shape.levels * sizeof *found);
    for (size_t t = 0; t < T; ++t) codes[t] = ((const uint8_t*)forced.data)[t];
    for (size_t t = 0; t < T; t += chunk)
        if (vconv_sampler_run(sampler, state, 1, chunk, steps + t / hop * width, NULL, 0,
                              codes + t, NULL, found + t * shape.levels))
            stop("The sampler cannot follow the golden codes.");
    double most = difference(found, (const float*)logits.data, logits.rows * logits.columns);
    printf("logits of %zu samples: largest difference from golden %.2g (bound %.2g)\n",
           logits.rows, most, BOUND);
    if (most > BOUND) stop("%s: the logits are not the golden ones.", folder);

    /* A second of sound; what it says does not matter: the same conditioning again and again. */
    float* uniforms = (float*)memory(DRAWN * sizeof *uniforms);
    uint64_t random = 1;
    for (size_t t = 0; t < DRAWN; ++t) uniforms[t] = next_uniform(&random);
    begin(sampler, state);
    struct timespec start, stop_time;
    timespec_get(&start, TIME_UTC);
    for (size_t t = 0; t < DRAWN; t += chunk)
        if (vconv_sampler_run(sampler, state, 1, chunk, steps + t % T / hop * width, uniforms + t,
                              1, NULL, codes + t % T, NULL))
            stop("The sampler cannot draw.");
    timespec_get(&stop_time, TIME_UTC);
    double seconds = (double)(stop_time.tv_sec - start.tv_sec) +
                     (double)(stop_time.tv_nsec - start.tv_nsec) * 1e-9;
    printf("drew %d samples in %.3f s: %.1f times real time (one core, fp32, %s)\n", DRAWN, seconds,
           DRAWN / manifest_number(&manifest, "sample_rate") / seconds, vconv_sampler_cpu(sampler));
    vconv_sampler_destroy(sampler);
    return 0;
}
