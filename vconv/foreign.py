"""Sound that libsndfile cannot read, decoded by an ffmpeg that is installed.

ffmpeg is a program of its own and is told as little as possible: which demuxer to use (so that a
file cannot pass for a playlist that names others, or addresses), that it may read files and pipes
and nothing else, and that it shall give the first sound track as floats. It answers in Sun's AU
format, whose header holds rate and channels and needs no length.
"""

import collections
import contextlib
import math
import os
import re
import shutil
import signal
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .errors import InputError, SetupError
from .foreign_containers import Container
from .guards import Samples

PATIENCE_SECONDS = 30.0  # how long ffmpeg may say nothing while it is waited for
OPEN_ENDED = 1 << 62  # frames, where no length is declared
_MAX_HEADER = 1 << 16
_KEPT_WORDS = 2_000  # of what ffmpeg says on stderr, in bytes
# What a coder adds at the beginning is cut off by some writers' arithmetic and not by others'.
_SLACK_SECONDS = 0.25


class DecoderMissing(InputError, SetupError):
    """A recording that this machine could use if it had the program: a bad input among many, and
    of a single one the machine's fault (exit code 5)."""

    exit_code = SetupError.exit_code


class ForeignSound:
    """A recording as ffmpeg decodes it, read onwards: `samplerate`, `channels`, `frames`, `read`
    and `close`, as soundfile has them.

    `frames` is what the container declares, and OPEN_ENDED where it does not; `slack` how many
    fewer may come. Raises OSError where ffmpeg fails, says nothing for long, or gives no sound.
    """

    def __init__(
        self,
        file: BinaryIO,
        path: Path | None,
        container: Container,
        *,
        seconds: float | None,
        lenient: bool,
    ) -> None:
        """`file` is the recording, at `path` if it has one; `lenient` takes what can be decoded
        of a damaged one."""
        program = shutil.which("ffmpeg")
        if program is None:
            raise FileNotFoundError("ffmpeg")
        self._lenient = lenient
        self._cleanup = contextlib.ExitStack()
        try:
            where = self._cleanup.enter_context(_on_disk(file)) if path is None else path
            self._process = subprocess.Popen(
                _command(program, where, container, lenient),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=_environment(),
                # Ctrl-C is ours to answer; if we are killed, a closed pipe ends it.
                start_new_session=True,
            )
            self._watch = _Watch(self._process)
            self._cleanup.callback(self._watch.end)
            self.samplerate, self.channels = self._header()
        except BaseException:
            self.close()
            raise
        self.frames = OPEN_ENDED if seconds is None else round(seconds * self.samplerate)
        self.slack = math.ceil(_SLACK_SECONDS * self.samplerate)

    def read(self, frames: int, dtype: str = "float32", always_2d: bool = True) -> Samples:
        """The next frames [T, C], fewer at the end and none after it."""
        assert dtype == "float32"
        assert always_2d
        data = self._watch.read(frames * self.channels * 4)
        if len(data) < frames * self.channels * 4:
            self._ended(gave=len(data) > 0)
        whole = len(data) // (self.channels * 4) * self.channels
        return np.frombuffer(data, ">f4", whole).reshape(-1, self.channels).astype(np.float32)

    def close(self) -> None:
        """End ffmpeg, whatever it is doing, and wait for it."""
        self._cleanup.close()

    def _header(self) -> tuple[int, int]:
        """(rate in Hz, channels) from the AU header: magic, offset, length, coding, these two."""
        head = self._watch.read(24)
        if len(head) < 24:
            self._ended(gave=False)
            raise OSError("ffmpeg finds no sound in it")
        magic, offset, _, coding, rate, channels = struct.unpack(">4s5I", head)
        if magic != b".snd" or coding != 6 or not 24 <= offset <= _MAX_HEADER or channels > 1024:
            raise OSError("ffmpeg answers in another format than it was asked for")
        self._watch.read(offset - 24)
        return rate, channels

    def _ended(self, gave: bool) -> None:
        """The output is over: raise unless that is because all went well. What came is given
        first; the next call finds the end again."""
        code = self._watch.wait()
        if gave:
            return
        if self._watch.gave_up:
            raise OSError(f"ffmpeg said nothing for {PATIENCE_SECONDS:g} s")
        if code == 0 or (self._lenient and hasattr(self, "samplerate")):
            return
        said = self._watch.words()
        raise OSError(f"ffmpeg: {said}" if said else f"ffmpeg failed with exit code {code}")


