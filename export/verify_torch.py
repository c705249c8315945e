"""The comparisons that need torch: the eager network, and a trusted decoder.ts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vconv.bundle import CONDITIONER, DECODER, GOLDEN, WEIGHTS, Bundle
from vconv.config import ModelConfig
from vconv.errors import ModelError
from vconv.geometry import FRAME_HOP, Span
from vconv.golden import LOGIT_STEPS, Floats, Golden, golden_plan
from vconv.graphs import Conditioner, Encoder
from vconv.nn.autoencoder import Autoencoder, build_autoencoder
from vconv.weights import Tensors

from .comparison import (
    DRAW_MARGIN,
    PITCH_TOLERANCE,
    TOLERANCE,
    Comparison,
    UnitGaps,
    Units,
    difference,
    drawn_inside,
    nearest,
    pitch_gap,
    severity,
    worst,
)
from .definitions import pitch_of
from .golden import handed_over, joined
from .torchscript import load_decoder, stored_numbers, whole_decoder


def load_network(bundle: Bundle) -> Autoencoder:
    """The eager network with the bundle's weights, in evaluation mode."""
    return network_of(bundle.config, len(bundle.speakers), bundle.tensors)


def eager_comparisons(bundle: Bundle, golden: Golden) -> Iterator[Comparison]:
    """The network of weights.safetensors against golden, and the ONNX files against it at other
    lengths and batch sizes."""
    network = load_network(bundle)
    geometry, wavenet = bundle.geometry, network.decoder.wavenet
    plan, samples = golden_plan(geometry)
    units = joined(golden.latents, golden.pitch, bundle.pitch_prior)[: plan.units]
    with torch.inference_mode():
        features = network.features(_tensor(golden.signal)[None])
        encodings = network.bottleneck.latents(network.encoder(features))
        channels = network.condition(_tensor(units).T[None], _tensor(golden.speaker)[None])
        previous = np.concatenate(([wavenet.silence], golden.forced[:-1].astype(np.int64)))
        inputs = _tensor(previous)[None]
        used = channels[:, plan.skip : plan.skip + plan.steps]
        logits, _ = wavenet(inputs, used, wavenet.initial_state(1))
        conditioning = handed_over(wavenet, channels)
        state, pieces = wavenet.initial_state(1), []
        for first in range(0, samples, FRAME_HOP):
            step = first // wavenet.hop
            steps = used[:, step : step + geometry.conditioning_steps(FRAME_HOP)]
            piece, state = wavenet(inputs[:, first : first + FRAME_HOP], steps, state)
            pieces.append(piece)
    for name, found, wanted in (
        ("features", features[0].T, golden.features),
        ("encodings", encodings[0].T, golden.encodings),
        ("conditioning", conditioning[0], golden.conditioning),
        ("logits", logits[0, :LOGIT_STEPS], golden.logits),
    ):
        yield Comparison(
            f"eager {name} against {GOLDEN}", difference(_array(found), wanted), TOLERANCE
        )
    yield Comparison(
        "eager logits in chunks against one shot",
        difference(_array(torch.cat(pieces, 1)), _array(logits)),
        TOLERANCE,
    )
    yield from _encoder(bundle, golden, network)
    yield from _conditioner(bundle, golden, network)


def _encoder(bundle: Bundle, golden: Golden, network: Autoencoder) -> Iterator[Comparison]:
    encoder, geometry = bundle.encoder(), bundle.geometry
    shortest = len(geometry.unit_inputs(Span(0, 1)))
    lengths = (shortest, shortest + geometry.unit_hop - 1, 2 * shortest, 3 * shortest + 7)
    wavs = [_excerpts(golden.signal, batch, n) for batch in (1, 2, 3) for n in lengths]
    gaps = encoder_gaps(network, encoder, bundle.codebook, wavs)
    note = f"batches of 1 to 3, {lengths[0]:,} to {lengths[-1]:,} samples"
    yield from gaps.comparisons("against eager", note)
    if network.pitch is not None:
        (_, _, pitch), _ = _units(network, golden.signal[None])
        clear = pitch_of(golden.signal[None], geometry)[1]
        gap = pitch_gap(pitch, golden.pitch[None], clear)
        yield Comparison(f"eager pitch against {GOLDEN}", gap, PITCH_TOLERANCE)


