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
    utterance of the speaker, with another speaker's vector; and the bottleneck's figures."""

    true: NDArray[np.float64]
    other_latents: NDArray[np.float64]
    other_speaker: NDArray[np.float64]
    bottleneck: dict[str, float]

    def figures(self) -> dict[str, float]:
        """Figures for logs and manifests; each probe with its bootstrap 95 % interval."""
        figures = {
            "heldout_nll": float(self.true.mean()),
            **{f"heldout_{name}": value for name, value in self.bottleneck.items()},
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
    z, codes, prosody = [], [], []
    metrics: dict[str, float] = {}
    context = torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast)
    with context:
        for batch in data.batches:
            here = batch.to(device)
            units = network.encode(here.wav)
            z.append(units.z)
            codes.append(units.codes)
            prosody.append(network.prosody(here.clean, here.speakers))
            for name, value in units.metrics.items():
                share = len(here.wav) / data.count
                metrics[name] = metrics.get(name, 0.0) + share * float(value)
    latents = torch.cat(z)
    borrowed = latents[torch.from_numpy(data.partner).to(latents.device)]
    # Only the latents are borrowed: the probe asks what they tell beside the pitch.
    own, others = (torch.cat([units, torch.cat(prosody)], dim=1) for units in (latents, borrowed))
    scores: list[list[NDArray[np.float64]]] = [[], [], []]
    first = 0
    for batch in data.batches:
        here = batch.to(device)
        rows = slice(first, first + len(here.wav))
        first = rows.stop
        # Half the table away: never the speaker itself, and not its neighbour in the listing.
        strangers = (here.speakers + max(1, speakers // 2)) % speakers
        for index, (told, who) in enumerate(
            (
                (own[rows], here.speakers),
                (others[rows], here.speakers),
                (own[rows], strangers),
            )
        ):
            with context:
                logits = network.decode(
                    told,
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
    if bool((used >= 0).all()):  # else there is no codebook, or not yet
        metrics["perplexity"] = float(perplexity(used, size))
        metrics["codes_used"] = len(used.unique()) / size
    true, other_latents, other_speaker = (np.concatenate(part) for part in scores)
    return Validation(true, other_latents, other_speaker, metrics)
