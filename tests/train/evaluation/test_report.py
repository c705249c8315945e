"""The page of a report: nothing from outside, nothing unescaped, nothing missing without a word."""

from __future__ import annotations

import base64
import copy
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from speech import speechlike
from vconv.train.evaluation.figures import KINDS, MEASURES
from vconv.train.evaluation.limits import checks
from vconv.train.evaluation.pairs import Item, PairList
from vconv.train.evaluation.report import distributions, write_page
from vconv.train.evaluation.report_figures import dots, heat_map, mel_pictures

EVIL = "<script>alert('1')</script>\"&"


def stat(mean: float) -> dict[str, Any]:
    low, high = mean - 0.01, mean + 0.01
    return {"items": 4, "sentences": 2, "mean": mean, "median": mean, "low": low, "high": high}


def report(folder: Path, voice: str = "bea", text: str = "a dog") -> dict[str, Any]:
    """Two voices, every figure at hand, one example."""
    (folder / "audio").mkdir(exist_ok=True)
    for kind in KINDS:
        soundfile.write(folder / f"audio/00-{kind}.flac", speechlike(24000), 16000)
    figures = {
        name: {"title": m.title, "unit": m.unit, "better": m.better}
        | {kind: stat(0.5 + 0.1 * i) for i, kind in enumerate(KINDS)}
        for name, m in MEASURES.items()
    }
    by = {name: {kind: stat(0.6) for kind in ("copy", "conversion")} for name in MEASURES}
    model = {
        **{"codebook_size": 256, "perplexity": 99.5, "codes_used": 0.7, "bits_per_second": 400.0},
        **{"speaker_probe": 0.2, "speaker_probe_of": "codes", "speaker_probe_chance": 0.5},
        **{"probe_latents": 0.6, "probe_speaker": 0.05, "heldout_perplexity": 120.0},
    }
    return {
        "date": "2020-02-20",
        "bundle": {"name": f"model {voice}", "digest": "d" * 64, "bottleneck": {"kind": "vq"}},
        "list": {
            **{"digest": "e" * 64, "sentences": ["s1", "s2"], "sources": ["ada"]},
            **{"targets": [voice], "conversions": 2, "copies": 2},
        },
        "settings": {"seed": 0, "temperature": 1.0, "precision": "fp32"},
        "versions": {"vconv": "0.1.0"},
        "figures": figures,
        "equal_error_rate": {kind: stat(0.1) for kind in KINDS[1:]},
        "identification": {"recordings": 40, "right": 30, "share": 0.75, "limit": 0.99},
        "per_target": {voice: by},
        "per_source": {"ada": by},
        "confusion": {"targets": [voice], "voices": ["ada", voice], "counts": [[3, 1]]},
        "content": {
            **{"voices": [voice], "wer_of_recordings": {voice: 0.1}, "sentences_scored": 1},
            **{"sentences_not_scored": {"s2": text}, "texts": {"s1": text, "s2": text}},
        },
        "model": model,
        "checks": checks(figures, model),
        "warnings": [f"only 30 of 40 {text}"],
        "distributions": {
            name: {"edges": [0.0, 0.5, 1.0], "counts": {kind: [1, 3] for kind in KINDS}}
            for name in ("cosine_target", "semitones")
        },
        "examples": [
            {
                **{"why": "first sentences", "sentence": "s1", "text": text},
                **{"source": "ada", "target": voice},
                "files": {kind: f"audio/00-{kind}.flac" for kind in KINDS},
                "figures": {"mcd": 7.0, "heard": text, "wer": [1, 2]},
            }
        ],
    }


