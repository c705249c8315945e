"""Whether one hears where lanes are joined: seams against the same recording in one lane.

    python benchmarks/seams.py [FILE] [--model demo] [--speaker slt] [--lanes 2,4,8,16]
                               [--precisions fp32,int8] [--seconds 60] [--seeds 3]

FILE, by default examples/hello.wav, is repeated to so many seconds and converted with every seed,
in one lane and in several. Where both lanes have come to say the same there is no seam to hear. Of
the other seams every two neighbouring frames (25 ms, 10 ms apart) that meet the crossfade have a
log-spectral distance (LSD). Speech changes more where it is loud, and lanes are joined where it is
quiet: `elsewhere` are the frames of the one lane that are about as loud.

A dip is by how much the level, of the softest 20 ms in a crossfade, is below that of the one lane
there; below that of the one lane's with the next seed, which says how far two readings differ; and
below the softer of the two lanes that are joined, which is the crossfade's own doing.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import numpy.typing as npt

import vconv
from vconv import lanes as joining
from vconv.audio import SAMPLE_RATE, read
from vconv.bench import checked_lanes
from vconv.engines import Codes
from vconv.lanes import FADE, LaneSession
from vconv.reading import Samples

Doubles = npt.NDArray[np.float64]

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "hello.wav"
FRAME, HOP, BINS = 400, 160, 512
QUIETEST = 1e-5  # power of a bin: that of noise at -72 dB, below which nothing is told apart
ALIKE = 200  # frames that are about as loud
LEVEL, LEVEL_HOP = 320, 80  # samples
SILENT = 10 ** (-72 / 20)
ROUNDING = 1e-7  # equal codes; a filter that has not forgotten the last bits of what was before


@dataclass(frozen=True)
class Seam:
    """Where in the output the crossfade begins, whether there was one, and its dip in dB below
    the softer of both lanes."""

    place: int
    faded: bool
    dip: float


@dataclass(frozen=True)
class Found:
    """Of one conversion in lanes: distances at the seams that can be heard, those of frames as
    loud in one lane, and the seams' dips below one lane and those of another seed; all in dB."""

    seams: list[Seam]
    at_seams: Doubles
    elsewhere: Doubles
    dips: list[float]
    dips_of_another: list[float]


@contextmanager
def watched() -> Iterator[list[Seam]]:
    """The seams of a recording that is converted meanwhile."""
    seams: list[Seam] = []
    at = 0
    crossfade, join = joining.crossfaded, LaneSession._join

    def crossfaded(before: Samples, after: Samples, settled: int) -> Samples:
        made = crossfade(before, after, settled)
        length = min(len(before), len(after))
        changed = np.flatnonzero(np.abs(made[:length] - before[:length]) > ROUNDING)
        # It fades from a place on a grid, and the first samples may be rounded to what they were.
        steps = (int(changed[0]) - settled) // joining._SEAM_HOP if len(changed) else 0
        place = settled + steps * joining._SEAM_HOP
        softest = [softest_level(x[place : place + FADE]) for x in (made, before, after)]
        seams.append(Seam(at + place, len(changed) > 0, min(softest[1:]) - softest[0]))
        return made

    def joined(session: LaneSession, codes: Sequence[Codes], length: int) -> Iterator[Samples]:
        nonlocal at
        yield from join(session, codes, length)
        at += length

    with (
        mock.patch.object(joining, "crossfaded", crossfaded),
        mock.patch.object(LaneSession, "_join", joined),
    ):
        yield seams


def distances(audio: Samples) -> tuple[Doubles, Doubles]:
    """Of every frame and the next: the log-spectral distance, and the level of both, in dB."""
    frames = np.lib.stride_tricks.sliding_window_view(audio, FRAME)[::HOP] * np.hanning(FRAME)
    spectra = 10 * np.log10(np.abs(np.fft.rfft(frames, BINS)) ** 2 + QUIETEST)
    distance = np.sqrt(np.square(np.diff(spectra, axis=0)).mean(axis=1))
    return distance, levels(audio, FRAME + HOP, HOP)[: len(distance)]


def levels(audio: Samples, length: int, hop: int) -> Doubles:
    """The RMS in dB of so many samples, every so many."""
    parts = np.lib.stride_tricks.sliding_window_view(audio, length)[::hop]
    rms = np.sqrt(np.square(parts, dtype=np.float64).mean(axis=1))
    decibels: Doubles = 20 * np.log10(np.maximum(rms, SILENT))
    return decibels


