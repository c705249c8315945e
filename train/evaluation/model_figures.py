"""What is the model's own: its codebook in use, its bit rate, what units say of the speaker."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vconv.bundle import Bundle
from vconv.manifest import Manifest

from .pairs import PairList
from .probe import PROBE_SECONDS, accuracy, histograms, means
from .units import use

Row = Mapping[str, Any]
Example = tuple[object, NDArray[np.floating]]


def model_figures(bundle: Bundle, pairs: PairList, rows: Mapping[str, Row]) -> dict[str, Any]:
    """None of what the model, or the list, has not: a codebook, or recordings to fit a probe to.

    The probe is fitted to the enrolment and judged on the evaluated recordings of the same voices.
    """
    manifest = bundle.manifest
    size = manifest.bottleneck.codebook_size
    heard = [rows[f"recording:{path}"]["units"] for path in pairs.recordings]
    codes = [np.array(units["codes"]) for units in heard if "codes" in units]
    used: dict[str, Any] = {"perplexity": None, "codes_used": None}
    if size is not None and codes:
        used = use(codes, size)
    by_codes, by_latents = _probes(bundle, pairs, rows)
    quality = manifest.quality
    voices = len(pairs.enrolment)
    return {
        "codebook_size": size,
        **used,
        "bits_per_second": bits_per_second(manifest),
        "speaker_probe": by_latents if by_codes is None else by_codes,
        "speaker_probe_of": "latents" if by_codes is None else "codes",
        "speaker_probe_latents": by_latents,
        "speaker_probe_chance": 1 / voices if voices else None,
        "probe_latents": quality.get("probe_latents"),
        "probe_speaker": quality.get("probe_speaker"),
        "heldout_perplexity": quality.get("heldout_perplexity"),
    }


def bits_per_second(manifest: Manifest) -> float | None:
    """What the units carry at most: the logarithm of the number of codes, or a VAE's KL on
    held-out speech. Nothing bounds the others."""
    if manifest.bottleneck.bits_per_second is not None:
        return manifest.bottleneck.bits_per_second
    kl = manifest.quality.get("heldout_kl")
    return None if kl is None else manifest.unit_rate * kl / math.log(2)


def _probes(
    bundle: Bundle, pairs: PairList, rows: Mapping[str, Row]
) -> tuple[float | None, float | None]:
    """Accuracy from the histogram of a second's codes, and from its latents' mean."""
    length = round(PROBE_SECONDS * bundle.manifest.unit_rate)
    train = [
        (name, rows[f"enrolment:{path}"]["units"])
        for name, paths in pairs.enrolment.items()
        for path in paths
    ]
    held = [
        (speaker, rows[f"recording:{path}"]["units"])
        for path, (speaker, _, _) in pairs.recordings.items()
        if speaker in pairs.enrolment
    ]
    made: list[float | None] = []
    for kind in ("codes", "latents"):
        fitted, judged = (
            [e for who, units in each for e in _seconds(bundle, who, units, kind, length)]
            for each in (train, held)
        )
        enough = judged and len({who for who, _ in fitted}) > 1
        made.append(accuracy(fitted, judged) if enough else None)
    return made[0], made[1]


def _seconds(bundle: Bundle, who: object, units: Row, kind: str, length: int) -> Iterator[Example]:
    codebook = bundle.codebook
    if "means" in units:
        if kind == "latents":
            yield from ((who, np.array(each)) for each in units["means"])
        return
    codes = np.array(units["codes"])
    assert codebook is not None
    found = histograms(codes, len(codebook), length)
    if kind == "latents":
        found = means(codebook[codes], length)
    yield from ((who, each) for each in found)
