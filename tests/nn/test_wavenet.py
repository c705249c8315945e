"""The WaveNet: causality, explicit state, and the mathematics against plain convolutions."""

import pytest
import torch
from torch.nn import functional

import contracts
from vconv.nn.layers import interpolate
from vconv.nn.wavenet import WaveNet

HOP = 4


def wavenet(kernel: int = 2, hop: int = HOP) -> WaveNet:
    torch.manual_seed(0)
    return WaveNet(
        levels=11,
        residual_channels=6,
        gate_channels=5,
        skip_channels=7,
        conditioning_channels=3,
        blocks=2,
        layers=3,
        kernel_size=kernel,
        hop=hop,
    ).eval()


def inputs(batch: int, steps: int, hop: int = HOP) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(11, (batch, steps), generator=generator)
    frames = steps // hop + 1 if hop > 1 else steps
    return codes, torch.randn(batch, frames, 3, generator=generator)


def by_convolutions(net: WaveNet, codes: torch.Tensor, conditioning: torch.Tensor) -> torch.Tensor:
    """van den Oord et al. 2016 with zero-padded causal convolutions, channels first, float64."""
    net = net.double()
    x = net.embedding(codes).transpose(1, 2)
    position = torch.arange(codes.shape[1], dtype=torch.float64) / net.hop
    frame = position.long()
    share = position - frame
    skip = torch.zeros(())
    for index, layer in enumerate(net.gated_layers):
        residual = x.shape[1]
        kernel = layer.dilated.weight.view(-1, layer.kernel, residual).transpose(1, 2)
        projected = layer.condition(conditioning.double()).transpose(1, 2)
        there = projected[:, :, (frame + 1).clamp(max=projected.shape[2] - 1)]
        local = projected[:, :, frame] * (1 - share) + there * share
        padded = functional.pad(x, (layer.reach, 0))
        hidden = functional.conv1d(padded, kernel, dilation=layer.dilation) + local
        filtered, gate = hidden.chunk(2, dim=1)
        z = torch.tanh(filtered) * torch.sigmoid(gate)
        part = net.skip.weight[:, index * z.shape[1] : (index + 1) * z.shape[1]]
        skip = skip + torch.einsum("sg,bgt->bst", part, z)
        if layer.residual is not None:
            x = x + layer.residual(z.transpose(1, 2)).transpose(1, 2)
    hidden = torch.relu(skip + net.skip.bias[:, None]).transpose(1, 2)
    return net.logits(torch.relu(net.hidden(hidden)))


@pytest.mark.parametrize("kernel", [2, 3])
@pytest.mark.parametrize("hop", [1, HOP])
def test_logits_equal_plain_convolutions(kernel, hop):
    net = wavenet(kernel, hop)
    codes, conditioning = inputs(2, 48, hop)
    logits, _ = net(codes, conditioning, net.initial_state(2))
    expected = by_convolutions(wavenet(kernel, hop), codes, conditioning)
    torch.testing.assert_close(logits.double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("chunk", [HOP, 2 * HOP, 5 * HOP])
def test_chunks_with_state_equal_the_whole(chunk):
    net = wavenet()
    codes, conditioning = inputs(2, 60)
    whole, _ = net(codes, conditioning, net.initial_state(2))
    state = net.initial_state(2)
    parts = []
    for start in range(0, 60, chunk):
        frames = conditioning[:, start // HOP : (start + chunk) // HOP + 1]
        logits, state = net(codes[:, start : start + chunk], frames, state)
        parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-5)


def test_without_context_the_logits_are_those_of_the_end():
    net = wavenet()
    codes, conditioning = inputs(2, 60)
    whole, _ = net(codes, conditioning, net.initial_state(2))
    trimmed, _ = net(codes, conditioning, net.no_context(2))
    assert trimmed.shape[1] == 60 - (net.receptive_field - 1)
    # The start of the whole has seen zero contexts instead of silence codes: compare past them.
    torch.testing.assert_close(trimmed, whole[:, net.receptive_field - 1 :], rtol=0, atol=1e-5)
    last, _ = net(codes, conditioning, net.no_context(2), wanted=9)
    torch.testing.assert_close(last, whole[:, -9:], rtol=0, atol=1e-5)


def test_no_logit_looks_into_the_future():
    net = wavenet()
    x = torch.randn(1, 40, 6)
    layer = net.gated_layers[2]
    context = torch.zeros(1, layer.reach, 6)
    contracts.assert_no_future(lambda v: layer(v, torch.zeros(1, 40, 10), context)[0], x, step=17)
    codes, conditioning = inputs(1, 40)
    changed = codes.clone()
    changed[:, 20:] = (changed[:, 20:] + 1) % 11
    before, _ = net(codes, conditioning, net.initial_state(1))
    after, _ = net(changed, conditioning, net.initial_state(1))
    assert torch.equal(before[:, :20], after[:, :20])
    assert not torch.equal(before[:, 20], after[:, 20])


@pytest.mark.parametrize("kernel", [2, 3])
def test_the_receptive_field_measured_by_gradients_is_the_declared_one(kernel):
    net = wavenet(kernel)
    steps = net.receptive_field + 7
    table = net.embedding.weight.detach()
    x = table[torch.zeros(1, steps, dtype=torch.long)].clone().requires_grad_()
    contexts = net.initial_state(1)
    y, skips = x, []
    for layer, context in zip(net.gated_layers, contexts, strict=True):
        y, z, _ = layer(y, torch.zeros(1, steps, 10), context)
        skips.append(z)
    (gradient,) = torch.autograd.grad(torch.cat(skips, 2)[:, -1].sum(), x)
    touched = gradient.abs().sum((0, 2)).nonzero()[:, 0]
    assert int(touched[-1]) - int(touched[0]) + 1 == net.receptive_field


def test_interpolation_is_the_straight_line_between_steps():
    steps = torch.tensor([[[0.0, 5.0], [4.0, 5.0], [2.0, 1.0]]])
    out = interpolate(steps, 4)
    expected = torch.tensor([0.0, 1, 2, 3, 4, 3.5, 3, 2.5])
    torch.testing.assert_close(out[0, :, 0], expected)
    torch.testing.assert_close(out[0, :, 1], torch.tensor([5.0, 5, 5, 5, 5, 4, 3, 2]))
