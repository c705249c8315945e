"""Kills, damage, signals: whatever happens to a run, the same command ends in the same bits."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tiny_model import MEMBERS
from tiny_training import parts, tiny_config
from vconv.config import Config, dump_yaml
from vconv.errors import ModelError, UsageError
from vconv.train import checkpoint as checkpoints
from vconv.train import run as runs
from vconv.train.loop import Progress, fit
from vconv.train.metrics import read_metrics
from vconv.train.running import Running
from vconv.train.state import TrainState
from voices import PITCHES, prepared

CPU = torch.device("cpu")
RUN = Path("runs/test")
KEPT = RUN / "checkpoints"
TENSORS = ("model.safetensors", "average.safetensors", "optimizer.safetensors")
CLOCK = {"samples_per_second", "times_real_time", "data_wait"}
VCONV = [sys.executable, "-m", "vconv", "train", "config.yaml"]
slow = pytest.mark.slow


@pytest.fixture(scope="session")
def corpus_path(tmp_path_factory) -> Path:
    return prepared(tmp_path_factory.mktemp("voices"))


def make_config(corpus: Path, member: str = "vq", **train: object) -> Config:
    """Accumulation too, of microbatches and of parts of one."""
    return tiny_config(corpus, member, **{"microbatches": 2, "decode_batch": 1} | train)


@pytest.fixture
def configure(corpus_path, tmp_path, monkeypatch) -> Callable[..., Config]:
    """Writes config.yaml into the working directory, a new one."""
    monkeypatch.chdir(tmp_path)

    def write(**train: object) -> Config:
        config = make_config(corpus_path, **train)
        Path("config.yaml").write_text(dump_yaml(config), "utf-8")
        return config

    return write


def go_on() -> None:
    assert runs.train_command(Path("config.yaml")) == 0


def outcome(run: Path) -> tuple[str, list[bytes], list[dict[str, Any]]]:
    """The newest checkpoint's name and tensors, and the log without the clock's figures."""
    found, damaged = checkpoints.newest(run / "checkpoints")
    assert found is not None
    assert not damaged
    rows = read_metrics(run / "metrics.jsonl")
    return (
        found.path.name,
        [(found.path / name).read_bytes() for name in TENSORS],
        [{key: row[key] for key in sorted(row.keys() - CLOCK)} for row in rows],
    )


def assert_nothing_left() -> None:
    assert not [path.name for path in KEPT.iterdir() if path.name.startswith(".")]
    assert {path.name for path in RUN.iterdir()} <= {
        ".lock",
        "checkpoints",
        "config.yaml",
        "metrics.jsonl",
        "tb",
    }


# Kills


def start() -> subprocess.Popen[str]:
    """A real `vconv train` of the working directory."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        VCONV, env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> bool:
    """False if the process ends before."""
    limit = time.monotonic() + 120
    while not condition():
        if process.poll() is not None:
            return False
        assert time.monotonic() < limit, "nothing happened for two minutes"
        time.sleep(0.0002)
    return True


def lines() -> int:
    try:
        return (RUN / "metrics.jsonl").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def saving() -> bool:
    try:
        return any(name.startswith(".step-") for name in os.listdir(KEPT))
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("kills", "in_saves", "steps"),
    [(4, 1, 40), pytest.param(50, 10, 500, marks=slow)],
)
def test_a_run_killed_again_and_again_ends_in_the_same_bits(configure, kills, in_saves, steps):
    configure(steps=steps, checkpoint_every=5, validate_every=10)
    go_on()
    expected = outcome(RUN)
    RUN.rename("whole")
    choose = random.Random(0)
    kinds = ["save"] * in_saves + ["any"] * (kills - in_saves)
    choose.shuffle(kinds)
    progress = steps / kills  # so that there is something left to kill at the end
    landed = {"save": 0, "any": 0}
    while kinds:
        kind = kinds.pop()
        (RUN / "lock.json").unlink(missing_ok=True)  # of the one killed before
        goal = lines() + choose.uniform(0.2, 1.2) * progress
        process = start()
        if kind == "any":
            reached = wait_for(lambda goal=goal: lines() >= goal, process)
            time.sleep(choose.uniform(0, 0.05))
        else:
            wait_for(lambda: (RUN / "lock.json").exists(), process)
            wait_for(lambda: not saving(), process)  # what was left is swept away
            reached = wait_for(saving, process)
            time.sleep(choose.uniform(0, 0.003))
        process.kill()
        code = process.wait()
        process.stderr.close()
        if not reached or code != -signal.SIGKILL:
            shutil.rmtree("runs")  # it came to its end before: from the start again
            kinds.append(kind)
        elif kind == "save" and not saving():  # the save was over before
            landed["any"] += 1
            kinds.append(kind)
        else:
            landed[kind] += 1
    process = start()
    said = process.communicate()[1]
    assert process.returncode == 0, said
    assert outcome(RUN) == expected
    assert_nothing_left()
    print(f"{sum(landed.values())} kills, {landed['save']} of them inside a save")


# Damage


