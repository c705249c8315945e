"""How loud the speech in a recording is, and the gain that brings it to what a model knows.

T samples at 16 kHz. The encoder hears loudness as content, so speech 20 dB quieter would become
other units. What is estimated here is causal and made of ratios: a recording k times as loud has
the same frames of speech, k times as loud. docs/bundle-format.md specifies it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

import numpy as np

from .audio import DCFilter
from .reading import Samples

_FRAME = 160  # samples: 10 ms
_SMOOTHED = 8  # frames; noise of a few hertz bandwidth varies by 10 dB in shorter ones
_SILENT = 1e-10  # power (-100 dBFS): digital silence is no room to compare with
_SUBWINDOW, _SUBWINDOWS = 100, 3  # the floor is the minimum of the last 2 to 3 s
_ABOVE = 10.0  # 10 dB
_LASTING = 20  # frames: with the gaps in words, noise that hides them changes the mean little
_REMEMBERED = 300  # frames of speech, 3 s
_TRUSTED = 40  # clear frames: fewer may be a click, or the soft beginning of a word
_MIN_DB, _MAX_DB = -20.0, 40.0


class SpeechFrames:
    """A recording without offset, in any blocks -> the powers of its frames of speech.

    Speech comes and goes, noise stays: a frame is clear where its smoothed power lies 10 dB above
    the least of the last seconds, and speech goes on for 0.2 s after a clear frame.
    """

    def __init__(self) -> None:
        self._rest = np.zeros(0, np.float32)
        self._powers: deque[float] = deque(maxlen=_SMOOTHED)
        self._minima: deque[float] = deque(maxlen=_SUBWINDOWS)
        self._heard = 0
        self._lasts = 0
        self.clear = 0
        """How many clear frames there were."""

    def push(self, block: Samples) -> list[float]:
        """The next samples [T] -> the smoothed powers of the frames of speech that end in them."""
        samples = np.concatenate((self._rest, block))
        whole = len(samples) // _FRAME * _FRAME
        frames, self._rest = samples[:whole].reshape(-1, _FRAME), samples[whole:]
        speech = []
        for power in np.square(frames, dtype=np.float64).mean(1).tolist():
            if power < _SILENT:
                continue
            self._powers.append(power)
            smoothed = sum(self._powers) / len(self._powers)
            if self._heard % _SUBWINDOW == 0:
                self._minima.append(smoothed)
            self._heard += 1
            self._minima[-1] = min(self._minima[-1], smoothed)
            if smoothed >= _ABOVE * min(self._minima):
                self.clear += 1
                self._lasts = 1 + _LASTING
            if self._lasts:
                self._lasts -= 1
                speech.append(smoothed)
        return speech


class InputLevel:
    """The gain for what the encoder hears next, from all that was heard so far.

    The level is the mean power of the last 3 s of speech: loud frames decide it, so that noise
    between the words does not. Before 0.4 s of it are known the gain is held back.
    """

    def __init__(self, reference_db: float | None) -> None:
        """``reference_db``: the level in dBFS that the model is used to; None: no gain, ever."""
        self._reference_db = reference_db
        self._frames = SpeechFrames()
        self._speech: deque[float] = deque(maxlen=_REMEMBERED)

    def add(self, block: Samples) -> None:
        """The next samples of the recording [T], without offset."""
        if self._reference_db is not None:
            self._speech.extend(self._frames.push(block))

    @property
    def gain(self) -> float:
        """What to multiply by."""
        count = len(self._speech)
        if self._reference_db is None or count == 0:
            return 1.0
        level_db = 10 * math.log10(sum(self._speech) / count)
        trust = min(1.0, self._frames.clear / _TRUSTED) ** 2
        gain_db = trust * (self._reference_db - level_db)
        return math.pow(10, min(max(gain_db, _MIN_DB), _MAX_DB) / 20)


def speech_level(recordings: Iterable[Samples]) -> float | None:
    """The level in dBFS of the speech in recordings [T], each heard by itself; None without any."""
    speech: list[float] = []
    for wav in recordings:
        speech += SpeechFrames().push(DCFilter()(wav))
    return 10 * math.log10(math.fsum(speech) / len(speech)) if speech else None
