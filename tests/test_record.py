"""The record of a batch: what it says, what it makes unnecessary, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
import soundfile

from batches import contents, recordings, rows
from command_line import Run, one_error, tree, wav
from tiny_model import exported
from vconv.record import Record


@pytest.fixture
def batch(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Three recordings, where they go, and the record."""
    return recordings(tmp_path / "in", 3), tmp_path / "out", tmp_path / "record.jsonl"


def test_a_record_says_what_was_made_of_what_and_how(
    convert: Run, batch: tuple[Path, Path, Path]
) -> None:
    source, out, record = batch
    (source / "0/bad.wav").write_bytes(b"")
    done = convert(source, "-r", "-o", out, "--record", record, "--seed", 3, "--lanes", 2)
    assert done.code == 1
    found = {row["input"]: row for row in rows(record)}
    assert set(found) == {"0/0.wav", "1/1.wav", "2/2.wav", "0/bad.wav"}
    row = found["1/1.wav"]
    data = (source / "1/1.wav").read_bytes()
    made = (out / "1/1.wav").read_bytes()
    assert (row["outcome"], row["root"], row["output"]) == (
        "converted",
        str(source),
        f"{out}/1/1.wav",
    )
    assert row["input_sha256"] == hashlib.sha256(data).hexdigest()
    assert row["input_bytes"] == len(data)
    assert row["output_sha256"] == hashlib.sha256(made).hexdigest()
    manifest = json.loads((exported() / "manifest.json").read_text())
    assert row["model"] == {"name": manifest["name"], "digest": manifest["digest"]}
    options = row["options"]
    assert (options["speaker"], options["seed"], options["lanes"]) == ("bea", 3, 2)
    assert (options["engine"], options["precision"], options["format"]) == ("native", "fp32", "wav")
    failed = found["0/bad.wav"]
    assert (failed["outcome"], failed["exit_code"]) == ("failed", 3)
    assert "is empty" in failed["error"]


def test_only_what_is_the_same_is_passed_over(
    run: Run, convert: Run, batch: tuple[Path, Path, Path]
) -> None:
    source, out, record = batch

    def again(*options: object) -> str:
        done = convert(source, "-r", "-o", out, "--record", record, *options)
        assert done.code == 0, done.err
        return done.err.splitlines()[-1]

    assert again() == "3 converted, 0 failed"
    plain = contents(out)
    assert again() == "0 converted, 0 failed, 3 done before"
    # another option: its own outputs are replaced, and come back with the first
    assert again("--seed", 1) == "3 converted, 0 failed"
    assert contents(out).keys() == plain.keys()
    assert not set(contents(out).values()) & set(plain.values())
    assert again("-j", 1, "--seed", 1) == "0 converted, 0 failed, 3 done before"
    # killed between the line and the renaming: what stands there is still the run's own
    second = contents(out)
    for name, data in plain.items():
        (out / name).write_bytes(data)
    assert again("--seed", 1) == "3 converted, 0 failed"
    assert contents(out) == second
    assert again() == "3 converted, 0 failed"
    assert contents(out) == plain
    # another input under the old name, with the old time and size
    path = source / "1/1.wav"
    status, data = path.stat(), bytearray(path.read_bytes())
    data[-300:-100] = bytes(200)
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert again() == "1 converted, 0 failed, 2 done before"
    # an output that is gone
    (out / "2/2.wav").unlink()
    assert again() == "1 converted, 0 failed, 2 done before"
    # another model
    other = ("-s", "bea", "-m", exported("fsq"))
    done = run("convert", source, "-r", "-o", out, "--record", record, *other)
    assert (done.code, done.err.splitlines()[-1]) == (0, "3 converted, 0 failed")


def test_what_others_put_there_is_refused_as_ever(
    convert: Run, batch: tuple[Path, Path, Path]
) -> None:
    source, out, record = batch
    run = (source, "-r", "-o", out, "--record", record)
    (out / "0").mkdir(parents=True)
    (out / "0/0.wav").write_bytes(b"somebody's")
    assert convert(*run).code == 1
    (out / "1/1.wav").write_bytes(b"somebody's, later")
    done = convert(*run)
    assert done.code == 1
    assert done.err.count("exists; --overwrite replaces it") == 2
    assert (out / "0/0.wav").read_bytes() == b"somebody's"
    assert (out / "1/1.wav").read_bytes() == b"somebody's, later"
    done = convert(*run, "--skip-existing")
    assert done.err.splitlines()[-1] == "0 converted, 0 failed, 2 skipped, 1 done before"
    done = convert(*run, "--overwrite")
    assert done.err.splitlines()[-1] == "2 converted, 0 failed, 1 done before"
    assert soundfile.info(out / "0/0.wav").frames > 0


