"""Weights of 16 and 8 bits against their definitions in sampler.h, written once more in numpy, and
against themselves under other cuts of the same work.

Legend: B lanes, T samples, L layers, R residual, G gate, S skip and C conditioning channels.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vconv.bundle import Bundle
from vconv.engines.native import NativeEngine
from vconv.errors import ModelError, SetupError

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
PRECISIONS = ("bf16", "int8")
SIZES = ("levels", "residual", "gate", "skip", "blocks", "layers", "kernel_size", "hop", "channels")
SHAPES = {
    "narrow": (17, 5, 7, 9, 2, 3, 3, 10, 0),
    "odd": (33, 21, 13, 70, 1, 5, 2, 7, 0),
    "wide": (256, 64, 64, 128, 1, 6, 2, 160, 0),
    "one layer": (40, 24, 46, 30, 1, 1, 2, 160, 0),
    "one layer, every sample": (19, 9, 11, 37, 1, 1, 3, 1, 13),
    "every sample": (64, 21, 34, 24, 2, 4, 2, 1, 19),
}
"""Sizes in the order of SIZES."""


def weights_of(name: str, seed: int = 0) -> dict[str, Floats]:
    """Weights that keep every layer's signal near 1."""
    random = np.random.default_rng(seed)
    q, r, g, s, blocks, layers, k, hop, c = SHAPES[name]
    count = blocks * layers

    def normal(*size: int, scale: float = 1.0) -> Floats:
        return np.asarray(random.standard_normal(size) * scale / np.sqrt(size[-1]), np.float32)

    weights = {
        "embedding.weight": normal(q, r, scale=np.sqrt(r)),
        "skip.weight": normal(s, count * g, scale=4.0),
        "skip.bias": normal(s),
        "hidden.weight": normal(s, s, scale=2.0),
        "hidden.bias": normal(s),
        "logits.weight": normal(q, s, scale=3.0),
        "logits.bias": normal(q),
    }
    for layer in range(count):
        weights[f"layers.{layer}.dilated.weight"] = normal(2 * g, k * r)
        if layer < count - 1:
            weights[f"layers.{layer}.residual.weight"] = normal(r, g)
            weights[f"layers.{layer}.residual.bias"] = normal(r)
        if hop == 1:
            weights[f"layers.{layer}.condition.weight"] = normal(2 * g, c)
            weights[f"layers.{layer}.condition.bias"] = normal(2 * g)
    return weights


def engine_of(
    name: str, weights: dict[str, Floats], precision: str, cpu: str | None = None
) -> NativeEngine:
    _, _, _, _, blocks, layers, kernel_size, hop, _ = SHAPES[name]
    return NativeEngine(
        weights,
        blocks=blocks,
        layers=layers,
        kernel_size=kernel_size,
        hop=hop,
        cpu=cpu,
        precision=precision,
    )


def work_of(name: str, lanes: int, frames: int) -> tuple[Floats, Floats, npt.NDArray[np.uint8]]:
    """Conditioning, uniforms [B, T], codes [B, T]; a frame of hop 1 is a sample."""
    random = np.random.default_rng(1)
    q, _, g, _, blocks, layers, _, hop, c = SHAPES[name]
    steps, width = (frames, c) if hop == 1 else (frames + 1, blocks * layers * 2 * g)
    conditioning = random.standard_normal((lanes, steps, width)).astype(np.float32)
    uniforms = random.random((lanes, frames * hop), np.float32)
    return conditioning, uniforms, random.integers(0, q, uniforms.shape).astype(np.uint8)


