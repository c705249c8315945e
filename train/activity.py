"""Which channels of a network's layers do anything, over all that it is shown.

A ReLU that is never open passes no gradient, so it stays shut: a layer dies channel by channel
while the loss still falls. Hooks look on for as long as a ``with`` block lasts.

B batch, C channels, T steps (of whatever rate).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vconv.nn.autoencoder import Autoencoder
from vconv.nn.conditioner import LinearConditioner
from vconv.nn.encoder import Encoder

# A gated channel whose output stays within so much (of -1 to 1) tells the layers after it nothing:
# its gate is shut, or filter and gate are both saturated.
_STUCK_RANGE = 0.01


@dataclass
class _Layer:
    """A layer's name, the module whose output tells, and the range [C] of each channel so far.

    axes: those of the output that are not channels. gated: the output is a ``GatedLayer``'s and
    its second part counts; else it goes through a ReLU next.
    """

    name: str
    module: nn.Module
    axes: tuple[int, int]
    gated: bool = False
    highest: Tensor | None = None
    lowest: Tensor | None = None

    def look(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """As a forward hook."""
        x: Tensor = (output[1] if self.gated else output).detach()
        highest = x.amax(self.axes)
        self.highest = highest if self.highest is None else self.highest.maximum(highest)
        if self.gated:
            lowest = x.amin(self.axes)
            self.lowest = lowest if self.lowest is None else self.lowest.minimum(lowest)

    def dead(self) -> float:
        """Share of the channels."""
        assert self.highest is not None, f"{self.name} has seen nothing"
        if self.lowest is not None:
            idle = self.highest - self.lowest < _STUCK_RANGE
        else:
            idle = self.highest <= 0
        return float(idle.float().mean())


class Activity:
    """Shares of dead channels, over everything that passes while ``watched``."""

    def __init__(self, network: Autoencoder) -> None:
        self._layers = list(_layers(network))

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Look at what passes within the block; no hook outlasts it, whatever is raised."""
        with ExitStack() as hooks:
            for layer in self._layers:
                handle = layer.module.register_forward_hook(layer.look)
                hooks.callback(handle.remove)
            with torch.no_grad():
                yield

    def figures(self) -> dict[str, float]:
        """``dead_<part>_<layer>``: the share of a layer's channels that were never above 0 (in
        front of a ReLU), or never moved (gated layers); ``dead_<part>``: of all the part's."""
        shares = {layer.name: layer.dead() for layer in self._layers}
        figures: dict[str, float] = {}
        for part in dict.fromkeys(name.rpartition("_")[0] for name in shares):
            # The layers of a part are equally wide.
            own = [share for name, share in shares.items() if name.startswith(f"{part}_")]
            figures[f"dead_{part}"] = sum(own) / len(own)
        return figures | {f"dead_{name}": share for name, share in shares.items()}


def _layers(network: Autoencoder) -> Iterator[_Layer]:
    channels_first, channels_last = (0, 2), (0, 1)
    if isinstance(network.encoder, Encoder):
        for index, layer in enumerate(network.encoder.layers):
            norm = layer.get_submodule("norm")  # what the ReLU of a ConvNorm is given
            yield _Layer(f"encoder_{index}", norm, channels_first)
    if isinstance(network.decoder.conditioner, LinearConditioner):  # the other has no ReLU
        for index, conv in enumerate(network.decoder.conditioner.frames):
            yield _Layer(f"conditioner_{index}", conv, channels_first)
    wavenet = network.decoder.wavenet
    for index, gated in enumerate(wavenet.gated_layers):
        yield _Layer(f"gated_{index:02}", gated, channels_last, gated=True)
    for index, linear in enumerate((wavenet.skip, wavenet.hidden)):
        yield _Layer(f"output_{index}", linear, channels_last)
