"""Vector quantisation against brute force and hand-computed updates."""

import numpy as np
import pytest
import torch

from vconv.nn.vq import VQ


def vq(size: int = 8, dim: int = 3, *, gradient: bool = False, **options: float) -> VQ:
    settings = {"commitment_weight": 0.25, "decay": 0.9, "warmup_steps": 3, "restart_below": 0.03}
    torch.manual_seed(0)
    return VQ(5, dim, size, gradient=gradient, **(settings | options))


def started(**options: float) -> VQ:
    bottleneck = vq(**options)
    bottleneck.start(torch.randn(300, 3), seed=0, step=3)
    return bottleneck


UPDATES = pytest.mark.parametrize("gradient", [False, True], ids=["ema", "gradient"])


@UPDATES
def test_codes_are_the_nearest_by_brute_force(gradient):
    bottleneck = started(gradient=gradient).eval()
    encodings = torch.randn(2, 5, 7)
    latents = bottleneck.latents(encodings)
    result = bottleneck(encodings)
    for b in range(2):
        for u in range(7):
            distance = ((bottleneck.codebook - latents[b, :, u]) ** 2).sum(1)
            assert result.codes[b, u] == distance.argmin()
            torch.testing.assert_close(result.z[b, :, u], bottleneck.codebook[result.codes[b, u]])


@UPDATES
def test_gradients_pass_straight_through_and_the_commitment_pulls_latents_to_codes(gradient):
    bottleneck = started(gradient=gradient).train()
    encodings = torch.randn(2, 5, 7, requires_grad=True)
    result = bottleneck(encodings)
    weight = torch.randn_like(result.z)
    (through,) = torch.autograd.grad((result.z * weight).sum(), encodings, retain_graph=True)
    (direct,) = torch.autograd.grad((bottleneck.latents(encodings) * weight).sum(), encodings)
    torch.testing.assert_close(through, direct, rtol=1e-4, atol=1e-6)
    (pulled,) = torch.autograd.grad(result.penalty, encodings)
    latents = bottleneck.latents(encodings)
    commitment = 0.25 * ((latents - result.z.detach()) ** 2).mean()
    (expected,) = torch.autograd.grad(commitment, encodings)
    torch.testing.assert_close(pulled, expected, rtol=1e-4, atol=1e-7)


def test_a_gradient_codebook_moves_by_the_hand_computed_step():
    bottleneck = vq(size=2, dim=1, gradient=True).train()
    bottleneck.started.fill_(True)
    bottleneck.latents = lambda encodings: encodings
    with torch.no_grad():
        bottleneck.codebook.copy_(torch.tensor([[-1.0], [1.0]]))
    latents = torch.tensor([[[-1.5, -2.5, -2.0, 1.2]]])
    result = bottleneck(latents)
    # Equation 3: the mean over 4 numbers of (e - z)^2, and a quarter of that for the commitment.
    squares = (0.5**2 + 1.5**2 + 1.0**2 + 0.2**2) / 4
    assert result.penalty.item() == pytest.approx(1.25 * squares, rel=1e-5)
    torch.optim.SGD([bottleneck.codebook], lr=0.1).zero_grad()
    result.penalty.backward()
    # d/de: 2 (e - z) / 4 summed over what the code stands for.
    gradient = np.array([2 / 4 * (0.5 + 1.5 + 1.0), 2 / 4 * -0.2])
    np.testing.assert_allclose(bottleneck.codebook.grad[:, 0], gradient, rtol=1e-5)
    torch.optim.SGD([bottleneck.codebook], lr=0.1).step()
    bottleneck.commit(seed=0, step=1)
    np.testing.assert_allclose(
        bottleneck.codebook.detach()[:, 0], np.array([-1.0, 1.0]) - 0.1 * gradient, rtol=1e-5
    )


def test_an_ema_codebook_gets_no_gradient():
    bottleneck = started().train()
    encodings = torch.randn(2, 5, 7, requires_grad=True)
    bottleneck(encodings).penalty.backward()
    assert not bottleneck.codebook.requires_grad
    assert "codebook" not in dict(bottleneck.named_parameters())


