"""Bad inputs to the command: each is one line that says what is wrong, and nothing is left behind.

A table of files and of what `vconv convert` must say of them. Elsewhere: names that cannot be
printed, and outputs that exist or are the input (`test_cli.py`); damaged models (`test_bundle.py`);
pipes (`test_pipe.py`); what must be read well (`test_reading.py`).
"""

from __future__ import annotations

import io
import os
import pickle
import re
import resource
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from speech import speechlike
from test_reading import BAD, FLAC, MP3, OGG, WAV, encoded, patched
from tiny_model import exported
from vconv import cli
from vconv.guards import Guard

DATA = WAV.index(b"data")
TEN_HOURS = 36_000 * 16_000


class Payload:
    """Unpickled, it would leave a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("unpickled",))


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.wav", bytes(10_000_000))
    return buffer.getvalue()


def many_channels(container: str) -> bytes:
    """Eight silent channels of which the header says that they last for hours."""
    data = encoded(np.zeros((16_000, 8), np.int16), container)
    return patched(data, 22, ">I", TEN_HOURS) if container == "FLAC" else data


# Content, options, what must be said. All of these leave with 3; those of test_reading.BAD, which
# asks the reader itself, are run as well.
FILES: dict[str, tuple[bytes, tuple[object, ...], str]] = {
    **{name: (content, (), says) for name, (content, says) in BAD.items()},
    "shorter than the encoder needs": (encoded(speechlike(399)), (), "0.0249 s; at least"),
    "0 bits": (patched(WAV, 34, "<H", 0), (), "cannot be read as audio"),
    "255 bits": (patched(WAV, 34, "<H", 255), (), "cannot be read as audio"),
    "block align 0": (patched(WAV, 32, "<H", 0), (), "frames of 0 bytes"),
    "fmt of 4 GB": (patched(WAV, 16, "<I", 2**32 - 1), (), ""),
    "fmt of no bytes": (patched(WAV, 16, "<I", 0), (), "cannot be read as audio"),
    "junk of 4 GB": (WAV[:12] + b"JUNK\xf0\xff\xff\xff" + WAV[12:], (), "cannot be read as audio"),
    "data before fmt": (WAV[:12] + WAV[36:] + WAV[12:36], (), ""),
    "no fmt": (WAV[:12] + WAV[36:], (), ""),
    "pickle": (pickle.dumps(Payload()), (), "cannot be read as audio"),
    "zip": (zipped(), (), "cannot be read as audio"),
    "FLAC header only": (FLAC[:42], (), "cut short or is damaged: 16,000 frames declared, 0 are"),
    "FLAC magic only": (FLAC[:4], (), "cannot be read as audio"),
    "OGG header only": (OGG[:200], (), "cut short"),
    "MP3 header only": (MP3[:100], (), "cut short|cannot be read"),
    "ten hours of FLAC": (
        patched(FLAC, 22, ">I", TEN_HOURS),
        ("--max-duration", 3600),
        "is 36,000 s long, longer than the 3600 s allowed",
    ),
    "ten hours of 8 channels": (
        many_channels("FLAC"),
        ("--max-duration", 3600),
        "is 36,000 s long, longer than the 3600 s allowed",
    ),
    "ten hours that are not there": (many_channels("FLAC"), (), "frames declared, 16,000 are"),
    "no such channel": (encoded(np.zeros((900, 2))), ("--channel", 2), "no channel 2; there are 2"),
    "NaN in one channel of two": (
        encoded(np.stack([speechlike(9_000), np.full(9_000, np.nan)], 1), coding="FLOAT"),
        (),
        "contains NaN at frame 0",
    ),
    "infinity where it is not listened to": (
        encoded(np.stack([speechlike(9_000), np.full(9_000, np.inf)], 1), coding="FLOAT"),
        ("--channel", 0),
        "contains inf at frame 0",
    ),
    "NaN at the very end": (
        encoded(np.append(speechlike(9_000), np.nan), coding="DOUBLE"),
        (),
        "contains NaN at frame 9,000",
    ),
    "m4a that is a text": (b"\0\0\0\x10ftypM4A \0\0\0\0" + b"some words" * 9, (), "cut short"),
}


@dataclass
class Done:
    code: int
    out: str
    err: str


@pytest.fixture
def convert(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Done]:
    """`vconv convert` in this process, in an empty folder; it may not use a gigabyte."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Done:
        capfd.readouterr()
        words = ["convert", *map(str, arguments), "-s", "bea", "-m", str(exported())]
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        begun = time.process_time()
        code = cli._run(words, debug=False)
        assert time.process_time() - begun < 20  # generous: two seconds on a quiet machine
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000  # kB
        return Done(code, *capfd.readouterr())

    exported()
    return call


