"""Several processes: the same step whoever computes it, and an orderly end whoever ends it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tiny_model import MEMBERS
from tiny_training import parts, tiny_config
from vconv.cli_training import train as train_verb
from vconv.config import Config, dump_yaml
from vconv.errors import UsageError
from vconv.train import checkpoint as checkpoints
from vconv.train import run as runs
from vconv.train.launch import microbatches
from vconv.train.metrics import read_metrics
from vconv.train.objective import backward
from vconv.train.step import train_step
from vconv.train.world import World
from voices import prepared

TENSORS = ("model.safetensors", "average.safetensors", "optimizer.safetensors")
CLOCK = {"samples_per_second", "times_real_time", "data_wait"}
slow = pytest.mark.slow


@pytest.fixture(scope="session")
def corpus_path(tmp_path_factory) -> Path:
    return prepared(tmp_path_factory.mktemp("voices"))


def make_config(corpus: Path, member: str = "vq", **train: object) -> Config:
    """Accumulation too."""
    return tiny_config(corpus, member, **{"batch": 8, "microbatches": 4, "threads": 0} | train)


@pytest.fixture
def configure(corpus_path, tmp_path, monkeypatch) -> Callable[..., Config]:
    """Writes config.yaml into the working directory, a new one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")

    def write(**train: object) -> Config:
        config = make_config(corpus_path, **train)
        Path("config.yaml").write_text(dump_yaml(config), "utf-8")
        return config

    return write


# One process: what a microbatch is


def test_the_microbatches_of_all_processes_are_the_batch_in_its_order(corpus_path):
    _, batches = parts(make_config(corpus_path))
    whole = batches.at(5)
    for size in (1, 2, 4):
        shared = [k for rank in range(size) for k in World(rank, size).share(4)]
        assert shared == [0, 1, 2, 3]
        for name in ("wav", "codes", "speakers", "jitter"):
            rows = [getattr(batches.at(5, k, 4), name) for k in shared]
            assert torch.equal(torch.cat(rows), getattr(whole, name))


def test_a_step_takes_the_mean_of_its_microbatches_gradients_and_statistics(corpus_path):
    """Against each microbatch by itself, in a fresh network."""
    config = make_config(corpus_path, microbatches=2, clip=1e9, learning_rate=1.0)
    gradients: list[dict[str, torch.Tensor]] = []
    running: list[dict[str, torch.Tensor]] = []
    for part in range(2):
        state, batches = parts(config)
        plan = batches.excerpts.steps
        backward(
            state.model, batches.at(0, part, 2), window=640, steps=plan, decode_batch=None, step=0
        )
        named = state.model.named_parameters()
        gradients.append({name: p.grad.clone() for name, p in named if p.grad is not None})
        buffers = state.model.named_buffers()
        running.append({name: b.clone() for name, b in buffers if "running" in name})

    state, batches = parts(config)
    seen: dict[str, torch.Tensor] = {}
    step = state.optimizer.step

    def note() -> None:
        named = state.model.named_parameters()
        seen.update({name: p.grad.clone() for name, p in named if p.grad is not None})
        step()

    state.optimizer.step = note  # type: ignore[method-assign,assignment]
    train_step(state, [batches.at(0, k, 2) for k in range(2)], config)
    assert seen.keys() == gradients[0].keys()
    for name, gradient in seen.items():
        expected = (gradients[0][name] + gradients[1][name]) / 2
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-8, msg=name)
    own = dict(state.model.named_buffers())
    for name, first in running[0].items():
        torch.testing.assert_close(own[name], (first + running[1][name]) / 2, msg=name)
    assert {int(b) for name, b in own.items() if name.endswith("num_batches_tracked")} == {1}


def test_a_gradient_that_is_not_finite_leaves_everything_as_it_was(corpus_path):
    config = make_config(corpus_path)
    state, batches = parts(config)
    before = {name: t.clone() for name, t in state.model.state_dict().items()}
    broken = batches.at(0)
    broken.wav[3] = float("nan")
    with pytest.raises(FloatingPointError):
        train_step(state, [broken], config)
    assert all(torch.equal(t, before[name]) for name, t in state.model.state_dict().items())
    assert state.step == 0


def test_microbatches_are_one_a_process_unless_told_and_must_be_shared_evenly():
    assert microbatches(None, 8, 1) == 1
    assert microbatches(None, 8, 4) == 4
    assert microbatches(4, 8, 2) == 4
    with pytest.raises(UsageError, match="one of 1, 2, 4 processes"):
        microbatches(4, 8, 8)
    with pytest.raises(UsageError, match="multiple of the number of processes, 3"):
        microbatches(None, 8, 3)


def test_accumulation_may_not_change_when_a_run_goes_on(configure):
    configure(steps=2, validate_every=2)
    assert runs.train_command(Path("config.yaml")) == 0
    # Unset it is what the run began with.
    more = ["train.steps=3", "train.microbatches=null"]
    assert runs.train_command(Path("config.yaml"), overrides=more) == 0
    with pytest.raises(UsageError, match=r"train\.microbatches was 4"):
        runs.train_command(Path("config.yaml"), overrides=["train.microbatches=2"])


