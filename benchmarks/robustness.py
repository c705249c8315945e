"""What a model makes of inputs that it was not trained on: bursts, dropouts, noise, silence.

    python benchmarks/robustness.py BUNDLE [--voices MANIFEST] [--speakers A,B] [--temperature T]

BUNDLE is a folder or a name. The inputs are made here, the same on every run: `spoken` and
`others` list them. `clean` and everything made of it are held-out sentences of four voices, read
from MANIFEST (the corpus's manifest.jsonl) or else said by flite, festival and espeak-ng; the
voices left out of training are said by the same programs, and the human is alsa-utils' eight
clips. What is not installed is left out and named. Each input is converted, in the native
engine's default way, to every one of --speakers, by default six spread over the model's.

Every speech input is 0.5 s of digital silence, two recordings (the human: all eight) with 0.6 s of
silence between them, and 2 s of silence. Noise covers all but the last 2 s, and fills the pauses.
Frames are 20 ms at 16 kHz, and a frame's level is its RMS in dBFS, at least -80 dB. What is speech
and what is a pause is judged by the clean recording, before noise, band or gain:

typical    the 95th percentile of a signal's levels; of a voice, of its `clean` conversions pooled
loud       a frame within 20 dB of the recording's typical level
pause      a frame 40 dB or more below it, as are the two before and after it
in, out    mean power of the loud frames, of the input as given and of the output
dropped    share of loud frames in which the loudest of the output's frame and its two neighbours
           is 30 dB or more further below the voice's typical level than the recording's frame is
           below the recording's
babble     share of the pause frames that are within 20 dB of the voice's typical level: as loud
           as speech where there is none
bursts     runs of frames at least 10 dB above the voice's typical level, or as loud as speech in
           a pause and at least 30 dB above the median of the output's pauses
floor      median level of the output's pauses, over a conversion; the figure is its mean less that
           of the same voice's copy synthesis (its own held-out sentences, spoken by itself)
dead       the longest stretch of output 40 dB or more below the voice's typical level, counted in
           the loud frames of the recording that it swallows, in seconds
runaway    the last second, RMS, against the voice's typical level; of digital silence all of it

A row is all voices: the worst conversion for dead and runaway, the sum of bursts, means elsewhere.
Inputs without speech are 5 s and 2 s of silence; `in` and `out` are of the first 5 s, and a burst
is 10 dB above the voice's typical level. Demands (`DEMANDS`): dropped and babble <= 5 %, no bursts,
floor <= copy synthesis's + 1 dB (a difference of two measurements), dead <= 0.2 s, runaway <=
-30 dB. A failure is marked in the table with !, and the exit status is 1.

The last thing printed is the table; docs/robustness.md gets it between its markers when nothing
but BUNDLE and --voices was said.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.signal

import vconv
from vconv.audio import SAMPLE_RATE, read
from vconv.demo.corpus import read_sentences
from vconv.demo.synthesis import check_voices, synthesise
from vconv.demo.voices import VOICES, Voice
from vconv.errors import VconvError

Signal = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "robustness.md"
HUMAN = Path("/usr/share/sounds/alsa")

FRAME = 320
LEAST_DB = -80.0
LOUD_DB, PAUSE_DB, MARGIN = 20.0, 40.0, 2
DROP_DB, BURST_DB, RISE_DB, DEAD_DB = 30.0, 10.0, 30.0, 40.0
LEAD, GAP, TAIL, PLAIN = 0.5, 0.6, 2.0, 5.0  # seconds
SENTENCES = 2
SOURCES = ("slt", "awb", "es-sandro", "kal-large")
TARGETS = 6
SNR_DB = 10.0

# Engines' voices that no voice of the corpus is made of, or not so.
LEFT_OUT = (
    Voice("flite kal, 8 kHz", "flite", "kal"),
    Voice("flite rms, higher", "flite", "rms", shift=1.1, pitch=160),
    Voice("espeak default", "espeak-ng", "en-us+m3"),
    Voice("espeak f2", "espeak-ng", "en-us+f2"),
    Voice("espeak belinda", "espeak-ng", "en-gb+belinda"),
    Voice("espeak klatt4", "espeak-ng", "en-gb-scotland+klatt4"),
)

DEMANDS: Mapping[str, float] = {
    "dropped": 0.05,
    "babble": 0.05,
    "bursts": 0,
    "floor": 1.0,
    "dead": 0.2,
    "runaway": -30.0,
}


@dataclass(frozen=True)
class Speech:
    """An input [T] and the clean recording [T] that says where in it is speech."""

    given: Signal
    clean: Signal


@dataclass(frozen=True)
class Figures:
    """Of one conversion; None what its input does not tell."""

    given: float
    out: float
    bursts: int
    runaway: float
    dropped: float | None = None
    babble: float | None = None
    floor: float | None = None
    dead: float | None = None


def main() -> int:
    arguments = _parser().parse_args()
    with vconv.load(arguments.bundle) as converter, tempfile.TemporaryDirectory() as folder:
        names = converter.speakers.names
        spread = np.linspace(0, len(names) - 1, min(TARGETS, len(names))).round().astype(int)
        wanted = arguments.speakers
        targets = wanted.split(",") if wanted else [names[i] for i in spread]
        recordings = Recordings(arguments.voices, Path(folder))

        def say(signal: Signal, target: str) -> Signal:
            made = converter.convert(
                signal.astype(np.float32),
                speaker=target,
                sample_rate=SAMPLE_RATE,
                temperature=arguments.temperature,
            )
            return made.audio.astype(np.float64)

        rows = measure(recordings, targets, say)
        title = f"{converter.info.name}, {converter.precision}"
    text, failed = table(rows)
    print(text)
    if not wanted and arguments.temperature == 1.0:
        document = DOCUMENT.read_text("utf-8")
        between = re.compile(r"(?<=<!-- table -->\n).*?(?=<!-- /table -->)", re.DOTALL)
        DOCUMENT.write_text(between.sub(lambda _: text, document), "utf-8")
    judged = f"{title}, to {', '.join(targets)}"
    print(f"{judged}: {len(failed)} demands failed" if failed else f"{judged}: all passed")
    return 1 if failed else 0


def measure(
    recordings: Recordings, targets: Sequence[str], say: Callable[[Signal, str], Signal]
) -> dict[str, list[Figures]]:
    """Every input's conversions. `clean` comes first: the others are judged by its levels."""
    inputs = dict(spoken(recordings))
    made = {(i, t): say(s.given, t) for i, s in enumerate(inputs["clean"]) for t in targets}
    pooled = {t: [levels(out) for (_, to), out in made.items() if to == t] for t in targets}
    typical = {t: float(np.percentile(np.concatenate(pooled[t]), 95)) for t in targets}
    copies: dict[str, Figures] = {}
    for target in targets:
        own = recordings.of(target)
        if own is None:
            print(f"{target}: no recordings of it, so no copy synthesis", file=sys.stderr)
            continue
        speech = Speech(own, own)
        copies[target] = figures(speech, say(own, target), typical[target], None)
    rows: dict[str, list[Figures]] = {"copy synthesis": list(copies.values())}
    for name, speeches in inputs.items():
        rows[name] = []
        for i, speech in enumerate(speeches):
            for target in targets:
                out = made[i, target] if name == "clean" else say(speech.given, target)
                copy = copies[target].floor if target in copies else None
                rows[name].append(figures(speech, out, typical[target], copy))
        print(f"{name}: {row(name, rows[name])}", file=sys.stderr, flush=True)
    for name, signal in others():
        rows[name] = [plain(signal, say(signal, t), typical[t]) for t in targets]
        print(f"{name}: {row(name, rows[name])}", file=sys.stderr, flush=True)
    return rows


