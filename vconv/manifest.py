"""manifest.json: what a bundle says of itself, and the only list of what belongs to it.

docs/bundle-format.md specifies it. Its digest covers its own bytes: the sha256 of the file with
the 64 digits of the digest replaced by zeros. So any changed byte is noticed, and no reader in
another language has to reproduce a JSON writer's habits.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .config import ModelConfig
from .errors import ModelError
from .geometry import Geometry, Span

FORMAT_VERSION: Final = 2
READABLE = (1, 2)
MANIFEST = "manifest.json"

_NO_DIGEST = "0" * 64
MAX_BYTES = 4_000_000  # a thousand speakers need a tenth of it
MAX_FILE_BYTES = 2**31 - 1  # what an ONNX file can have; the largest of the family have a tenth
_COMPONENT = r"[A-Za-z0-9_-][A-Za-z0-9_.-]*"
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
# Plain relative names: nothing absolute, hidden or upwards can be written in this alphabet.
FileName = Annotated[str, Field(pattern=rf"^{_COMPONENT}(/{_COMPONENT})*$", max_length=200)]
Count = Annotated[int, Field(ge=0)]
Reduced = Literal["bf16", "int8"]
REDUCED: tuple[Reduced, ...] = ("bf16", "int8")


class _Part(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False
    )


class FileEntry(_Part):
    """Size in bytes and hash of one file."""

    size: Annotated[int, Field(ge=0, le=MAX_FILE_BYTES)]
    sha256: Sha256


class BottleneckInfo(_Part):
    """What a unit is: a latent of ``dim`` numbers, one of ``codebook_size`` where there is a
    codebook. ``kind`` is the bottleneck's, or "features" for an inverter, which has none."""

    kind: str
    codebook_size: Annotated[int, Field(ge=2)] | None
    dim: Annotated[int, Field(ge=1)]
    bits_per_second: float | None


class ChunkInfo(_Part):
    """Lengths for generating n samples (n a multiple of the unit hop); see ``geometry.Plan``.

    n + ``extra_samples`` wav samples, the first generated one at ``left``, give
    n / unit_hop + ``extra_units`` units. These give conditioning steps of which ``skip`` are
    dropped and the next n / conditioning_hop + ``extra_steps`` used. The next chunk's input
    starts n samples later: ``extra_samples`` and ``extra_units`` are sent again.
    """

    left: Count
    extra_samples: Count
    extra_units: Count
    extra_steps: Count
    skip: Count


class GeometryInfo(_Part):
    """What a reader needs to feed the exported files; in samples unless said otherwise.

    T wav samples give (T - ``encoder_window``) // ``unit_hop`` + 1 units; U units give
    ``steps_per_unit`` * U - ``steps_lost`` conditioning steps, and conditioning step q lies at
    ``offset`` + q * ``conditioning_hop``.
    """

    unit_hop: Count
    encoder_window: Count
    conditioning_hop: Count
    steps_per_unit: Count
    steps_lost: Count
    offset: int
    receptive_field: Count
    lead_samples: Count
    lookahead_samples: int
    latency_seconds: float
    chunk: ChunkInfo

    @classmethod
    def of(cls, geometry: Geometry, sample_rate: int) -> GeometryInfo:
        """The numbers of a geometry."""
        hop = geometry.unit_hop
        plan = geometry.plan(hop)
        units = 64
        steps = len(geometry.conditioner.outputs(Span(0, units)))
        per_unit = hop // geometry.conditioning_hop
        return cls(
            unit_hop=hop,
            encoder_window=len(geometry.unit_inputs(Span(0, 1))),
            conditioning_hop=geometry.conditioning_hop,
            steps_per_unit=per_unit,
            steps_lost=per_unit * units - steps,
            offset=geometry.offset,
            receptive_field=geometry.receptive_field,
            lead_samples=geometry.lead_samples,
            lookahead_samples=geometry.lookahead_samples,
            latency_seconds=geometry.lookahead_samples / sample_rate,
            chunk=ChunkInfo(
                left=plan.left,
                extra_samples=plan.wav_length - hop,
                extra_units=plan.units - 1,
                extra_steps=plan.steps - per_unit,
                skip=plan.skip,
            ),
        )


