"""The configuration of a model, its corpus and its training: frozen, validated, one YAML file.

A key that does not exist is an error that names the nearest one. The model's part alone travels
in a bundle; the rest describes how it was trained.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from .config_file import override, parse, read_mapping, to_yaml

Positive = Annotated[int, Field(gt=0)]
# Bounds that no real network comes near: beyond them a slip of the keyboard, which would be
# answered by the lack of memory alone.
Width = Annotated[int, Field(gt=0, le=16_384)]
MAX_STEP_SAMPLES = 1 << 28  # of a batch: 4.7 hours

FEATURE_CHANNELS = {"logmel80": 80, "mfcc39": 39}


class Section(BaseModel):
    """Frozen, its numbers finite, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, allow_inf_nan=False)


class AudioConfig(Section):
    """The decoder's signal: pre-emphasis, fixed gain, clip, mu-law."""

    sample_rate: Literal[16000] = 16000
    preemphasis: Annotated[float, Field(ge=0, lt=1)] = 0.85
    gain: Annotated[float, Field(gt=0, le=1000)] = 2.0
    levels: Annotated[int, Field(ge=2, le=256)] = 256


class FeaturesConfig(Section):
    """What the encoder sees (100 frames a second): 80 log-mel bands, or 13 MFCC with their first
    and second differences over time."""

    kind: Literal["logmel80", "mfcc39"] = "logmel80"

    @property
    def channels(self) -> int:
        """Numbers a frame."""
        return FEATURE_CHANNELS[self.kind]


class EncoderConfig(Section):
    """Nine convolutions of this width (Chorowski et al. 2019).

    ``instance_norm``: each feature is normalised over a window of so many frames around its own,
    which takes away level and everything that colours all of them alike; null is off.
    """

    width: Width = 768
    instance_norm: Annotated[int, Field(ge=3, le=1001)] | None = None

    @model_validator(mode="after")
    def _has_a_middle(self) -> EncoderConfig:
        if self.instance_norm is not None and self.instance_norm % 2 == 0:
            raise ValueError(
                "model.encoder.instance_norm must be an odd number of frames (as many before a "
                f"frame as after it), found {self.instance_norm}"
            )
        return self


class BottleneckConfig(Section):
    """What the units are; keys of the other kinds are not looked at, so that ``kind`` alone
    switches between them.

    ``ae``: ``dim`` numbers, as they are. ``vae``: ``dim`` Gaussians; ``samples`` draws of each
    per step, the KL's weight rising to ``kl_weight`` over ``kl_warmup`` steps, ``free_bits`` of
    each dimension and unit not penalised. ``vq``: the nearest of ``codebook_size`` vectors of
    ``dim`` numbers, which follow the encodings as moving averages of this ``decay`` (``update:
    ema``) or by their gradient. ``fsq``: one number a level of ``levels``, rounded to it.
    """

    kind: Literal["ae", "vae", "vq", "fsq"] = "vq"
    dim: Width = 64
    codebook_size: Annotated[int, Field(ge=2, le=1 << 16)] = 512
    update: Literal["ema", "gradient"] = "ema"
    commitment_weight: Annotated[float, Field(ge=0)] = 0.25
    decay: Annotated[float, Field(gt=0, lt=1)] = 0.99
    warmup_steps: Annotated[int, Field(ge=0)] = 600
    restart_below: Annotated[float, Field(ge=0, lt=1)] = 0.03
    samples: Annotated[int, Field(gt=0, le=1024)] = 1
    kl_weight: Annotated[float, Field(ge=0)] = 1.0
    kl_warmup: Annotated[int, Field(ge=0)] = 0
    free_bits: Annotated[float, Field(ge=0)] = 0.0
    levels: Annotated[tuple[Annotated[int, Field(ge=2)], ...], Field(min_length=1)] = (8, 5, 5, 5)

    @model_validator(mode="after")
    def _countable(self) -> BottleneckConfig:
        if math.prod(self.levels) > 1 << 16:
            raise ValueError(
                f"model.bottleneck.levels make {math.prod(self.levels):,} codes; at most "
                f"{1 << 16:,} are possible"
            )
        return self

    @property
    def latents(self) -> int:
        """Numbers a unit."""
        return len(self.levels) if self.kind == "fsq" else self.dim

    @property
    def codes(self) -> int | None:
        """How many different units there are; None where they are continuous."""
        return {"vq": self.codebook_size, "fsq": math.prod(self.levels)}.get(self.kind)


class DecoderConfig(Section):
    """The WaveNet and its conditioning.

    ``upsampling``: units to samples by ``linear`` interpolation between frames, or by the paper's
    ``transposed`` convolutions. ``pitch``: condition also on the pitch relative to the speaker's
    own, and on voicing; conversion can then shift it.
    """

    residual_channels: Width = 64
    gate_channels: Width = 64
    skip_channels: Width = 128
    blocks: Annotated[int, Field(gt=0, le=64)] = 2
    layers: Annotated[int, Field(gt=0, le=14)] = 10
    kernel_size: Annotated[int, Field(ge=2, le=3)] = 2
    conditioning_channels: Width = 64
    speaker_dim: Width = 64
    upsampling: Literal["linear", "transposed"] = "linear"
    jitter: Annotated[float, Field(ge=0, lt=0.5)] = 0.12
    pitch: bool = False


