"""Many machines: the batch on a local Ray cluster, and what happens when an actor dies."""

from __future__ import annotations

import importlib.util
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
import soundfile

from command_line import Run, one_error, plain_options, tree, vconv_process, wav
from speech import speechlike
from tiny_model import exported
from vconv.attempt import Task
from vconv.audio import beside_prefix
from vconv.batch import Job
from vconv.cluster import MAX_ATTEMPTS, Cluster
from vconv.converter import load

ray_is_here = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="ray is not installed (the extra `cluster`)"
)


def test_without_ray_it_is_one_sentence_and_exit_5(
    convert: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    done = convert(wav(tmp_path / "in.wav"), "--ray=auto")
    assert done.code == 5
    assert one_error(done) == "--ray needs Ray; run `pip install 'vconv[cluster]'`."
    assert tree(tmp_path) == ["in.wav"]


def test_bare_ray_takes_no_value(tmp_path: Path) -> None:
    # Without the package it would fail for its lack, so let it fail before: for the speaker.
    process = vconv_process("convert", "--ray", tmp_path / "in.wav", "-s", "x", "-m", exported())
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert b"'x'" in err


class FakeRay:
    """As much of Ray as a pool needs, in this process: every attempt kills its actor."""

    class exceptions:
        class RayError(Exception):
            pass

        class RayActorError(RayError):
            pass

    def __init__(self) -> None:
        self.killed = 0

    def init(self, **options: object) -> None:
        pass

    def shutdown(self) -> None:
        pass

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def remote(self, kind: type) -> Any:
        ray = self

        class Method:
            def __init__(self, answer: Callable[..., Any]) -> None:
                self.remote = answer

        class Handle:
            start = Method(lambda: ("started", object()))
            attempt = Method(lambda task: ("died", object()))

        class Class:
            def options(self, **options: object) -> Any:
                return self

            def remote(self, *arguments: object) -> Handle:
                return Handle()

        assert ray is self
        return Class()

    def kill(self, handle: object) -> None:
        self.killed += 1

    def wait(self, references: list[Any], **options: object) -> tuple[list[Any], list[Any]]:
        return references, []

    def get(self, reference: Any, **options: object) -> Any:
        if reference[0] == "died":
            raise self.exceptions.RayActorError("gone")
        return None


def test_a_file_that_kills_its_actors_fails_after_a_few_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)
    target = tmp_path / "out.wav"
    half = tmp_path / f"{beside_prefix(target)}00.wav"
    half.write_bytes(b"half")
    others = tmp_path / f"{beside_prefix(tmp_path / 'other.wav')}00.wav"
    others.write_bytes(b"half")
    with load(exported()) as converter:
        pool = Cluster("auto", converter, plain_options(), None, 5)
        with pool:
            assert pool.wanted == 4
            pool.submit(Task(7, "in.wav", str(target)))
            outcomes: list[Any] = []
            for _ in range(20):
                outcomes += pool.wait(0)
    assert [(each.number, each.kind) for each in outcomes] == [(7, "failed")]
    assert f"{MAX_ATTEMPTS} actors died" in str(outcomes[0].error)
    assert not half.exists()
    assert others.exists()


# -- the real one ----------------------------------------------------------------------------------


def descendants(pid: int) -> dict[int, str]:
    """The processes below one: pid -> command."""
    parents, names = {}, {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = (entry / "stat").read_text()
            names[int(entry.name)] = (entry / "cmdline").read_bytes().decode("utf-8", "replace")
        except OSError:
            continue
        parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    below = {pid}
    while more := {child for child, parent in parents.items() if parent in below} - below:
        below |= more
    return {child: names[child] for child in below - {pid} if child in names}


def until(process: subprocess.Popen[bytes], reached: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 120
    while not (found := reached()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def on_ray(source: Path, out: Path, *more: object) -> subprocess.Popen[bytes]:
    return vconv_process(
        "convert", source, "-r", "-o", out, "-s", "bea", "-m", exported(), "-j", 2, *more,
        "--ray=local",
    )  # fmt: skip


@ray_is_here
@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_a_cluster_gives_the_local_bytes_though_an_actor_is_killed(
    convert: Run, tmp_path: Path
) -> None:
    source = tmp_path / "in"
    sound = speechlike(40_000)
    for index in range(60):
        (source / f"{index % 3}").mkdir(parents=True, exist_ok=True)
        soundfile.write(source / f"{index % 3}/{index}.wav", sound[100 * index :][:30_000], 16_000)
    (source / "0/bad.wav").write_bytes(b"no recording")
    assert convert(source, "-r", "-o", tmp_path / "local").code == 1
    record = tmp_path / "record.jsonl"
    with on_ray(source, tmp_path / "out", "--record", record) as process:
        # One in the middle of a file: the process's title says what an actor is doing.
        until(process, lambda: len(list((tmp_path / "out").rglob("[!.]*.wav"))) >= 10)

        def busy() -> int | None:
            found = descendants(process.pid).items()
            return next((pid for pid, name in found if "_Worker.attempt" in name), None)

        os.kill(until(process, busy), signal.SIGKILL)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    lines = err.decode().splitlines()
    assert lines[-1] == "60 converted, 1 failed"
    assert sum(line.startswith("vconv: error: ") for line in lines) == 1
    assert len(lines) == 62  # and nothing of Ray's
    names = tree(tmp_path / "local")
    assert tree(tmp_path / "out") == names
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "local" / name).read_bytes()
    outcomes = [json.loads(line)["outcome"] for line in record.read_text().splitlines()]
    assert sorted(outcomes) == ["converted"] * 60 + ["failed"]
    # The local command goes on by the same record.
    done = convert(source, "-r", "-o", tmp_path / "out", "--record", record)
    assert done.err.splitlines()[-1] == "0 converted, 1 failed, 60 done before"


@ray_is_here
@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_an_interruption_ends_the_actors_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for index in range(2):
        soundfile.write(source / f"{index}.wav", np.tile(speechlike(16_000), 400), 16_000)
    with on_ray(source, tmp_path / "out") as process:
        until(process, lambda: len(list(tmp_path.glob("out/.vconv-*"))) == 2)
        actors = [pid for pid, name in descendants(process.pid).items() if "ray" in name]
        assert actors
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert b"Traceback" not in err
    assert tree(tmp_path / "out") == []
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in actors):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_the_place_of_a_job_is_that_below_its_root() -> None:
    assert Job("a/b/c.wav", "out", "a").place == os.path.join("b", "c.wav")
    assert Job("a/b/c.wav", "out").place == "a/b/c.wav"
