"""Preparing a corpus: what is on disk, what is left out, and that it is always the same bytes."""

import csv
import json
import shutil
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr

from vconv.errors import InputError, SetupError, UsageError
from vconv.train import prepare as preparation
from vconv.train.corpus import Corpus
from vconv.train.prepare import PAD_SAMPLES, prepare
from vconv.train.sources import Item, hold_out, list_source

FILES = ("audio.i16", "corpus.json", "utterances.jsonl")


def speech(seconds: float, seed: int, rate: int = 16_000) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal(round(seconds * rate))
    return (0.1 * noise / np.abs(noise).max()).astype(np.float32)


@pytest.fixture
def voices(tmp_path: Path) -> Path:
    """Three speakers, several rates and formats, at several depths."""
    root = tmp_path / "voices"
    for speaker, count in (("p10", 4), ("p9", 3), ("p2", 3)):
        for index in range(count):
            folder = root / speaker / ("chapter" if index % 2 else ".")
            folder.mkdir(parents=True, exist_ok=True)
            rate = (16_000, 44_100, 8_000)[index % 3]
            suffix = "flac" if index == 2 else "wav"
            wav = speech(0.5 + 0.1 * index, index, rate)
            soundfile.write(folder / f"{index}.{suffix}", wav, rate)
    (root / "README.txt").write_text("not sound")
    (root / "p9" / "notes.txt").write_text("not sound")
    return root


def contents(folder: Path) -> dict[str, bytes]:
    assert sorted(p.name for p in folder.iterdir()) == sorted(FILES)
    return {name: (folder / name).read_bytes() for name in FILES}


def test_a_folder_per_speaker_becomes_a_corpus(voices: Path, tmp_path: Path) -> None:
    report = prepare(voices, tmp_path / "corpus", jobs=1, licence="CC0")
    corpus = Corpus.open(tmp_path / "corpus")
    assert corpus.speakers.names == ("p2", "p9", "p10")
    assert corpus.sample_rate == 16_000
    assert corpus.header["licence"] == "CC0"
    assert report.utterances == len(corpus.utterances) == 10
    seconds = sum(0.5 + 0.1 * i for n in (4, 3, 3) for i in range(n))
    assert report.hours == pytest.approx(seconds / 3600, abs=1e-4)
    assert list(report.hours_per_speaker) == ["p2", "p9", "p10"]
    assert corpus.utterances.start[0] == 0
    ends = corpus.utterances.start + corpus.utterances.length
    assert np.array_equal(corpus.utterances.start[1:], ends[:-1])
    # Each speaker keeps at least one recording back and one to train on.
    for speaker in range(3):
        mine = corpus.utterances.heldout[corpus.utterances.speaker == speaker]
        assert mine.sum() == 1


def test_an_excerpt_is_the_resampled_recording_between_silences(
    voices: Path, tmp_path: Path
) -> None:
    prepare(voices, tmp_path / "corpus", jobs=1)
    corpus = Corpus.open(tmp_path / "corpus")
    index = corpus.utterances.ids.index("p10/chapter/1.wav")
    original, rate = soundfile.read(voices / "p10" / "chapter" / "1.wav")
    expected = soxr.resample(original, rate, 16_000, quality="HQ")
    length = int(corpus.utterances.length[index])
    assert length == len(expected) + 2 * PAD_SAMPLES
    whole = corpus.excerpt(index, -500, length + 1_000)
    assert whole.dtype == np.float32
    assert not whole[: 500 + PAD_SAMPLES].any()
    assert not whole[-500 - PAD_SAMPLES :].any()
    inner = whole[500 + PAD_SAMPLES : -500 - PAD_SAMPLES]
    assert np.abs(inner - expected).max() < 0.6 / 32_768
    # An excerpt never reaches into a neighbour.
    assert np.array_equal(corpus.excerpt(index, 9_000, 50), whole[9_500:9_550])
    assert not corpus.excerpt(index, length, 100).any()
    assert not corpus.excerpt(index, -200, 100).any()


def test_statistics_are_those_of_the_training_frames(voices: Path, tmp_path: Path) -> None:
    prepare(voices, tmp_path / "corpus", jobs=1)
    corpus = Corpus.open(tmp_path / "corpus")
    frames = []
    for index in np.flatnonzero(~corpus.utterances.heldout):
        length = int(corpus.utterances.length[index]) - 2 * PAD_SAMPLES
        wav = corpus.excerpt(int(index), PAD_SAMPLES, length).astype(float)
        frames.append(log_mel(wav))
    every = np.concatenate(frames)
    statistics = corpus.statistics["logmel80"]
    assert statistics.mean == pytest.approx(every.mean(axis=0), abs=1e-3)
    assert statistics.std == pytest.approx(np.maximum(every.std(axis=0), 0.01), abs=1e-3)


