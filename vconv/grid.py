"""The grid of chunks on which every recording is converted."""

from __future__ import annotations

from dataclasses import dataclass

from .geometry import Geometry, Plan, Span

# 0.2 s. A chunk's latency is its own length and the look-ahead (0.15 s of `base`), so shorter is
# better. But the encoder has no memory: a chunk encodes its new units only, and what these hear of
# the chunk before is filtered and convolved again. For `base` that makes 33 ms of encoding a second
# of audio on one core, 1.8 times one pass over the whole (it would be 42 ms, 2.3 times, with the
# shared units encoded again too): 6 % of all work, 4 % at 0.4 s, 9 % at 0.1 s.
CHUNK_SAMPLES = 3200


@dataclass(frozen=True)
class Grid:
    """The chunk grid of a model.

    Unit 0 is the first that chunk 0 needs, and chunk i adds ``chunk_units`` to the ``context``
    units that it shares with the chunk before. A unit hears ``window`` samples. ``first_unit`` is
    the first that hears any of the recording and is needed; where it is negative, it shapes the
    conditioning of the silence just before sample 0.
    """

    plan: Plan
    chunk: int
    chunk_units: int
    window: int
    lead: int
    first_unit: int

    @classmethod
    def of(cls, geometry: Geometry, chunk: int = CHUNK_SAMPLES) -> Grid:
        plan = geometry.plan(chunk)
        window = len(geometry.unit_inputs(Span(0, 1)))
        lead = geometry.lead_samples
        chunk_units = chunk // geometry.unit_hop
        # Unit u hears wav samples [u * hop - left, u * hop - left + window). Where that is a long
        # time (instance norm), the first to hear the recording may lie before all chunks.
        first_to_hear = -((window - plan.left - 1) // geometry.unit_hop)
        return cls(
            plan=plan,
            chunk=chunk,
            chunk_units=chunk_units,
            window=window,
            lead=lead,
            first_unit=max(first_to_hear, -lead // chunk * chunk_units),
        )

    @property
    def first_chunk(self) -> int:
        """Index (negative) of the first chunk: those below 0 cover the lead."""
        return -self.lead // self.chunk  # rounded away from 0

    @property
    def hop(self) -> int:
        """Samples per unit."""
        return self.chunk // self.chunk_units

    @property
    def context(self) -> int:
        """Units that neighbouring chunks share."""
        return self.plan.units - self.chunk_units

    @property
    def overlap(self) -> int:
        """Samples that two neighbouring units both hear."""
        return self.window - self.hop

    def chunks(self, samples: int) -> int:
        """How many chunks generate that many samples."""
        return -(-samples // self.chunk)

    def unit_count(self, samples: int) -> int:
        """The units of a recording: from the first that hears it to the last its end needs."""
        return -(-samples // self.hop) + self.context - self.first_unit
