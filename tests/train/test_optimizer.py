"""Muon against PyTorch's own and against the singular value decomposition; its place in a run."""

import pytest
import torch

from tiny_model import CONFIG
from vconv.config import TrainConfig
from vconv.nn.autoencoder import build_autoencoder
from vconv.train.optimizer import Muon, build_optimizer, orthogonal, slots

LR, DECAY = 1e-3, 0.1


def test_orthogonalised_momentum_keeps_singular_vectors_and_evens_out_the_values():
    generator = torch.Generator().manual_seed(0)
    for shape in [(48, 96), (96, 48), (64, 64), (96, 7)]:
        matrix = torch.randn(shape, generator=generator)
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
        matrix = u @ torch.diag(torch.logspace(0, -2, len(s))) @ v  # a condition number of 100
        found = orthogonal(matrix)
        within = u.T @ found @ v.T
        values = within.diagonal()
        assert values.min() > 0.65
        assert values.max() < 1.25
        assert (within - torch.diag(values)).abs().max() < 1e-3


def test_steps_are_those_of_pytorchs_muon():
    generator = torch.Generator().manual_seed(1)
    for shape in [(32, 80), (80, 32)]:
        ours = torch.nn.Parameter(torch.randn(shape, generator=generator))
        theirs = torch.nn.Parameter(ours.detach().clone())
        start = ours.detach().clone()
        optimizer = Muon([ours], [ours], lr=LR, weight_decay=DECAY)
        # Theirs has the root mean square of 0.2 lr when told to match AdamW's usual one.
        reference = torch.optim.Muon(
            [theirs], lr=LR, weight_decay=DECAY, adjust_lr_fn="match_rms_adamw"
        )
        for group in reference.param_groups:
            group["lr"], group["weight_decay"] = 5 * LR, DECAY / 5
        for _ in range(6):
            gradient = torch.randn(shape, generator=generator)
            ours.grad, theirs.grad = gradient.clone(), gradient.clone()
            optimizer.step()
            reference.step()
        moved, expected = ours.detach() - start, theirs.detach() - start
        # Theirs iterates in bfloat16.
        assert (moved - expected).norm() < 0.02 * expected.norm()


def test_what_is_no_matrix_takes_adamws_steps_to_the_bit():
    generator = torch.Generator().manual_seed(2)
    values = [torch.randn(shape, generator=generator) for shape in [(8, 8), (8,), (6, 8)]]
    ours = [torch.nn.Parameter(value.clone()) for value in values]
    theirs = [torch.nn.Parameter(value.clone()) for value in values]
    optimizer = Muon(ours, ours[:1], lr=LR, weight_decay=DECAY)
    reference = torch.optim.AdamW(theirs, lr=LR, weight_decay=DECAY, fused=True)
    for _ in range(3):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        optimizer.step()
        reference.step()
    assert not torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])
    assert torch.equal(ours[2], theirs[2])


def test_the_hidden_matrices_of_the_decoder_are_muons_and_nothing_else():
    model = build_autoencoder(CONFIG.model, 3)
    optimizer = build_optimizer(TrainConfig(optimizer="muon"), model)
    muons = {n for n, p in model.named_parameters() if slots(optimizer, p) == ("momentum",)}
    assert "decoder.wavenet.layers.0.dilated.weight" in muons
    assert "decoder.conditioner.mix.weight" in muons
    tables = {"decoder.wavenet.embedding.weight", "decoder.wavenet.logits.weight"}
    assert not muons & tables
    assert all(n.startswith("decoder.") and n.endswith(".weight") for n in muons)
    assert type(build_optimizer(TrainConfig(), model)) is torch.optim.AdamW


def test_a_parameter_without_a_gradient_stays_and_keeps_nothing():
    matrix = torch.nn.Parameter(torch.ones(4, 4))
    optimizer = Muon([matrix], [matrix], lr=LR, weight_decay=DECAY)
    optimizer.step()
    assert torch.equal(matrix, torch.ones(4, 4))
    assert not optimizer.state[matrix]


@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_the_gradients_scale_changes_nothing(scale):
    matrix = torch.randn(8, 12, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(orthogonal(matrix * scale), orthogonal(matrix), atol=1e-4, rtol=0)


def test_a_gradient_of_zero_moves_nothing():
    assert torch.equal(orthogonal(torch.zeros(3, 5)), torch.zeros(3, 5))