def log_mel(wav: np.ndarray) -> np.ndarray:
    """Log-mel frames [F, 80] by the definition, with numpy's own FFT."""
    begins = np.arange(0, len(wav) - 399, 160)
    windows = np.stack([wav[b : b + 400] for b in begins]) * np.hanning(401)[:400]
    power = np.abs(np.fft.rfft(windows, 512)) ** 2
    points = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 8000 / 700), 82) / 2595) - 1)
    bins = np.arange(257) * 16_000 / 512
    rising = (bins - points[:-2, None]) / np.diff(points)[:-1, None]
    falling = (points[2:, None] - bins) / np.diff(points)[1:, None]
    return np.log(power @ np.maximum(0, np.minimum(rising, falling)).T + 1e-6)


def test_the_same_recordings_give_the_same_bytes_with_any_number_of_jobs(
    voices: Path, tmp_path: Path
) -> None:
    prepare(voices, tmp_path / "one", jobs=1)
    prepare(voices, tmp_path / "two", jobs=2)
    shutil.copytree(voices, tmp_path / "elsewhere")
    prepare(tmp_path / "elsewhere", tmp_path / "three", jobs=1)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "three")


def cleanly(folder: Path) -> None:
    assert (folder / "journal.jsonl").exists()


def with_half_a_note_and_samples_of_none(folder: Path) -> None:
    with (folder / "journal.jsonl").open("a") as notes:
        notes.write('{"id": "p9/ch')
    with (folder / "audio.i16").open("ab") as audio:
        audio.write(b"\1\2\3")


