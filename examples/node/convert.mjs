// Converts a WAV file with a bundle: onnxruntime-node for the encoder and the conditioner, plain
// JavaScript for the WaveNet. Written after docs/bundle-format.md, for models without pitch.
//
//   node convert.mjs BUNDLE                                    compare with golden.npz
//   node convert.mjs BUNDLE in.wav out.wav [SPEAKER] [SEED]    convert
//
// T samples, U units, D latent width, F conditioning steps, W conditioning width, Q levels.

import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import * as ort from 'onnxruntime-node'
import { readManifest, readNpz, readSafetensors, readWav, Refused, wavFile } from './bundle.mjs'
import { draw, uniforms, WaveNet } from './wavenet.mjs'

const CHUNK = 3200 // samples; the uniforms are counted in chunks of this length
const BOUND = 1e-4 // for latents, conditioning and logits

/** A matrix in one array -> its rows. */
function rowsOf(data, width) {
  const count = data.length / width
  return Array.from({ length: count }, (_, row) => data.subarray(row * width, (row + 1) * width))
}

class Model {
  static async open(folder) {
    const model = new Model()
    model.manifest = readManifest(folder)
    if (model.manifest.model.decoder.pitch) {
      throw new Refused(`${folder}: the model is told the pitch; this program leaves that out.`)
    }
    const options = { intraOpNumThreads: 1, executionProviders: ['cpu'] }
    const session = (name) => ort.InferenceSession.create(join(folder, name), options)
    model.encoder = await session('encoder.onnx')
    model.conditioner = await session('conditioner.onnx')
    model.tensors = readSafetensors(join(folder, 'weights.safetensors'))
    model.speakers = readSafetensors(join(folder, 'speakers.safetensors')).vectors
    return model
  }

  /** wav [T] -> codes [U], latents: U rows of D. */
  async encode(wav) {
    const waveform = new ort.Tensor('float32', wav, [1, wav.length])
    const { codes, latents } = await this.encoder.run({ waveform })
    return { codes: Array.from(codes.data, Number), latents: rowsOf(latents.data, latents.dims[2]) }
  }

  /** U rows of D, speaker [E] -> conditioning: F rows of W. */
  async condition(latents, speaker) {
    const flat = Float32Array.from(latents.flatMap((row) => Array.from(row)))
    const { conditioning } = await this.conditioner.run({
      latents: new ort.Tensor('float32', flat, [1, latents.length, latents[0].length]),
      speaker: new ort.Tensor('float32', speaker, [1, speaker.length]),
    })
    return rowsOf(conditioning.data, conditioning.dims[2])
  }

  speaker(name) {
    const names = this.manifest.speakers
    const index = names.includes(name) ? names.indexOf(name) : Number(name)
    const rows = rowsOf(this.speakers, this.speakers.shape[1])
    if (!rows[index]) throw new Refused(`The model has no speaker ${name}.`)
    return rows[index]
  }
}

/** The high-pass that vconv puts before the encoder. */
function withoutOffset(wav) {
  const a = 1 - (2 * Math.PI * 20) / 16000
  let [x, y] = [0, 0]
  return wav.map((sample) => {
    ;[x, y] = [sample, sample - x + a * y]
    return y
  })
}

/** Frames of speech: where each ends, its smoothed power, and how many were clear so far. */
function speechFrames(wav) {
  const [found, powers, minima] = [[], [], []]
  let [clear, lasts] = [0, 0]
  for (let end = 160; end <= wav.length; end += 160) {
    const power = wav.subarray(end - 160, end).reduce((sum, x) => sum + x * x, 0) / 160
    if (power < 1e-10) continue
    const last = [...powers.slice(-7), power]
    const smoothed = last.reduce((sum, x) => sum + x) / last.length
    if (powers.length % 100 === 0) minima.push(smoothed)
    powers.push(power)
    minima.push(Math.min(minima.pop(), smoothed))
    lasts--
    if (smoothed >= 10 * Math.min(...minima.slice(-3))) [clear, lasts] = [clear + 1, 20]
    if (clear && lasts >= 0) found.push({ end, smoothed, clear })
  }
  return found
}

/** What brings the speech in the first `known` samples to the level of reference, in dBFS. */
function gain(frames, known, reference) {
  const speech = frames.filter(({ end }) => end <= known).slice(-300)
  if (reference == null || speech.length === 0) return 1
  const mean = speech.reduce((sum, { smoothed }) => sum + smoothed, 0) / speech.length
  const wanted = Math.min(1, speech.at(-1).clear / 40) ** 2 * (reference - 10 * Math.log10(mean))
  return Math.fround(10 ** (Math.min(Math.max(wanted, -20), 40) / 20))
}

/** The value of each code. */
function soundOfCodes(levels) {
  return Float32Array.from({ length: levels }, (_, code) => {
    const y = ((code + 0.5) * 2) / levels - 1
    return (Math.sign(y) * (levels ** Math.abs(y) - 1)) / (levels - 1)
  })
}

