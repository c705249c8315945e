"""The synthetic corpus: its text and voices, the same bytes twice, format, level, going on."""

import hashlib
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from vconv.demo import corpus
from vconv.demo.synthesis import PACKAGES, set_level, trim
from vconv.demo.voices import VOICES

EXAMPLE = Path(__file__).parents[2] / "examples" / "hello.wav"
# One voice per engine, and one with noise of its own: that is where espeak-ng is not deterministic.
SMALL = ("ked", "slt", "es-sandro", "es-scot-f5")


def need(*engines: str) -> None:
    for engine in engines:
        if shutil.which(engine) is None:
            pytest.skip(f"{engine} is not installed (Debian package {PACKAGES[engine]})")
    if "festival" in engines:
        command = ["festival", "-b", "(print (voice.list))"]
        if b"ked_diphone" not in subprocess.run(command, capture_output=True, check=True).stdout:
            pytest.skip("no festival voice ked (Debian package festvox-kdlpc16k)")


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


def test_sentences_are_plain_varied_and_never_in_both_splits() -> None:
    sentences = corpus.read_sentences()
    train = [one.text for one in sentences if one.split == "train"]
    heldout = [one.text for one in sentences if one.split == "heldout"]
    assert len(train) >= 400
    assert 35 <= len(heldout) <= 60
    assert len({tuple(words(one.text)) for one in sentences}) == len(sentences)
    assert len({one.id for one in sentences}) == len(sentences)
    assert all(one.id[0] == {"train": "s", "heldout": "h"}[one.split] for one in sentences)
    for text in train + heldout:
        assert re.fullmatch(r"[A-Z][A-Za-z' ,-]*[.?!]", text), text
        assert 5 <= len(words(text)) <= 14, text
    assert sum(text.endswith("?") for text in train) > 40
    assert len({word for text in train for word in words(text)}) > 1000


def test_fewer_sentences_are_the_first_ones_and_keep_both_splits() -> None:
    everything = corpus.read_sentences()
    few = corpus.read_sentences(3)
    assert [one.id for one in few] == ["s0001", "s0002", "s0003", "h0001"]
    assert set(few) <= set(everything)
    assert corpus.read_sentences(10_000) == everything


def test_voices_differ_in_name_and_settings_and_index_12_is_slt() -> None:
    assert len(VOICES) >= 24
    assert len({voice.name for voice in VOICES}) == len(VOICES)
    settings = {(v.engine, v.engine_voice, v.shift, v.pitch, v.speed) for v in VOICES}
    assert len(settings) == len(VOICES)
    for voice in VOICES:
        assert re.fullmatch(r"[a-z0-9-]+", voice.name)
        assert voice.engine in PACKAGES
        assert 0.8 <= voice.shift <= 1.25
    assert VOICES[12].name == "slt"


def test_trimming_leaves_at_most_50_ms_of_silence() -> None:
    tone = 0.1 * np.sin(2 * np.pi * 200 * np.arange(16_000) / 16_000)
    padded = np.concatenate([np.zeros(7_003), tone, np.zeros(9_001)])
    loud = np.flatnonzero(np.abs(trim(padded)) > 1e-3)
    assert 0 < loud[0] <= 800
    assert 0 < len(trim(padded)) - loud[-1] <= 800
    np.testing.assert_array_equal(trim(tone), tone)


def test_level_is_that_of_the_speech_and_peaks_never_clip() -> None:
    tone = 0.3 * np.sin(2 * np.pi * 200 * np.arange(16_000) / 16_000)
    half_silent = np.concatenate([tone, np.zeros(16_000)])
    level = 20 * np.log10(np.sqrt(np.square(set_level(half_silent)[:16_000]).mean()))
    assert level == pytest.approx(-26, abs=0.01)
    clicks = np.zeros(16_000)
    clicks[::1600] = 1.0
    assert 20 * np.log10(np.abs(set_level(clicks)).max()) <= -1


