"""The loop that converts, piece by piece; a file is converted by the same loop as a live stream.

T samples, U units, D latent width, E speaker width.

The recording at 16 kHz is cut on a fixed grid of chunks from its sample 0. Chunk i generates
samples [i * CHUNK, (i + 1) * CHUNK); the geometry says which wav span, units and conditioning
steps that takes. Neighbours share units; each unit is encoded once, in the first chunk that needs
it. Every chunk but the first has the same shapes, so the same samples come out however the input
arrives. Chunks before sample 0 cover a receptive field: the engine is fed the codes of silence
there, under the conditioning of the silence before the recording, and nothing is sampled.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from .audio import SAMPLE_RATE, DCFilter, Resampler, decoder_samples, resampled_length
from .engines import Codes as EngineCodes
from .errors import InputError
from .geometry import FRAME_LENGTH
from .grid import Grid
from .input_level import InputLevel
from .loudness import Loudness
from .model import Model, Stretch, joined
from .pitch import RelativePitch, shifted
from .reading import Samples

LEVEL_SAMPLES = 640  # 40 ms, longer than a period of any voice


@dataclass(frozen=True)
class Chunk:
    """The units of one chunk, the pitch relative to the speaker's own.

    ``levels``: the RMS of the recording in every 40 ms of the chunk, where there is a recording.
    """

    index: int
    units: Stretch
    levels: Samples = field(default_factory=lambda: np.zeros(0, np.float32), repr=False)


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
        self._level = InputLevel(model.input_level_db)
        self._waiting = np.zeros(0, np.float32)
        # Filtered samples from the span of the next chunk's new units on; before the recording
        # there is silence.
        self._signal = np.zeros(grid.plan.left - grid.first_chunk * grid.chunk, np.float32)
        self._span = grid.plan.wav_length  # all units of the first chunk are new
        self._own = np.zeros(0, np.float32)  # filtered, from the next chunk's own samples on
        self._shared = model.silence(0)
        self._relative_pitch = RelativePitch(model.pitch_prior)
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
        while len(self._signal) + len(self._waiting) >= self._span:
            chunks.append(self._next())
        if last:
            self._check_length()
            while self._index < self._grid.chunks(self.samples):
                chunks.append(self._next())
        return chunks

    def _next(self) -> Chunk:
        grid = self._grid
        # The filter's result depends in the last bit on how its input is cut. So it runs on
        # blocks that end where the chunks' spans end, wherever the recording's blocks did.
        wanted = max(0, self._span - len(self._signal))
        new, self._waiting = self._waiting[:wanted], self._waiting[wanted:]
        filtered = self._filter(new)
        self.loudness.add(filtered)
        self._level.add(filtered)
        silence = np.zeros(wanted - len(new), np.float32)
        self._signal = np.concatenate((self._signal, filtered, silence))
        # One gain for all that these units hear: none of them hears it change.
        heard = self._signal[: self._span] * np.float32(self._level.gain)
        units = joined((self._shared, self._hear(heard)))
        self._own = np.concatenate((self._own, filtered, silence))
        chunk = Chunk(self._index, units, self._levels())
        self._signal = self._signal[self._span - grid.overlap :]
        self._span = grid.overlap + grid.chunk
        self._shared = units[grid.chunk_units :]
        self._index += 1
        return chunk

    def _levels(self) -> Samples:
        length = 0 if self._index < 0 else self._grid.chunk
        own, self._own = self._own[:length], self._own[length:]
        levels: Samples = np.sqrt(np.square(own.reshape(-1, LEVEL_SAMPLES)).mean(1))
        return levels

    def _hear(self, wav: Samples) -> Stretch:
        """The new units of the chunk that is next."""
        grid, model = self._grid, self._model
        units = model.encode(wav)
        # Those that hear nothing yet are the same to the bit wherever they stand, for speaking
        # a recording's units puts them there again.
        first = self._index * grid.chunk_units + grid.plan.units - len(units)
        silent = min(max(0, grid.first_unit - first), len(units))
        units = joined((model.silence(silent), units[silent:]))
        return Stretch(units.codes, units.latents, self._relative_pitch(units.pitch))

    def _check_length(self) -> None:
        if self.samples < FRAME_LENGTH:
            raise InputError(
                f"{self._name}: lasts {self.pushed / self._rate:.4f} s; at least "
                f"{FRAME_LENGTH / SAMPLE_RATE} s are needed."
            )


def units_of(grid: Grid, chunks: Sequence[Chunk], samples: int) -> Stretch:
    """All chunks of a recording of so many samples at 16 kHz -> its units, each once."""
    skipped = grid.first_unit - grid.first_chunk * grid.chunk_units
    new = [chunk.units[grid.context :] for chunk in chunks[1:]]
    return joined((chunks[0].units, *new))[skipped : skipped + grid.unit_count(samples)]


def chunks_of(model: Model, units: Stretch, samples: int) -> Iterator[Chunk]:
    """The units of a recording of so many samples at 16 kHz -> its chunks."""
    grid = model.grid
    chunks = grid.chunks(samples)
    before = grid.first_unit - grid.first_chunk * grid.chunk_units
    total = (chunks - grid.first_chunk) * grid.chunk_units + grid.context
    after = total - before - len(units)
    padded = joined((model.silence(before), units, model.silence(after)))
    for index in range(grid.first_chunk, chunks):
        start = (index - grid.first_chunk) * grid.chunk_units
        yield Chunk(index, padded[start : start + grid.plan.units])


class Voice:
    """How units are spoken: the speaker, the pitch, the draws. Free of state."""

    def __init__(
        self, model: Model, speaker: Samples, *, seed: int, temperature: float, semitones: float
    ) -> None:
        """``speaker``: the vector [1, E]; ``semitones``: how much higher than the speaker's own
        pitch to speak, of a model that is told the pitch."""
        self.model = model
        self.seed = seed
        self.temperature = temperature
        self._speaker = speaker
        self._octaves = semitones / 12

    def conditioning(self, chunk: Chunk) -> Samples:
        """What the engine is told in the chunk [1, F, C]."""
        plan = self.model.grid.plan
        pitch = shifted(chunk.units.pitch, self._octaves)
        told = np.concatenate((chunk.units.latents, pitch), axis=1)
        made = self.model.condition(told[None], self._speaker)
        return made[:, plan.skip : plan.skip + plan.steps]

    def decoded(self, codes: EngineCodes, carry: float) -> tuple[Samples, float]:
        """Codes [T] -> samples at 16 kHz [T], and the carry of the next."""
        model = self.model
        return decoder_samples(
            codes,
            mulaw=model.mulaw,
            preemphasis=model.audio.preemphasis,
            gain=model.audio.gain,
            carry=carry,
        )


class Sampling:
    """The chunks of one or several lanes, step by step -> their codes.

    Lanes do not know of each other: of an engine that computes every lane alike, each has the codes
    that it would have alone. Where a lane's units tell of nothing but digital silence it is fed
    silence instead of drawing: of the model alone, such units would sooner or later be speech
    (docs/decisions/0010-sampling.md).
    """

    def __init__(self, voice: Voice, lanes: int = 1) -> None:
        self._voice = voice
        self._state = voice.model.engine.initial_state(lanes)

    def __call__(self, chunks: Sequence[Chunk]) -> EngineCodes:
        """The next chunk of each lane -> codes [B, CHUNK]; [B, 0] for chunks of the lead, which
        all lanes have together."""
        voice, model = self._voice, self._voice.model
        conditioning = np.concatenate([voice.conditioning(chunk) for chunk in chunks])
        if chunks[0].index < 0:
            self._feed_silence(chunks[0].index, conditioning)
            return np.zeros((len(chunks), 0), np.uint8)
        count, hop = model.grid.chunk, model.grid.hop
        drawn = [uniforms(voice.seed, lane=0, chunk=c.index, count=count) for c in chunks]
        numbers = np.stack(drawn)
        silent = np.stack([model.silent_hops(chunk.units) for chunk in chunks])
        steps = hop // model.geometry.conditioning_hop
        extra = conditioning.shape[1] - silent.shape[1] * steps
        codes: EngineCodes = np.zeros(numbers.shape, np.uint8)
        for begin, end in _alike(silent):
            here = slice(begin * hop, end * hop)
            part = conditioning[:, begin * steps : end * steps + extra]
            codes[:, here] = self._say(part, numbers[:, here], silent[:, begin])
        return codes

    def _say(
        self, conditioning: Samples, numbers: Samples, silent: npt.NDArray[np.bool_]
    ) -> EngineCodes:
        """The next codes [B, T], which are those of silence in the lanes that are silent."""
        engine, before = self._voice.model.engine, self._state
        conditioning = np.ascontiguousarray(conditioning)
        if silent.all():
            codes: EngineCodes = np.zeros(numbers.shape, np.uint8)
        else:
            codes, self._state = engine.generate(
                conditioning, np.ascontiguousarray(numbers), self._voice.temperature, before
            )
        if silent.any():
            codes[silent] = engine.levels // 2
            # The other lanes come by the same state again: their codes are followed.
            _, self._state = engine.score(conditioning, codes, before)
        return codes

    def _feed_silence(self, index: int, conditioning: Samples) -> None:
        grid, engine = self._voice.model.grid, self._voice.model.engine
        start = max(0, -grid.lead - index * grid.chunk)
        silence = np.full((len(conditioning), grid.chunk - start), engine.levels // 2, np.uint8)
        steps = conditioning[:, start // self._voice.model.geometry.conditioning_hop :]
        _, self._state = engine.score(np.ascontiguousarray(steps), silence, self._state)


def _alike(silent: npt.NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """[begin, end) of the stretches of hops in which the same lanes are silent, of [B, hops]."""
    changes = np.flatnonzero((silent[:, 1:] != silent[:, :-1]).any(0)) + 1
    return itertools.pairwise([0, *changes.tolist(), silent.shape[1]])


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


class Output:
    """Samples at 16 kHz -> blocks of audio at the wanted rate, cut to the wanted length."""

    def __init__(self, out_hz: int) -> None:
        self._resampler = Resampler(SAMPLE_RATE, out_hz)
        self._spoken = 0  # at 16 kHz
        self._made = 0  # at the output's rate

    def push(self, wav: Samples, samples: int) -> Samples:
        """The next samples of a recording of which so many (at 16 kHz) are known."""
        # The last chunk reaches beyond the recording. No other can: a chunk is complete only
        # once the samples that it looks ahead to are there.
        wav = wav[: samples - self._spoken]
        self._spoken += len(wav)
        return self._count(self._resampler.push(wav))

    def finish(self, total: int) -> Samples:
        """What is left, so that there are ``total`` samples at the output's rate in all."""
        rest = self._resampler.push(np.zeros(0, np.float32), last=True)
        # Of two roundings, to 16 kHz and from it, the second does not undo the first.
        wanted = total - self._made
        return self._count(np.pad(rest, (0, max(0, wanted - len(rest))))[:wanted])

    def _count(self, block: Samples) -> Samples:
        self._made += len(block)
        return block


