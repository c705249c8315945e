"""golden.npz, made: what the eager network makes of one fixed input, to hold everything else
against.

T samples, F frames, M feature channels, U units, D latent width, E speaker width, C conditioning
channels, L layers, G gate channels, Q levels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vconv.audio import MuLaw, decoder_codes
from vconv.config import AudioConfig
from vconv.geometry import Geometry
from vconv.golden import LOGIT_STEPS, Floats, Golden, golden_plan
from vconv.pitch import shifted

if TYPE_CHECKING:
    from torch import Tensor

    from vconv.nn.autoencoder import Autoencoder
    from vconv.nn.wavenet import WaveNet

SIGNAL_SECONDS = 1.5
_SPARE_SECONDS = 0.5  # of the signal, beyond what the logits' units hear
_SAMPLE_RATE = 16000


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
