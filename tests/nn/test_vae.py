"""The VAE's terms against numerical integration, closed forms and brute force."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch.nn import functional

from vconv.nn.bottleneck import VAE, annealing, gaussian_kl


def vae(dim: int = 3, **options: float) -> VAE:
    settings = {"kl_weight": 1.0, "kl_warmup": 0, "free_bits": 0.0, "unit_hop": 320}
    torch.manual_seed(0)
    return VAE(5, dim, **(settings | options))


@pytest.mark.parametrize("mean", [0.0, -0.7, 2.5])
@pytest.mark.parametrize("log_variance", [-3.0, 0.0, 1.2])
def test_the_kl_is_the_integral_of_its_definition(mean, log_variance):
    posterior = stats.norm(mean, math.exp(log_variance / 2))

    def integrand(x: float) -> float:
        return posterior.pdf(x) * (posterior.logpdf(x) - stats.norm.logpdf(x))

    reach = 12 * posterior.std()
    expected, _ = integrate.quad(integrand, mean - reach, mean + reach, points=[mean])
    found = gaussian_kl(torch.tensor(mean), torch.tensor(log_variance))
    assert found.item() == pytest.approx(expected, abs=1e-5)


def test_the_penalty_is_the_kl_of_a_unit_over_the_samples_it_stands_for():
    bottleneck = vae()
    encodings = torch.randn(2, 5, 7)
    result = bottleneck(encodings)
    mean, log_variance = bottleneck.project(encodings).chunk(2, 1)
    kl = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, torch.exp(log_variance / 2)),
        torch.distributions.Normal(0.0, 1.0),
    )
    units = 2 * 7
    torch.testing.assert_close(result.penalty, kl.sum() / units / 320)
    torch.testing.assert_close(result.metrics["kl"], kl.sum() / units)


@pytest.mark.parametrize(
    "f", [lambda z: z.square() / 2, functional.softplus, torch.sin], ids=["square", "soft", "sine"]
)
def test_the_draws_estimate_the_expectation_and_its_gradient(f):
    """Equal-weight quadrature nodes for noise: the L-sample mean is then an integral."""
    draws = 20_000
    bottleneck = vae(dim=1)
    nodes = stats.norm.ppf((np.arange(draws) + 0.5) / draws)
    noise = torch.tensor(nodes, dtype=torch.float32).reshape(1, draws, 1, 1)
    encodings = torch.randn(1, 5, 1)
    z = bottleneck(encodings, noise=noise).z
    assert z.shape == (draws, 1, 1)
    f(z).mean().backward()
    mean, log_variance = (p.item() for p in bottleneck.project(encodings)[0, :, 0])

    def expectation(mean: float, log_variance: float) -> float:
        posterior = stats.norm(mean, math.exp(log_variance / 2))
        reach = 12 * posterior.std()
        return integrate.quad(
            lambda x: posterior.pdf(x) * f(torch.tensor(x, dtype=torch.float64)).item(),
            mean - reach,
            mean + reach,
            points=[mean],
        )[0]

    assert f(z).mean().item() == pytest.approx(expectation(mean, log_variance), abs=2e-3)
    step = 1e-3
    slopes = [
        (expectation(mean + a, log_variance + b) - expectation(mean - a, log_variance - b))
        / (2 * step)
        for a, b in ((step, 0.0), (0.0, step))
    ]
    # The bias's gradient is that of mean and log-variance.
    np.testing.assert_allclose(bottleneck.project.bias.grad, slopes, atol=2e-3)


def test_draws_of_an_item_follow_each_other():
    bottleneck = vae()
    encodings, noise = torch.randn(3, 5, 4), torch.randn(3, 2, 3, 4)
    z = bottleneck(encodings, noise=noise).z
    for item in range(3):
        for draw in range(2):
            alone = bottleneck(
                encodings[item : item + 1], noise=noise[item : item + 1, draw : draw + 1]
            ).z
            torch.testing.assert_close(z[2 * item + draw], alone[0])


def test_without_noise_the_units_are_the_means():
    bottleneck = vae().eval()
    encodings = torch.randn(2, 5, 7)
    result = bottleneck(encodings)
    torch.testing.assert_close(result.z, bottleneck.project(encodings)[:, :3])
    assert (result.codes == -1).all()


def test_the_weight_of_the_kl_rises_over_its_warm_up():
    assert [annealing(step, 4) for step in (0, 1, 4, 9)] == [0.0, 0.25, 1.0, 1.0]
    assert annealing(0, 0) == annealing(None, 4) == 1.0
    bottleneck, encodings = vae(kl_warmup=10, kl_weight=0.5), torch.randn(2, 5, 7)
    whole = bottleneck(encodings).penalty
    torch.testing.assert_close(bottleneck(encodings, step=5).penalty, whole / 2)
    assert bottleneck(encodings, step=0).penalty == 0


def test_a_dimension_below_its_free_bits_costs_them_and_is_left_alone():
    bottleneck = vae(free_bits=0.5)
    with torch.no_grad():
        bottleneck.project.weight.mul_(1e-3)
        bottleneck.project.bias.copy_(torch.tensor([0.1, -0.1, 3.0, 0.0, 0.0, 0.0]))
    encodings = torch.randn(2, 5, 7)
    result = bottleneck(encodings)
    dimensions = gaussian_kl(*bottleneck.project(encodings).chunk(2, 1)).mean((0, 2))
    free = 0.5 * math.log(2)
    assert (dimensions[:2] < free).all()
    assert dimensions[2] > free
    torch.testing.assert_close(result.penalty, (2 * free + dimensions[2]) / 320)
    result.penalty.backward()
    gradient = bottleneck.project.bias.grad
    assert gradient[[0, 1, 3, 4]].abs().max() == 0
    assert gradient[2] > 0


def test_active_dimensions_are_those_whose_means_vary():
    bottleneck = vae()
    with torch.no_grad():
        bottleneck.project.weight[1].zero_()
    assert bottleneck(torch.randn(4, 5, 50)).metrics["active_dimensions"] == 2