def frames_of(name: str, samples: int) -> int:
    return max(2, samples // SHAPES[name][7])


def runnable() -> list[str]:
    """The code paths of this processor."""
    paths = []
    for cpu in ("generic", "avx2", "avx512", "avx512vnni"):
        try:
            engine_of("one layer", weights_of("one layer"), "fp32", cpu)
        except SetupError:
            continue
        paths.append(cpu)
    return paths


# ---- the definitions ----------------------------------------------------------------------------


def bfloat16(weight: Floats) -> Floats:
    """To nearest, ties to even, by halving the distance between two neighbours in float64."""
    mantissa, exponent = np.frexp(weight.astype(np.float64))
    return np.ldexp(np.rint(mantissa * 256), exponent - 8).astype(np.float32)


def eight_bits(weight: Floats) -> tuple[Doubles, Floats]:
    """Whole numbers [outputs, inputs] and the value of a step [outputs]."""
    step = (np.abs(weight).max(axis=1) / np.float32(127)).astype(np.float32)
    usable = np.where(step < np.finfo(np.float32).tiny, np.float32(np.inf), step)
    return np.clip(np.rint(weight / usable[:, None]), -127, 127).astype(np.float64), step


def seven_bits(x: Doubles) -> tuple[Doubles, Doubles]:
    """x [T, inputs] -> whole numbers less their zeros, and the value of a step [T, 1]."""
    low = np.minimum(x.min(axis=1, keepdims=True), 0)
    span = np.maximum(x.max(axis=1, keepdims=True), 0) - low
    span_or_one = np.where(span < 1e-36, 1.0, span)
    zero = np.floor(-low / span_or_one * 127 + 0.5)
    return np.clip(np.floor(x / span_or_one * 127 + zero + 0.5), 0, 127) - zero, span / 127


def product(x: Doubles, weight: Floats, precision: str) -> Doubles:
    """x [T, inputs], weight [outputs, inputs] -> [T, outputs]."""
    if precision == "int8":
        whole, step = eight_bits(weight)
        numbers, value = seven_bits(x)
        quantised: Doubles = (numbers @ whole.T) * value * step.astype(np.float64)
        return quantised
    plain: Doubles = x @ (bfloat16(weight) if precision == "bf16" else weight).astype(np.float64).T
    return plain


def reference(
    name: str,
    w: dict[str, Floats],
    precision: str,
    conditioning: Floats,
    codes: npt.NDArray[np.uint8],
) -> Doubles:
    """The logits [T, Q] of one lane, matrix by matrix as sampler.h has them: every tap, and every
    layer's share of the skip sum, is a product of its own."""
    q, r, g, _, blocks, layers, k, hop, _ = SHAPES[name]
    count, samples = blocks * layers, len(codes)
    at = np.arange(samples) / hop
    x = w["embedding.weight"][np.concatenate([[q // 2], codes[:-1]])].astype(np.float64)
    skip = np.tile(w["skip.bias"].astype(np.float64), (samples, 1))
    for layer in range(count):
        if hop == 1:
            h = product(
                conditioning.astype(np.float64), w[f"layers.{layer}.condition.weight"], precision
            )
            h = h + w[f"layers.{layer}.condition.bias"]
        else:
            columns = conditioning[:, layer * 2 * g : (layer + 1) * 2 * g].T
            h = np.stack([np.interp(at, np.arange(len(c)), c) for c in columns.astype(float)], 1)
        for tap in range(k):
            lag = (k - 1 - tap) * 2 ** (layer % layers)
            kernel = w[f"layers.{layer}.dilated.weight"][:, tap * r : (tap + 1) * r]
            h[lag:] += product(x, kernel, precision)[: max(samples - lag, 0)]
        z = np.tanh(h[:, :g]) / (1 + np.exp(-h[:, g:]))
        skip += product(z, w["skip.weight"][:, layer * g : (layer + 1) * g], precision)
        if layer < count - 1:
            x = x + w[f"layers.{layer}.residual.bias"]
            x = x + product(z, w[f"layers.{layer}.residual.weight"], precision)
    hidden = product(np.maximum(skip, 0), w["hidden.weight"], precision) + w["hidden.bias"]
    return product(np.maximum(hidden, 0), w["logits.weight"], precision) + w["logits.bias"]


@pytest.mark.parametrize("cpu", runnable())
@pytest.mark.parametrize("name", SHAPES)
def test_bf16_is_the_network_of_the_rounded_weights(name: str, cpu: str) -> None:
    weights = weights_of(name)
    conditioning, _, codes = work_of(name, 2, frames_of(name, 200))
    engine = engine_of(name, weights, "bf16", cpu)
    logits, _ = engine.score(conditioning, codes, engine.initial_state(2))
    for lane in range(2):
        truth = reference(name, weights, "bf16", conditioning[lane], codes[lane])
        np.testing.assert_allclose(logits[lane], truth, rtol=0, atol=1e-4)


@pytest.mark.parametrize("cpu", runnable())
@pytest.mark.parametrize("name", SHAPES)
def test_int8_is_the_network_of_whole_numbers(name: str, cpu: str) -> None:
    """Numbers that lie on the edge of two steps may fall to either side. In one layer that spoils
    single samples; in more it spreads, but stays far below what 8 bits cost."""
    weights = weights_of(name)
    conditioning, _, codes = work_of(name, 2, frames_of(name, 200))
    engine = engine_of(name, weights, "int8", cpu)
    logits, _ = engine.score(conditioning, codes, engine.initial_state(2))
    for lane in range(2):
        truth = reference(name, weights, "int8", conditioning[lane], codes[lane])
        plain = reference(name, weights, "fp32", conditioning[lane], codes[lane])
        error = np.abs(logits[lane] - truth).max(axis=1)
        cost = np.abs(truth - plain).max(axis=1)
        if SHAPES[name][4] * SHAPES[name][5] == 1:
            assert (error < 1e-4).mean() > 0.97
        assert error[0] < 1e-4
        assert np.median(error) < 0.1 * np.median(cost)
        assert error.max() < 1.5 * cost.max()


# ---- the same work, cut otherwise ---------------------------------------------------------------


@pytest.mark.parametrize("cpu", runnable())
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["narrow", "odd", "every sample"])
def test_chunks_and_lanes_give_the_bits_of_one_call(name: str, precision: str, cpu: str) -> None:
    lanes, frames, hop = 5, frames_of(name, 60), SHAPES[name][7]
    engine = engine_of(name, weights_of(name), precision, cpu)
    conditioning, uniforms, _ = work_of(name, lanes, frames)
    end = 0 if hop == 1 else 1
    whole, after = engine.generate(conditioning, uniforms, 1.0, engine.initial_state(lanes))
    state = engine.initial_state(lanes)
    for first, last in ((0, 1), (1, frames - 1), (frames - 1, frames)):
        samples = slice(first * hop, last * hop)
        part, state = engine.generate(
            conditioning[:, first : last + end], uniforms[:, samples], 1.0, state
        )
        np.testing.assert_array_equal(part, whole[:, samples])
    np.testing.assert_array_equal(state.memory, after.memory)
    for lane in range(lanes):
        one = slice(lane, lane + 1)
        alone, _ = engine.generate(conditioning[one], uniforms[one], 1.0, engine.initial_state(1))
        np.testing.assert_array_equal(alone, whole[one])


# ---- weights that no network should have --------------------------------------------------------


@pytest.mark.parametrize("cpu", runnable())
@pytest.mark.parametrize("precision", ["fp32", *PRECISIONS])
@pytest.mark.parametrize("factor", [0.0, 1e-45, 1e-39, 1e-30])
def test_weights_that_vanish_leave_the_biases(factor: float, precision: str, cpu: str) -> None:
    weights = weights_of("odd")
    weights["logits.weight"] = (weights["logits.weight"] * factor).astype(np.float32)
    engine = engine_of("odd", weights, precision, cpu)
    conditioning, _, codes = work_of("odd", 1, 3)
    logits, _ = engine.score(conditioning, codes, engine.initial_state(1))
    np.testing.assert_allclose(logits - weights["logits.bias"], 0, atol=1e-25)


@pytest.mark.parametrize("cpu", runnable())
@pytest.mark.parametrize("precision", ["fp32", *PRECISIONS])
@pytest.mark.parametrize(
    "tensor",
    ["layers.0.residual.weight", "layers.1.dilated.weight", "skip.weight", "logits.weight"],
)
def test_an_overflow_is_never_a_code(tensor: str, precision: str, cpu: str) -> None:
    weights = weights_of("odd")
    if tensor != "logits.weight":  # two in a row: numbers of 1e38 squared
        weights["embedding.weight"] = np.full_like(weights["embedding.weight"], 1e30)
    weights[tensor] = np.full_like(weights[tensor], 3e38)
    engine = engine_of("odd", weights, precision, cpu)
    conditioning, uniforms, _ = work_of("odd", 1, 3)
    with pytest.raises(ModelError, match="not finite"):
        engine.generate(conditioning, uniforms, 1.0, engine.initial_state(1))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(value: float, precision: str) -> None:
    weights = weights_of("narrow")
    weights["hidden.weight"][1, 2] = value
    with pytest.raises(ModelError, match=r"hidden\.weight holds 1 "):
        engine_of("narrow", weights, precision)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(SHAPES)),
    precision=st.sampled_from(["fp32", *PRECISIONS]),
    cpu=st.sampled_from(runnable()),
    at=st.integers(0, 10**6),
    value=st.floats(width=32),
    lanes=st.integers(1, 18),
)
def test_any_number_anywhere_is_refused_or_gives_codes_that_cuts_do_not_change(
    name: str, precision: str, cpu: str, at: int, value: float, lanes: int
) -> None:
    weights = weights_of(name)
    tensor = weights[sorted(weights)[at % len(weights)]]
    tensor.flat[at % tensor.size] = value
    if not np.isfinite(value):
        with pytest.raises(ModelError, match="holds 1 "):
            engine_of(name, weights, precision, cpu)
        return
    engine = engine_of(name, weights, precision, cpu)
    conditioning, uniforms, _ = work_of(name, lanes, 2)
    try:
        codes, _ = engine.generate(conditioning, uniforms, 1.0, engine.initial_state(lanes))
    except ModelError:  # an overflow
        return
    assert codes.max() < SHAPES[name][0]
    one = slice(at % lanes, at % lanes + 1)
    alone, _ = engine.generate(conditioning[one], uniforms[one], 1.0, engine.initial_state(1))
    np.testing.assert_array_equal(alone, codes[one])


# ---- a trained model ----------------------------------------------------------------------------


def bundled() -> tuple[dict[str, NativeEngine], Floats, Floats]:
    """Engines of the bundled model by precision; conditioning and uniforms of a second."""
    bundle = Bundle.find("demo")
    options = bundle.engine_options()
    weights = bundle.weights("decoder.wavenet.")
    engines = {p: NativeEngine(weights, precision=p, **options) for p in ("fp32", *PRECISIONS)}
    random = np.random.default_rng(5)
    width = engines["fp32"]._conditioning_width
    # slow conditioning of about the size that the conditioner gives
    conditioning = random.standard_normal((1, 101, width)).cumsum(axis=1) * 0.1
    uniforms = random.random((1, 100 * engines["fp32"].hop), np.float32)
    return engines, conditioning.astype(np.float32), uniforms


@pytest.mark.parametrize(("precision", "rms", "most"), [("bf16", 0.03, 0.5), ("int8", 0.2, 3.0)])
def test_reduced_logits_of_a_trained_model_stay_near(
    precision: str, rms: float, most: float
) -> None:
    """Under conditioning at random, wilder than the conditioner's."""
    engines, conditioning, uniforms = bundled()
    exact, other = engines["fp32"], engines[precision]
    codes, _ = exact.generate(conditioning, uniforms, 1.0, exact.initial_state(1))
    logits, _ = exact.score(conditioning, codes, exact.initial_state(1))
    reduced, _ = other.score(conditioning, codes, other.initial_state(1))
    error = np.abs(reduced - logits)
    assert np.sqrt((error**2).mean()) < rms
    assert error.max() < most
