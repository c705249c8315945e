"""Saves that come to no good end: death, loss of power and a failing disk at every file operation.

A run of eight steps saves at 2, 4, 6 and 8 and keeps two. Wherever it is struck, the same command
must go on to the same bits.
"""

import builtins
import errno
import io
import json
import os
import random
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tiny_training import tiny_config
from vconv.cli_shared import report_error
from vconv.config import dump_yaml, load_config
from vconv.errors import SetupError
from vconv.train import checkpoint as checkpoints
from vconv.train import metrics
from vconv.train import run as runs
from vconv.train.corpus import Corpus
from vconv.train.process import device
from vconv.train.state import TrainState, build_state
from voices import prepared

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or sys.version_info < (3, 11),
    reason="operations are watched through /proc and os, which pathlib calls since 3.11",
)
STEPS = 8
RUN = Path("runs/test")
KEPT = RUN / "checkpoints"
TENSORS = ("model.safetensors", "average.safetensors", "optimizer.safetensors")
CLOCK = {"samples_per_second", "times_real_time", "data_wait"}
Hook = Callable[..., None]


# The run, whole


@pytest.fixture(scope="session")
def whole(tmp_path_factory) -> Path:
    """A folder with config.yaml, the run stopped at step 4 and, as ``whole``, the one that went
    to its end in one go."""
    folder = tmp_path_factory.mktemp("whole")
    config = tiny_config(prepared(folder), steps=STEPS, decode_batch=2)
    (folder / "config.yaml").write_text(dump_yaml(config), "utf-8")
    before = Path.cwd()
    os.chdir(folder)
    try:
        go_on()
        RUN.rename(folder / "whole")
        assert runs.train_command(Path("config.yaml"), overrides=["train.steps=4"]) == 0
        shutil.rmtree(RUN / "tb")
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def stopped(whole, tmp_path, monkeypatch) -> Iterator[Path]:
    """A copy of what ``whole`` holds, as the working directory: a run stopped at step 4."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(whole / "config.yaml", "config.yaml")
    restart(whole)
    yield tmp_path
    shutil.rmtree("runs", ignore_errors=True)


def restart(whole: Path) -> None:
    shutil.rmtree("runs", ignore_errors=True)
    shutil.copytree(whole / "runs", "runs")


def go_on() -> None:
    assert runs.train_command(Path("config.yaml")) == 0


def loss_of(run: Path) -> list[dict[str, Any]]:
    rows = metrics.read_metrics(run / "metrics.jsonl")
    return [{key: row[key] for key in row.keys() - CLOCK} for row in rows]


def assert_same_end(whole: Path) -> None:
    """The same tensors, the same log, nothing left behind."""
    name = f"step-{STEPS:09d}"
    for file in TENSORS:
        found = (KEPT / name / file).read_bytes()
        assert found == (whole / "whole/checkpoints" / name / file).read_bytes(), file
    assert loss_of(RUN) == loss_of(whole / "whole")
    left = {path.name for path in RUN.iterdir()} - {".lock", "tb"}
    assert left == {"checkpoints", "config.yaml", "metrics.jsonl"}
    kept = {path.name for path in KEPT.iterdir()}
    assert kept == {path.name for path in (whole / "whole/checkpoints").iterdir()}


class Saver:
    """Saves step 6 of the run as the run does."""

    def __init__(self, whole: Path) -> None:
        config = load_config(whole / "config.yaml")
        self.config = config
        self.state = build_state(config, Corpus.open(config.data.corpus), device("cpu"))
        self.source = whole / "whole/checkpoints"

    def at(self, step: int, source: Path | None = None) -> TrainState:
        checkpoint = checkpoints.Checkpoint.open((source or self.source) / f"step-{step:09d}")
        checkpoint.restore(self.state)
        self.facts = {
            key: checkpoint.header[key]
            for key in ("position", "samples_seen", "metrics", "corpus", "environment")
        }
        self.speakers = tuple(checkpoint.speakers)
        return self.state

    def save(self) -> None:
        checkpoints.save_checkpoint(KEPT, self.state, self.config, self.speakers, self.facts)

    def retain(self) -> None:
        checkpoints.retain(KEPT, keep_last=2, keep_best=1)


@pytest.fixture(scope="session")
def saver(whole) -> Saver:
    return Saver(whole)


# Operations and what strikes at them


@contextmanager
def watched(root: Path, hook: Hook) -> Iterator[None]:
    """Calls hook("before" | "after", kind, path, ...) around each change of a file below root, but
    for TensorBoard's (which are not needed to go on) and the lock's (which the kernel drops)."""
    root = root.resolve()

    def place(path: Any, dir_fd: int | None = None) -> Path | None:
        if isinstance(path, int):
            found = Path(os.readlink(f"/proc/self/fd/{path}"))
        elif dir_fd is not None:
            found = Path(os.readlink(f"/proc/self/fd/{dir_fd}")) / path
        else:
            found = Path(os.path.abspath(os.fsdecode(path)))
        if not found.is_relative_to(root) or {"tb", ".lock", "lock.json"} & set(found.parts):
            return None
        return found

    with pytest.MonkeyPatch.context() as patch:

        def watch(module: Any, name: str, kind: str, places: Callable[..., list[Any]]) -> None:
            original = getattr(module, name)

            def operation(*arguments: Any, **options: Any) -> Any:
                paths = places(*arguments, **options)
                if not paths or None in paths:
                    return original(*arguments, **options)
                hook("before", kind, *paths)
                result = original(*arguments, **options)
                try:
                    hook("after", kind, *paths)
                except BaseException:
                    if hasattr(result, "close"):
                        result.close()
                    raise
                return result

            patch.setattr(module, name, operation)

        def opened(path: Any, mode: str = "r", *_: Any, **__: Any) -> list[Any]:
            return [place(path)] if set(mode) & set("wax+") else []

        for name in ("unlink", "rmdir"):
            watch(os, name, name, lambda path, dir_fd=None: [place(path, dir_fd)])
        for name in ("rename", "replace"):
            watch(os, name, "rename", lambda old, new: [place(old), place(new)])
        watch(os, "mkdir", "mkdir", lambda path, mode=0o777, dir_fd=None: [place(path, dir_fd)])
        watch(os, "fsync", "fsync", lambda descriptor: [place(descriptor)])
        watch(io, "open", "write", opened)
        watch(builtins, "open", "write", opened)
        watch(checkpoints, "save_file", "write", lambda tensors, path: [place(path)])
        yield


class Death(BaseException):
    """Nothing catches it, and no clean-up changes a file after it."""


def death(at: int, phase: str) -> Hook:
    count, dead = 0, False

    def hook(when: str, kind: str, *paths: Path) -> None:
        nonlocal count, dead
        count += when == "before"
        if count == at and when == ("after" if phase == "half" else phase):
            dead = True
            if phase == "half" and kind == "write" and paths[0].suffix != ".jsonl":  # appended to
                os.truncate(paths[0], paths[0].stat().st_size // 2)
        if dead:
            raise Death

    return hook


def phases(index: int, kinds: list[str]) -> list[str]:
    """When to die at an operation; to die after one is to die before the next."""
    half = ["half"] if kinds[index] == "write" else []
    return ["before", *half, *(["after"] if index == len(kinds) - 1 else [])]


def failure(at: int, number: int) -> Hook:
    """The disk is full, or fails, from an operation on; removing goes on working."""
    count = 0

    def hook(when: str, kind: str, *paths: Path) -> None:
        nonlocal count
        if when == "before" and kind not in ("unlink", "rmdir"):
            count += 1
            if count >= at:
                raise OSError(number, os.strerror(number), str(paths[0]))

    return hook


def counted(action: Callable[[], None]) -> list[str]:
    kinds: list[str] = []

    def hook(when: str, kind: str, *paths: Path) -> None:
        if when == "before":
            kinds.append(kind)

    with watched(Path("runs"), hook):
        action()
    return kinds


def damage_step_6() -> None:
    """A damaged checkpoint at the place of the next one."""
    step_6 = KEPT / "step-000000006"
    shutil.copytree(KEPT / "step-000000004", step_6)
    (step_6 / "model.safetensors").write_bytes(b"damaged")


@pytest.mark.parametrize("damaged", [False, True])
def test_death_at_any_operation_of_a_save_leaves_the_checkpoint_before_or_the_new_one(
    whole, stopped, saver, damaged
):
    saver.at(6)
    distinct: set[tuple[str, ...]] = set()

    def save() -> None:
        checkpoints.sweep(KEPT)
        saver.save()
        saver.retain()

    def prepare() -> None:
        restart(whole)
        (RUN / "metrics.jsonl").unlink()
        shutil.copy(whole / "whole/metrics.jsonl", RUN)
        (KEPT / ".step-000000003.partial").mkdir()
        (KEPT / ".step-000000003.partial/model.safetensors").write_bytes(b"half")
        if damaged:
            damage_step_6()

    prepare()
    kinds = counted(save)
    assert {"mkdir", "write", "fsync", "rename", "unlink", "rmdir"} == set(kinds)
    for at in range(1, len(kinds) + 1):
        for phase in phases(at - 1, kinds):
            prepare()
            with pytest.raises(Death), watched(Path("runs"), death(at, phase)):
                save()
            newest, named = checkpoints.newest(KEPT)
            assert newest is not None
            assert newest.step in (4, 6)
            assert len(named) <= damaged
            for name in TENSORS:
                expected = whole / "whole/checkpoints" if newest.step == 6 else whole / KEPT
                assert (newest.path / name).read_bytes() == (
                    expected / newest.path.name / name
                ).read_bytes()
            checkpoints.sweep(KEPT)
            state = (*sorted(path.name for path in KEPT.iterdir()), *map(str, named))
            assert not any(name.startswith(".") for name in state)
            if state not in distinct:  # going on is a function of the folder
                distinct.add(state)
                go_on()
                assert_same_end(whole)
    assert len(distinct) >= 3


def die_and_go_on(whole: Path, points: list[tuple[int, str]]) -> None:
    for at, phase in points:
        restart(whole)
        with pytest.raises(Death), watched(Path("runs"), death(at, phase)):
            go_on()
        go_on()
        assert_same_end(whole)
    print(f"died at {len(points)} points")


def test_a_run_that_dies_at_some_operations_goes_on_to_the_same_bits(whole, stopped):
    die_and_go_on(whole, [(at, "before") for at in (2, 9, 28, 40)])


@pytest.mark.slow
def test_a_run_that_dies_before_and_after_each_operation_goes_on_to_the_same_bits(whole, stopped):
    """Log, configuration, two saves and their retention; each file also half-written."""
    kinds = counted(go_on)
    assert len(kinds) > 50
    points = [(at + 1, phase) for at, kind in enumerate(kinds) for phase in phases(at, kinds)]
    die_and_go_on(whole, points)


# Loss of power


class Disk:
    """What a loss of power may leave of the files below a folder.

    A synced file has the bytes it had then; of later ones any prefix, or zeros, may be there. A
    synced directory has the entries it had then; of later changes any may have happened, each
    whole. Nothing else is promised by POSIX.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.live: dict[Path, int] = {self.root: 0}
        self.entries: dict[int, dict[str, int]] = {0: {}}
        self.pending: dict[int, list[dict[str, int | None]]] = {0: []}
        self.synced: dict[int, bytes] = {}
        self.moments: list[tuple[Any, ...]] = []
        self.saved = 0
        for path in sorted(self.root.rglob("*")):
            self._create(path, path.is_dir())
        self.synced = self._contents()
        for folder in self.entries:
            self._sync(folder)

    def hook(self, when: str, kind: str, *paths: Path) -> None:
        if when == "before":
            return
        path = paths[0]
        if kind in ("mkdir", "write"):
            self._create(path, kind == "mkdir")
        elif kind == "fsync" and self.live[path] in self.entries:
            self._sync(self.live[path])
        elif kind == "fsync":
            self.synced[self.live[path]] = path.read_bytes()
        else:
            changes: dict[str, int | None] = {path.name: None}
            for old in [each for each in self.live if each.is_relative_to(path)]:
                number = self.live.pop(old)
                if kind == "rename":
                    self.live[paths[1] / old.relative_to(path)] = number
            if kind == "rename":
                changes[paths[1].name] = self.live[paths[1]]
            self.pending[self.live[path.parent]].append(changes)
        self.moments.append(
            (
                {number: dict(names) for number, names in self.entries.items()},
                {number: list(changes) for number, changes in self.pending.items()},
                dict(self.synced),
                self._contents(),
                self.saved,
            )
        )

    def _create(self, path: Path, folder: bool) -> None:
        if path in self.live:
            return
        number = len(self.live) + sum(map(len, self.pending.values())) + 10_000 * len(self.moments)
        self.live[path] = number
        if folder:
            self.entries[number], self.pending[number] = {}, []
        self.pending[self.live[path.parent]].append({path.name: number})

    def _sync(self, folder: int) -> None:
        for changes in self.pending[folder]:
            _change(self.entries[folder], changes)
        self.pending[folder] = []

    def _contents(self) -> dict[int, bytes]:
        return {
            number: path.read_bytes()
            for path, number in self.live.items()
            if number not in self.entries
        }


