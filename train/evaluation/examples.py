"""A few items to listen to: report/audio/, four files each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vconv.audio import SAMPLE_RATE, read, write_atomic
from vconv.bundle import Bundle

from .pairs import Item, PairList, evenly
from .score import Settings, convert
from .summary import worst

_SENTENCES = 2
_PAIRS = 3  # of each
_WORST = 3
_KEPT = ("level_db", "median_f0_hz", "semitones", "mcd", "heard", "wer", "unit_error")


def keep_examples(
    bundle: Bundle,
    pairs: PairList,
    settings: Settings,
    rows: Mapping[str, Mapping[str, Any]],
    folder: Path,
) -> list[dict[str, Any]]:
    """Write source, conversion, true target and copy synthesis of the chosen items as FLAC; what
    they are, and where below ``folder``.

    They are made anew, which with the same seed gives what was scored.
    """
    import vconv

    by_id = {item.id: item for item in pairs.items}
    copies = {(item.target, item.sentence): item for item in pairs.items if item.kind == "copy"}
    failed = worst(pairs, rows, _WORST)
    chosen = {item.id: "first sentences" for item in _spread(pairs)}
    chosen |= dict.fromkeys(failed, "farthest from the target")
    audio = folder / "audio"
    audio.mkdir(exist_ok=True)
    for old in audio.glob("[0-9][0-9]-*.flac"):
        old.unlink()
    made = []
    with vconv.load(bundle.path, device="cpu", precision=settings.precision) as converter:
        for number, (name, why) in enumerate(chosen.items()):
            item = by_id[name]
            copy = copies.get((item.target, item.sentence))
            files: dict[str, str | None] = {}
            for kind in ("source", "conversion", "target", "copy"):
                path = Path("audio") / f"{number:02d}-{kind}.flac"
                files[kind] = path.as_posix()
                if kind == "source":
                    wav = read(item.source)
                elif kind == "conversion":
                    wav = convert(converter, read(item.source), item, settings).audio
                elif kind == "target" and item.reference is not None:
                    wav = read(item.reference)
                elif kind == "copy" and copy is not None:
                    wav = convert(converter, read(copy.source), copy, settings).audio
                else:
                    files[kind] = None
                    continue
                with write_atomic(folder / path, SAMPLE_RATE) as writer:
                    writer.write(wav)
            made.append(
                {
                    "why": why,
                    "sentence": item.sentence,
                    "text": item.text,
                    "source": item.source_speaker,
                    "target": item.target,
                    "files": files,
                    "figures": {key: rows[name][key] for key in _KEPT if key in rows[name]},
                }
            )
    return made


def _spread(pairs: PairList) -> list[Item]:
    """Of each of the first sentences some conversions, spread evenly."""
    chosen = []
    for index, sentence in enumerate(pairs.sentences[:_SENTENCES]):
        here = [i for i in pairs.items if i.kind == "conversion" and i.sentence == sentence]
        names = evenly([str(n) for n in range(len(here))], _PAIRS)
        # The second sentence's are others than the first's.
        chosen += [here[(int(n) + index) % len(here)] for n in names]
    return chosen