# ---- inputs -------------------------------------------------------------------------------------


class Recordings:
    """Held-out sentences of the corpus's voices: from its manifest, or said now."""

    def __init__(self, manifest: Path | None, work: Path) -> None:
        """``work``: an empty folder."""
        self._work = work
        self._found: dict[str, list[Path]] = {}
        self.texts = [s.text for s in read_sentences() if s.split == "heldout"][:SENTENCES]
        if manifest is not None:
            for line in manifest.read_text("utf-8").splitlines():
                entry = json.loads(line)
                if entry.get("split") == "heldout":
                    paths = self._found.setdefault(entry["speaker"], [])
                    paths.append(manifest.parent / entry["path"])
        self._by_name = {} if manifest is not None else {v.name: v for v in VOICES}

    def of(self, speaker: str) -> Signal | None:
        """A speech input of that voice; None where there is none of it."""
        if speaker in self._found:
            paths = sorted(self._found[speaker])[:SENTENCES]
            return laid_out([read(path).astype(np.float64) for path in paths])
        voice = self._by_name.get(speaker)
        return None if voice is None else self.said(voice)

    def said(self, voice: Voice) -> Signal | None:
        """A speech input by that voice of an installed program, or None, which is said."""
        try:
            check_voices([voice])
            with tempfile.TemporaryDirectory(dir=self._work) as work:
                return laid_out(list(synthesise(voice, self.texts, Path(work))))
        except VconvError as error:
            print(f"{voice.name}: {error}", file=sys.stderr)
            return None

    def sources(self) -> list[Signal]:
        """Of `SOURCES`, or of the first voices of another corpus."""
        names = [s for s in SOURCES if s in self._found] or sorted(self._found)[: len(SOURCES)]
        made = [self.of(name) for name in names or SOURCES]
        return [signal for signal in made if signal is not None]


