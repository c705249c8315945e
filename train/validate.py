"""Held-out likelihood, the two listening probes, and what becomes of the network's channels.

A decoder that ignores its conditioning still reaches a falling loss. The probes ask whether it
listens: how much worse does it predict with the latents of another utterance of the same
speaker, and with another speaker's vector?

B batch, N held-out windows of W samples, D latent width, U units, Q mu-law levels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vconv.nn.autoencoder import Autoencoder
from vconv.nn.bottleneck import ACTIVE_VARIANCE, VAE, Bottleneck, gaussian_kl, perplexity

from .activity import Activity
from .batches import Excerpts, HeldOut
from .objective import nll_per_item

_RESAMPLES = 2000


@dataclass(frozen=True)
class Validation:
    """Nats per sample for each held-out window [N]: as it is, with the latents of another
    utterance of the speaker, with another speaker's vector; of the first also the mean probability
    of the true class and the expected error in classes (``accuracy``).

    bottleneck: its figures; kl: nats a unit of each dimension [D], [0] where it has no posterior;
    activity: shares of dead channels (``Activity``).
    """

    true: NDArray[np.float64]
    other_latents: NDArray[np.float64]
    other_speaker: NDArray[np.float64]
    probability: NDArray[np.float64]
    mulaw_error: NDArray[np.float64]
    bottleneck: dict[str, float]
    kl: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    activity: Mapping[str, float] = field(default_factory=dict)

    def figures(self) -> dict[str, float]:
        """Figures for logs and manifests; each probe with its bootstrap 95 % interval."""
        figures = {
            "heldout_nll": float(self.true.mean()),
            "heldout_probability": float(self.probability.mean()),
            "heldout_mulaw_error": float(self.mulaw_error.mean()),
            **{f"heldout_{name}": value for name, value in self.bottleneck.items()},
        }
        if len(self.kl):
            figures["heldout_kl_max"] = float(self.kl.max())
            figures["heldout_kl_median"] = float(np.median(self.kl))
        for name, other in (("latents", self.other_latents), ("speaker", self.other_speaker)):
            gap = (other - self.true)[np.isfinite(other)]
            if not len(gap):  # there is no other to compare with
                continue
            low, high = bootstrap_interval(gap)
            figures[f"probe_{name}"] = float(gap.mean())
            figures[f"probe_{name}_low"] = low
            figures[f"probe_{name}_high"] = high
        return figures | dict(self.activity)

    def vectors(self) -> dict[str, list[float]]:
        """What has a value for each dimension, for ``Diary.write``: one list in metrics.jsonl and
        a histogram in TensorBoard, instead of dozens of curves."""
        return {"heldout_kl_dimensions": self.kl.tolist()} if len(self.kl) else {}


def bootstrap_interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """95 % percentile interval of the mean over resampled utterances; keyed, so repeatable."""
    random = np.random.Generator(np.random.Philox(key=0))
    picks = random.integers(len(values), size=(_RESAMPLES, len(values)))
    low, high = np.quantile(values[picks].mean(1), [0.025, 0.975])
    return float(low), float(high)


def accuracy(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """logits [B, W, Q], targets [B, W] -> of each item [B], means over its samples: the
    probability given to the true class, and the error in classes.

    The error is the expected one, E |class - true| under the predicted distribution: how far off
    the code is that the sampler would draw here. The most likely class would be a wrong summary of
    a distribution that is wide on purpose (in noise no class is likely, and which of them is the
    likeliest jumps about), and the distribution's mean is a code that may hardly ever be drawn.
    """
    classes = torch.arange(logits.shape[2], device=logits.device)
    probabilities, errors = [], []
    for scores, true in zip(logits, targets, strict=True):  # one at a time: in memory and cache
        p = torch.softmax(scores.float(), dim=1)
        probabilities.append(p.gather(1, true[:, None]).mean())
        errors.append((p * (classes - true[:, None]).abs()).sum(1).mean())
    return torch.stack(probabilities), torch.stack(errors)


@torch.no_grad()
def validate(
    network: Autoencoder, data: HeldOut, excerpts: Excerpts, device: torch.device, *, autocast: bool
) -> Validation:
    """Score every held-out window three ways, in evaluation mode."""
    window = excerpts.window
    speakers = len(excerpts.corpus.speakers)
    z, codes, prosody = [], [], []
    metrics: dict[str, float] = {}
    activity = Activity(network)
    context = torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast)
    with context, activity.watched(), _posteriors(network.bottleneck) as kls:
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
    scores: list[list[NDArray[np.float64]]] = [[], [], [], [], []]
    first = 0
    for batch in data.batches:
        here = batch.to(device)
        targets = here.codes[:, -window:]
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
            with context, nullcontext() if index else activity.watched():
                logits = network.decode(
                    told,
                    network.speaker_vectors(who),
                    here.codes[:, :-1],
                    network.decoder.wavenet.no_context(len(who)),
                    steps=excerpts.steps,
                    wanted=window,
                )
            scores[index].append(_array(nll_per_item(logits, targets)))
            if index == 0:
                for place, values in enumerate(accuracy(logits, targets), start=3):
                    scores[place].append(_array(values))
    used = torch.cat(codes)
    size = network.bottleneck.codebook_size
    if bool((used >= 0).all()):  # else there is no codebook, or not yet
        metrics["perplexity"] = float(perplexity(used, size))
        metrics["codes_used"] = len(used.unique()) / size
    if kls:  # a unit active in some batch only is not lost in a mean over them
        active = latents.double().var((0, 2), correction=0) > ACTIVE_VARIANCE
        metrics["active_dimensions"] = float(active.sum())
    true, other_latents, other_speaker, probability, mulaw_error = map(np.concatenate, scores)
    other_latents[data.partner == np.arange(data.count)] = np.nan
    if speakers == 1:
        other_speaker[:] = np.nan
    return Validation(
        true,
        other_latents,
        other_speaker,
        probability,
        mulaw_error,
        metrics,
        kl=np.concatenate(kls).mean(0) if kls else np.zeros(0),
        activity=activity.figures(),
    )


@contextmanager
def _posteriors(bottleneck: Bottleneck) -> Iterator[list[NDArray[np.float64]]]:
    """While the block lasts, collects the KL of each posterior: [B, D] of each batch, means over
    its units; nothing of a bottleneck that has none."""
    kls: list[NDArray[np.float64]] = []

    def look(module: torch.nn.Module, inputs: object, output: Tensor) -> None:
        mean, log_variance = output.float().chunk(2, dim=1)
        kls.append(_array(gaussian_kl(mean, log_variance).mean(2)))

    if not isinstance(bottleneck, VAE):
        yield kls
        return
    handle = bottleneck.project.register_forward_hook(look)
    try:
        yield kls
    finally:
        handle.remove()


def _array(values: Tensor) -> NDArray[np.float64]:
    array: NDArray[np.float64] = values.double().cpu().numpy()
    return array