def test_two_runs_give_the_same_bytes_in_the_right_format(tmp_path: Path) -> None:
    need("flite", "espeak-ng", "festival")
    voices, sentences = corpus.choose_voices(SMALL), corpus.read_sentences(1)
    # Paths of different lengths and another order of work: neither may be heard.
    folders = tmp_path / "a", tmp_path / "another-name"
    for jobs, folder in enumerate(folders, 1):
        assert corpus.generate(folder, voices, sentences, jobs, progress=False) == 8
    first = digests(folders[0])
    assert first == digests(folders[1])
    assert len(first) == 8 + 2  # nothing but the recordings, manifest and description

    rows = [json.loads(line) for line in (folders[0] / "manifest.jsonl").read_text().splitlines()]
    order = [voice.name for voice in VOICES if voice.name in SMALL]
    assert [(row["speaker"], row["sentence"], row["split"]) for row in rows] == [
        (name, *pair) for name in order for pair in (("s0001", "train"), ("h0001", "heldout"))
    ]
    assert {row["text"] for row in rows} == {one.text for one in sentences}
    for row in rows:
        path = folders[0] / row["path"]
        info = soundfile.info(path)
        assert (info.samplerate, info.channels, info.format, info.subtype) == (
            *(16_000, 1),
            *("WAV", "PCM_16"),
        )
        assert 1.5 < info.duration < 6
        signal_, _ = soundfile.read(path)
        assert 20 * np.log10(np.abs(signal_).max()) < -1
        assert 20 * np.log10(np.sqrt(np.square(signal_).mean())) == pytest.approx(-27, abs=2)

    info = json.loads((folders[0] / "corpus-info.json").read_text())
    assert info["speakers"] == [voice.name for voice in VOICES]
    assert set(info["engines"]) == {"flite", "espeak-ng", "festival"}


def test_a_second_call_makes_only_what_is_missing(tmp_path: Path) -> None:
    need("flite")
    voices, sentences = corpus.choose_voices(["slt"]), corpus.read_sentences(2)
    assert corpus.generate(tmp_path, voices, sentences, 1, progress=False) == 3
    before = digests(tmp_path)
    (tmp_path / "slt" / "s0002.wav").unlink()
    assert corpus.generate(tmp_path, voices, sentences, 1, progress=False) == 1
    assert digests(tmp_path) == before


def test_a_folder_of_another_recipe_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    need("flite")
    command = ["-o", str(tmp_path), "--sentences", "1", "--speakers", "slt"]
    info = tmp_path / "corpus-info.json"
    info.write_text(json.dumps({"recipe": "another", "engines": {}}))
    assert corpus.main(command) == 3
    assert "other sentences, voices or engine versions" in capsys.readouterr().err
    info.write_text("[]")
    assert corpus.main(command) == 3
    assert "is not a corpus description" in capsys.readouterr().err
    assert not list(tmp_path.glob("*/*.wav"))


@pytest.mark.parametrize("name", ["awb", "es-pablo", "ked"])
def test_a_missing_engine_is_one_sentence_naming_the_package(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert corpus.main(["-o", str(tmp_path / "out"), "--speakers", name]) == 5
    (voice,) = corpus.choose_voices([name])
    assert capsys.readouterr().err == (
        f"vconv: error: {voice.engine} is not installed: install the Debian package"
        f" {voice.engine}.\n"
    )
    assert not (tmp_path / "out").exists()


def test_a_missing_voice_is_not_replaced_by_the_engines_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = tmp_path / "flite"
    fake.write_text("#!/bin/sh\necho 'Voices available: kal'\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert corpus.main(["-o", str(tmp_path / "out"), "--speakers", "slt"]) == 5
    message = "vconv: error: flite has no voice 'slt': install the Debian package flite.\n"
    assert capsys.readouterr().err == message


def test_wrong_options_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert corpus.main(["-o", str(tmp_path), "--speakers", "slt,awd"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("vconv: error: There is no voice 'awd'; there are: awb")
    with pytest.raises(SystemExit, match="2"):
        corpus.main(["-o", str(tmp_path), "--sentences", "0"])


def test_a_stopped_run_leaves_whole_files_only_and_goes_on(tmp_path: Path) -> None:
    need("flite")
    command = [sys.executable, "-m", "vconv.demo.corpus", "-o", str(tmp_path)]
    command += ["--speakers", "slt", "--jobs", "1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("slt/*.wav")) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "the same command goes on" in error
    made = list(tmp_path.glob("slt/*.wav"))
    assert 0 < len(made) < len(corpus.read_sentences())
    assert all(soundfile.info(path).duration > 1 for path in made)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus-info.json", "slt"]


def test_the_example_recording_is_small_and_says_nothing_of_the_corpus() -> None:
    info = soundfile.info(EXAMPLE)
    assert (info.samplerate, info.channels, info.subtype) == (16_000, 1, "PCM_16")
    assert 3 <= info.duration <= 5
    assert EXAMPLE.stat().st_size < 160_000
    text = "Good morning, this is a short message for anyone who would like to hear another voice."
    assert text not in {one.text for one in corpus.read_sentences()}
