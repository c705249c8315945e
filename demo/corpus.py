"""A parallel speech corpus that anyone can make: `python -m vconv.demo.corpus -o DIR`.

Every voice of voices.py says every sentence of sentences-train.txt and sentences-heldout.txt. The
result is DIR/<speaker>/<sentence>.wav (16 kHz, mono, 16 bit), DIR/manifest.jsonl, which
`vconv prepare` reads, and DIR/corpus-info.json. docs/corpus.md says how the voices were chosen and
under which licences they come.

Files are written beside and renamed, so a second call goes on where the first was stopped. The
same versions of the engines make the same bytes on every run.
"""

import argparse
import difflib
import hashlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

import soundfile

from vconv.errors import InputError, UsageError, VconvError

from .synthesis import SAMPLE_RATE, check_voices, synthesise, versions
from .voices import LICENCE, VOICES, Voice

MANIFEST, INFO = "manifest.jsonl", "corpus-info.json"
RECIPE = 1  # counted up when synthesis.py changes the audio
BATCH = 20  # sentences per task; festival's are longer, it starts slowly
FESTIVAL_BATCH = 120


@dataclass(frozen=True)
class Sentence:
    """A line of the text files: s0001, s0002, ... to train on, h0001, ... held out."""

    id: str
    split: str
    text: str


