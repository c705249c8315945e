"""What users do wrong with ``vconv train``, ``prepare`` and ``plot``: one sentence that says where,
the exit code, and every file as it was before."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml
from safetensors.numpy import load, save

from tiny_training import tiny_config
from vconv import cli
from vconv.bundle import known_models
from vconv.config import dump_yaml, load_config
from vconv.train import run as runs
from vconv.train.lock import only_writer
from vconv.train.metrics import read_metrics
from vconv.train.objective import learning_rate
from voices import prepared

RUN = Path("runs/test")
KEPT = RUN / "checkpoints"
OLD, NEW = KEPT / "step-000000002", KEPT / "step-000000004"
SECONDS = 2.0  # of this process's time: how long a refusal may take
slow = pytest.mark.slow


class Struck(BaseException):
    """Nothing catches it."""


@dataclass
class Done:
    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line there is, but for what was begun."""
        *told, line = self.err.splitlines()
        assert all(each.startswith(("starting ", "preparing ")) for each in told), self.err
        assert line.startswith("vconv: error: "), self.err
        assert line.isprintable()
        assert "fault of vconv" not in line
        return line.removeprefix("vconv: error: ")


Run = Callable[..., Done]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """The command line in this process: the exit code and what it printed."""

    def call(*arguments: object) -> Done:
        capfd.readouterr()
        code = cli._run([str(argument) for argument in arguments], debug=False)
        return Done(code, *capfd.readouterr())

    return call


@pytest.fixture
def refused(run: Run) -> Run:
    """The same for what is refused: quickly, in one sentence, all files staying as they were."""

    def call(*arguments: object) -> Done:
        before, began = tree(Path()), time.process_time()
        done = run(*arguments)
        assert time.process_time() - began < SECONDS
        assert done.code != 0
        assert done.out == ""
        assert done.error
        assert tree(Path()) == before
        return done

    return call


def tree(folder: Path) -> dict[str, str]:
    """Every file and folder, with what the files hold."""
    return {
        os.fsdecode(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else ""
        for path in folder.rglob("*")
        if path.name != ".lock"
    }


@pytest.fixture(scope="session")
def corpus_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("voices"))


@pytest.fixture
def here(corpus_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a config.yaml."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    Path("config.yaml").write_text(dump_yaml(tiny_config(corpus_path, steps=4)), "utf-8")
    return folder


@pytest.fixture(scope="session")
def finished(corpus_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """runs/ with a run of four steps and checkpoints at 2 and 4."""
    folder = tmp_path_factory.mktemp("finished")
    before = Path.cwd()
    os.chdir(folder)
    try:
        Path("config.yaml").write_text(dump_yaml(tiny_config(corpus_path, steps=4)), "utf-8")
        assert runs.train_command(Path("config.yaml")) == 0
        shutil.rmtree(RUN / "tb")
    finally:
        os.chdir(before)
    return folder / "runs"


@pytest.fixture
def trained(here: Path, finished: Path) -> Path:
    """A working folder with a config.yaml and its finished run."""
    shutil.copytree(finished, "runs")
    return here


# Configurations


def changed(**sections: object) -> bytes:
    """The tiny configuration with other values for keys, by ``section__key``."""
    values = tiny_config("nowhere").model_dump(mode="json")
    for name, value in sections.items():
        *parents, last = name.split("__")
        place: Any = values
        for parent in parents:
            place = place[parent]
        place[last] = value
    return yaml.safe_dump(values).encode()


def plain(text: str) -> bytes:
    return f"data: {{corpus: nowhere}}\n{text}\n".encode()


CONFIGS: dict[str, tuple[bytes, str]] = {
    "unknown key": (plain("tain: {}"), "unknown key tain; did you mean train?"),
    "unknown key in a section": (plain("train: {batchs: 3}"), "did you mean train.batch?"),
    "unknown key below": (
        plain("model: {decoder: {layer: 3}}"),
        "unknown key model.decoder.layer; did you mean model.decoder.layers?",
    ),
    "unknown key like none": (plain("train: {zzzzzz: 3}"), "zzzzzz; allowed are seed, init_from"),
    "a number for a key": (plain("7: 3"), "7 is no key"),
    "no corpus": (b"name: x\n", "the key data is missing"),
    "no corpus in data": (b"data: {window: 640}\n", "the key data.corpus is missing"),
    "empty corpus": (b"data: {corpus: ''}\n", "data.corpus: "),
    "text for a number": (plain("train: {batch: many}"), "train.batch: must be a whole number"),
    "fraction": (plain("train: {batch: 2.5}"), "must be a whole number, found 2.5"),
    "list for a number": (plain("train: {batch: [4]}"), "train.batch: must be a whole number"),
    "number for a list": (plain("train: {halve_at: 4}"), "train.halve_at: must be a list"),
    "number for a text": (plain("name: 12"), "name: must be a text"),
    "truth for a number": (plain("train: {steps: yes}"), "train.steps: must be no true or false"),
    "truth in a list": (plain("train: {halve_at: [1, true]}"), "train.halve_at.1: must be no true"),
    "number for a truth": (plain("train: {compile: 3}"), "train.compile: must be true or false"),
    "value for a section": (plain("train: 5"), "train: must be a section with keys (seed, init_"),
    "null for a section": (plain("train:"), "found null"),
    "null": (plain("train: {steps: null}"), "train.steps: must be a whole number, found null"),
    "not a number": (plain("train: {learning_rate: .nan}"), "must be a finite number, found nan"),
    "infinite": (plain("train: {clip: .inf}"), "train.clip: must be a finite number"),
    "infinitely many": (plain("train: {batch: .inf}"), "train.batch: must be a finite number"),
    "negative": (plain("train: {batch: -1}"), "must be greater than 0, found -1"),
    "huge batch": (plain("train: {batch: 1000000000}"), "train.batch: must be less than or equal"),
    "huge window": (changed(data__window=10**9), "data.window: must be less than or equal"),
    "huge together": (
        changed(train__batch=65536, data__window=1_024_000),
        "train.batch 65,536 of data.window 1,024,000 are 67,108,864,000 samples a step",
    ),
    "huge network": (changed(model__encoder__width=10**9), "model.encoder.width: must be less"),
    "too many steps": (plain("train: {steps: 1000000000}"), "train.steps: must be less than"),
    "thousands of digits": (plain(f"train: {{steps: {'9' * 5000}}}"), "cannot be read"),
    "window off the grid": (changed(data__window=5000), "the nearest are 4800 and 5120"),
    "microbatches": (changed(train__microbatches=3), "must divide train.batch, 4; found 3"),
    "device": (plain("train: {device: gpu}"), "'gpu' is no device; allowed are auto, cpu, cuda"),
    "device and index": (plain("train: {device: 'cuda:-1'}"), "'cuda:-1' is no device"),
    "duplicate key": (
        plain("train:\n  batch: 4\n  steps: 5\n  batch: 8"),
        "in line 5: the key batch occurs twice, first in line 3",
    ),
    "bad YAML": (plain("train: {batch: 4"), "is not valid YAML in line"),
    "tabs": (plain("train:\n\tbatch: 4"), "is not valid YAML in line 3"),
    "code": (
        plain("name: !!python/object/apply:os.system ['touch executed']"),
        "in line 2: the tag !!python/object/apply:os.system is not allowed",
    ),
    "a list": (b"- name: x\n", "must be a mapping of keys to values"),
    "empty": (b"", "it is empty"),
    "comments only": (b"# nothing\n", "it is empty"),
    "binary": (bytes(range(256)), "is not a text file in UTF-8"),
    "zeros": (bytes(3000), "is not valid YAML"),
    "Latin-1": ("name: f\xfcr\n".encode("latin-1"), "not a text file in UTF-8 (byte 7)"),
    "10 MB": (b"name: x\n" + b"#" * 10**7, "has more than 65,536 bytes"),
    "nested": (b"[" * 2_000, "is nested too deeply"),
    "a thousand voices": (plain("name: &a [x, x]\ntrain: &b [*a, *a]"), "name: must be a text"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_wrong_configuration_names_the_key_and_leaves_no_run(
    here: Path, refused: Run, case: str
) -> None:
    content, words = CONFIGS[case]
    Path("bad.yaml").write_bytes(content)
    done = refused("train", "bad.yaml")
    assert done.code == 2, done.err
    assert done.error.startswith("bad.yaml: ")
    assert words in done.error
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("nowhere.yaml", "cannot be read (no such file"),
        ("folder.yaml", "is a folder"),
        ("fifo.yaml", "is no regular file"),
        ("/dev/zero", "is no regular file"),
        ("dangling.yaml", "cannot be read (no such file"),
        ("line\nbreak.yaml", "line\\nbreak.yaml: cannot be read"),
        ("left\u202elmay.yaml", "left\\u202elmay.yaml: cannot be read"),
    ],
)
def test_a_configuration_that_is_no_file(here: Path, refused: Run, path: str, words: str) -> None:
    Path("folder.yaml").mkdir()
    os.mkfifo("fifo.yaml")
    Path("dangling.yaml").symlink_to("gone")
    done = refused("train", path)
    assert done.code == 2
    assert words in done.error


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("train: {learning_rate: 1e-3}", "train.learning_rate", 1e-3),
        ("train: {learning_rate: 5E-4}", "train.learning_rate", 5e-4),
        ("train: {learning_rate: '1e-3'}", "train.learning_rate", 1e-3),
        ("train: {steps: 1e6}", "train.steps", 1_000_000),
        ("train: {steps: 1_000}", "train.steps", 1000),
        ("name: 2026-11-23", "name", "2026-11-23"),
        ("name: '1e3'", "name", "1e3"),
        ("train: {halve_at: []}", "train.halve_at", ()),
    ],
)
def test_what_can_only_mean_one_thing_is_taken_for_it(
    here: Path, text: str, key: str, value: object
) -> None:
    Path("good.yaml").write_bytes(plain(text))
    first = load_config("good.yaml")
    Path("again.yaml").write_text(dump_yaml(first))
    for config in (first, load_config("again.yaml")):
        found: Any = config
        for part in key.split("."):
            found = getattr(found, part)
        assert found == value
        assert type(found) is type(value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("train.steps", "expected key=value, such as train.steps=1000"),
        ("=5", "expected key=value"),
        ("", "expected key=value"),
        ("train..steps=5", "expected key=value"),
        ("train.stepz=5", "unknown key train.stepz; did you mean train.steps?"),
        ("trian.steps=5", "unknown key trian; did you mean train?"),
        ("train=5", "train is a section; set its keys one by one, such as train.seed=..."),
        ("model.decoder={layers: 3}", "model.decoder is a section"),
        ("train.steps.more=5", "steps is a value, not a section"),
        ("train.steps=many", "train.steps: must be a whole number, found 'many'"),
        ("train.steps=", "train.steps: must be a whole number, found null"),
        ("train.halve_at=[1", "is not valid YAML"),
        ("name=!!python/object/apply:os.getcwd []", "is not allowed"),
        ("train.batch=-3", "greater than 0"),
    ],
)
def test_a_wrong_override_is_named(here: Path, refused: Run, given: str, words: str) -> None:
    done = refused("train", "config.yaml", "--set", given)
    assert done.code == 2
    assert done.error.startswith(f"--set {given}: ")
    assert words in done.error