def _change(names: dict[str, int], changes: dict[str, int | None]) -> None:
    for name, number in changes.items():
        if number is None:
            names.pop(name, None)
        else:
            names[name] = number


def leave(moment: tuple[Any, ...], choose: random.Random, share: float, target: Path) -> None:
    """Write one of the legal states; ``share`` of what was not synced happened nevertheless."""
    entries, pending, synced, contents, _ = moment

    def content(number: int) -> bytes:
        now = contents.get(number, synced.get(number, b""))
        then = synced.get(number, b"")
        if now == then or choose.random() < share:
            return now
        if not now.startswith(then):  # written anew
            then = choose.choice([then, b""])
            if then:
                return then
        length = choose.choice([len(then), len(now) - 1, choose.randint(len(then), len(now))])
        zeros = len(now) - length if choose.random() < 0.25 else 0
        return now[: max(length, len(then))] + bytes(zeros)

    def write(number: int, path: Path) -> None:
        if number not in entries:
            path.write_bytes(content(number))
            return
        path.mkdir()
        names = dict(entries[number])
        for changes in pending[number]:
            if choose.random() < share:
                _change(names, changes)
        for name, child in names.items():
            write(child, path / name)

    shutil.rmtree(target, ignore_errors=True)
    write(0, target)


@pytest.mark.parametrize("states", [3, pytest.param(150, marks=pytest.mark.slow)])
def test_every_state_that_a_loss_of_power_may_leave_has_the_newest_checkpoint_saved(
    whole, saver, tmp_path, monkeypatch, states
):
    (tmp_path / "disk").mkdir()
    monkeypatch.chdir(tmp_path / "disk")
    disk = Disk(Path())
    truth = {}
    with watched(Path(), disk.hook):
        for step, source in ((2, whole / KEPT), (4, whole / KEPT), (6, None), (8, None)):
            saver.at(step, source)
            if step == 8:  # a damaged one is in its place
                shutil.copytree(KEPT / "step-000000004", KEPT / "step-000000008")
                damaged = KEPT / "step-000000008/model.safetensors"
                damaged.write_bytes(b"damaged")
            saver.save()
            disk.saved = step
            truth[step] = (KEPT / f"step-{step:09d}/checkpoint.json").read_bytes()
            saver.retain()
    choose = random.Random(0)
    checked = 0
    for moment in disk.moments:
        for share in (0.0, 1.0, *(choose.choice([0.1, 0.5, 0.9]) for _ in range(states - 2))):
            leave(moment, choose, share, tmp_path / "left")
            found, _ = checkpoints.newest(tmp_path / "left" / KEPT)
            step = 0 if found is None else found.step
            assert step >= moment[-1], f"step {moment[-1]} was saved, and {step} is there"
            if found is not None:
                assert (found.path / "checkpoint.json").read_bytes() == truth[step]
            checked += 1
    print(f"{checked} states of {len(disk.moments)} moments")


