import math

import pytest
import torch
from torch import nn

import pullback as pb
from pullback.geodesics.certificate import certificate_cost, certify
from pullback.geodesics.energy import DiscreteEnergy
from pullback.geodesics.solution import Status

F64 = torch.float64


def arcs(angle, n, amplitude=0.0, d=2):
    """Arcs of the equator of the unit sphere, bent towards the pole by sine waves; nodes (1, n + 1, d)."""
    t = torch.linspace(0, 1, n + 1, dtype=F64)
    phi, theta = angle * t, amplitude * torch.sin(math.pi * t)
    z = torch.stack((phi.cos() * theta.cos(), phi.sin() * theta.cos()), -1) / (1 - theta.sin())[:, None]
    return torch.nn.functional.pad(z, (0, d - 2))[None]


def judged(nodes, tol=1e-4, surface=None):
    energy = DiscreteEnergy.between(pb.Pullback(surface or pb.surfaces.Sphere()), nodes[:, 0], nodes[:, -1])
    return certify(energy, nodes, tol)


@pytest.mark.parametrize("angle", [0.1, 1.0, 2.5])
@pytest.mark.parametrize("d", [2, 5])
def test_a_great_arc_is_certified_and_its_length_is_within_the_error(angle, d):
    verdict = judged(arcs(angle, 32, d=d), 1e-5)
    assert verdict.codes == Status.CONVERGED.code
    assert (verdict.length - angle).abs() <= verdict.error
    assert verdict.error <= 1.001e-5 * angle
    assert verdict.energy == pytest.approx(angle**2 / 2, rel=1e-5)


@pytest.mark.parametrize("amplitude", [0.003, 0.01, 0.05])
@pytest.mark.parametrize("angle", [1.0, 2.0, 2.8])
def test_the_error_covers_what_a_bent_arc_is_too_long_by_and_not_much_more(amplitude, angle):
    verdict = judged(arcs(angle, 64, amplitude))
    excess = verdict.length - angle
    assert excess > 0
    assert excess <= verdict.error <= 10 * excess + 1e-5


def test_a_curve_that_is_too_long_for_the_tolerance_is_not_certified():
    assert judged(arcs(2.0, 64, 0.05), 1e-4).codes == Status.WALL.code
    assert judged(arcs(2.0, 64, 0.05), 1e-1).codes == Status.CONVERGED.code


def test_uneven_speed_counts_as_excess():
    t = torch.linspace(0, 1, 33, dtype=F64) ** 2
    verdict = judged(torch.stack((t.cos(), t.sin()), -1)[None])
    assert verdict.codes == Status.WALL.code


def test_more_than_half_a_great_circle_is_a_saddle():
    assert judged(arcs(3.0, 64)).codes == Status.CONVERGED.code
    assert judged(arcs(4.0, 64)).codes == Status.STALLED.code


def test_each_curve_is_judged_alone():
    nodes = torch.cat((arcs(1.0, 32), arcs(2.0, 32, 0.1), arcs(4.0, 32)))
    together = judged(nodes)
    assert together.codes.tolist() == [Status.CONVERGED.code, Status.WALL.code, Status.STALLED.code]
    for i in range(3):
        alone = judged(nodes[i : i + 1])
        assert all(torch.allclose(a[0], b[i], rtol=1e-10) for a, b in zip(alone, together, strict=True))


def test_a_decoder_that_is_not_finite_somewhere_is_said():
    class Holed(nn.Module):
        def forward(self, z):
            return torch.where((z[:, 1:] > 0.9).expand(-1, 3), torch.nan, pb.surfaces.Sphere()(z))

    nodes = torch.cat((arcs(1.0, 32), arcs(2.5, 32)))
    assert judged(nodes, surface=Holed()).codes.tolist() == [Status.CONVERGED.code, Status.NOT_FINITE.code]


def test_it_costs_what_it_says(counting):
    counter = counting(pb.surfaces.Sphere())
    metric, nodes = pb.Pullback(counter), arcs(1.0, 48, d=3)
    energy = DiscreteEnergy.between(metric, nodes[:, 0], nodes[:, -1])
    counter.reset()
    certify(energy, nodes, 1e-4)
    assert counter.evaluations == certificate_cost(energy, 48)
