"""Hold every part of a bundle against golden.npz and the weights, by number.

Runs in the base install: numpy, onnxruntime and the compiled sampler. Where torch is installed the
eager network and the TorchScript engine are held against the same numbers too. ``decoder.ts`` is
executable code and is run only when its author is trusted.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from fnmatch import fnmatchcase

import numpy as np

from vconv.bundle import CONDITIONER, DECODER, ENCODER, GOLDEN, SPEAKERS, WEIGHTS, Bundle
from vconv.engine_choice import nats_lost
from vconv.engines import Engine, create_engine
from vconv.engines.base import MAX_COST
from vconv.errors import ModelError, SetupError
from vconv.geometry import FEATURES, FRAME_HOP, FRAMING, Geometry, Span
from vconv.golden import LOGIT_STEPS, Floats, Golden, golden_plan
from vconv.onnxfile import GraphTensor, graph_tensors
from vconv.weights import Tensors

from .comparison import (
    PITCH_TOLERANCE,
    TOLERANCE,
    Comparison,
    UnitGaps,
    Units,
    among,
    difference,
    nearest,
    pitch_gap,
    quantised,
    severity,
    worst,
)
from .definitions import fixed_numbers, pitch_of, scalar_levels
from .golden import forced_codes, golden_signal, joined

# What is fixed by definition, computed in float32 there and in float64 here.
FIXED_TOLERANCE = 1e-4
# Of golden's signal, which is no speech; what is offered costs less than MAX_COST of speech.
REDUCED_TOLERANCE = 10 * MAX_COST
_CHUNK_UNITS = 8
# Tensors of these parts that evaluation never reads.
_TRAINING_ONLY = ("ema_count", "ema_sum", "started", "num_batches_tracked")


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
    levels = scalar_levels(bundle.config.bottleneck.levels)
    if levels.keys() <= tensors.keys():
        gap = worst(*(difference(tensors[name], wanted) for name, wanted in levels.items()))
        yield Comparison(f"{WEIGHTS}: codebook against its formula", gap, FIXED_TOLERANCE)
    golden = Golden.from_bytes(bundle.read(GOLDEN), str(bundle.path / GOLDEN))
    _check_shapes(bundle, golden)
    yield from _golden_in_itself(bundle, golden)
    fixed = fixed_numbers(bundle.config)
    yield from _constants(bundle, ENCODER, ("features.*", "encoder.*", "bottleneck.*"), fixed)
    projections = "decoder.wavenet.layers.*.condition.*"
    projected = (projections,) if bundle.geometry.conditioning_hop > 1 else ()
    yield from _constants(bundle, CONDITIONER, ("decoder.conditioner.*", *projected), {})
    yield from _encoder(bundle, golden)
    yield from _conditioner(bundle, golden)
    yield from _engine(bundle, golden, "native")
    for precision in bundle.manifest.precisions:
        yield _reduced(bundle, golden, precision)
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


def _check_shapes(bundle: Bundle, golden: Golden) -> None:
    """Before anything is computed with them."""
    config, geometry = bundle.config, bundle.geometry
    decoder, audio = config.decoder, config.audio
    plan, samples = golden_plan(geometry)
    whole = Span(0, len(golden_signal(geometry)))
    units = len(geometry.encoder.outputs(whole))
    frames = len((FRAMING + FEATURES[config.features.kind]).outputs(whole))
    projections = decoder.blocks * decoder.layers * 2 * decoder.gate_channels
    projected = geometry.conditioning_hop > 1
    for name, shape in {
        "signal": (len(whole),),
        "features": (frames, config.features.channels),
        "encodings": (units, config.latents),
        "latents": (units, config.latents),
        "codes": (units,),
        "pitch": (units, config.conditions - config.latents),
        "speaker": (decoder.speaker_dim,),
        "conditioning": (plan.made, projections if projected else decoder.conditioning_channels),
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
    geometry = bundle.geometry
    yield Comparison(
        f"{GOLDEN}: signal against its formula",
        difference(golden.signal, golden_signal(geometry)),
        1e-6,
    )
    plan, samples = golden_plan(geometry)
    excerpt = slice(plan.left, plan.left + samples)
    forced = forced_codes(golden.signal, bundle.config.audio, excerpt)
    yield Comparison(
        f"{GOLDEN}: forced codes that are not the signal's",
        float(np.count_nonzero(golden.forced != forced)),
        0,
    )
    codes, decided = nearest(golden.encodings, bundle.codebook)
    yield Comparison(
        f"{GOLDEN}: codes that are not the nearest",
        float(np.count_nonzero(decided & (golden.codes != codes))),
        0,
        among(decided),
    )
    source = "encodings" if bundle.codebook is None else "codebook"
    yield Comparison(
        f"{GOLDEN}: latents against the {source}",
        difference(golden.latents, quantised(golden.encodings, golden.codes, bundle.codebook)),
        0,
    )
    if bundle.pitch_prior is not None:
        pitch, clear = pitch_of(golden.signal[None], geometry)
        yield Comparison(
            f"{GOLDEN}: pitch against its definition",
            pitch_gap(golden.pitch[None], pitch, clear),
            PITCH_TOLERANCE,
            f"of {np.count_nonzero(clear)} units; {np.count_nonzero(~clear)} more have two peaks",
        )
    yield Comparison(
        f"{GOLDEN}: speaker against {SPEAKERS}",
        float(np.abs(bundle.speaker_vectors - golden.speaker).max(1).min()),
        0,
    )


def _constants(
    bundle: Bundle, file: str, patterns: tuple[str, ...], fixed: Tensors
) -> Iterator[Comparison]:
    """Every number in an ONNX file is a weight under its name, or fixed by definition."""
    weights = _read_by(bundle.tensors, patterns)
    gaps: dict[str, float] = {}
    strange = []
    for tensor in graph_tensors(bundle.read(file), str(bundle.path / file)):
        wanted = weights.get(tensor.name, fixed.get(tensor.name))
        if wanted is not None:
            gap = difference(tensor.array, wanted)
            gaps[tensor.name] = worst(gap, gaps.get(tensor.name, 0.0))
        elif not _harmless(tensor):
            strange.append(tensor.name)
    missing = sorted((weights.keys() | fixed.keys()) - gaps.keys())
    for what, names, bound in (
        (f"weights against {WEIGHTS}", weights, 0.0),
        ("filters against their definition", fixed, FIXED_TOLERANCE),
    ):
        found = {name: gap for name, gap in gaps.items() if name in names}
        if found:
            at = max(found, key=lambda name: severity(found[name]))
            note = f"at {at}" if found[at] else f"{len(found)} tensors"
            yield Comparison(f"{file}: {what}", found[at], bound, note)
    yield Comparison(f"{file}: weights missing", len(missing), 0, ", ".join(missing[:3]))
    yield Comparison(f"{file}: numbers of unknown origin", len(strange), 0, ", ".join(strange[:3]))


def _read_by(tensors: Tensors, patterns: tuple[str, ...]) -> Tensors:
    """The tensors of these names that evaluation reads."""
    return {
        name: tensor
        for name, tensor in tensors.items()
        if any(fnmatchcase(name, pattern) for pattern in patterns)
        and not name.endswith(_TRAINING_ONLY)
    }


def _harmless(tensor: GraphTensor) -> bool:
    """A scalar, zeros (absent biases), or a short list of whole numbers (shapes and axes)."""
    whole = tensor.values.dtype.kind in "iub"
    return tensor.values.size <= (16 if whole else 1) or not tensor.values.any()


def _encoder(bundle: Bundle, golden: Golden) -> Iterator[Comparison]:
    encoder, signal = bundle.encoder(), golden.signal[None]
    _, decided = nearest(golden.encodings[None], bundle.codebook)
    clear = None if bundle.pitch_prior is None else pitch_of(signal, bundle.geometry)[1]
    whole = encoder(signal)
    spans = _spans(bundle.geometry, len(golden.codes))
    pieces = [encoder(signal[:, span.start : span.stop]) for span in spans]
    codes, latents, pitch = (np.concatenate(parts, 1) for parts in zip(*pieces, strict=True))
    both = encoder(np.stack([golden.signal[::-1], golden.signal]))
    for what, found, wanted in (
        ("against golden", whole, _batched(golden)),
        ("in chunks against one shot", (codes, latents, pitch), whole),
        ("in a batch against alone", (both[0][1:], both[1][1:], both[2][1:]), whole),
    ):
        gaps = UnitGaps()
        gaps.add(found, wanted, decided, clear)
        yield from gaps.comparisons(what)


def _spans(geometry: Geometry, units: int) -> list[Span]:
    return [
        geometry.unit_inputs(Span(first, min(first + _CHUNK_UNITS, units)))
        for first in range(0, units, _CHUNK_UNITS)
    ]


def _conditioner(bundle: Bundle, golden: Golden) -> Iterator[Comparison]:
    conditioner, geometry = bundle.conditioner(), bundle.geometry
    plan, _ = golden_plan(geometry)
    units = joined(golden.latents, golden.pitch, bundle.pitch_prior)[None]
    speaker = golden.speaker[None]
    found = conditioner(units[:, : plan.units], speaker)
    yield Comparison(
        f"{CONDITIONER}: conditioning against golden",
        difference(found[0], golden.conditioning),
        TOLERANCE,
    )
    whole = conditioner(units, speaker)[0]
    chunk = geometry.plan(geometry.unit_hop)
    steps = geometry.unit_hop // geometry.conditioning_hop
    gap = 0.0
    for first in range(units.shape[1] - chunk.units + 1):
        piece = conditioner(units[:, first : first + chunk.units], speaker)[0]
        used = slice(chunk.skip, chunk.skip + chunk.steps)
        start = first * steps
        wanted = whole[start + used.start : start + used.stop]
        gap = worst(gap, difference(piece[used], wanted))
    yield Comparison(f"{CONDITIONER}: in chunks against one shot", gap, TOLERANCE)


def _engine(bundle: Bundle, golden: Golden, name: str) -> Iterator[Comparison]:
    weights = bundle.weights("decoder.wavenet.")
    try:
        engine = create_engine(name, weights, **bundle.engine_options())
    except SetupError as error:
        yield Comparison(f"{name} engine", None, TOLERANCE, str(error))
        return
    yield from score_comparisons(bundle, golden, engine)


def _reduced(bundle: Bundle, golden: Golden, precision: str) -> Comparison:
    """What reduced weights lose of golden's distribution, as a mean over its steps: D(golden || its
    own), in nats a sample."""
    name = f"native engine, {precision}: nats a sample lost against golden"
    try:
        engine = create_engine(
            "native",
            bundle.weights("decoder.wavenet."),
            precision=precision,
            **bundle.engine_options(),
        )
    except SetupError as error:
        return Comparison(name, None, REDUCED_TOLERANCE, str(error))
    lost = nats_lost(golden.logits, forced_logits(bundle, golden, engine)[:LOGIT_STEPS])
    return Comparison(name, lost, REDUCED_TOLERANCE)


def forced_logits(bundle: Bundle, golden: Golden, engine: Engine) -> Floats:
    """What an engine makes of golden's conditioning and forced codes, in one shot [T', Q]."""
    plan, _ = golden_plan(bundle.geometry)
    conditioning = golden.conditioning[None, plan.skip : plan.skip + plan.steps]
    state = engine.initial_state(1)
    logits: Floats = engine.score(conditioning, golden.forced[None], state)[0][0]
    return logits


def score_comparisons(bundle: Bundle, golden: Golden, engine: Engine) -> Iterator[Comparison]:
    """Teacher-forced logits of an engine: against golden, and in chunks against one shot."""
    geometry = bundle.geometry
    plan, samples = golden_plan(geometry)
    conditioning = golden.conditioning[None, plan.skip : plan.skip + plan.steps]
    forced = golden.forced[None]
    whole = forced_logits(bundle, golden, engine)[None]
    yield Comparison(
        f"{engine.name} engine: logits against golden",
        difference(whole[0, :LOGIT_STEPS], golden.logits),
        TOLERANCE,
    )
    state, pieces = engine.initial_state(1), []
    for first in range(0, samples, FRAME_HOP):
        step = first // engine.hop
        steps = conditioning[:, step : step + geometry.conditioning_steps(FRAME_HOP)]
        logits, state = engine.score(steps, forced[:, first : first + FRAME_HOP], state)
        pieces.append(logits)
    yield Comparison(
        f"{engine.name} engine: in chunks against one shot",
        difference(np.concatenate(pieces, 1), whole),
        TOLERANCE,
    )


def _batched(golden: Golden) -> Units:
    return golden.codes[None], golden.latents[None], golden.pitch[None]
