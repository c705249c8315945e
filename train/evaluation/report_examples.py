"""The listening part of report/index.html: players and mel pictures, all within the page."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import soundfile

from vconv.audio import SAMPLE_RATE, read

from ..conversion_figure import acoustics
from .report_figures import DASH, KINDS, data_uri, key, mel_pictures, told

_MOST = 10
_MOST_BYTES = 4_400_000  # of a page that shall stay below 5 MB
_BLOCK = 16_000  # libsndfile's Vorbis overflows its stack on long writes
_WORST = "farthest from the target"

Example = Mapping[str, Any]


def examples(found: Sequence[Example], folder: Path) -> str:
    """The examples, the worst of them last; those that make the page too large are left out, the
    worst never for the sake of others."""
    order = sorted(range(len(found)), key=lambda i: found[i]["why"] != _WORST)
    shown: dict[int, str] = {}
    size = 0
    for i in order[:_MOST]:
        drawn = _example(found[i], folder)
        size += len(drawn)
        if size > _MOST_BYTES:
            break
        shown[i] = drawn
    left = len(found) - len(shown)
    rest = f" {left} more are in the folder audio." if left else ""
    return (
        '<section id="listening"><h2>Listening</h2><p class="soft">Pictures: 80 mel bands, one '
        "scale and one time axis in each example. The sounds here may be compressed; the folder "
        f"audio beside this page has them without loss.{rest}</p>"
        f"{''.join(shown[i] for i in sorted(shown)) or '<p>None.</p>'}</section>"
    )


def _example(example: Example, folder: Path) -> str:
    files = {kind: folder / name for kind, name in example["files"].items() if name is not None}
    sounds = {kind: acoustics(read(files[kind])) for kind in KINDS if kind in files}
    pictures = mel_pictures([sound.mel for sound in sounds.values()])
    longest = max(sound.seconds for sound in sounds.values())
    source, target = (escape(str(example[who] or "unknown")) for who in ("source", "target"))
    players = []
    for kind, title in KINDS.items():
        who = source if kind == "source" else target
        label = f"{key(kind)}{title}"
        if kind not in sounds:
            why = "no recording of it" if kind == "target" else "not in the list"
            players.append(
                f'<figure class="{kind}"><figcaption>{label}</figcaption>'
                f'<p class="soft">{DASH} {why}</p></figure>'
            )
            continue
        picture = data_uri("image/png", pictures[list(sounds).index(kind)])
        width = 100 * sounds[kind].seconds / longest
        spoken = f"{title}, {who}"
        players.append(
            f'<figure class="{kind}"><figcaption>{label}, <b>{who}</b></figcaption>'
            f'<img src="{picture}" style="width:{width:.1f}%" alt="Mel spectrogram: {spoken}">'
            f'<audio controls preload="metadata" src="{_embedded(files[kind])}" '
            f'aria-label="{spoken}"></audio></figure>'
        )
    return (
        f'<article class="example"><h3>{source} \N{RIGHTWARDS ARROW} {target}</h3>'
        f"<p>{escape(str(example['text'] or example['sentence']))}</p>"
        f'<p class="soft"><small>{escape(_said(example))}</small></p>'
        f'<div class="players">{"".join(players)}</div></article>'
    )


def _said(example: Example) -> str:
    figures, parts = example["figures"], [str(example["why"])]
    for name, title, unit in (
        ("mcd", "distortion", "dB"),
        ("semitones", "F0", "semitones"),
        ("level_db", "level", "dB"),
    ):
        if figures.get(name) is not None:
            aside = " off the true target" if name == "semitones" else ""
            parts.append(f"{title} {told(figures[name], unit)} {unit}{aside}")
    for name, title in (("unit_error", "unit errors"), ("wer", "word errors")):
        if figures.get(name) is not None and figures[name][1]:
            parts.append(f"{title} {figures[name][0]} of {figures[name][1]}")
    if "heard" in figures:
        parts.append(f"heard: {figures['heard'] or 'nothing'}")
    return "; ".join(parts)


def _embedded(path: Path) -> str:
    """The file as Ogg Opus, or Vorbis, where that can be written and is smaller; else itself."""
    itself = path.read_bytes()
    for subtype in ("OPUS", "VORBIS"):
        if subtype in soundfile.available_subtypes("OGG"):
            file = io.BytesIO()
            wav = read(path)
            with soundfile.SoundFile(
                file, "w", SAMPLE_RATE, 1, format="OGG", subtype=subtype
            ) as sound:
                for start in range(0, len(wav), _BLOCK):
                    sound.write(wav[start : start + _BLOCK])
            if len(file.getvalue()) < len(itself):
                return data_uri("audio/ogg", file.getvalue())
            break
    return data_uri("audio/flac", itself)
