"""The compiled sampler against independent truths: the equations in float64 over whole signals,
eager torch, and itself under other cuts of the same work.

Legend: B lanes, T samples, n frames, F conditioning steps, Q levels, R residual, G gate, S skip and
C conditioning channels, L layers, k taps.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest

from vconv.engines import Engine, create_engine
from vconv.engines.native import NativeEngine
from vconv.errors import ModelError, SetupError, UsageError
from vconv.native import load

# The install succeeds without a compiler, the tests do not: a sampler that fails to build must
# not pass as one that nobody wanted.
load()

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Shape:
    levels: int
    residual: int
    gate: int
    skip: int
    blocks: int
    layers: int
    kernel_size: int
    hop: int
    channels: int = 0  # C, with hop 1

    @property
    def count(self) -> int:
        return self.blocks * self.layers

    @property
    def width(self) -> int:
        """Of a conditioning step."""
        return self.channels if self.hop == 1 else self.count * 2 * self.gate

    def steps(self, frames: int) -> int:
        """F of that many frames; with hop 1 a frame is a sample."""
        return frames if self.hop == 1 else frames + 1

    def engine(self, weights: dict[str, Floats], cpu: str | None = None) -> NativeEngine:
        return NativeEngine(
            weights,
            blocks=self.blocks,
            layers=self.layers,
            kernel_size=self.kernel_size,
            hop=self.hop,
            cpu=cpu,
        )


SHAPES = {
    "demo": Shape(256, 32, 32, 96, 2, 8, 2, 160),
    "base": Shape(256, 64, 64, 128, 2, 10, 2, 160),
    "narrow": Shape(17, 5, 7, 9, 2, 3, 3, 10),
    "odd": Shape(33, 21, 13, 70, 1, 5, 2, 7),
    "four taps": Shape(300, 16, 24, 40, 2, 4, 4, 12),
    "one layer": Shape(8, 3, 2, 4, 1, 1, 2, 5),
    "every sample": Shape(64, 8, 8, 16, 1, 4, 3, 1, channels=6),
    "every sample, wide": Shape(40, 21, 34, 24, 2, 6, 2, 1, channels=19),
}
EVERY_SAMPLE = [name for name, shape in SHAPES.items() if shape.hop == 1]


def runnable() -> list[str]:
    """The code paths of this processor."""
    paths = []
    for cpu in ("generic", "avx2", "avx512"):
        try:
            SHAPES["one layer"].engine(random_weights(SHAPES["one layer"]), cpu)
        except SetupError:
            continue
        paths.append(cpu)
    return paths


def random_weights(shape: Shape, seed: int = 0) -> dict[str, Floats]:
    """Weights that keep every layer's signal near 1, so that errors anywhere would show."""
    random = np.random.default_rng(seed)

    def normal(*size: int, scale: float = 1.0) -> Floats:
        return np.asarray(random.standard_normal(size) * scale / np.sqrt(size[-1]), np.float32)

    q, r, g, s, k = shape.levels, shape.residual, shape.gate, shape.skip, shape.kernel_size
    weights = {
        "embedding.weight": normal(q, r, scale=np.sqrt(r)),
        "skip.weight": normal(s, shape.count * g, scale=4.0),
        "skip.bias": normal(s),
        "hidden.weight": normal(s, s, scale=2.0),
        "hidden.bias": normal(s),
        "logits.weight": normal(q, s, scale=3.0),
        "logits.bias": normal(q),
    }
    for layer in range(shape.count):
        weights[f"layers.{layer}.dilated.weight"] = normal(2 * g, k * r)
        if layer < shape.count - 1:
            weights[f"layers.{layer}.residual.weight"] = normal(r, g)
            weights[f"layers.{layer}.residual.bias"] = normal(r)
        if shape.hop == 1:
            weights[f"layers.{layer}.condition.weight"] = normal(2 * g, shape.channels)
            weights[f"layers.{layer}.condition.bias"] = normal(2 * g)
    return weights


