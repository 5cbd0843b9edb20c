import pytest
import torch
from torch import nn

import pullback as pb
from pullback.chords import chord_energy
from pullback.geodesics.energy import DiscreteEnergy, Grams


def decoder(d=2, width=16, n_features=9, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(d, width), nn.Tanh(), nn.Linear(width, n_features)).double()


def problem(batch=3, n=7, d=2):
    f = decoder(d)
    generator = torch.Generator().manual_seed(1)
    nodes = torch.randn(batch, n + 2, d, generator=generator, dtype=torch.float64)
    energy = DiscreteEnergy.between(pb.Pullback(f), nodes[:, 0], nodes[:, -1])
    return f, nodes, energy


def products(j):
    """J_i' J_k of Jacobians (B, n, D, d)."""
    n = j.shape[1]
    return Grams(*(j[:, : n - k].mT @ j[:, k:] for k in range(3)))


def test_the_energy_is_that_of_parabolas_through_three_decoded_nodes():
    f, nodes, energy = problem()
    x = f(nodes)
    a, b, c = x[:, :-1:2], x[:, 1::2], x[:, 2::2]  # elements of length 1/4
    t = torch.linspace(0, 1, 2001, dtype=torch.float64)[:, None, None, None]
    velocity = a * (4 * t - 3) + b * (4 - 8 * t) + c * (4 * t - 1)  # of the parabola, t in [0, 1] within the element
    exact = 0.5 * torch.trapezoid(velocity.square().sum((-1, -2)), t[:, 0, 0, 0], dim=0) * 4
    assert torch.allclose(energy.value_and_gradient(nodes[:, 1:-1])[0], exact, rtol=1e-6)


def test_the_gradient_agrees_with_central_differences():
    _, nodes, energy = problem()
    z = nodes[:, 1:-1]
    _, gradient = energy.value_and_gradient(z)
    direction = torch.randn_like(z)
    plus, minus = (energy.value_and_gradient(z + h * direction)[0] for h in (1e-5, -1e-5))
    assert torch.allclose((plus - minus) / 2e-5, (gradient * direction).sum((1, 2)), rtol=1e-7)


def test_the_gauss_newton_matrix_is_exact_for_a_linear_decoder():
    linear = nn.Linear(2, 5, dtype=torch.float64)
    nodes = torch.randn(3, 9, 2, dtype=torch.float64)
    energy = DiscreteEnergy.between(pb.Pullback(linear), nodes[:, 0], nodes[:, -1])
    z = nodes[:, 1:-1]
    dense = torch.autograd.functional.hessian(
        lambda z: chord_energy(*energy.metric.squared_chords(energy.select(torch.tensor([0])).decode(z))).sum(), z[:1]
    ).reshape(14, 14)
    from pullback.geodesics.blocktridiagonal import solve

    right = torch.randn(3, 7, 2, dtype=torch.float64)
    padded = nn.functional.pad(right, (0, 0, 0, 1)).reshape(3, 4, 4)
    found = solve(energy.grams(z).gauss_newton(), padded).reshape(3, 8, 2)[:, :7]
    assert torch.allclose(dense @ found[0].reshape(14), right[0].reshape(14), atol=1e-6)


def test_prolonged_products_are_those_of_linearly_interpolated_jacobians():
    j = torch.randn(2, 7, 20, 3, dtype=torch.float64)
    weights = torch.zeros(15, 7, dtype=torch.float64)
    weights[1::2] = torch.eye(7)
    weights[2:-1:2] = 0.5 * (torch.eye(7)[:-1] + torch.eye(7)[1:])
    weights[0, :2], weights[-1, -2:] = torch.tensor([1.5, -0.5]), torch.tensor([-0.5, 1.5])
    finer = torch.einsum("ai,biDd->baDd", weights, j)
    for found, exact in zip(products(j).prolong(), products(finer), strict=True):
        assert torch.allclose(found, exact, atol=1e-12)


def test_even_nodes_are_equally_far_apart_and_on_the_same_curve():
    f = decoder()
    t = torch.linspace(0, 1, 5, dtype=torch.float64)
    nodes = torch.stack((3 * t**2, torch.sin(2 * t)), -1)[None]
    energy = DiscreteEnergy.between(pb.Pullback(f), nodes[:, 0], nodes[:, -1])
    curve = pb.Curve(nodes)
    even, length = energy.even(curve, 16, 512)
    assert torch.allclose(length, pb.length(energy.metric, curve), rtol=1e-6)
    chords = f(even.resample(256).nodes).diff(dim=1).norm(dim=-1).reshape(1, 16, 16).sum(-1)
    assert torch.allclose(chords, chords.mean(1, keepdim=True), rtol=0.02)
    dense = curve(torch.linspace(0, 1, 20001, dtype=torch.float64))
    assert torch.cdist(even.nodes, dense).min(-1).values.max() < 1e-3
    assert torch.equal(even.nodes[:, [0, -1]], nodes[:, [0, -1]])


def test_chunks_do_not_change_the_numbers():
    f, nodes, energy = problem(batch=20)
    small = DiscreteEnergy.between(pb.Pullback(f, memory=2000), nodes[:, 0], nodes[:, -1])
    z = nodes[:, 1:-1]
    assert small.metric.points_at_once(z) < 20
    for one, other in zip(energy.value_and_gradient(z), small.value_and_gradient(z), strict=True):
        assert torch.allclose(one, other, rtol=1e-12)
    for one, other in zip(energy.measure(z), small.measure(z), strict=True):
        assert torch.allclose(one, other, rtol=1e-12)


@pytest.mark.parametrize("n_segments", [1, 2, 3, 8])
def test_squared_chords_can_be_differentiated_twice(n_segments):
    metric = pb.Pullback(nn.Identity())
    x = torch.randn(2, n_segments + 1, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(metric.squared_chords, (x,))
    assert torch.autograd.gradgradcheck(metric.squared_chords, (x,))
