"""What a conversion looks like: both spectrograms on one time axis, and both pitches.

T samples, F frames (every 10 ms, centred), M mel bands.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.style import context as style_context
from matplotlib.ticker import NullFormatter, ScalarFormatter
from numpy.typing import NDArray
from torch.nn import functional

from vconv.geometry import FRAME_HOP, FRAME_LENGTH
from vconv.nn.features import N_MELS, SAMPLE_RATE, LogMel
from vconv.nn.pitch import MAX_HZ, MIN_HZ, WINDOW, Pitch

from .figure import STYLE

Floats = NDArray[np.float32]

_SOURCE, _RESULT = "#0072B2", "#D55E00"
_TICKS_HZ = (0, 500, 1000, 2000, 4000)
_RANGE_DB = 70  # of a spectrogram below the loudest band of either
_SILENT_DB = -120.0
_JUMP_OCTAVES = 0.25  # in 10 ms, which no voice does


@dataclass(frozen=True)
class Acoustics:
    """A sound: log-mel power [M, F], F0 in Hz [F] (NaN where unvoiced), level in dB RMS re full
    scale (-120 at least), duration."""

    mel: Floats
    f0_hz: Floats
    level_db: float
    seconds: float

    @property
    def median_f0_hz(self) -> float | None:
        """None of a sound without a voiced frame."""
        voiced = self.f0_hz[np.isfinite(self.f0_hz)]
        return float(np.median(voiced)) if len(voiced) else None


@torch.no_grad()
def acoustics(wav: Floats) -> Acoustics:
    """Of a sound [T] at 16 kHz, by the networks' own log-mel and pitch."""
    signal = torch.from_numpy(wav)[None]
    # Silence on both sides centres frame i on sample i * FRAME_HOP.
    mel = LogMel().raw(functional.pad(signal, (FRAME_LENGTH // 2,) * 2))
    pitch = Pitch(0, 0, 1, FRAME_HOP)
    octave, voicing = pitch(functional.pad(signal, (WINDOW // 2, WINDOW - WINDOW // 2)))[0]
    f0 = torch.where(voicing >= 0.5, octave.exp2(), torch.nan)
    rms = float(signal.double().square().mean().sqrt())
    return Acoustics(
        mel=mel[0].numpy(),
        f0_hz=f0.numpy(),
        level_db=max(_SILENT_DB, 20 * float(np.log10(max(rms, 1e-9)))),
        seconds=len(wav) / SAMPLE_RATE,
    )


def conversion_png(title: str, source: Acoustics, result: Acoustics) -> bytes:
    """Source above result, on the same scale, and F0 of both below, as a PNG file."""
    file = io.BytesIO()
    with warnings.catch_warnings(), matplotlib.rc_context(), style_context(["default", STYLE]):
        # Of a name that the font cannot write, a box will do.
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        draw_conversion(title, source, result).savefig(file, format="png")
    return file.getvalue()


def draw_conversion(title: str, source: Acoustics, result: Acoustics) -> Figure:
    """The figure of ``conversion_png``, in matplotlib's style of the moment."""
    figure = Figure(figsize=(9.0, 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(3, sharex=True, gridspec_kw={"height_ratios": [5, 5, 4]})
    figure.suptitle(title.replace("$", r"\$"), fontsize=13)
    top = max(float(source.mel.max()), float(result.mel.max()))
    low = top - _RANGE_DB * np.log(10) / 10  # a natural logarithm of power
    places = [_band(hz) for hz in _TICKS_HZ]
    for name, sound, place in (("Source", source, axes[0]), ("Result", result, axes[1])):
        place.imshow(
            sound.mel,
            origin="lower",
            aspect="auto",
            interpolation="nearest",
            cmap="magma",
            vmin=low,
            vmax=top,
            extent=(0, sound.seconds, -0.5, N_MELS - 0.5),
        )
        place.set_title(f"{name}, {sound.level_db:.1f} dB".replace("-", "\N{MINUS SIGN}"))
        place.set_yticks(places, [f"{hz / 1000:g}" for hz in _TICKS_HZ])
        place.set_ylabel("kHz")
        place.grid(visible=False)
    _draw_f0(axes[2], {"source": source, "result": result})
    axes[2].set_xlim(0, max(source.seconds, result.seconds))
    axes[2].set_xlabel("seconds")
    return figure


def _draw_f0(place: Axes, sounds: dict[str, Acoustics]) -> None:
    place.set_yscale("log")
    voiced = [hz for sound in sounds.values() for hz in sound.f0_hz if np.isfinite(hz)]
    for (name, sound), colour in zip(sounds.items(), (_SOURCE, _RESULT), strict=True):
        median = sound.median_f0_hz
        label = f"{name}, median {median:.0f} Hz" if median else f"{name}, no voice"
        time = np.arange(len(sound.f0_hz)) * (FRAME_HOP / SAMPLE_RATE)
        # Each frame is decided by itself; a line through every slip would be all that is seen.
        jumps = np.flatnonzero(np.abs(np.diff(np.log2(sound.f0_hz))) > _JUMP_OCTAVES) + 1
        broken = np.insert(time, jumps, np.nan), np.insert(sound.f0_hz, jumps, np.nan)
        place.plot(*broken, ".-", color=colour, lw=1.4, ms=3, label=label)
    low, high = (min(voiced) / 1.15, max(voiced) * 1.15) if voiced else (MIN_HZ, MAX_HZ)
    place.set_ylim(low, high)
    place.set_yticks([hz for hz in (60, 80, 100, 150, 200, 300, 400, 500) if low < hz < high])
    place.yaxis.set_major_formatter(ScalarFormatter())
    place.yaxis.set_minor_formatter(NullFormatter())
    place.minorticks_off()
    place.set_title("F0")
    place.set_ylabel("Hz")
    # Beside the title, where no curve can be.
    place.legend(loc="lower right", bbox_to_anchor=(1, 0.97), ncols=2, fontsize="small")


def _band(hz: float) -> float:
    """Where on the axis of mel bands a frequency lies (HTK's scale; band 0's centre is at 0)."""
    top = np.log10(1 + SAMPLE_RATE / 2 / 700)
    return float(np.log10(1 + hz / 700) / top * (N_MELS + 1) - 1)
