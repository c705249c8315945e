// The WaveNet of docs/bundle-format.md in plain JavaScript, a sample at a time: slow, but nothing
// else is needed. And the uniforms that it draws with.

const { tanh, exp } = Math

/** out [rows] += matrix [rows, columns] times x [columns]; a step of k * columns between rows where
 * the matrix is one of k beside each other. */
function accumulate(out, matrix, x, stride = x.length, from = 0) {
  for (let row = 0; row < out.length; row++) {
    let sum = 0
    const begin = row * stride + from
    for (let column = 0; column < x.length; column++) sum += matrix[begin + column] * x[column]
    out[row] += sum
  }
}

const rectified = (x) => x.map((value) => Math.max(0, value))

export class WaveNet {
  /** One stream, in silence. */
  constructor(manifest, tensors) {
    const { decoder, audio } = manifest.model
    this.hop = manifest.geometry.conditioning_hop
    this.levels = audio.levels
    this.residual = decoder.residual_channels
    this.gate = decoder.gate_channels
    this.taps = decoder.kernel_size
    this.weight = (name) => tensors['decoder.wavenet.' + name]
    this.layers = Array.from({ length: decoder.blocks * decoder.layers }, (_, layer) => ({
      dilation: 2 ** (layer % decoder.layers),
      dilated: this.weight(`layers.${layer}.dilated.weight`),
      residual: this.weight(`layers.${layer}.residual.weight`),
      bias: this.weight(`layers.${layer}.residual.bias`),
      condition: this.weight(`layers.${layer}.condition.weight`),
      conditionBias: this.weight(`layers.${layer}.condition.bias`),
    }))
    for (const layer of this.layers) {
      // What the oldest tap looks back to; older inputs are overwritten.
      const length = (this.taps - 1) * layer.dilation + 1
      layer.inputs = Array.from({ length }, () => new Float32Array(this.residual))
    }
    this.time = 0
    this.previous = this.levels / 2
  }

  /** The logits of sample t of a call, from the conditioning's steps [F, W] (see `conditioned`). */
  logits(steps, t) {
    const { gate, residual, taps, time } = this
    const gates = new Float32Array(this.layers.length * gate)
    const first = this.previous * residual
    let x = this.weight('embedding.weight').subarray(first, first + residual)
    this.layers.forEach((layer, index) => {
      const { inputs, dilation } = layer
      inputs[time % inputs.length].set(x)
      const h = this.conditioned(layer, index, steps, t)
      for (let tap = 0; tap < taps; tap++) {
        const back = (taps - 1 - tap) * dilation
        if (back > time) continue // before the first sample every x is zero
        const then = inputs[(time - back) % inputs.length]
        accumulate(h, layer.dilated, then, taps * residual, tap * residual)
      }
      const z = gates.subarray(index * gate, (index + 1) * gate)
      for (let i = 0; i < gate; i++) z[i] = tanh(h[i]) / (1 + exp(-h[gate + i]))
      if (layer.residual === undefined) return // the last layer
      x = x.map((value, i) => value + layer.bias[i])
      accumulate(x, layer.residual, z)
    })
    let y = gates
    for (const part of ['skip', 'hidden', 'logits']) {
      const out = this.weight(`${part}.bias`).slice()
      accumulate(out, this.weight(`${part}.weight`), y)
      y = part === 'logits' ? out : rectified(out)
    }
    return y
  }

  /** c of a layer at sample t: with hop 160 between two steps that hold all layers' projections;
   * with hop 1 the layer's projection of a step. */
  conditioned(layer, index, steps, t) {
    const { hop, gate } = this
    if (hop === 1) {
      const h = layer.conditionBias.slice()
      accumulate(h, layer.condition, steps[t])
      return h
    }
    const [before, after] = [steps[Math.floor(t / hop)], steps[Math.floor(t / hop) + 1]]
    const share = (t % hop) / hop
    return Float32Array.from({ length: 2 * gate }, (_, i) => {
      const at = index * 2 * gate + i
      return before[at] + share * (after[at] - before[at])
    })
  }

  /** Take a code: the next sample follows it. */
  follow(code) {
    this.previous = code
    this.time += 1
  }
}

/** The code that a uniform draws from softmax(logits). */
export function draw(logits, uniform) {
  const most = Math.max(...logits)
  const weights = Array.from(logits, (value) => exp(value - most))
  const wanted = uniform * weights.reduce((sum, weight) => sum + weight, 0)
  let sum = 0
  const code = weights.findIndex((weight) => (sum += weight) > wanted)
  return code < 0 ? weights.length - 1 : code
}

const MASK = (1n << 64n) - 1n

/** Philox4x64-10 (Salmon et al. 2011): counter and key -> four numbers of 64 bits. */
function philox([c0, c1, c2, c3], [k0, k1]) {
  for (let round = 0; round < 10; round++) {
    const [low, high] = [c0 * 0xd2e7470ee14c6c93n, c2 * 0xca5a826395121157n]
    ;[c0, c1, c2, c3] = [(high >> 64n) ^ c1 ^ k0, high & MASK, (low >> 64n) ^ c3 ^ k1, low & MASK]
    k0 = (k0 + 0x9e3779b97f4a7c15n) & MASK
    k1 = (k1 + 0xbb67ae8584caa73bn) & MASK
  }
  return [c0, c1, c2, c3]
}

/** The uniforms of the chunk that begins at sample chunk x count. */
export function uniforms(seed, chunk, count) {
  const drawn = new Float32Array(count)
  for (let n = 0; n < count; n += 4) {
    const bits = philox([BigInt(n / 4 + 1), 0n, BigInt(chunk), 0n], [BigInt(seed), 0n])
    bits.forEach((number, i) => (drawn[n + i] = (Number(number >> 41n) + 0.5) / 2 ** 23))
  }
  return drawn
}
