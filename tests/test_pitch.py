"""Pitch relative to a speaker who is not known beforehand, and its shift."""

from __future__ import annotations

import numpy as np
import pytest

from vconv.pitch import RelativePitch, shifted


def test_a_steady_voice_becomes_the_mean_at_the_rate_of_half_a_second() -> None:
    """An octave above the prior: after n voiced units 25 / (25 + n) of it is left."""
    relative = RelativePitch(7.0)
    pitch = np.tile(np.float32([8.0, 1.0]), (10, 1))
    for heard in range(10, 1000, 10):
        np.testing.assert_allclose(relative(pitch)[:, 0], 25 / (25 + heard), rtol=1e-6)


def test_what_is_unvoiced_has_no_pitch_and_no_say_in_the_mean() -> None:
    relative = RelativePitch(7.0)
    noise = relative(np.float32([[3.0, 0.0], [9.0, 0.0], [np.log2(60), 0.0]]))
    np.testing.assert_array_equal(noise, np.zeros((3, 2)))
    # Half voiced counts half: (25 * 7 + 0.5 * 8) / 25.5.
    (half,) = relative(np.float32([[8.0, 0.5]]))
    np.testing.assert_allclose(half, [8 - (25 * 7 + 4) / 25.5, 0.5], rtol=1e-6)


def test_units_without_pitch_stay_without() -> None:
    nothing = np.zeros((4, 0), np.float32)
    assert RelativePitch(0.0)(nothing).shape == (4, 0)
    assert shifted(nothing, 0.0).shape == (4, 0)


@pytest.mark.parametrize("octaves", [0.0, 0.5, -1.0])
def test_a_shift_raises_voiced_units_by_their_voicing(octaves: float) -> None:
    pitch = np.float32([[0.25, 1.0], [-0.5, 0.5], [0.0, 0.0]])
    wanted = [[0.25 + octaves, 1], [0.5 * (octaves - 0.5), 0.5], [0, 0]]
    told = shifted(pitch, octaves)
    np.testing.assert_allclose(told, wanted, atol=1e-7)
    assert told.dtype == np.float32
