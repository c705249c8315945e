"""Many files: several at a time, in parts, interrupted, killed, and gone on with by a record."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from batches import contents, recordings, rows
from command_line import Run, plain_options, tree, vconv_process, wav
from speech import speechlike
from tiny_model import exported
from vconv.batch import Job, Shard
from vconv.converter import Converter, load
from vconv.lanes import usable_cores
from vconv.progress_line import TimeToGo, told


def long_recording(path: Path, seconds: int = 300) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.tile(speechlike(16_000), seconds), 16_000)
    return path


def arguments(*more: object) -> Sequence[object]:
    return ("convert", "-s", "bea", "-m", exported(), *more)


# -- several at a time, and in parts ---------------------------------------------------------------


def test_outputs_do_not_depend_on_how_many_are_converted_at_a_time_nor_on_shards(
    convert: Run, tmp_path: Path
) -> None:
    source = recordings(tmp_path / "in", 12)
    wav(source / "lanes.wav", 20 * 16_000)  # in several lanes, on a share of the cores
    for jobs in (1, 4):
        assert convert(source, "-r", "-o", tmp_path / f"{jobs}", "-j", jobs).code == 0
    local = contents(tmp_path / "1")
    assert len(local) == 13
    assert contents(tmp_path / "4") == local
    seen: Counter[str] = Counter()
    for shard in range(1, 5):
        folder = tmp_path / f"shard{shard}"
        assert convert(source, "-r", "-o", folder, "--shard", f"{shard}/4").code == 0
        seen.update(tree(folder) if folder.exists() else [])
        union = ("-r", "-o", tmp_path / "union", "--shard", f"{shard}/4")
        assert convert(source, *union).code == 0
    assert seen == Counter(local.keys())
    assert contents(tmp_path / "union") == local


def test_a_share_of_the_cores_says_the_same(tmp_path: Path) -> None:
    source = wav(tmp_path / "in.wav", 20 * 16_000)
    made = []
    with load(exported()) as converter:
        for cores in (1, 3):
            path = tmp_path / f"{cores}.wav"
            done = converter.convert_to_file(source, path, speaker=0, cores=lambda n=cores: n)
            assert done.lanes > 1
            made.append(path.read_bytes())
    assert made[0] == made[1]


def test_a_files_shard_follows_from_its_place_alone(tmp_path: Path) -> None:
    jobs = [Job(f"{tmp_path}/{name}.wav", "out", str(tmp_path)) for name in range(200)]
    elsewhere = [Job(f"other/{name}.wav", "out", "other") for name in range(200)]
    counts = [0, 0, 0]
    for job, moved in zip(jobs, elsewhere, strict=True):
        found = [Shard(number, 3) for number in (1, 2, 3) if job in Shard(number, 3)]
        assert len(found) == 1
        assert moved in found[0]
        counts[found[0].number - 1] += 1
    assert min(counts) > 40
    # Whoever joins a batch on another machine must count as this one does: written down once.
    place = Job("in/sub/a.wav", "out", "in")
    assert [number for number in range(1, 8) if place in Shard(number, 7)] == [1]


def test_a_shard_without_inputs_says_so_and_is_no_failure(convert: Run, tmp_path: Path) -> None:
    source = wav(tmp_path / "in/a.wav")
    done = convert(source.parent, "-o", tmp_path / "out", "--shard", "1/1000")
    assert (done.code, done.out) == (0, "")
    assert "nothing to do" in done.err
    assert not (tmp_path / "out").exists()


def test_a_shard_does_not_take_anothers_outputs_for_inputs(convert: Run, tmp_path: Path) -> None:
    source = recordings(tmp_path / "in", 10)
    for shard in (1, 2, 1, 2):
        more = ("-o", source / "out", "--skip-existing", "--shard", f"{shard}/2")
        assert convert(source, "-r", *more).code == 0
    assert len(tree(source / "out")) == 10


def test_one_bad_file_stops_nothing_and_lines_stay_whole(convert: Run, tmp_path: Path) -> None:
    source = recordings(tmp_path / "in", 12)
    for index in range(6):
        (source / f"0/bad-{index}.wav").write_bytes(b"no recording")
        soundfile.write(source / f"0/silent-{index}.wav", np.zeros(3000), 16_000)
    done = convert(source, "-r", "-o", tmp_path / "out", "-j", 4, "--json")
    assert done.code == 1
    lines = done.err.splitlines()
    assert lines[-1] == "18 converted, 6 failed"
    kinds = Counter(
        "error" if line.startswith("vconv: error: ") else
        "warning" if line.startswith("vconv: warning: ") and line.endswith("is silent.") else
        "done" if " times real time" in line and " -> " in line else line
        for line in lines[:-1]
    )  # fmt: skip
    assert kinds == {"error": 6, "warning": 6, "done": 18}
    objects = [json.loads(line) for line in done.out.splitlines()]
    assert len({each["input"] for each in objects}) == 24


def test_the_plan_of_a_hundred_thousand_files_is_handed_out_bit_by_bit(tmp_path: Path) -> None:
    from vconv.batch_output import Report
    from vconv.interruption import Interruption
    from vconv.many_files import convert_jobs

    class Counting:
        """A pool that fails everything, and notes how much it is given at a time."""

        def __init__(self) -> None:
            self.tasks: list[Any] = []
            self.most = 0
            self.shares: dict[int, Any] = {}

        @property
        def wanted(self) -> int:
            return 4 - len(self.tasks)

        def submit(self, task: Any) -> None:
            self.tasks.append(task)
            self.most = max(self.most, len(self.tasks))

        def wait(self, seconds: float) -> list[Any]:
            from vconv.attempt import Outcome

            over, self.tasks = self.tasks, []
            return [Outcome(task.number, "done before") for task in over]

        def stop(self) -> list[Any]:
            return []

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *error: object) -> None:
            pass

    pool = Counting()
    jobs = [Job(f"in/{index}.wav", f"out/{index}.wav", "in") for index in range(100_000)]
    options = plain_options()
    report = Report(jobs, options, lambda error: 1)
    convert_jobs(jobs, pool, options, report, None, Interruption())
    assert (pool.most, report.sum_up()) == (4, 0)


@pytest.mark.slow
def test_planning_a_hundred_thousand_files_takes_little_memory(tmp_path: Path) -> None:
    for index in range(100_000):
        folder = tmp_path / "in" / f"{index % 50}"
        if index < 50:
            folder.mkdir(parents=True)
        (folder / f"utterance-{index:06d}.wav").touch()
    program = f"""
