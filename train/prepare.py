"""Preparing a corpus: recordings of any kind -> one int16 file, its index and its statistics.

Utterances are converted in parallel and written in the source's order, each noted in a journal
once it is on disk, so that an interrupted preparation goes on where it stopped. `corpus.json` is
written last, in one rename: a folder that has it is complete. The same recordings give the same
bytes, whatever the number of jobs and the interruptions. A complete corpus that is to be replaced
stands until the other is complete too.
"""

import errno
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from vconv.audio import SAMPLE_RATE, Resampler, read_blocks
from vconv.errors import InputError, SetupError, UsageError
from vconv.reading import printable, reason_of

from .bar import drawn_bar
from .corpus import AUDIO, FULL_SCALE, HEADER, UTTERANCES, VERSION
from .journal import JOURNAL, Journal
from .lock import HOLDER, LOCK, only_writer
from .sources import Listing, hold_out, list_source
from .statistics import feature_statistics

# Half a second: more than the encoder's look-ahead and the decoder's receptive field together
# (at most 0.17 s + 0.26 s in any preset), so a first and a last sample see nothing but silence.
PAD_SAMPLES = 8_000
MIN_SAMPLES = 400  # one analysis frame
MAX_SECONDS = 3_600.0  # a process holds a whole utterance: 230 MB for an hour
CLIPPED_SAMPLES = 4  # at full scale; a recording that was only normalised has one or two
SILENT_PEAK = 1e-4  # -80 dB: below three int16 steps there is no speech
TRIM_DB, TRIM_FRAME, TRIM_MARGIN = -40.0, 320, 1_600  # re the loudest frame; samples

Samples = npt.NDArray[np.int16]
_PARTIAL = ".partial"
_REPLACEMENT = ".replacement"  # the folder in a corpus in which another is prepared
_OURS = {AUDIO, UTTERANCES, HEADER, JOURNAL, LOCK, HOLDER, _REPLACEMENT}
MAX_PAD_SECONDS = 60
# A full, failing or read-only disk is the machine's fault; any other place that cannot be written
# to is the wrong place.
_STORAGE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
_T = TypeVar("_T")
_R = TypeVar("_R")


@dataclass(frozen=True)
class Report:
    """What a preparation found; lists hold ids, `rejected` pairs of (what, why).

    `layout` is what the source was recognised as, `notes` what of it was not as expected.
    """

    layout: str
    utterances: int
    hours: float
    hours_per_speaker: Mapping[str, float]
    heldout_utterances: int
    clipped: Sequence[str] = field(default_factory=list)
    silent: Sequence[str] = field(default_factory=list)
    rejected: Sequence[tuple[str, str]] = field(default_factory=list)
    notes: Sequence[str] = field(default_factory=list)


