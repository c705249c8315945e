import pytest
import torch

import contracts
from networks import network
from vconv.geometry import ENCODER, Chain, Layer
from vconv.nn.layers import SlidingNorm

ENCODERS = pytest.mark.parametrize(
    ("member", "chain"),
    [("vq", ENCODER), ("instance_norm", Chain((Layer(11),)) + ENCODER)],
    ids=["plain", "instance_norm"],
)


@ENCODERS
def test_the_encoder_reads_what_the_geometry_declares(member, chain):
    contracts.assert_reads_what_it_declares(network(member).encoder, 80, chain)


@ENCODERS
def test_chunks_of_features_give_the_units_of_the_whole(member, chain):
    x = torch.randn(2, 80, 71)
    contracts.assert_chunked_is_whole(network(member).encoder, x, chain, split=9)


@ENCODERS
def test_items_of_a_batch_do_not_mix(member, chain):
    contracts.assert_items_are_independent(network(member).encoder, torch.randn(5, 80, 40))


def test_instance_norm_is_that_of_each_window_by_brute_force():
    norm, x = SlidingNorm(7), 3 * torch.randn(2, 4, 30) + 1
    y = norm(x)
    assert y.shape == (2, 4, 24)
    for frame in range(24):
        window = x[:, :, frame : frame + 7]
        spread = (window.var(2, correction=0) + norm.floor).sqrt()
        expected = (window[:, :, 3] - window.mean(2)) / spread
        torch.testing.assert_close(y[:, :, frame], expected, rtol=1e-4, atol=1e-5)


def test_with_instance_norm_a_gain_and_an_equaliser_leave_no_trace():
    """Both add a constant to each band of a log-mel; without the norm the units change."""
    colour = torch.linspace(-2, 2, 80)[:, None] + 1.5
    x = torch.randn(1, 80, 60)
    with_norm, without = network("instance_norm").encoder, network("vq").encoder
    torch.testing.assert_close(with_norm(x + colour), with_norm(x), rtol=0, atol=1e-4)
    assert (without(x + colour) - without(x)).abs().max() > 0.1
