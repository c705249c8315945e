"""The loop that converts, piece by piece; a file is converted by the same loop as a live stream.

B lanes (1 here), T samples, U units, D latent width, E speaker width, F conditioning steps.

The recording at 16 kHz is cut on a fixed grid of chunks from its sample 0. Chunk i generates
samples [i * CHUNK, (i + 1) * CHUNK); the geometry says which wav span, units and conditioning
steps that takes. Every chunk has the same shapes, so the same samples come out however the input
arrives. Chunks before sample 0 cover a receptive field: the engine is fed the codes of silence
there, under the conditioning of the silence before the recording, and nothing is sampled.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from .audio import SAMPLE_RATE, DCFilter, Resampler, decoder_samples, resampled_length
from .errors import InputError
from .geometry import FRAME_LENGTH
from .loudness import Loudness
from .model import Codes, Model
from .reading import Samples


@dataclass(frozen=True)
class Chunk:
    """The latents [1, U, D] of one chunk."""

    index: int
    latents: Samples


class ChunkEncoder:
    """A recording at its own rate, in any blocks -> chunk after chunk of units."""

    def __init__(self, model: Model, *, rate: int, name: str) -> None:
        """``name``: what the recording is called in errors."""
        self._model = model
        self._grid = grid = model.grid
        self._index = grid.first_chunk
        self._rate = rate
        self._name = name
        self._resampler = Resampler(rate, SAMPLE_RATE)
        self._filter = DCFilter(SAMPLE_RATE)
        self._waiting = np.zeros(0, np.float32)
        # Filtered samples from the next chunk's span on; before the recording there is silence.
        self._signal = np.zeros(grid.plan.left - grid.first_chunk * grid.chunk, np.float32)
        self._codes: list[Codes] = []
        self.pushed = 0  # samples at the recording's rate
        self.samples = 0  # samples at 16 kHz
        self.loudness = Loudness()

    def push(self, block: Samples, *, last: bool = False) -> list[Chunk]:
        """The next block [T] -> the chunks that it completes; all that remain with the last.

        Raises InputError if the whole is shorter than one analysis frame.
        """
        self.pushed += len(block)
        wav = self._resampler.push(block, last=last)
        self.samples += len(wav)
        self._waiting = np.concatenate((self._waiting, wav))
        chunks = []
        while len(self._signal) + len(self._waiting) >= self._grid.plan.wav_length:
            chunks.append(self._next())
        if last:
            self._check_length()
            while self._index < self._grid.chunks(self.samples):
                chunks.append(self._next())
        return chunks

    @property
    def codes(self) -> Codes:
        """Every unit of the recording once; complete after the last block."""
        skipped = self._grid.first_unit - self._grid.first_chunk * self._grid.chunk_units
        codes = np.concatenate(self._codes)
        return codes[skipped : skipped + self._grid.unit_count(self.samples)]

    def _next(self) -> Chunk:
        grid = self._grid
        # The filter's result depends in the last bit on how its input is cut. So it runs on
        # blocks that end where the chunks' spans end, wherever the recording's blocks did.
        wanted = max(0, grid.plan.wav_length - len(self._signal))
        new, self._waiting = self._waiting[:wanted], self._waiting[wanted:]
        filtered = self._filter(new)
        self.loudness.add(filtered)
        silence = np.zeros(wanted - len(new), np.float32)
        self._signal = np.concatenate((self._signal, filtered, silence))
        codes, latents = self._model.encode(self._signal[None, : grid.plan.wav_length])
        self._signal = self._signal[grid.chunk :]
        # Neighbours overlap: each chunk adds the units that the one before did not have.
        self._codes.append(codes if not self._codes else codes[-grid.chunk_units :])
        self._index += 1
        return Chunk(self._index - 1, latents)

    def _check_length(self) -> None:
        if self.samples < FRAME_LENGTH:
            raise InputError(
                f"{self._name}: lasts {self.pushed / self._rate:.4f} s; at least "
                f"{FRAME_LENGTH / SAMPLE_RATE} s are needed."
            )


def unit_chunks(model: Model, codes: Codes, samples: int) -> Iterator[Chunk]:
    """The codes of a whole recording of so many samples at 16 kHz, as its chunks."""
    grid = model.grid
    before = grid.first_unit - grid.first_chunk * grid.chunk_units
    chunks = grid.chunks(samples)
    total = (chunks - 1 - grid.first_chunk) * grid.chunk_units + grid.plan.units
    padded = np.full(total, model.silent_unit, np.int64)
    padded[before : before + len(codes)] = codes
    for index in range(grid.first_chunk, chunks):
        start = (index - grid.first_chunk) * grid.chunk_units
        yield Chunk(index, model.latents(padded[start : start + grid.plan.units]))


class Voice:
    """Chunk after chunk of latents -> samples at 16 kHz in one speaker's voice."""

    def __init__(self, model: Model, speaker: Samples, *, seed: int, temperature: float) -> None:
        """``speaker``: the vector [1, E]."""
        self._model = model
        self._speaker = speaker
        self._seed = seed
        self._temperature = temperature
        self._state = model.engine.initial_state(1)
        self._carry = 0.0

    def __call__(self, chunk: Chunk) -> Samples:
        """The chunk's samples [CHUNK]; none for a chunk of the lead. Call in order, once each."""
        model, grid = self._model, self._model.grid
        used = slice(grid.plan.skip, grid.plan.skip + grid.plan.steps)
        conditioning = model.condition(chunk.latents, self._speaker)[:, used]
        if chunk.index < 0:
            self._feed_silence(chunk.index, conditioning)
            return np.zeros(0, np.float32)
        drawn = uniforms(self._seed, lane=0, chunk=chunk.index, count=grid.chunk)
        codes, self._state = model.engine.generate(
            conditioning, drawn[None], self._temperature, self._state
        )
        wav, self._carry = decoder_samples(
            codes[0],
            mulaw=model.mulaw,
            preemphasis=model.audio.preemphasis,
            gain=model.audio.gain,
            carry=self._carry,
        )
        return wav

    def _feed_silence(self, index: int, conditioning: Samples) -> None:
        grid, engine = self._model.grid, self._model.engine
        start = max(0, -grid.lead - index * grid.chunk)
        silence = np.full((1, grid.chunk - start), engine.levels // 2, np.uint8)
        steps = conditioning[:, start // self._model.geometry.conditioning_hop :]
        _, self._state = engine.score(np.ascontiguousarray(steps), silence, self._state)


def uniforms(seed: int, *, lane: int, chunk: int, count: int) -> Samples:
    """Uniforms [count] in (0, 1) that depend on (seed, lane, chunk) and the place alone.

    Philox (Salmon et al. 2011) with the chunk in its counter: 23 bits of each raw output, which
    numpy promises never to change, unlike the streams of its distributions. They are the centres
    of 2^23 equal intervals: an exact 0 would draw code 0, a full-scale click, however unlikely.
    """
    bits = np.random.Philox(key=[seed, lane], counter=[0, 0, chunk, 0]).random_raw(count)
    drawn: Samples = ((bits >> np.uint64(41)).astype(np.float32) + np.float32(0.5)) / np.float32(
        2.0**23
    )
    return drawn


class Speech:
    """Chunks -> blocks of audio at the wanted rate, cut to the wanted length."""

    def __init__(self, voice: Voice, out_hz: int) -> None:
        self._voice = voice
        self._resampler = Resampler(SAMPLE_RATE, out_hz)
        self._spoken = 0  # at 16 kHz
        self._made = 0  # at the output's rate

    def push(self, chunks: Iterable[Chunk], samples: int) -> Samples:
        """The next chunks of a recording of which so many samples (at 16 kHz) are known."""
        blocks = [np.zeros(0, np.float32)]
        for chunk in chunks:
            # The last chunk reaches beyond the recording. No other can: a chunk is complete only
            # once the samples that it looks ahead to are there.
            wav = self._voice(chunk)[: samples - self._spoken]
            self._spoken += len(wav)
            blocks.append(self._resampler.push(wav))
        return self._count(np.concatenate(blocks))

    def finish(self, total: int) -> Samples:
        """What is left, so that there are ``total`` samples at the output's rate in all."""
        rest = self._resampler.push(np.zeros(0, np.float32), last=True)
        # Of two roundings, to 16 kHz and from it, the second does not undo the first.
        wanted = total - self._made
        return self._count(np.pad(rest, (0, max(0, wanted - len(rest))))[:wanted])

    def _count(self, block: Samples) -> Samples:
        self._made += len(block)
        return block


class Session:
    """One recording on its way through: push blocks at its own rate, then flush.

    The output has the input's duration to the sample: resampled_length(input, in_hz, out_hz)
    samples, which is the input's own count where the rates are equal.
    """

    def __init__(self, model: Model, voice: Voice, *, name: str, in_hz: int, out_hz: int) -> None:
        self.encoder = ChunkEncoder(model, rate=in_hz, name=name)
        self._speech = Speech(voice, out_hz)
        self._rates = (in_hz, out_hz)

    def push(self, block: Samples) -> Samples:
        """The next input block [T] -> the output that it completes [T']."""
        return self._speech.push(self.encoder.push(block), self.encoder.samples)

    def flush(self) -> Samples:
        """The end of the input -> the rest of the output; raises as ``ChunkEncoder.push``."""
        chunks = self.encoder.push(np.zeros(0, np.float32), last=True)
        tail = self._speech.push(chunks, self.encoder.samples)
        total = resampled_length(self.encoder.pushed, *self._rates)
        return np.concatenate((tail, self._speech.finish(total)))
