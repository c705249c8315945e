"""The WaveNet's generating loop, one sample after another, as a scriptable module.

B lanes, T samples, F conditioning steps, L layers, G gate, R residual and C conditioning channels,
Q levels, k taps, P rows of the ring buffers (the sum of all reaches).

A step is dominated by the cost of launching operations, not by their arithmetic: 80 of them for
20 layers. So the weights are packed to need as few as possible, all layers at once where the
order of computation allows, and results go to places laid out beforehand:

* The past taps of all layers are known when a step begins. They are gathered by one index from
  one ring buffer, and multiplied in one batched product.
* tanh(f) = 2 sigmoid(2f) - 1. With the filter's half of the weights doubled, one sigmoid over both
  halves gives p, q, and -z = q - 2 p q is one operation; the sign is moved into the weights that
  follow. (Torch's sigmoid is also faster than its tanh.)
* The residual path carries x_l without its biases, so that a layer adds its output in place. The
  biases' sum reaches the next layers as a constant; contexts hold x_l less that sum.

A layer is then four operations: the present tap's product, sigmoid, z, the residual product.
"""

import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional

from .wavenet import WaveNet


class Interpolation(nn.Module):
    """Conditioning of a frame's samples from projections at its two ends (hop > 1).

    ``scale`` [2G] and ``constant`` [L, 1, 2G] are ``IncrementalWaveNet``'s.
    """

    scale: Tensor
    constant: Tensor

    def __init__(self, hop: int, scale: Tensor, constant: Tensor) -> None:
        super().__init__()
        self.block = hop
        _keep(self, "scale", scale)
        _keep(self, "constant", constant)

    def forward(self, conditioning: Tensor, first: int, samples: int) -> Tensor:
        """conditioning [B, n + 1, L * 2G], of n frames, and the first of a frame's samples ->
        [samples, L, B, 2G]."""
        frame = first // self.block
        ends = conditioning[:, frame : frame + 2].unflatten(2, (len(self.constant), -1))
        here, there = (ends.permute(1, 2, 0, 3) * self.scale + self.constant).unbind(0)
        ramp = torch.arange(samples, device=here.device)[:, None, None, None] / self.block
        return torch.addcmul(here, there - here, ramp)


class Projection(nn.Module):
    """Conditioning of a block of samples from its channels (hop 1), for all layers at once.

    At the sample rate the projections are L * 2G numbers a sample (14,720 in the paper's network),
    so only a block is ever there. The product is always one of a whole block: a matrix product's
    bits depend on its size, and a stream's must not depend on where it is cut.
    """

    weight: Tensor  # [C, L * 2G]
    bias: Tensor  # [L * 2G]

    def __init__(self, wavenet: WaveNet, scale: Tensor, constant: Tensor) -> None:
        super().__init__()
        self.block = 64  # as fast as longer ones, and the projections stay in a cache
        layers = wavenet.gated_layers
        self.count = len(layers)
        weights = torch.stack([layer.condition.weight * scale[:, None] for layer in layers])
        biases = torch.stack([layer.condition.bias * scale for layer in layers])
        _keep(self, "weight", weights.flatten(0, 1).T)
        _keep(self, "bias", (biases + constant[:, 0]).flatten())

    def forward(self, conditioning: Tensor, first: int, samples: int) -> Tensor:
        """conditioning [B, T, C], of which ``samples`` <= block from ``first`` on ->
        [samples, L, B, 2G]."""
        channels = conditioning[:, first : first + samples]
        channels = functional.pad(channels, [0, 0, 0, self.block - samples])
        projected = torch.addmm(self.bias, channels.flatten(0, 1), self.weight)
        lanes: Tensor = projected.unflatten(0, (-1, self.block)).unflatten(2, (self.count, -1))
        return lanes.permute(1, 2, 0, 3)[:samples]


