// Reading a bundle's files: manifest.json, .safetensors, .npz; and WAV files. For little-endian
// machines, like the files.

import { createHash } from 'node:crypto'
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { inflateRawSync } from 'node:zlib'

/** What is wrong with the bundle, the recording or the call, in one sentence. */
export class Refused extends Error {}

const sha256 = (data) => createHash('sha256').update(data).digest('hex')

function read(path) {
  try {
    return readFileSync(path)
  } catch (error) {
    throw new Refused(`${path}: cannot be read (${error.code}).`)
  }
}

/** manifest.json, of a bundle that is whole: the right format, files, sizes and hashes. */
export function readManifest(folder) {
  const path = join(folder, 'manifest.json')
  const text = read(path).toString('utf8')
  let manifest
  try {
    manifest = JSON.parse(text)
  } catch {
    throw new Refused(`${path}: is not the manifest of a bundle.`)
  }
  const version = manifest.format_version
  if (version !== 1 && version !== 2) {
    throw new Refused(`${path}: is of format version ${version}; this program reads 1 and 2.`)
  }
  if (sha256(text.replace(manifest.digest, '0'.repeat(64))) !== manifest.digest) {
    throw new Refused(`${path}: its digest does not fit; it was changed or is damaged.`)
  }
  const listed = new Set(['manifest.json', ...Object.keys(manifest.files)])
  for (const entry of readdirSync(folder, { recursive: true, withFileTypes: true })) {
    const name = join(entry.parentPath ?? entry.path, entry.name).slice(join(folder, '/').length)
    if (!entry.isDirectory() && !(entry.isFile() && listed.has(name.replaceAll('\\', '/')))) {
      throw new Refused(`${folder}: ${name} is not listed in its manifest, or is a link.`)
    }
  }
  for (const [name, { size, sha256: wanted }] of Object.entries(manifest.files)) {
    const data = read(join(folder, name))
    if (data.length !== size || sha256(data) !== wanted) {
      throw new Refused(`${join(folder, name)}: its size or sha256 is not the manifest's.`)
    }
  }
  return manifest
}

/** Bytes at any place -> an aligned typed array of their own. */
function numbers(Type, data) {
  return new Type(Uint8Array.from(data).buffer)
}

/** The float32 tensors of a file: the length of a JSON header, the header, the numbers. */
export function readSafetensors(path) {
  const data = read(path)
  const start = 8 + Number(data.readBigUInt64LE(0))
  const tensors = {}
  for (const [name, entry] of Object.entries(JSON.parse(data.toString('utf8', 8, start)))) {
    if (entry.dtype !== 'F32') continue // counters, or __metadata__
    const [begin, end] = entry.data_offsets
    tensors[name] = numbers(Float32Array, data.subarray(start + begin, start + end))
    tensors[name].shape = entry.shape
  }
  return tensors
}

const TYPES = { '<f4': Float32Array, '<i8': BigInt64Array, '|u1': Uint8Array }

/** A .npy file: a header of 10 or 12 bytes and a Python literal, then the numbers. */
function array(data) {
  const start = data[6] > 1 ? 12 + data.readUInt32LE(8) : 10 + data.readUInt16LE(8)
  const header = data.toString('latin1', 10, start)
  const values = numbers(TYPES[/'descr': '(.*?)'/.exec(header)[1]], data.subarray(start))
  values.shape = (/'shape': \((.*?)\)/.exec(header)[1].match(/\d+/g) ?? []).map(Number)
  return values
}

/** The arrays of a .npz: a .zip, read by the directory at its end. */
export function readNpz(path) {
  const data = read(path)
  const end = data.lastIndexOf('PK\x05\x06', undefined, 'latin1')
  if (end < 0) throw new Refused(`${path}: is no .npz file.`)
  const arrays = {}
  let entry = data.readUInt32LE(end + 16)
  for (let left = data.readUInt16LE(end + 10); left > 0; left--) {
    const [nameSize, extra, comment] = [28, 30, 32].map((at) => data.readUInt16LE(entry + at))
    const name = data.toString('utf8', entry + 46, entry + 46 + nameSize)
    const local = data.readUInt32LE(entry + 42)
    const start = local + 30 + data.readUInt16LE(local + 26) + data.readUInt16LE(local + 28)
    const packed = data.subarray(start, start + data.readUInt32LE(entry + 20))
    const file = data.readUInt16LE(entry + 10) === 8 ? inflateRawSync(packed) : packed
    arrays[name.replace(/\.npy$/, '')] = array(file)
    entry += 46 + nameSize + extra + comment
  }
  return arrays
}

/** A WAV file of one channel with 16 bits at 16 kHz, in [-1, 1]. */
export function readWav(path) {
  const data = read(path)
  let format = null
  for (let at = 12; at + 8 <= data.length; ) {
    const id = data.toString('latin1', at, at + 4)
    const body = data.subarray(at + 8, at + 8 + data.readUInt32LE(at + 4))
    if (id === 'fmt ') {
      format = [body.readUInt16LE(0), body.readUInt16LE(2), body.readUInt32LE(4)].join()
      if (format !== '1,1,16000' || body.readUInt16LE(14) !== 16) break
    }
    if (id === 'data' && format !== null) {
      return Float32Array.from(numbers(Int16Array, body), (sample) => sample / 32768)
    }
    at += 8 + body.length + (body.length % 2)
  }
  throw new Refused(`${path}: must be a WAV file of one channel with 16 bits at 16000 Hz.`)
}

/** Samples as a WAV file of 16 bits at 16 kHz. */
export function wavFile(samples) {
  const data = Buffer.alloc(44 + 2 * samples.length)
  data.write('RIFF\0\0\0\0WAVEfmt ', 'latin1')
  data.writeUInt32LE(36 + 2 * samples.length, 4)
  data.writeUInt32LE(16, 16)
  data.writeUInt16LE(1, 20)
  data.writeUInt16LE(1, 22)
  data.writeUInt32LE(16000, 24)
  data.writeUInt32LE(32000, 28)
  data.writeUInt16LE(2, 32)
  data.writeUInt16LE(16, 34)
  data.write('data', 36, 'latin1')
  data.writeUInt32LE(2 * samples.length, 40)
  samples.forEach((x, n) => {
    const rounded = Math.max(-32768, Math.min(32767, Math.round(x * 32768)))
    data.writeInt16LE(rounded, 44 + 2 * n)
  })
  return data
}