def with_a_note_whose_samples_are_gone(folder: Path) -> None:
    audio = folder / "audio.i16"
    audio.write_bytes(audio.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("damage", "lost"),
    [
        (cleanly, 0),
        (with_half_a_note_and_samples_of_none, 0),
        (with_a_note_whose_samples_are_gone, 1),
    ],
)
@pytest.mark.parametrize("stop", [0, 1, 4, 9])
def test_an_interrupted_preparation_goes_on_where_it_stopped(
    voices: Path,
    tmp_path: Path,
    stop: int,
    damage: Callable[[Path], None],
    lost: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prepare(voices, tmp_path / "whole", jobs=1)
    convert = preparation._convert
    converted: list[Path] = []

    def counting(path: Path, **options: Any) -> Any:
        if len(converted) == stop:
            raise KeyboardInterrupt
        converted.append(path)
        return convert(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(preparation, "_convert", counting)
        with pytest.raises(KeyboardInterrupt):
            prepare(voices, tmp_path / "corpus", jobs=1)
    with pytest.raises(InputError, match="interrupted"):
        Corpus.open(tmp_path / "corpus")
    damage(tmp_path / "corpus")
    again: list[Path] = []

    def watched(path: Path, **options: Any) -> Any:
        again.append(path)
        return convert(path, **options)

    monkeypatch.setattr(preparation, "_convert", watched)
    prepare(voices, tmp_path / "corpus", jobs=1)
    assert contents(tmp_path / "corpus") == contents(tmp_path / "whole")
    assert len(again) == 10 - stop + lost if stop else 10


def test_a_preparation_of_other_recordings_is_not_continued(
    voices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(preparation, "_finish", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare(voices, tmp_path / "corpus", jobs=1)
    soundfile.write(voices / "p9" / "new.wav", speech(1, 9), 16_000)
    with pytest.raises(UsageError, match="other recordings"):
        prepare(voices, tmp_path / "corpus", jobs=1)
    assert prepare(voices, tmp_path / "corpus", jobs=1, overwrite=True).utterances == 11


def test_a_complete_corpus_is_replaced_only_when_asked(voices: Path, tmp_path: Path) -> None:
    prepare(voices, tmp_path / "corpus", jobs=1)
    before = contents(tmp_path / "corpus")
    with pytest.raises(UsageError, match="complete corpus already"):
        prepare(voices, tmp_path / "corpus", jobs=1)
    assert contents(tmp_path / "corpus") == before
    prepare(voices, tmp_path / "corpus", jobs=1, overwrite=True, pad_samples=0)
    assert Corpus.open(tmp_path / "corpus").pad_samples == 0
    assert Corpus.open(tmp_path / "corpus").digest != json.loads(before["corpus.json"])["digest"]


def test_a_foreign_folder_is_left_alone(voices: Path, tmp_path: Path) -> None:
    for inside in (voices, voices / "corpus"):
        with pytest.raises(UsageError, match="lies in the source's folder"):
            prepare(voices, inside, jobs=1)
    assert not (voices / "corpus").exists()
    with pytest.raises(UsageError, match="holds other files"):
        prepare(voices / "p9", voices, jobs=1)
    with pytest.raises(UsageError, match="is a file"):
        prepare(voices, voices / "README.txt", jobs=1)


def test_a_killed_process_is_one_sentence_and_can_be_gone_on_from(
    voices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dying(path: Path, **options: Any) -> Any:
        raise BrokenProcessPool

    with monkeypatch.context() as patch:
        patch.setattr(preparation, "_convert", dying)
        with pytest.raises(SetupError, match="fewer jobs"):
            prepare(voices, tmp_path / "corpus", jobs=1)
    assert prepare(voices, tmp_path / "corpus", jobs=1).utterances == 10


def test_bad_recordings_are_listed_and_skipped(voices: Path, tmp_path: Path) -> None:
    (voices / "p2" / "text.wav").write_text("no sound")
    cut = (voices / "p9" / "0.wav").read_bytes()[:-100]
    (voices / "p9" / "cut.wav").write_bytes(cut)
    soundfile.write(voices / "p2" / "short.wav", speech(0.02, 0), 16_000)
    soundfile.write(voices / "p2" / "silent.wav", np.zeros(9_000), 16_000)
    soundfile.write(voices / "p2" / "loud.wav", speech(0.5, 0) * 50, 16_000)
    soundfile.write(voices / "stray.wav", speech(0.5, 0), 16_000)
    (voices / "only_bad").mkdir()
    (voices / "only_bad" / "empty.wav").touch()
    report = prepare(voices, tmp_path / "corpus", jobs=1)
    rejected = dict(report.rejected)
    assert rejected.keys() == {
        "p2/text.wav", "p9/cut.wav", "p2/short.wav", "stray.wav", "only_bad/empty.wav"
    }  # fmt: skip
    assert "cut short" in rejected["p9/cut.wav"]
    assert "25 ms" in rejected["p2/short.wav"]
    assert "no speaker" in rejected["stray.wav"]
    assert rejected["only_bad/empty.wav"] == "is empty."
    assert list(report.silent) == ["p2/silent.wav"]
    assert list(report.clipped) == ["p2/loud.wav"]
    assert report.utterances == 11
    corpus = Corpus.open(tmp_path / "corpus")
    assert corpus.speakers.names == ("p2", "p9", "p10")
    assert corpus.header["report"]["silent"] == ["p2/silent.wav"]


def test_a_source_without_usable_recordings_is_refused(tmp_path: Path) -> None:
    (tmp_path / "voices" / "a").mkdir(parents=True)
    with pytest.raises(InputError, match="holds no recordings"):
        prepare(tmp_path / "voices", tmp_path / "corpus", jobs=1)
    (tmp_path / "voices" / "a" / "x.wav").write_text("no sound")
    with pytest.raises(InputError, match=r"none of .* 1 recordings is usable.*a/x\.wav"):
        prepare(tmp_path / "voices", tmp_path / "corpus", jobs=1)
    soundfile.write(tmp_path / "voices" / "a" / "y.wav", speech(1, 0), 16_000)
    assert prepare(tmp_path / "voices", tmp_path / "corpus", jobs=1).utterances == 1
    with pytest.raises(InputError, match="does not exist"):
        prepare(tmp_path / "nowhere", tmp_path / "corpus", jobs=1)
    with pytest.raises(InputError, match="neither a folder nor"):
        prepare(tmp_path / "voices" / "a" / "x.wav", tmp_path / "corpus", jobs=1)


@pytest.mark.parametrize(
    "options", [{"heldout": 1.0}, {"heldout": -0.1}, {"jobs": 0}, {"pad_samples": -1}]
)
def test_options_out_of_range_are_refused(
    voices: Path, tmp_path: Path, options: dict[str, float]
) -> None:
    with pytest.raises(UsageError):
        prepare(voices, tmp_path / "corpus", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "corpus").exists()


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_a_manifest_names_speakers_texts_and_splits(
    voices: Path, tmp_path: Path, suffix: str
) -> None:
    manifest = tmp_path / f"lists.{suffix}"
    rows = [
        {"path": "voices/p9/0.wav", "speaker": "Zoë", "text": "one, two", "split": "heldout"},
        {"path": str(voices / "p2" / "0.wav"), "speaker": "Ann", "text": "three", "split": "train"},
        {"path": "voices/p10/0.wav", "speaker": "Zoë", "text": "four", "split": ""},
        {"path": "voices/p10/2.flac", "speaker": "Zoë", "text": "five", "split": ""},
        {"path": "voices/p9/0.wav", "speaker": "Zoë", "text": "again", "split": "train"},
        {"path": "voices/p9/2.flac", "speaker": "", "text": "", "split": "train"},
        {"path": "voices/p9/2.flac", "speaker": "Ann", "text": "", "split": "test"},
        {"path": "voices/gone.wav", "speaker": "Ann", "text": "", "split": "train"},
    ]
    with manifest.open("w", encoding="utf-8", newline="") as file:
        if suffix == "csv":
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        else:
            file.writelines(json.dumps(row) + "\n" for row in rows)
            file.write("[1]\n{broken\n")
    report = prepare(manifest, tmp_path / "corpus", jobs=1, heldout=0.5)
    corpus = Corpus.open(tmp_path / "corpus")
    assert corpus.speakers.names == ("Zoë", "Ann")  # in order of appearance
    assert corpus.utterances.texts == ("one, two", "three", "four", "five")
    assert corpus.utterances.speaker.tolist() == [0, 1, 0, 0]
    assert corpus.utterances.heldout[:2].tolist() == [True, False]
    assert corpus.utterances.heldout[2:].sum() == 1
    reasons = " ".join(f"{what} {why}" for what, why in report.rejected)
    for reason in ("occurs twice", "no speaker", "'test'; allowed", "does not exist"):
        assert reason in reasons
    assert f"lists.{suffix}:{6 + (suffix == 'csv')} has no speaker" in reasons
    assert len(report.rejected) == 4 + 2 * (suffix == "jsonl")


def test_a_csv_without_the_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("file,who\na.wav,b\n")
    with pytest.raises(InputError, match="no column 'path or speaker'"):
        list_source(tmp_path / "list.csv")


def test_trimming_cuts_silence_and_keeps_a_margin(tmp_path: Path) -> None:
    (tmp_path / "v" / "a").mkdir(parents=True)
    wav = np.concatenate([np.zeros(20_000), speech(1, 0), np.zeros(30_000)]).astype(np.float32)
    soundfile.write(tmp_path / "v" / "a" / "x.wav", wav, 16_000)
    report = prepare(tmp_path / "v", tmp_path / "trimmed", jobs=1, trim=True)
    assert report.hours * 3600 == pytest.approx(1.2, abs=0.25)
    corpus = Corpus.open(tmp_path / "trimmed")
    assert 19_200 <= corpus.utterances.length[0] - 2 * PAD_SAMPLES <= 19_200 + 2 * 320


def test_the_held_out_share_is_per_speaker_and_by_id_alone() -> None:
    items = [Item(f"{s}/{i}", Path(), s) for s, n in (("a", 200), ("b", 50)) for i in range(n)]
    splits = hold_out(items, 0.1)
    by_id = {item.id: split for item, split in zip(items, splits, strict=True)}
    assert sum(by_id[f"a/{i}"] == "heldout" for i in range(200)) == 20
    assert sum(by_id[f"b/{i}"] == "heldout" for i in range(50)) == 5
    again = dict(zip([i.id for i in items[::-1]], hold_out(items[::-1], 0.1), strict=True))
    assert again == by_id
    assert set(hold_out(items, 0.0)) == {"train"}
    assert hold_out(items[:1], 0.5) == ["train"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: shutil.rmtree(c), "is no folder"),
        (lambda c: (c / "corpus.json").unlink(), "interrupted"),
        (lambda c: (c / "corpus.json").write_text("{"), "cannot be read"),
        (lambda c: (c / "corpus.json").write_text("[]"), "version None"),
        (lambda c: (c / "corpus.json").write_text('{"version": 2}'), "version 2"),
        (lambda c: (c / "corpus.json").write_text('{"version": 1}'), "damaged"),
        (lambda c: (c / "utterances.jsonl").write_text(""), "lists no utterances"),
        (lambda c: (c / "utterances.jsonl").write_text('{"id": 1}\n'), "damaged"),
        (lambda c: (c / "utterances.jsonl").unlink(), "damaged"),
        (lambda c: (c / "audio.i16").write_bytes(b""), "damaged"),
        (lambda c: (c / "audio.i16").write_bytes(bytes(2_000)), "1,000 samples where"),
    ],
)
def test_a_damaged_corpus_is_refused_in_one_sentence(
    voices: Path, tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    prepare(voices, tmp_path / "corpus", jobs=1)
    damage(tmp_path / "corpus")
    with pytest.raises(InputError, match=message) as caught:
        Corpus.open(tmp_path / "corpus")
    assert "\n" not in str(caught.value)