NAMES = ["", "a/b", "../out", "..", ".", "/tmp/vconv-absolute", "a\\b", ".hidden", "a\nb", " a"]
NAMES += ["left\u202elmay", "x" * 300]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", ["--run", "name"])
def test_a_run_does_not_leave_its_folder(here: Path, refused: Run, name: str, how: str) -> None:
    if how == "--run":
        done = refused("train", "config.yaml", "--run", name)
        assert done.error.startswith("--run: ")
    else:
        done = refused("train", "config.yaml", "--set", f"name={json.dumps(name)}")
        assert done.error.startswith("config.yaml: name: ")
    assert done.code == 2
    assert "a run's name is the name of its folder in runs/" in done.error
    assert [path.name for path in here.parent.iterdir()] == ["here"]


@pytest.mark.parametrize(
    "changes",
    [
        {"halve_at": (3, 1, 1)},
        {"final_decay": 100},
        {"warmup": 100},
        {"final_decay": 100, "warmup": 100},
        {"halve_at": (10**9,)},
    ],
)
def test_marks_in_any_order_and_beyond_the_end_give_a_finite_rate(changes: dict[str, Any]) -> None:
    train = tiny_config("nowhere", steps=4, **changes).train
    rates = [
        learning_rate(
            step,
            base=train.learning_rate,
            warmup=train.warmup,
            halve_at=train.halve_at,
            steps=4,
            final_decay=train.final_decay,
        )
        for step in range(4)
    ]
    assert all(0 < rate <= train.learning_rate for rate in rates)


def test_intervals_beyond_the_end_still_save_and_validate_at_the_end(here: Path, run: Run) -> None:
    far = ["train.checkpoint_every=100", "train.validate_every=100", "train.validate_windows=1"]
    more = ["train.log_every=100", "train.warmup=100", "train.final_decay=100", "train.steps=2"]
    options = [word for each in far + more for word in ("--set", each)]
    assert run("train", "config.yaml", *options).code == 0
    assert [path.name for path in KEPT.iterdir()] == ["step-000000002"]
    (row,) = read_metrics(RUN / "metrics.jsonl")
    assert np.isfinite(row["heldout_nll"])


# Corpora


def header(**changes: object) -> Callable[[Path], None]:
    """Other values in corpus.json; None takes a key away."""

    def change(folder: Path) -> None:
        values = json.loads((folder / "corpus.json").read_text()) | changes
        kept = {key: value for key, value in values.items() if value is not None}
        (folder / "corpus.json").write_text(json.dumps(kept))

    return change


