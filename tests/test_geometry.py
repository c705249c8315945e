"""Geometry against the known points of the paper's model and against gradients."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from vconv.geometry import Chain, Geometry, Layer, Span


def paper(features: str = "logmel80", upsampling: str = "transposed") -> Geometry:
    return Geometry.of(features=features, upsampling=upsampling, kernel_size=2, blocks=2, layers=10)


def needs(geometry: Geometry) -> Counter[int]:
    """Wav samples that one output sample with its receptive field needs, over all phases."""
    reach = geometry.receptive_field - 1
    return Counter(
        len(geometry.sample_chain.inputs(Span(phase - reach, phase + 1)))
        for phase in range(geometry.unit_hop * 10, geometry.unit_hop * 11)
    )


def test_paper_model_needs_the_known_numbers_of_samples():
    geometry = paper()
    assert geometry.receptive_field == 2047
    assert needs(geometry) == {6960: 262, 7280: 58}
    looks = [geometry.lookahead(phase) for phase in range(320)]
    assert (min(looks), max(looks)) == (2417, 2736)
    assert geometry.lookahead_samples == 2736


def test_deltas_widen_what_the_paper_model_needs():
    assert needs(paper("mfcc39")) == {8240: 262, 8560: 58}


layers = st.builds(
    Layer,
    kernel=st.integers(1, 5),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 3),
) | st.integers(1, 3).flatmap(
    lambda stride: st.builds(
        Layer,
        kernel=st.integers(stride, 3 * stride),
        stride=st.just(stride),
        transposed=st.just(True),
    )
)


def run(chain: Chain, x: torch.Tensor) -> tuple[torch.Tensor, int]:
    """All outputs of a chain of ones, and the absolute index of the first."""
    first = 0
    for layer in chain.layers:
        weight = torch.ones(1, 1, layer.kernel, dtype=x.dtype)
        if layer.transposed:
            x = functional.conv_transpose1d(x, weight, stride=layer.stride)
            # Full overlaps only: kernel - stride steps at each end lack a contribution, where
            # the input goes on; the geometry says which are whole.
            made = layer.outputs(
                Span(first, first + (x.shape[2] - layer.kernel) // layer.stride + 1)
            )
            x = x[:, :, made.start - first * layer.stride :][:, :, : len(made)]
            first = made.start
        else:
            skip = -first % layer.stride
            x = functional.conv1d(
                x[:, :, skip:], weight, stride=layer.stride, dilation=layer.dilation
            )
            first = (first + skip) // layer.stride
    return x, first


@given(st.lists(layers, min_size=1, max_size=4), st.data())
@settings(max_examples=150, deadline=None)
def test_the_inputs_of_a_span_are_those_with_a_gradient(chain_layers, data):
    chain = Chain(tuple(chain_layers))
    length = 160
    made = chain.outputs(Span(0, length))
    if len(made) == 0:
        return
    start = data.draw(st.integers(made.start, made.stop - 1))
    stop = data.draw(st.integers(start + 1, made.stop))
    x = torch.ones(1, 1, length, dtype=torch.float64, requires_grad=True)
    y, first = run(chain, x)
    assert (first, first + y.shape[2]) == (made.start, made.stop)
    y[:, :, start - first : stop - first].sum().backward()
    touched = x.grad[0, 0].nonzero()[:, 0]
    needed = chain.inputs(Span(start, stop))
    # Strides wider than kernels leave holes, so the ends are compared, not the count.
    assert (needed.start, needed.stop) == (int(touched[0]), int(touched[-1]) + 1)


@pytest.mark.parametrize("upsampling", ["linear", "transposed"])
@pytest.mark.parametrize("lead", [0, 640, 2240])
def test_a_plan_places_the_predicted_samples_where_the_chain_says(upsampling, lead):
    geometry = paper(upsampling=upsampling)
    samples = 1600
    plan = geometry.plan(samples, lead=lead)
    units = geometry.encoder.outputs(Span(0, plan.wav_length))
    assert (units.start, len(units)) == (0, plan.units)
    steps = geometry.conditioner.outputs(units)
    assert len(steps) == plan.made
    first = steps.start + plan.skip
    position = (geometry.encoder + geometry.conditioner).anchor(first)
    assert plan.left == position + lead
    assert plan.skip + plan.steps <= plan.made
    # No unit more than needed at either end.
    needed = geometry.conditioner.inputs(Span(first, first + plan.steps))
    assert (needed.start, needed.stop) == (units.start, units.stop)


def test_lead_covers_a_receptive_field_on_the_unit_grid():
    for layers_per_block in range(3, 11):
        geometry = Geometry.of(
            features="logmel80",
            upsampling="linear",
            kernel_size=2,
            blocks=2,
            layers=layers_per_block,
        )
        assert geometry.lead_samples % geometry.unit_hop == 0
        assert 0 <= geometry.lead_samples - (geometry.receptive_field - 1) < geometry.unit_hop
