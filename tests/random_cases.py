"""Inputs of random lengths and batch sizes, on which exported graphs are held against eager.

B batch, T samples, U units, D latent width, E speaker width.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from vconv.export.golden import golden_signal
from vconv.geometry import Geometry, Span
from vconv.golden import Floats

MAX_BATCH = 4
_MORE_SAMPLES = 6_000  # at most so many beyond the shortest
_MORE_UNITS = 40


def random_recordings(geometry: Geometry, count: int, seed: int = 0) -> Iterator[Floats]:
    """[B, T]: excerpts of golden's utterance or noise, each as loud as it comes (0 to -52 dB)."""
    random = np.random.default_rng(seed)
    shortest = len(geometry.unit_inputs(Span(0, 1)))
    signal = golden_signal(geometry)
    for _ in range(count):
        samples = shortest + int(random.integers(_MORE_SAMPLES + 1))
        lanes = []
        for _ in range(int(random.integers(1, MAX_BATCH + 1))):
            speech = np.resize(np.roll(signal, int(random.integers(len(signal)))), samples)
            sound = speech if random.random() < 0.5 else random.standard_normal(samples)
            lanes.append(np.exp(random.uniform(-6, 0)) * sound)
        yield np.stack(lanes).astype(np.float32)


def random_units(
    geometry: Geometry, latents: Floats, speakers: Floats, count: int, seed: int = 0
) -> Iterator[tuple[Floats, Floats]]:
    """Units [B, U, D], drawn from those given [N, D] and moved a little, and mixtures [B, E] of the
    speakers [S, E]."""
    random = np.random.default_rng(seed)
    fewest = geometry.plan(geometry.unit_hop).units - 1
    for _ in range(count):
        batch = int(random.integers(1, MAX_BATCH + 1))
        shape = (batch, fewest + int(random.integers(_MORE_UNITS + 1)))
        units = latents[random.integers(len(latents), size=shape)]
        units = units + 0.1 * random.standard_normal(units.shape)
        weights = random.dirichlet(np.ones(len(speakers)), batch)
        yield units.astype(np.float32), (weights @ speakers).astype(np.float32)