def prepare(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    pad_samples: int = PAD_SAMPLES,
    jobs: int | None = None,
    heldout: float = 0.02,
    trim: bool = False,
    licence: str = "",
    overwrite: bool = False,
    progress: bool = True,
) -> Report:
    """Prepare the recordings of `source` as a corpus in the folder `out`.

    Args:
        source: a folder with one sub-folder per speaker, VCTK, LibriSpeech or LibriTTS as they
            are unpacked, or a JSONL or CSV manifest whose rows have `path` (relative to the
            manifest), `speaker` and optionally `text`, `split` ("train" or "heldout") and `id`.
        out: the corpus folder. A preparation interrupted there is continued.
        pad_samples: silence put before and after each utterance, in samples at 16 kHz.
        jobs: processes; None for one per CPU.
        heldout: share of each speaker's recordings held out, where the manifest does not say.
        trim: cut silence (40 dB below the loudest 20 ms, less 0.1 s) off both ends first.
        licence: a note on the recordings' licence, kept with the corpus and what is trained on it.
        overwrite: replace a complete corpus in `out`, or the beginnings of a different one.
        progress: draw a bar on stderr if it is a terminal.

    Bad recordings are listed in the report and skipped. Raises `UsageError` for an option out of
    range or an `out` that holds something else, `InputError` for a source without usable
    recordings, `SetupError` when a process is killed.
    """
    if not 0 <= heldout < 1:
        raise UsageError(f"The held-out share must be at least 0 and below 1, found {heldout}.")
    if not 0 <= pad_samples <= MAX_PAD_SECONDS * SAMPLE_RATE:
        raise UsageError(
            f"The padding must be from 0 to {MAX_PAD_SECONDS} s, found {pad_samples:,} samples."
        )
    if jobs is not None and jobs < 1:
        raise UsageError(f"The number of jobs must be at least 1, found {jobs}.")
    target, name = Path(out), printable(source)
    _refuse_inside(Path(source), target)
    listing = list_source(source)
    if "train" not in hold_out(listing.items, heldout):
        raise InputError(f"{name}: every recording is held out; none is left to train on.")
    jobs = min(jobs or os.cpu_count() or 1, len(listing.items))
    try:
        with (
            _room(target, overwrite) as folder,
            _pool(jobs) as pool,
            drawn_bar(progress) as advance,
        ):
            convert = partial(_convert, pad_samples=pad_samples, trim=trim)
            plan = _fingerprint(listing, pad_samples, trim)
            with Journal(folder, plan, overwrite) as journal:
                todo = listing.items[len(journal.entries) :]
                advance("converting", len(listing.items), len(journal.entries))
                results = _in_order(pool, convert, [item.path for item in todo], jobs)
                for item, (samples, note) in zip(todo, results, strict=True):
                    journal.append(samples, {"id": item.id, **note})
                    advance("converting", len(listing.items), len(journal.entries))
            report = _finish(
                folder,
                listing,
                name,
                journal.entries,
                heldout=heldout,
                header={"licence": licence, "pad_samples": pad_samples, "trim": trim},
                run=partial(_in_order, pool, jobs=jobs),
                advance=advance,
            )
            if folder != target:
                _replace(target)
            return report
    except OSError as error:
        kind = SetupError if error.errno in _STORAGE else UsageError
        raise kind(f"{printable(target)}: cannot be written ({reason_of(error)}).") from error
    except BrokenExecutor as error:
        raise SetupError(
            "A process of the preparation was ended from outside, perhaps for want of memory; run "
            "it again with fewer jobs, and it goes on from there."
        ) from error


def _finish(
    folder: Path,
    listing: Listing,
    source: str,
    entries: Sequence[Mapping[str, Any]],
    *,
    heldout: float,
    header: Mapping[str, Any],
    run: Callable[..., Iterator[Any]],
    advance: Callable[[str, int, int], None],
) -> Report:
    """Write the index, the statistics and last `corpus.json`."""
    kept = [(item, e) for item, e in zip(listing.items, entries, strict=True) if e["length"]]
    rejected = [*listing.rejected, *((e["id"], e["rejected"]) for e in entries if e["rejected"])]
    if not kept:
        for own in (JOURNAL, AUDIO):
            (folder / own).unlink()
        why = "; all are silent"
        if rejected:
            why = f"; the first: {rejected[0][0]}: {rejected[0][1].rstrip('.')}"
        raise InputError(f"{source}: none of its {len(listing.items):,} recordings is usable{why}.")
    splits = hold_out([item for item, _ in kept], heldout)
    seconds = dict.fromkeys(listing.speakers, 0.0)
    lines, spans, start = [], [], 0
    for (item, entry), split in zip(kept, splits, strict=True):
        length, pad = entry["length"], header["pad_samples"]
        row = {
            "id": item.id,
            "speaker": item.speaker,
            "split": split,
            "start": start,
            "length": length,
            **({} if item.text is None else {"text": item.text}),
            "source": item.id,
        }
        lines.append(json.dumps(row) + "\n")
        if split == "train":
            spans.append((start + pad, length - 2 * pad))
        seconds[item.speaker] += (length - 2 * pad) / SAMPLE_RATE
        start += length
    if not spans:
        raise InputError(f"{source}: every usable recording is held out; none is left to train on.")
    # A speaker none of whose recordings is usable has no index: nothing could train it.
    speakers = [name for name in listing.speakers if seconds[name]]
    report = Report(
        layout=listing.layout,
        utterances=len(kept),
        hours=round(sum(seconds.values()) / 3600, 4),
        hours_per_speaker={name: round(seconds[name] / 3600, 4) for name in speakers},
        heldout_utterances=splits.count("heldout"),
        clipped=[e["id"] for e in entries if e["clipped"]],
        silent=[e["id"] for e in entries if e["silent"]],
        rejected=rejected,
        notes=listing.notes,
    )
    statistics = feature_statistics(folder / AUDIO, spans, run, partial(advance, "statistics"))
    _write(folder / UTTERANCES, "".join(lines))
    content = {
        "version": VERSION,
        "sample_rate": SAMPLE_RATE,
        "speakers": speakers,
        **header,
        "samples": start,
        "statistics": statistics,
        "report": asdict(report),
        "digest": _digest(folder),
    }
    _write(folder / HEADER, json.dumps(content, indent=1) + "\n")
    (folder / JOURNAL).unlink()
    return report


