"""Guarded reading of users' recordings: nothing is trusted before it is checked.

libsndfile decodes a truncated WAV in silence, allocates what a header claims and hangs on a FIFO.
So a file's kind is looked at before it is opened, its header before it is decoded, it is decoded
in bounded blocks, every block is checked, and what came is compared with what was declared.
"""

import io
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
import soundfile

from .containers import cut_short, empty_frames, plain_wav
from .errors import InputError
from .foreign import OPEN_ENDED, ForeignSound, missing_program
from .foreign_containers import Container, declared, recognised
from .guards import Guard, Samples, checked_header

__all__ = [
    "AudioInfo",
    "AudioReader",
    "Samples",
    "Source",
    "printable",
    "read_blocks",
    "reason_of",
]

Source = str | os.PathLike[str] | bytes | BinaryIO


@dataclass(frozen=True)
class AudioInfo:
    """What a header says: `frames` is None where it leaves the length open (a streamed FLAC).

    Of what ffmpeg decodes it is the container's, which may be off by a quarter of a second.
    """

    rate: int
    channels: int
    frames: int | None

    @property
    def seconds(self) -> float | None:
        """The declared duration."""
        return None if self.frames is None else self.frames / self.rate


def printable(name: str | os.PathLike[str]) -> str:
    """A file name made safe to print: control, bidirectional and undecodable characters escaped."""
    text = os.fspath(name)
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii")
        for c in text
    )


class _Guarded:
    """A binary file as libsndfile's callbacks read it: an error is kept, where they would print it.

    A kept error reads as the end of the file. With `head`, that stands in the place of all before
    position `begin`.
    """

    def __init__(self, file: BinaryIO, head: bytes = b"", begin: int = 0) -> None:
        self._file = file
        self._head = head
        self._shift = begin - len(head)
        self._size = file.seek(0, os.SEEK_END) - self._shift
        self._at = 0
        self.error: OSError | None = None

    def read(self, count: int) -> bytes:
        start = self._head[self._at : self._at + count]
        rest = b""
        if len(start) < count:
            try:
                self._file.seek(self._at + len(start) + self._shift)
                rest = self._file.read(count - len(start))
            except OSError as error:
                self.error = error
        self._at += len(start) + len(rest)
        return start + rest

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)  # a damaged header may send it before the start
        return self._at

    def tell(self) -> int:
        return self._at


class _Sequential(soundfile.SoundFile):  # type: ignore[misc]  # soundfile has no types
    """A sound file that is only read onwards.

    soundfile seeks after every read of a seekable file, to where it already is; in a damaged
    FLAC that fails instead of giving what was decoded, and in an MP3 it alters samples.
    """

    slack = 0  # how many frames fewer than declared may come

    def seekable(self) -> bool:
        return False