/** wav [T] -> [T]. */
async function convert(model, wav, speaker, seed) {
  const { geometry, model: config, input_level_db: reference } = model.manifest
  const { chunk: plan, unit_hop: unit, encoder_window: window, lead_samples: lead } = geometry
  const hop = geometry.conditioning_hop
  const [first, stop] = [-Math.ceil(lead / CHUNK), Math.ceil(wav.length / CHUNK)]
  // Silence around the recording, as much as the first and the last chunk hear of it.
  const before = plan.left - first * CHUNK
  const signal = new Float32Array((stop - first) * CHUNK + plan.extra_samples)
  const recording = withoutOffset(wav)
  signal.set(recording, before)
  const frames = speechFrames(recording)
  const wavenet = new WaveNet(model.manifest, model.tensors)
  const values = soundOfCodes(wavenet.levels)
  const out = new Float32Array((stop + 1) * CHUNK)
  const coded = model.manifest.bottleneck.codebook_size !== null
  const still = (await model.encode(new Float32Array(window))).codes[0] // of digital silence
  let [kept, keptCodes, carry, at] = [[], [], 0, 0]
  for (let chunk = first; chunk < stop; chunk++) {
    // Only the units that the chunk before did not have: of the first chunk, all.
    const count = CHUNK / unit + (chunk === first ? plan.extra_units : 0)
    const end = (chunk - first + 1) * CHUNK + plan.extra_samples
    const factor = gain(frames, end - before, reference)
    const heard = signal.slice(end - window - (count - 1) * unit, end).map((x) => x * factor)
    const encoded = await model.encode(heard)
    const units = [...kept, ...encoded.latents]
    const codes = [...keptCodes, ...encoded.codes]
    kept = units.slice(CHUNK / unit)
    keptCodes = codes.slice(CHUNK / unit)
    const steps = (await model.condition(units, speaker)).slice(plan.skip)
    const random = uniforms(seed, Math.max(0, chunk), CHUNK)
    // Fed as silence: the last `lead` samples before the recording, and where all units tell of it.
    const silent = Array.from({ length: CHUNK / unit }, (_, i) => {
      const shaping = codes.slice(i, i + plan.extra_units + 1)
      return chunk < 0 || (coded && shaping.every((code) => code === still))
    })
    for (let t = chunk < 0 ? Math.max(0, -lead - chunk * CHUNK) : 0; t < CHUNK; t++) {
      const logits = wavenet.logits(steps, t)
      const code = silent[Math.floor(t / unit)] ? wavenet.levels / 2 : draw(logits, random[t])
      wavenet.follow(code)
      if (chunk < 0) continue
      carry = values[code] / config.audio.gain + config.audio.preemphasis * carry
      out[at++] = carry
    }
  }
  return out.subarray(0, wav.length)
}

/** Compare each part with golden.npz; whether all are within their bounds. */
async function check(model, golden) {
  const { chunk: plan, unit_hop: unit } = model.manifest.geometry
  let passed = true
  const compare = (name, found, wanted) => {
    let gap = found.length === wanted.length ? 0 : Infinity
    for (let i = 0; i < wanted.length; i++) {
      const next = Math.abs(Number(found[i]) - Number(wanted[i]))
      if (!(next <= gap)) gap = next
    }
    passed &&= gap <= BOUND
    console.log(`${name}: largest difference from golden ${gap.toPrecision(2)} (bound ${BOUND})`)
  }
  const flat = (rows) => rows.flatMap((row) => Array.from(row))
  const latents = rowsOf(golden.latents, golden.latents.shape[1])
  const heard = await model.encode(golden.signal)
  // A code may be its neighbour where the encoding lies between two: here all are demanded.
  compare('codes', heard.codes, golden.codes)
  compare('latents', flat(heard.latents), golden.latents)
  const units = latents.slice(0, golden.forced.length / unit + plan.extra_units)
  const conditioning = await model.condition(units, golden.speaker)
  compare('conditioning', flat(conditioning), golden.conditioning)
  const wavenet = new WaveNet(model.manifest, model.tensors)
  const steps = rowsOf(golden.conditioning, golden.conditioning.shape[1]).slice(plan.skip)
  const logits = []
  for (let t = 0; t < golden.logits.shape[0]; t++) {
    logits.push(wavenet.logits(steps, t))
    wavenet.follow(golden.forced[t])
  }
  compare('logits', flat(logits), golden.logits)
  return passed
}

async function main([folder, input, output, speaker = '0', seed = '0']) {
  if (folder === undefined || (input !== undefined && output === undefined)) {
    throw new Refused('Usage: node convert.mjs BUNDLE [in.wav out.wav [SPEAKER] [SEED]]')
  }
  const model = await Model.open(folder)
  if (input === undefined) {
    if (await check(model, readNpz(join(folder, 'golden.npz')))) return
    throw new Refused(`${folder}: does not reproduce its golden.npz.`)
  }
  const wav = readWav(input)
  const begun = performance.now()
  const converted = await convert(model, wav, model.speaker(speaker), Number(seed))
  writeFileSync(output, wavFile(converted))
  const [made, taken] = [wav.length / 16000, (performance.now() - begun) / 1000]
  console.log(`${output}: ${made.toFixed(2)} s of sound, made in ${taken.toFixed(1)} s`)
}

try {
  await main(process.argv.slice(2))
} catch (error) {
  if (!(error instanceof Refused)) throw error
  console.error(error.message)
  process.exitCode = 1
}