class _Watch:
    """Reads a process's output, drains its stderr, and kills it when it leaves us waiting."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        self._process = process
        self._stdout, self._stderr = process.stdout, process.stderr
        self._said: collections.deque[bytes] = collections.deque()
        self._deadline = math.inf
        self._over = threading.Event()
        self.gave_up = False
        self._threads = [threading.Thread(target=t, daemon=True) for t in (self._drain, self._time)]
        for thread in self._threads:
            thread.start()

    def read(self, count: int) -> bytes:
        """So many bytes, fewer at the end of the output."""
        self._deadline = time.monotonic() + PATIENCE_SECONDS
        try:
            return self._stdout.read(count)
        finally:
            self._deadline = math.inf

    def wait(self) -> int:
        """The exit code; a process that has closed its output and stays is killed."""
        try:
            return self._process.wait(timeout=PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self.gave_up = True
            self._kill()
            return self._process.wait()

    def words(self) -> str:
        """The first line that it said on stderr, without addresses, as a clause."""
        self._threads[0].join(timeout=1.0)
        lines = b"".join(self._said).decode("utf-8", "replace").splitlines()
        line = next((line for line in lines if line.strip()), "")
        line = re.sub(r"^(\[[^]]*\]\s*)+", "", line.strip())
        return line[:200].rstrip(". ")

    def end(self) -> None:
        self._over.set()
        self._kill()
        self._process.wait()
        for thread in self._threads:
            thread.join()
        self._stdout.close()
        self._stderr.close()

    def _drain(self) -> None:
        kept = 0
        while piece := os.read(self._stderr.fileno(), 4096):
            if kept < _KEPT_WORDS:
                self._said.append(piece)
                kept += len(piece)

    def _time(self) -> None:
        while not self._over.wait(0.2):
            if time.monotonic() > self._deadline:
                self.gave_up = True
                self._kill()
                return

    def _kill(self) -> None:
        """With all that it started: what may be called ffmpeg is often a script around it."""
        if os.name == "posix":
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        else:
            self._process.kill()


def missing_program(name: str, container: Container) -> InputError:
    """The error for a recording that only ffmpeg could read, where it is not installed."""
    return DecoderMissing(
        f"{name}: is {container.name}, which only ffmpeg can read here, and it is not installed; "
        "install ffmpeg, or turn the recording into a WAV or FLAC file."
    )


def _command(
    program: str, path: str | os.PathLike[str], container: Container, lenient: bool
) -> list[str]:
    """Without a shell; `file:` keeps a name with a colon or a dash from meaning something else."""
    return [
        program,
        *("-nostdin", "-hide_banner", "-v", "error"),
        *(() if lenient else ("-xerror",)),  # the first frame that cannot be decoded is the end
        *("-protocol_whitelist", "file,pipe", "-threads", "1", "-f", container.demuxer),
        *("-i", f"file:{os.fspath(path)}"),
        *("-map", "0:a:0", "-vn", "-sn", "-dn", "-map_metadata", "-1", "-threads", "1"),
        *("-c:a", "pcm_f32be", "-f", "au", "pipe:1"),
    ]


def _environment() -> dict[str, str]:
    """Ours, without what would have ffmpeg write a report into the working directory."""
    kept = {name: value for name, value in os.environ.items() if name != "FFREPORT"}
    return kept | {"AV_LOG_FORCE_NOCOLOR": "1"}


@contextlib.contextmanager
def _on_disk(file: BinaryIO) -> Iterator[Path]:
    """A copy of a file without a path: an m4a's index may be at its end, so a pipe will not do."""
    with tempfile.TemporaryDirectory(prefix="vconv-") as folder:
        path = Path(folder) / "recording"
        file.seek(0)
        with path.open("xb") as copy:
            shutil.copyfileobj(file, copy)
        yield path