def statistics(name: str, change: Callable[[list[float]], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        values = json.loads((folder / "corpus.json").read_text())
        kind = values["statistics"]["logmel80"]
        kind[name] = change(kind[name])
        (folder / "corpus.json").write_text(json.dumps(values))

    return damage


def utterance(line: int, **changes: object) -> Callable[[Path], None]:
    """Other values in one line of utterances.jsonl."""

    def change(folder: Path) -> None:
        path = folder / "utterances.jsonl"
        rows = [json.loads(row) for row in path.read_text().splitlines()]
        for row in rows if line < 0 else rows[line : line + 1]:
            row.update(changes)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    return change


def file(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes())) and None


CORPORA: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (shutil.rmtree, "corpus: does not exist; data.corpus is a corpus made by `vconv"),
    "a file": (
        lambda folder: (shutil.rmtree(folder), folder.write_text("x")),
        "corpus: is neither a folder nor a .jsonl or .csv manifest",
    ),
    "an empty folder": (
        lambda folder: (shutil.rmtree(folder), folder.mkdir()),
        "corpus: holds no recordings",
    ),
    "another version": (header(version=2), "version 2; this vconv reads version 1"),
    "header cut": (file("corpus.json", lambda data: data[:-20]), "corpus.json cannot be read"),
    "header empty": (file("corpus.json", lambda data: b""), "corpus.json cannot be read"),
    "header a list": (file("corpus.json", lambda data: b"[]"), "version None"),
    "header nested": (file("corpus.json", lambda data: b"[" * 10**6), "corpus.json cannot be read"),
    "header Latin-1": (file("corpus.json", lambda data: b'{"a": "\xfc"}'), "corpus.json cannot be"),
    **{
        f"header without {key}": (header(**{key: None}), f"the key {key} of corpus.json is missing")
        for key in ("speakers", "statistics", "sample_rate", "pad_samples", "samples", "digest")
    },
    "speakers a text": (header(speakers="abc"), "speakers of corpus.json must be a list of names"),
    "speakers numbers": (
        header(speakers=[1, 2]),
        "speakers of corpus.json must be a list of names",
    ),
    "speakers none": (header(speakers=[]), "is damaged (A speaker map needs at least one name"),
    "speakers twice": (header(speakers=["ada", "ada"]), "'ada' occurs twice"),
    "rate": (header(sample_rate=8000), "sample_rate of corpus.json is 8000; expected 16000"),
    "rate a text": (header(sample_rate="16000"), "sample_rate of corpus.json is 16000; expected"),
    "padding negative": (header(pad_samples=-1), "pad_samples of corpus.json is -1; expected"),
    "samples a text": (header(samples="many"), "samples of corpus.json is many; expected"),
    "statistics a list": (header(statistics=[]), "is damaged"),
    "statistics of others": (header(statistics={}), "has no statistics of logmel80 features"),
    "statistics NaN": (statistics("mean", lambda x: [float("nan"), *x[1:]]), "logmel80.mean of"),
    "statistics short": (statistics("mean", lambda x: x[1:]), "has 79 numbers, expected 80"),
    "statistics flat": (statistics("std", lambda x: [0.0, *x[1:]]), "or a spread of 0"),
    "statistics texts": (statistics("std", lambda x: ["a"] * 80), "is damaged"),
    "audio cut": (file("audio.i16", lambda data: data[:-100]), "where corpus.json declares"),
    "audio cut by a byte": (
        file("audio.i16", lambda data: data[:-1]),
        "where corpus.json declares",
    ),
    "audio longer": (file("audio.i16", lambda data: data + bytes(100)), "where corpus.json"),
    "audio empty": (file("audio.i16", lambda data: b""), "audio.i16 holds 0 samples"),
    "audio gone": (lambda folder: (folder / "audio.i16").unlink(), "audio.i16: no such file"),
    "utterances cut": (
        file("utterances.jsonl", lambda data: data[:-30]),
        "utterances.jsonl: line 12 is no JSON: it is damaged, or was cut",
    ),
    "utterances empty": (file("utterances.jsonl", lambda data: b""), "lists no utterances"),
    "utterances binary": (file("utterances.jsonl", lambda data: b"\xff\0\n"), "line 1 is no JSON"),
    "utterances numbers": (file("utterances.jsonl", lambda data: b"1\n"), "line 1 is no JSON ob"),
    "utterances gone": (
        lambda folder: (folder / "utterances.jsonl").unlink(),
        "utterances.jsonl: no such file",
    ),
    "unknown speaker": (
        utterance(1, speaker="zoe"),
        "line 2 names a speaker that corpus.json does",
    ),
    "unknown split": (utterance(1, split="test"), "line 2 has an unknown split, 'test'"),
    "start negative": (utterance(1, start=-5), "line 2 has the start -5"),
    "start outside": (utterance(1, start=10**9), "ends after the"),
    "length outside": (utterance(1, length=10**9), "ends after the"),
    "length beyond numbers": (utterance(1, length=10**30), "line 2 has the length 1000"),
    "length nothing": (utterance(1, length=0), "line 2 has the length 0"),
    "length negative": (utterance(1, length=-1), "line 2 has the length -1"),
    "length a text": (utterance(1, length="9"), "line 2 has the length '9'"),
    "ids twice": (utterance(-1, id="same"), "the id 'same' occurs twice"),
    "no id": (utterance(0, id=None), "line 1 has no id that is a text"),
    "all held out": (utterance(-1, split="heldout"), "every utterance is held out"),
    "all too short": (utterance(-1, length=1000), "No utterance of the corpus is long enough"),
}


@pytest.fixture
def own_corpus(here: Path, corpus_path: Path) -> Path:
    """A copy of the corpus, to be damaged, that config.yaml names."""
    shutil.copytree(corpus_path, "corpus")
    Path("config.yaml").write_text(dump_yaml(tiny_config("corpus", steps=2)), "utf-8")
    return Path("corpus")


@pytest.mark.parametrize("case", CORPORA)
def test_a_damaged_corpus_is_named_and_leaves_no_run(
    own_corpus: Path, refused: Run, case: str
) -> None:
    damage, words = CORPORA[case]
    damage(own_corpus)
    done = refused("train", "config.yaml")
    assert done.code == 3, done.err
    assert words in done.error
    assert not Path("runs").exists()