import sys
from pathlib import Path
from vconv.batch import plan_jobs
resident = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6
before = resident()
jobs = plan_jobs(["{tmp_path}/in"], "{tmp_path}/out", speaker="x", format_name="wav",
                 recursive=True)
print(len(jobs), resident() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    count, megabytes = done.stdout.split()
    assert int(count) == 100_000
    assert float(megabytes) < 80


# -- signals and kills -----------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_stops_all_files_at_once_and_the_record_says_what_is_done(
    tmp_path: Path, number: int, code: int
) -> None:
    recordings(tmp_path / "in", 4)
    for index in range(3):
        long_recording(tmp_path / f"in/9/{index}.wav")
    record = tmp_path / "record.jsonl"
    more = (tmp_path / "in", "-r", "-o", tmp_path / "out", "-j", 2, "--record", record)
    with vconv_process(*arguments(*more)) as process:
        _wait(process, lambda: len(list((tmp_path / "out/9").glob(".vconv-*"))) == 2)
        process.send_signal(number)
        told_at = time.monotonic()
        out, err = process.communicate(timeout=30)
        seconds = time.monotonic() - told_at
    assert (process.returncode, out) == (code, b""), err
    assert b"Traceback" not in err
    assert err.splitlines()[-1] == b"4 converted, 0 failed, 3 left"
    assert seconds < 5  # a second or so; the machine may be busy
    made = tree(tmp_path / "out")
    assert made == sorted(f"{index}/{index}.wav" for index in range(4))
    assert sorted(row["output"] for row in rows(record)) == [f"{tmp_path}/out/{x}" for x in made]


def noted(record: Path) -> int:
    """The lines of a record that is being written."""
    return record.read_bytes().count(b"\n") if record.exists() else 0


