"""``vconv evaluate``: hands tasks to processes, keeps their rows, writes the report."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

from vconv.audio import replacing
from vconv.bundle import Bundle
from vconv.errors import SetupError, UsageError
from vconv.messages import say
from vconv.progress_line import Line, TimeToGo, drawn, told
from vconv.reading import printable

from ..lock import only_writer
from .examples import keep_examples
from .model_figures import model_figures
from .pairs import PairList, evenly, read_pairs
from .record import Record, disk_told
from .report import distributions, write_page
from .score import ItemTask, RecordingTask, Row, Scorer, Settings, Task
from .summary import summarise, voice_errors

PACKAGES = (
    *("vconv", "resemblyzer", "pocketsphinx", "rapidfuzz", "pesq", "pystoi", "speechmos"),
    *("librosa", "scikit-learn", "torch", "onnxruntime-gpu", "onnxruntime"),
)
CONTENT_WER = 0.2
_MOS_EVERY = 20  # sentences; DNSMOS takes longer than everything else together
REPORT, PAIRS = "report.json", "pairs.jsonl"


@dataclass(frozen=True)
class Request:
    """The command's options."""

    bundle: str
    pairs: Path
    output: Path
    sentences: int | None
    sources: Sequence[str] | None
    targets: Sequence[str] | None
    content_voices: Sequence[str] | None
    jobs: int | None
    seed: int
    temperature: float
    precision: str
    overwrite: bool
    quiet: bool


def evaluate(request: Request) -> dict[str, Any]:
    """Score all items that no earlier run of the same has, and write report.json; returns it."""
    bundle = Bundle.find(request.bundle)
    names = bundle.speakers.names
    settings = _settings(request, bundle)
    pairs = read_pairs(
        request.pairs,
        names,
        sentences=request.sentences,
        sources=request.sources,
        targets=request.targets,
    )
    for name in request.content_voices or ():
        if name not in pairs.targets:
            raise UsageError(
                f"--content-voices: {name!r} is no target; there are {', '.join(pairs.targets)}."
            )
    plan = {
        "bundle": bundle.manifest.digest,
        "list": pairs.digest(),
        **asdict(settings),
        "content_voices": list(request.content_voices) if request.content_voices else None,
        "versions": _versions(),
    }
    folder = request.output
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{printable(folder)}: cannot be written ({error.strerror}).") from None
    with (
        disk_told(folder),
        only_writer(folder, "an evaluation"),
        Record(folder, plan, overwrite=request.overwrite) as record,
    ):
        _write_rows(folder / PAIRS, pairs.rows())
        content_voices = _score(bundle, pairs, settings, request, record)
        return _report(bundle, pairs, settings, content_voices, plan, record, folder)


def _settings(request: Request, bundle: Bundle) -> Settings:
    import vconv

    # Resolved once, so that "auto" is the same at another time.
    with vconv.load(bundle.path, device="cpu", precision=request.precision) as converter:
        return Settings(request.seed, request.temperature, converter.precision)