def _convert(path: Path, *, pad_samples: int, trim: bool) -> tuple[Samples, dict[str, Any]]:
    """Read, resample, downmix, quantise and pad one recording -> (samples, what to note of it).

    There are no samples of one that is left out.
    """
    nothing = np.zeros(0, np.int16)
    note: dict[str, Any] = {"clipped": False, "silent": False, "rejected": None}
    try:
        with read_blocks(path, max_seconds=MAX_SECONDS) as reader:
            resampler = Resampler(reader.info.rate, SAMPLE_RATE)
            blocks = [resampler.push(block) for block in reader]
            blocks.append(resampler.push(nothing, last=True))
            clipped = reader.clipped >= CLIPPED_SAMPLES
    except InputError as error:
        # The report names the recording already.
        return nothing, note | {"rejected": str(error).removeprefix(f"{printable(path)}: ")}
    wav = np.concatenate(blocks)
    if not len(wav) or float(np.abs(wav).max()) < SILENT_PEAK:
        return nothing, note | {"silent": True}
    if trim:
        wav = _trimmed(wav)
    if len(wav) < MIN_SAMPLES:
        reason = f"is shorter than {MIN_SAMPLES / SAMPLE_RATE * 1e3:g} ms."
        return nothing, note | {"rejected": reason}
    codes = np.clip(np.rint(wav * FULL_SCALE), -FULL_SCALE, FULL_SCALE - 1).astype(np.int16)
    return np.pad(codes, pad_samples), note | {"clipped": clipped}


