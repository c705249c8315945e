"""Which items an evaluation consists of, and what it says of files that are no list."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vconv.errors import InputError, UsageError, VconvError
from vconv.train.evaluation.pairs import evenly, read_pairs

VOICES = ("ada", "bea", "carl")


def lines(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def manifest(folder: Path, *, missing: tuple[str, str] = ("carl", "h3")) -> Path:
    """Thirty sentences to train on and six held out, one of which a voice did not speak."""
    rows = []
    for speaker in (*VOICES, "dora"):
        (folder / speaker).mkdir(exist_ok=True)
        for split, count in (("train", 30), ("heldout", 6)):
            for i in range(count):
                sentence = f"{split[0]}{i}"
                if (speaker, sentence) == missing:
                    continue
                path = f"{speaker}/{sentence}.wav"
                (folder / path).write_bytes(path.encode())
                row = {"path": path, "speaker": speaker, "text": f"Text {sentence}."}
                rows.append(row | {"split": split, "sentence": sentence})
    return lines(folder / "manifest.jsonl", rows)


def test_a_manifest_gives_every_source_target_and_sentence_once(tmp_path):
    made = read_pairs(manifest(tmp_path), VOICES, sources=["ada", "dora"])
    assert made.sentences == ["h0", "h1", "h2", "h4", "h5"]  # h3: one voice did not speak it
    conversions = [item for item in made.items if item.kind == "conversion"]
    assert len(conversions) == 5 * (2 + 3)  # the model does not speak as dora, but hears her
    assert len({item.id for item in made.items}) == len(made.items) == len(conversions) + 5 * 3
    for item in made.items:
        assert item.reference == tmp_path / item.target / f"{item.sentence}.wav"
        assert item.source == tmp_path / item.source_speaker / f"{item.sentence}.wav"
        assert (item.kind == "copy") == (item.source_speaker == item.target)
    assert {name: len(paths) for name, paths in made.enrolment.items()} == dict.fromkeys(VOICES, 20)
    spoken = {path for paths in made.enrolment.values() for path in paths}
    assert not spoken & made.recordings.keys()
    assert len(made.vocabulary) == 6


def test_the_list_that_is_kept_is_the_same_list_again(tmp_path):
    made = read_pairs(manifest(tmp_path), VOICES, sentences=2)
    again = read_pairs(lines(tmp_path / "pairs.jsonl", made.rows()), VOICES)
    assert again == made
    assert again.digest() == made.digest()


def test_the_digest_is_of_the_recordings_and_not_of_where_they_lie(tmp_path):
    made = []
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        made.append(read_pairs(manifest(tmp_path / name), VOICES).digest())
    assert made[0] == made[1]
    (tmp_path / "there" / "ada" / "h0.wav").write_bytes(b"another")
    changed = read_pairs(tmp_path / "there" / "manifest.jsonl", VOICES).digest()
    fewer = read_pairs(tmp_path / "here" / "manifest.jsonl", VOICES, sentences=2).digest()
    assert len({made[0], changed, fewer}) == 3


@pytest.mark.parametrize(("count", "expected"), [(1, "d"), (2, "bf"), (3, "bdf"), (9, "abcdefg")])
def test_a_choice_is_spread_evenly(count, expected):
    assert "".join(evenly(list("abcdefg"), count)) == expected


@pytest.mark.parametrize(
    ("content", "options", "error", "said"),
    [
        ("", {}, InputError, "has no lines"),
        ("nonsense\n", {}, InputError, ":1: is not a line of JSON"),
        ("[1]\n", {}, InputError, ":1: is not a JSON object"),
        ('{"speaker": "ada"}\n', {}, InputError, "neither a path"),
        ('{"source": "a.wav", "target": "zoe"}\n', {}, InputError, "no speaker 'zoe'"),
        ('{"source": "a.wav"}\n', {}, InputError, "its target must be"),
        ('{"source": "a.wav", "target": "ada"}\n' * 2, {}, InputError, "twice"),
        ('{"source": "a.wav", "target": "ada"}\n', {"sentences": 3}, UsageError, "--sentences"),
        ('{"path": "a.wav", "speaker": "zoe"}\n', {}, InputError, "any of the model's speakers"),
    ],
)
def test_what_is_no_list_is_refused_in_a_sentence(tmp_path, content, options, error, said):
    path = tmp_path / "pairs.jsonl"
    path.write_text(content, "utf-8")
    with pytest.raises(error, match=said) as caught:
        read_pairs(path, VOICES, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("option", ["sources", "targets"])
def test_a_voice_that_is_not_there_is_named(tmp_path, option):
    with pytest.raises(UsageError, match=f"--{option}.*'zoe'"):
        read_pairs(manifest(tmp_path), VOICES, **{option: ["zoe"]})


def test_no_sentence_in_common_and_a_missing_file_are_said(tmp_path):
    path = manifest(tmp_path)
    with pytest.raises(VconvError, match="does not exist"):
        read_pairs(tmp_path / "none.jsonl", VOICES)
    made = read_pairs(path, VOICES)
    (tmp_path / "ada" / "h0.wav").unlink()
    with pytest.raises(InputError, match=r"h0\.wav: does not exist"):
        made.digest()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    apart = [r for r in rows if r["split"] == "train" or (r["speaker"] == "ada")]
    apart += [r | {"sentence": "x", "split": "heldout"} for r in rows if r["speaker"] == "bea"]
    with pytest.raises(InputError, match="no sentence"):
        read_pairs(lines(path, apart), VOICES)
