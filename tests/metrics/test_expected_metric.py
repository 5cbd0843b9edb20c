"""The metric of a decoder with noise is random: its mean is the metric of mean and deviation, and it concentrates."""

import itertools
import math

import pytest
import torch
from torch import nn

from pullback import Gaussian, Pullback

F64 = torch.float64


def network(d, n_features, seed, *, width=40, positive=False):
    """A random network whose outputs do not depend on how many there are, in the mean."""
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Linear(d, width), nn.Tanh(), nn.Linear(width, n_features)).double()
    with torch.no_grad():
        for layer in (net[0], net[2]):
            layer.weight.normal_(0, layer.in_features**-0.5, generator=generator)
            layer.bias.normal_(0, 0.5, generator=generator)
    return (nn.Sequential(net, nn.Softplus()) if positive else net).requires_grad_(False)


def jacobian(f, z):
    """J (D, d) at a point z (d,)."""
    return torch.autograd.functional.jacobian(lambda y: f(y[None])[0], z)


def draws(mean, std, z, n, seed=0):
    """n metrics (n, d, d) at z (d,): J'J of x = mean + noise * std, the noise (D,) a new one each time."""
    noise = torch.randn(n, len(mean(z[None])[0]), generator=torch.Generator().manual_seed(seed), dtype=F64)
    j = jacobian(mean, z) + noise[:, :, None] * jacobian(std, z)
    return j.mT @ j


POINTS = 0.8 * torch.randn(4, 2, generator=torch.Generator().manual_seed(3), dtype=F64)


def test_a_draw_is_the_metric_of_a_decoder_with_fixed_noise():
    mean, std = network(2, 6, seed=0), network(2, 6, seed=1, positive=True)
    noise = torch.randn(5, 6, generator=torch.Generator().manual_seed(7), dtype=F64)
    for sample, eps in zip(draws(mean, std, POINTS[0], 5, seed=7), noise, strict=True):
        fixed = Pullback(lambda z, eps=eps: mean(z) + eps * std(z))
        assert torch.allclose(fixed.matrix(POINTS[0]), sample, rtol=1e-10)


@pytest.mark.parametrize("n_features", [5, 50])
def test_the_expected_metric_is_the_mean_over_the_noise(n_features):
    mean, std = network(2, n_features, seed=0), network(2, n_features, seed=1, positive=True)
    metric = Pullback(Gaussian(mean, std))
    for z in POINTS:
        average = draws(mean, std, z, 50_000).mean(0)
        expected = metric.matrix(z)
        assert (average - expected).abs().max() <= 0.02 * expected.abs().max()
        # the deviations count: without them the metric would be off by far more
        assert (average - Pullback(mean).matrix(z)).abs().max() > 0.1 * expected.abs().max()


def test_one_deviation_for_all_outputs_counts_once_for_each():
    mean, std = network(2, 20, seed=0), network(2, 1, seed=1, positive=True)
    metric = Pullback(Gaussian(mean, std))
    for z in POINTS:
        average = draws(mean, lambda z: std(z).expand(-1, 20), z, 50_000).mean(0)
        expected = metric.matrix(z)
        assert (average - expected).abs().max() <= 0.02 * expected.abs().max()


def test_the_expected_metric_is_that_of_the_jacobian_of_mean_and_deviation_stacked():
    mean, std = network(2, 30, seed=0), network(2, 30, seed=1, positive=True)
    for z in POINTS:
        stacked = jacobian(lambda z: torch.cat((mean(z), std(z)), 1), z)
        apart = [jacobian(f, z) for f in (mean, std)]
        expected = Pullback(Gaussian(mean, std)).matrix(z)
        assert torch.allclose(expected, stacked.mT @ stacked, rtol=1e-8, atol=0)
        assert torch.allclose(expected, sum(j.mT @ j for j in apart), rtol=1e-8, atol=0)


def test_the_random_metric_concentrates_like_one_over_the_root_of_the_number_of_outputs():
    sizes, spread = [10, 100, 1000], []
    for n_features in sizes:
        mean, std = network(2, n_features, seed=0), network(2, n_features, seed=1, positive=True)
        expected = Pullback(Gaussian(mean, std)).matrix(POINTS)
        variance = torch.stack([draws(mean, std, z, 500).var(0) for z in POINTS])
        variations = variance.sum((-2, -1)).sqrt() / expected.flatten(-2).norm(dim=-1)
        spread.append(float(variations.log().mean()))
    slopes = [(b - a) / math.log(10) for a, b in itertools.pairwise(spread)]
    assert slopes == pytest.approx([-0.5, -0.5], abs=0.12)


def test_the_variance_of_the_random_metric_is_that_of_the_formula():
    # M = sum_k (a_k + e_k b_k)(a_k + e_k b_k)', a and b rows of the Jacobians: with e normal the outputs add up
    mean, std, z = network(2, 40, seed=0), network(2, 40, seed=1, positive=True), POINTS[0]
    a, b = jacobian(mean, z), jacobian(std, z)
    linear = a[:, :, None] * b[:, None, :] + b[:, :, None] * a[:, None, :]
    square = b[:, :, None] * b[:, None, :]
    variance = (linear.square() + 2 * square.square()).sum(0)
    assert torch.allclose(draws(mean, std, z, 50_000).var(0), variance, rtol=0.05)
