"""Converts a WAV file with a bundle, without vconv: numpy, onnxruntime and the compiled sampler.

    python python_embed.py BUNDLE --check
    python python_embed.py BUNDLE in.wav out.wav --speaker 12 --seed 0

Written after docs/bundle-format.md, for every model of the family. The same seed gives the
samples that `vconv convert --lanes 1 --engine native --precision fp32` gives.

T samples, U units, D latent width, E speaker width, F conditioning steps, W conditioning width.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import wave
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from python_sampler import Array, Floats, Refused, Sampler, find_sampler

RATE = 16000
CHUNK = 3200  # samples; the uniforms are counted in chunks of this length
BOUND = 1e-4  # for latents, conditioning and logits in float32
PITCH_BOUND = 1e-3
PRIOR_UNITS = 25
REQUIRED = """encoder.onnx conditioner.onnx decoder.ts weights.safetensors speakers.safetensors
              golden.npz""".split()


# ---- The files ----


def read_manifest(folder: Path) -> dict[str, Any]:
    """manifest.json, of a bundle that is whole: the right format, files, sizes and hashes."""
    path = folder / "manifest.json"
    try:
        data = path.read_bytes()
        manifest: dict[str, Any] = json.loads(data)
        version, digest, files = (manifest[k] for k in ("format_version", "digest", "files"))
    except OSError as error:
        raise Refused(f"{path}: cannot be read ({error.strerror}).") from None
    except (ValueError, KeyError, TypeError):
        raise Refused(f"{path}: is not the manifest of a bundle.") from None
    if version not in (1, 2):
        raise Refused(f"{path}: is of format version {version}; this program reads 1 and 2.")
    if hashlib.sha256(data.replace(digest.encode(), b"0" * 64)).hexdigest() != digest:
        raise Refused(f"{path}: its digest does not fit; it was changed or is damaged.")
    inside = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir()}
    strange = inside ^ {"manifest.json", *files} | set(REQUIRED) - set(files)
    if strange:
        raise Refused(f"{folder}: missing, or not listed in its manifest: {min(strange)}.")
    for name, entry in files.items():
        file = folder / name
        if file.is_symlink() or file.stat().st_size != entry["size"]:
            raise Refused(f"{file}: is a link or not {entry['size']:,} bytes long.")
        if hashlib.sha256(file.read_bytes()).hexdigest() != entry["sha256"]:
            raise Refused(f"{file}: its sha256 is not the manifest's.")
    return manifest


def read_safetensors(path: Path) -> dict[str, Array]:
    """The float32 tensors of a file: the length of a JSON header, the header, the numbers."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    tensors = {}
    for name, entry in json.loads(data[8:start]).items():
        if entry.get("dtype") == "F32":  # neither counters nor "__metadata__"
            begin, end = entry["data_offsets"]
            numbers = np.frombuffer(data[start + begin : start + end], "<f4")
            tensors[name] = numbers.reshape(entry["shape"])
    return tensors


def read_wav(path: Path) -> Floats:
    """A WAV file [T] of one channel with 16 bits at 16 kHz, in [-1, 1]."""
    try:
        with wave.open(str(path), "rb") as file:
            shape = file.getnchannels(), file.getsampwidth(), file.getframerate()
            data = file.readframes(file.getnframes())
    except OSError as error:
        raise Refused(f"{path}: cannot be read ({error.strerror}).") from None
    except (wave.Error, EOFError) as error:
        raise Refused(f"{path}: is no WAV file that can be read ({error}).") from None
    if shape != (1, 2, RATE):
        raise Refused(f"{path}: must have one channel of 16 bits at 16000 Hz.")
    samples: Floats = np.frombuffer(data, "<i2").astype(np.float32) / np.float32(32768)
    return samples


def write_wav(path: Path, samples: Floats) -> None:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes(np.clip(np.rint(samples * 32768.0), -32768, 32767).astype("<i2").tobytes())


# ---- The bundle ----


