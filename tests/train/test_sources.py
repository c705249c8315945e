"""Which layout a source is taken for, what is read of it, and that no sentence is on two sides."""

import hashlib
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from vconv.errors import InputError
from vconv.train.corpus import Corpus
from vconv.train.prepare import prepare
from vconv.train.sources import Item, Listing, hold_out, list_source, natural_key

PLAIN = "a folder per speaker"


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")


def record(root: Path) -> Path:
    """Half a second of noise in place of each empty recording."""
    for number, path in enumerate(sorted(root.rglob("*"))):
        if path.suffix in (".flac", ".wav"):
            noise = np.random.default_rng(number).normal(0, 0.05, 8_000)
            soundfile.write(path, noise, 16_000)
    return root


def vctk(root: Path, sentences: int = 3) -> Path:
    """Release 0.92: p280 has one microphone, so has p315, which also has no text."""
    for speaker in ("p225", "p280", "p315", "s5"):
        for number in range(1, sentences + 1):
            name = f"{speaker}_{number:03}"
            for microphone in (1, 2) if speaker in ("p225", "s5") else (1,):
                touch(root, f"wav48_silence_trimmed/{speaker}/{name}_mic{microphone}.flac")
            if speaker != "p315":
                write(root / "txt" / speaker / f"{name}.txt", f"{speaker} says {number}.\n")
    touch(root, "speaker-info.txt", "README.txt", "wav48_silence_trimmed/log.txt")
    return root


LIBRISPEECH = {"train-clean-100": {19: (198, 227), 103: (1240,)}, "dev-clean": {84: (121123,)}}


def librispeech(root: Path, sentences: int = 4, subsets: Iterable[str] = LIBRISPEECH) -> Path:
    for subset in subsets:
        for speaker, chapters in LIBRISPEECH[subset].items():
            for chapter in chapters:
                place, name = root / subset / str(speaker) / str(chapter), f"{speaker}-{chapter}"
                lines = [f"{name}-{number:04} {subset.upper()} {number}" for number in range(4)]
                write(place / f"{name}.trans.txt", "\n".join(lines) + "\n")
                touch(place, *(f"{name}-{number:04}.flac" for number in range(sentences)))
    touch(root, "SPEAKERS.TXT", "README.TXT")
    return root


def libritts(root: Path) -> Path:
    for speaker, chapter in ((84, 121123), (1034, 121119)):
        place = root / "train-clean-100" / str(speaker) / str(chapter)
        for number in range(3):
            name = f"{speaker}_{chapter}_{number:06}_00000{number}"
            touch(place, f"{name}.wav")
            write(place / f"{name}.original.txt", f"Nº {number}")
            if number:
                write(place / f"{name}.normalized.txt", f"number {number}")
        touch(place, f"{speaker}_{chapter}.trans.tsv", f"{speaker}_{chapter}.book.tsv")
    return root


def splits(listing: Listing, share: float = 0.5) -> dict[str, str]:
    """{file name: split}"""
    found = zip(listing.items, hold_out(listing.items, share), strict=True)
    return {item.path.name: split for item, split in found}


def test_vctk_gives_each_sentence_once_from_the_first_microphone_with_its_text(
    tmp_path: Path,
) -> None:
    # A sentence that only the second microphone has.
    (vctk(tmp_path) / "wav48_silence_trimmed/s5/s5_002_mic1.flac").unlink()
    listing = list_source(tmp_path)
    assert listing.layout.startswith("VCTK 0.92")
    assert listing.speakers == ["p225", "p280", "p315", "s5"]
    assert [item.id.removeprefix("wav48_silence_trimmed/") for item in listing.items] == [
        f"{speaker}/{speaker}_00{number}_mic{2 if (speaker, number) == ('s5', 2) else 1}.flac"
        for speaker in listing.speakers
        for number in (1, 2, 3)
    ]
    for item in listing.items:
        number = int(item.id[-len("1_mic1.flac")])
        expected = None if item.speaker == "p315" else f"{item.speaker} says {number}."
        assert item.text == expected
    assert listing.notes == ["3 of 12 recordings have no text: p315 (3)"]
    assert listing.rejected == []


def test_the_older_vctk_is_read_with_its_texts(tmp_path: Path) -> None:
    touch(tmp_path, "wav48/p225/p225_001.wav", "wav48/p226/p226_001.wav", "speaker-info.txt")
    write(tmp_path / "txt/p225/p225_001.txt", "Please call Stella.\n")
    write(tmp_path / "txt/p226/p226_001.txt", "\ufeffPlease  call\r\nStella.")
    listing = list_source(tmp_path)
    assert listing.layout == "VCTK 0.80"
    assert [item.text for item in listing.items] == ["Please call Stella."] * 2
    assert listing.speakers == ["p225", "p226"]