@pytest.mark.parametrize("states", [3, pytest.param(150, marks=pytest.mark.slow)])
def test_a_run_goes_on_to_the_same_bits_after_a_loss_of_power(whole, stopped, states):
    disk = Disk(Path())
    with watched(Path(), disk.hook):
        go_on()
    choose = random.Random(1)
    for _ in range(states):
        leave(choose.choice(disk.moments), choose, 0.5, stopped / "left")
        shutil.rmtree("runs")
        (stopped / "left/runs").rename("runs")
        go_on()
        assert_same_end(whole)


# Failing disks


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_at_any_write_of_a_save_leaves_the_checkpoint_before_and_no_partial(
    whole, stopped, saver, number
):
    saver.at(6)
    kinds = [kind for kind in counted(saver.save) if kind not in ("unlink", "rmdir")]
    for at in range(1, len(kinds) + 1):
        restart(whole)
        with watched(Path("runs"), failure(at, number)):
            with pytest.raises(SetupError, match=os.strerror(number)) as caught:
                saver.save()
            assert str(caught.value).count(". ") == 0
        assert not list(KEPT.glob(".*"))
        newest, named = checkpoints.newest(KEPT)
        assert newest is not None
        assert not named
        # The new one only if nothing but the last syncs, of its place, has failed.
        assert newest.step == (6 if "rename" in kinds[: at - 1] else 4)