def laid_out(recordings: Sequence[Signal]) -> Signal:
    """Recordings at 16 kHz with silence before, between and behind."""
    parts: list[Signal] = [_silence(LEAD)]
    for number, recording in enumerate(recordings):
        parts += [_silence(GAP), recording] if number else [recording]
    return np.concatenate([*parts, _silence(TAIL)])


def spoken(recordings: Recordings) -> Iterator[tuple[str, list[Speech]]]:
    """The inputs with speech, by the name of their row."""
    clean = recordings.sources()
    if not clean:
        sys.exit("There are no recordings: name a manifest by --voices, or install flite.")
    yield "clean", [Speech(x, x) for x in clean]
    clips = [path for path in sorted(HUMAN.glob("*.wav")) if path.stem != "Noise"]
    if clips:
        human = laid_out([read(path).astype(np.float64) for path in clips])
        yield "human", [Speech(human, human)]
    else:
        print(f"human: {HUMAN} is not there; install alsa-utils", file=sys.stderr)
    for engine in ("flite", "espeak-ng"):
        made = [recordings.said(voice) for voice in LEFT_OUT if voice.engine == engine]
        speeches = [Speech(x, x) for x in made if x is not None]
        if speeches:
            yield f"{engine}, left out", speeches
    yield "telephone", [Speech(telephone(x), x) for x in clean]
    yield "white noise, 10 dB", [Speech(noisy(x, _white(len(x))), x) for x in clean]
    yield "babble, 10 dB", [Speech(noisy(x, babble(clean, len(x))), x) for x in clean]
    yield "-40 dBFS", [Speech(x * 10 ** ((-40 - loudness(x)) / 20), x) for x in clean]


def others() -> Iterator[tuple[str, Signal]]:
    """The inputs without speech, and 2 s of digital silence behind each."""
    t = np.arange(int(PLAIN * SAMPLE_RATE)) / SAMPLE_RATE
    chord = np.zeros(len(t))
    for root in (220.0, 277.18, 329.63, 440.0):  # A major, struck every second, 5 harmonics
        for harmonic in range(1, 6):
            chord += np.sin(2 * np.pi * root * harmonic * t) / harmonic * np.exp(-2.0 * (t % 1.0))
    for name, signal in (
        ("silence", np.zeros(len(t))),
        ("white noise", _white(len(t))),
        ("tone, 440 Hz", np.sin(2 * np.pi * 440 * t)),
        ("chord", chord),
    ):
        level = np.sqrt(np.square(signal).mean())
        yield name, np.concatenate([signal * (10 ** (-26 / 20) / max(level, 1e-9)), _silence(TAIL)])