class ModelConfig(Section):
    """Everything that determines the network; stored in every bundle.

    ``kind``: the ``autoencoder``, or an ``inverter``: its decoder conditioned on the features
    themselves, without encoder and bottleneck (and without jitter). It proves that conditioning
    works, and pre-trains decoders.
    """

    kind: Literal["autoencoder", "inverter"] = "autoencoder"
    audio: AudioConfig = AudioConfig()
    features: FeaturesConfig = FeaturesConfig()
    encoder: EncoderConfig = EncoderConfig()
    bottleneck: BottleneckConfig = BottleneckConfig()
    decoder: DecoderConfig = DecoderConfig()

    @model_validator(mode="after")
    def _possible(self) -> ModelConfig:
        if self.inverter and self.encoder.instance_norm is not None:
            raise ValueError(
                "model.encoder.instance_norm belongs to an encoder, and an inverter has none; "
                "set it to null"
            )
        if self.inverter and self.decoder.pitch:
            raise ValueError(
                "model.decoder.pitch cannot be used by an inverter: its features tell the pitch "
                "already; set it to false"
            )
        return self

    @property
    def inverter(self) -> bool:
        return self.kind == "inverter"

    @property
    def latents(self) -> int:
        """Numbers a unit."""
        return self.features.channels if self.inverter else self.bottleneck.latents

    @property
    def codes(self) -> int | None:
        """How many different units there are; None where they are continuous."""
        return None if self.inverter else self.bottleneck.codes

    @property
    def conditions(self) -> int:
        """Numbers a unit that the decoder is told: the latents, pitch and voicing."""
        return self.latents + (2 if self.decoder.pitch else 0)

    @property
    def draws(self) -> int:
        """Draws of noise a latent is given in training."""
        variational = not self.inverter and self.bottleneck.kind == "vae"
        return self.bottleneck.samples if variational else 0

    @property
    def jitter(self) -> float:
        """Probability that a unit is replaced by a neighbour in training."""
        return 0.0 if self.inverter else self.decoder.jitter

    @property
    def geometry(self) -> dict[str, Any]:
        """What ``Geometry.of`` wants to know."""
        return {
            "encoder": not self.inverter,
            "features": self.features.kind,
            "instance_norm": self.encoder.instance_norm,
            "upsampling": self.decoder.upsampling,
            "kernel_size": self.decoder.kernel_size,
            "blocks": self.decoder.blocks,
            "layers": self.decoder.layers,
        }


class AugmentConfig(Section):
    """Changes to the encoder's input, not to what the decoder predicts, drawn for each window.

    ``gain_db``: level, within plus or minus this. ``equaliser_db``: a smooth frequency response, a
    random value within plus or minus this at each octave. ``noise_snr_db``: white to pink noise,
    from this to 30 dB more below the excerpt's RMS; null is none. ``pitch_semitones``: pitch,
    within plus or minus this, formants kept (6 at most keeps it natural). ``formant``: formants
    moved by a factor in [1 / (1 + f), 1 + f], pitch kept.
    """

    gain_db: Annotated[float, Field(ge=0, le=60)] = 0.0
    equaliser_db: Annotated[float, Field(ge=0, le=40)] = 0.0
    noise_snr_db: Annotated[float, Field(ge=-20, le=100)] | None = None
    pitch_semitones: Annotated[float, Field(ge=0, le=12)] = 0.0
    formant: Annotated[float, Field(ge=0, lt=0.5)] = 0.0


class DataConfig(Section):
    """``corpus``: a prepared corpus, or a raw folder or manifest that is then prepared first.

    ``dither_db``: RMS, re full scale, of white noise on the decoder's signal. Digital silence is
    a state that a WaveNet hardly leaves: after nothing but zeros it has only ever seen zeros.
    ``takes``: a file of ``vconv takes``, what a model said when it spoke recordings of this corpus
    itself; a ``takes_share`` of the windows is decoded from them (not dithered).
    ``workers``: processes that make batches ahead; 0 makes them in the training process.
    """

    corpus: Annotated[str, Field(min_length=1)]
    window: Annotated[int, Field(gt=0, le=1_024_000)] = 5120
    buffer_mb: Annotated[float, Field(gt=0)] | None = None
    buffer_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    dither_db: Annotated[float, Field(lt=0)] | None = None
    takes: Annotated[str, Field(min_length=1)] | None = None
    takes_share: Annotated[float, Field(gt=0, le=1)] = 0.6
    workers: Annotated[int, Field(ge=0, le=64)] = 0
    augment: AugmentConfig = AugmentConfig()

    @model_validator(mode="after")
    def _on_the_unit_grid(self) -> DataConfig:
        if self.window % 320:
            below = self.window // 320 * 320
            raise ValueError(
                f"data.window must be a multiple of the unit hop 320, found {self.window} "
                f"(the nearest are {max(below, 320)} and {below + 320})"
            )
        return self


