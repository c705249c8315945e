"""Held-out likelihood and the two listening probes.

A decoder that ignores its conditioning still reaches a falling loss. The probes ask whether it
listens: how much worse does it predict with the latents of another utterance of the same
speaker, and with another speaker's vector?
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from vconv.nn.autoencoder import Autoencoder
from vconv.nn.bottleneck import perplexity

from .batches import Excerpts, HeldOut
from .objective import nll_per_item

_RESAMPLES = 2000


@dataclass(frozen=True)
class Validation:
    """Nats per sample for each held-out window [N]: as it is, with the latents of another
    utterance of the speaker, with another speaker's vector; and the codes' use."""

    true: NDArray[np.float64]
    other_latents: NDArray[np.float64]
    other_speaker: NDArray[np.float64]
    perplexity: float
    codes_used: float

    def figures(self) -> dict[str, float]:
        """Figures for logs and manifests; each probe with its bootstrap 95 % interval."""
        figures = {
            "heldout_nll": float(self.true.mean()),
            "heldout_perplexity": self.perplexity,
            "heldout_codes_used": self.codes_used,
        }
        for name, other in (("latents", self.other_latents), ("speaker", self.other_speaker)):
            gap = other - self.true
            low, high = bootstrap_interval(gap)
            figures[f"probe_{name}"] = float(gap.mean())
            figures[f"probe_{name}_low"] = low
            figures[f"probe_{name}_high"] = high
        return figures


def bootstrap_interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """95 % percentile interval of the mean over resampled utterances; keyed, so repeatable."""
    random = np.random.Generator(np.random.Philox(key=0))
    picks = random.integers(len(values), size=(_RESAMPLES, len(values)))
    low, high = np.quantile(values[picks].mean(1), [0.025, 0.975])
    return float(low), float(high)


@torch.no_grad()
def validate(
    network: Autoencoder, data: HeldOut, excerpts: Excerpts, device: torch.device, *, autocast: bool
) -> Validation:
    """Score every held-out window three ways, in evaluation mode."""
    window = excerpts.window
    speakers = len(excerpts.corpus.speakers)
    z, codes = [], []
    context = torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast)
    with context:
        for batch in data.batches:
            units = network.encode(batch.to(device).wav)
            z.append(units.z)
            codes.append(units.codes)
    latents = torch.cat(z)
    borrowed = latents[torch.from_numpy(data.partner).to(latents.device)]
    scores: list[list[NDArray[np.float64]]] = [[], [], []]
    first = 0
    for batch in data.batches:
        here = batch.to(device)
        rows = slice(first, first + len(here.wav))
        first = rows.stop
        # Half the table away: never the speaker itself, and not its neighbour in the listing.
        strangers = (here.speakers + max(1, speakers // 2)) % speakers
        for index, (units_z, who) in enumerate(
            (
                (latents[rows], here.speakers),
                (borrowed[rows], here.speakers),
                (latents[rows], strangers),
            )
        ):
            with context:
                logits = network.decode(
                    units_z,
                    network.speaker_vectors(who),
                    here.codes[:, :-1],
                    network.decoder.wavenet.no_context(len(who)),
                    steps=excerpts.steps,
                    wanted=window,
                )
            nll = nll_per_item(logits, here.codes[:, -window:])
            scores[index].append(nll.double().cpu().numpy())
    used = torch.cat(codes)
    size = network.bottleneck.codebook_size
    quantised = bool((used >= 0).all())
    true, other_latents, other_speaker = (np.concatenate(part) for part in scores)
    return Validation(
        true,
        other_latents,
        other_speaker,
        perplexity=float(perplexity(used, size)) if quantised else 0.0,
        codes_used=len(used.unique()) / size if quantised else 0.0,
    )
