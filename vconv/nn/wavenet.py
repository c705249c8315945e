"""The autoregressive WaveNet (van den Oord et al. 2016) with explicit state.

B batch, T samples, F conditioning steps, Q levels, R residual, G gate, S skip, C conditioning
channels, L layers. Activations are [B, T, channels]: every convolution is then one matrix
product over all time steps, which on CPUs is twice as fast as channels-first convolutions.

Input t is the code of sample t - 1; logits t are for sample t.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from .layers import gated, interpolate, lookup

State = list[Tensor]


class GatedLayer(nn.Module):
    """One dilated causal convolution with gated activation (equation 2 and section 2.4)."""

    def __init__(
        self, residual: int, gate: int, conditioning: int, kernel: int, dilation: int, *, last: bool
    ) -> None:
        super().__init__()
        self.kernel = kernel
        self.dilation = dilation
        # [2G, kernel * R], oldest tap first; tanh channels, then sigmoid channels. Its bias is
        # the conditioning projection's.
        self.dilated = nn.Linear(kernel * residual, 2 * gate, bias=False)
        self.condition = nn.Linear(conditioning, 2 * gate)
        self.residual = None if last else nn.Linear(gate, residual)

    @property
    def reach(self) -> int:
        return (self.kernel - 1) * self.dilation

    def forward(
        self, x: Tensor, projected: Tensor, context: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, T, R], projected conditioning [B, >= T', 2G] aligned at the right, context
        [B, c, R] -> (y [B, T', R], z [B, T', G], context), T' = T + c - reach."""
        x = torch.cat([context, x], dim=1)
        steps = x.shape[1] - self.reach
        taps = [x[:, j * self.dilation :][:, :steps] for j in range(self.kernel)]
        hidden = self.dilated(torch.cat(taps, dim=2)) + projected[:, projected.shape[1] - steps :]
        z = gated(hidden)
        y = x[:, self.reach :]
        if self.residual is not None:
            y = y + self.residual(z)
        return y, z, x[:, steps:]


class WaveNet(nn.Module):
    """p(sample t | samples < t, conditioning) as logits over mu-law codes."""

    def __init__(
        self,
        *,
        levels: int,
        residual_channels: int,
        gate_channels: int,
        skip_channels: int,
        conditioning_channels: int,
        blocks: int,
        layers: int,
        kernel_size: int,
        hop: int,
    ) -> None:
        super().__init__()
        self.levels = levels
        self.hop = hop
        self.embedding = nn.Embedding(levels, residual_channels)
        count = blocks * layers
        self.layers = nn.ModuleList(
            GatedLayer(
                residual_channels,
                gate_channels,
                conditioning_channels,
                kernel_size,
                2 ** (index % layers),
                last=index == count - 1,
            )
            for index in range(count)
        )
        self.skip = nn.Linear(count * gate_channels, skip_channels)
        self.hidden = nn.Linear(skip_channels, skip_channels)
        self.logits = nn.Linear(skip_channels, levels)

    @property
    def gated_layers(self) -> list[GatedLayer]:
        return [layer for layer in self.layers if isinstance(layer, GatedLayer)]

    @property
    def receptive_field(self) -> int:
        return 1 + sum(layer.reach for layer in self.gated_layers)

    @property
    def silence(self) -> int:
        """The code of silence, which precedes everything."""
        return self.levels // 2

    def no_context(self, batch: int) -> State:
        """A state that remembers nothing: the first receptive field - 1 inputs give no output."""
        return [self._contexts(batch, layer, 0) for layer in self.gated_layers]

    def initial_state(self, batch: int) -> State:
        """The state before the first sample: all contexts zero."""
        return [self._contexts(batch, layer, layer.reach) for layer in self.gated_layers]

    def _contexts(self, batch: int, layer: GatedLayer, steps: int) -> Tensor:
        return self.embedding.weight.new_zeros(batch, steps, self.embedding.embedding_dim)

    def project(self, conditioning: Tensor) -> Tensor:
        """conditioning [B, F, C] -> every layer's projection [B, F, L * 2G], layer-major."""
        return torch.cat([layer.condition(conditioning) for layer in self.gated_layers], dim=2)

    def forward(
        self, inputs: Tensor, conditioning: Tensor, state: State, *, wanted: int | None = None
    ) -> tuple[Tensor, State]:
        """inputs [B, T] (codes of the samples before), conditioning [B, F, C], state -> (logits
        [B, T', Q], state).

        The conditioning ends with the inputs and may begin earlier. T' is T, less what the state
        lacks of a receptive field; ``wanted`` restricts the logits to the last so many.
        """
        table = self.embedding.weight
        x: Tensor = (lookup if table.is_cuda else functional.embedding)(inputs, table)
        contexts: State = []
        zs = []
        for layer, context in zip(self.gated_layers, state, strict=True):
            projected = interpolate(layer.condition(conditioning), self.hop)
            x, z, kept = layer(x, projected, context)
            zs.append(z)
            contexts.append(kept)
        steps = zs[-1].shape[1] if wanted is None else wanted
        skip = self.skip(torch.cat([z[:, z.shape[1] - steps :] for z in zs], dim=2))
        logits = self.logits(torch.relu(self.hidden(torch.relu(skip))))
        return logits, contexts
