"""The comparisons that need torch: the eager network, and a trusted decoder.ts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vconv.bundle import CONDITIONER, DECODER, ENCODER, GOLDEN, WEIGHTS, Bundle
from vconv.config import ModelConfig
from vconv.errors import ModelError
from vconv.geometry import Span
from vconv.nn.autoencoder import Autoencoder, build_autoencoder
from vconv.weights import Tensors

from .golden import LOGIT_STEPS, Floats, Golden, golden_plan
from .torchscript import load_decoder, stored_numbers, whole_decoder
from .verify import TOLERANCE, Comparison, decided, difference


def load_network(bundle: Bundle) -> Autoencoder:
    """The eager network with the bundle's weights, in evaluation mode."""
    return network_of(bundle.config, len(bundle.speakers), bundle.tensors)


def eager_comparisons(bundle: Bundle, golden: Golden) -> Iterator[Comparison]:
    """The network of weights.safetensors against golden, and the ONNX files against it at other
    lengths and batch sizes."""
    network = load_network(bundle)
    wavenet = network.decoder.wavenet
    plan, samples = golden_plan(bundle.geometry)
    with torch.inference_mode():
        features = network.features(_tensor(golden.signal)[None])
        encodings = network.bottleneck.latents(network.encoder(features))
        latents = _tensor(golden.latents[: plan.units]).T[None]
        channels = network.condition(latents, _tensor(golden.speaker)[None])
        previous = np.concatenate(([wavenet.silence], golden.forced[:-1].astype(np.int64)))
        inputs = _tensor(previous)[None]
        used = channels[:, plan.skip : plan.skip + plan.steps]
        logits, _ = wavenet(inputs, used, wavenet.initial_state(1))
        conditioning = wavenet.project(channels)
        state, pieces = wavenet.initial_state(1), []
        for frame in range(samples // wavenet.hop):
            block = inputs[:, frame * wavenet.hop : (frame + 1) * wavenet.hop]
            piece, state = wavenet(block, used[:, frame : frame + 2], state)
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
    yield from _onnx(bundle, golden, network)


def _onnx(bundle: Bundle, golden: Golden, network: Autoencoder) -> Iterator[Comparison]:
    encoder, conditioner = bundle.encoder(), bundle.conditioner()
    geometry = bundle.geometry
    codebook = bundle.tensors["bottleneck.codebook"]
    shortest = len(geometry.unit_inputs(Span(0, 1)))
    lengths = (shortest, shortest + geometry.unit_hop - 1, 2 * shortest, 3 * shortest + 7)
    fewest = geometry.plan(geometry.unit_hop).units - 1
    differing, latents_gap, conditioning_gap = 0, 0.0, 0.0
    for batch in (1, 2, 3):
        for samples in lengths:
            wav = _excerpts(golden.signal, batch, samples)
            encodings = network.bottleneck.latents(network.encoder(network.features(_tensor(wav))))
            wanted = _array(network.bottleneck.distances(encodings).argmin(2))
            codes, latents = encoder(wav)
            if codes.shape != wanted.shape:
                differing += wanted.size
                continue
            clear = decided(_array(encodings.transpose(1, 2)), codebook)
            differing += int(np.count_nonzero(clear & (codes != wanted)))
            latents_gap = max(latents_gap, difference(latents, codebook[codes]))
        speakers = bundle.speaker_vectors[np.arange(batch) % len(bundle.speakers)]
        for units in (fewest, fewest + 1, len(golden.latents)):
            z = np.stack([np.roll(golden.latents, lane, 0)[:units] for lane in range(batch)])
            channels = network.condition(_tensor(z).transpose(1, 2), _tensor(speakers))
            made = _array(network.decoder.wavenet.project(channels))
            conditioning_gap = max(conditioning_gap, difference(conditioner(z, speakers), made))
    note = f"batches of 1 to 3, {lengths[0]:,} to {lengths[-1]:,} samples"
    yield Comparison(f"{ENCODER}: codes against eager, differing", differing, 0, note)
    yield Comparison(f"{ENCODER}: latents against the codebook", latents_gap, TOLERANCE, note)
    note = f"batches of 1 to 3, {fewest} to {len(golden.latents)} units"
    yield Comparison(
        f"{CONDITIONER}: conditioning against eager", conditioning_gap, TOLERANCE, note
    )


def decoder_numbers(bundle: Bundle) -> Iterator[Comparison]:
    """The tensors inside decoder.ts against our own packing of the weights, without running it.

    They are compared with their equals in size, as 32-bit floats, whatever their order.
    """
    where = str(bundle.path / DECODER)
    own = whole_decoder(load_network(bundle)).save_to_buffer()
    theirs = [_floats(data) for data in stored_numbers(bundle.read(DECODER), where)]
    ours = [_floats(data) for data in stored_numbers(own, where)]
    worst = 0.0
    for wanted in ours:
        gaps = [difference(found, wanted) for found in theirs if found.shape == wanted.shape]
        worst = max(worst, min(gaps, default=math.inf))
    for found in theirs:
        gaps = [difference(found, wanted) for wanted in ours if found.shape == wanted.shape]
        worst = max(worst, min(gaps, default=math.inf))
    yield Comparison(
        f"{DECODER}: tensors against {WEIGHTS}, packed", worst, 1e-6, f"{len(ours)} tensors"
    )


def decoder_comparisons(bundle: Bundle, golden: Golden) -> Iterator[Comparison]:
    """Runs the bundle's decoder.ts: from units to logits against golden, chunked, and drawing."""
    bundle.read(DECODER)
    where = bundle.path / DECODER
    plan, samples = golden_plan(bundle.geometry)
    hop = bundle.geometry.unit_hop
    chunk = bundle.geometry.plan(hop).units
    latents = _tensor(golden.latents[None, : plan.units])
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
            following, drawing = start, start
            for first in range(samples // hop):
                units = latents[:, first : first + chunk]
                here = slice(first * hop, (first + 1) * hop)
                piece, following = decoder.score(units, speaker, forced[:, here], following)
                pieces.append(piece)
                piece, drawing = decoder(units, speaker, uniforms[:, here], 1.0, drawing)
                drawn.append(piece)
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
    yield Comparison(
        f"{DECODER}: draws in chunks against one shot, differing",
        float((torch.cat(drawn, 1) != codes).sum()),
        0,
        f"of {samples}",
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