def _trimmed(wav: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    frames = len(wav) // TRIM_FRAME
    if frames == 0:
        return wav
    energy = np.square(wav[: frames * TRIM_FRAME].reshape(frames, TRIM_FRAME)).mean(axis=1)
    loud = np.flatnonzero(energy >= energy.max() * 10 ** (TRIM_DB / 10))
    first, last = loud[0] * TRIM_FRAME, (loud[-1] + 1) * TRIM_FRAME
    return wav[max(0, first - TRIM_MARGIN) : last + TRIM_MARGIN]


def _refuse_inside(source: Path, out: Path) -> None:
    """UsageError for a corpus that would lie among the recordings: the next preparation would take
    it for a speaker."""
    try:
        inside = source.is_dir() and out.resolve().is_relative_to(source.resolve())
    except (OSError, RuntimeError):  # a loop of links; whoever opens it says so
        return
    if inside and not out.is_file():
        raise UsageError(
            f"{printable(out)}: lies in the source's folder, {printable(source)}; choose a folder "
            "outside for the corpus."
        )


@contextmanager
def _room(out: Path, overwrite: bool) -> Iterator[Path]:
    """The folder to prepare in, held against others: `out`, or one within the complete corpus that
    is to be replaced. Where nothing comes of it, nothing is left."""
    new = [place for place in (out, *out.parents) if not os.path.lexists(place)]
    complete = _refuse_other(out, overwrite)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with only_writer(out, "a preparation", tidy=True):
            replacement = out / _REPLACEMENT
            if (replacement / HEADER).exists():  # an interruption left the last renames to do
                _replace(out)
            complete = _refuse_other(out, overwrite)
            folder = replacement if complete else out
            folder.mkdir(exist_ok=True)
            yield folder
    finally:
        for place in (out / _REPLACEMENT, *new):
            with suppress(OSError):  # there is something in it, or it is not there
                place.rmdir()


def _refuse_other(out: Path, overwrite: bool) -> bool:
    """Whether a complete corpus is there. UsageError where there is and it is to stay, and for a
    place that something else has taken."""
    name = printable(out)
    if os.path.lexists(out) and not out.is_dir():
        raise UsageError(f"{name}: is a file; a corpus is a folder.")
    complete = (out / HEADER).exists()
    if complete and not overwrite:
        raise UsageError(f"{name}: is a complete corpus already; --overwrite replaces it.")
    held = os.listdir(out) if out.is_dir() and not complete else []
    if any(file.removesuffix(_PARTIAL) not in _OURS for file in held):
        raise UsageError(f"{name}: holds other files; choose a new or an empty folder.")
    return complete


def _replace(out: Path) -> None:
    """Put the replacement in the corpus's place. Whoever has opened the old one goes on reading it;
    struck at any moment, the next preparation ends it."""
    (out / HEADER).unlink(missing_ok=True)
    for name in (AUDIO, UTTERANCES, HEADER):
        with suppress(FileNotFoundError):
            os.replace(out / _REPLACEMENT / name, out / name)
    shutil.rmtree(out / _REPLACEMENT)


def _fingerprint(listing: Listing, pad_samples: int, trim: bool) -> str:
    """What an interrupted preparation must agree on to be continued."""
    digest = hashlib.sha256(f"{VERSION} {pad_samples} {trim}\n".encode())
    for item in listing.items:
        try:
            status = item.path.stat()
            state = (status.st_size, status.st_mtime_ns)
        except (OSError, ValueError):
            state = (-1, 0)
        row = (item.id, os.fspath(item.path), item.speaker, item.text, item.split, *state)
        digest.update((json.dumps(row) + "\n").encode())
    return digest.hexdigest()


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in (AUDIO, UTTERANCES):
        with (folder / name).open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _write(path: Path, text: str) -> None:
    beside = path.with_name(path.name + _PARTIAL)
    with beside.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


@contextmanager
def _pool(jobs: int) -> Iterator[Executor | None]:
    if jobs == 1:
        yield None
        return
    # Fresh interpreters: forking a process that has threads (torch, a progress bar) may hang.
    # An interrupt from the terminal reaches all of them; this one process tidies up after it.
    ignore = partial(signal.signal, signal.SIGINT, signal.SIG_IGN)
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), initializer=ignore)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _in_order(
    pool: Executor | None, function: Callable[[_T], _R], arguments: Iterable[_T], jobs: int
) -> Iterator[_R]:
    """The results in the order of the arguments, with a bounded number of them waiting."""
    if pool is None:
        yield from map(function, arguments)
        return
    rest = iter(arguments)
    waiting: deque[Future[_R]] = deque(pool.submit(function, a) for a in islice(rest, 4 * jobs))
    while waiting:
        result = waiting.popleft().result()
        waiting.extend(pool.submit(function, a) for a in islice(rest, 1))
        yield result