def _wait(process: subprocess.Popen[bytes], reached: Any) -> None:
    deadline = time.monotonic() + 300
    while not reached():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("count", [40, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_killed_batch_goes_on_to_the_outputs_of_one_that_was_not(
    convert: Run, tmp_path: Path, count: int
) -> None:
    source = recordings(tmp_path / "in", count)
    assert convert(source, "-r", "-o", tmp_path / "whole", "-q").code == 0
    record = tmp_path / "record.jsonl"
    more = (source, "-r", "-o", tmp_path / "out", "-j", 2, "--record", record)
    kills = 0
    for part in (1, 2):
        # Quiet: nobody reads its pipe.
        with vconv_process(*arguments(*more, "-q")) as process:
            _wait(process, lambda part=part: noted(record) >= count * part // 3)
            process.kill()
            process.communicate()
            kills += process.returncode == -signal.SIGKILL
    assert kills == 2
    before = {name: data for name, data in contents(tmp_path / "out").items() if "/." not in name}
    lines = rows(record)
    done = convert(*more[:-2], "--record", record)
    assert done.code == 0, done.err
    assert 0 < len(before) < count
    assert len({row["output"] for row in lines}) >= count * 2 // 3 - 2
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")  # and nothing half-written
    last = {row["output"]: row for row in rows(record)}
    assert len(last) == count
    assert {row["outcome"] for row in last.values()} == {"converted"}
    # At most those that were running at a kill were converted twice.
    assert len(rows(record)) <= count + 2 * 2
    done = convert(*more)
    assert (done.code, done.err) == (0, f"0 converted, 0 failed, {count:,} done before\n")


# -- what is said ---------------------------------------------------------------------------------


def test_the_time_to_go_follows_the_pace_and_ignores_what_was_done_before() -> None:
    now = [0.0]
    to_go = TimeToGo(lambda: now[0])
    assert to_go(0, 1000) is None
    for second in range(1, 11):
        now[0] = second
        rest = to_go(10 * second, 1000)
    assert rest == pytest.approx(90)
    assert to_go(100, 500) == pytest.approx(40)  # half was done before
    for second in range(11, 400):  # at half the pace from now on
        now[0] = second
        rest = to_go(100 + 5 * (second - 10), 5000)
    assert rest == pytest.approx((5000 - 100 - 5 * 389) / 5, rel=0.02)
    assert [told(x) for x in (4, 700, 12_000)] == ["4 s", "12 min", "3 h 20 min"]


@pytest.mark.parametrize("options", [(), ("-q",)])
def test_a_terminal_sees_one_bar_that_vanishes(tmp_path: Path, options: tuple[str, ...]) -> None:
    pty = pytest.importorskip("pty")
    source = recordings(tmp_path / "in", 2)
    long_recording(source / "9/long.wav", 60)
    master, slave = pty.openpty()
    seen: list[bytes] = []

    def read() -> None:
        try:
            while data := os.read(master, 4096):
                seen.append(data)
        except OSError:  # the other end is closed
            pass

    reader = threading.Thread(target=read)
    with subprocess.Popen(
        [sys.executable, "-m", "vconv", *map(str, arguments(source, "-r", "-o", tmp_path / "out",
                                                            "--json", "-j", 1, *options))],
        stderr=slave, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        os.close(slave)
        reader.start()
        out, _ = process.communicate(timeout=60)
    reader.join(10)
    os.close(master)
    text = b"".join(seen).decode()
    assert process.returncode == 0, text
    assert len(out.splitlines()) == 3
    if options:
        assert text == ""
        return
    bars = [part for part in text.split("\r") if "of 3 files [" in part]
    assert bars
    assert not any("\n" in bar for bar in bars)
    # Lines begin where a bar was taken away.
    lines = [line.split("\r")[-1] for line in text.replace("\r\n", "\n").splitlines()]
    assert sum(" times real time" in line and line.startswith("/") for line in lines) == 3
    assert lines[-1] == "3 converted, 0 failed"


@pytest.fixture(scope="module")
def converter() -> Iterator[Converter]:
    with load(exported()) as loaded:
        yield loaded


def test_the_cores_are_shared_among_the_files_that_are_running(
    converter: Converter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vconv import pool as pools

    monkeypatch.setattr(pools, "usable_cores", lambda: 8)
    threads = pools.Threads(converter, plain_options(), 4)
    for running, share in ((1, 8), (2, 4), (3, 2), (4, 2)):
        threads._running = dict.fromkeys(range(running), (0.0, None))
        assert threads._share() == share
    assert usable_cores() >= 1