class AudioReader:
    """An opened recording: `info`, then its mono blocks by iteration, once. A context manager.

    Args:
        source: a path, the bytes of a file, or a seekable binary file.
        block_seconds: length of a block at most; the last one is shorter.
        channel: the channel to take; None takes the mean of all.
        allow_truncated: take what is there of a recording that was cut short.
        max_seconds: refuse recordings longer than this, from their header or while decoding.

    Raises `InputError`, "<file>: <reason>", at once for what the header shows and during iteration
    for what only decoding shows.
    """

    def __init__(
        self,
        source: Source,
        *,
        block_seconds: float = 1.0,
        channel: int | None = None,
        allow_truncated: bool = False,
        max_seconds: float | None = None,
    ) -> None:
        self._allow_truncated = allow_truncated
        self.name, self._file, self._owned = open_source(source)
        self._path = Path(source) if isinstance(source, (str, os.PathLike)) else None
        self._guarded: _Guarded | None = None
        try:
            self._sound = self._decoder()
            self.info = self._checked_info(channel, max_seconds)
            self._guard = Guard(self.name, self.info.rate, channel=channel, max_seconds=max_seconds)
        except BaseException:
            self.close()
            raise
        self._block = max(1, round(block_seconds * self.info.rate))
        if allow_truncated:
            # The block in which a decoder fails is lost, so let little be lost.
            self._block = min(self._block, 1_024)

    @property
    def mix_cancels(self) -> bool:
        """Whether the channels read so far were in antiphase: sound in each, silence in the mean"""
        return self._guard.mix_cancels

    @property
    def peak(self) -> float:
        """Of what was read so far."""
        return self._guard.peak

    @property
    def clipped(self) -> int:
        """How many samples read so far were at full scale."""
        return self._guard.clipped

    def __iter__(self) -> Iterator[Samples]:
        guard = self._guard
        while len(block := self._read()):
            yield guard(block)
        declared = self.info.frames
        lacking = 0 if declared is None else declared - guard.frames
        if lacking > self._sound.slack and not self._allow_truncated:
            raise self._error(_counts(declared, guard.frames))
        if guard.frames == 0:
            raise self._error("contains no samples")

    def __enter__(self) -> "AudioReader":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close what was opened here; a file that was passed in stays open."""
        sound = getattr(self, "_sound", None)
        if sound is not None:
            sound.close()
        if self._owned:
            self._file.close()

    def _decoder(self) -> "_Sequential | ForeignSound":
        try:
            if self._file.seek(0, os.SEEK_END) == 0:
                raise self._error("is empty")
            container = recognised(self._file)
            if container is not None:
                return self._foreign(container)
            if empty_frames(self._file):
                raise self._error("has a header that declares frames of 0 bytes (block align)")
            missing = None if self._allow_truncated else cut_short(self._file)
            if missing is not None:
                raise self._error(f"was cut short: {missing}")
            self._guarded = _Guarded(self._file, *(plain_wav(self._file) or ()))
            return _Sequential(self._guarded)
        except (soundfile.LibsndfileError, OSError, ValueError) as error:
            raise self._error(f"cannot be read as audio ({reason_of(error)})") from None

    def _foreign(self, container: Container) -> ForeignSound:
        """What ffmpeg makes of a recording that libsndfile cannot read."""
        says = declared(self._file, container, self._file.seek(0, os.SEEK_END))
        if says.missing is not None and not self._allow_truncated:
            raise self._error(f"was cut short: {says.missing}")
        try:
            return ForeignSound(
                self._file,
                self._path,
                container,
                seconds=says.seconds,
                lenient=self._allow_truncated,
            )
        except FileNotFoundError:
            raise missing_program(self.name, container) from None

    def _checked_info(self, channel: int | None, max_seconds: float | None) -> AudioInfo:
        rate, channels = self._sound.samplerate, self._sound.channels
        frames = None if self._sound.frames >= OPEN_ENDED else self._sound.frames
        checked_header(
            self.name,
            rate=rate,
            channels=channels,
            frames=frames,
            channel=channel,
            max_seconds=max_seconds,
        )
        return AudioInfo(rate, channels, frames)

    def _read(self) -> Samples:
        try:
            block: Samples = self._sound.read(self._block, dtype="float32", always_2d=True)
        except (soundfile.LibsndfileError, OSError) as error:
            if self._allow_truncated:
                return np.zeros((0, self.info.channels), np.float32)
            counts = _counts(self.info.frames, self._guard.frames)
            raise self._error(f"{counts} ({reason_of(error)})") from None
        if self._guarded is not None and self._guarded.error is not None:
            raise self._error(f"cannot be read ({reason_of(self._guarded.error)})")
        return block

    def _error(self, reason: str) -> InputError:
        return InputError(f"{self.name}: {reason}.")


def read_blocks(
    source: Source,
    *,
    block_seconds: float = 1.0,
    channel: int | None = None,
    allow_truncated: bool = False,
    max_seconds: float | None = None,
) -> AudioReader:
    """Open a recording for guarded reading in blocks: see `AudioReader`."""
    return AudioReader(
        source,
        block_seconds=block_seconds,
        channel=channel,
        allow_truncated=allow_truncated,
        max_seconds=max_seconds,
    )


def open_source(source: Source, kind: str = "an audio file") -> tuple[str, BinaryIO, bool]:
    """(printable name, binary file, whether it is ours to close); `InputError` for a path that is
    no regular file. `kind` says what it ought to be."""
    if isinstance(source, bytes):
        return "<bytes>", io.BytesIO(source), True
    if not isinstance(source, (str, os.PathLike)):
        return printable(str(getattr(source, "name", "<file>"))), source, False
    path = Path(source)
    name = printable(path)
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise InputError(f"{name}: is a folder, not {kind}.")
        # Looked at before opening: opening a FIFO waits for ever, and /dev/zero never ends.
        if not stat.S_ISREG(mode):
            raise InputError(f"{name}: is not a regular file.")
        return name, path.open("rb"), True
    except FileNotFoundError:
        what = "is a link to a missing file" if path.is_symlink() else "does not exist"
        raise InputError(f"{name}: {what}.") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{name}: cannot be opened ({reason_of(error)}).") from None


def _counts(declared: int | None, delivered: int) -> str:
    if declared is None:
        return f"is damaged after {delivered:,} frames"
    return f"was cut short or is damaged: {declared:,} frames declared, {delivered:,} are there"


def reason_of(error: Exception) -> str:
    """Why a file operation failed, as a clause to put in brackets."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else ""
    if isinstance(error, soundfile.LibsndfileError):
        text = error.error_string
    text = (text or str(error) or type(error).__name__).strip().rstrip(".").lower()
    return text.removeprefix("error : ")