def _score(
    bundle: Bundle, pairs: PairList, settings: Settings, request: Request, record: Record
) -> list[str]:
    """All rows; returns the content voices, which the recordings themselves decide."""
    texts = [item.text for item in pairs.items if item.text is not None]
    sentences = list(dict.fromkeys(texts))
    vocabulary = [*pairs.vocabulary, *sentences]
    listened = set(evenly(pairs.sentences, max(2, len(pairs.sentences) // _MOS_EVERY)))
    first: list[Task] = [
        RecordingTask(path, scored=False) for paths in pairs.enrolment.values() for path in paths
    ]
    first += [
        RecordingTask(path, text, mos=sentence in listened)
        for path, (_, sentence, text) in pairs.recordings.items()
    ]
    total = len(first) + len(pairs.items)
    start = partial(Scorer, bundle.path, settings, vocabulary, sentences)
    line, to_go = Line(quiet=request.quiet), TimeToGo()
    before = len(record.rows)

    def keep(row: Row) -> None:
        record.append(row)
        done = len(record.rows)
        left = to_go(done - before, total - before)
        rest = "" if left is None else f", {told(left)} to go"
        line.show(f"{drawn(done / total)} {done:,} of {total:,}{rest}")

    try:
        with _pool(request.jobs or os.cpu_count() or 1, start) as do:
            for row in do(task for task in first if task.id not in record.rows):
                keep(row)
            content_voices = list(
                request.content_voices
                or (n for n, e in voice_errors(pairs, record.rows).items() if e <= CONTENT_WER)
            )
            second = (
                ItemTask(item, item.target in content_voices, item.sentence in listened)
                for item in pairs.items
            )
            for row in do(task for task in second if task.id not in record.rows):
                keep(row)
    except SystemExit:
        line.clear()
        if not request.quiet:
            say(
                f"{printable(request.output)}: interrupted at {len(record.rows):,} of {total:,}; "
                "the same command goes on"
            )
        raise
    finally:
        line.clear()
    return content_voices


def _report(
    bundle: Bundle,
    pairs: PairList,
    settings: Settings,
    content_voices: Sequence[str],
    plan: dict[str, Any],
    record: Record,
    folder: Path,
) -> dict[str, Any]:
    manifest = bundle.manifest
    conversions = [item for item in pairs.items if item.kind == "conversion"]
    report = {
        "format": 1,
        "date": datetime.now(timezone.utc).date().isoformat(),
        "bundle": {
            "name": manifest.name,
            "digest": manifest.digest,
            "speakers": list(bundle.speakers.names),
            "bottleneck": manifest.bottleneck.model_dump(),
            "quality": manifest.quality,
        },
        "list": {
            "digest": plan["list"],
            "sentences": pairs.sentences,
            "sources": pairs.sources,
            "targets": pairs.targets,
            "conversions": len(conversions),
            "copies": len(pairs.items) - len(conversions),
            "enrolment": {name: len(paths) for name, paths in pairs.enrolment.items()},
        },
        "settings": asdict(settings),
        "versions": plan["versions"],
        **summarise(pairs, record.rows, content_voices, model_figures(bundle, pairs, record.rows)),
        "distributions": distributions(pairs, record.rows),
        "examples": keep_examples(bundle, pairs, settings, record.rows, folder),
    }
    with replacing(folder / REPORT) as beside:
        beside.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", "utf-8")
    write_page(folder, report)
    return report


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError

    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _write_rows(path: Path, rows: Iterable[dict[str, str]]) -> None:
    with replacing(path) as beside:
        beside.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


_scorer: Scorer | None = None


def _begin(start: Any) -> None:
    """In a fresh process: one thread, deaf to the terminal's interrupts, everything loaded."""
    global _scorer
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import torch

    torch.set_num_threads(1)
    _scorer = start()


def _done(task: Task) -> Row:
    assert _scorer is not None
    return _scorer(task)


@contextmanager
def _pool(jobs: int, start: Any) -> Iterator[Any]:
    """A function from tasks to rows, as they are done."""
    if jobs == 1:
        import torch

        torch.set_num_threads(1)
        scorer: list[Scorer] = []

        def here(tasks: Iterable[Task]) -> Iterator[Row]:
            for task in tasks:
                if not scorer:
                    scorer.append(start())
                yield scorer[0](task)

        yield here
        return
    # Fresh interpreters: forking a process that has threads (torch) may hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, context, initializer=_begin, initargs=(start,))

    def there(tasks: Iterable[Task]) -> Iterator[Row]:
        rest = iter(tasks)
        waiting: set[Future[Row]] = {pool.submit(_done, task) for task in islice(rest, 4 * jobs)}
        try:
            while waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                waiting |= {pool.submit(_done, task) for task in islice(rest, len(done))}
                for each in done:
                    yield each.result()
        except BrokenProcessPool:
            raise SetupError(
                "A process that evaluates ended by itself, perhaps for want of memory; the same "
                "command goes on, fewer --jobs need less."
            ) from None

    try:
        yield there
    except BaseException:
        # They write nothing, and what they are at would be waited for.
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