# Several processes


def start(processes: int, *options: str) -> subprocess.Popen[str]:
    """A real `vconv train` of the working directory."""
    command = [sys.executable, "-m", "vconv", "train", "config.yaml", "--nproc", str(processes)]
    return subprocess.Popen(
        [*command, *options], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    try:
        said = process.communicate(timeout=300)[1]
    finally:
        process.kill()
    assert process.returncode == code, said
    return said


def outcome(run: str) -> tuple[str, list[bytes], list[dict[str, Any]]]:
    """The newest checkpoint's name and tensors, and the log without the clock's figures."""
    found, damaged = checkpoints.newest(Path("runs", run, "checkpoints"))
    assert found is not None
    assert not damaged
    rows = read_metrics(Path("runs", run, "metrics.jsonl"))
    return (
        found.path.name,
        [(found.path / name).read_bytes() for name in TENSORS],
        [{key: row[key] for key in sorted(row.keys() - CLOCK)} for row in rows],
    )


def lines(run: str) -> int:
    try:
        return Path("runs", run, "metrics.jsonl").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def wait_for_steps(run: str, count: int, process: subprocess.Popen[str]) -> None:
    limit = time.monotonic() + 120
    while lines(run) < count:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < limit, "nothing happened for two minutes"
        time.sleep(0.01)


def test_a_run_goes_on_with_another_number_of_processes_to_the_same_bits(configure):
    """Two processes through the codebook's start, then one; against one all the way."""
    configure(elastic_exact=True)
    said = finish(start(2, "--run", "elastic", "--set", "train.steps=4"))
    assert "starting runs/elastic" in said
    assert runs.train_command(Path("config.yaml"), run="elastic") == 0
    assert runs.train_command(Path("config.yaml"), run="whole") == 0
    assert outcome("elastic") == outcome("whole")


@slow
@pytest.mark.parametrize("member", MEMBERS)
def test_one_two_and_four_processes_end_in_the_same_bits(configure, member):
    configure(member=member, elastic_exact=True)
    for processes in (1, 2, 4):
        finish(start(processes, "--run", f"of-{processes}"))
    assert outcome("of-1") == outcome("of-2") == outcome("of-4")


@slow
def test_without_elastic_exact_processes_differ_by_rounding_only(configure):
    """Of an autoencoder without codes: one code that falls otherwise changes all that follows."""
    configure(member="ae")
    for processes in (1, 2, 4):
        finish(start(processes, "--run", f"of-{processes}"))
    (_, _, one), *others = (outcome(f"of-{n}") for n in (1, 2, 4))
    for _, _, several in others:
        assert [row["step"] for row in several] == [row["step"] for row in one]
        for row, expected in zip(several, one, strict=True):
            assert row["nll"] == pytest.approx(expected["nll"], abs=1e-4)
            assert row["gradient_norm"] == pytest.approx(expected["gradient_norm"], rel=1e-2)


def test_several_processes_stop_together_and_die_with_their_launcher(configure):
    """SIGTERM to the launcher, then SIGKILL."""
    configure(elastic_exact=True)
    stopped = start(2, "--run", "test")
    wait_for_steps("test", 3, stopped)
    stopped.send_signal(signal.SIGTERM)
    said = finish(stopped, 143)
    assert said.count("run the same command again to go on") == 1
    reached = checkpoints.newest(Path("runs/test/checkpoints"))[0]
    assert reached is not None
    assert reached.step == lines("test")

    killed = start(2, "--run", "test", "--set", "train.steps=100000")
    wait_for_steps("test", reached.step + 2, killed)
    ranks = children(killed.pid)
    assert len(ranks) == 2
    killed.kill()
    killed.communicate()
    assert gone(ranks, seconds=5)
    # They hold the run no longer, and it ends as if nothing had been.
    last = checkpoints.newest(Path("runs/test/checkpoints"))[0]
    assert last is not None
    more = [f"train.steps={last.step + 3}"]
    assert runs.train_command(Path("config.yaml"), run="test", overrides=more) == 0
    assert runs.train_command(Path("config.yaml"), run="whole", overrides=more) == 0
    assert outcome("test")[1] == outcome("whole")[1]


@slow
def test_ranks_of_torchrun_do_not_outlive_it(configure):
    configure(steps=100_000, validate_every=100_000)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    launcher = subprocess.Popen(
        [*torchrun, "-m", "vconv.train", "config.yaml"],
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for_steps("test", 3, launcher)  # type: ignore[arg-type]
        ranks = children(launcher.pid)
        assert len(ranks) == 2
    finally:
        launcher.kill()
        launcher.wait()
    assert gone(ranks, seconds=5)


@slow
def test_torchrun_starts_a_group_that_failed_again_and_it_goes_on(configure):
    configure(steps=12, elastic_exact=True)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    launcher = subprocess.Popen(
        [*torchrun, "--max-restarts", "1", "-m", "vconv.train", "config.yaml"],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_steps("test", 3, launcher)
    os.kill(children(launcher.pid)[-1], signal.SIGKILL)
    assert "resuming runs/test at step" in finish(launcher)
    assert runs.train_command(Path("config.yaml"), run="whole") == 0
    assert outcome("test") == outcome("whole")


@slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_is_killed_takes_the_others_with_it(configure, rank):
    configure(steps=100_000, validate_every=100_000)
    launcher = start(2)
    wait_for_steps("test", 3, launcher)
    ranks = children(launcher.pid)
    victim = next(pid for pid in ranks if f"RANK={rank}" in environment(pid))
    os.kill(victim, signal.SIGKILL)
    said = finish(launcher, 137)
    assert f"process {rank} of 2 was killed by signal 9" in said
    assert gone(ranks, seconds=1)


def children(parent: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == parent and fields[0] != "Z":
                found.append(int(entry.name))
    return sorted(found)


def environment(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/environ").read_text().split("\0")


def gone(pids: list[int], *, seconds: float) -> bool:
    limit = time.monotonic() + seconds
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        if time.monotonic() > limit:
            return False
        time.sleep(0.02)
    return True


PROBE = """
import json, os, sys, torch
from vconv.errors import SetupError
from vconv.train.world import join

found = {}
for exact in (False, True):
    # A place of its own for each meeting: one process may come to the second while the other still
    # leaves the first, and would wait for it there.
    os.environ["MASTER_PORT"] = sys.argv[1 + exact]
    with join(torch.device("cpu"), exact=exact) as world:
        torch.manual_seed(0)
        rows = torch.randn(4, 1000)
        own = [rows[k] for k in world.share(4)]
        found[f"mean {exact}"] = world.mean(own, 4).tolist()
        found["gather"] = world.gather(torch.tensor([[world.rank, 7]])).tolist()
        mine = torch.full((2,), float(world.rank))
        world.broadcast([mine])
        found["broadcast"] = mine.tolist()
        found["tell"] = world.tell({"rank": world.rank})
        found["largest"] = world.largest(15 if world.rank else 0)
        world.insist([torch.ones(3), mine], 1)
        try:
            world.insist([torch.ones(3), torch.tensor([0.0, 1e-30 * world.rank])], 9)
        except SetupError as error:
            found["insist"] = str(error)
print(json.dumps(found))
"""


def test_what_the_processes_exchange(tmp_path, monkeypatch):
    """Two of them; the mean also against an exact sum."""
    from vconv.train import launch

    probe = Path(tmp_path, "probe.py")
    probe.write_text(PROBE)
    ports = [str(launch._free_port()) for _ in range(2)]
    place = {"MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2"}
    both = [
        subprocess.Popen(
            [sys.executable, str(probe), *ports],
            env=os.environ | place | {"RANK": str(rank), "CUDA_VISIBLE_DEVICES": ""},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    first, second = (json.loads(process.communicate(timeout=120)[0]) for process in both)
    assert first == second
    assert first["gather"] == [[0, 7], [1, 7]]
    assert first["broadcast"] == [0.0, 0.0]
    assert first["tell"] == {"rank": 0}
    assert first["largest"] == 15
    assert "weights differ at step 9" in first["insist"]
    torch.manual_seed(0)
    rows = torch.randn(4, 1000)
    alone = World().mean(rows, 4)
    assert first["mean True"] == alone.tolist()
    exact = rows.double().mean(0).numpy()
    np.testing.assert_allclose(first["mean False"], exact, atol=1e-6)
    assert first["mean False"] != first["mean True"], "the orders do not differ: no test"


# Refusals


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"nproc": 3}, "one of 1, 2, 4 processes"),
        ({"nproc": 8}, "one of 1, 2, 4 processes"),
    ],
)
def test_processes_that_cannot_share_the_batch_are_refused_before_they_start(
    configure, options, sentence
):
    configure()
    with pytest.raises(UsageError, match=sentence):
        train_verb(Path("config.yaml"), **options)
    assert not Path("runs").exists()


def test_torchrun_and_nproc_together_are_refused(configure, monkeypatch):
    configure()
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UsageError, match="torchrun has started them already"):
        train_verb(Path("config.yaml"), nproc=2)


# Options that change how, not what


@slow
@pytest.mark.filterwarnings("ignore")  # what the compiler imports and meets warns
def test_compiled_parts_compute_what_they_did(corpus_path):
    losses = []
    for compiled in (False, True):
        config = make_config(corpus_path, microbatches=1)
        state, batches = parts(config)
        if compiled:
            state.compile()
        losses.append([float(train_step(state, [batches.at(k)], config)["nll"]) for k in range(3)])
        assert state.model.state_dict().keys() == state.average.state_dict().keys()
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