def test_failures_are_tried_again(convert: Run, batch: tuple[Path, Path, Path]) -> None:
    source, out, record = batch
    bad = source / "0/bad.wav"
    bad.write_bytes(b"")
    assert convert(source, "-r", "-o", out, "--record", record).code == 1
    wav(bad)
    done = convert(source, "-r", "-o", out, "--record", record)
    assert (done.code, done.err.splitlines()[-1]) == (0, "1 converted, 0 failed, 3 done before")


def test_outputs_among_the_inputs_are_no_inputs_of_the_next_run(
    convert: Run, batch: tuple[Path, Path, Path]
) -> None:
    source, _, record = batch
    for line in ("3 converted, 0 failed", "0 converted, 0 failed, 3 done before"):
        done = convert(source, "-r", "-o", source, "-f", "flac", "--record", record)
        assert (done.code, done.err.splitlines()[-1]) == (0, line)


def test_a_torn_line_is_cut_off(convert: Run, batch: tuple[Path, Path, Path]) -> None:
    source, out, record = batch
    run = (source, "-r", "-o", out, "-j", 1, "--record", record)
    assert convert(*run).code == 0
    whole = record.read_bytes()
    for kept in (1, 8, 100):
        lines = whole.splitlines(keepends=True)
        record.write_bytes(b"".join(lines[:2]) + lines[2][:kept])
        (out / "2/2.wav").unlink()
        done = convert(*run)
        assert (done.code, done.err.splitlines()[-1]) == (0, "1 converted, 0 failed, 2 done before")
        assert len(rows(record)) == 3


def test_what_is_no_record_is_left_alone(convert: Run, batch: tuple[Path, Path, Path]) -> None:
    source, out, record = batch
    run = (source, "-r", "-o", out, "--record")
    foreign = (b"notes\n", b"notes", b'{"a": 1}\n', b"\x00" * 100, b'{"vconv": "1"}\n')
    for data in foreign:
        record.write_bytes(data)
        done = convert(*run, record)
        assert done.code == 2
        assert "name another file" in one_error(done)
        assert record.read_bytes() == data
    assert not out.exists()


def test_one_process_at_a_time_writes_a_record(
    convert: Run, batch: tuple[Path, Path, Path]
) -> None:
    source, out, record = batch
    with Record(str(record)):
        done = convert(source, "-r", "-o", out, "--record", record)
    assert done.code == 2
    assert "another process is writing it" in one_error(done)
    assert not record.exists()  # nothing was written into it
    assert convert(source, "-r", "-o", out, "--record", record).code == 0


def test_a_record_that_cannot_be_written_ends_the_batch_with_nothing_half_written(
    convert: Run, batch: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out, record = batch
    write, calls = os.write, []

    def full(descriptor: int, data: bytes) -> int:
        calls.append(data)
        return write(descriptor, data if len(calls) == 1 else data[:10])

    monkeypatch.setattr(os, "write", full)
    done = convert(source, "-r", "-o", out, "--record", record, "-j", 1)
    assert done.code == 2
    assert done.err.splitlines()[-1].startswith(f"vconv: error: --record {record}: cannot be wri")
    assert len(rows(record)) == 1
    assert [f"{out}/{name}" for name in tree(out)] == [row["output"] for row in rows(record)]


def test_contradictions_are_refused_in_a_sentence(
    convert: Run, batch: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    source, out, _ = batch
    before = tree(tmp_path)
    for options, says in (
        (["--jobs", 0], "--jobs must be auto or 1 to"),
        (["--jobs", "many"], "--jobs must be auto or 1 to"),
        (["--jobs", "99999"], "--jobs must be auto or 1 to"),
        (["--shard", "5/4"], "must be 1 to 4"),
        (["--shard", "0/4"], "must be 1 to 4"),
        (["--shard", "1/0"], "must be 1 or more"),
        (["--shard", "1"], "expected I/N"),
        (["--shard", "1/2", "-o", f"{source}/"], "is the input folder itself"),
        (["--ray=auto", "--device", "cuda"], "--ray converts on processors"),
        (["--record", tmp_path], "cannot be opened for writing"),
        (["--record", tmp_path / "none/record"], "cannot be opened for writing"),
        (["--record", source / "1/1.wav"], "name another file"),
        (["--record", out / "1/1.wav"], "is an output too"),
        (["--record", "/dev/null"], "is no plain file"),
        (["--overwrite", "--skip-existing"], "contradict"),
    ):
        if "output" in says:
            (out / "1").mkdir(parents=True)
        done = convert(source, "-r", "-o", out, *options)
        assert done.code == 2, options
        assert says in one_error(done)
        if "output" in says:
            (out / "1").rmdir()
            out.rmdir()
        assert tree(tmp_path) == before
    for option in ("--record=x", "--shard=1/2", "--ray=local"):
        assert "stdin" in one_error(convert("-", "-o", tmp_path / "x.wav", option))
        assert "stdout" in one_error(convert(source / "1/1.wav", "-o", "-", option))
