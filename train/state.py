"""The whole state of a training run: model, optimiser, weight average and the step.

Everything else (batch, noise, learning rate, restarts) is a function of the step and the seed.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vconv.config import Config
from vconv.nn.autoencoder import Autoencoder, build_autoencoder
from vconv.nn.pitch import Pitch, voiced_sums

from .batches import TrainingBatches
from .commit import Deferred
from .corpus import Corpus
from .objective import Nll, decoded_nll
from .optimizer import build_optimizer
from .world import World

# Derived from the weights before every use (``refresh_norms``), hence not averaged.
_DERIVED = ("running_mean", "running_var", "num_batches_tracked")
NORM_BATCHES = 16
PITCH_UTTERANCES = 12  # of each speaker: half a minute, for the mean to settle


@dataclass
class TrainState:
    model: Autoencoder
    average: Autoencoder
    optimizer: torch.optim.AdamW
    step: int
    deferred: Deferred | None = None  # commits that the device decides on; None: the host does
    nll: Nll = decoded_nll  # what the decoder is trained on, perhaps compiled

    def settle(self) -> None:
        """Wait until this state is that of its step. Raises FloatingPointError when a gradient was
        not finite; the state is then as it was before that step."""
        if self.deferred is not None:
            self.deferred.settle(self)

    def averaged_tensors(self) -> list[tuple[Tensor, Tensor]]:
        """(average, model) for every weight and codebook tensor."""
        own = self.model.state_dict()
        return [
            (tensor, own[name])
            for name, tensor in self.average.state_dict().items()
            if not name.endswith(_DERIVED)
        ]

    @torch.no_grad()
    def update_average(self, weight: float | Tensor) -> None:
        """Move the average towards the model by this share of the way (``average_weight``)."""
        pairs = self.averaged_tensors()
        averages = [a for a, _ in pairs if a.is_floating_point()]
        owns = [b for a, b in pairs if a.is_floating_point()]
        if isinstance(weight, Tensor):
            ways = torch._foreach_sub(owns, averages)
            torch._foreach_mul_(ways, weight)
            torch._foreach_add_(averages, ways)
        else:
            torch._foreach_lerp_(averages, owns, weight)
        for average, own in pairs:
            if not average.is_floating_point():
                average.copy_(own)

    def share(self, world: World) -> None:
        """Give every process the chief's state, bit by bit: a fresh one, or one restored."""
        self.step = world.tell(self.step)
        world.broadcast(self.model.state_dict().values())
        world.broadcast(self.average.state_dict().values())
        parameters = dict(self.model.named_parameters())
        slots = [
            (name, slot, value.shape, value.dtype)
            for name, parameter in parameters.items()
            for slot, value in self.optimizer.state.get(parameter, {}).items()
        ]
        for name, slot, shape, dtype in world.tell(slots):
            own = self.optimizer.state[parameters[name]]
            if not world.chief:
                own[slot] = torch.empty(shape, dtype=dtype, device=parameters[name].device)
            world.broadcast([own[slot]])

    def compile(self) -> None:
        """Have torch.compile translate what is trained when it first runs: the encoder, and
        everything from the latents to the likelihood as one; not the average, which would take as
        long again for a few validations."""
        self.model.encoder.compile(fullgraph=True, dynamic=False)
        self.nll = torch.compile(decoded_nll, fullgraph=True, dynamic=False)

    @torch.no_grad()
    def copy_bottleneck_buffers(self) -> None:
        """After the codebook's start, its average starts there too."""
        own = dict(self.model.bottleneck.named_buffers())
        for name, buffer in self.average.bottleneck.named_buffers():
            if not name.endswith(_DERIVED):
                buffer.copy_(own[name])


def build_state(config: Config, corpus: Corpus, device: torch.device) -> TrainState:
    """A fresh state, a function of the configuration and the corpus only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        model = build_autoencoder(config.model, len(corpus.speakers))
    statistics = corpus.feature_statistics(config.model.features.kind)
    model.features.mean.copy_(torch.from_numpy(statistics.mean))
    model.features.std.copy_(torch.from_numpy(statistics.std))
    if model.pitch is not None:
        model.pitch.speaker_means.copy_(mean_pitches(model.pitch, corpus))
    model.to(device).train()
    average = copy.deepcopy(model).eval().requires_grad_(False)
    state = TrainState(model, average, build_optimizer(config.train, model), step=0)
    if device.type == "cuda":
        state.deferred = Deferred(model, state.optimizer, config)
    return state


@torch.no_grad()
def mean_pitches(pitch: Pitch, corpus: Corpus) -> Tensor:
    """Mean log2 F0 [S] of each speaker over the voiced units of some training utterances; the
    mean of all for one who has no voiced unit."""
    utterances = corpus.utterances
    sums = torch.zeros(len(corpus.speakers), 2, dtype=torch.float64)
    for speaker in range(len(sums)):
        own = np.flatnonzero(~utterances.heldout & (utterances.speaker == speaker))
        for index in own[np.linspace(0, len(own) - 1, min(len(own), PITCH_UTTERANCES)).astype(int)]:
            wav = torch.from_numpy(corpus.excerpt(int(index), 0, int(utterances.length[index])))
            sums[speaker] += torch.cat(voiced_sums(pitch(wav[None]))).double()
    sums[sums[:, 1] == 0] = sums.sum(0)
    return (sums[:, 0] / sums[:, 1]).float()


@torch.no_grad()
def refresh_norms(network: Autoencoder, batches: TrainingBatches, device: torch.device) -> None:
    """Re-estimate the batch-norm statistics of a network on the first training batches.

    An average of weights has no batch statistics of its own; what is validated and exported
    must have the same ones, so they are a function of the weights and of fixed batches.
    """
    norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm1d)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the batches
        norm.train()
    for step in range(NORM_BATCHES):
        wav = batches.at(step).to(device).wav
        network.latents(wav)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