def test_of_both_releases_in_one_folder_only_one_is_used(tmp_path: Path) -> None:
    touch(vctk(tmp_path), "wav48/p225/p225_001.wav")
    listing = list_source(tmp_path)
    assert len(listing.items) == 12
    assert [what for what, _ in listing.rejected] == ["wav48"]


def both_in_a_folder_per_speaker(root: Path) -> Path:
    return root / "wav48_silence_trimmed"


def both_in_a_manifest(root: Path) -> Path:
    rows = [
        {"path": path.relative_to(root).as_posix(), "speaker": path.parent.name}
        for path in sorted(root.rglob("*.flac"))
    ]
    write(root / "list.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return root / "list.jsonl"


@pytest.mark.parametrize(
    "source", [lambda root: root, both_in_a_folder_per_speaker, both_in_a_manifest]
)
def test_no_sentence_is_trained_on_by_one_microphone_and_held_out_by_the_other(
    tmp_path: Path, source: Callable[[Path], Path]
) -> None:
    listing = list_source(source(vctk(tmp_path, 60)))
    sides: dict[str, set[str]] = {}
    microphones: dict[str, int] = {}
    for name, split in splits(listing, 0.25).items():
        sides.setdefault(name[: name.index("_mic")], set()).add(split)
        microphones[name[: name.index("_mic")]] = microphones.get(name[: name.index("_mic")], 0) + 1
    assert len(sides) == 4 * 60
    assert all(len(side) == 1 for side in sides.values())
    assert sum(side == {"heldout"} for side in sides.values()) == 4 * 15
    both = source(tmp_path) != tmp_path
    assert sum(count == 2 for count in microphones.values()) == (120 if both else 0)


@pytest.mark.parametrize("source", [".", "train-clean-100"])
def test_librispeech_is_read_from_its_root_or_a_subset(tmp_path: Path, source: str) -> None:
    listing = list_source(librispeech(tmp_path) / source)
    assert listing.layout == "LibriSpeech"
    assert listing.speakers == (["19", "84", "103"] if source == "." else ["19", "103"])
    assert len(listing.items) == (16 if source == "." else 12)
    for item in listing.items:
        assert (item.speaker, item.path.suffix) == (item.path.name.split("-")[0], ".flac")
        subset = "DEV-CLEAN" if item.speaker == "84" else "TRAIN-CLEAN-100"
        assert item.text == f"{subset} {int(item.path.stem[-4:])}"
    assert listing.rejected == []
    # Somebody who keeps the test sets beside the training sets is told.
    assert [note[:9] for note in listing.notes] == (["dev-clean"] if source == "." else [])


def test_libritts_takes_the_normalised_text_where_there_is_one(tmp_path: Path) -> None:
    listing = list_source(libritts(tmp_path))
    assert listing.layout == "LibriTTS"
    assert listing.speakers == ["84", "1034"]
    assert [item.text for item in listing.items] == ["Nº 0", "number 1", "number 2"] * 2


def test_a_file_keeps_its_split_when_another_subset_is_added(tmp_path: Path) -> None:
    root = librispeech(tmp_path / "LibriSpeech", 40, ["train-clean-100"])
    alone = splits(list_source(root / "train-clean-100"), 0.1)
    assert list(alone.values()).count("heldout") == 12
    assert splits(list_source(root), 0.1) == alone
    assert splits(list_source(tmp_path), 0.1) == alone  # the folder above
    librispeech(root, 40)
    # Even a subset that has more of the same speaker.
    more = (f"other/19/200/19-200-{number:04}.flac" for number in range(40))
    together = splits(list_source(touch(root, *more)), 0.1)
    assert len(together) == 200
    assert {name: together[name] for name in alone} == alone


@pytest.mark.parametrize(
    ("names", "speakers"),
    [
        (("12/34/a.wav", "9/35/b.wav"), ["9", "12"]),
        (("12/34/2020-01-02.wav", "12/35/2020-01-03.wav"), ["12"]),
        (("12/12-34-0001.wav",), ["12"]),
        (("ann/wav48/1.wav", "bob/wav48/1.wav"), ["ann", "bob"]),
        (("txt/1.wav", "ann/2.wav"), ["ann", "txt"]),
        (("train-clean-100/19-198-0000.flac",), ["train-clean-100"]),
    ],
)
def test_a_folder_per_speaker_is_not_taken_for_a_public_corpus(
    tmp_path: Path, names: tuple[str, ...], speakers: list[str]
) -> None:
    listing = list_source(touch(tmp_path, *names))
    assert listing.layout == PLAIN
    assert listing.speakers == speakers
    assert {item.id for item in listing.items} == set(names)


@pytest.mark.parametrize("make", [vctk, librispeech, libritts])
def test_the_archives_own_folder_may_be_named_or_the_one_above(
    tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    inner = list_source(make(tmp_path / "Corpus"))
    touch(tmp_path, "corpus.zip", ".cache/x", "__MACOSX/._x.wav")
    outer = list_source(tmp_path)
    assert outer.layout == inner.layout != PLAIN
    assert [item.id for item in outer.items] == [f"Corpus/{item.id}" for item in inner.items]
    assert splits(outer) == splits(inner)
    # Beside other folders it would become one speaker called "Corpus".
    touch(tmp_path, "me/1.wav")
    with pytest.raises(InputError, match=r"Corpus: is laid out as .* no speaker's folder"):
        list_source(tmp_path)


def test_a_broken_vctk_gives_what_is_there_and_says_what_is_not(tmp_path: Path) -> None:
    root = vctk(tmp_path)
    recordings = root / "wav48_silence_trimmed"
    (recordings / "p376").mkdir()
    touch(recordings, "p225/._p225_001_mic1.flac", "stray.wav")
    (root / "txt/p225/p225_001.txt").write_bytes(b"caf\xe9")
    (root / "txt/p225/p225_002.txt").unlink()
    os.mkfifo(root / "txt/p225/p225_002.txt")
    (root / "txt/p225/p225_003.txt").write_text(" \n")
    listing = list_source(root)
    assert [item.text for item in listing.items[:3]] == ["caf\ufffd", None, None]
    assert dict(listing.rejected) == {
        "wav48_silence_trimmed/p376": "holds no recordings",
        "wav48_silence_trimmed/stray.wav": "lies in no speaker's folder",
    }
    assert listing.notes == ["5 of 12 recordings have no text: p315 (3), p225 (2)"]
    assert listing.speakers == ["p225", "p280", "p315", "s5"]


def test_a_vctk_without_any_text_is_still_recognised(tmp_path: Path) -> None:
    for path in (vctk(tmp_path) / "txt").rglob("*.txt"):
        path.unlink()
    listing = list_source(tmp_path)
    assert listing.layout.startswith("VCTK 0.92")
    assert listing.notes[0].startswith("12 of 12 recordings have no text: p225 (3), ")


def test_a_broken_librispeech_gives_what_is_there_and_says_what_is_not(tmp_path: Path) -> None:
    root = librispeech(tmp_path)
    (root / "train-clean-100/19/198/19-198.trans.txt").unlink()
    write(root / "train-clean-100/19/227/19-227.trans.txt", "\n19-227-0001\n19-227-0002 SO  IT\n")
    (root / "train-clean-100/1/2").mkdir(parents=True)
    (root / "dev-clean/3").symlink_to(root / "dev-clean/3")
    touch(root, "test-other/nothing.txt", "train-clean-100/19/227/note.wav")
    listing = list_source(root)
    texts = {item.path.name: item.text for item in listing.items}
    assert [texts[f"19-227-000{number}.flac"] for number in range(4)] == [
        None,
        None,
        "SO  IT",
        None,
    ]
    assert texts["note.wav"] is None
    assert texts["103-1240-0003.flac"] == "TRAIN-CLEAN-100 3"
    assert listing.notes[-1] == "8 of 17 recordings have no text: 19 (8)"
    reasons = dict(listing.rejected)
    assert reasons.keys() == {"test-other", "train-clean-100/1"}
    assert "no subset of LibriSpeech" in reasons["test-other"]


def test_an_unreadable_folder_is_named_and_the_others_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "ann/1.wav", "bob/1.wav")
    scandir = os.scandir

    def refusing(path: str | os.PathLike[str]) -> object:
        if os.path.basename(path) == "bob":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    listing = list_source(tmp_path)
    assert [item.id for item in listing.items] == ["ann/1.wav"]
    assert listing.rejected == [("bob", "cannot be read (Permission denied)")]


@pytest.mark.parametrize(
    ("make", "layout"), [(vctk, "VCTK 0.92"), (librispeech, "LibriSpeech"), (libritts, "LibriTTS")]
)
def test_each_layout_becomes_a_corpus_with_texts_and_says_what_it_was(
    tmp_path: Path, make: Callable[[Path], Path], layout: str
) -> None:
    source = record(make(tmp_path / "source"))
    report = prepare(source, tmp_path / "corpus", jobs=1, pad_samples=0)
    corpus = Corpus.open(tmp_path / "corpus")
    assert report.layout.startswith(layout)
    listing = list_source(source)
    assert corpus.header["report"]["notes"] == list(report.notes) == list(listing.notes)
    assert corpus.utterances.ids == tuple(item.id for item in listing.items)
    assert corpus.utterances.texts == tuple(item.text for item in listing.items)
    assert corpus.speakers.names == tuple(listing.speakers)
    assert corpus.utterances.heldout.sum() == len(listing.speakers)


def test_a_manifest_and_a_folder_are_named_in_the_report(tmp_path: Path) -> None:
    assert list_source(touch(tmp_path, "ann/1.wav")).layout == PLAIN
    write(tmp_path / "list.csv", "path,speaker\nann/1.wav,Ann\n")
    assert list_source(tmp_path / "list.csv").layout == "a CSV manifest"


def test_names_sort_by_their_numbers_and_never_tie() -> None:
    draw = random.Random(0)
    names = sorted({"".join(draw.choices("p-./_019", k=draw.randint(1, 7))) for _ in range(2_000)})
    draw.shuffle(names)

    def parts(name: str) -> list[tuple[int, str]]:
        """Text and numbers by turns."""
        split = re.split("([0-9]+)", name)
        return [(int(part) if part[:1].isdigit() else 0, part) for part in split]

    assert sorted(names, key=natural_key) == sorted(names, key=parts)
    assert len({natural_key(name) for name in names}) == len(names)
    assert sorted(["p²", "p10", "p9"], key=natural_key) == ["p9", "p10", "p²"]


def test_what_is_held_out_of_a_folder_is_what_it_always_was() -> None:
    """A corpus prepared again by a newer version must not train on what was held out."""
    items = [Item(f"{s}/{i}.wav", Path(), s) for s, n in (("a", 90), ("b", 7)) for i in range(n)]
    expected = []
    for speaker, count in (("a", 9), ("b", 1)):
        ids = [item.id for item in items if item.speaker == speaker]
        expected += sorted(ids, key=lambda i: hashlib.sha256(i.encode()).hexdigest())[:count]
    held = [i.id for i, split in zip(items, hold_out(items, 0.1), strict=True) if split != "train"]
    assert sorted(held) == sorted(expected)


def large(root: Path, kind: str, count: int) -> Path:
    """A tree of `count` recordings, all empty, 200 of each speaker."""
    for speaker in range(10, 10 + count // 200):
        if kind == "VCTK":
            name, place = f"p{speaker}", root / "wav48_silence_trimmed" / f"p{speaker}"
            touch(place, *(f"{name}_{i:03}_mic{m}.flac" for i in range(100) for m in (1, 2)))
            for number in range(100):
                write(root / "txt" / name / f"{name}_{number:03}.txt", "Please call Stella.")
        else:
            place, name = root / "train-other" / f"{speaker}/7", f"{speaker}-7"
            touch(place, *(f"{name}-{i:04}.flac" for i in range(200)))
            write(place / f"{name}.trans.txt", "".join(f"{name}-{i:04} A B\n" for i in range(200)))
    return root


MEASURE = """
import sys, time
from vconv.train.prepare import _fingerprint
from vconv.train.sources import hold_out, list_source
def memory(key):
    with open("/proc/self/status") as status:
        return int(next(line for line in status if line.startswith(key)).split()[1])
before, start = memory("VmRSS"), time.process_time()
listing = list_source(sys.argv[1])
_fingerprint(listing, 0, False)
splits = hold_out(listing.items, 0.02)
assert all(item.text for item in listing.items)
print(len(splits), splits.count("heldout"))
print(time.process_time() - start, (memory("VmHWM") - before) / 1024)
"""


def planned(source: Path) -> tuple[int, int, float, float]:
    """(recordings, held out, CPU seconds, MB at the peak) of a fresh process that lists them."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, source], capture_output=True, text=True, check=True
    )
    recordings, held, seconds, megabytes = done.stdout.split()
    return int(recordings), int(held), float(seconds), float(megabytes)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
@pytest.mark.parametrize("kind", ["VCTK", "LibriSpeech"])
@pytest.mark.parametrize("count", [5_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_a_large_corpus_is_planned_in_little_memory_and_linear_time(
    tmp_path: Path, kind: str, count: int
) -> None:
    # Measured: 0.9 KB and 35 to 80 microseconds a recording.
    recordings, held, seconds, megabytes = planned(large(tmp_path / "large", kind, count))
    assert recordings == (count // 2 if kind == "VCTK" else count)
    assert held == recordings // 50
    assert megabytes < 10 + 0.0015 * recordings
    assert seconds < 1 + 0.0004 * count
    if count > 50_000:
        *_, quarter, _ = planned(large(tmp_path / "quarter", kind, count // 4))
        assert seconds < 8 * quarter  # 16, were it quadratic
