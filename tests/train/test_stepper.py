"""Steps that ask their device nothing: the same state, by the host's word, the device's, a graph's.

On a CPU a recording is stood in for by calling the step anew with the number of the step at which
it was recorded, so that what should be sent to the device and is not shows.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from tiny_training import parts, tiny_config
from vconv.config import Config
from vconv.nn.layers import Lookup
from vconv.train import stepper as steppers
from vconv.train.batches import TrainingBatches
from vconv.train.commit import Deferred
from vconv.train.health import Updates
from vconv.train.loop import fit
from vconv.train.state import TrainState, build_state
from vconv.train.step import start_bottleneck, train_step
from vconv.train.stepper import Recorder, Stepper
from voices import prepared

CPU = torch.device("cpu")
OPTIMIZERS = ("adamw", "muon")


@pytest.fixture(scope="session")
def corpus_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("voices"))


def tensors(state: TrainState) -> dict[str, torch.Tensor]:
    found = {f"model.{name}": t for name, t in state.model.state_dict().items()}
    found |= {f"average.{name}": t for name, t in state.average.state_dict().items()}
    for name, parameter in state.model.named_parameters():
        for slot, value in state.optimizer.state.get(parameter, {}).items():
            found[f"{name}/{slot}"] = value
    return {name: t.detach().clone() for name, t in found.items()}


def deferred(config: Config) -> tuple[TrainState, TrainingBatches]:
    state, batches = parts(config)
    state.deferred = Deferred(state.model, state.optimizer, config)
    return state, batches


def walk(
    state: TrainState,
    batches: TrainingBatches,
    config: Config,
    take: Callable[..., dict[str, torch.Tensor]],
    steps: int = 8,
) -> list[float]:
    losses = []
    while state.step < steps:
        start_bottleneck(state, batches, config, CPU)
        losses.append(float(take([batches.at(state.step)])["nll"]))
    return losses


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("member", ["vq", "vq_gradient", "vae", "fsq"])
def test_a_commit_that_the_device_decides_on_is_the_hosts(corpus_path, member, optimizer):
    config = tiny_config(corpus_path, member, optimizer=optimizer)
    steps = 5  # the codebook starts at the third
    host, batches = parts(config)
    expected = walk(host, batches, config, lambda made: train_step(host, made, config), steps)
    own, batches = deferred(config)
    found = walk(own, batches, config, lambda made: train_step(own, made, config), steps)
    own.settle()
    assert found == pytest.approx(expected, abs=1e-3)
    others = tensors(own)
    # The device's rate is a float32. A weight before a norm has a gradient of little but rounding,
    # which AdamW magnifies; less than a tenth of one step of it all the same.
    for name, tensor in tensors(host).items():
        atol = 3e-4 if "/" not in name else 1e-2 * float(tensor.abs().max())
        torch.testing.assert_close(others[name], tensor, rtol=1e-2, atol=atol, msg=name)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("member", ["vq", "vq_gradient"])
def test_after_a_gradient_that_is_not_finite_nothing_changes_until_the_host_looks(
    corpus_path, member, optimizer
):
    config = tiny_config(corpus_path, member, optimizer=optimizer)
    state, batches = deferred(config)
    walk(state, batches, config, lambda made: train_step(state, made, config), steps=5)
    state.settle()
    before = tensors(state)
    broken = batches.at(5)
    broken.wav[1] = float("nan")
    for made in (broken, batches.at(6), batches.at(7)):
        train_step(state, [made], config)
    after = tensors(state)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor), name
    with pytest.raises(FloatingPointError, match="the gradient at step 5 is nan"):
        state.settle()
    assert state.step == 5


class Stand:
    """In place of a graph: plays by calling, as of the step of the recording."""

    def __init__(self, state: TrainState) -> None:
        self.state = state
        self.recorded: list[int] = []

    def __call__(self, whole: Callable[[], None], stream: Any) -> Callable[[], None]:
        at = self.state.step
        self.recorded.append(at)

        def play() -> None:
            now, self.state.step = self.state.step, at
            whole()
            self.state.step = now

        return play


@pytest.mark.parametrize("member", ["vq", "vae", "fsq"])
def test_a_recorded_step_reads_all_that_differs_from_step_to_step(corpus_path, member, monkeypatch):
    config = tiny_config(corpus_path, member, optimizer="muon", steps=14)
    plain, batches = deferred(config)
    expected = walk(plain, batches, config, lambda made: train_step(plain, made, config), 14)
    state, batches = deferred(config)
    stand = Stand(state)
    monkeypatch.setattr(steppers, "record", stand)
    recorder = Recorder(state, config, CPU)
    found = walk(state, batches, config, recorder, 14)
    assert found == expected
    assert stand.recorded, "nothing was recorded"
    others = tensors(state)
    for name, tensor in tensors(plain).items():
        assert torch.equal(others[name], tensor), name


def test_a_codebook_that_starts_makes_the_recorder_record_anew(corpus_path, monkeypatch):
    config = tiny_config(corpus_path, steps=20)
    config = config.model_copy(update={"model": _warm(config, 6)})
    state, batches = deferred(config)
    stand = Stand(state)
    monkeypatch.setattr(steppers, "record", stand)
    recorder = Recorder(state, config, CPU)
    walk(state, batches, config, recorder, 12)
    assert stand.recorded == [3, 9]


def _warm(config: Config, steps: int) -> Any:
    bottleneck = config.model.bottleneck.model_copy(update={"warmup_steps": steps})
    return config.model.model_copy(update={"bottleneck": bottleneck})


def test_where_recording_fails_training_goes_on_with_one_warning(corpus_path, monkeypatch):
    config = tiny_config(corpus_path)
    plain, batches = deferred(config)
    expected = walk(plain, batches, config, lambda made: train_step(plain, made, config))

    def fail(whole: Callable[[], None], stream: Any) -> Callable[[], None]:
        # As in a capture: Python has run, the device has not.
        kept = tensors(state)
        whole()
        for name, tensor in state.model.state_dict().items():
            tensor.copy_(kept[f"model.{name}"])
        for name, tensor in state.average.state_dict().items():
            tensor.copy_(kept[f"average.{name}"])
        for name, parameter in state.model.named_parameters():
            for slot, value in state.optimizer.state.get(parameter, {}).items():
                value.copy_(kept[f"{name}/{slot}"])
        raise RuntimeError("operation not permitted when stream is capturing")

    state, batches = deferred(config)
    monkeypatch.setattr(steppers, "record", fail)
    recorder = Recorder(state, config, CPU)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = walk(state, batches, config, recorder)
    assert found == expected
    assert len(said) == 1
    assert "not permitted when stream is capturing" in str(said[0].message)


def test_a_table_looked_up_for_a_gpu_has_torchs_gradient():
    table = torch.randn(7, 5, requires_grad=True)
    indices = torch.randint(7, (3, 11))
    seed = torch.randn(3, 11, 5)
    found = Lookup.apply(table, indices)
    assert torch.equal(found, functional.embedding(indices, table))
    (own,) = torch.autograd.grad(found, table, seed)
    (expected,) = torch.autograd.grad(functional.embedding(indices, table), table, seed)
    torch.testing.assert_close(own, expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # what the compiler imports and meets warns
def test_what_is_compiled_is_whole_and_compiled_once(corpus_path):
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    config = tiny_config(corpus_path)
    state, batches = parts(config)
    # The compiler's front end alone decides on breaks; no code is generated.
    compile_ = torch.compile
    state.model.encoder.compile(fullgraph=True, dynamic=False, backend="aot_eager")
    state.nll = compile_(state.nll, fullgraph=True, dynamic=False, backend="aot_eager")
    walk(state, batches, config, lambda made: train_step(state, made, config))
    assert counters["stats"]["unique_graphs"] == 2
    assert not counters["graph_break"]


# On a GPU


def gpu_config(corpus: Path, **train: object) -> Config:
    return tiny_config(corpus, **{"device": "cuda", "decode_batch": None, "steps": 24} | train)


def on_gpu(config: Config) -> tuple[TrainState, TrainingBatches]:
    _, batches = parts(config)
    return build_state(config, batches.excerpts.corpus, torch.device("cuda")), batches


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_compiled_and_recorded_steps_follow_the_eager_ones(corpus_path, precision, optimizer):
    device, traces = torch.device("cuda"), []
    for final in (False, True):
        config = gpu_config(corpus_path, precision=precision, optimizer=optimizer, cuda_graph=final)
        state, batches = on_gpu(config)
        if final:
            state.compile()
        stepper = Stepper(state, config, device)
        losses = []
        for step in range(20):
            start_bottleneck(state, batches, config, device)
            losses.append(stepper([batches.at(step).pin_memory()])["nll"])
        state.settle()
        if final:
            assert stepper._recorder is not None
            assert stepper._recorder._play is not None, "no graph was recorded"
        traces.append([float(loss) for loss in losses])
    assert traces[1] == pytest.approx(traces[0], abs=0.02 if precision == "fp32" else 0.1)


@pytest.mark.gpu
@pytest.mark.parametrize("graph", [False, True])
def test_a_step_on_a_gpu_makes_the_host_wait_for_nothing(corpus_path, graph):
    device = torch.device("cuda")
    config = gpu_config(corpus_path, cuda_graph=graph)
    state, batches = on_gpu(config)
    stepper = Stepper(state, config, device)
    made = [batches.at(step).pin_memory() for step in range(16)]
    for step in range(10):  # codebook, moments, recording
        start_bottleneck(state, batches, config, device)
        stepper([made[step]])
    try:
        torch.cuda.set_sync_debug_mode("error")
        for step in range(10, 16):
            stepper.wait()
            start_bottleneck(state, batches, config, device)
            stepper([made[step]])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    state.settle()
    assert state.step == 16


@pytest.mark.gpu
@pytest.mark.parametrize("graph", [False, True])
def test_a_gpu_stops_at_the_step_whose_gradient_is_not_finite(corpus_path, graph):
    device = torch.device("cuda")
    config = gpu_config(corpus_path, cuda_graph=graph)
    state, batches = on_gpu(config)
    stepper = Stepper(state, config, device)
    for step in range(10):
        start_bottleneck(state, batches, config, device)
        stepper([batches.at(step).pin_memory()])
    before = tensors(state)
    broken = batches.at(10)
    broken.wav[0] = float("nan")
    for made in (broken, batches.at(11)):
        stepper([made.pin_memory()])
    after = tensors(state)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    with pytest.raises(FloatingPointError, match="at step 10 is nan"):
        state.settle()
    assert state.step == 10


@pytest.mark.gpu
def test_a_gpu_logs_its_peak_of_memory(corpus_path):
    config = gpu_config(corpus_path, steps=2, log_every=1)
    state, batches = on_gpu(config)
    found: list[dict[str, float]] = []
    device = torch.device("cuda")
    fit(state, batches, None, config, device, observe=lambda p: not found.append(p.figures))
    assert 0 < found[-1]["peak_memory_gb"] < 100


def test_figures_of_a_recorded_step_are_its_own(corpus_path, monkeypatch):
    """Not the place that the next step writes to; with how far each part moved."""
    config = tiny_config(corpus_path, steps=8)
    state, batches = deferred(config)
    monkeypatch.setattr(steppers, "record", Stand(state))
    recorder = Recorder(state, config, CPU)
    walk(state, batches, config, recorder, 7)
    updates = Updates(state.model)
    figures = recorder([batches.at(7)], updates)
    assert 0 < updates.figures["update_wavenet"] < 1
    assert all(value is not recorder._figures[name] for name, value in figures.items())