def one_error(done: Done) -> str:
    assert done.out == ""
    assert done.err.count("\n") == 1, done.err
    assert done.err.endswith(".\n")
    assert done.err.startswith("vconv: error: ")
    assert "Traceback" not in done.err
    assert "fault of vconv" not in done.err
    return done.err.removeprefix("vconv: error: ").rstrip("\n")


def contents(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize("case", FILES)
def test_a_bad_file_is_one_sentence_and_leaves_all_as_it_was(
    convert: Callable[..., Done], tmp_path: Path, case: str
) -> None:
    content, options, says = FILES[case]
    (tmp_path / "bad.wav").write_bytes(content)
    (tmp_path / "old.wav").write_bytes(b"old")
    before = contents(tmp_path)
    for more in ((), ("-o", "old.wav", "--overwrite"), ("-o", "new.flac", "--lanes", 2)):
        done = convert("bad.wav", *options, *more)
        assert done.code == 3, done.err
        error = one_error(done)
        assert error.startswith("bad.wav: ")
        assert re.search(says, error), error
        assert contents(tmp_path) == before


# The command, and its peak of memory in kB as a last line (0 where the system does not tell): what
# getrusage says of a child counts the memory of its parent, before it became the command.
PEAK_TOLD = """
import re, sys
from pathlib import Path
from vconv.cli import main
try:
    main()
finally:
    status = Path("/proc/self/status")
    text = status.read_text() if status.exists() else "VmHWM: 0"
    print(re.search(r"VmHWM:\\s*(\\d+)", text)[1], file=sys.stderr)
"""


def test_all_of_them_in_one_process_are_a_line_each_and_little_memory(tmp_path: Path) -> None:
    """Whatever the C libraries may print would be here too."""
    names = []
    for number, (content, options, _) in enumerate(FILES.values()):
        if not options:
            names.append(f"{number:03}.wav")
            (tmp_path / names[-1]).write_bytes(content)
    (tmp_path / "good.wav").write_bytes(encoded(speechlike(8_000)))
    command = [sys.executable, "-c", PEAK_TOLD, "convert", *names, "good.wav"]
    done = subprocess.run(
        [*command, "-s", "bea", "-m", str(exported()), "-o", "out"],
        cwd=tmp_path,
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    *lines, peak = done.stderr.decode().splitlines()
    assert done.stdout == b""
    good = [line for line in lines if line.startswith("good.wav -> out/good.wav (bea), 0.50 s in ")]
    bad = [line for line in lines[:-1] if line not in good]
    assert len(good) == 1
    assert all(line.startswith("vconv: error: ") for line in bad)
    assert sorted(line.split(": ")[2] for line in bad) == names
    assert lines[-1] == f"1 converted, {len(names)} failed"
    assert os.listdir(tmp_path / "out") == ["good.wav"]
    assert int(peak) < 1_000_000  # kB


# -- content that is converted ---------------------------------------------------------------------

SPEECH = speechlike(9_600)
ACCEPTED: dict[str, tuple[bytes, tuple[object, ...], str]] = {
    "denormals": (encoded(np.full(9_600, 1e-42, np.float32), coding="FLOAT"), (), "is silent"),
    "silence": (encoded(np.zeros(9_600)), (), "is silent"),
    "full-scale DC": (encoded(np.full(9_600, 0.9999)), (), ""),
    "antiphase": (encoded(np.stack([SPEECH, -SPEECH], 1)), (), "cancel each other.*--channel N"),
    "antiphase, one channel": (encoded(np.stack([SPEECH, -SPEECH], 1)), ("--channel", 1), ""),
    "six channels": (encoded(np.stack([SPEECH] * 6, 1)), (), ""),
    "six channels, the last": (encoded(np.stack([SPEECH] * 6, 1)), ("--channel", 5), ""),
    "an odd byte more": (encoded(SPEECH) + b"\0", (), ""),
    "A-law": (encoded(SPEECH, coding="ALAW"), (), ""),
    "cut, and asked for": (encoded(SPEECH)[:-1_001], ("--allow-truncated",), ""),
    "FLAC cut, and asked for": (encoded(SPEECH, "FLAC")[:-900], ("--allow-truncated",), ""),
    "FLAC by another name": (encoded(SPEECH, "FLAC"), (), ""),
    "4 kHz": (encoded(SPEECH, rate=4_000), (), ""),
    "192 kHz": (encoded(SPEECH, rate=192_000), (), ""),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_odd_content_is_converted_and_remarked_upon(
    convert: Callable[..., Done], tmp_path: Path, case: str
) -> None:
    content, options, warns = ACCEPTED[case]
    (tmp_path / "odd.wav").write_bytes(content)
    done = convert("odd.wav", "-q", *options)
    assert done.code == 0, done.err
    lines = done.err.splitlines()
    if warns:
        assert len(lines) == 1
        assert re.match(f"vconv: warning: odd.wav: .*{warns}", lines[0])
    else:
        assert lines == []
    made, rate = soundfile.read(tmp_path / "odd.bea.wav")
    assert rate == 16_000
    assert len(made) > 0
    assert np.isfinite(made).all()


# -- size ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [500, pytest.param(100_000, marks=pytest.mark.slow)])
def test_a_folder_of_many_files_goes_on_past_bad_ones_in_bounded_memory(
    convert: Callable[..., Done], tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if count > 500:
        monkeypatch.setattr(time, "process_time", lambda: 0.0)
    (tmp_path / "in").mkdir()
    for number in range(count):
        (tmp_path / "in" / f"{number:06}.wav").touch()
    (tmp_path / "in" / "good.wav").write_bytes(encoded(SPEECH))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    done = convert("in", "-o", "out")
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert done.code == 1
    assert done.err.splitlines()[-1] == f"1 converted, {count:,} failed"
    assert done.err.count("is empty.\n") == count
    assert os.listdir(tmp_path / "out") == ["good.wav"]
    assert grown < 200_000


# -- paths -----------------------------------------------------------------------------------------


def fifo(folder: Path) -> str:
    os.mkfifo(folder / "fifo.wav")
    return "fifo.wav"


def link(target: str) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        (folder / "link.wav").symlink_to(target)
        return "link.wav"

    return make


def unreadable(folder: Path) -> str:
    if os.geteuid() == 0:
        pytest.skip("root can read everything")
    (folder / "secret.wav").write_bytes(WAV)
    (folder / "secret.wav").chmod(0)
    return "secret.wav"


def empty_folder(folder: Path) -> str:
    (folder / "empty").mkdir()
    return "empty"


INPUTS: dict[str, tuple[Callable[[Path], str], str]] = {
    "missing": (lambda folder: "none.wav", "does not exist"),
    "in a missing folder": (lambda folder: "nowhere/none.wav", "does not exist"),
    "below a file": (lambda folder: f"{__file__}/none.wav", "cannot be opened|does not exist"),
    "a folder without recordings": (empty_folder, "contains no recordings"),
    "a FIFO": (fifo, "is not a regular file"),
    "a link to nothing": (link("nowhere.wav"), "is a link to a missing file"),
    "a link to itself": (link("link.wav"), "cannot be opened"),
    "a link to a device": (link("/dev/zero"), "is not a regular file"),
    "/dev/zero": (lambda folder: "/dev/zero", "is not a regular file"),
    "unreadable": (unreadable, "permission denied"),
    "a name that is too long": (lambda folder: "x" * 5_000, "cannot be opened"),
}


@pytest.mark.parametrize("case", INPUTS)
def test_a_path_that_is_no_recording_is_refused_at_once(
    convert: Callable[..., Done], tmp_path: Path, case: str
) -> None:
    make, says = INPUTS[case]
    name = make(tmp_path)
    before = sorted(os.listdir(tmp_path))
    done = convert(name, "-o", "out.wav")
    assert done.code == 3, done.err
    error = one_error(done)
    assert error.startswith(f"{name}: ")
    assert re.search(says, error)
    assert sorted(os.listdir(tmp_path)) == before


def read_only(folder: Path) -> str:
    if os.geteuid() == 0:
        pytest.skip("root can write everywhere")
    (folder / "locked").mkdir(mode=0o500)
    return "locked/out.wav"


def a_folder_there(folder: Path) -> str:
    (folder / "there.wav").mkdir()
    (folder / "there.wav" / "there.wav").mkdir()
    return "there.wav/there.wav/"


OUTPUTS: dict[str, tuple[Callable[[Path], str], str]] = {
    "read-only": (read_only, "permission denied"),
    "in a place that takes no files": (lambda folder: "/proc/nothing/out.wav", "cannot be made"),
    "below a file": (lambda folder: "in.wav/out.wav", "cannot be made"),
    "a format that cannot be written": (lambda folder: "out.m4a", "'m4a' cannot be written"),
}


@pytest.mark.parametrize("case", OUTPUTS)
def test_an_output_that_cannot_be_is_refused(
    convert: Callable[..., Done], tmp_path: Path, case: str
) -> None:
    make, says = OUTPUTS[case]
    (tmp_path / "in.wav").write_bytes(encoded(SPEECH))
    name = make(tmp_path)
    before = contents(tmp_path)
    done = convert("in.wav", "-o", name)
    assert done.code == 2, done.err
    assert re.search(says, one_error(done).lower()), done.err
    assert contents(tmp_path) == before


def test_a_full_disk_is_one_sentence_and_leaves_the_old_output(tmp_path: Path) -> None:
    """A limit on the size of files stands in for it."""
    (tmp_path / "in.wav").write_bytes(encoded(speechlike(48_000)))
    (tmp_path / "old.wav").write_bytes(b"old")
    command = [sys.executable, "-m", "vconv", "convert", "in.wav", "-o", "old.wav", "--overwrite"]
    done = subprocess.run(
        [*command, "-s", "bea", "-m", str(exported())],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )
    assert done.returncode == 2, done.stderr
    assert "old.wav: cannot be written" in one_error(Done(2, done.stdout, done.stderr))
    assert sorted(os.listdir(tmp_path)) == ["in.wav", "old.wav"]
    assert (tmp_path / "old.wav").read_bytes() == b"old"


def test_an_output_whose_name_is_too_long_is_one_sentence(
    convert: Callable[..., Done], tmp_path: Path
) -> None:
    (tmp_path / "in.wav").write_bytes(encoded(SPEECH))
    done = convert("in.wav", "-o", "x" * 300 + ".wav")
    assert done.code == 2
    one_error(done)


def disturbed(monkeypatch: pytest.MonkeyPatch, disturb: Callable[[], None], after: int = 2) -> None:
    """Something happens once so many blocks of the recording have been read."""
    count: Iterator[int] = iter(range(1_000))
    check = Guard.__call__

    def call(self: Guard, block: Any) -> Any:
        if next(count) == after:
            disturb()
        return check(self, block)

    monkeypatch.setattr(Guard, "__call__", call)


@pytest.mark.parametrize("container", ["WAV", "FLAC", "OGG"])
def test_a_recording_that_shrinks_while_it_is_read_is_noticed(
    convert: Callable[..., Done],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    container: str,
) -> None:
    path = tmp_path / "in.wav"
    coding = {"OGG": "VORBIS"}.get(container, "PCM_16")
    path.write_bytes(encoded(speechlike(160_000), container, coding))
    disturbed(monkeypatch, lambda: os.truncate(path, 9_000))
    done = convert("in.wav")
    assert done.code == 3, done.err
    assert "was cut short or is damaged: 160,000 frames declared" in one_error(done)
    assert os.listdir(tmp_path) == ["in.wav"]


def test_a_recording_that_is_removed_while_it_is_read_is_converted(
    convert: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "in.wav"
    path.write_bytes(encoded(speechlike(48_000)))
    disturbed(monkeypatch, path.unlink)
    done = convert("in.wav", "-q")
    assert (done.code, done.err) == (0, "")
    assert os.listdir(tmp_path) == ["in.bea.wav"]


# -- environment -----------------------------------------------------------------------------------


def test_without_memory_nothing_partial_is_left(
    convert: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted() -> None:
        raise MemoryError

    (tmp_path / "in.wav").write_bytes(encoded(speechlike(48_000)))
    (tmp_path / "old.wav").write_bytes(b"old")
    disturbed(monkeypatch, exhausted)
    done = convert("in.wav", "-o", "old.wav", "--overwrite")
    assert done.code == 5
    assert "not enough memory" in one_error(done)
    assert sorted(os.listdir(tmp_path)) == ["in.wav", "old.wav"]
    assert (tmp_path / "old.wav").read_bytes() == b"old"


@pytest.mark.parametrize(
    ("package", "options"),
    [
        ("onnxruntime", ()),
        ("torch", ("--engine", "torchscript")),
    ],
)
def test_a_package_that_is_missing_is_named(
    tmp_path: Path, package: str, options: tuple[str, ...]
) -> None:
    (tmp_path / "in.wav").write_bytes(encoded(SPEECH))
    without = f"import sys; sys.modules['{package}'] = None; from vconv.cli import main; main()"
    command = [sys.executable, "-c", without, "convert", "in.wav", "-s", "bea"]
    done = subprocess.run(
        [*command, "-m", str(exported()), *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 5, done.stderr
    assert package in one_error(Done(5, done.stdout, done.stderr))
    assert os.listdir(tmp_path) == ["in.wav"]


def test_without_ffmpeg_a_phones_recording_names_it(
    convert: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    (tmp_path / "memo.m4a").write_bytes(b"\0\0\0\x10ftypM4A \0\0\0\0\0\0\0\x08moov")
    done = convert("memo.m4a")
    assert done.code == 5
    assert "only ffmpeg can read here, and it is not installed" in one_error(done)
    (tmp_path / "good.wav").write_bytes(encoded(SPEECH))
    done = convert("memo.m4a", "good.wav")
    assert done.code == 1
    assert done.err.splitlines()[-1] == "1 converted, 1 failed"