class TrainConfig(Section):
    """How to train. Keys of ``RESUMABLE`` may differ when a run is resumed.

    ``init_from``: the run, checkpoint, bundle or model's name whose weights a new run starts
    from, as far as they fit (another corpus, other speakers, an inverter's decoder).
    ``decode_batch`` windows of a batch at a time go through the decoder, all of them through the
    encoder: the same gradient in less memory, and on a CPU faster (the activations stay in cache).
    ``microbatches``: equal parts of a batch, each with batch-norm statistics of its own, whose
    gradients are averaged into one step; shared out among the processes, and one after another
    within a process (gradient accumulation). null: one for each process there is when the run
    starts. ``elastic_exact``: any number of processes gives the same bits. ``optimizer``: adamw,
    or muon, which moves the decoder's matrices by orthogonalised momentum and the rest by AdamW.
    ``compile``: encoder and decoder by torch.compile. ``cuda_graph``: on one GPU, record a step and
    play it. ``sample_every``: steps between conversions
    to listen to; 0 off.
    """

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    init_from: str | None = None
    steps: Annotated[int, Field(gt=0, lt=10**9)] = 500_000  # a checkpoint's name has nine digits
    batch: Annotated[int, Field(gt=0, le=65_536)] = 32
    microbatches: Positive | None = None
    elastic_exact: bool = False
    decode_batch: Positive | None = None
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: Annotated[float, Field(gt=0)] = 4e-4
    warmup: Annotated[int, Field(ge=0)] = 200
    halve_at: tuple[Positive, ...] = ()
    final_decay: Annotated[int, Field(ge=0)] = 0
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    clip: Annotated[float, Field(gt=0)] = 1.0
    average: Annotated[float, Field(ge=0, lt=1)] = 0.999
    precision: Literal["fp32", "bf16"] = "fp32"
    device: str = "auto"
    threads: Annotated[int, Field(ge=0, le=4096)] = 0
    compile: bool = False
    cuda_graph: bool = False
    log_every: Positive = 50
    validate_every: Positive = 1000
    validate_windows: Positive = 64
    sample_every: Annotated[int, Field(ge=0)] = 10_000
    checkpoint_every: Positive = 1000
    keep_last: Positive = 3
    keep_best: Annotated[int, Field(ge=0)] = 1

    @field_validator("device")
    @classmethod
    def _known(cls, device: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", device):
            raise ValueError(
                f"train.device: {device!r} is no device; allowed are auto, cpu, cuda and cuda:N"
            )
        return device

    @model_validator(mode="after")
    def _divisible(self) -> TrainConfig:
        if self.microbatches is not None and self.batch % self.microbatches:
            raise ValueError(
                f"train.microbatches must divide train.batch, {self.batch}; found "
                f"{self.microbatches}"
            )
        return self


class Config(Section):
    """One training run."""

    name: str = "run"
    model: ModelConfig = ModelConfig()
    data: DataConfig
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _possible(self) -> Config:
        samples = self.train.batch * self.data.window
        if samples > MAX_STEP_SAMPLES:
            raise ValueError(
                f"train.batch {self.train.batch:,} of data.window {self.data.window:,} are "
                f"{samples:,} samples a step; at most {MAX_STEP_SAMPLES:,} are possible"
            )
        augment = self.data.augment
        if self.model.inverter and (augment.pitch_semitones or augment.formant):
            raise ValueError(
                "data.augment cannot move pitch or formants of an inverter's features: they would "
                "no longer tell what it has to say; set pitch_semitones and formant to 0"
            )
        return self


# Keys that may change when a run is resumed; any other change is refused by name. A new number
# of steps or decay changes the learning rate from there on only.
RESUMABLE = frozenset(
    {
        "name",
        "data.corpus",
        "data.dither_db",
        "data.takes",  # a moved file: its digest must be the same
        "data.workers",
        "train.elastic_exact",
        "train.compile",
        "train.cuda_graph",
        "train.steps",
        "train.halve_at",
        "train.final_decay",
        "train.device",
        "train.threads",
        "train.log_every",
        "train.validate_every",
        "train.validate_windows",
        "train.sample_every",
        "train.checkpoint_every",
        "train.keep_last",
        "train.keep_best",
    }
)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML configuration and apply ``key.sub=value`` overrides.

    Raises UsageError in one sentence: file unreadable, not YAML, unknown key (with the nearest
    one), wrong type or value.
    """
    values = read_mapping(Path(path))
    for text in overrides:
        override(values, text, Config)
    return parse(Config, values, str(path), overrides)


def flatten(section: BaseModel, prefix: str = "") -> dict[str, Any]:
    """``{"train.steps": 500, ...}`` of a section."""
    flat: dict[str, Any] = {}
    for name, value in section:
        if isinstance(value, BaseModel):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def dump_yaml(section: BaseModel) -> str:
    """The section as YAML, every key written out, in declaration order."""
    return to_yaml(section.model_dump(mode="json"))
