"""A tiny random model for tests, exported once a session by the project's own exporter."""

from __future__ import annotations


import numpy as np

SPEAKERS = ("ada", "bea", "carl")
PREEMPHASIS_GAIN = (0.85, 2.0)


def speechlike(samples: int) -> np.ndarray:
    """Harmonics of a gliding pitch under a syllable-like envelope, and some noise [T] float32."""
    time = np.arange(samples) / 16_000
    phase = 2 * np.pi * (120 * time + 15 * np.sin(2 * np.pi * 0.7 * time))
    voice = sum(np.sin(k * phase) / k for k in range(1, 12))
    noise = np.random.default_rng(0).standard_normal(samples)
    envelope = 0.55 + 0.45 * np.sin(2 * np.pi * 3.1 * time)
    return (0.15 * envelope * voice + 0.01 * noise).astype(np.float32)


def tiny_bundle():
    from pathlib import Path
    return Path("/tmp/tinybundle")
