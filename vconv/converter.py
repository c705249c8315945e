"""Converting recordings: the public face of a loaded model.

A ``Converter`` holds a model and nothing of any conversion, so one may serve many threads; each
conversion is a session of its own.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from .audio import SAMPLE_RATE, resampled_length, write_atomic
from .bundle import Bundle
from .errors import UsageError
from .inputs import checked_rate, open_input
from .lanes import Lanes, checked_lanes
from .loudness import Level, Loudness, checked_level, gain, levelled
from .manifest import Manifest
from .model import Model, Stretch
from .pitch import checked_semitones
from .reading import Samples, printable
from .results import Cancelled, Conversion, Progress, Units, WrittenFile
from .sessions import said, streamed, warn_of_silence
from .speakers import Query, SpeakerMap
from .stream import Chunk, ChunkEncoder, Speech, Voice, chunks_of, units_of
from .units_file import UnitsModel

if TYPE_CHECKING:
    from .inputs import Input


class Converter:
    """A loaded model. Safe to share between threads; a context manager.

    An input is a path, the bytes of a file, a seekable binary file, or samples [T] (numpy array
    or torch tensor) together with their ``sample_rate`` in Hz. A speaker is a name, an index, or a
    mixture (``"p225:0.7,p226:0.3"`` or a mapping). Every method raises UsageError for a wrong
    call, InputError for a recording that cannot be used, and nothing else that is the user's.
    """

    def __init__(self, bundle: Bundle, model: Model) -> None:
        self._bundle = bundle
        self._loaded: Model | None = model
        self._units_model = bundle.units_model  # now: the folder may be gone later

    def __enter__(self) -> Converter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the model; conversions that are running finish."""
        self._loaded = None

    @property
    def _model(self) -> Model:
        if self._loaded is None:
            raise UsageError("This converter is closed.")
        return self._loaded

    @property
    def sample_rate(self) -> int:
        """The model's rate in Hz, and the default of what comes out."""
        return SAMPLE_RATE

    @property
    def speakers(self) -> SpeakerMap:
        """The voices, in index order."""
        return self._bundle.speakers

    @property
    def info(self) -> Manifest:
        """What the bundle says of itself."""
        return self._bundle.manifest

    @property
    def units_model(self) -> UnitsModel:
        """Whose units ``encode`` gives, and which ones ``decode`` takes."""
        return self._units_model

    @property
    def engine(self) -> str:
        """What generates, by name, such as "native"."""
        return self._model.engine.name

    @property
    def precision(self) -> str:
        """How it keeps its weights: "fp32", "bf16" or "int8"."""
        return self._model.engine.precision

    @property
    def code_path(self) -> str | None:
        """The instructions that the native engine uses of this processor's, such as "avx2"; on
        another path the draws may differ."""
        return getattr(self._model.engine, "cpu", None)

    @property
    def latency_seconds(self) -> float:
        """In a stream of input at the model's rate: the longest that a sample waits for its
        converted one, computing aside (a chunk and the look-ahead)."""
        return self._model.grid.plan.right / SAMPLE_RATE

    def convert(
        self,
        x: Input,
        *,
        speaker: Query,
        seed: int = 0,
        temperature: float = 1.0,
        pitch: float = 0.0,
        lanes: Lanes = "auto",
        level: Level = "keep",
        sample_rate: int | None = None,
        output_sample_rate: int | None = None,
        channel: int | None = None,
        allow_truncated: bool = False,
        max_seconds: float | None = None,
        progress: Progress | None = None,
    ) -> Conversion:
        """Say a recording in a speaker's voice.

        Args:
            x: the recording.
            speaker: who shall say it.
            seed: the same seed gives the same bytes, another seed another reading.
            temperature: of the draws; 1 is the model's distribution, 0 its likeliest codes.
            pitch: semitones above (below 0: below) the speaker's own, -24 to 24; of a model that
                was trained with pitch.
            lanes: into how many pieces, which are generated side by side, a recording is split
                where it is quiet; "auto" goes by its length, 1 is what a stream gives. The same
                number gives the same bytes, however many cores there are.
            level: "keep" what the model says, "match" the input's loudness (RMS), or bring the
                "peak" to -1 dB.
            sample_rate: the rate of samples, in Hz (not for files).
            output_sample_rate: in Hz; None is the model's. The duration is the input's to the
                sample: at the input's own rate there are exactly as many samples, else
                ``len * out / in``, rounded.
            channel: take this channel; None takes the mean of all.
            allow_truncated: convert what is there of a file that was cut short.
            max_seconds: refuse longer recordings.
            progress: see ``Progress``; cancelling raises Cancelled.
        """
        begun = time.perf_counter()
        out_hz = self._output_rate(output_sample_rate)
        voice, label = self._voice(speaker, seed, temperature, pitch)
        checked_level(level)
        lanes = checked_lanes(lanes)
        with open_input(
            x,
            sample_rate=sample_rate,
            channel=channel,
            allow_truncated=allow_truncated,
            max_seconds=max_seconds,
        ) as recording:
            heard: list[Chunk] = []
            session, blocks = said(voice, recording, out_hz, lanes, progress, heard)
            audio = np.concatenate([*blocks])
        made = Loudness()
        made.add(audio)
        audio *= np.float32(gain(level, session.encoder.loudness, made))
        return Conversion(
            audio=audio,
            sample_rate=out_hz,
            codes=self._units(heard, session.encoder.samples).codes,
            speaker=label,
            elapsed_seconds=time.perf_counter() - begun,
            lanes=session.lanes,
        )

    def convert_to_file(
        self,
        x: Input,
        path: str | os.PathLike[str],
        *,
        speaker: Query,
        seed: int = 0,
        temperature: float = 1.0,
        pitch: float = 0.0,
        lanes: Lanes = "auto",
        level: Level = "keep",
        sample_rate: int | None = None,
        output_sample_rate: int | None = None,
        channel: int | None = None,
        allow_truncated: bool = False,
        max_seconds: float | None = None,
        progress: Progress | None = None,
        cores: Callable[[], int] | None = None,
        in_place: bool = True,
    ) -> WrittenFile:
        """``convert`` and ``save`` in constant memory, however long the recording.

        The file appears, or is replaced, only once it is complete. Raises UsageError if it is the
        input itself. For whoever converts many files at a time: ``cores`` is asked now and then
        how many of the processor's the lanes shall share (it changes no byte), and not ``in_place``
        the complete file is left beside ``path``, to be renamed by the caller.
        """
        begun = time.perf_counter()
        out_hz = self._output_rate(output_sample_rate)
        voice, label = self._voice(speaker, seed, temperature, pitch)
        checked_level(level)
        lanes = checked_lanes(lanes)
        if isinstance(x, (str, os.PathLike)) and _same_file(x, path):
            raise UsageError(f"{printable(path)}: is the input itself; choose another output.")
        with (
            open_input(
                x,
                sample_rate=sample_rate,
                channel=channel,
                allow_truncated=allow_truncated,
                max_seconds=max_seconds,
            ) as recording,
            write_atomic(path, out_hz, in_place=in_place) as writer,
        ):
            session, blocks = said(voice, recording, out_hz, lanes, progress, cores=cores)
            for block in levelled(blocks, level, session.encoder.loudness):
                writer.write(block)
            samples = writer.frames
        elapsed = time.perf_counter() - begun
        return WrittenFile(writer.path, samples, out_hz, label, elapsed, session.lanes)

    def stream(
        self,
        blocks: Iterable[Any],
        *,
        speaker: Query,
        sample_rate: int,
        seed: int = 0,
        temperature: float = 1.0,
        pitch: float = 0.0,
        output_sample_rate: int | None = None,
    ) -> Iterator[Samples]:
        """Convert blocks of samples [T] as they come, whatever their lengths.

        Yields blocks as soon as they are complete (``latency_seconds`` later, a chunk at a time);
        together they are what ``convert(..., lanes=1)`` gives for the blocks together, to the
        bit.
        """
        out_hz = self._output_rate(output_sample_rate)
        voice, _ = self._voice(speaker, seed, temperature, pitch)
        in_hz = checked_rate(sample_rate)
        return streamed(voice, blocks, in_hz=in_hz, out_hz=out_hz)

    def encode(
        self,
        x: Input,
        *,
        sample_rate: int | None = None,
        channel: int | None = None,
        allow_truncated: bool = False,
        max_seconds: float | None = None,
        progress: Progress | None = None,
    ) -> Units:
        """The units of a recording; the parameters are those of ``convert``."""
        with open_input(
            x,
            sample_rate=sample_rate,
            channel=channel,
            allow_truncated=allow_truncated,
            max_seconds=max_seconds,
        ) as recording:
            encoder = ChunkEncoder(self._model, rate=recording.rate, name=recording.name)
            chunks = []
            for block in recording.blocks:
                chunks += encoder.push(block)
                done = encoder.pushed / recording.rate
                if progress is not None and progress(done, recording.seconds) is False:
                    raise Cancelled(f"{recording.name}: the encoding was cancelled.")
            chunks += encoder.push(np.zeros(0, np.float32), last=True)
            warn_of_silence(recording, encoder.loudness)
        return self._units(chunks, encoder.samples)

    def decode(
        self,
        units: Units,
        *,
        speaker: Query,
        seed: int = 0,
        temperature: float = 1.0,
        pitch: float = 0.0,
        output_sample_rate: int | None = None,
    ) -> Conversion:
        """Say units in a speaker's voice; ``decode(encode(x))`` is ``convert(x, lanes=1)``.

        Raises UsageError for units of another model, codes that it does not have, or too few or
        many of them.
        """
        begun = time.perf_counter()
        out_hz = self._output_rate(output_sample_rate)
        voice, label = self._voice(speaker, seed, temperature, pitch)
        audio = np.concatenate([*self._spoken(units, voice, out_hz, None)])
        return Conversion(audio, out_hz, units.codes, label, time.perf_counter() - begun)

    def decode_to_file(
        self,
        units: Units,
        path: str | os.PathLike[str],
        *,
        speaker: Query,
        seed: int = 0,
        temperature: float = 1.0,
        pitch: float = 0.0,
        level: Level = "keep",
        output_sample_rate: int | None = None,
        progress: Progress | None = None,
    ) -> WrittenFile:
        """``decode`` into a file, in constant memory; raises as ``decode`` does.

        The file appears, or is replaced, only once it is complete. Units do not tell how loud the
        recording was, so the level "match" is a UsageError.
        """
        begun = time.perf_counter()
        out_hz = self._output_rate(output_sample_rate)
        voice, label = self._voice(speaker, seed, temperature, pitch)
        checked_level(level)
        if level == "match":
            raise UsageError(
                'Units do not tell how loud the recording was: the level must be "keep" or "peak".'
            )
        with write_atomic(path, out_hz) as writer:
            blocks = self._spoken(units, voice, out_hz, progress)
            for block in levelled(blocks, level, Loudness()):
                writer.write(block)
            samples = writer.frames
        return WrittenFile(Path(path), samples, out_hz, label, time.perf_counter() - begun)

    def check_units(self, units: Units) -> None:
        """Raises UsageError for units that ``decode`` would refuse."""
        self._stretch(units)

    def _stretch(self, units: Units) -> Stretch:
        made_by, mine = units.model, self.units_model
        if made_by is not None and made_by.digest != mine.digest:
            raise UsageError(
                f"The units are of the model {made_by}, not of {mine}; decode them with that one, "
                "or one whose encoder is the same."
            )
        return self._model.stretch(units.codes, units.latents, units.pitch, samples=units.samples)

    def _spoken(
        self, units: Units, voice: Voice, out_hz: int, progress: Progress | None
    ) -> Iterator[Samples]:
        samples = units.samples
        speech = Speech(voice, out_hz)
        for chunk in chunks_of(self._model, self._stretch(units), samples):
            yield speech.push([chunk], samples)
            done = min(max(0, (chunk.index + 1) * self._model.grid.chunk), samples) / SAMPLE_RATE
            if progress is not None and progress(done, units.seconds) is False:
                raise Cancelled("The decoding was cancelled.")
        yield speech.finish(resampled_length(samples, SAMPLE_RATE, out_hz))

    def _voice(
        self, speaker: Query, seed: int, temperature: float, pitch: float
    ) -> tuple[Voice, str]:
        if not 0 <= seed < 2**64:
            raise UsageError(f"The seed must be 0 to 2^64 - 1, found {seed}.")
        if not 0 <= temperature < math.inf:
            raise UsageError(f"The temperature must be 0 or more, found {temperature:g}.")
        semitones = checked_semitones(pitch, self.info)
        mixture = self.speakers.resolve(speaker)
        vectors = self._bundle.speaker_vectors
        vector = sum(np.float32(weight) * vectors[index] for index, weight in mixture)
        voice = Voice(
            self._model,
            np.asarray(vector, np.float32)[None],
            seed=int(seed),
            temperature=float(temperature),
            semitones=semitones,
        )
        return voice, self.speakers.label(mixture)

    def _units(self, chunks: list[Chunk], samples: int) -> Units:
        found = units_of(self._model.grid, chunks, samples)
        continuous = self._model.codebook is None
        return Units(
            codes=None if continuous else found.codes,
            samples=samples,
            latents=found.latents if continuous else None,
            pitch=found.pitch if self.info.model.decoder.pitch else None,
            model=self.units_model,
        )

    @staticmethod
    def _output_rate(rate: int | None) -> int:
        return SAMPLE_RATE if rate is None else checked_rate(rate, "The output's sample rate")


def load(
    name_or_path: str | Path = "demo",
    *,
    device: str = "auto",
    engine: str = "auto",
    precision: str = "auto",
) -> Converter:
    """Load a model for converting.

    Args:
        name_or_path: a bundle's folder, or the name of one that is bundled or in ``$VCONV_HOME``.
        device: "auto", "cpu", "cuda" or "cuda:N". CUDA that is not there is an error, never the
            CPU in silence.
        engine: "auto", "native", "torchscript", "cudagraphs" or "triton".
        precision: "auto", "fp32", "bf16" or "int8", of the native engine; triton has all but the
            last. Only of a model that was found to lose next to nothing by them: the reduced two.

    Raises ModelError for a bundle that is damaged or not one, SetupError for a device, package or
    program that the machine lacks, UsageError for an option that does not exist.
    """
    bundle = Bundle.find(name_or_path)
    return Converter(bundle, Model(bundle, device=device, engine=engine, precision=precision))


def _same_file(x: str | os.PathLike[str], y: str | os.PathLike[str]) -> bool:
    try:
        return os.path.samefile(x, y)
    except (OSError, ValueError):  # one of them is not there; reading will say so
        return False