def test_the_ema_update_is_the_hand_computed_one():
    bottleneck = vq(size=2, dim=1)
    bottleneck.started.fill_(True)
    bottleneck.codebook.copy_(torch.tensor([[-1.0], [1.0]]))
    bottleneck.ema_count.copy_(torch.tensor([1.0, 1.0]))
    bottleneck.ema_sum.copy_(torch.tensor([[-1.0], [1.0]]))
    vectors = torch.tensor([[-1.0], [-2.0], [-3.0], [2.0]])
    bottleneck._pending = [(vectors, torch.tensor([0, 0, 0, 1]))]
    bottleneck.commit(seed=0, step=1)
    # Counts are scaled to a mean of one per code: 3 and 1 of 4 vectors over 2 codes: 1.5 and 0.5.
    count = 0.9 * np.array([1.0, 1.0]) + 0.1 * np.array([1.5, 0.5])
    total = 0.9 * np.array([-1.0, 1.0]) + 0.1 * np.array([-3.0, 1.0])
    np.testing.assert_allclose(bottleneck.ema_count, count, rtol=1e-6)
    np.testing.assert_allclose(bottleneck.codebook[:, 0], total / count, rtol=1e-4)


def test_latents_pass_unquantised_until_the_codebook_starts():
    bottleneck = vq().train()
    result = bottleneck(torch.randn(2, 5, 7))
    assert (result.codes == -1).all()
    assert result.penalty == 0
    assert bottleneck.vectors_wanted(2) == 0
    assert bottleneck.vectors_wanted(3) == 30 * 8


def test_k_means_happens_once_and_depends_on_seed_and_step_only():
    vectors = torch.randn(400, 3)
    first, second = vq(), vq()
    first.start(vectors, seed=1, step=3)
    torch.manual_seed(99)
    second.start(vectors, seed=1, step=3)
    assert torch.equal(first.codebook, second.codebook)
    assert first.vectors_wanted(4) == 0


@UPDATES
@torch.no_grad()
def test_a_restarted_code_stays_alive(gradient):
    bottleneck = started(restart_below=0.5, gradient=gradient)
    bottleneck.codebook[2] = 1e3
    if not gradient:
        bottleneck.ema_sum[2] = 1e3 * 1e-3
    bottleneck.ema_count[2] = 1e-3
    bottleneck.train()
    encodings = torch.randn(4, 5, 50)
    bottleneck(encodings)
    metrics = bottleneck.commit(seed=0, step=10)
    assert metrics["restarts"] >= 1
    assert bottleneck.codebook[2].abs().max() < 10
    used = bottleneck(encodings).codes
    assert (used == 2).any()
    bottleneck.commit(seed=0, step=11)
    assert bottleneck.ema_count[2] > 0.5


@UPDATES
def test_restarts_depend_on_seed_and_step_only(gradient):
    books = []
    for _ in range(2):
        bottleneck = started(restart_below=0.9, gradient=gradient).train()
        torch.manual_seed(5)
        bottleneck(torch.randn(4, 5, 50))
        torch.manual_seed(len(books))
        bottleneck.commit(seed=3, step=10)
        books.append(bottleneck.codebook.detach().clone())
    assert torch.equal(*books)


def test_looking_up_codes_equals_indexing_row_by_row():
    bottleneck = started()
    codes = torch.randint(8, (3, 11))
    latents = bottleneck.lookup(codes)
    for b in range(3):
        for u in range(11):
            assert torch.equal(latents[b, :, u], bottleneck.codebook[int(codes[b, u])])


def test_evaluation_changes_nothing():
    bottleneck = started().eval()
    before = {name: tensor.clone() for name, tensor in bottleneck.state_dict().items()}
    bottleneck(torch.randn(2, 5, 7))
    assert bottleneck.commit(seed=0, step=5) == {}
    for name, tensor in bottleneck.state_dict().items():
        assert torch.equal(tensor, before[name]), name
