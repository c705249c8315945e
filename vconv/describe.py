"""What ``vconv info`` prints: a bundle's manifest for people, and for programs."""

from __future__ import annotations

from typing import Any

from .geometry import Geometry
from .grid import Grid
from .manifest import Manifest
from .reading import printable


def describe(manifest: Manifest) -> str:
    """The manifest as lines of text."""
    geometry, decoder = manifest.geometry, manifest.model.decoder
    rate = manifest.sample_rate
    files = manifest.files.values()
    data, training = manifest.data, manifest.training
    field = geometry.receptive_field
    rows = [
        ("model", f"{manifest.name} (bundle format {manifest.format_version})"),
        ("size", f"{sum(file.size for file in files) / 1e6:.1f} MB in {len(files)} files"),
        ("speakers", f"{len(manifest.speakers)}"),
        ("units", f"{manifest.unit_rate:g} a second, {_units(manifest)}"),
        (
            "decoder",
            f"{decoder.blocks} x {decoder.layers} layers of {decoder.residual_channels} channels, "
            f"receptive field {field:,} samples ({1000 * field / rate:.0f} ms)",
        ),
        ("pitch", "can be shifted (--pitch)" if decoder.pitch else ""),
        (
            "latency",
            f"{geometry.latency_seconds:.3f} s of look-ahead; {chunk_latency(manifest):.3f} s "
            "with the chunk that is converted at a time",
        ),
        *(("quality", f"{name} {value:g}") for name, value in manifest.quality.items()),
        *(
            ("precision", f"{name} costs {cost:+.4f} nats a sample")
            for name, cost in manifest.precisions.items()
        ),
        (
            "training",
            f"{training.steps:,} steps, {training.samples_seen:,} samples",
        ),
        ("", training.command),
        ("data", data.statement + (f" ({data.hours:.2f} hours)" if data.hours else "")),
        ("licence", data.licence),
        ("limits", manifest.limits),
    ]
    lines, before = [], ""
    for label, text in rows:
        if text.strip():
            said = printable(" ".join(text.split()))  # a terminal obeys control characters
            lines.append(f"{'' if label == before else label:<10}{said}".rstrip())
            before = label
    return "\n".join(lines)


def describe_json(manifest: Manifest) -> dict[str, Any]:
    """The manifest, with the latency of this program's chunks."""
    values = manifest.model_dump(mode="json")
    return values | {"chunk_latency_seconds": round(chunk_latency(manifest), 6)}


def chunk_latency(manifest: Manifest) -> float:
    """The longest that a sample waits for its converted one, in seconds, computing aside."""
    return Grid.of(Geometry.of(**manifest.model.geometry)).plan.right / manifest.sample_rate


def _units(manifest: Manifest) -> str:
    units = manifest.bottleneck
    if manifest.model.inverter:
        return f"{manifest.model.features.kind} features of {units.dim} numbers"
    if units.codebook_size is None:
        return f"{units.kind} of {units.dim} numbers"
    return f"{units.kind} of {units.codebook_size} codes, {units.bits_per_second:g} bit/s"