def random_work(
    shape: Shape, lanes: int, frames: int, seed: int = 1
) -> tuple[Floats, Floats, npt.NDArray[np.int64]]:
    """Conditioning [B, F, L * 2G or C], uniforms [B, T], codes [B, T]."""
    random = np.random.default_rng(seed)
    size = lanes, shape.steps(frames), shape.width
    conditioning = random.standard_normal(size).astype(np.float32)
    uniforms = random.random((lanes, frames * shape.hop), np.float32)
    return conditioning, uniforms, random.integers(0, shape.levels, uniforms.shape)


def as_codes(
    shape: Shape, codes: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint8] | npt.NDArray[np.int16]:
    return codes.astype(np.uint8) if shape.levels <= 256 else codes.astype(np.int16)


def whole_signal_logits(
    shape: Shape, weights: dict[str, Floats], conditioning: Floats, codes: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """The equations over the whole of one lane at once, in float64: conditioning [F, L * 2G or C],
    codes [T] -> logits [T, Q]. Before the first sample all inputs are zero, the code is silence."""
    w = {name: tensor.astype(np.float64) for name, tensor in weights.items()}
    steps = len(codes)
    if shape.hop == 1:
        projections = [
            conditioning @ w[f"layers.{layer}.condition.weight"].T
            + w[f"layers.{layer}.condition.bias"]
            for layer in range(shape.count)
        ]
        upsampled = np.concatenate(projections, axis=1)
    else:
        at = np.arange(steps) / shape.hop
        frames = np.arange(len(conditioning))
        upsampled = np.stack([np.interp(at, frames, column) for column in conditioning.T], axis=1)
    x = w["embedding.weight"][np.concatenate([[shape.levels // 2], codes[:-1]])]
    gates = []
    for layer in range(shape.count):
        dilation = 2 ** (layer % shape.layers)
        hidden = upsampled[:, layer * 2 * shape.gate : (layer + 1) * 2 * shape.gate].copy()
        for tap in range(shape.kernel_size):
            kernel = w[f"layers.{layer}.dilated.weight"]
            kernel = kernel[:, tap * shape.residual : (tap + 1) * shape.residual]
            lag = (shape.kernel_size - 1 - tap) * dilation
            hidden[lag:] += x[: max(steps - lag, 0)] @ kernel.T
        z = np.tanh(hidden[:, : shape.gate]) / (1 + np.exp(-hidden[:, shape.gate :]))
        gates.append(z)
        if layer < shape.count - 1:
            x = x + z @ w[f"layers.{layer}.residual.weight"].T + w[f"layers.{layer}.residual.bias"]
    skip = np.concatenate(gates, axis=1) @ w["skip.weight"].T + w["skip.bias"]
    hidden = np.maximum(skip, 0) @ w["hidden.weight"].T + w["hidden.bias"]
    logits: npt.NDArray[np.float64] = (
        np.maximum(hidden, 0) @ w["logits.weight"].T + w["logits.bias"]
    )
    return logits


@pytest.mark.parametrize("cpu", runnable())
@pytest.mark.parametrize("name", SHAPES)
def test_forced_logits_are_the_equations(name: str, cpu: str) -> None:
    shape = SHAPES[name]
    lanes, frames = 3, max(3, 400 // shape.hop)
    weights = random_weights(shape)
    conditioning, _, codes = random_work(shape, lanes, frames)
    engine = shape.engine(weights, cpu)
    assert engine.cpu == cpu
    logits, _ = engine.score(conditioning, as_codes(shape, codes), engine.initial_state(lanes))
    for lane in range(lanes):
        truth = whole_signal_logits(shape, weights, conditioning[lane], codes[lane])
        assert truth.std() > 0.5  # or an engine that returned the biases would pass
        np.testing.assert_allclose(logits[lane], truth, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["demo", "base", "narrow", *EVERY_SAMPLE])
def test_forced_logits_are_those_of_eager_torch(name: str) -> None:
    torch = pytest.importorskip("torch")
    from vconv.nn.wavenet import WaveNet

    shape, lanes = SHAPES[name], 2
    frames, channels = max(3, 400 // shape.hop), shape.channels or 6
    torch.manual_seed(0)
    eager = WaveNet(
        levels=shape.levels,
        residual_channels=shape.residual,
        gate_channels=shape.gate,
        skip_channels=shape.skip,
        conditioning_channels=channels,
        blocks=shape.blocks,
        layers=shape.layers,
        kernel_size=shape.kernel_size,
        hop=shape.hop,
    )
    cond = torch.randn(lanes, shape.steps(frames), channels)
    codes = torch.randint(0, shape.levels, (lanes, frames * shape.hop))
    previous = torch.cat([torch.full((lanes, 1), eager.silence), codes[:, :-1]], dim=1)
    with torch.no_grad():
        given = (cond if shape.hop == 1 else eager.project(cond)).numpy()
        expected, _ = eager(previous, cond, eager.initial_state(lanes))
    weights = {name: tensor.numpy() for name, tensor in eager.state_dict().items()}
    engine = shape.engine(weights)
    logits, _ = engine.score(given, as_codes(shape, codes.numpy()), engine.initial_state(lanes))
    np.testing.assert_allclose(logits, expected.numpy(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("cpu", runnable())
@pytest.mark.parametrize("name", ["demo", "narrow", "four taps", *EVERY_SAMPLE])
def test_chunks_of_any_size_give_the_bits_of_one_call(name: str, cpu: str) -> None:
    shape, lanes = SHAPES[name], 2
    frames = 9 if shape.hop > 1 else 333
    engine = shape.engine(random_weights(shape), cpu)
    conditioning, uniforms, _ = random_work(shape, lanes, frames)
    whole, after = engine.generate(conditioning, uniforms, 1.0, engine.initial_state(lanes))
    logits, _ = engine.score(conditioning, whole, engine.initial_state(lanes))
    for chunks in ([1] * frames, [frames - 5, 1, 2, 2], [8, frames - 8]):
        state, scored = engine.initial_state(lanes), engine.initial_state(lanes)
        done = 0
        for size in chunks:
            samples = slice(done * shape.hop, (done + size) * shape.hop)
            span = conditioning[:, done : done + shape.steps(size)]
            codes, state = engine.generate(span, uniforms[:, samples], 1.0, state)
            np.testing.assert_array_equal(codes, whole[:, samples])
            chunk, scored = engine.score(span, codes, scored)
            np.testing.assert_array_equal(chunk, logits[:, samples])
            done += size
        np.testing.assert_array_equal(state.memory, after.memory)
        np.testing.assert_array_equal(scored.memory, after.memory)


@pytest.mark.parametrize("cpu", runnable())
@pytest.mark.parametrize("name", ["demo", "narrow", "four taps", *EVERY_SAMPLE])
@pytest.mark.parametrize("lanes", [2, 3, 8, 17])
def test_a_lane_has_the_bits_it_has_alone(name: str, lanes: int, cpu: str) -> None:
    shape = SHAPES[name]
    frames = 2 if shape.hop > 1 else 133
    engine = shape.engine(random_weights(shape), cpu)
    conditioning, uniforms, codes = random_work(shape, lanes, frames)
    together, _ = engine.generate(conditioning, uniforms, 0.9, engine.initial_state(lanes))
    logits, _ = engine.score(conditioning, as_codes(shape, codes), engine.initial_state(lanes))
    for lane in range(lanes):
        one = slice(lane, lane + 1)
        alone, _ = engine.generate(conditioning[one], uniforms[one], 0.9, engine.initial_state(1))
        np.testing.assert_array_equal(together[one], alone)
        forced = as_codes(shape, codes[one])
        alone_logits, _ = engine.score(conditioning[one], forced, engine.initial_state(1))
        np.testing.assert_array_equal(logits[one], alone_logits)


def test_a_state_is_not_changed_by_its_use() -> None:
    shape = SHAPES["narrow"]
    engine = shape.engine(random_weights(shape))
    conditioning, uniforms, _ = random_work(shape, 2, 4)
    start = engine.initial_state(2)
    first, _ = engine.generate(conditioning, uniforms, 1.0, start)
    again, _ = engine.generate(conditioning, uniforms, 1.0, start)
    np.testing.assert_array_equal(first, again)


def test_threads_share_an_engine_without_touching_each_other() -> None:
    shape = SHAPES["demo"]
    engine = shape.engine(random_weights(shape))
    works = [random_work(shape, 1, 10, seed)[:2] for seed in range(8)]

    def generate(work: tuple[Floats, Floats]) -> bytes:
        return engine.generate(*work, 1.0, engine.initial_state(1))[0].tobytes()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(generate, works)) == [generate(work) for work in works]


def drawing_engine(logits: Floats, hop: int) -> NativeEngine:
    """A network whose logits are these, whatever went before; hop > 1."""
    shape = Shape(len(logits), 1, 1, 1, 1, 1, 2, hop)
    weights = {name: np.zeros_like(w) for name, w in random_weights(shape).items()}
    return shape.engine(weights | {"logits.bias": logits})


def softmax(logits: npt.NDArray[np.float64], temperature: float) -> npt.NDArray[np.float64]:
    p = np.exp((logits - logits.max()) / temperature)
    normalised: npt.NDArray[np.float64] = p / p.sum()
    return normalised


@pytest.mark.parametrize("levels", [2, 17, 256, 300])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_a_draw_is_the_first_code_whose_cumulative_probability_exceeds_the_uniform(
    levels: int, temperature: float
) -> None:
    random = np.random.default_rng(levels)
    logits = (2 * random.standard_normal(levels)).astype(np.float32)
    uniforms = random.random((1, 5_000), np.float32)
    uniforms[0, :3] = 0.0, np.nextafter(np.float32(1), np.float32(0)), 1.0
    engine = drawing_engine(logits, uniforms.size)
    conditioning = np.zeros((1, 2, 2), np.float32)
    codes, _ = engine.generate(conditioning, uniforms, temperature, engine.initial_state(1))
    cumulative = np.cumsum(softmax(logits.astype(np.float64), temperature))
    u = uniforms.astype(np.float64)
    expected = np.minimum(np.searchsorted(cumulative, u, side="right"), levels - 1)
    near_a_step = np.abs(u[..., None] - cumulative).min(axis=-1) < 1e-6
    assert near_a_step[:, 3:].mean() < 1e-2
    np.testing.assert_array_equal(codes[~near_a_step], expected[~near_a_step])
    assert codes[0, 0] == 0
    assert codes[0, 2] == levels - 1


def test_frequencies_of_draws_are_the_softmax() -> None:
    random = np.random.default_rng(3)
    logits = random.standard_normal(40).astype(np.float32)
    uniforms = random.random((1, 100_000), np.float32)
    engine = drawing_engine(logits, uniforms.size)
    conditioning = np.zeros((1, 2, 2), np.float32)
    codes, _ = engine.generate(conditioning, uniforms, 0.8, engine.initial_state(1))
    counts = np.bincount(codes[0], minlength=40)
    expected = softmax(logits.astype(np.float64), 0.8) * uniforms.size
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert statistic < 72.1  # 99.9 % of chi-square with 39 degrees of freedom


def test_equal_weights_are_cut_at_the_smallest_code_beyond_the_uniform() -> None:
    engine = drawing_engine(np.zeros(4, np.float32), 4)
    uniforms = np.array([[0.0, 0.25, 0.5, 0.75]], np.float32)  # on the steps themselves
    codes, _ = engine.generate(
        np.zeros((1, 2, 2), np.float32), uniforms, 1.0, engine.initial_state(1)
    )
    assert codes.tolist() == [[0, 1, 2, 3]]


def test_temperature_zero_takes_the_first_of_the_highest_logits() -> None:
    shape = SHAPES["demo"]
    engine = shape.engine(random_weights(shape))
    conditioning, uniforms, _ = random_work(shape, 2, 2)
    codes, _ = engine.generate(conditioning, uniforms, 0.0, engine.initial_state(2))
    logits, _ = engine.score(conditioning, codes, engine.initial_state(2))
    np.testing.assert_array_equal(codes, logits.argmax(axis=2))
    tied = drawing_engine(np.array([0, 3, 1, 3], np.float32), 2)
    codes, _ = tied.generate(
        np.zeros((1, 2, 2), np.float32), np.zeros((1, 2), np.float32), 0.0, tied.initial_state(1)
    )
    assert codes.tolist() == [[1, 1]]


@pytest.mark.parametrize("temperature", [1e-30, 1e-45])
def test_a_tiny_temperature_draws_what_zero_takes(temperature: float) -> None:
    engine = drawing_engine(np.array([0.5, 2.0, 1.0], np.float32), 3)
    uniforms = np.array([[0.0, 0.5, 0.999]], np.float32)
    codes, _ = engine.generate(
        np.zeros((1, 2, 2), np.float32), uniforms, temperature, engine.initial_state(1)
    )
    assert codes.tolist() == [[1, 1, 1]]


@pytest.mark.parametrize("cpu", runnable())
def test_activations_are_those_of_libm(cpu: str) -> None:
    """A network that hands out z itself: skip = [z, -z], and logits = relu(z) - relu(-z)."""
    values = np.concatenate(
        [np.linspace(-100, 100, 4001), np.linspace(-4, 4, 4001), [0, 1e-7, -1e-7, 1e30, -1e30]]
    ).astype(np.float32)
    gate = 2
    shape = Shape(gate, 1, gate, 2 * gate, 1, 1, 2, 1, channels=2 * gate)
    eye = np.eye(gate, dtype=np.float32)
    both = np.concatenate([eye, -eye])
    weights = {name: np.zeros_like(w) for name, w in random_weights(shape).items()}
    weights |= {
        "skip.weight": both,
        "hidden.weight": np.eye(2 * gate, dtype=np.float32),
        "logits.weight": both.T.copy(),
        "layers.0.condition.weight": np.eye(2 * gate, dtype=np.float32),
    }
    engine = shape.engine(weights, cpu)
    # gate 0: tanh(v) with an open sigmoid; gate 1: sigmoid(v) with a full tanh
    open_ = np.full_like(values, 50)
    conditioning = np.stack([values, open_, open_, values], axis=1)[None]
    logits, _ = engine.score(
        conditioning, np.zeros((1, len(values)), np.uint8), engine.initial_state(1)
    )
    truth = values.astype(np.float64)
    np.testing.assert_allclose(logits[0, :, 0], np.tanh(truth), rtol=0, atol=3e-7)
    np.testing.assert_allclose(
        logits[0, :, 1], 1 / (1 + np.exp(-np.maximum(truth, -700))), rtol=0, atol=3e-7
    )


def test_the_start_is_silence() -> None:
    shape = SHAPES["narrow"]
    weights = random_weights(shape)
    conditioning, _, codes = random_work(shape, 1, 1)
    engine = shape.engine(weights)
    forced = as_codes(shape, codes)
    logits, _ = engine.score(conditioning, forced, engine.initial_state(1))
    for code in range(shape.levels):  # the first logits see only the code before the first sample
        moved = dict(weights)
        moved["embedding.weight"] = weights["embedding.weight"].copy()
        moved["embedding.weight"][code] += 1
        other = shape.engine(moved)
        changed, _ = other.score(conditioning, forced, other.initial_state(1))
        assert (changed[0, 0] != logits[0, 0]).any() == (code == shape.levels // 2)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "name", ["embedding.weight", "layers.1.dilated.weight", "layers.0.residual.bias", "logits.bias"]
)
def test_weights_that_are_not_finite_are_refused_by_name_and_count(name: str, value: float) -> None:
    shape = SHAPES["narrow"]
    weights = random_weights(shape)
    weights[name].flat[:3] = value
    with pytest.raises(ModelError, match=rf"{name} holds 3 "):
        shape.engine(weights)


def test_a_missing_tensor_is_named() -> None:
    shape = SHAPES["narrow"]
    weights = random_weights(shape)
    del weights["layers.2.residual.weight"]
    with pytest.raises(ModelError, match=r"lacks the tensor layers\.2\.residual\.weight"):
        shape.engine(weights)


@pytest.mark.parametrize("kind", ["weight", "bias"])
def test_with_hop_1_condition_tensors_are_missed_by_name(kind: str) -> None:
    shape = SHAPES["every sample"]
    weights = random_weights(shape)
    for layer in range(shape.count):
        lacking = {k: v for k, v in weights.items() if k != f"layers.{layer}.condition.{kind}"}
        with pytest.raises(
            ModelError, match=rf"lacks the tensor layers\.{layer}\.condition\.{kind}"
        ):
            shape.engine(lacking)


def test_with_hop_1_condition_tensors_that_do_not_fit_are_refused_by_name() -> None:
    shape = SHAPES["every sample"]
    weights = random_weights(shape)
    name = "layers.3.condition.weight"
    with pytest.raises(ModelError, match=rf"{name} has shape \[16, 5\].*needs \[16, 6\]"):
        shape.engine(weights | {name: weights[name][:, 1:]})
    with pytest.raises(ModelError, match=rf"{name} holds 96 NaN"):
        shape.engine(weights | {name: np.full_like(weights[name], np.nan)})


def test_an_unexpected_tensor_is_named_and_the_conditioners_are_not() -> None:
    shape = SHAPES["narrow"]
    weights = random_weights(shape) | {"layers.0.condition.bias": np.zeros(14, np.float32)}
    shape.engine(weights)
    with pytest.raises(ModelError, match=r"layers\.5\.residual\.bias is not one"):
        shape.engine(weights | {"layers.5.residual.bias": np.zeros(5, np.float32)})


@pytest.mark.parametrize("name", ["hidden.weight", "skip.weight", "layers.1.dilated.weight"])
def test_a_wrong_shape_is_named_with_both_shapes(name: str) -> None:
    shape = SHAPES["narrow"]
    weights = random_weights(shape)
    weights[name] = weights[name][:, :-1]
    with pytest.raises(ModelError, match=rf"{name} has shape \[.*needs \[") as refused:
        shape.engine(weights)
    assert str(list(weights[name].shape)) in str(refused.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["demo", "every sample"])
def test_conditioning_that_is_not_finite_is_noticed(name: str, value: float) -> None:
    shape, frames = SHAPES[name], 3
    engine = shape.engine(random_weights(shape))
    for step in range(frames):
        conditioning, uniforms, _ = random_work(shape, 1, frames)
        conditioning[0, step, 5] = value
        for temperature in (0.0, 1.0):
            with pytest.raises(ModelError, match="not finite"):
                engine.generate(conditioning, uniforms, temperature, engine.initial_state(1))
        codes = np.zeros(uniforms.shape, np.uint8)
        with pytest.raises(ModelError, match="not finite"):
            engine.score(conditioning, codes, engine.initial_state(1))


def test_an_unknown_code_path_is_a_setup_error() -> None:
    shape = SHAPES["one layer"]
    with pytest.raises(SetupError, match="quantum"):
        shape.engine(random_weights(shape), "quantum")


def test_engines_are_made_by_name() -> None:
    shape = SHAPES["one layer"]

    def create(name: str, device: str = "cpu") -> Engine:
        return create_engine(
            name,
            random_weights(shape),
            blocks=shape.blocks,
            layers=shape.layers,
            kernel_size=shape.kernel_size,
            hop=shape.hop,
            device=device,
        )

    assert create("native").name == create("auto").name == "native"
    with pytest.raises(UsageError, match="torchscript"):
        create("triton-9000")
    with pytest.raises(UsageError, match="CPU only"):
        create("native", "cuda")