def test_a_speaker_without_a_window_is_warned_of_by_name(own_corpus: Path, run: Run) -> None:
    rows = [json.loads(row) for row in (own_corpus / "utterances.jsonl").read_text().splitlines()]
    for row in rows:
        if row["speaker"] == "bea":
            row["length"] = 2000
    (own_corpus / "utterances.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run("train", "config.yaml")
    assert done.code == 0
    (line,) = [line for line in done.err.splitlines() if "warning" in line]
    assert line.startswith("vconv: warning: speaker bea (2,000) cannot be trained: a window of")


def test_a_single_speaker_has_no_probe_of_another(own_corpus: Path, run: Run) -> None:
    header(speakers=["ada"])(own_corpus)
    utterance(-1, speaker="ada")(own_corpus)
    done = run("train", "config.yaml")
    assert done.code == 0
    assert "the corpus has one speaker" in done.err
    assert "another speaker +" not in done.err
    (*_, row) = read_metrics(RUN / "metrics.jsonl")
    assert "heldout_nll" in row
    assert "probe_latents" in row
    assert "probe_speaker" not in row


def test_a_single_held_out_recording_has_no_probe_of_another(own_corpus: Path, run: Run) -> None:
    utterance(-1, split="train")(own_corpus)
    utterance(0, split="heldout")(own_corpus)
    done = run("train", "config.yaml")
    assert done.code == 0
    assert "no speaker has two held-out utterances" in done.err
    (*_, row) = read_metrics(RUN / "metrics.jsonl")
    assert "probe_speaker" in row
    assert "probe_latents" not in row


def test_a_corpus_without_held_out_utterances_is_trained_on_with_a_warning(
    own_corpus: Path, run: Run
) -> None:
    utterance(-1, split="train")(own_corpus)
    done = run("train", "config.yaml")
    assert done.code == 0
    assert "holds no utterance out" in done.err
    assert KEPT.joinpath("step-000000002").is_dir()


@pytest.mark.filterwarnings("ignore:One of the clusters is empty")
def test_a_silent_corpus_neither_crashes_nor_gives_weights_that_are_not_finite(
    own_corpus: Path, run: Run
) -> None:
    audio = own_corpus / "audio.i16"
    audio.write_bytes(bytes(audio.stat().st_size))
    assert run("train", "config.yaml", "--set", "train.steps=4").code == 0
    tensors = load((NEW / "model.safetensors").read_bytes())
    assert all(np.isfinite(tensor).all() for tensor in tensors.values())


# Runs and checkpoints


def reseal(checkpoint: Path, **changes: object) -> None:
    """Make a changed checkpoint consistent again: honest, but broken."""
    path = checkpoint / "checkpoint.json"
    values = json.loads(path.read_text()) | changes
    files = {each.name: each for each in checkpoint.iterdir() if each != path}
    values["files"] = {
        name: hashlib.sha256(each.read_bytes()).hexdigest() for name, each in files.items()
    }
    del values["digest"]
    kept = {key: value for key, value in values.items() if value is not None}
    kept["digest"] = hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")


def tensors(name: str, change: Callable[[dict[str, np.ndarray]], object]) -> Callable[[Path], None]:
    def damage(checkpoint: Path) -> None:
        held = {key: np.array(value) for key, value in load(content(checkpoint, name)).items()}
        change(held)
        (checkpoint / f"{name}.safetensors").write_bytes(save(held))

    return damage


def content(checkpoint: Path, name: str) -> bytes:
    return (checkpoint / f"{name}.safetensors").read_bytes()


def spoiled(value: float) -> Callable[[dict[str, np.ndarray]], object]:
    return lambda held: held["encoder.layers.0.conv.weight"].ravel().__setitem__(slice(3), value)


def lying(checkpoint: Path) -> None:
    """A header that claims more bytes than there are."""
    values = {"x": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}
    text = json.dumps(values).encode()
    path = checkpoint / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(64))


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("executed",)


def written(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda checkpoint: (checkpoint / name).write_bytes(data) and None


BIAS = "decoder.wavenet.logits.bias"
CHECKPOINTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "NaN": (
        tensors("model", spoiled(float("nan"))),
        "model.safetensors: the tensor encoder.layers.0.conv.weight has 3 of 2,880 numbers that",
    ),
    "infinite": (
        tensors("average", spoiled(float("inf"))),
        "average.safetensors: the tensor encoder.layers.0.conv.weight has 3 of",
    ),
    "NaN in the optimiser": (
        tensors("optimizer", lambda held: held[f"{BIAS}/exp_avg"].fill(float("nan"))),
        f"optimizer.safetensors: the tensor {BIAS}/exp_avg has 256 of 256 numbers that are NaN",
    ),
    "missing tensor": (
        tensors("model", lambda held: held.pop(BIAS)),
        f"the tensor {BIAS} [256] is missing",
    ),
    "unexpected tensor": (
        tensors("model", lambda held: held.update(extra=np.zeros((2, 3), np.float32))),
        "the tensor extra [2, 3] is not one of this model's",
    ),
    "another shape": (
        tensors("model", lambda held: held.update({BIAS: np.zeros(9, np.float32)})),
        f"the tensor {BIAS} has shape [9], where the model's configuration needs [256]",
    ),
    "another type": (
        tensors("model", lambda held: held.update({BIAS: np.zeros(256, np.float64)})),
        f"the tensor {BIAS} is float64, expected float32",
    ),
    "missing moment": (
        tensors("optimizer", lambda held: held.pop(f"{BIAS}/exp_avg")),
        f"the tensor {BIAS}/exp_avg [256] is missing",
    ),
    "unknown moment": (
        tensors("optimizer", lambda held: held.update({"x/step": np.zeros((), np.float32)})),
        "the tensor x/step [] is not one of this model's",
    ),
    "moment of another shape": (
        tensors("optimizer", lambda held: held.update({f"{BIAS}/exp_avg": np.zeros(3, "f4")})),
        f"the tensor {BIAS}/exp_avg has shape [3], where",
    ),
    "no moments": (tensors("optimizer", dict.clear), "optimizer.safetensors: has no tensors"),
    "lying header": (lying, "model.safetensors: not a whole safetensors file"),
    "pickle": (
        written("model.safetensors", pickle.dumps(Payload())),
        "model.safetensors: not a whole safetensors file",
    ),
    "text": (written("model.safetensors", b"weights"), "not a whole safetensors file"),
    "empty": (
        lambda checkpoint: os.truncate(checkpoint / "model.safetensors", 0),
        "not a whole safetensors file",
    ),
    "no model": (
        lambda checkpoint: (checkpoint / "model.safetensors").unlink(),
        "model.safetensors: cannot be read (no such file",
    ),
    "config damaged": (written("config.yaml", b"{"), "config.yaml: is not valid YAML"),
    "config of another kind": (written("config.yaml", b"x: 1\n"), "config.yaml: "),
    "speakers damaged": (written("speakers.json", b"{"), "speakers.json: cannot be read"),
    "speakers numbers": (written("speakers.json", b"[1]"), "speakers.json: is damaged"),
}


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_a_checkpoint_that_is_honest_but_broken_is_refused_naming_the_tensor(
    trained: Path, run: Run, case: str
) -> None:
    damage, words = CHECKPOINTS[case]
    damage(NEW)
    reseal(NEW)
    before = tree(Path())
    keep = ("--set", "train.keep_last=1", "--set", "train.keep_best=0")
    for resume in ((), ("--resume", NEW)):
        done = run("train", "config.yaml", "--set", "train.steps=6", *keep, *resume)
        assert done.code == 4, done.err
        assert words in done.error
        assert str(NEW) in done.error
        assert tree(Path()) == before
    assert not Path("executed").exists()


