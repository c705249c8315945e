"""``vconv evaluate`` from end to end on tiny models, interrupted, and asked for nonsense."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import soundfile

from command_line import one_error
from speech import speechlike
from tiny_model import SPEAKERS, exported
from vconv.errors import UsageError
from vconv.train.evaluation.record import ITEMS, Record

PACKAGES = ("resemblyzer", "pocketsphinx", "rapidfuzz", "pesq", "pystoi", "speechmos")
MISSING = [name for name in PACKAGES if find_spec(name) is None]
instruments = [
    pytest.mark.skipif(bool(MISSING), reason=f"vconv[eval] is not installed: {MISSING}"),
    # Resemblyzer's own: it imports old names of setuptools and scipy.
    pytest.mark.filterwarnings("ignore:pkg_resources:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*scipy.ndimage:DeprecationWarning"),
]
PLAN = {"bundle": "a", "list": "b", "seed": 0}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Three voices, two sentences held out and three to train on, a second and a half each."""
    folder = tmp_path_factory.mktemp("voices")
    rows = []
    for index, speaker in enumerate(SPEAKERS):
        for i in range(5):
            wav = speechlike(24000)[:: 1 + index][:20000]
            wav = np.roll(np.resize(wav, 20000), 1000 * i)
            path = f"{speaker}-{i}.wav"
            soundfile.write(folder / path, wav, 16000)
            row = {"path": path, "speaker": speaker, "text": "the small dog ran" + " home" * i}
            rows.append(row | {"split": "heldout" if i < 2 else "train", "sentence": f"s{i}"})
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return manifest


@pytest.mark.parametrize(
    "member",
    [
        pytest.param(name, marks=[*instruments, pytest.mark.slow])
        for name in ("vq", "ae", "inverter")
    ],
)
def test_every_member_gets_a_report_and_an_interrupted_one_goes_on(run, corpus, tmp_path, member):
    out = tmp_path / "report"
    command = ("evaluate", exported(member), corpus, "-o", out, "-j", "1", "--json", "-q")
    done = run(*command, "--sources", "ada")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report == json.loads((out / "report.json").read_text())
    assert report["list"]["conversions"] == 2 * 2
    assert "<h1" in (out / "index.html").read_text("utf-8")
    figures = report["figures"]
    assert (figures["unit_error"]["conversion"] is None) == (member != "vq")
    assert (report["model"]["perplexity"] is None) == (member != "vq")
    assert figures["mcd"]["conversion"]["items"] == 4
    for example in report["examples"]:
        sizes = {soundfile.info(out / name).frames for name in example["files"].values()}
        assert sizes == {20000}

    # What was cut off in the middle of a line gives the same rows again.
    whole = (out / ITEMS).read_text()
    (out / ITEMS).write_text(whole[: 2 * len(whole) // 3])
    done = run(*command, "--sources", "ada")
    again = json.loads(done.out)
    for name in ("mcd", "nearest", "cosine_target", "level_db", "unit_error"):
        assert again["figures"][name] == figures[name]

    done = run(*command, "--sources", "ada", "--seed", "1")
    assert done.code == 2
    assert "another seed" in one_error(done)


@pytest.mark.skipif(not MISSING, reason="vconv[eval] is installed")
def test_a_missing_package_is_named_with_what_brings_it(run, corpus, tmp_path):
    done = run("evaluate", "demo", corpus, "-o", tmp_path / "report")
    assert done.code == 5
    assert "pip install 'vconv[eval]'" in one_error(done)
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--sentences", "0"), 2, "sentences"),
        (("--temperature", "-1"), 2, "--temperature"),
        (("--seed", "-1"), 2, "--seed"),
        (("--sources", "ada,,bea"), 2, "--sources"),
        (("--sources", "zoe"), 2, "zoe"),
        (("--content-voices", "zoe"), 2, "zoe"),
        (("--precision", "fp7"), 2, "precision"),
    ],
)
def test_a_wrong_option_is_one_sentence(run, corpus, tmp_path, monkeypatch, options, code, said):
    from vconv import cli_evaluate

    monkeypatch.setattr(cli_evaluate, "_PACKAGES", ())
    done = run("evaluate", exported(), corpus, "-o", tmp_path / "report", *options)
    assert done.code == code
    assert said in one_error(done)
    assert not (tmp_path / "report").exists()


def test_a_torn_last_line_is_dropped_and_the_rest_is_kept(tmp_path):
    with Record(tmp_path, PLAN, overwrite=False) as record:
        for name in "ab":
            record.append({"id": name, "level_db": -20.0})
    with (tmp_path / ITEMS).open("a") as file:
        file.write('{"id": "c", "lev')
    with Record(tmp_path, PLAN, overwrite=False) as record:
        assert list(record.rows) == ["a", "b"]
        record.append({"id": "c"})
    assert len((tmp_path / ITEMS).read_text().splitlines()) == 4


def test_another_list_is_refused_by_name_and_replaced_when_asked(tmp_path):
    with Record(tmp_path, PLAN, overwrite=False) as record:
        record.append({"id": "a"})
    other = PLAN | {"list": "c", "seed": 1}
    with pytest.raises(UsageError, match="another list and seed"):
        Record(tmp_path, other, overwrite=False)
    with Record(tmp_path, other, overwrite=True) as record:
        assert record.rows == {}


def test_a_foreign_file_in_the_place_of_the_record_is_left_alone(tmp_path):
    (tmp_path / ITEMS).write_text("my own notes\n")
    with pytest.raises(UsageError, match="is not what an evaluation left"):
        Record(tmp_path, PLAN, overwrite=False)
    assert (tmp_path / ITEMS).read_text() == "my own notes\n"
