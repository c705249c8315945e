import torch

import contracts
from networks import network
from vconv.geometry import ENCODER


def test_the_encoder_reads_what_the_geometry_declares():
    encoder = network().encoder
    contracts.assert_reads_what_it_declares(encoder, 80, ENCODER)


def test_chunks_of_features_give_the_units_of_the_whole():
    encoder = network().encoder
    x = torch.randn(2, 80, 61)
    contracts.assert_chunked_is_whole(encoder, x, ENCODER, split=9)


def test_items_of_a_batch_do_not_mix():
    contracts.assert_items_are_independent(network().encoder, torch.randn(5, 80, 40))