def fail_and_go_on(whole: Path, points: list[int], numbers: tuple[int, ...], capfd: Any) -> None:
    for at in points:
        for number in numbers:
            restart(whole)
            with watched(Path("runs"), failure(at, number)), pytest.raises(SetupError) as caught:
                go_on()
            capfd.readouterr()
            assert report_error(caught.value) == 5
            said = capfd.readouterr().err
            assert said.count("\n") == 1, said
            assert os.strerror(number) in said
            assert not list(KEPT.glob(".*.partial"))
            newest, _ = checkpoints.newest(KEPT)
            assert newest is not None
            go_on()
            assert_same_end(whole)


def test_a_run_whose_disk_fails_says_so_and_goes_on_later(whole, stopped, capfd):
    operations = len([kind for kind in counted(go_on) if kind not in ("unlink", "rmdir")])
    fail_and_go_on(whole, [1, operations - 12], (errno.ENOSPC,), capfd)
    fail_and_go_on(whole, [operations // 2], (errno.EIO,), capfd)


@pytest.mark.slow
def test_a_run_whose_disk_fails_at_each_write_says_so_and_goes_on_later(whole, stopped, capfd):
    operations = len([kind for kind in counted(go_on) if kind not in ("unlink", "rmdir")])
    fail_and_go_on(whole, list(range(1, operations + 1)), (errno.ENOSPC, errno.EIO), capfd)


def test_a_write_that_the_kernel_cuts_short_is_noticed(whole, stopped, saver):
    """No patches: a limit on a file's size, met in Python's writes and in those of safetensors."""
    saver.at(6)
    sizes = sorted(path.stat().st_size for path in (KEPT / "step-000000004").iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (0, 1, *(size - 1 for size in sizes), sizes[-1] // 2):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            saver.save()
        except SetupError as error:
            said = str(error)
        else:
            said = ""
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert "cannot be saved" in said, limit
        assert sorted(path.name for path in KEPT.iterdir()) == ["step-000000002", "step-000000004"]
    saver.save()
    found, _ = checkpoints.newest(KEPT)
    assert found is not None
    assert found.step == 6


def test_a_log_that_cannot_be_written_ends_the_run_in_one_sentence(whole, stopped, monkeypatch):
    original = metrics.Diary.__enter__

    def full(self: metrics.Diary) -> metrics.Diary:
        self._file.close()
        self._file = os.fdopen(os.open("/dev/full", os.O_WRONLY), "w", encoding="utf-8")
        return original(self)

    with monkeypatch.context() as patch:
        patch.setattr(metrics.Diary, "__enter__", full)
        with pytest.raises(SetupError, match="No space left on device"):
            go_on()
    go_on()
    assert_same_end(whole)


# What retention must not remove


def test_damaged_newer_checkpoints_do_not_make_retention_remove_the_one_just_saved(
    whole, stopped, saver
):
    for step in (6, 8):
        shutil.copytree(KEPT / "step-000000004", KEPT / f"step-{step:09d}")
        (KEPT / f"step-{step:09d}/model.safetensors").unlink()
    saver.at(4, whole / KEPT)
    saver.state.step = 5
    saver.save()
    saver.retain()
    found, named = checkpoints.newest(KEPT)
    assert found is not None
    assert found.step == 5
    assert json.loads((found.path / "checkpoint.json").read_text())["step"] == 5
    assert len(named) == 2