def without_codes_or_references(whole: dict[str, Any]) -> dict[str, Any]:
    """As of a model without codes and a list of bare sources and targets."""
    bare = copy.deepcopy(whole)
    for figure in bare["figures"].values():
        figure |= dict.fromkeys(KINDS)
    bare["model"] = dict.fromkeys(bare["model"]) | {"speaker_probe_of": "latents"}
    bare["equal_error_rate"] = dict.fromkeys(KINDS[1:])
    bare["checks"] = checks(bare["figures"], bare["model"])
    for table in ("per_target", "per_source"):
        for voice in bare[table].values():
            voice |= {name: dict.fromkeys(("copy", "conversion")) for name in voice}
    bare["per_source"] = {}
    bare["list"] |= {"copies": 0, "sources": []}
    bare["identification"] |= {"recordings": 0, "right": 0, "share": None}
    bare["confusion"] = {"targets": ["bea"], "voices": [], "counts": [[]]}
    bare["content"] |= {"voices": [], "wer_of_recordings": {}, "sentences_scored": 0}
    bare["content"]["sentences_not_scored"] = {"s1": None}
    bare["distributions"] = {}
    bare["examples"][0] |= {"source": None, "text": None, "figures": {"mcd": None}}
    bare["examples"][0]["files"] |= {"target": None, "copy": None}
    return bare


class Reader(HTMLParser):
    """Elements with their attributes, the text, and whether all that was opened was closed."""

    VOID = ("meta", "img", "br", "circle", "path", "rect")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.found if name == tag]


def page_of(folder: Path, found: dict[str, Any]) -> tuple[str, Reader]:
    page = write_page(folder, found).read_text("utf-8")
    return page, Reader(page)


def test_the_page_asks_for_nothing_outside_itself_and_its_sounds_can_be_played(tmp_path):
    page, read = page_of(tmp_path, report(tmp_path))
    for _, attrs in read.found:
        for name in ("src", "href"):
            assert str(attrs.get(name, "#")).startswith(("data:", "#"))
        assert not any(name.startswith("on") for name in attrs)
    assert "url(" not in page
    assert "@import" not in page
    assert len(read.all("audio")) == 4
    for audio in read.all("audio"):
        assert audio["aria-label"]
        sound = base64.b64decode(str(audio["src"]).split(",")[1])
        wav, rate = soundfile.read(io.BytesIO(sound))
        assert len(wav) / rate == pytest.approx(1.5, abs=0.05)


def test_names_and_texts_that_are_markup_stay_text(tmp_path):
    page, read = page_of(tmp_path, report(tmp_path, voice=EVIL, text=EVIL))
    assert len(read.all("script")) == 1
    assert "alert('1')</script>" not in page
    assert any(EVIL in text for text in read.texts)


def test_every_null_has_a_dash_and_a_reason(tmp_path):
    _, read = page_of(tmp_path, without_codes_or_references(report(tmp_path)))
    text = " ".join(read.texts)
    for reason in (
        *("the model has no codebook", "no recording of the target", "no content voice"),
        *("no copy synthesis in the list", "The list does not name its sources", "not in the"),
    ):
        assert reason in text
    assert "None" not in text
    assert "nan" not in re.split(r"\W+", text)
    assert text.count("not judged") == 12


def test_a_conversion_without_a_voiced_frame_is_not_blamed_on_the_list(tmp_path):
    found = report(tmp_path)
    for name in ("semitones", "semitones_off"):
        found["figures"][name]["conversion"] = None
    del found["distributions"]["semitones"]["counts"]["conversion"]
    found["checks"] = checks(found["figures"], found["model"])
    _, read = page_of(tmp_path, found)
    assert "no voiced frame" in read.texts
    assert "no recording of the target" not in read.texts


def test_a_limit_says_in_words_whether_it_is_met(tmp_path):
    found = report(tmp_path)
    _, read = page_of(tmp_path, found)
    met = [check["met"] for check in found["checks"]]
    text = " ".join(read.texts)
    assert f"{met.count(True)} of 12 limits are met, {met.count(False)} missed" in text
    assert text.count("\N{BALLOT X} missed") == met.count(False) > 0
    assert text.count("\N{CHECK MARK} met") == met.count(True) > 0