class TrainingInfo(_Part):
    """How the weights came about."""

    command: str
    steps: Count
    samples_seen: Count
    settings: dict[str, Any] = {}


class DataInfo(_Part):
    """What the weights were trained on, and under which terms it may be used."""

    statement: str
    licence: str
    hours: Annotated[float, Field(ge=0)] | None = None
    corpus_digest: str = ""


class Manifest(_Part):
    """The whole of manifest.json."""

    format_version: Literal[1, 2] = FORMAT_VERSION
    name: str
    sample_rate: Annotated[int, Field(gt=0)]
    unit_rate: Annotated[float, Field(gt=0)]
    bottleneck: BottleneckInfo
    speakers: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]
    geometry: GeometryInfo
    model: ModelConfig
    quality: dict[str, float] = {}
    # What generating with reduced weights costs, in nats a sample of held-out speech.
    precisions: dict[Reduced, Annotated[float, Field(allow_inf_nan=False)]] = {}
    # How loud the speech is that the encoder was trained on, in dBFS; see input_level.py.
    input_level_db: Annotated[float, Field(allow_inf_nan=False)] | None = None
    limits: str = ""
    training: TrainingInfo
    data: DataInfo
    tools: dict[str, str] = {}
    files: dict[FileName, FileEntry]
    digest: Sha256 = _NO_DIGEST


def describe(config: ModelConfig) -> dict[str, Any]:
    """The manifest's fields that follow from the configuration alone."""
    rate, codes = config.audio.sample_rate, config.codes
    geometry = Geometry.of(**config.geometry)
    unit_rate = rate / geometry.unit_hop
    return {
        "sample_rate": rate,
        "unit_rate": unit_rate,
        "bottleneck": BottleneckInfo(
            kind="features" if config.inverter else config.bottleneck.kind,
            codebook_size=codes,
            dim=config.latents,
            bits_per_second=None if codes is None else unit_rate * math.log2(codes),
        ),
        "geometry": GeometryInfo.of(geometry, rate),
        "model": config,
    }


def seal(manifest: Manifest) -> bytes:
    """The bytes of manifest.json, with its digest filled in."""
    values = manifest.model_copy(update={"digest": _NO_DIGEST}).model_dump(mode="json")
    text = json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    blank = text.encode("utf-8")
    # The digest is the last field: where it stands needs no search.
    head, found, tail = blank.rpartition(_NO_DIGEST.encode())
    assert found
    return head + hashlib.sha256(blank).hexdigest().encode() + tail


def parse_manifest(data: bytes, where: str) -> Manifest:
    """Read and check manifest.json; ModelError in one sentence: not JSON, another format
    version, a digest that does not match, a field that is missing, unknown or wrong."""
    try:
        values = json.loads(data.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise ModelError(f"{where}: not valid JSON; the file is damaged.") from None
    if not isinstance(values, dict):
        raise ModelError(f"{where}: not a manifest; expected a JSON object.")
    version = values.get("format_version")
    if version not in READABLE or isinstance(version, bool):
        known = ", ".join(map(str, READABLE))
        newer = isinstance(version, int) and version > max(READABLE)
        advice = "; update vconv to read it" if newer else ""
        raise ModelError(
            f"{where}: format version {version!r} cannot be read; this vconv reads {known}{advice}."
        )
    if _digest(data, values.get("digest")) != values.get("digest"):
        raise ModelError(f"{where}: damaged; its digest does not match its content.")
    try:
        manifest = Manifest.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ModelError(f"{where}: {key}: {first['msg']}.") from None
    for key, value in describe(manifest.model).items():
        if getattr(manifest, key) != value:
            raise ModelError(f"{where}: {key} does not follow from the model's configuration.")
    return manifest


def _digest(data: bytes, declared: object) -> str:
    if not isinstance(declared, str) or len(declared) != 64:
        return ""
    head, found, tail = data.rpartition(declared.encode())
    return hashlib.sha256(head + _NO_DIGEST.encode() + tail).hexdigest() if found else ""


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