@pytest.fixture(scope="session")
def short(corpus_path, tmp_path_factory) -> Path:
    """A folder with a config.yaml and its run, with checkpoints at 2 and 4."""
    folder = tmp_path_factory.mktemp("short")
    before = Path.cwd()
    os.chdir(folder)
    try:
        Path("config.yaml").write_text(dump_yaml(make_config(corpus_path, steps=4)), "utf-8")
        go_on()
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def two(short, tmp_path, monkeypatch) -> Path:
    """A copy of that, as the working directory; returns the newer checkpoint's folder."""
    shutil.copytree(short, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return KEPT / "step-000000004"


def assert_found(damaged: Path, name: str) -> None:
    found, said = checkpoints.newest(KEPT)
    assert found is not None, "never from the start"
    assert found.step == 2
    assert len(said) == 1
    assert str(damaged) in said[0]
    assert name in said[0]


@pytest.mark.parametrize("flips", [100, pytest.param(1000, marks=slow)])
def test_every_flipped_bit_is_found_and_the_checkpoint_before_used(two, flips):
    choose = random.Random(flips)
    files = sorted(two.iterdir())
    assert len(files) == 6
    for index in range(flips):
        # Half of them in the small files, where a bit means most.
        weights = [path.stat().st_size if index % 2 else 1 for path in files]
        path = choose.choices(files, weights)[0]
        whole = path.read_bytes()
        position, bit = choose.randrange(len(whole)), choose.randrange(8)
        content = bytearray(whole)
        content[position] ^= 1 << bit
        path.write_bytes(content)
        assert_found(two, path.name if path.name != "checkpoint.json" else "")
        path.write_bytes(whole)
    checkpoints.Checkpoint.open(two)


@slow
def test_every_flipped_bit_of_the_header_is_found(two):
    path = two / "checkpoint.json"
    whole = path.read_bytes()
    for place in range(8 * len(whole)):
        content = bytearray(whole)
        content[place // 8] ^= 1 << place % 8
        path.write_bytes(content)
        with pytest.raises(ModelError, match="step-000000004"):
            checkpoints.Checkpoint.open(two)


def test_a_file_cut_anywhere_is_found_and_the_checkpoint_before_used(two):
    choose = random.Random(0)
    files = sorted(two.iterdir())
    for index in range(100):
        path = files[index % len(files)]
        whole = path.read_bytes()
        os.truncate(path, choose.choice([0, len(whole) - 1, choose.randrange(len(whole))]))
        assert_found(two, path.name)
        path.write_bytes(whole)


def test_each_missing_file_is_named_and_training_goes_on_from_the_checkpoint_before(two, capfd):
    expected = outcome(RUN)
    for path in sorted(two.iterdir()):
        whole = path.read_bytes()
        path.unlink()
        assert_found(two, f"{path.name} is missing")
        if path.name in ("checkpoint.json", "optimizer.safetensors"):
            capfd.readouterr()
            go_on()
            said = capfd.readouterr().err
            assert re.search(rf"skipped: .*step-000000004: {path.name} is missing", said)
            assert "resuming runs/test at step 2" in said
            assert outcome(RUN) == expected
        path.write_bytes(whole)


def test_a_run_of_which_every_checkpoint_is_damaged_is_not_started_anew(two):
    for folder in KEPT.iterdir():
        (folder / "average.safetensors").unlink()
    with pytest.raises(ModelError, match="every checkpoint of the run is damaged"):
        go_on()


@pytest.mark.parametrize("tail", [b'{"step": 5, "nl', b"\0" * 300, b"\xff\xfe\n", b'{"st"}\n\n'])
def test_what_a_loss_of_power_leaves_at_the_end_of_the_log_is_cut_off(two, tail):
    expected = outcome(RUN)
    with (RUN / "metrics.jsonl").open("ab") as file:
        file.write(tail)
    go_on()
    assert outcome(RUN) == expected
    rows = (RUN / "metrics.jsonl").read_bytes().splitlines()
    assert len(rows) == 4


# Signals


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 130),
        pytest.param(signal.SIGTERM, 143, marks=slow),
        pytest.param(signal.SIGUSR1, 138, marks=slow),
    ],
)
def test_a_run_refuses_a_second_process_and_answers_a_signal_within_a_step(configure, number, code):
    configure(steps=100_000, checkpoint_every=100_000, validate_every=100_000)
    process = start()
    try:
        assert wait_for(lambda: lines() >= 3, process)
        began = time.monotonic()
        with pytest.raises(UsageError, match=f"under way there \\(process {process.pid} on "):
            go_on()
        assert time.monotonic() - began < 1
        before = lines()
        process.send_signal(number)
        said = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == code, said
    assert "run the same command again to go on" in said
    newest, _ = checkpoints.newest(KEPT)
    assert newest is not None
    # A step is in the log as soon as it is done: one may end before the signal arrives, and the
    # one in progress is finished.
    assert before <= newest.step <= before + 2
    assert len(read_metrics(RUN / "metrics.jsonl")) == newest.step
    assert_nothing_left()