def test_the_worst_examples_stay_where_not_all_fit(tmp_path, monkeypatch):
    from vconv.train.evaluation import report_examples

    found = report(tmp_path)
    (one,) = found["examples"]
    found["examples"] = [one] * 12 + [one | {"why": "farthest from the target", "target": "cleo"}]
    _, read = page_of(tmp_path, found)
    assert len(read.all("article")) == 10
    monkeypatch.setattr(
        report_examples, "_MOST_BYTES", 2.5 * len(report_examples._example(one, tmp_path))
    )
    _, read = page_of(tmp_path, found)
    assert len(read.all("article")) == 2
    assert "cleo" in " ".join(read.texts)
    assert "11 more are in the folder" in " ".join(read.texts)


def test_a_whisker_spans_its_interval_on_the_axis():
    drawn = dots(
        "x", "share", {"copy": None, "conversion": stat(0.5) | {"low": 0.25, "high": 0.75}}
    )
    ((low, high),) = re.findall(r'class="whisker" d="M([\d.]+) [\d.]+H([\d.]+)"', drawn)
    ends = re.findall(r'<text x="(\d+)"', drawn)
    span = float(ends[1]) - float(ends[0])
    assert (float(low) - float(ends[0])) / span == pytest.approx(0.25, abs=0.001)
    assert (float(high) - float(ends[0])) / span == pytest.approx(0.75, abs=0.001)


@pytest.mark.parametrize("mean", [0.0, -1e-9, 1e9])
def test_a_figure_without_spread_is_drawn(mean):
    same = {"mean": mean, "low": mean, "high": mean, "median": mean, "items": 1, "sentences": 1}
    assert "nan" not in dots("x", "dB", {"conversion": same})


def test_the_heat_map_puts_every_target_on_the_diagonal_and_drops_who_is_never_nearest():
    confusion = {
        "targets": ["c", "a"],
        "voices": ["a", "b", "c", "d"],
        "counts": [[0, 0, 2, 0], [1, 0, 0, 3]],
    }
    drawn = heat_map(confusion)
    rows = re.findall(r'<th scope="row">(\w)</th>(.*?)</tr>', drawn)
    cells = {row: re.findall(r"<td[^>]*>(\d*)</td>", line) for row, line in rows}
    assert re.findall(r'<th scope="col">(\w)</th>', drawn) == ["c", "a", "d"]
    assert cells == {"c": ["2", "", ""], "a": ["", "1", "3"]}


def test_the_pictures_of_an_example_share_a_scale():
    from PIL import Image

    loud = np.full((80, 50), 3.0)
    quiet = loud - 20.0  # more than 70 dB less
    first, second = (Image.open(io.BytesIO(p)).convert("L") for p in mel_pictures([loud, quiet]))
    assert first.size == (50, 80)
    assert np.asarray(first).min() > 200
    assert np.asarray(second).max() < 20


def test_distributions_count_every_item_once_and_clip_what_lies_beyond():
    recording = Path("r.wav")
    items = [
        Item("conversion", f"s{i}", Path(f"{i}.wav"), "ada", "bea", recording, None)
        for i in range(3)
    ]
    rows: dict[str, Any] = {
        item.id: {"semitones": value, "source_semitones": 1.0}
        for item, value in zip(items, (-0.5, 0.5, 70.0), strict=True)
    }
    rows |= {f"recording:{i}.wav": {} for i in range(3)} | {"recording:r.wav": {}}
    found = distributions(PairList(items), rows)
    assert list(found) == ["semitones"]
    assert found["semitones"]["edges"][0] == -1
    assert found["semitones"]["edges"][-1] == 24
    counts = found["semitones"]["counts"]
    assert {kind: sum(each) for kind, each in counts.items()} == {"source": 3, "conversion": 3}
    assert counts["conversion"][:2] == [1, 1]
    assert counts["conversion"][-1] == 1
