"""A signal that varies as speech does."""

import numpy as np


def speechlike(samples: int) -> np.ndarray:
    """Harmonics of a gliding pitch under a syllable-like envelope, and some noise [T] float32."""
    time = np.arange(samples) / 16_000
    phase = 2 * np.pi * (120 * time + 15 * np.sin(2 * np.pi * 0.7 * time))
    voice = sum(np.sin(k * phase) / k for k in range(1, 12))
    noise = np.random.default_rng(0).standard_normal(samples)
    envelope = 0.55 + 0.45 * np.sin(2 * np.pi * 3.1 * time)
    return (0.15 * envelope * voice + 0.01 * noise).astype(np.float32)