def softest_level(audio: Samples) -> float:
    return float(levels(audio, LEVEL, LEVEL_HOP).min())


def compared(audio: Samples, seams: list[Seam], one: Samples, another: Samples) -> Found:
    """A conversion in lanes against those of one lane with the same seed and with another."""
    distance, level = distances(audio)
    plain, plain_level = distances(one)
    order = np.argsort(plain_level)
    at_seams: list[Doubles] = []
    elsewhere: list[Doubles] = []
    dips: list[float] = []
    dips_of_another: list[float] = []
    for place in (seam.place for seam in seams if seam.faded):
        meet = range((place - FRAME - HOP) // HOP + 1, (place + FADE - 1) // HOP + 1)
        for pair in meet:
            rank = int(np.searchsorted(plain_level, level[pair], sorter=order))
            first = min(max(0, rank - ALIKE // 2), len(order) - ALIKE)
            elsewhere.append(plain[order[first : first + ALIKE]])
        at_seams.append(distance[meet.start : meet.stop])
        softest = [softest_level(x[place : place + FADE]) for x in (one, audio, another)]
        dips.append(softest[0] - softest[1])
        dips_of_another.append(softest[2] - softest[1])
    nothing = np.zeros(0)
    return Found(
        seams,
        np.concatenate([nothing, *at_seams]),
        np.concatenate([nothing, *elsewhere]),
        dips,
        dips_of_another,
    )


def row(precision: str, lanes: int, runs: list[Found]) -> str:
    seams = [seam for run in runs for seam in run.seams]
    faded = [seam for seam in seams if seam.faded]
    cells = [precision, f"{lanes}", f"{len(seams)}", f"{1 - len(faded) / len(seams):.0%}"]
    if faded:
        for part in (
            np.concatenate([run.at_seams for run in runs]),
            np.concatenate([run.elsewhere for run in runs]),
        ):
            cells += [f"{np.median(part):.2f}", f"{np.quantile(part, 0.95):.2f}"]
        for dips in (
            [dip for run in runs for dip in run.dips],
            [dip for run in runs for dip in run.dips_of_another],
            [seam.dip for seam in faded],
        ):
            cells.append(f"{max(dips):.1f}")
    else:
        cells += ["-"] * 7
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path, nargs="?", default=EXAMPLE)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--speaker", default="slt")
    parser.add_argument("--lanes", type=checked_lanes, default=(2, 4, 8, 16))
    parser.add_argument("--precisions", default="fp32,int8")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seeds", type=int, default=3, help="how many readings of each")
    options = parser.parse_args()
    if 1 in options.lanes:
        parser.error("--lanes: one lane has no seams; it is what the others are compared with")
    recording = np.resize(read(options.file), round(options.seconds * SAMPLE_RATE))
    print(
        f"{options.file.name} repeated to {options.seconds:g} s, {options.seeds} seeds, model "
        f"{options.model}, speaker {options.speaker}; distances (LSD) and dips in dB\n\n"
        "| precision | lanes | seams | lanes agree | LSD at the others, median | 95 % "
        "| elsewhere, median | 95 % | largest dip, below one lane | below another seed "
        "| below both lanes |\n|---|---|---|---|---|---|---|---|---|---|---|",
        flush=True,
    )
    for precision in options.precisions.split(","):
        with vconv.load(options.model, precision=precision) as converter:

            def said(seed: int, lanes: int, converter: vconv.Converter = converter) -> Samples:
                made = converter.convert(
                    recording,
                    speaker=options.speaker,
                    seed=seed,
                    lanes=lanes,
                    sample_rate=SAMPLE_RATE,
                )
                if made.lanes != lanes:
                    parser.error(f"{made.seconds:g} s are too short for {lanes} lanes")
                return made.audio

            ones = [said(seed, 1) for seed in range(options.seeds + 1)]
            for lanes in options.lanes:
                runs = []
                for seed in range(options.seeds):
                    with watched() as seams:
                        audio = said(seed, lanes)
                    runs.append(compared(audio, seams, ones[seed], ones[seed + 1]))
                print(row(precision, lanes, runs), flush=True)


if __name__ == "__main__":
    main()