def encoder_gaps(
    network: Autoencoder, encoder: Encoder, codebook: Floats | None, wavs: Iterable[Floats]
) -> UnitGaps:
    """How far encoder.onnx is from the network, over batches of recordings [B, T]."""
    gaps = UnitGaps()
    for wav in wavs:
        wanted, encodings = _units(network, wav)
        _, decided = nearest(encodings, codebook)
        clear = None if network.pitch is None else pitch_of(wav, network.geometry)[1]
        gaps.add(encoder(wav), wanted, decided, clear)
    return gaps


def _units(network: Autoencoder, wav: Floats) -> tuple[Units, Floats]:
    """wav [B, T] -> what the encoder should give of it, and encodings [B, U, D]."""
    x = _tensor(wav)
    encodings = network.latents(x)
    codes, latents = network.bottleneck.quantise(encodings)
    pitch = latents[:, :0] if network.pitch is None else network.pitch(x)
    return (
        (_array(codes), _array(latents.transpose(1, 2)), _array(pitch.transpose(1, 2))),
        _array(encodings.transpose(1, 2)),
    )


def _conditioner(bundle: Bundle, golden: Golden, network: Autoencoder) -> Iterator[Comparison]:
    conditioner, geometry = bundle.conditioner(), bundle.geometry
    units = joined(golden.latents, golden.pitch, bundle.pitch_prior)
    fewest = geometry.plan(geometry.unit_hop).units - 1
    cases = []
    for batch in (1, 2, 3):
        speakers = bundle.speaker_vectors[np.arange(batch) % len(bundle.speakers)]
        for count in (fewest, fewest + 1, len(units)):
            z = np.stack([np.roll(units, lane, 0)[:count] for lane in range(batch)])
            cases.append((z, speakers))
    gap = conditioner_gap(network, conditioner, cases)
    note = f"batches of 1 to 3, {fewest} to {len(units)} units"
    yield Comparison(f"{CONDITIONER}: conditioning against eager", gap, TOLERANCE, note)


def conditioner_gap(
    network: Autoencoder, conditioner: Conditioner, cases: Iterable[tuple[Floats, Floats]]
) -> float:
    """The greatest difference of conditioner.onnx from the network, over pairs of units [B, U, D]
    and speakers' vectors [B, E]."""
    gap = 0.0
    for units, speakers in cases:
        channels = network.condition(_tensor(units).transpose(1, 2), _tensor(speakers))
        wanted = _array(handed_over(network.decoder.wavenet, channels))
        gap = worst(gap, difference(conditioner(units, speakers), wanted))
    return gap


def decoder_numbers(bundle: Bundle) -> Iterator[Comparison]:
    """The tensors inside decoder.ts against our own packing of the weights, without running it.

    They are compared with their equals in size, as 32-bit floats, whatever their order.
    """
    where = str(bundle.path / DECODER)
    own = whole_decoder(load_network(bundle)).save_to_buffer()
    theirs = [_floats(data) for data in stored_numbers(bundle.read(DECODER), where)]
    ours = [_floats(data) for data in stored_numbers(own, where)]
    gap = 0.0
    for wanted in ours:
        gaps = [difference(found, wanted) for found in theirs if found.shape == wanted.shape]
        gap = worst(gap, min(gaps, default=math.inf, key=severity))
    for found in theirs:
        gaps = [difference(found, wanted) for wanted in ours if found.shape == wanted.shape]
        gap = worst(gap, min(gaps, default=math.inf, key=severity))
    yield Comparison(
        f"{DECODER}: tensors against {WEIGHTS}, packed", gap, 1e-6, f"{len(ours)} tensors"
    )


