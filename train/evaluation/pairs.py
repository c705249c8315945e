"""What is evaluated: a fixed list of (source, target, the target's own recording).

It is derived from a manifest of recordings, or given item by item (docs/evaluation.md has both
forms). Its digest is made of the recordings' contents, not of where they lie.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vconv.errors import InputError, UsageError
from vconv.reading import printable

ENROLMENT = 20  # recordings of the train split that make a voice's centroid
SOURCES = 6


@dataclass(frozen=True)
class Item:
    """One conversion, or a copy synthesis: a recording converted to its own speaker."""

    kind: str
    sentence: str
    source: Path
    source_speaker: str | None
    target: str
    reference: Path | None
    text: str | None

    @property
    def id(self) -> str:
        """A name that no other item of a list has."""
        return f"{self.kind}:{self.source}:{self.target}"


@dataclass(frozen=True)
class PairList:
    """The items in the order of their sentences, the recordings that make the centroids, and
    texts whose words the recogniser may answer with besides those of the items."""

    items: Sequence[Item]
    enrolment: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    vocabulary: Sequence[str] = ()

    @property
    def sentences(self) -> list[str]:
        return list(dict.fromkeys(item.sentence for item in self.items))

    @property
    def targets(self) -> list[str]:
        return list(dict.fromkeys(item.target for item in self.items))

    @property
    def sources(self) -> list[str]:
        """Of conversions, those that are known."""
        found = (item.source_speaker for item in self.items if item.kind == "conversion")
        return list(dict.fromkeys(filter(None, found)))

    @property
    def recordings(self) -> dict[Path, tuple[str | None, str, str | None]]:
        """Every source and reference: speaker, sentence, text."""
        found: dict[Path, tuple[str | None, str, str | None]] = {}
        for item in self.items:
            if item.reference is not None:
                found[item.reference] = (item.target, item.sentence, item.text)
            found.setdefault(item.source, (item.source_speaker, item.sentence, item.text))
        return found

    def rows(self) -> list[dict[str, str]]:
        """As lines of a file that ``read_pairs`` takes for the same list."""
        made: list[dict[str, str | None]] = [
            {
                "source": str(item.source),
                "target": item.target,
                "source_speaker": item.source_speaker,
                "reference": None if item.reference is None else str(item.reference),
                "text": item.text,
                "sentence": item.sentence,
            }
            for item in self.items
        ]
        made += [
            {"enrolment": str(path), "speaker": speaker}
            for speaker, paths in self.enrolment.items()
            for path in paths
        ]
        made += [{"vocabulary": text} for text in self.vocabulary]
        return [{k: v for k, v in row.items() if v is not None} for row in made]

    def digest(self) -> str:
        """Equal for equal lists of equal recordings; InputError for one that cannot be read."""
        known: dict[str, str] = {}
        whole = hashlib.sha256()
        for row in self.rows():
            for key in ("source", "reference", "enrolment"):
                if key in row:
                    row[key] = known.setdefault(row[key], "") or _sha256(row[key])
            whole.update(json.dumps(row, sort_keys=True).encode() + b"\n")
        return whole.hexdigest()


def read_pairs(
    path: Path,
    speakers: Sequence[str],
    *,
    sentences: int | None = None,
    sources: Sequence[str] | None = None,
    targets: Sequence[str] | None = None,
) -> PairList:
    """The list that a file states or that is derived from it, for a model of these speakers.

    Raises InputError for a file that is neither, UsageError for options that do not fit it.
    """
    rows = _read(path)
    if "source" in rows[0][1]:
        if (sentences, sources) != (None, None):
            raise UsageError(
                f"{printable(path)}: lists the items themselves; --sentences and --sources are "
                "for a manifest of recordings."
            )
        return _explicit(path, rows, speakers, targets)
    if "path" not in rows[0][1]:
        raise InputError(
            f"{printable(path)}:{rows[0][0]}: has neither a path (a manifest of recordings) nor "
            "a source (a list of items)."
        )
    return _derived(path, rows, speakers, sentences or 40, sources, targets)


def evenly(values: Sequence[str], count: int) -> list[str]:
    """So many of them, spread evenly: the middle one of each of ``count`` equal parts."""
    if count >= len(values):
        return list(values)
    return [values[(2 * i + 1) * len(values) // (2 * count)] for i in range(count)]


Rows = Sequence[tuple[int, Mapping[str, Any]]]


def _derived(
    path: Path,
    rows: Rows,
    speakers: Sequence[str],
    count: int,
    sources: Sequence[str] | None,
    targets: Sequence[str] | None,
) -> PairList:
    held: dict[str, dict[str, Path]] = {}  # sentence -> speaker -> recording
    texts: dict[str, str] = {}
    trained: dict[str, list[Path]] = {}
    for number, row in rows:
        where = f"{printable(path)}:{number}"
        speaker, text = _word(row, "speaker", where), _word(row, "text", where, optional=True)
        audio = path.parent / str(_word(row, "path", where))
        assert speaker is not None
        if row.get("split") != "heldout":
            trained.setdefault(speaker, []).append(audio)
            continue
        sentence = _word(row, "sentence", where, optional=True) or text
        if sentence is None:
            raise InputError(f"{where}: is held out and has neither a sentence nor a text.")
        held.setdefault(sentence, {})[speaker] = audio
        if text is not None:
            texts[sentence] = text
    here = {speaker for spoken in held.values() for speaker in spoken}
    default = [name for name in speakers if name in here and name in trained]
    targets = _known(targets, default, "--targets", path) if targets else default
    if not targets:
        raise InputError(
            f"{printable(path)}: has no recordings, both of the split train and of heldout, of "
            "any of the model's speakers."
        )
    # Anybody may be a source, but the default ones are voices that can be compared with.
    sources = (
        _known(sources, sorted(here), "--sources", path) if sources else evenly(default, SOURCES)
    )
    wanted = {*sources, *targets}
    common = sorted(sentence for sentence, spoken in held.items() if wanted <= spoken.keys())
    if not common:
        raise InputError(
            f"{printable(path)}: holds out no sentence that all of the {len(wanted)} voices spoke."
        )
    items = []
    for sentence in evenly(common, count):
        spoken, text = held[sentence], texts.get(sentence)
        own = [("copy", name, name) for name in targets]
        pairs = [("conversion", s, t) for s in sources for t in targets if s != t]
        items += [
            Item(kind, sentence, spoken[s], s, t, spoken[t], text) for kind, s, t in own + pairs
        ]
    if all(item.kind == "copy" for item in items):
        raise UsageError("--sources, --targets: leave nothing to convert from one to another.")
    enrolment = {
        name: [Path(p) for p in evenly([str(p) for p in trained[name]], ENROLMENT)]
        for name in default
    }
    return PairList(items, enrolment, [texts[s] for s in sorted(texts)])


def _explicit(
    path: Path, rows: Rows, speakers: Sequence[str], targets: Sequence[str] | None
) -> PairList:
    items: list[Item] = []
    enrolment: dict[str, list[Path]] = {}
    vocabulary: list[str] = []
    for number, row in rows:
        where = f"{printable(path)}:{number}"
        if "vocabulary" in row:
            vocabulary.append(str(_word(row, "vocabulary", where)))
            continue
        if "enrolment" in row:
            audio = path.parent / str(_word(row, "enrolment", where))
            enrolment.setdefault(str(_word(row, "speaker", where)), []).append(audio)
            continue
        target = str(_word(row, "target", where))
        if target not in speakers:
            raise InputError(f"{where}: the model has no speaker {printable(target)!r}.")
        source = path.parent / str(_word(row, "source", where))
        speaker = _word(row, "source_speaker", where, optional=True)
        reference = _word(row, "reference", where, optional=True)
        text = _word(row, "text", where, optional=True)
        sentence = _word(row, "sentence", where, optional=True) or text or str(row["source"])
        against = None if reference is None else path.parent / reference
        kind = "copy" if speaker == target and against in (None, source) else "conversion"
        items.append(Item(kind, sentence, source, speaker, target, against, text))
    known = list(dict.fromkeys(item.target for item in items))
    if targets:
        wanted = set(_known(targets, known, "--targets", path))
        items = [item for item in items if item.target in wanted]
    twice = len({item.id for item in items}) < len(items)
    if twice:
        raise InputError(f"{printable(path)}: lists a source and target twice.")
    if not any(item.kind == "conversion" for item in items):
        raise InputError(f"{printable(path)}: lists no conversion.")
    return PairList(items, enrolment, vocabulary)


def _known(wanted: Sequence[str], known: Iterable[str], option: str, path: Path) -> list[str]:
    known = list(known)
    for name in wanted:
        if name not in known:
            raise UsageError(
                f"{option}: {printable(path)} and the model have no voice {name!r} in common that "
                f"can be used; there are {', '.join(known)}."
            )
    return list(dict.fromkeys(wanted))


def _read(path: Path) -> Rows:
    name = printable(path)
    rows: list[tuple[int, Mapping[str, Any]]] = []
    try:
        if not path.is_file():
            raise InputError(f"{name}: {'is no file' if path.exists() else 'does not exist'}.")
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise InputError(f"{name}:{number}: is not a JSON object.")
                rows.append((number, row))
    except (ValueError, RecursionError):
        raise InputError(f"{name}:{len(rows) + 1}: is not a line of JSON in UTF-8.") from None
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({error.strerror}).") from None
    if not rows:
        raise InputError(f"{name}: has no lines.")
    return rows


def _word(row: Mapping[str, Any], key: str, where: str, *, optional: bool = False) -> str | None:
    value = row.get(key)
    if value is None and optional:
        return None
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where}: its {key} must be a string that says something.")
    return value


def _sha256(path: str) -> str:
    try:
        if not Path(path).is_file():
            raise InputError(f"{printable(path)}: does not exist, or is no file.")
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"{printable(path)}: cannot be read ({error.strerror}).") from None