@pytest.mark.parametrize(("version", "shown"), [(0, "0"), (2, "2"), ("1", "'1'")])
def test_a_checkpoint_of_another_format_says_which_is_read(
    trained: Path, refused: Run, version: object, shown: str
) -> None:
    reseal(NEW, format_version=version)
    done = refused("train", "config.yaml", "--resume", NEW)
    assert done.code == 4
    assert f"checkpoint format {shown} is not known; this version of vconv reads" in done.error


@pytest.mark.parametrize(
    ("text", "words"),
    [(b"", "checkpoint.json is missing or damaged"), (b"[]", "checkpoint.json is missing or dam")],
)
def test_a_damaged_header_is_named(trained: Path, refused: Run, text: bytes, words: str) -> None:
    (NEW / "checkpoint.json").write_bytes(text)
    done = refused("train", "config.yaml", "--resume", NEW)
    assert done.code == 4
    assert words in done.error


def test_what_cannot_be_gone_on_from(trained: Path, refused: Run) -> None:
    Path("empty").mkdir()
    shutil.copytree(NEW, "step-000000004")
    Path("step-000000004/checkpoint.json").unlink()
    for path, code, words in [
        ("runs/nowhere", 2, "no whole checkpoint"),
        ("nver", 2, "did you mean never?"),
        ("yes", 2, "allowed are auto, never and a path"),
        ("config.yaml", 2, "is a file; a run and a checkpoint are folders"),
        ("empty", 2, "no whole checkpoint"),
        ("step-000000004", 4, "checkpoint.json is missing"),
        (str(known_models()["demo"]), 2, "is an exported model, which cannot be gone on from"),
    ]:
        done = refused("train", "config.yaml", "--run", "other", "--resume", path)
        assert (done.code, words in done.error) == (code, True), done.err
        assert path in done.error


def test_a_run_whose_checkpoints_are_all_damaged_is_a_bad_model(
    trained: Path, refused: Run
) -> None:
    for folder in (OLD, NEW):
        (folder / "model.safetensors").unlink()
    for resume in ("auto", "never", str(RUN)):
        done = refused("train", "config.yaml", "--resume", resume)
        assert done.code == 4
        assert "step-000000004: model.safetensors is missing" in done.error


def test_what_may_not_change_at_resume_is_named(trained: Path, refused: Run) -> None:
    for change, words in [
        ("model.encoder.width=13", "model.encoder.width was 12 in runs/test/checkpoints/step-00"),
        ("train.batch=8", "train.batch was 4 in"),
        ("data.window=960", "data.window was 640 in"),
    ]:
        for resume in ("auto", str(OLD)):
            keep = ("--set", "train.keep_last=1", "--set", "train.keep_best=0")
            done = refused("train", "config.yaml", "--set", change, *keep, "--resume", resume)
            assert done.code == 2
            assert words in done.error


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"digest": "0" * 64}, "is not the corpus that runs/test/checkpoints/step-000000004 was"),
        ({"speakers": ["bea", "ada", "cyd"]}, "speaker 0 is 'bea', and 'ada' in"),
        ({"speakers": ["ada", "bea", "cyd", "dan"]}, "4, and 3 in"),
    ],
)
def test_another_corpus_is_refused_at_resume(
    trained: Path, refused: Run, corpus_path: Path, changes: dict[str, Any], words: str
) -> None:
    shutil.copytree(corpus_path, "corpus")
    header(**changes)(Path("corpus"))
    done = refused("train", "config.yaml", "--set", "data.corpus=corpus")
    assert done.code == 3
    assert words in done.error


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_going_back_sets_the_newer_checkpoints_aside_and_the_next_resume_follows(
    trained: Path, run: Run
) -> None:
    newer = tree(NEW)
    log = (RUN / "metrics.jsonl").read_bytes()
    train = ("train", "config.yaml", "--set", "train.keep_last=9")
    back = ("--set", "train.steps=3", "--resume", OLD)
    done = run(*train, *back)
    assert done.code == 0
    aside = KEPT / "abandoned-at-000000002"
    assert f"it is in {aside}" in done.err
    assert tree(aside / NEW.name) == newer
    assert (aside / "metrics.jsonl").read_bytes() == log
    assert names(KEPT) == ["abandoned-at-000000002", "step-000000002", "step-000000003"]
    assert [row["step"] for row in read_metrics(RUN / "metrics.jsonl")] == [1, 2, 3]
    assert "resuming runs/test at step 3" in run(*train).err
    assert names(KEPT)[0] == "abandoned-at-000000002"
    # Once more, from the same place: each has a folder of its own.
    assert run(*train, *back).code == 0
    assert names(KEPT / "abandoned-at-000000002-2") == [
        "metrics.jsonl",
        "step-000000003",
        "step-000000004",
    ]
    # What was set aside can be gone back to.
    assert run(*train, "--resume", aside / NEW.name).code == 0
    assert names(KEPT)[-1] == NEW.name
    assert names(KEPT / "abandoned-at-000000004")[1:] == [OLD.name, "step-000000003"]
    assert "resuming runs/test at step 4" in run(*train).err
    # Without any, the next resume would start from nothing.
    shutil.move(NEW, aside.with_name("abandoned-at-000000009"))
    before = tree(Path())
    done = run(*train)
    assert (done.code, tree(Path())) == (2, before)
    assert "all checkpoints of the run have been set aside" in done.error


def test_going_on_from_another_run_sets_aside_all_that_was_here(trained: Path, run: Run) -> None:
    shutil.copytree("runs/test", "runs/other")
    done = run("train", "config.yaml", "--set", "train.steps=3", "--resume", "runs/other")
    assert done.code == 0
    assert names(KEPT / "abandoned-at-000000004") == ["metrics.jsonl", OLD.name, NEW.name]
    assert names(KEPT) == ["abandoned-at-000000004", NEW.name]
    assert "resuming runs/test at step 4 from runs/other" in done.err


@pytest.mark.parametrize(
    ("elsewhere", "count", "after"),
    [
        (False, 0, False),
        (True, 2, False),
        pytest.param(False, 0, True, marks=slow),
        *(
            pytest.param(True, count, after, marks=slow)
            for count in (0, 1, 2)
            for after in (False, True)
            if (count, after) != (2, False)
        ),
    ],
)
def test_dying_while_checkpoints_are_set_aside_loses_none_and_starts_nothing_anew(
    trained: Path,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    elsewhere: bool,
    count: int,
    after: bool,
) -> None:
    start = OLD
    if elsewhere:
        shutil.copytree("runs/test", "runs/other")
        start = Path("runs/other/checkpoints", OLD.name)
    train = ("train", "config.yaml", "--set", "train.keep_last=9", "--set", "train.steps=5")
    held = {tree(path)["model.safetensors"] for path in KEPT.iterdir()}
    renamed, calls = Path.rename, []

    def struck(self: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) > count and not after:
            raise Struck
        renamed(self, target)
        if len(calls) > count:
            raise Struck

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", struck)
        with pytest.raises(Struck):
            run(*train, "--resume", start)
    assert {tree(path)["model.safetensors"] for path in KEPT.rglob("step-*")} == held
    done = run(*train)
    assert "starting " not in done.err
    if done.code:
        assert "set aside; go on from one of them" in done.error
    assert run(*train, "--resume", start).code == 0