def decoder_comparisons(bundle: Bundle, golden: Golden) -> Iterator[Comparison]:
    """Runs the bundle's decoder.ts: from units to logits against golden, chunked, and drawing."""
    bundle.read(DECODER)
    where = bundle.path / DECODER
    plan, samples = golden_plan(bundle.geometry)
    hop = bundle.geometry.unit_hop
    chunk = bundle.geometry.plan(hop).units
    latents = _tensor(joined(golden.latents, golden.pitch, bundle.pitch_prior)[None, : plan.units])
    speaker, forced = _tensor(golden.speaker[None]), _tensor(golden.forced[None])
    bits = np.random.Philox(key=1).random_raw(samples) >> np.uint64(40)
    uniforms = _tensor(bits.astype(np.float32) * np.float32(2.0**-24))[None]
    pieces, drawn = [], []
    try:
        with torch.inference_mode():
            decoder = load_decoder(where)
            start = decoder.initial_state(1)
            logits, _ = decoder.score(latents, speaker, forced, start)
            codes, _ = decoder(latents, speaker, uniforms, 1.0, start)
            own, _ = decoder.score(latents, speaker, codes, start)
            following, behind = start, start
            for first in range(samples // hop):
                units = latents[:, first : first + chunk]
                here = slice(first * hop, (first + 1) * hop)
                piece, following = decoder.score(units, speaker, forced[:, here], following)
                pieces.append(piece)
                piece, _ = decoder(units, speaker, uniforms[:, here], 1.0, behind)
                drawn.append(piece)
                # Each chunk begins after what was drawn in one shot, to be compared with it.
                _, behind = decoder.score(units, speaker, codes[:, here], behind)
    except (RuntimeError, AttributeError, ValueError, torch.jit.Error) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(f"{where}: cannot be run ({lines[-1]}).") from None
    yield Comparison(
        f"{DECODER}: logits against {GOLDEN}",
        difference(_array(logits[0, :LOGIT_STEPS]), golden.logits),
        TOLERANCE,
    )
    yield Comparison(
        f"{DECODER}: logits in chunks against one shot",
        difference(_array(torch.cat(pieces, 1)), _array(logits)),
        TOLERANCE,
    )
    inside = drawn_inside(_array(own[0]), _array(codes[0]), _array(uniforms[0]))
    note = f"of {samples}; {np.count_nonzero(abs(inside) <= DRAW_MARGIN)} of them on a border"
    yield Comparison(
        f"{DECODER}: draws that their logits do not give",
        float(np.count_nonzero(inside < -DRAW_MARGIN)),
        0,
        note,
    )
    # Where a draw may fall to either side, those after it follow another history.
    differs = _array((torch.cat(drawn, 1) != codes)[0]).reshape(-1, hop)
    firsts = differs.argmax(1) + hop * np.arange(len(differs))
    yield Comparison(
        f"{DECODER}: draws in chunks against one shot, differing",
        float(np.count_nonzero(differs.any(1) & (inside[firsts] > DRAW_MARGIN))),
        0,
        note,
    )


def network_of(config: ModelConfig, n_speakers: int, tensors: Tensors) -> Autoencoder:
    """The eager network with these tensors (names and shapes checked before)."""
    network = build_autoencoder(config, n_speakers)
    network.load_state_dict({name: _tensor(tensor) for name, tensor in tensors.items()})
    return network.eval().requires_grad_(False)


def _excerpts(signal: Floats, batch: int, samples: int) -> Floats:
    """[B, T]: the signal from several places, going on from its start where it ends."""
    return np.stack([np.resize(np.roll(signal, -5000 * lane), samples) for lane in range(batch)])


def _floats(data: bytes) -> Floats:
    return np.frombuffer(data[: len(data) // 4 * 4], np.float32)


def _tensor(array: npt.NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.array(array))


def _array(tensor: Tensor) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = tensor.numpy()
    return array