class IncrementalWaveNet(nn.Module):
    """``WaveNet`` in steps of one sample.

    A state is (previous code [B] int64, contexts [P, B, R], position [] int64), never changed in
    place. Layer l owns (k - 1) * dilation rows; its input at time t is in row t modulo their
    number, and ``position`` is t modulo the greatest such number.
    """

    residual: Tensor  # [L - 1, G, R]
    past: Tensor  # [k - 1, L, R, 2G]: oldest tap first
    present: Tensor  # [L, R, 2G]
    bias_sum: Tensor  # [L, R]: what the residual path leaves out
    embedding: Tensor  # [Q, R]
    skip_weight: Tensor
    skip_bias: Tensor
    hidden_weight: Tensor
    hidden_bias: Tensor
    logits_weight: Tensor
    logits_bias: Tensor
    row_start: Tensor  # [(k - 1) * L]
    row_count: Tensor  # [(k - 1) * L]
    row_lag: Tensor  # [(k - 1) * L]

    def __init__(self, wavenet: WaveNet) -> None:
        super().__init__()
        layers = wavenet.gated_layers
        self.levels = wavenet.levels
        self.hop = wavenet.hop
        self.silence = wavenet.silence
        self.count = len(layers)
        self.gate = layers[0].dilated.out_features // 2
        self.taps = layers[0].kernel - 1
        width = wavenet.embedding.embedding_dim
        self.width = width

        scale = torch.ones(2 * self.gate)  # 2 for the filter, 1 for the gate
        scale[: self.gate] = 2
        taps = torch.stack([layer.dilated.weight.T * scale for layer in layers])
        taps = taps.unflatten(1, (self.taps + 1, width))
        residual = torch.zeros(self.count - 1, self.gate, width)
        bias_sum = torch.zeros(self.count, width)
        for index, layer in enumerate(layers):
            if layer.residual is not None:
                residual[index] = -layer.residual.weight.detach().T
                bias_sum[index + 1] = bias_sum[index] + layer.residual.bias.detach()
        # What the biases' sum amounts to after the dilated convolution. [L, 1, 2G]
        constant = torch.einsum("lr,lkrg->lg", bias_sum, taps)[:, None]
        self.conditioning = (
            Projection(wavenet, scale, constant)
            if wavenet.hop == 1
            else Interpolation(wavenet.hop, scale, constant)
        )
        _keep(self, "past", taps[:, :-1].transpose(0, 1))
        _keep(self, "present", taps[:, -1])
        _keep(self, "residual", residual)
        _keep(self, "bias_sum", bias_sum)
        _keep(self, "embedding", wavenet.embedding.weight)
        _keep(self, "skip_weight", -wavenet.skip.weight.T)
        _keep(self, "skip_bias", wavenet.skip.bias)
        _keep(self, "hidden_weight", wavenet.hidden.weight.T)
        _keep(self, "hidden_bias", wavenet.hidden.bias)
        _keep(self, "logits_weight", wavenet.logits.weight.T)
        _keep(self, "logits_bias", wavenet.logits.bias)

        dilation = torch.tensor([layer.dilation for layer in layers])
        reach = dilation * self.taps
        self.rows = int(reach.sum())
        self.period = int(reach.max())
        # The tap that lies k - 1 - j dilations back, for every j < k - 1, then every layer. The
        # oldest (j = 0) is in the row that the present input will take.
        lags = torch.arange(self.taps, 0, -1)[:, None] * dilation
        _keep(self, "row_lag", lags.flatten())
        _keep(self, "row_start", (reach.cumsum(0) - reach).repeat(self.taps))
        _keep(self, "row_count", reach.repeat(self.taps))

    def initial_state(self, lanes: int) -> tuple[Tensor, Tensor, Tensor]:
        """The state after silence: all contexts zero."""
        device = self.bias_sum.device
        reach = self.row_count[: self.count]
        contexts = -self.bias_sum.repeat_interleave(reach, dim=0)
        return (
            torch.full([lanes], self.silence, dtype=torch.int64, device=device),
            contexts[:, None].repeat(1, lanes, 1),
            torch.zeros([], dtype=torch.int64, device=device),
        )

    def join(self, states: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
        """The lanes of several states, in their order, as one state at the first one's position.

        Rows are moved, numbers are not touched: of a layer with N rows, what a state at position p
        has in row r belongs in row (r + q - p) modulo N at position q.
        """
        position = states[0][2]
        reach = self.row_count[: self.count]
        start = self.row_start[: self.count].repeat_interleave(reach, output_size=self.rows)
        count = reach.repeat_interleave(reach, output_size=self.rows)
        row = torch.arange(self.rows, device=position.device) - start
        moved = [
            contexts.index_select(0, start + (row - (position - its)) % count)
            for _, contexts, its in states
        ]
        return torch.cat([code for code, _, _ in states]), torch.cat(moved, dim=1), position

    def split(
        self, state: tuple[Tensor, Tensor, Tensor], counts: list[int]
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """A state's lanes as states of so many each, none of which keeps the whole alive."""
        code, contexts, position = state
        return [
            (its_code.clone(), its_contexts.contiguous(), position)
            for its_code, its_contexts in zip(
                code.split(counts), contexts.split(counts, dim=1), strict=True
            )
        ]

    def forward(
        self,
        conditioning: Tensor,
        uniforms: Tensor,
        temperature: float,
        forced: Tensor | None,
        state: tuple[Tensor, Tensor, Tensor],
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
        """conditioning [B, n + 1, L * 2G] of n frames (projected for every layer), with hop 1
        [B, T, C], and uniforms [B, T] -> (codes [B, T] int64, logits, state).

        With ``forced`` codes [B, T] these are followed instead of drawn, and the logits [B, T, Q]
        that predicted each are returned; else they are [B, 0, Q]. Temperature 0 takes the most
        likely code.
        """
        lanes, samples = uniforms.shape
        count, gate, block = self.count, self.gate, self.conditioning.block
        code, contexts, position = state
        contexts = contexts.clone()
        time = position + torch.arange(samples, device=conditioning.device)[:, None]
        rows = self.row_start + (time - self.row_lag) % self.row_count
        uniforms = uniforms.t()[:, :, None].contiguous()

        # Places for one step's results, and the views of them that each layer writes.
        inputs = conditioning.new_empty([count, lanes, self.width])
        hidden = conditioning.new_empty([count, lanes, 2 * gate])
        gated = conditioning.new_empty([lanes, count * gate])
        x, h, z = inputs.unbind(0), hidden.unbind(0), gated.chunk(count, dim=1)
        p, q = hidden[:, :, :gate].unbind(0), hidden[:, :, gate:].unbind(0)
        past, present = self.past.unbind(0), self.present.unbind(0)
        residual = self.residual.unbind(0)

        codes: list[Tensor] = []
        logits: list[Tensor] = []
        for first in range(0, samples, block):
            here = min(block, samples - first)
            projected = self.conditioning(conditioning, first, here).unbind(0)
            rows_read = rows[first : first + here].unbind(0)
            draws = uniforms[first : first + here].unbind(0)
            for step in range(here):
                earlier = contexts.index_select(0, rows_read[step])
                torch.baddbmm(projected[step], earlier[:count], past[0], out=hidden)
                for j in range(1, self.taps):
                    hidden.baddbmm_(earlier[j * count : (j + 1) * count], past[j])
                below = x[0]
                torch.index_select(self.embedding, 0, code, out=below)
                for i in range(count):
                    opening, out = q[i], z[i]
                    h[i].addmm_(below, present[i]).sigmoid_()
                    torch.addcmul(opening, p[i], opening, value=-2, out=out)
                    if i + 1 < count:
                        above = x[i + 1]
                        torch.addmm(below, out, residual[i], out=above)
                        below = above
                contexts.index_copy_(0, rows_read[step][:count], inputs)
                y = torch.addmm(self.skip_bias, gated, self.skip_weight).relu_()
                y = torch.addmm(self.hidden_bias, y, self.hidden_weight).relu_()
                y = torch.addmm(self.logits_bias, y, self.logits_weight)
                if forced is not None:
                    logits.append(y)
                    code = forced[:, first + step]
                elif temperature == 0.0:
                    code = y.argmax(1)
                else:
                    # The smallest index whose cumulative probability exceeds the uniform.
                    cumulative = torch.softmax(y / temperature, 1).cumsum_(1)
                    found = torch.searchsorted(cumulative, draws[step], right=True)
                    code = found.clamp_max_(self.levels - 1).view(-1)
                codes.append(code)
        scores = conditioning.new_empty([lanes, 0, self.levels])
        if forced is not None:
            scores = torch.stack(logits, 1)
        return torch.stack(codes, 1), scores, (code, contexts, (position + samples) % self.period)


def _keep(module: nn.Module, name: str, tensor: Tensor) -> None:
    module.register_buffer(name, tensor.detach().clone().contiguous())


def scripted(module: nn.Module) -> torch.jit.ScriptModule:
    """The module compiled by TorchScript."""
    with warnings.catch_warnings():
        # Deprecated since torch 2.10 without a successor that runs a loop of this kind without
        # Python; `torch` is pinned to versions in which it works.
        warnings.simplefilter("ignore", DeprecationWarning)
        compiled: torch.jit.ScriptModule = torch.jit.script(module)
    return compiled
