"""What sound is let through: a sane rate, few channels, samples that are finite and not absurd.

The same for files, for sound that another program decodes, and for a pipe; each of these only has
to say where its blocks come from.
"""

import math

import numpy as np
import numpy.typing as npt

from .errors import InputError

Samples = npt.NDArray[np.float32]

RATES_HZ = (4_000, 192_000)
MAX_CHANNELS = 8
FULL_SCALE = 1 - 2**-15  # the largest 16-bit sample, where recorders clip
MAX_AMPLITUDE = 16.0  # 24 dB over full scale: beyond any real recording, far below 1e30


def checked_header(
    name: str,
    *,
    rate: int,
    channels: int,
    frames: int | None,
    channel: int | None,
    max_seconds: float | None,
) -> None:
    """Refuse a recording for what it declares; `frames` is None where it leaves that open.

    Args:
        name: what the recording is called in the message.
        rate: in Hz.
        channels: how many there are.
        frames: how many of them.
        channel: the one that is wanted, None for the mean of all.
        max_seconds: the longest that is wanted.

    Raises InputError.
    """
    low, high = RATES_HZ
    if not low <= rate <= high:
        raise InputError(f"{name}: has a rate of {rate:,} Hz; allowed are {low:,} to {high:,} Hz.")
    if not 1 <= channels <= MAX_CHANNELS:
        raise InputError(f"{name}: has {channels:,} channels; allowed are 1 to {MAX_CHANNELS}.")
    if channel is not None and not 0 <= channel < channels:
        raise InputError(f"{name}: has no channel {channel}; there are {channels}, counted from 0.")
    if frames == 0:
        raise InputError(f"{name}: contains no samples.")
    if frames is not None and max_seconds is not None and frames > max_seconds * rate:
        raise InputError(
            f"{name}: is {frames / rate:,.0f} s long, longer than the {max_seconds:g} s allowed."
        )


class Guard:
    """Blocks of all channels [T, C] -> checked mono blocks [T].

    Raises InputError for samples that cannot be used, and beyond `max_frames`.
    """

    def __init__(
        self, name: str, rate: int, *, channel: int | None, max_seconds: float | None
    ) -> None:
        self._name = name
        self._channel = channel
        self._max_seconds = max_seconds
        self._max_frames = None if max_seconds is None else math.ceil(max_seconds * rate)
        self._energy = np.zeros(2)  # of the channels, of their mean
        self.frames = 0  # let through so far
        self.peak = 0.0
        self.clipped = 0  # samples at full scale

    @property
    def mix_cancels(self) -> bool:
        """Whether the channels so far were in antiphase: sound in each, silence in the mean."""
        channels, mean = self._energy
        return bool(mean < 1e-6 * channels)

    def __call__(self, block: Samples) -> Samples:
        """The next block [T, C], T > 0 -> mono [T]: the wanted channel, or the mean of all."""
        self._check(block)
        self.frames += len(block)
        if self._max_frames is not None and self.frames > self._max_frames:
            raise InputError(f"{self._name}: is longer than the {self._max_seconds:g} s allowed.")
        return self._mono(block)

    def _check(self, block: Samples) -> None:
        peak = float(np.abs(block).max())  # NaN propagates through max, and fails the comparison
        if not peak <= MAX_AMPLITUDE:
            bad = ~(np.abs(block) <= MAX_AMPLITUDE)
            row, column = (int(i) for i in np.argwhere(bad)[0])
            value = float(block[row, column])
            what = f"{value:g}" if math.isfinite(value) else str(value).replace("nan", "NaN")
            raise InputError(
                f"{self._name}: contains {what} at frame {self.frames + row:,}; samples must be "
                f"finite and at most {MAX_AMPLITUDE:g} times full scale."
            )
        self.peak = max(self.peak, peak)
        if peak >= FULL_SCALE:
            self.clipped += int(np.count_nonzero(np.abs(block) >= FULL_SCALE))

    def _mono(self, block: Samples) -> Samples:
        if self._channel is not None:
            return np.ascontiguousarray(block[:, self._channel])
        if block.shape[1] == 1:
            return block[:, 0]
        mean: Samples = block.mean(axis=1, dtype=np.float32)
        self._energy += [float(np.square(block).mean()) * len(mean), float(np.square(mean).sum())]
        return mean
