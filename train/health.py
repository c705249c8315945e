"""Is the run well? How far a step moves each part, and what is to be said of what is logged."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.utils import get_total_norm

from vconv.config import Config
from vconv.nn.autoencoder import Autoencoder

from .findings import LOGS, Row, judge


class Updates:
    """The ratio ||change|| / ||weights|| of each part, in one optimiser step.

    Made before ``optimizer.step()``, measured right after it: what the bottleneck commits then is
    not the optimiser's. It holds a copy of the weights, so it is for the steps that are logged.

    figures: ``update_<part>`` for every part that has weights, once measured.
    """

    def __init__(self, network: Autoencoder) -> None:
        self.figures: dict[str, float] = {}
        self._weights = {
            name: [p for p in part.parameters() if p.requires_grad]
            for name, part in _parts(network).items()
        }
        self._before = {
            name: [p.detach().clone() for p in weights] for name, weights in self._weights.items()
        }

    @torch.no_grad()
    def measure(self) -> None:
        """After the step."""
        for name, weights in self._weights.items():
            if weights:
                before = self._before.pop(name)
                change = get_total_norm([b - a for a, b in zip(before, weights, strict=True)])
                self.figures[f"update_{name}"] = float(change / get_total_norm(before))


def _parts(network: Autoencoder) -> dict[str, nn.Module]:
    return {
        "encoder": network.encoder,
        "bottleneck": network.bottleneck,
        "speakers": network.speakers,
        "conditioner": network.decoder.conditioner,
        "wavenet": network.decoder.wavenet,
    }


class Watch:
    """Says a run's findings as they begin: each once, and again only after it was well between.

    It remembers what a resumed run need not know: there a finding that lasts is said again.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._logs: deque[Row] = deque(maxlen=LOGS)
        self._validations: list[Row] = []
        self._nll: list[float] = []  # since the last validation
        self._standing: set[str] = set()

    def __call__(self, step: int, figures: Mapping[str, float]) -> list[str]:
        """The sentences to say now, from what was logged at a step."""
        row = {**figures, "step": float(step)}
        if "nll" in row:
            self._logs.append(row)
            self._nll.append(row["nll"])
        if "heldout_nll" in row:
            mean = {"nll": sum(self._nll) / len(self._nll)} if self._nll else {}
            self._validations.append(row | mean)
            self._nll = []
        validations = self._validations if "heldout_nll" in row else []
        verdicts = judge([*self._logs], validations, self._config)
        wrong = {name: sentence for name, sentence in verdicts.items() if sentence}
        new = [sentence for name, sentence in wrong.items() if name not in self._standing]
        self._standing = (self._standing - verdicts.keys()) | wrong.keys()
        return new