def telephone(signal: Signal) -> Signal:
    """300 to 3,400 Hz by way of 8 kHz."""
    band = scipy.signal.butter(4, (300, 3400), "bandpass", fs=SAMPLE_RATE, output="sos")
    narrow = scipy.signal.resample_poly(scipy.signal.sosfilt(band, signal), 1, 2)
    made: Signal = scipy.signal.resample_poly(narrow, 2, 1)[: len(signal)]
    return np.pad(made, (0, len(signal) - len(made)))


def noisy(clean: Signal, noise: Signal) -> Signal:
    """With that noise, as far as it reaches, SNR_DB below the loud frames, but for the tail."""
    reach = len(clean) - int(TAIL * SAMPLE_RATE)
    noise = noise[:reach]
    power = 10 ** ((loudness(clean) - SNR_DB) / 10)
    made = clean.copy()
    made[:reach] += noise * np.sqrt(power / np.square(noise).mean())
    return made


def babble(recordings: Sequence[Signal], length: int) -> Signal:
    """Everyone at once, twice and backwards, nobody to be understood: noise that speaks."""
    made = np.zeros(length)
    for number, recording in enumerate(recordings):
        spoken = recording[int(LEAD * SAMPLE_RATE) : -int(TAIL * SAMPLE_RATE)][::-1]
        for shift in (number * 5501, number * 5501 + len(spoken) // 2):
            made += np.resize(np.roll(spoken, shift), length)
    return made


def _white(length: int) -> Signal:
    return np.random.default_rng(0).standard_normal(length)


def _silence(seconds: float) -> Signal:
    return np.zeros(int(seconds * SAMPLE_RATE))


# ---- figures ------------------------------------------------------------------------------------


def levels(signal: Signal) -> Signal:
    """Of every whole frame, in dBFS."""
    frames = signal[: len(signal) // FRAME * FRAME].reshape(-1, FRAME)
    return np.maximum(10 * np.log10(np.square(frames).mean(1) + 1e-12), LEAST_DB)


def masks(clean: Signal) -> tuple[Mask, Mask]:
    """Which frames are loud, and which are a pause."""
    found = levels(clean)
    typical = np.percentile(found[found > LEAST_DB], 95)
    quiet = found <= typical - PAUSE_DB
    padded = np.pad(quiet, MARGIN, constant_values=True)
    pause = np.all([padded[i : i + len(quiet)] for i in range(2 * MARGIN + 1)], axis=0)
    return found > typical - LOUD_DB, pause


def loudness(signal: Signal, clean: Signal | None = None) -> float:
    """Mean power in the loud frames (of ``clean``, or its own), in dBFS."""
    loud, _ = masks(signal if clean is None else clean)
    return _mean_db(levels(signal)[loud])


def figures(speech: Speech, out: Signal, typical: float, copy_floor: float | None) -> Figures:
    """``typical``: of the voice; ``copy_floor``: its copy synthesis's, None: the floor as it is."""
    loud, pause = masks(speech.clean)
    heard, said = levels(speech.clean), levels(out)
    own = np.percentile(heard[heard > LEAST_DB], 95)
    nearest = np.max([np.roll(said, -1), said, np.roll(said, 1)], axis=0)
    dropped = (nearest - typical) - (heard - own) <= -DROP_DB
    floor = float(np.median(said[pause]))
    babble = pause & (said > typical - LOUD_DB)
    burst = (said >= typical + BURST_DB) | (babble & (said >= floor + RISE_DB))
    dead = max((int(loud[a:b].sum()) for a, b in runs(said <= typical - DEAD_DB)), default=0)
    return Figures(
        given=loudness(speech.given, speech.clean),
        out=_mean_db(said[loud]),
        bursts=len(runs(burst)),
        runaway=_last_second(out) - typical,
        dropped=float(dropped[loud].mean()),
        babble=float(babble[pause].mean()),
        floor=floor - (copy_floor or 0.0),
        dead=dead * FRAME / SAMPLE_RATE,
    )


def plain(given: Signal, out: Signal, typical: float) -> Figures:
    """Of an input without speech."""
    reach = int(PLAIN * SAMPLE_RATE)
    bursts = len(runs(levels(out) >= typical + BURST_DB))
    said = _mean_db(levels(out[:reach]))
    last = _last_second(out) if given.any() else max(said, _last_second(out))
    return Figures(_mean_db(levels(given[:reach])), said, bursts, last - typical)


def runs(mask: Mask) -> list[tuple[int, int]]:
    """[begin, end) of each stretch that is true."""
    edges = np.flatnonzero(np.diff(np.pad(mask.astype(np.int8), 1)))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


def _last_second(signal: Signal) -> float:
    return _mean_db(levels(signal[-SAMPLE_RATE:]))


def _mean_db(found: Signal) -> float:
    return float(10 * np.log10(np.mean(10 ** (found / 10))))


# ---- the table ----------------------------------------------------------------------------------


def row(name: str, conversions: Sequence[Figures]) -> dict[str, float | None]:
    """A column's figure over all conversions; None where there is none."""

    def over(kind: str, reduced: Callable[[Any], Any]) -> float | None:
        found = [value for c in conversions if (value := getattr(c, kind)) is not None]
        return float(reduced(found)) if found else None

    return {
        "in": over("given", np.mean),
        "out": over("out", np.mean),
        "dropped": over("dropped", np.mean),
        "babble": over("babble", np.mean),
        "bursts": over("bursts", sum),
        "floor": over("floor", np.mean),
        "dead": over("dead", max),
        "runaway": over("runaway", max),
    }


FORMS = {
    "in": ".1f",
    "out": ".1f",
    "dropped": ".1%",
    "babble": ".1%",
    "bursts": ".0f",
    "floor": "+.1f",
    "dead": ".2f",
    "runaway": ".1f",
}
HEAD = (
    "input | conversions | in, dBFS | out, dBFS | dropped | babble | bursts | floor, dB | dead, s "
    "| runaway, dB | passes"
)


def table(rows: Mapping[str, Sequence[Figures]]) -> tuple[str, list[str]]:
    """The table as Markdown, and what failed: "<input>: <demand>"."""
    lines = [HEAD, " | ".join(["---"] * len(HEAD.split("|")))]
    failures = []
    for name, conversions in rows.items():
        if not conversions:
            continue
        cells, failed = [name, str(len(conversions))], []
        found = row(name, conversions)
        for kind, form in FORMS.items():
            value = found[kind]
            text = "-" if value is None else format(value, form)
            # Copy synthesis is what others are held against: its floor is in dBFS.
            judged = kind in DEMANDS and not (name == "copy synthesis" and kind == "floor")
            if value is not None and judged and value > DEMANDS[kind]:
                failed.append(kind)
                text += " !"
            cells.append(text)
        cells.append("no: " + ", ".join(failed) if failed else "yes")
        failures += [f"{name}: {kind}" for kind in failed]
        lines.append(" | ".join(cells))
    return "\n".join(f"| {line} |" for line in lines) + "\n", failures


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", help="a folder, or the name of an installed model")
    parser.add_argument("--voices", type=Path, metavar="MANIFEST", help="the corpus's recordings")
    parser.add_argument("--speakers", help="to whom, by name; the document then stays")
    parser.add_argument("--temperature", type=float, default=1.0)
    return parser


if __name__ == "__main__":
    sys.exit(main())