def read_sentences(limit: int | None = None) -> list[Sentence]:
    """All sentences, training first; with a limit, that many training sentences and as large a
    share of the held-out ones, at least one."""
    folder = Path(__file__).parent
    train = (folder / "sentences-train.txt").read_text(encoding="ascii").splitlines()
    held = (folder / "sentences-heldout.txt").read_text(encoding="ascii").splitlines()
    if limit is not None and limit < len(train):
        held = held[: max(1, len(held) * limit // len(train))]
        train = train[:limit]
    return [
        Sentence(f"{letter}{number:04d}", split, text)
        for letter, split, texts in (("s", "train", train), ("h", "heldout", held))
        for number, text in enumerate(texts, 1)
    ]


def choose_voices(names: Sequence[str] | None = None) -> list[Voice]:
    """The named voices, or all, in index order; raises UsageError for a name that is none."""
    known = [voice.name for voice in VOICES]
    for name in names or ():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3) or known
            raise UsageError(f"There is no voice {name!r}; there are: {', '.join(near)}.")
    return [voice for voice in VOICES if not names or voice.name in names]


def generate(
    output: Path,
    voices: Sequence[Voice],
    sentences: Sequence[Sentence],
    jobs: int,
    *,
    progress: bool = True,
) -> int:
    """Write the corpus to `output` and return how many recordings were made.

    Recordings already there are kept. Raises SetupError if an engine is missing, InputError if
    `output` holds a corpus made by another recipe.
    """
    engines = versions({voice.engine for voice in voices})
    check_voices(list(voices))
    _claim(output, engines)
    tasks: list[tuple[Voice, list[Sentence]]] = []
    for voice in voices:
        (output / voice.name).mkdir(exist_ok=True)
        missing = [one for one in sentences if not _path(output, voice, one).exists()]
        size = FESTIVAL_BATCH if voice.engine == "festival" else BATCH
        tasks += [(voice, missing[at : at + size]) for at in range(0, len(missing), size)]
    total = sum(len(batch) for _, batch in tasks)
    bar = _Progress(total, len(voices) * len(sentences) - total, progress)
    # Threads will do: the work is in the engines' processes and in compiled loops.
    with (
        tempfile.TemporaryDirectory(prefix=".work-", dir=output) as work,
        ThreadPoolExecutor(jobs) as pool,
    ):
        futures = [pool.submit(_make, output, Path(work), *task) for task in tasks]
        try:
            for future in as_completed(futures):
                bar.add(future.result())
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            bar.close()
    _write_manifest(output, voices, sentences)
    return total


def _make(output: Path, work: Path, voice: Voice, batch: list[Sentence]) -> int:
    with tempfile.TemporaryDirectory(dir=work) as folder:
        signals = synthesise(voice, [one.text for one in batch], Path(folder))
        for sentence, signal in zip(batch, signals, strict=True):
            finished = Path(folder) / "finished.wav"
            soundfile.write(finished, signal, SAMPLE_RATE, subtype="PCM_16")
            finished.replace(_path(output, voice, sentence))
    return len(batch)


def _path(output: Path, voice: Voice, sentence: Sentence) -> Path:
    return output / voice.name / f"{sentence.id}.wav"


def _recipe() -> str:
    """Digest of all that decides how the corpus sounds, but for the engines."""
    parts = [RECIPE, [asdict(voice) for voice in VOICES], [asdict(s) for s in read_sentences()]]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _claim(output: Path, engines: dict[str, str]) -> None:
    """Make the folder ours, or refuse one whose recordings would not go with the new ones."""
    output.mkdir(parents=True, exist_ok=True)
    info = output / INFO
    if info.exists():
        try:
            before = json.loads(info.read_text(encoding="utf-8"))
            same = before["recipe"] == _recipe() and all(
                before["engines"].get(name, version) == version for name, version in engines.items()
            )
            engines = {**before["engines"], **engines}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError(f"{info} is not a corpus description: use an empty folder.") from None
        if not same:
            raise InputError(
                f"{output} holds a corpus of other sentences, voices or engine versions:"
                " delete it or use another folder."
            )
    _replace(info, json.dumps(_describe(engines), indent=2) + "\n")


def _describe(engines: dict[str, str]) -> dict[str, object]:
    return {
        "name": "vconv demo corpus",
        "sample_rate": SAMPLE_RATE,
        "recipe": _recipe(),
        "engines": dict(sorted(engines.items())),
        "licence": LICENCE,
        "speakers": [voice.name for voice in VOICES],
        "voices": [asdict(voice) for voice in VOICES],
    }


def _write_manifest(output: Path, voices: Sequence[Voice], sentences: Sequence[Sentence]) -> None:
    lines = [
        json.dumps(
            {
                "path": f"{voice.name}/{sentence.id}.wav",
                "speaker": voice.name,
                "text": sentence.text,
                "split": sentence.split,
                "sentence": sentence.id,
            }
        )
        for voice in voices
        for sentence in sentences
    ]
    _replace(output / MANIFEST, "\n".join(lines) + "\n")


def _replace(path: Path, text: str) -> None:
    beside = path.with_name(f".{path.name}.part")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


class _Progress:
    """One line on stderr: rewritten on a terminal, a new one every tenth elsewhere."""

    def __init__(self, total: int, there: int, shown: bool) -> None:
        self.total, self.there, self.shown = total, there, shown
        self.done = 0
        self.terminal = sys.stderr.isatty()

    def add(self, count: int) -> None:
        tenth = self.done * 10 // self.total
        self.done += count
        if self.shown and (self.terminal or self.done * 10 // self.total > tenth):
            kept = f", {self.there} were there" if self.there else ""
            line = f"{self.done}/{self.total} recordings{kept}"
            print(line, end="\r" if self.terminal else "\n", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.shown and self.terminal and self.done:
            print("\x1b[K", end="", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m vconv.demo.corpus",
        description="Make the synthetic demo corpus: every voice says every sentence.",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--sentences", type=_positive, metavar="N", help="training sentences only")
    parser.add_argument("--speakers", metavar="A,B,...", help="these voices only")
    parser.add_argument("-j", "--jobs", type=_positive, default=os.cpu_count() or 1, metavar="N")
    options = parser.parse_args(arguments)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    try:
        voices = choose_voices(options.speakers.split(",") if options.speakers else None)
        sentences = read_sentences(options.sentences)
        made = generate(options.output, voices, sentences, options.jobs)
    except VconvError as error:
        print(f"vconv: error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"vconv: error: {options.output}: {error.strerror}", file=sys.stderr)
        return InputError.exit_code
    except _Stopped as stop:
        print("vconv: interrupted; the same command goes on from here", file=sys.stderr)
        return 128 + stop.signal
    print(
        f"{len(voices)} voices, {len(sentences)} sentences: {made} recordings made,"
        f" manifest in {options.output / MANIFEST}",
        file=sys.stderr,
    )
    return 0


class _Stopped(BaseException):
    """SIGINT or SIGTERM came: leave through the clean-up."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal = number


def _stop(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # the clean-up is under way
    raise _Stopped(number)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above zero")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
