"""Hold every part of a bundle against golden.npz and the weights, by number.

Runs in the base install: numpy, onnxruntime and the compiled sampler. Where torch is installed the
eager network and the TorchScript engine are held against the same numbers too. ``decoder.ts`` is
executable code and is run only when its author is trusted.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import numpy.typing as npt

from vconv.bundle import CONDITIONER, DECODER, ENCODER, GOLDEN, SPEAKERS, WEIGHTS, Bundle
from vconv.config import AudioConfig
from vconv.engines import Engine, create_engine
from vconv.errors import ModelError, SetupError
from vconv.geometry import FRAME_LENGTH, Geometry, Span
from vconv.onnxfile import GraphTensor, graph_tensors
from vconv.weights import FEATURE_CHANNELS, Tensors

from .golden import LOGIT_STEPS, Golden, forced_codes, golden_plan, golden_signal

TOLERANCE = 1e-4
# Two codes nearer to each other than this (in squared distance to the encoding) may change places
# when float32 sums are taken in another order.
CODE_MARGIN = 1e-2
# The encoder's DFT and mel filters, computed in float32 there and in float64 here.
FILTER_TOLERANCE = 1e-4
_CHUNK_UNITS = 8
# Tensors of these parts that evaluation never reads.
_TRAINING_ONLY = ("ema_count", "ema_sum", "started", "num_batches_tracked")

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Comparison:
    """One check: its figure must not exceed its bound. Without a figure it was not made, and
    the note says why."""

    name: str
    figure: float | None
    bound: float
    note: str = ""

    @property
    def passed(self) -> bool:
        return self.figure is None or self.figure <= self.bound  # NaN fails

    def __str__(self) -> str:
        note = f" ({self.note})" if self.note else ""
        if self.figure is None:
            return f"-     {self.name}: not compared{note}"
        verdict = "ok   " if self.passed else "FAIL "
        return f"{verdict} {self.name}: {self.figure:.3g} <= {self.bound:.3g}{note}"


def verify(path: str | os.PathLike[str], *, trust_code: bool = False) -> list[Comparison]:
    """Every comparison of a bundle, in order, whether it passed or not.

    Raises ModelError, naming the file, where files, hashes or formats are wrong already.
    ``trust_code`` also runs the bundle's decoder.ts: code of whoever wrote the bundle.
    """
    return list(comparisons(Bundle.open(path), trust_code=trust_code))


def comparisons(bundle: Bundle, *, trust_code: bool = False) -> Iterator[Comparison]:
    """The comparisons of ``verify``, as they are made."""
    yield Comparison("files with a wrong size or sha256", 0, 0, f"of {len(bundle.manifest.files)}")
    tensors = bundle.tensors
    yield Comparison(
        f"{WEIGHTS}: tensors missing, misshapen or not finite", 0, 0, f"of {len(tensors)}"
    )
    yield Comparison(
        f"{SPEAKERS}: vectors against {WEIGHTS}",
        difference(bundle.speaker_vectors, tensors["speakers.weight"]),
        0,
    )
    golden = Golden.from_bytes(bundle.read(GOLDEN), str(bundle.path / GOLDEN))
    _check_shapes(bundle, golden)
    yield from _golden_in_itself(bundle, golden)
    yield from _constants(bundle, ENCODER, ("features.*", "encoder.*", "bottleneck.*"))
    yield from _constants(
        bundle, CONDITIONER, ("decoder.conditioner.*", "decoder.wavenet.layers.*.condition.*")
    )
    yield from _encoder(bundle, golden)
    yield from _conditioner(bundle, golden)
    yield from _engine(bundle, golden, "native")
    if importlib.util.find_spec("torch") is None:
        yield Comparison("eager network, torchscript engine", None, TOLERANCE, "torch is missing")
        yield Comparison(DECODER, None, TOLERANCE, "torch is missing")
        return
    yield from _engine(bundle, golden, "torchscript")
    try:
        from .verify_torch import decoder_comparisons, decoder_numbers, eager_comparisons

        yield from eager_comparisons(bundle, golden)
        yield from decoder_numbers(bundle)
    except SetupError as error:
        yield Comparison(f"eager network, {DECODER}", None, TOLERANCE, str(error))
        return
    if trust_code:
        yield from decoder_comparisons(bundle, golden)
    else:
        yield Comparison(
            f"{DECODER}: run", None, TOLERANCE, "executable code, run only with --trust-code"
        )


def difference(found: Array, wanted: Array) -> float:
    """The greatest absolute difference; infinite where the shapes differ."""
    if found.shape != wanted.shape:
        return math.inf
    if found.size == 0:
        return 0.0
    return float(np.max(np.abs(found.astype(np.float64) - wanted.astype(np.float64))))


def decided(encodings: Array, codebook: Array) -> npt.NDArray[np.bool_]:
    """Where the nearest code wins by more than ``CODE_MARGIN``: encodings [..., D] -> [...]."""
    two = np.partition(_distances(encodings, codebook), 1, axis=-1)[..., :2]
    margin: npt.NDArray[np.bool_] = two[..., 1] - two[..., 0] > CODE_MARGIN
    return margin


def _distances(encodings: Array, codebook: Array) -> npt.NDArray[np.float64]:
    codes = codebook.astype(np.float64)
    distances: npt.NDArray[np.float64] = (codes**2).sum(1) - 2 * encodings.astype(
        np.float64
    ) @ codes.T
    return distances


def _check_shapes(bundle: Bundle, golden: Golden) -> None:
    """Before anything is computed with them."""
    config, geometry = bundle.config, bundle.geometry
    decoder, audio = config.decoder, config.audio
    plan, samples = golden_plan(geometry)
    length = len(golden_signal())
    units = len(geometry.encoder.outputs(Span(0, length)))
    frames = (length - FRAME_LENGTH) // (geometry.unit_hop // 2) + 1
    width = decoder.blocks * decoder.layers * 2 * decoder.gate_channels
    for name, shape in {
        "signal": (length,),
        "features": (frames, FEATURE_CHANNELS[config.features.kind]),
        "encodings": (units, config.bottleneck.dim),
        "latents": (units, config.bottleneck.dim),
        "codes": (units,),
        "speaker": (decoder.speaker_dim,),
        "conditioning": (plan.made, width),
        "forced": (samples,),
        "logits": (LOGIT_STEPS, audio.levels),
    }.items():
        found = getattr(golden, name)
        kind = np.dtype({"codes": np.int64, "forced": np.uint8}.get(name, np.float32))
        if found.shape != shape or found.dtype != kind or not np.isfinite(found).all():
            raise ModelError(
                f"{bundle.path / GOLDEN}: its array {name} is {found.dtype} {list(found.shape)} or "
                f"not finite; expected {kind} {list(shape)}."
            )


def _golden_in_itself(bundle: Bundle, golden: Golden) -> Iterator[Comparison]:
    codebook = bundle.tensors["bottleneck.codebook"]
    yield Comparison(
        f"{GOLDEN}: signal against its formula", difference(golden.signal, golden_signal()), 1e-6
    )
    plan, samples = golden_plan(bundle.geometry)
    forced = _forced(golden.signal, bundle.config.audio, plan.left, samples)
    yield Comparison(
        f"{GOLDEN}: forced codes that are not the signal's",
        float(np.count_nonzero(golden.forced != forced)),
        0,
    )
    nearest = _distances(golden.encodings, codebook).argmin(-1)
    clear = decided(golden.encodings, codebook)
    yield Comparison(
        f"{GOLDEN}: codes that are not the nearest",
        float(np.count_nonzero(clear & (golden.codes != nearest))),
        0,
        _among(clear),
    )
    in_range = np.clip(golden.codes, 0, len(codebook) - 1)
    yield Comparison(
        f"{GOLDEN}: latents against the codebook",
        difference(golden.latents, codebook[in_range]),
        0,
    )
    yield Comparison(
        f"{GOLDEN}: speaker against {SPEAKERS}",
        float(np.abs(bundle.speaker_vectors - golden.speaker).max(1).min()),
        0,
    )


def _forced(signal: Array, audio: AudioConfig, left: int, samples: int) -> Array:
    return forced_codes(signal, audio, slice(left, left + samples))


def _constants(bundle: Bundle, file: str, patterns: tuple[str, ...]) -> Iterator[Comparison]:
    """Every number in an ONNX file is a weight under its name, or follows from the code."""
    weights = _read_by(bundle.tensors, patterns)
    fixed = _fixed(bundle) if file == ENCODER else {}
    gaps: dict[str, float] = {}
    strange = []
    for tensor in graph_tensors(bundle.read(file), str(bundle.path / file)):
        wanted = weights.get(tensor.name, fixed.get(tensor.name))
        if wanted is not None:
            gap = difference(tensor.array, wanted)
            gaps[tensor.name] = max(gap, gaps.get(tensor.name, 0.0), key=_severity)
        elif not _harmless(tensor):
            strange.append(tensor.name)
    missing = sorted((weights.keys() | fixed.keys()) - gaps.keys())
    for what, names, bound in (
        (f"weights against {WEIGHTS}", weights, 0.0),
        ("filters against their definition", fixed, FILTER_TOLERANCE),
    ):
        found = {name: gap for name, gap in gaps.items() if name in names}
        if found:
            worst = max(found, key=lambda name: _severity(found[name]))
            note = f"at {worst}" if found[worst] else f"{len(found)} tensors"
            yield Comparison(f"{file}: {what}", found[worst], bound, note)
    yield Comparison(f"{file}: weights missing", len(missing), 0, ", ".join(missing[:3]))
    yield Comparison(f"{file}: numbers of unknown origin", len(strange), 0, ", ".join(strange[:3]))


def _severity(gap: float) -> float:
    return math.inf if math.isnan(gap) else gap


def _read_by(tensors: Tensors, patterns: tuple[str, ...]) -> Tensors:
    """The tensors of these names that evaluation reads."""
    return {
        name: tensor
        for name, tensor in tensors.items()
        if any(fnmatchcase(name, pattern) for pattern in patterns)
        and not name.endswith(_TRAINING_ONLY)
    }


def _fixed(bundle: Bundle) -> Tensors:
    """The features' DFT basis and mel filters, from their definition (docs/bundle-format.md)."""
    rate, fft = bundle.config.audio.sample_rate, 512
    time, bins = np.arange(FRAME_LENGTH), np.arange(fft // 2 + 1)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * time / FRAME_LENGTH)
    phase = 2 * np.pi * (bins[:, None] * time % fft) / fft
    basis = np.concatenate([np.cos(phase), np.sin(phase)]) * window
    bands = FEATURE_CHANNELS[bundle.config.features.kind]
    top = 2595 * math.log10(1 + rate / 2 / 700)  # the HTK mel scale
    edges = 700 * (10 ** (np.linspace(0, top, bands + 2) / 2595) - 1)
    hertz = bins * rate / fft
    low, centre, high = (edges[i : i + bands, None] for i in range(3))
    slopes = np.minimum((hertz - low) / (centre - low), (high - hertz) / (high - centre))
    return {"features.basis": basis[:, None], "features.filters": np.clip(slopes, 0, None)}


def _harmless(tensor: GraphTensor) -> bool:
    """A scalar, zeros (absent biases), or a short list of whole numbers (shapes and axes)."""
    whole = tensor.values.dtype.kind in "iub"
    return tensor.values.size <= (16 if whole else 1) or not tensor.values.any()


def _encoder(bundle: Bundle, golden: Golden) -> Iterator[Comparison]:
    encoder = bundle.encoder()
    clear = decided(golden.encodings, bundle.tensors["bottleneck.codebook"])
    codes, latents = encoder(golden.signal[None])
    if codes.shape != (1, len(clear)):
        yield Comparison(f"{ENCODER}: units it makes of the signal", math.inf, 0, str(codes.shape))
        return
    same = codes[0] == golden.codes
    yield Comparison(
        f"{ENCODER}: codes against golden, differing",
        float(np.count_nonzero(clear & ~same)),
        0,
        _among(clear),
    )
    yield Comparison(
        f"{ENCODER}: latents against golden, where the codes agree",
        difference(latents[0][same], golden.latents[same]),
        TOLERANCE,
    )
    pieces = [
        encoder(golden.signal[None, span.start : span.stop])[0][0]
        for span in _spans(bundle.geometry, len(golden.codes))
    ]
    yield Comparison(
        f"{ENCODER}: codes in chunks against one shot, differing",
        float(np.count_nonzero(clear & (np.concatenate(pieces) != codes[0]))),
        0,
    )
    both, _ = encoder(np.stack([golden.signal[::-1], golden.signal]))
    yield Comparison(
        f"{ENCODER}: codes in a batch against alone, differing",
        float(np.count_nonzero(clear & (both[1] != codes[0]))),
        0,
    )


def _spans(geometry: Geometry, units: int) -> list[Span]:
    return [
        geometry.unit_inputs(Span(first, min(first + _CHUNK_UNITS, units)))
        for first in range(0, units, _CHUNK_UNITS)
    ]


def _conditioner(bundle: Bundle, golden: Golden) -> Iterator[Comparison]:
    conditioner, geometry = bundle.conditioner(), bundle.geometry
    plan, _ = golden_plan(geometry)
    speaker = golden.speaker[None]
    found = conditioner(golden.latents[None, : plan.units], speaker)
    yield Comparison(
        f"{CONDITIONER}: conditioning against golden",
        difference(found[0], golden.conditioning),
        TOLERANCE,
    )
    whole = conditioner(golden.latents[None], speaker)[0]
    chunk = geometry.plan(geometry.unit_hop)
    steps = geometry.unit_hop // geometry.conditioning_hop
    worst = 0.0
    for first in range(0, len(golden.latents) - chunk.units + 1):
        piece = conditioner(golden.latents[None, first : first + chunk.units], speaker)[0]
        used = slice(chunk.skip, chunk.skip + chunk.steps)
        start = first * steps
        worst = max(worst, difference(piece[used], whole[start + used.start : start + used.stop]))
    yield Comparison(f"{CONDITIONER}: in chunks against one shot", worst, TOLERANCE)


def _engine(bundle: Bundle, golden: Golden, name: str) -> Iterator[Comparison]:
    weights = bundle.weights("decoder.wavenet.")
    try:
        engine = create_engine(name, weights, **bundle.engine_options())
    except SetupError as error:
        yield Comparison(f"{name} engine", None, TOLERANCE, str(error))
        return
    yield from score_comparisons(bundle, golden, engine)


def score_comparisons(bundle: Bundle, golden: Golden, engine: Engine) -> Iterator[Comparison]:
    """Teacher-forced logits of an engine: against golden, and in chunks against one shot."""
    plan, _ = golden_plan(bundle.geometry)
    conditioning = golden.conditioning[None, plan.skip : plan.skip + plan.steps]
    forced = golden.forced[None]
    whole, _ = engine.score(conditioning, forced, engine.initial_state(1))
    yield Comparison(
        f"{engine.name} engine: logits against golden",
        difference(whole[0, :LOGIT_STEPS], golden.logits),
        TOLERANCE,
    )
    state, pieces = engine.initial_state(1), []
    for frame in range(forced.shape[1] // engine.hop):
        codes = forced[:, frame * engine.hop : (frame + 1) * engine.hop]
        logits, state = engine.score(conditioning[:, frame : frame + 2], codes, state)
        pieces.append(logits)
    yield Comparison(
        f"{engine.name} engine: in chunks against one shot",
        difference(np.concatenate(pieces, 1), whole),
        TOLERANCE,
    )


def _among(clear: npt.NDArray[np.bool_]) -> str:
    return (
        f"of {np.count_nonzero(clear)} units; {np.count_nonzero(~clear)} more have two codes "
        f"within {CODE_MARGIN:g}"
    )