def test_going_on_from_the_newest_sets_nothing_aside(trained: Path, run: Run) -> None:
    assert run("train", "config.yaml", "--set", "train.steps=5", "--resume", RUN).code == 0
    assert names(KEPT) == ["step-000000004", "step-000000005"]


def test_a_model_to_start_from_that_is_damaged(trained: Path, refused: Run) -> None:
    tensors("average", spoiled(float("nan")))(NEW)
    reseal(NEW)
    start = ("train", "config.yaml", "--run", "other", "--set")
    done = refused(*start, f"train.init_from={NEW}")
    assert done.code == 4
    assert "encoder.layers.0.conv.weight has 3 of 2,880 numbers" in done.error
    (NEW / "average.safetensors").unlink()
    reseal(NEW)
    assert refused(*start, f"train.init_from={NEW}").code == 4
    written("config.yaml", b"{")(OLD)
    reseal(OLD)
    assert refused(*start, f"train.init_from={OLD}").code == 4
    assert refused(*start, "train.init_from=nothing").code == 2


# Preparing


def speech(path: Path, seconds: float = 0.5, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = 0.1 * np.random.default_rng(seed).standard_normal(round(16_000 * seconds))
    with path.open("wb") as target:  # soundfile cannot encode every name
        soundfile.write(target, noise, 16_000, format="WAV")
    return path


@pytest.fixture
def voices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with voices/, two speakers of two recordings."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for index, name in enumerate(("ada/0", "ada/1", "bea/0", "bea/1")):
        speech(Path(f"voices/{name}.wav"), seed=index)
    return Path("voices")


PREPARATIONS: dict[str, tuple[list[str], int, str]] = {
    "no source": (["nowhere", "-o", "c"], 3, "nowhere: does not exist"),
    "a recording": (["voices/ada/0.wav", "-o", "c"], 3, "is neither a folder nor a .jsonl or .csv"),
    "a pipe": (["fifo.jsonl", "-o", "c"], 3, "fifo.jsonl: is neither a folder nor a regular file"),
    "an empty folder": (["empty", "-o", "c"], 3, "empty: holds no recordings"),
    "only bad ones": (["bad", "-o", "c"], 3, "bad: none of its 2 recordings is usable; the first:"),
    "only silent ones": (["silent", "-o", "c"], 3, "none of its 1 recordings is usable; all are"),
    "the source": (["voices", "-o", "voices"], 2, "lies in the source's folder, voices"),
    "in the source": (["voices", "-o", "voices/corpus"], 2, "lies in the source's folder, voices"),
    "by a detour": (["voices", "-o", "empty/../voices/x"], 2, "lies in the source's folder"),
    "a file": (["voices", "-o", "file"], 2, "file: is a file; a corpus is a folder"),
    "in a file": (["voices", "-o", "file/c"], 2, "file/c: cannot be written (not a directory)"),
    "others' files": (["voices", "-o", "bad"], 2, "bad: holds other files"),
    "a dangling link": (["voices", "-o", "dangling"], 2, "dangling: is a file"),
    "share of all": (
        ["voices", "-o", "c", "--heldout", "1"],
        2,
        "held-out share must be at least 0",
    ),
    "share of NaN": (["voices", "-o", "c", "--heldout", "nan"], 2, "found nan"),
    "padding negative": (["voices", "-o", "c", "--pad-seconds", "-1"], 2, "--pad-seconds: allowed"),
    "padding NaN": (["voices", "-o", "c", "--pad-seconds", "nan"], 2, "0 to 60, found nan"),
    "padding infinite": (["voices", "-o", "c", "--pad-seconds", "inf"], 2, "0 to 60, found inf"),
    "padding huge": (["voices", "-o", "c", "--pad-seconds", "1e9"], 2, "0 to 60, found 1e+09"),
    "jobs": (["voices", "-o", "c", "-j", "0"], 2, "jobs must be at least 1, found 0"),
    "empty manifest": (["empty.jsonl", "-o", "c"], 3, "empty.jsonl: holds no recordings"),
    "empty table": (["empty.csv", "-o", "c"], 3, "names no column 'path or speaker'"),
    "another table": (["other.csv", "-o", "c"], 3, "names no column 'path or speaker'"),
    "binary manifest": (["binary.jsonl", "-o", "c"], 3, "binary.jsonl: cannot be read"),
    "missing manifest": (["gone.csv", "-o", "c"], 3, "gone.csv: does not exist"),
    "all held out": (["held.jsonl", "-o", "c"], 3, "held.jsonl: every recording is held out"),
    "rows of nothing": (["rows.jsonl", "-o", "c"], 3, "none of its 3 recordings is usable"),
}


@pytest.mark.parametrize("case", PREPARATIONS)
def test_what_cannot_be_prepared_leaves_nothing(voices: Path, refused: Run, case: str) -> None:
    Path("empty").mkdir()
    Path("file").touch()
    Path("dangling").symlink_to("gone")
    os.mkfifo("fifo.jsonl")
    for name in ("bad/ada/0.wav", "bad/bea/0.wav", "silent/ada/0.wav"):
        Path(name).parent.mkdir(parents=True)
        Path(name).write_text("no sound")
    soundfile.write("silent/ada/0.wav", np.zeros(8000), 16_000)
    Path("empty.jsonl").touch()
    Path("empty.csv").touch()
    Path("other.csv").write_text("file,who\nvoices/ada/0.wav,ada\n")
    Path("binary.jsonl").write_bytes(bytes(range(128, 256)))
    rows([("voices/ada/0.wav", "ada", "heldout")], "held.jsonl")
    rows([(path, "ada", "") for path in ("gone.wav", "voices", "a\0b.wav")], "rows.jsonl")
    arguments, code, words = PREPARATIONS[case]
    jobs = [] if "-j" in arguments else ["-j", "1"]
    done = refused("prepare", *arguments, *jobs)
    assert done.code == code, done.err
    assert words in done.error


def rows(entries: list[tuple[str, str, str]], name: str = "list.jsonl") -> str:
    keys = ("path", "speaker", "split")
    lines = [json.dumps(dict(zip(keys, entry, strict=True))) + "\n" for entry in entries]
    Path(name).write_text("".join(lines))
    return name


def utterances(corpus: str = "c") -> list[dict[str, Any]]:
    text = Path(corpus, "utterances.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_names_that_no_terminal_should_see_are_kept_and_printed_escaped(
    voices: Path, run: Run
) -> None:
    strange = ["line\nbreak", "left\u202elmay", "-dash", os.fsdecode(b"caf\xe9"), "\x1b[31mred"]
    for index, name in enumerate(strange):
        speech(voices / name / "0.wav", seed=index)
        (voices / name / "bad\n.wav").write_text("no sound")
    done = run("prepare", "voices", "-o", "c", "-j", "1")
    assert done.code == 0
    assert done.err.isascii()
    assert all(line.isprintable() for line in done.err.splitlines())
    assert "left out line\\nbreak/bad\\n.wav: " in done.err
    assert "left out left\\u202elmay/bad" in done.err
    assert "left out caf\\udce9/bad" in done.err
    assert {row["speaker"] for row in utterances()} == {"ada", "bea", *strange}


def test_speakers_whom_case_alone_tells_apart_are_kept_apart_with_a_note(
    voices: Path, run: Run
) -> None:
    speech(voices / "ADA" / "0.wav")
    done = run("prepare", "voices", "-o", "c", "-j", "1")
    assert done.code == 0
    assert "note: the speakers ADA and ada differ in case only; they are taken for 2" in done.err
    assert {row["speaker"] for row in utterances()} == {"ADA", "ada", "bea"}


def test_bad_rows_and_recordings_are_listed_and_stop_nothing(voices: Path, run: Run) -> None:
    outside = speech(voices.resolve().parent.parent / "outside.wav")
    manifest = rows(
        [
            ("voices/ada/0.wav", "ada", ""),
            ("voices/ada/0.wav", "ada", ""),
            ("../outside.wav", "ada", ""),
            (str(outside), "bea", ""),
            ("gone.wav", "ada", ""),
            ("", "ada", ""),
            ("voices/ada/1.wav", "", ""),
            ("voices/ada/1.wav", "ada", "test"),
            ("voices", "ada", ""),
        ]
    )
    with Path(manifest).open("a") as target:
        target.write('[1]\n{"path": 3, "speaker": "ada"}\n{"path": "x.wav"\n')
    done = run("prepare", manifest, "-o", "c", "-j", "1")
    assert done.code == 0
    # Rows may name any file: a manifest is its user's own, not a stranger's.
    kept = ["voices/ada/0.wav", "../outside.wav", str(outside)]
    assert [row["id"] for row in utterances()] == kept
    for reason in (
        "list.jsonl:2: the id 'voices/ada/0.wav' occurs twice",
        "gone.wav: does not exist",
        "list.jsonl:6: has no path",
        "list.jsonl:7: has no speaker",
        "list.jsonl:8: has the split 'test'; allowed are train and heldout",
        "voices: is a folder, not an audio file",
        "list.jsonl:10: is not a JSON object",
        "list.jsonl:11: has no path",
        "list.jsonl:12: is not a JSON object",
    ):
        assert f"left out {reason}" in done.err
    assert done.err.count("left out ") == 9


def test_a_manifest_of_one_row_is_a_corpus_to_train_on(voices: Path, run: Run) -> None:
    manifest = rows([("voices/ada/0.wav", "ada", "")])
    assert run("prepare", manifest, "-o", "new/parents/c", "-j", "1").code == 0
    assert [row["split"] for row in utterances("new/parents/c")] == ["train"]


def test_a_second_preparation_in_one_folder_is_refused_naming_the_first(
    voices: Path, refused: Run
) -> None:
    Path("c").mkdir()
    with only_writer(Path("c"), "a preparation"):
        done = refused("prepare", "voices", "-o", "c", "-j", "1")
    assert done.code == 2
    assert f"c: a preparation is under way there (process {os.getpid()} on " in done.error


@pytest.mark.parametrize("notes", [b"", b"[]\n", b'{"plan": 1}\n[1]\n', b"\xff\0\n", b"[" * 9999])
def test_a_damaged_journal_of_an_interrupted_preparation_is_begun_anew(
    voices: Path, run: Run, notes: bytes
) -> None:
    Path("c").mkdir()
    Path("c/journal.jsonl").write_bytes(notes)
    Path("c/audio.i16").write_bytes(b"\1" * 99)
    done = run("prepare", "voices", "-o", "c", "-j", "1", "--overwrite")
    assert done.code == 0, done.err
    assert len(utterances()) == 4


def test_a_corpus_stands_until_the_one_that_replaces_it_is_complete(
    voices: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = ("prepare", "voices", "-o", "c", "-j", "1", "--overwrite")
    assert run("prepare", "voices", "-o", "c", "-j", "1").code == 0
    before = tree(Path("c"))
    assert run(*again[:-1]).code == 2
    assert tree(Path("c")) == before
    shutil.move("voices", "good")
    for name in ("ada", "bea"):
        (voices / name).mkdir(parents=True)
        (voices / name / "0.wav").write_text("no sound")
    assert run(*again).code == 3
    assert tree(Path("c")) == before
    shutil.rmtree("voices")
    shutil.move("good", "voices")
    speech(voices / "cyd" / "0.wav")
    whole = Path("c/audio.i16").read_bytes()
    with Path("c/audio.i16").open("rb") as opened, monkeypatch.context() as patch:
        # Struck between the renames, it is ended by the next.
        replaced, calls = os.replace, []

        def struck(source: Any, target: Any) -> None:
            calls.append(target)
            if Path(target) == Path("c/utterances.jsonl"):
                raise Struck
            replaced(source, target)

        patch.setattr(os, "replace", struck)
        with pytest.raises(Struck):
            run(*again)
        assert opened.read() == whole, "whoever reads the old corpus finds another under it"
    assert not Path("c/corpus.json").exists()
    done = run(*again[:-1])
    assert done.code == 2
    assert "is a complete corpus already" in done.error
    assert {row["speaker"] for row in utterances()} == {"ada", "bea", "cyd"}
    assert sorted(tree(Path("c"))) == ["audio.i16", "corpus.json", "utterances.jsonl"]


# The machine


@contextmanager
def nobody() -> Iterator[None]:
    """Root may write everywhere, so become somebody who may not."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_place_that_may_not_be_written_to(here: Path, corpus_path: Path, refused: Run) -> None:
    shutil.copytree(corpus_path, "corpus")
    for index in range(2):
        speech(Path(f"voices/ada/{index}.wav"))
    for place in (Path(), *Path().rglob("*")):
        place.chmod(0o555)
    try:
        with nobody():
            done = refused("train", "config.yaml", "--set", "data.corpus=corpus")
            assert done.code == 5
            assert "runs/test: cannot be written (permission denied at runs" in done.error
            done = refused("prepare", "voices", "-o", "new/c", "-j", "1")
            assert done.code == 2
            assert "new/c: cannot be written (permission denied)" in done.error
    finally:
        Path().chmod(0o755)


def test_runs_is_a_file(here: Path, refused: Run) -> None:
    Path("runs").write_text("mine")
    done = refused("train", "config.yaml")
    assert done.code == 5
    assert "runs/test: cannot be written (not a directory at runs" in done.error


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has what is to be missed")
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:99"])
def test_a_device_that_is_not_there_is_never_replaced_by_the_cpu(
    here: Path, refused: Run, device: str
) -> None:
    done = refused("train", "config.yaml", "--set", f"train.device={device}")
    assert done.code == 5
    assert f"train.device: {device} was asked for, but torch finds no CUDA device" in done.error


WITHOUT = """
import sys
from importlib.util import spec_from_loader
class Without:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == sys.argv[1]:
            {what}
    def create_module(self, spec):
        return None
    def exec_module(self, module):
        raise OSError("libtorchaudio.so: undefined symbol: _ZN3c10")
sys.meta_path.insert(0, Without())
from vconv.cli import main
main(sys.argv[2:])
"""
MISSING = "raise ModuleNotFoundError(f'No module named {name!r}', name=name)"
BROKEN = "return spec_from_loader(name, self)"


@pytest.mark.parametrize(
    ("package", "command"),
    [
        ("torchaudio", ["train", "config.yaml"]),
        pytest.param("torch", ["train", "config.yaml"], marks=slow),
        pytest.param("tensorboard", ["train", "config.yaml"], marks=slow),
        pytest.param("sklearn", ["train", "config.yaml"], marks=slow),
        pytest.param("torchaudio", ["prepare", "voices", "-o", "c"], marks=slow),
        ("matplotlib", ["plot", "run"]),
    ],
)
def test_a_package_that_is_missing_is_said_before_anything_begins(
    here: Path, package: str, command: list[str]
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT.format(what=MISSING), package, *command],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 5, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"vconv: error: {package} is missing ")
    assert "pip install 'vconv[train]'" in line
    assert [path.name for path in here.iterdir()] == ["config.yaml"]


@slow
def test_a_torchaudio_that_cannot_be_loaded_is_one_sentence(here: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT.format(what=BROKEN), "torchaudio", "train", "config.yaml"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 5, done.stderr
    assert "torchaudio cannot be imported with this torch; install a matching pair" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in here.iterdir()] == ["config.yaml"]


def test_memory_that_is_not_there_is_one_sentence(
    here: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for error in (
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"),
    ):

        def build(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(runs, "build_state", build)
        done = run("train", "config.yaml")
        assert done.code == 5
        assert "there is not enough memory for them; make train.decode_batch" in done.error
        assert not Path("runs").exists()


def test_the_command_itself_says_it_in_one_sentence_and_with_debug_where(here: Path) -> None:
    """A real process, whose stderr is all that a user sees."""
    wrong = [sys.executable, "-m", "vconv", "train", "nowhere.yaml"]
    plain, debug = (
        subprocess.run([*wrong, *more], capture_output=True, text=True, timeout=60)
        for more in ([], ["--debug"])
    )
    assert (plain.returncode, plain.stdout) == (2, "")
    assert (
        plain.stderr == "vconv: error: nowhere.yaml: cannot be read (no such file or directory).\n"
    )
    assert debug.returncode == 2
    assert "Traceback (most recent call last)" in debug.stderr
    assert debug.stderr.endswith(plain.stderr)


@slow
def test_two_preparations_at_once(voices: Path, refused: Run) -> None:
    for index in range(3000):
        speech(voices / "cyd" / f"{index}.wav", seed=index)
    command = [sys.executable, "-m", "vconv", "prepare", "voices", "-o", "c", "-j", "1"]
    first = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        limit = time.monotonic() + 60
        while not Path("c/lock.json").exists():
            assert first.poll() is None
            assert time.monotonic() < limit
            time.sleep(0.01)
        second = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert second.returncode == 2
        assert f"under way there (process {first.pid} on " in second.stderr
        said = first.communicate(timeout=120)[1]
        assert first.returncode == 0, said
    finally:
        first.kill()
        first.wait()
    assert len(utterances()) == 3004


# Figures


PLOTS: dict[str, tuple[list[str], int, str]] = {
    "no run": (["nowhere"], 3, "nowhere: there is no such run"),
    "a name like one": (["tesst"], 3, "did you mean test?"),
    "no figures": (["runs/empty"], 3, "runs/empty/metrics.jsonl: has no figures yet"),
    "metrics a folder": (["runs/folder"], 3, "runs/folder: has no metrics.jsonl"),
    "unknown metric": (["test", "-k", "heldout_nl"], 2, "did you mean heldout_nll?"),
    "unknown suffix": (["test", "-o", "a.tiff"], 2, "'.tiff' cannot be drawn; allowed are png"),
    "exists": (["test", "-o", "there.png"], 2, "there.png: exists; --overwrite replaces it"),
    "in a file": (["test", "-o", "file/a.png"], 2, "file/a.png: cannot be written"),
    "missing config": (["test", "-c", "gone.yaml"], 2, "gone.yaml: cannot be read"),
    "config a folder": (["test", "-c", "runs"], 2, "runs: is a folder"),
    "config unknown key": (["test", "-c", "key.yaml"], 2, "key.yaml: unknown key tittle; did you"),
    "config twice": (
        ["test", "-c", "twice.yaml"],
        2,
        "the key title occurs twice, first in line 1",
    ),
    "config code": (["test", "-c", "code.yaml"], 2, "is not allowed"),
    "config binary": (["test", "-c", "binary.yaml"], 2, "is not a text file in UTF-8"),
    "config JSON cut": (["test", "-c", "cut.json"], 2, "cut.json: is not valid JSON"),
    "config null": (["test", "-c", "null.yaml"], 2, "null.yaml: overwrite: must be true or false"),
    "config huge": (["test", "-c", "huge.yaml"], 2, "has more than 65,536 bytes"),
}


@pytest.mark.parametrize("case", PLOTS)
def test_what_cannot_be_drawn_leaves_no_figure(here: Path, refused: Run, case: str) -> None:
    for name, text in {
        "test/metrics.jsonl": '{"step": 1, "nll": 2.0, "heldout_nll": 2.0}\n',
        "empty/metrics.jsonl": "",
        "folder/metrics.jsonl/x": "",
    }.items():
        Path("runs", name).parent.mkdir(parents=True)
        Path("runs", name).write_text(text)
    for name, data in {
        "file": b"",
        "there.png": b"mine",
        "key.yaml": b"tittle: x",
        "twice.yaml": b"title: x\ntitle: y\n",
        "code.yaml": b"title: !!python/name:os.system ",
        "binary.yaml": b"\xff\xfe\0",
        "cut.json": b'{"title": ',
        "null.yaml": b"overwrite: null",
        "huge.yaml": b"#" * 100_000,
    }.items():
        Path(name).write_bytes(data)
    arguments, code, words = PLOTS[case]
    done = refused("plot", *arguments)
    assert done.code == code, done.err
    assert words in done.error
