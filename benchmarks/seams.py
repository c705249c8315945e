"""Whether one hears where lanes are joined: seams against the same recording in one lane.

    python benchmarks/seams.py [FILE] [--model demo] [--speaker slt] [--lanes 2,4,8,16]
                               [--seconds 60] [--seeds 5]

FILE, by default examples/hello.wav, is repeated to so many seconds and converted with every seed,
in one lane and in several. A seam at which both lanes say the same to the bit is none. Of the
others every two neighbouring frames (25 ms, 10 ms apart) that meet the crossfade are compared by
their log-spectral distance. Speech changes more where it is loud, and cuts lie where it is quiet:
`elsewhere` are the frames of the one lane that are about as loud. The dip is the lowest level of
20 ms in the crossfade over the lowest that one lane has there. It would have another one with
another seed, which says how much of the dip is the draws'.
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


@dataclass(frozen=True)
class Seam:
    """Where in the output the crossfade begins, and whether the lanes were equal there."""

    place: int
    equal: bool


@dataclass(frozen=True)
class Found:
    """Of one conversion in lanes: distances of frames at seams that are some, those of frames as
    loud of the one lane, and for each such seam the dip and another seed's, all in dB."""

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
        changed = np.flatnonzero(made[:length] != before[:length])
        # It fades from a place on a grid, and the first samples may be rounded to what they were.
        steps = (int(changed[0]) - settled) // joining._SEAM_HOP if len(changed) else 0
        seams.append(Seam(at + settled + steps * joining._SEAM_HOP, not len(changed)))
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


def compared(audio: Samples, seams: list[Seam], one: Samples, another: Samples) -> Found:
    """A conversion in lanes against those of one lane with the same seed and with another."""
    distance, level = distances(audio)
    plain, plain_level = distances(one)
    order = np.argsort(plain_level)
    at_seams: list[Doubles] = []
    elsewhere: list[Doubles] = []
    dips: list[float] = []
    dips_of_another: list[float] = []
    for place in (seam.place for seam in seams if not seam.equal):
        meet = range((place - FRAME - HOP) // HOP + 1, (place + FADE - 1) // HOP + 1)
        for pair in meet:
            rank = int(np.searchsorted(plain_level, level[pair], sorter=order))
            first = min(max(0, rank - ALIKE // 2), len(order) - ALIKE)
            elsewhere.append(plain[order[first : first + ALIKE]])
        at_seams.append(distance[meet.start : meet.stop])
        lowest, lowest_of_one, lowest_of_another = (
            float(levels(x[place : place + FADE], LEVEL, LEVEL_HOP).min())
            for x in (audio, one, another)
        )
        dips.append(lowest_of_one - lowest)
        dips_of_another.append(lowest_of_one - lowest_of_another)
    nothing = np.zeros(0)
    return Found(
        seams,
        np.concatenate([nothing, *at_seams]),
        np.concatenate([nothing, *elsewhere]),
        dips,
        dips_of_another,
    )


def row(lanes: int, runs: list[Found]) -> str:
    seams = [seam for run in runs for seam in run.seams]
    equal = sum(seam.equal for seam in seams)
    if equal == len(seams):
        return f"| {lanes} | {len(seams)} | all | | | | | | |"
    cells = [f"{lanes}", f"{len(seams)}", f"{equal / len(seams):.0%}"]
    for part in (
        np.concatenate([run.at_seams for run in runs]),
        np.concatenate([run.elsewhere for run in runs]),
    ):
        cells += [f"{np.median(part):.2f}", f"{np.quantile(part, 0.95):.2f}"]
    cells += [
        f"{max(dip for run in runs for dip in run.dips):.1f}",
        f"{max(dip for run in runs for dip in run.dips_of_another):.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path, nargs="?", default=EXAMPLE)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--speaker", default="slt")
    parser.add_argument("--lanes", type=checked_lanes, default=(2, 4, 8, 16))
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seeds", type=int, default=5, help="how many readings of each")
    options = parser.parse_args()
    recording = np.resize(read(options.file), round(options.seconds * SAMPLE_RATE))

    with vconv.load(options.model) as converter:

        def said(seed: int, lanes: int) -> Samples:
            made = converter.convert(
                recording, speaker=options.speaker, seed=seed, lanes=lanes, sample_rate=SAMPLE_RATE
            )
            if made.lanes != lanes:
                parser.error(f"there are {made.lanes} lanes in {made.seconds:.0f} s, not {lanes}")
            return made.audio

        ones = [said(seed, 1) for seed in range(options.seeds + 1)]
        print(
            f"{options.file.name} repeated to {options.seconds:g} s, {options.seeds} seeds, "
            f"{converter.info.name} in {converter.precision}, speaker {options.speaker}; "
            "log-spectral distances (LSD) and dips in dB\n\n"
            "| lanes | seams | equal to the bit | LSD at the others, median | 95 % | "
            "elsewhere, median | 95 % | largest dip | another seed's |\n"
            "|---|---|---|---|---|---|---|---|---|"
        )
        for lanes in options.lanes:
            runs = []
            for seed in range(options.seeds):
                with watched() as seams:
                    audio = said(seed, lanes)
                runs.append(compared(audio, seams, ones[seed], ones[seed + 1]))
            print(row(lanes, runs), flush=True)


if __name__ == "__main__":
    main()