class Bundle:
    """A bundle's parts, ready to run."""

    def __init__(self, folder: Path, library: Path | None) -> None:
        self.manifest = read_manifest(folder)
        self.geometry = self.manifest["geometry"]
        self.plan = self.geometry["chunk"]
        self.tensors = read_safetensors(folder / "weights.safetensors")
        self.speakers = read_safetensors(folder / "speakers.safetensors")["vectors"]
        self.pitched = self.manifest["model"]["decoder"].get("pitch", False)
        means = self.tensors.get("pitch.speaker_means", np.zeros(1))
        self.prior = float(means.mean(dtype=np.float64))  # log2 of an F0 in Hz
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # like vconv: the same sums in the same order
        self._encoder, self._conditioner = (
            onnxruntime.InferenceSession(folder / name, options, ["CPUExecutionProvider"])
            for name in ("encoder.onnx", "conditioner.onnx")
        )
        self.sampler = Sampler(library or find_sampler(), self.manifest, self.tensors)
        with np.load(folder / "golden.npz", allow_pickle=False) as golden:
            self.golden = {name: golden[name] for name in golden.files}

    def encode(self, wav: Floats) -> tuple[Array, Floats, Floats]:
        """wav [T] -> codes [U], latents [U, D], pitch [U, 2] ([U, 0] of a model without)."""
        codes, latents, *pitch = self._encoder.run(None, {"waveform": wav[None]})
        return codes[0], latents[0], pitch[0][0] if self.pitched else latents[0, :, :0]

    def condition(self, units: Floats, speaker: Floats) -> Floats:
        """units [U, D, or D + 2 with pitch], speaker [E] -> conditioning [F, W]."""
        feed = {"latents": units[None], "speaker": speaker[None]}
        conditioning: Floats = self._conditioner.run(None, feed)[0][0]
        return conditioning

    def speaker(self, name: str) -> Floats:
        names = self.manifest["speakers"]
        index = names.index(name) if name in names else int(name) if name.isdecimal() else -1
        if not 0 <= index < len(names):
            raise Refused(f"The model has no speaker {name!r}; it has {', '.join(names)}.")
        vector: Floats = self.speakers[index]
        return vector


def told(latents: Floats, pitch: Floats, mean: float) -> Floats:
    """What the conditioner takes of each unit: its latents, and with pitch r x v and v."""
    octave, voicing = pitch[:, :1], pitch[:, 1:]
    relative = np.where(voicing > 0, octave.astype(np.float64) - mean, 0.0).astype(np.float32)
    return np.concatenate((latents, relative * voicing, voicing), axis=1)


# ---- The conversion ----


def without_offset(wav: Floats) -> Floats:
    """The high-pass that vconv puts before the encoder: y[n] = x[n] - x[n - 1] + a y[n - 1]."""
    a = 1 - 2 * np.pi * 20 / RATE
    filtered, x, y = [], 0.0, 0.0
    for sample in wav.tolist():
        x, y = sample, sample - x + a * y
        filtered.append(y)
    return np.array(filtered, np.float32)


