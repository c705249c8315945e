"""golden.npz: what the eager network makes of one fixed input, to hold everything else against.

T samples, F frames, M feature channels, U units, D latent width, E speaker width, C conditioning
channels, L layers, G gate channels, Q levels.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
import zlib
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from vconv.audio import MuLaw, decoder_codes
from vconv.config import AudioConfig
from vconv.errors import ModelError
from vconv.geometry import Geometry, Plan
from vconv.pitch import shifted

if TYPE_CHECKING:
    from torch import Tensor

    from vconv.nn.autoencoder import Autoencoder
    from vconv.nn.wavenet import WaveNet

LOGIT_STEPS = 1000
SIGNAL_SECONDS = 1.5
_SPARE_SECONDS = 0.5  # of the signal, beyond what the logits' units hear
_SAMPLE_RATE = 16000
_MAX_BYTES = 200_000_000  # all arrays together, unpacked
_PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)

# What zipfile and numpy raise for archives and arrays that are damaged, encrypted or foreign.
UNREADABLE = (
    ValueError, TypeError, KeyError, OSError, EOFError, RuntimeError, struct.error,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Golden:
    """The arrays of golden.npz.

    signal [T]; features [F, M] normalised; encodings [U, D] before quantisation; latents [U, D]
    after it; codes [U]; pitch [U, 2] (log2 of F0 in Hz, voicing; [U, 0] of a model without);
    speaker [E]; conditioning [made, L * 2G] (or [made, C], see ``handed_over``), what the
    conditioner makes of the first ``plan.units`` units; forced [T'], the signal's own mu-law codes
    from sample ``plan.left`` on; logits [1000, Q], which predict the first of them from the
    initial state.
    """

    signal: Floats
    features: Floats
    encodings: Floats
    latents: Floats
    codes: npt.NDArray[np.int64]
    pitch: Floats
    speaker: Floats
    conditioning: Floats
    forced: npt.NDArray[np.uint8]
    logits: Floats

    def to_bytes(self) -> bytes:
        """As an .npz file; the same arrays give the same bytes."""
        file = io.BytesIO()
        np.savez_compressed(file, **{f.name: getattr(self, f.name) for f in fields(self)})
        return file.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Golden:
        """Read an .npz file of unknown origin: no pickle, bounded memory. ModelError if it is not
        a whole golden.npz."""
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                entries = {e.filename.removesuffix(".npy"): e for e in archive.infolist()}
                wanted = {f.name for f in fields(cls)}
                if set(entries) | {"pitch"} != wanted:
                    raise ValueError(f"it holds {', '.join(sorted(entries)) or 'nothing'}")
                if sum(entry.file_size for entry in entries.values()) > _MAX_BYTES:
                    raise ValueError("its arrays are too large")
                # Of other kinds zipfile unpacks as much as comes, whatever size is declared.
                if any(entry.compress_type not in _PACKED for entry in entries.values()):
                    raise ValueError("it is not deflated")
                arrays = {n: _array(archive.read(e), n) for n, e in entries.items()}
                # Bundles of format 1 have no pitch and do not say so.
                arrays.setdefault("pitch", np.zeros((arrays["codes"].size, 0), np.float32))
                return cls(**arrays)
        except UNREADABLE as error:
            raise ModelError(f"{where}: not a whole golden file ({error}).") from None


def _array(data: bytes, name: str) -> npt.NDArray[Any]:
    file = io.BytesIO(data)
    version = npy.read_magic(file)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    try:
        shape, _, dtype = read(file)
    except (MemoryError, RecursionError):  # of Python's parser, by which numpy reads it
        raise ValueError(f"the header of its array {name} is nested too deeply") from None
    # Before numpy allocates what the header claims.
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        raise ValueError(f"its array {name} is damaged")
    file.seek(0)
    array: npt.NDArray[Any] = npy.read_array(file, allow_pickle=False)
    return array


def golden_plan(geometry: Geometry) -> tuple[Plan, int]:
    """The excerpt whose samples the logits predict, and their number T'."""
    hop = geometry.unit_hop
    samples = -(-LOGIT_STEPS // hop) * hop
    return geometry.plan(samples), samples


def golden_signal(geometry: Geometry) -> Floats:
    """A synthetic utterance [T]: pulses of a gliding pitch through three moving resonances, a
    fricative's noise, and a pause. By formula, so that it belongs to nobody.

    It lasts 1.5 s, or what an encoder that looks far around needs, and goes on periodically.
    """
    needed = golden_plan(geometry)[0].wav_length / _SAMPLE_RATE + _SPARE_SECONDS
    seconds = max(SIGNAL_SECONDS, needed)
    time = np.arange(int(seconds * _SAMPLE_RATE)) / _SAMPLE_RATE
    # Raw bits, which numpy promises never to change, unlike the streams of its distributions.
    bits = np.random.Philox(key=20260101).random_raw(len(time) + 1)
    noise = np.diff((bits >> np.uint64(11)) * 2.0**-53 - 0.5)
    pitch = 120 + 40 * np.sin(2 * np.pi * 1.1 * time)
    cycles = np.floor(np.cumsum(pitch) / _SAMPLE_RATE)
    pulses = np.flatnonzero(np.diff(cycles, prepend=0.0) > 0)
    response = np.arange(480) / _SAMPLE_RATE
    voiced = np.zeros(len(time) + len(response))
    for pulse in pulses:
        glide = np.sin(2 * np.pi * 1.7 * time[pulse])
        for centre, width, level in (
            (500 + 250 * glide, 80, 1.0),
            (1500 - 600 * glide, 110, 0.6),
            (2600 + 200 * glide, 160, 0.3),
        ):
            decay = np.exp(-np.pi * width * response)
            ring = level * decay * np.sin(2 * np.pi * centre * response)
            voiced[pulse : pulse + len(response)] += ring
    hiss = 0.3 * np.clip(np.sin(2 * np.pi * 2.3 * time + 1), 0, None)
    loudness = np.clip(1.2 * np.sin(np.pi * time / SIGNAL_SECONDS * 2) ** 2, 0, 1)
    wav = loudness * (0.35 * voiced[: len(time)] + hiss * noise) + 0.003 * noise
    signal: Floats = (0.5 * wav / np.abs(wav).max()).astype(np.float32)
    return signal


def forced_codes(signal: Floats, audio: AudioConfig, samples: slice) -> npt.NDArray[np.uint8]:
    """The codes that these samples of the signal have."""
    mulaw = MuLaw(audio.levels)
    codes = decoder_codes(signal, mulaw=mulaw, preemphasis=audio.preemphasis, gain=audio.gain)
    return codes[samples].astype(np.uint8)


def joined(latents: Floats, pitch: Floats, prior: float | None) -> Floats:
    """What the decoder is told of each unit: latents [U, D] and, of a model with pitch [U, 2], its
    octaves above ``prior`` (the speakers' mean log2 F0) times voicing, and voicing: [U, D + 2]."""
    return np.concatenate((latents, shifted(pitch, -(prior or 0.0))), axis=1)


def handed_over(wavenet: WaveNet, channels: Tensor) -> Tensor:
    """What conditioner.onnx gives an engine: conditioning channels [B, F, C] projected for every
    layer [B, F, L * 2G], or, at the sample rate, where those would be too many, as they are."""
    return wavenet.project(channels) if wavenet.hop > 1 else channels


def make_golden(network: Autoencoder, audio: AudioConfig, speaker: int = 0) -> Golden:
    """Run the eager network, in evaluation mode on the CPU, over the fixed input."""
    import torch

    plan, samples = golden_plan(network.geometry)
    signal = golden_signal(network.geometry)
    forced = forced_codes(signal, audio, slice(plan.left, plan.left + samples))
    wavenet = network.decoder.wavenet

    def array(tensor: Tensor) -> npt.NDArray[Any]:
        return np.ascontiguousarray(tensor[0].numpy())

    with torch.inference_mode():
        wav = torch.from_numpy(signal)[None]
        features = array(network.features(wav).transpose(1, 2))
        encodings = network.latents(wav)
        codes, quantised = network.bottleneck.quantise(encodings)
        latents = array(quantised.transpose(1, 2))
        pitch, prior = np.zeros((len(latents), 0), np.float32), None
        if network.pitch is not None:
            pitch = array(network.pitch(wav).transpose(1, 2))
            prior = float(network.pitch.speaker_means.double().mean())
        units = joined(latents, pitch, prior)[: plan.units]
        vector = network.speaker_vectors(torch.tensor([speaker]))
        channels = network.condition(torch.from_numpy(units).T[None], vector)
        previous = np.concatenate(([wavenet.silence], forced[:-1].astype(np.int64)))
        logits, _ = wavenet(
            torch.from_numpy(previous)[None],
            channels[:, plan.skip : plan.skip + plan.steps],
            wavenet.initial_state(1),
        )
        conditioning = handed_over(wavenet, channels)
    return Golden(
        signal=signal,
        features=features,
        encodings=array(encodings.transpose(1, 2)),
        latents=latents,
        codes=array(codes),
        pitch=pitch,
        speaker=array(vector),
        conditioning=array(conditioning),
        forced=forced,
        logits=array(logits)[:LOGIT_STEPS],
    )