def test_a_second_interrupt_leaves_without_harm(configure, monkeypatch, capfd):
    """It arrives in the middle of the save that the first one asked for."""
    configure(steps=8)
    original, written = Running.observe, checkpoints._write

    def observe(self: Any, progress: Any) -> bool:
        if progress.step == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, progress)

    def write(partial: Path, state: TrainState, *rest: Any) -> None:
        written(partial, state, *rest)
        if state.step == 5:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)

    with monkeypatch.context() as patch:
        patch.setattr(Running, "observe", observe)
        patch.setattr(checkpoints, "_write", write)
        with pytest.raises(KeyboardInterrupt):
            go_on()
    newest, damaged = checkpoints.newest(KEPT)
    assert newest is not None
    assert newest.step == 4
    assert not damaged
    assert_nothing_left()
    go_on()
    found = outcome(RUN)
    RUN.rename("interrupted")
    go_on()
    assert found == outcome(RUN)


# Resume equals no resume


def train_on(
    config: Config, folder: Path, begin: int, end: int, stops: tuple[int, ...], workers: int = 0
) -> Path:
    """New objects, gone on with from a checkpoint at ``begin`` (or from nothing) to ``end``."""
    data = config.data.model_copy(update={"workers": workers})
    config = config.model_copy(update={"data": data})
    state, batches = parts(config)
    if begin:
        checkpoints.Checkpoint.open(folder / f"step-{begin:09d}").restore(state)

    def observe(progress: Progress) -> bool:
        if progress.step in stops:
            checkpoints.save_checkpoint(folder, state, config, tuple(PITCHES), {})
        return progress.step < end

    fit(state, batches, None, config, CPU, observe=observe)
    assert state.step == end
    return checkpoints.save_checkpoint(folder, state, config, tuple(PITCHES), {})


QUICK = {"vq", "vq_gradient", "ae", "vae", "fsq"}  # every bottleneck; the others differ elsewhere


def second_epoch(config: Config) -> tuple[Config, tuple[int, int, int]]:
    """Training into it; the first, middle and last step that take all their windows from it."""
    config = config.model_copy(update={"data": config.data.model_copy(update={"window": 3200})})
    windows = parts(config)[1].windows
    first = -(-windows.epoch_size(0) // 4)
    last = (windows.epoch_size(0) + windows.epoch_size(1)) // 4 - 1
    middle, end = (first + last) // 2, last + 2
    assert 2 < first < middle < last
    train = config.train.model_copy(update={"steps": end})
    return config.model_copy(update={"train": train}), (first, middle, last)


@pytest.mark.parametrize("quick", [True, pytest.param(False, marks=slow)])
@pytest.mark.parametrize(
    "member", [pytest.param(name, marks=() if name in QUICK else slow) for name in MEMBERS]
)
def test_a_resume_anywhere_in_an_epoch_changes_nothing(corpus_path, tmp_path, member, quick):
    """At the first, middle and last step of the second epoch, after k-means: all three in one run
    (quick), and each alone."""
    config, stops = second_epoch(make_config(corpus_path, member))
    whole = train_on(config, tmp_path, 0, config.train.steps, stops)
    expected = [(whole / name).read_bytes() for name in TENSORS]
    for some in [stops] if quick else [(stop,) for stop in stops]:
        for begin, goal in zip(some, (*some[1:], config.train.steps), strict=True):
            saved = train_on(config, tmp_path, begin, goal, ())
        assert [(saved / name).read_bytes() for name in TENSORS] == expected, some


def test_data_workers_may_change_wherever_a_run_goes_on(corpus_path, tmp_path):
    config, stops = second_epoch(make_config(corpus_path))
    whole = train_on(config, tmp_path, 0, config.train.steps, stops)
    expected = [(whole / name).read_bytes() for name in TENSORS]
    ends = (*stops[1:], config.train.steps)
    for workers, begin, goal in zip((2, 0, 1), stops, ends, strict=True):
        saved = train_on(config, tmp_path, begin, goal, (), workers)
    assert [(saved / name).read_bytes() for name in TENSORS] == expected


def test_a_log_line_whose_steps_lie_on_both_sides_of_a_stop_is_as_without(configure, monkeypatch):
    configure(log_every=3)
    original = Running.observe

    def observe(self: Any, progress: Any) -> bool:
        if progress.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, progress)

    with monkeypatch.context() as patch:
        patch.setattr(Running, "observe", observe)
        assert runs.train_command(Path("config.yaml")) == 143
    go_on()
    found = outcome(RUN)
    assert [row["step"] for row in found[2]] == [3, 4, 6, 8]  # at 4 and 8 it is validated
    RUN.rename("stopped")
    go_on()
    assert found == outcome(RUN)


@pytest.mark.gpu
def test_a_resume_on_a_gpu_changes_nothing(configure):
    """With deterministic algorithms, in processes of their own: they are a global choice."""
    configure(device="cuda", elastic_exact=True)
    for options in (["--set", "train.steps=4"], []):
        subprocess.run([*VCONV, *options], check=True, stdin=subprocess.DEVNULL)
    found = outcome(RUN)
    RUN.rename("stopped")
    subprocess.run(VCONV, check=True, stdin=subprocess.DEVNULL)
    assert found == outcome(RUN)