def speech_frames(wav: Floats) -> list[tuple[int, float, int]]:
    """Frames of speech: where each ends, its smoothed power, and how many were clear so far."""
    found, powers, minima = [], [], []
    clear, lasts = 0, 0
    squares = np.square(wav[: len(wav) // 160 * 160], dtype=np.float64).reshape(-1, 160)
    for index, power in enumerate(squares.mean(1).tolist()):
        if power < 1e-10:
            continue
        smoothed = sum(last := [*powers[-7:], power]) / len(last)
        if len(powers) % 100 == 0:
            minima.append(smoothed)
        powers.append(power)
        minima[-1] = min(minima[-1], smoothed)
        lasts -= 1
        if smoothed >= 10 * min(minima[-3:]):
            clear, lasts = clear + 1, 20
        if clear and lasts >= 0:
            found.append((160 * (index + 1), smoothed, clear))
    return found


def gain(frames: list[tuple[int, float, int]], known: int, reference: float | None) -> np.float32:
    """What brings the speech in the first ``known`` samples to the level of reference, in dBFS."""
    speech = [frame for frame in frames if frame[0] <= known][-300:]
    if reference is None or not speech:
        return np.float32(1)
    level = 10 * math.log10(sum(power for _, power, _ in speech) / len(speech))
    wanted = min(1, speech[-1][2] / 40) ** 2 * (reference - level)
    return np.float32(10 ** (min(max(wanted, -20), 40) / 20))


def uniforms(seed: int, chunk: int) -> Floats:
    """The uniforms [CHUNK] of the chunk that begins at sample chunk x CHUNK."""
    bits = np.random.Philox(key=[seed, 0], counter=[0, 0, chunk, 0]).random_raw(CHUNK)
    drawn: Floats = ((bits >> np.uint64(41)) + 0.5).astype(np.float32) / np.float32(2**23)
    return drawn


def sound(codes: Array, audio: dict[str, Any], carry: float) -> tuple[Floats, float]:
    """Codes [T] -> samples [T]: mu-law, gain, de-emphasis, whose last sample is carried on."""
    mu = audio["levels"] - 1
    y = (np.arange(mu + 1) + 0.5) * 2 / (mu + 1) - 1
    levels = (np.sign(y) * ((1 + mu) ** np.abs(y) - 1) / mu).astype(np.float32)
    samples = []
    for value in (levels.astype(np.float64) / audio["gain"])[codes].tolist():
        carry = value + audio["preemphasis"] * carry
        samples.append(carry)
    return np.array(samples, np.float32), carry


def convert(bundle: Bundle, wav: Floats, speaker: Floats, seed: int) -> Floats:
    """wav [T] -> [T]. Chunk by chunk: with little change the same loop serves a live stream."""
    geometry, plan = bundle.geometry, bundle.plan
    hop, lead = geometry["conditioning_hop"], geometry["lead_samples"]
    window, unit = geometry["encoder_window"], geometry["unit_hop"]
    first, stop = lead // -CHUNK, -(len(wav) // -CHUNK)
    # Silence around the recording, as much as the first and the last chunk hear of it.
    before = -first * CHUNK + plan["left"]
    recording = without_offset(wav)
    signal = np.pad(recording, (before, CHUNK + plan["extra_samples"]))
    frames, reference = speech_frames(recording), bundle.manifest.get("input_level_db")
    kept = np.zeros((0, bundle.golden["latents"].shape[1] + 2 * bundle.pitched), np.float32)
    pitch_sum, pitch_weight = PRIOR_UNITS * bundle.prior, float(PRIOR_UNITS)
    coded = bundle.manifest["bottleneck"]["codebook_size"] is not None
    still = bundle.encode(np.zeros(window, np.float32))[0][0]  # the code of digital silence
    codes_kept = np.zeros(0, np.int64)
    bundle.sampler.begin()
    blocks, carry = [], 0.0
    for chunk in range(first, stop):
        # Only the units that the chunk before did not have: of the first chunk, all.
        count = CHUNK // unit + (plan["extra_units"] if chunk == first else 0)
        end = (chunk - first + 1) * CHUNK + plan["extra_samples"]
        heard = signal[end - window - (count - 1) * unit : end]
        units_codes, latents, pitch = bundle.encode(heard * gain(frames, end - before, reference))
        if bundle.pitched:
            pitch_sum += float((pitch[:, 0].astype(np.float64) * pitch[:, 1]).sum())
            pitch_weight += float(pitch[:, 1].astype(np.float64).sum())
        units = np.concatenate((kept, told(latents, pitch, pitch_sum / pitch_weight)))
        kept = units[CHUNK // unit :]
        silent = np.concatenate((codes_kept, units_codes)) == still
        codes_kept = np.concatenate((codes_kept, units_codes))[CHUNK // unit :]
        steps = bundle.condition(units, speaker)[plan["skip"] :]
        steps = steps[: CHUNK // hop + plan["extra_steps"]]
        if chunk < 0:
            # The last lead_samples before the recording are fed as silence.
            start = max(0, -lead - chunk * CHUNK)
            silence = np.full(CHUNK - start, bundle.sampler.levels // 2)
            bundle.sampler.follow(steps[start // hop :], silence)
            continue
        drawn = uniforms(seed, chunk)
        codes = []
        for i, at in enumerate(range(0, CHUNK, unit)):
            here = steps[at // hop : (at + unit) // hop + plan["extra_steps"]]
            if coded and silent[i : i + plan["extra_units"] + 1].all():
                codes.append(np.full(unit, bundle.sampler.levels // 2))
                bundle.sampler.follow(here, codes[-1])
            else:
                codes.append(bundle.sampler.draw(here, drawn[at : at + unit]))
        block, carry = sound(np.concatenate(codes), bundle.manifest["model"]["audio"], carry)
        blocks.append(block)
    return np.concatenate(blocks)[: len(wav)]


# ---- golden.npz ----


def decided(encodings: Floats, codebook: Array) -> Array:
    """Which units [U] lie more than 0.001 from the border between their code and any other."""
    distances = ((encodings[:, None].astype(np.float64) - codebook) ** 2).sum(-1)
    best = distances.argmin(1)
    apart = np.sqrt(((codebook[best][:, None].astype(np.float64) - codebook) ** 2).sum(-1))
    apart[np.arange(len(best)), best] = 1
    borders = (distances - distances.min(1, keepdims=True)) / (2 * apart)
    borders[np.arange(len(best)), best] = np.inf
    clear: Array = borders.min(1) > 0.001
    return clear


def check(bundle: Bundle) -> bool:
    """Print how far each part is from golden.npz; whether all are within their bounds."""
    golden, plan = bundle.golden, bundle.plan
    passed = True

    def compare(name: str, found: Array, wanted: Array, bound: float = BOUND) -> None:
        nonlocal passed
        gap = float(np.abs(found.astype(np.float64) - wanted).max(initial=0.0))
        passed &= gap <= bound  # NaN is not
        print(f"{name}: largest difference from golden {gap:.2g} (bound {bound:g})")

    codes, latents, pitch = bundle.encode(golden["signal"])
    clear = np.ones(len(codes), np.bool_)
    if "bottleneck.codebook" in bundle.tensors:
        clear = decided(golden["encodings"], bundle.tensors["bottleneck.codebook"])
    compare("codes", codes[clear], golden["codes"][clear], 0)
    same = codes == golden["codes"]
    compare("latents", latents[same], golden["latents"][same])
    golden_pitch = golden.get("pitch", golden["latents"][:, :0])  # there is none in format 1
    if bundle.pitched:
        voiced = golden_pitch[:, 1] > 0.1
        compare("pitch", pitch[voiced, 0], golden_pitch[voiced, 0], PITCH_BOUND)
        compare("voicing", pitch[:, 1], golden_pitch[:, 1], PITCH_BOUND)
    # Which units, and of their conditioning which steps, belong to the forced codes.
    length, unit, hop = len(golden["forced"]), bundle.geometry["unit_hop"], bundle.sampler.hop
    count = length // unit + plan["extra_units"]
    units = told(golden["latents"], golden_pitch, bundle.prior)[:count]
    compare("conditioning", bundle.condition(units, golden["speaker"]), golden["conditioning"])
    steps = golden["conditioning"][plan["skip"] :][: length // hop + plan["extra_steps"]]
    bundle.sampler.begin()
    logits = bundle.sampler.follow(steps, golden["forced"])
    compare("logits", logits[: len(golden["logits"])], golden["logits"])
    return passed


def main() -> int:
    parser = argparse.ArgumentParser(description="Convert a WAV file with a vconv bundle.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("input", type=Path, nargs="?", help="mono, 16 bits, 16 kHz")
    parser.add_argument("output", type=Path, nargs="?")
    parser.add_argument("--speaker", default="0", help="a name or an index")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--check", action="store_true", help="compare with golden.npz")
    parser.add_argument("--library", type=Path, help="the sampler, vconv/native/_sampler*.so")
    options = parser.parse_args()
    if not options.check and options.output is None:
        parser.error("an input and an output are needed, or --check")
    try:
        bundle = Bundle(options.bundle, options.library)
        if options.check and not check(bundle):
            raise Refused(f"{options.bundle}: does not reproduce its golden.npz.")
        if options.output is not None:
            wav, speaker = read_wav(options.input), bundle.speaker(options.speaker)
            write_wav(options.output, convert(bundle, wav, speaker, options.seed))
    except Refused as refused:
        print(refused, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