class Speech:
    """Chunks -> blocks of audio at the wanted rate, cut to the wanted length."""

    def __init__(self, voice: Voice, out_hz: int) -> None:
        self._voice = voice
        self._sampling = Sampling(voice)
        self._carry = 0.0
        self._output = Output(out_hz)

    def push(self, chunks: Iterable[Chunk], samples: int) -> Samples:
        """The next chunks of a recording of which so many samples (at 16 kHz) are known."""
        blocks = [np.zeros(0, np.float32)]
        for chunk in chunks:
            codes = self._sampling([chunk])
            wav, self._carry = self._voice.decoded(codes[0], self._carry)
            blocks.append(self._output.push(wav, samples))
        return np.concatenate(blocks)

    def finish(self, total: int) -> Samples:
        """What is left, so that there are ``total`` samples at the output's rate in all."""
        return self._output.finish(total)


class Session:
    """One recording on its way through: push blocks at its own rate, then flush.

    The output has the input's duration to the sample: resampled_length(input, in_hz, out_hz)
    samples, which is the input's own count where the rates are equal.
    """

    lanes = 1

    def __init__(
        self,
        voice: Voice,
        *,
        name: str,
        in_hz: int,
        out_hz: int,
        heard: list[Chunk] | None = None,
    ) -> None:
        """``heard``: a list to which all chunks of the recording are added."""
        self.encoder = ChunkEncoder(voice.model, rate=in_hz, name=name)
        self._speech = Speech(voice, out_hz)
        self._rates = (in_hz, out_hz)
        self._heard = heard

    @property
    def seconds(self) -> float:
        """How much of the recording was taken in."""
        return self.encoder.pushed / self._rates[0]

    def push(self, block: Samples) -> Iterator[Samples]:
        """The next input block [T] -> the output that it completes, in blocks [T']."""
        yield self._say(self.encoder.push(block))

    def flush(self) -> Iterator[Samples]:
        """The end of the input -> the rest of the output; raises as ``ChunkEncoder.push``."""
        tail = self._say(self.encoder.push(np.zeros(0, np.float32), last=True))
        total = resampled_length(self.encoder.pushed, *self._rates)
        yield np.concatenate((tail, self._speech.finish(total)))

    def _say(self, chunks: list[Chunk]) -> Samples:
        if self._heard is not None:
            self._heard += chunks
        return self._speech.push(chunks, self.encoder.samples)
